/* pool_fake.h - a factory of fake connections and a hand clock for the engine's single-threaded
 * tests. Every op only notes what is asked; the test answers when it wants, in the order it wants.
 */
#ifndef PRT_POOL_FAKE_H
#define PRT_POOL_FAKE_H
#include "pool/pool.h"
#include "test.h"

struct fake {
    struct prt_pool *p;
    int64_t now_us;
    struct prt_link opening, closing, served, moved;
    int n_opening, n_closing;
    int servers, peak; /* as the server counts: from open to the answer to close */
    int users;         /* class users that the engine holds */
    int why[8];        /* closes by reason */
    struct prt_conn_ops ops;
    void (*on_open)(struct fake *f, struct prt_slot *s);
    void (*on_end)(struct fake *f, struct prt_waiter *w);
};

static inline void fake_open_op(void *ctx, struct prt_slot *s)
{
    struct fake *f = ctx;

    f->servers++;
    f->peak = f->servers > f->peak ? f->servers : f->peak;
    f->n_opening++;
    prt_list_push(&f->opening, &s->link);
    if (f->on_open) {
        f->on_open(f, s);
    }
}

static inline void fake_close_op(void *ctx, struct prt_slot *s, enum prt_close_why why)
{
    struct fake *f = ctx;

    f->why[why]++;
    f->n_closing++;
    prt_list_push(&f->closing, &s->link);
}

static inline void fake_served_op(void *ctx, struct prt_waiter *w)
{
    struct fake *f = ctx;

    prt_list_push(&f->served, &w->link);
    if (f->on_end) {
        f->on_end(f, w);
    }
}

static inline void fake_move_op(void *ctx, struct prt_slot *s, struct prt_waiter *w)
{
    struct fake *f = ctx;

    (void)s;
    prt_list_push(&f->moved, &w->link);
    if (f->on_end) {
        f->on_end(f, w);
    }
}

static inline void fake_class_free_op(void *ctx, void *user)
{
    struct fake *f = ctx;

    (void)user;
    f->users--;
}

/* by_worker: slots have a home lane. */
static inline void fake_init(struct fake *f, const struct prt_limits *lim, int lanes, int capacity,
                             bool by_worker, struct prt_policy_ops *policy)
{
    memset(f, 0, sizeof *f);
    f->now_us = 1000000;
    prt_list_init(&f->opening);
    prt_list_init(&f->closing);
    prt_list_init(&f->served);
    prt_list_init(&f->moved);
    f->ops = (struct prt_conn_ops){.open = fake_open_op,
                                   .close = fake_close_op,
                                   .served = fake_served_op,
                                   .move = by_worker ? fake_move_op : NULL,
                                   .class_free = fake_class_free_op};
    if (prt_pool_new(&f->p, lim, lanes, capacity, &f->ops, policy, f, NULL) != POOLRT_OK) {
        printf("  no pool\n");
        abort();
    }
}

static inline struct prt_class *fake_class(struct fake *f, const char *key)
{
    f->users++;
    return prt_pool_class(f->p, prt_str_of(key), NULL);
}

/* Answer one open request. false: there was none. */
static inline bool fake_opened(struct fake *f, poolrt_rc rc)
{
    struct prt_link *l = prt_list_pop(&f->opening);
    struct prt_err err = {.rc = rc};

    if (!l) {
        return false;
    }
    f->n_opening--;
    f->servers -= rc != POOLRT_OK;
    prt_slot_opened(prt_container_of(l, struct prt_slot, link), &err, f->now_us);
    return true;
}

static inline bool fake_closed(struct fake *f)
{
    struct prt_link *l = prt_list_pop(&f->closing);

    if (!l) {
        return false;
    }
    f->n_closing--;
    f->servers--;
    prt_slot_closed(prt_container_of(l, struct prt_slot, link), f->now_us);
    return true;
}

/* The next waiter whose wait has ended, its connection moved to its lane; or NULL. */
static inline struct prt_waiter *fake_next(struct fake *f)
{
    struct prt_link *l = prt_list_pop(&f->moved);

    if (l) {
        struct prt_waiter *w = prt_container_of(l, struct prt_waiter, link);
        prt_slot_rehome(w->lease.slot, w->lane);
        return w;
    }
    l = prt_list_pop(&f->served);
    return l ? prt_container_of(l, struct prt_waiter, link) : NULL;
}

/* Answer all that was asked, connects with success, until nothing is asked any more. */
static inline void fake_answer(struct fake *f)
{
    while (fake_opened(f, POOLRT_OK) || fake_closed(f)) {
    }
}

/* Close everything and free the pool; nobody may hold a lease. */
static inline void fake_fini(struct fake *f)
{
    prt_pool_drain(f->p, f->now_us);
    fake_answer(f);
    CHECK_INT(prt_pool_open(f->p), 0);
    CHECK_INT(f->servers, 0);
    prt_pool_free(f->p);
    CHECK_INT(f->users, 0);
}
#endif
