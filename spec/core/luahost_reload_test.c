/* luahost_reload_test.c - two workers ask at full speed while the file is replaced, again and
 * again, by good and by broken versions: no answer is wrong, none mixes two versions, none comes
 * from a version that was refused, and the last good one serves in the end. */
#include "luahost_fixture.h"

#define WORKERS 2
#define REPLACES (UNDER_SANITIZER ? 300 : 1000)

struct worker {
    pthread_t thread;
    struct fixture *f;
    unsigned lane;
    _Atomic long version; /* the last one that answered */
    _Atomic uint64_t asked;
    long wrong, mixed, older; /* read after the join */
};
static struct worker workers[WORKERS];
static _Atomic bool stop;
static _Atomic long newest; /* the last good version written */

static long number_of(const char *text)
{
    return text[0] == 'v' ? strtol(text + 1, NULL, 10) : -1;
}

/* One request between two turns: route and admit must be of one version. */
static void one_request(struct worker *w, uint64_t i, long *last)
{
    struct prt_policy_ops *ops = w->f->ops;
    struct prt_req_view rq = {
        .tenant = i % 2 ? PRT_STR("acme") : PRT_STR("globex"), .user = PRT_STR("u"), .session = i};
    struct prt_part_view part = {.name = PRT_STR("default")};
    struct prt_answer to = {0}, in = {0};

    ops->route(ops, w->lane, &rq, &to);
    ops->admit(ops, w->lane, &rq, &part, &in);
    long v = number_of(to.name);
    w->wrong += to.verdict != PRT_ANSWER_TO || in.verdict != PRT_ANSWER_REJECT || v < 0;
    w->mixed += v != number_of(in.text);
    w->older += v < *last || v > atomic_load_explicit(&newest, memory_order_acquire);
    *last = v;
}

static void work(struct worker *w) ON_WORKER
{
    long last = 0;

    prt_policies_worker_start(w->f->ps, w->lane);
    for (uint64_t i = 0; !atomic_load_explicit(&stop, memory_order_relaxed); i++) {
        prt_policies_turn(w->f->ps, w->lane);
        for (int k = 0; k < 16; k++) {
            one_request(w, i, &last);
        }
        atomic_store_explicit(&w->version, last, memory_order_relaxed);
        atomic_fetch_add_explicit(&w->asked, 16, memory_order_relaxed);
    }
    prt_policies_worker_stop(w->f->ps, w->lane);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;

    prt_thread_is(PRT_THREAD_WORKER, w->lane);
    prt_assert_worker();
    work(w);
    return NULL;
}

/* kind 0 is good; the others are broken in ways that a careless editor finds. */
#define KINDS 10
static size_t make_text(char *text, size_t cap, long v, int kind)
{
    static const char *const bodies[KINDS] = {
        "function M.route(r) n = n + 1 return 'v%ld' end\n",
        "function M.route(r return 'v%ld' end\n",
        "function M.rout(r) return 'v%ld' end\n",
        "function M.route(r) local t return t.x .. 'v%ld' end\n",
        "while true do end -- v%ld\n",
        "function M.route(r) while true do end return 'v%ld' end\n",
        "function M.route(r) return { 'v%ld' } end\n",
        "M.route = %ld\n",
        "function M.init() error('v%ld') end M.route = 'gold'\n",
        "local s = 'v%ld' while true do s = s .. s end\n",
    };
    char body[200];

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    (void)snprintf(body, sizeof body, bodies[kind], v);
#pragma GCC diagnostic pop
    int n = snprintf(text, cap,
                     "local M = { name = 'x', version = '%ld', api = 1 }\nlocal n = 0\n%s"
                     "function M.admit(r, p) n = n + 1 return false, 'v%ld' end\n"
                     "function M.export_state() return { n = n } end\n"
                     "function M.import_state(s) n = s.n end\nreturn M\n",
                     v, body, v);
    return (size_t)n;
}

static int load(struct fixture *f)
{
    struct prt_policy_plan *plan = NULL;

    CHECK_INT(prt_policies_refresh(f->ps, &plan, NULL), POOLRT_OK);
    int news = plan != NULL;
    prt_policies_commit(f->ps, plan);
    return news;
}

static void write_version(struct fixture *f, long v, int kind)
{
    char text[1000];
    size_t n = make_text(text, sizeof text, v, kind);

    if (kind == 0 && v % 50 == 7) {
        write_bytes(f, "x", text, n / 2); /* seen half-written */
        CHECK_INT(load(f), 0);
    }
    write_bytes(f, "x", text, n);
}

