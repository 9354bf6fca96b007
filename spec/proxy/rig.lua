-- rig.lua - poolrt in front of a PostgreSQL that load and fault specs may fill, stop and kill: one
-- for all of them, apart from the one that other specs share, with room for 1,100 connections.
local busted = require "busted"
local sys = require "support.os"
local ffi = require "ffi"
local json = require "poolrt.json"
local wire = require "proxy.wire"
local P = require "support.poolrt"
local PG = require "support.pg"

ffi.cdef [[
  int rig_fcntl(int, int, ...) __asm__("fcntl");
]]

local M = {}
local F_SETFD, FD_CLOEXEC = 2, 1

M.is_long, M.is_sanitized = P.is_long, P.is_sanitized

--- Wait until `check` answers with something true, which is returned. After `seconds` an error that
--- says `what` and the second value of check().
function M.eventually(seconds, what, check)
  local seen
  local got = sys.wait_for(function()
    local found
    found, seen = check()
    return found
  end, seconds)
  return got or error(("not within %g s: %s (%s)"):format(seconds, what, tostring(seen)), 2)
end

-- ---- programs beside the spec ----

local Job = {}
Job.__index = Job

--- Start a program (one, with its arguments as the shell takes them); both streams are kept.
function M.job(command)
  local path = sys.temp_dir() .. "/out"
  local pid = sys.spawn(("exec setpriv --pdeathsig KILL %s >%s 2>&1 </dev/null"):format(command,
    path))
  return setmetatable({ pid = pid, path = path, command = command }, Job)
end

function Job:out()
  return sys.read(self.path) or ""
end

--- nil while it runs.
function Job:ended()
  self.status = self.status or sys.reap(self.pid)
  return self.status
end

--- Output and status; one that takes longer than `seconds` is killed: an error.
function Job:wait(seconds)
  if not sys.wait_for(function() return self:ended() end, seconds or 60) then
    self:kill()
    error(("did not end: %s\n%s"):format(self.command, self:out()), 2)
  end
  return self:out(), self.status
end

--- Wait until its output matches.
function Job:says(pattern, seconds)
  return M.eventually(seconds, pattern, function()
    return self:out():match(pattern), self:out()
  end)
end

function Job:kill(signal)
  if not self:ended() then
    sys.kill(self.pid, signal or "KILL")
    sys.wait_for(function() return self:ended() end, 5)
  end
end

--- A load client of spec/client.
function M.client(name)
  return P.out .. "/spec/client/" .. name
end

-- ---- PostgreSQL ----

local server

function M.server()
  if not server then
    local dir = sys.temp_dir()
    server = PG.new(dir, "-c max_connections=1100 -c shared_buffers=32MB -c autovacuum=off")
    sys.at_exit(function() M.stop_server "QUIT" end)
    sys.write(server.data .. "/pg_hba.conf",
      "local all all trust\nhost all all 127.0.0.1/32 trust\n")
    M.sql "select pg_reload_conf()"
    M.sql "alter role acme superuser; alter role globex superuser"
  end
  return server
end

function M.start_server()
  PG.run(server)
end

--- INT: it ends its connections properly. QUIT: at once, as after a crash.
function M.stop_server(signal)
  PG.halt(server, signal)
end

--- For libpq, past poolrt.
function M.direct(database)
  return ("host=127.0.0.1 port=%d user=postgres dbname=%s"):format(M.server().port,
    database or "app")
end

function M.psql_line(options, database)
  return ("timeout 60 psql -X -v ON_ERROR_STOP=1 %s %s"):format(
    sys.quote(M.direct(database or "postgres")), options)
end

--- Run SQL in the server itself; what psql -At prints.
function M.sql(sql, database)
  return sys.must(M.psql_line("-qAt -c " .. sys.quote(sql), database))
end

--- How many connections the server has for which `where` holds, without the one that asks.
function M.backends(where)
  return tonumber((M.sql("select count(*) from pg_stat_activity where "
    .. "backend_type = 'client backend' and pid <> pg_backend_pid() and " .. (where or "true"))))
end

function M.no_backends(seconds, where)
  M.eventually(seconds, "no backend that is " .. (where or "there"), function()
    local n = M.backends(where)
    return n == 0, n
  end)
end

