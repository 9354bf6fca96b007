/* pg_backend_fuzz.c - a server that says anything, against a random queue of requests.
 * The first byte chooses: raw bytes as the server's stream, whole and in pieces; or a program of
 * well-formed messages of both sides in any order, which reaches deeper states. */
#include "pg_fuzz.h"

#include <stdlib.h>
#include <string.h>

struct canned {
    uint8_t type;
    const char *body;
    uint32_t n;
};
#define BODY(s) (s), sizeof(s) - 1

static const struct canned requests[] = {
    {'Q', BODY("x\0")}, {'P', BODY("\0x\0\0\0")},  {'B', BODY("\0\0\0\0\0\0\0\0")},
    {'D', BODY("S\0")}, {'D', BODY("P\0")},        {'D', BODY("?")},
    {'C', BODY("S\0")}, {'E', BODY("\0\0\0\0\0")}, {'S', BODY("")},
    {'H', BODY("")},    {'F', BODY("\0\0\0\1")},   {'d', BODY("1\n")},
    {'c', BODY("")},    {'f', BODY("x\0")},        {'S', BODY("")},
    {'Q', BODY("y\0")},
};
static const struct canned answers[] = {
    {'1', BODY("")},
    {'2', BODY("")},
    {'3', BODY("")},
    {'t', BODY("\0\0")},
    {'T', BODY("\0\0")},
    {'n', BODY("")},
    {'D', BODY("\0\0")},
    {'C', BODY("SELECT 1\0")},
    {'I', BODY("")},
    {'s', BODY("")},
    {'S', BODY("TimeZone\0UTC\0")},
    {'Z', BODY("I")},
    {'Z', BODY("T")},
    {'Z', BODY("E")},
    {'E', BODY("SERROR\0VERROR\0C42601\0Mx\0\0")},
    {'E', BODY("SFATAL\0VFATAL\0C57P01\0Mx\0\0")},
    {'N', BODY("SNOTICE\0VNOTICE\0C00000\0Mx\0\0")},
    {'A', BODY("\0\0\0\1c\0p\0")},
    {'G', BODY("\0\0\0")},
    {'H', BODY("\0\0\0")},
    {'W', BODY("\0\0\0")},
    {'V', BODY("\377\377\377\377")},
    {'d', BODY("1\n")},
    {'c', BODY("")},
};
#define COUNT(a) (sizeof(a) / sizeof *(a))

/* One request; bytes from 0x40 on are the pooler's own, 0x50 marks the newest as refused. */
static void request(struct prt_txn *t, uint8_t op)
{
    const struct canned *c = &requests[op % COUNT(requests)];
    struct prt_msg m = {c->type, c->n, (const uint8_t *)c->body, c->n, c->n + 5};

    if (op >= 0x50 && op < 0x60) {
        unsigned before = prt_txn_owed(t);
        if (prt_txn_client(t, &m) == PRT_TXN_FORWARD && (prt_txn_owed(t) > before || t->skips)) {
            prt_txn_mark_refused(t);
        }
    } else if (op >= 0x40) {
        (void)prt_txn_inject(t, (uint8_t) "QPCS"[op % 4], op % 4 == 2 ? 'S' : 0);
    } else {
        (void)prt_txn_client(t, &m);
    }
    fuzz_check_txn(t);
}

/* What the short cut for rows takes must be what the accounting lets pass without an event. */
static void check_rows(const struct prt_txn *before, const struct prt_txn *after,
                       const struct prt_msg *m, uint32_t ev)
{
    uint8_t bytes[64] = {m->type};
    bool is_small = m->have == m->len && m->len <= sizeof bytes - 5;

    if (!is_small || m->type == 0) {
        return;
    }
    prt_put32(bytes + 1, m->len + 4);
    memcpy(bytes + 5, m->body, m->len);
    if (prt_txn_rows(before, bytes, m->len + 5, 1000)) {
        prt_assert(ev == 0 && prt_txn_may_be_row(m->type));
        prt_assert(memcmp(before->q, after->q, sizeof before->q) == 0);
        prt_assert(before->head == after->head && before->count == after->count);
        prt_assert(before->copy == after->copy && before->status == after->status);
    } else {
        prt_assert(m->type != 'D' || ev != 0 || before->count == 0 || before->markers);
    }
    prt_assert(prt_txn_rows(before, bytes, m->len + 4, 1000) == 0); /* not whole */
}

