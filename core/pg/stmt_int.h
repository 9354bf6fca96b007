/* stmt_int.h - what the files of the statement layer share; never leaves core/pg.
 *
 * stmt_table.c  texts, one for all clients and servers      stmt.c      what a client sends; Parse
 * stmt_names.c  a client's names and its unnamed statement  stmt_use.c  Bind, Describe, Close
 * stmt_notes.c  what answers will settle; a server's        stmt_run.c  Query, Execute
 *               statements, portals of a lease              stmt_up.c   steps of those three
 * stmt_down.c   what a server answers */
#ifndef PRT_STMT_INT_H
#define PRT_STMT_INT_H
#include "pg/pg.h"

#define PRT_OUR_PREFIX "prt_" /* of names on servers; "prt_0" never exists there */

/* ---- stmt_table.c ---- */
/** One text with its types, as parsed under one set of settings. Immutable but for what is atomic.
 */
struct prt_stmt {
    struct prt_map_node node;    /* under the lock of its shard */
    _Atomic uint32_t refs;       /* atomic: names, servers, notes. 1 -> 0 only under the lock */
    _Atomic uint32_t generation; /* atomic: of its result; servers that parsed an older one again */
    uint64_t id;                 /* set at creation, like all below; never used twice */
    const struct prt_params *env; /* counted; its address is the first part of the key */
    struct prt_effects *effects;  /* counted; NULL: none */
    struct prt_str server_name;   /* prt_ID */
    struct prt_str rest;          /* of Parse, behind the name: text, NUL, number of types, types */
    char room[28];
    _Alignas(8) char key[];
};
/** The statement of that text, with a reference; NULL: no memory. rest: well formed. */
struct prt_stmt *prt_stmt_get(const struct prt_params *params, struct prt_str rest);
struct prt_stmt *prt_stmt_ref(struct prt_stmt *st);
void prt_stmt_unref(struct prt_stmt *st); /* NULL: nothing */
/** A number that changes with each change of a schema that was seen: a statement that a server
 * parsed at an earlier one may have another result now. DDL that goes past poolrt is not seen. */
uint32_t prt_stmt_schema(void);
void prt_stmt_schema_changed(void);
/** For tests: how many there are. */
size_t prt_stmt_total(void);
/** standard_conforming_strings, as these settings have it. */
bool prt_params_scs(const struct prt_params *params);

/* ---- stmt_names.c ---- */
struct prt_value { /* of a name; stmt NULL: it is free */
    struct prt_stmt *stmt;
    uint64_t seq;   /* of the request that made it */
    uint64_t shape; /* of the rows that the client was told; 0: it was told none */
    bool is_stale;  /* it was told that the plan has changed: so it is until it parses again */
};
struct prt_name {
    struct prt_map_node node;
    struct prt_value now;
    uint64_t pend; /* note of the newest change that is not answered; 0: none */
    uint32_t refs; /* of notes; without any, and free, it goes */
    char text[PRT_NAME_MAX];
};
struct prt_text { /* counted by a client and its notes: bytes of an unnamed Parse behind the name */
    uint32_t refs, n, cap;
    struct prt_text *next; /* spare */
    uint8_t p[];
};
struct prt_unnamed {
    struct prt_text *text;       /* NULL: none, or too long to be kept */
    struct prt_effects *effects; /* counted */
    bool exists;
    bool is_mine; /* what its server has is this, or it has none either */
};
struct prt_names {
    struct prt_map by_name;
    struct prt_name *last; /* found last: most ask for the same again; NULL: gone */
    size_t count, bytes;   /* of those that are taken */
    uint64_t seq;          /* one number for each request that makes or forgets something */
    struct prt_unnamed un;
    uint64_t un_pend; /* as prt_name.pend */
    struct prt_text *spare;
    unsigned spares;
};
struct prt_names *prt_names_new(void);
/** NULL: not there, not even as one that is being changed. */
struct prt_name *prt_name_find(struct prt_names *n, struct prt_str name);
/** Made when needed; NULL: no memory. */
struct prt_name *prt_name_make(struct prt_names *n, struct prt_str name);
void prt_name_set(struct prt_names *n, struct prt_name *name,
                  struct prt_value v);                           /* takes v.stmt */
