/* pg_scram_test.c - the server's side of SCRAM against a client of the test's own, which first has
 * to reproduce the example of RFC 7677, and against verifiers that PostgreSQL 15 wrote. */
#include "pg/pg.h"
#include "test.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

/* CREATE ROLE scr PASSWORD 'pencil'; SELECT rolpassword FROM pg_authid */
#define PG_PENCIL                                                                                  \
    "SCRAM-SHA-256$4096:Hdl/egfYQd+GeA1R/Jbc3g==$YKDWe8Thsn9podf1l2W65Zu6olUcX/QUqonv3RXRvIs=:"    \
    "ApBoURQ1PedK2nfFIsit023dg8XnOt20wSasE32bMY4="
/* the same with 'pässwörd' in UTF-8 */
#define PG_UMLAUT                                                                                  \
    "SCRAM-SHA-256$4096:hAvZNPFyF2Y74eDiP3CmsQ==$QelJxyGKJCNXHYlX9gpowEzEl6mMtptYTiHIYSMJmg4=:"    \
    "jXGNj6JrhkjiPGcHJHxFReibMZ7B6t3I99AvuHND5s0="
#define BINDING "0123456789abcdef0123456789abcdef"

/* ---- a client ---- */
struct client {
    const char *password, *gs2, *binding; /* binding: data behind the header in c= */
    const char *bare;                     /* client-first-bare */
    const char *nonce;                    /* in the final message; NULL: the server's */
    char first[512], final[1100], signature[64];
};

static void hmac256(const void *key, int key_n, const char *text, uint8_t out[32])
{
    unsigned n = 32;
    (void)HMAC(EVP_sha256(), key, key_n, (const uint8_t *)text, strlen(text), out, &n);
}

static void client_first(struct client *c)
{
    (void)snprintf(c->first, sizeof c->first, "%s%s", c->gs2, c->bare);
}

/* client-final-message and the signature that the server has to show, from its first message */
static void client_final(struct client *c, const char *server_first)
{
    char nonce[256], salt64[128], c64[256], proof64[64], without[600], message[1800];
    uint8_t salt[96], salted[32], ck[32], sk[32], stored[32], sig[32], cbind[256];
    int iterations = 0;
    size_t n = strlen(c->gs2);

    CHECK_INT(sscanf(server_first, "r=%255[^,],s=%127[^,],i=%d", nonce, salt64, &iterations), 3);
    int salt_n = EVP_DecodeBlock(salt, (uint8_t *)salt64, (int)strlen(salt64));
    for (size_t i = strlen(salt64); i && salt64[i - 1] == '='; i--) {
        salt_n--;
    }
    PKCS5_PBKDF2_HMAC(c->password, (int)strlen(c->password), salt, salt_n, iterations, EVP_sha256(),
                      32, salted);
    hmac256(salted, 32, "Client Key", ck);
    hmac256(salted, 32, "Server Key", sk);
    EVP_Digest(ck, 32, stored, NULL, EVP_sha256(), NULL);
    memcpy(cbind, c->gs2, n);
    memcpy(cbind + n, c->binding, strlen(c->binding));
    EVP_EncodeBlock((uint8_t *)c64, cbind, (int)(n + strlen(c->binding)));
    (void)snprintf(without, sizeof without, "c=%s,r=%s", c64, c->nonce ? c->nonce : nonce);
    (void)snprintf(message, sizeof message, "%s,%s,%s", c->bare, server_first, without);
    hmac256(stored, 32, message, sig);
    for (int i = 0; i < 32; i++) {
        ck[i] ^= sig[i];
    }
    EVP_EncodeBlock((uint8_t *)proof64, ck, 32);
    (void)snprintf(c->final, sizeof c->final, "%s,p=%s", without, proof64);
    hmac256(sk, 32, message, sig);
    EVP_EncodeBlock((uint8_t *)c->signature, sig, 32);
}

