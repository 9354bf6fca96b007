/* answer.c - bytes from a server to its client, message by message, and the end of the lease.
 * Owns: nothing; it drives one server and the client that leases it.   Threads: their worker.
 * Idea: as in relay.c, in runs. When the last answer is in, the server goes to the next client and
 * gets its bytes before the finished client is answered. */
#include "proxy/proxy_int.h"

#include <string.h>

enum step { STEP_NEXT, STEP_STOP };

/* `n` bytes for the client, behind the answers of our own that wait for them. */
ON_WORKER static void send_joined(struct prt_client *c, struct prt_buf *local, const uint8_t *p,
                                  size_t n)
{
    if (prt_buf_len(local) == 0 && !local->failed) {
        prt_client_send(c, p, n);
        return;
    }
    bool is_apart = n > PRT_GATHER_MAX || !prt_buf_add(local, p, n);
    if (local->failed) {
        prt_client_no_memory(c);
        return;
    }
    prt_client_send(c, prt_buf_data(local), prt_buf_len(local));
    if (is_apart) {
        prt_client_send(c, p, n);
    }
}

void prt_answer_send_local(struct prt_server *s)
{
    if (s->client && (prt_buf_len(&s->local) || s->local.failed)) {
        send_joined(s->client, &s->local, NULL, 0);
    }
    prt_buf_reset(&s->local);
}

ON_WORKER static void send_down(struct prt_server *s, struct prt_run *r)
{
    if (s->client && prt_buf_len(&s->local)) {
        send_joined(s->client, &s->local, r->p + r->from, r->at - r->from);
        prt_buf_reset(&s->local);
    } else if (s->client && r->at > r->from) {
        prt_client_send(s->client, r->p + r->from, r->at - r->from);
    }
    r->from = r->at;
}

/* The server cannot be trusted any more; its client is told and ends. */
ON_WORKER static void end_both(struct prt_server *s, const char *sqlstate, const char *text,
                               enum prt_disconnect why)
{
    struct prt_client *c = s->client;

    prt_answer_send_local(s);
    s->txn.is_dead = true;
    if (!c) {
        prt_server_break(s);
    } else if (text && prt_frame_is_clean(&s->frame)) {
        prt_client_fatal(c, sqlstate, text, NULL, why);
    } else {
        prt_client_leave(c, why); /* in the middle of a message nothing can be said */
    }
}

ON_WORKER static void violation(struct prt_server *s, struct prt_run *r)
{
    static struct prt_log_limit limit;

    prt_count(&s->worker->n.violations, 1);
    prt_log_limited(&limit, PRT_LOG_ERROR, "server_protocol", prt_kv_z("pool", s->pool->name),
                    prt_kv_z("server", s->dial.server_addr), prt_kv_int("pid", s->dial.pid));
    send_down(s, r);
    end_both(s, "08P01", "the server broke the protocol", PRT_GONE_SERVER_PROTOCOL);
}

ON_WORKER static void lost(struct prt_server *s)
{
    prt_log(PRT_LOG_INFO, "server_lost", prt_kv_z("pool", s->pool->name),
            prt_kv_z("server", s->dial.server_addr), prt_kv_int("pid", s->dial.pid));
    end_both(s, "08006", "the server closed the connection unexpectedly", PRT_GONE_SERVER_LOST);
}

/* The settings are restored, or could not be. */
ON_WORKER static void synced(struct prt_server *s)
{
    struct prt_client *c = s->client;
    bool went_ahead = s->is_sync_ahead;

    s->is_syncing = s->is_sync_ahead = false;
    if (s->error.rc == POOLRT_OK) {
        /* as the server spells them: "ISO" has become "ISO, MDY" */
        prt_params_unref(c->params);
        c->params = prt_params_ref(s->params);
        prt_state_verified(c);
        if (!went_ahead && !prt_state_follow_up(s)) {
            prt_client_resume(c); /* what waited for it, before the lease is looked at */
        } else {
            prt_client_cancel_late(c);
        }
        return;
    }
    struct prt_err err = s->error;
    if (went_ahead) {
        /* what it sent has run, or will, under settings that are not its own */
        prt_client_fatal(c, "08P01", "a setting of this session could not be restored on a server",
                         NULL, PRT_GONE_SERVER_LOST);
        return;
    }
    s->client = NULL;
    c->server = NULL;
    prt_state_abandon(s);
    prt_server_break(s);
    prt_client_refuse_held(c, &err, "a setting of this session could not be restored on a server");
}

