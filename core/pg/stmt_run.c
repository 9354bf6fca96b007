/* stmt_run.c - Query and Execute: what a text will do, and whether it may.
 * Owns: nothing.   Threads: the worker of client and server.
 * Idea: the cheap look at a text comes first, and most end there: nothing is noted for them. What
 * has effects is asked for and noted; what poolrt does itself (LISTEN in the shared modes,
 * DEALLOCATE of a name that is only its own) has a harmless statement run in its place, for its tag
 * and its place in the transaction: of a LISTEN in a Query it is the same with UNLISTEN. */
#include "pg/stmt_int.h"

#include <string.h>

static const struct prt_denial not_yours = {
    "26000", "prepared statement does not exist",
    "Names that begin with \"" PRT_OUR_PREFIX "\" are the pooler's.", "FetchPreparedStatement"};

/* ---- texts ---- */
/* A long text is known by its first part only, and counts as cut: whether more of it happened to be
 * here must not show. */
bool prt_up_effects_of(const struct prt_up *u, struct prt_str text, bool is_long,
                       struct prt_effects **e)
{
    bool failed = false;

    *e = NULL;
    if (is_long && text.n > PRT_SQL_LOOKED_AT) {
        text.n = PRT_SQL_LOOKED_AT + 1;
    } else if (prt_sql_is_plain(text)) {
        return true;
    }
    *e = prt_effects_of(text, prt_params_scs(u->c->params), &failed);
    return !failed;
}

static const struct prt_sql_stmt *only(const struct prt_effects *e)
{
    return e ? prt_effects_only(e) : NULL;
}

/* The client's name that a DEALLOCATE alone in its text would give up; NULL: none. */
struct prt_name *prt_up_deallocated(const struct prt_up *u, const struct prt_effects *e)
{
    const struct prt_sql_stmt *st = only(e);

    return st && st->flags & PRT_SQL(DEALLOCATE) ? prt_name_find(prt_up_names(u), st->name) : NULL;
}

/* The tag that the harmless statement must get, if it is to run in place of a text with these
 * effects; else NULL. */
const char *prt_up_stand_in(const struct prt_up *u, const struct prt_effects *e)
{
    const struct prt_sql_stmt *st = only(e);

    if (!st) {
        return NULL;
    }
    if (u->c->fans_out && prt_effects_fans_out(e)) {
        return "LISTEN";
    }
    if (st->flags & PRT_SQL(DEALLOCATE) && !(st->flags & PRT_SQL(DEALLOCATE_ALL))) {
        const struct prt_name *name = prt_name_find(prt_up_names(u), st->name);
        return name && name->now.stmt ? "DEALLOCATE" : NULL;
    }
    return NULL;
}

/* DEALLOCATE or EXECUTE by SQL of what clients have no name for. */
static bool reaches_ours(const struct prt_effects *e)
{
    const struct prt_sql_stmt *st = only(e);

    return st && st->flags & (PRT_SQL(DEALLOCATE) | PRT_SQL(EXECUTE)) && prt_name_is_ours(st->name);
}

/* ---- Query and Execute ---- */
/* Ask whether it may run. PRT_UP_SEND: yes; else *rc is what to do. */
static enum prt_up_rc ask(struct prt_up *u, const struct prt_effects *e)
{
    const struct prt_denial *why = &not_yours;
    enum prt_may may;

    if (u->s->txn->status == 'E' && only(e) && prt_txn_owed(u->s->txn) == 0) {
        return PRT_UP_SEND; /* ends the failed transaction, or PostgreSQL refuses it */
    }
    may = reaches_ours(e) ? PRT_MAY_NOT
          : u->c->may_run ? u->c->may_run(u->c->ctx, e, &why)
                          : PRT_MAY_RUN;
    if (may == PRT_MAY_RUN) {
        return PRT_UP_SEND;
    }
    return may == PRT_MAY_WAIT ? prt_up_hold(u) : prt_up_deny(u, why);
}

static struct prt_note *note_effects(struct prt_up *u, struct prt_effects *e, const char *tag,
                                     unsigned does)
{
    bool may_forget = e && !tag && prt_effects_deallocates(e);
    struct prt_note *note = prt_note_add(u->s, does | (may_forget ? PRT_NOTE_BARRIER : 0) |
                                                   (prt_effects_wants_rows(e) ? PRT_NOTE_ROWS : 0));
    struct prt_name *name = tag ? prt_up_deallocated(u, e) : NULL;

    note->effects = prt_effects_ref(e);
    note->tag = tag;
    if (name) {
        prt_change_name(u->s, note, PRT_CHANGE_CLOSE, name, (struct prt_value){0});
    }
    return note;
}

/* A Query ends the unnamed statement; unless it is discarded, in which case its note brings it
 * back. */
static bool forgets_at_once(const struct prt_up *u)
{
    return !prt_up_names(u)->un_pend && !prt_txn_may_discard(u->s->txn);
}

/* The grammar of UNLISTEN is that of LISTEN: with "UN" in front of each the text fails where it
 * would, in the same words. */
