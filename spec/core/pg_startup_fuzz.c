/* pg_startup_fuzz.c - arbitrary bytes as the first packet and as `options`. */
#include "pg/pg.h"

#include <stdlib.h>
#include <string.h>

static void inside(struct prt_str s, const uint8_t *p, size_t n)
{
    prt_assert(s.n == 0 ||
               ((const uint8_t *)s.p >= p && s.n <= n && (const uint8_t *)s.p + s.n <= p + n));
}

static void check_session(const struct prt_startup *s, const uint8_t *p)
{
    struct prt_str name, value;
    struct prt_buf b = {0};
    size_t at = 0, sum = 1 + 8;

    prt_assert(p[s->size - 1] == 0 && s->user.n > 0 && s->user.n <= PRT_NAME_MAX);
    prt_assert(s->database.n <= PRT_NAME_MAX);
    inside(s->user, p, s->size);
    inside(s->database, p, s->size);
    inside(s->application_name, p, s->size);
    inside(s->options, p, s->size);
    while (prt_startup_next(s, &at, &name, &value)) {
        inside(name, p, s->size);
        inside(value, p, s->size);
        prt_assert(name.n && !memchr(name.p, 0, name.n));
        sum += name.n + value.n + 2;
    }
    prt_assert(s->wants_negotiation ? sum <= s->size : sum == s->size);
    prt_put_negotiate(&b, s);
    prt_assert(!b.failed && prt_get32(prt_buf_data(&b) + 1) + 1 == prt_buf_len(&b));
    prt_buf_free(&b);
}

static void walk_options(struct prt_str options)
{
    static char buf[PRT_STARTUP_MAX];
    struct prt_str name, value;
    size_t at = 0, steps = 0;
    int rc;

    while ((rc = prt_options_next(options, &at, buf, &name, &value)) != 0) {
        inside(name, (const uint8_t *)buf, sizeof buf);
        inside(value, (const uint8_t *)buf, sizeof buf);
        prt_assert(at <= options.n && ++steps <= options.n && (rc < 0 || name.n));
    }
    prt_assert(at == options.n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct prt_startup s;
    struct prt_err err = {0};
    enum prt_startup_rc rc;
    uint8_t *p = malloc(n + 1); /* exact bounds, for the sanitizer */

    if (n) {
        memcpy(p, data, n);
    }
    rc = prt_startup_parse(p, n, &s, &err);
    prt_assert(rc != PRT_STARTUP_MORE || n < PRT_STARTUP_MAX);
    prt_assert(rc != PRT_STARTUP_ERROR || (err.text[0] && strlen(err.sqlstate) == 5));
    if (rc == PRT_STARTUP_OK) {
        prt_assert(s.size >= 8 && s.size <= n && s.size <= PRT_STARTUP_MAX);
        inside(s.cancel_key, p, s.size);
        if (s.kind == PRT_START_SESSION) {
            check_session(&s, p);
            walk_options(s.options);
        }
    }
    walk_options((struct prt_str){(const char *)p, n});
    free(p);
    return 0;
}
