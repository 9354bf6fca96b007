/* pool_engine_test.c - one behaviour of the engine after the other, with fake connections on a hand
 * clock. What random sequences find is pool_random_test.c; threads are pool_stress_test.c. */
#include "pool_fake.h"

#define MS 1000
#define SEC 1000000

static const struct prt_limits base = {.max = 4,
                                       .max_waiters = 100,
                                       .locality_bias_us = 2 * MS,
                                       .switch_bias_us = 50 * MS,
                                       .boost_after_us = 10 * SEC,
                                       .retry_us = 100 * MS};
static struct fake f;
static struct prt_class *app;

static void begin(struct prt_limits lim, int lanes, bool by_worker)
{
    fake_init(&f, &lim, lanes, 64, by_worker, NULL);
    app = fake_class(&f, "app");
}

static void check_pool(void)
{
    const char *bad = prt_pool_check(f.p);
    CHECK_STR(bad ? bad : "fine", "fine");
}

static void end(void)
{
    check_pool();
    prt_class_unref(app);
    fake_fini(&f);
}

static struct prt_waiter ask_for(struct prt_class *c, struct prt_partition *part, int lane)
{
    return (struct prt_waiter){.cls = c,
                               .part = part ? part : prt_pool_default_partition(f.p),
                               .lane = (uint16_t)lane,
                               .priority = PRT_NORMAL};
}

static poolrt_rc acquire(struct prt_waiter *w)
{
    f.now_us++; /* arrivals differ */
    return prt_acquire(f.p, w, f.now_us);
}

static poolrt_rc release(struct prt_waiter *w)
{
    return prt_release(f.p, w->lease, PRT_RELEASE_CLEAN, w->lane, f.now_us);
}

/* A lease of a connection that is opened for it if need be. */
static struct prt_waiter hold(struct prt_class *c, struct prt_partition *part)
{
    static struct prt_waiter w;

    w = ask_for(c, part, 0);
    if (acquire(&w) == POOLRT_PENDING) {
        fake_answer(&f);
        CHECK(fake_next(&f) == &w);
    }
    CHECK_INT(w.rc, POOLRT_OK);
    struct prt_waiter copy = w;
    prt_list_init(&copy.link);
    return copy;
}

static struct prt_partition *partition(const char *name, int max, int min)
{
    struct prt_partition_limits lim = {.max = max, .min = min, .priority = -1};

    CHECK_INT(prt_pool_partition(f.p, prt_str_of(name), &lim, f.now_us, NULL), POOLRT_OK);
    return prt_pool_partition_find(f.p, prt_str_of(name));
}

static struct prt_pool_stats stats(void)
{
    struct prt_pool_stats s;

    prt_pool_snapshot(f.p, &s, f.now_us);
    return s;
}

/* ---- leases ---- */
TEST(a_connection_is_opened_leased_kept_and_leased_again)
{
    begin(base, 1, true);
    struct prt_waiter w = ask_for(app, NULL, 0);
    CHECK_INT(acquire(&w), POOLRT_PENDING);
    CHECK_INT(f.n_opening, 1);
    CHECK(fake_next(&f) == NULL);
    fake_answer(&f);
    CHECK(fake_next(&f) == &w);
    struct prt_slot *s = w.lease.slot;
    CHECK_INT(release(&w), POOLRT_OK);
    CHECK_INT(acquire(&w), POOLRT_OK);
    CHECK(w.lease.slot == s);
    CHECK_INT(s->borrows, 2);
    CHECK_INT(release(&w), POOLRT_OK);
    CHECK_INT(stats().opened, 1);
    CHECK_INT(stats().acquired, 2);
    CHECK_INT(stats().wait.count, 2);
    end();
}

TEST(a_lease_ends_once)
{
    begin(base, 1, false);
    struct prt_waiter w = hold(app, NULL), copy = w;
    CHECK_INT(release(&w), POOLRT_OK);
    CHECK_INT(release(&copy), POOLRT_STALE);
    CHECK_INT(acquire(&w), POOLRT_OK);
    CHECK(w.lease.slot == copy.lease.slot);
    CHECK_INT(release(&copy), POOLRT_STALE); /* another's lease of the same slot now */
    CHECK_INT(release(&w), POOLRT_OK);
    struct prt_waiter never = {0};
    CHECK_INT(release(&never), POOLRT_STALE);
    end();
}

TEST(a_broken_connection_is_closed_and_replaced)
{
    struct prt_limits lim = base;
    lim.max = 1;
    begin(lim, 1, true);
    struct prt_waiter a = hold(app, NULL), b = ask_for(app, NULL, 0);
    CHECK_INT(acquire(&b), POOLRT_PENDING);
    CHECK_INT(prt_release(f.p, a.lease, PRT_RELEASE_CLOSE, 0, f.now_us), POOLRT_OK);
    CHECK_INT(f.why[PRT_CLOSE_BROKEN], 1);
    CHECK_INT(f.n_opening, 0); /* the server still counts it */
    fake_answer(&f);
    CHECK(fake_next(&f) == &b);
    CHECK_INT(f.peak, 1);
    release(&b);
    end();
}

TEST(waiters_are_served_in_order_and_know_their_position)
{
    struct prt_limits lim = base;
    lim.max = 1;
    begin(lim, 1, true);
    struct prt_waiter a = hold(app, NULL), w[3];
    for (int i = 0; i < 3; i++) {
        w[i] = ask_for(app, NULL, 0);
        CHECK_INT(acquire(&w[i]), POOLRT_PENDING);
        CHECK_INT(prt_waiter_position(f.p, &w[i], f.now_us), i);
    }
    f.now_us += 5 * MS;
    CHECK_INT(stats().oldest_wait_us, 5 * MS + 2);
    CHECK_INT(stats().waiting_by_priority[PRT_NORMAL], 3);
    release(&a);
    CHECK(fake_next(&f) == &w[0]);
    CHECK_INT(prt_waiter_position(f.p, &w[0], f.now_us), -1);
    CHECK_INT(prt_waiter_position(f.p, &w[2], f.now_us), 1);
    release(&w[0]);
    CHECK(fake_next(&f) == &w[1]);
    release(&w[1]);
    CHECK(fake_next(&f) == &w[2]);
    release(&w[2]);
    CHECK_INT(stats().queued, 4);
    CHECK_INT(stats().served, 4);
    end();
}

