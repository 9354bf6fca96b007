/* partition.c - governed shares: credits, reservations, and who is parked because a share is full.
 * Owns: credits, the lists of the parked, the table of names.
 * Threads: credits and names any, without a lock; lists and limits under the pool's mutex.
 * Idea: a lease of a partition with a limit holds a *credit*. One atomic word has the number of
 * credits, the minimum and the mode, so that each change is one step. Leases beyond the minimum
 * also hold one of the pool's *spare* credits (max less the sum of minima), but only in pools that
 * have a minimum. Without a limit that can bind nothing shared is written. Rejected: a count that
 * every partition keeps always (one cache line that all workers write, 50 ns per transaction). */
#include "pool/pool_int.h"

#include <stdlib.h>
#include <string.h>

static uint32_t use_count(uint64_t u)
{
    return (uint32_t)(u & USE_MASK);
}
static uint32_t use_min(uint64_t u)
{
    return (uint32_t)(u >> USE_BITS & USE_MASK);
}
/* Spare credits that a partition with this word holds. */
static uint32_t use_spare(uint64_t u)
{
    return (u & USE_SPARE) && use_count(u) > use_min(u) ? use_count(u) - use_min(u) : 0;
}

/* ---- credits (any thread) ---- */
bool prt_spare_is_free(struct prt_pool *p)
{
    return atomic_load_explicit(&p->spare, memory_order_seq_cst) <
           atomic_load_explicit(&p->spare_limit, memory_order_seq_cst);
}

static bool spare_take(struct prt_pool *p)
{
    uint32_t n = atomic_load_explicit(&p->spare, memory_order_seq_cst);

    while (n < atomic_load_explicit(&p->spare_limit, memory_order_seq_cst)) {
        if (atomic_compare_exchange_weak_explicit(&p->spare, &n, n + 1, memory_order_seq_cst,
                                                  memory_order_seq_cst)) {
            return true;
        }
    }
    return false;
}

static void spare_give(struct prt_pool *p)
{
    /* seq_cst: before the giver's look at the gate; pairs with gate + 1 before a failed take */
    atomic_fetch_sub_explicit(&p->spare, 1, memory_order_seq_cst);
}

/* One step for count and limit: check, then count, would pass the limit. The word carries minimum
 * and mode, so the exchange also proves that both are still true. *look: a spare credit was held
 * without need for a moment; somebody may have met the limit because of it. */
enum credit prt_credit_take(struct prt_partition *part, bool *counted, bool *look)
{
    struct prt_pool *p = part->pool;
    uint64_t u = atomic_load_explicit(&part->use, memory_order_seq_cst);
    enum credit result = CREDIT_OK;
    bool has_spare = false;

    *counted = true;
    for (;;) {
        if (!(u & USE_COUNTED)) {
            *counted = false;
            break;
        }
        if (use_count(u) >= atomic_load_explicit(&part->limit, memory_order_seq_cst)) {
            result = CREDIT_FULL;
            break;
        }
        bool wants_spare = (u & USE_SPARE) && use_count(u) >= use_min(u);
        if (wants_spare && !has_spare && !(has_spare = spare_take(p))) {
            result = CREDIT_NO_SPARE;
            break;
        }
        if (atomic_compare_exchange_weak_explicit(&part->use, &u, u + USE_ONE, memory_order_seq_cst,
                                                  memory_order_seq_cst)) {
            has_spare = has_spare && !wants_spare;
            break;
        }
    }
    if (has_spare) {
        spare_give(p);
        *look = true;
    }
    return result;
}

/* Followed by a look at the gate. */
void prt_credit_give(struct prt_partition *part)
{
    /* seq_cst: before the look at the gate; pairs with gate + 1 before a failed take */
    uint64_t u = atomic_fetch_sub_explicit(&part->use, USE_ONE, memory_order_seq_cst);

    prt_assert_dbg(use_count(u) > 0);
    if (use_spare(u) > 0) {
        spare_give(part->pool);
    }
}

enum credit prt_credit_look(struct prt_partition *part)
{
    uint64_t u = atomic_load_explicit(&part->use, memory_order_seq_cst);

    if (!(u & USE_COUNTED)) {
        return CREDIT_OK;
    }
    if (use_count(u) >= atomic_load_explicit(&part->limit, memory_order_seq_cst)) {
        return CREDIT_FULL;
    }
    if ((u & USE_SPARE) && use_count(u) >= use_min(u) && !prt_spare_is_free(part->pool)) {
        return CREDIT_NO_SPARE;
    }
    return CREDIT_OK;
}

