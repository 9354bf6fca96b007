/* pg.h - the PostgreSQL protocol, version 3, on byte strings: no socket, no pool, no Lua.
 *
 * frame.c   bytes -> messages, in any chunking          txn.c     what each side owes the other
 * startup.c the first packet and its parameters         params.c  reported session parameters
 * msg.c     read and build single messages              scram.c, md5.c  proofs of passwords
 * lex.c     what a text of SQL does to its session      session.c  that state of a server
 * stmt.c    prepared statements over many servers
 *
 * Letters are message types as in the manual: client Q P B D C E S F H d c f X p, server 1 2 3 t T
 * n D C I s S Z E N A G H W d c V R K v.  Threads: any; an object has one user at a time. */
#ifndef PRT_PG_H
#define PRT_PG_H
#include "base/base.h"
#include "base/buf.h"
#include "pg/lex.h"
#include "pg/session.h"
#include "pg/stmt.h"

enum prt_side { PRT_FRONTEND, PRT_BACKEND };

/* ---- frame.c ---- */
/* Longest message that must be here whole before it is looked at. A longer one of a kind that may
 * be long is passed on in pieces; one of a kind that may not is refused by its header. */
#define PRT_SMALL_MAX 10000

/** All zero: at the start of a message. */
struct prt_frame {
    uint32_t left; /* bytes of the streamed message that are still to come */
    uint8_t type;  /* its type */
};
struct prt_msg {
    uint8_t type;
    uint32_t len;        /* body bytes as announced, without the length field */
    const uint8_t *body; /* borrowed from the input */
    uint32_t have; /* body bytes that are here: len, or less for the first piece of a long one */
    size_t size;   /* bytes of the input that this step used: header and `have` */
};
enum prt_frame_rc {
    PRT_FRAME_MSG,  /* a message: whole, or the first piece of one that streams */
    PRT_FRAME_REST, /* m->size bytes more of the streamed message m->type; body, have, size are set
                     */
    PRT_FRAME_MORE, /* not enough bytes: keep them all and come again with more behind them */
    PRT_FRAME_BAD, /* type unknown for that side, length below 4, above max or not allowed for it */
};
/** The next step over p[n]. A message is held back (MORE) until the part that decides is here: all
 * of a small one; the names in front of P and B (FRAME_BAD when they pass PRT_SMALL_MAX); severity
 * and SQLSTATE of E and N, or their first PRT_SMALL_MAX bytes; type byte of D and C of the client.
 * Rows, copy data and other long bodies stream from their first byte. max_packet: longest announced
 * length that is let through. Every length is compared as `n > remaining` in 32 bits; nothing is
 * allocated. */
static inline enum prt_frame_rc prt_frame_next(struct prt_frame *f, enum prt_side from,
                                               const uint8_t *p, size_t n, uint32_t max_packet,
                                               struct prt_msg *m);
#define PRT_FRAME_HEADER 5 /* type and length; the length counts itself: 4 */
/** For each side and type how a message may arrive: frame.c; these two, or something above. */
enum { PRT_FRAME_UNKNOWN, PRT_FRAME_BARE }; /* no message of this side; exactly its length field */
extern const uint8_t prt_frame_shapes[2][256];
/** The same as prt_frame_next() without its short cut. */
enum prt_frame_rc prt_frame_any(struct prt_frame *f, enum prt_side from, const uint8_t *p, size_t n,
                                uint32_t max_packet, struct prt_msg *m);
static inline enum prt_frame_rc prt_frame_next(struct prt_frame *f, enum prt_side from,
                                               const uint8_t *p, size_t n, uint32_t max_packet,
                                               struct prt_msg *m)
{
    uint32_t announced = f->left == 0 && n >= PRT_FRAME_HEADER ? prt_get32(p + 1) : 0;
    uint8_t shape;

