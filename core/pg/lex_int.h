/* lex_int.h - what the files of the lexer share: lex.c (tokens, statements), lex_class.c (what a
 * statement does), lex_plain.c (the cheap question). Never leaves this room. */
#ifndef PRT_LEX_INT_H
#define PRT_LEX_INT_H
#include "pg/lex.h"

/* Words that mean something here, by first letter, the frequent ones first. L(x) opens a letter:
 * each takes a place in the enum, so that the range of a letter needs no table kept by hand. */
/* clang-format off */
#define PRT_WORDS(L, X)                                                                            \
    L(a) X(AS, "as") X(AND, "and") X(ALL, "all") X(ANALYZE, "analyze") X(ALTER, "alter")           \
      X(ABORT, "abort") X(ANALYSE, "analyse") X(ATOMIC, "atomic")                                  \
      X(AUTHORIZATION, "authorization")                                                            \
    L(b) X(BEGIN, "begin")                                                                         \
    L(c) X(COMMIT, "commit") X(CREATE, "create") X(CASE, "case") X(CALL, "call")                   \
      X(CHAIN, "chain") X(CHARACTERISTICS, "characteristics") X(CHECKPOINT, "checkpoint")          \
      X(CLOSE, "close") X(CLUSTER, "cluster") X(COMMENT, "comment") X(COMMITTED, "committed")      \
      X(CONSTRAINTS, "constraints") X(COPY, "copy")                                                \
    L(d) X(DELETE, "delete") X(DO, "do") X(DEALLOCATE, "deallocate") X(DECLARE, "declare")         \
      X(DEFAULT, "default") X(DEFERRABLE, "deferrable") X(DISCARD, "discard") X(DROP, "drop")      \
      X(DBLINK_CONNECT, "dblink_connect") X(DBLINK_CONNECT_U, "dblink_connect_u")                  \
    L(e) X(END, "end") X(EXECUTE, "execute") X(EXPLAIN, "explain")                                 \
    L(f) X(FROM, "from") X(FOR, "for") X(FALSE, "false") X(FETCH, "fetch")                         \
      X(FUNCTION, "function")                                                                      \
    L(g) X(GLOBAL, "global") X(GRANT, "grant")                                                     \
    L(h) X(HOLD, "hold")                                                                           \
    L(i) X(INSERT, "insert") X(INTO, "into") X(IMPORT, "import") X(INTERVAL, "interval")           \
      X(ISOLATION, "isolation")                                                                    \
    L(j)                                                                                           \
    L(k) X(KEY, "key")                                                                             \
    L(l) X(LEVEL, "level") X(LISTEN, "listen") X(LOAD, "load") X(LOCAL, "local") X(LOCK, "lock")   \
    L(m) X(MERGE, "merge") X(MOVE, "move")                                                         \
    L(n) X(NOT, "not") X(NO, "no") X(NAMES, "names") X(NOTIFY, "notify")                           \
    L(o) X(OR, "or") X(ONLY, "only") X(OFF, "off") X(OPTION, "option")                             \
    L(p) X(PREPARE, "prepare") X(PREPARED, "prepared") X(PLANS, "plans")                           \
      X(PROCEDURE, "procedure") X(PG_ADVISORY_LOCK, "pg_advisory_lock")                            \
      X(PG_ADVISORY_LOCK_SHARED, "pg_advisory_lock_shared")                                        \
      X(PG_ADVISORY_UNLOCK_ALL, "pg_advisory_unlock_all") X(PG_CATALOG, "pg_catalog")              \
      X(PG_TRY_ADVISORY_LOCK, "pg_try_advisory_lock")                                              \
      X(PG_TRY_ADVISORY_LOCK_SHARED, "pg_try_advisory_lock_shared")                                \
      X(PG_STAT_STATEMENTS_RESET, "pg_stat_statements_reset")                                      \
      X(PG_CREATE_LOGICAL_REPLICATION_SLOT, "pg_create_logical_replication_slot")                  \
      X(PG_CREATE_PHYSICAL_REPLICATION_SLOT, "pg_create_physical_replication_slot")                \
      X(PG_REPLICATION_ORIGIN_SESSION_SETUP, "pg_replication_origin_session_setup")                \
    L(q)                                                                                           \
    L(r) X(ROLLBACK, "rollback") X(RELEASE, "release") X(RESET, "reset") X(READ, "read")           \
      X(REASSIGN, "reassign") X(REFRESH, "refresh") X(REINDEX, "reindex")                          \
      X(REPEATABLE, "repeatable") X(REPLACE, "replace") X(REVOKE, "revoke") X(ROLE, "role")        \
    L(s) X(SELECT, "select") X(SET, "set") X(SHOW, "show") X(SAVEPOINT, "savepoint")               \
      X(START, "start") X(SCHEMA, "schema") X(SECURITY, "security") X(SEQUENCES, "sequences")      \
      X(SERIALIZABLE, "serializable") X(SESSION, "session") X(SHARE, "share") X(STDIN, "stdin")    \
      X(STDOUT, "stdout") X(SYSTEM, "system") X(SET_CONFIG, "set_config") X(SETSEED, "setseed")    \
    L(t) X(TO, "to") X(TABLE, "table") X(TRUE, "true") X(TEMP, "temp") X(TEMPORARY, "temporary")   \
      X(TIME, "time") X(TRANSACTION, "transaction") X(TRUNCATE, "truncate")                        \
    L(u) X(UPDATE, "update") X(UNCOMMITTED, "uncommitted") X(UNLISTEN, "unlisten")                 \
    L(v) X(VALUES, "values") X(VACUUM, "vacuum") X(VERBOSE, "verbose")                             \
    L(w) X(WITH, "with") X(WORK, "work") X(WRITE, "write")                                         \
    L(x) X(XML, "xml")                                                                             \
    L(y)                                                                                           \
    L(z) X(ZONE, "zone")
