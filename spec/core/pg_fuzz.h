/* pg_fuzz.h - what must hold after every step, for the fuzzers of the protocol. */
#ifndef PRT_PG_FUZZ_H
#define PRT_PG_FUZZ_H
#include "pg/pg.h"

#define FUZZ_MAX_PACKET 100000u

static inline void fuzz_check_txn(const struct prt_txn *t)
{
    prt_assert(t->count <= PRT_TXN_QUEUE && t->head < PRT_TXN_QUEUE);
    prt_assert(t->markers <= t->count);
    prt_assert(!t->skips || t->count == 0);
    prt_assert(!t->is_unsure || t->skips);
    prt_assert(t->copy == PRT_COPY_NONE || t->is_dead || prt_txn_owed(t) > 0);
    prt_assert(t->status == 'I' || t->status == 'T' || t->status == 'E');
    prt_assert(!prt_txn_may_release(t) || (prt_txn_owed(t) == 0 && !t->is_dead && !t->extra));
    prt_assert(!prt_txn_is_settled(t) || prt_txn_ends_itself(t));
    prt_assert(!(prt_txn_may_release(t) && prt_txn_wants_fence(t)));
}

static inline void fuzz_check_msg(enum prt_frame_rc rc, const struct prt_frame *f, const uint8_t *p,
                                  size_t n, const struct prt_msg *m)
{
    if (rc == PRT_FRAME_MORE) {
        /* what a caller must keep is bounded; in the middle of a long message it is nothing */
        prt_assert(n < PRT_SMALL_MAX + 5 && (prt_frame_is_clean(f) || n == 0));
    } else if (rc != PRT_FRAME_BAD) {
        prt_assert(m->size <= n && m->size > 0 && m->have <= m->len && m->len < FUZZ_MAX_PACKET);
        prt_assert(m->body + m->have == p + m->size);
        prt_assert(f->left == m->len - m->have);
    }
}

static inline uint64_t fuzz_mix(uint64_t sum, uint64_t x)
{
    return (sum ^ x) * 1099511628211u;
}
#endif