static void note_injected_error(struct prt_server *s, const struct prt_msg *m)
{
    struct prt_notice e;

    prt_notice_read(m, &e);
    (void)prt_fail(&s->error, POOLRT_IO, PRT_STR_FMT, PRT_STR_ARG(e.message));
    if (!prt_str_copy(s->error.sqlstate, sizeof s->error.sqlstate, e.sqlstate)) {
        s->error.sqlstate[0] = '\0';
    }
}

ON_WORKER static void count_ready(struct prt_server *s, uint32_t ev)
{
    struct prt_pool_lane *lane = prt_pools_lane(s->pool, s->worker->lane);

    if (!s->client || (ev & PRT_EV_SWALLOW)) {
        return;
    }
    prt_count(&lane->queries, 1);
    prt_count(&s->worker->n.queries, 1);
    if (s->txn.status == 'I') {
        prt_count(&lane->transactions, 1);
        prt_count(&s->worker->n.transactions, 1);
    }
}

ON_WORKER static void note_param(struct prt_server *s, const struct prt_msg *m, bool is_ours)
{
    struct prt_str name, value;

    if (prt_msg_string(m, 0, &name) && prt_msg_string(m, 1, &value)) {
        s->drops_rest |= prt_state_param(s, name, value, is_ours, &s->worker->answer);
    }
}

ON_WORKER static void ready(struct prt_server *s, uint32_t ev)
{
    bool is_ours = ev & PRT_EV_SWALLOW;

    count_ready(s, ev);
    if (is_ours && (s->is_syncing || s->is_sync_ahead)) {
        synced(s);
    } else if (!is_ours && s->client && prt_state_ready(s, &s->worker->answer)) {
        (void)prt_buf_add(&s->worker->answer, "Z\0\0\0\5", 5);
        (void)prt_buf_add(&s->worker->answer, &s->txn.status, 1);
        s->drops_rest = true;
    }
}

/* What an event asks for besides passing the message on. STEP_STOP: the exchange is over. */
ON_WORKER static enum step down_event(struct prt_server *s, const struct prt_msg *m, uint32_t ev,
                                      struct prt_run *r)
{
    bool is_ours = ev & PRT_EV_SWALLOW;

    if (ev & PRT_EV_PARAM) {
        note_param(s, m, is_ours);
    }
    if ((ev & PRT_EV_ERROR) && is_ours) {
        note_injected_error(s, m);
    }
    if ((ev & PRT_EV_ERROR) && !is_ours) {
        prt_state_error(s);
    }
    if (ev & PRT_EV_TAG) {
        if (s->client && !is_ours && (s->reset_to || s->is_owned)) {
            prt_state_tag(s, m);
        } else if (!s->client && s->killer) {
            prt_kill_tag(s, m);
        }
    }
    if ((ev & PRT_EV_COPY) && s->state == PRT_SERVER_CLEANING && s->txn.copy == PRT_COPY_IN) {
        prt_server_fail_copy(s);
    }
    if (ev & PRT_EV_READY) {
        enum prt_server_state before = (enum prt_server_state)s->state;
        ready(s, ev);
        return s->state == before ? STEP_NEXT : STEP_STOP;
    }
    if (ev & PRT_EV_FATAL) {
        r->at += is_ours ? 0 : m->size;
        send_down(s, r);
        end_both(s, NULL, NULL, PRT_GONE_SERVER_LOST);
        return STEP_STOP;
    }
    return STEP_NEXT;
}

/* Statements and the session are told of every message that may end something. */
ON_WORKER static void tell_statements(struct prt_server *s, const struct prt_msg *m, uint32_t ev)
{
    struct prt_names *names = s->client ? s->client->names : NULL;

    if (prt_stmts_server(&s->stmts, names, &s->session, m, ev, &s->worker->answer) ==
        PRT_DOWN_REPLACE) {
        s->drops_rest = true;
    }
}

