/* luahost_int.h - what the files of the policy host share. Never leaves this room.
 *
 *   row (a pool of the configuration) --> chain --> unit, unit, ...     in the order of `policies`
 *   unit (one policy file with its settings in one row) --> version     the text in use
 *                                                       --> seat        one per worker
 *   seat --> inst (one Lua state, built from a version)                 used by that worker alone
 *
 * The loader builds insts; commit lays them into `next` of the seats; each worker takes its own at
 * its next turn and puts the old one on the pile that the loader clears away. */
#ifndef PRT_LUAHOST_INT_H
#define PRT_LUAHOST_INT_H
#include "base/log.h"
#include "base/sha256.h"
#include "luahost/abi.h"
#include "luahost/luahost.h"

#include <lauxlib.h>
#include <lua.h>
#include <luajit.h>
#include <lualib.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <time.h>

#define PRT_LUA_SOFT_BYTES (8u << 20) /* above: collect, outside of hooks */
#define PRT_LUA_HARD_BYTES                                                                         \
    (32u << 20)                      /* above: "not enough memory"; LuaJIT does not collect first */
#define PRT_LUA_CARRY_MAX (1u << 20) /* exported state, encoded */
#define PRT_LUA_INSTRUCTIONS 1000000 /* to load and init, and for each made-up request */
#define PRT_POLICY_TEXT_MAX (1u << 20) /* longest policy file */

/* ---- guard.c: stops Lua that does not end ---- */
enum prt_run {
    PRT_RUN_OK,
    PRT_RUN_ERROR,   /* a Lua error; its value is on the stack */
    PRT_RUN_STOPPED, /* stage 1: the same, or nil when the code went on regardless */
    PRT_RUN_KILLED,  /* stage 2: jumped out: the state must never be touched again, not even closed
                      */
};

/** One per thread that runs policies. All zero: not started; calls work, but are not stopped. */
struct prt_guard {
    /* owner thread, read by its signal handler */
    sigjmp_buf out;
    lua_State *volatile L;
    volatile uint64_t call;        /* odd: inside Lua; each call has its own number */
    volatile uint64_t seen;        /* the call that the last tick found */
    volatile int ticks;            /* how many ticks found it since */
    volatile sig_atomic_t in_host; /* inside a function of ours that must not be left by a jump */
    volatile sig_atomic_t stopped; /* stage 1 was used in this call */
    int ask_at, kill_at;           /* ticks of the stages */
    /* owner thread */
    timer_t timer;
    bool has_timer;
    struct prt_guard *outer; /* the thread's other guard: a worker that also loads */
};
/* A tick is 4 ms of the thread's own CPU time. Hooks: an error after 8 ms, the jump after 16.
 * Loading is bounded by instructions, so there the guard is for what is one instruction to Lua,
 * such as a pattern that backtracks. */
#define PRT_GUARD_TICK_NS 4000000
#define PRT_GUARD_ASK 2
#define PRT_GUARD_KILL 4
#define PRT_GUARD_LOAD_ASK 60
#define PRT_GUARD_LOAD_KILL 64

/** The calling thread's timer starts. _IO: no timer; the guard then stops nothing. */
PRT_MUST_CHECK poolrt_rc prt_guard_start(struct prt_guard *g) ON_ANY;
void prt_guard_stop(struct prt_guard *g) ON_ANY;
/** lua_pcall(L, nargs, nresults, 0) that ends. Nothing of ours may be held or open around it. */
enum prt_run prt_guard_call(struct prt_guard *g, lua_State *L, int nargs, int nresults) ON_ANY;
/** lua_cpcall that ends. */
enum prt_run prt_guard_cpcall(struct prt_guard *g, lua_State *L, lua_CFunction f, void *arg) ON_ANY;
/** Around what takes a lock or writes, in functions that Lua calls: no jump happens in between.
 *  Nothing in between may call Lua or raise an error. */
