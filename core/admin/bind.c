/* bind.c - the REST handlers in Lua: started, asked, and gone on with.
 * Owns: the control thread's Lua state, requests that wait.   Threads: control.
 * Idea: rest.lua gets one table `source`, whose functions answer with plain values: snapshots
 * (bind_tables.c), or what the workers say (bind_visit.c). A handler runs as a coroutine: where it
 * asks the workers it yields, and goes on with the answer, so the thread waits for nobody. */
#include "admin/bind_int.h"

#include <stdlib.h>
#include <string.h>

/* A request that waits.
 *   handle -- yields --> calls: waiting -- visit done, or late --> ready() --> go_on: answered
 *                                  | drop
 *                                  v
 *                               without an owner: freed when the visit is done */
struct prt_bind_call {
    struct prt_link link; /* bind->calls */
    struct prt_bind *bind;
    void *owner;      /* NULL: nobody wants the answer */
    int co_ref;       /* the coroutine, in the registry */
    int64_t until_us; /* then it is told that nobody answers */
    bool is_told;
    _Atomic bool is_done; /* release: by the visit's last worker; acquire: here */
    char peer[PRT_BIND_PEER];
    struct prt_visit visit; /* the workers' until is_done */
};
#define CALL_LIMIT_US 10000000

/* ---- asking the workers ---- */

/* any thread */
static void visit_done(struct prt_visit *v)
{
    struct prt_bind_call *call = prt_container_of(v, struct prt_bind_call, visit);
    const struct prt_bind_ops *ops = call->bind->ops;

    atomic_store_explicit(&call->is_done, true, memory_order_release); /* it may be freed now */
    ops->wake(ops->ctx);
}

static bool is_done(const struct prt_bind_call *call)
{
    return atomic_load_explicit(&call->is_done, memory_order_acquire);
}

static void call_free(struct prt_bind_call *call)
{
    prt_list_del(&call->link);
    luaL_unref(call->bind->lua, LUA_REGISTRYINDEX, call->co_ref);
    prt_buf_free(&call->visit.text);
    free(call->visit.rows);
    free(call);
}

/* visit(query) -> the answer as bind_visit.c makes it; nil: the workers have not answered. Only in
 * a handler, and once. */
static int lua_visit(lua_State *L)
{
    struct prt_bind *b = bind_of(L);
    struct prt_visit v = {.done = visit_done};

    prt_assert_control();
    prt_bind_visit_read(L, 1, &v);
    struct prt_bind_call *call = b->asked ? NULL : calloc(1, sizeof *call);
    struct prt_row *rows = calloc(v.want ? v.want : 1, sizeof *rows);
    if (!call || !rows) {
        free(call);
        free(rows);
        return luaL_error(L, "out of memory for a visit");
    }
    v.rows = rows;
    call->visit = v;
    call->bind = b;
    call->co_ref = LUA_NOREF;
    prt_list_init(&call->link);
    b->asked = call;
    return lua_yield(L, 0);
}

/* ---- start ---- */

static void push_source(lua_State *L, struct prt_bind *b)
{
    prt_assert_control();
    lua_newtable(L);
    lua_pushlightuserdata(L, b);
    lua_pushcclosure(L, lua_visit, 1);
    lua_setfield(L, -2, "visit");
    prt_bind_tables(L, b);
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
                       const struct prt_access *access, const struct prt_bind_ops *ops,
                       struct prt_err *err)
{
    struct prt_bind *b = calloc(1, sizeof *b);

    if (!b || !(b->lua = prt_lua_new())) {
        free(b);
        return prt_fail(err, POOLRT_NOMEM, "no memory for the admin handlers");
    }
    b->deps = *deps;
    b->access = access;
    b->ops = ops;
    prt_list_init(&b->calls);
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
    if (!b) {
        return;
    }
    for (struct prt_link *l = b->calls.next, *next; l != &b->calls; l = next) {
        next = l->next;
        call_free(prt_container_of(l, struct prt_bind_call, link));
    }
    lua_close(b->lua);
    free(b);
}

/* ---- a request ---- */