TEST(priority_goes_first_and_waiting_raises_it)
{
    struct prt_limits lim = base;
    lim.max = 1, lim.boost_after_us = 10 * MS;
    begin(lim, 1, true);
    struct prt_waiter a = hold(app, NULL), low = ask_for(app, NULL, 0), high = low, late = low;
    low.priority = PRT_LOW, high.priority = PRT_HIGH, late.priority = PRT_HIGH;
    acquire(&low);
    acquire(&high);
    CHECK_INT(prt_waiter_position(f.p, &low, f.now_us), 1);
    release(&a);
    CHECK(fake_next(&f) == &high);
    f.now_us += 30 * MS; /* three steps up */
    acquire(&late);
    release(&high);
    CHECK(fake_next(&f) == &low);
    release(&low);
    CHECK(fake_next(&f) == &late);
    release(&late);
    end();
}

TEST(a_fair_queue_knows_arrival_only)
{
    struct prt_limits lim = base;
    lim.max = 1, lim.fair_queue = true;
    begin(lim, 1, true);
    struct prt_waiter a = hold(app, NULL), low = ask_for(app, NULL, 0), high = low;
    low.priority = PRT_LOW, high.priority = PRT_CRITICAL;
    acquire(&low);
    acquire(&high);
    release(&a);
    CHECK(fake_next(&f) == &low);
    release(&low);
    CHECK(fake_next(&f) == &high);
    release(&high);
    end();
}

TEST(a_partition_gives_its_requests_a_priority)
{
    struct prt_limits lim = base;
    lim.max = 1;
    begin(lim, 1, true);
    struct prt_partition_limits vip = {.priority = PRT_HIGH};
    CHECK_INT(prt_pool_partition(f.p, PRT_STR("vip"), &vip, f.now_us, NULL), POOLRT_OK);
    struct prt_waiter a = hold(app, NULL), x = ask_for(app, NULL, 0);
    struct prt_waiter y = ask_for(app, prt_pool_partition_find(f.p, PRT_STR("vip")), 0);
    acquire(&x);
    acquire(&y);
    release(&a);
    CHECK(fake_next(&f) == &y);
    release(&y);
    CHECK(fake_next(&f) == &x);
    release(&x);
    end();
}

/* ---- lanes ---- */
TEST(an_own_waiter_comes_first_until_the_other_waited_longer_by_the_bias)
{
    struct prt_limits lim = base;
    lim.max = 1;
    begin(lim, 2, true);
    struct prt_waiter a = hold(app, NULL), far = ask_for(app, NULL, 1),
                      near = ask_for(app, NULL, 0);
    acquire(&far);
    acquire(&near);
    release(&a);
    CHECK(fake_next(&f) == &near);
    CHECK_INT(stats().moved, 0);
    f.now_us += 3 * MS;
    a = ask_for(app, NULL, 0);
    acquire(&a);
    release(&near);
    CHECK(fake_next(&f) == &far);
    CHECK_INT(far.lease.slot->lane, 1);
    CHECK_INT(stats().moved, 1);
    release(&far);
    CHECK(fake_next(&f) == &a);
    release(&a);
    end();
}

TEST(an_idle_slot_of_another_lane_is_moved)
{
    begin(base, 2, true);
    struct prt_waiter a = hold(app, NULL), b = ask_for(app, NULL, 1);
    release(&a);
    CHECK_INT(acquire(&b), POOLRT_PENDING);
    CHECK_INT(f.n_opening, 0);
    CHECK(fake_next(&f) == &b);
    CHECK_INT(release(&b), POOLRT_OK);
    CHECK_INT(acquire(&b), POOLRT_OK); /* it lives here now */
    release(&b);
    end();
}

TEST(without_homes_a_slot_idles_where_it_was_released)
{
    begin(base, 2, false);
    struct prt_waiter a = hold(app, NULL);
    CHECK_INT(prt_release(f.p, a.lease, PRT_RELEASE_CLEAN, 1, f.now_us), POOLRT_OK);
    CHECK_INT(acquire(&a), POOLRT_OK); /* lane 0 takes it at once */
    CHECK_INT(stats().queued, 1);      /* only the first, for the connect */
    release(&a);
    end();
}

/* ---- ends of a wait ---- */
TEST(a_cancel_before_the_end_wins_and_one_after_it_is_too_late)
{
    struct prt_limits lim = base;
    lim.max = 1;
    begin(lim, 1, true);
    struct prt_waiter a = hold(app, NULL), b = ask_for(app, NULL, 0), c = b, d = b;
    acquire(&b);
    acquire(&c);
    acquire(&d);
    CHECK(prt_waiter_cancel(f.p, &b, POOLRT_TIMEOUT, f.now_us));
    CHECK_INT(b.rc, POOLRT_TIMEOUT);
    CHECK(!prt_waiter_cancel(f.p, &b, POOLRT_TIMEOUT, f.now_us));
    release(&a);
    CHECK(!prt_waiter_cancel(f.p, &c, POOLRT_CANCELLED, f.now_us)); /* served() is on its way */
    CHECK(fake_next(&f) == &c);
    CHECK_INT(c.rc, POOLRT_OK);
    CHECK(prt_waiter_cancel(f.p, &d, POOLRT_CANCELLED, f.now_us));
    release(&c);
    CHECK(fake_next(&f) == NULL);
    CHECK_INT(stats().timed_out, 1);
    CHECK_INT(stats().cancelled, 1);
    end();
}

TEST(the_queue_has_a_bound_for_the_pool_and_for_a_partition)
{
    struct prt_limits lim = base;
    lim.max = 1, lim.max_waiters = 3;
    begin(lim, 1, true);
    struct prt_partition_limits two = {.max_waiters = 2, .priority = -1};
    CHECK_INT(prt_pool_partition(f.p, PRT_STR("acme"), &two, f.now_us, NULL), POOLRT_OK);
    struct prt_partition *acme = prt_pool_partition_find(f.p, PRT_STR("acme"));
    struct prt_waiter a = hold(app, NULL), w[5];
    for (int i = 0; i < 5; i++) {
        w[i] = ask_for(app, i < 3 ? acme : NULL, 0);
    }
    CHECK_INT(acquire(&w[0]), POOLRT_PENDING);
    CHECK_INT(acquire(&w[1]), POOLRT_PENDING);
    CHECK_INT(acquire(&w[2]), POOLRT_QUEUE_FULL);
    CHECK_INT(acquire(&w[3]), POOLRT_PENDING);
    CHECK_INT(acquire(&w[4]), POOLRT_QUEUE_FULL);
    CHECK_INT(stats().refused, 2);
    CHECK_INT(stats().waiting, 3);
    release(&a);
    for (int i = 0; i < 4; i++) {
        if (i != 2) {
            CHECK(fake_next(&f) == &w[i]);
            release(&w[i]);
        }
    }
    end();
}

