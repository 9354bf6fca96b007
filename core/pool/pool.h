/* pool.h - the pool engine's door: who gets which slot.
 *
 * A *pool* owns an array of *slots* (places for one server connection each). A *request* names a
 * class (interchangeable connections), a partition (a governed share) and a lane (where the caller
 * lives). prt_acquire() answers with a *lease* at once, or makes the caller's struct a *waiter*.
 *
 *   caller                        engine                          prt_conn_ops
 *   prt_acquire ----------------> own idle bit cleared: OK
 *                                 else queue, and maybe --------> open / close(EVICT)
 *   prt_waiter_cancel ----------> out of the queue, or too late
 *                                 <------------------------------ prt_slot_opened / closed
 *   (w->rc, w->lease final) <---- served / move
 *   prt_release ----------------> idle bit set, or handed on ---> served / move / close
 *
 * Threads. Every function may run on any thread unless it says ON_WORKER. A *lane* is an index
 * 0..lanes-1 for a set of idle slots near a thread: a daemon worker is its own lane. A wrong lane
 * is slow, not wrong. One lock, the pool's mutex: taken only when somebody waits, when a connection
 * is opened or closed, and by administration; never held in an op or a policy.
 *
 * Time. Every function that needs the time takes now_us (monotonic microseconds). The engine never
 * reads a clock, so tests move it by hand.
 *
 * The protocol between threads is told and argued in core/pool/README.md. */
#ifndef PRT_POOL_H
#define PRT_POOL_H
#include "base/base.h"
#include "base/hist.h"
#include "base/mailbox.h"
#include "pool/ops.h"

#define PRT_LANES_MAX 64
enum prt_priority { PRT_LOW, PRT_NORMAL, PRT_HIGH, PRT_CRITICAL };
#define PRT_PRIORITIES 4

struct prt_pool;
struct prt_class;
struct prt_partition;

/* ---- slot ----
 *
 *              open()            opened ok                 claim (bit cleared)
 *   FREE --------------> CONNECTING -------> IDLE -----------------------------> ACTIVE
 *    ^    open++              | failed        | ^  publish (bit set)               |
 *    |<-----------------------+ open--        | +-------------------<--------------+ release
 *    |                                        | claim                              | doomed, broken
 *    |   closed: open--                       v                                    v
 *    +<------------------------------------ CLOSING <------------------------------+
 *                                             | closed, wanted by another class: open unchanged
 *                                             +--> CONNECTING
 *
 * state       true                                      may touch it                 leaves by
 * FREE        no connection                             holder of the pool mutex     seek
 * CONNECTING  counted in open, class->coming            the factory prt_slot_opened IDLE        its
 * bit is set in idle[class][lane]       nobody: clear the bit first  claim ACTIVE      one lease,
 * one partition credit           the lessee                   prt_release PASSING     between two
 * states, in one engine call    that call                    serve CLOSING     counted in open
 * until the server agrees   the factory                  prt_slot_closed
 */
enum prt_slot_state {
    PRT_SLOT_FREE,
    PRT_SLOT_CONNECTING,
    PRT_SLOT_IDLE,
    PRT_SLOT_ACTIVE,
    PRT_SLOT_PASSING,
    PRT_SLOT_CLOSING,
};
const char *prt_slot_state_name(enum prt_slot_state st);

/** The part of a slot that the factory may see; owned by whoever owns the slot (table above). */
struct prt_slot {
    struct prt_pool *pool; /* set at creation */
    uint32_t index;        /* set at creation */
    uint16_t lane;         /* where its descriptor lives */
    struct prt_class *cls; /* what it is, or is being opened as */
    void *conn;            /* the factory's: server, fake */
    int64_t opened_us;     /* when it was connected */
    int64_t used_us;       /* last release */
    uint32_t borrows;      /* leases so far of this connection */
    struct prt_link link;  /* the factory's while it owns the slot, else the engine's */
    struct prt_mail mail;  /* the factory's, for open, close and move */
};

/** A slot between acquire and release. Copyable; a copy that is too old is refused, not misused. */
struct prt_lease {
    struct prt_slot *slot;
    uint32_t gen;
};

