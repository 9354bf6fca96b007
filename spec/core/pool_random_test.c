/* pool_random_test.c - random sequences of everything a pool can be asked, on a hand clock.
 * After each operation the engine's own invariants (prt_pool_check) and a model of this test must
 * hold. PRT_SEED repeats a run, PRT_OPS sets its length; the last line says both. */
#include "pool_fake.h"

#include <time.h>

enum { CLIENTS = 24, CLASSES = 6, PARTS = 5 };
#define OPS 1000000L
#define LIFE 10000 /* operations in the life of one pool */

struct client {
    struct prt_waiter w;
    enum { OFF, WAITS, HOLDS, ENDED } st; /* ENDED: served() is on its way */
    int cls, part;
    int64_t since_us;
    uint64_t order; /* of arrival */
};
struct conn {
    bool is_busy, is_up;
};
struct model {
    struct fake f; /* first: the ops' ctx */
    struct prt_limits lim;
    int capacity, lanes;
    bool is_home, is_paused;
    struct client c[CLIENTS];
    struct conn conn[256];
    struct prt_partition *part[PARTS];
    struct prt_partition_limits part_lim[PARTS];
    int part_active[PARTS];
    int waiting;
    uint64_t order, granted, released, timed_out, cancelled, refused, drained, failed, stale;
    struct prt_lease old[8];
    const char *op, *bad, *bad_op;
};
static uint64_t seed_state;
static struct model m;

static unsigned rnd(unsigned n)
{
    seed_state ^= seed_state << 13;
    seed_state ^= seed_state >> 7;
    seed_state ^= seed_state << 17;
    return (unsigned)(seed_state >> 20) % n;
}

static void must(bool ok, const char *what)
{
    if (!ok && !m.bad) {
        m.bad = what;
        m.bad_op = m.op;
    }
}

static const char *const class_key[CLASSES] = {"app", "report", "batch", "web", "cron", "audit"};
static const char *const part_name[PARTS] = {"default", "acme", "globex", "initech", "hooli"};

/* ---- what the model knows of a grant ---- */
static int reserved_and_used(void)
{
    int n = 0;

    for (int i = 0; i < PARTS; i++) {
        n += m.part_active[i] > m.part_lim[i].min ? m.part_active[i] : m.part_lim[i].min;
    }
    return n;
}

static int minima(void)
{
    int n = 0;

    for (int i = 0; i < PARTS; i++) {
        n += m.part_lim[i].min;
    }
    return n;
}

/* Who shares class, lane, priority and partition is served in order of arrival. */
static void check_order(const struct client *c)
{
    for (int i = 0; i < CLIENTS; i++) {
        const struct client *x = &m.c[i];
        if (x != c && x->st == WAITS && x->w.cls == c->w.cls && x->w.lane == c->w.lane &&
            x->w.priority == c->w.priority && x->w.part == c->w.part && x->order < c->order) {
            must(x->since_us == c->since_us, "a later one was served before an earlier one");
        }
    }
}

static void granted(struct client *c)
{
    struct prt_slot *s = c->w.lease.slot;
    const struct prt_partition_limits *lim = &m.part_lim[c->part];
    struct conn *k = &m.conn[s->index];

    must(s->cls == c->w.cls, "a slot of another class was leased");
    must(!m.is_paused, "a lease during a pause");
    must(k->is_up && !k->is_busy, "a slot was leased twice, or is not connected");
    k->is_busy = true;
    m.granted++;
    m.part_active[c->part]++;
    must(lim->max == 0 || m.part_active[c->part] <= lim->max, "a partition is above its maximum");
    if (minima() > 0 && m.part_active[c->part] > lim->min) {
        must(reserved_and_used() <= m.lim.max, "a lease took what is reserved for others");
    }
}

static void on_open(struct fake *f, struct prt_slot *s)
{
    struct conn *k = &m.conn[s->index];

    must(f->servers <= m.lim.max, "more servers than max");
    must(!k->is_up, "a connection was opened over another");
    s->conn = k;
}

