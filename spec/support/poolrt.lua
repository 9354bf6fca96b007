-- poolrt.lua - starts the runtime under test: P.start{ config = text } and what it gives back.
--
--   local rt = P.start { config = [[ return { listen = { "127.0.0.1:@PORT@" }, ... } ]] }
--   rt.port, rt.admin_port, rt.admin_url, rt.pid, rt.dir, rt.config_path
--   rt.psql("select 1", { user = "acme" })   rt.log()   rt.wait_log("event=reloaded")
--   rt.stop()  rt.kill("HUP")  rt.alive()  rt.rss()  rt.fds()  rt.cpu()
--
-- In the configuration @PORT@, @ADMIN_PORT@ and @DIR@ (a directory of its own) are replaced, and
-- @PGHOST@, @PGPORT@ (TCP) and @PGSOCKET@ (a directory), which start spec/support/pg.lua's
-- PostgreSQL. PORT and ADMIN_PORT are in its environment too. What a file of specs leaves running
-- is killed at the end of that file, or by the kernel when the test run dies.
local sys = require "support.os"

local M = {}

--- Folder of the build under test.
M.out = os.getenv "PRT_OUT" or "build/test"
M.bin = M.out .. "/poolrt"
--- Built with a sanitizer: memory and speed say nothing.
M.is_sanitized = select(2, sys.sh(("grep -aqE '__(asan|tsan)_init' %s"):format(M.bin))) == 0
--- env PRT_LONG=1: the long versions of the specs.
M.is_long = os.getenv "PRT_LONG" == "1"

local running = {}

local function substitute(text, values)
  if text:find "@PG%u+@" then
    local pg = require("support.pg").start()
    values.PGHOST, values.PGPORT, values.PGSOCKET = pg.host, pg.port, pg.socket_dir
  end
  return (text:gsub("@(%u[%u_]*)@", function(name)
    return values[name] and tostring(values[name])
  end))
end

