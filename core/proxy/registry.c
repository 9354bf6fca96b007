/* registry.c - cancel keys: from the eight bytes a client was given to the worker it lives on.
 * Owns: the table, in shards with a lock each.   Threads: any.
 * Idea: a key is random, so its own bytes are the hash. A cancel request may arrive on any worker:
 * it asks here for the lane and mails; only the client's own thread removes an entry, so there the
 * answer of prt_registry_find() stays true for as long as it does not remove it itself. */
#include "proxy/proxy_int.h"

#include <stdlib.h>
#include <string.h>

#define KEY_TRIES 16

bool prt_registry_init(struct prt_registry *r)
{
    memset(r, 0, sizeof *r);
    for (int i = 0; i < PRT_REGISTRY_SHARDS; i++) {
        struct prt_registry_shard *sh = &r->shard[i];
        (void)pthread_mutex_init(&sh->mu, NULL);
        sh->buckets = 16;
        sh->bucket = calloc(sh->buckets, sizeof(void *));
        if (!sh->bucket) {
            return false;
        }
    }
    return true;
}

void prt_registry_fini(struct prt_registry *r)
{
    for (int i = 0; i < PRT_REGISTRY_SHARDS; i++) {
        free(r->shard[i].bucket);
        r->shard[i].bucket = NULL;
    }
}

/* The pid in front is 31 bits with 19 random ones; the secret behind it is all random. */
static uint32_t hash_of(const uint8_t key[PRT_CANCEL_KEY])
{
    return prt_get32(key + 4);
}

static struct prt_registry_shard *shard_of(struct prt_registry *r,
                                           const uint8_t key[PRT_CANCEL_KEY])
{
    return &r->shard[hash_of(key) % PRT_REGISTRY_SHARDS];
}

/* A wrong guess and a right one read the same bytes: which of them differ cannot be timed. */
static struct prt_registry_entry *find_locked(struct prt_registry_shard *sh,
                                              const uint8_t key[PRT_CANCEL_KEY])
{
    struct prt_registry_entry *e = sh->bucket[hash_of(key) / PRT_REGISTRY_SHARDS % sh->buckets];

    while (e && !prt_secret_eq(e->key, key, PRT_CANCEL_KEY)) {
        e = e->next;
    }
    return e;
}

static void put_locked(struct prt_registry_shard *sh, struct prt_registry_entry *e)
{
    struct prt_registry_entry **b =
        &sh->bucket[hash_of(e->key) / PRT_REGISTRY_SHARDS % sh->buckets];

    e->next = *b;
    *b = e;
}

/* Twice the buckets when they are full; without memory the lines just get longer. */
static void grow_locked(struct prt_registry_shard *sh)
{
    uint32_t old_n = sh->buckets;
    struct prt_registry_entry **old = sh->bucket,
                              **more = calloc((size_t)old_n * 2, sizeof(void *));

    if (!more) {
        return;
    }
    sh->bucket = more;
    sh->buckets = old_n * 2;
    for (uint32_t i = 0; i < old_n; i++) {
        for (struct prt_registry_entry *e = old[i], *next; e; e = next) {
            next = e->next;
            put_locked(sh, e);
        }
    }
    free(old);
}

static void make_key(uint8_t key[PRT_CANCEL_KEY])
{
    prt_random(key, PRT_CANCEL_KEY);
    /* positive pid: 12 bits of instance, 0 = alone, then 19 random ones */
    prt_put32(key, (prt_get32(key) & 0x7ffff) | 1);
}

bool prt_registry_add(struct prt_registry *r, struct prt_registry_entry *e, uint16_t lane)
{
    e->lane = lane;
    for (int i = 0; i < KEY_TRIES; i++) {
        make_key(e->key);
        struct prt_registry_shard *sh = shard_of(r, e->key);
        (void)pthread_mutex_lock(&sh->mu);
        bool is_new = !find_locked(sh, e->key);
        if (is_new) {
            if (sh->n++ >= sh->buckets) {
                grow_locked(sh);
            }
            put_locked(sh, e);
        }
        (void)pthread_mutex_unlock(&sh->mu);
        if (is_new) {
            return true;
        }
    }
    return false;
}

void prt_registry_del(struct prt_registry *r, struct prt_registry_entry *e)
{
    struct prt_registry_shard *sh = shard_of(r, e->key);

    (void)pthread_mutex_lock(&sh->mu);
    struct prt_registry_entry **at =
        &sh->bucket[hash_of(e->key) / PRT_REGISTRY_SHARDS % sh->buckets];
    while (*at && *at != e) {
        at = &(*at)->next;
    }
    prt_assert(*at == e);
    *at = e->next;
    sh->n--;
    (void)pthread_mutex_unlock(&sh->mu);
}

struct prt_registry_entry *prt_registry_find(struct prt_registry *r,
                                             const uint8_t key[PRT_CANCEL_KEY])
{
    struct prt_registry_shard *sh = shard_of(r, key);

    (void)pthread_mutex_lock(&sh->mu);
    struct prt_registry_entry *e = find_locked(sh, key);
    (void)pthread_mutex_unlock(&sh->mu);
    return e;
}

int prt_registry_lane(struct prt_registry *r, const uint8_t key[PRT_CANCEL_KEY])
{
    struct prt_registry_shard *sh = shard_of(r, key);

    (void)pthread_mutex_lock(&sh->mu);
    struct prt_registry_entry *e = find_locked(sh, key);
    int lane = e ? e->lane : -1;
    (void)pthread_mutex_unlock(&sh->mu);
    return lane;
}
