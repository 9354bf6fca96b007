/* link_connect_test.c - dials and cancels against a PostgreSQL of its own and against servers that
 * misbehave: what comes out of a connector must be a session that answers, or a sentence that says
 * which host failed and why; and nothing may be left behind. */
#include "link/link.h"
#include "test.h"

#include "pgserver.h"

#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/un.h>

#define SECRET "s3cret pass\\word"

/* ---- a place for answers ---- */
struct box {
    struct prt_mailbox mail;
    pthread_mutex_t mu;
    pthread_cond_t cond;
    bool is_awake;
    int answers;
};
static struct box box;

static void wake_box(void *owner)
{
    (void)owner;
    (void)pthread_mutex_lock(&box.mu);
    box.is_awake = true;
    (void)pthread_cond_signal(&box.cond);
    (void)pthread_mutex_unlock(&box.mu);
}

static void on_answer(void *owner, struct prt_mail *mail)
{
    (void)owner, (void)mail;
    box.answers++;
}

/* Until `n` answers came since the last call; false after the deadline. */
static bool await(int n, int timeout_ms)
{
    int64_t until = pg_now_ms() + timeout_ms;

    while (box.answers < n && pg_now_ms() < until) {
        struct timespec t;
        (void)clock_gettime(CLOCK_REALTIME, &t);
        t.tv_nsec += 20000000;
        t.tv_sec += t.tv_nsec / 1000000000, t.tv_nsec %= 1000000000;
        (void)pthread_mutex_lock(&box.mu);
        if (!box.is_awake) {
            (void)pthread_cond_timedwait(&box.cond, &box.mu, &t);
        }
        box.is_awake = false;
        (void)pthread_mutex_unlock(&box.mu);
        (void)prt_mailbox_run(&box.mail);
    }
    bool ok = box.answers == n;
    box.answers = 0;
    return ok;
}

/* ---- the servers ---- */
static struct pg_server pg;
static struct prt_connector *conn;

static bool set_up(void)
{
    static bool tried;
    struct prt_err err;

    if (!tried) {
        tried = true;
        (void)pthread_mutex_init(&box.mu, NULL);
        (void)pthread_cond_init(&box.cond, NULL);
        prt_mailbox_init(&box.mail, NULL, wake_box);
        CHECK(pg_server_start(&pg,
                              "host all md5user 127.0.0.1/32 md5\n"
                              "host all scramuser 127.0.0.1/32 scram-sha-256\n"
                              "host all clearuser 127.0.0.1/32 password\n"
                              "hostssl all tlsuser 127.0.0.1/32 trust\n"
                              "host all tlsuser 127.0.0.1/32 reject\n"
                              "hostnossl all plainuser 127.0.0.1/32 trust\n"
                              "host all plainuser 127.0.0.1/32 reject\n",
                              true));
        CHECK(pg_server_sql(&pg, "CREATE ROLE scramuser LOGIN PASSWORD E's3cret pass\\\\word';"
                                 "CREATE ROLE clearuser LOGIN PASSWORD E's3cret pass\\\\word';"
                                 "CREATE ROLE tlsuser LOGIN; CREATE ROLE plainuser LOGIN;"
                                 "SET password_encryption = md5;"
                                 "CREATE ROLE md5user LOGIN PASSWORD E's3cret pass\\\\word'"));
        CHECK_INT(prt_connector_start(&conn, 2, &err), POOLRT_OK);
    }
    return pg.pid > 0 && conn;
}

/* ---- dials ---- */
static struct prt_target *PRT_PRINTF(1, 2) target(const char *fmt, ...)
{
    char text[1024];
    struct prt_target *t = NULL;
    struct prt_err err = {0};
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    CHECK_INT(prt_target_new(&t, text, &err), POOLRT_OK);
    CHECK_STR(err.text, "");
    return t;
}

static struct prt_dial new_dial(struct prt_target *t)
{
    return (struct prt_dial){.target = t,
                             .timeout_us = 20000000,
                             .reply_to = &box.mail,
                             .reply = {.deliver = on_answer}};
}

static void hang_up(struct prt_dial *d)
{
    if (d->ssl) {
        (void)SSL_shutdown(d->ssl);
        SSL_free(d->ssl);
    }
    if (d->fd >= 0) {
        (void)close(d->fd);
    }
    prt_params_unref(d->params);
    d->ssl = NULL, d->fd = -1, d->params = NULL;
}

/* Submits and waits; the target goes. */
static void dial(struct prt_dial *d)
{
    struct prt_target *t = d->target;

    prt_connector_submit(conn, d);
    CHECK(await(1, 30000));
    prt_target_unref(t);
}

static bool wait_fd(int fd, short events)
{
    struct pollfd p = {.fd = fd, .events = events};

    return poll(&p, 1, 10000) == 1;
}

static ssize_t read_some(struct prt_dial *d, void *p, size_t n)
{
    for (;;) {
        ssize_t r;
        if (d->ssl) {
            ERR_clear_error();
            r = SSL_read(d->ssl, p, (int)n);
            if (r <= 0 && SSL_get_error(d->ssl, (int)r) != SSL_ERROR_WANT_READ) {
                return r;
            }
        } else {
            r = recv(d->fd, p, n, 0);
            if (r < 0 && errno != EAGAIN) {
                return r;
            }
        }
        if (r >= 0 && !(d->ssl && r == 0)) {
            return r;
        }
        if (!wait_fd(d->fd, POLLIN)) {
            return -1;
        }
    }
}

static bool send_query(struct prt_dial *d, const char *sql)
{
    struct prt_buf b = {0};
    bool ok;

    prt_put_query(&b, prt_str_of(sql));
    if (d->ssl) {
        ok = SSL_write(d->ssl, prt_buf_data(&b), (int)prt_buf_len(&b)) == (int)prt_buf_len(&b);
    } else {
        ok = send(d->fd, prt_buf_data(&b), prt_buf_len(&b), MSG_NOSIGNAL) ==
             (ssize_t)prt_buf_len(&b);
    }
    prt_buf_free(&b);
    return ok;
}

