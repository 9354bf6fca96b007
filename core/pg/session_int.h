/* session_int.h - what effects.c, journal.c, keep.c and session.c share. Never leaves this room. */
#ifndef PRT_SESSION_INT_H
#define PRT_SESSION_INT_H
#include "pg/pg.h"

/* ---- effects.c ---- */
/* Words that stand somewhere in a text of which not all was read. */
#define PRT_HIDES_TEMP 1u     /* pg_temp, TEMP */
#define PRT_HIDES_CONFIG 2u   /* set_config */
#define PRT_HIDES_FUNCTION 4u /* functions whose work outlives an error */
#define PRT_HIDES_DROP 8u     /* DEALLOCATE, DISCARD */

struct prt_effects {
    _Atomic uint32_t refs; /* atomic, any thread: whoever got it from prt_effects_of or _ref */
    /* set at creation */
    bool is_cut;     /* there is more than `stmt` tells */
    bool wants_rows; /* of one statement */
    bool fans_out;   /* it has a LISTEN, and each could be an UNLISTEN */
    uint8_t hides;   /* PRT_HIDES_ bits, only with is_cut */
    uint16_t n;      /* statements */
    unsigned states; /* PRT_STATE bits that running it leaves behind */
    uint64_t flags;  /* PRT_SQL() of all its statements */
    struct prt_sql_stmt
        stmt[]; /* names of parameters are lower case; the byte in front of each value
                 * is its kind in the journal. Their strings follow in this block */
};
/** Effects of `sql` as the lexer read it, which may be interesting or not; NULL: no memory. */
struct prt_effects *prt_effects_make(const struct prt_sql *read, struct prt_str sql);
/** PRT_STATE bits of one statement. */
unsigned prt_stmt_states(const struct prt_sql_stmt *st);
/** Of those, what a statement that failed may have left all the same. */
unsigned prt_stmt_remains(const struct prt_sql_stmt *st);

/* ---- journal.c ---- */
#define PRT_JOURNAL_NAMES 64
#define PRT_JOURNAL_NAME 256
#define PRT_JOURNAL_VALUE 4096
#define PRT_JOURNAL_RAW '='     /* first byte of a journal's value: what stands behind SET x TO */
#define PRT_JOURNAL_LITERAL ':' /* a literal for set_config() */

enum prt_set_kind {
    PRT_SET_JOURNAL, /* can be replayed */
    PRT_SET_TOLD,    /* servers report it */
    PRT_SET_PASSING, /* ends with its transaction, however it is set */
    PRT_SET_ROLE,
    PRT_SET_AUTH,
    PRT_SET_OPAQUE, /* changes what later texts mean, and no report tells it */
};
enum prt_set_kind prt_set_kind_of(struct prt_str name);
/** `*j` with one value changed or added; false: it does not have it (too many, no memory). */
PRT_MUST_CHECK bool prt_journal_put(const struct prt_params **j, struct prt_str name,
                                    struct prt_str value);
/** The same for a text that set_config() has returned; false also: it may not be exactly what was
 * set. */
PRT_MUST_CHECK bool prt_journal_put_text(const struct prt_params **j, struct prt_str name,
                                         struct prt_str text);
/** `*j` without a name; false: no memory. */
PRT_MUST_CHECK bool prt_journal_drop(const struct prt_params **j, struct prt_str name);
/** RESET ALL: all but the role. */
void prt_journal_reset_all(const struct prt_params **j);

/* ---- keep.c ---- */
/* what a rollback leaves */
#define PRT_STATES_SURVIVE                                                                         \
    (PRT_STATE_BIT(ADVISORY) | PRT_STATE_BIT(PREPARE) | PRT_STATE_BIT(SETTING) |                   \
     PRT_STATE_BIT(OPAQUE))
/** *to becomes another reference to `from`. */
void prt_keep_assign(const struct prt_params **to, const struct prt_params *from);
/** States that no rollback undoes, and states that ended at once. */
void prt_keep_always(struct prt_session *s, unsigned states);
void prt_keep_end_state(struct prt_session *s, unsigned states);
/** COMMIT, ROLLBACK, and whether there is a difference. */
void prt_keep_settle(struct prt_session *s);
void prt_keep_roll_back(struct prt_session *s);
bool prt_keep_is_provisional(const struct prt_session *s);
/** SAVEPOINT, ROLLBACK TO, RELEASE; an empty name: one that could not be read. */
void prt_keep_savepoint(struct prt_session *s, struct prt_str name);
void prt_keep_roll_back_to(struct prt_session *s, struct prt_str name);
void prt_keep_release(struct prt_session *s, struct prt_str name);
/** SQL PREPARE and DEALLOCATE, DECLARE ... WITH HOLD and CLOSE. st NULL: it could not be read. */
void prt_keep_prepared(struct prt_session *s, struct prt_str name);
void prt_keep_deallocated(struct prt_session *s, const struct prt_sql_stmt *st, bool is_all);
void prt_keep_held(struct prt_session *s, struct prt_str name);
void prt_keep_closed(struct prt_session *s, const struct prt_sql_stmt *st, bool is_all);
/** The names behind PREPARE or HOLD: there are none, there may be others. */
void prt_keep_no_names(struct prt_session *s, unsigned states);
void prt_keep_unknown_names(struct prt_session *s, unsigned states);
void prt_keep_free(struct prt_session *s);
#endif
