/* lex.c - SQL into tokens, tokens into statements.
 * Owns: nothing; all it knows is in the caller's struct prt_sql.   Threads: any.
 * Idea: a first walk finds where a statement ends and notes the few facts that can stand anywhere
 * in it (functions, INTO, FOR UPDATE, pg_temp); lex_class.c then walks over the statement's head
 * once more, with the tokens it wants. Two short walks need no list of tokens, so nothing is
 * allocated. The rules of tokens are PostgreSQL's scan.l: comments nest, a string goes on behind a
 * line break, dollar quotes end only at their own tag. */
#include "pg/lex_int.h"

#include <string.h>

#define LETTER (PRT_CH_START | PRT_CH_WORD)
const uint8_t prt_sql_char[256] = {
    [' '] = PRT_CH_BLANK,
    ['\t' ... '\r'] = PRT_CH_BLANK,
    ['0' ... '9'] = PRT_CH_DIGIT | PRT_CH_WORD,
    ['$'] = PRT_CH_WORD,
    ['&'] = PRT_CH_MATTERS,
    ['('] = PRT_CH_MATTERS,
    [';'] = PRT_CH_MATTERS,
    ['A' ... 'O'] = LETTER,
    ['P'] = LETTER | PRT_CH_MATTERS,
    ['Q' ... 'Z'] = LETTER,
    ['_'] = LETTER,
    ['a' ... 'o'] = LETTER,
    ['p'] = LETTER | PRT_CH_MATTERS,
    ['q' ... 'z'] = LETTER,
    [0x80 ... 0xff] = LETTER,
};

/* ---- words ---- */
const struct prt_str prt_words[PRT_WORD_COUNT] = {
#define L(c) [PRT_LETTER_##c] = {"", 0},
#define X(id, s) [PRT_W_##id] = {(s), sizeof(s) - 1},
    PRT_WORDS(L, X)
#undef X
#undef L
};
static const uint8_t letters[27] = {
#define L(c) PRT_LETTER_##c,
#define X(id, s)
    PRT_WORDS(L, X)
#undef X
#undef L
        PRT_WORD_COUNT,
};

bool prt_sql_spells(const char *p, const char *z, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (prt_ch_fold(p[i]) != z[i]) {
            return false;
        }
    }
    return true;
}

enum prt_word prt_word_find(const char *p, size_t n, bool folds)
{
    unsigned c = n ? (unsigned char)(folds ? prt_ch_fold(*p) : *p) : 0u;

    c -= 'a';
    if (c > 25) {
        return PRT_W_NONE;
    }
    for (unsigned w = letters[c] + 1u; w < letters[c + 1]; w++) {
        if (prt_words[w].n == n &&
            (folds ? prt_sql_spells(p, prt_words[w].p, n) : memcmp(p, prt_words[w].p, n) == 0)) {
            return (enum prt_word)w;
        }
    }
    return PRT_W_NONE;
}

const char *prt_sql_flag_name(enum prt_sql_flag_bit bit)
{
    static const char *const names[PRT_SQL_FLAG_COUNT] = {
#define X(id, name) name,
        PRT_SQL_FLAGS(X)
#undef X
    };
    return (unsigned)bit < PRT_SQL_FLAG_COUNT ? names[bit] : "";
}

/* ---- between tokens ---- */
static bool starts(const char *p, const char *end, char a, char b)
{
    return end - p >= 2 && p[0] == a && p[1] == b;
}

static const char *line_end(const char *p, const char *end)
{
    while (p < end && *p != '\n' && *p != '\r') {
        p++;
    }
    return p;
}

const char *prt_lex_comment(const char *p, const char *end)
{
    unsigned depth = 0;

    do {
        if (starts(p, end, '/', '*')) {
            depth++;
            p += 2;
        } else if (starts(p, end, '*', '/')) {
            depth--;
            p += 2;
        } else if (p == end) {
            return NULL;
        } else {
            p++;
        }
    } while (depth);
    return p;
}

