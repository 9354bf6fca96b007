/* proxy_int.h - what the files of this room share. Never leaves the room.
 *
 * One worker thread owns everything of its clients and of the servers whose home it is; what
 * another thread wants of them comes by mail. So nothing here has a lock but the two tables that
 * all workers use at login and cancel: pools.c and registry.c. */
#ifndef PRT_PROXY_INT_H
#define PRT_PROXY_INT_H
#include "base/buf.h"
#include "base/config.h"
#include "base/hash.h"
#include "base/hist.h"
#include "base/log.h"
#include "base/mailbox.h"
#include "base/wheel.h"
#include "link/link.h"
#include "pg/pg.h"
#include "pool/pool.h"
#include "proxy/proxy.h"
#include "proxy/tls.h"

#include <pthread.h>
#include <sys/types.h>

struct prt_worker;
struct prt_client;
struct prt_server;
struct prt_hub;
struct prt_welcome;

/* ---- io.c: the socket seam ---- */
enum prt_io_kind {
    PRT_KIND_WAKE,
    PRT_KIND_LISTENER,
    PRT_KIND_CLIENT,
    PRT_KIND_SERVER,
    PRT_KIND_LINGER,
    PRT_KIND_HUB,
};
enum { PRT_WANT_READ = 1, PRT_WANT_WRITE = 2 };

/** A descriptor in a worker's set. */
struct prt_sock {
    int fd;             /* -1: closed */
    uint32_t ticket;    /* its place in the worker's table; PRT_NO_TICKET: in no set */
    struct ssl_st *ssl; /* NULL: plain */
    uint8_t want;       /* PRT_WANT_ bits that the set watches for */
    bool write_first;   /* TLS wants to write before it can read on */
    bool in_burst;      /* bytes for it have not left yet: prt_burst_flush() comes before others */
};
#define PRT_NO_TICKET UINT32_MAX
/** Whom an event is for. Worker-private, so a descriptor that moved away or was closed in this turn
 * is recognised by its generation and its event dropped. */
struct prt_io_entry {
    void *obj;
    uint32_t gen;
    uint32_t next_free; /* while unused */
    uint8_t kind;
};
struct prt_io {
    int epoll;
    uint32_t n, free;
    struct prt_io_entry *entry;
    void *events; /* struct epoll_event[] of the last wait */
};
struct prt_io_event {
    enum prt_io_kind kind;
    void *obj;
    bool readable, writable; /* an error or hang-up sets both */
};
PRT_MUST_CHECK poolrt_rc prt_io_init(struct prt_io *io, struct prt_err *err);
void prt_io_fini(struct prt_io *io);
PRT_MUST_CHECK bool prt_io_add(struct prt_io *io, struct prt_sock *s, enum prt_io_kind kind,
                               void *obj, unsigned want);
/** Out of the set; the descriptor stays open. Harmless when it is in none. */
void prt_io_del(struct prt_io *io, struct prt_sock *s);
void prt_io_want(struct prt_io *io, struct prt_sock *s, unsigned want);
/** Number of events, at most PRT_IO_BATCH; timeout in ms, -1: none. */
#define PRT_IO_BATCH 256
int prt_io_wait(struct prt_io *io, int timeout_ms);
/** The i-th of them; false: stale, or nothing to do. */
bool prt_io_event(struct prt_io *io, int i, struct prt_io_event *ev);
/** Bytes, or a PRT_IO_ code of tls.h. */
ssize_t prt_sock_recv(struct prt_sock *s, void *p, size_t n) ON_WORKER;
ssize_t prt_sock_send(struct prt_sock *s, const void *p, size_t n) ON_WORKER;
void prt_sock_count(const struct prt_sock *s, struct prt_sock_counts *out);
/** Has the other side not acknowledged for a while what it was sent (or asked)? A Unix socket
 * never: its end is known at once. */
bool prt_sock_is_deaf(const struct prt_sock *s) ON_WORKER;
/** Leave the set, end TLS, close. */
void prt_sock_close(struct prt_io *io, struct prt_sock *s) ON_WORKER;

/* ---- auth.c: who may log in ---- */
struct prt_auth; /* secrets of all users, derived once; immutable, counted with its snapshot */
/** Derives what is new; takes over from `old` (may be NULL) what did not change. */
PRT_MUST_CHECK poolrt_rc prt_auth_new(struct prt_auth **out, const struct prt_config *cfg,
                                      const struct prt_auth *old, struct prt_err *err);
void prt_auth_free(struct prt_auth *a);
/** One login under way; NULL: no memory. */
struct prt_auth_try;
struct prt_auth_try *prt_auth_begin(const struct prt_auth *a, struct prt_str user,
                                    struct ssl_st *ssl, struct prt_buf *out) ON_WORKER;
enum prt_auth_rc { PRT_AUTH_MORE, PRT_AUTH_OK, PRT_AUTH_DENIED, PRT_AUTH_BAD };
/** The body of a 'p' message; appends what is to be sent. */
enum prt_auth_rc prt_auth_answer(struct prt_auth_try *t, const struct prt_msg *m,
                                 struct prt_buf *out);
/** Is a proof needed at all? false (trust): the login is done. */
bool prt_auth_wants_proof(const struct prt_auth_try *t);
void prt_auth_end(struct prt_auth_try *t);

/* ---- a configuration as the workers use it ---- */
struct prt_snapshot {
    _Atomic int refs; /* the proxy, and each worker until it took the next one */
    struct prt_config *cfg;
    struct prt_auth *auth;
    struct ssl_ctx_st *tls; /* NULL: no TLS */
};
struct prt_snapshot *prt_snapshot_ref(struct prt_snapshot *s);
void prt_snapshot_unref(struct prt_snapshot *s);

