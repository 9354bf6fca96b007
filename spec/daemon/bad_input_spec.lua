-- bad_input_spec.lua - what a person can get wrong on the command line and in files, and what
-- poolrt says about it. Every text here is what that person reads.
local P = require "support.poolrt"
local sys = require "support.os"

-- A configuration that is right but for `change`, a list of { text, replacement }.
local GOOD = [[
return {
  listen = { "127.0.0.1:@PORT@" },
  auth = { type = "trust", users = { app = "secret" } },
  policy_path = { "policies" },
  pools = {
    app = {
      target = "host=127.0.0.1 port=1 dbname=app",
      max_size = 10,
      policies = { "route/mine" },
    },
  },
}
]]

-- the same without policies, so without their folder
local PLAIN = GOOD:gsub(' +policy_path[^\n]+\n', ""):gsub(" +policies =[^\n]+\n", "")

local POLICY = [[
local M = { name = "mine", version = "1.0.0", api = 1, on_fail = { route = "default" } }
function M.route(req)
  return nil
end
return M
]]

local function replace_plain(text, from, to)
  local a, b = text:find(from, 1, true)
  assert(a, from .. " is not in the configuration")
  return text:sub(1, a - 1) .. to .. text:sub(b + 1)
end

local function files(change, policy)
  local text = change and replace_plain(GOOD, change[1], change[2]) or GOOD
  local path, values = P.config_file(text)
  sys.must(("mkdir -p %s/policies/route"):format(values.DIR))
  sys.write(values.DIR .. "/policies/route/mine.lua", policy or POLICY)
  return path, values
end

-- Both `poolrt check` and the start refuse it, with the same words.
local function refused(path, ...)
  for _, args in ipairs { { "check", path }, { path } } do
    local out, status = P.run(args)
    assert.equal(1, status, out)
    for _, words in ipairs { ... } do
      assert.truthy(out:find(words, 1, true), ("%q is not in: %s"):format(words, out))
    end
    assert.falsy(out:find "event=started")
    -- one sentence for a person, at the end
    assert.truthy(out:match "poolrt: [^\n]+\n$", out)
  end
end

