/* proxy.h - the daemon's face of the engine: clients on one side, servers on the other.
 *
 * worker.c    a loop: wait, dispatch, mail, timers     listener.c  accept, hand out
 * io.c        the socket seam (epoll)                  client.c    requests of a client
 * login.c     from accept to ReadyForQuery             relay.c     client to server
 * server.c    a server connection's life               answer.c    server to client, end of a lease
 * leave.c     the end of a client                      half.c      it sends nothing more
 * linger.c    last bytes of who has left               welcome.c   the first clients of a class
 * auth.c      who may log in                           tls.c       OpenSSL on descriptors
 * pools.c     database name -> pool                    registry.c  cancel keys, numbers of clients
 * visit.c     who is there, one by one                 kill.c      ended by an administrator
 * state.c     session state on shared servers          listen.c    LISTEN on shared servers
 * news.c      notifications to a client
 * hub.c       the connection that listens for all      hear.c      what is said on it
 */
#ifndef PRT_PROXY_H
#define PRT_PROXY_H
#include "base/base.h"
#include "base/buf.h"
#include "base/config.h"
#include "base/hist.h"
#include "base/mailbox.h"
#include "base/wheel.h"
#include "link/link.h"
#include "pool/pool.h"

struct prt_proxy;

/** What the proxy asks of its surroundings (the daemon ties it to luahost). All may be NULL. */
struct prt_proxy_hooks {
    void *ctx;
    void (*worker_start)(void *ctx, unsigned lane);
    void (*worker_turn)(void *ctx, unsigned lane); /* once per loop turn, between two requests */
    void (*worker_stop)(void *ctx, unsigned lane);
    /** Policies of the pools made from row `row` ("app", "*"); NULL: none. */
    struct prt_policy_ops *(*bind)(void *ctx, const char *row);
    void (*unbind)(void *ctx, struct prt_policy_ops *ops);
};

/** Bind the listeners, make the pools that the configuration names. Takes a reference of cfg;
 * borrows `connector` and *hooks until prt_proxy_free(). Errors name the address and what holds it.
 */
PRT_MUST_CHECK poolrt_rc prt_proxy_new(struct prt_proxy **out, struct prt_config *cfg,
                                       unsigned workers, struct prt_connector *connector,
                                       const struct prt_proxy_hooks *hooks,
                                       struct prt_err *err) ON_CONTROL;
/** Start the workers: from here on clients are served. */
PRT_MUST_CHECK poolrt_rc prt_proxy_start(struct prt_proxy *px, struct prt_err *err) ON_CONTROL;
/** Change to another configuration at run time: limits, pools, users, certificates. What needs a
 * restart (workers, listen) is named in *restart, a comma list that may be empty. Nothing changes
 * on failure. */
PRT_MUST_CHECK poolrt_rc prt_proxy_apply(struct prt_proxy *px, struct prt_config *cfg,
                                         char *restart, size_t restart_cap,
                                         struct prt_err *err) ON_CONTROL;
/** Maintenance: pools' ticks, unused pools. Call about ten times a second. */
void prt_proxy_tick(struct prt_proxy *px, int64_t now_us) ON_CONTROL;
/** Stop listening; clients leave at the end of their transaction (idle ones at once). */
void prt_proxy_drain(struct prt_proxy *px) ON_CONTROL;
/** Drained: no client is left. Server connections are closed by prt_proxy_stop(). */
bool prt_proxy_is_empty(struct prt_proxy *px) ON_CONTROL;
/** Cancel what runs, close all, join the workers. */
void prt_proxy_stop(struct prt_proxy *px) ON_CONTROL;
void prt_proxy_free(struct prt_proxy *px) ON_CONTROL;
/** Make a worker's loop turn. */
void prt_proxy_wake(struct prt_proxy *px, unsigned lane) ON_ANY;

