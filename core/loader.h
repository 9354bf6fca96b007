/* loader.h - loads configuration and policies beside the control thread, one at a time. */
#ifndef PRT_LOADER_H
#define PRT_LOADER_H
#include "base/base.h"
#include "base/config.h"
#include "base/sha256.h"
#include "luahost/luahost.h"

#include <uv.h>

struct prt_loader;

/** What a load came to. `cfg` and `plan` are the receiver's; both NULL when there was no news. */
struct prt_load {
    poolrt_rc rc; /* not OK: nothing was loaded, and err says why */
    struct prt_err err;
    bool is_config;         /* the configuration was read again, not only the policies */
    struct prt_config *cfg; /* of a configuration */
    struct prt_policy_plan *plan;
    int64_t took_us;
};

/** The text of `file` now, as a number; "" when it cannot be read. */
void prt_loader_hash(const char *file, char out[PRT_SHA256_HEX]) ON_ANY;

/** `file` is the configuration, whose text in use has the number `seen`. done() is called on the
 * loop's thread for each load. Borrows its arguments until stop. */
PRT_MUST_CHECK poolrt_rc prt_loader_start(struct prt_loader **out, uv_loop_t *loop,
                                          struct prt_policies *policies, const char *file,
                                          const char seen[PRT_SHA256_HEX],
                                          void (*done)(void *ctx, struct prt_load *load), void *ctx,
                                          struct prt_err *err) ON_CONTROL;
/** Load. `all`: the configuration as well, even when its text is the same. Requests that come while
 *  a load runs are one load after it. */
void prt_loader_ask(struct prt_loader *l, bool all) ON_CONTROL;
/** Waits for what runs, and drops it. NULL is accepted. */
void prt_loader_stop(struct prt_loader *l) ON_CONTROL;
#endif