/* released is read first, so that a lease may be counted for a moment too long, never too short */
uint32_t prt_partition_active(struct prt_partition *part)
{
    uint64_t acquired = 0, released = 0;

    for (int l = 0; l <= part->pool->lanes; l++) {
        released += atomic_load_explicit(&part->lane[l].released, memory_order_relaxed);
    }
    for (int l = 0; l <= part->pool->lanes; l++) {
        acquired += atomic_load_explicit(&part->lane[l].acquired, memory_order_relaxed);
    }
    return acquired > released ? (uint32_t)(acquired - released) : 0;
}

/* ---- the parked (under mu) ---- */
struct flow *prt_flow_of(struct prt_partition *part, const struct prt_class *c)
{
    for (struct prt_link *l = part->flows.next; l != &part->flows; l = l->next) {
        struct flow *f = prt_container_of(l, struct flow, link);
        if (f->cls == c) {
            return f;
        }
    }
    return NULL;
}

static struct flow *flow_make(struct prt_partition *part, struct prt_class *c)
{
    struct prt_link *l = prt_list_pop(&part->pool->flows);
    struct flow *f = l ? prt_container_of(l, struct flow, link) : malloc(sizeof *f);

    if (f) {
        f->cls = c;
        for (int k = 0; k < PRT_PRIORITIES; k++) {
            prt_list_init(&f->parked[k]);
        }
        prt_list_push(&part->flows, &f->link);
        part->n_flows++;
    }
    return f;
}

struct prt_waiter *prt_flow_best(struct flow *f, int64_t now_us)
{
    struct prt_waiter *best = NULL;

    for (int k = 0; k < PRT_PRIORITIES; k++) {
        if (!prt_list_empty(&f->parked[k])) {
            struct prt_waiter *w = WAITER_OF(f->parked[k].next);
            best = !best || prt_goes_before(w, best, now_us) ? w : best;
        }
    }
    return best;
}

static void flow_end(struct prt_partition *part, struct flow *f)
{
    for (int k = 0; k < PRT_PRIORITIES; k++) {
        if (!prt_list_empty(&f->parked[k])) {
            return;
        }
    }
    prt_list_del(&f->link);
    part->n_flows--;
    prt_list_push(&part->pool->flows, &f->link);
}

void prt_spare_line(struct prt_partition *part, bool in)
{
    struct prt_pool *p = part->pool;

    if (in && prt_list_empty(&part->spare)) {
        prt_list_push(&p->spare_line, &part->spare);
    } else if (!in) {
        prt_list_del(&part->spare);
    }
    prt_gate_flag(p, GATE_SPARE, !prt_list_empty(&p->spare_line));
}

/* Step aside, arrival kept: nobody scans past who cannot be served. A waiter that met the limit is
 * counted once; while it waits, lease.gen remembers that. */
void prt_park(struct step *st, struct prt_waiter *w)
{
    struct prt_partition *part = w->part;
    struct flow *f = prt_flow_of(part, w->cls);

    prt_assert_dbg(w->state == PRT_WAITER_QUEUED);
    if (!f && !(f = flow_make(part, w->cls))) {
        prt_wait_fail(st, w, POOLRT_NOMEM);
        st->p->n.failed++;
        return;
    }
    prt_line_leave(w);
    w->state = PRT_WAITER_PARKED;
    prt_by_arrival(&f->parked[w->priority], w);
    part->parked++, w->cls->parked++;
    part->limit_violations += w->lease.gen == 0;
    w->lease.gen = 1;
    /* who is short of a spare credit is helped by any partition's release, so stands in that line;
     * a credit of its own that came free is seen by the releaser, since w is counted in the gate */
    if (prt_credit_look(part) != CREDIT_FULL) {
        prt_spare_line(part, true);
    }
}

void prt_unpark(struct prt_waiter *w)
{
    struct prt_partition *part = w->part;

    prt_list_del(&w->link);
    part->parked--, w->cls->parked--;
    flow_end(part, prt_flow_of(part, w->cls));
    if (part->parked == 0) {
        prt_spare_line(part, false);
    }
}