/* ---- waiter ----
 *
 *                 +--------- credit free --------+
 *                 v                              |
 *   NEW ------> QUEUED -- no partition credit -> PARKED
 *    |            |  \______ cancel, expire _____/ |
 *    | OK         | slot                           v
 *    v            v                              GONE (TIMEOUT, CANCELLED)
 *   (lease)     SERVED -> served()/move()        FAILED (CONNECT_FAILED, DRAINING) -> served()
 *
 * QUEUED and PARKED: linked in the pool, fields below the line belong to the pool mutex.
 * All others: the caller's. A waiter leaves QUEUED/PARKED exactly once, under the mutex: that step
 * decides between "served" and "gave up", so there is nothing left to race for. */
enum prt_waiter_state {
    PRT_WAITER_NEW,
    PRT_WAITER_QUEUED,
    PRT_WAITER_PARKED,
    PRT_WAITER_SERVED,
    PRT_WAITER_FAILED,
    PRT_WAITER_GONE,
};

/** A request, and the caller's place in the queue if it must wait. Lives in the caller's client or
 *  task struct; must stay where it is from POOLRT_PENDING until served() or a successful cancel. */
struct prt_waiter {
    /* filled by the caller before prt_acquire() */
    struct prt_class *cls;
    struct prt_partition *part; /* never NULL: prt_pool_default_partition() */
    uint16_t lane;
    int8_t priority; /* enum prt_priority */
    /* ---- the engine's; under the pool mutex while QUEUED or PARKED ---- */
    uint8_t state;
    poolrt_rc rc; /* result */
    struct prt_lease lease;
    int64_t since_us;     /* arrival: what the order is made of; kept when parked or retried */
    struct prt_link link; /* its one list; the factory's after served() */
    struct prt_mail mail; /* the factory's */
};

/* ---- pools ---- */
struct prt_limits {
    int min, max;      /* slots; max as the server counts: connecting and closing included */
    int class_max;     /* slots of one class; 0: only max */
    int max_waiters;   /* acquire beyond it: POOLRT_QUEUE_FULL */
    int opens_per_sec; /* creation_throttle; 0: no limit */
    int64_t
        locality_bias_us; /* a remote waiter must be older by this; 0 where slots have no home */
    int64_t
        switch_bias_us; /* a waiter of another class must be older by this to have a slot evicted */
    int64_t boost_after_us; /* each such wait raises the effective priority by one; 0: never */
    int64_t retry_us;       /* back-off of a class after a failed connect */
    int64_t idle_us;        /* idle slots above min are closed after this; 0: never */
    int64_t lifetime_us;    /* each connection lives 0.9 to 1.0 of this; 0: no end */
    bool fair_queue;        /* order by (boosted) arrival; false: by priority first */
};

/** lanes: threads with a loop (1..PRT_LANES_MAX). capacity: bound of every later max; slots are
 * never moved, so pointers stay valid for the life of the pool. Copies *lim; borrows ops, policy
 * and ctx until prt_pool_free(). policy may be NULL. */
PRT_MUST_CHECK poolrt_rc prt_pool_new(struct prt_pool **out, const struct prt_limits *lim,
                                      int lanes, int capacity, const struct prt_conn_ops *ops,
                                      struct prt_policy_ops *policy, void *ctx,
                                      struct prt_err *err) ON_ANY;
/** Only when drained: no lease, no waiter, no connection. NULL is accepted. */
void prt_pool_free(struct prt_pool *p) ON_ANY;
void *prt_pool_ctx(const struct prt_pool *p) ON_ANY;

/* ---- classes: counted; one that nobody refers to and that has no slot and no waiter is freed ----
 * Keep a reference for as long as you have a waiter or a lease of the class, until prt_release()
 * has returned: its last steps look at the class after the slot has become somebody else's. */
/** Find or create, and take a reference. `user` is the factory's (its login data); it is taken when
 *  the class is made, else given back by ops->class_free. NULL: no memory, or more than
 *  PRT_CLASSES_MAX. */
#define PRT_CLASSES_MAX 1024
struct prt_class *prt_pool_class(struct prt_pool *p, struct prt_str key, void *user) ON_ANY;
struct prt_class *prt_class_ref(struct prt_class *c) ON_ANY;
void prt_class_unref(struct prt_class *c) ON_ANY;
void *prt_class_user(const struct prt_class *c) ON_ANY;
/** Why the last connect of the class failed; rc POOLRT_OK when it has not. */
void prt_class_error(struct prt_class *c, struct prt_err *out) ON_ANY;
/** The class whose connections are opened ahead of need, up to min (by the tick). Takes a reference
 * of its own. */
