/* pg_params_test.c - interned sets: equal is the same pointer, nothing is left behind, SQL is safe.
 */
#include "pg/pg.h"
#include "test.h"

#include <pthread.h>

static const struct prt_params *with(const struct prt_params *set, const char *name,
                                     const char *value)
{
    return prt_params_with(set, prt_str_of(name), prt_str_of(value));
}

static const char *get(const struct prt_params *set, const char *name)
{
    static char text[4][200];
    static int i;
    struct prt_str v;

    i = (i + 1) % 4;
    return prt_params_get(set, prt_str_of(name), &v) && prt_str_copy(text[i], 200, v) ? text[i]
                                                                                      : NULL;
}

static const char *diff(const struct prt_params *have, const struct prt_params *want, unsigned n)
{
    static char text[2000];
    struct prt_buf b = {0};

    CHECK_INT(prt_params_diff(have, want, &b), n);
    CHECK(prt_buf_len(&b) < sizeof text && !b.failed);
    memcpy(text, prt_buf_len(&b) ? prt_buf_data(&b) : (const uint8_t *)"", prt_buf_len(&b));
    text[prt_buf_len(&b)] = 0;
    prt_buf_free(&b);
    return text;
}

TEST(equal_sets_are_one_whatever_the_order)
{
    const struct prt_params *a = prt_params_empty(), *b = prt_params_empty(), *c;

    a = with(with(with(a, "TimeZone", "UTC"), "DateStyle", "ISO, MDY"), "x.y", "1");
    b = with(with(with(b, "x.y", "1"), "timezone", "UTC"), "datestyle", "ISO, DMY");
    CHECK(a != b);
    b = with(b, "DATESTYLE", "ISO, MDY");
    CHECK(a == b);
    CHECK_INT(prt_params_count(a), 3);
    c = with(prt_params_ref(a), "TimeZone", "utc"); /* values compare by bytes */
    CHECK(c != a);
    c = with(c, "TimeZone", "UTC");
    CHECK(c == a);
    prt_params_unref(a);
    prt_params_unref(b);
    prt_params_unref(c);
}

TEST(the_last_reference_takes_the_set_out_of_the_table)
{
    const struct prt_params *a = with(prt_params_empty(), "q.q", "1"), *b;

    b = with(prt_params_empty(), "q.q", "1");
    CHECK(a == b);
    prt_params_unref(a);
    CHECK_STR(get(b, "q.q"), "1");
    prt_params_unref(b);
    /* a leak or a use after free shows under the address sanitizer */
    for (int i = 0; i < 20000; i++) {
        char v[20];
        (void)snprintf(v, sizeof v, "%d", i);
        prt_params_unref(with(with(prt_params_empty(), "q.q", v), "r.r", v));
    }
    CHECK_INT(prt_params_count(prt_params_empty()), 0);
    prt_params_unref(prt_params_ref(prt_params_empty()));
    prt_params_unref(NULL);
}

TEST(names_have_no_case_and_known_ones_their_own_spelling)
{
    const struct prt_params *a = with(prt_params_empty(), "TIMEZONE", "UTC");
    struct prt_str name, value;

    prt_params_at(a, 0, &name, &value);
    CHECK(prt_str_eqz(name, "TimeZone") && prt_str_eqz(value, "UTC"));
    a = with(with(a, "My.Own", "1"), "my.own", "2");
    CHECK_INT(prt_params_count(a), 2);
    prt_params_at(a, 0, &name, &value);
    CHECK(prt_str_eqz(name, "My.Own") && prt_str_eqz(value, "2"));
    CHECK(!get(a, "nothing"));
    CHECK(with(a, "MY.OWN", "2") == a);
    prt_params_unref(a);
}

TEST(names_and_values_do_not_run_into_each_other)
{
    const struct prt_params *a = with(prt_params_empty(), "ab", "c");
    const struct prt_params *b = with(prt_params_empty(), "a", "bc");
    const struct prt_params *c = prt_params_with(prt_params_empty(), PRT_STR("ab"), PRT_STR("\0c"));

    CHECK(a != b && a != c && b != c);
    prt_params_unref(a);
    prt_params_unref(b);
    prt_params_unref(c);
}

TEST(a_flood_of_names_is_bounded)
{
    const struct prt_params *a = prt_params_empty();

    for (int i = 0; i < 1000; i++) {
        char name[20];
        (void)snprintf(name, sizeof name, "n%d", i);
        a = with(a, name, "v");
    }
    CHECK_INT(prt_params_count(a), 128);
    a = with(a, "n5", "w");
    CHECK_STR(get(a, "n5"), "w");
    prt_params_unref(a);
}

