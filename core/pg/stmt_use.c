/* stmt_use.c - Bind, Describe and Close: whose statement is meant, and is it on this server?
 * Owns: nothing.   Threads: the worker of client and server.
 * Idea: the name decides. A name of the client's becomes the server's, behind a Parse where the
 * server lacks it; none is the unnamed statement, which must be this client's or nobody's; an
 * unknown one goes on as it is, for the server to refuse. */
#include "pg/stmt_int.h"

#include <string.h>

static const struct prt_denial new_shape = {"0A000", "cached plan must not change result type",
                                            NULL, "RevalidateCachedQuery"};

/* ---- Bind and Describe ---- */
static bool may_reach_unnamed(const struct prt_stmts *s, const struct prt_up *u)
{
    return s->unnamed_of == 0 || s->unnamed_of == u->c->number;
}

/* An unnamed Parse of an earlier batch is not answered. Whatever the answer is, would the server
 * then have what the client thinks? */
static bool is_unnamed_settled(struct prt_up *u, const struct prt_names *n)
{
    const struct prt_note *p = prt_note_at(u->s->notes, n->un_pend);
    const struct prt_unnamed *b = &p->change.un_before;

    return p->change.kind == PRT_CHANGE_PARSE && p->change.prev == 0 &&
           may_reach_unnamed(u->s, u) && (b->is_mine || !b->exists) && !b->effects;
}

/* The client's unnamed statement is about to be used: make the server have it, or have none.
 * PRT_UP_SEND: go on. Only the server's own ParseComplete tells whose it has: a Parse or a Query
 * that fails early leaves the old one in place. */
static enum prt_up_rc reach_unnamed(struct prt_up *u)
{
    struct prt_stmts *s = u->s;
    struct prt_names *n;
    struct prt_note *note;

    if (!prt_up_prepare(u)) {
        return PRT_UP_NO_MEMORY;
    }
    if (s->notes->unnamed_batch == s->batch) {
        return PRT_UP_SEND; /* shares the fate of what was sent then */
    }
    n = prt_up_names(u);
    if (n->un_pend) {
        return is_unnamed_settled(u, n) ? PRT_UP_SEND : prt_up_hold(u);
    }
    if (n->un.is_mine && may_reach_unnamed(s, u)) {
        return PRT_UP_SEND;
    }
    if (n->un.exists && n->un.text) {
        struct prt_unnamed un = n->un;
        un.is_mine = true;
        un.text->refs++;
        un.effects = prt_effects_ref(un.effects);
        prt_up_inject(u, 'P');
        prt_up_put_parse(u->out, PRT_STR(""),
                         (struct prt_str){(const char *)un.text->p, un.text->n});
        note = prt_note_add(s, PRT_NOTE_UNNAMED_PARSE);
        note->client = u->c->number;
        note->change.is_ours = true;
        prt_change_unnamed(s, note, PRT_CHANGE_PARSE, un);
        s->notes->unnamed_batch = s->batch;
    } else if (s->unnamed_of) {
        prt_up_inject_close(u, PRT_STR(""));
        (void)prt_note_add(s, PRT_NOTE_UNNAMED_CLOSE);
        s->notes->unnamed_batch = s->batch;
    }
    return PRT_UP_SEND;
}

/* The message with another statement name; what stands behind the names streams. */
static void rename_to(struct prt_up *u, struct prt_str portal, struct prt_str old,
                      struct prt_str name)
{
    bool binds = u->m->type == 'B';
    size_t front = binds ? portal.n + 1 : 1, body = u->m->len - old.n + name.n;
    uint8_t *w = prt_up_put_header(u->out, u->m->type, body, front + name.n + 1);

    if (w) {
        memcpy(w, u->m->body, front);
        (void)prt_up_put_string(w + front, name);
    }
    *u->skip = 5 + front + old.n + 1;
}

/* A Bind or a Describe that the names in front are taken from. */
struct use {
    struct prt_str portal, name;
    struct prt_effects *effects; /* of what the client binds; borrowed */
    const char *tag;             /* the harmless statement is bound instead */
    bool binds, notes_portal;
};

/* Look at the portal before anything is sent. PRT_UP_SEND: go on. */
static enum prt_up_rc look_at_portal(struct prt_up *u, struct use *use)
{
    bool waits = false;