    if (announced < 4 || announced >= n || announced > PRT_SMALL_MAX || announced > max_packet) {
        return prt_frame_any(f, from, p, n, max_packet, m);
    }
    shape = prt_frame_shapes[from][p[0]];
    if (shape == PRT_FRAME_UNKNOWN || (shape == PRT_FRAME_BARE && announced != 4)) {
        return PRT_FRAME_BAD;
    }
    f->type = m->type = p[0];
    m->len = m->have = announced - 4;
    m->body = p + PRT_FRAME_HEADER;
    m->size = 1 + (size_t)announced;
    return PRT_FRAME_MSG;
}
/** At a message boundary: nothing half forwarded. */
static inline bool prt_frame_is_clean(const struct prt_frame *f)
{
    return f->left == 0;
}

/* ---- txn.c ----
 * The accounting of one server connection under lease: the queue of requests that are not answered
 * completely, so that a server goes back only when every answer is in. The rules and their proof:
 * core/pg/README.md. */
#define PRT_TXN_QUEUE 1024

struct prt_txn {
    uint16_t q[PRT_TXN_QUEUE]; /* ring: kind, sub kind and flags of each request */
    uint16_t head, count;
    uint16_t markers; /* of count: CopyDone and CopyFail, which owe nothing */
    uint16_t locals;  /* of count: answered by the pooler */
    uint32_t extra;   /* Syncs that a failed COPY may or may not have swallowed */
    uint8_t status;   /* I, T or E: of the last ReadyForQuery */
    uint8_t copy;     /* enum prt_copy */
    bool is_open;     /* part of an extended batch was sent since the last S, Q or F */
    bool skips;       /* the server discards everything until Sync */
    bool is_unsure;   /* with skips: a Sync of a failed COPY may have ended the skipping already */
    bool is_dead;     /* FATAL or PANIC was seen: no more answers are due */
    /* of the last message of the server that was no row: */
    bool was_noted;      /* the request that it answers is noted */
    uint16_t noted_gone; /* noted requests that left the queue: answered, or undone by its error */
};
enum prt_copy { PRT_COPY_NONE, PRT_COPY_IN, PRT_COPY_OUT, PRT_COPY_BOTH };

/** A fresh connection, or one that was given back: nothing owed, status I. */
void prt_txn_init(struct prt_txn *t);

enum prt_txn_rc {
    PRT_TXN_FORWARD,   /* counted (or owing nothing): send it */
    PRT_TXN_TERMINATE, /* X */
    PRT_TXN_FULL, /* the queue is full: stop reading the client until answers came; not counted */
    PRT_TXN_VIOLATION, /* not allowed here: FATAL 08P01 to the client, close both sides */
};
/** A client's message is about to be sent to the server (its header; pieces that follow owe
 * nothing). Messages that the server will discard (while it skips) or ignores (late copy messages)
 * are forwarded and owe nothing. */
enum prt_txn_rc prt_txn_client(struct prt_txn *t, const struct prt_msg *m);
/** The same for a request of the pooler's own; its answers stay here (PRT_EV_SWALLOW). kind: one of
 *  Q P C D S, D of a statement; false when the queue is full. `sub` is 'S' or 'P' for C, else 0. */
PRT_MUST_CHECK bool prt_txn_inject(struct prt_txn *t, uint8_t kind, uint8_t sub);
/** Mark the newest request as refused by the pooler: what was sent instead of it makes the server
 * fail at that place, and the error that answers it carries PRT_EV_REFUSED. */
void prt_txn_mark_refused(struct prt_txn *t);
/** Mark the newest request as noted; there must be one, so not while the server skips. */
void prt_txn_note(struct prt_txn *t);
/** Is the request noted that the server answers now? For a row, which tells nothing else. */
bool prt_txn_is_noted(const struct prt_txn *t);
/** A request that is answered here when all before it are: part of the batch, always noted. Not
 * while the server skips or copies. false: the queue is full. */
PRT_MUST_CHECK bool prt_txn_push_local(struct prt_txn *t);
/** Is there any? */
static inline bool prt_txn_has_local(const struct prt_txn *t)
{
    return t->locals != 0;
}
/** Take the request at the head if it is one of those. */
bool prt_txn_take_local(struct prt_txn *t);
/** Is there room for `n` requests, the last of them the client's? */
bool prt_txn_has_room(const struct prt_txn *t, unsigned n);
/** Is a ReadyForQuery due, so that the status may be another one than t->status? */
bool prt_txn_owes_ready(const struct prt_txn *t);
/** May the server discard a request that is sent now, because an earlier one of the batch fails? */
bool prt_txn_may_discard(const struct prt_txn *t);

