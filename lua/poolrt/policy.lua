-- policy.lua - loads one policy file into one Lua state: checks what it returns, checks its
-- settings, wraps its hooks. Runs in each policy's state, outside the policy's environment.
--
-- core/luahost/inst.c drives it: new(spec) -> open() -> again() -> hooks, export, import. Every
-- error is a string "FILE:LINE: text" or "FILE: text"; one about the settings, which are written
-- elsewhere, begins with M.SETTINGS instead of the file.
local sandbox = require "poolrt.sandbox"

local M = { SETTINGS = "settings: " }

-- One row per hook, in the order of enum prt_hook_index. A new hook is a row here, and a row in
-- hooks.c with the answer it reads. `constant`: which values may stand instead of a function.
M.HOOKS = {
  { name = "route", args = "req", constant = { string = true } },
  { name = "admit", args = "req, part", constant = { boolean = true } },
}

local SCOPES = { session = true, transaction = true, statement = true }
local FALLBACKS = { default = true, reject = true, last = true }
-- fields of the table that a policy file returns, and their types
local FIELDS = {
  name = "string", version = "string", description = "string", api = "number", config = "table",
  cache = "table", on_fail = "table", init = "function", selftest = "function",
  export_state = "function", import_state = "function",
}
local SETTING_TYPES = {
  string = true, number = true, integer = true, boolean = true, duration = true, list = true,
  map = true,
}
local SETTING_FIELDS = {
  type = true, default = true, required = true, min = true, max = true, values = true, of = true,
  help = true,
}
local UNITS = { ms = 0.001, s = 1, min = 60, h = 3600, d = 86400 }
local RANKS = { [0] = "low", "normal", "high", "critical" }

local hook_named = {}
for _, hook in ipairs(M.HOOKS) do
  hook_named[hook.name] = hook
end

local function did_you_mean(word, ...)
  local names = {}
  for _, set in ipairs { ... } do
    for name in pairs(set) do
      names[name] = true
    end
  end
  local near = require("poolrt.settings").nearest(word, names)
  return near and "; did you mean '" .. near .. "'?" or ""
end

