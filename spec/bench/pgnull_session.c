/* pgnull_session.c - canned answers with the right framing.
 * Owns: a connection's statements, portals, parameters and transaction status.   Threads: one.
 * Idea: framing, transaction status, reported parameters and the extended protocol's error rule are
 * those of PostgreSQL 15, since a pooler looks at them; the SQL is read by its first word only. A
 * statement with the word "big" returns the large result, which pgnull.c sends. */
#include "pgnull.h"

#include <assert.h>
#include <ctype.h>
#include <strings.h>

#define NAMES_MAX 1000 /* statements and portals of one connection */

/* what PostgreSQL 15 reports at login and again when it changes */
static const struct {
    const char *name, *value;
} reported[] = {
    {"application_name", ""},
    {"client_encoding", "UTF8"},
    {"DateStyle", "ISO, MDY"},
    {"default_transaction_read_only", "off"},
    {"in_hot_standby", "off"},
    {"integer_datetimes", "on"},
    {"IntervalStyle", "postgres"},
    {"is_superuser", "on"},
    {"server_encoding", "UTF8"},
    {"server_version", "15.0 (pgnull)"},
    {"session_authorization", "bench"},
    {"standard_conforming_strings", "on"},
    {"TimeZone", "Etc/UTC"},
};
static_assert(sizeof reported / sizeof reported[0] == PGNULL_PARAMETERS, "one each");

size_t pgnull_big_bytes;
static uint32_t next_pid = 1000;

static const char row_description[] =
    "\0\1abalance\0\0\0\0\0\0\0\0\0\0\x17\0\4\xff\xff\xff\xff\0\0";
static const char data_row[] = "\0\1\0\0\0\1"
                               "1";

/* ---- answers ---- */
static void put_ready(struct conn *c)
{
    wire_msg(&c->out, 'Z', &c->txn, 1);
}

static void put_complete(struct conn *c, const char *tag)
{
    wire_msg(&c->out, 'C', tag, strlen(tag) + 1);
}

static void put_row_description(struct conn *c)
{
    wire_msg(&c->out, 'T', row_description, sizeof row_description - 1);
}

static void put_error(struct conn *c, const char *sqlstate, const char *text)
{
    size_t mark = wire_begin(&c->out, 'E');
    wire_put(&c->out, "S", 1);
    wire_put_str(&c->out, "ERROR");
    wire_put(&c->out, "V", 1);
    wire_put_str(&c->out, "ERROR");
    wire_put(&c->out, "C", 1);
    wire_put_str(&c->out, sqlstate);
    wire_put(&c->out, "M", 1);
    wire_put_str(&c->out, text);
    wire_put(&c->out, "", 1);
    wire_end(&c->out, mark);
    if (c->txn == 'T') {
        c->txn = 'E';
    }
}

static void put_parameter(struct conn *c, int i)
{
    size_t mark = wire_begin(&c->out, 'S');
    wire_put_str(&c->out, reported[i].name);
    wire_put_str(&c->out, c->current[i]);
    wire_end(&c->out, mark);
}

static char *copy_text(const char *s, size_t n)
{
    char *p = wire_alloc(NULL, n + 1);
    memcpy(p, s, n);
    p[n] = '\0';
    return p;
}

/* ---- parameters ---- */
static void set_parameter(struct conn *c, const char *name, const char *value)
{
    for (int i = 0; i < PGNULL_PARAMETERS; i++) {
        if (strcasecmp(name, reported[i].name) == 0) {
            if (strcmp(c->current[i], value) != 0) {
                free(c->current[i]);
                c->current[i] = copy_text(value, strlen(value));
                put_parameter(c, i);
            }
            return;
        }
    }
}

static void reset_parameters(struct conn *c)
{
    for (int i = 0; i < PGNULL_PARAMETERS; i++) {
        set_parameter(c, reported[i].name, c->initial[i]);
    }
}

static const char *skip_spaces(const char *p)
{
    while (isspace((unsigned char)*p)) {
        p++;
    }
    return p;
}

