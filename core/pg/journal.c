/* journal.c - settings that servers do not report: what they are, and the SQL that replays them.
 * Owns: nothing; a journal is an interned set of params.c. Threads: any.
 * Idea: name -> value as last set, not the history: two clients that set the same in another order
 * have the same journal, and "does this server have what this client set" is one comparison of
 * pointers. The first byte of a value says how it was written, since a list behind SET x TO is not
 * a string. */
#include "pg/session_int.h"

#include <string.h>

static char lower(char c)
{
    return (char)(c >= 'A' && c <= 'Z' ? c + 32 : c);
}

static bool is_name(struct prt_str name, const char *z)
{
    size_t n = strlen(z);

    for (size_t i = 0; i < n && i < name.n; i++) {
        if (lower(name.p[i]) != z[i]) {
            return false;
        }
    }
    return name.n == n;
}

/* ---- kinds of names ---- */
static const struct {
    const char *name;
    enum prt_set_kind kind;
} special[] = {
    {"role", PRT_SET_ROLE},
    {"session_authorization", PRT_SET_AUTH},
    /* new for each transaction, from default_transaction_... */
    {"transaction_isolation", PRT_SET_PASSING},
    {"transaction_read_only", PRT_SET_PASSING},
    {"transaction_deferrable", PRT_SET_PASSING},
    {"seed", PRT_SET_OPAQUE}, /* of random(): moves on with each call */
    /* what a text means is settled at its Parse, by these among others */
    {"transform_null_equals", PRT_SET_OPAQUE},
    {"backslash_quote", PRT_SET_OPAQUE},
    {"array_nulls", PRT_SET_OPAQUE},
    {"lc_monetary", PRT_SET_OPAQUE},
    {"sql_inheritance", PRT_SET_OPAQUE},
};

enum prt_set_kind prt_set_kind_of(struct prt_str name)
{
    for (size_t i = 0; i < sizeof special / sizeof *special; i++) {
        if (is_name(name, special[i].name)) {
            return special[i].kind;
        }
    }
    return prt_params_is_tracked(name) ? PRT_SET_TOLD : PRT_SET_JOURNAL;
}

/* Values that were accepted once are accepted by every server that the same user has opened in the
 * same database: numbers, booleans and fixed words, and names that are not looked up when set.
 * Not here, because they are looked up or depend on something else: tablespaces, table access
 * methods, text search configurations, locales, temp_buffers (fixed once used), what needs rights
 * that may have been taken away (log_..., session_replication_role). */
static const char *const sure[] = {
    "backend_flush_after",
    "bytea_output",
    "check_function_bodies",
    "client_connection_check_interval",
    "client_min_messages",
    "commit_siblings",
    "constraint_exclusion",
    "cpu_index_tuple_cost",
    "cpu_operator_cost",
    "cpu_tuple_cost",
    "cursor_tuple_fraction",
    "debug_print_parse",
    "debug_print_plan",
    "default_statistics_target",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "effective_cache_size",
    "escape_string_warning",
    "extra_float_digits",
    "force_parallel_mode",
    "from_collapse_limit",
    "geqo",
    "geqo_threshold",
    "gin_fuzzy_search_limit",
    "gin_pending_list_limit",
    "hash_mem_multiplier",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "join_collapse_limit",
    "lock_timeout",
    "logical_decoding_work_mem",
    "maintenance_work_mem",
    "max_parallel_maintenance_workers",
    "max_parallel_workers",
    "max_parallel_workers_per_gather",
    "min_parallel_index_scan_size",
    "min_parallel_table_scan_size",
    "parallel_leader_participation",
    "parallel_setup_cost",
    "parallel_tuple_cost",
    "plan_cache_mode",
    "quote_all_identifiers",
    "random_page_cost",
    "recursive_worktable_factor",
    "role", /* only none is replayed */
    "row_security",
    "search_path",
    "seq_page_cost",
    "statement_timeout",
    "synchronize_seqscans",
    "synchronous_commit",
    "tcp_keepalives_count",
    "tcp_keepalives_idle",
    "tcp_keepalives_interval",
    "tcp_user_timeout",
    "transaction_timeout",
    "work_mem",
    "xmlbinary",
    "xmloption",
};
/* Extensions that check their parameters once they are loaded, which one server is and another is
 * not: a name or value that the first took fails on the second. Other names with a dot are the
 * client's own. */
