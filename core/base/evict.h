/* evict.h - which of many to give up when a cache is full. An intrusive order, without locks and
 * without allocation; LRU so far, behind one interface so that a cache does not know which. */
#ifndef PRT_EVICT_H
#define PRT_EVICT_H
#include "base/base.h"

/** Embed in the cached object. */
struct prt_evict_node {
    struct prt_link link;
};
/** The order of one cache. */
struct prt_evict {
    const struct prt_evict_ops *ops;
    struct prt_link order; /* coldest first */
    size_t n;
};
/** One way of choosing. Every operation is O(1), but `victim` for what it has to skip. */
struct prt_evict_ops {
    const char *name;
    void (*add)(struct prt_evict *e, struct prt_evict_node *node);   /* just stored */
    void (*touch)(struct prt_evict *e, struct prt_evict_node *node); /* just used */
    /* the coldest that may_go() allows; NULL: none. It stays in until prt_evict_del(). */
    struct prt_evict_node *(*victim)(struct prt_evict *e,
                                     bool (*may_go)(const struct prt_evict_node *node, void *ctx),
                                     void *ctx);
};
extern const struct prt_evict_ops prt_evict_lru;

void prt_evict_init(struct prt_evict *e, const struct prt_evict_ops *ops);
void prt_evict_add(struct prt_evict *e, struct prt_evict_node *node);
void prt_evict_touch(struct prt_evict *e, struct prt_evict_node *node);
void prt_evict_del(struct prt_evict *e, struct prt_evict_node *node);
struct prt_evict_node *
prt_evict_victim(struct prt_evict *e, bool (*may_go)(const struct prt_evict_node *node, void *ctx),
                 void *ctx);
#endif