/* ---- counters: one writer each, read by anyone ---- */
typedef _Atomic uint64_t prt_counter;
static inline void prt_count(prt_counter *c, uint64_t n)
{
    /* relaxed: a lone writer, and readers want no order between counters */
    atomic_store_explicit(c, atomic_load_explicit(c, memory_order_relaxed) + n,
                          memory_order_relaxed);
}
static inline uint64_t prt_counted(const prt_counter *c)
{
    return atomic_load_explicit(c, memory_order_relaxed);
}

/* ---- pools.c ---- */
/** What one worker counts of one pool; made at the worker's first acquire there. */
struct prt_pool_lane {
    prt_counter transactions, queries, errors_timeout, errors_closed, errors_other, exhausted;
    prt_counter hits, misses, evictions, parses_saved;          /* of prepared statements */
    prt_counter pins[PRT_STATE_COUNT], pinned[PRT_STATE_COUNT]; /* by kind: since the start, now */
    prt_counter resets; /* of what a transaction left behind */
    prt_counter by_hour[24];
    struct prt_hist acquire;
};
struct prt_proxy_pool {
    struct prt_map_node node; /* in px->pools, under px->mu; key: name */
    char name[PRT_NAME_MAX + 1];
    struct prt_proxy *px;
    struct prt_pool *engine;
    struct prt_policy_ops *policy;
    /* its row of the current configuration. Set under px->mu before the workers get the snapshot,
     * so a worker that reads it finds the row of its own snapshot or of the next: both are alive */
    _Atomic(const struct prt_pool_config *) cfg;
    struct prt_config *owner;  /* under px->mu: keeps the row alive; counted */
    struct prt_target *target; /* under px->now_mu */
    struct prt_hub *hubs;      /* under px->hub_mu: what listens for its clients */
    bool is_deaf;              /* under px->hub_mu: none is made any more */
    _Atomic int clients;       /* that use it; raised under px->mu only */
    bool is_gone;              /* under px->mu: not in the configuration any more */
    /* its servers refused client_connection_check_interval: too old, or not PostgreSQL */
    _Atomic bool has_no_check;
    struct prt_log_limit connect_limit;
    struct prt_target *next_target; /* control: of the reload under way */
    int64_t unused_since_us;        /* control thread */
    int64_t created_at_us;          /* wall clock */
    double open_sum[24];            /* control thread: open connections seen, by hour */
    uint64_t open_seen[24];
    _Atomic(struct prt_pool_lane *) lane[PRT_LANES_MAX];
};
/** Log-in data of a class: what makes its connections interchangeable. */
struct prt_login {
    char *dbname, *user; /* of the server */
    char *settings;      /* name NUL value NUL ...: what the startup packet sets besides */
    uint32_t settings_n;
    bool is_forced_user;              /* the pool's own user, not the client's */
    pthread_mutex_t mu;               /* guards `welcome` */
    const struct prt_params *welcome; /* what its servers report at login; NULL: none seen yet */
};
/** The pool of that database, made from "*" if need be, with one client more; NULL and *err else.
 */
struct prt_proxy_pool *prt_pools_join(struct prt_proxy *px, struct prt_str database,
                                      struct prt_err *err) ON_WORKER;
void prt_pools_leave(struct prt_proxy_pool *pp) ON_WORKER;
struct prt_pool_lane *prt_pools_lane(struct prt_proxy_pool *pp, unsigned lane) ON_WORKER;
/** The class of a client: counted reference. NULL: no memory, or too many classes. */
struct prt_class *prt_pools_class(struct prt_proxy_pool *pp, struct prt_str user,
                                  const char *settings, size_t settings_n) ON_WORKER;
/** A reference to where its servers are now. */
struct prt_target *prt_pools_target(struct prt_proxy_pool *pp) ON_ANY;
void prt_login_free(void *ctx, void *login) ON_ANY;
/** A reference to what the class's servers report, or NULL. */
const struct prt_params *prt_login_welcome(struct prt_login *login) ON_ANY;
void prt_login_set_welcome(struct prt_login *login, const struct prt_params *params) ON_ANY;
PRT_MUST_CHECK poolrt_rc prt_pools_apply(struct prt_proxy *px, struct prt_config *cfg,
                                         struct prt_err *err) ON_CONTROL;
void prt_pools_tick(struct prt_proxy *px, int64_t now_us) ON_CONTROL;
void prt_pools_drain(struct prt_proxy *px, int64_t now_us) ON_CONTROL;
int prt_pools_open(struct prt_proxy *px) ON_CONTROL;
void prt_pools_fini(struct prt_proxy *px) ON_CONTROL;

/* ---- registry.c: cancel keys ---- */
#define PRT_CANCEL_KEY 8 /* pid and secret, as BackendKeyData of protocol 3.0 carries them */
struct prt_registry_entry {
    struct prt_registry_entry *next;
    uint8_t key[PRT_CANCEL_KEY];
    uint16_t lane;
};
#define PRT_REGISTRY_SHARDS 64
struct prt_registry {
    struct prt_registry_shard {
        pthread_mutex_t mu;
        struct prt_registry_entry **bucket;
        uint32_t buckets, n;
    } shard[PRT_REGISTRY_SHARDS];
};
PRT_MUST_CHECK bool prt_registry_init(struct prt_registry *r);
void prt_registry_fini(struct prt_registry *r);
/** Give e a key of its own and enter it. false: no memory. */
PRT_MUST_CHECK bool prt_registry_add(struct prt_registry *r, struct prt_registry_entry *e,
                                     uint16_t lane);
