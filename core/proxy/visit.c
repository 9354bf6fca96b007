/* visit.c - who is there: the clients and servers of all workers, one by one.
 * Owns: a visit, from the asking to its done().   Threads: control asks; each worker in turn.
 * Idea: one struct goes from worker to worker and fills the page that was asked for on its way: no
 * copy of all clients is ever made, nothing is merged, and who was asked for by number ends it.
 * A worker looks at a few hundred of them, then serves its clients for a millisecond. Its place in
 * the list is kept right by prt_worker_unlist(). Rejected: a copy per worker, put together by
 * control: it grows with the number of clients, not with the page.
 * Servers move between workers while it goes round, so one may be missed, or seen twice; who is
 * asked for by number is looked for again before it is said not to be there. */
#include "proxy/proxy_int.h"

#include <string.h>

#define STEP 256        /* objects in one go */
#define PAUSE_US 1000   /* between two */
#define ROUNDS_BY_ID 3u /* for one that may be moving */

/* ---- a row ---- */

static void put(struct prt_visit *v, struct prt_row *r, enum prt_row_text which, struct prt_str s)
{
    uint32_t at = (uint32_t)prt_buf_len(&v->text);

    if (s.n && prt_buf_add(&v->text, s.p, s.n)) {
        r->text[which].at = at;
        r->text[which].n = (uint32_t)s.n;
    }
}

static void put_setting(struct prt_visit *v, struct prt_row *r, enum prt_row_text which,
                        const struct prt_params *params, struct prt_str name)
{
    struct prt_str value;

    if (params && prt_params_get(params, name, &value)) {
        put(v, r, which, value);
    }
}

/* In the queue, or for one that is there for it. */
static bool waits(const struct prt_client *c)
{
    return c->is_queued || c->state == PRT_CLIENT_WELCOME;
}

/* What a client adds, be the row a session's or a connection's. */
static void put_client(struct prt_visit *v, struct prt_row *r, const struct prt_client *c)
{
    char from[PRT_PEER_TEXT];

    put(v, r, PRT_ROW_CLIENT, prt_peer_text(&c->peer, from));
    put(v, r, PRT_ROW_APPLICATION, c->id->application);
    put(v, r, PRT_ROW_POOL, prt_str_of(c->pool->name));
    if (waits(c) || c->server) {
        r->request_us = c->worker->now_us - c->request_us;
    }
    if (c->is_queued) {
        r->position = prt_waiter_position(c->pool->engine, &c->w, c->worker->now_us);
    }
}

static void put_server(struct prt_visit *v, struct prt_row *r, const struct prt_server *s)
{
    put(v, r, PRT_ROW_SERVER, prt_str_of(s->dial.server_addr));
    r->pid = s->dial.pid;
    r->pinned = s->pinned;
    r->in_transaction = prt_kill_loses(s);
}

static void put_login(struct prt_visit *v, struct prt_row *r, struct prt_class *cls)
{
    const struct prt_login *login = prt_class_user(cls);

    put(v, r, PRT_ROW_USER, prt_str_of(login->user));
    put(v, r, PRT_ROW_DATABASE, prt_str_of(login->dbname));
}

static int64_t age_of(const struct prt_client *c)
{
    return c->worker->now_us - (int64_t)c->since_s * 1000000;
}

static void session_row(struct prt_visit *v, struct prt_row *r, const struct prt_client *c)
{
    r->age_us = age_of(c);
    put(v, r, PRT_ROW_USER, c->id->user);
    put(v, r, PRT_ROW_DATABASE, c->id->database);
    put_client(v, r, c);
    put_setting(v, r, PRT_ROW_TIMEZONE, c->params, PRT_STR("TimeZone"));
    put_setting(v, r, PRT_ROW_DATESTYLE, c->params, PRT_STR("DateStyle"));
    if (c->server) {
        r->other = c->server->number;
        put_server(v, r, c->server);
    }
    prt_sock_count(&c->sock, &r->io);
}

