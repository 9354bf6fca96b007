/* pg_stmt_test.c - prepared statements of clients that share servers. What a client sees must be
 * what a connection of its own shows, byte for byte: random pipelines of two clients over two
 * servers (pg_sim.h) are compared with that, clients leave in the middle, and the scenarios of
 * spec/vectors/pooled.jsonl are run. POOLRT_SEED=n repeats a run, POOLRT_RUNS=n makes more. */
#include "pg/stmt_int.h"
#include "pg_sim.h"
#include "test.h"

#include <time.h>

#define CLIENTS 2
#define SERVERS 2

struct server;
struct client {
    struct prt_names *names;
    const struct prt_params *params;
    struct prt_buf in, seen; /* what it has sent and is not handled yet; what it got */
    struct prt_buf all;      /* all that it sent, for the direct connection */
    struct prt_frame frame;
    struct server *server;
    uint32_t number;
    bool is_held, drops;
};
struct server {
    struct prt_txn txn;
    struct prt_stmts stmts;
    struct prt_session session;
    struct prt_frame frame;
    struct sim sim;
    struct prt_buf in; /* on the way to it */
    struct client *client;
    bool is_taken, is_cleaning, drops;
};
struct rig {
    struct client client[CLIENTS];
    struct server server[SERVERS];
    uint32_t numbers;
    const char *want; /* what may_run says of texts with effects: NULL: they may */
    unsigned waits;
    int shape;
};
static const struct prt_denial denial = {"0A000", "not here", "Elsewhere.", NULL};

static uint64_t seed;

static unsigned below(unsigned n)
{
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return (unsigned)(seed >> 11) % n;
}

/* ---- messages ---- */
static void add(struct prt_buf *b, uint8_t type, const void *p, size_t n)
{
    uint8_t head[5] = {type};

    prt_put32(head + 1, (uint32_t)n + 4);
    (void)prt_buf_add(b, head, 5);
    (void)prt_buf_add(b, p, n);
}

static void add_q(struct prt_buf *b, const char *text)
{
    add(b, 'Q', text, strlen(text) + 1);
}

static void add_two(struct prt_buf *b, uint8_t type, const char *one, const char *two,
                    const char *tail, size_t n)
{
    char body[300];
    size_t a = strlen(one) + 1, c = strlen(two) + 1;

    memcpy(body, one, a);
    memcpy(body + a, two, c);
    if (n) {
        memcpy(body + a + c, tail, n);
    }
    add(b, type, body, a + c + n);
}

static void add_p(struct prt_buf *b, const char *name, const char *text)
{
    add_two(b, 'P', name, text, "\0", 2);
}

static void add_b(struct prt_buf *b, const char *portal, const char *name)
{
    add_two(b, 'B', portal, name, "\0\0\0\0\0", 6);
}

static void add_kind(struct prt_buf *b, uint8_t type, char kind, const char *name)
{
    char body[100] = {kind};
    size_t n = strlen(name) + 1;

    memcpy(body + 1, name, n);
    add(b, type, body, n + 1);
}

static void add_e(struct prt_buf *b, const char *portal)
{
    char body[100] = {0};
    size_t n = strlen(portal) + 1;

    memcpy(body, portal, n);
    add(b, 'E', body, n + 4);
}

static void add_s(struct prt_buf *b)
{
    add(b, 'S', "", 0);
}

static void add_run(struct prt_buf *b, const char *name)
{
    add_b(b, "", name);
    add_e(b, "");
    add_s(b);
}

/* Types, tags and codes, for people. */
static void show(const char *what, const struct prt_buf *b, enum prt_side side)
{
    const uint8_t *p = prt_buf_data(b);
    size_t n = prt_buf_len(b), at = 0;

    printf("  %s:", what);
    while (at + 5 <= n) {
        uint32_t len = prt_get32(p + at + 1);
        printf(" %c", p[at]);
        for (uint32_t i = 4; i < len && at + 1 + i < n; i++) {
            uint8_t ch = p[at + 1 + i];
            if (side == PRT_FRONTEND || p[at] == 'C' || p[at] == 'E' || p[at] == 'Z') {
                printf("%c", ch > 32 && ch < 127 ? ch : ch == 0 ? '.' : '_');
            }
        }
        at += 1 + len;
    }
    printf("\n");
}

/* ---- the pooler around the statement layer ---- */
static enum prt_may may_run(void *ctx, const struct prt_effects *e, const struct prt_denial **why)
{
    struct rig *r = ctx;

    CHECK(e != NULL);
    if (!r->want || !(prt_effects_flags(e) & (PRT_SQL(LISTEN) | PRT_SQL(UNLISTEN)))) {
        return PRT_MAY_RUN;
    }
    *why = &denial;
    return PRT_MAY_NOT;
}

