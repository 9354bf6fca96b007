-- wire.lua - the PostgreSQL protocol by hand, for specs that must send exactly these bytes: a
-- client, and a server that plays whatever the spec tells it to. Every wait has a deadline.
local ffi = require "ffi"
local bit = require "bit"

-- names of their own, so that other specs may declare the same functions as they like
ffi.cdef [[
  struct wire_addr { uint16_t family; uint16_t port; uint8_t addr[4]; uint8_t zero[8]; };
  struct wire_pollfd { int fd; short events, revents; };
  struct wire_timespec { long s, ns; };
  struct wire_linger { int on, seconds; };
  int wire_socket(int, int, int) __asm__("socket");
  int wire_connect(int, const void *, unsigned) __asm__("connect");
  int wire_bind(int, const void *, unsigned) __asm__("bind");
  int wire_listen(int, int) __asm__("listen");
  int wire_accept(int, void *, unsigned *) __asm__("accept");
  int wire_getsockname(int, void *, unsigned *) __asm__("getsockname");
  int wire_setsockopt(int, int, int, const void *, unsigned) __asm__("setsockopt");
  long wire_send(int, const void *, size_t, int) __asm__("send");
  long wire_recv(int, void *, size_t, int) __asm__("recv");
  int wire_shutdown(int, int) __asm__("shutdown");
  int wire_close(int) __asm__("close");
  int wire_poll(struct wire_pollfd *, unsigned long, int) __asm__("poll");
  int wire_clock_gettime(int, struct wire_timespec *) __asm__("clock_gettime");
]]

local C = ffi.C
local M = {}
local Conn = {}
Conn.__index = Conn

local NOSIGNAL, DONTWAIT, PEEK = 0x4000, 0x40, 2
local POLLIN, POLLOUT, EAGAIN = 1, 4, 11
local SECONDS = 15 -- how long anything may take before the spec fails
local ROOM = 65536
local room = ffi.new("uint8_t[?]", ROOM)
local char = string.char

--- Monotonic seconds.
function M.now()
  local t = ffi.new "struct wire_timespec"
  C.wire_clock_gettime(1, t)
  return tonumber(t.s) + tonumber(t.ns) / 1e9
end

--- While one of several conversations has its turn (spec/proxy/lanes.lua): waits for `events` of
--- the descriptor without holding up the others. nil: nobody else is there.
M.waiter = nil

local function poll(fd, events, seconds)
  if M.waiter then
    return M.waiter(fd, events, seconds)
  end
  local p = ffi.new("struct wire_pollfd", { fd = fd, events = events })
  return C.wire_poll(p, 1, math.max(0, math.ceil(seconds * 1000))) > 0
end

--- Waits `seconds` at most until check() is true; returns its result.
function M.eventually(check, seconds)
  local deadline = M.now() + (seconds or SECONDS)
  repeat
    local got = check()
    if got then
      return got
    end
    poll(-1, 0, 0.01)
  until M.now() > deadline
  return false
end

-- ---- numbers and messages ----

function M.u16(n)
  return char(bit.band(bit.rshift(n, 8), 255), bit.band(n, 255))
end

function M.u32(n)
  return char(bit.band(bit.rshift(n, 24), 255), bit.band(bit.rshift(n, 16), 255),
    bit.band(bit.rshift(n, 8), 255), bit.band(n, 255))
end

function M.get32(s, at)
  local a, b, c, d = s:byte(at, at + 3)
  return ((a * 256 + b) * 256 + c) * 256 + d
end

function M.unhex(hex)
  return (hex:gsub("%x%x", function(x) return char(tonumber(x, 16)) end))
end

