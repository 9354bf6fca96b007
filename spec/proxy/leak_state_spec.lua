-- leak_state_spec.lua - every kind of state that a session can have, every way in which a client
-- can leave it behind, every rule that a pool can have for it: the next client must not see any of
-- it.
local rig = require "proxy.rig"
local wire = require "proxy.wire"
local lanes = require "proxy.lanes"

-- What is left, by what the next client can see. `kind`: what its rule is called; without one it is
-- a setting, which follows its client whatever the rules say. `ends`: statements that end it,
-- `seems_to_end`: one that only looks so.
local KINDS = {
  {
    what = "a temporary table", kind = "temp", make = "create temp table left_table (x int)",
    probe = "select count(*) from pg_class where relnamespace = pg_my_temp_schema()", clean = "0",
    ends = { "discard temp" }, seems_to_end = "drop table left_table",
  }, {
    what = "a cursor with hold", kind = "hold",
    make = "begin; declare left_cursor cursor with hold for select 1; commit",
    probe = "select count(*) from pg_cursors where name = 'left_cursor'", clean = "0",
    ends = { "close left_cursor", "close all" },
  }, {
    what = "an advisory lock", kind = "advisory", make = "select pg_advisory_lock_shared(4242)",
    probe = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
    clean = "0", ends = { "select pg_advisory_unlock_all()" },
  }, {
    what = "LISTEN", kind = "listen", make = "listen left_channel", is_heard = true,
    probe = "select count(*) from pg_listening_channels()", clean = "0",
  }, {
    what = "SQL PREPARE", kind = "prepare", make = "prepare left_statement as select 1",
    probe = "select count(*) from pg_prepared_statements where name = 'left_statement'",
    clean = "0",
    ends = { "deallocate left_statement", "deallocate all" },
  }, {
    what = "SET ROLE", kind = "role", make = "set role globex", probe = "select current_user",
    clean = "acme", ends = { "reset role", "set role none", "set role = default" },
  }, {
    what = "SET SESSION AUTHORIZATION", kind = "role", make = "set session authorization globex",
    probe = "select session_user", clean = "acme",
    ends = { "reset session authorization", "set session authorization default" },
  }, {
    what = "a DO that sets something", kind = "opaque", probe = "show work_mem", clean = "4MB",
    make = "do $$ begin perform set_config('work_mem', '77MB', false); end $$",
  }, {
    what = "a CALL that sets something", kind = "opaque", probe = "show work_mem", clean = "4MB",
    make = "call set_it()",
  }, {
    what = "a setting of its own", make = "set my.own = 'left'",
    probe = "select coalesce(nullif(current_setting('my.own', true), ''), 'none')", clean = "none",
  }, {
    what = "search_path", make = "set search_path = pg_catalog", probe = "show search_path",
    clean = '"$user", public',
  }, {
    what = "a setting that is not reported", make = "set statement_timeout = '99s'",
    probe = "show statement_timeout", clean = "0",
  }, {
    what = "a setting that is reported", make = "set DateStyle = 'German'",
    probe = "show DateStyle", clean = "ISO, MDY",
  },
}

local function in_transaction(sql)
  return function(c)
    c:ask(sql)
    c:drop()
  end
end

-- An administrator ends it, over REST; in_transaction: and is told that it was rolled back.
local function killed(o)
  return function(c, px, pool)
    if o.sql then
      c:ask(o.sql)
    end
    if o.send then
      c:send(o.send)
    end
    if o.answers then
      c:next()
    end
    local row = rig.eventually(5, "it is " .. o.state, function()
      local seen = px:session_of(pool)
      return seen.state == o.state and seen, seen.state
    end)
    local path = o.connection and "/connections/" .. row.connection_id .. "?force=true"
      or "/sessions/" .. row.id
    local status, body = px:rest("DELETE", path)
    assert(status == 200, "kill: " .. status)
    assert(body.data.transaction_rolled_back == (o.in_transaction == true), "not rolled back")
    local words = wire.words(c:until_end(5))
    assert(words:find "E:FATAL:57P01$", words)
    c:drop()
  end
end