static void keep_comment(struct prt_sql *into, const char *p, const char *end)
{
    if (!into || into->n_comments == sizeof into->comment / sizeof *into->comment) {
        return;
    }
    while (p < end && prt_ch(*p, PRT_CH_BLANK)) {
        p++;
    }
    while (p < end && prt_ch(end[-1], PRT_CH_BLANK)) {
        end--;
    }
    into->comment[into->n_comments++] = (struct prt_str){p, (size_t)(end - p)};
}

/* false: a comment that does not end */
static bool skip_gap(struct prt_lex *lx)
{
    for (;;) {
        const char *p = lx->p, *after;
        if (p == lx->end) {
            return true;
        }
        if (prt_ch(*p, PRT_CH_BLANK)) {
            lx->p++;
        } else if (starts(p, lx->end, '-', '-')) {
            lx->p = line_end(p, lx->end);
            keep_comment(lx->into, p + 2, lx->p);
        } else if (starts(p, lx->end, '/', '*')) {
            after = prt_lex_comment(p, lx->end);
            if (!after) {
                return false;
            }
            keep_comment(lx->into, p + 2, after - 2);
            lx->p = after;
        } else {
            return true;
        }
    }
}

/* ---- tokens ---- */
/* p is behind a closing quote. A string goes on if nothing but blanks and line comments, with a
 * line break among them, stands before the next quote: behind that; else NULL. */
static const char *continues(struct prt_lex *lx, const char *p)
{
    const char *from = p;
    bool has_break = false;

    while (p < lx->end && (prt_ch(*p, PRT_CH_BLANK) || starts(p, lx->end, '-', '-'))) {
        if (*p == '-') {
            p = line_end(p, lx->end);
        } else {
            has_break |= *p == '\n' || *p == '\r';
            p++;
        }
    }
    if (!has_break || p == lx->end || *p != '\'') {
        return NULL;
    }
    lx->p = from;
    (void)skip_gap(lx); /* again, for the comments: line comments only, so it cannot fail */
    return p + 1;
}

/* p is behind an opening quote: behind the one that ends it, or NULL. */
static const char *quoted_end(const char *p, const char *end, struct prt_tok *t, char quote,
                              bool escapes)
{
    while (p < end) {
        if (*p == '\\') {
            t->is_simple = false;
            p += escapes && end - p >= 2 ? 2 : 1;
        } else if (*p != quote) {
            p++;
        } else if (!t->is_bits && end - p >= 2 && p[1] == quote) {
            t->is_simple = false;
            p += 2;
        } else {
            return p + 1;
        }
    }
    return NULL;
}

/* lx->p is at the prefix, if it has one, else at the quote. */
static void read_string(struct prt_lex *lx, struct prt_tok *t, size_t prefix)
{
    char kind = prefix ? prt_ch_fold(*lx->p) : 'n';
    bool escapes = kind == 'e' || (kind == 'n' && !lx->scs);
    const char *open = lx->p + prefix + 1, *p = open, *close;

    t->kind = PRT_TOK_STRING;
    t->is_simple = kind == 'n';
    t->is_bits = kind == 'b' || kind == 'x';
    for (;;) {
        close = quoted_end(p, lx->end, t, '\'', escapes);
        if (!close) {
            t->kind = PRT_TOK_BAD;
            return;
        }
        p = continues(lx, close);
        if (!p) {
            break;
        }
        t->is_simple = false;
    }
    t->inner = (struct prt_str){open, (size_t)(close - open) - 1};
    t->hangs_on_mode = kind == 'n' && memchr(open, '\\', t->inner.n) != NULL;
    lx->p = close;
}