void prt_registry_del(struct prt_registry *r, struct prt_registry_entry *e);
/** The lane whose client has that key; -1: none. */
int prt_registry_lane(struct prt_registry *r, const uint8_t key[PRT_CANCEL_KEY]);
/** On that lane's own thread: the entry, which stays until this thread removes it; or NULL. */
struct prt_registry_entry *prt_registry_find(struct prt_registry *r,
                                             const uint8_t key[PRT_CANCEL_KEY]);

/* ---- client ----
 *
 *  accept         startup           proof        (first of a class)
 *  -----> START --------> AUTH -----------> WELCOME ---------+
 *          ^ | TLS          | trust             |            v
 *          +-+ handshake    +-------------------+--------> IDLE <-----------------+
 *                                                           | request             | answered,
 *                                              slot at once | \ queue             | may release
 *                                                           |  v                  |
 *                                                           | WAITING --served--> ACTIVE
 *                                                           +------------------->  (has a server)
 *  any state -- leave --> GONE: out of the set; freed at once, or when the answer of the queue is
 * in
 *
 * state    true                                               leaves by
 * START    first packets; maybe in a TLS handshake            login.c
 * AUTH     `login->proof` is under way                        login.c
 * WELCOME  waits for what servers of its class report: none   welcome.c
 *          has been seen yet; one client per class is queued
 * IDLE     owes nothing, has no server, no request            prt_client_acquire
 * WAITING  its request lies in `in`, itself in the queue      prt_client_served, a timeout
 * ACTIVE   server != NULL and server->client == this          answer.c
 * GONE     socket closed; `is_queued` until served()          end of the turn
 */
enum prt_client_state {
    PRT_CLIENT_START,
    PRT_CLIENT_AUTH,
    PRT_CLIENT_WELCOME,
    PRT_CLIENT_IDLE,
    PRT_CLIENT_WAITING,
    PRT_CLIENT_ACTIVE,
    PRT_CLIENT_GONE,
};

/** What a login needs and a client does not: freed when it is logged in. Strings are owned. */
struct prt_login_try {
    struct prt_auth_try *proof;
    char *user, *database, *application, *tenant;
    struct prt_buf
        settings; /* name NUL value NUL ...: not reported by servers, so part of the class */
    const struct prt_params *wanted; /* reported ones */
    bool in_handshake, had_ssl, had_gss;
    struct prt_client *client;
    struct prt_welcome *welcome; /* WELCOME: with whom it waits */
    struct prt_link parked;      /* there, unless it is the one that asks */
};
/** Who a client is: shared by clients that are alike, so that an idle one stays small. Interned by
 * its worker, counted. */
struct prt_identity {
    struct prt_map_node node; /* in worker->identities */
    int refs;
    struct prt_class *cls; /* counted */
    struct prt_str user, database, application, tenant;
    char text[];
};
/** Where a client comes from, kept small. */
struct prt_peer {
    uint8_t ip[16];  /* 4 of them with AF_INET */
    uint16_t port;   /* 0 with a unix socket */
    uint16_t family; /* AF_INET, AF_INET6, AF_UNIX */
};
#define PRT_PEER_TEXT 64
/** "127.0.0.1:5000", "[::1]:5000" or "unix"; points into buf. */
struct prt_str prt_peer_text(const struct prt_peer *p, char buf[PRT_PEER_TEXT]);

struct prt_client {
    struct prt_sock sock;
    uint8_t state;       /* enum prt_client_state */
    bool discards : 1;   /* its request was refused: drop everything until Sync */
    bool is_queued : 1;  /* served() will still come */
    bool is_listed : 1;  /* has a cancel key */
    bool drops_rest : 1; /* the streamed message it sends is not for the server */
    bool leaves : 1;     /* ends as soon as it is out of a transaction */
    bool is_half : 1; /* sent FIN or Terminate: nothing more is read, but it may be owed answers */
    bool has_ended : 1;     /* sent Terminate: what lies in `in` does not count either */
    bool is_flushed : 1;    /* is_half: its last batch has no Sync, its answers were asked for */
    bool is_cancelled : 1;  /* a cancel request came for what is not at a server yet */
    bool is_verified : 1;   /* `params` were accepted by a server: setting them cannot fail */
    bool is_listening : 1;  /* a LISTEN of its waits for prt_client_listening() */
    bool cannot_listen : 1; /* what came of it: the LISTEN fails */
    uint8_t doom;           /* enum prt_disconnect + 1: why it leaves, when that is known before */
    struct prt_frame frame; /* of what it sends */
    uint32_t needs;         /* bytes of the message that must be here whole; 0: none */
    struct prt_worker *worker;
    struct prt_link link; /* worker->clients */
    struct prt_proxy_pool *pool;
    struct prt_identity *id;
    const struct prt_params *params;   /* what it has been told, and wants */
    const struct prt_params *startup;  /* the same as its login ended: where RESET goes */
    const struct prt_params *journal;  /* its SETs of what servers do not report */
    const struct prt_params *channels; /* of its LISTENs */
    struct prt_names *names;           /* its prepared statements */
    struct prt_buf *news;              /* notifications that wait for the end of its transaction */
    struct prt_server *server;         /* ACTIVE only */
    struct prt_login_try *login;       /* until it is logged in */
    struct prt_waiter w;
    struct prt_route route;
    struct prt_timer timer; /* the one limit that its state has */
    struct prt_buf in;      /* bytes read that could not be used yet */
    struct prt_buf out;     /* bytes that it could not take yet */
    struct prt_ears *ears;  /* what it listens to; NULL: nothing */
    struct prt_registry_entry cancel;
    uint64_t number; /* of the client, in the log and for policies */
    struct prt_peer peer;
    uint32_t since_s;   /* when it was accepted: seconds of the monotonic clock */
    int64_t request_us; /* when its request came; idle: since when */
};
static_assert(sizeof(struct prt_client) <= 392, "a client is meant to be small");

