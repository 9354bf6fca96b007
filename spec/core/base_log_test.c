/* base_log_test.c - log lines: that no value can forge a line or a field, bounds, levels, limits.
 */
#include "base/log.h"
#include "test.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OWN_MALLOC 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define OWN_MALLOC 0
#endif
#endif
#ifndef OWN_MALLOC
#define OWN_MALLOC 1
#endif

#if OWN_MALLOC
static int allocations;
void *__libc_malloc(size_t n);
void *malloc(size_t n)
{
    allocations++;
    return __libc_malloc(n);
}
#endif

static char last[8192];
static size_t last_n;
static int lines;

static void keep(const char *line, size_t n)
{
    memcpy(last, line, n);
    last[n] = '\0';
    last_n = n;
    lines++;
}

static void begin(void)
{
    prt_log_set_sink(keep);
    prt_log_set_level(PRT_LOG_INFO);
    last[0] = '\0';
    last_n = 0;
    lines = 0;
}

/* what follows "event=e " */
static const char *after_event(void)
{
    const char *at = strstr(last, " event=e ");
    return at ? at + strlen(" event=e ") : "(no event)";
}

static const char *logged(struct prt_str value)
{
    begin();
    prt_log(PRT_LOG_INFO, "e", prt_kv_str("v", value));
    return after_event();
}

TEST(a_line_has_time_level_event_and_fields)
{
    static const char shape[] = "ts=dddd-dd-ddTdd:dd:dd.dddZ level=info event=login user=acme ms=3 "
                                "share=0.25\n";
    begin();
    prt_log(PRT_LOG_INFO, "login", prt_kv_z("user", "acme"), prt_kv_int("ms", 3),
            prt_kv_num("share", 0.25));
    CHECK_INT(last_n, strlen(shape));
    for (size_t i = 3; i < 27; i++) {
        if (last[i] >= '0' && last[i] <= '9') {
            last[i] = 'd';
        }
    }
    CHECK_STR(last, shape);
}

TEST(the_time_is_now_in_utc)
{
    int y, mo, d, h, mi, s, ms;
    struct tm tm;

    begin();
    int64_t from = prt_wall_us() / 1000;
    prt_log(PRT_LOG_INFO, "e");
    int64_t to = prt_wall_us() / 1000;
    CHECK_INT(sscanf(last, "ts=%d-%d-%dT%d:%d:%d.%dZ", &y, &mo, &d, &h, &mi, &s, &ms), 7);
    tm = (struct tm){.tm_year = y - 1900, .tm_mon = mo - 1, .tm_mday = d};
    tm.tm_hour = h, tm.tm_min = mi, tm.tm_sec = s;
    int64_t got = (int64_t)timegm(&tm) * 1000 + ms;
    CHECK(got >= from && got <= to);
}

TEST(a_line_may_have_no_fields)
{
    begin();
    prt_log(PRT_LOG_WARN, "nothing_more");
    CHECK(strstr(last, "Z level=warn event=nothing_more\n") != NULL);
}

TEST(plain_values_stand_without_quotes)
{
    CHECK_STR(logged(PRT_STR("acme-1_x.y:5/z@[::1],'")), "v=acme-1_x.y:5/z@[::1],'\n");
    CHECK_STR(logged(PRT_STR("m\xc3\xbcller")), "v=m\xc3\xbcller\n");
    CHECK_STR(logged(PRT_STR("\xf0\x9f\x90\x98")), "v=\xf0\x9f\x90\x98\n");
}

TEST(what_could_end_a_field_is_quoted)
{
    CHECK_STR(logged(PRT_STR("")), "v=\"\"\n");
    CHECK_STR(logged((struct prt_str){NULL, 0}), "v=\"\"\n");
    CHECK_STR(logged(PRT_STR("a b")), "v=\"a b\"\n");
    CHECK_STR(logged(PRT_STR("a=b")), "v=\"a=b\"\n");
    CHECK_STR(logged(PRT_STR("x level=error")), "v=\"x level=error\"\n");
    CHECK_STR(logged(PRT_STR("x\" level=\"error")), "v=\"x\\\" level=\\\"error\"\n");
    CHECK_STR(logged(PRT_STR("x\\\" level=error")), "v=\"x\\\\\\\" level=error\"\n");
    CHECK_STR(logged(PRT_STR("end\\")), "v=\"end\\\\\"\n");
}

