/* bind_tables.c - what the REST handlers in Lua may see of the runtime: snapshots as fresh tables.
 * Owns: nothing.   Threads: control.
 * Idea: names are those of the C structs, renaming is the handlers' work. Nothing in Lua holds a
 * pointer of C.
 * Traps: an error in Lua is a long jump, and must not cross a frame of the proxy, the pool or the
 * policies, which may hold a lock. So each callback of theirs enters Lua by lua_cpcall() only, and
 * nothing runs under the pool's mutex but copying into an array. */
#include "admin/bind_int.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- lists ---- */

/* The value on top becomes the last of the list in the registry. */
static void append(lua_State *L, int list_ref)
{
    lua_rawgeti(L, LUA_REGISTRYINDEX, list_ref);
    lua_insert(L, -2);
    lua_rawseti(L, -2, (int)lua_objlen(L, -2) + 1);
    lua_pop(L, 1);
}

static void begin_list(struct prt_bind *b, lua_State *L)
{
    lua_newtable(L);
    lua_rawseti(L, LUA_REGISTRYINDEX, b->list_ref);
}

/* The finished list, or the error that a callback met. */
static int end_list(struct prt_bind *b, lua_State *L, bool failed)
{
    lua_rawgeti(L, LUA_REGISTRYINDEX, b->list_ref);
    lua_pushboolean(L, 0);
    lua_rawseti(L, LUA_REGISTRYINDEX, b->list_ref);
    return failed ? luaL_error(L, "out of memory in a snapshot") : 1;
}

/* ---- histograms ---- */

static const uint32_t bounds_us[] = {
#define BUCKET(us) us,
#include "base/metrics.def"
};
#define N_BOUNDS (sizeof bounds_us / sizeof bounds_us[0])