void prt_guard_enter_host(void) ON_ANY;
void prt_guard_leave_host(void) ON_ANY;

/* ---- vm.c: a Lua state with limits and the functions of the host ---- */
struct prt_vm {
    lua_State *L;
    lua_Alloc
        alloc; /* LuaJIT's own: private to the state and without locks, so a jump is harmless */
    void *alloc_ud;
    size_t used, limit;
    const char *policy;              /* for poolrt.log; borrowed while the state runs */
    struct prt_log_limit *log_limit; /* borrowed */
};
/** false: no memory. */
PRT_MUST_CHECK bool prt_vm_open(struct prt_vm *vm) ON_ANY;
void prt_vm_close(struct prt_vm *vm) ON_ANY;
/** A full collection; never fails. */
void prt_vm_collect(struct prt_vm *vm) ON_ANY;
/** Protected callers only. Leaves the module poolrt.policy on the stack. */
void prt_vm_load_policy_module(lua_State *L) ON_ANY;
/** Protected callers only. Leaves a table of C functions: log, warn, now, hash, date. */
void prt_vm_push_host(lua_State *L, struct prt_vm *vm) ON_ANY;
/** From a debug hook: an error with the place of the line that runs. */
_Noreturn void prt_vm_raise_at(lua_State *L, lua_Debug *ar, const char *text) ON_ANY;
/** The text that ffi.cdef reads. */
extern const char prt_vm_cdef[];

/* ---- hooks.c: one hook of one state, and its answer ---- */
enum prt_hook_index { PRT_H_ROUTE, PRT_H_ADMIT, PRT_HOOKS };
enum prt_on_fail { PRT_FAIL_DEFAULT, PRT_FAIL_REJECT, PRT_FAIL_LAST };

const char *prt_hook_name(int hook);
void prt_view_fill(struct prt_lua_view *view, const struct prt_req_view *rq,
                   const struct prt_part_view *part);
/** Forget what the view borrows. */
void prt_view_clear(struct prt_lua_view *view);
/** The four results on top of the stack as an answer. NULL: fine; else what is wrong with them, in
 *  buf. Never raises an error, never allocates. */
const char *prt_hook_read(lua_State *L, int hook, struct prt_answer *out, char *buf, size_t cap);

/* ---- inst.c: versions, and states made from them ---- */

/** One text of a policy file that passed, with the settings and partitions it passed with.
 * Immutable but for `disabled`. References: its unit (version, previous), plans, insts. */
struct prt_version {
    _Atomic int refs;
    _Atomic bool disabled; /* killed too often; workers look, under ps->mu it is set */
    char *text, *file;
    size_t text_n;
    char sha256[PRT_SHA256_HEX];
    char *partitions; /* "name\0type\0match\0max\0min\0priority\0" each */
    size_t partitions_n;
    int64_t loaded_at_us; /* wall clock */
    /* as the file says */
    char *name, *version;
    uint32_t hooks; /* PRT_HOOK_ bits */
    uint32_t in_c;  /* of these, the constants */
    enum prt_scope scope;
    enum prt_on_fail on_fail[PRT_HOOKS];
    struct prt_answer constant[PRT_HOOKS];
    bool exports, imports;
};

/** One Lua state. The loader's until it is laid into a seat, then that worker's. */
struct prt_inst {
    struct prt_vm vm;
    struct prt_version *version; /* one reference */
    struct prt_lua_view view;    /* its address is known to the state */
    int handle;            /* policy.lua's State, in the registry; hooks lie at 1..PRT_HOOKS */
    bool dead;             /* abandoned, or unusable: only to be cleared away */
    bool abandoned;        /* of these, jumped out of: not to be closed */
    bool collect;          /* at the next turn */
    size_t collect_above;  /* bytes */
    struct prt_inst *next; /* on the pile */
};

