-- datagram.lua - a Unix datagram socket to receive on, as a service manager has one.
local ffi = require "ffi"
local C = ffi.C

ffi.cdef [[
struct prt_spec_un { unsigned short family; char path[108]; };
struct prt_spec_poll { int fd; short events, revents; };
int prt_spec_socket(int, int, int) __asm__("socket");
int prt_spec_bind(int, const struct prt_spec_un *, unsigned) __asm__("bind");
int prt_spec_poll(struct prt_spec_poll *, unsigned long, int) __asm__("poll");
long prt_spec_recv(int, void *, unsigned long, int) __asm__("recv");
int prt_spec_close(int) __asm__("close");
]]

local M = {}
local AF_UNIX, SOCK_DGRAM, POLLIN = 1, 2, 1

--- `name`: a path, or "@name" for an abstract socket.
function M.bind(name)
  local fd = C.prt_spec_socket(AF_UNIX, SOCK_DGRAM, 0)
  local to = ffi.new("struct prt_spec_un", { family = AF_UNIX })
  ffi.copy(to.path, name, #name)
  if name:sub(1, 1) == "@" then
    to.path[0] = 0
  end
  assert(C.prt_spec_bind(fd, to, 2 + #name) == 0, "bind failed: " .. name)
  return {
    --- The next datagram, or nil when none came for `seconds`.
    receive = function(seconds)
      local p = ffi.new("struct prt_spec_poll", { fd = fd, events = POLLIN })
      if C.prt_spec_poll(p, 1, seconds * 1000) ~= 1 then
        return nil
      end
      local buffer = ffi.new "char[2048]"
      local n = C.prt_spec_recv(fd, buffer, 2048, 0)
      return ffi.string(buffer, math.max(0, tonumber(n)))
    end,
    close = function()
      C.prt_spec_close(fd)
    end,
  }
end

return M