void prt_name_unref(struct prt_names *n, struct prt_name *name); /* gone if nobody needs it */
/** A copy of rest[n]; NULL: no memory. */
struct prt_text *prt_text_new(struct prt_names *n, const uint8_t *rest, uint32_t size);
void prt_text_unref(struct prt_names *n, struct prt_text *t); /* n NULL: no spares are kept */
void prt_unnamed_drop(struct prt_names *n, struct prt_unnamed *u);
/** Those whose request came before `seq` or is it. */
void prt_names_forget(struct prt_names *n, uint64_t seq);

/* ---- stmt_notes.c ---- */
/* A statement on a server:
 *
 *              '1'
 *   PENDING ---------> OK ----> CLOSING --'3'--> gone
 *      | fails,         \________/ | skipped
 *      v skipped                   v as before
 *   gone, or MAYBE (it was there before: Close in front of the next Parse)
 */
enum prt_have_state { PRT_HAVE_OK, PRT_HAVE_PENDING, PRT_HAVE_MAYBE, PRT_HAVE_CLOSING };
struct prt_have {
    struct prt_map_node node; /* in by_id; the key is `id` */
    struct prt_evict_node evict;
    struct prt_stmt *stmt; /* counted */
    uint64_t id;
    uint64_t by;    /* note that will settle its state; 0: settled */
    uint64_t asked; /* note of the Describe that will tell its shape; 0: none */
    uint64_t shape; /* of its rows, as this server has them; 0: not known */
    uint64_t seq;   /* of the request that parsed it, if that was in `lease` */
    uint32_t lease, generation;
    uint32_t schema;      /* prt_stmt_schema() when it was parsed */
    uint32_t batch;       /* that parsed it */
    uint32_t used;        /* batch that used it last */
    uint16_t refs;        /* of notes */
    uint8_t state;        /* enum prt_have_state */
    bool is_in, is_fresh; /* in the map; not used since it was parsed */
};
#define PRT_SHAPE_NONE 1 /* NoData */

enum prt_change_kind { PRT_CHANGE_NONE, PRT_CHANGE_PARSE, PRT_CHANGE_HIT, PRT_CHANGE_CLOSE };
/** What a request did to a name, or to the unnamed statement, when it was sent. */
struct prt_change {
    uint8_t kind; /* enum prt_change_kind */
    bool is_unnamed, is_settled;
    bool is_ours;          /* of a Parse that the client knows nothing of */
    struct prt_name *name; /* counted */
    struct prt_value before;
    struct prt_unnamed un_before;
    uint64_t prev, later; /* changes of the same that were not answered; 0: none */
};
enum {
    PRT_NOTE_PARSE = 1 << 0, /* makes `have` */
    PRT_NOTE_EVICT = 1 << 1, /* closes it */
    PRT_NOTE_USE = 1 << 2,   /* Bind, Describe of it */
    PRT_NOTE_SHAPE = 1 << 3, /* ... tells its shape */
    PRT_NOTE_UNNAMED_PARSE = 1 << 4,
    PRT_NOTE_UNNAMED_CLOSE = 1 << 5,
    PRT_NOTE_BARRIER = 1 << 6,
    PRT_NOTE_LOCAL = 1 << 7,
    PRT_NOTE_QUERY = 1 << 8,
    PRT_NOTE_WAS_THERE = 1 << 9,  /* PARSE: the server may have had it before */
    PRT_NOTE_FOREIGN = 1 << 10,   /* names something that begins like ours; '?' is in front */
    PRT_NOTE_ROWS = 1 << 11,      /* its rows tell what it sets */
    PRT_NOTE_UNLISTENS = 1 << 12, /* a Query with "UN" in front of each LISTEN */
};
struct prt_run {                 /* what a portal runs */
    struct prt_effects *effects; /* counted */
    const char *tag;             /* it is a harmless statement in place of one with this tag */
    bool has_begun;
};
struct prt_note {
    uint16_t does; /* PRT_NOTE_ bits */
    uint8_t answer;
    uint8_t prior; /* EVICT: state before */
    uint32_t batch;
    uint32_t client; /* number */
    uint32_t nth;    /* CommandComplete that comes next */
    uint64_t seq;
    struct prt_have *have;        /* counted */
    struct prt_name *told;        /* USE: the client's name for it; counted */
    uint64_t shape_before;        /* SHAPE: what its client was told before */
    struct prt_effects *effects;  /* counted */
    const struct prt_denial *why; /* it was refused; static */
    const char *tag;              /* CommandComplete says this instead; static */
    struct prt_change change;
    uint8_t portal; /* bound by it, from 1; 0: none with effects */
    struct prt_run run_before;
    uint64_t portal_prev; /* its `pend` before */
};
struct prt_notes {
    uint64_t
        bound; /* note of the message before this one, if it bound the unnamed portal; else 0 */
    struct prt_note *ring;
    uint32_t cap, count;
    uint64_t first;          /* number of the oldest; from 1 */
    uint32_t lease;          /* counts them */
    struct prt_names *names; /* of the lessee; NULL: it has none, or is gone */
    uint32_t unnamed_batch;  /* in which an unnamed Parse or Close went last; 0: none */
    uint8_t late_n; /* a name of the client's that is to be closed when its batch is over */
    char late[PRT_NAME_MAX + 1];
};
/** Room for `n` more, so that prt_note_add() cannot fail. */
PRT_MUST_CHECK bool prt_notes_reserve(struct prt_stmts *s, unsigned n);
struct prt_note *prt_note_add(struct prt_stmts *s, unsigned does);
struct prt_note *prt_note_at(struct prt_notes *n, uint64_t number);
uint64_t prt_note_number(const struct prt_notes *n, const struct prt_note *note);
void prt_notes_pop(struct prt_stmts *s);
/** Apply a change at once, with an own note. v, un: taken. */
void prt_change_name(struct prt_stmts *s, struct prt_note *note, enum prt_change_kind kind,
                     struct prt_name *name, struct prt_value v);
