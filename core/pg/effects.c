/* effects.c - what one text of SQL may do to the session of its server, kept as long as the text
 * is. Owns: every prt_effects, from the first reference to the last: one block with its strings.
 * Threads: any; immutable but for the counter, which is atomic.
 * Idea: most texts do nothing, and are known to by a look at their bytes. For the rest the lexer is
 * asked once; here its answer is copied into one block. A value that may mean something else where
 * it is replayed, or that is too long to be kept, makes its SET one that could not be read. */
#include "pg/session_int.h"

#include <stdlib.h>
#include <string.h>

#define VERBS_OPAQUE (PRT_SQL(OPAQUE) | PRT_SQL(LOAD) | PRT_SQL(STICKY))
#define FORGETS                                                                                    \
    (PRT_SQL(DEALLOCATE) | PRT_SQL(DEALLOCATE_ALL) | PRT_SQL(DISCARD_ALL) |                        \
     PRT_SQL(DISCARD_PLANS) | PRT_SQL(DISCARD_SEQUENCES) | PRT_SQL(DISCARD_TEMP))

/* ---- bytes ---- */
static char lower(char c)
{
    return (char)(c >= 'A' && c <= 'Z' ? c + 32 : c);
}

static bool is_word(char c)
{
    char l = lower(c);

    return (l >= 'a' && l <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '$' ||
           (unsigned char)c >= 0x80;
}

/* Parameters have no case. */
static bool same_name(struct prt_str a, struct prt_str b)
{
    for (size_t i = 0; i < a.n && i < b.n; i++) {
        if (lower(a.p[i]) != lower(b.p[i])) {
            return false;
        }
    }
    return a.n == b.n;
}

/* ---- texts of which only a part was read ---- */
/* id, how it begins, and whether more may follow */
static const struct {
    const char *word;
    bool is_prefix;
    uint8_t bit;
} telling[] = {
    {"temp", false, PRT_HIDES_TEMP},
    {"temporary", false, PRT_HIDES_TEMP},
    {"pg_temp", true, PRT_HIDES_TEMP},
    {"set_config", false, PRT_HIDES_CONFIG},
    {"setseed", false, PRT_HIDES_FUNCTION},
    {"dblink_connect", true, PRT_HIDES_FUNCTION},
    {"pg_advisory_lock", true, PRT_HIDES_FUNCTION},
    {"pg_try_advisory_lock", true, PRT_HIDES_FUNCTION},
    {"deallocate", false, PRT_HIDES_DROP},
    {"discard", false, PRT_HIDES_DROP},
};

static unsigned hides_of_word(struct prt_str w)
{
    for (size_t i = 0; i < sizeof telling / sizeof *telling; i++) {
        size_t n = strlen(telling[i].word), k = 0;
        while (k < n && k < w.n && lower(w.p[k]) == telling[i].word[k]) {
            k++;
        }
        if (k == n && (w.n == n || telling[i].is_prefix)) {
            return telling[i].bit;
        }
    }
    return 0;
}

/* Words of the whole text, quoted or not: a long INSERT is no reason to pin a session, unless it
 * names something that could be. U&"" can spell any name. */
static unsigned hides_of(struct prt_str sql)
{
    unsigned hides = 0;

    for (size_t i = 0; i < sql.n && sql.p[i];) {
        size_t start = i;
        while (i < sql.n && is_word(sql.p[i])) {
            i++;
        }
        if (i == start) {
            i++;
            continue;
        }
        if (i - start == 1 && lower(sql.p[start]) == 'u' && sql.n - i >= 2 && sql.p[i] == '&' &&
            sql.p[i + 1] == '"') {
            return PRT_HIDES_TEMP | PRT_HIDES_CONFIG | PRT_HIDES_FUNCTION | PRT_HIDES_DROP;
        }
        hides |= hides_of_word((struct prt_str){sql.p + start, i - start});
    }
    return hides;
}

/* ---- values ---- */
/* The end of what begins with the quote at v.p[i]: behind its closing quote; 0: not a literal that
 * means the same under any standard_conforming_strings. */
static size_t quoted_end(struct prt_str v, size_t i, bool escapes)
{
    char quote = v.p[i++];

    for (; i < v.n; i++) {
        if (v.p[i] == '\\' && quote == '\'') {
            if (!escapes) {
                return 0;
            }
            i++;
        } else if (v.p[i] == quote) {
            if (i + 1 == v.n || v.p[i + 1] != quote) {
                return i + 1;
            }
            i++;
        }
    }
    return 0;
}

/* A character that may stand outside of quotes: words, numbers, lists. Neither a comment, which
 * would swallow what comes behind it, nor what could end the statement. */
static bool is_harmless(struct prt_str v, size_t i)
{
    char c = v.p[i];

    if (c == '-') {
        return i + 1 == v.n || v.p[i + 1] != '-';
    }
    return c != '$' && (is_word(c) || (c && strchr(" \t\n\r\f\v,.+", c)));
}

/* The lexer has said that it is a value. It goes into SQL of ours, next to other clients' none the
 * less, so its bytes are looked at once more. */
static bool is_replayable(struct prt_str v)
{
    for (size_t i = 0; i < v.n;) {
        bool begins = i == 0 || !is_word(v.p[i - 1]);
        bool is_e = begins && lower(v.p[i]) == 'e' && v.n - i > 1 && v.p[i + 1] == '\'';

        if (is_e || v.p[i] == '\'' || v.p[i] == '"') {
            i = begins ? quoted_end(v, i + is_e, is_e) : 0;
            if (i == 0) {
                return false;
            }
        } else if (!is_harmless(v, i++)) {
            return false;
        }
    }
    return true;
}

/* ---- one statement ---- */
unsigned prt_stmt_remains(const struct prt_sql_stmt *st)
{
    return (st->flags & PRT_SQL(ADVISORY) ? PRT_STATE_BIT(ADVISORY) : 0) |
           (st->flags & VERBS_OPAQUE ? PRT_STATE_BIT(OPAQUE) : 0);
}

static unsigned states_of_sets(const struct prt_sql_stmt *st)
{
    unsigned states = st->has_unknown_set ? PRT_STATE_BIT(SETTING) : 0;

    for (unsigned i = 0; i < st->n_sets; i++) {
        enum prt_set_kind kind = prt_set_kind_of(st->set[i].name);
        if (kind == PRT_SET_OPAQUE) {
            states |= PRT_STATE_BIT(SETTING);
        } else if ((kind == PRT_SET_ROLE || kind == PRT_SET_AUTH) && st->set[i].value.n) {
            states |= PRT_STATE_BIT(ROLE);
        }
    }
    return states;
}

unsigned prt_stmt_states(const struct prt_sql_stmt *st)
{
    unsigned states = prt_stmt_remains(st);

    states |= st->flags & PRT_SQL(TEMP) ? PRT_STATE_BIT(TEMP) : 0;
    states |= st->flags & PRT_SQL(HOLD) ? PRT_STATE_BIT(HOLD) : 0;
    states |= st->flags & PRT_SQL(LISTEN) ? PRT_STATE_BIT(LISTEN) : 0;
    states |= st->flags & PRT_SQL(PREPARE) ? PRT_STATE_BIT(PREPARE) : 0;
    if (st->flags & PRT_SQL(LOCAL) && !(st->flags & PRT_SQL(SETCONFIG))) {
        return states;
    }
    if (st->flags & (PRT_SQL(ROLE) | PRT_SQL(AUTH)) && st->role_to == PRT_SQL_ROLE_NAMED) {
        states |= PRT_STATE_BIT(ROLE);
    }
    return states | states_of_sets(st);
}

/* ---- making one ---- */
static struct prt_str keep(char **room, struct prt_str s, bool folds)
{
    char *p = *room;

    for (size_t i = 0; i < s.n; i++) {
        p[i] = folds ? lower(s.p[i]) : s.p[i];
    }
    *room += s.n;
    return (struct prt_str){s.n ? p : NULL, s.n};
}

static size_t room_of(const struct prt_sql_stmt *st)
{
    size_t n = st->name.n;

    for (unsigned i = 0; i < st->n_sets; i++) {
        n += st->set[i].name.n + 1 + st->set[i].value.n;
    }
    return n;
}

/* false: cannot be replayed. */
static bool keep_set(char **room, const struct prt_sql_set *from, struct prt_sql_set *to)
{
    if (!from->name.n || from->name.n > PRT_JOURNAL_NAME || from->value.n > PRT_JOURNAL_VALUE ||
        !is_replayable(from->value)) {
        return false;
    }
    *to = (struct prt_sql_set){
        .name = keep(room, from->name, true), .is_config = from->is_config, .column = from->column};
    *(*room)++ = from->is_config ? PRT_JOURNAL_LITERAL : PRT_JOURNAL_RAW;
    to->value = keep(room, from->value, false);
    return true;
}

static void keep_stmt(char **room, const struct prt_sql_stmt *from, struct prt_sql_stmt *to)
{
    *to = *from;
    memset(to->set, 0, sizeof to->set);
    to->n_sets = 0;
    to->name = keep(room, from->name, (from->flags & PRT_SQL(RESET)) != 0);
    for (unsigned i = 0; i < from->n_sets; i++) {
        if (keep_set(room, &from->set[i], &to->set[to->n_sets])) {
            to->n_sets++;
            to->wants_row |= from->set[i].column != 0;
        } else {
            to->has_unknown_set = true;
        }
    }
}

static bool is_listen(const struct prt_sql_stmt *st)
{
    return st->flags & PRT_SQL(LISTEN);
}

/* Are the ends of its statements sure, and a place in it the same in characters and in bytes? */
static bool is_simple(struct prt_str sql)
{
    for (size_t i = 0; i < sql.n; i++) {
        if ((unsigned char)sql.p[i] >= 0x80 || sql.p[i] == '\\') {
            return false;
        }
    }
    return true;
}

/* UNLISTEN takes all that LISTEN takes, and * as well. */
static bool can_fan_out(const struct prt_effects *e, struct prt_str sql)
{
    static const struct prt_str verb = PRT_STR("listen");
    unsigned n = 0;

    for (unsigned i = 0; i < e->n; i++) {
        const struct prt_sql_stmt *st = &e->stmt[i];
        if (!is_listen(st)) {
            continue;
        }
        n++;
        if (!st->name.n || sql.n - st->at < verb.n ||
            !same_name((struct prt_str){sql.p + st->at, verb.n}, verb)) {
            return false;
        }
    }
    return n && !e->is_cut && (e->n == 1 || is_simple(sql));
}

struct prt_effects *prt_effects_make(const struct prt_sql *read, struct prt_str sql)
{
    size_t size = sizeof(struct prt_effects) + read->n * sizeof *read->stmt;
    struct prt_effects *e;
    char *room;

    for (unsigned i = 0; i < read->n; i++) {
        size += room_of(&read->stmt[i]);
    }
    e = calloc(1, size);
    if (!e) {
        return NULL;
    }
    atomic_init(&e->refs, 1);
    e->is_cut = read->is_cut || read->flags & PRT_SQL(UNFINISHED);
    e->hides = e->is_cut ? (uint8_t)hides_of(sql) : 0;
    e->n = read->n;
    e->flags = read->flags;
    room = (char *)&e->stmt[e->n];
    for (unsigned i = 0; i < e->n; i++) {
        keep_stmt(&room, &read->stmt[i], &e->stmt[i]);
        e->states |= prt_stmt_states(&e->stmt[i]);
        e->wants_rows |= e->stmt[i].wants_row;
    }
    e->fans_out = can_fan_out(e, sql);
    if (e->hides & (PRT_HIDES_TEMP | PRT_HIDES_CONFIG | PRT_HIDES_FUNCTION)) {
        e->states |= PRT_STATE_BIT(OPAQUE);
    }
    prt_assert((size_t)(room - (char *)e) <= size);
    return e;
}

struct prt_effects *prt_effects_of(struct prt_str sql, bool scs, bool *failed)
{
    struct prt_sql read;
    struct prt_effects *e;

    *failed = false;
    if (prt_sql_is_plain(sql)) {
        return NULL;
    }
    prt_sql_read(sql, scs, &read);
    /* SET TRANSACTION is LOCAL, PREPARE TRANSACTION is TWOPHASE: what their tags mean is in the
     * text */
    if (!read.is_cut && !(read.flags & (PRT_SQL_SESSION_FLAGS | PRT_SQL(LOCAL) | PRT_SQL(TWOPHASE) |
                                        PRT_SQL(UNFINISHED)))) {
        return NULL;
    }
    e = prt_effects_make(&read, sql);
    *failed = !e;
    return e;
}

struct prt_effects *prt_effects_ref(struct prt_effects *e)
{
    if (e) {
        /* relaxed: the caller has a reference, so it sees the object already */
        (void)atomic_fetch_add_explicit(&e->refs, 1, memory_order_relaxed);
    }
    return e;
}

void prt_effects_unref(struct prt_effects *e)
{
    uint32_t before;

    if (!e) {
        return;
    }
    /* release for those who go on before, acquire for the one who frees: pairs with itself */
    before = atomic_fetch_sub_explicit(&e->refs, 1, memory_order_acq_rel);
    prt_assert(before != 0);
    if (before == 1) {
        free(e);
    }
}

/* ---- asking ---- */
uint64_t prt_effects_flags(const struct prt_effects *e)
{
    return e ? e->flags : 0;
}

unsigned prt_effects_states(const struct prt_effects *e)
{
    return e ? e->states : 0;
}

const struct prt_sql_stmt *prt_effects_only(const struct prt_effects *e)
{
    return e && e->n == 1 && !e->is_cut ? &e->stmt[0] : NULL;
}

bool prt_effects_fans_out(const struct prt_effects *e)
{
    return e && e->fans_out;
}

const struct prt_sql_stmt *prt_effects_listen(const struct prt_effects *e, unsigned nth,
                                              unsigned *n)
{
    *n = e ? e->n : 0;
    return nth < *n && is_listen(&e->stmt[nth]) ? &e->stmt[nth] : NULL;
}

bool prt_effects_wants_rows(const struct prt_effects *e)
{
    return e && e->wants_rows;
}

bool prt_effects_deallocates(const struct prt_effects *e)
{
    return e && (e->flags & FORGETS || e->hides & PRT_HIDES_DROP);
}

/* Does the statement return `name` to its reset value (1), give it another (0), or neither (-1)? */
static int resets_name(const struct prt_sql_stmt *st, struct prt_str name)
{
    if (st->flags & (PRT_SQL(RESET_ALL) | PRT_SQL(DISCARD_ALL))) {
        return 1;
    }
    if (st->flags & PRT_SQL(LOCAL)) {
        return -1;
    }
    if (st->flags & PRT_SQL(RESET)) {
        return same_name(st->name, name) ? 1 : -1;
    }
    for (unsigned i = st->n_sets; i-- > 0;) {
        if (same_name(st->set[i].name, name)) {
            return st->set[i].value.n == 0 && st->set[i].column == 0;
        }
    }
    return -1;
}

/* The last statement that has to do with `name` resets it. */
static bool ends_reset(const struct prt_effects *e, struct prt_str name)
{
    for (unsigned i = e->n; i-- > 0;) {
        int r = resets_name(&e->stmt[i], name);
        if (r >= 0) {
            return r;
        }
    }
    return false;
}

bool prt_effects_resets(const struct prt_effects *e, const struct prt_params *told,
                        const struct prt_params *startup, const struct prt_params **want)
{
    bool any = false;

    *want = prt_params_ref(told);
    for (unsigned i = 0; e && i < prt_params_count(startup); i++) {
        struct prt_str name, value;
        prt_params_at(startup, i, &name, &value);
        if (prt_params_is_tracked(name) && ends_reset(e, name)) {
            any = true;
            *want = prt_params_with(*want, name, value);
        }
    }
    return any;
}