function M.message(kind, body)
  return kind .. M.u32(#(body or "") + 4) .. (body or "")
end

local message, u16, u32 = M.message, M.u16, M.u32

--- The packet that begins a session; pairs of name and value, in this order.
function M.startup(...)
  local body = u32(196608) .. table.concat({ ... }, "\0") .. "\0\0"
  return u32(#body + 4) .. body
end

function M.query(sql) return message("Q", sql .. "\0") end
function M.parse(name, sql) return message("P", name .. "\0" .. sql .. "\0\0\0") end

--- Values of the parameters as text; false: NULL.
function M.bind(portal, name, ...)
  local out = { portal, "\0", name, "\0", u16(0), u16(select("#", ...)) }
  for _, v in ipairs { ... } do
    out[#out + 1] = v and u32(#v) .. v or "\255\255\255\255"
  end
  out[#out + 1] = u16(0)
  return message("B", table.concat(out))
end

function M.describe(kind, name) return message("D", kind .. name .. "\0") end
function M.execute(portal, limit) return message("E", portal .. "\0" .. u32(limit or 0)) end
function M.close(kind, name) return message("C", kind .. name .. "\0") end
M.sync, M.flush, M.terminate = message "S", message "H", message "X"

--- The extended form of one statement, without its Sync.
function M.batch(sql)
  return M.parse("", sql) .. M.bind("", "") .. M.describe("P", "") .. M.execute ""
end

function M.ready(status) return message("Z", status or "I") end
function M.complete(tag) return message("C", tag .. "\0") end
function M.param(name, value) return message("S", name .. "\0" .. value .. "\0") end

function M.row(...)
  local out = { u16(select("#", ...)) }
  for _, v in ipairs { ... } do
    out[#out + 1] = u32(#v) .. v
  end
  return message("D", table.concat(out))
end

--- Fields of an ErrorResponse or NoticeResponse by their letters.
function M.fields(body)
  local out = {}
  for letter, value in body:gmatch "(%a)([^%z]*)%z" do
    out[letter] = value
  end
  return out
end

--- The columns of a DataRow; nil for NULL.
function M.columns(body)
  local n, at, out = body:byte(1) * 256 + body:byte(2), 3, {}
  for i = 1, n do
    local len = M.get32(body, at)
    at = at + 4
    if len ~= 4294967295 then
      out[i] = body:sub(at, at + len - 1)
      at = at + len
    end
  end
  return out
end

--- One message in words: its type, and what it must have in common with a recorded one.
function M.word(kind, body)
  if kind == "E" or kind == "N" then
    local f = M.fields(body)
    return kind .. ":" .. (f.V or f.S or "") .. ":" .. (f.C or "")
  elseif kind == "C" or kind == "Z" then
    return kind .. ":" .. body:gsub("%z", "")
  end
  return kind
end

-- ---- connections ----

local function address(port)
  local sa = ffi.new("struct wire_addr", { family = 2 })
  sa.port = math.floor(port / 256) + port % 256 * 256
  sa.addr[0], sa.addr[3] = 127, 1
  return sa
end

local function new(fd)
  local one = ffi.new("int[1]", 1)
  C.wire_setsockopt(fd, 6, 1, one, 4) -- TCP_NODELAY: what is sent singly shall arrive singly
  return setmetatable({ fd = fd, buf = "", params = {} }, Conn)
end

local tracked

--- From here on, connections are remembered, for drop_tracked() to end those that a failure left.
function M.track()
  tracked = {}
end

function M.drop_tracked()
  for _, c in ipairs(tracked) do
    c:drop()
  end
  tracked = nil
end

function M.connect(port)
  local sa, fd = address(port), C.wire_socket(2, 0x80001, 0)
  assert(fd >= 0, "no socket")
  if C.wire_connect(fd, sa, ffi.sizeof(sa)) ~= 0 then
    C.wire_close(fd)
    error("cannot connect to port " .. port, 2)
  end
  local c = new(fd)
  if tracked then
    tracked[#tracked + 1] = c
  end
  return c
end

function Conn:wait(events, seconds)
  return poll(self.fd, events, seconds)
end

--- Sends all of it, or as much as the peer takes before it closes; step: bytes per send().
function Conn:send(bytes, step)
  local deadline, at = M.now() + SECONDS, 0
  while at < #bytes and M.now() < deadline do
    local n = C.wire_send(self.fd, ffi.cast("const char *", bytes) + at,
      math.min(step or #bytes, #bytes - at), NOSIGNAL + DONTWAIT)
    if n > 0 then
      at = at + tonumber(n)
    elseif ffi.errno() ~= EAGAIN then
      break
    else
      self:wait(POLLOUT, deadline - M.now())
    end
  end
  self.sent_all = at == #bytes
  return self
end

-- Reads once into the buffer; false: the peer closed, or the deadline passed.
function Conn:more(deadline)
  if self.ended then
    return false
  end
  if not self:wait(POLLIN, deadline - M.now()) then
    return false
  end
  local n = C.wire_recv(self.fd, room, ROOM, DONTWAIT)
  if n > 0 then
    self.buf = self.buf .. ffi.string(room, n)
    return true
  elseif n < 0 and ffi.errno() == EAGAIN then
    return true
  end
  self.ended = n == 0 and "closed" or "reset"
  return false
end

--- The next n bytes, or nil and why not: "closed", "reset", "timeout".
function Conn:take(n, seconds)
  local deadline = M.now() + (seconds or SECONDS)
  while #self.buf < n do
    if not self:more(deadline) then
      return nil, self.ended or "timeout"
    end
  end
  local out = self.buf:sub(1, n)
  self.buf = self.buf:sub(n + 1)
  return out
end

--- The next message: type and body; nil and why not.
function Conn:next(seconds)
  local deadline = M.now() + (seconds or SECONDS)
  while #self.buf < 5 or #self.buf < M.get32(self.buf, 2) + 1 do
    if not self:more(deadline) then
      return nil, self.ended or "timeout"
    end
  end
  local size = M.get32(self.buf, 2) + 1
  local kind, body = self.buf:sub(1, 1), self.buf:sub(6, size)
  self.buf = self.buf:sub(size + 1)
  return kind, body
end

--- Messages as a list of {type, body} up to ReadyForQuery number n (1), or whatever ended it, which
--- is the second result.
function Conn:until_ready(n, seconds)
  local list, deadline, left = {}, M.now() + (seconds or SECONDS), n or 1
  while left > 0 do
    local kind, body = self:next(deadline - M.now())
    if not kind then
      return list, body
    end
    list[#list + 1] = { kind, body }
    left = left - (kind == "Z" and 1 or 0)
  end
  return list
end

--- All messages until the peer closes.
function Conn:until_end(seconds)
  local list, deadline = {}, M.now() + (seconds or SECONDS)
  while true do
    local kind, body = self:next(deadline - M.now())
    if not kind then
      return list, body
    end
    list[#list + 1] = { kind, body }
  end
end

--- Does the peer close, and without another byte?
function Conn:is_closed_silently(seconds)
  local byte, why = self:take(1, seconds)
  return byte == nil and why ~= "timeout", why or "a byte"
end

--- Nothing came, and it is still open (looked at now).
function Conn:is_quiet()
  if #self.buf > 0 or self.ended then
    return false
  end
  return C.wire_recv(self.fd, room, 1, DONTWAIT + PEEK) < 0 and ffi.errno() == EAGAIN
end

function Conn:half_close()
  C.wire_shutdown(self.fd, 1)
end

function Conn:drop()
  if self.fd then
    C.wire_close(self.fd)
    self.fd = nil
  end
end

--- Ends by RST.
function Conn:reset()
  local l = ffi.new("struct wire_linger", { 1, 0 })
  C.wire_setsockopt(self.fd, 1, 13, l, ffi.sizeof(l))
  self:drop()
end

--- Words of a list of messages. Runs of rows count as one; parameters and notices are left out.
function M.words(list)
  local out = {}
  for _, m in ipairs(list) do
    local w = M.word(m[1], m[2])
    local is_row = (w == "D" or w == "d") and out[#out] == w
    if not is_row and m[1] ~= "S" and m[1] ~= "N" and m[1] ~= "K" then
      out[#out + 1] = w
    end
  end
  return table.concat(out, " ")
end

--- First column of each row in the list.
function M.values(list)
  local out = {}
  for _, m in ipairs(list) do
    if m[1] == "D" then
      out[#out + 1] = M.columns(m[2])[1]
    end
  end
  return out
end

--- A session over trust: logged in, parameters and cancel key kept. nil and the messages if
--- refused.
function M.login(port, user, database, ...)
  local c = M.connect(port)
  c:send(M.startup("user", user, "database", database, ...))
  local list = c:until_ready()
  for _, m in ipairs(list) do
    if m[1] == "S" then
      local name, value = m[2]:match "^([^%z]*)%z([^%z]*)%z"
      c.params[name] = value
    elseif m[1] == "K" then
      c.key = m[2]
    end
  end
  if #list == 0 or list[#list][1] ~= "Z" then
    c:drop()
    return nil, list
  end
  return c
end

--- Sends one simple query and returns its answer's words and the first column of its rows.
function Conn:ask(sql, seconds)
  self:send(M.query(sql))
  local list, why = self:until_ready(1, seconds)
  return M.words(list) .. (why and " " .. why or ""), M.values(list), list
end

--- The only value of a query's answer.
function Conn:one(sql)
  local words, values = self:ask(sql)
  if not words:find "^T D C:SELECT 1 Z" and not words:find "^T D C:SHOW Z" then
    error(sql .. ": " .. words, 2)
  end
  return values[1]
end

--- A cancel request for that session; returns when poolrt has closed it.
function M.cancel(port, key)
  local c = M.connect(port)
  c:send(u32(#key + 8) .. u32(80877102) .. key)
  local ok, why = c:is_closed_silently()
  c:drop()
  return ok, why
end

-- ---- a server ----

local Server = {}
Server.__index = Server

function M.listen()
  local sa, fd = address(0), C.wire_socket(2, 0x80001, 0)
  local n = ffi.new("unsigned[1]", ffi.sizeof(sa))
  assert(fd >= 0 and C.wire_bind(fd, sa, ffi.sizeof(sa)) == 0 and C.wire_listen(fd, 64) == 0)
  C.wire_getsockname(fd, sa, n)
  local port = bit.rshift(sa.port, 8) + bit.band(sa.port, 255) * 256
  return setmetatable({ fd = fd, port = port }, Server)
end

--- The next connection, or nil when none comes in time.
function Server:accept(seconds)
  local p = ffi.new("struct wire_pollfd", { fd = self.fd, events = POLLIN })
  if C.wire_poll(p, 1, math.ceil((seconds or SECONDS) * 1000)) <= 0 then
    return nil
  end
  local fd = C.wire_accept(self.fd, nil, nil)
  return fd >= 0 and new(fd) or nil
end

--- Reads the startup packet, having refused encryption; nil for a cancel request.
function Conn:read_startup()
  for _ = 1, 3 do
    local head = self:take(4)
    local body = head and self:take(M.get32(head, 1) - 4)
    if not body then
      return nil
    end
    local code = M.get32(body, 1)
    if code == 80877102 then
      self.cancel_key = body:sub(5)
      return nil
    elseif code ~= 80877103 and code ~= 80877104 then
      return body
    end
    self:send "N"
  end
end

M.WELCOME = message("R", u32(0)) .. M.param("server_version", "15.0")
  .. M.param("client_encoding", "UTF8") .. M.param("TimeZone", "UTC")
  .. M.param("DateStyle", "ISO, MDY") .. M.param("standard_conforming_strings", "on")
  .. message("K", u32(4711) .. u32(815)) .. message("Z", "I")

--- A connection that is logged in as a server with nothing to hide. A cancel request on the way is
--- counted and closed.
function Server:accept_login(seconds)
  local deadline = M.now() + (seconds or SECONDS)
  while M.now() < deadline do
    local s = self:accept(deadline - M.now())
    if not s then
      return nil
    end
    if s:read_startup() then
      return s:send(M.WELCOME)
    end
    self.cancels = (self.cancels or 0) + (s.cancel_key and 1 or 0)
    s:drop()
  end
end

function Server:drop()
  C.wire_close(self.fd)
end

return M
