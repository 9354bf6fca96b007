-- configure_spec.lua - a new configuration and the clients that are connected: who may stay stays,
-- who lost his user, his password or his database ends, but never in a transaction (TRUST S5). #pg
local P = require "support.poolrt"
local wire = require "proxy.wire"

local function config(users, pools)
  return ([[
return {
  listen = { "127.0.0.1:@PORT@" }, admin = { listen = "127.0.0.1:@ADMIN_PORT@" },
  auth = { type = "scram-sha-256", users = { %s } },
  pools = { %s },
}
]]):format(users, pools)
end

local function pool(name, more)
  return ("%s = { target = 'host=@PGHOST@ port=@PGPORT@ dbname=app', mode = 'transaction', %s }")
    :format(name, more or "max_size = 4")
end

local BOTH = 'app = "secret", acme = "secret"'

describe("a new configuration #pg", function()
  local rt

  before_each(function()
    wire.track()
    rt = P.start { config = config(BOTH, pool "app" .. ", " .. pool "other") }
  end)

  after_each(function()
    wire.drop_tracked()
    rt.stop()
    assert.equal(0, rt.status)
  end)

  -- psql with a standard input that stays open: a client with a password, spoken to line by line
  local function session(user, database)
    local out = os.tmpname()
    local line = "PGPASSWORD=secret psql -XAtq -h 127.0.0.1 -p %d -U %s %s >%s 2>&1"
    local pipe = assert(io.popen(line:format(rt.port, user, database, out), "w"))
    local s = {}

    function s.ask(sql, want)
      pipe:write(sql, "\n")
      pipe:flush()
      assert(wire.eventually(function() return s.text():find(want, 1, true) end, 10),
        sql .. ": " .. s.text())
    end

    function s.text()
      local f = assert(io.open(out))
      local text = f:read "*a"
      f:close()
      return text
    end

    function s.close()
      pipe:close()
      os.remove(out)
    end

    return s
  end

  local function reload(users, pools)
    local from = #rt.log()
    rt.write_config(config(users, pools))
    rt.wait_log("event=reloaded ", 5, from)
  end

  local function ends(user, reason, from)
    rt.wait_log(("event=disconnect [^\n]*user=%s [^\n]*reason=%s"):format(user, reason), 10, from)
  end

  it("ends the idle clients of a user who is gone, and no others", function()
    local gone, stays = session("acme", "app"), session("app", "app")
    gone.ask("select 'first';", "first")
    stays.ask("select 'first';", "first")
    local from = #rt.log()
    reload('app = "secret"', pool "app" .. ", " .. pool "other")
    ends("acme", "pool_closed", from)
    stays.ask("select 'second';", "second")
    assert.is_nil(rt.log():find("user=app [^\n]*reason=pool_closed", from))
    gone.close()
    stays.close()
  end)

  it("ends whose password has changed, at the end of his transaction", function()
    local c = session("acme", "app")
    c.ask("begin; select 'open';", "open")
    local from = #rt.log()
    reload('app = "secret", acme = "another"', pool "app" .. ", " .. pool "other")
    c.ask("select 'still here';", "still here")
    c.ask("commit; select 'gone';", "terminating connection")
    ends("acme", "pool_closed", from)
    c.close()
  end)

  it("ends the clients of a pool that is gone, and opens a new one", function()
    local c = session("app", "other")
    c.ask("select 'first';", "first")
    local from = #rt.log()
    reload(BOTH, pool "app" .. ", " .. pool "third")
    ends("app", "pool_closed", from)
    c.close()
    local d = session("app", "third")
    d.ask("select 'third';", "third")
    d.close()
    local e = session("app", "other")
    e.ask("select 1;", 'database "other" does not exist')
    e.close()
  end)

  it("takes a new limit at once", function()
    reload(BOTH, pool("app", "max_size = 1, acquire_timeout = '500ms'"))
    local a, b = session("app", "app"), session("app", "app")
    a.ask("begin; select 'held';", "held")
    b.ask("select 1;", "no server connection became free within acquire_timeout")
    a.ask("commit; select 'done';", "done")
    b.ask("select 'served';", "served")
    a.close()
    b.close()
  end)

  it("changes nothing when one pool of it cannot be", function()
    local from = #rt.log()
    rt.write_config(config(BOTH, pool "app" .. ", bad = { target = 'hosst=x', mode = 'session' }"))
    rt.wait_log("level=error event=reload_failed", 5, from)
    local c = session("app", "other") -- was to go, and stays
    c.ask("select 'still';", "still")
    c.close()
  end)
end)
