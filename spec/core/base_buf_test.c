/* base_buf_test.c - the byte buffer: order of bytes, bounds, memory that runs out. */
#include "base/buf.h"
#include "test.h"

TEST(an_empty_buffer_owns_nothing_and_may_be_used_at_once)
{
    struct prt_buf b = {0};

    CHECK_INT(prt_buf_len(&b), 0);
    CHECK(prt_buf_data(&b) == NULL);
    CHECK(prt_buf_add(&b, NULL, 0));
    CHECK(b.p == NULL);
    prt_buf_eat(&b, 0);
    prt_buf_reset(&b);
    prt_buf_free(&b);
}

TEST(bytes_come_out_in_the_order_they_went_in)
{
    static uint8_t in[3000];
    struct prt_buf b = {0};
    uint64_t put = 0, got = 0;
    unsigned seed = 20240817;
    bool same = true;

    for (int round = 0; round < 20000; round++) {
        size_t n = (seed = seed * 1664525 + 1013904223) >> 8 & 2047;
        for (size_t i = 0; i < n; i++) {
            in[i] = (uint8_t)((put + i) * 31 >> 3);
        }
        CHECK(prt_buf_add(&b, in, n));
        put += n;
        size_t eat = (seed = seed * 1664525 + 1013904223) >> 8 & 2047;
        eat = eat < prt_buf_len(&b) ? eat : prt_buf_len(&b);
        for (size_t i = 0; i < eat; i++) {
            same &= prt_buf_data(&b)[i] == (uint8_t)((got + i) * 31 >> 3);
        }
        prt_buf_eat(&b, eat);
        got += eat;
        CHECK_INT(prt_buf_len(&b), put - got);
        CHECK((b.p == NULL) == (put == got));
    }
    CHECK(same);
    CHECK(put > 1000000);
    prt_buf_free(&b);
}

TEST(eating_all_gives_the_memory_back)
{
    struct prt_buf b = {0};

    CHECK(prt_buf_add(&b, "abc", 3));
    prt_buf_eat(&b, 2);
    CHECK(b.p != NULL);
    CHECK_INT(prt_buf_data(&b)[0], 'c');
    prt_buf_eat(&b, 1);
    CHECK(b.p == NULL);
    CHECK_INT(b.cap, 0);
}

TEST(reset_keeps_the_memory_and_forgets_the_data)
{
    struct prt_buf b = {0};
    uint8_t *p;

    CHECK(prt_buf_add(&b, "abc", 3));
    p = b.p;
    prt_buf_reset(&b);
    CHECK_INT(prt_buf_len(&b), 0);
    CHECK(prt_buf_add(&b, "xy", 2));
    CHECK(b.p == p);
    CHECK(memcmp(prt_buf_data(&b), "xy", 2) == 0);
    prt_buf_free(&b);
    CHECK(b.p == NULL);
}

TEST(used_up_room_is_won_back_before_more_is_asked_for)
{
    struct prt_buf b = {0};
    char part[100] = {0};
    uint32_t cap;

    CHECK(prt_buf_add(&b, part, 100));
    CHECK(prt_buf_add(&b, part, 100));
    cap = b.cap;
    for (int i = 0; i < 1000; i++) {
        prt_buf_eat(&b, 100);
        CHECK(prt_buf_add(&b, part, 100));
    }
    CHECK_INT(b.cap, cap);
    prt_buf_free(&b);
}

TEST(room_is_filled_by_the_caller)
{
    struct prt_buf b = {0};
    uint8_t *room = prt_buf_room(&b, 1000);

    CHECK(room != NULL);
    memset(room, 7, 1000);
    CHECK_INT(prt_buf_len(&b), 0);
    b.n += 1000;
    CHECK_INT(prt_buf_len(&b), 1000);
    CHECK_INT(prt_buf_data(&b)[999], 7);
    prt_buf_free(&b);
}

TEST(the_bound_holds_to_the_byte_and_its_failure_stays)
{
    struct prt_buf b = {0};
    static const uint8_t part[1 << 20];

    for (unsigned i = 0; i < PRT_BUF_MAX / sizeof part; i++) {
        CHECK(prt_buf_add(&b, part, sizeof part));
    }
    CHECK_INT(prt_buf_len(&b), PRT_BUF_MAX);
    CHECK(!b.failed);
    CHECK(!prt_buf_add(&b, part, 1));
    CHECK(b.failed);
    prt_buf_eat(&b, 1000);
    CHECK(!prt_buf_add(&b, part, 1)); /* else the stream would have a hole */
    prt_buf_eat(&b, PRT_BUF_MAX - 1000);
    CHECK(b.failed);
    CHECK(b.p == NULL);
    CHECK(!prt_buf_add(&b, part, 1));
    CHECK(!prt_buf_add(&b, part, 0));
    CHECK(prt_buf_room(&b, 1) == NULL);
    prt_buf_reset(&b);
    CHECK(prt_buf_add(&b, part, 1));
    prt_buf_free(&b);
}

TEST(lengths_that_would_wrap_round_are_refused)
{
    struct prt_buf b = {0};

    CHECK(prt_buf_add(&b, "abc", 3));
    CHECK(prt_buf_room(&b, SIZE_MAX) == NULL);
    prt_buf_free(&b);
    CHECK(prt_buf_add(&b, "abc", 3));
    CHECK(prt_buf_room(&b, SIZE_MAX - 2) == NULL);
    prt_buf_free(&b);
    CHECK(prt_buf_room(&b, (size_t)UINT32_MAX + 1) == NULL);
    CHECK(prt_buf_room(&b, 1) == NULL);
    prt_buf_free(&b);
}

TEST(a_full_buffer_that_is_read_slowly_does_not_grow_on)
{
    struct prt_buf b = {0};
    static uint8_t part[4096];
    uint32_t n = 0;

    CHECK(prt_buf_room(&b, PRT_BUF_MAX) != NULL);
    b.n = PRT_BUF_MAX;
    while (n < 3 * PRT_BUF_MAX) {
        prt_buf_eat(&b, sizeof part);
        CHECK(prt_buf_add(&b, part, sizeof part));
        n += sizeof part;
    }
    CHECK(b.cap <= 2 * PRT_BUF_MAX);
    CHECK_INT(prt_buf_len(&b), PRT_BUF_MAX);
    prt_buf_free(&b);
}

#ifdef PRT_DEBUG
TEST(memory_that_runs_out_fails_the_append_and_keeps_what_was_there)
{
    struct prt_buf b = {0};
    static const uint8_t part[4096];

    CHECK(prt_buf_add(&b, "abc", 3));
    (void)setenv("POOLRT_FAULT", "buf_nomem", 1);
    CHECK(prt_buf_add(&b, "def", 3)); /* there is room */
    CHECK(!prt_buf_add(&b, part, sizeof part));
    (void)unsetenv("POOLRT_FAULT");
    CHECK(b.failed);
    CHECK(!prt_buf_add(&b, "g", 1));
    CHECK_INT(prt_buf_len(&b), 6);
    CHECK(memcmp(prt_buf_data(&b), "abcdef", 6) == 0);
    prt_buf_free(&b);
}
#endif
