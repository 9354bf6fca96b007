/* luahost_config_test.c - config.lua becomes a struct prt_config, or one sentence that helps. */
#include "luahost/luahost.h"
#include "test.h"

#include <lauxlib.h>
#include <lua.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[] = "/tmp/poolrt-config-XXXXXX";
static char file[64];

static const char *in_dir(const char *name)
{
    static char path[128];

    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void remove_dir(void)
{
    static const char *const names[] = {"config.lua", "secret", "server.crt", "server.key"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        (void)unlink(in_dir(names[i]));
    }
    (void)rmdir(in_dir("policies"));
    (void)rmdir(in_dir("looks.lua"));
    (void)rmdir(dir);
}

static void need_dir(void)
{
    static bool done;

    if (done) {
        return;
    }
    done = true;
    if (!mkdtemp(dir)) {
        perror(dir);
        exit(2);
    }
    (void)snprintf(file, sizeof file, "%s/config.lua", dir);
    (void)mkdir(in_dir("policies"), 0700);
    (void)mkdir(in_dir("looks.lua"), 0700);
    (void)atexit(remove_dir);
}

static void write_bytes(const char *name, const char *text, size_t n)
{
    need_dir();
    FILE *f = fopen(in_dir(name), "wb");
    if (!f || fwrite(text, 1, n, f) != n || fclose(f) != 0) {
        perror(name);
        exit(2);
    }
}

static void write_file(const char *name, const char *text)
{
    write_bytes(name, text, strlen(text));
}

static struct prt_config *load(const char *text)
{
    struct prt_config *c;
    struct prt_err err = {.rc = POOLRT_OK};

    write_file("config.lua", text);
    if (prt_config_load(file, &c, &err) != POOLRT_OK) {
        printf("  refused: %s\n", err.text);
        prt_test_bad++;
        return NULL;
    }
    return c;
}

/* The sentence, "@" in `want` standing for the file's name. */
static void check_refused(const char *path, const char *want, int line)
{
    struct prt_config *c = NULL;
    struct prt_err err = {.rc = POOLRT_OK};
    char full[600] = "";
    size_t n = 0;

    poolrt_rc rc = prt_config_load(path, &c, &err);
    for (const char *p = want; *p && n < sizeof full - 80; p++) {
        n += (size_t)(*p == '@'   ? snprintf(full + n, sizeof full - n, "%s", path)
                      : *p == '~' ? snprintf(full + n, sizeof full - n, "%s", dir)
                                  : snprintf(full + n, sizeof full - n, "%c", *p));
    }
    if (rc != POOLRT_CONFIG || c || strcmp(err.text, full) != 0) {
        prt_test_bad++;
        printf("  line %d: got  (%d) %s\n  %*s want %s\n", line, rc, err.text, 15, "", full);
        prt_config_unref(c);
    }
}

static void refuses(const char *text, const char *want, int line)
{
    write_file("config.lua", text);
    check_refused(file, want, line);
}
#define REFUSES(text, want) refuses((text), (want), __LINE__)

#define AUTH "auth = { users = { acme = 'demo' } },\n"
#define TARGET "target = 'host=db1 dbname=app'"
#define WITH(top) "return {\n" AUTH "pools = { app = { " TARGET " } },\n" top "\n}"
#define POOL_WITH(keys) "return {\n" AUTH "pools = {\n app = {\n " TARGET ",\n " keys "\n } } }"
/* of the tests' texts: WITH puts `top` on line 4, POOL_WITH `keys` on line 6 */

/* ---- what is understood ---- */

TEST(the_smallest_configuration_gets_every_default)
{
    struct prt_config *c = load(WITH(""));

    if (!c) {
        return;
    }
    CHECK_INT(c->n_listen, 1);
    CHECK_STR(c->listen[0].host, "127.0.0.1");
    CHECK_INT(c->listen[0].port, 6432);
    CHECK(!c->admin_listen.host && !c->admin_token);
    CHECK_INT(c->auth_type, PRT_AUTH_SCRAM);
    CHECK_INT(c->login_timeout_us, 60000000);
    CHECK_INT(c->tls_mode, PRT_TLS_DISABLE);
    CHECK_INT(c->log_level, PRT_LOG_INFO);
    CHECK(c->log_connections);
    CHECK_INT(c->workers, 0);
    CHECK_INT(c->max_packet_size_bytes, (1 << 30) - 2);
    CHECK(!c->embedded.dir);
    CHECK_STR(c->path, file);
    CHECK_STR(c->dir, dir);
    prt_config_unref(c);
}

TEST(the_defaults_of_a_pool_are_those_of_the_reference_list)
{
    struct prt_config *c = load(WITH(""));

    if (!c) {
        return;
    }
    const struct prt_pool_config *p = prt_config_pool(c, PRT_STR("app"));
    CHECK(p && !prt_config_pool(c, PRT_STR("other")));
    CHECK_INT(p->min_size, 10);
    CHECK_INT(p->max_size, 100);
    CHECK_INT(p->initial_size, 20);
    CHECK_INT(p->acquire_timeout_us, 30000000);
    CHECK_INT(p->max_lifetime_us, 3600000000LL);
    CHECK_INT(p->idle_timeout_us, 600000000);
    CHECK(p->validate_on_acquire && !p->validate_on_release);
    CHECK_INT(p->validation_timeout_us, 5000000);
    CHECK_INT(p->max_wait_queue_size, 1000);
    CHECK_INT(p->creation_throttle, 0);
    CHECK_INT(p->maintenance_interval_us, 60000000);
    CHECK_INT(p->statement_cache_size, 100);
    CHECK_INT(p->leak_detection_threshold_us, 300000000);
    CHECK(p->fair_queue && !p->enable_partitioning);
    CHECK_INT(p->mode, PRT_MODE_SESSION);
    CHECK_INT(p->tenant.from, PRT_TENANT_NONE);
    CHECK(!p->user && !p->password && !p->tenant.pattern);
    for (int i = 0; i < PRT_STATE_COUNT; i++) {
        CHECK_INT(p->session_state[i], i == PRT_STATE_OPAQUE ? PRT_STATE_RESET : PRT_STATE_PIN);
    }
    prt_config_unref(c);
}

static const char everything[] =
    "return {\n"
    "  workers = 2, max_clients = '500', max_packet_size = '64kB', shutdown_timeout = 0,\n"
    "  listen = { '*:7000', '[::1]:7001', 'unix:/run/a', 'unix:sock:6433' },\n"
    "  admin = { listen = '0.0.0.0:8080', token = 'abc' },\n"
    "  auth = { type = 'md5', login_timeout = '10s', users = { zoe = 'z', acme = 'a' } },\n"
    "  tls = { client = { mode = 'require', cert = 'server.crt', key = 'server.key' } },\n"
    "  log = { level = 'warn', format = 'logfmt', connections = false },\n"
    "  policy_path = { 'policies' },\n"
    "  pools = {\n"
    "    ['*'] = { target = 'postgres://db2/', user = 'u', password = file 'secret' },\n"
    "    app = {\n"
    "      database_url = 'host=db1', mode = 'statement', min_connections = 2,\n"
    "      MaxConnections = 40, connection_timeout_sec = 5, idle_timeout = 'off',\n"
    "      max_lifetime = '2d', creation_throttle = 7, leak_detection_threshold = false,\n"
    "      client_idle_timeout = '1.5h', fair_queue = false,\n"
    "      tenant = { from = 'user', pattern = '*_app' },\n"
    "      session_state = { default = 'refuse', temp = 'off', opaque = 'pin' },\n"
    "      policies = { 'route/tenant', { 'route/user', b = { 1, x = 'y\\n' }, a = 0.5 } },\n"
    "      partitions = {\n"
    "        globex = { type = 'resource_group', priority = 'critical' },\n"
    "        acme = { match = 'ACME', max_connections = 5, min_connections = 3,\n"
    "                 max_wait_queue = 9 },\n"
    "      },\n"
    "    },\n"
    "  },\n"
    "}\n";

static struct prt_config *load_everything(void)
{
    write_file("secret", "s3cret\n");
    write_file("server.crt", "cert");
    write_file("server.key", "key");
    return load(everything);
}

TEST(listeners_log_tls_and_users_are_copied)
{
    struct prt_config *c = load_everything();

    if (!c) {
        return;
    }
    CHECK_INT(c->workers, 2);
    CHECK_INT(c->max_clients, 500);
    CHECK_INT(c->max_packet_size_bytes, 65536);
    CHECK_INT(c->shutdown_timeout_us, 0);
    CHECK_INT(c->n_listen, 4);
    CHECK_STR(c->listen[0].host, "*");
    CHECK_STR(c->listen[1].host, "::1");
    CHECK_INT(c->listen[1].port, 7001);
    CHECK(c->listen[2].is_unix && !c->listen[1].is_unix);
    CHECK_STR(c->listen[2].host, "/run/a");
    CHECK_INT(c->listen[2].port, 7000); /* of the first TCP address */
    CHECK_STR(c->listen[3].host, in_dir("sock"));
    CHECK_INT(c->listen[3].port, 6433);
    CHECK_STR(c->listen[3].text, "unix:sock:6433");
    CHECK_STR(c->admin_listen.host, "0.0.0.0");
    CHECK_STR(c->admin_token, "abc");
    CHECK_INT(c->auth_type, PRT_AUTH_MD5);
    CHECK_INT(c->login_timeout_us, 10000000);
    CHECK_INT(c->n_users, 2);
    CHECK_STR(c->users[0].name, "acme");
    CHECK_STR(prt_config_user(c, PRT_STR("zoe"))->secret, "z");
    CHECK_INT(c->tls_mode, PRT_TLS_REQUIRE);
    CHECK_STR(c->tls_cert, in_dir("server.crt"));
    CHECK_STR(c->tls_key, in_dir("server.key"));
    CHECK_INT(c->log_level, PRT_LOG_WARN);
    CHECK(!c->log_connections);
    CHECK_INT(c->n_policy_path, 2); /* and the checkout's, found from this program's place */
    CHECK_STR(c->policy_path[0], in_dir("policies"));
    CHECK(c->policy_path[1][0] == '/' && !strstr(c->policy_path[1], ".."));
    CHECK_STR(strrchr(c->policy_path[1], '/'), "/policies");
    prt_config_unref(c);
}

TEST(pools_with_their_aliases_and_units_are_copied)
{
    struct prt_config *c = load_everything();

    if (!c) {
        return;
    }
    CHECK_INT(c->n_pools, 2);
    CHECK_STR(c->pools[0].name, "*");
    CHECK_STR(c->pools[0].target, "postgres://db2/");
    CHECK_STR(c->pools[0].password, "s3cret");
    CHECK(prt_config_pool(c, PRT_STR("any")) == &c->pools[0]);
    const struct prt_pool_config *p = prt_config_pool(c, PRT_STR("app"));
    CHECK_STR(p->target, "host=db1");
    CHECK_INT(p->mode, PRT_MODE_STATEMENT);
    CHECK_INT(p->min_size, 2);
    CHECK_INT(p->max_size, 40);
    CHECK_INT(p->initial_size, 20);
    CHECK_INT(p->acquire_timeout_us, 5000000);
    CHECK_INT(p->idle_timeout_us, 0);
    CHECK_INT(p->max_lifetime_us, 2 * 86400 * 1000000LL);
    CHECK_INT(p->creation_throttle, 7);
    CHECK_INT(p->leak_detection_threshold_us, 0);
    CHECK_INT(p->client_idle_timeout_us, 5400000000LL);
    CHECK(!p->fair_queue);
    CHECK(p->enable_partitioning); /* unset, and there are partitions */
    CHECK_INT(p->session_state[PRT_STATE_TEMP], PRT_STATE_OFF);
    CHECK_INT(p->session_state[PRT_STATE_OPAQUE], PRT_STATE_PIN);
    CHECK_INT(p->session_state[PRT_STATE_ROLE], PRT_STATE_REFUSE);
    CHECK_INT(p->tenant.from, PRT_TENANT_USER);
    CHECK_STR(p->tenant.pattern, "*_app");
    prt_config_unref(c);
}

TEST(policies_and_partitions_are_copied)
{
    struct prt_config *c = load_everything();
    char where[128];

    if (!c) {
        return;
    }
    const struct prt_pool_config *p = prt_config_pool(c, PRT_STR("app"));
    CHECK_INT(p->n_policies, 2);
    CHECK_STR(p->policies[0].name, "route/tenant");
    CHECK_STR(p->policies[0].config, "return {}");
    (void)snprintf(where, sizeof where, "%s:18: pools.app.policies[2]", file);
    CHECK_STR(p->policies[1].where, where);
    CHECK_STR(p->policies[1].config, "return {[\"a\"]=0.5,[\"b\"]={[1]=1,[\"x\"]=\"y\\n\"}}");
    CHECK_INT(p->n_partitions, 2);
    const struct prt_partition_config *acme = &p->partitions[0], *globex = &p->partitions[1];
    CHECK_STR(acme->name, "acme");
    CHECK_STR(acme->match, "ACME");
    CHECK_INT(acme->type, PRT_PART_TENANT);
    CHECK_INT(acme->max_connections, 5);
    CHECK_INT(acme->min_connections, 3);
    CHECK_INT(acme->max_wait_queue, 9);
    CHECK_INT(acme->priority, -1);
    CHECK_INT(globex->type, PRT_PART_RESOURCE_GROUP);
    CHECK_INT(globex->priority, 3);
    CHECK(!globex->match && globex->max_connections == 0);
    prt_config_unref(c);
}

TEST(equal_policy_settings_give_equal_text)
{
    struct prt_config *a =
        load(POOL_WITH("policies = { { 'p', a = 1, b = 2, c = { z = 1, y = 2 } } }"));
    struct prt_config *b =
        load(POOL_WITH("policies = { { c = { y = 2, z = 1 }, b = 2, a = 1, [1] = 'p' } }"));

    if (a && b) {
        CHECK_STR(a->pools[0].policies[0].config, b->pools[0].policies[0].config);
        CHECK(!a->pools[0].enable_partitioning); /* "p" is no route policy */
    }
    prt_config_unref(a);
    prt_config_unref(b);
}

TEST(sizes_that_are_not_written_follow_max_size)
{
    struct prt_config *c = load(POOL_WITH("max_size = 5"));

    if (c) {
        CHECK_INT(c->pools[0].min_size, 5);
        CHECK_INT(c->pools[0].initial_size, 5);
    }
    prt_config_unref(c);
}

TEST(pools_share_one_embedded_postgresql)
{
    struct prt_config *c =
        load("local users = { acme = 'demo' }\n"
             "local pg = postgres.embedded { dir = 'it\\'s/pg', database = 'app', users = users }\n"
             "return { auth = { users = users }, pools = { app = { target = pg },\n"
             "  other = { target = pg, dbname = 'postgres' }, ['*'] = { target = pg } } }");
    char target[160];

    if (!c) {
        return;
    }
    CHECK_STR(c->embedded.dir, in_dir("it's/pg"));
    CHECK_STR(c->embedded.run_dir, in_dir("it's/pg.run"));
    CHECK_STR(c->embedded.database, "app");
    CHECK_INT(c->embedded.n_users, 1);
    CHECK_STR(c->embedded.users[0].secret, "demo");
    (void)snprintf(target, sizeof target, "host='%s/it\\'s/pg.run' port=5432 dbname='app'", dir);
    CHECK_STR(prt_config_pool(c, PRT_STR("app"))->target, target);
    (void)snprintf(target, sizeof target, "host='%s/it\\'s/pg.run' port=5432 dbname='postgres'",
                   dir);
    CHECK_STR(prt_config_pool(c, PRT_STR("other"))->target, target);
    (void)snprintf(target, sizeof target, "host='%s/it\\'s/pg.run' port=5432", dir);
    CHECK_STR(prt_config_pool(c, PRT_STR("*"))->target, target);
    prt_config_unref(c);
}

TEST(env_reads_the_environment_and_knows_a_default)
{
    (void)setenv("POOLRT_TEST_SIZE", "33", 1);
    (void)unsetenv("POOLRT_TEST_NONE");
    struct prt_config *c =
        load(POOL_WITH("max_size = env 'POOLRT_TEST_SIZE', min_size = env('POOLRT_TEST_NONE', 3)"));

    if (c) {
        CHECK_INT(c->pools[0].max_size, 33);
        CHECK_INT(c->pools[0].min_size, 3);
    }
    prt_config_unref(c);
    REFUSES(WITH("admin = {\n listen = '127.0.0.1:1', token = env 'POOLRT_TEST_NONE' }"),
            "@:5: environment variable POOLRT_TEST_NONE is not set; set it, or give a default: "
            "env(\"POOLRT_TEST_NONE\", ...)");
}

TEST(relative_names_start_from_the_folder_of_the_file)
{
    struct prt_config *c = load(WITH("listen = { 'unix:./a/b', 'unix:../c' }"));

    if (c) {
        CHECK_STR(c->listen[0].host, in_dir("a/b"));
        CHECK_STR(c->listen[1].host, "/tmp/c");
    }
    prt_config_unref(c);
}

TEST(the_example_of_make_run_loads)
{
    struct prt_config *c = NULL;
    struct prt_err err = {.rc = POOLRT_OK};

    (void)setenv("PORT", "7432", 1);
    if (prt_config_load("examples/minimal.lua", &c, &err) != POOLRT_OK) {
        printf("  %s\n", err.text);
    }
    CHECK(c);
    if (!c) {
        return;
    }
    CHECK_INT(c->listen[0].port, 7432);
    CHECK_INT(c->admin_listen.port, 8080);
    CHECK_STR(c->admin_token, "demo");
    CHECK_INT(c->auth_type, PRT_AUTH_SCRAM);
    CHECK_INT(c->n_users, 2);
    CHECK_INT(c->pools[0].mode, PRT_MODE_TRANSACTION);
    CHECK_INT(c->pools[0].n_partitions, 2);
    CHECK_STR(c->pools[0].policies[0].name, "route/tenant");
    CHECK(strstr(c->embedded.dir, "/build/data/pg-7432"));
    CHECK(!strstr(c->embedded.dir, ".."));
    prt_config_unref(c);
}

/* ---- what is refused ---- */

TEST(a_file_that_cannot_be_read_is_named)
{
    need_dir();
    check_refused(in_dir("missing.lua"), "@ cannot be read: No such file or directory", __LINE__);
    check_refused(in_dir("looks.lua"), "@ is a directory, not a file", __LINE__);
    check_refused("/nowhere/at/all.lua", "@ cannot be read: No such file or directory", __LINE__);
    check_refused("", "@ cannot be read: No such file or directory", __LINE__);
    if (geteuid() != 0) { /* root may read everything */
        write_file("config.lua", WITH(""));
        (void)chmod(file, 0);
        check_refused(file, "@ cannot be read: Permission denied", __LINE__);
        (void)chmod(file, 0600);
    }
    check_refused("/dev/zero", "@ is larger than 1 MB", __LINE__);
}

TEST(a_file_that_does_not_run_is_refused_with_its_line)
{
    REFUSES("return {\n workers = = 2 }", "@:2: unexpected symbol near '='");
    REFUSES("local t = nil\n\nreturn t.x", "@:3: attempt to index local 't' (a nil value)");
    REFUSES("error 'no luck'", "@:1: no luck");
    REFUSES("error {}", "@: error() was called with a table");
    REFUSES("workers = 2", "@:1: 'workers' is not declared; write 'local workers = ...'");
    REFUSES("\nreturn { token = evn 'X' }", "@:2: 'evn' is not defined; did you mean 'env'?");
    REFUSES("return 5", "@: must end with return { ... }, but returned 5");
    REFUSES("", "@: must end with return { ... }, but returned nothing");
    REFUSES("\033LJ\002", "@: is compiled Lua; only text is accepted");
    REFUSES("local function f() return 1 + f() end\nreturn f()", "@:1: stack overflow");
}

TEST(a_file_has_no_way_out_of_its_sandbox)
{
    REFUSES("io.open('/etc/passwd')", "@:1: 'io' is not available in a configuration file");
    REFUSES("require 'ffi'", "@:1: 'require' is not available in a configuration file");
    REFUSES("loadstring 'return 1'", "@:1: 'loadstring' is not available in a configuration file");
    REFUSES("debug.sethook()", "@:1: 'debug' is not available in a configuration file");
    REFUSES("_G.x = 1", "@:1: '_G' is not available in a configuration file");
    REFUSES("os.execute 'true'", "@:1: attempt to call field 'execute' (a nil value)");
}

TEST(a_file_that_does_not_end_is_stopped)
{
    REFUSES("\nwhile true do end", "@:2: does not end: stopped after 10 million steps");
    REFUSES("while true do\n pcall(function() while true do end end)\nend\nreturn {}",
            "@:2: does not end: stopped after 10 million steps");
    /* caught, and a table returned all the same */
    REFUSES("pcall(function()\n while true do end end)\nreturn {}",
            "@:2: does not end: stopped after 10 million steps");
}

TEST(a_file_that_wants_too_much_memory_is_stopped)
{
    REFUSES("local t = {}\nfor i = 1, 1e9 do t[i] = { i } end",
            "@:2: needs more than 64 MB of memory");
    REFUSES("\nlocal s = 'x' while true do s = s .. s end", "@:2: needs more than 64 MB of memory");
    REFUSES("local s = ('x'):rep(1e9)\nreturn s", "@:1: string.rep makes more than 1 MB");
    REFUSES("local y = ('y'):rep(65536)\nlocal s = ('x'):rep(65536):gsub('.', y) return s",
            "@: needs too much memory");
}

TEST(unknown_keys_are_named_with_line_place_and_nearest_key)
{
    REFUSES(POOL_WITH("max_sise = 3"),
            "@:6: pools.app.max_sise is not known; did you mean max_size?");
    REFUSES(POOL_WITH("xyzzy_plugh_foo = 3"), "@:6: pools.app.xyzzy_plugh_foo is not known");
    REFUSES(WITH("wrokers = 2"), "@:4: wrokers is not known; did you mean workers?");
    REFUSES(WITH("max_size = 2"),
            "@:4: max_size is not known; it belongs into a pool: pools.NAME.max_size");
    REFUSES(POOL_WITH("max_clients = 2"),
            "@:6: pools.app.max_clients is not known; it belongs to the top of the configuration");
    REFUSES(POOL_WITH("partitions = { acme = {\n max_conections = 5 } }"),
            "@:7: pools.app.partitions.acme.max_conections is not known; did you mean "
            "max_connections?");
    REFUSES(WITH("\n{}"), "@:5: [1] a value without a name is not known here");
    REFUSES("local app = {\n " TARGET ",\n modus = 'session' }\nreturn {\n" AUTH
            " pools = { app = app } }",
            "@:3: pools.app.modus is not known; did you mean mode?");
    REFUSES(POOL_WITH("targets = {}"), "@:6: pools.app.targets is not known; several targets are "
                                       "not there yet; give one as target");
}

TEST(a_setting_under_two_names_is_refused)
{
    REFUSES(
        POOL_WITH("max_size = 3,\n MaxConnections = 4"),
        "@:6: pools.app.max_size means the same as MaxConnections, which is given too; keep one");
}

TEST(wrong_values_say_what_is_allowed)
{
    REFUSES(POOL_WITH("max_size = 'many'"),
            "@:6: pools.app.max_size must be a whole number, but is \"many\"");
    REFUSES(POOL_WITH("max_size = 1.5"),
            "@:6: pools.app.max_size must be a whole number, but is 1.5");
    REFUSES(POOL_WITH("max_size = 0/0"),
            "@:6: pools.app.max_size must be a whole number, but is nan");
    REFUSES(POOL_WITH("max_size = 0"),
            "@:6: pools.app.max_size must be from 1 to 100000, but is 0");
    REFUSES(POOL_WITH("acquire_timeout = -1"),
            "@:6: pools.app.acquire_timeout must be from 0 to 1d, but is -1");
    REFUSES(
        POOL_WITH("acquire_timeout = '5 weeks'"),
        "@:6: pools.app.acquire_timeout must be a time such as 30 (seconds), \"250ms\", \"5min\", "
        "\"1h\" or \"2d\", but is \"5 weeks\"");
    REFUSES(POOL_WITH("connection_timeout_sec = '25h'"),
            "@:6: pools.app.connection_timeout_sec must be from 0 to 1d, but is \"25h\"");
    REFUSES(POOL_WITH("fair_queue = 1"),
            "@:6: pools.app.fair_queue must be true or false, but is 1");
    REFUSES(
        WITH("max_packet_size = '1 MiB'"),
        "@:4: max_packet_size must be a size such as 65536, \"64kB\" or \"1MB\", but is \"1 MiB\"");
    REFUSES(WITH("max_packet_size = 5"),
            "@:4: max_packet_size must be from 64kB to 2147483647B, but is 5");
    REFUSES(WITH("workers = 'some'"),
            "@:4: workers must be a whole number, or \"auto\", but is \"some\"");
    REFUSES(
        POOL_WITH("mode = 'transactions'"),
        "@:6: pools.app.mode must be one of \"session\", \"transaction\", \"statement\", but is "
        "\"transactions\"");
    REFUSES(POOL_WITH("user = 7"), "@:6: pools.app.user must be a string, but is a number");
    REFUSES(POOL_WITH("user = ''"), "@:6: pools.app.user must not be empty");
    REFUSES(POOL_WITH("user = 'a\\0b'"), "@:6: pools.app.user must not contain a NUL byte");
    REFUSES(POOL_WITH("user = ('u'):rep(64)"),
            "@:6: pools.app.user must be at most 63 bytes long, as PostgreSQL's names are");
    REFUSES(POOL_WITH("partitions = 5"), "@:6: pools.app.partitions must be a table such as "
                                         "{ acme = { max_connections = 50 } }, but is 5");
}

TEST(rules_of_session_state_are_checked)
{
    REFUSES(POOL_WITH("session_state = 'keep'"), "@:6: pools.app.session_state must be one of "
                                                 "\"pin\", \"reset\", \"refuse\", \"off\", but is "
                                                 "\"keep\"");
    REFUSES(POOL_WITH("session_state = { temp = 'pinned' }"),
            "@:6: pools.app.session_state.temp must be one of \"pin\", \"reset\", \"refuse\", "
            "\"off\", but is \"pinned\"");
    REFUSES(POOL_WITH("session_state = { tmp = 'pin' }"),
            "@:6: pools.app.session_state.tmp is not known; did you mean temp?");
}

TEST(values_that_contradict_each_other_are_refused)
{
    REFUSES(POOL_WITH("max_size = 4,\n min_size = 5"),
            "@:7: pools.app.min_size is 5, more than max_size = 4");
    REFUSES(POOL_WITH("max_size = 4, initial_size = 5"),
            "@:6: pools.app.initial_size is 5, more than max_size = 4");
    REFUSES(POOL_WITH("max_size = 4, partitions = { a = { min_connections = 3 },\n"
                      " b = { min_connections = 2 } }"),
            "@:6: pools.app.partitions reserve 5 connections together (min_connections), more than "
            "max_size = 4");
    REFUSES(POOL_WITH("partitions = { a = { min_connections = 3, max_connections = 2 } }"),
            "@:6: pools.app.partitions.a.min_connections is 3, more than max_connections = 2");
    REFUSES(POOL_WITH("enable_partitioning = false, partitions = { a = {} }"),
            "@:6: pools.app.enable_partitioning is false, but the pool has partitions");
    REFUSES(POOL_WITH("enable_partitioning = false, policies = { 'route/tenant' }"),
            "@:6: pools.app.enable_partitioning is false, but the pool has a route policy");
    REFUSES(POOL_WITH("password = 'x'"), "@:6: pools.app.password is given without user");
    REFUSES(POOL_WITH("tenant = { from = 'database', pattern = '*' }"),
            "@:6: pools.app.tenant.pattern is for from = \"user\"");
    REFUSES(
        POOL_WITH("tenant = { from = 'user', pattern = 'app' }"),
        "@:6: pools.app.tenant.pattern must contain \"*\" once, where the tenant's name stands, "
        "but is \"app\"");
}

TEST(targets_are_checked)
{
    REFUSES("return { " AUTH " pools = { app = {} } }",
            "@:2: pools.app.target is missing: say where PostgreSQL is, target = \"host=db1 "
            "dbname=app\"");
    REFUSES("return { " AUTH " pools = { app = { target = 'db1' } } }",
            "@:2: pools.app.target must be a conninfo string such as \"host=db1 dbname=app\", or a "
            "postgres:// URL");
    REFUSES("return { " AUTH " pools = { app = { target = { host = 'db1' } } } }",
            "@:2: pools.app.target must be a conninfo string, a postgres:// URL or "
            "postgres.embedded{...}, but is a table");
    REFUSES("return { " AUTH " pools = {} }",
            "@:2: pools is empty: name at least one, pools = { app = { target = \"host=db1 "
            "dbname=app\" } }");
    REFUSES(POOL_WITH("dbname = 'x'"), "@:6: pools.app.dbname is for postgres.embedded; write it "
                                       "into the target: dbname=...");
}

TEST(embedded_postgresql_is_checked)
{
    REFUSES("local pg = postgres.embedded {\n dirr = 'x' }\nreturn { " AUTH
            " pools = { app = { target = pg } } }",
            "@:2: postgres.embedded.dirr is not known; did you mean dir?");
    REFUSES("local pg = postgres.embedded {}\nreturn { " AUTH
            " pools = { app = { target = pg } } }",
            "@: postgres.embedded needs dir, its data directory: postgres.embedded{ dir = "
            "\"data/pg\" }");
    REFUSES("return { " AUTH " pools = { app = { target = postgres.embedded 'x' } } }",
            "@:2: postgres.embedded needs a table: postgres.embedded{ dir = \"data/pg\" }");
    REFUSES("return { " AUTH " pools = { a = { target = postgres.embedded { dir = 'x' } },\n"
            "b = { target = postgres.embedded { dir = 'y' } } } }",
            "@: postgres.embedded is used twice: make it once, local pg = postgres.embedded{...}, "
            "and write target = pg in each pool");
}

TEST(addresses_are_checked)
{
    REFUSES(
        WITH("listen = { 'localhost' }"),
        "@:4: listen[1] \"localhost\" must look like \"host:port\", \"[::1]:6432\", \"*:6432\", "
        "\"unix:/dir\" or \"unix:/dir:6433\"");
    REFUSES(WITH("listen = { '127.0.0.1:1',\n '127.0.0.1:65536' }"),
            "@:5: listen[2] \"127.0.0.1:65536\" has a port outside 1 to 65535");
    REFUSES(WITH("listen = '::1:6432'"), "@:4: listen[1] \"::1:6432\" has an IPv6 address without "
                                         "brackets; write [::1]:6432");
    REFUSES(WITH("listen = {}"), "@:4: listen is empty: clients could not connect");
    REFUSES(WITH("listen = { 'a:1', 'b:1', 'a:1' }"),
            "@:4: listen[3] is the same address as listen[1]");
    REFUSES(
        WITH("listen = { 'unix:/' .. ('d'):rep(92) }"),
        "@:4: listen[1] /"
        "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
        "dddd is too long for a socket: at most 92 bytes");
    REFUSES(WITH("admin = { listen = '*:8080' }"),
            "@:4: admin.listen is outside loopback, so admin.token is needed; or listen on "
            "127.0.0.1");
    REFUSES(WITH("admin = {\n listen = '10.0.0.1:8080', tokne = 'x' }"),
            "@:5: admin.tokne is not known; did you mean token?");
    REFUSES(WITH("admin = { listen = '127.0.0.1:6432' }"),
            "@:4: admin.listen is the same address as listen[1]");
}

TEST(who_may_log_in_is_checked)
{
#define VERIFIER "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy"
#define POOLS "pools = { app = { " TARGET " } } }"
    REFUSES("return { " POOLS, "@: auth is missing: say who may log in, auth = { type = "
                               "\"scram-sha-256\", users = { alice = \"secret\" } }");
    REFUSES("return { auth = { type = 'md5' }, " POOLS,
            "@:1: auth.users is empty: with type = \"md5\" nobody could log in");
    REFUSES(
        "return { auth = { type = 'ident', users = { a = 'b' } }, " POOLS,
        "@:1: auth.type must be one of \"trust\", \"md5\", \"scram-sha-256\", but is \"ident\"");
    REFUSES(
        "return { auth = { users = {\n a = '" VERIFIER "' } }, " POOLS,
        "@:2: auth.users.a holds only a scram-sha-256 verifier, and pools.app has no user of its "
        "own: logging in to the server with it needs pass-through, which is not there yet; give "
        "the plain password, or set user in the pool");
    REFUSES(
        "return { auth = { type = 'md5', users = { a = '" VERIFIER "' } }, " POOLS,
        "@:1: auth.users.a holds a scram-sha-256 verifier, which can never pass type = \"md5\"");
    REFUSES(
        "return { auth = { users = { a = 'md50123456789abcdef0123456789abcdef' } }, " POOLS,
        "@:1: auth.users.a holds a md5 verifier, which can never pass type = \"scram-sha-256\"");
    REFUSES(
        "return { auth = { users = { a = 'SCRAM-SHA-256$4096:c2FsdA==' } }, " POOLS,
        "@:1: auth.users.a is a malformed SCRAM verifier; copy rolpassword of pg_authid, or give "
        "the plain password");
    REFUSES("return { auth = { users = { a = 'SCRAM-SHA-256$200000:c2FsdA==$c3Q=:c2U=' } }, " POOLS,
            "@:1: auth.users.a is a SCRAM verifier with more than 100000 iterations");
    struct prt_config *c =
        load("return { auth = { users = { a = '" VERIFIER "' } }, pools = { app = "
             "{ " TARGET ", user = 'u', password = 'p' } } }");
    CHECK(c);
    prt_config_unref(c);
}

TEST(a_secret_is_never_in_a_message)
{
    struct prt_config *c;
    struct prt_err err;
    static const char *const texts[] = {
        "return { auth = { users = { a = 'SCRAM-SHA-256$hush' } } }",
        WITH("admin = { listen = '*:1', token = { 'hush' } }"),
        POOL_WITH("user = 'u', password = { 'hush' }"),
        "return {" AUTH "pools = { app = { target = 'hush' } } }",
        POOL_WITH("user = 'u', password = 'md5hush\\0'"),
    };

    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        write_file("config.lua", texts[i]);
        CHECK_INT(prt_config_load(file, &c, &err), POOLRT_CONFIG);
        CHECK(!strstr(err.text, "hush"));
    }
}

