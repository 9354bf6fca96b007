/* lex_set.c - names and assignments: SET in all its forms, RESET, set_config().
 * Owns: nothing.   Threads: any.
 * Idea: a value is told as it was written, so that it can be put behind another SET; that is only
 * done where it means the same there. What is not understood becomes has_unknown_set: the server
 * may understand it. */
#include "pg/lex_parse.h"

/* ---- names ---- */
/* n bytes of out->room, or NULL: then the text counts as cut */
static char *room(struct prt_parse *q, size_t n)
{
    struct prt_sql_reader *r = q->r;

    if (n > sizeof r->out->room - r->room_used) {
        r->out->is_cut = true;
        return NULL;
    }
    r->room_used += n;
    return r->out->room + r->room_used - n;
}

/* How many bytes of its token a name has in the end. Where PostgreSQL cuts in the middle of text
 * that is not ASCII depends on the encoding: that is not known here. */
static size_t name_size(struct prt_parse *q, struct prt_str s)
{
    if (s.n <= PRT_NAME_MAX) {
        return s.n;
    }
    for (size_t i = 0; i <= PRT_NAME_MAX; i++) {
        if ((unsigned char)s.p[i] >= 0x80) {
            q->r->out->is_cut = true;
            return 0;
        }
    }
    return PRT_NAME_MAX;
}

struct prt_str prt_parse_name(struct prt_parse *q, const struct prt_tok *t, bool folds)
{
    bool is_quoted = t->kind == PRT_TOK_IDENT, has_upper = false;
    struct prt_str s = is_quoted ? t->inner : t->raw;
    char *w;
    size_t n = 0;

    for (size_t i = 0; folds && !is_quoted && i < s.n; i++) {
        has_upper |= prt_ch_fold(s.p[i]) != s.p[i];
    }
    /* a quoted one that is not simple has "" or a backslash in it */
    if (!has_upper && (!is_quoted || t->is_simple)) {
        return (struct prt_str){s.p, name_size(q, s)};
    }
    w = room(q, s.n);
    if (!w) {
        return (struct prt_str){NULL, 0};
    }
    for (size_t i = 0; i < s.n; i++) {
        w[n++] = has_upper ? prt_ch_fold(s.p[i]) : s.p[i];
        i += is_quoted && s.p[i] == '"';
    }
    return (struct prt_str){w, name_size(q, (struct prt_str){w, n})};
}

/* Append one part of a dotted name to what is at the end of the room. */
static bool add_part(struct prt_parse *q, struct prt_str *name, struct prt_str part, bool has_dot)
{
    char *w = room(q, part.n + has_dot);

    if (!w) {
        return false;
    }
    if (has_dot) {
        *w++ = '.';
    }
    memcpy(w, part.p, part.n);
    name->n += part.n + has_dot;
    return true;
}

struct prt_str prt_parse_parameter(struct prt_parse *q, bool folds)
{
    struct prt_str parts[4], name = {NULL, 0};
    unsigned n = 0;

    do {
        if (!is_name(&q->t) || n == 4) {
            return (struct prt_str){NULL, 0};
        }
        parts[n++] = prt_parse_name(q, &q->t, folds);
        next(q);
    } while (accept_op(q, '.'));
    if (n == 1) {
        return parts[0];
    }
    name.p = q->r->out->room + q->r->room_used;
    for (unsigned i = 0; i < n; i++) {
        if (!parts[i].n || !add_part(q, &name, parts[i], i > 0)) {
            return (struct prt_str){NULL, 0};
        }
    }
    return name;
}

/* ---- assignments ---- */
bool prt_sql_names_pg_temp(struct prt_str s)
{
    for (size_t i = 0; i + 7 <= s.n; i++) {
        if (prt_sql_spells(s.p + i, "pg_temp", 7)) {
            return true;
        }
    }
    return false;
}

/* In a search_path of strings: a later CREATE would make temporary objects and not say so. */
static void look_for_pg_temp(struct prt_parse *q)
{
    q->st->flags |= prt_sql_names_pg_temp(q->f->text) ? PRT_SQL(TEMP) : 0;
}

static bool same_name(struct prt_str a, struct prt_str b)
{
    for (size_t i = 0; i < a.n && a.n == b.n; i++) {
        if (prt_ch_fold(a.p[i]) != prt_ch_fold(b.p[i])) {
            return false;
        }
    }
    return a.n == b.n;
}

