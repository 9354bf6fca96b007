/* bind_visit.c - clients and connections, one by one, for Lua: the query in, the rows out.
 * Owns: nothing.   Threads: control.
 * Idea: the names are those of struct prt_visit and struct prt_row; rest.lua gives them the names
 * of the API. What is not known is absent. */
#include "admin/bind_int.h"

#include <string.h>

static const char *const row_states[] = {
#define X(id, name) [PRT_ROW_##id] = (name),
    PRT_ROW_STATES(X)
#undef X
};
static const char *const row_texts[] = {
#define X(id, name) [PRT_ROW_##id] = (name),
    PRT_ROW_TEXTS(X)
#undef X
};

/* ---- the query ---- */

static uint64_t whole(lua_State *L, int at, const char *key)
{
    lua_getfield(L, at, key);
    double n = lua_tonumber(L, -1); /* absent: 0 */
    lua_pop(L, 1);
    return n > 0 && n <= 9007199254740992.0 ? (uint64_t)n : 0;
}

static bool is_set(lua_State *L, int at, const char *key)
{
    lua_getfield(L, at, key);
    bool yes = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return yes;
}

static void text(lua_State *L, int at, const char *key, char *to, size_t cap)
{
    struct prt_str s = {0};

    lua_getfield(L, at, key);
    s.p = lua_tolstring(L, -1, &s.n);
    if (s.p && !prt_str_copy(to, cap, s)) {
        luaL_error(L, "%s is too long", key);
    }
    lua_pop(L, 1);
}

static unsigned state_bit(lua_State *L, int at)
{
    lua_getfield(L, at, "state");
    const char *name = lua_tostring(L, -1);
    unsigned bit = 0;
    for (unsigned i = 0; name && i < PRT_ROW_STATE_COUNT; i++) {
        bit |= strcmp(name, row_states[i]) == 0 ? 1u << i : 0;
    }
    if (name && !bit) {
        luaL_error(L, "no state is called %s", name);
    }
    lua_pop(L, 1);
    return bit;
}

void prt_bind_visit_read(lua_State *L, int at, struct prt_visit *v)
{
    luaL_checktype(L, at, LUA_TTABLE);
    v->wants_sessions = is_set(L, at, "sessions");
    v->number = whole(L, at, "number");
    v->skip = (uint32_t)whole(L, at, "skip");
    v->want = (uint32_t)whole(L, at, "want");
    v->states = state_bit(L, at);
    text(L, at, "pool", v->pool, sizeof v->pool);
    text(L, at, "user", v->user, sizeof v->user);
    v->kills = is_set(L, at, "kills");
    v->force = is_set(L, at, "force");
}

/* ---- the answer ---- */

static void set_count(lua_State *L, const char *key, int64_t n)
{
    if (n >= 0) {
        lua_pushnumber(L, (double)n);
        lua_setfield(L, -2, key);
    }
}

static struct prt_str text_of(const struct prt_visit *v, const struct prt_row *r,
                              enum prt_row_text which)
{
    return (struct prt_str){(const char *)v->text.p + r->text[which].at, r->text[which].n};
}

/* kinds of session state, as a list */
static void set_pinned(lua_State *L, unsigned pinned)
{
#define X(id, name) name,
    static const char *const kinds[] = {PRT_STATES(X)};
#undef X
    int n = 0;

    lua_newtable(L);
    for (unsigned k = 0; k < PRT_STATE_COUNT; k++) {
        if (pinned >> k & 1) {
            lua_pushstring(L, kinds[k]);
            lua_rawseti(L, -2, ++n);
        }
    }
    lua_setfield(L, -2, "pinned");
}

static void push_row(lua_State *L, const struct prt_visit *v, const struct prt_row *r)
{
    lua_createtable(L, 0, 24);
    set_count(L, "number", (int64_t)r->number);
    set_count(L, "other", r->other ? (int64_t)r->other : -1);
    set_count(L, "pid", r->pid ? (int64_t)r->pid : -1);
    set_count(L, "position", r->position);
    set_count(L, "age_us", r->age_us);
    set_count(L, "request_us", r->request_us);
    set_count(L, "sent", r->io.sent);
    set_count(L, "received", r->io.received);
    set_count(L, "quiet_us", r->io.quiet_us);
    set_bool(L, "is_request", r->is_request);
    set_bool(L, "in_transaction", r->in_transaction);
    lua_pushstring(L, row_states[r->state]);
    lua_setfield(L, -2, "state");
    set_pinned(L, r->pinned);
    for (int i = 0; i < PRT_ROW_TEXT_COUNT; i++) {
        struct prt_str s = text_of(v, r, (enum prt_row_text)i);
        if (s.n) {
            lua_pushlstring(L, s.p, s.n);
            lua_setfield(L, -2, row_texts[i]);
        }
    }
}

static const char *verdict_of(const struct prt_visit *v)
{
    static const char *const names[] = {
        [PRT_KILL_NOT_FOUND] = "not_found",
        [PRT_KILL_DONE] = "killed",
        [PRT_KILL_IN_TRANSACTION] = "in_transaction",
        [PRT_KILL_BUSY] = "busy",
    };
    return names[v->verdict];
}

static const char *rolled_back_of(const struct prt_visit *v)
{
    static const char *const names[] = {
        [PRT_ROLLED_BACK_NO] = "no",
        [PRT_ROLLED_BACK_YES] = "yes",
        [PRT_ROLLED_BACK_UNKNOWN] = "unknown",
    };
    return names[v->rolled_back];
}

void prt_bind_visit_push(lua_State *L, const struct prt_visit *v)
{
    if (v->text.failed) {
        luaL_error(L, "out of memory in a visit");
    }
    lua_createtable(L, 0, 5);
    set_count(L, "matches", (int64_t)v->matches);
    lua_createtable(L, (int)v->n_rows, 0);
    for (uint32_t i = 0; i < v->n_rows; i++) {
        push_row(L, v, &v->rows[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_setfield(L, -2, "rows");
    if (v->kills) {
        lua_pushstring(L, verdict_of(v));
        lua_setfield(L, -2, "verdict");
        lua_pushstring(L, rolled_back_of(v));
        lua_setfield(L, -2, "rolled_back");
        set_bool(L, "was_in_transaction", v->was_in_transaction);
    }
}

void prt_bind_visit_audit(const struct prt_visit *v, const char *peer, bool is_late)
{
    const char *what = v->wants_sessions ? "session" : "connection";
    bool has_row = !is_late && v->n_rows > 0;
    struct prt_str none = {0};

    prt_log(PRT_LOG_INFO, "admin_kill", prt_kv_z("by", peer), prt_kv_z("what", what),
            prt_kv_int("number", (int64_t)v->number), prt_kv_z("force", v->force ? "yes" : "no"),
            prt_kv_z("result", is_late ? "unknown" : verdict_of(v)),
            prt_kv_str("pool", has_row ? text_of(v, v->rows, PRT_ROW_POOL) : none),
            prt_kv_str("user", has_row ? text_of(v, v->rows, PRT_ROW_USER) : none),
            prt_kv_str("client", has_row ? text_of(v, v->rows, PRT_ROW_CLIENT) : none),
            prt_kv_z("in_transaction", !is_late && v->was_in_transaction ? "yes" : "no"),
            prt_kv_z("rolled_back", is_late ? "unknown" : rolled_back_of(v)));
}
