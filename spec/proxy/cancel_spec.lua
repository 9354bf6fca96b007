-- cancel_spec.lua - a cancel request ends the query of the client whose key it carries, in time,
-- and nobody else's: while it runs, while it waits, and when it comes too late or with a wrong key.
local rig = require "proxy.rig"
local wire = require "proxy.wire"

--- Run `cancels`: the numbers that it prints.
local function cancels(px, clients, chosen, running, database)
  local job = px:job(("%s %d %d %d @ %q"):format(rig.client "cancels", clients, chosen, running,
    rig.direct()), database)
  local out, status = job:wait(200)
  assert(status == 0, out)
  local n = {}
  for name, value in out:gmatch "([%w_]+)=(%d+)" do
    n[name] = tonumber(value)
  end
  n.out = out
  return n
end

describe("cancel", function()
  local px

  setup(function()
    px = rig.start {
      pools = {
        big = "mode = 'transaction', max_size = 1000, idle_timeout = 1, maintenance_interval = 1",
        few = "mode = 'transaction', max_size = 10, acquire_timeout = '60s'",
        one = "mode = 'transaction', max_size = 1",
        session = "mode = 'session', max_size = 2",
      },
    }
  end)

  teardown(function()
    px:stop()
  end)

  it("ends exactly those 500 of 1,000 running queries that are meant, within 2 s each", function()
    local n = cancels(px, 1000, 500, 1000, "big")
    assert(n.cancelled == 500 and n.foreign == 0 and n.other == 0 and n.running == 500, n.out)
    assert(rig.is_sanitized or n.slowest_ms < 2000, n.out)
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