local function sorted(set)
  local names = {}
  for name in pairs(set) do
    names[#names + 1] = name
  end
  table.sort(names)
  return table.concat(names, ", ")
end

-- The first line on which `key` is given a value, as far as the text tells.
local function line_of(source, key)
  local n = 0
  key = tostring(key):gsub("%W", "%%%0")
  for line in (source .. "\n"):gmatch("(.-)\r?\n") do
    n = n + 1
    if line:find("%f[%w_]" .. key .. "%f[^%w_][\"'%]]*%s*[=(]") then
      return n
    end
  end
end

local function refuse(spec, line, text, ...)
  error(spec.chunk .. (line and ":" .. line or "") .. ": " .. text:format(...), 0)
end

local function refuse_field(spec, key, text, ...)
  refuse(spec, line_of(spec.source, key), text, ...)
end

-- ---- the schema, and settings against it ----

local function check_row(spec, key, row)
  if type(key) ~= "string" or type(row) ~= "table" then
    refuse_field(spec, key, "config.%s must be a table such as { type = \"string\" }",
      tostring(key))
  end
  for field in pairs(row) do
    if not SETTING_FIELDS[field] then
      refuse_field(spec, field, "config.%s has an unknown field '%s'%s", key, tostring(field),
        did_you_mean(field, SETTING_FIELDS))
    end
  end
  if not SETTING_TYPES[row.type] then
    refuse_field(spec, key, "config.%s.type is %s; it must be one of %s", key, tostring(row.type),
      sorted(SETTING_TYPES))
  end
  if row.of ~= nil and not SETTING_TYPES[row.of] then
    refuse_field(spec, key, "config.%s.of is %s; it must be one of %s", key, tostring(row.of),
      sorted(SETTING_TYPES))
  end
end

local function duration(value)
  if type(value) == "number" then
    return value
  end
  local n, unit = tostring(value):match("^%s*(%d+%.?%d*)%s*(%a+)%s*$")
  return n and UNITS[unit] and tonumber(n) * UNITS[unit]
end

-- The value as the policy gets it; nil, what is wanted.
local function convert(kind, value)
  if kind == "duration" then
    local seconds = duration(value)
    if not seconds then
      return nil, "a time such as 30 (seconds), \"30s\" or \"5min\""
    end
    return seconds
  elseif kind == "integer" then
    if type(value) ~= "number" or value % 1 ~= 0 then
      return nil, "a whole number"
    end
    return value
  elseif kind == "list" or kind == "map" then
    if type(value) ~= "table" then
      return nil, "a table"
    end
    return value
  elseif type(value) ~= kind then
    return nil, "a " .. kind
  end
  return value
end

local function bad_setting(text, ...)
  error(M.SETTINGS .. text:format(...), 0)
end

local function show(value)
  return type(value) == "string" and ("%q"):format(value) or tostring(value)
end

local function check_range(key, row, value)
  if type(value) == "number" and value ~= value then
    bad_setting("'%s' is not a number", key)
  end
  local min, max = row.min and convert(row.type, row.min), row.max and convert(row.type, row.max)
  if (min and value < min) or (max and value > max) then
    bad_setting("'%s' is %s; it must lie between %s and %s", key, show(value),
      tostring(row.min or "-infinity"), tostring(row.max or "infinity"))
  end
  if not row.values then
    return
  end
  local allowed = {}
  for _, one in ipairs(row.values) do
    if one == value then
      return
    end
    allowed[one] = true
  end
  bad_setting("'%s' is %s; it must be one of %s", key, show(value), sorted(allowed))
end

-- A list's or a map's own table, its members converted.
local function members(key, row, given)
  local out = {}
  for k, v in pairs(given) do
    local wanted_key = row.type == "list" and "number" or "string"
    if type(k) ~= wanted_key then
      bad_setting("'%s' must be a %s, and has the key %s", key, row.type, show(k))
    end
    local value, wanted = v, nil
    if row.of then
      value, wanted = convert(row.of, v)
    end
    if wanted then
      bad_setting("'%s[%s]' is %s; it must be %s", key, show(k), show(v), wanted)
    end
    out[k] = value
  end
  return out
end

--- The settings that a policy gets, from its schema and what the configuration says.
function M.settings(schema, given)
  local config = {}
  for key in pairs(given) do
    if schema[key] == nil then
      bad_setting("unknown setting '%s'%s", tostring(key), did_you_mean(key, schema))
    end
  end
  for key, row in pairs(schema) do
    local value = given[key]
    if value == nil then
      value = row.default
    end
    if value == nil and row.required then
      bad_setting("'%s' is missing", key)
    end
    if value ~= nil then
      local converted, wanted = convert(row.type, value)
      if wanted then
        bad_setting("'%s' is %s; it must be %s", key, show(value), wanted)
      end
      if type(converted) == "table" then
        converted = members(key, row, converted)
      end
      check_range(key, row, converted)
      config[key] = converted
    end
  end
  return config
end

-- ---- what the file returns ----

local function check_field(spec, key, value)
  if hook_named[key] then
    local allowed = hook_named[key].constant
    if type(value) ~= "function" and not allowed[type(value)] then
      refuse_field(spec, key, "hook '%s' is a %s; it must be a function or a %s", key, type(value),
        sorted(allowed))
    end
  elseif not FIELDS[key] then
    refuse_field(spec, key, "unknown %s '%s'%s", type(value) == "function" and "hook" or "field",
      tostring(key), did_you_mean(key, FIELDS, hook_named))
  elseif type(value) ~= FIELDS[key] then
    refuse_field(spec, key, "field '%s' is a %s; it must be a %s", key, type(value), FIELDS[key])
  end
end

-- cache and on_fail: a hook's name on the left, one of a few words on the right
local function check_words(spec, field, given, words, hooks)
  for name, word in pairs(given or {}) do
    if not hooks[name] then
      refuse_field(spec, name, "%s.%s: no such hook here%s", field, tostring(name),
        did_you_mean(name, hooks))
    end
    if not words[word] then
      refuse_field(spec, name, "%s.%s is %s; it must be one of %s", field, name, show(word),
        sorted(words))
    end
  end
end

--- Check the table that a policy file returned. spec: { chunk, source }, for messages.
function M.check(spec, policy)
  if type(policy) ~= "table" then
    refuse(spec, nil, "the file must end in `return` and its table, it returned %s",
      policy == nil and "nothing" or "a " .. type(policy))
  end
  for key, value in pairs(policy) do
    check_field(spec, key, value)
  end
  for _, key in ipairs { "name", "version" } do
    if not policy[key] then
      refuse(spec, nil, "field '%s' is missing", key)
    end
  end
  if #policy.name > 60 or policy.name:find("[^%w_./-]") then
    refuse_field(spec, "name", "field 'name' may have letters, digits and _ . / -, at most 60")
  end
  if #policy.version > 60 then
    refuse_field(spec, "version", "field 'version' may have at most 60 bytes")
  end
  if policy.api ~= 1 then
    refuse_field(spec, "api", "field 'api' is %s; this poolrt speaks api = 1", tostring(policy.api))
  end
  local any = false
  for _, hook in ipairs(M.HOOKS) do
    any = any or policy[hook.name] ~= nil
  end
  if not any then
    refuse(spec, nil, "it defines no hook; there are %s", sorted(hook_named))
  end
  for key, row in pairs(policy.config or {}) do
    check_row(spec, key, row)
  end
  check_words(spec, "cache", policy.cache, SCOPES, { route = hook_named.route })
  check_words(spec, "on_fail", policy.on_fail, FALLBACKS, hook_named)
end

-- ---- views: what the hooks are given ----

-- Members that are strings or words are computed: a pointer in a struct would let a policy read
-- past it.
local REQ_TEXTS = { "tenant", "user", "database", "application", "client_addr" }
local REQ_NUMBERS = { "session", "now", "waited", "rank" }
local PART_NUMBERS = {
  "active", "waiting", "max", "min", "pool_active", "pool_idle", "pool_total", "pool_max",
  "pool_waiting",
}

local function set_of(...)
  local set = {}
  for _, names in ipairs { ... } do
    for _, name in ipairs(names) do
      set[name] = true
    end
  end
  return set
end

M.REQ_FIELDS = set_of(REQ_TEXTS, REQ_NUMBERS, { "priority" })
M.PART_FIELDS = set_of(PART_NUMBERS, { "name" })

local function no_field(what, key, fields)
  error(what .. " has no field '" .. tostring(key) .. "'" .. did_you_mean(key, fields), 3)
end

-- An if-chain on constant keys: the trace compiler folds it away where the hook names the field.
local function bind_views(spec)
  local ffi = require "ffi"
  local str = ffi.string
  ffi.cdef(spec.cdef)
  local view = ffi.cast("struct prt_lua_view *", spec.view)
  if view.abi ~= spec.abi or view.size ~= ffi.sizeof("struct prt_lua_view") then
    error("the views of policy.lua and of C differ", 0)
  end
  ffi.metatype("struct prt_lua_req", {
    __index = function(req, key)
      if key == "tenant" then
        return str(view.tenant.p, view.tenant.n)
      elseif key == "user" then
        return str(view.user.p, view.user.n)
      elseif key == "database" then
        return str(view.database.p, view.database.n)
      elseif key == "application" then
        return str(view.application.p, view.application.n)
      elseif key == "client_addr" then
        return str(view.client_addr.p, view.client_addr.n)
      elseif key == "priority" then
        return RANKS[req.rank]
      end
      no_field("req", key, M.REQ_FIELDS)
    end,
  })
  ffi.metatype("struct prt_lua_part", {
    __index = function(_, key)
      if key == "name" then
        return str(view.part_name.p, view.part_name.n)
      end
      no_field("part", key, M.PART_FIELDS)
    end,
  })
  return ffi.cast("const struct prt_lua_req *", view.req)[0],
    ffi.cast("const struct prt_lua_part *", view.part)[0]
end

-- A chunk of its own for each hook, so that each gets its own traces. The call is not a tail call:
-- a hook that ends in `return math.floor(x)` would never be compiled if C called it directly.
local function wrap(hook, fn, req, part)
  local make = load("local hook, req, part = ... return function() local a, b, c, d = hook("
    .. hook.args .. ") return a, b, c, d end", "=poolrt." .. hook.name, "t")
  return make(fn, req, part)
end

-- ---- partitions, life cycle ----

-- "name\0type\0match\0max\0min\0priority\0", once for each
local function read_partitions(blob)
  local list = {}
  for name, kind, match, max, min, priority in
    blob:gmatch("(%Z*)%z(%Z*)%z(%Z*)%z(%Z*)%z(%Z*)%z(%Z*)%z") do
    list[#list + 1] = {
      name = name, type = kind, match = match, max_connections = tonumber(max),
      min_connections = tonumber(min), priority = priority ~= "" and priority or nil,
    }
  end
  return list
end

local function with_defaults(fields, numbers, texts, given)
  local out = {}
  for _, name in ipairs(numbers) do
    out[name] = 0
  end
  for _, name in ipairs(texts) do
    out[name] = ""
  end
  for key, value in pairs(given or {}) do
    if not fields[key] then
      no_field("the view", key, fields)
    end
    out[key] = value
  end
  return out
end

--- Plain tables with the fields of req and part: for selftest(t) and for specs.
M.fake = {
  req = function(given)
    local req = with_defaults(M.REQ_FIELDS, REQ_NUMBERS, REQ_TEXTS, given)
    req.priority = req.priority or RANKS[req.rank]
    return req
  end,
  part = function(given)
    return with_defaults(M.PART_FIELDS, PART_NUMBERS, { "name" }, given)
  end,
}

local State = {}
State.__index = State

local function context(self)
  return {
    config = self.config, worker = self.spec.worker, pool = self.spec.pool,
    partitions = self.partitions,
  }
end

--- Run the file, check it and its settings, call init, wrap the hooks. Returns what C wants.
function State:open()
  local spec = self.spec
  local chunk, message = sandbox.compile(spec.source, spec.chunk, self.env)
  if not chunk then
    error(message, 0)
  end
  local policy = chunk()
  M.check(spec, policy)
  self.policy = policy
  self.config = M.settings(policy.config or {}, self.given)
  local out = {
    name = policy.name, version = policy.version, wrappers = {}, constants = {}, on_fail = {},
    scope = policy.cache and policy.cache.route or "session",
    exports = policy.export_state ~= nil, imports = policy.import_state ~= nil,
  }
  if policy.init then
    policy.init(context(self))
  end
  for i, hook in ipairs(M.HOOKS) do
    local value = policy[hook.name]
    if type(value) == "function" then
      out.wrappers[i] = wrap(hook, value, self.req, self.part)
    else
      out.constants[i] = value
    end
    out.on_fail[i] = policy.on_fail and policy.on_fail[hook.name] or "default"
  end
  return out
end

--- init once more: what the made-up requests of the warm-up left behind is forgotten.
function State:again()
  if self.policy.init then
    self.policy.init(context(self))
  end
end

function State:selftest()
  if self.policy.selftest then
    self.policy.selftest(M.fake)
  end
end

function State:export()
  local state = self.policy.export_state()
  return state ~= nil and require("string.buffer").encode(state) or nil
end

function State:import(encoded, from_version)
  self.policy.import_state(require("string.buffer").decode(encoded), from_version)
end

--- spec: source, chunk, settings (Lua text), partitions, pool, worker, seed; cdef, abi and view for
--- the views; host: { log, warn, now, hash, date }, functions of C.
function M.new(spec)
  local host = spec.host
  -- machine code lies outside of the memory limit, so it has one of its own
  require("jit.opt").start("maxmcode=2048", "maxtrace=2000")
  math.randomseed(spec.seed)
  sandbox.lock_strings()
  local poolrt = {
    log = host.log, warn = host.warn, now = host.now, hash = host.hash, random = math.random,
  }
  local given = sandbox.compile(spec.settings, "settings", {})
  local self = { spec = spec, given = given and given() or {} }
  self.partitions = read_partitions(spec.partitions)
  self.env = sandbox.env {
    modules = { poolrt = sandbox.readonly(poolrt, "poolrt") },
    os = {
      clock = os.clock, date = host.date, difftime = os.difftime,
      time = function(when)
        if when ~= nil then
          error("os.time takes no argument in a policy", 2)
        end
        return os.time()
      end,
    },
  }
  self.req, self.part = bind_views(spec)
  return setmetatable(self, State)
end

return M
