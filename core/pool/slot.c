/* slot.c - slots: idle bits, states, and the factory's answers.
 * Owns: who owns a slot. A slot nobody uses is one set bit; who clears it owns the slot.
 * Threads: bits any, without a lock; seats, open and close under the pool's mutex.
 * Idea: three levels of bits. The word of a chunk (64 seats of a class in a lane) is the ownership;
 * above it `may` says which chunks are worth a look, and the lane's `classes` which classes. The
 * upper two may say too much, never too little (README), so that nobody ever walks an array of
 * slots. Rejected: a list per lane (the remote take needs a lock or ABA reasoning), one bitmap over
 * the pool's slots per class and lane (12 KB each in a pool of 100,000). */
#include "pool/pool_int.h"

#include <stdlib.h>
#include <string.h>

const char *prt_slot_state_name(enum prt_slot_state st)
{
    static const char *const name[] = {"free",   "connecting", "idle",
                                       "active", "passing",    "closing"};
    return (unsigned)st < sizeof name / sizeof *name ? name[st] : "unknown";
}

const char *prt_close_why_name(enum prt_close_why why)
{
    static const char *const name[] = {"idle", "age", "evict", "shrink", "flush", "broken", "kill"};
    return (unsigned)why < sizeof name / sizeof *name ? name[why] : "unknown";
}

bool prt_slot_may_become(enum prt_slot_state from, enum prt_slot_state to)
{
#define TO(st) (1u << PRT_SLOT_##st)
    static const uint8_t next[] = {
        [PRT_SLOT_FREE] = TO(CONNECTING),
        [PRT_SLOT_CONNECTING] = TO(PASSING) | TO(FREE),
        [PRT_SLOT_IDLE] = TO(ACTIVE) | TO(IDLE) | TO(CLOSING), /* its claimer passes it on */
        [PRT_SLOT_ACTIVE] = TO(IDLE) | TO(PASSING) | TO(CLOSING) | TO(ACTIVE),
        [PRT_SLOT_PASSING] = TO(IDLE) | TO(ACTIVE) | TO(CLOSING),
        [PRT_SLOT_CLOSING] = TO(FREE) | TO(CONNECTING),
    };
#undef TO
    return next[from] & 1u << to;
}

/* ---- idle bits ---- */
bool prt_bit_claim(struct prt_class *c, unsigned lane, uint32_t seat)
{
    struct chunk *ch = prt_chunk(c, seat / SEATS);
    return ch && prt_word_claim(&ch->lane[lane].bits, seat % SEATS);
}

static struct slot *chunk_claim(struct chunk *ch, unsigned lane)
{
    _Atomic uint64_t *w = &ch->lane[lane].bits;
    uint64_t m;

    /* the lowest seat first: low ones stay busy, high ones grow old and are closed */
    while ((m = atomic_load_explicit(w, memory_order_seq_cst))) {
        unsigned i = (unsigned)__builtin_ctzll(m);
        if (prt_word_claim(w, i)) {
            return ch->seat[i];
        }
    }
    return NULL;
}

/* Chunk k was found empty: say so above. What was published meanwhile is shown again; between the
 * two steps another's search may have missed it, so the gate must be looked at afterwards. */
static bool chunk_forget(_Atomic uint64_t *may, uint64_t bit, struct chunk *ch, unsigned lane)
{
    atomic_fetch_and_explicit(may, ~bit, memory_order_seq_cst);
    if (!atomic_load_explicit(&ch->lane[lane].bits, memory_order_seq_cst)) {
        return false;
    }
    atomic_fetch_or_explicit(may, bit, memory_order_seq_cst);
    return true;
}

struct slot *prt_search(struct prt_class *c, unsigned lane, bool *look)
{
    struct near *near = prt_near(c, lane);

    for (uint32_t k = 0; k < c->pool->may_words; k++) {
        uint64_t m = atomic_load_explicit(&near->may[k], memory_order_seq_cst);
        while (m) {
            uint64_t bit = m & -m;
            struct chunk *ch = prt_chunk(c, k * 64 + (uint32_t)__builtin_ctzll(m));
            struct slot *s = chunk_claim(ch, lane);
            if (s) {
                return s;
            }
            if (chunk_forget(&near->may[k], bit, ch, lane)) {
                *look = true;
                continue;
            }
            m &= ~bit;
        }
    }
    return NULL;
}

