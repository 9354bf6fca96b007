/* proxy_listen_test.c - the fan-out of LISTEN against a server that does as it is told: two workers
 * driven by hand, so that time is the test's; at the end two real threads. The files under test are
 * compiled in with other names, so that what they call of client.c is the test's. */
#define prt_client_listening t_listening
#define prt_client_notify t_notify
#define prt_listen_add t_listen_add
#define prt_listen_del t_listen_del
#define prt_listen_next t_listen_next
#define prt_listen_end t_listen_end
#define prt_listen_event t_listen_event
#define prt_listen_end_all t_listen_end_all
#define prt_listen_redial t_listen_redial
#define prt_listen_close t_listen_close
#define prt_listen_is_over t_listen_is_over
#define prt_listen_free t_listen_free
#define prt_listen_stats t_listen_stats
#define prt_branch_answered t_branch_answered
#define prt_letter_come t_letter_come
#define prt_hub_user t_hub_user
#define prt_hub_asked t_hub_asked
#define prt_hub_close t_hub_close
#define prt_hub_redial t_hub_redial
#define prt_hub_dial t_hub_dial
#define prt_hub_flush t_hub_flush
#define prt_hub_set_alarm t_hub_set_alarm
#define prt_hub_unwanted t_hub_unwanted
#define prt_hub_lost t_hub_lost
#define prt_hub_broken t_hub_broken
#define prt_hub_is_ending t_hub_is_ending
#define prt_hear_begin t_hear_begin
#define prt_hear_ping t_hear_ping
#define prt_hear_bytes t_hear_bytes
#define prt_hear_not_yet t_hear_not_yet
#define prt_hear_lost t_hear_lost
#define prt_hear_end t_hear_end
#include "proxy/hear.c"
#include "proxy/hub.c"
#include "proxy/listen.c"
#include "test.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- a server ---- */
#define CONNS 8
enum mood {
    KIND,
    MUTE,
    REFUSES,
    CLOSES,
    ROWS,
    WRONG_TAG,
    READY_ONLY,
    UNKNOWN,
    CUT_NAME,
    LONG_A,
    TWICE
};
struct conn {
    int fd;
    bool is_in; /* logged in */
    char buf[65536];
    size_t n;
    char on[64][64]; /* channels */
};
static struct {
    pthread_mutex_t mu;
    pthread_t thread;
    int fd, port;
    bool stops, slams; /* slams: new connections are closed at once */
    enum mood mood;
    char denied[64], user[64], encoding[64], last[256];
    int logins, denials, listens, unlistens, pings;
    struct conn conn[CONNS];
} fs = {.mu = PTHREAD_MUTEX_INITIALIZER, .fd = -1};

static void put(int fd, const void *p, size_t n)
{
    for (size_t at = 0; at < n;) {
        ssize_t r = send(fd, (const char *)p + at, n - at, MSG_NOSIGNAL);
        if (r <= 0) {
            return;
        }
        at += (size_t)r;
    }
}

static void say(int fd, char type, const void *body, size_t n)
{
    char m[9000];

    m[0] = type;
    prt_put32(m + 1, (uint32_t)n + 4);
    memcpy(m + 5, body, n);
    put(fd, m, n + 5);
}
#define SAY(fd, type, lit) say(fd, type, lit, sizeof(lit) - 1)

static void say_error(int fd, const char *severity, const char *state, const char *text)
{
    char body[400];
    int n = snprintf(body, sizeof body, "S%s%cV%s%cC%s%cM%s%c%c", severity, 0, severity, 0, state,
                     0, text, 0, 0);

    say(fd, 'E', body, (size_t)n);
}

static void hang(struct conn *c)
{
    (void)close(c->fd);
    memset(c, 0, sizeof *c);
    c->fd = -1;
}

static const char *param(const char *p, size_t n, const char *name)
{
    for (const char *at = p; at < p + n && *at;) {
        const char *value = at + strlen(at) + 1;
        if (strcmp(at, name) == 0) {
            return value;
        }
        at = value + strlen(value) + 1;
    }
    return "";
}

static void log_in(struct conn *c, const char *p, size_t n)
{
    (void)snprintf(fs.user, sizeof fs.user, "%s", param(p, n, "user"));
    const char *enc = strstr(param(p, n, "options"), "client_encoding=");
    (void)snprintf(fs.encoding, sizeof fs.encoding, "%s", enc ? enc + 16 : "");
    if (strcmp(fs.user, fs.denied) == 0) {
        fs.denials++;
        say_error(c->fd, "FATAL", "28P01", "password authentication failed");
        hang(c);
        return;
    }
    fs.logins++;
    c->is_in = true;
    SAY(c->fd, 'R', "\0\0\0\0");
    SAY(c->fd, 'S',
        "server_version\0"
        "15.0\0");
    SAY(c->fd, 'S', "client_encoding\0UTF8\0");
    SAY(c->fd, 'K', "\0\0\0\7\0\0\0\1");
    SAY(c->fd, 'Z', "I");
}

static char *slot_of(struct conn *c, const char *channel)
{
    for (int i = 0; i < 64; i++) {
        if (strcmp(c->on[i], channel) == 0) {
            return c->on[i];
        }
    }
    return NULL;
}

