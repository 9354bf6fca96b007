/* proxy.c - the daemon's face as a whole: born, started, changed, drained, looked at.
 * Owns: the workers, the listeners, the pools, the current snapshot.   Threads: control; snapshots
 * of counters any. Idea: a configuration reaches the workers as one immutable snapshot by mail;
 * each takes it between two turns, and the last one to let go of the old one frees it. */
#include "proxy/proxy_int.h"

#include <math.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define END_LIMIT_US 3000000 /* for servers to see their end */

/* ---- snapshots ---- */

struct prt_snapshot *prt_snapshot_ref(struct prt_snapshot *s)
{
    /* relaxed: whoever refs holds a reference already */
    atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
    return s;
}

void prt_snapshot_unref(struct prt_snapshot *s)
{
    /* release, acquire: all use of it happens before it is freed */
    if (!s || atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) > 1) {
        return;
    }
    prt_auth_free(s->auth);
    prt_tls_ctx_free(s->tls);
    prt_config_unref(s->cfg);
    free(s);
}

static poolrt_rc snapshot_new(struct prt_snapshot **out, struct prt_config *cfg,
                              const struct prt_snapshot *old, struct prt_err *err)
{
    struct prt_snapshot *s = calloc(1, sizeof *s);
    poolrt_rc rc = POOLRT_OK;

    if (!s) {
        return prt_fail(err, POOLRT_NOMEM, "no memory for the configuration");
    }
    s->refs = 1;
    s->cfg = prt_config_ref(cfg);
    rc = prt_auth_new(&s->auth, cfg, old ? old->auth : NULL, err);
    if (!rc && cfg->tls_mode != PRT_TLS_DISABLE) {
        rc = prt_tls_server_ctx(&s->tls, cfg->tls_cert, cfg->tls_key, err);
    }
    if (rc) {
        prt_snapshot_unref(s);
        return rc;
    }
    *out = s;
    return POOLRT_OK;
}

/* ---- birth ---- */

static poolrt_rc init_workers(struct prt_proxy *px, unsigned n, struct prt_err *err)
{
    /* cache-line aligned: workers' counters must not share lines */
    px->worker = aligned_alloc(PRT_CACHE_LINE, n * sizeof *px->worker);
    if (!px->worker) {
        return prt_fail(err, POOLRT_NOMEM, "no memory for %u workers", n);
    }
    memset(px->worker, 0, n * sizeof *px->worker);
    px->n_workers = n;
    for (unsigned i = 0; i < n; i++) {
        poolrt_rc rc = prt_worker_init(&px->worker[i], px, i, err);
        if (rc) {
            return rc;
        }
    }
    return POOLRT_OK;
}

poolrt_rc prt_proxy_new(struct prt_proxy **out, struct prt_config *cfg, unsigned workers,
                        struct prt_connector *connector, const struct prt_proxy_hooks *hooks,
                        struct prt_err *err)
{
    struct prt_proxy *px = calloc(1, sizeof *px);
    poolrt_rc rc;

    *out = NULL;
    if (!px || !prt_registry_init(&px->registry)) {
        free(px);
        return prt_fail(err, POOLRT_NOMEM, "no memory for the proxy");
    }
    (void)pthread_mutex_init(&px->mu, NULL);
    (void)pthread_mutex_init(&px->now_mu, NULL);
    (void)pthread_mutex_init(&px->hub_mu, NULL);
    px->connector = connector;
    px->hooks = *hooks;
    rc = snapshot_new(&px->snap, cfg, NULL, err);
    rc = rc ? rc : prt_listeners_open(px, cfg, err);
    rc = rc ? rc : init_workers(px, workers, err);
    if (rc) {
        prt_proxy_free(px);
        return rc;
    }
    *out = px;
    return POOLRT_OK;
}

poolrt_rc prt_proxy_start(struct prt_proxy *px, struct prt_err *err)
{
    for (unsigned i = 0; i < px->n_workers; i++) {
        poolrt_rc rc = prt_worker_start(&px->worker[i], err);
        if (rc) {
            px->n_started = i;
            return rc;
        }
    }
    px->n_started = px->n_workers;
    return prt_pools_apply(px, px->snap->cfg,
                           err); /* makes and warms the pools: workers must run */
}

/* ---- change ---- */

static bool is_same_address(const struct prt_address *a, const struct prt_address *b)
{
    return strcmp(a->text, b->text) == 0;
}