void prt_change_unnamed(struct prt_stmts *s, struct prt_note *note, enum prt_change_kind kind,
                        struct prt_unnamed un);
void prt_change_done(struct prt_stmts *s, struct prt_note *note);
/** is_first: its own request failed; else it was discarded. */
void prt_change_undo(struct prt_stmts *s, struct prt_note *note, bool is_first);

struct prt_have *prt_have_find(const struct prt_stmts *s, uint64_t id);
struct prt_have *prt_have_new(struct prt_stmts *s, struct prt_stmt *st); /* NULL: no memory */
void prt_have_hold(struct prt_note *note, struct prt_have *h);
void prt_have_del(struct prt_stmts *s, struct prt_have *h);
/** All that were parsed before `seq` of this lease, or by it. */
void prt_haves_forget(struct prt_stmts *s, uint64_t seq);

/* Which portals run a text with effects, as far as Binds were sent; taken back like names. A few
 * are remembered; one that is not may be any, and is taken for a text that may do anything. */
#define PRT_PORTALS 12
struct prt_portal {
    struct prt_run run;
    uint64_t pend; /* note of the newest Bind that is not answered; 0: none */
    uint8_t n;
    char name[PRT_NAME_MAX];
};
struct prt_portals {
    struct prt_portal at[PRT_PORTALS]; /* the first is the unnamed one */
    unsigned count;
    bool is_unknown;       /* there are more */
    struct prt_run opaque; /* what those run */
};
/** What a Bind of that portal has to know. false: no memory. *needs: a note with prt_portal_bind().
 * *waits: for the answer of an earlier batch. e: what is bound. */
PRT_MUST_CHECK bool prt_portal_look(struct prt_stmts *s, struct prt_str name,
                                    const struct prt_effects *e, bool *needs, bool *waits);
/** The Bind was sent. */
void prt_portal_bind(struct prt_stmts *s, struct prt_note *note, struct prt_str name,
                     struct prt_run run); /* effects: referenced */
void prt_portal_done(struct prt_stmts *s, struct prt_note *note);
void prt_portal_undo(struct prt_stmts *s, struct prt_note *note);
/** What is to be executed; NULL: without effects. */
struct prt_run *prt_portal_find(struct prt_stmts *s, struct prt_str name);
/** None of them is left on the server. */
void prt_portals_clear(struct prt_stmts *s);
/** What a text does that nobody has seen; NULL: no memory. A reference. */
struct prt_effects *prt_effects_opaque(void);

