/* pg_lex_fuzz.c - arbitrary SQL. The first byte chooses the mode of strings, and how many blanks
 * push the text over the edge of what is looked at. */
#include "pg/pg.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static struct prt_sql out;

static bool is_in(struct prt_str s, const char *p, size_t n)
{
    return s.p >= p && s.n <= n && s.p + s.n <= p + n;
}

/* Of the text, of the room, or a constant, which is small and has no way to be longer. */
static void check_str(struct prt_str s, const char *p, size_t n)
{
    prt_assert(s.n == 0 || is_in(s, p, n) || is_in(s, out.room, sizeof out.room) || s.n < 32);
}

static void check_stmt(const struct prt_sql_stmt *s, const char *p, size_t n)
{
    prt_assert(s->cls > PRT_SQL_EMPTY && s->cls <= PRT_SQL_UNKNOWN && s->cls <= out.cls);
    prt_assert((s->flags & ~out.flags) == 0 && s->n_sets <= PRT_SQL_SETS);
    prt_assert(!s->n_sets || s->flags & (PRT_SQL(SET) | PRT_SQL(SETCONFIG)));
    prt_assert(!s->n_sets || !(s->flags & (PRT_SQL(LOCAL) | PRT_SQL(UNFINISHED))) ||
               s->flags & PRT_SQL(SETCONFIG));
    check_str(s->name, p, n);
    prt_assert(s->name.n <= 4 * (PRT_NAME_MAX + 1));
    for (unsigned i = 0; i < s->n_sets; i++) {
        prt_assert(s->set[i].name.n && (!s->set[i].is_config || s->set[i].value.n >= 2));
        check_str(s->set[i].name, p, n);
        check_str(s->set[i].value, p, n);
        prt_assert(!memchr(s->set[i].value.p ? s->set[i].value.p : "", 0, s->set[i].value.n));
    }
}

static void check(const char *p, size_t n, bool scs)
{
    prt_sql_read((struct prt_str){p, n}, scs, &out);
    prt_assert(out.n <= PRT_SQL_STATEMENTS && out.n_comments <= 4);
    prt_assert(!(out.is_cut || out.flags & PRT_SQL(UNFINISHED)) || out.cls == PRT_SQL_UNKNOWN);
    prt_assert((out.n == 0) == (out.cls == PRT_SQL_EMPTY) || out.is_cut);
    for (unsigned i = 0; i < out.n; i++) {
        check_stmt(&out.stmt[i], p, n);
    }
    for (unsigned i = 0; i < out.n_comments; i++) {
        prt_assert(is_in(out.comment[i], p, n));
    }
    prt_assert(!prt_sql_is_plain((struct prt_str){p, n}) || !(out.flags & PRT_SQL_SESSION_FLAGS));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    size_t pad = 0;
    char *p;

    if (n < 1) {
        return 0;
    }
    if (data[0] & 2 && n < PRT_SQL_LOOKED_AT) {
        pad = PRT_SQL_LOOKED_AT - (n - 1) * data[0] / 255;
    }
    p = malloc(pad + n); /* exact bounds, for the sanitizer */
    memset(p, ' ', pad);
    memcpy(p + pad, data + 1, n - 1);
    check(p, pad + n - 1, data[0] & 1);
    free(p);
    return 0;
}
