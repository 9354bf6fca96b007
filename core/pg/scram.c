/* scram.c - the server's side of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677).
 * Owns: the state of one exchange, for two messages.   Threads: any; an exchange has one user.
 * Idea: read the client's bytes once, left to right, with a cursor that cannot pass their end; what
 * the proof covers is collected in one buffer, client-first-bare "," server-first "," client-final
 * without its proof, and nothing else is kept. The user's name inside the message is skipped: libpq
 * leaves it empty and PostgreSQL takes the one of the startup packet.
 *
 * A secret that belongs to nobody (mock) walks the same way to the same refusal, so neither the
 * number of round trips nor the messages tell which names exist. */
#include "pg/pg.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NONCE_RAW 18 /* random bytes of our half of the nonce, as PostgreSQL has it */
#define SALT_RAW 16
#define ITERATIONS_MAX 100000
#define BINDING_MAX 64 /* longest digest of a certificate */
#define B64_LEN(raw) (((raw) + 2) / 3 * 4)
#define KEY_B64 B64_LEN(PRT_SCRAM_KEY)

static const char MECHANISM[] = "SCRAM-SHA-256";
static const char MECHANISM_PLUS[] = "SCRAM-SHA-256-PLUS";
static const char GS2_PLUS[] = "p=tls-server-end-point,,";

/*  AWAIT_MECHANISM --(no initial response)--> AWAIT_FIRST
 *        |                                        |
 *        +------(client-first-message)------------+--> AWAIT_FINAL --> OVER
 *  Anything malformed leads to OVER at once. */
enum scram_state {
    AWAIT_MECHANISM, /* SASLInitialResponse is next */
    AWAIT_FIRST,     /* it came without the first message: that is next, by itself */
    AWAIT_FINAL,     /* the challenge is out; `proven` holds both first messages */
    OVER,            /* decided: every further message is malformed */
};

struct prt_scram {
    /* set at creation */
    struct prt_scram_secret secret;
    bool is_mock;
    uint8_t binding[BINDING_MAX];
    size_t binding_n; /* 0: no TLS, PLUS is not offered */
    /* the exchange */
    enum scram_state state;
    bool is_plus;          /* the client chose PLUS */
    char gs2;              /* 'n', 'y' or 'p': how its first message began */
    struct prt_buf proven; /* what the proof covers, so far */
    size_t nonce_at;       /* the whole nonce inside `proven` */
    size_t nonce_n;
};

/* ---- bytes in, left to right ---- */
struct cursor {
    const uint8_t *p;
    size_t left;
};

static bool take_byte(struct cursor *c, char want)
{
    if (c->left == 0 || c->p[0] != (uint8_t)want) {
        return false;
    }
    c->p++, c->left--;
    return true;
}

static bool take_text(struct cursor *c, const char *want)
{
    size_t n = strlen(want);

    if (n > c->left || memcmp(c->p, want, n) != 0) {
        return false;
    }
    c->p += n, c->left -= n;
    return true;
}

/* Up to the next comma or the end; the comma stays. */
static struct prt_str take_value(struct cursor *c)
{
    const uint8_t *comma = c->left ? memchr(c->p, ',', c->left) : NULL;
    size_t n = comma ? (size_t)(comma - c->p) : c->left;
    struct prt_str v = {(const char *)c->p, n};

    c->p += n, c->left -= n;
    return v;
}

/* "x=value" with the letter given, or any letter when it is 0. */
static bool take_attribute(struct cursor *c, char letter, char *got, struct prt_str *value)
{
    uint8_t a;

    if (c->left < 2 || c->p[1] != '=') {
        return false;
    }
    a = c->p[0];
    if (letter ? a != (uint8_t)letter : !((a >= 'A' && a <= 'Z') || (a >= 'a' && a <= 'z'))) {
        return false;
    }
    c->p += 2, c->left -= 2;
    *value = take_value(c);
    if (got) {
        *got = (char)a;
    }
    return true;
}

/* RFC 5802: printable ASCII without the comma, which take_value has stopped at */
static bool is_nonce(struct prt_str s)
{
    for (size_t i = 0; i < s.n; i++) {
        if (s.p[i] < 0x21 || s.p[i] > 0x7e) {
            return false;
        }
    }
    return s.n > 0;
}

