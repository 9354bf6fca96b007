/* reload.c - new versions of policies: read, check, build; then everything at once, or nothing.
 * Owns: plans.   Threads: prepare, refresh: the loader's, one at a time; commit: control.
 * Idea: a plan is all that a commit needs, built and tried beforehand, so that commit itself cannot
 * fail: it lays states into seats and chains into rows, and tells the workers. A text is known by
 * its SHA-256, so it does not matter how a file came to change: renamed over, written in place, a
 * symbolic link turned (Kubernetes), a directory replaced. */
#include "luahost/luahost_int.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "pool/pool.h"

struct plan_unit {
    struct prt_unit *unit; /* a reference */
    struct prt_version *version;
    struct prt_inst **inst; /* [lanes]; NULL: the unit stays as it is */
    char seen[PRT_SHA256_HEX];
};
struct plan_row {
    struct prt_row *row;
    struct prt_chain *chain; /* holds references to its units */
};
struct prt_policy_plan {
    struct plan_unit *unit;
    struct plan_row *row;
    int n_units, n_rows;
    char **path; /* NULL: as before */
    int n_path;
};

/* ---- files ---- */

struct text {
    char file[PATH_MAX];
    char *p;
    size_t n;
    bool writable; /* by group or others */
    char sha256[PRT_SHA256_HEX];
};

/* 0, or an errno. */
static int read_fd(int fd, struct text *t)
{
    struct stat st;

    if (fstat(fd, &st)) {
        return errno;
    }
    if (!S_ISREG(st.st_mode)) {
        return S_ISDIR(st.st_mode) ? EISDIR : EINVAL;
    }
    t->writable = (st.st_mode & (S_IWGRP | S_IWOTH)) != 0;
    t->p = malloc(PRT_POLICY_TEXT_MAX + 1);
    if (!t->p) {
        return ENOMEM;
    }
    for (t->n = 0; t->n <= PRT_POLICY_TEXT_MAX;) {
        ssize_t got = read(fd, t->p + t->n, PRT_POLICY_TEXT_MAX + 1 - t->n);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return got < 0 ? errno : 0;
        }
        t->n += (size_t)got;
    }
    return EFBIG;
}

static int read_file(struct text *t)
{
    int fd = open(t->file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0) {
        return errno;
    }
    int bad = read_fd(fd, t);
    (void)close(fd);
    if (bad) {
        free(t->p);
        t->p = NULL;
        return bad;
    }
    prt_sha256_hex(t->p, t->n, t->sha256);
    return 0;
}

static poolrt_rc not_found(const char *name, char *const *path, int n_path, struct prt_err *err)
{
    char folders[300] = "";
    size_t n = 0;

    for (int i = 0; i < n_path; i++) {
        int k = snprintf(folders + n, sizeof folders - n, "%s%s", i ? ", " : "", path[i]);
        if (k < 0 || (size_t)k >= sizeof folders - n) {
            break;
        }
        n += (size_t)k;
    }
    return prt_fail(err, POOLRT_CONFIG, "policy '%.60s' not found: there is no %.60s.lua in %s",
                    name, name, n_path ? folders : "policy_path, which is empty");
}

/* The first folder that has it. The name comes from the configuration, and stays inside a folder.
 */
static poolrt_rc find_text(const char *name, char *const *path, int n_path, struct text *t,
                           struct prt_err *err)
{
    memset(t, 0, sizeof *t);
    if (name[0] == '/' || name[0] == '\0' || strstr(name, "..")) {
        return prt_fail(err, POOLRT_CONFIG,
                        "policy '%.100s': a name such as route/tenant, looked for in policy_path",
                        name);
    }
    for (int i = 0; i < n_path; i++) {
        int k = snprintf(t->file, sizeof t->file, "%s/%s.lua", path[i], name);
        if (k < 0 || (size_t)k >= sizeof t->file) {
            continue;
        }
        int bad = read_file(t);
        if (!bad) {
            return POOLRT_OK;
        }
        if (bad != ENOENT && bad != ENOTDIR) {
            return prt_fail(err, POOLRT_CONFIG, "%s: %s", t->file,
                            bad == EFBIG ? "more than 1 MiB" : strerrordesc_np(bad));
        }
    }
    return not_found(name, path, n_path, err);
}