TEST(a_pool_without_a_queue_still_gives_what_idles_elsewhere)
{
    struct prt_limits lim = base;
    lim.max_waiters = 1;
    begin(lim, 2, false);
    struct prt_waiter a = hold(app, NULL), b = ask_for(app, NULL, 1);
    lim.max_waiters = 0;
    CHECK_INT(prt_pool_set_limits(f.p, &lim, f.now_us, NULL), POOLRT_OK);
    CHECK_INT(acquire(&b), POOLRT_QUEUE_FULL);
    release(&a);
    CHECK_INT(acquire(&b), POOLRT_OK);
    release(&b);
    end();
}

/* ---- connecting ---- */
TEST(a_failed_connect_fails_the_class_and_backs_off)
{
    begin(base, 1, true);
    struct prt_waiter a = ask_for(app, NULL, 0), b = a;
    struct prt_err err;
    acquire(&a);
    CHECK(fake_opened(&f, POOLRT_CONNECT_FAILED));
    CHECK(fake_next(&f) == &a);
    CHECK_INT(a.rc, POOLRT_CONNECT_FAILED);
    prt_class_error(app, &err);
    CHECK_INT(err.rc, POOLRT_CONNECT_FAILED);
    CHECK_INT(acquire(&b), POOLRT_PENDING);
    CHECK_INT(f.n_opening, 0); /* not yet */
    CHECK(prt_pool_due(f.p) <= f.now_us + 100 * MS);
    f.now_us += 100 * MS;
    prt_pool_tick(f.p, f.now_us);
    CHECK_INT(f.n_opening, 1);
    fake_answer(&f);
    CHECK(fake_next(&f) == &b);
    prt_class_error(app, &err);
    CHECK_INT(err.rc, POOLRT_OK);
    release(&b);
    CHECK_INT(stats().connect_failed, 1);
    end();
}

TEST(a_failed_connect_is_no_end_while_another_connection_lives)
{
    begin(base, 1, true);
    struct prt_waiter a = hold(app, NULL), b = ask_for(app, NULL, 0);
    acquire(&b);
    CHECK(fake_opened(&f, POOLRT_CONNECT_FAILED));
    CHECK(fake_next(&f) == NULL);
    release(&a);
    CHECK(fake_next(&f) == &b);
    release(&b);
    end();
}

TEST(a_connection_serves_whom_a_release_did_not)
{
    begin(base, 1, true);
    struct prt_waiter a = hold(app, NULL), b = ask_for(app, NULL, 0);
    acquire(&b);
    CHECK_INT(f.n_opening, 1);
    release(&a); /* comes first */
    CHECK(fake_next(&f) == &b);
    fake_answer(&f);
    CHECK_INT(stats().idle, 1);
    release(&b);
    end();
}

TEST(the_throttle_spreads_connects)
{
    struct prt_limits lim = base;
    lim.opens_per_sec = 10, lim.max = 50;
    begin(lim, 1, true);
    struct prt_waiter w[20];
    for (int i = 0; i < 20; i++) {
        w[i] = ask_for(app, NULL, 0);
        acquire(&w[i]);
    }
    CHECK_INT(f.n_opening, 1);
    for (int i = 0; i < 1000 && f.n_opening < 20; i++) {
        f.now_us = prt_pool_due(f.p) > f.now_us ? prt_pool_due(f.p) : f.now_us + 1;
        prt_pool_tick(f.p, f.now_us);
        CHECK(f.n_opening <= 1 + 1 + (f.now_us - SEC) / (100 * MS));
    }
    CHECK_INT(f.n_opening, 20);
    CHECK(f.now_us - SEC >= 19 * 100 * MS && f.now_us - SEC < 20 * 100 * MS);
    fake_answer(&f);
    for (int i = 0; i < 20; i++) {
        CHECK(fake_next(&f) == &w[i]);
        release(&w[i]);
    }
    end();
}

TEST(the_warm_class_is_opened_ahead_and_kept_at_min)
{
    struct prt_limits lim = base;
    lim.min = 2;
    begin(lim, 2, true);
    prt_pool_set_warm(f.p, app);
    CHECK_INT(f.n_opening, 0);
    CHECK(prt_pool_due(f.p) <= f.now_us);
    prt_pool_tick(f.p, f.now_us);
    CHECK_INT(f.n_opening, 2);
    prt_pool_warm(f.p, 1, f.now_us); /* initial_size: one more, now */
    CHECK_INT(f.n_opening, 3);
    prt_pool_warm(f.p, 100, f.now_us);
    CHECK_INT(f.n_opening, 4); /* never above max */
    fake_answer(&f);
    struct prt_waiter a = ask_for(app, NULL, 0), b = ask_for(app, NULL, 1);
    CHECK_INT(acquire(&a), POOLRT_OK); /* both lanes have one */
    CHECK_INT(acquire(&b), POOLRT_OK);
    release(&a);
    release(&b);
    for (int i = 0; i < 4; i++) {
        prt_slot_retire_idle(a.lease.slot->pool == f.p ? a.lease.slot : NULL, PRT_CLOSE_BROKEN,
                             f.now_us);
        prt_slot_retire_idle(b.lease.slot, PRT_CLOSE_BROKEN, f.now_us);
    }
    CHECK_INT(f.n_closing, 2);
    prt_pool_flush(f.p, f.now_us);
    CHECK_INT(f.n_closing, 4);
    while (fake_closed(&f)) {
    }
    prt_pool_tick(f.p, f.now_us);
    CHECK_INT(f.n_opening, 2); /* back to min */
    fake_answer(&f);
    prt_pool_set_warm(f.p, NULL);
    end();
}

/* ---- classes ---- */
enum { EACH = 32, SLOTS = 20 };

