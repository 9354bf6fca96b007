/* stmt_down.c - what a server answers: confirm, take back, hide.
 * Owns: nothing.   Threads: the server's worker.
 * Idea: the accounting counts the noted requests that a message ends, so notes follow the queue
 * without a second look at the protocol. An error takes back what its request and all that is
 * skipped with it had changed, the last first. */
#include "pg/stmt_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One message on its way down. */
struct down {
    struct prt_stmts *s;
    struct prt_session *session;
    const struct prt_msg *m;
    uint32_t ev;
    struct prt_buf *to;
};

/* The note of the request that the message answers; NULL: it has none. */
static struct prt_note *answered(const struct prt_stmts *s)
{
    if (!s->txn->was_noted) {
        return NULL;
    }
    prt_assert(s->notes && s->notes->count);
    return prt_note_at(s->notes, s->notes->first);
}

/* ---- shapes ---- */
static uint64_t mix(uint64_t sum, const void *p, size_t n)
{
    const uint8_t *b = p;

    for (size_t i = 0; i < n; i++) {
        sum = (sum ^ b[i]) * 1099511628211u;
    }
    return sum;
}

#define COLUMN 18 /* bytes behind a column's name: table, number, type, size, modifier, format */

/* What PostgreSQL compares of a result: names, types, modifiers. Not where a column comes from. A
 * description that streams is known by its length only. */
static uint64_t shape_of(const struct prt_msg *m)
{
    uint64_t sum = 14695981039346656037u;
    uint32_t at = 2;

    if (m->type == 'n') {
        return PRT_SHAPE_NONE;
    }
    if (m->len > PRT_SMALL_MAX - 4 || m->len < 2) {
        return mix(sum, &m->len, sizeof m->len) | 2;
    }
    while (at < m->len) {
        const uint8_t *end = memchr(m->body + at, 0, m->len - at);
        uint32_t n = end ? (uint32_t)(end - m->body) + 1 - at : m->len - at;
        sum = mix(sum, m->body + at, n);
        at += n;
        if (m->len - at < COLUMN) {
            break;
        }
        sum = mix(sum, m->body + at + 6, 4);
        sum = mix(sum, m->body + at + 12, 4);
        at += COLUMN;
    }
    return sum | 2; /* neither unknown nor none */
}

static void told_shape(struct prt_stmts *s, struct prt_note *note, const struct prt_msg *m)
{
    struct prt_have *h = note->have;
    uint64_t shape = shape_of(m);

    if (h->asked == s->notes->first || (h->asked == 0 && h->shape == 0)) {
        h->asked = 0;
        h->shape = shape;
    }
    if (note->told && s->notes->names && note->told->now.stmt == h->stmt) { /* still the same */
        note->told->now.shape = shape == PRT_SHAPE_NONE ? 0 : shape;
    }
}

/* ---- confirmed ---- */
static void settle_have(struct prt_stmts *s, struct prt_note *note, uint64_t number)
{
    struct prt_have *h = note->have;

    if (!h || h->by != number) {
        return; /* something later was sent for it */
    }
    if (note->does & PRT_NOTE_PARSE) {
        h->state = PRT_HAVE_OK;
        h->by = 0;
    } else if (note->does & PRT_NOTE_EVICT) {
        prt_have_del(s, h);
    }
}

/* The oldest noted request is answered. */
static void finish(struct prt_stmts *s)
{
    prt_assert(s->notes && s->notes->count);
    struct prt_note *note = prt_note_at(s->notes, s->notes->first);

    settle_have(s, note, s->notes->first);
    if (note->does & PRT_NOTE_UNNAMED_PARSE) {
        s->unnamed_of = note->client;
    } else if (note->does & PRT_NOTE_UNNAMED_CLOSE) {
        s->unnamed_of = 0;
    }
    prt_change_done(s, note);
    prt_portal_done(s, note);
    prt_notes_pop(s);
}

/* ---- taken back ---- */
static void undo_have(struct prt_stmts *s, struct prt_note *note, uint64_t number)
{
    struct prt_have *h = note->have;

    if (!h) {
        return;
    }
    if (h->asked == number) {
        h->asked = 0;
    }
    if (note->does & PRT_NOTE_SHAPE && note->told && s->notes->names &&
        note->told->now.stmt == h->stmt && note->told->now.shape == 0) {
        note->told->now.shape = note->shape_before;
    }
    if (h->by != number || !h->is_in) {
        return; /* something later was sent for it, or it was forgotten */
    }
    if (note->does & PRT_NOTE_PARSE) {
        h->by = 0;
        if (note->does & PRT_NOTE_WAS_THERE) {
            h->state = PRT_HAVE_MAYBE;
        } else {
            prt_have_del(s, h);
        }
    } else if (note->does & PRT_NOTE_EVICT) {
        h->by = 0;
        h->state = note->prior;
        prt_evict_add(&s->order, &h->evict);
    }
}

