/* luahost_policies_test.c - policies on one worker, with the clock moved by hand: answers,
 * failures, quarantine, memory, versions. What does not end: luahost_runaway_test.c; reloading
 * under load: luahost_reload_test.c. */
#include "luahost_fixture.h"

#include <unistd.h>

/* ---- answers ---- */

TEST(the_bundled_tenant_policy_routes_by_partition)
{
    struct fixture f;

    start(&f, "route/tenant", NULL);
    CHECK_STR(route_of(&f, "acme"), "gold");
    CHECK_STR(route_of(&f, "globex"), "globex");
    CHECK_STR(route_of(&f, "nobody"), "default");
    CHECK_STR(route_of(&f, "bi"), "default"); /* a partition for users, not for tenants */
    finish(&f);
}

TEST(settings_reach_the_policy)
{
    struct fixture f;

    f.settings = "return { fallback = \"globex\", map = { initech = \"gold\" } }";
    start_with(&f, "route/tenant", NULL);
    CHECK_STR(route_of(&f, "nobody"), "globex");
    CHECK_STR(route_of(&f, "initech"), "gold");
    finish(&f);
}

TEST(strings_arrive_unchanged)
{
    static const char text[] =
        HEAD "function M.route(req)\n"
             "  local t = req.tenant\n"
             "  if #t == 65536 then return 'huge_' .. t:byte(1) .. '_' .. t:byte(-1) end\n"
             "  if t == 'a\\0b\\255\\254\"' then return 'bytes' end\n"
             "  return req.user .. '-' .. req.database .. '-' .. req.application .. '-' ..\n"
             "    req.client_addr .. '-' .. req.priority .. '-' .. req.session\n"
             "end\nreturn M\n";
    static char big[65536];
    struct fixture f;
    struct prt_answer a = {0};
    struct prt_req_view rq = {.user = PRT_STR("u"),
                              .database = PRT_STR("d"),
                              .session = 77,
                              .application = PRT_STR("a"),
                              .client_addr = PRT_STR("c"),
                              .priority = PRT_HIGH};

    start(&f, "route/x", text);
    f.ops->route(f.ops, 0, &rq, &a);
    CHECK_STR(a.name, "u-d-a-c-high-77");
    memset(big, 'q', sizeof big);
    big[0] = 'p';
    rq.tenant = (struct prt_str){big, sizeof big};
    a = (struct prt_answer){0};
    f.ops->route(f.ops, 0, &rq, &a);
    CHECK_STR(a.name, "huge_112_113");
    rq.tenant = PRT_STR("a\0b\377\376\"");
    a = (struct prt_answer){0};
    f.ops->route(f.ops, 0, &rq, &a);
    CHECK_STR(a.name, "bytes");
    finish(&f);
}

TEST(a_kept_view_does_not_reach_freed_strings)
{
    static const char text[] =
        HEAD "local kept, seen = nil, 'none'\n"
             "function M.admit(req, part) kept = part return true end\n"
             "function M.route(req) if kept then seen = 'part_' .. #kept.name end return seen end\n"
             "return M\n";
    struct fixture f;

    start(&f, "route/x", text);
    CHECK(ask_admit(&f, "acme").verdict == PRT_ANSWER_NONE);
    CHECK_STR(route_of(&f, "acme"), "part_0");
    finish(&f);
}

TEST(a_constant_is_answered_without_lua)
{
    struct fixture f;

    start(&f, "route/x", "return { name='c', version='1', api=1, route='gold', admit=false }\n");
    CHECK_STR(route_of(&f, "anyone"), "gold");
    CHECK(ask_admit(&f, "anyone").verdict == PRT_ANSWER_REJECT);
    CHECK_INT(info_of(&f).calls, 2);
    finish(&f);
}

TEST(scopes_come_from_the_file_and_from_the_answer)
{
    struct fixture f;

    start(&f, "route/x",
          HEAD "M.cache = { route = 'transaction' }\n"
               "function M.route(r) if r.tenant == 's' then return 'gold', 'statement' end\n"
               "  return 'gold' end\nreturn M\n");
    CHECK_INT(ask_route(&f, "x").scope, PRT_SCOPE_TRANSACTION);
    CHECK_INT(ask_route(&f, "s").scope, PRT_SCOPE_STATEMENT);
    finish(&f);
}

