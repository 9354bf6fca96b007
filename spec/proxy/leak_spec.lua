-- Very many connections, opened and dropped at random points, leave no memory, descriptor or slot
-- behind: 100,000, under a sanitizer 30,000 unless PRT_LONG=1.
local setup = require "proxy.setup"
local sys = require "support.os"
local wire = require "proxy.wire"
local P = require "support.poolrt"

describe("churn", function()
  local function churn(rt, count, seed, conninfo)
    local command = "timeout 300 %s/spec/client/churn %d app acme %d %d %s"
    local out, status = sys.sh(command:format(P.out, rt.port, count, seed,
      conninfo and sys.quote(conninfo) or ""))
    assert.equal(0, status, out)
    return tonumber(out:match "logins=(%d+)")
  end

  -- when all that was dropped has been noticed
  local function settle(rt, fds)
    setup.assert_settled(rt, "app", "acme")
    local now
    assert(wire.eventually(function()
      now = rt.fds()
      return not fds or now <= fds
    end, 20), ("%d descriptors, %d before"):format(now, fds or 0))
    return now
  end

  it("leaves memory, descriptors and slots as they were", function()
    local before, after = 10000, 90000
    if P.is_sanitized and not P.is_long then
      before, after = 5000, 25000
    end
    local rt = setup.start { size = 6 }
    assert.is_true(churn(rt, before, 1) > before / 2)
    local fds = settle(rt)
    local rss = rt.rss()
    churn(rt, after, 2)
    settle(rt, fds)
    local grown = rt.rss() - rss
    -- a sanitizer keeps what was freed for a while
    assert.is_true(P.is_sanitized or grown <= 1048576, ("%d bytes more"):format(grown))
    assert.equal(0, rt.stop())
  end)

  it("leaves nothing behind in logins by SCRAM over TLS", function()
    local cert, key = sys.certificate()
    local rt = setup.start { auth = "scram-sha-256", size = 6,
      top = ('tls = { client = { mode = "require", cert = %q, key = %q } },'):format(cert, key) }
    local info = ("host=127.0.0.1 port=%d user=acme dbname=app password=secret sslmode=require")
      :format(rt.port)
    assert.is_true(churn(rt, 400, 3, info) > 0)
    local fds, rss = rt.fds(), rt.rss()
    assert.is_true(churn(rt, 1600, 4, info) > 0)
    assert(wire.eventually(function()
      return rt.fds() <= fds + 6
    end, 20), rt.fds() .. " descriptors, " .. fds .. " before")
    assert.is_true(P.is_sanitized or rt.rss() - rss <= 4 * 1048576, rt.rss() - rss .. " bytes more")
    local out, status = rt.psql("select 'still here'",
      { user = "acme", conninfo = "sslmode=require" })
    assert.equal("still here", out)
    assert.equal(0, status)
    assert.equal(0, rt.stop())
  end)
end)
