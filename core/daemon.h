/* daemon.h - `poolrt CONFIG`: everything started, served, reloaded and stopped in order. */
#ifndef PRT_DAEMON_H
#define PRT_DAEMON_H
#include "base/base.h"
#include "base/config.h"
#include "luahost/luahost.h"

/** Serve the configuration `file` until a signal ends it. Not OK: it did not start, and err says
 *  why. The calling thread becomes the control thread. */
PRT_MUST_CHECK poolrt_rc prt_daemon_run(const char *file, struct prt_err *err);

/* ---- welcome.c ---- */
/** What a person who tries `cfg` types next, on standard output. */
void prt_welcome(const struct prt_config *cfg, struct prt_policies *policies);

/* ---- notify.c ---- */
/** Tell systemd (or whoever set NOTIFY_SOCKET) "READY=1" and the like; nothing without one. */
void prt_notify(const char *state);
#endif
