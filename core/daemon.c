/* daemon.c - the order in which everything starts and stops, signals, and reload.
 * Owns: all parts of the runtime; the control thread, which is the one that called.
 *
 *   addresses bound -> PostgreSQL of its own answers -> workers serve -> READY
 *        serving --TERM, INT--> draining --empty, out of time, second signal--> stopped
 *
 * Idea: addresses come first, since an occupied port is the mistake that is made most and must not
 * cost the start of a database. Parts are stopped in the reverse order of their start, and each
 * knows how to be stopped half-started, so every failure of the start takes the same way out. Until
 * the loop runs, TERM and INT have their ordinary effect: there is nobody yet to be gentle with. */
#include "daemon.h"

#include "admin/admin.h"
#include "base/log.h"
#include "embedded_pg.h"
#include "link/link.h"
#include "loader.h"
#include "proxy/proxy.h"
#include "watch.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define TICK_MS 100
#define DRAIN_TICK_MS 20
#define OWN_DESCRIPTORS 100 /* beside those of clients and servers */
#define WORKERS_MAX 64
#define N_SIGNALS 4

struct daemon {
    const char *file;
    uv_loop_t loop;
    bool has_loop;
    struct prt_config *cfg;       /* in use */
    struct prt_config *first_cfg; /* what needs a restart is measured against it */
    struct prt_policies *policies;
    struct prt_connector *connector;
    struct prt_proxy_hooks hooks;
    struct prt_proxy *proxy;
    struct prt_admin *admin;
    struct prt_embedded *embedded;
    struct prt_loader *loader;
    struct prt_watch *watch;
    uv_timer_t tick;
    uv_signal_t signal[N_SIGNALS];
    int open_handles;     /* tick and signals */
    sigset_t mask_before; /* of signals, as we were started */
    bool is_draining;
    int64_t drain_until_us;
};

/* ---- hooks of the proxy: its workers turn the policies ---- */

static void worker_start(void *ctx, unsigned lane)
{
    prt_assert_worker();
    prt_policies_worker_start(((struct daemon *)ctx)->policies, lane);
}

static void worker_turn(void *ctx, unsigned lane)
{
    prt_assert_worker();
    prt_policies_turn(((struct daemon *)ctx)->policies, lane);
}

static void worker_stop(void *ctx, unsigned lane)
{
    prt_assert_worker();
    prt_policies_worker_stop(((struct daemon *)ctx)->policies, lane);
}

static struct prt_policy_ops *bind_policies(void *ctx, const char *row)
{
    return prt_policies_bind(((struct daemon *)ctx)->policies, row);
}

static void unbind_policies(void *ctx, struct prt_policy_ops *ops)
{
    prt_policies_unbind(((struct daemon *)ctx)->policies, ops);
}

static void wake_worker(void *ctx, unsigned lane)
{
    struct daemon *d = ctx;

    if (d->proxy) { /* the first versions are there before the workers */
        prt_proxy_wake(d->proxy, lane);
    }
}

/* ---- limits of the process ---- */

static int64_t descriptors_for(const struct prt_config *cfg)
{
    int64_t n = cfg->max_clients + OWN_DESCRIPTORS;

    for (int i = 0; i < cfg->n_pools; i++) {
        n += cfg->pools[i].max_size;
    }
    return n;
}

static void raise_descriptors(const struct prt_config *cfg)
{
    struct rlimit limit;
    int64_t wanted = descriptors_for(cfg);

    if (getrlimit(RLIMIT_NOFILE, &limit)) {
        return;
    }
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_max != RLIM_INFINITY && (int64_t)limit.rlim_max < wanted) {
        prt_log(PRT_LOG_WARN, "few_descriptors", prt_kv_int("limit", (int64_t)limit.rlim_max),
                prt_kv_int("wanted", wanted), prt_kv_int("max_clients", cfg->max_clients),
                prt_kv_z("hint", "raise the hard limit of open files (ulimit -Hn, LimitNOFILE), or "
                                 "lower max_clients or max_size"));
    }
}

static unsigned workers_of(const struct prt_config *cfg)
{
    unsigned n = cfg->workers ? (unsigned)cfg->workers : uv_available_parallelism();

    return n < WORKERS_MAX ? n : WORKERS_MAX;
}

/* ---- reload ---- */

static void add_word(char *list, size_t cap, const char *word)
{
    size_t n = strlen(list);

    (void)snprintf(list + n, cap - n, "%s%s", n ? "," : "", word);
}

