/* target.c - where a pool's servers are: a conninfo string taken apart once.
 * Owns: the parsed options, counted.   Threads: any; immutable but for the count.
 * Idea: libpq parses, so that every keyword it knows works; the lists of hosts are split here,
 * because the connector walks them itself (dial.c). Values that would only fail at the first dial
 * are refused now. libpq quotes its input in errors, and that input may be a badly quoted password:
 * no part of the string is repeated that could be one. */
#include "link/link_int.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define HOSTS_MAX 64
#define DEFAULT_PORT "5432"

/* ---- options ---- */
static PQconninfoOption *find(PQconninfoOption *options, const char *keyword)
{
    for (PQconninfoOption *o = options; o && o->keyword; o++) {
        if (strcmp(o->keyword, keyword) == 0) {
            return o;
        }
    }
    return NULL;
}

const char *prt_target_option(const struct prt_target *t, const char *keyword)
{
    const PQconninfoOption *o = find(t->options, keyword);

    return o && o->val && *o->val ? o->val : NULL;
}

bool prt_target_knows(const struct prt_target *t, const char *keyword)
{
    return find(t->options, keyword) != NULL;
}

/* An unknown keyword may be named when it stands in front of any password and looks like one. */
static bool may_be_shown(const char *conninfo, const char *word)
{
    const char *at = strstr(conninfo, word), *password = strstr(conninfo, "password");
    bool is_url = strstr(conninfo, "://") != NULL;

    if (!at || strlen(word) > 40 || strspn(word, "abcdefghijklmnopqrstuvwxyz_") != strlen(word)) {
        return false;
    }
    if (is_url) {
        const char *query = strrchr(conninfo, '?');
        return query && at > query;
    }
    return !password || at < password;
}

static poolrt_rc refuse(const char *conninfo, const char *libpq_says, struct prt_err *err)
{
    const char *quote = libpq_says ? strchr(libpq_says, '"') : NULL;
    const char *end = quote ? strchr(quote + 1, '"') : NULL;
    bool is_unknown = libpq_says && (strncmp(libpq_says, "invalid connection option", 25) == 0 ||
                                     strncmp(libpq_says, "invalid URI query parameter", 27) == 0);
    char word[64];

    if (is_unknown && end &&
        prt_str_copy(word, sizeof word, (struct prt_str){quote + 1, (size_t)(end - quote - 1)}) &&
        may_be_shown(conninfo, word)) {
        return prt_fail(err, POOLRT_CONFIG, "target: libpq does not know the keyword \"%s\"", word);
    }
    if (is_unknown) {
        return prt_fail(
            err, POOLRT_CONFIG,
            "target: a keyword is unknown to libpq (it is not shown, as it may be part of "
            "a password: quote values with blanks, password='...')");
    }
    return prt_fail(err, POOLRT_CONFIG,
                    "target: not a conninfo string (host=... dbname=...) nor a URL "
                    "(postgres://host/db): check blanks, quotes, brackets and %%-codes");
}

/* ---- lists ---- */
static int list_count(const char *list)
{
    int n = 1;

    for (; *list; list++) {
        n += *list == ',';
    }
    return n;
}

/* Element i of a comma-separated list as a new string; NULL when it is empty or the list ends.
 * *failed: no memory. */
static char *list_get(const char *list, int i, bool *failed)
{
    char *s;
    size_t n;

    for (; list && i > 0; i--) {
        list = strchr(list, ',');
        list = list ? list + 1 : NULL;
    }
    n = list ? strcspn(list, ",") : 0;
    if (n == 0) {
        return NULL;
    }
    s = strndup(list, n);
    *failed = *failed || !s;
    return s;
}

static bool is_port(const char *s)
{
    char *end;
    long v = strtol(s, &end, 10);

    return isdigit((unsigned char)*s) && *end == '\0' && v >= 1 && v <= 65535;
}

static char *host_text(const struct prt_target_host *h)
{
    const char *name = h->host ? h->host : h->hostaddr ? h->hostaddr : "[local]";
    bool has_colon = !h->is_unix && strchr(name, ':') != NULL;
    char *text = NULL;

    if (asprintf(&text, has_colon ? "[%s]:%s" : "%s:%s", name, h->port) < 0) {
        return NULL;
    }
    return text;
}