/* ---- base64 ----
 * OpenSSL's decoder skips blanks and counts padding as zero bytes, so what goes in is checked
 * first and the length is worked out here. */
static bool is_b64(char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '+' ||
           c == '/';
}

static bool b64_decode(struct prt_str in, uint8_t *out, size_t cap, size_t *n)
{
    uint8_t raw[96];
    size_t pad = 0;

    if (in.n == 0 || in.n % 4 != 0 || in.n / 4 * 3 > sizeof raw) {
        return false;
    }
    while (pad < 2 && in.p[in.n - 1 - pad] == '=') {
        pad++;
    }
    for (size_t i = 0; i < in.n - pad; i++) {
        if (!is_b64(in.p[i])) {
            return false;
        }
    }
    *n = in.n / 4 * 3 - pad;
    if (*n > cap || EVP_DecodeBlock(raw, (const uint8_t *)in.p, (int)in.n) < 0) {
        return false;
    }
    memcpy(out, raw, *n);
    prt_secret_wipe(raw, sizeof raw);
    return true;
}

static bool b64_key(struct prt_str in, uint8_t out[PRT_SCRAM_KEY])
{
    size_t n;

    return in.n == KEY_B64 && b64_decode(in, out, PRT_SCRAM_KEY, &n) && n == PRT_SCRAM_KEY;
}

/* dst: B64_LEN(n) + 1 bytes; returns the length without the NUL */
static size_t b64_encode(char *dst, const void *src, size_t n)
{
    return (size_t)EVP_EncodeBlock((uint8_t *)dst, src, (int)n);
}

/* ---- keys ---- */
static bool hmac(const uint8_t *key, size_t key_n, const void *p, size_t n,
                 uint8_t out[PRT_SCRAM_KEY])
{
    unsigned len = 0;

    return HMAC(EVP_sha256(), key, (int)key_n, p, n, out, &len) && len == PRT_SCRAM_KEY;
}

static bool sha256(const void *p, size_t n, uint8_t out[PRT_SCRAM_KEY])
{
    return EVP_Digest(p, n, out, NULL, EVP_sha256(), NULL) == 1;
}

bool prt_scram_secret_make(struct prt_str password, uint32_t iterations,
                           struct prt_scram_secret *out)
{
    uint8_t salted[PRT_SCRAM_KEY], client_key[PRT_SCRAM_KEY];
    bool ok;

    *out = (struct prt_scram_secret){.iterations = iterations, .salt_len = SALT_RAW};
    if (password.n == 0 || password.n > PRT_SCRAM_MESSAGE_MAX || iterations == 0 ||
        iterations > ITERATIONS_MAX) {
        return false;
    }
    prt_random(out->salt, SALT_RAW);
    ok = PKCS5_PBKDF2_HMAC(password.p, (int)password.n, out->salt, SALT_RAW, (int)iterations,
                           EVP_sha256(), sizeof salted, salted) == 1 &&
         hmac(salted, sizeof salted, "Client Key", 10, client_key) &&
         sha256(client_key, sizeof client_key, out->stored_key) &&
         hmac(salted, sizeof salted, "Server Key", 10, out->server_key);
    prt_secret_wipe(salted, sizeof salted);
    prt_secret_wipe(client_key, sizeof client_key);
    return ok;
}

static bool take_number(struct cursor *c, uint32_t max, uint32_t *out)
{
    uint32_t v = 0;
    size_t digits = 0;

    for (; c->left && c->p[0] >= '0' && c->p[0] <= '9'; c->p++, c->left--, digits++) {
        v = v * 10 + (uint32_t)(c->p[0] - '0');
        if (v > max) {
            return false;
        }
    }
    *out = v;
    return digits > 0 && v > 0;
}

static struct prt_str take_until(struct cursor *c, char end)
{
    const uint8_t *at = c->left ? memchr(c->p, end, c->left) : NULL;
    size_t n = at ? (size_t)(at - c->p) : c->left;
    struct prt_str v = {(const char *)c->p, n};

    c->p += n, c->left -= n;
    return v;
}

