/* evict.c - which of many to give up when a cache is full.
 * Owns: nothing; nodes lie in the cached objects.   Threads: the cache's owner.
 * Idea: a way of choosing is a row of operations over one intrusive list, so that a cache says only
 * "added, used, full". LRU: the list is the order of use. */
#include "base/evict.h"

static void lru_add(struct prt_evict *e, struct prt_evict_node *node)
{
    prt_list_push(&e->order, &node->link);
}

static void lru_touch(struct prt_evict *e, struct prt_evict_node *node)
{
    if (e->order.prev != &node->link) { /* not the hottest already */
        prt_list_del(&node->link);
        prt_list_push(&e->order, &node->link);
    }
}

static struct prt_evict_node *
lru_victim(struct prt_evict *e, bool (*may_go)(const struct prt_evict_node *node, void *ctx),
           void *ctx)
{
    for (struct prt_link *at = e->order.next; at != &e->order; at = at->next) {
        struct prt_evict_node *node = prt_container_of(at, struct prt_evict_node, link);
        if (may_go(node, ctx)) {
            return node;
        }
    }
    return NULL;
}

const struct prt_evict_ops prt_evict_lru = {"lru", lru_add, lru_touch, lru_victim};

void prt_evict_init(struct prt_evict *e, const struct prt_evict_ops *ops)
{
    e->ops = ops;
    e->n = 0;
    prt_list_init(&e->order);
}

void prt_evict_add(struct prt_evict *e, struct prt_evict_node *node)
{
    e->ops->add(e, node);
    e->n++;
}

void prt_evict_touch(struct prt_evict *e, struct prt_evict_node *node)
{
    e->ops->touch(e, node);
}

void prt_evict_del(struct prt_evict *e, struct prt_evict_node *node)
{
    prt_assert(e->n > 0 && !prt_list_empty(&node->link));
    prt_list_del(&node->link);
    e->n--;
}

struct prt_evict_node *
prt_evict_victim(struct prt_evict *e, bool (*may_go)(const struct prt_evict_node *node, void *ctx),
                 void *ctx)
{
    return e->ops->victim(e, may_go, ctx);
}
