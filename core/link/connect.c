/* connect.c - the connector: its threads, the way in and out, and the watch over libpq.
 * Owns: lines (threads that run libpq), the keeper (one thread that does not).   Threads: any.
 * Idea: a call into libpq can hold its thread: for milliseconds as a rule (TLS, SCRAM), for as long
 * as a hostile server likes at worst (SCRAM with two thousand million iterations), or until a dead
 * file server answers. So the calls are made on lines, each with its own loop, and the keeper looks
 * after them: a dial whose time is over is answered even if its line cannot; a line that has been
 * held for a second is retired, which means that another one takes its place and its other dials. A
 * retired line ends when libpq gives it back, and runs at idle priority once its dial was given up.
 * At most RETIRED_MAX are suffered at a time, and no host is dialled while it holds one.
 *
 * Lists and owners are under one mutex; nothing is posted or called from under it. */
#include "link/link_int.h"

#include <errno.h>
#include <openssl/ssl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LINES_MAX 4
#define RETIRED_MAX 8
#define WATCH_MS 50
#define GRACE_US 50000      /* the line's own timer comes first */
#define HELD_US 1000000     /* held so long, a line is retired */
#define HELD_LATE_US 250000 /* the same when the dial is over, too */
#define STOP_US 1000000     /* threads that have not ended by then are left behind */

static void lock(struct prt_connector *c)
{
    (void)pthread_mutex_lock(&c->mu);
}

static void unlock(struct prt_connector *c)
{
    (void)pthread_mutex_unlock(&c->mu);
}

void prt_dial_reply(struct prt_dial *d)
{
    prt_mailbox_post(d->reply_to, &d->reply);
}

static void reply_all(struct prt_link *dials)
{
    struct prt_link *x;

    while ((x = prt_list_pop(dials))) {
        prt_dial_reply(prt_container_of(x, struct prt_dial, link));
    }
}

/* ---- who answers a dial ---- */
static struct prt_dial *claim_locked(struct prt_connector *c, struct prt_request *r)
{
    struct prt_dial *d = r ? r->dial : NULL;

    if (d) {
        r->dial = NULL;
        c->under_way--;
    }
    return d;
}

struct prt_dial *prt_line_claim(struct prt_line *l, struct prt_opening *o)
{
    struct prt_dial *d;

    lock(l->c);
    d = claim_locked(l->c, o->req);
    unlock(l->c);
    return d;
}

static bool owns_locked(const struct prt_opening *o)
{
    return o->req && o->req->dial;
}

bool prt_line_owns(struct prt_line *l, const struct prt_opening *o)
{
    bool owns;

    lock(l->c);
    owns = owns_locked(o);
    unlock(l->c);
    return owns;
}

bool prt_line_call_begin(struct prt_line *l, struct prt_opening *o)
{
    bool owns;

    lock(l->c);
    owns = owns_locked(o);
    if (owns) {
        l->in_call = o;
        l->call_since_us = prt_now_us();
    }
    unlock(l->c);
    return owns;
}

bool prt_line_call_end(struct prt_line *l)
{
    bool owns;

    lock(l->c);
    owns = owns_locked(l->in_call);
    l->in_call = NULL;
    if (l->hung) {
        l->hung->hung--;
        l->hung = NULL;
    }
    if (l->is_retired) {
        (void)uv_async_send(&l->wake); /* close what was handed to others */
    }
    unlock(l->c);
    return owns;
}

void prt_line_forget(struct prt_line *l, struct prt_opening *o)
{
    lock(l->c);
    prt_list_del(&o->link);
    if (o->req) {
        l->load--;
    }
    if (l->is_retired || l->c->is_stopping) {
        (void)uv_async_send(&l->wake); /* it may have been the last */
    }
    unlock(l->c);
}

/* ---- a line ---- */
static void connector_unref(struct prt_connector *c)
{
    bool last;

    lock(c);
    last = --c->refs == 0;
    unlock(c);
    if (last) {
        (void)pthread_cond_destroy(&c->gone);
        (void)pthread_mutex_destroy(&c->mu);
        free(c);
    }
}

