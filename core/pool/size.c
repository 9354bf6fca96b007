/* size.c - how many connections there are, and for how long: limits, warmth, age, pause, flush,
 * drain. Owns: limits, the throttle, the times at which something is due.   Threads: any; all are
 * steps. Idea: set the gate's flag first, then walk the idle bits; who is active then closes at its
 * release, since its look finds the flag. Nothing here touches a slot whose bit it has not cleared.
 */
#include "pool/pool_int.h"

/* ---- throttle: opens per second, a tenth of a second's worth at once ---- */
static int64_t throttle_free_us(const struct prt_pool *p)
{
    int64_t rate = p->lim.opens_per_sec;
    int64_t at_once = rate >= 10 ? rate / 10 : 1;

    return p->opened_at_us - (at_once - 1) * 1000000 / rate;
}

bool prt_throttle_allows(struct prt_pool *p, int64_t now_us)
{
    if (p->lim.opens_per_sec <= 0 || throttle_free_us(p) <= now_us) {
        return true;
    }
    prt_due_by(p, throttle_free_us(p));
    return false;
}

void prt_throttle_note(struct prt_pool *p, int64_t now_us)
{
    if (p->lim.opens_per_sec > 0) {
        int64_t from = p->opened_at_us > now_us ? p->opened_at_us : now_us;
        p->opened_at_us = from + (1000000 + p->lim.opens_per_sec - 1) / p->lim.opens_per_sec;
    }
}

/* Each connection gets an end of its own, so that those opened together do not close together. */
int64_t prt_life_end(struct prt_pool *p, int64_t now_us)
{
    int64_t life = p->lim.lifetime_us, end = INT64_MAX;

    if (life > 0) {
        end = now_us + life - (int64_t)(prt_pool_random(p) % ((uint64_t)life / 10 + 1));
        if (end < p->scan_us) {
            p->scan_us = end;
        }
    }
    return end;
}

/* ---- closing idle slots ---- */
struct closer {
    struct step *st;
    enum prt_close_why why;
    bool (*want)(struct closer *cl, const struct slot *s);
    int64_t next_us; /* of the slots that stay: when the first one is due */
};

static bool close_one(void *arg, struct slot *s)
{
    struct closer *cl = arg;

    if (cl->want(cl, s) && prt_bit_claim(s->pub.cls, prt_slot_lane(s), s->seat)) {
        prt_slot_close(cl->st, s, NULL, cl->why);
    }
    return true;
}

static void close_idle(struct step *st, bool (*want)(struct closer *, const struct slot *),
                       enum prt_close_why why)
{
    struct closer cl = {st, why, want, INT64_MAX};
    prt_each_idle(st->p, close_one, &cl);
}

static bool want_over(struct closer *cl, const struct slot *s)
{
    (void)s;
    return prt_is_over(cl->st->p);
}
static bool want_stale(struct closer *cl, const struct slot *s)
{
    return s->epoch != cl->st->p->epoch;
}
static bool want_all(struct closer *cl, const struct slot *s)
{
    (void)cl, (void)s;
    return true;
}

static int staying(const struct prt_pool *p)
{
    return prt_n(&p->open) - prt_n(&p->closing);
}

static void not_before(struct closer *cl, int64_t due_us)
{
    cl->next_us = due_us < cl->next_us ? due_us : cl->next_us;
}

static bool want_old(struct closer *cl, const struct slot *s)
{
    const struct prt_pool *p = cl->st->p;
    int64_t idle_us = p->lim.idle_us, now = cl->st->now_us;

    if (now >= s->dies_us) {
        cl->why = PRT_CLOSE_AGE;
        return true;
    }
    not_before(cl, s->dies_us);
    if (idle_us <= 0 || staying(p) <= p->lim.min) {
        return false;
    }
    if (now - prt_slot_used(s) >= idle_us) {
        cl->why = PRT_CLOSE_IDLE;
        return true;
    }
    not_before(cl, prt_slot_used(s) + idle_us);
    return false;
}

/* Next look: when the first of those seen is due; a slot that idles from now on is due later than
 * idle_us from now, a new one's end has moved scan_us itself. Big pools are not walked more often
 * than a share of a percent of the time. */
