/* inst.c - from the text of a policy to a Lua state that answers.
 * Owns: nothing between calls.   Threads: the loader's; a worker's for a rebuild and the hand-over.
 * Idea: a text must prove itself before it serves: it is compiled (text only), run, its settings
 * are checked, init and the self-test run, and every hook is asked with made-up requests, hostile
 * ones among them, all with the JIT off and at most a million instructions each. Then each worker's
 * state is built by the loader and its hooks are called until they are compiled, so that the first
 * real request finds it warm; a second init clears what the made-up requests left. */
#include "luahost/luahost_int.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WARM_CALLS 160 /* LuaJIT compiles a function after 112 calls from C */
#define HUGE 65536

/* ---- versions ---- */

static bool copy_bytes(char **dst, struct prt_str s)
{
    *dst = malloc(s.n + 1);
    if (!*dst) {
        return false;
    }
    if (s.n) {
        memcpy(*dst, s.p, s.n);
    }
    (*dst)[s.n] = '\0';
    return true;
}

struct prt_version *prt_version_new(const char *file, struct prt_str text,
                                    struct prt_str partitions)
{
    struct prt_version *v = calloc(1, sizeof *v);

    if (!v) {
        return NULL;
    }
    v->refs = 1;
    v->text_n = text.n;
    v->partitions_n = partitions.n;
    v->loaded_at_us = prt_wall_us();
    if (!copy_bytes(&v->file, prt_str_of(file)) || !copy_bytes(&v->text, text) ||
        !copy_bytes(&v->partitions, partitions)) {
        prt_version_unref(v);
        return NULL;
    }
    prt_sha256_hex(text.p, text.n, v->sha256);
    return v;
}

struct prt_version *prt_version_ref(struct prt_version *v)
{
    /* relaxed: whoever makes a reference has one */
    (void)atomic_fetch_add_explicit(&v->refs, 1, memory_order_relaxed);
    return v;
}

void prt_version_unref(struct prt_version *v)
{
    /* acq_rel: pairs with itself in the other threads, so that all their reads came before the free
     */
    if (!v || atomic_fetch_sub_explicit(&v->refs, 1, memory_order_acq_rel) > 1) {
        return;
    }
    free(v->text), free(v->file), free(v->partitions);
    free(v->name), free(v->version);
    free(v);
}

/* ---- what runs inside the state, protected ---- */

struct build {
    const struct prt_source *src;
    struct prt_inst *inst;
    struct prt_version *v;
    unsigned lane;
    bool describe; /* fill in what the file says about itself */
    int wrapper[PRT_HOOKS];
    const char *method;
    /* hand-over of exported state */
    const char *carry, *from_version;
    size_t carry_n;
};

static struct build *build_of(lua_State *L)
{
    return lua_touserdata(L, 1);
}

static void set_text(lua_State *L, const char *key, const char *p, size_t n)
{
    lua_pushlstring(L, p, n);
    lua_setfield(L, -2, key);
}

static void set_number(lua_State *L, const char *key, double x)
{
    lua_pushnumber(L, x);
    lua_setfield(L, -2, key);
}

/* policy.new{...} -> its State, kept in the registry */
static int body_new(lua_State *L)
{
    struct build *b = build_of(L);
    const struct prt_source *src = b->src;
    uint32_t seed;

    prt_random(&seed, sizeof seed);
    prt_vm_load_policy_module(L);
    lua_getfield(L, -1, "new");
    lua_newtable(L);
    set_text(L, "source", b->v->text, b->v->text_n);
    set_text(L, "settings", src->settings, strlen(src->settings));
    set_text(L, "partitions", b->v->partitions, b->v->partitions_n);
    set_text(L, "pool", src->row, strlen(src->row));
    set_text(L, "cdef", prt_vm_cdef, strlen(prt_vm_cdef));
    lua_pushfstring(L, "%s.lua", src->policy);
    lua_setfield(L, -2, "chunk");
    set_number(L, "worker", b->lane);
    set_number(L, "abi", PRT_LUA_ABI);
    set_number(L, "seed", seed);
    lua_pushlightuserdata(L, &b->inst->view);
    lua_setfield(L, -2, "view");
    prt_vm_push_host(L, &b->inst->vm);
    lua_setfield(L, -2, "host");
    lua_call(L, 1, 1);
    b->inst->handle = luaL_ref(L, LUA_REGISTRYINDEX);
    return 0;
}