/* ---- looking at idle slots that are not ours (under mu) ---- */
/* The class's slot in the lane that was idle for long, by its high seat; NULL: none. */
static struct slot *old_one(struct prt_class *c, unsigned lane)
{
    struct near *near = prt_near(c, lane);

    for (uint32_t k = c->pool->may_words; k-- > 0;) {
        uint64_t m = atomic_load_explicit(&near->may[k], memory_order_seq_cst);
        while (m) {
            uint32_t top = 63 - (uint32_t)__builtin_clzll(m);
            struct chunk *ch = prt_chunk(c, k * 64 + top);
            uint64_t b = atomic_load_explicit(&ch->lane[lane].bits, memory_order_seq_cst);
            if (b) {
                return ch->seat[63 - __builtin_clzll(b)];
            }
            m &= ~(1ull << top);
        }
    }
    return NULL;
}

/* As old_one, and takes back the lane's word that the class has one when it has not. The mutex
 * makes this simpler than chunk_forget: only holders of it read that word. */
static struct slot *victim_of(struct prt_class *c, unsigned lane)
{
    _Atomic uint64_t *known = &c->pool->lane[lane].classes[c->id / 64];
    uint64_t bit = 1ull << (c->id % 64);
    struct slot *s = old_one(c, lane);

    if (s || !(atomic_load_explicit(known, memory_order_relaxed) & bit)) {
        return s;
    }
    atomic_fetch_and_explicit(known, ~bit, memory_order_seq_cst);
    s = old_one(c, lane); /* published meanwhile: its publisher may have seen the bit still set */
    if (s) {
        atomic_fetch_or_explicit(known, bit, memory_order_seq_cst);
    }
    return s;
}

static uint64_t known_classes(struct prt_pool *p, uint32_t word)
{
    uint64_t m = 0;

    for (int l = 0; l < p->lanes; l++) {
        m |= atomic_load_explicit(&p->lane[l].classes[word], memory_order_seq_cst);
    }
    return m;
}

/* The oldest of the first few candidates after the hand: near to the least recently used, at a
 * price that does not grow with the number of classes. */
#define CANDIDATES 16

struct victim {
    struct slot *s;
    struct prt_class *cls;
    uint16_t lane;
    int seen;
};

static void consider(struct prt_pool *p, struct prt_class *c, struct victim *v)
{
    if (!c || prt_queued(c) > 0) {
        return;
    }
    for (int l = 0; l < p->lanes; l++) {
        struct slot *s = victim_of(c, (unsigned)l);
        if (!s) {
            continue;
        }
        v->seen++;
        if (!v->s || prt_slot_used(s) < prt_slot_used(v->s)) {
            v->s = s, v->cls = c, v->lane = (uint16_t)l;
        }
    }
}

static void look_round(struct prt_pool *p, struct victim *v)
{
    uint32_t words = (p->n_ids + 63) / 64, first = p->hand / 64;

    for (uint32_t i = 0; i <= words && v->seen < CANDIDATES; i++) {
        uint32_t word = (first + i) % words;
        uint64_t m = known_classes(p, word);
        if (i == 0) {
            m &= ~0ull << (p->hand % 64);
        }
        for (; m && v->seen < CANDIDATES; m &= m - 1) {
            consider(p, p->class_by_id[word * 64 + (uint32_t)__builtin_ctzll(m)], v);
        }
    }
}

struct slot *prt_claim_victim(struct prt_pool *p)
{
    for (int tries = 0; tries < 4; tries++) {
        struct victim v = {0};
        look_round(p, &v);
        if (!v.s) {
            return NULL;
        }
        p->hand = v.cls->id + 1 < p->n_ids ? v.cls->id + 1 : 0;
        if (prt_bit_claim(v.cls, v.lane, v.s->seat)) {
            return v.s;
        }
    }
    return NULL; /* lost each time to a lessee, who looks at the gate when it is done */
}

static bool each_in(struct prt_class *c, bool (*f)(void *arg, struct slot *s), void *arg)
{
    uint32_t chunks = ((uint32_t)c->pool->capacity + SEATS - 1) / SEATS;

    for (uint32_t k = 0; k < chunks && prt_chunk(c, k); k++) {
        struct chunk *ch = prt_chunk(c, k);
        for (int l = 0; l < c->pool->lanes; l++) {
            uint64_t m = atomic_load_explicit(&ch->lane[l].bits, memory_order_seq_cst);
            for (; m; m &= m - 1) {
                if (!f(arg, ch->seat[__builtin_ctzll(m)])) {
                    return false;
                }
            }
        }
    }
    return true;
}