static void keep_set(struct prt_sql_stmt *st, struct prt_sql_set set)
{
    unsigned i = 0;

    while (i < st->n_sets && !same_name(st->set[i].name, set.name)) {
        i++;
    }
    if (i == PRT_SQL_SETS) {
        st->has_unknown_set = true;
        return;
    }
    st->set[i] = set; /* of two for one name the last counts */
    st->n_sets += i == st->n_sets;
}

static bool is_role(struct prt_str name)
{
    return spells(name, "role") || spells(name, "session_authorization");
}

/* Of two in one statement only the last is known, and that is not enough. */
static void assign_role(struct prt_parse *q, uint64_t which, enum prt_sql_role to)
{
    struct prt_sql_stmt *st = q->st;
    bool is_mixed = st->flags & (PRT_SQL(ROLE) | PRT_SQL(AUTH)) & ~which;

    st->flags = (st->flags & ~PRT_SQL(SET)) | which;
    st->role_to = (uint8_t)(is_mixed ? PRT_SQL_ROLE_NAMED : to);
}

/* NONE is no word of the grammar: quoted it means the same, but then its case counts. */
static bool is_none(struct prt_str v)
{
    bool is_quoted = v.n == 6 && (*v.p == '\'' || *v.p == '"') && v.p[5] == *v.p;

    return is_quoted ? memcmp(v.p + 1, "none", 4) == 0 : spells(v, "none");
}

static enum prt_sql_role role_of(struct prt_str value)
{
    return is_none(value) ? PRT_SQL_ROLE_NONE : PRT_SQL_ROLE_NAMED;
}

/* A parameter gets a value. Those that are more than a parameter become what they are. */
static void assign(struct prt_parse *q, struct prt_sql_set set)
{
    struct prt_sql_stmt *st = q->st;

    if (spells(set.name, "role")) {
        assign_role(q, PRT_SQL(ROLE), role_of(set.value));
    } else if (spells(set.name, "session_authorization")) {
        assign_role(q, PRT_SQL(AUTH), PRT_SQL_ROLE_NAMED);
    } else if (spells(set.name, "transaction_isolation") ||
               spells(set.name, "transaction_read_only") ||
               spells(set.name, "transaction_deferrable")) {
        st->flags |= PRT_SQL(LOCAL); /* ends with the transaction, whatever it says */
    } else if (q->is_local) {
        return;
    } else if (!set.name.n || spells(set.name, "seed")) {
        st->has_unknown_set = true; /* the sequence of random() would start again at each replay */
    } else {
        keep_set(st, set);
    }
}

static void assign_unknown(struct prt_parse *q)
{
    q->st->has_unknown_set |= !q->is_local;
}

/* The rest of the statement as a list of values, as written; empty: it is not one. A string with a
 * backslash is not replayed: what it means would depend on standard_conforming_strings then. */
static struct prt_str values(struct prt_parse *q)
{
    const char *begin = q->t.raw.p, *end;

    for (;;) {
        if (is_op(&q->t, '+') || is_op(&q->t, '-')) {
            next(q);
            if (q->t.kind != PRT_TOK_NUMBER) {
                break;
            }
        }
        if (q->t.kind != PRT_TOK_NUMBER && (!is_name(&q->t) || at(q, PRT_W_DEFAULT)) &&
            (q->t.kind != PRT_TOK_STRING || q->t.hangs_on_mode || q->t.is_bits)) {
            break;
        }
        end = q->t.raw.p + q->t.raw.n;
        next(q);
        if (at_end(q)) {
            return (struct prt_str){begin, (size_t)(end - begin)};
        }
        if (!accept_op(q, ',')) {
            break;
        }
    }
    return (struct prt_str){NULL, 0};
}

/* The rest is the new value of `name`, or DEFAULT. */
static void assign_rest(struct prt_parse *q, struct prt_str name)
{
    struct prt_sql_set set = {.name = name};

    if (at(q, PRT_W_DEFAULT) && peek(q).kind == PRT_TOK_END) {
        assign(q, set);
        if (is_role(name)) {
            q->st->role_to = PRT_SQL_ROLE_DEFAULT;
        }
        return;
    }
    set.value = values(q);
    if (!set.value.n) {
        set.name.n = is_role(name) ? name.n : 0;
    }
    assign(q, set);
}

