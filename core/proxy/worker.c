/* worker.c - one event loop: wait, dispatch, mail, time limits, and clients whose wait is over.
 * Owns: its clients, the servers whose home it is, their timers.   Threads: the worker itself;
 * others reach it through its mailbox alone. Idea: one turn = events, then mail, then timers; a new
 * policy version or configuration is taken between two turns, so that no request sees two of them.
 * Clients are freed at the end of a turn, since an event of the same turn may still name them. */
#include "proxy/proxy_int.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

static void wake(void *owner)
{
    struct prt_worker *w = owner;
    uint64_t one = 1;

    /* fails only when the counter is full, that is when the worker is awake anyway */
    if (write(w->wake_fd, &one, sizeof one) < 0) {
        return;
    }
}

void prt_proxy_wake(struct prt_proxy *px, unsigned lane)
{
    wake(&px->worker[lane]);
}

static void woken(struct prt_worker *w)
{
    uint64_t n;

    if (read(w->wake_fd, &n, sizeof n) < 0) {
        return; /* already read */
    }
}

/* ---- what other threads ask ---- */

static void take_snapshot(void *owner, struct prt_mail *mail)
{
    struct prt_worker *w = owner;

    prt_assert_worker();
    struct prt_snapshot *next = atomic_exchange_explicit(&w->next_snap, NULL, memory_order_acq_rel);
    if (!next) {
        return; /* two reloads, one mail */
    }
    struct prt_snapshot *old = w->snap;
    w->snap = next;
    for (struct prt_link *l = w->clients.next, *nl; l != &w->clients; l = nl) {
        nl = l->next;
        prt_client_configure(prt_container_of(l, struct prt_client, link), old->cfg);
    }
    prt_snapshot_unref(old);
}

static void drain(void *owner, struct prt_mail *mail)
{
    struct prt_worker *w = owner;

    prt_assert_worker();
    w->is_draining = true;
    prt_listeners_unwatch(w);
    for (struct prt_link *l = w->clients.next, *nl; l != &w->clients; l = nl) {
        nl = l->next;
        prt_client_drain(prt_container_of(l, struct prt_client, link));
    }
}

/* No more patience: every client ends now, and what its server does is cancelled. */
static void end_all(void *owner, struct prt_mail *mail)
{
    struct prt_worker *w = owner;

    prt_assert_worker();
    w->is_ending = true;
    prt_linger_end_all(w);
    prt_listen_end_all(w);
    for (struct prt_link *l = w->clients.next, *nl; l != &w->clients; l = nl) {
        nl = l->next;
        prt_client_fatal(prt_container_of(l, struct prt_client, link), "57P01",
                         "terminating connection: poolrt is shutting down", NULL,
                         PRT_GONE_SHUTDOWN);
    }
    for (struct prt_link *l = w->servers.next, *nl; l != &w->servers; l = nl) {
        nl = l->next;
        prt_server_end_now(prt_container_of(l, struct prt_server, link));
    }
}

static void stop(void *owner, struct prt_mail *mail)
{
    ((struct prt_worker *)owner)->is_stopping = true;
}

/* ---- the loop ---- */

void prt_worker_serve(struct prt_worker *w)
{
    struct prt_link *l;

    if (w->in_serving) {
        return; /* whoever is at it sees what was added */
    }
    w->in_serving = true;
    while ((l = prt_list_pop(&w->served))) {
        struct prt_waiter *waiter = prt_container_of(l, struct prt_waiter, link);
        prt_client_served(prt_container_of(waiter, struct prt_client, w));
    }
    w->in_serving = false;
}

/* Usually nobody was served but by an event that has dealt with it already. */
ON_WORKER static inline void serve_late(struct prt_worker *w)
{
    if (!prt_list_empty(&w->served)) {
        prt_worker_serve(w);
    }
}

