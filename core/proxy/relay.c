/* relay.c - bytes between a client and its server, message by message.
 * Owns: nothing; it drives one client and the server that it leases.   Threads: their worker.
 * Idea: messages are counted by their headers and sent on in runs, as they lie in the read buffer:
 * one recv and one send per hop. A run is cut only where something must be left out, put in or
 * changed. When the last answer is in, the server goes to the next client and gets its bytes before
 * the finished client is answered. */
#include "proxy/proxy_int.h"

#include <string.h>
#include <sys/socket.h>

static uint32_t max_packet(const struct prt_worker *w)
{
    return (uint32_t)w->snap->cfg->max_packet_size_bytes;
}

/* ======== up: client to server ======== */

/* A message without a server. Returns the bytes used, 0: none (needs more, waits, or has a server
 * now). */
ON_WORKER static size_t up_message(struct prt_client *c, const struct prt_msg *m,
                                   struct prt_frame before)
{
    bool refused = false;

    switch (m->type) {
    case 'X':
        prt_client_leave(c, PRT_GONE_CLIENT_QUIT);
        return 0;
    case 'S':
        c->discards = false;
        prt_client_send(c, "Z\0\0\0\5I", 6);
        return m->size;
    case 'H':
    case 'd':
    case 'c':
    case 'f':
        return m->size; /* late messages of a COPY, or a Flush with nothing to flush */
    case 'p':
        prt_client_fatal(c, "08P01", "a password message outside of a login", NULL,
                         PRT_GONE_PROTOCOL);
        return 0;
    default:
        break;
    }
    if (c->discards) {
        return m->size;
    }
    struct prt_frame after = c->frame;
    c->frame = before;
    if (!prt_client_acquire(c, m->type, &refused) && refused) {
        c->frame = after;
        return m->size;
    }
    return 0;
}

ON_WORKER static void bad_frame(struct prt_client *c)
{
    prt_client_fatal(c, "08P01",
                     "invalid message: a type or a length that the protocol does not allow", NULL,
                     PRT_GONE_PROTOCOL);
}

ON_WORKER static size_t up_free(struct prt_client *c, const uint8_t *p, size_t n)
{
    struct prt_frame before = c->frame;
    struct prt_msg m;

    switch (prt_frame_next(&c->frame, PRT_FRONTEND, p, n, max_packet(c->worker), &m)) {
    case PRT_FRAME_MSG:
        return up_message(c, &m, before);
    case PRT_FRAME_REST:
        return m.size; /* of a message that was dropped */
    case PRT_FRAME_MORE:
        return 0;
    case PRT_FRAME_BAD:
        break;
    }
    bad_frame(c);
    return 0;
}

/* A run of bytes that goes to the server as it lies there. */
struct run {
    const uint8_t *p;
    size_t from, at;
};

ON_WORKER static void send_up(struct prt_client *c, struct run *r)
{
    if (r->at > r->from) {
        prt_server_send(c->server, r->p + r->from, r->at - r->from);
    }
    r->from = r->at;
}

enum step { STEP_NEXT, STEP_STOP };

/* The statement name of a Bind or a Describe is empty, or cannot be read. */
static bool names_unnamed(const struct prt_msg *m)
{
    struct prt_str name = {0};

    if (m->type == 'B') {
        return !prt_msg_string(m, 1, &name) || name.n == 0;
    }
    if (m->type != 'D' || m->have == 0 || m->body[0] != 'S') {
        return false;
    }
    return m->have < 2 || m->body[1] == '\0';
}

static bool is_unnamed_parse(const struct prt_msg *m)
{
    struct prt_str name = {0};

    return m->type == 'P' && prt_msg_string(m, 0, &name) && name.n == 0;
}

/* In the shared modes the server may hold the unnamed statement of another client, whose rows must
 * not be reached by a bare Bind or Describe. A Parse in the same batch makes it safe: should it
 * fail, the server skips what follows. Else only the server's own ParseComplete tells whose it is
 * (a Parse or a Query that fails early leaves the old one in place). Where a Parse of an earlier
 * batch is not answered yet, the answer is waited for; where there is none, a Close goes in front,
 * and shares the fate of the message that it guards. false: wait. */
