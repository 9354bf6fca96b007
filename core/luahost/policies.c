/* policies.c - the tree of rows, units and seats; bindings; what a worker does at its turn.
 * Owns: the tree.   Threads: shared parts under ps->mu, which is held for pointer moves only, never
 * around Lua, a file or a callback; a seat's state belongs to the worker of its lane.
 * Idea: a worker looks at one flag per loop turn. When it is up, the worker takes over whatever was
 * committed for it, between two requests, and bumps the version number of the pools concerned, so
 * that answers cached under the old policies are forgotten. */
#include "luahost/luahost_int.h"

#include <stdlib.h>
#include <string.h>

void prt_policies_poke(struct prt_policies *ps, unsigned lane)
{
    /* release: pairs with the exchange in prt_policies_turn; what was laid out for it is visible */
    atomic_store_explicit(&ps->lane[lane].has_news, true, memory_order_release);
    if (ps->wake) {
        ps->wake(ps->wake_ctx, lane);
    }
}

/* ---- rows, chains ---- */

static struct prt_row *find_row_locked(struct prt_policies *ps, const char *name)
{
    struct prt_row *row = ps->rows;

    while (row && strcmp(row->name, name) != 0) {
        row = row->next;
    }
    return row;
}

static void row_free(struct prt_row *row)
{
    if (row) {
        free(row->name);
        free(row->lane);
        free(row);
    }
}

struct prt_row *prt_row_get(struct prt_policies *ps, const char *name)
{
    (void)pthread_mutex_lock(&ps->mu);
    struct prt_row *row = find_row_locked(ps, name);
    if (!row && (row = calloc(1, sizeof *row))) {
        row->name = strdup(name);
        row->lane = calloc(ps->lanes, sizeof *row->lane);
        prt_list_init(&row->bindings);
        if (row->name && row->lane) {
            row->next = ps->rows;
            ps->rows = row;
        } else {
            row_free(row);
            row = NULL;
        }
    }
    (void)pthread_mutex_unlock(&ps->mu);
    return row;
}

void prt_inst_pile_locked(struct prt_policies *ps, struct prt_inst *inst)
{
    if (inst) {
        inst->next = ps->pile;
        ps->pile = inst;
    }
}

void prt_chain_drop_locked(struct prt_policies *ps, struct prt_chain *c)
{
    if (c && --c->refs == 0) {
        c->next = ps->chain_pile;
        ps->chain_pile = c;
    }
}

static uint32_t hooks_of_locked(const struct prt_row *row)
{
    uint32_t hooks = 0;

    for (int i = 0; row->chain && i < row->chain->n; i++) {
        hooks |= row->chain->unit[i]->version->hooks;
    }
    return hooks;
}

void prt_row_widen_locked(struct prt_row *row)
{
    uint32_t hooks = hooks_of_locked(row);

    for (struct prt_link *l = row->bindings.next; l != &row->bindings; l = l->next) {
        struct prt_binding *b = prt_container_of(l, struct prt_binding, link);
        /* relaxed: a worker that asks too early finds nobody, which is an answer */
        atomic_fetch_or_explicit(&b->ops.hooks, hooks, memory_order_relaxed);
    }
}

/* Every lane has the same: hooks that nobody has any more need not be asked. */
static void narrow_locked(struct prt_policies *ps, struct prt_row *row)
{
    uint32_t hooks = hooks_of_locked(row);

    for (unsigned lane = 0; lane < ps->lanes; lane++) {
        if (row->lane[lane].generation != row->generation) {
            return;
        }
    }
    for (struct prt_link *l = row->bindings.next; l != &row->bindings; l = l->next) {
        struct prt_binding *b = prt_container_of(l, struct prt_binding, link);
        atomic_store_explicit(&b->ops.hooks, hooks, memory_order_relaxed);
    }
}

/* ---- units ---- */