static void rig_init(struct rig *r, uint32_t limit)
{
    memset(r, 0, sizeof *r);
    r->shape = 1;
    for (int i = 0; i < SERVERS; i++) {
        struct server *s = &r->server[i];
        prt_txn_init(&s->txn);
        prt_stmts_init(&s->stmts, &s->txn, limit);
        prt_session_init(&s->session);
        s->session.fans_out = true;
        s->sim.status = 'I';
        s->sim.shape = &r->shape;
    }
    for (int i = 0; i < CLIENTS; i++) {
        r->client[i].number = ++r->numbers;
        r->client[i].params = prt_params_empty();
    }
}

static void client_fini(struct client *c)
{
    prt_names_free(c->names);
    prt_params_unref(c->params);
    prt_buf_free(&c->in);
    prt_buf_free(&c->seen);
    prt_buf_free(&c->all);
}

static void rig_fini(struct rig *r)
{
    for (int i = 0; i < SERVERS; i++) {
        prt_stmts_fini(&r->server[i].stmts);
        prt_session_fini(&r->server[i].session);
        sim_fini(&r->server[i].sim);
        prt_buf_free(&r->server[i].in);
    }
    for (int i = 0; i < CLIENTS; i++) {
        client_fini(&r->client[i]);
    }
}

static void sends(struct client *c, const struct prt_buf *b)
{
    (void)prt_buf_add(&c->in, prt_buf_data(b), prt_buf_len(b));
    (void)prt_buf_add(&c->all, prt_buf_data(b), prt_buf_len(b));
}

static bool lease(struct rig *r, struct client *c, int which)
{
    struct server *s = &r->server[which];

    if (s->is_taken || s->is_cleaning) {
        s = &r->server[1 - which];
    }
    if (s->is_taken || s->is_cleaning) {
        return false;
    }
    s->is_taken = true;
    s->client = c;
    c->server = s;
    prt_stmts_lease(&s->stmts);
    return true;
}

static void local(struct server *s)
{
    struct prt_buf b = {0};

    if (prt_stmts_local(&s->stmts, &b) && s->client) {
        (void)prt_buf_add(&s->client->seen, prt_buf_data(&b), prt_buf_len(&b));
    }
    prt_buf_free(&b);
}

/* One message of the client's that has no server. Returns the bytes used. */
static size_t without_server(struct rig *r, struct client *c, const struct prt_msg *m, int which)
{
    if (m->type == 'S') {
        (void)prt_buf_add(&c->seen, "Z\0\0\0\5I", 6);
        return m->size;
    }
    if (m->type == 'H') {
        return m->size;
    }
    (void)lease(r, c, which);
    return 0;
}

static size_t with_server(struct rig *r, struct client *c, const struct prt_msg *m,
                          struct prt_frame before)
{
    struct prt_up_client up = {&c->names, c->number, c->params, true, may_run, r};
    struct server *s = c->server;
    struct prt_buf out = {0};
    size_t skip = 0;
    enum prt_up_rc rc = prt_stmts_client(&s->stmts, &up, m, &out, &skip);

    (void)prt_buf_add(&s->in, prt_buf_data(&out), prt_buf_len(&out));
    if (getenv("POOLRT_TRACE")) {
        printf("client %u server %d rc %d skip %zu batch %u", c->number, (int)(s - r->server), rc,
               skip, s->stmts.batch);
        struct prt_buf in = {.p = (uint8_t *)(uintptr_t)(m->body - 5), .n = (uint32_t)m->size};
        show("msg", &in, PRT_FRONTEND);
        show("   out", &out, PRT_FRONTEND);
    }
    prt_buf_free(&out);
    if (rc == PRT_UP_WAIT) {
        c->frame = before;
        c->is_held = true;
        r->waits++;
        CHECK(s->txn.count > 0);
        return 0;
    }
    CHECK(rc == PRT_UP_SEND && skip <= m->size);
    (void)prt_buf_add(&s->in, m->body - 5 + skip, m->size - skip);
    local(s);
    return m->size;
}

/* true: something was done. */
static bool client_step(struct rig *r, struct client *c, int which)
{
    struct prt_frame before = c->frame;
    struct prt_msg m;
    size_t used;

    if (c->is_held || prt_frame_next(&c->frame, PRT_FRONTEND, prt_buf_data(&c->in),
                                     prt_buf_len(&c->in), 1 << 20, &m) != PRT_FRAME_MSG) {
        return false;
    }
    used = c->server ? 0 : without_server(r, c, &m, which);
    if (c->server) {
        used = with_server(r, c, &m, before);
    }
    if (!used) {
        c->frame = before;
        return c->is_held;
    }
    prt_buf_eat(&c->in, used);
    return true;
}

