-- locate.lua - on which line of config.lua a key is written.
-- Idea: the values have lost their lines by the time they are checked, so the text is read once
-- more: a small lexer follows braces and `key =`, and notes each key with the keys around it. A
-- place such as pools.app.max_size is then looked up whole, else by its longest common end, so that
-- `local app = { ... }` outside the returned table is found by app.max_size. When two lines fit
-- equally well none is named: no line is better than a wrong one. (A parser with positions would be
-- exact, and 20 times the size.)
local M = {}

local function skip_long(text, at, level)
  local _, stop = text:find("]" .. ("="):rep(level) .. "]", at, true)
  return stop and stop + 1 or #text + 1
end

local function skip_quoted(text, at, quote)
  while at <= #text do
    local c = text:sub(at, at)
    if c == "\\" then
      at = at + 2
    elseif c == quote or c == "\n" then
      return at + 1
    else
      at = at + 1
    end
  end
  return at
end

-- Next token at or after `at`: kind ("name", "string", "number" or the character), value, position
-- of its start, position behind it. nil at the end.
local function token(text, at)
  while true do
    at = text:find("%S", at)
    if not at then
      return nil
    end
    if text:sub(at, at + 1) ~= "--" then
      break
    end
    local level = text:match("^%-%-%[(=*)%[", at)
    at = level and skip_long(text, at, #level) or (text:find("\n", at, true) or #text + 1)
  end
  local c = text:sub(at, at)
  if c:find("[%a_]") then
    local word = text:match("^[%w_]+", at)
    return "name", word, at, at + #word
  elseif c:find("%d") then
    local word = text:match("^[%w.]+", at)
    return "number", tonumber(word), at, at + #word
  elseif c == '"' or c == "'" then
    local stop = skip_quoted(text, at + 1, c)
    return "string", text:sub(at + 1, stop - 2), at, stop
  end
  local level = text:match("^%[(=*)%[", at)
  if level then
    return "string", nil, at, skip_long(text, at, #level)
  end
  local two = text:sub(at, at + 1)
  if two == "==" or two == "~=" or two == "<=" or two == ">=" or two == ".." then
    return two, nil, at, at + 2
  end
  return c, nil, at, at + 1
end

local function tokens(text)
  local list, line, seen, at = {}, 1, 1, 1
  while true do
    local kind, value, start, stop = token(text, at)
    if not kind then
      return list
    end
    local _, newlines = text:sub(seen, start - 1):gsub("\n", "")
    line, seen, at = line + newlines, start, stop
    list[#list + 1] = { kind = kind, value = value, line = line }
  end
end

local function is(t, kind)
  return t and t.kind == kind
end

local function joined(path, key)
  local copy = {}
  for i, k in ipairs(path) do
    copy[i] = k
  end
  copy[#copy + 1] = key
  return copy
end

-- In a table: `key =`, `[key] =` or a value by position; the key, and how many tokens name it.
local function item_key(list, i, ctx)
  if is(list[i], "name") and is(list[i + 1], "=") then
    return list[i].value, 2
  end
  if is(list[i], "[") and is(list[i + 2], "]") and is(list[i + 3], "=") then
    return list[i + 1].value, 4
  end
  ctx.count = ctx.count + 1
  return ctx.count, 0
end

-- Outside a table: `name =` or `a.b.c =` begins the path of what follows.
local function statement_path(list, i)
  if not is(list[i], "name") or is(list[i - 1], ".") then
    return nil
  end
  local path = { list[i].value }
  while is(list[i + 1], ".") and is(list[i + 2], "name") do
    i = i + 2
    path[#path + 1] = list[i].value
  end
  return is(list[i + 1], "=") and path or nil
end

--- All keys of the text: a list of { path = { "pools", "app", "max_size" }, line = 12 }.
function M.keys(text)
  local list, found, stack = tokens(text), {}, {}
  local ctx = { path = {}, is_table = false }
  local i = 1
  while i <= #list do
    local t = list[i]
    if ctx.is_table and not ctx.item and t.kind ~= "}" and t.kind ~= "," and t.kind ~= ";" then
      local key, width = item_key(list, i, ctx)
      ctx.item = joined(ctx.path, key)
      found[#found + 1] = { path = ctx.item, line = t.line }
      i = i + width
      t = list[i] or { kind = "}" }
    elseif #stack == 0 then
      if is(t, "name") and (t.value == "return" or t.value == "local") then
        ctx.path = {}
      end
      ctx.path = statement_path(list, i) or ctx.path
    end
    if t.kind == "{" or t.kind == "(" then
      stack[#stack + 1] = ctx
      ctx = { path = ctx.item or ctx.path, is_table = t.kind == "{", count = 0 }
    elseif (t.kind == "}" or t.kind == ")") and #stack > 0 then
      ctx = table.remove(stack)
    elseif t.kind == "," or t.kind == ";" then
      ctx.item = nil
    end
    i = i + 1
  end
  return found
end

local function without_last(path)
  return { unpack(path, 1, #path - 1) }
end

local function path_id(path)
  local parts = {}
  for i, key in ipairs(path) do
    parts[i] = type(key) .. ":" .. tostring(key)
  end
  return table.concat(parts, "\0")
end

--- The keys of a text, read once, for M.line.
function M.index(text)
  local index = { lines = {}, has_keys = {}, by_last = {} }
  for _, entry in ipairs(M.keys(text)) do
    local id, last = path_id(entry.path), entry.path[#entry.path]
    index.lines[id] = index.lines[id] or entry.line
    index.has_keys[path_id(without_last(entry.path))] = true
    if last ~= nil then
      index.by_last[last] = index.by_last[last] or {}
      table.insert(index.by_last[last], entry)
    end
  end
  return index
end

local function common_end(a, b)
  local n = 0
  while n < #a and n < #b and a[#a - n] == b[#b - n] do
    n = n + 1
  end
  return n
end

-- The line of the only path that has most keys at its end in common with `path`.
local function by_end(index, path)
  local best, line = 0, nil
  for _, entry in ipairs(index.by_last[path[#path]] or {}) do
    local n = common_end(entry.path, path)
    if n > best then
      best, line = n, entry.line
    elseif n == best and line ~= entry.line then
      line = nil
    end
  end
  return best > 0, line
end

--- The line of the key at `path`, or of the table around it when the key itself is not written; nil
--- when the text does not tell.
function M.line(index, path)
  while #path > 0 do
    local line = index.lines[path_id(path)]
    if line then
      return line
    end
    local parent = without_last(path)
    if not index.has_keys[path_id(parent)] or #parent == 0 then
      local some, elsewhere = by_end(index, path)
      if some then
        return elsewhere
      end
    end
    path = parent
  end
end

return M