/* The first n are undone; is_failed: the first of them is the one that failed. */
static void undo(struct prt_stmts *s, unsigned n, bool is_failed)
{
    prt_assert(s->notes && s->notes->count >= n);
    for (unsigned i = n; i > 0; i--) {
        uint64_t number = s->notes->first + i - 1;
        struct prt_note *note = prt_note_at(s->notes, number);
        undo_have(s, note, number);
        prt_change_undo(s, note, is_failed && i == 1);
        prt_portal_undo(s, note);
    }
    while (n--) {
        prt_notes_pop(s);
    }
}

/* "cached plan must not change result type": of the many errors with that SQLSTATE (an input
 * function can raise one at Bind) the one that this function of PostgreSQL's raises. A server that
 * does not name its functions is taken at its SQLSTATE. */
static bool is_plan_stale(const struct prt_notice *e)
{
    return prt_str_eqz(e->sqlstate, "0A000") &&
           (!e->routine.n || prt_str_eqz(e->routine, "RevalidateCachedQuery"));
}

/* What an error of one of our own statements tells about it. */
static void learn(struct prt_stmts *s, const struct prt_note *note, const struct prt_msg *m)
{
    struct prt_notice e;

    prt_notice_read(m, &e);
    if (note->does & PRT_NOTE_USE && is_plan_stale(&e)) {
        /* relaxed: who reads an older value parses it again one use later */
        (void)atomic_fetch_add_explicit(&note->have->stmt->generation, 1, memory_order_relaxed);
        if (note->told && s->notes->names && note->told->now.stmt == note->have->stmt) {
            note->told->now.is_stale = true;
        }
    } else if (note->does & PRT_NOTE_USE && prt_str_eqz(e.sqlstate, "26000") && note->have->is_in &&
               note->have->state == PRT_HAVE_OK) {
        /* deallocated behind our back: what else is gone nobody knows */
        prt_haves_forget(s, UINT64_MAX);
        s->is_suspect = true;
    } else if (note->does & PRT_NOTE_PARSE && prt_str_eqz(e.sqlstate, "42P05")) {
        s->is_suspect = true;
    }
}

/* The error with other bytes in place of n at body[at]. */
static void put_changed(struct down *d, size_t at, size_t n, struct prt_str with)
{
    const struct prt_msg *m = d->m;
    size_t back = m->len - at - n;
    uint8_t head[5] = {'E'};

    prt_put32(head + 1, (uint32_t)(at + with.n + back) + 4);
    (void)prt_buf_add(d->to, head, sizeof head);
    (void)prt_buf_add(d->to, m->body, at);
    (void)prt_buf_add(d->to, with.p, with.n);
    (void)prt_buf_add(d->to, m->body + at + n, back);
}

/* Errors quote the statement's name ("... requires 2 parameters"): give the client its own. ours:
 * with the quotes. false: it is not in there. */
static bool put_renamed(struct down *d, struct prt_str ours, struct prt_str theirs)
{
    const struct prt_msg *m = d->m;
    const uint8_t *at = m->have == m->len ? memmem(m->body, m->len, ours.p, ours.n) : NULL;

    if (!at) {
        return false;
    }
    put_changed(d, (size_t)(at - m->body), ours.n, theirs);
    return true;
}

static bool put_quoted(struct down *d, struct prt_str ours, struct prt_str theirs)
{
    char a[64], b[PRT_NAME_MAX + 3];
    int n = snprintf(a, sizeof a, "\"" PRT_STR_FMT "\"", PRT_STR_ARG(ours));
    int k = snprintf(b, sizeof b, "\"" PRT_STR_FMT "\"", PRT_STR_ARG(theirs));

    return put_renamed(d, (struct prt_str){a, (size_t)n}, (struct prt_str){b, (size_t)k});
}

/* Where the field of an ErrorResponse begins, behind its letter; its end, the NUL, in *end. NULL:
 * it has none, or is not whole. */
static const uint8_t *field_of(const struct prt_msg *m, uint8_t letter, const uint8_t **end)
{
    const uint8_t *p = m->body, *stop = m->body + m->have;

    while (m->have == m->len && p < stop && *p) {
        *end = memchr(p, 0, (size_t)(stop - p));
        if (!*end) {
            return NULL;
        }
        if (*p == letter) {
            return p + 1;
        }
        p = *end + 1;
    }
    return NULL;
}

