/* pg_stmt_fuzz.c - arbitrary bytes of a client and of its server through the statement layer. What
 * must hold after every step: notes and queue agree, what is put into the stream is well framed,
 * and nothing is left when all is freed. */
#include "pg/stmt_int.h"
#include "pg_fuzz.h"

#include <stdlib.h>
#include <string.h>

struct run {
    struct prt_txn txn;
    struct prt_stmts stmts;
    struct prt_session session;
    struct prt_names *names;
    const struct prt_params *params;
    struct prt_frame up, down;
    uint32_t clients;
    bool is_over;
};

static enum prt_may may_run(void *ctx, const struct prt_effects *e, const struct prt_denial **why)
{
    static const struct prt_denial denial = {"0A000", "no", NULL, NULL};

    (void)ctx;
    prt_assert(e);
    *why = &denial;
    return prt_effects_flags(e) & PRT_SQL(TEMP)   ? PRT_MAY_NOT
           : prt_effects_flags(e) & PRT_SQL(LOAD) ? PRT_MAY_WAIT
                                                  : PRT_MAY_RUN;
}

/* Whole messages, but for a last one that `rest` bytes will complete. */
static void check_framed(const struct prt_buf *b, bool may_be_cut)
{
    const uint8_t *p = prt_buf_data(b);
    size_t n = prt_buf_len(b), at = 0;

    while (n - at >= 5 && prt_get32(p + at + 1) < n - at) {
        at += 1 + (size_t)prt_get32(p + at + 1);
    }
    prt_assert(at == n || may_be_cut);
}

static void check(struct run *r)
{
    const struct prt_stmts *s = &r->stmts;
    unsigned noted = 0;

    fuzz_check_txn(&r->txn);
    for (unsigned i = 0; i < r->txn.count; i++) {
        noted += r->txn.q[(r->txn.head + i) % PRT_TXN_QUEUE] >> 7 & 1;
    }
    prt_assert(r->txn.is_dead || noted == (s->notes ? s->notes->count : 0));
    prt_assert(prt_stmts_count(s) >= s->order.n);
    if (r->txn.count == 0) {
        prt_assert(s->barriers == 0);
    }
}

static void local(struct run *r)
{
    struct prt_buf b = {0};
    bool any = prt_stmts_local(&r->stmts, &b);

    prt_assert(any == (prt_buf_len(&b) > 0) && prt_buf_len(&b) % 5 == 0);
    prt_buf_free(&b);
}

static size_t from_client(struct run *r, const uint8_t *p, size_t n)
{
    struct prt_up_client c = {&r->names, r->clients, r->params, true, may_run, NULL};
    struct prt_frame before = r->up;
    struct prt_buf out = {0};
    struct prt_msg m = {0};
    size_t skip = 0;
    enum prt_frame_rc frame = prt_frame_next(&r->up, PRT_FRONTEND, p, n, FUZZ_MAX_PACKET, &m);

    if (frame != PRT_FRAME_MSG) {
        r->is_over |= frame == PRT_FRAME_BAD;
        return frame == PRT_FRAME_REST ? m.size : 0;
    }
    enum prt_up_rc rc = prt_stmts_client(&r->stmts, &c, &m, &out, &skip);
    prt_assert(skip <= m.size && rc != PRT_UP_NO_MEMORY);
    check_framed(&out, rc == PRT_UP_SEND && skip && skip < m.size);
    prt_buf_free(&out);
    if (rc == PRT_UP_SEND) {
        local(r);
        return m.size;
    }
    r->up = before;
    r->is_over |= rc == PRT_UP_TERMINATE || rc == PRT_UP_VIOLATION;
    prt_assert(rc != PRT_UP_MORE || m.have < m.len);
    return 0;
}

