/* msg.c - read and build single messages.
 * Owns: nothing.   Threads: any, each buffer one at a time.
 * Idea: a message's size is known before its first byte is written, so room for it is taken once
 * and a buffer without memory never holds half of one. Strings of the wire end at NUL: text that
 * has one inside is cut there, so that it cannot grow fields of its own. */
#include "pg/pg.h"

#include <string.h>

/* ---- read ---- */
static bool next_string(const struct prt_msg *m, uint32_t *at, struct prt_str *out)
{
    const uint8_t *end = *at < m->have ? memchr(m->body + *at, 0, m->have - *at) : NULL;

    if (!end) {
        return false;
    }
    *out = (struct prt_str){(const char *)m->body + *at, (size_t)(end - m->body) - *at};
    *at += (uint32_t)out->n + 1;
    return true;
}

/* Where the field of that type goes; NULL: nobody here reads it. */
static struct prt_str *field_of(struct prt_notice *out, char type, struct prt_str *localised)
{
    switch (type) {
    case 'S':
        return localised;
    case 'V': /* never translated; servers before 9.6 do not send it */
        return &out->severity;
    case 'C':
        return &out->sqlstate;
    case 'M':
        return &out->message;
    case 'D':
        return &out->detail;
    case 'H':
        return &out->hint;
    case 'R':
        return &out->routine;
    default:
        return NULL;
    }
}

/* The first of each field counts, and of a long message only its beginning, so that the result does
 * not hang on how the stream was cut: the framer lets a long one pass with V and C, or with
 * PRT_SMALL_MAX bytes. */
void prt_notice_read(const struct prt_msg *m, struct prt_notice *out)
{
    struct prt_str field, localised = {NULL, 0};
    struct prt_msg part = *m;
    uint32_t at = 0;

    *out = (struct prt_notice){0};
    if (m->len > PRT_SMALL_MAX - 4 && part.have > PRT_SMALL_MAX) {
        part.have = PRT_SMALL_MAX;
    }
    while (at < part.have && part.body[at] != 0 && next_string(&part, &at, &field)) {
        struct prt_str *to = field_of(out, field.p[0], &localised);
        if (to && !to->p) {
            *to = (struct prt_str){field.p + 1, field.n - 1};
        }
    }
    if (!out->severity.p) {
        out->severity = localised;
    }
}

bool prt_msg_string(const struct prt_msg *m, unsigned nth, struct prt_str *out)
{
    uint32_t at = 0;

    do {
        if (!next_string(m, &at, out)) {
            *out = (struct prt_str){NULL, 0};
            return false;
        }
    } while (nth--);
    return true;
}

/* ---- build ---- */
/* Room for a message with n bytes of body, its header written; NULL: no memory. */
static uint8_t *begin(struct prt_buf *b, uint8_t type, size_t n)
{
    uint8_t *w = n < PRT_BUF_MAX ? prt_buf_room(b, n + 5) : NULL;

    if (!w) {
        b->failed = true;
        return NULL;
    }
    w[0] = type;
    prt_put32(w + 1, (uint32_t)n + 4);
    b->n += (uint32_t)n + 5;
    return w + 5;
}

static uint8_t *put(uint8_t *w, const void *p, size_t n)
{
    if (n) {
        memcpy(w, p, n);
    }
    return w + n;
}

static uint8_t *put_string(uint8_t *w, struct prt_str s)
{
    w = put(w, s.p, s.n);
    *w = 0;
    return w + 1;
}

static struct prt_str text(struct prt_str s)
{
    const char *end = s.n ? memchr(s.p, 0, s.n) : NULL;

    return end ? (struct prt_str){s.p, (size_t)(end - s.p)} : s;
}

#define FIELDS 7

static void put_fields(struct prt_buf *b, uint8_t type, const char types[FIELDS],
                       const struct prt_str fields[FIELDS])
{
    size_t n = 1;
    uint8_t *w;

    for (int i = 0; i < FIELDS; i++) {
        n += fields[i].p ? fields[i].n + 2 : 0;
    }
    w = begin(b, type, n);
    if (!w) {
        return;
    }
    for (int i = 0; i < FIELDS; i++) {
        if (fields[i].p) {
            *w++ = (uint8_t)types[i];
            w = put_string(w, fields[i]);
        }
    }
    *w = 0;
}

