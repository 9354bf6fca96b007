/* link_target_test.c - conninfo strings: what they say, and what is refused in which words. */
#include "link/link.h"
#include "test.h"

static struct prt_target *good(const char *conninfo)
{
    struct prt_target *t = NULL;
    struct prt_err err = {0};

    CHECK_INT(prt_target_new(&t, conninfo, &err), POOLRT_OK);
    CHECK_STR(err.text, "");
    return t;
}

static void bad(const char *conninfo, const char *want)
{
    struct prt_target *t = NULL;
    struct prt_err err = {0};

    CHECK_INT(prt_target_new(&t, conninfo, &err), POOLRT_CONFIG);
    CHECK(t == NULL);
    if (!strstr(err.text, want)) {
        printf("  %s\n    says: %s\n    not:  %s\n", conninfo, err.text, want);
        CHECK(false);
    }
    CHECK(!strstr(err.text, "s3cret"));
    CHECK(!strstr(err.text, "tail"));
}

static void text_is(const char *conninfo, const char *want)
{
    struct prt_target *t = good(conninfo);

    if (t) {
        CHECK_STR(prt_target_text(t), want);
    }
    prt_target_unref(t);
}

TEST(parts_of_a_conninfo)
{
    struct prt_target *t = good("host=db1,db2 port=5433 dbname=app user=bob password='s3 cret'");

    CHECK_STR(prt_target_text(t), "db1:5433,db2:5433");
    CHECK_STR(prt_target_dbname(t), "app");
    CHECK_STR(prt_target_user(t), "bob");
    CHECK_STR(prt_target_password(t), "s3 cret");
    CHECK(prt_target_ref(t) == t);
    prt_target_unref(t);
    CHECK_STR(prt_target_dbname(t), "app"); /* one reference is left */
    prt_target_unref(t);
    t = good(
        "postgres://bob:s3cret@db1:1,db2:2/app?sslmode=require&target_session_attrs=read-write");
    CHECK_STR(prt_target_text(t), "db1:1,db2:2");
    CHECK_STR(prt_target_user(t), "bob");
    prt_target_unref(t);
}

TEST(what_is_absent_is_null)
{
    struct prt_target *t;

    CHECK_INT(unsetenv("PGHOST"), 0);
    CHECK_INT(setenv("PGUSER", "somebody", 1), 0);
    CHECK_INT(setenv("PGDATABASE", "somewhere", 1), 0);
    t = good("host=db1");
    CHECK(prt_target_dbname(t) == NULL);
    CHECK(prt_target_user(t) == NULL);
    CHECK(prt_target_password(t) == NULL);
    prt_target_unref(t);
    prt_target_unref(NULL);
    CHECK_INT(unsetenv("PGUSER") | unsetenv("PGDATABASE"), 0);
}

TEST(texts_of_hosts)
{
    text_is("host=db1", "db1:5432");
    text_is("hostaddr=10.0.0.1 port=6000", "10.0.0.1:6000");
    text_is("host=db1,db2 hostaddr=10.0.0.1,10.0.0.2 port=1,2", "db1:1,db2:2");
    text_is("host=::1 port=6000", "[::1]:6000");
    text_is("host=/run/postgresql,db2 port=,6000", "/run/postgresql:5432,db2:6000");
    text_is("", "[local]:5432");
    text_is("postgres://[2001:db8::1]:7/x", "[2001:db8::1]:7");
}

TEST(the_environment_fills_in_hosts_as_libpq_does)
{
    CHECK_INT(setenv("PGHOST", "envhost", 1) | setenv("PGPORT", "7777", 1), 0);
    text_is("dbname=x", "envhost:7777");
    text_is("host=db1", "db1:7777");
    text_is("host=db1 port=1", "db1:1");
    CHECK_INT(setenv("PGHOSTADDR", "10.9.9.9,10.9.9.8", 1), 0);
    text_is("host=db1 port=1", "db1:1");
    CHECK_INT(unsetenv("PGHOST") | unsetenv("PGPORT") | unsetenv("PGHOSTADDR"), 0);
}

TEST(refusals_name_the_keyword)
{
    bad("host=db1 nosuchword=1", "nosuchword");
    bad("postgres://h/db?nosuchword=1", "nosuchword");
    bad("host=a,b port=1,2,3", "3 entries in port but 2 in host");
    bad("host=a,b hostaddr=10.0.0.1", "2 hosts but 1 entries in hostaddr");
    bad("host=a port=0", "port \"0\" is not a number from 1 to 65535");
    bad("host=a port=65536", "port \"65536\"");
    bad("host=a port=5x", "port \"5x\"");
    bad("host=a,b port=1,-2", "port \"-2\"");
    bad("host=a sslmode=maybe", "sslmode=maybe");
    bad("host=a target_session_attrs=leader", "target_session_attrs=leader");
    bad("host=a connect_timeout=soon", "connect_timeout=soon");
    bad("host=a service=prod", "service is not supported");
    bad("host=a replication=database", "replication");
}

/* libpq repeats what it does not understand, which may be the password */
TEST(refusals_never_repeat_a_password)
{
    bad("host=a password=s3cret tail", "check blanks, quotes");
    bad("host=a password=s3cret tail=1", "may be part of a password");
    bad("password='s3cret tail host=a", "check blanks, quotes");
    bad("postgres://bob:s3cret@h:x]y/db?a=b", "");
    bad("postgres://bob:s3cret%zz@h/db", "check blanks");
    bad("postgres://bob:s3cret@[h/db", "check blanks");
    bad("postgres://h/db?password=s3cret&tail", "check blanks");
    bad("s3cret", "not a conninfo string");
}