/* One request of the inbox gets its opening; false when there is none. */
static bool take_one(struct prt_line *l)
{
    struct prt_opening *o = prt_opening_new(l);
    struct prt_dial *d = NULL;
    struct prt_request *r;
    struct prt_link *x;

    lock(l->c);
    x = prt_list_pop(&l->inbox);
    r = x ? prt_container_of(x, struct prt_request, link) : NULL;
    if (r && o) {
        o->req = r;
        prt_list_push(&l->openings, &o->link);
    } else if (r) {
        d = claim_locked(l->c, r);
        l->load--;
    }
    unlock(l->c);
    if (r && o) {
        prt_opening_run(o);
        return true;
    }
    prt_opening_free(o);
    prt_request_free(r);
    if (d) {
        (void)prt_fail(&d->err, POOLRT_CONNECT_FAILED, "out of memory");
        prt_dial_reply(d);
    }
    return r != NULL;
}

/* An opening whose dial is somebody else's; NULL when there is none. *is_last: the line has no
 * opening left and is not needed any more. */
static struct prt_opening *find_orphan(struct prt_line *l, bool *is_last)
{
    struct prt_opening *found = NULL;

    lock(l->c);
    for (struct prt_link *x = l->openings.next; x != &l->openings && !found; x = x->next) {
        struct prt_opening *o = prt_container_of(x, struct prt_opening, link);
        found = owns_locked(o) ? NULL : o;
    }
    *is_last = prt_list_empty(&l->openings) && (l->is_retired || l->c->is_stopping);
    unlock(l->c);
    return found;
}

static void on_line_wake(uv_async_t *wake)
{
    struct prt_line *l = wake->data;
    struct prt_opening *o;
    bool is_last;

    while (take_one(l)) {
    }
    while ((o = find_orphan(l, &is_last))) {
        prt_opening_close(o);
    }
    if (is_last && !l->is_leaving) {
        l->is_leaving = true;
        uv_close((uv_handle_t *)&l->wake, NULL);
    }
}

/* From here on nobody sends to it. */
static void unlist(struct prt_line *l)
{
    lock(l->c);
    for (int i = 0; i < LINES_MAX; i++) {
        l->c->line[i] = l->c->line[i] == l ? NULL : l->c->line[i];
    }
    prt_list_del(&l->retired_link);
    unlock(l->c);
}

static void line_free(struct prt_line *l)
{
    int rc = uv_loop_close(&l->loop);

    prt_assert(rc == 0);
    (void)close(l->dead_fd);
    free(l);
}

static void *line_main(void *arg)
{
    struct prt_line *l = arg;
    struct prt_connector *c = l->c;
    bool was_retired;

    prt_thread_is(PRT_THREAD_CONNECTOR, 0);
    lock(c);
    l->tid = gettid();
    unlock(c);
    (void)uv_run(&l->loop, UV_RUN_DEFAULT);
    unlist(l);
    was_retired = l->is_retired;
    line_free(l);
    lock(c);
    if (was_retired) {
        c->n_retired--;
    } else {
        c->threads--;
    }
    (void)pthread_cond_broadcast(&c->gone);
    unlock(c);
    connector_unref(c);
    OPENSSL_thread_stop(); /* its error queue, now and not at some exit handler's turn */
    return NULL;
}

/* Detached and without signals: SIGPIPE of a TLS socket stays pending here. Under mu. */
static bool start_thread_locked(struct prt_connector *c, void *(*run)(void *), void *arg)
{
    pthread_attr_t attr;
    sigset_t all, old;
    pthread_t id;
    int rc;

    if (pthread_attr_init(&attr) != 0) {
        return false;
    }
    (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = PRT_FAULT("connector_thread") ? EAGAIN : pthread_create(&id, &attr, run, arg);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    (void)pthread_attr_destroy(&attr);
    if (rc == 0) {
        c->threads++;
        c->refs++;
    }
    return rc == 0;
}

static int make_dead_fd(void)
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0) {
        return -1;
    }
    (void)close(pair[1]);
    return pair[0];
}