/* Leases that the partition may still take. */
static uint64_t credits_left(struct prt_partition *part)
{
    uint64_t u = atomic_load_explicit(&part->use, memory_order_seq_cst);
    uint64_t limit = atomic_load_explicit(&part->limit, memory_order_seq_cst);
    uint64_t own = limit > use_count(u) ? limit - use_count(u) : 0, more = 0;

    if (!(u & USE_SPARE)) {
        return u & USE_COUNTED ? own : UINT64_MAX;
    }
    if (prt_spare_is_free(part->pool)) {
        more = atomic_load_explicit(&part->pool->spare_limit, memory_order_relaxed) -
               atomic_load_explicit(&part->pool->spare, memory_order_relaxed);
    }
    more += use_min(u) > use_count(u) ? use_min(u) - use_count(u) : 0;
    return own < more ? own : more;
}

/* While there is credit, as many as it is for step back into line, and at least one of each class:
 * a waiter whose class has no slot must not hold up one whose class has. Who leaves the line
 * unsettles the partition again. */
void prt_settle_partition(struct step *st, struct prt_partition *part)
{
    for (int n = part->n_flows; part->n_flows > 0; n--) {
        enum credit credit = prt_credit_look(part);
        uint32_t in_line =
            atomic_load_explicit(&part->waiting, memory_order_relaxed) - (uint32_t)part->parked;
        if (credit == CREDIT_NO_SPARE) {
            prt_spare_line(part, true);
        }
        if (credit != CREDIT_OK || (n <= 0 && in_line >= credits_left(part))) {
            return;
        }
        struct flow *f = prt_container_of(part->flows.next, struct flow, link);
        struct prt_waiter *w = prt_flow_best(f, st->now_us);
        prt_list_del(&f->link); /* the next time another class is first */
        prt_list_push(&part->flows, &f->link);
        prt_unpark(w);
        prt_line_join(w);
        prt_seek(st, w);
    }
}

/* ---- limits (under mu) ---- */
static bool can_bind(const struct prt_pool *p, const struct prt_partition *part)
{
    return part->lim.max > 0 && part->lim.max < p->lim.max;
}

/* New minimum and mode in one step; the spare credits follow by what the step changed. */
static void set_use(struct prt_partition *part, uint32_t min, uint64_t flags)
{
    uint64_t u = atomic_load_explicit(&part->use, memory_order_seq_cst), to;

    do {
        to = use_count(u) | (uint64_t)min << USE_BITS | flags;
    } while (!atomic_compare_exchange_weak_explicit(&part->use, &u, to, memory_order_seq_cst,
                                                    memory_order_seq_cst));
    atomic_fetch_add_explicit(&part->pool->spare, use_spare(to) - use_spare(u),
                              memory_order_seq_cst);
}

static uint32_t less(uint32_t a, uint32_t b)
{
    return a > b ? a - b : 0;
}

/* Leases from before the limit hold no credit. They are made good for by a lower limit and minimum,
 * which grow again as they end; those beyond the minimum are taken off the spare credits. */
static void recount(struct prt_partition *part)
{
    struct prt_pool *p = part->pool;
    uint32_t held = use_count(atomic_load_explicit(&part->use, memory_order_seq_cst));
    uint32_t n = part->mode & USE_COUNTED ? less(prt_partition_active(part), held) : 0;
    uint32_t min = (uint32_t)part->lim.min, max = (uint32_t)part->lim.max;

    p->uncounted += less(n, min) - less(part->uncounted, part->counted_min);
    part->uncounted = n;
    part->counted_min = min;
    set_use(part, less(min, n), part->mode);
    atomic_store_explicit(&part->limit, can_bind(p, part) ? less(max, n) : USE_NO_LIMIT,
                          memory_order_seq_cst);
}

static void derive_spare(struct prt_pool *p)
{
    uint32_t max = (uint32_t)p->lim.max, taken = p->min_sum + p->uncounted;

    atomic_store_explicit(&p->spare_limit, max > taken ? max - taken : 0, memory_order_seq_cst);
}

void prt_partition_recount(struct prt_partition *part)
{
    if (!prt_list_empty(&part->counting)) {
        recount(part);
        derive_spare(part->pool);
    }
}

static void derive_one(struct prt_pool *p, struct prt_partition *x)
{
    bool was_counted = x->mode & USE_COUNTED;

    x->mode = (p->min_sum > 0 ? USE_COUNTED | USE_SPARE : 0) | (can_bind(p, x) ? USE_COUNTED : 0);
    /* the mode first: who takes a lease from now on holds a credit, so none is counted never */
    set_use(x, (uint32_t)x->lim.min, x->mode);
    if ((x->mode & USE_COUNTED) && !was_counted && prt_list_empty(&x->counting)) {
        prt_list_push(&p->counting, &x->counting);
    }
    recount(x);
    prt_unsettle(x);
}

