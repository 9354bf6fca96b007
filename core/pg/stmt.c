/* stmt.c - what clients send, as it goes to servers that they share.
 * Owns: nothing; stmt_int.h says who owns what.   Threads: the worker of client and server.
 * Idea: a client's message is forwarded as it lies there, with another name in front where it names
 * a statement, and behind a Parse where the server lacks it. What PostgreSQL has to refuse is sent
 * so that PostgreSQL refuses it: at that place of the stream, and with its consequences. Where the
 * right thing hangs on an answer that is still on its way, the client waits; nothing is guessed. */
#include "pg/stmt_int.h"

#include <stdlib.h>
#include <string.h>

static const struct prt_denial no_names = {
    "0A000", "named prepared statements are not supported in this pool mode",
    "Use mode = \"session\" for this pool, or turn off prepared statements in the driver.", NULL};
static const struct prt_denial too_long = {
    "53400", "the text of a prepared statement is too long to be kept",
    "Send it without a name, or use mode = \"session\" for this pool.", NULL};
static const struct prt_denial too_many = {
    "53400", "too many prepared statements in one session",
    "Deallocate those that are not used any more, or use mode = \"session\" for this pool.", NULL};

/* ---- Parse ---- */
/* Text, number of types, types, and nothing else. */
static bool is_parse_whole(struct prt_str rest)
{
    const char *end = rest.n ? memchr(rest.p, 0, rest.n) : NULL;
    size_t left = end ? rest.n - (size_t)(end - rest.p) - 1 : 0;

    return left >= 2 && left == 2 + 4 * (size_t)prt_get16(end + 1);
}

/* The name is taken: PostgreSQL says so, in its words. It must know the name for that, until the
 * batch is over; and what follows in this batch it will skip. */
static enum prt_up_rc parse_taken(struct prt_up *u, struct prt_str name)
{
    static const char empty[3];
    struct prt_notes *n = u->s->notes;
    char room[PRT_NAME_MAX + 1];

    if (n->late_n) {
        return prt_up_as_it_is(u);
    }
    struct prt_str theirs = prt_name_foreign(name, room);
    n->late_n = (uint8_t)(theirs.n > PRT_NAME_MAX ? PRT_NAME_MAX : theirs.n);
    memcpy(n->late, theirs.p, n->late_n);
    prt_up_inject(u, 'P');
    prt_up_put_parse(u->out, (struct prt_str){n->late, n->late_n},
                     (struct prt_str){empty, sizeof empty});
    prt_up_push(u);
    if (prt_name_is_ours(name)) {
        size_t front = name.n + 1;
        struct prt_str whole = {(const char *)u->m->body, u->m->have};
        prt_up_put_parse(u->out, theirs, (struct prt_str){whole.p + front, whole.n - front});
        (void)prt_note_add(u->s, PRT_NOTE_FOREIGN);
        *u->skip = u->m->size;
    }
    return PRT_UP_SEND;
}

static enum prt_up_rc parse_new(struct prt_up *u, struct prt_str text, struct prt_str rest)
{
    struct prt_stmts *s = u->s;
    struct prt_stmt *st = prt_stmt_get(u->c->params, rest);
    struct prt_name *name = st ? prt_name_make(prt_up_names(u), text) : NULL;
    struct prt_note *note = NULL;
    struct prt_have *h;
    bool hits;

    if (!name) {
        prt_stmt_unref(st);
        return PRT_UP_NO_MEMORY;
    }
    h = prt_have_find(s, st->id);
    /* where the transaction may have failed meanwhile, the server has to be asked; and where a
     * schema has changed since, it would give what it parsed then */
    hits = prt_have_is_sure(s, h) && h->schema == prt_stmt_schema() && s->txn->status != 'E' &&
           s->txn->copy == PRT_COPY_NONE && !prt_txn_owes_ready(s->txn);
    if (hits && prt_txn_push_local(s->txn)) {
        prt_have_count_use(s, h);
        s->n.saved++;
        note = prt_note_add(s, PRT_NOTE_LOCAL);
        note->answer = '1';
    } else {
        h = prt_up_parse_there(u, st, false, &note);
        if (!h) {
            prt_stmt_unref(st);
            return PRT_UP_NO_MEMORY; /* closes the client, and then the name goes */
        }
    }
    prt_change_name(s, note, hits ? PRT_CHANGE_HIT : PRT_CHANGE_PARSE, name,
                    (struct prt_value){.stmt = st, .seq = note->seq});
    *u->skip = u->m->size;
    return PRT_UP_SEND;
}

