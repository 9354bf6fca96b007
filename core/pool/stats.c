/* stats.c - looking: sums of the lanes' counters, and the invariants.
 * Owns: nothing.   Threads: any; counters are read while others write them, each exact by itself.
 * Idea: who counts writes to a line of its own; who looks pays for the sum. */
#include "pool/pool_int.h"

#include <string.h>

/* ---- snapshots ---- */
static void oldest_in(const struct prt_link *list, int64_t *since_us)
{
    if (!prt_list_empty(list) && WAITER_OF(list->next)->since_us < *since_us) {
        *since_us = WAITER_OF(list->next)->since_us;
    }
}

static int64_t oldest_wait(struct prt_pool *p)
{
    int64_t since = INT64_MAX;

    for (struct prt_link *l = p->lined.next; l != &p->lined; l = l->next) {
        struct prt_class *c = CLASS_OF(l, lined);
        for (int i = 0; i < p->lanes; i++) {
            for (int k = 0; k < PRT_PRIORITIES; k++) {
                oldest_in(&c->line[i][k], &since);
            }
        }
    }
    for (struct prt_partition *x = p->parts; x; x = x->next) {
        for (struct prt_link *l = x->flows.next; l != &x->flows; l = l->next) {
            for (int k = 0; k < PRT_PRIORITIES; k++) {
                oldest_in(&prt_container_of(l, struct flow, link)->parked[k], &since);
            }
        }
    }
    return since == INT64_MAX ? 0 : p->now_us - since;
}

/* released first: active is then never negative */
static void sum_lanes(struct prt_pool *p, struct prt_pool_stats *out)
{
    out->acquired = out->released = out->rejected = 0;
    for (int l = 0; l <= p->lanes; l++) {
        out->released += atomic_load_explicit(&p->lane[l].released, memory_order_relaxed);
        out->rejected += atomic_load_explicit(&p->lane[l].rejected, memory_order_relaxed);
    }
    for (int l = 0; l <= p->lanes; l++) {
        out->acquired += atomic_load_explicit(&p->lane[l].acquired, memory_order_relaxed);
    }
}

/* Who was served on the fast path waited for nothing, and was not put into the histogram. */
static void merge_waits(struct prt_pool *p, struct prt_pool_stats *out)
{
    memset(&out->wait, 0, sizeof out->wait);
    prt_hist_merge(&out->wait, &p->wait);
    if (out->acquired > out->wait.count) {
        out->wait.bucket[0] += out->acquired - out->wait.count;
        out->wait.count = out->acquired;
    }
}

void prt_pool_snapshot(struct prt_pool *p, struct prt_pool_stats *out, int64_t now_us)
{
    pthread_mutex_lock(&p->mu);
    if (now_us > p->now_us) {
        p->now_us = now_us;
    }
    *out = p->n;
    sum_lanes(p, out);
    merge_waits(p, out);
    out->open = prt_n(&p->open);
    out->connecting = prt_n(&p->connecting);
    out->closing = prt_n(&p->closing);
    out->active = (int)(out->acquired - out->released);
    out->idle = out->open - out->connecting - out->closing - out->active;
    out->idle = out->idle > 0 ? out->idle : 0;
    out->waiting = (int)(prt_gate(p) & GATE_WAITING);
    out->oldest_wait_us = oldest_wait(p);
    memcpy(out->waiting_by_priority, p->waiting_by_priority, sizeof out->waiting_by_priority);
    pthread_mutex_unlock(&p->mu);
}

