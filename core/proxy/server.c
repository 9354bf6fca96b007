/* server.c - a server connection's life: opened, leased, cleaned, closed.
 * Owns: the servers whose home is this worker.   Threads: the home worker; what the engine asks on
 * another thread (open, close, move, served) arrives by mail.
 * Idea: whoever leaves a server behind never leaves work behind: a transaction is rolled back, half
 * a batch is undone (never completed), a long query is cancelled, and only a server that owes
 * nothing and is in no transaction goes back to the pool. Any doubt closes it. */
#include "proxy/proxy_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CANCELS_MAX 4          /* requests under way for one server; more are dropped */
#define CLOSE_LIMIT_US 5000000 /* from Terminate to the server's end of file */
#define CLEAN_LIMIT_US 5000000 /* for what cleans a session */

static int64_t cancel_limit(const struct prt_server *s)
{
    return atomic_load_explicit(&s->pool->cfg, memory_order_acquire)->cancel_wait_timeout_us;
}

/* ---- opening ---- */

static void set_idle(struct prt_server *s)
{
    s->state = PRT_SERVER_IDLE;
    s->was_reset = false;
    s->is_abandoned = false;
    s->was_cancelled = false;
    s->error.rc = POOLRT_OK;
}

static void forget_dial(struct prt_server *s)
{
    free(s->settings);
    s->settings = NULL;
    if (s->password) {
        prt_secret_wipe(s->password, strlen(s->password));
        free(s->password);
        s->password = NULL;
    }
}

static void server_free(struct prt_server *s)
{
    forget_dial(s);
    prt_timer_clear(&s->timer);
    prt_worker_unlist(s->worker, &s->link);
    prt_buf_free(&s->in);
    prt_buf_free(&s->out);
    if (s->params) {
        prt_params_unref(s->params);
        prt_params_unref(s->startup);
        prt_state_end_reset(s);
        prt_effects_unref(s->parsed);
        prt_stmts_fini(&s->stmts);
        prt_session_fini(&s->session);
    }
    prt_buf_free(&s->ahead);
    prt_buf_free(&s->local);
    prt_target_unref(s->dial.target);
    prt_class_unref(s->cls);
    free(s);
}

static void open_failed(struct prt_server *s, const struct prt_err *err)
{
    struct prt_slot *slot = s->slot;
    struct prt_worker *w = s->worker;

    prt_log_limited(
        &s->pool->connect_limit, PRT_LOG_WARN, "connect_failed", prt_kv_z("pool", s->pool->name),
        prt_kv_z("target", prt_target_text(s->dial.target)), prt_kv_z("error", err->text));
    slot->conn = NULL;
    server_free(s);
    prt_slot_opened(slot, err, w->now_us);
}

static const char check_name[] = "client_connection_check_interval";

/* Servers before PostgreSQL 14, and what only speaks its protocol, refuse the setting by name. */
static bool retry_without_check(struct prt_server *s)
{
    if (!s->settings || !strstr(s->dial.err.text, check_name)) {
        return false;
    }
    /* relaxed: whoever misses it is refused once more, and comes here */
    atomic_store_explicit(&s->pool->has_no_check, true, memory_order_relaxed);
    const struct prt_login *login = prt_class_user(s->slot->cls);
    s->dial.settings = login->settings;
    s->dial.settings_n = login->settings_n;
    free(s->settings);
    s->settings = NULL;
    prt_connector_submit(s->pool->px->connector, &s->dial);
    return true;
}

/* The connector has answered. */
ON_WORKER static void take_over(struct prt_server *s)
{
    struct prt_worker *w = s->worker;

    s->sock = (struct prt_sock){.fd = s->dial.fd, .ssl = s->dial.ssl, .ticket = PRT_NO_TICKET};
    s->params = s->dial.params;
    s->startup = prt_params_ref(s->params);
    prt_txn_init(&s->txn);
    prt_stmts_init(&s->stmts, &s->txn, 0);
    prt_session_init(&s->session);
    if (s->sock.ssl) {
        prt_tls_adopt(s->sock.ssl);
    }
    if (!prt_io_add(&w->io, &s->sock, PRT_KIND_SERVER, s, PRT_WANT_READ)) {
        struct prt_err err;
        (void)prt_fail(&err, POOLRT_NOMEM, "no memory to watch a server connection");
        prt_sock_close(&w->io, &s->sock);
        open_failed(s, &err);
        return;
    }
    prt_login_set_welcome(prt_class_user(s->slot->cls), s->params);
    prt_list_push(&w->servers, &s->link);
    set_idle(s);
    prt_log(PRT_LOG_DEBUG, "server_opened", prt_kv_z("pool", s->pool->name),
            prt_kv_z("server", s->dial.server_addr), prt_kv_int("pid", s->dial.pid));
    prt_slot_opened(s->slot, &s->dial.err, w->now_us);
}

