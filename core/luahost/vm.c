/* vm.c - a Lua state with a memory limit, and the functions that policies may call.
 * Owns: nothing but what it is given.   Threads: a state is used by one at a time.
 * Idea: the built-in allocator stays (it is private to the state, which makes the guard's jump
 * safe) and is only counted. Functions of ours that take a lock or write stand between enter_host
 * and leave_host, and call no Lua in between. */
#include "luahost/luahost_int.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

/* abi.h once more, this time as text */
#undef PRT_ABI
#define PRT_ABI(...) const char prt_vm_cdef[] = #__VA_ARGS__;
#include "luahost/abi.h"

static void *counted(void *ud, void *ptr, size_t osize, size_t nsize)
{
    struct prt_vm *vm = ud;

    if (nsize > osize && (vm->used > vm->limit || nsize - osize > vm->limit - vm->used)) {
        return NULL;
    }
    void *p = vm->alloc(vm->alloc_ud, ptr, osize, nsize);
    if (p || nsize == 0) {
        vm->used = vm->used - osize + nsize;
    }
    return p;
}

bool prt_vm_open(struct prt_vm *vm)
{
    lua_State *L = luaL_newstate();

    if (!L) {
        return false;
    }
    vm->L = L;
    vm->alloc = lua_getallocf(L, &vm->alloc_ud);
    vm->used = (size_t)lua_gc(L, LUA_GCCOUNT, 0) * 1024 + (size_t)lua_gc(L, LUA_GCCOUNTB, 0);
    vm->limit = PRT_LUA_HARD_BYTES;
    lua_setallocf(L, counted, vm);
    (void)lua_gc(L, LUA_GCSETPAUSE, 150);
    return true;
}

void prt_vm_close(struct prt_vm *vm)
{
    if (!vm->L) {
        return;
    }
    lua_setallocf(vm->L, vm->alloc, vm->alloc_ud);
    lua_close(vm->L);
    vm->L = NULL;
}

void prt_vm_collect(struct prt_vm *vm)
{
    size_t limit = vm->limit;

    /* shrinking a table allocates the smaller one first; here nobody could catch the error */
    vm->limit = SIZE_MAX / 2;
    (void)lua_gc(vm->L, LUA_GCCOLLECT, 0);
    vm->limit = limit;
}

void prt_vm_raise_at(lua_State *L, lua_Debug *ar, const char *text)
{
    if (lua_getinfo(L, "Sl", ar) && ar->currentline > 0) {
        lua_pushfstring(L, "%s:%d: %s", ar->short_src, ar->currentline, text);
    } else {
        lua_pushstring(L, text);
    }
    (void)lua_error(L);
    abort();
}

/* ---- the Lua sources inside the binary ---- */

static int load_embedded(lua_State *L)
{
    const char *name = luaL_checkstring(L, 1);
    char chunk[64];

    (void)snprintf(chunk, sizeof chunk, "=%s", name);
    for (const struct prt_embedded_file *f = prt_embedded_lua; f->name; f++) {
        if (strcmp(f->name, name) == 0) {
            if (luaL_loadbuffer(L, f->begin, (size_t)(f->end - f->begin), chunk)) {
                return lua_error(L);
            }
            lua_call(L, 0, 1);
            return 1;
        }
    }
    return luaL_error(L, "no module '%s' in this binary", name);
}

void prt_vm_load_policy_module(lua_State *L)
{
    static const char *const modules[] = {"poolrt.sandbox", "poolrt.policy", "poolrt.settings"};

    luaL_openlibs(L);
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "preload");
    for (size_t i = 0; i < sizeof modules / sizeof *modules; i++) {
        lua_pushcfunction(L, load_embedded);
        lua_setfield(L, -2, modules[i]);
    }
    lua_pop(L, 2);
    lua_getglobal(L, "require");
    lua_pushliteral(L, "poolrt.policy");
    lua_call(L, 1, 1);
}

