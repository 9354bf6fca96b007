/* wheel.c - the hierarchical timing wheel.
 * Owns: the lists that set timers are in.   Threads: the wheel's loop.
 * Idea: read the wheel's time and a due time as numbers to the base 64. A timer lies in the level
 * of the highest digit in which they differ, in the slot of that digit of its due time. So
 *  - a slot of level k that holds timers is ahead of the present one, within the same turn;
 *  - whatever is in a lower level is due before everything in a higher one;
 *  - nothing has to move until the time reaches the beginning of a slot that holds timers, hence
 *    the wheel goes from one such slot to the next and a jump of years costs no more than a step.
 * The present slot of level 0 holds what is due already. Slot 0 of the last level can never be
 * ahead within the same turn; it keeps the timers that are due in a later turn (4.6 h). */
#include "base/wheel.h"

#include <limits.h>

#define DIGIT 6 /* bits: 64 slots */
#define MASK (PRT_WHEEL_SLOTS - 1)
#define TOP_LEVEL (PRT_WHEEL_LEVELS - 1)
#define TURN_BITS (DIGIT * PRT_WHEEL_LEVELS)
#define NEVER INT64_MAX

static_assert(1 << DIGIT == PRT_WHEEL_SLOTS, "a slot is a digit");
static_assert(PRT_WHEEL_SLOTS == 64, "a level's slots are the bits of one word");

static inline int digit_of(int64_t ms, int level)
{
    return (int)(ms >> DIGIT * level & MASK);
}

/* the first millisecond that is not before us */
static inline int64_t ceil_ms(int64_t us)
{
    return us / 1000 + (us % 1000 > 0);
}

static inline void set_now(struct prt_wheel *w, int64_t ms)
{
    w->now_ms = ms;
    w->last_due_us = NEVER;
}

void prt_wheel_init(struct prt_wheel *w, int64_t now_us)
{
    set_now(w, now_us > 0 ? now_us / 1000 : 0);
    for (int level = 0; level < PRT_WHEEL_LEVELS; level++) {
        w->used[level] = 0;
        for (int i = 0; i < PRT_WHEEL_SLOTS; i++) {
            prt_list_init(&w->slot[level][i]);
        }
    }
}

static void find_slot(struct prt_wheel *w, int64_t due_us)
{
    int64_t due = ceil_ms(due_us);
    int level = 0, i;

    if (due < w->now_ms) {
        due = w->now_ms;
    }
    if ((due ^ w->now_ms) >> TURN_BITS) {
        level = TOP_LEVEL, i = 0;
    } else {
        while ((due ^ w->now_ms) >> DIGIT * (level + 1)) {
            level++;
        }
        i = digit_of(due, level);
    }
    w->last_due_us = due_us;
    w->last_level = (uint8_t)level;
    w->last_slot = (uint8_t)i;
}

static inline void place(struct prt_wheel *w, struct prt_timer *t)
{
    if (t->due_us != w->last_due_us || t->due_us == NEVER) {
        find_slot(w, t->due_us);
    }
    w->used[w->last_level] |= 1ull << w->last_slot;
    prt_list_push(&w->slot[w->last_level][w->last_slot], &t->link);
}

void prt_timer_set(struct prt_wheel *w, struct prt_timer *t, int64_t due_us, prt_timer_fn *fire)
{
    prt_timer_clear(t);
    t->due_us = due_us;
    t->fire = fire;
    place(w, t);
}

/* The beginning of the next slot that holds timers, or NEVER. A cleared timer leaves its bit in
 * `used` behind, so a bit says only where to look. */
static int64_t next_ms(const struct prt_wheel *w)
{
    for (int level = 0; level < PRT_WHEEL_LEVELS; level++) {
        int here = digit_of(w->now_ms, level);
        for (uint64_t ahead = w->used[level] & ~1ull << here; ahead; ahead &= ahead - 1) {
            int i = __builtin_ctzll(ahead);
            if (!prt_list_empty(&w->slot[level][i])) {
                return ((w->now_ms >> DIGIT * level) - here + i) << DIGIT * level;
            }
        }
    }
    if (!prt_list_empty(&w->slot[TOP_LEVEL][0])) {
        return ((w->now_ms >> TURN_BITS) + 1) << TURN_BITS;
    }
    return NEVER;
}

