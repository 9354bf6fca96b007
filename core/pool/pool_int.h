/* pool_int.h - the engine's own structs and the few lines that several of its files share.
 * Never included outside this folder. The protocol between threads: README.md.
 *
 * Who may touch a field is said at its group: "set at creation" never changes; "atomic" any thread;
 * "under mu" the holder of the pool's mutex; "owner" whoever owns the slot (pool.h). */
#ifndef PRT_POOL_INT_H
#define PRT_POOL_INT_H
#include "base/hash.h"
#include "pool/pool.h"

#include <pthread.h>

/* ---- the gate: how many wait, and flags; zero means "nothing to think about" ---- */
#define GATE_ONE 1ull
#define GATE_WAITING 0xffffffffull
#define GATE_OVER (1ull << 32)      /* more connections than max: releases close */
#define GATE_STALE (1ull << 33)     /* connections from before the last flush are open */
#define GATE_PAUSED (1ull << 34)    /* no new lease */
#define GATE_DRAIN (1ull << 35)     /* no new lease, ever */
#define GATE_SPARE (1ull << 36)     /* somebody waits for unreserved credit: nobody overtakes */
#define GATE_UNCOUNTED (1ull << 37) /* leases from before a limit was set are out */
#define GATE_STOP (GATE_PAUSED | GATE_DRAIN)

/* ---- slots ---- */
struct slot { /* own cache lines: neighbours may be leased in different lanes */
    _Alignas(PRT_CACHE_LINE) struct prt_slot pub;
    _Atomic uint64_t word; /* generation << 32 | enum prt_slot_state; the owner writes it */
    /* owner */
    struct prt_partition *part;  /* of the lease */
    struct prt_class *wanted_by; /* CLOSING: evicted for this class */
    int64_t dies_us;             /* end of its life; INT64_MAX: none. Written under mu */
    uint32_t seat;               /* its number within its class. Written under mu */
    uint32_t epoch;              /* of the flush counter when it was opened. Written under mu */
    enum prt_close_why why;
    bool is_counted; /* the lease holds a credit of `part` */
};

/* Idle bits are kept per class, lane and *seat*: the number a slot has within its class, lowest
 * free one first. So a class with five connections has one word per lane, whatever the pool's
 * capacity. */
#define SEATS 64
struct idle_word {
    _Alignas(PRT_CACHE_LINE) _Atomic uint64_t bits; /* a set bit IS the ownership of an idle slot */
};
struct chunk {      /* 64 seats of a class; made with the first slot in it, freed with the class */
    uint64_t taken; /* under mu */
    struct slot *seat[SEATS]; /* written under mu; read by who owns the slot, or under mu */
    struct idle_word lane[];
};
struct near {                                       /* one class in one lane */
    _Alignas(PRT_CACHE_LINE) _Atomic uint32_t last; /* hint: seat released last here; relaxed */
    _Atomic uint64_t may[]; /* bit k clear: chunk k has no idle bit here (but see prt_claim_in) */
};

/* ---- classes ---- */
struct hunger { /* place in the pool's heap of hungry classes of one priority */
    int at;     /* index + 1; 0: not in it */
    int64_t key_us;
};
struct prt_class {
    /* set at creation */
    struct prt_pool *pool;
    void *user;
    char *near; /* struct near per lane, p->near_size apart */
    uint32_t id;
    _Atomic(struct chunk *) *chunk; /* pointers are set under mu, once */
    /* atomic; written under mu */
    _Atomic uint32_t queued; /* waiters in its lines */
    /* under mu */
    int refs, parked;
    int open, coming;    /* connected or closing; being connected, or promised by an eviction */
    uint32_t low_chunk;  /* no free seat below */
    bool backs_off;      /* until retry_us; then it is in p->resting */
    bool is_hungry;      /* as of the last prt_hunger() */
    int64_t retry_us;    /* pool time */
    int64_t switched_us; /* last time a wanted slot of another class was evicted for it */
    struct prt_link resting, lined, mortal;
    uint64_t lanes[PRT_PRIORITIES];          /* which lanes have a waiter */
    struct prt_link (*line)[PRT_PRIORITIES]; /* per lane: FIFO by since_us */
    struct hunger hunger[PRT_PRIORITIES];
    struct prt_err error;
    struct prt_map_node node;
    char key[];
};