/* The first field of the first row, or "!SQLSTATE"; "?" when the session does not answer. */
static const char *answer(struct prt_dial *d)
{
    static char text[256];
    uint8_t in[8192];
    size_t n = 0, at = 0;

    (void)snprintf(text, sizeof text, "?");
    for (;;) {
        ssize_t r = n < sizeof in ? read_some(d, in + n, sizeof in - n) : -1;
        if (r <= 0) {
            return "?";
        }
        n += (size_t)r;
        while (n - at >= 5 && n - at > prt_get32(in + at + 1)) {
            struct prt_msg m = {.type = in[at], .body = in + at + 5};
            m.len = m.have = prt_get32(in + at + 1) - 4;
            at += 5 + m.len;
            if (m.type == 'D') {
                (void)snprintf(text, sizeof text, "%.*s", (int)prt_get32(m.body + 2), m.body + 6);
            } else if (m.type == 'E') {
                struct prt_notice e;
                prt_notice_read(&m, &e);
                (void)snprintf(text, sizeof text, "!%.*s", (int)e.sqlstate.n, e.sqlstate.p);
            } else if (m.type == 'Z') {
                return text;
            }
        }
    }
}

static const char *query(struct prt_dial *d, const char *sql)
{
    return send_query(d, sql) ? answer(d) : "?";
}

static bool has_param(const struct prt_dial *d, const char *name, const char *want)
{
    struct prt_str v;

    return d->params && prt_params_get(d->params, prt_str_of(name), &v) && prt_str_eqz(v, want);
}

static void is_session(struct prt_dial *d)
{
    CHECK_INT(d->err.rc, POOLRT_OK);
    CHECK_STR(d->err.text, "");
    CHECK(d->fd >= 0);
    if (d->fd >= 0) {
        CHECK_STR(query(d, "select 6 * 7"), "42");
        CHECK(d->pid > 0 && d->key_n == 4);
        char pid[32];
        (void)snprintf(pid, sizeof pid, "%u", d->pid);
        CHECK_STR(query(d, "select pg_backend_pid()"), pid);
        CHECK(prt_params_count(d->params) >= 10);
    }
}

static void is_failure(struct prt_dial *d, const char *sqlstate, const char *text)
{
    CHECK_INT(d->err.rc, POOLRT_CONNECT_FAILED);
    CHECK_STR(d->err.sqlstate, sqlstate);
    if (!strstr(d->err.text, text)) {
        printf("  says: %s\n  not:  %s\n", d->err.text, text);
        CHECK(false);
    }
    CHECK(!strstr(d->err.text, "s3cret"));
    CHECK(d->fd == -1 && !d->ssl && !d->params && d->key_n == 0);
}

static int open_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int n = 0;

    while (readdir(dir)) {
        n++;
    }
    (void)closedir(dir);
    return n;
}

/* a listening socket on a port of its own; the backlog answers the connect, nobody else does */
static int listener(int *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    CHECK(bind(fd, (struct sockaddr *)&a, sizeof a) == 0 && listen(fd, 64) == 0);
    CHECK_INT(getsockname(fd, (struct sockaddr *)&a, &n), 0);
    *port = ntohs(a.sin_port);
    return fd;
}

/* ---- tests ---- */
TEST(plain_tcp_and_unix)
{
    if (!set_up()) {
        return;
    }
    struct prt_dial d = new_dial(
        target("host=127.0.0.1 port=%d dbname=postgres user=postgres sslmode=disable", pg.port));
    dial(&d);
    is_session(&d);
    CHECK(d.ssl == NULL);
    char want[128];
    (void)snprintf(want, sizeof want, "127.0.0.1:%d", pg.port);
    CHECK_STR(d.server_addr, want);
    int flags = fcntl(d.fd, F_GETFL), on = 0;
    socklen_t n = sizeof on;
    CHECK(flags & O_NONBLOCK);
    CHECK(fcntl(d.fd, F_GETFD) & FD_CLOEXEC);
    CHECK(getsockopt(d.fd, IPPROTO_TCP, TCP_NODELAY, &on, &n) == 0 && on);
    CHECK(getsockopt(d.fd, SOL_SOCKET, SO_KEEPALIVE, &on, &n) == 0 && on);
    CHECK(getsockopt(d.fd, IPPROTO_TCP, TCP_KEEPIDLE, &on, &n) == 0 && on == 30);
    CHECK(getsockopt(d.fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &on, &n) == 0 && on == 60000);
    CHECK(has_param(&d, "client_encoding", "UTF8"));
    CHECK(has_param(&d, "session_authorization", "postgres"));
    CHECK(has_param(&d, "application_name", "poolrt"));
    hang_up(&d);

    d = new_dial(target("host=%s port=%d dbname=postgres user=postgres", pg.dir, pg.port));
    dial(&d);
    is_session(&d);
    (void)snprintf(want, sizeof want, "%s/.s.PGSQL.%d", pg.dir, pg.port);
    CHECK_STR(d.server_addr, want);
    CHECK_INT(d.addr.ss_family, AF_UNIX);
    hang_up(&d);
}

TEST(authentication_methods)
{
    static const char *const users[] = {"md5user", "scramuser", "clearuser"};

    for (size_t i = 0; set_up() && i < 3; i++) {
        struct prt_dial d = new_dial(target("host=127.0.0.1 port=%d dbname=postgres", pg.port));
        d.user = users[i], d.password = SECRET;
        dial(&d);
        is_session(&d);
        CHECK(has_param(&d, "session_authorization", users[i]));
        hang_up(&d);

        d = new_dial(target("host=127.0.0.1 port=%d dbname=postgres", pg.port));
        d.user = users[i], d.password = "s3cret but wrong";
        dial(&d);
        is_failure(&d, "28P01", "password authentication failed for user");
        CHECK(!strstr(d.err.text, "LOCATION"));
        CHECK(!strstr(d.err.text, "28P01"));

        d = new_dial(target("host=127.0.0.1 port=%d dbname=postgres", pg.port));
        d.user = users[i];
        dial(&d);
        is_failure(&d, "", "no password supplied");
    }
}

TEST(errors_of_the_server_come_through)
{
    if (!set_up()) {
        return;
    }
    char want[128];
    struct prt_dial d = new_dial(
        target("host=127.0.0.1 port=%d dbname=nowhere user=postgres sslmode=disable", pg.port));
    dial(&d);
    (void)snprintf(want, sizeof want, "127.0.0.1:%d: database \"nowhere\" does not exist", pg.port);
    is_failure(&d, "3D000", want);
    CHECK_STR(d.err.text, want);

    d = new_dial(target("host=127.0.0.1 port=%d dbname=postgres", pg.port));
    d.user = "nobody at all";
    dial(&d);
    is_failure(&d, "28000", "role \"nobody at all\" does not exist");
}

