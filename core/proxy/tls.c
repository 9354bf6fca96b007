/* tls.c - OpenSSL on plain descriptors.
 * Owns: nothing; contexts and SSL objects are the caller's.   Threads: see each declaration.
 * Idea: SSL_set_fd on our own descriptors, never memory BIOs: 14 KB per idle TLS client against 49,
 * once SSL_MODE_RELEASE_BUFFERS lets go of the buffers in between; read-ahead halves the reads.
 * Tickets and the session cache are off: they would hold keys in memory for connections that live
 * for hours. OpenSSL keeps an error queue per thread, and SSL_get_error looks at it: an error left
 * there by one connection would be taken for the next one's, so it is emptied before every call.
 *
 * After a fatal error OpenSSL forbids SSL_shutdown; such an SSL is marked as shut down, both ways,
 * which makes prt_tls_free skip it. */
#include "proxy/tls.h"

#include <errno.h>
#include <limits.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <string.h>
#include <unistd.h>

/* ---- contexts ---- */

/* A daemon cannot ask for a passphrase, and must not stop at a prompt. */
static int no_passphrase(char *buf, int size, int rwflag, void *arg)
{
    *(bool *)arg = true;
    return -1;
}

static poolrt_rc load_cert(SSL_CTX *ctx, const char *cert, struct prt_err *err)
{
    if (access(cert, R_OK) != 0) {
        return prt_fail(err, POOLRT_CONFIG, "tls certificate %s: %m", cert);
    }
    if (SSL_CTX_use_certificate_chain_file(ctx, cert) != 1) {
        return prt_fail(err, POOLRT_CONFIG,
                        "tls certificate %s: it is not a certificate in PEM (%s)", cert,
                        ERR_reason_error_string(ERR_peek_last_error()));
    }
    return POOLRT_OK;
}

static poolrt_rc load_key(SSL_CTX *ctx, const char *key, const char *cert, struct prt_err *err)
{
    bool wants_passphrase = false;
    unsigned long why;
    int ok;

    if (access(key, R_OK) != 0) {
        return prt_fail(err, POOLRT_CONFIG, "tls key %s: %m", key);
    }
    SSL_CTX_set_default_passwd_cb(ctx, no_passphrase);
    SSL_CTX_set_default_passwd_cb_userdata(ctx, &wants_passphrase);
    ok = SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM);
    SSL_CTX_set_default_passwd_cb_userdata(ctx, NULL);
    SSL_CTX_set_default_passwd_cb(ctx, NULL);
    if (ok == 1 && SSL_CTX_check_private_key(ctx) == 1) {
        return POOLRT_OK;
    }
    why = ERR_peek_last_error();
    if (wants_passphrase) {
        return prt_fail(
            err, POOLRT_CONFIG,
            "tls key %s: it is encrypted, and there is nobody to ask for its passphrase", key);
    }
    if (ERR_GET_LIB(why) == ERR_LIB_X509) {
        return prt_fail(err, POOLRT_CONFIG, "tls key %s: it does not belong to the certificate %s",
                        key, cert);
    }
    return prt_fail(err, POOLRT_CONFIG, "tls key %s: it is not a private key in PEM (%s)", key,
                    ERR_reason_error_string(why));
}

poolrt_rc prt_tls_server_ctx(struct ssl_ctx_st **out, const char *cert, const char *key,
                             struct prt_err *err)
{
    SSL_CTX *ctx;
    poolrt_rc rc;

    *out = NULL;
    ERR_clear_error();
    ctx = SSL_CTX_new(TLS_server_method());
    if (!ctx || SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION) != 1) {
        rc = prt_fail(err, POOLRT_NOMEM, "tls: OpenSSL gives no context");
        goto fail;
    }
    (void)SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION |
                                       SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE);
    (void)SSL_CTX_set_num_tickets(ctx, 0);
    (void)SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    if ((rc = load_cert(ctx, cert, err)) || (rc = load_key(ctx, key, cert, err))) {
        goto fail;
    }
    *out = ctx;
    return POOLRT_OK;
fail:
    ERR_clear_error();
    SSL_CTX_free(ctx);
    return rc;
}

void prt_tls_ctx_free(struct ssl_ctx_st *ctx)
{
    SSL_CTX_free(ctx);
}

/* ---- one connection ---- */
void prt_tls_adopt(struct ssl_st *ssl)
{
    (void)SSL_set_mode(ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                SSL_MODE_RELEASE_BUFFERS);
    SSL_set_read_ahead(ssl, 1);
}