static void call_method(lua_State *L, const struct build *b, int results)
{
    lua_rawgeti(L, LUA_REGISTRYINDEX, b->inst->handle);
    lua_getfield(L, -1, b->method);
    lua_insert(L, -2);
    lua_call(L, 1, results);
}

/* One of State's methods without arguments and results. */
static int body_method(lua_State *L)
{
    call_method(L, build_of(L), 0);
    return 0;
}

static char *field_text(lua_State *L, const char *key)
{
    lua_getfield(L, -1, key);
    const char *text = luaL_checkstring(L, -1);
    prt_guard_enter_host(); /* malloc has a lock */
    char *copy = strdup(text);
    prt_guard_leave_host();
    lua_pop(L, 1);
    if (!copy) {
        luaL_error(L, "no memory");
    }
    return copy;
}

static bool field_bool(lua_State *L, const char *key)
{
    lua_getfield(L, -1, key);
    bool is = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return is;
}

static int field_word(lua_State *L, const char *const words[])
{
    int i = luaL_checkoption(L, -1, NULL, words);

    lua_pop(L, 1);
    return i;
}

/* A hook that is a constant: its answer is read once, here. */
static void read_constant(lua_State *L, struct prt_version *v, int hook)
{
    char wrong[200];

    lua_pushnil(L), lua_pushnil(L), lua_pushnil(L);
    v->constant[hook].scope = v->scope;
    if (prt_hook_read(L, hook, &v->constant[hook], wrong, sizeof wrong)) {
        luaL_error(L, "%s", wrong);
    }
    lua_pop(L, 3);
    v->in_c |= 1u << hook;
}

/* The table that State:open() returned is on top. */
static void describe(lua_State *L, struct prt_version *v)
{
    static const char *const scopes[] = {"session", "transaction", "statement", NULL};
    static const char *const on_fail[] = {"default", "reject", "last", NULL};

    v->name = field_text(L, "name");
    v->version = field_text(L, "version");
    v->exports = field_bool(L, "exports");
    v->imports = field_bool(L, "imports");
    lua_getfield(L, -1, "scope");
    v->scope = (enum prt_scope)field_word(L, scopes);
    for (int i = 0; i < PRT_HOOKS; i++) {
        lua_getfield(L, -1, "on_fail");
        lua_rawgeti(L, -1, i + 1);
        lua_remove(L, -2);
        v->on_fail[i] = (enum prt_on_fail)field_word(L, on_fail);
        lua_getfield(L, -1, "constants");
        lua_rawgeti(L, -1, i + 1);
        if (!lua_isnil(L, -1)) {
            read_constant(L, v, i);
        }
        lua_pop(L, 2);
    }
}

static int body_open(lua_State *L)
{
    struct build *b = build_of(L);

    b->method = "open";
    call_method(L, b, 1);
    if (b->describe) {
        describe(L, b->v);
    }
    lua_getfield(L, -1, "wrappers");
    for (int i = 0; i < PRT_HOOKS; i++) {
        lua_rawgeti(L, -1, i + 1);
        if (b->describe && !lua_isnil(L, -1)) {
            b->v->hooks |= 1u << i;
        }
        b->wrapper[i] = luaL_ref(L, LUA_REGISTRYINDEX);
    }
    if (b->describe) {
        b->v->hooks |= b->v->in_c;
    }
    return 0;
}

/* The encoded state stays alive in the registry; b->carry points to it. */
static int body_export(lua_State *L)
{
    struct build *b = build_of(L);

    b->method = "export";
    call_method(L, b, 1);
    if (lua_isnil(L, -1)) {
        return 0;
    }
    b->carry = luaL_checklstring(L, -1, &b->carry_n);
    lua_setfield(L, LUA_REGISTRYINDEX, "poolrt.carry");
    return 0;
}

static int body_import(lua_State *L)
{
    struct build *b = build_of(L);

    lua_rawgeti(L, LUA_REGISTRYINDEX, b->inst->handle);
    lua_getfield(L, -1, "import");
    lua_insert(L, -2);
    lua_pushlstring(L, b->carry, b->carry_n);
    lua_pushstring(L, b->from_version);
    lua_call(L, 3, 0);
    return 0;
}

/* ---- limits and messages ---- */

static void out_of_instructions(lua_State *L, lua_Debug *ar)
{
    /* from now on every instruction: a pcall around the loop must not save it */
    lua_sethook(L, out_of_instructions, LUA_MASKCOUNT, 1);
    prt_vm_raise_at(L, ar, "more than 1,000,000 instructions; is there a loop that does not end?");
}