static const char *const checked[] = {
    "auto_explain", "citus",   "pg_hint_plan", "pg_prewarm",    "pg_stat_statements",
    "pg_trgm",      "pgaudit", "plperl",       "plpgsql",       "plpython",
    "pltcl",        "postgis", "postgres_fdw", "sepgsql",       "timescaledb",
    "vector",       "hnsw",    "ivfflat",      "basic_archive", "pg_strom",
    "pglogical",    "plv8",    "orafce",       "pg_cron",       "passwordcheck",
    "pgpool",       "age",     "pg_partman",   "pgcrypto",      "pgtle",
};

static bool is_sure_name(struct prt_str name)
{
    const char *dot = memchr(name.p, '.', name.n);
    struct prt_str prefix = {name.p, dot ? (size_t)(dot - name.p) : 0};

    if (dot) {
        for (size_t i = 0; i < sizeof checked / sizeof *checked; i++) {
            if (is_name(prefix, checked[i])) {
                return false;
            }
        }
        return true;
    }
    if ((name.n > 7 && memcmp(name.p, "enable_", 7) == 0) || is_name(name, "jit") ||
        (name.n > 4 && memcmp(name.p, "jit_", 4) == 0 && name.p[name.n - 1] == 't')) {
        return true; /* jit_above_cost and so on, not jit_provider and the debugging ones */
    }
    for (size_t i = 0; i < sizeof sure / sizeof *sure; i++) {
        if (is_name(name, sure[i])) {
            return true;
        }
    }
    return false;
}

/* Bytes that are not ASCII are read in client_encoding, which may not have them any more. */
static bool is_sure_value(struct prt_str name, struct prt_str value)
{
    return is_sure_name(name) && prt_text_is_ascii(name) && prt_text_is_ascii(value);
}

/* Real numbers are shown with six digits, and an extension may show what it likes. */
static bool is_shown_exactly(struct prt_str name, struct prt_str text)
{
    static const char *const real[] = {"_cost", "_fraction", "_factor", "_multiplier",
                                       "_rate", "_bias",     "_seed",   "_delay"};

    if (!prt_text_is_ascii(text) && memchr(text.p, '\\', text.n)) {
        return false; /* it may be half of a character */
    }
    if (memchr(name.p, '.', name.n)) {
        return is_sure_name(name);
    }
    for (size_t i = 0; i < sizeof real / sizeof *real; i++) {
        size_t n = strlen(real[i]);
        struct prt_str tail = {name.p + name.n - n, n};
        if (name.n > n && is_name(tail, real[i])) {
            return false;
        }
    }
    return true;
}

/* ---- literals ---- */
static void add(struct prt_buf *b, struct prt_str s)
{
    (void)prt_buf_add(b, s.p, s.n);
}

/* Every byte of `s` that is `quote`, twice; and backslashes too where they escape. */
static void add_doubled(struct prt_buf *b, struct prt_str s, char quote, bool escapes)
{
    for (size_t i = 0; i < s.n; i++) {
        if (s.p[i] == quote || (escapes && s.p[i] == '\\')) {
            (void)prt_buf_add(b, s.p + i, 1);
        }
        (void)prt_buf_add(b, s.p + i, 1);
    }
}

/* A literal whatever standard_conforming_strings says. */
static void add_literal(struct prt_buf *b, struct prt_str s)
{
    bool escapes = s.n && memchr(s.p, '\\', s.n);

    add(b, escapes ? PRT_STR("E'") : PRT_STR("'"));
    add_doubled(b, s, '\'', escapes);
    add(b, PRT_STR("'"));
}

/* ---- changing one ---- */
bool prt_journal_put(const struct prt_params **j, struct prt_str name, struct prt_str value)
{
    struct prt_str there;

    if (prt_params_count(*j) >= PRT_JOURNAL_NAMES && !prt_params_get(*j, name, &there)) {
        return false;
    }
    *j = prt_params_with(*j, name, value);
    return prt_params_get(*j, name, &there) && prt_str_eq(there, value);
}

bool prt_journal_put_text(const struct prt_params **j, struct prt_str name, struct prt_str text)
{
    char kind = PRT_JOURNAL_LITERAL;
    struct prt_buf b = {0};
    bool ok = text.n <= PRT_JOURNAL_VALUE && is_shown_exactly(name, text);

    if (ok) {
        (void)prt_buf_add(&b, &kind, 1);
        add_literal(&b, text);
        ok = !b.failed && b.n <= PRT_JOURNAL_VALUE &&
             prt_journal_put(j, name, (struct prt_str){(const char *)prt_buf_data(&b), b.n});
    }
    prt_buf_free(&b);
    return ok;
}