/* A transaction of 10 ms in each slot, then the client asks again; a connect takes 5 ms. */
static void run_transactions(int n, const struct prt_class *report, int done[2])
{
    for (int i = 0; i < n; i++) {
        struct prt_waiter *x = fake_next(&f);
        f.now_us += 500;
        if (i % 10 == 9) {
            fake_answer(&f);
        }
        if (x) {
            done[x->cls == report]++;
            release(x);
            if (acquire(x) == POOLRT_OK) {
                prt_list_push(&f.served, &x->link);
            }
        }
    }
}

TEST(two_classes_share_a_full_pool_with_few_reconnects)
{
    static struct prt_waiter w[2 * EACH];
    struct prt_limits lim = base;
    int done[2] = {0};
    lim.max = SLOTS;
    begin(lim, 1, true);
    struct prt_class *report = fake_class(&f, "report");
    for (int i = 0; i < 2 * EACH; i++) { /* the first class has all slots when the second comes */
        w[i] = ask_for(i < EACH ? app : report, NULL, 0);
        CHECK_INT(acquire(&w[i]), POOLRT_PENDING);
        fake_answer(&f);
    }
    run_transactions(1000, report, done); /* settles in */
    uint64_t before = stats().evicted;
    CHECK(before > 0);
    done[0] = done[1] = 0;
    run_transactions(40000, report, done);
    uint64_t evicted = stats().evicted - before;
    printf("  %d and %d transactions, %d slots changed hands\n", done[0], done[1], (int)evicted);
    CHECK(done[0] > 4 * SLOTS && done[1] * 4 > done[0]); /* waits differ by switch_bias at most */
    CHECK(evicted * 100 <= (uint64_t)(done[0] + done[1]));
    for (int i = 0; i < 2 * EACH; i++) {
        (void)prt_waiter_cancel(f.p, &w[i], POOLRT_CANCELLED, f.now_us);
    }
    for (struct prt_waiter *x = fake_next(&f); x; x = fake_next(&f)) {
        release(x);
    }
    prt_class_unref(report);
    end();
}

TEST(a_class_takes_one_wanted_slot_per_switch_bias)
{
    struct prt_limits lim = base;
    struct prt_waiter a[4], more[4], r[4];
    begin(lim, 1, true);
    struct prt_class *report = fake_class(&f, "report");
    for (int i = 0; i < 4; i++) {
        a[i] = hold(app, NULL);
        r[i] = ask_for(report, NULL, 0);
        more[i] = ask_for(app, NULL, 0);
    }
    for (int i = 0; i < 4; i++) {
        acquire(&r[i]);
    }
    f.now_us += 60 * MS;
    for (int i = 0; i < 4; i++) {
        acquire(&more[i]);
    }
    for (int i = 0; i < 3; i++) {
        release(&a[i]);
    }
    CHECK_INT(f.why[PRT_CLOSE_EVICT], 1);
    CHECK(fake_next(&f) == &more[0]);
    CHECK(fake_next(&f) == &more[1]);
    f.now_us += 60 * MS;
    for (int i = 2; i < 4; i++) { /* the app's clients came back just now */
        CHECK(prt_waiter_cancel(f.p, &more[i], POOLRT_CANCELLED, f.now_us));
        acquire(&more[i]);
    }
    release(&a[3]);
    CHECK_INT(f.why[PRT_CLOSE_EVICT], 2);
    release(&more[0]);
    release(&more[1]);
    fake_answer(&f);
    for (struct prt_waiter *x = fake_next(&f); x; x = fake_next(&f)) {
        release(x);
        fake_answer(&f);
    }
    CHECK_INT(stats().waiting, 0);
    prt_class_unref(report);
    end();
}

TEST(an_idle_slot_of_a_class_nobody_waits_for_is_evicted)
{
    struct prt_limits lim = base;
    lim.max = 2;
    begin(lim, 1, true);
    struct prt_class *report = fake_class(&f, "report");
    struct prt_waiter a = hold(app, NULL), b = hold(app, NULL), c = ask_for(report, NULL, 0);
    acquire(&c);
    CHECK_INT(f.n_closing, 0); /* both are in use */
    release(&a);
    CHECK_INT(f.why[PRT_CLOSE_EVICT], 1);
    CHECK_INT(f.n_opening, 0); /* the server still counts the old one */
    fake_answer(&f);
    CHECK(fake_next(&f) == &c);
    CHECK_INT(f.peak, 2);
    CHECK_INT(stats().evicted, 1);
    release(&b);
    release(&c);
    prt_class_unref(report);
    end();
}

TEST(a_class_has_a_limit_of_its_own)
{
    struct prt_limits lim = base;
    lim.class_max = 2;
    begin(lim, 1, true);
    struct prt_class *report = fake_class(&f, "report");
    struct prt_waiter a = hold(app, NULL), b = hold(app, NULL), c = ask_for(app, NULL, 0);
    struct prt_waiter d = hold(report, NULL);
    CHECK_INT(acquire(&c), POOLRT_PENDING);
    CHECK_INT(f.n_opening, 0);
    release(&d);
    CHECK_INT(f.n_closing, 0); /* evicting it would not help */
    lim.class_max = 3;
    CHECK_INT(prt_pool_set_limits(f.p, &lim, f.now_us, NULL), POOLRT_OK);
    CHECK_INT(f.n_opening, 1);
    fake_answer(&f);
    CHECK(fake_next(&f) == &c);
    release(&a);
    release(&b);
    release(&c);
    prt_class_unref(report);
    end();
}

TEST(a_class_is_freed_when_nobody_needs_it)
{
    begin(base, 1, true);
    struct prt_class *c = fake_class(&f, "report"), *same = fake_class(&f, "report");
    CHECK(c == same);
    CHECK_INT(f.users, 2); /* the second user was given back */
    struct prt_waiter w = hold(c, NULL);
    prt_class_unref(c);
    prt_class_unref(same);
    CHECK_INT(f.users, 2); /* it has a slot */
    release(&w);
    CHECK(prt_slot_retire_idle(w.lease.slot, PRT_CLOSE_IDLE, f.now_us));
    CHECK_INT(f.users, 2);
    fake_answer(&f);
    CHECK_INT(f.users, 1);
    end();
}

