/* gate.c - accepts, and lets through only whole, sane heads.
 * Owns: the listening socket; every connection from accept to close.   Threads: control.
 * Idea: a connection costs the parser nothing until its head is complete. The bytes are looked at
 * with MSG_PEEK and stay in the kernel, so that libmicrohttpd later reads them as if it had
 * accepted the socket itself; SO_RCVLOWAT keeps the loop from turning while nothing new came. Who
 * sends slowly holds one of 64 places for 10 s at most, and gives it up at once when a newcomer
 * needs it, so slow senders cannot keep others out. */
#include "admin/admin_int.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SWEEP_MS 250
#define LINGER_US 2000000
#define DRAIN_MAX (4u << 20)
#define ANSWER_MAX 2048

struct prt_gate {
    int listen_fd;
    const struct prt_gate_ops *ops; /* NULL: closing */
    void *ctx;
    uv_loop_t *loop;
    uv_poll_t listen;
    uv_timer_t sweep;      /* runs while there are connections, or after accept failed */
    struct prt_link conns; /* in order of arrival */
    unsigned n;
    unsigned handles; /* not yet closed by the loop */
    struct prt_log_limit accept_limit;
    char peek[PRT_HTTP_PEEK];
};

/* ---- the end of a connection ---- */

static void conn_free(struct prt_gate_conn *c)
{
    if (c->bytes) {
        prt_secret_wipe(c->bytes, c->n_bytes);
    }
    free(c->bytes);
    free(c);
}

static void on_conn_closed(uv_handle_t *h)
{
    struct prt_gate_conn *c = h->data;
    struct prt_gate *g = c->gate;

    prt_assert_control();
    conn_free(c);
    g->handles--;
}

static void unlink_conn(struct prt_gate_conn *c)
{
    prt_list_del(&c->link);
    c->gate->n--;
}

/* HEAD or REFUSED: ours to close */
static void drop(struct prt_gate_conn *c)
{
    prt_assert(c->state != PRT_GATE_SERVED);
    unlink_conn(c);
    (void)uv_poll_stop(&c->poll);
    (void)close(c->fd);
    uv_close((uv_handle_t *)&c->poll, on_conn_closed);
}

void prt_gate_forget(struct prt_gate_conn *c)
{
    prt_assert(c->state == PRT_GATE_SERVED);
    unlink_conn(c);
    conn_free(c);
}

static void shut(struct prt_gate_conn *c)
{
    if (c->state != PRT_GATE_SERVED) {
        drop(c);
        return;
    }
    (void)shutdown(c->fd, SHUT_RDWR);
    c->until_us = INT64_MAX; /* once is enough */
}

/* ---- refusing ---- */

/* Closing at once would reset the connection, because bytes are unread, and the peer would never
 * see why. So its bytes are read and dropped until it has closed too. */
static void on_drain(uv_poll_t *p, int status, int events)
{
    struct prt_gate_conn *c = p->data;
    ssize_t n = 0;

    prt_assert_control();
    for (int i = 0; i < 16; i++) {
        n = recv(c->fd, c->gate->peek, sizeof c->gate->peek, MSG_DONTWAIT);
        if (n <= 0) {
            break;
        }
        c->drained += (size_t)n;
    }
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR) || c->drained > DRAIN_MAX ||
        status < 0) {
        drop(c);
    }
}

