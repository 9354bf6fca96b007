/* dial.c - one connection to a server, host by host.
 * Owns: the opening, its PGconn, its watch on the socket.   Threads: the line's.
 * Idea: PQconnectPoll waits for a silent first host as long as that likes, so libpq is given one
 * host and one address at a time, and the walk is ours: look the name up (never inside libpq, which
 * would hold the thread), try each address for its share of what is left of the time, and go on
 * to the next host unless the server itself has spoken a verdict that another host would repeat.
 *
 * libpq closes and reopens its socket when it tries again without TLS, often under the same number;
 * and a uv_poll that is stopped for a number which belongs to somebody else by then takes the
 * other's registration away. So a watch never outlives a call into libpq: it is closed before and
 * made anew after. */
#include "link/link_int.h"

#include "base/log.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>

#define ADDRS_MAX 16
#define PARAMS_MAX 128
#define BACKLOG_US 10000 /* until a full backlog is tried again */
/* unless the target says otherwise: a server whose host is gone is noticed within a minute */
#define KEEPALIVES_IDLE "30"
#define KEEPALIVES_INTERVAL "10"
#define KEEPALIVES_COUNT "3"
#define USER_TIMEOUT_MS "60000"

/* What one step of the walk came to. */
enum step {
    STEP_WAIT, /* an event goes on */
    STEP_NEXT, /* try what comes next */
    STEP_OVER, /* the opening is closing */
};

/* A name that is being looked up; lives until libuv gives it back, with or without its opening. */
struct resolve {
    uv_getaddrinfo_t uv;
    struct prt_opening *o; /* NULL: given up */
};

static void go_on(struct prt_opening *o);

static struct prt_target_host *host_of(const struct prt_opening *o)
{
    return &o->req->target->hosts[o->host];
}

const struct prt_target_host *prt_opening_host(const struct prt_opening *o)
{
    return host_of(o);
}

/* ---- end ---- */
static void on_poll_closed(uv_handle_t *h)
{
    free(h);
}

static void unwatch(struct prt_opening *o)
{
    if (o->poll) {
        uv_close((uv_handle_t *)o->poll, on_poll_closed);
        o->poll = NULL;
    }
}

static void on_timer_closed(uv_handle_t *h)
{
    prt_opening_free(h->data);
}

static void give_up_resolve(struct prt_opening *o)
{
    if (o->resolve) {
        o->resolve->o = NULL;
        (void)uv_cancel((uv_req_t *)&o->resolve->uv);
        o->resolve = NULL;
    }
}

void prt_opening_close(struct prt_opening *o)
{
    if (o->is_closing) {
        return;
    }
    o->is_closing = true;
    give_up_resolve(o);
    unwatch(o);
    prt_conn_drop(o);
    prt_line_forget(o->line, o);
    uv_close((uv_handle_t *)&o->timer, on_timer_closed);
}

static enum step finish_failed(struct prt_opening *o)
{
    struct prt_dial *d = prt_line_claim(o->line, o);

    if (d) {
        d->err = o->err;
        prt_dial_reply(d);
    }
    prt_opening_close(o);
    return STEP_OVER;
}

static enum step finish_ok(struct prt_opening *o)
{
    struct prt_dial *d = prt_line_claim(o->line, o);

    if (d) {
        if (prt_take_over(o, d)) {
            d->err = o->err;
        } else {
            d->err = (struct prt_err){0};
        }
        prt_dial_reply(d);
    }
    prt_opening_close(o);
    return STEP_OVER;
}

/* ---- time ---- */
static int hosts_left(const struct prt_opening *o)
{
    int n = o->req->target->n_hosts,
        passes = o->req->target->attrs == PRT_ATTRS_PREFER_STANDBY ? 2 : 1;

    return (passes - 1 - o->pass) * n + n - 1 - o->host;
}

/* This attempt's share: what is left, divided by the addresses and hosts still to be tried. */
static void set_share(struct prt_opening *o, int addrs_left)
{
    int64_t now_us = prt_now_us(), left = o->req->deadline_us - now_us;
    int64_t share = left > 0 ? left / (addrs_left + hosts_left(o)) : 0;
    int64_t max = o->req->target->host_timeout_us;

    o->until_us = now_us + (max && max < share ? max : share);
}

static void start_timer(struct prt_opening *o, uv_timer_cb on_timer, int64_t until_us)
{
    int64_t left = until_us - prt_now_us();

    uv_update_time(&o->line->loop);
    (void)uv_timer_start(&o->timer, on_timer, left > 0 ? (uint64_t)(left / 1000 + 1) : 1, 0);
}

static bool is_late(const struct prt_opening *o)
{
    return prt_now_us() >= o->req->deadline_us;
}