TEST(a_pool_has_room_for_many_classes_and_no_more)
{
    static struct prt_class *c[PRT_CLASSES_MAX];
    char key[32];
    begin(base, 2, true);
    for (int i = 1; i < PRT_CLASSES_MAX; i++) {
        (void)snprintf(key, sizeof key, "user%d", i);
        c[i] = fake_class(&f, key);
        CHECK(c[i] != NULL);
    }
    CHECK(fake_class(&f, "one too many") == NULL);
    CHECK_INT(f.users, PRT_CLASSES_MAX);
    struct prt_waiter w = hold(c[1000], NULL), x = hold(c[3], NULL);
    release(&w);
    release(&x);
    for (int i = 1; i < PRT_CLASSES_MAX; i++) {
        prt_class_unref(c[i]);
    }
    CHECK_INT(f.users, 3);
    struct prt_class *again = fake_class(&f, "user7");
    CHECK(again != NULL);
    prt_class_unref(again);
    end();
}

TEST(a_big_pool_uses_all_its_slots)
{
    enum { N = 5000 };
    static struct prt_waiter w[N];
    struct prt_limits lim = base;
    lim.max = N, lim.max_waiters = N;
    fake_init(&f, &lim, 2, 100000, false, NULL);
    app = fake_class(&f, "app");
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N; i++) {
            w[i] = ask_for(app, NULL, round);
            CHECK_INT(acquire(&w[i]), round ? POOLRT_OK : POOLRT_PENDING);
            if (round == 0) {
                fake_answer(&f);
                CHECK(fake_next(&f) == &w[i]);
            }
        }
        for (int i = 0; i < N; i++) {
            CHECK_INT(release(&w[i]), POOLRT_OK);
        }
    }
    CHECK_INT(f.peak, N);
    CHECK_INT(stats().idle, N);
    end();
}

/* ---- partitions ---- */
TEST(a_full_partition_is_parked_and_others_go_on)
{
    begin(base, 1, true);
    struct prt_partition *acme = partition("acme", 1, 0);
    struct prt_waiter a = hold(app, acme), b = ask_for(app, acme, 0), c = b;
    CHECK_INT(acquire(&b), POOLRT_PENDING);
    CHECK_INT(acquire(&c), POOLRT_PENDING);
    CHECK_INT(f.n_opening, 0); /* a connection would not help it */
    CHECK_INT(b.state, PRT_WAITER_PARKED);
    CHECK_INT(prt_waiter_position(f.p, &c, f.now_us), 1);
    struct prt_waiter d = hold(app, NULL);
    release(&d);
    CHECK(fake_next(&f) == NULL); /* it idles, although two wait */
    release(&a);
    CHECK(fake_next(&f) == &b);
    CHECK(prt_waiter_cancel(f.p, &c, POOLRT_TIMEOUT, f.now_us));
    release(&b);
    CHECK_INT(stats().idle, 2);
    end();
}

TEST(raising_a_partition_lets_all_step_forward)
{
    struct prt_limits lim = base;
    lim.max = 8;
    begin(lim, 1, true);
    struct prt_partition *acme = partition("acme", 1, 0);
    struct prt_waiter a = hold(app, acme), w[5];
    for (int i = 0; i < 5; i++) {
        w[i] = ask_for(app, acme, 0);
        acquire(&w[i]);
    }
    partition("acme", 4, 0);
    CHECK_INT(f.n_opening, 3); /* at once, not one after the other */
    fake_answer(&f);
    for (int i = 0; i < 3; i++) {
        CHECK(fake_next(&f) == &w[i]);
    }
    CHECK(fake_next(&f) == NULL);
    prt_pool_partition_remove(f.p, PRT_STR("acme"), f.now_us);
    CHECK(prt_pool_partition_find(f.p, PRT_STR("acme")) == NULL);
    release(&a);
    CHECK(fake_next(&f) == &w[3]); /* it ends as it would */
    release(&w[0]);
    CHECK(fake_next(&f) == &w[4]);
    for (int i = 1; i < 5; i++) {
        release(&w[i]);
    }
    CHECK(partition("acme", 0, 0) == acme);
    end();
}

TEST(a_cancelled_waiter_lets_the_parked_one_step_forward)
{
    struct prt_limits lim = base;
    lim.max = 3;
    begin(lim, 1, true);
    struct prt_partition *acme = partition("acme", 2, 0);
    struct prt_class *report = fake_class(&f, "report");
    struct prt_waiter a = hold(app, acme), b = hold(app, acme);
    struct prt_waiter c = ask_for(report, acme, 0), d = ask_for(report, acme, 0);
    acquire(&c);
    acquire(&d);
    CHECK_INT(c.state, PRT_WAITER_PARKED);
    release(&a); /* c steps forward, and a connection is opened for it */
    CHECK_INT(c.state, PRT_WAITER_QUEUED);
    CHECK_INT(d.state, PRT_WAITER_PARKED);
    CHECK(prt_waiter_cancel(f.p, &c, POOLRT_TIMEOUT, f.now_us));
    CHECK_INT(d.state, PRT_WAITER_QUEUED);
    fake_answer(&f);
    CHECK(fake_next(&f) == &d);
    release(&b);
    release(&d);
    prt_class_unref(report);
    end();
}

TEST(a_new_limit_counts_leases_from_before)
{
    struct prt_limits lim = base;
    lim.max = 8;
    begin(lim, 1, true);
    struct prt_partition *acme = partition("acme", 0, 0);
    struct prt_waiter a = hold(app, acme), b = hold(app, acme), c = ask_for(app, acme, 0), d = c;
    partition("acme", 2, 0);
    CHECK_INT(acquire(&c), POOLRT_PENDING);
    CHECK_INT(c.state, PRT_WAITER_PARKED);
    release(&a);
    CHECK(fake_next(&f) == &c);
    CHECK_INT(acquire(&d), POOLRT_PENDING);
    CHECK_INT(d.state, PRT_WAITER_PARKED);
    release(&b);
    CHECK(fake_next(&f) == &d);
    f.now_us += SEC;
    prt_pool_tick(f.p, f.now_us); /* the old ones are gone: back to the fast path */
    release(&c);
    release(&d);
    end();
}