static bool is_assignment(const struct prt_tok *t)
{
    return is_op(t, '=') || is_op(t, '.') || is_word(t, PRT_W_TO);
}

/* ---- SET ---- */
struct mode { /* SET SESSION CHARACTERISTICS AS TRANSACTION ... */
    enum prt_word words[4];
    struct prt_str name, value;
};
#define ISOLATION PRT_W_ISOLATION, PRT_W_LEVEL
static const struct mode modes[] = {
    {{ISOLATION, PRT_W_SERIALIZABLE},
     PRT_STR("default_transaction_isolation"),
     PRT_STR("'serializable'")},
    {{ISOLATION, PRT_W_REPEATABLE, PRT_W_READ},
     PRT_STR("default_transaction_isolation"),
     PRT_STR("'repeatable read'")},
    {{ISOLATION, PRT_W_READ, PRT_W_COMMITTED},
     PRT_STR("default_transaction_isolation"),
     PRT_STR("'read committed'")},
    {{ISOLATION, PRT_W_READ, PRT_W_UNCOMMITTED},
     PRT_STR("default_transaction_isolation"),
     PRT_STR("'read uncommitted'")},
    {{PRT_W_READ, PRT_W_ONLY}, PRT_STR("default_transaction_read_only"), PRT_STR("on")},
    {{PRT_W_READ, PRT_W_WRITE}, PRT_STR("default_transaction_read_only"), PRT_STR("off")},
    {{PRT_W_DEFERRABLE}, PRT_STR("default_transaction_deferrable"), PRT_STR("on")},
    {{PRT_W_NOT, PRT_W_DEFERRABLE}, PRT_STR("default_transaction_deferrable"), PRT_STR("off")},
};

static bool accept_mode(struct prt_parse *q, const struct mode *m)
{
    struct prt_parse before = *q;

    for (unsigned i = 0; i < 4 && m->words[i]; i++) {
        if (!accept(q, m->words[i])) {
            *q = before;
            return false;
        }
    }
    return true;
}

static void set_characteristics(struct prt_parse *q)
{
    unsigned i, count = sizeof modes / sizeof *modes;

    next(q);
    if (!accept(q, PRT_W_AS) || !accept(q, PRT_W_TRANSACTION) || at_end(q)) {
        assign_unknown(q);
        return;
    }
    do {
        for (i = 0; i < count && !accept_mode(q, &modes[i]); i++) {
        }
        if (i == count) {
            assign_unknown(q);
            return;
        }
        assign(q, (struct prt_sql_set){.name = modes[i].name, .value = modes[i].value});
        (void)accept_op(q, ',');
    } while (!at_end(q));
}

static void set_time_zone(struct prt_parse *q)
{
    next(q);
    if (!accept(q, PRT_W_ZONE) || at(q, PRT_W_INTERVAL)) {
        assign_unknown(q); /* an interval has no form behind SET timezone TO */
    } else if (at(q, PRT_W_LOCAL)) {
        assign(q, (struct prt_sql_set){.name = PRT_STR("timezone")});
    } else {
        assign_rest(q, PRT_STR("timezone"));
    }
}

static void set_names(struct prt_parse *q)
{
    next(q);
    if (at_end(q)) {
        assign(q, (struct prt_sql_set){.name = PRT_STR("client_encoding")});
    } else {
        assign_rest(q, PRT_STR("client_encoding"));
    }
}

static void set_xml(struct prt_parse *q)
{
    next(q);
    if (accept(q, PRT_W_OPTION)) {
        assign_rest(q, PRT_STR("xmloption"));
    } else {
        assign_unknown(q);
    }
}

static void set_parameter(struct prt_parse *q)
{
    struct prt_str name = prt_parse_parameter(q, false);

    if (accept_op(q, '=') || accept(q, PRT_W_TO)) {
        assign_rest(q, name);
    } else if (is_role(name)) {
        assign(q, (struct prt_sql_set){.name = name}); /* FROM CURRENT */
    } else {
        assign_unknown(q);
    }
}