describe("bad input", function()
  describe("on the command line", function()
    it("gets the usage and status 2", function()
      local bad = { {}, { "check" }, { "check", "a", "b" }, { "a", "b" }, { "--nonsense" } }
      for _, args in ipairs(bad) do
        local out, status = P.run(args)
        assert.equal(2, status, out)
        assert.truthy(out:find("usage: poolrt CONFIG", 1, true), out)
      end
      assert.truthy((P.run { "--nonsense" }):find("unknown option --nonsense", 1, true))
    end)

    it("is answered when it asks for help or the version", function()
      local help, status = P.run { "--help" }
      assert.equal(0, status)
      assert.truthy(help:find("poolrt check FILE", 1, true))
      local version
      version, status = P.run { "--version" }
      assert.equal(0, status)
      assert.truthy(version:match "^poolrt %d+%.%d+%.%d+\n$")
    end)
  end)

  it("is not seen where all is well", function()
    local path, values = files()
    local out, status = P.run { "check", path }
    assert.equal(path .. ": ok\n", out)
    assert.equal(0, status)
    local policy = values.DIR .. "/policies/route/mine.lua"
    out, status = P.run { "check", policy }
    assert.equal(policy .. ": ok\n", out)
    assert.equal(0, status)
  end)

  describe("in the configuration is named:", function()
    it("a missing file", function()
      refused("/nonexistent/config.lua", "/nonexistent/config.lua", "No such file")
    end)

    it("a syntax error, with file and line", function()
      local path = files { "max_size = 10,", "max_size = = 10," }
      refused(path, path .. ":8:")
    end)

    it("a wrong key, with the nearest one", function()
      local path = files { "max_size", "max_sise" }
      refused(path, path .. ":8", "max_sise", "max_size")
    end)

    it("a wrong type, with the place", function()
      refused(files { "max_size = 10", 'max_size = "many"' }, "pools.app.max_size")
    end)

    it("a value out of range", function()
      refused(files { "max_size = 10", "max_size = -1" }, "pools.app.max_size")
    end)

    it("a file that it asks for and is not there", function()
      refused(files { '"secret"', 'file "no-such-secret"' }, "no-such-secret", "No such file")
    end)

    it("a policy that is not found, with where it was looked for", function()
      refused(files { "route/mine", "route/mime" }, "route/mime", "policies")
    end)
  end)

  describe("in a policy is named:", function()
    it("a syntax error, with file and line", function()
      local path, values = files(nil, "local M = {\n  api = 1\n  name = }\nreturn M\n")
      local policy = values.DIR .. "/policies/route/mine.lua"
      refused(path, "route/mine.lua:3:")
      refused(policy, "route/mine.lua:3:")
    end)

    it("a loop that does not end, at once", function()
      local begin = sys.now()
      local path = files(nil, "while true do end\nreturn { api = 1 }\n")
      local out, status = P.run { "check", path }
      assert.equal(1, status, out)
      assert.truthy(out:find("mine.lua", 1, true), out)
      assert.is_true(sys.now() - begin < 10)
    end)
  end)

  describe("about the server is told to the client and in the log:", function()
    local function ask(target, more)
      local rt = P.start { config = ([[
        return {
          listen = { "127.0.0.1:@PORT@" },
          auth = { type = "trust", users = { acme = "wrong", nosuch = "s" } },
          pools = { app = { target = "%s", acquire_timeout = "3s", max_size = 2 %s } },
        }
      ]]):format(target, more or "") }
      local out, status = rt.psql("select 1", { user = "acme" })
      assert.is_true(status ~= 0, out)
      assert.equal(0, rt.stop())
      return out, rt.log()
    end

    it("an unreachable target", function()
      local port = sys.free_port()
      local out, log = ask(("host=127.0.0.1 port=%d dbname=app"):format(port))
      assert.truthy(out:find(("127.0.0.1:%d: Connection refused"):format(port), 1, true), out)
      assert.truthy(log:find("event=connect_failed pool=app", 1, true), log)
    end)

    it("a wrong server password, which is not shown #pg", function()
      local out, log = ask("host=@PGHOST@ port=@PGPORT@ dbname=app",
        ', user = "acme", password = "not-the-password"')
      assert.truthy(out:find('password authentication failed for user "acme"', 1, true), out)
      assert.truthy(log:find("event=connect_failed pool=app", 1, true), log)
      assert.falsy((out .. log):find("not-the-password", 1, true))
    end)
  end)

  it("is an occupied port, named before anything else is started", function()
    local first = P.start { config = PLAIN }
    local path = P.config_file([[
      local pg = postgres.embedded { dir = "data", database = "app", users = {} }
      return {
        listen = { "127.0.0.1:@PORT@" },
        auth = { type = "trust", users = { app = "secret" } },
        pools = { app = { target = pg } },
      }
    ]], { PORT = first.port, DIR = sys.temp_dir() })
    local out, status = P.run { path }
    assert.equal(1, status)
    assert.truthy(out:find("cannot listen on 127.0.0.1:" .. first.port, 1, true), out)
    assert.truthy(out:find("another process listens there", 1, true), out)
    assert.falsy(out:find "postgres_started")
    assert.equal(0, first.stop())
  end)

  it("is an occupied admin port as well", function()
    local with_admin = PLAIN:gsub("auth =", [[admin = { token = "t",
    listen = "127.0.0.1:@ADMIN_PORT@" },
  auth =]])
    local first = P.start { config = with_admin }
    local path = P.config_file(with_admin, { ADMIN_PORT = first.admin_port })
    local out, status = P.run { path }
    assert.equal(1, status)
    assert.truthy(out:find("127.0.0.1:" .. first.admin_port, 1, true), out)
    assert.truthy(out:lower():find("in use", 1, true), out)
    first.stop()
  end)
end)