bool prt_scram_secret_parse(struct prt_str text, struct prt_scram_secret *out)
{
    struct cursor c = {(const uint8_t *)text.p, text.n};
    size_t salt_n = 0;

    *out = (struct prt_scram_secret){0};
    if (!take_text(&c, MECHANISM) || !take_byte(&c, '$') ||
        !take_number(&c, ITERATIONS_MAX, &out->iterations) || !take_byte(&c, ':') ||
        !b64_decode(take_until(&c, '$'), out->salt, sizeof out->salt, &salt_n) || salt_n == 0) {
        return false;
    }
    out->salt_len = (uint8_t)salt_n;
    return take_byte(&c, '$') && b64_key(take_until(&c, ':'), out->stored_key) &&
           take_byte(&c, ':') && b64_key(take_until(&c, '\0'), out->server_key) && c.left == 0;
}

static pthread_once_t mock_once = PTHREAD_ONCE_INIT;
static uint8_t mock_key[PRT_SCRAM_KEY];

static void make_mock_key(void)
{
    prt_random(mock_key, sizeof mock_key);
}

/* HMAC(process secret, purpose NUL name): names of any length, and no purpose tells of another. */
static void mock_bytes(char purpose, struct prt_str user, uint8_t out[PRT_SCRAM_KEY])
{
    uint8_t inner[PRT_SCRAM_KEY + 1];
    bool ok = hmac(mock_key, sizeof mock_key, user.p ? user.p : "", user.n, inner);

    inner[PRT_SCRAM_KEY] = (uint8_t)purpose;
    ok = ok && hmac(mock_key, sizeof mock_key, inner, sizeof inner, out);
    prt_assert(ok); /* a constant secret would tell unknown names from known ones */
}

void prt_scram_secret_mock(struct prt_str user, struct prt_scram_secret *out)
{
    uint8_t salt[PRT_SCRAM_KEY];

    (void)pthread_once(&mock_once, make_mock_key);
    *out = (struct prt_scram_secret){.iterations = PRT_SCRAM_ITERATIONS, .salt_len = SALT_RAW};
    mock_bytes('s', user, salt);
    memcpy(out->salt, salt, SALT_RAW);
    mock_bytes('k', user, out->stored_key);
    mock_bytes('v', user, out->server_key);
}

/* ---- the exchange ---- */
struct prt_scram *prt_scram_new(const struct prt_scram_secret *secret, bool is_mock,
                                const void *binding, size_t binding_n)
{
    struct prt_scram *s = PRT_FAULT("scram_nomem") ? NULL : calloc(1, sizeof *s);

    if (!s) {
        return NULL;
    }
    prt_assert(binding_n <= sizeof s->binding);
    s->secret = *secret;
    s->is_mock = is_mock;
    if (binding_n) {
        memcpy(s->binding, binding, binding_n);
    }
    s->binding_n = binding_n;
    return s;
}

void prt_scram_free(struct prt_scram *s)
{
    if (!s) {
        return;
    }
    prt_buf_free(&s->proven);
    prt_secret_wipe(s, sizeof *s);
    free(s);
}

void prt_scram_mechanisms(const struct prt_scram *s, struct prt_buf *out)
{
    if (s->binding_n) {
        (void)prt_buf_add(out, MECHANISM_PLUS, sizeof MECHANISM_PLUS);
    }
    (void)prt_buf_add(out, MECHANISM, sizeof MECHANISM);
    (void)prt_buf_add(out, "", 1);
}

/* The gs2 header: channel binding and an empty authorization identity. 'y' says "I could bind but
 * you did not offer it"; when we did, somebody in between took the offer out. */
static bool read_gs2(struct prt_scram *s, struct cursor *c)
{
    if (s->is_plus) {
        s->gs2 = 'p';
        return take_text(c, GS2_PLUS);
    }
    if (take_text(c, "n,,")) {
        s->gs2 = 'n';
        return true;
    }
    s->gs2 = 'y';
    return s->binding_n == 0 && take_text(c, "y,,");
}

static bool skip_extensions(struct cursor *c)
{
    struct prt_str ignored;

    while (c->left) {
        if (!take_byte(c, ',') || !take_attribute(c, 0, NULL, &ignored)) {
            return false;
        }
    }
    return true;
}

