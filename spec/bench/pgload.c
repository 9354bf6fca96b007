/* pgload.c - a closed-loop load generator for the PostgreSQL protocol.
 * Owns: its clients.   Threads: one, on epoll.
 * Idea: each client sends its next transaction when the answer to the last one is whole. The tool
 * itself reads the target's CPU clock and its system-call counter at the very edges of the measured
 * interval, so that costs and transactions belong together however late anybody is scheduled.
 *
 * usage: pgload -h host|/directory -p port [-U user] [-D database] [-W password] [-o options]
 *               [-m mode] [-c clients] [-t seconds] [-w warm-up seconds] [-q sql]
 *               [-P pid of the target] [-s (count its system calls)]
 * modes: simple, extended, prepared   a row by its key, by that protocol
 *        connect                      the same, on a new connection each time
 *        big                          a large result (-q), each as long as the first one
 *        idle                         log in, print "ready", hold until stdin ends, at most -t
 * Prints key=value pairs on one line. Ends with 1 when the target refuses or drops a client. */
#include "wire.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <linux/perf_event.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define LOGINS_AT_ONCE 64
#define LOGIN_LIMIT_S 30.0
#define CALL_LIMIT_S 5   /* a connect or send that blocks for longer is a failure */
#define BODY_KEPT 512    /* bytes kept of an error or authentication request */
#define ROWS 100000      /* keys asked for: 1 .. ROWS */
#define COUNTERS_MAX 256 /* threads of the target whose system calls are counted */
#define NS 1000000000ull

enum mode { SIMPLE, EXTENDED, PREPARED, CONNECT, BIG, IDLE, N_MODES };
static const char *const mode_names[N_MODES] = {"simple",  "extended", "prepared",
                                                "connect", "big",      "idle"};

/* LOGIN -> (PREPARING ->) PARKED -> BUSY -> BUSY ...; in mode connect BUSY -> LOGIN.
 * LOGIN, PREPARING and BUSY wait for a ReadyForQuery, PARKED for the start of the run. */
enum phase { LOGIN, PREPARING, PARKED, BUSY };

struct client {
    int fd;
    enum phase phase;
    uint64_t started_ns; /* of the transaction under way */
    uint64_t txns;       /* in the measured interval */
    /* the message being read */
    unsigned char header[5];
    unsigned header_n, body_left, kept_n;
    char kept[BODY_KEPT];
    /* the answer being read */
    uint64_t answer_bytes;
    bool has_row, has_error;
};

/* set at start */
static const char *host = "127.0.0.1", *user = "bench", *database = "bench", *password, *options;
static const char *sql;
static unsigned port;
static int n_clients = 8, target_pid;
static double run_s = 2, warm_s = 0.3;
static enum mode mode = SIMPLE;
static bool count_calls;

/* the run */
static struct client *clients;
static int epoll_fd, n_opened, n_ready;
static bool is_running, is_measuring;
static struct wire_buf out;
static uint64_t big_answer; /* length of the first large answer */
static uint64_t random_state = 88172645463325252ull;

/* what is counted in the measured interval */
static uint64_t txns, errors, bytes;
static uint64_t latency[64 * 64]; /* ns; 64 steps per power of two */

