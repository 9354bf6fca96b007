/* welcome.c - the lines that `make run` ends with: how to connect, what to look at, what to edit.
 * Owns: nothing.   Threads: control.
 * Idea: only a configuration with its own PostgreSQL is a demonstration, so only that one talks to
 * standard output. A secret is shown when it is the word "demo" and never otherwise. */
#include "daemon.h"

#include <stdio.h>
#include <string.h>

#define USERS_SHOWN 2
#define DEMO "demo"

static bool is_demo(const char *secret)
{
    return secret && strcmp(secret, DEMO) == 0;
}

/* where a client on this machine connects to */
static const char *reach(const struct prt_address *a)
{
    return strcmp(a->host, "*") == 0 ? "127.0.0.1" : a->host;
}

/* the database to ask for: a row of its own, before the one for all others */
static const char *database_of(const struct prt_config *cfg)
{
    for (int i = 0; i < cfg->n_pools; i++) {
        if (strcmp(cfg->pools[i].name, "*") != 0) {
            return cfg->pools[i].name;
        }
    }
    return cfg->embedded.database;
}

static void show_psql(const struct prt_config *cfg)
{
    const struct prt_address *a = &cfg->listen[0];

    for (int i = 0; i < cfg->embedded.n_users && i < USERS_SHOWN; i++) {
        const struct prt_user_config *u = &cfg->embedded.users[i];
        bool demo = is_demo(u->secret);
        printf("  %-12s psql \"host=%s port=%u dbname=%s user=%s%s\"\n", i ? "" : "connect",
               reach(a), a->port, database_of(cfg), u->name, demo ? " password=" DEMO : "");
    }
}

static void show_rest(const struct prt_config *cfg)
{
    const struct prt_address *a = &cfg->admin_listen;
    const char *open = a->host && strchr(a->host, ':') ? "[" : "";
    const char *close = *open ? "]" : "";

    if (!a->host || a->is_unix) {
        return;
    }
    printf("  %-12s curl -H \"Authorization: Bearer %s\" http://%s%s%s:%u/api/v1/pools\n", "look",
           is_demo(cfg->admin_token) ? DEMO : "$TOKEN", open, reach(a), close, a->port);
    printf("  %-12s curl http://%s%s%s:%u/metrics\n", "", open, reach(a), close, a->port);
}

static void show_policy(void *arg, const struct prt_policy_info *p)
{
    bool *is_first = arg;

    printf("  %-12s %s\n", *is_first ? "edit" : "", p->file);
    *is_first = false;
}

void prt_welcome(const struct prt_config *cfg, struct prt_policies *policies)
{
    bool is_first = true;

    if (!cfg->embedded.dir || !cfg->n_listen) {
        return;
    }
    printf("\npoolrt %s serves %s\n\n", PRT_VERSION, cfg->path);
    show_psql(cfg);
    show_rest(cfg);
    prt_policies_each(policies, show_policy, &is_first);
    printf("  %-12s %s\n", is_first ? "edit" : "", cfg->path);
    printf("  %-12s a saved file is in use at once; a broken one is refused and named here\n", "");
    printf("  %-12s Ctrl-C\n\n", "stop");
    (void)fflush(stdout);
}
