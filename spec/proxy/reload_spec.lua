-- A router is replaced again and again under load, sometimes by one that is broken, loops when it
-- is loaded or loops when it is called: no transaction fails, and each bad version is named.
-- 1,000 times with PRT_LONG=1.
local setup = require "proxy.setup"
local sys = require "support.os"
local P = require "support.poolrt"
local cjson = require "cjson"

local PACE = 0.035 -- between two versions; a look at the folder takes 0.03 s

describe("replacing route/tenant under load #guard #alone", function()
  local rt, file, good, load_job

  -- a good version of its own
  local function version(i)
    return (good:gsub('version = "[^"]*"', ('version = "2.0.%d"'):format(i), 1))
  end

  local function broken(i)
    return ("\n"):rep(i) .. "local broken" .. i .. " = = 1\n"
  end

  local function loops_at_load(i)
    return "-- " .. i .. "\nwhile true do end\n"
  end

  local function loops_when_called(i)
    return ([[return { name = "tenant", version = "3.0.%d", api = 1,
      on_fail = { route = "default" }, cache = { route = "transaction" }, route = function(req)
        while req.application == "pgbench" do end
      end }]]):format(i)
  end

  lazy_setup(function()
    local dir = sys.temp_dir()
    sys.must(("mkdir -p %s/policies/route"):format(dir))
    file = dir .. "/policies/route/tenant.lua"
    good = sys.read "policies/route/tenant.lua"
    sys.write(file, good)
    rt = setup.start { size = 8, dir = dir, only = "app", top = 'policy_path = { "policies" },',
      pool = [[policies = { "route/tenant" }, tenant = { from = "user" },
        partitions = { acme = { max_connections = 6 } },]] }
    sys.write(dir .. "/load.sql", "select 1;\n")
    load_job = { out = dir .. "/pgbench.out" }
    load_job.pid = sys.spawn(("exec pgbench -n -h 127.0.0.1 -p %d -U acme -c 8 -j 1 -T 1000 -P 1 "
      .. "-f %s app >%s 2>&1 </dev/null"):format(rt.port, dir .. "/load.sql", load_job.out))
  end)

  lazy_teardown(function()
    sys.kill(load_job.pid, "KILL")
    sys.reap(load_job.pid)
    rt.stop()
  end)

  -- each broken version is waited for: the next one would hide it
  local function is_named(i, from)
    rt.wait_log(("event=policy_rejected[^\n]*file=[^\n]*route/tenant%%.lua[^\n]*line=%d "):format(
      i + 1), 20, from)
  end

  local function load_goes_on()
    local status = sys.reap(load_job.pid)
    assert(status == nil, ("pgbench ended with %s:\n%s"):format(tostring(status),
      sys.read(load_job.out)))
  end

  it("fails no transaction and ends on the last good version", function()
    local n = P.is_long and 1000 or 200
    local began = sys.now()
    local next_at = began
    local named = 0
    for i = 1, n do
      local from = #rt.log()
      if i % 10 == 5 then
        sys.replace(file, broken(i))
        is_named(i, from)
        named = named + 1
      elseif i % 50 == 11 then
        sys.replace(file, loops_at_load(i))
        rt.wait_log("event=policy_rejected[^\n]*instructions", 20, from)
      elseif i % 50 == 37 then
        sys.replace(file, loops_when_called(i))
      else
        sys.replace(file, version(i))
      end
      next_at = math.max(next_at + PACE, sys.now())
      sys.wait_for(function() return sys.now() >= next_at end, 1)
      load_goes_on()
    end
    local rate = n / (sys.now() - began)
    assert.equal(n / 10, named)
    assert.is_true(P.is_sanitized or rate >= 20, rate .. " versions a second")

    sys.replace(file, version(n + 1))
    local last
    assert(sys.wait_for(function()
      local body = sys.sh(("curl -s -m 5 %s/api/v1/policies"):format(rt.admin_url))
      local ok, answer = pcall(cjson.decode, body)
      last = body
      if not ok then
        return false
      end
      for _, p in ipairs(answer.data or {}) do
        if p.policy == "route/tenant" and p.version == ("2.0.%d"):format(n + 1) then
          return p.state == "active" or p.state
        end
      end
    end, 20), last)
    load_goes_on()
    sys.kill(load_job.pid, "INT")
    assert(sys.wait_for(function() return sys.reap(load_job.pid) end, 10))
    local out = sys.read(load_job.out)
    assert.is_nil(out:find "rror", out)
    local seconds = 0
    for tps, failed in out:gmatch "progress:[^\n]- ([%d.]+) tps[^\n]- (%d+) failed" do
      seconds = seconds + 1
      assert.is_true(tonumber(tps) > 0, out)
      assert.equal("0", failed)
    end
    assert.is_true(seconds > 2, out)
    assert.is_truthy(rt.log():find "event=policy_rejected[^\n]*instructions", "none looped at load")
    assert.is_truthy(rt.log():find "event=policy_failed[^\n]*ran too long",
      "none looped when called")
    assert.is_true(rt.alive())
    setup.assert_settled(rt, "app", "acme", 6)
  end)
end)