static void on_end(struct fake *f, struct prt_waiter *w)
{
    struct client *c = prt_container_of(w, struct client, w);

    (void)f;
    must(c->st == WAITS, "the end of a wait that had ended");
    m.waiting--;
    if (w->rc == POOLRT_OK) {
        check_order(c);
        granted(c);
    } else if (w->rc == POOLRT_DRAINING) {
        m.drained++;
    } else {
        must(w->rc == POOLRT_CONNECT_FAILED, "a wait failed for no reason");
        m.failed++;
    }
    c->st = ENDED;
}

/* ---- operations ---- */
static void op_acquire(struct client *c)
{
    c->cls = (int)(rnd(4) ? rnd(2) : rnd(CLASSES));
    c->part = (int)(rnd(3) ? rnd(2) : rnd(PARTS));
    c->w.cls = fake_class(&m.f, class_key[c->cls]);
    c->w.part = m.part[c->part];
    c->w.lane = (uint16_t)rnd((unsigned)m.lanes);
    c->w.priority = (int8_t)rnd(PRT_PRIORITIES);
    c->since_us = m.f.now_us;
    c->order = ++m.order;
    c->st = WAITS;
    m.waiting++;
    poolrt_rc rc = prt_acquire(m.f.p, &c->w, m.f.now_us);
    if (rc == POOLRT_PENDING) {
        return;
    }
    m.waiting--;
    c->st = HOLDS;
    if (rc == POOLRT_OK) {
        granted(c);
        return;
    }
    must(rc == POOLRT_QUEUE_FULL, "acquire failed for no reason");
    m.refused++;
    c->st = OFF;
    prt_class_unref(c->w.cls);
}

static void op_release(struct client *c)
{
    struct prt_lease l = c->w.lease;
    struct conn *k = &m.conn[l.slot->index];
    enum prt_release_how how = rnd(40) ? PRT_RELEASE_CLEAN : PRT_RELEASE_CLOSE;

    k->is_busy = false;
    m.part_active[c->part]--;
    m.released++;
    c->st = OFF;
    must(prt_release(m.f.p, l, how, c->w.lane, m.f.now_us) == POOLRT_OK,
         "a good lease was refused");
    m.old[rnd(8)] = l;
    prt_class_unref(c->w.cls);
}

static void op_cancel(struct client *c)
{
    poolrt_rc rc = rnd(2) ? POOLRT_TIMEOUT : POOLRT_CANCELLED;
    bool was_waiting = c->st == WAITS;
    int at = prt_waiter_position(m.f.p, &c->w, m.f.now_us);
    bool ok = prt_waiter_cancel(m.f.p, &c->w, rc, m.f.now_us);

    must(ok == was_waiting, "a cancel after the end, or none before it");
    must((at >= 0) == was_waiting && at < m.waiting + 1, "a position out of range");
    if (ok) {
        must(c->w.rc == rc, "a cancelled waiter has another result");
        m.waiting--;
        m.timed_out += rc == POOLRT_TIMEOUT;
        m.cancelled += rc == POOLRT_CANCELLED;
        c->st = OFF;
        prt_class_unref(c->w.cls);
    }
}

static void op_client(void)
{
    struct client *c = &m.c[rnd(CLIENTS)];

    switch (c->st) {
    case OFF:
        op_acquire(c);
        break;
    case HOLDS:
        op_release(c);
        break;
    case WAITS:
        if (rnd(6) == 0) {
            op_cancel(c);
        }
        break;
    case ENDED:
        if (rnd(3) == 0) {
            op_cancel(c);
        }
        break;
    }
}

static void op_deliver(void)
{
    struct prt_waiter *w = fake_next(&m.f);

    if (!w) {
        return;
    }
    struct client *c = prt_container_of(w, struct client, w);
    must(c->st == ENDED, "told of an end that was not noted");
    if (w->rc == POOLRT_OK) {
        must(!m.is_home || w->lease.slot->lane == w->lane, "a slot was not moved to its lessee");
        c->st = HOLDS;
    } else {
        c->st = OFF;
        prt_class_unref(w->cls);
    }
}