bool prt_journal_drop(const struct prt_params **j, struct prt_str name)
{
    struct prt_str there;

    *j = prt_params_without(*j, name);
    return !prt_params_get(*j, name, &there);
}

void prt_journal_reset_all(const struct prt_params **j)
{
    struct prt_str role = PRT_STR("role"), value;
    const struct prt_params *was = *j;

    *j = prt_params_empty();
    if (prt_params_get(was, role, &value)) {
        *j = prt_params_with(*j, role, value);
    }
    prt_params_unref(was);
}

/* ---- the SQL ---- */
/* Quoted unless it is one plain word: no parameter of PostgreSQL's own has the name of a reserved
 * word, but parts of others do (app.user), and quotes may go around the dot. */
static void add_name(struct prt_buf *b, struct prt_str name)
{
    bool is_plain = name.n != 0 && !(name.p[0] >= '0' && name.p[0] <= '9');

    for (size_t i = 0; i < name.n; i++) {
        char c = name.p[i];
        is_plain &= (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
    }
    if (is_plain) {
        add(b, name);
        return;
    }
    add(b, PRT_STR("\""));
    add_doubled(b, name, '"', false);
    add(b, PRT_STR("\""));
}

static void add_set(struct prt_buf *b, struct prt_str name, struct prt_str value)
{
    struct prt_str v = {value.p + 1, value.n - 1};

    prt_assert(value.n > 1);
    if (value.p[0] == PRT_JOURNAL_LITERAL) {
        add(b, PRT_STR("SELECT pg_catalog.set_config("));
        add_literal(b, name);
        add(b, PRT_STR(", "));
        add(b, v);
        add(b, PRT_STR(", false);"));
        return;
    }
    add(b, PRT_STR("SET "));
    add_name(b, name);
    add(b, PRT_STR(" TO "));
    add(b, v);
    add(b, PRT_STR(";"));
}

unsigned prt_journal_diff(const struct prt_params *have, const struct prt_params *want,
                          struct prt_buf *sql, bool *is_sure)
{
    struct prt_str name, value, other;
    unsigned n = 0;

    *is_sure = true;
    if (have == want) {
        return 0;
    }
    for (unsigned i = 0; i < prt_params_count(have); i++) {
        prt_params_at(have, i, &name, &value);
        if (!prt_params_get(want, name, &other)) {
            add(sql, PRT_STR("RESET "));
            add_name(sql, name);
            add(sql, PRT_STR(";"));
            *is_sure &= is_sure_value(name, PRT_STR(""));
            n++;
        }
    }
    for (unsigned i = 0; i < prt_params_count(want); i++) {
        prt_params_at(want, i, &name, &value);
        if (!prt_params_get(have, name, &other) || !prt_str_eq(other, value)) {
            add_set(sql, name, value);
            *is_sure &= is_sure_value(name, value);
            n++;
        }
    }
    return n;
}

void prt_session_clean_sql(unsigned states, struct prt_buf *sql, bool *forgets)
{
    /* DISCARD ALL goes alone: it may not run in the transaction that several statements make. The
     * role comes first, since it decides what the rest may do. */
    static const struct {
        unsigned states;
        const char *sql;
    } by_kind[] = {
        {PRT_STATE_BIT(ROLE), "RESET SESSION AUTHORIZATION;RESET ROLE;"},
        {PRT_STATE_BIT(HOLD), "CLOSE ALL;"},
        {PRT_STATE_BIT(LISTEN), "UNLISTEN *;"},
        {PRT_STATE_BIT(PREPARE), "DEALLOCATE ALL;"},
        {PRT_STATE_BIT(ADVISORY), "SELECT pg_catalog.pg_advisory_unlock_all();"},
        {PRT_STATE_BIT(TEMP), "DISCARD TEMP;"},
        {PRT_STATE_BIT(SETTING), "RESET ALL;"},
    };

    *forgets = states & (PRT_STATE_BIT(PREPARE) | PRT_STATE_BIT(OPAQUE));
    if (states & PRT_STATE_BIT(OPAQUE)) {
        add(sql, PRT_STR("DISCARD ALL"));
        return;
    }
    for (size_t i = 0; i < sizeof by_kind / sizeof *by_kind; i++) {
        if (states & by_kind[i].states) {
            add(sql, prt_str_of(by_kind[i].sql));
        }
    }
}
