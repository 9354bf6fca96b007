/* stmt.h - prepared statements of clients that share servers. Part of pg.h. Works on messages: the
 * caller hands in what a client sends and what its server answers, sends what it is told to send,
 * and has the accounting (struct prt_txn) done on the way. Rules: core/pg/README.md.
 *
 *   client's name --prt_names--> statement (global, by text, types and settings) --prt_stmts-->
 *   is it on this server? then its messages are renamed to prt_ID; else a Parse goes in front
 *
 * Threads: names belong to the client's worker, stmts to the server's home, which is the same while
 * they are leased. The global table of texts has its own locks. */
#ifndef PRT_STMT_H
#define PRT_STMT_H
#include "base/base.h"
#include "base/buf.h"
#include "base/evict.h"
#include "base/hash.h"
#include "pg/session.h"

struct prt_msg;
struct prt_txn;
struct prt_params;

/* ---- a client's names ---- */
#define PRT_NAMES_MAX 10000           /* statements of one client */
#define PRT_NAMES_BYTES (16u << 20)   /* and the bytes of their texts */
#define PRT_UNNAMED_MAX 60000         /* a longer unnamed Parse is not remembered after its lease */
#define PRT_PARSE_MAX PRT_NAMES_BYTES /* a longer named Parse is refused */
/** What a client has prepared. Heap, made by the first message that needs it; NULL: nothing yet. */
struct prt_names;
void prt_names_free(struct prt_names *n); /* NULL: nothing; not while its lease lasts */
/** Names that it has, for reports. */
size_t prt_names_count(const struct prt_names *n);

/* ---- a server's statements ---- */
/** Counted here, taken out by the caller. */
struct prt_stmt_counts {
    uint64_t hits;      /* Bind, Describe or Parse of a statement that the server had */
    uint64_t misses;    /* ... that had to be parsed there first */
    uint64_t evictions; /* closed to make room */
    uint64_t saved;     /* Parses answered without the server */
};
struct prt_stmts {
    struct prt_txn *txn;     /* of the same server */
    struct prt_map by_id;    /* what it has */
    struct prt_evict order;  /* of by_id */
    uint32_t limit;          /* most of them: statement_cache_size */
    uint32_t unnamed_of;     /* number of the client whose unnamed statement it may have; 0: none */
    uint32_t batch;          /* number of the batch that is being sent */
    bool is_suspect;         /* something was deallocated unseen: Close before each Parse */
    bool is_fresh;           /* no request was sent in this lease */
    bool has_ddl;            /* a transaction that is not over has changed the schema */
    uint16_t barriers;       /* unanswered requests that may deallocate everything */
    uint16_t rows;           /* unanswered requests whose rows prt_stmts_server() must be told of */
    struct prt_notes *notes; /* what answers will confirm or undo, in the order of the queue */
    struct prt_portals *portals; /* of this lease: which of them run a text with effects */
    struct prt_stmt_counts n;
};
void prt_stmts_init(struct prt_stmts *s, struct prt_txn *txn, uint32_t limit);
void prt_stmts_fini(struct prt_stmts *s);
/** The server was given to another client. */
void prt_stmts_lease(struct prt_stmts *s);
/** Everything it had is gone: DISCARD ALL or DEALLOCATE ALL of the pooler's own was answered. */
void prt_stmts_forget(struct prt_stmts *s);
/** A Query of the pooler's own goes to the server in the middle of a lease, when nothing is owed:
 * it ends the unnamed statement there, which the client still counts on. names: its own, or NULL.
 */
void prt_stmts_lose_unnamed(struct prt_stmts *s, struct prt_names *names);
size_t prt_stmts_count(const struct prt_stmts *s);

/* ---- up: a message of the client's ---- */
/** Why a request is refused: the server is made to fail at that place, and this text is told. */
struct prt_denial {
    const char *sqlstate, *text, *hint; /* static; hint may be NULL */
    const char *routine; /* drivers tell PostgreSQL's errors apart by it; NULL: none */
};
enum prt_may { PRT_MAY_RUN, PRT_MAY_WAIT, PRT_MAY_NOT };
struct prt_up_client {
    struct prt_names **names;        /* the client's; made when needed */
    uint32_t number;                 /* of the client, never 0 */
    const struct prt_params *params; /* what it has been told */
    bool fans_out; /* a LISTEN does not reach the server: an UNLISTEN, which does nothing, runs in
                    * its place, and its tag is changed back */
    /* Asked before each Q and E whose text has effects; NULL: all may. WAIT: ask again when
     * something was answered or the caller resumes. NOT: *why is told, the server fails at that
     * place. */
    enum prt_may (*may_run)(void *ctx, const struct prt_effects *e, const struct prt_denial **why);
    void *ctx;
};
enum prt_up_rc {
    PRT_UP_SEND, /* send `out`, then the message without its first `skip` bytes; counted */
    PRT_UP_WAIT, /* send `out` and come again with it when something was answered; not counted */
    PRT_UP_MORE, /* too little of it is here: come again with more. A named Parse must be whole, and
                  * any text up to PRT_UNNAMED_MAX; of longer ones the first 16 KB */
    PRT_UP_TERMINATE, /* X */
    PRT_UP_VIOLATION, /* not allowed here: FATAL 08P01 to the client, close both sides */
    PRT_UP_NO_MEMORY, /* FATAL 53200 to the client, close both sides */
};
/** `before` was the framer's state: on WAIT and MORE the caller puts it back. Bytes for the server
 * are appended to `out`. *skip: of the message as it lies there, header included; m->size: all that
 * is here, and then also what streams behind it. Does the work of prt_txn_client(). */
enum prt_up_rc prt_stmts_client(struct prt_stmts *s, const struct prt_up_client *c,
                                const struct prt_msg *m, struct prt_buf *out, size_t *skip);
/** Does the server owe nothing that a local answer waits behind? Append to `to_client` what is due
 * there now (ParseComplete, CloseComplete, tags); true: something was. To be called after each
 * message of either side. */
bool prt_stmts_local(struct prt_stmts *s, struct prt_buf *to_client);

/* ---- down: a message of the server's ---- */
enum prt_down_rc {
    PRT_DOWN_PASS,    /* do with it what the events say */
    PRT_DOWN_REPLACE, /* `to_client` has what goes to the client in its place */
};
/** The message `m` was given to prt_txn_server(), which said `ev`. names: of the client; NULL: it
 * is gone. Confirms and undoes; has the session told of tags (`session`), by the text of the
 * request. */
enum prt_down_rc prt_stmts_server(struct prt_stmts *s, struct prt_names *names,
                                  struct prt_session *session, const struct prt_msg *m, uint32_t ev,
                                  struct prt_buf *to_client);
#endif
