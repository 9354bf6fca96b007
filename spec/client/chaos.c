/* chaos.c - clients that ask for their own random token while everything around them breaks.
 * usage: chaos PORT DIRECT_PORT DATABASE USER,USER SECONDS MODE CLIENTS SEED [POOL]
 * POOL: what clients ask poolrt for, when it is not DATABASE.
 * Owns: the threads.   Threads: one per client, one that terminates backends.
 * Idea: every answer must carry the token of the very request that it answers. So a row that comes
 * to the wrong client, or to the right one too late, is seen, whatever mixed it up. Clients leave
 * at random by RST or FIN in any state; what they left unfinished must never be committed: it goes
 * to the table chaos_half, which must be empty in the end. The last line of output holds the
 * counts. */
#include "wire.h"

#include <libpq-fe.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define LIMIT_US 30000000 /* an answer that takes longer counts as a hang */
#define TOKEN 24
#define SESSION 15 /* bytes of a token that all of one session have */
#define MAX_ROWS 6000
#define MAX_CLIENTS 256

static struct {
    int port, direct;
    const char *db, *pool, *mode;
    const char *user[8];
    unsigned users;
    int64_t end_us;
} cfg;

static struct {
    _Atomic uint64_t foreign, truncated, odd, hangs, answers, rows, drops, cut, refused, kills,
        logins, cancels;
} sum;
static _Atomic bool killer_ends;

struct client {
    struct wire w;
    unsigned number, seed;
    char token[TOKEN + 1];
    unsigned serial;
    uint32_t salt;      /* of this session: the tokens of each begin differently */
    bool has_cancelled; /* a late cancel of its own may still reach it */
};
/* One request's answer, as it should be. */
struct expect {
    const char *token;
    unsigned rows;   /* exactly */
    char error[6];   /* an error that is asked for; empty: none */
    bool is_any_own; /* the token of any request of this session, or no row but `error` */
};

static void count(_Atomic uint64_t *n)
{
    /* relaxed: read when the threads are joined */
    atomic_fetch_add_explicit(n, 1, memory_order_relaxed);
}

static unsigned pick(struct client *c, unsigned n)
{
    return (unsigned)rand_r(&c->seed) % n;
}

static void say(const char *what, const struct client *c, struct prt_str got)
{
    static _Atomic int said;

    if (atomic_fetch_add_explicit(&said, 1, memory_order_relaxed) < 20) {
        printf("%s: client %u, its token %s, got \"" PRT_STR_FMT "\"\n", what, c->number, c->token,
               PRT_STR_ARG(got));
    }
}

static void new_token(struct client *c)
{
    (void)snprintf(c->token, sizeof c->token, "t%06x%08x%08xz", c->number, c->salt, c->serial++);
}

static bool has_token(struct prt_str s, const struct expect *e)
{
    return s.n >= TOKEN && memcmp(s.p, e->token, e->is_any_own ? SESSION : TOKEN) == 0;
}

static void drop(struct client *c)
{
    count(&sum.drops);
    wire_close(&c->w, pick(c, 2) ? WIRE_RST : WIRE_FIN);
}

/* ---- answers ---- */

static bool is_of_the_chaos(const struct client *c, const char *state)
{
    /* terminated, shutting down, connection lost or refused, no room */
    static const char *const known[] = {"57P01", "57P02", "57P03", "08006", "08001", "53300"};

    for (unsigned i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(state, known[i]) == 0) {
            return true;
        }
    }
    return c->has_cancelled && strcmp(state, "57014") == 0;
}

static void notice(const struct wire_msg *m, struct prt_notice *n, char state[6])
{
    struct prt_msg pm = {.type = m->type, .len = m->n, .body = m->body, .have = m->n};

    prt_notice_read(&pm, n);
    if (!prt_str_copy(state, 6, n->sqlstate)) {
        state[0] = '\0';
    }
}

/* false: the session is over. */
static bool take_error(struct client *c, const struct wire_msg *m, const struct expect *e,
                       bool *failed)
{
    struct prt_notice n;
    char state[6];

    notice(m, &n, state);
    *failed = true;
    if (e->error[0] && strcmp(state, e->error) == 0) {
        if (!e->is_any_own && !memmem(n.message.p, n.message.n, e->token, TOKEN)) {
            say("foreign error", c, n.message);
            count(&sum.foreign);
        }
    } else if (is_of_the_chaos(c, state)) {
        count(&sum.refused);
    } else {
        say(state, c, n.message);
        count(&sum.odd);
    }
    return !prt_str_eqz(n.severity, "FATAL");
}

