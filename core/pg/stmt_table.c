/* stmt_table.c - texts of prepared statements, one for all clients and servers.
 * Owns: each statement, from the first reference to the last.   Threads: any; shards have locks.
 * Idea: a statement is what PostgreSQL makes of bytes under settings, so its key is those bytes,
 * the parameter types and the settings that Parse bakes in (an interned set, by its address: the
 * statement keeps it alive). Numbers are never used again, so that a name on a server can only mean
 * one text for ever. */
#include "base/hash.h"
#include "pg/stmt_int.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHARDS 16
#define ENV_SIZE sizeof(void *) /* of an address, the first part of a key */

static struct shard {
    pthread_mutex_t mu; /* innermost: nothing is called under it */
    struct prt_map map; /* under mu */
} shards[SHARDS] = {
#define ONE                                                                                        \
    {                                                                                              \
        PTHREAD_MUTEX_INITIALIZER,                                                                 \
        {                                                                                          \
            0                                                                                      \
        }                                                                                          \
    }
    ONE, ONE, ONE, ONE, ONE, ONE, ONE, ONE, ONE, ONE, ONE, ONE, ONE, ONE, ONE, ONE,
#undef ONE
};
static _Atomic uint64_t last_id; /* atomic: only counts */
static _Atomic uint32_t schema;  /* atomic: only counts */

uint32_t prt_stmt_schema(void)
{
    /* relaxed: who reads an older value answered a moment before the change was known */
    return atomic_load_explicit(&schema, memory_order_relaxed);
}

void prt_stmt_schema_changed(void)
{
    (void)atomic_fetch_add_explicit(&schema, 1, memory_order_relaxed);
}

static struct shard *shard_of(struct prt_str key)
{
    /* the low bits choose the bucket in the shard's map */
    return &shards[prt_hash(key.p, key.n) >> 60 & (SHARDS - 1)];
}

bool prt_params_scs(const struct prt_params *params)
{
    struct prt_str value;

    return !prt_params_get(params, PRT_STR("standard_conforming_strings"), &value) ||
           !prt_str_eqz(value, "off");
}

static void free_stmt(struct prt_stmt *st)
{
    prt_effects_unref(st->effects);
    prt_params_unref(st->env);
    free(st);
}

/* A statement that is not in the table yet; NULL: no memory. */
static struct prt_stmt *make(const struct prt_params *params, struct prt_str rest)
{
    const struct prt_params *env = prt_params_parse_env(params);
    const char *end = memchr(rest.p, 0, rest.n);
    struct prt_str text = {rest.p, end ? (size_t)(end - rest.p) : rest.n};
    struct prt_stmt *st = calloc(1, sizeof *st + ENV_SIZE + rest.n);
    bool failed = false;

    if (!st) {
        return NULL;
    }
    memcpy(st->key, &env, ENV_SIZE);
    memcpy(st->key + ENV_SIZE, rest.p, rest.n);
    st->rest = (struct prt_str){st->key + ENV_SIZE, rest.n};
    st->env = prt_params_ref(env);
    atomic_init(&st->refs, 1);
    atomic_init(&st->generation, 1);
    if (!prt_sql_is_plain(text)) {
        st->effects = prt_effects_of(text, prt_params_scs(env), &failed);
    }
    if (failed) {
        free_stmt(st);
        return NULL;
    }
    return st;
}

static void set_id(struct prt_stmt *st)
{
    int n;

    /* relaxed: only uniqueness matters */
    st->id = atomic_fetch_add_explicit(&last_id, 1, memory_order_relaxed) + 1;
    n = snprintf(st->room, sizeof st->room, PRT_OUR_PREFIX "%llu", (unsigned long long)st->id);
    st->server_name = (struct prt_str){st->room, (size_t)n};
}

struct prt_stmt *prt_stmt_get(const struct prt_params *params, struct prt_str rest)
{
    struct prt_stmt *st = make(params, rest), *old = NULL;
    struct prt_map_node *there;
    struct shard *sh;
    bool ok = true;

    if (!st) {
        return NULL;
    }
    struct prt_str key = {st->key, ENV_SIZE + rest.n};
    sh = shard_of(key);
    (void)pthread_mutex_lock(&sh->mu);
    there = prt_map_get(&sh->map, key);
    if (there) {
        old = prt_container_of(there, struct prt_stmt, node);
        (void)atomic_fetch_add_explicit(&old->refs, 1, memory_order_relaxed);
    } else {
        set_id(st);
        ok = prt_map_put(&sh->map, &st->node, key);
    }
    (void)pthread_mutex_unlock(&sh->mu);
    if (old || !ok) {
        free_stmt(st);
        return old;
    }
    return st;
}

struct prt_stmt *prt_stmt_ref(struct prt_stmt *st)
{
    /* relaxed: the caller has a reference, so it is visible to it already */
    (void)atomic_fetch_add_explicit(&st->refs, 1, memory_order_relaxed);
    return st;
}

void prt_stmt_unref(struct prt_stmt *st)
{
    struct shard *sh;
    uint32_t refs;

    if (!st) {
        return;
    }
    refs = atomic_load_explicit(&st->refs, memory_order_relaxed);
    while (refs > 1) {
        /* release: pairs with the acquire of the one who frees */
        if (atomic_compare_exchange_weak_explicit(&st->refs, &refs, refs - 1, memory_order_release,
                                                  memory_order_relaxed)) {
            return;
        }
    }
    /* perhaps the last: under the lock, because prt_stmt_get() hands out references under it */
    sh = shard_of(st->node.key);
    (void)pthread_mutex_lock(&sh->mu);
    refs = atomic_fetch_sub_explicit(&st->refs, 1, memory_order_acq_rel);
    prt_assert(refs != 0);
    if (refs == 1) {
        prt_map_del(&sh->map, &st->node);
    }
    (void)pthread_mutex_unlock(&sh->mu);
    if (refs == 1) {
        free_stmt(st);
    }
}

size_t prt_stmt_total(void)
{
    size_t n = 0;

    for (unsigned i = 0; i < SHARDS; i++) {
        (void)pthread_mutex_lock(&shards[i].mu);
        n += shards[i].map.n;
        (void)pthread_mutex_unlock(&shards[i].mu);
    }
    return n;
}