static bool add_challenge(struct prt_scram *s, struct prt_str client_nonce)
{
    uint8_t raw[NONCE_RAW];
    char ours[B64_LEN(NONCE_RAW) + 1], salt[B64_LEN(sizeof s->secret.salt) + 1], tail[128];
    struct prt_buf *b = &s->proven;
    int n;

    prt_random(raw, sizeof raw);
    (void)b64_encode(ours, raw, sizeof raw);
    (void)b64_encode(salt, s->secret.salt, s->secret.salt_len);
    n = snprintf(tail, sizeof tail, "%s,s=%s,i=%u", ours, salt, s->secret.iterations);
    prt_assert(n > 0 && (size_t)n < sizeof tail);
    (void)prt_buf_add(b, ",r=", 3);
    s->nonce_at = prt_buf_len(b);
    s->nonce_n = client_nonce.n + B64_LEN(NONCE_RAW);
    (void)prt_buf_add(b, client_nonce.p, client_nonce.n);
    return prt_buf_add(b, tail, (size_t)n);
}

static enum prt_scram_rc on_first(struct prt_scram *s, const uint8_t *p, size_t n,
                                  struct prt_buf *out)
{
    struct cursor c = {p, n};
    struct prt_str ignored_name, nonce;
    const uint8_t *bare;
    size_t bare_n;

    if (!read_gs2(s, &c)) {
        return PRT_SCRAM_BAD;
    }
    bare = c.p, bare_n = c.left;
    if (memchr(bare, '\0', bare_n) || !take_attribute(&c, 'n', NULL, &ignored_name) ||
        !take_byte(&c, ',') || !take_attribute(&c, 'r', NULL, &nonce) || !is_nonce(nonce) ||
        !skip_extensions(&c)) {
        return PRT_SCRAM_BAD;
    }
    if (!prt_buf_add(&s->proven, bare, bare_n) || !add_challenge(s, nonce)) {
        return PRT_SCRAM_BAD;
    }
    /* without the comma that joins it to the client's part */
    if (!prt_buf_add(out, prt_buf_data(&s->proven) + bare_n + 1,
                     prt_buf_len(&s->proven) - bare_n - 1)) {
        return PRT_SCRAM_BAD;
    }
    s->state = AWAIT_FINAL;
    return PRT_SCRAM_CONTINUE;
}

/* SASLInitialResponse: mechanism NUL, length of what follows or -1, client-first-message */
static enum prt_scram_rc on_mechanism(struct prt_scram *s, const uint8_t *p, size_t n,
                                      struct prt_buf *out)
{
    const uint8_t *end = n ? memchr(p, '\0', n) : NULL;
    struct cursor c = {p, n};
    struct prt_str name;
    uint32_t len;

    if (!end) {
        return PRT_SCRAM_BAD;
    }
    name = (struct prt_str){(const char *)p, (size_t)(end - p)};
    s->is_plus = prt_str_eqz(name, MECHANISM_PLUS);
    if ((s->is_plus && s->binding_n == 0) || (!s->is_plus && !prt_str_eqz(name, MECHANISM))) {
        return PRT_SCRAM_BAD;
    }
    c.p += name.n + 1, c.left -= name.n + 1;
    if (c.left < 4) {
        return PRT_SCRAM_BAD;
    }
    len = prt_get32(c.p);
    c.p += 4, c.left -= 4;
    if (len == UINT32_MAX && c.left == 0) {
        s->state = AWAIT_FIRST; /* the answer is an empty challenge */
        return PRT_SCRAM_CONTINUE;
    }
    return len == c.left ? on_first(s, c.p, c.left, out) : PRT_SCRAM_BAD;
}

/* c= must be, byte for byte, base64 of the gs2 header and, with PLUS, our certificate's digest. */
static bool binding_matches(const struct prt_scram *s, struct prt_str c)
{
    uint8_t raw[sizeof GS2_PLUS + BINDING_MAX];
    char want[B64_LEN(sizeof raw) + 1];
    struct prt_str header = prt_str_of(s->gs2 == 'p' ? GS2_PLUS : s->gs2 == 'y' ? "y,," : "n,,");
    size_t n = header.n, want_n;

    memcpy(raw, header.p, n);
    if (s->gs2 == 'p') {
        memcpy(raw + n, s->binding, s->binding_n);
        n += s->binding_n;
    }
    want_n = b64_encode(want, raw, n);
    return c.n == want_n && prt_secret_eq(c.p, want, want_n);
}

