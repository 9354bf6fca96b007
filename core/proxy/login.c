/* login.c - from accept to the first ReadyForQuery.
 * Owns: struct prt_login_try of each client that is not logged in.   Threads: the client's worker.
 * Idea: everything a stranger may send is handled here, from a buffer of at most one startup packet
 * or one password message, under one time limit that runs from accept. No server is taken; only the
 * first clients of a class wait for one (welcome.c), to be told what it reports. */
#include "proxy/proxy_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define IN_MAX (PRT_SCRAM_MESSAGE_MAX + 16)

static struct prt_login_try *login_of(struct prt_client *c)
{
    if (!c->login) {
        c->login = calloc(1, sizeof *c->login);
        if (c->login) {
            c->login->client = c;
        }
    }
    return c->login;
}

void prt_login_end(struct prt_client *c)
{
    struct prt_login_try *l = c->login;

    if (!l) {
        return;
    }
    prt_welcome_left(c);
    prt_auth_end(l->proof);
    free(l->user);
    free(l->database);
    free(l->application);
    free(l->tenant);
    prt_buf_free(&l->settings);
    if (l->wanted) {
        prt_params_unref(l->wanted);
    }
    free(l);
    c->login = NULL;
}

void prt_login_timeout(struct prt_timer *t, int64_t now_us)
{
    struct prt_client *c = prt_container_of(t, struct prt_client, timer);

    prt_assert_worker();
    prt_client_fatal(c, "08P01", "the login took longer than auth.login_timeout", NULL,
                     PRT_GONE_LOGIN_TIMEOUT);
}

ON_WORKER static void fail_memory(struct prt_client *c)
{
    prt_client_fatal(c, "53200", "out of memory", NULL, PRT_GONE_NO_MEMORY);
}

/* The one answer to a wrong password, an unknown user and an empty password (TRUST L11). */
ON_WORKER static void deny(struct prt_client *c)
{
    char text[PRT_NAME_MAX + 64];
    struct prt_str user = prt_str_of(c->login->user);

    prt_count(&c->worker->n.login_failures, 1);
    (void)snprintf(text, sizeof text, "password authentication failed for user \"" PRT_STR_FMT "\"",
                   PRT_STR_ARG(user));
    prt_client_log(c, PRT_LOG_WARN, "login_failed", "error", text);
    prt_client_fatal(c, "28P01", text, NULL, PRT_GONE_LOGIN_FAILED);
}

void prt_login_refuse(struct prt_client *c, const struct prt_err *err)
{
    const char *sqlstate = err->sqlstate[0] ? err->sqlstate : prt_error_row(err->rc)->sqlstate;

    prt_client_log(c, PRT_LOG_WARN, "login_refused", "error", err->text);
    prt_client_fatal(c, sqlstate, err->text, NULL, PRT_GONE_LOGIN_REFUSED);
}

/* ---- the end of a login: told what the server reports, given a cancel key ---- */

static void put_params(struct prt_buf *b, const struct prt_params *set)
{
    struct prt_str name, value;

    for (unsigned i = 0; i < prt_params_count(set); i++) {
        prt_params_at(set, i, &name, &value);
        prt_put_param(b, name, value);
    }
}

/* What the server reports, with the client's own settings in place of its. */
static const struct prt_params *overlay(const struct prt_params *welcome,
                                        const struct prt_params *wanted)
{
    const struct prt_params *set = prt_params_ref(welcome);
    struct prt_str name, value, had;

    for (unsigned i = 0; wanted && i < prt_params_count(wanted); i++) {
        prt_params_at(wanted, i, &name, &value);
        if (prt_params_get(set, name, &had)) {
            set = prt_params_with(set, name, value);
        }
    }
    return set;
}

void prt_login_finish(struct prt_client *c, const struct prt_params *welcome)
{
    struct prt_worker *w = c->worker;
    struct prt_buf b = {0};

    c->params = overlay(welcome, c->login->wanted);
    prt_params_unref(welcome);
    c->startup = prt_params_ref(c->params);
    c->journal = prt_params_ref(prt_params_empty());
    c->channels = prt_params_ref(prt_params_empty());
    if (!prt_registry_add(&w->px->registry, &c->cancel, (uint16_t)w->lane)) {
        fail_memory(c);
        return;
    }
    c->is_listed = true;
    put_params(&b, c->params);
    prt_put_key(&b, prt_get32(c->cancel.key), c->cancel.key + 4, PRT_CANCEL_KEY - 4);
    prt_put_ready(&b, 'I');
    prt_login_end(c);
    prt_timer_clear(&c->timer);
    prt_client_set_state(c, PRT_CLIENT_IDLE);
    prt_count(&w->n.logins, 1);
    if (w->snap->cfg->log_connections) {
        prt_client_log(c, PRT_LOG_INFO, "login", "tls", c->sock.ssl ? "on" : "off");
    }
    prt_client_send_buf(c, &b);
    prt_client_set_idle(c);
}

