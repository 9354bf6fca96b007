-- twin.lua - a client that is there twice: through poolrt and directly at the server. Both send the
-- same bytes and must hear the same.
local wire = require "proxy.wire"
local rig = require "proxy.rig"

local M = {}
local Twin = {}
Twin.__index = Twin

-- Their texts quote the name of a statement, and behind poolrt that may be another.
local NAMES_A_STATEMENT = { ["26000"] = true, ["42P05"] = true }
-- Where in the server's source an error was raised: a Parse of poolrt's may meet it first.
local PLACE = { F = true, L = true, R = true }

local function error_text(kind, body)
  local out = { kind }
  for letter, value in body:gmatch "(%a)([^%z]*)%z" do
    if not PLACE[letter] then
      out[#out + 1] = letter .. value
    end
  end
  local text = table.concat(out, "|")
  return NAMES_A_STATEMENT[text:match "|C(%w+)"] and text:gsub('"[^"]*"', '"?"') or text
end

-- What must be equal of each message; parameters are kept in c.params instead.
local function hear_one(c, out, kind, body)
  if kind == "S" then
    local name, value = body:match "^([^%z]*)%z([^%z]*)%z"
    c.params[name] = value
    return
  elseif kind == "E" or kind == "N" then
    out[#out + 1] = error_text(kind, body)
  else
    out[#out + 1] = kind .. body
  end
  c.status = kind == "Z" and body or c.status
end

-- Up to ReadyForQuery number `ready`, or `count` messages without parameters.
local function hear(c, ready, count)
  local out = {}
  while (ready and ready > 0) or (count and #out < count) do
    local kind, body = c:next()
    if not kind then
      out[#out + 1] = "(" .. body .. ")"
      return out
    end
    hear_one(c, out, kind, body)
    ready = ready and kind == "Z" and ready - 1 or ready
  end
  return out
end

local function printable(list)
  return (table.concat(list, "  "):gsub("[^\32-\126]+", "."))
end

local function first_difference(a, b)
  for i = 1, math.max(#a, #b) do
    if a[i] ~= b[i] then
      return i
    end
  end
end

local function compare(expected, params, pooled, got)
  local at = first_difference(expected, got)
  if at then
    error(("message %d differs\n  direct: %s\n  pooled: %s"):format(at, printable(expected),
      printable(got)), 3)
  end
  for name, value in pairs(params) do
    if pooled.params[name] ~= value then
      error(("%s is told as %q directly and as %q here\n  after %s"):format(name, value,
        tostring(pooled.params[name]), printable(got)), 3)
    end
  end
end

--- A client logged in to that pool of `px`, and directly to its database; further arguments are
--- startup parameters.
function M.login(px, pool, user, ...)
  local direct = assert(wire.login(rig.server().port, user or "acme", "app", ...))
  px.clients[#px.clients + 1] = direct
  local t = setmetatable({ direct = direct, pooled = px:login(pool, user, ...) }, Twin)
  compare({}, direct.params, t.pooled, {})
  t.pooled.status = "I"
  return t
end

--- Sends the bytes (to poolrt in pieces of `step`) and compares the answers up to ReadyForQuery
--- number `ready` (1), or the first `count` messages. Returns them as the direct one heard them.
function Twin:send(bytes, o)
  o = o or {}
  local ready = o.ready or not o.count and 1 or nil
  self.direct:send(bytes)
  self.pooled:send(bytes, o.step)
  local a, b = hear(self.direct, ready, o.count), hear(self.pooled, ready, o.count)
  compare(a, self.direct.params, self.pooled, b)
  return a
end

--- The same for steps of {bytes, count}, but all of them directly first, for what would meet in the
--- database. before(i): called before poolrt gets step i.
function Twin:send_all(steps, step_size, before)
  local told, params = {}, {}
  for i, s in ipairs(steps) do
    told[i], params[i] = hear(self.direct:send(s[1]), nil, s[2]), {}
    for name, value in pairs(self.direct.params) do
      params[i][name] = value
    end
  end
  for i, s in ipairs(steps) do
    before(i)
    self.pooled:send(s[1], step_size)
    compare(told[i], params[i], self.pooled, hear(self.pooled, nil, s[2]))
  end
end

--- One simple query; its answer in words and the first column of its rows.
function Twin:ask(sql)
  local list = {}
  for i, m in ipairs(self:send(wire.query(sql))) do
    list[i] = { m:sub(1, 1), m:sub(2) }
  end
  return wire.words(list), wire.values(list)
end

--- Nothing is left to hear for either.
function Twin:is_quiet()
  return self.direct:is_quiet() and self.pooled:is_quiet()
end

function Twin:drop()
  self.direct:drop()
  self.pooled:drop()
end

return M
