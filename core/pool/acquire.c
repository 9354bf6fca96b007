/* acquire.c - lease, give back, give up; and the question to the policies before.
 * Owns: the steps A1-A6 and R1-R5 of README.md.   Threads: any.
 * Idea: as long as the gate is zero, a lease is one bit cleared and a release one bit set, each
 * followed by a look at the gate. All else is a step under the mutex. */
#include "pool/pool_int.h"

#include <string.h>

/* ---- counters ---- */
static inline void note_acquire(struct prt_pool *p, struct prt_partition *part, unsigned lane)
{
    prt_bump(p, &p->lane[lane].acquired);
    prt_bump(p, &part->lane[lane].acquired);
}

static inline void note_release(struct prt_pool *p, struct prt_partition *part, unsigned lane)
{
    prt_bump(p, &p->lane[lane].released);
    prt_bump(p, &part->lane[lane].released);
}

/* ---- acquire ---- */
/* A1: nobody waits who wants what w wants. Keeps the order; safety does not need it. */
static inline bool may_pass(const struct prt_pool *p, const struct prt_waiter *w)
{
    uint64_t g = prt_gate(p);

    if (g == 0) {
        return true;
    }
    return !(g & ~GATE_WAITING) && !atomic_load_explicit(&w->cls->queued, memory_order_relaxed) &&
           !atomic_load_explicit(&w->part->waiting, memory_order_relaxed);
}

static inline enum credit take_credit(struct prt_waiter *w, bool *counted, bool *look)
{
    if (prt_credit_is_free_of_charge(w->part)) {
        *counted = false;
        return CREDIT_OK;
    }
    return prt_credit_take(w->part, counted, look);
}

/* A search hid an idle slot for a moment, or a spare credit was held for one: whoever looked just
 * then has raised the gate, and is helped now. */
static void look_again(struct prt_pool *p, int64_t now_us)
{
    struct step st;

    prt_step_begin(&st, p, now_us);
    prt_pump(&st);
    prt_step_end(&st);
}

/* Over the limits of the queue? */
static bool is_crowded(struct prt_pool *p, struct prt_partition *part, uint32_t more)
{
    uint64_t all = prt_gate(p) & GATE_WAITING;
    uint32_t of_part = atomic_load_explicit(&part->waiting, memory_order_relaxed);

    return all + more > (uint64_t)(p->lim.max_waiters > 0 ? p->lim.max_waiters : 0) ||
           (part->lim.max_waiters > 0 && of_part + more > (uint32_t)part->lim.max_waiters);
}

static void stand_in_line(struct step *st, struct prt_waiter *w)
{
    struct prt_pool *p = st->p;
    int by_part = w->part->lim.priority;

    w->since_us = st->now_us;
    w->rc = POOLRT_PENDING;
    w->lease = (struct prt_lease){NULL, 0};
    if (by_part >= 0) {
        w->priority = (int8_t)by_part;
    }
    prt_assert(w->priority >= 0 && w->priority < PRT_PRIORITIES && w->lane < p->lanes);
    p->waiting_by_priority[w->priority]++;
    p->n.queued++;
    prt_n32_add(&w->part->waiting, 1);
    /* first the gate, then the look at bits and credits (prt_seek). seq_cst: pairs with the
     * publisher, who sets the bit or gives the credit, then looks at the gate (R4) */
    atomic_fetch_add_explicit(&p->gate, GATE_ONE, memory_order_seq_cst);
    prt_line_join(w);
}

/* How the step went for w itself. Takes w off the step's lists where no op shall tell it. */
static poolrt_rc outcome(struct step *st, struct prt_waiter *w)
{
    struct prt_pool *p = st->p;

    switch ((enum prt_waiter_state)w->state) {
    case PRT_WAITER_SERVED:
        if (p->has_home && prt_slot_lane(prt_slot_full(w->lease.slot)) != w->lane) {
            return POOLRT_PENDING; /* by move() */
        }
        p->n.served--, p->n.queued--; /* it did not wait */
        break;
    case PRT_WAITER_FAILED:
        p->n.failed--, p->n.queued--;
        break;
    case PRT_WAITER_NEW:
    case PRT_WAITER_QUEUED:
    case PRT_WAITER_PARKED:
    case PRT_WAITER_GONE:
        return POOLRT_PENDING;
    }
    prt_list_del(&w->link);
    return w->rc;
}

