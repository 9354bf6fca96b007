/* pg_sasl_fuzz.c - libFuzzer over the SASL messages of a client, and over stored verifiers.
 * The input: one byte of choices, then messages, each behind two bytes of length. Nothing may log
 * in without the password, which the fuzzer cannot know. */
#include "pg/pg.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static void verifier(const uint8_t *p, size_t n)
{
    struct prt_scram_secret s;

    if (prt_scram_secret_parse((struct prt_str){(const char *)p, n}, &s)) {
        prt_assert(s.iterations >= 1 && s.iterations <= 100000);
        prt_assert(s.salt_len >= 1 && s.salt_len <= sizeof s.salt);
    }
    (void)prt_md5_check((struct prt_str){(const char *)p, n}, PRT_STR("u"), (const uint8_t *)"salt",
                        PRT_STR("md5bed128365216c019988915ed3add75fb"));
}

/* the proof is over a random nonce, so an input can hold one only through this: '@' in a message
 * stands for the server's nonce */
static size_t expand(uint8_t *dst, size_t cap, const uint8_t *p, size_t n,
                     const struct prt_buf *last)
{
    const uint8_t *nonce = prt_buf_len(last) > 2 ? prt_buf_data(last) + 2 : NULL;
    const uint8_t *end = nonce ? memchr(nonce, ',', prt_buf_len(last) - 2) : NULL;
    size_t nonce_n = end ? (size_t)(end - nonce) : 0, at = 0;

    for (size_t i = 0; i < n; i++) {
        const uint8_t *from = p[i] == '@' && nonce_n ? nonce : p + i;
        size_t k = p[i] == '@' && nonce_n ? nonce_n : 1;
        if (k > cap - at) {
            break;
        }
        memcpy(dst + at, from, k);
        at += k;
    }
    return at;
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    static const uint8_t binding[32] = {1, 2, 3};
    static uint8_t text[PRT_SCRAM_MESSAGE_MAX * 2];
    struct prt_scram_secret secret;
    struct prt_scram *s;
    struct prt_buf out = {0};

    if (n < 1) {
        return 0;
    }
    verifier(p + 1, n - 1);
    prt_scram_secret_mock(PRT_STR("fuzz"), &secret);
    s = prt_scram_new(&secret, p[0] & 2, binding, p[0] & 1 ? sizeof binding : 0);
    prt_assert(s);
    for (p++, n--; n >= 2;) {
        size_t len = prt_get16(p);
        len = len > n - 2 ? n - 2 : len;
        size_t m = expand(text, sizeof text, p + 2, len, &out);
        uint8_t *exact = malloc(m ? m : 1);
        prt_assert(exact);
        memcpy(exact, text, m);
        prt_buf_free(&out);
        prt_assert(prt_scram_step(s, exact, m, &out) != PRT_SCRAM_DONE);
        free(exact);
        p += 2 + len, n -= 2 + len;
    }
    prt_scram_free(s);
    prt_buf_free(&out);
    return 0;
}