static bool is_same_listen(const struct prt_config *a, const struct prt_config *b)
{
    bool same = a->n_listen == b->n_listen;

    for (int i = 0; same && i < a->n_listen; i++) {
        same = is_same_address(&a->listen[i], &b->listen[i]);
    }
    return same;
}

static void note_restart(char *restart, size_t cap, const char *name)
{
    size_t n = strlen(restart);

    (void)snprintf(restart + n, cap - n, "%s%s", n ? "," : "", name);
}

static void mail_snapshot(struct prt_proxy *px, struct prt_snapshot *snap)
{
    for (unsigned i = 0; i < px->n_workers; i++) {
        struct prt_worker *w = &px->worker[i];
        struct prt_snapshot *skipped =
            atomic_exchange_explicit(&w->next_snap, prt_snapshot_ref(snap), memory_order_acq_rel);
        if (skipped) {
            prt_snapshot_unref(skipped); /* the mail of the last reload is still under way */
        } else {
            prt_mailbox_post(&w->mail, &w->snap_mail);
        }
    }
}

poolrt_rc prt_proxy_apply(struct prt_proxy *px, struct prt_config *cfg, char *restart,
                          size_t restart_cap, struct prt_err *err)
{
    struct prt_snapshot *next = NULL;
    poolrt_rc rc = snapshot_new(&next, cfg, px->snap, err);

    restart[0] = '\0';
    if (rc) {
        return rc;
    }
    rc = prt_pools_apply(px, cfg, err);
    if (rc) {
        prt_snapshot_unref(next);
        return rc;
    }
    if (!is_same_listen(px->snap->cfg, cfg)) {
        note_restart(restart, restart_cap, "listen");
    }
    if (px->snap->cfg->workers != cfg->workers) {
        note_restart(restart, restart_cap, "workers");
    }
    (void)pthread_mutex_lock(&px->mu);
    (void)pthread_mutex_lock(&px->now_mu);
    struct prt_snapshot *old = px->snap;
    px->snap = next;
    (void)pthread_mutex_unlock(&px->now_mu);
    (void)pthread_mutex_unlock(&px->mu);
    mail_snapshot(px, next);
    prt_snapshot_unref(old);
    return POOLRT_OK;
}

void prt_proxy_tick(struct prt_proxy *px, int64_t now_us)
{
    prt_pools_tick(px, now_us);
}

/* ---- end ---- */

void prt_proxy_drain(struct prt_proxy *px)
{
    if (px->is_draining) {
        return;
    }
    px->is_draining = true;
    for (unsigned i = 0; i < px->n_started; i++) {
        prt_mailbox_post(&px->worker[i].mail, &px->worker[i].drain_mail);
    }
}

bool prt_proxy_is_empty(struct prt_proxy *px)
{
    return atomic_load_explicit(&px->n_clients, memory_order_relaxed) == 0;
}

ON_CONTROL static void wait_for_servers(struct prt_proxy *px)
{
    int64_t until = prt_now_us() + END_LIMIT_US;

    prt_pools_drain(px, prt_now_us());
    while ((prt_pools_open(px) > 0 || !prt_proxy_is_empty(px)) && prt_now_us() < until) {
        (void)usleep(2000);
    }
}

void prt_proxy_stop(struct prt_proxy *px)
{
    if (!px) {
        return;
    }
    prt_proxy_drain(px);
    for (unsigned i = 0; i < px->n_started; i++) {
        prt_mailbox_post(&px->worker[i].mail, &px->worker[i].end_mail);
    }
    if (px->n_started) {
        wait_for_servers(px);
    }
    for (unsigned i = 0; i < px->n_started; i++) {
        prt_mailbox_post(&px->worker[i].mail, &px->worker[i].stop_mail);
        (void)pthread_join(px->worker[i].thread, NULL);
    }
    px->n_started = 0;
    prt_listeners_close(px);
}

void prt_proxy_free(struct prt_proxy *px)
{
    if (!px) {
        return;
    }
    prt_listeners_close(px);
    if (prt_pools_open(px) == 0) { /* else a server never saw its end: the process ends anyway */
        prt_pools_fini(px);
    }
    for (unsigned i = 0; i < px->n_workers; i++) {
        prt_worker_fini(&px->worker[i]);
    }
    free(px->worker);
    prt_registry_fini(&px->registry);
    prt_snapshot_unref(px->snap);
    (void)pthread_mutex_destroy(&px->mu);
    (void)pthread_mutex_destroy(&px->now_mu);
    (void)pthread_mutex_destroy(&px->hub_mu);
    free(px);
}