static void dialed(void *owner, struct prt_mail *mail)
{
    struct prt_server *s = prt_container_of(mail, struct prt_server, dial.reply);

    prt_assert_worker();
    if (s->dial.err.rc && retry_without_check(s)) {
        return;
    }
    forget_dial(s);
    if (s->dial.err.rc) {
        struct prt_err err = s->dial.err;
        open_failed(s, &err);
        return;
    }
    take_over(s);
}

static void no_memory(void *owner, struct prt_mail *mail)
{
    struct prt_slot *slot = prt_container_of(mail, struct prt_slot, mail);
    struct prt_err err;

    (void)prt_fail(&err, POOLRT_NOMEM, "no memory for a server connection");
    prt_slot_opened(slot, &err, ((struct prt_worker *)owner)->now_us);
}

/* As whom to log in: the pool's own user, or the client's with the password of the users table. */
const char *prt_server_password(const char *user, bool is_forced, const struct prt_pool_config *row,
                                const struct prt_config *cfg)
{
    if (is_forced) {
        return row->password;
    }
    const struct prt_user_config *u = prt_config_user(cfg, prt_str_of(user));
    bool is_plain = u && u->secret && strncmp(u->secret, "SCRAM-SHA-256$", 14) != 0 &&
                    (strncmp(u->secret, "md5", 3) != 0 || strlen(u->secret) != 35);
    return is_plain ? u->secret : NULL;
}

static struct prt_server *server_new(struct prt_proxy_pool *pp, struct prt_slot *slot)
{
    struct prt_worker *w = &pp->px->worker[slot->lane];
    struct prt_server *s = calloc(1, sizeof *s);

    if (!s) {
        return NULL;
    }
    s->state = PRT_SERVER_DIALING;
    s->sock = (struct prt_sock){.fd = -1, .ticket = PRT_NO_TICKET};
    s->pool = pp;
    s->slot = slot;
    s->cls = prt_class_ref(slot->cls);
    s->number = prt_next_number(pp->px);
    s->worker = w;
    prt_list_init(&s->link);
    return s;
}

/* The class's settings, and that the server shall notice when poolrt dies in the middle of a query:
 * else a long one runs on for nobody. */
static void add_check(struct prt_server *s, const struct prt_login *login, int64_t interval_us)
{
    struct prt_buf b = {0};
    char value[24];
    int n = snprintf(value, sizeof value, "%lld", (long long)interval_us / 1000);

    if (!interval_us || atomic_load_explicit(&s->pool->has_no_check, memory_order_relaxed)) {
        return;
    }
    bool ok = prt_buf_add(&b, check_name, sizeof check_name) && n > 0 &&
              prt_buf_add(&b, value, (size_t)n + 1) &&
              prt_buf_add(&b, login->settings, login->settings_n);
    if (!ok) {
        prt_buf_free(&b);
        return;
    }
    s->settings = (char *)b.p;
    s->dial.settings = s->settings;
    s->dial.settings_n = b.n;
}