ON_WORKER static bool guard_unnamed(struct prt_client *c, const struct prt_msg *m, struct run *r)
{
    struct prt_server *s = c->server;
    struct prt_buf b = {0};

    if (m->type == 'S' || m->type == 'Q' || m->type == 'F') {
        s->parse_unanswered |= s->batch_parses;
        s->batch_parses = false;
        return true;
    }
    s->batch_parses |= is_unnamed_parse(m);
    if (s->batch_parses || s->unnamed_of == 0 || s->unnamed_of == c->number || !names_unnamed(m)) {
        return true;
    }
    if (s->parse_unanswered && prt_txn_owed(&s->txn)) {
        return false;
    }
    s->parse_unanswered = false;
    if (prt_txn_inject(&s->txn, 'C', 'S')) {
        send_up(c, r);
        prt_put_close(&b, 'S', PRT_STR(""));
        prt_server_send_buf(s, &b);
    }
    return true;
}

/* The client's next message waits for answers; the server must not keep them back. */
ON_WORKER static enum step wait_for_answers(struct prt_client *c, struct prt_frame before,
                                            struct run *r)
{
    c->frame = before;
    send_up(c, r);
    if (!prt_txn_ends_itself(&c->server->txn)) {
        prt_server_send(c->server, "H\0\0\0\4", 5);
    }
    return STEP_STOP;
}

/* A named statement would be found by the next client of this server, or be missing on another one.
 * A Parse that must fail goes in its place, so that the server itself does what an error has to do
 * to the batch and the transaction; its text is replaced on the way back. */
ON_WORKER static bool refuse_named(struct prt_client *c, const struct prt_msg *m, struct run *r)
{
    struct prt_server *s = c->server;
    struct prt_str name = {0};
    struct prt_buf b = {0};

    if (m->type != 'P' || s->txn.skips || !prt_msg_string(m, 0, &name) || name.n == 0) {
        return false;
    }
    send_up(c, r);
    prt_txn_mark_refused(&s->txn);
    prt_put_parse(&b, PRT_STR("named statement refused"));
    prt_server_send_buf(s, &b);
    r->at += m->size;
    r->from = r->at;
    c->drops_rest = true;
    return true;
}

ON_WORKER static enum step up_count(struct prt_client *c, const struct prt_msg *m,
                                    struct prt_frame before, struct run *r)
{
    struct prt_server *s = c->server;
    bool is_shared = prt_client_row(c)->mode != PRT_MODE_SESSION;

    if (is_shared && !s->txn.skips && !guard_unnamed(c, m, r)) {
        return wait_for_answers(c, before, r);
    }
    switch (prt_txn_client(&s->txn, m)) {
    case PRT_TXN_FORWARD:
        c->drops_rest = false;
        if (!is_shared || !refuse_named(c, m, r)) {
            r->at += m->size;
        }
        return STEP_NEXT;
    case PRT_TXN_FULL:
        return wait_for_answers(c, before, r);
    case PRT_TXN_TERMINATE:
        send_up(c, r);
        prt_client_quit(c, PRT_GONE_CLIENT_QUIT);
        return STEP_STOP;
    case PRT_TXN_VIOLATION:
        break;
    }
    send_up(c, r);
    prt_client_fatal(c, "08P01", "a message that is not allowed at this point", NULL,
                     PRT_GONE_PROTOCOL);
    return STEP_STOP;
}

