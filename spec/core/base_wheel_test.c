/* base_wheel_test.c - the timing wheel: by example, and against a naive list at random. */
#include "base/wheel.h"
#include "test.h"

#include <limits.h>

#define MS 1000ll
#define HOUR (3600 * 1000 * MS)

struct alarm {
    struct prt_timer t;
    int fired;
    bool changed; /* set or cleared since the run began */
    int64_t at_us;
};

static void ring(struct prt_timer *t, int64_t now_us)
{
    struct alarm *a = prt_container_of(t, struct alarm, t);

    a->fired++;
    a->at_us = now_us;
}

/* Goes on as a loop does: sleeps as long as the wheel says, until `end`. Returns how many sleeps.
 */
static int live_until(struct prt_wheel *w, int64_t *now_us, int64_t end)
{
    int sleeps = 0;

    while (*now_us < end && sleeps < 1000000) {
        int ms = prt_wheel_wait_ms(w, *now_us);
        if (ms < 0 || *now_us + ms * MS > end) {
            *now_us = end;
        } else {
            *now_us += ms * MS;
        }
        sleeps++;
        prt_wheel_run(w, *now_us);
    }
    return sleeps;
}

TEST(a_zero_timer_is_not_set_and_may_be_cleared)
{
    struct prt_timer t = {0};

    CHECK(!prt_timer_is_set(&t));
    prt_timer_clear(&t);
    CHECK(!prt_timer_is_set(&t));
}

TEST(a_wheel_without_timers_wants_to_sleep_for_ever)
{
    struct prt_wheel w;
    struct alarm a = {0};

    prt_wheel_init(&w, 5 * HOUR);
    CHECK_INT(prt_wheel_wait_ms(&w, 5 * HOUR), -1);
    prt_timer_set(&w, &a.t, 6 * HOUR, ring);
    CHECK(prt_wheel_wait_ms(&w, 5 * HOUR) > 0);
    prt_timer_clear(&a.t);
    CHECK_INT(prt_wheel_wait_ms(&w, 5 * HOUR), -1);
}

TEST(never_early_and_at_most_a_millisecond_late)
{
    static const int64_t after[] = {0,       1,        999,       1000,      1001,      63 * MS,
                                    64 * MS, 65 * MS,  4095 * MS, 4096 * MS, 4097 * MS, 262144 * MS,
                                    HOUR,    4 * HOUR, 5 * HOUR,  30 * HOUR, 1234567890};
    for (int64_t start = 0; start < 6 * HOUR; start += 777777777) {
        for (size_t i = 0; i < sizeof after / sizeof after[0]; i++) {
            struct prt_wheel w;
            struct alarm a = {0};
            int64_t due = start + after[i];
            int64_t ms = (due + 999) / 1000; /* the first whole one that is not before it */
            prt_wheel_init(&w, start);
            prt_timer_set(&w, &a.t, due, ring);
            if (ms * MS > start) {
                prt_wheel_run(&w, ms * MS - 1);
                CHECK_INT(a.fired, 0);
                CHECK(prt_timer_is_set(&a.t));
            }
            prt_wheel_run(&w, ms * MS);
            CHECK_INT(a.fired, 1);
            CHECK(!prt_timer_is_set(&a.t));
            prt_wheel_run(&w, ms * MS + HOUR);
            CHECK_INT(a.fired, 1);
        }
    }
}

TEST(a_loop_that_sleeps_as_told_is_in_time_and_rarely_woken)
{
    for (int64_t start = 0; start < 6 * HOUR; start += 1777777777) {
        for (int64_t after = 1; after < 60 * HOUR; after = after * 3 + 17) {
            struct prt_wheel w;
            struct alarm a = {0};
            int64_t now = start;
            prt_wheel_init(&w, start);
            prt_timer_set(&w, &a.t, start + after, ring);
            int sleeps = live_until(&w, &now, start + after + 5 * MS);
            CHECK_INT(a.fired, 1);
            CHECK(a.at_us >= start + after);
            /* its millisecond, or the one after where the sleeper began within one */
            CHECK(a.at_us < (start + after + 999) / MS * MS + MS);
            CHECK(sleeps < 25);
        }
    }
}

