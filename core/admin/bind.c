/* bind.c - what the REST handlers in Lua may see: snapshots of C as fresh tables.
 * Owns: the control thread's Lua state.   Threads: control.
 * Idea: rest.lua gets one table `source`, whose functions answer with plain values; names there are
 * those of the C structs, renaming is the handlers' work. Nothing in Lua holds a pointer of C.
 * Traps: an error in Lua is a long jump, and must not cross a frame of the proxy, the pool or the
 * policies, which may hold a lock. So each callback of theirs enters Lua by lua_cpcall() only, and
 * nothing runs under the pool's mutex but copying into an array. */
#include "admin/admin_int.h"

#include <lauxlib.h>
#include <lua.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct prt_bind {
    lua_State *lua;
    struct prt_admin_deps deps;
    const struct prt_access *access;
    uint64_t requests;
    /* in the registry */
    int handle_ref, tick_ref;
    int list_ref;  /* the list that a callback below appends to */
    int reply_ref; /* what the last reply's strings live in */
};

/* ---- small words ---- */

static struct prt_bind *bind_of(lua_State *L)
{
    return lua_touserdata(L, lua_upvalueindex(1));
}

static void set_num(lua_State *L, const char *key, double v)
{
    lua_pushnumber(L, v);
    lua_setfield(L, -2, key);
}

static void set_bool(lua_State *L, const char *key, bool v)
{
    lua_pushboolean(L, v);
    lua_setfield(L, -2, key);
}

static void set_str(lua_State *L, const char *key, struct prt_str s)
{
    lua_pushlstring(L, s.p ? s.p : "", s.n);
    lua_setfield(L, -2, key);
}

/* absent when NULL */
static void set_text(lua_State *L, const char *key, const char *z)
{
    if (z) {
        set_str(L, key, prt_str_of(z));
    }
}

/* The value on top becomes the last of the list in the registry. */
static void append(lua_State *L, int list_ref)
{
    lua_rawgeti(L, LUA_REGISTRYINDEX, list_ref);
    lua_insert(L, -2);
    lua_rawseti(L, -2, (int)lua_objlen(L, -2) + 1);
    lua_pop(L, 1);
}

static void begin_list(struct prt_bind *b)
{
    lua_newtable(b->lua);
    lua_rawseti(b->lua, LUA_REGISTRYINDEX, b->list_ref);
}

/* The finished list, or the error that a callback met. */
static int end_list(struct prt_bind *b, bool failed)
{
    lua_State *L = b->lua;

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
    call->failed = call->parts.failed || lua_cpcall(call->bind->lua, push_pool, call) != 0;
    free(call->parts.v);
}

/* pools([id]) -> list of all, or of the one */
static int lua_pools(lua_State *L)
{
    struct pool_call call = {.bind = bind_of(L), .now_us = prt_now_us()};

    prt_assert_control();
    call.only.p = luaL_optlstring(L, 1, NULL, &call.only.n);
    begin_list(call.bind);
    prt_proxy_each_pool(call.bind->deps.proxy, on_pool, &call);
    return end_list(call.bind, call.failed);
}

/* ---- policies ---- */

struct policy_call {
    struct prt_bind *bind;
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
    call->failed = call->failed || lua_cpcall(call->bind->lua, push_policy, call) != 0;
}

