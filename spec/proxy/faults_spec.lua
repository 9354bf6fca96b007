-- faults_spec.lua - poolrt killed, stopped, reloaded; its server restarted, or killed in the middle
-- of a result: nothing stays behind, nothing half is taken for whole, the service comes back.
local rig = require "proxy.rig"
local sys = require "support.os"
local wire = require "proxy.wire"

local POOLS = {
  app = "mode = 'transaction', max_size = 10",
  session = "mode = 'session', max_size = 10",
}
local LONG = "select g, repeat(md5(g::text), 30) from generate_series(1, 1000000) g"

local function answers(px)
  local ok, c = pcall(wire.login, px.port, "acme", "app")
  if not ok or not c then
    return false, c
  end
  local words = c:ask("select 1", 5)
  c:drop()
  return words == "T D C:SELECT 1 Z:I", words
end

local function load(px, seconds)
  return px:job(("pgbench -n -S -c 20 -j 1 -T %d @"):format(seconds), "app")
end

--- Clients in every state that a backend may be left in.
local function occupy(px)
  px:login("session"):ask "select 1"
  px:login("session"):ask "begin; create temp table t (x int)"
  px:login("app"):ask "begin; select 1"
  px:login("app"):ask "begin; select 1/0"
  px:login("app"):ask "copy pg_class to stdout"
  px:login("app"):send(wire.query(LONG)) -- not read: the backend hangs in a write
  rig.eventually(10, "a backend hangs in a write", function()
    return rig.backends "wait_event = 'ClientWrite'" >= 1
  end)
end

describe("faults #alone", function()
  local px

  setup(function()
    rig.server()
    sys.must(("pgbench -q -i -s 1 %s 2>&1"):format(sys.quote(rig.direct())))
  end)

  before_each(function()
    px = rig.start { pools = POOLS }
  end)

  after_each(function()
    px:drop_clients()
    px.rt.stop "KILL"
  end)

  it("kill -9 leaves no backend after 5 s", function()
    local job = load(px, 20)
    occupy(px)
    -- a backend that works does not look at its socket by itself
    px:login("app"):send(wire.query "select pg_sleep(60)")
    rig.eventually(5, "load", function()
      return px:pool_metric("transactions_total", "app") > 100
    end)
    px.rt.stop "KILL"
    job:kill()
    rig.no_backends(5)
  end)

  for _, signal in ipairs { "TERM", "INT", "QUIT" } do
    it(signal .. " ends it within 5 s and leaves no backend, whatever runs", function()
      local job = load(px, 20)
      occupy(px)
      px:login("app"):send(wire.query "select pg_sleep(60)")
      rig.eventually(5, "it sleeps", function()
        return rig.backends "query = 'select pg_sleep(60)' and state = 'active'" == 1
      end)
      local began = sys.now()
      assert.equal(0, px.rt.stop(signal))
      -- shutdown_timeout is 5 s
      assert(sys.now() - began < 7, sys.now() - began)
      job:kill()
      rig.no_backends(5)
    end)
  end

  for how, signal in pairs { restarted = "INT", ["killed and restarted"] = "QUIT" } do
    it("serves again within 10 s when its server was " .. how .. " under load", function()
      local job = px:job(rig.client "many" .. " load 50 3 @ 'select pg_sleep(0.01)'", "app")
      rig.eventually(10, "load", function()
        return px:pool_metric("transactions_total", "app") > 100
      end)
      local idle, in_transaction = px:login "app", px:login "app"
      in_transaction:ask "begin; select 1"
      rig.stop_server(signal)
      rig.start_server()
      local up = sys.now()
      rig.eventually(10, "a new client is served", function() return answers(px) end)
      -- who had no server at that time has noticed nothing
      rig.eventually(10, "an old client is served", function()
        local words = idle:ask "select 1"
        return words == "T D C:SELECT 1 Z:I", words
      end)
      assert(sys.now() - up < 10)
      -- who was in a transaction is told so, and is not let go on in another
      local list, why = in_transaction:until_end(5)
      assert.equal("closed", why)
      assert.is_truthy(wire.words(list):find "^E:FATAL:", wire.words(list))
      job:wait(60)
      px:drop_clients()
      px:assert_settled("app", 10)
    end)
  end

  local KILLS = {
    terminated = function(pid)
      rig.sql(("select pg_terminate_backend(%d)"):format(pid))
    end,
    killed = function(pid)
      sys.kill(pid, "KILL")
    end,
  }

  for how, kill in pairs(KILLS) do
    it("a result whose backend is " .. how .. " on the way is never taken for whole", function()
      local c = px:login "app"
      c:send(wire.query(LONG))
      kill(rig.eventually(10, "the backend hangs in a write", function()
        return tonumber(rig.sql("select pid from pg_stat_activity "
          .. "where wait_event = 'ClientWrite'"))
      end))
      local list, why = c:until_end(20)
      local words = wire.words(list)
      -- cut in the middle of a message, nothing can be said any more
      assert.equal("closed", why)
      assert(words == "T D" or words:find "^T D E:FATAL:%w+$", words)
      rig.eventually(15, "served again", function() return answers(px) end)
      px:assert_settled("app", 10)
    end)

    it("a query whose backend is " .. how .. " ends with an error, once", function()
      local c = px:login "app"
      c:send(wire.query "select pg_sleep(61)")
      local pid = rig.eventually(10, "it sleeps", function()
        return tonumber(rig.sql("select pid from pg_stat_activity where state = 'active' "
          .. "and query = 'select pg_sleep(61)'"))
      end)
      kill(pid)
      local list, why = c:until_end(10)
      local words = wire.words(list)
      assert.equal("closed", why)
      assert(words:find "^[TD ]*E:FATAL:%w+$", words)
      rig.eventually(15, "served again", function() return answers(px) end)
      px:assert_settled("app", 10)
    end)
  end

  it("being stopped for a while, and 30 reloads, are noticed by no client", function()
    local job = px:job(("pgbench -n -c 20 -j 1 -T %d @"):format(rig.is_long and 20 or 6), "app")
    rig.eventually(5, "load", function()
      return px:pool_metric("transactions_total", "app") > 100
    end)
    sys.kill(px.pid, "STOP")
    rig.let_pass(rig.is_long and 2 or 1)
    sys.kill(px.pid, "CONT")
    for _ = 1, 30 do
      sys.kill(px.pid, "HUP")
      rig.let_pass(0.1)
    end
    local out, status = job:wait(60)
    assert(status == 0 and out:find "failed transactions: 0 " and not out:find "rror", out)
    assert.is_truthy(px.rt.log():find "event=reloaded")
    px:assert_settled("app", 10)
  end)
end)