ON_WORKER static void welcome(struct prt_client *c)
{
    const struct prt_params *known = prt_login_welcome(prt_class_user(c->id->cls));

    if (known) {
        prt_login_finish(c, known);
    } else {
        prt_welcome_wait(c);
    }
}

ON_WORKER static bool identify(struct prt_client *c, struct prt_err *err)
{
    struct prt_login_try *l = c->login;

    c->pool = prt_pools_join(c->worker->px, prt_str_of(l->database), err);
    if (!c->pool) {
        return false;
    }
    struct prt_class *cls =
        prt_pools_class(c->pool, prt_str_of(l->user), (const char *)prt_buf_data(&l->settings),
                        prt_buf_len(&l->settings));
    if (!cls) {
        (void)prt_fail(err, POOLRT_NOMEM,
                       "no memory, or too many different users and startup options");
        return false;
    }
    c->id = prt_worker_identity(c->worker, cls, prt_str_of(l->user), prt_str_of(l->database),
                                prt_str_of(l->application), prt_str_of(l->tenant));
    if (!c->id) {
        prt_class_unref(cls);
        (void)prt_fail(err, POOLRT_NOMEM, "no memory for the client");
        return false;
    }
    return true;
}

/* user "acme_app" and pattern "*_app" give "acme". */
static struct prt_str match_star(const char *pattern, struct prt_str s)
{
    const char *star = strchr(pattern, '*');
    size_t before = star ? (size_t)(star - pattern) : 0, after = star ? strlen(star + 1) : 0;

    if (!star) {
        return prt_str_eqz(s, pattern) ? s : (struct prt_str){0};
    }
    if (s.n < before + after || memcmp(s.p, pattern, before) != 0 ||
        memcmp(s.p + s.n - after, star + 1, after) != 0) {
        return (struct prt_str){0};
    }
    return (struct prt_str){s.p + before, s.n - before - after};
}

/* Which tenant it is: what it said by options=-c poolrt.tenant=..., else as the pool derives it. */
static bool find_tenant(struct prt_client *c)
{
    struct prt_login_try *l = c->login;
    const struct prt_tenant_config *t = &prt_client_row(c)->tenant;
    struct prt_str from = {0};

    if (l->tenant) {
        return true;
    }
    switch (t->from) {
    case PRT_TENANT_NONE:
        break;
    case PRT_TENANT_DATABASE:
        from = prt_str_of(l->database);
        break;
    case PRT_TENANT_APPLICATION:
        from = prt_str_of(l->application);
        break;
    case PRT_TENANT_USER:
        from = prt_str_of(l->user);
        break;
    }
    if (t->pattern) {
        from = match_star(t->pattern, from);
    }
    l->tenant = strndup(from.p ? from.p : "", from.n);
    return l->tenant != NULL;
}

/* The password is right, or none is asked for. */
ON_WORKER static void logged_in(struct prt_client *c)
{
    struct prt_login_try *l = c->login;
    struct prt_buf b = {0};
    struct prt_err err;

    /* the tenant may depend on the pool, the identity on the tenant */
    struct prt_proxy_pool *pp = prt_pools_join(c->worker->px, prt_str_of(l->database), &err);
    if (!pp) {
        prt_login_refuse(c, &err);
        return;
    }
    c->pool = pp;
    bool has_tenant = find_tenant(c);
    c->pool = NULL;
    bool ok = has_tenant && identify(c, &err);
    prt_pools_leave(pp);
    if (!has_tenant) {
        fail_memory(c);
        return;
    }
    if (!ok) {
        prt_login_refuse(c, &err);
        return;
    }
    prt_put_auth(&b, 0, NULL, 0);
    prt_client_send_buf(c, &b);
    welcome(c);
}

/* ---- the startup packet's settings ---- */