enum prt_txn_event {
    PRT_EV_VIOLATION = 1 << 0,    /* close this server; the client gets FATAL 08P01 */
    PRT_EV_SWALLOW = 1 << 1,      /* answer of an injected request: not for the client */
    PRT_EV_FATAL = 1 << 2,        /* the server ends the session: forward, nothing more is due */
    PRT_EV_ERROR = 1 << 3,        /* ErrorResponse */
    PRT_EV_PARAM = 1 << 4,        /* ParameterStatus */
    PRT_EV_READY = 1 << 5,        /* ReadyForQuery; t->status is its status */
    PRT_EV_ASYNC = 1 << 6,        /* NoticeResponse or NotificationResponse */
    PRT_EV_COPY = 1 << 7,         /* a COPY began; t->copy tells which way */
    PRT_EV_TAG = 1 << 8,          /* CommandComplete; its tag is the body */
    PRT_EV_REFUSED = 1 << 9,      /* with PRT_EV_ERROR: answers a request marked as refused */
    PRT_EV_EXTRA_READY = 1 << 10, /* with PRT_EV_READY: the answer of a Sync in front of CopyDone */
};
/** A server's message has come (its first piece, if it streams). Returns PRT_EV_ bits. */
uint32_t prt_txn_server(struct prt_txn *t, const struct prt_msg *m);

/** The bytes of p[n], at a message boundary, that are whole messages which change nothing: rows of
 * what the server is answering, and their description. What is not among them may be as well.
 * Returns 0 when such messages are not for the client. */
size_t prt_txn_rows(const struct prt_txn *t, const uint8_t *p, size_t n, uint32_t max_packet);
/** Can a message of that type be one? */
static inline bool prt_txn_may_be_row(uint8_t type)
{
    return type == 'D' || type == 'T';
}

/** Requests that are not completely answered; markers do not count. */
static inline unsigned prt_txn_owed(const struct prt_txn *t)
{
    return (unsigned)(t->count - t->markers);
}
/** Are all requests owed by a full stop (Q, S or F as the newest)? Then the server will answer all
 * of it without more from the client. */
bool prt_txn_ends_itself(const struct prt_txn *t);
/** Every answer is in; says nothing of the transaction. Half forwarded messages are the framer's.
 */
static inline bool prt_txn_is_settled(const struct prt_txn *t)
{
    return t->count == 0 && !t->is_open && !t->skips && t->copy == PRT_COPY_NONE && !t->is_dead;
}
/** May the server serve another client now? */
static inline bool prt_txn_may_release(const struct prt_txn *t)
{
    return prt_txn_is_settled(t) && t->status == 'I' && t->extra == 0;
}
/** Settled, but a Sync of a failed COPY may still be answered: inject an empty Query before
 * release. */
static inline bool prt_txn_wants_fence(const struct prt_txn *t)
{
    return prt_txn_is_settled(t) && t->status == 'I' && t->extra != 0;
}

/* ---- startup.c ---- */
#define PRT_STARTUP_MAX                                                                            \
    10004 /* longest first packet, its length field included, as PostgreSQL has it */

struct prt_startup {
    enum { PRT_START_SESSION, PRT_START_SSL, PRT_START_GSS, PRT_START_CANCEL } kind;
    size_t size;            /* bytes of the input that it used */
    uint16_t minor;         /* of protocol 3: what the client asked for */
    bool wants_negotiation; /* newer minor than ours, or a _pq_. option: send v first */
    struct prt_str params;  /* SESSION: name NUL value NUL ..., without the final NUL; borrowed */
    struct prt_str user, database, application_name,
        options; /* the last of each name; may be empty */
    bool is_replication;
    uint32_t cancel_pid;       /* CANCEL */
    struct prt_str cancel_key; /* CANCEL: 4 to 256 bytes, borrowed */
};
enum prt_startup_rc {
    PRT_STARTUP_OK,
    PRT_STARTUP_MORE, /* come again with more bytes; never more than PRT_STARTUP_MAX are asked for
                       */
    PRT_STARTUP_SILENCE, /* close without an answer */
    PRT_STARTUP_ERROR,   /* answer FATAL with err->sqlstate and text, then close */
};
enum prt_startup_rc prt_startup_parse(const uint8_t *p, size_t n, struct prt_startup *out,
                                      struct prt_err *err);