void prt_each_idle(struct prt_pool *p, bool (*f)(void *arg, struct slot *s), void *arg)
{
    for (uint32_t i = 0; i < p->n_ids; i++) {
        if (p->class_by_id[i] && !each_in(p->class_by_id[i], f, arg)) {
            return;
        }
    }
}

static bool count_one(void *arg, struct slot *s)
{
    (void)s;
    ++*(int *)arg;
    return true;
}

int prt_idle_count(struct prt_pool *p)
{
    int n = 0;

    prt_each_idle(p, count_one, &n);
    return n;
}

/* ---- seats (under mu) ---- */
static struct chunk *chunk_of(struct prt_class *c, uint32_t k)
{
    struct chunk *ch = prt_chunk(c, k);
    size_t lanes = (size_t)c->pool->lanes * sizeof ch->lane[0];

    if (ch) {
        return ch;
    }
    ch = aligned_alloc(PRT_CACHE_LINE, sizeof *ch + lanes);
    if (!ch) {
        return NULL;
    }
    memset(ch, 0, sizeof *ch + lanes);
    /* release: pairs with prt_chunk */
    atomic_store_explicit(&c->chunk[k], ch, memory_order_release);
    return ch;
}

static bool seat_take(struct prt_class *c, struct slot *s)
{
    uint32_t k = c->low_chunk;
    struct chunk *ch;

    while ((ch = chunk_of(c, k)) && ch->taken == UINT64_MAX) {
        k++;
    }
    if (!ch) {
        return false;
    }
    c->low_chunk = k;
    unsigned i = (unsigned)__builtin_ctzll(~ch->taken);
    ch->taken |= 1ull << i;
    ch->seat[i] = s;
    s->seat = k * SEATS + i;
    return true;
}

static void seat_give(struct prt_class *c, struct slot *s)
{
    uint32_t k = s->seat / SEATS;

    prt_chunk(c, k)->taken &= ~(1ull << (s->seat % SEATS));
    if (k < c->low_chunk) {
        c->low_chunk = k;
    }
}

/* ---- open and close (under mu) ---- */
bool prt_slot_open(struct step *st, struct slot *s, struct prt_class *c, unsigned lane)
{
    struct prt_pool *p = st->p;

    if (!seat_take(c, s)) {
        return false;
    }
    if (prt_slot_state(s) == PRT_SLOT_FREE) {
        prt_list_del(&s->pub.link);
        prt_n_add(&p->open, 1);
        prt_assert_dbg(prt_n(&p->open) <= p->lim.max);
    }
    s->pub.cls = c;
    __atomic_store_n(&s->pub.lane, (uint16_t)lane, __ATOMIC_RELAXED);
    s->pub.borrows = 0;
    s->epoch = p->epoch;
    s->wanted_by = NULL;
    prt_slot_set(s, PRT_SLOT_CONNECTING);
    prt_n_add(&p->connecting, 1);
    c->coming++;
    prt_hunger(c);
    prt_throttle_note(p, st->now_us);
    prt_list_push(&st->open, &s->pub.link);
    return true;
}

static void leaves_epoch(struct prt_pool *p, struct slot *s)
{
    if (s->epoch != p->epoch) {
        prt_gate_flag(p, GATE_STALE, --p->stale > 0);
    }
}

void prt_slot_close(struct step *st, struct slot *s, struct prt_class *wanted_by,
                    enum prt_close_why why)
{
    struct prt_pool *p = st->p;

    prt_slot_set(s, PRT_SLOT_CLOSING);
    s->why = why;
    s->wanted_by = wanted_by;
    if (wanted_by) {
        wanted_by->coming++;
        prt_hunger(wanted_by);
        p->n.evicted++;
    }
    /* counted in open, the pool's and the class's, until the server has seen the end */
    prt_n_add(&p->closing, 1);
    leaves_epoch(p, s);
    prt_gate_flag(p, GATE_OVER, prt_is_over(p));
    prt_list_push(&st->close, &s->pub.link);
}

