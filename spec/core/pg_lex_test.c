/* pg_lex_test.c - what a text of SQL does to its session: the cases of spec/vectors/lexer.jsonl,
 * the fields that those do not have, and random texts. Run from the top of the checkout.
 * POOLRT_SEED=n repeats a run of random texts. */
#include "pg/lex_int.h"
#include "pg/pg.h"
#include "test.h"

#include <time.h>

static struct prt_sql out;

/* Reads a copy that has nothing behind it, so that the sanitizer sees a step too far. */
static char *kept;
static const struct prt_sql *read_sql(const char *z, size_t n, bool scs)
{
    free(kept);
    kept = malloc(n ? n : 1);
    if (n) {
        memcpy(kept, z, n);
    }
    memset(&out, 0xa5, sizeof out);
    prt_sql_read((struct prt_str){kept, n}, scs, &out);
    return &out;
}

static const struct prt_sql_stmt *first(const char *z)
{
    const struct prt_sql *s = read_sql(z, strlen(z), true);

    if (s->n < 1) {
        printf("  no statement: %s\n", z);
        abort();
    }
    return &s->stmt[0];
}

static bool is_plain(const char *z)
{
    size_t n = strlen(z);
    char *copy = malloc(n ? n : 1);
    memcpy(copy, z, n);
    bool yes = prt_sql_is_plain((struct prt_str){copy, n});
    free(copy);
    return yes;
}

/* ---- the vectors: one line of JSON each, of a fixed form ---- */
static const char *const class_names[] = {"empty",   "read",  "utility", "txn",
                                          "session", "write", "ddl",     "unknown"};