/* ---- a message on its way up ---- */
/* Most requests that go in front of one message: Close of a late name, two of evicted ones, Close
 * and Parse of its own, Describe. */
#define PRT_INJECTED_MAX 7
/* Runs in place of a LISTEN or DEALLOCATE that poolrt does itself. Always allowed. */
#define PRT_HARMLESS "UNLISTEN poolrt"

struct prt_up {
    struct prt_stmts *s;
    const struct prt_up_client *c;
    const struct prt_msg *m;
    struct prt_buf *out;
    size_t *skip;
    uint64_t bound; /* prt_notes.bound */
};
/* stmt_up.c: building */
uint8_t *prt_up_put_header(struct prt_buf *b, uint8_t type, size_t body, size_t here);
uint8_t *prt_up_put_string(uint8_t *w, struct prt_str s);
void prt_up_put_parse(struct prt_buf *b, struct prt_str name, struct prt_str rest);
/* stmt_up.c: steps */
/** Wait for answers; the server must not keep them back. */
enum prt_up_rc prt_up_hold(struct prt_up *u);
/** Count the client's own message. There is room, and nothing is skipped. */
void prt_up_push(struct prt_up *u);
enum prt_up_rc prt_up_as_it_is(struct prt_up *u);
struct prt_names *prt_up_names(const struct prt_up *u); /* NULL: none yet */
/** Notes are about to be made, and names exist. false: no memory. */
PRT_MUST_CHECK bool prt_up_prepare(struct prt_up *u);
void prt_up_inject(struct prt_up *u, uint8_t kind);
void prt_up_inject_close(struct prt_up *u, struct prt_str name);
/** The server is made to fail at this place, by a Bind of `name` where it is no Query. why NULL:
 * what it says itself is what the client must hear. */
struct prt_note *prt_up_refuse(struct prt_up *u, const struct prt_denial *why, struct prt_str name);
enum prt_up_rc prt_up_deny(struct prt_up *u, const struct prt_denial *why);
bool prt_name_is_ours(struct prt_str name);
/** The client's own name as a server may hear it: '?' in front of one that begins like ours. */
struct prt_str prt_name_foreign(struct prt_str name, char room[PRT_NAME_MAX + 1]);
/** Has every outcome in which the next request runs this statement on the server? h may be NULL. */
bool prt_have_is_sure(const struct prt_stmts *s, const struct prt_have *h);
/** Does the decision hang on an answer of an earlier batch? `uses`: Bind or Describe, which may go
 * when they share the fate of the name's own Parse. */
bool prt_up_must_wait(struct prt_up *u, const struct prt_name *name, bool uses);
/** Bring st to the server, instead of the client's Parse or in front of its message (`injects`).
 * *note: of the Parse. NULL: no memory. */
struct prt_have *prt_up_parse_there(struct prt_up *u, struct prt_stmt *st, bool injects,
                                    struct prt_note **note);
void prt_have_count_use(struct prt_stmts *s, struct prt_have *h);
/* stmt_use.c */
enum prt_up_rc prt_up_bind_or_describe(struct prt_up *u);
enum prt_up_rc prt_up_close(struct prt_up *u);
/* stmt_run.c */
/** What running the text may do; NULL: nothing. false: no memory. is_long: of more than
 * PRT_UNNAMED_MAX bytes, and here are at least PRT_SQL_LOOKED_AT + 1. */
PRT_MUST_CHECK bool prt_up_effects_of(const struct prt_up *u, struct prt_str text, bool is_long,
                                      struct prt_effects **e);
/** The client's name that a DEALLOCATE alone in its text would give up; NULL: none. */
struct prt_name *prt_up_deallocated(const struct prt_up *u, const struct prt_effects *e);
/** The tag that the harmless statement must get, if it is to run in place of a text with these
 * effects; else NULL. */
const char *prt_up_stand_in(const struct prt_up *u, const struct prt_effects *e);
enum prt_up_rc prt_up_query(struct prt_up *u);
enum prt_up_rc prt_up_execute(struct prt_up *u);
#endif
