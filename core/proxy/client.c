/* client.c - a client between its login and its end: read, ask for a server, wait, go on.
 * Owns: the worker's clients.   Threads: their worker.
 * Idea: a client that idles or waits is a small struct and nothing else. While it waits its socket
 * stays in the set (to see it leave, and to save two system calls per transaction) and what it
 * sends is kept in one bounded buffer, whose memory is used again by the next one that waits. */
#include "proxy/proxy_int.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define IN_CHUNK 16384
#define IN_MAX (4 * IN_CHUNK) /* a client with more than this waiting is not read */
#define SPARE_MAX 4096        /* bigger buffers are not kept for the next one */

static const char cancelled_text[] = "canceling statement due to user request"; /* PostgreSQL's */

/* ---- state ---- */

static prt_counter *gauge_of(struct prt_worker *w, uint8_t st)
{
    return st == PRT_CLIENT_WAITING || st == PRT_CLIENT_WELCOME ? &w->n.waiting
           : st == PRT_CLIENT_ACTIVE                            ? &w->n.active
                                                                : NULL;
}

void prt_client_set_state(struct prt_client *c, enum prt_client_state st)
{
    prt_counter *from = gauge_of(c->worker, c->state), *to = gauge_of(c->worker, (uint8_t)st);

    prt_assert_dbg(c->state != PRT_CLIENT_GONE);
    prt_assert((st == PRT_CLIENT_ACTIVE) == (c->server != NULL));
    if (from) {
        prt_count(from, UINT64_MAX); /* one less */
    }
    if (to) {
        prt_count(to, 1);
    }
    c->state = (uint8_t)st;
}

void prt_client_new(struct prt_worker *w, int fd, const struct prt_peer *peer)
{
    struct prt_client *c = calloc(1, sizeof *c);
    struct prt_sock sock = {.fd = fd, .ticket = PRT_NO_TICKET};

    if (!c || !prt_io_add(&w->io, &sock, PRT_KIND_CLIENT, c, PRT_WANT_READ)) {
        free(c);
        prt_sock_close(&w->io, &sock);
        return;
    }
    c->sock = sock;
    c->worker = w;
    c->peer = *peer;
    c->number = prt_next_number(w->px);
    c->since_s = (uint32_t)(w->now_us / 1000000);
    atomic_fetch_add_explicit(&w->px->n_clients, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&w->n_clients, 1, memory_order_relaxed);
    prt_list_push(&w->clients, &c->link);
    prt_timer_set(&w->wheel, &c->timer, w->now_us + w->snap->cfg->login_timeout_us,
                  prt_login_timeout);
    if (w->is_draining) {
        prt_client_fatal(c, "57P01", "poolrt is shutting down", NULL, PRT_GONE_SHUTDOWN);
    }
}

/* ---- bytes that wait ---- */

static bool keep(struct prt_client *c, const uint8_t *p, size_t n)
{
    struct prt_worker *w = c->worker;

    if (PRT_FAULT("client_buffer")) {
        return false;
    }
    if (!c->in.p && w->n_spare) {
        c->in = w->spare[--w->n_spare];
    }
    return prt_buf_add(&c->in, p, n);
}

void prt_client_used(struct prt_client *c, size_t n)
{
    struct prt_worker *w = c->worker;

    if (n < prt_buf_len(&c->in) || c->in.cap > SPARE_MAX || w->n_spare == PRT_SPARE_BUFS) {
        prt_buf_eat(&c->in, n);
        return;
    }
    prt_buf_reset(&c->in);
    w->spare[w->n_spare++] = c->in;
    c->in = (struct prt_buf){0};
}

/* No memory for its bytes. It is told so where that can be read as a message, from memory that is
 * there; the event of its socket's end then finds it outside of any other work. */
void prt_client_no_memory(struct prt_client *c)
{
    static const char sorry[] =
        "SFATAL\0VFATAL\0C53200\0Mout of memory for the buffer of this connection\0";
    static struct prt_log_limit limit;
    uint8_t m[5 + sizeof sorry];

    if (c->sock.in_burst) {
        prt_burst_flush(c->worker);
    }
    m[0] = 'E';
    prt_put32(m + 1, (uint32_t)(4 + sizeof sorry));
    memcpy(m + 5, sorry, sizeof sorry);
    if (prt_buf_len(&c->out) == 0 && (!c->server || prt_frame_is_clean(&c->server->frame))) {
        (void)prt_sock_send(&c->sock, m, sizeof m);
    }
    prt_log_limited(&limit, PRT_LOG_ERROR, "out_of_memory",
                    prt_kv_int("client", (int64_t)c->number),
                    prt_kv_z("hint", "give poolrt more memory, or lower max_clients"));
    c->doom = PRT_GONE_NO_MEMORY + 1;
    (void)shutdown(c->sock.fd, SHUT_RDWR);
}