/* The name in quotes; doubled ones are one. */
static void unquote(const char *sql, char *out)
{
    size_t n = 0;

    for (const char *p = strchr(sql, '"') + 1; *p && n < 63; p++) {
        if (*p == '"' && *++p != '"') {
            break;
        }
        out[n++] = *p;
    }
    out[n] = '\0';
}

static void answer_listen(struct conn *c, const char *sql, bool is_listen)
{
    char name[64];

    unquote(sql, name);
    char *slot = slot_of(c, name);
    if (is_listen && !slot) {
        (void)snprintf(slot_of(c, ""), 64, "%s", name);
    } else if (!is_listen && slot) {
        slot[0] = '\0';
    }
    if (is_listen) {
        SAY(c->fd, 'C', "LISTEN\0");
    } else {
        SAY(c->fd, 'C', "UNLISTEN\0");
    }
    SAY(c->fd, 'Z', "I");
}

static void answer_badly(struct conn *c)
{
    switch (fs.mood) {
    case REFUSES:
        say_error(c->fd, "ERROR", "25006", "cannot execute LISTEN during recovery");
        SAY(c->fd, 'Z', "I");
        break;
    case CLOSES:
        hang(c);
        break;
    case ROWS:
        SAY(c->fd, 'T', "\0\0");
        break;
    case WRONG_TAG:
        SAY(c->fd, 'C', "SELECT 1\0");
        break;
    case READY_ONLY:
        SAY(c->fd, 'Z', "I");
        break;
    case UNKNOWN:
        put(c->fd, "\1\2\3\4\5\6\7", 7);
        break;
    case CUT_NAME:
        SAY(c->fd, 'A', "\0\0\0\1abcdef\0");
        break;
    case LONG_A:
        put(c->fd, "A\0\1\0\0", 5);
        break;
    case TWICE:
        SAY(c->fd, 'C', "LISTEN\0");
        SAY(c->fd, 'C', "LISTEN\0");
        break;
    default: /* MUTE */
        break;
    }
}

static void on_query(struct conn *c, const char *sql)
{
    (void)snprintf(fs.last, sizeof fs.last, "%s", sql);
    bool is_listen = strncmp(sql, "LISTEN ", 7) == 0;
    fs.listens += is_listen;
    fs.unlistens += strncmp(sql, "UNLISTEN ", 9) == 0;
    fs.pings += !*sql;
    if (fs.mood != KIND) {
        answer_badly(c);
    } else if (!*sql) {
        SAY(c->fd, 'I', "");
        SAY(c->fd, 'Z', "I");
    } else {
        answer_listen(c, sql, is_listen);
    }
}

static void drop(struct conn *c, size_t n)
{
    c->n -= n;
    memmove(c->buf, c->buf + n, c->n);
}

/* false: nothing whole is left. */
static bool one_message(struct conn *c)
{
    size_t head = c->is_in ? 1 : 0;

    if (c->fd < 0 || c->n < head + 4 || c->n < head + prt_get32(c->buf + head)) {
        return false;
    }
    size_t size = head + prt_get32(c->buf + head);
    if (!c->is_in) {
        log_in(c, c->buf + 8, size - 8);
    } else if (c->buf[0] == 'Q') {
        on_query(c, c->buf + 5);
    } else {
        hang(c);
    }
    if (c->fd >= 0) {
        drop(c, size);
    }
    return true;
}

static void read_conn(struct conn *c)
{
    ssize_t n = recv(c->fd, c->buf + c->n, sizeof c->buf - c->n, MSG_DONTWAIT);

    if (n <= 0) {
        hang(c);
        return;
    }
    c->n += (size_t)n;
    while (one_message(c)) {
    }
}

static void accept_one(void)
{
    int fd = accept(fs.fd, NULL, NULL), one = 1;

    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (int i = 0; fd >= 0 && i < CONNS && !fs.slams; i++) {
        if (fs.conn[i].fd < 0) {
            fs.conn[i].fd = fd;
            return;
        }
    }
    (void)close(fd);
}

static void *serve(void *arg)
{
    (void)arg;
    for (bool stops = false; !stops;) {
        struct pollfd p[CONNS + 1] = {{.fd = fs.fd, .events = POLLIN}};
        (void)pthread_mutex_lock(&fs.mu);
        for (int i = 0; i < CONNS; i++) {
            p[i + 1] = (struct pollfd){.fd = fs.conn[i].fd, .events = POLLIN};
        }
        (void)pthread_mutex_unlock(&fs.mu);
        (void)poll(p, CONNS + 1, 2);
        (void)pthread_mutex_lock(&fs.mu);
        for (int i = 0; i < CONNS; i++) {
            if (p[i + 1].revents && fs.conn[i].fd == p[i + 1].fd) {
                read_conn(&fs.conn[i]);
            }
        }
        if (p[0].revents) {
            accept_one();
        }
        stops = fs.stops;
        (void)pthread_mutex_unlock(&fs.mu);
    }
    return NULL;
}

