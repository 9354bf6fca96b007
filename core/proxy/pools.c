/* pools.c - from the database a client asks for to a pool, and what a pool is made of.
 * Owns: the map of pools, their targets, their classes' login data.   Threads: workers at login,
 * control at reload and maintenance; px->mu between them. Under it the engine may ask for
 * connections, which takes px->now_mu: so that one is always the inner lock. Idea: rows of the
 * configuration make pools at start; the row "*" makes one for each other database at its first
 * login, and the tick frees it when nobody used it for pool_idle_timeout. */
#include "proxy/proxy_int.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CAPACITY_MIN 256

static struct prt_limits limits_of(const struct prt_pool_config *row)
{
    int64_t third = row->acquire_timeout_us / 3, half_minute = 30000000;

    return (struct prt_limits){
        .min = (int)row->min_size,
        .max = (int)row->max_size,
        .class_max = (int)row->class_size,
        .max_waiters = (int)row->max_wait_queue_size,
        .opens_per_sec = (int)row->creation_throttle,
        .locality_bias_us = row->locality_bias_us,
        .switch_bias_us = row->switch_bias_us,
        .boost_after_us = row->boost_threshold_us ? row->boost_threshold_us
                          : third < half_minute   ? third
                                                  : half_minute,
        .retry_us = row->server_login_retry_us,
        .idle_us = row->idle_timeout_us,
        .lifetime_us = row->max_lifetime_us,
        .fair_queue = row->fair_queue,
    };
}

/* ---- classes ---- */

void prt_login_free(void *ctx, void *user)
{
    struct prt_login *login = user;

    if (!login) {
        return;
    }
    if (login->welcome) {
        prt_params_unref(login->welcome);
    }
    (void)pthread_mutex_destroy(&login->mu);
    free(login->dbname);
    free(login->user);
    free(login->settings);
    free(login);
}

static char *copy(struct prt_str s)
{
    char *p = malloc(s.n + 1);

    if (p) {
        if (s.n) {
            memcpy(p, s.p, s.n);
        }
        p[s.n] = '\0';
    }
    return p;
}

static struct prt_login *login_new(struct prt_str dbname, struct prt_str user, bool is_forced,
                                   const char *settings, size_t settings_n)
{
    struct prt_login *login = calloc(1, sizeof *login);

    if (!login) {
        return NULL;
    }
    (void)pthread_mutex_init(&login->mu, NULL);
    login->is_forced_user = is_forced;
    login->dbname = copy(dbname);
    login->user = copy(user);
    login->settings = copy((struct prt_str){settings, settings_n});
    login->settings_n = (uint32_t)settings_n;
    if (!login->dbname || !login->user || !login->settings) {
        prt_login_free(NULL, login);
        return NULL;
    }
    return login;
}

/* The key holds all that makes connections differ, so two users never share one (TRUST S5). */
static struct prt_class *class_of(struct prt_proxy_pool *pp, const struct prt_pool_config *row,
                                  const char *dbname, struct prt_str user, const char *settings,
                                  size_t settings_n)
{
    struct prt_buf key = {0};
    struct prt_class *cls = NULL;
    bool is_forced = row->user != NULL;
    struct prt_str name = is_forced ? prt_str_of(row->user) : user;
    struct prt_login *login =
        login_new(prt_str_of(dbname ? dbname : pp->name), name, is_forced, settings, settings_n);

    if (!login) {
        return NULL;
    }
    bool ok = prt_buf_add(&key, login->dbname, strlen(login->dbname) + 1);
    ok = ok && prt_buf_add(&key, login->user, strlen(login->user) + 1);
    ok = ok && prt_buf_add(&key, settings_n ? settings : "", settings_n);
    if (ok) {
        cls = prt_pool_class(pp->engine, (struct prt_str){(const char *)key.p, key.n}, login);
    } else {
        prt_login_free(NULL, login);
    }
    prt_buf_free(&key);
    return cls;
}

struct prt_target *prt_pools_target(struct prt_proxy_pool *pp)
{
    (void)pthread_mutex_lock(&pp->px->now_mu);
    struct prt_target *target = prt_target_ref(pp->target);
    (void)pthread_mutex_unlock(&pp->px->now_mu);
    return target;
}