struct prt_unit *prt_unit_new(struct prt_policies *ps, struct prt_row *row,
                              const struct prt_policy_config *pc)
{
    struct prt_unit *u = calloc(1, sizeof *u);

    if (!u) {
        return NULL;
    }
    u->ps = ps;
    u->row = row;
    u->refs = 1;
    (void)pthread_mutex_init(&u->error_mu, NULL);
    u->policy = strdup(pc->name);
    u->settings = strdup(pc->config ? pc->config : "return {}");
    u->where = strdup(pc->where ? pc->where : "");
    u->seat = calloc(ps->lanes, sizeof *u->seat);
    if (!u->policy || !u->settings || !u->where || !u->seat) {
        prt_unit_unref(u);
        return NULL;
    }
    return u;
}

static void unit_free(struct prt_unit *u)
{
    for (unsigned lane = 0; u->seat && lane < u->ps->lanes; lane++) {
        struct prt_seat *seat = &u->seat[lane];
        prt_inst_free(seat->inst);
        prt_inst_free(seat->next);
        for (int hook = 0; hook < PRT_HOOKS; hook++) {
            free(seat->health[hook].memo);
        }
    }
    prt_version_unref(u->version);
    prt_version_unref(u->previous);
    (void)pthread_mutex_destroy(&u->error_mu);
    free(u->policy), free(u->settings), free(u->where), free(u->seat);
    free(u);
}

void prt_unit_unref(struct prt_unit *u)
{
    (void)pthread_mutex_lock(&u->ps->mu);
    bool last = --u->refs == 0;
    (void)pthread_mutex_unlock(&u->ps->mu);
    if (last) {
        unit_free(u);
    }
}

struct prt_unit **prt_policies_units(struct prt_policies *ps, int *n)
{
    struct prt_unit **list = NULL;
    size_t all = 0;

    *n = 0;
    (void)pthread_mutex_lock(&ps->mu);
    for (struct prt_row *row = ps->rows; row; row = row->next) {
        all += row->chain ? (size_t)row->chain->n : 0;
    }
    if (all && (list = calloc(all, sizeof(struct prt_unit *)))) {
        for (struct prt_row *row = ps->rows; row; row = row->next) {
            for (int i = 0; row->chain && i < row->chain->n; i++) {
                list[(*n)++] = row->chain->unit[i];
                row->chain->unit[i]->refs++;
            }
        }
    }
    (void)pthread_mutex_unlock(&ps->mu);
    return list;
}

void prt_unit_error(struct prt_unit *u, const char *text)
{
    /* a worker does not wait for a reader: this error is then not the last one shown */
    if (pthread_mutex_trylock(&u->error_mu)) {
        return;
    }
    size_t n = strlen(text);
    n = n < sizeof u->last_error ? n : sizeof u->last_error - 1;
    memcpy(u->last_error, text, n);
    u->last_error[n] = '\0';
    u->last_error_at_us = prt_wall_us();
    (void)pthread_mutex_unlock(&u->error_mu);
}

/* ---- a version that had to be stopped ---- */

/* v was stopped three times in ten minutes. The version before it serves again, if it had proved
 * itself; else on_fail decides until the file changes. Returns whether there was one. */
static bool disable_locked(struct prt_unit *u, struct prt_version *v)
{
    /* relaxed: see may_ask */
    atomic_store_explicit(&v->disabled, true, memory_order_relaxed);
    memcpy(u->disabled, v->sha256, sizeof u->disabled);
    if (!u->previous) {
        return false;
    }
    u->version = u->previous;
    u->previous = NULL;
    u->since_us = prt_policies_clock();
    u->version_kills = 0;
    u->row->generation++;
    prt_row_widen_locked(u->row);
    return true;
}

static bool count_kill_locked(struct prt_unit *u, const struct prt_version *v)
{
    int64_t now = prt_policies_clock();

    if (u->version != v || atomic_load_explicit(&v->disabled, memory_order_relaxed)) {
        return false;
    }
    u->killed_at[u->version_kills++ % PRT_KILLS] = now;
    return u->version_kills >= PRT_KILLS &&
           now - u->killed_at[u->version_kills % PRT_KILLS] <= PRT_KILLS_US;
}