void prt_pool_each_partition(struct prt_pool *p,
                             void (*f)(void *, const struct prt_partition_stats *), void *arg)
{
    pthread_mutex_lock(&p->mu);
    for (struct prt_partition *x = p->parts; x; x = x->next) {
        if (atomic_load_explicit(&x->is_out, memory_order_relaxed)) {
            continue;
        }
        struct prt_partition_stats s = {
            .name = prt_partition_name(x), .lim = x->lim, .limit_violations = x->limit_violations};
        for (int l = 0; l <= p->lanes; l++) {
            s.released += atomic_load_explicit(&x->lane[l].released, memory_order_relaxed);
        }
        for (int l = 0; l <= p->lanes; l++) {
            s.acquired += atomic_load_explicit(&x->lane[l].acquired, memory_order_relaxed);
        }
        s.active = (uint32_t)(s.acquired - s.released);
        s.waiting = atomic_load_explicit(&x->waiting, memory_order_relaxed);
        f(arg, &s);
    }
    pthread_mutex_unlock(&p->mu);
}

/* ---- invariants that hold whenever the mutex is held ---- */
struct census {
    int state[6]; /* slots, by enum prt_slot_state; IDLE, ACTIVE and PASSING change without the
                     mutex */
    int stale;
    int free, lined, parked, by_priority[PRT_PRIORITIES];
    uint32_t min_sum;
};

static const char *check_slots(struct prt_pool *p, struct census *n)
{
    for (int i = 0; i < p->capacity; i++) {
        const struct slot *s = &p->slots[i];
        enum prt_slot_state st = prt_slot_state(s);
        n->state[st]++;
        n->stale += st != PRT_SLOT_FREE && st != PRT_SLOT_CLOSING && s->epoch != p->epoch;
        if (st != PRT_SLOT_FREE &&
            prt_chunk(s->pub.cls, s->seat / SEATS)->seat[s->seat % SEATS] != s) {
            return "a slot does not sit on its seat";
        }
    }
    for (struct prt_link *l = p->free.next; l != &p->free; l = l->next) {
        n->free++;
    }
    if (n->state[PRT_SLOT_FREE] != n->free || p->capacity - n->free != prt_n(&p->open)) {
        return "open differs from the slots in use";
    }
    if (n->state[PRT_SLOT_CONNECTING] != prt_n(&p->connecting)) {
        return "connecting differs from the slots in that state";
    }
    if (n->state[PRT_SLOT_CLOSING] != prt_n(&p->closing)) {
        return "closing differs from the slots in that state";
    }
    if (n->stale != p->stale || !(prt_gate_flags(p) & GATE_STALE) != (n->stale == 0)) {
        return "stale differs from the slots of older epochs";
    }
    return NULL;
}

static const char *check_line(struct prt_class *c, int lane, int k, int *n)
{
    struct prt_link *line = &c->line[lane][k];
    int64_t last = INT64_MIN;

    if (prt_list_empty(line) != !(c->lanes[k] >> lane & 1)) {
        return "a class's lanes differ from its lines";
    }
    for (struct prt_link *l = line->next; l != line; l = l->next) {
        const struct prt_waiter *w = WAITER_OF(l);
        if (w->state != PRT_WAITER_QUEUED || w->cls != c || w->lane != lane || w->priority != k) {
            return "a waiter stands in a line that is not its own";
        }
        if (w->since_us < last) {
            return "a line is not in order of arrival";
        }
        last = w->since_us;
        ++*n;
    }
    return NULL;
}

/* hunger as it would be derived now */
static const char *check_hunger(struct prt_class *c)
{
    bool is_hungry = (int)prt_queued(c) > c->coming && !c->backs_off && prt_class_has_room(c);

    if (c->is_hungry != is_hungry) {
        return "a class hungers and does not know it, or the other way round";
    }
    for (int k = 0; k < PRT_PRIORITIES; k++) {
        const struct heap *h = &c->pool->heap[k];
        int at = c->hunger[k].at;
        if ((h->n > 0) != (c->pool->hungry >> k & 1)) {
            return "a heap is not shown, or shown and empty";
        }
        if ((at != 0) != (is_hungry && c->lanes[k] != 0)) {
            return "a class is hungry and not in the heap, or the other way round";
        }
        if (at && (at > h->n || h->at[at - 1] != c)) {
            return "a class is not at its place in the heap";
        }
        if (at > 1 && h->at[at / 2 - 1]->hunger[k].key_us > c->hunger[k].key_us) {
            return "a heap is not in order";
        }
    }
    return NULL;
}

