-- os.lua - what the specs need of the system: processes, waiting, files, free ports.
-- A process started here is a child, so its exit status is known.
local ffi = require "ffi"
local C = ffi.C

ffi.cdef [[
int fork(void);
int execv(const char *path, char *const argv[]);
int kill(int pid, int sig);
int waitpid(int pid, int *status, int options);
int getpid(void);
unsigned geteuid(void);
int usleep(unsigned us);
void _exit(int status);
struct prt_spec_time { long s, ns; };
int clock_gettime(int clock, struct prt_spec_time *t);
]]

local M = {}

local WNOHANG, CLOCK_MONOTONIC = 1, 1
M.signals = { HUP = 1, INT = 2, QUIT = 3, KILL = 9, USR1 = 10, TERM = 15, CONT = 18, STOP = 19 }

function M.now()
  local t = ffi.new "struct prt_spec_time"
  C.clock_gettime(CLOCK_MONOTONIC, t)
  return tonumber(t.s) + tonumber(t.ns) / 1e9
end

--- Ask `condition` every 10 ms until it answers with something true, which is returned; nil when
--- `seconds` have passed.
function M.wait_for(condition, seconds)
  local deadline = M.now() + (seconds or 5)
  repeat
    local got = condition()
    if got then
      return got
    end
    C.usleep(10000)
  until M.now() > deadline
  return condition() or nil
end

function M.own_pid()
  return C.getpid()
end

function M.is_root()
  return C.geteuid() == 0
end

-- ---- files ----

function M.read(path)
  local f = io.open(path, "rb")
  local text = f and f:read "*a"
  if f then
    f:close()
  end
  return text
end

--- In place: the file keeps its inode.
function M.write(path, text)
  local f = assert(io.open(path, "wb"))
  assert(f:write(text))
  assert(f:close())
end

--- As editors do: a new file under the old name.
function M.replace(path, text)
  M.write(path .. ".tmp", text)
  assert(os.rename(path .. ".tmp", path))
end

function M.quote(word)
  return "'" .. tostring(word):gsub("'", "'\\''") .. "'"
end

--- Run a line of shell; its output (both streams) and exit status.
function M.sh(line)
  local p = assert(io.popen("{ " .. line .. "\n} 2>&1; echo \" $?\""))
  local text = p:read "*a"
  p:close()
  local out, status = text:match "^(.*) (%d+)\n$"
  return out, tonumber(status)
end

--- The same, but a failure is an error.
function M.must(line)
  local out, status = M.sh(line)
  if status ~= 0 then
    error(("%s\nexit status %d: %s"):format(line, status, out), 2)
  end
  return (out:gsub("\n$", ""))
end

local base

--- A directory for this run, removed at its end.
function M.temp_base()
  if not base then
    base = M.must "mktemp -d /tmp/poolrt-spec.XXXXXX"
    M.must("chmod 755 " .. base)
    M.at_exit(function()
      M.sh("rm -rf " .. base)
    end)
  end
  return base
end

local counter = 0

function M.temp_dir()
  counter = counter + 1
  local dir = ("%s/%d"):format(M.temp_base(), counter)
  M.must("mkdir " .. dir)
  return dir
end

--- Certificate and key, self-signed for localhost: the names of their files.
function M.certificate()
  local dir = M.temp_dir()
  M.must(("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
    .. "-subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 "
    .. "-keyout %s/key -out %s/cert 2>&1 && chmod 600 %s/key"):format(dir, dir, dir))
  return dir .. "/cert", dir .. "/key"
end

-- ---- the end of the run ----

local last_words, sentinel = {}, nil

--- Call f when the run ends, however it ends short of a kill; the last one first.
function M.at_exit(f)
  last_words[#last_words + 1] = f
  if not sentinel then
    sentinel = newproxy(true)
    getmetatable(sentinel).__gc = function()
      for i = #last_words, 1, -1 do
        pcall(last_words[i])
      end
    end
  end
end

-- ---- processes ----

--- Start `line` of shell, which must begin with exec to be the process itself. Returns its number.
function M.spawn(line)
  local words = { "/bin/sh", "-c", line }
  local argv = ffi.new("const char *[4]", words)
  local pid = C.fork()
  if pid == 0 then
    C.execv("/bin/sh", ffi.cast("char *const *", argv))
    C._exit(127)
  end
  assert(pid > 0, "fork failed")
  return pid
end

function M.kill(pid, signal)
  return C.kill(pid, M.signals[signal] or signal) == 0
end

--- nil while it runs, else its exit status; 128 + signal for one that was killed, as shells say.
function M.reap(pid)
  local status = ffi.new "int[1]"
  if C.waitpid(pid, status, WNOHANG) ~= pid then
    return nil
  end
  local signal = status[0] % 128
  return signal == 0 and math.floor(status[0] / 256) % 256 or 128 + signal
end

--- Is there such a process, zombies not counted?
function M.exists(pid)
  local stat = M.read(("/proc/%d/stat"):format(pid))
  return stat ~= nil and not stat:match "^%d+ %(.*%) Z"
end

-- ---- ports ----

local function listening()
  local used = {}
  for _, file in ipairs { "/proc/net/tcp", "/proc/net/tcp6" } do
    for port in (M.read(file) or ""):gmatch "\n *%d+: %x+:(%x+) " do
      used[tonumber(port, 16)] = true
    end
  end
  return used
end

local seeded, given = false, {}
-- what runs at the same time in one run of the suites chooses from ports of its own
local lane = tonumber(os.getenv "PRT_LANE") or math.huge
local FIRST_PORT, LAST_PORT = 20000, 31999
if lane < 4 then
  FIRST_PORT = FIRST_PORT + lane * 3000
  LAST_PORT = FIRST_PORT + 2999
end

--- A port below the kernel's own range for outgoing connections that nobody uses now.
function M.free_port()
  if not seeded then
    local f = assert(io.open("/dev/urandom", "rb"))
    local a, b, c = f:read(3):byte(1, 3)
    f:close()
    math.randomseed(a * 65536 + b * 256 + c)
    seeded = true
  end
  local used = listening()
  for _ = 1, 1000 do
    local port = math.random(FIRST_PORT, LAST_PORT)
    if not used[port] and not given[port] then
      given[port] = true
      return port
    end
  end
  error "no free port"
end

return M