/* ---- what policies are told about the partitions of their pool ---- */

static bool add_field(struct prt_buf *b, const char *z)
{
    return prt_buf_add(b, z, strlen(z) + 1);
}

static bool add_count(struct prt_buf *b, int n)
{
    char text[16];

    (void)snprintf(text, sizeof text, "%d", n);
    return add_field(b, text);
}

static poolrt_rc write_partitions(const struct prt_pool_config *pool, struct prt_buf *b)
{
    static const char *const types[] = {
        [PRT_PART_TENANT] = "tenant",
        [PRT_PART_USER] = "user",
        [PRT_PART_APPLICATION] = "application",
        [PRT_PART_SERVICE] = "service",
        [PRT_PART_RESOURCE_GROUP] = "resource_group",
    };
    static const char *const priorities[] = {"low", "normal", "high", "critical"};
    bool ok = true;

    for (int i = 0; ok && i < pool->n_partitions; i++) {
        const struct prt_partition_config *p = &pool->partitions[i];
        bool ranked = p->priority >= PRT_LOW && p->priority <= PRT_CRITICAL;
        ok = add_field(b, p->name) && add_field(b, types[p->type]) &&
             add_field(b, p->match ? p->match : p->name) && add_count(b, p->max_connections) &&
             add_count(b, p->min_connections) &&
             add_field(b, ranked ? priorities[p->priority] : "");
    }
    return ok ? POOLRT_OK : POOLRT_NOMEM;
}

static bool has_partition(const struct prt_version *v, const char *name)
{
    const char *at = v->partitions, *end = at + v->partitions_n;

    for (int field = 0; at < end; field++, at += strlen(at) + 1) {
        if (field % 6 == 0 && strcmp(at, name) == 0) {
            return true;
        }
    }
    return strcmp(name, "default") == 0;
}

/* ---- building ---- */

static poolrt_rc check_constant(const struct prt_unit *u, const struct prt_version *v,
                                struct prt_err *err)
{
    const struct prt_answer *a = &v->constant[PRT_H_ROUTE];

    if (!(v->in_c & PRT_HOOK_ROUTE) || a->verdict != PRT_ANSWER_TO || has_partition(v, a->name)) {
        return POOLRT_OK;
    }
    return prt_fail(err, POOLRT_CONFIG, "%s: route = \"%s\" is no partition of pool %s", v->file,
                    a->name, u->row->name);
}

static void plan_unit_fini(struct plan_unit *pu, unsigned lanes)
{
    for (unsigned lane = 0; pu->inst && lane < lanes; lane++) {
        prt_inst_free(pu->inst[lane]);
    }
    free(pu->inst);
    prt_version_unref(pu->version);
    if (pu->unit) {
        prt_unit_unref(pu->unit);
    }
    memset(pu, 0, sizeof *pu);
}

/* Check the text and build a state for each worker. Takes a reference of its own to u. */
static poolrt_rc build_unit(struct prt_guard *g, struct prt_unit *u, const char *file,
                            struct prt_str text, struct prt_str partitions, struct plan_unit *pu,
                            struct prt_err *err)
{
    const struct prt_source src = {u->policy, u->settings, u->where, u->row->name, &u->log_limit};
    poolrt_rc rc;