static void set_session(struct prt_parse *q)
{
    next(q);
    if (accept(q, PRT_W_AUTHORIZATION)) {
        bool is_default = at(q, PRT_W_DEFAULT) && peek(q).kind == PRT_TOK_END;
        assign_role(q, PRT_SQL(AUTH), is_default ? PRT_SQL_ROLE_DEFAULT : PRT_SQL_ROLE_NAMED);
    } else if (at(q, PRT_W_CHARACTERISTICS)) {
        set_characteristics(q);
    } else {
        assign_unknown(q);
    }
}

/* What stands behind SET, SET SESSION or SET LOCAL. All these words are parameters, too. */
static void set_rest(struct prt_parse *q)
{
    struct prt_tok behind = peek(q);

    if (q->t.kind != PRT_TOK_WORD || is_assignment(&behind)) {
        set_parameter(q);
        return;
    }
    switch (q->t.word) {
    case PRT_W_CONSTRAINTS:
    case PRT_W_TRANSACTION:
        q->st->cls = PRT_SQL_TXN;
        q->st->flags = (q->st->flags & ~PRT_SQL(SET)) | PRT_SQL(LOCAL);
        break;
    case PRT_W_ROLE:
        next(q);
        assign_role(q, PRT_SQL(ROLE), role_of(q->t.raw));
        break;
    case PRT_W_SESSION:
        set_session(q);
        break;
    case PRT_W_TIME:
        set_time_zone(q);
        break;
    case PRT_W_NAMES:
        set_names(q);
        break;
    case PRT_W_SCHEMA:
        next(q);
        assign_rest(q, PRT_STR("search_path"));
        break;
    case PRT_W_XML:
        set_xml(q);
        break;
    default:
        set_parameter(q);
    }
}

void prt_parse_set(struct prt_parse *q)
{
    struct prt_tok behind = peek(q);

    if (at(q, PRT_W_LOCAL) && !is_assignment(&behind)) {
        q->is_local = true;
        q->st->flags |= PRT_SQL(LOCAL);
        next(q);
    } else if (at(q, PRT_W_SESSION) && !is_assignment(&behind) &&
               !is_word(&behind, PRT_W_CHARACTERISTICS) && !is_word(&behind, PRT_W_AUTHORIZATION)) {
        next(q);
    }
    look_for_pg_temp(q);
    set_rest(q);
}

void prt_parse_reset(struct prt_parse *q)
{
    struct prt_sql_stmt *st = q->st;
    struct prt_tok behind = peek(q);
    bool has_more = behind.kind > PRT_TOK_BAD;

    if (at(q, PRT_W_ALL)) {
        st->flags |= PRT_SQL(RESET_ALL);
        return;
    }
    if (at(q, PRT_W_SESSION) && is_word(&behind, PRT_W_AUTHORIZATION)) {
        st->flags |= PRT_SQL(AUTH);
        st->role_to = PRT_SQL_ROLE_DEFAULT;
        st->name = PRT_STR("session_authorization");
        return;
    }
    if (at(q, PRT_W_TIME) && is_word(&behind, PRT_W_ZONE)) {
        st->name = PRT_STR("timezone");
    } else if (at(q, PRT_W_TRANSACTION) && has_more) {
        st->name = PRT_STR("transaction_isolation");
    } else {
        st->name = prt_parse_parameter(q, true);
    }
    st->flags |= spells(st->name, "role")                    ? PRT_SQL(ROLE)
                 : spells(st->name, "session_authorization") ? PRT_SQL(AUTH)
                                                             : PRT_SQL(RESET);
    st->role_to = is_role(st->name) ? PRT_SQL_ROLE_DEFAULT : PRT_SQL_ROLE_NAMED;
}

/* ---- set_config() ---- */
enum locality { IS_SESSION, IS_LOCAL, IS_EITHER };

struct config_call {
    struct prt_tok arg[3]; /* the first token of each */
    unsigned n_args, n_tokens[3];
    bool is_nested; /* another one is among the arguments */
};

/* The token looked at is its opening parenthesis; afterwards what stands behind the closing one. */
static bool read_call(struct prt_parse *q, struct config_call *c)
{
    int depth = 0;

    *c = (struct config_call){.n_args = 0};
    for (next(q); !at_end(q); next(q)) {
        if (is_op(&q->t, ')') && depth-- == 0) {
            c->n_args++;
            next(q);
            return true;
        }
        depth += is_op(&q->t, '(');
        c->is_nested |= is_name(&q->t) && q->t.word == PRT_W_SET_CONFIG;
        if (is_op(&q->t, ',') && depth == 0) {
            c->n_args++;
        } else if (c->n_args < 3 && c->n_tokens[c->n_args]++ == 0) {
            c->arg[c->n_args] = q->t;
        }
    }
    return false;
}