local WAYS = {
  { "Terminate", function(c)
    c:send(wire.terminate)
    c:drop()
  end },
  { "FIN", function(c) c:drop() end },
  { "RST", function(c) c:reset() end },
  { "FIN in a transaction", in_transaction "begin; select 1" },
  { "FIN in a failed transaction", in_transaction "begin; select 1/0" },
  { "RST with an open pipeline", function(c)
    c:send(wire.batch "select 1" .. wire.flush .. wire.parse("", "select 2"))
    c:next()
    c:reset()
  end },
  { "kill", killed { state = "idle" } },
  { "kill in a transaction",
    killed { sql = "begin; select 1", state = "idle_in_transaction", in_transaction = true } },
  { "kill in a failed transaction",
    killed { sql = "begin; select 1/0", state = "idle_in_transaction", in_transaction = true } },
  { "kill with an open pipeline", killed { state = "active", in_transaction = true, answers = true,
    send = wire.batch "select 1" .. wire.flush .. wire.parse("", "select 2") } },
  { "kill in a query", killed { send = wire.query "select pg_sleep(60)", state = "active" } },
  { "kill of its connection",
    killed { sql = "begin", state = "idle_in_transaction", in_transaction = true,
      connection = true } },
  { "the idle limit", function(c)
    local words = wire.words(c:until_end(5))
    assert(words:find "E:FATAL:57P05", "no end: " .. words)
    c:drop()
  end, idle = true },
}

local RULES = { "pin", "reset", "refuse", "off", "session" }
local SETTINGS = {
  session = "mode = 'session', max_size = 1",
}
for _, rule in ipairs(RULES) do
  SETTINGS[rule] = SETTINGS[rule]
    or ("mode = 'transaction', max_size = 1, session_state = '%s'"):format(rule)
end

local function hint_of(list)
  for _, m in ipairs(list) do
    if m[1] == "E" then
      return wire.fields(m[2]).H
    end
  end
end

local function is_refused(state, rule)
  return rule == "refuse" and state.kind
end

-- One of each way has its own pool of one server, so that the next client gets what is left of it.
local function pool_of(rule, i)
  return rule .. i
end