static struct prt_slot *some(struct prt_link *list, int n)
{
    struct prt_link *l = list->next;

    for (unsigned k = n > 0 ? rnd((unsigned)n) : 0; k > 0; k--) {
        l = l->next;
    }
    if (l == list) {
        return NULL;
    }
    prt_list_del(l);
    prt_list_before(list->next, l); /* first: the next to be answered */
    return prt_container_of(l, struct prt_slot, link);
}

static void op_factory(void)
{
    if (rnd(2)) {
        struct prt_slot *s = some(&m.f.opening, m.f.n_opening);
        bool ok = rnd(8) != 0;
        if (s) {
            m.conn[s->index].is_up = ok;
            fake_opened(&m.f, ok ? POOLRT_OK : POOLRT_CONNECT_FAILED);
        }
    } else {
        struct prt_slot *s = some(&m.f.closing, m.f.n_closing);
        if (s) {
            must(!m.conn[s->index].is_busy, "a leased connection was closed");
            m.conn[s->index].is_up = false;
            fake_closed(&m.f);
        }
    }
}

static void op_limits(void)
{
    struct prt_limits lim = m.lim;

    lim.max = 1 + (int)rnd((unsigned)m.capacity);
    lim.min = (int)rnd((unsigned)lim.max) / 2;
    lim.class_max = rnd(2) ? 0 : 1 + (int)rnd((unsigned)lim.max);
    lim.max_waiters = 4 + (int)rnd(40);
    lim.opens_per_sec = rnd(3) ? 0 : 200 + (int)rnd(5000);
    lim.fair_queue = rnd(2);
    lim.idle_us = rnd(2) ? 0 : 500 + rnd(5000);
    lim.lifetime_us = rnd(2) ? 0 : 2000 + rnd(20000);
    poolrt_rc want = minima() > lim.max ? POOLRT_CONFIG : POOLRT_OK;
    if (want == POOLRT_OK) {
        m.lim =
            lim; /* before: connections may be opened at once, under whatever limits hold then */
    }
    must(prt_pool_set_limits(m.f.p, &lim, m.f.now_us, NULL) == want, "limits refused, or not");
}

static void op_partition(void)
{
    int i = (int)rnd(PARTS);
    struct prt_partition_limits lim = {.priority = -1};
    struct prt_str name = prt_str_of(part_name[i]);

    if (rnd(3)) {
        lim.max = rnd(2) ? 0 : 1 + (int)rnd(6);
        lim.min = rnd(2) ? 0 : (int)rnd(lim.max ? (unsigned)lim.max + 1 : 4);
        lim.max_waiters = rnd(3) ? 0 : 1 + (int)rnd(6);
    }
    int sum = minima() - m.part_lim[i].min + lim.min;
    struct prt_partition_limits old = m.part_lim[i];
    m.part_lim[i] = lim; /* before: what it sets free may be granted at once */
    poolrt_rc rc = prt_pool_partition(m.f.p, name, &lim, m.f.now_us, NULL);
    must(rc == (sum > m.lim.max ? POOLRT_CONFIG : POOLRT_OK), "a partition refused, or not");
    if (rc != POOLRT_OK) {
        m.part_lim[i] = old;
    }
    must(prt_pool_partition_find(m.f.p, name) == m.part[i], "a partition is not found");
}

static void op_stale(void)
{
    struct prt_lease l = m.old[rnd(8)];

    if (l.slot) {
        must(prt_release(m.f.p, l, PRT_RELEASE_CLEAN, l.slot->lane, m.f.now_us) == POOLRT_STALE,
             "a lease was released twice");
        m.stale++;
    }
}

static void op_pause(void)
{
    if (m.is_paused) {
        m.is_paused = false; /* before: what waits is granted at once */
        prt_pool_resume(m.f.p, m.f.now_us);
        return;
    }
    prt_pool_pause(m.f.p);
    m.is_paused = true;
    bool is_busy = false;
    for (int i = 0; i < m.capacity; i++) {
        is_busy |= m.conn[i].is_busy;
    }
    must(prt_pool_is_quiet(m.f.p) == !is_busy, "quiet differs from nobody holding a lease");
}