/* ---- one exchange ---- */
struct exchange {
    struct prt_scram *s;
    struct prt_buf out;
    char text[2048]; /* the server's last message */
};

static struct exchange begin(const char *verifier, size_t binding_n)
{
    struct prt_scram_secret secret;
    struct exchange e = {0};

    if (verifier) {
        CHECK(prt_scram_secret_parse(prt_str_of(verifier), &secret));
    } else {
        prt_scram_secret_mock(PRT_STR("nobody"), &secret);
    }
    e.s = prt_scram_new(&secret, !verifier, BINDING, binding_n);
    return e;
}

static void end(struct exchange *e)
{
    prt_scram_free(e->s);
    prt_buf_free(&e->out);
}

static enum prt_scram_rc step(struct exchange *e, const void *p, size_t n)
{
    uint8_t *exact = malloc(n ? n : 1); /* so that the sanitizer sees a read past the end */
    enum prt_scram_rc rc;

    if (n) {
        memcpy(exact, p, n);
    }
    prt_buf_free(&e->out);
    rc = prt_scram_step(e->s, exact, n, &e->out);
    free(exact);
    size_t len = prt_buf_len(&e->out);
    CHECK(len < sizeof e->text);
    if (len) {
        memcpy(e->text, prt_buf_data(&e->out), len);
    }
    e->text[len] = '\0';
    return rc;
}

static size_t initial(uint8_t *dst, const char *mechanism, const char *first)
{
    size_t m = strlen(mechanism) + 1, n = strlen(first);

    memcpy(dst, mechanism, m);
    prt_put32(dst + m, (uint32_t)n);
    memcpy(dst + m + 4, first, n);
    return m + 4 + n;
}

static enum prt_scram_rc step_first(struct exchange *e, const char *mechanism, const char *first)
{
    uint8_t b[20000];

    return step(e, b, initial(b, mechanism, first));
}

static struct client client_of(const char *password, const char *gs2, const char *binding)
{
    struct client c = {.password = password,
                       .gs2 = gs2,
                       .binding = binding,
                       .bare = "n=,r=fyko+d2lbbFgONRv9qkxdawL"};

    client_first(&c);
    return c;
}

/* the whole exchange; the answer to the final message */
static enum prt_scram_rc login(const char *verifier, const char *password, const char *mechanism,
                               const char *gs2, const char *binding, size_t server_binding_n)
{
    struct exchange e = begin(verifier, server_binding_n);
    struct client c = client_of(password, gs2, binding);
    enum prt_scram_rc rc = step_first(&e, mechanism, c.first);

    if (rc == PRT_SCRAM_CONTINUE) {
        client_final(&c, e.text);
        rc = step(&e, c.final, strlen(c.final));
        if (rc == PRT_SCRAM_DONE) {
            CHECK(memcmp(e.text, "v=", 2) == 0);
            CHECK_STR(e.text + 2, c.signature);
        } else {
            CHECK_INT(prt_buf_len(&e.out), 0);
        }
    }
    end(&e);
    return rc;
}
#define PLAIN "SCRAM-SHA-256"
#define PLUS "SCRAM-SHA-256-PLUS"
#define GS2_PLUS "p=tls-server-end-point,,"

