/* stmt_up.c - the steps that messages on their way up are made of.
 * Owns: nothing.   Threads: the worker of client and server.
 * Idea: whatever is put into the stream is counted and, where an answer will settle something,
 * noted in the same step, so that queue, notes and bytes cannot come apart. */
#include "pg/stmt_int.h"

#include <string.h>

/* ---- building messages ---- */
uint8_t *prt_up_put_header(struct prt_buf *b, uint8_t type, size_t body, size_t here)
{
    uint8_t *w = prt_buf_room(b, here + 5);

    if (!w) {
        return NULL;
    }
    w[0] = type;
    prt_put32(w + 1, (uint32_t)body + 4);
    b->n += (uint32_t)(here + 5);
    return w + 5;
}

uint8_t *prt_up_put_string(uint8_t *w, struct prt_str s)
{
    if (s.n) {
        memcpy(w, s.p, s.n);
    }
    w[s.n] = 0;
    return w + s.n + 1;
}

void prt_up_put_parse(struct prt_buf *b, struct prt_str name, struct prt_str rest)
{
    uint8_t *w = prt_up_put_header(b, 'P', name.n + 1 + rest.n, name.n + 1 + rest.n);

    if (w) {
        w = prt_up_put_string(w, name);
        memcpy(w, rest.p, rest.n);
    }
}

/* A Bind of the unnamed portal to a statement that is not there: fails in any extended request's
 * place, and leaves everything as it is. */
static void put_bind(struct prt_buf *b, struct prt_str name)
{
    uint8_t *w = prt_up_put_header(b, 'B', name.n + 8, name.n + 8);

    if (w) {
        *w = 0;
        memset(prt_up_put_string(w + 1, name), 0, 6);
    }
}

/* ---- steps ---- */
enum prt_up_rc prt_up_hold(struct prt_up *u)
{
    if (!prt_txn_ends_itself(u->s->txn)) {
        (void)prt_buf_add(u->out, "H\0\0\0\4", 5);
    }
    return PRT_UP_WAIT;
}

/* Count the client's own message. There is room, and nothing is skipped. */
void prt_up_push(struct prt_up *u)
{
    enum prt_txn_rc rc = prt_txn_client(u->s->txn, u->m);

    prt_assert(rc == PRT_TXN_FORWARD);
}

enum prt_up_rc prt_up_as_it_is(struct prt_up *u)
{
    prt_up_push(u);
    return PRT_UP_SEND;
}

struct prt_names *prt_up_names(const struct prt_up *u)
{
    return *u->c->names;
}

/* Notes are about to be made. */
bool prt_up_prepare(struct prt_up *u)
{
    if (!*u->c->names) {
        *u->c->names = prt_names_new();
    }
    if (!*u->c->names || !prt_notes_reserve(u->s, PRT_INJECTED_MAX + 1)) {
        return false;
    }
    u->s->notes->names = *u->c->names;
    return true;
}

void prt_up_inject(struct prt_up *u, uint8_t kind)
{
    bool ok = prt_txn_inject(u->s->txn, kind, kind == 'C' ? 'S' : 0);

    prt_assert(ok);
}

void prt_up_inject_close(struct prt_up *u, struct prt_str name)
{
    prt_up_inject(u, 'C');
    prt_put_close(u->out, 'S', name);
}

/* The server is made to fail at this place. why NULL: what it says itself is what the client must
 * hear. */
struct prt_note *prt_up_refuse(struct prt_up *u, const struct prt_denial *why, struct prt_str name)
{
    struct prt_note *note;

    prt_up_push(u);
    prt_txn_mark_refused(u->s->txn);
    note = prt_note_add(u->s, 0);
    note->why = why;
    if (u->m->type == 'Q') {
        prt_put_query(u->out, PRT_STR("refused"));
        if (prt_up_names(u)->un.exists || prt_up_names(u)->un_pend) {
            prt_change_unnamed(u->s, note, PRT_CHANGE_CLOSE, (struct prt_unnamed){.is_mine = true});
        }
    } else {
        put_bind(u->out, name);
    }
    *u->skip = u->m->size;
    return note;
}

enum prt_up_rc prt_up_deny(struct prt_up *u, const struct prt_denial *why)
{
    if (!prt_up_prepare(u)) {
        return PRT_UP_NO_MEMORY;
    }
    (void)prt_up_refuse(u, why, PRT_STR(PRT_OUR_PREFIX "0"));
    return PRT_UP_SEND;
}

/* Our names are not for clients. */
bool prt_name_is_ours(struct prt_str name)
{
    return name.n >= sizeof PRT_OUR_PREFIX - 1 &&
           memcmp(name.p, PRT_OUR_PREFIX, sizeof PRT_OUR_PREFIX - 1) == 0;
}

