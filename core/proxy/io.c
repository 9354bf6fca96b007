/* io.c - the socket seam: who waits for what, and the only recv and send of the data path.
 * Owns: a worker's epoll set and the table of whom its events are for.   Threads: that worker.
 * Idea: level-triggered, each descriptor entered once, masks unchanged in steady state. An event
 * carries (ticket, generation) instead of a pointer, so what was closed or moved away in the same
 * turn is recognised. Another engine (a ring) would be a second file with these functions. */
#include "proxy/proxy_int.h"

#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

poolrt_rc prt_io_init(struct prt_io *io, struct prt_err *err)
{
    memset(io, 0, sizeof *io);
    io->free = PRT_NO_TICKET;
    io->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (io->epoll < 0) {
        return prt_fail(err, POOLRT_IO, "epoll_create1: %s", strerrordesc_np(errno));
    }
    io->events = calloc(PRT_IO_BATCH, sizeof(struct epoll_event));
    if (!io->events) {
        (void)close(io->epoll);
        return prt_fail(err, POOLRT_NOMEM, "no memory for a worker's events");
    }
    return POOLRT_OK;
}

void prt_io_fini(struct prt_io *io)
{
    if (io->events) {
        (void)close(io->epoll);
    }
    free(io->events);
    free(io->entry);
    memset(io, 0, sizeof *io);
}

static bool grow(struct prt_io *io)
{
    uint32_t n = io->n ? io->n * 2 : 64;
    struct prt_io_entry *entry = realloc(io->entry, n * sizeof *entry);

    if (!entry) {
        return false;
    }
    io->entry = entry;
    for (uint32_t i = n; i-- > io->n;) {
        entry[i] = (struct prt_io_entry){.next_free = io->free};
        io->free = i;
    }
    io->n = n;
    return true;
}

static struct epoll_event event_of(const struct prt_io *io, const struct prt_sock *s)
{
    uint32_t bits = (s->want & PRT_WANT_READ ? (uint32_t)EPOLLIN : 0) |
                    (s->want & PRT_WANT_WRITE ? (uint32_t)EPOLLOUT : 0);

    return (struct epoll_event){
        .events = bits,
        .data.u64 = (uint64_t)s->ticket << 32 | io->entry[s->ticket].gen,
    };
}

bool prt_io_add(struct prt_io *io, struct prt_sock *s, enum prt_io_kind kind, void *obj,
                unsigned want)
{
    if (io->free == PRT_NO_TICKET && !grow(io)) {
        return false;
    }
    struct prt_io_entry *e = &io->entry[io->free];
    s->ticket = io->free;
    s->want = (uint8_t)want;
    e->obj = obj;
    e->kind = (uint8_t)kind;
    struct epoll_event ev = event_of(io, s);
    if (kind == PRT_KIND_LISTENER) {
        ev.events |= EPOLLEXCLUSIVE; /* one worker wakes for a connection, not all */
    }
    if (epoll_ctl(io->epoll, EPOLL_CTL_ADD, s->fd, &ev)) {
        s->ticket = PRT_NO_TICKET;
        return false;
    }
    io->free = e->next_free;
    return true;
}

void prt_io_del(struct prt_io *io, struct prt_sock *s)
{
    prt_assert(!s->in_burst); /* what was sent to it has left, and nobody names it any more */
    if (s->ticket == PRT_NO_TICKET) {
        return;
    }
    struct prt_io_entry *e = &io->entry[s->ticket];
    (void)epoll_ctl(io->epoll, EPOLL_CTL_DEL, s->fd, NULL);
    e->obj = NULL;
    e->gen++;
    e->next_free = io->free;
    io->free = s->ticket;
    s->ticket = PRT_NO_TICKET;
}

void prt_io_want(struct prt_io *io, struct prt_sock *s, unsigned want)
{
    if (s->want == want || s->ticket == PRT_NO_TICKET) {
        return;
    }
    s->want = (uint8_t)want;
    struct epoll_event ev = event_of(io, s);
    /* of a descriptor that is in the set this fails only without memory in the kernel; the old mask
     * then stays, and the next change tries again */
    if (epoll_ctl(io->epoll, EPOLL_CTL_MOD, s->fd, &ev)) {
        prt_log(PRT_LOG_ERROR, "epoll_failed", prt_kv_z("error", strerrordesc_np(errno)));
    }
}