/* Only closes what the loop itself opened: no request was ever made on it. */
static void discard_loop(uv_loop_t *loop)
{
    (void)uv_run(loop, UV_RUN_DEFAULT);
    (void)uv_loop_close(loop);
}

static struct prt_line *line_new(struct prt_connector *c)
{
    struct prt_line *l = calloc(1, sizeof *l);

    if (!l) {
        return NULL;
    }
    l->c = c;
    prt_list_init(&l->inbox);
    prt_list_init(&l->openings);
    prt_list_init(&l->retired_link);
    l->dead_fd = make_dead_fd();
    if (l->dead_fd < 0) {
        goto fail;
    }
    if (uv_loop_init(&l->loop) != 0) {
        goto fail_fd;
    }
    if (uv_async_init(&l->loop, &l->wake, on_line_wake) != 0) {
        discard_loop(&l->loop);
        goto fail_fd;
    }
    l->wake.data = l;
    return l;
fail_fd:
    (void)close(l->dead_fd);
fail:
    free(l);
    return NULL;
}

/* A line in each empty place; false when one could not be started (the next turn tries again). */
static bool fill_lines(struct prt_connector *c)
{
    bool ok = true;

    for (int i = 0; i < c->n_lines && ok; i++) {
        struct prt_line *l = NULL;
        lock(c);
        bool is_missing = !c->line[i] && !c->is_stopping;
        unlock(c);
        if (!is_missing) {
            continue;
        }
        l = line_new(c);
        lock(c);
        ok = l && !c->is_stopping && start_thread_locked(c, line_main, l);
        c->line[i] = ok ? l : c->line[i];
        unlock(c);
        if (l && !ok) {
            uv_close((uv_handle_t *)&l->wake, NULL);
            (void)uv_run(&l->loop, UV_RUN_DEFAULT);
            line_free(l);
        }
    }
    return ok;
}

/* ---- submit ---- */
static struct prt_line *least_loaded_locked(struct prt_connector *c)
{
    struct prt_line *best = NULL;

    for (int i = 0; i < LINES_MAX; i++) {
        struct prt_line *l = c->line[i];
        if (l && (!best || l->load < best->load)) {
            best = l;
        }
    }
    return best;
}

static bool enqueue_locked(struct prt_connector *c, struct prt_request *r)
{
    struct prt_line *l = c->is_stopping ? NULL : least_loaded_locked(c);

    if (!l) {
        return false;
    }
    prt_list_push(&l->inbox, &r->link);
    l->load++;
    (void)uv_async_send(&l->wake);
    return true;
}

static void clear_result(struct prt_dial *d)
{
    d->err = (struct prt_err){0};
    d->fd = -1;
    d->ssl = NULL;
    d->pid = 0;
    d->key_n = 0;
    d->params = NULL;
    d->addr_n = 0;
    d->server_addr[0] = '\0';
    prt_list_init(&d->link);
}

void prt_connector_submit(struct prt_connector *c, struct prt_dial *d)
{
    struct prt_request *r;
    bool ok;

    clear_result(d);
    r = prt_request_new(d);
    if (!r) {
        prt_dial_reply(d);
        return;
    }
    lock(c);
    ok = enqueue_locked(c, r);
    if (ok && c->under_way++ == 0) {
        (void)uv_async_send(&c->wake); /* the keeper begins to watch */
    }
    unlock(c);
    if (!ok) {
        (void)prt_fail(&d->err, POOLRT_CONNECT_FAILED, "%s: no connector thread to dial it",
                       prt_target_text(d->target));
        prt_request_free(r);
        prt_dial_reply(d);
    }
}

void prt_connector_cancel(struct prt_connector *c, struct prt_cancel *x)
{
    bool ok;

    x->rc = POOLRT_OK;
    prt_list_init(&x->link);
    lock(c);
    ok = !c->is_stopping;
    if (ok) {
        prt_list_push(&c->cancel_inbox, &x->link);
        (void)uv_async_send(&c->wake);
    }
    unlock(c);
    if (!ok) {
        x->rc = POOLRT_CLOSED;
        prt_mailbox_post(x->reply_to, &x->reply);
    }
}