static void refuse(struct prt_gate_conn *c, const struct prt_refusal *why)
{
    char out[ANSWER_MAX];
    size_t n = c->gate->ops->refuse(c->gate->ctx, c, why, out, sizeof out);
    int one = 1;

    c->state = PRT_GATE_REFUSED;
    c->until_us = prt_now_us() + LINGER_US;
    /* a fresh socket takes 2 kB or is broken: there is nothing to wait for */
    if (send(c->fd, out, n, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 || shutdown(c->fd, SHUT_WR) < 0 ||
        setsockopt(c->fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof one) < 0 ||
        uv_poll_start(&c->poll, UV_READABLE, on_drain) != 0) {
        drop(c);
    }
}

/* ---- reading the head ---- */

/* The loop frees its handle later than libmicrohttpd may close the connection, so the connection
 * moves into a struct of its own and leaves the handle behind. */
static struct prt_gate_conn *without_handle(struct prt_gate_conn *c, size_t head_bytes)
{
    struct prt_gate_conn *s = malloc(sizeof *s);
    char *bytes = malloc(head_bytes);

    if (!s || !bytes) {
        free(s);
        free(bytes);
        return NULL;
    }
    *s = *c;
    s->state = PRT_GATE_SERVED;
    s->bytes = memcpy(bytes, c->gate->peek, head_bytes);
    s->n_bytes = head_bytes;
    prt_list_init(&s->link);
    return s;
}

static void serve(struct prt_gate_conn *c)
{
    struct prt_gate *g = c->gate;
    struct prt_refusal why;
    struct prt_gate_conn *s = without_handle(c, c->scan.at);
    int one = 1;

    prt_assert_control();
    if (!s) {
        drop(c);
        return;
    }
    if (!prt_head_parse((struct prt_str){s->bytes, s->n_bytes}, &s->head, &why)) {
        conn_free(s);
        refuse(c, &why);
        return;
    }
    s->until_us = s->since_us + PRT_HTTP_REQUEST_US;
    (void)setsockopt(s->fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof one);
    prt_list_before(&c->link, &s->link);
    g->n++;
    unlink_conn(c);
    (void)uv_poll_stop(&c->poll);
    uv_close((uv_handle_t *)&c->poll, on_conn_closed);
    if (!g->ops->serve(g->ctx, s)) {
        prt_gate_forget(s);
    }
}

static void on_head(uv_poll_t *p, int status, int events)
{
    struct prt_gate_conn *c = p->data;
    struct prt_gate *g = c->gate;
    struct prt_refusal why;
    ssize_t n;
    int want;

    prt_assert_control();
    n = status < 0 ? 0 : recv(c->fd, g->peek, sizeof g->peek, MSG_PEEK | MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    if (n <= 0 || (size_t)n <= c->scan.at) { /* nothing new: the peer has closed */
        drop(c);
        return;
    }
    switch (prt_head_scan((struct prt_str){g->peek, (size_t)n}, &c->scan, &why)) {
    case PRT_HEAD_WHOLE:
        serve(c);
        return;
    case PRT_HEAD_BAD:
        refuse(c, &why);
        return;
    case PRT_HEAD_MORE:
        want = (int)n + 1;
        (void)setsockopt(c->fd, SOL_SOCKET, SO_RCVLOWAT, &want, sizeof want);
    }
}

/* ---- accepting ---- */

/* Room for one more: the oldest that has not said what it wants goes first, then the oldest. */
static void make_room(struct prt_gate *g)
{
    struct prt_link *victim = NULL;

    for (struct prt_link *l = g->conns.next; l != &g->conns; l = l->next) {
        if (prt_container_of(l, struct prt_gate_conn, link)->state != PRT_GATE_SERVED) {
            victim = l;
            break;
        }
    }
    if (victim) {
        drop(prt_container_of(victim, struct prt_gate_conn, link));
        return;
    }
    shut(prt_container_of(g->conns.next, struct prt_gate_conn, link));
    g->ops->shut(g->ctx);
}

static void on_sweep(uv_timer_t *t);

static void welcome(struct prt_gate *g, int fd, const struct sockaddr_storage *peer, socklen_t len)
{
    struct prt_gate_conn *c;
    int one = 1;

    if (g->n >= PRT_HTTP_CONNECTIONS) {
        make_room(g);
    }
    c = g->n < PRT_HTTP_CONNECTIONS ? calloc(1, sizeof *c) : NULL;
    if (!c || uv_poll_init_socket(g->loop, &c->poll, fd) != 0) {
        free(c);
        (void)close(fd);
        return;
    }
    c->gate = g;
    c->fd = fd;
    c->since_us = prt_now_us();
    c->until_us = c->since_us + PRT_HTTP_HEAD_US;
    c->peer = *peer;
    c->peer_len = len;
    c->poll.data = c;
    prt_list_push(&g->conns, &c->link);
    g->n++;
    g->handles++;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (uv_poll_start(&c->poll, UV_READABLE, on_head) != 0) {
        drop(c);
        return;
    }
    if (!uv_is_active((uv_handle_t *)&g->sweep)) {
        (void)uv_timer_start(&g->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
    }
}

static void on_listen(uv_poll_t *p, int status, int events)
{
    struct prt_gate *g = p->data;

    prt_assert_control();
    for (int i = 0; i < 16; i++) {
        struct sockaddr_storage peer;
        socklen_t len = sizeof peer;
        int fd =
            accept4(g->listen_fd, (struct sockaddr *)&peer, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            welcome(g, fd, &peer, len);
            continue;
        }
        if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
            /* out of descriptors: the event stays, so look away until the next sweep */
            prt_log_limited(&g->accept_limit, PRT_LOG_WARN, "admin_accept_failed",
                            prt_kv_z("error", strerrorname_np(errno)));
            (void)uv_poll_stop(&g->listen);
            (void)uv_timer_start(&g->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
        }
        return;
    }
}

/* ---- deadlines ---- */

static void expire(struct prt_gate_conn *c)
{
    static const struct prt_refusal late = {408, "request_timeout",
                                            "the header fields took longer than 10 s"};

    if (c->state == PRT_GATE_HEAD) {
        refuse(c, &late);
    } else {
        shut(c);
    }
}

static void on_sweep(uv_timer_t *t)
{
    struct prt_gate *g = t->data;
    int64_t now = prt_now_us();
    bool served = false;

    prt_assert_control();
    for (struct prt_link *l = g->conns.next, *next; l != &g->conns; l = next) {
        struct prt_gate_conn *c = prt_container_of(l, struct prt_gate_conn, link);
        next = l->next;
        if (c->until_us <= now) {
            served |= c->state == PRT_GATE_SERVED;
            expire(c);
        }
    }
    if (served) {
        g->ops->shut(g->ctx);
    }
    if (!uv_is_active((uv_handle_t *)&g->listen)) {
        (void)uv_poll_start(&g->listen, UV_READABLE, on_listen);
    } else if (prt_list_empty(&g->conns)) {
        (void)uv_timer_stop(&g->sweep);
    }
}

/* ---- open, close ---- */

struct prt_gate_conn *prt_gate_find(struct prt_gate *g, int fd)
{
    for (struct prt_link *l = g->conns.next; l != &g->conns; l = l->next) {
        struct prt_gate_conn *c = prt_container_of(l, struct prt_gate_conn, link);
        if (c->fd == fd && c->state == PRT_GATE_SERVED) {
            return c;
        }
    }
    return NULL;
}

poolrt_rc prt_gate_open(struct prt_gate **out, uv_loop_t *loop, int listen_fd,
                        const struct prt_gate_ops *ops, void *ctx, struct prt_err *err)
{
    struct prt_gate *g = calloc(1, sizeof *g);

    if (!g || uv_poll_init(loop, &g->listen, listen_fd) != 0) {
        free(g);
        (void)close(listen_fd);
        return prt_fail(err, POOLRT_NOMEM, "no memory for the admin listener");
    }
    (void)uv_timer_init(loop, &g->sweep);
    g->loop = loop;
    g->listen_fd = listen_fd;
    g->ops = ops;
    g->ctx = ctx;
    g->handles = 2;
    g->listen.data = g->sweep.data = g;
    prt_list_init(&g->conns);
    (void)uv_poll_start(&g->listen, UV_READABLE, on_listen);
    *out = g;
    return POOLRT_OK;
}

static void on_gate_closed(uv_handle_t *h)
{
    struct prt_gate *g = h->data;

    prt_assert_control();
    g->handles--;
}

void prt_gate_close(struct prt_gate *g)
{
    if (!g) {
        return;
    }
    while (!prt_list_empty(&g->conns)) {
        drop(prt_container_of(g->conns.next, struct prt_gate_conn, link));
    }
    (void)uv_poll_stop(&g->listen);
    (void)close(g->listen_fd);
    uv_close((uv_handle_t *)&g->listen, on_gate_closed);
    uv_close((uv_handle_t *)&g->sweep, on_gate_closed);
    while (g->handles > 0) {
        (void)uv_run(g->loop, UV_RUN_NOWAIT);
    }
    free(g);
}
