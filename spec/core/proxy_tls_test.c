/* proxy_tls_test.c - the accepting side of TLS over a socket pair, against OpenSSL's own client:
 * modes, both directions in pieces, ends of all kinds, and what is said about wrong files. */
#include "proxy/tls.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

static char dir[64];
static char cert[96], key[96], other_key[96], sealed_key[96], sha512_cert[96], ed_cert[96],
    ed_key[96];

/* ---- files ---- */
static void write_key(const char *path, EVP_PKEY *pkey, const char *passphrase)
{
    FILE *f = fopen(path, "w");

    CHECK(f && PEM_write_PrivateKey(f, pkey, passphrase ? EVP_aes_128_cbc() : NULL,
                                    (const unsigned char *)passphrase,
                                    passphrase ? (int)strlen(passphrase) : 0, NULL, NULL));
    CHECK(f && fclose(f) == 0);
}

static void write_cert(const char *path, EVP_PKEY *pkey, const EVP_MD *md)
{
    X509 *x = X509_new();
    FILE *f = fopen(path, "w");
    X509_NAME *name = X509_get_subject_name(x);

    CHECK(X509_set_version(x, 2) && ASN1_INTEGER_set(X509_get_serialNumber(x), 1));
    CHECK(X509_gmtime_adj(X509_getm_notBefore(x), -60) &&
          X509_gmtime_adj(X509_getm_notAfter(x), 86400));
    CHECK(X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"localhost",
                                     -1, -1, 0));
    CHECK(X509_set_issuer_name(x, name) && X509_set_pubkey(x, pkey) && X509_sign(x, pkey, md));
    CHECK(f && PEM_write_X509(f, x) && fclose(f) == 0);
    X509_free(x);
}

static int rm_one(const char *path, const struct stat *st, int type, struct FTW *f)
{
    (void)st, (void)type, (void)f;
    return remove(path);
}

