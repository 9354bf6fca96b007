-- json.lua - JSON as the admin API needs it: exact integers, empty arrays, sorted keys.
-- Decoding is cjson's. Encoding is not: Debian's cjson keeps 14 digits, refuses int64 and NaN, and
-- has no empty array.
local cjson = require("cjson").new()
local ffi = require "ffi"

local M = { null = cjson.null }

local MAX_DEPTH = 64
local EXACT = 2 ^ 53

cjson.decode_max_depth(MAX_DEPTH)
cjson.decode_invalid_numbers(false)

local array_mt = {}
local int64, uint64 = ffi.typeof "int64_t", ffi.typeof "uint64_t"

--- Mark a list, so that it is written as [] when it is empty.
function M.array(list)
  return setmetatable(list or {}, array_mt)
end

-- ---- strings ----

-- Length of the well-formed UTF-8 character at `i`, or nil.
local function utf8_at(s, i)
  local a, b = s:byte(i, i + 1)
  local n, low, high = nil, 0x80, 0xbf
  if a < 0x80 then
    return 1
  elseif a >= 0xc2 and a <= 0xdf then
    n = 2
  elseif a >= 0xe0 and a <= 0xef then
    n = 3
    low = a == 0xe0 and 0xa0 or low
    high = a == 0xed and 0x9f or high -- no surrogates
  elseif a >= 0xf0 and a <= 0xf4 then
    n = 4
    low = a == 0xf0 and 0x90 or low
    high = a == 0xf4 and 0x8f or high
  end
  if not n or not b or b < low or b > high then
    return nil
  end
  for k = i + 2, i + n - 1 do
    local c = s:byte(k)
    if not c or c < 0x80 or c > 0xbf then
      return nil
    end
  end
  return n
end

--- The same string; each byte that is not UTF-8 becomes U+FFFD.
function M.utf8(s)
  if not s:find "[\128-\255]" then
    return s
  end
  local out, i = {}, 1
  while i <= #s do
    local n = utf8_at(s, i)
    out[#out + 1] = n and s:sub(i, i + n - 1) or "\239\191\189"
    i = i + (n or 1)
  end
  return table.concat(out)
end

local escapes = { ['"'] = '\\"', ["\\"] = "\\\\", ["\b"] = "\\b", ["\f"] = "\\f", ["\n"] = "\\n",
                  ["\r"] = "\\r", ["\t"] = "\\t" }

local function escape(c)
  return escapes[c] or ("\\u%04x"):format(c:byte())
end

local function quoted(s)
  return '"' .. M.utf8(s):gsub('[%z\1-\31\127"\\]', escape) .. '"'
end

-- ---- numbers ----

--- The shortest text that reads back as the same number; nil for NaN and infinities.
function M.number(v)
  if v ~= v or v == math.huge or v == -math.huge then
    return nil
  end
  if v == math.floor(v) and v > -EXACT and v < EXACT then
    return v == 0 and "0" or ("%.0f"):format(v) -- "-0" is nobody's counter
  end
  for digits = 15, 17 do
    local text = ("%." .. digits .. "g"):format(v)
    if tonumber(text) == v then
      return text
    end
  end
end

local function integer(v)
  if not (ffi.istype(int64, v) or ffi.istype(uint64, v)) then
    error("json: cannot write " .. tostring(v), 0)
  end
  return (tostring(v):gsub("U?LL$", ""))
end

-- ---- tables ----

local write

local function sorted_keys(t)
  local keys, text = {}, {}
  for k in pairs(t) do
    local kind = type(k)
    if kind ~= "string" and kind ~= "number" then
      error("json: a key is a " .. kind, 0)
    end
    local name = tostring(k)
    if text[name] ~= nil then
      error("json: two keys are written " .. name, 0)
    end
    text[name] = k
    keys[#keys + 1] = name
  end
  table.sort(keys)
  return keys, text
end

local function write_array(out, t, depth)
  local n = 0
  for _ in pairs(t) do
    n = n + 1
  end
  if n ~= #t then
    error("json: a list has holes or named fields", 0)
  end
  out[#out + 1] = "["
  for i = 1, n do
    out[#out + 1] = i > 1 and "," or nil
    write(out, t[i], depth)
  end
  out[#out + 1] = "]"
end

local function write_object(out, t, depth)
  local keys, original = sorted_keys(t)
  out[#out + 1] = "{"
  for i = 1, #keys do
    out[#out + 1] = i > 1 and "," or nil
    out[#out + 1] = quoted(keys[i]) .. ":"
    write(out, t[original[keys[i]]], depth)
  end
  out[#out + 1] = "}"
end

function write(out, v, depth)
  local kind = type(v)
  if kind == "string" then
    out[#out + 1] = quoted(v)
  elseif kind == "number" then
    out[#out + 1] = M.number(v) or "null"
  elseif kind == "boolean" then
    out[#out + 1] = tostring(v)
  elseif v == nil or v == M.null then
    out[#out + 1] = "null"
  elseif kind == "cdata" then
    out[#out + 1] = integer(v)
  elseif kind ~= "table" then
    error("json: cannot write a " .. kind, 0)
  elseif depth >= MAX_DEPTH then
    error("json: nested too deep", 0)
  elseif getmetatable(v) == array_mt or #v > 0 then
    write_array(out, v, depth + 1)
  else
    write_object(out, v, depth + 1)
  end
end

--- Text of v. Keys are sorted; a list is a table with [1] or one made by array(). NaN and
--- infinities are null. Errors on what JSON has no word for, on lists with holes and on cycles.
function M.encode(v)
  local out = {}
  write(out, v, 0)
  return table.concat(out)
end

--- The value, or nil, "bad_json", message. null is M.null.
function M.decode(text)
  local ok, v = pcall(cjson.decode, text)
  if not ok then
    return nil, "bad_json", v
  end
  return v
end

return M
