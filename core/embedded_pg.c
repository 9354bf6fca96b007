/* embedded_pg.c - the life of the embedded PostgreSQL: start, answer, die, start again, stop.
 * Owns: the process and its place.   Threads: control.
 *
 *            spawn            it answers
 *   DOWN ------------> UP  ---------------- (the proxy may use it)
 *     ^                 |
 *     |   it died       |      stop: SIGINT, and SIGQUIT if that takes too long
 *     +-----------------+--------------------------------------------> GONE
 *   a timer tries again, after 100 ms, 200 ms, ... 10 s
 *
 * Idea: it is told to end by the kernel when we die (embedded_spawn.c), and what an earlier one
 * left behind is waited for, then cleared, so that every start works. Only processes that work in
 * the data directory count as left behind: a number in postmaster.pid may belong to anybody by now.
 */
#include "embedded_int.h"

#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ANSWER_SECONDS 30
#define LEFTOVER_SECONDS 30
#define RETRY_MIN_MS 100
#define RETRY_MAX_MS 10000
#define HEALTHY_US 30000000 /* one that lived so long starts the pauses anew */
#define FAST_STOP_MS 4000
#define HARD_STOP_MS 2000
#define OWN_CONNECTIONS 20    /* beside the pools': superusers, psql, autovacuum's spare */
#define MOST_CONNECTIONS 8000 /* more would cost PostgreSQL memory that nobody uses */
#define LOG_NAME "server.log"

enum state { PG_DOWN, PG_UP, PG_GONE };

struct prt_embedded {
    struct prt_pg_place place; /* set at creation, as all down to loop */
    int connections;
    char connections_arg[40];
    uv_loop_t *loop;
    enum state state;
    pid_t pid; /* while UP */
    int64_t started_us;
    unsigned pause_ms; /* before the next try */
    uv_signal_t on_child;
    uv_timer_t retry;
    int open_handles;
};

static int connections_for(const struct prt_config *cfg)
{
    int64_t sum = OWN_CONNECTIONS;

    for (int i = 0; i < cfg->n_pools && sum < MOST_CONNECTIONS; i++) {
        sum += cfg->pools[i].max_size;
    }
    return (int)(sum < MOST_CONNECTIONS ? sum : MOST_CONNECTIONS);
}

static void nap(void)
{
    (void)nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
}

/* ---- start ---- */

static poolrt_rc spawn(struct prt_embedded *e, struct prt_err *err)
{
    const char *const args[] = {"-D", "@DIR",
                                "-c", "listen_addresses=",
                                "-c", "unix_socket_directories=@RUN",
                                "-c", "unix_socket_permissions=0700",
                                "-c", "port=5432",
                                "-c", e->connections_arg,
                                "-c", "logging_collector=off",
                                "-c", "log_destination=stderr",
                                NULL};
    struct prt_pg_spawn s = {.place = &e->place,
                             .program = "postgres",
                             .log = LOG_NAME,
                             .log_dir_fd = e->place.dir_fd,
                             .dir_fd = e->place.dir_fd,
                             .dir = e->place.dir,
                             .args = args};

    prt_pg_place_tidy(&e->place);
    poolrt_rc rc = prt_pg_spawn(&s, &e->pid, err);
    if (!rc) {
        e->state = PG_UP;
        e->started_us = prt_now_us();
    }
    return rc;
}

/* An earlier runtime that was killed took its PostgreSQL with it; that takes a moment. */
static poolrt_rc await_leftovers(struct prt_embedded *e, struct prt_err *err)
{
    int64_t end = prt_now_us() + LEFTOVER_SECONDS * 1000000LL;
    pid_t pid;

    while (prt_pg_place_users(&e->place, &pid) > 0) {
        if (prt_now_us() > end) {
            return prt_fail(err, POOLRT_CONFIG,
                            "postgres.embedded: another PostgreSQL, process %d, works on %s: stop "
                            "it first",
                            (int)pid, e->place.dir);
        }
        nap();
    }
    return POOLRT_OK;
}

/* true: it has ended, and *status says how */
static bool reap(struct prt_embedded *e, int *status)
{
    if (e->state != PG_UP || waitpid(e->pid, status, WNOHANG) != e->pid) {
        return false;
    }
    e->state = PG_DOWN;
    return true;
}

static poolrt_rc await_answer(struct prt_embedded *e, struct prt_err *err)
{
    int64_t end = prt_now_us() + ANSWER_SECONDS * 1000000LL;
    char how[48] = "does not answer", tail[300];
    int status;

    while (prt_now_us() < end) {
        if (reap(e, &status)) {
            prt_pg_status_text(status, how, sizeof how);
            break;
        }
        if (prt_pg_answers(&e->place)) {
            return POOLRT_OK;
        }
        nap();
    }
    prt_pg_place_tail(&e->place, e->place.dir_fd, LOG_NAME, tail, sizeof tail);
    return prt_fail(err, POOLRT_CONNECT_FAILED, "the embedded PostgreSQL %s; its last words: %s",
                    how, *tail ? tail : "(none)");
}

/* One log per start of the runtime, the one before kept beside it. */
static void turn_log(struct prt_embedded *e)
{
    (void)renameat(e->place.dir_fd, LOG_NAME, e->place.dir_fd, LOG_NAME ".1");
}

static poolrt_rc bring_up(struct prt_embedded *e, const struct prt_embedded_config *cfg,
                          struct prt_err *err)
{
    poolrt_rc rc = await_leftovers(e, err);

    if (rc) {
        return rc;
    }
    turn_log(e);
    rc = spawn(e, err);
    rc = rc ? rc : await_answer(e, err);
    return rc ? rc : prt_pg_roles(&e->place, cfg, err);
}

/* ---- while it runs ---- */