static void set_hist(lua_State *L, const char *key, const struct prt_hist_sum *h)
{
    static const struct {
        const char *key;
        double q;
    } shares[] = {{"p50", 0.5}, {"p75", 0.75}, {"p90", 0.9}, {"p95", 0.95}, {"p99", 0.99}};

    lua_createtable(L, 0, 9);
    set_num(L, "count", (double)h->count);
    set_num(L, "sum_us", (double)h->sum_us);
    set_num(L, "max_us", (double)h->max_us);
    for (size_t i = 0; i < sizeof shares / sizeof shares[0]; i++) {
        set_num(L, shares[i].key, (double)prt_hist_quantile(h, shares[i].q));
    }
    lua_createtable(L, N_BOUNDS, 0);
    for (size_t i = 0; i < N_BOUNDS; i++) {
        lua_pushnumber(L, (double)prt_hist_upto(h, bounds_us[i]));
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_setfield(L, -2, "upto");
    lua_setfield(L, -2, key);
}

/* ---- pools ---- */

struct parts {
    struct prt_partition_stats *v;
    size_t n, cap;
    bool failed;
};

struct pool_call {
    struct prt_bind *bind;
    lua_State *L;        /* the handler's coroutine */
    struct prt_str only; /* p NULL: all */
    bool failed;
    int64_t now_us;
    /* of the pool at hand */
    const struct prt_proxy_pool_info *info;
    struct prt_pool_stats stats;
    struct parts parts;
};

/* under the pool's mutex; the names live as long as the pool */
static void on_partition(void *arg, const struct prt_partition_stats *s)
{
    struct parts *ps = arg;

    if (ps->n == ps->cap) {
        size_t cap = ps->cap ? ps->cap * 2 : 8;
        void *v = realloc(ps->v, cap * sizeof *ps->v);
        if (!v) {
            ps->failed = true;
            return;
        }
        ps->v = v;
        ps->cap = cap;
    }
    ps->v[ps->n++] = *s;
}

static const char *partition_type(const struct prt_pool_config *cfg, struct prt_str name)
{
    static const char *const names[] = {
        [PRT_PART_TENANT] = "TENANT",
        [PRT_PART_USER] = "USER",
        [PRT_PART_APPLICATION] = "APPLICATION",
        [PRT_PART_SERVICE] = "SERVICE",
        [PRT_PART_RESOURCE_GROUP] = "RESOURCE_GROUP",
    };

    for (int i = 0; i < cfg->n_partitions; i++) {
        if (prt_str_eqz(name, cfg->partitions[i].name)) {
            return names[cfg->partitions[i].type];
        }
    }
    return NULL; /* the implicit one */
}

static void set_partitions(lua_State *L, const struct pool_call *call)
{
    lua_createtable(L, (int)call->parts.n, 0);
    for (size_t i = 0; i < call->parts.n; i++) {
        const struct prt_partition_stats *s = &call->parts.v[i];
        lua_createtable(L, 0, 10);
        set_str(L, "name", s->name);
        set_text(L, "type", partition_type(call->info->cfg, s->name));
        set_num(L, "max_connections", s->lim.max);
        set_num(L, "min_connections", s->lim.min);
        set_num(L, "max_wait_queue", s->lim.max_waiters);
        set_num(L, "active", s->active);
        set_num(L, "waiting", s->waiting);
        set_num(L, "acquired", (double)s->acquired);
        set_num(L, "released", (double)s->released);
        set_num(L, "limit_violations", (double)s->limit_violations);
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_setfield(L, -2, "partitions");
}

static bool routes(const struct prt_pool_config *c)
{
    for (int i = 0; i < c->n_policies; i++) {
        if (strncmp(c->policies[i].name, "route/", 6) == 0) {
            return true;
        }
    }
    return false;
}

static void set_config(lua_State *L, const struct prt_pool_config *c)
{
    lua_newtable(L);
#define SET_INT(name) set_num(L, #name, (double)c->name)
#define SET_BOOL(name) set_bool(L, #name, c->name)
#define SET_TIME(name) set_num(L, #name, (double)c->name##_us / 1e6)
#define SET_TIME0(name) SET_TIME(name)
#define SET_BYTES(name) set_num(L, #name, (double)c->name##_bytes)
#define POOL(name, type, ...) SET_##type(name);
#include "base/settings.def"
    set_bool(L, "enable_partitioning", c->n_partitions > 0 || routes(c));
    lua_setfield(L, -2, "config");
}

static void set_stats(lua_State *L, const struct prt_pool_stats *s)
{
#define NOW(name) set_num(L, #name, s->name)
#define TOTAL(name) set_num(L, #name, (double)s->name)
    NOW(open), NOW(idle), NOW(active), NOW(connecting), NOW(closing), NOW(waiting);
    TOTAL(acquired), TOTAL(released), TOTAL(opened), TOTAL(closed), TOTAL(connect_failed);
    TOTAL(evicted), TOTAL(closed_age_us), TOTAL(queued), TOTAL(served), TOTAL(timed_out);
    TOTAL(cancelled), TOTAL(failed), TOTAL(drained), TOTAL(refused), TOTAL(rejected);
    TOTAL(oldest_wait_us);
    set_hist(L, "wait", &s->wait);
#undef NOW
#undef TOTAL
}

static void set_hours(lua_State *L, const struct prt_proxy_pool_info *info)
{
    lua_createtable(L, 24, 0);
    for (int h = 0; h < 24; h++) {
        lua_pushnumber(L, (double)info->acquisitions_by_hour[h]);
        lua_rawseti(L, -2, h + 1);
    }
    lua_setfield(L, -2, "acquisitions_by_hour");
    lua_createtable(L, 24, 0);
    for (int h = 0; h < 24; h++) {
        double v = info->connections_by_hour[h];
        if (isnan(v)) {
            lua_pushboolean(L, 0); /* not seen; a list has no holes */
        } else {
            lua_pushnumber(L, v);
        }
        lua_rawseti(L, -2, h + 1);
    }
    lua_setfield(L, -2, "connections_by_hour");
}

/* by kind of session state */
static void set_states(lua_State *L, const char *key, const uint64_t count[PRT_STATE_COUNT])
{
#define X(id, name) name,
    static const char *const names[] = {PRT_STATES(X)};
#undef X

    lua_createtable(L, 0, PRT_STATE_COUNT);
    for (int k = 0; k < PRT_STATE_COUNT; k++) {
        set_num(L, names[k], (double)count[k]);
    }
    lua_setfield(L, -2, key);
}

static int push_pool(lua_State *L)
{
    static const char *const modes[] = {"session", "transaction", "statement"};
    struct pool_call *call = lua_touserdata(L, 1);
    const struct prt_proxy_pool_info *info = call->info;

    lua_createtable(L, 0, 56);
    set_text(L, "id", info->id);
    set_text(L, "row", info->cfg->name);
    set_text(L, "target", info->target);
    set_text(L, "mode", modes[info->cfg->mode]);
    set_num(L, "created_at", (double)info->created_at_us / 1e6);
    set_num(L, "clients", (double)info->clients);
    set_num(L, "transactions", (double)info->transactions);
    set_num(L, "queries", (double)info->queries);
    set_num(L, "errors_timeout", (double)info->errors_timeout);
    set_num(L, "errors_closed", (double)info->errors_closed);
    set_num(L, "errors_other", (double)info->errors_other);
    set_num(L, "exhausted", (double)info->exhausted);
    set_num(L, "listeners", (double)info->listeners);
    set_num(L, "listen_channels", (double)info->listen_channels);
    set_num(L, "notifications", (double)info->notifications);
    set_num(L, "listen_gaps", (double)info->listen_gaps);
    set_num(L, "statement_hits", (double)info->statement_hits);
    set_num(L, "statement_misses", (double)info->statement_misses);
    set_num(L, "statement_evictions", (double)info->statement_evictions);
    set_num(L, "parses_saved", (double)info->parses_saved);
    set_num(L, "resets", (double)info->resets);
    set_states(L, "pins", info->pins);
    set_states(L, "pinned", info->pinned);
    set_hist(L, "acquire", &info->acquire);
    set_stats(L, &call->stats);
    set_config(L, info->cfg);
    set_hours(L, info);
    set_partitions(L, call);
    append(L, call->bind->list_ref);
    return 0;
}

static void on_pool(void *arg, const struct prt_proxy_pool_info *info)
{
    struct pool_call *call = arg;

    if (call->failed || (call->only.p && !prt_str_eqz(call->only, info->id))) {
        return;
    }
    call->info = info;
    call->stats = (struct prt_pool_stats){.open = 0};
    call->parts = (struct parts){.n = 0};
    prt_pool_snapshot(info->pool, &call->stats, call->now_us);
    prt_pool_each_partition(info->pool, on_partition, &call->parts);
    call->failed = call->parts.failed || lua_cpcall(call->L, push_pool, call) != 0;
    free(call->parts.v);
}

/* pools([id]) -> list of all, or of the one */
static int lua_pools(lua_State *L)
{
    struct pool_call call = {.bind = bind_of(L), .L = L, .now_us = prt_now_us()};

    prt_assert_control();
    call.only.p = luaL_optlstring(L, 1, NULL, &call.only.n);
    begin_list(call.bind, L);
    prt_proxy_each_pool(call.bind->deps.proxy, on_pool, &call);
    return end_list(call.bind, L, call.failed);
}

/* ---- policies ---- */

struct policy_call {
    struct prt_bind *bind;
    lua_State *L;
    const struct prt_policy_info *info;
    bool failed;
};

static int push_policy(lua_State *L)
{
    struct policy_call *call = lua_touserdata(L, 1);
    const struct prt_policy_info *p = call->info;

    lua_createtable(L, 0, 16);
    set_text(L, "name", p->name);
    set_text(L, "version", p->version);
    set_text(L, "policy", p->policy);
    set_text(L, "file", p->file);
    set_text(L, "sha256", p->sha256);
    set_text(L, "state", p->state);
    set_text(L, "hooks", p->hooks);
    set_text(L, "pools", p->pools);
    set_num(L, "loaded_at", (double)p->loaded_at_us / 1e6);
    set_num(L, "swaps", (double)p->swaps);
    set_num(L, "calls", (double)p->calls);
    set_num(L, "failures", (double)p->failures);
    set_num(L, "kills", (double)p->kills);
    set_num(L, "rejected_versions", (double)p->rejected_versions);
    set_text(L, "last_error", p->last_error);
    if (p->last_error) {
        set_num(L, "last_error_at", (double)p->last_error_at_us / 1e6);
    }
    append(L, call->bind->list_ref);
    return 0;
}

static void on_policy(void *arg, const struct prt_policy_info *info)
{
    struct policy_call *call = arg;

    call->info = info;
    call->failed = call->failed || lua_cpcall(call->L, push_policy, call) != 0;
}

static int lua_policies(lua_State *L)
{
    struct policy_call call = {.bind = bind_of(L), .L = L};

    begin_list(call.bind, L);
    prt_policies_each(call.bind->deps.policies, on_policy, &call);
    return end_list(call.bind, L, call.failed);
}

/* trouble() -> names of the policies that refuse clients because they fail; "" when none */
static int lua_trouble(lua_State *L)
{
    char names[512];

    names[0] = '\0';
    prt_policies_trouble(bind_of(L)->deps.policies, names, sizeof names);
    lua_pushstring(L, names);
    return 1;
}

/* ---- the process ---- */

static int lua_process(lua_State *L)
{
    struct prt_bind *b = bind_of(L);
    struct prt_proxy_stats s = {.workers = 0};

    prt_proxy_snapshot(b->deps.proxy, &s);
    lua_createtable(L, 0, 20);
#define SET(name) set_num(L, #name, (double)s.name)
    SET(clients), SET(clients_waiting), SET(clients_active), SET(accepted), SET(logins);
    SET(login_failures), SET(transactions), SET(queries), SET(bytes_from_clients);
    SET(bytes_to_clients), SET(cancels_received), SET(cancels_forwarded);
    SET(protocol_violations), SET(workers);
#undef SET
    set_num(L, "admin_requests", (double)b->requests);
    set_num(L, "admin_auth_failures", (double)b->access->failures);
    lua_createtable(L, 0, PRT_GONE_COUNT);
    for (int i = 0; i < PRT_GONE_COUNT; i++) {
        set_num(L, prt_disconnect_name((enum prt_disconnect)i), (double)s.disconnects[i]);
    }
    lua_setfield(L, -2, "disconnects");
    return 1;
}

/* now() -> seconds since 1970, monotonic seconds */
static int lua_now(lua_State *L)
{
    lua_pushnumber(L, (double)prt_wall_us() / 1e6);
    lua_pushnumber(L, (double)prt_now_us() / 1e6);
    return 2;
}

/* ---- what does not change ---- */

static void set_metrics(lua_State *L)
{
    static const struct {
        const char *name, *type, *labels, *help;
    } rows[] = {
#define METRIC(name, type, labels, help) {#name, #type, labels, help},
#include "base/metrics.def"
    };

    lua_newtable(L);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        lua_newtable(L);
        set_text(L, "name", rows[i].name);
        set_text(L, "type", rows[i].type);
        set_text(L, "labels", rows[i].labels);
        set_text(L, "help", rows[i].help);
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_setfield(L, -2, "metrics");
    lua_newtable(L);
    for (size_t i = 0; i < N_BOUNDS; i++) {
        lua_pushnumber(L, bounds_us[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_setfield(L, -2, "bounds_us");
}

/* base/error.c by name: errors.not_found = {status = 404, text = "..."} */
static void set_errors(lua_State *L)
{
    lua_newtable(L);
    for (int rc = POOLRT_TIMEOUT; rc >= POOLRT_IO; rc--) {
        const struct prt_error_row *row = prt_error_row((poolrt_rc)rc);
        lua_newtable(L);
        set_num(L, "status", row->http);
        set_text(L, "text", row->text);
        lua_setfield(L, -2, row->code);
    }
    lua_setfield(L, -2, "errors");
}

/* ---- all of it ---- */

void prt_bind_tables(lua_State *L, struct prt_bind *b)
{
    static const luaL_Reg functions[] = {
        {"pools", lua_pools},     {"policies", lua_policies}, {"trouble", lua_trouble},
        {"process", lua_process}, {"now", lua_now},
    };

    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        lua_pushlightuserdata(L, b);
        lua_pushcclosure(L, functions[i].func, 1);
        lua_setfield(L, -2, functions[i].name);
    }
    set_text(L, "version", PRT_VERSION);
    set_num(L, "started_at", (double)b->deps.started_at_us / 1e6);
    set_metrics(L);
    set_errors(L);
}
