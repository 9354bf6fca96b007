/* pgserver.h - a throw-away PostgreSQL for C tests: own data directory, port and socket, gone at
 * the end.
 *
 *   struct pg_server s;
 *   if (!pg_server_start(&s, "host all bob 127.0.0.1/32 md5\n", true)) { ... it printed why ... }
 *   pg_server_sql(&s, "CREATE ROLE bob LOGIN PASSWORD 'x'");
 *   ... "host=127.0.0.1 port=<s.port>", or host=<s.dir> for its Unix socket ...
 *   pg_server_stop(&s);     harmless twice, and done at exit for whoever forgets
 *
 * The lines given come first in pg_hba.conf; behind them everybody is trusted. Superuser: postgres.
 * Run as root, the server runs as "postgres", else as "nobody". With TLS: <dir>/server.crt is
 * self-signed for localhost and 127.0.0.1, and is its own root. PRT_PG_DIR names a directory that
 * keeps an initdb'ed template (made there when it is missing), which saves the seconds of initdb.
 */
#ifndef PRT_PGSERVER_H
#define PRT_PGSERVER_H
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <glob.h>
#include <grp.h>
#include <libpq-fe.h>
#include <pwd.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PG_START_S 60

struct pg_server {
    char dir[64];  /* data, socket, log and certificate; empty: not there */
    char bin[256]; /* of PostgreSQL's programs */
    int port;      /* on 127.0.0.1, and in the socket's name */
    pid_t pid;     /* 0: not running */
    bool tls;
    struct pg_server *next;
};
static struct pg_server *pg_servers;

static inline int64_t pg_now_ms(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static inline void pg_nap(void)
{
    const struct timespec t = {0, 10000000};
    (void)nanosleep(&t, NULL);
}

static inline const struct passwd *pg_user(void)
{
    const struct passwd *u = geteuid() == 0 ? getpwnam("postgres") : NULL;
    return geteuid() == 0 && !u ? getpwnam("nobody") : u;
}

/* In the child: an account that PostgreSQL accepts, no more signals blocked, output into the log.
 */
static inline void pg_child(const struct pg_server *s)
{
    const struct passwd *u = pg_user();
    char log[96];
    sigset_t none;

    if (u && (setgroups(0, NULL) || setgid(u->pw_gid) || setuid(u->pw_uid))) {
        _exit(126);
    }
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)signal(SIGPIPE, SIG_DFL);
    (void)prctl(PR_SET_PDEATHSIG, SIGQUIT);
    (void)snprintf(log, sizeof log, "%s/log", s->dir);
    int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (chdir(s->dir) || fd < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0) {
        _exit(126);
    }
    for (int i = 3; i < 1024; i++) {
        (void)close(i);
    }
}

static inline pid_t pg_spawn(const struct pg_server *s, const char *const *argv)
{
    pid_t pid = fork();

    if (pid == 0) {
        char *copy[40] = {0};
        pg_child(s);
        (void)setenv("HOME", s->dir, 1);
        (void)unsetenv("PGPORT");
        for (int i = 0; i < 39 && argv[i]; i++) {
            copy[i] = strdup(argv[i]);
        }
        execvp(copy[0], copy);
        _exit(127);
    }
    return pid;
}

static inline bool pg_run(const struct pg_server *s, const char *const *argv)
{
    int status = -1;
    pid_t pid = pg_spawn(s, argv);

    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return pid > 0 && status == 0;
}

static inline void pg_show_log(const struct pg_server *s, const char *what)
{
    char path[96], line[512];
    FILE *f;

    printf("  throw-away PostgreSQL: %s\n", what);
    (void)snprintf(path, sizeof path, "%s/log", s->dir);
    f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) {
        printf("    %s", line);
    }
    if (f) {
        (void)fclose(f);
    }
}

static inline bool pg_write_file(const struct pg_server *s, const char *name, const char *text)
{
    char path[128];
    const struct passwd *u = pg_user();
    bool ok;
    FILE *f;

    (void)snprintf(path, sizeof path, "%s/%s", s->dir, name);
    f = fopen(path, "w");
    ok = f && fputs(text, f) >= 0;
    ok = f && fclose(f) == 0 && ok;
    return ok && (!u || chown(path, u->pw_uid, u->pw_gid) == 0);
}

