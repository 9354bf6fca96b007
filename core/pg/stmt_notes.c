/* stmt_notes.c - what the answers that are due will settle; a server's statements; portals.
 * Owns: notes, the statements of each server, portals of the lease.   Threads: the server's worker.
 * Idea: what a request changes is changed when it is sent, so that a pipeline sees its own effects,
 * and a note beside its place in the queue knows how to take it back. Notes have numbers, not
 * addresses: their ring grows to what a client's pipelines need, and is used again. */
#include "base/hash.h"
#include "pg/stmt_int.h"

#include <stdlib.h>
#include <string.h>

#define RING_MIN 16u

/* ---- the ring ---- */
struct prt_note *prt_note_at(struct prt_notes *n, uint64_t number)
{
    prt_assert(number >= n->first && number - n->first < n->count);
    return &n->ring[number & (n->cap - 1)];
}

uint64_t prt_note_number(const struct prt_notes *n, const struct prt_note *note)
{
    uint64_t from = n->first & (n->cap - 1), at = (uint64_t)(note - n->ring);

    return n->first + ((at - from) & (n->cap - 1));
}

static bool grow(struct prt_notes *n, uint32_t need)
{
    uint32_t cap = n->cap ? n->cap : RING_MIN;
    struct prt_note *ring;

    while (cap < need) {
        cap *= 2;
    }
    ring = calloc(cap, sizeof *ring);
    if (!ring) {
        return false;
    }
    for (uint64_t i = n->first; i < n->first + n->count; i++) {
        ring[i & (cap - 1)] = n->ring[i & (n->cap - 1)];
    }
    free(n->ring);
    n->ring = ring;
    n->cap = cap;
    return true;
}

bool prt_notes_reserve(struct prt_stmts *s, unsigned n)
{
    if (!s->notes) {
        s->notes = calloc(1, sizeof *s->notes);
        if (!s->notes) {
            return false;
        }
        s->notes->first = 1;
        s->notes->lease = 1;
    }
    return s->notes->count + n <= s->notes->cap || grow(s->notes, s->notes->count + n);
}

struct prt_note *prt_note_add(struct prt_stmts *s, unsigned does)
{
    struct prt_notes *n = s->notes;
    struct prt_note *note;

    prt_assert(n->count < n->cap);
    if (!(does & PRT_NOTE_LOCAL)) { /* that one is noted as it is */
        prt_txn_note(s->txn);
    }
    note = &n->ring[(n->first + n->count++) & (n->cap - 1)];
    memset(note, 0, sizeof *note);
    note->does = (uint16_t)does;
    note->batch = s->batch;
    note->seq = ++n->names->seq;
    s->barriers += does & PRT_NOTE_BARRIER ? 1 : 0;
    s->rows += does & PRT_NOTE_ROWS ? 1 : 0;
    return note;
}

static void drop_change(struct prt_notes *n, struct prt_change *c)
{
    prt_stmt_unref(c->before.stmt);
    prt_unnamed_drop(n->names, &c->un_before);
    if (c->name && n->names) {
        prt_name_unref(n->names, c->name);
    }
    *c = (struct prt_change){0};
}

static void have_unhold(struct prt_have *h)
{
    prt_assert(h->refs > 0);
    if (--h->refs == 0 && !h->is_in) {
        prt_stmt_unref(h->stmt);
        free(h);
    }
}

void prt_notes_pop(struct prt_stmts *s)
{
    struct prt_notes *n = s->notes;
    struct prt_note *note = prt_note_at(n, n->first);

    s->barriers -= note->does & PRT_NOTE_BARRIER ? 1 : 0;
    s->rows -= note->does & PRT_NOTE_ROWS ? 1 : 0;
    if (note->have) {
        have_unhold(note->have);
    }
    if (note->told && n->names) {
        prt_name_unref(n->names, note->told);
    }
    prt_effects_unref(note->effects);
    prt_effects_unref(note->run_before.effects);
    drop_change(n, &note->change);
    n->first++;
    n->count--;
}

/* ---- changes ---- */
/* The newest unanswered change of the same thing. */
static uint64_t *pend_of(struct prt_notes *n, struct prt_change *c)
{
    return c->is_unnamed ? &n->names->un_pend : &c->name->pend;
}

static void begin_change(struct prt_notes *n, struct prt_note *note, enum prt_change_kind kind)
{
    uint64_t number = prt_note_number(n, note), *pend = pend_of(n, &note->change);

    note->change.kind = (uint8_t)kind;
    note->change.prev = *pend;
    if (*pend) {
        prt_note_at(n, *pend)->change.later = number;
    }
    *pend = number;
}