struct prt_class *prt_pools_class(struct prt_proxy_pool *pp, struct prt_str user,
                                  const char *settings, size_t settings_n)
{
    const struct prt_pool_config *row = atomic_load_explicit(&pp->cfg, memory_order_acquire);
    struct prt_target *target = prt_pools_target(pp);
    struct prt_class *cls =
        class_of(pp, row, prt_target_dbname(target), user, settings, settings_n);
    prt_target_unref(target);
    return cls;
}

const struct prt_params *prt_login_welcome(struct prt_login *login)
{
    (void)pthread_mutex_lock(&login->mu);
    const struct prt_params *p = login->welcome ? prt_params_ref(login->welcome) : NULL;
    (void)pthread_mutex_unlock(&login->mu);
    return p;
}

void prt_login_set_welcome(struct prt_login *login, const struct prt_params *params)
{
    const struct prt_params *old;

    (void)prt_params_ref(params);
    (void)pthread_mutex_lock(&login->mu);
    old = login->welcome;
    login->welcome = params;
    (void)pthread_mutex_unlock(&login->mu);
    if (old) {
        prt_params_unref(old);
    }
}

/* ---- partitions ---- */

static poolrt_rc set_partitions(struct prt_proxy_pool *pp, const struct prt_pool_config *row,
                                int64_t now, struct prt_err *err)
{
    for (int i = 0; i < row->n_partitions; i++) {
        const struct prt_partition_config *p = &row->partitions[i];
        const struct prt_partition_limits lim = {
            .max = p->max_connections,
            .min = p->min_connections,
            .max_waiters = p->max_wait_queue,
            .priority = p->priority,
        };
        poolrt_rc rc = prt_pool_partition(pp->engine, prt_str_of(p->name), &lim, now, err);
        if (rc) {
            return rc;
        }
    }
    return POOLRT_OK;
}

static void drop_partitions(struct prt_proxy_pool *pp, const struct prt_pool_config *old,
                            const struct prt_pool_config *row, int64_t now)
{
    for (int i = 0; i < old->n_partitions; i++) {
        bool stays = false;
        for (int k = 0; k < row->n_partitions; k++) {
            stays |= strcmp(old->partitions[i].name, row->partitions[k].name) == 0;
        }
        if (!stays) {
            prt_pool_partition_remove(pp->engine, prt_str_of(old->partitions[i].name), now);
        }
    }
}

/* ---- birth and death ---- */

static void pool_free(struct prt_proxy_pool *pp)
{
    struct prt_proxy_hooks *hooks = &pp->px->hooks;

    prt_listen_free(pp);
    prt_pool_free(pp->engine);
    if (pp->policy && hooks->unbind) {
        hooks->unbind(hooks->ctx, pp->policy);
    }
    prt_target_unref(pp->target);
    prt_target_unref(pp->next_target);
    prt_config_unref(pp->owner);
    for (int i = 0; i < PRT_LANES_MAX; i++) {
        free(atomic_load_explicit(&pp->lane[i], memory_order_relaxed));
    }
    free(pp);
}

static poolrt_rc fill(struct prt_proxy_pool *pp, const struct prt_pool_config *row,
                      struct prt_err *err)
{
    struct prt_proxy *px = pp->px;
    struct prt_limits lim = limits_of(row);
    int capacity = 4 * lim.max > CAPACITY_MIN ? 4 * lim.max : CAPACITY_MIN;

    poolrt_rc rc = prt_target_new(&pp->target, row->target, err);
    if (rc) {
        return rc;
    }
    if (px->hooks.bind) {
        pp->policy = px->hooks.bind(px->hooks.ctx, row->name);
    }
    rc = prt_pool_new(&pp->engine, &lim, (int)px->n_workers, capacity, &prt_server_ops, pp->policy,
                      pp, err);
    return rc ? rc : set_partitions(pp, row, prt_now_us(), err);
}

/* Under px->mu. */
static struct prt_proxy_pool *pool_new(struct prt_proxy *px, struct prt_config *owner,
                                       const struct prt_pool_config *row, struct prt_str name,
                                       struct prt_err *err)
{
    struct prt_proxy_pool *pp = NULL;