static void die(const char *what)
{
    fprintf(stderr, "pgload: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void fail(const char *text)
{
    fprintf(stderr, "pgload: %s\n", text);
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS + (uint64_t)t.tv_nsec;
}

/* ---- latencies ---- */
static void latency_add(uint64_t ns)
{
    unsigned e = 63 - (unsigned)__builtin_clzll(ns | 64);
    latency[(e - 6) * 64 + (ns >> (e - 6))]++;
}

/* upper edge of the step in which the share lies, in microseconds */
static double latency_at(double share)
{
    uint64_t total = 0, seen = 0;
    for (size_t i = 0; i < 64 * 64; i++) {
        total += latency[i];
    }
    for (size_t i = 0; i < 64 * 64 && total > 0; i++) {
        seen += latency[i];
        if ((double)seen >= share * (double)total) {
            unsigned shift = i < 128 ? 0 : (unsigned)(i / 64 - 1);
            return (double)((i - shift * 64 + 1) << shift) / 1e3;
        }
    }
    return 0;
}

/* ---- what the target costs ---- */
static clockid_t target_clock;
static int counters[COUNTERS_MAX], n_counters;

/* The kernel's run time of all threads of the target, ended ones included. */
static uint64_t target_cpu_ns(void)
{
    struct timespec t;
    if (target_pid == 0) {
        return 0;
    }
    if (clock_gettime(target_clock, &t) != 0) {
        die("CPU clock of the target");
    }
    return (uint64_t)t.tv_sec * NS + (uint64_t)t.tv_nsec;
}

static long long tracepoint_id(void)
{
    static const char *const files[] = {
        "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id",
        "/sys/kernel/debug/tracing/events/raw_syscalls/sys_enter/id",
    };
    long long id = -1;
    for (int i = 0; i < 2 && id < 0; i++) {
        FILE *f = fopen(files[i], "re");
        if (f != NULL) {
            char line[32] = "";
            id = fgets(line, sizeof line, f) != NULL ? strtoll(line, NULL, 10) : -1;
            fclose(f);
        }
    }
    return id;
}

/* One counter per thread of the target; threads born later inherit it. Without the rights or the
 * tracepoint n_counters stays 0. It is perf stat -e raw_syscalls:sys_enter, without the wait. */
static void open_counters(void)
{
    struct perf_event_attr attr = {.type = PERF_TYPE_TRACEPOINT, .size = sizeof attr};
    char dir[64];
    snprintf(dir, sizeof dir, "/proc/%d/task", target_pid);
    long long id = tracepoint_id();
    DIR *d = id < 0 ? NULL : opendir(dir);
    if (d == NULL) {
        return;
    }
    attr.config = (uint64_t)id;
    attr.inherit = 1;
    for (struct dirent *e; (e = readdir(d)) != NULL && n_counters < COUNTERS_MAX;) {
        int tid = (int)strtol(e->d_name, NULL, 10);
        if (tid <= 0) {
            continue;
        }
        long fd = syscall(SYS_perf_event_open, &attr, tid, -1, -1, PERF_FLAG_FD_CLOEXEC);
        if (fd < 0 && errno != ESRCH) {
            n_counters = 0; /* all or nothing */
            break;
        }
        if (fd >= 0) {
            counters[n_counters++] = (int)fd;
        }
    }
    closedir(d);
}

static uint64_t target_calls(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < n_counters; i++) {
        uint64_t n;
        if (read(counters[i], &n, sizeof n) != (ssize_t)sizeof n) {
            die("system-call counter");
        }
        sum += n;
    }
    return sum;
}

/* ---- connections ---- */
static int dial_unix(void)
{
    struct sockaddr_un sa;
    if (!wire_unix_address(&sa, host, port)) {
        fail("the socket's path is too long");
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval limit = {.tv_sec = CALL_LIMIT_S};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (fd < 0 || connect(fd, (struct sockaddr *)&sa, sizeof sa) != 0) {
        die("connect");
    }
    return fd;
}

static int dial_tcp(void)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (inet_pton(AF_INET, host, &sa.sin_addr) != 1) {
        fail("-h wants an IPv4 address or a directory");
    }
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    struct timeval limit = {.tv_sec = CALL_LIMIT_S};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (mode == CONNECT) { /* RST at close: no TIME_WAIT that uses the ports up */
        struct linger hard = {.l_onoff = 1};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    }
    if (fd < 0 || connect(fd, (struct sockaddr *)&sa, sizeof sa) != 0) {
        die("connect");
    }
    return fd;
}

static void send_out(struct client *c)
{
    if (send(c->fd, out.data, out.len, MSG_NOSIGNAL) != (ssize_t)out.len) {
        die("send");
    }
    out.len = 0;
}

static void put_pair(const char *name, const char *value)
{
    wire_put_str(&out, name);
    wire_put_str(&out, value);
}

static void open_client(struct client *c)
{
    c->fd = host[0] == '/' ? dial_unix() : dial_tcp();
    c->phase = LOGIN;
    c->header_n = c->body_left = 0;
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e) != 0) {
        die("epoll_ctl");
    }
    wire_put32(&out, 0);
    wire_put32(&out, WIRE_PROTOCOL_3 << 16);
    put_pair("user", user);
    put_pair("database", database);
    put_pair("application_name", "pgload");
    put_pair("client_encoding", "UTF8");
    if (options != NULL) {
        put_pair("options", options);
    }
    wire_put(&out, "", 1);
    wire_set32(out.data, (uint32_t)out.len);
    send_out(c);
}

