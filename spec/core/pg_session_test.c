/* pg_session_test.c - session state: a table of directed cases, and random sessions against a slow
 * model of what PostgreSQL keeps, undoes and lets survive. PRT_SEED repeats a random run. */
#include "pg/session_int.h"
#include "test.h"

#include <time.h>

static struct prt_effects *effects(const char *sql)
{
    bool failed;
    struct prt_effects *e = prt_effects_of(prt_str_of(sql), true, &failed);

    CHECK(!failed);
    return e;
}

/* ---- showing a state: "a.b='1' temp #63" ---- */
static void show_sets(struct prt_buf *b, const struct prt_params *set, const char *lead, bool kinds)
{
    for (unsigned i = 0; i < prt_params_count(set); i++) {
        struct prt_str name, value;
        prt_params_at(set, i, &name, &value);
        (void)prt_buf_add(b, b->n ? " " : "", b->n ? 1 : 0);
        (void)prt_buf_add(b, lead, strlen(lead));
        (void)prt_buf_add(b, name.p, name.n);
        if (kinds) {
            (void)prt_buf_add(b, value.p, value.n);
        }
    }
}

static const char *show(const struct prt_params *journal, unsigned dirty,
                        const struct prt_params *channels)
{
    static char text[4][4000];
    static int at;
    struct prt_buf b = {0};
    char *out = text[at = (at + 1) % 4];

    show_sets(&b, journal, "", true);
    for (unsigned i = 0; i < PRT_STATE_COUNT; i++) {
        if (dirty >> i & 1) {
            const char *name = prt_state_name((enum prt_state_kind)i);
            (void)prt_buf_add(&b, b.n ? " " : "", b.n ? 1 : 0);
            (void)prt_buf_add(&b, name, strlen(name));
        }
    }
    show_sets(&b, channels, "#", false);
    CHECK(prt_buf_len(&b) < sizeof text[0]);
    (void)snprintf(out, sizeof text[0], "%.*s", (int)prt_buf_len(&b),
                   b.n ? (const char *)prt_buf_data(&b) : "");
    prt_buf_free(&b);
    return out;
}

/* ---- directed cases ---- */
struct step {
    const char *sql, *tags; /* tags: with | between, ! is an error */
    char z;                 /* 0: no ReadyForQuery yet */
};

static void step(struct prt_session *s, const struct step *st)
{
    struct prt_effects *e = effects(st->sql);
    const char *t = st->tags;

    for (unsigned nth = 0; t && *t; nth++) {
        size_t n = strcspn(t, "|");
        if (n == 1 && *t == '!') {
            prt_session_failed(s, e, nth);
        } else {
            struct prt_str tag = {t, n == 1 && *t == '-' ? 0 : n};
            prt_session_complete(s, e, nth, tag);
        }
        t += n + (t[n] != 0);
    }
    if (st->z) {
        prt_session_ready(s, (uint8_t)st->z);
    }
    prt_effects_unref(e);
}

/* `want` is the state now; after a step that ends outside of a transaction also the settled one. */
static void run_case(int line, bool fans_out, const char *want, const struct step *steps)
{
    struct prt_session s;
    const char *got;
    char z = 'I';

    prt_session_init(&s);
    s.fans_out = fans_out;
    for (; steps->sql; steps++) {
        step(&s, steps);
        z = steps->z ? steps->z : z;
    }
    got = show(s.now, s.dirty, s.channels);
    if (strcmp(got, want) != 0) {
        prt_test_bad++;
        printf("  line %d: \"%s\", not \"%s\"\n", line, got, want);
    }
    got = show(s.settled, s.dirty_settled, s.channels_settled);
    if (z == 'I' && strcmp(got, want) != 0) {
        prt_test_bad++;
        printf("  line %d, settled: \"%s\", not \"%s\"\n", line, got, want);
    }
    prt_session_fini(&s);
}
#define CASE(want, ...) run_case(__LINE__, false, want, (struct step[]){__VA_ARGS__, {0}})
#define FAN_CASE(want, ...) run_case(__LINE__, true, want, (struct step[]){__VA_ARGS__, {0}})
#define BEGIN                                                                                      \
    {                                                                                              \
        "BEGIN", "BEGIN", 'T'                                                                      \
    }
#define COMMIT                                                                                     \
    {                                                                                              \
        "COMMIT", "COMMIT", 'I'                                                                    \
    }
#define ROLLBACK                                                                                   \
    {                                                                                              \
        "ROLLBACK", "ROLLBACK", 'I'                                                                \
    }
#define ERROR_IN_BLOCK                                                                             \
    {                                                                                              \
        "SELECT 1/0", "!", 'E'                                                                     \
    }

TEST(a_set_is_kept_when_its_transaction_is)
{
    CASE("a.b='1'", {"SET a.b TO '1'", "SET", 'I'});
    CASE("a.b=2", {"SET a.b TO '1'", "SET", 'I'}, {"set A.B = 2", "SET", 'I'});
    CASE("search_path=a, 'b c'", {"SET search_path TO a, 'b c'", "SET", 'I'});
    CASE("a.b=1", BEGIN, {"SET a.b TO 1", "SET", 'T'}, COMMIT);
    CASE("", BEGIN, {"SET a.b TO 1", "SET", 'T'}, ROLLBACK);
    CASE("a.b=1", BEGIN, {"SET a.b TO 1", "SET", 'T'});
    CASE("a.b=1", {"SET a.b TO 1", "SET", 'I'}, BEGIN, {"SET a.b TO 2", "SET", 'T'}, ROLLBACK);
    CASE("", BEGIN, {"SET a.b TO 1", "SET", 'T'}, ERROR_IN_BLOCK, {"COMMIT", "ROLLBACK", 'I'});
    CASE("", BEGIN, {"SET a.b TO 1", "SET", 'T'}, ERROR_IN_BLOCK, ROLLBACK);
    CASE("", BEGIN, {"SET a.b TO 1", "SET", 'T'}, {"COMMIT", "!", 'I'}); /* deferred constraint */
    CASE("", {"SET a.b TO 1", "!", 'I'});
    CASE("", {"SET LOCAL a.b TO 1", "SET", 'I'});
    CASE("a.b=1", {"SET SESSION a.b TO 1", "SET", 'I'});
    CASE("", {"SET timezone TO 'UTC'", "SET", 'I'}); /* servers report it */
    CASE("", BEGIN, {"SET TRANSACTION READ ONLY", "SET", 'T'}, COMMIT);
    CASE("", {"SET transaction_isolation TO 'serializable'", "SET", 'I'});
    CASE("a.b=1", BEGIN, {"SET a.b TO 1", "SET", 'T'},
         {"PREPARE TRANSACTION 'x'", "PREPARE TRANSACTION", 'I'});
    CASE("", BEGIN, {"SET a.b TO 1", "SET", 'T'}, ERROR_IN_BLOCK,
         {"PREPARE TRANSACTION 'x'", "ROLLBACK", 'I'});
}

TEST(prepare_transaction_without_a_block_says_rollback_and_commits)
{
    CASE("a.b=1", {"SET a.b TO 1", "SET", 0}, {"PREPARE TRANSACTION 'x'", "ROLLBACK", 0},
         {"SELECT 1/0", "!", 'I'});
}

TEST(a_chained_commit_keeps_and_a_chained_rollback_does_not)
{
    CASE("a.b=1", BEGIN, {"SET a.b TO 1", "SET", 'T'}, {"COMMIT AND CHAIN", "COMMIT", 'T'},
         {"SET a.b TO 2", "SET", 'T'}, ROLLBACK);
    CASE("a.b=2", BEGIN, {"SET a.b TO 1", "SET", 'T'}, {"ROLLBACK AND CHAIN", "ROLLBACK", 'T'},
         {"SET a.b TO 2", "SET", 'T'}, COMMIT);
}

TEST(several_statements_are_one_transaction_until_a_commit_among_them)
{
    CASE("a.b=1 c.d=2", {"SET a.b TO 1; SET c.d TO 2", "SET|SET", 'I'});
    CASE("", {"SET a.b TO 1; SELECT 1/0; SET c.d TO 2", "SET|!", 'I'});
    CASE("a.b=1", {"SET a.b TO 1; COMMIT; SET c.d TO 2; SELECT 1/0", "SET|COMMIT|SET|!", 'I'});
    CASE("a.b=1",
         {"BEGIN; SET a.b TO 1; COMMIT; SET c.d TO 2; SELECT 1/0", "BEGIN|SET|COMMIT|SET|!", 'I'});
    CASE("", {"SET a.b TO 1; BEGIN; SET c.d TO 2; ROLLBACK", "SET|BEGIN|SET|ROLLBACK", 'I'});
    CASE("c.d=2", {"SET a.b TO 1; ROLLBACK; SET c.d TO 2", "SET|ROLLBACK|SET", 'I'});
    /* a pipeline: each text for itself, one ReadyForQuery */
    CASE("", {"SET a.b TO 1", "SET", 0}, {"SELECT 1/0", "!", 'I'});
    CASE("a.b=1", {"SET a.b TO 1", "SET", 0}, {"COMMIT", "COMMIT", 0}, {"SET a.b TO 2", "SET", 0},
         {"SELECT 1/0", "!", 'I'});
    /* whether VACUUM has committed the SET, nobody tells */
    CASE("opaque", {"SET a.b TO 1", "SET", 0}, {"VACUUM", "VACUUM", 0}, {"SELECT 1/0", "!", 'I'});
    CASE("opaque", {"SET a.b TO 1", "SET", 0}, {"VACUUM", "VACUUM", 0}, ROLLBACK);
    CASE("a.b=1", {"SET a.b TO 1", "SET", 0}, {"VACUUM", "VACUUM", 'I'}, BEGIN, ROLLBACK);
    CASE("", BEGIN, {"SET a.b TO 1", "SET", 'T'}, {"CREATE INDEX ON t(i)", "CREATE INDEX", 'T'},
         ERROR_IN_BLOCK, ROLLBACK);
}