    pu->version = prt_version_new(file, text, partitions);
    pu->inst = calloc(u->ps->lanes, sizeof(struct prt_inst *));
    if (!pu->version || !pu->inst) {
        rc = prt_fail(err, POOLRT_NOMEM, "no memory for policy %s", u->policy);
        goto fail;
    }
    rc = prt_version_check(g, &src, pu->version, err);
    if (rc == POOLRT_OK) {
        rc = check_constant(u, pu->version, err);
    }
    for (unsigned lane = 0; rc == POOLRT_OK && lane < u->ps->lanes; lane++) {
        rc = prt_inst_new(g, &src, pu->version, lane, true, &pu->inst[lane], err);
    }
    if (rc == POOLRT_OK) {
        (void)pthread_mutex_lock(&u->ps->mu);
        u->refs++;
        pu->unit = u;
        (void)pthread_mutex_unlock(&u->ps->mu);
        return POOLRT_OK;
    }
fail:
    plan_unit_fini(pu, u->ps->lanes);
    return rc;
}

static void warn_writable(struct prt_unit *u, const struct text *t)
{
    if (t->writable && !u->warned_writable) {
        u->warned_writable = true;
        prt_log(PRT_LOG_WARN, "policy_writable", prt_kv_z("file", t->file),
                prt_kv_z("error", "others than its owner may change it; use chmod go-w"));
    }
}

/* ---- plans ---- */

static void chain_free(struct prt_chain *c)
{
    for (int i = 0; c && i < c->n; i++) {
        prt_unit_unref(c->unit[i]);
    }
    free(c);
}

static void plan_free(struct prt_policies *ps, struct prt_policy_plan *plan)
{
    if (!plan) {
        return;
    }
    for (int i = 0; i < plan->n_units; i++) {
        plan_unit_fini(&plan->unit[i], ps->lanes);
    }
    for (int i = 0; i < plan->n_rows; i++) {
        chain_free(plan->row[i].chain);
    }
    for (int i = 0; i < plan->n_path; i++) {
        free(plan->path[i]);
    }
    free(plan->path), free(plan->unit), free(plan->row);
    free(plan);
}

void prt_policies_abandon(struct prt_policies *ps, struct prt_policy_plan *plan)
{
    plan_free(ps, plan);
}

static struct prt_policy_plan *plan_new(size_t units, size_t rows, size_t paths)
{
    struct prt_policy_plan *plan = calloc(1, sizeof *plan);

    if (!plan) {
        return NULL;
    }
    plan->unit = calloc(units + 1, sizeof *plan->unit);
    plan->row = calloc(rows + 1, sizeof *plan->row);
    plan->path = calloc(paths + 1, sizeof *plan->path);
    if (!plan->unit || !plan->row || !plan->path) {
        plan_free(NULL, plan);
        return NULL;
    }
    return plan;
}

/* The loader's own guard: what no instruction limit sees, such as a pattern that backtracks. */
static void loader_begins(struct prt_policies *ps, struct prt_guard *g)
{
    memset(g, 0, sizeof *g);
    prt_policies_reap(ps);
    if (prt_guard_start(g)) {
        prt_log(PRT_LOG_ERROR, "policy_guard_off", prt_kv_z("error", "no timer for the loader"));
    }
}

/* ---- prepare: a configuration ---- */

/* A unit of the row that already serves these settings and is not yet in the new chain. */
static struct prt_unit *unit_in_use(struct prt_policies *ps, struct prt_row *row,
                                    const struct prt_policy_config *pc,
                                    const struct prt_chain *taken)
{
    struct prt_unit *found = NULL;

    (void)pthread_mutex_lock(&ps->mu);
    for (int i = 0; !found && row->chain && i < row->chain->n; i++) {
        struct prt_unit *u = row->chain->unit[i];
        bool same = strcmp(u->policy, pc->name) == 0 &&
                    strcmp(u->settings, pc->config ? pc->config : "return {}") == 0;
        for (int k = 0; same && k < taken->n; k++) {
            same = taken->unit[k] != u;
        }
        found = same ? u : NULL;
    }
    if (found) {
        found->refs++;
    }
    (void)pthread_mutex_unlock(&ps->mu);
    return found;
}

enum loaded { LOADED_NOT, LOADED_SAME, LOADED_OTHER_PARTITIONS, LOADED_ROLLED_BACK };