static bool host_init(struct prt_target_host *h, const char *hosts, const char *addrs,
                      const char *ports, int i)
{
    bool failed = false;

    h->host = list_get(hosts, i, &failed);
    h->hostaddr = list_get(addrs, i, &failed);
    h->port = list_get(ports, ports && list_count(ports) > 1 ? i : 0, &failed);
    h->is_unix = !h->hostaddr && (!h->host || h->host[0] == '/' || h->host[0] == '@');
    if (!failed && !h->port) {
        h->port = strdup(DEFAULT_PORT);
        failed = !h->port;
    }
    h->text = failed ? NULL : host_text(h);
    return h->text != NULL;
}

static poolrt_rc make_text(struct prt_target *t, struct prt_err *err)
{
    struct prt_buf b = {0};

    for (int i = 0; i < t->n_hosts; i++) {
        (void)prt_buf_add(&b, ",", i > 0);
        (void)prt_buf_add(&b, t->hosts[i].text, strlen(t->hosts[i].text));
    }
    (void)prt_buf_add(&b, "", 1);
    if (b.failed) {
        prt_buf_free(&b);
        return prt_fail(err, POOLRT_NOMEM, "target: out of memory");
    }
    t->text = (char *)b.p; /* a buffer that was never eaten from begins at its memory */
    return POOLRT_OK;
}

static poolrt_rc split_hosts(struct prt_target *t, const char *hosts, const char *addrs,
                             const char *ports, struct prt_err *err)
{
    int n = addrs ? list_count(addrs) : hosts ? list_count(hosts) : 1;

    if (hosts && addrs && list_count(hosts) != n) {
        return prt_fail(err, POOLRT_CONFIG, "target: %d hosts but %d entries in hostaddr",
                        list_count(hosts), n);
    }
    if (ports && list_count(ports) != 1 && list_count(ports) != n) {
        return prt_fail(err, POOLRT_CONFIG,
                        "target: %d entries in port but %d in host (one port may stand for all)",
                        list_count(ports), n);
    }
    if (n > HOSTS_MAX) {
        return prt_fail(err, POOLRT_CONFIG, "target: %d entries in host, at most %d are walked", n,
                        HOSTS_MAX);
    }
    t->hosts = calloc((size_t)n, sizeof *t->hosts);
    if (!t->hosts) {
        return prt_fail(err, POOLRT_NOMEM, "target: out of memory");
    }
    t->n_hosts = n;
    for (int i = 0; i < n; i++) {
        if (!host_init(&t->hosts[i], hosts, addrs, ports, i)) {
            return prt_fail(err, POOLRT_NOMEM, "target: out of memory");
        }
        if (!is_port(t->hosts[i].port)) {
            return prt_fail(err, POOLRT_CONFIG,
                            "target: port \"%s\" is not a number from 1 to 65535",
                            t->hosts[i].port);
        }
    }
    return make_text(t, err);
}

/* ---- single values ---- */
static poolrt_rc check_word(const struct prt_target *t, const char *keyword,
                            const char *const *allowed, int *which, struct prt_err *err)
{
    const char *v = prt_target_option(t, keyword);

    for (int i = 0; v && allowed[i]; i++) {
        if (strcmp(v, allowed[i]) == 0) {
            if (which) {
                *which = i;
            }
            return POOLRT_OK;
        }
    }
    return v ? prt_fail(err, POOLRT_CONFIG, "target: %s=%.40s is not one of those that libpq knows",
                        keyword, v)
             : POOLRT_OK;
}

static poolrt_rc check_timeout(struct prt_target *t, struct prt_err *err)
{
    const char *v = prt_target_option(t, "connect_timeout");
    char *end = NULL;
    long s = v ? strtol(v, &end, 10) : 0;

    if (v && (end == v || *end || s > 86400)) {
        return prt_fail(err, POOLRT_CONFIG,
                        "target: connect_timeout=%.40s is not a number of seconds", v);
    }
    t->host_timeout_us = s > 0 ? s * 1000000 : 0; /* as libpq: zero and below wait without limit */
    return POOLRT_OK;
}

