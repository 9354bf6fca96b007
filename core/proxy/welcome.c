/* welcome.c - the first clients of a class: told what its servers report, once one has been seen.
 * Owns: worker->welcomes, one per class that is still unknown.   Threads: the worker.
 * Idea: one client (the asker) stands in the pool's queue, for a server that it only looks at; the
 * others wait for what comes of that. So a crowd at a new pool opens one connection per worker,
 * not one each, and a server that is away is tried once. The error of the asker is the error of
 * all; when only the asker is lost (it left, its time was up), the next one asks.
 * What is decided is told by a timer of the welcome's own, never in the middle of somebody's end,
 * and not to all in one turn. */
#include "proxy/proxy_int.h"

#include <stdlib.h>

#define STEP 256 /* clients that are told in one turn */

struct prt_welcome {
    struct prt_map_node node; /* worker->welcomes, until it is decided; key: cls */
    struct prt_class *cls;    /* alive by the identities of its clients */
    struct prt_client *asker; /* NULL: decided, or the next one is about to be chosen */
    struct prt_link parked;   /* the others, in order of arrival: login->parked */
    struct prt_timer timer;   /* tell() */
    struct prt_worker *worker;
    bool is_open;       /* in the map: who comes may join */
    bool is_telling;    /* tell() runs: it stays until that is through */
    struct prt_err err; /* of the asker, for all; rc OK: none */
};

static struct prt_str key_of(struct prt_class *const *cls)
{
    return (struct prt_str){(const char *)cls, sizeof(void *)};
}

static struct prt_welcome *find(struct prt_worker *w, struct prt_class *cls)
{
    struct prt_map_node *node = prt_map_get(&w->welcomes, key_of(&cls));

    return node ? prt_container_of(node, struct prt_welcome, node) : NULL;
}

static struct prt_welcome *welcome_new(struct prt_worker *w, struct prt_class *cls)
{
    struct prt_welcome *we = calloc(1, sizeof *we);

    if (!we) {
        return NULL;
    }
    we->worker = w;
    we->cls = cls;
    we->is_open = true;
    prt_list_init(&we->parked);
    if (!prt_map_put(&w->welcomes, &we->node, key_of(&we->cls))) {
        free(we);
        return NULL;
    }
    return we;
}

/* Nobody joins any more: who comes later asks anew. */
static void shut(struct prt_welcome *we)
{
    if (we->is_open) {
        prt_map_del(&we->worker->welcomes, &we->node);
        we->is_open = false;
    }
}

static void tell(struct prt_timer *t, int64_t now_us);

/* Without an asker: those who are left are told in a later turn; without any it is over. */
ON_WORKER static void go_on(struct prt_welcome *we)
{
    struct prt_worker *w = we->worker;

    if (we->asker || we->is_telling) {
        return;
    }
    if (!prt_list_empty(&we->parked)) {
        prt_timer_set(&w->wheel, &we->timer, w->now_us, tell);
        return;
    }
    shut(we);
    prt_timer_clear(&we->timer);
    free(we);
}

void prt_welcome_left(struct prt_client *c)
{
    struct prt_welcome *we = c->login ? c->login->welcome : NULL;

    if (!we) {
        return;
    }
    c->login->welcome = NULL;
    if (we->asker == c) {
        we->asker = NULL;
    } else {
        prt_list_del(&c->login->parked);
    }
    go_on(we);
}

/* ---- the end of its wait ---- */

static bool is_login_shorter(const struct prt_client *c)
{
    return c->worker->snap->cfg->login_timeout_us < prt_client_row(c)->acquire_timeout_us;
}