/* ---- partitions ----
 * `use` is one word, so that counting, the minimum and the mode change in one step:
 * leases that hold a credit | min << 20 | flags. */
#define USE_ONE 1ull
#define USE_BITS 20
#define USE_MASK ((1ull << USE_BITS) - 1)
#define USE_COUNTED (1ull << 60) /* leases take a credit here */
#define USE_SPARE (1ull << 61)   /* and, beyond min, one of the pool's unreserved credits */
#define USE_NO_LIMIT UINT32_MAX
#define PRT_CAPACITY_MAX 1000000 /* so that all counts fit USE_BITS */

struct part_lane { /* one writer each where slots have a home */
    _Alignas(PRT_CACHE_LINE) _Atomic uint64_t acquired, released;
};
struct flow { /* waiters of one partition and class, parked because the partition is full */
    struct prt_link link; /* in part->flows, or p->flows when unused */
    struct prt_class *cls;
    struct prt_link parked[PRT_PRIORITIES]; /* by since_us */
};
struct prt_partition {
    /* set at creation */
    _Alignas(PRT_CACHE_LINE) struct prt_pool *pool;
    struct part_lane *lane; /* [lanes + 1]: the last is written under mu */
    struct prt_partition *next;
    uint64_t hash;
    uint32_t name_len;
    char name[PRT_NAME_MAX + 1];
    /* atomic; written under mu, seldom */
    _Atomic uint32_t limit;                /* credits there may be: max less the uncounted leases */
    _Atomic uint32_t shown_max, shown_min; /* lim.max, lim.min */
    _Atomic bool is_out;
    /* atomic, any thread */
    _Alignas(PRT_CACHE_LINE) _Atomic uint64_t use; /* a shared write only if USE_COUNTED */
    _Atomic uint32_t waiting;                      /* QUEUED and PARKED; written under mu */
    /* under mu */
    struct prt_partition_limits lim;
    uint64_t mode;        /* the flags of `use` */
    uint32_t uncounted;   /* leases that hold no credit although they should */
    uint32_t counted_min; /* lim.min when they were counted */
    int parked, n_flows;
    struct prt_link flows;
    struct prt_link unsettled; /* in p->unsettled: its credit, or who stands in line, changed */
    struct prt_link spare;     /* in p->spare_line */
    struct prt_link counting;  /* in p->counting while leases from before its limit may be out */
    uint64_t limit_violations;
};
struct part_table { /* open addressing; never shrinks, old ones are kept for readers */
    struct part_table *older;
    uint32_t mask;
    _Atomic(struct prt_partition *) at[];
};