static void inject_q(struct server *s, const char *text)
{
    CHECK(prt_txn_inject(&s->txn, 'Q', 0));
    add_q(&s->in, text);
}

static bool server_step(struct server *s)
{
    size_t n = sim_feed(&s->sim, prt_buf_data(&s->in), prt_buf_len(&s->in));

    if (n) {
        prt_buf_eat(&s->in, n);
    }
    return n > 0;
}

static void release(struct server *s)
{
    while (prt_buf_len(&s->in) && *prt_buf_data(&s->in) == 'H') {
        (void)server_step(s); /* a late Flush owes nothing */
    }
    CHECK(!s->sim.skips && s->sim.status == 'I' && !prt_buf_len(&s->in) &&
          !prt_buf_len(&s->sim.out) && !prt_buf_len(&s->sim.held));
    CHECK(!s->stmts.notes || s->stmts.notes->count == 0);
    CHECK_INT(s->stmts.barriers, 0);
    if (s->client) {
        s->client->server = NULL;
    }
    s->client = NULL;
    s->is_taken = s->is_cleaning = false;
}

/* The client is gone: what it began is rolled back, as the proxy does. */
static void clean_on(struct server *s)
{
    if (!prt_txn_is_settled(&s->txn)) {
        return;
    }
    if (s->txn.status != 'I') {
        inject_q(s, "ROLLBACK");
    } else {
        release(s);
    }
}

static void leave(struct rig *r, struct client *c)
{
    struct server *s = c->server;

    prt_names_free(c->names);
    c->names = NULL;
    c->server = NULL;
    if (s) {
        s->client = NULL;
        s->is_cleaning = true;
        if (prt_txn_is_settled(&s->txn)) {
            clean_on(s);
        } else {
            inject_q(s, "ROLLBACK");
            CHECK(prt_txn_inject(&s->txn, 'S', 0));
            add_s(&s->in);
        }
    }
}

static bool deliver(struct server *s)
{
    struct client *c = s->client;
    struct prt_buf b = {0};
    struct prt_msg m;
    uint32_t ev;

    if (prt_frame_next(&s->frame, PRT_BACKEND, prt_buf_data(&s->sim.out), prt_buf_len(&s->sim.out),
                       1 << 20, &m) != PRT_FRAME_MSG) {
        return false;
    }
    ev = prt_txn_server(&s->txn, &m);
    if (getenv("POOLRT_TRACE")) {
        struct prt_buf in = {.p = (uint8_t *)(uintptr_t)(m.body - 5), .n = (uint32_t)m.size};
        printf("    server %d ev %x\n", s->stmts.batch, ev);
        show("   answer", &in, PRT_BACKEND);
    }
    CHECK(!(ev & PRT_EV_VIOLATION));
    if (ev & PRT_EV_VIOLATION) {
        return false;
    }
    bool replaces = prt_stmts_server(&s->stmts, c ? c->names : NULL, &s->session, &m, ev, &b) ==
                    PRT_DOWN_REPLACE;
    if (c && replaces) {
        (void)prt_buf_add(&c->seen, prt_buf_data(&b), prt_buf_len(&b));
    } else if (c && !(ev & PRT_EV_SWALLOW)) {
        (void)prt_buf_add(&c->seen, m.body - 5, m.size);
    }
    prt_buf_free(&b);
    prt_buf_eat(&s->sim.out, m.size);
    local(s);
    if (c) {
        c->is_held = false;
    }
    return true;
}

static bool settle(struct server *s)
{
    if (s->is_cleaning) {
        clean_on(s);
        return true;
    }
    if (s->is_taken && prt_txn_may_release(&s->txn) && !prt_buf_len(&s->sim.out)) {
        release(s);
        return true;
    }
    return false;
}

/* Until nothing moves any more. */
static void drain(struct rig *r, int which)
{
    bool moved = true;

    for (int i = 0; moved && i < 100000; i++) {
        moved = false;
        for (int k = 0; k < CLIENTS; k++) {
            moved |= client_step(r, &r->client[k], which);
        }
        for (int k = 0; k < SERVERS; k++) {
            moved |= server_step(&r->server[k]);
            moved |= deliver(&r->server[k]);
            moved |= r->server[k].is_taken && settle(&r->server[k]);
        }
    }
    CHECK(!moved);
}