static size_t from_server(struct run *r, const uint8_t *p, size_t n)
{
    struct prt_buf out = {0};
    struct prt_msg m = {0};
    enum prt_frame_rc frame = prt_frame_next(&r->down, PRT_BACKEND, p, n, FUZZ_MAX_PACKET, &m);

    if (frame != PRT_FRAME_MSG) {
        r->is_over |= frame == PRT_FRAME_BAD;
        return frame == PRT_FRAME_REST ? m.size : 0;
    }
    uint32_t ev = prt_txn_server(&r->txn, &m);
    if (ev & (PRT_EV_VIOLATION | PRT_EV_FATAL)) {
        r->is_over = true;
        return 0;
    }
    bool replaces =
        prt_stmts_server(&r->stmts, r->names, &r->session, &m, ev, &out) == PRT_DOWN_REPLACE;
    prt_assert(replaces == (prt_buf_len(&out) > 0));
    check_framed(&out, false);
    prt_buf_free(&out);
    local(r);
    if (prt_txn_may_release(&r->txn) && prt_frame_is_clean(&r->up)) {
        prt_stmts_lease(&r->stmts);
    }
    return m.size;
}

/* Its client goes: what is still due comes for nobody. */
static void leave(struct run *r)
{
    prt_names_free(r->names);
    r->names = NULL;
    r->up = (struct prt_frame){0};
    r->clients++;
}

/* What the server would say to the oldest request, so that runs get further than to the first
 * violation. */
static size_t likely(const struct prt_txn *t, uint8_t by, uint8_t out[64])
{
    static const uint8_t error[] = "SERROR\0VERROR\0C26000\0Mno \"prt_1\"\0";
    static const char answers[] = "ZCZZ12tTTE3C";
    unsigned kind = t->count ? t->q[t->head] & 15 : 0;
    uint8_t type = by & 4 ? 'E' : kind < 12 ? (uint8_t)answers[kind] : 'N';
    const void *body = type == 'E' || type == 'N' ? (const void *)error : "DISCARD ALL";
    size_t n = type == 'E' || type == 'N' ? sizeof error : type == 'C' ? 12 : 0;

    if (kind == 1 && by & 8) {
        type = 'Z';
    }
    if (type == 'Z') {
        body = by & 2 ? "T" : "I";
        n = 1;
    } else if (type == 't' || type == 'T') {
        body = "\0\0";
        n = 2;
    }
    out[0] = type;
    prt_put32(out + 1, (uint32_t)n + 4);
    memcpy(out + 5, body, n);
    return n + 5;
}

static void answer(struct run *r, uint8_t by)
{
    uint8_t body[64], *exact;
    size_t n;

    if (!prt_frame_is_clean(&r->down)) {
        return;
    }
    n = likely(&r->txn, by, body);
    exact = malloc(n);
    memcpy(exact, body, n);
    (void)from_server(r, exact, n);
    free(exact);
}

static void step(struct run *r, const uint8_t **p, const uint8_t *end)
{
    uint8_t by = *(*p)++;
    size_t n = (size_t)(end - *p), used;

    if (by >= 0x80) {
        answer(r, by);
    } else if (by == 0x7f) {
        leave(r);
    } else if (by & 0x40) {
        used = from_server(r, *p, n);
        *p += used;
    } else if (!r->txn.is_dead) {
        uint8_t *exact = malloc(n + 1); /* exact bounds, for the sanitizer */
        memcpy(exact, *p, n);
        used = from_client(r, exact, n);
        free(exact);
        *p += used;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static struct run run;
    struct run *r = &run;
    const uint8_t *p = data + 1, *end = data + n;

    if (n < 2) {
        return 0;
    }
    memset(r, 0, sizeof *r);
    r->clients = 1;
    r->params = prt_params_empty();
    prt_txn_init(&r->txn);
    prt_stmts_init(&r->stmts, &r->txn, data[0] % 4);
    prt_session_init(&r->session);
    while (p < end && !r->is_over) {
        step(r, &p, end);
        if (!r->is_over) {
            check(r);
        }
    }
    prt_names_free(r->names);
    prt_stmts_fini(&r->stmts);
    prt_session_fini(&r->session);
    prt_assert(prt_stmt_total() == 0);
    return 0;
}