/* How what serves now compares with the text of the file; *v is a reference to it. */
static enum loaded compare(struct prt_unit *u, const struct text *t, struct prt_str partitions,
                           struct prt_version **v)
{
    enum loaded how = LOADED_NOT;

    *v = NULL;
    (void)pthread_mutex_lock(&u->ps->mu);
    if (u->version) {
        bool text = strcmp(u->version->sha256, t->sha256) == 0;
        bool back = !text && strcmp(u->disabled, t->sha256) == 0;
        bool parts = prt_str_eq((struct prt_str){u->version->partitions, u->version->partitions_n},
                                partitions);
        how = !text && !back ? LOADED_NOT
              : parts        ? LOADED_SAME
              : text         ? LOADED_OTHER_PARTITIONS
                             : LOADED_ROLLED_BACK;
        *v = prt_version_ref(u->version);
    }
    (void)pthread_mutex_unlock(&u->ps->mu);
    return how;
}

static poolrt_rc prepare_unit(struct prt_guard *g, struct prt_unit *u, const struct prt_config *cfg,
                              struct prt_str partitions, struct prt_policy_plan *plan,
                              struct prt_err *err)
{
    struct plan_unit *pu = &plan->unit[plan->n_units];
    struct prt_version *now;
    struct text t;
    poolrt_rc rc = find_text(u->policy, cfg->policy_path, cfg->n_policy_path, &t, err);

    if (rc) {
        struct prt_err why = *err;
        return u->where[0] ? prt_fail(err, rc, "%.200s: %.280s", u->where, why.text) : rc;
    }
    warn_writable(u, &t);
    enum loaded how = compare(u, &t, partitions, &now);
    if (how == LOADED_ROLLED_BACK) {
        rc = build_unit(g, u, now->file, (struct prt_str){now->text, now->text_n}, partitions, pu,
                        err);
    } else if (how != LOADED_SAME) {
        rc = build_unit(g, u, t.file, (struct prt_str){t.p, t.n}, partitions, pu, err);
    }
    if (rc == POOLRT_OK && how != LOADED_SAME) {
        memcpy(pu->seen, t.sha256, sizeof pu->seen);
        plan->n_units++;
    }
    prt_version_unref(now);
    free(t.p);
    return rc;
}

static bool chains_equal(const struct prt_chain *a, const struct prt_chain *b)
{
    size_t n = a ? (size_t)a->n : 0;

    return n == (b ? (size_t)b->n : 0) &&
           (n == 0 || !memcmp(a->unit, b->unit, n * sizeof(struct prt_unit *)));
}

/* Takes the chain. */
static void plan_chain(struct prt_policies *ps, struct prt_policy_plan *plan, struct prt_row *row,
                       struct prt_chain *chain)
{
    (void)pthread_mutex_lock(&ps->mu);
    bool same = chains_equal(row->chain, chain);
    (void)pthread_mutex_unlock(&ps->mu);
    if (same) {
        chain_free(chain);
        return;
    }
    plan->row[plan->n_rows++] = (struct plan_row){row, chain};
}

static struct prt_chain *chain_new(int n)
{
    struct prt_chain *c = calloc(1, sizeof *c + (size_t)n * sizeof(struct prt_unit *));

    return c;
}

static poolrt_rc prepare_row(struct prt_policies *ps, struct prt_guard *g,
                             const struct prt_config *cfg, const struct prt_pool_config *pool,
                             struct prt_policy_plan *plan, struct prt_err *err)
{
    struct prt_row *row = prt_row_get(ps, pool->name);
    struct prt_chain *chain = chain_new(pool->n_policies);
    struct prt_buf parts = {0};
    poolrt_rc rc = row && chain ? write_partitions(pool, &parts) : POOLRT_NOMEM;