/* Everything in front of ",p=proof"; the proof must be the last attribute. */
static bool read_final(struct prt_scram *s, struct cursor *c, struct prt_str *without_proof,
                       uint8_t proof[PRT_SCRAM_KEY])
{
    const uint8_t *begin = c->p;
    struct prt_str value;
    char letter = 0;

    if (!take_attribute(c, 'c', NULL, &value) || !binding_matches(s, value) || !take_byte(c, ',') ||
        !take_attribute(c, 'r', NULL, &value) || value.n != s->nonce_n ||
        !prt_secret_eq(value.p, prt_buf_data(&s->proven) + s->nonce_at, s->nonce_n)) {
        return false;
    }
    while (letter != 'p') {
        *without_proof = (struct prt_str){(const char *)begin, (size_t)(c->p - begin)};
        if (!take_byte(c, ',') || !take_attribute(c, 0, &letter, &value)) {
            return false;
        }
    }
    return c->left == 0 && b64_key(value, proof);
}

/* ClientKey = proof XOR HMAC(StoredKey, AuthMessage), and its hash must be StoredKey. */
static bool is_proven(const struct prt_scram *s, const uint8_t proof[PRT_SCRAM_KEY])
{
    uint8_t key[PRT_SCRAM_KEY], hash[PRT_SCRAM_KEY];
    bool ok = hmac(s->secret.stored_key, PRT_SCRAM_KEY, prt_buf_data(&s->proven),
                   prt_buf_len(&s->proven), key);

    for (size_t i = 0; i < sizeof key; i++) {
        key[i] ^= proof[i];
    }
    ok = ok && sha256(key, sizeof key, hash);
    ok = ok && prt_secret_eq(hash, s->secret.stored_key, sizeof hash);
    prt_secret_wipe(key, sizeof key);
    return ok && !s->is_mock;
}

static enum prt_scram_rc on_final(struct prt_scram *s, const uint8_t *p, size_t n,
                                  struct prt_buf *out)
{
    struct cursor c = {p, n};
    struct prt_str without_proof = {NULL, 0};
    uint8_t proof[PRT_SCRAM_KEY], signature[PRT_SCRAM_KEY];
    char text[2 + KEY_B64 + 1] = "v=";

    if (memchr(p, '\0', n) || !read_final(s, &c, &without_proof, proof) ||
        !prt_buf_add(&s->proven, ",", 1) ||
        !prt_buf_add(&s->proven, without_proof.p, without_proof.n)) {
        return PRT_SCRAM_BAD;
    }
    if (!is_proven(s, proof)) {
        return PRT_SCRAM_DENIED;
    }
    if (!hmac(s->secret.server_key, PRT_SCRAM_KEY, prt_buf_data(&s->proven),
              prt_buf_len(&s->proven), signature)) {
        return PRT_SCRAM_BAD;
    }
    (void)b64_encode(text + 2, signature, sizeof signature);
    return prt_buf_add(out, text, sizeof text - 1) ? PRT_SCRAM_DONE : PRT_SCRAM_BAD;
}

enum prt_scram_rc prt_scram_step(struct prt_scram *s, const uint8_t *p, size_t n,
                                 struct prt_buf *out)
{
    enum prt_scram_rc rc = PRT_SCRAM_BAD;

    if (n <= PRT_SCRAM_MESSAGE_MAX && n > 0) {
        switch (s->state) {
        case AWAIT_MECHANISM:
            rc = on_mechanism(s, p, n, out);
            break;
        case AWAIT_FIRST:
            rc = on_first(s, p, n, out);
            break;
        case AWAIT_FINAL:
            rc = on_final(s, p, n, out);
            break;
        case OVER:
            break;
        }
    }
    if (rc != PRT_SCRAM_CONTINUE) {
        s->state = OVER;
    }
    return rc;
}