TEST(files_that_are_named_must_be_there)
{
    (void)unlink(in_dir("server.crt"));
    REFUSES(POOL_WITH("user = 'u', password = file 'none'"),
            "@:6: ~/none cannot be read: No such file or directory");
    REFUSES(POOL_WITH("user = 'u', password = file 'policies'"),
            "@:6: ~/policies is a directory, not a file");
    REFUSES(WITH("tls = { client = { cert = 'server.crt', key = 'server.key' } }"),
            "@:4: tls.client.cert ~/server.crt cannot be read: No such file or directory");
    REFUSES(WITH("tls = { client = { mode = 'require' } }"),
            "@:4: tls.client needs cert, the name of a PEM file, for mode = \"require\"");
    REFUSES(WITH("policy_path = { 'policies',\n 'policys' }"),
            "@:5: policy_path[2] ~/policys cannot be read: No such file or directory");
}

TEST(policies_are_checked)
{
    REFUSES(
        POOL_WITH("policies = { '../secret' }"),
        "@:6: pools.app.policies[1] must name a policy such as \"route/tenant\" (letters, digits, "
        "\"_\", \"-\" and \"/\"), but is \"../secret\"");
    REFUSES(POOL_WITH("policies = { { 'p', f = print } }"),
            "@:6: 'print' is not available in a configuration file");
    REFUSES(POOL_WITH("policies = { { 'p',\n f = tostring } }"),
            "@:7: pools.app.policies[1].f is a function; a policy's settings are strings, numbers, "
            "booleans and tables of them");
    REFUSES(
        "local t = {}\nt.t = t\nreturn { " AUTH "pools = { app = { " TARGET
        ", policies = { { 'p', t = t } } } } }",
        "@:4: pools.app.policies[1].t.t.t.t.t.t.t.t.t.t.t.t.t.t.t.t is nested more than 16 deep, "
        "or contains itself");
    REFUSES(POOL_WITH("policies = { 'a', nil, 'b' }"),
            "@:6: pools.app.policies[3] must be a plain list: policies = { \"route/tenant\", { "
            "\"route/user\", key = value } }");
    REFUSES(
        POOL_WITH("policies = { { 'a', 'b' } }"),
        "@:6: pools.app.policies[1][2] is a value without a name; write { \"a\", key = value }");
}