static void fs_start(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;

    fs.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(bind(fs.fd, (struct sockaddr *)&a, sizeof a) == 0 && listen(fs.fd, 64) == 0);
    CHECK(getsockname(fs.fd, (struct sockaddr *)&a, &n) == 0);
    fs.port = ntohs(a.sin_port);
    for (int i = 0; i < CONNS; i++) {
        fs.conn[i].fd = -1;
    }
    fs.mood = KIND;
    fs.slams = fs.stops = false;
    fs.denied[0] = '\0';
    fs.logins = fs.denials = fs.listens = fs.unlistens = fs.pings = 0;
    CHECK(pthread_create(&fs.thread, NULL, serve, NULL) == 0);
}

static void fs_kill(void)
{
    (void)pthread_mutex_lock(&fs.mu);
    for (int i = 0; i < CONNS; i++) {
        if (fs.conn[i].fd >= 0) {
            hang(&fs.conn[i]);
        }
    }
    (void)pthread_mutex_unlock(&fs.mu);
}

static void fs_stop(void)
{
    (void)pthread_mutex_lock(&fs.mu);
    fs.stops = true;
    (void)pthread_mutex_unlock(&fs.mu);
    (void)pthread_join(fs.thread, NULL);
    fs_kill();
    (void)close(fs.fd);
}

static void fs_mood(enum mood mood)
{
    (void)pthread_mutex_lock(&fs.mu);
    fs.mood = mood;
    (void)pthread_mutex_unlock(&fs.mu);
}

static void fs_slam(bool slams)
{
    (void)pthread_mutex_lock(&fs.mu);
    fs.slams = slams;
    (void)pthread_mutex_unlock(&fs.mu);
}

static int fs_get(const int *which)
{
    (void)pthread_mutex_lock(&fs.mu);
    int n = *which;
    (void)pthread_mutex_unlock(&fs.mu);
    return n;
}

static void fs_last(char out[256])
{
    (void)pthread_mutex_lock(&fs.mu);
    memcpy(out, fs.last, 256);
    (void)pthread_mutex_unlock(&fs.mu);
}

static int fs_open(void)
{
    int n = 0;

    (void)pthread_mutex_lock(&fs.mu);
    for (int i = 0; i < CONNS; i++) {
        n += fs.conn[i].fd >= 0;
    }
    (void)pthread_mutex_unlock(&fs.mu);
    return n;
}

/* Numbers from..to-1 as payloads, in one go; true: somebody listens. */
static bool fs_notify(const char *channel, int from, int to)
{
    bool found = false;

    (void)pthread_mutex_lock(&fs.mu);
    for (int i = 0; i < CONNS; i++) {
        struct conn *c = &fs.conn[i];
        if (c->fd < 0 || !slot_of(c, channel)) {
            continue;
        }
        struct prt_buf b = {0};
        for (int k = from; k < to; k++) {
            char m[200];
            int n = snprintf(m + 9, sizeof m - 9, "%s%c%d", channel, 0, k) + 1;
            m[0] = 'A';
            prt_put32(m + 1, (uint32_t)n + 8);
            prt_put32(m + 5, 42);
            (void)prt_buf_add(&b, m, (size_t)n + 9);
        }
        put(c->fd, prt_buf_data(&b), prt_buf_len(&b));
        prt_buf_free(&b);
        found = true;
    }
    (void)pthread_mutex_unlock(&fs.mu);
    return found;
}

/* ---- the proxy ---- */
struct tc {
    struct prt_client c;
    int answers, got, bad; /* bad: not the next number */
    int next;              /* -1: any */
    struct prt_err last;
    uint8_t m[200];
    size_t n;
    bool leaves;      /* in its next callback */
    struct tc *kills; /* this one leaves in its callback */
};
static struct prt_proxy *px;
static struct prt_connector *connector;
static int64_t skew_us;
static char logged[16384];

void t_listening(struct prt_client *c, const struct prt_err *err)
{
    struct tc *t = prt_container_of(c, struct tc, c);

    t->answers++;
    t->last = *err;
    if (t->leaves) {
        t_listen_end(c);
    }
}

void t_notify(struct prt_client *c, const uint8_t *m, size_t n)
{
    struct tc *t = prt_container_of(c, struct tc, c);
    const char *payload = (const char *)m + 9 + strlen((const char *)m + 9) + 1;

    t->got++;
    t->bad += m[0] != 'A' || prt_get32(m + 1) != n - 1 || m[n - 1] != 0 ||
              (t->next >= 0 && atoi(payload) != t->next);
    t->next = atoi(payload) + 1;
    memcpy(t->m, m, n < sizeof t->m ? n : sizeof t->m);
    t->n = n;
    if (t->kills) {
        t_listen_end(&t->kills->c);
        t->kills = NULL;
    }
    if (t->leaves) {
        t_listen_end(c);
    }
}

static pthread_mutex_t log_mu = PTHREAD_MUTEX_INITIALIZER;

static void on_log(const char *line, size_t n)
{
    (void)pthread_mutex_lock(&log_mu);
    size_t have = strlen(logged);
    if (n < sizeof logged - have) {
        memcpy(logged + have, line, n);
        logged[have + n] = '\0';
    }
    (void)pthread_mutex_unlock(&log_mu);
}

