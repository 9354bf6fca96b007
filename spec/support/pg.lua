-- pg.lua - one throw-away PostgreSQL for a whole run of the specs.
--
--   local pg = PG.start()     the same one each time; pg.host, pg.port (TCP), pg.socket_dir
--   PG.psql("select 1", { user = "acme", db = "app" })
--
-- Superuser "postgres" without password; users acme, globex and app with password "secret" by
-- SCRAM; database app, in which all three may create tables. No fsync. A copy of a cluster that is
-- made once and kept in build/. It ends with the run; what a killed run left is cleared
-- by the next.
local sys = require "support.os"

local M = {}

local TEMPLATE = "build/pgtemplate-5" -- another number when the recipe below changes
local USERS = { "acme", "globex", "app" }

local server

-- PostgreSQL refuses to be root
local function as_owner()
  if not sys.is_root() then
    return ""
  end
  local user = sys.sh "id -u postgres" and select(2, sys.sh "id -u postgres") == 0 and "postgres"
    or "nobody"
  return ("setpriv --reuid=%s --regid=%s --clear-groups"):format(sys.must("id -u " .. user),
    sys.must("id -g " .. user))
end

local function give_to_owner(dir)
  local id = as_owner():match "reuid=(%d+)"
  if id then
    sys.must(("chown -R %s %s"):format(id, dir))
  end
end

local function bin()
  return sys.must [[ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1 | grep . ||
    dirname "$(command -v postgres)"]]
end

local HBA = [[
local all postgres trust
host all postgres 127.0.0.1/32 trust
local all all scram-sha-256
host all all 127.0.0.1/32 scram-sha-256
]]

-- ---- a running server ----

local OPTIONS = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off"
  .. " -c logging_collector=off"

local function command(pg)
  return ("exec env LC_ALL=C.UTF-8 %s setpriv --pdeathsig INT %s/postgres -D %s -k %s -p %d "
    .. "-c listen_addresses=127.0.0.1 %s %s >>%s/log 2>&1 </dev/null"):format(as_owner(), bin(),
    pg.data, pg.dir, pg.port, OPTIONS, pg.options, pg.dir)
end

local function answers(pg)
  local _, status = sys.sh(("pg_isready -q -h %s -p %d -U postgres"):format(pg.dir, pg.port))
  return status == 0
end

--- Start a server that was made by M.new() and is not running; returns when it answers.
function M.run(pg)
  pg.pid = sys.spawn(command(pg))
  local up = sys.wait_for(function()
    return answers(pg) or sys.reap(pg.pid)
  end, 60)
  if up ~= true then
    error("PostgreSQL did not start:\n" .. (sys.read(pg.dir .. "/log") or ""))
  end
end

--- End it by `signal` (INT: fast; QUIT: at once, as after a crash).
function M.halt(pg, signal)
  if not pg.pid then
    return
  end
  sys.kill(pg.pid, signal or "INT")
  local gone = sys.wait_for(function()
    return sys.reap(pg.pid)
  end, 20)
  if not gone then
    sys.kill(pg.pid, "QUIT")
    sys.wait_for(function()
      return sys.reap(pg.pid)
    end, 10)
  end
  pg.pid = nil
end

local function query(pg, sql, o)
  o = o or {}
  local conninfo = ("host=%s port=%d dbname=%s user=%s password=secret"):format(
    o.host or pg.dir, pg.port, o.db or "postgres", o.user or "postgres")
  local out, status = sys.sh(("timeout 60 psql -XqAt -v ON_ERROR_STOP=1 %s -c %s </dev/null")
    :format(sys.quote(conninfo), sys.quote(sql)))
  return (out:gsub("\n$", "")), status
end

-- ---- the template ----

local function make_template(pg)
  sys.must(("cd / && LC_ALL=C.UTF-8 %s %s/initdb -D %s -U postgres -A trust -E UTF8 "
    .. "--locale=C.UTF-8 --no-sync"):format(as_owner(), bin(), pg.data))
  sys.write(pg.data .. "/pg_hba.conf", HBA)
  M.run(pg)
  for _, user in ipairs(USERS) do
    assert(select(2, query(pg, ("CREATE ROLE %s LOGIN PASSWORD 'secret'"):format(user))) == 0)
  end
  assert(select(2, query(pg, "CREATE DATABASE app")) == 0)
  for _, user in ipairs(USERS) do
    assert(select(2, query(pg, ("GRANT ALL ON SCHEMA public TO %s; GRANT ALL ON DATABASE app TO %s")
      :format(user, user), { db = "app" })) == 0)
  end
  M.halt(pg)
  -- under a name of our own, then renamed: another may do the same at this moment
  local mine = TEMPLATE .. "." .. sys.own_pid()
  sys.must(("mkdir -p build && rm -rf %s && cp -a %s %s"):format(mine, pg.data, mine))
  sys.must(("mv -T %s %s 2>/dev/null || rm -rf %s"):format(mine, TEMPLATE, mine))
end

--- A server in the directory `dir`, which exists, started. options: for its command line.
function M.new(dir, options)
  local pg = { dir = dir, data = dir .. "/data", socket_dir = dir, host = "127.0.0.1",
    port = sys.free_port(), options = options }
  sys.must(("mkdir -m 700 %s"):format(pg.data))
  give_to_owner(dir)
  if sys.read(TEMPLATE .. "/PG_VERSION") then
    sys.must(("cp -a %s/. %s"):format(TEMPLATE, pg.data))
    give_to_owner(pg.data)
  else
    make_template(pg)
  end
  M.run(pg)
  return pg
end

-- ---- what a killed run left ----

local function clear_leftovers()
  for dir in sys.sh("ls -d /tmp/poolrt-pg.* 2>/dev/null"):gmatch "[^\n]+" do
    local owner = tonumber(dir:match "%.(%d+)$")
    local of_lua = owner and (sys.read(("/proc/%d/comm"):format(owner)) or ""):find "^lua"
    if owner and not of_lua then
      local pid = tonumber((sys.read(dir .. "/data/postmaster.pid") or ""):match "^%d+")
      local is_ours = pid and (sys.read(("/proc/%d/cmdline"):format(pid)) or ""):find(dir, 1, true)
      if is_ours then
        sys.kill(pid, "QUIT")
        sys.wait_for(function()
          return not sys.exists(pid)
        end, 10)
      end
      sys.sh("rm -rf " .. dir)
    end
  end
end

-- ---- the door ----

function M.start()
  if server then
    return server
  end
  clear_leftovers()
  local dir = "/tmp/poolrt-pg." .. sys.own_pid()
  sys.must(("rm -rf %s && mkdir -m 755 %s"):format(dir, dir))
  sys.at_exit(function()
    if server then
      M.halt(server)
    end
    sys.sh("rm -rf " .. dir)
  end)
  server = M.new(dir, "-c max_connections=300 -c shared_buffers=64MB "
    .. "-c max_prepared_transactions=10")
  return server
end

--- o: user (postgres), db (postgres), host. Output, exit status.
function M.psql(sql, o)
  return query(M.start(), sql, o)
end

--- Server processes for clients whose row in pg_stat_activity fits `where`.
function M.backends(where)
  return tonumber((M.psql("SELECT count(*) FROM pg_stat_activity WHERE backend_type = "
    .. "'client backend' AND pid <> pg_backend_pid() AND " .. (where or "true"))))
end

--- Stop it by `signal` (INT: fast; QUIT: at once) and, unless told otherwise, start it again.
function M.stop(signal)
  M.halt(M.start(), signal)
end

function M.restart(signal)
  local pg = M.start()
  M.halt(pg, signal)
  M.run(pg)
end

return M
