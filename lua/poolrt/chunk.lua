-- chunk.lua - reads config.lua and runs it where it can do no harm.
-- Idea: the file is code of the operator, so the sandbox is against accidents: it sees a short list
-- of functions, text only (no bytecode), and it is stopped when it does not end or needs too much
-- memory. A hook every few instructions watches both; a single step that asks for more than the
-- hook can foresee is refused by the allocator (core/luahost/config.c).
local M = {}

M.max_file = 1024 * 1024
M.max_steps = 10 * 1000 * 1000
M.max_kb = 64 * 1024
M.max_rep = 1024 * 1024

local HOOK_EVERY = 10
-- The chunk's name, replaced by the file's in messages: LuaJIT would cut a long one.
local NAME = "<config>"

local allowed = {
  base = { "assert", "error", "ipairs", "next", "pairs", "pcall", "select", "tonumber", "tostring",
    "type", "unpack" },
  math = { "abs", "ceil", "exp", "floor", "fmod", "huge", "log", "log10", "max", "min", "modf",
    "pi", "pow", "sqrt" },
  string = { "byte", "char", "find", "format", "gmatch", "gsub", "len", "lower", "match", "rep",
    "reverse", "sub", "upper" },
  table = { "concat", "insert", "remove", "sort", "maxn" },
  bit = { "arshift", "band", "bnot", "bor", "bswap", "bxor", "lshift", "rol", "ror", "rshift",
    "tobit", "tohex" },
  os = { "date", "time" },
}

--- The bytes of a file, or nil and why not. kind(path): "file", "directory", "other", or nil and
--- the reason of the system.
function M.read(kind, path)
  local what, why = kind(path)
  if not what then
    return nil, "cannot be read: " .. why
  elseif what == "directory" then
    return nil, "is a directory, not a file"
  end
  local f, problem = io.open(path, "rb")
  if not f then
    return nil, "cannot be read: " .. (problem:match(": ([^:]*)$") or problem)
  end
  local text, reason = f:read(M.max_file + 1)
  f:close()
  if not text and reason then
    return nil, "cannot be read: " .. reason
  end
  text = text or ""
  if #text > M.max_file then
    return nil, "is larger than " .. M.max_file / 1024 ^ 2 .. " MB"
  end
  return text
end

local function pick(from, names)
  local t = {}
  for _, name in ipairs(names) do
    t[name] = from[name]
  end
  return t
end

local function undefined(env, name)
  local shown = tostring(name)
  if _G[name] ~= nil then
    error(("'%s' is not available in a configuration file"):format(shown), 3)
  end
  local near = require("poolrt.settings").nearest(name, env)
  local hint = near and ("; did you mean '%s'?"):format(near) or ""
  error(("'%s' is not defined%s"):format(shown, hint), 3)
end

--- What the chunk sees: the allowed part of the libraries, and `host`'s functions.
function M.env(host)
  local env = pick(_G, allowed.base)
  for _, lib in ipairs { "math", "string", "table", "bit", "os" } do
    env[lib] = pick(lib == "bit" and require "bit" or _G[lib], allowed[lib])
  end
  for name, value in pairs(host) do
    env[name] = value
  end
  return setmetatable(env, {
    __index = function(_, name) undefined(env, name) end,
    __newindex = function(_, name)
      local shown = tostring(name)
      error(("'%s' is not declared; write 'local %s = ...'"):format(shown, shown), 2)
    end,
  })
end

local function limited_rep(rep)
  return function(s, n, sep)
    local step = #tostring(s) + (sep and #tostring(sep) or 0)
    if type(n) == "number" and n * step > M.max_rep then
      error("string.rep makes more than " .. M.max_rep / 1024 ^ 2 .. " MB", 2)
    end
    return rep(s, n, sep)
  end
end

-- The line of the chunk that is running, seen from a function called `level` levels above it.
local function running_line(level)
  local info = debug.getinfo(level, "Sl")
  while info do
    if info.source == "=" .. NAME and info.currentline > 0 then
      return NAME .. ":" .. info.currentline .. ": "
    end
    level = level + 1
    info = debug.getinfo(level, "Sl")
  end
  return NAME .. ": "
end

-- Once over a limit the hook fails at every instruction of the chunk, so a pcall inside it cannot
-- keep it going.
local function watch(state)
  local steps = 0
  local function hook()
    if state.stopped then
      if debug.getinfo(2, "S").source == "=" .. NAME then
        error(state.stopped, 0)
      end
      return
    end
    steps = steps + HOOK_EVERY
    local why
    if steps > M.max_steps then
      why = ("does not end: stopped after %d million steps"):format(M.max_steps / 1e6)
    elseif collectgarbage "count" > M.max_kb then
      collectgarbage()
      if collectgarbage "count" > M.max_kb then
        why = ("needs more than %d MB of memory"):format(M.max_kb / 1024)
      end
    end
    if why then
      state.stopped = running_line(3) .. why
      debug.sethook(hook, "", 1)
      error(state.stopped, 0)
    end
  end
  return hook
end

local function named(message, path)
  if type(message) ~= "string" then
    message = "error() was called with a " .. type(message)
  elseif message == "not enough memory" then -- without a line: LuaJIT has no room to ask for one
    message = "needs too much memory"
  end
  if message:sub(1, #NAME) ~= NAME then
    message = NAME .. ": " .. message
  end
  return (message:gsub(NAME, function() return path end))
end

-- Some messages of LuaJIT have no line, "stack overflow" for one.
local function with_line(message)
  if type(message) == "string" and message:sub(1, #NAME) ~= NAME then
    return running_line(3) .. message
  end
  return message
end

local function guarded(chunk)
  local state = {}
  local rep = string.rep
  -- in the library itself, as ("x"):rep(n) comes there too
  string.rep = limited_rep(rep) -- luacheck: ignore 122
  debug.sethook(watch(state), "", HOOK_EVERY)
  local ok, result = xpcall(chunk, with_line)
  debug.sethook()
  string.rep = rep -- luacheck: ignore 122
  if state.stopped then
    return false, state.stopped
  end
  return ok, result
end

--- Run `text` (of the file `path`) with the globals `env`. true and what it returned, or false and
--- a sentence with the file and, where there is one, the line.
function M.run(text, path, env)
  if text:byte(1) == 27 then
    return false, path .. ": is compiled Lua; only text is accepted"
  end
  local chunk, problem = load(text, "=" .. NAME, "t", env)
  if not chunk then
    return false, named(problem, path)
  end
  jit.off(chunk, true) -- compiled code would not see the hook
  local ok, result = guarded(chunk)
  if not ok then
    return false, named(result, path)
  end
  return true, result
end

return M