    if (px->n_pools >= (unsigned)owner->max_pools) {
        (void)prt_fail(err, POOLRT_EXHAUSTED, "there are already max_pools = %u pools",
                       px->n_pools);
        return NULL;
    }
    pp = calloc(1, sizeof *pp);
    if (!pp || !prt_str_copy(pp->name, sizeof pp->name, name)) {
        free(pp);
        (void)prt_fail(err, POOLRT_NOMEM, "no memory for the pool");
        return NULL;
    }
    pp->px = px;
    pp->created_at_us = prt_wall_us();
    pp->owner = prt_config_ref(owner);
    atomic_store_explicit(&pp->cfg, row, memory_order_release);
    if (fill(pp, row, err) || !prt_map_put(&px->pools, &pp->node, prt_str_of(pp->name))) {
        pool_free(pp);
        return NULL;
    }
    px->n_pools++;
    return pp;
}

/* Connections ahead of need: only where it is known as whom to log in. */
static void warm(struct prt_proxy_pool *pp, const struct prt_pool_config *row)
{
    if (!row->user || (!row->initial_size && !row->min_size)) {
        prt_pool_set_warm(pp->engine, NULL); /* of another user before a reload */
        return;
    }
    struct prt_class *cls =
        class_of(pp, row, prt_target_dbname(pp->target), (struct prt_str){0}, "", 0);
    if (!cls) {
        return;
    }
    prt_pool_set_warm(pp->engine, cls);
    prt_class_unref(cls);
    prt_pool_warm(pp->engine, (int)row->initial_size, prt_now_us());
}

/* ---- login ---- */

static struct prt_proxy_pool *join_locked(struct prt_proxy *px, struct prt_str database,
                                          struct prt_err *err)
{
    struct prt_map_node *node = prt_map_get(&px->pools, database);
    struct prt_proxy_pool *pp = node ? prt_container_of(node, struct prt_proxy_pool, node) : NULL;

    if (!pp) {
        const struct prt_pool_config *row = prt_config_pool(px->snap->cfg, database);
        if (!row) {
            (void)prt_fail(err, POOLRT_NOT_FOUND, "database \"" PRT_STR_FMT "\" does not exist",
                           PRT_STR_ARG(database));
            memcpy(err->sqlstate, "3D000", sizeof err->sqlstate);
            return NULL;
        }
        pp = pool_new(px, px->snap->cfg, row, database, err);
    } else if (pp->is_gone) {
        (void)prt_fail(err, POOLRT_DRAINING, "database \"%s\" is being removed", pp->name);
        return NULL;
    }
    return pp;
}

struct prt_proxy_pool *prt_pools_join(struct prt_proxy *px, struct prt_str database,
                                      struct prt_err *err)
{
    (void)pthread_mutex_lock(&px->mu);
    struct prt_proxy_pool *pp = join_locked(px, database, err);
    if (pp) {
        /* relaxed: raised under mu, and the tick that frees reads it under mu */
        atomic_fetch_add_explicit(&pp->clients, 1, memory_order_relaxed);
    }
    (void)pthread_mutex_unlock(&px->mu);
    return pp;
}

void prt_pools_leave(struct prt_proxy_pool *pp)
{
    /* release: what this client did to the pool is done before the tick may free it */
    atomic_fetch_sub_explicit(&pp->clients, 1, memory_order_release);
}

struct prt_pool_lane *prt_pools_lane(struct prt_proxy_pool *pp, unsigned lane)
{
    static struct prt_pool_lane nowhere; /* without memory the numbers of this worker are lost */
    /* relaxed: written by this thread alone */
    struct prt_pool_lane *l = atomic_load_explicit(&pp->lane[lane], memory_order_relaxed);

    if (!l) {
        l = calloc(1, sizeof *l);
        if (!l) {
            return &nowhere;
        }
        /* release: pairs with the reader's acquire, which must see zeroes */
        atomic_store_explicit(&pp->lane[lane], l, memory_order_release);
    }
    return l;
}

/* ---- reload ---- */

