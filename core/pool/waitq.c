/* waitq.c - who gets the next free slot, and for whom connections are opened.
 * Owns: waiters from joining the line to the one step that ends the wait.
 * Threads: all of it under the pool's mutex.
 * Idea: FIFO lines per class, lane and priority, so that only heads are compared. One additive rule
 * chooses: highest rank, then the smallest arrival + cost of giving it this slot. A constant cost
 * is outwaited, so nobody starves; that one rule gives locality and fairness between classes.
 * Hungry classes (more in line than connections coming) stand in a heap per priority by their
 * oldest head, so that a release among 500 classes compares a handful. Rejected: one list by rank,
 * which boosting would re-sort all the time; scanning all classes at each release. */
#include "pool/pool_int.h"

/* ---- lines ---- */
static struct prt_waiter *head(struct prt_class *c, int lane, int k)
{
    struct prt_link *line = &c->line[lane][k];
    return prt_list_empty(line) ? NULL : WAITER_OF(line->next);
}

/* From the tail: an arrival nearly always belongs there. */
void prt_by_arrival(struct prt_link *list, struct prt_waiter *w)
{
    struct prt_link *at = list;

    while (at->prev != list && WAITER_OF(at->prev)->since_us > w->since_us) {
        at = at->prev;
    }
    prt_list_before(at, &w->link);
}

/* ---- hunger: classes that want a connection, a heap per priority ---- */
static void heap_set(struct heap *h, int i, int k, struct prt_class *c)
{
    h->at[i] = c;
    c->hunger[k].at = i + 1;
}

static int64_t key_at(const struct heap *h, int i, int k)
{
    return h->at[i]->hunger[k].key_us;
}

