/* pg_startup_test.c - the first packet, the settings in `options`, and single messages. */
#include "pg/pg.h"
#include "test.h"

static uint8_t packet[PRT_STARTUP_MAX + 1];
static struct prt_startup s;
static struct prt_err err;

/* A packet with this code and body, its length right, parsed whole. */
static enum prt_startup_rc parse(uint32_t code, const char *body, size_t n)
{
    prt_put32(packet, (uint32_t)n + 8);
    prt_put32(packet + 4, code);
    memcpy(packet + 8, body, n);
    memset(&err, 0, sizeof err);
    return prt_startup_parse(packet, n + 8, &s, &err);
}
/* `body` is a literal: its own NUL is the packet's last byte */
#define SESSION(body) parse(196608, body, sizeof(body))

static void check_error(enum prt_startup_rc rc, const char *sqlstate, const char *text)
{
    CHECK_INT(rc, PRT_STARTUP_ERROR);
    CHECK_STR(err.sqlstate, sqlstate);
    CHECK(strstr(err.text, text));
}

TEST(a_session)
{
    struct prt_str name, value;
    size_t at = 0;

    CHECK_INT(SESSION("user\0app\0database\0shop\0application_name\0x\0TimeZone\0UTC\0"),
              PRT_STARTUP_OK);
    CHECK_INT(s.kind, PRT_START_SESSION);
    CHECK_INT(s.size, prt_get32(packet));
    CHECK(prt_str_eqz(s.user, "app") && prt_str_eqz(s.database, "shop"));
    CHECK(prt_str_eqz(s.application_name, "x") && s.options.n == 0);
    CHECK(!s.is_replication && !s.wants_negotiation && s.minor == 0);
    CHECK(prt_startup_next(&s, &at, &name, &value) && prt_str_eqz(name, "user"));
    CHECK(prt_startup_next(&s, &at, &name, &value) && prt_startup_next(&s, &at, &name, &value));
    CHECK(prt_startup_next(&s, &at, &name, &value) && prt_str_eqz(name, "TimeZone") &&
          prt_str_eqz(value, "UTC"));
    CHECK(!prt_startup_next(&s, &at, &name, &value));
}

TEST(cut_at_each_byte)
{
    size_t n;

    CHECK_INT(SESSION("user\0app\0"), PRT_STARTUP_OK);
    n = s.size;
    for (size_t k = 0; k < n; k++) {
        CHECK_INT(prt_startup_parse(packet, k, &s, &err), PRT_STARTUP_MORE);
    }
    CHECK_INT(prt_startup_parse(packet, n + 1, &s, &err), PRT_STARTUP_OK);
    CHECK_INT(s.size, n);
}

TEST(lengths)
{
    static const uint32_t silent[] = {0, 1, 4, 7, PRT_STARTUP_MAX + 1, 0x7fffffff, 0xffffffff};

    for (size_t i = 0; i < sizeof silent / sizeof *silent; i++) {
        prt_put32(packet, silent[i]);
        CHECK_INT(prt_startup_parse(packet, 4, &s, &err), PRT_STARTUP_SILENCE);
    }
    memset(packet, 'x', sizeof packet);
    prt_put32(packet, PRT_STARTUP_MAX);
    prt_put32(packet + 4, 196608);
    memcpy(packet + 8, "user\0app\0y", 11);
    packet[PRT_STARTUP_MAX - 3] = packet[PRT_STARTUP_MAX - 2] = packet[PRT_STARTUP_MAX - 1] = 0;
    CHECK_INT(prt_startup_parse(packet, PRT_STARTUP_MAX - 1, &s, &err), PRT_STARTUP_MORE);
    CHECK_INT(prt_startup_parse(packet, PRT_STARTUP_MAX, &s, &err), PRT_STARTUP_ERROR);
    memcpy(packet + 8, "user\0app\0y\0", 11);
    CHECK_INT(prt_startup_parse(packet, PRT_STARTUP_MAX, &s, &err), PRT_STARTUP_ERROR);
    packet[PRT_STARTUP_MAX - 3] = 'x'; /* now: a long value, its NUL, the final NUL */
    CHECK_INT(prt_startup_parse(packet, PRT_STARTUP_MAX, &s, &err), PRT_STARTUP_OK);
    CHECK_INT(s.size, PRT_STARTUP_MAX);
}