/* One word or quoted string at `p` into `out`, cut to its size; returns what follows. */
static const char *take_word(const char *p, char *out, size_t size, bool to_end)
{
    size_t n = 0;
    p = skip_spaces(p);
    char quote = *p == '\'' || *p == '"' ? *p++ : '\0';
    for (; *p != '\0'; p++) {
        if (quote != '\0' && *p == quote) {
            if (p[1] != quote) {
                p++;
                break;
            }
            p++;
        } else if (quote == '\0' && !to_end && !isalnum((unsigned char)*p) && *p != '_' &&
                   *p != '.') {
            break;
        }
        if (n + 1 < size) {
            out[n++] = *p;
        }
    }
    while (quote == '\0' && n > 0 && isspace((unsigned char)out[n - 1])) {
        n--;
    }
    out[n] = '\0';
    return p;
}

/* SET [SESSION | LOCAL] name { = | TO } value */
static void run_set(struct conn *c, const char *p)
{
    char name[64], value[256];
    p = take_word(p, name, sizeof name, false);
    if (strcasecmp(name, "session") == 0 || strcasecmp(name, "local") == 0) {
        p = take_word(p, name, sizeof name, false);
    }
    p = skip_spaces(p);
    if (*p == '=') {
        p++;
    } else {
        p = take_word(p, value, sizeof value, false);
    }
    take_word(p, value, sizeof value, true);
    set_parameter(c, name, value);
}

/* each set_config('name', 'value', ...) in a SELECT */
static void run_set_config(struct conn *c, const char *p)
{
    static const char call[] = "set_config(";
    while ((p = strcasestr(p, call)) != NULL) {
        char name[64], value[256];
        p = skip_spaces(take_word(p + sizeof call - 1, name, sizeof name, false));
        if (*p == ',') {
            p = take_word(p + 1, value, sizeof value, false);
            set_parameter(c, name, value);
        }
    }
}

/* ---- names ---- */
static struct named **find_name(struct conn *c, char kind, const char *name)
{
    struct named **at = &c->names;
    while (*at != NULL && ((*at)->kind != kind || strcmp((*at)->name, name) != 0)) {
        at = &(*at)->next;
    }
    return at;
}

static void free_name(struct conn *c, struct named **at)
{
    struct named *n = *at;
    if (n != NULL) {
        *at = n->next;
        free(n->name);
        free(n->sql);
        free(n);
        c->n_names--;
    }
}

/* kind 0: all */
static void free_names(struct conn *c, char kind)
{
    for (struct named **at = &c->names; *at != NULL;) {
        if (kind == 0 || (*at)->kind == kind) {
            free_name(c, at);
        } else {
            at = &(*at)->next;
        }
    }
}

static bool add_name(struct conn *c, char kind, const char *name, const char *sql)
{
    struct named **at = find_name(c, kind, name);
    if (*at != NULL && name[0] != '\0') {
        put_error(c, kind == 'S' ? "42P05" : "42P03", "the name is in use");
        return false;
    }
    char *text = copy_text(sql, strlen(sql)); /* `sql` may lie in what is freed next */
    free_name(c, at);
    if (c->n_names >= NAMES_MAX) {
        free(text);
        put_error(c, "53400", "too many statements and portals");
        return false;
    }
    struct named *n = wire_alloc(NULL, sizeof *n);
    *n = (struct named){c->names, kind, copy_text(name, strlen(name)), text};
    c->names = n;
    c->n_names++;
    return true;
}

/* ---- SQL, as far as it is read ---- */
enum verb {
    V_ROWS,
    V_BEGIN,
    V_COMMIT,
    V_ROLLBACK,
    V_SET,
    V_RESET,
    V_DISCARD,
    V_DEALLOCATE,
    V_OTHER
};

