/* session.c - what the client of a lease has done to the session of its server.
 * Owns: nothing; what it finds out is kept by keep.c. Threads: one user at a time.
 * Idea: the tag says that something happened, the text says what. Where the two do not fit together
 * nothing is guessed: the state is OPAQUE then, which only DISCARD ALL ends. A state that is
 * counted as dirty and is not costs a reset; the other way round it would reach the next client. */
#include "pg/session_int.h"

#include <string.h>

#define OPAQUE PRT_STATE_BIT(OPAQUE)
#define SETTING PRT_STATE_BIT(SETTING)
#define ROLE_SET 1u
#define ROLE_AUTH 2u

const char *prt_state_name(enum prt_state_kind kind)
{
    static const char *const name[] = {
#define X(id, name) name,
        PRT_STATES(X)
#undef X
    };

    return (unsigned)kind < PRT_STATE_COUNT ? name[kind] : "unknown";
}

/* ---- channels ---- */
static struct prt_str hex_of(struct prt_str channel, char out[2 * PRT_NAME_MAX])
{
    static const char digits[] = "0123456789abcdef";
    size_t n = channel.n < PRT_NAME_MAX ? channel.n : PRT_NAME_MAX;

    /* a name that PostgreSQL cuts is cut between characters */
    while (n && n < channel.n && ((unsigned char)channel.p[n] & 0xc0) == 0x80) {
        n--;
    }
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)channel.p[i];
        out[2 * i] = digits[c >> 4];
        out[2 * i + 1] = digits[c & 15];
    }
    return (struct prt_str){out, 2 * n};
}

bool prt_session_has_channel(const struct prt_params *channels, struct prt_str channel)
{
    char hex[2 * PRT_NAME_MAX];
    struct prt_str value;

    return prt_params_get(channels, hex_of(channel, hex), &value);
}

/* ---- settings ---- */
static void set_role(struct prt_session *s, unsigned role, bool is_set)
{
    s->roles = (uint8_t)(is_set ? s->roles | role : s->roles & ~role);
    if (s->roles) {
        s->dirty |= PRT_STATE_BIT(ROLE);
    } else {
        s->dirty &= (uint16_t)~PRT_STATE_BIT(ROLE);
    }
}

static unsigned roles_of(const struct prt_sql_stmt *st)
{
    return (st->flags & PRT_SQL(ROLE) ? ROLE_SET : 0) | (st->flags & PRT_SQL(AUTH) ? ROLE_AUTH : 0);
}

/* A role, whatever it is, stays with its server: who may have it can change. NONE anyone may have
 * at any time, so that is a setting like others, and not what RESET ROLE gives where ALTER ROLE or
 * the login has given the user a role. */
static void change_role(struct prt_session *s, const struct prt_sql_stmt *st)
{
    struct prt_str role = PRT_STR("role"), value;
    unsigned roles = roles_of(st);
    bool is_none = st->role_to == PRT_SQL_ROLE_NONE, pins = st->role_to == PRT_SQL_ROLE_NAMED;

    if (roles & ROLE_AUTH && prt_params_get(s->now, role, &value)) {
        prt_keep_always(s, OPAQUE); /* the role is NONE, or as at login: versions differ */
    }
    if (roles) {
        bool is_known = is_none ? prt_journal_put(&s->now, role, PRT_STR("=none"))
                                : prt_journal_drop(&s->now, role);
        set_role(s, roles, pins || !is_known);
    }
}

/* value: empty for the reset value */
static void set_one(struct prt_session *s, struct prt_str name, struct prt_str value)
{
    bool is_known = true;

    switch (prt_set_kind_of(name)) {
    case PRT_SET_JOURNAL:
        if (value.n) {
            /* the byte in front of it is its kind */
            struct prt_str v = {value.p - 1, value.n + 1};
            is_known = prt_journal_put(&s->now, name, v);
        } else {
            is_known = prt_journal_drop(&s->now, name);
        }
        break;
    case PRT_SET_ROLE:
        set_role(s, ROLE_SET, value.n != 0);
        break;
    case PRT_SET_AUTH:
        set_role(s, ROLE_AUTH, value.n != 0);
        break;
    case PRT_SET_OPAQUE:
        is_known = false;
        break;
    case PRT_SET_TOLD:
    case PRT_SET_PASSING:
        break;
    }
    if (!is_known) {
        prt_keep_always(s, SETTING);
    }
}