static poolrt_rc check_values(struct prt_target *t, struct prt_err *err)
{
    static const char *const modes[] = {"disable",   "allow",       "prefer", "require",
                                        "verify-ca", "verify-full", NULL};
    /* in the order of enum prt_session_attrs */
    static const char *const attrs[] = {"any",     "read-write",     "read-only", "primary",
                                        "standby", "prefer-standby", NULL};
    static const char *const off[] = {"disable", NULL};
    int which = PRT_ATTRS_ANY;
    poolrt_rc rc;

    if (prt_target_option(t, "service")) {
        return prt_fail(err, POOLRT_CONFIG,
                        "target: service is not supported here, write out what the file says");
    }
    if (prt_target_option(t, "replication")) {
        return prt_fail(err, POOLRT_CONFIG,
                        "target: replication connections cannot be pooled, leave the keyword out");
    }
    if ((rc = check_word(t, "sslmode", modes, NULL, err)) ||
        (rc = check_word(t, "load_balance_hosts", off, NULL, err)) ||
        (rc = check_word(t, "target_session_attrs", attrs, &which, err)) ||
        (rc = check_timeout(t, err))) {
        return rc;
    }
    t->attrs = (enum prt_session_attrs)which;
    return POOLRT_OK;
}

/* What libpq would take from its environment (PGHOST, ...) when the conninfo is silent: only for
 * the keywords that do not reach libpq as they stand here. */
static bool add_defaults(struct prt_target *t)
{
    static const char *const keywords[] = {"host", "hostaddr", "port", "target_session_attrs",
                                           "options"};
    PQconninfoOption *defaults = PQconndefaults();
    bool ok = true;
    /* a hostaddr of the environment belongs to its host, not to the conninfo's */
    bool has_host = prt_target_option(t, "host") || prt_target_option(t, "hostaddr");

    for (size_t i = 0; defaults && i < sizeof keywords / sizeof keywords[0]; i++) {
        PQconninfoOption *to = find(t->options, keywords[i]);
        const PQconninfoOption *from = find(defaults, keywords[i]);
        if (to && !to->val && from && from->val && !(has_host && i < 2)) {
            to->val = strdup(from->val);
            ok = ok && to->val;
        }
    }
    PQconninfoFree(defaults);
    return ok;
}

static void target_free(struct prt_target *t)
{
    if (!t) {
        return;
    }
    for (PQconninfoOption *o = t->options; o && o->keyword; o++) {
        if (o->val) {
            prt_secret_wipe(o->val, strlen(o->val));
        }
    }
    PQconninfoFree(t->options);
    for (int i = 0; i < t->n_hosts; i++) {
        free(t->hosts[i].host);
        free(t->hosts[i].hostaddr);
        free(t->hosts[i].port);
        free(t->hosts[i].text);
    }
    free(t->hosts);
    free(t->text);
    free(t);
}

poolrt_rc prt_target_new(struct prt_target **out, const char *conninfo, struct prt_err *err)
{
    struct prt_target *t = calloc(1, sizeof *t);
    char *message = NULL;
    poolrt_rc rc;

    *out = NULL;
    if (!t) {
        return prt_fail(err, POOLRT_NOMEM, "target: out of memory");
    }
    atomic_init(&t->refs, 1);
    t->options = PQconninfoParse(conninfo, &message);
    if (!t->options) {
        rc = refuse(conninfo, message, err);
        if (message) {
            prt_secret_wipe(message, strlen(message));
        }
        PQfreemem(message);
        goto fail;
    }
    rc = POOLRT_NOMEM;
    if (!add_defaults(t)) {
        (void)prt_fail(err, rc, "target: out of memory");
        goto fail;
    }
    if ((rc = check_values(t, err)) ||
        (rc = split_hosts(t, prt_target_option(t, "host"), prt_target_option(t, "hostaddr"),
                          prt_target_option(t, "port"), err))) {
        goto fail;
    }
    *out = t;
    return POOLRT_OK;
fail:
    target_free(t);
    return rc;
}

struct prt_target *prt_target_ref(struct prt_target *t)
{
    /* relaxed: who refs holds a reference already */
    atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
    return t;
}

void prt_target_unref(struct prt_target *t)
{
    /* acq_rel pairs with itself: the last one sees what the others did before they let go */
    if (t && atomic_fetch_sub_explicit(&t->refs, 1, memory_order_acq_rel) == 1) {
        target_free(t);
    }
}

const char *prt_target_dbname(const struct prt_target *t)
{
    return prt_target_option(t, "dbname");
}

const char *prt_target_user(const struct prt_target *t)
{
    return prt_target_option(t, "user");
}

const char *prt_target_password(const struct prt_target *t)
{
    return prt_target_option(t, "password");
}

const char *prt_target_text(const struct prt_target *t)
{
    return t->text;
}
