/* hub.c - the connection that listens for all clients of a database: opened, watched, lost.
 * Owns: a hub's connection.   Threads: the hub's home worker.
 * Idea: it is opened when the first channel is wanted and kept a minute after the last. While there
 * is a channel new connections are tried, as one user of those who listen or another; one that says
 * nothing for long is asked whether it is still there, since a gap that nobody notices is the worst
 * one. What is said on it is hear.c's. */
#include "proxy/listen_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEEP_US 60000000    /* without a channel */
#define BEAT_US 30000000    /* so long without a byte: is it still there? */
#define RETRY_MIN_US 100000 /* server_login_retry = 0 must not keep a connector busy */
#define READS_MAX 16        /* of one event: others have events too */

static const struct prt_pool_config *row_of(const struct prt_hub *h)
{
    /* acquire: pairs with the release store of a reload */
    return atomic_load_explicit(&h->pool->cfg, memory_order_acquire);
}

bool prt_hub_is_ending(const struct prt_hub *h)
{
    return h->home->is_ending || atomic_load_explicit(&h->is_over, memory_order_relaxed);
}

/* When it is OFF the hub may be gone: whoever sets that must be held by something else (a branch,
 * mail from control), or not look at it again. */
ON_WORKER static void set_state(struct prt_hub *h, enum prt_hub_state st)
{
    enum prt_hub_state old = (enum prt_hub_state)h->state;

    prt_timer_clear(&h->timer);
    prt_count(&h->open, (uint64_t)(st == PRT_HUB_OPEN) - (uint64_t)(old == PRT_HUB_OPEN));
    h->state = (uint8_t)st;
    if (old == PRT_HUB_OFF && st != PRT_HUB_OFF) {
        prt_list_push(&h->home->hubs, &h->link);
        atomic_fetch_add_explicit(&h->busy, 1, memory_order_relaxed); /* held by who sets it */
    } else if (old != PRT_HUB_OFF && st == PRT_HUB_OFF) {
        prt_assert(h->channels.n == 0 && h->sock.fd < 0);
        prt_list_del(&h->link);
        prt_map_fini(&h->channels);
        /* release: pairs with prt_listen_is_over(), after which the hub is freed */
        atomic_fetch_sub_explicit(&h->busy, 1, memory_order_release);
    }
}

ON_WORKER static void watch(struct prt_hub *h)
{
    prt_io_want(&h->home->io, &h->sock,
                PRT_WANT_READ | (prt_buf_len(&h->out) ? PRT_WANT_WRITE : 0));
}

/* As with servers, a send that fails is not looked at: the reader will see why. */
void prt_hub_flush(struct prt_hub *h)
{
    ssize_t r = 0;

    if (prt_buf_len(&h->out)) {
        r = prt_sock_send(&h->sock, prt_buf_data(&h->out), prt_buf_len(&h->out));
    }
    if (r > 0) {
        prt_buf_eat(&h->out, (size_t)r);
    } else if (r < 0 && r != PRT_IO_AGAIN) {
        prt_buf_free(&h->out);
    }
    watch(h);
}

static void on_time(struct prt_timer *t, int64_t now_us);

void prt_hub_set_alarm(struct prt_hub *h)
{
    prt_timer_set(&h->home->wheel, &h->timer, h->home->now_us + (h->channels.n ? BEAT_US : KEEP_US),
                  on_time);
}

/* ---- opening ---- */

static void dialed(void *owner, struct prt_mail *mail);

static void forget_dial(struct prt_hub *h)
{
    if (h->password) {
        prt_secret_wipe(h->password, strlen(h->password));
        free(h->password);
        h->password = NULL;
    }
    prt_target_unref(h->dial.target);
    h->dial.target = NULL;
}

/* As the pool's own user where it has one, else as one of those who listen. */
void prt_hub_dial(struct prt_hub *h)
{
    struct prt_proxy *px = h->pool->px;
    const struct prt_pool_config *row = row_of(h);
    unsigned users;

    set_state(h, PRT_HUB_DIALING);
    h->is_stale = false;
    prt_hub_user(h, h->turn, h->login, &users);
    (void)pthread_mutex_lock(&px->now_mu);
    struct prt_snapshot *now = prt_snapshot_ref(px->snap);
    (void)pthread_mutex_unlock(&px->now_mu);
    if (row->user) {
        (void)snprintf(h->login, sizeof h->login, "%s", row->user);
    }
    const char *password = prt_server_password(h->login, row->user != NULL, row, now->cfg);
    h->password = password ? strdup(password) : NULL;
    prt_snapshot_unref(now);
    h->dial = (struct prt_dial){
        .target = prt_pools_target(h->pool),
        .dbname = h->dbname,
        .user = h->login,
        .password = h->password,
        .settings = h->settings,
        .settings_n = h->settings_n,
        .application_name = "poolrt listener",
        .timeout_us = row->connect_timeout_us,
        .reply_to = &h->home->mail,
        .reply.deliver = dialed,
        .fd = -1,
    };
    prt_connector_submit(px->connector, &h->dial);
}

