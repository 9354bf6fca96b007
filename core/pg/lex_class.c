/* lex_class.c - what one statement does: its class, its flags, what it sets, what it names.
 * Owns: nothing.   Threads: any.
 * Idea: the first word is looked up in a table of verbs; a verb whose grammar matters has a
 * function that reads on from there, by the rules of PostgreSQL's gram.y. */
#include "pg/lex_parse.h"

static void take_name(struct prt_parse *q)
{
    if (is_name(&q->t)) {
        q->st->name = prt_parse_name(q, &q->t, true);
        next(q);
    }
}

/* SAVEPOINT in RELEASE SAVEPOINT, PREPARE in DEALLOCATE PREPARE: may be the name itself. */
static void take_name_behind(struct prt_parse *q, enum prt_word optional)
{
    if (at(q, optional) && peek(q).kind > PRT_TOK_BAD) {
        next(q);
    }
    take_name(q);
}

/* ---- queries ---- */
/* Only alone it is sure to run. */
static bool unlocks_all(struct prt_parse *q)
{
    if (accept(q, PRT_W_PG_CATALOG)) {
        (void)accept_op(q, '.');
    }
    return accept(q, PRT_W_PG_ADVISORY_UNLOCK_ALL) && accept_op(q, '(') && accept_op(q, ')') &&
           at_end(q);
}

static void verb_query(struct prt_parse *q)
{
    if (q->st->flags & PRT_SQL(UNLOCK_ALL) && !unlocks_all(q)) {
        q->st->flags &= ~PRT_SQL(UNLOCK_ALL);
    }
    if (q->f->has_rowlock) {
        q->st->cls = PRT_SQL_WRITE;
        q->st->flags |= PRT_SQL(ROWLOCK);
    }
    if (q->f->has_into) {
        q->st->cls = PRT_SQL_DDL;
        q->st->flags |= q->f->has_into_temp ? PRT_SQL(TEMP) : 0;
    }
}

static void verb_with(struct prt_parse *q)
{
    verb_query(q);
    if (q->f->has_write) {
        q->st->cls = PRT_SQL_WRITE;
    }
}

/* COPY what {TO | FROM} where */
static void verb_copy(struct prt_parse *q)
{
    int depth = 0;
    bool is_out;

    while (!at_end(q) && (depth > 0 || !(at(q, PRT_W_TO) || at(q, PRT_W_FROM)))) {
        depth += is_op(&q->t, '(') - is_op(&q->t, ')');
        next(q);
    }
    is_out = at(q, PRT_W_TO);
    if (is_out && !q->f->has_write) { /* COPY (INSERT ... RETURNING ...) TO writes */
        q->st->cls = PRT_SQL_READ;
    }
    next(q);
    if (at(q, PRT_W_STDIN) || at(q, PRT_W_STDOUT)) {
        q->st->flags |= is_out ? PRT_SQL(COPY_OUT) : PRT_SQL(COPY_IN);
    }
}

/* ANALYZE [value]: the last of several counts. */
static bool explain_option(struct prt_parse *q, bool runs)
{
    if (!accept(q, PRT_W_ANALYZE) && !accept(q, PRT_W_ANALYSE)) {
        next(q);
        return runs;
    }
    return !(at(q, PRT_W_FALSE) || at(q, PRT_W_OFF) ||
             (q->t.kind == PRT_TOK_NUMBER && q->t.raw.n == 1 && *q->t.raw.p == '0'));
}

static bool is_query(const struct prt_parse *q)
{
    return is_op(&q->t, '(') || at(q, PRT_W_SELECT) || at(q, PRT_W_WITH) || at(q, PRT_W_VALUES) ||
           at(q, PRT_W_TABLE);
}

/* Reads the options; returns whether the statement behind them runs. */
static bool explain_options(struct prt_parse *q)
{
    struct prt_parse before = *q;
    bool runs = false;

    if (accept_op(q, '(')) {
        if (is_query(q)) {
            *q = before; /* it is the query that has parentheses */
            return false;
        }
        while (!at_end(q) && !is_op(&q->t, ')')) {
            runs = explain_option(q, runs);
        }
        (void)accept_op(q, ')');
        return runs;
    }
    for (;;) {
        if (accept(q, PRT_W_ANALYZE) || accept(q, PRT_W_ANALYSE)) {
            runs = true;
        } else if (!accept(q, PRT_W_VERBOSE)) {
            return runs;
        }
    }
}

static void read_verb(struct prt_parse *q);