static void take_row(struct client *c, const struct wire_msg *m, const struct expect *e)
{
    struct prt_str v = {(const char *)m->body, m->n};

    if (m->type == 'D' && m->n >= 6) {
        v = (struct prt_str){v.p + 6, v.n - 6};
    }
    if (!has_token(v, e)) {
        say("foreign row", c, v);
        count(&sum.foreign);
    }
    count(&sum.rows);
}

static void lost(struct client *c)
{
    if (c->w.timed_out) {
        say("no answer", c, PRT_STR(""));
        count(&sum.hangs);
    }
    count(&sum.cut);
    wire_close(&c->w, WIRE_FIN);
}

/* The answers of n requests, each with an expectation, that end with one ReadyForQuery. A request
 * is answered whole when its CommandComplete has come. */
static bool answers(struct client *c, const struct expect *e, unsigned n)
{
    unsigned at = 0, rows = 0;
    bool failed = false;
    struct wire_msg m;

    while (wire_next(&c->w, &m)) {
        const struct expect *now = &e[at < n ? at : n - 1];
        if (m.type == 'D' || m.type == 'd') {
            rows++;
            take_row(c, &m, now);
        } else if (m.type == 'C') {
            if (at >= n || rows != now->rows || failed) {
                say("wrong number of rows", c, prt_str_of((const char *)m.body));
                count(&sum.truncated);
            }
            count(&sum.answers);
            at++, rows = 0;
        } else if (m.type == 'E') {
            if (!take_error(c, &m, now, &failed)) {
                lost(c);
                return false;
            }
        } else if (m.type == 'Z') {
            if (at < n && !failed) {
                say("not all was answered", c, PRT_STR(""));
                count(&sum.truncated);
            }
            return true;
        }
    }
    lost(c);
    return false;
}

/* ---- requests ---- */

static void put_sql(struct prt_buf *b, const char *sql)
{
    prt_put_query(b, prt_str_of(sql));
}

static void put_batch(struct prt_buf *b, const char *sql)
{
    prt_put_parse(b, prt_str_of(sql));
    wire_put(b, 'B', "\0\0\0\0\0\0\0", 8);
    wire_put(b, 'D', "P", 2);
    wire_put(b, 'E', "\0\0\0\0", 5);
}

static const char *select_own(struct client *c, char *sql, size_t cap, unsigned rows)
{
    new_token(c);
    if (rows == 1) {
        (void)snprintf(sql, cap, "select '%s'", c->token);
    } else {
        (void)snprintf(sql, cap,
                       "select '%s' || repeat('x', g %% 200) from generate_series(1,%u) g",
                       c->token, rows);
    }
    return sql;
}

/* Sends what is built; now and then it goes away before the answer, or in the midst of sending. */
static bool put_through(struct client *c, struct prt_buf *b)
{
    unsigned dice = pick(c, 40);

    if (dice == 0) {
        (void)wire_send(&c->w, prt_buf_data(b), pick(c, (unsigned)prt_buf_len(b)));
        prt_buf_free(b);
        drop(c);
        return false;
    }
    bool ok = wire_send_buf(&c->w, b);
    if (dice == 1) {
        drop(c);
        return false;
    }
    if (dice == 2 && ok) {
        (void)wire_fill(&c->w); /* leaves in the middle of its answer */
        drop(c);
        return false;
    }
    return true; /* a failed send is seen by the reader */
}

static bool do_simple(struct client *c)
{
    struct expect e = {.token = c->token, .rows = pick(c, 4) ? 1 : 1 + pick(c, MAX_ROWS)};
    struct prt_buf b = {0};
    char sql[160];

    put_sql(&b, select_own(c, sql, sizeof sql, e.rows));
    return put_through(c, &b) && answers(c, &e, 1);
}

static bool do_extended(struct client *c)
{
    struct expect e = {.token = c->token, .rows = pick(c, 4) ? 1 : 1 + pick(c, MAX_ROWS)};
    struct prt_buf b = {0};
    char sql[160];

    put_batch(&b, select_own(c, sql, sizeof sql, e.rows));
    prt_put_sync(&b);
    return put_through(c, &b) && answers(c, &e, 1);
}

