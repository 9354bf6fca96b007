/* pgnull.c - a backend that speaks PostgreSQL and costs next to nothing: canned answers.
 * Owns: its listeners and connections.   Threads: one, on epoll.
 * Idea: behind a pooler it shows the cost of the pooler and not that of a database. What is
 * answered is in pgnull_session.c; a large result is sent from one block made at start.
 *
 * usage: pgnull [-p port] [-u directory] [-b bytes of the large result]
 * Prints "port=N" when it listens. Port 0 (the default) lets the kernel choose. */
#include "pgnull.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#define MESSAGE_MAX (1u << 20) /* longer ones close the connection */
#define STARTUP_MAX 10000u     /* as PostgreSQL has it */
#define OUT_PAUSE (256u << 10) /* no more input is handled while so much waits to be sent */
#define BLOCK_ROWS 4096u       /* rows in the block of the large result */
#define BIG_MAX (1u << 30)

static char block[BLOCK_ROWS * PGNULL_ROW_BYTES];
static int epoll_fd;

/* ---- input ---- */
/* Handles the whole messages in c->in while answers may be added: their number, -1 to close. */
static int consume(struct conn *c)
{
    int handled = 0;
    while (c->big_left == 0 && c->out.len - c->out.off < OUT_PAUSE) {
        size_t head = c->started ? 1 : 0, have = c->in.len - c->in.off;
        if (have < head + 4) {
            break;
        }
        const char *p = c->in.data + c->in.off;
        uint32_t length = wire_get32(p + head);
        if (length < (c->started ? 4u : 8u) || length > (c->started ? MESSAGE_MAX : STARTUP_MAX)) {
            return -1;
        }
        if (have - head < length) {
            break;
        }
        const char *body = p + head + 4;
        if (!(c->started ? pgnull_message(c, *p, body, length - 4)
                         : pgnull_startup(c, body, length - 4))) {
            return -1;
        }
        c->in.off += head + length;
        handled++;
    }
    if (c->in.off > 0) {
        memmove(c->in.data, c->in.data + c->in.off, c->in.len - c->in.off);
        c->in.len -= c->in.off;
        c->in.off = 0;
    }
    return handled;
}

/* ---- sockets ---- */
enum flushed { SENT_ALL, BLOCKED, BROKEN };

static enum flushed flush_buffer(struct conn *c)
{
    while (c->out.off < c->out.len) {
        ssize_t n = send(c->fd, c->out.data + c->out.off, c->out.len - c->out.off, MSG_NOSIGNAL);
        if (n < 0) {
            return errno == EAGAIN ? BLOCKED : BROKEN;
        }
        c->out.off += (size_t)n;
    }
    c->out.off = c->out.len = 0;
    return SENT_ALL;
}

/* The large result, from the shared block; at its end the tail of its answer is put. */
static enum flushed flush_big(struct conn *c)
{
    while (c->big_left > 0) {
        size_t at = (pgnull_big_bytes - c->big_left) % sizeof block, n = sizeof block - at;
        n = n < c->big_left ? n : c->big_left;
        ssize_t sent = send(c->fd, block + at, n, MSG_NOSIGNAL);
        if (sent < 0) {
            return errno == EAGAIN ? BLOCKED : BROKEN;
        }
        c->big_left -= (size_t)sent;
    }
    pgnull_big_sent(c);
    return SENT_ALL;
}

/* Handles and sends until there is nothing left to do or the peer does not read. */
static enum flushed pump(struct conn *c)
{
    for (;;) {
        int handled = consume(c);
        if (handled < 0) {
            return BROKEN;
        }
        enum flushed f = flush_buffer(c);
        if (f == SENT_ALL && c->big_left > 0) {
            f = flush_big(c);
            handled = 1;
        }
        if (f != SENT_ALL) {
            return f;
        }
        if (handled == 0) {
            return SENT_ALL;
        }
    }
}

static void drop(struct conn *c)
{
    close(c->fd);
    pgnull_session_fini(c);
    free(c->in.data);
    free(c->out.data);
    free(c);
}