static bool still_waits(const struct prt_waiter *w)
{
    return w->state == PRT_WAITER_QUEUED || w->state == PRT_WAITER_PARKED;
}

static poolrt_rc refuse(struct step *st, struct prt_waiter *w, poolrt_rc rc)
{
    w->rc = rc;
    st->p->n.refused++;
    return rc;
}

/* A6 under the mutex. */
static poolrt_rc wait_or_take(struct step *st, struct prt_waiter *w)
{
    struct prt_pool *p = st->p;
    bool has_line = prt_queued(w->cls) > 0;

    if (prt_gate_flags(p) & GATE_DRAIN) {
        return refuse(st, w, POOLRT_DRAINING);
    }
    if (has_line && is_crowded(p, w->part, 1)) {
        return refuse(st, w, POOLRT_QUEUE_FULL); /* nor would it be served before those */
    }
    stand_in_line(st, w);
    prt_settle(st);
    if (w->state == PRT_WAITER_QUEUED) {
        prt_seek(st, w);
    }
    if (!has_line && still_waits(w) && is_crowded(p, w->part, 0)) {
        prt_wait_end(st, w, PRT_WAITER_GONE);
        p->n.queued--;
        return refuse(st, w, POOLRT_QUEUE_FULL);
    }
    prt_settle(st);
    prt_feed(st);
    st->is_settled = prt_list_empty(&p->unsettled) && prt_list_empty(&p->spare_line);
    return outcome(st, w);
}

/* A6. `s`: claimed in passing, when a flag went up meanwhile (A4); decided on under the mutex. */
static poolrt_rc acquire_slow(struct prt_pool *p, struct prt_waiter *w, struct slot *s,
                              int64_t now_us)
{
    struct step st;
    poolrt_rc rc;

    prt_step_begin(&st, p, now_us);
    /* a credit that was held for a moment may have parked somebody else */
    prt_unsettle(w->part);
    prt_settle(&st);
    if (s) {
        prt_serve(&st, s);
    }
    rc = wait_or_take(&st, w);
    prt_step_end(&st);
    return rc;
}

/* A5: the slot is ours. */
static inline void lease(struct prt_waiter *w, struct slot *s, bool counted)
{
    s->part = w->part;
    s->is_counted = counted;
    s->pub.borrows++;
    w->lease = (struct prt_lease){&s->pub, prt_slot_set(s, PRT_SLOT_ACTIVE)};
    w->rc = POOLRT_OK;
}

poolrt_rc prt_acquire(struct prt_pool *p, struct prt_waiter *w, int64_t now_us)
{
    bool counted = false, look = false;
    struct slot *s;

    w->state = PRT_WAITER_NEW;
    if (!may_pass(p, w) || take_credit(w, &counted, &look) != CREDIT_OK) {
        return acquire_slow(p, w, NULL, now_us);
    }
    s = prt_claim_in(w->cls, w->lane, &look); /* A3 */
    if (!s) {
        if (counted) {
            prt_credit_give(w->part);
        }
        return acquire_slow(p, w, NULL, now_us);
    }
    uint64_t g = prt_gate(p); /* A4: claim before look, so a pause saw the bit set or is seen */
    if (g & GATE_STOP) {
        if (counted) {
            prt_credit_give(w->part);
        }
        return acquire_slow(p, w, s, now_us);
    }
    lease(w, s, counted);
    note_acquire(p, w->part, w->lane);
    if (look && g) {
        look_again(p, now_us);
    }
    return POOLRT_OK;
}

/* ---- release ---- */
/* R1: the lease is current, and this call is the one that ends it. */
static inline bool end_lease(struct prt_pool *p, struct slot *s, uint32_t gen)
{
    uint64_t active = (uint64_t)gen << 32 | PRT_SLOT_ACTIVE;

    if (p->has_home) { /* only its home thread releases: no race */
        return atomic_load_explicit(&s->word, memory_order_relaxed) == active;
    }
    /* of two threads that release copies of one lease, one wins. acquire: pairs with nothing but
     * the loser's retreat; what the slot holds was handed over by its bit */
    return atomic_compare_exchange_strong_explicit(&s->word, &active,
                                                   (uint64_t)gen << 32 | PRT_SLOT_PASSING,
                                                   memory_order_acquire, memory_order_relaxed);
}

static void release_begin(struct step *st, struct prt_pool *p, struct prt_partition *part,
                          int64_t now_us)
{
    prt_step_begin(st, p, now_us);
    prt_partition_recount(part);
    prt_unsettle(part);
    prt_settle(st); /* who was parked for the credit comes before a later one in line */
}

