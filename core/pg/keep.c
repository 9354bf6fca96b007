/* keep.c - what is kept of a session: as committed, as it is now, and as it was at each savepoint.
 * Owns: references to journals and channels, savepoints, names of cursors and SQL statements.
 * Threads: one user at a time.
 * Idea: two copies of everything that a transaction can undo, and one more per savepoint; what no
 * rollback undoes is set in both. Savepoints and names are bounded: where the bound is passed the
 * state lasts longer than it would have to, or is OPAQUE, never the other way round. */
#include "pg/session_int.h"

#include <stdlib.h>
#include <string.h>

#define SAVEPOINTS 64
/* longer names are cut by PostgreSQL: they are not compared */
#define NAME_MAX PRT_NAME_MAX
#define NAMES 16
#define OPAQUE PRT_STATE_BIT(OPAQUE)
#define SURVIVES PRT_STATES_SURVIVE

/* Names of things that must all be gone before a state ends. Never too few. */
struct names {
    uint8_t n;
    bool is_more;       /* others, that did not fit or have no name that could be read */
    bool is_new[NAMES]; /* since the last commit: gone with a rollback */
    uint8_t len[NAMES];
    char name[NAMES][NAME_MAX];
};
struct point {
    const struct prt_params *journal, *channels;
    uint16_t dirty;
    uint8_t roles, len;
    uint32_t times; /* that many savepoints in a row, of this name and with the same state */
    char name[NAME_MAX];
};
struct prt_savepoints {
    struct names held, prepared;
    unsigned n, cap;
    bool has_lost;   /* there are more, below p[0] */
    bool is_changed; /* the state at one of those may be another one than at the last commit */
    bool is_unnamed; /* the name of one could not be read: any name may mean it */
    struct point *p;
};

/* ---- the two copies ---- */
void prt_keep_assign(const struct prt_params **to, const struct prt_params *from)
{
    if (*to != from) {
        (void)prt_params_ref(from);
        prt_params_unref(*to);
        *to = from;
    }
}

void prt_keep_always(struct prt_session *s, unsigned states)
{
    s->dirty |= (uint16_t)states;
    s->dirty_settled |= (uint16_t)states;
}

static struct prt_savepoints *points(struct prt_session *s)
{
    if (!s->points) {
        s->points = calloc(1, sizeof *s->points);
    }
    return s->points;
}

static void drop_points(struct prt_savepoints *p, unsigned n)
{
    while (p->n > n) {
        struct point *last = &p->p[--p->n];
        prt_params_unref(last->journal);
        prt_params_unref(last->channels);
    }
}

static void end_points(struct prt_session *s)
{
    if (s->points) {
        drop_points(s->points, 0);
        s->points->has_lost = s->points->is_changed = s->points->is_unnamed = false;
    }
}

/* The bit of HOLD and the names agree: without one there are none, and without a name no bit. */
static void fit_held(struct prt_session *s)
{
    struct names *held = s->points ? &s->points->held : NULL;

    if (!held) {
        return;
    }
    if (!(s->dirty & PRT_STATE_BIT(HOLD))) {
        held->n = 0;
        held->is_more = false;
    } else if (held->n == 0 && !held->is_more) {
        s->dirty &= (uint16_t)~PRT_STATE_BIT(HOLD);
    }
}

void prt_keep_settle(struct prt_session *s)
{
    prt_keep_assign(&s->settled, s->now);
    prt_keep_assign(&s->channels_settled, s->channels);
    s->dirty_settled = s->dirty;
    s->roles_settled = s->roles;
    if (s->points) {
        memset(s->points->held.is_new, 0, sizeof s->points->held.is_new);
    }
    end_points(s);
}

static void drop_name(struct names *l, unsigned i)
{
    l->n--;
    l->is_new[i] = l->is_new[l->n];
    l->len[i] = l->len[l->n];
    memcpy(l->name[i], l->name[l->n], NAME_MAX);
}

