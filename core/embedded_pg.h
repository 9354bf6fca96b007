/* embedded_pg.h - the PostgreSQL of postgres.embedded{}: made, started, kept alive and stopped
 * here.
 *
 * embedded_pg.c    its process: start, wait, restart, stop      embedded_dir.c   its directories
 * embedded_roles.c the database and the users it is made with   embedded_spawn.c the child process
 */
#ifndef PRT_EMBEDDED_PG_H
#define PRT_EMBEDDED_PG_H
#include "base/base.h"
#include "base/config.h"

#include <uv.h>

struct prt_embedded;

/** Make the data directory if there is none, start PostgreSQL on it, wait until it answers, and add
 *  the database and users that are missing. Blocks for up to half a minute, the first time longer.
 *  *out is NULL when cfg asks for none. Restarted when it dies, until stop. */
PRT_MUST_CHECK poolrt_rc prt_embedded_start(struct prt_embedded **out, uv_loop_t *loop,
                                            const struct prt_config *cfg,
                                            struct prt_err *err) ON_CONTROL;
/** Does `cfg` ask for something that only a restart gives? e is NULL when none runs. */
bool prt_embedded_differs(const struct prt_embedded *e, const struct prt_config *cfg) ON_CONTROL;
/** Stop it and wait for its end, a few seconds at most. NULL is accepted. */
void prt_embedded_stop(struct prt_embedded *e) ON_CONTROL;
#endif