TEST(what_could_end_a_line_is_escaped)
{
    CHECK_STR(logged(PRT_STR("x\nts=1 level=error")), "v=\"x\\nts=1 level=error\"\n");
    CHECK_STR(logged(PRT_STR("\r\t")), "v=\"\\r\\t\"\n");
    CHECK_STR(logged(PRT_STR("a\0b")), "v=\"a\\x00b\"\n");
    CHECK_STR(logged(PRT_STR("\x1b[31m\x7f")), "v=\"\\x1b[31m\\x7f\"\n");
    CHECK_STR(logged(PRT_STR("\xc2\x85")), "v=\"\\xc2\\x85\"\n");          /* next line */
    CHECK_STR(logged(PRT_STR("\xe2\x80\xa8")), "v=\"\\xe2\\x80\\xa8\"\n"); /* line separator */
    CHECK_STR(logged(PRT_STR("\xc2\x9b")), "v=\"\\xc2\\x9b\"\n");          /* a terminal's CSI */
    CHECK_STR(logged(PRT_STR("\xe2\x80\xae")), "v=\"\\xe2\\x80\\xae\"\n"); /* right to left */
}

TEST(bytes_that_are_not_utf8_are_escaped)
{
    CHECK_STR(logged(PRT_STR("\xff")), "v=\"\\xff\"\n");
    CHECK_STR(logged(PRT_STR("a\x80z")), "v=\"a\\x80z\"\n");
    CHECK_STR(logged(PRT_STR("\xc3")), "v=\"\\xc3\"\n");               /* too short */
    CHECK_STR(logged(PRT_STR("\xc3\"")), "v=\"\\xc3\\\"\"\n");         /* swallows no quote */
    CHECK_STR(logged(PRT_STR("\xe2\x82\n")), "v=\"\\xe2\\x82\\n\"\n"); /* nor an end of line */
    CHECK_STR(logged(PRT_STR("\xc0\x8a")), "v=\"\\xc0\\x8a\"\n"); /* newline, too long a form */
    CHECK_STR(logged(PRT_STR("\xc0\xa2")), "v=\"\\xc0\\xa2\"\n"); /* a quote, the same */
    CHECK_STR(logged(PRT_STR("\xe0\x80\x8a")), "v=\"\\xe0\\x80\\x8a\"\n");
    CHECK_STR(logged(PRT_STR("\xed\xa0\x80")), "v=\"\\xed\\xa0\\x80\"\n");          /* surrogate */
    CHECK_STR(logged(PRT_STR("\xf4\x90\x80\x80")), "v=\"\\xf4\\x90\\x80\\x80\"\n"); /* too large */
    CHECK_STR(logged(PRT_STR("\xf8\x88\x80\x80\x80")), "v=\"\\xf8\\x88\\x80\\x80\\x80\"\n");
}

/* A reader of logfmt as strict as they come: true when the line is `want` fields, else false. */
static bool is_line_of(const char *p, size_t n, int want)
{
    const char *end = p + n - 1;
    int fields = 0;

    if (n == 0 || *end != '\n') {
        return false;
    }
    while (p < end) {
        while (p < end && *p != '=' && *p > ' ') {
            p++;
        }
        if (p == end || *p++ != '=') {
            return false;
        }
        if (p < end && *p == '"') {
            for (p++; p < end && *p != '"'; p++) {
                if ((uint8_t)*p < ' ' || *p == 0x7f || (*p == '\\' && ++p == end)) {
                    return false;
                }
            }
            if (p++ == end) {
                return false;
            }
        } else {
            while (p < end && *p != ' ') {
                if ((uint8_t)*p < ' ' || *p == '=' || *p == '"' || *p == 0x7f) {
                    return false;
                }
                p++;
            }
        }
        fields++;
        if (p < end && *p++ != ' ') {
            return false;
        }
    }
    return fields == want;
}

TEST(random_bytes_never_forge_anything)
{
    static char value[6000];
    uint64_t seed;
    int bad = 0;

    prt_random(&seed, sizeof seed);
    seed |= 1;
    printf("  SEED=%llu\n", (unsigned long long)seed);
    begin();
    for (int round = 0; round < 20000; round++) {
        static const char spice[] = "\"\\\n\r =\x7f\xc3\xe2\x80";
        size_t n = (size_t)(round % 50 ? seed % 40 : seed % sizeof value);
        for (size_t i = 0; i < n; i++) {
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
            value[i] = seed & 256 ? (char)seed : spice[(seed >> 9) % (sizeof spice - 1)];
        }
        prt_log(PRT_LOG_INFO, "e", prt_kv_str("a", (struct prt_str){value, n}), prt_kv_int("b", 7),
                prt_kv_str("c", (struct prt_str){value, n / 2}));
        bad += !is_line_of(last, last_n, 6) || last_n > 4096;
    }
    CHECK_INT(bad, 0);
    CHECK_INT(lines, 20000);
}

