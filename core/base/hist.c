/* hist.c - log-linear histograms of microseconds.
 * Owns: nothing.   Threads: one writer per histogram; readers merge from any thread.
 * Idea: 0 to 7 us have a bucket each; from there a power of two is cut into 8 equal buckets, so a
 * bucket is an eighth of its lower bound wide and its middle at most 1/16 off. The last bucket
 * holds all that is longer than 67 minutes. */
#include "base/hist.h"

#define SUB_BITS 3
#define SUB (1u << SUB_BITS)
#define LAST (PRT_HIST_BUCKETS - 1)

static unsigned bucket_of(uint64_t us)
{
    unsigned log2, i;

    if (us < SUB) {
        return (unsigned)us;
    }
    log2 = 63 - (unsigned)__builtin_clzll(us);
    i = (log2 - SUB_BITS + 1) * SUB + (unsigned)(us >> (log2 - SUB_BITS) & (SUB - 1));
    return i < LAST ? i : LAST;
}

static uint64_t width_of(unsigned bucket)
{
    return bucket < SUB ? 1 : 1ull << (bucket / SUB - 1);
}

static uint64_t lowest_of(unsigned bucket)
{
    return bucket < SUB ? bucket : (SUB + bucket % SUB) * width_of(bucket);
}

/* The only writer: a load and a store need no locked instruction, and relaxed order is enough
 * because nothing else is published through these numbers. */
static inline void bump(_Atomic uint64_t *x, uint64_t by)
{
    uint64_t old = atomic_load_explicit(x, memory_order_relaxed);

    atomic_store_explicit(x, old + by, memory_order_relaxed);
}

void prt_hist_add(struct prt_hist *h, int64_t us)
{
    uint64_t v = us > 0 ? (uint64_t)us : 0;

    if (v > atomic_load_explicit(&h->max_us, memory_order_relaxed)) {
        atomic_store_explicit(&h->max_us, v, memory_order_relaxed);
    }
    bump(&h->bucket[bucket_of(v)], 1);
    bump(&h->sum_us, v);
    bump(&h->count, 1);
}

void prt_hist_merge(struct prt_hist_sum *sum, const struct prt_hist *h)
{
    uint64_t max;

    /* counted from the buckets, so that count and buckets agree even while the writer is busy */
    for (unsigned i = 0; i < PRT_HIST_BUCKETS; i++) {
        uint64_t n = atomic_load_explicit(&h->bucket[i], memory_order_relaxed);
        sum->bucket[i] += n;
        sum->count += n;
    }
    sum->sum_us += atomic_load_explicit(&h->sum_us, memory_order_relaxed);
    max = atomic_load_explicit(&h->max_us, memory_order_relaxed);
    if (max > sum->max_us) {
        sum->max_us = max;
    }
}

/* which value, counted from 1 for the smallest, has the share q at or below it */
static uint64_t rank_of(double q, uint64_t count)
{
    double exact = q * (double)count;
    uint64_t rank;

    if (!(exact > 1)) { /* also when q is not a number */
        return 1;
    }
    if (exact >= (double)count) {
        return count;
    }
    rank = (uint64_t)exact;
    return (double)rank < exact ? rank + 1 : rank;
}

uint64_t prt_hist_quantile(const struct prt_hist_sum *s, double q)
{
    uint64_t rank, below = 0, middle;
    unsigned i = 0;

    if (s->count == 0) {
        return 0;
    }
    rank = rank_of(q, s->count);
    while (i < LAST && below + s->bucket[i] < rank) {
        below += s->bucket[i++];
    }
    if (i == LAST) {
        return s->max_us;
    }
    middle = lowest_of(i) + width_of(i) / 2;
    return middle < s->max_us ? middle : s->max_us;
}

/* Between bounds the share of the bucket is estimated. The answer never shrinks while values are
 * added, as a Prometheus counter must not; so the largest value seen may not sharpen it. */
uint64_t prt_hist_upto(const struct prt_hist_sum *s, uint64_t us)
{
    unsigned at = bucket_of(us);
    uint64_t n = 0, inside;

    for (unsigned i = 0; i < at; i++) {
        n += s->bucket[i];
    }
    if (at == LAST) {
        return us == UINT64_MAX ? n + s->bucket[LAST] : n;
    }
    inside = us - lowest_of(at) + 1;
    return n + (uint64_t)((double)s->bucket[at] * (double)inside / (double)width_of(at));
}
