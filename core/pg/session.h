/* session.h - what clients do to the session of their server that no ParameterStatus tells:
 * settings that can be replayed elsewhere, and state that cannot. Part of pg.h. Pure: requests,
 * tags, errors and ReadyForQuery go in; what is to be replayed, what is dirty and the SQL that
 * cleans it come out. Rules: core/pg/README.md. Threads: an object has one user at a time; effects
 * and journals are immutable and counted. */
#ifndef PRT_SESSION_H
#define PRT_SESSION_H
#include "base/base.h"
#include "base/buf.h"
#include "base/state.h"
#include "pg/lex.h"

struct prt_msg;
struct prt_params;

const char *prt_state_name(enum prt_state_kind kind);

/* ---- effects: what one text may do; made once per text, shared by all who run it ---- */
struct prt_effects;
/** What is interesting in a text of SQL; NULL: nothing (the common case, without allocation), or no
 * memory (then *failed is set). scs: standard_conforming_strings. Counted: one reference. */
struct prt_effects *prt_effects_of(struct prt_str sql, bool scs, bool *failed);
struct prt_effects *prt_effects_ref(struct prt_effects *e); /* NULL stays NULL */
void prt_effects_unref(struct prt_effects *e);              /* NULL: nothing */
/** PRT_SQL() flags of all its statements. */
uint64_t prt_effects_flags(const struct prt_effects *e);
/** Bits of the PRT_STATE kinds that running it would leave behind. */
unsigned prt_effects_states(const struct prt_effects *e);
/** The only statement of its text, if it is one; else NULL. Strings belong to `e`. */
const struct prt_sql_stmt *prt_effects_only(const struct prt_effects *e);
/** It has a LISTEN, and each can be done by fan-out: behind "UN" in front of each it is a text that
 * fails and passes as it would, and listens to nothing. */
bool prt_effects_fans_out(const struct prt_effects *e);
/** Statement number `nth` if it is a LISTEN, else NULL. *n: how many there are of all kinds. */
const struct prt_sql_stmt *prt_effects_listen(const struct prt_effects *e, unsigned nth,
                                              unsigned *n);
/** What it sets is told by a row that it returns: prt_session_row() wants to see it. */
bool prt_effects_wants_rows(const struct prt_effects *e);
/** DEALLOCATE or DISCARD in any form is among them: prepared statements may go. */
bool prt_effects_deallocates(const struct prt_effects *e);

/* ---- the session of a server under lease ----
 *
 *            tag               Z(I) without error,          ROLLBACK tag, error outside a block,
 *            of its request    COMMIT tag                   ROLLBACK TO (to the savepoint's)
 *  journal.now <- now + SET    settled <- now               now <- settled
 *  dirty.now   <- now | kind   the same, but ADVISORY, PREPARE of SQL, LOAD and what DO and CALL
 *                              did survive a rollback
 */
struct prt_session {
    const struct prt_params *settled; /* name -> value as last committed; interned, counted */
    const struct prt_params *now;     /* as the server has it at this point */
    uint16_t dirty_settled, dirty;    /* PRT_STATE bits */
    uint8_t roles_settled, roles; /* behind PRT_STATE_ROLE: 1 SET ROLE, 2 SESSION AUTHORIZATION */
    /* channels of LISTEN that the fan-out serves: names are their hexadecimal bytes, values empty
     */
    const struct prt_params *channels_settled, *channels;
    bool fans_out;    /* LISTEN goes to `channels` where its text fans out, not to `dirty` */
    bool has_failed;  /* an error since the last ReadyForQuery */
    bool is_unsure;   /* what a rollback undoes may be committed (VACUUM in a batch) */
    bool is_in_block; /* the last ReadyForQuery said T or E */
    bool is_open;     /* BEGIN without COMMIT or ROLLBACK, as far as tags tell */
    bool is_aborted;  /* it said E, and no rollback since: nothing runs */
    bool has_row, has_bad_row;     /* of the statement that is running: it has told what it sets */
    struct prt_savepoints *points; /* and names of cursors, statements; NULL: none */
};
/** Is `channel` (as PostgreSQL folds it) in that set of channels? */
bool prt_session_has_channel(const struct prt_params *channels, struct prt_str channel);
void prt_session_init(struct prt_session *s);
void prt_session_fini(struct prt_session *s);

/** CommandComplete number `nth` (from 0) of a request with effects `e` (NULL: a text without any).
 * tag: the body's text. Also for statements without effects of their own while something is
 * provisional: COMMIT and ROLLBACK are known by their tags. PortalSuspended, which has no tag, may
 * never be followed by one: it counts as a completion with an empty tag. */
void prt_session_complete(struct prt_session *s, const struct prt_effects *e, unsigned nth,
                          struct prt_str tag);
/** The usual tags, with a number behind them: of a text without effects they tell nothing. */
bool prt_tag_counts_rows(struct prt_str tag);
/** DataRow of that statement, of a text that wants rows: what set_config() returned is what it has
 * set. As much of it as is here. */
void prt_session_row(struct prt_session *s, const struct prt_effects *e, unsigned nth,
                     const struct prt_msg *row);
/** A function may have acted although its statement failed afterwards (advisory locks stay). */
void prt_session_failed(struct prt_session *s, const struct prt_effects *e, unsigned nth);
/** ReadyForQuery of the client's. */
void prt_session_ready(struct prt_session *s, uint8_t status);
/** The client reads and writes in another encoding from now on: what it has set in the one before,
 * and is not ASCII, cannot be made again. */
void prt_session_recoded(struct prt_session *s);
/** Something ran that cleaned it all (DISCARD ALL of the pooler's own). */
void prt_session_discarded(struct prt_session *s);

/** Append what makes a server whose journal is `have` one whose journal is `want`: "SET x TO
 * v;RESET y;SELECT set_config(...);" in one simple query. Returns how many; *is_sure: none of them
 * can fail on a server of the same class (what can: roles, tablespaces, names that look objects
 * up), so that it may be sent together with what follows. Equal pointers: 0. */
unsigned prt_journal_diff(const struct prt_params *have, const struct prt_params *want,
                          struct prt_buf *sql, bool *is_sure);
/** Append one simple query that cleans the kinds of `states`, to be run outside of a transaction.
 * *forgets: the server's prepared statements go with it (DEALLOCATE ALL, DISCARD ALL). */
void prt_session_clean_sql(unsigned states, struct prt_buf *sql, bool *forgets);
/** The kinds in `states` are clean now. */
void prt_session_cleaned(struct prt_session *s, unsigned states);

/** Reported parameters that a text returns to their reset values: true when it has RESET, RESET
 * ALL, DISCARD ALL or SET ... TO DEFAULT of such. *want: `told` (what the client has been told)
 * with those names as in `startup`; a reference for the caller. */
bool prt_effects_resets(const struct prt_effects *e, const struct prt_params *told,
                        const struct prt_params *startup, const struct prt_params **want);
#endif
