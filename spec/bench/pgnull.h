/* pgnull.h - the seam of pgnull: pgnull.c moves bytes, pgnull_session.c knows what to answer. */
#ifndef BENCH_PGNULL_H
#define BENCH_PGNULL_H
#include "wire.h"

#define PGNULL_ROW_BYTES                                                                           \
    111u                     /* of the large result: header 5, column count 2, length 4, text 100 */
#define PGNULL_PARAMETERS 13 /* reported to the client */

/* a prepared statement ('S') or a portal ('P'); the unnamed ones are called "" */
struct named {
    struct named *next;
    char kind;
    char *name, *sql;
};

struct conn {
    /* of pgnull.c */
    int fd;
    uint32_t events;         /* what epoll watches for */
    struct wire_buf in, out; /* both sides append to `out` */
    size_t big_left; /* bytes of the large result still to send; nothing is handled meanwhile */

    /* of pgnull_session.c */
    bool started;  /* startup packet answered */
    bool skipping; /* an extended message failed: ignore all up to Sync */
    char txn;      /* 'I', 'T' or 'E' */
    char *rest;    /* statements after the large one; NULL: it came by Execute */
    int n_names;
    struct named *names;
    char *initial[PGNULL_PARAMETERS], *current[PGNULL_PARAMETERS]; /* owned */
};

/* set at start: the size of the large result, a multiple of PGNULL_ROW_BYTES */
extern size_t pgnull_big_bytes;

/** One packet before the session, without its length; at least 4 bytes. False: close. */
bool pgnull_startup(struct conn *c, const char *body, size_t n);
/** One whole message of a started session. False: close. May set c->big_left. */
bool pgnull_message(struct conn *c, char type, const char *body, size_t n);
/** The large result is sent: what comes after it. */
void pgnull_big_sent(struct conn *c);
void pgnull_session_fini(struct conn *c);
#endif