TEST(a_rejection_carries_reason_sqlstate_and_retry)
{
    struct fixture f;
    struct prt_answer a;

    start(&f, "route/x",
          HEAD "function M.route(r) return false, 'no\\nway', '28000' end\n"
               "function M.admit(r, p) return false, ('\\195\\164'):rep(200), 1.5, '53400' end\n"
               "return M\n");
    a = ask_route(&f, "x");
    CHECK_INT(a.verdict, PRT_ANSWER_REJECT);
    CHECK_STR(a.text, "no?way");
    CHECK_STR(a.sqlstate, "28000");
    a = ask_admit(&f, "x");
    CHECK_STR(a.sqlstate, "53400");
    CHECK(a.retry_after == 1.5);
    CHECK_INT(strlen(a.text), 158); /* whole characters only */
    finish(&f);
}

TEST(the_first_opinion_routes_and_any_refusal_refuses)
{
    struct fixture f;

    init(&f);
    write_policy(&f, "a",
                 HEAD "function M.route(r) if r.tenant == 'a' then return 'gold' end end\n"
                      "M.admit = true return M\n");
    write_policy(&f, "b",
                 HEAD "M.route = 'globex'\nfunction M.admit(r, p)\n"
                      "  if r.tenant == 'b' then return false, 'b says no' end end\n"
                      "return M\n");
    add_policy(&f, "a");
    add_policy(&f, "b");
    go(&f);
    CHECK_STR(route_of(&f, "a"), "gold");
    CHECK_STR(route_of(&f, "z"), "globex");
    CHECK_INT(ask_admit(&f, "a").verdict, PRT_ANSWER_NONE);
    CHECK_STR(ask_admit(&f, "b").text, "b says no");
    finish(&f);
}

TEST(a_view_can_only_be_read)
{
    struct fixture f;

    start(&f, "x",
          HEAD
          "local function opened(r)\n"
          "  local tries = {\n"
          "    function() r.now = 1 end, function() r.nosuch = 1 end, function() return r[1] end,\n"
          "    function() return r + 1 end, function() return r() end, function() return #r end,\n"
          "    function() for _ in pairs(r) do end end, function() return next(r) end,\n"
          "    function() setmetatable(r, {}) end, function() return getmetatable(r).x end,\n"
          "    function() return r.tenant.p end, function() return (r .. '') end,\n"
          "  }\n"
          "  for i = 1, #tries do\n"
          "    local ok, v = pcall(tries[i]) if ok and v ~= nil then return 'try' .. i end\n"
          "    if ok and i < 3 then return 'wrote' .. i end\n"
          "  end\n"
          "end\n"
          "function M.route(r) return opened(r) or 'gold' end\n"
          "function M.admit(r, p) local o = opened(p) return o == nil, o end\nreturn M\n");
    CHECK_STR(route_of(&f, "acme"), "gold");
    CHECK_STR(ask_admit(&f, "acme").text, "");
    finish(&f);
}

TEST(each_pool_has_a_state_of_its_own)
{
    struct fixture f;
    struct prt_pool_config two[2];
    struct prt_policy_ops *other;
    struct prt_answer a = {0};

    init(&f);
    write_policy(&f, "x",
                 HEAD "local n, pool = 0, ''\nfunction M.init(ctx) n, pool = 0, ctx.pool end\n"
                      "function M.route(r) n = n + 1 return pool .. n end\nreturn M\n");
    add_policy(&f, "x");
    two[0] = two[1] = f.pool;
    two[1].name = dup_of("*");
    f.cfg.pools = two;
    f.cfg.n_pools = 2;
    other = prt_policies_bind(f.ps, "*");
    go(&f);
    CHECK_STR(route_of(&f, "a"), "app1");
    CHECK_STR(route_of(&f, "a"), "app2");
    other->route(other, 0, &(struct prt_req_view){.tenant = PRT_STR("a")}, &a);
    CHECK_STR(a.name, "*1");
    f.cfg.n_pools = 1; /* the row goes, its pool may stay a while */
    go(&f);
    CHECK_INT(atomic_load(&other->hooks), 0);
    CHECK_STR(route_of(&f, "a"), "app3");
    prt_policies_unbind(f.ps, other);
    free(two[1].name);
    finish(&f);
}

TEST(an_abandoned_plan_changes_nothing)
{
    struct fixture f;
    struct prt_policy_plan *plan = NULL;

    start(&f, "x", HEAD "M.route = 'gold'\nreturn M\n");
    write_policy(&f, "x", HEAD "M.route = 'globex'\nreturn M\n");
    CHECK_INT(prt_policies_refresh(f.ps, &plan, NULL), POOLRT_OK);
    CHECK(plan != NULL);
    prt_policies_turn(f.ps, 0);
    CHECK_STR(route_of(&f, "a"), "gold");
    prt_policies_abandon(f.ps, plan);
    prt_policies_abandon(f.ps, NULL);
    CHECK_STR(route_of(&f, "a"), "gold");
    CHECK_INT(refresh(&f), 1); /* it was not lost */
    CHECK_STR(route_of(&f, "a"), "globex");
    finish(&f);
}

