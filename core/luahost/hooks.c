/* hooks.c - C asks Lua: fills the views, calls the hook, reads the answer, deals with what goes
 * wrong. Owns: each seat's health and memo.   Threads: the worker of the lane; counters are read by
 * anyone. Idea: a decision is one guarded lua_pcall of a wrapper that lies on the state's stack,
 * without an allocation on our side. An answer is checked here, in C, before anyone believes it.
 * Whatever goes wrong ends in fall_back(), so that the caller knows only answers. */
#include "luahost/luahost_int.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "pool/pool.h"

int64_t (*prt_policies_clock)(void) = prt_now_us;

/* ---- views ---- */

static inline struct prt_lua_text text_of(struct prt_str s)
{
    return (struct prt_lua_text){s.p ? s.p : "", s.p ? s.n : 0};
}

void prt_view_fill(struct prt_lua_view *view, const struct prt_req_view *rq,
                   const struct prt_part_view *part)
{
    view->req.now = rq->now;
    view->req.waited = rq->waited;
    view->req.session = (double)rq->session;
    view->req.rank = rq->priority < PRT_LOW        ? PRT_LOW
                     : rq->priority > PRT_CRITICAL ? PRT_CRITICAL
                                                   : rq->priority;
    view->tenant = text_of(rq->tenant);
    view->user = text_of(rq->user);
    view->database = text_of(rq->database);
    view->application = text_of(rq->application);
    view->client_addr = text_of(rq->client_addr);
    if (!part) {
        view->part_name.n = 0; /* a policy may have kept `part`; what the name borrowed is gone */
        return;
    }
    view->part_name = text_of(part->name);
    view->part.active = part->active;
    view->part.waiting = part->waiting;
    view->part.max = part->max;
    view->part.min = part->min;
    view->part.pool_active = part->pool_active;
    view->part.pool_idle = part->pool_idle;
    view->part.pool_total = part->pool_total;
    view->part.pool_max = part->pool_max;
    view->part.pool_waiting = part->pool_waiting;
}

void prt_view_clear(struct prt_lua_view *view)
{
    prt_view_fill(view, &(struct prt_req_view){.priority = PRT_NORMAL}, NULL);
}

/* ---- answers ---- */

/* A sentence for the client: no control characters, cut between characters. */
static void copy_reason(char *dst, size_t cap, const char *p, size_t n)
{
    size_t len = n < cap - 1 ? n : cap - 1;

    while (len < n && len > 0 && ((unsigned char)p[len] & 0xc0) == 0x80) {
        len--;
    }
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)p[i];
        dst[i] = c < 0x20 || c == 0x7f ? '?' : p[i];
    }
    dst[len] = '\0';
}