TEST(the_last_byte_is_the_final_nul)
{
    const char *what = "does not end";

    check_error(parse(196608, "", 0), "08P01", what);
    check_error(parse(196608, "user\0app", 8), "08P01", what);
    check_error(parse(196608, "user\0app", 9), "08P01", what);       /* no final NUL */
    check_error(parse(196608, "user\0app\0\0x", 11), "08P01", what); /* one byte behind it */
    check_error(parse(196608, "user\0app\0\0\0", 12), "08P01", what);
    check_error(parse(196608, "user\0app\0database\0", 19), "08P01", what);
    check_error(parse(196608, "user", 4), "08P01", what);
    check_error(parse(196608, "user", 5), "08P01", what);
    CHECK_INT(parse(196608, "user\0app\0", 10), PRT_STARTUP_OK);
    check_error(parse(196608, "", 1), "28000", "user name");
}

TEST(the_last_of_a_name_counts)
{
    CHECK_INT(SESSION("user\0a\0database\0x\0user\0b\0database\0y\0"), PRT_STARTUP_OK);
    CHECK(prt_str_eqz(s.user, "b") && prt_str_eqz(s.database, "y"));
    check_error(SESSION("user\0a\0user\0\0"), "28000", "user name");
    CHECK_INT(SESSION("user\0a\0User\0b\0Application_Name\0me\0"), PRT_STARTUP_OK);
    CHECK(prt_str_eqz(s.user, "a") && prt_str_eqz(s.application_name, "me"));
}

static enum prt_startup_rc long_name(const char *name, size_t n)
{
    char body[200] = "user\0app\0";
    size_t at = strcmp(name, "user") == 0 ? 0 : 9;

    memcpy(body + at, name, strlen(name) + 1);
    at += strlen(name) + 1;
    memset(body + at, 'x', n);
    body[at + n] = body[at + n + 1] = 0;
    return parse(196608, body, at + n + 2);
}

TEST(names_longer_than_63_bytes_are_refused_by_name)
{
    CHECK_INT(long_name("user", 63), PRT_STARTUP_OK);
    CHECK_INT(s.user.n, 63);
    check_error(long_name("user", 64), "28000", "user name is longer than 63 bytes: xxx");
    CHECK_INT(long_name("database", 63), PRT_STARTUP_OK);
    check_error(long_name("database", 64), "3D000", "database name is longer than 63 bytes: xxx");
}

TEST(replication_is_a_boolean_or_database)
{
    static const char *const yes[] = {"true", "TRUE", "t", "yes", "y", "on", "1", "database"};
    static const char *const no[] = {"false", "f", "no", "off", "of", "0"};
    static const char *const bad[] = {"", "o", "2", "truex", "Database", "\x11", "11"};
    char body[60] = "user\0a\0replication\0";

    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++) {
        memcpy(body + 19, yes[i], strlen(yes[i]) + 1);
        CHECK_INT(parse(196608, body, 19 + strlen(yes[i]) + 2), PRT_STARTUP_OK);
        CHECK(s.is_replication);
        memset(body + 19, 0, 20);
    }
    for (size_t i = 0; i < sizeof no / sizeof *no; i++) {
        memcpy(body + 19, no[i], strlen(no[i]) + 1);
        CHECK_INT(parse(196608, body, 19 + strlen(no[i]) + 2), PRT_STARTUP_OK);
        CHECK(!s.is_replication);
        memset(body + 19, 0, 20);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memcpy(body + 19, bad[i], strlen(bad[i]) + 1);
        check_error(parse(196608, body, 19 + strlen(bad[i]) + 2), "22023", "replication");
        memset(body + 19, 0, 20);
    }
}