static bool add_setting(struct prt_login_try *l, struct prt_str name, struct prt_str value)
{
    if (prt_str_eqz(name, "poolrt.tenant")) {
        free(l->tenant);
        l->tenant = strndup(value.p, value.n);
        return l->tenant != NULL;
    }
    if (prt_params_is_tracked(name)) {
        l->wanted = prt_params_with(l->wanted ? l->wanted : prt_params_ref(prt_params_empty()),
                                    name, value);
        return true;
    }
    /* not reported by servers, so it cannot be restored: part of the class */
    return prt_buf_add(&l->settings, name.p, name.n) && prt_buf_add(&l->settings, "", 1) &&
           prt_buf_add(&l->settings, value.p, value.n) && prt_buf_add(&l->settings, "", 1);
}

ON_WORKER static bool read_options(struct prt_client *c, const struct prt_startup *st)
{
    char buf[PRT_STARTUP_MAX];
    struct prt_str name, value;
    size_t at = 0;
    int rc;

    while ((rc = prt_options_next(st->options, &at, buf, &name, &value)) == 1) {
        if (!add_setting(c->login, name, value)) {
            fail_memory(c);
            return false;
        }
    }
    if (rc < 0) {
        char text[160];
        (void)snprintf(text, sizeof text, "invalid command-line argument in options: " PRT_STR_FMT,
                       (int)(name.n > 80 ? 80 : name.n), name.p);
        prt_client_fatal(c, "42601", text, "poolrt takes -c name=value and --name=value.",
                         PRT_GONE_LOGIN_REFUSED);
    }
    return rc == 0;
}

static bool is_special(struct prt_str name)
{
    return prt_str_eqz(name, "user") || prt_str_eqz(name, "database") ||
           prt_str_eqz(name, "options") || prt_str_eqz(name, "replication") ||
           (name.n > 5 && memcmp(name.p, "_pq_.", 5) == 0);
}

/* A client that names none has an empty one, not what the server connection is called. */
static bool names_application(const struct prt_login_try *l)
{
    struct prt_str value;

    return l->wanted && prt_params_get(l->wanted, PRT_STR("application_name"), &value);
}

ON_WORKER static bool read_settings(struct prt_client *c, const struct prt_startup *st)
{
    struct prt_str name, value;

    if (!read_options(c, st)) {
        return false;
    }
    for (size_t at = 0; prt_startup_next(st, &at, &name, &value);) {
        if (!is_special(name) && !add_setting(c->login, name, value)) {
            fail_memory(c);
            return false;
        }
    }
    if (!names_application(c->login) &&
        !add_setting(c->login, PRT_STR("application_name"), PRT_STR(""))) {
        fail_memory(c);
        return false;
    }
    return true;
}

static bool copy_names(struct prt_login_try *l, const struct prt_startup *st)
{
    struct prt_str db = st->database.n ? st->database : st->user;

    l->user = strndup(st->user.p, st->user.n);
    l->database = strndup(db.p, db.n);
    l->application =
        strndup(st->application_name.p ? st->application_name.p : "", st->application_name.n);
    return l->user && l->database && l->application;
}

/* ---- packets ---- */

ON_WORKER static bool is_allowed(struct prt_client *c, const struct prt_startup *st)
{
    const struct prt_config *cfg = c->worker->snap->cfg;

    if (cfg->tls_mode == PRT_TLS_REQUIRE && !c->sock.ssl && c->peer.family != AF_UNIX) {
        prt_client_fatal(c, "28000", "this server accepts only encrypted connections",
                         "Connect with sslmode=require.", PRT_GONE_TLS_FAILED);
        return false;
    }
    if (st->is_replication) {
        prt_client_fatal(c, "0A000", "replication connections are not supported",
                         "Connect to PostgreSQL directly for replication.", PRT_GONE_LOGIN_REFUSED);
        return false;
    }
    /* relaxed: a bound that may be passed by the few that arrive at this very moment */
    if (atomic_load_explicit(&c->worker->px->n_clients, memory_order_relaxed) > cfg->max_clients) {
        prt_client_fatal(c, "53300", "sorry, too many clients already",
                         "max_clients of poolrt is reached.", PRT_GONE_LOGIN_REFUSED);
        return false;
    }
    return true;
}

/* Uses the packet up: what follows it may already be a password. */
ON_WORKER static void begin_session(struct prt_client *c, const struct prt_startup *st)
{
    struct prt_login_try *l = login_of(c);
    struct prt_buf b = {0};

    if (!is_allowed(c, st)) {
        return;
    }
    if (!l || !copy_names(l, st)) {
        fail_memory(c);
        return;
    }
    if (!read_settings(c, st)) {
        return;
    }
    if (st->wants_negotiation) {
        prt_put_negotiate(&b, st);
    }
    l->proof = prt_auth_begin(c->worker->snap->auth, prt_str_of(l->user), c->sock.ssl, &b);
    if (!l->proof) {
        prt_buf_free(&b);
        fail_memory(c);
        return;
    }
    prt_buf_eat(&c->in, st->size);
    prt_client_send_buf(c, &b);
    if (prt_auth_wants_proof(l->proof)) {
        prt_client_set_state(c, PRT_CLIENT_AUTH);
    } else {
        logged_in(c);
    }
}

