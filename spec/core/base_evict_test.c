/* base_evict_test.c - the order in which a cache gives things up. */
#include "base/evict.h"
#include "test.h"

struct thing {
    struct prt_evict_node node;
    bool is_kept;
    int name;
};

static bool may_go(const struct prt_evict_node *node, void *ctx)
{
    unsigned *asked = ctx;
    const char *at = (const char *)node - offsetof(struct thing, node);

    (*asked)++;
    return !((const struct thing *)(const void *)at)->is_kept;
}

static int victim(struct prt_evict *e, unsigned *asked)
{
    struct prt_evict_node *node = prt_evict_victim(e, may_go, asked);

    return node ? prt_container_of(node, struct thing, node)->name : -1;
}

TEST(lru_gives_up_what_was_used_longest_ago)
{
    struct thing t[4] = {{.name = 0}, {.name = 1}, {.name = 2}, {.name = 3}};
    struct prt_evict e;
    unsigned asked = 0;

    prt_evict_init(&e, &prt_evict_lru);
    CHECK_STR(e.ops->name, "lru");
    CHECK_INT(victim(&e, &asked), -1);
    for (int i = 0; i < 4; i++) {
        prt_evict_add(&e, &t[i].node);
    }
    CHECK_INT((long long)e.n, 4);
    CHECK_INT(victim(&e, &asked), 0);
    prt_evict_touch(&e, &t[0].node);
    prt_evict_touch(&e, &t[0].node);
    CHECK_INT(victim(&e, &asked), 1);
    prt_evict_touch(&e, &t[2].node);
    prt_evict_del(&e, &t[1].node);
    CHECK_INT((long long)e.n, 3);
    CHECK_INT(victim(&e, &asked), 3);
    prt_evict_del(&e, &t[3].node);
    CHECK_INT(victim(&e, &asked), 0);
    prt_evict_del(&e, &t[0].node);
    CHECK_INT(victim(&e, &asked), 2);
    prt_evict_add(&e, &t[1].node);
    CHECK_INT(victim(&e, &asked), 2);
}

TEST(what_may_not_go_is_skipped_and_stays)
{
    struct thing t[3] = {{.name = 0, .is_kept = true}, {.name = 1, .is_kept = true}, {.name = 2}};
    struct prt_evict e;
    unsigned asked = 0;

    prt_evict_init(&e, &prt_evict_lru);
    for (int i = 0; i < 3; i++) {
        prt_evict_add(&e, &t[i].node);
    }
    CHECK_INT(victim(&e, &asked), 2);
    CHECK_INT(asked, 3);
    t[2].is_kept = true;
    CHECK_INT(victim(&e, &asked), -1);
    t[1].is_kept = false;
    CHECK_INT(victim(&e, &asked), 1);
    CHECK_INT((long long)e.n, 3);
}