/** Why a client's connection ended: one closed list, in log and metrics. */
#define PRT_DISCONNECTS(X)                                                                         \
    X(CLIENT_QUIT, "client_quit")     /* Terminate */                                              \
    X(CLIENT_GONE, "client_gone")     /* FIN or reset */                                           \
    X(LOGIN_FAILED, "login_failed")   /* wrong password, unknown user */                           \
    X(LOGIN_TIMEOUT, "login_timeout") /* not logged in within auth.login_timeout */                \
    X(LOGIN_REFUSED,                                                                               \
      "login_refused") /* no such database, max_clients, policy, pool not reachable */             \
    X(CANCEL_REQUEST, "cancel_request") /* the connection carried a cancel request */              \
    X(PROTOCOL, "protocol")             /* bytes that the protocol does not allow */               \
    X(TLS_FAILED, "tls_failed")         /* handshake failed, or TLS required and not asked for */  \
    X(SERVER_LOST, "server_lost")       /* its server connection broke in an exchange */           \
    X(SERVER_PROTOCOL, "server_protocol") /* the server broke the protocol */                      \
    X(STATEMENT_MODE, "statement_mode")   /* a transaction block in statement mode */              \
    X(IDLE_TIMEOUT, "idle_timeout")       /* client_idle_timeout */                                \
    X(NO_MEMORY, "no_memory")             /* a buffer could not be had */                          \
    X(POOL_CLOSED, "pool_closed")         /* its pool or user left the configuration */            \
    X(KILLED, "killed")                   /* by an administrator, over REST */                     \
    X(SHUTDOWN, "shutdown")
enum prt_disconnect {
#define X(id, name) PRT_GONE_##id,
    PRT_DISCONNECTS(X)
#undef X
        PRT_GONE_COUNT
};
const char *prt_disconnect_name(enum prt_disconnect why);

/** Counters of all clients since the start; gauges of now. */
struct prt_proxy_stats {
    uint64_t clients, clients_waiting,
        clients_active; /* now: connected, in the queue, with a server */
    uint64_t accepted, logins, login_failures;
    uint64_t disconnects[PRT_GONE_COUNT];
    uint64_t transactions, queries; /* ReadyForQuery I after work; ReadyForQuery of any kind */
    uint64_t bytes_from_clients, bytes_to_clients;
    uint64_t cancels_received, cancels_forwarded;
    uint64_t protocol_violations; /* of servers */
    unsigned workers;
};
void prt_proxy_snapshot(struct prt_proxy *px, struct prt_proxy_stats *out) ON_ANY;

/** One pool, for REST and metrics. Valid during the call. */
struct prt_proxy_pool_info {
    const char *id;                    /* the database name that clients ask for */
    const struct prt_pool_config *cfg; /* its row */
    const char *target;                /* without secrets */
    struct prt_pool *pool;             /* for prt_pool_snapshot() and prt_pool_each_partition() */
    struct prt_hist_sum acquire;       /* request to slot bound, microseconds */
    uint64_t transactions, queries;
    uint64_t clients;
    /* errors of acquires by kind */
    uint64_t errors_timeout, errors_closed, errors_other, exhausted;
    uint64_t listeners, listen_channels; /* connections that listen for clients; to what */
    uint64_t notifications, listen_gaps; /* heard; times that such a connection was lost */
    /* prepared statements of clients that share servers: found on the server, parsed there first,
     * closed to make room; Parses answered without the server */
    uint64_t statement_hits, statement_misses, statement_evictions, parses_saved;
    /* by kind of session state: leases that it prolonged, and that it prolongs now */
    uint64_t pins[PRT_STATE_COUNT], pinned[PRT_STATE_COUNT];
    uint64_t resets;                   /* server connections cleaned of what a client had left */
    int64_t created_at_us;             /* wall clock */
    uint64_t acquisitions_by_hour[24]; /* hour of day, local time, since the start */
    double connections_by_hour[24]; /* mean of open connections seen in that hour; NaN: none seen */
};
void prt_proxy_each_pool(struct prt_proxy *px,
                         void (*f)(void *arg, const struct prt_proxy_pool_info *),
                         void *arg) ON_CONTROL;

/* ---- one by one ----
 * A *session* is a client that has logged in, or waits for a server to do so. A *connection* is a
 * server connection, or a request that waits for one. Both are numbered by one counter, which never
 * gives a number again: so an old id never names somebody else. */
#define PRT_ROW_STATES(X)                                                                          \
    X(ACTIVE, "active") /* at work; of a connection: leased */                                     \
    X(IDLE, "idle")                                                                                \
    X(IDLE_IN_TRANSACTION, "idle_in_transaction") /* of sessions only */                           \
    X(WAITING, "waiting")                         /* in the queue */                               \
    X(CLOSING, "closing")                         /* of connections only: the end was sent */