ON_WORKER static void dispatch(struct prt_worker *w, const struct prt_io_event *ev)
{
    switch (ev->kind) {
    case PRT_KIND_CLIENT:
        prt_client_event(ev->obj, ev);
        break;
    case PRT_KIND_SERVER:
        prt_server_event(ev->obj, ev);
        break;
    case PRT_KIND_LINGER:
        prt_linger_writable(ev->obj);
        break;
    case PRT_KIND_HUB:
        prt_listen_event(ev->obj, ev);
        break;
    case PRT_KIND_LISTENER:
        prt_listener_readable(w, ev->obj);
        break;
    case PRT_KIND_WAKE:
        woken(w);
        break;
    }
    serve_late(w);
}

static void bury(struct prt_worker *w)
{
    for (struct prt_link *l = w->graves.next, *next; l != &w->graves; l = next) {
        next = l->next;
        free(prt_container_of(l, struct prt_client, link));
    }
    prt_list_init(&w->graves);
}

/* The hour is looked up once a minute, not once a transaction. */
static void look_at_the_clock(struct prt_worker *w)
{
    struct tm local;
    time_t now;

    w->now_us = prt_now_us();
    if (w->now_us < w->hour_until_us) {
        return;
    }
    now = time(NULL);
    w->hour = localtime_r(&now, &local) ? local.tm_hour : 0;
    w->hour_until_us = w->now_us + 60 * 1000000LL;
}

ON_WORKER static void turn(struct prt_worker *w)
{
    struct prt_proxy_hooks *hooks = &w->px->hooks;
    struct prt_io_event ev;
    int n = prt_io_wait(&w->io, prt_wheel_wait_ms(&w->wheel, w->now_us));

    look_at_the_clock(w);
    if (hooks->worker_turn) {
        hooks->worker_turn(hooks->ctx, w->lane);
    }
    for (int i = 0; i < n; i++) {
        if (prt_io_event(&w->io, i, &ev)) {
            dispatch(w, &ev);
        }
    }
    while (prt_mailbox_run(&w->mail)) {
        prt_worker_serve(w);
    }
    prt_wheel_run(&w->wheel, w->now_us);
    prt_worker_serve(w);
    prt_burst_flush(w);
    bury(w);
}

static void *worker_main(void *arg)
{
    struct prt_worker *w = arg;
    struct prt_proxy_hooks *hooks = &w->px->hooks;
    sigset_t all;

    (void)sigfillset(
        &all); /* signals are the control thread's; the policy guard unblocks its own */
    (void)pthread_sigmask(SIG_BLOCK, &all, NULL);
    prt_thread_is(PRT_THREAD_WORKER, w->lane);
    prt_assert_worker();
    if (hooks->worker_start) {
        hooks->worker_start(hooks->ctx, w->lane);
    }
    prt_listeners_watch(w);
    while (!w->is_stopping) {
        turn(w);
    }
    if (hooks->worker_stop) {
        hooks->worker_stop(hooks->ctx, w->lane);
    }
    return NULL;
}

/* ---- identities ---- */

/* Two clients are alike when class, user, database, application and tenant are the same. */
static size_t identity_key(char *to, size_t cap, struct prt_class *cls,
                           const struct prt_str part[4])
{
    size_t n = sizeof(void *);

    memcpy(to, &cls, n);
    for (int i = 0; i < 4; i++) {
        if (part[i].n + 1 > cap - n) {
            return 0;
        }
        if (part[i].n) {
            memcpy(to + n, part[i].p, part[i].n);
        }
        n += part[i].n;
        to[n++] = '\0';
    }
    return n;
}

struct prt_identity *prt_worker_identity(struct prt_worker *w, struct prt_class *cls,
                                         struct prt_str user, struct prt_str database,
                                         struct prt_str application, struct prt_str tenant)
{
    const struct prt_str part[4] = {user, database, application, tenant};
    char key[PRT_STARTUP_MAX + 64];
    size_t n = identity_key(key, sizeof key, cls, part);
    struct prt_map_node *node = n ? prt_map_get(&w->identities, (struct prt_str){key, n}) : NULL;