/* The run so far is followed by other bytes; all of it is sent at once when the read is through. */
ON_WORKER static void keep_down(struct prt_server *s, struct prt_run *r,
                                const struct prt_buf *piece)
{
    size_t n = r->at - r->from;

    if (n > PRT_GATHER_MAX) {
        send_down(s, r);
    } else if (s->client) {
        (void)prt_buf_add(&s->local, r->p + r->from, n);
        (void)prt_buf_add(&s->local, prt_buf_data(piece), prt_buf_len(piece));
    }
    r->from = r->at;
}

/* Answers of our own that were waiting for this one. */
ON_WORKER static void keep_local(struct prt_server *s, struct prt_run *r)
{
    struct prt_buf *piece = &s->worker->answer;

    prt_buf_reset(piece);
    if (prt_stmts_local(&s->stmts, piece)) {
        keep_down(s, r, piece);
    }
}

/* A message that is more than bytes to pass on. */
ON_WORKER static enum step look_at(struct prt_server *s, const struct prt_msg *m, uint32_t ev,
                                   struct prt_run *r)
{
    struct prt_buf *piece = &s->worker->answer;

    if (ev & PRT_EV_VIOLATION) {
        violation(s, r);
        return STEP_STOP;
    }
    s->drops_rest = ev & PRT_EV_SWALLOW;
    prt_buf_reset(piece);
    if (!s->is_owned && !(ev & (PRT_EV_ASYNC | PRT_EV_PARAM))) {
        tell_statements(s, m, ev);
    }
    if (ev && down_event(s, m, ev, r) == STEP_STOP) {
        return STEP_STOP;
    }
    if (s->drops_rest) {
        keep_down(s, r, piece);
        r->from += m->size;
    }
    return STEP_NEXT;
}

ON_WORKER static enum step down_message(struct prt_server *s, const struct prt_msg *m,
                                        struct prt_run *r)
{
    uint32_t ev = prt_txn_server(&s->txn, m);

    s->drops_rest = false;
    /* else nothing was noted of what it answers */
    if ((ev || s->txn.noted_gone || m->type == 's' || (m->type == 'D' && s->stmts.rows)) &&
        look_at(s, m, ev, r) == STEP_STOP) {
        return STEP_STOP;
    }
    r->at += m->size;
    if (prt_txn_has_local(&s->txn)) {
        keep_local(s, r);
    }
    return STEP_NEXT;
}

/* A transaction block is open where none may be. */
static bool breaks_statement_mode(const struct prt_server *s, const struct prt_client *c)
{
    return prt_client_row(c)->mode == PRT_MODE_STATEMENT && prt_txn_is_settled(&s->txn) &&
           s->txn.status != 'I';
}

ON_WORKER static void settle_unlinked(struct prt_server *s)
{
    if (s->state != PRT_SERVER_CLEANING) {
        return;
    }
    if (s->error.rc) {
        prt_server_break(s); /* not even the clean-up worked */
    } else {
        prt_server_clean_on(s);
    }
}

/* A COPY that has failed is answered while its client still sends data, perhaps in the middle of a
 * message: the rest of that belongs to this server. */
ON_WORKER static bool is_settled(struct prt_server *s)
{
    return prt_txn_is_settled(&s->txn) && prt_server_is_settled(s) && prt_server_has_all(s) &&
           !prt_client_is_torn(s->client);
}

/* The server goes on to the next client, whose bytes are sent before this one is answered. */
ON_WORKER static void give_back(struct prt_server *s, struct prt_run *r)
{
    struct prt_client *c = s->client;
    struct prt_worker *w = s->worker;
    struct prt_buf local = s->local;

    s->local = w->joined;
    w->joined = (struct prt_buf){0};
    if (!s->is_owned) {
        prt_state_unlink(s, c);
    }
    s->client = NULL;
    c->server = NULL;
    prt_client_set_state(c, PRT_CLIENT_IDLE);
    prt_server_end_lease(s);
    prt_worker_serve(w);
    send_joined(c, &local, r->p + r->from, r->at - r->from);
    prt_buf_reset(&local);
    if (w->joined.p) {
        prt_buf_free(&local);
    } else {
        w->joined = local;
    }
    prt_client_set_idle(c);
}

ON_WORKER static bool may_end_lease(struct prt_server *s)
{
    return prt_txn_may_release(&s->txn) && !s->is_owned && !prt_state_pins(s);
}

/* Everything that was read has been looked at, r is what is left to send. The lease ends if it may.
 */