/* ---- files that are refused ---- */

TEST(a_bad_file_is_refused_by_file_and_line)
{
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"local M = {\nreturn M\n", "/x.lua:2: "},
        {HEAD "function M.rout(req) return 'a' end\nfunction M.admit() end\nreturn M\n",
         "/x.lua:2: unknown hook 'rout'; did you mean 'route'?"},
        {HEAD "M.cach = {}\nM.route = 'gold'\nreturn M\n", "/x.lua:2: unknown field 'cach'"},
        {HEAD "M.route = 7\nreturn M\n", "/x.lua:2: hook 'route' is a number"},
        {HEAD "M.route = 'nosuch'\nreturn M\n", "is no partition of pool app"},
        {HEAD "M.route = 'gold'\nM.on_fail = { route = 'explode' }\nreturn M\n", "on_fail.route"},
        {HEAD "M.route = 'gold'\nM.cache = { admit = 'session' }\nreturn M\n", "cache.admit"},
        {HEAD "M.route = 'gold'\nM.config = { a = { type = 'strng' } }\nreturn M\n",
         "config.a.type is strng"},
        {HEAD "return M\n", "defines no hook"},
        {"return 5\n", "must end in `return`"},
        {"", "it returned nothing"},
        {"return { name='x', version='1', api=2, route='gold' }\n", "api = 1"},
        {"return { version='1', api=1, route='gold' }\n", "field 'name' is missing"},
        {HEAD "while true do end\nreturn M\n", "/x.lua:2: more than 1,000,000 instructions"},
        {HEAD "while true do pcall(function() while true do end end) end\nreturn M\n",
         "more than 1,000,000 instructions"},
        {HEAD "function M.init() while true do end end\nM.route='gold'\nreturn M\n",
         "/x.lua:2: more than 1,000,000 instructions"},
        {HEAD "function M.route(r)\n  while true do end\nend\nreturn M\n", "/x.lua:3: more than"},
        {HEAD "function M.route(r)\n  return r.nosuch.x\nend\nreturn M\n",
         "/x.lua:3: req has no field 'nosuch'"},
        {HEAD "function M.route(r)\n  local t\n  return t.x\nend\nreturn M\n", "/x.lua:4: attempt"},
        {HEAD "function M.route(r) return 0/0 end\nreturn M\n", "neither a name nor nil nor false"},
        {HEAD "function M.route(r) return {} end\nreturn M\n", "(a table)"},
        {HEAD "function M.admit(r, p) return 'yes' end\nreturn M\n", "neither true nor false"},
        {HEAD "function M.admit(r, p) return false, nil, 0/0 end\nreturn M\n", "retry_after"},
        {HEAD "function M.route(r) return false, nil, '00000' end\nreturn M\n", "SQLSTATE"},
        {HEAD "function M.selftest(t) assert(M.route(t.req{tenant='a'}) == 'b', 'a is b') end\n"
              "function M.route(r) return r.tenant end\nreturn M\n",
         "a is b"},
        {HEAD "error({})\nreturn M\n", "error that is not a string"},
        {HEAD "x = 1\nreturn M\n", "/x.lua:2: assignment to global 'x'"},
        {HEAD "local f = io.open('/etc/passwd')\nreturn M\n", "undefined variable 'io'"},
        {HEAD "local s = ('x'):rep(1e9)\nreturn M\n", "/x.lua:2: string.rep"},
        {HEAD "local s = 'x' while true do s = s .. s end\nreturn M\n", "not enough memory"},
        {HEAD "local t = {} for i = 1, 1e6 do t[i] = {} end\nreturn M\n", "x.lua:2: more than"},
        {"\033LJ\002\n", "/x.lua"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct fixture f;
        init(&f);
        write_policy(&f, "x", bad[i].text);
        add_policy(&f, "x");
        struct prt_policy_plan *plan = NULL;
        struct prt_err err = {0};
        CHECK_INT(prt_policies_prepare(f.ps, &f.cfg, &plan, &err), POOLRT_CONFIG);
        CHECK(plan == NULL);
        if (!strstr(err.text, bad[i].says) || !strstr(err.text, f.dir)) {
            printf("  text %zu: \"%s\" does not say \"%s\"\n", i, err.text, bad[i].says);
            prt_test_bad++;
        }
        finish(&f);
    }
}