TEST(names_of_clients_are_only_names)
{
    static const char forged[] =
        "x\nB\t12\tBackendKeyData\t 1 2\nB\t9\tParameterStatus\t \"is_superuser\" \"on\"";

    if (!set_up()) {
        return;
    }
    /* a database name that libpq would take for a conninfo */
    struct prt_dial d =
        new_dial(target("host=127.0.0.1 port=%d user=postgres sslmode=disable", pg.port));
    d.dbname = "dbname=postgres user=postgres";
    dial(&d);
    is_failure(&d, "3D000", "database \"dbname=postgres user=postgres\" does not exist");
    d = new_dial(target("host=127.0.0.1 port=%d user=postgres", pg.port));
    d.dbname = "postgres", d.user = "";
    dial(&d);
    is_failure(&d, "", "the name of the user is empty");
    /* a role whose name looks like libpq's trace */
    char sql[512];
    (void)snprintf(sql, sizeof sql, "CREATE ROLE \"%.23s\" LOGIN", forged); /* as far as names go */
    (void)snprintf(sql, sizeof sql, "CREATE ROLE \"x\nB\t12\tBackendKeyData\t 1 2\n\" LOGIN");
    CHECK(pg_server_sql(&pg, sql));
    d = new_dial(target("host=127.0.0.1 port=%d dbname=postgres", pg.port));
    d.user = "x\nB\t12\tBackendKeyData\t 1 2\n";
    dial(&d);
    is_session(&d);
    CHECK(prt_get32(d.key) != 2);
    CHECK(has_param(&d, "session_authorization", "x\nB\t12\tBackendKeyData\t 1 2\n"));
    hang_up(&d);
}

TEST(settings_reach_the_server_unharmed)
{
    static const char settings[] =
        "application_name\0a \\b\tc 'd'\0DateStyle\0SQL, DMY\0my.tenant\0\0";

    if (!set_up()) {
        return;
    }
    struct prt_dial d = new_dial(target("host=127.0.0.1 port=%d dbname=postgres user=postgres "
                                        "options='-c work_mem=5MB -c DateStyle=German'",
                                        pg.port));
    d.settings = settings, d.settings_n = sizeof settings - 1;
    dial(&d);
    is_session(&d);
    CHECK_STR(query(&d, "show work_mem"), "5MB");
    CHECK_STR(query(&d, "show DateStyle"), "SQL, DMY");
    CHECK_STR(query(&d, "show my.tenant"), "");
    CHECK(has_param(&d, "DateStyle", "SQL, DMY"));
    hang_up(&d);

    d = new_dial(target("host=127.0.0.1 port=%d dbname=postgres user=postgres", pg.port));
    d.settings = "application_name\0a \\b\t'd'\0search_path\0\"a b\",c\0";
    d.settings_n = 43;
    d.settings_n = sizeof "application_name\0a \\b\t'd'\0search_path\0\"a b\",c\0" - 1;
    d.application_name = NULL;
    dial(&d);
    is_session(&d);
    CHECK_STR(query(&d, "show search_path"), "\"a b\",c");
    hang_up(&d);

    d = new_dial(target("host=127.0.0.1 port=%d dbname=postgres user=postgres", pg.port));
    d.settings = "no_such_setting\0x\0", d.settings_n = 18;
    dial(&d);
    is_failure(&d, "42704", "unrecognized configuration parameter \"no_such_setting\"");

    d = new_dial(target("host=127.0.0.1 port=%d dbname=postgres user=postgres", pg.port));
    d.settings = "x -c log_statement\0all\0", d.settings_n = 23;
    dial(&d);
    is_failure(&d, "42704", "unrecognized configuration parameter \"x -c log_statement\"");

    d = new_dial(target("host=127.0.0.1 port=%d dbname=postgres user=postgres", pg.port));
    d.settings = "work_mem\0005MB", d.settings_n = 12; /* its last NUL is not there */
    dial(&d);
    is_failure(&d, "42704", "work_mem");
}

TEST(application_name)
{
    if (!set_up()) {
        return;
    }
    struct prt_dial d = new_dial(target("host=%s port=%d dbname=postgres user=postgres "
                                        "application_name=fromtarget",
                                        pg.dir, pg.port));
    dial(&d);
    CHECK(has_param(&d, "application_name", "fromtarget"));
    hang_up(&d);
    d = new_dial(target("host=%s port=%d dbname=postgres user=postgres application_name=fromtarget",
                        pg.dir, pg.port));
    d.application_name = "of the client";
    dial(&d);
    CHECK(has_param(&d, "application_name", "of the client"));
    hang_up(&d);
}

TEST(tls_modes)
{
    static const struct {
        const char *mode, *user;
        bool tls;
    } cases[] = {
        {"disable", "postgres", false},  {"allow", "postgres", false},
        {"prefer", "postgres", true},    {"require", "postgres", true},
        {"verify-ca", "postgres", true}, {"verify-full", "postgres", true},
        {"allow", "tlsuser", true},     /* refused in clear, tried again */
        {"prefer", "plainuser", false}, /* refused with TLS, tried again */
        {"require", "scramuser", true}, /* with channel binding */
    };

    for (size_t i = 0; set_up() && i < sizeof cases / sizeof cases[0]; i++) {
        struct prt_dial d =
            new_dial(target("host=localhost hostaddr=127.0.0.1 port=%d dbname=postgres "
                            "user=%s password='s3cret pass\\\\word' sslmode=%s %s "
                            "sslrootcert=%s/server.crt",
                            pg.port, cases[i].user, cases[i].mode,
                            i == 8 ? "channel_binding=require" : "", pg.dir));
        dial(&d);
        is_session(&d);
        if ((d.ssl != NULL) != cases[i].tls) {
            printf("  sslmode=%s user=%s\n", cases[i].mode, cases[i].user);
            CHECK(false);
        }
        if (d.ssl) {
            CHECK_INT(SSL_get_fd(d.ssl), d.fd);
            CHECK_STR(query(&d, "select ssl from pg_stat_ssl where pid = pg_backend_pid()"), "t");
        }
        hang_up(&d);
    }
}

