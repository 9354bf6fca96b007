/* admin_access_test.c - Host, token and the price of wrong tokens. */
#include "admin/admin_int.h"
#include "test.h"

#include <arpa/inet.h>
#include <netinet/in.h>

static struct prt_access access_rules;
static struct prt_config cfg;
static int64_t now_us = 1000000000;

static struct sockaddr_storage address(const char *text)
{
    struct sockaddr_storage sa;
    struct sockaddr_in *v4 = (struct sockaddr_in *)&sa;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&sa;

    memset(&sa, 0, sizeof sa);
    if (strchr(text, ':')) {
        v6->sin6_family = AF_INET6;
        CHECK_INT(inet_pton(AF_INET6, text, &v6->sin6_addr), 1);
    } else {
        v4->sin_family = AF_INET;
        CHECK_INT(inet_pton(AF_INET, text, &v4->sin_addr), 1);
    }
    return sa;
}

static void listen_on(const char *bound, const char *host, const char *token)
{
    static char host_text[128], token_text[128];
    struct sockaddr_storage sa = address(bound);

    (void)snprintf(host_text, sizeof host_text, "%s", host);
    (void)snprintf(token_text, sizeof token_text, "%s", token ? token : "");
    memset(&cfg, 0, sizeof cfg);
    cfg.admin_listen.host = host_text;
    cfg.admin_token = token ? token_text : NULL;
    prt_thread_is(PRT_THREAD_CONTROL, 0);
    prt_access_init(&access_rules, &cfg, (struct sockaddr *)&sa);
}

/* status of a request; 1 when it is let in as admin, 0 as nobody */
static int ask(const char *peer, const char *host, const char *authorization)
{
    struct sockaddr_storage sa = address(peer);
    struct prt_http_head h = {.host = prt_str_of(host)};
    bool is_admin;
    struct prt_refusal why;

    if (authorization) {
        h.authorization = prt_str_of(authorization);
    }
    why = prt_access_check(&access_rules, &h, (struct sockaddr *)&sa, now_us, &is_admin);
    CHECK(!why.status || !is_admin);
    return why.status ? why.status : is_admin;
}
#define HOST(host) ask("127.0.0.1", host, NULL)

TEST(loopback_is_recognized)
{
    static const char *const yes[] = {"127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"};
    static const char *const no[] = {"10.0.0.1", "0.0.0.0", "::", "2001:db8::1", "::ffff:10.0.0.1"};

    for (size_t i = 0; i < sizeof yes / sizeof yes[0]; i++) {
        struct sockaddr_storage sa = address(yes[i]);
        CHECK(prt_sockaddr_is_loopback((struct sockaddr *)&sa));
    }
    for (size_t i = 0; i < sizeof no / sizeof no[0]; i++) {
        struct sockaddr_storage sa = address(no[i]);
        CHECK(!prt_sockaddr_is_loopback((struct sockaddr *)&sa));
    }
}

TEST(only_names_of_the_listener_are_served)
{
    listen_on("127.0.0.1", "127.0.0.1", NULL);
    CHECK_INT(HOST("localhost"), 1);
    CHECK_INT(HOST("LocalHost:8080"), 1);
    CHECK_INT(HOST("127.0.0.1:9000"), 1);
    CHECK_INT(HOST("[::1]"), 1);
    CHECK_INT(HOST("[::1]:8080"), 1);
    CHECK_INT(HOST("evil.example"), 421);
    CHECK_INT(HOST("localhost.evil.example"), 421);
    CHECK_INT(HOST("localhost:"), 421);
    CHECK_INT(HOST("localhost:0"), 421);
    CHECK_INT(HOST("localhost:65536"), 421);
    CHECK_INT(HOST("localhost:80@evil.example"), 421);
    CHECK_INT(HOST("evil@localhost"), 421);
    CHECK_INT(HOST(""), 421);
    CHECK_INT(HOST("["), 421);
    CHECK_INT(HOST("[::1]x"), 421);
    CHECK_INT(HOST("10.0.0.1"), 421);
    listen_on("10.0.0.1", "db1.internal", "t");
    CHECK_INT(ask("10.0.0.2", "DB1.internal:80", NULL), 0);
    CHECK_INT(ask("10.0.0.2", "db2.internal:80", NULL), 421);
}