static int lua_policies(lua_State *L)
{
    struct policy_call call = {.bind = bind_of(L)};

    begin_list(call.bind);
    prt_policies_each(call.bind->deps.policies, on_policy, &call);
    return end_list(call.bind, call.failed);
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

/* ---- start ---- */

static void push_source(lua_State *L, struct prt_bind *b)
{
    static const luaL_Reg functions[] = {
        {"pools", lua_pools},     {"policies", lua_policies}, {"trouble", lua_trouble},
        {"process", lua_process}, {"now", lua_now},
    };

    lua_newtable(L);
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

static int start(lua_State *L)
{
    struct prt_bind *b = lua_touserdata(L, 1);

    lua_pushboolean(L, 0);
    b->list_ref = luaL_ref(L, LUA_REGISTRYINDEX);
    lua_newtable(L);
    b->reply_ref = luaL_ref(L, LUA_REGISTRYINDEX);
    lua_getglobal(L, "require");
    lua_pushliteral(L, "poolrt.rest");
    lua_call(L, 1, 1);
    lua_getfield(L, -1, "new");
    push_source(L, b);
    lua_call(L, 1, 2); /* handle, tick */
    b->tick_ref = luaL_ref(L, LUA_REGISTRYINDEX);
    b->handle_ref = luaL_ref(L, LUA_REGISTRYINDEX);
    return 0;
}

poolrt_rc prt_bind_new(struct prt_bind **out, const struct prt_admin_deps *deps,
                       const struct prt_access *access, struct prt_err *err)
{
    struct prt_bind *b = calloc(1, sizeof *b);

    if (!b || !(b->lua = prt_lua_new())) {
        free(b);
        return prt_fail(err, POOLRT_NOMEM, "no memory for the admin handlers");
    }
    b->deps = *deps;
    b->access = access;
    if (lua_cpcall(b->lua, start, b) != 0) {
        const char *why = lua_tostring(b->lua, -1);
        (void)prt_fail(err, POOLRT_CONFIG, "the admin handlers cannot start: %s", why ? why : "?");
        prt_bind_free(b);
        return POOLRT_CONFIG;
    }
    *out = b;
    return POOLRT_OK;
}

void prt_bind_free(struct prt_bind *b)
{
    if (b) {
        lua_close(b->lua);
        free(b);
    }
}

/* ---- a request ---- */

struct request_call {
    struct prt_bind *bind;
    const struct prt_bind_request *rq;
    struct prt_bind_reply *reply;
};

/* Anchor the string at index `at` as the reply's number n; NULL when it is none. */
static const char *keep(lua_State *L, int at, int reply, int n, size_t *len)
{
    const char *s = lua_type(L, at) == LUA_TSTRING ? lua_tolstring(L, at, len) : NULL;

    lua_pushvalue(L, at);
    lua_rawseti(L, reply, n);
    return s;
}

static void keep_headers(lua_State *L, int headers, int reply, struct prt_bind_reply *r)
{
    int n = 3;

    lua_pushnil(L);
    while (r->n_headers < PRT_BIND_HEADERS && lua_next(L, headers)) {
        int at = lua_gettop(L);
        struct prt_bind_header *h = &r->headers[r->n_headers];
        h->name = keep(L, at - 1, reply, n++, NULL);
        h->value = keep(L, at, reply, n++, NULL);
        if (h->name && h->value) {
            r->n_headers++;
        }
        lua_settop(L, at - 1);
    }
}

static void push_request(lua_State *L, const struct prt_bind_request *rq)
{
    lua_createtable(L, 0, 8);
    set_str(L, "method", rq->method);
    set_str(L, "target", rq->target);
    set_bool(L, "is_admin", rq->is_admin);
    set_bool(L, "is_loopback", rq->is_loopback);
    if (rq->refused.status) {
        set_num(L, "refused", rq->refused.status);
        set_text(L, "code", rq->refused.code);
        set_text(L, "text", rq->refused.text);
    }
}

/* Without its query, where somebody may have put a secret. */
static struct prt_str path_of(struct prt_str target)
{
    const char *end = target.n ? memchr(target.p, '?', target.n) : NULL;

    return end ? (struct prt_str){target.p, (size_t)(end - target.p)} : target;
}

/* handle(request) -> status, type, body[, headers] */
static int call_handle(lua_State *L)
{
    struct request_call *call = lua_touserdata(L, 1);
    struct prt_bind_reply *r = call->reply;

    lua_settop(L, 0);
    lua_newtable(L); /* 1: anchors of this reply; the last one's go */
    lua_pushvalue(L, 1);
    lua_rawseti(L, LUA_REGISTRYINDEX, call->bind->reply_ref);
    lua_rawgeti(L, LUA_REGISTRYINDEX, call->bind->handle_ref);
    push_request(L, call->rq);
    lua_call(L, 1, 4); /* 2..5 */
    r->status = (int)luaL_checkinteger(L, 2);
    r->type = keep(L, 3, 1, 1, NULL);
    r->body.p = keep(L, 4, 1, 2, &r->body.n);
    if (lua_istable(L, 5)) {
        keep_headers(L, 5, 1, r);
    }
    if (r->status < 200 || r->status > 599 || !r->type || !r->body.p) {
        return luaL_error(L, "the handler gave no answer");
    }
    return 0;
}

static bool try_handle(struct prt_bind *b, const struct prt_bind_request *rq,
                       struct prt_bind_reply *reply)
{
    static struct prt_log_limit limit;
    struct request_call call = {b, rq, reply};

    *reply = (struct prt_bind_reply){.status = 0};
    if (lua_cpcall(b->lua, call_handle, &call) == 0) {
        return true;
    }
    prt_log_limited(&limit, PRT_LOG_ERROR, "admin_handler_failed",
                    prt_kv_z("error", lua_tostring(b->lua, -1)),
                    prt_kv_str("path", path_of(rq->target)));
    lua_settop(b->lua, 0);
    return false;
}

void prt_bind_handle(struct prt_bind *b, const struct prt_bind_request *rq,
                     struct prt_bind_reply *reply)
{
    struct prt_bind_request failed = *rq;

    b->requests++;
    if (try_handle(b, rq, reply)) {
        return;
    }
    failed.refused = (struct prt_refusal){500, "internal", "the handler failed; see the log"};
    if (!try_handle(b, &failed, reply)) {
        *reply = (struct prt_bind_reply){
            .status = 500,
            .type = "application/json",
            .body = PRT_STR("{\"error\":{\"code\":\"internal\",\"details\":null,"
                            "\"message\":\"out of memory\"},\"meta\":{},\"success\":false}\n")};
    }
}

static int call_tick(lua_State *L)
{
    struct prt_bind *b = lua_touserdata(L, 1);

    lua_rawgeti(L, LUA_REGISTRYINDEX, b->tick_ref);
    lua_call(L, 0, 0);
    return 0;
}

void prt_bind_tick(struct prt_bind *b)
{
    static struct prt_log_limit limit;

    if (lua_cpcall(b->lua, call_tick, b) != 0) {
        prt_log_limited(&limit, PRT_LOG_ERROR, "admin_tick_failed",
                        prt_kv_z("error", lua_tostring(b->lua, -1)));
        lua_settop(b->lua, 0);
    }
}
