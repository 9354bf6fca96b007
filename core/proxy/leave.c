/* leave.c - the end of a client: why, what is let go of, what is said.
 * Owns: nothing.   Threads: the client's worker.
 * Idea: however it ends, it ends in leave(), once: counted, logged, out of the queue and off its
 * server, out of the worker's set. What remains is the struct, freed when nothing names it. */
#include "proxy/proxy_int.h"

#include <string.h>

const char *prt_disconnect_name(enum prt_disconnect why)
{
    static const char *const name[] = {
#define X(id, text) text,
        PRT_DISCONNECTS(X)
#undef X
    };

    return name[why];
}

void prt_client_log(const struct prt_client *c, enum prt_log_level level, const char *event,
                    const char *key, const char *text)
{
    const struct prt_login_try *l = c->login;
    const struct prt_identity *id = c->id;
    char from[PRT_PEER_TEXT];

    prt_log(level, event, prt_kv_int("client", (int64_t)c->number),
            prt_kv_str("from", prt_peer_text(&c->peer, from)),
            prt_kv_str("user", id ? id->user : prt_str_of(l ? l->user : NULL)),
            prt_kv_str("database", id ? id->database : prt_str_of(l ? l->database : NULL)),
            prt_kv_z(key, text));
}

ON_WORKER static void let_go_of_server(struct prt_client *c, bool at_once)
{
    struct prt_server *s = c->server;

    if (!s) {
        return;
    }
    c->server = NULL;
    s->client = NULL;
    prt_server_abandon(s, prt_client_is_torn(c), at_once);
}

/* Everything but the struct itself, which an event of this turn or the pool's queue may still name.
 */
ON_WORKER static void release_all(struct prt_client *c)
{
    struct prt_worker *w = c->worker;

    if (c->sock.in_burst) {
        prt_burst_flush(w);
    }
    bool lingers = c->doom != PRT_GONE_NO_MEMORY + 1 && prt_linger_begin(w, &c->sock, &c->out);

    prt_timer_clear(&c->timer);
    prt_sock_close(&w->io, &c->sock);
    prt_worker_unlist(w, &c->link);
    if (c->is_listed) {
        prt_registry_del(&w->px->registry, &c->cancel);
    }
    prt_login_end(c);
    if (c->in.p) {
        prt_client_used(c, prt_buf_len(&c->in));
    }
    prt_buf_free(&c->out);
    if (c->params) {
        prt_params_unref(c->params);
    }
    if (c->startup) {
        prt_params_unref(c->startup);
        prt_params_unref(c->journal);
        prt_params_unref(c->channels);
    }
    prt_listen_end(c);
    prt_names_free(c->names);
    prt_client_drop_news(c);
    if (!lingers) {
        prt_worker_lost_client(w);
    }
}

void prt_client_bury(struct prt_client *c)
{
    prt_identity_unref(c->worker, c->id);
    if (c->pool) {
        prt_pools_leave(c->pool);
    }
    prt_list_push(&c->worker->graves, &c->link);
}

ON_WORKER static void leave(struct prt_client *c, enum prt_disconnect why, bool at_once)
{
    struct prt_worker *w = c->worker;

    if (c->state == PRT_CLIENT_GONE) {
        return;
    }
    if (c->doom) {
        why = (enum prt_disconnect)(c->doom - 1);
    }
    prt_count(&w->n.disconnects[why], 1);
    if (w->snap->cfg->log_connections && why != PRT_GONE_CANCEL_REQUEST) {
        prt_client_log(c, PRT_LOG_INFO, "disconnect", "reason", prt_disconnect_name(why));
    }
    bool is_out = prt_client_unqueue(c, POOLRT_CANCELLED);
    let_go_of_server(c, at_once);
    prt_client_set_state(c, PRT_CLIENT_GONE);
    release_all(c);
    if (is_out) {
        prt_client_bury(c);
    } /* else: prt_client_served() does, when it comes */
}

void prt_client_leave(struct prt_client *c, enum prt_disconnect why)
{
    leave(c, why, false);
}

void prt_client_leave_at_once(struct prt_client *c, enum prt_disconnect why)
{
    leave(c, why, true);
}

/* In the middle of a row, say, it would be taken for a part of that. */
ON_WORKER static void say_fatal(struct prt_client *c, const char *sqlstate, const char *text,
                                const char *hint)
{
    struct prt_buf b = {0};

    if (c->server && !prt_frame_is_clean(&c->server->frame)) {
        return;
    }
    prt_put_error(&b, "FATAL", sqlstate, prt_str_of(text), NULL, hint);
    if (!b.failed) {
        prt_client_send(c, prt_buf_data(&b), prt_buf_len(&b));
    }
    prt_buf_free(&b);
}

void prt_client_fatal(struct prt_client *c, const char *sqlstate, const char *text,
                      const char *hint, enum prt_disconnect why)
{
    if (c->state != PRT_CLIENT_GONE) {
        say_fatal(c, sqlstate, text, hint);
        leave(c, why, false);
    }
}

void prt_client_kill(struct prt_client *c, bool at_once)
{
    c->doom = 0; /* whatever it was about to leave for */
    say_fatal(c, "57P01", "terminating connection due to administrator command", NULL);
    leave(c, PRT_GONE_KILLED, at_once);
}

void prt_client_leave_orderly(struct prt_client *c)
{
    if (c->worker->is_draining) {
        prt_client_fatal(c, "57P01", "terminating connection: poolrt is shutting down", NULL,
                         PRT_GONE_SHUTDOWN);
    } else {
        prt_client_fatal(c, "57P01", "terminating connection: its pool or its user has changed",
                         "Connect again.", PRT_GONE_POOL_CLOSED);
    }
}

bool prt_client_is_between_transactions(const struct prt_client *c)
{
    const struct prt_server *s = c->server;

    return !s || (prt_txn_may_release(&s->txn) && prt_server_is_settled(s));
}

void prt_client_drain(struct prt_client *c)
{
    c->leaves = true;
    if (c->state < PRT_CLIENT_IDLE || prt_client_is_between_transactions(c)) {
        prt_client_leave_orderly(c);
    }
}

static bool is_same_secret(const struct prt_config *a, const struct prt_config *b,
                           struct prt_str user)
{
    const struct prt_user_config *x = prt_config_user(a, user), *y = prt_config_user(b, user);

    return (!x && !y) || (x && y && strcmp(x->secret, y->secret) == 0);
}

void prt_client_configure(struct prt_client *c, const struct prt_config *old)
{
    const struct prt_config *cfg = c->worker->snap->cfg;

    if (c->state < PRT_CLIENT_IDLE || c->leaves) {
        return; /* a login that is under way is judged at its end */
    }
    const struct prt_pool_config *row = prt_config_pool(cfg, prt_str_of(c->pool->name));
    const struct prt_login *login = prt_class_user(c->id->cls);
    bool is_other_user = row && ((row->user != NULL) != login->is_forced_user ||
                                 (row->user && strcmp(row->user, login->user) != 0));
    if (row && !is_other_user && is_same_secret(old, cfg, c->id->user)) {
        return;
    }
    c->leaves = true;
    if (c->state != PRT_CLIENT_WAITING && prt_client_is_between_transactions(c)) {
        prt_client_leave_orderly(c);
    }
}
