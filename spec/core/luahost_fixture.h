/* luahost_fixture.h - one pool "app" with policies in a folder of its own, one worker: this thread.
 */
#ifndef PRT_LUAHOST_FIXTURE_H
#define PRT_LUAHOST_FIXTURE_H
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include "luahost/luahost_int.h"
#include "pool/pool.h"
#include "test.h"

#if defined(__SANITIZE_THREAD__)
#define UNDER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN 1
#endif
#endif
#ifndef UNDER_TSAN
#define UNDER_TSAN 0
#endif
#if UNDER_TSAN || defined(__SANITIZE_ADDRESS__)
#define UNDER_SANITIZER 1
#else
#define UNDER_SANITIZER 0
#endif

/* each test file uses what it needs */
#pragma GCC diagnostic ignored "-Wunused-function"

#define HEAD "local M = { name = 'x', version = '1', api = 1 }\n"
#define FIXTURE_POLICIES 4

struct fixture {
    char dir[500];
    char *path[2];
    const char *settings;
    struct prt_config cfg;
    struct prt_pool_config pool;
    struct prt_policy_config policy[FIXTURE_POLICIES];
    struct prt_partition_config part[3];
    struct prt_policies *ps;
    struct prt_policy_ops *ops;
    unsigned lanes;
    /* of the last info_of(), route_of() */
    char last_error[400], state[20], name[200], sha[80];
    struct prt_answer answer;
};

static int64_t hand_clock_us = 1000000000;
static int64_t by_hand(void)
{
    return hand_clock_us;
}

static _Atomic int wakes;
static void count_wake(void *ctx, unsigned lane)
{
    (void)ctx, (void)lane;
    atomic_fetch_add_explicit(&wakes, 1, memory_order_relaxed);
}

/* ---- the log, kept ---- */
static char log_text[1 << 20];
static size_t log_n;
static pthread_mutex_t log_mu = PTHREAD_MUTEX_INITIALIZER;

static void keep_log(const char *line, size_t n)
{
    (void)pthread_mutex_lock(&log_mu);
    if (n < sizeof log_text - log_n) {
        memcpy(log_text + log_n, line, n);
        log_n += n;
        log_text[log_n] = '\0';
    }
    (void)pthread_mutex_unlock(&log_mu);
}

/* Lines that contain `word`. */
static int count_log(const char *word)
{
    int n = 0;

    (void)pthread_mutex_lock(&log_mu);
    for (const char *at = log_text; (at = strstr(at, word)); n++) {
        at += strcspn(at, "\n");
    }
    (void)pthread_mutex_unlock(&log_mu);
    return n;
}

/* ---- files ---- */

/* Under a name of its own, then renamed: nobody sees half a file. */
static void write_bytes(struct fixture *f, const char *name, const char *p, size_t n)
{
    char file[600], temp[600];

    (void)snprintf(file, sizeof file, "%s/%s.lua", f->dir, name);
    (void)snprintf(temp, sizeof temp, "%s/.new", f->dir);
    FILE *out = fopen(temp, "w");
    CHECK(out != NULL);
    if (out) {
        CHECK_INT(fwrite(p, 1, n, out), n);
        CHECK_INT(fclose(out), 0);
        CHECK_INT(rename(temp, file), 0);
    }
}

static void write_policy(struct fixture *f, const char *name, const char *text)
{
    write_bytes(f, name, text, strlen(text));
}

static char *dup_of(const char *z)
{
    char *copy = strdup(z);

    if (!copy) {
        abort();
    }
    return copy;
}

/* ---- life ---- */

static void init_lanes(struct fixture *f, unsigned lanes)
{
    static char bundled[] = "policies";
    char app[] = "app";
    struct prt_err err;

    memset(f, 0, sizeof *f);
    (void)snprintf(f->dir, sizeof f->dir, "/tmp/poolrt-policies-XXXXXX");
    CHECK(mkdtemp(f->dir) != NULL);
    char sub[600];
    (void)snprintf(sub, sizeof sub, "%s/route", f->dir);
    CHECK_INT(mkdir(sub, 0755), 0);
    f->path[0] = f->dir;
    f->path[1] = bundled;
    f->part[0] = (struct prt_partition_config){.name = dup_of("gold"),
                                               .type = PRT_PART_TENANT,
                                               .match = dup_of("acme"),
                                               .max_connections = 5,
                                               .priority = PRT_HIGH};
    f->part[1] = (struct prt_partition_config){.name = dup_of("globex"), .priority = -1};
    f->part[2] =
        (struct prt_partition_config){.name = dup_of("bi"), .type = PRT_PART_USER, .priority = -1};
    f->pool.name = dup_of(app);
    f->pool.policies = f->policy;
    f->pool.partitions = f->part;
    f->pool.n_partitions = 3;
    f->cfg.policy_path = f->path;
    f->cfg.n_policy_path = 2;
    f->cfg.pools = &f->pool;
    f->cfg.n_pools = 1;
    f->lanes = lanes;
    prt_policies_clock = by_hand;
    log_n = 0;
    log_text[0] = '\0';
    prt_log_set_sink(keep_log);
    CHECK_INT(prt_policies_new(&f->ps, lanes, count_wake, f, &err), POOLRT_OK);
    f->ops = prt_policies_bind(f->ps, "app");
}

