/* cancel.c - one cancel request to a server, on a connection of its own.
 * Owns: the descriptor, its TLS.   Threads: the keeper's.
 * Idea: libpq's own call blocks and speaks in clear, so the 16 bytes are sent here. The request has
 * been dealt with when the server closes the connection, and not before: who hears of it earlier
 * could give the session to another client and have that one's query cancelled. */
#include "link/link_int.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SSL_CODE 80877103u
#define CANCEL_CODE 80877102u
#define RETRY_MS 10 /* a Unix socket whose backlog is full says so at once */

/*  CONNECTING --> ASKING --('S')--> HANDSHAKE --> SENDING --> CLOSING --> over
 *       |                                            ^
 *       +---------------(without TLS)----------------+            any --(error, time)--> over */
enum cancel_state {
    CONNECTING, /* writable: connected, or failed */
    ASKING,     /* the TLS request is out, one byte is the answer */
    HANDSHAKE,
    SENDING, /* the request, which may be cut anywhere */
    CLOSING, /* sent: the server's end of file is awaited */
};

struct cancel_run {
    struct prt_cancel *x; /* NULL: answered */
    struct prt_link link; /* in the connector's `cancels` */
    enum cancel_state state;
    int fd;
    bool has_poll;
    SSL *ssl;
    SSL_CTX *ctx;
    int handles; /* of libuv, not closed yet */
    uv_poll_t poll;
    uv_timer_t timer, retry;
    uint8_t request[12 + PRT_SERVER_KEY_MAX];
    size_t request_n, sent;
};

static void on_handle_closed(uv_handle_t *h)
{
    struct cancel_run *r = h->data;

    if (--r->handles > 0) {
        return;
    }
    SSL_free(r->ssl);
    SSL_CTX_free(r->ctx);
    if (r->fd >= 0) {
        (void)close(r->fd);
    }
    free(r);
}

/* Answers, once, and takes everything down; the descriptor is closed when libuv has let go of it.
 */
static void finish(struct cancel_run *r, poolrt_rc rc)
{
    struct prt_cancel *x = r->x;

    if (!x) {
        return;
    }
    r->x = NULL;
    prt_list_del(&r->link);
    if (r->has_poll) {
        uv_close((uv_handle_t *)&r->poll, on_handle_closed);
    }
    uv_close((uv_handle_t *)&r->timer, on_handle_closed);
    uv_close((uv_handle_t *)&r->retry, on_handle_closed);
    x->rc = rc;
    prt_mailbox_post(x->reply_to, &x->reply);
}

static void on_ready(uv_poll_t *poll, int status, int events);

static void want(struct cancel_run *r, int events)
{
    if (uv_poll_start(&r->poll, events, on_ready) != 0) {
        finish(r, POOLRT_IO);
    }
}

/* After SSL_get_error: wait for what OpenSSL wants; false: it wants nothing any more. */
static bool ssl_waits(struct cancel_run *r, int rc)
{
    switch (SSL_get_error(r->ssl, rc)) {
    case SSL_ERROR_WANT_READ:
        want(r, UV_READABLE);
        return true;
    case SSL_ERROR_WANT_WRITE:
        want(r, UV_WRITABLE);
        return true;
    default:
        return false;
    }
}

/* The server owes nothing but the end. */
static void await_end(struct cancel_run *r)
{
    char ignored[64];
    ssize_t n;

    r->state = CLOSING;
    do {
        if (r->ssl) {
            ERR_clear_error();
            n = SSL_read(r->ssl, ignored, sizeof ignored);
            if (n <= 0 && ssl_waits(r, (int)n)) {
                return;
            }
        } else {
            n = recv(r->fd, ignored, sizeof ignored, 0);
            if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
                want(r, UV_READABLE);
                return;
            }
        }
    } while (n > 0);
    finish(r,
           POOLRT_OK); /* a reset is an end, too: postmaster closes with our bytes unread or not */
}

static void send_request(struct cancel_run *r)
{
    r->state = SENDING;
    while (r->sent < r->request_n) {
        ssize_t n;
        if (r->ssl) {
            ERR_clear_error();
            n = SSL_write(r->ssl, r->request + r->sent, (int)(r->request_n - r->sent));
            if (n <= 0 && ssl_waits(r, (int)n)) {
                return;
            }
        } else {
            n = send(r->fd, r->request + r->sent, r->request_n - r->sent, MSG_NOSIGNAL);
            if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
                want(r, UV_WRITABLE);
                return;
            }
        }
        if (n <= 0) {
            finish(r, POOLRT_CONNECT_FAILED);
            return;
        }
        r->sent += (size_t)n;
    }
    await_end(r);
}

static void handshake(struct cancel_run *r)
{
    int rc;

    r->state = HANDSHAKE;
    ERR_clear_error();
    rc = SSL_do_handshake(r->ssl);
    if (rc == 1) {
        send_request(r);
    } else if (!ssl_waits(r, rc)) {
        finish(r, POOLRT_CONNECT_FAILED);
    }
}