    for (int i = 0; rc == POOLRT_OK && i < pool->n_policies; i++) {
        struct prt_unit *u = unit_in_use(ps, row, &pool->policies[i], chain);
        if (!u && !(u = prt_unit_new(ps, row, &pool->policies[i]))) {
            rc = POOLRT_NOMEM;
            break;
        }
        chain->unit[chain->n++] = u;
        rc = prepare_unit(g, u, cfg,
                          (struct prt_str){(const char *)prt_buf_data(&parts), prt_buf_len(&parts)},
                          plan, err);
    }
    prt_buf_free(&parts);
    if (rc == POOLRT_OK) {
        plan_chain(ps, plan, row, chain);
        return POOLRT_OK;
    }
    chain_free(chain);
    return rc == POOLRT_NOMEM ? prt_fail(err, rc, "no memory for the policies") : rc;
}

static bool is_configured(const struct prt_config *cfg, const char *row)
{
    for (int i = 0; i < cfg->n_pools; i++) {
        if (strcmp(cfg->pools[i].name, row) == 0) {
            return true;
        }
    }
    return false;
}

/* Rows that the configuration no longer has lose their policies. */
static poolrt_rc prepare_gone(struct prt_policies *ps, const struct prt_config *cfg,
                              struct prt_policy_plan *plan)
{
    (void)pthread_mutex_lock(&ps->mu);
    struct prt_row *rows = ps->rows;
    (void)pthread_mutex_unlock(&ps->mu);
    for (struct prt_row *row = rows; row; row = row->next) {
        if (is_configured(cfg, row->name)) {
            continue;
        }
        struct prt_chain *none = chain_new(0);
        if (!none) {
            return POOLRT_NOMEM;
        }
        plan_chain(ps, plan, row, none);
    }
    return POOLRT_OK;
}

static struct prt_policy_plan *plan_for(struct prt_policies *ps, const struct prt_config *cfg)
{
    size_t units = 0, rows = (size_t)cfg->n_pools;

    for (int i = 0; i < cfg->n_pools; i++) {
        units += (size_t)cfg->pools[i].n_policies;
    }
    (void)pthread_mutex_lock(&ps->mu);
    for (struct prt_row *row = ps->rows; row; row = row->next) {
        rows++;
    }
    (void)pthread_mutex_unlock(&ps->mu);
    struct prt_policy_plan *plan = plan_new(units, rows, (size_t)cfg->n_policy_path);
    for (int i = 0; plan && i < cfg->n_policy_path; i++) {
        plan->path[i] = strdup(cfg->policy_path[i]);
        if (!plan->path[i]) {
            plan_free(ps, plan);
            return NULL;
        }
        plan->n_path++;
    }
    return plan;
}

poolrt_rc prt_policies_prepare(struct prt_policies *ps, const struct prt_config *cfg,
                               struct prt_policy_plan **out, struct prt_err *err)
{
    struct prt_policy_plan *plan;
    struct prt_err ignored;
    struct prt_guard g;
    poolrt_rc rc = POOLRT_OK;

    *out = NULL;
    err = err ? err : &ignored;
    loader_begins(ps, &g);
    plan = plan_for(ps, cfg);
    if (!plan) {
        rc = prt_fail(err, POOLRT_NOMEM, "no memory for the policies");
    }
    for (int i = 0; rc == POOLRT_OK && i < cfg->n_pools; i++) {
        rc = prepare_row(ps, &g, cfg, &cfg->pools[i], plan, err);
    }
    if (rc == POOLRT_OK && prepare_gone(ps, cfg, plan)) {
        rc = prt_fail(err, POOLRT_NOMEM, "no memory for the policies");
    }
    prt_guard_stop(&g);
    if (rc) {
        plan_free(ps, plan);
        return rc;
    }
    *out = plan;
    return POOLRT_OK;
}

/* ---- refresh: the files ---- */