static void heap_sift(struct heap *h, int i, int k)
{
    struct prt_class *c = h->at[i];
    int64_t key = c->hunger[k].key_us;

    while (i > 0 && key < key_at(h, (i - 1) / 2, k)) {
        heap_set(h, i, k, h->at[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    for (;;) {
        int kid = 2 * i + 1;
        if (kid + 1 < h->n && key_at(h, kid + 1, k) < key_at(h, kid, k)) {
            kid++;
        }
        if (kid >= h->n || key_at(h, kid, k) >= key) {
            break;
        }
        heap_set(h, i, k, h->at[kid]);
        i = kid;
    }
    heap_set(h, i, k, c);
}

static void heap_take_out(struct heap *h, int k, struct prt_class *c)
{
    int i = c->hunger[k].at - 1;

    c->hunger[k].at = 0;
    struct prt_class *last = h->at[--h->n];
    if (h->n == 0) {
        c->pool->hungry &= ~(1u << k);
    }
    if (last != c) {
        heap_set(h, i, k, last);
        heap_sift(h, i, k);
    }
}

static int64_t oldest_of(struct prt_class *c, int k)
{
    int64_t at = INT64_MAX;

    for (uint64_t m = c->lanes[k]; m; m &= m - 1) {
        int64_t since = head(c, __builtin_ctzll(m), k)->since_us;
        at = since < at ? since : at;
    }
    /* one evicted slot per switch_bias: else a class that waited evicts at every release until all
     * its waiters have a connection coming, and then the other one does the same */
    return at > c->switched_us ? at : c->switched_us;
}

bool prt_class_has_room(const struct prt_class *c)
{
    int max = c->pool->lim.class_max;
    return max == 0 || c->open + c->coming < max;
}

/* Its place in the heap of priority k. */
static void hunger_at(struct prt_class *c, int k)
{
    struct heap *h = &c->pool->heap[k];
    struct hunger *hu = &c->hunger[k];

    if (!c->is_hungry || !c->lanes[k]) {
        if (hu->at) {
            heap_take_out(h, k, c);
        }
        return;
    }
    int64_t key = oldest_of(c, k);
    if (hu->at && key == hu->key_us) {
        return;
    }
    hu->key_us = key;
    if (!hu->at) {
        heap_set(h, h->n++, k, c);
        c->pool->hungry |= 1u << k;
    }
    heap_sift(h, hu->at - 1, k);
}

static bool hungers(const struct prt_class *c)
{
    return (int64_t)prt_queued(c) > c->coming && !c->backs_off && prt_class_has_room(c);
}

void prt_hunger(struct prt_class *c)
{
    c->is_hungry = hungers(c);
    for (int k = 0; k < PRT_PRIORITIES; k++) {
        hunger_at(c, k);
    }
}

/* Only `queued` and the line of priority k changed; its head too? */
static void hunger_of_line(struct prt_class *c, int k, bool is_head)
{
    if (hungers(c) != c->is_hungry) {
        prt_hunger(c);
    } else if (is_head) {
        hunger_at(c, k);
    }
}

/* ---- joining and leaving a line ---- */
void prt_line_join(struct prt_waiter *w)
{
    struct prt_class *c = w->cls;

    w->state = PRT_WAITER_QUEUED;
    struct prt_link *line = &c->line[w->lane][w->priority];
    prt_by_arrival(line, w);
    c->lanes[w->priority] |= 1ull << w->lane;
    prt_n32_add(&c->queued, 1);
    if (prt_queued(c) == 1) {
        prt_list_push(&c->pool->lined, &c->lined);
    }
    hunger_of_line(c, w->priority, line->next == &w->link);
}

void prt_line_leave(struct prt_waiter *w)
{
    struct prt_class *c = w->cls;
    struct prt_link *line = &c->line[w->lane][w->priority];
    bool is_head = line->next == &w->link;

    prt_list_del(&w->link);
    if (prt_list_empty(line)) {
        c->lanes[w->priority] &= ~(1ull << w->lane);
    }
    prt_n32_add(&c->queued, UINT32_MAX);
    if (prt_queued(c) == 0) {
        prt_list_del(&c->lined);
    }
    hunger_of_line(c, w->priority, is_head);
}

/* Out of QUEUED or PARKED for good: the one step that ends a wait. */
void prt_wait_end(struct step *st, struct prt_waiter *w, enum prt_waiter_state end)
{
    struct prt_pool *p = st->p;

    if (w->state == PRT_WAITER_QUEUED) {
        prt_line_leave(w);
    } else {
        prt_unpark(w);
    }
    w->state = (uint8_t)end;
    p->waiting_by_priority[w->priority]--;
    prt_n32_add(&w->part->waiting, UINT32_MAX);
    /* not locked: seen late it costs somebody a step, no more */
    prt_n64_add(&p->gate, 0 - GATE_ONE);
    prt_unsettle(w->part); /* the next of its partition may step forward */
    prt_class_mortal(w->cls);
}

void prt_wait_fail(struct step *st, struct prt_waiter *w, poolrt_rc rc)
{
    prt_wait_end(st, w, PRT_WAITER_FAILED);
    w->rc = rc;
    prt_list_push(&st->served, &w->link);
}

/* Everybody in the class's lines; who is parked waits for a credit, not for a connection. */
void prt_fail_lines(struct step *st, struct prt_class *c, poolrt_rc rc)
{
    for (int k = 0; k < PRT_PRIORITIES; k++) {
        while (c->lanes[k]) {
            prt_wait_fail(st, head(c, __builtin_ctzll(c->lanes[k]), k), rc);
            st->p->n.failed++;
        }
    }
}

/* ---- order ---- */
static int rank_of(const struct prt_pool *p, int priority, int64_t since_us, int64_t now_us)
{
    if (p->lim.fair_queue) {
        return 0;
    }
    if (now_us - since_us < p->lim.boost_after_us) {
        return priority; /* usual, and no division */
    }
    int64_t up = p->lim.boost_after_us > 0 ? (now_us - since_us) / p->lim.boost_after_us : 0;
    return up > PRT_CRITICAL - priority ? PRT_CRITICAL : priority + (int)up;
}

bool prt_goes_before(const struct prt_waiter *a, const struct prt_waiter *b, int64_t now_us)
{
    const struct prt_pool *p = a->cls->pool;
    int ra = rank_of(p, a->priority, a->since_us, now_us);
    int rb = rank_of(p, b->priority, b->since_us, now_us);

    return ra > rb || (ra == rb && a->since_us < b->since_us);
}

struct choice {
    int rank;
    int64_t key_us; /* arrival + cost */
    struct prt_waiter *w;
};

static bool is_better(int rank, int64_t key_us, const struct choice *than)
{
    return rank > than->rank || (rank == than->rank && key_us < than->key_us);
}

/* Heads suffice: behind each stand only later arrivals of the same lane and priority.
 * lane: where the slot lives; -1: it does not matter. */
static void best_in(struct prt_class *c, int lane, int64_t now_us, struct choice *best)
{
    const struct prt_pool *p = c->pool;

    *best = (struct choice){-1, INT64_MAX, NULL};
    for (int k = 0; k < PRT_PRIORITIES; k++) {
        for (uint64_t m = c->lanes[k]; m; m &= m - 1) {
            int l = __builtin_ctzll(m);
            struct prt_waiter *w = WAITER_OF(c->line[l][k].next);
            int64_t cost = lane >= 0 && l != lane && p->has_home ? p->lim.locality_bias_us : 0;
            int rank = rank_of(p, k, w->since_us, now_us);
            if (is_better(rank, w->since_us + cost, best)) {
                *best = (struct choice){rank, w->since_us + cost, w};
            }
        }
    }
}

/* Nearly always the class has one line; NULL: it has more, or none. */
static inline struct prt_waiter *only_head(struct prt_class *c)
{
    struct prt_link *line = NULL;

    for (int k = 0; k < PRT_PRIORITIES; k++) {
        uint64_t m = c->lanes[k];
        if (m && (line || (m & (m - 1)))) {
            return NULL;
        }
        line = m ? &c->line[__builtin_ctzll(m)][k] : line;
    }
    return line ? WAITER_OF(line->next) : NULL;
}

struct prt_waiter *prt_best_in(struct prt_class *c, int lane, int64_t now_us)
{
    struct prt_waiter *only = only_head(c);
    struct choice best;

    if (only) {
        return only;
    }
    best_in(c, lane, now_us, &best);
    return best.w;
}

/* The hungry class other than `not` that comes first. best->w is not set. */
static struct prt_class *hungriest(struct prt_pool *p, const struct prt_class *except,
                                   int64_t now_us, struct choice *best)
{
    struct prt_class *first = NULL;

    *best = (struct choice){-1, INT64_MAX, NULL};
    for (uint32_t m = p->hungry; m; m &= m - 1) {
        int k = __builtin_ctz(m), i = 0;
        struct heap *h = &p->heap[k];
        if (h->at[0] == except) { /* then the second: one of the top's children */
            i = h->n > 2 && key_at(h, 2, k) < key_at(h, 1, k) ? 2 : 1;
        }
        if (i >= h->n) {
            continue;
        }
        int rank = rank_of(p, k, key_at(h, i, k), now_us);
        if (is_better(rank, key_at(h, i, k), best)) {
            *best = (struct choice){rank, key_at(h, i, k), NULL};
            first = h->at[i];
        }
    }
    return first;
}

/* For whom s is best used; of its own class, or of another for which it would be evicted. */
static struct prt_waiter *best_waiter(struct step *st, const struct slot *s)
{
    struct prt_pool *p = st->p;
    struct prt_class *c = s->pub.cls, *other;
    struct choice own, hungry;

    if (!p->hungry || prt_only_hungry(p) == c) {
        return prt_best_in(c, prt_slot_lane(s), st->now_us);
    }
    best_in(c, prt_slot_lane(s), st->now_us, &own);
    if (prt_n(&p->open) < p->lim.max || !prt_throttle_allows(p, st->now_us)) {
        return own.w; /* hungry classes can open, or nobody can */
    }
    other = hungriest(p, c, st->now_us, &hungry);
    if (!other) {
        return own.w;
    }
    hungry.key_us += p->lim.switch_bias_us;
    /* whatever its rank, another class first waits: a reconnect costs more than a turn */
    if (own.w && (st->now_us < hungry.key_us || !is_better(hungry.rank, hungry.key_us, &own))) {
        return own.w;
    }
    return prt_best_in(other, -1, st->now_us);
}

/* ---- handing over ---- */
static void give(struct step *st, struct prt_waiter *w, struct slot *s, bool counted)
{
    struct prt_pool *p = st->p;

    prt_wait_end(st, w, PRT_WAITER_SERVED);
    s->part = w->part;
    s->is_counted = counted;
    s->pub.borrows++;
    w->rc = POOLRT_OK;
    w->lease = (struct prt_lease){&s->pub, prt_slot_set(s, PRT_SLOT_ACTIVE)};
    /* the last lane's counters belong to the mutex */
    prt_n64_add(&p->lane[p->lanes].acquired, 1);
    prt_n64_add(&w->part->lane[p->lanes].acquired, 1);
    prt_hist_add(&p->wait, st->now_us - w->since_us);
    p->n.served++;
    if (p->has_home && prt_slot_lane(s) != w->lane) {
        p->n.moved++;
        prt_list_push(&st->moved, &w->link);
    } else {
        prt_list_push(&st->served, &w->link);
    }
}

/* w met no limit yet, but one of its kind that comes before it stands aside since it did, and has
 * not been let back: then that one is next. */
static bool steps_back_first(struct step *st, struct prt_waiter *w)
{
    struct flow *f = w->part->parked > 0 ? prt_flow_of(w->part, w->cls) : NULL;
    struct prt_waiter *x = f ? prt_flow_best(f, st->now_us) : NULL;

    if (!x || !prt_goes_before(x, w, st->now_us) || prt_credit_look(w->part) != CREDIT_OK) {
        return false;
    }
    prt_unpark(x);
    prt_line_join(x);
    return true;
}

static bool is_doomed(const struct step *st, const struct slot *s, enum prt_close_why *why)
{
    const struct prt_pool *p = st->p;

    if (s->epoch != p->epoch || (prt_gate_flags(p) & GATE_DRAIN)) {
        *why = PRT_CLOSE_FLUSH;
        return true;
    }
    *why = prt_is_over(p) ? PRT_CLOSE_SHRINK : PRT_CLOSE_AGE;
    return prt_is_over(p) || st->now_us >= s->dies_us;
}

/* s belongs to the step. Decide its fate: close, hand over, evict for another class, publish. */
void prt_serve(struct step *st, struct slot *s)
{
    enum prt_close_why why;

    if (is_doomed(st, s, &why)) {
        prt_slot_close(st, s, NULL, why);
        return;
    }
    while (!(prt_gate_flags(st->p) & GATE_PAUSED)) {
        struct prt_waiter *w = best_waiter(st, s);
        bool counted = false, look = false;
        if (!w) {
            break;
        }
        if (steps_back_first(st, w)) {
            continue;
        }
        if (w->cls != s->pub.cls) {
            if (prt_credit_look(w->part) != CREDIT_OK) {
                prt_park(st, w);
                continue;
            }
            w->cls->switched_us = st->now_us;
            prt_slot_close(st, s, w->cls, PRT_CLOSE_EVICT);
            return;
        }
        if (prt_credit_is_free_of_charge(w->part) ||
            prt_credit_take(w->part, &counted, &look) == CREDIT_OK) {
            give(st, w, s, counted);
            return;
        }
        prt_park(st, w); /* its partition is full: out of the way of the others */
    }
    prt_publish(s);
}

/* false: no slot of the class idles in the lane; or one is being published, and its publisher looks
 * at the gate. */
static inline bool has_idle(const struct prt_class *c, unsigned lane)
{
    const struct near *near = prt_near(c, lane);
    uint64_t any = 0;

    for (uint32_t k = 0; k < c->pool->may_words; k++) {
        any |= atomic_load_explicit(&near->may[k], memory_order_seq_cst);
    }
    return any;
}

static struct slot *claim_near(struct prt_class *c, unsigned lane)
{
    unsigned lanes = (unsigned)c->pool->lanes;
    bool look =
        false; /* what is hidden from lock-free searches sends them here, where we hold on */

    for (unsigned i = 0; i < lanes; i++) {
        struct slot *s;
        if (has_idle(c, lane) && (s = prt_claim_in(c, lane, &look))) {
            return s;
        }
        lane = lane + 1 < lanes ? lane + 1 : 0;
    }
    return NULL;
}

/* w stands in line: take what idles of its class. It may go to one before w. */
void prt_seek(struct step *st, struct prt_waiter *w)
{
    struct slot *s;

    if (prt_gate_flags(st->p) & GATE_STOP) {
        return;
    }
    if (prt_credit_look(w->part) != CREDIT_OK) {
        prt_park(st, w);
        return;
    }
    if (st->p->lanes == 1 && !has_idle(w->cls, 0)) {
        return; /* a saturated worker: nothing to look through */
    }
    while (w->state == PRT_WAITER_QUEUED && (s = claim_near(w->cls, w->lane))) {
        prt_serve(st, s);
    }
}

/* ---- connections for who waits ---- */
/* One for the hungriest class. false: nothing more can be done now. */
static bool feed_one(struct step *st, struct prt_class *c)
{
    struct prt_pool *p = st->p;
    struct slot *s;

    if (prt_is_full_of(p, c)) {
        return false;
    }
    struct prt_waiter *w = prt_best_in(c, -1, st->now_us);
    if (prt_credit_look(w->part) != CREDIT_OK) {
        prt_park(st, w); /* a connection would not help it */
        return true;
    }
    if (prt_n(&p->open) < p->lim.max) {
        return prt_slot_open(st, SLOT_OF(p->free.next), c, w->lane);
    }
    if (prt_is_over(p) || !(s = prt_claim_victim(p))) {
        return false;
    }
    prt_slot_close(st, s, c, PRT_CLOSE_EVICT);
    return true;
}

void prt_feed_all(struct step *st)
{
    struct prt_pool *p = st->p;
    struct prt_class *c;
    struct choice first;

    while (!(prt_gate_flags(p) & GATE_STOP) && (c = hungriest(p, NULL, st->now_us, &first))) {
        if (!prt_throttle_allows(p, st->now_us) || !feed_one(st, c)) {
            return;
        }
    }
}

void prt_settle_all(struct step *st)
{
    struct prt_pool *p = st->p;

    for (;;) {
        struct prt_link *l = prt_list_pop(&p->unsettled);
        if (l) {
            prt_settle_partition(st, PART_OF(l, unsettled));
        } else if (!prt_list_empty(&p->spare_line) && prt_spare_is_free(p)) {
            struct prt_partition *part = PART_OF(p->spare_line.next, spare);
            prt_spare_line(part, false);
            prt_settle_partition(st, part);
        } else {
            return;
        }
    }
}

/* Something changed that may help anybody in line: limits, flags. */
void prt_pump(struct step *st)
{
    struct prt_pool *p = st->p;
    struct prt_link *l = p->lined.next;

    while (l != &p->lined) {
        struct prt_link *next = l->next;
        struct prt_class *c = CLASS_OF(l, lined);
        struct prt_waiter *w;
        while ((w = prt_best_in(c, -1, st->now_us))) {
            prt_seek(st, w);
            if (w->state == PRT_WAITER_QUEUED) {
                break;
            }
        }
        /* serving one class may park the last of the next: then from the start, one class less */
        l = next == &p->lined || !prt_list_empty(next) ? next : p->lined.next;
    }
}

/* ---- position ---- */
static int count_before(const struct prt_link *list, const struct prt_waiter *w, bool by_arrival,
                        int64_t now_us)
{
    int n = 0;

    for (const struct prt_link *l = list->next; l != list; l = l->next) {
        const struct prt_waiter *x =
            (const struct prt_waiter *)(const void *)((const char *)l -
                                                      offsetof(struct prt_waiter, link));
        if (x == w) {
            by_arrival = false; /* whoever comes behind it with the same time is later */
        } else if (prt_goes_before(x, w, now_us) || (by_arrival && x->since_us == w->since_us)) {
            n++;
        }
    }
    return n;
}

/* Those of its class in line, and, if it is parked, of its own kind that are parked. */
static int position(const struct prt_waiter *w, int64_t now_us)
{
    struct prt_class *c = w->cls;
    int n = 0;

    for (int k = 0; k < PRT_PRIORITIES; k++) {
        for (uint64_t m = c->lanes[k]; m; m &= m - 1) {
            int l = __builtin_ctzll(m);
            bool is_own = w->state == PRT_WAITER_QUEUED && w->lane == l && w->priority == k;
            n += count_before(&c->line[l][k], w, is_own, now_us);
        }
    }
    if (w->state == PRT_WAITER_PARKED) {
        struct prt_link *l = w->part->flows.next;
        for (; l != &w->part->flows; l = l->next) {
            struct flow *f = prt_container_of(l, struct flow, link);
            for (int k = 0; f->cls == c && k < PRT_PRIORITIES; k++) {
                n += count_before(&f->parked[k], w, k == w->priority, now_us);
            }
        }
    }
    return n;
}

int prt_waiter_position(struct prt_pool *p, const struct prt_waiter *w, int64_t now_us)
{
    int n = -1;

    pthread_mutex_lock(&p->mu);
    if (w->state == PRT_WAITER_QUEUED || w->state == PRT_WAITER_PARKED) {
        n = position(w, now_us > p->now_us ? now_us : p->now_us);
    }
    pthread_mutex_unlock(&p->mu);
    return n;
}
