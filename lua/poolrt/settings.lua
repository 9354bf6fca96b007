-- settings.lua - what a setting may be: units, ranges, other spellings, the nearest known name.
-- Idea: the rows come from core/base/settings.def through C (or a spec), so nothing that stands
-- there is said again here. A row: { scope, name, type, default, min, max, reload, help }.
local M = {}

local SEC = 1e6
local time_units = {
  us = 1, ms = 1e3, s = SEC, sec = SEC, min = 60 * SEC, h = 3600 * SEC, d = 86400 * SEC,
}
local size_units = { b = 1, kb = 1024, mb = 1024 ^ 2, gb = 1024 ^ 3 }

--- Other spellings that are accepted for a key: those of the REST API, of other pools' documents
--- and of the environment variables that set the same thing.
M.aliases = {
  pool = {
    min_size = { "min_connections", "MinConnections", "DB_MIN_CONNECTIONS" },
    max_size = { "max_connections", "MaxConnections", "DB_MAX_CONNECTIONS" },
    acquire_timeout = { "acquire_timeout_sec", "acquire_timeout_secs", "connection_timeout",
      "connection_timeout_sec", "ConnectionTimeout", "DB_ACQUIRE_TIMEOUT_SECS" },
    connect_timeout = { "connect_timeout_sec", "connect_timeout_secs", "DB_CONNECT_TIMEOUT_SECS" },
    idle_timeout = { "idle_timeout_sec", "idle_timeout_secs", "MaxIdleTime",
      "DB_IDLE_TIMEOUT_SECS" },
    max_lifetime = { "max_lifetime_sec", "max_lifetime_secs", "MaxLifetime",
      "DB_MAX_LIFETIME_SECS" },
    maintenance_interval = { "maintenance_interval_sec" },
    validation_timeout = { "validation_timeout_sec" },
    leak_detection_threshold = { "leak_detection_threshold_sec" },
    target = { "database_url", "DATABASE_URL" },
  },
  partition = {
    min_connections = { "min_size" },
    max_connections = { "max_size" },
    max_wait_queue = { "max_wait_queue_size" },
  },
  top = {},
}

--- A word of a setting that stands for a number.
local words = { workers = { auto = 0 } }

--- Map of every accepted spelling to its canonical name.
function M.spellings(names, aliases)
  local map = {}
  for _, name in ipairs(names) do
    map[name] = name
    for _, alias in ipairs(aliases and aliases[name] or {}) do
      map[alias] = name
    end
  end
  return map
end

