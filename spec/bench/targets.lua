-- targets.lua - what is measured and what stands behind it: PgBouncer and poolrt with the same
-- settings, in front of pgnull or of a temporary PostgreSQL.
local sys = require "sys"

local M = {}

M.CLIENT = { user = "acme", database = "bench" } -- what clients log in as
M.POOL_SIZE = 20
M.BIG_BYTES = 50 * 2 ^ 20
local ROW_BYTES = 111 -- of the large result on the wire: 100 bytes of text

-- nil when it is unset or empty
local function environment(name)
  local value = os.getenv(name)
  return value ~= "" and value or nil
end

local function find_postgres()
  local dir = environment "PGBIN"
  if not dir then
    dir = sys.output("ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1")
    if dir == "" then dir = sys.output("dirname \"$(command -v initdb)\"") end
  end
  if sys.output("test -x " .. sys.quote(dir .. "/postgres") .. " && echo yes") ~= "yes" then
    error("PostgreSQL is not installed (PGBIN= names the directory of initdb and postgres)", 0)
  end
  return dir
end

-- PostgreSQL and PgBouncer refuse to run as root
local function find_user()
  if not sys.is_root then return nil end
  for _, name in ipairs { "postgres", "nobody" } do
    local uid, gid = sys.output("getent passwd " .. name):match("^[^:]*:[^:]*:(%d+):(%d+)")
    if uid then return { uid = tonumber(uid), gid = tonumber(gid) } end
  end
  error("no unprivileged user to run PostgreSQL as", 0)
end

local function user_may(user, test, path)
  if not user then return true end
  local command = "setpriv --reuid %d --regid %d --clear-groups -- test %s %s && echo yes"
  return sys.output(command:format(user.uid, user.gid, test, sys.quote(path))) == "yes"
end

-- Below build/bench, unless the user may not go there or a socket's path would be too long.
local function make_run_dir(build, user)
  for dir in sys.output("ls -d " .. sys.quote(build) .. "/run-*"):gmatch("[^\n]+") do
    if not sys.read_file("/proc/" .. dir:match("%d+$") .. "/stat") then
      os.execute("rm -rf " .. sys.quote(dir))
    end
  end
  if #build < 70 and user_may(user, "-x", build) then
    local dir = build .. "/run-" .. sys.pid
    sys.make_dir(dir)
    return dir
  end
  return sys.temp_dir("/tmp/poolrt-bench-XXXXXX")
end

--- The places and programs of this run.
function M.setup(build, root)
  local x = { build = build, root = root, user = find_user(), pgbin = find_postgres() }
  x.pgbouncer = environment "PGBOUNCER" or "/usr/sbin/pgbouncer"
  x.poolrt = environment "POOLRT" or root .. "/build/poolrt"
  for _, program in ipairs { "pgbouncer", "poolrt" } do
    local path = sys.real_path(x[program])
    if not path then
      error(("%s is not there: build or install it, or name it with %s="):format(x[program],
        program:upper()), 0)
    end
    x[program] = path
  end
  if not user_may(x.user, "-x", x.pgbouncer) then
    error("the unprivileged user may not run " .. x.pgbouncer, 0)
  end
  x.poolrt_user = user_may(x.user, "-x", x.poolrt) and user_may(x.user, "-r", root .. "/policies")
    and x.user or nil
  x.dir = make_run_dir(build, x.user)
  return x
end

function M.cleanup(x)
  os.execute("rm -rf " .. sys.quote(x.dir))
end

--- The protocol that `where` is measured with in a row of `mode`. PgBouncer keeps prepared
--- statements apart since 1.21; an older one is measured with its extended protocol.
function M.mode_of(x, where, mode)
  if mode ~= "prepared" or where.name ~= "pgbouncer" then return mode end
  x.pgbouncer_version = x.pgbouncer_version
    or sys.output(sys.quote(x.pgbouncer) .. " --version"):match("PgBouncer (%d+%.%d+)")
  local major, minor = (x.pgbouncer_version or "0.0"):match("(%d+)%.(%d+)")
  local can = tonumber(major) > 1 or tonumber(minor) >= 21
  return can and mode or "extended"
