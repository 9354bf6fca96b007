/* relay.c - bytes from a client to the server that it leases, message by message.
 * Owns: nothing; it drives one client and its server.   Threads: their worker.
 * Idea: messages are counted by their headers and sent on in runs, as they lie in the read buffer:
 * one recv and one send per hop. A run is cut only where something must be left out, put in or
 * changed. */
#include "proxy/proxy_int.h"

#include <string.h>
#include <sys/socket.h>

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

    switch (prt_frame_next(&c->frame, PRT_FRONTEND, p, n, prt_max_packet(c->worker), &m)) {
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

enum step { STEP_NEXT, STEP_STOP };

/* The run so far is followed by other bytes: those of `piece`, and the run goes on `skip` later. */
ON_WORKER static void splice(struct prt_worker *w, struct prt_run *r, size_t skip)
{
    (void)prt_buf_add(&w->gather, r->p + r->from, r->at - r->from);
    (void)prt_buf_add(&w->gather, prt_buf_data(&w->piece), prt_buf_len(&w->piece));
    r->from = r->at + skip;
}

ON_WORKER static void send_up(struct prt_client *c, struct prt_run *r)
{
    struct prt_buf *gather = &c->worker->gather;
    size_t n = r->at - r->from;

    if (prt_buf_len(gather) == 0 && !gather->failed) {
        prt_server_send(c->server, r->p + r->from, n);
        r->from = r->at;
        return;
    }
    bool is_apart = n > PRT_GATHER_MAX;
    if (!is_apart) {
        (void)prt_buf_add(gather, r->p + r->from, n);
    }
    if (gather->failed) {
        (void)shutdown(c->server->sock.fd, SHUT_RDWR); /* half of it must never be completed */
    } else {
        prt_server_send(c->server, prt_buf_data(gather), prt_buf_len(gather));
    }
    prt_buf_reset(gather);
    if (is_apart) {
        prt_server_send(c->server, r->p + r->from, n);
    }
    r->from = r->at;
}

/* The client's next message waits for answers; the server must not keep them back. */
ON_WORKER static enum step wait_for_answers(struct prt_client *c, struct prt_frame before,
                                            struct prt_run *r)
{
    c->frame = before;
    send_up(c, r);
    if (!prt_txn_ends_itself(&c->server->txn)) {
        prt_server_send(c->server, "H\0\0\0\4", 5);
    }
    return STEP_STOP;
}

ON_WORKER static enum step terminated(struct prt_client *c, struct prt_run *r)
{
    send_up(c, r);
    prt_client_quit(c, PRT_GONE_CLIENT_QUIT);
    return STEP_STOP;
}

ON_WORKER static enum step forbidden(struct prt_client *c, struct prt_run *r)
{
    send_up(c, r);
    prt_client_fatal(c, "08P01", "a message that is not allowed at this point", NULL,
                     PRT_GONE_PROTOCOL);
    return STEP_STOP;
}

/* Behind a RESET that is not answered yet nothing may run: it may need settings restored first.
 * What is in its own batch cannot be held back, since the batch is not answered before its end. */
static bool waits_for_reset(const struct prt_server *s, const struct prt_msg *m)
{
    return s->reset_to && !s->txn.is_open && m->type != 'S' && m->type != 'H' && m->type != 'X' &&
           m->type != 'd' && m->type != 'c' && m->type != 'f';
}

/* The server is this client's alone: messages are counted and pass. */
ON_WORKER static enum step up_session(struct prt_client *c, const struct prt_msg *m,
                                      struct prt_frame before, struct prt_run *r)
{
    if (waits_for_reset(c->server, m) || !prt_state_may_reset(c, m)) {
        return wait_for_answers(c, before, r);
    }
    switch (prt_txn_client(&c->server->txn, m)) {
    case PRT_TXN_FORWARD:
        r->at += m->size;
        return STEP_NEXT;
    case PRT_TXN_FULL:
        return wait_for_answers(c, before, r);
    case PRT_TXN_TERMINATE:
        return terminated(c, r);
    case PRT_TXN_VIOLATION:
        break;
    }
    return forbidden(c, r);
}

ON_WORKER static enum step no_memory(struct prt_client *c, struct prt_run *r)
{
    send_up(c, r);
    prt_client_fatal(c, "53200", "out of memory for a prepared statement", NULL,
                     PRT_GONE_NO_MEMORY);
    return STEP_STOP;
}

/* The server is shared: statements are renamed, prepared where they are missing, and whatever
 * changes the session is looked at. */
ON_WORKER static enum step up_shared(struct prt_client *c, const struct prt_up_client *up,
                                     const struct prt_msg *m, struct prt_frame before,
                                     struct prt_run *r)
{
    struct prt_worker *w = c->worker;
    struct prt_server *s = c->server;
    size_t skip;

    if (waits_for_reset(s, m)) {
        return wait_for_answers(c, before, r);
    }
    prt_buf_reset(&w->piece);
    enum prt_up_rc rc = prt_stmts_client(&s->stmts, up, m, &w->piece, &skip);
    if (prt_buf_len(&w->piece) || w->piece.failed || skip) {
        splice(w, r, skip);
        w->gather.failed |= w->piece.failed;
    }
    c->needs = rc == PRT_UP_MORE && m->type == 'P' ? m->len + 5 : 0;
    switch (rc) {
    case PRT_UP_SEND:
        if (m->have < m->len) {
            c->drops_rest = skip == m->size;
        }
        r->at += m->size;
        return STEP_NEXT;
    case PRT_UP_WAIT:
    case PRT_UP_MORE:
        c->frame = before;
        send_up(c, r);
        return STEP_STOP;
    case PRT_UP_TERMINATE:
        return terminated(c, r);
    case PRT_UP_NO_MEMORY:
        return no_memory(c, r);
    case PRT_UP_VIOLATION:
        break;
    }
    return forbidden(c, r);
}

/* Answers of our own that wait behind nothing. Those of a batch that the server will answer are
 * sent together with its answers. */
ON_WORKER static void answer_here(struct prt_client *c)
{
    struct prt_server *s = c->server;

    if (!s || c->state != PRT_CLIENT_ACTIVE || !prt_txn_has_local(&s->txn) ||
        !prt_stmts_local(&s->stmts, &s->local)) {
        return;
    }
    if (!prt_txn_owed(&s->txn) || !prt_txn_ends_itself(&s->txn)) {
        prt_answer_send_local(s);
    }
}

/* What goes ahead of the client's first message. */
ON_WORKER static void put_ahead(struct prt_worker *w, struct prt_server *s)
{
    if (prt_buf_len(&s->ahead) || s->ahead.failed) {
        (void)prt_buf_add(&w->gather, prt_buf_data(&s->ahead), prt_buf_len(&s->ahead));
        w->gather.failed |= s->ahead.failed;
        prt_buf_reset(&s->ahead);
    }
}

static bool is_held(const struct prt_server *s)
{
    /* settings are being restored, or a cancel request may still hit what is sent now */
    return s->is_syncing || (s->cancels && prt_txn_is_settled(&s->txn)) || prt_buf_len(&s->out);
}

ON_WORKER static size_t up_leased(struct prt_client *c, const uint8_t *p, size_t n)
{
    struct prt_server *s = c->server;
    const struct prt_up_client up = {
        .names = &c->names,
        .number = (uint32_t)c->number,
        .params = c->params,
        .fans_out = s->session.fans_out,
        .may_run = prt_state_may_run,
        .ctx = c,
    };
    uint32_t max_packet = prt_max_packet(c->worker);
    struct prt_run r = {.p = p};
    struct prt_msg m;

    if (is_held(s)) {
        return 0;
    }
    prt_timer_clear(&c->timer);
    put_ahead(c->worker, s);
    while (r.at < n) {
        struct prt_frame before = c->frame;
        enum prt_frame_rc rc =
            prt_frame_next(&c->frame, PRT_FRONTEND, p + r.at, n - r.at, max_packet, &m);
        if (rc == PRT_FRAME_MSG) {
            enum step step =
                s->is_owned ? up_session(c, &m, before, &r) : up_shared(c, &up, &m, before, &r);
            if (step == STEP_STOP) {
                answer_here(c);
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
    answer_here(c);
    return r.at;
}

size_t prt_relay(struct prt_client *c, const uint8_t *p, size_t n)
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