/* ---- server ----
 *
 *   open()                  opened                acquire                client left
 *   -------> DIALING ------------------> IDLE -------------> LINKED -----------------> CLEANING
 *               | failed: freed            ^                   | may release              |
 *               v                          +-------------------+                          |
 *                                          +----------------------------------------------+ clean
 *   close(), or it broke --> CLOSING: told to end, read until EOF; then prt_slot_closed(), freed
 *
 * state     true                                                 slot
 * DIALING   a connector has it                                   CONNECTING
 * IDLE      nothing owed; any byte from it ends it               IDLE
 * LINKED    client != NULL; is_syncing: SETs for it are awaited  ACTIVE, lease held
 * CLEANING  no client; its work is ended or undone               ACTIVE, lease held
 * CLOSING   out of use                                           CLOSING (or ACTIVE until released)
 */
enum prt_server_state {
    PRT_SERVER_DIALING,
    PRT_SERVER_IDLE,
    PRT_SERVER_LINKED,
    PRT_SERVER_CLEANING,
    PRT_SERVER_CLOSING,
};

struct prt_server {
    struct prt_sock sock;
    uint8_t state;             /* enum prt_server_state */
    bool is_syncing : 1;       /* injected SETs are not answered yet: the client's bytes wait */
    bool is_owned : 1;         /* LINKED: session mode; it stays with its client to the end */
    bool is_sync_ahead : 1;    /* injected SETs went ahead of the client's first message */
    bool owes_journal : 1;     /* is_syncing: unreported settings follow the reported ones */
    bool reset_failed : 1;     /* an error since that RESET */
    bool was_reset : 1;        /* CLEANING: what is dirty has been sent for reset */
    bool is_abandoned : 1;     /* CLEANING: its client left without letting go of it */
    bool forgets : 1;          /* ... and its prepared statements go with it */
    bool was_cancelled : 1;    /* CLEANING, CLOSING: a cancel request was sent */
    bool is_torn : 1;          /* a message of its client's was forwarded in part */
    bool may_free : 1;         /* CLOSING: the engine has asked for the end */
    bool is_killed : 1;        /* it is closed as soon as it is in no transaction */
    bool drops_rest;           /* what it sends now is not for the client, with all its pieces */
    struct prt_frame frame;    /* of what it sends */
    uint16_t pinned;           /* PRT_STATE bits that keep it with its client */
    uint16_t cleaning;         /* CLEANING: PRT_STATE bits that are being cleaned */
    unsigned cancels;          /* cancel requests under way: not given on until they are through */
    uint64_t number;           /* among clients and servers */
    struct prt_visit *killer;  /* whoever waits to hear how its transaction ended */
    struct prt_worker *worker; /* its home */
    struct prt_link link;      /* worker->servers, once it is connected */
    struct prt_proxy_pool *pool;
    struct prt_slot *slot;
    struct prt_class *cls; /* counted: it must outlive the release, when the slot is another's */
    struct prt_lease lease;
    struct prt_client *client;       /* LINKED */
    const struct prt_params *params; /* what it has reported last */
    /* a RESET is not answered yet: what the client means by it, and what was before */
    const struct prt_params *reset_to, *reset_from;
    struct prt_effects *parsed;       /* session mode: of the last Parse of a RESET */
    const struct prt_params *startup; /* what it reported at its login: where its RESET goes */
    struct prt_timer timer;           /* CLEANING, CLOSING: until when at the most */
    char *password;                   /* DIALING: copies for the connector */
    char *settings;
    struct prt_buf in;    /* an incomplete message */
    struct prt_buf out;   /* bytes that it could not take yet */
    struct prt_buf ahead; /* SETs that go out with the client's first message */
    struct prt_buf local; /* answers of our own that wait for the server's, to be sent together */
    struct prt_txn txn;
    struct prt_stmts stmts;
    struct prt_session session;
    struct prt_dial dial; /* as opened; addr and key for cancel requests */
    struct prt_err error; /* why a sync failed: told to the client */
};

/* ---- burst.c: small sends of one turn, made together ---- */
#define PRT_BURST 8
#define PRT_BURST_BYTES 1024
struct prt_burst {
    unsigned n;
    struct prt_client *client[PRT_BURST]; /* of each piece this or the next is set */
    struct prt_server *server[PRT_BURST];
    uint16_t len[PRT_BURST];
    uint8_t bytes[PRT_BURST][PRT_BURST_BYTES];
};
/** Have it sent in this turn, behind what was added before. Only with an empty `out`. false: it is
 * not taken, the caller sends it. */
PRT_MUST_CHECK bool prt_burst_client(struct prt_client *c, const void *p, size_t n) ON_WORKER;
PRT_MUST_CHECK bool prt_burst_server(struct prt_server *s, const void *p, size_t n) ON_WORKER;
/** Send what was added. Before a socket with in_burst is closed, leaves the set, or is sent to. */
void prt_burst_flush(struct prt_worker *w) ON_WORKER;