/** What is built and for whom: the identity that a unit and its candidates share. Borrowed. */
struct prt_source {
    const char *policy, *settings, *where, *row;
    struct prt_log_limit *log_limit;
};
/** An unchecked text; copies all. NULL: no memory. */
struct prt_version *prt_version_new(const char *file, struct prt_str text,
                                    struct prt_str partitions) ON_ANY;
/** Run it, its settings, its self-test and made-up requests in a state that is thrown away, and
 * fill in what the file says. err: "FILE:LINE: text"; settings: where the configuration says them.
 */
PRT_MUST_CHECK poolrt_rc prt_version_check(struct prt_guard *g, const struct prt_source *src,
                                           struct prt_version *v, struct prt_err *err) ON_ANY;
struct prt_version *prt_version_ref(struct prt_version *v) ON_ANY;
void prt_version_unref(struct prt_version *v) ON_ANY;
/** A state for the worker `lane`. warm: call its hooks until they are compiled (loader only). */
PRT_MUST_CHECK poolrt_rc prt_inst_new(struct prt_guard *g, const struct prt_source *src,
                                      struct prt_version *v, unsigned lane, bool warm,
                                      struct prt_inst **out, struct prt_err *err) ON_ANY;
/** NULL is accepted. Not for the worker's path: closing a state takes its time. */
void prt_inst_free(struct prt_inst *inst) ON_ANY;
/** Hand the exported state of `from` to `to`. false: `to` may be half filled and must not be used;
 * why is in err. */
PRT_MUST_CHECK bool prt_inst_carry(struct prt_guard *g, struct prt_inst *from, struct prt_inst *to,
                                   struct prt_err *err) ON_ANY;

/* ---- the tree: units, seats, rows ---- */

/** Memory of good answers, for on_fail = "last": by tenant, user, database and application. Sets of
 *  four, the oldest of a set goes first. */
#define PRT_MEMO_SETS 32
#define PRT_MEMO_WAYS 4
struct prt_memo_row {
    uint64_t key; /* 0: empty */
    struct prt_answer answer;
};
struct prt_memo {
    struct prt_memo_row set[PRT_MEMO_SETS][PRT_MEMO_WAYS]; /* newest first */
    struct prt_memo_row fresh; /* given out, and not yet complained about by bad_route */
};

#define PRT_FAIL_RUN 20         /* failures in a row ... */
#define PRT_FAIL_WINDOW 1000    /* ... or more than half of so many calls ... */
#define PRT_PROBE_US 30000000LL /* ... and the hook is asked only once per so long */

/** How a hook does on one worker. Owner worker; the atomics are read by anyone. */
struct prt_health {
    _Atomic uint64_t calls, failures;
    _Atomic bool quarantined;
    uint32_t in_a_row;
    int64_t probe_at_us;
    uint64_t ring[PRT_FAIL_WINDOW / 2 + 1]; /* the call numbers of the last 501 failures */
    uint32_t ring_n, ring_at;
    struct prt_memo *memo; /* made with the first answer worth remembering */
};

struct prt_seat {
    /* owner worker */
    struct prt_inst *inst, *old; /* old: during a turn */
    struct prt_version *want;    /* during a turn: to be built here, a reference */
    struct prt_health health[PRT_HOOKS];
    /* under ps->mu */
    struct prt_inst *next; /* committed, not yet taken */
    char pad[PRT_CACHE_LINE];
};

#define PRT_KILLS 3
#define PRT_KILLS_US 600000000LL /* so many kills in so long: the version is disabled */
#define PRT_CLEAN_US 60000000LL  /* a version that ran so long without one may be fallen back to */

struct prt_unit {
    struct prt_policies *ps;
    struct prt_row *row;
    char *policy, *settings, *where;
    struct prt_log_limit failed_limit, log_limit;
    _Atomic uint64_t kills, swaps;
    /* under ps->mu */
    int refs; /* chains, plans */
    struct prt_version *version, *previous;
    char seen[PRT_SHA256_HEX]; /* the last text looked at, taken or not; "": there was no file */
    char disabled[PRT_SHA256_HEX]; /* the text that was killed too often; "": none */
    bool warned_writable;
    int64_t since_us; /* the version's first commit */
    int64_t killed_at[PRT_KILLS];
    uint32_t version_kills;
    uint64_t rejected;
    /* under error_mu: a leaf, held for a copy */
    pthread_mutex_t error_mu;
    char last_error[400];
    int64_t last_error_at_us;
    struct prt_seat *seat; /* [lanes] */
};