void prt_hub_unwanted(struct prt_hub *h)
{
    if (h->state == PRT_HUB_PAUSE && h->channels.n == 0) {
        set_state(h, PRT_HUB_OFF);
    }
}

/* No connection: try again soon, if there is still a channel to hear. */
ON_WORKER static void pause_or_end(struct prt_hub *h)
{
    int64_t retry = row_of(h)->server_login_retry_us;

    if (h->channels.n == 0) {
        set_state(h, PRT_HUB_OFF);
        return;
    }
    set_state(h, PRT_HUB_PAUSE);
    prt_timer_set(&h->home->wheel, &h->timer,
                  h->home->now_us + (retry > RETRY_MIN_US ? retry : RETRY_MIN_US), on_time);
}

/* A login that is refused: another of those who listen may be let in. */
ON_WORKER static void dial_failed(struct prt_hub *h)
{
    const struct prt_err *err = &h->dial.err;
    bool is_login = strncmp(err->sqlstate, "28", 2) == 0;
    char user[PRT_NAME_MAX + 1];
    unsigned users;

    prt_log_limited(&h->pool->connect_limit, PRT_LOG_WARN, "connect_failed",
                    prt_kv_z("pool", h->pool->name), prt_kv_z("for", "listen"),
                    prt_kv_z("user", h->login), prt_kv_z("error", err->text));
    h->turn++;
    prt_hub_user(h, h->turn, user, &users);
    if (is_login && ++h->tried < users && !row_of(h)->user) {
        prt_hub_dial(h);
        return;
    }
    h->tried = 0;
    prt_hear_not_yet(h, err);
    pause_or_end(h);
}

ON_WORKER static void hang_up(struct prt_hub *h)
{
    struct prt_buf bye = {0};

    prt_put_terminate(&bye);
    if (!bye.failed && prt_buf_len(&h->out) == 0 && h->sock.fd >= 0) {
        (void)prt_sock_send(&h->sock, prt_buf_data(&bye), prt_buf_len(&bye));
    }
    prt_buf_free(&bye);
    prt_sock_close(&h->home->io, &h->sock);
    prt_buf_free(&h->in);
    prt_buf_free(&h->out);
}

ON_WORKER static void opened(struct prt_hub *h)
{
    h->tried = 0;
    h->is_quiet = false;
    set_state(h, PRT_HUB_OPEN);
    prt_log(PRT_LOG_DEBUG, "listener_opened", prt_kv_z("pool", h->pool->name),
            prt_kv_z("server", h->dial.server_addr), prt_kv_int("pid", h->dial.pid));
    prt_hub_set_alarm(h);
    prt_hear_begin(h);
}

ON_WORKER static void take_over(struct prt_hub *h)
{
    h->sock = (struct prt_sock){.fd = h->dial.fd, .ssl = h->dial.ssl, .ticket = PRT_NO_TICKET};
    prt_params_unref(h->dial.params);
    if (h->sock.ssl) {
        prt_tls_adopt(h->sock.ssl);
    }
    if (prt_hub_is_ending(h) || h->is_stale) {
        hang_up(h);
        if (prt_hub_is_ending(h)) {
            set_state(h, PRT_HUB_OFF);
        } else {
            prt_hub_dial(h);
        }
    } else if (prt_io_add(&h->home->io, &h->sock, PRT_KIND_HUB, h, PRT_WANT_READ)) {
        opened(h);
    } else {
        (void)prt_fail(&h->dial.err, POOLRT_NOMEM, "no memory to watch a connection");
        hang_up(h);
        dial_failed(h);
    }
}

static void dialed(void *owner, struct prt_mail *mail)
{
    struct prt_hub *h = prt_container_of(mail, struct prt_hub, dial.reply);

    prt_assert_worker();
    forget_dial(h);
    if (!h->dial.err.rc) {
        take_over(h);
    } else if (prt_hub_is_ending(h)) {
        set_state(h, PRT_HUB_OFF);
    } else {
        dial_failed(h);
    }
}

/* ---- the end of a connection ---- */

void prt_hub_lost(struct prt_hub *h, const struct prt_err *why)
{
    hang_up(h);
    prt_hear_lost(h, why);
    pause_or_end(h);
}

bool prt_hub_broken(struct prt_hub *h, poolrt_rc rc, const char *text)
{
    struct prt_err err;

    if (rc == POOLRT_PROTOCOL) {
        prt_count(&h->home->n.violations, 1);
    }
    (void)prt_fail(&err, rc, "%s", text);
    prt_hub_lost(h, &err);
    return false;
}