TEST(a_minimum_is_kept_free_for_its_partition)
{
    begin(base, 1, true); /* max 4 */
    struct prt_partition *acme = partition("acme", 0, 2), *globex = partition("globex", 0, 0);
    struct prt_waiter a = hold(app, globex), b = hold(app, globex), c = ask_for(app, globex, 0);
    CHECK_INT(acquire(&c), POOLRT_PENDING); /* the last two are reserved */
    CHECK_INT(c.state, PRT_WAITER_PARKED);
    struct prt_waiter d = hold(app, acme), e = hold(app, acme), g = ask_for(app, acme, 0);
    CHECK_INT(acquire(&g), POOLRT_PENDING);
    release(&d); /* acme is below its minimum: its place stays its own */
    CHECK(fake_next(&f) == &g);
    release(&a);
    CHECK(fake_next(&f) == &c);
    release(&g);
    CHECK(fake_next(&f) == NULL);
    release(&b);
    release(&c);
    release(&e);
    struct prt_partition_limits much = {.min = 3, .priority = -1};
    struct prt_err err;
    CHECK_INT(prt_pool_partition(f.p, PRT_STR("globex"), &much, f.now_us, &err), POOLRT_CONFIG);
    CHECK(strstr(err.text, "more than max_size 4") != NULL);
    end();
}

TEST(a_minimum_set_at_run_time_and_taken_back)
{
    begin(base, 1, true);
    struct prt_partition *globex = partition("globex", 0, 0);
    struct prt_waiter a = hold(app, globex), b = hold(app, globex), c = hold(app, globex);
    struct prt_waiter d = ask_for(app, globex, 0);
    struct prt_partition *acme = partition("acme", 0, 2);
    CHECK_INT(acquire(&d), POOLRT_PENDING);
    CHECK_INT(d.state, PRT_WAITER_PARKED);
    release(&a); /* three were out before: still one too many */
    CHECK(fake_next(&f) == NULL);
    CHECK_INT(d.state, PRT_WAITER_PARKED);
    struct prt_waiter e = hold(app, acme);
    partition("acme", 0, 0);
    fake_answer(&f);
    CHECK(fake_next(&f) == &d);
    release(&b);
    release(&c);
    release(&d);
    release(&e);
    end();
}

/* ---- ends of connections ---- */
TEST(idle_slots_above_min_are_closed)
{
    struct prt_limits lim = base;
    lim.min = 1, lim.idle_us = 10 * SEC;
    begin(lim, 1, true);
    struct prt_waiter a = hold(app, NULL), b = hold(app, NULL), c = hold(app, NULL);
    release(&a);
    release(&b);
    release(&c);
    f.now_us += 9 * SEC;
    int64_t due = prt_pool_tick(f.p, f.now_us);
    CHECK_INT(f.n_closing, 0);
    CHECK(due <= f.now_us + SEC);
    acquire(&a);
    release(&a);
    f.now_us += SEC + 1;
    prt_pool_tick(f.p, f.now_us);
    CHECK_INT(f.why[PRT_CLOSE_IDLE], 2);
    fake_answer(&f);
    f.now_us += 100 * SEC;
    prt_pool_tick(f.p, f.now_us);
    CHECK_INT(f.why[PRT_CLOSE_IDLE], 2); /* the last one is the minimum */
    end();
}

TEST(lifetimes_end_apart_and_never_in_a_lease)
{
    enum { N = 40 };
    static struct prt_waiter w[N];
    struct prt_limits lim = base;
    lim.max = N, lim.lifetime_us = 100 * SEC;
    begin(lim, 1, true);
    for (int i = 0; i < N; i++) {
        w[i] = hold(app, NULL);
    }
    int64_t born_us = f.now_us;
    for (int i = 1; i < N; i++) {
        release(&w[i]);
    }
    f.now_us = born_us + 89 * SEC;
    prt_pool_tick(f.p, f.now_us);
    CHECK_INT(f.n_closing, 0);
    f.now_us = born_us + 95 * SEC;
    prt_pool_tick(f.p, f.now_us);
    CHECK(f.n_closing > 2 && f.n_closing < N - 3);
    f.now_us = born_us + 101 * SEC;
    prt_pool_tick(f.p, f.now_us);
    CHECK_INT(f.why[PRT_CLOSE_AGE], N - 1);
    release(&w[0]);
    CHECK_INT(f.why[PRT_CLOSE_AGE], N);
    end();
}

TEST(a_readable_idle_socket_is_claimed_before_it_is_closed)
{
    begin(base, 1, true);
    struct prt_waiter a = hold(app, NULL);
    CHECK(!prt_slot_retire_idle(a.lease.slot, PRT_CLOSE_BROKEN, f.now_us));
    release(&a);
    CHECK(prt_slot_retire_idle(a.lease.slot, PRT_CLOSE_BROKEN, f.now_us));
    CHECK(!prt_slot_retire_idle(a.lease.slot, PRT_CLOSE_BROKEN, f.now_us));
    CHECK_INT(f.n_closing, 1);
    end();
}

/* ---- administration ---- */
TEST(max_goes_down_and_up)
{
    begin(base, 1, true);
    struct prt_waiter a = hold(app, NULL), b = hold(app, NULL), c = hold(app, NULL);
    struct prt_limits lim = base;
    struct prt_err err;
    release(&c);
    lim.max = 1;
    CHECK_INT(prt_pool_set_limits(f.p, &lim, f.now_us, &err), POOLRT_OK);
    CHECK_INT(f.why[PRT_CLOSE_SHRINK], 1); /* the idle one */
    release(&a);
    CHECK_INT(f.why[PRT_CLOSE_SHRINK], 2);
    struct prt_waiter d = ask_for(app, NULL, 0);
    CHECK_INT(acquire(&d), POOLRT_PENDING);
    while (fake_closed(&f)) {
    }
    CHECK_INT(f.n_opening, 0);
    lim.max = 2;
    CHECK_INT(prt_pool_set_limits(f.p, &lim, f.now_us, &err), POOLRT_OK);
    CHECK_INT(f.n_opening, 1);
    fake_answer(&f);
    CHECK(fake_next(&f) == &d);
    release(&b);
    release(&d);
    lim.max = 65;
    CHECK_INT(prt_pool_set_limits(f.p, &lim, f.now_us, &err), POOLRT_CONFIG);
    CHECK(strstr(err.text, "needs a restart") != NULL);
    lim.max = 2, lim.min = 3;
    CHECK_INT(prt_pool_set_limits(f.p, &lim, f.now_us, &err), POOLRT_CONFIG);
    end();
}

