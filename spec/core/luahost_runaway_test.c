/* luahost_runaway_test.c - policies that do not end: each is stopped, the worker goes on, and a
 * version that does it again and again is taken out. */
#include "luahost_fixture.h"

static bool no_guard(void)
{
    if (UNDER_TSAN) {
        printf("  skipped: the thread sanitizer does not deliver the guard's signal\n");
    }
    return UNDER_TSAN;
}

static const char *const runaways[] = {
    "while true do end",
    "local x = 0 while true do x = x + 1 end",
    "local t = {} for i = 1, 1e18 do t[i % 8] = i end",
    "local function f(n) return f(n + 1) end f(1)",
    "local function a(n) return n + 1 end local n = 0 while true do n = a(n) end",
    "while true do pcall(error, 'x') end",
    "local function l() while true do end end\n"
    "while true do pcall(function() while true do pcall(l) end end) end",
    "local s = ('a'):rep(5000) s:find('.-.-.-.-.-b')",
    "while true do local s = ('a'):rep(100) s:find('b', 1, true) end",
    "while true do local t = {} for i = 1, 100 do t[i] = i end end",
    "while true do local t = {} for i = 1, 200 do t[i] = i end\n"
    "pcall(table.sort, t, function() return math.random() < .5 end) end",
    "local t = setmetatable({}, { __index = function() while true do end end }) return t.x",
    "local function f() return 1 + f() end while true do pcall(f) end",
    "while true do pcall(function() local x return x.y end) end",
    "local i = 0 while true do i = i + 1 local s = 'k' .. i .. 'v' end",
    "while true do ('abcabc'):gsub('.', function(c) return c .. 'x' end) end",
    "while true do r.tenant:upper() end",
    "while true do os.date('%c') end",
    "while true do require('poolrt').log('on and on') end",
    "while true do require('poolrt').hash('on and on') end",
    "while true do setmetatable({}, { __tostring = function() error('x') end }) end",
    "for _ in ('x'):rep(60000):gmatch('.-.-.-.-.-y') do end",
    "local s = string.format('%s', r.tenant) while s do s = s:reverse() end",
    "while true do pcall(function() local s = 'x' while true do s = s .. s end end) end",
    "while true do tostring(os.clock()) end",
};

static void runaway(const char *body)
{
    char text[1000];
    struct fixture f;

    (void)snprintf(text, sizeof text,
                   HEAD
                   "M.on_fail = { route = 'reject' }\nlocal function run(r)\n%s\nend\n"
                   "function M.route(r) if r.tenant == '!run' then run(r) end return 'gold' end\n"
                   "return M\n",
                   body);
    start(&f, "x", text);
    CHECK_STR(route_of(&f, "acme"), "gold");
    int64_t began = prt_now_us();
    struct prt_answer a = ask_route(&f, "!run");
    int64_t took = prt_now_us() - began;
    prt_policies_turn(f.ps, 0);
    if (a.verdict != PRT_ANSWER_REJECT || took > 5000000) {
        printf("  verdict %d after %lld us: %s\n", (int)a.verdict, (long long)took, body);
        prt_test_bad++;
    }
    CHECK_STR(route_of(&f, "acme"), "gold"); /* the worker goes on */
    CHECK(info_of(&f).failures > 0);
    finish(&f);
}

TEST(runaways_are_stopped_and_the_worker_goes_on)
{
    if (no_guard()) {
        return;
    }
    for (size_t i = 0; i < sizeof runaways / sizeof *runaways; i++) {
        runaway(runaways[i]);
    }
}

TEST(a_loop_at_load_in_one_instruction_is_stopped_too)
{
    struct fixture f;
    struct prt_policy_plan *plan;
    struct prt_err err = {0};

    if (no_guard()) {
        return;
    }
    init(&f);
    write_policy(&f, "x", HEAD "local s = ('a'):rep(5000) s:find('.-.-.-.-.-b')\nreturn M\n");
    add_policy(&f, "x");
    CHECK_INT(prt_policies_prepare(f.ps, &f.cfg, &plan, &err), POOLRT_CONFIG);
    CHECK(strstr(err.text, "it did not end and was stopped") != NULL);
    finish(&f);
}

#define LOOPS                                                                                      \
    "M.on_fail = { route = 'reject' }\n"                                                           \
    "function M.route(r) if r.tenant == '!run' then while true do end end return 'globex' end\n"   \
    "return M\n"

TEST(three_kills_disable_a_version)
{
    struct fixture f;

    if (no_guard()) {
        return;
    }
    start(&f, "x", HEAD LOOPS);
    for (int i = 0; i < 2; i++) {
        (void)ask_route(&f, "!run");
        prt_policies_turn(f.ps, 0);
        CHECK_STR(route_of(&f, "acme"), "globex");
        hand_clock_us += 400000000; /* two in ten minutes are not three */
    }
    (void)ask_route(&f, "!run");
    prt_policies_turn(f.ps, 0);
    CHECK_STR(info_of(&f).state, "active");
    (void)ask_route(&f, "!run");
    prt_policies_turn(f.ps, 0);
    CHECK_STR(info_of(&f).state, "disabled");
    CHECK_INT(info_of(&f).kills, 4);
    CHECK_INT(ask_route(&f, "acme").verdict, PRT_ANSWER_REJECT);
    CHECK_INT(refresh(&f), 0); /* the same text is not tried again */
    write_policy(&f, "x", HEAD "M.route = 'gold'\nreturn M\n");
    CHECK_INT(refresh(&f), 1);
    CHECK_STR(route_of(&f, "acme"), "gold");
    CHECK_STR(info_of(&f).state, "active");
    finish(&f);
}

TEST(three_kills_bring_back_a_version_that_proved_itself)
{
    struct fixture f;
    uint32_t before;

    if (no_guard()) {
        return;
    }
    start(&f, "x", HEAD "function M.route(r) return 'gold' end\nreturn M\n");
    hand_clock_us += 60000000;
    write_policy(&f, "x", HEAD LOOPS);
    CHECK_INT(refresh(&f), 1);
    CHECK_STR(route_of(&f, "acme"), "globex");
    before = atomic_load(&f.ops->version);
    for (int i = 0; i < 3; i++) {
        (void)ask_route(&f, "!run");
        prt_policies_turn(f.ps, 0);
    }
    CHECK_STR(route_of(&f, "acme"), "gold");
    CHECK(atomic_load(&f.ops->version) != before);
    CHECK_INT(count_log("event=policy_rolled_back"), 1);
    CHECK_INT(refresh(&f), 0);
    CHECK_STR(info_of(&f).state, "active");
    finish(&f);
}