/* ---- the direct connection ---- */
static void direct(const struct prt_buf *all, struct prt_buf *seen, bool flushes)
{
    static struct sim s;
    const uint8_t *p = prt_buf_data(all);
    size_t at = 0, n;
    int shape = 1;

    memset(&s, 0, sizeof s);
    s.status = 'I';
    s.shape = &shape;
    while ((n = sim_feed(&s, p + at, prt_buf_len(all) - at)) > 0) {
        at += n;
    }
    CHECK(at == prt_buf_len(all));
    if (flushes) {
        sim_flush(&s);
    }
    (void)prt_buf_add(seen, prt_buf_data(&s.out), prt_buf_len(&s.out));
    sim_fini(&s);
}

static bool is_same(const struct client *c, bool as_prefix)
{
    struct prt_buf want = {0};
    bool same;

    direct(&c->all, &want, as_prefix); /* what is answered here need not wait for a Flush */
    same = as_prefix ? prt_buf_len(&c->seen) <= prt_buf_len(&want)
                     : prt_buf_len(&c->seen) == prt_buf_len(&want);
    same = same && (!prt_buf_len(&c->seen) || memcmp(prt_buf_data(&c->seen), prt_buf_data(&want),
                                                     prt_buf_len(&c->seen)) == 0);
    if (!same) {
        show("client", &c->all, PRT_FRONTEND);
        show("direct", &want, PRT_BACKEND);
        show("pooled", &c->seen, PRT_BACKEND);
    }
    prt_buf_free(&want);
    return same;
}

/* ---- random runs ---- */
static const char *name(void)
{
    static const char *const names[] = {"a", "b", "c", "d", ""};

    return names[below(5)];
}

static const char *text(void)
{
    static const char *const texts[] = {"select 1",     "select 2",
                                        "select 3",     "selec",
                                        "select 1/0",   "rollback",
                                        "begin",        "deallocate all",
                                        "deallocate a", "discard all",
                                        "listen x",     "commit",
                                        "select 2",     "",
                                        "unlisten x",   "deallocate b"};

    return below(3) ? texts[below(3)] : texts[below(16)];
}

static const char *portal(void)
{
    static const char *const portals[] = {"", "", "", "p", "q"};

    return portals[below(5)];
}

static void random_query(struct prt_buf *b)
{
    static const char *const texts[] = {
        "begin",          "rollback",     "commit",  "select 1",     "select 1/0", "selec",
        "deallocate all", "discard all",  "",        "deallocate a", "listen x",   "unlisten x",
        "select 3",       "deallocate b", "select 2"};

    add_q(b, texts[below(15)]);
}

static void random_extended(struct prt_buf *b)
{
    const char *n = name(), *p = portal();

    switch (below(11)) {
    case 0:
    case 1:
        add_p(b, n, text());
        break;
    case 2:
    case 3:
    case 4:
        add_p(b, n, text());
        add_b(b, p, n);
        add_e(b, p);
        break;
    case 5:
    case 6:
        add_b(b, p, n);
        add_e(b, p);
        break;
    case 7:
        add_kind(b, 'D', below(4) ? 'S' : 'P', below(2) ? n : p);
        break;
    case 8:
        add_kind(b, 'C', below(4) ? 'S' : 'P', n);
        break;
    case 9:
        add(b, 'H', "", 0);
        break;
    default:
        add_e(b, p);
        break;
    }
}

static void random_batches(struct client *c)
{
    struct prt_buf b = {0};

    for (unsigned k = 1 + below(4); k; k--) {
        if (below(10) < 3) {
            random_query(&b);
            continue;
        }
        for (unsigned i = 1 + below(5); i; i--) {
            random_extended(&b);
        }
        if (below(100) < 85) {
            add_s(&b);
        }
    }
    sends(c, &b);
    prt_buf_free(&b);
}

static void random_step(struct rig *r)
{
    struct server *s = &r->server[below(SERVERS)];

    switch (below(4)) {
    case 0:
    case 1:
        (void)client_step(r, &r->client[below(CLIENTS)], (int)below(2));
        break;
    case 2:
        (void)server_step(s);
        break;
    default:
        if (!deliver(s) && below(2)) {
            (void)settle(s);
        }
        break;
    }
}

/* Somebody else takes the place of a client that leaves at any point. */
static bool replace(struct rig *r, struct client *c)
{
    bool ok = is_same(c, true);

    leave(r, c);
    client_fini(c);
    memset(c, 0, sizeof *c);
    c->number = ++r->numbers;
    c->params = prt_params_empty();
    return ok;
}

static unsigned long left, waited;
static struct prt_stmt_counts total;