void prt_change_name(struct prt_stmts *s, struct prt_note *note, enum prt_change_kind kind,
                     struct prt_name *name, struct prt_value v)
{
    struct prt_names *names = s->notes->names;

    name->refs++;
    note->change.name = name;
    note->change.before = name->now;
    if (name->now.stmt) {
        (void)prt_stmt_ref(name->now.stmt);
    }
    begin_change(s->notes, note, kind);
    prt_name_set(names, name, v);
}

void prt_change_unnamed(struct prt_stmts *s, struct prt_note *note, enum prt_change_kind kind,
                        struct prt_unnamed un)
{
    struct prt_names *names = s->notes->names;

    note->change.is_unnamed = true;
    note->change.un_before = names->un;
    names->un = un;
    begin_change(s->notes, note, kind);
}

void prt_change_done(struct prt_stmts *s, struct prt_note *note)
{
    struct prt_change *c = &note->change;

    if (c->kind == PRT_CHANGE_NONE || c->is_settled || !s->notes->names) {
        return;
    }
    c->is_settled = true;
    uint64_t *pend = pend_of(s->notes, c);
    if (*pend == prt_note_number(s->notes, note)) {
        *pend = 0;
    }
}

/* What a failed request leaves of the unnamed statement: a Parse destroys the old one first. Where
 * it was the pooler's Parse, the client still has what it had. */
static void unnamed_after_failure(struct prt_names *names, struct prt_change *c)
{
    if (!c->is_ours) {
        prt_unnamed_drop(names, &c->un_before);
    }
    c->un_before.is_mine = !c->is_ours;
}

/* A later change stands, or all is as before. */
static void put_back(struct prt_notes *n, struct prt_change *c, struct prt_change *later)
{
    if (c->is_unnamed) {
        struct prt_unnamed *to = later ? &later->un_before : &n->names->un;
        prt_unnamed_drop(n->names, to);
        *to = c->un_before;
        c->un_before = (struct prt_unnamed){0};
        return;
    }
    if (later) {
        prt_stmt_unref(later->before.stmt);
        later->before = c->before;
    } else {
        prt_name_set(n->names, c->name, c->before);
    }
    c->before = (struct prt_value){0};
}

void prt_change_undo(struct prt_stmts *s, struct prt_note *note, bool is_first)
{
    struct prt_notes *n = s->notes;
    struct prt_change *c = &note->change, *later = NULL;
    uint64_t *pend;

    if (c->kind == PRT_CHANGE_NONE || c->is_settled || !n->names) {
        return;
    }
    c->is_settled = true;
    if (is_first && c->is_unnamed) {
        unnamed_after_failure(n->names, c);
    }
    for (uint64_t at = c->later; at; at = later->later) {
        later = &prt_note_at(n, at)->change;
        if (!later->is_settled) {
            put_back(n, c, later); /* a later one stands; this is what it would return to */
            return;
        }
    }
    put_back(n, c, NULL);
    pend = pend_of(n, c);
    *pend = c->prev >= n->first && !prt_note_at(n, c->prev)->change.is_settled ? c->prev : 0;
}

/* ---- a server's statements ---- */
static struct prt_str id_key(const uint64_t *id)
{
    return (struct prt_str){(const char *)id, sizeof *id};
}

struct prt_have *prt_have_find(const struct prt_stmts *s, uint64_t id)
{
    /* ids are counted here, so they are their own hash */
    struct prt_map_node *at = prt_map_get_hashed(&s->by_id, id, id_key(&id));

    return at ? prt_container_of(at, struct prt_have, node) : NULL;
}

struct prt_have *prt_have_new(struct prt_stmts *s, struct prt_stmt *st)
{
    struct prt_have *h = calloc(1, sizeof *h);

    if (!h) {
        return NULL;
    }
    h->id = st->id;
    if (!prt_map_put_hashed(&s->by_id, &h->node, h->id, id_key(&h->id))) {
        free(h);
        return NULL;
    }
    h->stmt = prt_stmt_ref(st);
    h->is_in = true;
    h->state = PRT_HAVE_MAYBE;
    prt_evict_add(&s->order, &h->evict);
    return h;
}

void prt_have_hold(struct prt_note *note, struct prt_have *h)
{
    note->have = h;
    h->refs++;
}

void prt_have_del(struct prt_stmts *s, struct prt_have *h)
{
    if (!h->is_in) {
        return;
    }
    if (h->state != PRT_HAVE_CLOSING) { /* then it is out of the order already */
        prt_evict_del(&s->order, &h->evict);
    }
    prt_map_del(&s->by_id, &h->node);
    h->is_in = false;
    if (h->refs == 0) {
        prt_stmt_unref(h->stmt);
        free(h);
    }
}