static void turn_of(unsigned lane)
{
    struct prt_worker *w = &px->worker[lane];
    struct prt_io_event ev;
    uint64_t one;

    prt_thread_is(PRT_THREAD_WORKER, lane);
    prt_assert_worker();
    int n = prt_io_wait(&w->io, 0);
    w->now_us = prt_now_us() + skew_us;
    for (int i = 0; i < n; i++) {
        if (!prt_io_event(&w->io, i, &ev)) {
            continue;
        }
        if (ev.kind == PRT_KIND_HUB) {
            t_listen_event(ev.obj, &ev);
        } else if (read(w->wake_fd, &one, sizeof one) < 0) {
            continue;
        }
    }
    while (prt_mailbox_run(&w->mail)) {
    }
    prt_wheel_run(&w->wheel, w->now_us);
}

static void turn(void)
{
    turn_of(0);
    turn_of(1);
}

/* Turns until x holds; 10 s at most. */
#define UNTIL(x)                                                                                   \
    do {                                                                                           \
        int64_t until_ = prt_now_us() + 10000000;                                                  \
        while (!(x) && prt_now_us() < until_) {                                                    \
            turn();                                                                                \
            (void)usleep(200);                                                                     \
        }                                                                                          \
        CHECK(x);                                                                                  \
    } while (0)
/* So many that whatever is on its way has come. */
static void settle(void)
{
    for (int i = 0; i < 100; i++) {
        turn();
        (void)usleep(300);
    }
}

static void set_defaults(struct prt_pool_config *row)
{
#define SET_INT(name, v) row->name = v;
#define SET_BOOL(name, v) row->name = v;
#define SET_TIME(name, v) row->name##_us = v;
#define SET_TIME0(name, v) row->name##_us = v;
#define SET_BYTES(name, v) row->name##_bytes = v;
#define POOL(name, type, value, ...) SET_##type(name, value)
#include "base/settings.def"
#undef POOL
    row->mode = PRT_MODE_TRANSACTION;
    row->min_size = row->initial_size = 0;
    row->server_login_retry_us = 150000;
    row->acquire_timeout_us = 20000000;
}

static struct prt_config *config_new(const char *pool, int port, const char *user)
{
    struct prt_config *cfg = calloc(1, sizeof *cfg);
    char target[200];

    (void)snprintf(target, sizeof target,
                   "host=127.0.0.1 port=%d dbname=db sslmode=disable gssencmode=disable", port);
    cfg->refs = 1;
    cfg->max_clients = 1000;
    cfg->max_pools = 10;
    cfg->pool_idle_timeout_us = 1000000;
    cfg->n_pools = 1;
    cfg->pools = calloc(1, sizeof *cfg->pools);
    cfg->pools[0].name = strdup(pool);
    cfg->pools[0].target = strdup(target);
    cfg->pools[0].user = user ? strdup(user) : NULL;
    set_defaults(&cfg->pools[0]);
    return cfg;
}

static void set_up(void)
{
    static const struct prt_proxy_hooks hooks;
    struct prt_err err = {0};

    fs_start();
    logged[0] = '\0';
    skew_us = 0;
    prt_log_set_sink(on_log);
    CHECK_INT(prt_connector_start(&connector, 2, &err), POOLRT_OK);
    struct prt_config *cfg = config_new("app", fs.port, NULL);
    prt_thread_is(PRT_THREAD_CONTROL, 0);
    prt_assert_control();
    CHECK_INT(prt_proxy_new(&px, cfg, 2, connector, &hooks, &err), POOLRT_OK);
    prt_config_unref(cfg);
    turn();
}

static struct tc *client(unsigned lane, const char *user, const struct prt_params *params)
{
    struct tc *t = calloc(1, sizeof *t);
    struct prt_err err;

    prt_thread_is(PRT_THREAD_WORKER, lane);
    prt_assert_worker();
    t->next = -1;
    t->c.worker = &px->worker[lane];
    t->c.params = params;
    t->c.pool = prt_pools_join(px, PRT_STR("app"), &err);
    t->c.id = calloc(1, sizeof *t->c.id);
    CHECK(t->c.pool && t->c.id);
    t->c.id->cls = prt_pools_class(t->c.pool, prt_str_of(user), "", 0);
    CHECK(t->c.id->cls);
    return t;
}

static void client_free(struct tc *t)
{
    prt_thread_is(PRT_THREAD_WORKER, t->c.worker->lane);
    prt_assert_worker();
    t_listen_end(&t->c);
    prt_class_unref(t->c.id->cls);
    prt_pools_leave(t->c.pool);
    free(t->c.id);
    free(t);
}

static poolrt_rc add(struct tc *t, const char *channel)
{
    struct prt_err err = {0};

    prt_thread_is(PRT_THREAD_WORKER, t->c.worker->lane);
    prt_assert_worker();
    poolrt_rc rc = t_listen_add(&t->c, prt_str_of(channel), &err);
    if (rc < 0) {
        t->last = err;
    }
    return rc;
}

static void del(struct tc *t, const char *channel)
{
    prt_thread_is(PRT_THREAD_WORKER, t->c.worker->lane);
    prt_assert_worker();
    t_listen_del(&t->c, prt_str_of(channel));
}