/* ---- worker.c ---- */
#define PRT_SPARE_BUFS 256
struct prt_worker {
    /* set at creation */
    _Alignas(PRT_CACHE_LINE) struct prt_proxy *px;
    unsigned lane;
    pthread_t thread;
    struct prt_mailbox mail;
    int wake_fd;
    /* owner worker */
    struct prt_sock wake_sock;
    struct prt_io io;
    struct prt_wheel wheel;
    int64_t now_us;        /* time of this loop turn */
    int64_t hour_until_us; /* `hour` is right until then */
    int hour;              /* of the day, local time: for the usage patterns */
    struct prt_snapshot *snap;
    uint8_t *rbuf;                        /* PRT_RBUF bytes: every recv lands here first */
    struct prt_buf spare[PRT_SPARE_BUFS]; /* memory for the next client that has to wait */
    int n_spare;
    struct prt_buf gather, piece; /* a run for a server that is not as the client sent it */
    struct prt_buf answer;        /* what goes to a client in place of a server's message */
    struct prt_buf joined;        /* memory for the next server's `local` */
    struct prt_burst burst;
    struct prt_link clients, servers, lingers;
    struct prt_link hubs;      /* those that are not off: link */
    struct prt_link served;    /* waiters of this lane whose wait is over: w.link */
    struct prt_link graves;    /* clients to free at the end of the turn: link */
    struct prt_link visits;    /* visit.c: the first one is at work, the others wait for it */
    struct prt_link *visit_at; /* ... at this client or server; NULL: nobody visits */
    bool visits_clients;       /* `visit_at` is among the clients, else among the servers */
    struct prt_timer visit_timer;
    struct prt_map identities;
    struct prt_map welcomes;       /* classes of which no server has been seen yet */
    bool in_serving;               /* worker_serve runs: nested calls return */
    bool is_draining;              /* clients leave at the end of their transaction */
    bool is_ending;                /* clients have left; servers are closed, not cleaned */
    bool is_stopping;              /* the loop ends with this turn */
    struct prt_timer accept_timer; /* a pause after EMFILE */
    struct prt_sock *listeners;    /* own entries of the shared descriptors */
    /* atomic, any thread */
    _Atomic uint32_t n_clients;
    struct {
        prt_counter waiting, active; /* gauges */
        prt_counter accepted, logins, login_failures, transactions, queries, bytes_in, bytes_out;
        prt_counter cancels_received, cancels_forwarded, violations;
        prt_counter disconnects[PRT_GONE_COUNT];
    } n;
    struct prt_mail snap_mail, drain_mail, end_mail, stop_mail;
    struct prt_snapshot *_Atomic next_snap;
};
#define PRT_RBUF (128 * 1024)

struct prt_proxy {
    /* set at creation */
    unsigned n_workers;
    struct prt_worker *worker;
    struct prt_connector *connector;
    struct prt_proxy_hooks hooks;
    int n_listeners;
    struct prt_listener *listener;
    struct prt_registry registry;
    /* under mu */
    pthread_mutex_t mu;
    struct prt_map pools;
    unsigned n_pools;
    struct prt_snapshot *snap; /* the current one; read also under now_mu, changed under both */
    /* the inner lock, for what opening a connection needs: the current snapshot and pools' targets
     */
    pthread_mutex_t now_mu;
    pthread_mutex_t hub_mu; /* innermost: each pool's list of hubs, and their users */
    /* atomic, any thread */
    _Atomic uint64_t next_number; /* of a client or server */
    _Atomic uint32_t n_clients;   /* logged in or about to */
    unsigned n_started;           /* control: workers that run */
    bool is_draining;             /* control */
    int64_t last_hour_us;         /* control: sampling of open connections */
};
PRT_MUST_CHECK poolrt_rc prt_worker_init(struct prt_worker *w, struct prt_proxy *px, unsigned lane,
                                         struct prt_err *err);
PRT_MUST_CHECK poolrt_rc prt_worker_start(struct prt_worker *w, struct prt_err *err);
void prt_worker_fini(struct prt_worker *w);
/** Hand the clients whose wait is over to client.c; before anything else is sent. */
void prt_worker_serve(struct prt_worker *w) ON_WORKER;
struct prt_identity *prt_worker_identity(struct prt_worker *w, struct prt_class *cls,
                                         struct prt_str user, struct prt_str database,
                                         struct prt_str application,
                                         struct prt_str tenant) ON_WORKER;
void prt_identity_unref(struct prt_worker *w, struct prt_identity *id) ON_WORKER;

/** A client or server leaves the worker's list, where a visit may stand. */
static inline void prt_worker_unlist(struct prt_worker *w, struct prt_link *l)
{
    if (w->visit_at == l) {
        w->visit_at = l->next;
    }
    prt_list_del(l);
}
static inline uint64_t prt_next_number(struct prt_proxy *px)
{
    /* relaxed: only its being different matters; 0 is nobody */
    return atomic_fetch_add_explicit(&px->next_number, 1, memory_order_relaxed) + 1;
}
/** One connection less in the numbers that max_clients and the balancing look at. */
void prt_worker_lost_client(struct prt_worker *w) ON_WORKER;

/* ---- visit.c ---- */
void prt_visit_continue(struct prt_timer *t, int64_t now_us);

/* ---- kill.c ----
 * An administrator ends a client, or a server connection and the client that it serves. What runs
 * is cancelled, a transaction is rolled back, and the server goes the way of all that clients leave
 * behind; the one who asked is told what became of the transaction. */
/** true: v's answer is complete. false: v->done() comes later. */
PRT_MUST_CHECK bool prt_kill_client(struct prt_client *c, struct prt_visit *v) ON_WORKER;
PRT_MUST_CHECK bool prt_kill_server(struct prt_server *s, struct prt_visit *v) ON_WORKER;
/** Would something be lost? */
bool prt_kill_loses(const struct prt_server *s);
/** CLEANING: a statement, of the client that was killed or of ours, has succeeded. */
void prt_kill_tag(struct prt_server *s, const struct prt_msg *m) ON_WORKER;
/** CLEANING: all is answered, with txn.status; or the connection ends before that. */
void prt_kill_settled(struct prt_server *s, bool is_broken) ON_WORKER;

/* ---- linger.c ---- */
struct prt_linger;
/** Takes socket and bytes when there are any that a client which has left should still get. false:
 *  nothing to send; both stay the caller's. */