static bool is_same_text(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

/* what the proxy does not know of */
static void add_restarts(struct daemon *d, const struct prt_config *cfg, char *list,
                         size_t cap) ON_CONTROL
{
    if (!is_same_text(d->first_cfg->admin_listen.text, cfg->admin_listen.text)) {
        add_word(list, cap, "admin.listen");
    }
    if (d->first_cfg->connector_threads != cfg->connector_threads) {
        add_word(list, cap, "connector_threads");
    }
    if (prt_embedded_differs(d->embedded, cfg)) {
        add_word(list, cap, "postgres.embedded");
    }
}

static void reload_failed(struct daemon *d, const struct prt_load *load, const struct prt_err *err)
{
    prt_log(PRT_LOG_ERROR, "reload_failed", prt_kv_z("file", d->file), prt_kv_z("error", err->text),
            prt_kv_z("kept", load->is_config ? "the configuration as it was"
                                             : "the policies as they were"));
}

/* Takes load->cfg and load->plan. */
static bool apply_config(struct daemon *d, struct prt_load *load) ON_CONTROL
{
    char restart[256] = "";
    struct prt_err err = {0};

    if (prt_proxy_apply(d->proxy, load->cfg, restart, sizeof restart, &err)) {
        reload_failed(d, load, &err);
        prt_policies_abandon(d->policies, load->plan);
        prt_config_unref(load->cfg);
        return false;
    }
    if (load->plan) {
        prt_policies_commit(d->policies, load->plan);
    }
    if (d->admin) {
        prt_admin_apply(d->admin, load->cfg);
    }
    add_restarts(d, load->cfg, restart, sizeof restart);
    prt_log_set_level(load->cfg->log_level);
    prt_config_unref(d->cfg);
    d->cfg = load->cfg;
    prt_log(*restart ? PRT_LOG_WARN : PRT_LOG_INFO, "reloaded", prt_kv_z("file", d->file),
            prt_kv_int("ms", load->took_us / 1000),
            prt_kv_z("needs_restart", *restart ? restart : "nothing"));
    return true;
}

static void loaded(void *ctx, struct prt_load *load)
{
    struct daemon *d = ctx;
    bool found = load->is_config;

    prt_assert_control();
    if (d->is_draining) { /* too late to change anything */
        prt_policies_abandon(d->policies, load->plan);
        prt_config_unref(load->cfg);
        return;
    }
    if (load->rc) {
        reload_failed(d, load, &load->err);
    } else if (load->is_config) {
        (void)apply_config(d, load);
    } else if (load->plan) {
        prt_policies_commit(d->policies, load->plan);
        prt_log(PRT_LOG_INFO, "policies_reloaded", prt_kv_int("ms", load->took_us / 1000));
        found = true;
    }
    prt_watch_looked(d->watch, found);
    if (load->is_config) {
        prt_notify("READY=1");
    }
}

static void files_changed(void *ctx)
{
    struct daemon *d = ctx;

    prt_assert_control();
    if (!d->is_draining) {
        prt_loader_ask(d->loader, false);
    }
}

static void each_dir(void *ctx, void (*f)(void *arg, const char *dir), void *arg)
{
    struct daemon *d = ctx;

    f(arg, d->cfg->dir);
    prt_policies_each_dir(d->policies, f, arg);
}

/* ---- signals and time ---- */

static void tell_reloading(void)
{
    char text[64];

    (void)snprintf(text, sizeof text, "RELOADING=1\nMONOTONIC_USEC=%lld", (long long)prt_now_us());
    prt_notify(text);
}

static void begin_drain(struct daemon *d, const char *signal_name) ON_CONTROL
{
    d->is_draining = true;
    d->drain_until_us = prt_now_us() + d->cfg->shutdown_timeout_us;
    prt_log(PRT_LOG_INFO, "stopping", prt_kv_z("signal", signal_name),
            prt_kv_int("at_most_ms", d->cfg->shutdown_timeout_us / 1000));
    prt_notify("STOPPING=1");
    prt_proxy_drain(d->proxy);
    (void)uv_timer_set_repeat(&d->tick, DRAIN_TICK_MS);
    (void)uv_timer_again(&d->tick);
}

static void on_signal(uv_signal_t *h, int signo)
{
    struct daemon *d = h->data;

    prt_assert_control();
    if (signo == SIGHUP) {
        if (!d->is_draining) {
            tell_reloading();
            prt_loader_ask(d->loader, true);
        }
    } else if (d->is_draining || signo == SIGQUIT) {
        prt_log(PRT_LOG_WARN, "stopping_at_once", prt_kv_int("signal", signo));
        uv_stop(&d->loop);
    } else {
        begin_drain(d, signo == SIGTERM ? "TERM" : "INT");
    }
}

static void on_tick(uv_timer_t *t)
{
    struct daemon *d = t->data;
    int64_t now = prt_now_us();

    prt_assert_control();
    prt_proxy_tick(d->proxy, now);
    if (d->is_draining && (prt_proxy_is_empty(d->proxy) || now >= d->drain_until_us)) {
        uv_stop(&d->loop);
    }
}

static void handle_closed(uv_handle_t *h)
{
    ((struct daemon *)h->data)->open_handles--;
}

static poolrt_rc listen_to_signals(struct daemon *d, struct prt_err *err)
{
    static const int numbers[N_SIGNALS] = {SIGHUP, SIGTERM, SIGINT, SIGQUIT};
    int rc = uv_timer_init(&d->loop, &d->tick);

    d->tick.data = d;
    d->open_handles = 1; /* a timer cannot fail */
    for (int i = 0; i < N_SIGNALS && !rc; i++) {
        rc = uv_signal_init(&d->loop, &d->signal[i]);
        if (!rc) {
            d->signal[i].data = d;
            d->open_handles++;
            rc = uv_signal_start(&d->signal[i], on_signal, numbers[i]);
        }
    }
    rc = rc ? rc : uv_timer_start(&d->tick, on_tick, TICK_MS, TICK_MS);
    return rc ? prt_fail(err, POOLRT_IO, "cannot listen to signals: %s", uv_strerror(rc))
              : POOLRT_OK;
}

static void close_signals(struct daemon *d)
{
    int signals = d->open_handles - 1;

    if (d->open_handles) {
        uv_close((uv_handle_t *)&d->tick, handle_closed);
    }
    for (int i = 0; i < signals; i++) {
        uv_close((uv_handle_t *)&d->signal[i], handle_closed);
    }
    while (d->open_handles > 0) {
        (void)uv_run(&d->loop, UV_RUN_NOWAIT);
    }
}

/* ---- start ---- */

static poolrt_rc load_first(struct daemon *d, struct prt_err *err) ON_CONTROL
{
    struct prt_policy_plan *plan = NULL;
    poolrt_rc rc = prt_config_load(d->file, &d->cfg, err);

    if (rc) {
        d->cfg = NULL;
        return rc;
    }
    d->first_cfg = prt_config_ref(d->cfg);
    prt_log_set_level(d->cfg->log_level);
    rc = prt_policies_new(&d->policies, workers_of(d->cfg), wake_worker, d, err);
    rc = rc ? rc : prt_policies_prepare(d->policies, d->cfg, &plan, err);
    if (!rc && plan) {
        prt_policies_commit(d->policies, plan);
    }
    return rc;
}

/* The one long wait of a start; Ctrl-C ends it. */
static poolrt_rc start_embedded(struct daemon *d, struct prt_err *err) ON_CONTROL
{
    sigset_t blocked;

    (void)pthread_sigmask(SIG_SETMASK, &d->mask_before, &blocked);
    poolrt_rc rc = prt_embedded_start(&d->embedded, &d->loop, d->cfg, err);
    (void)pthread_sigmask(SIG_SETMASK, &blocked, NULL);
    return rc;
}

static poolrt_rc start_serving(struct daemon *d, struct prt_err *err) ON_CONTROL
{
    struct prt_admin_deps deps = {.policies = d->policies, .started_at_us = prt_wall_us()};
    poolrt_rc rc = prt_connector_start(&d->connector, (int)d->cfg->connector_threads, err);

    d->hooks = (struct prt_proxy_hooks){.ctx = d,
                                        .worker_start = worker_start,
                                        .worker_turn = worker_turn,
                                        .worker_stop = worker_stop,
                                        .bind = bind_policies,
                                        .unbind = unbind_policies};
    rc = rc ? rc
            : prt_proxy_new(&d->proxy, d->cfg, workers_of(d->cfg), d->connector, &d->hooks, err);
    deps.proxy = d->proxy;
    rc = rc ? rc : prt_admin_start(&d->admin, &d->loop, d->cfg, &deps, err);
    rc = rc ? rc : start_embedded(d, err);
    return rc ? rc : prt_proxy_start(d->proxy, err);
}

static poolrt_rc start_watching(struct daemon *d, const char seen[PRT_SHA256_HEX],
                                struct prt_err *err) ON_CONTROL
{
    struct prt_watch_ops ops = {.ctx = d, .each_dir = each_dir, .changed = files_changed};
    poolrt_rc rc =
        prt_loader_start(&d->loader, &d->loop, d->policies, d->file, seen, loaded, d, err);

    rc = rc ? rc : prt_watch_start(&d->watch, &d->loop, d->file, &ops, err);
    return rc ? rc : listen_to_signals(d, err);
}

static poolrt_rc start(struct daemon *d, struct prt_err *err) ON_CONTROL
{
    char seen[PRT_SHA256_HEX];
    int bad = uv_loop_init(&d->loop);

    if (bad) {
        return prt_fail(err, POOLRT_IO, "cannot start: %s", uv_strerror(bad));
    }
    d->has_loop = true;
    prt_loader_hash(d->file, seen); /* before it is read: a change in between is found */
    poolrt_rc rc = load_first(d, err);
    if (rc) {
        return rc;
    }
    raise_descriptors(d->cfg);
    rc = start_serving(d, err);
    return rc ? rc : start_watching(d, seen, err);
}

static void list_addresses(const struct prt_config *cfg, char *to, size_t cap)
{
    to[0] = '\0';
    for (int i = 0; i < cfg->n_listen; i++) {
        add_word(to, cap, cfg->listen[i].text);
    }
}

static void announce(struct daemon *d)
{
    char listen[512];
    const struct prt_config *cfg = d->cfg;

    list_addresses(cfg, listen, sizeof listen);
    prt_log(PRT_LOG_INFO, "started", prt_kv_z("version", PRT_VERSION), prt_kv_z("file", d->file),
            prt_kv_z("listen", listen),
            prt_kv_z("admin", cfg->admin_listen.host ? cfg->admin_listen.text : "off"),
            prt_kv_int("workers", workers_of(cfg)));
    prt_welcome(cfg, d->policies);
    prt_notify("READY=1");
}

/* ---- stop ---- */

static void stop(struct daemon *d) ON_CONTROL
{
    if (d->has_loop) {
        close_signals(d);
        prt_watch_stop(d->watch);
        prt_loader_stop(d->loader);
    }
    if (d->proxy) {
        prt_proxy_stop(d->proxy);
    }
    prt_admin_stop(d->admin);
    prt_connector_stop(d->connector);
    if (d->proxy) {
        prt_proxy_free(d->proxy);
    }
    prt_policies_free(d->policies);
    prt_embedded_stop(d->embedded);
    prt_config_unref(d->cfg);
    prt_config_unref(d->first_cfg);
    if (d->has_loop) {
        int left = uv_loop_close(&d->loop);
        prt_assert_dbg(left == 0); /* every part closed its handles */
        (void)left;
    }
}

/* Threads that are started from here on take no signals; this one does, once the loop runs. */
static void block_signals(sigset_t *before)
{
    sigset_t ours;

    (void)signal(SIGPIPE, SIG_IGN); /* a peer that left is found by the write's result */
    (void)signal(SIGHUP, SIG_IGN);  /* until it means reload */
    (void)sigemptyset(&ours);
    (void)sigaddset(&ours, SIGHUP);
    (void)sigaddset(&ours, SIGTERM);
    (void)sigaddset(&ours, SIGINT);
    (void)sigaddset(&ours, SIGQUIT);
    (void)sigaddset(&ours, SIGCHLD);
    (void)sigaddset(&ours, SIGUSR1);
    (void)sigaddset(&ours, SIGUSR2);
    (void)pthread_sigmask(SIG_BLOCK, &ours, before);
}

poolrt_rc prt_daemon_run(const char *file, struct prt_err *err)
{
    struct daemon *d = calloc(1, sizeof *d);

    if (!d) {
        return prt_fail(err, POOLRT_NOMEM, "no memory to start");
    }
    prt_thread_is(PRT_THREAD_CONTROL, 0);
    prt_assert_control();
    block_signals(&d->mask_before);
    d->file = file;
    poolrt_rc rc = start(d, err);
    (void)pthread_sigmask(SIG_SETMASK, &d->mask_before, NULL);
    if (!rc) {
        announce(d);
        (void)uv_run(&d->loop, UV_RUN_DEFAULT);
    }
    stop(d);
    if (!rc) {
        prt_log(PRT_LOG_INFO, "stopped", prt_kv_z("file", file));
    }
    free(d);
    return rc;
}