static void op_warm(void)
{
    struct prt_class *c = fake_class(&m.f, class_key[rnd(2)]);

    prt_pool_set_warm(m.f.p, c);
    prt_class_unref(c);
    prt_pool_warm(m.f.p, (int)rnd(4), m.f.now_us);
}

static void op_retire(void)
{
    struct prt_lease l = m.old[rnd(8)];

    if (l.slot) {
        bool was_busy = m.conn[l.slot->index].is_busy;
        bool ok = prt_slot_retire_idle(l.slot, PRT_CLOSE_BROKEN, m.f.now_us);
        must(!(ok && was_busy), "a leased slot was retired as idle");
    }
}

static void op_any(void)
{
    unsigned r = rnd(1000);

    m.f.now_us += rnd(20);
    if (r < 520) {
        m.op = "client", op_client();
    } else if (r < 700) {
        m.op = "deliver", op_deliver();
    } else if (r < 900) {
        m.op = "factory", op_factory();
    } else if (r < 950) {
        m.op = "tick", prt_pool_tick(m.f.p, m.f.now_us);
    } else if (r < 970) {
        m.op = "stale", op_stale();
    } else if (r < 975) {
        m.op = "retire", op_retire();
    } else if (r < 980) {
        m.op = "limits", op_limits();
    } else if (r < 988) {
        m.op = "partition", op_partition();
    } else if (r < 990) {
        m.op = "flush", prt_pool_flush(m.f.p, m.f.now_us);
    } else if (r < (m.is_paused ? 999 : 992)) {
        m.op = "pause", op_pause();
    } else if (r < 994) {
        m.op = "warm", op_warm();
    }
}

/* ---- the model against the engine ---- */
struct sum {
    uint32_t active;
    uint64_t acquired, released;
};

static void add_partition(void *arg, const struct prt_partition_stats *s)
{
    struct sum *sum = arg;

    for (int i = 0; i < PARTS; i++) {
        if (prt_str_eqz(s->name, part_name[i])) {
            must((int)s->active == m.part_active[i], "a partition's active differs from the model");
            must(s->lim.max == m.part_lim[i].max && s->lim.min == m.part_lim[i].min,
                 "a partition's limits differ from the model");
        }
    }
    sum->active += s->active, sum->acquired += s->acquired, sum->released += s->released;
}

static void check_model(void)
{
    struct prt_pool_stats s;
    struct sum sum = {0};
    int by_priority = 0;

    prt_pool_snapshot(m.f.p, &s, m.f.now_us);
    must(s.waiting == m.waiting, "waiting differs from the model");
    must(s.acquired == m.granted && s.released == m.released, "leases differ from the model");
    must(s.timed_out == m.timed_out && s.cancelled == m.cancelled, "cancels differ from the model");
    must(s.refused == m.refused && s.drained == m.drained, "refusals differ from the model");
    must(s.failed == m.failed, "failures differ from the model");
    must(s.open == m.f.servers, "open differs from the servers there are");
    must(s.connecting == m.f.n_opening && s.closing == m.f.n_closing, "the factory has other work");
    must(s.wait.count == s.acquired, "the histogram does not have each lease once");
    for (int k = 0; k < PRT_PRIORITIES; k++) {
        by_priority += s.waiting_by_priority[k];
    }
    must(by_priority == s.waiting, "waiting by priority differs from waiting");
    must((s.oldest_wait_us > 0) <= (s.waiting > 0), "a wait without a waiter");
    prt_pool_each_partition(m.f.p, add_partition, &sum);
    must(sum.acquired == s.acquired && sum.released == s.released,
         "partitions differ from the pool");
}

static void check(long i)
{
    const char *bad = prt_pool_check(m.f.p);

    must(!bad, bad ? bad : "");
    if (i % 16 == 0) {
        check_model();
    }
}