struct request_call {
    struct prt_bind *bind;
    const struct prt_bind_request *rq;
    struct prt_bind_call *from; /* NULL: rq begins; else what has waited goes on */
    struct prt_bind_reply *reply;
    bool waits; /* bind->asked does, and there is no reply */
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

static void push_request(lua_State *L, const struct prt_bind_request *rq, bool has_token)
{
    lua_createtable(L, 0, 9);
    set_str(L, "method", rq->method);
    set_str(L, "target", rq->target);
    set_bool(L, "is_admin", rq->is_admin);
    set_bool(L, "is_loopback", rq->is_loopback);
    set_bool(L, "may_write", rq->is_admin && has_token);
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

/* The coroutine on top of L's stack, with what it is to be resumed with. */
static lua_State *push_handler(lua_State *L, const struct request_call *call)
{
    struct prt_bind *b = call->bind;
    lua_State *co;

    prt_assert_control();
    if (!call->from) {
        co = lua_newthread(L);
        lua_rawgeti(L, LUA_REGISTRYINDEX, b->handle_ref);
        push_request(L, call->rq, b->access->has_token);
        lua_xmove(L, co, 2);
        return co;
    }
    lua_rawgeti(L, LUA_REGISTRYINDEX, call->from->co_ref);
    co = lua_tothread(L, -1);
    if (is_done(call->from)) {
        prt_bind_visit_push(L, &call->from->visit);
    } else {
        lua_pushnil(L);
    }
    lua_xmove(L, co, 1);
    return co;
}

/* It has yielded: the coroutine, at index 2, is kept for its call. */
static int keep_waiting(lua_State *L, struct request_call *call)
{
    if (!call->bind->asked || call->from) {
        return luaL_error(L, "a handler waits for nobody");
    }
    lua_pushvalue(L, 2);
    call->bind->asked->co_ref = luaL_ref(L, LUA_REGISTRYINDEX);
    call->waits = true;
    return 0;
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
    lua_State *co = push_handler(L, call); /* 2 */
    int rc = lua_resume(co, 1);
    if (rc == LUA_YIELD) {
        return keep_waiting(L, call);
    }
    if (rc) {
        lua_xmove(co, L, 1);
        return lua_error(L);
    }
    lua_settop(co, 4);
    lua_xmove(co, L, 4); /* 3..6 */
    r->status = (int)luaL_checkinteger(L, 3);
    r->type = keep(L, 4, 1, 1, NULL);
    r->body.p = keep(L, 5, 1, 2, &r->body.n);
    if (lua_istable(L, 6)) {
        keep_headers(L, 6, 1, r);
    }
    if (r->status < 200 || r->status > 599 || !r->type || !r->body.p) {
        return luaL_error(L, "the handler gave no answer");
    }
    return 0;
}

static bool try_handle(struct request_call *call, struct prt_str path)
{
    static struct prt_log_limit limit;
    struct prt_bind *b = call->bind;

    *call->reply = (struct prt_bind_reply){.status = 0};
    if (lua_cpcall(b->lua, call_handle, call) == 0) {
        return true;
    }
    prt_log_limited(&limit, PRT_LOG_ERROR, "admin_handler_failed",
                    prt_kv_z("error", lua_tostring(b->lua, -1)), prt_kv_str("path", path));
    lua_settop(b->lua, 0);
    if (b->asked) {
        call_free(b->asked);
        b->asked = NULL;
    }
    return false;
}

static void reply_internal(struct prt_bind *b, struct prt_bind_reply *reply)
{
    const struct prt_bind_request failed = {
        .refused = {500, "internal", "the handler failed; see the log"}};
    struct request_call call = {.bind = b, .rq = &failed, .reply = reply};

    if (!try_handle(&call, (struct prt_str){0})) {
        *reply = (struct prt_bind_reply){
            .status = 500,
            .type = "application/json",
            .body = PRT_STR("{\"error\":{\"code\":\"internal\",\"details\":null,"
                            "\"message\":\"out of memory\"},\"meta\":{},\"success\":false}\n")};
    }
}

/* The handler has asked: its visit sets out. */
static struct prt_bind_call *set_out(struct prt_bind *b, const struct prt_bind_request *rq,
                                     void *owner)
{
    struct prt_bind_call *call = b->asked;

    prt_assert_control();
    b->asked = NULL;
    call->owner = owner;
    call->until_us = prt_now_us() + CALL_LIMIT_US;
    memcpy(call->peer, rq->peer, sizeof call->peer);
    prt_list_push(&b->calls, &call->link);
    prt_proxy_visit(b->deps.proxy, &call->visit);
    return call;
}

struct prt_bind_call *prt_bind_handle(struct prt_bind *b, const struct prt_bind_request *rq,
                                      struct prt_bind_reply *reply, void *owner)
{
    struct request_call call = {.bind = b, .rq = rq, .reply = reply};

    b->requests++;
    if (!try_handle(&call, path_of(rq->target))) {
        reply_internal(b, reply);
        return NULL;
    }
    return call.waits ? set_out(b, rq, owner) : NULL;
}

void prt_bind_go_on(struct prt_bind_call *from, struct prt_bind_reply *reply)
{
    struct prt_bind *b = from->bind;
    struct request_call call = {.bind = b, .from = from, .reply = reply};

    prt_assert_control();
    if (from->visit.kills) {
        prt_bind_visit_audit(&from->visit, from->peer, !is_done(from));
    }
    if (!try_handle(&call, PRT_STR("(after a visit)"))) {
        reply_internal(b, reply);
    }
    prt_bind_drop(from);
}

void prt_bind_drop(struct prt_bind_call *call)
{
    call->owner = NULL;
    if (is_done(call)) {
        call_free(call);
    }
}

bool prt_bind_collect(struct prt_bind *b, int64_t now_us)
{
    for (struct prt_link *l = b->calls.next, *next; l != &b->calls; l = next) {
        struct prt_bind_call *call = prt_container_of(l, struct prt_bind_call, link);
        bool done = is_done(call);
        next = l->next;
        if (done && !call->owner) {
            call_free(call);
        } else if (call->owner && !call->is_told && (done || now_us >= call->until_us)) {
            call->is_told = true;
            b->ops->ready(b->ops->ctx, call->owner);
        }
    }
    return !prt_list_empty(&b->calls);
}

void prt_bind_hurry(struct prt_bind *b)
{
    (void)prt_bind_collect(b, INT64_MAX);
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
