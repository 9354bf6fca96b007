/* params.c - sets of reported session parameters, interned.
 * Owns: every set, from the first reference to the last, and the table that finds equal ones.
 * Threads: any. A set never changes, so only the table has a lock, and the counters are atomic.
 * Idea: thousands of clients share a handful of sets, and "does this server fit this client" is one
 * comparison of pointers. The key is the bytes of the set itself: entries sorted by name without
 * case. Parameters that PostgreSQL knows get PostgreSQL's spelling, so that a client that writes
 * TIMEZONE does not change what the others are told. */
#include "base/hash.h"
#include "pg/pg.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define PARAMS_MAX 128 /* a server that reports more is not believed: the rest is left out */

struct entry {
    uint32_t name_at, name_n, value_at, value_n; /* into text */
};
struct prt_params {
    struct prt_map_node node; /* under mu; the key is e[] and the text, one block */
    _Atomic uint32_t refs; /* atomic, any thread: clients, servers, callers. 1 -> 0 only under mu */
    uint32_t count;        /* set at creation, like all below */
    const struct prt_params *env; /* what is baked in at Parse; counted. NULL: the set itself */
    const char *text;             /* behind e[] */
    struct entry e[];
};

static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER; /* innermost: nothing is called under it */
static struct prt_map table;                           /* under mu */
static const struct prt_params empty = {.text = ""};   /* not in the table, not counted */

/* What servers report, as of PostgreSQL 18; `always`: every version that is still supported does.
 */
static const struct {
    const char *name;
    bool is_settable, always;
} known[] = {
    {"application_name", true, true},
    {"client_encoding", true, true},
    {"DateStyle", true, true},
    {"default_transaction_read_only", true, true},
    {"in_hot_standby", false, true},
    {"integer_datetimes", false, true},
    {"IntervalStyle", true, true},
    {"is_superuser", false, true},
    {"scram_iterations", true, false},
    {"search_path", true, false},
    {"server_encoding", false, true},
    {"server_version", false, true},
    {"session_authorization", false, true},
    {"standard_conforming_strings", true, true},
    {"TimeZone", true, true},
};
#define KNOWN (sizeof known / sizeof *known)

/* ---- names ---- */
static unsigned char lower(char c)
{
    return (unsigned char)(c >= 'A' && c <= 'Z' ? c + 32 : c);
}

static int compare(struct prt_str a, struct prt_str b)
{
    for (size_t i = 0; i < a.n && i < b.n; i++) {
        int d = lower(a.p[i]) - lower(b.p[i]);
        if (d) {
            return d;
        }
    }
    return a.n == b.n ? 0 : a.n < b.n ? -1 : 1;
}