void prt_keep_roll_back(struct prt_session *s)
{
    prt_keep_assign(&s->now, s->settled);
    prt_keep_assign(&s->channels, s->channels_settled);
    s->dirty = s->dirty_settled;
    s->roles = s->roles_settled;
    if (s->points) {
        struct names *held = &s->points->held;
        for (unsigned i = held->n; i-- > 0;) {
            if (held->is_new[i]) {
                drop_name(held, i);
            }
        }
    }
    fit_held(s);
    end_points(s);
}

bool prt_keep_is_provisional(const struct prt_session *s)
{
    return s->now != s->settled || s->channels != s->channels_settled ||
           s->dirty != s->dirty_settled || s->roles != s->roles_settled;
}

/* ---- savepoints ---- */
static bool is_same_name(const char *p, size_t len, struct prt_str name)
{
    return len == name.n && memcmp(p, name.p, name.n) == 0;
}

static bool is_as_now(const struct prt_session *s, const struct point *p)
{
    return p->journal == s->now && p->channels == s->channels && p->dirty == s->dirty &&
           p->roles == s->roles;
}

static bool is_as_settled(const struct prt_session *s, const struct point *p)
{
    return p->journal == s->settled && p->channels == s->channels_settled &&
           (p->dirty & ~SURVIVES) == (s->dirty_settled & ~SURVIVES) && p->roles == s->roles_settled;
}

/* A place at the top; the lowest one is given up when there is none. NULL: no memory. */
static struct point *new_point(struct prt_session *s)
{
    struct prt_savepoints *l = s->points;

    if (l->n == SAVEPOINTS) {
        prt_assert(l->p);
        l->has_lost = true;
        l->is_changed |= !is_as_settled(s, &l->p[0]);
        prt_params_unref(l->p[0].journal);
        prt_params_unref(l->p[0].channels);
        memmove(l->p, l->p + 1, (SAVEPOINTS - 1) * sizeof *l->p);
        l->n--;
    }
    if (l->n == l->cap) {
        unsigned cap = l->cap ? 2 * l->cap : 4;
        struct point *p = realloc(l->p, cap * sizeof *p);
        if (!p) {
            return NULL;
        }
        l->p = p;
        l->cap = cap;
    }
    return &l->p[l->n];
}

/* Drivers set one of the same name before each statement and never release it: those are counted.
 */
void prt_keep_savepoint(struct prt_session *s, struct prt_str name)
{
    struct prt_savepoints *l = points(s);
    struct point *p;

    if (!l) {
        prt_keep_always(s, OPAQUE);
        return;
    }
    if (!name.n || name.n > NAME_MAX) {
        l->is_unnamed = true;
        return;
    }
    p = l->n ? &l->p[l->n - 1] : NULL;
    if (p && is_same_name(p->name, p->len, name) && is_as_now(s, p) && p->times < UINT32_MAX) {
        p->times++;
        return;
    }
    p = new_point(s);
    if (!p) {
        prt_keep_always(s, OPAQUE);
        return;
    }
    *p = (struct point){prt_params_ref(s->now),
                        prt_params_ref(s->channels),
                        s->dirty,
                        s->roles,
                        (uint8_t)name.n,
                        1,
                        {0}};
    memcpy(p->name, name.p, name.n);
    l->n++;
}

/* The newest of that name; -1: none. */
static int find_point(const struct prt_savepoints *l, struct prt_str name)
{
    for (unsigned i = l->n; i-- > 0;) {
        if (is_same_name(l->p[i].name, l->p[i].len, name)) {
            return (int)i;
        }
    }
    return -1;
}

void prt_keep_roll_back_to(struct prt_session *s, struct prt_str name)
{
    struct prt_savepoints *l = s->points;
    int at = l ? find_point(l, name) : -1;
    const struct point *p;

    if (at < 0 || l->is_unnamed) {
        bool is_sure = l && l->has_lost && !l->is_changed && !l->is_unnamed;
        if (!is_sure) {
            prt_keep_always(s, OPAQUE); /* which one was it? */
        }
        if (l) {
            bool was_unnamed = l->is_unnamed, was_lost = l->has_lost, was_changed = l->is_changed;
            prt_keep_roll_back(s);
            l->is_unnamed = was_unnamed, l->has_lost = was_lost, l->is_changed = was_changed;
        }
        return;
    }
    drop_points(l, (unsigned)at + 1); /* it stays itself */
    p = &l->p[at];
    prt_keep_assign(&s->now, p->journal);
    prt_keep_assign(&s->channels, p->channels);
    s->dirty = (uint16_t)((p->dirty & ~SURVIVES) | (s->dirty & SURVIVES));
    s->roles = p->roles;
    fit_held(s);
}

