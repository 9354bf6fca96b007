/* md5.c - PostgreSQL's md5 login: md5(md5(password user) salt).
 * Owns: nothing.   Threads: any.
 * Idea: kept for old drivers, never the default. Where OpenSSL has no md5 (FIPS) nothing matches.
 */
#include "pg/pg.h"

#include <openssl/evp.h>
#include <string.h>

#define HEX 32
#define TEXT (3 + HEX) /* "md5" and the digits */

/* "md5" + hex of the digest of both parts + NUL */
static bool md5_text(struct prt_str a, struct prt_str b, char out[TEXT + 1])
{
    static const char digits[] = "0123456789abcdef";
    uint8_t raw[HEX / 2];
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    bool ok = ctx && EVP_DigestInit_ex(ctx, EVP_md5(), NULL) == 1 &&
              EVP_DigestUpdate(ctx, a.p, a.n) == 1 && EVP_DigestUpdate(ctx, b.p, b.n) == 1 &&
              EVP_DigestFinal_ex(ctx, raw, NULL) == 1;

    EVP_MD_CTX_free(ctx);
    if (!ok) {
        return false;
    }
    memcpy(out, "md5", 3);
    for (size_t i = 0; i < sizeof raw; i++) {
        out[3 + 2 * i] = digits[raw[i] >> 4];
        out[3 + 2 * i + 1] = digits[raw[i] & 15];
    }
    out[TEXT] = '\0';
    return true;
}

/* As PostgreSQL tells it apart: exactly so long, and lower-case digits only. */
static bool is_stored(struct prt_str s)
{
    if (s.n != TEXT || memcmp(s.p, "md5", 3) != 0) {
        return false;
    }
    for (size_t i = 3; i < TEXT; i++) {
        if (!((s.p[i] >= '0' && s.p[i] <= '9') || (s.p[i] >= 'a' && s.p[i] <= 'f'))) {
            return false;
        }
    }
    return true;
}

bool prt_md5_secret(struct prt_str password, struct prt_str user, char out[36])
{
    return md5_text(password, user, out);
}

bool prt_md5_check(struct prt_str secret, struct prt_str user, const uint8_t salt[4],
                   struct prt_str answer)
{
    char stored[TEXT + 1], want[TEXT + 1];
    struct prt_scram_secret verifier;
    bool ok;

    if (secret.n == 0 || answer.n != TEXT || prt_scram_secret_parse(secret, &verifier)) {
        return false;
    }
    if (is_stored(secret)) {
        memcpy(stored, secret.p, TEXT);
    } else if (!prt_md5_secret(secret, user, stored)) {
        return false;
    }
    ok = md5_text((struct prt_str){stored + 3, HEX}, (struct prt_str){(const char *)salt, 4},
                  want) &&
         prt_secret_eq(want, answer.p, TEXT);
    prt_secret_wipe(stored, sizeof stored);
    prt_secret_wipe(want, sizeof want);
    return ok;
}
