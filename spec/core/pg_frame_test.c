/* pg_frame_test.c - the framer at its limits, and in every chunking. */
#include "pg/pg.h"
#include "test.h"

#define MAX 0x3fffffffu

static uint8_t bytes[80000];

/* A message of the type whose length field says `announced` and whose body is `fill`. */
static size_t make(uint8_t type, uint32_t announced, uint8_t fill)
{
    memset(bytes, fill, sizeof bytes);
    bytes[0] = type;
    prt_put32(bytes + 1, announced);
    return (size_t)announced + 1;
}

static enum prt_frame_rc first(enum prt_side from, size_t n, uint32_t max, struct prt_msg *m)
{
    struct prt_frame f = {0};

    memset(m, 0, sizeof *m);
    return prt_frame_next(&f, from, bytes, n, max, m);
}

TEST(lengths_below_four_and_above_max_are_refused_by_the_header)
{
    static const uint32_t bad[] = {0, 1, 3, MAX + 1, 0x7fffffff, 0x80000000, 0xffffffff};
    struct prt_msg m;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        (void)make('Q', 4, 0);
        prt_put32(bytes + 1, bad[i]);
        CHECK_INT(first(PRT_FRONTEND, 5, MAX, &m), PRT_FRAME_BAD);
        bytes[0] = 'D';
        CHECK_INT(first(PRT_BACKEND, 5, MAX, &m), PRT_FRAME_BAD);
    }
}

TEST(length_four_is_an_empty_body)
{
    struct prt_msg m;

    (void)make('Q', 4, 'x');
    CHECK_INT(first(PRT_FRONTEND, 5, MAX, &m), PRT_FRAME_MSG);
    CHECK(m.type == 'Q' && m.len == 0 && m.have == 0 && m.size == 5);
    CHECK_INT(first(PRT_FRONTEND, 4, MAX, &m), PRT_FRAME_MORE);
}

TEST(max_packet_itself_passes)
{
    struct prt_msg m;

    (void)make('D', MAX, 'x');
    CHECK_INT(first(PRT_BACKEND, 5, MAX, &m), PRT_FRAME_MSG);
    CHECK(m.len == MAX - 4 && m.have == 0 && m.size == 5);
    (void)make('D', 501, 'x');
    CHECK_INT(first(PRT_BACKEND, 502, 500, &m), PRT_FRAME_BAD);
    CHECK_INT(first(PRT_BACKEND, 502, 501, &m), PRT_FRAME_MSG);
}

TEST(the_longest_length_leaves_no_room_to_wrap)
{
    struct prt_frame f = {0};
    struct prt_msg m;

    (void)make('d', 0xffffffff, 'x');
    CHECK_INT(prt_frame_next(&f, PRT_FRONTEND, bytes, 100, UINT32_MAX, &m), PRT_FRAME_MSG);
    CHECK(m.len == 0xfffffffb && m.have == 95 && m.size == 100);
    CHECK_INT(f.left, 0xfffffffbu - 95);
    CHECK_INT(prt_frame_next(&f, PRT_FRONTEND, bytes, 50, UINT32_MAX, &m), PRT_FRAME_REST);
    CHECK_INT(f.left, 0xfffffffbu - 145);
}

TEST(sync_flush_and_terminate_have_no_body)
{
    static const char types[] = "SHX";
    struct prt_msg m;

    for (const char *t = types; *t; t++) {
        (void)make((uint8_t)*t, 4, 0);
        CHECK_INT(first(PRT_FRONTEND, 5, MAX, &m), PRT_FRAME_MSG);
        (void)make((uint8_t)*t, 5, 0);
        CHECK_INT(first(PRT_FRONTEND, 5, MAX, &m), PRT_FRAME_BAD);
    }
}

TEST(unknown_types_are_refused_by_their_first_byte)
{
    static const char client[] = "QPBDCESHFdcfXp", server[] = "123tTnDCIsSZENAGHWdcVRKv";
    struct prt_msg m;

    for (int t = 0; t < 256; t++) {
        bool is_client = t && strchr(client, t), is_server = t && strchr(server, t);
        (void)make((uint8_t)t, 4, 0);
        CHECK_INT(first(PRT_FRONTEND, 1, MAX, &m), is_client ? PRT_FRAME_MORE : PRT_FRAME_BAD);
        CHECK_INT(first(PRT_FRONTEND, 5, MAX, &m), is_client ? PRT_FRAME_MSG : PRT_FRAME_BAD);
        CHECK_INT(first(PRT_BACKEND, 1, MAX, &m), is_server ? PRT_FRAME_MORE : PRT_FRAME_BAD);
        CHECK_INT(first(PRT_BACKEND, 5, MAX, &m), is_server ? PRT_FRAME_MSG : PRT_FRAME_BAD);
    }
    CHECK_INT(first(PRT_BACKEND, 0, MAX, &m), PRT_FRAME_MORE);
}

