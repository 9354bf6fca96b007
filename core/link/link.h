/* link.h - the way to a server: targets, connectors, cancel requests. What proxy and embed share.
 *
 * libpq can hold a thread for milliseconds, so it never runs on a worker: a *connector* thread
 * opens the connection with libpq (every authentication method and sslmode for free), keeps the
 * socket and not the PGconn, and mails what is left, {fd, SSL, pid, key, parameters}, to whoever
 * asked. */
#ifndef PRT_LINK_H
#define PRT_LINK_H
#include "base/base.h"
#include "base/mailbox.h"
#include "pg/pg.h"

#include <sys/socket.h>

struct ssl_st; /* OpenSSL's SSL */

/* ---- target: where a pool's servers are; immutable, counted ---- */
struct prt_target;
/** Parse a libpq conninfo string or URL. Refused with a sentence that names the keyword: what libpq
 * does not know, a host list and a port list of different lengths, passwords are kept but never
 * shown. */
PRT_MUST_CHECK poolrt_rc prt_target_new(struct prt_target **out, const char *conninfo,
                                        struct prt_err *err) ON_ANY;
struct prt_target *prt_target_ref(struct prt_target *t) ON_ANY;
void prt_target_unref(struct prt_target *t) ON_ANY;
/** The database and user in the conninfo, NULL when it has none. */
const char *prt_target_dbname(const struct prt_target *t) ON_ANY;
const char *prt_target_user(const struct prt_target *t) ON_ANY;
const char *prt_target_password(const struct prt_target *t) ON_ANY;
/** "host:port" or "host:port,..." for logs and REST; no secret. */
const char *prt_target_text(const struct prt_target *t) ON_ANY;

/* ---- connector ---- */
#define PRT_SERVER_KEY_MAX 256

/** One connection to open. The caller fills the first part; the connector has it from submit until
 *  `reply` is posted to `reply_to`, filled. Strings are borrowed until then. */
struct prt_dial {
    struct prt_target *target;
    const char *dbname, *user, *password; /* NULL: the target's own */
    /* settings for the startup packet, name NUL value NUL ..., n bytes; may be empty */
    const char *settings;
    size_t settings_n;
    const char *application_name; /* NULL: "poolrt" */
    int64_t timeout_us;           /* over all hosts, connect_timeout */
    struct prt_mailbox *reply_to; /* its owner's thread is given */
    struct prt_mail reply;        /* deliver is set by the caller */
    /* ---- the result ---- */
    struct prt_err
        err; /* rc OK, or CONNECT_FAILED with the server's SQLSTATE and text where known */
    int fd;  /* non-blocking, close-on-exec, TCP_NODELAY and keepalive set; owned by caller */
    struct ssl_st *ssl; /* NULL without TLS; owned by the caller */
    uint32_t pid;
    uint8_t key[PRT_SERVER_KEY_MAX];
    uint16_t key_n;
    const struct prt_params *params; /* all that the server reported; the caller unrefs */
    struct sockaddr_storage addr;    /* of the server: where a cancel request goes */
    socklen_t addr_n;
    char server_addr[128]; /* "10.0.0.7:5432" or the socket's path, for people */
    struct prt_link link;  /* the connector's */
};

struct prt_connector;
/** Starts `threads` (1-4) threads. */
PRT_MUST_CHECK poolrt_rc prt_connector_start(struct prt_connector **out, int threads,
                                             struct prt_err *err) ON_ANY;
void prt_connector_submit(struct prt_connector *c, struct prt_dial *d) ON_ANY;
/** Answers what is under way with CONNECT_FAILED and joins the threads; what a hung libpq call
 * holds is left behind with its thread. NULL is accepted. */
void prt_connector_stop(struct prt_connector *c) ON_ANY;

/* ---- cancel: our own request, non-blocking, on a connector thread ---- */
struct prt_cancel {
    struct sockaddr_storage addr;
    socklen_t addr_n;
    bool use_tls; /* as the session does: SSLRequest first, the certificate is not checked (the key
                     is worthless to who intercepts it: it can only cancel) */
    uint32_t pid;
    uint8_t key[PRT_SERVER_KEY_MAX];
    uint16_t key_n;
    int64_t timeout_us;
    struct prt_mailbox *reply_to;
    struct prt_mail reply; /* posted when the server has closed the connection, or rc != OK */
    poolrt_rc rc;
    struct prt_link link; /* the connector's */
};
void prt_connector_cancel(struct prt_connector *c, struct prt_cancel *x) ON_ANY;

/** The verifier of a plain password, prepared (SASLprep) as libpq prepares it on the client's side;
 *  random salt, 4096 iterations. About 2 ms of CPU: not on a worker. false: empty, with a NUL
 * inside, or no memory. prt_scram_secret_make takes the bytes as they are: the same for ASCII. */
PRT_MUST_CHECK bool prt_password_secret(struct prt_str password,
                                        struct prt_scram_secret *out) ON_ANY;
#endif
