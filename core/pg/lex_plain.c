/* lex_plain.c - is it sure that a text does nothing to its session?
 * Owns: nothing.   Threads: any.
 * Idea: no tokens. Whatever quotes, comments and standard_conforming_strings make of the text, a
 * statement begins at its beginning or behind a semicolon, a function is called by bytes in front
 * of a parenthesis, and a temporary object needs the letters "temp". So these places alone are
 * looked at, wherever they are, in strings too: more of them than there are in truth, never fewer.
 * Sixteen bytes at a time; a block without such a byte costs some fifteen instructions. */
#include "pg/lex_int.h"

#include <string.h>

/* Bytes that are skipped behind the first comment in front of a verb, for the whole text. Behind
 * semicolons in a string the same bytes may look like comments again and again. */
#define BUDGET 2048
#define BLOCK 16

#define BIT(c) (1u << ((c)&31)) /* of a letter, in either case; a few other bytes share it */

typedef uint8_t bytes __attribute__((vector_size(BLOCK)));
typedef uint64_t halves __attribute__((vector_size(BLOCK)));

struct scan {
    const char *p, *end;
    size_t budget; /* bytes from a comment to a verb that may still be read */
};

static bool is_between(char c)
{
    return prt_ch(c, PRT_CH_BLANK) || c == '(' || c == ';';
}

static bool is_comment(const char *p, const char *end)
{
    return end - p >= 2 && ((*p == '-' && p[1] == '-') || (*p == '/' && p[1] == '*'));
}

/* p is at a comment: behind all that may stand between here and a verb; NULL: too far. */
static const char *behind_comments(struct scan *s, const char *p)
{
    const char *from = p, *end = (size_t)(s->end - p) > s->budget ? p + s->budget : s->end;

    while (p && p < end) {
        if (is_between(*p)) {
            p++;
        } else if (!is_comment(p, end)) {
            break;
        } else if (*p == '/') {
            p = prt_lex_comment(p, end);
        } else {
            while (p < end && *p != '\n' && *p != '\r') {
                p++;
            }
        }
    }
    if (!p || (p == end && end != s->end)) {
        return NULL;
    }
    s->budget -= (size_t)(p - from);
    return p;
}

/* Most texts begin so, and the word ends behind its sixth letter. Spares looking it up. */
static bool is_usual(const char *p, const char *end)
{
    static const char usual[][9] = {"select\0\0", "update\0\0", "insert\0\0", "delete\0\0"};
    uint64_t have, want, letters;

    if (end - p < 8 || prt_ch(p[6], PRT_CH_WORD)) {
        return false;
    }
    memcpy(&letters, "\xff\xff\xff\xff\xff\xff\0", 8);
    memcpy(&have, p, 8);
    have = (have | 0x2020202020202020u) & letters;
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++) {
        memcpy(&want, usual[i], 8);
        if (have == want) {
            return true;
        }
    }
    return false;
}

/* A statement may begin at p. What is behind p and before *after needs no second look. */
static bool begins_plainly(struct scan *s, const char *p, const char **after)
{
    const char *word;

    while (p < s->end && is_between(*p)) {
        p++;
    }
    *after = p; /* not behind comments: this may be in a string, where they are none */
    if (is_usual(p, s->end)) {
        return true;
    }
    if (is_comment(p, s->end)) {
        p = behind_comments(s, p);
        if (!p) {
            return false;
        }
    }
    for (word = p; p < s->end && prt_ch(*p, PRT_CH_WORD); p++) {
    }
    return !prt_sql_verb_touches(prt_word_find(word, (size_t)(p - word), true));
}

static bool ends_in(const char *begin, const char *end, const struct prt_str *tail)
{
    return (size_t)(end - begin) >= tail->n && prt_sql_spells(end - tail->n, tail->p, tail->n);
}

/* Do the bytes before p spell a function of PRT_CALLS? What is in front of it does not matter: a
 * number, say, ends where a letter follows. */