void prt_unit_killed(struct prt_unit *u, struct prt_version *v, unsigned lane)
{
    bool enough, back = false;

    /* relaxed: a counter for people */
    atomic_fetch_add_explicit(&u->kills, 1, memory_order_relaxed);
    (void)pthread_mutex_lock(&u->ps->mu);
    enough = count_kill_locked(u, v);
    if (enough) {
        back = disable_locked(u, v);
    }
    (void)pthread_mutex_unlock(&u->ps->mu);
    prt_policies_poke(u->ps, lane);
    if (!enough) {
        return;
    }
    prt_log(PRT_LOG_ERROR, back ? "policy_rolled_back" : "policy_disabled",
            prt_kv_z("policy", u->policy), prt_kv_z("pool", u->row->name),
            prt_kv_z("version", v->version), prt_kv_z("sha256", v->sha256),
            prt_kv_z("reason", "3 calls in 10 minutes did not end"));
    if (back) {
        prt_version_unref(v); /* the unit's; the caller's state has one of its own */
        for (unsigned i = 0; i < u->ps->lanes; i++) {
            prt_policies_poke(u->ps, i);
        }
    }
}

/* ---- a worker's turn ---- */

static void take_chain_locked(struct prt_policies *ps, struct prt_row *row, unsigned lane)
{
    struct prt_row_lane *rl = &row->lane[lane];

    if (rl->generation == row->generation) {
        return;
    }
    rl->generation = row->generation;
    rl->swapped = true;
    if (rl->chain != row->chain) {
        prt_chain_drop_locked(ps, rl->chain);
        rl->chain = row->chain;
        rl->chain->refs++;
    }
    for (int i = 0; i < rl->chain->n; i++) {
        struct prt_seat *seat = &rl->chain->unit[i]->seat[lane];
        if (seat->next) {
            seat->old = seat->inst;
            seat->inst = seat->next;
            seat->next = NULL;
        }
    }
    narrow_locked(ps, row);
}

static void forget_health(struct prt_seat *seat)
{
    for (int hook = 0; hook < PRT_HOOKS; hook++) {
        struct prt_health *h = &seat->health[hook];
        h->in_a_row = h->ring_n = 0;
        atomic_store_explicit(&h->quarantined, false, memory_order_relaxed);
    }
}

/* The new state begins with what the old one hands over. What failed half-way is built anew. */
static void hand_over(struct prt_policies *ps, struct prt_unit *u, unsigned lane)
{
    struct prt_seat *seat = &u->seat[lane];
    struct prt_err err;

    forget_health(seat);
    if (!prt_inst_carry(&ps->lane[lane].guard, seat->old, seat->inst, &err)) {
        seat->inst->dead = true;
        prt_unit_error(u, err.text);
        prt_log_limited(&u->failed_limit, PRT_LOG_WARN, "policy_state_lost",
                        prt_kv_z("policy", u->policy), prt_kv_z("pool", u->row->name),
                        prt_kv_z("error", err.text));
    }
}

static void want_locked(struct prt_unit *u, struct prt_seat *seat)
{
    bool right = seat->inst && !seat->inst->dead && seat->inst->version == u->version;

    /* relaxed: set under this lock */
    if (!right && !seat->next &&
        !atomic_load_explicit(&u->version->disabled, memory_order_relaxed)) {
        seat->want = prt_version_ref(u->version);
    }
}

/* A state was lost, or an earlier version serves again: build it here. Its text has passed the
 * loader's checks, so this takes well under a millisecond; the guard and the instruction limit see
 * to the rest. It is not warmed: the next hundred calls are interpreted. */
static void rebuild(struct prt_policies *ps, struct prt_unit *u, unsigned lane)
{
    struct prt_seat *seat = &u->seat[lane];
    const struct prt_source src = {u->policy, u->settings, u->where, u->row->name, &u->log_limit};
    struct prt_inst *inst = NULL;
    struct prt_err err;

    if (prt_inst_new(&ps->lane[lane].guard, &src, seat->want, lane, false, &inst, &err)) {
        prt_unit_error(u, err.text);
        prt_log_limited(&u->failed_limit, PRT_LOG_ERROR, "policy_not_rebuilt",
                        prt_kv_z("policy", u->policy), prt_kv_z("error", err.text));
    } else {
        (void)pthread_mutex_lock(&ps->mu);
        prt_inst_pile_locked(ps, seat->inst);
        (void)pthread_mutex_unlock(&ps->mu);
        if (seat->inst && seat->inst->version != seat->want) {
            forget_health(seat);
        }
        seat->inst = inst;
    }
    prt_version_unref(seat->want);
    seat->want = NULL;
}