TEST(tls_refusals)
{
    if (!set_up()) {
        return;
    }
    struct prt_dial d = new_dial(target("host=127.0.0.1 port=%d dbname=postgres user=postgres "
                                        "sslmode=verify-full sslrootcert=/nonexistent",
                                        pg.port));
    dial(&d);
    is_failure(&d, "", "root certificate file \"/nonexistent\" does not exist");
    /* another name than the certificate's */
    d = new_dial(
        target("host=elsewhere.example hostaddr=127.0.0.1 port=%d dbname=postgres user=postgres "
               "sslmode=verify-full sslrootcert=%s/server.crt",
               pg.port, pg.dir));
    dial(&d);
    is_failure(&d, "", "does not match host name \"elsewhere.example\"");
    d = new_dial(
        target("host=127.0.0.1 port=%d dbname=postgres user=tlsuser sslmode=disable", pg.port));
    dial(&d);
    is_failure(&d, "28000", "pg_hba.conf rejects connection");
}

TEST(a_large_result_over_tls_is_whole)
{
    if (!set_up()) {
        return;
    }
    struct prt_dial d = new_dial(
        target("host=127.0.0.1 port=%d dbname=postgres user=postgres sslmode=require", pg.port));
    dial(&d);
    is_session(&d);
    CHECK(send_query(&d, "select repeat('x', 1000) from generate_series(1, 3000)"));
    size_t total = 0, xs = 0;
    uint8_t in[16384], last6[6] = {0};
    while (memcmp(last6, "Z\0\0\0\5I", 6) != 0) {
        ssize_t r = read_some(&d, in, sizeof in);
        CHECK(r > 0);
        if (r <= 0) {
            break;
        }
        for (ssize_t i = 0; i < r; i++) {
            xs += in[i] == 'x';
            memmove(last6, last6 + 1, 5);
            last6[5] = in[i];
        }
        total += (size_t)r;
    }
    CHECK(total > 3000000);
    CHECK(xs >= 3000000);
    hang_up(&d);
}

TEST(a_dead_host_first)
{
    if (!set_up()) {
        return;
    }
    int dead = pg_free_port();
    struct prt_dial d = new_dial(
        target("host=127.0.0.1,127.0.0.1 port=%d,%d dbname=postgres user=postgres", dead, pg.port));
    dial(&d);
    is_session(&d);
    hang_up(&d);
    d = new_dial(target("host=127.0.0.1,%s port=%d dbname=postgres user=postgres", pg.dir, dead));
    dial(&d);
    char want[96];
    (void)snprintf(want, sizeof want, "127.0.0.1:%d: Connection refused", dead);
    is_failure(&d, "", want);
    is_failure(&d, "", "No such file or directory");
}

TEST(a_name_that_resolves_and_one_that_does_not)
{
    if (!set_up()) {
        return;
    }
    struct prt_dial d = new_dial(
        target("host=localhost port=%d dbname=postgres user=postgres sslmode=disable", pg.port));
    dial(&d);
    is_session(&d);
    hang_up(&d);
    d = new_dial(target("host=no.such.host.invalid,localhost port=%d dbname=postgres user=postgres",
                        pg.port));
    dial(&d);
    is_session(&d);
    hang_up(&d);
    d = new_dial(
        target("host=no.such.host.invalid port=%d dbname=postgres user=postgres", pg.port));
    d.timeout_us = 5000000;
    dial(&d);
    is_failure(&d, "", "no.such.host.invalid:");
}

TEST(a_silent_first_host_takes_only_its_share_of_the_time)
{
    int port, fd = listener(&port);

    if (set_up()) {
        struct prt_dial d = new_dial(target(
            "host=127.0.0.1,127.0.0.1 port=%d,%d dbname=postgres user=postgres", port, pg.port));
        d.timeout_us = 2000000;
        int64_t began = pg_now_ms();
        dial(&d);
        is_session(&d);
        CHECK(pg_now_ms() - began >= 900);
        hang_up(&d);
        /* alone: the whole time, and not more */
        d = new_dial(target("host=127.0.0.1 port=%d user=postgres", port));
        d.timeout_us = 500000;
        began = pg_now_ms();
        dial(&d);
        int64_t took = pg_now_ms() - began;
        is_failure(&d, "", "timeout while waiting for an answer to the TLS request or handshake");
        CHECK(took >= 500 && took < 1500);
        /* connect_timeout is a host's */
        d = new_dial(target("host=127.0.0.1,127.0.0.1 port=%d,%d connect_timeout=1 dbname=postgres "
                            "user=postgres sslmode=disable",
                            port, pg.port));
        began = pg_now_ms();
        dial(&d);
        is_session(&d);
        CHECK(pg_now_ms() - began < 5000);
        hang_up(&d);
    }
    (void)close(fd);
}

TEST(session_attributes)
{
    static const struct {
        const char *attrs;
        bool ok;
    } cases[] = {{"any", true},     {"read-write", true}, {"read-only", false},
                 {"primary", true}, {"standby", false},   {"prefer-standby", true}};

    for (size_t i = 0; set_up() && i < sizeof cases / sizeof cases[0]; i++) {
        struct prt_dial d = new_dial(target("host=127.0.0.1 port=%d dbname=postgres user=postgres "
                                            "sslmode=disable target_session_attrs=%s",
                                            pg.port, cases[i].attrs));
        dial(&d);
        if (cases[i].ok) {
            is_session(&d);
        } else {
            is_failure(&d, "",
                       i == 2 ? "session is not read-only" : "server is not in hot standby mode");
        }
        hang_up(&d);
    }
    /* the first host is skipped for what it is; read-only by a setting counts as PostgreSQL says */
    struct prt_dial d = new_dial(target("host=127.0.0.1 port=%d dbname=postgres user=postgres "
                                        "sslmode=disable target_session_attrs=read-only "
                                        "options='-c default_transaction_read_only=on'",
                                        pg.port));
    dial(&d);
    is_session(&d);
    hang_up(&d);
}

/* ---- cancel ---- */
static poolrt_rc cancel(const struct prt_dial *d, const uint8_t *key, int64_t timeout_us,
                        bool use_tls)
{
    struct prt_cancel x = {.addr = d->addr,
                           .addr_n = d->addr_n,
                           .use_tls = use_tls,
                           .pid = d->pid,
                           .key_n = d->key_n,
                           .timeout_us = timeout_us,
                           .reply_to = &box.mail,
                           .reply = {.deliver = on_answer}};

    memcpy(x.key, key, d->key_n);
    prt_connector_cancel(conn, &x);
    CHECK(await(1, 15000));
    return x.rc;
}