int prt_io_wait(struct prt_io *io, int timeout_ms)
{
    int n = epoll_wait(io->epoll, io->events, PRT_IO_BATCH, timeout_ms);

    prt_assert(n >= 0 || errno == EINTR);
    return n < 0 ? 0 : n;
}

bool prt_io_event(struct prt_io *io, int i, struct prt_io_event *ev)
{
    const struct epoll_event *e = (const struct epoll_event *)io->events + i;
    uint32_t ticket = (uint32_t)(e->data.u64 >> 32);
    const struct prt_io_entry *to = &io->entry[ticket];

    if (!to->obj || to->gen != (uint32_t)e->data.u64) {
        return false;
    }
    bool is_over = e->events & (EPOLLERR | EPOLLHUP);
    ev->kind = (enum prt_io_kind)to->kind;
    ev->obj = to->obj;
    ev->readable = is_over || (e->events & EPOLLIN);
    ev->writable = is_over || (e->events & EPOLLOUT);
    return true;
}

static ssize_t code_of_errno(void)
{
    if (errno == EAGAIN || errno == EINTR) {
        return PRT_IO_AGAIN;
    }
    return errno == ECONNRESET || errno == EPIPE ? PRT_IO_CLOSED : PRT_IO_FAILED;
}

/* Straight system calls: the C library's are cancellation points, which cost a process with threads
 * a hundred instructions each, and nobody here is ever cancelled. */
ssize_t prt_sock_recv(struct prt_sock *s, void *p, size_t n)
{
    if (s->ssl) {
        return prt_tls_read(s->ssl, p, n);
    }
    ssize_t got = syscall(SYS_recvfrom, s->fd, p, n, MSG_DONTWAIT, NULL, NULL);
    if (got == 0) {
        return PRT_IO_END;
    }
    return got > 0 ? got : code_of_errno();
}

ssize_t prt_sock_send(struct prt_sock *s, const void *p, size_t n)
{
    if (s->ssl) {
        ssize_t r = prt_tls_write(s->ssl, p, n);
        return r == PRT_IO_WANT_WRITE ? PRT_IO_AGAIN : r;
    }
    ssize_t sent = syscall(SYS_sendto, s->fd, p, n, MSG_DONTWAIT | MSG_NOSIGNAL, NULL, 0);
    return sent >= 0 ? sent : code_of_errno();
}

bool prt_sock_is_deaf(const struct prt_sock *s)
{
    struct tcp_info info = {0};
    socklen_t n = sizeof info;

    if (getsockopt(s->fd, IPPROTO_TCP, TCP_INFO, &info, &n)) {
        return false;
    }
    /* sent again and again; or its window is full, and it does not say so any more */
    return info.tcpi_retransmits >= 2 || info.tcpi_probes >= 2;
}

void prt_sock_close(struct prt_io *io, struct prt_sock *s)
{
    if (s->fd < 0) {
        return;
    }
    prt_io_del(io, s);
    prt_tls_free(s->ssl);
    s->ssl = NULL;
    (void)close(s->fd);
    s->fd = -1;
}

/* Counted by the kernel anyway, so the data path need not. What was sent again is not counted
 * twice.
 */
void prt_sock_count(const struct prt_sock *s, struct prt_sock_counts *out)
{
    struct tcp_info t = {0};
    socklen_t n = sizeof t;

    *out = (struct prt_sock_counts){-1, -1, -1};
    if (s->fd < 0 || getsockopt(s->fd, IPPROTO_TCP, TCP_INFO, &t, &n) != 0 ||
        n < offsetof(struct tcp_info, tcpi_bytes_retrans) + sizeof t.tcpi_bytes_retrans) {
        return;
    }
    uint32_t quiet_ms = t.tcpi_last_data_sent < t.tcpi_last_data_recv ? t.tcpi_last_data_sent
                                                                      : t.tcpi_last_data_recv;
    out->sent = (int64_t)(t.tcpi_bytes_sent - t.tcpi_bytes_retrans);
    out->received = (int64_t)t.tcpi_bytes_received;
    out->quiet_us = (int64_t)quiet_ms * 1000;
}