static bool receive(struct conn *c)
{
    static char bytes[65536];
    ssize_t n = recv(c->fd, bytes, sizeof bytes, 0);
    if (n > 0) {
        wire_put(&c->in, bytes, (size_t)n);
        return true;
    }
    return n < 0 && errno == EAGAIN;
}

/* A peer that does not read is not read from either, so memory stays bounded. */
static void on_event(struct conn *c, uint32_t events)
{
    if ((events & ~(uint32_t)EPOLLOUT) != 0 && !receive(c)) {
        drop(c);
        return;
    }
    enum flushed f = pump(c);
    if (f == BROKEN) {
        flush_buffer(c); /* the last words, as far as they go */
        drop(c);
        return;
    }
    uint32_t want = f == BLOCKED ? EPOLLOUT : EPOLLIN;
    if (want != c->events) {
        struct epoll_event e = {.events = want, .data.ptr = c};
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
        c->events = want;
    }
}

static void on_accept(int listener)
{
    int one = 1, fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct conn *c = wire_alloc(NULL, sizeof *c);
        *c = (struct conn){.fd = fd, .events = EPOLLIN};
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e) != 0) {
            drop(c);
        }
    }
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void watch(int listener)
{
    /* an odd number, which no connection's pointer is: see serve() */
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = (uint64_t)listener << 1 | 1};
    if (listen(listener, 4096) != 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e) != 0) {
        die("pgnull: listen");
    }
}

/* returns the port it got */
static unsigned listen_tcp(unsigned port)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t n = sizeof sa;
    if (bind(fd, (struct sockaddr *)&sa, n) != 0 ||
        getsockname(fd, (struct sockaddr *)&sa, &n) != 0) {
        die("pgnull: bind");
    }
    watch(fd);
    return ntohs(sa.sin_port);
}

static void listen_unix(const char *dir, unsigned port)
{
    struct sockaddr_un sa;
    if (!wire_unix_address(&sa, dir, port)) {
        errno = ENAMETOOLONG;
        die(dir);
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    unlink(sa.sun_path);
    if (bind(fd, (struct sockaddr *)&sa, sizeof sa) != 0 || chmod(sa.sun_path, 0777) != 0) {
        die(sa.sun_path);
    }
    watch(fd);
}

/* Connections are aligned pointers, listeners odd numbers. */
static void serve(void)
{
    struct epoll_event events[256];
    for (;;) {
        int n = epoll_wait(epoll_fd, events, 256, -1);
        if (n < 0 && errno != EINTR) {
            die("pgnull: epoll_wait");
        }
        for (int i = 0; i < n; i++) {
            uint64_t tag = events[i].data.u64;
            if ((tag & 1) != 0) {
                on_accept((int)(tag >> 1));
            } else {
                on_event(events[i].data.ptr, events[i].events);
            }
        }
    }
}

static void make_block(void)
{
    for (size_t i = 0; i < BLOCK_ROWS; i++) {
        char *row = block + i * PGNULL_ROW_BYTES;
        row[0] = 'D';
        wire_set32(row + 1, PGNULL_ROW_BYTES - 1);
        memcpy(row + 5, "\0\1\0\0\0\x64", 6);
        memset(row + 11, 'x', 100);
    }
}

int main(int argc, char **argv)
{
    unsigned port = 0;
    const char *dir = NULL;
    size_t big = 50u << 20;
    for (int o; (o = getopt(argc, argv, "p:u:b:")) != -1;) {
        switch (o) {
        case 'p':
            port = (unsigned)wire_number("pgnull", 'p', optarg, 0, 65535);
            break;
        case 'u':
            dir = optarg;
            break;
        case 'b':
            big = (size_t)wire_number("pgnull", 'b', optarg, PGNULL_ROW_BYTES, BIG_MAX);
            break;
        default:
            fputs("usage: pgnull [-p port] [-u directory] [-b bytes]\n", stderr);
            return 2;
        }
    }
    signal(SIGPIPE, SIG_IGN);
    wire_raise_nofile();
    make_block();
    pgnull_big_bytes = big / PGNULL_ROW_BYTES * PGNULL_ROW_BYTES;
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    port = listen_tcp(port);
    if (dir != NULL) {
        listen_unix(dir, port);
    }
    printf("port=%u\n", port);
    fflush(stdout);
    serve();
}