/* ---- what policies may call ---- */

static struct prt_vm *vm_of(lua_State *L)
{
    return lua_touserdata(L, lua_upvalueindex(1));
}

static int write_log(lua_State *L, enum prt_log_level level)
{
    struct prt_vm *vm = vm_of(L);
    struct prt_str text;

    text.p = luaL_checklstring(L, 1, &text.n);
    prt_guard_enter_host();
    prt_log_limited(vm->log_limit, level, "policy_says", prt_kv_z("policy", vm->policy),
                    prt_kv_str("text", text));
    prt_guard_leave_host();
    return 0;
}

static int host_log(lua_State *L)
{
    return write_log(L, PRT_LOG_INFO);
}

static int host_warn(lua_State *L)
{
    return write_log(L, PRT_LOG_WARN);
}

static int host_now(lua_State *L)
{
    lua_pushnumber(L, (double)prt_policies_clock() / 1e6);
    return 1;
}

/* A fixed key: the same number on every worker and after every restart, as a consistent hash wants.
 */
static int host_hash(lua_State *L)
{
    static const uint64_t key[2] = {0x706f6f6c72740001, 0x706f6f6c72740002};
    size_t n;
    const char *p = luaL_checklstring(L, 1, &n);

    lua_pushnumber(L, (double)(prt_siphash(key, p, n) >> 11));
    return 1;
}

static void push_date_fields(lua_State *L, const struct tm *tm)
{
    const struct {
        const char *name;
        int value;
    } field[] = {
        {"year", tm->tm_year + 1900}, {"month", tm->tm_mon + 1}, {"day", tm->tm_mday},
        {"hour", tm->tm_hour},        {"min", tm->tm_min},       {"sec", tm->tm_sec},
        {"wday", tm->tm_wday + 1},    {"yday", tm->tm_yday + 1},
    };

    lua_createtable(L, 0, 9);
    for (size_t i = 0; i < sizeof field / sizeof *field; i++) {
        lua_pushinteger(L, field[i].value);
        lua_setfield(L, -2, field[i].name);
    }
    lua_pushboolean(L, tm->tm_isdst > 0);
    lua_setfield(L, -2, "isdst");
}

/* os.date(format, time): LuaJIT's own takes libc's time zone lock, which the guard's jump would
 * leave locked for the whole process. */
static int host_date(lua_State *L)
{
    const char *format = luaL_optstring(L, 1, "%c");
    double when = luaL_optnumber(L, 2, (double)time(NULL));
    bool utc = format[0] == '!', ok;
    char text[256] = "";
    struct tm tm;
    size_t n = 0;

    luaL_argcheck(L, fabs(when) < 1e14, 2, "not a time");
    format += utc;
    bool as_table = strncmp(format, "*t", 2) == 0;
    time_t t = (time_t)when;
    prt_guard_enter_host();
    ok = (utc ? gmtime_r(&t, &tm) : localtime_r(&t, &tm)) != NULL;
    if (ok && !as_table) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        n = strftime(text, sizeof text, format, &tm); /* writes at most its buffer, reads only tm */
#pragma GCC diagnostic pop
    }
    prt_guard_leave_host();
    luaL_argcheck(L, ok, 2, "not a time");
    if (as_table) {
        push_date_fields(L, &tm);
    } else {
        lua_pushlstring(L, text, n);
    }
    return 1;
}

void prt_vm_push_host(lua_State *L, struct prt_vm *vm)
{
    static const luaL_Reg functions[] = {{"log", host_log},   {"warn", host_warn},
                                         {"now", host_now},   {"hash", host_hash},
                                         {"date", host_date}, {NULL, NULL}};

    lua_createtable(L, 0, 5);
    for (const luaL_Reg *f = functions; f->name; f++) {
        lua_pushlightuserdata(L, vm);
        lua_pushcclosure(L, f->func, 1);
        lua_setfield(L, -2, f->name);
    }
}