static bool one_run(struct rig *r)
{
    bool ok = true, leaves = below(3) == 0;
    struct prt_buf b = {0};

    rig_init(r, 2);
    for (unsigned k = 2 + below(5); k; k--) {
        for (int i = 0; i < CLIENTS; i++) {
            random_batches(&r->client[i]);
        }
        for (unsigned i = below(200); i; i--) {
            random_step(r);
        }
        if (leaves && below(4) == 0) {
            left++;
            ok &= replace(r, &r->client[below(CLIENTS)]);
        }
        if (below(2)) {
            drain(r, (int)below(2));
        }
    }
    add_s(&b);
    add_q(&b, "rollback"); /* so that each gives its server back */
    for (int i = 0; i < CLIENTS; i++) {
        sends(&r->client[i], &b);
    }
    drain(r, 0);
    for (int i = 0; i < CLIENTS && !prt_test_bad; i++) {
        ok &= is_same(&r->client[i], false);
    }
    for (int i = 0; i < SERVERS; i++) {
        const struct prt_stmt_counts *n = &r->server[i].stmts.n;
        total.hits += n->hits, total.misses += n->misses;
        total.evictions += n->evictions, total.saved += n->saved;
    }
    waited += r->waits;
    prt_buf_free(&b);
    rig_fini(r);
    return ok;
}

TEST(two_clients_over_two_servers_see_what_direct_connections_show)
{
    static struct rig r;
    const char *given = getenv("POOLRT_SEED"), *runs = getenv("POOLRT_RUNS");
    unsigned long n = runs ? strtoul(runs, NULL, 10) : 20000;
    uint64_t first = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL) * 1000003u;

    printf("  POOLRT_SEED=%llu\n", (unsigned long long)first);
    for (unsigned long i = 0; i < n && !prt_test_bad; i++) {
        seed = (first + i) * 0x9e3779b97f4a7c15u + 1;
        bool ok = one_run(&r);
        CHECK(ok);
        if (!ok || prt_test_bad) {
            printf("  POOLRT_SEED=%llu POOLRT_RUNS=1\n", (unsigned long long)(first + i));
        }
    }
    printf("  %lu left, %lu waits, %llu hits, %llu misses, %llu evictions, %llu saved\n", left,
           waited, (unsigned long long)total.hits, (unsigned long long)total.misses,
           (unsigned long long)total.evictions, (unsigned long long)total.saved);
    CHECK_INT((long long)prt_stmt_total(), 0);
}

/* ---- directed ---- */
/* The client sends it all at once, to the server `which` if it has none. */
static void step(struct rig *r, int i, int which, struct prt_buf *b)
{
    sends(&r->client[i], b);
    prt_buf_reset(b);
    drain(r, which);
}

/* SQLSTATE of the last error that the client got, "" when there was none. */
static const char *last_error(const struct client *c)
{
    static char code[6];
    const uint8_t *p = prt_buf_data(&c->seen);
    size_t n = prt_buf_len(&c->seen), at = 0;

    code[0] = 0;
    while (at + 5 <= n) {
        struct prt_msg m = {p[at], prt_get32(p + at + 1) - 4, p + at + 5, 0, 0};
        struct prt_notice e;
        m.have = m.len;
        if (m.type == 'E') {
            prt_notice_read(&m, &e);
            CHECK(prt_str_copy(code, sizeof code, e.sqlstate));
        }
        at += 5 + m.len;
    }
    return code;
}

static size_t count_of(const struct client *c, uint8_t type)
{
    const uint8_t *p = prt_buf_data(&c->seen);
    size_t n = prt_buf_len(&c->seen), found = 0;

    for (size_t at = 0; at + 5 <= n; at += 1 + prt_get32(p + at + 1)) {
        found += p[at] == type;
    }
    return found;
}

static void forget_seen(struct rig *r)
{
    for (int i = 0; i < CLIENTS; i++) {
        prt_buf_reset(&r->client[i].seen);
    }
}

TEST(a_statement_parsed_on_one_server_runs_on_the_other)
{
    static struct rig r;
    struct prt_buf b = {0};

    rig_init(&r, 10);
    add_p(&b, "a", "select 1");
    add_run(&b, "a");
    step(&r, 0, 0, &b);
    add_run(&b, "a");
    step(&r, 0, 1, &b);
    CHECK(is_same(&r.client[0], false));
    CHECK_INT(r.server[0].sim.parses, 1);
    CHECK_INT(r.server[1].sim.parses, 1);
    CHECK_INT((long long)r.server[1].stmts.n.misses, 1);
    add_p(&b, "b", "select 1"); /* the same text: not even asked */
    add_run(&b, "b");
    step(&r, 1, 0, &b);
    CHECK(is_same(&r.client[1], false));
    CHECK_INT(r.server[0].sim.parses, 1);
    CHECK_INT((long long)r.server[0].stmts.n.saved, 1);
    CHECK_INT((long long)prt_names_count(r.client[0].names), 1);
    prt_buf_free(&b);
    rig_fini(&r);
    CHECK_INT((long long)prt_stmt_total(), 0);
}

