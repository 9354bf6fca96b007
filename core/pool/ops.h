/* ops.h - what the pool engine asks of others: connections, and decisions.
 *
 * The engine knows no socket, thread, clock or Lua. Whoever embeds it (proxy, a test, later embed
 * and sim) fills prt_conn_ops. Rules for each of its functions:
 *   - called without any engine lock, on the thread whose engine call caused it;
 *   - must not block and must not call the engine back: note it, mail it, start it, return;
 *   - a request (open, close) is answered exactly once, later, by the function of pool.h named at
 *     it, on a thread that owns the slot then. */
#ifndef PRT_POOL_OPS_H
#define PRT_POOL_OPS_H
#include "base/base.h"

struct prt_slot;
struct prt_waiter;

enum prt_close_why {
    PRT_CLOSE_IDLE,   /* idle_timeout, above min_size */
    PRT_CLOSE_AGE,    /* max_lifetime */
    PRT_CLOSE_EVICT,  /* its place is needed by another class */
    PRT_CLOSE_SHRINK, /* max_size lowered */
    PRT_CLOSE_FLUSH,  /* flush, drain, target changed */
    PRT_CLOSE_BROKEN, /* the lessee said so: error, failed reset, protocol doubt */
    PRT_CLOSE_KILL,   /* an administrator ended it while it was idle */
};
const char *prt_close_why_name(enum prt_close_why why);

/** Connections: what S1 calls the ConnectionFactory. ctx is the pointer given to prt_pool_new(). */
struct prt_conn_ops {
    /** Start a connection for s->cls with home lane s->lane.  Answer: prt_slot_opened(). */
    void (*open)(void *ctx, struct prt_slot *s);
    /** End it. The slot counts against max_size until the answer, which therefore comes when the
     *  server has seen the end (EOF read, or a time limit).  Answer: prt_slot_closed(). */
    void (*close)(void *ctx, struct prt_slot *s, enum prt_close_why why);
    /** w's wait is over: w->rc and w->lease are final. Tell w's thread. After this the engine
     * forgets w. When w->lane is the calling lane, put it on a local list that the worker drains
     * before it does anything else: so a release sends the next client's bytes at once. */
    void (*served)(void *ctx, struct prt_waiter *w);
    /** Like served(), but the connection lives in s->lane and w in another. Mail s->lane: stop
     *  polling, prt_slot_rehome(s, w->lane), then forward w as served() would.
     *  NULL: connections have no home (library, simulator); served() is called instead. */
    void (*move)(void *ctx, struct prt_slot *s, struct prt_waiter *w);
    /** The class is freed: so is what was given as its `user`. */
    void (*class_free)(void *ctx, void *user);
};

/* ---- decisions ----
 * Views are valid during one call. Numbers and borrowed strings only: luahost/hooks.c copies them
 * into the structs that Lua sees. */
struct prt_req_view {
    struct prt_str tenant, user, database, application, client_addr;
    uint64_t session;   /* number of the client, unique in this process */
    double now, waited; /* seconds; now is monotonic */
    int priority;       /* enum prt_priority of pool.h */
};
struct prt_part_view {
    struct prt_str name;
    uint32_t active, waiting; /* leased slots, waiters of the partition */
    uint32_t max, min;        /* its limits, 0: none */
    uint32_t pool_active, pool_idle, pool_total, pool_max, pool_waiting;
};

enum prt_hook { PRT_HOOK_ROUTE = 1 << 0, PRT_HOOK_ADMIT = 1 << 1 };
/** How long an answer of `route` holds. */
enum prt_scope { PRT_SCOPE_SESSION, PRT_SCOPE_TRANSACTION, PRT_SCOPE_STATEMENT };

/** What a policy answered. The caller gives it zeroed. */
struct prt_answer {
    enum {
        PRT_ANSWER_NONE,   /* no opinion: the default partition; admitted */
        PRT_ANSWER_TO,     /* route: to the partition `name` */
        PRT_ANSWER_REJECT, /* refuse the request with `text` */
    } verdict;
    enum prt_scope scope;
    double retry_after;          /* seconds, 0: not said */
    char name[PRT_NAME_MAX + 1]; /* of a partition */
    char sqlstate[6];            /* empty: that of POOLRT_POLICY */
    char text[160];              /* the reason, shown to the client */
};

/** The policies of one pool, as luahost provides them. `hooks` says which functions have somebody
 *  behind them: where a bit is clear the function is not called, so Lua is never entered in vain.
 *  A policy that fails has been dealt with behind this door (on_fail, counters, log). */
struct prt_policy_ops {
    _Atomic uint32_t hooks; /* PRT_HOOK_ bits; changes at a reload */
    _Atomic uint32_t
        version; /* counts reloads: an answer cached under another number is forgotten */
    /** `lane`: the calling worker's, whose Lua state is used. */
    void (*route)(struct prt_policy_ops *self, unsigned lane, const struct prt_req_view *rq,
                  struct prt_answer *out);
    void (*admit)(struct prt_policy_ops *self, unsigned lane, const struct prt_req_view *rq,
                  const struct prt_part_view *part, struct prt_answer *out);
    /** Count a route answer that named no partition of the pool; fills `out` as on_fail says. */
    void (*bad_route)(struct prt_policy_ops *self, unsigned lane, const struct prt_req_view *rq,
                      struct prt_answer *out);
};
#endif