/* FILE:LINE: text, for the log's own fields. */
static void log_rejected(const struct prt_unit *u, const char *file, const char *text)
{
    size_t n = strlen(file);
    char *end = NULL;
    long line = strncmp(text, file, n) == 0 && text[n] == ':' ? strtol(text + n + 1, &end, 10) : 0;

    prt_log(PRT_LOG_WARN, "policy_rejected", prt_kv_z("policy", u->policy),
            prt_kv_z("pool", u->row->name), prt_kv_z("file", file), prt_kv_int("line", line),
            prt_kv_z("error", text),
            prt_kv_z("serving", "the version before; it stays until the file is right"));
}

/* Has another unit said the same of the same text in this round? */
static bool said_already(struct prt_unit **units, int i, const char *sha256)
{
    for (int k = 0; k < i; k++) {
        if (strcmp(units[k]->policy, units[i]->policy) == 0 &&
            strcmp(units[k]->seen, sha256) == 0) {
            return true;
        }
    }
    return false;
}

/* file NULL: it is gone. */
static void refuse_text(struct prt_unit **units, int i, const char *file, const char *sha256,
                        const char *text)
{
    struct prt_unit *u = units[i];
    bool said = said_already(units, i, sha256);

    (void)pthread_mutex_lock(&u->ps->mu);
    struct prt_version *serving = prt_version_ref(u->version);
    memcpy(u->seen, sha256, sizeof u->seen);
    u->rejected++;
    (void)pthread_mutex_unlock(&u->ps->mu);
    prt_unit_error(u, text);
    if (!said) {
        log_rejected(u, file ? file : serving->file, text);
    }
    prt_version_unref(serving);
}

/* Is there something new to build? Notes a text that went back to what serves. */
static bool is_news(struct prt_unit *u, const struct text *t, struct prt_version **serving)
{
    bool news = false;

    (void)pthread_mutex_lock(&u->ps->mu);
    *serving = prt_version_ref(u->version);
    if (strcmp(u->seen, t->sha256) != 0) {
        news = strcmp(u->version->sha256, t->sha256) != 0 && strcmp(u->disabled, t->sha256) != 0;
        if (!news) {
            memcpy(u->seen, t->sha256, sizeof u->seen);
        }
    }
    (void)pthread_mutex_unlock(&u->ps->mu);
    return news;
}

static void refresh_unit(struct prt_guard *g, struct prt_unit **units, int i, char *const *path,
                         int n_path, struct prt_policy_plan *plan)
{
    static const char gone[PRT_SHA256_HEX] = "";
    struct prt_unit *u = units[i];
    struct plan_unit *pu = &plan->unit[plan->n_units];
    struct prt_version *serving;
    struct prt_err err;
    struct text t;

    if (find_text(u->policy, path, n_path, &t, &err)) {
        if (u->seen[0]) {
            refuse_text(units, i, NULL, gone, err.text);
        }
        return;
    }
    if (is_news(u, &t, &serving)) {
        struct prt_str parts = {serving->partitions, serving->partitions_n};
        warn_writable(u, &t);
        if (build_unit(g, u, t.file, (struct prt_str){t.p, t.n}, parts, pu, &err)) {
            refuse_text(units, i, t.file, t.sha256, err.text);
        } else {
            memcpy(pu->seen, t.sha256, sizeof pu->seen);
            plan->n_units++;
        }
    }
    prt_version_unref(serving);
    free(t.p);
}

poolrt_rc prt_policies_refresh(struct prt_policies *ps, struct prt_policy_plan **out,
                               struct prt_err *err)
{
    struct prt_guard g;
    int n;

    *out = NULL;
    loader_begins(ps, &g);
    struct prt_unit **units = prt_policies_units(ps, &n);
    struct prt_policy_plan *plan = n ? plan_new((size_t)n, 0, 0) : NULL;
    /* the path is replaced by commit only, and plans are committed before the next refresh */
    for (int i = 0; plan && i < n; i++) {
        refresh_unit(&g, units, i, ps->path, ps->n_path, plan);
    }
    prt_guard_stop(&g);
    for (int i = 0; i < n; i++) {
        prt_unit_unref(units[i]);
    }
    free(units);
    if (n && !plan) {
        return prt_fail(err, POOLRT_NOMEM, "no memory for the policies");
    }
    if (plan && plan->n_units == 0) {
        plan_free(ps, plan);
        plan = NULL;
    }
    *out = plan;
    return POOLRT_OK;
}