TEST(savepoints)
{
    CASE("", BEGIN, {"SAVEPOINT a", "SAVEPOINT", 'T'}, {"SET a.b TO 1", "SET", 'T'},
         {"ROLLBACK TO a", "ROLLBACK", 'T'}, {"RELEASE a", "RELEASE", 'T'}, COMMIT);
    CASE("a.b=1", BEGIN, {"SAVEPOINT a", "SAVEPOINT", 'T'}, {"SET a.b TO 1", "SET", 'T'},
         {"RELEASE a", "RELEASE", 'T'}, COMMIT);
    CASE("a.b=1", BEGIN, {"SET a.b TO 1; SAVEPOINT a; SET a.b TO 2", "SET|SAVEPOINT|SET", 'T'},
         ERROR_IN_BLOCK, {"ROLLBACK TO a", "ROLLBACK", 'T'}, COMMIT);
    /* the same name again hides the first until it is released */
    CASE("a.b=2", BEGIN, {"SET a.b TO 1; SAVEPOINT a; SET a.b TO 2", "SET|SAVEPOINT|SET", 'T'},
         {"SAVEPOINT a; SET a.b TO 3", "SAVEPOINT|SET", 'T'}, {"ROLLBACK TO a", "ROLLBACK", 'T'});
    CASE("a.b=1", BEGIN, {"SET a.b TO 1; SAVEPOINT a; SET a.b TO 2", "SET|SAVEPOINT|SET", 'T'},
         {"SAVEPOINT a; SET a.b TO 3; RELEASE a", "SAVEPOINT|SET|RELEASE", 'T'},
         {"ROLLBACK TO a", "ROLLBACK", 'T'}, COMMIT);
    /* one that was set inside is gone with it */
    CASE("", BEGIN, {"SAVEPOINT a; SAVEPOINT b; SET a.b TO 1", "SAVEPOINT|SAVEPOINT|SET", 'T'},
         {"ROLLBACK TO a", "ROLLBACK", 'T'}, COMMIT);
    CASE("c.d=1", BEGIN,
         {"SAVEPOINT a; SET a.b TO 1; ROLLBACK TO a", "SAVEPOINT|SET|ROLLBACK", 'T'},
         {"SET c.d TO 1", "SET", 'T'}, COMMIT);
    CASE("", BEGIN, {"SAVEPOINT \"A b\"; SET a.b TO 1", "SAVEPOINT|SET", 'T'},
         {"ROLLBACK TO \"A b\"", "ROLLBACK", 'T'}, COMMIT);
    CASE("", BEGIN,
         {"SAVEPOINT a; CREATE TEMP TABLE t(); SET ROLE x", "SAVEPOINT|CREATE TABLE|SET", 'T'},
         {"ROLLBACK TO a", "ROLLBACK", 'T'});
    CASE("advisory opaque", BEGIN,
         {"SAVEPOINT a; SELECT pg_advisory_lock(1); DO 'x'", "SAVEPOINT|SELECT 1|DO", 'T'},
         {"ROLLBACK TO a", "ROLLBACK", 'T'}, ROLLBACK);
}

/* `n` savepoints of one name, or of a name each, then back to the first. */
static const char *many_savepoints(unsigned n, bool one_name, const char *first, const char *each)
{
    struct prt_session s;
    const char *got;

    prt_session_init(&s);
    step(&s, &(struct step)BEGIN);
    if (first) {
        step(&s, &(struct step){first, "SET", 'T'});
    }
    for (unsigned i = 0; i < n; i++) {
        char sql[100];
        (void)snprintf(sql, sizeof sql, "SAVEPOINT s%u", one_name ? 0 : i);
        step(&s, &(struct step){sql, "SAVEPOINT", 'T'});
        if (each) {
            (void)snprintf(sql, sizeof sql, "%s%u", each, i);
            step(&s, &(struct step){sql, "SET", 'T'});
        }
    }
    step(&s, &(struct step){"SET z.z TO 1", "SET", 'T'});
    for (unsigned i = 1; one_name && i < n; i++) {
        step(&s, &(struct step){"RELEASE s0", "RELEASE", 'T'});
    }
    step(&s, &(struct step){"ROLLBACK TO s0", "ROLLBACK", 'T'});
    got = show(s.now, s.dirty, s.channels);
    prt_session_fini(&s);
    return got;
}

TEST(more_savepoints_than_are_kept)
{
    CHECK_STR(many_savepoints(64, false, "SET a.b TO 1", "SET c.d TO "), "a.b=1");
    CHECK_STR(many_savepoints(65, false, NULL, NULL), "");
    CHECK_STR(many_savepoints(500, false, NULL, "SET c.d TO "), "opaque");
    CHECK_STR(many_savepoints(500, false, "SET a.b TO 1", NULL), "opaque");
    CHECK_STR(many_savepoints(5000, true, "SET a.b TO 1", NULL),
              "a.b=1"); /* autosave of a driver */
    CHECK_STR(many_savepoints(64, true, "SET a.b TO 1", "SET c.d TO "), "a.b=1");
}

TEST(reset_and_discard)
{
    CASE("c.d=2", {"SET a.b TO 1; SET c.d TO 2", "SET|SET", 'I'}, {"RESET a.b", "RESET", 'I'});
    CASE("c.d=2", {"SET a.b TO 1; SET c.d TO 2", "SET|SET", 'I'},
         {"SET A.b TO DEFAULT", "SET", 'I'});
    CASE("", {"SET a.b TO 1; SET c.d TO 2", "SET|SET", 'I'}, {"RESET ALL", "RESET", 'I'});
    CASE("a.b=1", {"SET a.b TO 1", "SET", 'I'}, BEGIN, {"RESET ALL", "RESET", 'T'}, ROLLBACK);
    CASE("a.b=1", {"SET a.b TO 1", "SET", 'I'}, {"SET LOCAL a.b TO DEFAULT", "SET", 'I'});
    CASE("",
         {"SET a.b TO 1; CREATE TEMP TABLE t(); LISTEN c; PREPARE p AS SELECT 1",
          "SET|CREATE TABLE|LISTEN|PREPARE", 'I'},
         {"DECLARE c CURSOR WITH HOLD FOR SELECT 1; SELECT pg_advisory_lock(1); DO 'x'",
          "DECLARE CURSOR|SELECT 1|DO", 'I'},
         {"SET ROLE x; SET SESSION AUTHORIZATION y", "SET|SET", 'I'},
         {"DISCARD ALL", "DISCARD ALL", 'I'});
    CASE("opaque", {"SET a.b TO 1; CREATE TEMP TABLE t()", "SET|CREATE TABLE", 'I'},
         {"DO 'x'", "DO", 'I'}, {"DISCARD TEMP", "DISCARD TEMP", 'I'}, {"RESET ALL", "RESET", 'I'});
    CASE("", {"SET a.b TO 1", "SET", 'I'}, {"DISCARD ALL", "DISCARD ALL", 'I'}, BEGIN, ROLLBACK);
    CASE("opaque", {"SET a.b TO 1", "SET", 'I'}, {"DISCARD ALL", "DISCARD ALL", 0},
         {"SELECT 1/0", "!", 'I'}); /* undone, or not */
}

TEST(set_config_of_literals)
{
    CASE("a.b:'1'", {"SELECT set_config('a.b', '1', false)", "SELECT 1", 'I'});
    CASE("a.b:'1'", {"SELECT set_config('a.b', '1', false)", "-", 'I'}); /* PortalSuspended */
    CASE("", {"SELECT set_config('a.b', '1', true)", "SELECT 1", 'I'});
    CASE("setting", {"SELECT set_config('a.b', '1', false)", "SELECT 0", 'I'});
    CASE("", {"SET a.b TO 1", "SET", 'I'},
         {"SELECT set_config('a.b', NULL, false)", "SELECT 1", 'I'});
    CASE("setting", {"EXPLAIN ANALYZE SELECT set_config('a.b', '1', false)", "EXPLAIN", 'I'});
    CASE("prepare setting", {"PREPARE p AS SELECT set_config('a.b', '1', false)", "PREPARE", 'I'});
    CASE("role", {"SELECT set_config('role', 'x', false)", "SELECT 1", 'I'});
    CASE("", BEGIN, {"SELECT set_config('a.b', '1', false)", "SELECT 1", 'T'}, ROLLBACK);
}