static const char *check_class(struct prt_pool *p, struct prt_class *c, struct census *n)
{
    const char *bad = NULL;
    int queued = 0, open = 0, coming = 0;

    for (int l = 0; l < p->lanes && !bad; l++) {
        for (int k = 0; k < PRT_PRIORITIES && !bad; k++) {
            int before = queued;
            bad = check_line(c, l, k, &queued);
            n->by_priority[k] += queued - before;
        }
    }
    if (bad || (bad = check_hunger(c))) {
        return bad;
    }
    for (int i = 0; i < p->capacity; i++) {
        const struct slot *s = &p->slots[i];
        enum prt_slot_state st = prt_slot_state(s);
        open += s->pub.cls == c && st != PRT_SLOT_FREE && st != PRT_SLOT_CONNECTING;
        coming += (s->pub.cls == c && st == PRT_SLOT_CONNECTING) ||
                  (st == PRT_SLOT_CLOSING && s->wanted_by == c);
    }
    n->lined += queued;
    if (queued != (int)prt_queued(c) || (queued > 0) == prt_list_empty(&c->lined)) {
        return "a class's count differs from its lines";
    }
    if (open != c->open) {
        return "a class's open differs from its slots";
    }
    return coming != c->coming ? "a class's coming differs from what is on its way" : NULL;
}

static const char *check_flow(struct prt_partition *x, struct flow *f, struct census *n)
{
    int before = n->parked;

    for (int k = 0; k < PRT_PRIORITIES; k++) {
        int64_t last = INT64_MIN;
        for (struct prt_link *l = f->parked[k].next; l != &f->parked[k]; l = l->next) {
            const struct prt_waiter *w = WAITER_OF(l);
            if (w->state != PRT_WAITER_PARKED || w->part != x || w->cls != f->cls ||
                w->priority != k || w->since_us < last) {
                return "a waiter is parked where it does not belong";
            }
            last = w->since_us;
            n->by_priority[k]++;
            n->parked++;
        }
    }
    return n->parked == before ? "a flow without a waiter" : NULL;
}

static const char *check_partition(struct prt_partition *x, struct census *n)
{
    const char *bad = NULL;
    int before = n->parked, flows = 0;

    for (struct prt_link *l = x->flows.next; l != &x->flows && !bad; l = l->next) {
        bad = check_flow(x, prt_container_of(l, struct flow, link), n);
        flows++;
    }
    n->min_sum += (uint32_t)x->lim.min;
    if (!bad && (n->parked - before != x->parked || flows != x->n_flows)) {
        bad = "a partition's parked differ from its flows";
    }
    return bad;
}

static const char *check_sums(struct prt_pool *p, const struct census *n)
{
    const struct prt_pool_stats *s = &p->n;
    uint64_t waiting = prt_gate(p) & GATE_WAITING;

    if ((uint64_t)n->lined + (uint64_t)n->parked != waiting) {
        return "the gate differs from the lines";
    }
    if (memcmp(n->by_priority, p->waiting_by_priority, sizeof n->by_priority) != 0) {
        return "waiting by priority differs from the lines";
    }
    if (s->queued != waiting + s->served + s->timed_out + s->cancelled + s->failed + s->drained) {
        return "a wait ended in no way, or in two";
    }
    if (!(prt_gate_flags(p) & GATE_OVER) != !prt_is_over(p)) {
        return "the gate does not know whether the pool is over max";
    }
    if (!(prt_gate_flags(p) & GATE_SPARE) != prt_list_empty(&p->spare_line)) {
        return "the gate does not know who waits for spare credit";
    }
    return n->min_sum != p->min_sum ? "the sum of minima differs" : NULL;
}

