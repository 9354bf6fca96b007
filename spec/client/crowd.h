/* crowd.h - many libpq connections in one epoll set, for the load clients of the specs.
 * Owns: the connections.   Threads: one.
 * Idea: libpq knows every way to log in, so the clients say a conninfo and no more; one loop over
 * all sockets keeps a thousand of them cheap. Errors of a query are results; a lost connection is
 * a result with SQLSTATE "gone". */
#ifndef SPEC_CLIENT_CROWD_H
#define SPEC_CLIENT_CROWD_H
#include "base/base.h"

#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define CROWD_CONNECTING_MAX 100 /* at once: below the usual backlog of a listener */

/* NONE -> CONNECTING -> IDLE <-> BUSY, and from each of them to DEAD */
enum crowd_state { CROWD_NONE, CROWD_CONNECTING, CROWD_IDLE, CROWD_BUSY, CROWD_DEAD };

struct crowd_client {
    PGconn *conn;
    int fd; /* as registered; libpq may open another one while it connects */
    enum crowd_state state;
    int index;
    bool is_chosen;   /* for the program */
    unsigned n_done;  /* queries answered without an error */
    int64_t since_us; /* for the program */
    char sqlstate[6]; /* of the query that runs: empty while there is no error */
};
struct crowd {
    int ep;
    int n, n_connecting, n_ready, n_dead;
    struct crowd_client *client;
    /* a query of a client has ended; may be NULL */
    void (*on_done)(struct crowd *, struct crowd_client *);
    void *arg;
};

static void crowd_die(const char *what, const char *detail)
{
    fprintf(stderr, "%s: %s\n", what, detail);
    exit(2);
}

static void crowd_init(struct crowd *c, int n)
{
    *c = (struct crowd){.ep = epoll_create1(EPOLL_CLOEXEC), .n = n};
    c->client = calloc((size_t)n, sizeof *c->client);
    if (c->ep < 0 || !c->client) {
        crowd_die("crowd", "no memory or descriptor");
    }
    for (int i = 0; i < n; i++) {
        c->client[i].fd = -1;
        c->client[i].index = i;
    }
}

static void crowd_watch(struct crowd *c, struct crowd_client *m, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.ptr = m};
    int fd = PQsocket(m->conn);

    int op = fd == m->fd ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    m->fd = fd;
    if (epoll_ctl(c->ep, op, fd, &ev) != 0) {
        perror("epoll_ctl");
        exit(2);
    }
}

static void crowd_lose(struct crowd *c, struct crowd_client *m)
{
    if (m->state == CROWD_CONNECTING) {
        c->n_connecting--;
    }
    if (c->n_dead++ == 0) { /* one is enough to know why */
        fprintf(stderr, "client %d: %s", m->index, PQerrorMessage(m->conn));
    }
    m->state = CROWD_DEAD;
    (void)snprintf(m->sqlstate, sizeof m->sqlstate, "gone");
    PQfinish(m->conn);
    m->conn = NULL;
}

static void crowd_go_on_connecting(struct crowd *c, struct crowd_client *m)
{
    switch (PQconnectPoll(m->conn)) {
    case PGRES_POLLING_OK:
        m->state = CROWD_IDLE;
        c->n_connecting--;
        c->n_ready++;
        crowd_watch(c, m, EPOLLIN);
        break;
    case PGRES_POLLING_READING:
        crowd_watch(c, m, EPOLLIN);
        break;
    case PGRES_POLLING_WRITING:
        crowd_watch(c, m, EPOLLOUT);
        break;
    default:
        crowd_lose(c, m);
    }
}

static void crowd_start_one(struct crowd *c, struct crowd_client *m, const char *conninfo)
{
    m->conn = PQconnectStart(conninfo);
    if (!m->conn || PQstatus(m->conn) == CONNECTION_BAD) {
        crowd_die("connect", m->conn ? PQerrorMessage(m->conn) : "no memory");
    }
    m->state = CROWD_CONNECTING;
    c->n_connecting++;
    crowd_watch(c, m, EPOLLOUT);
}

static void crowd_query(struct crowd *c, struct crowd_client *m, const char *sql)
{
    m->sqlstate[0] = '\0';
    m->state = CROWD_BUSY;
    m->since_us = prt_now_us();
    if (!PQsendQuery(m->conn, sql)) {
        crowd_lose(c, m);
    }
}

/* true: the query is over */
static bool crowd_take_results(struct crowd *c, struct crowd_client *m)
{
    while (!PQisBusy(m->conn)) {
        PGresult *r = PQgetResult(m->conn);
        if (!r) {
            return true;
        }
        const char *state = PQresultErrorField(r, PG_DIAG_SQLSTATE);
        if (PQresultStatus(r) != PGRES_TUPLES_OK && PQresultStatus(r) != PGRES_COMMAND_OK) {
            (void)snprintf(m->sqlstate, sizeof m->sqlstate, "%s", state ? state : "?");
        }
        PQclear(r);
    }
    return false;
}

static void crowd_readable(struct crowd *c, struct crowd_client *m)
{
    if (!PQconsumeInput(m->conn) || PQstatus(m->conn) == CONNECTION_BAD) {
        bool was_busy = m->state == CROWD_BUSY;
        crowd_lose(c, m);
        if (was_busy && c->on_done) {
            c->on_done(c, m);
        }
        return;
    }
    if (m->state == CROWD_BUSY && crowd_take_results(c, m)) {
        m->state = CROWD_IDLE;
        m->n_done += m->sqlstate[0] == '\0';
        if (c->on_done) {
            c->on_done(c, m);
        }
    }
}

/* One turn of the loop. */
static void crowd_turn(struct crowd *c, int timeout_ms)
{
    struct epoll_event ev[256];
    int n = epoll_wait(c->ep, ev, 256, timeout_ms);

    for (int i = 0; i < n; i++) {
        struct crowd_client *m = ev[i].data.ptr;
        if (m->state == CROWD_CONNECTING) {
            crowd_go_on_connecting(c, m);
        } else if (m->state == CROWD_IDLE || m->state == CROWD_BUSY) {
            crowd_readable(c, m);
        }
    }
}

/* All logged in, or out with a message. */
static void crowd_connect(struct crowd *c, const char *conninfo, double seconds)
{
    int64_t end = prt_now_us() + (int64_t)(seconds * 1e6);
    int started = 0;

    while (c->n_ready < c->n) {
        while (started < c->n && c->n_connecting < CROWD_CONNECTING_MAX) {
            crowd_start_one(c, &c->client[started++], conninfo);
        }
        crowd_turn(c, 100);
        if (c->n_dead || prt_now_us() > end) {
            fprintf(stderr, "connect: %d of %d clients are logged in, %d failed\n", c->n_ready,
                    c->n, c->n_dead);
            exit(2);
        }
    }
}

static void crowd_fini(struct crowd *c)
{
    for (int i = 0; i < c->n; i++) {
        if (c->client[i].conn) {
            PQfinish(c->client[i].conn);
        }
    }
    free(c->client);
    (void)close(c->ep);
}

/* A number from the command line, within bounds. */
static int crowd_number(const char *text, int min, int max)
{
    char *end = NULL;
    long n = strtol(text, &end, 10);

    if (end == text || *end || n < min || n > max) {
        crowd_die("not a fitting number", text);
    }
    return (int)n;
}
#endif
