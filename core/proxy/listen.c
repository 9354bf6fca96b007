/* listen.c - LISTEN in the modes that share servers: which client wants which channel.
 * Owns: the subscriptions of a worker's clients, and its branches; the pools' lists of hubs.
 * Threads: worker; the lists under px->hub_mu.   Idea: a server that many clients use in turn
 * cannot listen for one of them, so one connection listens for all (hear.c) and each worker hands
 * out what its clients have asked for. Each LISTEN of a client asks that connection again, even if
 * it listens to the channel already: the answer comes behind everything that was notified before,
 * so the client hears what is sent after its LISTEN, as it would on a connection of its own. Those
 * who come while a question is out share the next one. */
#include "proxy/listen_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHANNELS_MAX 4096 /* of one client */
#define HUBS_MAX 16       /* of one pool: databases before and after a reload, encodings */
#define WAIT_MIN_US                                                                                \
    100000 /* acquire_timeout = 0 means: do not queue; but a LISTEN takes a moment */

/** One channel of one client. */
struct sub {
    struct prt_link of_ears; /* first: prt_listen_next() walks by it */
    struct prt_link of_branch;
    struct prt_client *client;
    struct prt_branch *branch;
    struct prt_timer timer; /* until it hears */
};
struct prt_ears {
    struct prt_link subs; /* in order of subscription */
    unsigned n;
    struct prt_hub *hub;
};
static_assert(offsetof(struct sub, of_ears) == 0, "prt_listen_next() takes one for the other");

/* ---- hubs ---- */

/* Encodings have many spellings ("utf-8", "UTF8"); PostgreSQL looks at letters and digits alone. */
static void encoding_of(const struct prt_client *c, char *out, size_t cap)
{
    struct prt_str value;
    size_t n = 0;

    if (c->params && prt_params_get(c->params, PRT_STR("client_encoding"), &value)) {
        for (size_t i = 0; i < value.n && n + 1 < cap; i++) {
            char ch = value.p[i], upper = (char)(ch & ~32);
            if (upper >= 'A' && upper <= 'Z') {
                out[n++] = upper;
            } else if (ch >= '0' && ch <= '9') {
                out[n++] = ch;
            }
        }
    }
    out[n] = '\0';
}

static struct prt_hub *hub_new(struct prt_proxy_pool *pp, struct prt_worker *home,
                               const char *dbname, const char *encoding)
{
    struct prt_hub *h = calloc(1, sizeof *h + pp->px->n_workers * sizeof *h->side);

    if (!h) {
        return NULL;
    }
    h->dbname = strdup(dbname);
    if (!h->dbname) {
        free(h);
        return NULL;
    }
    h->pool = pp;
    h->home = home;
    (void)snprintf(h->encoding, sizeof h->encoding, "%s", encoding);
    if (encoding[0]) {
        int n = snprintf(h->settings, sizeof h->settings, "client_encoding%c%s", '\0', encoding);
        h->settings_n = (size_t)n + 1;
    }
    h->close_mail.deliver = prt_hub_close;
    h->redial_mail.deliver = prt_hub_redial;
    h->sock = (struct prt_sock){.fd = -1, .ticket = PRT_NO_TICKET};
    prt_list_init(&h->link);
    prt_list_init(&h->todo);
    prt_list_init(&h->sent);
    prt_list_init(&h->ping.link);
    return h;
}

/* Under hub_mu. */
static struct prt_hub *find_hub(struct prt_proxy_pool *pp, struct prt_worker *home,
                                const char *dbname, const char *encoding, struct prt_err *err)
{
    unsigned n = 0;

    for (struct prt_hub *h = pp->hubs; h; h = h->next, n++) {
        if (strcmp(h->dbname, dbname) == 0 && strcmp(h->encoding, encoding) == 0) {
            return h;
        }
    }
    if (pp->is_deaf) {
        (void)prt_fail(err, POOLRT_DRAINING, "database \"%s\" is being removed", pp->name);
        return NULL;
    }
    if (n == HUBS_MAX) {
        (void)prt_fail(err, POOLRT_EXHAUSTED,
                       "clients of \"%s\" listen in %u different encodings already", pp->name, n);
        return NULL;
    }
    struct prt_hub *h = hub_new(pp, home, dbname, encoding);
    if (!h) {
        (void)prt_fail(err, POOLRT_NOMEM, "no memory to listen");
        return NULL;
    }
    h->next = pp->hubs;
    pp->hubs = h;
    return h;
}