static bool all_serve(long v)
{
    for (int i = 0; i < WORKERS; i++) {
        if (atomic_load_explicit(&workers[i].version, memory_order_relaxed) != v) {
            return false;
        }
    }
    return true;
}

/* With a deadline: false when the workers do not come to v. */
static bool wait_for(long v)
{
    for (int64_t end = prt_now_us() + 60000000; prt_now_us() < end;) {
        if (all_serve(v)) {
            return true;
        }
        (void)usleep(200);
    }
    return false;
}

static void start_workers(struct fixture *f)
{
    for (unsigned i = 0; i < WORKERS; i++) {
        workers[i] = (struct worker){.f = f, .lane = i};
        CHECK_INT(pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]), 0);
    }
}

static void stop_workers(void)
{
    atomic_store(&stop, true);
    for (int i = 0; i < WORKERS; i++) {
        CHECK_INT(pthread_join(workers[i].thread, NULL), 0);
        CHECK_INT(workers[i].wrong, 0);
        CHECK_INT(workers[i].mixed, 0);
        CHECK_INT(workers[i].older, 0);
        CHECK(atomic_load(&workers[i].asked) > 0);
    }
}

TEST(a_thousand_replacements_under_load)
{
    struct fixture f;
    struct prt_policy_plan *plan = NULL;
    struct prt_err err = {0};
    int good = 0, bad = 0, late = 0, misjudged = 0;

    prt_thread_is(PRT_THREAD_CONTROL, 0);
    init_lanes(&f, WORKERS);
    atomic_store(&newest, 1);
    atomic_store(&stop, false);
    write_version(&f, 1, 0);
    add_policy(&f, "x");
    CHECK_INT(prt_policies_prepare(f.ps, &f.cfg, &plan, &err), POOLRT_OK);
    prt_policies_commit(f.ps, plan);
    start_workers(&f);
    for (long v = 2; v < REPLACES + 2; v++) {
        int kind = v % 5 == 4 ? 1 + (int)(v / 5 % (KINDS - 1)) : 0;
        long before = atomic_load(&newest);
        if (kind == 0) {
            atomic_store(&newest, v);
        }
        write_version(&f, v, kind);
        misjudged += load(&f) != (kind == 0);
        good += kind == 0;
        bad += kind != 0;
        /* a third of the time the next file comes before the workers have taken this one */
        late += v % 3 && kind == 0 && !wait_for(v);
        CHECK(kind == 0 || before == atomic_load(&newest));
    }
    CHECK(wait_for(atomic_load(&newest)));
    stop_workers();
    CHECK_INT(misjudged, 0);
    CHECK_INT(late, 0);
    CHECK_INT(info_of(&f).swaps, good);
    CHECK(info_of(&f).rejected_versions >= (uint64_t)bad);
    CHECK_INT(info_of(&f).failures, 0);
    CHECK_STR(info_of(&f).state, "active");
    finish_lanes(&f);
}

TEST(a_runaway_on_one_worker_does_not_disturb_the_other)
{
    static const char text[] =
        HEAD "local n = 0\nfunction M.init() n = 0 end\n"
             "function M.route(r) n = n + 1\n"
             "  if n % 20000 == 0 and r.session > 19000 then while true do end end\n"
             "  return 'v1' end\n"
             "function M.admit(r, p) return false, 'v1' end\nreturn M\n";
    struct fixture f;
    struct prt_policy_plan *plan = NULL;
    struct prt_err err = {0};

    if (UNDER_TSAN) {
        printf("  skipped: the thread sanitizer does not deliver the guard's signal\n");
        return;
    }
    prt_thread_is(PRT_THREAD_CONTROL, 0);
    init_lanes(&f, WORKERS);
    atomic_store(&newest, 1);
    atomic_store(&stop, false);
    write_policy(&f, "x", text);
    add_policy(&f, "x");
    CHECK_INT(prt_policies_prepare(f.ps, &f.cfg, &plan, &err), POOLRT_OK);
    prt_policies_commit(f.ps, plan);
    start_workers(&f);
    bool disabled = false;
    for (int64_t end = prt_now_us() + 60000000; !disabled && prt_now_us() < end;) {
        disabled = strcmp(info_of(&f).state, "disabled") == 0;
        (void)usleep(1000);
    }
    CHECK(disabled);
    CHECK(info_of(&f).kills >= 3);
    atomic_store(&newest, 2);
    write_version(&f, 2, 0);
    CHECK_INT(load(&f), 1);
    CHECK(wait_for(2));
    atomic_store(&stop, true);
    for (int i = 0; i < WORKERS; i++) {
        CHECK_INT(pthread_join(workers[i].thread, NULL), 0);
    }
    CHECK_STR(info_of(&f).state, "active");
    finish_lanes(&f);
}
