/* report.c - what people are told about the policies: for REST, /health and the file watcher.
 * Owns: nothing.   Threads: any.
 * Idea: references are taken under ps->mu and let go afterwards, so that a slow listener holds up
 * nobody. */
#include "luahost/luahost_int.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void add_word(char *text, size_t cap, const char *sep, const char *word)
{
    size_t n = strlen(text);

    (void)snprintf(text + n, cap - n, "%s%s", n ? sep : "", word);
}

static bool is_quarantined(const struct prt_unit *u, int hook)
{
    for (unsigned lane = 0; lane < u->ps->lanes; lane++) {
        /* relaxed: a look */
        if (atomic_load_explicit(&u->seat[lane].health[hook].quarantined, memory_order_relaxed)) {
            return true;
        }
    }
    return false;
}

static const char *state_name(const struct prt_unit *u, const struct prt_version *v)
{
    if (atomic_load_explicit(&v->disabled, memory_order_relaxed)) {
        return "disabled";
    }
    for (int hook = 0; hook < PRT_HOOKS; hook++) {
        if (is_quarantined(u, hook)) {
            return "quarantined";
        }
    }
    return "active";
}

static void add_counters(const struct prt_unit *u, struct prt_policy_info *info)
{
    for (unsigned lane = 0; lane < u->ps->lanes; lane++) {
        for (int hook = 0; hook < PRT_HOOKS; hook++) {
            const struct prt_health *h = &u->seat[lane].health[hook];
            /* relaxed: counters of one moment may be a little apart */
            info->calls += atomic_load_explicit(&h->calls, memory_order_relaxed);
            info->failures += atomic_load_explicit(&h->failures, memory_order_relaxed);
        }
    }
    info->kills = atomic_load_explicit(&u->kills, memory_order_relaxed);
    info->swaps = atomic_load_explicit(&u->swaps, memory_order_relaxed);
}

static struct prt_version *version_of(struct prt_unit *u, uint64_t *rejected)
{
    (void)pthread_mutex_lock(&u->ps->mu);
    struct prt_version *v = prt_version_ref(u->version);
    *rejected = u->rejected;
    (void)pthread_mutex_unlock(&u->ps->mu);
    return v;
}

static void show(struct prt_unit *u, void (*f)(void *arg, const struct prt_policy_info *),
                 void *arg)
{
    struct prt_policy_info info = {.policy = u->policy, .pools = u->row->name};
    struct prt_version *v = version_of(u, &info.rejected_versions);
    char error[sizeof u->last_error], hooks[100] = "";

    for (int hook = 0; hook < PRT_HOOKS; hook++) {
        if (v->hooks & 1u << hook) {
            add_word(hooks, sizeof hooks, " ", prt_hook_name(hook));
        }
    }
    (void)pthread_mutex_lock(&u->error_mu);
    memcpy(error, u->last_error, sizeof error);
    info.last_error_at_us = u->last_error_at_us;
    (void)pthread_mutex_unlock(&u->error_mu);
    info.last_error = info.last_error_at_us ? error : NULL;
    info.name = v->name, info.version = v->version;
    info.file = v->file, info.sha256 = v->sha256;
    info.loaded_at_us = v->loaded_at_us;
    info.hooks = hooks;
    info.state = state_name(u, v);
    add_counters(u, &info);
    f(arg, &info);
    prt_version_unref(v);
}

void prt_policies_each(struct prt_policies *ps,
                       void (*f)(void *arg, const struct prt_policy_info *), void *arg)
{
    int n;
    struct prt_unit **units = prt_policies_units(ps, &n);

    for (int i = 0; i < n; i++) {
        show(units[i], f, arg);
        prt_unit_unref(units[i]);
    }
    free(units);
}

void prt_policies_trouble(struct prt_policies *ps, char *names, size_t cap)
{
    int n;
    struct prt_unit **units = prt_policies_units(ps, &n);
    uint64_t unused;

    names[0] = '\0';
    for (int i = 0; i < n; i++) {
        struct prt_version *v = version_of(units[i], &unused);
        bool off = atomic_load_explicit(&v->disabled, memory_order_relaxed) ||
                   is_quarantined(units[i], PRT_H_ROUTE);
        if (off && v->hooks & PRT_HOOK_ROUTE && v->on_fail[PRT_H_ROUTE] == PRT_FAIL_REJECT) {
            add_word(names, cap, ", ", units[i]->policy);
        }
        prt_version_unref(v);
        prt_unit_unref(units[i]);
    }
    free(units);
}

/* ---- directories ---- */

struct dirs {
    char **dir;
    size_t n, cap;
};

static void add_dir(struct dirs *d, const char *path, size_t n)
{
    for (size_t i = 0; i < d->n; i++) {
        if (strlen(d->dir[i]) == n && memcmp(d->dir[i], path, n) == 0) {
            return;
        }
    }
    if (d->n == d->cap) {
        size_t cap = d->cap ? 2 * d->cap : 16;
        char **more = realloc(d->dir, cap * sizeof *more);
        if (!more) {
            return;
        }
        d->dir = more, d->cap = cap;
    }
    d->dir[d->n] = strndup(path, n);
    d->n += d->dir[d->n] != NULL;
}

static void add_folder_of(struct dirs *d, const char *file)
{
    const char *slash = strrchr(file, '/');

    if (slash) {
        add_dir(d, file, (size_t)(slash - file));
    }
}

/* Where the file is, where it really is (a symbolic link may be turned), and where it may appear.
 */
static void add_unit(struct dirs *d, struct prt_unit *u, char *const *path, int n_path)
{
    char file[PATH_MAX];
    uint64_t unused;
    struct prt_version *v = version_of(u, &unused);

    add_folder_of(d, v->file);
    if (realpath(v->file, file)) {
        add_folder_of(d, file);
    }
    for (int i = 0; i < n_path; i++) {
        int n = snprintf(file, sizeof file, "%s/%s", path[i], u->policy);
        if (n > 0 && (size_t)n < sizeof file) {
            add_folder_of(d, file);
        }
    }
    prt_version_unref(v);
}

static char **copy_path(struct prt_policies *ps, int *n)
{
    (void)pthread_mutex_lock(&ps->mu);
    char **copy = ps->n_path ? calloc((size_t)ps->n_path, sizeof *copy) : NULL;
    for (*n = 0; copy && *n < ps->n_path; ++*n) {
        copy[*n] = strdup(ps->path[*n]);
        if (!copy[*n]) {
            break;
        }
    }
    (void)pthread_mutex_unlock(&ps->mu);
    return copy;
}

void prt_policies_each_dir(struct prt_policies *ps, void (*f)(void *arg, const char *dir),
                           void *arg)
{
    struct dirs d = {0};
    int n, n_path;
    char **path = copy_path(ps, &n_path);
    struct prt_unit **units = prt_policies_units(ps, &n);

    for (int i = 0; i < n_path; i++) {
        add_dir(&d, path[i], strlen(path[i]));
    }
    for (int i = 0; i < n; i++) {
        add_unit(&d, units[i], path, n_path);
        prt_unit_unref(units[i]);
    }
    for (size_t i = 0; i < d.n; i++) {
        f(arg, d.dir[i]);
        free(d.dir[i]);
    }
    for (int i = 0; i < n_path; i++) {
        free(path[i]);
    }
    free(d.dir), free(units), free(path);
}