TEST(protocol_versions)
{
    static const char body[] = "user\0a\0";

    check_error(parse(2 << 16, body, sizeof body), "0A000", "protocol 2.0");
    check_error(parse(4 << 16, body, sizeof body), "0A000", "protocol 4.0");
    check_error(parse(1234 << 16 | 5677, body, sizeof body), "0A000", "protocol 1234.5677");
    CHECK_INT(parse(3 << 16 | 2, body, sizeof body), PRT_STARTUP_OK);
    CHECK(s.minor == 2 && !s.wants_negotiation);
    CHECK_INT(parse(3 << 16 | 1, body, sizeof body), PRT_STARTUP_OK);
    CHECK(s.minor == 1 && s.wants_negotiation);
    CHECK_INT(parse(3 << 16 | 9999, body, sizeof body), PRT_STARTUP_OK);
    CHECK(s.minor == 9999 && s.wants_negotiation);
}

TEST(negotiation_names_the_newest_minor_and_all_options)
{
    static const char want[] = "v\0\0\0\x1b\0\3\0\0\0\0\0\2_pq_.a\0_pq_.bc";
    struct prt_str name, value;
    struct prt_buf b = {0};
    size_t at = 0;

    CHECK_INT(SESSION("_pq_.a\0001\0user\0u\0_pq_.bc\0\0"), PRT_STARTUP_OK);
    CHECK(s.wants_negotiation);
    prt_put_negotiate(&b, &s);
    CHECK_INT(prt_buf_len(&b), sizeof want);
    CHECK(memcmp(prt_buf_data(&b), want, sizeof want) == 0);
    CHECK(prt_startup_next(&s, &at, &name, &value) && prt_str_eqz(name, "user"));
    CHECK(!prt_startup_next(&s, &at, &name, &value)); /* they are no parameters */
    prt_buf_reset(&b);
    CHECK_INT(parse(3 << 16 | 9999, "user\0a\0", 8), PRT_STARTUP_OK);
    prt_put_negotiate(&b, &s);
    CHECK_INT(prt_get32(prt_buf_data(&b) + 5), 3 << 16 | 2);
    CHECK_INT(prt_get32(prt_buf_data(&b) + 9), 0);
    prt_buf_free(&b);
}

TEST(ssl_gss_and_cancel)
{
    char key[300] = {0};

    CHECK_INT(parse(80877103, "", 0), PRT_STARTUP_OK);
    CHECK(s.kind == PRT_START_SSL && s.size == 8);
    CHECK_INT(parse(80877104, "", 0), PRT_STARTUP_OK);
    CHECK_INT(s.kind, PRT_START_GSS);
    CHECK_INT(parse(80877103, "x", 1), PRT_STARTUP_SILENCE);
    memcpy(key, "\1\2\3\4secr", 8);
    CHECK_INT(parse(80877102, key, 8), PRT_STARTUP_OK);
    CHECK(s.kind == PRT_START_CANCEL && s.cancel_pid == 0x01020304);
    CHECK(prt_str_eqz(s.cancel_key, "secr"));
    CHECK_INT(parse(80877102, key, 7), PRT_STARTUP_SILENCE);
    CHECK_INT(parse(80877102, key, 4 + 256), PRT_STARTUP_OK);
    CHECK_INT(s.cancel_key.n, 256);
    CHECK_INT(parse(80877102, key, 4 + 257), PRT_STARTUP_SILENCE);
}

/* "name=value;..." of all settings; "!word" where something else stands */
static const char *settings(const char *options)
{
    static char out[400], buf[PRT_STARTUP_MAX];
    struct prt_str name, value;
    size_t at = 0;
    int rc;

    out[0] = 0;
    while ((rc = prt_options_next(prt_str_of(options), &at, buf, &name, &value)) > 0) {
        size_t n = strlen(out);
        (void)snprintf(out + n, sizeof out - n, PRT_STR_FMT "=" PRT_STR_FMT ";", PRT_STR_ARG(name),
                       PRT_STR_ARG(value));
    }
    if (rc < 0) {
        size_t n = strlen(out);
        (void)snprintf(out + n, sizeof out - n, "!" PRT_STR_FMT, PRT_STR_ARG(name));
    }
    return out;
}