    if (use->binds &&
        !prt_portal_look(u->s, use->portal, use->effects, &use->notes_portal, &waits)) {
        return PRT_UP_NO_MEMORY;
    }
    return waits ? prt_up_hold(u) : PRT_UP_SEND;
}

/* Send it: counted, and noted where there is something to be told or taken back. */
static void push_use(struct prt_up *u, const struct use *use, struct prt_have *h,
                     struct prt_name *name)
{
    unsigned does = (h ? PRT_NOTE_USE : 0) | (h && !use->binds ? PRT_NOTE_SHAPE : 0) |
                    (!h && prt_name_is_ours(use->name) ? PRT_NOTE_FOREIGN : 0);
    struct prt_note *note;

    prt_up_push(u);
    if (!does && !use->notes_portal) {
        return;
    }
    note = prt_note_add(u->s, does);
    if (h) {
        prt_have_hold(note, h);
    }
    if (h && name) {
        note->told = name;
        name->refs++;
    }
    if (does & PRT_NOTE_SHAPE) {
        h->asked = prt_note_number(u->s->notes, note);
        note->shape_before = name->now.shape;
        name->now.shape = 0; /* what is sent behind it counts on the answer */
    }
    if (use->binds && h && name && use->portal.n == 0) {
        u->s->notes->bound = prt_note_number(u->s->notes, note);
    }
    if (use->notes_portal) {
        prt_portal_bind(u->s, note, use->portal, (struct prt_run){use->effects, use->tag, false});
    }
}

static void put_describe(struct prt_buf *b, struct prt_str name)
{
    uint8_t *w = prt_up_put_header(b, 'D', name.n + 2, name.n + 2);

    if (w) {
        *w = 'S';
        (void)prt_up_put_string(w + 1, name);
    }
}

static void ask_shape(struct prt_up *u, struct prt_have *h)
{
    struct prt_note *note;

    prt_up_inject(u, 'D');
    put_describe(u->out, h->stmt->server_name);
    note = prt_note_add(u->s, PRT_NOTE_USE | PRT_NOTE_SHAPE);
    prt_have_hold(note, h);
    h->asked = prt_note_number(u->s->notes, note);
}

/* The client knows the shape of the rows: does this server give the same? The server says what it
 * would give once after each Parse, and PostgreSQL itself guards that from then on. One that was
 * parsed earlier may be the older of the two: it is parsed again before the client is refused. */
static enum prt_up_rc check_shape(struct prt_up *u, struct prt_have *h)
{
    struct prt_note *note;

    if (h->asked) {
        return prt_up_hold(u);
    }
    if (h->shape && h->batch == u->s->batch) {
        return prt_up_deny(u, &new_shape);
    }
    if (h->shape && !prt_up_parse_there(u, h->stmt, true, &note)) {
        return PRT_UP_NO_MEMORY;
    }
    ask_shape(u, h);
    return prt_up_hold(u);
}

static bool has_shape(const struct prt_up *u, const struct prt_name *name, const struct prt_have *h)
{
    prt_assert(h);
    return name->now.shape == 0 || h->shape == name->now.shape || u->s->txn->status == 'E';
}

/* On a connection of its own the statement would be refused until the client has closed it. A
 * server that still has the old plan says so itself. */
static enum prt_up_rc use_stale(struct prt_up *u, const struct use *use, struct prt_have *h,
                                struct prt_name *name)
{
    if (!h || h->state != PRT_HAVE_OK || prt_have_is_sure(u->s, h)) {
        return prt_up_deny(u, &new_shape);
    }
    push_use(u, use, h, name);
    rename_to(u, use->portal, use->name, h->stmt->server_name);
    return PRT_UP_SEND;
}

static enum prt_up_rc use_stmt(struct prt_up *u, const struct use *use, struct prt_stmt *st,
                               struct prt_name *name)
{
    struct prt_stmts *s = u->s;
    struct prt_have *h = prt_have_find(s, st->id);
    struct prt_note *note;

