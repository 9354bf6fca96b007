/* pool_stress_test.c - random operations on one pool from several threads, in worker mode (slots
 * have a home lane and are moved) and in host mode (they have none). Every few hundred steps all
 * threads meet, and prt_pool_check() must find nothing: that is where a lost wake-up, a leaked slot
 * or a wrong count shows. A slot leased twice is a data race on conn.busy, for the thread
 * sanitizer, and fails an assertion. PRT_STEPS: steps per thread and run (default 1000000).
 * PRT_SEED repeats the choices, not the interleaving. */
#include "pool/pool.h"
#include "test.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>

enum { CAP = 12, CLIENTS = 6, THREADS_MAX = 8, MEET = 500, BOX = 1024 };

struct conn {
    int busy; /* plain on purpose */
};
struct client {
    struct prt_waiter w;
    int thread;
    enum { OFF, WAITS, HOLDS, GIVEN_UP } st;
};
struct box { /* mail to a thread, taken in random order */
    pthread_mutex_t mu;
    void *m[BOX];
    int n;
};
struct worker {
    struct client c[CLIENTS];
    struct box mail, moved; /* waiters served; waiters whose slot lives here */
    uint64_t random;
    int id;
};
static struct run {
    struct prt_pool *p;
    struct worker t[THREADS_MAX];
    struct box opening, closing;
    struct conn conn[CAP];
    struct prt_class *cls[3];
    struct prt_partition *part[3];
    struct prt_limits lim; /* thread 0's */
    int threads;
    long steps;
    bool is_home, is_calm;
    _Atomic int64_t now_us;
    _Atomic int servers, peak, busy_clients;
    _Atomic long bad, evicted, late;
    pthread_barrier_t bar;
} r;

#define MUST(x) ((x) ? (void)0 : broken(__LINE__, #x))

static void broken(int line, const char *what)
{
    if (atomic_fetch_add(&r.bad, 1) == 0) {
        printf("  line %d: %s\n", line, what);
    }
    abort();
}

static unsigned rnd(struct worker *t, unsigned n)
{
    t->random ^= t->random << 13;
    t->random ^= t->random >> 7;
    t->random ^= t->random << 17;
    return (unsigned)(t->random >> 20) % n;
}

static int64_t now(void)
{
    return atomic_load_explicit(&r.now_us, memory_order_relaxed);
}

/* ---- boxes ---- */
static void post(struct box *b, void *m)
{
    pthread_mutex_lock(&b->mu);
    MUST(b->n < BOX);
    b->m[b->n++] = m;
    pthread_mutex_unlock(&b->mu);
}

static void *take(struct box *b, struct worker *t)
{
    void *m = NULL;

    pthread_mutex_lock(&b->mu);
    if (b->n > 0) {
        int i = (int)rnd(t, (unsigned)b->n);
        m = b->m[i];
        b->m[i] = b->m[--b->n];
    }
    pthread_mutex_unlock(&b->mu);
    return m;
}

/* ---- ops ---- */
static struct client *client_of(struct prt_waiter *w)
{
    return prt_container_of(w, struct client, w);
}

static void on_open(void *ctx, struct prt_slot *s)
{
    int n = atomic_fetch_add(&r.servers, 1) + 1;

    (void)ctx;
    MUST(n <= CAP);
    s->conn = &r.conn[s->index];
    post(&r.opening, s);
}

static void on_close(void *ctx, struct prt_slot *s, enum prt_close_why why)
{
    (void)ctx;
    MUST(((struct conn *)s->conn)->busy == 0);
    atomic_fetch_add(&r.evicted, why == PRT_CLOSE_EVICT);
    post(&r.closing, s);
}

static void on_served(void *ctx, struct prt_waiter *w)
{
    (void)ctx;
    post(&r.t[client_of(w)->thread].mail, w);
}

static void on_move(void *ctx, struct prt_slot *s, struct prt_waiter *w)
{
    (void)ctx;
    post(&r.t[s->lane].moved, w); /* the home worker must let go first */
}

static void on_class_free(void *ctx, void *user)
{
    (void)ctx, (void)user;
}

/* ---- a client ---- */
static void off(struct client *c)
{
    c->st = OFF;
    atomic_fetch_sub(&r.busy_clients, 1);
}

static void got(struct client *c)
{
    struct conn *k = c->w.lease.slot->conn;

    MUST(k->busy == 0 && c->w.lease.slot->cls == c->w.cls);
    k->busy = 1;
    c->st = HOLDS;
}