static inline bool pg_find_bin(char *bin, size_t n)
{
    glob_t g;
    bool ok = glob("/usr/lib/postgresql/*/bin/postgres", 0, NULL, &g) == 0 && g.gl_pathc > 0;

    if (ok) {
        const char *last = g.gl_pathv[g.gl_pathc - 1];
        (void)snprintf(bin, n, "%.*s", (int)(strrchr(last, '/') - last), last);
        globfree(&g);
    }
    return ok;
}

/* A self-signed certificate and its key in s->dir, owned by the server's account. */
static inline bool pg_make_cert(const struct pg_server *s)
{
    const char *const argv[] = {"openssl",
                                "req",
                                "-x509",
                                "-newkey",
                                "ec",
                                "-pkeyopt",
                                "ec_paramgen_curve:prime256v1",
                                "-nodes",
                                "-days",
                                "30",
                                "-subj",
                                "/CN=localhost",
                                "-addext",
                                "subjectAltName=DNS:localhost,IP:127.0.0.1",
                                "-keyout",
                                "server.key",
                                "-out",
                                "server.crt",
                                NULL};
    char key[96];

    (void)snprintf(key, sizeof key, "%s/server.key", s->dir);
    return pg_run(s, argv) && chmod(key, 0600) == 0;
}

static inline bool pg_initdb(const struct pg_server *s, const char *data)
{
    char prog[300];
    const char *const argv[] = {
        prog, "-D",   data,          "-U",        "postgres",          "-A", "trust",
        "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions", NULL};

    (void)snprintf(prog, sizeof prog, "%s/initdb", s->bin);
    return pg_run(s, argv);
}

static inline int pg_rm_one(const char *path, const struct stat *st, int type, struct FTW *f)
{
    (void)st, (void)type, (void)f;
    return remove(path);
}

/* Others may make it at the same time: it appears whole, or not at all. */
static inline void pg_keep_template(const struct pg_server *s, const char *template)
{
    char made[512];
    const char *const copy[] = {"cp", "-a", "data", made, NULL};

    (void)snprintf(made, sizeof made, "%.400s.%d", template, (int)getpid());
    if (!pg_run(s, copy) || rename(made, template) != 0) {
        (void)nftw(made, pg_rm_one, 16, FTW_DEPTH | FTW_PHYS);
    }
}

/* s->dir/data, copied from the template when there is one */
static inline bool pg_make_data(const struct pg_server *s)
{
    const char *template = getenv("PRT_PG_DIR");
    const char *const copy[] = {"cp", "-a", template ? template : "", "data", NULL};
    char version[512];

    (void)snprintf(version, sizeof version, "%s/PG_VERSION", template ? template : "");
    if (template && access(version, F_OK) == 0) {
        return pg_run(s, copy);
    }
    if (!pg_initdb(s, "data")) {
        return false;
    }
    if (template) {
        pg_keep_template(s, template);
    }
    return true;
}

static inline int pg_free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool ok = fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof a) == 0 &&
              getsockname(fd, (struct sockaddr *)&a, &n) == 0;

    if (fd >= 0) {
        (void)close(fd);
    }
    return ok ? ntohs(a.sin_port) : 0;
}

static inline void pg_kill(struct pg_server *s)
{
    int64_t until = pg_now_ms() + 10000;

    if (s->pid <= 0) {
        return;
    }
    (void)kill(s->pid, SIGINT); /* fast shutdown: sessions are ended */
    while (waitpid(s->pid, NULL, WNOHANG) == 0) {
        if (pg_now_ms() > until) {
            (void)kill(s->pid, SIGQUIT);
            until = INT64_MAX;
        }
        pg_nap();
    }
    s->pid = 0;
}

static inline void pg_server_stop(struct pg_server *s)
{
    struct pg_server **at = &pg_servers;

    pg_kill(s);
    if (s->dir[0]) {
        (void)nftw(s->dir, pg_rm_one, 16, FTW_DEPTH | FTW_PHYS);
        s->dir[0] = '\0';
    }
    while (*at && *at != s) {
        at = &(*at)->next;
    }
    if (*at) {
        *at = s->next;
    }
}

static inline void pg_stop_all(void)
{
    while (pg_servers) {
        pg_server_stop(pg_servers);
    }
}

