/* hist.h - histograms of durations: one writer per histogram, merged by whoever reads. */
#ifndef PRT_HIST_H
#define PRT_HIST_H
#include "base/base.h"

/* Log-linear: 0 to 7 us each alone, then 8 buckets per power of two up to 2^32 us (71 min), so a
 * value read back is at most 1/16 off. 240 buckets of 8 bytes = 1.9 KB. */
#define PRT_HIST_BUCKETS 240

struct prt_hist {
    _Atomic uint64_t count, sum_us, max_us;
    _Atomic uint64_t bucket[PRT_HIST_BUCKETS];
};
/** Merged copy, plain numbers. */
struct prt_hist_sum {
    uint64_t count, sum_us, max_us;
    uint64_t bucket[PRT_HIST_BUCKETS];
};
/** One writer at a time (relaxed load and store, no locked instruction). Negative counts as 0. */
void prt_hist_add(struct prt_hist *h, int64_t us);
/** Add h to sum. Any thread; counts of one moment may be a little apart. */
void prt_hist_merge(struct prt_hist_sum *sum, const struct prt_hist *h);
/** The value below which the share q (0..1) lies: the middle of its bucket; 0 when empty. */
uint64_t prt_hist_quantile(const struct prt_hist_sum *s, double q);
/** How many values are <= us: exact where a bucket ends (2^k - 1, ...), in between a share of the
 *  bucket. Never shrinks while values are added. */
uint64_t prt_hist_upto(const struct prt_hist_sum *s, uint64_t us);
#endif