/* LISTEN, and wait until it is so. */
static void listens(struct tc *t, const char *channel)
{
    int before = t->answers;

    CHECK_INT(add(t, channel), POOLRT_PENDING);
    UNTIL(t->answers == before + 1);
    CHECK_INT(t->last.rc, POOLRT_OK);
}

static struct prt_proxy_pool *the_pool(void)
{
    struct prt_map_node *n = prt_map_next(&px->pools, NULL);

    return n ? prt_container_of(n, struct prt_proxy_pool, node) : NULL;
}

static struct prt_listen_stats stats(void)
{
    struct prt_listen_stats s;

    t_listen_stats(the_pool(), &s);
    return s;
}

static void tear_down(void)
{
    prt_thread_is(PRT_THREAD_CONTROL, 0);
    prt_assert_control();
    for (unsigned i = 0; i < 2; i++) {
        px->worker[i].is_ending = true;
        prt_thread_is(PRT_THREAD_WORKER, i);
        prt_assert_worker();
        t_listen_end_all(&px->worker[i]);
    }
    UNTIL(!the_pool() || t_listen_is_over(the_pool()));
    UNTIL(fs_open() == 0);
    prt_connector_stop(connector);
    turn();
    prt_thread_is(PRT_THREAD_CONTROL, 0);
    prt_assert_control();
    prt_proxy_free(px);
    fs_stop();
    prt_log_set_sink(NULL);
}

/* ---- the tests ---- */

TEST(one_connection_hears_for_the_clients_of_all_workers)
{
    set_up();
    struct tc *a = client(0, "u", NULL), *b = client(1, "u", NULL), *c = client(1, "v", NULL);
    listens(a, "news");
    listens(b, "news");
    listens(c, "news");
    listens(c, "other");
    CHECK_INT(add(c, "news"), POOLRT_OK); /* twice is once */
    CHECK_INT(fs_get(&fs.logins), 1);
    CHECK_STR(fs.user, "u");
    CHECK_INT(stats().listeners, 1);
    CHECK_INT(stats().channels, 2);
    CHECK(fs_notify("news", 0, 1));
    UNTIL(a->got && b->got && c->got);
    CHECK(fs_notify("other", 5, 6));
    UNTIL(c->got == 2);
    settle();
    CHECK_INT(a->got, 1);
    CHECK_INT(b->got, 1);
    CHECK(a->n == 16 && memcmp(a->m, "A\0\0\0\17\0\0\0\52news\0000\0", 16) == 0);
    CHECK_INT(stats().notifications, 2);
    client_free(a);
    client_free(b);
    client_free(c);
    tear_down();
}

TEST(ten_thousand_notifications_come_in_order)
{
    set_up();
    struct tc *t[4];
    for (unsigned i = 0; i < 4; i++) {
        t[i] = client(i % 2, "u", NULL);
        listens(t[i], "n");
        t[i]->next = 0;
    }
    for (int i = 0; i < 10000; i += 500) {
        CHECK(fs_notify("n", i, i + 500));
        turn();
    }
    for (unsigned i = 0; i < 4; i++) {
        UNTIL(t[i]->got == 10000);
        CHECK_INT(t[i]->bad, 0);
        client_free(t[i]);
    }
    tear_down();
}

TEST(a_name_is_quoted_and_cut_as_postgresql_cuts)
{
    char sql[256], name[80], want[256];

    set_up();
    struct tc *a = client(0, "u", NULL);
    listens(a, "we\"ird; drop");
    fs_last(sql);
    CHECK_STR(sql, "LISTEN \"we\"\"ird; drop\"");
    CHECK(fs_notify("we\"ird; drop", 0, 1));
    UNTIL(a->got == 1);
    memset(name, 'x', 62); /* 62 and a character of two bytes: that is cut whole */
    memcpy(name + 62, "\xc3\xa4y", 4);
    listens(a, name);
    fs_last(sql);
    (void)snprintf(want, sizeof want, "LISTEN \"%.62s\"", name);
    CHECK_STR(sql, want);
    CHECK_INT(add(a, name), POOLRT_OK);
    CHECK_INT(add(a, ""), POOLRT_PROTOCOL);
    CHECK_STR(a->last.sqlstate, "42601");
    client_free(a);
    tear_down();
}

TEST(a_client_can_walk_its_channels_and_drop_them_on_the_way)
{
    set_up();
    struct tc *a = client(0, "u", NULL);
    struct prt_str name;
    const void *at = NULL;
    char seen[64] = "";

    prt_thread_is(PRT_THREAD_WORKER, 0);
    CHECK(!t_listen_next(&a->c, &at, &name));
    listens(a, "a");
    listens(a, "b");
    CHECK_INT(add(a, "c"), POOLRT_PENDING);
    at = NULL;
    while (t_listen_next(&a->c, &at, &name)) {
        char one[64];
        (void)snprintf(one, sizeof one, PRT_STR_FMT, PRT_STR_ARG(name));
        seen[strlen(seen)] = one[0];
        t_listen_del(&a->c, prt_str_of(one));
    }
    CHECK_STR(seen, "abc");
    CHECK(!a->c.ears);
    UNTIL(stats().channels == 0 && fs_get(&fs.unlistens) == 3);
    CHECK_INT(a->answers, 2); /* nothing for what was taken back */
    client_free(a);
    tear_down();
}