/* the query has to be running: seen from another session */
static void await_sleep(const struct prt_dial *d)
{
    char sql[128], state[64] = "";
    int64_t until = pg_now_ms() + 10000;

    (void)snprintf(sql, sizeof sql, "select wait_event from pg_stat_activity where pid = %u",
                   d->pid);
    while (strcmp(state, "PgSleep") != 0 && pg_now_ms() < until) {
        CHECK(pg_server_query(&pg, sql, state, sizeof state));
    }
    CHECK_STR(state, "PgSleep");
}

TEST(cancel_ends_the_query_and_no_other)
{
    static const char *const where[] = {"host=127.0.0.1 sslmode=disable",
                                        "host=127.0.0.1 sslmode=require", NULL};

    for (int i = 0; set_up() && i < 3; i++) {
        struct prt_dial d =
            where[i]
                ? new_dial(target("%s port=%d dbname=postgres user=postgres", where[i], pg.port))
                : new_dial(
                      target("host=%s port=%d dbname=postgres user=postgres", pg.dir, pg.port));
        uint8_t wrong[PRT_SERVER_KEY_MAX];
        dial(&d);
        is_session(&d);
        memcpy(wrong, d.key, sizeof wrong);
        wrong[0] ^= 1;
        int64_t began = pg_now_ms();
        CHECK(send_query(&d, "select pg_sleep(60)"));
        await_sleep(&d);
        CHECK_INT(cancel(&d, wrong, 10000000, d.ssl != NULL), POOLRT_OK); /* heard, and ignored */
        await_sleep(&d);
        CHECK_INT(cancel(&d, d.key, 10000000, d.ssl != NULL), POOLRT_OK);
        CHECK_STR(answer(&d), "!57014");
        CHECK(pg_now_ms() - began < 30000);
        CHECK_STR(query(&d, "select 1"), "1");
        hang_up(&d);
    }
}

TEST(cancel_of_servers_that_are_not_there)
{
    int port, fd = listener(&port);
    struct prt_dial d = {.pid = 1, .key_n = 4};
    struct sockaddr_in *in = (struct sockaddr_in *)&d.addr;

    if (!set_up()) {
        return;
    }
    in->sin_family = AF_INET;
    in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    in->sin_port = htons((uint16_t)port);
    d.addr_n = sizeof *in;
    int64_t began = pg_now_ms();
    CHECK_INT(cancel(&d, d.key, 300000, false), POOLRT_TIMEOUT); /* takes it and never closes */
    CHECK_INT(cancel(&d, d.key, 300000, true), POOLRT_TIMEOUT);
    CHECK(pg_now_ms() - began >= 600);
    in->sin_port = htons((uint16_t)pg_free_port());
    CHECK_INT(cancel(&d, d.key, 5000000, false), POOLRT_CONNECT_FAILED);
    struct sockaddr_un *un = (struct sockaddr_un *)&d.addr;
    memset(un, 0, sizeof *un);
    un->sun_family = AF_UNIX;
    (void)snprintf(un->sun_path, sizeof un->sun_path, "%s/nothing", pg.dir);
    d.addr_n = sizeof *un;
    CHECK_INT(cancel(&d, d.key, 5000000, false), POOLRT_CONNECT_FAILED);
    (void)close(fd);
}

/* ---- servers that misbehave ---- */
struct bad_server {
    int fd, port;
    const void *say; /* to whoever connects, after its first bytes */
    size_t say_n;
    const void *then; /* after the next bytes; NULL: closes */
    size_t then_n;
    int served; /* connections that it took */
    pthread_t id;
    _Atomic bool stop;
};

static void *bad_main(void *arg)
{
    struct bad_server *b = arg;

    while (!b->stop) {
        struct pollfd p = {.fd = b->fd, .events = POLLIN};
        char in[4096];
        if (poll(&p, 1, 20) != 1) {
            continue;
        }
        int fd = accept4(b->fd, NULL, NULL, SOCK_CLOEXEC);
        b->served++;
        if (recv(fd, in, sizeof in, 0) > 0) {
            (void)send(fd, b->say, b->say_n, MSG_NOSIGNAL);
            if (b->then && recv(fd, in, sizeof in, 0) > 0) {
                (void)send(fd, b->then, b->then_n, MSG_NOSIGNAL);
                while (!b->stop && recv(fd, in, sizeof in, 0) > 0) {
                }
            }
        }
        (void)close(fd);
    }
    return NULL;
}

static void bad_start(struct bad_server *b)
{
    b->fd = listener(&b->port);
    CHECK_INT(pthread_create(&b->id, NULL, bad_main, b), 0);
}

static void bad_stop(struct bad_server *b)
{
    b->stop = true;
    (void)pthread_join(b->id, NULL);
    (void)close(b->fd);
}

TEST(servers_that_close_or_talk_nonsense)
{
    static const struct {
        const char *say;
        size_t n;
        const char *text;
    } cases[] = {
        {"", 0, "server closed the connection unexpectedly"},
        {"HTTP/1.1 400 Bad Request\r\n\r\n", 28, "expected authentication request from server"},
        {"R\0\0\0\x08\0\0\0\x63", 9, "authentication method 99 not supported"},
        {"R\xff\xff\xff\xff", 5, ""},
        {"E\0\0\0\x04", 5, ""},
        {"EFATAL: old style\n\0", 19, "old style"},
        {"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\1", 18, ""}, /* cut in the key */
    };

    for (size_t i = 0; set_up() && i < sizeof cases / sizeof cases[0]; i++) {
        struct bad_server b = {.say = cases[i].say, .say_n = cases[i].n};
        bad_start(&b);
        struct prt_dial d =
            new_dial(target("host=127.0.0.1 port=%d user=u dbname=d sslmode=disable", b.port));
        d.timeout_us = 3000000;
        dial(&d);
        is_failure(&d, "", cases[i].text);
        bad_stop(&b);
    }
}

TEST(a_server_without_cancel_keys_is_a_server)
{
    static const char hello[] =
        "R\0\0\0\x08\0\0\0\0S\0\0\0\x18server_version\00014.1\0Z\0\0\0\x05I";
    struct bad_server b = {.say = hello, .say_n = sizeof hello - 1, .then = "", .then_n = 0};

    if (!set_up()) {
        return;
    }
    bad_start(&b);
    struct prt_dial d =
        new_dial(target("host=127.0.0.1 port=%d user=u dbname=d sslmode=disable", b.port));
    dial(&d);
    CHECK_INT(d.err.rc, POOLRT_OK);
    CHECK_INT(d.key_n, 0);
    CHECK_INT(d.pid, 0);
    CHECK(has_param(&d, "server_version", "14.1"));
    hang_up(&d);
    bad_stop(&b);
}