static void derive_end(struct step *st)
{
    struct prt_pool *p = st->p;

    derive_spare(p);
    if (!prt_list_empty(&p->counting)) {
        /* leases that are just being taken show up within moments; the tick ends this */
        prt_gate_flag(p, GATE_UNCOUNTED, true);
        p->counted_us = st->now_us + 10000;
        prt_due_by(p, p->counted_us);
    }
}

void prt_partition_derive(struct step *st)
{
    for (struct prt_partition *x = st->p->parts; x; x = x->next) {
        derive_one(st->p, x);
    }
    derive_end(st);
}

/* All partitions only if reservation as such begins or ends: 10,000 of them are made one by one. */
static void set_min(struct step *st, struct prt_partition *x, int min)
{
    struct prt_pool *p = st->p;
    bool was_on = p->min_sum > 0;

    p->min_sum += (uint32_t)(min - x->lim.min);
    x->lim.min = min;
    if (was_on != (p->min_sum > 0)) {
        prt_partition_derive(st);
    } else {
        derive_one(p, x);
        derive_end(st);
    }
}

void prt_partition_tick(struct prt_pool *p, int64_t now_us)
{
    struct prt_link *l = p->counting.next, *next;

    if (l == &p->counting) {
        return;
    }
    for (; l != &p->counting; l = next) {
        struct prt_partition *x = PART_OF(l, counting);
        next = l->next;
        recount(x);
        prt_unsettle(x);
        if (x->uncounted == 0 && now_us >= p->counted_us) {
            prt_list_del(&x->counting);
        }
    }
    derive_spare(p);
    prt_gate_flag(p, GATE_UNCOUNTED, !prt_list_empty(&p->counting));
    if (!prt_list_empty(&p->counting)) {
        prt_due_by(p, now_us >= p->counted_us ? now_us + 100000 : p->counted_us);
    }
}

/* ---- names ---- */
static bool table_put(struct part_table *t, struct prt_partition *part)
{
    for (uint32_t i = 0; i <= t->mask / 2; i++) { /* at most half full */
        uint32_t at = ((uint32_t)part->hash + i) & t->mask;
        if (!atomic_load_explicit(&t->at[at], memory_order_relaxed)) {
            /* release: pairs with prt_pool_partition_find */
            atomic_store_explicit(&t->at[at], part, memory_order_release);
            return true;
        }
    }
    return false;
}

static bool table_grow(struct prt_pool *p)
{
    struct part_table *old = atomic_load_explicit(&p->table, memory_order_relaxed);
    uint32_t room = old ? (old->mask + 1) * 2 : 16;
    struct part_table *t = calloc(1, sizeof *t + room * sizeof t->at[0]);

    if (!t) {
        return false;
    }
    t->mask = room - 1;
    t->older = old;
    for (struct prt_partition *x = p->parts; x; x = x->next) {
        (void)table_put(t, x); /* it has room: twice that of the old one */
    }
    atomic_store_explicit(&p->table, t, memory_order_release);
    return true;
}

static struct prt_partition *find(struct prt_pool *p, struct prt_str name)
{
    uint64_t hash = prt_hash(name.p, name.n);
    /* acquire: pairs with table_grow and table_put */
    struct part_table *t = atomic_load_explicit(&p->table, memory_order_acquire);
    struct prt_partition *x;

    for (uint32_t i = 0; i <= t->mask; i++) {
        x = atomic_load_explicit(&t->at[((uint32_t)hash + i) & t->mask], memory_order_acquire);
        if (!x || (x->hash == hash && x->name_len == name.n && !memcmp(x->name, name.p, name.n))) {
            return x;
        }
    }
    return NULL;
}

struct prt_partition *prt_pool_partition_find(struct prt_pool *p, struct prt_str name)
{
    struct prt_partition *x = find(p, name);
    return x && !atomic_load_explicit(&x->is_out, memory_order_relaxed) ? x : NULL;
}

static void part_lists(struct prt_partition *x)
{
    prt_list_init(&x->flows);
    prt_list_init(&x->unsettled);
    prt_list_init(&x->spare);
    prt_list_init(&x->counting);
}

struct prt_partition *prt_partition_new(struct prt_pool *p, struct prt_str name)
{
    size_t lanes = ((size_t)p->lanes + 1) * sizeof(struct part_lane);
    struct prt_partition *x = aligned_alloc(PRT_CACHE_LINE, sizeof *x);
    struct part_lane *lane = aligned_alloc(PRT_CACHE_LINE, lanes);
    struct part_table *t = atomic_load_explicit(&p->table, memory_order_relaxed);

