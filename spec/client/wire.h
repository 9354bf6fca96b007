/* wire.h - a blocking PostgreSQL connection by hand, for load clients that must send what no driver
 * would. Owns: its descriptor and read buffer.   Threads: one per connection.
 * Idea: messages are built with core/pg, but read here, so that a fault there is not hidden by
 * itself. Every wait has a deadline. */
#ifndef SPEC_CLIENT_WIRE_H
#define SPEC_CLIENT_WIRE_H
#include "base/buf.h"
#include "pg/pg.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define WIRE_ROOM (256 * 1024)

struct wire {
    int fd; /* -1: closed */
    uint64_t key;
    int64_t limit_us; /* for one wait */
    bool timed_out;
    size_t at, n; /* of `in`: used, filled */
    uint8_t in[WIRE_ROOM];
};
struct wire_msg {
    uint8_t type;
    uint32_t n;
    const uint8_t *body; /* until the next read */
};
enum wire_end { WIRE_FIN, WIRE_RST };

static inline bool wire_open(struct wire *w, int port, int64_t limit_us)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int one = 1;

    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    w->at = w->n = 0;
    w->timed_out = false;
    w->limit_us = limit_us;
    w->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (w->fd < 0) {
        return false;
    }
    (void)setsockopt(w->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(w->fd, (struct sockaddr *)&sa, sizeof sa) != 0) {
        (void)close(w->fd);
        w->fd = -1;
        return false;
    }
    return true;
}

static inline void wire_close(struct wire *w, enum wire_end how)
{
    struct linger hard = {1, 0};

    if (w->fd < 0) {
        return;
    }
    if (how == WIRE_RST) {
        (void)setsockopt(w->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    }
    (void)close(w->fd);
    w->fd = -1;
}

static inline bool wire_wait(struct wire *w, short events)
{
    struct pollfd p = {.fd = w->fd, .events = events};
    int64_t until = prt_now_us() + w->limit_us;
    int rc;

    do {
        rc = poll(&p, 1, (int)((until - prt_now_us()) / 1000 + 1));
    } while (rc < 0 && errno == EINTR);
    w->timed_out = rc == 0;
    return rc > 0;
}

static inline bool wire_send(struct wire *w, const void *p, size_t n)
{
    size_t at = 0;

    while (at < n) {
        ssize_t r = send(w->fd, (const char *)p + at, n - at, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (r > 0) {
            at += (size_t)r;
        } else if (r < 0 && errno != EAGAIN && errno != EINTR) {
            return false;
        } else if (!wire_wait(w, POLLOUT)) {
            return false;
        }
    }
    return true;
}

/* Sends and frees. */
static inline bool wire_send_buf(struct wire *w, struct prt_buf *b)
{
    bool ok = !b->failed && wire_send(w, prt_buf_data(b), prt_buf_len(b));

    prt_buf_free(b);
    return ok;
}

static inline bool wire_fill(struct wire *w)
{
    ssize_t r;

    if (w->at) {
        memmove(w->in, w->in + w->at, w->n - w->at);
        w->n -= w->at;
        w->at = 0;
    }
    do {
        if (!wire_wait(w, POLLIN)) {
            return false;
        }
        r = recv(w->fd, w->in + w->n, sizeof w->in - w->n, MSG_DONTWAIT);
    } while (r < 0 && (errno == EAGAIN || errno == EINTR));
    if (r <= 0) {
        return false;
    }
    w->n += (size_t)r;
    return true;
}

/* The next message; false: closed, too long, or the deadline passed (timed_out). */
static inline bool wire_next(struct wire *w, struct wire_msg *m)
{
    for (;;) {
        size_t have = w->n - w->at;
        if (have >= 5) {
            uint32_t len = prt_get32(w->in + w->at + 1);
            if (len < 4 || len > sizeof w->in - 1) {
                return false;
            }
            if (have >= (size_t)len + 1) {
                *m = (struct wire_msg){w->in[w->at], len - 4, w->in + w->at + 5};
                w->at += (size_t)len + 1;
                return true;
            }
        }
        if (!wire_fill(w)) {
            return false;
        }
    }
}

static inline void wire_put(struct prt_buf *b, uint8_t type, const void *body, size_t n)
{
    uint8_t head[5] = {type};

    prt_put32(head + 1, (uint32_t)n + 4);
    (void)prt_buf_add(b, head, 5);
    (void)prt_buf_add(b, body, n);
}

static inline void wire_put_startup(struct prt_buf *b, const char *user, const char *db,
                                    const char *app)
{
    const char *part[] = {"user", user, "database", db, "application_name", app};
    uint8_t head[8];
    size_t n = 9;

    for (unsigned i = 0; i < 6; i++) {
        n += strlen(part[i]) + 1;
    }
    prt_put32(head, (uint32_t)n);
    prt_put32(head + 4, 196608);
    (void)prt_buf_add(b, head, 8);
    for (unsigned i = 0; i < 6; i++) {
        (void)prt_buf_add(b, part[i], strlen(part[i]) + 1);
    }
    (void)prt_buf_add(b, "", 1);
}

/* Up to the first ReadyForQuery. false: refused or lost; m is the last message. */
static inline bool wire_login(struct wire *w, struct wire_msg *m)
{
    m->type = 0;
    while (wire_next(w, m)) {
        if (m->type == 'K' && m->n >= 8) {
            memcpy(&w->key, m->body, 8);
        } else if (m->type == 'Z') {
            return true;
        } else if (m->type == 'E') {
            return false;
        }
    }
    m->type = 0;
    return false;
}
#endif
