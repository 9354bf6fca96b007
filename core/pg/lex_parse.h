/* lex_parse.h - walking over the tokens of one statement: what lex_class.c and lex_set.c share. */
#ifndef PRT_LEX_PARSE_H
#define PRT_LEX_PARSE_H
#include "pg/lex_int.h"

#include <string.h>

/* One statement being read. */
struct prt_parse {
    struct prt_lex lx;
    struct prt_tok t; /* the token that is looked at */
    enum prt_word verb;
    const struct prt_sql_facts *f;
    struct prt_sql_stmt *st;
    struct prt_sql_reader *r;
    bool is_explained;
    bool is_local; /* SET LOCAL: flags, but nothing that stays */
};

static inline void next(struct prt_parse *q)
{
    prt_lex_next(&q->lx, &q->t);
}

static inline struct prt_tok peek(const struct prt_parse *q)
{
    struct prt_lex lx = q->lx;
    struct prt_tok t;

    prt_lex_next(&lx, &t);
    return t;
}

static inline bool is_word(const struct prt_tok *t, enum prt_word w)
{
    return t->kind == PRT_TOK_WORD && t->word == w;
}

static inline bool is_op(const struct prt_tok *t, char c)
{
    return t->kind == PRT_TOK_OP && t->op == c;
}

static inline bool at(const struct prt_parse *q, enum prt_word w)
{
    return is_word(&q->t, w);
}

static inline bool at_end(const struct prt_parse *q)
{
    return q->t.kind <= PRT_TOK_BAD;
}

static inline bool accept(struct prt_parse *q, enum prt_word w)
{
    if (!at(q, w)) {
        return false;
    }
    next(q);
    return true;
}

static inline bool accept_op(struct prt_parse *q, char c)
{
    if (!is_op(&q->t, c)) {
        return false;
    }
    next(q);
    return true;
}

static inline bool is_name(const struct prt_tok *t)
{
    return t->kind == PRT_TOK_WORD || t->kind == PRT_TOK_IDENT;
}

static inline bool spells(struct prt_str s, const char *z)
{
    size_t n = strlen(z);

    return s.n == n && prt_sql_spells(s.p, z, n);
}

/** The identifier of a token: without quotes, folded if it has none and `folds`. May be empty: then
 * the text counts as cut. */
struct prt_str prt_parse_name(struct prt_parse *q, const struct prt_tok *t, bool folds);
/** A parameter's name, and behind it: parts with dots between. Empty: there is none. */
struct prt_str prt_parse_parameter(struct prt_parse *q, bool folds);
/** What stands behind SET; behind RESET. */
void prt_parse_set(struct prt_parse *q);
void prt_parse_reset(struct prt_parse *q);
/** The set_config() calls of the statement, from its beginning. */
void prt_parse_configs(struct prt_parse *q);
#endif
