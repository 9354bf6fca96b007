/* wheel.h - one hierarchical timing wheel per loop, for every time limit of its connections.
 * Idea: setting and clearing a timer are a few pointer writes, whatever their number; a timer fires
 * at its millisecond or one later. Long limits (idle, lifetime) sit in coarse levels and move down.
 */
#ifndef PRT_WHEEL_H
#define PRT_WHEEL_H
#include "base/base.h"

#define PRT_WHEEL_LEVELS 4
#define PRT_WHEEL_SLOTS 64 /* level k: slots of 64^k ms; the last level holds up to 4.6 hours */

struct prt_timer;
typedef void prt_timer_fn(struct prt_timer *t, int64_t now_us);

/** Embed; all zero is a timer that is not set. */
struct prt_timer {
    struct prt_link link;
    int64_t due_us;
    prt_timer_fn *fire;
};
struct prt_wheel {
    int64_t now_ms;
    uint64_t used[PRT_WHEEL_LEVELS]; /* which slots may hold a timer */
    /* where the last timer was put, while now_ms stands: most of a turn are due at the same time */
    int64_t last_due_us;
    uint8_t last_level, last_slot;
    struct prt_link slot[PRT_WHEEL_LEVELS][PRT_WHEEL_SLOTS];
};
void prt_wheel_init(struct prt_wheel *w, int64_t now_us);
/** Set or set anew: fires once at or up to 1 ms after due_us. A due time in the past fires at the
 *  next run. */
void prt_timer_set(struct prt_wheel *w, struct prt_timer *t, int64_t due_us, prt_timer_fn *fire);
static inline bool prt_timer_is_set(const struct prt_timer *t)
{
    return t->link.next && t->link.next != &t->link;
}
/** Harmless when it is not set. */
static inline void prt_timer_clear(struct prt_timer *t)
{
    if (prt_timer_is_set(t)) {
        prt_list_del(&t->link);
    }
}
/** Fire what is due. `fire` may set and clear any timer of the wheel, its own too; what it sets to
 *  a time already past fires at the next run. Time never goes back for the wheel. */
void prt_wheel_run(struct prt_wheel *w, int64_t now_us);
/** Milliseconds until the wheel wants to run again, for epoll_wait; -1 when no timer is set. Never
 *  late, may be early (a coarse slot that only moves its timers down). */
int prt_wheel_wait_ms(const struct prt_wheel *w, int64_t now_us);
#endif
