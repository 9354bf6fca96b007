/* buf.c - a byte buffer that grows at the end and is used up at the front.
 * Owns: the bytes of each buffer.   Threads: whoever owns the buffer.
 * Idea: used-up room is won back by moving the data only when at least as many bytes were used up
 * as are left to move, so a slow reader of a full buffer cannot make every append copy it all. */
#include "base/buf.h"

#include <stdlib.h>
#include <string.h>

#define BUF_MIN 256u

/* With need <= PRT_BUF_MAX this never passes 2 * PRT_BUF_MAX: a buffer of that size which is full
 * has used up at least half and moves its data instead. */
static uint32_t next_cap(uint32_t cap, size_t need)
{
    uint32_t to = BUF_MIN;

    while (to < need) {
        to *= 2;
    }
    return to > cap ? to : cap * 2;
}

static void move_to_front(struct prt_buf *b)
{
    if (!b->p || b->off == 0) {
        return;
    }
    memmove(b->p, b->p + b->off, b->n - b->off);
    b->n -= b->off;
    b->off = 0;
}

static bool grow(struct prt_buf *b, size_t need)
{
    uint32_t cap = next_cap(b->cap, need);
    uint8_t *p;

    move_to_front(b);
    p = PRT_FAULT("buf_nomem") ? NULL : realloc(b->p, cap);
    if (!p) {
        return false;
    }
    b->p = p;
    b->cap = cap;
    return true;
}

uint8_t *prt_buf_room(struct prt_buf *b, size_t n)
{
    size_t len = prt_buf_len(b);

    if (b->failed) {
        return NULL;
    }
    if (n > PRT_BUF_MAX - len) {
        b->failed = true;
        return NULL;
    }
    if (b->p && n <= b->cap - b->n) {
        return b->p + b->n;
    }
    if (b->p && n <= b->cap - len && b->off >= len) {
        move_to_front(b);
    } else if (!grow(b, len + n)) {
        b->failed = true;
        return NULL;
    }
    return b->p + b->n;
}

bool prt_buf_add(struct prt_buf *b, const void *p, size_t n)
{
    uint8_t *room;

    if (n == 0) {
        return !b->failed;
    }
    room = n <= b->cap - b->n && b->cap <= PRT_BUF_MAX && !b->failed ? b->p + b->n
                                                                     : prt_buf_room(b, n);
    if (!room) {
        return false;
    }
    memcpy(room, p, n);
    b->n += (uint32_t)n;
    return true;
}

void prt_buf_eat(struct prt_buf *b, size_t n)
{
    prt_assert(n <= prt_buf_len(b));
    b->off += (uint32_t)n;
    if (b->off == b->n) {
        bool failed = b->failed; /* what was lost stays lost */
        prt_buf_free(b);
        b->failed = failed;
    }
}

void prt_buf_free(struct prt_buf *b)
{
    free(b->p);
    *b = (struct prt_buf){0};
}
