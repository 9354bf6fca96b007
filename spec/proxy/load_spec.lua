-- load_spec.lua - many clients over few servers: pgbench in every mode, a crowd, two users.
local rig = require "proxy.rig"
local sys = require "support.os"

local SECONDS = rig.is_long and 20 or 5

local px -- below

local function pgbench(database, options, seconds)
  local job = px:job(("pgbench -n -T %d %s @"):format(seconds or SECONDS, options), database)
  local out, status = job:wait((seconds or SECONDS) + 60)
  local failed = tonumber(out:match "number of failed transactions: (%d+)")
  local done = tonumber(out:match "actually processed: (%d+)")
  assert(status == 0 and failed == 0 and done and done > 100 and not out:find "rror", out)
end

describe("load #alone", function()
  px = rig.shared {
    pools = {
      app = "mode = 'transaction', max_size = 20",
      all = "mode = 'session', max_size = 20, acquire_timeout = '30s'",
      two = "mode = 'transaction', max_size = 20",
    },
  }

  setup(function()
    sys.must(("pgbench -q -i -s 10 %s 2>&1"):format(sys.quote(rig.direct())))
  end)

  for _, what in ipairs { "", "-S" } do
    for _, how in ipairs { "simple", "extended" } do
      local options = ("%s -M %s"):format(what, how)
      it("pgbench in transaction mode: 64 clients, 20 servers, " .. options, function()
        pgbench("app", options .. " -c 64 -j 2")
        px:assert_settled "app"
      end)
    end
  end

  it("pgbench in session mode: as many clients as servers", function()
    pgbench("all", "-c 20 -j 2")
    px:assert_settled "all"
  end)

  it("pgbench in session mode: clients wait until others have finished", function()
    pgbench("all", "-c 64 -j 2", rig.is_long and 10 or 3)
    px:assert_settled("all", 20)
  end)

  it("serves a thousand clients evenly with 20 servers", function()
    local job = px:job(("%s load 1000 %d @ 'select 1'"):format(rig.client "many", SECONDS), "app")
    local out, status = job:wait(SECONDS + 100)
    local min, mean = out:match "min=(%d+) mean=([%d.]+)"
    assert(status == 0 and min, out)
    assert(out:find "clients=1000 .* errors=0 unanswered=0 ", out)
    assert(tonumber(min) >= tonumber(mean) / 4, out)
    px:assert_settled("app", 20)
  end)

  it("holds 5,000 idle clients and answers any of them", function()
    local job = px:job(rig.client "many" .. " idle 5000 100 @", "app")
    job:says("answered=100 dead=0", 120)
    assert.is_truthy(job:out():find "held=5000")
    assert.equal(5000, px:metrics()["poolrt_clients{state=\"connected\"}"])
    job:kill()
    px:assert_settled("app", 20)
  end)

  it("serves two users on one full pool without reconnecting for each", function()
    local users, done = { "acme", "globex" }, 0
    for i, user in ipairs(users) do
      users[i] = px:job(("pgbench -n -S -c 32 -j 1 -T %d @"):format(SECONDS), "two", user)
    end
    for _, job in ipairs(users) do
      local out, status = job:wait(SECONDS + 60)
      local n = tonumber(out:match "actually processed: (%d+)")
      assert(status == 0 and n and n > 500 and out:find "failed transactions: 0 ", out)
      done = done + n
    end
    -- at most one is replaced each switch_bias: a slow build does less in that time
    local opened = px:pool_metric("connections_opened_total", "two")
    local most = done / (rig.is_sanitized and 20 or 100)
    assert(opened <= most, ("%d connections for %d transactions"):format(opened, done))
    px:assert_settled("two", 20)
  end)
end)