TEST(a_long_value_is_cut_with_a_mark_and_the_next_field_follows)
{
    static char big[100000];
    char want[1100];

    memset(big, 'x', sizeof big);
    begin();
    prt_log(PRT_LOG_INFO, "e", prt_kv_str("v", (struct prt_str){big, sizeof big}),
            prt_kv_int("ms", 3));
    (void)snprintf(want, sizeof want, "v=%.1024s... ms=3\n", big);
    CHECK_STR(after_event(), want);
    CHECK_STR(logged((struct prt_str){big, 1024}) + 1024, "xx\n"); /* fits: no mark */
    big[1] = ' ';
    CHECK_STR(logged((struct prt_str){big, sizeof big}) + 1024, "xxx...\"\n");
}

TEST(a_value_is_not_cut_inside_a_character)
{
    static char big[2001];

    for (int i = 0; i < 2000; i += 2) {
        memcpy(big + 1 + i, "\xc3\xbc", 2);
    }
    big[0] = 'x';
    CHECK_STR(logged((struct prt_str){big, sizeof big}) + 1023, "\xc3\xbc...\n");
}

TEST(a_line_is_bounded_and_says_what_it_left_out)
{
    static char big[1000];
    struct prt_kv kv[50];

    memset(big, '\n', sizeof big);
    for (int i = 0; i < 50; i++) {
        kv[i] = prt_kv_str("field", (struct prt_str){big, sizeof big});
    }
    begin();
    prt_log_write(PRT_LOG_INFO, NULL, "e", kv, 50);
    CHECK(last_n <= 4096);
    CHECK(last_n > 4000);
    CHECK(strstr(last, "...\" left_out=48\n") != NULL);
    CHECK(is_line_of(last, last_n, 3 + 2 + 1));
}

TEST(every_length_near_the_bound_gives_a_whole_line)
{
    static char big[1024], hard[300];
    int bad = 0;

    memset(big, 'y', sizeof big);
    memset(hard, 0xff, sizeof hard);
    begin();
    for (size_t n = 0; n <= 1024; n++) {
        for (int kind = 0; kind < 3; kind++) {
            struct prt_str full = {big, sizeof big}, part = {big, n};
            struct prt_str last_one = {kind ? hard : big + 1, sizeof hard};
            big[0] = kind == 2 ? ' ' : 'y';
            prt_log(PRT_LOG_INFO, "e", prt_kv_str("a", full), prt_kv_str("b", full),
                    prt_kv_str("c", full), prt_kv_str("d", part), prt_kv_str("e", last_one));
            bad += last_n > 4096 || !is_line_of(last, last_n, 8);
        }
    }
    CHECK_INT(bad, 0);
}

TEST(keys_and_events_cannot_forge_either)
{
    char key[200];

    begin();
    prt_log(PRT_LOG_INFO, "x level=error\n", prt_kv_z("a b=\n\"", "1"), prt_kv_z("", "2"),
            prt_kv_z(NULL, "3"));
    CHECK(strstr(last, "event=\"x level=error\\n\" a_b___=1 _=2 _=3\n") != NULL);
    memset(key, 'k', sizeof key);
    key[sizeof key - 1] = '\0';
    begin();
    prt_log(PRT_LOG_INFO, "e", prt_kv_z(key, "v"));
    CHECK_INT(strlen(after_event()), 63 + 3);
}

TEST(numbers_are_written_as_they_are)
{
    begin();
    prt_log(PRT_LOG_INFO, "e", prt_kv_int("a", INT64_MIN), prt_kv_int("b", INT64_MAX),
            prt_kv_num("c", -1.5), prt_kv_num("d", 1e300), prt_kv_num("e", 12345.678));
    CHECK_STR(after_event(), "a=-9223372036854775808 b=9223372036854775807 c=-1.5 d=1e+300 "
                             "e=12345.678\n");
}

TEST(lines_below_the_level_are_dropped)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};

    for (int level = PRT_LOG_DEBUG; level <= PRT_LOG_ERROR; level++) {
        begin();
        prt_log_set_level((enum prt_log_level)level);
        for (int i = PRT_LOG_DEBUG; i <= PRT_LOG_ERROR; i++) {
            prt_log((enum prt_log_level)i, "e");
            CHECK_INT(prt_log_on((enum prt_log_level)i), i >= level);
        }
        CHECK_INT(lines, 4 - level);
        CHECK(strstr(last, "level=error") != NULL);
        enum prt_log_level found;
        CHECK(prt_log_level_of(prt_str_of(names[level]), &found));
        CHECK_INT(found, level);
    }
    enum prt_log_level kept = PRT_LOG_WARN;
    CHECK(!prt_log_level_of(PRT_STR("loud"), &kept));
    CHECK(!prt_log_level_of(PRT_STR("INFO"), &kept));
    CHECK(!prt_log_level_of(PRT_STR(""), &kept));
    CHECK_INT(kept, PRT_LOG_WARN);
}