/* clang-format on */
enum prt_word {
#define L(c) PRT_LETTER_##c,
#define X(id, s) PRT_W_##id,
    PRT_WORDS(L, X)
#undef X
#undef L
        PRT_WORD_COUNT,
    PRT_W_NONE = 0
};
/** The word, in any case if `folds`; else NONE. */
enum prt_word prt_word_find(const char *p, size_t n, bool folds);

/* Functions whose effect outlives their statement and transaction, and the flag for each. */
#define PRT_CALLS(X)                                                                               \
    X(SET_CONFIG, SETCONFIG)                                                                       \
    X(PG_ADVISORY_LOCK, ADVISORY)                                                                  \
    X(PG_ADVISORY_LOCK_SHARED, ADVISORY)                                                           \
    X(PG_ADVISORY_UNLOCK_ALL, UNLOCK_ALL)                                                          \
    X(PG_TRY_ADVISORY_LOCK, ADVISORY)                                                              \
    X(PG_TRY_ADVISORY_LOCK_SHARED, ADVISORY)                                                       \
    X(DBLINK_CONNECT, STICKY)                                                                      \
    X(DBLINK_CONNECT_U, STICKY)                                                                    \
    X(SETSEED, STICKY)                                                                             \
    X(PG_STAT_STATEMENTS_RESET, STICKY)                                                            \
    X(PG_CREATE_LOGICAL_REPLICATION_SLOT, STICKY)                                                  \
    X(PG_CREATE_PHYSICAL_REPLICATION_SLOT, STICKY)                                                 \
    X(PG_REPLICATION_ORIGIN_SESSION_SETUP, STICKY)
extern const struct prt_str prt_words[PRT_WORD_COUNT];

/* ---- bytes ---- */
#define PRT_CH_BLANK 1
#define PRT_CH_DIGIT 2
#define PRT_CH_START 4    /* may begin a word */
#define PRT_CH_WORD 8     /* may go on with one */
#define PRT_CH_MATTERS 16 /* lex_plain.c looks at what stands around it */
extern const uint8_t prt_sql_char[256];
static inline bool prt_ch(char c, unsigned kinds)
{
    return prt_sql_char[(unsigned char)c] & kinds;
}
static inline char prt_ch_fold(char c)
{
    return (unsigned char)(c - 'A') < 26 ? (char)(c | 0x20) : c;
}
/** Do the n bytes at p spell `z`, which is in lower case, in any case? */
bool prt_sql_spells(const char *p, const char *z, size_t n);

/* ---- tokens ---- */
enum prt_tok_kind {
    PRT_TOK_END,
    PRT_TOK_BAD,   /* it never ends: the server will refuse the text */
    PRT_TOK_WORD,  /* `word` if it is one of PRT_WORDS */
    PRT_TOK_IDENT, /* "quoted": `inner`; `word` if it spells one exactly */
    PRT_TOK_UIDENT,
    PRT_TOK_STRING, /* `inner` is what it means if `is_simple` */
    PRT_TOK_NUMBER,
    PRT_TOK_PARAM,
    PRT_TOK_OP, /* `op`: one byte */
};
struct prt_tok {
    uint8_t kind; /* enum prt_tok_kind */
    uint8_t word; /* enum prt_word */
    char op;
    bool is_simple;     /* nothing doubled, escaped or continued inside of the quotes */
    bool hangs_on_mode; /* backslashes that mean what standard_conforming_strings says */
    bool is_bits;       /* B'' or X'': no text */
    struct prt_str raw, inner;
};
static_assert(PRT_WORD_COUNT <= 255, "prt_tok.word is a byte");

struct prt_lex {
    const char *p, *end;
    bool scs;
    bool is_cut;          /* the text goes on behind `end`: what touches it is not a token */
    struct prt_sql *into; /* collects comments; NULL: does not */
};
void prt_lex_next(struct prt_lex *lx, struct prt_tok *t);
/** Behind the block comment that begins at p; NULL: it does not end. */
const char *prt_lex_comment(const char *p, const char *end);

/* ---- statements ---- */
/** What was seen while looking for a statement's end. */
struct prt_sql_facts {
    struct prt_str text; /* first token to last */
    uint64_t flags;      /* of functions that it calls, and TEMP for pg_temp */
    bool has_into, has_into_temp, has_write, has_rowlock, has_execute;
    bool is_whole; /* it ends: neither cut nor with a token that is unfinished */
};
struct prt_sql_reader {
    struct prt_lex lx;
    struct prt_sql *out;
    size_t room_used; /* of out->room */
};
/** Fill `st`, which is zeroed, but for what only the caller knows. */
void prt_sql_classify(struct prt_sql_reader *r, const struct prt_sql_facts *f,
                      struct prt_sql_stmt *st);
/** Can a statement that begins with this word have one of PRT_SQL_SESSION_FLAGS by its grammar? */
bool prt_sql_verb_touches(enum prt_word w);
#endif
