/* http.c - libmicrohttpd as a guest of the control thread's loop.
 * Owns: the daemon of libmicrohttpd, the access rules, the Lua binding.   Threads: control.
 * Idea: libmicrohttpd runs without a thread and without a listener. gate.c hands it sockets whose
 * head is whole and sane; it frames the body, sends the answer slowly to slow readers, and closes:
 * each answer says "Connection: close", so what a client sends behind its request is never read as
 * one. */
#include "admin/admin_int.h"

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TICK_MS 10000
#define LATE_MS 500 /* how often it is looked who has waited for too long */
#define BACKLOG 128
/* per connection: the head again, libmicrohttpd's list of its fields, the answer's head */
#define MHD_MEMORY (96u * 1024)

struct prt_admin {
    uv_loop_t *loop;
    char where[300]; /* the address as configured */
    struct prt_access access;
    struct prt_bind *bind;
    struct prt_gate *gate;
    struct MHD_Daemon *mhd;
    uv_poll_t poll;   /* libmicrohttpd's epoll descriptor */
    uv_timer_t again; /* when it wants to run without an event */
    uv_timer_t tick;
    uv_async_t wake; /* a worker has answered */
    uv_timer_t late; /* runs while somebody waits for one */
    struct prt_bind_ops ops;
    bool has_wake;
    unsigned handles; /* not yet closed by the loop */
};

/* ---- running libmicrohttpd ---- */

static void on_again(uv_timer_t *t);

static void run(struct prt_admin *a)
{
    MHD_UNSIGNED_LONG_LONG ms;

    (void)MHD_run(a->mhd);
    /* 0 means "at once": it holds work that no descriptor will announce */
    if (MHD_get_timeout(a->mhd, &ms) == MHD_YES) {
        (void)uv_timer_start(&a->again, on_again, ms, 0);
    } else {
        (void)uv_timer_stop(&a->again);
    }
}

static void on_again(uv_timer_t *t)
{
    prt_assert_control();
    run(t->data);
}

static void on_poll(uv_poll_t *p, int status, int events)
{
    prt_assert_control();
    run(p->data);
}

static void on_tick(uv_timer_t *t)
{
    struct prt_admin *a = t->data;

    prt_assert_control();
    prt_bind_tick(a->bind);
}

/* ---- requests that wait for the workers: suspended, so that the loop serves others ---- */

static void collect(struct prt_admin *a)
{
    prt_assert_control();
    if (!prt_bind_collect(a->bind, prt_now_us())) {
        (void)uv_timer_stop(&a->late);
    }
    run(a);
}

static void on_wake(uv_async_t *h)
{
    collect(h->data);
}

static void on_late(uv_timer_t *t)
{
    collect(t->data);
}

static void wake(void *ctx)
{
    (void)uv_async_send(&((struct prt_admin *)ctx)->wake);
}

static void ready(void *ctx, void *owner)
{
    MHD_resume_connection(((struct prt_gate_conn *)owner)->mhd);
}

static void wait_for_workers(struct prt_admin *a, struct MHD_Connection *mc,
                             struct prt_gate_conn *c)
{
    c->mhd = mc;
    MHD_suspend_connection(mc);
    (void)uv_timer_start(&a->late, on_late, LATE_MS, LATE_MS);
}

/* ---- answers ---- */

static enum MHD_Result send_reply(struct MHD_Connection *mc, const struct prt_bind_reply *r)
{
    struct MHD_Response *m = MHD_create_response_from_buffer(
        r->body.n, (char *)(uintptr_t)r->body.p, MHD_RESPMEM_MUST_COPY);
    enum MHD_Result ok = MHD_YES;

    if (!m) {
        return MHD_NO;
    }
    for (int i = 0; i < r->n_headers; i++) {
        ok &= MHD_add_response_header(m, r->headers[i].name, r->headers[i].value);
    }
    ok &= MHD_add_response_header(m, "Content-Type", r->type);
    ok &= MHD_add_response_header(m, "X-Content-Type-Options", "nosniff");
    ok &= MHD_add_response_header(m, "Cache-Control", "no-store");
    ok &= MHD_add_response_header(m, "Connection", "close");
    if (ok == MHD_YES) {
        ok = MHD_queue_response(mc, (unsigned)r->status, m);
    }
    MHD_destroy_response(m);
    return ok;
}

static void say_peer(const struct prt_gate_conn *c, char *to, size_t cap)
{
    if (getnameinfo((const struct sockaddr *)&c->peer, c->peer_len, to, (socklen_t)cap, NULL, 0,
                    NI_NUMERICHOST) != 0) {
        to[0] = '\0';
    }
}

