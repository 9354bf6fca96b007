-- Every client asks for its own token while clients leave in any state and servers are killed: no
-- foreign row, no truncated answer taken for whole, nothing unfinished committed.
-- 60 s with PRT_LONG=1.
local setup = require "proxy.setup"
local sys = require "support.os"
local P = require "support.poolrt"
local PG = require "support.pg"

describe("chaos", function()
  for pool, mode in pairs { app = "transaction", session = "session", statement = "statement" } do
    it("mixes nobody's rows up in " .. mode .. " mode", function()
      local rt = setup.start { size = 8, pool = [[policies = { "route/tenant" },
        tenant = { from = "user" }, partitions = { acme = { max_connections = 6 },
        globex = { max_connections = 6 } },]] }
      local seconds = P.is_long and 60 or 10
      local command = "timeout %d %s/spec/client/chaos %d %d app acme,globex %d %s 24 %d %s"
      local out, status = sys.sh(command:format(seconds + 120, P.out, rt.port,
        PG.start().port, seconds, mode, os.time(), pool))
      assert.equal(0, status, out)
      for _, what in ipairs { "foreign", "truncated", "committed", "odd", "hangs", "busy" } do
        assert.equal("0", out:match("%f[%a]" .. what .. "=(%d+)"), out)
      end
      -- it did happen
      for _, what in ipairs { "answers", "rows", "drops", "cut", "refused", "kills", "cancels" } do
        assert.is_true(tonumber(out:match("%f[%a]" .. what .. "=(%d+)")) > 0, out)
      end
      setup.assert_settled(rt, "app", "app")
      assert.equal(0, rt.stop())
    end)
  end
end)