void prt_pool_set_warm(struct prt_pool *p, struct prt_class *c) ON_ANY;
/** Open up to n connections of the warm class now (initial_size). */
void prt_pool_warm(struct prt_pool *p, int n, int64_t now_us) ON_ANY;

/* ---- partitions: live as long as the pool ---- */
struct prt_partition_limits {
    int max; /* leased slots; 0: only the pool's */
    int min; /* reserved: others cannot take the last sum of unused minima of the pool's max */
    int max_waiters; /* 0: only the pool's */
    int priority;    /* enum prt_priority of its requests; -1: the caller's */
};
/** The implicit partition "default", without limits. */
struct prt_partition *prt_pool_default_partition(struct prt_pool *p) ON_ANY;
/** Create, or set anew. _CONFIG when the minima together pass max. */
PRT_MUST_CHECK poolrt_rc prt_pool_partition(struct prt_pool *p, struct prt_str name,
                                            const struct prt_partition_limits *lim, int64_t now_us,
                                            struct prt_err *err) ON_ANY;
/** Without a lock. NULL: no such partition, or it was taken out. */
struct prt_partition *prt_pool_partition_find(struct prt_pool *p, struct prt_str name) ON_ANY;
/** Not found any more; leases and waiters of it end as they would. */
void prt_pool_partition_remove(struct prt_pool *p, struct prt_str name, int64_t now_us) ON_ANY;
struct prt_str prt_partition_name(const struct prt_partition *part) ON_ANY;

/* ---- asking the policies ---- */
/** Where a caller's requests go, kept by the caller. All zero: not asked yet. */
struct prt_route {
    struct prt_partition *part;
    uint32_t version; /* of the policies when asked */
    uint8_t scope;    /* enum prt_scope */
    bool is_set;
};
/** Must prt_pool_ask() be called before this acquire? false: route->part is right. A pool without
 *  policies answers with one load. */
bool prt_pool_asks(const struct prt_pool *p, const struct prt_route *route) ON_ANY;
/** Ask route (unless the cached answer holds) and admit. POOLRT_OK, or POOLRT_POLICY with *why
 * filled. Never fails because of a broken policy unless its on_fail says "reject". */
PRT_MUST_CHECK poolrt_rc prt_pool_ask(struct prt_pool *p, uint16_t lane,
                                      const struct prt_req_view *rq, struct prt_route *route,
                                      struct prt_answer *why) ON_WORKER;

/* ---- acquire and release ---- */
/** Lease a slot, or become a waiter.
 *  Returns POOLRT_OK      w->lease is owned by the caller: prt_release(), from any thread;
 *          POOLRT_PENDING w is queued; exactly one of served()/move() (with w->rc) or a successful
 *                         prt_waiter_cancel() ends it;
 *          _QUEUE_FULL, _DRAINING  nothing happened.
 *  Cost: one atomic step and one load if a slot of its class idles in its lane and nobody waits. */
PRT_MUST_CHECK poolrt_rc prt_acquire(struct prt_pool *p, struct prt_waiter *w,
                                     int64_t now_us) ON_ANY;
/** Leave the queue with rc (TIMEOUT, CANCELLED). true: w is the caller's again and will not be
 *  served. false: too late, served() is on its way; take it, and release the lease. */
bool prt_waiter_cancel(struct prt_pool *p, struct prt_waiter *w, poolrt_rc rc,
                       int64_t now_us) ON_ANY;
/** Waiters that would be served before w, 0 = next; -1: not waiting. */
int prt_waiter_position(struct prt_pool *p, const struct prt_waiter *w, int64_t now_us) ON_ANY;

enum prt_release_how { PRT_RELEASE_CLEAN, PRT_RELEASE_CLOSE };
/** End a lease. Hands the slot to the best waiter before it returns (served/move are called from
 *  here). lane: the caller's; with ops->move it is the slot's home and the caller its thread,
 * without it the slot idles there from now on. POOLRT_STALE: not a current lease (released twice);
 * nothing happened.  Cost: two atomic steps and one load if nobody waits. */
poolrt_rc prt_release(struct prt_pool *p, struct prt_lease l, enum prt_release_how how,
                      uint16_t lane, int64_t now_us) ON_ANY;