/* The attempt has had its time. */
static void time_out(struct prt_opening *o, const char *what)
{
    char why[128];

    (void)snprintf(why, sizeof why, "timeout %s", what);
    prt_err_add(&o->err, host_of(o)->text, why, NULL);
}

/* ---- one attempt ---- */
static const char *doing(const PGconn *conn)
{
    switch (PQstatus(conn)) {
    case CONNECTION_STARTED:
        return "while connecting";
    case CONNECTION_MADE:
    case CONNECTION_SSL_STARTUP:
        return "while waiting for an answer to the TLS request or handshake";
    case CONNECTION_AWAITING_RESPONSE:
        return "while waiting for an answer to the login";
    case CONNECTION_AUTH_OK:
        return "while waiting for the server to get ready after the login";
    default:
        return "while asking what kind of server it is";
    }
}

/* A server that is starting, stopping or full may have a neighbour who is not; any other verdict
 * (password, database, permission) is final, as in libpq. */
static bool is_final(const char *sqlstate)
{
    return sqlstate[0] && strncmp(sqlstate, "57P0", 4) != 0 && strncmp(sqlstate, "53", 2) != 0;
}

/* A Unix socket has no queue behind its backlog: a server in a storm of logins says at once that it
 * cannot take another one, which is gone in a moment. */
static bool is_backlog_full(const struct prt_opening *o)
{
    const char *message = PQerrorMessage(o->conn);

    return host_of(o)->is_unix && prt_now_us() + BACKLOG_US < o->until_us &&
           (strstr(message, strerrordesc_np(EAGAIN)) || strstr(message, strerrordesc_np(ENOTCONN)));
}

static void on_backlog_timer(uv_timer_t *timer)
{
    struct prt_opening *o = timer->data;

    if (!prt_line_owns(o->line, o)) {
        prt_opening_close(o);
        return;
    }
    o->addr--;
    o->is_retry = true;
    go_on(o);
}

static enum step attempt_failed(struct prt_opening *o)
{
    if (is_backlog_full(o)) {
        prt_conn_drop(o);
        start_timer(o, on_backlog_timer, prt_now_us() + BACKLOG_US);
        return STEP_WAIT;
    }
    prt_err_add_pq(&o->err, host_of(o)->text, PQerrorMessage(o->conn));
    prt_conn_drop(o);
    return is_final(o->err.sqlstate) || is_late(o) ? finish_failed(o) : STEP_NEXT;
}

static void on_attempt_timer(uv_timer_t *timer)
{
    struct prt_opening *o = timer->data;

    unwatch(o);
    if (!prt_line_owns(o->line, o)) {
        prt_opening_close(o);
        return;
    }
    time_out(o, doing(o->conn));
    prt_conn_drop(o);
    if (is_late(o)) {
        (void)finish_failed(o);
    } else {
        go_on(o);
    }
}

static enum step poll_once(struct prt_opening *o);

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct prt_opening *o = poll->data;

    if (poll_once(o) == STEP_NEXT) {
        go_on(o);
    }
}

static bool watch(struct prt_opening *o, int events)
{
    uv_poll_t *poll = malloc(sizeof *poll);

    if (!poll || uv_poll_init_socket(&o->line->loop, poll, PQsocket(o->conn)) != 0) {
        free(poll);
        return false;
    }
    poll->data = o;
    o->poll = poll;
    return uv_poll_start(poll, events, on_poll) == 0;
}

static enum step watch_or_fail(struct prt_opening *o, int events)
{
    if (watch(o, events)) {
        return STEP_WAIT;
    }
    unwatch(o);
    prt_err_add(&o->err, host_of(o)->text, "the socket cannot be watched: out of memory", "53000");
    prt_conn_drop(o);
    return finish_failed(o);
}

static enum step poll_once(struct prt_opening *o)
{
    PostgresPollingStatusType status;

    unwatch(o);
    if (!prt_line_call_begin(o->line, o)) {
        prt_opening_close(o);
        return STEP_OVER;
    }
    status = PQconnectPoll(o->conn);
    if (!prt_line_call_end(o->line)) {
        prt_opening_close(o);
        return STEP_OVER;
    }
    switch (status) {
    case PGRES_POLLING_READING:
        return watch_or_fail(o, UV_READABLE | UV_DISCONNECT);
    case PGRES_POLLING_WRITING:
        return watch_or_fail(o, UV_WRITABLE | UV_DISCONNECT);
    case PGRES_POLLING_OK:
        return finish_ok(o);
    default:
        return attempt_failed(o);
    }
}

static void on_notice(void *arg, const PGresult *result)
{
    static struct prt_log_limit limit;
    const char *text = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
    const struct prt_opening *o = arg;

    prt_log_limited(&limit, PRT_LOG_INFO, "server_notice", prt_kv_z("server", host_of(o)->text),
                    prt_kv_z("text", text));
}

