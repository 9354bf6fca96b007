-- socket.lua - TCP connections to 127.0.0.1 for specs that must send exactly these bytes.
local ffi = require "ffi"

-- names of our own: ffi declarations are one for all specs of a run
ffi.cdef [[
  struct spec_sockaddr_in { uint16_t family; uint16_t port; uint8_t addr[4]; uint8_t zero[8]; };
  struct spec_pollfd { int fd; short events, revents; };
  struct spec_timespec { long s, ns; };
  int admin_socket(int, int, int) __asm__("socket");
  int admin_connect(int, const void *, unsigned) __asm__("connect");
  long admin_send(int, const void *, size_t, int) __asm__("send");
  long admin_recv(int, void *, size_t, int) __asm__("recv");
  int admin_shutdown(int, int) __asm__("shutdown");
  int admin_close(int) __asm__("close");
  int admin_poll(struct spec_pollfd *, unsigned long, int) __asm__("poll");
  int admin_clock_gettime(int, struct spec_timespec *) __asm__("clock_gettime");
]]

local C = ffi.C
local M = {}
local Socket = {}
Socket.__index = Socket

local AF_INET, SOCK_STREAM, SOCK_CLOEXEC = 2, 1, 0x80000
local MSG_NOSIGNAL, MSG_DONTWAIT = 0x4000, 0x40
local POLLIN, POLLOUT, EAGAIN = 1, 4, 11

--- Monotonic seconds.
function M.now()
  local t = ffi.new "struct spec_timespec"
  C.admin_clock_gettime(1, t)
  return tonumber(t.s) + tonumber(t.ns) / 1e9
end

function M.connect(port)
  local sa = ffi.new("struct spec_sockaddr_in", { family = AF_INET })
  sa.port = math.floor(port / 256) + port % 256 * 256
  sa.addr[0], sa.addr[3] = 127, 1
  local fd = C.admin_socket(AF_INET, SOCK_STREAM + SOCK_CLOEXEC, 0)
  assert(fd >= 0, "no socket")
  assert(C.admin_connect(fd, sa, ffi.sizeof(sa)) == 0, "cannot connect to port " .. port)
  return setmetatable({ fd = fd }, Socket)
end

function Socket:wait(events, deadline)
  local p = ffi.new("struct spec_pollfd", { fd = self.fd, events = events })
  local left = math.max(0, deadline - M.now())
  return C.admin_poll(p, 1, math.ceil(left * 1000)) > 0
end

--- Sends all of it, or as much as the peer takes before it closes or 5 s have passed.
function Socket:send(bytes)
  local deadline, at = M.now() + 5, 0
  while at < #bytes do
    local n = C.admin_send(self.fd, ffi.cast("const char *", bytes) + at, #bytes - at,
      MSG_NOSIGNAL + MSG_DONTWAIT)
    if n > 0 then
      at = at + tonumber(n)
    elseif ffi.errno() ~= EAGAIN or not self:wait(POLLOUT, deadline) then
      break
    end
  end
  return self
end

--- All bytes until the peer closes. Errors when it has not within `seconds`.
function Socket:read_all(seconds)
  local deadline, buf, out = M.now() + (seconds or 5), ffi.new "char[65536]", {}
  while true do
    if not self:wait(POLLIN, deadline) then
      error("the connection is still open; so far: " .. table.concat(out), 2)
    end
    local n = C.admin_recv(self.fd, buf, 65536, MSG_DONTWAIT)
    if n > 0 then
      out[#out + 1] = ffi.string(buf, n)
    elseif n == 0 then
      return table.concat(out)
    elseif ffi.errno() ~= EAGAIN then
      return table.concat(out), "reset"
    end
  end
end

function Socket:close()
  if self.fd then
    C.admin_close(self.fd)
    self.fd = nil
  end
end

--- Sends `bytes` on a new connection and returns all that comes back.
function M.exchange(port, bytes, seconds)
  local s = M.connect(port)
  s:send(bytes)
  local ok, text, why = pcall(s.read_all, s, seconds)
  s:close()
  if not ok then
    error(text, 2)
  end
  return text, why
end

return M
