/* base.h - the words every room uses: results, strings, asserts, thread roles, intrusive lists.
 * Owns: nothing.   Threads: any.
 * Idea: one small header that all rooms include first, so that nothing below is written twice. */
#ifndef PRT_BASE_H
#define PRT_BASE_H

#include <assert.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PRT_MUST_CHECK __attribute__((warn_unused_result))
#define PRT_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define PRT_COLD __attribute__((cold, noinline))
#define PRT_UNUSED __attribute__((unused))
#define PRT_CACHE_LINE 64
#define PRT_NAME_MAX                                                                               \
    63 /* longest name of a user, database, pool or partition, as PostgreSQL has it */

/* ---- thread roles ----
 * A declaration says which thread may call it. `make check` compiles with clang's
 * -Wthread-safety, which follows the words below through direct calls; a callback begins with
 * prt_assert_worker() or prt_assert_control(), which tells clang and, in debug builds, looks. */
#if defined(__clang__)
#define PRT_CAPABILITY(x) __attribute__((capability(x)))
#define PRT_REQUIRES(...) __attribute__((requires_capability(__VA_ARGS__)))
#define PRT_ASSERTS(...) __attribute__((assert_capability(__VA_ARGS__)))
#else
#define PRT_CAPABILITY(x)
#define PRT_REQUIRES(...)
#define PRT_ASSERTS(...)
#endif

struct PRT_CAPABILITY("role") prt_role {
    char unused;
};
extern struct prt_role prt_role_worker, prt_role_control;

#define ON_WORKER PRT_REQUIRES(prt_role_worker)   /* the thread that drives the lane in the call */
#define ON_CONTROL PRT_REQUIRES(prt_role_control) /* the control thread */
#define ON_ANY                                    /* any thread of the process */
#define ON_HOST                                   /* any thread of an embedding program */

enum prt_thread_role {
    PRT_THREAD_OTHER,
    PRT_THREAD_WORKER,
    PRT_THREAD_CONTROL,
    PRT_THREAD_CONNECTOR,
    PRT_THREAD_LOADER,
};
/** Say once what the calling thread is. `index` is the worker's lane, else 0. */
void prt_thread_is(enum prt_thread_role role, unsigned index);
enum prt_thread_role prt_thread_role(void);
unsigned prt_thread_index(void);
void prt_assert_worker(void) PRT_ASSERTS(prt_role_worker);
void prt_assert_control(void) PRT_ASSERTS(prt_role_control);

/* ---- asserts ----
 * prt_assert stays in every build: it guards what could mix two clients' data, and stops the
 * process before it does. prt_assert_dbg is for the rest, debug builds only. */
PRT_COLD _Noreturn void prt_panic(const char *file, int line, const char *what);
#define prt_assert(x) ((x) ? (void)0 : prt_panic(__FILE__, __LINE__, #x))
#ifdef PRT_DEBUG
#define prt_assert_dbg(x) prt_assert(x)
/** A fault point: true when the test asked for it by POOLRT_FAULT=name[:count],... */
bool prt_fault(const char *name);
#define PRT_FAULT(name) prt_fault(name)
#else
#define prt_assert_dbg(x) ((void)sizeof(!(x)))
#define PRT_FAULT(name) (false)
#endif

/* ---- results ----
 * One closed list for C, Lua, REST and the wire; base/error.c has one row for each. */
typedef enum {
    POOLRT_OK = 0,
    POOLRT_PENDING = 1,            /* not an error: the answer comes later */
    POOLRT_TIMEOUT = -1,           /* acquire_timeout passed while waiting */
    POOLRT_EXHAUSTED = -2,         /* nothing idle and the caller does not wait */
    POOLRT_QUEUE_FULL = -3,        /* max_wait_queue_size of the pool or the partition */
    POOLRT_BACKPRESSURE = -4,      /* the pool is too busy to queue for */
    POOLRT_CLOSED = -5,            /* the pool is closed */
    POOLRT_DRAINING = -6,          /* the pool is being emptied */
    POOLRT_CONNECT_FAILED = -7,    /* no server could be reached, or it refused the login */
    POOLRT_VALIDATION_FAILED = -8, /* the server did not answer the check */
    POOLRT_CANCELLED = -9,
    POOLRT_STALE = -10, /* the lease is not, or no longer, valid */
    POOLRT_NOT_FOUND = -11,
    POOLRT_BUSY = -12,
    POOLRT_IN_TRANSACTION = -13,
    POOLRT_POLICY = -14, /* a policy said no, or failed with on_fail = "reject" */
    POOLRT_CONFIG = -15, /* a value was refused; struct prt_err says which */
    POOLRT_NOMEM = -16,
    POOLRT_FORKED = -17,
    POOLRT_WRONG_PHASE = -18,
    POOLRT_DEADLOCK = -19, /* chosen as the victim of a wait cycle */
    POOLRT_PROTOCOL = -20, /* bytes that the protocol does not allow here */
    POOLRT_IO = -21,       /* a system call failed; the text says which */
} poolrt_rc;