static const char *check_all(struct prt_pool *p, struct census *n)
{
    const char *bad = check_slots(p, n);

    for (uint32_t i = 0; i < p->n_ids && !bad; i++) {
        if (p->class_by_id[i]) {
            bad = check_class(p, p->class_by_id[i], n);
        }
    }
    for (struct prt_partition *x = p->parts; x && !bad; x = x->next) {
        bad = check_partition(x, n);
    }
    return bad ? bad : check_sums(p, n);
}

const char *prt_check_books(struct prt_pool *p)
{
    struct census n;

    memset(&n, 0, sizeof n);
    return check_all(p, &n);
}

/* ---- invariants of a moment at which nobody is in the engine ---- */
static const char *check_credits(struct prt_pool *p)
{
    uint64_t spare = 0;

    for (struct prt_partition *x = p->parts; x; x = x->next) {
        uint64_t u = atomic_load_explicit(&x->use, memory_order_seq_cst);
        uint32_t held = (uint32_t)(u & USE_MASK), min = (uint32_t)(u >> USE_BITS & USE_MASK);
        uint32_t holders = 0;
        for (int i = 0; i < p->capacity; i++) {
            const struct slot *s = &p->slots[i];
            holders += prt_slot_state(s) == PRT_SLOT_ACTIVE && s->part == x && s->is_counted;
        }
        if (holders != held) {
            return "a partition's credits differ from the leases that hold one";
        }
        uint32_t lim = (uint32_t)x->lim.min;
        if (min != (lim > x->uncounted ? lim - x->uncounted : 0)) {
            return "a partition's minimum differs from its limit";
        }
        spare += (u & USE_SPARE) && held > min ? held - min : 0;
    }
    if (spare != atomic_load_explicit(&p->spare, memory_order_seq_cst)) {
        return "spare credits differ from what partitions hold beyond their minima";
    }
    return NULL;
}

static int idle_of(struct prt_class *c)
{
    int n = 0;

    for (uint32_t k = 0; k * SEATS < (uint32_t)c->pool->capacity && prt_chunk(c, k); k++) {
        for (int l = 0; l < c->pool->lanes; l++) {
            uint64_t bits =
                atomic_load_explicit(&prt_chunk(c, k)->lane[l].bits, memory_order_seq_cst);
            uint64_t may =
                atomic_load_explicit(&prt_near(c, (unsigned)l)->may[k / 64], memory_order_seq_cst);
            uint64_t known =
                atomic_load_explicit(&c->pool->lane[l].classes[c->id / 64], memory_order_seq_cst);
            if (bits && (!(may >> k % 64 & 1) || !(known >> c->id % 64 & 1))) {
                return -1;
            }
            n += __builtin_popcountll(bits);
        }
    }
    return n;
}

static bool somebody_could_go(struct prt_class *c)
{
    for (int k = 0; k < PRT_PRIORITIES; k++) {
        for (uint64_t m = c->lanes[k]; m; m &= m - 1) {
            struct prt_link *line = &c->line[__builtin_ctzll(m)][k];
            for (struct prt_link *l = line->next; l != line; l = l->next) {
                if (prt_credit_look(WAITER_OF(l)->part) == CREDIT_OK) {
                    return true;
                }
            }
        }
    }
    return false;
}

/* Nobody waits in vain: the promise of the protocol. */
static const char *check_lost(struct prt_pool *p, struct prt_class *c, bool others_idle)
{
    int idle = idle_of(c);

    if (!somebody_could_go(c) || (prt_gate_flags(p) & GATE_STOP)) {
        return NULL;
    }
    if (idle > 0) {
        return "a waiter waits while a slot of its class is idle";
    }
    if (c->hunger[0].at + c->hunger[1].at + c->hunger[2].at + c->hunger[3].at == 0 ||
        (p->lim.opens_per_sec > 0 && prt_pool_due(p) != INT64_MAX)) {
        return NULL;
    }
    if (prt_n(&p->open) < p->lim.max) {
        return "a waiter waits while a connection could be opened";
    }
    return others_idle && !prt_is_over(p) ? "a waiter waits while a slot could be evicted" : NULL;
}