static void set_all(struct prt_session *s, const struct prt_sql_stmt *st)
{
    if (st->has_unknown_set || (st->wants_row && (!s->has_row || s->has_bad_row))) {
        prt_keep_always(s, SETTING);
    }
    for (unsigned i = 0; i < st->n_sets; i++) {
        if (!st->set[i].column) {
            set_one(s, st->set[i].name, st->set[i].value);
        }
    }
}

/* Column number `column`, from 1, of a DataRow. false: it is not here, or NULL. */
static bool column_of(const struct prt_msg *row, unsigned column, struct prt_str *text)
{
    uint32_t at = 2, n = 0;

    if (row->have < 2 || column > prt_get16(row->body)) {
        return false;
    }
    while (column--) {
        at += n;
        if (row->have - at < 4) {
            return false;
        }
        n = prt_get32(row->body + at);
        at += 4;
        if (n > row->have - at) { /* NULL among them */
            return false;
        }
    }
    *text = (struct prt_str){(const char *)row->body + at, n};
    return !memchr(text->p, 0, n);
}

static bool set_by_row(struct prt_session *s, const struct prt_sql_set *set,
                       const struct prt_msg *row)
{
    struct prt_str text;

    if (prt_set_kind_of(set->name) != PRT_SET_JOURNAL) {
        set_one(s, set->name, PRT_STR("row"));
        return true;
    }
    if (!column_of(row, set->column, &text)) {
        return false;
    }
    if (prt_sql_names_pg_temp(text)) {
        s->dirty |= PRT_STATE_BIT(TEMP); /* in a search_path: a CREATE will not say so */
    }
    return prt_journal_put_text(&s->now, set->name, text);
}

void prt_session_row(struct prt_session *s, const struct prt_effects *e, unsigned nth,
                     const struct prt_msg *row)
{
    const struct prt_sql_stmt *st = e && nth < e->n ? &e->stmt[nth] : NULL;

    if (!st || !st->wants_row) {
        return;
    }
    s->has_bad_row |= s->has_row; /* one of several is none of ours */
    s->has_row = true;
    for (unsigned i = 0; i < st->n_sets; i++) {
        if (st->set[i].column) {
            s->has_bad_row |= !set_by_row(s, &st->set[i], row);
        }
    }
}