TEST(what_is_past_fires_at_the_next_run)
{
    struct prt_wheel w;
    struct alarm a = {0}, b = {0};

    prt_wheel_init(&w, 100 * MS + 300);
    prt_timer_set(&w, &a.t, 5, ring);
    prt_timer_set(&w, &b.t, INT64_MIN, ring);
    CHECK_INT(prt_wheel_wait_ms(&w, 100 * MS + 300), 0);
    prt_wheel_run(&w, 100 * MS + 300);
    CHECK_INT(a.fired, 1);
    CHECK_INT(b.fired, 1);
}

TEST(setting_anew_forgets_the_first_time)
{
    struct prt_wheel w;
    struct alarm a = {0};

    prt_wheel_init(&w, 0);
    prt_timer_set(&w, &a.t, 10 * MS, ring);
    prt_timer_set(&w, &a.t, 500 * MS, ring);
    prt_wheel_run(&w, 499 * MS);
    CHECK_INT(a.fired, 0);
    prt_timer_set(&w, &a.t, 2 * HOUR, ring);
    prt_timer_set(&w, &a.t, 510 * MS, ring);
    prt_wheel_run(&w, 509 * MS);
    CHECK_INT(a.fired, 0);
    prt_wheel_run(&w, 510 * MS);
    CHECK_INT(a.fired, 1);
    prt_wheel_run(&w, 3 * HOUR);
    CHECK_INT(a.fired, 1);
}

TEST(far_timers_come_down_from_turn_to_turn)
{
    struct prt_wheel w;
    struct alarm day = {0}, week = {0}, never = {0};
    int64_t now = 0;

    prt_wheel_init(&w, now);
    prt_timer_set(&w, &week.t, 7 * 24 * HOUR + 1, ring);
    prt_timer_set(&w, &day.t, 24 * HOUR, ring);
    prt_timer_set(&w, &never.t, INT64_MAX, ring);
    (void)live_until(&w, &now, 24 * HOUR - 1);
    CHECK_INT(day.fired, 0);
    int sleeps = live_until(&w, &now, 24 * HOUR + MS);
    CHECK_INT(day.fired, 1);
    CHECK(day.at_us < 24 * HOUR + MS);
    sleeps += live_until(&w, &now, 7 * 24 * HOUR);
    CHECK_INT(week.fired, 0);
    sleeps += live_until(&w, &now, 7 * 24 * HOUR + MS);
    CHECK_INT(week.fired, 1);
    CHECK(sleeps < 100);
    CHECK_INT(never.fired, 0);
    CHECK(prt_timer_is_set(&never.t));
}

TEST(jumps_of_the_clock_lose_nothing)
{
    struct prt_wheel w;
    static struct alarm a[8];
    const int64_t year = 365 * 24 * HOUR;

    prt_wheel_init(&w, 0);
    for (int i = 0; i < 8; i++) {
        prt_timer_set(&w, &a[i].t, (1ll << 6 * i) * MS, ring); /* 1 ms to 139 years */
    }
    prt_wheel_run(&w, 100 * year);
    for (int i = 0; i < 8; i++) {
        CHECK_INT(a[i].fired, i < 7);
    }
    prt_wheel_run(&w, 200 * year);
    CHECK_INT(a[7].fired, 1);
}

TEST(a_clock_that_went_back_stands_still_until_it_has_caught_up)
{
    struct prt_wheel w;
    struct alarm a = {0};

    prt_wheel_init(&w, 1000 * MS);
    prt_timer_set(&w, &a.t, 1100 * MS, ring);
    prt_wheel_run(&w, 500 * MS);
    prt_wheel_run(&w, -5);
    CHECK_INT(a.fired, 0);
    CHECK(prt_wheel_wait_ms(&w, 1000 * MS) > 0);
    prt_wheel_run(&w, 1099 * MS);
    CHECK_INT(a.fired, 0);
    prt_wheel_run(&w, 1100 * MS);
    CHECK_INT(a.fired, 1);
}

