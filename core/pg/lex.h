/* lex.h - what a text of SQL will do to its session, as far as the text alone can tell. Part of
 * pg.h. One pass over tokens, never a parser: PostgreSQL alone decides what is valid, and what
 * functions, DO and CALL do inside no lexer sees. Rules: core/pg/README.md. */
#ifndef PRT_LEX_H
#define PRT_LEX_H
#include "base/base.h"

/* Of a text: the strongest of its statements, by this order. */
enum prt_sql_class {
    PRT_SQL_EMPTY,
    PRT_SQL_READ,
    PRT_SQL_UTILITY,
    PRT_SQL_TXN,
    PRT_SQL_SESSION,
    PRT_SQL_WRITE,
    PRT_SQL_DDL,
    PRT_SQL_UNKNOWN, /* also unfinished and cut texts: to be taken for a write */
};

/* id, name as in spec/vectors/lexer.jsonl */
/* clang-format off */
#define PRT_SQL_FLAGS(X)                                                                           \
    X(ADVISORY, "advisory") X(AUTH, "auth") X(BEGIN, "begin") X(CHAIN, "chain")                    \
    X(CLOSE, "close") X(CLOSE_ALL, "close_all") X(COMMIT, "commit") X(COPY_IN, "copy_in")          \
    X(COPY_OUT, "copy_out") X(CURSOR, "cursor") X(DEALLOCATE, "deallocate")                        \
    X(DEALLOCATE_ALL, "deallocate_all") X(DISCARD_ALL, "discard_all")                              \
    X(DISCARD_PLANS, "discard_plans") X(DISCARD_SEQUENCES, "discard_sequences")                    \
    X(DISCARD_TEMP, "discard_temp") X(EXECUTE, "execute") X(EXPLAIN, "explain")                    \
    X(GLOBAL, "global") X(HOLD, "hold") X(LISTEN, "listen") X(LOAD, "load") X(LOCAL, "local")      \
    X(OPAQUE, "opaque") X(PREPARE, "prepare") X(READONLY, "readonly") X(RESET, "reset")            \
    X(RESET_ALL, "reset_all") X(ROLE, "role") X(ROLLBACK, "rollback") X(ROWLOCK, "rowlock")        \
    X(SAVEPOINT, "savepoint") X(SET, "set") X(SETCONFIG, "setconfig") X(STICKY, "sticky")          \
    X(TEMP, "temp") X(TWOPHASE, "twophase") X(UNFINISHED, "unfinished") X(UNLISTEN, "unlisten") \
    /* SELECT pg_advisory_unlock_all() and nothing else; not in lexer.jsonl */                    \
    X(UNLOCK_ALL, "unlock_all")
/* clang-format on */
enum prt_sql_flag_bit {
#define X(id, name) PRT_SQL_BIT_##id,
    PRT_SQL_FLAGS(X)
#undef X
        PRT_SQL_FLAG_COUNT
};
#define PRT_SQL(id) (1ULL << PRT_SQL_BIT_##id)
/** "set", "temp" ...: the name of flag bit `bit`. */
const char *prt_sql_flag_name(enum prt_sql_flag_bit bit);

#define PRT_SQL_LOOKED_AT 16384 /* longest part of a text that is read: behind it is `cut` */
#define PRT_SQL_STATEMENTS 16   /* more in one text: `cut` */
#define PRT_SQL_SETS 3