/* ---- sending ---- */

/* A named Parse must be here whole, however long it is. */
static bool is_full(const struct prt_client *c)
{
    size_t max = c->needs > IN_MAX ? c->needs : IN_MAX;

    return prt_buf_len(&c->in) >= max;
}

void prt_client_set_reading(struct prt_client *c)
{
    size_t owed = prt_buf_len(&c->out);
    bool may_read =
        !owed && !c->is_half && !is_full(c) && !(c->server && prt_buf_len(&c->server->out));

    unsigned want = (may_read ? (unsigned)PRT_WANT_READ : 0) |
                    (owed || c->sock.write_first ? (unsigned)PRT_WANT_WRITE : 0);

    if (want != c->sock.want) {
        prt_io_want(&c->worker->io, &c->sock, want);
    }
}

void prt_client_send(struct prt_client *c, const void *p, size_t n)
{
    if (c->sock.fd < 0 || n == 0) {
        return;
    }
    if (prt_buf_len(&c->out) == 0 && prt_burst_client(c, p, n)) {
        return;
    }
    if (c->sock.in_burst) {
        prt_burst_flush(c->worker);
    }
    prt_client_send_now(c, p, n);
}

void prt_client_send_now(struct prt_client *c, const void *p, size_t n)
{
    size_t sent = 0;

    if (prt_buf_len(&c->out) == 0) {
        ssize_t r = prt_sock_send(&c->sock, p, n);
        if (r < 0 && r != PRT_IO_AGAIN) {
            return; /* it is gone: its socket will say so */
        }
        sent = r > 0 ? (size_t)r : 0;
    }
    if (sent == n) {
        return;
    }
    if (!prt_buf_add(&c->out, (const uint8_t *)p + sent, n - sent)) {
        prt_client_no_memory(c);
        return;
    }
    prt_client_set_reading(c);
    if (c->server) {
        prt_server_set_reading(c->server);
    }
}

void prt_client_send_buf(struct prt_client *c, struct prt_buf *b)
{
    if (b->failed) {
        prt_client_no_memory(c);
    } else {
        prt_client_send(c, prt_buf_data(b), prt_buf_len(b));
    }
    prt_buf_free(b);
}

ON_WORKER static void flush(struct prt_client *c)
{
    ssize_t r = prt_sock_send(&c->sock, prt_buf_data(&c->out), prt_buf_len(&c->out));

    if (r > 0) {
        prt_buf_eat(&c->out, (size_t)r);
    } else if (r != PRT_IO_AGAIN) {
        prt_buf_free(&c->out);
    }
    if (prt_buf_len(&c->out)) {
        return;
    }
    prt_client_set_reading(c);
    if (c->server) {
        struct prt_server *s = c->server;
        prt_server_set_reading(s);
        /* what TLS has decrypted already no poll will tell */
        while (s->sock.ssl && s->client == c && !prt_buf_len(&c->out) &&
               prt_tls_has_pending(s->sock.ssl) && prt_answer_read(s)) {
        }
    }
    prt_client_resume(c);
}

/* ---- time limits ---- */

static void idle_timeout(struct prt_timer *t, int64_t now_us)
{
    struct prt_client *c = prt_container_of(t, struct prt_client, timer);

    prt_assert_worker();
    prt_client_fatal(c, "57P05", "terminating connection: idle for longer than client_idle_timeout",
                     NULL, PRT_GONE_IDLE_TIMEOUT);
}

void prt_client_count_error(struct prt_client *c, poolrt_rc rc)
{
    struct prt_pool_lane *lane = prt_pools_lane(c->pool, c->worker->lane);
    bool is_closed = rc == POOLRT_CLOSED || rc == POOLRT_DRAINING || rc == POOLRT_CONNECT_FAILED;
    bool is_full = rc == POOLRT_QUEUE_FULL || rc == POOLRT_BACKPRESSURE || rc == POOLRT_EXHAUSTED;

    prt_count(is_full                ? &lane->exhausted
              : rc == POOLRT_TIMEOUT ? &lane->errors_timeout
              : is_closed            ? &lane->errors_closed
                                     : &lane->errors_other,
              1);
}

bool prt_client_unqueue(struct prt_client *c, poolrt_rc rc)
{
    if (c->is_queued && !prt_waiter_cancel(c->pool->engine, &c->w, rc, c->worker->now_us)) {
        return false;
    }
    c->is_queued = false;
    return true;
}