ON_WORKER static size_t up_leased(struct prt_client *c, const uint8_t *p, size_t n)
{
    struct prt_server *s = c->server;
    struct run r = {.p = p};
    struct prt_msg m;

    /* settings are being restored, or a cancel request may still hit what is sent now */
    if (s->is_syncing || (s->cancels && prt_txn_is_settled(&s->txn)) || prt_buf_len(&s->out)) {
        return 0;
    }
    while (r.at < n) {
        struct prt_frame before = c->frame;
        enum prt_frame_rc rc =
            prt_frame_next(&c->frame, PRT_FRONTEND, p + r.at, n - r.at, max_packet(c->worker), &m);
        if (rc == PRT_FRAME_MSG) {
            if (up_count(c, &m, before, &r) == STEP_STOP) {
                return r.at;
            }
            continue;
        }
        if (rc == PRT_FRAME_MORE) {
            break;
        }
        if (rc == PRT_FRAME_BAD) {
            send_up(c, &r);
            bad_frame(c);
            return r.at;
        }
        if (c->drops_rest) {
            send_up(c, &r);
            r.from += m.size;
        }
        r.at += m.size;
    }
    send_up(c, &r);
    return r.at;
}

size_t prt_relay_up(struct prt_client *c, const uint8_t *p, size_t n)
{
    size_t at = 0;

    while (at < n && c->state != PRT_CLIENT_GONE && !c->has_ended) {
        bool had_server = c->server != NULL;
        size_t used = had_server ? up_leased(c, p + at, n - at) : up_free(c, p + at, n - at);
        at += used;
        if (used == 0 && (had_server || !c->server)) {
            break;
        }
    }
    return at;
}

/* ======== down: server to client ======== */

ON_WORKER static void send_down(struct prt_server *s, struct run *r)
{
    if (s->client && r->at > r->from) {
        prt_client_send(s->client, r->p + r->from, r->at - r->from);
    }
    r->from = r->at;
}

/* The server cannot be trusted any more; its client is told and ends. */
ON_WORKER static void end_both(struct prt_server *s, const char *sqlstate, const char *text,
                               enum prt_disconnect why)
{
    struct prt_client *c = s->client;

    s->txn.is_dead = true;
    if (!c) {
        prt_server_break(s);
    } else if (text && prt_frame_is_clean(&s->frame)) {
        prt_client_fatal(c, sqlstate, text, NULL, why);
    } else {
        prt_client_leave(c, why); /* in the middle of a message nothing can be said */
    }
}

ON_WORKER static void violation(struct prt_server *s, struct run *r)
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

static void note_param(struct prt_server *s, const struct prt_msg *m, bool is_ours)
{
    struct prt_str name, value;

    if (!prt_msg_string(m, 0, &name) || !prt_msg_string(m, 1, &value)) {
        return;
    }
    s->params = prt_params_with(s->params, name, value);
    if (s->client && !is_ours) {
        s->client->params = prt_params_with(s->client->params, name, value);
    }
}