static bool flow_in_line(struct prt_partition *x, const struct prt_class *c)
{
    for (int l = 0; l < x->pool->lanes; l++) {
        for (int k = 0; k < PRT_PRIORITIES; k++) {
            struct prt_link *line = &c->line[l][k];
            for (struct prt_link *m = line->next; m != line; m = m->next) {
                if (WAITER_OF(m)->part == x) {
                    return true;
                }
            }
        }
    }
    return false;
}

/* While nothing keeps them, one of each kind stands in line for those who are parked behind it. */
static const char *check_parked(struct prt_partition *x)
{
    enum credit credit = prt_credit_look(x);

    if (credit == CREDIT_FULL || (credit == CREDIT_NO_SPARE && !prt_list_empty(&x->spare))) {
        return NULL; /* the one who gives that credit back lets them step forward */
    }
    for (struct prt_link *l = x->flows.next; l != &x->flows; l = l->next) {
        if (!flow_in_line(x, prt_container_of(l, struct flow, link)->cls)) {
            return "a waiter is parked while its partition has credit";
        }
    }
    return NULL;
}

static const char *check_idle(struct prt_pool *p, int state_idle)
{
    int bits = 0, not_waited_for = 0;
    const char *bad = NULL;

    for (uint32_t i = 0; i < p->n_ids; i++) {
        struct prt_class *c = p->class_by_id[i];
        int n = c ? idle_of(c) : 0;
        if (n < 0) {
            return "an idle bit is hidden from the search";
        }
        bits += n;
        not_waited_for += c && prt_queued(c) == 0 ? n : 0;
    }
    if (bits != state_idle) {
        return "idle bits differ from idle slots";
    }
    if (bits > 0 && (prt_is_over(p) || (prt_gate_flags(p) & GATE_DRAIN))) {
        return "idle slots above max, or in a drained pool";
    }
    for (uint32_t i = 0; i < p->n_ids && !bad; i++) {
        if (p->class_by_id[i]) {
            bad = check_lost(p, p->class_by_id[i], not_waited_for > 0);
        }
    }
    return bad;
}

static const char *check_counters(struct prt_pool *p, const struct census *n)
{
    struct prt_pool_stats s = p->n;
    uint64_t of_parts = 0;

    sum_lanes(p, &s);
    for (struct prt_partition *x = p->parts; x; x = x->next) {
        of_parts += prt_partition_active(x);
    }
    if (s.acquired - s.released != (uint64_t)n->state[PRT_SLOT_ACTIVE]) {
        return "acquired - released differs from active";
    }
    if (of_parts != (uint64_t)n->state[PRT_SLOT_ACTIVE]) {
        return "the partitions' active differ from the pool's";
    }
    if (s.opened - s.closed != (uint64_t)(prt_n(&p->open) - prt_n(&p->connecting))) {
        return "opened - closed differs from the connections there are";
    }
    return n->state[PRT_SLOT_PASSING] ? "a slot is nobody's" : NULL;
}

const char *prt_pool_check(struct prt_pool *p)
{
    struct census n;
    const char *bad;

    memset(&n, 0, sizeof n);
    pthread_mutex_lock(&p->mu);
    bad = check_all(p, &n);
    bad = bad ? bad : check_counters(p, &n);
    bad = bad ? bad : check_credits(p);
    bad = bad ? bad : check_idle(p, n.state[PRT_SLOT_IDLE]);
    for (struct prt_partition *x = p->parts; x && !bad; x = x->next) {
        bad = check_parked(x);
    }
    pthread_mutex_unlock(&p->mu);
    return bad;
}
