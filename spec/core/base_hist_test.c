/* base_hist_test.c - histograms: how far a value read back may be off, sums, bounds. */
#include "base/hist.h"
#include "test.h"

static struct prt_hist_sum sum_of(const struct prt_hist *h)
{
    struct prt_hist_sum s = {0};

    prt_hist_merge(&s, h);
    return s;
}

/* the value alone in a histogram, next to a larger one so that the maximum does not help */
static uint64_t read_back(uint64_t us)
{
    struct prt_hist h = {0};
    struct prt_hist_sum s;

    prt_hist_add(&h, (int64_t)us);
    prt_hist_add(&h, (int64_t)us * 4 + 100);
    s = sum_of(&h);
    return prt_hist_quantile(&s, 0.5);
}

static bool is_close(uint64_t got, uint64_t want)
{
    uint64_t off = got > want ? got - want : want - got;

    return off * 16 <= want;
}

TEST(a_value_read_back_is_at_most_a_sixteenth_off)
{
    int bad = 0;

    for (uint64_t us = 0; us < 100000; us++) {
        bad += !is_close(read_back(us), us);
    }
    for (uint64_t us = 100000; us <= 1ull << 30; us += us / 997) {
        bad += !is_close(read_back(us), us);
    }
    for (int k = 3; k <= 30; k++) {
        bad += !is_close(read_back((1ull << k) - 1), (1ull << k) - 1);
        bad += !is_close(read_back(1ull << k), 1ull << k);
        bad += !is_close(read_back((1ull << k) + 1), (1ull << k) + 1);
    }
    CHECK_INT(bad, 0);
}

TEST(an_empty_histogram_reads_zero)
{
    struct prt_hist_sum s = {0};

    CHECK_INT(prt_hist_quantile(&s, 0.99), 0);
    CHECK_INT(prt_hist_upto(&s, 1000), 0);
}

TEST(zero_and_less_count_as_zero)
{
    struct prt_hist h = {0};
    struct prt_hist_sum s;

    prt_hist_add(&h, 0);
    prt_hist_add(&h, -5);
    prt_hist_add(&h, INT64_MIN);
    prt_hist_add(&h, 1);
    s = sum_of(&h);
    CHECK_INT(s.count, 4);
    CHECK_INT(s.sum_us, 1);
    CHECK_INT(prt_hist_upto(&s, 0), 3);
    CHECK_INT(prt_hist_upto(&s, 1), 4);
    CHECK_INT(prt_hist_quantile(&s, 0.75), 0);
    CHECK_INT(prt_hist_quantile(&s, 0.76), 1);
}

TEST(quantiles_of_a_known_series_are_close)
{
    struct prt_hist h = {0};
    struct prt_hist_sum s;

    for (int i = 1; i <= 100000; i++) {
        prt_hist_add(&h, i);
    }
    s = sum_of(&h);
    CHECK_INT(s.count, 100000);
    CHECK_INT(s.max_us, 100000);
    CHECK_INT(s.sum_us, 5000050000);
    for (int percent = 1; percent <= 100; percent++) {
        CHECK(is_close(prt_hist_quantile(&s, percent / 100.0), (uint64_t)percent * 1000));
    }
    CHECK(prt_hist_quantile(&s, 1) <= s.max_us);
}

TEST(a_share_outside_of_0_to_1_gives_the_smallest_or_the_largest)
{
    struct prt_hist h = {0};
    struct prt_hist_sum s;

    prt_hist_add(&h, 3);
    prt_hist_add(&h, 5000);
    s = sum_of(&h);
    CHECK_INT(prt_hist_quantile(&s, -1), 3);
    CHECK_INT(prt_hist_quantile(&s, 0), 3);
    CHECK_INT(prt_hist_quantile(&s, __builtin_nan("")), 3);
    CHECK(is_close(prt_hist_quantile(&s, 1), 5000));
    CHECK(is_close(prt_hist_quantile(&s, 7), 5000));
    CHECK(is_close(prt_hist_quantile(&s, __builtin_inf()), 5000));
}

TEST(upto_is_exact_where_a_bucket_ends)
{
    struct prt_hist h = {0};
    struct prt_hist_sum s;

    for (int us = 0; us < 4096; us++) {
        prt_hist_add(&h, us);
    }
    s = sum_of(&h);
    for (uint64_t us = 0; us < 8; us++) {
        CHECK_INT(prt_hist_upto(&s, us), us + 1);
    }
    for (int k = 3; k < 12; k++) {
        for (uint64_t sub = 8; sub < 16; sub++) {
            uint64_t end = (sub + 1) * (1ull << k) / 8 - 1;
            CHECK_INT(prt_hist_upto(&s, end), end + 1);
        }
    }
    CHECK_INT(prt_hist_upto(&s, 1000), 1001); /* spread evenly, so the estimate is right */
    CHECK_INT(prt_hist_upto(&s, 1 << 20), 4096);
    CHECK_INT(prt_hist_upto(&s, UINT64_MAX), 4096);
}

TEST(upto_never_shrinks_while_values_are_added)
{
    struct prt_hist h = {0};
    uint64_t before[64] = {0};
    unsigned seed = 99;
    int bad = 0;

    for (int i = 0; i < 2000; i++) {
        struct prt_hist_sum s;
        seed = seed * 1664525 + 1013904223;
        prt_hist_add(&h, (int64_t)(seed >> (seed & 31)) << (seed >> 8 & 3));
        s = sum_of(&h);
        for (int k = 0; k < 64; k++) {
            uint64_t n = prt_hist_upto(&s, (1ull << k) + k);
            bad += n < before[k] || (k && n < prt_hist_upto(&s, 1ull << (k - 1)));
            before[k] = n;
        }
    }
    CHECK_INT(bad, 0);
}

TEST(values_beyond_the_last_bucket_still_count)
{
    struct prt_hist h = {0};
    struct prt_hist_sum s;

    prt_hist_add(&h, INT64_MAX);
    prt_hist_add(&h, 1ll << 40);
    s = sum_of(&h);
    CHECK_INT(s.count, 2);
    CHECK_INT(s.max_us, INT64_MAX);
    CHECK_INT(prt_hist_quantile(&s, 0.5), INT64_MAX);
    CHECK_INT(prt_hist_upto(&s, 1ll << 30), 0);
    CHECK_INT(prt_hist_upto(&s, UINT64_MAX), 2);
}

TEST(merging_adds_histograms_up)
{
    struct prt_hist a = {0}, b = {0};
    struct prt_hist_sum s = {0};

    prt_hist_add(&a, 10);
    prt_hist_add(&b, 20);
    prt_hist_add(&b, 3000);
    prt_hist_merge(&s, &a);
    prt_hist_merge(&s, &b);
    CHECK_INT(s.count, 3);
    CHECK_INT(s.sum_us, 3030);
    CHECK_INT(s.max_us, 3000);
    CHECK_INT(prt_hist_upto(&s, 15), 1);
    CHECK_INT(prt_hist_upto(&s, 31), 2);
}