/* s is still ours: it is handed on under the mutex. */
static void release_in_hand(struct prt_pool *p, struct slot *s, struct prt_partition *part,
                            int64_t now_us)
{
    struct step st;

    release_begin(&st, p, part, now_us);
    prt_serve(&st, s); /* to the next, or published */
    prt_step_end(&st);
}

static void release_doomed(struct prt_pool *p, struct slot *s, struct prt_partition *part,
                           enum prt_close_why why, int64_t now_us)
{
    struct step st;

    release_begin(&st, p, part, now_us);
    prt_slot_close(&st, s, NULL, why);
    prt_step_end(&st);
}

/* R5: the slot was published when somebody came to wait. */
PRT_COLD static void release_again(struct prt_pool *p, struct prt_class *c, unsigned lane,
                                   uint32_t seat, struct prt_partition *part, int64_t now_us)
{
    struct step st;

    release_begin(&st, p, part, now_us);
    if (prt_bit_claim(c, lane, seat)) {
        /* not necessarily s: it may have been closed meanwhile, and its seat given to another */
        prt_serve(&st, prt_chunk(c, seat / SEATS)->seat[seat % SEATS]);
    } /* else whoever has it looks at the gate when done */
    prt_step_end(&st);
}

poolrt_rc prt_release(struct prt_pool *p, struct prt_lease l, enum prt_release_how how,
                      uint16_t lane, int64_t now_us)
{
    struct slot *s = prt_slot_full(l.slot);

    if (!s || !end_lease(p, s, l.gen)) {
        return POOLRT_STALE;
    }
    struct prt_partition *part = s->part;

    prt_assert(lane < p->lanes);
    if (p->has_home) {
        prt_assert(prt_slot_lane(s) == lane);
    } else { /* no home: it idles where it was used last */
        __atomic_store_n(&s->pub.lane, lane, __ATOMIC_RELAXED);
    }
    __atomic_store_n(&s->pub.used_us, now_us, __ATOMIC_RELAXED);
    s->part = NULL;
    note_release(p, part, lane);
    if (s->is_counted) {
        prt_credit_give(part); /* R2 */
    }
    if (how == PRT_RELEASE_CLOSE || now_us >= s->dies_us) {
        release_doomed(p, s, part, how == PRT_RELEASE_CLOSE ? PRT_CLOSE_BROKEN : PRT_CLOSE_AGE,
                       now_us);
    } else if (prt_gate(p) != 0) { /* a saturated pool: no bit set and cleared again */
        release_in_hand(p, s, part, now_us);
    } else {
        struct prt_class *c = s->pub.cls;
        uint32_t seat = s->seat;
        prt_publish(s);         /* R3: from here on not ours */
        if (prt_gate(p) != 0) { /* R4 */
            release_again(p, c, lane, seat, part, now_us);
        }
    }
    return POOLRT_OK;
}

/* ---- giving up ---- */
bool prt_waiter_cancel(struct prt_pool *p, struct prt_waiter *w, poolrt_rc rc, int64_t now_us)
{
    struct step st;
    bool ok;

    prt_step_begin(&st, p, now_us);
    ok = still_waits(w);
    if (ok) {
        prt_wait_end(&st, w, PRT_WAITER_GONE);
        w->rc = rc;
        if (rc == POOLRT_TIMEOUT) {
            p->n.timed_out++;
        } else {
            p->n.cancelled++;
        }
    }
    prt_step_end(&st);
    return ok;
}

/* ---- asking the policies ---- */
/* The cached route is still what the policies of today said, and need not be asked again. */
static bool route_holds(const struct prt_pool *p, const struct prt_route *route)
{
    const struct prt_policy_ops *pol = p->policy;

    if (!route->is_set || atomic_load_explicit(&route->part->is_out, memory_order_relaxed)) {
        return false;
    }
    if (!pol) {
        return true;
    }
    /* acquire: pairs with the reload's store, made when the new policies answer */
    return atomic_load_explicit(&pol->version, memory_order_acquire) == route->version &&
           (route->scope == PRT_SCOPE_SESSION ||
            !(atomic_load_explicit(&pol->hooks, memory_order_relaxed) & PRT_HOOK_ROUTE));
}