/* ---- the keeper: dials whose line cannot answer ---- */
static void claim_late_locked(struct prt_connector *c, struct prt_request *r, int64_t now_us,
                              struct prt_link *answers)
{
    struct prt_dial *d;

    if (!r || now_us < r->deadline_us + GRACE_US || !(d = claim_locked(c, r))) {
        return;
    }
    (void)prt_fail(&d->err, POOLRT_CONNECT_FAILED,
                   "%s: timeout after %.1f s, and libpq has not come back from a call",
                   prt_target_text(r->target), (double)r->timeout_us / 1e6);
    prt_list_push(answers, &d->link);
}

/* Its dial was given up: from now on the host is not dialled and the thread gets only idle time. */
static void mark_hung_locked(struct prt_line *l)
{
    const struct sched_param none = {0};

    l->hung = &l->in_call->req->target->hosts[l->in_call->host];
    l->hung->hung++;
    (void)sched_setscheduler(l->tid, SCHED_IDLE, &none);
}

static void claim_all_late_locked(struct prt_line *l, int64_t now_us, struct prt_link *answers)
{
    for (struct prt_link *x = l->openings.next; x != &l->openings; x = x->next) {
        claim_late_locked(l->c, prt_container_of(x, struct prt_opening, link)->req, now_us,
                          answers);
    }
    for (struct prt_link *x = l->inbox.next; x != &l->inbox; x = x->next) {
        claim_late_locked(l->c, prt_container_of(x, struct prt_request, link), now_us, answers);
    }
}

/* Everything but the dial that libpq holds goes to other lines. */
static void retire_locked(struct prt_line *l, struct prt_link *orphans)
{
    struct prt_link *x;

    l->is_retired = true;
    for (int i = 0; i < LINES_MAX; i++) {
        l->c->line[i] = l->c->line[i] == l ? NULL : l->c->line[i];
    }
    prt_list_push(&l->c->retired, &l->retired_link);
    l->c->threads--;
    l->c->n_retired++;
    while ((x = prt_list_pop(&l->inbox))) {
        l->load--;
        prt_list_push(orphans, x);
    }
    for (x = l->openings.next; x != &l->openings; x = x->next) {
        struct prt_opening *o = prt_container_of(x, struct prt_opening, link);
        if (o != l->in_call && o->req) {
            if (o->conn && PQsocket(o->conn) >= 0) {
                /* the thread is busy with another one: the server need not wait until it is back */
                (void)shutdown(PQsocket(o->conn), SHUT_RDWR);
            }
            prt_list_push(orphans, &o->req->link);
            o->req = NULL;
            l->load--;
        }
    }
}

static void look_after_locked(struct prt_line *l, int64_t now_us, struct prt_link *answers,
                              struct prt_link *orphans)
{
    int64_t held_us = now_us - l->call_since_us;
    bool is_given_up;

    if (!l->in_call) {
        return; /* its own timers run */
    }
    claim_all_late_locked(l, now_us, answers);
    is_given_up = !owns_locked(l->in_call);
    if (held_us < (is_given_up ? HELD_LATE_US : HELD_US)) {
        return;
    }
    if (is_given_up && !l->hung) {
        mark_hung_locked(l);
    }
    if (!l->is_retired && l->c->n_retired < RETIRED_MAX) {
        retire_locked(l, orphans);
    }
}

/* Requests of a retired line go on elsewhere; with their time, not with what was done for them. */
static void rehome(struct prt_connector *c, struct prt_link *orphans, struct prt_link *answers)
{
    struct prt_link *x;

    while ((x = prt_list_pop(orphans))) {
        struct prt_request *r = prt_container_of(x, struct prt_request, link);
        struct prt_dial *d = NULL;
        lock(c);
        bool ok = r->dial && enqueue_locked(c, r);
        if (!ok && (d = claim_locked(c, r))) {
            (void)prt_fail(&d->err, POOLRT_CONNECT_FAILED, "%s: no connector thread to dial it",
                           prt_target_text(r->target));
            prt_list_push(answers, &d->link);
        }
        unlock(c);
        if (!ok) {
            prt_request_free(r);
        }
    }
}

