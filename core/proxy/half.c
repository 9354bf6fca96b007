/* half.c - a client that sends nothing more (FIN, Terminate), but is owed answers.
 * Owns: nothing.   Threads: the client's worker.
 * Idea: PostgreSQL reads in order, so it answers everything that came before the end, and a client
 * may shut down its sending side and read on. One that has closed its socket sends the same FIN; it
 * shows the difference (RST) only when something is sent to it. So it is told again what it knows,
 * in a ParameterStatus, which a client has to take at any time: at the end, and every PROBE_US as
 * long as a server works for it. Who has gone is then treated as such, also while it waits. */
#include "proxy/proxy_int.h"

#define PROBE_US 2000000

static bool has_whole_message(const struct prt_client *c)
{
    struct prt_frame frame = c->frame;
    struct prt_msg m;

    return prt_frame_next(&frame, PRT_FRONTEND, prt_buf_data(&c->in), prt_buf_len(&c->in),
                          prt_max_packet(c->worker), &m) == PRT_FRAME_MSG &&
           m.have == m.len;
}

/* Answers will come without more from the client. A COPY that waits for data gets none. */
static bool is_owed(const struct prt_client *c)
{
    const struct prt_txn *t = c->server ? &c->server->txn : NULL;
    bool is_batch =
        t && t->is_open && !t->skips && (t->copy == PRT_COPY_NONE || t->copy == PRT_COPY_OUT);

    return t && prt_txn_owed(t) && prt_frame_is_clean(&c->frame) &&
           (is_batch || prt_txn_ends_itself(t));
}

/* Will some of what lies in `in` be used? What is not, although nothing holds it up, is the
 * beginning of a message that never comes. */
static bool is_held_up(const struct prt_client *c)
{
    const struct prt_server *s = c->server;

    if (c->has_ended || !prt_buf_len(&c->in)) {
        return false;
    }
    if (prt_buf_len(&c->out) || c->is_listening) {
        return true;
    }
    return s && (s->is_syncing || s->cancels || prt_buf_len(&s->out) ||
                 (prt_txn_owed(&s->txn) && has_whole_message(c)));
}

static bool waits(const struct prt_client *c)
{
    return c->state == PRT_CLIENT_WAITING || c->state == PRT_CLIENT_WELCOME;
}

/* Nothing of what it has been told changes by it. */
ON_WORKER static void probe(struct prt_client *c)
{
    struct prt_str name = PRT_STR("application_name"), value;
    struct prt_buf b = {0};

    if (!c->params || prt_buf_len(&c->out) ||
        (c->server && !prt_frame_is_clean(&c->server->frame))) {
        return; /* it is sent something as it is */
    }
    if (!prt_params_get(c->params, name, &value)) {
        value = PRT_STR("");
    }
    prt_put_param(&b, name, value);
    prt_client_send_buf(c, &b);
}

static void probe_again(struct prt_timer *t, int64_t now_us)
{
    struct prt_client *c = prt_container_of(t, struct prt_client, timer);

    prt_assert_worker();
    if (prt_sock_is_deaf(&c->sock)) {
        prt_client_leave_at_once(c, PRT_GONE_CLIENT_GONE);
        return;
    }
    prt_timer_set(&c->worker->wheel, &c->timer, now_us + PROBE_US, probe_again);
    probe(c);
}

/* Answers of a batch without Sync come when they are asked for. */
ON_WORKER static void ask_for_answers(struct prt_client *c)
{
    if (!c->is_flushed && !prt_txn_ends_itself(&c->server->txn)) {
        c->is_flushed = true;
        prt_server_send(c->server, "H\0\0\0\4", 5);
    }
}

/* Only in the middle of a COPY PostgreSQL has anything to say about it. */
ON_WORKER static void end(struct prt_client *c)
{
    if (c->server && c->server->txn.copy == PRT_COPY_IN && !c->has_ended) {
        prt_client_fatal(c, "08006", "unexpected EOF on client connection with an open transaction",
                         NULL, PRT_GONE_CLIENT_GONE);
    } else {
        prt_client_leave(c, PRT_GONE_CLIENT_GONE);
    }
}

void prt_client_end_when_through(struct prt_client *c)
{
    if (c->state == PRT_CLIENT_GONE || waits(c) || is_held_up(c)) {
        return;
    }
    if (!is_owed(c)) {
        end(c);
        return;
    }
    ask_for_answers(c);
    if (!prt_timer_is_set(&c->timer)) {
        prt_timer_set(&c->worker->wheel, &c->timer, c->worker->now_us + PROBE_US, probe_again);
    }
}

void prt_client_ended(struct prt_client *c)
{
    c->is_half = true;
    prt_client_set_reading(c);
    prt_client_end_when_through(c);
    if (c->state != PRT_CLIENT_GONE) {
        probe(c);
    }
}

void prt_client_quit(struct prt_client *c, enum prt_disconnect why)
{
    if (c->doom || !is_owed(c)) {
        prt_client_leave(c, why);
        return;
    }
    c->has_ended = true;
    c->doom = (uint8_t)(why + 1);
    prt_client_ended(c);
}
