-- sys.lua - what the harness needs of the kernel: processes, bounded waits, ports, files.
-- Signals are blocked and read from a descriptor, so ^C ends each wait as an error and the caller's
-- cleanup runs; a child asks the kernel to be killed should the harness die without one.
local ffi = require "ffi"
local C = ffi.C

ffi.cdef [[
typedef int pid_t;
typedef struct { unsigned long bits[16]; } sigset_t;
typedef struct { char opaque[512]; } posix_spawn_file_actions_t;
typedef struct { char opaque[512]; } posix_spawnattr_t;
struct pollfd { int fd; short events, revents; };
struct rlimit { unsigned long cur, max; };
struct timespec { long sec, nsec; };
struct sockaddr_in { unsigned short family, port; unsigned char addr[4], zero[8]; };
int sigemptyset(sigset_t *);
int sigaddset(sigset_t *, int);
int sigprocmask(int, const sigset_t *, sigset_t *);
int signalfd(int, const sigset_t *, int);
int poll(struct pollfd *, unsigned long, int);
int pipe2(int[2], int);
int open(const char *, int, ...);
int close(int);
long read(int, void *, unsigned long);
long write(int, const void *, unsigned long);
int kill(pid_t, int);
pid_t waitpid(pid_t, int *, int);
pid_t getpid(void);
unsigned geteuid(void);
int clock_gettime(int, struct timespec *);
int getrlimit(int, struct rlimit *);
int setrlimit(int, const struct rlimit *);
int socket(int, int, int);
int bind(int, const struct sockaddr_in *, unsigned);
char *strerror(int);
char *realpath(const char *, char *);
void free(void *);
int mkdir(const char *, unsigned);
char *mkdtemp(char *);
int posix_spawn_file_actions_init(posix_spawn_file_actions_t *);
int posix_spawn_file_actions_adddup2(posix_spawn_file_actions_t *, int, int);
int posix_spawn_file_actions_destroy(posix_spawn_file_actions_t *);
int posix_spawnattr_init(posix_spawnattr_t *);
int posix_spawnattr_setflags(posix_spawnattr_t *, short);
int posix_spawnattr_setpgroup(posix_spawnattr_t *, pid_t);
int posix_spawnattr_setsigmask(posix_spawnattr_t *, const sigset_t *);
int posix_spawnattr_destroy(posix_spawnattr_t *);
int posix_spawnp(pid_t *, const char *, const posix_spawn_file_actions_t *,
                 const posix_spawnattr_t *, char *const[], char *const[]);
extern char **environ;
]]

local M = {}

-- Linux numbers
local SIGHUP, SIGINT, SIGTERM, SIGCHLD = 1, 2, 15, 17
M.SIGINT, M.SIGTERM, M.SIGKILL = SIGINT, SIGTERM, 9
local O_RDONLY, O_WRONLY_CREAT_TRUNC, O_CLOEXEC = 0, 0x241, 0x80000
local POLLIN, WNOHANG, EINTR, SIG_BLOCK = 1, 1, 4, 0
local RLIMIT_CORE, RLIMIT_NOFILE = 4, 7
local SPAWN_SETPGROUP_SETSIGMASK = 0x02 + 0x08

local signal_fd
local children = {} -- pid -> process, until it is reaped
local info = ffi.new("unsigned int[32]") -- struct signalfd_siginfo
local buffer = ffi.new("char[65536]")

local function last_error(what)
  error(what .. ": " .. ffi.string(C.strerror(ffi.errno())), 0)
end

function M.now()
  local t = ffi.new("struct timespec")
  C.clock_gettime(1, t)
  return tonumber(t.sec) + tonumber(t.nsec) / 1e9
end

--- Call first: takes over the signals and raises the limit of descriptors for all children.
function M.setup()
  local set = ffi.new("sigset_t")
  C.sigemptyset(set)
  for _, s in ipairs { SIGHUP, SIGINT, SIGTERM, SIGCHLD } do
    C.sigaddset(set, s)
  end
  C.sigprocmask(SIG_BLOCK, set, nil)
  signal_fd = C.signalfd(-1, set, O_CLOEXEC + 0x800)
  if signal_fd < 0 then last_error("signalfd") end
  local limit = ffi.new("struct rlimit")
  C.getrlimit(RLIMIT_NOFILE, limit)
  limit.cur = limit.max
  C.setrlimit(RLIMIT_NOFILE, limit)
  M.nofile = tonumber(limit.max)
  limit.cur, limit.max = 0, 0
  C.setrlimit(RLIMIT_CORE, limit)
end

-- Raises what came in: "interrupted", unless `deaf`, as in the cleanup.
local function take_signals(deaf)
  while C.read(signal_fd, info, 128) == 128 do
    if info[0] ~= SIGCHLD and not deaf then error("interrupted", 0) end
  end