/* Nothing under way and no line missing: the watch may sleep until the next submit. */
static bool is_quiet_locked(const struct prt_connector *c)
{
    for (int i = 0; i < c->n_lines; i++) {
        if (!c->line[i]) {
            return false;
        }
    }
    return c->under_way == 0;
}

static void on_watch(uv_timer_t *timer)
{
    struct prt_connector *c = timer->data;
    struct prt_link answers, orphans;
    int64_t now_us = prt_now_us();

    prt_list_init(&answers);
    prt_list_init(&orphans);
    lock(c);
    for (int i = 0; i < c->n_lines && !c->is_stopping; i++) {
        if (c->line[i]) {
            look_after_locked(c->line[i], now_us, &answers, &orphans);
        }
    }
    for (struct prt_link *x = c->retired.next; x != &c->retired && !c->is_stopping; x = x->next) {
        look_after_locked(prt_container_of(x, struct prt_line, retired_link), now_us, &answers,
                          &orphans);
    }
    unlock(c);
    (void)fill_lines(c);
    rehome(c, &orphans, &answers);
    reply_all(&answers);
    lock(c);
    if (is_quiet_locked(c) || c->is_stopping) {
        c->is_watching = false;
        (void)uv_timer_stop(&c->watch);
    }
    unlock(c);
}

/* ---- the keeper's thread ---- */
static struct prt_cancel *next_cancel(struct prt_connector *c)
{
    struct prt_link *x;

    lock(c);
    x = prt_list_pop(&c->cancel_inbox);
    unlock(c);
    return x ? prt_container_of(x, struct prt_cancel, link) : NULL;
}

static void on_keeper_wake(uv_async_t *wake)
{
    struct prt_connector *c = wake->data;
    struct prt_cancel *x;
    bool stops, watch;

    while ((x = next_cancel(c))) {
        prt_cancel_start(c, x);
    }
    lock(c);
    stops = c->is_stopping;
    watch = c->under_way > 0 && !c->is_watching && !stops;
    c->is_watching = c->is_watching || watch;
    unlock(c);
    if (watch) {
        (void)uv_timer_start(&c->watch, on_watch, WATCH_MS, WATCH_MS);
    }
    if (stops && !c->is_leaving) {
        c->is_leaving = true;
        prt_cancel_abort_all(c);
        uv_close((uv_handle_t *)&c->watch, NULL);
        uv_close((uv_handle_t *)&c->wake, NULL);
    }
}

static void *keeper_main(void *arg)
{
    struct prt_connector *c = arg;
    int rc;

    prt_thread_is(PRT_THREAD_CONNECTOR, 0);
    (void)uv_run(&c->loop, UV_RUN_DEFAULT);
    rc = uv_loop_close(&c->loop);
    prt_assert(rc == 0);
    lock(c);
    c->threads--;
    (void)pthread_cond_broadcast(&c->gone);
    unlock(c);
    connector_unref(c);
    OPENSSL_thread_stop();
    return NULL;
}

/* ---- start and stop ---- */
static bool init_sync(struct prt_connector *c)
{
    pthread_condattr_t attr;
    bool ok;

    if (pthread_condattr_init(&attr) != 0) {
        return false;
    }
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    ok = pthread_mutex_init(&c->mu, NULL) == 0;
    if (ok && pthread_cond_init(&c->gone, &attr) != 0) {
        (void)pthread_mutex_destroy(&c->mu);
        ok = false;
    }
    (void)pthread_condattr_destroy(&attr);
    return ok;
}