struct ssl_st *prt_tls_accept_new(struct ssl_ctx_st *ctx, int fd)
{
    SSL *ssl = PRT_FAULT("tls_nomem") ? NULL : SSL_new(ctx);

    if (!ssl || SSL_set_fd(ssl, fd) != 1) {
        SSL_free(ssl);
        ERR_clear_error();
        return NULL;
    }
    SSL_set_accept_state(ssl);
    prt_tls_adopt(ssl);
    return ssl;
}

static bool is_eof(int saved_errno)
{
    unsigned long e = ERR_peek_error();

    if (ERR_GET_REASON(e) == SSL_R_UNEXPECTED_EOF_WHILE_READING && ERR_GET_LIB(e) == ERR_LIB_SSL) {
        return true;
    }
    return e == 0 && (saved_errno == 0 || saved_errno == ECONNRESET || saved_errno == EPIPE);
}

/* What SSL_get_error says about a call that returned rc <= 0. */
static int outcome(SSL *ssl, int rc)
{
    int saved_errno = errno;

    switch (SSL_get_error(ssl, rc)) {
    case SSL_ERROR_WANT_READ:
        return PRT_IO_AGAIN;
    case SSL_ERROR_WANT_WRITE:
        return PRT_IO_WANT_WRITE;
    case SSL_ERROR_ZERO_RETURN:
        return PRT_IO_END;
    default:
        SSL_set_shutdown(ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
        return is_eof(saved_errno) ? PRT_IO_CLOSED : PRT_IO_FAILED;
    }
}

int prt_tls_handshake(struct ssl_st *ssl, const char **why)
{
    const char *reason;
    int rc, got;

    ERR_clear_error();
    errno = 0;
    rc = SSL_do_handshake(ssl);
    if (rc == 1) {
        return 1;
    }
    got = outcome(ssl, rc);
    if (why && got != PRT_IO_AGAIN && got != PRT_IO_WANT_WRITE) {
        /* of OpenSSL's table of texts: stays valid */
        reason = ERR_reason_error_string(ERR_peek_error());
        *why = reason ? reason : "the connection was closed";
    }
    return got;
}

ssize_t prt_tls_read(struct ssl_st *ssl, void *p, size_t n)
{
    int rc;

    if (n == 0) {
        return 0;
    }
    ERR_clear_error();
    errno = 0;
    rc = SSL_read(ssl, p, n > INT_MAX ? INT_MAX : (int)n);
    return rc > 0 ? rc : outcome(ssl, rc);
}

ssize_t prt_tls_write(struct ssl_st *ssl, const void *p, size_t n)
{
    int rc;

    if (n == 0) {
        return 0;
    }
    ERR_clear_error();
    errno = 0;
    rc = SSL_write(ssl, p, n > INT_MAX ? INT_MAX : (int)n);
    return rc > 0 ? rc : outcome(ssl, rc);
}

/* With read-ahead a whole record may lie there undecrypted, which SSL_pending does not count. Half
 * a record counts, too: a read then says PRT_IO_AGAIN, and the rest will show in the poll. */
bool prt_tls_has_pending(const struct ssl_st *ssl)
{
    return SSL_has_pending(ssl) == 1;
}

void prt_tls_free(struct ssl_st *ssl)
{
    if (!ssl) {
        return;
    }
    if (!SSL_in_init(ssl)) {
        (void)SSL_shutdown(ssl);
    }
    ERR_clear_error();
    SSL_free(ssl);
}

/* RFC 5929: the hash of the certificate's signature, and SHA-256 where that is MD5 or SHA-1. One
 * without a hash of its own (Ed25519) has no defined binding: PLUS is then not offered. */
size_t prt_tls_end_point(struct ssl_st *ssl, uint8_t out[64])
{
    X509 *cert = SSL_get_certificate(ssl);
    const EVP_MD *md;
    unsigned n = 0;
    int nid = NID_undef;

    if (!cert || X509_get_signature_info(cert, &nid, NULL, NULL, NULL) != 1) {
        ERR_clear_error();
        return 0;
    }
    md = nid == NID_md5 || nid == NID_sha1 ? EVP_sha256() : EVP_get_digestbynid(nid);
    if (!md || EVP_MD_get_size(md) > 64 || X509_digest(cert, md, out, &n) != 1) {
        ERR_clear_error();
        return 0;
    }
    return n;
}