local function environment(env)
  local words = {}
  for name, value in pairs(env) do
    words[#words + 1] = name .. "=" .. sys.quote(value)
  end
  table.sort(words)
  return table.concat(words, " ")
end

--- Run the program to its end, at most 30 s: P.run({ "check", file }, env). Output, exit status.
function M.run(args, env)
  local words = {}
  for i, word in ipairs(args) do
    words[i] = sys.quote(word)
  end
  return sys.sh(("env %s timeout -k 1 30 %s %s </dev/null"):format(environment(env or {}), M.bin,
    table.concat(words, " ")))
end

--- A file of configuration with the ports and directory that it says: path, values.
function M.config_file(text, values)
  values = values or {}
  values.DIR = values.DIR or sys.temp_dir()
  values.PORT = values.PORT or sys.free_port()
  values.ADMIN_PORT = values.ADMIN_PORT or sys.free_port()
  local path = values.DIR .. "/config.lua"
  sys.write(path, substitute(text, values))
  return path, values
end

local function proc_number(pid, file, pattern)
  return tonumber((sys.read(("/proc/%d/%s"):format(pid, file)) or ""):match(pattern))
end

-- ---- the object ----

local function add_log(rt)
  function rt.log()
    return sys.read(rt.log_path) or ""
  end
  --- Wait until `pattern` is in the log, after `from` (a length of it); the match, or an error.
  function rt.wait_log(pattern, seconds, from)
    return sys.wait_for(function()
      return rt.log():match(pattern, (from or 0) + 1)
    end, seconds) or error(("no %q in the log:\n%s"):format(pattern, rt.log()), 2)
  end
end

local function add_process(rt)
  function rt.alive()
    rt.status = rt.status or sys.reap(rt.pid)
    return rt.status == nil
  end
  function rt.kill(signal)
    return rt.alive() and sys.kill(rt.pid, signal)
  end
  --- Its exit status, or nil when it still runs after `seconds`.
  function rt.wait_exit(seconds)
    sys.wait_for(function()
      return not rt.alive()
    end, seconds or 10)
    return rt.status
  end
  --- Send `signal` (TERM) and wait for the end; killed after `seconds`. The exit status.
  function rt.stop(signal, seconds)
    if rt.kill(signal or "TERM") and not rt.wait_exit(seconds or 15) then
      rt.kill "KILL"
      rt.wait_exit(5)
    end
    running[rt] = nil
    return rt.status
  end
end

local function add_numbers(rt)
  function rt.rss()
    return (proc_number(rt.pid, "status", "VmRSS:%s*(%d+) kB") or 0) * 1024
  end
  function rt.fds()
    return tonumber((sys.must(("ls /proc/%d/fd | wc -l"):format(rt.pid))))
  end
  --- Seconds of processor time so far.
  function rt.cpu()
    local after_name = (sys.read(("/proc/%d/stat"):format(rt.pid)) or ""):match ".*%) (.*)" or ""
    local field = {}
    for word in after_name:gmatch "%S+" do
      field[#field + 1] = tonumber(word) or word
    end
    return ((field[12] or 0) + (field[13] or 0)) / 100 -- user and system, in ticks
  end
end

local function add_clients(rt)
  --- o: user, db, password ("secret"), options for psql. Output of psql -At, exit status.
  function rt.psql(sql, o)
    o = o or {}
    local conninfo = ("host=127.0.0.1 port=%d dbname=%s user=%s password=%s %s"):format(rt.port,
      o.db or "app", o.user or "app", o.password or "secret", o.conninfo or "connect_timeout=10")
    local out, status = sys.sh(("timeout %d psql -XqAt %s %s -c %s </dev/null"):format(
      o.seconds or 20, o.options or "", sys.quote(conninfo), sys.quote(sql)))
    return (out:gsub("\n$", "")), status
  end
  --- Write another configuration over the first, with the same replacements.
  function rt.write_config(text)
    sys.replace(rt.config_path, substitute(text, rt.values))
  end
end

-- rt.stop() and rt:stop() are both understood
local function without_self(rt)
  for name, f in pairs(rt) do
    if type(f) == "function" then
      rt[name] = function(first, ...)
        if first == rt then
          return f(...)
        end
        return f(first, ...)
      end
    end
  end
end

local function object(path, values)
  local rt = {
    config_path = path, values = values, port = values.PORT, admin_port = values.ADMIN_PORT,
    dir = values.DIR,
    -- beside the directory: one that is watched must rest
    log_path = values.DIR .. ".log", out_path = values.DIR .. ".out",
    admin_url = "http://127.0.0.1:" .. values.ADMIN_PORT,
  }
  add_log(rt)
  add_process(rt)
  add_numbers(rt)
  add_clients(rt)
  without_self(rt)
  --- What it wrote to standard output.
  function rt.output()
    return sys.read(rt.out_path) or ""
  end
  return rt
end

--- Start without waiting.
function M.launch(o)
  local values = { DIR = o.dir or sys.temp_dir(), PORT = o.port or sys.free_port(),
    ADMIN_PORT = o.admin_port or sys.free_port() }
  local path = o.config
  if path:find "\n" or path:find "return" then
    path = M.config_file(path, values)
  end
  local rt = object(path, values)
  local env = { PORT = values.PORT, ADMIN_PORT = values.ADMIN_PORT }
  for name, value in pairs(o.env or {}) do
    env[name] = value
  end
  os.remove(rt.log_path) -- of an earlier start here: it says "started" as well
  rt.pid = sys.spawn(("exec env %s setpriv --pdeathsig KILL %s %s >%s 2>%s </dev/null"):format(
    environment(env), o.bin or M.bin, sys.quote(path), rt.out_path, rt.log_path))
  running[rt] = true
  return rt
end

--- o: config (text or path), env, wait (seconds, 40), port, admin_port, dir. Returns when it
--- serves;
--- an error with its log when it does not.
function M.start(o)
  local rt = M.launch(o)
  sys.wait_for(function()
    return rt.log():find "event=started " or not rt.alive()
  end, o.wait or 40)
  if rt.log():find "event=started " and rt.alive() then
    return rt
  end
  rt.stop "KILL"
  error(("poolrt did not start (status %s):\n%s"):format(tostring(rt.status), rt.log()), 2)
end

function M.stop_all()
  for rt in pairs(running) do
    rt.stop "KILL"
  end
end

sys.at_exit(M.stop_all)
local has_busted, busted = pcall(require, "busted")
if has_busted and busted.subscribe then
  busted.subscribe({ "file", "end" }, function()
    M.stop_all()
    return nil, true
  end)
end

return M