static void collect(struct prt_unit *u, struct prt_inst *inst)
{
    inst->collect = false;
    if (inst->dead) {
        return;
    }
    prt_vm_collect(&inst->vm);
    if (inst->vm.used <= PRT_LUA_SOFT_BYTES) {
        inst->collect_above = PRT_LUA_SOFT_BYTES;
        return;
    }
    /* not garbage: do not look again at every turn */
    inst->collect_above = inst->vm.used + inst->vm.used / 4;
    prt_log_limited(&u->failed_limit, PRT_LOG_WARN, "policy_memory", prt_kv_z("policy", u->policy),
                    prt_kv_z("pool", u->row->name), prt_kv_int("bytes", (int64_t)inst->vm.used),
                    prt_kv_int("limit_bytes", PRT_LUA_HARD_BYTES));
}

/* What needs time: no lock is held. A seat's fields and the lane's chains are this worker's. */
static void work_on_seats(struct prt_policies *ps, struct prt_row *rows, unsigned lane)
{
    for (struct prt_row *row = rows; row; row = row->next) {
        struct prt_chain *chain = row->lane[lane].chain;
        for (int i = 0; chain && i < chain->n; i++) {
            struct prt_unit *u = chain->unit[i];
            struct prt_seat *seat = &u->seat[lane];
            if (seat->old) {
                hand_over(ps, u, lane);
            }
            (void)pthread_mutex_lock(&ps->mu);
            prt_inst_pile_locked(ps, seat->old);
            seat->old = NULL;
            want_locked(u, seat);
            (void)pthread_mutex_unlock(&ps->mu);
            if (seat->want) {
                rebuild(ps, u, lane);
            }
            if (seat->inst && seat->inst->collect) {
                collect(u, seat->inst);
            }
        }
    }
}

static void announce_locked(struct prt_row *row, unsigned lane)
{
    if (!row->lane[lane].swapped) {
        return;
    }
    row->lane[lane].swapped = false;
    for (struct prt_link *l = row->bindings.next; l != &row->bindings; l = l->next) {
        struct prt_binding *b = prt_container_of(l, struct prt_binding, link);
        /* relaxed: this worker sees its own change; the others change by a turn of their own */
        atomic_fetch_add_explicit(&b->ops.version, 1, memory_order_relaxed);
    }
}

PRT_COLD static void take_over(struct prt_policies *ps, unsigned lane)
{
    struct prt_row *rows;

    ps->lane[lane].answered = NULL;
    (void)pthread_mutex_lock(&ps->mu);
    rows = ps->rows;
    for (struct prt_row *row = rows; row; row = row->next) {
        take_chain_locked(ps, row, lane);
    }
    (void)pthread_mutex_unlock(&ps->mu);
    work_on_seats(ps, rows, lane);
    (void)pthread_mutex_lock(&ps->mu);
    for (struct prt_row *row = rows; row; row = row->next) {
        announce_locked(row, lane);
    }
    (void)pthread_mutex_unlock(&ps->mu);
}

void prt_policies_turn(struct prt_policies *ps, unsigned lane)
{
    struct prt_lane *ln = &ps->lane[lane];

    /* relaxed: only a look; the exchange orders */
    if (__builtin_expect(!atomic_load_explicit(&ln->has_news, memory_order_relaxed), 1)) {
        return;
    }
    /* acquire: pairs with the release in prt_policies_poke */
    if (atomic_exchange_explicit(&ln->has_news, false, memory_order_acquire)) {
        take_over(ps, lane);
    }
}

void prt_policies_worker_start(struct prt_policies *ps, unsigned lane)
{
    prt_assert(lane < ps->lanes);
    if (prt_guard_start(&ps->lane[lane].guard)) {
        prt_log(PRT_LOG_ERROR, "policy_guard_off", prt_kv_int("worker", lane),
                prt_kv_z("error", "no timer: a policy that loops will not be stopped"));
    }
    atomic_store_explicit(&ps->lane[lane].has_news, true, memory_order_relaxed);
    prt_policies_turn(ps, lane);
}

void prt_policies_worker_stop(struct prt_policies *ps, unsigned lane)
{
    prt_guard_stop(&ps->lane[lane].guard);
}