TEST(settings_are_checked_where_they_stand)
{
    static const struct {
        const char *settings, *says;
    } bad[] = {
        {"return { fallbak = \"x\" }", "unknown setting 'fallbak'; did you mean 'fallback'?"},
        {"return { fallback = 5 }", "'fallback' is 5; it must be a string"},
        {"return { map = { a = 1 } }", "'map[\"a\"]' is 1; it must be a string"},
        {"return { map = { \"x\" } }", "'map' must be a map"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct fixture f;
        struct prt_policy_plan *plan;
        struct prt_err err = {0};
        init(&f);
        f.settings = bad[i].settings;
        add_policy(&f, "route/tenant");
        CHECK_INT(prt_policies_prepare(f.ps, &f.cfg, &plan, &err), POOLRT_CONFIG);
        CHECK(strstr(err.text, bad[i].says) != NULL);
        CHECK(strstr(err.text, "config.lua: pools.app.policies[1]") != NULL);
        finish(&f);
    }
}

TEST(a_missing_policy_lists_the_folders)
{
    struct fixture f;
    struct prt_policy_plan *plan;
    struct prt_err err = {0};

    init(&f);
    add_policy(&f, "route/tenannt");
    CHECK_INT(prt_policies_prepare(f.ps, &f.cfg, &plan, &err), POOLRT_CONFIG);
    CHECK(strstr(err.text, "policy 'route/tenannt' not found") != NULL);
    CHECK(strstr(err.text, f.dir) != NULL);
    CHECK(strstr(err.text, "policies") != NULL);
    finish(&f);
    init(&f);
    add_policy(&f, "../../etc/passwd");
    CHECK_INT(prt_policies_prepare(f.ps, &f.cfg, &plan, &err), POOLRT_CONFIG);
    CHECK(strstr(err.text, "a name such as") != NULL);
    finish(&f);
}

TEST(one_bad_policy_keeps_all_others_out)
{
    struct fixture f;
    struct prt_policy_plan *plan;
    struct prt_err err;

    start(&f, "a", HEAD "M.route = 'gold'\nreturn M\n");
    write_policy(&f, "a", HEAD "M.route = 'globex'\nreturn M\n");
    write_policy(&f, "b", HEAD "oops\nreturn M\n");
    add_policy(&f, "b");
    CHECK_INT(prt_policies_prepare(f.ps, &f.cfg, &plan, &err), POOLRT_CONFIG);
    CHECK(plan == NULL);
    prt_policies_turn(f.ps, 0);
    CHECK_STR(route_of(&f, "x"), "gold");
    finish(&f);
}

TEST(every_prefix_of_a_policy_is_refused_or_whole)
{
    static const char text[] = HEAD "local t = { acme = 'gold' }\n"
                                    "function M.route(req) return t[req.tenant] end\nreturn M\n";
    struct fixture f;
    int taken = 0;

    start(&f, "x", text);
    CHECK_STR(route_of(&f, "acme"), "gold");
    for (size_t n = 0; n < sizeof text - 1; n++) {
        write_bytes(&f, "x", text, n);
        taken += refresh(&f);
        CHECK_STR(route_of(&f, "acme"), "gold");
    }
    CHECK_INT(taken, 1); /* all but the last line's end */
    finish(&f);
}

/* ---- failures ---- */

/* What the hook answers depends on the tenant, so that it passes the self-test. */
#define FAULTY                                                                                     \
    "local big = ('x'):rep(65536)\n"                                                               \
    "local bad = { ['!error'] = function() error('boom') end,\n"                                   \
    "  ['!nan'] = function() return 0/0 end, ['!table'] = function() return {} end,\n"             \
    "  ['!true'] = function() return true end, ['!huge'] = function() return big end,\n"           \
    "  ['!nul'] = function() return 'a\\0b' end, ['!empty'] = function() return '' end,\n"         \
    "  ['!scope'] = function() return 'gold', 'forever' end,\n"                                    \
    "  ['!value'] = function() error({}) end, ['!deep'] = function()\n"                            \
    "    local function f() return 1 + f() end return f() end,\n"                                  \
    "  ['!name64'] = function() return ('n'):rep(64) end }\n"                                      \
    "function M.route(r)\n  local f = bad[r.tenant] if f then return f() end\n"                    \
    "  return 'gold' end\n"
static const char *const faults[] = {"!error", "!nan",   "!table", "!true", "!huge",  "!nul",
                                     "!empty", "!scope", "!value", "!deep", "!name64"};
#define FAULTS (sizeof faults / sizeof *faults)

TEST(nonsense_falls_back_as_on_fail_says)
{
    struct fixture f;

    start(&f, "x", HEAD FAULTY "return M\n");
    for (size_t i = 0; i < FAULTS; i++) {
        CHECK_INT(ask_route(&f, faults[i]).verdict, PRT_ANSWER_NONE);
        CHECK_STR(route_of(&f, "acme"), "gold");
    }
    CHECK_INT(info_of(&f).failures, FAULTS);
    CHECK_INT(info_of(&f).calls, 2 * FAULTS);
    CHECK(strstr(f.last_error, "route returned a name of more than 63 bytes") != NULL);
    finish(&f);

    start(&f, "x", HEAD FAULTY "M.on_fail = { route = 'reject' }\nreturn M\n");
    for (size_t i = 0; i < FAULTS; i++) {
        struct prt_answer a = ask_route(&f, faults[i]);
        CHECK_INT(a.verdict, PRT_ANSWER_REJECT);
        CHECK(strstr(a.text, "(x) failed") != NULL);
        CHECK_STR(a.name, "");
    }
    finish(&f);
}

TEST(last_repeats_what_the_same_client_was_told)
{
    struct fixture f;
    struct prt_answer a;

    start(&f, "x",
          HEAD "M.on_fail = { route = 'last' }\nlocal broken = false\n"
               "function M.route(r) if r.tenant == '!break' then broken = true end\n"
               "  if broken then error('later') end\n"
               "  if r.tenant == 'nosuch' then return 'nosuch' end\n"
               "  return r.tenant == 'a' and 'gold' or 'globex' end\nreturn M\n");
    CHECK_STR(route_of(&f, "a"), "gold");
    CHECK_STR(route_of(&f, "b"), "globex");
    a = ask_route(&f, "nosuch");
    f.ops->bad_route(f.ops, 0, &(struct prt_req_view){.tenant = PRT_STR("nosuch")}, &a);
    CHECK_INT(a.verdict, PRT_ANSWER_NONE); /* a bad answer is not remembered */
    CHECK_INT(ask_route(&f, "!break").verdict, PRT_ANSWER_NONE);
    CHECK_INT(ask_route(&f, "nosuch").verdict, PRT_ANSWER_NONE);
    CHECK_STR(route_of(&f, "a"), "gold");
    CHECK_STR(route_of(&f, "b"), "globex");
    CHECK_INT(ask_route(&f, "c").verdict, PRT_ANSWER_NONE); /* never another's answer */
    CHECK(strstr(info_of(&f).last_error, "later") != NULL);
    finish(&f);
}

TEST(an_unknown_partition_is_the_policys_failure)
{
    struct fixture f;
    struct prt_answer a;

    start(&f, "x",
          HEAD "M.on_fail = { route = 'reject' }\n"
               "function M.route(r) return 'no_such_partition' end\nreturn M\n");
    a = ask_route(&f, "a");
    CHECK_STR(a.name, "no_such_partition");
    f.ops->bad_route(f.ops, 0, &(struct prt_req_view){.tenant = PRT_STR("a")}, &a);
    CHECK_INT(a.verdict, PRT_ANSWER_REJECT);
    CHECK_INT(info_of(&f).failures, 1);
    CHECK(strstr(f.last_error, "\"no_such_partition\", which is no partition") != NULL);
    finish(&f);
}

TEST(a_bad_route_is_charged_to_the_policy_that_said_it)
{
    struct fixture f;
    struct prt_answer a;

    init(&f);
    write_policy(&f, "a", HEAD "function M.route(r) end\nreturn M\n");
    write_policy(&f, "b",
                 HEAD "M.on_fail = { route = 'reject' }\n"
                      "function M.route(r) return 'nosuch' end\nreturn M\n");
    add_policy(&f, "a");
    add_policy(&f, "b");
    go(&f);
    a = ask_route(&f, "x");
    f.ops->bad_route(f.ops, 0, &(struct prt_req_view){.tenant = PRT_STR("x")}, &a);
    CHECK_INT(a.verdict, PRT_ANSWER_REJECT);
    CHECK_INT(info_of(&f).failures, 1);
    finish(&f);
}

TEST(twenty_failures_in_a_row_quarantine_and_a_probe_recovers)
{
    struct fixture f;
    char names[100];

    start(&f, "x", HEAD FAULTY "M.on_fail = { route = 'reject' }\nreturn M\n");
    for (int i = 0; i < 19; i++) {
        (void)ask_route(&f, "!error");
    }
    CHECK_STR(info_of(&f).state, "active");
    (void)ask_route(&f, "!error");
    CHECK_STR(info_of(&f).state, "quarantined");
    prt_policies_trouble(f.ps, names, sizeof names);
    CHECK_STR(names, "x");
    CHECK_INT(ask_route(&f, "acme").verdict, PRT_ANSWER_REJECT); /* not even asked */
    CHECK_INT(info_of(&f).calls, 20);
    hand_clock_us += 30000000;
    (void)ask_route(&f, "!error"); /* the probe fails */
    (void)ask_route(&f, "acme");
    CHECK_INT(info_of(&f).calls, 21);
    hand_clock_us += 29999999;
    (void)ask_route(&f, "acme");
    CHECK_INT(info_of(&f).calls, 21);
    hand_clock_us += 1;
    CHECK_STR(route_of(&f, "acme"), "gold"); /* the probe is a real request */
    CHECK_STR(info_of(&f).state, "active");
    CHECK_INT(count_log("event=policy_quarantined"), 1);
    CHECK_INT(count_log("event=policy_recovered"), 1);
    CHECK_INT(count_log("event=policy_failed"), 1); /* and not 21 times */
    prt_policies_trouble(f.ps, names, sizeof names);
    CHECK_STR(names, "");
    finish(&f);
}

TEST(more_than_half_of_a_thousand_failures_quarantine)
{
    struct fixture f;
    int i;

    start(&f, "x", HEAD FAULTY "return M\n");
    for (i = 0; i < 3000; i++) {
        (void)ask_route(&f, i % 2 ? "!nan" : "acme"); /* half: not yet */
    }
    CHECK_STR(info_of(&f).state, "active");
    for (i = 0; i < 3000 && strcmp(info_of(&f).state, "quarantined") != 0; i++) {
        (void)ask_route(&f, i % 5 ? "!nan" : "acme");
    }
    CHECK(i < 10);
    finish(&f);
}

/* ---- memory ---- */

TEST(memory_bombs_fail_and_the_next_call_works)
{
    static const char *const bombs[] = {"!table", "!string", "!pcall", "!keep", "!gsub"};
    struct fixture f;

    start(&f, "x",
          HEAD "local keep\nlocal bad = {\n"
               "  ['!table'] = function() local t = {} for i = 1, 1e8 do t[i] = i end end,\n"
               "  ['!string'] = function() local s = 'x' while true do s = s .. s end end,\n"
               "  ['!pcall'] = function() local s = 'x'\n"
               "    while pcall(function() s = s .. s end) do end error('swallowed') end,\n"
               "  ['!keep'] = function() keep = { ('k'):rep(60000) }\n"
               "    while true do keep[#keep + 1] = keep[#keep] .. 'x' end end,\n"
               "  ['!gsub'] = function() local s = ('x'):rep(60000) return (s:gsub('x', s)) end }\n"
               "function M.route(r) local f = bad[r.tenant]\n"
               "  keep = nil if f then return f() end return 'gold' end\nreturn M\n");
    for (size_t i = 0; i < sizeof bombs / sizeof *bombs; i++) {
        /* a bomb may be stopped by the guard before memory runs out: then a turn builds it anew */
        CHECK_INT(ask_route(&f, bombs[i]).verdict, PRT_ANSWER_NONE);
        prt_policies_turn(f.ps, 0);
        CHECK(seat_of(&f)->inst->vm.used < PRT_LUA_SOFT_BYTES || strcmp(bombs[i], "!keep") == 0);
        CHECK_STR(route_of(&f, "acme"), "gold");
        hand_clock_us += 700000000; /* so that guard's stops do not add up */
    }
    CHECK(info_of(&f).failures >= 5);
    finish(&f);
}

TEST(a_policy_cannot_keep_more_than_the_limit)
{
    struct fixture f;

    start(&f, "x",
          HEAD "local keep = {}\nfunction M.init() keep = {} end\n"
               "function M.route(r) if r.tenant == '!keep' then\n"
               "  keep[#keep + 1] = ('x'):rep(60000) .. #keep end return 'gold' end\nreturn M\n");
    for (int i = 0; i < 2000 && info_of(&f).failures == 0; i++) {
        (void)ask_route(&f, "!keep");
        CHECK(seat_of(&f)->inst->vm.used <= PRT_LUA_HARD_BYTES);
        prt_policies_turn(f.ps, 0);
    }
    CHECK(strstr(info_of(&f).last_error, "not enough memory") != NULL);
    CHECK_STR(route_of(&f, "acme"), "gold");
    finish(&f);
}

TEST(what_a_policy_keeps_is_collected_outside_of_the_hook)
{
    struct fixture f;

    start(&f, "x",
          HEAD "local keep = {}\nfunction M.init() keep = {} end\n"
               "function M.route(r) if r.tenant == '!grow' then\n"
               "  for i = 1, 100 do keep[#keep + 1] = ('x'):rep(1000) .. #keep end end\n"
               "  return 'gold' end\nreturn M\n");
    for (int i = 0; i < 100 && !count_log("event=policy_memory"); i++) {
        CHECK_STR(route_of(&f, "!grow"), "gold");
        prt_policies_turn(f.ps, 0);
    }
    CHECK_INT(count_log("event=policy_memory"), 1);
    finish(&f);
}

/* ---- versions ---- */

TEST(a_commit_changes_hooks_and_version_numbers)
{
    struct fixture f;
    uint32_t before;

    start(&f, "x", HEAD "M.route = 'gold'\nreturn M\n");
    CHECK_INT(atomic_load(&f.ops->hooks), PRT_HOOK_ROUTE);
    before = atomic_load(&f.ops->version);
    atomic_store(&wakes, 0);
    CHECK_INT(refresh(&f), 0);
    CHECK_INT(atomic_load(&f.ops->version), before);
    CHECK_INT(atomic_load(&wakes), 0);
    write_policy(&f, "x", HEAD "M.admit = true\nreturn M\n");
    CHECK_INT(refresh(&f), 1);
    CHECK_INT(atomic_load(&f.ops->hooks), PRT_HOOK_ADMIT);
    CHECK(atomic_load(&f.ops->version) != before);
    CHECK_INT(atomic_load(&wakes), 1);
    f.pool.n_policies = 0;
    go(&f);
    CHECK_INT(atomic_load(&f.ops->hooks), 0);
    CHECK_INT(ask_route(&f, "x").verdict, PRT_ANSWER_NONE);
    finish(&f);
}

TEST(new_partitions_reach_an_unchanged_policy)
{
    struct fixture f;

    start(&f, "route/tenant", NULL);
    CHECK_STR(route_of(&f, "initech"), "default");
    f.part[2].type = PRT_PART_TENANT;
    f.part[2].match = dup_of("initech");
    go(&f);
    CHECK_STR(route_of(&f, "initech"), "bi");
    finish(&f);
}

TEST(a_broken_file_is_named_once_per_text)
{
    struct fixture f;

    start(&f, "x", HEAD "M.route = 'gold'\nreturn M\n");
    write_policy(&f, "x", HEAD "\nM.route = = 5\nreturn M\n");
    CHECK_INT(refresh(&f), 0);
    CHECK_INT(refresh(&f), 0);
    CHECK_INT(count_log("event=policy_rejected"), 1);
    CHECK_INT(count_log("line=3"), 1);
    CHECK_INT(count_log(f.dir), 1);
    CHECK_INT(info_of(&f).rejected_versions, 1);
    CHECK_STR(info_of(&f).state, "active");
    CHECK(strstr(f.last_error, "/x.lua:3: ") != NULL);
    CHECK_STR(route_of(&f, "a"), "gold");
    write_policy(&f, "x", HEAD "M.route = 'gold'\nreturn M\n");
    CHECK_INT(refresh(&f), 0); /* back to what serves: nothing to do */
    char file[600];
    (void)snprintf(file, sizeof file, "%s/x.lua", f.dir);
    CHECK_INT(unlink(file), 0);
    CHECK_INT(refresh(&f), 0);
    CHECK_INT(refresh(&f), 0);
    CHECK_INT(count_log("not found"), 1);
    CHECK_STR(route_of(&f, "a"), "gold");
    write_policy(&f, "x", HEAD "M.route = 'globex'\nreturn M\n");
    CHECK_INT(refresh(&f), 1);
    CHECK_STR(route_of(&f, "a"), "globex");
    finish(&f);
}

TEST(a_turned_symbolic_link_is_noticed)
{
    struct fixture f;
    char a[600], b[600], link[600];

    init(&f);
    write_policy(&f, "one", HEAD "M.route = 'gold'\nreturn M\n");
    write_policy(&f, "two", HEAD "M.route = 'globex'\nreturn M\n");
    (void)snprintf(a, sizeof a, "%s/one.lua", f.dir);
    (void)snprintf(b, sizeof b, "%s/two.lua", f.dir);
    (void)snprintf(link, sizeof link, "%s/x.lua", f.dir);
    CHECK_INT(symlink(a, link), 0);
    add_policy(&f, "x");
    go(&f);
    CHECK_STR(route_of(&f, "a"), "gold");
    CHECK_INT(unlink(link), 0);
    CHECK_INT(symlink(b, link), 0);
    CHECK_INT(refresh(&f), 1);
    CHECK_STR(route_of(&f, "a"), "globex");
    finish(&f);
}

TEST(state_is_handed_over_and_bad_state_starts_empty)
{
    static const char text[] =
        HEAD "local s = { n = 0 }\nfunction M.init() s = { n = 0 } end\n"
             "function M.export_state() return s end\n"
             "function M.import_state(t, from) s = t s.n = s.n + 100 * #from end\n"
             "function M.route(r) s.n = s.n + 1 return 'n' .. s.n end\nreturn M\n-- %d\n";
    char version[700];
    struct fixture f;

    (void)snprintf(version, sizeof version, text, 1);
    start(&f, "x", version);
    CHECK_STR(route_of(&f, "a"), "n1"); /* the warm-up left nothing behind */
    CHECK_STR(route_of(&f, "a"), "n2");
    (void)snprintf(version, sizeof version, text, 2);
    write_policy(&f, "x", version);
    CHECK_INT(refresh(&f), 1);
    CHECK_STR(route_of(&f, "a"), "n103");
    write_policy(&f, "x",
                 HEAD "local n = 0\nfunction M.init() n = 0 end\n"
                      "function M.export_state() return { f = function() end } end\n"
                      "function M.import_state(t) n = 50 error('cannot') end\n"
                      "function M.route(r) n = n + 1 return 'n' .. n end\nreturn M\n");
    CHECK_INT(refresh(&f), 1);
    CHECK_STR(route_of(&f, "a"), "n1"); /* import failed half-way: as if new */
    CHECK_INT(count_log("event=policy_state_lost"), 1);
    write_policy(&f, "x", version);
    CHECK_INT(refresh(&f), 1);
    CHECK_STR(route_of(&f, "a"), "n1"); /* a function cannot be handed over */
    finish(&f);
}

TEST(a_file_that_others_may_write_is_warned_of_once)
{
    struct fixture f;
    char file[600];

    init(&f);
    write_policy(&f, "x", HEAD "M.route = 'gold'\nreturn M\n");
    (void)snprintf(file, sizeof file, "%s/x.lua", f.dir);
    CHECK_INT(chmod(file, 0666), 0);
    add_policy(&f, "x");
    go(&f);
    go(&f);
    CHECK_INT(count_log("event=policy_writable"), 1);
    finish(&f);
}

/* ---- compiled code ---- */

static int traces(lua_State *L)
{
    static const char text[] = "local u, n = require 'jit.util', 0\n"
                               "for i = 1, 2000 do if u.traceinfo(i) then n = n + 1 end end\n"
                               "return n";
    if (luaL_loadstring(L, text) || lua_pcall(L, 0, 1, 0)) {
        return -1;
    }
    int n = (int)lua_tointeger(L, -1);
    lua_pop(L, 1);
    return n;
}

TEST(hot_hooks_are_compiled_before_they_serve)
{
    static const char *const bodies[] = {
        NULL, /* the bundled one */
        HEAD "local floor = math.floor\nlocal t = { 'gold' }\n"
             "local function one(r) return t[floor(1.5)] end\n"
             "function M.route(r) return one(r) end\nreturn M\n",
        HEAD
        "function M.route(r) return ('GOLD'):lower() end\nreturn M\n", /* tail call of a builtin */
    };
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        struct fixture f;
        start(&f, bodies[i] ? "x" : "route/tenant", bodies[i]);
        lua_State *L = seat_of(&f)->inst->vm.L;
        int warm = traces(L);
        if (!UNDER_SANITIZER) {
            CHECK(warm >= 1);
        }
        for (int k = 0; k < 20000; k++) {
            (void)ask_route(&f, k % 2 ? "acme" : "globex");
        }
        CHECK(traces(L) < warm + 10);
        finish(&f);
    }
}

