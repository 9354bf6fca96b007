/* admin.h - the control plane: REST and metrics over libmicrohttpd, on the control thread's loop.
 *
 * http.c  sockets, limits, token, Host -> one request     bind.c  snapshots of C for Lua
 * The handlers are lua/poolrt/rest.lua; the numbers come from real counters through bind.c. */
#ifndef PRT_ADMIN_H
#define PRT_ADMIN_H
#include "base/base.h"
#include "base/config.h"
#include "luahost/luahost.h"
#include "proxy/proxy.h"

#include <uv.h>

struct prt_admin;

struct prt_admin_deps {
    struct prt_proxy *proxy;
    struct prt_policies *policies;
    int64_t started_at_us; /* wall clock */
};

/** Listen on cfg->admin_listen (nothing is done when there is none: *out is NULL). Borrows deps'
 * objects until prt_admin_stop(). Errors name the address. */
PRT_MUST_CHECK poolrt_rc prt_admin_start(struct prt_admin **out, uv_loop_t *loop,
                                         struct prt_config *cfg, const struct prt_admin_deps *deps,
                                         struct prt_err *err) ON_CONTROL;
/** Another configuration: token; the address needs a restart. */
void prt_admin_apply(struct prt_admin *a, struct prt_config *cfg) ON_CONTROL;
/** NULL is accepted. */
void prt_admin_stop(struct prt_admin *a) ON_CONTROL;
#endif
