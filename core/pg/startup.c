/* startup.c - the first packet of a connection, and the settings in its `options`.
 * Owns: nothing, results point into the input.   Threads: any.
 * Idea: whoever sends this is nobody yet. The length is checked before a byte is kept, every string
 * must end inside the packet, and what is not our protocol gets no answer at all. */
#include "pg/pg.h"

#include <string.h>

#define HEADER 8 /* length and code */
#define CODE_CANCEL 80877102u
#define CODE_SSL 80877103u
#define CODE_GSS 80877104u
#define MAJOR 3
#define MINOR 2 /* newest of ours; 3.1 was never used */
#define CANCEL_KEY_MIN 4
#define CANCEL_KEY_MAX 256

static enum prt_startup_rc refuse(struct prt_err *err, const char *sqlstate, const char *text,
                                  struct prt_str what)
{
    int n = what.n < 80 ? (int)what.n : 80;

    (void)prt_fail(err, POOLRT_PROTOCOL, "%s%.*s", text, n, what.p ? what.p : "");
    if (err) {
        memcpy(err->sqlstate, sqlstate, sizeof err->sqlstate);
    }
    return PRT_STARTUP_ERROR;
}

/* The string at *at in s, up to its NUL; *at moves behind it. */
static bool next_string(struct prt_str s, size_t *at, struct prt_str *out)
{
    const char *end = *at < s.n ? memchr(s.p + *at, 0, s.n - *at) : NULL;

    if (!end) {
        return false;
    }
    *out = (struct prt_str){s.p + *at, (size_t)(end - s.p) - *at};
    *at += out->n + 1;
    return true;
}

static bool is_protocol_option(struct prt_str name)
{
    return name.n >= 5 && memcmp(name.p, "_pq_.", 5) == 0;
}

/* Pairs of strings and one final NUL, exactly. `list` is all behind the code. */
static bool is_well_formed(struct prt_str list)
{
    struct prt_str s;
    size_t at = 0;

    while (at < list.n && list.p[at] != 0) {
        if (!next_string(list, &at, &s) || !next_string(list, &at, &s)) {
            return false;
        }
    }
    return list.n && at == list.n - 1;
}

/* How many bytes of s are the beginning of `word` (lower case), whatever their case. */
static size_t common(struct prt_str s, const char *word)
{
    size_t k = 0;

    while (k < s.n && word[k]) {
        char c = s.p[k];
        if ((c >= 'A' && c <= 'Z' ? (char)(c + 32) : c) != word[k]) {
            break;
        }
        k++;
    }
    return k;
}

static bool is_application_name(struct prt_str name)
{
    static const char word[] = "application_name";

    return name.n == sizeof word - 1 && common(name, word) == name.n;
}

bool prt_startup_next(const struct prt_startup *s, size_t *at, struct prt_str *name,
                      struct prt_str *value)
{
    while (next_string(s->params, at, name) && next_string(s->params, at, value)) {
        if (!is_protocol_option(*name)) {
            return true;
        }
    }
    return false;
}

/* As PostgreSQL reads a Boolean: any unambiguous beginning, in any case. 1, 0, or -1. */
static int parse_bool(struct prt_str v)
{
    static const struct {
        const char *word;
        size_t min;
        int is;
    } words[] = {{"true", 1, 1},  {"yes", 1, 1}, {"on", 2, 1},  {"1", 1, 1},
                 {"false", 1, 0}, {"no", 1, 0},  {"off", 2, 0}, {"0", 1, 0}};

    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (v.n >= words[i].min && common(v, words[i].word) == v.n) {
            return words[i].is;
        }
    }
    return -1;
}

/* The names that decide something here; the last of each counts, as in PostgreSQL. */
static void collect(struct prt_startup *out, struct prt_str *replication)
{
    struct prt_str name, value;
    size_t at = 0;

    while (next_string(out->params, &at, &name) && next_string(out->params, &at, &value)) {
        if (prt_str_eqz(name, "user")) {
            out->user = value;
        } else if (prt_str_eqz(name, "database")) {
            out->database = value;
        } else if (prt_str_eqz(name, "options")) {
            out->options = value;
        } else if (prt_str_eqz(name, "replication")) {
            *replication = value;
        } else if (is_application_name(name)) {
            out->application_name = value;
        } else if (is_protocol_option(name)) {
            out->wants_negotiation = true;
        }
    }
}

static enum prt_startup_rc check_names(const struct prt_startup *s, struct prt_err *err)
{
    const struct prt_str none = {0};

    if (s->user.n == 0) {
        return refuse(err, "28000", "the startup packet has no user name", none);
    }
    if (s->database.n > PRT_NAME_MAX) {
        return refuse(err, "3D000", "database name is longer than 63 bytes: ", s->database);
    }
    if (s->user.n > PRT_NAME_MAX) {
        return refuse(err, "28000", "user name is longer than 63 bytes: ", s->user);
    }
    return PRT_STARTUP_OK;
}

static enum prt_startup_rc parse_session(struct prt_str list, uint32_t code,
                                         struct prt_startup *out, struct prt_err *err)
{
    struct prt_str replication = {NULL, 0};
    int is_replication;

    if (code >> 16 != MAJOR) {
        (void)prt_fail(err, POOLRT_PROTOCOL,
                       "protocol %u.%u is not supported, only 3.0 to 3.2: update the client",
                       code >> 16, code & 0xffff);
        if (err) {
            memcpy(err->sqlstate, "0A000", sizeof err->sqlstate);
        }
        return PRT_STARTUP_ERROR;
    }
    if (!is_well_formed(list)) {
        return refuse(err, "08P01", "the startup packet does not end where its parameters end",
                      replication);
    }
    out->kind = PRT_START_SESSION;
    out->minor = (uint16_t)code;
    out->wants_negotiation = out->minor > MINOR || out->minor == 1;
    out->params = (struct prt_str){list.p, list.n - 1};
    collect(out, &replication);
    if (replication.p && !prt_str_eqz(replication, "database")) {
        is_replication = parse_bool(replication);
        if (is_replication < 0) {
            return refuse(err, "22023",
                          "invalid value for parameter \"replication\": ", replication);
        }
        out->is_replication = is_replication;
    } else {
        out->is_replication = replication.p != NULL;
    }
    return check_names(out, err);
}