/* ---- transactions ---- */
static const char key_query[] = "SELECT abalance FROM pgbench_accounts WHERE aid = $1";

static unsigned random_key(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)(random_state % ROWS) + 1;
}

static void put_query(void)
{
    char text[128];
    snprintf(text, sizeof text, "SELECT abalance FROM pgbench_accounts WHERE aid = %u",
             random_key());
    size_t mark = wire_begin(&out, 'Q');
    wire_put_str(&out, sql != NULL ? sql : text);
    wire_end(&out, mark);
}

static void put_parse(const char *name)
{
    size_t mark = wire_begin(&out, 'P');
    wire_put_str(&out, name);
    wire_put_str(&out, key_query);
    wire_put(&out, "\0", 2); /* no parameter types */
    wire_end(&out, mark);
}

static void put_bind_execute(const char *name)
{
    char key[16];
    int n = snprintf(key, sizeof key, "%u", random_key());
    size_t mark = wire_begin(&out, 'B');
    wire_put_str(&out, ""); /* the unnamed portal */
    wire_put_str(&out, name);
    wire_put(&out, "\0\0\0\1", 4); /* no formats, one parameter */
    wire_put32(&out, (uint32_t)n);
    wire_put(&out, key, (size_t)n);
    wire_put(&out, "\0", 2); /* results as text */
    wire_end(&out, mark);
    wire_msg(&out, 'D', "P", 2);
    wire_msg(&out, 'E', "\0\0\0\0", 5);
    wire_msg(&out, 'S', "", 0);
}

static void send_prepare(struct client *c)
{
    c->phase = PREPARING;
    put_parse("by_key");
    wire_msg(&out, 'S', "", 0);
    send_out(c);
}

static void send_transaction(struct client *c)
{
    if (mode != CONNECT) {
        c->started_ns = now_ns();
    }
    c->phase = BUSY;
    c->answer_bytes = 0;
    c->has_row = c->has_error = false;
    if (mode == EXTENDED) {
        put_parse("");
        put_bind_execute("");
    } else if (mode == PREPARED) {
        put_bind_execute("by_key");
    } else {
        put_query();
    }
    send_out(c);
}

static void reconnect(struct client *c)
{
    wire_msg(&out, 'X', "", 0);
    send_out(c);
    close(c->fd);
    c->started_ns = now_ns();
    open_client(c);
}

static void note_error(const char *text)
{
    static int shown;
    if (shown++ < 3) {
        fprintf(stderr, "pgload: %s\n", text);
    }
}

/* the answer to a transaction is whole: is it the right one? */
static void check_answer(struct client *c)
{
    bool is_good = !c->has_error;
    if (is_good && !c->has_row) {
        note_error("an answer without a row");
        is_good = false;
    }
    if (is_good && mode == BIG) {
        big_answer = big_answer != 0 ? big_answer : c->answer_bytes;
        is_good = big_answer == c->answer_bytes;
        if (!is_good) {
            note_error("large answers of different length");
        }
    }
    if (!is_good) {
        errors++;
    } else if (is_measuring) {
        latency_add(now_ns() - c->started_ns);
        txns++;
        c->txns++;
    }
}

static void on_ready_for_query(struct client *c)
{
    if (c->phase == LOGIN && mode == PREPARED) {
        send_prepare(c);
        return;
    }
    if (c->phase == BUSY) {
        check_answer(c);
    } else if (!is_running) {
        c->phase = PARKED;
        n_ready++;
        return;
    }
    if (c->phase == BUSY && mode == CONNECT) {
        reconnect(c);
    } else {
        send_transaction(c);
    }
}

/* ---- messages ---- */
/* the text of the field in an ErrorResponse; "" without it */
static const char *error_field(const struct client *c, char field)
{
    const char *p = c->kept, *end = c->kept + c->kept_n; /* kept[kept_n] is NUL */
    while (p < end && *p != '\0') {
        if (*p == field) {
            return p + 1;
        }
        p += strlen(p) + 1;
    }
    return "";
}