ON_WORKER static void settle(struct prt_server *s, struct prt_run *r)
{
    struct prt_client *c = s->client;

    if (!c) {
        settle_unlinked(s);
        return;
    }
    bool is_done = is_settled(s);
    if (is_done && may_end_lease(s)) {
        give_back(s, r);
        return;
    }
    send_down(s, r);
    if (is_done && prt_txn_wants_fence(&s->txn)) {
        prt_server_fence(s);
    } else if (breaks_statement_mode(s, c)) {
        prt_client_fatal(c, "25001", "transaction blocks not allowed in statement mode", NULL,
                         PRT_GONE_STATEMENT_MODE);
    } else {
        if (is_done) {
            prt_state_restore(s);
        }
        prt_client_go_on(c);
    }
}

void prt_answer_settle(struct prt_server *s)
{
    struct prt_run none = {.p = (const uint8_t *)""};

    settle(s, &none);
}

void prt_answer_after_relay(struct prt_client *c)
{
    struct prt_server *s = c->server;

    if (s && is_settled(s)) {
        prt_answer_settle(s);
    }
}

ON_WORKER static bool down_bytes(struct prt_server *s, struct prt_run *r, size_t n)
{
    uint32_t max_packet = prt_max_packet(s->worker);
    struct prt_msg m;

    while (r->at < n) {
        if (prt_frame_is_clean(&s->frame) && prt_txn_may_be_row(r->p[r->at]) && !s->stmts.rows) {
            r->at += prt_txn_rows(&s->txn, r->p + r->at, n - r->at, max_packet);
        }
        switch (prt_frame_next(&s->frame, PRT_BACKEND, r->p + r->at, n - r->at, max_packet, &m)) {
        case PRT_FRAME_MSG:
            if (down_message(s, &m, r) == STEP_STOP) {
                return false;
            }
            break;
        case PRT_FRAME_REST:
            if (s->drops_rest) {
                send_down(s, r);
                r->from += m.size;
            }
            r->at += m.size;
            break;
        case PRT_FRAME_MORE:
            return true;
        case PRT_FRAME_BAD:
            violation(s, r);
            return false;
        }
    }
    return true;
}

/* Read behind an incomplete message, if there is one, else into the worker's buffer. */
ON_WORKER static ssize_t read_server(struct prt_server *s, const uint8_t **p)
{
    struct prt_worker *w = s->worker;

    if (prt_buf_len(&s->in) == 0) {
        *p = w->rbuf;
        return prt_sock_recv(&s->sock, w->rbuf, PRT_RBUF);
    }
    uint8_t *room = prt_buf_room(&s->in, PRT_SMALL_MAX + 16);
    ssize_t n = room ? prt_sock_recv(&s->sock, room, PRT_SMALL_MAX + 16) : PRT_IO_FAILED;
    if (n > 0) {
        s->in.n += (uint32_t)n;
        n = (ssize_t)prt_buf_len(&s->in);
    }
    *p = prt_buf_data(&s->in);
    return n;
}

bool prt_answer_read(struct prt_server *s)
{
    struct prt_worker *w = s->worker;
    struct prt_run r = {0};
    ssize_t n = read_server(s, &r.p);
    bool is_rbuf = r.p == w->rbuf;

    if (n == PRT_IO_AGAIN || n == PRT_IO_WANT_WRITE) {
        prt_answer_settle(s); /* half a record of TLS may have held the lease up, and was no data */
        return false;
    }
    if (n < 0) {
        lost(s);
        return false;
    }
    prt_count(&w->n.bytes_out, (uint64_t)n);
    if (!down_bytes(s, &r, (size_t)n)) {
        return false;
    }
    size_t left = (size_t)n - r.at;
    if (is_rbuf && left && !prt_buf_add(&s->in, r.p + r.at, left)) {
        send_down(s, &r);
        end_both(s, NULL, NULL, PRT_GONE_NO_MEMORY);
        return false;
    }
    if (!is_rbuf) {
        send_down(s, &r);
        prt_buf_eat(&s->in, r.at);
    }
    bool more = s->sock.ssl && prt_tls_has_pending(s->sock.ssl) &&
                !(s->client && prt_buf_len(&s->client->out));
    settle(s, &r);
    return more; /* then it was not settled, so it is still this worker's */
}