    if (node) {
        struct prt_identity *found = prt_container_of(node, struct prt_identity, node);
        found->refs++;
        prt_class_unref(cls);
        return found;
    }
    struct prt_identity *id = n ? malloc(sizeof *id + n) : NULL;
    if (!id) {
        return NULL;
    }
    memcpy(id->text, key, n);
    id->refs = 1;
    id->cls = cls;
    char *at = id->text + sizeof(void *);
    struct prt_str *field[4] = {&id->user, &id->database, &id->application, &id->tenant};
    for (int i = 0; i < 4; i++) {
        *field[i] = (struct prt_str){at, part[i].n};
        at += part[i].n + 1;
    }
    if (!prt_map_put(&w->identities, &id->node, (struct prt_str){id->text, n})) {
        free(id);
        return NULL;
    }
    return id;
}

void prt_identity_unref(struct prt_worker *w, struct prt_identity *id)
{
    if (!id || --id->refs) {
        return;
    }
    prt_map_del(&w->identities, &id->node);
    prt_class_unref(id->cls);
    free(id);
}

void prt_worker_lost_client(struct prt_worker *w)
{
    /* relaxed: numbers to balance and to limit by */
    atomic_fetch_sub_explicit(&w->px->n_clients, 1, memory_order_relaxed);
    atomic_fetch_sub_explicit(&w->n_clients, 1, memory_order_relaxed);
}

/* ---- birth and death ---- */

poolrt_rc prt_worker_init(struct prt_worker *w, struct prt_proxy *px, unsigned lane,
                          struct prt_err *err)
{
    w->px = px;
    w->lane = lane;
    w->wake_fd = -1;
    w->now_us = prt_now_us();
    prt_list_init(&w->clients);
    prt_list_init(&w->servers);
    prt_list_init(&w->lingers);
    prt_list_init(&w->hubs);
    prt_list_init(&w->served);
    prt_list_init(&w->graves);
    prt_list_init(&w->visits);
    prt_wheel_init(&w->wheel, w->now_us);
    prt_mailbox_init(&w->mail, w, wake);
    w->snap_mail.deliver = take_snapshot;
    w->drain_mail.deliver = drain;
    w->end_mail.deliver = end_all;
    w->stop_mail.deliver = stop;
    w->snap = prt_snapshot_ref(px->snap);
    w->rbuf = malloc(PRT_RBUF);
    w->listeners = calloc((size_t)px->n_listeners + 1, sizeof *w->listeners);
    if (!w->rbuf || !w->listeners) {
        return prt_fail(err, POOLRT_NOMEM, "no memory for a worker");
    }
    poolrt_rc rc = prt_io_init(&w->io, err);
    if (rc) {
        return rc;
    }
    w->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    w->wake_sock = (struct prt_sock){.fd = w->wake_fd, .ticket = PRT_NO_TICKET};
    if (w->wake_fd < 0 || !prt_io_add(&w->io, &w->wake_sock, PRT_KIND_WAKE, w, PRT_WANT_READ)) {
        return prt_fail(err, POOLRT_IO, "eventfd: %s", strerrordesc_np(errno));
    }
    return POOLRT_OK;
}

poolrt_rc prt_worker_start(struct prt_worker *w, struct prt_err *err)
{
    int rc = pthread_create(&w->thread, NULL, worker_main, w);

    if (rc) {
        return prt_fail(err, POOLRT_IO, "cannot start worker %u: %s", w->lane, strerrordesc_np(rc));
    }
    return POOLRT_OK;
}

void prt_worker_fini(struct prt_worker *w)
{
    prt_assert(prt_list_empty(&w->graves)); /* the last turn has buried them */
    prt_map_fini(&w->identities);
    prt_map_fini(&w->welcomes);
    prt_snapshot_unref(atomic_exchange_explicit(&w->next_snap, NULL, memory_order_relaxed));
    prt_snapshot_unref(w->snap);
    prt_io_fini(&w->io);
    if (w->wake_fd >= 0) {
        (void)close(w->wake_fd);
    }
    for (int i = 0; i < w->n_spare; i++) {
        prt_buf_free(&w->spare[i]);
    }
    free(w->rbuf);
    prt_buf_free(&w->gather);
    prt_buf_free(&w->piece);
    prt_buf_free(&w->answer);
    prt_buf_free(&w->joined);
    free(w->listeners);
}
