-- check.lua - the words in which config.lua's checks are written: walk a table, take its values,
-- fail and say where.
-- Idea: a failure is thrown as { place = path, text = sentence }, so a check reads as what must
-- hold. A path is a list of keys. cx is the load under way; core/luahost/config.c gives cx.host.
local chunk = require "poolrt.chunk"
local settings = require "poolrt.settings"

local M = {}

-- ---- failing, and walking a table ----

function M.fail(path, text, ...)
  error({ place = path, text = select("#", ...) > 0 and text:format(...) or text }, 0)
end

function M.at(path, key)
  local copy = { unpack(path) }
  copy[#copy + 1] = key
  return copy
end

function M.place_text(path)
  local text = ""
  for _, key in ipairs(path) do
    if type(key) == "number" then
      text = ("%s[%d]"):format(text, key)
    elseif type(key) == "string" and key:find("^[%a_][%w_.]*$") then
      text = text == "" and key or text .. "." .. key
    else
      text = ("%s[%s]"):format(text, settings.show(key))
    end
  end
  return text
end

function M.sorted_keys(t)
  local keys = {}
  for key in pairs(t) do
    keys[#keys + 1] = key
  end
  table.sort(keys, function(a, b)
    if type(a) == type(b) and (type(a) == "number" or type(a) == "string") then
      return a < b
    end
    return type(a) .. tostring(a) < type(b) .. tostring(b)
  end)
  return keys
end

function M.want_table(value, path, example)
  if type(value) ~= "table" then
    M.fail(path, "must be a table such as %s, but is %s", example, settings.show(value))
  end
  return value
end

--- The values of `t` by canonical name, and a function that gives the place of one as written.
--- names: spelling -> canonical name. hints: key -> why it is not here.
function M.take(t, path, names, hints)
  local got, spelled = {}, {}
  for _, key in ipairs(M.sorted_keys(t)) do
    local name = names[key]
    if not name then
      local near = settings.nearest(key, names)
      local hint = hints and hints[key] or near and ("did you mean %s?"):format(near)
      if type(key) == "number" then
        M.fail(M.at(path, key), "a value without a name is not known here")
      end
      M.fail(M.at(path, key), "is not known%s", hint and "; " .. hint or "")
    end
    if got[name] ~= nil then
      M.fail(M.at(path, key), "means the same as %s, which is given too; keep one", spelled[name])
    end
    got[name], spelled[name] = t[key], key
  end
  return got, function(name)
    return M.at(path, spelled[name] or name)
  end
end

function M.set_of(...)
  return settings.spellings({ ... })
end

-- ---- single values ----

-- Never shows the value: it may be a secret.
function M.text(value, path)
  if type(value) ~= "string" then
    M.fail(path, "must be a string, but is a %s", type(value))
  elseif value == "" then
    M.fail(path, "must not be empty")
  elseif value:find("\0", 1, true) then
    M.fail(path, "must not contain a NUL byte")
  end
  return value
end

function M.optional_text(value, path)
  return value ~= nil and M.text(value, path) or nil
end

function M.name(cx, value, path)
  if #M.text(value, path) > cx.host.name_max then
    M.fail(path, "must be at most %d bytes long, as PostgreSQL's names are", cx.host.name_max)
  end
  return value
end

--- One of the names of an enum of C; its number there.
function M.choice(cx, enum, value, path)
  local names = cx.host.enums[enum]
  for i, word in ipairs(names) do
    if word == value then
      return i - 1
    end
  end
  M.fail(path, 'must be one of "%s", but is %s', table.concat(names, '", "'), settings.show(value))
end

function M.setting(row, value, path)
  local parsed, why = settings.parse(row, value)
  if parsed == nil then
    M.fail(path, "%s", why)
  end
  return parsed
end

function M.boolean(value, path, default)
  if value == nil then
    return default
  end
  return M.setting({ type = "BOOL" }, value, path)
end

function M.resolve(cx, file)
  if file:sub(1, 1) == "/" then
    return file
  end
  local dir = cx.host.dir
  while true do
    local rest = file:match("^%./+(.*)$")
    local up = file:match("^%.%./+(.*)$")
    if rest then
      file = rest
    elseif up and dir ~= "/" then
      dir, file = dir:match("^(.*)/[^/]*$"), up -- dir has no symbolic link in it: C resolved it
      dir = dir == "" and "/" or dir
    else
      return (dir == "/" and "" or dir) .. "/" .. file
    end
  end
end

--- A file that C or a library will read later: it has to be readable now.
function M.readable(cx, value, path)
  local file = M.resolve(cx, M.text(value, path))
  local _, why = chunk.read(cx.host.kind, file)
  if why then
    M.fail(path, "%s %s", file, why)
  end
  return file
end

return M