static void put_unnamed(struct prt_buf *b)
{
    wire_put(b, 'B', "\0\0\0\0\0\0\0", 8);
    wire_put(b, 'E', "\0\0\0\0", 5);
    prt_put_sync(b);
}

/* The answer of an unnamed statement that was parsed in an earlier batch, or never: one of its own
 * or none, never that of another session. */
static bool read_unnamed(struct client *c)
{
    struct expect e = {.token = c->token, .error = "26000", .is_any_own = true};
    struct wire_msg m;
    bool failed = false;

    while (wire_next(&c->w, &m)) {
        if (m.type == 'D') {
            take_row(c, &m, &e);
        } else if (m.type == 'E' && !take_error(c, &m, &e, &failed)) {
            break;
        } else if (m.type == 'Z') {
            return true;
        }
    }
    lost(c);
    return false;
}

static bool do_unnamed(struct client *c)
{
    struct prt_buf b = {0};

    new_token(c);
    put_unnamed(&b);
    return put_through(c, &b) && read_unnamed(c);
}

/* A Parse, Query or Bind that ends too early is refused before it touches the unnamed statement;
 * the one that is there then, at the latest, is another's. */
static bool do_malformed(struct client *c)
{
    static const char type[] = "PQB";
    struct expect e = {.token = c->token, .error = "08P01", .is_any_own = true};
    uint8_t what = (uint8_t)type[pick(c, 3)];
    struct prt_buf b = {0};

    new_token(c);
    if (what == 'P') {
        wire_put(&b, what, "\0select 1", 9);
    } else {
        wire_put(&b, what, "select 1", 8);
    }
    if (what != 'Q') {
        prt_put_sync(&b);
    }
    put_unnamed(&b);
    return put_through(c, &b) && answers(c, &e, 1) && read_unnamed(c);
}

static bool do_pipeline(struct client *c)
{
    enum { MOST = 12 };
    char sql[160], token[MOST][TOKEN + 1];
    unsigned n = 2 + pick(c, MOST - 1);
    struct expect e[MOST] = {{0}};
    struct prt_buf b = {0};

    for (unsigned i = 0; i < n; i++) {
        unsigned rows = pick(c, 5) ? 1 : 1 + pick(c, 300);
        put_batch(&b, select_own(c, sql, sizeof sql, rows));
        memcpy(token[i], c->token, sizeof token[i]);
        e[i] = (struct expect){.token = token[i], .rows = rows};
    }
    prt_put_sync(&b);
    return put_through(c, &b) && answers(c, e, n);
}

static bool do_error(struct client *c)
{
    struct expect e = {.token = c->token, .error = "22P02"};
    struct prt_buf b = {0};
    char sql[160];

    new_token(c);
    (void)snprintf(sql, sizeof sql, "select '%s'::int", c->token);
    if (pick(c, 2)) {
        put_sql(&b, sql);
    } else {
        put_batch(&b, sql);
        prt_put_sync(&b);
    }
    return put_through(c, &b) && answers(c, &e, 1);
}

static bool command(struct client *c, const char *sql)
{
    struct expect e = {.token = c->token};
    struct prt_buf b = {0};

    put_sql(&b, sql);
    return put_through(c, &b) && answers(c, &e, 1);
}

/* A setting that follows the client to whatever server it gets. */
static bool do_setting(struct client *c)
{
    struct expect e = {.token = c->token, .rows = 1};
    struct prt_buf b = {0};
    char sql[160];

    new_token(c);
    (void)snprintf(sql, sizeof sql, "set application_name to '%s'", c->token);
    if (!command(c, sql)) {
        return false;
    }
    put_sql(&b, "show application_name");
    return put_through(c, &b) && answers(c, &e, 1);
}

static bool do_transaction(struct client *c)
{
    char sql[160];

    if (strcmp(cfg.mode, "statement") == 0) {
        return do_simple(c);
    }
    if (!command(c, "begin")) {
        return false;
    }
    for (unsigned i = pick(c, 4); i > 0; i--) {
        if (!(pick(c, 2) ? do_simple(c) : do_extended(c))) {
            return false;
        }
    }
    if (pick(c, 6) == 0) {
        (void)snprintf(sql, sizeof sql, "insert into chaos_half values ('%s')", c->token);
        if (command(c, sql)) {
            drop(c);
        }
        return false;
    }
    return command(c, pick(c, 3) ? "commit" : "rollback");
}

