/* listener.c - the addresses poolrt listens on, and who gets a connection that comes in.
 * Owns: the listening descriptors (shared by all workers' sets), the spare descriptor.
 * Threads: opened and closed by control; accept runs on workers.
 * Idea: all workers poll the same descriptors; the one that accepts keeps the client unless it has
 * more than 1/8 + 1 above the mean, then the untouched descriptor is mailed to the one with the
 * fewest. Out of descriptors: the spare one is given up so that the caller gets an end instead of
 * hanging, and accepting pauses, so that a full process does not spin. */
#include "proxy/proxy_int.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 4096
#define ACCEPTS_PER_EVENT 64
#define PAUSE_US 100000 /* after EMFILE */

/* Kept open for the moment when there is no other descriptor left; -1: given up, or never had. */
static _Atomic int spare_fd = -1;

static void keep_spare(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int old = fd >= 0 ? atomic_exchange_explicit(&spare_fd, fd, memory_order_acq_rel) : -1;

    if (old >= 0) {
        (void)close(old);
    }
}

/* ---- opening ---- */

static poolrt_rc refuse(struct prt_err *err, const struct prt_address *a, const char *what, int no)
{
    const char *hint = no == EADDRINUSE
                           ? "; another process listens there: choose another address or "
                             "port in `listen`, or stop it"
                       : no == EACCES ? "; the port or the directory needs more rights"
                                      : "";
    return prt_fail(err, POOLRT_IO, "cannot listen on %s: %s: %s%s", a->text, what,
                    strerrordesc_np(no), hint);
}

static poolrt_rc add(struct prt_proxy *px, int fd, const struct prt_address *a, const char *path,
                     struct prt_err *err)
{
    struct prt_listener *more =
        realloc(px->listener, ((size_t)px->n_listeners + 1) * sizeof *px->listener);

    if (!more) {
        (void)close(fd);
        return prt_fail(err, POOLRT_NOMEM, "no memory for the listener %s", a->text);
    }
    px->listener = more;
    more[px->n_listeners] = (struct prt_listener){
        .fd = fd,
        .is_unix = a->is_unix,
        .path = path ? strdup(path) : NULL,
        .text = strdup(a->text),
    };
    px->n_listeners++;
    return POOLRT_OK;
}

static poolrt_rc open_tcp(struct prt_proxy *px, const struct prt_address *a, struct prt_err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    char port[8];
    poolrt_rc rc = POOLRT_OK;

    (void)snprintf(port, sizeof port, "%u", a->port);
    int bad = getaddrinfo(strcmp(a->host, "*") ? a->host : NULL, port, &hints, &list);
    if (bad) {
        return prt_fail(err, POOLRT_IO, "cannot listen on %s: %s", a->text, gai_strerror(bad));
    }
    for (struct addrinfo *ai = list; ai && !rc; ai = ai->ai_next) {
        int one = 1;
        int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0) {
            rc = errno == EAFNOSUPPORT && ai->ai_next ? POOLRT_OK : refuse(err, a, "socket", errno);
            continue;
        }
        (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (ai->ai_family == AF_INET6) {
            (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
        }
        if (bind(fd, ai->ai_addr, ai->ai_addrlen) || listen(fd, BACKLOG)) {
            rc = refuse(err, a, "bind", errno);
            (void)close(fd);
            continue;
        }
        rc = add(px, fd, a, NULL, err);
    }
    freeaddrinfo(list);
    return rc;
}

/* A socket file that nobody answers on is what a killed process left: taken over. */
static bool is_stale(const struct sockaddr_un *un)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool refused =
        fd >= 0 && connect(fd, (const struct sockaddr *)un, sizeof *un) && errno == ECONNREFUSED;

    if (fd >= 0) {
        (void)close(fd);
    }
    return refused;
}

static poolrt_rc open_unix(struct prt_proxy *px, const struct prt_address *a, struct prt_err *err)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    int n = snprintf(un.sun_path, sizeof un.sun_path, "%s/.s.PGSQL.%u", a->host, a->port);

    if (n < 0 || (size_t)n >= sizeof un.sun_path) {
        return prt_fail(err, POOLRT_CONFIG,
                        "cannot listen on %s: the path is longer than %zu bytes", a->text,
                        sizeof un.sun_path - 1);
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return refuse(err, a, "socket", errno);
    }
    if (is_stale(&un)) {
        (void)unlink(un.sun_path);
    }
    if (bind(fd, (struct sockaddr *)&un, sizeof un) || listen(fd, BACKLOG)) {
        poolrt_rc rc = refuse(err, a, un.sun_path, errno);
        (void)close(fd);
        return rc;
    }
    (void)chmod(un.sun_path, 0777); /* who may log in is decided by the login */
    return add(px, fd, a, un.sun_path, err);
}

poolrt_rc prt_listeners_open(struct prt_proxy *px, const struct prt_config *cfg,
                             struct prt_err *err)
{
    for (int i = 0; i < cfg->n_listen; i++) {
        const struct prt_address *a = &cfg->listen[i];
        poolrt_rc rc = a->is_unix ? open_unix(px, a, err) : open_tcp(px, a, err);
        if (rc) {
            return rc;
        }
    }
    keep_spare();
    return POOLRT_OK;
}

void prt_listeners_close(struct prt_proxy *px)
{
    for (int i = 0; i < px->n_listeners; i++) {
        struct prt_listener *l = &px->listener[i];
        (void)close(l->fd);
        if (l->path) {
            (void)unlink(l->path);
        }
        free(l->path);
        free(l->text);
    }
    free(px->listener);
    px->listener = NULL;
    px->n_listeners = 0;
}