TEST(options)
{
    CHECK_STR(settings(""), "");
    CHECK_STR(settings(" \t\n"), "");
    CHECK_STR(settings("-c a=1 -cb=2 --c=3"), "a=1;b=2;c=3;");
    CHECK_STR(settings("-c poolrt.tenant=acme"), "poolrt.tenant=acme;");
    CHECK_STR(settings("--work-mem=4=5  -c\tx-y="), "work_mem=4=5;x_y=;");
    CHECK_STR(settings("-c a=1\\ 2\\\\3\\4"), "a=1 2\\34;");
    CHECK_STR(settings("-c a=\\-b\\"), "a=-b;");
    CHECK_STR(settings("-c search_path=x\\ y -c"), "search_path=x y;!-c");
    CHECK_STR(settings("-c a=1 -d5"), "a=1;!-d5");
    CHECK_STR(settings("-c novalue"), "!novalue");
    CHECK_STR(settings("--"), "!--");
    CHECK_STR(settings("--=1"), "!--=1");
    CHECK_STR(settings("-c =1"), "!=1");
    CHECK_STR(settings("-"), "!-");
    CHECK_STR(settings("word"), "!word");
    CHECK_STR(settings("\\"), "!");
}

TEST(options_longer_than_the_buffer_are_refused)
{
    static char text[PRT_STARTUP_MAX + 10], buf[PRT_STARTUP_MAX];
    struct prt_str name, value;
    size_t at = 0;

    memset(text, 'x', sizeof text);
    CHECK_INT(prt_options_next((struct prt_str){text, sizeof text}, &at, buf, &name, &value), -1);
    CHECK_INT(prt_options_next((struct prt_str){text, sizeof text}, &at, buf, &name, &value), 0);
}

/* ---- msg.c ---- */
static bool is_message(const struct prt_buf *b, uint8_t type, const char *body, size_t n)
{
    const uint8_t *p = prt_buf_data(b);

    return prt_buf_len(b) == n + 5 && p[0] == type && prt_get32(p + 1) == n + 4 &&
           memcmp(p + 5, body, n) == 0;
}
#define BUILT(call, type, body)                                                                    \
    do {                                                                                           \
        struct prt_buf b = {0};                                                                    \
        call;                                                                                      \
        CHECK(is_message(&b, type, body, sizeof(body) - 1));                                       \
        prt_buf_free(&b);                                                                          \
    } while (0)

TEST(built_messages)
{
    BUILT(prt_put_error(&b, "FATAL", "08P01", PRT_STR("no"), NULL, "try"), 'E',
          "SFATAL\0VFATAL\0C08P01\0Mno\0Htry\0\0");
    BUILT(prt_put_error(&b, "ERROR", "0A000", PRT_STR("a\0Hb"), "d", NULL), 'E',
          "SERROR\0VERROR\0C0A000\0Ma\0Dd\0\0");
    BUILT(prt_put_notice(&b, "WARNING", "01000", PRT_STR("")), 'N',
          "SWARNING\0VWARNING\0C01000\0M\0\0");
    BUILT(prt_put_auth(&b, 5, "salt", 4), 'R', "\0\0\0\5salt");
    BUILT(prt_put_auth(&b, 0, NULL, 0), 'R', "\0\0\0\0");
    BUILT(prt_put_param(&b, PRT_STR("a"), PRT_STR("bc\0d")), 'S', "a\0bc\0");
    BUILT(prt_put_key(&b, 7, "key!", 4), 'K', "\0\0\0\7key!");
    BUILT(prt_put_ready(&b, 'T'), 'Z', "T");
    BUILT(prt_put_query(&b, PRT_STR("ROLLBACK")), 'Q', "ROLLBACK\0");
    BUILT(prt_put_parse(&b, PRT_STR("x")), 'P', "\0x\0\0\0");
    BUILT(prt_put_close(&b, 'S', PRT_STR("n")), 'C', "Sn\0");
    BUILT(prt_put_sync(&b), 'S', "");
    BUILT(prt_put_terminate(&b), 'X', "");
    BUILT(prt_put_copy_fail(&b, PRT_STR("gone")), 'f', "gone\0");
}