    /* on its way in an earlier batch and not waited for: then it is this name's own Parse */
    bool is_own = h && h->state == PRT_HAVE_PENDING && name && name->pend;
    if (name && name->now.is_stale && s->txn->status != 'E') {
        return use_stale(u, use, h, name);
    }
    if (!prt_have_is_sure(s, h) && !is_own) {
        h = prt_up_parse_there(u, st, true, &note);
        if (!h) {
            return PRT_UP_NO_MEMORY;
        }
    }
    if (use->binds && name && !has_shape(u, name, h)) {
        return check_shape(u, h);
    }
    prt_have_count_use(s, h);
    push_use(u, use, h, name);
    rename_to(u, use->portal, use->name, st->server_name);
    return PRT_UP_SEND;
}

/* Bind the harmless statement instead. pend: of the one that the client means. */
static enum prt_up_rc use_stand_in(struct prt_up *u, const struct use *use, uint64_t pend)
{
    static const char rest[] = PRT_HARMLESS "\0\0"; /* and the NUL of the literal: no types */
    struct prt_stmt *st;
    enum prt_up_rc rc;

    if (u->s->barriers || (pend && prt_note_at(u->s->notes, pend)->batch != u->s->batch)) {
        return prt_up_hold(u); /* whether it can be bound is not known yet */
    }
    st = prt_stmt_get(u->c->params, (struct prt_str){rest, sizeof rest});
    rc = st ? use_stmt(u, use, st, NULL) : PRT_UP_NO_MEMORY;
    prt_stmt_unref(st);
    return rc;
}

/* Not prepared by a message of this client's: the server says 26000, or has it by SQL. */
static enum prt_up_rc use_unknown(struct prt_up *u, struct use *use)
{
    struct prt_effects *any = use->binds ? prt_effects_opaque() : NULL;
    char room[PRT_NAME_MAX + 1];
    enum prt_up_rc rc;

    if (use->binds && !any) {
        return PRT_UP_NO_MEMORY;
    }
    use->effects = any;
    rc = look_at_portal(u, use);
    if (rc == PRT_UP_SEND) {
        push_use(u, use, NULL, NULL);
    }
    prt_effects_unref(any);
    if (rc == PRT_UP_SEND && prt_name_is_ours(use->name)) {
        rename_to(u, use->portal, use->name, prt_name_foreign(use->name, room));
    }
    return rc;
}

/* What a stand-in is for is named in the text: is that settled? true: wait. */
static bool waits_for_stand_in(struct prt_up *u, const struct use *use)
{
    const struct prt_name *name = use->binds ? prt_up_deallocated(u, use->effects) : NULL;

    return name && prt_up_must_wait(u, name, false);
}

static enum prt_up_rc use_unnamed(struct prt_up *u, struct use *use)
{
    enum prt_up_rc rc;

    if (!prt_up_prepare(u)) {
        return PRT_UP_NO_MEMORY;
    }
    use->effects = prt_up_names(u)->un.effects;
    if (waits_for_stand_in(u, use)) {
        return prt_up_hold(u);
    }
    rc = look_at_portal(u, use);
    if (rc != PRT_UP_SEND) {
        return rc;
    }
    use->tag = use->binds ? prt_up_stand_in(u, use->effects) : NULL;
    if (use->tag) {
        return use_stand_in(u, use, prt_up_names(u)->un_pend);
    }
    rc = reach_unnamed(u);
    if (rc == PRT_UP_SEND) {
        push_use(u, use, NULL, NULL);
    }
    return rc;
}

static enum prt_up_rc use_named(struct prt_up *u, struct use *use)
{
    struct prt_name *name;
    enum prt_up_rc rc;

    if (!prt_up_prepare(u)) {
        return PRT_UP_NO_MEMORY;
    }
    name = prt_name_find(prt_up_names(u), use->name);
    if (prt_up_must_wait(u, name, true)) {
        return prt_up_hold(u);
    }
    if (!name || !name->now.stmt) {
        return use_unknown(u, use);
    }
    use->effects = name->now.stmt->effects;
    if (waits_for_stand_in(u, use)) {
        return prt_up_hold(u);
    }
    rc = look_at_portal(u, use);
    if (rc != PRT_UP_SEND) {
        return rc;
    }
    use->tag = use->binds ? prt_up_stand_in(u, use->effects) : NULL;
    return use->tag ? use_stand_in(u, use, name->pend) : use_stmt(u, use, name->now.stmt, name);
}