void prt_haves_forget(struct prt_stmts *s, uint64_t seq)
{
    struct prt_map_node *at, *next;

    for (at = prt_map_next(&s->by_id, NULL); at; at = next) {
        next = prt_map_next(&s->by_id, at);
        struct prt_have *h = prt_container_of(at, struct prt_have, node);
        if (!s->notes || h->lease != s->notes->lease || h->seq <= seq) {
            prt_have_del(s, h);
        }
    }
}

/* ---- portals ---- */
struct prt_effects *prt_effects_opaque(void)
{
    bool failed = false;

    return prt_effects_of(PRT_STR("DO $$$$;DEALLOCATE ALL"), true, &failed);
}

static void clear_run(struct prt_run *run)
{
    prt_effects_unref(run->effects);
    *run = (struct prt_run){0};
}

void prt_portals_clear(struct prt_stmts *s)
{
    struct prt_portals *ps = s->portals;

    for (unsigned i = 0; ps && i < ps->count; i++) {
        clear_run(&ps->at[i].run);
        ps->at[i].pend = 0;
    }
    if (ps) {
        ps->count = 1;
        ps->is_unknown = false;
    }
}

static struct prt_str cut(struct prt_str name)
{
    return name.n > PRT_NAME_MAX ? (struct prt_str){name.p, PRT_NAME_MAX} : name;
}

static struct prt_portal *find(struct prt_portals *ps, struct prt_str name)
{
    for (unsigned i = 0; i < ps->count; i++) {
        if (prt_str_eq(cut(name), (struct prt_str){ps->at[i].name, ps->at[i].n})) {
            return &ps->at[i];
        }
    }
    return NULL;
}

static bool make_portals(struct prt_stmts *s)
{
    s->portals = calloc(1, sizeof *s->portals);
    if (!s->portals) {
        return false;
    }
    s->portals->count = 1;
    s->portals->opaque.effects = prt_effects_opaque();
    if (!s->portals->opaque.effects) {
        free(s->portals);
        s->portals = NULL;
    }
    return s->portals;
}

bool prt_portal_look(struct prt_stmts *s, struct prt_str name, const struct prt_effects *e,
                     bool *needs, bool *waits)
{
    struct prt_portal *p;

    *needs = *waits = false;
    if (!s->portals && (!e || !make_portals(s))) {
        return !e;
    }
    p = find(s->portals, name);
    *needs = e || (p && (p->run.effects || p->pend));
    *waits = *needs && p && p->pend && prt_note_at(s->notes, p->pend)->batch != s->batch;
    return true;
}

void prt_portal_bind(struct prt_stmts *s, struct prt_note *note, struct prt_str name,
                     struct prt_run run)
{
    struct prt_portals *ps = s->portals;
    struct prt_portal *p = find(ps, name);

    if (!p && ps->count == PRT_PORTALS) {
        ps->is_unknown = true;
        return;
    }
    if (!p) {
        name = cut(name);
        p = &ps->at[ps->count++];
        p->n = (uint8_t)name.n;
        memcpy(p->name, name.p, name.n);
    }
    note->portal = (uint8_t)(p - ps->at + 1);
    note->run_before = p->run;
    note->portal_prev = p->pend;
    run.effects = prt_effects_ref(run.effects);
    p->run = run;
    p->pend = prt_note_number(s->notes, note);
}

void prt_portal_done(struct prt_stmts *s, struct prt_note *note)
{
    if (note->portal) {
        struct prt_portal *p = &s->portals->at[note->portal - 1];
        if (p->pend == prt_note_number(s->notes, note)) {
            p->pend = 0;
        }
    }
}

void prt_portal_undo(struct prt_stmts *s, struct prt_note *note)
{
    if (note->portal) {
        struct prt_portal *p = &s->portals->at[note->portal - 1];
        clear_run(&p->run);
        p->run = note->run_before;
        note->run_before = (struct prt_run){0};
        p->pend = note->portal_prev >= s->notes->first ? note->portal_prev : 0;
    }
}

struct prt_run *prt_portal_find(struct prt_stmts *s, struct prt_str name)
{
    struct prt_portal *p = s->portals ? find(s->portals, name) : NULL;

    if (p) {
        return p->run.effects ? &p->run : NULL;
    }
    return s->portals && s->portals->is_unknown ? &s->portals->opaque : NULL;
}