static void init(struct fixture *f)
{
    init_lanes(f, 1);
    prt_thread_is(PRT_THREAD_WORKER, 0);
    prt_policies_worker_start(f->ps, 0);
}

static void add_policy(struct fixture *f, const char *name)
{
    struct prt_policy_config *pc = &f->policy[f->pool.n_policies++];

    pc->name = dup_of(name);
    pc->config = dup_of(f->settings ? f->settings : "return {}");
    pc->where = dup_of("config.lua: pools.app.policies[1]");
}

/* Prepare, commit, and take over on this thread. */
static void go(struct fixture *f)
{
    struct prt_policy_plan *plan = NULL;
    struct prt_err err = {0};

    if (prt_policies_prepare(f->ps, &f->cfg, &plan, &err)) {
        printf("  prepare: %s\n", err.text);
        prt_test_bad++;
        return;
    }
    prt_policies_commit(f->ps, plan);
    prt_policies_turn(f->ps, 0);
}

/* text NULL: the policy is a bundled one. */
static void start(struct fixture *f, const char *name, const char *text)
{
    init(f);
    if (text) {
        write_policy(f, name, text);
    }
    add_policy(f, name);
    go(f);
}

/* The same with f->settings as it is. */
static void start_with(struct fixture *f, const char *name, const char *text)
{
    const char *settings = f->settings;

    init(f);
    f->settings = settings;
    if (text) {
        write_policy(f, name, text);
    }
    add_policy(f, name);
    go(f);
}

/* 1: something new serves. */
static int refresh(struct fixture *f)
{
    struct prt_policy_plan *plan = NULL;

    CHECK_INT(prt_policies_refresh(f->ps, &plan, NULL), POOLRT_OK);
    int news = plan != NULL;
    prt_policies_commit(f->ps, plan);
    prt_policies_turn(f->ps, 0);
    return news;
}

static void finish_lanes(struct fixture *f)
{
    char command[600];

    prt_policies_unbind(f->ps, f->ops);
    prt_policies_free(f->ps);
    for (int i = 0; i < FIXTURE_POLICIES; i++) {
        free(f->policy[i].name), free(f->policy[i].config), free(f->policy[i].where);
    }
    for (int i = 0; i < 3; i++) {
        free(f->part[i].name), free(f->part[i].match);
    }
    free(f->pool.name);
    (void)snprintf(command, sizeof command, "rm -rf '%s'", f->dir);
    CHECK_INT(system(command), 0);
    prt_log_set_sink(NULL);
}

static void finish(struct fixture *f)
{
    prt_policies_worker_stop(f->ps, 0);
    finish_lanes(f);
}

/* ---- asking ---- */

static struct prt_answer ask_route(struct fixture *f, const char *tenant)
{
    struct prt_answer a = {0};
    struct prt_req_view rq = {.tenant = prt_str_of(tenant),
                              .user = PRT_STR("user"),
                              .database = PRT_STR("app"),
                              .now = (double)hand_clock_us / 1e6};

    f->ops->route(f->ops, 0, &rq, &a);
    return a;
}

static const char *route_of(struct fixture *f, const char *tenant)
{
    f->answer = ask_route(f, tenant);
    return f->answer.verdict == PRT_ANSWER_TO ? f->answer.name : "(no name)";
}

static struct prt_answer ask_admit(struct fixture *f, const char *tenant)
{
    struct prt_answer a = {0};
    char name[] = "some partition";
    struct prt_req_view rq = {.tenant = prt_str_of(tenant), .user = PRT_STR("user")};
    struct prt_part_view part = {.name = {name, sizeof name - 1}, .active = 1, .max = 2};

    f->ops->admit(f->ops, 0, &rq, &part, &a);
    return a;
}

static struct fixture *info_for;
static struct prt_policy_info info_found;

static void note_info(void *arg, const struct prt_policy_info *info)
{
    struct fixture *f = arg;

    info_found = *info;
    (void)snprintf(f->state, sizeof f->state, "%s", info->state);
    (void)snprintf(f->sha, sizeof f->sha, "%s", info->sha256);
    (void)snprintf(f->name, sizeof f->name, "%s %s %s %s %s", info->name, info->version,
                   info->policy, info->pools, info->hooks);
    (void)snprintf(f->last_error, sizeof f->last_error, "%s",
                   info->last_error ? info->last_error : "");
    info_found.state = f->state;
    info_found.last_error = info->last_error ? f->last_error : NULL;
}

/* Of the last policy in the chain. */
static struct prt_policy_info info_of(struct fixture *f)
{
    info_for = f;
    prt_policies_each(f->ps, note_info, f);
    return info_found;
}

static struct prt_seat *seat_of(struct fixture *f)
{
    return &f->ps->rows->lane[0].chain->unit[0]->seat[0];
}
#endif