static bool do_copy_out(struct client *c)
{
    struct expect e = {.token = c->token, .rows = 1 + pick(c, MAX_ROWS)};
    struct prt_buf b = {0};
    char sql[240], inner[160];

    (void)snprintf(sql, sizeof sql, "copy (%s) to stdout",
                   select_own(c, inner, sizeof inner, e.rows == 1 ? 2 : e.rows));
    e.rows = e.rows == 1 ? 2 : e.rows;
    if (pick(c, 2)) {
        put_sql(&b, sql);
    } else {
        put_batch(&b, sql);
        prt_put_sync(&b);
    }
    return put_through(c, &b) && answers(c, &e, 1);
}

static void put_lines(struct client *c, struct prt_buf *b, unsigned n)
{
    char line[64];

    for (unsigned i = 0; i < n; i++) {
        int len = snprintf(line, sizeof line, "%s\n", c->token);
        wire_put(b, 'd', line, (size_t)len);
    }
}

/* false: the COPY did not begin, or the session is over. */
static bool begin_copy(struct client *c, const char *table)
{
    struct prt_buf b = {0};
    char sql[80];
    struct expect e = {.token = c->token};
    struct wire_msg m;
    bool failed = false;

    (void)snprintf(sql, sizeof sql, "copy %s from stdin", table);
    put_sql(&b, sql);
    if (!put_through(c, &b)) {
        return false;
    }
    while (wire_next(&c->w, &m)) {
        if (m.type == 'G') {
            return true;
        }
        if (m.type == 'Z') {
            return false;
        }
        if (m.type == 'E' && !take_error(c, &m, &e, &failed)) {
            break;
        }
    }
    lost(c);
    return false;
}

static bool do_copy_in(struct client *c)
{
    struct expect e = {.token = c->token};
    unsigned lines = 1 + pick(c, 400);
    struct prt_buf b = {0};

    new_token(c);
    if (pick(c, 4) == 0) { /* begins, and goes away in its midst */
        if (begin_copy(c, "chaos_half")) {
            put_lines(c, &b, lines);
            (void)wire_send(&c->w, prt_buf_data(&b), prt_buf_len(&b) - pick(c, 2) * pick(c, TOKEN));
            prt_buf_free(&b);
            drop(c);
        }
        return c->w.fd >= 0;
    }
    if (!begin_copy(c, "chaos_copy")) {
        return c->w.fd >= 0;
    }
    put_lines(c, &b, lines);
    wire_put(&b, 'c', NULL, 0);
    return put_through(c, &b) && answers(c, &e, 1);
}

/* Part of a batch without its Sync, then gone. Whatever follows, it was never committed. */
static bool do_half_batch(struct client *c)
{
    struct prt_buf b = {0};
    char sql[160];

    new_token(c);
    (void)snprintf(sql, sizeof sql, "insert into chaos_half values ('%s')", c->token);
    put_batch(&b, sql);
    if (pick(c, 2)) {
        put_batch(&b, pick(c, 2) ? "select 1" : "select 1/0");
    }
    if (pick(c, 2)) {
        wire_put(&b, 'H', NULL, 0);
    }
    size_t n = prt_buf_len(&b);
    if (pick(c, 3) == 0) { /* and a piece of the Sync */
        prt_put_sync(&b);
        n += 1 + pick(c, 4);
    }
    (void)wire_send(&c->w, prt_buf_data(&b), n);
    prt_buf_free(&b);
    if (pick(c, 2)) {
        (void)wire_fill(&c->w);
    }
    drop(c);
    return false;
}

/* A long message that is never completed. */
static bool do_half_message(struct client *c)
{
    unsigned n = 20000 + pick(c, 60000);
    char *sql = calloc(1, n + 1);
    struct prt_buf b = {0};

    new_token(c);
    prt_assert(sql != NULL);
    memset(sql, ' ', n);
    int head = snprintf(sql, n, "insert into chaos_half values ('%s')", c->token);
    sql[head] = ' ';
    put_sql(&b, sql);
    free(sql);
    (void)wire_send(&c->w, prt_buf_data(&b), prt_buf_len(&b) - 1 - pick(c, n / 2));
    prt_buf_free(&b);
    drop(c);
    return false;
}