static void scan(struct step *st)
{
    struct prt_pool *p = st->p;
    struct closer cl = {st, PRT_CLOSE_IDLE, want_old, INT64_MAX};
    int64_t rest_us = p->capacity > 1000 ? p->capacity : 1000;

    if (p->lim.idle_us > 0) {
        not_before(&cl, st->now_us + p->lim.idle_us);
    }
    p->scan_us = INT64_MAX;
    prt_each_idle(p, close_one, &cl);
    if (cl.next_us < st->now_us + rest_us) {
        cl.next_us = st->now_us + rest_us;
    }
    p->scan_us = cl.next_us;
}

/* ---- warmth ---- */
static bool can_open_warm(struct prt_pool *p, int64_t now_us)
{
    struct prt_class *c = p->warm;

    if (!c || (prt_gate_flags(p) & GATE_STOP) || prt_n(&p->open) >= p->lim.max ||
        !prt_class_has_room(c)) {
        p->warming = 0;
        return false;
    }
    return !c->backs_off && prt_throttle_allows(p, now_us);
}

static void warm_up(struct step *st)
{
    struct prt_pool *p = st->p;

    while ((p->warming > 0 || staying(p) < p->lim.min) && can_open_warm(p, st->now_us)) {
        if (!prt_slot_open(st, SLOT_OF(p->free.next), p->warm, p->warm_lane)) {
            return;
        }
        p->warm_lane = (uint16_t)((p->warm_lane + 1) % p->lanes);
        p->warming -= p->warming > 0;
    }
}

void prt_pool_set_warm(struct prt_pool *p, struct prt_class *c)
{
    struct step st;

    prt_step_begin(&st, p, 0);
    struct prt_class *old = p->warm;
    p->warm = c;
    if (c) {
        c->refs++;
        prt_due_by(p, st.now_us);
    }
    if (old) {
        old->refs--;
        prt_class_mortal(old);
    }
    prt_step_end(&st);
}

void prt_pool_warm(struct prt_pool *p, int n, int64_t now_us)
{
    struct step st;

    prt_step_begin(&st, p, now_us);
    p->warming = n;
    warm_up(&st);
    prt_step_end(&st);
}

/* ---- tick ---- */
static void end_back_offs(struct step *st)
{
    struct prt_link *l = st->p->resting.next, *next;

    for (; l != &st->p->resting; l = next) {
        struct prt_class *c = CLASS_OF(l, resting);
        next = l->next;
        if (st->now_us < c->retry_us) {
            prt_due_by(st->p, c->retry_us);
            continue;
        }
        c->backs_off = false;
        prt_list_del(l);
        prt_hunger(c);
    }
}

#define TICK_US 1000000 /* the longest pause between two ticks */

int64_t prt_pool_tick(struct prt_pool *p, int64_t now_us)
{
    struct step st;

    prt_step_begin(&st, p, now_us);
    atomic_store_explicit(&p->due_us, INT64_MAX, memory_order_relaxed);
    end_back_offs(&st);
    prt_partition_tick(p, st.now_us);
    if (st.now_us >= p->scan_us) {
        scan(&st);
    }
    prt_feed(&st); /* those who wait come before warmth */
    warm_up(&st);
    prt_due_by(p, p->scan_us);
    prt_due_by(p, st.now_us + TICK_US);
    prt_step_end(&st);
    return prt_pool_due(p);
}

int64_t prt_pool_due(const struct prt_pool *p)
{
    return atomic_load_explicit(&p->due_us, memory_order_relaxed);
}

/* ---- limits ---- */
static poolrt_rc refuse(const struct prt_pool *p, const struct prt_limits *lim, struct prt_err *err)
{
    if (lim->max < 1 || lim->max > p->capacity) {
        return prt_fail(err, POOLRT_CONFIG,
                        "max_size %d is not in 1..%d; a higher one needs a restart", lim->max,
                        p->capacity);
    }
    if (lim->min < 0 || lim->min > lim->max) {
        return prt_fail(err, POOLRT_CONFIG, "min_size %d is not in 0..max_size (%d)", lim->min,
                        lim->max);
    }
    return POOLRT_OK;
}