ON_WORKER static void give_up_waiting(struct prt_client *c, poolrt_rc rc, const char *text,
                                      const char *hint)
{
    struct prt_err err;

    if (!prt_client_unqueue(c, rc)) {
        return;
    }
    prt_timer_clear(&c->timer);
    prt_client_count_error(c, rc);
    (void)prt_fail(&err, rc, "%s", text);
    prt_client_refuse_held(c, &err, hint);
}

static void acquire_timeout(struct prt_timer *t, int64_t now_us)
{
    struct prt_client *c = prt_container_of(t, struct prt_client, timer);

    prt_assert_worker();
    give_up_waiting(c, POOLRT_TIMEOUT, "no server connection became free within acquire_timeout",
                    "Raise max_size or acquire_timeout, or shorten transactions.");
}

/* ---- asking for a server ---- */

static void fill_view(const struct prt_client *c, struct prt_req_view *rq, char from[PRT_PEER_TEXT])
{
    const struct prt_identity *id = c->id;

    *rq = (struct prt_req_view){
        .tenant = id->tenant,
        .user = id->user,
        .database = id->database,
        .application = id->application,
        .client_addr = prt_peer_text(&c->peer, from),
        .session = c->number,
        .now = (double)c->worker->now_us / 1e6,
        .priority = PRT_NORMAL,
    };
}

/* Route and admit; false: refused with *err. Out of line: most requests ask nobody. */
ON_WORKER static __attribute__((noinline)) bool ask_policies(struct prt_client *c,
                                                             struct prt_err *err)
{
    struct prt_pool *p = c->pool->engine;
    struct prt_answer why = {0};
    struct prt_req_view rq;
    char from[PRT_PEER_TEXT];

    fill_view(c, &rq, from);
    if (prt_pool_ask(p, (uint16_t)c->worker->lane, &rq, &c->route, &why) == POOLRT_OK) {
        return true;
    }
    (void)prt_fail(err, POOLRT_POLICY, "%s", why.text[0] ? why.text : "refused by a policy");
    memcpy(err->sqlstate, why.sqlstate, sizeof err->sqlstate);
    return false;
}

ON_WORKER static void bound(struct prt_client *c)
{
    struct prt_pool_lane *lane = prt_pools_lane(c->pool, c->worker->lane);

    prt_hist_add(&lane->acquire, c->worker->now_us - c->request_us);
    prt_count(&lane->by_hour[c->worker->hour], 1);
}

poolrt_rc prt_client_enqueue(struct prt_client *c)
{
    struct prt_pool *p = c->pool->engine;
    struct prt_worker *w = c->worker;

    c->w.cls = c->id->cls;
    c->w.lane = (uint16_t)w->lane;
    c->w.priority = PRT_NORMAL;
    c->w.part = c->route.is_set ? c->route.part : prt_pool_default_partition(p);
    poolrt_rc rc = prt_acquire(p, &c->w, w->now_us);
    c->is_queued = rc == POOLRT_PENDING;
    return rc;
}

bool prt_client_acquire(struct prt_client *c, uint8_t type, bool *refused)
{
    struct prt_err err;
    poolrt_rc rc = POOLRT_POLICY;

    prt_assert_dbg(c->state == PRT_CLIENT_IDLE);
    prt_timer_clear(&c->timer);
    c->request_us = c->worker->now_us;
    *refused = false;
    if (!prt_pool_asks(c->pool->engine, &c->route) || ask_policies(c, &err)) {
        rc = prt_client_enqueue(c);
        if (rc == POOLRT_OK) {
            bound(c);
            prt_server_link(c->w.lease.slot->conn, c);
            return true;
        }
        if (rc == POOLRT_PENDING) {
            prt_timer_set(&c->worker->wheel, &c->timer,
                          c->request_us + prt_client_row(c)->acquire_timeout_us, acquire_timeout);
            prt_client_set_state(c, PRT_CLIENT_WAITING);
            return false;
        }
        (void)prt_fail(&err, rc, "%s", prt_error_row(rc)->text);
    }
    prt_client_count_error(c, rc);
    *refused = true;
    prt_client_refuse(c, type, &err, NULL);
    return false;
}

static void give_back_unused(struct prt_client *c)
{
    if (c->w.rc == POOLRT_OK) {
        (void)prt_release(c->pool->engine, c->w.lease, PRT_RELEASE_CLEAN, (uint16_t)c->worker->lane,
                          c->worker->now_us);
    }
}