/* ---- tags ---- */
/* id, tag, flags of which the text has one if it is that statement, what it does */
#define TAGS(X)                                                                                    \
    X(BEGIN, "BEGIN", PRT_SQL(BEGIN), on_begin)                                                    \
    X(START, "START TRANSACTION", PRT_SQL(BEGIN), on_begin)                                        \
    X(COMMIT, "COMMIT", PRT_SQL(COMMIT), on_commit)                                                \
    X(TWOPHASE, "PREPARE TRANSACTION", PRT_SQL(TWOPHASE), on_commit)                               \
    X(ROLLBACK, "ROLLBACK",                                                                        \
      PRT_SQL(COMMIT) | PRT_SQL(ROLLBACK) | PRT_SQL(SAVEPOINT) | PRT_SQL(TWOPHASE), on_rollback)   \
    X(SAVEPOINT, "SAVEPOINT", PRT_SQL(SAVEPOINT), on_savepoint)                                    \
    X(RELEASE, "RELEASE", PRT_SQL(SAVEPOINT), on_release)                                          \
    X(SET, "SET", PRT_SQL(SET) | PRT_SQL(ROLE) | PRT_SQL(AUTH) | PRT_SQL(LOCAL), on_set)           \
    X(RESET, "RESET", PRT_SQL(RESET) | PRT_SQL(RESET_ALL) | PRT_SQL(ROLE) | PRT_SQL(AUTH),         \
      on_reset)                                                                                    \
    X(LISTEN, "LISTEN", PRT_SQL(LISTEN), on_listen)                                                \
    X(UNLISTEN, "UNLISTEN", PRT_SQL(UNLISTEN), on_unlisten)                                        \
    X(PREPARE, "PREPARE", PRT_SQL(PREPARE), on_prepare)                                            \
    X(DEALLOCATE, "DEALLOCATE", PRT_SQL(DEALLOCATE), on_deallocate)                                \
    X(DEALLOCATE_ALL, "DEALLOCATE ALL", PRT_SQL(DEALLOCATE_ALL), on_deallocate)                    \
    X(DECLARE, "DECLARE CURSOR", PRT_SQL(CURSOR), on_declare)                                      \
    X(CLOSE, "CLOSE CURSOR", PRT_SQL(CLOSE), on_close)                                             \
    X(CLOSE_ALL, "CLOSE CURSOR ALL", PRT_SQL(CLOSE_ALL), on_close)                                 \
    X(DISCARD_ALL, "DISCARD ALL", PRT_SQL(DISCARD_ALL), on_discard_all)                            \
    X(DISCARD_TEMP, "DISCARD TEMP", PRT_SQL(DISCARD_TEMP), on_discard_temp)                        \
    X(DO, "DO", PRT_SQL(OPAQUE), on_opaque)                                                        \
    X(CALL, "CALL", PRT_SQL(OPAQUE), on_opaque)                                                    \
    X(LOAD, "LOAD", PRT_SQL(LOAD), on_opaque)
enum tag {
#define X(id, text, flags, on) TAG_##id,
    TAGS(X)
#undef X
        TAG_OTHER
};
/* What only a statement with one of the tags above can have. */
#define VERBS                                                                                      \
    (PRT_SQL(SET) | PRT_SQL(RESET) | PRT_SQL(RESET_ALL) | PRT_SQL(ROLE) | PRT_SQL(AUTH) |          \
     PRT_SQL(LISTEN) | PRT_SQL(UNLISTEN) | PRT_SQL(PREPARE) | PRT_SQL(DEALLOCATE) |                \
     PRT_SQL(DEALLOCATE_ALL) | PRT_SQL(DISCARD_ALL) | PRT_SQL(DISCARD_TEMP) | PRT_SQL(CLOSE) |     \
     PRT_SQL(CLOSE_ALL) | PRT_SQL(LOAD) | PRT_SQL(SAVEPOINT) | PRT_SQL(COMMIT) |                   \
     PRT_SQL(ROLLBACK))

/* A statement that is done. */
struct done {
    const struct prt_effects *e;   /* of its text; NULL: without any */
    const struct prt_sql_stmt *st; /* NULL: it could not be read, or there is nothing in it */
    enum tag tag;
};
typedef void on_tag(struct prt_session *s, const struct done *d);
#define X(id, text, flags, on) static on_tag on;
TAGS(X)
#undef X

static const struct {
    const char *text;
    uint64_t flags;
    on_tag *on;
} tags[] = {
#define X(id, text, flags, on) {text, flags, on},
    TAGS(X)
#undef X
};

bool prt_tag_counts_rows(struct prt_str tag)
{
    return tag.n > 7 && (memcmp(tag.p, "SELECT ", 7) == 0 || memcmp(tag.p, "UPDATE ", 7) == 0 ||
                         memcmp(tag.p, "INSERT ", 7) == 0 || memcmp(tag.p, "DELETE ", 7) == 0);
}

static enum tag tag_of(struct prt_str text)
{
    unsigned i = prt_tag_counts_rows(text) ? TAG_OTHER : 0;

    while (i < TAG_OTHER && !prt_str_eqz(text, tags[i].text)) {
        i++;
    }
    return (enum tag)i;
}

/* Is it what the text made us expect? If not, the lexer has counted otherwise than the server. */
static bool fits(enum tag tag, const struct prt_sql_stmt *st, struct prt_str text)
{
    if (tag != TAG_OTHER) {
        return (st->flags & tags[tag].flags) != 0;
    }
    return text.n == 0 || !(st->flags & VERBS) ||
           st->flags & (PRT_SQL(EXPLAIN) | PRT_SQL(SETCONFIG));
}