void prt_keep_release(struct prt_session *s, struct prt_str name)
{
    struct prt_savepoints *l = s->points;
    int at = l ? find_point(l, name) : -1;

    if (!l) {
        return;
    }
    if (at < 0) {
        drop_points(l, 0); /* it was below them */
        return;
    }
    drop_points(l, (unsigned)at + 1);
    if (--l->p[at].times == 0) {
        drop_points(l, (unsigned)at);
    }
}

/* ---- names of cursors and SQL statements ---- */
static void add_name(struct names *l, struct prt_str name)
{
    if (l->n == NAMES || !name.n || name.n > NAME_MAX) {
        l->is_more = true;
        return;
    }
    l->is_new[l->n] = true;
    l->len[l->n] = (uint8_t)name.n;
    memcpy(l->name[l->n++], name.p, name.n);
}

/* true: it was the last one. */
static bool end_name(struct names *l, struct prt_str name)
{
    for (unsigned i = 0; i < l->n; i++) {
        if (is_same_name(l->name[i], l->len[i], name)) {
            drop_name(l, i);
            return l->n == 0 && !l->is_more;
        }
    }
    return false;
}

static void end_names(struct names *l)
{
    l->n = 0;
    l->is_more = false;
}

/* Closing and deallocating is done at once: no rollback brings them back. */
void prt_keep_end_state(struct prt_session *s, unsigned state)
{
    s->dirty &= (uint16_t)~state;
    s->dirty_settled &= (uint16_t)~state;
}

void prt_keep_prepared(struct prt_session *s, struct prt_str name)
{
    if (!points(s)) {
        prt_keep_always(s, OPAQUE);
        return;
    }
    add_name(&s->points->prepared, name);
    prt_keep_always(s, PRT_STATE_BIT(PREPARE));
}

void prt_keep_deallocated(struct prt_session *s, const struct prt_sql_stmt *st, bool is_all)
{
    if (is_all && s->points) {
        end_names(&s->points->prepared);
    }
    if (is_all || (st && s->points && end_name(&s->points->prepared, st->name))) {
        prt_keep_end_state(s, PRT_STATE_BIT(PREPARE));
    }
}

void prt_keep_held(struct prt_session *s, struct prt_str name)
{
    if (!points(s)) {
        prt_keep_always(s, OPAQUE);
        return;
    }
    add_name(&s->points->held, name);
    s->dirty |= PRT_STATE_BIT(HOLD);
}

void prt_keep_closed(struct prt_session *s, const struct prt_sql_stmt *st, bool is_all)
{
    if (is_all && s->points) {
        end_names(&s->points->held);
    }
    if (is_all || (st && s->points && end_name(&s->points->held, st->name))) {
        prt_keep_end_state(s, PRT_STATE_BIT(HOLD));
    }
}

void prt_keep_no_names(struct prt_session *s, unsigned states)
{
    if (s->points && states & PRT_STATE_BIT(PREPARE)) {
        end_names(&s->points->prepared);
    }
    if (s->points && states & PRT_STATE_BIT(HOLD)) {
        end_names(&s->points->held);
    }
}

void prt_keep_unknown_names(struct prt_session *s, unsigned states)
{
    if (states & (PRT_STATE_BIT(HOLD) | PRT_STATE_BIT(PREPARE)) && points(s)) {
        s->points->held.is_more |= (states & PRT_STATE_BIT(HOLD)) != 0;
        s->points->prepared.is_more |= (states & PRT_STATE_BIT(PREPARE)) != 0;
    }
}

void prt_keep_free(struct prt_session *s)
{
    prt_params_unref(s->settled);
    prt_params_unref(s->now);
    prt_params_unref(s->channels_settled);
    prt_params_unref(s->channels);
    if (s->points) {
        drop_points(s->points, 0);
        free(s->points->p);
        free(s->points);
    }
    memset(s, 0, sizeof *s);
}