TEST(a_limited_place_says_how_often_it_was_silent)
{
    static struct prt_log_limit limit;

    begin();
    for (int i = 0; i < 5; i++) {
        prt_log_limited(&limit, PRT_LOG_INFO, "e", prt_kv_int("i", i));
    }
    CHECK_INT(lines, 1);
    CHECK_STR(after_event(), "i=0\n");
    CHECK(limit.next_us > prt_now_us() + 8000000 && limit.next_us <= prt_now_us() + 10000000);
    limit.next_us = prt_now_us(); /* ten seconds later */
    prt_log_limited(&limit, PRT_LOG_INFO, "e", prt_kv_int("i", 5));
    CHECK_INT(lines, 2);
    CHECK_STR(after_event(), "i=5 repeated=4\n");
    limit.next_us = 0;
    prt_log_limited(&limit, PRT_LOG_INFO, "e", prt_kv_int("i", 6));
    CHECK_STR(after_event(), "i=6\n");
}

TEST(a_line_below_the_level_does_not_use_up_the_limit)
{
    static struct prt_log_limit limit;

    begin();
    prt_log_limited(&limit, PRT_LOG_DEBUG, "e");
    CHECK_INT(limit.next_us, 0);
    CHECK_INT(limit.dropped, 0);
}

TEST(errno_survives)
{
    begin();
    errno = ENOTTY;
    prt_log(PRT_LOG_INFO, "e", prt_kv_num("x", 0.1));
    CHECK_INT(errno, ENOTTY);
}

#if OWN_MALLOC
TEST(a_line_allocates_nothing)
{
    begin();
    int before = allocations;
    prt_log(PRT_LOG_INFO, "e", prt_kv_num("x", 1e300), prt_kv_z("y", "a b"), prt_kv_int("z", 9));
    CHECK_INT(allocations - before, 0);
    CHECK_INT(lines, 1);
    void *volatile one = malloc(1); /* the count counts */
    free(one);
    CHECK(allocations > before);
}
#endif

/* ---- standard error, from several threads ---- */
enum { WRITERS = 4, LINES_EACH = 500 };

static void *write_many(void *arg)
{
    static struct prt_log_limit limit;
    char value[900];
    int who = (int)(intptr_t)arg;

    memset(value, 'a' + who, sizeof value);
    for (int i = 0; i < LINES_EACH; i++) {
        prt_log(PRT_LOG_INFO, "e", prt_kv_int("who", who),
                prt_kv_str("v", (struct prt_str){value, sizeof value}));
        prt_log_limited(&limit, PRT_LOG_INFO, "limited");
    }
    return NULL;
}

static void *read_all(void *arg)
{
    FILE *f = fdopen(*(int *)arg, "r");
    static char line[8192];
    static int count[WRITERS + 2]; /* per writer, then limited ones, then broken ones */

    while (f && fgets(line, sizeof line, f)) {
        const char *who = strstr(line, " who="), *v = strstr(line, " v=");
        if (strstr(line, " event=limited\n")) {
            count[WRITERS]++;
        } else if (who && v && strspn(v + 3, (char[]){v[3], 0}) == 900 && v[903] == '\n' &&
                   v[3] == 'a' + atoi(who + 5)) {
            count[v[3] - 'a']++;
        } else {
            count[WRITERS + 1]++;
        }
    }
    if (f) {
        (void)fclose(f);
    }
    return count;
}

TEST(lines_of_several_threads_arrive_whole_on_standard_error)
{
    int ends[2], saved = dup(STDERR_FILENO);
    pthread_t reader, writers[WRITERS];
    void *result;

    begin();
    prt_log_set_sink(NULL);
    CHECK_INT(pipe(ends), 0);
    (void)dup2(ends[1], STDERR_FILENO);
    (void)close(ends[1]);
    CHECK_INT(pthread_create(&reader, NULL, read_all, &ends[0]), 0);
    for (intptr_t i = 0; i < WRITERS; i++) {
        CHECK_INT(pthread_create(&writers[i], NULL, write_many, (void *)i), 0);
    }
    for (int i = 0; i < WRITERS; i++) {
        (void)pthread_join(writers[i], NULL);
    }
    (void)dup2(saved, STDERR_FILENO); /* closes the pipe's last end for writing */
    (void)close(saved);
    (void)pthread_join(reader, &result);
    for (int i = 0; i < WRITERS; i++) {
        CHECK_INT(((int *)result)[i], LINES_EACH);
    }
    CHECK_INT(((int *)result)[WRITERS], 1);
    CHECK_INT(((int *)result)[WRITERS + 1], 0);
}