/* ---- pools ---- */
struct lane {
    _Alignas(PRT_CACHE_LINE) _Atomic uint64_t acquired, released, rejected;
    _Atomic uint64_t classes[PRT_CLASSES_MAX / 64]; /* bit clear: no idle slot of the class here */
};
struct heap {
    struct prt_class **at;
    int n;
};
struct prt_pool {
    /* set at creation */
    const struct prt_conn_ops *ops;
    struct prt_policy_ops *policy;
    void *ctx;
    int lanes, capacity;
    bool has_home;      /* ops->move: slots live in a lane, lanes have one writer */
    uint32_t may_words; /* of struct near */
    size_t near_size;
    struct slot *slots;
    struct lane *lane; /* [lanes + 1]: the last is written under mu */
    struct prt_partition *deflt;
    _Atomic(struct part_table *) table; /* replaced under mu */
    /* atomic */
    _Alignas(PRT_CACHE_LINE) _Atomic uint64_t gate;  /* written under mu */
    _Alignas(PRT_CACHE_LINE) _Atomic uint32_t spare; /* unreserved credits in use; any thread */
    _Atomic uint32_t spare_limit;                    /* written under mu */
    _Alignas(PRT_CACHE_LINE) _Atomic int64_t due_us; /* written under mu */
    _Atomic int open, connecting, closing;           /* written under mu; slots, as pool.h says */
    _Atomic int max;                                 /* lim.max */
    /* under mu */
    _Alignas(PRT_CACHE_LINE) pthread_mutex_t mu;
    struct prt_limits lim;
    int64_t now_us;
    int stale;      /* open slots of an older epoch */
    uint32_t epoch; /* counts flushes */
    struct prt_link free;
    struct prt_link lined;   /* classes with somebody in line */
    struct prt_link resting; /* classes that back off */
    struct prt_link mortal;  /* classes to look at: perhaps nobody needs them any more */
    struct prt_link unsettled, spare_line, counting; /* partitions */
    struct prt_link flows;                           /* unused ones */
    struct heap heap[PRT_PRIORITIES];
    uint32_t hungry; /* bit k: heap[k] is not empty */
    int heap_room;
    struct prt_map classes;
    struct prt_class *class_by_id[PRT_CLASSES_MAX];
    uint32_t n_ids; /* ids below it have been used */
    uint32_t hand;  /* victims are looked for from this class on */
    struct prt_class *warm;
    int warming; /* connections of warm still to be opened by prt_pool_warm() */
    uint16_t warm_lane;
    struct prt_partition *parts;
    uint32_t n_parts, min_sum;
    uint32_t uncounted;   /* sum of the partitions' uncounted leases beyond their minima */
    int64_t opened_at_us; /* throttle: the open after next is due an interval after this */
    int64_t scan_us;      /* next look at ages and idle times */
    int64_t counted_us;   /* from when on GATE_UNCOUNTED may end */
    uint64_t random;
    int waiting_by_priority[PRT_PRIORITIES];
    struct prt_pool_stats n; /* the slow paths' counters */
    struct prt_hist wait;    /* of the slow paths; all other waits are zero */
    uint64_t steps;
};

/* One hold of the mutex, and what is to be done after it: ops are never called under it. */
struct step {
    struct prt_pool *p;
    int64_t now_us;
    bool is_settled; /* nothing changed since settle and feed: the end need not do them again */
    struct prt_link served, moved, open, close, dead;
};

#define WAITER_OF(l) prt_container_of(l, struct prt_waiter, link)
#define SLOT_OF(l) ((struct slot *)(void *)prt_container_of(l, struct prt_slot, link))
#define CLASS_OF(l, member) prt_container_of(l, struct prt_class, member)
#define PART_OF(l, member) prt_container_of(l, struct prt_partition, member)
static_assert(offsetof(struct slot, pub) == 0, "a prt_slot is the beginning of its slot");

static inline struct slot *prt_slot_full(struct prt_slot *s)
{
    return (struct slot *)(void *)s;
}