/* ---- what libpq is told ---- */
struct words {
    const char *keyword[PARAMS_MAX + 1], *value[PARAMS_MAX + 1];
    int n;
};

/* libpq takes the last of a keyword, and no notice of one without a value */
static void add(struct words *w, const char *keyword, const char *value)
{
    if (value && *value) {
        prt_assert(w->n < PARAMS_MAX);
        w->keyword[w->n] = keyword;
        w->value[w->n++] = value;
    }
}

static bool is_ours(const char *keyword)
{
    static const char *const ours[] = {"host",      "hostaddr",        "port",
                                       "options",   "connect_timeout", "target_session_attrs",
                                       "gssencmode"};

    for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++) {
        if (strcmp(keyword, ours[i]) == 0) {
            return true;
        }
    }
    return false;
}

static const char *attrs_word(const struct prt_opening *o)
{
    switch (o->req->target->attrs) {
    case PRT_ATTRS_READ_WRITE:
        return "read-write";
    case PRT_ATTRS_READ_ONLY:
        return "read-only";
    case PRT_ATTRS_PRIMARY:
        return "primary";
    case PRT_ATTRS_STANDBY:
        return "standby";
    case PRT_ATTRS_PREFER_STANDBY: /* over all hosts, so the second pass is ours, too */
        return o->pass == 0 ? "standby" : "any";
    case PRT_ATTRS_ANY:
        break;
    }
    return "any";
}

static void fill_words(const struct prt_opening *o, const char *ip, struct words *w)
{
    const struct prt_request *r = o->req;
    const struct prt_target_host *h = host_of(o);

    w->n = 0;
    add(w, "keepalives_idle", KEEPALIVES_IDLE);
    add(w, "keepalives_interval", KEEPALIVES_INTERVAL);
    add(w, "keepalives_count", KEEPALIVES_COUNT);
    add(w, "tcp_user_timeout", USER_TIMEOUT_MS);
    add(w, "application_name", "poolrt");
    for (const PQconninfoOption *p = r->target->options; p->keyword; p++) {
        if (!is_ours(p->keyword)) {
            add(w, p->keyword, p->val);
        }
    }
    add(w, "dbname", r->dbname);
    add(w, "user", r->user);
    add(w, "password", r->password);
    add(w, "application_name", r->application_name);
    add(w, "options", r->options);
    add(w, "host", h->host);
    add(w, "hostaddr", ip);
    add(w, "port", h->port);
    add(w, "target_session_attrs", attrs_word(o));
    add(w, "gssencmode", "disable"); /* else libpq looks for Kerberos credentials on each connect */
    if (prt_target_knows(r->target, "max_protocol_version")) {
        add(w, "max_protocol_version", "3.0"); /* the trace shows keys of 4 bytes only */
    }
    w->keyword[w->n] = w->value[w->n] = NULL;
}

static enum step no_conn(struct prt_opening *o)
{
    prt_err_add(&o->err, host_of(o)->text, "out of memory", "53200");
    prt_conn_drop(o);
    return finish_failed(o);
}

static enum step try_address(struct prt_opening *o)
{
    const char *ip = o->addrs[o->addr++];
    struct words w;

    fill_words(o, ip, &w);
    if (!o->is_retry) {
        set_share(o, o->n_addrs - o->addr + 1);
    }
    o->is_retry = false;
    start_timer(o, on_attempt_timer, o->until_us);
    if (!prt_line_call_begin(o->line, o)) {
        prt_opening_close(o);
        return STEP_OVER;
    }
    /* never expand dbname: a client's database name that looks like a conninfo must stay a name */
    o->conn = PQconnectStartParams(w.keyword, w.value, 0);
    if (!prt_line_call_end(o->line)) {
        prt_opening_close(o);
        return STEP_OVER;
    }
    if (!o->conn) {
        return no_conn(o);
    }
    if (PQstatus(o->conn) == CONNECTION_BAD) {
        return attempt_failed(o);
    }
    o->trace = open_memstream(&o->trace_text, &o->trace_n);
    if (!o->trace) {
        return no_conn(o);
    }
    PQtrace(o->conn, o->trace);
    PQsetTraceFlags(o->conn, PQTRACE_SUPPRESS_TIMESTAMPS);
    (void)PQsetErrorVerbosity(o->conn, PQERRORS_VERBOSE); /* shows the SQLSTATE */
    (void)PQsetNoticeReceiver(o->conn, on_notice, o);
    return watch_or_fail(o, UV_WRITABLE);
}

/* ---- the walk ---- */
static bool is_numeric(const char *host)
{
    struct in6_addr a;
    char bare[64];

    /* libpq takes "fe80::1%eth0", too */
    return prt_str_copy(bare, sizeof bare, (struct prt_str){host, strcspn(host, "%")}) &&
           (inet_pton(AF_INET, bare, &a) == 1 || inet_pton(AF_INET6, bare, &a) == 1);
}