static void op_open(void *ctx, struct prt_slot *slot)
{
    struct prt_proxy_pool *pp = ctx;
    struct prt_login *login = prt_class_user(slot->cls);
    struct prt_server *s = server_new(pp, slot);

    slot->conn = s;
    if (!s) {
        slot->mail.deliver = no_memory;
        prt_mailbox_post(&pp->px->worker[slot->lane].mail, &slot->mail);
        return;
    }
    (void)pthread_mutex_lock(&pp->px->now_mu);
    struct prt_snapshot *now = prt_snapshot_ref(pp->px->snap);
    (void)pthread_mutex_unlock(&pp->px->now_mu);
    const struct prt_pool_config *row = prt_config_pool(now->cfg, prt_str_of(pp->name));
    const char *password =
        row ? prt_server_password(login->user, login->is_forced_user, row, now->cfg) : NULL;
    s->password = password ? strdup(password) : NULL;
    s->dial = (struct prt_dial){
        .target = prt_pools_target(pp),
        .dbname = login->dbname,
        .user = login->user,
        .password = s->password,
        .settings = login->settings,
        .settings_n = login->settings_n,
        .timeout_us = row ? row->connect_timeout_us : CLOSE_LIMIT_US,
        .reply_to = &s->worker->mail,
        .reply.deliver = dialed,
        .fd = -1,
    };
    add_check(s, login, row ? row->client_check_interval_us : 0);
    prt_snapshot_unref(now);
    prt_connector_submit(pp->px->connector, &s->dial);
}

/* ---- leasing: the engine's word that a wait is over ---- */

static void take_served(void *owner, struct prt_mail *mail)
{
    struct prt_worker *w = owner;

    prt_list_push(&w->served, &prt_container_of(mail, struct prt_waiter, mail)->link);
}

static bool is_here(const struct prt_worker *w)
{
    return prt_thread_role() == PRT_THREAD_WORKER && prt_thread_index() == w->lane;
}

static void op_served(void *ctx, struct prt_waiter *waiter)
{
    struct prt_proxy_pool *pp = ctx;
    struct prt_worker *w = &pp->px->worker[waiter->lane];

    if (is_here(w)) {
        prt_list_push(&w->served, &waiter->link);
        return;
    }
    waiter->mail.deliver = take_served;
    prt_mailbox_post(&w->mail, &waiter->mail);
}

/* In the new home. */
static void move_in(void *owner, struct prt_mail *mail)
{
    struct prt_worker *w = owner;
    struct prt_waiter *waiter = prt_container_of(mail, struct prt_waiter, mail);
    struct prt_server *s = waiter->lease.slot->conn;

    prt_assert_worker();
    prt_assert(s->worker == w && s->state == PRT_SERVER_IDLE);
    prt_list_push(&w->servers, &s->link);
    if (!prt_io_add(&w->io, &s->sock, PRT_KIND_SERVER, s, PRT_WANT_READ)) {
        /* cannot be watched: the lessee finds it shut and gets an error */
        (void)shutdown(s->sock.fd, SHUT_RDWR);
    }
    prt_list_push(&w->served, &waiter->link);
}

/* In the old home: only its thread may let go of the descriptor. */
static void move_out(void *owner, struct prt_mail *mail)
{
    struct prt_worker *w = owner;
    struct prt_waiter *waiter = prt_container_of(mail, struct prt_waiter, mail);
    struct prt_server *s = waiter->lease.slot->conn;
    struct prt_worker *to = &w->px->worker[waiter->lane];

    prt_assert_worker();
    prt_assert(s->worker == w && s->state == PRT_SERVER_IDLE && !prt_buf_len(&s->in));
    prt_io_del(&w->io, &s->sock);
    prt_worker_unlist(w, &s->link);
    s->worker = to;
    prt_slot_rehome(s->slot, (uint16_t)to->lane);
    waiter->mail.deliver = move_in;
    prt_mailbox_post(&to->mail, &waiter->mail);
}

static void op_move(void *ctx, struct prt_slot *slot, struct prt_waiter *waiter)
{
    struct prt_proxy_pool *pp = ctx;
    struct prt_worker *home = &pp->px->worker[slot->lane];

    if (is_here(home)) {
        move_out(home, &waiter->mail);
        return;
    }
    waiter->mail.deliver = move_out;
    prt_mailbox_post(&home->mail, &waiter->mail);
}

/* ---- sending ---- */

bool prt_server_is_settled(const struct prt_server *s)
{
    return prt_frame_is_clean(&s->frame) && prt_buf_len(&s->in) == 0 && s->cancels == 0 &&
           !s->is_syncing && !(s->sock.ssl && prt_tls_has_pending(s->sock.ssl));
}

void prt_server_set_reading(struct prt_server *s)
{
    bool is_held = s->client && prt_buf_len(&s->client->out) > 0;
    unsigned want = is_held ? 0 : PRT_WANT_READ;

    prt_io_want(&s->worker->io, &s->sock, prt_buf_len(&s->out) ? want | PRT_WANT_WRITE : want);
}