/* Outside of a block these commit what came before them in the same batch, in one version, and not
 * in another; which of them do in which form the tag does not tell. */
static bool may_commit(struct prt_str text)
{
    static const char *const what[] = {"VACUUM",
                                       "REINDEX",
                                       "CLUSTER",
                                       "CREATE INDEX",
                                       "DROP INDEX",
                                       "ALTER TABLE",
                                       "CREATE DATABASE",
                                       "DROP DATABASE",
                                       "ALTER DATABASE",
                                       "ALTER SYSTEM",
                                       "CREATE TABLESPACE",
                                       "DROP TABLESPACE",
                                       "CREATE SUBSCRIPTION",
                                       "ALTER SUBSCRIPTION",
                                       "DROP SUBSCRIPTION",
                                       "ANALYZE"};

    for (size_t i = 0; i < sizeof what / sizeof *what; i++) {
        if (prt_str_eqz(text, what[i])) {
            return true;
        }
    }
    return false;
}

/* ---- one statement is done ---- */
/* Something of this text ran, and nobody knows what. */
static void on_unknown(struct prt_session *s, const struct prt_effects *e)
{
    prt_keep_always(s, OPAQUE);
    prt_keep_unknown_names(s, e->states);
    prt_keep_always(s, e->states & PRT_STATES_SURVIVE);
    s->dirty |= (uint16_t)e->states;
    s->roles |= e->states & PRT_STATE_BIT(ROLE) ? ROLE_SET | ROLE_AUTH : 0;
}

/* What no tag tells: temporary objects and functions. */
static void on_text(struct prt_session *s, const struct prt_sql_stmt *st, enum tag tag,
                    struct prt_str text)
{
    prt_keep_always(s, prt_stmt_remains(st));
    if (st->flags & PRT_SQL(UNLOCK_ALL) && prt_str_eqz(text, "SELECT 1")) {
        prt_keep_end_state(s, PRT_STATE_BIT(ADVISORY));
    }
    if (st->flags & PRT_SQL(TEMP)) {
        s->dirty |= PRT_STATE_BIT(TEMP);
    }
    if (!(st->flags & PRT_SQL(SETCONFIG)) || tag == TAG_SET) {
        return;
    }
    if (tag == TAG_OTHER && !(st->flags & PRT_SQL(EXPLAIN)) &&
        (text.n == 0 || prt_str_eqz(text, "SELECT 1"))) {
        change_role(s, st);
        set_all(s, st);
    } else if (st->n_sets || st->has_unknown_set || roles_of(st)) {
        /* ran for each row, or for none, or will at an EXECUTE or FETCH */
        prt_keep_always(s, SETTING);
    }
}

/* ---- one for each tag ---- */
static struct prt_str name_of(const struct done *d)
{
    return d->st ? d->st->name : (struct prt_str){NULL, 0};
}

static void on_begin(struct prt_session *s, const struct done *d)
{
    (void)d;
    s->is_open = true;
}

/* PREPARE TRANSACTION keeps the settings of its transaction in the session. */
static void on_commit(struct prt_session *s, const struct done *d)
{
    prt_keep_settle(s);
    s->is_unsure = false;
    s->is_open = d->st && d->st->flags & PRT_SQL(CHAIN);
}

/* Back to the last commit, wherever that was. */
static void undo(struct prt_session *s)
{
    if (s->is_unsure) {
        prt_keep_always(s, OPAQUE);
    }
    prt_keep_roll_back(s);
    s->is_unsure = false;
}

static void on_rollback(struct prt_session *s, const struct done *d)
{
    const struct prt_sql_stmt *st = d->st;

    if (st && st->flags & PRT_SQL(TWOPHASE) && !s->is_aborted) {
        on_commit(s, d); /* PREPARE TRANSACTION without a block: says ROLLBACK, and commits */
        return;
    }
    s->is_aborted = false;
    if (st && st->is_rollback_to) {
        prt_keep_roll_back_to(s, st->name);
        return;
    }
    if (!st && d->e) {
        prt_keep_always(s, OPAQUE); /* perhaps to a savepoint */
    }
    undo(s);
    s->is_open = st && st->flags & PRT_SQL(CHAIN);
}