/* What is known after statements with these tags, each with the rows up to the next NO_ROW. */
static const char *after_rows(const char *sql, const char *tags, const struct prt_str *rows)
{
    struct prt_effects *e = effects(sql);
    struct prt_session s;
    const char *got, *tag = tags;

    prt_session_init(&s);
    for (unsigned nth = 0; tag; nth++) {
        for (; rows->p; rows++) {
            struct prt_msg m = {.type = 'D', .body = (const uint8_t *)rows->p};
            m.len = m.have = (uint32_t)rows->n;
            prt_session_row(&s, e, nth, &m);
        }
        rows++;
        size_t n = strcspn(tag, "|");
        prt_session_complete(&s, e, nth, (struct prt_str){tag, n});
        tag = tag[n] ? tag + n + 1 : NULL;
    }
    prt_session_ready(&s, 'I');
    got = show(s.settled, s.dirty_settled, s.channels);
    prt_session_fini(&s);
    prt_effects_unref(e);
    return got;
}
#define AFTER_ROWS(sql, tags, ...)                                                                 \
    after_rows(sql, tags, (struct prt_str[]){__VA_ARGS__, {NULL, 0}, {NULL, 0}})
#define ROW(bytes) PRT_STR(bytes)
#define NO_ROW                                                                                     \
    {                                                                                              \
        NULL, 0                                                                                    \
    }

TEST(set_config_of_another_value_is_told_by_its_row)
{
    static const char one[] = "SELECT set_config('a.b', $1, false)";
    static const char two[] = "SELECT set_config('a.b', $1, true), set_config('c.d', $2, false)";
    static char big[PRT_JOURNAL_VALUE + 6];

    CHECK_STR(AFTER_ROWS(one, "SELECT 1", ROW("\0\1\0\0\0\2it")), "a.b:'it'");
    CHECK_STR(AFTER_ROWS(one, "SELECT 1", ROW("\0\1\0\0\0\0")), "a.b:''");
    CHECK_STR(AFTER_ROWS(one, "", ROW("\0\1\0\0\0\3a'b")), "a.b:'a''b'");
    CHECK_STR(AFTER_ROWS(one, "SELECT 1", ROW("\0\1\0\0\0\3'\\x")), "a.b:E'''\\\\x'");
    CHECK_STR(AFTER_ROWS(one, "SELECT 1", ROW("\0\1\0\0\0\2\303\251")), "a.b:'\303\251'");
    CHECK_STR(AFTER_ROWS(two, "SELECT 1", ROW("\0\2\0\0\0\1x\0\0\0\1y")), "c.d:'y'");
    /* not one row, not all of it, not a value */
    CHECK_STR(AFTER_ROWS(one, "SELECT 1", NO_ROW), "setting");
    CHECK_STR(AFTER_ROWS(one, "SELECT 0", NO_ROW), "setting");
    CHECK_STR(AFTER_ROWS(one, "SELECT 2", ROW("\0\1\0\0\0\1x"), ROW("\0\1\0\0\0\1x")),
              "a.b:'x' setting");
    CHECK_STR(AFTER_ROWS(one, "", ROW("\0\1\0\0\0\1x"), ROW("\0\1\0\0\0\1x")), "a.b:'x' setting");
    CHECK_STR(AFTER_ROWS(one, "SELECT 1", ROW("\0\1\0\0\0\2x")), "setting");
    CHECK_STR(AFTER_ROWS(one, "SELECT 1", ROW("\0\1\0\0")), "setting");
    CHECK_STR(AFTER_ROWS(one, "SELECT 1", ROW("\0")), "setting");
    CHECK_STR(AFTER_ROWS(one, "SELECT 1", ROW("\0\0\0\0\0\1x")), "setting");
    CHECK_STR(AFTER_ROWS(one, "SELECT 1", ROW("\0\1\377\377\377\377")), "setting");
    CHECK_STR(AFTER_ROWS(two, "SELECT 1", ROW("\0\2\177\377\377\377x\0\0\0\1y")), "setting");
    CHECK_STR(AFTER_ROWS(one, "SELECT 1", ROW("\0\1\0\0\0\3\225\\x")), "setting");
    memcpy(big, "\0\1\0\0\20\0", 6);
    memset(big + 6, 'x', sizeof big - 6);
    CHECK_STR(AFTER_ROWS(one, "SELECT 1", {big, sizeof big}), "setting"); /* and its quotes */
}