    if (!x || !lane || ((!t || p->n_parts >= t->mask / 2) && !table_grow(p))) {
        free(x);
        free(lane);
        return NULL;
    }
    memset(x, 0, sizeof *x);
    memset(lane, 0, lanes);
    x->pool = p;
    x->lane = lane;
    x->hash = prt_hash(name.p, name.n);
    x->name_len = (uint32_t)name.n;
    memcpy(x->name, name.p, name.n);
    x->lim.priority = -1;
    part_lists(x);
    atomic_store_explicit(&x->limit, USE_NO_LIMIT, memory_order_relaxed);
    x->next = p->parts;
    p->parts = x;
    p->n_parts++;
    (void)table_put(atomic_load_explicit(&p->table, memory_order_relaxed), x);
    return x;
}

struct prt_partition *prt_pool_default_partition(struct prt_pool *p)
{
    return p->deflt;
}

struct prt_str prt_partition_name(const struct prt_partition *part)
{
    return (struct prt_str){part->name, part->name_len};
}

static poolrt_rc refuse(struct prt_str name, const struct prt_partition_limits *lim,
                        struct prt_err *err)
{
    if (name.n == 0 || name.n > PRT_NAME_MAX) {
        return prt_fail(err, POOLRT_CONFIG, "a partition's name has 1 to %d bytes, not %zu",
                        PRT_NAME_MAX, name.n);
    }
    if (lim->max < 0 || lim->min < 0 || lim->max_waiters < 0 || lim->min > PRT_CAPACITY_MAX ||
        (lim->max > 0 && lim->min > lim->max)) {
        return prt_fail(err, POOLRT_CONFIG,
                        "partition " PRT_STR_FMT ": min_connections %d and max_connections %d do "
                        "not fit 0 <= min <= max",
                        PRT_STR_ARG(name), lim->min, lim->max);
    }
    if (lim->priority < -1 || lim->priority > PRT_CRITICAL) {
        return prt_fail(err, POOLRT_CONFIG, "partition " PRT_STR_FMT ": no such priority: %d",
                        PRT_STR_ARG(name), lim->priority);
    }
    return POOLRT_OK;
}

/* Under mu: the new limits of `name` (x: NULL when it is new) are in force, or refused. */
static poolrt_rc set_limits(struct step *st, struct prt_str name, struct prt_partition *x,
                            const struct prt_partition_limits *lim, struct prt_err *err)
{
    struct prt_pool *p = st->p;
    int64_t sum = (int64_t)p->min_sum - (x ? x->lim.min : 0) + lim->min;

    if (sum > p->lim.max) {
        return prt_fail(err, POOLRT_CONFIG,
                        "partition " PRT_STR_FMT ": the min_connections of all partitions are %lld "
                        "together, more than max_size %d; lower some or raise max_size",
                        PRT_STR_ARG(name), (long long)sum, p->lim.max);
    }
    if (!x && !(x = prt_partition_new(p, name))) {
        return prt_fail(err, POOLRT_NOMEM, "no memory for partition " PRT_STR_FMT,
                        PRT_STR_ARG(name));
    }
    x->lim.max = lim->max;
    x->lim.max_waiters = lim->max_waiters;
    x->lim.priority = lim->priority;
    atomic_store_explicit(&x->shown_max, (uint32_t)lim->max, memory_order_relaxed);
    atomic_store_explicit(&x->shown_min, (uint32_t)lim->min, memory_order_relaxed);
    atomic_store_explicit(&x->is_out, false, memory_order_relaxed);
    set_min(st, x, lim->min);
    return POOLRT_OK;
}

poolrt_rc prt_pool_partition(struct prt_pool *p, struct prt_str name,
                             const struct prt_partition_limits *lim, int64_t now_us,
                             struct prt_err *err)
{
    poolrt_rc rc = refuse(name, lim, err);
    struct step st;

    if (rc != POOLRT_OK) {
        return rc;
    }
    prt_step_begin(&st, p, now_us);
    rc = set_limits(&st, name, find(p, name), lim, err);
    prt_step_end(&st);
    return rc;
}

void prt_pool_partition_remove(struct prt_pool *p, struct prt_str name, int64_t now_us)
{
    struct prt_partition *x = find(p, name);
    struct step st;

    if (!x || x == p->deflt) {
        return;
    }
    prt_step_begin(&st, p, now_us);
    atomic_store_explicit(&x->is_out, true, memory_order_relaxed);
    set_min(&st, x, 0); /* its maximum holds for those who still come */
    prt_step_end(&st);
}