/* A Unix socket whose backlog is full refuses without a queue; servers in a storm of logins do
 * that. */
TEST(a_full_backlog_is_waited_for)
{
    static const char wrong[] = "E\0\0\0\x27SFATAL\0VFATAL\0C28P01\0Mgo away now\0\0";
    struct bad_server b = {.say = wrong, .say_n = sizeof wrong - 1};
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    int fill[64], n = 0;

    if (!set_up()) {
        return;
    }
    (void)snprintf(un.sun_path, sizeof un.sun_path, "%s/.s.PGSQL.7", pg.dir);
    b.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(bind(b.fd, (struct sockaddr *)&un, sizeof un) == 0 && listen(b.fd, 1) == 0);
    for (bool full = false; !full && n < 64; n++) {
        fill[n] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        full = connect(fill[n], (struct sockaddr *)&un, sizeof un) != 0;
    }
    struct prt_dial d = new_dial(target("host=%s port=7 user=u sslmode=disable", pg.dir));
    prt_connector_submit(conn, &d);
    CHECK(!await(1, 200)); /* neither refused nor answered */
    while (n > 0) {
        (void)close(fill[--n]);
    }
    CHECK_INT(pthread_create(&b.id, NULL, bad_main, &b), 0);
    CHECK(await(1, 10000));
    is_failure(&d, "28P01", "go away now");
    prt_target_unref(d.target);
    bad_stop(&b);
    (void)unlink(un.sun_path);
}

/* the primary stands first in the list and is passed by for the standby; without one it is taken */
TEST(prefer_standby_walks_twice)
{
    static const char hello[] = "R\0\0\0\x08\0\0\0\0"
                                "S\0\0\0\x18server_version\00015.1\0"
                                "S\0\0\0\x16in_hot_standby\0on\0"
                                "S\0\0\0\x26"
                                "default_transaction_read_only\0off\0"
                                "K\0\0\0\x0c\0\0\0\x07\xff\xff\xff\xfeZ\0\0\0\x05I";
    struct bad_server b = {.say = hello, .say_n = sizeof hello - 1, .then = "", .then_n = 0};

    if (!set_up()) {
        return;
    }
    bad_start(&b);
    struct prt_dial d = new_dial(target("host=127.0.0.1,127.0.0.1 port=%d,%d dbname=postgres "
                                        "user=postgres sslmode=disable "
                                        "target_session_attrs=prefer-standby",
                                        pg.port, b.port));
    dial(&d);
    CHECK_INT(d.err.rc, POOLRT_OK);
    CHECK(has_param(&d, "in_hot_standby", "on"));
    CHECK_INT(d.pid, 7);
    CHECK(d.key_n == 4 && memcmp(d.key, "\xff\xff\xff\xfe", 4) == 0); /* keys have 32 bits */
    hang_up(&d);
    bad_stop(&b);
    d = new_dial(target("host=127.0.0.1,127.0.0.1 port=%d,%d dbname=postgres user=postgres "
                        "sslmode=disable target_session_attrs=prefer-standby",
                        pg.port, b.port));
    dial(&d); /* the standby is gone */
    is_session(&d);
    hang_up(&d);
}

/* A server that is going down says 57P03; the next host is asked. A wrong password is not asked
 * twice. */
TEST(which_errors_try_the_next_host)
{
    static const char down[] = "E\0\0\0\x26SFATAL\0VFATAL\0C57P03\0Mgoing down\0\0";
    static const char wrong[] = "E\0\0\0\x27SFATAL\0VFATAL\0C28P01\0Mgo away now\0\0";
    struct bad_server a = {.say = down, .say_n = sizeof down - 1};
    struct bad_server b = {.say = wrong, .say_n = sizeof wrong - 1};

    if (!set_up()) {
        return;
    }
    bad_start(&a);
    bad_start(&b);
    struct prt_dial d = new_dial(target("host=127.0.0.1,127.0.0.1 port=%d,%d dbname=postgres "
                                        "user=postgres sslmode=disable",
                                        a.port, pg.port));
    dial(&d);
    is_session(&d);
    hang_up(&d);
    d = new_dial(target("host=127.0.0.1 port=%d user=u sslmode=disable", a.port));
    dial(&d);
    is_failure(&d, "57P03", "going down");
    d = new_dial(target("host=127.0.0.1,127.0.0.1 port=%d,%d dbname=postgres user=postgres "
                        "sslmode=disable",
                        b.port, pg.port));
    dial(&d);
    is_failure(&d, "28P01", "go away now");
    bad_stop(&a);
    bad_stop(&b);
}

/* ---- a call that libpq does not return from ----
 * SCRAM with some million iterations: libpq 15 has no limit and computes for seconds. */
#define ITERATIONS "3000000"

static void *slow_main(void *arg)
{
    static const char sasl[] = "R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0";
    struct bad_server *b = arg;

    while (!b->stop) {
        struct pollfd p = {.fd = b->fd, .events = POLLIN};
        char in[4096], text[512], *nonce;
        uint8_t head[9] = "R";
        if (poll(&p, 1, 20) != 1) {
            continue;
        }
        int fd = accept4(b->fd, NULL, NULL, SOCK_CLOEXEC);
        b->served++;
        (void)recv(fd, in, sizeof in, 0);
        (void)send(fd, sasl, sizeof sasl, MSG_NOSIGNAL);
        ssize_t n = recv(fd, in, sizeof in - 1, 0);
        in[n > 0 ? n : 0] = '\0';
        nonce = n > 0 ? memmem(in, (size_t)n, "r=", 2) : NULL;
        if (nonce) {
            int len = snprintf(text, sizeof text, "%sx,s=QUJDREVG,i=" ITERATIONS, nonce);
            prt_put32(head + 1, (uint32_t)len + 8);
            prt_put32(head + 5, 11);
            (void)send(fd, head, 9, MSG_NOSIGNAL);
            (void)send(fd, text, (size_t)len, MSG_NOSIGNAL);
            while (!b->stop && poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 20) == 0) {
            }
        }
        (void)close(fd);
    }
    return NULL;
}