TEST(a_paused_pool_is_quiet_when_the_last_lease_is_back)
{
    begin(base, 1, true);
    struct prt_waiter a = hold(app, NULL), b = ask_for(app, NULL, 0);
    prt_pool_pause(f.p);
    CHECK(!prt_pool_is_quiet(f.p));
    release(&a);
    CHECK(prt_pool_is_quiet(f.p));
    CHECK_INT(acquire(&b), POOLRT_PENDING);
    CHECK(prt_pool_is_quiet(f.p));
    CHECK_INT(stats().idle, 1);
    prt_pool_resume(f.p, f.now_us);
    CHECK(fake_next(&f) == &b);
    release(&b);
    end();
}

TEST(who_stood_aside_goes_before_who_joined_the_line_in_a_pause)
{
    begin(base, 1, true);
    struct prt_partition *acme = partition("acme", 1, 0);
    struct prt_waiter x[3] = {hold(app, NULL), hold(app, NULL), hold(app, NULL)};
    for (int i = 0; i < 3; i++) {
        release(&x[i]);
    }
    struct prt_waiter a = hold(app, acme), b = ask_for(app, acme, 0), c = b, d = b;
    CHECK_INT(acquire(&b), POOLRT_PENDING); /* parked: acme is full */
    CHECK_INT(acquire(&c), POOLRT_PENDING);
    prt_pool_pause(f.p);
    CHECK_INT(acquire(&d), POOLRT_PENDING); /* in line: credit is not looked at in a pause */
    partition("acme", 3, 0);                /* two credits, and two in line: b and d */
    prt_pool_resume(f.p, f.now_us);
    CHECK(fake_next(&f) == &b);
    CHECK(fake_next(&f) == &c);
    CHECK(fake_next(&f) == NULL);
    release(&a);
    CHECK(fake_next(&f) == &d);
    release(&b);
    release(&c);
    release(&d);
    end();
}

TEST(a_flush_replaces_every_connection)
{
    struct prt_limits lim = base;
    lim.max = 2;
    begin(lim, 1, true);
    struct prt_waiter a = hold(app, NULL), b = hold(app, NULL), c = ask_for(app, NULL, 0), d = c;
    release(&b);
    prt_pool_flush(f.p, f.now_us);
    CHECK_INT(f.why[PRT_CLOSE_FLUSH], 1);
    acquire(&c);
    acquire(&d);
    release(&a);
    CHECK_INT(f.why[PRT_CLOSE_FLUSH], 2); /* not handed on */
    fake_answer(&f);
    CHECK(fake_next(&f) == &c);
    CHECK(fake_next(&f) == &d);
    release(&c);
    release(&d);
    CHECK_INT(stats().idle, 2);
    end();
}

TEST(a_connection_that_was_on_its_way_at_a_flush_is_replaced)
{
    begin(base, 1, true);
    struct prt_waiter a = ask_for(app, NULL, 0);
    acquire(&a);
    prt_pool_flush(f.p, f.now_us);
    CHECK(fake_opened(&f, POOLRT_OK));
    CHECK_INT(f.why[PRT_CLOSE_FLUSH], 1);
    CHECK(fake_next(&f) == NULL);
    fake_answer(&f);
    CHECK(fake_next(&f) == &a);
    release(&a);
    end();
}

TEST(a_drained_pool_refuses_fails_and_empties)
{
    struct prt_limits lim = base;
    lim.max = 1;
    begin(lim, 1, true);
    struct prt_partition *acme = partition("acme", 1, 0);
    struct prt_waiter a = hold(app, acme), b = ask_for(app, acme, 0), c = ask_for(app, NULL, 0);
    acquire(&b);
    acquire(&c);
    prt_pool_drain(f.p, f.now_us);
    for (int i = 0; i < 2; i++) {
        struct prt_waiter *w = fake_next(&f);
        CHECK(w && w->rc == POOLRT_DRAINING);
    }
    CHECK_INT(stats().drained, 2);
    CHECK_INT(acquire(&b), POOLRT_DRAINING);
    release(&a);
    CHECK_INT(f.why[PRT_CLOSE_FLUSH], 1);
    fake_answer(&f);
    CHECK_INT(prt_pool_open(f.p), 0);
    end();
}

TEST(bad_sizes_are_refused_in_words)
{
    struct prt_limits lim = base;
    struct prt_err err;
    struct prt_pool *p;
    static const struct prt_conn_ops ops;
    CHECK_INT(prt_pool_new(&p, &lim, 0, 10, &ops, NULL, NULL, &err), POOLRT_CONFIG);
    CHECK(strstr(err.text, "lanes") != NULL);
    CHECK_INT(prt_pool_new(&p, &lim, 1, 3, &ops, NULL, NULL, &err), POOLRT_CONFIG);
    CHECK(strstr(err.text, "max_size 4") != NULL);
    lim.min = 5;
    CHECK_INT(prt_pool_new(&p, &lim, 1, 10, &ops, NULL, NULL, &err), POOLRT_CONFIG);
    CHECK(p == NULL);
    prt_pool_free(NULL);
}

/* ---- policies ---- */
static struct {
    struct prt_policy_ops ops; /* first: `self` */
    struct prt_answer route, admit, bad;
    struct prt_part_view view;
    int routes, admits, bads;
} pol;

static void on_route(struct prt_policy_ops *self, unsigned lane, const struct prt_req_view *rq,
                     struct prt_answer *out)
{
    CHECK(self == &pol.ops && lane == 0 && prt_str_eqz(rq->user, "joe"));
    pol.routes++;
    *out = pol.route;
}

static void on_admit(struct prt_policy_ops *self, unsigned lane, const struct prt_req_view *rq,
                     const struct prt_part_view *part, struct prt_answer *out)
{
    (void)self, (void)lane, (void)rq;
    pol.admits++;
    pol.view = *part;
    *out = pol.admit;
}

static void on_bad_route(struct prt_policy_ops *self, unsigned lane, const struct prt_req_view *rq,
                         struct prt_answer *out)
{
    (void)self, (void)lane, (void)rq;
    pol.bads++;
    *out = pol.bad;
}