/* Whatever the bytes, a load ends with a configuration or a sentence. */
TEST(a_damaged_file_is_refused_in_words)
{
    char text[sizeof everything];
    unsigned seed = 1;

    prt_config_unref(load_everything());
    for (int i = 0; i < 300; i++) {
        struct prt_config *c = NULL;
        struct prt_err err = {.text = ""};
        memcpy(text, everything, sizeof text);
        for (int k = 0; k < 3; k++) {
            seed = seed * 1103515245 + 12345;
            text[(seed >> 8) % (sizeof text - 1)] = (char)(seed >> 24);
        }
        write_bytes("config.lua", text, sizeof text - 1);
        if (prt_config_load(file, &c, &err) == POOLRT_OK) {
            CHECK(c && c->n_pools == 2);
        } else {
            CHECK(strncmp(err.text, file, strlen(file)) == 0);
            CHECK(!strstr(err.text, "poolrt.")); /* a fault of our own Lua */
        }
        prt_config_unref(c);
    }
}

TEST(ten_thousand_partitions_load_quickly)
{
    struct prt_config *c =
        load("local parts = {}\nfor i = 1, 10000 do\n"
             "  parts['t' .. i] = { max_connections = 3 }\nend\n"
             "return { " AUTH "pools = { app = { " TARGET ", partitions = parts } } }");
    if (c) {
        CHECK_INT(c->pools[0].n_partitions, 10000);
        CHECK_STR(c->pools[0].partitions[9999].name, "t9999");
    }
    prt_config_unref(c);
}

/* ---- the state itself ---- */

TEST(a_state_finds_the_embedded_modules_and_cjson_only)
{
    lua_State *L = prt_lua_new();

    CHECK(L);
    CHECK_INT(luaL_dostring(L, "assert(require('poolrt.settings') == require 'poolrt.settings')\n"
                               "assert(package.path == '')\n"
                               "for part in package.cpath:gmatch('[^;]+') do\n"
                               "  assert(part:sub(1, 1) == '/', part)\n"
                               "end\n"
                               "assert(require('cjson').encode({ 1 }) == '[1]')\n"
                               "assert(not pcall(require, 'poolrt.nothing'))"),
              0);
    if (lua_gettop(L) > 0) {
        printf("  %s\n", lua_tostring(L, -1));
    }
    lua_close(L);
}