PRT_MUST_CHECK bool prt_linger_begin(struct prt_worker *w, struct prt_sock *sock,
                                     struct prt_buf *out) ON_WORKER;
void prt_linger_writable(struct prt_linger *g) ON_WORKER;
void prt_linger_end_all(struct prt_worker *w) ON_WORKER;

/* ---- listener.c ---- */
struct prt_listener {
    int fd;
    bool is_unix;
    char *path; /* of a unix socket: unlinked at the end */
    char *text;
};
PRT_MUST_CHECK poolrt_rc prt_listeners_open(struct prt_proxy *px, const struct prt_config *cfg,
                                            struct prt_err *err);
void prt_listeners_close(struct prt_proxy *px);
void prt_listeners_watch(struct prt_worker *w) ON_WORKER;
void prt_listeners_unwatch(struct prt_worker *w) ON_WORKER;
void prt_listener_readable(struct prt_worker *w, struct prt_sock *s) ON_WORKER;

/* ---- client.c: its life between login and end ---- */
/** A descriptor that was accepted: takes it. */
void prt_client_new(struct prt_worker *w, int fd, const struct prt_peer *peer) ON_WORKER;
void prt_client_event(struct prt_client *c, const struct prt_io_event *ev) ON_WORKER;
void prt_client_set_state(struct prt_client *c, enum prt_client_state st) ON_WORKER;
/** Out of the queue, if it is in it. false: too late, prt_client_served() is on its way. */
PRT_MUST_CHECK bool prt_client_unqueue(struct prt_client *c, poolrt_rc rc) ON_WORKER;
void prt_client_count_error(struct prt_client *c, poolrt_rc rc) ON_WORKER;
/** The end of its wait: w.rc and w.lease are final. */
void prt_client_served(struct prt_client *c) ON_WORKER;
/** An exchange is over or has moved on, and the lease goes on: what waits in c->in, or the end. */
void prt_client_go_on(struct prt_client *c) ON_WORKER;
/** Use bytes that wait in c->in, if it can go on. */
void prt_client_resume(struct prt_client *c) ON_WORKER;
/** Send in this turn; what it does not take is kept, and its server is not read then. */
void prt_client_send(struct prt_client *c, const void *p, size_t n) ON_WORKER;
/** The same at once: for burst.c. */
void prt_client_send_now(struct prt_client *c, const void *p, size_t n) ON_WORKER;
void prt_client_send_buf(struct prt_client *c, struct prt_buf *b) ON_WORKER;
/** No memory for its bytes: it ends. */
void prt_client_no_memory(struct prt_client *c) ON_WORKER;
/** n bytes of c->in are used; empty memory goes to the next client that waits. */
void prt_client_used(struct prt_client *c, size_t n) ON_WORKER;
/** Watch its socket for what can be used now. */
void prt_client_set_reading(struct prt_client *c) ON_WORKER;
/** A cancel request with its key has come. */
void prt_client_cancel(struct prt_client *c) ON_WORKER;
/** Forward it now if it came before what it is for was at the server, or while settings were being
 * restored there, for which it was not meant. */
void prt_client_cancel_late(struct prt_client *c) ON_WORKER;
/** No server any more and nothing owed: IDLE, or the end for one that leaves. */
void prt_client_set_idle(struct prt_client *c) ON_WORKER;
/** Refuse the request that begins with a message of `type`: ErrorResponse, and what the protocol
 * wants behind it. err->sqlstate may be empty. */
void prt_client_refuse(struct prt_client *c, uint8_t type, const struct prt_err *err,
                       const char *hint) ON_WORKER;
/** The same for the request that waits in c->in. */
void prt_client_refuse_held(struct prt_client *c, const struct prt_err *err,
                            const char *hint) ON_WORKER;
/** Ask for a server for the request of `type`. true: c->server is set. false: it waits, or it was
 *  refused (*refused). */
PRT_MUST_CHECK bool prt_client_acquire(struct prt_client *c, uint8_t type, bool *refused) ON_WORKER;
/** Into the queue for a server of its class: OK, PENDING (served() will come), or an error. */
PRT_MUST_CHECK poolrt_rc prt_client_enqueue(struct prt_client *c) ON_WORKER;
static inline const struct prt_pool_config *prt_client_row(const struct prt_client *c)
{
    /* acquire: pairs with the release store of a reload */
    return atomic_load_explicit(&c->pool->cfg, memory_order_acquire);
}

/** Has its server got the beginning of a message that it is still sending? */
static inline bool prt_client_is_torn(const struct prt_client *c)
{
    return !prt_frame_is_clean(&c->frame) && !c->drops_rest;
}

/* ---- leave.c: the end of a client ---- */
/** End it: the reason is counted and logged; a server that it holds is cleaned by server.c. */
void prt_client_leave(struct prt_client *c, enum prt_disconnect why) ON_WORKER;
/** The same for a client that is known to be gone for long: what runs for it gets no grace. */
void prt_client_leave_at_once(struct prt_client *c, enum prt_disconnect why) ON_WORKER;
/** FATAL to the client, unless it is in the middle of another message, then leave. `hint` may be
 * NULL. */
void prt_client_fatal(struct prt_client *c, const char *sqlstate, const char *text,
                      const char *hint, enum prt_disconnect why) ON_WORKER;