static void give_back(struct worker *t, struct client *c)
{
    struct prt_lease l = c->w.lease;
    bool closes = rnd(t, r.is_calm ? 3000 : 50) == 0;

    ((struct conn *)l.slot->conn)->busy = 0;
    off(c);
    MUST(prt_release(r.p, l, closes ? PRT_RELEASE_CLOSE : PRT_RELEASE_CLEAN, c->w.lane, now()) ==
         POOLRT_OK);
    if (rnd(t, 8) == 0) {
        MUST(prt_release(r.p, l, PRT_RELEASE_CLEAN, c->w.lane, now()) == POOLRT_STALE);
    }
}

static void ask(struct worker *t, struct client *c)
{
    unsigned k = rnd(t, r.is_calm ? 60 : 10), q = rnd(t, 5);

    c->w.cls = r.cls[r.is_calm ? (k == 0) : k < 6 ? 0 : k < 9 ? 1 : 2];
    c->w.part = r.part[q < 2 ? q : 2];
    c->w.priority = (int8_t)rnd(t, PRT_PRIORITIES);
    c->w.lane = (uint16_t)(r.is_home ? t->id : t->id % 2);
    c->st = WAITS;
    atomic_fetch_add(&r.busy_clients, 1);
    switch (prt_acquire(r.p, &c->w, now())) {
    case POOLRT_OK:
        got(c);
        if (r.is_calm && rnd(t, 4)) {
            give_back(t, c);
        }
        break;
    case POOLRT_PENDING:
        break;
    case POOLRT_QUEUE_FULL:
        off(c);
        break;
    default:
        MUST(!"acquire has another answer");
    }
}

static void give_up(struct client *c)
{
    if (prt_waiter_cancel(r.p, &c->w, POOLRT_TIMEOUT, now())) {
        off(c);
    } else {
        c->st = GIVEN_UP;
        atomic_fetch_add(&r.late, 1);
    }
}

static void read_mail(struct worker *t)
{
    struct prt_waiter *w;

    while ((w = take(&t->moved, t))) { /* detach here, attach there */
        MUST(w->lease.slot->lane == t->id);
        prt_slot_rehome(w->lease.slot, w->lane);
        post(&r.t[client_of(w)->thread].mail, w);
    }
    while ((w = take(&t->mail, t))) {
        struct client *c = client_of(w);
        bool gave_up = c->st == GIVEN_UP;
        MUST(c->st == WAITS || gave_up);
        if (w->rc != POOLRT_OK) {
            MUST(w->rc == POOLRT_CONNECT_FAILED);
            off(c);
            continue;
        }
        got(c);
        if (gave_up) {
            give_back(t, c);
        }
    }
}

/* ---- the rest of the world ---- */
static void factory(struct worker *t, bool never_fails)
{
    struct prt_slot *s = take(&r.opening, t);

    if (s) {
        struct prt_err err = {.rc = POOLRT_OK};
        if (!never_fails && rnd(t, r.is_calm ? 60 : 6) == 0) {
            err.rc = POOLRT_CONNECT_FAILED;
            atomic_fetch_sub(&r.servers, 1);
        }
        prt_slot_opened(s, &err, now());
    }
    if ((s = take(&r.closing, t))) {
        atomic_fetch_sub(&r.servers, 1);
        prt_slot_closed(s, now());
    }
}

static void admin_limits(struct worker *t)
{
    r.lim.max = 3 + (int)rnd(t, CAP - 2);
    r.lim.fair_queue = rnd(t, 2);
    r.lim.class_max = rnd(t, 2) ? 0 : 2 + (int)rnd(t, CAP);
    r.lim.idle_us = rnd(t, 2) ? 0 : 2000;
    r.lim.lifetime_us = rnd(t, 2) ? 0 : 30000;
    MUST(prt_pool_set_limits(r.p, &r.lim, now(), NULL) == POOLRT_OK);
}

static void admin_partition(struct worker *t)
{
    struct prt_partition_limits lim = {.max = (int)rnd(t, 5), .priority = -1};
    const char *name = rnd(t, 2) ? "acme" : "globex";

    if (rnd(t, 3) == 0) {
        lim.min = 1;
    }
    MUST(prt_pool_partition(r.p, prt_str_of(name), &lim, now(), NULL) == POOLRT_OK);
}

static void admin_pause(struct worker *t)
{
    prt_pool_pause(r.p);
    for (int k = 0; k < 50; k++) {
        if (prt_pool_is_quiet(r.p)) { /* then nobody holds a lease, until resume */
            for (int i = 0; i < CAP; i++) {
                MUST(__atomic_load_n(&r.conn[i].busy, __ATOMIC_RELAXED) == 0);
            }
            break;
        }
        read_mail(t);
    }
    prt_pool_resume(r.p, now());
}