/* The place of an error in the client's own text, from that in the one with "UN" in it. Both count
 * from 1. */
static unsigned long place_of(const struct prt_effects *e, unsigned long at)
{
    const struct prt_sql_stmt *st;
    unsigned n = 1, more = 0;

    for (unsigned i = 0; i < n; i++) {
        st = prt_effects_listen(e, i, &n);
        more += st && at > st->at + more + 2 ? 2 : 0;
    }
    return at - more;
}

static enum prt_down_rc tell_place(struct down *d, const struct prt_note *note)
{
    const uint8_t *end, *place = field_of(d->m, 'P', &end);
    char ours[24], theirs[24];
    int n, k;

    if (!place || (size_t)(end - place) > 10) {
        return PRT_DOWN_PASS;
    }
    n = snprintf(ours, sizeof ours, "P%.*s", (int)(end - place), (const char *)place);
    k = snprintf(theirs, sizeof theirs, "P%lu",
                 place_of(note->effects, strtoul(ours + 1, NULL, 10)));
    put_changed(d, (size_t)(place - 1 - d->m->body), (size_t)n,
                (struct prt_str){theirs, (size_t)k});
    return PRT_DOWN_REPLACE;
}

static enum prt_down_rc tell(struct down *d, const struct prt_note *note)
{
    if (note && note->why && d->ev & PRT_EV_REFUSED) {
        prt_put_denial(d->to, note->why);
        return PRT_DOWN_REPLACE;
    }
    if (note && note->does & PRT_NOTE_UNLISTENS) {
        return tell_place(d, note);
    }
    if (note && note->told && d->s->notes->names &&
        put_quoted(d, note->have->stmt->server_name, note->told->node.key)) {
        return PRT_DOWN_REPLACE;
    }
    if (note && note->does & PRT_NOTE_FOREIGN &&
        put_renamed(d, PRT_STR("\"?" PRT_OUR_PREFIX), PRT_STR("\"" PRT_OUR_PREFIX))) {
        return PRT_DOWN_REPLACE;
    }
    return PRT_DOWN_PASS;
}

PRT_COLD static enum prt_down_rc failed(struct down *d)
{
    struct prt_stmts *s = d->s;
    struct prt_note *note = answered(s);
    unsigned gone = s->txn->noted_gone;
    enum prt_down_rc rc = tell(d, note);

    if (d->session && !(d->ev & PRT_EV_SWALLOW)) {
        prt_session_failed(d->session, note ? note->effects : NULL, note ? note->nth : 0);
    }
    if (note && note->have && !(d->ev & PRT_EV_REFUSED)) {
        learn(s, note, d->m);
    }
    if (note && note->does & PRT_NOTE_QUERY) {
        if (!note->change.is_unnamed) { /* that a failed Query ends all the same */
            prt_change_undo(s, note, true);
        }
    } else if (gone) {
        undo(s, gone, note != NULL);
    }
    return rc;
}

/* ---- tags ---- */
static bool forgets_all(struct prt_str tag)
{
    if (tag.n == 0 || tag.p[0] != 'D') {
        return false;
    }
    return prt_str_eqz(tag, "DEALLOCATE ALL") || prt_str_eqz(tag, "DISCARD ALL");
}

/* What was prepared before that request is gone, here and in the client's map. */
static void forget(struct prt_stmts *s, const struct prt_note *note)
{
    uint64_t seq = note ? note->seq : UINT64_MAX;

    if (s->notes && s->notes->names) {
        prt_names_forget(s->notes->names, seq);
    }
    prt_haves_forget(s, seq);
    s->is_suspect = false;
}

static bool begins_with(struct prt_str s, struct prt_str with)
{
    return s.n >= with.n && memcmp(s.p, with.p, with.n) == 0;
}

/* What servers parsed before may give other rows now. */
static void note_ddl(struct prt_stmts *s, struct prt_str tag)
{
    if (begins_with(tag, PRT_STR("ALTER ")) || begins_with(tag, PRT_STR("CREATE ")) ||
        begins_with(tag, PRT_STR("DROP "))) {
        s->has_ddl = true;
    }
    if (s->has_ddl) {
        prt_stmt_schema_changed();
    }
}

static void put_tag(struct prt_buf *b, const char *tag)
{
    uint8_t head[5] = {'C'};
    size_t n = strlen(tag) + 1;

    prt_put32(head + 1, (uint32_t)n + 4);
    (void)prt_buf_add(b, head, sizeof head);
    (void)prt_buf_add(b, tag, n);
}