static void verb_explain(struct prt_parse *q)
{
    bool runs = explain_options(q);

    if (q->is_explained) {
        return; /* not SQL, and no reason for a recursion that the client measures out */
    }
    q->is_explained = true;
    if (runs) {
        read_verb(q);
    } else if (accept(q, PRT_W_EXECUTE)) {
        /* even its plan needs the prepared statement */
        q->st->flags |= PRT_SQL(EXECUTE);
        take_name(q);
    }
}

/* ---- the rest ---- */
/* CREATE TEMP TABLE ... ON COMMIT DROP [AS ...]: gone when its transaction is over. Looks ahead. */
static bool drops_at_commit(const struct prt_parse *q)
{
    struct prt_parse ahead = *q;
    int depth = 0;

    while (!at_end(&ahead) && !(depth == 0 && at(&ahead, PRT_W_AS))) {
        bool is_commit = depth == 0 && at(&ahead, PRT_W_COMMIT);
        depth += is_op(&ahead.t, '(') - is_op(&ahead.t, ')');
        next(&ahead);
        if (is_commit && at(&ahead, PRT_W_DROP)) {
            return true;
        }
    }
    return false;
}

static void verb_create(struct prt_parse *q)
{
    if (accept(q, PRT_W_OR)) {
        (void)accept(q, PRT_W_REPLACE);
    }
    if (!accept(q, PRT_W_LOCAL)) {
        (void)accept(q, PRT_W_GLOBAL);
    }
    if ((at(q, PRT_W_TEMP) || at(q, PRT_W_TEMPORARY)) && !drops_at_commit(q)) {
        q->st->flags |= PRT_SQL(TEMP);
    }
    while (q->f->has_execute && !at_end(q)) {
        /* CREATE TABLE ... AS EXECUTE, but not a trigger's EXECUTE FUNCTION */
        if (accept(q, PRT_W_AS) && accept(q, PRT_W_EXECUTE)) {
            q->st->flags |= PRT_SQL(EXECUTE);
            take_name(q);
            return;
        }
        next(q);
    }
}

static void verb_alter(struct prt_parse *q)
{
    q->st->flags |= at(q, PRT_W_SYSTEM) ? PRT_SQL(GLOBAL) : 0;
}

static void verb_begin(struct prt_parse *q)
{
    for (; !at_end(q); next(q)) {
        q->st->flags |= at(q, PRT_W_ONLY) ? PRT_SQL(READONLY) : 0;
    }
}

/* COMMIT, END, ROLLBACK, ABORT */
static void verb_end(struct prt_parse *q)
{
    struct prt_sql_stmt *st = q->st;
    bool undoes = q->verb == PRT_W_ROLLBACK || q->verb == PRT_W_ABORT;

    if (at(q, PRT_W_PREPARED)) {
        st->flags |= PRT_SQL(TWOPHASE);
        return;
    }
    if (!accept(q, PRT_W_WORK)) {
        (void)accept(q, PRT_W_TRANSACTION);
    }
    if (q->verb == PRT_W_ROLLBACK && accept(q, PRT_W_TO)) {
        st->flags |= PRT_SQL(SAVEPOINT);
        st->is_rollback_to = true;
        take_name_behind(q, PRT_W_SAVEPOINT);
        return;
    }
    st->flags |= undoes ? PRT_SQL(ROLLBACK) : PRT_SQL(COMMIT);
    if (accept(q, PRT_W_AND) && at(q, PRT_W_CHAIN)) {
        st->flags |= PRT_SQL(CHAIN);
    }
}

static void verb_release(struct prt_parse *q)
{
    q->st->is_release = true;
    take_name_behind(q, PRT_W_SAVEPOINT);
}

static void verb_prepare(struct prt_parse *q)
{
    if (at(q, PRT_W_TRANSACTION) && peek(q).kind == PRT_TOK_STRING) {
        q->st->cls = PRT_SQL_TXN;
        q->st->flags |= PRT_SQL(TWOPHASE);
        return;
    }
    q->st->flags |= PRT_SQL(PREPARE);
    take_name(q);
}

/* The name is all that it has; else the server refuses it. */
static void take_only_name(struct prt_parse *q)
{
    take_name(q);
    if (!at_end(q)) {
        q->st->name = (struct prt_str){NULL, 0};
    }
}

static void verb_unlisten(struct prt_parse *q)
{
    if (is_op(&q->t, '*')) {
        q->st->name = q->t.raw;
    } else {
        take_name(q);
    }
}