ON_WORKER static void send_out(struct prt_server *s)
{
    if (s->sock.in_burst) {
        prt_burst_flush(s->worker);
    }
}

bool prt_server_has_all(struct prt_server *s)
{
    send_out(s);
    return prt_buf_len(&s->out) == 0;
}

/* A send that fails is not looked at: the socket is then readable or hung up, and the reader, who
 * must deal with it anyway, takes the answers that came before the end. */
void prt_server_send(struct prt_server *s, const void *p, size_t n)
{
    if (n == 0 || (prt_buf_len(&s->out) == 0 && prt_burst_server(s, p, n))) {
        return;
    }
    send_out(s);
    prt_server_send_now(s, p, n);
}

void prt_server_send_now(struct prt_server *s, const void *p, size_t n)
{
    size_t sent = 0;

    if (prt_buf_len(&s->out) == 0) {
        ssize_t r = prt_sock_send(&s->sock, p, n);
        if (r < 0 && r != PRT_IO_AGAIN) {
            return;
        }
        sent = r > 0 ? (size_t)r : 0;
    }
    if (sent == n) {
        return;
    }
    if (!prt_buf_add(&s->out, (const uint8_t *)p + sent, n - sent)) {
        (void)shutdown(s->sock.fd,
                       SHUT_RDWR); /* half a message must never be completed by another */
        return;
    }
    prt_server_set_reading(s);
    if (s->client) {
        prt_client_set_reading(s->client);
    }
}

void prt_server_send_buf(struct prt_server *s, struct prt_buf *b)
{
    if (b->failed) {
        (void)shutdown(s->sock.fd, SHUT_RDWR);
    } else {
        prt_server_send(s, prt_buf_data(b), prt_buf_len(b));
    }
    prt_buf_free(b);
}

ON_WORKER static void flush(struct prt_server *s)
{
    ssize_t r = prt_sock_send(&s->sock, prt_buf_data(&s->out), prt_buf_len(&s->out));

    if (r > 0) {
        prt_buf_eat(&s->out, (size_t)r);
    } else if (r != PRT_IO_AGAIN) {
        prt_buf_free(&s->out); /* the reader will see the end */
    }
    if (prt_buf_len(&s->out)) {
        return;
    }
    prt_server_set_reading(s);
    if (s->client) {
        prt_client_set_reading(s->client);
        prt_client_resume(s->client);
    }
}

/* A simple query of our own; its answers stay here. */
ON_WORKER static bool inject(struct prt_server *s, struct prt_str sql)
{
    struct prt_buf b = {0};

    if (!prt_txn_inject(&s->txn, 'Q', 0)) {
        return false;
    }
    prt_put_query(&b, sql);
    prt_server_send_buf(s, &b);
    return true;
}

void prt_server_fence(struct prt_server *s)
{
    (void)inject(s, PRT_STR("")); /* the queue is empty: there is room */
}

/* ---- lease ---- */

void prt_server_link(struct prt_server *s, struct prt_client *c)
{
    prt_assert(s->state == PRT_SERVER_IDLE && !s->client && !c->server);
    prt_assert(s->worker == c->worker && s->slot->cls == c->id->cls);
    prt_assert(prt_txn_may_release(&s->txn) && prt_buf_len(&s->in) == 0 &&
               prt_buf_len(&s->out) == 0);
    s->state = PRT_SERVER_LINKED;
    s->client = c;
    s->lease = c->w.lease;
    c->server = s;
    prt_client_set_state(c, PRT_CLIENT_ACTIVE);
    const struct prt_pool_config *row = prt_client_row(c);
    s->is_owned = row->mode == PRT_MODE_SESSION;
    s->stmts.limit = (uint32_t)row->statement_cache_size;
    prt_stmts_lease(&s->stmts);
    prt_state_link(s, c);
}

void prt_server_release(struct prt_server *s)
{
    prt_assert(!s->client && prt_txn_may_release(&s->txn) && prt_server_is_settled(s));
    prt_assert(prt_buf_len(&s->out) == 0);
    prt_timer_clear(&s->timer);
    set_idle(s);
    (void)prt_release(s->pool->engine, s->lease, PRT_RELEASE_CLEAN, (uint16_t)s->worker->lane,
                      s->worker->now_us);
}