static void request_row(struct prt_visit *v, struct prt_row *r, const struct prt_client *c)
{
    r->is_request = true;
    r->other = c->number;
    r->age_us = age_of(c);
    put_login(v, r, c->id->cls);
    put_client(v, r, c);
    prt_sock_count(&c->sock, &r->io);
}

static void connection_row(struct prt_visit *v, struct prt_row *r, const struct prt_server *s)
{
    r->age_us = s->worker->now_us - s->slot->opened_us;
    put_login(v, r, s->cls);
    put_setting(v, r, PRT_ROW_TIMEZONE, s->params, PRT_STR("TimeZone"));
    put_setting(v, r, PRT_ROW_DATESTYLE, s->params, PRT_STR("DateStyle"));
    put_server(v, r, s);
    if (s->client) {
        r->other = s->client->number;
        put_client(v, r, s->client);
    } else {
        put(v, r, PRT_ROW_POOL, prt_str_of(s->pool->name));
    }
    prt_sock_count(&s->sock, &r->io);
}

/* ---- does it match? ---- */

static enum prt_row_state state_of_session(const struct prt_client *c)
{
    const struct prt_server *s = c->server;

    if (waits(c)) {
        return PRT_ROW_WAITING;
    }
    if (!s) {
        return PRT_ROW_IDLE;
    }
    return prt_txn_owed(&s->txn) || s->is_syncing ? PRT_ROW_ACTIVE
           : prt_kill_loses(s)                    ? PRT_ROW_IDLE_IN_TRANSACTION
                                                  : PRT_ROW_IDLE;
}

static enum prt_row_state state_of_connection(const struct prt_server *s)
{
    return s->state == PRT_SERVER_IDLE      ? PRT_ROW_IDLE
           : s->state == PRT_SERVER_CLOSING ? PRT_ROW_CLOSING
                                            : PRT_ROW_ACTIVE;
}

static bool is_pool(const struct prt_visit *v, const struct prt_proxy_pool *pp)
{
    static const char prefix[] = "pool_";
    const size_t n = sizeof prefix - 1;

    return !v->pool[0] || strcmp(v->pool, pp->name) == 0 ||
           (strncmp(v->pool, prefix, n) == 0 && strcmp(v->pool + n, pp->name) == 0);
}

static bool matches(const struct prt_visit *v, uint64_t number, enum prt_row_state state,
                    const struct prt_proxy_pool *pp, struct prt_str user)
{
    return (!v->number || v->number == number) && (!v->states || (v->states >> state & 1)) &&
           is_pool(v, pp) && (!v->user[0] || prt_str_eqz(user, v->user));
}

/* The row for one that matches; NULL: it is not on the page. */
static struct prt_row *row_for(struct prt_visit *v, uint64_t number, enum prt_row_state state)
{
    if (v->matches++ < v->skip || v->n_rows == v->want) {
        return NULL;
    }
    struct prt_row *r = &v->rows[v->n_rows++];
    *r = (struct prt_row){
        .number = number, .state = (uint8_t)state, .position = -1, .request_us = -1};
    return r;
}

/* ---- one client, one server; false: v is not here any more ---- */

ON_WORKER static bool look_at_client(struct prt_visit *v, struct prt_client *c)
{
    if (c->state < PRT_CLIENT_WELCOME || (!v->wants_sessions && !c->is_queued)) {
        return true;
    }
    enum prt_row_state state = state_of_session(c);
    struct prt_str user = v->wants_sessions
                              ? c->id->user
                              : prt_str_of(((struct prt_login *)prt_class_user(c->id->cls))->user);
    if (!matches(v, c->number, state, c->pool, user)) {
        return true;
    }
    struct prt_row *r = row_for(v, c->number, state);
    if (r && v->wants_sessions) {
        session_row(v, r, c);
    } else if (r) {
        request_row(v, r, c);
    }
    return !v->kills || prt_kill_client(c, v);
}