/* Under hub_mu. */
static void note_user(struct prt_hub *h, const char *user)
{
    unsigned known = h->users < PRT_LISTEN_USERS ? h->users : PRT_LISTEN_USERS;

    for (unsigned i = 0; i < known; i++) {
        if (strcmp(h->user[i], user) == 0) {
            return;
        }
    }
    if (prt_str_copy(h->user[h->users % PRT_LISTEN_USERS], sizeof h->user[0], prt_str_of(user))) {
        h->users++;
    }
}

void prt_hub_user(struct prt_hub *h, unsigned n, char out[PRT_NAME_MAX + 1], unsigned *users)
{
    pthread_mutex_t *mu = &h->pool->px->hub_mu;

    (void)pthread_mutex_lock(mu);
    *users = h->users < PRT_LISTEN_USERS ? h->users : PRT_LISTEN_USERS;
    memcpy(out, h->user[*users ? n % *users : 0], PRT_NAME_MAX + 1);
    (void)pthread_mutex_unlock(mu);
}

ON_WORKER static struct prt_hub *hub_of(struct prt_client *c, struct prt_err *err)
{
    const struct prt_login *login = prt_class_user(c->id->cls);
    pthread_mutex_t *mu = &c->pool->px->hub_mu;
    char encoding[sizeof((struct prt_hub *)0)->encoding];

    encoding_of(c, encoding, sizeof encoding);
    (void)pthread_mutex_lock(mu);
    struct prt_hub *h = find_hub(c->pool, c->worker, login->dbname, encoding, err);
    if (h) {
        note_user(h, login->user);
    }
    (void)pthread_mutex_unlock(mu);
    return h;
}

/* ---- branches ---- */

static bool is_bare(const struct prt_branch *b)
{
    return prt_list_empty(&b->heard) && prt_list_empty(&b->asked) && prt_list_empty(&b->fresh);
}

/* All of `from` behind `to`. */
static void splice(struct prt_link *to, struct prt_link *from)
{
    struct prt_link *l;

    while ((l = prt_list_pop(from))) {
        prt_list_push(to, l);
    }
}

ON_WORKER static struct prt_branch *branch_new(struct prt_hub *h, unsigned lane,
                                               struct prt_str channel)
{
    struct prt_branch *b = calloc(1, sizeof *b);

    if (!b || !prt_str_copy(b->name, sizeof b->name, channel) ||
        !prt_map_put(&h->side[lane], &b->node, prt_str_of(b->name))) {
        free(b);
        return NULL;
    }
    b->hub = h;
    b->lane = lane;
    prt_list_init(&b->heard);
    prt_list_init(&b->asked);
    prt_list_init(&b->fresh);
    prt_list_init(&b->of_channel);
    prt_list_init(&b->of_answer);
    /* relaxed: a client of this thread keeps the pool meanwhile */
    atomic_fetch_add_explicit(&h->busy, 1, memory_order_relaxed);
    return b;
}

ON_WORKER static void branch_free(struct prt_branch *b)
{
    struct prt_hub *h = b->hub;

    prt_assert(is_bare(b) && !b->is_out);
    prt_map_del(&h->side[b->lane], &b->node);
    if (h->side[b->lane].n == 0) {
        prt_map_fini(&h->side[b->lane]);
    }
    free(b->last);
    free(b->why);
    free(b);
    /* release: pairs with prt_listen_is_over(), after which the hub is freed */
    atomic_fetch_sub_explicit(&h->busy, 1, memory_order_release);
}

/* Ask the home what is to be asked now, if anything. */
ON_WORKER static void pump(struct prt_branch *b)
{
    if (b->is_out || (prt_list_empty(&b->fresh) && !prt_list_empty(&b->heard))) {
        return;
    }
    b->word = prt_list_empty(&b->fresh) ? PRT_ASK_FORGET : PRT_ASK_LISTEN;
    splice(&b->asked, &b->fresh);
    b->is_out = true;
    b->mail.deliver = prt_hub_asked;
    prt_mailbox_post(&b->hub->home->mail, &b->mail);
}