static void read_ident(struct prt_lex *lx, struct prt_tok *t, size_t prefix)
{
    const char *open = lx->p + prefix + 1, *close;

    t->kind = prefix ? PRT_TOK_UIDENT : PRT_TOK_IDENT;
    t->is_simple = true;
    close = quoted_end(open, lx->end, t, '"', false);
    if (!close) {
        t->kind = PRT_TOK_BAD;
        return;
    }
    t->inner = (struct prt_str){open, (size_t)(close - open) - 1};
    if (!prefix) {
        t->word = prt_word_find(open, t->inner.n, false);
    }
    lx->p = close;
}

/* $1, $tag$ ... $tag$, or a lone $ */
static void read_dollar(struct prt_lex *lx, struct prt_tok *t)
{
    const char *p = lx->p + 1, *close;
    size_t n;

    t->kind = PRT_TOK_PARAM;
    if (p < lx->end && (*p == '$' || prt_ch(*p, PRT_CH_START))) {
        while (p < lx->end && *p != '$' && prt_ch(*p, PRT_CH_WORD)) {
            p++;
        }
        if (p == lx->end || *p != '$') {
            lx->p++;
            return;
        }
        n = (size_t)(++p - lx->p);
        close = memmem(p, (size_t)(lx->end - p), lx->p, n);
        t->kind = close ? PRT_TOK_STRING : PRT_TOK_BAD;
        t->is_simple = true;
        t->inner = (struct prt_str){p, close ? (size_t)(close - p) : 0};
        lx->p = close ? close + n : lx->end;
        return;
    }
    while (p < lx->end && prt_ch(*p, PRT_CH_DIGIT)) {
        p++;
    }
    lx->p = p;
}

static const char *digits(const char *p, const char *end)
{
    while (p < end && prt_ch(*p, PRT_CH_DIGIT)) {
        p++;
    }
    return p;
}

static void read_number(struct prt_lex *lx, struct prt_tok *t)
{
    const char *p = digits(lx->p, lx->end), *e;

    t->kind = PRT_TOK_NUMBER;
    if (lx->end - p >= 2 && *p == '.' && prt_ch(p[1], PRT_CH_DIGIT)) {
        p = digits(p + 1, lx->end);
    }
    if (p < lx->end && (*p | 0x20) == 'e') {
        e = p + 1;
        e += e < lx->end && (*e == '+' || *e == '-');
        p = e < lx->end && prt_ch(*e, PRT_CH_DIGIT) ? digits(e, lx->end) : p;
    }
    lx->p = p;
}

/* E'', B'', X'', N'', U&'', U&"" or a word */
static void read_word(struct prt_lex *lx, struct prt_tok *t)
{
    const char *p = lx->p;
    char c = prt_ch_fold(*p);

    if (lx->end - p >= 2 && p[1] == '\'' && (c == 'e' || c == 'b' || c == 'x' || c == 'n')) {
        read_string(lx, t, 1);
        return;
    }
    if (lx->end - p >= 3 && c == 'u' && p[1] == '&' && (p[2] == '\'' || p[2] == '"')) {
        (p[2] == '"' ? read_ident : read_string)(lx, t, 2);
        return;
    }
    while (p < lx->end && prt_ch(*p, PRT_CH_WORD)) {
        p++;
    }
    t->kind = PRT_TOK_WORD;
    t->word = prt_word_find(lx->p, (size_t)(p - lx->p), true);
    lx->p = p;
}

static void read_token(struct prt_lex *lx, struct prt_tok *t)
{
    char c = *lx->p;

    if (prt_ch(c, PRT_CH_START)) {
        read_word(lx, t);
    } else if (c == '\'') {
        read_string(lx, t, 0);
    } else if (c == '"') {
        read_ident(lx, t, 0);
    } else if (c == '$') {
        read_dollar(lx, t);
    } else if (prt_ch(c, PRT_CH_DIGIT) ||
               (c == '.' && lx->end - lx->p >= 2 && prt_ch(lx->p[1], PRT_CH_DIGIT))) {
        read_number(lx, t);
    } else {
        t->kind = PRT_TOK_OP;
        t->op = c;
        lx->p++;
    }
}