static void set_budget(lua_State *L, bool on)
{
    lua_sethook(L, on ? out_of_instructions : NULL, on ? LUA_MASKCOUNT : 0,
                on ? PRT_LUA_INSTRUCTIONS : 0);
}

static void set_jit(lua_State *L, bool on)
{
    (void)luaJIT_setmode(L, 0, LUAJIT_MODE_ENGINE | (on ? LUAJIT_MODE_ON : LUAJIT_MODE_OFF));
}

/* ":12: text" of "route/tenant.lua:12: text", or NULL. LuaJIT shortens a long name from the left.
 */
static const char *after_chunk(const char *message, const char *policy)
{
    const char *at = strstr(message, ".lua:");
    size_t n = at ? (size_t)(at - message) : 0;

    if (!at || !isdigit((unsigned char)at[5])) {
        return NULL;
    }
    bool ours =
        strncmp(message, "...", 3) == 0 || (n == strlen(policy) && !memcmp(message, policy, n));
    return ours ? at + 4 : NULL;
}

/* What a person reads: the file's full name instead of the chunk's, or where the settings stand. */
static poolrt_rc explain(const struct build *b, const char *message, struct prt_err *err)
{
    static const char settings[] = "settings: ";
    const char *rest = after_chunk(message, b->src->policy);
    size_t n = strlen(b->src->policy);

    if (rest) {
        return prt_fail(err, POOLRT_CONFIG, "%s%s", b->v->file, rest);
    }
    if (strncmp(message, settings, sizeof settings - 1) == 0) {
        return prt_fail(err, POOLRT_CONFIG, "%s: policy %s: %s", b->src->where, b->src->policy,
                        message + sizeof settings - 1);
    }
    if (strncmp(message, b->src->policy, n) == 0 && strncmp(message + n, ".lua: ", 6) == 0) {
        message += n + 6;
    }
    return prt_fail(err, POOLRT_CONFIG, "%s: %s", b->v->file, message);
}

static poolrt_rc explain_run(struct build *b, enum prt_run run, struct prt_err *err)
{
    lua_State *L = b->inst->vm.L;
    poolrt_rc rc;

    if (run == PRT_RUN_OK) {
        return POOLRT_OK;
    }
    if (run == PRT_RUN_KILLED) {
        b->inst->dead = b->inst->abandoned = true;
        return explain(b, "it did not end and was stopped", err);
    }
    rc = explain(b,
                 lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1)
                 : lua_isnil(L, -1)             ? "it ran too long"
                                                : "it raised an error that is not a string",
                 err);
    lua_pop(L, 1);
    return rc;
}

/* ---- made-up requests ---- */

static char huge[HUGE];

static void fill_huge(void)
{
    memset(huge, 'x', sizeof huge);
}

#define S(lit)                                                                                     \
    {                                                                                              \
        "" lit, sizeof(lit) - 1                                                                    \
    }
#define ORDINARY 6
static const struct prt_str made_up[] = {
    S("acme"),      S("globex"),       S("a"),
    S("tenant_42"), S("app"),          S("O'Neill & co"),
    S(""),          S("%d%s%n"),       S("(.-)*[a-z]+"),
    S("a\0b"),      S("\xff\xfe\xc0"), S("\"; DROP TABLE x"),
    S("../../x"),   S("nil"),          {huge, HUGE},
};
#define MADE_UP (sizeof made_up / sizeof *made_up)

static struct prt_req_view request(unsigned i)
{
    struct prt_str s = made_up[i % MADE_UP];

    return (struct prt_req_view){.tenant = s,
                                 .user = made_up[(i + i / MADE_UP) % MADE_UP],
                                 .database = s,
                                 .application = s,
                                 .client_addr = PRT_STR("127.0.0.1:5000"),
                                 .session = 1 + i,
                                 .now = 1000.0 + i,
                                 .waited = i % 3 ? 0.0 : 0.5,
                                 .priority = (int)(i % 4)};
}

static struct prt_part_view partition(unsigned i)
{
    uint32_t n = i % 5 == 4 ? UINT32_MAX : i % 5; /* 0: no limit, nothing there */

    return (struct prt_part_view){.name = PRT_STR("default"),
                                  .active = n,
                                  .waiting = n,
                                  .max = n,
                                  .min = n,
                                  .pool_active = n,
                                  .pool_idle = n,
                                  .pool_total = n,
                                  .pool_max = n,
                                  .pool_waiting = n};
}

static poolrt_rc explain_request(struct build *b, const char *hook, const char *wrong, unsigned i,
                                 struct prt_err *err)
{
    char text[400], shown[24];
    struct prt_str t = made_up[i % MADE_UP];
    size_t n = t.n < sizeof shown - 1 ? t.n : sizeof shown - 1;