TEST(a_wildcard_listener_takes_any_address_but_no_foreign_name)
{
    listen_on("0.0.0.0", "*", "t");
    CHECK_INT(ask("10.0.0.2", "10.0.0.1:8080", NULL), 0);
    CHECK_INT(ask("10.0.0.2", "[2001:db8::1]:8080", NULL), 0);
    CHECK_INT(ask("10.0.0.2", "evil.example:8080", NULL), 421);
    CHECK_INT(ask("10.0.0.2", "*", NULL), 0); /* as configured; nobody can own that name */
    snprintf(access_rules.machine, sizeof access_rules.machine, "mybox");
    CHECK_INT(ask("10.0.0.2", "mybox:8080", NULL), 0);
}

TEST(the_right_token_and_no_other)
{
    listen_on("127.0.0.1", "127.0.0.1", "secret");
    CHECK_INT(ask("127.0.0.1", "localhost", "Bearer secret"), 1);
    CHECK_INT(ask("127.0.0.1", "localhost", "bearer secret"), 1);
    CHECK_INT(ask("127.0.0.1", "localhost", NULL), 0);
    CHECK_INT(ask("127.0.0.1", "localhost", "Bearer secre"), 401);
    CHECK_INT(ask("127.0.0.1", "localhost", "Bearer secret2"), 401);
    CHECK_INT(ask("127.0.0.1", "localhost", "Bearer  secret"), 401);
    CHECK_INT(ask("127.0.0.1", "localhost", "Bearer "), 401);
    CHECK_INT(ask("127.0.0.1", "localhost", ""), 401);
    CHECK_INT(ask("127.0.0.1", "localhost", "Basic c2VjcmV0"), 401);
    CHECK_INT(access_rules.failures, 6);
}

TEST(without_a_token_only_a_loopback_listener_lets_in)
{
    listen_on("127.0.0.1", "127.0.0.1", NULL);
    CHECK_INT(ask("127.0.0.1", "localhost", NULL), 1);
    CHECK_INT(ask("127.0.0.1", "localhost", "Bearer whatever"), 1);
    listen_on("10.0.0.1", "10.0.0.1", "t");
    prt_access_set_token(&access_rules, NULL); /* a reload took it away */
    CHECK_INT(ask("10.0.0.2", "10.0.0.1", NULL), 0);
    CHECK_INT(ask("10.0.0.2", "10.0.0.1", "Bearer t"), 0);
}

TEST(wrong_tokens_have_a_price)
{
    listen_on("0.0.0.0", "*", "secret");
    for (int i = 0; i < 10; i++) {
        CHECK_INT(ask("10.0.0.2", "localhost", "Bearer x"), 401);
    }
    CHECK_INT(ask("10.0.0.2", "localhost", "Bearer x"), 429);
    CHECK_INT(ask("10.0.0.2", "localhost", "Bearer secret"), 429);
    CHECK_INT(ask("10.0.0.2", "localhost", NULL), 0); /* no guess, no price */
    CHECK_INT(ask("10.0.0.3", "localhost", "Bearer secret"), 1);
    CHECK_INT(access_rules.failures, 10);
    now_us += 1000000;
    CHECK_INT(ask("10.0.0.2", "localhost", "Bearer x"), 401);
    CHECK_INT(ask("10.0.0.2", "localhost", "Bearer x"), 429);
    now_us += 1000000;
    CHECK_INT(ask("10.0.0.2", "localhost", "Bearer secret"), 1);
}

TEST(a_v6_network_counts_as_one)
{
    listen_on("0.0.0.0", "*", "secret");
    for (int i = 0; i < 10; i++) {
        CHECK_INT(ask(i % 2 ? "2001:db8::1" : "2001:db8::ffff:2", "localhost", "Bearer x"), 401);
    }
    CHECK_INT(ask("2001:db8::3", "localhost", "Bearer x"), 429);
    CHECK_INT(ask("2001:db8:0:1::3", "localhost", "Bearer x"), 401);
}

TEST(the_table_is_bounded_and_forgets_who_owes_least)
{
    char peer[32];

    listen_on("0.0.0.0", "*", "secret");
    for (int i = 0; i < 10; i++) {
        CHECK_INT(ask("10.9.9.9", "localhost", "Bearer x"), 401);
    }
    for (int i = 0; i < 1000; i++) {
        (void)snprintf(peer, sizeof peer, "10.1.%d.%d", i / 250, i % 250);
        CHECK_INT(ask(peer, "localhost", "Bearer x"), 401);
    }
    CHECK_INT(ask("10.9.9.9", "localhost", "Bearer x"), 429);
    CHECK_INT(access_rules.failures, 1010);
}