void prt_lex_next(struct prt_lex *lx, struct prt_tok *t)
{
    bool is_open = !skip_gap(lx);

    *t = (struct prt_tok){.kind = is_open ? PRT_TOK_BAD : PRT_TOK_END, .raw = {lx->p, 0}};
    if (!is_open && lx->p < lx->end) {
        read_token(lx, t);
        t->raw.n = (size_t)(lx->p - t->raw.p);
    }
    if (lx->is_cut && (t->kind == PRT_TOK_BAD || lx->p == lx->end)) {
        t->kind = PRT_TOK_END;
    }
}

/* ---- statements ---- */
/* Where a walk to the end of a statement stands. */
struct walk {
    int depth;                  /* of parentheses: CREATE RULE has semicolons inside */
    unsigned n_tokens;          /* so far */
    unsigned blocks;            /* BEGIN ATOMIC and CASE that are open; only in a routine */
    bool is_create, is_routine; /* CREATE; CREATE [OR REPLACE] FUNCTION or PROCEDURE */
    uint64_t calls;             /* flags of the name just before, should a parenthesis follow */
    uint8_t last;               /* the word just before, NONE if it was none */
    uint8_t since_into;         /* 1: INTO was just before, 2: one word between; 0: not near */
};

static uint64_t call_flags(unsigned word)
{
    switch (word) {
#define X(id, flag)                                                                                \
    case PRT_W_##id:                                                                               \
        return PRT_SQL(flag);
        PRT_CALLS(X)
#undef X
    default:
        return 0;
    }
}

/* A block ends at its END, CASE counts because its END does; psql looks at the same words. */
static void walk_routine(struct walk *w, unsigned word)
{
    if (w->n_tokens <= 3 && (word == PRT_W_FUNCTION || word == PRT_W_PROCEDURE)) {
        w->is_routine = true;
    }
    if (!w->is_routine || w->depth > 0) {
        return;
    }
    if ((word == PRT_W_ATOMIC && w->last == PRT_W_BEGIN) || (word == PRT_W_CASE && w->blocks)) {
        w->blocks++;
    } else if (word == PRT_W_END && w->blocks) {
        w->blocks--;
    }
}

static void walk_word(struct walk *w, struct prt_sql_facts *f, unsigned word)
{
    switch (word) {
    case PRT_W_INTO:
        f->has_into = true;
        w->since_into = 1;
        return;
    case PRT_W_TEMP:
    case PRT_W_TEMPORARY:
        f->has_into_temp |= w->since_into > 0;
        break;
    case PRT_W_UPDATE:
    case PRT_W_SHARE:
    case PRT_W_NO:
    case PRT_W_KEY:
        f->has_rowlock |= w->last == PRT_W_FOR;
        f->has_write |= word == PRT_W_UPDATE;
        break;
    case PRT_W_INSERT:
    case PRT_W_DELETE:
    case PRT_W_MERGE:
        f->has_write = true;
        break;
    case PRT_W_EXECUTE:
        f->has_execute = true;
        break;
    default:
        break;
    }
    w->since_into = w->since_into == 1 ? 2 : 0;
}

static bool is_pg_temp(struct prt_str s, bool folds)
{
    static const char name[] = "pg_temp";
    size_t n = sizeof name - 1;

    return s.n >= n && (s.n == n || s.p[n] == '_') &&
           (folds ? prt_sql_spells(s.p, name, n) : memcmp(s.p, name, n) == 0);
}

static void walk_token(struct walk *w, struct prt_sql_facts *f, const struct prt_tok *t)
{
    bool is_word = t->kind == PRT_TOK_WORD;

    if (t->kind == PRT_TOK_OP) {
        f->flags |= t->op == '(' ? w->calls : 0;
        w->depth += (t->op == '(') - (t->op == ')');
    }
    w->calls = 0;
    if (is_word || t->kind == PRT_TOK_IDENT) {
        w->calls = t->word ? call_flags(t->word) : 0;
        f->flags |= is_pg_temp(is_word ? t->raw : t->inner, is_word) ? PRT_SQL(TEMP) : 0;
    }
    if (is_word) {
        w->is_create |= w->n_tokens == 0 && t->word == PRT_W_CREATE;
        if (w->is_create) {
            walk_routine(w, t->word);
        }
        walk_word(w, f, t->word);
    } else {
        w->since_into = 0;
    }
    w->last = is_word ? t->word : PRT_W_NONE;
    w->n_tokens++;
}