static void on_savepoint(struct prt_session *s, const struct done *d)
{
    prt_keep_savepoint(s, name_of(d));
}

static void on_release(struct prt_session *s, const struct done *d)
{
    prt_keep_release(s, name_of(d));
}

static void on_set(struct prt_session *s, const struct done *d)
{
    const struct prt_sql_stmt *st = d->st;

    if (!st) {
        prt_keep_always(s, SETTING);
        return;
    }
    if (st->flags & PRT_SQL(LOCAL)) {
        return;
    }
    if (!st->n_sets && !roles_of(st)) {
        prt_keep_always(s, SETTING);
    }
    change_role(s, st);
    set_all(s, st);
}

static void on_reset(struct prt_session *s, const struct done *d)
{
    const struct prt_sql_stmt *st = d->st;

    if (st && st->flags & PRT_SQL(RESET_ALL)) {
        prt_journal_reset_all(&s->now);
        s->dirty &= (uint16_t)~SETTING;
    } else if (st && roles_of(st)) {
        change_role(s, st);
    } else if (st && st->name.n) {
        set_one(s, st->name, (struct prt_str){NULL, 0});
    } else {
        prt_keep_always(s, SETTING);
    }
}

static void on_listen(struct prt_session *s, const struct done *d)
{
    const struct prt_sql_stmt *st = d->st;
    char hex[2 * PRT_NAME_MAX];
    struct prt_str name, value;

    if (s->fans_out && st && prt_effects_fans_out(d->e)) {
        name = hex_of(st->name, hex);
        s->channels = prt_params_with(s->channels, name, (struct prt_str){NULL, 0});
        if (prt_params_get(s->channels, name, &value)) {
            return;
        }
    }
    s->dirty |= PRT_STATE_BIT(LISTEN);
}

static void unlisten_all(struct prt_session *s)
{
    prt_keep_assign(&s->channels, prt_params_empty());
    s->dirty &= (uint16_t)~PRT_STATE_BIT(LISTEN);
}

static void on_unlisten(struct prt_session *s, const struct done *d)
{
    const struct prt_sql_stmt *st = d->st;
    char hex[2 * PRT_NAME_MAX];

    if (!st) {
        return;
    }
    if (prt_str_eqz(st->name, "*")) {
        unlisten_all(s);
    } else {
        s->channels = prt_params_without(s->channels, hex_of(st->name, hex));
    }
}

static void on_prepare(struct prt_session *s, const struct done *d)
{
    prt_keep_prepared(s, name_of(d));
}

static void on_deallocate(struct prt_session *s, const struct done *d)
{
    prt_keep_deallocated(s, d->st, d->tag == TAG_DEALLOCATE_ALL);
}

static void on_declare(struct prt_session *s, const struct done *d)
{
    if (d->st ? d->st->flags & PRT_SQL(HOLD) : d->e != NULL) {
        prt_keep_held(s, name_of(d));
    }
}

static void on_close(struct prt_session *s, const struct done *d)
{
    prt_keep_closed(s, d->st, d->tag == TAG_CLOSE_ALL);
}

static void on_discard_all(struct prt_session *s, const struct done *d)
{
    (void)d;
    /* it commits, but has not always: before 2022 a rollback of the rest of its batch undid it */
    s->is_unsure |= prt_keep_is_provisional(s) || s->dirty || s->now != prt_params_empty() ||
                    s->channels != prt_params_empty();
    prt_keep_assign(&s->now, prt_params_empty());
    unlisten_all(s);
    s->dirty = 0;
    s->roles = 0;
    prt_keep_end_state(s, PRT_STATES_SURVIVE | PRT_STATE_BIT(HOLD));
    prt_keep_no_names(s, PRT_STATE_BIT(PREPARE) | PRT_STATE_BIT(HOLD));
    prt_keep_settle(s);
}