TEST(the_difference_is_what_the_client_wants_and_the_server_reports)
{
    const struct prt_params *have = prt_params_empty(), *want = prt_params_empty();

    have = with(with(with(have, "TimeZone", "UTC"), "DateStyle", "ISO, MDY"), "server_version",
                "15.2");
    want = with(with(with(want, "TimeZone", "Europe/Rome"), "DateStyle", "ISO, MDY"),
                "server_version", "16.1");
    want = with(want, "extra_float_digits", "3"); /* not reported: not restored here */
    CHECK_STR(diff(have, want, 1), "SET TimeZone = 'Europe/Rome';");
    CHECK_STR(diff(have, have, 0), "");
    want = with(want, "DateStyle", "SQL, DMY");
    CHECK_STR(diff(have, want, 2), "SET DateStyle = 'SQL, DMY';SET TimeZone = 'Europe/Rome';");
    have = with(have, "bad name", "1");
    want = with(want, "bad name", "2"); /* never put into SQL */
    CHECK_STR(diff(have, want, 2), "SET DateStyle = 'SQL, DMY';SET TimeZone = 'Europe/Rome';");
    prt_params_unref(have);
    prt_params_unref(want);
}

static const char *literal(const char *value)
{
    const struct prt_params *have = with(prt_params_empty(), "a.b", "?");
    const struct prt_params *want = with(prt_params_empty(), "a.b", value);
    const char *sql = diff(have, want, 1);

    prt_params_unref(have);
    prt_params_unref(want);
    return sql;
}

TEST(values_are_quoted_so_that_nothing_gets_out)
{
    const struct prt_params *have, *want;

    CHECK_STR(literal(""), "SET a.b = '';");
    CHECK_STR(literal("o'clock"), "SET a.b = 'o''clock';");
    CHECK_STR(literal("\\'; DROP"), "SET a.b = E'\\134''; DROP';");
    CHECK_STR(literal("caf\xc3\xa9"), "SET a.b = 'caf\xc3\xa9';");
    /* a two-byte character of GBK that ends in a backslash */
    CHECK_STR(literal("\x81\\'x"), "SET a.b = E'\\201\\134''x';");
    have = with(prt_params_empty(), "search_path", "public");
    want = with(prt_params_empty(), "search_path", "\"$user\", public");
    CHECK_STR(diff(have, want, 1),
              "SELECT pg_catalog.set_config('search_path', '\"$user\", public', false);");
    prt_params_unref(want);
    want = prt_params_with(prt_params_empty(), PRT_STR("search_path"), PRT_STR("a\0b"));
    CHECK_STR(diff(have, want, 0), "");
    prt_params_unref(have);
    prt_params_unref(want);
}

TEST(application_name_is_what_postgresql_makes_of_it)
{
    char name[100];
    const struct prt_params *have = with(prt_params_empty(), "application_name", "");
    const struct prt_params *want = with(prt_params_empty(), "Application_Name", "a\x7f\n'b");

    CHECK_STR(diff(have, want, 1), "SET application_name = 'a\?\?''b';");
    have = with(have, "application_name", "a\?\?'b"); /* as reported: nothing to do */
    CHECK_STR(diff(have, want, 0), "");
    memset(name, 'n', 99);
    name[99] = 0;
    want = with(want, "application_name", name);
    name[63] = 0;
    have = with(have, "application_name", name);
    CHECK_STR(diff(have, want, 0), "");
    prt_params_unref(have);
    prt_params_unref(want);
}

TEST(tracked_is_what_is_settable_and_reported)
{
    CHECK(prt_params_is_tracked(PRT_STR("timezone")));
    CHECK(prt_params_is_tracked(PRT_STR("client_encoding")));
    CHECK(!prt_params_is_tracked(PRT_STR("server_version")));
    CHECK(!prt_params_is_tracked(PRT_STR("session_authorization")));
    CHECK(!prt_params_is_tracked(PRT_STR("statement_timeout")));
    CHECK(!prt_params_is_tracked(PRT_STR("search_path"))); /* reported since PostgreSQL 18 only */
    CHECK(!prt_params_is_tracked(PRT_STR("")));
}

/* Threads make, share and drop the same few sets: one pointer per value while anyone holds it. */
static void *churn(void *arg)
{
    unsigned x = (unsigned)(size_t)arg;

    for (int i = 0; i < 20000; i++) {
        char v[4] = {0};
        const struct prt_params *a, *b;
        x = x * 1103515245 + 12345;
        v[0] = (char)('a' + (x >> 16) % 5);
        a = with(with(prt_params_empty(), "TimeZone", v), "DateStyle", "ISO");
        b = with(with(prt_params_empty(), "DateStyle", "ISO"), "TimeZone", v);
        CHECK(a == b && prt_params_count(a) == 2);
        prt_params_unref(prt_params_ref(b));
        prt_params_unref(a);
        prt_params_unref(b);
    }
    return NULL;
}

TEST(sets_are_shared_between_threads)
{
    pthread_t t[4];

    for (size_t i = 0; i < 4; i++) {
        CHECK_INT(pthread_create(&t[i], NULL, churn, (void *)(i * 77 + 1)), 0);
    }
    for (int i = 0; i < 4; i++) {
        CHECK_INT(pthread_join(t[i], NULL), 0);
    }
}