/* Cancels its own query from a second connection. */
static bool do_cancel(struct client *c)
{
    static _Thread_local struct wire other;
    struct expect e = {.token = c->token, .rows = 1};
    struct prt_buf b = {0};
    uint8_t request[16];
    char sql[160];

    new_token(c);
    (void)snprintf(sql, sizeof sql, "select '%s' from pg_sleep(0.05)", c->token);
    put_sql(&b, sql);
    c->has_cancelled = true;
    if (!put_through(c, &b)) {
        return false;
    }
    prt_put32(request, 16);
    prt_put32(request + 4, 80877102);
    memcpy(request + 8, &c->w.key, 8);
    if (wire_open(&other, cfg.port, LIMIT_US)) {
        count(&sum.cancels);
        (void)wire_send(&other, request, 16);
        wire_close(&other, pick(c, 4) ? WIRE_FIN : WIRE_RST);
    }
    return answers(c, &e, 1);
}

static bool log_in(struct client *c)
{
    struct prt_buf b = {0};
    struct wire_msg m;
    struct expect e = {.token = c->token};
    bool failed = false;

    c->has_cancelled = false;
    prt_random(&c->salt, sizeof c->salt);
    if (!wire_open(&c->w, cfg.port, LIMIT_US)) {
        return false;
    }
    char app[16];
    (void)snprintf(app, sizeof app, "app%u", pick(c, 4));
    wire_put_startup(&b, cfg.user[pick(c, cfg.users)], cfg.pool, app);
    unsigned dice = pick(c, 30);
    if (dice == 0) {
        (void)wire_send(&c->w, prt_buf_data(&b), pick(c, (unsigned)prt_buf_len(&b)));
        prt_buf_free(&b);
        drop(c);
        return false;
    }
    (void)wire_send_buf(&c->w, &b);
    if (dice == 1) {
        drop(c);
        return false;
    }
    if (!wire_login(&c->w, &m)) {
        if (m.type == 'E') {
            (void)take_error(c, &m, &e, &failed);
        }
        lost(c);
        return false;
    }
    count(&sum.logins);
    return true;
}

static void *run_client(void *arg)
{
    static bool (*const todo[])(struct client *) = {
        do_simple,  do_simple,      do_extended,     do_extended, do_pipeline,    do_error,
        do_setting, do_transaction, do_copy_out,     do_copy_in,  do_malformed,   do_unnamed,
        do_unnamed, do_half_batch,  do_half_message, do_cancel,   do_transaction,
    };
    struct client *c = arg;

    while (prt_now_us() < cfg.end_us) {
        if (c->w.fd < 0 && !log_in(c)) {
            continue;
        }
        (void)todo[pick(c, sizeof todo / sizeof todo[0])](c);
        if (c->w.fd >= 0 && pick(c, 60) == 0) {
            struct prt_buf b = {0};
            prt_put_terminate(&b);
            (void)wire_send_buf(&c->w, &b);
            wire_close(&c->w, WIRE_FIN);
        }
    }
    wire_close(&c->w, WIRE_FIN);
    return NULL;
}

/* ---- the direct side ---- */

static PGconn *direct(void)
{
    char info[200];

    (void)snprintf(info, sizeof info, "host=127.0.0.1 port=%d user=postgres dbname=%s", cfg.direct,
                   cfg.db);
    PGconn *pg = PQconnectdb(info);
    if (PQstatus(pg) != CONNECTION_OK) {
        fprintf(stderr, "chaos: %s", PQerrorMessage(pg));
        exit(2);
    }
    return pg;
}

/* First value of a query's result as a number; -1: none. */
static long ask(PGconn *pg, const char *sql)
{
    PGresult *r = PQexec(pg, sql);
    bool has = PQresultStatus(r) == PGRES_TUPLES_OK && PQntuples(r) > 0;
    long n = has ? strtol(PQgetvalue(r, 0, 0), NULL, 10) : -1;

    if (PQresultStatus(r) != PGRES_TUPLES_OK && PQresultStatus(r) != PGRES_COMMAND_OK) {
        fprintf(stderr, "chaos: %s", PQerrorMessage(pg));
    }
    PQclear(r);
    return n;
}

#define OTHERS                                                                                     \
    "from pg_stat_activity where datname = current_database() and usename <> current_user and "    \
    "backend_type = 'client backend'"

static void *run_killer(void *arg)
{
    PGconn *pg = direct();

    /* relaxed: only a flag */
    while (!atomic_load_explicit(&killer_ends, memory_order_relaxed)) {
        if (ask(pg, "select pg_terminate_backend(pid)::int " OTHERS " order by random() limit 1") !=
            -1) {
            count(&sum.kills);
        }
        (void)ask(pg, "select pg_sleep(random() * 0.1)");
    }
    PQfinish(pg);
    return NULL;
}