static void clean_timeout(struct prt_timer *t, int64_t now_us);

void prt_server_end_lease(struct prt_server *s)
{
    if (prt_state_dirt(s, false) == 0) {
        prt_server_release(s);
        return;
    }
    s->state = PRT_SERVER_CLEANING;
    prt_timer_set(&s->worker->wheel, &s->timer, s->worker->now_us + CLEAN_LIMIT_US, clean_timeout);
    prt_server_clean_on(s);
}

/* ---- cancel requests to the server ---- */

struct cancel {
    struct prt_cancel x;
    struct prt_server *s; /* is not freed before its cancels are through */
};

static void close_done(struct prt_server *s);

static void cancelled(void *owner, struct prt_mail *mail)
{
    struct cancel *k = prt_container_of(mail, struct cancel, x.reply);
    struct prt_server *s = k->s;

    prt_assert_worker();
    free(k);
    s->cancels--;
    if (s->state == PRT_SERVER_CLOSING) {
        close_done(s);
    } else if (s->state == PRT_SERVER_CLEANING) {
        prt_server_clean_on(s);
    } else if (s->client) {
        prt_client_resume(s->client);
        if (s->client) {
            prt_answer_settle(s);
        }
    }
}

void prt_server_cancel(struct prt_server *s)
{
    struct cancel *k = s->cancels < CANCELS_MAX ? calloc(1, sizeof *k) : NULL;

    if (!k) {
        return; /* best effort, as a cancel always is */
    }
    send_out(s); /* the query first */
    k->s = s;
    k->x = (struct prt_cancel){
        .addr = s->dial.addr,
        .addr_n = s->dial.addr_n,
        .use_tls = s->sock.ssl != NULL,
        .pid = s->dial.pid,
        .key_n = s->dial.key_n,
        .timeout_us = cancel_limit(s),
        .reply_to = &s->worker->mail,
        .reply.deliver = cancelled,
    };
    memcpy(k->x.key, s->dial.key, s->dial.key_n);
    s->cancels++;
    s->was_cancelled = true;
    prt_count(&s->worker->n.cancels_forwarded, 1);
    prt_connector_cancel(s->worker->px->connector, &k->x);
}

/* ---- closing ---- */

/* Freed when the server has seen the end and no cancel request names it any more. */
static void close_done(struct prt_server *s)
{
    struct prt_slot *slot = s->slot;
    struct prt_worker *w = s->worker;

    if (s->sock.fd >= 0 || s->cancels || !s->may_free) {
        return;
    }
    slot->conn = NULL;
    server_free(s);
    prt_slot_closed(slot, w->now_us);
}

ON_WORKER static void close_now(struct prt_server *s)
{
    prt_timer_clear(&s->timer);
    send_out(s);
    prt_sock_close(&s->worker->io, &s->sock);
    close_done(s);
}

static void close_timeout(struct prt_timer *t, int64_t now_us)
{
    struct prt_server *s = prt_container_of(t, struct prt_server, timer);

    prt_assert_worker();
    close_now(s);
}

/* Its last bytes are of no interest, its end is. */
ON_WORKER static void read_to_end(struct prt_server *s)
{
    ssize_t n = prt_sock_recv(&s->sock, s->worker->rbuf, PRT_RBUF);

    if (n < 0 && n != PRT_IO_AGAIN && n != PRT_IO_WANT_WRITE) {
        close_now(s);
    }
}

static void start_close(void *owner, struct prt_mail *mail)
{
    struct prt_worker *w = owner;
    struct prt_server *s = prt_container_of(mail, struct prt_slot, mail)->conn;
    struct prt_buf bye = {0};

    prt_assert_worker();
    prt_assert(!s->client);
    bool is_busy =
        s->state == PRT_SERVER_CLOSING && !prt_txn_is_settled(&s->txn) && !s->txn.is_dead;
    s->state = PRT_SERVER_CLOSING;
    s->may_free = true;
    prt_log(PRT_LOG_DEBUG, "server_closing", prt_kv_z("pool", s->pool->name),
            prt_kv_int("pid", s->dial.pid));
    if (s->sock.fd < 0) {
        close_done(s);
        return;
    }
    if (is_busy && !s->was_cancelled) {
        prt_server_cancel(s); /* a plain close lets the query run on */
    }
    send_out(s);
    prt_put_terminate(&bye);
    if (!bye.failed && prt_buf_len(&s->out) == 0 && !s->is_torn) {
        (void)prt_sock_send(&s->sock, prt_buf_data(&bye), prt_buf_len(&bye));
    }
    prt_buf_free(&bye);
    (void)shutdown(s->sock.fd, SHUT_WR);
    prt_io_want(&w->io, &s->sock, PRT_WANT_READ);
    prt_timer_set(&w->wheel, &s->timer, w->now_us + CLOSE_LIMIT_US, close_timeout);
}