struct cancel_mail {
    struct prt_mail mail;
    uint8_t key[PRT_CANCEL_KEY];
};

static void deliver_cancel(void *owner, struct prt_mail *mail)
{
    struct cancel_mail *m = prt_container_of(mail, struct cancel_mail, mail);
    struct prt_worker *w = owner;

    prt_assert_worker();
    struct prt_registry_entry *e = prt_registry_find(&w->px->registry, m->key);
    free(m);
    if (e && e->lane == w->lane) {
        prt_client_cancel(prt_container_of(e, struct prt_client, cancel));
    }
}

/* By mail to the worker that has the client. */
static void send_cancel(struct prt_proxy *px, const uint8_t key[PRT_CANCEL_KEY])
{
    int lane = prt_registry_lane(&px->registry, key);
    struct cancel_mail *m = lane >= 0 ? calloc(1, sizeof *m) : NULL;

    if (m) {
        m->mail.deliver = deliver_cancel;
        memcpy(m->key, key, PRT_CANCEL_KEY);
        prt_mailbox_post(&px->worker[lane].mail, &m->mail);
    }
}

/* Never answered, known or not. */
ON_WORKER static void cancel_request(struct prt_client *c, const struct prt_startup *st)
{
    uint8_t key[PRT_CANCEL_KEY];

    prt_count(&c->worker->n.cancels_received, 1);
    if (st->cancel_key.n == PRT_CANCEL_KEY - 4) {
        prt_put32(key, st->cancel_pid);
        memcpy(key + 4, st->cancel_key.p, PRT_CANCEL_KEY - 4);
        send_cancel(c->worker->px, key);
    }
    prt_client_leave(c, PRT_GONE_CANCEL_REQUEST);
}

/* SSLRequest or GSSENCRequest. Nothing may lie behind it when it is answered: such bytes were sent
 * before the encryption and would be read as if they had come through it (TRUST L1). */
ON_WORKER static void encryption_request(struct prt_client *c, const struct prt_startup *st,
                                         bool has_more)
{
    struct prt_login_try *l = login_of(c);
    bool is_ssl = st->kind == PRT_START_SSL;
    bool tls = is_ssl && c->worker->snap->tls && c->peer.family != AF_UNIX && !c->sock.ssl;

    if (!l) {
        fail_memory(c);
        return;
    }
    if (has_more) {
        prt_client_fatal(c, "08P01", "received unencrypted data after an encryption request", NULL,
                         PRT_GONE_PROTOCOL);
        return;
    }
    if (is_ssl ? l->had_ssl || c->sock.ssl : l->had_gss) {
        prt_client_fatal(c, "0A000",
                         "unsupported frontend protocol: an encryption request came twice", NULL,
                         PRT_GONE_PROTOCOL);
        return;
    }
    l->had_ssl |= is_ssl;
    l->had_gss |= !is_ssl;
    prt_client_send(c, tls ? "S" : "N", 1);
    if (!tls) {
        return;
    }
    c->sock.ssl = prt_tls_accept_new(c->worker->snap->tls, c->sock.fd);
    l->in_handshake = true;
    if (!c->sock.ssl) {
        fail_memory(c);
    }
}

ON_WORKER static void startup_packet(struct prt_client *c)
{
    struct prt_startup st;
    struct prt_err err;
    size_t n = prt_buf_len(&c->in);

    switch (prt_startup_parse(prt_buf_data(&c->in), n, &st, &err)) {
    case PRT_STARTUP_MORE:
        return;
    case PRT_STARTUP_SILENCE:
        prt_client_leave(c, PRT_GONE_PROTOCOL);
        return;
    case PRT_STARTUP_ERROR:
        prt_client_fatal(c, err.sqlstate[0] ? err.sqlstate : "08P01", err.text, NULL,
                         PRT_GONE_PROTOCOL);
        return;
    case PRT_STARTUP_OK:
        break;
    }
    size_t size = st.size;
    if (st.kind == PRT_START_CANCEL) {
        cancel_request(c, &st);
    } else if (st.kind == PRT_START_SESSION) {
        begin_session(c, &st);
    } else {
        encryption_request(c, &st, n > size);
        if (c->state != PRT_CLIENT_GONE) {
            prt_buf_eat(&c->in, size);
        }
    }
}