static void slow_start(struct bad_server *b)
{
    b->fd = listener(&b->port);
    CHECK_INT(pthread_create(&b->id, NULL, slow_main, b), 0);
}

static struct prt_dial slow_dial(const struct bad_server *b, int64_t timeout_us)
{
    struct prt_dial d =
        new_dial(target("host=127.0.0.1 port=%d user=u password=s3cret sslmode=disable", b->port));

    d.timeout_us = timeout_us;
    return d;
}

TEST(a_held_thread_costs_its_own_dial_and_no_other)
{
    struct prt_err err;
    struct prt_connector *saved = conn;
    struct bad_server b = {0};

    if (!set_up()) {
        return;
    }
    saved = conn;
    slow_start(&b);
    CHECK_INT(prt_connector_start(&conn, 1, &err), POOLRT_OK);
    struct prt_dial held = slow_dial(&b, 400000), good[8];
    struct prt_target *t = held.target;
    int64_t began = pg_now_ms();
    prt_connector_submit(conn, &held);
    while (b.served == 0 && pg_now_ms() - began < 5000) {
        pg_nap();
    }
    for (int i = 0; i < 8; i++) { /* behind it, on the only line */
        good[i] = new_dial(target("host=127.0.0.1 port=%d dbname=postgres user=postgres", pg.port));
        prt_connector_submit(conn, &good[i]);
    }
    CHECK(await(9, 20000));
    is_failure(&held, "", "timeout after 0.4 s, and libpq has not come back from a call");
    for (int i = 0; i < 8; i++) {
        is_session(&good[i]);
        prt_target_unref(good[i].target);
        hang_up(&good[i]);
    }
    /* the same host again, while its thread is not back: at once */
    struct prt_dial again = new_dial(t);
    int64_t asked = pg_now_ms();
    prt_connector_submit(conn, &again);
    CHECK(await(1, 10000));
    CHECK(pg_now_ms() - asked < 1000);
    is_failure(&again, "", "an earlier login to it still hangs inside libpq");
    /* and when it is back, the host is dialled again */
    for (int64_t until = pg_now_ms() + 180000; pg_now_ms() < until && b.served < 2;) {
        again = new_dial(t);
        again.timeout_us = 50000;
        prt_connector_submit(conn, &again);
        CHECK(await(1, 10000));
        pg_nap();
    }
    CHECK(b.served >= 2);
    prt_target_unref(t);
    prt_connector_stop(conn);
    conn = saved;
    bad_stop(&b);
}

TEST(stop_leaves_a_held_thread_behind)
{
    struct prt_err err;
    struct prt_connector *own;
    struct bad_server b = {0};

    if (!set_up()) {
        return;
    }
    slow_start(&b);
    CHECK_INT(prt_connector_start(&own, 1, &err), POOLRT_OK);
    struct prt_dial d = slow_dial(&b, 30000000);
    prt_connector_submit(own, &d);
    for (int64_t until = pg_now_ms() + 5000; pg_now_ms() < until && b.served == 0;) {
        pg_nap();
    }
    int64_t began = pg_now_ms();
    prt_connector_stop(own);
    CHECK(pg_now_ms() - began < 3000);
    CHECK(await(1, 1000));
    is_failure(&d, "", "given up, the connector stops");
    prt_target_unref(d.target);
    bad_stop(&b);
}

/* ---- many, and the end ---- */
TEST(stop_answers_everything)
{
    struct prt_err err;
    struct prt_connector *own;
    struct prt_dial d[20];
    struct prt_cancel x[4];
    int port, fd = listener(&port);

    if (!set_up()) {
        return;
    }
    int before = open_fds();
    CHECK_INT(prt_connector_start(&own, 4, &err), POOLRT_OK);
    struct prt_target *t = target("host=127.0.0.1 port=%d user=u", port);
    for (int i = 0; i < 20; i++) {
        d[i] = new_dial(t);
        prt_connector_submit(own, &d[i]);
    }
    for (int i = 0; i < 4; i++) {
        struct sockaddr_in *in = (struct sockaddr_in *)&x[i].addr;
        x[i] = (struct prt_cancel){.addr_n = sizeof *in,
                                   .key_n = 4,
                                   .timeout_us = 20000000,
                                   .reply_to = &box.mail,
                                   .reply = {.deliver = on_answer}};
        in->sin_family = AF_INET;
        in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        in->sin_port = htons((uint16_t)port);
        prt_connector_cancel(own, &x[i]);
    }
    prt_connector_stop(own);
    CHECK(await(24, 2000));
    for (int i = 0; i < 20; i++) {
        is_failure(&d[i], "", "given up, the connector stops");
    }
    for (int i = 0; i < 4; i++) {
        CHECK_INT(x[i].rc, POOLRT_CLOSED);
    }
    prt_target_unref(t);
    CHECK_INT(open_fds(), before);
    (void)close(fd);
    prt_connector_stop(NULL);
}

TEST(many_at_once)
{
    enum { N = 60 };
    static struct prt_dial d[N];

    if (!set_up()) {
        return;
    }
    struct prt_target *t = target("host=127.0.0.1 port=%d dbname=postgres user=scramuser", pg.port);
    for (int i = 0; i < N; i++) {
        d[i] = new_dial(t);
        d[i].password = i % 6 == 5 ? "s3cret?" : SECRET;
        prt_connector_submit(conn, &d[i]);
    }
    CHECK(await(N, 60000));
    for (int i = 0; i < N; i++) {
        if (i % 6 == 5) {
            is_failure(&d[i], "28P01", "password authentication failed");
        } else {
            is_session(&d[i]);
        }
        hang_up(&d[i]);
    }
    prt_target_unref(t);
}

TEST(a_hundred_dials_leave_nothing_open)
{
    char left[256] = "?";
    int before = 0;

    for (int i = 0; set_up() && i < 100; i++) {
        struct prt_dial d =
            new_dial(target("host=127.0.0.1 port=%d dbname=%s user=postgres sslmode=%s",
                            i % 5 == 4 ? pg_free_port() : pg.port,
                            i % 5 == 3 ? "nowhere" : "postgres", i % 2 ? "require" : "disable"));
        if (i == 4) { /* everything that is made once is there */
            before = open_fds();
        }
        dial(&d);
        CHECK_INT(d.err.rc, i % 5 >= 3 ? POOLRT_CONNECT_FAILED : POOLRT_OK);
        if (d.err.rc == POOLRT_OK) {
            CHECK_STR(query(&d, "select 1"), "1");
        }
        hang_up(&d);
    }
    CHECK_INT(open_fds(), before);
    /* and no session stays on the server */
    for (int64_t until = pg_now_ms() + 10000; pg_now_ms() < until && left[0];) {
        pg_nap();
        CHECK(pg_server_query(
            &pg,
            "select concat_ws(' ', pid, usename, state, query, backend_start, now()) "
            "from pg_stat_activity where application_name = 'poolrt'",
            left, sizeof left));
    }
    CHECK_STR(left, "");
}