TEST(the_last_one_to_leave_unlistens_and_the_connection_is_kept_a_minute)
{
    set_up();
    struct tc *a = client(0, "u", NULL), *b = client(1, "u", NULL);
    listens(a, "x");
    listens(b, "x");
    del(a, "x");
    settle();
    CHECK_INT(fs_get(&fs.unlistens), 0);
    CHECK(fs_notify("x", 0, 1));
    UNTIL(b->got == 1);
    CHECK_INT(a->got, 0);
    del(b, "x");
    UNTIL(fs_get(&fs.unlistens) == 1);
    UNTIL(stats().channels == 0);
    settle();
    skew_us += 50000000;
    settle();
    listens(a, "x"); /* the same connection serves */
    CHECK_INT(fs_get(&fs.logins), 1);
    del(a, "x");
    UNTIL(fs_get(&fs.unlistens) == 2);
    settle();
    skew_us += 50000000;
    settle();
    CHECK_INT(stats().listeners, 1);
    skew_us += 11000000;
    UNTIL(stats().listeners == 0);
    UNTIL(fs_open() == 0);
    CHECK(t_listen_is_over(the_pool()));
    listens(b, "y");
    CHECK_INT(fs_get(&fs.logins), 2);
    CHECK_INT(stats().gaps, 0);
    client_free(a);
    client_free(b);
    tear_down();
}

TEST(a_lost_connection_is_a_gap_that_is_announced_and_ends)
{
    set_up();
    struct tc *a = client(0, "u", NULL), *b = client(1, "u", NULL);
    listens(a, "x");
    listens(a, "y");
    listens(b, "y");
    fs_slam(true);
    fs_kill();
    UNTIL(strstr(logged, "event=listen_gap "));
    CHECK(strstr(logged, "event=listen_gap pool=app database=db channels=2"));
    CHECK_INT(stats().gaps, 1);
    CHECK_INT(stats().listeners, 0);
    CHECK_INT(stats().channels, 0);
    CHECK_INT(add(b, "z"), POOLRT_PENDING);
    UNTIL(strstr(logged, "event=connect_failed"));
    CHECK_INT(b->answers, 1);
    CHECK(!strstr(logged, "listen_gap_over"));
    fs_slam(false);
    UNTIL(b->answers == 2);
    UNTIL(strstr(logged, "event=listen_gap_over"));
    CHECK(strstr(logged, "gap_ms="));
    CHECK_INT(b->last.rc, POOLRT_OK);
    CHECK_INT(stats().gaps, 1);
    CHECK_INT(stats().channels, 3);
    CHECK(fs_notify("y", 0, 1) && fs_notify("x", 1, 2) && fs_notify("z", 2, 3));
    UNTIL(a->got == 2 && b->got == 2);
    CHECK_INT(a->answers, 2); /* nobody is told twice */
    client_free(a);
    client_free(b);
    tear_down();
}

TEST(who_waits_too_long_gets_the_reason)
{
    set_up();
    fs_slam(true);
    struct tc *a = client(0, "u", NULL), *b = client(1, "u", NULL), *c = client(1, "u", NULL);
    CHECK_INT(add(a, "x"), POOLRT_PENDING);
    CHECK_INT(add(b, "x"), POOLRT_PENDING);
    CHECK_INT(add(c, "x"), POOLRT_PENDING);
    UNTIL(strstr(logged, "event=connect_failed"));
    settle();
    del(c, "x");
    skew_us += 10000000;
    settle();
    CHECK_INT(a->answers + b->answers + c->answers, 0);
    skew_us += 11000000;
    UNTIL(a->answers == 1 && b->answers == 1);
    CHECK_INT(a->last.rc, POOLRT_TIMEOUT);
    CHECK(strstr(a->last.text, "acquire_timeout") && strstr(a->last.text, "server closed"));
    CHECK_INT(c->answers, 0);
    CHECK(!a->c.ears && !b->c.ears && !c->c.ears);
    UNTIL(t_listen_is_over(the_pool())); /* and nobody dials any more */
    CHECK_INT(stats().gaps, 0);
    client_free(a);
    client_free(b);
    client_free(c);
    tear_down();
}

TEST(a_user_who_may_not_log_in_does_not_keep_the_others_from_listening)
{
    set_up();
    (void)snprintf(fs.denied, sizeof fs.denied, "eve");
    struct tc *a = client(0, "eve", NULL), *b = client(1, "bob", NULL);
    CHECK_INT(add(a, "x"), POOLRT_PENDING);
    UNTIL(fs_get(&fs.denials) > 1);
    CHECK_INT(a->answers, 0);
    CHECK_INT(add(b, "y"), POOLRT_PENDING);
    UNTIL(a->answers == 1 && b->answers == 1);
    CHECK_INT(a->last.rc, POOLRT_OK);
    CHECK_STR(fs.user, "bob");
    client_free(a);
    client_free(b);
    tear_down();
}