/* Run `postgres` on s->dir/data; again after pg_kill, on the same port. */
static inline bool pg_server_launch(struct pg_server *s)
{
    char prog[300], port[16], hba[96], cert[96], key[96], conninfo[256];
    const char *argv[40] = {prog, "-D", "data", "-p", port, "-k", s->dir};
    int n = 7;
    const char *const settings[] = {"fsync=off",
                                    "listen_addresses=127.0.0.1",
                                    "max_connections=150",
                                    "shared_buffers=32MB",
                                    hba,
                                    s->tls ? "ssl=on" : "ssl=off",
                                    cert,
                                    key};

    (void)snprintf(prog, sizeof prog, "%s/postgres", s->bin);
    (void)snprintf(port, sizeof port, "%d", s->port);
    (void)snprintf(hba, sizeof hba, "hba_file=%s/hba", s->dir);
    (void)snprintf(cert, sizeof cert, "ssl_cert_file=%s/server.crt", s->dir);
    (void)snprintf(key, sizeof key, "ssl_key_file=%s/server.key", s->dir);
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        argv[n++] = "-c", argv[n++] = settings[i];
    }
    s->pid = pg_spawn(s, argv);
    (void)snprintf(conninfo, sizeof conninfo,
                   "host=%s port=%d user=postgres dbname=postgres connect_timeout=5", s->dir,
                   s->port);
    for (int64_t until = pg_now_ms() + PG_START_S * 1000; s->pid > 0 && pg_now_ms() < until;) {
        if (PQping(conninfo) == PQPING_OK) {
            return true;
        }
        if (waitpid(s->pid, NULL, WNOHANG) == s->pid) {
            s->pid = 0;
        }
        pg_nap();
    }
    pg_kill(s);
    return false;
}

static inline bool pg_server_start(struct pg_server *s, const char *hba, bool tls)
{
    char text[4096];
    const struct passwd *u = pg_user();
    bool ok;

    *s = (struct pg_server){.tls = tls};
    (void)snprintf(s->dir, sizeof s->dir, "%s/prt-pg.XXXXXX",
                   getenv("TMPDIR") && strlen(getenv("TMPDIR")) < 40 ? getenv("TMPDIR") : "/tmp");
    if (!pg_find_bin(s->bin, sizeof s->bin) || !mkdtemp(s->dir)) {
        s->dir[0] = '\0';
        printf("  throw-away PostgreSQL: no /usr/lib/postgresql/*/bin/postgres, or no directory\n");
        return false;
    }
    if (!pg_servers) {
        (void)atexit(pg_stop_all);
    }
    s->next = pg_servers;
    pg_servers = s;
    (void)snprintf(text, sizeof text, "%slocal all all trust\nhost all all 127.0.0.1/32 trust\n",
                   hba ? hba : "");
    ok = chmod(s->dir, 0755) == 0 && (!u || chown(s->dir, u->pw_uid, u->pw_gid) == 0) &&
         pg_write_file(s, "hba", text) && (!tls || pg_make_cert(s)) && pg_make_data(s);
    for (int tries = 0; ok && tries < 5; tries++) {
        s->port = pg_free_port();
        if (s->port && pg_server_launch(s)) {
            return true;
        }
    }
    pg_show_log(s, "it does not start");
    pg_server_stop(s);
    return false;
}

/* As the superuser; true when it worked, else the error is printed. value (may be NULL) receives
 * the first field of the result. */
static inline bool pg_server_query(const struct pg_server *s, const char *sql, char *value,
                                   size_t n)
{
    char conninfo[256];
    PGconn *conn;
    PGresult *r;
    bool ok;

    (void)snprintf(conninfo, sizeof conninfo, "host=%s port=%d user=postgres dbname=postgres",
                   s->dir, s->port);
    conn = PQconnectdb(conninfo);
    r = PQexec(conn, sql);
    ok = PQresultStatus(r) == PGRES_COMMAND_OK || PQresultStatus(r) == PGRES_TUPLES_OK;
    if (!ok) {
        printf("  %s: %s", sql, PQerrorMessage(conn));
    }
    if (value) {
        (void)snprintf(value, n, "%s", ok && PQntuples(r) > 0 ? PQgetvalue(r, 0, 0) : "");
    }
    PQclear(r);
    PQfinish(conn);
    return ok;
}

static inline bool pg_server_sql(const struct pg_server *s, const char *sql)
{
    return pg_server_query(s, sql, NULL, 0);
}
#endif