static void verb_deallocate(struct prt_parse *q)
{
    if (at(q, PRT_W_PREPARE) && peek(q).kind > PRT_TOK_BAD) {
        next(q);
    }
    q->st->flags |= at(q, PRT_W_ALL) ? PRT_SQL(DEALLOCATE_ALL) : PRT_SQL(DEALLOCATE);
    if (!at(q, PRT_W_ALL)) {
        take_only_name(q);
    }
}

static void verb_discard(struct prt_parse *q)
{
    q->st->flags |= at(q, PRT_W_ALL)                              ? PRT_SQL(DISCARD_ALL)
                    : at(q, PRT_W_PLANS)                          ? PRT_SQL(DISCARD_PLANS)
                    : at(q, PRT_W_SEQUENCES)                      ? PRT_SQL(DISCARD_SEQUENCES)
                    : at(q, PRT_W_TEMP) || at(q, PRT_W_TEMPORARY) ? PRT_SQL(DISCARD_TEMP)
                                                                  : 0;
}

/* DECLARE name ... CURSOR [WITH HOLD] FOR */
static void verb_declare(struct prt_parse *q)
{
    take_name(q);
    while (!at_end(q) && !at(q, PRT_W_FOR)) {
        if (accept(q, PRT_W_WITH)) {
            q->st->flags |= at(q, PRT_W_HOLD) ? PRT_SQL(HOLD) : 0;
        } else {
            next(q);
        }
    }
}

static void verb_close(struct prt_parse *q)
{
    if (at(q, PRT_W_ALL)) {
        q->st->flags |= PRT_SQL(CLOSE_ALL);
    } else {
        q->st->flags |= PRT_SQL(CLOSE);
        take_name(q);
    }
}

