/* pool.c - birth and death of pools and classes, and the step: one hold of the mutex.
 * Owns: the mutex, the gate's flags, the list of classes.   Threads: any.
 * Idea: everything that is not a lock-free fast path is a *step*: lock, decide, note what the ops
 * have to do, unlock, call the ops. So no op runs under the mutex, and each step ends by handing on
 * whatever it set free. */
#include "pool/pool_int.h"

#include <stdlib.h>
#include <string.h>

/* ---- steps ---- */
void prt_step_begin(struct step *st, struct prt_pool *p, int64_t now_us)
{
    st->p = p;
    st->is_settled = false;
    prt_list_init(&st->served);
    prt_list_init(&st->moved);
    prt_list_init(&st->open);
    prt_list_init(&st->close);
    prt_list_init(&st->dead);
    pthread_mutex_lock(&p->mu);
    /* the pool's time only goes forward: callers bring the time of different loops, and a negative
     * wait would hide a waiter from the chooser */
    if (now_us > p->now_us) {
        p->now_us = now_us;
    }
    st->now_us = p->now_us;
}

static bool class_is_dead(const struct prt_class *c)
{
    return c->refs == 0 && c->open == 0 && c->coming == 0 && c->parked == 0 && prt_queued(c) == 0;
}

static void class_unlink(struct prt_class *c)
{
    struct prt_pool *p = c->pool;

    prt_list_del(&c->resting);
    prt_map_del(&p->classes, &c->node);
    p->class_by_id[c->id] = NULL;
}

static void class_free(struct prt_class *c)
{
    uint32_t chunks = ((uint32_t)c->pool->capacity + SEATS - 1) / SEATS;

    for (uint32_t k = 0; c->chunk && k < chunks; k++) {
        free(prt_chunk(c, k));
    }
    free((void *)(uintptr_t)c->chunk); /* the cast drops _Atomic */
    free(c->near);
    free(c->line);
    free(c);
}

static void reap_classes(struct step *st)
{
    struct prt_link *l;

    while ((l = prt_list_pop(&st->p->mortal))) {
        struct prt_class *c = CLASS_OF(l, mortal);
        if (class_is_dead(c)) {
            class_unlink(c);
            prt_list_push(&st->dead, l);
        }
    }
}

static void bury_classes(struct step *st)
{
    struct prt_link *l;

    while ((l = prt_list_pop(&st->dead))) {
        struct prt_class *c = CLASS_OF(l, mortal);
        st->p->ops->class_free(st->p->ctx, c->user);
        class_free(c);
    }
}

/* The mutex's invariants after each step: always where that is cheap, sampled in big pools. */
static void check_step(struct prt_pool *p)
{
#ifdef PRT_DEBUG
    bool is_small = p->capacity <= 64 && p->n_ids <= 16 && (prt_gate(p) & GATE_WAITING) <= 256;
    if (is_small || ++p->steps % 1024 == 0) {
        const char *bad = prt_check_books(p);
        if (bad) {
            prt_panic(__FILE__, __LINE__, bad);
        }
    }
#else
    (void)p;
#endif
}

static void run_ops(struct step *st)
{
    struct prt_pool *p = st->p;
    struct prt_link *l;

    while ((l = prt_list_pop(&st->served))) {
        p->ops->served(p->ctx, WAITER_OF(l));
    }
    while ((l = prt_list_pop(&st->moved))) {
        struct prt_waiter *w = WAITER_OF(l);
        p->ops->move(p->ctx, w->lease.slot, w);
    }
    while ((l = prt_list_pop(&st->close))) {
        struct slot *s = SLOT_OF(l);
        p->ops->close(p->ctx, &s->pub, s->why);
    }
    while ((l = prt_list_pop(&st->open))) {
        p->ops->open(p->ctx, &SLOT_OF(l)->pub);
    }
}

void prt_step_end(struct step *st)
{
    struct prt_pool *p = st->p;

    if (!st->is_settled) {
        prt_settle(st);
        prt_feed(st);
    }
    reap_classes(st);
    check_step(p);
    pthread_mutex_unlock(&p->mu);
    run_ops(st);
    bury_classes(st);
}

void prt_gate_flag(struct prt_pool *p, uint64_t flag, bool on)
{
    bool is_on = prt_gate_flags(p) & flag;

    if (on && !is_on) {
        /* seq_cst: before the scan of idle bits that follows; pairs with the looks A4 and R4 */
        atomic_fetch_or_explicit(&p->gate, flag, memory_order_seq_cst);
    } else if (!on && is_on) {
        atomic_fetch_and_explicit(&p->gate, ~flag, memory_order_seq_cst);
    }
}

void prt_due_by(struct prt_pool *p, int64_t at_us)
{
    if (at_us < atomic_load_explicit(&p->due_us, memory_order_relaxed)) {
        atomic_store_explicit(&p->due_us, at_us, memory_order_relaxed);
    }
}