static void clean_up(void)
{
    (void)nftw(dir, rm_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void set_up(void)
{
    if (dir[0]) {
        return;
    }
    (void)signal(SIGPIPE, SIG_IGN); /* as the daemon does */
    (void)snprintf(dir, sizeof dir, "/tmp/prt-tls.XXXXXX");
    CHECK(mkdtemp(dir));
    (void)atexit(clean_up);
    (void)snprintf(cert, sizeof cert, "%s/a.crt", dir);
    (void)snprintf(key, sizeof key, "%s/a.key", dir);
    (void)snprintf(other_key, sizeof other_key, "%s/b.key", dir);
    (void)snprintf(sealed_key, sizeof sealed_key, "%s/c.key", dir);
    (void)snprintf(sha512_cert, sizeof sha512_cert, "%s/d.crt", dir);
    (void)snprintf(ed_cert, sizeof ed_cert, "%s/e.crt", dir);
    (void)snprintf(ed_key, sizeof ed_key, "%s/e.key", dir);
    EVP_PKEY *a = EVP_EC_gen("P-256"), *b = EVP_EC_gen("P-256");
    EVP_PKEY *e = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    write_cert(cert, a, EVP_sha256());
    write_cert(sha512_cert, a, EVP_sha512());
    write_cert(ed_cert, e, NULL);
    write_key(key, a, NULL);
    write_key(other_key, b, NULL);
    write_key(sealed_key, a, "s3cret");
    write_key(ed_key, e, NULL);
    EVP_PKEY_free(a);
    EVP_PKEY_free(b);
    EVP_PKEY_free(e);
}

static SSL_CTX *server_ctx(const char *c, const char *k)
{
    SSL_CTX *ctx = NULL;
    struct prt_err err = {0};

    set_up();
    CHECK_INT(prt_tls_server_ctx(&ctx, c, k, &err), POOLRT_OK);
    CHECK_STR(err.text, "");
    return ctx;
}

/* ---- two ends ---- */
struct pair {
    int server_fd, client_fd;
    SSL_CTX *server_ctx, *client_ctx;
    SSL *server, *client;
};

static struct pair connect_pair(int max_version)
{
    struct pair p = {0};
    int fds[2], small = 8192;

    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    CHECK_INT(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
    p.server_fd = fds[0], p.client_fd = fds[1];
    p.server_ctx = server_ctx(cert, key);
    p.client_ctx = SSL_CTX_new(TLS_client_method());
    CHECK(SSL_CTX_set_max_proto_version(p.client_ctx, max_version));
    CHECK(SSL_CTX_set_min_proto_version(p.client_ctx, TLS1_VERSION));
    SSL_CTX_set_security_level(p.client_ctx, 0);
    p.server = prt_tls_accept_new(p.server_ctx, p.server_fd);
    p.client = SSL_new(p.client_ctx);
    CHECK(p.server && SSL_set_fd(p.client, p.client_fd));
    SSL_set_connect_state(p.client);
    return p;
}

/* 1 when both are through, else the server's last answer */
static int shake(struct pair *p, const char **why)
{
    int s = 0, c = 0;

    for (int i = 0; i < 100 && (s != 1 || c != 1); i++) {
        ERR_clear_error();
        c = c == 1 ? 1 : SSL_do_handshake(p->client);
        s = s == 1 ? 1 : prt_tls_handshake(p->server, why);
        if (s == PRT_IO_CLOSED || s == PRT_IO_FAILED) {
            return s;
        }
    }
    return s == 1 && c == 1 ? 1 : s;
}

static void hang_up(struct pair *p)
{
    prt_tls_free(p->server);
    SSL_free(p->client);
    prt_tls_ctx_free(p->server_ctx);
    SSL_CTX_free(p->client_ctx);
    (void)close(p->server_fd);
    if (p->client_fd >= 0) {
        (void)close(p->client_fd);
    }
}

static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};

/* ---- tests ---- */
TEST(handshake_and_bytes_both_ways)
{
    for (int v = 0; v < 2; v++) {
        struct pair p = connect_pair(versions[v]);
        char b[64];
        CHECK_INT(prt_tls_handshake(p.server, NULL), PRT_IO_AGAIN); /* nobody has said anything */
        CHECK_INT(shake(&p, NULL), 1);
        CHECK_INT(SSL_version(p.server), versions[v]);
        CHECK_INT(prt_tls_read(p.server, b, sizeof b), PRT_IO_AGAIN);
        CHECK_INT(SSL_write(p.client, "hello", 5), 5);
        CHECK_INT(prt_tls_read(p.server, b, 2), 2);
        CHECK(prt_tls_has_pending(p.server)); /* which the descriptor does not show */
        CHECK_INT(prt_tls_read(p.server, b + 2, sizeof b - 2), 3);
        CHECK(memcmp(b, "hello", 5) == 0);
        CHECK(!prt_tls_has_pending(p.server));
        CHECK_INT(prt_tls_write(p.server, "world!", 6), 6);
        CHECK_INT(SSL_read(p.client, b, sizeof b), 6);
        CHECK_INT(prt_tls_write(p.server, b, 0), 0);
        CHECK_INT(prt_tls_read(p.server, b, 0), 0);
        hang_up(&p);
    }
}

/* two records in one read of the descriptor: read-ahead takes both */
TEST(a_record_read_ahead_is_pending)
{
    struct pair p = connect_pair(TLS1_3_VERSION);
    char b[64];

    CHECK_INT(shake(&p, NULL), 1);
    CHECK_INT(SSL_write(p.client, "one", 3), 3);
    CHECK_INT(SSL_write(p.client, "two", 3), 3);
    CHECK_INT(prt_tls_read(p.server, b, sizeof b), 3);
    CHECK(recv(p.server_fd, b, 1, MSG_PEEK) < 0 && errno == EAGAIN);
    CHECK(prt_tls_has_pending(p.server));
    CHECK_INT(prt_tls_read(p.server, b, sizeof b), 3);
    CHECK(memcmp(b, "two", 3) == 0);
    hang_up(&p);
}

TEST(a_full_peer_takes_parts_and_the_buffer_may_move)
{
    enum { N = 1 << 20 };
    struct pair p = connect_pair(TLS1_3_VERSION);
    char *big = malloc(N), *got = malloc(N);
    size_t sent = 0, have = 0;
    bool was_full = false;

    CHECK_INT(shake(&p, NULL), 1);
    for (size_t i = 0; i < N; i++) {
        big[i] = (char)(i * 31 >> 3);
    }
    while (have < N) {
        while (sent < N) {
            char *moved = malloc(N - sent); /* another place each time */
            memcpy(moved, big + sent, N - sent);
            ssize_t n = prt_tls_write(p.server, moved, N - sent);
            free(moved);
            if (n < 0) {
                CHECK_INT(n, PRT_IO_WANT_WRITE);
                was_full = true;
                break;
            }
            sent += (size_t)n;
        }
        int r = SSL_read(p.client, got + have, (int)(N - have));
        if (r > 0) {
            have += (size_t)r;
        } else if (SSL_get_error(p.client, r) != SSL_ERROR_WANT_READ) {
            CHECK(false);
            break;
        }
    }
    CHECK(was_full);
    CHECK(memcmp(big, got, N) == 0);
    free(big);
    free(got);
    hang_up(&p);
}

TEST(ends)
{
    char b[16];

    for (int v = 0; v < 2; v++) {
        struct pair p = connect_pair(versions[v]); /* close_notify */
        CHECK_INT(shake(&p, NULL), 1);
        (void)SSL_shutdown(p.client);
        CHECK_INT(prt_tls_read(p.server, b, sizeof b), PRT_IO_END);
        hang_up(&p);

        p = connect_pair(versions[v]); /* only the descriptor */
        CHECK_INT(shake(&p, NULL), 1);
        (void)close(p.client_fd);
        p.client_fd = -1;
        CHECK_INT(prt_tls_read(p.server, b, sizeof b), PRT_IO_CLOSED);
        hang_up(&p);

        p = connect_pair(versions[v]); /* written to a peer that is gone */
        CHECK_INT(shake(&p, NULL), 1);
        (void)close(p.client_fd);
        p.client_fd = -1;
        CHECK_INT(prt_tls_write(p.server, "x", 1), PRT_IO_CLOSED);
        hang_up(&p);

        p = connect_pair(versions[v]); /* bytes that are no record */
        CHECK_INT(shake(&p, NULL), 1);
        CHECK_INT(send(p.client_fd, "this is not TLS at all", 22, 0), 22);
        CHECK_INT(prt_tls_read(p.server, b, sizeof b), PRT_IO_FAILED);
        CHECK_INT(prt_tls_read(p.server, b, sizeof b) < 0, 1); /* and stays over */
        hang_up(&p);
    }
}

/* an error of one connection must not be seen by the next one on the thread */
TEST(errors_do_not_spread)
{
    struct pair bad = connect_pair(TLS1_3_VERSION), good = connect_pair(TLS1_3_VERSION);
    char b[16];

    CHECK_INT(shake(&bad, NULL), 1);
    CHECK_INT(shake(&good, NULL), 1);
    CHECK_INT(send(bad.client_fd, "this is not TLS at all", 22, 0), 22);
    CHECK_INT(prt_tls_read(bad.server, b, sizeof b), PRT_IO_FAILED);
    CHECK_INT(prt_tls_read(good.server, b, sizeof b), PRT_IO_AGAIN);
    ERR_put_error(ERR_LIB_SSL, 0, SSL_R_BAD_LENGTH, __FILE__, __LINE__); /* of somebody else */
    CHECK_INT(prt_tls_read(good.server, b, sizeof b), PRT_IO_AGAIN);
    ERR_put_error(ERR_LIB_SSL, 0, SSL_R_BAD_LENGTH, __FILE__, __LINE__);
    CHECK_INT(SSL_write(good.client, "x", 1), 1);
    CHECK_INT(prt_tls_read(good.server, b, sizeof b), 1);
    hang_up(&bad);
    hang_up(&good);
}

TEST(handshakes_that_fail_say_why)
{
    static const char *const hello[] = {"GET / HTTP/1.0\r\n\r\n",
                                        "\x16\x03\x01\x00\x04\x01\x00\x00\x00",
                                        "\0\0\0\x08\x04\xd2\x16\x2f"};

    for (size_t i = 0; i < 3; i++) {
        struct pair p = connect_pair(TLS1_3_VERSION);
        const char *why = NULL;
        CHECK(send(p.client_fd, hello[i], i == 0 ? 18 : i == 1 ? 9 : 8, 0) > 0);
        CHECK_INT(prt_tls_handshake(p.server, &why), PRT_IO_FAILED);
        CHECK(why && *why);
        hang_up(&p);
    }
    struct pair p = connect_pair(TLS1_3_VERSION);
    const char *why = NULL;
    (void)close(p.client_fd);
    p.client_fd = -1;
    CHECK_INT(prt_tls_handshake(p.server, &why), PRT_IO_CLOSED);
    CHECK(why && *why);
    hang_up(&p);
    p = connect_pair(TLS1_1_VERSION); /* older than we speak */
    why = NULL;
    CHECK_INT(shake(&p, &why), PRT_IO_FAILED);
    CHECK(why && strstr(why, "unsupported protocol"));
    hang_up(&p);
}

TEST(no_tickets_and_no_renegotiation)
{
    for (int v = 0; v < 2; v++) {
        struct pair p = connect_pair(versions[v]);
        char b[16];
        CHECK_INT(shake(&p, NULL), 1);
        CHECK_INT(prt_tls_write(p.server, "x", 1), 1);
        CHECK_INT(SSL_read(p.client, b, sizeof b),
                  1); /* tickets of TLS 1.3 come behind the handshake */
        CHECK(!SSL_SESSION_has_ticket(SSL_get0_session(p.client)));
        if (versions[v] == TLS1_2_VERSION) {
            SSL_clear_options(p.client, SSL_OP_NO_RENEGOTIATION);
            CHECK_INT(SSL_renegotiate(p.client), 1);
            (void)SSL_do_handshake(p.client);
            ssize_t n = prt_tls_read(p.server, b, sizeof b);
            CHECK(n == PRT_IO_AGAIN || n == PRT_IO_FAILED); /* answered by an alert, no handshake */
            (void)SSL_do_handshake(p.client);
            CHECK(SSL_get_state(p.server) == TLS_ST_OK || n == PRT_IO_FAILED);
            CHECK_INT(SSL_num_renegotiations(p.server), 0);
        }
        hang_up(&p);
    }
}

TEST(free_sends_close_notify)
{
    struct pair p = connect_pair(TLS1_3_VERSION);
    char b[16];

    CHECK_INT(shake(&p, NULL), 1);
    prt_tls_free(p.server);
    p.server = NULL;
    int r = SSL_read(p.client, b, sizeof b);
    CHECK_INT(SSL_get_error(p.client, r), SSL_ERROR_ZERO_RETURN);
    hang_up(&p);
    prt_tls_free(NULL);
    p = connect_pair(TLS1_3_VERSION); /* in the middle of the handshake */
    CHECK_INT(SSL_do_handshake(p.client) <= 0, 1);
    CHECK_INT(prt_tls_handshake(p.server, NULL), PRT_IO_AGAIN);
    hang_up(&p);
}

/* the client's idea of tls-server-end-point and ours */
static void end_point(const char *c, const char *k, const EVP_MD *md)
{
    struct pair p = connect_pair(TLS1_3_VERSION);
    uint8_t ours[64], theirs[64];
    unsigned n = 0;

    prt_tls_free(p.server);
    prt_tls_ctx_free(p.server_ctx);
    p.server_ctx = server_ctx(c, k);
    p.server = prt_tls_accept_new(p.server_ctx, p.server_fd);
    CHECK_INT(shake(&p, NULL), 1);
    size_t got = prt_tls_end_point(p.server, ours);
    if (md) {
        X509 *x = SSL_get1_peer_certificate(p.client);
        CHECK(x && X509_digest(x, md, theirs, &n));
        X509_free(x);
    }
    CHECK_INT(got, n);
    CHECK(memcmp(ours, theirs, n) == 0);
    hang_up(&p);
}

TEST(end_point_data)
{
    set_up();
    end_point(cert, key, EVP_sha256());
    end_point(sha512_cert, key, EVP_sha512());
    end_point(ed_cert, ed_key, NULL);
}

static void refused(const char *c, const char *k, const char *want)
{
    SSL_CTX *ctx = NULL;
    struct prt_err err = {0};

    CHECK_INT(prt_tls_server_ctx(&ctx, c, k, &err), POOLRT_CONFIG);
    CHECK(ctx == NULL);
    if (!strstr(err.text, want) || !strstr(err.text, dir)) {
        printf("  says: %s\n  not:  %s\n", err.text, want);
        CHECK(false);
    }
    CHECK_INT((long long)ERR_peek_error(), 0);
}

TEST(wrong_files_are_named)
{
    char missing[96];

    set_up();
    (void)snprintf(missing, sizeof missing, "%s/missing", dir);
    refused(missing, key, "tls certificate");
    refused(missing, key, "No such file or directory");
    refused(cert, missing, "No such file or directory");
    refused(key, key, "not a certificate in PEM");
    refused(cert, cert, "not a private key in PEM");
    refused(cert, other_key, "does not belong to the certificate");
    refused(cert, sealed_key, "it is encrypted");
}

TEST(no_memory)
{
    SSL_CTX *ctx = server_ctx(cert, key);

    CHECK_INT(setenv("POOLRT_FAULT", "tls_nomem", 1), 0);
    CHECK(prt_tls_accept_new(ctx, 0) == NULL);
    CHECK_INT(unsetenv("POOLRT_FAULT"), 0);
    prt_tls_ctx_free(ctx);
}