end

local function reap()
  local status = ffi.new("int[1]")
  for pid, p in pairs(children) do
    if C.waitpid(pid, status, WNOHANG) == pid then
      local s = status[0]
      p.status = s % 128 ~= 0 and "signal " .. s % 128 or "status " .. math.floor(s / 256)
      p.ok = s == 0
      children[pid] = nil
    end
  end
end

-- Waits for a signal, a child's end or input on `fd`; true if there is input.
local function wait(fd, seconds, deaf)
  local p = ffi.new("struct pollfd[2]", { { signal_fd, POLLIN, 0 }, { fd or -1, POLLIN, 0 } })
  if C.poll(p, 2, math.max(0, math.ceil(seconds * 1000))) < 0 and ffi.errno() ~= EINTR then
    last_error("poll")
  end
  take_signals(deaf)
  reap()
  return p[1].revents ~= 0
end

function M.sleep(seconds)
  local deadline = M.now() + seconds
  while M.now() < deadline do
    wait(nil, deadline - M.now())
  end
end

--- Calls `f` until it returns something true, which is returned; nil after `seconds`.
function M.until_true(seconds, f)
  local deadline = M.now() + seconds
  repeat
    local v = f()
    if v then return v end
    M.sleep(0.05)
  until M.now() > deadline
end

local arguments -- of the last spawn; here, so that they outlive the call that reads them