void prt_client_served(struct prt_client *c)
{
    struct prt_err err;

    c->is_queued = false;
    if (c->state == PRT_CLIENT_GONE) { /* it left when this was already on its way */
        give_back_unused(c);
        prt_client_bury(c);
        return;
    }
    prt_timer_clear(&c->timer);
    if (c->state == PRT_CLIENT_WELCOME) {
        prt_welcome_served(c, c->w.rc);
        return;
    }
    if (c->is_cancelled) {
        give_back_unused(c);
        (void)prt_fail(&err, POOLRT_CANCELLED, "%s", cancelled_text);
        prt_client_count_error(c, POOLRT_CANCELLED);
        prt_client_refuse_held(c, &err, NULL);
        return;
    }
    if (c->w.rc == POOLRT_OK) {
        bound(c);
        prt_server_link(c->w.lease.slot->conn, c);
        prt_client_resume(c);
        return;
    }
    prt_class_error(c->id->cls, &err);
    if (err.rc == POOLRT_OK || c->w.rc != POOLRT_CONNECT_FAILED) {
        (void)prt_fail(&err, c->w.rc, "%s", prt_error_row(c->w.rc)->text);
    }
    prt_client_count_error(c, c->w.rc);
    prt_client_refuse_held(c, &err, NULL);
}

/* ---- refusing ---- */

void prt_client_refuse(struct prt_client *c, uint8_t type, const struct prt_err *err,
                       const char *hint)
{
    const char *sqlstate = err->sqlstate[0] ? err->sqlstate : prt_error_row(err->rc)->sqlstate;
    struct prt_buf b = {0};
    bool is_simple = type == 'Q' || type == 'F';

    prt_put_error(&b, "ERROR", sqlstate, prt_str_of(err->text), NULL, hint);
    if (is_simple) {
        prt_put_ready(&b, 'I');
    } else {
        c->discards = true; /* as a server does: everything up to Sync */
    }
    prt_client_send_buf(c, &b);
}

void prt_client_refuse_held(struct prt_client *c, const struct prt_err *err, const char *hint)
{
    struct prt_msg m;
    uint32_t max = (uint32_t)c->worker->snap->cfg->max_packet_size_bytes;

    prt_client_set_state(c, PRT_CLIENT_IDLE);
    enum prt_frame_rc rc =
        prt_frame_next(&c->frame, PRT_FRONTEND, prt_buf_data(&c->in), prt_buf_len(&c->in), max, &m);
    prt_assert(rc == PRT_FRAME_MSG); /* it was one when the request began to wait */
    prt_client_refuse(c, m.type, err, hint);
    prt_client_used(c, m.size);
    prt_client_set_idle(c);
}

/* ---- going on ---- */

void prt_client_cancel_late(struct prt_client *c)
{
    struct prt_server *s = c->server;

    if (!c->is_cancelled || !s || s->is_syncing || s->is_sync_ahead || !prt_txn_owed(&s->txn)) {
        return;
    }
    c->is_cancelled = false;
    prt_server_cancel(s);
}

ON_WORKER static void use_held(struct prt_client *c)
{
    bool can = !c->has_ended && (c->state == PRT_CLIENT_IDLE || c->state == PRT_CLIENT_ACTIVE);

    if (!can || prt_buf_len(&c->in) == 0 || prt_buf_len(&c->out)) {
        return;
    }
    size_t n = prt_relay(c, prt_buf_data(&c->in), prt_buf_len(&c->in));
    if (c->state == PRT_CLIENT_GONE) {
        return;
    }
    prt_client_used(c, n);
    prt_client_set_reading(c);
    prt_client_cancel_late(c);
    if (n) {
        prt_answer_after_relay(c);
    }
}

void prt_client_resume(struct prt_client *c)
{
    use_held(c);
    if (c->is_half) {
        prt_client_end_when_through(c);
    }
}

ON_WORKER static void limit_idling(struct prt_client *c)
{
    int64_t limit = prt_client_row(c)->client_idle_timeout_us;

    if (limit) {
        prt_timer_set(&c->worker->wheel, &c->timer, c->worker->now_us + limit, idle_timeout);
    }
}

void prt_client_go_on(struct prt_client *c)
{
    const struct prt_server *s = c->server;

    if (c->leaves && prt_client_is_between_transactions(c)) {
        prt_client_leave_orderly(c);
        return;
    }
    prt_client_send_news(c);
    if (s && !prt_timer_is_set(&c->timer) && prt_client_is_between_transactions(c)) {
        limit_idling(c); /* the server is its own, or keeps state for it */
    }
    prt_client_resume(c);
}

void prt_client_set_idle(struct prt_client *c)
{
    if (c->state == PRT_CLIENT_GONE) {
        return;
    }
    c->is_cancelled = false; /* it came too late, as such a request may */
    if (c->leaves) {
        prt_client_leave_orderly(c);
        return;
    }
    prt_client_send_news(c);
    limit_idling(c);
    prt_client_resume(c);
}