/* ---- subscriptions ---- */

ON_WORKER static void sub_free(struct sub *s)
{
    struct prt_client *c = s->client;
    struct prt_branch *b = s->branch;
    struct prt_ears *e = c->ears;

    prt_assert(e && e->n > 0);
    prt_timer_clear(&s->timer);
    prt_list_del(&s->of_branch);
    prt_list_del(&s->of_ears);
#ifndef __clang_analyzer__ /* it does not see that no list has it any more */
    free(s);
#endif
    if (--e->n == 0) {
        free(e);
        c->ears = NULL;
    }
    pump(b);
}

ON_WORKER static void fail_sub(struct sub *s, const struct prt_err *err)
{
    static struct prt_log_limit limit;
    struct prt_client *c = s->client;
    struct prt_err own = *err;

    prt_log_limited(&limit, PRT_LOG_WARN, "listen_failed", prt_kv_int("client", (int64_t)c->number),
                    prt_kv_z("pool", c->pool->name), prt_kv_z("channel", s->branch->name),
                    prt_kv_z("error", err->text));
    sub_free(s);
    prt_client_listening(c, &own);
}

static void wait_over(struct prt_timer *t, int64_t now_us)
{
    struct sub *s = prt_container_of(t, struct sub, timer);
    const struct prt_err *last = s->branch->last;
    struct prt_err err;

    prt_assert_worker();
    (void)prt_fail(&err, POOLRT_TIMEOUT, "could not listen within acquire_timeout%s%.300s",
                   last ? ": " : "", last ? last->text : "");
    fail_sub(s, &err);
}

ON_WORKER static struct sub *sub_new(struct prt_client *c, struct prt_branch *b)
{
    struct prt_worker *w = c->worker;
    int64_t wait = prt_client_row(c)->acquire_timeout_us;
    struct sub *s = calloc(1, sizeof *s);

    if (!s) {
        return NULL;
    }
    s->client = c;
    s->branch = b;
    prt_list_push(&c->ears->subs, &s->of_ears);
    prt_list_push(&b->fresh, &s->of_branch);
    c->ears->n++;
    prt_timer_set(&w->wheel, &s->timer, w->now_us + (wait > WAIT_MIN_US ? wait : WAIT_MIN_US),
                  wait_over);
    return s;
}

static struct sub *sub_of(const struct prt_ears *e, const struct prt_branch *b)
{
    for (struct prt_link *l = e->subs.next; l != &e->subs; l = l->next) {
        struct sub *s = prt_container_of(l, struct sub, of_ears);
        if (s->branch == b) {
            return s;
        }
    }
    return NULL;
}

/* As PostgreSQL cuts identifiers: not inside of a character. */
static struct prt_str clip(struct prt_str name)
{
    if (name.n > PRT_NAME_MAX) {
        name.n = PRT_NAME_MAX;
        while (name.n && ((unsigned char)name.p[name.n] & 0xc0) == 0x80) {
            name.n--;
        }
    }
    return name;
}

static struct prt_branch *branch_of(const struct prt_ears *e, unsigned lane, struct prt_str channel)
{
    struct prt_map_node *node = prt_map_get(&e->hub->side[lane], channel);

    return node ? prt_container_of(node, struct prt_branch, node) : NULL;
}

ON_WORKER static bool make_ears(struct prt_client *c, struct prt_err *err)
{
    struct prt_hub *h = hub_of(c, err);

    if (!h) {
        return false;
    }
    c->ears = calloc(1, sizeof *c->ears);
    if (!c->ears) {
        (void)prt_fail(err, POOLRT_NOMEM, "no memory to listen");
        return false;
    }
    prt_list_init(&c->ears->subs);
    c->ears->hub = h;
    return true;
}

ON_WORKER static void drop_if_unused(struct prt_client *c)
{
    if (c->ears->n == 0) {
        free(c->ears);
        c->ears = NULL;
    }
}

ON_WORKER static poolrt_rc subscribe(struct prt_client *c, struct prt_str channel,
                                     struct prt_err *err)
{
    struct prt_branch *b = branch_of(c->ears, c->worker->lane, channel);

