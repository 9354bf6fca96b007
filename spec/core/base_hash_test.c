/* base_hash_test.c - SipHash against known answers, and the map against a plain array. */
#include "base/hash.h"
#include "test.h"

/* Known answers of SipHash-2-4 for the key 00 01 ... 0f and the message 00 01 ... of that length.
 */
TEST(siphash_gives_the_known_answers)
{
    static const struct {
        size_t n;
        uint64_t hash;
    } known[] = {
        {0, 0x726fdb47dd0e0e31},  {1, 0x74f839c593dc67fd},  {2, 0x0d6c8009d9a94f5a},
        {7, 0xab0200f58b01d137},  {8, 0x93f5f5799a932462},  {15, 0xa129ca6149be45e5},
        {16, 0x3f2acc7f57c29bdb}, {63, 0x958a324ceb064572},
    };
    const uint64_t key[2] = {0x0706050403020100, 0x0f0e0d0c0b0a0908};
    uint8_t text[64];

    for (int i = 0; i < 64; i++) {
        text[i] = (uint8_t)i;
    }
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        CHECK_INT(prt_siphash(key, text, known[i].n), known[i].hash);
    }
}

TEST(the_process_hash_is_stable_and_its_key_is_not_zero)
{
    const uint64_t zero[2] = {0, 0};

    CHECK_INT(prt_hash("acme", 4), prt_hash("acme", 4));
    CHECK(prt_hash("acme", 4) != prt_hash("acmf", 4));
    CHECK(prt_hash("acme", 4) != prt_siphash(zero, "acme", 4));
    CHECK_INT(prt_hash(NULL, 0), prt_hash("", 0));
}

struct thing {
    int value;
    struct prt_map_node node;
    char name[16];
};

static struct thing *thing_of(struct prt_map_node *n)
{
    return n ? prt_container_of(n, struct thing, node) : NULL;
}

static bool put(struct prt_map *m, struct thing *t, int value)
{
    t->value = value;
    (void)snprintf(t->name, sizeof t->name, "user%d", value);
    return prt_map_put(m, &t->node, prt_str_of(t->name));
}

TEST(an_empty_map_finds_nothing)
{
    struct prt_map m = {0};

    CHECK(prt_map_get(&m, PRT_STR("x")) == NULL);
    CHECK(prt_map_next(&m, NULL) == NULL);
    prt_map_fini(&m);
}

TEST(every_key_is_found_while_the_map_grows_and_shrinks)
{
    enum { N = 5000 };
    struct thing *all = calloc(N, sizeof *all);
    struct prt_map m = {0};
    char name[16];

    for (int i = 0; i < N; i++) {
        CHECK(put(&m, &all[i], i));
        CHECK(m.buckets >= m.n);
    }
    for (int i = 1; i < N; i += 2) {
        prt_map_del(&m, &all[i].node);
    }
    CHECK_INT(m.n, N / 2);
    for (int i = 0; i < N; i++) {
        (void)snprintf(name, sizeof name, "user%d", i);
        struct thing *t = thing_of(prt_map_get(&m, prt_str_of(name)));
        CHECK(i % 2 ? t == NULL : t == &all[i]);
    }
    prt_map_fini(&m);
    CHECK_INT(m.n, 0);
    free(all);
}

TEST(iteration_meets_every_node_once)
{
    enum { N = 1000 };
    struct thing *all = calloc(N, sizeof *all);
    struct prt_map m = {0};
    int seen[N] = {0}, met = 0;

    for (int i = 0; i < N; i++) {
        CHECK(put(&m, &all[i], i));
    }
    for (struct prt_map_node *at = prt_map_next(&m, NULL); at; at = prt_map_next(&m, at)) {
        seen[thing_of(at)->value]++;
        met++;
    }
    CHECK_INT(met, N);
    for (int i = 0; i < N; i++) {
        CHECK_INT(seen[i], 1);
    }
    prt_map_fini(&m);
    free(all);
}

TEST(a_node_may_be_taken_out_once_the_next_one_is_known)
{
    struct thing all[100];
    struct prt_map m = {0};

    for (int i = 0; i < 100; i++) {
        CHECK(put(&m, &all[i], i));
    }
    for (struct prt_map_node *at = prt_map_next(&m, NULL), *next; at; at = next) {
        next = prt_map_next(&m, at);
        prt_map_del(&m, at);
    }
    CHECK_INT(m.n, 0);
    CHECK(prt_map_next(&m, NULL) == NULL);
    prt_map_fini(&m);
}

TEST(keys_are_bytes_with_a_length)
{
    struct prt_map m = {0};
    struct prt_map_node a = {0}, b = {0}, c = {0};

    CHECK(prt_map_put(&m, &a, PRT_STR("x\0y")));
    CHECK(prt_map_put(&m, &b, PRT_STR("x")));
    CHECK(prt_map_put(&m, &c, PRT_STR("")));
    CHECK(prt_map_get(&m, PRT_STR("x\0y")) == &a);
    CHECK(prt_map_get(&m, PRT_STR("x")) == &b);
    CHECK(prt_map_get(&m, (struct prt_str){NULL, 0}) == &c);
    CHECK(prt_map_get(&m, PRT_STR("x\0z")) == NULL);
    prt_map_fini(&m);
}

#ifdef PRT_DEBUG
TEST(a_map_without_memory_refuses_and_one_that_cannot_grow_goes_on)
{
    struct prt_map m = {0};
    struct thing all[40];

    (void)setenv("POOLRT_FAULT", "map_nomem", 1);
    CHECK(!put(&m, &all[0], 0));
    CHECK_INT(m.n, 0);
    (void)unsetenv("POOLRT_FAULT");
    CHECK(put(&m, &all[0], 0));
    (void)setenv("POOLRT_FAULT", "map_nomem", 1);
    for (int i = 1; i < 40; i++) {
        CHECK(put(&m, &all[i], i));
    }
    (void)unsetenv("POOLRT_FAULT");
    CHECK(m.buckets < 40);
    for (int i = 0; i < 40; i++) {
        CHECK(prt_map_get(&m, prt_str_of(all[i].name)) == &all[i].node);
    }
    prt_map_fini(&m);
}
#endif