static void on_error(struct client *c)
{
    char text[BODY_KEPT + 64];
    snprintf(text, sizeof text, "%s%s: %s", c->phase == LOGIN ? "login refused: " : "",
             error_field(c, 'C'), error_field(c, 'M'));
    if (c->phase != BUSY) {
        fail(text);
    }
    note_error(text);
    c->has_error = true;
}

static void on_authentication(struct client *c)
{
    uint32_t code = c->kept_n >= 4 ? wire_get32(c->kept) : UINT32_MAX;
    if (code == 3 && password != NULL) {
        wire_msg(&out, 'p', password, strlen(password) + 1);
        send_out(c);
    } else if (code != 0) {
        char text[128];
        snprintf(text, sizeof text, "login refused: authentication method %u is asked for, %s",
                 code, code == 3 ? "but -W is missing" : "pgload knows trust and password");
        fail(text);
    }
}

static void on_message(struct client *c)
{
    c->kept[c->kept_n] = '\0';
    switch (c->header[0]) {
    case 'Z':
        on_ready_for_query(c);
        break;
    case 'E':
        on_error(c);
        break;
    case 'R':
        on_authentication(c);
        break;
    case 'D':
        c->has_row = true;
        break;
    default:
        break;
    }
}

/* keeps the first bytes of the bodies that are looked at */
static void keep(struct client *c, const char *p, size_t n)
{
    if (c->header[0] == 'E' || c->header[0] == 'R') {
        size_t room = BODY_KEPT - 1 - c->kept_n;
        n = n < room ? n : room;
        memcpy(c->kept + c->kept_n, p, n);
        c->kept_n += (unsigned)n;
    }
}

/* Messages may be cut anywhere. */
static void on_bytes(struct client *c, const char *p, size_t left)
{
    int fd = c->fd;
    while (left > 0 && c->fd == fd) { /* a reconnect drops what follows */
        size_t n;
        if (c->header_n < 5) {
            n = 5 - c->header_n < left ? 5 - c->header_n : left;
            memcpy(c->header + c->header_n, p, n);
            c->header_n += (unsigned)n;
            if (c->header_n == 5) {
                uint32_t length = wire_get32(c->header + 1);
                if (length < 4) {
                    fail("a message with a length below 4");
                }
                c->body_left = length - 4;
                c->kept_n = 0;
            }
        } else {
            n = c->body_left < left ? c->body_left : left;
            keep(c, p, n);
            c->body_left -= (unsigned)n;
        }
        p += n;
        left -= n;
        c->answer_bytes += n;
        if (c->header_n == 5 && c->body_left == 0) {
            c->header_n = 0;
            on_message(c);
        }
    }
}

static void on_readable(struct client *c)
{
    static char buffer[256 << 10];
    ssize_t n = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) {
        return;
    }
    if (n <= 0) {
        fail(n == 0 ? "a connection was closed by the target" : strerror(errno));
    }
    bytes += is_measuring ? (uint64_t)n : 0;
    on_bytes(c, buffer, (size_t)n);
}

/* ---- the run ---- */
static void turn(int wait_ms)
{
    struct epoll_event events[512];
    int n = epoll_wait(epoll_fd, events, 512, wait_ms);
    if (n < 0 && errno != EINTR) {
        die("epoll_wait");
    }
    for (int i = 0; i < n; i++) {
        on_readable(events[i].data.ptr);
    }
}

/* Until all clients have logged in and prepared. */
static void log_in(void)
{
    uint64_t deadline = now_ns() + (uint64_t)(LOGIN_LIMIT_S * NS);
    while (n_ready < n_clients) {
        while (n_opened < n_clients && n_opened - n_ready < LOGINS_AT_ONCE) {
            open_client(&clients[n_opened++]);
        }
        turn(100);
        if (now_ns() > deadline) {
            fprintf(stderr, "pgload: only %d of %d clients are logged in after %g s\n", n_ready,
                    n_clients, LOGIN_LIMIT_S);
            exit(1);
        }
    }
}

static uint64_t run_until(uint64_t deadline)
{
    uint64_t now;
    while ((now = now_ns()) < deadline) {
        turn((int)((deadline - now) / 1000000) + 1);
    }
    return now;
}