TEST(only_some_types_may_be_long)
{
    static const char client_long[] = "QFdPB", client_small[] = "DCEcfp";
    static const char server_long[] = "DdTtVEN", server_small[] = "123nCIsSZAGHWcRKv";
    struct prt_msg m;

    for (const char *t = client_small; *t; t++) {
        (void)make((uint8_t)*t, PRT_SMALL_MAX, 0);
        CHECK_INT(first(PRT_FRONTEND, PRT_SMALL_MAX + 1, MAX, &m), PRT_FRAME_MSG);
        (void)make((uint8_t)*t, PRT_SMALL_MAX + 1, 0);
        CHECK_INT(first(PRT_FRONTEND, 5, MAX, &m), PRT_FRAME_BAD);
        CHECK_INT(first(PRT_FRONTEND, PRT_SMALL_MAX + 2, MAX, &m), PRT_FRAME_BAD);
    }
    for (const char *t = server_small; *t; t++) {
        (void)make((uint8_t)*t, PRT_SMALL_MAX, 0);
        CHECK_INT(first(PRT_BACKEND, PRT_SMALL_MAX + 1, MAX, &m), PRT_FRAME_MSG);
        (void)make((uint8_t)*t, PRT_SMALL_MAX + 1, 0);
        CHECK_INT(first(PRT_BACKEND, 5, MAX, &m), PRT_FRAME_BAD);
    }
    for (const char *t = client_long; *t; t++) {
        (void)make((uint8_t)*t, 70000, 0);
        CHECK_INT(first(PRT_FRONTEND, 20000, MAX, &m), PRT_FRAME_MSG);
        CHECK(m.len == 69996 && m.have == 19995);
    }
    for (const char *t = server_long; *t; t++) {
        (void)make((uint8_t)*t, 70000, 0);
        CHECK_INT(first(PRT_BACKEND, 20000, MAX, &m), PRT_FRAME_MSG);
    }
}

TEST(small_messages_are_held_until_they_are_whole)
{
    static const char client[] = "QPBDCEFcfp", server[] = "123tTnCIsSZENAGHWcVRKv";
    struct prt_msg m;

    for (int side = 0; side < 2; side++) {
        for (const char *t = side ? server : client; *t; t++) {
            size_t n = make((uint8_t)*t, 300, 0);
            for (size_t k = 1; k < n; k++) {
                CHECK_INT(first((enum prt_side)side, k, MAX, &m), PRT_FRAME_MORE);
            }
            CHECK_INT(first((enum prt_side)side, n, MAX, &m), PRT_FRAME_MSG);
            CHECK(m.len == 296 && m.have == 296 && m.size == n);
        }
    }
}

TEST(rows_and_copy_data_pass_from_their_first_byte)
{
    static const struct {
        enum prt_side from;
        char type;
    } rows[] = {{PRT_BACKEND, 'D'}, {PRT_BACKEND, 'd'}, {PRT_FRONTEND, 'd'}};

    for (int i = 0; i < 3; i++) {
        struct prt_frame f = {0};
        struct prt_msg m;
        size_t n = make((uint8_t)rows[i].type, 300, 'x');
        CHECK_INT(prt_frame_next(&f, rows[i].from, bytes, 5, MAX, &m), PRT_FRAME_MSG);
        CHECK(m.have == 0 && m.len == 296 && !prt_frame_is_clean(&f));
        CHECK_INT(prt_frame_next(&f, rows[i].from, bytes + 5, 0, MAX, &m), PRT_FRAME_MORE);
        CHECK_INT(prt_frame_next(&f, rows[i].from, bytes + 5, 100, MAX, &m), PRT_FRAME_REST);
        CHECK(m.type == (uint8_t)rows[i].type && m.have == 100 && m.size == 100);
        CHECK(m.body == bytes + 5);
        /* the rest, and behind it bytes of the next message */
        CHECK_INT(prt_frame_next(&f, rows[i].from, bytes + 105, n, MAX, &m), PRT_FRAME_REST);
        CHECK(m.size == 196 && prt_frame_is_clean(&f));
    }
}

/* The names of P and B are here before a long one passes, however it is cut. */
static void names(uint8_t type, uint32_t from, uint32_t to)
{
    struct prt_msg m;

    for (uint32_t at = from; at < to; at += 1111) {
        (void)make(type, 30000, 'n');
        if (type == 'B') {
            bytes[5] = 0;
        }
        bytes[5 + at] = 0;
        CHECK_INT(first(PRT_FRONTEND, 5, MAX, &m), PRT_FRAME_MORE);
        CHECK_INT(first(PRT_FRONTEND, 5 + at, MAX, &m), PRT_FRAME_MORE);
        CHECK_INT(first(PRT_FRONTEND, 5 + at + 1, MAX, &m), PRT_FRAME_MSG);
        CHECK(m.have == at + 1);
    }
}