TEST(an_error_of_the_server_is_the_askers)
{
    set_up();
    struct tc *a = client(0, "u", NULL), *b = client(1, "u", NULL);
    listens(b, "y");
    fs_mood(REFUSES);
    CHECK_INT(add(a, "x"), POOLRT_PENDING);
    UNTIL(a->answers == 1);
    CHECK_STR(a->last.sqlstate, "25006");
    CHECK_STR(a->last.text, "cannot execute LISTEN during recovery");
    CHECK(!a->c.ears);
    CHECK_INT(add(a, "y"), POOLRT_PENDING); /* it is listened to, but this one is told no */
    UNTIL(a->answers == 2);
    CHECK(a->last.rc < 0);
    fs_mood(KIND);
    settle();
    CHECK_INT(fs_get(&fs.logins), 1);
    CHECK(fs_notify("y", 0, 1));
    UNTIL(b->got == 1);
    listens(a, "x");
    CHECK_INT(stats().gaps, 0);
    client_free(a);
    client_free(b);
    tear_down();
}

TEST(a_server_that_cannot_listen_again_is_left_for_another)
{
    set_up();
    struct tc *a = client(0, "u", NULL);
    listens(a, "x");
    fs_mood(REFUSES);
    fs_kill();
    UNTIL(fs_get(&fs.logins) >= 3);
    CHECK(!strstr(logged, "listen_gap_over"));
    CHECK_INT(a->answers, 1);
    fs_mood(KIND);
    UNTIL(strstr(logged, "listen_gap_over"));
    CHECK_INT(stats().gaps, 1);
    client_free(a);
    tear_down();
}

TEST(a_server_that_breaks_the_protocol_is_left)
{
    static const enum mood moods[] = {CLOSES,  ROWS,     WRONG_TAG, READY_ONLY,
                                      UNKNOWN, CUT_NAME, LONG_A,    TWICE};

    for (size_t i = 0; i < sizeof moods / sizeof moods[0]; i++) {
        set_up();
        struct tc *a = client(0, "u", NULL), *b = client(1, "u", NULL);
        listens(a, "x");
        fs_mood(moods[i]);
        CHECK_INT(add(b, "x"), POOLRT_PENDING);
        UNTIL(strstr(logged, "event=listen_gap "));
        UNTIL(fs_get(&fs.logins) >= 2);
        fs_mood(KIND);
        UNTIL(b->answers == 1 && strstr(logged, "listen_gap_over"));
        CHECK_INT(b->last.rc, POOLRT_OK);
        CHECK(fs_notify("x", 0, 1));
        UNTIL(a->got == 1 && b->got == 1);
        CHECK((moods[i] == CLOSES) == (prt_counted(&px->worker[0].n.violations) == 0));
        client_free(a);
        client_free(b);
        tear_down();
    }
}

TEST(silence_is_asked_and_must_be_answered)
{
    set_up();
    struct tc *a = client(0, "u", NULL);
    listens(a, "x");
    settle();
    skew_us += 31000000;
    settle();
    CHECK_INT(fs_get(&fs.pings), 0);
    skew_us += 31000000;
    UNTIL(fs_get(&fs.pings) == 1);
    settle();
    skew_us += 31000000;
    settle();
    CHECK_INT(stats().gaps, 0);
    fs_mood(MUTE);
    skew_us += 31000000;
    UNTIL(fs_get(&fs.pings) == 2);
    CHECK_INT(stats().gaps, 0);
    skew_us += 31000000;
    UNTIL(stats().gaps == 1);
    fs_mood(KIND);
    UNTIL(strstr(logged, "listen_gap_over"));
    client_free(a);
    tear_down();
}

TEST(callbacks_may_end_any_subscription)
{
    set_up();
    struct tc *t[6];
    for (unsigned i = 0; i < 6; i++) {
        t[i] = client(0, "u", NULL);
        t[i]->leaves = i == 5;
        CHECK_INT(add(t[i], "x"), POOLRT_PENDING);
    }
    UNTIL(t[5]->answers == 1 && t[4]->answers == 1);
    CHECK(!t[5]->c.ears);
    t[1]->leaves = true;
    t[2]->kills = t[3];
    t[4]->kills = t[0];
    CHECK(fs_notify("x", 0, 1));
    UNTIL(t[4]->got == 1);
    CHECK(t[0]->got == 1 && t[1]->got == 1 && t[2]->got == 1 && t[3]->got == 0 && t[5]->got == 0);
    CHECK(fs_notify("x", 1, 2));
    UNTIL(t[4]->got == 2 && t[2]->got == 2);
    CHECK(t[0]->got == 1 && t[1]->got == 1 && t[3]->got == 0);
    for (unsigned i = 0; i < 6; i++) {
        client_free(t[i]);
    }
    tear_down();
}