static enum locality locality(const struct config_call *c)
{
    const struct prt_tok *t = &c->arg[2];
    struct prt_str s = t->kind == PRT_TOK_STRING ? t->inner : t->raw;

    if (c->n_args != 3 || c->n_tokens[2] != 1 || c->is_nested ||
        (t->kind == PRT_TOK_STRING ? !t->is_simple : t->kind != PRT_TOK_WORD)) {
        return IS_EITHER;
    }
    if (spells(s, "true") || (t->kind == PRT_TOK_STRING && spells(s, "t"))) {
        return IS_LOCAL;
    }
    return spells(s, "false") || (t->kind == PRT_TOK_STRING && spells(s, "f")) ? IS_SESSION
                                                                               : IS_EITHER;
}

static bool is_literal(const struct config_call *c, unsigned i)
{
    const struct prt_tok *t = &c->arg[i];

    return c->n_tokens[i] == 1 && t->kind == PRT_TOK_STRING && !t->is_bits && !t->hangs_on_mode;
}

/* [pg_catalog.]set_config(...) [[AS] name] */
static bool read_item(struct prt_parse *q, struct config_call *c)
{
    if (is_name(&q->t) &&
        spells(q->t.kind == PRT_TOK_IDENT ? q->t.inner : q->t.raw, "pg_catalog")) {
        next(q);
        if (!accept_op(q, '.')) {
            return false;
        }
    }
    if (!is_name(&q->t) || q->t.word != PRT_W_SET_CONFIG) {
        return false;
    }
    next(q);
    if (!is_op(&q->t, '(') || !read_call(q, c)) {
        return false;
    }
    if (accept(q, PRT_W_AS) || is_name(&q->t)) {
        next(q); /* a word that begins a clause is not the last one: that is seen below */
    }
    return is_op(&q->t, ',') || at_end(q);
}

/* Item number `column` of the list; its value is a literal, NULL, which means DEFAULT, or what its
 * row will say. */
static bool assign_item(struct prt_parse *q, const struct config_call *c, uint8_t column)
{
    struct prt_sql_set set = {.name = c->arg[0].inner, .is_config = true};

    if (!is_literal(c, 0) || !c->arg[0].is_simple || c->n_tokens[1] == 0) {
        return false;
    }
    if (is_literal(c, 1)) {
        set.value = c->arg[1].raw;
    } else if (c->n_tokens[1] > 1 || c->arg[1].kind != PRT_TOK_WORD ||
               !spells(c->arg[1].raw, "null")) {
        set.column = column;
    }
    assign(q, set);
    return true;
}

/* SELECT set_config(...), ... and nothing else: then it is sure what it does. */
static bool read_configs(struct prt_parse *q)
{
    struct config_call c;

    if (!accept(q, PRT_W_SELECT)) {
        return false;
    }
    for (uint8_t column = 1; column < UINT8_MAX; column++) {
        if (!read_item(q, &c)) {
            return false;
        }
        enum locality loc = locality(&c);
        if (loc == IS_EITHER || (loc == IS_SESSION && !assign_item(q, &c, column))) {
            return false;
        }
        if (at_end(q)) {
            return true;
        }
        next(q);
    }
    return false;
}

static bool all_local(struct prt_parse *q)
{
    struct config_call c;
    bool is_call, is_all = true;

    while (!at_end(q)) {
        is_call = is_name(&q->t) && q->t.word == PRT_W_SET_CONFIG;
        next(q);
        if (is_call && is_op(&q->t, '(')) {
            is_all &= read_call(q, &c) && locality(&c) == IS_LOCAL;
        }
    }
    return is_all;
}

void prt_parse_configs(struct prt_parse *q)
{
    struct prt_parse again = *q;
    struct prt_sql_stmt before;

    look_for_pg_temp(q);
    before = *q->st;
    if (read_configs(q)) {
        return;
    }
    *q->st = before;
    q->st->has_unknown_set |= !all_local(&again);
}
