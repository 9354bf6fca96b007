/* admin_int.h - what the files of this room share; never leaves it.
 *
 *   socket --> gate.c: accept, head.c: is it one plain request? --> http.c: libmicrohttpd
 *          --> access.c: which host, whose token --> bind.c --> lua/poolrt/rest.lua */
#ifndef PRT_ADMIN_INT_H
#define PRT_ADMIN_INT_H
#include "admin/admin.h"

#include <sys/socket.h>

/* limits of TRUST H4 */
#define PRT_HTTP_LINE_MAX 8192
#define PRT_HTTP_FIELDS_MAX 32768
#define PRT_HTTP_FIELD_COUNT 100
#define PRT_HTTP_BODY_MAX (1u << 20)
#define PRT_HTTP_CONNECTIONS 64
#define PRT_HTTP_HEAD_US 10000000
#define PRT_HTTP_REQUEST_US 30000000
/* one byte more than the longest head that is not refused */
#define PRT_HTTP_PEEK (PRT_HTTP_LINE_MAX + 2 + PRT_HTTP_FIELDS_MAX + 2 + 1)

/** Why a request is not served; status 0: nothing is wrong. Strings are literals. */
struct prt_refusal {
    int status;
    const char *code, *text;
};

/* ---- head.c ---- */
/** How far a head has been looked at. All zero to begin with. */
struct prt_head_scan {
    size_t at;       /* bytes seen */
    size_t line;     /* where the current line begins */
    size_t first;    /* where the header fields begin; 0: still in the request line */
    unsigned fields; /* complete ones */
};
enum prt_head_state { PRT_HEAD_MORE, PRT_HEAD_WHOLE, PRT_HEAD_BAD };
/** Look at the bytes of `in` beyond scan->at. WHOLE: the head ends at scan->at. BAD: *why says it.
 */
enum prt_head_state prt_head_scan(struct prt_str in, struct prt_head_scan *scan,
                                  struct prt_refusal *why) ON_ANY;
/** Parts of a request's head; they borrow its bytes. */
struct prt_http_head {
    struct prt_str method, target, host;
    struct prt_str authorization; /* p NULL: absent */
    uint64_t length;              /* Content-Length; 0 when absent */
};
/** Take a whole head apart. false: *why says what is wrong with it. */
PRT_MUST_CHECK bool prt_head_parse(struct prt_str in, struct prt_http_head *h,
                                   struct prt_refusal *why) ON_ANY;

/* ---- access.c ---- */
#define PRT_ACCESS_TABLE 256
struct prt_access_try {
    uint8_t addr[16];
    int64_t until_us; /* failures are paid for until then */
};
struct prt_access {
    bool has_token, is_loopback; /* is_loopback: of the listener */
    bool is_wildcard;            /* the listener takes any of the machine's addresses */
    uint8_t digest[32];          /* SHA-256 of the token */
    char host[256];              /* as configured */
    char machine[256];           /* the machine's own name; used with is_wildcard */
    uint64_t failures;           /* wrong tokens so far */
    struct prt_access_try tries[PRT_ACCESS_TABLE];
};
/** `bound`: the address that the listener has. */
void prt_access_init(struct prt_access *a, const struct prt_config *cfg,
                     const struct sockaddr *bound) ON_CONTROL;
/** Another token, or none. */
void prt_access_set_token(struct prt_access *a, const char *token) ON_CONTROL;
/** Who asks? status 0, and *is_admin; else a refusal. */
struct prt_refusal prt_access_check(struct prt_access *a, const struct prt_http_head *h,
                                    const struct sockaddr *peer, int64_t now_us,
                                    bool *is_admin) ON_CONTROL;
bool prt_sockaddr_is_loopback(const struct sockaddr *sa) ON_ANY;

/* ---- bind.c ---- */
struct prt_bind;
#define PRT_BIND_PEER 64
struct prt_bind_request {
    struct prt_str method, target;
    bool is_admin, is_loopback; /* is_loopback: the peer */
    struct prt_refusal refused; /* status 0: to be served */
    char peer[PRT_BIND_PEER];   /* its address, for the log */
};
struct prt_bind_header {
    const char *name, *value;
};
#define PRT_BIND_HEADERS 4
/** Strings are valid until the next call of prt_bind_handle(). */
struct prt_bind_reply {
    int status;
    const char *type;
    struct prt_str body;
    int n_headers;
    struct prt_bind_header headers[PRT_BIND_HEADERS];
};
/** What a handler that waits for the workers needs of its surroundings. */
struct prt_bind_ops {
    void *ctx;
    void (*wake)(void *ctx);               /* any thread: have prt_bind_collect() called soon */
    void (*ready)(void *ctx, void *owner); /* control: prt_bind_go_on() can answer now */
};
/** Borrows deps' objects, `access` and *ops until prt_bind_free(). */
PRT_MUST_CHECK poolrt_rc prt_bind_new(struct prt_bind **out, const struct prt_admin_deps *deps,
                                      const struct prt_access *access,
                                      const struct prt_bind_ops *ops,
                                      struct prt_err *err) ON_CONTROL;