/* The settings are restored, or could not be. */
ON_WORKER static void synced(struct prt_server *s)
{
    struct prt_client *c = s->client;

    s->is_syncing = false;
    if (s->error.rc == POOLRT_OK) {
        /* as the server spells them: "ISO" has become "ISO, MDY" */
        prt_params_unref(c->params);
        c->params = prt_params_ref(s->params);
        prt_client_resume(c); /* what waited for it, before the lease is looked at */
        return;
    }
    struct prt_err err = s->error;
    s->client = NULL;
    c->server = NULL;
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

ON_WORKER static void put_refusal(struct prt_server *s)
{
    struct prt_buf b = {0};

    prt_put_error(
        &b, "ERROR", "0A000",
        PRT_STR("named prepared statements are not supported in this pool mode"), NULL,
        "Use mode = \"session\" for this pool, or turn off prepared statements in the driver.");
    if (s->client) {
        prt_client_send_buf(s->client, &b);
    } else {
        prt_buf_free(&b);
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

/* What an event asks for besides passing the message on. STEP_STOP: the exchange is over. */
ON_WORKER static enum step down_event(struct prt_server *s, const struct prt_msg *m, uint32_t ev,
                                      struct run *r)
{
    bool is_ours = ev & PRT_EV_SWALLOW;

    if (ev & PRT_EV_PARAM) {
        note_param(s, m, is_ours);
    }
    if ((ev & PRT_EV_ERROR) && is_ours) {
        note_injected_error(s, m);
    }
    if ((ev & PRT_EV_COPY) && s->state == PRT_SERVER_CLEANING && s->txn.copy == PRT_COPY_IN) {
        prt_server_fail_copy(s);
    }
    if (ev & PRT_EV_READY) {
        count_ready(s, ev);
        if (s->is_syncing && is_ours) {
            synced(s);
            return s->state == PRT_SERVER_LINKED ? STEP_NEXT : STEP_STOP;
        }
    }
    if (ev & PRT_EV_FATAL) {
        r->at += is_ours ? 0 : m->size;
        send_down(s, r);
        end_both(s, NULL, NULL, PRT_GONE_SERVER_LOST);
        return STEP_STOP;
    }
    return STEP_NEXT;
}

ON_WORKER static enum step down_message(struct prt_server *s, const struct prt_msg *m,
                                        struct run *r)
{
    uint32_t ev = prt_txn_server(&s->txn, m);

    if (ev & PRT_EV_VIOLATION) {
        violation(s, r);
        return STEP_STOP;
    }
    s->drops_rest = ev & (PRT_EV_SWALLOW | PRT_EV_REFUSED);
    if (m->type == '1' && !s->drops_rest) { /* named ones exist only where a server is not shared */
        s->unnamed_of = s->client ? s->client->number : PRT_NO_CLIENT;
    }
    if (ev && down_event(s, m, ev, r) == STEP_STOP) {
        return STEP_STOP;
    }
    if (s->drops_rest) {
        send_down(s, r);
        if (ev & PRT_EV_REFUSED) {
            put_refusal(s);
        }
        r->from += m->size;
    }
    r->at += m->size;
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
ON_WORKER static bool is_settled(const struct prt_server *s)
{
    return prt_txn_is_settled(&s->txn) && prt_server_is_settled(s) && !prt_buf_len(&s->out) &&
           !prt_client_is_torn(s->client);
}

/* Everything that was read has been looked at, r is what is left to send. The lease ends if it may.
 */
ON_WORKER static void settle(struct prt_server *s, struct run *r)
{
    struct prt_client *c = s->client;
    struct prt_worker *w = s->worker;

    if (!c) {
        settle_unlinked(s);
        return;
    }
    bool is_done = is_settled(s);
    bool is_session = prt_client_row(c)->mode == PRT_MODE_SESSION;
    if (!is_done || !prt_txn_may_release(&s->txn) || is_session) {
        send_down(s, r);
        if (is_done && prt_txn_wants_fence(&s->txn)) {
            prt_server_fence(s);
        } else if (breaks_statement_mode(s, c)) {
            prt_client_fatal(c, "25001", "transaction blocks not allowed in statement mode", NULL,
                             PRT_GONE_STATEMENT_MODE);
        } else {
            prt_client_go_on(c);
        }
        return;
    }
    s->client = NULL;
    c->server = NULL;
    prt_client_set_state(c, PRT_CLIENT_IDLE);
    prt_server_release(s);
    prt_worker_serve(w); /* the next client's bytes go first */
    prt_client_send(c, r->p + r->from, r->at - r->from);
    prt_client_set_idle(c);
}

void prt_relay_settle(struct prt_server *s)
{
    struct run none = {.p = (const uint8_t *)""};

    settle(s, &none);
}

void prt_relay_up_done(struct prt_client *c)
{
    struct prt_server *s = c->server;

    if (s && is_settled(s)) {
        prt_relay_settle(s);
    }
}

ON_WORKER static bool down_bytes(struct prt_server *s, struct run *r, size_t n)
{
    struct prt_msg m;

    while (r->at < n) {
        switch (prt_frame_next(&s->frame, PRT_BACKEND, r->p + r->at, n - r->at,
                               max_packet(s->worker), &m)) {
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

bool prt_relay_down(struct prt_server *s)
{
    struct prt_worker *w = s->worker;
    struct run r = {0};
    ssize_t n = read_server(s, &r.p);
    bool is_rbuf = r.p == w->rbuf;

    if (n == PRT_IO_AGAIN || n == PRT_IO_WANT_WRITE) {
        prt_relay_settle(s); /* half a record of TLS may have held the lease up, and was no data */
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