/* ---- a life ---- */
static void born(void)
{
    static const int capacities[] = {1, 3, 12, 12, 12, 140};

    memset(&m, 0, sizeof m);
    m.capacity = capacities[rnd(6)];
    m.lanes = 1 + (int)rnd(3);
    m.is_home = rnd(2);
    m.lim = (struct prt_limits){.max = 1 + (int)rnd((unsigned)m.capacity),
                                .max_waiters = 30,
                                .locality_bias_us = 50,
                                .switch_bias_us = 200,
                                .boost_after_us = 500,
                                .retry_us = 100};
    fake_init(&m.f, &m.lim, m.lanes, m.capacity, m.is_home, NULL);
    m.f.on_open = on_open;
    m.f.on_end = on_end;
    for (int i = 0; i < PARTS; i++) {
        m.part_lim[i].priority = -1;
        must(prt_pool_partition(m.f.p, prt_str_of(part_name[i]), &m.part_lim[i], 0, NULL) ==
                 POOLRT_OK,
             "a partition was refused");
        m.part[i] = prt_pool_partition_find(m.f.p, prt_str_of(part_name[i]));
    }
}

/* No new requests: everybody is served or fails, everything is released, closed and freed. */
static void died(bool by_drain)
{
    if (m.is_paused) {
        op_pause();
    }
    for (int i = 0; i < PARTS; i++) { /* with all of max reserved, others wait for ever */
        m.part_lim[i].min = 0;
        must(prt_pool_partition(m.f.p, prt_str_of(part_name[i]), &m.part_lim[i], 0, NULL) ==
                 POOLRT_OK,
             "a minimum could not be taken back");
    }
    if (by_drain) {
        prt_pool_drain(m.f.p, m.f.now_us);
    }
    for (int i = 0; i < 20000 && !m.bad; i++) {
        bool is_over = m.waiting == 0;
        for (int k = 0; k < CLIENTS; k++) {
            is_over &= m.c[k].st == OFF;
            if (m.c[k].st == HOLDS) {
                op_release(&m.c[k]);
            }
        }
        if (is_over) {
            break;
        }
        m.f.now_us += 50;
        prt_pool_tick(m.f.p, m.f.now_us);
        op_factory();
        op_deliver();
        check(i);
    }
    m.op = "end";
    must(m.waiting == 0, "somebody was never served");
    prt_pool_set_warm(m.f.p, NULL);
    prt_pool_drain(m.f.p, m.f.now_us);
    while (m.f.n_opening + m.f.n_closing > 0 && !m.bad) {
        op_factory();
        check(1);
    }
    check_model();
    must(prt_pool_open(m.f.p) == 0 && m.f.servers == 0, "a drained pool has connections");
    if (!m.bad) {
        prt_pool_free(m.f.p);
        must(m.f.users == 0, "a class's user was not given back once");
    }
}

static uint64_t seed_of_run(void)
{
    const char *env = getenv("PRT_SEED");
    struct timespec t;

    (void)clock_gettime(CLOCK_REALTIME, &t);
    return env ? strtoull(env, NULL, 10) : (uint64_t)t.tv_sec * 1000000007u + (uint64_t)t.tv_nsec;
}

TEST(random_sequences_keep_every_promise)
{
    const char *env = getenv("PRT_OPS");
    long ops = env ? strtol(env, NULL, 10) : OPS, done = 0;
    uint64_t seed = seed_of_run();

    printf("  seed %llu, %ld operations\n", (unsigned long long)seed, ops);
    for (uint64_t life = 0; done < ops; life++) {
        seed_state = (seed + life) * 0x9e3779b97f4a7c15u | 1;
        born();
        for (long i = 0; i < LIFE && !m.bad; i++, done++) {
            op_any();
            check(i);
        }
        died(rnd(2));
        if (m.bad) {
            printf("  broken at operation %ld (%s) of PRT_SEED=%llu: %s\n", done, m.bad_op,
                   (unsigned long long)(seed + life), m.bad);
            CHECK(!m.bad);
            exit(1); /* the pool is in no state to go on with */
        }
    }
}