/* The one string behind the first byte of D and C; false: malformed. */
static bool only_string(const struct prt_msg *m, struct prt_str *name)
{
    const uint8_t *end = m->have > 1 ? memchr(m->body + 1, 0, m->have - 1) : NULL;

    if (!end || end != m->body + m->len - 1) {
        return false;
    }
    *name = (struct prt_str){(const char *)m->body + 1, m->len - 2};
    return true;
}

/* Drivers that describe the portal instead of the statement learn the shape as well: once is enough
 * to know what they count on. */
static enum prt_up_rc describe_portal(struct prt_up *u)
{
    struct prt_notes *n = u->s->notes;
    const struct prt_note *bind;
    struct prt_note *note;

    if (u->bound == 0 || n->count == 0 || u->bound != n->first + n->count - 1 || u->m->len != 2) {
        return prt_up_as_it_is(u);
    }
    bind = prt_note_at(n, u->bound);
    struct prt_name *name = bind->told;
    struct prt_have *h = bind->have;
    if (name->now.stmt != h->stmt || name->now.shape || !prt_notes_reserve(u->s, 1)) {
        return prt_up_as_it_is(u);
    }
    prt_up_push(u);
    note = prt_note_add(u->s, PRT_NOTE_SHAPE);
    prt_have_hold(note, h);
    note->told = name;
    name->refs++;
    return PRT_UP_SEND;
}

enum prt_up_rc prt_up_bind_or_describe(struct prt_up *u)
{
    struct use use = {.binds = u->m->type == 'B'};
    bool ok;

    if (use.binds) {
        ok = prt_msg_string(u->m, 0, &use.portal) && prt_msg_string(u->m, 1, &use.name);
    } else {
        ok = u->m->have && u->m->body[0] == 'S' && only_string(u->m, &use.name);
    }
    if (!ok) {
        bool describes = !use.binds && u->m->have == 2 && u->m->body[0] == 'P';
        return describes ? describe_portal(u) : prt_up_as_it_is(u);
    }
    if (use.binds && u->m->have < u->m->len && use.portal.n + use.name.n + 2 == u->m->have) {
        return PRT_UP_MORE; /* nothing but the names: leaving out all that is here means the rest
                               too */
    }
    return use.name.n ? use_named(u, &use) : use_unnamed(u, &use);
}

/* ---- Close ---- */
static enum prt_up_rc close_named(struct prt_up *u, struct prt_str text)
{
    struct prt_stmts *s = u->s;
    struct prt_name *name;
    struct prt_note *note;

    if (!prt_up_prepare(u)) {
        return PRT_UP_NO_MEMORY;
    }
    name = prt_name_find(prt_up_names(u), text);
    if (prt_up_must_wait(u, name, false)) {
        return prt_up_hold(u);
    }
    if (s->txn->copy != PRT_COPY_NONE || !prt_txn_push_local(s->txn)) {
        return prt_up_as_it_is(u); /* in COPY the server ends the session over it, as it should */
    }
    note = prt_note_add(s, PRT_NOTE_LOCAL);
    note->answer = '3';
    if (name) {
        prt_change_name(s, note, PRT_CHANGE_CLOSE, name, (struct prt_value){0});
    }
    *u->skip = u->m->size;
    return PRT_UP_SEND;
}

static enum prt_up_rc close_unnamed(struct prt_up *u)
{
    struct prt_note *note;

    if (!prt_up_prepare(u)) {
        return PRT_UP_NO_MEMORY;
    }
    prt_up_push(u);
    note = prt_note_add(u->s, PRT_NOTE_UNNAMED_CLOSE);
    prt_change_unnamed(u->s, note, PRT_CHANGE_CLOSE, (struct prt_unnamed){.is_mine = true});
    u->s->notes->unnamed_batch = u->s->batch;
    return PRT_UP_SEND;
}

enum prt_up_rc prt_up_close(struct prt_up *u)
{
    struct prt_str name;

    if (u->m->have == 0 || u->m->body[0] != 'S' || !only_string(u->m, &name)) {
        return prt_up_as_it_is(u);
    }
    return name.n ? close_named(u, name) : close_unnamed(u);
}