static void one_step(struct worker *t)
{
    struct client *c = &t->c[rnd(t, r.is_calm && r.threads > 2 ? 2 : CLIENTS)];
    unsigned k = rnd(t, 1000);

    if (r.is_calm && k >= 985 && rnd(t, 50)) {
        k %= 900;
    }
    atomic_fetch_add_explicit(&r.now_us, 1, memory_order_relaxed);
    if (k < 700) {
        if (c->st == OFF) {
            ask(t, c);
        } else if (c->st == HOLDS) {
            give_back(t, c);
        }
    } else if (k < 800) {
        if (c->st == WAITS && (!r.is_calm || rnd(t, 20) == 0)) {
            give_up(c);
        }
    } else if (k < 980) {
        factory(t, false);
    } else if (k < 990) {
        prt_pool_tick(r.p, now());
    } else if (t->id == 0 && k < 993) {
        admin_limits(t);
    } else if (t->id == 0 && k < 994) {
        prt_pool_flush(r.p, now());
    } else if (t->id == 0 && k < 996) {
        admin_partition(t);
    } else if (t->id == 0 && k < 998) {
        admin_pause(t);
    }
    read_mail(t);
}

static void meet(void)
{
    if (pthread_barrier_wait(&r.bar) == PTHREAD_BARRIER_SERIAL_THREAD) {
        const char *bad = prt_pool_check(r.p);
        if (bad) {
            broken(__LINE__, bad);
        }
    }
    (void)pthread_barrier_wait(&r.bar);
}

/* No new requests: all that wait are served or fail, all leases come back. */
static void wind_down(struct worker *t)
{
    for (int k = 0; k < 3000000 && atomic_load(&r.busy_clients) > 0; k++) {
        for (int i = 0; i < CLIENTS; i++) {
            if (t->c[i].st == HOLDS) {
                give_back(t, &t->c[i]);
            }
        }
        if (k % 16 == 15) {
            (void)sched_yield();
        }
        atomic_fetch_add(&r.now_us, 100);
        prt_pool_tick(r.p, now());
        factory(t, true);
        read_mail(t);
    }
}

static void *work(void *arg)
{
    struct worker *t = arg;

    for (long i = 0; i < r.steps; i++) {
        one_step(t);
        if (rnd(t, 64) ==
            0) { /* more threads than cores: else each runs alone from meeting to meeting */
            (void)sched_yield();
        }
        if (i % MEET == MEET - 1) {
            meet();
        }
    }
    (void)pthread_barrier_wait(&r.bar);
    wind_down(t);
    meet();
    return NULL;
}

static void set_up(int threads, bool is_home, bool is_calm)
{
    static struct prt_conn_ops ops;
    static const char *const key[] = {"app", "report", "rare"};
    struct prt_partition_limits two = {.max = 2, .priority = -1}, none = {.priority = -1};
    const char *env = getenv("PRT_STEPS"), *seed = getenv("PRT_SEED");

    memset(&r, 0, sizeof r);
    r.threads = threads, r.is_home = is_home, r.is_calm = is_calm;
    r.steps = (env ? strtol(env, NULL, 10) : 1000000) / (threads > 2 ? threads / 2 : 1);
    r.lim = (struct prt_limits){.min = 1,
                                .max = 11,
                                .max_waiters = 40,
                                .locality_bias_us = 5,
                                .switch_bias_us = 20,
                                .boost_after_us = 50,
                                .retry_us = 30};
    ops = (struct prt_conn_ops){.open = on_open,
                                .close = on_close,
                                .served = on_served,
                                .move = is_home ? on_move : NULL,
                                .class_free = on_class_free};
    MUST(prt_pool_new(&r.p, &r.lim, is_home ? threads : 2, CAP, &ops, NULL, NULL, NULL) ==
         POOLRT_OK);
    for (int i = 0; i < 3; i++) {
        r.cls[i] = prt_pool_class(r.p, prt_str_of(key[i]), NULL);
    }
    MUST(prt_pool_partition(r.p, PRT_STR("acme"), &two, 0, NULL) == POOLRT_OK);
    MUST(prt_pool_partition(r.p, PRT_STR("globex"), &none, 0, NULL) == POOLRT_OK);
    r.part[0] = prt_pool_partition_find(r.p, PRT_STR("acme"));
    r.part[1] = prt_pool_partition_find(r.p, PRT_STR("globex"));
    r.part[2] = prt_pool_default_partition(r.p);
    (void)pthread_mutex_init(&r.opening.mu, NULL);
    (void)pthread_mutex_init(&r.closing.mu, NULL);
    for (int t = 0; t < threads; t++) {
        struct worker *w = &r.t[t];
        w->id = t;
        w->random = ((seed ? strtoull(seed, NULL, 10) : (uint64_t)prt_now_us()) + (uint64_t)t) *
                        0x9e3779b97f4a7c15u |
                    1;
        (void)pthread_mutex_init(&w->mail.mu, NULL);
        (void)pthread_mutex_init(&w->moved.mu, NULL);
        for (int i = 0; i < CLIENTS; i++) {
            w->c[i].thread = t;
        }
    }
    (void)pthread_barrier_init(&r.bar, NULL, (unsigned)threads);
}

