/* kill.c - the end of a client or a server connection because an administrator wants it.
 * Owns: nothing; while the end of a transaction is awaited, the visit that asked for it.
 * Threads: the worker of the one that is killed.
 * Idea: nothing here ends anything itself. A killed client leaves as all do, so server.c cancels,
 * rolls back and cleans as after any of them; here it is only seen what became of the transaction.
 * A plain close is no kill: PostgreSQL would run the query to its end. */
#include "proxy/proxy_int.h"

#define VERDICT_US 5000000 /* who asked is told "unknown" then; the rollback goes on */

bool prt_kill_loses(const struct prt_server *s)
{
    return s->txn.status != 'I' || s->txn.is_open;
}

ON_WORKER static void over(struct prt_visit *v, bool is_late)
{
    prt_timer_clear(&v->timer);
    v->server->killer = NULL;
    v->server = NULL;
    if (is_late) {
        v->done(v);
    }
}

static void time_up(struct prt_timer *t, int64_t now_us)
{
    prt_assert_worker();
    struct prt_visit *v = prt_container_of(t, struct prt_visit, timer);

    v->rolled_back = v->was_in_transaction ? PRT_ROLLED_BACK_UNKNOWN : PRT_ROLLED_BACK_NO;
    over(v, true);
}

/* The visit hears of the end from now on. */
ON_WORKER static void listen_to(struct prt_server *s, struct prt_visit *v)
{
    v->server = s;
    v->was_in_transaction = prt_kill_loses(s);
    v->was_open = s->txn.is_open;
    s->killer = v;
}

/* true: the end is known already. */
ON_WORKER static bool await(struct prt_worker *w, struct prt_visit *v)
{
    v->verdict = PRT_KILL_DONE;
    if (!v->server) {
        return true;
    }
    prt_timer_set(&w->wheel, &v->timer, w->now_us + VERDICT_US, time_up);
    return false;
}

ON_WORKER static bool is_refused(const struct prt_server *s, struct prt_visit *v)
{
    if (!prt_kill_loses(s) || v->force) {
        return false;
    }
    v->verdict = PRT_KILL_IN_TRANSACTION;
    v->was_in_transaction = true;
    return true;
}

bool prt_kill_client(struct prt_client *c, struct prt_visit *v)
{
    struct prt_worker *w = c->worker;
    struct prt_server *s = c->server;
    bool runs = s && prt_txn_owed(&s->txn) && !s->is_syncing;

    if (s && is_refused(s, v)) {
        return true;
    }
    if (s) {
        listen_to(s, v);
    }
    prt_client_kill(c, runs);
    return await(w, v);
}

/* Its client has left before: the work is being ended, within abandoned_grace, or undone. */
ON_WORKER static bool kill_cleaning(struct prt_server *s, struct prt_visit *v)
{
    struct prt_worker *w = s->worker;

    s->is_killed = true;
    if (s->killer) { /* somebody has asked for the same and is told */
        v->was_in_transaction = prt_kill_loses(s);
        v->rolled_back = v->was_in_transaction ? PRT_ROLLED_BACK_UNKNOWN : PRT_ROLLED_BACK_NO;
        return await(w, v);
    }
    listen_to(s, v);
    return await(w, v);
}

bool prt_kill_server(struct prt_server *s, struct prt_visit *v)
{
    switch ((enum prt_server_state)s->state) {
    case PRT_SERVER_IDLE:
        if (prt_slot_retire_idle(s->slot, PRT_CLOSE_KILL, s->worker->now_us)) {
            v->verdict = PRT_KILL_DONE;
        } /* else somebody has just got it: the next round finds it leased */
        return true;
    case PRT_SERVER_LINKED:
        if (is_refused(s, v)) {
            return true;
        }
        s->is_killed = true;
        return prt_kill_client(s->client, v);
    case PRT_SERVER_CLEANING:
        return is_refused(s, v) || kill_cleaning(s, v);
    case PRT_SERVER_DIALING:
    case PRT_SERVER_CLOSING:
        break;
    }
    v->verdict = PRT_KILL_BUSY;
    return true;
}

/* ---- what became of the transaction ---- */

void prt_kill_tag(struct prt_server *s, const struct prt_msg *m)
{
    struct prt_str tag;

    if (prt_msg_string(m, 0, &tag)) {
        s->killer->has_ended |=
            prt_str_eqz(tag, "COMMIT") || prt_str_eqz(tag, "PREPARE TRANSACTION");
        s->killer->was_undone |= prt_str_eqz(tag, "ROLLBACK");
    }
}

/* A COMMIT that was sent and not answered may have happened. Once a ROLLBACK of ours is on its way
 * everything before it is answered: whatever comes then, the end of the connection too, undoes. */
static int rolled_back(const struct prt_server *s, const struct prt_visit *v, bool is_broken)
{
    if (!v->was_in_transaction || v->has_ended) {
        return PRT_ROLLED_BACK_NO;
    }
    if (v->undoes) {
        return PRT_ROLLED_BACK_YES;
    }
    if (is_broken) {
        return prt_txn_owed(&s->txn) ? PRT_ROLLED_BACK_UNKNOWN : PRT_ROLLED_BACK_YES;
    }
    return v->was_undone || v->was_open ? PRT_ROLLED_BACK_YES : PRT_ROLLED_BACK_UNKNOWN;
}

void prt_kill_settled(struct prt_server *s, bool is_broken)
{
    struct prt_visit *v = s->killer;
    bool is_late = prt_timer_is_set(&v->timer); /* else the kill is still being begun */

    if (!is_broken && s->txn.status != 'I') {
        v->undoes = v->was_in_transaction = true; /* a BEGIN was under way, perhaps */
        return;
    }
    v->rolled_back = rolled_back(s, v, is_broken);
    over(v, is_late);
}