/* ---- answers of the factory; the caller owns the slot ---- */
/** err->rc POOLRT_OK: connected and ready. Else the class backs off; if it has no other connection
 *  open or coming, its waiters fail with that code. */
void prt_slot_opened(struct prt_slot *s, const struct prt_err *err, int64_t now_us) ON_ANY;
void prt_slot_closed(struct prt_slot *s, int64_t now_us) ON_ANY;
/** The home lane has let go of the descriptor: the slot lives in `lane` now. */
void prt_slot_rehome(struct prt_slot *s, uint16_t lane) ON_ANY;
/** An idle slot's socket became readable or broke: claim it and close it. false: it is not idle any
 *  more, its lessee will notice. The only legal way to touch an idle slot's descriptor. */
bool prt_slot_retire_idle(struct prt_slot *s, enum prt_close_why why, int64_t now_us) ON_ANY;

/* ---- administration: all take the mutex, all work at run time ---- */
/** New limits; _CONFIG (max above capacity, min > max) changes nothing. Lowering max closes idle
 * slots now and active ones at their release. */
PRT_MUST_CHECK poolrt_rc prt_pool_set_limits(struct prt_pool *p, const struct prt_limits *lim,
                                             int64_t now_us, struct prt_err *err) ON_ANY;
/** No new lease from now on; waiters wait. prt_pool_is_quiet() says when the last lease is back. */
void prt_pool_pause(struct prt_pool *p) ON_ANY;
bool prt_pool_is_quiet(struct prt_pool *p) ON_ANY;
void prt_pool_resume(struct prt_pool *p, int64_t now_us) ON_ANY;
/** Replace every connection open now: idle ones at once, active ones at their release. */
void prt_pool_flush(struct prt_pool *p, int64_t now_us) ON_ANY;
/** Refuse new requests, fail waiters with _DRAINING, close all; done when prt_pool_open() == 0. */
void prt_pool_drain(struct prt_pool *p, int64_t now_us) ON_ANY;
int prt_pool_open(struct prt_pool *p) ON_ANY;
/** Maintenance: ages, idle times, min, back-off and throttle that are over. Returns when it wants
 * to be called again at the latest; cheap when nothing is due. The control thread calls it. */
int64_t prt_pool_tick(struct prt_pool *p, int64_t now_us) ON_ANY;
/** When something is due sooner than the last tick said (a back-off began, a throttle holds). */
int64_t prt_pool_due(const struct prt_pool *p) ON_ANY;

/* ---- looking ---- */
struct prt_pool_stats {
    int open, idle, active, connecting, closing, waiting; /* now */
    uint64_t acquired, released;                          /* acquired - released = active */
    uint64_t opened, closed, connect_failed, evicted, moved;
    uint64_t closed_age_us; /* sum of the ages of the closed: mean lifetime = this / closed */
    uint64_t queued;        /* requests that had to wait; queued = waiting + the five ends: */
    uint64_t served, timed_out, cancelled, failed, drained;
    uint64_t refused;       /* queue full or draining: never queued */
    uint64_t rejected;      /* by admit or route */
    int64_t oldest_wait_us; /* of those waiting now; 0: nobody */
    int waiting_by_priority[PRT_PRIORITIES];
    struct prt_hist_sum wait; /* how long each acquire waited, 0 for most */
};
/** Sums the lanes' counters; numbers of different lanes may be from slightly different moments. */
void prt_pool_snapshot(struct prt_pool *p, struct prt_pool_stats *out, int64_t now_us) ON_ANY;

struct prt_partition_stats {
    struct prt_str name;
    struct prt_partition_limits lim;
    uint32_t active, waiting;
    uint64_t acquired, released, limit_violations; /* requests that met its limit */
};
/** Call f for each partition, under the pool mutex: f must be short and must not call the engine.
 */
void prt_pool_each_partition(struct prt_pool *p,
                             void (*f)(void *arg, const struct prt_partition_stats *),
                             void *arg) ON_ANY;
/** NULL, or the first broken invariant in words. Only meaningful while no other thread is in the
 *  engine (tests, simulator); debug builds call the part that holds under the mutex after each
 * step. */
const char *prt_pool_check(struct prt_pool *p) ON_ANY;
#endif