/* The client's own name as a server may hear it, in room[64]. */
struct prt_str prt_name_foreign(struct prt_str name, char room[PRT_NAME_MAX + 1])
{
    size_t n = 0;

    if (!prt_name_is_ours(name)) {
        return name;
    }
    room[n++] = '?';
    for (size_t i = 0; i < name.n && n < PRT_NAME_MAX; i++) {
        room[n++] = name.p[i];
    }
    return (struct prt_str){room, n};
}

/* ---- what must be known first ---- */
/* Has every outcome in which the next request runs this statement on the server? */
bool prt_have_is_sure(const struct prt_stmts *s, const struct prt_have *h)
{
    /* relaxed: an older value is what a moment earlier was right */
    return h && h->generation == atomic_load_explicit(&h->stmt->generation, memory_order_relaxed) &&
           (h->state == PRT_HAVE_OK || (h->state == PRT_HAVE_PENDING && h->batch == s->batch));
}

/* Does the decision hang on an answer of an earlier batch? `uses`: Bind or Describe, which may go
 * when they share the fate of the name's own Parse. */
bool prt_up_must_wait(struct prt_up *u, const struct prt_name *name, bool uses)
{
    struct prt_stmts *s = u->s;
    const struct prt_note *p;
    const struct prt_have *h;

    if (s->barriers) {
        return true;
    }
    if (!name || !name->pend) {
        return false;
    }
    p = prt_note_at(s->notes, name->pend);
    if (p->batch == s->batch) {
        return false;
    }
    if (!uses || p->change.kind != PRT_CHANGE_PARSE || !name->now.stmt || p->change.prev ||
        p->change.before.stmt) {
        return true; /* something else may come back */
    }
    h = prt_have_find(s, name->now.stmt->id);
    return !h || h->by != name->pend || (p->does & PRT_NOTE_WAS_THERE);
}

/* ---- parsing on the server ---- */
static bool may_go(const struct prt_evict_node *node, void *ctx)
{
    const struct prt_stmts *s = ctx;
    const char *at = (const char *)node - offsetof(struct prt_have, evict);
    const struct prt_have *h = (const struct prt_have *)(const void *)at;

    return h->state != PRT_HAVE_PENDING && h->used != s->batch;
}

/* At most two, so that a lower limit is reached in time and one message never costs many. */
static void make_room(struct prt_up *u)
{
    struct prt_stmts *s = u->s;
    size_t limit = s->limit ? s->limit : 1;

    for (int i = 0; i < 2 && s->order.n >= limit; i++) {
        struct prt_evict_node *node = prt_evict_victim(&s->order, may_go, s);
        if (!node) {
            return;
        }
        struct prt_have *h = prt_container_of(node, struct prt_have, evict);
        prt_up_inject_close(u, h->stmt->server_name);
        struct prt_note *note = prt_note_add(s, PRT_NOTE_EVICT);
        prt_have_hold(note, h);
        note->prior = h->state;
        prt_evict_del(&s->order, &h->evict);
        h->state = PRT_HAVE_CLOSING;
        h->by = prt_note_number(s->notes, note);
        s->n.evictions++;
    }
}

/* Bring st to the server, instead of the client's Parse or in front of its message (`injects`).
 * *note: of the Parse. NULL: no memory. */
struct prt_have *prt_up_parse_there(struct prt_up *u, struct prt_stmt *st, bool injects,
                                    struct prt_note **note)
{
    struct prt_stmts *s = u->s;
    struct prt_have *h = prt_have_find(s, st->id);
    unsigned was_there = h || s->is_suspect ? PRT_NOTE_WAS_THERE : 0;

    if (!h) {
        make_room(u);
        h = prt_have_new(s, st);
        if (!h) {
            return NULL;
        }
    } else if (h->state == PRT_HAVE_CLOSING) {
        prt_evict_add(&s->order, &h->evict);
    }
    if (was_there) {
        prt_up_inject_close(u, st->server_name);
    }
    if (injects) {
        prt_up_inject(u, 'P');
    } else {
        prt_up_push(u);
    }
    prt_up_put_parse(u->out, st->server_name, st->rest);
    *note = prt_note_add(s, PRT_NOTE_PARSE | was_there);
    prt_have_hold(*note, h);
    h->state = PRT_HAVE_PENDING;
    h->by = prt_note_number(s->notes, *note);
    h->generation = atomic_load_explicit(&st->generation, memory_order_relaxed);
    h->schema = prt_stmt_schema();
    h->batch = h->used = s->batch;
    h->seq = (*note)->seq;
    h->lease = s->notes->lease;
    h->shape = h->asked = 0;
    h->is_fresh = true;
    s->n.misses++;
    return h;
}

void prt_have_count_use(struct prt_stmts *s, struct prt_have *h)
{
    prt_evict_touch(&s->order, &h->evict);
    h->used = s->batch;
    s->n.hits += !h->is_fresh;
    h->is_fresh = false;
}
