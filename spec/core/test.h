/* test.h - the C tests' harness: TEST(name) { CHECK(...); } and a main that runs them in order.
 * A test that fails goes on to its end, so that one run shows all. The last line is
 * "FILE: N passed, N failed". Arguments: names of tests to run (all without). */
#ifndef PRT_TEST_H
#define PRT_TEST_H
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct prt_test {
    const char *name;
    void (*run)(void);
    struct prt_test *next;
};
static struct prt_test *prt_tests, **prt_tests_end = &prt_tests;
static int prt_test_bad;

static void __attribute__((unused)) prt_test_add(struct prt_test *t)
{
    *prt_tests_end = t;
    prt_tests_end = &t->next;
}

#define TEST(id)                                                                                   \
    static void test_##id(void);                                                                   \
    static struct prt_test entry_##id = {#id, test_##id, NULL};                                    \
    __attribute__((constructor)) static void add_##id(void)                                        \
    {                                                                                              \
        prt_test_add(&entry_##id);                                                                 \
    }                                                                                              \
    static void test_##id(void)

#define CHECK(x)                                                                                   \
    ((x) ? (void)0 : (void)(prt_test_bad++, printf("  %s:%d: %s\n", __FILE__, __LINE__, #x)))
#define CHECK_INT(got, want)                                                                       \
    do {                                                                                           \
        long long g_ = (long long)(got), w_ = (long long)(want);                                   \
        if (g_ != w_) {                                                                            \
            prt_test_bad++;                                                                        \
            printf("  %s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #got, g_, w_);           \
        }                                                                                          \
    } while (0)
#define CHECK_STR(got, want)                                                                       \
    do {                                                                                           \
        const char *g_ = (got), *w_ = (want);                                                      \
        if (!g_ || strcmp(g_, w_)) {                                                               \
            prt_test_bad++;                                                                        \
            printf("  %s:%d: %s is \"%s\", not \"%s\"\n", __FILE__, __LINE__, #got,                \
                   g_ ? g_ : "(null)", w_);                                                        \
        }                                                                                          \
    } while (0)

int main(int argc, char **argv)
{
    int passed = 0, failed = 0;

    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    for (struct prt_test *t = prt_tests; t; t = t->next) {
        bool wanted = argc < 2;
        for (int i = 1; i < argc; i++) {
            wanted |= strcmp(argv[i], t->name) == 0;
        }
        if (!wanted) {
            continue;
        }
        prt_test_bad = 0;
        t->run();
        if (prt_test_bad) {
            printf("not ok - %s\n", t->name);
            failed++;
        } else {
            passed++;
        }
    }
    const char *slash = strrchr(argv[0], '/');
    printf("%s: %d passed, %d failed\n", slash ? slash + 1 : argv[0], passed, failed);
    return failed ? 1 : 0;
}
#endif