/* ---- a worker's part ---- */

static void watch_again(struct prt_timer *t, int64_t now_us);

/* Enters what is not in the set yet; tries again in a moment if there is no memory for it. */
void prt_listeners_watch(struct prt_worker *w)
{
    for (int i = 0; i < w->px->n_listeners; i++) {
        struct prt_sock *s = &w->listeners[i];
        if (s->fd > 0 && s->ticket != PRT_NO_TICKET) {
            continue;
        }
        *s = (struct prt_sock){.fd = w->px->listener[i].fd, .ticket = PRT_NO_TICKET};
        if (!prt_io_add(&w->io, s, PRT_KIND_LISTENER, s, PRT_WANT_READ)) {
            prt_timer_set(&w->wheel, &w->accept_timer, w->now_us + PAUSE_US, watch_again);
        }
    }
}

void prt_listeners_unwatch(struct prt_worker *w)
{
    prt_timer_clear(&w->accept_timer);
    for (int i = 0; i < w->px->n_listeners; i++) {
        prt_io_del(&w->io, &w->listeners[i]);
    }
}

static void watch_again(struct prt_timer *t, int64_t now_us)
{
    struct prt_worker *w = prt_container_of(t, struct prt_worker, accept_timer);

    prt_assert_worker();
    if (!w->is_draining) {
        prt_listeners_watch(w);
    }
}

ON_WORKER static void out_of_descriptors(struct prt_worker *w, int fd)
{
    static struct prt_log_limit limit;
    int mine = atomic_exchange_explicit(&spare_fd, -1, memory_order_acq_rel);

    if (mine >= 0) {
        (void)close(mine);
        int extra = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
        if (extra >= 0) {
            (void)close(extra); /* turned away with an end of file instead of left hanging */
        }
        keep_spare();
    }
    prt_log_limited(&limit, PRT_LOG_ERROR, "out_of_descriptors",
                    prt_kv_z("hint", "raise the limit of open files (ulimit -n, LimitNOFILE)"));
    prt_listeners_unwatch(w);
    prt_timer_set(&w->wheel, &w->accept_timer, w->now_us + PAUSE_US, watch_again);
}

/* ---- accepting ---- */

struct handover {
    struct prt_mail mail;
    int fd;
    struct prt_peer peer;
};

static void deliver_fd(void *owner, struct prt_mail *mail)
{
    struct handover *h = prt_container_of(mail, struct handover, mail);

    prt_assert_worker();
    prt_client_new(owner, h->fd, &h->peer);
    free(h);
}

/* NULL: keep it. */
static struct prt_worker *better_worker(struct prt_worker *w)
{
    struct prt_proxy *px = w->px;
    struct prt_worker *least = NULL;
    uint32_t total = 0, fewest = UINT32_MAX;

    if (px->n_workers < 2) {
        return NULL;
    }
    for (unsigned i = 0; i < px->n_workers; i++) {
        /* relaxed: a number to balance by, a little off at worst */
        uint32_t n = atomic_load_explicit(&px->worker[i].n_clients, memory_order_relaxed);
        total += n;
        if (n < fewest) {
            fewest = n;
            least = &px->worker[i];
        }
    }
    uint32_t mine = atomic_load_explicit(&w->n_clients, memory_order_relaxed);
    uint32_t mean = total / px->n_workers;
    return least != w && mine > mean + mean / 8 + 1 ? least : NULL;
}

ON_WORKER static void place(struct prt_worker *w, int fd, const struct prt_peer *peer)
{
    struct prt_worker *to = better_worker(w);
    struct handover *h = to ? malloc(sizeof *h) : NULL;

    if (!h) {
        prt_client_new(w, fd, peer);
        return;
    }
    *h = (struct handover){.mail.deliver = deliver_fd, .fd = fd, .peer = *peer};
    prt_mailbox_post(&to->mail, &h->mail);
}

static struct prt_peer peer_of(const struct sockaddr_storage *from)
{
    struct prt_peer peer = {.family = from->ss_family};

    if (from->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)from;
        memcpy(peer.ip, &in->sin_addr, sizeof in->sin_addr);
        peer.port = ntohs(in->sin_port);
    } else if (from->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)from;
        memcpy(peer.ip, &in->sin6_addr, sizeof in->sin6_addr);
        peer.port = ntohs(in->sin6_port);
    }
    return peer;
}

struct prt_str prt_peer_text(const struct prt_peer *p, char buf[PRT_PEER_TEXT])
{
    char ip[INET6_ADDRSTRLEN] = "";
    int n;

    if (p->family != AF_INET && p->family != AF_INET6) {
        return PRT_STR("unix");
    }
    (void)inet_ntop(p->family, p->ip, ip, sizeof ip);
    n = snprintf(buf, PRT_PEER_TEXT, p->family == AF_INET ? "%s:%u" : "[%s]:%u", ip, p->port);
    return (struct prt_str){buf, n > 0 ? (size_t)n : 0};
}

void prt_listener_readable(struct prt_worker *w, struct prt_sock *s)
{
    struct prt_listener *l = &w->px->listener[s - w->listeners];

    for (int i = 0; i < ACCEPTS_PER_EVENT; i++) {
        struct sockaddr_storage from = {0};
        socklen_t from_n = sizeof from;
        int fd = accept4(l->fd, (struct sockaddr *)&from, &from_n, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
                out_of_descriptors(w, l->fd);
            }
            return;
        }
        if (!l->is_unix) {
            int one = 1;
            (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
        }
        prt_count(&w->n.accepted, 1);
        struct prt_peer peer = peer_of(&from);
        place(w, fd, &peer);
    }
}