static void print_result(double s, uint64_t cpu_ns, uint64_t calls)
{
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < n_clients; i++) {
        least = clients[i].txns < least ? clients[i].txns : least;
    }
    printf("mode=%s clients=%d secs=%.4f txns=%llu tps=%.1f errors=%llu p50_us=%.1f p99_us=%.1f "
           "slowest_txns=%llu bytes=%llu cpu_ns=%llu",
           mode_names[mode], n_clients, s, (unsigned long long)txns, (double)txns / s,
           (unsigned long long)errors, latency_at(0.5), latency_at(0.99), (unsigned long long)least,
           (unsigned long long)bytes, (unsigned long long)cpu_ns);
    if (n_counters > 0) {
        printf(" syscalls=%llu", (unsigned long long)calls);
    }
    putchar('\n');
}

static void run_load(void)
{
    is_running = true;
    for (int i = 0; i < n_clients; i++) {
        if (mode == CONNECT) {
            reconnect(&clients[i]);
        } else {
            send_transaction(&clients[i]);
        }
    }
    run_until(now_ns() + (uint64_t)(warm_s * NS));
    is_measuring = true;
    uint64_t start = now_ns(), cpu = target_cpu_ns(), calls = target_calls();
    uint64_t end = run_until(start + (uint64_t)(run_s * NS));
    print_result((double)(end - start) / NS, target_cpu_ns() - cpu, target_calls() - calls);
}

static void run_idle(void)
{
    printf("ready clients=%d\n", n_ready);
    fflush(stdout);
    uint64_t deadline = now_ns() + (uint64_t)(run_s * NS), now;
    while ((now = now_ns()) < deadline) {
        struct pollfd p[] = {{.fd = 0, .events = POLLIN}, {.fd = epoll_fd, .events = POLLIN}};
        poll(p, 2, (int)((deadline - now) / 1000000) + 1);
        char byte;
        if (p[0].revents != 0 && read(0, &byte, 1) <= 0) {
            return;
        }
        if (p[1].revents != 0) {
            turn(0);
        }
    }
}

static enum mode parse_mode(const char *name)
{
    for (int i = 0; i < N_MODES; i++) {
        if (strcmp(name, mode_names[i]) == 0) {
            return (enum mode)i;
        }
    }
    fprintf(stderr, "pgload: unknown mode \"%s\"\n", name);
    exit(2);
}

static void parse_options(int argc, char **argv)
{
    for (int o; (o = getopt(argc, argv, "h:p:U:D:W:o:m:c:t:w:q:P:s")) != -1;) {
        switch (o) {
        case 'h':
            host = optarg;
            break;
        case 'p':
            port = (unsigned)wire_number("pgload", 'p', optarg, 1, 65535);
            break;
        case 'U':
            user = optarg;
            break;
        case 'D':
            database = optarg;
            break;
        case 'W':
            password = optarg;
            break;
        case 'o':
            options = optarg;
            break;
        case 'm':
            mode = parse_mode(optarg);
            break;
        case 'c':
            n_clients = (int)wire_number("pgload", 'c', optarg, 1, 1000000);
            break;
        case 't':
            run_s = wire_number("pgload", 't', optarg, 0.01, 3600);
            break;
        case 'w':
            warm_s = wire_number("pgload", 'w', optarg, 0, 60);
            break;
        case 'q':
            sql = optarg;
            break;
        case 'P':
            target_pid = (int)wire_number("pgload", 'P', optarg, 1, 1 << 30);
            break;
        case 's':
            count_calls = true;
            break;
        default:
            exit(2);
        }
    }
    if (port == 0 || (mode == BIG && sql == NULL) || (count_calls && target_pid == 0)) {
        fputs("pgload: -p is needed, for mode big -q, for -s -P\n", stderr);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    parse_options(argc, argv);
    wire_raise_nofile();
    /* the last resort: no target may hold this program for longer */
    alarm((unsigned)(LOGIN_LIMIT_S + warm_s + run_s) + 3 * CALL_LIMIT_S);
    if (target_pid != 0 && clock_getcpuclockid(target_pid, &target_clock) != 0) {
        fail("the target's process is gone");
    }
    if (count_calls) {
        open_counters();
    }
    clients = wire_alloc(NULL, (size_t)n_clients * sizeof *clients);
    memset(clients, 0, (size_t)n_clients * sizeof *clients);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    log_in();
    if (mode == IDLE) {
        run_idle();
    } else {
        run_load();
    }
    return 0;
}