/* What the workers have said is there, or they do not answer. */
static enum MHD_Result answer_late(struct MHD_Connection *mc, struct prt_gate_conn *c)
{
    struct prt_bind_call *call = c->call;
    struct prt_bind_reply reply;

    prt_assert_control();
    c->call = NULL;
    prt_bind_go_on(call, &reply);
    return send_reply(mc, &reply);
}

static enum MHD_Result answer(struct prt_admin *a, struct MHD_Connection *mc,
                              struct prt_gate_conn *c)
{
    const struct sockaddr *peer = (const struct sockaddr *)&c->peer;
    struct prt_bind_request rq = {.method = c->head.method, .target = c->head.target};
    struct prt_bind_reply reply;
    static struct prt_log_limit limit;

    prt_assert_control();
    say_peer(c, rq.peer, sizeof rq.peer);
    rq.refused = prt_access_check(&a->access, &c->head, peer, prt_now_us(), &rq.is_admin);
    rq.is_loopback = prt_sockaddr_is_loopback(peer);
    if (rq.refused.status == 401 || rq.refused.status == 429) {
        prt_log_limited(&limit, PRT_LOG_WARN, "admin_auth_failed",
                        prt_kv_z("reason", rq.refused.text),
                        prt_kv_int("failures", (int64_t)a->access.failures));
    }
    c->call = prt_bind_handle(a->bind, &rq, &reply, c);
    if (c->call) {
        wait_for_workers(a, mc, c);
        return MHD_YES;
    }
    return send_reply(mc, &reply);
}

/* Called when the head was read, for each part of the body, and when all is in. */
static enum MHD_Result on_request(void *cls, struct MHD_Connection *mc, const char *url,
                                  const char *method, const char *version, const char *upload,
                                  size_t *upload_n, void **state)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mc, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct prt_gate_conn *c = info ? info->socket_context : NULL;

    prt_assert_control();
    /* both parsers must have read the same request */
    if (!c || !prt_str_eqz(c->head.method, method)) {
        return MHD_NO;
    }
    if (!*state) {
        *state = c;
        return MHD_YES;
    }
    if (*upload_n) {
        *upload_n = 0; /* no route takes a body: bounded by its Content-Length, and dropped */
        return MHD_YES;
    }
    return c->call ? answer_late(mc, c) : answer(cls, mc, c);
}

static void on_connection(void *cls, struct MHD_Connection *mc, void **context,
                          enum MHD_ConnectionNotificationCode code)
{
    struct prt_admin *a = cls;
    const union MHD_ConnectionInfo *info;

    prt_assert_control();
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        info = MHD_get_connection_info(mc, MHD_CONNECTION_INFO_CONNECTION_FD);
        *context = info ? prt_gate_find(a->gate, info->connect_fd) : NULL;
    } else if (*context) {
        struct prt_gate_conn *c = *context;
        if (c->call) {
            prt_bind_drop(c->call);
        }
        prt_gate_forget(c);
        *context = NULL;
    }
}

/* Its lines speak of peers that left; a peer can cause as many as it likes. */
PRT_PRINTF(2, 0) static void on_mhd_log(void *cls, const char *fmt, va_list ap)
{
    static struct prt_log_limit limit;
    char text[256];

    (void)vsnprintf(text, sizeof text, fmt, ap);
    text[strcspn(text, "\n")] = '\0';
    prt_log_limited(&limit, PRT_LOG_DEBUG, "admin_http", prt_kv_z("text", text));
}

/* ---- the gate's side ---- */

static bool on_serve(void *ctx, struct prt_gate_conn *c)
{
    struct prt_admin *a = ctx;

    prt_assert_control();
    /* on failure the descriptor is closed, and no notification comes */
    if (MHD_add_connection(a->mhd, c->fd, (struct sockaddr *)&c->peer, c->peer_len) != MHD_YES) {
        return false;
    }
    run(a);
    return true;
}

static size_t on_refuse(void *ctx, const struct prt_gate_conn *c, const struct prt_refusal *why,
                        char *out, size_t cap)
{
    struct prt_admin *a = ctx;
    struct prt_bind_request rq = {.refused = *why};
    struct prt_bind_reply r;
    int n;

    prt_assert_control();
    if (prt_bind_handle(a->bind, &rq, &r, NULL)) {
        return 0; /* a refusal waits for nobody */
    }
    n = snprintf(out, cap,
                 "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
                 "X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"
                 "Connection: close\r\n\r\n" PRT_STR_FMT,
                 r.status, MHD_get_reason_phrase_for((unsigned)r.status), r.type, r.body.n,
                 PRT_STR_ARG(r.body));
    return n > 0 && (size_t)n < cap ? (size_t)n : 0;
}