/* ---- commit ---- */

/* Did the version that goes prove itself? Then it is what a bad successor falls back to. */
static bool was_clean_locked(const struct prt_unit *u)
{
    bool quarantined = false;

    for (unsigned lane = 0; lane < u->ps->lanes; lane++) {
        for (int hook = 0; hook < PRT_HOOKS; hook++) {
            quarantined |=
                atomic_load_explicit(&u->seat[lane].health[hook].quarantined, memory_order_relaxed);
        }
    }
    return !quarantined && u->version_kills == 0 &&
           !atomic_load_explicit(&u->version->disabled, memory_order_relaxed) &&
           prt_policies_clock() - u->since_us >= PRT_CLEAN_US;
}

static void replace_version_locked(struct prt_unit *u, struct prt_version *v)
{
    if (u->version && was_clean_locked(u)) {
        prt_version_unref(u->previous);
        u->previous = u->version;
    } else {
        prt_version_unref(u->version);
    }
    if (u->version) {
        /* relaxed: a counter for people */
        atomic_fetch_add_explicit(&u->swaps, 1, memory_order_relaxed);
    }
    u->version = v;
    u->since_us = prt_policies_clock();
    u->version_kills = 0;
}

static void commit_unit_locked(struct prt_policies *ps, struct plan_unit *pu)
{
    struct prt_unit *u = pu->unit;

    replace_version_locked(u, pu->version);
    pu->version = NULL;
    memcpy(u->seen, pu->seen, sizeof u->seen);
    for (unsigned lane = 0; lane < ps->lanes; lane++) {
        prt_inst_pile_locked(ps, u->seat[lane].next);
        u->seat[lane].next = pu->inst[lane];
        pu->inst[lane] = NULL;
    }
    u->row->generation++;
}

static void commit_row_locked(struct prt_policies *ps, struct plan_row *pr)
{
    prt_chain_drop_locked(ps, pr->row->chain);
    pr->row->chain = pr->chain;
    pr->chain->refs = 1;
    pr->chain = NULL;
    pr->row->generation++;
}

/* After it the plan holds the old path, to be freed with it. */
static void commit_path_locked(struct prt_policies *ps, struct prt_policy_plan *plan)
{
    char **path = ps->path;
    int n = ps->n_path;

    if (plan->n_path) {
        ps->path = plan->path, ps->n_path = plan->n_path;
        plan->path = path, plan->n_path = n;
    }
}

void prt_policies_commit(struct prt_policies *ps, struct prt_policy_plan *plan)
{
    if (!plan) {
        return;
    }
    (void)pthread_mutex_lock(&ps->mu);
    for (int i = 0; i < plan->n_units; i++) {
        commit_unit_locked(ps, &plan->unit[i]);
    }
    for (int i = 0; i < plan->n_rows; i++) {
        commit_row_locked(ps, &plan->row[i]);
    }
    for (struct prt_row *row = ps->rows; row; row = row->next) {
        prt_row_widen_locked(row);
    }
    commit_path_locked(ps, plan);
    (void)pthread_mutex_unlock(&ps->mu);
    for (int i = 0; i < plan->n_units; i++) {
        struct prt_unit *u = plan->unit[i].unit;
        prt_log(PRT_LOG_INFO, "policy_loaded", prt_kv_z("policy", u->policy),
                prt_kv_z("pool", u->row->name), prt_kv_z("sha256", plan->unit[i].seen));
    }
    for (unsigned lane = 0; lane < ps->lanes; lane++) {
        prt_policies_poke(ps, lane);
    }
    plan_free(ps, plan);
}