/* For good: the pool is gone, or the process ends. */
ON_WORKER static void end(struct prt_hub *h)
{
    prt_hear_end(h);
    if (h->state == PRT_HUB_DIALING || h->state == PRT_HUB_OFF) {
        return; /* the connector has it: dialed() ends it */
    }
    hang_up(h);
    set_state(h, PRT_HUB_OFF);
}

void prt_hub_close(void *owner, struct prt_mail *mail)
{
    struct prt_hub *h = prt_container_of(mail, struct prt_hub, close_mail);

    prt_assert_worker();
    end(h);
    atomic_fetch_sub_explicit(&h->busy, 1, memory_order_release);
}

void prt_listen_end_all(struct prt_worker *w)
{
    for (struct prt_link *l = w->hubs.next, *next; l != &w->hubs; l = next) {
        next = l->next;
        end(prt_container_of(l, struct prt_hub, link));
    }
}

void prt_hub_redial(void *owner, struct prt_mail *mail)
{
    struct prt_hub *h = prt_container_of(mail, struct prt_hub, redial_mail);
    struct prt_err err;

    prt_assert_worker();
    atomic_store_explicit(&h->is_told, false, memory_order_release);
    if (h->state == PRT_HUB_DIALING) {
        h->is_stale = true;
    } else if (h->state == PRT_HUB_OPEN) {
        (void)prt_fail(&err, POOLRT_IO, "the pool's configuration has changed");
        prt_hub_lost(h, &err);
    }
    if (h->state == PRT_HUB_PAUSE) {
        prt_hub_dial(h);
    }
    atomic_fetch_sub_explicit(&h->busy, 1, memory_order_release);
}

/* ---- time ---- */

/* TCP may take hours to notice that the other side is gone, and a connection that only listens
 * would never notice: after half a minute of silence it is asked, and must answer in the next. */
ON_WORKER static void beat(struct prt_hub *h)
{
    if (h->is_quiet && h->n_sent) {
        (void)prt_hub_broken(h, POOLRT_IO, "the server does not answer");
        return;
    }
    if (h->is_quiet) {
        prt_hear_ping(h);
    }
    h->is_quiet = true;
    prt_hub_set_alarm(h);
}

static void on_time(struct prt_timer *t, int64_t now_us)
{
    struct prt_hub *h = prt_container_of(t, struct prt_hub, timer);

    prt_assert_worker();
    if (h->state == PRT_HUB_PAUSE) {
        prt_hub_dial(h);
    } else if (h->channels.n == 0) {
        hang_up(h);
        set_state(h, PRT_HUB_OFF);
    } else {
        beat(h);
    }
}

/* ---- reading ---- */

/* n bytes lie in the worker's buffer; an incomplete message waits in h->in. */
ON_WORKER static bool take(struct prt_hub *h, size_t n)
{
    const uint8_t *fresh = h->home->rbuf;
    bool is_joined = prt_buf_len(&h->in) > 0;

    if (is_joined && !prt_buf_add(&h->in, fresh, n)) {
        return prt_hub_broken(h, POOLRT_NOMEM, "no memory for a message");
    }
    size_t have = is_joined ? prt_buf_len(&h->in) : n;
    size_t used = prt_hear_bytes(h, is_joined ? prt_buf_data(&h->in) : fresh, have);
    if (used == SIZE_MAX) {
        return false;
    }
    if (is_joined) {
        prt_buf_eat(&h->in, used);
    } else if (used < n && !prt_buf_add(&h->in, fresh + used, n - used)) {
        return prt_hub_broken(h, POOLRT_NOMEM, "no memory for a message");
    }
    return true;
}

/* true: more may lie ready. */
ON_WORKER static bool read_some(struct prt_hub *h)
{
    ssize_t n = prt_sock_recv(&h->sock, h->home->rbuf, PRT_RBUF);

    if (n == PRT_IO_AGAIN) {
        return false;
    }
    if (n == PRT_IO_WANT_WRITE) {
        prt_io_want(&h->home->io, &h->sock, PRT_WANT_READ | PRT_WANT_WRITE);
        return false;
    }
    if (n < 0) {
        return prt_hub_broken(h, POOLRT_IO, "the server closed the connection");
    }
    h->is_quiet = false;
    return take(h, (size_t)n);
}

void prt_listen_event(struct prt_hub *h, const struct prt_io_event *ev)
{
    if (ev->writable) {
        prt_hub_flush(h);
    }
    /* what TLS has decrypted no poll will tell */
    for (int i = 0; i < READS_MAX || (h->sock.ssl && prt_tls_has_pending(h->sock.ssl)); i++) {
        if (!read_some(h)) {
            return;
        }
    }
}