TEST(a_row_that_does_not_tell_exactly_what_was_set_does_not_count)
{
    static const struct {
        const char *name, *want;
    } cases[] = {
        {"work_mem", "work_mem:'on1'"},
        {"search_path", "search_path:'on1'"},
        {"random_page_cost", "setting"},
        {"HASH_mem_MULTIPLIER", "setting"},
        {"pg_trgm.similarity_threshold", "setting"},
        {"array_nulls", "setting"},
        {"TimeZone", ""}, /* servers report it */
        {"transaction_isolation", ""},
        {"role", "role"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char sql[100];
        (void)snprintf(sql, sizeof sql, "SELECT set_config('%s', $1, false)", cases[i].name);
        CHECK_STR(AFTER_ROWS(sql, "SELECT 1", ROW("\0\1\0\0\0\3on1")), cases[i].want);
    }
    CHECK_STR(AFTER_ROWS("SELECT set_config('search_path', $1, false)", "SELECT 1",
                         ROW("\0\1\0\0\0\12a, PG_temp")),
              "search_path:'a, PG_temp' temp");
    CHECK_STR(AFTER_ROWS("SELECT 1; SELECT set_config('a.b', 'x' || 'y', false); SELECT 2",
                         "SELECT 1|SELECT 1|SELECT 1", ROW("\0\1\0\0\0\1-"), NO_ROW,
                         ROW("\0\1\0\0\0\2xy"), NO_ROW, ROW("\0\1\0\0\0\1-")),
              "a.b:'xy'");
}

TEST(unlocking_all_ends_advisory_locks_for_good)
{
    CASE("", {"SELECT pg_advisory_lock(1)", "SELECT 1", 'I'}, BEGIN,
         {"SELECT pg_advisory_unlock_all()", "SELECT 1", 'T'}, ROLLBACK);
    CASE("advisory", {"SELECT pg_advisory_lock(1)", "SELECT 1", 'I'},
         {"SELECT pg_advisory_unlock_all() WHERE false", "SELECT 0", 'I'});
}

TEST(a_setting_that_cannot_be_replayed_ends_with_reset_all)
{
    CASE("", {"SELECT set_config($1, '1', false)", "SELECT 1", 'I'}, {"RESET ALL", "RESET", 'I'});
    CASE("setting", {"SELECT set_config($1, '1', false)", "SELECT 1", 'I'}, BEGIN,
         {"RESET ALL", "RESET", 'T'}, ROLLBACK);
}

TEST(what_cannot_be_read_is_opaque)
{
    CASE("setting", {"SELECT 1", "SET", 'I'});
    CASE("setting", {"SELECT 1", "RESET", 'I'});
    CASE("opaque", {"SET a.b TO 1; SET c.d TO 1", "SELECT 1", 'I'});
    CASE("a.b=1 setting opaque", {"SET a.b TO 1", "SET|SET", 'I'}); /* one more than the text has */
    CASE("setting", {"SET transform_null_equals TO on", "SET", 'I'});
    CASE("setting", {"SET seed TO 0.5", "SET", 'I'});
    CASE("opaque", {"SELECT setseed(0.5)", "SELECT 1", 'I'});
    CASE("opaque", {"LOAD 'x'", "LOAD", 'I'});
    CASE("opaque", {"CALL p()", "CALL", 'I'});
    CASE("opaque", BEGIN, {"DO 'x'", "!", 'E'}, ROLLBACK); /* what it had done outside stays */
    CASE("setting", {"SET a.b TO $$a\\b$$", "SET", 'I'});
    CASE("setting", {"SET a.b TO 'a\\b'", "SET", 'I'}); /* what is a backslash, next time? */
    CASE("a.b=1", {"SET a.b TO 1 -- x\n", "SET", 'I'});
    CASE("a.b=1", {"SET a.b /* x */ TO 1 /* x */", "SET", 'I'});
}

/* Past the lexer: what would a value do that it should not have let through? */
static bool is_kept(const char *value)
{
    static struct prt_sql read;
    struct prt_sql_stmt *st = &read.stmt[0];
    struct prt_effects *e;
    bool is;

    memset(&read, 0, sizeof read);
    read.n = st->n_sets = 1;
    read.flags = st->flags = PRT_SQL(SET);
    st->set[0] = (struct prt_sql_set){PRT_STR("A.b"), prt_str_of(value), false, 0};
    e = prt_effects_make(&read, PRT_STR("SET"));
    is = e->stmt[0].n_sets == 1;
    CHECK(is != e->stmt[0].has_unknown_set);
    CHECK(!is || (prt_str_eqz(e->stmt[0].set[0].name, "a.b") &&
                  prt_str_eqz(e->stmt[0].set[0].value, value)));
    prt_effects_unref(e);
    return is;
}

TEST(only_a_value_that_is_one_is_replayed)
{
    CASE("a.b='it''s'", {"SET a.b TO 'it''s'", "SET", 'I'});
    CASE("a.b=E'c:\\\\x'", {"SET a.b TO E'c:\\\\x'", "SET", 'I'});
    CASE("search_path=\"a\\b\", c", {"SET search_path TO \"a\\b\", c", "SET", 'I'});
    CASE("a.b=-1.5", {"SET a.b TO -1.5", "SET", 'I'});
    CHECK(is_kept("''") && is_kept("1, 'b''c', \"d\"\"e\"") && is_kept("E'\\' \\\\', 'x'"));
    CHECK(!is_kept("'a") && !is_kept("\"a") && !is_kept("E'a\\'") && !is_kept("'a\\''"));
    CHECK(!is_kept("1; DROP TABLE t") && !is_kept("1 -- x") && !is_kept("1 /* x"));
    CHECK(!is_kept("$$a$$") && !is_kept("f(1)") && !is_kept("a'b'") && !is_kept("'a\\'; x '"));
}

TEST(a_journal_is_bounded)
{
    static char sql[PRT_JOURNAL_VALUE + 100];
    struct prt_session s;

    prt_session_init(&s);
    for (unsigned i = 0; i < PRT_JOURNAL_NAMES; i++) {
        (void)snprintf(sql, sizeof sql, "SET a.n%u TO 1", i);
        step(&s, &(struct step){sql, "SET", 'I'});
    }
    CHECK_INT(s.dirty, 0);
    step(&s, &(struct step){"SET a.n7 TO 2", "SET", 'I'});
    CHECK_INT(s.dirty, 0);
    step(&s, &(struct step){"SET a.more TO 1", "SET", 'I'});
    CHECK_INT(s.dirty, PRT_STATE_BIT(SETTING));
    CHECK_INT(prt_params_count(s.now), PRT_JOURNAL_NAMES);
    prt_session_discarded(&s);
    CHECK_STR(show(s.settled, s.dirty_settled, s.channels), "");
    for (int more = 0; more <= 1; more++) {
        size_t n = PRT_JOURNAL_VALUE + (size_t)more, head = strlen("SET a.b TO ");
        (void)snprintf(sql, sizeof sql, "SET a.b TO ");
        memset(sql + head, 'x', n);
        sql[head] = sql[head + n - 1] = '\'';
        sql[head + n] = 0;
        step(&s, &(struct step){sql, "SET", 'I'});
        CHECK_INT(s.dirty, more ? PRT_STATE_BIT(SETTING) : 0);
    }
    prt_session_fini(&s);
}

TEST(roles)
{
    CASE("role", {"SET ROLE x", "SET", 'I'});
    CASE("", {"SET ROLE x", "SET", 'I'}, {"RESET ROLE", "RESET", 'I'});
    CASE("role", {"SET ROLE x", "SET", 'I'}, {"RESET ALL", "RESET", 'I'});
    CASE("", {"SET LOCAL ROLE x", "SET", 'I'});
    CASE("role", {"SET ROLE x; SET SESSION AUTHORIZATION y", "SET|SET", 'I'},
         {"RESET ROLE", "RESET", 'I'});
    CASE("", {"SET ROLE x; SET SESSION AUTHORIZATION y", "SET|SET", 'I'},
         {"RESET ROLE; RESET SESSION AUTHORIZATION", "RESET|RESET", 'I'});
    CASE("", BEGIN, {"SET ROLE x", "SET", 'T'}, ROLLBACK);
    CASE("role", {"SET ROLE x", "SET", 'I'}, BEGIN, {"RESET ROLE", "RESET", 'T'}, ROLLBACK);
    CASE("", {"SET ROLE x", "SET", 'I'}, {"SET role TO DEFAULT", "SET", 'I'});
    CASE("", {"SET SESSION AUTHORIZATION x", "SET", 'I'},
         {"SET SESSION AUTHORIZATION DEFAULT", "SET", 'I'});
    CASE("role", {"SET SESSION AUTHORIZATION x", "SET", 'I'},
         {"SET LOCAL SESSION AUTHORIZATION DEFAULT", "SET", 'I'});
}

TEST(temporary_objects)
{
    CASE("temp", {"CREATE TEMP TABLE t()", "CREATE TABLE", 'I'});
    CASE("temp", {"CREATE TEMP TABLE t AS SELECT 1", "SELECT 1", 'I'});
    CASE("", {"CREATE TEMP TABLE t()", "!", 'I'});
    CASE("", BEGIN, {"CREATE TEMP TABLE t()", "CREATE TABLE", 'T'}, ROLLBACK);
    CASE("", {"CREATE TEMP TABLE t()", "CREATE TABLE", 'I'}, {"DISCARD TEMP", "DISCARD TEMP", 'I'});
    CASE("temp", {"CREATE TEMP TABLE t()", "CREATE TABLE", 'I'}, BEGIN,
         {"DISCARD TEMP", "DISCARD TEMP", 'T'}, ROLLBACK);
    CASE("temp", {"CREATE TEMP TABLE t()", "CREATE TABLE", 'I'},
         {"DISCARD PLANS", "DISCARD PLANS", 'I'});
}

TEST(cursors_with_hold)
{
    static const char c[] = "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
                      d[] = "DECLARE d CURSOR WITH HOLD FOR SELECT 1";

    CASE("", BEGIN, {"DECLARE c CURSOR FOR SELECT 1", "DECLARE CURSOR", 'T'}, COMMIT);
    CASE("hold", BEGIN, {c, "DECLARE CURSOR", 'T'}, COMMIT);
    CASE("", BEGIN, {c, "DECLARE CURSOR", 'T'}, ROLLBACK);
    CASE("", {c, "DECLARE CURSOR", 'I'}, {"CLOSE c", "CLOSE CURSOR", 'I'});
    CASE("hold", {c, "DECLARE CURSOR", 'I'}, {"CLOSE e", "CLOSE CURSOR", 'I'});
    CASE("hold", {c, "DECLARE CURSOR", 'I'}, {d, "DECLARE CURSOR", 'I'},
         {"CLOSE c", "CLOSE CURSOR", 'I'});
    CASE("", {c, "DECLARE CURSOR", 'I'}, {d, "DECLARE CURSOR", 'I'},
         {"CLOSE c; CLOSE d", "CLOSE CURSOR|CLOSE CURSOR", 'I'});
    CASE("", {c, "DECLARE CURSOR", 'I'}, {d, "DECLARE CURSOR", 'I'},
         {"CLOSE ALL", "CLOSE CURSOR ALL", 'I'});
    /* closing is not undone; what the transaction had opened goes with it */
    CASE("", {c, "DECLARE CURSOR", 'I'}, BEGIN, {"CLOSE c", "CLOSE CURSOR", 'T'}, ROLLBACK);
    CASE("", {c, "DECLARE CURSOR", 'I'}, BEGIN, {d, "DECLARE CURSOR", 'T'},
         {"CLOSE c", "CLOSE CURSOR", 'T'}, ROLLBACK);
    CASE("hold", {c, "DECLARE CURSOR", 'I'}, BEGIN, {d, "DECLARE CURSOR", 'T'}, ROLLBACK);
    CASE("", BEGIN, {"SAVEPOINT a", "SAVEPOINT", 'T'}, {c, "DECLARE CURSOR", 'T'},
         {"ROLLBACK TO a", "ROLLBACK", 'T'}, COMMIT);
    CASE("hold opaque", {c, "DECLARE CURSOR|DECLARE CURSOR", 'I'}, {"CLOSE c", "CLOSE CURSOR", 'I'},
         {"RESET ALL", "RESET", 'I'}, {"DISCARD TEMP", "DISCARD TEMP", 'I'});
}

TEST(advisory_locks_and_sql_prepare_survive)
{
    CASE("advisory", {"SELECT pg_advisory_lock(1)", "SELECT 1", 'I'});
    CASE("advisory", BEGIN, {"SELECT pg_advisory_lock(1)", "SELECT 1", 'T'}, ROLLBACK);
    CASE("advisory", {"SELECT pg_advisory_lock(1), 1/0", "!", 'I'});
    CASE("", BEGIN, ERROR_IN_BLOCK, {"SELECT pg_advisory_lock(1)", "!", 'E'}, ROLLBACK);
    CASE("", {"SELECT 1/0; SELECT pg_advisory_lock(1)", "!", 'I'});
    CASE("prepare", BEGIN, {"PREPARE p AS SELECT 1", "PREPARE", 'T'}, ROLLBACK);
    CASE("", {"PREPARE p AS SELECT 1", "!", 'I'});
    CASE("", {"PREPARE p AS SELECT 1", "PREPARE", 'I'}, {"DEALLOCATE p", "DEALLOCATE", 'I'});
    CASE("", {"PREPARE p AS SELECT 1", "PREPARE", 'I'}, BEGIN, {"DEALLOCATE p", "DEALLOCATE", 'T'},
         ROLLBACK);
    CASE("prepare", {"PREPARE p AS SELECT 1", "PREPARE", 'I'}, {"DEALLOCATE q", "DEALLOCATE", 'I'});
    CASE("", {"PREPARE p AS SELECT 1", "PREPARE", 'I'}, {"DEALLOCATE ALL", "DEALLOCATE ALL", 'I'});
}

TEST(more_names_than_are_kept_end_with_all_of_them)
{
    struct prt_session s;
    char sql[60];

    prt_session_init(&s);
    for (int i = 0; i < 17; i++) {
        (void)snprintf(sql, sizeof sql, "PREPARE p%d AS SELECT 1", i);
        step(&s, &(struct step){sql, "PREPARE", 'I'});
    }
    for (int i = 0; i < 17; i++) {
        (void)snprintf(sql, sizeof sql, "DEALLOCATE p%d", i);
        step(&s, &(struct step){sql, "DEALLOCATE", 'I'});
    }
    CHECK_INT(s.dirty, PRT_STATE_BIT(PREPARE));
    step(&s, &(struct step){"DEALLOCATE ALL", "DEALLOCATE ALL", 'I'});
    CHECK_INT(s.dirty, 0);
    for (int i = 0; i < 16; i++) {
        (void)snprintf(sql, sizeof sql, "PREPARE p%d AS SELECT 1", i);
        step(&s, &(struct step){sql, "PREPARE", 'I'});
    }
    for (int i = 16; i-- > 0;) {
        CHECK_INT(s.dirty, PRT_STATE_BIT(PREPARE));
        (void)snprintf(sql, sizeof sql, "DEALLOCATE p%d", i);
        step(&s, &(struct step){sql, "DEALLOCATE", 'I'});
    }
    CHECK_INT(s.dirty, 0);
    prt_session_fini(&s);
}

TEST(listen)
{
    CASE("listen", {"LISTEN c", "LISTEN", 'I'});
    CASE("", BEGIN, {"LISTEN c", "LISTEN", 'T'}, ROLLBACK);
    CASE("listen", {"LISTEN c", "LISTEN", 'I'}, {"UNLISTEN c", "UNLISTEN", 'I'});
    CASE("", {"LISTEN c", "LISTEN", 'I'}, {"UNLISTEN *", "UNLISTEN", 'I'});
    CASE("listen", {"LISTEN c", "LISTEN", 'I'}, BEGIN, {"UNLISTEN *", "UNLISTEN", 'T'}, ROLLBACK);
    FAN_CASE("#63", {"LISTEN c", "LISTEN", 'I'});
    FAN_CASE("#4320", {"LISTEN \"C \"", "LISTEN", 'I'});
    FAN_CASE("#63 #64", {"LISTEN c; SELECT 1; LISTEN d", "LISTEN|SELECT 1|LISTEN", 'I'});
    FAN_CASE("#64", {"BEGIN; LISTEN c; ROLLBACK; LISTEN d", "BEGIN|LISTEN|ROLLBACK|LISTEN", 'I'});
    FAN_CASE("", {"LISTEN c; SELECT 1/0", "LISTEN|!", 'I'});
    FAN_CASE("listen", {"LISTEN c; SELECT '\\'", "LISTEN|SELECT 1", 'I'});
    FAN_CASE("", BEGIN, {"LISTEN c", "LISTEN", 'T'}, ROLLBACK);
    FAN_CASE("#63 #64", BEGIN, {"LISTEN c", "LISTEN", 'T'}, {"LISTEN d", "LISTEN", 'T'}, COMMIT);
    FAN_CASE("#64", {"LISTEN c", "LISTEN", 'I'}, {"LISTEN d", "LISTEN", 'I'},
             {"UNLISTEN c", "UNLISTEN", 'I'});
    FAN_CASE("", {"LISTEN c", "LISTEN", 'I'}, {"LISTEN d", "LISTEN", 'I'},
             {"UNLISTEN *", "UNLISTEN", 'I'});
    FAN_CASE("", {"LISTEN c", "LISTEN", 'I'}, {"DISCARD ALL", "DISCARD ALL", 'I'});

    struct prt_session s;
    prt_session_init(&s);
    s.fans_out = true;
    step(&s, &(struct step){"LISTEN c", "LISTEN", 'I'});
    CHECK(prt_session_has_channel(s.channels, PRT_STR("c")));
    CHECK(!prt_session_has_channel(s.channels, PRT_STR("d")));
    prt_session_fini(&s);
}

TEST(a_long_text_pins_only_if_it_names_what_could)
{
    size_t n = 3 * PRT_SQL_LOOKED_AT;
    char *sql = malloc(n + 100);
    struct prt_session s;

    for (int with = 0; with <= 2; with++) {
        (void)snprintf(sql, 100, "INSERT INTO t SELECT 1; INSERT INTO t VALUES ('");
        memset(sql + strlen(sql), 'x', n - strlen(sql) - 40);
        (void)snprintf(sql + n - 40, 60, "')%s; DISCARD ALL",
                       with == 1   ? ", (pg_advisory_lock(1))"
                       : with == 2 ? ", (pg_temp.f())"
                                   : "");
        memset(sql + n - 41, 'x', 1);
        struct prt_effects *e = effects(sql);
        CHECK(prt_effects_deallocates(e));
        CHECK(!prt_effects_only(e));
        prt_session_init(&s);
        prt_session_complete(&s, e, 0, PRT_STR("INSERT 0 1"));
        CHECK_INT(s.dirty, 0);
        prt_session_failed(&s, e, 1);
        CHECK_INT(s.dirty, with == 1 ? PRT_STATE_BIT(OPAQUE) : 0);
        prt_session_fini(&s);
        prt_session_init(&s);
        prt_session_complete(&s, e, 1, PRT_STR("INSERT 0 1"));
        CHECK_INT(s.dirty, with ? PRT_STATE_BIT(OPAQUE) : 0);
        prt_session_complete(&s, e, 2, PRT_STR("SET")); /* behind what was read */
        CHECK_INT(s.dirty, PRT_STATE_BIT(SETTING) | (with ? PRT_STATE_BIT(OPAQUE) : 0));
        prt_session_fini(&s);
        prt_effects_unref(e);
    }
    free(sql);
}

/* ---- what a text would do ---- */
static bool fans_out(const char *sql)
{
    struct prt_effects *e = effects(sql);
    bool is = prt_effects_fans_out(e);

    prt_effects_unref(e);
    return is;
}

TEST(each_listen_of_a_text_fans_out_or_none_does)
{
    struct prt_effects *e = effects("/* */ begin; Listen \"A b\" ;; listen c");
    unsigned n;

    CHECK(prt_effects_fans_out(e) && !prt_effects_listen(e, 0, &n) && n == 3);
    CHECK_INT(prt_effects_listen(e, 1, &n)->at, 13);
    CHECK(prt_str_eqz(prt_effects_listen(e, 1, &n)->name, "A b"));
    CHECK_INT(prt_effects_listen(e, 2, &n)->at, 29);
    CHECK(!prt_effects_listen(e, 3, &n) && !prt_effects_listen(NULL, 0, &n) && n == 0);
    prt_effects_unref(e);
    CHECK(fans_out("listen c") && fans_out("listen \"\xc3\xa9\"; ") && fans_out("listen a\n"));
    CHECK(!fans_out("listen \"\xc3\xa9\"; select 1") && !fans_out("listen c; select '\\'"));
    CHECK(!fans_out("listen *") && !fans_out("listen 'c'") && !fans_out("listen a b"));
    CHECK(!fans_out("listen c; listen *") && !fans_out("(listen c)") && !fans_out("listen"));
    CHECK(!fans_out("unlisten c; unlisten *") && !fans_out("listen c; select '") &&
          !fans_out("listen U&\"c\""));
    CHECK(!prt_effects_fans_out(NULL));
}

static unsigned states_of(const char *sql)
{
    struct prt_effects *e = effects(sql);
    unsigned states = prt_effects_states(e);

    prt_effects_unref(e);
    return states;
}

TEST(effects_tell_what_a_text_would_leave)
{
    CHECK(!effects("SELECT 1"));
    CHECK_INT(prt_effects_flags(NULL), 0);
    CHECK_INT(states_of("SET a.b TO 1"), 0);
    CHECK_INT(states_of("RESET ALL"), 0);
    CHECK_INT(states_of("SET ROLE x"), PRT_STATE_BIT(ROLE));
    CHECK_INT(states_of("SET LOCAL ROLE x"), 0);
    CHECK_INT(states_of("RESET ROLE"), 0);
    CHECK_INT(states_of("SET ROLE NONE"), 0);
    CHECK_INT(states_of("SET SESSION AUTHORIZATION DEFAULT"), 0);
    CHECK_INT(states_of("CREATE TEMP TABLE t()"), PRT_STATE_BIT(TEMP));
    CHECK_INT(states_of("DECLARE c CURSOR WITH HOLD FOR SELECT 1"), PRT_STATE_BIT(HOLD));
    CHECK_INT(states_of("SELECT pg_advisory_lock(1)"), PRT_STATE_BIT(ADVISORY));
    CHECK_INT(states_of("LISTEN c"), PRT_STATE_BIT(LISTEN));
    CHECK_INT(states_of("SELECT set_config('a.b', $1, false)"), 0);
    CHECK_INT(states_of("SELECT set_config($1, 'x', false)"), PRT_STATE_BIT(SETTING));
    CHECK_INT(states_of("PREPARE p AS SELECT 1"), PRT_STATE_BIT(PREPARE));
    CHECK_INT(states_of("SET transform_null_equals TO on"), PRT_STATE_BIT(SETTING));
    CHECK_INT(states_of("LOAD 'x'; CREATE TEMP TABLE t()"),
              PRT_STATE_BIT(OPAQUE) | PRT_STATE_BIT(TEMP));

    struct prt_effects *e = prt_effects_ref(effects("DEALLOCATE \"P x\""));
    prt_effects_unref(e);
    CHECK(prt_effects_deallocates(e));
    CHECK(prt_effects_only(e) && prt_str_eqz(prt_effects_only(e)->name, "P x"));
    prt_effects_unref(e);
    prt_effects_unref(NULL);
    CHECK(!prt_effects_ref(NULL) && !prt_effects_deallocates(NULL) && !prt_effects_only(NULL));
    CHECK_STR(prt_state_name(PRT_STATE_OPAQUE), "opaque");
}

static const char *resets(const char *sql, bool want_any)
{
    static char text[200];
    const struct prt_params *told = prt_params_empty(), *startup = prt_params_empty(), *want;
    struct prt_effects *e = effects(sql);
    struct prt_buf b = {0};

    told = prt_params_with(told, PRT_STR("TimeZone"), PRT_STR("=CET"));
    told = prt_params_with(told, PRT_STR("DateStyle"), PRT_STR("=ISO"));
    told = prt_params_with(told, PRT_STR("server_version"), PRT_STR("=15"));
    startup = prt_params_with(startup, PRT_STR("TimeZone"), PRT_STR("=UTC"));
    startup = prt_params_with(startup, PRT_STR("DateStyle"), PRT_STR("=SQL"));
    startup = prt_params_with(startup, PRT_STR("server_version"), PRT_STR("=0"));
    CHECK(prt_effects_resets(e, told, startup, &want) == want_any);
    show_sets(&b, want, "", true);
    (void)snprintf(text, sizeof text, "%.*s", (int)prt_buf_len(&b), (const char *)prt_buf_data(&b));
    prt_buf_free(&b);
    prt_params_unref(told);
    prt_params_unref(startup);
    prt_params_unref(want);
    prt_effects_unref(e);
    return text;
}

TEST(a_reset_of_what_is_reported_goes_to_the_client_s_startup_values)
{
    CHECK_STR(resets("RESET timezone", true), "DateStyle=ISO server_version=15 TimeZone=UTC");
    CHECK_STR(resets("SET TIMEZONE TO DEFAULT", true),
              "DateStyle=ISO server_version=15 TimeZone=UTC");
    CHECK_STR(resets("RESET ALL", true), "DateStyle=SQL server_version=15 TimeZone=UTC");
    CHECK_STR(resets("DISCARD ALL", true), "DateStyle=SQL server_version=15 TimeZone=UTC");
    CHECK_STR(resets("RESET ALL; SET timezone TO 'x'", true),
              "DateStyle=SQL server_version=15 TimeZone=CET");
    CHECK_STR(resets("SET timezone TO 'x'; RESET timezone", true),
              "DateStyle=ISO server_version=15 TimeZone=UTC");
    CHECK_STR(resets("RESET work_mem", false), "DateStyle=ISO server_version=15 TimeZone=CET");
    CHECK_STR(resets("SET LOCAL timezone TO DEFAULT", false),
              "DateStyle=ISO server_version=15 TimeZone=CET");
    CHECK_STR(resets("SELECT 1", false), "DateStyle=ISO server_version=15 TimeZone=CET");
}

/* ---- SQL ---- */
static const struct prt_params *journal(const char *sql, const char *tags)
{
    struct prt_session s;
    const struct prt_params *j;

    prt_session_init(&s);
    step(&s, &(struct step){sql, tags, 'I'});
    CHECK_INT(s.dirty, 0);
    j = prt_params_ref(s.settled);
    prt_session_fini(&s);
    return j;
}

static const char *diff(const char *have, const char *have_tags, const char *want,
                        const char *want_tags, unsigned n, bool is_sure)
{
    static char text[2000];
    const struct prt_params *h = journal(have, have_tags), *w = journal(want, want_tags);
    struct prt_buf b = {0};
    bool sure;

    CHECK_INT(prt_journal_diff(h, w, &b, &sure), n);
    CHECK_INT(sure, is_sure);
    (void)snprintf(text, sizeof text, "%.*s", (int)prt_buf_len(&b),
                   b.n ? (const char *)prt_buf_data(&b) : "");
    prt_buf_free(&b);
    prt_params_unref(h);
    prt_params_unref(w);
    return text;
}

TEST(a_diff_turns_one_journal_into_another)
{
    static const char none[] = "SELECT 1";

    CHECK_STR(diff(none, "SELECT 1", "SET work_mem TO '5MB'", "SET", 1, true),
              "SET work_mem TO '5MB';");
    CHECK_STR(diff("SET work_mem TO '5MB'", "SET", none, "SELECT 1", 1, true), "RESET work_mem;");
    CHECK_STR(diff("SET a.b TO 1", "SET", "SET a.b TO 1", "SET", 0, true), "");
    CHECK_STR(diff("SET a.b TO 1; SET c.d TO 1", "SET|SET", "SET a.b TO 2; SET e.f TO 3", "SET|SET",
                   3, true),
              "RESET \"c.d\";SET \"a.b\" TO 2;SET \"e.f\" TO 3;");
    CHECK_STR(
        diff(none, "SELECT 1", "SELECT set_config('app.user', 'a''b', false)", "SELECT 1", 1, true),
        "SELECT pg_catalog.set_config('app.user', 'a''b', false);");
    /* what another server may refuse */
    (void)diff(none, "SELECT 1", "SET default_tablespace TO x", "SET", 1, false);
    (void)diff(none, "SELECT 1", "SET plpgsql.x TO 1", "SET", 1, false);
    (void)diff(none, "SELECT 1", "SET a.b TO '\xc3\xa9'", "SET", 1, false);
    (void)diff("SET lc_messages TO 'C'", "SET", none, "SELECT 1", 1, false);
    (void)diff(none, "SELECT 1", "SET statement_timeout TO 5; SET lc_time TO 'C'", "SET|SET", 2,
               false);
    (void)diff(none, "SELECT 1", "SET enable_seqscan TO off; SET jit_above_cost TO 1", "SET|SET", 2,
               true);
}

TEST(no_role_is_a_setting_that_only_reset_role_resets)
{
    CASE("role=none", {"SET ROLE x", "SET", 'I'}, {"SET ROLE NONE", "SET", 'I'});
    CASE("role=none", {"SET SESSION ROLE 'none'", "SET", 'I'}, {"RESET ALL", "RESET", 'I'});
    CASE("role=none", {"SELECT set_config('role', 'none', false)", "SELECT 1", 'I'}, BEGIN,
         {"SET ROLE x", "SET", 'T'}, ROLLBACK);
    CASE("role", BEGIN, {"SET ROLE NONE", "SET", 'T'}, {"SET ROLE x", "SET", 'T'}, COMMIT);
    CASE("", {"SET ROLE NONE", "SET", 'I'}, {"RESET ROLE", "RESET", 'I'});
    CASE("", {"SET ROLE NONE", "SET", 'I'}, {"DISCARD ALL", "DISCARD ALL", 'I'});
    CASE("", {"SET LOCAL ROLE NONE", "SET", 'I'});
    CASE("role opaque", {"SET ROLE NONE", "SET", 'I'}, {"SET SESSION AUTHORIZATION x", "SET", 'I'});

    struct prt_session s;
    prt_session_init(&s);
    step(&s, &(struct step){"SET ROLE NONE; SET a.b TO 1", "SET|SET", 'I'});
    prt_session_cleaned(&s, PRT_STATE_BIT(SETTING));
    CHECK_STR(show(s.settled, s.dirty, s.channels), "role=none");
    prt_session_cleaned(&s, PRT_STATE_BIT(ROLE));
    CHECK_STR(show(s.settled, s.dirty, s.channels), "");
    prt_session_fini(&s);
    CHECK_STR(diff("SELECT 1", "SELECT 1", "SET ROLE NONE", "SET", 1, true), "SET role TO none;");
    CHECK_STR(diff("SET ROLE NONE", "SET", "SELECT 1", "SELECT 1", 1, true), "RESET role;");
}

static const char *clean(unsigned states, bool want_forgets)
{
    static char text[300];
    struct prt_buf b = {0};
    bool forgets;

    prt_session_clean_sql(states, &b, &forgets);
    CHECK_INT(forgets, want_forgets);
    (void)snprintf(text, sizeof text, "%.*s", (int)prt_buf_len(&b),
                   b.n ? (const char *)prt_buf_data(&b) : "");
    prt_buf_free(&b);
    return text;
}

TEST(cleaning_does_what_is_due_and_no_more)
{
    CHECK_STR(clean(0, false), "");
    CHECK_STR(clean(PRT_STATE_BIT(TEMP), false), "DISCARD TEMP;");
    CHECK_STR(clean(PRT_STATE_BIT(HOLD) | PRT_STATE_BIT(LISTEN), false), "CLOSE ALL;UNLISTEN *;");
    CHECK_STR(clean(PRT_STATE_BIT(ROLE) | PRT_STATE_BIT(PREPARE), true),
              "RESET SESSION AUTHORIZATION;RESET ROLE;DEALLOCATE ALL;");
    CHECK_STR(clean(PRT_STATE_BIT(ADVISORY), false), "SELECT pg_catalog.pg_advisory_unlock_all();");
    CHECK_STR(clean(PRT_STATE_BIT(SETTING) | PRT_STATE_BIT(TEMP), false),
              "DISCARD TEMP;RESET ALL;");
    CHECK_STR(clean(PRT_STATE_BIT(OPAQUE) | PRT_STATE_BIT(TEMP), true), "DISCARD ALL");

    struct prt_session s;
    prt_session_init(&s);
    step(&s, &(struct step){"SET a.b TO 1; CREATE TEMP TABLE t(); PREPARE p AS SELECT 1",
                            "SET|CREATE TABLE|PREPARE", 'I'});
    prt_session_cleaned(&s, PRT_STATE_BIT(TEMP));
    CHECK_STR(show(s.settled, s.dirty_settled, s.channels), "a.b=1 prepare");
    prt_session_cleaned(&s, PRT_STATE_BIT(PREPARE));
    step(&s, &(struct step){"PREPARE q AS SELECT 1", "PREPARE", 'I'});
    step(&s, &(struct step){"DEALLOCATE q", "DEALLOCATE", 'I'}); /* p is forgotten */
    CHECK_STR(show(s.now, s.dirty, s.channels), "a.b=1");
    prt_session_cleaned(&s, PRT_STATE_BIT(OPAQUE)); /* which took all settings along */
    CHECK_STR(show(s.settled, s.dirty, s.channels), "");
    prt_session_fini(&s);
}

/* ---- random sessions against a model of PostgreSQL's ---- */
enum { M_NAMES = 4, M_DEPTH = 200 };
struct m_state {
    int value[M_NAMES];      /* 0: as at login */
    unsigned channels, born; /* bit sets; born: WITH HOLD cursors of this transaction */
    bool is_temp, listens, has_role, has_auth, has_no_role;
};
struct model {
    struct m_state now, settled, at[M_DEPTH];
    int name[M_DEPTH], depth; /* savepoints */
    unsigned prepared, held, locks;
    enum { M_IDLE, M_BLOCK, M_FAILED } block;
    bool fans_out;
};
struct m_stmt {
    char sql[80];
    const char *tag; /* "!": an error */
};

static uint64_t rng;

static unsigned dice(unsigned n)
{
    rng = rng * 6364136223846793005ULL + 1442695040888963407ULL;
    return (unsigned)(rng >> 33) % n;
}

static void m_commit(struct model *m)
{
    m->held |= m->now.born;
    m->now.born = 0;
    m->settled = m->now;
    m->depth = 0;
}

static void m_rollback(struct model *m)
{
    m->now = m->settled;
    m->depth = 0;
}

static int m_find(const struct model *m, int name)
{
    int i = m->depth;

    while (i-- > 0 && m->name[i] != name) {
    }
    return i;
}

/* Each returns the tag, or "!" for an error, and writes the text. */
static const char *m_txn(struct model *m, char *sql, size_t n)
{
    unsigned kind = dice(7);
    int name = (int)dice(3), at = m_find(m, name);

    switch (kind) {
    case 0:
    case 1:
        (void)snprintf(sql, n, "BEGIN");
        if (m->block == M_FAILED) {
            return "!";
        }
        m->block = M_BLOCK;
        return "BEGIN";
    case 2:
    case 3: {
        bool commits = kind == 2 && m->block != M_FAILED,
             chains = m->block != M_IDLE && dice(4) == 0;
        (void)snprintf(sql, n, "%s%s", kind == 2 ? "COMMIT" : "ROLLBACK",
                       chains ? " AND CHAIN" : "");
        if (commits) {
            m_commit(m);
        } else {
            m_rollback(m);
        }
        m->block = chains ? M_BLOCK : M_IDLE;
        return commits ? "COMMIT" : "ROLLBACK";
    }
    case 4:
        (void)snprintf(sql, n, "SAVEPOINT s%d", name);
        if (m->block != M_BLOCK || m->depth == M_DEPTH) {
            return "!";
        }
        m->at[m->depth] = m->now;
        m->name[m->depth++] = name;
        return "SAVEPOINT";
    case 5:
        (void)snprintf(sql, n, "RELEASE s%d", name);
        if (m->block != M_BLOCK || at < 0) {
            return "!";
        }
        m->depth = at;
        return "RELEASE";
    default:
        (void)snprintf(sql, n, "ROLLBACK TO s%d", name);
        if (m->block == M_IDLE || at < 0) {
            return "!";
        }
        unsigned born = m->now.born & m->at[at].born; /* closed ones do not come back */
        m->now = m->at[at];
        m->now.born = born;
        m->depth = at + 1;
        m->block = M_BLOCK;
        return "ROLLBACK";
    }
}

static const char *m_set(struct model *m, char *sql, size_t n)
{
    int name = (int)dice(M_NAMES), value = 1 + (int)dice(3);

    switch (dice(7)) {
    case 0:
        (void)snprintf(sql, n, "RESET a.n%d", name);
        m->now.value[name] = 0;
        return "RESET";
    case 1:
        (void)snprintf(sql, n, "RESET ALL");
        memset(m->now.value, 0, sizeof m->now.value);
        return "RESET";
    case 2:
        (void)snprintf(sql, n, "SET LOCAL a.n%d TO %d", name, value);
        return "SET";
    case 3:
        (void)snprintf(sql, n, "SELECT set_config('a.n%d', '%d', false)", name, value);
        m->now.value[name] = -value;
        return "SELECT 1";
    default:
        (void)snprintf(sql, n, "SET a.n%d TO %d", name, value);
        m->now.value[name] = value;
        return "SET";
    }
}

static const char *m_role(struct model *m, char *sql, size_t n)
{
    static const char *const forms[2][4] = {
        {"SET SESSION AUTHORIZATION x", "RESET SESSION AUTHORIZATION",
         "SET SESSION AUTHORIZATION DEFAULT", "SET SESSION AUTHORIZATION 'x'"},
        {"SET ROLE x", "RESET ROLE", "SET role TO DEFAULT", "SET ROLE NONE"}};
    bool is_role = dice(2) || m->now.has_no_role; /* both: opaque */
    unsigned form = dice(is_role && m->now.has_auth ? 3 : 4);

    (void)snprintf(sql, n, "%s", forms[is_role][form]);
    *(is_role ? &m->now.has_role : &m->now.has_auth) = form == 0 || (form == 3 && !is_role);
    m->now.has_no_role = is_role && form == 3;
    return form == 1 ? "RESET" : "SET";
}

static const char *m_listen(struct model *m, char *sql, size_t n)
{
    unsigned c = dice(3);

    switch (dice(4)) {
    case 0:
        (void)snprintf(sql, n, "UNLISTEN c%u", c);
        m->now.channels &= ~(1u << c);
        return "UNLISTEN";
    case 1:
        (void)snprintf(sql, n, "UNLISTEN *");
        m->now.channels = 0;
        m->now.listens = false;
        return "UNLISTEN";
    default:
        (void)snprintf(sql, n, "LISTEN c%u", c);
        if (m->fans_out) {
            m->now.channels |= 1u << c;
        } else {
            m->now.listens = true;
        }
        return "LISTEN";
    }
}

/* SQL PREPARE: no transaction. */
static const char *m_prepare(struct model *m, char *sql, size_t n)
{
    unsigned p = dice(4), bit = 1u << p;

    switch (dice(5)) {
    case 0:
        (void)snprintf(sql, n, "DEALLOCATE ALL");
        m->prepared = 0;
        return "DEALLOCATE ALL";
    case 1:
    case 2:
        (void)snprintf(sql, n, "DEALLOCATE p%u", p);
        if (!(m->prepared & bit)) {
            return "!";
        }
        m->prepared &= ~bit;
        return "DEALLOCATE";
    default:
        (void)snprintf(sql, n, "PREPARE p%u AS SELECT 1", p);
        if (m->prepared & bit) {
            return "!";
        }
        m->prepared |= bit;
        return "PREPARE";
    }
}

static const char *m_cursor(struct model *m, char *sql, size_t n)
{
    unsigned p = dice(4), bit = 1u << p;

    switch (dice(5)) {
    case 0:
        (void)snprintf(sql, n, "CLOSE ALL");
        m->held = m->now.born = 0;
        return "CLOSE CURSOR ALL";
    case 1:
    case 2:
        (void)snprintf(sql, n, "CLOSE p%u", p);
        if (!((m->held | m->now.born) & bit)) {
            return "!";
        }
        m->held &= ~bit;
        m->now.born &= ~bit;
        return "CLOSE CURSOR";
    default:
        (void)snprintf(sql, n, "DECLARE p%u CURSOR WITH HOLD FOR SELECT 1", p);
        if ((m->held | m->now.born) & bit) {
            return "!";
        }
        m->now.born |= bit;
        return "DECLARE CURSOR";
    }
}

static const char *m_other(struct model *m, char *sql, size_t n)
{
    switch (dice(6)) {
    case 0:
        (void)snprintf(sql, n, "CREATE TEMP TABLE t()");
        m->now.is_temp = true;
        return "CREATE TABLE";
    case 1:
        (void)snprintf(sql, n, "DISCARD TEMP");
        m->now.is_temp = false;
        return "DISCARD TEMP";
    case 2:
        (void)snprintf(sql, n, "SELECT pg_advisory_lock(1)");
        m->locks = 1;
        return "SELECT 1";
    case 3:
        (void)snprintf(sql, n, "SELECT 1/0");
        return "!";
    default:
        (void)snprintf(sql, n, "SELECT 1");
        return "SELECT 1";
    }
}

/* is_only: in its request */
static void m_stmt(struct model *m, struct m_stmt *st, bool is_only)
{
    unsigned kind = dice(100);
    struct model before = *m;
    bool was_failed = m->block == M_FAILED;
    char *sql = st->sql;
    size_t n = sizeof st->sql;

    if (kind < 35) {
        st->tag = m_txn(m, sql, n);
    } else if (kind < 40 && is_only && m->block == M_IDLE) {
        (void)snprintf(sql, n, "DISCARD ALL");
        *m = (struct model){.fans_out = m->fans_out};
        st->tag = "DISCARD ALL";
    } else {
        st->tag = kind < 65   ? m_set(m, sql, n)
                  : kind < 71 ? m_role(m, sql, n)
                  : kind < 79 ? m_listen(m, sql, n)
                  : kind < 86 ? m_prepare(m, sql, n)
                  : kind < 93 ? m_cursor(m, sql, n)
                              : m_other(m, sql, n);
        if (was_failed) {
            *m = before;
            st->tag = "!";
        }
    }
    if (*st->tag == '!' && m->block == M_BLOCK) {
        m->block = M_FAILED;
    }
}

static char m_ready(struct model *m, bool has_failed)
{
    if (m->block != M_IDLE) {
        return m->block == M_BLOCK ? 'T' : 'E';
    }
    if (has_failed) {
        m_rollback(m);
    } else {
        m_commit(m);
    }
    return 'I';
}

static const char *m_show(const struct model *m, const struct m_state *at)
{
    const struct prt_params *j = prt_params_empty(), *c = prt_params_empty();
    unsigned dirty = 0;
    const char *text;

    for (int i = 0; i < M_NAMES; i++) {
        char name[20], value[20];
        int v = at->value[i];
        (void)snprintf(name, sizeof name, "a.n%d", i);
        (void)snprintf(value, sizeof value, v < 0 ? ":'%d'" : "=%d", abs(v));
        j = v ? prt_params_with(j, prt_str_of(name), prt_str_of(value)) : j;
    }
    if (at->has_no_role) {
        j = prt_params_with(j, PRT_STR("role"), PRT_STR("=none"));
    }
    for (int i = 0; i < 3; i++) {
        char name[20];
        (void)snprintf(name, sizeof name, "63%d", 30 + i);
        c = at->channels >> i & 1 ? prt_params_with(c, prt_str_of(name), PRT_STR("")) : c;
    }
    dirty |= at->is_temp ? PRT_STATE_BIT(TEMP) : 0;
    dirty |= at->listens ? PRT_STATE_BIT(LISTEN) : 0;
    dirty |= at->has_role || at->has_auth ? PRT_STATE_BIT(ROLE) : 0;
    dirty |= m->prepared ? PRT_STATE_BIT(PREPARE) : 0;
    dirty |= m->locks ? PRT_STATE_BIT(ADVISORY) : 0;
    dirty |= m->held | at->born ? PRT_STATE_BIT(HOLD) : 0;
    text = show(j, dirty, c);
    prt_params_unref(j);
    prt_params_unref(c);
    return text;
}

/* One request: a text of several statements, or a pipeline of texts. */
static void m_request(struct model *m, struct prt_session *s, char *log, size_t log_n)
{
    unsigned n = 1 + (dice(3) == 0 ? dice(5) : 0), ran = 0;
    bool is_pipeline = n > 1 && dice(2), has_failed = false;
    struct m_stmt st[6];
    char text[600] = "";
    struct prt_effects *e;
    char z;

    for (unsigned i = 0; i < n; i++) {
        size_t at = strlen(text);
        struct model before = *m;
        m_stmt(m, &st[i], n == 1);
        if (has_failed) {
            *m = before; /* the server does not get that far */
        } else {
            ran = i + 1;
            has_failed = *st[i].tag == '!';
        }
        (void)snprintf(text + at, sizeof text - at, "%s%s", i ? "; " : "", st[i].sql);
    }
    (void)snprintf(log + strlen(log), log_n - strlen(log), "%s%s", is_pipeline ? "| " : "", text);
    e = is_pipeline ? NULL : effects(text);
    for (unsigned i = 0; i < ran; i++) {
        struct prt_effects *own = is_pipeline ? effects(st[i].sql) : e;
        if (*st[i].tag == '!') {
            prt_session_failed(s, own, is_pipeline ? 0 : i);
        } else {
            prt_session_complete(s, own, is_pipeline ? 0 : i, prt_str_of(st[i].tag));
        }
        if (is_pipeline) {
            prt_effects_unref(own);
        }
    }
    prt_effects_unref(e);
    z = m_ready(m, has_failed);
    prt_session_ready(s, (uint8_t)z);
    (void)snprintf(log + strlen(log), log_n - strlen(log), "  -- %c\n", z);
}

/* Equal, but for a cursor that may be thought to be open. */
static bool is_same(const char *got, const char *want)
{
    char without[4000];
    const char *hold = strstr(got, "hold");

    if (strcmp(got, want) == 0) {
        return true;
    }
    if (!hold || strstr(want, "hold")) {
        return false;
    }
    (void)snprintf(without, sizeof without, "%.*s%s", (int)(hold - got), got,
                   hold + 4 + (hold[4] == ' '));
    if (!hold[4] && hold > got) {
        without[hold - got - 1] = 0;
    }
    return strcmp(without, want) == 0;
}

static unsigned too_high, looks;

static bool m_same(const struct model *m, const struct prt_session *s)
{
    const char *got = show(s->now, s->dirty, s->channels), *want = m_show(m, &m->now);

    looks++;
    too_high += strcmp(got, want) != 0;
    if (m->block != M_FAILED && !is_same(got, want)) {
        printf("  is \"%s\", not \"%s\"\n", got, want);
        return false;
    }
    got = show(s->settled, s->dirty_settled, s->channels_settled);
    want = m_show(m, &m->settled);
    if (m->block == M_IDLE && !is_same(got, want)) {
        printf("  settled \"%s\", not \"%s\"\n", got, want);
        return false;
    }
    return true;
}

TEST(random_sessions_are_as_postgresql_has_them)
{
    const char *seed = getenv("PRT_SEED");
    uint64_t start = seed ? strtoull(seed, NULL, 10) : (uint64_t)time(NULL);

    printf("  PRT_SEED=%llu\n", (unsigned long long)start);
    for (unsigned run = 0; run < 10000 && !prt_test_bad; run++) {
        static struct model m;
        static char log[40000];
        struct prt_session s;

        rng = start + run;
        (void)dice(1);
        m = (struct model){.fans_out = dice(2)};
        prt_session_init(&s);
        s.fans_out = m.fans_out;
        *log = 0;
        for (int i = 0; i < 30 && !prt_test_bad; i++) {
            m_request(&m, &s, log, sizeof log);
            if (!m_same(&m, &s)) {
                prt_test_bad++;
                printf("  run %u:\n%s", run, log);
            }
        }
        prt_session_fini(&s);
    }
    /* a cursor that is only thought to be open must stay the exception */
    CHECK(too_high * 10 < looks);
}