/** An order of units; immutable. References under ps->mu: its row, and each lane that uses it. */
struct prt_chain {
    int refs;
    struct prt_chain *next; /* on the pile */
    int n;
    struct prt_unit *unit[];
};

struct prt_row_lane {
    struct prt_chain *chain; /* owner worker */
    bool swapped;            /* owner worker, during a turn */
    uint32_t generation;     /* under ps->mu: which commit it has taken over */
};
struct prt_row {
    char *name;
    struct prt_row *next;
    /* under ps->mu */
    struct prt_chain *chain;
    uint32_t generation;
    struct prt_link bindings;
    struct prt_row_lane *lane; /* [lanes] */
};
struct prt_binding {
    struct prt_policy_ops ops;
    struct prt_policies *ps;
    struct prt_row *row;
    struct prt_link link; /* of its row */
};

struct prt_lane {
    _Atomic bool has_news; /* a turn has something to do */
    /* owner worker */
    struct prt_guard guard;
    struct prt_unit *answered; /* who gave the last answer of route, for bad_route */
    char pad[PRT_CACHE_LINE];
};

struct prt_policies {
    /* set at creation */
    unsigned lanes;
    void (*wake)(void *ctx, unsigned lane);
    void *wake_ctx;
    struct prt_lane *lane;
    /* rows are added under mu at the front and stay until the end, so they may be walked under mu
     */
    pthread_mutex_t mu;
    struct prt_row *rows;
    char **path; /* policy_path of the last commit, as folders */
    int n_path;
    struct prt_inst *pile; /* old states, to be closed by the loader */
    struct prt_chain *chain_pile;
};

/* ---- policies.c: the tree, and what workers do with it ---- */
/** Something for the lane to do at its next turn. */
void prt_policies_poke(struct prt_policies *ps, unsigned lane) ON_ANY;
/** The guard had to stop a call of u's version on this lane. */
void prt_unit_killed(struct prt_unit *u, struct prt_version *v, unsigned lane) ON_WORKER;
void prt_unit_error(struct prt_unit *u, const char *text) ON_ANY;
/** Found or made; NULL: no memory. Takes ps->mu. */
struct prt_row *prt_row_get(struct prt_policies *ps, const char *name) ON_ANY;
/** One reference; NULL: no memory. */
struct prt_unit *prt_unit_new(struct prt_policies *ps, struct prt_row *row,
                              const struct prt_policy_config *pc) ON_ANY;
/** Takes ps->mu. */
void prt_unit_unref(struct prt_unit *u) ON_ANY;
/** All units in use, a reference to each, in malloc'd memory. NULL with *n = 0: none, or no memory.
 */
struct prt_unit **prt_policies_units(struct prt_policies *ps, int *n) ON_ANY;
/** Under ps->mu: the row's bindings may be asked for the hooks of its chain, too. */
void prt_row_widen_locked(struct prt_row *row) ON_ANY;
/** Under ps->mu: one reference less; without any it goes on the pile. NULL is accepted. */
void prt_chain_drop_locked(struct prt_policies *ps, struct prt_chain *c) ON_ANY;
void prt_inst_pile_locked(struct prt_policies *ps, struct prt_inst *inst) ON_ANY;
/** Close and free what lies on the piles. */
void prt_policies_reap(struct prt_policies *ps) ON_ANY;

/** ops for a binding. */
extern const struct prt_policy_ops prt_hook_ops;

/** Tests move this one by hand; everything here asks it. */
extern int64_t (*prt_policies_clock)(void);

#endif