/* Read up to the statement's end; `last` is the token that ended it. */
static void walk_statement(struct prt_sql_reader *r, struct prt_sql_facts *f, struct prt_tok *last)
{
    struct walk w = {.depth = 0};

    *f = (struct prt_sql_facts){.is_whole = true};
    for (;;) {
        prt_lex_next(&r->lx, last);
        if (last->kind <= PRT_TOK_BAD) {
            break;
        }
        if (last->kind == PRT_TOK_OP && last->op == ';' && w.depth <= 0 && !w.blocks) {
            return;
        }
        /* its name may be anything, and may be that of a function */
        r->out->is_cut |= last->kind == PRT_TOK_UIDENT;
        f->text.p = f->text.p ? f->text.p : last->raw.p;
        f->text.n = (size_t)(last->raw.p - f->text.p) + last->raw.n;
        walk_token(&w, f, last);
    }
    /* a column called "case" looks like one that is open: then more statements may be in there */
    r->out->is_cut |= w.blocks > 0;
    f->is_whole = last->kind == PRT_TOK_END && !r->lx.is_cut;
}

static void add_statement(struct prt_sql_reader *r, const struct prt_sql_facts *f, size_t at,
                          bool is_bad)
{
    struct prt_sql *out = r->out;
    struct prt_sql_stmt spare, *st = &spare;

    if (out->n < PRT_SQL_STATEMENTS) {
        st = &out->stmt[out->n++];
    } else {
        out->is_cut = true;
    }
    *st = (struct prt_sql_stmt){.flags = f->flags, .at = (uint32_t)at};
    if (f->text.n) {
        prt_sql_classify(r, f, st);
    }
    if (!f->is_whole) {
        st->n_sets = 0;
        st->has_unknown_set |= (st->flags & (PRT_SQL(SET) | PRT_SQL(SETCONFIG))) != 0;
    }
    if (is_bad) {
        st->cls = PRT_SQL_UNKNOWN;
        st->flags |= PRT_SQL(UNFINISHED);
    }
    out->flags |= st->flags;
    out->cls = st->cls > out->cls ? st->cls : out->cls;
}

void prt_sql_read(struct prt_str sql, bool scs, struct prt_sql *out)
{
    struct prt_sql_reader r = {.out = out};
    struct prt_sql_facts f;
    struct prt_tok last;
    size_t looked_at = sql.n < PRT_SQL_LOOKED_AT ? sql.n : PRT_SQL_LOOKED_AT;
    const char *nul = looked_at ? memchr(sql.p, 0, looked_at) : NULL;

    /* field by field: most of it is arrays that are filled as far as they are used */
    out->cls = PRT_SQL_EMPTY;
    out->n = 0;
    out->flags = 0;
    out->n_comments = 0;
    out->is_cut = !nul && sql.n > looked_at && sql.p[looked_at] != 0;
    r.lx = (struct prt_lex){sql.p, nul ? nul : sql.p + looked_at, scs, out->is_cut, out};
    do {
        walk_statement(&r, &f, &last);
        if (f.text.n || last.kind == PRT_TOK_BAD) {
            size_t at = f.text.n ? (size_t)(f.text.p - sql.p) : 0;
            add_statement(&r, &f, at, last.kind == PRT_TOK_BAD);
        }
    } while (last.kind > PRT_TOK_BAD);
    if (out->is_cut) {
        out->cls = PRT_SQL_UNKNOWN;
    }
}