TEST(clients_of_another_encoding_have_ears_of_their_own)
{
    const struct prt_params *latin = prt_params_with(
        prt_params_ref(prt_params_empty()), PRT_STR("client_encoding"), PRT_STR("latin-1"));

    set_up();
    struct tc *a = client(0, "u", NULL), *b = client(0, "u", latin);
    listens(a, "x");
    CHECK_STR(fs.encoding, "");
    listens(b, "x");
    CHECK_STR(fs.encoding, "LATIN1");
    CHECK_INT(stats().listeners, 2);
    client_free(a);
    client_free(b);
    tear_down();
    prt_params_unref(latin);
}

static void reload(struct prt_config *cfg)
{
    struct prt_err err;
    char restart[100];

    prt_thread_is(PRT_THREAD_CONTROL, 0);
    prt_assert_control();
    CHECK_INT(prt_proxy_apply(px, cfg, restart, sizeof restart, &err), POOLRT_OK);
    prt_config_unref(cfg);
}

TEST(a_reload_that_changes_the_login_listens_anew)
{
    set_up();
    struct tc *a = client(1, "u", NULL);
    listens(a, "x");
    reload(config_new("app", fs.port, NULL)); /* the same: nothing happens */
    settle();
    CHECK_INT(fs_get(&fs.logins), 1);
    reload(config_new("app", fs.port, "owner"));
    UNTIL(strstr(logged, "listen_gap_over"));
    CHECK_STR(fs.user, "owner");
    CHECK_INT(fs_get(&fs.logins), 2);
    CHECK(fs_notify("x", 0, 1));
    UNTIL(a->got == 1);
    client_free(a);
    tear_down();
}

TEST(a_pool_that_goes_takes_its_connection_along)
{
    set_up();
    struct tc *a = client(0, "u", NULL), *b = client(1, "u", NULL);
    listens(a, "x");
    fs_mood(MUTE);
    CHECK_INT(add(b, "x"), POOLRT_PENDING);
    settle();
    CHECK_INT(b->answers, 0);
    reload(config_new("elsewhere", fs.port, NULL));
    UNTIL(b->answers == 1);
    CHECK_INT(b->last.rc, POOLRT_DRAINING);
    UNTIL(fs_open() == 0);
    CHECK_INT(add(b, "y"), POOLRT_DRAINING);
    CHECK_INT(stats().gaps, 0);
    client_free(a);
    client_free(b);
    for (int i = 0; i < 2000 && px->n_pools > 1; i++) {
        prt_thread_is(PRT_THREAD_CONTROL, 0);
        prt_assert_control();
        prt_pools_tick(px, prt_now_us());
        turn();
    }
    CHECK_INT(px->n_pools, 1);
    tear_down();
}

TEST(an_end_in_the_middle_of_a_dial_leaves_nothing)
{
    set_up();
    struct tc *a = client(0, "u", NULL), *b = client(1, "u", NULL);
    CHECK_INT(add(b, "x"), POOLRT_PENDING);
    CHECK_INT(add(a, "x"), POOLRT_PENDING);
    turn_of(1);
    client_free(a);
    client_free(b);
    tear_down();
}

/* ---- two threads ---- */
#define STRESS_CLIENTS 12
static _Atomic bool stress_ends;
static _Atomic int stress_got, stress_bad;

static void *stress(void *arg)
{
    unsigned lane = *(const unsigned *)arg, seed = lane + 1;
    struct tc *t[STRESS_CLIENTS];
    int got = 0, bad = 0;

    for (int i = 0; i < STRESS_CLIENTS; i++) {
        t[i] = client(lane, "u", NULL);
    }
    while (!atomic_load(&stress_ends)) {
        struct tc *one = t[rand_r(&seed) % STRESS_CLIENTS];
        char name[16];
        (void)snprintf(name, sizeof name, "c%d", rand_r(&seed) % 3);
        if (rand_r(&seed) % 16 == 0) {
            if (one->c.ears) {
                t_listen_end(&one->c);
                one->next = -1;
            } else {
                (void)add(one, name); /* one channel each, so that numbers count */
            }
        }
        turn_of(lane);
    }
    for (int i = 0; i < STRESS_CLIENTS; i++) {
        got += t[i]->got;
        bad += t[i]->bad;
        client_free(t[i]);
    }
    for (int i = 0; i < 200; i++) {
        turn_of(lane);
        (void)usleep(500);
    }
    atomic_fetch_add(&stress_got, got);
    atomic_fetch_add(&stress_bad, bad);
    return NULL;
}

TEST(nothing_is_lost_while_clients_of_two_threads_come_and_go)
{
    static const unsigned lanes[2] = {0, 1};
    pthread_t thread[2];
    int n = 0;

    set_up();
    atomic_store(&stress_ends, false);
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_create(&thread[i], NULL, stress, (void *)(uintptr_t)&lanes[i]) == 0);
    }
    for (int64_t until = prt_now_us() + 3000000; prt_now_us() < until; n += 20) {
        for (int k = 0; k < 3; k++) {
            char name[16];
            (void)snprintf(name, sizeof name, "c%d", k);
            (void)fs_notify(name, n, n + 20);
        }
        (void)usleep(500);
    }
    atomic_store(&stress_ends, true);
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_join(thread[i], NULL) == 0);
    }
    CHECK(atomic_load(&stress_got) > 1000);
    CHECK_INT(atomic_load(&stress_bad), 0);
    tear_down();
}