TEST(client_reproduces_rfc_7677)
{
    struct client c = {
        .password = "pencil", .gs2 = "n,,", .binding = "", .bare = "n=user,r=rOprNGfwEbeRWgbNEkqO"};

    client_final(&c, "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
                     "s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
    CHECK_STR(c.final, "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
                       "p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
    CHECK_STR(c.signature, "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
}

TEST(verifiers_of_postgres_accept_the_password_and_no_other)
{
    CHECK_INT(login(PG_PENCIL, "pencil", PLAIN, "n,,", "", 0), PRT_SCRAM_DONE);
    CHECK_INT(login(PG_PENCIL, "pencil ", PLAIN, "n,,", "", 0), PRT_SCRAM_DENIED);
    CHECK_INT(login(PG_PENCIL, "", PLAIN, "n,,", "", 0), PRT_SCRAM_DENIED);
    CHECK_INT(login(PG_UMLAUT, "p\xc3\xa4sswörd", PLAIN, "n,,", "", 0), PRT_SCRAM_DONE);
    CHECK_INT(login(PG_UMLAUT, "passwort", PLAIN, "n,,", "", 0), PRT_SCRAM_DENIED);
}

TEST(made_secret_accepts_its_password)
{
    struct prt_scram_secret a, b;
    struct client c = client_of("s3cret", "n,,", "");
    struct exchange e = {0};

    CHECK(prt_scram_secret_make(PRT_STR("s3cret"), 4096, &a));
    CHECK(prt_scram_secret_make(PRT_STR("s3cret"), 4096, &b));
    CHECK(memcmp(a.salt, b.salt, 16) != 0);
    CHECK(!prt_scram_secret_make(PRT_STR(""), 4096, &b));
    CHECK(!prt_scram_secret_make(PRT_STR("x"), 0, &b));
    CHECK(!prt_scram_secret_make(PRT_STR("x"), 100001, &b));
    e.s = prt_scram_new(&a, false, NULL, 0);
    CHECK_INT(step_first(&e, PLAIN, c.first), PRT_SCRAM_CONTINUE);
    client_final(&c, e.text);
    CHECK_INT(step(&e, c.final, strlen(c.final)), PRT_SCRAM_DONE);
    CHECK_INT(step(&e, c.final, strlen(c.final)), PRT_SCRAM_BAD); /* never twice */
    end(&e);
}

TEST(an_unknown_user_takes_the_steps_of_a_wrong_password)
{
    struct prt_scram_secret a, b, other;

    CHECK_INT(login(NULL, "pencil", PLAIN, "n,,", "", 0), PRT_SCRAM_DENIED);
    prt_scram_secret_mock(PRT_STR("nobody"), &a);
    prt_scram_secret_mock(PRT_STR("nobody"), &b);
    prt_scram_secret_mock(PRT_STR("nobody2"), &other);
    CHECK(memcmp(&a, &b, sizeof a) == 0);
    CHECK(memcmp(a.salt, other.salt, 16) != 0);
    CHECK_INT(a.iterations, 4096);
    CHECK_INT(a.salt_len, 16); /* as PostgreSQL's own */
    prt_scram_secret_mock((struct prt_str){NULL, 0}, &other);
    CHECK(memcmp(a.stored_key, a.salt, 16) != 0 && memcmp(a.stored_key, a.server_key, 32) != 0);
}

TEST(a_proof_that_fits_a_mock_is_still_refused)
{
    struct prt_scram_secret secret;
    struct exchange e = {0};
    struct client c = client_of("pencil", "n,,", "");

    CHECK(prt_scram_secret_parse(prt_str_of(PG_PENCIL), &secret));
    e.s = prt_scram_new(&secret, true, NULL, 0);
    CHECK_INT(step_first(&e, PLAIN, c.first), PRT_SCRAM_CONTINUE);
    client_final(&c, e.text);
    CHECK_INT(step(&e, c.final, strlen(c.final)), PRT_SCRAM_DENIED);
    end(&e);
}

TEST(channel_binding)
{
    CHECK_INT(login(PG_PENCIL, "pencil", PLUS, GS2_PLUS, BINDING, 32), PRT_SCRAM_DONE);
    CHECK_INT(login(PG_PENCIL, "pencil", PLAIN, "n,,", "", 32), PRT_SCRAM_DONE);
    /* another certificate: somebody in between */
    CHECK_INT(login(PG_PENCIL, "pencil", PLUS, GS2_PLUS, "another certificate.............", 32),
              PRT_SCRAM_BAD);
    CHECK_INT(login(PG_PENCIL, "pencil", PLUS, GS2_PLUS, "", 32), PRT_SCRAM_BAD);
    /* the offer of PLUS was taken out on the way */
    CHECK_INT(login(PG_PENCIL, "pencil", PLAIN, "y,,", "", 32), PRT_SCRAM_BAD);
    CHECK_INT(login(PG_PENCIL, "pencil", PLAIN, "y,,", "", 0), PRT_SCRAM_DONE);
    /* PLUS without TLS, and headers that do not belong to the mechanism */
    CHECK_INT(login(PG_PENCIL, "pencil", PLUS, GS2_PLUS, BINDING, 0), PRT_SCRAM_BAD);
    CHECK_INT(login(PG_PENCIL, "pencil", PLAIN, GS2_PLUS, BINDING, 32), PRT_SCRAM_BAD);
    CHECK_INT(login(PG_PENCIL, "pencil", PLUS, "n,,", "", 32), PRT_SCRAM_BAD);
    CHECK_INT(login(PG_PENCIL, "pencil", PLUS, "y,,", "", 32), PRT_SCRAM_BAD);
    CHECK_INT(login(PG_PENCIL, "pencil", PLUS, "p=tls-unique,,", BINDING, 32), PRT_SCRAM_BAD);
    CHECK_INT(login(PG_PENCIL, "pencil", "SCRAM-SHA-1", "n,,", "", 0), PRT_SCRAM_BAD);
}

TEST(mechanisms_offer_plus_only_with_tls)
{
    struct exchange e = begin(PG_PENCIL, 0), t = begin(PG_PENCIL, 32);

    prt_scram_mechanisms(e.s, &e.out);
    CHECK_INT(prt_buf_len(&e.out), 15);
    CHECK(memcmp(prt_buf_data(&e.out), "SCRAM-SHA-256\0", 15) == 0);
    prt_scram_mechanisms(t.s, &t.out);
    CHECK_INT(prt_buf_len(&t.out), 34);
    CHECK(memcmp(prt_buf_data(&t.out), "SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0", 34) == 0);
    end(&e);
    end(&t);
}

TEST(first_messages)
{
    static const struct {
        const char *first;
        bool ok;
    } cases[] = {
        {"n,,n=,r=abc", true},
        {"n,,n=bob,r=abc", true}, /* the name is ignored */
        {"n,,n=bob,r=abc,x=y,z=", true},
        {"n,,n=,r=abc,", false},
        {"n,,n=,r=abc,xy", false},
        {"n,,n=,r=abc,1=y", false},
        {"n,,n=,r=", false},
        {"n,,n=,r=a b", false},
        {"n,,n=,r=a\x7f", false},
        {"n,,n=,r=\xc3\xa4", false},
        {"n,,n=,x=abc", false},
        {"n,,n=", false},
        {"n,,r=abc", false},
        {"n,,m=ext,n=,r=abc", false},  /* a mandatory extension */
        {"n,a=admin,n=,r=abc", false}, /* authorization identity */
        {"n,x,n=,r=abc", false},
        {"x,,n=,r=abc", false},
        {"n,", false},
        {"n", false},
        {"", false},
        {",,n=,r=abc", false},
        {"nn,,n=,r=abc", false},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct exchange e = begin(PG_PENCIL, 0);
        enum prt_scram_rc rc = step_first(&e, PLAIN, cases[i].first);
        if ((rc == PRT_SCRAM_CONTINUE) != cases[i].ok) {
            printf("  case %zu: %s\n", i, cases[i].first);
            CHECK(false);
        }
        CHECK(cases[i].ok || step_first(&e, PLAIN, "n,,n=,r=abc") == PRT_SCRAM_BAD);
        end(&e);
    }
}

TEST(the_challenge_repeats_the_nonce_and_adds_to_it)
{
    struct exchange a = begin(PG_PENCIL, 0), b = begin(PG_PENCIL, 0);

    CHECK_INT(step_first(&a, PLAIN, "n,,n=,r=abc"), PRT_SCRAM_CONTINUE);
    CHECK_INT(step_first(&b, PLAIN, "n,,n=,r=abc"), PRT_SCRAM_CONTINUE);
    CHECK(memcmp(a.text, "r=abc", 5) == 0);
    CHECK(memcmp(a.text, b.text, 29) != 0);
    CHECK_STR(a.text + 29, ",s=Hdl/egfYQd+GeA1R/Jbc3g==,i=4096");
    end(&a);
    end(&b);
}

TEST(the_first_message_may_come_by_itself)
{
    struct exchange e = begin(PG_PENCIL, 0);
    struct client c = client_of("pencil", "n,,", "");

    CHECK_INT(step(&e, "SCRAM-SHA-256\0\xff\xff\xff\xff", 18), PRT_SCRAM_CONTINUE);
    CHECK_INT(prt_buf_len(&e.out), 0);
    CHECK_INT(step(&e, c.first, strlen(c.first)), PRT_SCRAM_CONTINUE);
    client_final(&c, e.text);
    CHECK_INT(step(&e, c.final, strlen(c.final)), PRT_SCRAM_DONE);
    end(&e);
}

TEST(initial_response_lengths)
{
    static const uint32_t wrong[] = {0,          1,          10,         12,        255,
                                     0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff};
    uint8_t b[64];

    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct exchange e = begin(PG_PENCIL, 0);
        size_t n = initial(b, PLAIN, "n,,n=,r=abc");
        prt_put32(b + 14, wrong[i]);
        CHECK_INT(step(&e, b, n), PRT_SCRAM_BAD);
        end(&e);
    }
}

TEST(cut_anywhere_is_malformed)
{
    uint8_t b[256];
    size_t n = initial(b, PLAIN, "n,,n=,r=abc");

    for (size_t cut = 0; cut < n; cut++) {
        struct exchange e = begin(PG_PENCIL, 0);
        CHECK_INT(step(&e, b, cut), PRT_SCRAM_BAD);
        end(&e);
    }
    struct client c = client_of("pencil", "n,,", "");
    struct exchange e = begin(PG_PENCIL, 0);
    CHECK_INT(step_first(&e, PLAIN, c.first), PRT_SCRAM_CONTINUE);
    client_final(&c, e.text);
    size_t final_n = strlen(c.final);
    end(&e);
    for (size_t cut = 0; cut < final_n; cut++) {
        e = begin(PG_PENCIL, 0);
        CHECK_INT(step_first(&e, PLAIN, c.first), PRT_SCRAM_CONTINUE);
        client_final(&c, e.text);
        CHECK_INT(step(&e, c.final, cut), PRT_SCRAM_BAD);
        end(&e);
    }
}

/* Every byte of both messages replaced: never proven, and never anything but one of the two
 * refusals. */
TEST(a_changed_byte_never_logs_in)
{
    static const uint8_t put[] = {0, ',', '=', 'A', 0xff};
    struct client c = client_of("pencil", "n,,", "");
    size_t final_n = 0;

    for (size_t at = 0; at == 0 || at < final_n; at++) {
        for (size_t k = 0; k < sizeof put; k++) {
            struct exchange e = begin(PG_PENCIL, 0);
            CHECK_INT(step_first(&e, PLAIN, c.first), PRT_SCRAM_CONTINUE);
            client_final(&c, e.text);
            final_n = strlen(c.final);
            if ((uint8_t)c.final[at] != put[k]) {
                c.final[at] = (char)put[k];
                enum prt_scram_rc rc = step(&e, c.final, final_n);
                CHECK(rc == PRT_SCRAM_BAD || rc == PRT_SCRAM_DENIED);
            }
            end(&e);
        }
    }
}

/* a recorded proof, or one over a nonce that the client chose alone, is right in itself */
TEST(a_proof_over_another_nonce_is_refused)
{
    static const char *const nonces[] = {"fyko+d2lbbFgONRv9qkxdawL", "x",
                                         "fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7jaaaaaa"};

    for (size_t i = 0; i < 5; i++) {
        struct exchange e = begin(PG_PENCIL, 0);
        struct client c = client_of("pencil", "n,,", "");
        char near[128];
        CHECK_INT(step_first(&e, PLAIN, c.first), PRT_SCRAM_CONTINUE);
        /* the right one with a byte more, or less */
        int n = (int)strcspn(e.text + 2, ",");
        (void)snprintf(near, sizeof near, "%.*s%s", i == 3 ? n : n - 1, e.text + 2,
                       i == 3 ? "x" : "");
        c.nonce = i < 3 ? nonces[i] : near;
        client_final(&c, e.text);
        CHECK_INT(step(&e, c.final, strlen(c.final)), PRT_SCRAM_BAD);
        end(&e);
    }
}

TEST(final_messages_out_of_shape)
{
    static const char *const tail[] = {
        ",x", ",x=y", ",p=", "=", " ", ",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="};
    struct client c = client_of("pencil", "n,,", "");

    for (size_t i = 0; i < sizeof tail / sizeof tail[0]; i++) {
        struct exchange e = begin(PG_PENCIL, 0);
        char text[1300];
        CHECK_INT(step_first(&e, PLAIN, c.first), PRT_SCRAM_CONTINUE);
        client_final(&c, e.text);
        (void)snprintf(text, sizeof text, "%s%s", c.final, tail[i]);
        CHECK_INT(step(&e, text, strlen(text)), PRT_SCRAM_BAD);
        end(&e);
    }
}

TEST(oversized_messages_are_refused_before_they_are_read)
{
    char *big = malloc(PRT_SCRAM_MESSAGE_MAX + 2);
    struct exchange e = begin(PG_PENCIL, 0);
    uint8_t head[] = "SCRAM-SHA-256\0\xff\xff\xff\xff";

    memset(big, 'a', PRT_SCRAM_MESSAGE_MAX + 2);
    CHECK_INT(step(&e, head, 18), PRT_SCRAM_CONTINUE);
    memcpy(big, "n,,n=,r=", 8);
    CHECK_INT(prt_scram_step(e.s, (uint8_t *)big, PRT_SCRAM_MESSAGE_MAX + 1, &e.out),
              PRT_SCRAM_BAD);
    end(&e);
    e = begin(PG_PENCIL, 0); /* the longest one that is read: a nonce of 16 kB comes back whole */
    CHECK_INT(step(&e, head, 18), PRT_SCRAM_CONTINUE);
    CHECK_INT(prt_scram_step(e.s, (uint8_t *)big, PRT_SCRAM_MESSAGE_MAX, &e.out),
              PRT_SCRAM_CONTINUE);
    CHECK(prt_buf_len(&e.out) > PRT_SCRAM_MESSAGE_MAX - 8);
    end(&e);
    free(big);
}

TEST(verifier_texts)
{
    static const char *const bad[] = {
        "",
        "pencil",
        "SCRAM-SHA-256",
        "SCRAM-SHA-256$",
        "SCRAM-SHA-256$4096",
        "SCRAM-SHA-256$4096:",
        "SCRAM-SHA-256$4096:Hdl/egfYQd+GeA1R/Jbc3g==$",
        "SCRAM-SHA-256$4096:Hdl/egfYQd+GeA1R/Jbc3g==$YKDWe8Thsn9podf1l2W65Zu6olUcX/QUqonv3RXRvIs=:",
        "SCRAM-SHA-1$4096:QQ==$YKDWe8Thsn9podf1l2W65Zu6olUcX/"
        "QUqonv3RXRvIs=:YKDWe8Thsn9podf1l2W65Zu6olUcX/QUqonv3RXRvIs=",
        "SCRAM-SHA-256$0:QQ==$YKDWe8Thsn9podf1l2W65Zu6olUcX/"
        "QUqonv3RXRvIs=:YKDWe8Thsn9podf1l2W65Zu6olUcX/QUqonv3RXRvIs=",
        "SCRAM-SHA-256$100001:QQ==$YKDWe8Thsn9podf1l2W65Zu6olUcX/"
        "QUqonv3RXRvIs=:YKDWe8Thsn9podf1l2W65Zu6olUcX/QUqonv3RXRvIs=",
        "SCRAM-SHA-256$4294967297:QQ==$YKDWe8Thsn9podf1l2W65Zu6olUcX/"
        "QUqonv3RXRvIs=:YKDWe8Thsn9podf1l2W65Zu6olUcX/QUqonv3RXRvIs=",
        "SCRAM-SHA-256$-1:QQ==$YKDWe8Thsn9podf1l2W65Zu6olUcX/"
        "QUqonv3RXRvIs=:YKDWe8Thsn9podf1l2W65Zu6olUcX/QUqonv3RXRvIs=",
        "SCRAM-SHA-256$4096:$YKDWe8Thsn9podf1l2W65Zu6olUcX/"
        "QUqonv3RXRvIs=:YKDWe8Thsn9podf1l2W65Zu6olUcX/QUqonv3RXRvIs=",
        "SCRAM-SHA-256$4096: "
        "QQ==$YKDWe8Thsn9podf1l2W65Zu6olUcX/QUqonv3RXRvIs=:YKDWe8Thsn9podf1l2W65Zu6olUcX/"
        "QUqonv3RXRvIs=",
        "SCRAM-SHA-256$4096:Q===$YKDWe8Thsn9podf1l2W65Zu6olUcX/"
        "QUqonv3RXRvIs=:YKDWe8Thsn9podf1l2W65Zu6olUcX/QUqonv3RXRvIs=",
        "SCRAM-SHA-256$4096:QQ==$YKDWe8Thsn9podf1l2W65Zu6olUcX/"
        "QUqonv3RXRvI==:YKDWe8Thsn9podf1l2W65Zu6olUcX/QUqonv3RXRvIs=",
        PG_PENCIL "x",
        PG_PENCIL " ",
    };
    struct prt_scram_secret s;

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (prt_scram_secret_parse(prt_str_of(bad[i]), &s)) {
            printf("  accepted: %s\n", bad[i]);
            CHECK(false);
        }
    }
    /* cut at every byte, and with a salt longer than there is room for */
    for (size_t n = 0; n < strlen(PG_PENCIL); n++) {
        CHECK(!prt_scram_secret_parse((struct prt_str){PG_PENCIL, n}, &s));
    }
    CHECK(!prt_scram_secret_parse(
        prt_str_of("SCRAM-SHA-256$4096:"
                   "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
                   "AAAAAAAAAAAAAAAAAAAA$YKDWe8Thsn9podf1l2W65Zu6olUcX/QUqonv3RXRvIs=:"
                   "ApBoURQ1PedK2nfFIsit023dg8XnOt20wSasE32bMY4="),
        &s));
    CHECK(prt_scram_secret_parse(prt_str_of(PG_PENCIL), &s));
    CHECK_INT(s.iterations, 4096);
    CHECK_INT(s.salt_len, 16);
}

TEST(no_memory_is_not_a_login)
{
    CHECK_INT(setenv("POOLRT_FAULT", "buf_nomem", 1), 0);
    CHECK_INT(login(PG_PENCIL, "pencil", PLAIN, "n,,", "", 0), PRT_SCRAM_BAD);
    CHECK_INT(setenv("POOLRT_FAULT", "scram_nomem", 1), 0);
    struct prt_scram_secret s;
    prt_scram_secret_mock(PRT_STR("x"), &s);
    CHECK(prt_scram_new(&s, true, NULL, 0) == NULL);
    CHECK_INT(unsetenv("POOLRT_FAULT"), 0);
}