static enum prt_up_rc parse_named(struct prt_up *u, struct prt_str name)
{
    struct prt_names *names;
    struct prt_name *there;

    if (u->s->limit == 0) {
        return prt_up_deny(u, &no_names);
    }
    if (u->m->len > PRT_PARSE_MAX) {
        return prt_up_deny(u, &too_long);
    }
    if (u->m->have < u->m->len) {
        return PRT_UP_MORE;
    }
    struct prt_str rest = {name.p + name.n + 1, u->m->have - name.n - 1};
    if (!is_parse_whole(rest)) {
        return prt_up_as_it_is(u); /* refused by the server as malformed */
    }
    if (!prt_up_prepare(u)) {
        return PRT_UP_NO_MEMORY;
    }
    names = prt_up_names(u);
    there = prt_name_find(names, name);
    if (prt_up_must_wait(u, there, false)) {
        return prt_up_hold(u);
    }
    if (there && there->now.stmt) {
        return parse_taken(u, name);
    }
    if (names->count >= PRT_NAMES_MAX || rest.n > PRT_NAMES_BYTES - names->bytes) {
        return prt_up_deny(u, &too_many);
    }
    return parse_new(u, name, rest);
}

static enum prt_up_rc parse_unnamed(struct prt_up *u)
{
    const struct prt_msg *m = u->m;
    bool keeps = m->len <= PRT_UNNAMED_MAX;
    struct prt_unnamed un = {.exists = true, .is_mine = true};
    struct prt_names *names;
    struct prt_note *note;

    if (m->have < m->len && (keeps || m->have < PRT_SQL_LOOKED_AT + 2)) {
        return PRT_UP_MORE;
    }
    struct prt_str rest = {(const char *)m->body + 1, m->have - 1};
    if (m->have == m->len && !is_parse_whole(rest)) {
        return prt_up_as_it_is(u);
    }
    const char *end = memchr(rest.p, 0, rest.n);
    struct prt_str text = {rest.p, end ? (size_t)(end - rest.p) : rest.n};
    if (!prt_up_prepare(u) || !prt_up_effects_of(u, text, !keeps, &un.effects)) {
        return PRT_UP_NO_MEMORY;
    }
    names = prt_up_names(u);
    if (!names->un_pend && !prt_txn_may_discard(u->s->txn)) {
        prt_unnamed_drop(names, &names->un); /* will not come back whatever the answer is */
    }
    if (keeps) {
        un.text = prt_text_new(names, m->body + 1, m->len - 1);
        if (!un.text) {
            prt_effects_unref(un.effects);
            return PRT_UP_NO_MEMORY;
        }
    }
    prt_up_push(u);
    note = prt_note_add(u->s, PRT_NOTE_UNNAMED_PARSE);
    note->client = u->c->number;
    prt_change_unnamed(u->s, note, PRT_CHANGE_PARSE, un);
    u->s->notes->unnamed_batch = u->s->batch;
    return PRT_UP_SEND;
}

static enum prt_up_rc parse(struct prt_up *u)
{
    struct prt_str name;

    if (!prt_msg_string(u->m, 0, &name)) {
        return prt_up_as_it_is(u);
    }
    return name.n ? parse_named(u, name) : parse_unnamed(u);
}

/* ---- all of them ---- */
/* First request of the lease. */
static enum prt_up_rc fresh(struct prt_up *u)
{
    struct prt_notes *notes = u->s->notes;

    u->s->is_fresh = false;
    if (prt_up_names(u)) {
        prt_up_names(u)->un.is_mine = false;
    }
    if (u->s->unnamed_of == u->c->number) {
        u->s->unnamed_of = UINT32_MAX; /* of an earlier lease: older than what it has now */
    }
    if (notes && notes->late_n) {
        prt_up_inject_close(u, (struct prt_str){notes->late, notes->late_n});
        notes->late_n = 0;
    }
    return PRT_UP_SEND;
}

/* Messages that name nothing, and those that the server discards. */
static enum prt_up_rc plain(struct prt_up *u)
{
    struct prt_stmts *s = u->s;

    switch (prt_txn_client(s->txn, u->m)) {
    case PRT_TXN_FORWARD:
        s->batch += u->m->type == 'S' || u->m->type == 'F';
        return PRT_UP_SEND;
    case PRT_TXN_TERMINATE:
        return PRT_UP_TERMINATE;
    case PRT_TXN_FULL:
        return prt_up_hold(u);
    case PRT_TXN_VIOLATION:
        break;
    }
    return PRT_UP_VIOLATION;
}