bool prt_pool_asks(const struct prt_pool *p, const struct prt_route *route)
{
    if (!route_holds(p, route)) {
        return true;
    }
    return p->policy &&
           (atomic_load_explicit(&p->policy->hooks, memory_order_relaxed) & PRT_HOOK_ADMIT);
}

/* The partition that an answer names, the default one, or NULL: rejected, *a says why. */
static struct prt_partition *answered(struct prt_pool *p, unsigned lane,
                                      const struct prt_req_view *rq, struct prt_answer *a)
{
    enum prt_scope scope = a->scope;

    for (int round = 0; round < 2; round++) {
        if (a->verdict == PRT_ANSWER_REJECT) {
            return NULL;
        }
        if (a->verdict == PRT_ANSWER_NONE) {
            return p->deflt;
        }
        struct prt_partition *part = prt_pool_partition_find(p, prt_str_of(a->name));
        if (part) {
            return part;
        }
        if (round == 0) { /* on_fail: reject, the default, or a partition of its own */
            memset(a, 0, sizeof *a);
            p->policy->bad_route(p->policy, lane, rq, a);
            a->scope = a->verdict == PRT_ANSWER_TO ? a->scope : scope;
        }
    }
    return p->deflt; /* on_fail named an unknown one as well */
}

static bool ask_route(struct prt_pool *p, unsigned lane, const struct prt_req_view *rq,
                      struct prt_route *route, struct prt_answer *why)
{
    struct prt_policy_ops *pol = p->policy;
    struct prt_answer a;
    struct prt_partition *part = p->deflt;
    uint32_t version = pol ? atomic_load_explicit(&pol->version, memory_order_acquire) : 0;

    memset(&a, 0, sizeof a);
    if (pol && (atomic_load_explicit(&pol->hooks, memory_order_relaxed) & PRT_HOOK_ROUTE)) {
        pol->route(pol, lane, rq, &a);
        part = answered(p, lane, rq, &a);
    }
    if (!part) {
        *why = a;
        return false;
    }
    route->part = part;
    route->version = version;
    route->scope = (uint8_t)a.scope;
    route->is_set = true;
    return true;
}

static void view_of(struct prt_pool *p, struct prt_partition *part, struct prt_part_view *v)
{
    uint64_t acquired = 0, released = 0;

    for (int l = 0; l <= p->lanes; l++) {
        released += atomic_load_explicit(&p->lane[l].released, memory_order_relaxed);
        acquired += atomic_load_explicit(&p->lane[l].acquired, memory_order_relaxed);
    }
    int active = acquired > released ? (int)(acquired - released) : 0;
    int open = prt_n(&p->open);
    int idle = open - active - prt_n(&p->connecting) - prt_n(&p->closing);

    v->name = prt_partition_name(part);
    v->active = prt_partition_active(part);
    v->waiting = atomic_load_explicit(&part->waiting, memory_order_relaxed);
    v->max = atomic_load_explicit(&part->shown_max, memory_order_relaxed);
    v->min = atomic_load_explicit(&part->shown_min, memory_order_relaxed);
    v->pool_active = (uint32_t)active;
    v->pool_idle = idle > 0 ? (uint32_t)idle : 0;
    v->pool_total = (uint32_t)open;
    v->pool_max = (uint32_t)prt_n(&p->max);
    v->pool_waiting = (uint32_t)(prt_gate(p) & GATE_WAITING);
}

static bool ask_admit(struct prt_pool *p, unsigned lane, const struct prt_req_view *rq,
                      struct prt_partition *part, struct prt_answer *why)
{
    struct prt_part_view view;
    struct prt_answer a;

    memset(&a, 0, sizeof a);
    view_of(p, part, &view);
    p->policy->admit(p->policy, lane, rq, &view, &a);
    if (a.verdict != PRT_ANSWER_REJECT) {
        return true;
    }
    *why = a;
    return false;
}

poolrt_rc prt_pool_ask(struct prt_pool *p, uint16_t lane, const struct prt_req_view *rq,
                       struct prt_route *route, struct prt_answer *why)
{
    prt_assert(lane < p->lanes);
    bool ok = route_holds(p, route) || ask_route(p, lane, rq, route, why);

    if (ok && p->policy &&
        (atomic_load_explicit(&p->policy->hooks, memory_order_relaxed) & PRT_HOOK_ADMIT)) {
        ok = ask_admit(p, lane, rq, route->part, why);
    }
    if (!ok) {
        prt_bump(p, &p->lane[lane].rejected);
    }
    return ok ? POOLRT_OK : POOLRT_POLICY;
}