static void begin_with_policy(uint32_t hooks)
{
    memset(&pol, 0, sizeof pol);
    pol.ops.route = on_route, pol.ops.admit = on_admit, pol.ops.bad_route = on_bad_route;
    atomic_store(&pol.ops.hooks, hooks);
    fake_init(&f, &base, 1, 64, true, &pol.ops);
    app = fake_class(&f, "app");
}

static const struct prt_req_view joe = {.user = {"joe", 3}};

static void answer_to(struct prt_answer *a, const char *name, enum prt_scope scope)
{
    memset(a, 0, sizeof *a);
    a->verdict = PRT_ANSWER_TO;
    a->scope = scope;
    CHECK(prt_str_copy(a->name, sizeof a->name, prt_str_of(name)));
}

TEST(a_pool_without_policies_asks_once)
{
    struct prt_route route = {0};
    struct prt_answer why = {0};
    begin(base, 1, true);
    CHECK(prt_pool_asks(f.p, &route));
    CHECK_INT(prt_pool_ask(f.p, 0, &joe, &route, &why), POOLRT_OK);
    CHECK(!prt_pool_asks(f.p, &route));
    CHECK(route.part == prt_pool_default_partition(f.p));
    end();
}

TEST(a_route_holds_as_long_as_its_scope_and_version)
{
    struct prt_route route = {0};
    struct prt_answer why = {0};
    begin_with_policy(PRT_HOOK_ROUTE);
    struct prt_partition *acme = partition("acme", 0, 0);
    answer_to(&pol.route, "acme", PRT_SCOPE_SESSION);
    CHECK(prt_pool_asks(f.p, &route));
    CHECK_INT(prt_pool_ask(f.p, 0, &joe, &route, &why), POOLRT_OK);
    CHECK(route.part == acme);
    CHECK(!prt_pool_asks(f.p, &route));
    atomic_fetch_add(&pol.ops.version, 1); /* a reload forgets */
    CHECK(prt_pool_asks(f.p, &route));
    answer_to(&pol.route, "acme", PRT_SCOPE_TRANSACTION);
    CHECK_INT(prt_pool_ask(f.p, 0, &joe, &route, &why), POOLRT_OK);
    CHECK(prt_pool_asks(f.p, &route)); /* each time */
    pol.route.verdict = PRT_ANSWER_NONE;
    CHECK_INT(prt_pool_ask(f.p, 0, &joe, &route, &why), POOLRT_OK);
    CHECK(route.part == prt_pool_default_partition(f.p));
    CHECK_INT(pol.routes, 3);
    answer_to(&pol.route, "acme", PRT_SCOPE_SESSION);
    CHECK_INT(prt_pool_ask(f.p, 0, &joe, &route, &why), POOLRT_OK);
    prt_pool_partition_remove(f.p, PRT_STR("acme"), f.now_us);
    CHECK(prt_pool_asks(f.p, &route)); /* its partition was taken out */
    end();
}

TEST(an_unknown_partition_is_a_bad_route)
{
    struct prt_route route = {0};
    struct prt_answer why = {0};
    begin_with_policy(PRT_HOOK_ROUTE);
    answer_to(&pol.route, "nowhere", PRT_SCOPE_SESSION);
    CHECK_INT(prt_pool_ask(f.p, 0, &joe, &route, &why), POOLRT_OK); /* on_fail: no opinion */
    CHECK(route.part == prt_pool_default_partition(f.p));
    CHECK_INT(pol.bads, 1);
    pol.bad.verdict = PRT_ANSWER_REJECT;
    CHECK(prt_str_copy(pol.bad.text, sizeof pol.bad.text, PRT_STR("no such partition")));
    route.is_set = false;
    CHECK_INT(prt_pool_ask(f.p, 0, &joe, &route, &why), POOLRT_POLICY);
    CHECK_STR(why.text, "no such partition");
    CHECK(!route.is_set);
    CHECK_INT(stats().rejected, 1);
    end();
}

TEST(admit_sees_the_partition_and_may_refuse)
{
    struct prt_route route = {0};
    struct prt_answer why = {0};
    begin_with_policy(PRT_HOOK_ROUTE | PRT_HOOK_ADMIT);
    struct prt_partition *acme = partition("acme", 3, 2);
    struct prt_waiter a = hold(app, acme), b = hold(app, NULL);
    release(&b);
    answer_to(&pol.route, "acme", PRT_SCOPE_SESSION);
    CHECK_INT(prt_pool_ask(f.p, 0, &joe, &route, &why), POOLRT_OK);
    CHECK(prt_str_eqz(pol.view.name, "acme"));
    CHECK_INT(pol.view.active, 1);
    CHECK_INT(pol.view.max, 3);
    CHECK_INT(pol.view.min, 2);
    CHECK_INT(pol.view.pool_active, 1);
    CHECK_INT(pol.view.pool_idle, 1);
    CHECK_INT(pol.view.pool_total, 2);
    CHECK_INT(pol.view.pool_max, 4);
    CHECK(prt_pool_asks(f.p, &route)); /* admit is asked each time */
    pol.admit.verdict = PRT_ANSWER_REJECT;
    CHECK_INT(prt_pool_ask(f.p, 0, &joe, &route, &why), POOLRT_POLICY);
    CHECK_INT(pol.routes, 1);
    CHECK_INT(pol.admits, 2);
    CHECK_INT(stats().rejected, 1);
    release(&a);
    end();
}

TEST(many_partitions_are_found_by_name)
{
    char name[16];
    begin(base, 1, true);
    for (int i = 0; i < 3000; i++) {
        (void)snprintf(name, sizeof name, "t%d", i);
        CHECK(partition(name, 0, 0) != NULL);
    }
    CHECK(prt_str_eqz(prt_partition_name(prt_pool_partition_find(f.p, PRT_STR("t2999"))), "t2999"));
    CHECK(prt_pool_partition_find(f.p, PRT_STR("t3000")) == NULL);
    prt_pool_partition_remove(f.p, PRT_STR("default"), f.now_us);
    CHECK(prt_pool_partition_find(f.p, PRT_STR("default")) != NULL); /* it always is */
    struct prt_partition_limits lim = {.priority = -1};
    CHECK_INT(prt_pool_partition(f.p, PRT_STR(""), &lim, f.now_us, NULL), POOLRT_CONFIG);
    end();
}