static bool is_same(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

static void apply_row(struct prt_proxy_pool *pp, struct prt_config *owner,
                      const struct prt_pool_config *row, int64_t now)
{
    const struct prt_pool_config *old = atomic_load_explicit(&pp->cfg, memory_order_relaxed);
    struct prt_limits lim = limits_of(row);
    struct prt_err err;
    bool moves = old->mode != row->mode || !is_same(old->target, row->target) ||
                 !is_same(old->user, row->user) || !is_same(old->password, row->password);

    if (prt_pool_set_limits(pp->engine, &lim, now, &err) || set_partitions(pp, row, now, &err)) {
        prt_log(PRT_LOG_ERROR, "pool_limits_refused", prt_kv_z("pool", pp->name),
                prt_kv_z("error", err.text));
    }
    drop_partitions(pp, old, row, now);
    atomic_store_explicit(&pp->cfg, row, memory_order_release);
    struct prt_config *old_owner = pp->owner;
    pp->owner = prt_config_ref(owner);
    prt_config_unref(old_owner); /* workers that still read the old row hold its snapshot */
    (void)pthread_mutex_lock(&pp->px->now_mu);
    struct prt_target *before = pp->target;
    pp->target = pp->next_target;
    pp->next_target = NULL;
    (void)pthread_mutex_unlock(&pp->px->now_mu);
    prt_target_unref(before);
    if (moves) {
        warm(pp, row);
        prt_pool_flush(pp->engine, now);
        prt_listen_redial(pp);
    }
}

static const struct prt_pool_config *row_of(const struct prt_config *cfg,
                                            const struct prt_proxy_pool *pp)
{
    return prt_config_pool(cfg, prt_str_of(pp->name));
}

/* All that can be refused is tried before the first pool is touched. */
static poolrt_rc prepare_targets(struct prt_proxy *px, const struct prt_config *cfg,
                                 struct prt_err *err)
{
    for (int k = 0; k < cfg->n_pools; k++) {
        struct prt_target *probe = NULL;
        poolrt_rc rc = prt_target_new(&probe, cfg->pools[k].target, err);
        prt_target_unref(probe);
        if (rc) {
            return rc;
        }
    }
    for (struct prt_map_node *n = prt_map_next(&px->pools, NULL); n;
         n = prt_map_next(&px->pools, n)) {
        struct prt_proxy_pool *pp = prt_container_of(n, struct prt_proxy_pool, node);
        const struct prt_pool_config *row = row_of(cfg, pp);
        prt_target_unref(pp->next_target); /* of a reload that was refused */
        pp->next_target = NULL;
        poolrt_rc rc = row ? prt_target_new(&pp->next_target, row->target, err) : POOLRT_OK;
        if (rc) {
            return rc;
        }
    }
    return POOLRT_OK;
}

static void drain(struct prt_proxy_pool *pp, int64_t now)
{
    pp->is_gone = true;
    prt_pool_drain(pp->engine, now);
    prt_listen_close(pp);
}

/* Pools that the configuration names and nobody has asked for yet. */
ON_CONTROL static poolrt_rc make_missing(struct prt_proxy *px, struct prt_config *cfg,
                                         struct prt_err *err)
{
    for (int i = 0; i < cfg->n_pools; i++) {
        const struct prt_pool_config *row = &cfg->pools[i];
        struct prt_str name = prt_str_of(row->name);
        if (prt_str_eqz(name, "*") || prt_map_get(&px->pools, name)) {
            continue;
        }
        struct prt_proxy_pool *pp = pool_new(px, cfg, row, name, err);
        if (!pp) {
            return err->rc;
        }
        warm(pp, row);
    }
    return POOLRT_OK;
}

/* A reload that cannot be: what it has made already is taken back by the next ticks. */
static void drop_new(struct prt_proxy *px, const struct prt_config *cfg)
{
    int64_t now = prt_now_us();

    for (struct prt_map_node *n = prt_map_next(&px->pools, NULL); n;
         n = prt_map_next(&px->pools, n)) {
        struct prt_proxy_pool *pp = prt_container_of(n, struct prt_proxy_pool, node);
        if (pp->owner == cfg && !pp->is_gone) {
            drain(pp, now);
        }
    }
}

static void apply_rows(struct prt_proxy *px, struct prt_config *cfg)
{
    int64_t now = prt_now_us();

    for (struct prt_map_node *n = prt_map_next(&px->pools, NULL); n;
         n = prt_map_next(&px->pools, n)) {
        struct prt_proxy_pool *pp = prt_container_of(n, struct prt_proxy_pool, node);
        const struct prt_pool_config *row = row_of(cfg, pp);
        if (pp->is_gone || pp->owner == cfg) {
            continue;
        }
        if (row) {
            apply_row(pp, cfg, row, now);
        } else {
            drain(pp, now);
        }
    }
}

poolrt_rc prt_pools_apply(struct prt_proxy *px, struct prt_config *cfg, struct prt_err *err)
{
    (void)pthread_mutex_lock(&px->mu);
    poolrt_rc rc = prepare_targets(px, cfg, err);
    if (!rc) {
        rc = make_missing(px, cfg, err);
        if (rc) {
            drop_new(px, cfg);
        } else {
            apply_rows(px, cfg);
        }
    }
    (void)pthread_mutex_unlock(&px->mu);
    return rc;
}

/* ---- maintenance ---- */

static void sample_hour(struct prt_proxy_pool *pp)
{
    time_t now = time(NULL);
    struct tm local;

    if (localtime_r(&now, &local)) {
        pp->open_sum[local.tm_hour] += prt_pool_open(pp->engine);
        pp->open_seen[local.tm_hour]++;
    }
}

/* Under px->mu. true: freed. */
static bool free_unused(struct prt_proxy *px, struct prt_proxy_pool *pp, int64_t now)
{
    const struct prt_pool_config *row = atomic_load_explicit(&pp->cfg, memory_order_relaxed);
    bool may_go = pp->is_gone || strcmp(row->name, "*") == 0;

    /* acquire: pairs with prt_pools_leave() */
    if (!may_go || atomic_load_explicit(&pp->clients, memory_order_acquire) > 0) {
        pp->unused_since_us = now;
        return false;
    }
    if (!pp->is_gone) {
        if (now - pp->unused_since_us < px->snap->cfg->pool_idle_timeout_us) {
            return false;
        }
        drain(pp, now);
    }
    if (prt_pool_open(pp->engine) > 0 || !prt_listen_is_over(pp)) {
        return false;
    }
    prt_map_del(&px->pools, &pp->node);
    px->n_pools--;
    pool_free(pp);
    return true;
}

void prt_pools_tick(struct prt_proxy *px, int64_t now_us)
{
    bool is_sample = now_us - px->last_hour_us > 10000000;

    (void)pthread_mutex_lock(&px->mu);
    for (struct prt_map_node *n = prt_map_next(&px->pools, NULL), *next; n; n = next) {
        struct prt_proxy_pool *pp = prt_container_of(n, struct prt_proxy_pool, node);
        next = prt_map_next(&px->pools, n);
        if (now_us >= prt_pool_due(pp->engine)) {
            (void)prt_pool_tick(pp->engine, now_us);
        }
        if (is_sample) {
            sample_hour(pp);
        }
        (void)free_unused(px, pp, now_us);
    }
    (void)pthread_mutex_unlock(&px->mu);
    if (is_sample) {
        px->last_hour_us = now_us;
    }
}

void prt_pools_drain(struct prt_proxy *px, int64_t now_us)
{
    (void)pthread_mutex_lock(&px->mu);
    for (struct prt_map_node *n = prt_map_next(&px->pools, NULL); n;
         n = prt_map_next(&px->pools, n)) {
        prt_pool_drain(prt_container_of(n, struct prt_proxy_pool, node)->engine, now_us);
    }
    (void)pthread_mutex_unlock(&px->mu);
}

int prt_pools_open(struct prt_proxy *px)
{
    int open = 0;

    (void)pthread_mutex_lock(&px->mu);
    for (struct prt_map_node *n = prt_map_next(&px->pools, NULL); n;
         n = prt_map_next(&px->pools, n)) {
        struct prt_proxy_pool *pp = prt_container_of(n, struct prt_proxy_pool, node);
        open += prt_pool_open(pp->engine) + !prt_listen_is_over(pp);
    }
    (void)pthread_mutex_unlock(&px->mu);
    return open;
}

void prt_pools_fini(struct prt_proxy *px)
{
    for (struct prt_map_node *n = prt_map_next(&px->pools, NULL), *next; n; n = next) {
        next = prt_map_next(&px->pools, n);
        struct prt_proxy_pool *pp = prt_container_of(n, struct prt_proxy_pool, node);
        prt_map_del(&px->pools, n);
        pool_free(pp);
    }
    prt_map_fini(&px->pools);
}
