/* watch.h - tells when files in some directories may have changed. */
#ifndef PRT_WATCH_H
#define PRT_WATCH_H
#include "base/base.h"

#include <uv.h>

struct prt_watch;

struct prt_watch_ops {
    void *ctx;
    /** Name every directory to watch; asked again at each look. */
    void (*each_dir)(void *ctx, void (*f)(void *arg, const char *dir), void *arg);
    /** Something may have changed: look. At most every 30 ms. */
    void (*changed)(void *ctx);
};

/** Watch the directories and the file `file`, which may be a link into another directory. Borrows
 *  `file` and ops->ctx until stop. */
PRT_MUST_CHECK poolrt_rc prt_watch_start(struct prt_watch **out, uv_loop_t *loop, const char *file,
                                         const struct prt_watch_ops *ops,
                                         struct prt_err *err) ON_CONTROL;
/** What a look found: after several for nothing (a log that grows in a watched directory) the
 * pauses between looks grow up to half a second. The list of directories is read anew. */
void prt_watch_looked(struct prt_watch *w, bool found) ON_CONTROL;
/** NULL is accepted. */
void prt_watch_stop(struct prt_watch *w) ON_CONTROL;
#endif