TEST(long_parse_and_bind_wait_for_their_names)
{
    struct prt_msg m;

    names('P', 3, PRT_SMALL_MAX);
    names('B', 3, PRT_SMALL_MAX);
    (void)make('P', 30000, 'n');
    bytes[5 + PRT_SMALL_MAX - 1] = 0; /* the last place where a name may end */
    CHECK_INT(first(PRT_FRONTEND, 20000, MAX, &m), PRT_FRAME_MSG);
    CHECK_INT(first(PRT_FRONTEND, 5 + PRT_SMALL_MAX - 1, MAX, &m), PRT_FRAME_MORE);
    (void)make('P', 30000, 'n');
    bytes[5 + PRT_SMALL_MAX] = 0;
    CHECK_INT(first(PRT_FRONTEND, 20000, MAX, &m), PRT_FRAME_BAD);
    CHECK_INT(first(PRT_FRONTEND, 5 + PRT_SMALL_MAX, MAX, &m), PRT_FRAME_BAD);
    CHECK_INT(first(PRT_FRONTEND, 5 + PRT_SMALL_MAX - 1, MAX, &m), PRT_FRAME_MORE);
    (void)make('B', 30000, 'n');
    bytes[5 + 10] = 0; /* portal, but the statement's name does not end */
    CHECK_INT(first(PRT_FRONTEND, 20000, MAX, &m), PRT_FRAME_BAD);
}

TEST(long_errors_wait_for_severity_and_sqlstate)
{
    static const char head[] = "SFEHLER\0VERROR\0C42601\0Mvery long";
    struct prt_msg m;
    size_t decides = 5 + sizeof "SFEHLER\0VERROR\0C42601";

    (void)make('E', 30000, 'x');
    memcpy(bytes + 5, head, sizeof head - 1);
    for (size_t k = 5; k < decides; k++) {
        CHECK_INT(first(PRT_BACKEND, k, MAX, &m), PRT_FRAME_MORE);
    }
    CHECK_INT(first(PRT_BACKEND, decides, MAX, &m), PRT_FRAME_MSG);
    (void)make('N', 30000, 'x'); /* one field without end: its first bytes are enough */
    CHECK_INT(first(PRT_BACKEND, 5 + PRT_SMALL_MAX - 1, MAX, &m), PRT_FRAME_MORE);
    CHECK_INT(first(PRT_BACKEND, 5 + PRT_SMALL_MAX, MAX, &m), PRT_FRAME_MSG);
    (void)make('E', 30000, 0); /* no field at all */
    CHECK_INT(first(PRT_BACKEND, 6, MAX, &m), PRT_FRAME_MSG);
}

/* A stream of every client message, cut in two at each byte: the same messages come out. */
static unsigned stream_sum(const uint8_t *p, size_t n, size_t cut)
{
    struct prt_frame f = {0};
    unsigned sum = 0;
    size_t at = 0;

    for (size_t end = cut;; end = n) {
        struct prt_msg m;
        enum prt_frame_rc rc;
        while ((rc = prt_frame_next(&f, PRT_FRONTEND, p + at, end - at, MAX, &m)) <=
               PRT_FRAME_REST) {
            CHECK(m.body + m.have == p + at + m.size);
            sum = rc == PRT_FRAME_MSG ? sum * 31 + m.type * 7 + m.len : sum;
            at += m.size;
        }
        CHECK_INT(rc, PRT_FRAME_MORE);
        if (end == n) {
            CHECK_INT(at, n);
            CHECK(prt_frame_is_clean(&f));
            return sum;
        }
    }
}

TEST(every_client_message_cut_at_each_byte)
{
    static const char types[] = "QPBDCEFdcfp";
    static uint8_t stream[40000];
    size_t n = 0;
    unsigned whole;

    for (const char *t = types; *t; t++) {
        size_t size = make((uint8_t)*t, 40 + (uint32_t)(t - types), 0);
        memcpy(stream + n, bytes, size);
        n += size;
    }
    for (const char *t = "SHX"; *t; t++) {
        size_t size = make((uint8_t)*t, 4, 0);
        memcpy(stream + n, bytes, size);
        n += size;
    }
    memcpy(stream + n, bytes, make('Q', 12000, 0));
    n += 12001;
    whole = stream_sum(stream, n, n);
    for (size_t cut = 0; cut < n; cut++) {
        CHECK_INT(stream_sum(stream, n, cut), whole);
    }
}