TEST(faults_are_answered)
{
    static const char *const faults[] = {"request_nomem", "opening_nomem"};

    for (size_t i = 0; set_up() && i < 2; i++) {
        struct prt_dial d = new_dial(target("host=127.0.0.1 port=%d user=postgres", pg.port));
        CHECK_INT(setenv("POOLRT_FAULT", faults[i], 1), 0);
        dial(&d);
        CHECK_INT(unsetenv("POOLRT_FAULT"), 0);
        is_failure(&d, "", "out of memory");
    }
    struct prt_connector *own = NULL;
    struct prt_err err = {0};
    CHECK_INT(setenv("POOLRT_FAULT", "connector_thread", 1), 0);
    CHECK_INT(prt_connector_start(&own, 2, &err), POOLRT_IO);
    CHECK(own == NULL && strstr(err.text, "connector"));
    CHECK_INT(unsetenv("POOLRT_FAULT"), 0);
}

/* ---- our SCRAM server against libpq's client ---- */
struct scram_server {
    int fd, port;
    struct prt_scram_secret secret;
    pthread_t id;
    enum prt_scram_rc rc; /* of the last step */
};

/* The body of the next message, or of the first packet when type is 0; its length, -1: none. */
static ssize_t read_packet(int fd, bool has_type, uint8_t *body, size_t cap)
{
    uint8_t head[5];
    size_t n = has_type ? 5 : 4;

    if (recv(fd, head, n, MSG_WAITALL) != (ssize_t)n) {
        return -1;
    }
    uint32_t len = prt_get32(head + n - 4) - 4;
    return len <= cap && recv(fd, body, len, MSG_WAITALL) == (ssize_t)len ? (ssize_t)len : -1;
}

static void send_auth(int fd, uint32_t code, const struct prt_buf *body)
{
    struct prt_buf b = {0};

    prt_put_auth(&b, code, prt_buf_data(body), prt_buf_len(body));
    (void)send(fd, prt_buf_data(&b), prt_buf_len(&b), MSG_NOSIGNAL);
    prt_buf_free(&b);
}

static void *scram_main(void *arg)
{
    struct scram_server *s = arg;
    struct prt_scram *x = prt_scram_new(&s->secret, false, NULL, 0);
    struct prt_buf out = {0};
    uint8_t in[4096];
    int fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC);
    ssize_t n = read_packet(fd, false, in, sizeof in);

    prt_scram_mechanisms(x, &out);
    send_auth(fd, 10, &out);
    s->rc = PRT_SCRAM_BAD;
    for (uint32_t code = 11; n >= 0 && code <= 12; code++) {
        n = read_packet(fd, true, in, sizeof in);
        prt_buf_reset(&out);
        s->rc = n < 0 ? PRT_SCRAM_BAD : prt_scram_step(x, in, (size_t)n, &out);
        if (s->rc != PRT_SCRAM_CONTINUE && s->rc != PRT_SCRAM_DONE) {
            break;
        }
        send_auth(fd, code, &out);
    }
    if (s->rc == PRT_SCRAM_DONE) {
        prt_buf_reset(&out);
        prt_put_auth(&out, 0, NULL, 0);
        prt_put_ready(&out, 'I');
        (void)send(fd, prt_buf_data(&out), prt_buf_len(&out), MSG_NOSIGNAL);
    }
    prt_buf_free(&out);
    prt_scram_free(x);
    (void)close(fd);
    return NULL;
}

static enum prt_scram_rc scram_login(const struct prt_scram_secret *secret, const char *password)
{
    struct scram_server s = {.secret = *secret};

    s.fd = listener(&s.port);
    CHECK_INT(pthread_create(&s.id, NULL, scram_main, &s), 0);
    struct prt_dial d = new_dial(target("host=127.0.0.1 port=%d user=u sslmode=disable", s.port));
    d.password = password;
    dial(&d);
    CHECK_INT(d.err.rc == POOLRT_OK, s.rc == PRT_SCRAM_DONE);
    hang_up(&d);
    (void)pthread_join(s.id, NULL);
    (void)close(s.fd);
    return s.rc;
}

TEST(passwords_are_prepared_as_libpq_does)
{
    static const struct {
        const char *stored, *typed;
    } cases[] = {
        {"plain", "plain"},
        {"p\xc3\xa4ss", "p\xc3\xa4ss"},
        {"p\xc3\xa4ss", "pa\xcc\x88ss"}, /* composed and not */
        {"a\xc2\xa0"
         "b",
         "a b"},                          /* no-break space */
        {"\xe2\x85\xa8", "IX"},           /* roman numeral nine */
        {"I\xc2\xadX", "IX"},             /* soft hyphen */
        {"\xff\xfe raw", "\xff\xfe raw"}, /* not UTF-8 */
    };
    struct prt_scram_secret s;

    for (size_t i = 0; set_up() && i < sizeof cases / sizeof cases[0]; i++) {
        CHECK(prt_password_secret(prt_str_of(cases[i].stored), &s));
        CHECK_INT(s.iterations, 4096);
        CHECK_INT(scram_login(&s, cases[i].typed), PRT_SCRAM_DONE);
        CHECK_INT(scram_login(&s, "another"), PRT_SCRAM_DENIED);
    }
    CHECK(prt_scram_secret_make(PRT_STR("plain"), 1000, &s));
    CHECK_INT(scram_login(&s, "plain"), PRT_SCRAM_DONE);
    CHECK(!prt_password_secret(PRT_STR(""), &s));
    CHECK(!prt_password_secret(PRT_STR("a\0b"), &s));
}

TEST(end)
{
    prt_connector_stop(conn);
    conn = NULL;
    pg_server_stop(&pg);
    pg_server_stop(&pg);
    CHECK(pg.dir[0] == '\0');
}