/* ---- small reads ---- */
static inline uint64_t prt_gate(const struct prt_pool *p)
{
    return atomic_load_explicit(&p->gate, memory_order_seq_cst);
}
/* Under mu: the gate is written under it only. */
static inline uint64_t prt_gate_flags(const struct prt_pool *p)
{
    return atomic_load_explicit(&p->gate, memory_order_relaxed) & ~GATE_WAITING;
}
static inline int prt_n(const _Atomic int *n)
{
    return atomic_load_explicit(n, memory_order_relaxed);
}
/* Under mu; readers without it want any recent number. */
static inline void prt_n_add(_Atomic int *n, int d)
{
    atomic_store_explicit(n, prt_n(n) + d, memory_order_relaxed);
}
/* Under mu, where nobody else writes: no locked instruction. */
static inline void prt_n32_add(_Atomic uint32_t *n, uint32_t d)
{
    atomic_store_explicit(n, atomic_load_explicit(n, memory_order_relaxed) + d,
                          memory_order_relaxed);
}
static inline void prt_n64_add(_Atomic uint64_t *n, uint64_t d)
{
    atomic_store_explicit(n, atomic_load_explicit(n, memory_order_relaxed) + d,
                          memory_order_relaxed);
}
static inline bool prt_is_over(const struct prt_pool *p)
{
    return prt_n(&p->open) - prt_n(&p->closing) > p->lim.max;
}
static inline uint32_t prt_queued(const struct prt_class *c)
{
    return atomic_load_explicit(&c->queued, memory_order_relaxed);
}
static inline struct near *prt_near(const struct prt_class *c, unsigned lane)
{
    return (struct near *)(void *)(c->near + lane * c->pool->near_size);
}
static inline struct chunk *prt_chunk(const struct prt_class *c, uint32_t k)
{
    /* acquire: pairs with the release store in prt_seat_take */
    return atomic_load_explicit(&c->chunk[k], memory_order_acquire);
}

/* A slot's lane and last use may be looked at by one who does not own it (and then finds out by the
 * bit whether it was true): relaxed atomics, on fields that pool.h shows as plain. */
static inline uint16_t prt_slot_lane(const struct slot *s)
{
    return __atomic_load_n(&s->pub.lane, __ATOMIC_RELAXED);
}
static inline int64_t prt_slot_used(const struct slot *s)
{
    return __atomic_load_n(&s->pub.used_us, __ATOMIC_RELAXED);
}
static inline enum prt_slot_state prt_slot_state(const struct slot *s)
{
    return (enum prt_slot_state)(atomic_load_explicit(&s->word, memory_order_relaxed) & 0xff);
}
bool prt_slot_may_become(enum prt_slot_state from, enum prt_slot_state to);
/* The owner. A new lease is a new generation, which is returned. */
static inline uint32_t prt_slot_set(struct slot *s, enum prt_slot_state st)
{
    uint64_t w = atomic_load_explicit(&s->word, memory_order_relaxed);
    uint32_t gen = (uint32_t)(w >> 32) + (st == PRT_SLOT_ACTIVE);

    prt_assert_dbg(prt_slot_may_become((enum prt_slot_state)(w & 0xff), st));
    atomic_store_explicit(&s->word, (uint64_t)gen << 32 | (uint64_t)st, memory_order_relaxed);
    return gen;
}

/* A counter of a lane: one writer where lanes are workers, else any thread. */
static inline void prt_bump(const struct prt_pool *p, _Atomic uint64_t *n)
{
    if (p->has_home) {
        atomic_store_explicit(n, atomic_load_explicit(n, memory_order_relaxed) + 1,
                              memory_order_relaxed);
    } else {
        atomic_fetch_add_explicit(n, 1, memory_order_relaxed);
    }
}

/* ---- the two steps of the fast path: clear a bit, set a bit ---- */
static inline bool prt_word_claim(_Atomic uint64_t *w, unsigned i)
{
    uint64_t bit = 1ull << i;

    if (!(atomic_load_explicit(w, memory_order_relaxed) & bit)) {
        return false;
    }
    /* acquire half: what the publisher wrote to the slot. seq_cst: before the look at the gate
     * (A4), pairs with the pause flag and the scan of prt_pool_is_quiet. */
    return atomic_fetch_and_explicit(w, ~bit, memory_order_seq_cst) & bit;
}

/* The search beyond the hint; slot.c. */
struct slot *prt_search(struct prt_class *c, unsigned lane, bool *look);

/* Any idle slot of the class in the lane, or NULL. *look: what somebody else hid for a moment was
 * shown again, so the gate must be looked at. */
static inline struct slot *prt_claim_in(struct prt_class *c, unsigned lane, bool *look)
{
    uint32_t seat = atomic_load_explicit(&prt_near(c, lane)->last, memory_order_relaxed);
    struct chunk *ch = prt_chunk(c, seat / SEATS);

    if (ch && prt_word_claim(&ch->lane[lane].bits, seat % SEATS)) {
        return ch->seat[seat % SEATS];
    }
    return prt_search(c, lane, look);
}

