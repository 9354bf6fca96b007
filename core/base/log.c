/* log.c - one event, one line, one write(2).
 * Owns: the level; the test's sink.   Threads: any, without a lock.
 * Idea: a line is built on the stack and is never longer than PIPE_BUF, so the kernel keeps lines
 * of several threads apart and no lock or allocation is needed. Values come from clients: whatever
 * could end a line or a field, or speak to a terminal, is escaped here and nowhere else. */
#include "base/log.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LINE_MAX_BYTES 4096
#define TAIL 48 /* kept for " repeated=4294967295 left_out=4294967295\n" */
#define VALUE_MAX 1024
#define KEY_MAX 63
#define QUIET_US 10000000

static_assert(LINE_MAX_BYTES <= PIPE_BUF, "one write is one line");

struct line {
    size_t n, end; /* end: fields may be written up to here */
    char p[LINE_MAX_BYTES];
};

static const char *const level_names[] = {"debug", "info", "warn", "error"};

static _Atomic int lowest = PRT_LOG_INFO;
static void (*_Atomic sink_fn)(const char *line, size_t n);

void prt_log_set_level(enum prt_log_level level)
{
    /* relaxed: a filter that orders nothing else */
    atomic_store_explicit(&lowest, (int)level, memory_order_relaxed);
}

bool prt_log_on(enum prt_log_level level)
{
    return (int)level >= atomic_load_explicit(&lowest, memory_order_relaxed);
}

bool prt_log_level_of(struct prt_str name, enum prt_log_level *out)
{
    for (int i = PRT_LOG_DEBUG; i <= PRT_LOG_ERROR; i++) {
        if (prt_str_eqz(name, level_names[i])) {
            *out = (enum prt_log_level)i;
            return true;
        }
    }
    return false;
}

void prt_log_set_sink(void (*sink)(const char *line, size_t n))
{
    /* release pairs with the acquire in emit: what the sink uses is ready */
    atomic_store_explicit(&sink_fn, sink, memory_order_release);
}

static bool put(struct line *l, const char *p, size_t n)
{
    if (n > l->end - l->n) {
        return false;
    }
    memcpy(l->p + l->n, p, n);
    l->n += n;
    return true;
}

/* ---- characters ---- */

/* Length of the well-formed UTF-8 character at p (n > 0), and which one it is; 0 when it is none:
 * too short, too long a form, a surrogate, beyond U+10FFFF. */
static size_t utf8_at(const uint8_t *p, size_t n, uint32_t *code)
{
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t len = p[0] < 0x80 ? 1 : p[0] < 0xc0 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;

    if (len == 0 || len > n || p[0] > 0xf4) {
        return 0;
    }
    *code = len == 1 ? p[0] : p[0] & 0x7fu >> len;
    for (size_t i = 1; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80) {
            return 0;
        }
        *code = *code << 6 | (p[i] & 0x3f);
    }
    if (*code < smallest[len] || *code > 0x10ffff || (*code >= 0xd800 && *code <= 0xdfff)) {
        return 0;
    }
    return len;
}

/* Controls of ASCII and of C1 (U+0085 ends a line for some readers, U+009B commands a terminal),
 * the other ends of line, and what turns the direction of writing round. */
static bool is_shown(uint32_t c)
{
    return c >= 0x20 && !(c >= 0x7f && c <= 0x9f) && c != 0x2028 && c != 0x2029 &&
           !(c >= 0x200e && c <= 0x200f) && !(c >= 0x202a && c <= 0x202e) &&
           !(c >= 0x2066 && c <= 0x2069) && c != 0xfeff;
}

struct glyph {
    size_t used; /* bytes of the value, at least 1 */
    size_t n;    /* bytes in text */
    char text[16];
};

