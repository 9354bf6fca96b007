-- reload_spec.lua - configuration and policies change while the runtime serves; what is broken is
-- refused and named, and the old goes on (TRUST R12). #pg
local P = require "support.poolrt"
local sys = require "support.os"

local function config(users, extra)
  return ([[
return {
  listen = { "127.0.0.1:@PORT@" },
  auth = { type = "scram-sha-256", users = { %s } },
  policy_path = { "policies" },
  pools = {
    app = {
      target = "host=@PGHOST@ port=@PGPORT@ dbname=app", max_size = 5, mode = "transaction",
      policies = { "admit/gate" },
    },
  },
  %s
}
]]):format(users, extra or "")
end

local function gate(word, version)
  return ([[
local M = { name = "gate", version = %q, api = 1 }
function M.admit(req, part)
  return false, %q
end
return M
]]):format(version or "1.0.0", word)
end

local OPEN = [[
return { name = "gate", version = "0.1.0", api = 1, admit = function(req, part) return true end }
]]

describe("reload #pg", function()
  local rt, policy

  before_each(function()
    local dir = sys.temp_dir()
    sys.must(("mkdir -p %s/policies/admit"):format(dir))
    policy = dir .. "/policies/admit/gate.lua"
    sys.write(policy, OPEN)
    rt = P.start { config = config 'app = "secret"', dir = dir }
  end)

  after_each(function()
    rt.stop()
    assert.equal(0, rt.status)
  end)

  -- the policy refuses each query with a word: which version is in use?
  local function word()
    local out, status = rt.psql "select 1"
    return status ~= 0 and out or "open"
  end

  local function becomes(what)
    local last
    assert(sys.wait_for(function()
      last = word()
      return last:find(what, 1, true)
    end, 5), ("still %q, not %q; log:\n%s"):format(tostring(last), what, rt.log()))
  end

  it("takes a policy that was replaced, and one that was written in place", function()
    assert.equal("open", word())
    sys.replace(policy, gate "closed for lunch")
    becomes "closed for lunch"
    sys.write(policy, gate "closed for tea")
    becomes "closed for tea"
    sys.replace(policy, OPEN)
    becomes "open"
    assert.truthy(rt.log():find("event=policies_reloaded", 1, true))
  end)

  it("keeps the old policy when the new one is broken, and names file and line", function()
    sys.replace(policy, gate "first")
    becomes "first"
    local from = #rt.log()
    sys.replace(policy, "local M = {\n  api = 1,\n  name = }\nreturn M\n")
    rt.wait_log("level=%a+ event=[^\n]*gate%.lua:3:", 5, from)
    assert.truthy(word():find("first", 1, true))
    sys.replace(policy, gate "second")
    becomes "second"
  end)

  it("follows a directory that was replaced whole, as a link swap does", function()
    local dir = rt.dir
    sys.must(("mkdir -p %s/new/admit"):format(dir))
    sys.write(dir .. "/new/admit/gate.lua", gate "from the new directory")
    sys.must(("cd %s && mv policies old && mv new policies"):format(dir))
    becomes "from the new directory"
    -- the new directory is watched like the old one was: this leaves no trace but in the file
    sys.write(policy, gate "changed there")
    becomes "changed there"
  end)

  it("takes a configuration that was saved, without a signal", function()
    local out, status = rt.psql("select 1", { user = "acme" })
    assert.is_true(status ~= 0, out)
    rt.write_config(config 'app = "secret", acme = "secret"')
    rt.wait_log("event=reloaded [^\n]*needs_restart=nothing", 5)
    assert.equal("1", rt.psql("select 1", { user = "acme" }))
  end)

  it("takes it at SIGHUP even when the text is the same", function()
    local from = #rt.log()
    rt.kill "HUP"
    rt.wait_log("event=reloaded ", 5, from)
  end)

  it("keeps the old configuration when the new one is broken, and says what is wrong", function()
    rt.write_config((config 'app = "secret"'):gsub("max_size", "max_sise"))
    local line = rt.wait_log("level=error event=reload_failed[^\n]*", 5)
    assert.truthy(line:find("max_sise", 1, true), line)
    assert.truthy(line:find("config.lua:7", 1, true), line)
    assert.equal("1", rt.psql "select 1")
    -- refused once, not at every look that follows
    sys.replace(policy, gate "another word")
    becomes "another word"
    sys.replace(policy, OPEN)
    becomes "open"
    assert.equal(1, select(2, rt.log():gsub("event=reload_failed", "")))
    local from = #rt.log()
    rt.kill "HUP"
    rt.wait_log("event=reload_failed", 5, from)
    rt.write_config(config 'app = "secret", globex = "secret"')
    rt.wait_log("event=reloaded ", 5, from)
    assert.equal("1", rt.psql("select 1", { user = "globex" }))
  end)

  it("keeps all of the old when only a policy of the new configuration is broken", function()
    sys.write(rt.dir .. "/policies/admit/other.lua", "return { api = 1, name = ")
    rt.write_config((config 'app = "secret", acme = "secret"'):gsub("admit/gate", "admit/other"))
    local line = rt.wait_log("level=error event=reload_failed[^\n]*", 5)
    assert.truthy(line:find("other.lua:1:", 1, true), line)
    local _, status = rt.psql("select 1", { user = "acme" })
    assert.is_true(status ~= 0)
    assert.equal("1", rt.psql "select 1")
  end)

  it("says what needs a restart", function()
    local port = sys.free_port()
    rt.write_config((config('app = "secret"', 'workers = 3, admin = { token = "t", '
      .. 'listen = "127.0.0.1:' .. port .. '" }, connector_threads = 3,')))
    local list = rt.wait_log("level=warn event=reloaded [^\n]*needs_restart=(%S+)", 5)
    assert.equal("workers,admin.listen,connector_threads", list)
    assert.equal("1", rt.psql "select 1")
  end)

  it("answers signals and clients while a policy takes its time to load", function()
    sys.replace(policy, gate "before")
    becomes "before"
    local from = #rt.log()
    sys.replace(policy, "local n = 0\nwhile true do n = n + 1 end\n")
    rt.wait_log("event=[^\n]*gate%.lua", 10, from)
    assert.truthy(word():find("before", 1, true))
  end)

  it("survives a storm of versions, signals and clients", function()
    for i = 1, 60 do
      sys.replace(policy, i % 5 == 0 and "return {" or i % 2 == 0 and OPEN or gate("word " .. i))
      if i % 10 == 0 then
        rt.kill "HUP"
        rt.psql "select 1"
      end
    end
    sys.replace(policy, gate "the last word")
    becomes "the last word"
    sys.replace(policy, OPEN)
    becomes "open"
    assert.is_true(rt.alive())
  end)
end)