static bool start_keeper(struct prt_connector *c)
{
    bool ok;

    if (uv_loop_init(&c->loop) != 0) {
        return false;
    }
    if (uv_async_init(&c->loop, &c->wake, on_keeper_wake) != 0) {
        discard_loop(&c->loop);
        return false;
    }
    (void)uv_timer_init(&c->loop, &c->watch); /* cannot fail */
    c->wake.data = c;
    c->watch.data = c;
    lock(c);
    ok = start_thread_locked(c, keeper_main, c);
    unlock(c);
    if (!ok) {
        uv_close((uv_handle_t *)&c->watch, NULL);
        uv_close((uv_handle_t *)&c->wake, NULL);
        discard_loop(&c->loop);
    }
    return ok;
}

poolrt_rc prt_connector_start(struct prt_connector **out, int threads, struct prt_err *err)
{
    struct prt_connector *c = calloc(1, sizeof *c);

    *out = NULL;
    /* A thread that is left behind may compute inside OpenSSL when the process ends: what OpenSSL
     * would free at exit stays. Only the first use of OpenSSL can say so, hence also in main(). */
    (void)OPENSSL_init_crypto(OPENSSL_INIT_NO_ATEXIT, NULL);
    if (!c || !init_sync(c)) {
        free(c);
        return prt_fail(err, POOLRT_NOMEM, "connector: out of memory");
    }
    c->refs = 1;
    c->n_lines = threads < 1 ? 1 : threads > LINES_MAX ? LINES_MAX : threads;
    prt_list_init(&c->cancels);
    prt_list_init(&c->retired);
    prt_list_init(&c->cancel_inbox);
    if (!start_keeper(c)) {
        connector_unref(c);
        return prt_fail(err, POOLRT_IO, "connector: no thread or no descriptors for it");
    }
    if (!fill_lines(c)) {
        prt_connector_stop(c);
        return prt_fail(err, POOLRT_IO, "connector: no thread or no descriptors for it");
    }
    *out = c;
    return POOLRT_OK;
}

static void abort_request_locked(struct prt_connector *c, struct prt_request *r,
                                 struct prt_link *answers)
{
    struct prt_dial *d = claim_locked(c, r);

    if (d) {
        (void)prt_fail(&d->err, POOLRT_CONNECT_FAILED, "%s: given up, the connector stops",
                       prt_target_text(r->target));
        prt_list_push(answers, &d->link);
    }
}

static void abort_line_locked(struct prt_line *l, struct prt_link *answers)
{
    struct prt_link *x;

    while ((x = prt_list_pop(&l->inbox))) {
        struct prt_request *r = prt_container_of(x, struct prt_request, link);
        abort_request_locked(l->c, r, answers);
        prt_request_free(r);
    }
    for (x = l->openings.next; x != &l->openings; x = x->next) {
        abort_request_locked(l->c, prt_container_of(x, struct prt_opening, link)->req, answers);
    }
    (void)uv_async_send(&l->wake);
}

static void wait_for_threads_locked(struct prt_connector *c)
{
    int64_t until_us = prt_now_us() + STOP_US;
    struct timespec until = {.tv_sec = (time_t)(until_us / 1000000),
                             .tv_nsec = (long)(until_us % 1000000) * 1000};

    while (c->threads > 0 && pthread_cond_timedwait(&c->gone, &c->mu, &until) == 0) {
    }
}

void prt_connector_stop(struct prt_connector *c)
{
    struct prt_link answers;

    if (!c) {
        return;
    }
    prt_list_init(&answers);
    lock(c);
    c->is_stopping = true;
    for (int i = 0; i < LINES_MAX; i++) {
        if (c->line[i]) {
            abort_line_locked(c->line[i], &answers);
        }
    }
    for (struct prt_link *x = c->retired.next; x != &c->retired; x = x->next) {
        abort_line_locked(prt_container_of(x, struct prt_line, retired_link), &answers);
    }
    (void)uv_async_send(&c->wake);
    unlock(c);
    reply_all(&answers);
    lock(c);
    wait_for_threads_locked(c);
    unlock(c);
    connector_unref(c);
}