/* The tag that the client must see; NULL: the server's own. */
static const char *tag_instead(const struct prt_note *note, struct prt_str tag)
{
    unsigned n;

    if (!note || !(note->does & PRT_NOTE_UNLISTENS)) {
        return note ? note->tag : NULL;
    }
    return prt_str_eqz(tag, "UNLISTEN") && prt_effects_listen(note->effects, note->nth, &n)
               ? "LISTEN"
               : NULL;
}

static enum prt_down_rc completed(struct down *d, struct prt_str tag)
{
    struct prt_stmts *s = d->s;
    struct prt_note *note = answered(s);
    const char *instead = tag_instead(note, tag);

    if (instead) {
        tag = prt_str_of(instead);
    }
    if (d->session) {
        prt_session_complete(d->session, note ? note->effects : NULL, note ? note->nth : 0, tag);
    }
    if (note) {
        note->nth++;
    }
    note_ddl(s, tag);
    if (!instead && forgets_all(tag)) {
        forget(s, note);
    }
    if (s->txn->noted_gone) {
        finish(s);
    }
    if (!instead) {
        return PRT_DOWN_PASS;
    }
    put_tag(d->to, instead);
    return PRT_DOWN_REPLACE;
}

static void ready(struct prt_stmts *s, struct prt_session *session, uint32_t ev)
{
    if (s->txn->noted_gone) {
        finish(s);
    }
    if (session && !(ev & PRT_EV_SWALLOW)) {
        prt_session_ready(session, s->txn->status);
    }
    if (s->has_ddl && s->txn->status == 'I') { /* committed */
        prt_stmt_schema_changed();
        s->has_ddl = false;
    }
    if (s->portals && prt_txn_may_release(s->txn)) {
        prt_portals_clear(s); /* they ended with the transaction */
    }
}

/* What answers that carry nothing else settle. */
static void answer(struct prt_stmts *s, struct prt_session *session, const struct prt_msg *m)
{
    struct prt_note *note = answered(s);

    if (m->type == 's' && session) { /* it may never come to a tag, but what it did is done */
        prt_session_complete(session, note ? note->effects : NULL, 0, PRT_STR(""));
    }
    if (!s->txn->noted_gone) {
        return;
    }
    if (note && note->does & PRT_NOTE_SHAPE && (m->type == 'T' || m->type == 'n')) {
        told_shape(s, note, m);
    }
    finish(s);
}

static enum prt_down_rc outcome(struct down *d)
{
    struct prt_str tag = {(const char *)d->m->body, d->m->len - 1};

    if (d->ev & PRT_EV_ERROR) {
        return failed(d);
    }
    if (d->ev & PRT_EV_SWALLOW ||
        (!d->s->txn->was_noted && !d->s->has_ddl && prt_tag_counts_rows(tag))) {
        return PRT_DOWN_PASS; /* of nothing that was noted */
    }
    return completed(d, tag);
}

/* A row tells what its statement has set. */
static void row(struct prt_stmts *s, struct prt_session *session, const struct prt_msg *m,
                uint32_t ev)
{
    const struct prt_note *note;

    if (!s->rows || !session || ev || !prt_txn_is_noted(s->txn)) {
        return;
    }
    note = prt_note_at(s->notes, s->notes->first);
    if (note->does & PRT_NOTE_ROWS) {
        prt_session_row(session, note->effects, note->nth, m);
    }
}

enum prt_down_rc prt_stmts_server(struct prt_stmts *s, struct prt_names *names,
                                  struct prt_session *session, const struct prt_msg *m, uint32_t ev,
                                  struct prt_buf *to_client)
{
    if (ev & (PRT_EV_VIOLATION | PRT_EV_FATAL | PRT_EV_ASYNC | PRT_EV_PARAM) || s->txn->is_dead) {
        return PRT_DOWN_PASS; /* nothing was answered, or nothing matters any more */
    }
    if (m->type == 'D') {
        row(s, session, m, ev);
        return PRT_DOWN_PASS;
    }
    if (s->notes) {
        s->notes->names = names;
    }
    if (ev & (PRT_EV_ERROR | PRT_EV_TAG)) {
        return outcome(&(struct down){s, session, m, ev, to_client});
    }
    if (ev & PRT_EV_READY) {
        ready(s, session, ev);
    } else {
        answer(s, session, m);
    }
    return PRT_DOWN_PASS;
}

bool prt_stmts_local(struct prt_stmts *s, struct prt_buf *to_client)
{
    bool any = false;

    while (prt_txn_take_local(s->txn)) {
        const struct prt_note *note = prt_note_at(s->notes, s->notes->first);
        const uint8_t done[5] = {note->answer, 0, 0, 0, 4};
        (void)prt_buf_add(to_client, done, sizeof done);
        finish(s);
        any = true;
    }
    return any;
}