static void take_slot(struct prt_wheel *w, int level, struct prt_link *list)
{
    int i = digit_of(w->now_ms, level);
    struct prt_link *x;

    while ((x = prt_list_pop(&w->slot[level][i]))) {
        prt_list_push(list, x);
    }
    w->used[level] &= ~(1ull << i);
}

/* The time has just become the beginning of a slot: its timers, and those of every coarser slot
 * that begins here, move down. */
static void move_down(struct prt_wheel *w)
{
    struct prt_link list, *x;

    prt_list_init(&list);
    for (int level = 1; level < PRT_WHEEL_LEVELS && digit_of(w->now_ms, level - 1) == 0; level++) {
        take_slot(w, level, &list);
    }
    while ((x = prt_list_pop(&list))) {
        place(w, prt_container_of(x, struct prt_timer, link));
    }
}

/* so that next_ms does not look at slots whose timers were cleared again and again */
static void forget_empty(struct prt_wheel *w)
{
    for (int level = 0; level < PRT_WHEEL_LEVELS; level++) {
        for (uint64_t left = w->used[level]; left; left &= left - 1) {
            int i = __builtin_ctzll(left);
            if (prt_list_empty(&w->slot[level][i])) {
                w->used[level] &= ~(1ull << i);
            }
        }
    }
}

/* From the beginning of a turn to that of the last one in which nothing of the later turns is
 * missed: a jump of years, or a timer that is never due, does not go through every turn. */
static int64_t skip_turns(const struct prt_wheel *w, int64_t turn, int64_t to)
{
    const struct prt_link *list = &w->slot[TOP_LEVEL][0];

    for (struct prt_link *x = list->next; x != list; x = x->next) {
        int64_t due = ceil_ms(prt_container_of(x, struct prt_timer, link)->due_us);
        if (due < to) {
            to = due;
        }
    }
    to = to >> TURN_BITS << TURN_BITS;
    return to > turn ? to : turn;
}

static void step_to(struct prt_wheel *w, int64_t next, int64_t to)
{
    bool turns = (next & ((1ll << TURN_BITS) - 1)) == 0;

    set_now(w, turns ? skip_turns(w, next, to) : next);
    move_down(w);
}

/* All due timers are taken out before the first one fires: a timer that `fire` sets to a time
 * already past waits for the next run, so that no timer can keep the loop here. */
void prt_wheel_run(struct prt_wheel *w, int64_t now_us)
{
    int64_t to = now_us > 0 ? now_us / 1000 : 0, next;
    struct prt_link due, *x;

    prt_list_init(&due);
    take_slot(w, 0, &due);
    if (to > w->now_ms) { /* a clock that went back stands still here until it has caught up */
        while ((next = next_ms(w)) <= to) {
            step_to(w, next, to);
            take_slot(w, 0, &due);
        }
        set_now(w, to);
        forget_empty(w);
    }
    while ((x = prt_list_pop(&due))) {
        struct prt_timer *t = prt_container_of(x, struct prt_timer, link);
        t->fire(t, now_us);
    }
}

int prt_wheel_wait_ms(const struct prt_wheel *w, int64_t now_us)
{
    int64_t next, left_ms;

    if (!prt_list_empty(&w->slot[0][digit_of(w->now_ms, 0)])) {
        return 0;
    }
    next = next_ms(w);
    if (next == NEVER) {
        return -1;
    }
    /* The caller's millisecond has begun, so this rounds up: it sleeps into the first millisecond
     * of `next`, where rounding down would have it spin through the one before. */
    left_ms = next - now_us / 1000;
    return left_ms <= 0 ? 0 : left_ms < INT_MAX ? (int)left_ms : INT_MAX;
}