    if (b && sub_of(c->ears, b)) {
        return POOLRT_OK;
    }
    if (c->ears->n == CHANNELS_MAX) {
        (void)prt_fail(err, POOLRT_EXHAUSTED, "a client may listen to %d channels", CHANNELS_MAX);
        memcpy(err->sqlstate, "53400", sizeof err->sqlstate);
        return err->rc;
    }
    b = b ? b : branch_new(c->ears->hub, c->worker->lane, channel);
    if (!b) {
        return prt_fail(err, POOLRT_NOMEM, "no memory to listen");
    }
    if (!sub_new(c, b)) {
        if (is_bare(b) && !b->is_out) {
            branch_free(b);
        }
        return prt_fail(err, POOLRT_NOMEM, "no memory to listen");
    }
    pump(b);
    return POOLRT_PENDING;
}

poolrt_rc prt_listen_add(struct prt_client *c, struct prt_str channel, struct prt_err *err)
{
    channel = clip(channel);
    if (channel.n == 0 || memchr(channel.p, 0, channel.n)) {
        (void)prt_fail(err, POOLRT_PROTOCOL, "zero-length delimited identifier");
        memcpy(err->sqlstate, "42601", sizeof err->sqlstate);
        return err->rc;
    }
    if (c->worker->is_ending) {
        return prt_fail(err, POOLRT_DRAINING, "poolrt is shutting down");
    }
    if (!c->ears && !make_ears(c, err)) {
        return err->rc;
    }
    /* relaxed: whoever sees it later is refused by the home */
    bool is_over = atomic_load_explicit(&c->ears->hub->is_over, memory_order_relaxed);
    poolrt_rc rc = is_over ? prt_fail(err, POOLRT_DRAINING, "the pool is being closed")
                           : subscribe(c, channel, err);
    drop_if_unused(c);
    return rc;
}

void prt_listen_del(struct prt_client *c, struct prt_str channel)
{
    struct prt_branch *b = c->ears ? branch_of(c->ears, c->worker->lane, clip(channel)) : NULL;
    struct sub *s = b ? sub_of(c->ears, b) : NULL;

    if (s) {
        sub_free(s);
    }
}

bool prt_listen_next(const struct prt_client *c, const void **at, struct prt_str *channel)
{
    const struct prt_ears *e = c->ears;
    const struct prt_link *l = e ? (*at ? *at : e->subs.next) : NULL;

    if (!l || l == &e->subs) {
        return false;
    }
    const struct sub *s = (const void *)l;
    *channel = prt_str_of(s->branch->name);
    *at = l->next;
    return true;
}

void prt_listen_end(struct prt_client *c)
{
    while (c->ears) {
        sub_free(prt_container_of(c->ears->subs.next, struct sub, of_ears));
    }
}

/* ---- answers of the home ---- */

/* Callbacks may end any subscription, their own and others': each step begins anew at the front.
 * What they add goes to `fresh`, for the mail still counts as out. */
ON_WORKER static void now_heard(struct prt_branch *b)
{
    const struct prt_err ok = {.rc = POOLRT_OK};
    struct prt_link *l;

    free(b->last);
    b->last = NULL;
    while ((l = prt_list_pop(&b->asked))) {
        struct sub *s = prt_container_of(l, struct sub, of_branch);
        prt_list_push(&b->heard, l);
        prt_timer_clear(&s->timer);
        prt_client_listening(s->client, &ok);
    }
}

ON_WORKER static void refused(struct prt_branch *b)
{
    struct prt_link *l;
    struct prt_err err;

    (void)prt_fail(&err, POOLRT_NOMEM, "no memory to listen");
    if (b->last) {
        err = *b->last;
    }
    while ((l = prt_list_pop(&b->asked))) {
        fail_sub(prt_container_of(l, struct sub, of_branch), &err);
    }
}

/* Those who still wait come before those who have come meanwhile. */
static void ask_again(struct prt_branch *b)
{
    splice(&b->asked, &b->fresh);
    splice(&b->fresh, &b->asked);
}