static void tear_down(void)
{
    struct prt_pool_stats s;

    CHECK_INT(atomic_load(&r.busy_clients), 0);
    prt_pool_drain(r.p, now());
    for (int k = 0; k < 1000; k++) {
        factory(&r.t[0], true);
    }
    const char *bad = prt_pool_check(r.p);
    CHECK_STR(bad ? bad : "fine", "fine");
    prt_pool_snapshot(r.p, &s, now());
    printf(
        "  %d threads %s %s: leases %llu, handed over %llu, moved %llu, timed out %llu, late %ld, "
        "failed %llu, opened %llu, evicted %llu\n",
        r.threads, r.is_home ? "worker" : "host", r.is_calm ? "calm" : "wild",
        (unsigned long long)s.acquired, (unsigned long long)s.served, (unsigned long long)s.moved,
        (unsigned long long)s.timed_out, atomic_load(&r.late), (unsigned long long)s.failed,
        (unsigned long long)s.opened, (unsigned long long)s.evicted);
    CHECK_INT(s.acquired, s.released);
    CHECK_INT(s.open, 0);
    CHECK_INT(atomic_load(&r.servers), 0);
    CHECK(s.acquired > 0 && s.served > 0);
    for (int i = 0; i < 3; i++) {
        prt_class_unref(r.cls[i]);
    }
    prt_pool_free(r.p);
}

static void stress(int threads, bool is_home, bool is_calm)
{
    pthread_t th[THREADS_MAX];

    set_up(threads, is_home, is_calm);
    for (int i = 0; i < threads; i++) {
        MUST(pthread_create(&th[i], NULL, work, &r.t[i]) == 0);
    }
    for (int i = 0; i < threads; i++) {
        (void)pthread_join(th[i], NULL);
    }
    tear_down();
}

/* ---- the two narrow gaps, hit as often as possible: two threads, one or two slots ---- */
static struct hot {
    struct prt_pool *p;
    struct prt_slot *opening, *closing[2];
    struct prt_class *cls;
    long turns;
    int n_closing;
    _Atomic int users, stop;
    _Atomic bool served[2];
    _Atomic long done[2], leases;
} hot;

static void hot_open(void *ctx, struct prt_slot *s)
{
    (void)ctx;
    hot.opening = s;
}

static void hot_close(void *ctx, struct prt_slot *s, enum prt_close_why why)
{
    (void)ctx, (void)why;
    hot.closing[hot.n_closing++] = s;
}

static void hot_served(void *ctx, struct prt_waiter *w)
{
    (void)ctx;
    atomic_store(&hot.served[w->lane], true);
}

static struct prt_waiter hot_ask(uint16_t lane)
{
    return (struct prt_waiter){.cls = hot.cls,
                               .part = prt_pool_default_partition(hot.p),
                               .lane = lane,
                               .priority = PRT_NORMAL};
}

static void hot_begin(int slots)
{
    static const struct prt_conn_ops ops = {
        .open = hot_open, .close = hot_close, .served = hot_served, .class_free = on_class_free};
    struct prt_limits lim = {.max = slots, .max_waiters = 10};
    struct prt_err ok = {.rc = POOLRT_OK};
    const char *env = getenv("PRT_STEPS");
    struct prt_waiter w[2];

    memset(&hot, 0, sizeof hot);
    hot.turns = env ? strtol(env, NULL, 10) : 1000000;
    MUST(prt_pool_new(&hot.p, &lim, 2, slots, &ops, NULL, NULL, NULL) == POOLRT_OK);
    hot.cls = prt_pool_class(hot.p, PRT_STR("app"), NULL);
    for (int i = 0; i < slots; i++) {
        w[i] = hot_ask(0);
        MUST(prt_acquire(hot.p, &w[i], 1) == POOLRT_PENDING);
        prt_slot_opened(hot.opening, &ok, 1);
    }
    for (int i = 0; i < slots; i++) {
        MUST(prt_release(hot.p, w[i].lease, PRT_RELEASE_CLEAN, (uint16_t)i, 1) == POOLRT_OK);
    }
    atomic_store(&hot.served[0], false);
}

