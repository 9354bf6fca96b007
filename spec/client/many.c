/* many.c - many clients at once, in one thread.
 *
 * many load CLIENTS SECONDS CONNINFO SQL   each sends SQL again and again for SECONDS
 * many idle CLIENTS ASKED CONNINFO         all log in ("held=N"), ASKED random ones send a query
 *                                          ("answered=N"), then all stay until a signal comes
 *
 * load prints: clients= total= min= mean= max= errors= (answers per client), for the spec that
 * started it. Status 2: not all could log in. */
#include "crowd.h"

struct load {
    const char *sql;
    int64_t end_us;
    uint64_t errors;
    char first[6]; /* SQLSTATE of the first error */
};

static void load_done(struct crowd *c, struct crowd_client *m)
{
    struct load *l = c->arg;

    if (m->sqlstate[0] && l->errors++ == 0) {
        memcpy(l->first, m->sqlstate, sizeof l->first);
    }
    if (m->state == CROWD_IDLE && prt_now_us() < l->end_us) {
        crowd_query(c, m, l->sql);
    }
}

static int busy_count(const struct crowd *c)
{
    int n = 0;

    for (int i = 0; i < c->n; i++) {
        n += c->client[i].state == CROWD_BUSY;
    }
    return n;
}

static void print_load(const struct crowd *c, const struct load *l)
{
    unsigned min = UINT32_MAX, max = 0;
    uint64_t total = 0;

    for (int i = 0; i < c->n; i++) {
        unsigned n = c->client[i].n_done;
        min = n < min ? n : min;
        max = n > max ? n : max;
        total += n;
    }
    printf("clients=%d total=%llu min=%u mean=%.1f max=%u errors=%llu unanswered=%d first=%s\n",
           c->n, (unsigned long long)total, min, (double)total / c->n, max,
           (unsigned long long)l->errors, busy_count(c), l->first[0] ? l->first : "-");
}

static int load(int clients, int seconds, const char *conninfo, const char *sql)
{
    struct crowd c;
    struct load l = {.sql = sql};

    crowd_init(&c, clients);
    crowd_connect(&c, conninfo, 60);
    c.on_done = load_done;
    c.arg = &l;
    l.end_us = prt_now_us() + seconds * 1000000LL;
    for (int i = 0; i < clients; i++) {
        crowd_query(&c, &c.client[i], sql);
    }
    while (busy_count(&c) && prt_now_us() < l.end_us + 30000000) {
        crowd_turn(&c, 100);
    }
    print_load(&c, &l);
    crowd_fini(&c);
    return 0;
}

static void choose(struct crowd *c, int wanted)
{
    for (int left = wanted; left > 0;) {
        struct crowd_client *m = &c->client[random() % c->n];
        left -= !m->is_chosen;
        m->is_chosen = true;
    }
}

static int idle(int clients, int asked, const char *conninfo)
{
    struct crowd c;
    int64_t end;
    int answered = 0;

    crowd_init(&c, clients);
    crowd_connect(&c, conninfo, 120);
    printf("held=%d\n", c.n_ready);
    choose(&c, asked);
    for (int i = 0; i < clients; i++) {
        if (c.client[i].is_chosen) {
            crowd_query(&c, &c.client[i], "select 1");
        }
    }
    end = prt_now_us() + 30000000;
    while (busy_count(&c) && prt_now_us() < end) {
        crowd_turn(&c, 100);
    }
    for (int i = 0; i < clients; i++) {
        answered += c.client[i].n_done == 1;
    }
    printf("answered=%d dead=%d\n", answered, c.n_dead);
    (void)pause();
    return 0;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    srandom((unsigned)prt_now_us());
    if (argc == 6 && strcmp(argv[1], "load") == 0) {
        return load(crowd_number(argv[2], 1, 100000), crowd_number(argv[3], 1, 3600), argv[4],
                    argv[5]);
    }
    if (argc == 5 && strcmp(argv[1], "idle") == 0) {
        int clients = crowd_number(argv[2], 1, 100000);
        return idle(clients, crowd_number(argv[3], 0, clients), argv[4]);
    }
    fprintf(stderr, "usage: many load CLIENTS SECONDS CONNINFO SQL | "
                    "many idle CLIENTS ASKED CONNINFO\n");
    return 1;
}