/** Walk the parameters of a session: *at starts at 0; false at the end. Names and values as sent.
 */
bool prt_startup_next(const struct prt_startup *s, size_t *at, struct prt_str *name,
                      struct prt_str *value);
/** Walk the settings in `options`: "-c name=value", "--name=value", blanks and backslashes as
 *  PostgreSQL splits them. buf (PRT_STARTUP_MAX bytes) receives the unescaped text.
 *  1: a setting; 0: the end; -1: something else stands there (*name is what). */
int prt_options_next(struct prt_str options, size_t *at, char *buf, struct prt_str *name,
                     struct prt_str *value);

/* ---- msg.c: read ---- */
/** Fields of ErrorResponse and NoticeResponse that are here; every one may be missing (empty). */
struct prt_notice {
    struct prt_str severity, sqlstate, message, detail, hint, routine;
};
void prt_notice_read(const struct prt_msg *m, struct prt_notice *out);
/** The n-th (from 0) NUL-ended string in the body; false when it is not there whole. */
bool prt_msg_string(const struct prt_msg *m, unsigned nth, struct prt_str *out);

/* ---- msg.c: build; a buffer without memory is marked `failed` ---- */
void prt_put_error(struct prt_buf *b, const char *severity, const char *sqlstate,
                   struct prt_str message, const char *detail,
                   const char *hint); /* detail, hint: may be NULL */
/** ErrorResponse of a request that is refused. */
void prt_put_denial(struct prt_buf *b, const struct prt_denial *why);
void prt_put_notice(struct prt_buf *b, const char *severity, const char *sqlstate,
                    struct prt_str message);
void prt_put_auth(struct prt_buf *b, uint32_t code, const void *data, size_t n);
void prt_put_param(struct prt_buf *b, struct prt_str name, struct prt_str value);
void prt_put_key(struct prt_buf *b, uint32_t pid, const void *key, size_t n);
void prt_put_ready(struct prt_buf *b, uint8_t status);
/** NegotiateProtocolVersion: newest minor of ours, and the _pq_. options of `s` that we do not
 * know. */
void prt_put_negotiate(struct prt_buf *b, const struct prt_startup *s);
void prt_put_query(struct prt_buf *b, struct prt_str sql);
/** Parse of the unnamed statement. */
void prt_put_parse(struct prt_buf *b, struct prt_str sql);
/** Close of the statement or portal ('S' or 'P') of that name. */
void prt_put_close(struct prt_buf *b, uint8_t kind, struct prt_str name);
void prt_put_sync(struct prt_buf *b);
void prt_put_terminate(struct prt_buf *b);
void prt_put_copy_fail(struct prt_buf *b, struct prt_str why);

/* ---- params.c: sets of reported parameters, interned ----
 * Clients that are alike share one immutable set, and equal sets are the same pointer: so whether a
 * server fits its next client is one comparison. Counted; the table has a lock, sets need none. */
struct prt_params;
const struct prt_params *prt_params_empty(void);
const struct prt_params *prt_params_ref(const struct prt_params *set);
void prt_params_unref(const struct prt_params *set);
/** `set` with one value changed or added; takes the reference to `set`, returns one to the result.
 * Names compare without case and keep the spelling that came first. Out of memory: `set` unchanged.
 */
const struct prt_params *prt_params_with(const struct prt_params *set, struct prt_str name,
                                         struct prt_str value);
/** `set` without a name; references and lack of memory as in prt_params_with. */
const struct prt_params *prt_params_without(const struct prt_params *set, struct prt_str name);
bool prt_params_get(const struct prt_params *set, struct prt_str name, struct prt_str *value);
unsigned prt_params_count(const struct prt_params *set);
/** It means the same in every client_encoding; all names and values do. */
bool prt_text_is_ascii(struct prt_str s);
bool prt_params_is_ascii(const struct prt_params *set);
void prt_params_at(const struct prt_params *set, unsigned i, struct prt_str *name,
                   struct prt_str *value);