-- Edit distance in which two swapped neighbours count once; rows of the table are reused.
local function distance(a, b)
  local before, row = {}, {}
  for j = 0, #b do
    row[j] = j
  end
  for i = 1, #a do
    local older = before
    before, row = row, { [0] = i }
    for j = 1, #b do
      local cost = a:byte(i) == b:byte(j) and 0 or 1
      local best = math.min(before[j] + 1, row[j - 1] + 1, before[j - 1] + cost)
      if i > 1 and j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j) then
        best = math.min(best, older[j - 2] + 1)
      end
      row[j] = best
    end
  end
  return row[#b]
end

--- The name that was probably meant, or nil when none is near. `names` is a map keyed by name.
function M.nearest(word, names)
  if type(word) ~= "string" or #word > 64 then
    return nil
  end
  local best, best_cost = nil, math.max(2, math.floor(#word / 3)) + 1
  for name in pairs(names) do
    if type(name) == "string" then
      local cost = distance(word:lower(), name:lower())
      -- among equals the first in the alphabet, so that a message does not change from run to run
      if cost < best_cost or (cost == best_cost and best and name < best) then
        best, best_cost = name, cost
      end
    end
  end
  return best
end

--- A value for a message. Not for secrets.
function M.show(value)
  if type(value) == "string" then
    local cut = #value > 40 and value:sub(1, 40) .. "..." or value
    return '"' .. cut:gsub("%c", "?") .. '"'
  elseif type(value) == "number" or type(value) == "boolean" or value == nil then
    return tostring(value)
  end
  return "a " .. type(value)
end

local function with_unit(n, units)
  for _, unit in ipairs(units) do
    if n ~= 0 and n % unit[2] == 0 then
      return ("%.14g%s"):format(n / unit[2], unit[1])
    end
  end
  return "0"
end

--- 90000000 (microseconds) is "90s", 3600000000 "1h".
function M.time_text(us)
  return with_unit(us, { { "d", 86400 * SEC }, { "h", 3600 * SEC }, { "min", 60 * SEC },
    { "s", SEC }, { "ms", 1e3 }, { "us", 1 } })
end

function M.size_text(bytes)
  return with_unit(bytes, { { "GB", 1024 ^ 3 }, { "MB", 1024 ^ 2 }, { "kB", 1024 }, { "B", 1 } })
end

-- env() gives strings, so a number in a string is as good as the number
local function number(value)
  if type(value) == "string" and value:find("^%-?%d+%.?%d*$") then
    value = tonumber(value)
  end
  if type(value) == "number" and value == value and math.abs(value) < 2 ^ 53 then
    return value
  end
end

local function whole(value)
  local n = number(value)
  return n and n == math.floor(n) and n or nil
end

local function united(value, units, plain)
  local n = number(value)
  if n then
    return n * plain
  end
  if type(value) ~= "string" then
    return nil
  end
  local digits, unit = value:match("^(%d+%.?%d*)%s*(%a+)$")
  local scale = unit and units[unit:lower()]
  -- a number of units beyond exact integers is out of every range anyway
  return scale and math.min(tonumber(digits) * scale, 2 ^ 53) or nil
end

local function flag(value)
  if type(value) == "boolean" then
    return value
  elseif value == "true" or value == "on" then
    return true
  elseif value == "false" or value == "off" then
    return false
  end
end

local kinds = {
  INT = { read = whole, what = "a whole number", text = function(n) return ("%.0f"):format(n) end },
  TIME = {
    read = function(value)
      local us = united(value, time_units, SEC)
      return us and math.floor(us + 0.5)
    end,
    what = 'a time such as 30 (seconds), "250ms", "5min", "1h" or "2d"',
    text = M.time_text,
  },
  BYTES = {
    read = function(value)
      local n = united(value, size_units, 1)
      return n and n == math.floor(n) and n or nil
    end,
    what = 'a size such as 65536, "64kB" or "1MB"',
    text = M.size_text,
  },
}
kinds.TIME0 = {
  read = function(value)
    if value == false or value == "off" then
      return 0
    end
    return kinds.TIME.read(value)
  end,
  what = kinds.TIME.what .. ', or "off"',
  text = M.time_text,
}

--- The value in the unit of the C field, or nil and what is wrong with it.
function M.parse(row, value)
  if row.type == "BOOL" then
    local b = flag(value)
    if b == nil then
      return nil, "must be true or false, but is " .. M.show(value)
    end
    return b
  end
  local word = words[row.name]
  if word and word[value] then
    return word[value]
  end
  local kind = kinds[row.type]
  local n = kind.read(value)
  if not n then
    local or_word = word and (', or "%s"'):format((next(word))) or ""
    return nil, ("must be %s%s, but is %s"):format(kind.what, or_word, M.show(value))
  end
  if n < row.min or n > row.max then
    return nil, ("must be from %s to %s, but is %s"):format(kind.text(row.min), kind.text(row.max),
      M.show(value))
  end
  return n
end

--- The default in the form in which a person would write it.
function M.default_text(row)
  if row.type == "BOOL" then
    return tostring(row.default)
  elseif row.type == "TIME0" and row.default == 0 then
    return '"off"'
  elseif words[row.name] then
    for word, n in pairs(words[row.name]) do
      if n == row.default then
        return '"' .. word .. '"'
      end
    end
  end
  local text = kinds[row.type].text(row.default)
  return text:find("%a") and '"' .. text .. '"' or text
end

return M