static void glyph_hex(struct glyph *g, const uint8_t *p, size_t used)
{
    static const char hex[] = "0123456789abcdef";

    g->used = used;
    g->n = 0;
    for (size_t i = 0; i < used; i++) {
        g->text[g->n++] = '\\';
        g->text[g->n++] = 'x';
        g->text[g->n++] = hex[p[i] >> 4];
        g->text[g->n++] = hex[p[i] & 15];
    }
}

/* the next character of a value as it stands between quotes */
static struct glyph glyph_at(const uint8_t *p, size_t n)
{
    static const char plain[] = "\"\\\n\r\t", letter[] = "\"\\nrt";
    struct glyph g = {.used = 1};
    uint32_t code;
    size_t len = utf8_at(p, n, &code);
    const char *at = len == 1 && code ? strchr(plain, (int)code) : NULL;

    if (at) {
        g.text[0] = '\\';
        g.text[1] = letter[at - plain];
        g.n = 2;
    } else if (len && is_shown(code)) {
        memcpy(g.text, p, len);
        g.used = g.n = len;
    } else {
        glyph_hex(&g, p, len ? len : 1);
    }
    return g;
}

static bool wants_quotes(struct prt_str s)
{
    const uint8_t *p = (const uint8_t *)s.p;

    for (size_t i = 0; i < s.n;) {
        struct glyph g = glyph_at(p + i, s.n - i);
        if (g.text[0] == '\\' || g.text[0] == ' ' || g.text[0] == '=') {
            return true;
        }
        i += g.used;
    }
    return s.n == 0;
}

/* ---- fields ---- */

/* At most `max` bytes of s, not ending inside a character. */
static struct prt_str cut_to(struct prt_str s, size_t max)
{
    if (s.n <= max) {
        return s;
    }
    s.n = max;
    for (int i = 0; i < 3 && s.n && (s.p[s.n] & 0xc0) == 0x80; i++) {
        s.n--;
    }
    return s;
}

/* The caller made sure of room for `"..."`, so that a value is cut but never left open. */
static void put_value(struct line *l, struct prt_str whole)
{
    struct prt_str s = cut_to(whole, VALUE_MAX);
    bool quoted = wants_quotes(s), cut = s.n < whole.n;
    size_t end = l->end;

    if (quoted) {
        (void)put(l, "\"", 1);
    }
    l->end = end - 4; /* the mark and the closing quote */
    for (size_t i = 0; i < s.n;) {
        struct glyph g = glyph_at((const uint8_t *)s.p + i, s.n - i);
        if (!put(l, g.text, g.n)) {
            cut = true;
            break;
        }
        i += g.used;
    }
    l->end = end;
    if (cut) {
        (void)put(l, "...", 3);
    }
    if (quoted) {
        (void)put(l, "\"", 1);
    }
}

/* Keys are our words, but a policy written in Lua chooses its own. */
static void put_key(struct line *l, const char *key, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char c = key[i];
        bool fine = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                    c == '_' || c == '.' || c == '-';
        (void)put(l, fine ? &key[i] : "_", 1);
    }
    (void)put(l, n ? "=" : "_=", n ? 1 : 2);
}

/* false: no room for a useful part of it */
static bool put_field(struct line *l, const char *key, struct prt_str value)
{
    size_t n = key ? strnlen(key, KEY_MAX) : 0;

    if (l->end - l->n < n + 24) {
        return false;
    }
    (void)put(l, " ", 1);
    put_key(l, key, n);
    put_value(l, value);
    return true;
}

static bool put_kv(struct line *l, const struct prt_kv *kv)
{
    char text[40];

    if (kv->kind == PRT_KV_STR) {
        return put_field(l, kv->key, kv->s);
    }
    if (kv->kind == PRT_KV_INT) {
        (void)snprintf(text, sizeof text, "%lld", (long long)kv->i);
    } else {
        (void)snprintf(text, sizeof text, "%.9g", kv->d);
    }
    return put_field(l, kv->key, prt_str_of(text));
}

