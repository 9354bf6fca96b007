-- sandbox.lua - the environment of a policy: what it may name, and nothing else.
--
-- Policies are written by operators, so this prevents accidents (a forgotten `local`, a call that
-- blocks, a string of a gigabyte), and it closes the doors an attacker would want (ffi, io, load,
-- debug, bytecode). What a policy does inside is bounded by the guard and the memory limit.
local M = {}

M.MAX_REP = 65536 -- longest result of string.rep, in bytes

local BASE = {
  "assert", "error", "ipairs", "next", "pairs", "pcall", "rawequal", "select", "tonumber",
  "tostring", "type", "unpack", "_VERSION",
}
local LIBRARIES = {
  math = {
    "abs", "acos", "asin", "atan", "atan2", "ceil", "cos", "cosh", "deg", "exp", "floor", "fmod",
    "frexp", "huge", "ldexp", "log", "log10", "max", "min", "modf", "pi", "pow", "rad", "random",
    "sin", "sinh", "sqrt", "tan", "tanh",
  },
  string = {
    "byte", "char", "find", "format", "gmatch", "gsub", "len", "lower", "match", "rep", "reverse",
    "sub", "upper",
  },
  table = { "concat", "insert", "maxn", "remove", "sort" },
  bit = {
    "arshift", "band", "bnot", "bor", "bswap", "bxor", "lshift", "rol", "ror", "rshift", "tobit",
    "tohex",
  },
}

--- A view of `t` that can be read and not written.
function M.readonly(t, name)
  return setmetatable({}, {
    __index = t,
    __metatable = false,
    __newindex = function(_, key)
      error(name .. "." .. tostring(key) .. " is read-only", 2)
    end,
  })
end

--- Make the string library of this Lua state safe: methods of strings reach it past any
--- environment.
function M.lock_strings()
  local rep, max = string.rep, M.MAX_REP
  rawset(string, "dump", nil)
  rawset(string, "rep", function(s, n, sep)
    if (#tostring(s) + #tostring(sep or "")) * (tonumber(n) or 0) > max then
      error("string.rep would make more than " .. max .. " bytes", 2)
    end
    return rep(s, n, sep)
  end)
  getmetatable("").__metatable = false
end

local function safe_setmetatable(t, meta)
  if type(meta) == "table" and rawget(meta, "__gc") ~= nil then
    error("__gc is not available to policies", 2)
  end
  return setmetatable(t, meta)
end

-- tables only: a string's or a view's metatable would be a way out
local function safe_getmetatable(t)
  return type(t) == "table" and getmetatable(t) or nil
end

local function copy(from, names)
  local to = {}
  for _, name in ipairs(names) do
    to[name] = from[name]
  end
  return to
end

--- A fresh environment.
--- options.modules: what `require` gives, by name; options.os: the functions of `os`.
function M.env(options)
  local env = copy(_G, BASE)
  local modules = options.modules or {}

  for name, members in pairs(LIBRARIES) do
    local library = name == "bit" and require "bit" or _G[name]
    env[name] = M.readonly(copy(library, members), name)
  end
  env.os = M.readonly(options.os or {}, "os")
  env.setmetatable = safe_setmetatable
  env.getmetatable = safe_getmetatable
  env.require = function(name)
    local module = modules[name]
    if module == nil then
      error("module '" .. tostring(name) .. "' is not available to policies", 2)
    end
    return module
  end
  env._G = M.readonly(env, "_G")
  return setmetatable(env, {
    __metatable = false,
    __index = function(_, key)
      error("undefined variable '" .. tostring(key) .. "'", 2)
    end,
    __newindex = function(_, key)
      error("assignment to global '" .. tostring(key) .. "' (say local)", 2)
    end,
  })
end

--- Compile Lua text (never bytecode) that sees only `env`. nil, message.
function M.compile(source, chunk, env)
  return load(source, "@" .. chunk, "t", env)
end

return M
