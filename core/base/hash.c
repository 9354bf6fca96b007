/* hash.c - SipHash-2-4 and a chained hash map.
 * Owns: the process's hash key; the buckets of each map.   Threads: prt_hash any; a map its owner.
 * Idea: keys are names that clients choose, so the hash is keyed: who does not know the key cannot
 * pick names that share a bucket. (Aumasson, Bernstein: SipHash, a fast short-input PRF, 2012.) */
#include "base/hash.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define MAP_MIN 8

static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static uint64_t key[2];

static void make_key(void)
{
    prt_random(key, sizeof key);
}

static inline uint64_t rotate(uint64_t x, int bits)
{
    return x << bits | x >> (64 - bits);
}

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1], v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0], v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);
    v[2] += v[1], v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2], v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

static inline uint64_t little(uint64_t x)
{
    return __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? x : __builtin_bswap64(x);
}

/* n < 8 bytes, the first one lowest */
static inline uint64_t load_part(const uint8_t *p, size_t n)
{
    uint64_t x = 0;

    for (size_t i = 0; i < n; i++) {
        x |= (uint64_t)p[i] << 8 * i;
    }
    return x;
}

static inline void sip_word(uint64_t v[4], uint64_t word)
{
    v[3] ^= word;
    sip_round(v);
    sip_round(v);
    v[0] ^= word;
}

uint64_t prt_siphash(const uint64_t k[2], const void *p, size_t n)
{
    uint64_t v[4] = {k[0] ^ 0x736f6d6570736575, k[1] ^ 0x646f72616e646f6d,
                     k[0] ^ 0x6c7967656e657261, k[1] ^ 0x7465646279746573};
    const uint8_t *at = p;
    size_t left = n;

    for (; left >= 8; left -= 8, at += 8) {
        uint64_t word;
        memcpy(&word, at, sizeof word);
        sip_word(v, little(word));
    }
    sip_word(v, (uint64_t)n << 56 | load_part(at, left));
    v[2] ^= 0xff;
    for (int i = 0; i < 4; i++) {
        sip_round(v);
    }
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

uint64_t prt_hash(const void *p, size_t n)
{
    (void)pthread_once(&key_once, make_key);
    return prt_siphash(key, p, n);
}

static inline struct prt_map_node **bucket_of(const struct prt_map *m, uint64_t hash)
{
    return &m->bucket[hash & (m->buckets - 1)];
}

struct prt_map_node *prt_map_get(const struct prt_map *m, struct prt_str name)
{
    return m->n ? prt_map_get_hashed(m, prt_hash(name.p, name.n), name) : NULL;
}

struct prt_map_node *prt_map_get_hashed(const struct prt_map *m, uint64_t hash, struct prt_str name)
{
    struct prt_map_node *at;

    if (m->n == 0) {
        return NULL;
    }
    for (at = *bucket_of(m, hash); at; at = at->next) {
        if (at->hash == hash && prt_str_eq(at->key, name)) {
            return at;
        }
    }
    return NULL;
}

static void chain(struct prt_map *m, struct prt_map_node *node)
{
    struct prt_map_node **head = bucket_of(m, node->hash);

    node->next = *head;
    *head = node;
}

static bool grow(struct prt_map *m)
{
    struct prt_map bigger = {.n = m->n, .buckets = m->buckets ? m->buckets * 2 : MAP_MIN};

    bigger.bucket = PRT_FAULT("map_nomem") ? NULL : calloc(bigger.buckets, sizeof(void *));
    if (!bigger.bucket) {
        return false;
    }
    for (size_t i = 0; i < m->buckets; i++) {
        for (struct prt_map_node *at = m->bucket[i], *next; at; at = next) {
            next = at->next;
            chain(&bigger, at);
        }
    }
    free(m->bucket);
    *m = bigger;
    return true;
}

bool prt_map_put(struct prt_map *m, struct prt_map_node *node, struct prt_str name)
{
    return prt_map_put_hashed(m, node, prt_hash(name.p, name.n), name);
}

bool prt_map_put_hashed(struct prt_map *m, struct prt_map_node *node, uint64_t hash,
                        struct prt_str name)
{
    prt_assert_dbg(!prt_map_get_hashed(m, hash, name));
    /* a map that cannot grow takes longer chains; only one without buckets has to refuse */
    if (m->n >= m->buckets && !grow(m) && m->buckets == 0) {
        return false;
    }
    node->key = name;
    node->hash = hash;
    chain(m, node);
    m->n++;
    return true;
}

void prt_map_del(struct prt_map *m, struct prt_map_node *node)
{
    struct prt_map_node **at;

    prt_assert(m->n > 0);
    for (at = bucket_of(m, node->hash); *at && *at != node;) {
        at = &(*at)->next;
    }
    prt_assert(*at == node); /* it is in this map */
    *at = node->next;
    node->next = NULL;
    m->n--;
}

struct prt_map_node *prt_map_next(const struct prt_map *m, const struct prt_map_node *at)
{
    size_t i = 0;

    if (at && at->next) {
        return at->next;
    }
    if (at) {
        i = (at->hash & (m->buckets - 1)) + 1;
    }
    for (; i < m->buckets; i++) {
        if (m->bucket[i]) {
            return m->bucket[i];
        }
    }
    return NULL;
}

void prt_map_fini(struct prt_map *m)
{
    free(m->bucket);
    *m = (struct prt_map){0};
}