static void on_shut(void *ctx)
{
    prt_assert_control();
    run(ctx);
}

static const struct prt_gate_ops gate_ops = {on_serve, on_refuse, on_shut};

/* ---- listening ---- */

static poolrt_rc resolve(const char *host, uint16_t number, struct addrinfo **out,
                         struct prt_err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    char port[8];
    int rc;

    (void)snprintf(port, sizeof port, "%u", number);
    rc = getaddrinfo(host, port, &hints, out);
    if (rc != 0) {
        return prt_fail(err, POOLRT_CONFIG, "admin.listen: %s: %s", host, gai_strerror(rc));
    }
    return POOLRT_OK;
}

static poolrt_rc bind_to(const struct addrinfo *ai, const char *where, int *out,
                         struct prt_err *err)
{
    int one = 1, zero = 0, why;
    int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0) {
        return prt_fail(err, POOLRT_IO, "admin.listen: %s: %s", where, strerrordesc_np(errno));
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (ai->ai_family == AF_INET6) {
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
    }
    if (bind(fd, ai->ai_addr, ai->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0) {
        *out = fd;
        return POOLRT_OK;
    }
    why = errno;
    (void)close(fd);
    if (why == EADDRINUSE) {
        return prt_fail(err, POOLRT_IO,
                        "admin.listen: %s is in use by another program (perhaps another poolrt); "
                        "stop it or choose another port",
                        where);
    }
    return prt_fail(err, POOLRT_IO, "admin.listen: %s: %s", where, strerrordesc_np(why));
}

/* The listening socket; sets up the access rules, which depend on its address. */
static poolrt_rc listen_at(struct prt_admin *a, const struct prt_config *cfg, const char *host,
                           int *fd, struct prt_err *err)
{
    struct addrinfo *list = NULL;
    poolrt_rc rc = resolve(host, cfg->admin_listen.port, &list, err);

    if (rc != POOLRT_OK) {
        return rc;
    }
    prt_assert_control();
    prt_access_init(&a->access, cfg, list->ai_addr);
    if (!a->access.has_token && !a->access.is_loopback) {
        rc = prt_fail(err, POOLRT_CONFIG,
                      "admin.listen: %s can be reached from other machines: set admin.token, or "
                      "listen on 127.0.0.1",
                      a->where);
    } else {
        rc = bind_to(list, a->where, fd, err);
    }
    freeaddrinfo(list);
    return rc;
}

/* "*": both families by one socket, where the machine has both */
static poolrt_rc listen_on(struct prt_admin *a, const struct prt_config *cfg, int *fd,
                           struct prt_err *err)
{
    const char *host = cfg->admin_listen.host;

    if (strcmp(host, "*") != 0) {
        return listen_at(a, cfg, host, fd, err);
    }
    if (listen_at(a, cfg, "::", fd, err) == POOLRT_OK) {
        return POOLRT_OK;
    }
    return listen_at(a, cfg, "0.0.0.0", fd, err);
}

/* ---- start, apply, stop ---- */

static void on_closed(uv_handle_t *h)
{
    struct prt_admin *a = h->data;

    prt_assert_control();
    a->handles--;
}

static void start_handles(struct prt_admin *a)
{
    prt_assert_control();
    (void)uv_timer_init(a->loop, &a->again);
    (void)uv_timer_init(a->loop, &a->tick);
    (void)uv_timer_init(a->loop, &a->late);
    a->handles = 4;
    a->poll.data = a->again.data = a->tick.data = a->late.data = a;
    (void)uv_poll_start(&a->poll, UV_READABLE, on_poll);
    (void)uv_timer_start(&a->tick, on_tick, TICK_MS, TICK_MS);
    prt_bind_tick(a->bind); /* the first sample */
    run(a);
}

static poolrt_rc start_mhd(struct prt_admin *a, struct prt_err *err)
{
    const union MHD_DaemonInfo *info;

    a->mhd = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET | MHD_USE_ERROR_LOG | MHD_ALLOW_SUSPEND_RESUME, 0,
        NULL, NULL, on_request, a, MHD_OPTION_EXTERNAL_LOGGER, on_mhd_log, NULL,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, a, MHD_OPTION_CONNECTION_LIMIT,
        2u * PRT_HTTP_CONNECTIONS, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)MHD_MEMORY,
        MHD_OPTION_CONNECTION_TIMEOUT, PRT_HTTP_REQUEST_US / 1000000u, MHD_OPTION_STRICT_FOR_CLIENT,
        1, MHD_OPTION_END);
    info = a->mhd ? MHD_get_daemon_info(a->mhd, MHD_DAEMON_INFO_EPOLL_FD) : NULL;
    if (!info || uv_poll_init(a->loop, &a->poll, info->epoll_fd) != 0) {
        return prt_fail(err, POOLRT_IO, "admin: libmicrohttpd cannot start");
    }
    start_handles(a);
    return POOLRT_OK;
}