static void on_discard_temp(struct prt_session *s, const struct done *d)
{
    (void)d;
    s->dirty &= (uint16_t)~PRT_STATE_BIT(TEMP);
}

static void on_opaque(struct prt_session *s, const struct done *d)
{
    (void)d;
    prt_keep_always(s, OPAQUE);
}

/* ---- what the caller tells ---- */
void prt_session_complete(struct prt_session *s, const struct prt_effects *e, unsigned nth,
                          struct prt_str text)
{
    struct done d = {e, e && nth < e->n ? &e->stmt[nth] : NULL, tag_of(text)};
    bool is_last = e && nth + 1u >= e->n;

    if (e && is_last && e->hides & (PRT_HIDES_TEMP | PRT_HIDES_CONFIG | PRT_HIDES_FUNCTION)) {
        on_unknown(s, e);
    }
    if ((d.st && !fits(d.tag, d.st, text)) || (e && !d.st && !e->is_cut)) {
        on_unknown(s, e);
        d.st = NULL;
    }
    if (d.st) {
        on_text(s, d.st, d.tag, text);
    }
    if (d.tag != TAG_OTHER) {
        tags[d.tag].on(s, &d);
    }
    s->has_row = s->has_bad_row = false;
    s->is_unsure |=
        d.tag == TAG_OTHER && !s->is_open && prt_keep_is_provisional(s) && may_commit(text);
}

void prt_session_failed(struct prt_session *s, const struct prt_effects *e, unsigned nth)
{
    s->has_failed = true;
    s->has_row = s->has_bad_row = false;
    if (!e || s->is_aborted) {
        return;
    }
    if (nth < e->n) {
        prt_keep_always(s, prt_stmt_remains(&e->stmt[nth]));
    }
    if (nth + 1u >= e->n && e->hides & PRT_HIDES_FUNCTION) {
        prt_keep_always(s, OPAQUE);
    }
}

void prt_session_ready(struct prt_session *s, uint8_t status)
{
    if (status == 'I' && s->has_failed) {
        undo(s);
    } else if (status == 'I') {
        prt_keep_settle(s);
        s->is_unsure = false;
    }
    s->is_open = status != 'I';
    s->has_failed = false;
    s->is_in_block = status != 'I';
    s->is_aborted = status == 'E';
}

void prt_session_recoded(struct prt_session *s)
{
    if (!prt_params_is_ascii(s->now) || !prt_params_is_ascii(s->settled)) {
        prt_keep_always(s, SETTING);
    }
}

/* ---- the whole ---- */
void prt_session_init(struct prt_session *s)
{
    *s = (struct prt_session){
        .settled = prt_params_empty(),
        .now = prt_params_empty(),
        .channels_settled = prt_params_empty(),
        .channels = prt_params_empty(),
    };
}

void prt_session_discarded(struct prt_session *s)
{
    prt_keep_assign(&s->now, prt_params_empty());
    prt_keep_assign(&s->channels, prt_params_empty());
    s->dirty = 0;
    s->roles = 0;
    prt_keep_settle(s);
    prt_keep_no_names(s, PRT_STATE_BIT(PREPARE) | PRT_STATE_BIT(HOLD));
}

void prt_session_cleaned(struct prt_session *s, unsigned states)
{
    if (states & OPAQUE) {
        prt_session_discarded(s); /* it took a DISCARD ALL */
        return;
    }
    prt_keep_end_state(s, states);
    if (states & SETTING) { /* RESET ALL takes all along */
        prt_journal_reset_all(&s->now);
        prt_journal_reset_all(&s->settled);
    }
    if (states & PRT_STATE_BIT(ROLE)) {
        s->roles = s->roles_settled = 0;
        s->now = prt_params_without(s->now, PRT_STR("role"));
        s->settled = prt_params_without(s->settled, PRT_STR("role"));
    }
    prt_keep_no_names(s, states);
}

void prt_session_fini(struct prt_session *s)
{
    prt_keep_free(s);
}