static void renew_hunger(struct prt_pool *p)
{
    for (uint32_t i = 0; i < p->n_ids; i++) {
        if (p->class_by_id[i]) {
            prt_hunger(p->class_by_id[i]);
        }
    }
}

poolrt_rc prt_pool_set_limits(struct prt_pool *p, const struct prt_limits *lim, int64_t now_us,
                              struct prt_err *err)
{
    poolrt_rc rc = refuse(p, lim, err);
    struct step st;

    if (rc != POOLRT_OK) {
        return rc;
    }
    prt_step_begin(&st, p, now_us);
    if (p->min_sum > (uint32_t)lim->max) {
        rc = prt_fail(err, POOLRT_CONFIG,
                      "max_size %d is below the %u connections reserved by min_connections of the "
                      "partitions",
                      lim->max, p->min_sum);
    } else {
        p->lim = *lim;
        atomic_store_explicit(&p->max, lim->max, memory_order_relaxed);
        p->scan_us = st.now_us;
        prt_gate_flag(p, GATE_OVER, prt_is_over(p)); /* the gate first, then the bits */
        if (prt_is_over(p)) {
            close_idle(&st, want_over, PRT_CLOSE_SHRINK);
        }
        prt_partition_derive(&st);
        renew_hunger(p);
        prt_pump(&st);
        prt_due_by(p, st.now_us);
    }
    prt_step_end(&st);
    return rc;
}

/* ---- pause, flush, drain ---- */
void prt_pool_pause(struct prt_pool *p)
{
    pthread_mutex_lock(&p->mu);
    prt_gate_flag(p, GATE_PAUSED, true);
    pthread_mutex_unlock(&p->mu);
}

/* Counted by bits, not by states: who takes a slot clears its bit before it looks at the gate, so
 * either its bit is missing here or it sees the pause and gives the slot back. */
bool prt_pool_is_quiet(struct prt_pool *p)
{
    bool is_quiet;

    pthread_mutex_lock(&p->mu);
    is_quiet = prt_idle_count(p) + prt_n(&p->connecting) + prt_n(&p->closing) == prt_n(&p->open);
    pthread_mutex_unlock(&p->mu);
    return is_quiet;
}

void prt_pool_resume(struct prt_pool *p, int64_t now_us)
{
    struct step st;

    prt_step_begin(&st, p, now_us);
    prt_gate_flag(p, GATE_PAUSED, false);
    prt_pump(&st);
    prt_due_by(p, st.now_us);
    prt_step_end(&st);
}

void prt_pool_flush(struct prt_pool *p, int64_t now_us)
{
    struct step st;

    prt_step_begin(&st, p, now_us);
    p->epoch++;
    p->stale = staying(p);
    prt_gate_flag(p, GATE_STALE, p->stale > 0);
    close_idle(&st, want_stale, PRT_CLOSE_FLUSH);
    prt_step_end(&st);
}

static void drain_lines(struct step *st)
{
    struct prt_pool *p = st->p;

    for (struct prt_partition *x = p->parts; x; x = x->next) {
        while (x->parked > 0) {
            struct flow *f = prt_container_of(x->flows.next, struct flow, link);
            prt_wait_fail(st, prt_flow_best(f, st->now_us), POOLRT_DRAINING);
            p->n.drained++;
        }
    }
    while (!prt_list_empty(&p->lined)) {
        struct prt_class *c = CLASS_OF(p->lined.next, lined);
        uint64_t failed = p->n.failed;
        prt_fail_lines(st, c, POOLRT_DRAINING);
        p->n.drained += p->n.failed - failed;
        p->n.failed = failed;
    }
}

void prt_pool_drain(struct prt_pool *p, int64_t now_us)
{
    struct step st;

    prt_step_begin(&st, p, now_us);
    prt_gate_flag(p, GATE_DRAIN, true);
    drain_lines(&st);
    close_idle(&st, want_all, PRT_CLOSE_FLUSH);
    prt_step_end(&st);
}

int prt_pool_open(struct prt_pool *p)
{
    return prt_n(&p->open);
}