/* nil, or five digits and capitals that are no success and no warning. */
static bool read_sqlstate(lua_State *L, int idx, char out[6])
{
    size_t n = 0;
    const char *p = lua_type(L, idx) == LUA_TSTRING ? lua_tolstring(L, idx, &n) : NULL;

    if (!p) {
        return lua_isnil(L, idx);
    }
    if (n != 5 || strspn(p, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != 5 ||
        (p[0] == '0' && p[1] <= '2')) {
        return false;
    }
    memcpy(out, p, 6);
    return true;
}

/* false, reason: the first result is at `at`. */
static const char *read_reject(lua_State *L, int at, struct prt_answer *out)
{
    size_t n;

    if (lua_type(L, at + 1) == LUA_TSTRING) {
        const char *p = lua_tolstring(L, at + 1, &n);
        copy_reason(out->text, sizeof out->text, p, n);
    } else if (!lua_isnil(L, at + 1)) {
        return "a reason that is not a string";
    }
    out->verdict = PRT_ANSWER_REJECT;
    return NULL;
}

static const char *read_name(lua_State *L, int at, struct prt_answer *out)
{
    size_t n;
    const char *p = lua_tolstring(L, at, &n);

    if (n == 0) {
        return "an empty name";
    }
    if (memchr(p, '\0', n)) {
        return "a name with a NUL in it";
    }
    if (!prt_str_copy(out->name, sizeof out->name, (struct prt_str){p, n})) {
        return "a name of more than 63 bytes";
    }
    out->verdict = PRT_ANSWER_TO;
    return NULL;
}

static const char *const scope_names[] = {"session", "transaction", "statement"};

static const char *read_scope(lua_State *L, int at, struct prt_answer *out)
{
    if (lua_isnil(L, at)) {
        return NULL;
    }
    for (int i = 0; lua_type(L, at) == LUA_TSTRING && i < 3; i++) {
        if (strcmp(lua_tostring(L, at), scope_names[i]) == 0) {
            out->scope = (enum prt_scope)i;
            return NULL;
        }
    }
    return "a scope other than session, transaction and statement";
}

/* nil | name [, scope] | false [, reason [, sqlstate]] */
static const char *read_route(lua_State *L, int at, struct prt_answer *out)
{
    const char *wrong;

    switch (lua_type(L, at)) {
    case LUA_TNIL:
        return NULL;
    case LUA_TSTRING:
        wrong = read_name(L, at, out);
        return wrong ? wrong : read_scope(L, at + 1, out);
    case LUA_TBOOLEAN:
        if (!lua_toboolean(L, at)) {
            wrong = read_reject(L, at, out);
            return wrong || read_sqlstate(L, at + 2, out->sqlstate) ? wrong : "what is no SQLSTATE";
        }
        return "true; a route is a name, nil or false";
    default:
        return "neither a name nor nil nor false";
    }
}

/* nil, true | false [, reason [, retry_after [, sqlstate]]] */
static const char *read_admit(lua_State *L, int at, struct prt_answer *out)
{
    int type = lua_type(L, at);

    if (type == LUA_TNIL || (type == LUA_TBOOLEAN && lua_toboolean(L, at))) {
        return NULL;
    }
    if (type != LUA_TBOOLEAN) {
        return "neither true nor false nor nil";
    }
    const char *wrong = read_reject(L, at, out);
    if (wrong) {
        return wrong;
    }
    if (!lua_isnil(L, at + 2)) {
        double after = lua_type(L, at + 2) == LUA_TNUMBER ? lua_tonumber(L, at + 2) : -1;
        if (!(after >= 0 && after <= 86400)) {
            return "a retry_after that is not between 0 and 86400 seconds";
        }
        out->retry_after = after;
    }
    return read_sqlstate(L, at + 3, out->sqlstate) ? NULL : "what is no SQLSTATE";
}

/* One row per hook, in the order of enum prt_hook_index and of HOOKS in policy.lua. */
static const struct {
    const char *name;
    const char *(*read)(lua_State *L, int at, struct prt_answer *out);
} hook_row[PRT_HOOKS] = {
    [PRT_H_ROUTE] = {"route", read_route},
    [PRT_H_ADMIT] = {"admit", read_admit},
};
static_assert(PRT_HOOK_ROUTE == 1 << PRT_H_ROUTE && PRT_HOOK_ADMIT == 1 << PRT_H_ADMIT,
              "bit and index of a hook go together");

const char *prt_hook_name(int hook)
{
    return hook_row[hook].name;
}

const char *prt_hook_read(lua_State *L, int hook, struct prt_answer *out, char *buf, size_t cap)
{
    int at = lua_gettop(L) - 3;
    const char *wrong = hook_row[hook].read(L, at, out);

    if (!wrong) {
        return NULL;
    }
    if (lua_type(L, at) == LUA_TSTRING) {
        char shown[80];
        size_t n;
        const char *p = lua_tolstring(L, at, &n);
        copy_reason(shown, sizeof shown, p, n);
        (void)snprintf(buf, cap, "%s returned %s (\"%s\")", hook_row[hook].name, wrong, shown);
    } else {
        (void)snprintf(buf, cap, "%s returned %s (a %s)", hook_row[hook].name, wrong,
                       lua_typename(L, lua_type(L, at)));
    }
    return buf;
}

/* ---- on_fail = "last" ---- */

static uint64_t memo_key(const struct prt_req_view *rq)
{
    const struct prt_str part[] = {rq->tenant, rq->user, rq->database, rq->application};
    uint64_t hash[4];

    for (size_t i = 0; i < 4; i++) {
        hash[i] = prt_hash(part[i].p ? part[i].p : "", part[i].p ? part[i].n : 0);
    }
    return prt_hash(hash, sizeof hash) | 1;
}

static struct prt_memo_row *memo_find(struct prt_memo_row *set, uint64_t key)
{
    for (int i = 0; i < PRT_MEMO_WAYS; i++) {
        if (set[i].key == key) {
            return &set[i];
        }
    }
    return NULL;
}

/* The answer before this one has met no complaint: now it counts. */
static void memo_settle(struct prt_memo *m)
{
    struct prt_memo_row *set = m->set[(m->fresh.key >> 1) % PRT_MEMO_SETS], *row;

    if (!m->fresh.key) {
        return;
    }
    row = memo_find(set, m->fresh.key);
    if (!row) {
        memmove(set + 1, set, (PRT_MEMO_WAYS - 1) * sizeof *set);
        row = set;
    }
    *row = m->fresh;
    m->fresh.key = 0;
}

static void memo_put(struct prt_health *h, const struct prt_req_view *rq,
                     const struct prt_answer *answer)
{
    if (!h->memo && !(h->memo = calloc(1, sizeof *h->memo))) {
        return;
    }
    memo_settle(h->memo);
    h->memo->fresh.key = memo_key(rq);
    h->memo->fresh.answer = *answer;
}

static bool memo_get(struct prt_health *h, const struct prt_req_view *rq, struct prt_answer *out)
{
    uint64_t key = memo_key(rq);

    if (!h->memo) {
        return false;
    }
    memo_settle(h->memo);
    struct prt_memo_row *row = memo_find(h->memo->set[(key >> 1) % PRT_MEMO_SETS], key);
    if (!row) {
        return false;
    }
    *out = row->answer;
    return true;
}

/* ---- what goes wrong ---- */

/* Counters have one writer, so no locked instruction; readers see some recent value. */
static inline void count(_Atomic uint64_t *n)
{
    atomic_store_explicit(n, atomic_load_explicit(n, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

static void fall_back(struct prt_seat *seat, const struct prt_version *v, int hook,
                      const struct prt_req_view *rq, struct prt_answer *out)
{
    memset(out, 0, sizeof *out);
    if (v->on_fail[hook] == PRT_FAIL_LAST && memo_get(&seat->health[hook], rq, out)) {
        return;
    }
    if (v->on_fail[hook] == PRT_FAIL_REJECT) {
        out->verdict = PRT_ANSWER_REJECT;
        (void)snprintf(out->text, sizeof out->text,
                       "the policy that decides on this request (%.60s) failed", v->name);
    }
}

/* The 501st last failure lies within the last 1,000 calls: more than half of them failed. */
static bool fails_too_often(struct prt_health *h, uint64_t calls)
{
    const uint32_t size = sizeof h->ring / sizeof *h->ring;

    h->ring[h->ring_at] = calls;
    h->ring_at = (h->ring_at + 1) % size;
    h->ring_n += h->ring_n < size;
    return ++h->in_a_row >= PRT_FAIL_RUN ||
           (h->ring_n == size && calls - h->ring[h->ring_at] < PRT_FAIL_WINDOW);
}

static void quarantine(struct prt_unit *u, struct prt_health *h, int hook, const char *text)
{
    bool already = atomic_load_explicit(&h->quarantined, memory_order_relaxed);

    h->probe_at_us = prt_policies_clock() + PRT_PROBE_US;
    atomic_store_explicit(&h->quarantined, true, memory_order_relaxed);
    if (!already) {
        prt_log(PRT_LOG_ERROR, "policy_quarantined", prt_kv_z("policy", u->policy),
                prt_kv_z("pool", u->row->name), prt_kv_z("hook", hook_row[hook].name),
                prt_kv_int("worker", prt_thread_index()), prt_kv_int("probe_s", 30),
                prt_kv_z("error", text));
    }
}

PRT_COLD static void failed(struct prt_unit *u, struct prt_seat *seat, int hook, const char *text)
{
    struct prt_health *h = &seat->health[hook];

    count(&h->failures);
    prt_unit_error(u, text);
    prt_log_limited(&u->failed_limit, PRT_LOG_WARN, "policy_failed", prt_kv_z("policy", u->policy),
                    prt_kv_z("pool", u->row->name), prt_kv_z("hook", hook_row[hook].name),
                    prt_kv_z("file", seat->inst->version->file), prt_kv_z("error", text));
    if (fails_too_often(h, atomic_load_explicit(&h->calls, memory_order_relaxed))) {
        quarantine(u, h, hook, text);
    }
}

static void succeeded(struct prt_unit *u, struct prt_health *h, int hook)
{
    h->in_a_row = 0;
    if (__builtin_expect(atomic_load_explicit(&h->quarantined, memory_order_relaxed), 0)) {
        h->ring_n = 0;
        atomic_store_explicit(&h->quarantined, false, memory_order_relaxed);
        prt_log(PRT_LOG_INFO, "policy_recovered", prt_kv_z("policy", u->policy),
                prt_kv_z("pool", u->row->name), prt_kv_z("hook", hook_row[hook].name));
    }
}

/* May the hook be asked? No: its state is gone, its version disabled, or it is in quarantine and no
 * probe is due. */
static bool may_ask(const struct prt_inst *inst, struct prt_health *h)
{
    /* relaxed: a worker that learns of it a call later is no worse off */
    if (inst->dead || atomic_load_explicit(&inst->version->disabled, memory_order_relaxed)) {
        return false;
    }
    if (!atomic_load_explicit(&h->quarantined, memory_order_relaxed)) {
        return true;
    }
    return prt_policies_clock() >= h->probe_at_us;
}

/* The message of a Lua error; `buf` for what has none. */
static const char *error_text(lua_State *L, char *buf, size_t cap)
{
    if (lua_type(L, -1) == LUA_TSTRING) {
        copy_reason(buf, cap, lua_tostring(L, -1), lua_objlen(L, -1));
    } else {
        (void)snprintf(buf, cap, "an error that is a %s", lua_typename(L, lua_type(L, -1)));
    }
    return buf;
}

/* After "not enough memory" the next call must find some: LuaJIT does not collect by itself then.
 */
static void after_error(struct prt_inst *inst)
{
    if (inst->vm.used > PRT_LUA_SOFT_BYTES) {
        prt_vm_collect(&inst->vm);
    }
}

PRT_COLD static void call_failed(struct prt_unit *u, struct prt_seat *seat, int hook,
                                 enum prt_run run, unsigned lane) ON_WORKER
{
    struct prt_inst *inst = seat->inst;
    char text[300];

    if (run == PRT_RUN_KILLED) {
        inst->dead = inst->abandoned = true;
        (void)snprintf(text, sizeof text, "%s ran too long and was stopped; its state was lost",
                       hook_row[hook].name);
    } else if (run == PRT_RUN_STOPPED && lua_isnil(inst->vm.L, -1)) {
        (void)snprintf(text, sizeof text, "%s ran too long", hook_row[hook].name);
    } else {
        (void)error_text(inst->vm.L, text, sizeof text);
    }
    failed(u, seat, hook, text);
    if (run != PRT_RUN_KILLED) {
        lua_pop(inst->vm.L, 1);
        after_error(inst);
    }
    if (run != PRT_RUN_ERROR) {
        prt_unit_killed(u, inst->version, lane);
    }
}

/* ---- the call ---- */

static inline void watch_memory(struct prt_policies *ps, struct prt_inst *inst, unsigned lane)
{
    if (__builtin_expect(inst->vm.used > inst->collect_above, 0) && !inst->collect) {
        inst->collect = true;
        prt_policies_poke(ps, lane);
    }
}

/* Call the wrapper of `hook` and read its answer. false: it failed, and was dealt with. */
static bool ask(struct prt_unit *u, struct prt_seat *seat, int hook, unsigned lane,
                const struct prt_req_view *rq, const struct prt_part_view *part,
                struct prt_answer *out) ON_WORKER
{
    struct prt_inst *inst = seat->inst;
    lua_State *L = inst->vm.L;
    char text[300];

    prt_view_fill(&inst->view, rq, part);
    lua_pushvalue(L, hook + 1);
    enum prt_run run = prt_guard_call(&u->ps->lane[lane].guard, L, 0, 4);
    if (run != PRT_RUN_OK) {
        call_failed(u, seat, hook, run, lane);
        return false;
    }
    const char *wrong = prt_hook_read(L, hook, out, text, sizeof text);
    lua_pop(L, 4);
    if (wrong) {
        failed(u, seat, hook, wrong);
        return false;
    }
    watch_memory(u->ps, inst, lane);
    return true;
}

static void decide(struct prt_unit *u, unsigned lane, int hook, const struct prt_req_view *rq,
                   const struct prt_part_view *part, struct prt_answer *out) ON_WORKER
{
    struct prt_seat *seat = &u->seat[lane];
    const struct prt_version *v = seat->inst->version;
    struct prt_health *h = &seat->health[hook];

    if (!may_ask(seat->inst, h)) {
        fall_back(seat, v, hook, rq, out);
        return;
    }
    count(&h->calls);
    if (v->in_c & 1u << hook) {
        *out = v->constant[hook];
    } else {
        out->scope = v->scope; /* the rest is zero: nobody had an opinion yet */
        if (!ask(u, seat, hook, lane, rq, part, out)) {
            fall_back(seat, v, hook, rq, out);
            return;
        }
    }
    succeeded(u, h, hook);
    if (v->on_fail[hook] == PRT_FAIL_LAST) {
        memo_put(h, rq, out);
    }
}

static struct prt_chain *chain_of(struct prt_policy_ops *self, unsigned lane)
{
    struct prt_binding *b = prt_container_of(self, struct prt_binding, ops);

    prt_assert(lane < b->ps->lanes);
    return b->row->lane[lane].chain;
}

static bool has_hook(const struct prt_unit *u, unsigned lane, int hook)
{
    const struct prt_inst *inst = u->seat[lane].inst;

    return inst && inst->version->hooks & 1u << hook;
}

/* The first policy with an opinion decides. */
static void route(struct prt_policy_ops *self, unsigned lane, const struct prt_req_view *rq,
                  struct prt_answer *out)
{
    struct prt_chain *chain = chain_of(self, lane);

    prt_assert_worker();
    for (int i = 0; chain && i < chain->n; i++) {
        struct prt_unit *u = chain->unit[i];
        if (!has_hook(u, lane, PRT_H_ROUTE)) {
            continue;
        }
        decide(u, lane, PRT_H_ROUTE, rq, NULL, out);
        if (out->verdict != PRT_ANSWER_NONE) {
            u->ps->lane[lane].answered = u;
            return;
        }
    }
}

/* Any policy may refuse. */
static void admit(struct prt_policy_ops *self, unsigned lane, const struct prt_req_view *rq,
                  const struct prt_part_view *part, struct prt_answer *out)
{
    struct prt_chain *chain = chain_of(self, lane);

    prt_assert_worker();
    for (int i = 0; chain && i < chain->n; i++) {
        if (!has_hook(chain->unit[i], lane, PRT_H_ADMIT)) {
            continue;
        }
        decide(chain->unit[i], lane, PRT_H_ADMIT, rq, part, out);
        if (out->verdict == PRT_ANSWER_REJECT) {
            return;
        }
    }
}

/* Whose answer was it? The last one of this worker, if it was asked for this pool; an answer that
 * was remembered for longer is charged to the first policy that routes. */
static struct prt_unit *who_routed(struct prt_policy_ops *self, unsigned lane)
{
    struct prt_binding *b = prt_container_of(self, struct prt_binding, ops);
    struct prt_unit *u = b->ps->lane[lane].answered;
    struct prt_chain *chain = chain_of(self, lane);

    if (u && u->row == b->row) {
        return u;
    }
    for (int i = 0; chain && i < chain->n; i++) {
        if (has_hook(chain->unit[i], lane, PRT_H_ROUTE)) {
            return chain->unit[i];
        }
    }
    return NULL;
}

static void bad_route(struct prt_policy_ops *self, unsigned lane, const struct prt_req_view *rq,
                      struct prt_answer *out)
{
    struct prt_unit *u = who_routed(self, lane);
    char text[200];

    prt_assert_worker();
    if (!u) {
        memset(out, 0, sizeof *out);
        return;
    }
    struct prt_seat *seat = &u->seat[lane];
    struct prt_health *h = &seat->health[PRT_H_ROUTE];
    (void)snprintf(text, sizeof text, "route returned \"%s\", which is no partition of this pool",
                   out->name);
    if (h->memo) {
        h->memo->fresh.key = 0;
    }
    failed(u, seat, PRT_H_ROUTE, text);
    fall_back(seat, seat->inst->version, PRT_H_ROUTE, rq, out);
}

const struct prt_policy_ops prt_hook_ops = {.route = route, .admit = admit, .bad_route = bad_route};