/* Its own time: the others have theirs. */
static void timeout(struct prt_timer *t, int64_t now_us)
{
    struct prt_client *c = prt_container_of(t, struct prt_client, timer);
    struct prt_err err;

    prt_assert_worker();
    if (!prt_client_unqueue(c, POOLRT_TIMEOUT)) {
        return; /* it is served in this very turn */
    }
    prt_client_count_error(c, POOLRT_TIMEOUT);
    (void)prt_fail(&err, POOLRT_TIMEOUT, "no server connection could be had within %s",
                   is_login_shorter(c) ? "auth.login_timeout" : "acquire_timeout");
    prt_login_refuse(c, &err);
}

ON_WORKER static void limit(struct prt_client *c)
{
    struct prt_worker *w = c->worker;
    int64_t us = is_login_shorter(c) ? w->snap->cfg->login_timeout_us
                                     : prt_client_row(c)->acquire_timeout_us;

    prt_timer_set(&w->wheel, &c->timer, w->now_us + us, timeout);
}

/* What the pool says to the asker holds for all. */
ON_WORKER static void failed(struct prt_client *c, poolrt_rc rc)
{
    struct prt_welcome *we = c->login->welcome;
    struct prt_err err;

    prt_class_error(c->id->cls, &err);
    if (err.rc == POOLRT_OK || rc != POOLRT_CONNECT_FAILED) {
        (void)prt_fail(&err, rc, "%s", prt_error_row(rc)->text);
    }
    we->err = err;
    shut(we);
    prt_login_refuse(c, &err); /* and with it prt_welcome_left() */
}

void prt_welcome_served(struct prt_client *c, poolrt_rc rc)
{
    if (rc != POOLRT_OK) {
        failed(c, rc);
        return;
    }
    struct prt_server *s = c->w.lease.slot->conn;
    const struct prt_params *welcome = prt_params_ref(s->params);
    (void)prt_release(c->pool->engine, c->w.lease, PRT_RELEASE_CLEAN, (uint16_t)c->worker->lane,
                      c->worker->now_us);
    prt_login_finish(c, welcome);
}

/* ---- asking ---- */

ON_WORKER static void ask(struct prt_client *c, struct prt_welcome *we)
{
    we->asker = c;
    poolrt_rc rc = prt_client_enqueue(c);
    if (rc != POOLRT_PENDING) {
        prt_welcome_served(c, rc);
    }
}

void prt_welcome_wait(struct prt_client *c)
{
    struct prt_worker *w = c->worker;
    struct prt_welcome *we = find(w, c->id->cls);
    bool is_first = !we;

    if (is_first) {
        we = welcome_new(w, c->id->cls);
    }
    if (!we) {
        prt_client_fatal(c, "53200", "out of memory", NULL, PRT_GONE_NO_MEMORY);
        return;
    }
    c->login->welcome = we;
    c->request_us = w->now_us;
    prt_client_set_state(c, PRT_CLIENT_WELCOME);
    limit(c);
    if (is_first) {
        ask(c, we);
    } else {
        prt_list_push(&we->parked, &c->login->parked);
    }
}

ON_WORKER static struct prt_client *next_of(struct prt_welcome *we)
{
    struct prt_link *l = prt_list_pop(&we->parked);

    return l ? prt_container_of(l, struct prt_login_try, parked)->client : NULL;
}

/* `c` is not among the parked any more. */
ON_WORKER static void tell_one(struct prt_welcome *we, struct prt_client *c)
{
    const struct prt_params *known = prt_login_welcome(prt_class_user(we->cls));

    if (!known && !we->err.rc) {
        ask(c, we);
        return;
    }
    c->login->welcome = NULL;
    if (known) {
        prt_login_finish(c, known);
    } else {
        prt_login_refuse(c, &we->err);
    }
}

/* The asker is done, or lost. */
static void tell(struct prt_timer *t, int64_t now_us)
{
    struct prt_welcome *we = prt_container_of(t, struct prt_welcome, timer);
    struct prt_client *c;

    prt_assert_worker();
    we->is_telling = true;
    for (int i = 0; i < STEP && !we->asker && (c = next_of(we)); i++) {
        tell_one(we, c);
    }
    we->is_telling = false;
    go_on(we);
}