/* What it sent before it asked for the cancel lies in its socket at least: the two may have come in
 * one turn, in either order. */
ON_WORKER static void catch_up(struct prt_client *c)
{
    const struct prt_io_event ev = {.readable = true};

    if (c->sock.want & PRT_WANT_READ) {
        prt_client_event(c, &ev);
    }
}

void prt_client_cancel(struct prt_client *c)
{
    catch_up(c);
    if (c->state == PRT_CLIENT_WAITING) {
        c->is_cancelled = true; /* for served(), where that is on its way */
        give_up_waiting(c, POOLRT_CANCELLED, cancelled_text, NULL);
    } else if (c->state == PRT_CLIENT_ACTIVE) {
        bool is_held = prt_buf_len(&c->in) && c->server->cancels;
        c->is_cancelled = is_held || prt_txn_owed(&c->server->txn);
        prt_client_cancel_late(c);
    }
}

/* ---- events ---- */

/* Nothing was read: for now, because it has ended its side, or because it is gone. */
ON_WORKER static void hung_up(struct prt_client *c, ssize_t rc)
{
    if (rc == PRT_IO_END) {
        prt_client_ended(c);
    } else if (rc == PRT_IO_CLOSED || rc == PRT_IO_FAILED) {
        prt_client_leave(c, PRT_GONE_CLIENT_GONE);
    }
}

/* true: there may be more. */
ON_WORKER static bool read_behind(struct prt_client *c)
{
    uint8_t *room;

    if (!c->in.p && !keep(c, NULL, 0)) {
        prt_client_no_memory(c);
        return false;
    }
    room = prt_buf_room(&c->in, IN_CHUNK);
    if (!room) {
        prt_client_no_memory(c);
        return false;
    }
    ssize_t n = prt_sock_recv(&c->sock, room, IN_CHUNK);
    if (n < 0) {
        hung_up(c, n);
        return false;
    }
    c->in.n += (uint32_t)n;
    prt_count(&c->worker->n.bytes_in, (uint64_t)n);
    prt_client_set_reading(c);
    prt_client_resume(c);
    return true;
}

ON_WORKER static bool read_client(struct prt_client *c)
{
    struct prt_worker *w = c->worker;

    if (prt_buf_len(&c->in) || c->state == PRT_CLIENT_WAITING || c->state == PRT_CLIENT_WELCOME) {
        return read_behind(c);
    }
    ssize_t n = prt_sock_recv(&c->sock, w->rbuf, PRT_RBUF);
    if (n < 0) {
        hung_up(c, n);
        return false;
    }
    prt_count(&w->n.bytes_in, (uint64_t)n);
    size_t at = prt_relay(c, w->rbuf, (size_t)n);
    if (c->state == PRT_CLIENT_GONE) {
        return true;
    }
    if (at < (size_t)n) {
        if (!keep(c, w->rbuf + at, (size_t)n - at)) {
            prt_client_no_memory(c);
        }
        prt_client_set_reading(c);
    }
    if (at) {
        prt_answer_after_relay(c);
    }
    return true;
}

/* What TLS has decrypted, or half a record: no poll tells of the first, only reading of the second.
 */
ON_WORKER static bool has_more(const struct prt_client *c)
{
    return c->state != PRT_CLIENT_GONE && c->sock.ssl && (c->sock.want & PRT_WANT_READ) &&
           prt_tls_has_pending(c->sock.ssl);
}

/* Hung up, and nothing is read of it: because it has ended its side, or because too much waits
 * already. */
ON_WORKER static bool is_beyond_reading(const struct prt_client *c)
{
    return c->is_half || (is_full(c) && !(c->sock.want & PRT_WANT_READ));
}

void prt_client_event(struct prt_client *c, const struct prt_io_event *ev)
{
    bool more = ev->readable;

    if (c->doom == PRT_GONE_NO_MEMORY + 1) {
        prt_client_leave(c, PRT_GONE_NO_MEMORY);
        return;
    }
    if (c->state < PRT_CLIENT_WELCOME) {
        prt_login_go_on(c);
        more = c->state == PRT_CLIENT_IDLE && has_more(c);
    } else if (ev->writable && prt_buf_len(&c->out)) {
        flush(c);
    }
    if (c->state == PRT_CLIENT_GONE || !more) {
        return;
    }
    if (is_beyond_reading(c)) {
        prt_client_leave(c, PRT_GONE_CLIENT_GONE);
        return;
    }
    while (read_client(c) && has_more(c)) {
    }
}
