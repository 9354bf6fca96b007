/* cancels.c - are exactly those clients cancelled that ask for it?
 *
 * cancels CLIENTS CHOSEN RUNNING CONNINFO DIRECT
 *
 * CLIENTS connections send pg_sleep; when RUNNING of them are seen at work over DIRECT (a
 * connection to the server itself), CHOSEN random ones are cancelled, as psql does on ^C, all of
 * them at one instant. With
 * RUNNING below CLIENTS the others wait in the pool's queue, and are cancelled there. Then the
 * program watches for a second who else got an answer.
 *
 * Prints chosen= cancelled= (57014 and chosen) foreign= (an answer, not chosen) other= (another
 * answer, chosen) slowest_ms= (from that instant to the last 57014). */
#include "crowd.h"

#include <pthread.h>

#define SLEEP "select pg_sleep(120) /* cancels %d */"
#define LOOK "select count(*) from pg_stat_activity where state = 'active' and query = '" SLEEP "'"
#define PATIENCE_US 60000000

struct verdict {
    int cancelled, foreign, other;
    int64_t slowest_us;
};

static void on_done(struct crowd *c, struct crowd_client *m)
{
    struct verdict *v = c->arg;
    int64_t took = prt_now_us() - m->since_us;

    if (!m->is_chosen) {
        v->foreign++;
        fprintf(stderr, "client %d was not to be cancelled, got %s\n", m->index, m->sqlstate);
    } else if (strcmp(m->sqlstate, "57014") != 0) {
        v->other++;
        fprintf(stderr, "client %d got %s\n", m->index, m->sqlstate);
    } else {
        v->cancelled++;
        v->slowest_us = took > v->slowest_us ? took : v->slowest_us;
    }
}

static int running(PGconn *direct)
{
    char sql[256];

    (void)snprintf(sql, sizeof sql, LOOK, (int)getpid());
    PGresult *r = PQexec(direct, sql);

    if (PQresultStatus(r) != PGRES_TUPLES_OK) {
        crowd_die("direct connection", PQerrorMessage(direct));
    }
    int n = crowd_number(PQgetvalue(r, 0, 0), 0, 1000000);
    PQclear(r);
    return n;
}

static void wait_until_running(struct crowd *c, PGconn *direct, int wanted)
{
    int64_t end = prt_now_us() + PATIENCE_US;
    int n;

    while ((n = running(direct)) < wanted) {
        if (prt_now_us() > end) {
            fprintf(stderr, "%d of %d run\n", n, wanted);
            exit(2);
        }
        crowd_turn(c, 20);
    }
}

/* ---- the volley ---- */

static struct prt_volley {
    pthread_mutex_t mu;
    pthread_cond_t go;
    bool is_on;
    _Atomic int n_ready, n_sent;
} volley = {.mu = PTHREAD_MUTEX_INITIALIZER, .go = PTHREAD_COND_INITIALIZER};

static void *cancel_one(void *arg)
{
    char why[256];
    PGcancel *cancel = arg;

    (void)pthread_mutex_lock(&volley.mu);
    volley.n_ready++;
    while (!volley.is_on) {
        (void)pthread_cond_wait(&volley.go, &volley.mu);
    }
    (void)pthread_mutex_unlock(&volley.mu);
    if (!PQcancel(cancel, why, sizeof why)) {
        crowd_die("cancel", why);
    }
    volley.n_sent++;
    PQfreeCancel(cancel);
    return NULL;
}

/* A thread of its own for each request, since PQcancel() waits for the server's end of file. */
static void start_request(struct crowd_client *m)
{
    PGcancel *cancel = PQgetCancel(m->conn);
    pthread_attr_t attr;
    pthread_t thread;

    if (!cancel || pthread_attr_init(&attr) || pthread_attr_setstacksize(&attr, 65536) ||
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED) ||
        pthread_create(&thread, &attr, cancel_one, cancel)) {
        crowd_die("cancel", cancel ? "no thread" : "no key");
    }
    (void)pthread_attr_destroy(&attr);
    m->is_chosen = true;
}

static void choose_and_cancel(struct crowd *c, int wanted)
{
    for (int left = wanted; left > 0;) {
        struct crowd_client *m = &c->client[random() % c->n];
        if (!m->is_chosen) {
            start_request(m);
            left--;
        }
    }
    while (volley.n_ready < wanted) {
        crowd_turn(c, 1);
    }
    int64_t now = prt_now_us();
    for (int i = 0; i < c->n; i++) {
        c->client[i].since_us = now;
    }
    (void)pthread_mutex_lock(&volley.mu);
    volley.is_on = true;
    (void)pthread_cond_broadcast(&volley.go);
    (void)pthread_mutex_unlock(&volley.mu);
}

static void watch(struct crowd *c, int chosen)
{
    const struct verdict *v = c->arg;
    int64_t end = prt_now_us() + 10000000;

    while ((v->cancelled + v->other < chosen || volley.n_sent < chosen) && prt_now_us() < end) {
        crowd_turn(c, 20);
    }
    end = prt_now_us() + 1000000;
    while (prt_now_us() < end) {
        crowd_turn(c, 20);
    }
}

static int run(int clients, int chosen, int n_running, const char *conninfo, const char *to_server)
{
    struct crowd c;
    struct verdict v = {0};
    char sql[64];
    PGconn *direct = PQconnectdb(to_server);

    crowd_init(&c, clients);
    crowd_connect(&c, conninfo, 60);
    c.on_done = on_done;
    c.arg = &v;
    (void)snprintf(sql, sizeof sql, SLEEP, (int)getpid());
    for (int i = 0; i < clients; i++) {
        crowd_query(&c, &c.client[i], sql);
    }
    wait_until_running(&c, direct, n_running);
    choose_and_cancel(&c, chosen);
    watch(&c, chosen);
    printf("chosen=%d cancelled=%d foreign=%d other=%d slowest_ms=%lld running=%d\n", chosen,
           v.cancelled, v.foreign, v.other, (long long)(v.slowest_us / 1000), running(direct));
    PQfinish(direct);
    crowd_fini(&c); /* the others leave in the middle of their query */
    return 0;
}

int main(int argc, char **argv)
{
    srandom((unsigned)prt_now_us());
    if (argc != 6) {
        fprintf(stderr, "usage: cancels CLIENTS CHOSEN RUNNING CONNINFO DIRECT\n");
        return 1;
    }
    int clients = crowd_number(argv[1], 1, 100000);
    return run(clients, crowd_number(argv[2], 0, clients), crowd_number(argv[3], 0, clients),
               argv[4], argv[5]);
}