/* Row of `known`, or -1. */
static int known_row(struct prt_str name)
{
    for (size_t i = 0; i < KNOWN; i++) {
        if (compare(name, prt_str_of(known[i].name)) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static bool is_read_only(struct prt_str name)
{
    int row = known_row(name);

    return row >= 0 && !known[row].is_settable;
}

bool prt_params_is_tracked(struct prt_str name)
{
    int row = known_row(name);

    return row >= 0 && known[row].is_settable && known[row].always;
}

/* ---- reading a set ---- */
static struct prt_str name_of(const struct prt_params *set, unsigned i)
{
    return (struct prt_str){set->text + set->e[i].name_at, set->e[i].name_n};
}

static struct prt_str value_of(const struct prt_params *set, unsigned i)
{
    return (struct prt_str){set->text + set->e[i].value_at, set->e[i].value_n};
}

/* Where the name is, or where it belongs. */
static bool find(const struct prt_params *set, struct prt_str name, unsigned *at)
{
    unsigned lo = 0, hi = set->count;

    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;
        int d = compare(name, name_of(set, mid));
        if (d == 0) {
            *at = mid;
            return true;
        }
        if (d < 0) {
            hi = mid;
        } else {
            lo = mid + 1;
        }
    }
    *at = lo;
    return false;
}

bool prt_params_get(const struct prt_params *set, struct prt_str name, struct prt_str *value)
{
    unsigned at;

    if (!find(set, name, &at)) {
        *value = (struct prt_str){NULL, 0};
        return false;
    }
    *value = value_of(set, at);
    return true;
}

bool prt_text_is_ascii(struct prt_str s)
{
    for (size_t i = 0; i < s.n; i++) {
        if ((unsigned char)s.p[i] >= 0x80) {
            return false;
        }
    }
    return true;
}

bool prt_params_is_ascii(const struct prt_params *set)
{
    struct prt_str name, value;

    for (unsigned i = 0; i < prt_params_count(set); i++) {
        prt_params_at(set, i, &name, &value);
        if (!prt_text_is_ascii(name) || !prt_text_is_ascii(value)) {
            return false;
        }
    }
    return true;
}

unsigned prt_params_count(const struct prt_params *set)
{
    return set->count;
}

void prt_params_at(const struct prt_params *set, unsigned i, struct prt_str *name,
                   struct prt_str *value)
{
    prt_assert(i < set->count);
    *name = name_of(set, i);
    *value = value_of(set, i);
}

/* ---- references ---- */
static struct prt_params *counted(const struct prt_params *set)
{
    /* callers hold sets as const: only this file writes, and only the counter */
    return (struct prt_params *)(uintptr_t)set;
}

const struct prt_params *prt_params_empty(void)
{
    return &empty;
}

const struct prt_params *prt_params_ref(const struct prt_params *set)
{
    if (set != &empty) {
        /* relaxed: the caller has a reference, so the set is visible to it already */
        (void)atomic_fetch_add_explicit(&counted(set)->refs, 1, memory_order_relaxed);
    }
    return set;
}

void prt_params_unref(const struct prt_params *set)
{
    struct prt_params *s;
    uint32_t refs;

    if (!set || set == &empty) {
        return;
    }
    s = counted(set);
    refs = atomic_load_explicit(&s->refs, memory_order_relaxed);
    while (refs > 1) {
        /* release: pairs with the acquire of the one who frees */
        if (atomic_compare_exchange_weak_explicit(&s->refs, &refs, refs - 1, memory_order_release,
                                                  memory_order_relaxed)) {
            return;
        }
    }
    /* perhaps the last: under the lock, because `intern` hands out references under it */
    (void)pthread_mutex_lock(&mu);
    refs = atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel);
    prt_assert(refs != 0);
    if (refs == 1) {
        prt_map_del(&table, &s->node);
    }
    (void)pthread_mutex_unlock(&mu);
    if (refs == 1) {
        prt_params_unref(s->env); /* which has none of its own */
        free(s);
    }
}

/* A set that was never in the table. */
static void discard(struct prt_params *s)
{
    prt_params_unref(s->env);
    free(s);
}

/* Takes a set that is not in the table; returns the one that is, with a reference, or NULL. */
static const struct prt_params *intern(struct prt_params *s)
{
    struct prt_str key = {(const char *)s->e, 0};
    struct prt_map_node *there;

    for (unsigned i = 0; i < s->count; i++) {
        key.n += sizeof *s->e + s->e[i].name_n + s->e[i].value_n;
    }
    (void)pthread_mutex_lock(&mu);
    there = prt_map_get(&table, key);
    if (there) {
        struct prt_params *old = prt_container_of(there, struct prt_params, node);
        (void)atomic_fetch_add_explicit(&old->refs, 1, memory_order_relaxed);
        (void)pthread_mutex_unlock(&mu);
        discard(s);
        return old;
    }
    if (!prt_map_put(&table, &s->node, key)) {
        (void)pthread_mutex_unlock(&mu);
        discard(s);
        return NULL;
    }
    (void)pthread_mutex_unlock(&mu);
    return s;
}

/* ---- making a set ---- */
static uint32_t append(char *text, uint32_t *n, struct prt_str s)
{
    uint32_t at = *n;

    if (s.n) {
        memcpy(text + at, s.p, s.n);
    }
    *n += (uint32_t)s.n;
    return at;
}

/* A copy of `from` with room for one more: entry `at` is (name, value), instead of the old one if
 * `replaces`. Not interned yet; NULL: no memory. */
static struct prt_params *copy_with(const struct prt_params *from, unsigned at, bool replaces,
                                    struct prt_str name, struct prt_str value)
{
    unsigned count = from->count + !replaces;
    size_t size = sizeof *from + count * sizeof *from->e + name.n + value.n;
    struct prt_params *s;
    uint32_t n = 0;
    char *text;

    for (unsigned i = 0; i < from->count; i++) {
        size += (size_t)from->e[i].name_n + from->e[i].value_n;
    }
    s = calloc(1, size);
    if (!s) {
        return NULL;
    }
    atomic_init(&s->refs, 1);
    s->count = count;
    s->text = text = (char *)&s->e[count];
    for (unsigned i = 0; i < count; i++) {
        unsigned old = i > at && !replaces ? i - 1 : i;
        struct prt_str k = i == at ? name : name_of(from, old);
        struct prt_str v = i == at ? value : value_of(from, old);
        s->e[i].name_at = append(text, &n, k);
        s->e[i].name_n = (uint32_t)k.n;
        s->e[i].value_at = append(text, &n, v);
        s->e[i].value_n = (uint32_t)v.n;
    }
    return s;
}

/* ---- what is baked into a statement ---- */
static bool is_of_env(struct prt_str name)
{
    static const char *const names[] = {"client_encoding", "DateStyle", "IntervalStyle",
                                        "standard_conforming_strings", "TimeZone"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (compare(name, prt_str_of(names[i])) == 0) {
            return true;
        }
    }
    return false;
}

/* Give a new set its env. A set of nothing else is its own. false: no memory. */
static bool set_env(struct prt_params *s)
{
    const struct prt_params *env = &empty;
    unsigned n = 0;

    for (unsigned i = 0; i < s->count; i++) {
        n += is_of_env(name_of(s, i));
    }
    if (n == s->count) {
        return true;
    }
    for (unsigned i = 0; i < s->count; i++) {
        if (is_of_env(name_of(s, i))) {
            env = prt_params_with(env, name_of(s, i), value_of(s, i));
        }
    }
    if (env->count != n) {
        prt_params_unref(env);
        return false;
    }
    s->env = env;
    return true;
}

const struct prt_params *prt_params_parse_env(const struct prt_params *set)
{
    return set->env ? set->env : set;
}

/* A copy of `from` without entry `at`. Not interned yet; NULL: no memory. */
static struct prt_params *copy_without(const struct prt_params *from, unsigned at)
{
    size_t size = sizeof *from + (from->count - 1) * sizeof *from->e;
    struct prt_params *s;
    uint32_t n = 0;
    char *text;

    for (unsigned i = 0; i < from->count; i++) {
        size += i == at ? 0 : (size_t)from->e[i].name_n + from->e[i].value_n;
    }
    s = calloc(1, size);
    if (!s) {
        return NULL;
    }
    atomic_init(&s->refs, 1);
    s->count = from->count - 1;
    s->text = text = (char *)&s->e[s->count];
    for (unsigned i = 0; i < s->count; i++) {
        struct prt_str k = name_of(from, i + (i >= at)), v = value_of(from, i + (i >= at));
        s->e[i].name_at = append(text, &n, k);
        s->e[i].name_n = (uint32_t)k.n;
        s->e[i].value_at = append(text, &n, v);
        s->e[i].value_n = (uint32_t)v.n;
    }
    return s;
}

/* The interned twin of the copy in place of `set`; both are taken. No memory: `set` stays. */
static const struct prt_params *exchange(const struct prt_params *set, struct prt_params *copy)
{
    const struct prt_params *made;

    if (copy && !set_env(copy)) {
        discard(copy);
        copy = NULL;
    }
    made = copy ? intern(copy) : NULL;
    if (!made) {
        return set;
    }
    prt_params_unref(set);
    return made;
}

const struct prt_params *prt_params_with(const struct prt_params *set, struct prt_str name,
                                         struct prt_str value)
{
    unsigned at;
    int row = known_row(name);
    bool replaces = find(set, name, &at);

    if (replaces && prt_str_eq(value_of(set, at), value)) {
        return set;
    }
    if (!replaces && set->count == PARAMS_MAX) {
        return set;
    }
    if (name.n > PRT_BUF_MAX || value.n > PRT_BUF_MAX) {
        return set;
    }
    if (replaces) {
        name = name_of(set, at);
    } else if (row >= 0) {
        name = prt_str_of(known[row].name);
    }
    return exchange(set, copy_with(set, at, replaces, name, value));
}

const struct prt_params *prt_params_without(const struct prt_params *set, struct prt_str name)
{
    unsigned at;

    if (!find(set, name, &at)) {
        return set;
    }
    if (set->count > 1) {
        return exchange(set, copy_without(set, at));
    }
    prt_params_unref(set);
    return prt_params_empty();
}

/* ---- the SQL that makes a server fit ---- */
#define APPLICATION_NAME_MAX 63

/* What PostgreSQL itself makes of any application_name: printable ASCII, cut. Raw bytes would fail
 * the whole query where they are no text in the server connection's encoding. */
static struct prt_str clean_application_name(struct prt_str v, char out[APPLICATION_NAME_MAX])
{
    size_t n = v.n < APPLICATION_NAME_MAX ? v.n : APPLICATION_NAME_MAX;

    for (size_t i = 0; i < n; i++) {
        out[i] = v.p[i] >= 0x20 && v.p[i] <= 0x7e ? v.p[i] : '?';
    }
    return (struct prt_str){out, n};
}

/* Letters, digits, _ and dots between: what goes into SQL as it is. */
static bool is_plain_name(struct prt_str name)
{
    for (size_t i = 0; i < name.n; i++) {
        unsigned char c = lower(name.p[i]);
        bool starts = (c >= 'a' && c <= 'z') || c == '_';
        bool follows = (c >= '0' && c <= '9') || c == '.';
        if (!starts && (i == 0 || !follows)) {
            return false;
        }
    }
    return name.n != 0;
}

static void add(struct prt_buf *b, struct prt_str s)
{
    (void)prt_buf_add(b, s.p, s.n);
}

/* A literal that means v whatever standard_conforming_strings and client_encoding say: a quote is
 * never the second byte of a character in any encoding of PostgreSQL, but a backslash can be, so
 * where one stands it and every byte that is not ASCII become octal escapes. */
static void add_literal(struct prt_buf *b, struct prt_str v)
{
    bool escapes = v.n && memchr(v.p, '\\', v.n);

    add(b, escapes ? PRT_STR("E'") : PRT_STR("'"));
    for (size_t i = 0; i < v.n; i++) {
        unsigned char c = (unsigned char)v.p[i];
        if (c == '\'') {
            add(b, PRT_STR("''"));
        } else if (escapes && (c == '\\' || c >= 0x80)) {
            char octal[4] = {'\\', (char)('0' + (c >> 6)), (char)('0' + (c >> 3 & 7)),
                             (char)('0' + (c & 7))};
            (void)prt_buf_add(b, octal, sizeof octal);
        } else {
            (void)prt_buf_add(b, v.p + i, 1);
        }
    }
    add(b, PRT_STR("'"));
}

static void add_set(struct prt_buf *b, struct prt_str name, struct prt_str value)
{
    if (compare(name, PRT_STR("search_path")) == 0) {
        /* SET would take the reported list for one schema's name */
        add(b, PRT_STR("SELECT pg_catalog.set_config('search_path', "));
        add_literal(b, value);
        add(b, PRT_STR(", false);"));
        return;
    }
    add(b, PRT_STR("SET "));
    add(b, name);
    add(b, PRT_STR(" = "));
    add_literal(b, value);
    add(b, PRT_STR(";"));
}

unsigned prt_params_diff(const struct prt_params *have, const struct prt_params *want,
                         struct prt_buf *sql)
{
    unsigned n = 0;

    if (have == want) {
        return 0;
    }
    for (unsigned i = 0; i < want->count; i++) {
        struct prt_str name = name_of(want, i), value = value_of(want, i), now;
        char clean[APPLICATION_NAME_MAX];

        if (!prt_params_get(have, name, &now) || is_read_only(name) || !is_plain_name(name) ||
            (value.n && memchr(value.p, 0, value.n))) {
            continue;
        }
        if (compare(name, PRT_STR("application_name")) == 0) {
            value = clean_application_name(value, clean);
        }
        if (!prt_str_eq(now, value)) {
            add_set(sql, name, value);
            n++;
        }
    }
    return n;
}
