/* config.c - config.lua becomes a struct prt_config.
 * Owns: the Lua state of one load, and the configuration until it is handed over.
 * Threads: any, one load at a time.
 * Idea: Lua (lua/poolrt/config.lua) runs the file, checks it and words the errors; what comes back
 * is complete and checked, and is only copied here. Both sides know the settings from settings.def:
 * the rows go to Lua as a table, the copying is made of the same rows. A limit on memory stands
 * below everything, for the one step that Lua's own limits cannot foresee. */
#include "luahost/luahost.h"

#include <errno.h>
#include <lauxlib.h>
#include <limits.h>
#include <lua.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MEMORY_MAX ((size_t)256 << 20)

/* ---- what Lua is told: rows, names, files ---- */

struct row {
    const char *scope, *name, *type;
    int64_t fallback, min, max;
    const char *reload, *help;
};
static const struct row rows[] = {
#define POOL(name, type, fallback, min, max, reload, help)                                         \
    {"pool", #name, #type, fallback, min, max, #reload, help},
#define TOP(name, type, fallback, min, max, reload, help)                                          \
    {"top", #name, #type, fallback, min, max, #reload, help},
#include "base/settings.def"
};

/* names[i] stands for the enum's value i */
struct choice {
    const char *key;
    const char *names[12];
};
static const struct choice choices[] = {
    {"mode", {"session", "transaction", "statement"}},
    {"auth_type", {"trust", "md5", "scram-sha-256"}},
    {"tls_mode", {"disable", "allow", "require"}},
    {"log_level", {"debug", "info", "warn", "error"}},
    {"partition_type", {"tenant", "user", "application", "service", "resource_group"}},
    {"priority", {"low", "normal", "high", "critical"}},
    {"tenant_from", {"none", "database", "application_name", "user"}},
    {"state_rule", {"pin", "reset", "refuse", "off"}},
#define X(id, name) name,
    {"state_kind", {PRT_STATES(X)}},
#undef X
};
static_assert(PRT_MODE_STATEMENT == 2 && PRT_AUTH_SCRAM == 2 && PRT_TLS_REQUIRE == 2, "order");
static_assert(PRT_STATE_OFF == 3 && PRT_STATE_COUNT < 12, "order, and an end of the list");
static_assert(PRT_LOG_ERROR == 3 && PRT_PART_RESOURCE_GROUP == 4 && PRT_TENANT_USER == 3, "order");

static void set_string(lua_State *L, const char *key, const char *value)
{
    lua_pushstring(L, value);
    lua_setfield(L, -2, key);
}

static void push_row(lua_State *L, const struct row *r)
{
    lua_createtable(L, 0, 8);
    set_string(L, "scope", r->scope);
    set_string(L, "name", r->name);
    set_string(L, "type", r->type);
    set_string(L, "reload", r->reload);
    set_string(L, "help", r->help);
    if (strcmp(r->type, "BOOL") == 0) {
        lua_pushboolean(L, r->fallback != 0);
    } else {
        lua_pushnumber(L, (lua_Number)r->fallback);
    }
    lua_setfield(L, -2, "default");
    lua_pushnumber(L, (lua_Number)r->min);
    lua_setfield(L, -2, "min");
    lua_pushnumber(L, (lua_Number)r->max);
    lua_setfield(L, -2, "max");
}

static void push_rows(lua_State *L)
{
    lua_newtable(L);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        push_row(L, &rows[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
}

static void push_choices(lua_State *L)
{
    lua_newtable(L);
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++) {
        lua_newtable(L);
        for (int j = 0; choices[i].names[j]; j++) {
            lua_pushstring(L, choices[i].names[j]);
            lua_rawseti(L, -2, j + 1);
        }
        lua_setfield(L, -2, choices[i].key);
    }
}

/* kind(path): "file", "directory", "other"; or nil and the system's reason */
static int host_kind(lua_State *L)
{
    struct stat st;
    char reason[128];

    if (stat(luaL_checkstring(L, 1), &st) != 0) {
        lua_pushnil(L);
        lua_pushstring(L, strerror_r(errno, reason, sizeof reason));
        return 2;
    }
    lua_pushstring(L, S_ISREG(st.st_mode) ? "file" : S_ISDIR(st.st_mode) ? "directory" : "other");
    return 1;
}

/* The folders of policies that come with the binary: those of an installation, and of a checkout.
 */
static const char *const bundled[] = {
    "/../share/poolrt/policies", "/../policies",
#ifdef PRT_DEBUG
    "/../../policies",    /* build/test/poolrt */
    "/../../../policies", /* build/test/spec/NAME_test */
#endif
};

static void push_bundled(lua_State *L)
{
    char exe[PATH_MAX], path[PATH_MAX + 32], real[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    int count = 0;

    lua_newtable(L);
    exe[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(exe, '/');
    if (!slash) {
        return;
    }
    *slash = '\0';
    for (size_t i = 0; i < sizeof bundled / sizeof *bundled; i++) {
        struct stat st;
        (void)snprintf(path, sizeof path, "%s%s", exe, bundled[i]);
        if (realpath(path, real) && stat(real, &st) == 0 && S_ISDIR(st.st_mode)) {
            lua_pushstring(L, real);
            lua_rawseti(L, -2, ++count);
        }
    }
}

static void push_host(lua_State *L, const char *dir)
{
    lua_newtable(L);
    set_string(L, "dir", dir);
    push_rows(L);
    lua_setfield(L, -2, "rows");
    push_choices(L);
    lua_setfield(L, -2, "enums");
    push_bundled(L);
    lua_setfield(L, -2, "bundled");
    lua_pushinteger(L, PRT_NAME_MAX);
    lua_setfield(L, -2, "name_max");
    lua_pushcfunction(L, host_kind);
    lua_setfield(L, -2, "kind");
}

/* ---- copying: each function reads a field of the table on top of the stack ---- */

static void *array(lua_State *L, int n, size_t size)
{
    void *p = n > 0 ? calloc((size_t)n, size) : NULL;

    if (n > 0 && !p) {
        luaL_error(L, "not enough memory");
    }
    return p;
}

/* The value on top of the stack, which is popped; nil gives NULL. */
static char *take_string(lua_State *L)
{
    size_t n;
    const char *s = lua_tolstring(L, -1, &n);
    char *copy = NULL;

    if (s) {
        prt_assert(!memchr(s, '\0', n)); /* a name cut short would be another name */
        copy = array(L, (int)n + 1, 1);
        memcpy(copy, s, n + 1);
    }
    lua_pop(L, 1);
    return copy;
}

static char *string_field(lua_State *L, const char *key)
{
    lua_getfield(L, -1, key);
    return take_string(L);
}

static int64_t int_field(lua_State *L, const char *key)
{
    lua_getfield(L, -1, key);
    int64_t n = (int64_t)lua_tonumber(L, -1);
    lua_pop(L, 1);
    return n;
}

static bool bool_field(lua_State *L, const char *key)
{
    lua_getfield(L, -1, key);
    bool b = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return b;
}

/* Push the list `key`; its length. */
static int open_list(lua_State *L, const char *key)
{
    lua_getfield(L, -1, key);
    return (int)lua_objlen(L, -1);
}

#define COPY_INT(to, name) (to)->name = int_field(L, #name);
#define COPY_BOOL(to, name) (to)->name = bool_field(L, #name);
#define COPY_TIME(to, name) (to)->name##_us = int_field(L, #name);
#define COPY_TIME0(to, name) (to)->name##_us = int_field(L, #name);
#define COPY_BYTES(to, name) (to)->name##_bytes = int_field(L, #name);

static void copy_pool_settings(lua_State *L, struct prt_pool_config *p)
{
#define POOL(name, type, ...) COPY_##type(p, name)
#include "base/settings.def"
}

static void copy_top_settings(lua_State *L, struct prt_config *c)
{
#define TOP(name, type, ...) COPY_##type(c, name)
#include "base/settings.def"
}

static void copy_address(lua_State *L, struct prt_address *a)
{
    a->is_unix = bool_field(L, "is_unix");
    a->host = string_field(L, "host");
    a->port = (uint16_t)int_field(L, "port");
    a->text = string_field(L, "text");
}

static void copy_users(lua_State *L, struct prt_user_config **users, int *n_users)
{
    int n = open_list(L, "users");

    *users = array(L, n, sizeof **users);
    *n_users = n;
    for (int i = 0; i < n; i++) {
        lua_rawgeti(L, -1, i + 1);
        (*users)[i].name = string_field(L, "name");
        (*users)[i].secret = string_field(L, "secret");
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
}

static void copy_policies(lua_State *L, struct prt_pool_config *p)
{
    int n = open_list(L, "policies");

    p->policies = array(L, n, sizeof *p->policies);
    p->n_policies = n;
    for (int i = 0; i < n; i++) {
        lua_rawgeti(L, -1, i + 1);
        p->policies[i].name = string_field(L, "name");
        p->policies[i].config = string_field(L, "config");
        p->policies[i].where = string_field(L, "where");
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
}

static void copy_partition(lua_State *L, struct prt_partition_config *part)
{
    part->name = string_field(L, "name");
    part->type = (enum prt_partition_type)int_field(L, "type");
    part->match = string_field(L, "match");
    part->max_connections = (int)int_field(L, "max_connections");
    part->min_connections = (int)int_field(L, "min_connections");
    part->max_wait_queue = (int)int_field(L, "max_wait_queue");
    part->priority = (int)int_field(L, "priority");
}

static void copy_partitions(lua_State *L, struct prt_pool_config *p)
{
    int n = open_list(L, "partitions");

    p->partitions = array(L, n, sizeof *p->partitions);
    p->n_partitions = n;
    for (int i = 0; i < n; i++) {
        lua_rawgeti(L, -1, i + 1);
        copy_partition(L, &p->partitions[i]);
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
}

static void copy_session_state(lua_State *L, struct prt_pool_config *p)
{
    lua_getfield(L, -1, "session_state");
    for (int i = 0; i < PRT_STATE_COUNT; i++) {
        lua_rawgeti(L, -1, i + 1);
        p->session_state[i] = (uint8_t)lua_tointeger(L, -1);
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
}

static void copy_pool(lua_State *L, struct prt_pool_config *p)
{
    p->name = string_field(L, "name");
    p->target = string_field(L, "target");
    p->user = string_field(L, "user");
    p->password = string_field(L, "password");
    p->mode = (enum prt_pool_mode)int_field(L, "mode");
    lua_getfield(L, -1, "tenant");
    int64_t from = int_field(L, "from");
    p->tenant.from = from == PRT_TENANT_USER          ? PRT_TENANT_USER
                     : from == PRT_TENANT_APPLICATION ? PRT_TENANT_APPLICATION
                     : from == PRT_TENANT_DATABASE    ? PRT_TENANT_DATABASE
                                                      : PRT_TENANT_NONE;
    p->tenant.pattern = string_field(L, "pattern");
    lua_pop(L, 1);
    copy_session_state(L, p);
    lua_getfield(L, -1, "settings");
    copy_pool_settings(L, p);
    lua_pop(L, 1);
    copy_policies(L, p);
    copy_partitions(L, p);
}

static void copy_lists(lua_State *L, struct prt_config *c)
{
    int n = open_list(L, "listen");
    c->listen = array(L, n, sizeof *c->listen);
    c->n_listen = n;
    for (int i = 0; i < n; i++) {
        lua_rawgeti(L, -1, i + 1);
        copy_address(L, &c->listen[i]);
        lua_pop(L, 1);
    }
    lua_pop(L, 1);

    n = open_list(L, "policy_path");
    c->policy_path = array(L, n, sizeof *c->policy_path);
    c->n_policy_path = n;
    for (int i = 0; i < n; i++) {
        lua_rawgeti(L, -1, i + 1);
        c->policy_path[i] = take_string(L);
    }
    lua_pop(L, 1);

    n = open_list(L, "pools");
    c->pools = array(L, n, sizeof *c->pools);
    c->n_pools = n;
    for (int i = 0; i < n; i++) {
        lua_rawgeti(L, -1, i + 1);
        copy_pool(L, &c->pools[i]);
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
}

static void copy_tables(lua_State *L, struct prt_config *c)
{
    lua_getfield(L, -1, "admin");
    lua_getfield(L, -1, "listen");
    if (lua_istable(L, -1)) {
        copy_address(L, &c->admin_listen);
    }
    lua_pop(L, 1);
    c->admin_token = string_field(L, "token");
    lua_pop(L, 1);

    lua_getfield(L, -1, "auth");
    c->auth_type = (enum prt_auth_type)int_field(L, "type");
    c->login_timeout_us = int_field(L, "login_timeout_us");
    copy_users(L, &c->users, &c->n_users);
    lua_pop(L, 1);

    lua_getfield(L, -1, "tls");
    c->tls_mode = (enum prt_tls_mode)int_field(L, "mode");
    c->tls_cert = string_field(L, "cert");
    c->tls_key = string_field(L, "key");
    lua_pop(L, 1);

    lua_getfield(L, -1, "log");
    c->log_level = (enum prt_log_level)int_field(L, "level");
    c->log_connections = bool_field(L, "connections");
    lua_pop(L, 1);
}

static void copy_embedded(lua_State *L, struct prt_embedded_config *e)
{
    lua_getfield(L, -1, "embedded");
    if (lua_istable(L, -1)) {
        e->dir = string_field(L, "dir");
        e->run_dir = string_field(L, "run_dir");
        e->database = string_field(L, "database");
        copy_users(L, &e->users, &e->n_users);
    }
    lua_pop(L, 1);
}

/* ---- one load ---- */

struct load {
    const char *path;
    struct prt_config *config;
    struct prt_err *err;
    poolrt_rc rc;
    /* the allocator that ours stands in front of, and what was asked of it since */
    lua_Alloc alloc;
    void *alloc_ctx;
    size_t used;
};

/* Refuses what would pass MEMORY_MAX. (What the state held, secrets too, goes back to the kernel
 * with its arena when it is closed.) */
static void *limited_alloc(void *ctx, void *p, size_t old, size_t wanted)
{
    struct load *load = ctx;

    if (wanted > old && (load->used > MEMORY_MAX || wanted - old > MEMORY_MAX - load->used)) {
        return NULL;
    }
    void *q = load->alloc(load->alloc_ctx, p, old, wanted);
    if (q || wanted == 0) {
        size_t freed = old > load->used ? load->used : old;
        load->used = load->used - freed + wanted;
    }
    return q;
}

static int run(lua_State *L)
{
    struct load *load = lua_touserdata(L, 1);

    lua_getglobal(L, "require");
    lua_pushliteral(L, "poolrt.config");
    lua_call(L, 1, 1);
    lua_getfield(L, -1, "load");
    push_host(L, load->config->dir);
    lua_pushstring(L, load->path);
    lua_call(L, 2, 2);
    if (lua_isnil(L, -2)) {
        load->rc = prt_fail(load->err, POOLRT_CONFIG, "%s", lua_tostring(L, -1));
        return 0;
    }
    lua_pop(L, 1);
    lua_getfield(L, -1, "settings");
    copy_top_settings(L, load->config);
    lua_pop(L, 1);
    copy_lists(L, load->config);
    copy_tables(L, load->config);
    copy_embedded(L, &load->config->embedded);
    return 0;
}

/* The folder that relative names start from, without symbolic links in it. */
static char *directory_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *dir = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
    char *real = dir ? realpath(dir, NULL) : NULL;

    if (!real) {
        return dir; /* there is no such folder: reading the file will say so */
    }
    free(dir);
    return real;
}

static struct prt_config *config_new(const char *path)
{
    struct prt_config *c = calloc(1, sizeof *c);

    if (!c) {
        return NULL;
    }
    atomic_init(&c->refs, 1);
    c->path = strdup(path);
    c->dir = directory_of(path);
    if (!c->path || !c->dir) {
        prt_config_unref(c);
        return NULL;
    }
    return c;
}

static poolrt_rc run_in(lua_State *L, struct load *load)
{
    load->alloc = lua_getallocf(L, &load->alloc_ctx);
    lua_setallocf(L, limited_alloc, load);
    int status = lua_cpcall(L, run, load);
    if (status == LUA_ERRMEM) {
        load->rc = prt_fail(load->err, POOLRT_CONFIG, "%s: needs too much memory", load->path);
    } else if (status != 0) {
        const char *why = lua_tostring(L, -1);
        load->rc = prt_fail(load->err, POOLRT_CONFIG, "%s: %s", load->path, why ? why : "error");
    }
    /* LuaJIT frees its arena as a whole only under its own allocator */
    lua_setallocf(L, load->alloc, load->alloc_ctx);
    return load->rc;
}

poolrt_rc prt_config_load(const char *path, struct prt_config **out, struct prt_err *err)
{
    struct load load = {.path = path, .err = err, .rc = POOLRT_OK};
    lua_State *L = prt_lua_new();

    *out = NULL;
    load.config = config_new(path);
    if (!L || !load.config) {
        load.rc = prt_fail(err, POOLRT_NOMEM, "no memory to load %s", path);
    } else {
        load.rc = run_in(L, &load);
    }
    if (L) {
        lua_close(L);
    }
    if (load.rc != POOLRT_OK) {
        prt_config_unref(load.config);
        return load.rc;
    }
    *out = load.config;
    return POOLRT_OK;
}
