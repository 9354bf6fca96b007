/* hash.h - an intrusive hash map from byte strings to objects, safe against chosen keys. */
#ifndef PRT_HASH_H
#define PRT_HASH_H
#include "base/base.h"

/** SipHash-2-4 with a random key made at the first call: equal within a process, unknown outside.
 */
uint64_t prt_hash(const void *p, size_t n);
/** The same under a given key. */
uint64_t prt_siphash(const uint64_t key[2], const void *p, size_t n);

/** Embed in the object. `key` is borrowed: it points into the object, unchanged while it is in. */
struct prt_map_node {
    struct prt_map_node *next;
    uint64_t hash;
    struct prt_str key;
};
/** All zero is an empty map. Not thread-safe: the owner locks. Grows by itself; never shrinks. */
struct prt_map {
    struct prt_map_node **bucket;
    size_t n, buckets;
};
struct prt_map_node *prt_map_get(const struct prt_map *m, struct prt_str key);
/** false: no memory, nothing happened. The key must not be in the map. */
PRT_MUST_CHECK bool prt_map_put(struct prt_map *m, struct prt_map_node *node, struct prt_str key);
/** The same for keys that nobody outside chooses (or hashes that are kept): the lowest bits of
 * `hash` must differ where keys do. One map has either these or the two above. */
struct prt_map_node *prt_map_get_hashed(const struct prt_map *m, uint64_t hash, struct prt_str key);
PRT_MUST_CHECK bool prt_map_put_hashed(struct prt_map *m, struct prt_map_node *node, uint64_t hash,
                                       struct prt_str key);
void prt_map_del(struct prt_map *m, struct prt_map_node *node);
/** Next node after `at` (NULL: the first) in no particular order; NULL at the end. */
struct prt_map_node *prt_map_next(const struct prt_map *m, const struct prt_map_node *at);
/** Frees the buckets, not the objects. */
void prt_map_fini(struct prt_map *m);
#endif
