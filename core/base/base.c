/* base.c - strings, secrets, thread roles, clocks and the last words of a failed assert.
 * Owns: the calling thread's role.   Threads: any. */
#include "base/base.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

struct prt_role prt_role_worker, prt_role_control;

static _Thread_local enum prt_thread_role my_role;
static _Thread_local unsigned my_index;

void prt_thread_is(enum prt_thread_role role, unsigned index)
{
    my_role = role;
    my_index = index;
}

enum prt_thread_role prt_thread_role(void)
{
    return my_role;
}

unsigned prt_thread_index(void)
{
    return my_index;
}

void prt_assert_worker(void)
{
    prt_assert_dbg(my_role == PRT_THREAD_WORKER);
}

void prt_assert_control(void)
{
    prt_assert_dbg(my_role == PRT_THREAD_CONTROL);
}

void prt_panic(const char *file, int line, const char *what)
{
    char text[256];
    int n = snprintf(text, sizeof text, "level=fatal event=assert_failed at=%s:%d what=\"%s\"\n",
                     file, line, what);

    if (n > 0) {
        size_t len = (size_t)n < sizeof text ? (size_t)n : sizeof text - 1;
        if (write(STDERR_FILENO, text, len) < 0) {
            abort();
        }
    }
    abort();
}

struct prt_str prt_str_of(const char *z)
{
    return (struct prt_str){z, z ? strlen(z) : 0};
}

bool prt_str_eq(struct prt_str a, struct prt_str b)
{
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

bool prt_str_eqz(struct prt_str a, const char *z)
{
    return prt_str_eq(a, prt_str_of(z));
}

bool prt_str_copy(char *dst, size_t cap, struct prt_str s)
{
    if (cap == 0 || s.n > cap - 1) {
        if (cap) {
            dst[0] = '\0';
        }
        return false;
    }
    if (s.n) {
        memcpy(dst, s.p, s.n);
    }
    dst[s.n] = '\0';
    return true;
}

bool prt_secret_eq(const void *a, const void *b, size_t n)
{
    const volatile uint8_t *x = a, *y = b;
    uint8_t differ = 0;

    for (size_t i = 0; i < n; i++) {
        differ |= (uint8_t)(x[i] ^ y[i]);
    }
    return differ == 0;
}

void prt_secret_wipe(void *p, size_t n)
{
    explicit_bzero(p, n);
}

void prt_random(void *p, size_t n)
{
    uint8_t *at = p;

    while (n) {
        ssize_t got = getrandom(at, n, 0);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        prt_assert(got > 0);
        at += got;
        n -= (size_t)got;
    }
}

static int64_t clock_us(clockid_t id)
{
    struct timespec t;

    (void)clock_gettime(id, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

int64_t prt_now_us(void)
{
    return clock_us(CLOCK_MONOTONIC);
}

int64_t prt_wall_us(void)
{
    return clock_us(CLOCK_REALTIME);
}

#ifdef PRT_DEBUG
/* POOLRT_FAULT=name,other:3 makes the point `name` fail always and `other` three times. */
bool prt_fault(const char *name)
{
    static _Atomic int left[16];
    const char *spec = getenv("POOLRT_FAULT");
    size_t len = strlen(name);

    for (int i = 0; spec && *spec && i < 16; i++) {
        size_t n = strcspn(spec, ":,");
        long times = spec[n] == ':' ? strtol(spec + n + 1, NULL, 10) : -1;
        if (n == len && memcmp(spec, name, n) == 0) {
            return times < 0 || atomic_fetch_add(&left[i], 1) < times;
        }
        spec += strcspn(spec, ",");
        spec += *spec == ',';
    }
    return false;
}
#endif
