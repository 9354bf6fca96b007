/* bind_int.h - the Lua state behind the handlers, as the three files of bind share it. */
#ifndef PRT_BIND_INT_H
#define PRT_BIND_INT_H
#include "admin/admin_int.h"
#include "base/log.h"

#include <lauxlib.h>
#include <lua.h>

struct prt_bind {
    lua_State *lua;
    struct prt_admin_deps deps;
    const struct prt_access *access;
    const struct prt_bind_ops *ops;
    uint64_t requests;
    struct prt_link calls;       /* that wait, or whose visit is still on its way */
    struct prt_bind_call *asked; /* by the handler that runs */
    /* in the registry */
    int handle_ref, tick_ref;
    int list_ref;  /* the list that a callback below appends to */
    int reply_ref; /* what the last reply's strings live in */
};

static inline struct prt_bind *bind_of(lua_State *L)
{
    return lua_touserdata(L, lua_upvalueindex(1));
}

static inline void set_num(lua_State *L, const char *key, double v)
{
    lua_pushnumber(L, v);
    lua_setfield(L, -2, key);
}

static inline void set_bool(lua_State *L, const char *key, bool v)
{
    lua_pushboolean(L, v);
    lua_setfield(L, -2, key);
}

static inline void set_str(lua_State *L, const char *key, struct prt_str s)
{
    lua_pushlstring(L, s.p ? s.p : "", s.n);
    lua_setfield(L, -2, key);
}

/* absent when NULL */
static inline void set_text(lua_State *L, const char *key, const char *z)
{
    if (z) {
        set_str(L, key, prt_str_of(z));
    }
}

/* ---- bind_tables.c ---- */
/** Add the snapshots, and what does not change, to the table on top. */
void prt_bind_tables(lua_State *L, struct prt_bind *b) ON_CONTROL;

/* ---- bind_visit.c: clients and connections, one by one, and their ends ---- */
/** The query in the table at `at`. Errors are the caller's: a bug. */
void prt_bind_visit_read(lua_State *L, int at, struct prt_visit *v) ON_CONTROL;
/** Leaves the answer on the stack, as a table. */
void prt_bind_visit_push(lua_State *L, const struct prt_visit *v) ON_CONTROL;
/** The line in the log for one that was to be ended. is_late: no worker has said what happened. */
void prt_bind_visit_audit(const struct prt_visit *v, const char *peer, bool is_late) ON_CONTROL;
#endif