end

local function make_dir(x, name)
  local dir = x.dir .. "/" .. name
  os.execute("rm -rf " .. sys.quote(dir))
  sys.make_dir(dir)
  return dir
end

-- everything below the run directory belongs to the unprivileged user, and to nobody else
local function hand_over(x)
  if x.user then
    os.execute(("chown -R %d:%d %s"):format(x.user.uid, x.user.gid, sys.quote(x.dir)))
  end
end

-- the value of an -h option that reaches `where` over `transport`
function M.host(where, transport)
  return transport == "unix" and where.dir or "127.0.0.1"
end

--- pgload's command line against `where`.
function M.pgload(x, where, transport, o)
  local client = where.client or M.CLIENT
  local argv = { x.build .. "/pgload", "-h", M.host(where, transport), "-p", tostring(where.port),
    "-U", client.user, "-D", client.database }
  for _, a in ipairs(o) do argv[#argv + 1] = tostring(a) end
  return argv
end

-- Waits until `where` answers a query over `transport`.
local function wait_ready(x, where, transport)
  local log = x.dir .. "/probe.log"
  local ready = sys.until_true(20, function()
    if not sys.is_alive(where.proc) then
      error(("%s ended at start (%s):\n%s"):format(where.name, where.proc.status,
        sys.tail(where.proc.log, 1500)), 0)
    end
    local p = sys.spawn(M.pgload(x, where, transport, { "-c", 1, "-t", 0.05, "-w", 0, "-q",
      "SELECT 1" }), { log = log })
    if not sys.join(p, 3) then sys.stop(p) end
    return p.ok
  end)
  if not ready then
    error(("%s does not answer: %s\n%s"):format(where.name, sys.tail(log, 300),
      sys.tail(where.proc.log, 1500)), 0)
  end
end

-- ---- backends ----
function M.start_pgnull(x)
  local b = { name = "pgnull", dir = make_dir(x, "pgnull"), pg_user = "bench" }
  hand_over(x)
  b.proc = sys.spawn({ x.build .. "/pgnull", "-u", b.dir, "-b", tostring(M.BIG_BYTES) },
    { pipe = true, log = x.dir .. "/pgnull.log" })
  local line = sys.read_line(b.proc, 5)
  b.port = tonumber((line or ""):match("^port=(%d+)$"))
    or error("pgnull: " .. sys.tail(b.proc.log, 300), 0)
  b.proc.name = "pgnull"
  b.client = { user = "bench", database = "bench" }
  return b
end

local SCHEMA = [[
CREATE DATABASE bench;
\c bench
CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, abalance int, filler char(84));
INSERT INTO pgbench_accounts SELECT i, 0, '' FROM generate_series(1, 100000) i;
CREATE TABLE big AS SELECT repeat('x', 100) AS t FROM generate_series(1, %d);
VACUUM ANALYZE;
]]