void prt_branch_answered(void *owner, struct prt_mail *mail)
{
    struct prt_branch *b = prt_container_of(mail, struct prt_branch, mail);

    prt_assert_worker();
    prt_assert(b->is_out && b->lane == ((struct prt_worker *)owner)->lane);
    if (b->why) {
        free(b->last);
        b->last = b->why;
        b->why = NULL;
    }
    switch ((enum prt_branch_word)b->word) {
    case PRT_IS_HEARD:
        now_heard(b);
        break;
    case PRT_NOT_YET:
        ask_again(b);
        break;
    case PRT_REFUSED:
        refused(b);
        break;
    default:
        prt_assert(b->word == PRT_FORGOTTEN);
        break;
    }
    b->is_out = false;
    if (b->word == PRT_FORGOTTEN && is_bare(b)) {
        branch_free(b);
        return;
    }
    pump(b);
}

/* A callback may end any subscription, so the place in the list is kept by a link of our own. */
void prt_letter_come(void *owner, struct prt_mail *mail)
{
    struct prt_letter *letter = prt_container_of(mail, struct prt_letter, mail);
    struct prt_branch *b = letter->branch;
    struct prt_link here;

    prt_assert_worker();
    prt_assert(b->lane == ((struct prt_worker *)owner)->lane);
    prt_list_init(&here);
    for (struct prt_link *l = b->heard.next; l != &b->heard; l = here.next) {
        prt_list_del(&here);
        prt_list_before(l->next, &here);
        prt_client_notify(prt_container_of(l, struct sub, of_branch)->client, letter->m, letter->n);
    }
    prt_list_del(&here);
    free(letter);
}

/* ---- control ---- */

void prt_listen_redial(struct prt_proxy_pool *pp)
{
    (void)pthread_mutex_lock(&pp->px->hub_mu);
    for (struct prt_hub *h = pp->hubs; h; h = h->next) {
        /* acq_rel: pairs with the store in prt_hub_redial(), when the mail is free again */
        if (!atomic_exchange_explicit(&h->is_told, true, memory_order_acq_rel)) {
            atomic_fetch_add_explicit(&h->busy, 1, memory_order_relaxed);
            prt_mailbox_post(&h->home->mail, &h->redial_mail);
        }
    }
    (void)pthread_mutex_unlock(&pp->px->hub_mu);
}

void prt_listen_close(struct prt_proxy_pool *pp)
{
    (void)pthread_mutex_lock(&pp->px->hub_mu);
    pp->is_deaf = true;
    for (struct prt_hub *h = pp->hubs; h; h = h->next) {
        /* relaxed: the mail orders it for the home, and whoever else misses it is told by mail */
        if (!atomic_exchange_explicit(&h->is_over, true, memory_order_relaxed)) {
            atomic_fetch_add_explicit(&h->busy, 1, memory_order_relaxed);
            prt_mailbox_post(&h->home->mail, &h->close_mail);
        }
    }
    (void)pthread_mutex_unlock(&pp->px->hub_mu);
}

bool prt_listen_is_over(struct prt_proxy_pool *pp)
{
    bool is_over = true;

    (void)pthread_mutex_lock(&pp->px->hub_mu);
    for (const struct prt_hub *h = pp->hubs; h; h = h->next) {
        /* acquire: pairs with whoever made it zero: all they did to the hub is done */
        is_over &= atomic_load_explicit(&h->busy, memory_order_acquire) == 0;
    }
    (void)pthread_mutex_unlock(&pp->px->hub_mu);
    return is_over;
}

void prt_listen_free(struct prt_proxy_pool *pp)
{
    prt_assert(prt_listen_is_over(pp));
    while (pp->hubs) {
        struct prt_hub *h = pp->hubs;
        pp->hubs = h->next;
        prt_map_fini(&h->channels);
        free(h->dbname);
        free(h);
    }
}

void prt_listen_stats(struct prt_proxy_pool *pp, struct prt_listen_stats *out)
{
    *out = (struct prt_listen_stats){0};
    (void)pthread_mutex_lock(&pp->px->hub_mu);
    for (const struct prt_hub *h = pp->hubs; h; h = h->next) {
        out->listeners += prt_counted(&h->open);
        out->channels += prt_counted(&h->channels_on);
        out->notifications += prt_counted(&h->notifications);
        out->gaps += prt_counted(&h->gaps);
    }
    (void)pthread_mutex_unlock(&pp->px->hub_mu);
}
