/* pg_pipeline_test.c - random pipelines against a small model of a PostgreSQL backend, which reads,
 * fails and answers when it likes. What must hold: where txn says that the server may be released,
 * the model has nothing unread, nothing unsent and no batch open; and the answers that stay here
 * are those of injected requests. POOLRT_SEED=n repeats a run. */
#include "pg/pg.h"
#include "test.h"

#include <time.h>

#define PIPE 4096

struct item {
    uint8_t type;
    bool is_injected;
};
struct sim {
    struct prt_txn txn;
    struct item in[PIPE], out[PIPE]; /* on the way to the server, and back */
    unsigned in_at, in_n, out_at, out_n;
    uint8_t copies; /* Q or E: in COPY from the client, begun by that; else 0 */
    bool copy_is_injected;
    bool skips, is_open;
    bool has_failed_copy; /* by Execute: from here on txn may give up */
    bool is_over;
};

static uint64_t seed;
static unsigned long releases, fences, gave_up;

static unsigned below(unsigned n)
{
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return (unsigned)(seed >> 11) % n;
}

/* ---- the backend ---- */
static void says(struct sim *s, const char *types, bool is_injected)
{
    for (; *types; types++) {
        s->out[s->out_n++] = (struct item){(uint8_t)*types, is_injected};
    }
}

static void copy_ends(struct sim *s, bool ok)
{
    uint8_t by = s->copies;

    s->copies = 0;
    says(s, ok ? "C" : "E", s->copy_is_injected);
    if (by == 'Q') {
        says(s, "Z", s->copy_is_injected);
    } else if (!ok) {
        s->skips = true;
        s->has_failed_copy = true;
    }
}

static void copy_begins(struct sim *s, struct item m)
{
    says(s, "G", m.is_injected);
    s->copies = m.type;
    s->copy_is_injected = m.is_injected;
    if (below(3) == 0) {
        copy_ends(s, false); /* a trigger, before a byte was read */
    }
}

static void reads_in_copy(struct sim *s, uint8_t type)
{
    if (type == 'c' || type == 'f') {
        copy_ends(s, type == 'c');
    } else if (type == 'd' && below(4) == 0) {
        copy_ends(s, false);
    } else if (type != 'd' && type != 'S' && type != 'H') {
        s->is_over = true; /* synchronization was lost: FATAL */
    }
}

static void extended(struct sim *s, struct item m, const char *answer)
{
    s->is_open = true;
    if (below(12) == 0) {
        says(s, "E", m.is_injected);
        s->skips = true;
    } else if (m.type == 'E' && below(3) == 0) {
        copy_begins(s, m);
    } else {
        says(s, answer, m.is_injected);
    }
}

static void query(struct sim *s, struct item m)
{
    static const char *const answers[] = {"TDDCZ", "IZ", "EZ", "TDCEZ", "CZ", "NCSZ"};

    s->is_open = false;
    if (m.is_injected) {
        says(s, "IZ", true);
    } else if (below(4) == 0) {
        copy_begins(s, m);
    } else {
        says(s, answers[below(6)], false);
    }
}

static void reads(struct sim *s)
{
    struct item m = s->in[s->in_at++];

    if (s->copies) {
        reads_in_copy(s, m.type);
    } else if (m.type == 'S') {
        /* a deferred constraint fails at the Sync that commits something */
        says(s, !s->is_open || s->skips || below(20) ? "Z" : "EZ", m.is_injected);
        s->skips = s->is_open = false;
    } else if (s->skips || strchr("Hdcf", m.type)) {
        return;
    } else if (m.type == 'Q') {
        query(s, m);
    } else if (m.type == 'F') {
        s->is_open = false;
        says(s, below(4) ? "VZ" : "EZ", m.is_injected);
    } else {
        extended(s, m,
                 m.type == 'P'   ? "1"
                 : m.type == 'B' ? "2"
                 : m.type == 'C' ? "3"
                 : m.type == 'D' ? "T"
                 : below(2)      ? "DDC"
                                 : "s");
    }
}

/* ---- the pooler ---- */
static void sends(struct sim *s)
{
    static const char types[] = "QPBDECSSHdcfFPBESSdcPBES";
    struct prt_msg m = {0};
    static const uint8_t portal[] = "P";

    m.type = (uint8_t)types[below(sizeof types - 1)];
    m.body = portal;
    m.len = m.have = strchr("SHc", m.type) ? 0 : 2;
    if (prt_txn_client(&s->txn, &m) != PRT_TXN_FORWARD) {
        CHECK(s->txn.is_unsure);
        s->is_over = true;
        gave_up++;
        return;
    }
    s->in[s->in_n++] = (struct item){m.type, false};
}

static void check_release(struct sim *s)
{
    CHECK(s->out_at == s->out_n && !s->is_open && !s->skips && !s->copies);
    for (unsigned i = s->in_at; i < s->in_n; i++) {
        CHECK(strchr("Hdcf", s->in[i].type)); /* these the server will ignore */
    }
    releases++;
}

static void receives(struct sim *s)
{
    static const char notice[] = "SERROR\0VERROR\0C42601\0\0", param[] = "a\0b", tag[] = "SELECT 1";
    struct item it = s->out[s->out_at++];
    const char *body = it.type == 'Z'                     ? "I"
                       : it.type == 'E' || it.type == 'N' ? notice
                       : it.type == 'S'                   ? param
                                                          : tag;
    uint32_t n = it.type == 'Z'                     ? 1
                 : it.type == 'E' || it.type == 'N' ? sizeof notice - 1
                 : it.type == 'S'                   ? sizeof param
                                                    : sizeof tag;
    struct prt_msg m = {it.type, n, (const uint8_t *)body, n, n + 5};
    uint32_t ev = prt_txn_server(&s->txn, &m);

    if (ev & PRT_EV_VIOLATION) {
        CHECK(s->has_failed_copy);
        s->is_over = true;
        gave_up++;
        return;
    }
    CHECK(!(ev & PRT_EV_SWALLOW) == !it.is_injected);
    if (!(ev & PRT_EV_READY)) {
        return;
    }
    if (prt_txn_may_release(&s->txn)) {
        check_release(s);
    } else if (prt_txn_wants_fence(&s->txn)) {
        CHECK(prt_txn_inject(&s->txn, 'Q', 0));
        s->in[s->in_n++] = (struct item){'Q', true};
        fences++;
    }
}

static void one_run(void)
{
    static struct sim s;
    unsigned client_share = 1 + below(8);

    memset(&s, 0, sizeof s);
    prt_txn_init(&s.txn);
    for (int step = 0; step < 200 && !s.is_over; step++) {
        if (below(10) < client_share) {
            sends(&s);
        } else if (s.in_at < s.in_n && below(2)) {
            reads(&s);
        } else if (s.out_at < s.out_n) {
            receives(&s);
        }
    }
}

TEST(a_server_is_released_only_when_it_has_nothing_left)
{
    const char *given = getenv("POOLRT_SEED");

    seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    seed += seed == 0;
    printf("  POOLRT_SEED=%llu\n", (unsigned long long)seed);
    for (int i = 0; i < 300000 && !prt_test_bad; i++) {
        one_run();
    }
    printf("  %lu releases, %lu fences, %lu gave up\n", releases, fences, gave_up);
    CHECK(releases > 50000 && fences > 200 && gave_up > 0);
}