/** No worker runs any more, if any ever did. */
void prt_bind_free(struct prt_bind *b) ON_CONTROL;
/** A request whose handler waits for the workers. */
struct prt_bind_call;
/** NULL: *reply is the answer; a handler that fails is logged and gives 500 "internal". Else the
 *  handler waits: ops->ready() will name `owner`. */
PRT_MUST_CHECK struct prt_bind_call *prt_bind_handle(struct prt_bind *b,
                                                     const struct prt_bind_request *rq,
                                                     struct prt_bind_reply *reply,
                                                     void *owner) ON_CONTROL;
/** After ready(): the rest of the handler, and its answer. Takes the call. */
void prt_bind_go_on(struct prt_bind_call *call, struct prt_bind_reply *reply) ON_CONTROL;
/** Nobody wants the answer any more. Takes the call. */
void prt_bind_drop(struct prt_bind_call *call) ON_CONTROL;
/** Name those that are ready, or have waited for too long. false: nobody waits. */
bool prt_bind_collect(struct prt_bind *b, int64_t now_us) ON_CONTROL;
/** The process ends: all that wait get what there is. */
void prt_bind_hurry(struct prt_bind *b) ON_CONTROL;
/** Note the counters, for rates over the last minute. */
void prt_bind_tick(struct prt_bind *b) ON_CONTROL;

/* ---- gate.c ---- */
struct prt_gate;
struct MHD_Connection;

/* one connection, from accept to close
 *
 *            head whole and sane             MHD closed it
 *   HEAD -----------------------> SERVED ------------------> (freed)
 *    |  \ head refused, 10 s                                    ^
 *    |   `----------> REFUSED: answer sent, reading on until ---|
 *    |                the peer closes, or 2 s                   |
 *    `------------- the peer closed, its place was needed ------'
 *
 * HEAD, REFUSED: the gate's socket and poll handle. SERVED: libmicrohttpd's socket; `head` is what
 * the handler answers; past the deadline the socket is shut down, which makes MHD let go of it. */
enum prt_gate_state { PRT_GATE_HEAD, PRT_GATE_REFUSED, PRT_GATE_SERVED };
struct prt_gate_conn {
    struct prt_link link; /* gate->conns, oldest first */
    struct prt_gate *gate;
    enum prt_gate_state state;
    int fd;
    int64_t since_us, until_us;
    struct sockaddr_storage peer;
    socklen_t peer_len;
    uv_poll_t poll; /* HEAD and REFUSED */
    struct prt_head_scan scan;
    size_t drained; /* REFUSED: bytes read and thrown away */
    char *bytes;    /* SERVED: the head, owned; holds the token */
    size_t n_bytes;
    struct prt_http_head head;  /* SERVED: points into bytes */
    struct prt_bind_call *call; /* SERVED: its handler waits for the workers */
    struct MHD_Connection *mhd; /* ... and it is suspended */
};

struct prt_gate_ops {
    /** Takes c->fd, whose unread bytes begin with the head. false: c->fd was closed. */
    bool (*serve)(void *ctx, struct prt_gate_conn *c);
    /** The answer to a head that was refused. Fills at most cap bytes; returns how many. */
    size_t (*refuse)(void *ctx, const struct prt_gate_conn *c, const struct prt_refusal *why,
                     char *out, size_t cap);
    /** A served connection was shut down: look at it. */
    void (*shut)(void *ctx);
};
/** Takes `listen_fd`. */
PRT_MUST_CHECK poolrt_rc prt_gate_open(struct prt_gate **out, uv_loop_t *loop, int listen_fd,
                                       const struct prt_gate_ops *ops, void *ctx,
                                       struct prt_err *err) ON_CONTROL;
/** Runs the loop until it has let go of the handles. No connection is served any more. NULL is
 *  accepted. */
void prt_gate_close(struct prt_gate *g) ON_CONTROL;
/** The connection served on this descriptor, or NULL. */
struct prt_gate_conn *prt_gate_find(struct prt_gate *g, int fd) ON_CONTROL;
/** Its socket was closed by libmicrohttpd. */
void prt_gate_forget(struct prt_gate_conn *c) ON_CONTROL;
#endif
