/* request.c - what a dial asks for, copied and checked before it goes its way.
 * Owns: each request's strings.   Threads: made by the caller's, freed by the line's.
 * Idea: settings come from clients. They reach the server through libpq's `options`, which is one
 * string that the server splits again: names are checked, values are escaped, and what would be two
 * settings stays one. */
#include "link/link_int.h"

#include <stdlib.h>
#include <string.h>

static void free_secret(char *s)
{
    if (s) {
        prt_secret_wipe(s, strlen(s));
        free(s);
    }
}

void prt_request_free(struct prt_request *r)
{
    if (!r) {
        return;
    }
    prt_target_unref(r->target);
    free(r->dbname);
    free(r->user);
    free_secret(r->password);
    free(r->application_name);
    free(r->options);
    free(r);
}

static bool is_setting_name(const char *s)
{
    for (const char *at = s; *at; at++) {
        unsigned char ch = (unsigned char)*at;
        bool letter = (ch | 32) >= 'a' && (ch | 32) <= 'z';
        if (!(letter || ch >= 0x80 || ch == '_' ||
              (at > s && ((ch >= '0' && ch <= '9') || ch == '.' || ch == '$')))) {
            return false;
        }
    }
    return *s != '\0';
}

/* The server splits options at blanks; a backslash takes the next byte as it is. */
static void add_escaped(struct prt_buf *b, const char *value)
{
    for (; *value; value++) {
        if (strchr(" \t\n\v\f\r\\", *value)) {
            (void)prt_buf_add(b, "\\", 1);
        }
        (void)prt_buf_add(b, value, 1);
    }
}

/* The string at `at` inside the settings; NULL when its NUL is not there. */
static const char *setting_at(const struct prt_dial *d, size_t at)
{
    return at < d->settings_n && memchr(d->settings + at, '\0', d->settings_n - at)
               ? d->settings + at
               : NULL;
}

/* The target's own options, then "-c name=value" of each setting, which therefore win. */
static poolrt_rc make_options(const struct prt_dial *d, char **out, struct prt_err *err)
{
    const char *own = prt_target_option(d->target, "options");
    struct prt_buf b = {0};

    (void)prt_buf_add(&b, own, own ? strlen(own) : 0);
    for (size_t at = 0; at < d->settings_n;) {
        const char *name = setting_at(d, at);
        const char *value = name ? setting_at(d, at + strlen(name) + 1) : NULL;
        if (!value || !is_setting_name(name)) {
            prt_buf_free(&b);
            (void)prt_fail(err, POOLRT_CONNECT_FAILED,
                           "unrecognized configuration parameter \"%.100s\"", name ? name : "");
            memcpy(err->sqlstate, "42704", 6);
            return POOLRT_CONNECT_FAILED;
        }
        (void)prt_buf_add(&b, prt_buf_len(&b) ? " -c " : "-c ", prt_buf_len(&b) ? 4 : 3);
        (void)prt_buf_add(&b, name, strlen(name));
        (void)prt_buf_add(&b, "=", 1);
        add_escaped(&b, value);
        at += strlen(name) + 1 + strlen(value) + 1;
    }
    (void)prt_buf_add(&b, "", 1);
    if (b.failed) {
        prt_buf_free(&b);
        return prt_fail(err, POOLRT_CONNECT_FAILED, "out of memory");
    }
    *out = (char *)b.p;
    return POOLRT_OK;
}

/* NULL stays NULL. */
static bool copy(char **to, const char *from)
{
    *to = from ? strdup(from) : NULL;
    return !from || *to;
}

struct prt_request *prt_request_new(struct prt_dial *d)
{
    struct prt_request *r;

    if ((d->user && !*d->user) || (d->dbname && !*d->dbname)) {
        /* libpq would take the name of the account that it runs under */
        (void)prt_fail(&d->err, POOLRT_CONNECT_FAILED, "%s: the name of the %s is empty",
                       prt_target_text(d->target), d->user && !*d->user ? "user" : "database");
        return NULL;
    }
    r = PRT_FAULT("request_nomem") ? NULL : calloc(1, sizeof *r);
    if (!r) {
        (void)prt_fail(&d->err, POOLRT_CONNECT_FAILED, "out of memory");
        return NULL;
    }
    r->dial = d;
    r->target = prt_target_ref(d->target);
    r->timeout_us = d->timeout_us;
    r->deadline_us = prt_now_us() + d->timeout_us;
    prt_list_init(&r->link);
    if (make_options(d, &r->options, &d->err)) {
        prt_request_free(r);
        return NULL;
    }
    if (!copy(&r->dbname, d->dbname) || !copy(&r->user, d->user) ||
        !copy(&r->password, d->password) || !copy(&r->application_name, d->application_name)) {
        (void)prt_fail(&d->err, POOLRT_CONNECT_FAILED, "out of memory");
        prt_request_free(r);
        return NULL;
    }
    return r;
}