static const struct {
    const char *word;
    enum verb verb;
    const char *tag;
} verbs[] = {
    {"SELECT", V_ROWS, "SELECT 1"},    {"BEGIN", V_BEGIN, "BEGIN"},
    {"START", V_BEGIN, "BEGIN"},       {"COMMIT", V_COMMIT, "COMMIT"},
    {"END", V_COMMIT, "COMMIT"},       {"ROLLBACK", V_ROLLBACK, "ROLLBACK"},
    {"ABORT", V_ROLLBACK, "ROLLBACK"}, {"SET", V_SET, "SET"},
    {"RESET", V_RESET, "RESET"},       {"DISCARD", V_DISCARD, "DISCARD ALL"},
    {"SHOW", V_ROWS, "SHOW"},          {"WITH", V_ROWS, "SELECT 1"},
    {"VALUES", V_ROWS, "SELECT 1"},    {"TABLE", V_ROWS, "SELECT 1"},
    {"EXECUTE", V_ROWS, "SELECT 1"},   {"FETCH", V_ROWS, "FETCH 1"},
    {"INSERT", V_OTHER, "INSERT 0 1"}, {"UPDATE", V_OTHER, "UPDATE 1"},
    {"DELETE", V_OTHER, "DELETE 1"},   {"DEALLOCATE", V_DEALLOCATE, "DEALLOCATE"},
};