/* From the first step on the slot is not the caller's any more, but its class is: a caller holds a
 * reference, or the mutex. */
static inline void prt_publish(struct slot *s)
{
    struct prt_class *c = s->pub.cls;
    unsigned lane = prt_slot_lane(s);
    uint32_t k = s->seat / SEATS;
    struct near *near = prt_near(c, lane);
    _Atomic uint64_t *w = &prt_chunk(c, k)->lane[lane].bits;
    _Atomic uint64_t *may = &near->may[k / 64];
    _Atomic uint64_t *known = &c->pool->lane[lane].classes[c->id / 64];
    uint64_t may_bit = 1ull << (k % 64), known_bit = 1ull << (c->id % 64);

    prt_slot_set(s, PRT_SLOT_IDLE);
    atomic_store_explicit(&near->last, s->seat, memory_order_relaxed);
    /* release half: pairs with prt_word_claim. seq_cst RMW: a full barrier before the looks below
     * and at the gate; a release store could still sit in the store buffer then. */
    atomic_fetch_or_explicit(w, 1ull << (s->seat % SEATS), memory_order_seq_cst);
    if (!(atomic_load_explicit(may, memory_order_seq_cst) & may_bit)) {
        atomic_fetch_or_explicit(may, may_bit, memory_order_seq_cst);
    }
    if (!(atomic_load_explicit(known, memory_order_seq_cst) & known_bit)) {
        atomic_fetch_or_explicit(known, known_bit, memory_order_seq_cst);
    }
}

/* ---- pool.c: steps and classes ---- */
void prt_step_begin(struct step *st, struct prt_pool *p, int64_t now_us);
/* Settle, look at invariants (debug), unlock, call the ops. */
void prt_step_end(struct step *st);
void prt_gate_flag(struct prt_pool *p, uint64_t flag, bool on);
/* Wants a tick at `at_us` at the latest. */
void prt_due_by(struct prt_pool *p, int64_t at_us);
/* c lost a reference, a slot or a waiter: the end of the step looks whether it is still needed. */
void prt_class_mortal(struct prt_class *c);
uint64_t prt_pool_random(struct prt_pool *p);

/* ---- slot.c ---- */
bool prt_bit_claim(struct prt_class *c, unsigned lane, uint32_t seat);
/* Under mu: an idle slot of a class that nobody waits for, claimed; or NULL. */
struct slot *prt_claim_victim(struct prt_pool *p);
/* Under mu: call f for each idle slot; f may claim it. false from f ends the walk. */
void prt_each_idle(struct prt_pool *p, bool (*f)(void *arg, struct slot *s), void *arg);
int prt_idle_count(struct prt_pool *p);
/* false: no memory for its seat; nothing happened. s is FREE and off the free list, or CLOSING. */
bool prt_slot_open(struct step *st, struct slot *s, struct prt_class *c, unsigned lane);
void prt_slot_close(struct step *st, struct slot *s, struct prt_class *wanted_by,
                    enum prt_close_why why);

/* ---- waitq.c ---- */
void prt_line_join(struct prt_waiter *w);
void prt_line_leave(struct prt_waiter *w);
void prt_wait_end(struct step *st, struct prt_waiter *w, enum prt_waiter_state end);
void prt_wait_fail(struct step *st, struct prt_waiter *w, poolrt_rc rc);
/* The class's counts changed: is it hungry, and since when? */
void prt_hunger(struct prt_class *c);
/* a is served before b, if the same slot suits both. */
bool prt_goes_before(const struct prt_waiter *a, const struct prt_waiter *b, int64_t now_us);
struct prt_waiter *prt_best_in(struct prt_class *c, int lane, int64_t now_us);
void prt_serve(struct step *st, struct slot *s);
void prt_seek(struct step *st, struct prt_waiter *w);
void prt_feed_all(struct step *st);
void prt_settle_all(struct step *st);
void prt_pump(struct step *st);
void prt_fail_lines(struct step *st, struct prt_class *c, poolrt_rc rc);