function M.start_postgres(x)
  local b = { name = "PostgreSQL", dir = make_dir(x, "pgsock"), pg_user = "bench" }
  local data, log = make_dir(x, "pgdata"), x.dir .. "/postgres.log"
  hand_over(x)
  sys.run({ x.pgbin .. "/initdb", "-D", data, "-U", "bench", "-A", "trust", "-E", "UTF8",
    "--locale=C", "--no-sync", "--no-instructions" }, { user = x.user, log = log }, 120)
  b.port = sys.free_port()
  local argv = { x.pgbin .. "/postgres", "-D", data }
  for _, setting in ipairs { "listen_addresses=127.0.0.1", "port=" .. b.port,
    "unix_socket_directories=" .. b.dir, "max_connections=400", "shared_buffers=256MB",
    "fsync=off", "autovacuum=off", "max_wal_size=4GB" } do
    argv[#argv + 1] = "-c"
    argv[#argv + 1] = setting
  end
  b.proc = sys.spawn(argv, { user = x.user, log = log, stop = sys.SIGINT })
  b.client = { user = "bench", database = "postgres" }
  wait_ready(x, b, "unix")
  local script = x.dir .. "/schema.sql"
  sys.write_file(script, SCHEMA:format(math.floor(M.BIG_BYTES / ROW_BYTES)))
  sys.run({ x.pgbin .. "/psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", b.dir, "-p",
    tostring(b.port), "-U", "bench", "-f", script, "postgres" },
    { log = x.dir .. "/schema.log" }, 120)
  b.client.database = "bench"
  return b
end

-- ---- poolers ----
local PGBOUNCER = [[
[databases]
bench = host=@host@ port=@backend_port@ dbname=bench user=bench
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = @port@
listen_backlog = 4096
unix_socket_dir = @dir@
auth_type = trust
auth_file = @dir@/users.txt
pool_mode = transaction
default_pool_size = @size@
min_pool_size = 0
max_client_conn = 10000
log_connections = 0
log_disconnections = 0
log_stats = 0
ignore_startup_parameters = options
@prepared@
]]

local POOLRT = [[
return {
  workers = 1,
  listen = { "127.0.0.1:@port@", "unix:@dir@" },
  auth = { type = "trust", users = { acme = "bench" } },
  log = { level = "warn", connections = false },
  max_clients = 10000,
  policy_path = { "@root@/policies" },
  pools = {
    bench = {
      target = "host=@host@ port=@backend_port@ dbname=bench",
      user = "bench",
      mode = "transaction",
      max_size = @size@, min_size = 0, initial_size = 0,
      policies = { "route/tenant" },
      tenant = { from = "user" },
      partitions = { acme = { type = "tenant", match = "acme", max_connections = @size@ } },
    },
  },
}
]]

local function start_pooler(x, kind, backend, transport)
  local t = { name = kind, dir = make_dir(x, kind), port = sys.free_port() }
  local values = { host = M.host(backend, transport), backend_port = backend.port, port = t.port,
    dir = t.dir, size = M.POOL_SIZE, root = x.root,
    prepared = M.mode_of(x, { name = "pgbouncer" }, "prepared") == "prepared"
      and "max_prepared_statements = 100" or "" }
  local function fill(template)
    return (template:gsub("@([%w_]+)@", values))
  end
  local argv
  local o = { log = t.dir .. "/log" }
  if kind == "poolrt" then
    sys.write_file(t.dir .. "/config.lua", fill(POOLRT))
    argv, o.user, o.stop = { x.poolrt, t.dir .. "/config.lua" }, x.poolrt_user, sys.SIGTERM
  else
    sys.write_file(t.dir .. "/pgbouncer.ini", fill(PGBOUNCER))
    sys.write_file(t.dir .. "/users.txt", '"acme" "bench"\n')
    argv, o.user = { x.pgbouncer, "-q", t.dir .. "/pgbouncer.ini" }, x.user
  end
  hand_over(x)
  t.proc = sys.spawn(argv, o)
  t.proc.name = kind
  wait_ready(x, t, transport)
  return t
end

--- Both poolers before `backend`, all connections over `transport`.
function M.start_pair(x, backend, transport)
  return { poolrt = start_pooler(x, "poolrt", backend, transport),
    pgbouncer = start_pooler(x, "pgbouncer", backend, transport) }
end

function M.stop_pair(pair)
  for _, t in pairs(pair) do sys.stop(t.proc) end
end

--- name -> version of everything that takes part.
function M.versions(x)
  local function first_line(command)
    local line = sys.output(command):match("[^\n]*")
    return line ~= "" and line or "unknown"
  end
  return {
    pgbouncer = first_line(sys.quote(x.pgbouncer) .. " --version"),
    poolrt = first_line(sys.quote(x.poolrt) .. " --version"),
    postgres = first_line(sys.quote(x.pgbin .. "/postgres") .. " --version"),
  }
end

return M