TEST(a_message_that_does_not_fit_leaves_nothing_behind)
{
    struct prt_buf b = {0};
    static const char x[1];

    prt_put_ready(&b, 'I');
    prt_put_auth(&b, 0, x, (size_t)PRT_BUF_MAX + 1);
    CHECK(b.failed);
    CHECK_INT(prt_buf_len(&b), 6);
    prt_put_sync(&b);
    CHECK_INT(prt_buf_len(&b), 6);
    prt_buf_free(&b);
}

static struct prt_msg message(uint8_t type, const char *body, uint32_t n)
{
    return (struct prt_msg){type, n, (const uint8_t *)body, n, n + 5};
}
#define MESSAGE(type, body) message(type, body, sizeof(body) - 1)

TEST(notices_are_read_as_far_as_they_are_here)
{
    struct prt_msg m = MESSAGE('E', "SFEHLER\0VERROR\0C42601\0Mm\0Dd\0Hh\0Rr\0Zz\0\0");
    struct prt_notice n;

    prt_notice_read(&m, &n);
    CHECK(prt_str_eqz(n.severity, "ERROR") && prt_str_eqz(n.sqlstate, "42601"));
    CHECK(prt_str_eqz(n.message, "m") && prt_str_eqz(n.detail, "d") && prt_str_eqz(n.hint, "h"));
    CHECK(prt_str_eqz(n.routine, "r"));
    m.have = 18; /* in the middle of SQLSTATE */
    prt_notice_read(&m, &n);
    CHECK(prt_str_eqz(n.severity, "ERROR") && n.sqlstate.n == 0 && n.message.n == 0);
    m = MESSAGE('E', "SFATAL\0\0VERROR\0\0");
    prt_notice_read(&m, &n);
    CHECK(prt_str_eqz(n.severity, "FATAL"));
    m = MESSAGE('E', "VERROR\0VFATAL\0Ca\0Cb\0\0"); /* the first counts */
    prt_notice_read(&m, &n);
    CHECK(prt_str_eqz(n.severity, "ERROR") && prt_str_eqz(n.sqlstate, "a"));
    m = MESSAGE('E', "");
    prt_notice_read(&m, &n);
    CHECK(!n.severity.n && !n.sqlstate.n && !n.message.n);
}

TEST(of_a_long_notice_only_the_beginning_is_read)
{
    static char body[PRT_SMALL_MAX + 100];
    struct prt_msg m = message('E', body, sizeof body);
    struct prt_notice n;

    memset(body, 'x', sizeof body);
    memcpy(body, "SERROR\0", 7);
    memcpy(body + PRT_SMALL_MAX - 20, "\0VPANIC\0Mnot here", 17);
    memcpy(body + PRT_SMALL_MAX + 20, "\0CXX000\0", 9);
    prt_notice_read(&m, &n); /* as if only so much had come */
    CHECK(prt_str_eqz(n.severity, "PANIC") && n.sqlstate.n == 0 && n.message.n == 0);
}

TEST(strings_of_a_message)
{
    struct prt_msg m = MESSAGE('P', "name\0\0text\0tail");
    struct prt_str str;

    CHECK(prt_msg_string(&m, 0, &str) && prt_str_eqz(str, "name"));
    CHECK(prt_msg_string(&m, 1, &str) && prt_str_eqz(str, ""));
    CHECK(prt_msg_string(&m, 2, &str) && prt_str_eqz(str, "text"));
    CHECK(!prt_msg_string(&m, 3, &str));
    CHECK(!prt_msg_string(&m, 9, &str) && str.n == 0);
    m.have = 4;
    CHECK(!prt_msg_string(&m, 0, &str));
}
