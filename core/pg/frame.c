/* frame.c - where messages begin and end, in any chunking.
 * Owns: nothing; the state is two words per direction.   Threads: any, one per direction at a time.
 * Idea: a table says per side and type how a message may arrive, so everything that is refused is
 * refused by its five-byte header. Rows and copy data are the rest of the hot path: they pass from
 * their first byte, whatever is here of them. Everything else is held back until it is whole, or,
 * when it is long, until the part that somebody decides by is here; the caller keeps at most
 * PRT_SMALL_MAX + 4 bytes for that. Nothing is ever sized by an announced length. What is small and
 * whole, nearly all there is, passes in pg.h without a call. */
#include "pg/pg.h"

#include <string.h>

#define HEADER PRT_FRAME_HEADER

/* how a message may arrive */
enum shape {
    UNKNOWN = PRT_FRAME_UNKNOWN,
    BARE = PRT_FRAME_BARE,
    ROW,    /* any length, passes from its first byte */
    LONG,   /* any length; whole when small, else it passes from its first byte */
    PARSE,  /* any length; whole when small, else from the end of its name */
    BIND,   /* the same with two names */
    REPORT, /* any length; whole when small, else from the end of severity and SQLSTATE */
    SMALL,  /* at most PRT_SMALL_MAX, whole */
};

/* PostgreSQL's own limits, but for 'p': the proofs that poolrt takes are small. */
const uint8_t prt_frame_shapes[2][256] = {
    [PRT_FRONTEND] = {['d'] = ROW,
                      ['Q'] = LONG,
                      ['F'] = LONG,
                      ['P'] = PARSE,
                      ['B'] = BIND,
                      ['D'] = SMALL,
                      ['C'] = SMALL,
                      ['E'] = SMALL,
                      ['c'] = SMALL,
                      ['f'] = SMALL,
                      ['p'] = SMALL,
                      ['S'] = BARE,
                      ['H'] = BARE,
                      ['X'] = BARE},
    [PRT_BACKEND] =
        {['D'] = ROW,    ['d'] = ROW,   ['T'] = LONG,  ['t'] = LONG,  ['V'] = LONG,  ['E'] = REPORT,
         ['N'] = REPORT, ['1'] = SMALL, ['2'] = SMALL, ['3'] = SMALL, ['n'] = SMALL, ['C'] = SMALL,
         ['I'] = SMALL,  ['s'] = SMALL, ['S'] = SMALL, ['Z'] = SMALL, ['A'] = SMALL, ['G'] = SMALL,
         ['H'] = SMALL,  ['W'] = SMALL, ['c'] = SMALL, ['R'] = SMALL, ['K'] = SMALL, ['v'] = SMALL},
};

/* Do the first `want` strings of body[n] end inside it? */
static bool has_strings(const uint8_t *body, uint32_t n, unsigned want)
{
    uint32_t at = 0;

    for (; want; want--) {
        const uint8_t *end = n > at ? memchr(body + at, 0, n - at) : NULL;
        if (!end) {
            return false;
        }
        at = (uint32_t)(end - body) + 1;
    }
    return true;
}

/* Are severity and SQLSTATE of an error or notice inside body[n]? Field V comes second, C third; a
 * server before 9.6 has no V, and is looked at up to PRT_SMALL_MAX. */
static bool has_severity(const uint8_t *body, uint32_t n)
{
    bool severity = false, sqlstate = false;
    uint32_t at = 0;

    while (at < n && body[at] != 0 && !(severity && sqlstate)) {
        const uint8_t *end = memchr(body + at, 0, n - at);
        if (!end) {
            return false;
        }
        severity |= body[at] == 'V';
        sqlstate |= body[at] == 'C';
        at = (uint32_t)(end - body) + 1;
    }
    return at < n || (severity && sqlstate);
}

/* The beginning of a long message: may it pass with the n bytes of its body that are here? */
static enum prt_frame_rc long_first(enum shape shape, const uint8_t *body, uint32_t n)
{
    uint32_t look = n < PRT_SMALL_MAX ? n : PRT_SMALL_MAX;

    switch (shape) {
    case PARSE:
    case BIND:
        if (has_strings(body, look, shape == BIND ? 2 : 1)) {
            return PRT_FRAME_MSG;
        }
        return look < PRT_SMALL_MAX ? PRT_FRAME_MORE : PRT_FRAME_BAD;
    case REPORT:
        return look == PRT_SMALL_MAX || has_severity(body, look) ? PRT_FRAME_MSG : PRT_FRAME_MORE;
    default:
        return PRT_FRAME_MSG;
    }
}

static enum prt_frame_rc pass(struct prt_frame *f, const uint8_t *p, uint32_t len, uint32_t have,
                              struct prt_msg *m)
{
    f->type = p[0];
    f->left = len - have;
    *m = (struct prt_msg){p[0], len, p + HEADER, have, HEADER + (size_t)have};
    return PRT_FRAME_MSG;
}

static enum prt_frame_rc check(struct prt_frame *f, enum shape shape, const uint8_t *p,
                               uint32_t len, uint32_t have, struct prt_msg *m)
{
    enum prt_frame_rc rc = PRT_FRAME_MSG;

    if (shape == UNKNOWN || (shape == BARE && len != 0)) {
        return PRT_FRAME_BAD;
    }
    if (len > PRT_SMALL_MAX - 4) {
        if (shape == SMALL) {
            return PRT_FRAME_BAD;
        }
        rc = have == len ? PRT_FRAME_MSG : long_first(shape, p + HEADER, have);
    } else if (have < len) {
        return PRT_FRAME_MORE;
    }
    return rc == PRT_FRAME_MSG ? pass(f, p, len, have, m) : rc;
}

static enum prt_frame_rc rest(struct prt_frame *f, const uint8_t *p, size_t n, struct prt_msg *m)
{
    uint32_t have = n < f->left ? (uint32_t)n : f->left;

    if (have == 0) {
        return PRT_FRAME_MORE;
    }
    *m = (struct prt_msg){f->type, f->left, p, have, have};
    f->left -= have;
    return PRT_FRAME_REST;
}

enum prt_frame_rc prt_frame_any(struct prt_frame *f, enum prt_side from, const uint8_t *p, size_t n,
                                uint32_t max_packet, struct prt_msg *m)
{
    uint32_t announced, len, have;
    enum shape shape;

    if (f->left) {
        return rest(f, p, n, m);
    }
    if (n < HEADER) {
        /* an unknown type needs no length to be refused */
        return n && prt_frame_shapes[from][p[0]] == UNKNOWN ? PRT_FRAME_BAD : PRT_FRAME_MORE;
    }
    announced = prt_get32(p + 1);
    if (announced < 4 || announced > max_packet) {
        return PRT_FRAME_BAD;
    }
    len = announced - 4;
    have = n - HEADER < len ? (uint32_t)(n - HEADER) : len;
    shape = prt_frame_shapes[from][p[0]];
    if (shape == ROW) {
        return pass(f, p, len, have, m);
    }
    return check(f, shape, p, len, have, m);
}