    for (size_t k = 0; k < n; k++) {
        shown[k] = t.p[k] >= 0x20 && t.p[k] < 0x7f ? t.p[k] : '?';
    }
    shown[n] = '\0';
    const char *rest = after_chunk(wrong, b->src->policy);
    (void)snprintf(text, sizeof text, "%s%s%.250s (%s was asked with tenant \"%s\")",
                   rest ? b->src->policy : "", rest ? ".lua" : "", rest ? rest : wrong, hook,
                   shown);
    return explain(b, text, err);
}

static poolrt_rc try_hook(struct prt_guard *g, struct build *b, int hook, unsigned i,
                          struct prt_err *err)
{
    struct prt_inst *inst = b->inst;
    struct prt_req_view rq = request(i);
    struct prt_part_view part = partition(i);
    struct prt_answer answer = {0};
    char buf[300];
    const char *wrong;

    prt_view_fill(&inst->view, &rq, &part);
    lua_pushvalue(inst->vm.L, hook + 1);
    enum prt_run run = prt_guard_call(g, inst->vm.L, 0, 4);
    if (run == PRT_RUN_KILLED) {
        return explain_run(b, run, err);
    }
    if (run != PRT_RUN_OK) {
        wrong = lua_type(inst->vm.L, -1) == LUA_TSTRING ? lua_tostring(inst->vm.L, -1)
                                                        : "an error that is not a string";
        poolrt_rc rc = explain_request(b, prt_hook_name(hook), wrong, i, err);
        lua_pop(inst->vm.L, 1);
        return rc;
    }
    /* a name that is too long is an answer to a name that was: on_fail deals with it */
    wrong = prt_hook_read(inst->vm.L, hook, &answer, buf, sizeof buf);
    bool is_name = lua_type(inst->vm.L, -4) == LUA_TSTRING && hook == PRT_H_ROUTE;
    lua_pop(inst->vm.L, 4);
    return wrong && !is_name ? explain_request(b, prt_hook_name(hook), wrong, i, err) : POOLRT_OK;
}

static poolrt_rc try_hooks(struct prt_guard *g, struct build *b, unsigned calls, unsigned kinds,
                           bool budget, struct prt_err *err)
{
    poolrt_rc rc = POOLRT_OK;

    for (int hook = 0; hook < PRT_HOOKS && rc == POOLRT_OK; hook++) {
        if (!(b->v->hooks & ~b->v->in_c & 1u << hook)) {
            continue;
        }
        for (unsigned i = 0; i < calls && rc == POOLRT_OK; i++) {
            set_budget(b->inst->vm.L, budget);
            rc = try_hook(g, b, hook, i % kinds, err);
        }
    }
    if (!b->inst->dead) {
        set_budget(b->inst->vm.L, false);
        prt_view_clear(&b->inst->view);
    }
    return rc;
}

/* ---- building ---- */

static poolrt_rc run_method(struct prt_guard *g, struct build *b, const char *method, bool budget,
                            struct prt_err *err)
{
    b->method = method;
    set_budget(b->inst->vm.L, budget);
    poolrt_rc rc = explain_run(b, prt_guard_cpcall(g, b->inst->vm.L, body_method, b), err);
    if (!b->inst->dead) {
        set_budget(b->inst->vm.L, false);
    }
    return rc;
}

static poolrt_rc open_state(struct prt_guard *g, struct build *b, struct prt_err *err)
{
    lua_State *L = b->inst->vm.L;
    poolrt_rc rc;

    rc = explain_run(b, prt_guard_cpcall(g, L, body_new, b), err);
    if (rc) {
        return rc;
    }
    set_jit(L, false); /* opening the libraries turned it on */
    set_budget(L, true);
    rc = explain_run(b, prt_guard_cpcall(g, L, body_open, b), err);
    if (rc) {
        return rc;
    }
    set_budget(L, false);
    for (int i = 0; i < PRT_HOOKS; i++) {
        lua_rawgeti(L, LUA_REGISTRYINDEX, b->wrapper[i]);
    }
    return POOLRT_OK;
}

static struct prt_inst *inst_alloc(const struct prt_source *src, struct prt_version *v)
{
    struct prt_inst *inst = calloc(1, sizeof *inst);