static enum prt_startup_rc parse_cancel(struct prt_str body, struct prt_startup *out)
{
    if (body.n < 4 + CANCEL_KEY_MIN || body.n > 4 + CANCEL_KEY_MAX) {
        return PRT_STARTUP_SILENCE;
    }
    out->kind = PRT_START_CANCEL;
    out->cancel_pid = prt_get32(body.p);
    out->cancel_key = (struct prt_str){body.p + 4, body.n - 4};
    return PRT_STARTUP_OK;
}

enum prt_startup_rc prt_startup_parse(const uint8_t *p, size_t n, struct prt_startup *out,
                                      struct prt_err *err)
{
    struct prt_str body;
    uint32_t len, code;

    *out = (struct prt_startup){0};
    if (n < 4) {
        return PRT_STARTUP_MORE;
    }
    len = prt_get32(p);
    if (len < HEADER || len > PRT_STARTUP_MAX) {
        return PRT_STARTUP_SILENCE;
    }
    if (n < len) {
        return PRT_STARTUP_MORE;
    }
    code = prt_get32(p + 4);
    body = (struct prt_str){(const char *)p + HEADER, len - HEADER};
    out->size = len;
    if (code == CODE_CANCEL) {
        return parse_cancel(body, out);
    }
    if (code == CODE_SSL || code == CODE_GSS) {
        out->kind = code == CODE_SSL ? PRT_START_SSL : PRT_START_GSS;
        return body.n ? PRT_STARTUP_SILENCE : PRT_STARTUP_OK;
    }
    return parse_session(body, code, out, err);
}

/* ---- negotiation: msg.c's rule, here because it walks what the walkers above hide ---- */
static size_t put_option_names(const struct prt_startup *s, uint8_t *w, uint32_t *count)
{
    struct prt_str name, value;
    size_t at = 0, n = 0;

    *count = 0;
    while (next_string(s->params, &at, &name) && next_string(s->params, &at, &value)) {
        if (!is_protocol_option(name)) {
            continue;
        }
        if (w) {
            memcpy(w + n, name.p, name.n + 1);
        }
        n += name.n + 1;
        ++*count;
    }
    return n;
}

void prt_put_negotiate(struct prt_buf *b, const struct prt_startup *s)
{
    uint32_t count, newest = MAJOR << 16 | (s->minor >= MINOR ? MINOR : 0);
    size_t names = put_option_names(s, NULL, &count), total = 13 + names;
    uint8_t *w = prt_buf_room(b, total);

    if (!w) {
        return;
    }
    w[0] = 'v';
    prt_put32(w + 1, (uint32_t)total - 1);
    prt_put32(w + 5, newest);
    prt_put32(w + 9, count);
    (void)put_option_names(s, w + 13, &count);
    b->n += (uint32_t)total;
}

/* ---- options ---- */
static bool is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* The next word, unescaped, into buf[cap]. 1: a word; 0: the end; -1: it does not fit. */
static int next_word(struct prt_str s, size_t *at, char *buf, size_t cap, struct prt_str *word)
{
    size_t i = *at, n = 0;

    while (i < s.n && is_blank(s.p[i])) {
        i++;
    }
    if (i == s.n) {
        *at = i;
        return 0;
    }
    for (; i < s.n && !is_blank(s.p[i]); i++) {
        if (s.p[i] == '\\' && ++i == s.n) {
            break; /* a last backslash escapes nothing and is dropped */
        }
        if (n == cap) {
            *at = s.n;
            *word = (struct prt_str){buf, 0};
            return -1;
        }
        buf[n++] = s.p[i];
    }
    *at = i;
    *word = (struct prt_str){buf, n};
    return 1;
}

/* name=value in text, which lies in buf. PostgreSQL takes - for _ in the name. */
static bool split_setting(char *text, size_t n, struct prt_str *name, struct prt_str *value)
{
    char *eq = n ? memchr(text, '=', n) : NULL;

    if (!eq || eq == text) {
        return false;
    }
    for (char *c = text; c < eq; c++) {
        *c = *c == '-' ? '_' : *c;
    }
    *name = (struct prt_str){text, (size_t)(eq - text)};
    *value = (struct prt_str){eq + 1, n - name->n - 1};
    return true;
}

int prt_options_next(struct prt_str options, size_t *at, char *buf, struct prt_str *name,
                     struct prt_str *value)
{
    struct prt_str word;
    size_t skip = 2;
    int rc = next_word(options, at, buf, PRT_STARTUP_MAX, &word);

    *name = rc ? word : (struct prt_str){buf, 0};
    *value = (struct prt_str){buf, 0};
    if (rc <= 0) {
        return rc;
    }
    if (prt_str_eqz(word, "-c")) {
        rc = next_word(options, at, buf, PRT_STARTUP_MAX, &word);
        if (rc <= 0) {
            *name = rc ? word : *name; /* nothing was written over "-c" at the end */
            return -1;
        }
        skip = 0;
    } else if (word.n < 2 || word.p[0] != '-' || (word.p[1] != 'c' && word.p[1] != '-')) {
        return -1;
    }
    *name = word;
    return split_setting(buf + skip, word.n - skip, name, value) ? 1 : -1;
}