/** Append "SET name = 'value';..." for each name in both sets whose value differs in `want`.
 * Returns how many; 0 appends nothing. Read-only parameters (server_version ...) are left out.
 * Values are quoted so that any byte but NUL is safe, with standard_conforming_strings on or off.
 * search_path goes through set_config(): SET would take the reported list for the name of one
 * schema. */
unsigned prt_params_diff(const struct prt_params *have, const struct prt_params *want,
                         struct prt_buf *sql);
/** The values that PostgreSQL bakes into a statement when it parses it (client_encoding, DateStyle,
 * IntervalStyle, standard_conforming_strings, TimeZone): interned, so that equal ones are one
 * pointer; lives as long as `set`. */
const struct prt_params *prt_params_parse_env(const struct prt_params *set);
/** May clients set it, and does every server report it? (client_encoding, DateStyle, TimeZone, ...)
 *  What only some versions report (search_path) is not among them. */
bool prt_params_is_tracked(struct prt_str name);

/* ---- scram.c and md5.c: the server's side of a login ---- */
#define PRT_SCRAM_KEY 32
#define PRT_SCRAM_MESSAGE_MAX 16384
#define PRT_SCRAM_ITERATIONS 4096

/** What a server stores of a password. */
struct prt_scram_secret {
    uint32_t iterations;
    uint8_t salt[64];
    uint8_t salt_len;
    uint8_t stored_key[PRT_SCRAM_KEY], server_key[PRT_SCRAM_KEY];
};
/** From "SCRAM-SHA-256$iterations:salt$stored:server"; false when malformed or above 100000
 *  iterations. */
PRT_MUST_CHECK bool prt_scram_secret_parse(struct prt_str text, struct prt_scram_secret *out);
/** From a plain password, with a random salt. About 2 ms of CPU: not on a worker. */
PRT_MUST_CHECK bool prt_scram_secret_make(struct prt_str password, uint32_t iterations,
                                          struct prt_scram_secret *out);
/** For a user who does not exist: a secret that no password fits, the same for the same name as
 * long as the process lives, so that an unknown name looks like a wrong password. */
void prt_scram_secret_mock(struct prt_str user, struct prt_scram_secret *out);

/** One exchange. Heap: it lives for two messages. */
struct prt_scram;
/** binding: data of tls-server-end-point, n 0 without TLS (then PLUS is not offered). secret:
 * copied. */
struct prt_scram *prt_scram_new(const struct prt_scram_secret *secret, bool is_mock,
                                const void *binding, size_t binding_n);
void prt_scram_free(struct prt_scram *s);
/** The mechanisms for AuthenticationSASL, each ended by NUL, with the final NUL. */
void prt_scram_mechanisms(const struct prt_scram *s, struct prt_buf *out);
enum prt_scram_rc {
    PRT_SCRAM_CONTINUE, /* send `out` as AuthenticationSASLContinue */
    PRT_SCRAM_DONE,     /* proven: send `out` as AuthenticationSASLFinal */
    PRT_SCRAM_DENIED,   /* wrong password or unknown user: 28P01, the one message for both */
    PRT_SCRAM_BAD,      /* malformed: FATAL 08P01 */
};
/** The body of a client's 'p' message: SASLInitialResponse first, SASLResponse then. */
enum prt_scram_rc prt_scram_step(struct prt_scram *s, const uint8_t *p, size_t n,
                                 struct prt_buf *out);

/** md5(md5(password user) salt) as "md5" and 32 hex digits. secret: plain, or "md5..." as stored. A
 *  SCRAM verifier can never match. Constant time in the comparison. */
bool prt_md5_check(struct prt_str secret, struct prt_str user, const uint8_t salt[4],
                   struct prt_str answer);
/** "md5" + 32 hex digits + NUL; false: no md5 in this OpenSSL (FIPS). */
PRT_MUST_CHECK bool prt_md5_secret(struct prt_str password, struct prt_str user, char out[36]);
#endif