ON_WORKER static void password_message(struct prt_client *c)
{
    struct prt_auth_try *proof = c->login ? c->login->proof : NULL;
    struct prt_frame f = {0};
    struct prt_buf out = {0};
    struct prt_msg m;

    switch (
        prt_frame_next(&f, PRT_FRONTEND, prt_buf_data(&c->in), prt_buf_len(&c->in), IN_MAX, &m)) {
    case PRT_FRAME_MORE:
        return;
    case PRT_FRAME_MSG:
        break;
    default:
        m.type = 0;
        break;
    }
    if (m.type == 'X') {
        prt_client_leave(c, PRT_GONE_CLIENT_QUIT);
        return;
    }
    enum prt_auth_rc rc =
        m.type == 'p' && m.have == m.len ? prt_auth_answer(proof, &m, &out) : PRT_AUTH_BAD;
    if (m.type) {
        prt_secret_wipe(c->in.p + c->in.off, m.size);
        prt_buf_eat(&c->in, m.size);
    }
    prt_client_send_buf(c, &out);
    switch (rc) {
    case PRT_AUTH_MORE:
        break;
    case PRT_AUTH_OK:
        logged_in(c);
        break;
    case PRT_AUTH_DENIED:
        deny(c);
        break;
    case PRT_AUTH_BAD:
        prt_client_fatal(c, "08P01", "expected a password message of the authentication asked for",
                         NULL, PRT_GONE_PROTOCOL);
        break;
    }
}

/* ---- events ---- */

/* true: the handshake is through, or there is none. */
ON_WORKER static bool shake_hands(struct prt_client *c)
{
    const char *why = "";
    int rc;

    if (!c->login || !c->login->in_handshake) {
        return true;
    }
    rc = prt_tls_handshake(c->sock.ssl, &why);
    c->sock.write_first = rc == PRT_IO_WANT_WRITE;
    if (rc == 1) {
        c->login->in_handshake = false;
        prt_client_set_reading(c);
        return true;
    }
    if (rc == PRT_IO_AGAIN || rc == PRT_IO_WANT_WRITE) {
        prt_client_set_reading(c);
        return false;
    }
    prt_client_log(c, PRT_LOG_WARN, "tls_failed", "error", why);
    prt_client_leave(c, PRT_GONE_TLS_FAILED);
    return false;
}

ON_WORKER static bool read_more(struct prt_client *c)
{
    size_t cap = c->state == PRT_CLIENT_START ? PRT_STARTUP_MAX + 1 : IN_MAX;
    size_t have = prt_buf_len(&c->in);
    uint8_t *room = have < cap ? prt_buf_room(&c->in, cap - have) : NULL;
    ssize_t n = room ? prt_sock_recv(&c->sock, room, cap - have) : PRT_IO_FAILED;

    if (n > 0) {
        c->in.n += (uint32_t)n;
        prt_count(&c->worker->n.bytes_in, (uint64_t)n);
        return true;
    }
    if (n != PRT_IO_AGAIN && n != PRT_IO_WANT_WRITE) {
        prt_client_leave(c, PRT_GONE_CLIENT_GONE);
    }
    return false;
}

/* Every packet that is there; each may change what the next one has to be. */
ON_WORKER static void use_packets(struct prt_client *c)
{
    size_t before;

    do {
        before = prt_buf_len(&c->in);
        if (before == 0 || (c->login && c->login->in_handshake)) {
            return;
        }
        if (c->state == PRT_CLIENT_START) {
            startup_packet(c);
        } else if (c->state == PRT_CLIENT_AUTH) {
            password_message(c);
        } else {
            return;
        }
    } while (c->state < PRT_CLIENT_WELCOME && prt_buf_len(&c->in) < before);
    if (c->state == PRT_CLIENT_IDLE) {
        prt_client_resume(c); /* a client that did not wait for ReadyForQuery */
    }
}

void prt_login_go_on(struct prt_client *c)
{
    if (prt_buf_len(&c->out)) {
        ssize_t r = prt_sock_send(&c->sock, prt_buf_data(&c->out), prt_buf_len(&c->out));
        if (r > 0) {
            prt_buf_eat(&c->out, (size_t)r);
        }
        prt_client_set_reading(c);
    }
    while (c->state < PRT_CLIENT_WELCOME && shake_hands(c) && read_more(c)) {
        use_packets(c);
    }
}