static void hot_end(void)
{
    const char *bad = prt_pool_check(hot.p);

    CHECK_STR(bad ? bad : "fine", "fine");
    prt_pool_drain(hot.p, 1);
    for (int i = 0; i < hot.n_closing; i++) {
        prt_slot_closed(hot.closing[i], 1);
    }
    prt_class_unref(hot.cls);
    prt_pool_free(hot.p);
}

static void hot_wait(uint16_t lane)
{
    int64_t end_us = prt_now_us() + 10000000;

    for (int i = 1; !atomic_load(&hot.served[lane]); i++) {
        if (i % 64 == 0) {
            (void)sched_yield();
            MUST(prt_now_us() < end_us); /* a wake-up was lost */
        }
    }
    atomic_store(&hot.served[lane], false);
}

static void hot_turn(uint16_t lane, int users)
{
    struct prt_waiter w = hot_ask(lane);

    if (prt_acquire(hot.p, &w, 1) == POOLRT_PENDING) {
        hot_wait(lane);
    }
    MUST(atomic_fetch_add(&hot.users, 1) < users);
    atomic_fetch_add(&hot.leases, 1);
    atomic_fetch_sub(&hot.users, 1);
    MUST(prt_release(hot.p, w.lease, PRT_RELEASE_CLEAN, lane, 1) == POOLRT_OK);
}

/* Nobody goes on before the other has had its turn: else the next acquire would find, and serve,
 * the one whose wake-up was lost. */
static void *hot_share(void *arg)
{
    uint16_t lane = *(uint16_t *)arg;

    for (long i = 1; i <= hot.turns; i++) {
        int64_t end_us = prt_now_us() + 10000000;
        hot_turn(lane, 1);
        atomic_store(&hot.done[lane], i);
        for (int k = 1; atomic_load(&hot.done[!lane]) < i; k++) {
            if (k % 64 == 0) {
                (void)sched_yield();
                MUST(prt_now_us() < end_us);
            }
        }
    }
    return NULL;
}

static void *hot_until_stop(void *arg)
{
    while (!atomic_load(&hot.stop)) {
        hot_turn(*(uint16_t *)arg, 2);
    }
    return NULL;
}

TEST(no_wake_up_is_lost_between_two_threads_with_one_slot)
{
    uint16_t lane[2] = {0, 1};
    pthread_t th[2];

    hot_begin(1);
    for (int i = 0; i < 2; i++) {
        MUST(pthread_create(&th[i], NULL, hot_share, &lane[i]) == 0);
    }
    for (int i = 0; i < 2; i++) {
        (void)pthread_join(th[i], NULL);
    }
    hot_end();
}

TEST(nobody_holds_a_lease_in_a_quiet_pause)
{
    uint16_t lane = 0;
    pthread_t th;
    struct prt_partition_limits one = {.max = 1, .priority = -1};

    hot_begin(2);
    /* a credit to take widens the gap between the look at the gate and the claim */
    MUST(prt_pool_partition(hot.p, PRT_STR("default"), &one, 1, NULL) == POOLRT_OK);
    prt_pool_tick(hot.p, 1000000);
    MUST(pthread_create(&th, NULL, hot_until_stop, &lane) == 0);
    for (long i = 0; i < hot.turns; i++) {
        prt_pool_pause(hot.p);
        if (prt_pool_is_quiet(hot.p)) {
            long before = atomic_load(&hot.leases);
            for (int k = 0; k < 100; k++) {
                MUST(atomic_load(&hot.users) == 0);
            }
            if (i % 16 == 0) {
                (void)sched_yield();
            }
            MUST(atomic_load(&hot.leases) == before);
        }
        prt_pool_resume(hot.p, 1);
    }
    atomic_store(&hot.stop, 1);
    (void)pthread_join(th, NULL);
    hot_end();
}

TEST(two_workers_wild)
{
    stress(2, true, false);
}
TEST(two_workers_calm)
{
    stress(2, true, true);
}
TEST(two_host_threads_wild)
{
    stress(2, false, false);
}
TEST(two_host_threads_calm)
{
    stress(2, false, true);
}
TEST(eight_workers_wild)
{
    stress(8, true, false);
}
TEST(eight_workers_calm)
{
    stress(8, true, true);
}
TEST(eight_host_threads_wild)
{
    stress(8, false, false);
}
TEST(eight_host_threads_calm)
{
    stress(8, false, true);
}