static void op_close(void *ctx, struct prt_slot *slot, enum prt_close_why why)
{
    struct prt_proxy_pool *pp = ctx;

    prt_log(PRT_LOG_DEBUG, "server_close", prt_kv_z("pool", pp->name),
            prt_kv_z("why", prt_close_why_name(why)));
    slot->mail.deliver = start_close;
    prt_mailbox_post(&pp->px->worker[slot->lane].mail, &slot->mail);
}

void prt_server_break(struct prt_server *s)
{
    prt_assert(!s->client);
    prt_assert(s->state == PRT_SERVER_LINKED || s->state == PRT_SERVER_CLEANING);
    prt_timer_clear(&s->timer);
    if (s->killer) {
        prt_kill_settled(s, true);
    }
    s->state = PRT_SERVER_CLOSING;
    (void)prt_release(s->pool->engine, s->lease, PRT_RELEASE_CLOSE, (uint16_t)s->worker->lane,
                      s->worker->now_us);
}

/* ---- cleaning: its client has left ----
 *
 *  settled ------------------------------------------+-> ROLLBACK if in a transaction
 *  all of it ends by itself: wait, cancel after grace +-> DISCARD ALL in session mode
 *  half a batch: ROLLBACK and Sync undo it -----------+-> release
 *  torn message, replication, deadline: cancel, close */

static void clean_timeout(struct prt_timer *t, int64_t now_us)
{
    struct prt_server *s = prt_container_of(t, struct prt_server, timer);

    prt_assert_worker();
    if (s->was_cancelled) {
        prt_server_break(s);
        return;
    }
    prt_server_cancel(s);
    prt_timer_set(&s->worker->wheel, &s->timer, now_us + cancel_limit(s), clean_timeout);
}

void prt_server_fail_copy(struct prt_server *s)
{
    struct prt_str why = PRT_STR("the client has left");
    struct prt_msg m = {.type = 'f', .len = (uint32_t)why.n + 1};
    struct prt_buf b = {0};

    (void)prt_txn_client(&s->txn, &m);
    prt_put_copy_fail(&b, why);
    prt_server_send_buf(s, &b);
}

/* A bare Sync, or an empty query, would commit what the client had sent so far of an implicit
 * transaction. ROLLBACK first undoes it; where the server skips, the Sync ends that. */
ON_WORKER static void undo_batch(struct prt_server *s)
{
    struct prt_buf b = {0};

    if (s->txn.copy == PRT_COPY_IN) {
        prt_server_fail_copy(s);
    }
    if (!inject(s, PRT_STR("ROLLBACK")) || !prt_txn_inject(&s->txn, 'S', 0)) {
        prt_server_break(s);
        return;
    }
    prt_put_sync(&b);
    prt_server_send_buf(s, &b);
}

/* What its client left in the session: everything in session mode, else what is known to be there.
 */
ON_WORKER static bool reset_session(struct prt_server *s)
{
    struct prt_buf sql = {0};
    bool ok;

    s->was_reset = true;
    if (s->is_owned) {
        s->forgets = true;
        return inject(s, PRT_STR("DISCARD ALL"));
    }
    prt_count(&prt_pools_lane(s->pool, s->worker->lane)->resets, 1);
    bool forgets = false;
    prt_session_clean_sql(s->cleaning, &sql, &forgets);
    s->forgets = forgets;
    ok = !sql.failed && inject(s, (struct prt_str){(const char *)prt_buf_data(&sql), sql.n});
    prt_buf_free(&sql);
    return ok;
}

ON_WORKER static void was_cleaned(struct prt_server *s)
{
    if (s->forgets) {
        prt_stmts_forget(&s->stmts);
    }
    if (s->is_owned) {
        prt_session_discarded(&s->session);
    } else {
        prt_session_cleaned(&s->session, s->cleaning);
    }
}