static size_t utf8(char *w, unsigned c)
{
    if (c < 0x80) {
        w[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        w[0] = (char)(0xc0 | c >> 6);
        w[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    w[0] = (char)(0xe0 | c >> 12);
    w[1] = (char)(0x80 | (c >> 6 & 63));
    w[2] = (char)(0x80 | (c & 63));
    return 3;
}

/* *p is at an opening quote; afterwards behind the closing one. */
static size_t json_string(const char **p, char *w)
{
    char *begin = w;
    const char *r = *p + 1;

    for (; *r && *r != '"'; r++) {
        if (*r != '\\') {
            *w++ = *r;
            continue;
        }
        r++;
        if (*r == 'u') {
            unsigned c = 0;
            (void)sscanf(r + 1, "%4x", &c);
            w += utf8(w, c);
            r += 4;
        } else {
            *w++ = *r == 'n' ? '\n' : *r == 't' ? '\t' : *r == 'r' ? '\r' : *r;
        }
    }
    *w = 0;
    *p = r + 1;
    return (size_t)(w - begin);
}

static uint64_t flag_of(const char *name)
{
    for (int i = 0; i < PRT_SQL_FLAG_COUNT; i++) {
        if (strcmp(prt_sql_flag_name(i), name) == 0) {
            return 1ULL << i;
        }
    }
    printf("  no flag is called %s\n", name);
    abort();
}

static void check_vector(const char *line)
{
    char text[4096], word[256];
    const char *p = strstr(line, "\"sql\":") + 6;
    size_t n = json_string(&p, text);
    const struct prt_sql *s = read_sql(text, n, strncmp(p, ",\"scs\":true", 11) == 0);
    unsigned i = 0, c = 0, strongest = PRT_SQL_EMPTY;
    uint64_t all = 0;

    for (p = strstr(p, "\"stmts\":[") + 9; *p == '['; i++) {
        uint64_t flags = 0;
        p++;
        (void)json_string(&p, word);
        CHECK(i < s->n);
        CHECK_STR(class_names[s->stmt[i].cls], word);
        strongest = s->stmt[i].cls > strongest ? s->stmt[i].cls : strongest;
        for (p += 2; *p == '"'; p += *p == ',') {
            (void)json_string(&p, word);
            flags |= flag_of(word);
        }
        flags |= s->stmt[i].flags & PRT_SQL(UNLOCK_ALL); /* newer than the vectors */
        if (s->stmt[i].flags != flags) {
            printf("  statement %u of %s\n", i, text);
        }
        CHECK_INT(s->stmt[i].flags, flags);
        all |= flags;
        p += 2;
        p += *p == ',';
    }
    CHECK_INT(s->n, i);
    CHECK_INT(s->cls, strongest);
    CHECK_INT(s->flags, all);
    for (p = strstr(p, "\"comments\":[") + 12; *p == '"'; p += *p == ',', c++) {
        n = json_string(&p, word);
        CHECK(c < s->n_comments && s->comment[c].n == n && memcmp(s->comment[c].p, word, n) == 0);
    }
    CHECK_INT(s->n_comments, c);
    CHECK(!s->is_cut);
    CHECK(!(prt_sql_is_plain((struct prt_str){text, strlen(text)}) &&
            (s->flags & PRT_SQL_SESSION_FLAGS)));
}

TEST(vectors)
{
    FILE *f = fopen("spec/vectors/lexer.jsonl", "r");
    char line[8192];
    int n = 0;

    CHECK(f != NULL);
    while (f && fgets(line, sizeof line, f)) {
        int before = prt_test_bad;
        check_vector(line);
        if (prt_test_bad != before) {
            printf("  in: %s", line);
        }
        n++;
    }
    CHECK(n >= 122);
    if (f) {
        (void)fclose(f);
    }
}

TEST(what_ends_by_itself_is_known_by_its_whole_text)
{
    CHECK_INT(first("select pg_advisory_unlock_all()")->flags, PRT_SQL(UNLOCK_ALL));
    CHECK_INT(first("SELECT pg_catalog.pg_advisory_unlock_all() ;")->flags, PRT_SQL(UNLOCK_ALL));
    CHECK_INT(first("select pg_advisory_unlock_all() where false")->flags, 0);
    CHECK_INT(first("select pg_advisory_unlock_all(), pg_advisory_lock(1)")->flags,
              PRT_SQL(ADVISORY));
    CHECK_INT(first("create temp table t (x int) on commit drop")->flags, 0);
    CHECK_INT(first("create temp table t on commit drop as select 1")->flags, 0);
    CHECK_INT(first("create temp table t (x int) on commit delete rows")->flags, PRT_SQL(TEMP));
    CHECK_INT(first("create temp table t as select commit drop")->flags, PRT_SQL(TEMP));
    CHECK_INT(first("create temp table t (commit drop)")->flags, PRT_SQL(TEMP));
}

TEST(flags_have_names)
{
    CHECK_STR(prt_sql_flag_name(PRT_SQL_BIT_ADVISORY), "advisory");
    CHECK_STR(prt_sql_flag_name(PRT_SQL_BIT_UNLISTEN), "unlisten");
    CHECK_STR(prt_sql_flag_name(PRT_SQL_FLAG_COUNT), "");
}

/* ---- names ---- */
static bool named(const char *z, const char *name)
{
    const struct prt_sql_stmt *s = first(z);

    if (!prt_str_eqz(s->name, name)) {
        printf("  %s: \"" PRT_STR_FMT "\", not \"%s\"\n", z, PRT_STR_ARG(s->name), name);
        return false;
    }
    return !out.is_cut;
}

TEST(objects_have_names_as_the_server_folds_them)
{
    CHECK(named("listen Abc", "abc"));
    CHECK(named("listen \"Abc\"", "Abc"));
    CHECK(named("listen \"A\"\"b\"\"\"", "A\"b\""));
    CHECK(named("LISTEN /* x */ a$1 -- y", "a$1"));
    CHECK(named("unlisten *", "*"));
    CHECK(named("unlisten C", "c"));
    CHECK(named("prepare A(int) as select 1", "a"));
    CHECK(named("prepare transaction as select 1", "transaction"));
    CHECK(named("prepare transaction 'x'", ""));
    CHECK(named("execute \"p q\"(1, 2)", "p q"));
    CHECK(named("deallocate a", "a"));
    CHECK(named("deallocate prepare a", "a"));
    CHECK(named("deallocate prepare", "prepare"));
    CHECK(named("deallocate \"all\"", "all"));
    CHECK(named("deallocate all", ""));
    CHECK(named("close C", "c"));
    CHECK(named("declare Cur no scroll cursor for select 1", "cur"));
    CHECK(named("savepoint S", "s"));
    CHECK(named("release s", "s"));
    CHECK(named("release savepoint s", "s"));
    CHECK(named("release savepoint", "savepoint"));
    CHECK(named("rollback to s", "s"));
    CHECK(named("rollback work to savepoint s", "s"));
    CHECK(named("rollback to savepoint", "savepoint"));
    CHECK(named("rollback", ""));
    CHECK(named("reset Search_Path", "search_path"));
    CHECK(named("reset App . \"X\"", "app.X"));
    CHECK(named("reset time zone", "timezone"));
    CHECK(named("reset \"all\"", "all"));
    CHECK(named("explain analyze execute p(1)", "p"));
    CHECK(named("explain execute p", "p"));
    CHECK(named("create temp table t as execute P(1)", "p"));
    CHECK(named("create trigger t before insert on x for each row execute function f()", ""));
    CHECK(named("listen \xc3\x84", "\xc3\x84"));
    CHECK(named("listen", ""));
    CHECK(named("listen 'x'", ""));
}

TEST(long_names_are_truncated_as_the_server_does_or_given_up)
{
    char z[200];

    (void)snprintf(z, sizeof z, "listen %0*d", 0, 0);
    memset(z + 7, 'A', 100);
    z[107] = 0;
    CHECK_INT(first(z)->name.n, 63);
    CHECK(!out.is_cut);
    memcpy(z + 7, "\xc3\xa4", 2);
    CHECK_INT(first(z)->name.n, 0);
    CHECK(out.is_cut && out.cls == PRT_SQL_UNKNOWN);
    CHECK(first("listen U&\"a\"")->name.n == 0);
    CHECK(out.is_cut && out.flags == PRT_SQL(LISTEN));
    (void)first("select U&\"set\\005fconfig\"('a','b',false)");
    CHECK(out.is_cut);
}

TEST(room_for_folded_names_has_an_end)
{
    char z[4000] = "";
    size_t n = 0;

    for (int i = 0; i < 16; i++) {
        memset(z + n, 'A', 60);
        memcpy(z + n, "listen ", 7);
        z[n + 60] = 0;
        n += 60;
        z[n++] = ';';
    }
    (void)read_sql(z, n, true);
    CHECK(out.n == 16 && !out.is_cut);
    CHECK(out.stmt[15].name.n == 53 && out.stmt[15].name.p[0] == 'a');
    n = 0;
    for (int i = 0; i < 18; i++) {
        n += (size_t)snprintf(z + n, sizeof z - n, "set A%060d . b = 1;", i);
    }
    (void)read_sql(z, n, true);
    CHECK(out.n == 16 && out.is_cut && out.cls == PRT_SQL_UNKNOWN);
    CHECK(out.stmt[15].n_sets == 1);
    n = 0;
    for (int i = 0; i < 16; i++) {
        n += (size_t)snprintf(z + n, sizeof z - n, "set A%060d . b%060d = 1;", i, i);
    }
    (void)read_sql(z, n, true);
    CHECK(out.is_cut && out.stmt[15].n_sets == 0 && out.stmt[15].has_unknown_set);
}

TEST(kinds_of_savepoint_statements)
{
    CHECK(!first("savepoint s")->is_release && !out.stmt[0].is_rollback_to);
    CHECK(first("release s")->is_release && !out.stmt[0].is_rollback_to);
    CHECK(first("rollback to s")->is_rollback_to && !out.stmt[0].is_release);
    CHECK_INT(first("rollback to s")->flags, PRT_SQL(SAVEPOINT));
}

/* ---- assignments ---- */
static bool sets(const char *z, unsigned i, const char *name, const char *value)
{
    const struct prt_sql_stmt *s = first(z);

    if (i >= s->n_sets || !prt_str_eqz(s->set[i].name, name) ||
        !prt_str_eqz(s->set[i].value, value)) {
        printf("  %s: %u sets, " PRT_STR_FMT " = " PRT_STR_FMT "\n", z, s->n_sets,
               i < s->n_sets ? (int)s->set[i].name.n : 0, s->set[i].name.p,
               i < s->n_sets ? (int)s->set[i].value.n : 0, s->set[i].value.p);
        return false;
    }
    return !s->has_unknown_set && !out.is_cut && !s->set[i].is_config;
}

static bool sets_nothing(const char *z)
{
    const struct prt_sql_stmt *s = first(z);

    return s->n_sets == 0 && !s->has_unknown_set && !out.is_cut;
}

static bool sets_unknown(const char *z)
{
    return first(z)->n_sets == 0 && out.stmt[0].has_unknown_set;
}

TEST(set_tells_name_and_value_as_written)
{
    CHECK(sets("set x = 1", 0, "x", "1"));
    CHECK(sets("SET Search_Path TO A, 'b c' , \"D\" ;", 0, "Search_Path", "A, 'b c' , \"D\""));
    CHECK(sets("set session statement_timeout='5s' -- c", 0, "statement_timeout", "'5s'"));
    CHECK(sets("set \"TimeZone\" to 'UTC'", 0, "TimeZone", "'UTC'"));
    CHECK(sets("set app.user_id = 'x'", 0, "app.user_id", "'x'"));
    CHECK(sets("set a . \"B\".c = on", 0, "a.B.c", "on"));
    CHECK(sets("set x to -1.5e3", 0, "x", "-1.5e3"));
    CHECK(sets("set x to E'a\\'b'", 0, "x", "E'a\\'b'"));
    CHECK(sets("set x to 'a'\n 'b'", 0, "x", "'a'\n 'b'"));
    CHECK(sets("set x to $$a$$", 0, "x", "$$a$$"));
    CHECK(sets("set x to default", 0, "x", ""));
    CHECK(sets("set x = DEFAULT;select 1", 0, "x", ""));
    CHECK(sets("set x to \"default\"", 0, "x", "\"default\""));
    CHECK(sets("set session = 1", 0, "session", "1"));
    CHECK(sets("set local to 1", 0, "local", "1"));
    CHECK(sets("set local.x to 1", 0, "local.x", "1"));
    CHECK(sets("set time zone 'UTC'", 0, "timezone", "'UTC'"));
    CHECK(sets("set time zone -7", 0, "timezone", "-7"));
    CHECK(sets("set session time zone Europe", 0, "timezone", "Europe"));
    CHECK(sets("set time zone local", 0, "timezone", ""));
    CHECK(sets("set time zone default", 0, "timezone", ""));
    CHECK(sets("set names 'latin1'", 0, "client_encoding", "'latin1'"));
    CHECK(sets("set names", 0, "client_encoding", ""));
    CHECK(sets("set schema 'a b'", 0, "search_path", "'a b'"));
    CHECK(sets("set xml option document", 0, "xmloption", "document"));
    CHECK(sets("set names = 1", 0, "names", "1"));
}

TEST(set_session_characteristics_sets_up_to_three)
{
    static const char z[] = "set session characteristics as transaction isolation level repeatable "
                            "read, read only not deferrable";

    CHECK(sets(z, 0, "default_transaction_isolation", "'repeatable read'"));
    CHECK(sets(z, 1, "default_transaction_read_only", "on"));
    CHECK(sets(z, 2, "default_transaction_deferrable", "off"));
    CHECK_INT(out.stmt[0].n_sets, 3);
    CHECK(sets("set session characteristics as transaction read write, read only", 0,
               "default_transaction_read_only", "on"));
    CHECK_INT(out.stmt[0].n_sets, 1);
    CHECK(first("set session characteristics as transaction read")->has_unknown_set);
    CHECK(first("set session characteristics as transaction")->has_unknown_set);
}

TEST(what_ends_with_the_transaction_is_no_assignment)
{
    CHECK(sets_nothing("set local x = 1"));
    CHECK(sets_nothing("set local x = f("));
    CHECK(sets_nothing("set local time zone 'UTC'"));
    CHECK(sets_nothing("set local session characteristics as transaction read only"));
    CHECK(sets_nothing("set transaction read only"));
    CHECK(sets_nothing("set transaction snapshot 'x'"));
    CHECK(sets_nothing("set transaction_isolation to serializable"));
    CHECK(sets_nothing("set constraints all deferred"));
    CHECK(first("set session transaction read only")->cls == PRT_SQL_TXN);
}

TEST(set_that_is_not_understood_says_so)
{
    CHECK(sets_unknown("set time zone interval '-08:00' hour to minute"));
    CHECK(sets_unknown("set x from current"));
    CHECK(sets_unknown("set x to"));
    CHECK(sets_unknown("set x"));
    CHECK(sets_unknown("set"));
    CHECK(sets_unknown("set x to a,"));
    CHECK(sets_unknown("set x to (1)"));
    CHECK(sets_unknown("set x to $1"));
    CHECK(sets_unknown("set x to default, a"));
    CHECK(sets_unknown("set x to - a"));
    CHECK(sets_unknown("set x to 'a\\b'")); /* would hang on standard_conforming_strings */
    CHECK(sets_unknown("set x to B'1'"));
    CHECK(sets_unknown("set x to U&\"a\""));
    CHECK(sets_unknown("set U&\"x\" to 1"));
    CHECK(sets_unknown("set seed to 0.5"));
    CHECK(sets_unknown("set a.b.c.d.e = 1"));
    CHECK(sets_unknown("set x to 'open"));
}

TEST(role_is_a_role_however_it_is_set)
{
    CHECK_INT(first("set \"role\" to x")->flags, PRT_SQL(ROLE));
    CHECK_INT(out.stmt[0].n_sets, 0);
    CHECK_INT(first("set Role = 'x'")->flags, PRT_SQL(ROLE));
    CHECK_INT(first("set role none")->flags, PRT_SQL(ROLE));
    CHECK_INT(first("set role none")->role_to, PRT_SQL_ROLE_NONE);
    CHECK_INT(first("set role to \"none\"")->role_to, PRT_SQL_ROLE_NONE);
    CHECK_INT(first("set role 'NONE'")->role_to, PRT_SQL_ROLE_NAMED);
    CHECK_INT(first("set role nones")->role_to, PRT_SQL_ROLE_NAMED);
    CHECK_INT(first("set session authorization none")->role_to, PRT_SQL_ROLE_NAMED);
    CHECK_INT(first("set session authorization default")->role_to, PRT_SQL_ROLE_DEFAULT);
    CHECK_INT(first("set session authorization \"default\"")->role_to, PRT_SQL_ROLE_NAMED);
    CHECK_INT(first("set role = default")->role_to, PRT_SQL_ROLE_DEFAULT);
    CHECK_INT(first("set role from current")->role_to, PRT_SQL_ROLE_NAMED);
    CHECK_INT(first("reset role")->role_to, PRT_SQL_ROLE_DEFAULT);
    CHECK_INT(first("reset session authorization")->role_to, PRT_SQL_ROLE_DEFAULT);
    CHECK_INT(first("select set_config('role','none',false), "
                    "set_config('session_authorization','x',false)")
                  ->role_to,
              PRT_SQL_ROLE_NAMED);
    CHECK_INT(first("set session_authorization to x")->flags, PRT_SQL(AUTH));
    CHECK_INT(first("reset \"role\"")->flags, PRT_SQL(ROLE));
    CHECK_INT(first("reset session_authorization")->flags, PRT_SQL(AUTH));
    CHECK_INT(first("select set_config('ROLE', 'x', false)")->flags,
              PRT_SQL(ROLE) | PRT_SQL(SETCONFIG));
    CHECK(!out.stmt[0].has_unknown_set && out.stmt[0].n_sets == 0);
}

TEST(a_path_to_pg_temp_makes_temporary_objects)
{
    CHECK_INT(first("set search_path = pg_temp, a")->flags, PRT_SQL(SET) | PRT_SQL(TEMP));
    CHECK_INT(first("set search_path = 'PG_temp'")->flags, PRT_SQL(SET) | PRT_SQL(TEMP));
    CHECK(first("select set_config('search_path','pg_temp',true)")->flags & PRT_SQL(TEMP));
    CHECK(first("select * into pg_temp.x from y")->flags & PRT_SQL(TEMP));
    CHECK(first("insert into \"pg_temp_3\".x values (1)")->flags & PRT_SQL(TEMP));
    CHECK(!(first("select pg_temporal, \"PG_TEMP\"")->flags & PRT_SQL(TEMP)));
}

/* ---- set_config() ---- */
static bool configs(const char *z, unsigned i, const char *name, const char *value)
{
    const struct prt_sql_stmt *s = first(z);

    if (i >= s->n_sets || !prt_str_eqz(s->set[i].name, name) ||
        !prt_str_eqz(s->set[i].value, value)) {
        printf("  %s: %u sets\n", z, s->n_sets);
        return false;
    }
    return !s->has_unknown_set && s->set[i].is_config && (s->flags & PRT_SQL(SETCONFIG));
}

TEST(set_config_of_literals_is_an_assignment)
{
    static const char two[] = "SELECT set_config('a', 'x y', false) AS one, "
                              "pg_catalog.SET_CONFIG('b', E'\\n', 'f') two;";

    CHECK(configs("select set_config('a.b','c',false)", 0, "a.b", "'c'"));
    CHECK(
        configs("select pg_catalog.set_config('search_path', '', false);", 0, "search_path", "''"));
    CHECK(configs("select \"set_config\"('a', 'it''s', FALSE)", 0, "a", "'it''s'"));
    CHECK(configs(two, 0, "a", "'x y'"));
    CHECK(configs(two, 1, "b", "E'\\n'"));
    CHECK_INT(out.stmt[0].n_sets, 2);
    CHECK(configs("select set_config('a','1',false), set_config('A','2',false)", 0, "A", "'2'"));
    CHECK_INT(out.stmt[0].n_sets, 1);
    CHECK(configs("select set_config('a','1',true), set_config('b','2',false)", 0, "b", "'2'"));
}

/* Name and column of set number i, whose value its row tells. */
static bool by_row(const char *z, unsigned i, const char *name, unsigned column)
{
    return configs(z, i, name, "") && out.stmt[0].set[i].column == column;
}

TEST(set_config_of_another_value_is_told_by_its_row)
{
    static const char three[] = "select set_config('a', $1, true), set_config('b', $2, false) x, "
                                "set_config('c', 'l', false), set_config('d', f(a, 'b'), 'f')";

    CHECK(by_row("select set_config('a.b', $1, false)", 0, "a.b", 1));
    CHECK(by_row("select set_config('a.b', $1::text || current_user, FALSE) as x", 0, "a.b", 1));
    CHECK(by_row("select set_config('a', 'b\\', false)", 0, "a", 1));
    CHECK(by_row("select set_config('a', (select x from t), false)", 0, "a", 1));
    CHECK(by_row(three, 0, "b", 2) && by_row(three, 2, "d", 4));
    CHECK(configs(three, 1, "c", "'l'") && out.stmt[0].set[1].column == 0);
    CHECK(by_row("select set_config('a','1',false), set_config('A',$1,false)", 0, "A", 2));
    CHECK(configs("select set_config('a', $1, false), set_config('a', 'x', false)", 0, "a", "'x'"));
    CHECK(by_row("select set_config('a', nullif('x', 'x'), false)", 0, "a", 1));
    CHECK(configs("select set_config('a', NULL, false)", 0, "a", "")); /* DEFAULT */
    CHECK_INT(out.stmt[0].set[0].column, 0);
}

TEST(set_config_for_the_transaction_is_none)
{
    CHECK(sets_nothing("select set_config('a','b',true)"));
    CHECK(sets_nothing("select set_config($1, $2, true), set_config('b', f(1, 2), 't')"));
    CHECK(sets_nothing("insert into t select set_config(a, b, true) from x"));
    CHECK(sets_nothing("select set_config from t"));
}

TEST(set_config_of_anything_else_is_unknown)
{
    CHECK(sets_unknown("select set_config($1, 'b', false)"));
    CHECK(sets_unknown("select set_config('a', 'b', $1)"));
    CHECK(sets_unknown("select set_config('a', 'b')"));
    CHECK(sets_unknown("select set_config('a', 'b', not true)"));
    CHECK(sets_unknown("select set_config('', 'b', false)"));
    CHECK(sets_unknown("select set_config('seed', $1, false)"));
    CHECK(sets_unknown("select set_config('a', , false)"));
    CHECK(sets_unknown("select set_config('a', $1, false) from t"));
    CHECK(sets_unknown("select set_config('a', set_config('b', 'c', false), false)"));
    CHECK(sets_unknown("select mine.set_config('a', 'b', false)"));
    CHECK(sets_unknown("select set_config('a', 'b', false) from t"));
    CHECK(sets_unknown("select set_config('a', 'b', false) where false"));
    CHECK(sets_unknown("select 1, set_config('a', 'b', false)"));
    CHECK(sets_unknown("select set_config('a', set_config('b', 'c', false), true)"));
    CHECK(sets_unknown("select set_config('a', 'b', true), x.set_config($1, $2, false)"));
    CHECK(sets_unknown("select (set_config('a', 'b', false))"));
    CHECK(sets_unknown("insert into t select set_config('a', 'b', false)"));
    CHECK(sets_unknown("prepare p as select set_config('a', 'b', false)"));
    CHECK(sets_unknown("select set_config('a', 'b', false"));
    CHECK(first("select set_config('a','',false), set_config('b','',false), "
                "set_config('c','',false), set_config('d','',false)")
              ->has_unknown_set);
}

/* ---- classes and flags that the vectors leave out ---- */
static bool is(const char *z, enum prt_sql_class cls, uint64_t flags)
{
    const struct prt_sql_stmt *s = first(z);

    if (s->cls != cls || s->flags != flags) {
        printf("  %s: %s, flags", z, class_names[s->cls]);
        for (int i = 0; i < PRT_SQL_FLAG_COUNT; i++) {
            printf("%s%s", s->flags >> i & 1 ? " " : "",
                   s->flags >> i & 1 ? prt_sql_flag_name(i) : "");
        }
        printf("\n");
        return false;
    }
    return true;
}

TEST(explain_runs_only_with_analyze)
{
    uint64_t explain = PRT_SQL(EXPLAIN);

    CHECK(is("explain (select 1)", PRT_SQL_READ, explain));
    CHECK(is("explain (analyze off) delete from t", PRT_SQL_READ, explain));
    CHECK(is("explain (analyze false, analyze) delete from t", PRT_SQL_WRITE, explain));
    CHECK(is("explain (analyze 0) delete from t", PRT_SQL_READ, explain));
    CHECK(is("explain (verbose, analyze true) delete from t", PRT_SQL_WRITE, explain));
    CHECK(is("explain analyze verbose delete from t", PRT_SQL_WRITE, explain));
    CHECK(is("explain execute p", PRT_SQL_READ, explain | PRT_SQL(EXECUTE)));
    CHECK(is("explain analyze execute p", PRT_SQL_WRITE, explain | PRT_SQL(EXECUTE)));
    CHECK(is("explain analyze create temp table t as select 1", PRT_SQL_DDL,
             explain | PRT_SQL(TEMP)));
    CHECK(is("explain create temp table t as select 1", PRT_SQL_READ, explain));
    CHECK(is("explain analyze explain analyze do 'x'", PRT_SQL_READ, explain));
    CHECK(is("explain", PRT_SQL_READ, explain));
}

TEST(temporary_objects)
{
    CHECK(is("create global temporary table t()", PRT_SQL_DDL, PRT_SQL(TEMP)));
    CHECK(is("create temp sequence s", PRT_SQL_DDL, PRT_SQL(TEMP)));
    CHECK(is("create table temp (temp int)", PRT_SQL_DDL, 0));
    CHECK(is("select temp from temp", PRT_SQL_READ, 0));
    CHECK(is("with x as (select 1) select * into local temp t from x", PRT_SQL_DDL, PRT_SQL(TEMP)));
    CHECK(is("insert into temp select 1", PRT_SQL_WRITE, 0));
}

TEST(statements_that_look_like_others)
{
    CHECK(is("copy (insert into t values (1) returning 1) to stdout", PRT_SQL_WRITE,
             PRT_SQL(COPY_OUT)));
    CHECK(is("rollback and no chain", PRT_SQL_TXN, PRT_SQL(ROLLBACK)));
    CHECK(is("end transaction and chain", PRT_SQL_TXN, PRT_SQL(COMMIT) | PRT_SQL(CHAIN)));
    CHECK(is("discard sequences", PRT_SQL_SESSION, PRT_SQL(DISCARD_SEQUENCES)));
    CHECK(is("discard temp", PRT_SQL_SESSION, PRT_SQL(DISCARD_TEMP)));
    CHECK(is("table t for share", PRT_SQL_WRITE, PRT_SQL(ROWLOCK)));
    CHECK(is("((((", PRT_SQL_UNKNOWN, 0));
    CHECK(is("'x'", PRT_SQL_UNKNOWN, 0));
    CHECK(is("\"select\" 1", PRT_SQL_UNKNOWN, 0));
    CHECK(is("select pg_advisory_lock /* x */ -- y\n (1)", PRT_SQL_READ, PRT_SQL(ADVISORY)));
    CHECK(is("select \"PG_ADVISORY_LOCK\"(1)", PRT_SQL_READ, 0));
    CHECK(is("select setseed(1), dblink_connect('x')", PRT_SQL_READ, PRT_SQL(STICKY)));
}

TEST(where_statements_end)
{
    CHECK_INT(read_sql("select E'a'\n'\\';'; select 2", 27, true)->n, 2); /* goes on as E'' */
    CHECK_INT(read_sql("select B'1''\\'; select 2", 24, false)->n, 1);
    CHECK(out.flags & PRT_SQL(UNFINISHED)); /* a bit string doubles nothing */
    CHECK_INT(read_sql("select B'1''\\'; select 2", 24, true)->n, 2);
    CHECK_INT(read_sql("select N'a\\'; select 2'", 23, false)->n, 1);
    CHECK_INT(read_sql("select $a$;$b$;$a$;$a;$;", 24, true)->n, 3);
    CHECK_INT(read_sql("create table t (begin atomic); set x = 1", 40, true)->n, 2);
    CHECK_INT(
        read_sql("create function f() begin atomic select 1 as case; end; set x = 1", 65, true)->n,
        1);
    CHECK(out.is_cut); /* looked as if it was open still: not trusted */
    CHECK_INT(read_sql(";;a;;", 5, true)->n, 1);
    CHECK_INT(read_sql("a) ; b", 6, true)->n, 2);
    CHECK_INT(read_sql(NULL, 0, true)->cls, PRT_SQL_EMPTY);
}

TEST(unfinished_texts_tell_what_could_be_read)
{
    const struct prt_sql *s = read_sql("listen a; set x = 1; set y = 'open", 34, true);

    CHECK(s->n == 3 && s->cls == PRT_SQL_UNKNOWN && !s->is_cut);
    CHECK_INT(s->flags, PRT_SQL(LISTEN) | PRT_SQL(SET) | PRT_SQL(UNFINISHED));
    CHECK(s->stmt[1].n_sets == 1 && s->stmt[2].n_sets == 0 && s->stmt[2].has_unknown_set);
    CHECK_INT(read_sql("select 1; /*", 12, true)->n, 2);
    CHECK(out.stmt[1].cls == PRT_SQL_UNKNOWN);
}

TEST(long_texts_are_cut)
{
    static char z[PRT_SQL_LOOKED_AT + 100];

    memset(z, ' ', sizeof z);
    memcpy(z, "set x = 'a", 10);
    (void)read_sql(z, PRT_SQL_LOOKED_AT, true);
    CHECK(!out.is_cut && (out.flags & PRT_SQL(UNFINISHED)));
    (void)read_sql(z, sizeof z, true);
    CHECK(out.is_cut && out.cls == PRT_SQL_UNKNOWN && out.flags == PRT_SQL(SET));
    CHECK(out.n == 1 && out.stmt[0].n_sets == 0 && out.stmt[0].has_unknown_set);
    memcpy(z, "select 1;;", 10);
    memcpy(z + PRT_SQL_LOOKED_AT - 4, "listen a", 8); /* "list" could be anything */
    (void)read_sql(z, sizeof z, true);
    CHECK(out.is_cut && out.n == 1 && out.flags == 0);
    z[PRT_SQL_LOOKED_AT] = 0;
    (void)read_sql(z, sizeof z, true);
    CHECK(!out.is_cut && out.n == 2 && out.stmt[1].cls == PRT_SQL_UNKNOWN);
}

TEST(comments_are_kept_up_to_four)
{
    static const char z[] = "--a \n/* b */ select 'x' --c\n'y' /*d*/ --e";

    (void)read_sql(z, sizeof z - 1, true);
    CHECK_INT(out.n_comments, 4);
    CHECK(prt_str_eqz(out.comment[0], "a") && prt_str_eqz(out.comment[1], "b"));
    CHECK(prt_str_eqz(out.comment[2], "c") && prt_str_eqz(out.comment[3], "d"));
}

/* ---- the cheap question ---- */
TEST(usual_texts_are_plain)
{
    static const char *const texts[] = {
        "",
        " ;; ",
        "SELECT abalance FROM pgbench_accounts WHERE aid = $1;",
        "UPDATE pgbench_accounts SET abalance = abalance + $1 WHERE aid = $2",
        "INSERT INTO pgbench_history (tid, bid, mtime) VALUES ($1, $2, CURRENT_TIMESTAMP);",
        "DELETE FROM t WHERE id = 'it''s; x' -- really",
        "BEGIN",
        "begin;",
        "START TRANSACTION READ ONLY",
        "COMMIT",
        "END;",
        "select count(*), now(), coalesce(a, 'x'), max (b) from t where a in (1, 2)",
        "INSERT INTO t (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET b = excluded.b",
        "/* tenant='a' */ SELECT 1",
        "SELECT 1 /*traceparent='00-1',action='set'*/",
        "-- name: GetUser :one\nSELECT id, company FROM users\nWHERE id = $1",
        "SELECT a\nFROM t\nWHERE b IN\n  (1, 2)",
        "INSERT INTO t\n  (a)\nVALUES\n  (E'it\\'s')",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "(select 1) union (select 2)",
        "select $$a;b$$, \"a;b\"",
        "select company, attempt, temperature, template, x_temp from temperatures",
        "select 1; -- two\nselect 2; /* x */ select 3",
        "SHOW timezone",
        "COPY t FROM STDIN",
        "select my_lock(1), reset(2), pg_advisory_xact_lock(3), pg_advisory_unlock(3)",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (!is_plain(texts[i])) {
            printf("  not plain: %s\n", texts[i]);
        }
        CHECK(is_plain(texts[i]));
    }
}

TEST(texts_that_touch_the_session_are_not_plain)
{
    static const char *const texts[] = {
        "set x = 1",
        "select 1;set x = 1",
        "select ';/*'; set x = 1; select '*/'",
        "select 'a\\'; set x = 1 --'",
        " ( ( ;;; /* x /* y */ z */ -- q\n ; dEaLLocate all",
        "select set_config('a', 'b', false)",
        "select 1set_config('a', 'b', false)",
        "select $1set_config('a', 'b', false)",
        "select \"set_config\" \t\n ('a', 'b', false)",
        "select set_config/* x */('a', 'b', false)",
        "select set_config -- x/\n\n -- y\n('a', 'b', false)",
        "select set_config('a",
        "select U&\"set\\005fconfig\"('a', 'b', false)",
        "select 1 into temp",
        "select 1 into TEMPORARY x from y",
        "select 1 into $1temp x",
        "create table t()",
        "select 1 from pg_temp_3.x",
        "select 'a' /* ; */ ; close c",
        "rollback",
        "explain analyze execute p",
        "do $$begin end$$",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (is_plain(texts[i])) {
            printf("  plain: %s\n", texts[i]);
        }
        CHECK(!is_plain(texts[i]));
    }
}

TEST(each_function_that_matters_is_found_wherever_it_stands)
{
    static const uint8_t calls[] = {
#define X(id, flag) PRT_W_##id,
        PRT_CALLS(X)
#undef X
    };
    char z[200];

    for (size_t i = 0; i < sizeof calls; i++) {
        for (int pad = 0; pad < 40; pad++) {
            const char *name = prt_words[calls[i]].p;
            (void)snprintf(z, sizeof z, "select %*s%s(1)", pad, "", name);
            CHECK(!is_plain(z));
            CHECK(calls[i] == PRT_W_PG_ADVISORY_UNLOCK_ALL || /* with nothing behind it only */
                  first(z)->flags & PRT_SQL_SESSION_FLAGS);
            (void)snprintf(z, sizeof z, "select %*stemp", pad, "");
            CHECK(!is_plain(z));
            (void)snprintf(z, sizeof z, "select %*s;reset x", pad, "");
            CHECK(!is_plain(z));
        }
    }
}

static double seconds(const char *unit, size_t size)
{
    size_t n = 0, m = strlen(unit);
    char *z = malloc(size + m);
    struct timespec a, b;
    const char head[] = "select 1 ";

    memcpy(z, head, sizeof head - 1);
    for (n = sizeof head - 1; n + m <= size; n += m) {
        memcpy(z + n, unit, m);
    }
    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
    (void)prt_sql_is_plain((struct prt_str){z, n});
    prt_sql_read((struct prt_str){z, n}, true, &out);
    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
    free(z);
    return (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9;
}

TEST(hostile_texts_take_no_longer_than_others)
{
    static const char *const units[] = {
        ";/*", ";/**/", ";--\n", ";",    "(",  "\n(", "set_config(", "explain analyze(",
        "$a",  "$a$",   "'\n",   "\"\"", "; ", "--",  "temp",        "; prepare ",
    };
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        double s = seconds(units[i], 1 << 20);
        if (s > 0.5) {
            printf("  %s: %.3f s\n", units[i], s);
        }
        CHECK(s <= 0.5); /* quadratic would be minutes */
    }
}

/* ---- random texts ---- */
static uint64_t rng;
static uint32_t rnd(uint32_t n)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return (uint32_t)((rng >> 20) % n);
}

static const char *const pieces[] = {
    " ",
    " ",
    " ",
    " ",
    "\n",
    "\t",
    "\r",
    ";",
    ";",
    ";",
    "(",
    "(",
    ")",
    ",",
    "'",
    "'",
    "''",
    "\\",
    "\"",
    "\"\"",
    "--",
    "-- x\n",
    "/*",
    "*/",
    "/* y */",
    "$",
    "$$",
    "$a$",
    "$1",
    "1",
    "1e",
    ".5",
    "E'",
    "U&'",
    "U&\"",
    "N'",
    "B'",
    "&",
    "=",
    ".",
    "*",
    "\xc3\xa4",
    "_",
    "a",
    "SELECT ",
    "select ",
    "set ",
    "SET ",
    "local ",
    "session ",
    "set_config",
    "set_config(",
    "'a','b',false)",
    "true",
    "setseed(",
    "pg_advisory_lock",
    "pg_advisory_lock(1)",
    "PG_TRY_ADVISORY_LOCK_SHARED (",
    "dblink_connect",
    "temp",
    "TEMP ",
    "temporary",
    "into ",
    "pg_temp",
    "pg_temp_1.",
    "explain ",
    "analyze ",
    "execute p",
    "prepare p as ",
    "do ",
    "call ",
    "close ",
    "reset ",
    "discard all",
    "rollback",
    "savepoint s",
    "listen c",
    "load 'x'",
    "deallocate ",
    "all",
    "begin ",
    "atomic ",
    "case ",
    "end ",
    "create ",
    "function f() ",
    "declare c cursor ",
    "with hold ",
    "for ",
    "update ",
    "insert ",
    "x",
    "to ",
    "role ",
    "time zone ",
    "default",
    "mp",
    "te",
    "or",
    "ary",
};

static size_t random_text(char *z, size_t cap)
{
    size_t n = 0, count = 1 + rnd(24);

    for (size_t i = 0; i < count; i++) {
        const char *s = pieces[rnd(sizeof pieces / sizeof *pieces)];
        size_t m = strlen(s);
        if (m > cap - n) {
            break;
        }
        memcpy(z + n, s, m);
        n += m;
    }
    return n;
}

static void show(const char *z, size_t n)
{
    printf("  text: \"");
    for (size_t i = 0; i < n; i++) {
        printf((unsigned char)z[i] < ' ' ? "\\x%02x" : "%c", (unsigned char)z[i]);
    }
    printf("\"\n");
}

/* Is what was read the same, wherever the text lies? */
static bool same(const struct prt_sql *a, const struct prt_sql *b)
{
    bool is = a->cls == b->cls && a->is_cut == b->is_cut && a->n == b->n && a->flags == b->flags &&
              a->n_comments == b->n_comments;

    for (unsigned i = 0; is && i < a->n; i++) {
        const struct prt_sql_stmt *s = &a->stmt[i], *t = &b->stmt[i];
        is = s->cls == t->cls && s->flags == t->flags && s->n_sets == t->n_sets &&
             s->has_unknown_set == t->has_unknown_set && prt_str_eq(s->name, t->name);
        for (unsigned j = 0; is && j < s->n_sets; j++) {
            is = prt_str_eq(s->set[j].name, t->set[j].name) &&
                 prt_str_eq(s->set[j].value, t->set[j].value);
        }
    }
    return is;
}

TEST(random_texts)
{
    static struct prt_sql other;
    static char z[1200], long_z[PRT_SQL_LOOKED_AT + 1200];
    const char *seed = getenv("POOLRT_SEED");
    unsigned plain = 0, flagged = 0;

    rng = seed ? strtoull(seed, NULL, 10) : (uint64_t)time(NULL);
    printf("  POOLRT_SEED=%llu\n", (unsigned long long)rng);
    rng = rng * 0x9e3779b97f4a7c15u | 1;
    for (int i = 0; i < 200000 && !prt_test_bad; i++) {
        size_t n = random_text(z, sizeof z - 100);
        bool scs = rnd(4) > 0, yes = prt_sql_is_plain((struct prt_str){z, n});
        (void)read_sql(z, n, scs);
        flagged += (out.flags & PRT_SQL_SESSION_FLAGS) != 0;
        plain += yes;
        CHECK(!yes || !(out.flags & PRT_SQL_SESSION_FLAGS));
        /* what lies behind it is nobody's business */
        memcpy(z + n, "'; set_config( */ $a$ \"", 23);
        prt_sql_read((struct prt_str){z, n}, scs, &other);
        CHECK(same(&out, &other));
        CHECK(yes == prt_sql_is_plain((struct prt_str){z, n}));
        /* nor what lies behind a NUL */
        z[n] = 0;
        prt_sql_read((struct prt_str){z, n + 20}, scs, &other);
        CHECK(same(&out, &other));
        if (i % 64 == 0) {
            /* cut anywhere: no flag that the whole has not, but for what an end closes */
            size_t at = PRT_SQL_LOOKED_AT - rnd((uint32_t)n + 1);
            memset(long_z, ' ', at);
            memcpy(long_z + at, z, n);
            prt_sql_read((struct prt_str){long_z, at + n}, scs, &other);
            CHECK(other.is_cut == (at + n > PRT_SQL_LOOKED_AT) || out.is_cut);
            CHECK(!prt_sql_is_plain((struct prt_str){long_z, at + n}) ||
                  !(other.flags & PRT_SQL_SESSION_FLAGS));
        }
        if (prt_test_bad) {
            show(z, n);
        }
    }
    CHECK(plain > 2000 && flagged > 2000);
}