/* xorshift64*: spreads lifetimes, nothing secret. Stirred by the time, so that it differs between
 * processes and repeats in tests. */
uint64_t prt_pool_random(struct prt_pool *p)
{
    p->random ^= (uint64_t)p->now_us;
    p->random += p->random == 0;
    p->random ^= p->random >> 12;
    p->random ^= p->random << 25;
    p->random ^= p->random >> 27;
    return p->random * 0x2545f4914f6cdd1dull;
}

/* ---- classes ---- */
void prt_class_mortal(struct prt_class *c)
{
    if (class_is_dead(c) && prt_list_empty(&c->mortal)) {
        prt_list_push(&c->pool->mortal, &c->mortal);
    }
}

static void *zeroed(size_t n)
{
    size_t room = (n + PRT_CACHE_LINE - 1) & ~(size_t)(PRT_CACHE_LINE - 1);
    void *p = aligned_alloc(PRT_CACHE_LINE, room);

    if (p) {
        memset(p, 0, room);
    }
    return p;
}

static void class_lists(struct prt_class *c)
{
    prt_list_init(&c->resting);
    prt_list_init(&c->lined);
    prt_list_init(&c->mortal);
    for (int l = 0; l < c->pool->lanes; l++) {
        for (int k = 0; k < PRT_PRIORITIES; k++) {
            prt_list_init(&c->line[l][k]);
        }
    }
}

static struct prt_class *class_new(struct prt_pool *p, struct prt_str key, void *user)
{
    struct prt_class *c = calloc(1, sizeof *c + key.n + 1);
    size_t lanes = (size_t)p->lanes;
    uint32_t chunks = ((uint32_t)p->capacity + SEATS - 1) / SEATS;

    if (!c) {
        return NULL;
    }
    c->pool = p;
    c->user = user;
    c->switched_us = INT64_MIN / 2;
    c->near = zeroed(lanes * p->near_size);
    c->chunk = calloc(chunks, sizeof *c->chunk);
    c->line = calloc(lanes, sizeof *c->line);
    if (!c->near || !c->chunk || !c->line) {
        class_free(c);
        return NULL;
    }
    class_lists(c);
    memcpy(c->key, key.p, key.n);
    return c;
}

static bool heaps_grow(struct prt_pool *p)
{
    int room = p->heap_room ? p->heap_room * 2 : 8;

    for (int k = 0; k < PRT_PRIORITIES; k++) {
        struct prt_class **at = realloc(p->heap[k].at, (size_t)room * sizeof(void *));
        if (!at) {
            return false;
        }
        p->heap[k].at = at;
    }
    p->heap_room = room;
    return true;
}

static bool class_number(struct prt_pool *p, struct prt_class *c, size_t key_len)
{
    uint32_t id = 0;

    while (id < p->n_ids && p->class_by_id[id]) {
        id++;
    }
    if (id == PRT_CLASSES_MAX || ((int)id >= p->heap_room && !heaps_grow(p))) {
        return false;
    }
    c->id = id;
    if (!prt_map_put(&p->classes, &c->node, (struct prt_str){c->key, key_len})) {
        return false;
    }
    p->class_by_id[id] = c;
    p->n_ids = id == p->n_ids ? id + 1 : p->n_ids;
    return true;
}

struct prt_class *prt_pool_class(struct prt_pool *p, struct prt_str key, void *user)
{
    struct prt_class *c;
    bool is_taken = false;

    pthread_mutex_lock(&p->mu);
    struct prt_map_node *node = prt_map_get(&p->classes, key);
    if (node) {
        c = prt_container_of(node, struct prt_class, node);
    } else {
        c = class_new(p, key, user);
        is_taken = c && class_number(p, c, key.n);
        if (c && !is_taken) {
            class_free(c);
            c = NULL;
        }
    }
    if (c) {
        c->refs++;
    }
    pthread_mutex_unlock(&p->mu);
    if (!is_taken) {
        p->ops->class_free(p->ctx, user);
    }
    return c;
}

struct prt_class *prt_class_ref(struct prt_class *c)
{
    pthread_mutex_lock(&c->pool->mu);
    c->refs++;
    pthread_mutex_unlock(&c->pool->mu);
    return c;
}

void prt_class_unref(struct prt_class *c)
{
    struct step st;

    if (!c) {
        return;
    }
    prt_step_begin(&st, c->pool, 0);
    prt_assert_dbg(c->refs > 0);
    c->refs--;
    prt_class_mortal(c);
    prt_step_end(&st);
}

void *prt_class_user(const struct prt_class *c)
{
    return c->user;
}

void prt_class_error(struct prt_class *c, struct prt_err *out)
{
    pthread_mutex_lock(&c->pool->mu);
    *out = c->error;
    pthread_mutex_unlock(&c->pool->mu);
}