/* Credits came free, or who stood in line for one left: let parked waiters step forward. */
static inline void prt_settle(struct step *st)
{
    if (!prt_list_empty(&st->p->unsettled) || !prt_list_empty(&st->p->spare_line)) {
        prt_settle_all(st);
    }
}

/* The only class that hungers, if there is just one. */
static inline struct prt_class *prt_only_hungry(const struct prt_pool *p)
{
    const struct heap *h = p->hungry ? &p->heap[__builtin_ctz(p->hungry)] : NULL;
    return h && h->n == 1 && !(p->hungry & (p->hungry - 1)) ? h->at[0] : NULL;
}
/* Full, and every connection that is not c's own is on its way out for c already. */
static inline bool prt_is_full_of(const struct prt_pool *p, const struct prt_class *c)
{
    return prt_n(&p->open) >= p->lim.max && c->open + c->coming >= prt_n(&p->open);
}
/* While somebody is hungry and there is room, or an idle slot that nobody waits for. */
static inline void prt_feed(struct step *st)
{
    const struct prt_class *only = prt_only_hungry(st->p);

    /* the usual case of a pool with one class need not look further */
    if (st->p->hungry && !(only && prt_is_full_of(st->p, only))) {
        prt_feed_all(st);
    }
}

/* ---- partition.c ---- */
enum credit { CREDIT_OK, CREDIT_FULL, CREDIT_NO_SPARE };
enum credit prt_credit_take(struct prt_partition *part, bool *counted, bool *look);
void prt_credit_give(struct prt_partition *part);
enum credit prt_credit_look(struct prt_partition *part);
bool prt_spare_is_free(struct prt_pool *p);
/* A partition without a limit that can bind costs one load of a line that nobody writes. */
static inline bool prt_credit_is_free_of_charge(struct prt_partition *part)
{
    return !(atomic_load_explicit(&part->use, memory_order_relaxed) & USE_COUNTED);
}
uint32_t prt_partition_active(struct prt_partition *part);
struct prt_partition *prt_partition_new(struct prt_pool *p, struct prt_str name);
/* Limits of the pool or a partition changed: derive the modes and credits of all. */
void prt_partition_derive(struct step *st);
/* Leases from before a limit: count them again; end it when none is left. */
void prt_partition_tick(struct prt_pool *p, int64_t now_us);
/* A lease that held no credit ended: its partition's limit grows by it. */
void prt_partition_recount(struct prt_partition *part);
void prt_park(struct step *st, struct prt_waiter *w);
void prt_unpark(struct prt_waiter *w);
/* Of those parked in f the one that comes first; never NULL, since an empty flow is given back. */
struct prt_waiter *prt_flow_best(struct flow *f, int64_t now_us);
struct flow *prt_flow_of(struct prt_partition *part, const struct prt_class *c);
static inline void prt_unsettle(struct prt_partition *part)
{
    if (part->parked > 0 && prt_list_empty(&part->unsettled)) {
        prt_list_push(&part->pool->unsettled, &part->unsettled);
    }
}
void prt_settle_partition(struct step *st, struct prt_partition *part);
void prt_spare_line(struct prt_partition *part, bool in);
void prt_by_arrival(struct prt_link *list, struct prt_waiter *w);

/* ---- size.c ---- */
bool prt_throttle_allows(struct prt_pool *p, int64_t now_us);
void prt_throttle_note(struct prt_pool *p, int64_t now_us);
int64_t prt_life_end(struct prt_pool *p, int64_t now_us);
bool prt_class_has_room(const struct prt_class *c);

/* ---- stats.c ---- */
/* The invariants that hold whenever the mutex is held, whatever other threads do without it. */
const char *prt_check_books(struct prt_pool *p);
#endif