static void keep_addresses(struct prt_opening *o, const struct addrinfo *list)
{
    for (; list && o->n_addrs < ADDRS_MAX; list = list->ai_next) {
        if (getnameinfo(list->ai_addr, list->ai_addrlen, o->addrs[o->n_addrs], sizeof o->addrs[0],
                        NULL, 0, NI_NUMERICHOST) == 0) {
            o->n_addrs++;
        }
    }
}

static void resolved(struct prt_opening *o, int status, const struct addrinfo *list)
{
    o->resolve = NULL;
    if (!prt_line_owns(o->line, o)) {
        prt_opening_close(o);
        return;
    }
    if (status == 0) {
        keep_addresses(o, list);
    } else {
        char why[160];
        (void)snprintf(why, sizeof why, "the host name cannot be looked up: %s",
                       uv_strerror(status));
        prt_err_add(&o->err, host_of(o)->text, why, NULL);
    }
    go_on(o);
}

static void on_resolved(uv_getaddrinfo_t *uv, int status, struct addrinfo *list)
{
    struct resolve *r = uv->data;

    if (r->o) {
        resolved(r->o, status, list);
    }
    free(r);
    uv_freeaddrinfo(list);
}

static void on_resolve_timer(uv_timer_t *timer)
{
    struct prt_opening *o = timer->data;

    give_up_resolve(o);
    if (!prt_line_owns(o->line, o)) {
        prt_opening_close(o);
        return;
    }
    time_out(o, "while looking up the host name");
    if (is_late(o)) {
        (void)finish_failed(o);
    } else {
        go_on(o);
    }
}

static enum step start_resolve(struct prt_opening *o)
{
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct resolve *r = calloc(1, sizeof *r);

    if (!r) {
        return no_conn(o);
    }
    r->o = o;
    r->uv.data = r;
    if (uv_getaddrinfo(&o->line->loop, &r->uv, on_resolved, host_of(o)->host, NULL, &hints) != 0) {
        free(r);
        return no_conn(o);
    }
    o->resolve = r;
    set_share(o, 1);
    start_timer(o, on_resolve_timer, o->until_us);
    return STEP_WAIT;
}

static bool advance_host(struct prt_opening *o)
{
    const struct prt_target *t = o->req->target;

    o->addr = o->n_addrs = 0;
    if (o->host + 1 < t->n_hosts) {
        o->host++;
        return true;
    }
    if (t->attrs == PRT_ATTRS_PREFER_STANDBY && o->pass == 0) {
        o->pass = 1;
        o->host = 0;
        return true;
    }
    return false;
}

static bool is_hung(const struct prt_opening *o)
{
    bool hung;

    (void)pthread_mutex_lock(&o->line->c->mu);
    hung = host_of(o)->hung > 0;
    (void)pthread_mutex_unlock(&o->line->c->mu);
    return hung;
}

static enum step next_host(struct prt_opening *o)
{
    const struct prt_target_host *h;

    if (!advance_host(o)) {
        return finish_failed(o);
    }
    h = host_of(o);
    if (is_hung(o)) {
        prt_err_add(&o->err, h->text, "an earlier login to it still hangs inside libpq", NULL);
        return STEP_NEXT;
    }
    if (h->host && !h->is_unix && !h->hostaddr && !is_numeric(h->host)) {
        return start_resolve(o);
    }
    o->n_addrs = 1;
    o->addrs[0][0] = '\0';
    if (h->hostaddr && !prt_str_copy(o->addrs[0], sizeof o->addrs[0], prt_str_of(h->hostaddr))) {
        prt_err_add(&o->err, h->text, "hostaddr is not an address", NULL);
        o->n_addrs = 0;
    }
    return STEP_NEXT;
}

static void go_on(struct prt_opening *o)
{
    enum step s = STEP_NEXT;

    (void)uv_timer_stop(&o->timer);
    while (s == STEP_NEXT) {
        s = o->addr < o->n_addrs ? try_address(o) : next_host(o);
    }
}

struct prt_opening *prt_opening_new(struct prt_line *l)
{
    struct prt_opening *o = PRT_FAULT("opening_nomem") ? NULL : calloc(1, sizeof *o);

    if (!o) {
        return NULL;
    }
    o->addrs = calloc(ADDRS_MAX, sizeof *o->addrs);
    if (!o->addrs) {
        free(o);
        return NULL;
    }
    o->line = l;
    o->host = -1;
    return o;
}

void prt_opening_free(struct prt_opening *o)
{
    if (o) {
        prt_request_free(o->req);
        free(o->addrs);
        free(o);
    }
}

void prt_opening_run(struct prt_opening *o)
{
    (void)uv_timer_init(&o->line->loop, &o->timer); /* cannot fail */
    o->timer.data = o;
    go_on(o);
}