/* ---- pools ---- */
static poolrt_rc refuse(const struct prt_limits *lim, int lanes, int capacity, struct prt_err *err)
{
    if (lanes < 1 || lanes > PRT_LANES_MAX) {
        return prt_fail(err, POOLRT_CONFIG, "a pool has 1 to %d lanes, not %d", PRT_LANES_MAX,
                        lanes);
    }
    if (capacity < 1 || capacity > PRT_CAPACITY_MAX) {
        return prt_fail(err, POOLRT_CONFIG, "a pool has room for 1 to %d connections, not %d",
                        PRT_CAPACITY_MAX, capacity);
    }
    if (lim->max < 1 || lim->max > capacity || lim->min < 0 || lim->min > lim->max) {
        return prt_fail(err, POOLRT_CONFIG,
                        "min_size %d and max_size %d do not fit 0 <= min <= max, 1 <= max <= %d",
                        lim->min, lim->max, capacity);
    }
    return POOLRT_OK;
}

static void pool_lists(struct prt_pool *p)
{
    prt_list_init(&p->free);
    prt_list_init(&p->lined);
    prt_list_init(&p->resting);
    prt_list_init(&p->mortal);
    prt_list_init(&p->unsettled);
    prt_list_init(&p->spare_line);
    prt_list_init(&p->counting);
    prt_list_init(&p->flows);
}

static bool pool_arrays(struct prt_pool *p)
{
    uint32_t chunks = ((uint32_t)p->capacity + SEATS - 1) / SEATS;
    size_t near;

    p->may_words = (chunks + 63) / 64;
    near = sizeof(struct near) + p->may_words * sizeof(uint64_t);
    p->near_size = (near + PRT_CACHE_LINE - 1) & ~(size_t)(PRT_CACHE_LINE - 1);
    p->slots = zeroed((size_t)p->capacity * sizeof *p->slots);
    p->lane = zeroed(((size_t)p->lanes + 1) * sizeof *p->lane);
    if (!p->slots || !p->lane) {
        return false;
    }
    for (int i = 0; i < p->capacity; i++) {
        p->slots[i].pub.pool = p;
        p->slots[i].pub.index = (uint32_t)i;
        prt_list_push(&p->free, &p->slots[i].pub.link);
    }
    return true;
}

poolrt_rc prt_pool_new(struct prt_pool **out, const struct prt_limits *lim, int lanes, int capacity,
                       const struct prt_conn_ops *ops, struct prt_policy_ops *policy, void *ctx,
                       struct prt_err *err)
{
    poolrt_rc rc = refuse(lim, lanes, capacity, err);
    struct prt_pool *p;

    *out = NULL;
    if (rc != POOLRT_OK) {
        return rc;
    }
    p = zeroed(sizeof *p);
    if (!p || pthread_mutex_init(&p->mu, NULL) != 0) {
        free(p);
        return prt_fail(err, POOLRT_NOMEM, "no memory for a pool");
    }
    p->ops = ops, p->policy = policy, p->ctx = ctx;
    p->lanes = lanes, p->capacity = capacity;
    p->has_home = ops->move != NULL;
    p->lim = *lim;
    p->opened_at_us = INT64_MIN / 2;
    atomic_store_explicit(&p->max, lim->max, memory_order_relaxed);
    atomic_store_explicit(&p->due_us, INT64_MAX, memory_order_relaxed);
    p->random = 1;
    pool_lists(p);
    if (!pool_arrays(p) || !(p->deflt = prt_partition_new(p, PRT_STR("default")))) {
        prt_pool_free(p);
        return prt_fail(err, POOLRT_NOMEM, "no memory for a pool of %d connections", capacity);
    }
    *out = p;
    return POOLRT_OK;
}

static void free_partitions(struct prt_pool *p)
{
    struct part_table *t = atomic_load_explicit(&p->table, memory_order_relaxed);
    struct prt_link *l, *next;

    while (p->parts) {
        struct prt_partition *part = p->parts;
        p->parts = part->next;
        free(part->lane);
        free(part);
    }
    while (t) {
        struct part_table *older = t->older;
        free(t);
        t = older;
    }
    for (l = p->flows.next; l != &p->flows; l = next) {
        next = l->next;
        free(prt_container_of(l, struct flow, link));
    }
}

void prt_pool_free(struct prt_pool *p)
{
    if (!p) {
        return;
    }
    prt_assert((prt_gate(p) & GATE_WAITING) == 0 && prt_n(&p->open) == 0);
    for (uint32_t i = 0; i < p->n_ids; i++) {
        if (p->class_by_id[i]) {
            p->ops->class_free(p->ctx, p->class_by_id[i]->user);
            class_free(p->class_by_id[i]);
        }
    }
    free_partitions(p);
    prt_map_fini(&p->classes);
    for (int k = 0; k < PRT_PRIORITIES; k++) {
        free(p->heap[k].at);
    }
    free(p->lane);
    free(p->slots);
    (void)pthread_mutex_destroy(&p->mu);
    free(p);
}

void *prt_pool_ctx(const struct prt_pool *p)
{
    return p->ctx;
}