static void try_again(uv_timer_t *t);

static void schedule(struct prt_embedded *e)
{
    (void)uv_timer_start(&e->retry, try_again, e->pause_ms, 0);
    e->pause_ms = e->pause_ms * 2 < RETRY_MAX_MS ? e->pause_ms * 2 : RETRY_MAX_MS;
}

static void try_again(uv_timer_t *t)
{
    struct prt_embedded *e = t->data;
    struct prt_err err;
    pid_t pid;

    prt_assert_control();
    if (prt_pg_place_users(&e->place, &pid) > 0) {
        schedule(e); /* its children are still leaving */
    } else if (spawn(e, &err)) {
        prt_log(PRT_LOG_ERROR, "postgres_start_failed", prt_kv_z("error", err.text));
        schedule(e);
    } else {
        prt_log(PRT_LOG_INFO, "postgres_started", prt_kv_int("pid", e->pid));
    }
}

static void on_child(uv_signal_t *h, int signo)
{
    struct prt_embedded *e = h->data;
    char how[48], tail[300];
    int status;

    prt_assert_control();
    if (!reap(e, &status)) {
        return;
    }
    if (prt_now_us() - e->started_us > HEALTHY_US) {
        e->pause_ms = RETRY_MIN_MS;
    }
    prt_pg_status_text(status, how, sizeof how);
    prt_pg_place_tail(&e->place, e->place.dir_fd, LOG_NAME, tail, sizeof tail);
    prt_log(PRT_LOG_ERROR, "postgres_died", prt_kv_int("pid", e->pid), prt_kv_z("how", how),
            prt_kv_int("again_in_ms", e->pause_ms), prt_kv_z("log", tail));
    schedule(e);
}

bool prt_embedded_differs(const struct prt_embedded *e, const struct prt_config *cfg)
{
    const char *dir = cfg->embedded.dir;

    if (!e || !dir) {
        return (e != NULL) != (dir != NULL);
    }
    return strcmp(e->place.dir, dir) != 0 || strcmp(e->place.run_dir, cfg->embedded.run_dir) != 0 ||
           connections_for(cfg) > e->connections;
}

/* ---- birth and end ---- */

static void handle_closed(uv_handle_t *h)
{
    struct prt_embedded *e = h->data;

    e->open_handles--;
}

static poolrt_rc watch_child(struct prt_embedded *e, struct prt_err *err)
{
    int rc = uv_timer_init(e->loop, &e->retry);

    e->retry.data = e;
    e->open_handles = rc ? 0 : 1;
    if (!rc) {
        rc = uv_signal_init(e->loop, &e->on_child);
        e->on_child.data = e;
        e->open_handles += rc ? 0 : 1;
    }
    rc = rc ? rc : uv_signal_start(&e->on_child, on_child, SIGCHLD);
    return rc ? prt_fail(err, POOLRT_IO, "cannot watch PostgreSQL: %s", uv_strerror(rc))
              : POOLRT_OK;
}

poolrt_rc prt_embedded_start(struct prt_embedded **out, uv_loop_t *loop,
                             const struct prt_config *cfg, struct prt_err *err)
{
    struct prt_embedded *e;
    poolrt_rc rc;

    *out = NULL;
    if (!cfg->embedded.dir) {
        return POOLRT_OK;
    }
    e = calloc(1, sizeof *e);
    if (!e) {
        return prt_fail(err, POOLRT_NOMEM, "no memory for postgres.embedded");
    }
    e->loop = loop;
    e->pause_ms = RETRY_MIN_MS;
    e->connections = connections_for(cfg);
    (void)snprintf(e->connections_arg, sizeof e->connections_arg, "max_connections=%d",
                   e->connections);
    rc = prt_pg_place_open(&e->place, &cfg->embedded, err);
    if (rc) {
        free(e);
        return rc;
    }
    rc = bring_up(e, &cfg->embedded, err);
    rc = rc ? rc : watch_child(e, err);
    if (rc) {
        prt_embedded_stop(e);
        return rc;
    }
    prt_log(PRT_LOG_INFO, "postgres_started", prt_kv_int("pid", e->pid),
            prt_kv_z("dir", e->place.dir), prt_kv_int("max_connections", e->connections));
    *out = e;
    return POOLRT_OK;
}

static bool ends_within(struct prt_embedded *e, int ms)
{
    int64_t end = prt_now_us() + ms * 1000LL;
    int status;

    while (!reap(e, &status)) {
        if (prt_now_us() > end) {
            return false;
        }
        nap();
    }
    return true;
}

/* SIGINT: clients are disconnected, then a checkpoint. SIGQUIT: at once, the next start recovers.
 */
static void end_process(struct prt_embedded *e)
{
    if (e->state != PG_UP) {
        return;
    }
    (void)kill(e->pid, SIGINT);
    if (ends_within(e, FAST_STOP_MS)) {
        return;
    }
    (void)kill(e->pid, SIGQUIT);
    if (!ends_within(e, HARD_STOP_MS)) {
        (void)kill(e->pid, SIGKILL);
        (void)waitpid(e->pid, NULL, 0);
    }
}

static void close_handles(struct prt_embedded *e)
{
    if (e->open_handles >= 1) {
        uv_close((uv_handle_t *)&e->retry, handle_closed);
    }
    if (e->open_handles >= 2) {
        uv_close((uv_handle_t *)&e->on_child, handle_closed);
    }
    while (e->open_handles > 0) {
        (void)uv_run(e->loop, UV_RUN_NOWAIT);
    }
}

void prt_embedded_stop(struct prt_embedded *e)
{
    if (!e) {
        return;
    }
    end_process(e);
    e->state = PG_GONE;
    close_handles(e);
    prt_pg_place_close(&e->place);
    free(e);
}