static void slot_free(struct prt_pool *p, struct slot *s)
{
    prt_slot_set(s, PRT_SLOT_FREE);
    prt_n_add(&p->open, -1);
    prt_list_before(p->free.next, &s->pub.link); /* the warmest first */
    prt_gate_flag(p, GATE_OVER, prt_is_over(p));
    if (prt_n(&p->open) - prt_n(&p->closing) < p->lim.min && p->warm) {
        prt_due_by(p, p->now_us);
    }
}

/* ---- answers of the factory ---- */
static void open_failed(struct step *st, struct slot *s, const struct prt_err *err)
{
    struct prt_pool *p = st->p;
    struct prt_class *c = s->pub.cls;

    p->n.connect_failed++;
    leaves_epoch(p, s);
    seat_give(c, s);
    slot_free(p, s);
    c->error = *err;
    c->retry_us = st->now_us + p->lim.retry_us;
    if (!c->backs_off) {
        c->backs_off = true;
        prt_list_push(&p->resting, &c->resting);
    }
    prt_due_by(p, c->retry_us);
    prt_hunger(c);
    if (c->open == 0 && c->coming == 0) {
        prt_fail_lines(st, c, err->rc);
    }
    prt_class_mortal(c);
}

void prt_slot_opened(struct prt_slot *pub, const struct prt_err *err, int64_t now_us)
{
    struct slot *s = prt_slot_full(pub);
    struct prt_pool *p = pub->pool;
    struct prt_class *c = pub->cls;
    struct step st;

    prt_step_begin(&st, p, now_us);
    prt_assert(prt_slot_state(s) == PRT_SLOT_CONNECTING);
    c->coming--;
    prt_n_add(&p->connecting, -1);
    if (err->rc == POOLRT_OK) {
        c->open++;
        c->error.rc = POOLRT_OK;
        p->n.opened++;
        pub->opened_us = st.now_us;
        __atomic_store_n(&pub->used_us, st.now_us, __ATOMIC_RELAXED);
        s->dies_us = prt_life_end(p, st.now_us);
        prt_slot_set(s, PRT_SLOT_PASSING);
        prt_hunger(c);
        prt_serve(&st, s);
    } else {
        open_failed(&st, s, err);
    }
    prt_step_end(&st);
}

/* Evicted for a class that still wants it: no step between in which somebody else could take it. */
static bool open_again(struct step *st, struct slot *s, struct prt_class *c)
{
    struct prt_pool *p = st->p;

    if (prt_queued(c) <= (uint32_t)c->coming || c->backs_off || !prt_class_has_room(c) ||
        prt_n(&p->open) > p->lim.max || (prt_gate_flags(p) & GATE_STOP) ||
        !prt_throttle_allows(p, st->now_us)) {
        return false;
    }
    struct prt_waiter *w = prt_best_in(c, -1, st->now_us);
    return prt_credit_look(w->part) == CREDIT_OK && prt_slot_open(st, s, c, w->lane);
}

void prt_slot_closed(struct prt_slot *pub, int64_t now_us)
{
    struct slot *s = prt_slot_full(pub);
    struct prt_pool *p = pub->pool;
    struct prt_class *c = pub->cls, *next = s->wanted_by;
    struct step st;

    prt_step_begin(&st, p, now_us);
    prt_assert(prt_slot_state(s) == PRT_SLOT_CLOSING);
    prt_n_add(&p->closing, -1);
    p->n.closed++;
    p->n.closed_age_us += (uint64_t)(st.now_us - pub->opened_us);
    seat_give(c, s);
    c->open--;
    prt_hunger(c);
    prt_class_mortal(c);
    if (next) {
        next->coming--;
        prt_hunger(next);
        prt_class_mortal(next);
    }
    if (!next || !open_again(&st, s, next)) {
        slot_free(p, s);
    }
    prt_step_end(&st);
}

void prt_slot_rehome(struct prt_slot *pub, uint16_t lane)
{
    prt_assert(lane < pub->pool->lanes);
    __atomic_store_n(&pub->lane, lane, __ATOMIC_RELAXED);
}

bool prt_slot_retire_idle(struct prt_slot *pub, enum prt_close_why why, int64_t now_us)
{
    struct slot *s = prt_slot_full(pub);
    struct step st;
    bool ok;

    prt_step_begin(&st, pub->pool, now_us);
    ok = prt_slot_state(s) == PRT_SLOT_IDLE && prt_bit_claim(pub->cls, prt_slot_lane(s), s->seat);
    if (ok) {
        prt_slot_close(&st, s, NULL, why);
    }
    prt_step_end(&st);
    return ok;
}
