-- setup.lua - what the specs of this room start: poolrt with pools of each mode in front of the
-- throw-away PostgreSQL, and the checks that must hold after anything a client or server may do.
local assert = require "luassert"
local wire = require "proxy.wire"
local P = require "support.poolrt"
local PG = require "support.pg"

local M = {}

local POOL = [[%s = { target = "host=127.0.0.1 port=%s dbname=app", mode = "%s", max_size = %d,
  min_size = 0, initial_size = 0, server_login_retry = "50ms", acquire_timeout = "20s", %s }]]

--- o: auth ("trust"), top (further lines of the configuration), size (6), pool (further settings of
--- each pool), port (of the server, the throw-away PostgreSQL's), app (mode of the pool of that
--- name, "transaction"), only (the name of the only pool), admin (further settings of it), dir.
--- Pools besides app: session, statement, postgres.
function M.start(o)
  o = o or {}
  local port = o.port or PG.start().port
  local pools = {}
  local modes = { app = o.app or "transaction", session = "session", statement = "statement",
    postgres = "transaction" }
  for name, mode in pairs(modes) do
    if not o.only or o.only == name then
      pools[#pools + 1] = POOL:format(name, port, mode, o.size or 6, o.pool or "")
    end
  end
  local rt = P.start { dir = o.dir, config = ([[return {
    workers = %d, listen = { "127.0.0.1:@PORT@" }, log = { connections = false },
    admin = { listen = "127.0.0.1:@ADMIN_PORT@", %s },
    auth = { type = "%s",
      users = { acme = "secret", globex = "secret", app = "secret", postgres = "x" },
      login_timeout = "%s" },
    max_clients = 20000, %s
    pools = { %s } } ]]):format(o.workers or 2, o.admin or "", o.auth or "trust",
    o.login_timeout or "20s", o.top or "", table.concat(pools, ",\n")) }
  rt.size = o.size or 6
  return rt
end

local direct

--- Runs SQL in the database itself, as its owner; the first value, or "".
function M.sql(text)
  direct = direct or assert(wire.login(PG.start().port, "postgres", "app"))
  local words, values = direct:ask(text, 60)
  assert(not words:find "E:" and words:find "Z:I$", text .. ": " .. words)
  return values[1] or ""
end

--- A client that must not notice anything of what others do.
function M.pinger(rt, database)
  local c = assert(wire.login(rt.port, "globex", database or "app"))
  return {
    ping = function()
      local words, values = c:ask "select 'ping'"
      assert.equal("D C:SELECT 1 Z:I", (words:gsub("^T ", "")))
      assert.same({ "ping" }, values)
    end,
    drop = function() c:drop() end,
  }
end

--- Nothing is left: no backend works or is in a transaction, and each slot of the pool, or each of
--- the `slots` that the user may have, serves on a backend of its own.
function M.assert_settled(rt, database, user, slots)
  assert.is_true(rt.alive(), "poolrt has died:\n" .. rt.log():sub(-3000))
  local seen = ""
  assert(wire.eventually(function()
    seen = M.sql([[select count(*) || coalesce(': ' || string_agg(query, ' | '), '')
      from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()
      and state <> 'idle']])
    return seen == "0"
  end, 20), "still at work: " .. seen)
  local open, pids, n = {}, {}, 0
  slots = slots or rt.size
  for i = 1, slots do
    open[i] = assert(wire.login(rt.port, user or "app", database or "app"))
    open[i]:ask "begin"
    local words, values = open[i]:ask "select pg_backend_pid()"
    assert(values[1], words)
    n = n + (pids[values[1]] and 0 or 1)
    pids[values[1]] = true
  end
  for _, c in ipairs(open) do
    c:drop()
  end
  assert.equal(slots, n)
end

--- Lines of spec/vectors/NAME.jsonl.
function M.vectors(name)
  local cjson = require "cjson"
  local out = {}
  for line in io.lines("spec/vectors/" .. name .. ".jsonl") do
    out[#out + 1] = cjson.decode(line)
  end
  return out
end

return M