TEST(nobody_reaches_the_unnamed_statement_of_another_client)
{
    static const char *const first[] = {"", "bad bytes", "selec", "select 5"};
    static struct rig r;
    struct prt_buf b = {0};

    for (int k = 0; k < 12; k++) {
        rig_init(&r, 10);
        add_p(&b, "", "select 1");
        add_s(&b);
        step(&r, 0, 0, &b);
        if (k < 4 && k > 0) { /* refused before the server drops the old one, or after */
            add_q(&b, first[k]);
        } else if (k >= 4 && k < 8) {
            add_p(&b, "", first[k - 4]);
            add_kind(&b, 'C', 'S', "");
            add_s(&b);
        } else if (k >= 8) {
            add_p(&b, "x", "selec");
            add_p(&b, "", first[k - 8]);
            add_s(&b);
        }
        add_b(&b, "", "");
        add_e(&b, "");
        add_s(&b);
        add_kind(&b, 'D', 'S', "");
        add_s(&b);
        step(&r, 1, 0, &b);
        CHECK(is_same(&r.client[1], false));
        CHECK_STR(last_error(&r.client[1]), "26000");
        add_run(&b, "");
        step(&r, 0, 1, &b);
        step(&r, 0, 0, &b);
        CHECK(is_same(&r.client[0], false));
        rig_fini(&r);
    }
    prt_buf_free(&b);
}

TEST(a_row_shape_that_has_changed_is_told_and_not_slipped_in)
{
    static struct rig r;
    struct prt_buf b = {0};

    rig_init(&r, 10);
    add_p(&b, "a", "select * from t");
    add_kind(&b, 'D', 'S', "a");
    add_run(&b, "a");
    step(&r, 0, 0, &b);
    add_run(&b, "a");
    step(&r, 0, 1, &b); /* the same there: looked at once */
    add_run(&b, "a");
    step(&r, 0, 1, &b);
    CHECK_STR(last_error(&r.client[0]), "");
    CHECK_INT((long long)count_of(&r.client[0], 'T'), 1);
    r.shape = 2;
    prt_stmts_forget(&r.server[1].stmts);
    sim_deallocate_all(&r.server[1].sim);
    forget_seen(&r);
    for (int i = 0; i < 2; i++) { /* until it describes again */
        add_run(&b, "a");
        step(&r, 0, 1, &b);
        CHECK_STR(last_error(&r.client[0]), "0A000");
        CHECK_INT((long long)count_of(&r.client[0], 'T') + (long long)count_of(&r.client[0], 'D'),
                  0);
    }
    forget_seen(&r);
    add_kind(&b, 'D', 'S', "a");
    add_run(&b, "a");
    step(&r, 0, 1, &b);
    CHECK_STR(last_error(&r.client[0]), "");
    forget_seen(&r);
    add_run(&b, "a"); /* server 0 still has the old one: it is parsed again */
    step(&r, 0, 0, &b);
    CHECK_STR(last_error(&r.client[0]), "");
    CHECK_INT((long long)count_of(&r.client[0], 'D'), 1);
    prt_buf_free(&b);
    rig_fini(&r);
}

TEST(a_client_that_prepares_again_gets_the_new_shape)
{
    static struct rig r;
    struct prt_buf b = {0};

    rig_init(&r, 10);
    add_p(&b, "a", "select * from t");
    add_kind(&b, 'D', 'S', "a");
    add_s(&b);
    step(&r, 0, 0, &b);
    r.shape = 3;
    add_run(&b, "a");
    step(&r, 0, 0, &b);
    CHECK_STR(last_error(&r.client[0]), "0A000");
    forget_seen(&r);
    add_kind(&b, 'C', 'S', "a");
    add_p(&b, "a", "select * from t");
    add_run(&b, "a");
    step(&r, 0, 0, &b);
    CHECK_STR(last_error(&r.client[0]), "");
    CHECK_INT((long long)count_of(&r.client[0], 'D'), 1);
    prt_buf_free(&b);
    rig_fini(&r);
}

TEST(what_may_not_run_fails_in_its_place)
{
    static struct rig r;
    struct prt_buf b = {0};

    rig_init(&r, 10);
    r.want = "no";
    add_q(&b, "begin");
    add_q(&b, "listen x");
    add_q(&b, "select 1"); /* the transaction has failed */
    add_q(&b, "rollback");
    add_p(&b, "", "unlisten x");
    add_b(&b, "", "");
    add_e(&b, "");
    add_p(&b, "z", "select 1"); /* skipped */
    add_s(&b);
    add_q(&b, "select 2");
    step(&r, 0, 0, &b);
    CHECK_INT((long long)count_of(&r.client[0], 'E'), 3);
    CHECK_STR(last_error(&r.client[0]), "0A000");
    CHECK_INT((long long)count_of(&r.client[0], 'D'), 1);
    CHECK_INT((long long)count_of(&r.client[0], 'Z'), 6);
    CHECK_INT((long long)prt_names_count(r.client[0].names), 0);
    prt_buf_free(&b);
    rig_fini(&r);
}