local function make(c, state, rule)
  local words, _, list = c:ask(state.make)
  if not is_refused(state, rule) then
    assert(not words:find "E:" and words:find "Z:I$", words)
    return
  end
  assert(words:find "E:ERROR:0A000 ", words)
  assert(#(hint_of(list) or "") > 20, "no hint")
  if words:find "Z:E$" then -- it was in the middle of a transaction of its own text
    c:ask "rollback"
  end
  assert(c:one "select 42" == "42")
end

-- With "off" there is nothing to say about what the next one finds, but that it is served.
local function check_next(px, pool, state, rule)
  local c = px:login(pool)
  if rule == "off" and state.kind then
    local words = c:ask "select 42" -- it may hear what the one before has listened to
    assert(words:find "T D C:SELECT 1 Z:I$", words)
  else
    local seen = c:one(state.probe)
    assert(seen == state.clean, "the next client sees " .. seen)
  end
  if state.is_heard then
    local other = assert(wire.login(rig.server().port, "acme", "app"))
    other:ask "notify left_channel, 'for the one before'"
    other:drop()
    local words = c:ask "select 1"
    assert(rule == "off" or words == "T D C:SELECT 1 Z:I", words)
    c:ask "select 1"
  end
  c:send(wire.terminate)
  c:drop()
  if rule == "off" then -- so that nobody else in this spec meets it
    local last = px:login(pool)
    last:ask "discard all"
    last:drop()
  end
end

local function leave_by(px, state, rule, i)
  return function()
    local pool = pool_of(rule, i)
    local c = px:login(pool)
    local ok, why = pcall(function()
      make(c, state, rule)
      WAYS[i][2](c, px, pool)
      check_next(px, pool, state, rule)
    end)
    if not ok then
      error(("%s: %s"):format(WAYS[i][1], tostring(type(why) == "table" and why.message or why)), 0)
    end
  end
end

local function pools()
  local all = {
    two = "mode = 'transaction', max_size = 2, session_state = 'pin'",
    mixed = "mode = 'transaction', max_size = 2, "
      .. "session_state = { temp = 'refuse', role = 'reset', default = 'pin' }",
    plain = "mode = 'transaction', max_size = 2",
    role = "mode = 'transaction', max_size = 2",
  }
  for _, rule in ipairs(RULES) do
    for i, way in ipairs(WAYS) do
      all[pool_of(rule, i)] = SETTINGS[rule]
        .. (way.idle and ", client_idle_timeout = '300ms'" or "")
    end
  end
  return all
end

describe("session state", function()
  local px = rig.shared { pools = pools(), token = "t0ken" }

  setup(function()
    rig.sql([[create or replace procedure set_it() language plpgsql
      as $$ begin perform set_config('work_mem', '77MB', false); end $$]], "app")
  end)

  before_each(wire.track) -- also what is in the middle of its login when another lane fails
  after_each(wire.drop_tracked)

  it("would be seen by a client that meets it", function()
    for _, state in ipairs(KINDS) do
      local c = assert(wire.login(rig.server().port, "acme", "app"))
      assert.equal(state.clean, c:one(state.probe))
      c:ask(state.make)
      assert.not_equal(state.clean, c:one(state.probe))
      c:drop()
    end
  end)

  for _, rule in ipairs(RULES) do
    describe(rule == "session" and "in session mode" or "under the rule " .. rule, function()
      for _, state in ipairs(KINDS) do
        it("is not handed over: " .. state.what, function()
          local ways, kills = {}, {}
          for i, way in ipairs(WAYS) do
            local list = way[1]:find "^kill" and kills or ways
            list[#list + 1] = leave_by(px, state, rule, i)
          end
          lanes.run(ways)
          lanes.run(kills) -- apart: who waits for curl lets nobody else go on
        end)
      end

      it("leaves nothing behind", function()
        px:assert_settled(pool_of(rule, 1), 1)
      end)
    end)
  end

  -- ---- settings follow their client ----

  it("that is a setting follows its client to every server, and no one else", function()
    for _, state in ipairs(KINDS) do
      if not state.kind then
        local a, b, other = px:login "plain", px:login "plain", px:login "plain"
        a:ask(state.make)
        local own = a:one(state.probe)
        for i = 1, 6 do
          other:ask(i % 2 == 0 and "begin" or "commit")
          assert.equal(own, a:one(state.probe))
          assert.equal(state.clean, b:one(state.probe))
        end
        px:drop_clients()
      end
    end
    assert.equal(0, px:metrics() ['poolrt_pool_pinned{pool="plain",reason="opaque"}'] or 0)
  end)

  it("that set_config() was given in another way than by a literal follows as well", function()
    local a, b, other = px:login "plain", px:login "plain", px:login "plain"
    local set = "select set_config('my.own', $1, false), set_config('work_mem', $2, false)"
    a:send(wire.parse("s", set) .. wire.bind("", "s", "it's \195\169", "5000")
      .. wire.execute "" .. wire.sync)
    assert.equal("1 2 D C:SELECT 1 Z:I", wire.words(a:until_ready()))
    b:ask "begin; select set_config('my.own', current_user || '', false); rollback"
    b:ask [[select 1; select set_config('search_path', lower('A') || '\''b', false); select 2]]
    for i = 1, 6 do
      other:ask(i % 2 == 0 and "commit" or "begin")
      assert.equal("it's \195\169 5000kB",
        a:one("select current_setting('my.own') || ' ' || current_setting('work_mem')"))
      assert.equal([[ 4MB a\'b]], b:one("select concat_ws(' ', current_setting('my.own', true), "
        .. "current_setting('work_mem'), current_setting('search_path'))"))
    end
    other:ask "commit"
    local pinned = px:metrics() ['poolrt_pool_pins_total{pool="plain",reason="setting"}']
    assert.equal(0, pinned or 0)
  end)

  -- ---- pins ----

  local function pinned(pool, kind)
    return px:metrics()[("poolrt_pool_pinned{pool=%q,reason=%q}"):format(pool, kind)] or 0
  end

  local function pins(pool, kind)
    return px:metrics()[("poolrt_pool_pins_total{pool=%q,reason=%q}"):format(pool, kind)] or 0
  end

  for _, state in ipairs(KINDS) do
    if state.kind and state.kind ~= "listen" then
      it("keeps the server with its client: " .. state.what, function()
        local c, others = px:login "two", { px:login "two", px:login "two", px:login "two" }
        local before = pins("two", state.kind)
        c:ask(state.make)
        local pid, own = c:one "select pg_backend_pid()", c:one(state.probe)
        assert.not_equal(state.clean, own)
        assert.equal(1, pinned("two", state.kind))
        assert.equal(before + 1, pins("two", state.kind))
        for _ = 1, 3 do
          for _, other in ipairs(others) do
            assert.not_equal(pid, other:one "select pg_backend_pid()")
            assert.equal(state.clean, other:one(state.probe))
          end
          assert.equal(pid, c:one "select pg_backend_pid()")
          assert.equal(own, c:one(state.probe))
          c:ask "begin"
          c:ask "select 1/0"
          c:ask "rollback"
        end
        assert.equal(before + 1, pins("two", state.kind))
        c:send(wire.terminate)
        c:drop()
        rig.eventually(5, "the pin is gone with its client", function()
          local n = pinned("two", state.kind)
          return n == 0, n
        end)
        px:drop_clients()
        px:assert_settled("two", 2)
      end)

      it("is gone when the client has ended it: " .. state.what, function()
        local ends = { "discard all", unpack(state.ends or {}) }
        for _, sql in ipairs(ends) do
          local c = px:login "two"
          c:ask(state.make)
          assert.equal(1, pinned("two", state.kind), sql)
          if state.seems_to_end then
            c:ask(state.seems_to_end)
            assert.equal(1, pinned("two", state.kind), state.seems_to_end)
          end
          if state.kind == "role" then -- the others go at once, and for good
            c:ask("begin; " .. sql .. "; rollback")
            c:ask "rollback"
            assert.equal(1, pinned("two", state.kind), sql)
          end
          local words = c:ask(sql)
          assert(not words:find "E:", sql .. ": " .. words)
          assert.equal(0, pinned("two", state.kind), sql)
          assert.equal(state.clean, c:one(state.probe))
          c:drop()
        end
        px:assert_settled("two", 2)
      end)
    end
  end

  it("SET ROLE NONE follows its client alone, where the login gives a role", function()
    rig.sql("alter role globex set role = 'acme'", "app")
    local a, b = px:login("role", "globex"), px:login("role", "globex")
    local other = px:login("role", "globex")
    assert.equal("acme", a:one("select current_user"))
    a:ask "set role postgres; set role none"
    for i = 1, 6 do
      other:ask(i % 2 == 0 and "commit" or "begin")
      assert.equal(0, pinned("role", "role"))
      assert.equal("globex", a:one("select current_user"))
      assert.equal("acme", b:one("select current_user"))
    end
    a:ask "begin; reset role; rollback"
    a:ask "reset all"
    assert.equal("globex", a:one("select current_user"))
    a:ask "reset role"
    assert.equal("acme", a:one("select current_user"))
    rig.sql("alter role globex reset role", "app")
  end)

  it("that was rolled back pins nothing", function()
    local c = px:login "two"
    for _, sql in ipairs { "create temp table left_table (x int)", "set role globex",
      "declare left_cursor cursor with hold for select 1" } do
      c:ask "begin"
      c:ask(sql)
      c:ask "rollback"
      for _, kind in ipairs { "temp", "role", "hold" } do
        assert.equal(0, pinned("two", kind), sql)
      end
    end
  end)

  it("that pins both servers leaves the next client to its time limit, not to them", function()
    local a, b = px:login "two", px:login "two"
    a:ask "create temp table left_table (x int)"
    b:ask "prepare left_statement as select 1"
    assert.equal(1, pinned("two", "temp"))
    assert.equal(1, pinned("two", "prepare"))
    local c = px:login "two"
    c:send(wire.query "select count(*) from pg_prepared_statements")
    assert.equal("T D C:SELECT 1 Z:I", (a:ask "select 1"))
    assert.is_true(c:is_quiet())
    b:send(wire.terminate)
    assert.same({ "0" }, wire.values(c:until_ready()))
  end)

  it("has its rule by kind", function()
    local c = px:login "mixed"
    assert.equal("E:ERROR:0A000 Z:I", (c:ask "create temp table left_table (x int)"))
    assert.equal("C:PREPARE Z:I", (c:ask "prepare left_statement as select 1"))
    assert.equal(1, pinned("mixed", "prepare"))
    assert.equal("C:DEALLOCATE Z:I", (c:ask "deallocate left_statement"))
    assert.equal(0, pinned("mixed", "prepare"))
    assert.equal("C:SET Z:I", (c:ask "set role globex")) -- to the end of its transaction
    assert.equal("acme", c:one "select current_user")
    assert.equal("C:BEGIN C:SET Z:T", (c:ask "begin; set role globex"))
    assert.equal("globex", c:one "select current_user")
    c:ask "commit"
    assert.equal("acme", c:one "select current_user")
    assert.equal(0, pinned("mixed", "role"))
    px:drop_clients()
    px:assert_settled("mixed", 2)
  end)

  it("is refused in any form, and fails the transaction that it was in", function()
    local c = px:login "refuse1"
    c:send(wire.batch "select 1" .. wire.batch "create temp table left_table (x int)"
      .. wire.batch "select 2" .. wire.sync .. wire.batch "select 3" .. wire.sync)
    local list = c:until_ready(2)
    local words = wire.words(list)
    assert(words:find "^1 2 T D C:SELECT 1 .*E:ERROR:0A000 Z:I 1 2 T D C:SELECT 1 Z:I$", words)
    assert.same({ "1", "3" }, wire.values(list))
    assert.equal("C:BEGIN Z:T", (c:ask "begin"))
    assert.equal("E:ERROR:0A000 Z:E", (c:ask "create temp table left_table (x int)"))
    assert.equal("E:ERROR:25P02 Z:E", (c:ask "select 1"))
    assert.equal("C:ROLLBACK Z:I", (c:ask "commit"))
    for _, sql in ipairs { "select 1; create temp table left_table (x int); select 2",
      "select 1 into temp left_table", "/* */ CREATE TEMPORARY VIEW v AS SELECT 1",
      "create table pg_temp.left_table (x int)" } do
      local answer = c:ask(sql)
      assert(answer:find "E:ERROR:0A000 Z:I$", sql .. ": " .. answer)
    end
    assert.equal("0", c:one(KINDS[1].probe))
  end)
end)