/* Waits until nothing runs any more for clients that have gone; false: something does. */
static bool is_quiet(PGconn *pg)
{
    int64_t until = prt_now_us() + LIMIT_US;

    while (ask(pg, "select count(*) " OTHERS " and state <> 'idle'") != 0) {
        if (prt_now_us() > until) {
            return false;
        }
        (void)ask(pg, "select pg_sleep(0.02)");
    }
    return true;
}

static void set_up(PGconn *pg)
{
    (void)ask(pg, "set client_min_messages = error");
    (void)ask(pg, "drop table if exists chaos_half, chaos_copy");
    (void)ask(pg, "create table chaos_half (token text)");
    (void)ask(pg, "create unlogged table chaos_copy (token text)");
    (void)ask(pg, "grant all on chaos_half, chaos_copy to public");
}

static void run(unsigned clients, unsigned seed)
{
    static struct client *client[MAX_CLIENTS];
    pthread_t killer, thread[MAX_CLIENTS];

    for (unsigned i = 0; i < clients; i++) {
        client[i] = calloc(1, sizeof *client[i]);
        prt_assert(client[i] != NULL);
        client[i]->w.fd = -1;
        client[i]->number = i + 1;
        client[i]->seed = seed + i * 7919;
        prt_assert(pthread_create(&thread[i], NULL, run_client, client[i]) == 0);
    }
    prt_assert(pthread_create(&killer, NULL, run_killer, NULL) == 0);
    for (unsigned i = 0; i < clients; i++) {
        (void)pthread_join(thread[i], NULL);
        free(client[i]);
    }
    /* relaxed: only a flag */
    atomic_store_explicit(&killer_ends, true, memory_order_relaxed);
    (void)pthread_join(killer, NULL);
}

static int report(PGconn *pg)
{
    bool quiet = is_quiet(pg);
    long committed = ask(pg, "select count(*) from chaos_half");

    (void)ask(pg, "drop table chaos_half, chaos_copy");
    printf("foreign=%lu truncated=%lu committed=%ld odd=%lu hangs=%lu busy=%d answers=%lu rows=%lu "
           "logins=%lu drops=%lu cut=%lu refused=%lu kills=%lu cancels=%lu\n",
           (unsigned long)sum.foreign, (unsigned long)sum.truncated, committed,
           (unsigned long)sum.odd, (unsigned long)sum.hangs, !quiet, (unsigned long)sum.answers,
           (unsigned long)sum.rows, (unsigned long)sum.logins, (unsigned long)sum.drops,
           (unsigned long)sum.cut, (unsigned long)sum.refused, (unsigned long)sum.kills,
           (unsigned long)sum.cancels);
    return sum.foreign || sum.truncated || committed || sum.odd || sum.hangs || !quiet;
}

int main(int argc, char **argv)
{
    if (argc != 9 && argc != 10) {
        fprintf(
            stderr,
            "usage: chaos PORT DIRECT_PORT DATABASE USER,USER SECONDS MODE CLIENTS SEED [POOL]\n");
        return 2;
    }
    unsigned clients = (unsigned)strtoul(argv[7], NULL, 10);
    cfg.port = (int)strtol(argv[1], NULL, 10);
    cfg.direct = (int)strtol(argv[2], NULL, 10);
    cfg.db = argv[3];
    cfg.pool = argc == 10 ? argv[9] : cfg.db;
    char *save = NULL;
    for (char *u = strtok_r(argv[4], ",", &save); u && cfg.users < 8;
         u = strtok_r(NULL, ",", &save)) {
        cfg.user[cfg.users++] = u;
    }
    cfg.mode = argv[6];
    if (clients == 0 || clients > MAX_CLIENTS || cfg.users == 0) {
        fprintf(stderr, "chaos: 1 to %d clients, and at least one user\n", MAX_CLIENTS);
        return 2;
    }
    PGconn *pg = direct();
    set_up(pg);
    cfg.end_us = prt_now_us() + strtol(argv[5], NULL, 10) * 1000000;
    run(clients, (unsigned)strtoul(argv[8], NULL, 10));
    int rc = report(pg);
    PQfinish(pg);
    return rc;
}