/* Nothing is checked: what the request holds can only cancel, and TLS hides it from who listens. */
static bool make_ssl(struct cancel_run *r)
{
    r->ctx = SSL_CTX_new(TLS_client_method());
    r->ssl = r->ctx ? SSL_new(r->ctx) : NULL;
    if (!r->ssl || !SSL_set_fd(r->ssl, r->fd)) {
        return false;
    }
    SSL_set_verify(r->ssl, SSL_VERIFY_NONE, NULL);
    SSL_set_connect_state(r->ssl);
    return true;
}

/* Exactly one byte is taken: what stands behind it would have come in clear. */
static void read_answer(struct cancel_run *r)
{
    char c = 0;
    ssize_t n = recv(r->fd, &c, 1, 0);

    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        want(r, UV_READABLE);
    } else if (n == 1 && c == 'S' && make_ssl(r)) {
        handshake(r);
    } else {
        finish(r, POOLRT_CONNECT_FAILED);
    }
}

static void on_connected(struct cancel_run *r)
{
    uint8_t ask[8];
    int error = 0;
    socklen_t n = sizeof error;

    if (getsockopt(r->fd, SOL_SOCKET, SO_ERROR, &error, &n) != 0 || error) {
        finish(r, POOLRT_CONNECT_FAILED);
        return;
    }
    if (!r->x->use_tls) {
        send_request(r);
        return;
    }
    prt_put32(ask, sizeof ask);
    prt_put32(ask + 4, SSL_CODE);
    /* the first bytes of a connection: its send buffer is empty */
    if (send(r->fd, ask, sizeof ask, MSG_NOSIGNAL) != (ssize_t)sizeof ask) {
        finish(r, POOLRT_CONNECT_FAILED);
        return;
    }
    r->state = ASKING;
    want(r, UV_READABLE);
}

static void on_ready(uv_poll_t *poll, int status, int events)
{
    struct cancel_run *r = poll->data;

    if (!r->x) {
        return;
    }
    if (status < 0 && r->state != CONNECTING) {
        finish(r, r->state == CLOSING ? POOLRT_OK : POOLRT_CONNECT_FAILED);
        return;
    }
    switch (r->state) {
    case CONNECTING:
        on_connected(r);
        break;
    case ASKING:
        read_answer(r);
        break;
    case HANDSHAKE:
        handshake(r);
        break;
    case SENDING:
        send_request(r);
        break;
    case CLOSING:
        await_end(r);
        break;
    }
}

static void on_timeout(uv_timer_t *timer)
{
    finish(timer->data, POOLRT_TIMEOUT);
}

static void try_connect(struct cancel_run *r)
{
    const struct prt_cancel *x = r->x;
    int rc = connect(r->fd, (const struct sockaddr *)&x->addr, x->addr_n);

    if (rc == 0 || errno == EINPROGRESS || errno == EINTR) {
        want(r, UV_WRITABLE);
    } else if (errno != EAGAIN) {
        finish(r, POOLRT_CONNECT_FAILED);
    } else {
        (void)uv_timer_again(&r->retry);
    }
}

static void on_retry(uv_timer_t *timer)
{
    struct cancel_run *r = timer->data;

    (void)uv_timer_stop(timer);
    if (r->x) {
        try_connect(r);
    }
}

static void build_request(struct cancel_run *r)
{
    const struct prt_cancel *x = r->x;

    prt_assert(x->key_n <= sizeof x->key);
    r->request_n = 12 + (size_t)x->key_n;
    prt_put32(r->request, (uint32_t)r->request_n);
    prt_put32(r->request + 4, CANCEL_CODE);
    prt_put32(r->request + 8, x->pid);
    memcpy(r->request + 12, x->key, x->key_n);
}

static void init_timers(struct prt_connector *c, struct cancel_run *r)
{
    (void)uv_timer_init(&c->loop, &r->timer);
    (void)uv_timer_init(&c->loop, &r->retry);
    r->timer.data = r->retry.data = r->poll.data = r;
    r->handles = 2;
    uv_update_time(&c->loop);
    (void)uv_timer_start(&r->timer, on_timeout,
                         r->x->timeout_us > 0 ? (uint64_t)r->x->timeout_us / 1000 + 1 : 1, 0);
    (void)uv_timer_start(&r->retry, on_retry, RETRY_MS, RETRY_MS);
    (void)uv_timer_stop(&r->retry);
}

void prt_cancel_start(struct prt_connector *c, struct prt_cancel *x)
{
    struct cancel_run *r = calloc(1, sizeof *r);

    if (!r) {
        x->rc = POOLRT_NOMEM;
        prt_mailbox_post(x->reply_to, &x->reply);
        return;
    }
    r->x = x;
    r->fd = socket(x->addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    prt_list_push(&c->cancels, &r->link);
    init_timers(c, r);
    build_request(r);
    if (r->fd < 0 || uv_poll_init_socket(&c->loop, &r->poll, r->fd) != 0) {
        finish(r, POOLRT_IO);
        return;
    }
    r->has_poll = true;
    r->handles++;
    try_connect(r);
}

void prt_cancel_abort_all(struct prt_connector *c)
{
    while (!prt_list_empty(&c->cancels)) {
        finish(prt_container_of(c->cancels.next, struct cancel_run, link), POOLRT_CLOSED);
    }
}