/* false: the server is closed. */
static bool answer(struct prt_txn *t, const struct prt_msg *m, uint64_t *sum)
{
    struct prt_txn before = *t;
    unsigned owed = prt_txn_owed(t);
    uint32_t ev = prt_txn_server(t, m);

    check_rows(&before, t, m, ev);
    *sum = fuzz_mix(*sum, (uint64_t)m->type << 32 | ev);
    fuzz_check_txn(t);
    prt_assert(prt_txn_owed(t) <= owed);
    prt_assert(!(ev & PRT_EV_READY) || (m->type == 'Z' && t->status == m->body[0]));
    prt_assert(!(ev & PRT_EV_REFUSED) || (ev & PRT_EV_ERROR));
    prt_assert(!(ev & PRT_EV_EXTRA_READY) || (ev & PRT_EV_READY));
    prt_assert(!(ev & PRT_EV_FATAL) || t->is_dead);
    /* only an answer of the pooler's own request is kept from the client */
    prt_assert(!(ev & PRT_EV_SWALLOW) || owed > 0 || t->is_dead);
    return !(ev & (PRT_EV_VIOLATION | PRT_EV_FATAL));
}

static void program(const uint8_t *p, size_t n)
{
    struct prt_txn t;
    uint64_t sum = 0;
    bool is_alive = true;

    prt_txn_init(&t);
    for (size_t i = 0; i < n && is_alive; i++) {
        if (p[i] < 0x80) {
            request(&t, p[i]);
        } else {
            const struct canned *c = &answers[p[i] % COUNT(answers)];
            struct prt_msg m = {c->type, c->n, (const uint8_t *)c->body, c->n, c->n + 5};
            is_alive = answer(&t, &m, &sum);
        }
    }
}

static uint64_t stream(struct prt_txn *t, const uint8_t *data, size_t n, size_t piece)
{
    struct prt_frame f = {0};
    uint64_t sum = 0;
    size_t at = 0;
    bool is_alive = true;

    for (size_t end = 0; end < n && is_alive;) {
        end = piece > n - end ? n : end + piece;
        size_t have = end - at, i = 0;
        uint8_t *p = malloc(have + 1); /* exact bounds, for the sanitizer */
        memcpy(p, data + at, have);
        for (;;) {
            struct prt_msg m = {0};
            enum prt_frame_rc rc =
                prt_frame_next(&f, PRT_BACKEND, p + i, have - i, FUZZ_MAX_PACKET, &m);
            fuzz_check_msg(rc, &f, p + i, have - i, &m);
            is_alive = rc != PRT_FRAME_BAD && (rc != PRT_FRAME_MSG || answer(t, &m, &sum));
            if (rc >= PRT_FRAME_MORE || !is_alive) {
                break;
            }
            i += m.size;
        }
        at += i;
        free(p);
    }
    return fuzz_mix(sum, is_alive);
}

static void raw(const uint8_t *p, size_t n)
{
    static struct prt_txn whole, cut;
    size_t requests_n = n < 12 ? n : 12, piece = 1 + p[0] % 64;

    memset(&whole, 0, sizeof whole);
    prt_txn_init(&whole);
    for (size_t i = 1; i < requests_n; i++) {
        request(&whole, p[i] % 0x60);
    }
    cut = whole;
    prt_assert(stream(&whole, p + requests_n, n - requests_n, n) ==
               stream(&cut, p + requests_n, n - requests_n, piece));
    prt_assert(memcmp(&whole, &cut, sizeof whole) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < 2) {
        return 0;
    }
    if (data[0] & 1) {
        program(data + 1, n - 1);
    } else {
        raw(data + 1, n - 1);
    }
    return 0;
}