    if (!inst || !prt_vm_open(&inst->vm)) {
        free(inst);
        return NULL;
    }
    inst->vm.policy = src->policy;
    inst->vm.log_limit = src->log_limit;
    inst->version = prt_version_ref(v);
    inst->collect_above = PRT_LUA_SOFT_BYTES;
    inst->view.abi = PRT_LUA_ABI;
    inst->view.size = sizeof inst->view;
    prt_view_clear(&inst->view);
    return inst;
}

void prt_inst_free(struct prt_inst *inst)
{
    if (!inst) {
        return;
    }
    if (!inst->abandoned) {
        prt_vm_close(&inst->vm);
    }
    prt_version_unref(inst->version);
    free(inst);
}

static void budget_of_loading(struct prt_guard *g)
{
    g->ask_at = PRT_GUARD_LOAD_ASK;
    g->kill_at = PRT_GUARD_LOAD_KILL;
}

static void budget_of_hooks(struct prt_guard *g)
{
    g->ask_at = PRT_GUARD_ASK;
    g->kill_at = PRT_GUARD_KILL;
}

poolrt_rc prt_version_check(struct prt_guard *g, const struct prt_source *src,
                            struct prt_version *v, struct prt_err *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct build b = {.src = src, .v = v, .describe = true};
    poolrt_rc rc;

    (void)pthread_once(&once, fill_huge);
    b.inst = inst_alloc(src, v);
    if (!b.inst) {
        return prt_fail(err, POOLRT_NOMEM, "no memory for a Lua state");
    }
    budget_of_loading(g);
    rc = open_state(g, &b, err);
    if (rc == POOLRT_OK) {
        rc = run_method(g, &b, "selftest", true, err);
    }
    if (rc == POOLRT_OK) {
        rc = try_hooks(g, &b, 4 * MADE_UP, 4 * MADE_UP, true, err);
    }
    if (rc == POOLRT_OK) {
        rc = run_method(g, &b, "again", true, err);
    }
    budget_of_hooks(g);
    prt_inst_free(b.inst);
    return rc;
}

/* Compile the hooks, then start over with a clean init. */
static poolrt_rc warm_up(struct prt_guard *g, struct build *b, struct prt_err *err)
{
    poolrt_rc rc = try_hooks(g, b, WARM_CALLS, ORDINARY, false, err);

    if (rc == POOLRT_OK) {
        rc = run_method(g, b, "again", true, err);
    }
    if (rc == POOLRT_OK) {
        prt_vm_collect(&b->inst->vm);
    }
    return rc;
}

poolrt_rc prt_inst_new(struct prt_guard *g, const struct prt_source *src, struct prt_version *v,
                       unsigned lane, bool warm, struct prt_inst **out, struct prt_err *err)
{
    struct build b = {.src = src, .v = v, .lane = lane};
    poolrt_rc rc;

    b.inst = inst_alloc(src, v);
    if (!b.inst) {
        return prt_fail(err, POOLRT_NOMEM, "no memory for a Lua state");
    }
    budget_of_loading(g);
    rc = open_state(g, &b, err);
    if (rc == POOLRT_OK) {
        set_jit(b.inst->vm.L, true);
        rc = warm ? warm_up(g, &b, err) : POOLRT_OK;
    }
    budget_of_hooks(g);
    if (rc) {
        prt_inst_free(b.inst);
        return rc;
    }
    *out = b.inst;
    return POOLRT_OK;
}

/* ---- hand-over of state ---- */

bool prt_inst_carry(struct prt_guard *g, struct prt_inst *from, struct prt_inst *to,
                    struct prt_err *err)
{
    const struct prt_source nowhere = {.policy = "", .where = ""};
    struct build out = {.src = &nowhere, .inst = from, .v = from->version};
    struct build in = {.src = &nowhere, .inst = to, .v = to->version};
    poolrt_rc rc;

    if (from->dead || !from->version->exports || !to->version->imports) {
        return true;
    }
    prt_view_clear(&from->view);
    rc = explain_run(&out, prt_guard_cpcall(g, from->vm.L, body_export, &out), err);
    if (rc || !out.carry) {
        return rc == POOLRT_OK;
    }
    if (out.carry_n > PRT_LUA_CARRY_MAX) {
        (void)prt_fail(err, POOLRT_CONFIG, "export_state gave %zu bytes, more than %u", out.carry_n,
                       PRT_LUA_CARRY_MAX);
        return false;
    }
    in.carry = out.carry;
    in.carry_n = out.carry_n;
    in.from_version = from->version->version;
    return explain_run(&in, prt_guard_cpcall(g, to->vm.L, body_import, &in), err) == POOLRT_OK;
}