TEST(the_last_moment_of_the_clock_is_harmless)
{
    struct prt_wheel w;
    struct alarm a = {0}, b = {0};

    prt_wheel_init(&w, 0);
    prt_timer_set(&w, &a.t, INT64_MAX, ring);
    prt_timer_set(&w, &b.t, HOUR, ring);
    CHECK(prt_wheel_wait_ms(&w, INT64_MIN / 2) == INT_MAX);
    prt_wheel_run(&w, INT64_MAX);
    CHECK_INT(b.fired, 1);
    CHECK_INT(a.fired, 0); /* due in a millisecond that this clock does not reach whole */
    CHECK(prt_timer_is_set(&a.t));
    CHECK(prt_wheel_wait_ms(&w, INT64_MAX) >= 0);
}

/* ---- from inside of fire ---- */
static struct prt_wheel inner;
static struct alarm first, second, third;

static void clear_and_set(struct prt_timer *t, int64_t now_us)
{
    ring(t, now_us);
    prt_timer_clear(&second.t);
    prt_timer_set(&inner, &third.t, now_us + 50 * MS, ring);
}

TEST(fire_may_clear_and_move_what_is_due_in_the_same_run)
{
    first = second = third = (struct alarm){0};
    prt_wheel_init(&inner, 0);
    prt_timer_set(&inner, &first.t, 10 * MS, clear_and_set);
    prt_timer_set(&inner, &second.t, 10 * MS, ring);
    prt_timer_set(&inner, &third.t, 11 * MS, ring);
    prt_wheel_run(&inner, 20 * MS);
    CHECK_INT(first.fired, 1);
    CHECK_INT(second.fired, 0);
    CHECK(!prt_timer_is_set(&second.t));
    CHECK_INT(third.fired, 0);
    prt_wheel_run(&inner, 69 * MS);
    CHECK_INT(third.fired, 0);
    prt_wheel_run(&inner, 70 * MS);
    CHECK_INT(third.fired, 1);
}

static void again_in_the_past(struct prt_timer *t, int64_t now_us)
{
    ring(t, now_us);
    prt_timer_set(&inner, t, t->due_us + MS, again_in_the_past);
}

TEST(a_timer_that_sets_itself_to_the_past_fires_once_a_run)
{
    first = (struct alarm){0};
    prt_wheel_init(&inner, 0);
    prt_timer_set(&inner, &first.t, MS, again_in_the_past);
    prt_wheel_run(&inner, 24 * HOUR);
    CHECK_INT(first.fired, 1);
    CHECK_INT(prt_wheel_wait_ms(&inner, 24 * HOUR), 0);
    prt_wheel_run(&inner, 24 * HOUR);
    CHECK_INT(first.fired, 2);
    prt_timer_clear(&first.t);
}

static void free_itself(struct prt_timer *t, int64_t now_us)
{
    free(prt_container_of(t, struct alarm, t));
    first.fired++;
}

TEST(fire_may_free_the_timer)
{
    first = (struct alarm){0};
    prt_wheel_init(&inner, 0);
    for (int i = 0; i < 3; i++) {
        struct alarm *a = calloc(1, sizeof *a);
        prt_timer_set(&inner, &a->t, MS, free_itself);
    }
    prt_wheel_run(&inner, MS);
    CHECK_INT(first.fired, 3);
}

/* ---- against a sorted list ----
 * The model keeps the due times in a sorted array. Operations at random set, clear, move the clock
 * and run; what fires, when, and in which order must agree after each run. */
enum { ALARMS = 200, OPERATIONS = 200000 };

struct due {
    int64_t ms;
    int who;
};

static struct prt_wheel wheel;
static struct alarm alarms[ALARMS];
static struct due model[ALARMS];
static int model_n, wrong, fired_total;
static int64_t model_now;         /* us; the latest that the wheel has seen */
static int64_t run_from, last_ms; /* ms: where this run began; what fired last in it */
static uint64_t seed;

static uint64_t pick(uint64_t below)
{
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return seed % below;
}

static int64_t pick_span(void)
{
    static const int64_t most[] = {2 * MS, 100 * MS, 5000 * MS, 300000 * MS, 6 * HOUR, 100 * HOUR};
    return (int64_t)pick((uint64_t)most[pick(6)]);
}

static void model_clear(int who)
{
    int to = 0;

    for (int i = 0; i < model_n; i++) {
        if (model[i].who != who) {
            model[to++] = model[i];
        }
    }
    model_n = to;
}

