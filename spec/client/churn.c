/* churn.c - opens and drops very many connections at random points.
 * usage: churn PORT DATABASE USER COUNT SEED [CONNINFO]
 * Owns: its connections.   Threads: one per lane, a few of them.
 * Idea: where a connection is dropped decides what must be given back: in the middle of the startup
 * packet, at once behind it, when logged in, in a query, in a transaction, by Terminate, FIN or
 * RST. With CONNINFO (of libpq: password, sslmode) each one logs in through libpq's non-blocking
 * calls and is dropped after a random number of them, so in the midst of TLS and SCRAM too. */
#include "wire.h"

#include <libpq-fe.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define LIMIT_US 30000000
#define LANES 8

static struct {
    int port;
    const char *db, *user, *info;
} cfg;
static _Atomic long left, hangs, logins, refused;

struct lane {
    struct wire w;
    unsigned seed;
    pthread_t thread;
};

static void count(_Atomic long *n)
{
    /* relaxed: read when the threads are joined */
    atomic_fetch_add_explicit(n, 1, memory_order_relaxed);
}

static unsigned pick(struct lane *l, unsigned n)
{
    return (unsigned)rand_r(&l->seed) % n;
}

static void drop(struct lane *l)
{
    wire_close(&l->w, pick(l, 2) ? WIRE_RST : WIRE_FIN);
}

/* Reads to ReadyForQuery. */
static bool answered(struct lane *l)
{
    struct wire_msg m;

    while (wire_next(&l->w, &m)) {
        if (m.type == 'Z') {
            return true;
        }
    }
    if (l->w.timed_out) {
        count(&hangs);
    }
    return false;
}

static void send_sql(struct lane *l, const char *sql)
{
    struct prt_buf b = {0};

    prt_put_query(&b, prt_str_of(sql));
    (void)wire_send_buf(&l->w, &b);
}

/* Logged in: goes away in one of the states of a session. */
static void leave_session(struct lane *l)
{
    struct prt_buf b = {0};

    switch (pick(l, 6)) {
    case 0:
        break;
    case 1:
        send_sql(l, "select 1");
        break;
    case 2:
        send_sql(l, "select 1");
        (void)answered(l);
        break;
    case 3:
        send_sql(l, "begin");
        (void)answered(l);
        break;
    case 4:
        (void)wire_send(&l->w, "Q\0\0\0\30sel", 8);
        break;
    default:
        prt_put_terminate(&b);
        (void)wire_send_buf(&l->w, &b);
        break;
    }
    drop(l);
}

static void by_hand(struct lane *l)
{
    struct prt_buf b = {0};
    struct wire_msg m;
    unsigned dice = pick(l, 8);

    if (!wire_open(&l->w, cfg.port, LIMIT_US)) {
        count(&refused);
        return;
    }
    wire_put_startup(&b, cfg.user, cfg.db, "churn");
    if (dice == 0) {
        (void)wire_send(&l->w, prt_buf_data(&b), pick(l, (unsigned)prt_buf_len(&b)));
        prt_buf_free(&b);
        drop(l);
        return;
    }
    (void)wire_send_buf(&l->w, &b);
    if (dice == 1) {
        drop(l);
        return;
    }
    if (!wire_login(&l->w, &m)) {
        count(l->w.timed_out ? &hangs : &refused);
        drop(l);
        return;
    }
    count(&logins);
    leave_session(l);
}

/* One step of a login; false: it is over. */
static bool poll_once(PGconn *pg, PostgresPollingStatusType *st)
{
    struct pollfd p = {.fd = PQsocket(pg),
                       .events = *st == PGRES_POLLING_READING ? POLLIN : POLLOUT};

    if (poll(&p, 1, (int)(LIMIT_US / 1000)) <= 0) {
        count(&hangs);
        return false;
    }
    *st = PQconnectPoll(pg);
    return *st == PGRES_POLLING_READING || *st == PGRES_POLLING_WRITING;
}

static void by_libpq(struct lane *l)
{
    PGconn *pg = PQconnectStart(cfg.info);
    PostgresPollingStatusType st = PGRES_POLLING_WRITING;
    unsigned steps = pick(l, 12);

    if (!pg || PQstatus(pg) == CONNECTION_BAD) {
        count(&refused);
        PQfinish(pg);
        return;
    }
    while (steps-- > 0 && poll_once(pg, &st)) {
    }
    if (st == PGRES_POLLING_OK) {
        count(&logins);
        if (pick(l, 2)) {
            PQclear(PQexec(pg, pick(l, 2) ? "select 1" : "begin"));
        }
    } else if (st == PGRES_POLLING_FAILED) {
        fprintf(stderr, "churn: %s", PQerrorMessage(pg));
        count(&refused);
    }
    PQfinish(pg);
}

static void *run(void *arg)
{
    struct lane *l = arg;

    /* relaxed: a count of work that nothing hangs on */
    while (atomic_fetch_sub_explicit(&left, 1, memory_order_relaxed) > 0) {
        if (cfg.info) {
            by_libpq(l);
        } else {
            by_hand(l);
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    static struct lane lane[LANES];

    if (argc != 6 && argc != 7) {
        fprintf(stderr, "usage: churn PORT DATABASE USER COUNT SEED [CONNINFO]\n");
        return 2;
    }
    cfg.port = (int)strtol(argv[1], NULL, 10);
    cfg.db = argv[2];
    cfg.user = argv[3];
    cfg.info = argc == 7 ? argv[6] : NULL;
    left = strtol(argv[4], NULL, 10);
    for (unsigned i = 0; i < LANES; i++) {
        lane[i].w.fd = -1;
        lane[i].seed = (unsigned)strtoul(argv[5], NULL, 10) + i * 7919;
        prt_assert(pthread_create(&lane[i].thread, NULL, run, &lane[i]) == 0);
    }
    for (unsigned i = 0; i < LANES; i++) {
        (void)pthread_join(lane[i].thread, NULL);
    }
    printf("logins=%ld refused=%ld hangs=%ld\n", logins, refused, hangs);
    return hangs || refused;
}