/* ---- bindings ---- */

struct prt_policy_ops *prt_policies_bind(struct prt_policies *ps, const char *name)
{
    struct prt_row *row = prt_row_get(ps, name);
    struct prt_binding *b = row ? calloc(1, sizeof *b) : NULL;

    if (!b) {
        return NULL;
    }
    b->ps = ps;
    b->row = row;
    b->ops.route = prt_hook_ops.route;
    b->ops.admit = prt_hook_ops.admit;
    b->ops.bad_route = prt_hook_ops.bad_route;
    atomic_init(&b->ops.version, 1);
    (void)pthread_mutex_lock(&ps->mu);
    atomic_init(&b->ops.hooks, hooks_of_locked(row));
    prt_list_push(&row->bindings, &b->link);
    (void)pthread_mutex_unlock(&ps->mu);
    return &b->ops;
}

void prt_policies_unbind(struct prt_policies *ps, struct prt_policy_ops *ops)
{
    if (!ops) {
        return;
    }
    struct prt_binding *b = prt_container_of(ops, struct prt_binding, ops);
    (void)pthread_mutex_lock(&ps->mu);
    prt_list_del(&b->link);
    (void)pthread_mutex_unlock(&ps->mu);
    free(b);
}

/* ---- birth and end ---- */

poolrt_rc prt_policies_new(struct prt_policies **out, unsigned lanes,
                           void (*wake)(void *ctx, unsigned lane), void *ctx, struct prt_err *err)
{
    struct prt_policies *ps = calloc(1, sizeof *ps);

    prt_assert(lanes > 0);
    if (ps) {
        ps->lane = calloc(lanes, sizeof *ps->lane);
    }
    if (!ps || !ps->lane || pthread_mutex_init(&ps->mu, NULL)) {
        free(ps);
        return prt_fail(err, POOLRT_NOMEM, "no memory for the policies");
    }
    ps->lanes = lanes;
    ps->wake = wake;
    ps->wake_ctx = ctx;
    for (unsigned lane = 0; lane < lanes; lane++) {
        ps->lane[lane].guard.ask_at = PRT_GUARD_ASK;
        ps->lane[lane].guard.kill_at = PRT_GUARD_KILL;
    }
    *out = ps;
    return POOLRT_OK;
}

void prt_policies_reap(struct prt_policies *ps)
{
    (void)pthread_mutex_lock(&ps->mu);
    struct prt_inst *inst = ps->pile;
    struct prt_chain *chain = ps->chain_pile;
    ps->pile = NULL;
    ps->chain_pile = NULL;
    (void)pthread_mutex_unlock(&ps->mu);
    while (inst) {
        struct prt_inst *next = inst->next;
        prt_inst_free(inst);
        inst = next;
    }
    while (chain) {
        struct prt_chain *next = chain->next;
        for (int i = 0; i < chain->n; i++) {
            prt_unit_unref(chain->unit[i]);
        }
        free(chain);
        chain = next;
    }
}

static void drop_row(struct prt_policies *ps, struct prt_row *row)
{
    (void)pthread_mutex_lock(&ps->mu);
    for (unsigned lane = 0; lane < ps->lanes; lane++) {
        prt_chain_drop_locked(ps, row->lane[lane].chain);
    }
    prt_chain_drop_locked(ps, row->chain);
    (void)pthread_mutex_unlock(&ps->mu);
    for (struct prt_link *l = row->bindings.next, *next; l != &row->bindings; l = next) {
        next = l->next;
        free(prt_container_of(l, struct prt_binding, link));
    }
}

void prt_policies_free(struct prt_policies *ps)
{
    if (!ps) {
        return;
    }
    for (struct prt_row *row = ps->rows; row; row = row->next) {
        drop_row(ps, row);
    }
    prt_policies_reap(ps);
    while (ps->rows) {
        struct prt_row *next = ps->rows->next;
        row_free(ps->rows);
        ps->rows = next;
    }
    for (int i = 0; i < ps->n_path; i++) {
        free(ps->path[i]);
    }
    free(ps->path);
    (void)pthread_mutex_destroy(&ps->mu);
    free(ps->lane);
    free(ps);
}