static void model_set(int who, int64_t due_us)
{
    int64_t ms = (due_us + 999) / 1000;
    int i;

    model_clear(who);
    for (i = model_n++; i > 0 && model[i - 1].ms > ms; i--) {
        model[i] = model[i - 1];
    }
    model[i] = (struct due){ms, who};
}

static void on_random_fire(struct prt_timer *t, int64_t now_us);

static void random_change(int64_t now_us)
{
    int who = (int)pick(ALARMS);

    alarms[who].changed = true;
    if (pick(4) == 0) {
        prt_timer_clear(&alarms[who].t);
        model_clear(who);
        return;
    }
    int64_t due = now_us + pick_span() - (pick(8) == 0 ? 500 * MS : 0);
    due = due > 0 ? due : 0;
    prt_timer_set(&wheel, &alarms[who].t, due, on_random_fire);
    model_set(who, due);
}

/* due before this run's end and in the model: right. It also changes others, now and then. */
static void on_random_fire(struct prt_timer *t, int64_t now_us)
{
    struct alarm *a = prt_container_of(t, struct alarm, t);
    int who = (int)(a - alarms);
    int64_t ms = (t->due_us + 999) / 1000;
    bool found = false;

    ms = ms > run_from ? ms : run_from; /* what was past already has no order */
    wrong += ms < last_ms;
    last_ms = ms;
    for (int i = 0; i < model_n && model[i].ms <= model_now / 1000; i++) {
        found |= model[i].who == who;
    }
    wrong += !found || prt_timer_is_set(t) || model_now < t->due_us;
    model_clear(who);
    fired_total++;
    a->fired++;
    if (pick(3) == 0) {
        random_change(now_us);
    }
}

/* After a run the model may hold due timers only where `fire` has just set them to the past. */
static void run_both(int64_t now_us)
{
    static struct due before[ALARMS];
    int n = model_n;

    memcpy(before, model, sizeof model);
    run_from = last_ms = model_now / 1000;
    model_now = now_us > model_now ? now_us : model_now;
    for (int i = 0; i < ALARMS; i++) {
        alarms[i].fired = 0;
        alarms[i].changed = false;
    }
    prt_wheel_run(&wheel, now_us > 0 ? now_us : 0);
    for (int i = 0; i < n && before[i].ms <= model_now / 1000; i++) {
        int who = before[i].who;
        bool still = false;
        for (int k = 0; k < model_n; k++) {
            still |= model[k].who == who && model[k].ms == before[i].ms;
        }
        wrong += still && !alarms[who].fired && !alarms[who].changed;
    }
}

static void check_wait(int64_t now_us)
{
    int ms = prt_wheel_wait_ms(&wheel, now_us);
    int64_t limit = model_n ? model[0].ms - now_us / 1000 : -1;

    wrong += model_n ? ms < 0 || ms > (limit > 0 ? limit : 0) : ms != -1;
    for (int i = 0; i < ALARMS; i++) {
        bool in = false;
        for (int k = 0; k < model_n; k++) {
            in |= model[k].who == i;
        }
        wrong += in != prt_timer_is_set(&alarms[i].t);
    }
}

TEST(the_wheel_does_what_a_sorted_list_does)
{
    const char *given = getenv("SEED");
    int64_t now = 0;

    prt_random(&seed, sizeof seed);
    seed = given ? strtoull(given, NULL, 0) : seed | 1;
    printf("  SEED=%llu\n", (unsigned long long)seed);
    now = model_now = (int64_t)pick(100 * HOUR);
    prt_wheel_init(&wheel, now);
    for (int op = 0; op < OPERATIONS && !wrong; op++) {
        if (pick(3)) {
            random_change(now);
            continue;
        }
        int ms = prt_wheel_wait_ms(&wheel, now);
        int64_t slept = now + (ms > 0 ? ms : 0) * MS;
        now = pick(2) ? now + pick_span() / (1 + (int64_t)pick(500)) : slept;
        run_both(pick(200) ? now : now - (int64_t)pick(HOUR));
        check_wait(model_now);
        now = model_now;
    }
    CHECK_INT(wrong, 0);
    CHECK(fired_total > OPERATIONS / 20);
}
