/* base_config_test.c - a configuration's references, look-ups, and that its end leaves nothing. */
#include "base/config.h"
#include "test.h"

#include <malloc.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OWN_FREE 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define OWN_FREE 0
#endif
#endif
#ifndef OWN_FREE
#define OWN_FREE 1
#endif

#if OWN_FREE
/* Looks at every block before it is given back: no secret may still stand in it. */
static int frees, secrets_left, harmless_left;
void __libc_free(void *p);
void free(void *p)
{
    size_t n = p ? malloc_usable_size(p) : 0;

    frees += p != NULL;
    secrets_left += n && memmem(p, n, "s3cret", 6) != NULL;
    harmless_left += n && memmem(p, n, "plain!", 6) != NULL;
    __libc_free(p);
}
#endif

static char *copy(const char *z)
{
    return strdup(z);
}

static struct prt_pool_config pool(const char *name)
{
    struct prt_pool_config p = {.name = copy(name), .target = copy("host=db password=s3cret")};

    p.user = copy("plain!");
    p.password = copy("s3cret");
    p.tenant.pattern = copy("*_app");
    p.n_policies = 1;
    p.policies = calloc(1, sizeof *p.policies);
    p.policies[0] = (struct prt_policy_config){
        .name = copy("route/x"), .config = copy("return {token=\"s3cret\"}"), .where = copy("w")};
    p.n_partitions = 2;
    p.partitions = calloc(2, sizeof *p.partitions);
    p.partitions[0].name = copy("gold");
    p.partitions[1].name = copy("lead"), p.partitions[1].match = copy("acme");
    return p;
}

static struct prt_user_config *users(int *n)
{
    static const char *const names[] = {"a", "ab", "b", "m\xc3\xbcller"};
    struct prt_user_config *u = calloc(4, sizeof *u);

    for (int i = 0; i < 4; i++) {
        u[i] = (struct prt_user_config){.name = copy(names[i]), .secret = copy("s3cret")};
    }
    *n = 4;
    return u;
}

static struct prt_config *full(void)
{
    struct prt_config *c = calloc(1, sizeof *c);

    c->refs = 1;
    c->path = copy("/etc/poolrt/config.lua"), c->dir = copy("/etc/poolrt");
    c->n_listen = 2;
    c->listen = calloc(2, sizeof *c->listen);
    c->listen[0] = (struct prt_address){.host = copy("*"), .port = 6432, .text = copy("*:6432")};
    c->listen[1] = (struct prt_address){.is_unix = true, .host = copy("/run")};
    c->admin_listen = (struct prt_address){.host = copy("::1"), .text = copy("[::1]:8080")};
    c->admin_token = copy("s3cret");
    c->users = users(&c->n_users);
    c->tls_cert = copy("cert"), c->tls_key = copy("key");
    c->n_policy_path = 2;
    c->policy_path = calloc(2, sizeof *c->policy_path);
    c->policy_path[0] = copy("a"), c->policy_path[1] = copy("b");
    c->n_pools = 4;
    c->pools = calloc(4, sizeof *c->pools);
    c->pools[0] = pool("*");
    c->pools[1] = pool("app"), c->pools[2] = pool("app2"), c->pools[3] = pool("web");
    c->embedded.dir = copy("d"), c->embedded.run_dir = copy("r"), c->embedded.database = copy("x");
    c->embedded.users = users(&c->embedded.n_users);
    return c;
}

TEST(a_pool_is_found_by_name_else_the_catch_all)
{
    struct prt_config *c = full();

    CHECK(prt_config_pool(c, PRT_STR("app")) == &c->pools[1]);
    CHECK(prt_config_pool(c, PRT_STR("app2")) == &c->pools[2]);
    CHECK(prt_config_pool(c, PRT_STR("web")) == &c->pools[3]);
    CHECK(prt_config_pool(c, PRT_STR("*")) == &c->pools[0]);
    CHECK(prt_config_pool(c, PRT_STR("ap")) == &c->pools[0]);
    CHECK(prt_config_pool(c, PRT_STR("app\0")) == &c->pools[0]);
    CHECK(prt_config_pool(c, PRT_STR("")) == &c->pools[0]);
    c->pools[0].name[0] = '#'; /* no catch-all any more */
    CHECK(prt_config_pool(c, PRT_STR("zzz")) == NULL);
    CHECK(prt_config_pool(c, PRT_STR("")) == NULL);
    prt_config_unref(c);
}

TEST(a_user_is_found_by_the_whole_name)
{
    struct prt_config *c = full();

    for (int i = 0; i < c->n_users; i++) {
        CHECK(prt_config_user(c, prt_str_of(c->users[i].name)) == &c->users[i]);
    }
    CHECK(prt_config_user(c, PRT_STR("abc")) == NULL);
    CHECK(prt_config_user(c, PRT_STR("")) == NULL);
    CHECK(prt_config_user(c, PRT_STR("A")) == NULL);
    CHECK(prt_config_user(c, PRT_STR("\xff")) == NULL);
    prt_config_unref(c);
}

TEST(an_empty_configuration_finds_nothing_and_can_be_let_go)
{
    struct prt_config *c = calloc(1, sizeof *c);

    c->refs = 1;
    CHECK(prt_config_pool(c, PRT_STR("app")) == NULL);
    CHECK(prt_config_user(c, PRT_STR("a")) == NULL);
    prt_config_unref(c);
    prt_config_unref(NULL);
}

TEST(a_half_filled_one_can_be_let_go)
{
    struct prt_config *c = calloc(1, sizeof *c);

    c->refs = 1;
    c->n_users = c->n_pools = c->n_listen = c->n_policy_path = 3; /* counts, but no arrays yet */
    c->embedded.n_users = 3;
    prt_config_unref(c);
    c = calloc(1, sizeof *c);
    c->refs = 1;
    c->n_pools = 2;
    c->pools = calloc(2, sizeof *c->pools);
    c->pools[0].n_policies = c->pools[0].n_partitions = 2;
    c->pools[0].policies = calloc(2, sizeof *c->pools[0].policies);
    prt_config_unref(c);
}

#if OWN_FREE
TEST(the_last_reference_frees_and_no_secret_is_left_in_memory)
{
    struct prt_config *c = full();
    int before;

    CHECK(prt_config_ref(c) == c);
    frees = secrets_left = harmless_left = 0;
    prt_config_unref(c);
    CHECK_INT(frees, 0);
    CHECK_STR(c->admin_token, "s3cret");
    before = frees;
    prt_config_unref(c);
    CHECK(frees - before > 60);
    CHECK_INT(secrets_left, 0);
    CHECK_INT(harmless_left, 4); /* the look does see */
}
#endif