/* ---- looking ---- */

void prt_proxy_snapshot(struct prt_proxy *px, struct prt_proxy_stats *out)
{
    memset(out, 0, sizeof *out);
    out->workers = px->n_workers;
    out->clients = atomic_load_explicit(&px->n_clients, memory_order_relaxed);
    for (unsigned i = 0; i < px->n_workers; i++) {
        const struct prt_worker *w = &px->worker[i];
        out->clients_waiting += prt_counted(&w->n.waiting);
        out->clients_active += prt_counted(&w->n.active);
        out->accepted += prt_counted(&w->n.accepted);
        out->logins += prt_counted(&w->n.logins);
        out->login_failures += prt_counted(&w->n.login_failures);
        out->transactions += prt_counted(&w->n.transactions);
        out->queries += prt_counted(&w->n.queries);
        out->bytes_from_clients += prt_counted(&w->n.bytes_in);
        out->bytes_to_clients += prt_counted(&w->n.bytes_out);
        out->cancels_received += prt_counted(&w->n.cancels_received);
        out->cancels_forwarded += prt_counted(&w->n.cancels_forwarded);
        out->protocol_violations += prt_counted(&w->n.violations);
        for (int k = 0; k < PRT_GONE_COUNT; k++) {
            out->disconnects[k] += prt_counted(&w->n.disconnects[k]);
        }
    }
}

static void add_lane(struct prt_proxy_pool_info *info, struct prt_pool_lane *l)
{
    info->transactions += prt_counted(&l->transactions);
    info->queries += prt_counted(&l->queries);
    info->errors_timeout += prt_counted(&l->errors_timeout);
    info->errors_closed += prt_counted(&l->errors_closed);
    info->errors_other += prt_counted(&l->errors_other);
    info->exhausted += prt_counted(&l->exhausted);
    info->statement_hits += prt_counted(&l->hits);
    info->statement_misses += prt_counted(&l->misses);
    info->statement_evictions += prt_counted(&l->evictions);
    info->parses_saved += prt_counted(&l->parses_saved);
    info->resets += prt_counted(&l->resets);
    for (int k = 0; k < PRT_STATE_COUNT; k++) {
        info->pins[k] += prt_counted(&l->pins[k]);
        info->pinned[k] += prt_counted(&l->pinned[k]);
    }
    prt_hist_merge(&info->acquire, &l->acquire);
    for (int h = 0; h < 24; h++) {
        info->acquisitions_by_hour[h] += prt_counted(&l->by_hour[h]);
    }
}

static void fill_info(struct prt_proxy_pool *pp, struct prt_proxy_pool_info *info)
{
    memset(info, 0, sizeof *info);
    info->id = pp->name;
    info->cfg = atomic_load_explicit(&pp->cfg, memory_order_acquire);
    info->target = prt_target_text(pp->target);
    info->pool = pp->engine;
    info->created_at_us = pp->created_at_us;
    info->clients = (uint64_t)atomic_load_explicit(&pp->clients, memory_order_relaxed);
    for (unsigned i = 0; i < pp->px->n_workers; i++) {
        /* acquire: pairs with the release store of prt_pools_lane() */
        struct prt_pool_lane *l = atomic_load_explicit(&pp->lane[i], memory_order_acquire);
        if (l) {
            add_lane(info, l);
        }
    }
    struct prt_listen_stats ears;
    prt_listen_stats(pp, &ears);
    info->listeners = ears.listeners;
    info->listen_channels = ears.channels;
    info->notifications = ears.notifications;
    info->listen_gaps = ears.gaps;
    for (int h = 0; h < 24; h++) {
        info->connections_by_hour[h] =
            pp->open_seen[h] ? pp->open_sum[h] / (double)pp->open_seen[h] : (double)NAN;
    }
}

void prt_proxy_each_pool(struct prt_proxy *px,
                         void (*f)(void *arg, const struct prt_proxy_pool_info *), void *arg)
{
    (void)pthread_mutex_lock(&px->mu);
    for (struct prt_map_node *n = prt_map_next(&px->pools, NULL); n;
         n = prt_map_next(&px->pools, n)) {
        struct prt_proxy_pool_info info;
        fill_info(prt_container_of(n, struct prt_proxy_pool, node), &info);
        f(arg, &info);
    }
    (void)pthread_mutex_unlock(&px->mu);
}
