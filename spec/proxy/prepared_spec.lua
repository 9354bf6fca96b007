-- prepared_spec.lua - statements that clients prepare while they share servers: what they hear must
-- be what a direct connection would have told them.
local rig = require "proxy.rig"
local sys = require "support.os"
local wire = require "proxy.wire"
local lanes = require "proxy.lanes"
local twins = require "proxy.twin"
local holders = require "proxy.holders"
local vectors = require("proxy.setup").vectors

local parse, bind, execute, close = wire.parse, wire.bind, wire.execute, wire.close
local sync, query = wire.sync, wire.query

local px -- below

local function run(name)
  return bind("", name) .. execute ""
end

-- ---- spec/vectors/pooled.jsonl ----

local function split(bytes)
  local list, at = {}, 1
  while at < #bytes do
    local size = wire.get32(bytes, at + 1) + 1
    list[#list + 1] = { bytes:sub(at, at), bytes:sub(at + 5, at + size - 1) }
    at = at + size
  end
  return list
end

-- turns: how the pool's servers take turns, "as recorded", "alternating", or nil
local function replay(v, where, turns, step_size)
  local h, steps, is_open = turns and holders.new(px, where), {}, {}
  local t = twins.login(px, where)
  for i, step in ipairs(v.steps) do
    local answer = split(wire.unhex(step[4]))
    steps[i] = { wire.unhex(step[2]), #answer }
    is_open[i] = #answer == 0 or wire.words { answer[#answer] } ~= "Z:I"
  end
  t:send_all(steps, step_size, function(i)
    if turns and not is_open[i - 1] then
      h:free(turns == "as recorded" and v.steps[i][1] + 1 or i % 2 + 1)
    end
  end)
  t:ask "select 'the end'"
  assert.is_true(t:is_quiet())
end

-- The DO in it is dirt for the pool's rules, but for those of "off". One server has lost its
-- statements, so only the recorded order of servers is like a direct connection.
local HIDDEN = "hidden-deallocate"

local RUNS = {
  { "session", nil, nil, "in session mode" },
  { "app", "as recorded", nil, "in transaction mode" },
  { "app", "as recorded", 1, "in transaction mode, byte by byte" },
  { "app", "alternating", nil, "in transaction mode, with another server each time" },
}

describe("prepared statements", function()
  px = rig.shared {
    pools = {
      session = "mode = 'session', max_size = 4",
      app = "mode = 'transaction', max_size = 2",
      off = "mode = 'transaction', max_size = 2, session_state = 'off'",
      tiny = "mode = 'transaction', max_size = 1, statement_cache_size = 2",
      none = "mode = 'transaction', max_size = 2, statement_cache_size = 0",
      wide = "mode = 'transaction', max_size = 20",
      orm = "mode = 'transaction', max_size = 4, statement_cache_size = 100",
    },
  }

  describe("of a recorded client", function()
    before_each(function()
      rig.sql("drop table if exists cpx", "app")
    end)

    for _, v in ipairs(vectors "pooled") do
      for _, r in ipairs(RUNS) do
        local pool, turns = r[1], r[2]
        if v.id == HIDDEN and pool == "app" then
          pool = "off"
        end
        if v.id ~= HIDDEN or turns ~= "alternating" then
          it(("%s %s: %s"):format(v.id, r[4], v.what), function()
            replay(v, pool, turns, r[3])
          end)
        end
      end
    end

    it("leave nothing behind", function()
      px:assert_settled("app", 2)
      px:assert_settled("off", 2)
      px:assert_settled("session", 4)
    end)
  end)

  -- ---- what the vectors do not have ----

  it("belong to the client that has made them", function()
    local h, a, b = holders.new(px, "app"), twins.login(px, "app"), twins.login(px, "app")
    h:free(1)
    a:send(parse("s", "select 'of a'") .. parse("", "select 'a without name'") .. sync)
    b:send(run "s" .. sync)
    b:send(run "" .. sync)
    b:send(parse("s", "select 'of b'") .. run "s" .. sync)
    for _ = 1, 4 do
      h:swap()
      a:send(run "s" .. sync)
      b:send(run "s" .. sync)
    end
    a:send(close("S", "s") .. sync)
    a:send(run "s" .. sync)
    b:send(run "s" .. sync)
    b:send(run "" .. sync)
  end)

  it("have names that are equal when their first 63 bytes are", function()
    local h, c = holders.new(px, "app"), twins.login(px, "app")
    local long = ("n"):rep(63)
    h:free(1)
    c:send(parse(long .. "a", "select 'long'") .. sync)
    for _, name in ipairs { long, long .. "a", long .. "b", long:sub(2) } do
      h:swap()
      c:send(run(name) .. sync)
    end
    c:send(parse(long .. "b", "select 2") .. sync)
    c:send(close("S", long .. "c") .. sync)
    c:send(run(long) .. sync)
  end)

  for _, way in ipairs { "deallocate a", "deallocate prepare \"a\"", "DEALLOCATE all",
    "deallocate prepare all", "discard all", "select 1; deallocate all", "deallocate nosuch",
    "discard plans" } do -- a name has to be alone in its text, see README
    for _, is_extended in ipairs { false, true } do
      if not (is_extended and way:find ";") then
        it("are deallocated by SQL as they are directly: " .. way, function()
          local h, c = holders.new(px, "app"), twins.login(px, "app")
          h:free(1)
          c:send(parse("a", "select 1") .. parse("b", "select 2") .. sync)
          c:send(is_extended and wire.batch(way) .. sync or query(way))
          h:swap()
          c:send(run "a" .. sync)
          c:send(run "b" .. sync)
          c:send(parse("a", "select 3") .. run "a" .. sync)
        end)
      end
    end
  end

  it("take parameters and types, whatever server they meet", function()
    local h, c = holders.new(px, "app"), twins.login(px, "app")
    local function typed(name, sql, oid)
      return wire.message("P", name .. "\0" .. sql .. "\0" .. wire.u16(1) .. wire.u32(oid))
    end
    local function with(name, value)
      return wire.message("B", "\0" .. name .. "\0" .. wire.u16(0) .. wire.u16(1)
        .. wire.u32(#value) .. value .. wire.u16(0)) .. wire.execute ""
    end
    h:free(1)
    c:send(typed("i", "select $1 as v", 23) .. typed("t", "select $1 as v", 25) .. sync)
    for i = 1, 4 do
      h:swap()
      c:send(with("t", "0" .. i) .. wire.describe("S", "t") .. with("i", "0" .. i)
        .. wire.describe("S", "i") .. sync)
    end
    c:send(with("i", "no number") .. sync)
  end)

  it("whose result has changed fail as they do directly, and can be prepared again", function()
    rig.sql("drop table if exists shape", "app")
    for _, swaps in ipairs { false, true } do
      rig.sql("create table shape (a int); insert into shape values (1)", "app")
      local h, c = holders.new(px, "app"), twins.login(px, "app")
      local function use(name)
        return wire.describe("S", name) .. run(name) .. sync
      end
      local text = "select * from shape -- " .. tostring(swaps)
      h:free(1)
      c:send(parse("s", text) .. use "s")
      h:free(2)
      c:send(use "s")
      rig.sql("alter table shape add b text default 'new'", "app")
      c:send(use "s") -- 0A000: from now on it is known here, too
      for round = 1, 3 do
        c:send(parse("s" .. round, text) .. use("s" .. round))
        if swaps then
          h:swap()
        end
        c:send(use("s" .. round))
      end
      px:drop_clients()
      rig.sql("drop table shape", "app")
    end
  end)

  it("whose result has changed are not run with another shape than was described", function()
    rig.sql("drop table if exists shape", "app")
    rig.sql("create table shape (a int); insert into shape values (1)", "app")
    local h, c = holders.new(px, "app"), twins.login(px, "app")
    h:free(1)
    c:send(parse("s", "select * from shape") .. wire.describe("S", "s") .. run "s" .. sync)
    rig.sql("alter table shape add b text default 'new'", "app")
    h:free(2) -- it never had it: parsed there now, it has two columns, and the client reads one
    c:send(run "s" .. sync)
    h:free(1)
    c:send(run "s" .. sync)
    c:send(close("S", "s") .. parse("s", "select * from shape") .. run "s" .. sync)
    rig.sql("drop table shape", "app")
  end)

  it("that an input function refuses with the same SQLSTATE are none the worse for it", function()
    local h, c = holders.new(px, "app"), twins.login(px, "app")
    local function use(value) -- pg_node_tree takes no value, and says 0A000 as well
      return bind("", "s", value) .. execute "" .. sync
    end
    h:free(1)
    c:send(parse("s", "select $1::pg_node_tree is null") .. wire.describe("S", "s") .. sync)
    c:send(use "x")
    c:send(use(false))
    h:free(2)
    c:send(use(false))
  end)

  -- ---- few places on the server ----

  it("are not closed while the batch or the transaction that uses them goes on", function()
    local c, all, use = twins.login(px, "tiny"), {}, {}
    for i = 1, 6 do
      all[i] = parse("s" .. i, "select " .. i .. " from generate_series(1, 3)")
      use[i] = run("s" .. i)
    end
    all, use = table.concat(all), table.concat(use)
    c:send(all .. use .. sync)
    c:send(use .. use .. sync)
    c:send(use .. sync .. use .. sync .. use .. sync, { ready = 3 })
    c:ask "begin"
    c:send(bind("p", "s1") .. execute("p", 1) .. sync)
    c:send(use .. sync)
    c:send(parse("s7", "select 7") .. run "s7" .. use .. sync)
    c:send(execute("p", 1) .. run "s1" .. execute("p", 0) .. sync)
    c:ask "commit"
    c:send(run "s1" .. sync)
  end)

  it("never outnumber statement_cache_size on a server for long", function()
    local c = px:login "tiny"
    for i = 1, 50 do
      c:send(parse("s" .. i, "select " .. i) .. run("s" .. i) .. sync)
      assert.same({ tostring(i) }, wire.values(c:until_ready()))
    end
    for i = 1, 50 do
      c:send(run("s" .. i) .. sync)
      assert.same({ tostring(i) }, wire.values(c:until_ready()))
    end
    local _, n = c:ask "select count(*) from pg_prepared_statements"
    assert(tonumber(n[1]) <= 2, n[1] .. " statements")
    assert(px:pool_metric("statement_evictions_total", "tiny") >= 90)
  end)

  it("are refused with a hint where statement_cache_size is 0", function()
    local c = px:login "none"
    local function error_of(list)
      for _, m in ipairs(list) do
        if m[1] == "E" then
          return wire.fields(m[2])
        end
      end
    end
    for _, sql in ipairs { "select 1", "select '" .. ("x"):rep(200000) .. "'" } do
      c:send(wire.batch "select 1" .. sync .. wire.batch "select 2" .. parse("a", sql)
        .. wire.batch "select 4" .. sync .. wire.batch "select 5" .. sync)
      local list = c:until_ready(3)
      local whole = "1 2 T D C:SELECT 1 "
      assert.equal(whole .. "Z:I " .. whole .. "E:ERROR:0A000 Z:I " .. whole .. "Z:I",
        wire.words(list))
      assert.is_truthy(error_of(list).H and #error_of(list).H > 20)
    end
    c:ask "begin"
    c:send(parse("a", "select 1") .. run "a" .. sync)
    assert.equal("E:ERROR:0A000 Z:E", wire.words(c:until_ready()))
    assert.equal("E:ERROR:25P02 Z:E", (c:ask "select 1"))
    assert.equal("C:ROLLBACK Z:I", (c:ask "commit"))
    assert.equal("T D C:SELECT 1 Z:I", (c:ask "select 1"))
  end)

  -- ---- limits of one client ----

  it("are 10,000 for one client, and the next one is refused", function()
    local c, n = px:login "app", 0
    for _ = 1, 20 do
      local batch = {}
      for i = 1, 500 do
        n = n + 1
        batch[i] = parse("s" .. n, "select 'same'")
      end
      c:send(table.concat(batch) .. sync)
      local words = wire.words(c:until_ready())
      assert.equal(("1 "):rep(500) .. "Z:I", words)
    end
    c:send(parse("more", "select 'same'") .. run "more" .. sync)
    assert.equal("E:ERROR:53400 Z:I", wire.words(c:until_ready()))
    c:send(run "s10000" .. close("S", "s1") .. parse("more", "select 'same'") .. run "more" .. sync)
    assert.equal("2 D C:SELECT 1 3 1 2 D C:SELECT 1 Z:I", wire.words(c:until_ready()))
  end)

  it("of one client have 16 MB of text at the most", function()
    local c, big = px:login "app", " -- " .. ("x"):rep(1024 * 1024)
    local taken = 0
    for i = 1, 20 do
      c:send(parse("s" .. i, "select " .. i .. big) .. sync)
      local words = wire.words(c:until_ready(1, 30))
      if words ~= "1 Z:I" then
        assert.equal("E:ERROR:53400 Z:I", words)
        break
      end
      taken = i
    end
    assert(taken >= 10 and taken <= 16, taken)
    c:send(run "s1" .. sync)
    assert.equal("2 D C:SELECT 1 Z:I", wire.words(c:until_ready()))
    px:drop_clients()
    px:assert_settled("app", 2)
  end)

  -- ---- load ----

  -- A thread for each: pgbench waits for its Parse, and so for a server, with the whole thread,
  -- even when the clients that have one are in the same thread.
  for _, options in ipairs { "", "-S" } do
    it("of pgbench: 64 clients on 20 servers " .. options, function()
      sys.must(("pgbench -q -i -s 10 %s 2>&1"):format(sys.quote(rig.direct())))
      local seconds = rig.is_long and 20 or 3
      local job = px:job(("pgbench -n -M prepared -c 64 -j 64 -T %d %s @"):format(seconds, options),
        "wide")
      local out, status = job:wait(seconds + 60)
      local failed = tonumber(out:match "number of failed transactions: (%d+)")
      local done = tonumber(out:match "actually processed: (%d+)")
      assert(status == 0 and failed == 0 and done and done > 100 and not out:find "rror", out)
      px:assert_settled("wide", 20)
    end)
  end

  -- What an ORM does: popular texts under names that stay, and texts that never come again.
  local DISTINCT, CLIENTS, USES = 500, 8, rig.is_long and 6000 or 1500

  local function orm_client(pool, seed)
    local c, made, state = px:login(pool), {}, seed
    local function random()
      state = (state * 1103515245 + 12345) % 2147483648
      return math.floor(state / 8) % 65536 / 65536
    end
    local function expect(words, value)
      local list = c:until_ready()
      assert(wire.words(list) == words and wire.values(list)[1] == tostring(value),
        ("%s instead of %s: %s"):format(wire.words(list), value, tostring(wire.values(list)[1])))
    end
    return function()
      for use = 1, USES do
        local kind = random()
        if kind < 0.15 then
          c:send(parse("", ("select %d - %d"):format(seed, use)) .. run "" .. sync)
          expect("1 2 D C:SELECT 1 Z:I", seed - use)
        elseif kind < 0.3 then
          c:send(parse("once", ("select %d * 10000 + %d"):format(seed, use)) .. run "once"
            .. close("S", "once") .. sync)
          expect("1 2 D C:SELECT 1 3 Z:I", seed * 10000 + use)
        else
          local k = math.floor(DISTINCT * random() ^ 3)
          local name, is_new = "s" .. k, not made[k]
          made[k] = true
          c:send((is_new and parse(name, ("select %d /* %d */"):format(k * 7, k)) or "")
            .. run(name) .. sync)
          expect((is_new and "1 " or "") .. "2 D C:SELECT 1 Z:I", k * 7)
        end
      end
    end
  end

  local function orm(pool)
    local clients = {}
    for i = 1, CLIENTS do
      clients[i] = orm_client(pool, i)
    end
    lanes.run(clients)
  end

  it("of 500 texts over a cache of 100, and 30 % that come once", function()
    orm "orm"
    local hits = px:pool_metric("statement_hits_total", "orm")
    local misses = px:pool_metric("statement_misses_total", "orm")
    local evictions = px:pool_metric("statement_evictions_total", "orm")
    local saved = px:pool_metric("parses_saved_total", "orm")
    print(("-- %d uses: %d hits, %d misses, %.1f %%; %d evictions, %d parses saved"):format(
      CLIENTS * USES, hits, misses, 100 * hits / (hits + misses), evictions, saved))
    assert(hits + misses >= 0.6 * CLIENTS * USES)
    assert(hits / (hits + misses) > 0.25)
    assert(evictions > 0 and evictions <= misses)
    assert(saved > 0)
    px:drop_clients()
    px:assert_settled("orm", 4)
  end)
end)