static void put_unlistens(struct prt_up *u, const struct prt_effects *e)
{
    const uint8_t *body = u->m->body;
    const struct prt_sql_stmt *st;
    unsigned n = 1, more = 0;
    size_t from = 0;
    uint8_t *w;

    for (unsigned i = 0; i < n; i++) {
        more += prt_effects_listen(e, i, &n) ? 2 : 0;
    }
    w = prt_up_put_header(u->out, 'Q', u->m->len + more, u->m->len + more);
    for (unsigned i = 0; w && i < n; i++) {
        st = prt_effects_listen(e, i, &n);
        if (st) {
            memcpy(w, body + from, st->at - from);
            w += st->at - from;
            *w++ = 'U';
            *w++ = 'N';
            from = st->at;
        }
    }
    if (w) {
        memcpy(w, body + from, u->m->len - from);
    }
}

static enum prt_up_rc send_query(struct prt_up *u, struct prt_effects *e)
{
    bool unlistens = u->c->fans_out && prt_effects_fans_out(e);
    struct prt_names *n = prt_up_names(u);
    struct prt_unnamed none = {.is_mine = true};
    bool had_unnamed = n && (n->un.exists || n->un_pend), at_once;
    const struct prt_name *name = prt_up_deallocated(u, e);
    const char *tag;
    struct prt_note *note;

    if (name && prt_up_must_wait(u, name, false)) {
        return prt_up_hold(u);
    }
    tag = unlistens ? NULL : prt_up_stand_in(u, e);
    if (!prt_up_prepare(u)) {
        return PRT_UP_NO_MEMORY;
    }
    at_once = !had_unnamed || forgets_at_once(u);
    if (!at_once && name) {
        return prt_up_hold(u); /* one note takes back one thing */
    }
    prt_up_push(u);
    if (had_unnamed && at_once) {
        prt_unnamed_drop(n, &n->un);
        n->un = none;
    }
    if (e || !at_once) {
        note = note_effects(u, e, tag, PRT_NOTE_QUERY | (unlistens ? PRT_NOTE_UNLISTENS : 0));
        if (!at_once && !note->change.kind) {
            prt_change_unnamed(u->s, note, PRT_CHANGE_CLOSE, none);
        }
    }
    if (unlistens) {
        put_unlistens(u, e);
    } else if (tag) {
        prt_put_query(u->out, PRT_STR(PRT_HARMLESS));
    }
    *u->skip = unlistens || tag ? u->m->size : 0;
    return PRT_UP_SEND;
}

enum prt_up_rc prt_up_query(struct prt_up *u)
{
    const struct prt_msg *m = u->m;
    bool is_long = m->len > PRT_UNNAMED_MAX;
    const struct prt_names *n = prt_up_names(u);
    struct prt_effects *e;
    enum prt_up_rc rc;

    if (m->have < m->len && (!is_long || m->have < PRT_SQL_LOOKED_AT + 1)) {
        return PRT_UP_MORE;
    }
    struct prt_str text = {(const char *)m->body, m->have};
    text.n -= m->len && m->have == m->len; /* the final NUL */
    if (!prt_up_effects_of(u, text, is_long, &e)) {
        return PRT_UP_NO_MEMORY;
    }
    if (!e && !(n && (n->un.exists || n->un_pend))) {
        return prt_up_as_it_is(u);
    }
    rc = e ? ask(u, e) : PRT_UP_SEND;
    /* a denied one was sent already, as something else */
    if (rc == PRT_UP_SEND && !*u->skip) {
        rc = send_query(u, e);
    }
    prt_effects_unref(e);
    return rc;
}

static enum prt_up_rc run_portal(struct prt_up *u, struct prt_run *p)
{
    struct prt_effects *e = p->effects;
    struct prt_name *name = p->tag ? prt_up_deallocated(u, e) : NULL;
    bool is_first = !p->has_begun;

    if (!prt_up_prepare(u)) {
        return PRT_UP_NO_MEMORY;
    }
    if (name && prt_up_must_wait(u, name, false)) {
        return prt_up_hold(u);
    }
    if (is_first && p->tag && only(e)->flags & PRT_SQL(DEALLOCATE) && (!name || !name->now.stmt)) {
        /* gone since the portal was bound: a Bind of it fails as DEALLOCATE would */
        char room[PRT_NAME_MAX + 1];
        (void)prt_up_refuse(u, NULL, prt_name_foreign(only(e)->name, room));
        return PRT_UP_SEND;
    }
    prt_up_push(u);
    p->has_begun = true;
    (void)note_effects(u, e, p->tag, 0);
    return PRT_UP_SEND;
}

enum prt_up_rc prt_up_execute(struct prt_up *u)
{
    struct prt_str name;
    struct prt_run *p;
    enum prt_up_rc rc;

    if (!u->s->portals || !prt_msg_string(u->m, 0, &name)) {
        return prt_up_as_it_is(u);
    }
    p = prt_portal_find(u->s, name);
    if (!p) {
        return prt_up_as_it_is(u);
    }
    rc = ask(u, p->effects);
    return rc == PRT_UP_SEND && !*u->skip ? run_portal(u, p) : rc;
}