static bool ends_in_call(const char *begin, const char *p)
{
    static const uint8_t calls[] = {
#define X(id, flag) PRT_W_##id,
        PRT_CALLS(X)
#undef X
    };
    /* their last letters, and the last but one: most other names end here */
    static const uint32_t last = BIT('g') | BIT('d') | BIT('t') | BIT('k') | BIT('u') | BIT('p') |
                                 BIT('l'),
                          before = BIT('l') | BIT('i') | BIT('e') | BIT('c') | BIT('o') | BIT('u') |
                                   BIT('_');

    if (p - begin < 2 || !(last & BIT(p[-1])) || !(before & BIT(p[-2]))) {
        return false;
    }
    for (size_t i = 0; i < sizeof calls; i++) {
        if (ends_in(begin, p, &prt_words[calls[i]])) {
            return true;
        }
    }
    return false;
}

/* The parenthesis at p: is what stands before it certainly no function that matters? */
static bool is_plain_call(const struct scan *s, const char *p)
{
    const char *line;
    bool has_break = false;

    while (p > s->p && prt_ch(p[-1], PRT_CH_BLANK)) {
        p--;
        has_break |= *p == '\n' || *p == '\r';
    }
    if (p == s->p) {
        return true;
    }
    /* a comment may end there, and the name stand before it */
    if (p - s->p >= 2 && p[-1] == '/' && p[-2] == '*') {
        return false;
    }
    for (line = p; has_break && line > s->p && line[-1] != '\n' && line[-1] != '\r'; line--) {
        if (line[-1] == '-' && line - s->p >= 2 && line[-2] == '-') {
            return false;
        }
    }
    return !ends_in_call(s->p, p[-1] == '"' ? p - 1 : p);
}

/* "temp" ends at the p that is looked at. Only the words temp, temporary, pg_temp and pg_temp_3
 * matter. A letter in front belongs to the same word, unlike a digit or $. */
static bool is_plain_temp(const struct scan *s, const char *p)
{
    static const struct prt_str temp = PRT_STR("temp"), pg_temp = PRT_STR("pg_temp");
    const char *begin = p + 1 - temp.n, *behind = p + 1;

    if (!ends_in(s->p, behind, &temp)) {
        return true;
    }
    if (ends_in(s->p, behind, &pg_temp)) {
        return false;
    }
    if (begin > s->p && prt_ch(begin[-1], PRT_CH_START)) {
        return true;
    }
    return behind < s->end && prt_ch(*behind, PRT_CH_WORD) &&
           !(s->end - behind >= 5 && prt_sql_spells(behind, "orary", 5));
}

/* A byte of PRT_CH_MATTERS. Semicolons before `at` were gone over with an earlier one. */
static bool is_plain_at(struct scan *s, const char *p, const char **at)
{
    switch (*p) {
    case ';':
        return p < *at || begins_plainly(s, p + 1, at);
    case '(':
        return is_plain_call(s, p);
    case '&':
        /* U&"\0073et_config"( */
        return !(s->end - p >= 2 && p[1] == '"');
    default: /* p, P */
        return is_plain_temp(s, p);
    }
}

static bool are_plain(struct scan *s, const char *p, const char *end, const char **at)
{
    for (; p < end; p++) {
        if (prt_ch(*p, PRT_CH_MATTERS) && !is_plain_at(s, p, at)) {
            return false;
        }
    }
    return true;
}

/* Is there `; ( &` in the block, or a p behind an m? */
static bool matters(const char *p)
{
    bytes here, before;
    halves hits;

    memcpy(&here, p, BLOCK);
    memcpy(&before, p - 1, BLOCK);
    hits = (halves)((here == ';') | (here == '(') | (here == '&') |
                    (((here | 0x20) == 'p') & ((before | 0x20) == 'm')));
    return (hits[0] | hits[1]) != 0;
}

bool prt_sql_is_plain(struct prt_str sql)
{
    struct scan s = {sql.p, sql.p + sql.n, BUDGET};
    const char *at = NULL, *p;

    while (s.end > s.p && (s.end[-1] == ';' || prt_ch(s.end[-1], PRT_CH_BLANK))) {
        s.end--;
    }
    if (s.end == s.p) {
        return true;
    }
    if (!begins_plainly(&s, s.p, &at)) {
        return false;
    }
    if (s.end - s.p <= BLOCK) {
        return are_plain(&s, s.p, s.end, &at);
    }
    /* the first byte is none of these, or stood before the verb */
    for (p = s.p + 1; s.end - p > BLOCK; p += BLOCK) {
        if (matters(p) && !are_plain(&s, p, p + BLOCK, &at)) {
            return false;
        }
    }
    return !matters(s.end - BLOCK) || are_plain(&s, p, s.end, &at);
}
