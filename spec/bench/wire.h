/* wire.h - the few words of the PostgreSQL wire protocol that pgnull and pgload share.
 * Owns: nothing.   Threads: one per program.
 * Idea: the tools of the bench do not link the product, so a fault there cannot hide here. */
#ifndef BENCH_WIRE_H
#define BENCH_WIRE_H
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

enum {
    WIRE_PROTOCOL_3 = 3,
    WIRE_CANCEL = 80877102,
    WIRE_SSL = 80877103,
    WIRE_GSSENC = 80877104,
};

static inline uint32_t wire_get32(const void *from)
{
    const unsigned char *p = from;
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline uint16_t wire_get16(const void *from)
{
    const unsigned char *p = from;
    return (uint16_t)(p[0] << 8 | p[1]);
}

static inline void wire_set32(void *to, uint32_t v)
{
    unsigned char *p = to;
    p[0] = (unsigned char)(v >> 24);
    p[1] = (unsigned char)(v >> 16);
    p[2] = (unsigned char)(v >> 8);
    p[3] = (unsigned char)v;
}

/* ---- bytes to be sent ---- */
struct wire_buf {
    char *data;
    size_t off, len, cap; /* unsent: data[off .. len) */
};

static inline void *wire_alloc(void *old, size_t n)
{
    void *p = realloc(old, n);
    if (p == NULL) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
    return p;
}

static inline void wire_put(struct wire_buf *b, const void *data, size_t n)
{
    if (n > b->cap - b->len) {
        b->cap = (b->len + n) * 2 + 256;
        b->data = wire_alloc(b->data, b->cap);
    }
    if (n > 0) {
        memcpy(b->data + b->len, data, n);
    }
    b->len += n;
}

static inline void wire_put_str(struct wire_buf *b, const char *s)
{
    wire_put(b, s, strlen(s) + 1);
}

static inline void wire_put32(struct wire_buf *b, uint32_t v)
{
    char p[4];
    wire_set32(p, v);
    wire_put(b, p, sizeof p);
}

/** Opens a message; the returned mark goes to wire_end(), which fills in the length. */
static inline size_t wire_begin(struct wire_buf *b, char type)
{
    wire_put(b, &type, 1);
    wire_put(b, "\0\0\0\0", 4);
    return b->len - 4;
}

static inline void wire_end(struct wire_buf *b, size_t mark)
{
    wire_set32(b->data + mark, (uint32_t)(b->len - mark));
}

static inline void wire_msg(struct wire_buf *b, char type, const void *body, size_t n)
{
    size_t mark = wire_begin(b, type);
    wire_put(b, body, n);
    wire_end(b, mark);
}

/* ---- process ---- */
static inline void wire_raise_nofile(void)
{
    struct rlimit rl;
    if (getrlimit(RLIMIT_NOFILE, &rl) == 0) {
        rl.rlim_cur = rl.rlim_max;
        setrlimit(RLIMIT_NOFILE, &rl);
    }
}

/** The socket that PostgreSQL's clients look for in `dir`; false: the path is too long. */
static inline bool wire_unix_address(struct sockaddr_un *sa, const char *dir, unsigned port)
{
    memset(sa, 0, sizeof *sa);
    sa->sun_family = AF_UNIX;
    int n = snprintf(sa->sun_path, sizeof sa->sun_path, "%s/.s.PGSQL.%u", dir, port);
    return n > 0 && (size_t)n < sizeof sa->sun_path;
}

/** A number of an option, within [min, max]; anything else ends the program. */
static inline double wire_number(const char *program, char option, const char *text, double min,
                                 double max)
{
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    if (end == text || *end != '\0' || errno != 0 || !(v >= min && v <= max)) {
        fprintf(stderr, "%s: -%c wants a number from %g to %g, not \"%s\"\n", program, option, min,
                max, text);
        exit(2);
    }
    return v;
}
#endif