--- From now on it speaks TLS to those who ask for it.
function M.server_tls(cert, key)
  local data = server.data
  sys.must(("cd %s && cp %s cert && cp %s key && chmod 600 key && chown --reference=. cert key")
    :format(data, cert, key))
  M.sql(("alter system set ssl_cert_file = '%s/cert'"):format(data))
  M.sql(("alter system set ssl_key_file = '%s/key'"):format(data))
  M.sql "alter system set ssl = on"
  M.sql "select pg_reload_conf()"
  M.eventually(10, "TLS", function()
    local _, status = sys.sh(("timeout 10 psql -XAt %s -c 'select 1'"):format(
      sys.quote(M.direct() .. " sslmode=require")))
    return status == 0
  end)
end

--- A role that may create things in database app, and that PostgreSQL lets in only by password
--- (SCRAM) and over TLS, which server_tls() has to have turned on.
function M.strict_role(name, password)
  M.sql(("create role %s login password '%s'"):format(name, (password:gsub("'", "''"))))
  local hba = M.server().data .. "/pg_hba.conf"
  sys.write(hba, ("hostssl all %s 127.0.0.1/32 scram-sha-256\nhost all %s 127.0.0.1/32 reject\n")
    :format(name, name) .. sys.read(hba))
  M.sql "select pg_reload_conf()"
  M.eventually(10, "no login without TLS", function()
    local conninfo = M.direct():gsub("user=postgres", "sslmode=disable user=" .. name)
    local out, status = sys.sh(("PGPASSWORD=%s timeout 10 psql -XAt %s -c 'select 1'"):format(
      sys.quote(password), sys.quote(conninfo)))
    return status ~= 0, out
  end)
end

-- ---- poolrt ----

local Rig = {}
Rig.__index = Rig

local TRUST = "{ type = 'trust', users = { acme = 'x', globex = 'x', postgres = 'x' } }"

--- o.pools: { name = "settings, in Lua" }; o.top: more of the configuration; o.auth: another than
--- TRUST; o.sslmode: to the server; o.env: poolrt's environment; o.token: of the admin API.
function M.start(o)
  return setmetatable({}, Rig):start(o)
end

--- One for all specs of the describe() that this is called in; the clients of each are dropped.
function M.shared(o)
  local px = setmetatable({}, Rig)
  busted.setup(function() px:start(o) end)
  busted.after_each(function() px:drop_clients() end)
  busted.teardown(function() return px.rt and px:stop() end)
  return px
end

