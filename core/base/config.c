/* config.c - the life and the look-ups of a loaded configuration.
 * Owns: a configuration from its first reference to its last.   Threads: any; it never changes.
 * Idea: the loader allocates every string and array by itself, and this frees all of them; what
 * may hold a secret is overwritten first. A half-filled configuration (a load that failed) goes the
 * same way, so every pointer may be NULL. */
#include "base/config.h"

#include <stdlib.h>
#include <string.h>

struct prt_config *prt_config_ref(struct prt_config *c)
{
    /* relaxed: whoever passes `c` on holds a reference already */
    atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
    return c;
}

static void free_secret(char *z)
{
    if (z) {
        prt_secret_wipe(z, strlen(z));
        free(z);
    }
}

static void fini_address(struct prt_address *a)
{
    free(a->host);
    free(a->text);
}

static void free_users(struct prt_user_config *users, int n)
{
    for (int i = 0; users && i < n; i++) {
        free(users[i].name);
        free_secret(users[i].secret);
    }
    free(users);
}

static void free_policies(struct prt_policy_config *policies, int n)
{
    for (int i = 0; policies && i < n; i++) {
        free(policies[i].name);
        free_secret(policies[i].config); /* its settings may hold a token */
        free(policies[i].where);
    }
    free(policies);
}

static void free_partitions(struct prt_partition_config *partitions, int n)
{
    for (int i = 0; partitions && i < n; i++) {
        free(partitions[i].name);
        free(partitions[i].match);
    }
    free(partitions);
}

static void fini_pool(struct prt_pool_config *p)
{
    free(p->name);
    free_secret(p->target); /* a conninfo may hold a password */
    free(p->user);
    free_secret(p->password);
    free(p->tenant.pattern);
    free_policies(p->policies, p->n_policies);
    free_partitions(p->partitions, p->n_partitions);
}

static void fini_embedded(struct prt_embedded_config *e)
{
    free(e->dir);
    free(e->run_dir);
    free(e->database);
    free_users(e->users, e->n_users);
}

static void config_free(struct prt_config *c)
{
    for (int i = 0; c->listen && i < c->n_listen; i++) {
        fini_address(&c->listen[i]);
    }
    free(c->listen);
    fini_address(&c->admin_listen);
    free_secret(c->admin_token);
    free_users(c->users, c->n_users);
    free(c->tls_cert);
    free(c->tls_key);
    for (int i = 0; c->policy_path && i < c->n_policy_path; i++) {
        free(c->policy_path[i]);
    }
    free(c->policy_path);
    for (int i = 0; c->pools && i < c->n_pools; i++) {
        fini_pool(&c->pools[i]);
    }
    free(c->pools);
    fini_embedded(&c->embedded);
    free(c->path);
    free(c->dir);
    free(c);
}

void prt_config_unref(struct prt_config *c)
{
    /* acq_rel pairs with itself: all uses of the others come before the last one frees */
    if (c && atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) == 1) {
        config_free(c);
    }
}

/* as strcmp orders, which the rows are sorted by */
static int compare(struct prt_str a, struct prt_str b)
{
    size_t n = a.n < b.n ? a.n : b.n;
    int order = n ? memcmp(a.p, b.p, n) : 0;

    return order ? order : (a.n > b.n) - (a.n < b.n);
}

/* The pool rows and the user rows begin with their name. */
static_assert(offsetof(struct prt_pool_config, name) == 0, "looked up by its first member");
static_assert(offsetof(struct prt_user_config, name) == 0, "looked up by its first member");

static const void *row_of(const void *rows, int n, size_t size, struct prt_str name)
{
    size_t from = 0, to = n > 0 ? (size_t)n : 0;

    while (from < to) {
        size_t middle = from + (to - from) / 2;
        const void *row = (const char *)rows + middle * size;
        int order = compare(name, prt_str_of(*(char *const *)row));
        if (order == 0) {
            return row;
        }
        if (order < 0) {
            to = middle;
        } else {
            from = middle + 1;
        }
    }
    return NULL;
}

const struct prt_pool_config *prt_config_pool(const struct prt_config *c, struct prt_str database)
{
    const size_t size = sizeof(struct prt_pool_config);
    const struct prt_pool_config *own = row_of(c->pools, c->n_pools, size, database);

    return own ? own : row_of(c->pools, c->n_pools, size, PRT_STR("*"));
}

const struct prt_user_config *prt_config_user(const struct prt_config *c, struct prt_str name)
{
    return row_of(c->users, c->n_users, sizeof(struct prt_user_config), name);
}