/** One assignment of SET, SET SESSION CHARACTERISTICS or a set_config() of literals. */
struct prt_sql_set {
    struct prt_str name;  /* as written, or PostgreSQL's for TIME ZONE, NAMES ...; quotes removed */
    struct prt_str value; /* as written, to be put behind "SET name TO " ("a, 'b'"), or the literal
                           * with its quotes (is_config); empty: TO DEFAULT */
    bool is_config;       /* a literal for set_config(): one string, however many values */
    uint8_t column; /* from 1: of the statement's one row, where set_config() returns the value,
                     * which the text does not tell; 0: it does */
};
/* With ROLE or AUTH: what the role becomes. */
enum prt_sql_role {
    PRT_SQL_ROLE_NAMED,   /* the one that is named, and what was not understood */
    PRT_SQL_ROLE_NONE,    /* SET ROLE NONE: nobody but the user of the session */
    PRT_SQL_ROLE_DEFAULT, /* RESET, TO DEFAULT: as at login */
};
struct prt_sql_stmt {
    uint8_t cls; /* enum prt_sql_class */
    uint8_t n_sets;
    uint8_t role_to;      /* enum prt_sql_role */
    bool has_unknown_set; /* a set_config() or SET that was not understood */
    uint32_t at;          /* where it begins in the text */
    uint64_t flags;       /* PRT_SQL() bits */
    /* the object that it names, folded as PostgreSQL does, quotes removed (and "" made one; then it
     * points into prt_sql.room): the parameter of RESET, channel of LISTEN and UNLISTEN ("*"), name
     * of PREPARE, EXECUTE, DEALLOCATE, CLOSE, DECLARE, SAVEPOINT, RELEASE, ROLLBACK TO. Or empty */
    struct prt_str name;
    bool is_release; /* with SAVEPOINT: RELEASE */
    bool is_rollback_to;
    bool wants_row; /* one of `set` has a column; told by effects.c */
    struct prt_sql_set set[PRT_SQL_SETS];
};
struct prt_sql {
    uint8_t cls;    /* enum prt_sql_class */
    bool is_cut;    /* more than was looked at: unknown what stands there */
    uint16_t n;     /* statements, empty ones not counted */
    uint64_t flags; /* of all statements */
    struct prt_sql_stmt stmt[PRT_SQL_STATEMENTS];
    unsigned n_comments; /* block and line comments, the first four */
    struct prt_str comment[4];
    char room[1024]; /* folded and unquoted names; a name that does not fit: is_cut */
};
/** Read sql.p[sql.n] up to its first NUL. scs: standard_conforming_strings is on. Strings of `out`
 * point into `sql` or into `out`, or are constants. A text that is cut or unfinished has class
 * UNKNOWN, and the flags of what could be read. */
void prt_sql_read(struct prt_str sql, bool scs, struct prt_sql *out);

/** The cheap question in front of it, at most a few instructions per byte: is it sure that no
 * statement in the text has a flag of `PRT_SQL_SESSION_FLAGS`? false: perhaps not; read it.
 * All of the text is looked at, so long inserts are plain although they would be `cut`. */
bool prt_sql_is_plain(struct prt_str sql);
/** "pg_temp" is somewhere in a text or a value: in a search_path it makes of each CREATE a
 * temporary object. */
bool prt_sql_names_pg_temp(struct prt_str s);
#define PRT_SQL_SESSION_FLAGS                                                                      \
    (PRT_SQL(ADVISORY) | PRT_SQL(AUTH) | PRT_SQL(CLOSE) | PRT_SQL(CLOSE_ALL) |                     \
     PRT_SQL(DEALLOCATE) | PRT_SQL(DEALLOCATE_ALL) | PRT_SQL(DISCARD_ALL) |                        \
     PRT_SQL(DISCARD_PLANS) | PRT_SQL(DISCARD_SEQUENCES) | PRT_SQL(DISCARD_TEMP) |                 \
     PRT_SQL(EXECUTE) | PRT_SQL(HOLD) | PRT_SQL(LISTEN) | PRT_SQL(LOAD) | PRT_SQL(OPAQUE) |        \
     PRT_SQL(PREPARE) | PRT_SQL(RESET) | PRT_SQL(RESET_ALL) | PRT_SQL(ROLE) | PRT_SQL(ROLLBACK) |  \
     PRT_SQL(SAVEPOINT) | PRT_SQL(SET) | PRT_SQL(SETCONFIG) | PRT_SQL(STICKY) | PRT_SQL(TEMP) |    \
     PRT_SQL(UNLISTEN) | PRT_SQL(UNLOCK_ALL))
#endif