/* The row of `verbs` for the statement; -1: another word. `*after`: what follows it. */
static int find_verb(const char *sql, const char **after)
{
    char word[16];
    *after = take_word(sql, word, sizeof word, false);
    for (size_t i = 0; i < sizeof verbs / sizeof verbs[0]; i++) {
        if (strcasecmp(word, verbs[i].word) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static bool has_rows(const char *sql)
{
    const char *after;
    int v = find_verb(sql, &after);
    return v >= 0 && verbs[v].verb == V_ROWS;
}

static bool is_big(const char *sql)
{
    return has_rows(sql) && strcasestr(sql, "big") != NULL;
}

static bool is_empty(const char *sql)
{
    sql = skip_spaces(sql);
    return *sql == '\0' || *sql == ';';
}

static void run_deallocate(struct conn *c, const char *p)
{
    char name[64];
    p = take_word(p, name, sizeof name, false);
    if (strcasecmp(name, "prepare") == 0) {
        take_word(p, name, sizeof name, false);
    }
    if (strcasecmp(name, "all") == 0) {
        free_names(c, 'S');
    } else {
        free_name(c, find_name(c, 'S', name));
    }
}

/* The statement's effects and its answer up to CommandComplete, without a row description. A large
 * result is only begun: pump() sends it. */
static void run_statement(struct conn *c, const char *sql)
{
    const char *after;
    int v = find_verb(sql, &after);
    enum verb verb = v < 0 ? V_OTHER : verbs[v].verb;
    if (c->txn == 'E' && verb != V_COMMIT && verb != V_ROLLBACK) {
        put_error(c, "25P02", "current transaction is aborted");
        return;
    }
    if (is_big(sql)) {
        c->big_left = pgnull_big_bytes;
        return;
    }
    const char *tag = v < 0 ? "OK" : verbs[v].tag;
    switch (verb) {
    case V_ROWS:
        run_set_config(c, after);
        wire_msg(&c->out, 'D', data_row, sizeof data_row - 1);
        break;
    case V_BEGIN:
        c->txn = 'T';
        break;
    case V_COMMIT:
        tag = c->txn == 'E' ? "ROLLBACK" : tag;
        c->txn = 'I';
        break;
    case V_ROLLBACK:
        c->txn = 'I';
        break;
    case V_SET:
        run_set(c, after);
        break;
    case V_DISCARD:
        free_names(c, 0);
        reset_parameters(c);
        break;
    case V_RESET:
        reset_parameters(c);
        break;
    case V_DEALLOCATE:
        run_deallocate(c, after);
        break;
    case V_OTHER:
        break;
    }
    put_complete(c, tag);
}

/* the end of the first statement: its semicolon outside of quotes, else the final NUL */
static const char *statement_end(const char *p)
{
    char quote = '\0';
    for (; *p != '\0'; p++) {
        if (quote != '\0') {
            quote = *p == quote ? '\0' : quote;
        } else if (*p == '\'' || *p == '"') {
            quote = *p;
        } else if (*p == ';') {
            break;
        }
    }
    return p;
}

/* The statements of a Query, each with its answer, then ReadyForQuery. A large one leaves the rest
 * in c->rest, to go on from when it is sent. */
static void run_script(struct conn *c, const char *sql)
{
    while (!is_empty(sql)) {
        const char *end = statement_end(sql);
        char *one = copy_text(sql, (size_t)(end - sql));
        size_t before = c->out.len;
        if (has_rows(one) && c->txn != 'E') {
            put_row_description(c);
        }
        run_statement(c, one);
        free(one);
        sql = *end == ';' ? end + 1 : end;
        if (c->big_left > 0) {
            c->rest = copy_text(sql, strlen(sql));
            return;
        }
        if (c->out.data[before] == 'E') {
            break;
        }
    }
    put_ready(c);
}

static void run_query(struct conn *c, const char *sql)
{
    free_name(c, find_name(c, 'S', ""));
    free_name(c, find_name(c, 'P', ""));
    c->skipping = false;
    if (is_empty(sql)) {
        wire_msg(&c->out, 'I', "", 0);
    }
    run_script(c, sql);
}

/* ---- extended protocol ---- */
/* A message's body, taken apart from the front; a field that is not whole clears `ok`. */
struct body {
    const char *at;
    size_t left;
    bool ok;
};

static const char *body_str(struct body *b)
{
    const char *s = b->at, *end = b->left > 0 ? memchr(s, '\0', b->left) : NULL;
    if (end == NULL) {
        b->ok = false;
        return "";
    }
    size_t n = (size_t)(end - s) + 1;
    b->at += n;
    b->left -= n;
    return s;
}

/* number of parameters: the highest $n */
static unsigned count_parameters(const char *sql)
{
    unsigned max = 0;
    for (const char *p = strchr(sql, '$'); p != NULL; p = strchr(p + 1, '$')) {
        unsigned long n = strtoul(p + 1, NULL, 10);
        if (n > max && n <= 65535) {
            max = (unsigned)n;
        }
    }
    return max;
}

static bool do_parse(struct conn *c, struct body *b)
{
    const char *name = body_str(b), *sql = body_str(b);
    if (!b->ok || !add_name(c, 'S', name, sql)) {
        return false;
    }
    wire_msg(&c->out, '1', "", 0);
    return true;
}

static bool do_bind(struct conn *c, struct body *b)
{
    const char *portal = body_str(b), *statement = body_str(b);
    struct named *s = *find_name(c, 'S', statement);
    if (!b->ok) {
        return false;
    }
    if (s == NULL) {
        put_error(c, "26000", "prepared statement does not exist");
        return false;
    }
    if (!add_name(c, 'P', portal, s->sql)) {
        return false;
    }
    wire_msg(&c->out, '2', "", 0);
    return true;
}

static void put_parameter_description(struct conn *c, const char *sql)
{
    unsigned n = count_parameters(sql);
    size_t mark = wire_begin(&c->out, 't');
    char count[2] = {(char)(n >> 8), (char)n};
    wire_put(&c->out, count, sizeof count);
    for (unsigned i = 0; i < n; i++) {
        wire_put32(&c->out, 23); /* int4 */
    }
    wire_end(&c->out, mark);
}

static bool do_describe(struct conn *c, char kind, const char *sql)
{
    if (kind == 'S') {
        put_parameter_description(c, sql);
    }
    if (has_rows(sql)) {
        put_row_description(c);
    } else {
        wire_msg(&c->out, 'n', "", 0);
    }
    return true;
}

static bool do_execute(struct conn *c, const char *sql)
{
    size_t before = c->out.len;
    char *own = copy_text(sql, strlen(sql)); /* DISCARD ALL frees the portal that it runs from */
    if (is_empty(own)) {
        wire_msg(&c->out, 'I', "", 0);
    } else {
        run_statement(c, own);
    }
    free(own);
    return c->big_left > 0 || c->out.data[before] != 'E';
}

/* Describe, Execute and Close look a name up; only Close of a missing one is no error. */
static bool do_named(struct conn *c, char type, struct body *b)
{
    char kind = 'P';
    if (type != 'E' && b->left > 0) {
        kind = *b->at++;
        b->left--;
    }
    struct named **at = find_name(c, kind, body_str(b));
    if (!b->ok) {
        return false;
    }
    if (type == 'C') {
        free_name(c, at);
        wire_msg(&c->out, '3', "", 0);
        return true;
    }
    if (*at == NULL) {
        put_error(c, kind == 'S' ? "26000" : "34000", "no such statement or portal");
        return false;
    }
    return type == 'E' ? do_execute(c, (*at)->sql) : do_describe(c, kind, (*at)->sql);
}

static void do_sync(struct conn *c)
{
    c->skipping = false;
    if (c->txn == 'I') {
        free_names(c, 'P');
    }
    put_ready(c);
}

/* ---- messages ---- */
bool pgnull_message(struct conn *c, char type, const char *body, size_t n)
{
    struct body b = {body, n, true};
    switch (type) {
    case 'Q':
        if (n == 0 || body[n - 1] != '\0') {
            return false;
        }
        run_query(c, body);
        return true;
    case 'S':
        do_sync(c);
        return true;
    case 'H': /* Flush: answers are never held back */
    case 'd': /* COPY data after an error are to be ignored */
    case 'c':
    case 'f':
        return true;
    case 'P':
    case 'B':
    case 'D':
    case 'E':
    case 'C':
        if (c->skipping) {
            return true;
        }
        c->skipping = !(type == 'P'   ? do_parse(c, &b)
                        : type == 'B' ? do_bind(c, &b)
                                      : do_named(c, type, &b));
        return b.ok;
    default: /* Terminate, or nothing that a client may send */
        return false;
    }
}

/* A startup packet of protocol 3 without its length and version; false: it is not whole. */
static bool start_session(struct conn *c, const char *body, size_t n, unsigned minor)
{
    struct body b = {body, n, true};
    for (int i = 0; i < PGNULL_PARAMETERS; i++) {
        c->initial[i] = copy_text(reported[i].value, strlen(reported[i].value));
    }
    while (b.left > 0 && *b.at != '\0') {
        const char *name = body_str(&b), *value = body_str(&b);
        if (!b.ok) {
            return false;
        }
        for (int i = 0; i < PGNULL_PARAMETERS; i++) {
            if (strcasecmp(name, reported[i].name) == 0) {
                free(c->initial[i]);
                c->initial[i] = copy_text(value, strlen(value));
            }
        }
    }
    if (minor > 0) { /* NegotiateProtocolVersion: 3.0, no unknown options */
        wire_msg(&c->out, 'v', "\0\3\0\0\0\0\0\0", 8);
    }
    wire_msg(&c->out, 'R', "\0\0\0\0", 4);
    for (int i = 0; i < PGNULL_PARAMETERS; i++) {
        c->current[i] = copy_text(c->initial[i], strlen(c->initial[i]));
        put_parameter(c, i);
    }
    size_t mark = wire_begin(&c->out, 'K');
    wire_put32(&c->out, next_pid++);
    wire_put32(&c->out, 42);
    wire_end(&c->out, mark);
    c->txn = 'I';
    c->started = true;
    put_ready(c);
    return true;
}

bool pgnull_startup(struct conn *c, const char *body, size_t n)
{
    uint32_t version = wire_get32(body);
    if (version == WIRE_SSL || version == WIRE_GSSENC) {
        wire_put(&c->out, "N", 1);
        return true;
    }
    if (version >> 16 != WIRE_PROTOCOL_3) { /* a cancel request, or nothing known */
        return false;
    }
    return start_session(c, body + 4, n - 4, version & 0xffff);
}

void pgnull_big_sent(struct conn *c)
{
    char tag[32];
    snprintf(tag, sizeof tag, "SELECT %zu", pgnull_big_bytes / PGNULL_ROW_BYTES);
    put_complete(c, tag);
    char *rest = c->rest;
    c->rest = NULL;
    if (rest != NULL) {
        run_script(c, rest);
        free(rest);
    }
}

void pgnull_session_fini(struct conn *c)
{
    free_names(c, 0);
    for (int i = 0; i < PGNULL_PARAMETERS; i++) {
        free(c->initial[i]);
        free(c->current[i]);
    }
    free(c->rest);
}