/* A Sync behind which a name has to be closed again: the Sync is copied, so that both go in order.
 */
static enum prt_up_rc end_batch(struct prt_up *u)
{
    struct prt_stmts *s = u->s;
    enum prt_up_rc rc = plain(u);

    if (rc == PRT_UP_SEND && s->notes && s->notes->late_n) {
        prt_put_sync(u->out);
        prt_up_inject_close(u, (struct prt_str){s->notes->late, s->notes->late_n});
        s->notes->late_n = 0;
        prt_up_inject(u, 'S');
        prt_put_sync(u->out);
        s->batch++;
        *u->skip = u->m->size;
    }
    return rc;
}

static enum prt_up_rc request(struct prt_up *u)
{
    switch (u->m->type) {
    case 'Q':
        return prt_up_query(u);
    case 'P':
        return parse(u);
    case 'B':
    case 'D':
        return prt_up_bind_or_describe(u);
    case 'E':
        return prt_up_execute(u);
    default:
        return prt_up_close(u);
    }
}

static bool is_request(uint8_t type)
{
    return type == 'Q' || type == 'P' || type == 'B' || type == 'D' || type == 'E' || type == 'C';
}

enum prt_up_rc prt_stmts_client(struct prt_stmts *s, const struct prt_up_client *c,
                                const struct prt_msg *m, struct prt_buf *out, size_t *skip)
{
    struct prt_up u = {s, c, m, out, skip, s->notes ? s->notes->bound : 0};
    enum prt_up_rc rc;

    *skip = 0;
    if (s->notes) {
        s->notes->bound = 0;
    }
    if (m->type == 'S') {
        rc = end_batch(&u);
    } else if (s->txn->skips || !is_request(m->type)) {
        rc = plain(&u);
    } else if (!prt_txn_has_room(s->txn, PRT_INJECTED_MAX + 1)) {
        rc = prt_up_hold(&u);
    } else {
        rc = s->is_fresh ? fresh(&u) : PRT_UP_SEND;
        rc = rc == PRT_UP_SEND ? request(&u) : rc;
        if (rc == PRT_UP_WAIT && s->notes) {
            s->notes->bound = u.bound; /* it comes again */
        }
        s->batch += m->type == 'Q' && rc == PRT_UP_SEND;
    }
    return out->failed ? PRT_UP_NO_MEMORY : rc;
}

/* ---- a server's set ---- */
void prt_stmts_init(struct prt_stmts *s, struct prt_txn *txn, uint32_t limit)
{
    *s = (struct prt_stmts){.txn = txn, .limit = limit, .batch = 1, .is_fresh = true};
    prt_evict_init(&s->order, &prt_evict_lru);
}

void prt_stmts_fini(struct prt_stmts *s)
{
    if (s->notes) {
        s->notes->names = NULL;
        while (s->notes->count) {
            prt_notes_pop(s);
        }
        free(s->notes->ring);
        free(s->notes);
        s->notes = NULL;
    }
    prt_haves_forget(s, UINT64_MAX);
    prt_map_fini(&s->by_id);
    if (s->portals) {
        prt_portals_clear(s);
        prt_effects_unref(s->portals->opaque.effects);
        free(s->portals);
    }
    prt_stmts_init(s, s->txn, s->limit);
}

void prt_stmts_lease(struct prt_stmts *s)
{
    if (s->notes) {
        prt_assert(s->notes->count == 0);
        s->notes->names = NULL;
        s->notes->lease++;
    }
    prt_assert(s->barriers == 0);
    prt_portals_clear(s);
    s->is_fresh = true;
    s->batch++;
}

void prt_stmts_forget(struct prt_stmts *s)
{
    prt_haves_forget(s, UINT64_MAX);
    s->is_suspect = false;
    s->unnamed_of = 0;
    if (s->notes) {
        s->notes->late_n = 0;
    }
}

void prt_stmts_lose_unnamed(struct prt_stmts *s, struct prt_names *names)
{
    if (names) {
        names->un.is_mine = false;
    }
    if (s->notes) {
        s->notes->unnamed_batch = 0;
    }
}

size_t prt_stmts_count(const struct prt_stmts *s)
{
    return s->by_id.n;
}