static void put_report(struct prt_buf *b, uint8_t type, const char *severity, const char *sqlstate,
                       struct prt_str message, const char *detail, const char *hint,
                       const char *routine)
{
    struct prt_str words = text(message), none = {NULL, 0};
    const struct prt_str fields[FIELDS] = {
        prt_str_of(severity),
        prt_str_of(severity),
        prt_str_of(sqlstate),
        words.p ? words : PRT_STR(""), /* libpq prints nothing sensible without one */
        detail ? prt_str_of(detail) : none,
        hint ? prt_str_of(hint) : none,
        routine ? prt_str_of(routine) : none,
    };

    put_fields(b, type, "SVCMDHR", fields);
}

void prt_put_error(struct prt_buf *b, const char *severity, const char *sqlstate,
                   struct prt_str message, const char *detail, const char *hint)
{
    put_report(b, 'E', severity, sqlstate, message, detail, hint, NULL);
}

void prt_put_denial(struct prt_buf *b, const struct prt_denial *why)
{
    put_report(b, 'E', "ERROR", why->sqlstate, prt_str_of(why->text), NULL, why->hint,
               why->routine);
}

void prt_put_notice(struct prt_buf *b, const char *severity, const char *sqlstate,
                    struct prt_str message)
{
    put_report(b, 'N', severity, sqlstate, message, NULL, NULL, NULL);
}

static void put_number_and(struct prt_buf *b, uint8_t type, uint32_t number, const void *data,
                           size_t n)
{
    uint8_t *w = begin(b, type, n + 4);

    if (w) {
        prt_put32(w, number);
        (void)put(w + 4, data, n);
    }
}

void prt_put_auth(struct prt_buf *b, uint32_t code, const void *data, size_t n)
{
    put_number_and(b, 'R', code, data, n);
}

void prt_put_key(struct prt_buf *b, uint32_t pid, const void *key, size_t n)
{
    put_number_and(b, 'K', pid, key, n);
}

void prt_put_param(struct prt_buf *b, struct prt_str name, struct prt_str value)
{
    struct prt_str k = text(name), v = text(value);
    uint8_t *w = begin(b, 'S', k.n + v.n + 2);

    if (w) {
        (void)put_string(put_string(w, k), v);
    }
}

void prt_put_ready(struct prt_buf *b, uint8_t status)
{
    uint8_t *w = begin(b, 'Z', 1);

    if (w) {
        *w = status;
    }
}

/* One string as the whole body. SQL is cut at a NUL like any text: a server would refuse it. */
static void put_text(struct prt_buf *b, uint8_t type, struct prt_str s)
{
    struct prt_str t = text(s);
    uint8_t *w = begin(b, type, t.n + 1);

    if (w) {
        (void)put_string(w, t);
    }
}

void prt_put_query(struct prt_buf *b, struct prt_str sql)
{
    put_text(b, 'Q', sql);
}

void prt_put_copy_fail(struct prt_buf *b, struct prt_str why)
{
    put_text(b, 'f', why);
}

void prt_put_parse(struct prt_buf *b, struct prt_str sql)
{
    struct prt_str t = text(sql);
    uint8_t *w = begin(b, 'P', 1 + t.n + 1 + 2);

    if (w) {
        *w = 0;
        w = put_string(w + 1, t);
        prt_put16(w, 0); /* no parameter types */
    }
}

void prt_put_close(struct prt_buf *b, uint8_t kind, struct prt_str name)
{
    struct prt_str t = text(name);
    uint8_t *w = begin(b, 'C', 1 + t.n + 1);

    if (w) {
        *w = kind;
        (void)put_string(w + 1, t);
    }
}

void prt_put_sync(struct prt_buf *b)
{
    (void)begin(b, 'S', 0);
}

void prt_put_terminate(struct prt_buf *b)
{
    (void)begin(b, 'X', 0);
}