TEST(the_worker_s_random_numbers_differ_by_state)
{
    static const char text[] = HEAD "local p = require 'poolrt'\n"
                                    "function M.route(r) return 'r' .. math.random(1e9) .. '_' .. "
                                    "p.random(1e9) end\nreturn M\n";
    char first[100];
    struct fixture f;

    start(&f, "x", text);
    (void)snprintf(first, sizeof first, "%s", route_of(&f, "a"));
    finish(&f);
    start(&f, "x", text);
    CHECK(strcmp(first, route_of(&f, "a")) != 0);
    finish(&f);
}

/* ---- the report ---- */

static void note_dir(void *arg, const char *dir)
{
    int *n = arg;

    CHECK(dir[0] == '/' || strstr(dir, "policies") != NULL);
    ++*n;
}

TEST(the_report_says_what_serves)
{
    struct fixture f;
    int dirs = 0;
    struct prt_policy_info info;

    start(&f, "route/tenant", NULL);
    (void)route_of(&f, "acme");
    info = info_of(&f);
    CHECK_STR(f.name, "tenant 1.0.0 route/tenant app route");
    CHECK_INT(strlen(f.sha), 64);
    CHECK_INT(info.calls, 1);
    CHECK_INT(info.failures, 0);
    CHECK(info.last_error == NULL);
    prt_policies_each_dir(f.ps, note_dir, &dirs);
    CHECK(dirs >= 3); /* two folders, and route/ in each */
    finish(&f);
}