/* ---- verbs ---- */
struct verb {
    uint8_t cls;  /* enum prt_sql_class; EMPTY: not a verb */
    bool touches; /* `more` may set one of PRT_SQL_SESSION_FLAGS, beyond those of calls and names */
    uint64_t flags;
    void (*more)(struct prt_parse *q); /* reads on behind the verb */
};
static const struct verb verbs[PRT_WORD_COUNT] = {
    [PRT_W_SELECT] = {PRT_SQL_READ, false, 0, verb_query},
    [PRT_W_VALUES] = {PRT_SQL_READ, false, 0, verb_query},
    [PRT_W_TABLE] = {PRT_SQL_READ, false, 0, verb_query},
    [PRT_W_WITH] = {PRT_SQL_READ, false, 0, verb_with},
    [PRT_W_SHOW] = {PRT_SQL_READ, false, 0, NULL},
    [PRT_W_FETCH] = {PRT_SQL_READ, false, 0, NULL},
    [PRT_W_MOVE] = {PRT_SQL_READ, false, 0, NULL},
    [PRT_W_EXPLAIN] = {PRT_SQL_READ, true, PRT_SQL(EXPLAIN), verb_explain},

    [PRT_W_INSERT] = {PRT_SQL_WRITE, false, 0, NULL},
    [PRT_W_UPDATE] = {PRT_SQL_WRITE, false, 0, NULL},
    [PRT_W_DELETE] = {PRT_SQL_WRITE, false, 0, NULL},
    [PRT_W_MERGE] = {PRT_SQL_WRITE, false, 0, NULL},
    [PRT_W_TRUNCATE] = {PRT_SQL_WRITE, false, 0, NULL},
    [PRT_W_COPY] = {PRT_SQL_WRITE, false, 0, verb_copy},
    [PRT_W_NOTIFY] = {PRT_SQL_WRITE, false, 0, NULL},
    [PRT_W_LOCK] = {PRT_SQL_WRITE, false, 0, NULL},
    [PRT_W_DO] = {PRT_SQL_WRITE, true, PRT_SQL(OPAQUE), NULL},
    [PRT_W_CALL] = {PRT_SQL_WRITE, true, PRT_SQL(OPAQUE), NULL},
    [PRT_W_EXECUTE] = {PRT_SQL_WRITE, true, PRT_SQL(EXECUTE), take_name},

    [PRT_W_CREATE] = {PRT_SQL_DDL, true, 0, verb_create},
    [PRT_W_ALTER] = {PRT_SQL_DDL, false, 0, verb_alter},
    [PRT_W_DROP] = {PRT_SQL_DDL, false, 0, NULL},
    [PRT_W_COMMENT] = {PRT_SQL_DDL, false, 0, NULL},
    [PRT_W_GRANT] = {PRT_SQL_DDL, false, 0, NULL},
    [PRT_W_REVOKE] = {PRT_SQL_DDL, false, 0, NULL},
    [PRT_W_SECURITY] = {PRT_SQL_DDL, false, 0, NULL},
    [PRT_W_REASSIGN] = {PRT_SQL_DDL, false, 0, NULL},
    [PRT_W_REFRESH] = {PRT_SQL_DDL, false, 0, NULL},
    [PRT_W_REINDEX] = {PRT_SQL_DDL, false, 0, NULL},
    [PRT_W_IMPORT] = {PRT_SQL_DDL, false, 0, NULL},

    [PRT_W_BEGIN] = {PRT_SQL_TXN, false, PRT_SQL(BEGIN), verb_begin},
    [PRT_W_START] = {PRT_SQL_TXN, false, PRT_SQL(BEGIN), verb_begin},
    [PRT_W_COMMIT] = {PRT_SQL_TXN, false, 0, verb_end},
    [PRT_W_END] = {PRT_SQL_TXN, false, 0, verb_end},
    [PRT_W_ROLLBACK] = {PRT_SQL_TXN, true, 0, verb_end},
    [PRT_W_ABORT] = {PRT_SQL_TXN, true, 0, verb_end},
    [PRT_W_SAVEPOINT] = {PRT_SQL_TXN, true, PRT_SQL(SAVEPOINT), take_name},
    [PRT_W_RELEASE] = {PRT_SQL_TXN, true, PRT_SQL(SAVEPOINT), verb_release},

    [PRT_W_SET] = {PRT_SQL_SESSION, true, PRT_SQL(SET), prt_parse_set},
    [PRT_W_RESET] = {PRT_SQL_SESSION, true, 0, prt_parse_reset},
    [PRT_W_LISTEN] = {PRT_SQL_SESSION, true, PRT_SQL(LISTEN), take_only_name},
    [PRT_W_UNLISTEN] = {PRT_SQL_SESSION, true, PRT_SQL(UNLISTEN), verb_unlisten},
    [PRT_W_PREPARE] = {PRT_SQL_SESSION, true, 0, verb_prepare},
    [PRT_W_DEALLOCATE] = {PRT_SQL_SESSION, true, 0, verb_deallocate},
    [PRT_W_DISCARD] = {PRT_SQL_SESSION, true, 0, verb_discard},
    [PRT_W_DECLARE] = {PRT_SQL_SESSION, true, PRT_SQL(CURSOR), verb_declare},
    [PRT_W_CLOSE] = {PRT_SQL_SESSION, true, 0, verb_close},
    [PRT_W_LOAD] = {PRT_SQL_SESSION, true, PRT_SQL(LOAD), NULL},

    [PRT_W_VACUUM] = {PRT_SQL_UTILITY, false, 0, NULL},
    [PRT_W_ANALYZE] = {PRT_SQL_UTILITY, false, 0, NULL},
    [PRT_W_ANALYSE] = {PRT_SQL_UTILITY, false, 0, NULL},
    [PRT_W_CLUSTER] = {PRT_SQL_UTILITY, false, 0, NULL},
    [PRT_W_CHECKPOINT] = {PRT_SQL_UTILITY, false, 0, NULL},
};

bool prt_sql_verb_touches(enum prt_word w)
{
    return verbs[w].touches;
}

static void read_verb(struct prt_parse *q)
{
    const struct verb *v;

    while (is_op(&q->t, '(')) {
        next(q); /* (SELECT ...) UNION ... */
    }
    q->verb = q->t.kind == PRT_TOK_WORD ? (enum prt_word)q->t.word : PRT_W_NONE;
    v = &verbs[q->verb];
    q->st->cls = v->cls == PRT_SQL_EMPTY ? PRT_SQL_UNKNOWN : v->cls;
    q->st->flags |= v->flags;
    if (v->more) {
        next(q);
        v->more(q);
    }
}

void prt_sql_classify(struct prt_sql_reader *r, const struct prt_sql_facts *f,
                      struct prt_sql_stmt *st)
{
    struct prt_parse q = {.f = f, .st = st, .r = r};

    q.lx = (struct prt_lex){f->text.p, f->text.p + f->text.n, r->lx.scs, false, NULL};
    next(&q);
    if (f->flags & PRT_SQL(SETCONFIG)) {
        struct prt_parse calls = q;
        prt_parse_configs(&calls);
    }
    read_verb(&q);
}
