/* linger.c - the last bytes of a client that has left: they are still sent, if it takes them soon.
 * Owns: sockets without a client, each with what it could not take yet.   Threads: their worker.
 * Idea: closing a socket throws away what its peer was too slow to read: the end of a result, or
 * the sentence that says why the connection ends. So socket and bytes outlive the client, in a
 * struct of their own, until they are through or the time is up. */
#include "proxy/proxy_int.h"

#include <stdlib.h>
#include <string.h>

#define LINGER_US 5000000

struct prt_linger {
    struct prt_sock sock;
    struct prt_worker *worker;
    struct prt_link link; /* worker->lingers */
    struct prt_timer timer;
    struct prt_buf out;
};

ON_WORKER static void end(struct prt_linger *g)
{
    prt_timer_clear(&g->timer);
    prt_list_del(&g->link);
    prt_sock_close(&g->worker->io, &g->sock);
    prt_buf_free(&g->out);
    prt_worker_lost_client(g->worker);
    free(g);
}

static void time_up(struct prt_timer *t, int64_t now_us)
{
    prt_assert_worker();
    end(prt_container_of(t, struct prt_linger, timer));
}

bool prt_linger_begin(struct prt_worker *w, struct prt_sock *sock, struct prt_buf *out)
{
    struct prt_linger *g = prt_buf_len(out) && !w->is_ending ? calloc(1, sizeof *g) : NULL;

    if (!g) {
        return false;
    }
    prt_io_del(&w->io, sock);
    g->sock = *sock;
    g->out = *out;
    g->worker = w;
    prt_list_push(&w->lingers, &g->link);
    *sock = (struct prt_sock){.fd = -1, .ticket = PRT_NO_TICKET};
    *out = (struct prt_buf){0};
    if (!prt_io_add(&w->io, &g->sock, PRT_KIND_LINGER, g, PRT_WANT_WRITE)) {
        end(g);
        return true;
    }
    prt_timer_set(&w->wheel, &g->timer, w->now_us + LINGER_US, time_up);
    return true;
}

void prt_linger_writable(struct prt_linger *g)
{
    ssize_t r = prt_sock_send(&g->sock, prt_buf_data(&g->out), prt_buf_len(&g->out));

    if (r > 0) {
        prt_buf_eat(&g->out, (size_t)r);
    }
    if (prt_buf_len(&g->out) == 0 || (r < 0 && r != PRT_IO_AGAIN)) {
        end(g);
    }
}

void prt_linger_end_all(struct prt_worker *w)
{
    for (struct prt_link *l = w->lingers.next, *next; l != &w->lingers; l = next) {
        next = l->next;
        end(prt_container_of(l, struct prt_linger, link));
    }
}