function Rig:start(o)
  local pg = M.server()
  local lines = {
    "return { workers = 2, max_clients = 20000, shutdown_timeout = 5,",
    ("listen = { '127.0.0.1:@PORT@' }, admin = { listen = '127.0.0.1:@ADMIN_PORT@', %s },")
      :format(o.token and ("token = '%s'"):format(o.token) or ""),
    ("auth = %s,"):format(o.auth or TRUST),
    "log = { connections = false },", o.top or "", "pools = {",
  }
  for name, settings in pairs(o.pools) do
    lines[#lines + 1] = ("%s = { target = 'host=127.0.0.1 port=%d dbname=app sslmode=%s', %s },")
      :format(name, pg.port, o.sslmode or "disable", settings)
  end
  local rt = P.start { config = table.concat(lines, "\n") .. "} }\n", env = o.env }
  self.rt, self.port, self.pid, self.clients, self.token = rt, rt.port, rt.pid, {}, o.token
  self.before = { rss = rt.rss(), fds = rt.fds() }
  return self
end

--- An orderly end.
function Rig:stop()
  local status = self.rt.stop("TERM", 30)
  if status ~= 0 then -- a sanitizer's report stands in the log
    error(("poolrt ended with status %s:\n%s"):format(tostring(status), self.rt.log()), 2)
  end
end

--- For libpq, through poolrt.
function Rig:conninfo(database, user)
  return ("host=127.0.0.1 port=%d user=%s dbname=%s gssencmode=disable"):format(self.port,
    user or "acme", database)
end

--- A client of spec/proxy/wire.lua, logged in.
function Rig:login(database, user, ...)
  local c, why = wire.login(self.port, user or "acme", database, ...)
  if not c then
    error("login: " .. wire.words(why), 2)
  end
  -- a server that is started meanwhile must not hold it open
  ffi.C.rig_fcntl(c.fd, F_SETFD, ffi.cast("int", FD_CLOEXEC))
  self.clients[#self.clients + 1] = c
  return c
end

--- What a spec that failed has left open must not fail the next.
function Rig:drop_clients()
  for _, c in ipairs(self.clients) do
    c:drop()
  end
  self.clients = {}
end

--- Start a program; @ in its line stands for the conninfo.
function Rig:job(line, database, user)
  local conninfo = sys.quote(self:conninfo(database, user))
  return M.job((line:gsub("@", function() return conninfo end)))
end

--- A request of the admin API: status, and what came as JSON.
function Rig:rest(method, path)
  local auth = self.token and "-H 'Authorization: Bearer " .. self.token .. "'" or ""
  local text = sys.must(("curl -sS -m 20 -X %s %s -w '\n%%{http_code}' %s"):format(method, auth,
    sys.quote(self.rt.admin_url .. "/api/v1" .. path)))
  local body, status = text:match "^(.*)\n(%d+)%s*$"
  return tonumber(status), json.decode(body)
end

--- The only session of the pool, as GET /sessions has it.
function Rig:session_of(pool)
  local _, body = self:rest("GET", "/sessions?pool_id=" .. pool)
  assert(body.data and #body.data == 1, "sessions in " .. pool .. ": " .. json.encode(body))
  return body.data[1]
end

--- Numbers of /metrics by name and labels as they stand there.
function Rig:metrics()
  local text = sys.must(("curl -sS -m 10 %s/metrics"):format(self.rt.admin_url))
  local numbers = {}
  for name, value in text:gmatch "([^\n]+) (%S+)" do
    numbers[name] = tonumber(value)
  end
  return numbers
end

--- poolrt_pool_NAME of a pool.
function Rig:pool_metric(name, pool)
  return self:metrics()[("poolrt_pool_%s{pool=%q}"):format(name, pool)]
end

--- As many transactions at once as there are slots, each on a backend of its own.
function Rig:assert_slots(pool, n)
  local open, seen, different = {}, {}, 0
  for i = 1, n do
    open[i] = self:login(pool)
    open[i]:ask "begin"
    local pid = select(2, open[i]:ask "select pg_backend_pid()")[1]
    different = different + (pid and not seen[pid] and 1 or 0)
    seen[pid or ""] = true
  end
  for i = 1, n do
    open[i]:send(wire.terminate)
    open[i]:drop()
  end
  assert(different == n, ("%d slots serve with %d backends"):format(n, different))
end

--- What must hold after every test (TRUST R11): each lease was given back, no backend does
--- anything, every slot serves, descriptors and memory are back.
function Rig:assert_settled(pool, slots)
  if slots then
    self:assert_slots(pool, slots)
  end
  M.eventually(15, "leases given back in " .. pool, function()
    local m, of = self:metrics(), ("{pool=%q}"):format(pool)
    local acquired = m["poolrt_pool_acquisitions_total" .. of]
    local back = m["poolrt_pool_releases_total" .. of]
    local active = m[("poolrt_pool_connections_total{pool=%q,state=\"active\"}"):format(pool)]
    local waiting = m["poolrt_pool_waiting" .. of]
    local clients = m["poolrt_clients{state=\"connected\"}"]
    return acquired and acquired == back and active == 0 and waiting == 0 and clients == 0,
      ("%s acquired, %s released, %s active, %s waiting, %s clients"):format(acquired, back, active,
        waiting, clients)
  end)
  M.no_backends(10, "state <> 'idle'")
  M.eventually(10, "descriptors given back", function()
    local extra = self.rt.fds() - self.before.fds - M.backends()
    return extra <= 2, extra
  end)
  local grown = self.rt.rss() - self.before.rss
  assert(M.is_sanitized or grown < 80e6, "resident memory has grown by " .. grown)
end

--- Most resident memory since the last reset_peak().
function Rig:peak()
  return tonumber(sys.read(("/proc/%d/status"):format(self.pid)):match "VmHWM:%s*(%d+)") * 1024
end

function Rig:assert_peak(limit)
  local peak = self:peak()
  assert(M.is_sanitized or peak < limit, ("%d is more than %d"):format(peak, limit))
end

function Rig:reset_peak()
  sys.write(("/proc/%d/clear_refs"):format(self.pid), "5")
end

--- Gives the processor away for `seconds`, for what is a matter of time itself: how much is used in
--- it, or that nothing comes.
function M.let_pass(seconds)
  ffi.C.usleep(seconds * 1e6)
end

return M