/** An administrator ends it. at_once: without the grace for what runs. */
void prt_client_kill(struct prt_client *c, bool at_once) ON_WORKER;
/** In the words of the reason why all have to: a shutdown, or its pool is gone or another. */
void prt_client_leave_orderly(struct prt_client *c) ON_WORKER;
/** GONE and in no queue: nothing is left to do but to free it, at the end of the turn. */
void prt_client_bury(struct prt_client *c) ON_WORKER;
/** The worker has another configuration; `old` was the last one. */
void prt_client_configure(struct prt_client *c, const struct prt_config *old) ON_WORKER;
void prt_client_drain(struct prt_client *c) ON_WORKER;
/** Nothing is owed to it, and its server, if it has one, is in no transaction. */
bool prt_client_is_between_transactions(const struct prt_client *c) ON_WORKER;
/** One line about it: who, where from, what. `text` may be NULL. */
void prt_client_log(const struct prt_client *c, enum prt_log_level level, const char *event,
                    const char *key, const char *text) ON_WORKER;

/* ---- half.c: it sends nothing more ---- */
/** Terminate. What it has asked for completely is still answered, as PostgreSQL would. */
void prt_client_quit(struct prt_client *c, enum prt_disconnect why) ON_WORKER;
/** FIN: the same, and for what lies in c->in as well. */
void prt_client_ended(struct prt_client *c) ON_WORKER;
/** is_half: it leaves, unless answers are due. */
void prt_client_end_when_through(struct prt_client *c) ON_WORKER;

/* ---- login.c: from accept to ReadyForQuery ---- */
/** Bytes are in c->in, or the TLS handshake can go on. */
void prt_login_go_on(struct prt_client *c) ON_WORKER;
/** It is logged in, and told `welcome`, which is taken. */
void prt_login_finish(struct prt_client *c, const struct prt_params *welcome) ON_WORKER;
void prt_login_refuse(struct prt_client *c, const struct prt_err *err) ON_WORKER;
void prt_login_timeout(struct prt_timer *t, int64_t now_us) ON_WORKER;
void prt_login_end(struct prt_client *c) ON_WORKER;

/* ---- welcome.c: the first clients of a class ---- */
/** Nothing is known of its class: WELCOME, until it is logged in or refused. */
void prt_welcome_wait(struct prt_client *c) ON_WORKER;
/** WELCOME: a server was there to read what it reports, or there was none. */
void prt_welcome_served(struct prt_client *c, poolrt_rc rc) ON_WORKER;
/** Its login is over, one way or the other: if others wait for it, the next one asks. */
void prt_welcome_left(struct prt_client *c) ON_WORKER;

/* ---- server.c ---- */
extern const struct prt_conn_ops prt_server_ops;
void prt_server_event(struct prt_server *s, const struct prt_io_event *ev) ON_WORKER;
/** The lease of `c` on it begins. */
void prt_server_link(struct prt_server *s, struct prt_client *c) ON_WORKER;
/** Its client is gone: end or undo the work, then give it back, or close it. is_torn: a message of
 * the client's was forwarded in part. at_once: without the grace for what runs. */
void prt_server_abandon(struct prt_server *s, bool is_torn, bool at_once) ON_WORKER;
/** Give it back to the pool; nothing is owed and no client is linked. Not to be touched afterwards.
 */
void prt_server_release(struct prt_server *s) ON_WORKER;
/** Its client has let go of it in good order: clean what is due, then the same. */
void prt_server_end_lease(struct prt_server *s) ON_WORKER;
/** It must not be used again: end the lease and close it. */
void prt_server_break(struct prt_server *s) ON_WORKER;
/** The process ends: what it still does for nobody is cancelled, and it is closed. */
void prt_server_end_now(struct prt_server *s) ON_WORKER;
/** As whom servers of the pool are logged in: the pool's own user, or a client's with the password
 * of the users table. NULL: without a password. */
const char *prt_server_password(const char *user, bool is_forced, const struct prt_pool_config *row,
                                const struct prt_config *cfg) ON_ANY;
/** CLEANING: something was answered; go on. */
void prt_server_clean_on(struct prt_server *s) ON_WORKER;
/** Send, or keep what it does not take; then its client is not read. */
void prt_server_send(struct prt_server *s, const void *p, size_t n) ON_WORKER;
void prt_server_send_now(struct prt_server *s, const void *p, size_t n) ON_WORKER;
/** Has all that was sent to it left? What is in the burst is sent for that. */
bool prt_server_has_all(struct prt_server *s) ON_WORKER;
void prt_server_send_buf(struct prt_server *s, struct prt_buf *b) ON_WORKER;
/** Watch its socket for what can be used now. */
void prt_server_set_reading(struct prt_server *s) ON_WORKER;
/** Send a cancel request for what it does now. */
void prt_server_cancel(struct prt_server *s) ON_WORKER;
/** CLEANING: a COPY FROM STDIN waits for data that nobody has. */
void prt_server_fail_copy(struct prt_server *s) ON_WORKER;
/** A Sync in front of a failed COPY may still be answered: ask until that is known. */
void prt_server_fence(struct prt_server *s) ON_WORKER;
/** May the lease end, as far as the server is concerned? */
bool prt_server_is_settled(const struct prt_server *s) ON_WORKER;

/* ---- listen.c: LISTEN in the modes that share servers ----
 * One connection of its own per pool and database listens for all its clients; what it hears goes
 * to each worker that has a client for that channel, and from there to the clients, in order. */
struct prt_ears; /* the channels of one client */
/** OK: it has the channel already, or has asked for it before and that answer is still to come.
 * PENDING: prt_client_listening() will come once, unless prt_listen_del() or _end() takes the
 * channel back before. Else an error in *err. Names are cut to 63 bytes, as PostgreSQL does. */
PRT_MUST_CHECK poolrt_rc prt_listen_add(struct prt_client *c, struct prt_str channel,
                                        struct prt_err *err) ON_WORKER;
/** No longer; a channel that it does not have is fine. */
void prt_listen_del(struct prt_client *c, struct prt_str channel) ON_WORKER;
/** Walk the client's channels: *at starts NULL; false at the end. Deleting the current one is fine.
 */