static poolrt_rc start_wake(struct prt_admin *a, struct prt_err *err)
{
    if (uv_async_init(a->loop, &a->wake, on_wake) != 0) {
        return prt_fail(err, POOLRT_IO, "admin: the loop cannot be woken");
    }
    a->wake.data = a;
    a->has_wake = true;
    a->handles++;
    return POOLRT_OK;
}

static void say_where(struct prt_admin *a, const struct prt_address *ad)
{
    if (ad->text) {
        (void)snprintf(a->where, sizeof a->where, "%s", ad->text);
    } else {
        (void)snprintf(a->where, sizeof a->where, strchr(ad->host, ':') ? "[%s]:%u" : "%s:%u",
                       ad->host, ad->port);
    }
}

poolrt_rc prt_admin_start(struct prt_admin **out, uv_loop_t *loop, struct prt_config *cfg,
                          const struct prt_admin_deps *deps, struct prt_err *err)
{
    struct prt_admin *a;
    poolrt_rc rc;
    int fd = -1;

    *out = NULL;
    if (!cfg->admin_listen.host) {
        return POOLRT_OK;
    }
    if (cfg->admin_listen.is_unix) {
        return prt_fail(err, POOLRT_CONFIG, "admin.listen: %s: the admin API speaks TCP only",
                        cfg->admin_listen.text ? cfg->admin_listen.text : cfg->admin_listen.host);
    }
    a = calloc(1, sizeof *a);
    if (!a) {
        return prt_fail(err, POOLRT_NOMEM, "no memory for the admin API");
    }
    a->loop = loop;
    a->ops = (struct prt_bind_ops){.ctx = a, .wake = wake, .ready = ready};
    say_where(a, &cfg->admin_listen);
    rc = listen_on(a, cfg, &fd, err);
    if (rc != POOLRT_OK ||
        (rc = prt_bind_new(&a->bind, deps, &a->access, &a->ops, err)) != POOLRT_OK ||
        (rc = start_mhd(a, err)) != POOLRT_OK) {
        goto fail;
    }
    rc = prt_gate_open(&a->gate, loop, fd, &gate_ops, a, err);
    rc = rc ? rc : start_wake(a, err);
    if (rc != POOLRT_OK) {
        prt_admin_stop(a); /* the loop has handles of it */
        return rc;
    }
    prt_log(PRT_LOG_INFO, "admin_listening", prt_kv_z("address", a->where),
            prt_kv_z("token", a->access.has_token ? "required" : "none (loopback only)"));
    *out = a;
    return POOLRT_OK;

fail:
    if (a->mhd) {
        MHD_stop_daemon(a->mhd);
    }
    prt_bind_free(a->bind);
    if (fd >= 0) {
        (void)close(fd);
    }
    free(a);
    return rc;
}

void prt_admin_apply(struct prt_admin *a, struct prt_config *cfg)
{
    if (!a) {
        return;
    }
    prt_access_set_token(&a->access, cfg->admin_token);
    if (!a->access.has_token && !a->access.is_loopback) {
        prt_log(PRT_LOG_WARN, "admin_locked", prt_kv_z("address", a->where),
                prt_kv_z("reason",
                         "no admin.token, and others can reach this address: only /health "
                         "and /metrics are answered, and only on loopback"));
    }
}

void prt_admin_stop(struct prt_admin *a)
{
    if (!a) {
        return;
    }
    (void)uv_poll_stop(&a->poll);
    prt_bind_hurry(a->bind);
    (void)MHD_run(a->mhd);   /* none may be suspended when it stops */
    MHD_stop_daemon(a->mhd); /* closes what it serves, and the gate forgets it */
    uv_close((uv_handle_t *)&a->poll, on_closed);
    uv_close((uv_handle_t *)&a->again, on_closed);
    uv_close((uv_handle_t *)&a->tick, on_closed);
    uv_close((uv_handle_t *)&a->late, on_closed);
    if (a->has_wake) {
        uv_close((uv_handle_t *)&a->wake, on_closed);
    }
    prt_gate_close(a->gate);
    while (a->handles > 0) {
        (void)uv_run(a->loop, UV_RUN_NOWAIT);
    }
    prt_bind_free(a->bind);
    prt_secret_wipe(&a->access, sizeof a->access);
    free(a);
}