TEST(without_a_cache_named_statements_are_refused_by_the_server)
{
    static struct rig r;
    struct prt_buf b = {0};

    rig_init(&r, 0);
    add_p(&b, "a", "select 1");
    add_run(&b, "a");
    add_p(&b, "", "select 2");
    add_run(&b, "");
    step(&r, 0, 0, &b);
    CHECK_STR(last_error(&r.client[0]), "0A000");
    CHECK_INT((long long)count_of(&r.client[0], 'E'), 1);
    CHECK_INT((long long)count_of(&r.client[0], 'D'), 1);
    prt_buf_free(&b);
    rig_fini(&r);
}

TEST(statements_deallocated_unseen_are_missed_once)
{
    static struct rig r;
    struct prt_buf b = {0};

    rig_init(&r, 10);
    add_p(&b, "a", "select 1");
    add_p(&b, "b", "select 2");
    add_s(&b);
    step(&r, 0, 0, &b);
    add_q(&b, "do $$begin execute 'deallocate all'; end$$");
    add_run(&b, "a");
    step(&r, 0, 0, &b);
    CHECK_STR(last_error(&r.client[0]), "26000");
    forget_seen(&r);
    add_run(&b, "a");
    add_run(&b, "b");
    add_p(&b, "c", "select 3");
    add_run(&b, "c");
    step(&r, 0, 0, &b);
    CHECK_STR(last_error(&r.client[0]), "");
    CHECK(r.server[0].stmts.is_suspect);
    prt_buf_free(&b);
    rig_fini(&r);
}

TEST(limits_of_one_client_are_told)
{
    static struct rig r;
    struct prt_buf b = {0};

    rig_init(&r, 10);
    for (int i = 0; i <= PRT_NAMES_MAX; i++) {
        char name_of[20];
        (void)snprintf(name_of, sizeof name_of, "n%d", i);
        add_p(&b, name_of, "select 1");
        add_s(&b);
        if (i % 100 == 0) {
            step(&r, 0, 0, &b);
        }
    }
    step(&r, 0, 0, &b);
    CHECK_STR(last_error(&r.client[0]), "53400");
    CHECK_INT((long long)count_of(&r.client[0], 'E'), 1);
    CHECK_INT((long long)prt_names_count(r.client[0].names), PRT_NAMES_MAX);
    prt_buf_free(&b);
    rig_fini(&r);
    CHECK_INT((long long)prt_stmt_total(), 0);
}

/* One step of `c` over the first n bytes of p; what goes to the server is appended. */
static enum prt_up_rc one(struct rig *r, struct client *c, const uint8_t *p, size_t n,
                          struct prt_buf *out, size_t *used)
{
    struct prt_up_client up = {&c->names, c->number, c->params, true, NULL, r};
    struct prt_frame before = c->frame;
    struct prt_msg m;
    size_t skip = 0;
    enum prt_frame_rc frame = prt_frame_next(&c->frame, PRT_FRONTEND, p, n, 1 << 26, &m);

    *used = 0;
    if (frame == PRT_FRAME_REST) {
        *used = m.size;
        (void)prt_buf_add(out, m.body, m.size);
        return PRT_UP_SEND;
    }
    CHECK(frame == PRT_FRAME_MSG);
    enum prt_up_rc rc = prt_stmts_client(&c->server->stmts, &up, &m, out, &skip);
    if (rc == PRT_UP_SEND) {
        *used = m.size;
        (void)prt_buf_add(out, p + skip, m.size - skip);
    } else {
        c->frame = before;
    }
    return rc;
}

