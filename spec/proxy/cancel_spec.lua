-- cancel_spec.lua - a cancel request ends the query of the client whose key it carries, in time,
-- and nobody else's: while it runs, while it waits, and when it comes too late or with a wrong key.
local rig = require "proxy.rig"
local wire = require "proxy.wire"

--- Run `cancels` over poolrt, or with a conninfo: the numbers that it prints.
local function cancels(px, clients, chosen, running, database, conninfo)
  local job = px:job(("%s %d %d %d %s %q"):format(rig.client "cancels", clients, chosen, running,
    conninfo and ("%q"):format(conninfo) or "@", rig.direct()), database)
  local out, status = job:wait(200)
  assert(status == 0, out)
  local n = {}
  for name, value in out:gmatch "([%w_]+)=(%d+)" do
    n[name] = tonumber(value)
  end
  n.out = out
  return n
end

describe("cancel #alone", function()
  local px = rig.shared {
    pools = {
      big = "mode = 'transaction', max_size = 1000, idle_timeout = 1, maintenance_interval = 1",
      few = "mode = 'transaction', max_size = 10, acquire_timeout = '60s'",
      one = "mode = 'transaction', max_size = 1",
      session = "mode = 'session', max_size = 2",
    },
  }

  it("ends exactly those 500 of 1,000 running queries that are meant, all asked at once", function()
    local n = cancels(px, 1000, 500, 1000, "big")
    assert(n.cancelled == 500 and n.foreign == 0 and n.other == 0 and n.running == 500, n.out)
    if n.slowest_ms >= 2000 and not rig.is_sanitized then
      -- PostgreSQL forks a process for each request: on a busy machine that alone takes longer
      rig.sql "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'app'"
      rig.no_backends(10, "datname = 'app'")
      local direct = cancels(px, 1000, 500, 1000, "big", rig.direct())
      assert(n.slowest_ms < direct.slowest_ms * 1.5, n.out .. "direct: " .. direct.out)
      rig.sql "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'app'"
    end
    -- the other 500 have left in the middle of their query: nothing runs on for nobody
    rig.no_backends(10, "state = 'active'")
    px:assert_settled "big"
  end)

  it("ends queries that wait for a server as well", function()
    local n = cancels(px, 60, 30, 10, "few")
    assert(n.cancelled == 30 and n.foreign == 0 and n.other == 0 and n.running == 10, n.out)
    assert(rig.is_sanitized or n.slowest_ms < 2000, n.out)
    px:assert_settled("few", 10)
  end)

  local function forwarded()
    return px:metrics()["poolrt_cancels_forwarded_total"]
  end

  --- `times` queries of c, each sent and cancelled at once. A request may overtake the query on its
  --- last way, between poolrt and PostgreSQL or in the kernel of a busy machine, and is then
  --- without effect, as on a direct connection. One of a series may have been dropped by poolrt:
  --- it came before its query, and there was nothing to forward it for.
  local function ask_and_cancel(c, times, before, after)
    local dropped, late = 0, 0
    for i = 1, times do
      local sent = forwarded()
      before(i)
      c:send(wire.query "select pg_sleep(20)")
      after(i)
      assert.is_true(wire.cancel(px.port, c.key))
      local list, why = c:until_ready(1, 3)
      if why then
        dropped, late = dropped + (forwarded() == sent and 1 or 0), late + 1
        assert.is_true(wire.cancel(px.port, c.key))
        list = c:until_ready()
      end
      assert.truthy(wire.words(list):find "E:ERROR:57014 Z:I$")
    end
    assert(dropped <= 1 and late <= 5, ("%d dropped, %d without effect"):format(dropped, late))
  end

  local function nothing() end

  for _, pool in ipairs { "few", "session" } do
    it("is hardly ever lost right behind the query: " .. pool, function()
      ask_and_cancel(px:login(pool), 100, nothing, nothing)
      px:drop_clients()
    end)
  end

  it("is hardly ever lost while settings are restored on the server", function()
    local other = px:login "one"
    local c = px:login("one", "acme", "TimeZone", "Asia/Tokyo")
    ask_and_cancel(c, 50, function() other:ask "select 1" end, nothing)
    assert.equal("Asia/Tokyo", select(2, c:ask "show timezone")[1])
    px:drop_clients()
  end)

  it("is hardly ever lost while the server that a client waits for is on its way", function()
    local first, c = px:login "one", px:login "one"
    ask_and_cancel(c, 300, function()
      first:send(wire.query "select pg_sleep(0.01)")
    end, function(i)
      local at = wire.now() + 0.008 + i % 40 * 0.0001
      repeat until wire.now() > at
    end)
    px:drop_clients()
    px:assert_settled("one", 1)
  end)

  it("leaves the session usable", function()
    local c = px:login "session"
    c:send(wire.query "select pg_sleep(60)")
    rig.eventually(10, "it sleeps", function()
      return rig.backends "query = 'select pg_sleep(60)' and state = 'active'" == 1
    end)
    assert.is_true(wire.cancel(px.port, c.key))
    assert.equal("T E:ERROR:57014 Z:I", (wire.words(c:until_ready())))
    assert.equal("T D C:SELECT 1 Z:I", (c:ask "select 1"))
    c:drop()
    px:assert_settled("session", 2)
  end)

  it("ignores a wrong key and one whose client is idle", function()
    local c, other = px:login "one", px:login "one"
    local wrong = c.key:sub(1, -2) .. string.char((c.key:byte(-1) + 1) % 256)
    c:send(wire.query "select pg_sleep(1)")
    rig.eventually(10, "it sleeps", function()
      return rig.backends "query = 'select pg_sleep(1)' and state = 'active'" == 1
    end)
    assert.is_true(wire.cancel(px.port, wrong))
    assert.is_true(wire.cancel(px.port, other.key))
    assert.equal("T D C:SELECT 1 Z:I", (wire.words(c:until_ready())))
    c:drop()
    other:drop()
    px:assert_settled("one", 1)
  end)

  it("that comes late does not hit the next client of that server", function()
    local c, next_one = px:login "one", px:login "one"
    for i = 1, 50 do
      -- the first is cancelled as it ends; its server goes to the second, which must not notice
      c:send(wire.query "select pg_sleep(0.005)")
      next_one:send(wire.query(("select %d from pg_sleep(0.02)"):format(i)))
      assert.is_true(wire.cancel(px.port, c.key))
      local first = wire.words(c:until_ready())
      assert(first == "T D C:SELECT 1 Z:I" or first:find "^[T ]*E:ERROR:57014 Z:I$", first)
      local list = next_one:until_ready()
      assert.equal("T D C:SELECT 1 Z:I", wire.words(list))
      assert.equal(tostring(i), wire.values(list)[1])
    end
    c:drop()
    next_one:drop()
    px:assert_settled("one", 1)
  end)
end)