ON_WORKER static bool look_at_server(struct prt_visit *v, struct prt_server *s)
{
    const struct prt_login *login = prt_class_user(s->cls);
    enum prt_row_state state = state_of_connection(s);

    if (!matches(v, s->number, state, s->pool, prt_str_of(login->user))) {
        return true;
    }
    struct prt_row *r = row_for(v, s->number, state);
    if (r) {
        connection_row(v, r, s);
    }
    if (!v->kills) {
        return true;
    }
    bool is_here = prt_kill_server(s, v);
    if (is_here && v->verdict == PRT_KILL_NOT_FOUND) {
        v->n_rows = 0; /* it is changing hands: seen, and not met */
        v->matches = 0;
        prt_buf_reset(&v->text);
    }
    return is_here;
}

/* ---- the way ---- */

static void arrive(void *owner, struct prt_mail *mail);

ON_WORKER static void go_on(struct prt_visit *v)
{
    struct prt_proxy *px = v->px;
    unsigned hops = px->n_started * (v->number ? ROUNDS_BY_ID : 1);

    v->hop++;
    if ((v->number && v->matches) || v->hop >= hops) {
        v->done(v);
        return;
    }
    prt_mailbox_post(&px->worker[v->hop % px->n_started].mail, &v->mail);
}

/* The first of those that are here begins. */
ON_WORKER static void begin(struct prt_worker *w)
{
    if (prt_list_empty(&w->visits)) {
        w->visit_at = NULL;
        return;
    }
    struct prt_visit *v = prt_container_of(w->visits.next, struct prt_visit, link);
    w->visits_clients = v->wants_sessions;
    w->visit_at = w->visits_clients ? w->clients.next : w->servers.next;
    prt_timer_set(&w->wheel, &w->visit_timer, w->now_us, prt_visit_continue);
}

/* The next client or server; NULL: all were seen. */
ON_WORKER static struct prt_link *next_of(struct prt_worker *w)
{
    if (!w->visits_clients && w->visit_at == &w->servers) {
        w->visits_clients = true;
        w->visit_at = w->clients.next;
    }
    if (w->visits_clients && w->visit_at == &w->clients) {
        return NULL;
    }
    struct prt_link *l = w->visit_at;
    w->visit_at = l->next; /* before it is looked at: it may leave then */
    return l;
}

ON_WORKER static void leave(struct prt_worker *w, struct prt_visit *v, bool is_here)
{
    prt_list_del(&v->link);
    begin(w);
    if (is_here) {
        go_on(v);
    } /* else whoever has it calls done() */
}

void prt_visit_continue(struct prt_timer *t, int64_t now_us)
{
    prt_assert_worker();
    struct prt_worker *w = prt_container_of(t, struct prt_worker, visit_timer);
    struct prt_visit *v = prt_container_of(w->visits.next, struct prt_visit, link);

    for (int i = 0; i < STEP; i++) {
        struct prt_link *l = next_of(w);
        bool is_over = !l || (v->number && v->matches);
        if (is_over) {
            leave(w, v, true);
            return;
        }
        bool is_here = w->visits_clients
                           ? look_at_client(v, prt_container_of(l, struct prt_client, link))
                           : look_at_server(v, prt_container_of(l, struct prt_server, link));
        if (!is_here) {
            leave(w, v, false);
            return;
        }
    }
    prt_timer_set(&w->wheel, t, now_us + PAUSE_US, prt_visit_continue);
}

static void arrive(void *owner, struct prt_mail *mail)
{
    prt_assert_worker();
    struct prt_worker *w = owner;
    struct prt_visit *v = prt_container_of(mail, struct prt_visit, mail);

    prt_list_push(&w->visits, &v->link);
    if (w->visits.next == &v->link) {
        begin(w);
    }
}

void prt_proxy_visit(struct prt_proxy *px, struct prt_visit *v)
{
    v->px = px;
    v->mail.deliver = arrive;
    prt_list_init(&v->link);
    if (px->n_started == 0) {
        v->done(v); /* nobody is served yet */
        return;
    }
    prt_mailbox_post(&px->worker[0].mail, &v->mail);
}