/* Whatever is not answered with a ReadyForQuery by now was rolled back. */
ON_WORKER static bool has_dirt(struct prt_server *s)
{
    if (s->was_reset || s->is_owned) {
        return !s->was_reset;
    }
    prt_session_complete(&s->session, NULL, 0, PRT_STR("ROLLBACK"));
    prt_session_ready(&s->session, 'I');
    s->cleaning = (uint16_t)prt_state_dirt(s, s->is_abandoned);
    return s->cleaning != 0;
}

void prt_server_clean_on(struct prt_server *s)
{
    bool ok = true;

    if (!prt_txn_is_settled(&s->txn) || !prt_server_is_settled(s) || !prt_server_has_all(s)) {
        return;
    }
    if (s->killer && !prt_txn_wants_fence(&s->txn)) {
        prt_kill_settled(s, false);
    }
    if (prt_txn_wants_fence(&s->txn)) {
        ok = inject(s, PRT_STR(""));
    } else if (s->txn.status != 'I') {
        ok = inject(s, PRT_STR("ROLLBACK"));
    } else if (s->is_killed) {
        ok = false;
    } else if (has_dirt(s)) {
        ok = reset_session(s);
    } else {
        if (s->was_reset) {
            was_cleaned(s);
        }
        prt_server_release(s);
        return;
    }
    if (!ok) {
        prt_server_break(s);
    }
}

void prt_server_abandon(struct prt_server *s, bool is_torn, bool at_once)
{
    struct prt_worker *w = s->worker;
    int64_t grace =
        at_once ? 0 : atomic_load_explicit(&s->pool->cfg, memory_order_acquire)->abandoned_grace_us;

    prt_assert(!s->client && s->state == PRT_SERVER_LINKED);
    s->state = PRT_SERVER_CLEANING;
    s->is_torn = is_torn;
    s->is_abandoned = true;
    s->is_syncing = s->is_sync_ahead = false;
    prt_state_end_reset(s);
    prt_effects_unref(s->parsed);
    s->parsed = NULL;
    prt_buf_reset(&s->local);
    prt_state_abandon(s);
    prt_server_set_reading(s);
    if (is_torn || s->txn.is_dead || s->txn.copy == PRT_COPY_BOTH || w->is_ending) {
        prt_server_break(s);
        return;
    }
    prt_timer_set(&w->wheel, &s->timer, w->now_us + grace, clean_timeout);
    if (s->txn.is_open || s->txn.skips || s->txn.copy == PRT_COPY_IN) {
        undo_batch(s);
    } else {
        prt_server_clean_on(s);
    }
}

void prt_server_end_now(struct prt_server *s)
{
    if (s->state == PRT_SERVER_CLEANING) {
        prt_server_break(s);
    }
}

/* ---- events ---- */

/* An idle server has nothing to say but that it ends. (Notices and reports of a changed setting
 * come with the next answer, not while it idles.) */
ON_WORKER static void idle_spoke(struct prt_server *s)
{
    /* TLS has messages of its own (session tickets), which are nobody's business here */
    if (s->sock.ssl && prt_sock_recv(&s->sock, s->worker->rbuf, PRT_RBUF) == PRT_IO_AGAIN) {
        return;
    }
    (void)prt_slot_retire_idle(s->slot, PRT_CLOSE_BROKEN, s->worker->now_us);
}

void prt_server_event(struct prt_server *s, const struct prt_io_event *ev)
{
    if (ev->writable && prt_buf_len(&s->out)) {
        flush(s);
    }
    if (!ev->readable) {
        return;
    }
    switch ((enum prt_server_state)s->state) {
    case PRT_SERVER_IDLE:
        idle_spoke(s);
        break;
    case PRT_SERVER_CLOSING:
        read_to_end(s);
        break;
    case PRT_SERVER_LINKED:
    case PRT_SERVER_CLEANING:
        while (prt_answer_read(s) && s->state != PRT_SERVER_CLOSING) {
        }
        break;
    case PRT_SERVER_DIALING:
        break;
    }
}

const struct prt_conn_ops prt_server_ops = {
    .open = op_open,
    .close = op_close,
    .served = op_served,
    .move = op_move,
    .class_free = prt_login_free,
};