/* Year, month and day of a day counted from 1970-01-01, Gregorian. By hand, because gmtime_r takes
 * libc's lock and may allocate. Years are taken from March on, so that the leap day comes last. */
static void date_of(int64_t day, int *year, int *month, int *mday)
{
    int64_t d = day + 719468; /* since 0000-03-01 */
    int64_t era = d / 146097, in_era = d % 146097;
    int64_t y = (in_era - in_era / 1460 + in_era / 36524 - in_era / 146096) / 365;
    int64_t in_year = in_era - (365 * y + y / 4 - y / 100);
    int64_t m = (5 * in_year + 2) / 153; /* 0 is March */

    *mday = (int)(in_year - (153 * m + 2) / 5) + 1;
    *month = (int)(m < 10 ? m + 3 : m - 9);
    *year = (int)(y + era * 400) + (*month <= 2);
}

static void put_head(struct line *l, enum prt_log_level level, const char *event)
{
    int64_t ms = prt_wall_us() / 1000, s = ms / 1000 % 86400;
    int year, month, mday;
    char text[96];

    date_of(ms / 86400000, &year, &month, &mday);
    (void)snprintf(text, sizeof text, "ts=%04d-%02d-%02dT%02d:%02d:%02d.%03dZ level=%s", year,
                   month, mday, (int)(s / 3600), (int)(s / 60 % 60), (int)(s % 60),
                   (int)(ms % 1000), level_names[level]);
    (void)put(l, text, strlen(text));
    (void)put_field(l, "event", prt_str_of(event));
}

static void put_tail(struct line *l, uint32_t repeated, size_t left_out)
{
    char text[TAIL];

    l->end = sizeof l->p;
    if (repeated) {
        (void)snprintf(text, sizeof text, " repeated=%u", repeated);
        (void)put(l, text, strlen(text));
    }
    if (left_out) {
        (void)snprintf(text, sizeof text, " left_out=%u", (unsigned)left_out);
        (void)put(l, text, strlen(text));
    }
    (void)put(l, "\n", 1);
}

static void emit(const struct line *l)
{
    void (*sink)(const char *, size_t) = atomic_load_explicit(&sink_fn, memory_order_acquire);

    if (sink) {
        sink(l->p, l->n);
        return;
    }
    while (write(STDERR_FILENO, l->p, l->n) < 0 && errno == EINTR) {
        /* nothing was written: again. Any other failure has nowhere to be reported. */
    }
}

/* false: leave this line out. Of several threads that come at once, one wins the exchange. */
static bool may_pass(struct prt_log_limit *limit, uint32_t *repeated)
{
    int64_t now = prt_now_us();
    /* relaxed throughout: these numbers guard no other data */
    int64_t next = atomic_load_explicit(&limit->next_us, memory_order_relaxed);

    if (now < next ||
        !atomic_compare_exchange_strong_explicit(&limit->next_us, &next, now + QUIET_US,
                                                 memory_order_relaxed, memory_order_relaxed)) {
        atomic_fetch_add_explicit(&limit->dropped, 1, memory_order_relaxed);
        return false;
    }
    *repeated = atomic_exchange_explicit(&limit->dropped, 0, memory_order_relaxed);
    return true;
}

void prt_log_write(enum prt_log_level level, struct prt_log_limit *limit, const char *event,
                   const struct prt_kv *kv, size_t n)
{
    struct line l;
    uint32_t repeated = 0;
    size_t done = 0;
    int kept = errno; /* a caller logs a failed call and then looks at its errno */

    if (!prt_log_on(level) || (limit && !may_pass(limit, &repeated))) {
        errno = kept;
        return;
    }
    l.n = 0;
    l.end = sizeof l.p - TAIL;
    put_head(&l, level, event);
    while (done < n && put_kv(&l, &kv[done])) {
        done++;
    }
    put_tail(&l, repeated, n - done);
    emit(&l);
    errno = kept;
}
