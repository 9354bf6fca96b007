/* pg_frontend_fuzz.c - arbitrary bytes as a client's stream: startup packets, then messages through
 * frame and txn. The same stream whole and in pieces must give the same messages and state. */
#include "pg_fuzz.h"

#include <stdlib.h>
#include <string.h>

struct run {
    struct prt_txn txn;
    struct prt_frame frame;
    bool in_session, is_over;
    unsigned starts;
    uint64_t sum; /* of every message and what came of it */
};

static size_t start(struct run *r, const uint8_t *p, size_t n)
{
    struct prt_startup s;
    enum prt_startup_rc rc = prt_startup_parse(p, n, &s, NULL);

    if (rc == PRT_STARTUP_MORE) {
        prt_assert(n < PRT_STARTUP_MAX);
        return 0;
    }
    r->sum = fuzz_mix(r->sum, rc);
    if (rc != PRT_STARTUP_OK || s.kind == PRT_START_CANCEL || ++r->starts > 3) {
        r->is_over = true;
        return 0;
    }
    r->in_session = s.kind == PRT_START_SESSION;
    return s.size;
}

static void handle(struct run *r, const struct prt_msg *m)
{
    struct prt_txn before = r->txn;
    unsigned owed = prt_txn_owed(&r->txn);
    enum prt_txn_rc rc = prt_txn_client(&r->txn, m);

    fuzz_check_txn(&r->txn);
    r->sum = fuzz_mix(r->sum, (uint64_t)rc << 40 | (uint64_t)m->type << 32 | m->len);
    r->sum = fuzz_mix(r->sum, prt_txn_owed(&r->txn));
    if (rc == PRT_TXN_FORWARD) {
        prt_assert(prt_txn_owed(&r->txn) - owed <= 1);
        return;
    }
    prt_assert(memcmp(&before, &r->txn, sizeof before) == 0);
    if (rc == PRT_TXN_FULL) {
        prt_txn_init(&r->txn); /* as if another server took over */
    } else {
        r->is_over = true;
    }
}

static size_t step(struct run *r, const uint8_t *p, size_t n)
{
    struct prt_msg m = {0};
    enum prt_frame_rc rc;

    if (!r->in_session) {
        return start(r, p, n);
    }
    rc = prt_frame_next(&r->frame, PRT_FRONTEND, p, n, FUZZ_MAX_PACKET, &m);
    fuzz_check_msg(rc, &r->frame, p, n, &m);
    if (rc == PRT_FRAME_BAD) {
        r->is_over = true;
        return 0;
    }
    if (rc == PRT_FRAME_MSG) {
        handle(r, &m);
    }
    return rc == PRT_FRAME_MORE ? 0 : m.size;
}

static void run(struct run *r, const uint8_t *data, size_t n, size_t piece)
{
    size_t at = 0;

    memset(r, 0, sizeof *r);
    prt_txn_init(&r->txn);
    for (size_t end = 0; end < n && !r->is_over;) {
        size_t used;
        end = piece > n - end ? n : end + piece;
        uint8_t *p = malloc(end - at + 1); /* exact bounds, for the sanitizer */
        memcpy(p, data + at, end - at);
        for (size_t i = 0; !r->is_over && (used = step(r, p + i, end - at)) > 0;) {
            i += used;
            at += used;
        }
        free(p);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static struct run whole, cut;

    if (n < 2) {
        return 0;
    }
    run(&whole, data + 2, n - 2, n);
    run(&cut, data + 2, n - 2, 1 + (data[0] | (size_t)data[1] << 8) % 300);
    prt_assert(whole.sum == cut.sum && whole.is_over == cut.is_over);
    prt_assert(memcmp(&whole.txn, &cut.txn, sizeof whole.txn) == 0);
    return 0;
}