bool prt_listen_next(const struct prt_client *c, const void **at,
                     struct prt_str *channel) ON_WORKER;
/** The client leaves. */
void prt_listen_end(struct prt_client *c) ON_WORKER;
/** The hub's connection has something. */
void prt_listen_event(struct prt_hub *h, const struct prt_io_event *ev) ON_WORKER;
/** The process ends: close the connections whose home is this worker. */
void prt_listen_end_all(struct prt_worker *w) ON_WORKER;
/** The pool's target or login has changed: listen there. */
void prt_listen_redial(struct prt_proxy_pool *pp) ON_ANY;
/** The pool is gone: whoever waits is refused, the connections are closed. */
void prt_listen_close(struct prt_proxy_pool *pp) ON_ANY;
/** Nothing of it lives any more, or will while no client is in the pool. */
bool prt_listen_is_over(struct prt_proxy_pool *pp) ON_ANY;
void prt_listen_free(struct prt_proxy_pool *pp) ON_ANY;
struct prt_listen_stats {
    uint64_t listeners, channels; /* now: connections, channels that they listen to */
    uint64_t notifications, gaps; /* heard; connections lost while somebody listened */
};
void prt_listen_stats(struct prt_proxy_pool *pp, struct prt_listen_stats *out) ON_ANY;

/* ---- news.c: what listen.c has for a client ---- */
/** What was PENDING is decided; err->rc POOLRT_OK: it listens. */
void prt_client_listening(struct prt_client *c, const struct prt_err *err) ON_WORKER;
/** A whole NotificationResponse for it. Sent when it holds no server, else kept until
 * its transaction is over. */
void prt_client_notify(struct prt_client *c, const uint8_t *m, size_t n) ON_WORKER;
/** What was kept, if it may be sent now. */
void prt_client_send_news(struct prt_client *c) ON_WORKER;
void prt_client_drop_news(struct prt_client *c) ON_WORKER;

/* ---- state.c: session state in the modes that share servers ---- */
/** May a text with these effects run now? As prt_up_client.may_run; ctx: the client. */
enum prt_may prt_state_may_run(void *ctx, const struct prt_effects *e,
                               const struct prt_denial **why) ON_WORKER;
/** A server has accepted what the client wants. */
void prt_state_verified(struct prt_client *c) ON_WORKER;
/** What the lease began with is set; true: more had to wait for it, and was sent. */
bool prt_state_follow_up(struct prt_server *s) ON_WORKER;
/** The lease of `c` begins: give its server its settings. */
void prt_state_link(struct prt_server *s, struct prt_client *c) ON_WORKER;
/** ParameterStatus of the server's. true: `out` has what the client gets in its place, perhaps
 * nothing. */
bool prt_state_param(struct prt_server *s, struct prt_str name, struct prt_str value, bool is_ours,
                     struct prt_buf *out) ON_WORKER;
/** Session mode: may this message be sent now? Not while a RESET in it needs to be alone. */
bool prt_state_may_reset(struct prt_client *c, const struct prt_msg *m) ON_WORKER;
/** CommandComplete of the client's. */
void prt_state_tag(struct prt_server *s, const struct prt_msg *m) ON_WORKER;
void prt_state_end_reset(struct prt_server *s);
/** A request of the client's has failed. */
void prt_state_error(struct prt_server *s) ON_WORKER;
/** Nothing is owed and the lease goes on: settings that a RESET lost are set again before anything
 * else runs (is_syncing). */
void prt_state_restore(struct prt_server *s) ON_WORKER;
/** The client's ReadyForQuery: subscriptions as they were committed. true: `out` has what the
 * client must be told before it. */
bool prt_state_ready(struct prt_server *s, struct prt_buf *out) ON_WORKER;
/** Nothing is owed and no transaction open: does the lease go on because of what the client has
 * there? Counts and shows pins. */
bool prt_state_pins(struct prt_server *s) ON_WORKER;
/** PRT_STATE bits to be cleaned before another client gets it. is_left: its client has left. */
unsigned prt_state_dirt(const struct prt_server *s, bool is_left) ON_WORKER;
/** The lease ends: what the client keeps of it. */
void prt_state_unlink(struct prt_server *s, struct prt_client *c) ON_WORKER;
/** Its client has left: what it had pinned is to be cleaned. */
void prt_state_abandon(struct prt_server *s) ON_WORKER;
/** May LISTEN be answered by the listener connection? */
bool prt_state_fans_out(const struct prt_pool_config *row);

/* ---- relay.c: client to server; answer.c: server to client ---- */
/** A run of bytes that goes on as it lies there. */
struct prt_run {
    const uint8_t *p;
    size_t from, at;
};
#define PRT_GATHER_MAX 16384 /* a run that is longer is not copied to save a system call */
static inline uint32_t prt_max_packet(const struct prt_worker *w)
{
    return (uint32_t)w->snap->cfg->max_packet_size_bytes;
}
/** Bytes of a client, n of them; returns how many were used. The caller keeps the rest in c->in. */
PRT_MUST_CHECK size_t prt_relay(struct prt_client *c, const uint8_t *p, size_t n) ON_WORKER;
/** Bytes of a client were used, and what is left of them is kept: its lease may have waited for
 * them to end. */
void prt_answer_after_relay(struct prt_client *c) ON_WORKER;
/** Send what waits in s->local. */
void prt_answer_send_local(struct prt_server *s) ON_WORKER;
/** Something that held the lease up is over (a cancel request): end it if it may. */
void prt_answer_settle(struct prt_server *s) ON_WORKER;
/** A server is readable. true: more lies ready in its TLS layer. */
bool prt_answer_read(struct prt_server *s) ON_WORKER;
#endif