TEST(long_messages_stream_but_for_a_named_parse)
{
    static struct rig r;
    static char big[100000];
    struct client *c = &r.client[0];
    struct prt_buf b = {0}, out = {0};
    size_t used, at = 0;

    rig_init(&r, 10);
    CHECK(lease(&r, c, 0));
    memset(big, ' ', sizeof big);
    memcpy(big, "longish\0select 1", 16);
    memset(big + sizeof big - 3, 0, 3);
    add(&b, 'P', big, sizeof big);
    for (size_t n = 20000; n < 100005;
         n += 20000) { /* from the first piece that the framer lets by */
        CHECK(one(&r, c, prt_buf_data(&b), n, &out, &used) == PRT_UP_MORE && !prt_buf_len(&out));
    }
    CHECK(one(&r, c, prt_buf_data(&b), prt_buf_len(&b), &out, &used) == PRT_UP_SEND);
    CHECK_INT((long long)used, 100005);
    struct prt_str name = c->server->stmts.order.n
                              ? prt_name_find(c->names, PRT_STR("longish"))->now.stmt->server_name
                              : PRT_STR("");
    CHECK_INT((long long)prt_buf_len(&out), 100005 - 7 + (long long)name.n);
    CHECK_INT(prt_get32(prt_buf_data(&out) + 1), 100004 - 7 + (long long)name.n);
    prt_buf_reset(&b);
    prt_buf_reset(&out);
    memcpy(big, "q\0longish\0", 10);
    add(&b, 'B', big, sizeof big);
    CHECK(one(&r, c, prt_buf_data(&b), 15, &out, &used) != PRT_UP_SEND); /* only the names */
    CHECK(!prt_buf_len(&out));
    for (size_t n = 15000; at<prt_buf_len(&b); n = n> 85005 ? prt_buf_len(&b) : n + 15000) {
        CHECK(one(&r, c, prt_buf_data(&b) + at, n - at, &out, &used) == PRT_UP_SEND);
        at += used;
    }
    CHECK_INT((long long)prt_buf_len(&out), 100005 - 7 + (long long)name.n);
    CHECK(memcmp(prt_buf_data(&out) + 5 + 2 + name.n + 1, big + 10, sizeof big - 10) == 0);
    prt_buf_reset(&b);
    prt_buf_reset(&out);
    prt_put32(big, 0); /* an unnamed text is looked at, not collected */
    memcpy(big, "\0set x = 1;", 11);
    add(&b, 'P', big, sizeof big);
    CHECK(one(&r, c, prt_buf_data(&b), 12000, &out, &used) == PRT_UP_MORE);
    CHECK(one(&r, c, prt_buf_data(&b), 20000, &out, &used) == PRT_UP_SEND);
    CHECK_INT((long long)used, 20000);
    CHECK(c->names->un.exists && !c->names->un.text);
    prt_buf_free(&b);
    prt_buf_free(&out);
    rig_fini(&r);
}

TEST(a_name_left_open_by_a_client_that_went_is_closed)
{
    static struct rig r;
    struct prt_buf b = {0};

    rig_init(&r, 10);
    add_p(&b, "a", "select 1");
    add_s(&b);
    step(&r, 0, 0, &b);
    add_p(&b, "a",
          "select 2"); /* taken: the server knows the name until the Sync, which never comes */
    add(&b, 'H', "", 0);
    step(&r, 0, 0, &b);
    CHECK(replace(&r, &r.client[0]));
    drain(&r, 0);
    add_run(&b, "a");
    step(&r, 0, 0, &b);
    CHECK_STR(last_error(&r.client[0]), "26000");
    CHECK(is_same(&r.client[0], false));
    prt_buf_free(&b);
    rig_fini(&r);
}

/* ---- spec/vectors/pooled.jsonl: the client's bytes of each step, and the server it goes to ----
 */
static bool next_step(const char **at, int *which, struct prt_buf *b)
{
    const char *p = *at;

    while (*p && !(p[0] == '[' && (p[1] == '0' || p[1] == '1') && p[2] == ',' && p[3] == '"')) {
        p++;
    }
    if (!*p) {
        return false;
    }
    *which = p[1] - '0';
    for (p += 4; *p && *p != '"'; p += 2) {
        unsigned x = 0;
        (void)sscanf(p, "%2x", &x);
        uint8_t byte = (uint8_t)x;
        (void)prt_buf_add(b, &byte, 1);
    }
    *at = p;
    return true;
}

TEST(the_recorded_scenarios_look_like_a_direct_connection)
{
    FILE *f = fopen("spec/vectors/pooled.jsonl", "r");
    static char line[100000];
    static struct rig r;
    int n = 0;

    CHECK(f != NULL);
    while (f && fgets(line, sizeof line, f)) {
        struct prt_buf b = {0};
        const char *at = line;
        int which = 0;
        rig_init(&r, 10);
        while (next_step(&at, &which, &b)) {
            step(&r, 0, which, &b);
        }
        bool ok = is_same(&r.client[0], false);
        CHECK(ok);
        if (!ok) {
            printf("  %.60s\n", line);
        }
        n++;
        prt_buf_free(&b);
        rig_fini(&r);
    }
    CHECK_INT(n, 27);
    if (f) {
        (void)fclose(f);
    }
}