/** One row of the error table. `http` is 0 where REST never shows it. */
struct prt_error_row {
    poolrt_rc rc;
    const char *code; /* "queue_full": Lua and REST */
    const char *text;
    const char *sqlstate;
    int http;
};
/** Never NULL: an unknown code gives the row of POOLRT_IO. */
const struct prt_error_row *prt_error_row(poolrt_rc rc) ON_ANY;

/** A sentence for a person: what is wrong, where, and what to do about it. */
struct prt_err {
    poolrt_rc rc;
    char sqlstate[6]; /* the server's own, else empty: use the row's */
    char text[506];
};
/** Fill `err` (which may be NULL) and return rc, so that `return prt_fail(err, ...)` works. */
poolrt_rc prt_fail(struct prt_err *err, poolrt_rc rc, const char *fmt, ...) PRT_PRINTF(3, 4);

/* ---- strings: pointer and length, never owned ---- */
struct prt_str {
    const char *p;
    size_t n;
};
#define PRT_STR(lit) ((struct prt_str){"" lit, sizeof(lit) - 1})
#define PRT_STR_FMT "%.*s"
#define PRT_STR_ARG(s) (int)(s).n, (s).p
struct prt_str prt_str_of(const char *z); /* NULL gives the empty string */
bool prt_str_eq(struct prt_str a, struct prt_str b);
bool prt_str_eqz(struct prt_str a, const char *z);
/** Copy with a final NUL into dst[cap]. false, and dst empty, when it does not fit. */
PRT_MUST_CHECK bool prt_str_copy(char *dst, size_t cap, struct prt_str s);
/** Constant time in the length of `a`: for secrets. */
bool prt_secret_eq(const void *a, const void *b, size_t n);
/** Overwrite so that the compiler cannot leave it out. */
void prt_secret_wipe(void *p, size_t n);
/** n random bytes from the kernel; stops the process when there are none. */
void prt_random(void *p, size_t n);

/* ---- big-endian numbers of the wire ---- */
static inline uint32_t prt_get32(const void *p)
{
    const uint8_t *b = p;
    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}
static inline uint16_t prt_get16(const void *p)
{
    const uint8_t *b = p;
    return (uint16_t)(b[0] << 8 | b[1]);
}
static inline void prt_put32(void *p, uint32_t v)
{
    uint8_t *b = p;
    b[0] = (uint8_t)(v >> 24), b[1] = (uint8_t)(v >> 16), b[2] = (uint8_t)(v >> 8),
    b[3] = (uint8_t)v;
}
static inline void prt_put16(void *p, uint16_t v)
{
    uint8_t *b = p;
    b[0] = (uint8_t)(v >> 8), b[1] = (uint8_t)v;
}

/* ---- intrusive circular lists ---- */
struct prt_link {
    struct prt_link *next, *prev;
};
#define prt_container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

static inline void prt_list_init(struct prt_link *l)
{
    l->next = l->prev = l;
}
static inline bool prt_list_empty(const struct prt_link *l)
{
    return l->next == l;
}
static inline void prt_list_before(struct prt_link *at, struct prt_link *x)
{
    x->prev = at->prev, x->next = at;
    at->prev->next = x, at->prev = x;
}
/** Append to the list with head `list`. */
static inline void prt_list_push(struct prt_link *list, struct prt_link *x)
{
    prt_list_before(list, x);
}
/** Unlink; x is an empty list afterwards, so removing twice is harmless. */
static inline void prt_list_del(struct prt_link *x)
{
    x->prev->next = x->next, x->next->prev = x->prev;
    prt_list_init(x);
}
/** First element taken off, or NULL. */
static inline struct prt_link *prt_list_pop(struct prt_link *list)
{
    struct prt_link *x = list->next;
    if (x == list) {
        return NULL;
    }
    prt_list_del(x);
    return x;
}

/* ---- clock (clock.c): the only place that asks the kernel for the time ---- */
int64_t prt_now_us(void);  /* monotonic microseconds: every deadline and age */
int64_t prt_wall_us(void); /* microseconds since 1970: what people are shown */

#endif