enum prt_row_state {
#define X(id, name) PRT_ROW_##id,
    PRT_ROW_STATES(X)
#undef X
        PRT_ROW_STATE_COUNT
};
/** What a row has in words; absent ones are empty. */
#define PRT_ROW_TEXTS(X)                                                                           \
    X(POOL, "pool")                                                                                \
    X(USER, "user") /* of a connection: as whom it is logged in at the server */                   \
    X(DATABASE, "database")                                                                        \
    X(APPLICATION, "application")                                                                  \
    X(CLIENT, "client") /* address and port; without a client: empty */                            \
    X(SERVER, "server")                                                                            \
    X(TIMEZONE, "timezone")                                                                        \
    X(DATESTYLE, "datestyle")
enum prt_row_text {
#define X(id, name) PRT_ROW_##id,
    PRT_ROW_TEXTS(X)
#undef X
        PRT_ROW_TEXT_COUNT
};
/** What the kernel has counted for a TCP socket; -1: not known (another kind of socket). */
struct prt_sock_counts {
    int64_t sent, received; /* bytes, with what TLS adds */
    int64_t quiet_us;       /* since the last of them */
};
struct prt_row {
    uint64_t number;
    uint64_t other;      /* of a session: its connection; of a connection: its session; 0: none */
    uint8_t state;       /* enum prt_row_state */
    bool is_request;     /* no connection yet, but a request that waits for one */
    bool in_transaction; /* a block is open, or part of a batch without its Sync was sent */
    uint16_t pinned;     /* PRT_STATE bits that keep the server with its client */
    int position;        /* in the queue, 0 = next; -1: not in it */
    uint32_t pid;        /* of the server's process; 0: none */
    int64_t age_us;
    int64_t request_us; /* how long ago it asked for the server that it has, or waits for; -1 */
    struct prt_sock_counts io;
    struct {
        uint32_t at, n;
    } text[PRT_ROW_TEXT_COUNT]; /* in the visit's text */
};

/** Goes from worker to worker, looks at a few hundred clients or connections of each in a turn, and
 *  takes what it was sent for: a page of rows, or the end of one. */
struct prt_visit {
    /* filled by the caller */
    bool wants_sessions; /* else connections */
    unsigned states;     /* bits of enum prt_row_state; 0: all */
    uint64_t number;     /* the only one; 0: all */
    char pool[PRT_NAME_MAX + 6],
        user[256];        /* empty: all; `pool_` before a pool's name is allowed */
    uint32_t skip, want;  /* matches that are passed over; most rows (rows has room for them) */
    struct prt_row *rows; /* the caller's */
    bool kills;           /* the one of `number`: its row is taken before that */
    bool force;           /* even in a transaction */
    /** Once, on some worker's thread or the caller's: all is known, and the visit the caller's. */
    void (*done)(struct prt_visit *v);
    /* the answer */
    uint32_t n_rows;
    uint64_t matches;
    struct prt_buf text; /* the caller frees it; `failed`: no memory */
    enum {
        PRT_KILL_NOT_FOUND,
        PRT_KILL_DONE,
        PRT_KILL_IN_TRANSACTION, /* and not forced: nothing happened */
        PRT_KILL_BUSY,           /* a connection that is being closed: nothing happened */
    } verdict;
    bool was_in_transaction;
    /* UNKNOWN: an answer of the server that would tell is missing */
    enum { PRT_ROLLED_BACK_NO, PRT_ROLLED_BACK_YES, PRT_ROLLED_BACK_UNKNOWN } rolled_back;
    /* ---- the workers' ---- */
    struct prt_mail mail;
    struct prt_link link; /* worker->visits */
    struct prt_proxy *px;
    unsigned hop;           /* workers seen so far */
    struct prt_timer timer; /* how long the end of a transaction is awaited */
    struct prt_server *server;
    bool undoes;     /* a ROLLBACK of ours was needed */
    bool has_ended;  /* COMMIT or PREPARE TRANSACTION was answered */
    bool was_undone; /* ROLLBACK was answered */
    bool was_open;   /* a batch without its Sync: the ROLLBACK was sent behind it */
};
void prt_proxy_visit(struct prt_proxy *px, struct prt_visit *v) ON_CONTROL;
#endif
