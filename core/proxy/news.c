/* news.c - notifications on their way to a client that shares servers.
 * Owns: those that wait for the end of its transaction.   Threads: the client's worker.
 * Idea: a server never speaks of notifications inside a transaction, nor between the parts of an
 * answer; so what the listener connection hears meanwhile is kept, and sent in order afterwards. */
#include "proxy/proxy_int.h"

#include <stdlib.h>

void prt_client_drop_news(struct prt_client *c)
{
    if (c->news) {
        prt_buf_free(c->news);
        free(c->news);
        c->news = NULL;
    }
}

/* As a server does: never inside a transaction, nor between the parts of an answer. */
ON_WORKER static bool may_get_news(const struct prt_client *c)
{
    const struct prt_server *s = c->server;

    return c->state >= PRT_CLIENT_IDLE && c->state != PRT_CLIENT_GONE &&
           (!s || (prt_txn_may_release(&s->txn) && prt_server_is_settled(s)));
}

void prt_client_send_news(struct prt_client *c)
{
    if (c->news && may_get_news(c)) {
        struct prt_buf *news = c->news;
        c->news = NULL;
        prt_client_send_buf(c, news);
        free(news);
    }
}

void prt_client_notify(struct prt_client *c, const uint8_t *m, size_t n)
{
    if (!c->news && may_get_news(c)) {
        prt_client_send(c, m, n);
        return;
    }
    if (!c->news) {
        c->news = calloc(1, sizeof *c->news);
    }
    if (!c->news || !prt_buf_add(c->news, m, n)) {
        prt_client_no_memory(c); /* it must not believe that it heard everything */
    }
}

void prt_client_listening(struct prt_client *c, const struct prt_err *err)
{
    c->is_listening = false;
    c->cannot_listen = err->rc != POOLRT_OK;
    prt_client_resume(c);
}