local function c_strings(list)
  arguments = { list, ffi.new("const char *[?]", #list + 1) }
  for i, s in ipairs(list) do arguments[2][i - 1] = s end
  return ffi.cast("char *const *", arguments[2])
end

local function open_file(path, flags)
  local fd = C.open(path, flags + O_CLOEXEC, ffi.cast("int", 420)) -- 0644
  if fd < 0 then last_error(path) end
  return fd
end

local function pipe()
  local fds = ffi.new("int[2]")
  if C.pipe2(fds, O_CLOEXEC) ~= 0 then last_error("pipe") end
  return fds[0], fds[1]
end

--- Starts argv. o.log: file for its errors, and its output unless o.pipe gives that to read_line();
--- o.user: {uid, gid} to run as; o.stdin: its input is a pipe that close_stdin() ends;
--- o.stop: the signal that stop() sends first.
function M.spawn(argv, o)
  local dying = (o.stop == SIGINT) and "INT" or "KILL"
  local full = { "setpriv", "--pdeathsig", dying }
  if o.user then
    for _, a in ipairs { "--reuid", o.user.uid, "--regid", o.user.gid, "--clear-groups" } do
      full[#full + 1] = tostring(a)
    end
  end
  full[#full + 1] = "--"
  for _, a in ipairs(argv) do full[#full + 1] = a end
  local log = open_file(o.log or "/dev/null", O_WRONLY_CREAT_TRUNC)
  local p = { name = argv[1]:match("[^/]*$"), log = o.log, stop_signal = o.stop or M.SIGKILL }
  local input, output = nil, log
  if o.stdin then
    input, p.stdin = pipe()
  end
  input = input or open_file("/dev/null", O_RDONLY)
  if o.pipe then
    p.out, output = pipe()
  end
  local actions, attr = ffi.new("posix_spawn_file_actions_t"), ffi.new("posix_spawnattr_t")
  C.posix_spawn_file_actions_init(actions)
  C.posix_spawn_file_actions_adddup2(actions, input, 0)
  C.posix_spawn_file_actions_adddup2(actions, output, 1)
  C.posix_spawn_file_actions_adddup2(actions, log, 2)
  local none = ffi.new("sigset_t")
  C.sigemptyset(none)
  C.posix_spawnattr_init(attr)
  C.posix_spawnattr_setflags(attr, SPAWN_SETPGROUP_SETSIGMASK)
  C.posix_spawnattr_setpgroup(attr, 0)
  C.posix_spawnattr_setsigmask(attr, none)
  local pid = ffi.new("pid_t[1]")
  local rc = C.posix_spawnp(pid, full[1], actions, attr, c_strings(full), C.environ)
  if rc == 0 then
    p.pid = pid[0]
    children[p.pid] = p
  end
  C.posix_spawn_file_actions_destroy(actions)
  C.posix_spawnattr_destroy(attr)
  C.close(input)
  C.close(log)
  if o.pipe then C.close(output) end
  if rc ~= 0 then
    error(("cannot start %s: %s"):format(full[1], ffi.string(C.strerror(rc))), 0)
  end
  return p
end

function M.is_alive(p)
  reap()
  return children[p.pid] ~= nil
end

--- The process' next line of output; nil at its end, an error after `seconds`.
function M.read_line(p, seconds)
  local deadline = M.now() + seconds
  p.text = p.text or ""
  while true do
    local line, rest = p.text:match("^([^\n]*)\n(.*)$")
    if line then
      p.text = rest
      return line
    end
    if M.now() > deadline then
      error(("%s: no answer after %g s"):format(p.name, seconds), 0)
    end
    if p.out and wait(p.out, deadline - M.now()) then
      local n = tonumber(C.read(p.out, buffer, 65536))
      if n <= 0 then
        C.close(p.out)
        p.out = nil
      else
        p.text = p.text .. ffi.string(buffer, n)
      end
    end
    if not p.out then return nil end
  end
end

function M.close_stdin(p)
  if p.stdin then
    C.close(p.stdin)
    p.stdin = nil
  end
end

local function close_pipes(p)
  M.close_stdin(p)
  if p.out then
    C.close(p.out)
    p.out = nil
  end
end

--- Until the process has ended; false if it has not after `seconds`.
function M.join(p, seconds, deaf)
  local deadline = M.now() + seconds
  reap()
  while children[p.pid] and M.now() < deadline do
    wait(nil, deadline - M.now(), deaf)
  end
  if children[p.pid] then return false end
  close_pipes(p)
  return true
end

--- Ends the process, by its own signal and after 6 s by force with its whole group.
function M.stop(p, deaf)
  if children[p.pid] then
    C.kill(p.pid, p.stop_signal)
    if not M.join(p, 6, deaf) then
      C.kill(-p.pid, M.SIGKILL)
      M.join(p, 5, deaf)
    end
  end
  close_pipes(p)
end

--- Ends all processes that are still there, the latest first; `deaf`: whatever signals come.
function M.stop_all(deaf)
  local list = {}
  for _, p in pairs(children) do list[#list + 1] = p end
  table.sort(list, function(a, b) return a.pid > b.pid end)
  for _, p in ipairs(list) do M.stop(p, deaf) end
end

--- Runs argv to its end; error with its last words unless it succeeds.
function M.run(argv, o, seconds)
  local p = M.spawn(argv, o)
  if not M.join(p, seconds) then
    M.stop(p)
    error(("%s did not end within %g s"):format(argv[1], seconds), 0)
  end
  if not p.ok then
    error(("%s: %s\n%s"):format(argv[1], p.status, M.tail(o.log, 800)), 0)
  end
end

-- ports below the kernel's own range, so that no outgoing connection takes one meanwhile
local next_port = 20000 + C.getpid() * 13 % 9000

function M.free_port()
  for _ = 1, 2000 do
    next_port = next_port >= 31999 and 20000 or next_port + 1
    local fd = C.socket(2, 1 + O_CLOEXEC, 0)
    local a = ffi.new("struct sockaddr_in", { family = 2, addr = { 127, 0, 0, 1 } })
    a.port = next_port % 256 * 256 + math.floor(next_port / 256) -- network order
    local is_free = C.bind(fd, a, ffi.sizeof(a)) == 0
    C.close(fd)
    if is_free then return next_port end
  end
  error("no free port", 0)
end

-- ---- files ----
function M.read_file(path)
  local f = io.open(path, "r")
  if not f then return nil end
  local text = f:read("*a")
  f:close()
  return text
end

function M.write_file(path, text)
  local f = assert(io.open(path, "w"))
  assert(f:write(text))
  assert(f:close())
end

--- The end of a file, for messages.
function M.tail(path, bytes)
  local text = path and M.read_file(path) or ""
  return text:sub(-bytes)
end

--- What a command prints, without the last newline; "" if it fails.
function M.output(command)
  local f = io.popen(command .. " 2>/dev/null", "r")
  local text = f:read("*a")
  f:close()
  return (text:gsub("%s+$", ""))
end

function M.make_dir(path)
  C.mkdir(path, 493) -- 0755
end

function M.real_path(path)
  local p = C.realpath(path, nil)
  if p == nil then return nil end
  local s = ffi.string(p)
  C.free(p)
  return s
end

--- A new directory, its name made from the template's XXXXXX.
function M.temp_dir(template)
  local name = ffi.new("char[?]", #template + 1, template)
  if C.mkdtemp(name) == nil then last_error(template) end
  return ffi.string(name)
end

function M.quote(s)
  return "'" .. s:gsub("'", "'\\''") .. "'"
end

M.is_root = C.geteuid() == 0
M.pid = C.getpid()

--- Resident bytes, counted page by page where the kernel lets us: VmRSS is only near on many cores.
function M.resident(pid)
  local text = M.read_file(("/proc/%d/smaps_rollup"):format(pid))
  local kb = text and text:match("Rss:%s*(%d+) kB")
  if not kb then
    text = M.read_file(("/proc/%d/status"):format(pid))
    kb = text and text:match("VmRSS:%s*(%d+) kB")
  end
  return kb and tonumber(kb) * 1024 or error("the process is gone", 0)
end

return M
