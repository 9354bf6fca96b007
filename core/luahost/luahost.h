/* luahost.h - Lua's door: the configuration file and the policies. Only this room and admin/bind.c
 * include lua.h.
 *
 * config.c  config.lua -> struct prt_config        vm.c      states, sandbox, memory limit
 * hooks.c   C calls Lua: views, wrappers, answers  guard.c   stops a policy that does not end
 * reload.c  versions: prepare, commit, hand over
 *
 * Threads. config and prepare: any thread (the loader's), one at a time. commit: control. turn and
 * the hooks: the worker whose lane is named; each worker has states of its own, used by nobody
 * else. */
#ifndef PRT_LUAHOST_H
#define PRT_LUAHOST_H
#include "base/base.h"
#include "base/config.h"
#include "pool/ops.h"

/* ---- config.c ---- */
/** Run config.lua in a sandbox and check what it returns. *out is owned by the caller (one
 * reference). _CONFIG: err->text names file and line (where Lua can tell), the key and its place
 *  ("pools.app.partitions.acme.max_connections"), what is wrong, and the nearest known key or the
 * values that are allowed. Also refused here: files named by it that cannot be read. */
PRT_MUST_CHECK poolrt_rc prt_config_load(const char *path, struct prt_config **out,
                                         struct prt_err *err) ON_ANY;

/* ---- the Lua sources that ride in the binary (lua/poolrt/NAME.lua) ---- */
struct prt_embedded_file {
    const char *name; /* "poolrt.config" */
    const char *begin, *end;
};
extern const struct prt_embedded_file prt_embedded_lua[]; /* ends with name NULL */
struct lua_State;
/** Standard libraries, and require() of the embedded poolrt.* modules and cjson; for the
 * configuration, the admin handlers and tests, not for policies. NULL: no memory. */
struct lua_State *prt_lua_new(void) ON_ANY;

/* ---- policies ---- */
struct prt_policies;    /* all policies of a runtime */
struct prt_policy_plan; /* versions that are built and checked, but not yet in use */

/** wake(ctx, lane): make that worker turn soon. */
PRT_MUST_CHECK poolrt_rc prt_policies_new(struct prt_policies **out, unsigned lanes,
                                          void (*wake)(void *ctx, unsigned lane), void *ctx,
                                          struct prt_err *err) ON_ANY;
/** After all workers stopped. NULL is accepted. */
void prt_policies_free(struct prt_policies *ps) ON_ANY;

/** Load, check, build and warm whatever `cfg` names and is not loaded yet in this text: one state
 * per worker and policy file with its settings. Nothing is in use before commit. A policy that
 * cannot be loaded: _CONFIG and a sentence with file and line; *plan is NULL and nothing changed.
 */
PRT_MUST_CHECK poolrt_rc prt_policies_prepare(struct prt_policies *ps, const struct prt_config *cfg,
                                              struct prt_policy_plan **plan,
                                              struct prt_err *err) ON_ANY;
/** Look at the files in use again. *plan is NULL when no text changed. A changed file that is
 * broken is named in the log and kept in its old version (shown by prt_policies_each); the others
 * go on. */
PRT_MUST_CHECK poolrt_rc prt_policies_refresh(struct prt_policies *ps,
                                              struct prt_policy_plan **plan,
                                              struct prt_err *err) ON_ANY;
/** Takes the plan: each worker swaps at its next turn, between two requests; pools' hooks and
 * version numbers change with it. Old states are closed later by the next prepare, refresh or free.
 */
void prt_policies_commit(struct prt_policies *ps, struct prt_policy_plan *plan) ON_CONTROL;
/** Drop a plan that will not be used. NULL is accepted. */
void prt_policies_abandon(struct prt_policies *ps, struct prt_policy_plan *plan) ON_ANY;
/** Call f for each directory that holds a file in use, or may (policy_path): for the watcher. */
void prt_policies_each_dir(struct prt_policies *ps, void (*f)(void *arg, const char *dir),
                           void *arg) ON_ANY;

/** The decisions of the pool `name` (made from the row `row` of the configuration: the same name,
 * or
 *  "*"). Valid, and following each commit, until prt_policies_unbind(). NULL: no memory. A pool
 * without policies gets ops whose `hooks` is 0. */
struct prt_policy_ops *prt_policies_bind(struct prt_policies *ps, const char *row) ON_ANY;
void prt_policies_unbind(struct prt_policies *ps, struct prt_policy_ops *ops) ON_ANY;

/** A worker begins: its guard timer. ends: the timer is removed. */
void prt_policies_worker_start(struct prt_policies *ps, unsigned lane) ON_WORKER;
void prt_policies_worker_stop(struct prt_policies *ps, unsigned lane) ON_WORKER;
/** Once per loop turn, outside any hook: take over a committed version. One load when there is
 * none. */
void prt_policies_turn(struct prt_policies *ps, unsigned lane) ON_WORKER;

/** What REST shows of one policy file with its settings. Strings are valid during the call. */
struct prt_policy_info {
    const char *name, *version; /* as the file says */
    const char *policy;         /* "route/tenant": as the configuration names it */
    const char *file, *sha256;
    const char *state;    /* "active", "quarantined", "disabled" */
    const char *hooks;    /* "route admit" */
    const char *pools;    /* rows of the configuration that use it, "app,*" */
    int64_t loaded_at_us; /* wall clock */
    uint64_t swaps, calls, failures, kills, rejected_versions;
    const char *last_error; /* of a call, or of a rejected version; NULL: none */
    int64_t last_error_at_us;
};
void prt_policies_each(struct prt_policies *ps,
                       void (*f)(void *arg, const struct prt_policy_info *), void *arg) ON_ANY;
/** Are there policies whose `route` fails and says "reject"? For /health; "" or their names. */
void prt_policies_trouble(struct prt_policies *ps, char *names, size_t cap) ON_ANY;
#endif
