-- config.lua - config.lua's table -> checked, complete, plain data that C copies into struct
-- prt_config.
-- Idea: everything a person can write wrong is found here, once, and named: file, line, place, what
-- is wrong and what is allowed. C trusts the result. One function per table of the configuration; a
-- failure is thrown by check.fail and becomes a sentence in M.load.
local address = require "poolrt.address"
local check = require "poolrt.check"
local chunk = require "poolrt.chunk"
local locate = require "poolrt.locate"
local settings = require "poolrt.settings"

local M = {}

local at, choice, fail, name = check.at, check.choice, check.fail, check.name
local optional_text, place_text = check.optional_text, check.place_text
local readable, resolve, set_of = check.readable, check.resolve, check.set_of
local setting, sorted_keys, take = check.setting, check.sorted_keys, check.take
local text, want_table = check.text, check.want_table

-- ---- users ----

local function verifier(secret)
  if secret:find("^SCRAM%-SHA%-256%$") then
    return "scram-sha-256"
  elseif secret:find("^md5%x+$") and #secret == 35 then
    return "md5"
  end
end

local function check_verifier(secret, path)
  if verifier(secret) ~= "scram-sha-256" then
    return
  end
  local rounds = secret:match("^SCRAM%-SHA%-256%$(%d+):[%w+/=]+%$[%w+/=]+:[%w+/=]+$")
  if not rounds then
    fail(path, "is a malformed SCRAM verifier; copy rolpassword of pg_authid, or give the plain "
      .. "password")
  elseif #rounds > 6 or tonumber(rounds) > 100000 then
    fail(path, "is a SCRAM verifier with more than 100000 iterations")
  end
end

local function users(cx, value, path)
  local list = {}
  for _, user in ipairs(sorted_keys(want_table(value, path, '{ alice = "secret" }'))) do
    local here = at(path, user)
    if type(user) ~= "string" then
      fail(here, 'a user needs a name: users = { alice = "secret" }')
    end
    check_verifier(text(value[user], here), here)
    list[#list + 1] = { name = name(cx, user, here), secret = value[user] }
  end
  return list
end

local auth_example = '{ type = "scram-sha-256", users = { alice = "secret" } }'

local function auth(cx, value)
  local path = { "auth" }
  if value == nil then
    fail(path, "is missing: say who may log in, auth = " .. auth_example)
  end
  want_table(value, path, auth_example)
  local got, where = take(value, path, set_of("type", "users", "login_timeout"))
  local kind = got.type or "scram-sha-256"
  local out = {
    type = choice(cx, "auth_type", kind, where "type"),
    users = users(cx, got.users or {}, where "users"),
    login_timeout_us = setting({ type = "TIME", min = 1e5, max = 36e8 }, got.login_timeout or 60,
      where "login_timeout"),
  }
  if kind ~= "trust" and #out.users == 0 then
    fail(where "users", "is empty: with type = %s nobody could log in", settings.show(kind))
  end
  for _, user in ipairs(out.users) do
    local has = verifier(user.secret)
    if kind ~= "trust" and has and has ~= kind then
      fail(at(where "users", user.name), "holds a %s verifier, which can never pass type = %s", has,
        settings.show(kind))
    end
  end
  return out
end

-- ---- addresses ----

local function one_address(cx, value, path)
  local a, why = address.parse(text(value, path))
  if not a then
    fail(path, "%s %s", settings.show(value), why)
  end
  if a.is_unix then
    a.host = resolve(cx, a.host)
    if #a.host > address.max_socket_dir then
      fail(path, "%s is too long for a socket: at most %d bytes", a.host, address.max_socket_dir)
    end
  elseif #a.host > 255 then
    fail(path, "has a host name that is too long")
  end
  return a
end

local function listen(cx, value)
  local path, list, seen = { "listen" }, {}, {}
  if value == nil then
    value = { "127.0.0.1:" .. address.default_port }
  elseif type(value) == "string" then
    value = { value }
  end
  want_table(value, path, '{ "127.0.0.1:6432" }')
  for _, i in ipairs(sorted_keys(value)) do
    if i ~= #list + 1 then
      fail(at(path, i), 'must be a plain list: listen = { "127.0.0.1:6432", "unix:/run/poolrt" }')
    end
    list[i] = one_address(cx, value[i], at(path, i))
  end
  if #list == 0 then
    fail(path, "is empty: clients could not connect")
  end
  address.fill_ports(list)
  for i, a in ipairs(list) do
    local key = a.host .. "\0" .. a.port
    if seen[key] then
      fail(at(path, i), "is the same address as listen[%d]", seen[key])
    end
    seen[key] = i
  end
  return list
end

local function admin(cx, value, listeners)
  local path = { "admin" }
  if value == nil then
    return {}
  end
  want_table(value, path, '{ listen = "127.0.0.1:8080", token = env "POOLRT_TOKEN" }')
  local got, where = take(value, path, set_of("listen", "token"))
  if got.listen == nil then
    fail(path, 'needs an address: admin = { listen = "127.0.0.1:8080" }')
  end
  local out = { listen = one_address(cx, got.listen, where "listen"),
    token = optional_text(got.token, where "token") }
  if out.listen.is_unix then
    fail(where "listen", "must be host:port; the admin interface speaks HTTP over TCP")
  end
  if not out.token and not address.is_loopback(out.listen) then
    fail(where "listen", "is outside loopback, so admin.token is needed; or listen on 127.0.0.1")
  end
  for i, a in ipairs(listeners) do
    if not a.is_unix and a.host == out.listen.host and a.port == out.listen.port then
      fail(where "listen", "is the same address as listen[%d]", i)
    end
  end
  return out
end

-- ---- tls, log, policy_path ----

local function tls(cx, value)
  if value == nil then
    return { mode = 0 }
  end
  want_table(value, { "tls" }, '{ client = { cert = "server.crt", key = "server.key" } }')
  local path = { "tls", "client" }
  local client = take(value, { "tls" }, set_of "client").client
  local got, where = take(want_table(client, path, '{ mode = "allow", cert = "server.crt" }'), path,
    set_of("mode", "cert", "key"))
  local mode = got.mode or (got.cert and "allow" or "disable")
  local out = { mode = choice(cx, "tls_mode", mode, where "mode") }
  for _, key in ipairs { "cert", "key" } do
    if got[key] ~= nil then
      out[key] = readable(cx, got[key], where(key))
    elseif mode ~= "disable" then
      fail(path, "needs %s, the name of a PEM file, for mode = %s", key, settings.show(mode))
    end
  end
  return out
end

local function log(cx, value)
  local path = { "log" }
  want_table(value == nil and {} or value, path, '{ level = "info" }')
  local got, where = take(value or {}, path, set_of("level", "format", "connections"))
  if got.format ~= nil and got.format ~= "logfmt" then
    fail(where "format", 'must be "logfmt", the only format there is, but is %s',
      settings.show(got.format))
  end
  return { level = choice(cx, "log_level", got.level == nil and "info" or got.level, where "level"),
    connections = check.boolean(got.connections, where "connections", true) }
end

local function policy_path(cx, value)
  local path, list = { "policy_path" }, {}
  if type(value) == "string" then
    value = { value }
  end
  want_table(value == nil and {} or value, path, '{ "policies" }')
  for i, dir in ipairs(value or {}) do
    local full = resolve(cx, text(dir, at(path, i)))
    local kind, why = cx.host.kind(full)
    if kind ~= "directory" then
      fail(at(path, i), "%s %s", full, kind and "is not a directory" or "cannot be read: " .. why)
    end
    list[i] = full
  end
  for _, key in ipairs(sorted_keys(value or {})) do
    if not list[key] then
      fail(at(path, key), 'must be a plain list: policy_path = { "policies" }')
    end
  end
  for _, dir in ipairs(cx.host.bundled) do
    list[#list + 1] = dir
  end
  return list
end

-- ---- policies and their settings ----

local serialise

local function serialise_table(value, path, depth)
  if depth > 16 then
    fail(path, "is nested more than 16 deep, or contains itself")
  end
  local parts = {}
  for _, key in ipairs(sorted_keys(value)) do
    local here = at(path, key)
    if type(key) ~= "string" and type(key) ~= "number" then
      fail(here, "is a %s as a key; only names and numbers are kept", type(key))
    end
    parts[#parts + 1] = ("[%s]=%s"):format(serialise(key, here, depth),
      serialise(value[key], here, depth))
  end
  return "{" .. table.concat(parts, ",") .. "}"
end

--- Lua source that makes `value` again; equal values give equal text.
function serialise(value, path, depth)
  local kind = type(value)
  if kind == "table" then
    return serialise_table(value, path, depth + 1)
  elseif kind == "string" then
    return (("%q"):format(value):gsub("\\\n", "\\n"))
  elseif kind == "boolean" then
    return tostring(value)
  elseif kind == "number" and value == value and math.abs(value) ~= math.huge then
    return ("%.17g"):format(value)
  end
  fail(path, "is %s; a policy's settings are strings, numbers, booleans and tables of them",
    settings.show(value))
end

-- It becomes a file name below policy_path: no dots, no empty parts.
local function is_policy_name(file)
  return type(file) == "string" and #file <= 200 and file:find("^[%w_-][%w_/-]*$") and
    not file:find("//", 1, true) and file:sub(-1) ~= "/"
end

local function policy(cx, value, path)
  local entry = type(value) == "string" and { value } or
    want_table(value, path, '"route/tenant" or { "route/tenant", key = value }')
  local file = entry[1]
  if not is_policy_name(file) then
    fail(type(value) == "table" and at(path, 1) or path,
      'must name a policy such as "route/tenant" (letters, digits, "_", "-" and "/"), but is %s',
      settings.show(file))
  end
  local own = {}
  for key, v in pairs(entry) do
    if key ~= 1 then
      if type(key) ~= "string" then
        fail(at(path, key), "is a value without a name; write { %s, key = value }",
          settings.show(file))
      end
      own[key] = v
    end
  end
  local line = locate.line(cx.keys, path)
  return { name = file, config = "return " .. serialise(own, path, 0),
    where = ("%s%s: %s"):format(cx.file, line and ":" .. line or "", place_text(path)) }
end

local function policies(cx, value, path)
  local list = {}
  want_table(value == nil and {} or value, path, '{ "route/tenant" }')
  for _, i in ipairs(sorted_keys(value or {})) do
    if i ~= #list + 1 then
      fail(at(path, i), "must be a plain list: policies = "
        .. '{ "route/tenant", { "route/user", key = value } }')
    end
    list[i] = policy(cx, value[i], at(path, i))
  end
  return list
end

-- ---- partitions ----

local function count(got, where, key, default, max)
  if got[key] == nil then
    return default
  end
  return setting({ type = "INT", min = 0, max = max }, got[key], where(key))
end

local partition_names = settings.spellings(
  { "type", "match", "max_connections", "min_connections", "max_wait_queue", "priority" },
  settings.aliases.partition)

local function partition(cx, key, value, path)
  want_table(value, path, '{ type = "tenant", max_connections = 50 }')
  local got, where = take(value, path, partition_names)
  local out = {
    name = name(cx, key, path),
    type = choice(cx, "partition_type", got.type == nil and "tenant" or got.type, where "type"),
    match = optional_text(got.match, where "match"),
    max_connections = count(got, where, "max_connections", 0, 100000),
    min_connections = count(got, where, "min_connections", 0, 100000),
    max_wait_queue = count(got, where, "max_wait_queue", 0, 1000000),
    priority = got.priority == nil and -1 or choice(cx, "priority", got.priority, where "priority"),
  }
  if out.max_connections > 0 and out.min_connections > out.max_connections then
    fail(where "min_connections", "is %d, more than max_connections = %d", out.min_connections,
      out.max_connections)
  end
  return out
end

local function partitions(cx, value, path, max_size)
  local list, reserved = {}, 0
  want_table(value == nil and {} or value, path, "{ acme = { max_connections = 50 } }")
  for _, key in ipairs(sorted_keys(value or {})) do
    local p = partition(cx, key, value[key], at(path, key))
    list[#list + 1] = p
    reserved = reserved + p.min_connections
  end
  if reserved > max_size then
    fail(path, "reserve %d connections together (min_connections), more than max_size = %d",
      reserved, max_size)
  end
  return list
end

-- ---- targets ----

--- A value of a conninfo string, quoted as libpq reads it.
local function quoted(value)
  return "'" .. value:gsub("[\\']", "\\%0") .. "'"
end

local function embedded(cx, value)
  if cx.embedded and cx.embedded_from ~= value then
    fail({ "postgres.embedded" }, "is used twice: make it once, local pg = postgres.embedded{...}, "
      .. "and write target = pg in each pool")
  elseif cx.embedded then
    return cx.embedded
  end
  local path = { "postgres.embedded" }
  local got, where = take(value, path, set_of("dir", "database", "users", "run_dir"))
  if got.dir == nil then
    fail(path, 'needs dir, its data directory: postgres.embedded{ dir = "data/pg" }')
  end
  local dir = resolve(cx, text(got.dir, where "dir"))
  local out = {
    dir = dir,
    run_dir = got.run_dir and resolve(cx, text(got.run_dir, where "run_dir")) or dir .. ".run",
    database = name(cx, got.database or "postgres", where "database"),
    users = users(cx, got.users or {}, where "users"),
  }
  for _, user in ipairs(out.users) do
    if verifier(user.secret) then
      fail(at(where "users", user.name), "must be a plain password: poolrt logs in with it")
    end
  end
  if #out.run_dir > address.max_socket_dir then
    fail(where "run_dir", "%s is too long for a socket (at most %d bytes); set a shorter run_dir",
      out.run_dir, address.max_socket_dir)
  end
  cx.embedded, cx.embedded_from = out, value
  return out
end

local function target(cx, got, where, pool)
  local value = got.target
  if value == nil then
    fail(where "target", 'is missing: say where PostgreSQL is, target = "host=db1 dbname=%s"',
      pool == "*" and "app" or pool)
  elseif type(value) == "table" and cx.handles[value] then
    local e = embedded(cx, value)
    local conninfo = ("host=%s port=5432"):format(quoted(e.run_dir))
    local dbname = got.dbname and name(cx, got.dbname, where "dbname") or e.database
    -- pools made from "*" ask for their own database
    return (got.dbname or pool ~= "*") and conninfo .. " dbname=" .. quoted(dbname) or conninfo
  elseif got.dbname ~= nil then
    fail(where "dbname", "is for postgres.embedded; write it into the target: dbname=...")
  elseif type(value) ~= "string" then
    fail(where "target", "must be a conninfo string, a postgres:// URL or postgres.embedded{...}, "
      .. "but is a %s", type(value))
  end
  text(value, where "target")
  if not value:find("^postgres%a*://") and not value:find("=", 1, true) then
    fail(where "target", 'must be a conninfo string such as "host=db1 dbname=app", or a '
      .. "postgres:// URL")
  end
  return value
end

-- ---- pools ----

local function rows_of(cx, scope)
  local rows, names = {}, {}
  for _, row in ipairs(cx.host.rows) do
    if row.scope == scope then
      rows[#rows + 1], names[#names + 1] = row, row.name
    end
  end
  return rows, names
end

local function apply(rows, got, where)
  local out = {}
  for _, row in ipairs(rows) do
    if got[row.name] == nil then
      out[row.name] = row.default
    else
      out[row.name] = setting(row, got[row.name], where(row.name))
    end
  end
  return out
end

--- What a value left out means where that depends on others, and pairs that contradict each other.
local function fit_sizes(got, where, out)
  for _, key in ipairs { "min_size", "initial_size" } do
    if got[key] == nil then
      out[key] = math.min(out[key], out.max_size)
    elseif out[key] > out.max_size then
      fail(where(key), "is %d, more than max_size = %d", out[key], out.max_size)
    end
  end
end

local function has_route(list)
  for _, p in ipairs(list) do
    if p.name:find("^route/") then
      return true
    end
  end
  return false
end

local function fit_partitioning(got, where, out)
  local used = #out.partitions > 0 or has_route(out.policies)
  if got.enable_partitioning == nil then
    out.settings.enable_partitioning = used
  elseif used and not out.settings.enable_partitioning then
    fail(where "enable_partitioning", "is false, but the pool has %s",
      #out.partitions > 0 and "partitions" or "a route policy")
  end
end

local function tenant(cx, value, path)
  if value == nil then
    return { from = 0 }
  end
  want_table(value, path, '{ from = "user", pattern = "*_app" }')
  local got, where = take(value, path, set_of("from", "pattern"))
  if got.from == nil then
    fail(path, 'needs from: tenant = { from = "user" }')
  end
  local from = choice(cx, "tenant_from", got.from, where "from")
  local pattern = optional_text(got.pattern, where "pattern")
  if pattern and got.from ~= "user" then
    fail(where "pattern", 'is for from = "user"')
  elseif pattern and select(2, pattern:gsub("%*", "")) ~= 1 then
    fail(where "pattern", 'must contain "*" once, where the tenant\'s name stands, but is %s',
      settings.show(pattern))
  end
  return { from = from, pattern = pattern }
end

--- The rule of each kind of session state, in the order of the kinds: one word for all, or a table.
--- Of "opaque" nobody can tell when it ends, so where nothing is said about it, it is reset.
local function session_state(cx, value, path)
  local out, got, where = {}, value, nil
  local kinds = cx.host.enums.state_kind
  if type(value) == "table" then
    got, where = take(value, path, set_of("default", unpack(kinds)))
  end
  for i, kind in ipairs(kinds) do
    local rule, place = got, path
    if where then
      local key = got[kind] == nil and "default" or kind
      rule, place = got[key], where(key)
    end
    if rule == nil then
      rule = kind == "opaque" and "reset" or "pin"
    end
    out[i] = choice(cx, "state_rule", rule, place)
  end
  return out
end

local function server_user(cx, got, where)
  local user = got.user and name(cx, got.user, where "user") or nil
  local password = optional_text(got.password, where "password")
  if password and not user then
    fail(where "password", "is given without user")
  elseif password and verifier(password) then
    fail(where "password", "is a verifier; poolrt needs the plain password to log in to the server")
  end
  return user, password
end

local function pool(cx, key, value)
  local path = { "pools", key }
  if type(key) ~= "string" then
    fail(path, 'a pool needs a name: pools = { app = { target = "..." } }')
  end
  want_table(value, path, '{ target = "host=db1 dbname=app" }')
  local got, where = take(value, path, cx.pool_names, cx.pool_hints)
  local out = { name = name(cx, key, path), target = target(cx, got, where, key) }
  out.user, out.password = server_user(cx, got, where)
  out.mode = choice(cx, "mode", got.mode == nil and "session" or got.mode, where "mode")
  out.tenant = tenant(cx, got.tenant, where "tenant")
  out.session_state = session_state(cx, got.session_state, where "session_state")
  out.settings = apply(cx.pool_rows, got, where)
  fit_sizes(got, where, out.settings)
  out.policies = policies(cx, got.policies, where "policies")
  out.partitions = partitions(cx, got.partitions, where "partitions", out.settings.max_size)
  fit_partitioning(got, where, out)
  return out
end

local function pools(cx, value)
  local path, list = { "pools" }, {}
  local example = '{ app = { target = "host=db1 dbname=app" } }'
  if value == nil then
    fail(path, "is missing: name at least one, pools = %s", example)
  end
  for _, key in ipairs(sorted_keys(want_table(value, path, example))) do
    list[#list + 1] = pool(cx, key, value[key])
  end
  if #list == 0 then
    fail(path, "is empty: name at least one, pools = %s", example)
  end
  return list
end

--- Where the server is asked as the client's own user, poolrt must be able to log in as that user.
local function check_pass_through(out)
  for _, p in ipairs(out.pools) do
    for _, user in ipairs(p.user and {} or out.auth.users) do
      local kind = verifier(user.secret)
      if kind then
        fail({ "auth", "users", user.name }, "holds only a %s verifier, and %s has no user of its "
          .. "own: logging in to the server with it needs pass-through, which is not there yet; "
          .. "give the plain password, or set user in the pool", kind,
          place_text { "pools", p.name })
      end
    end
  end
end

-- ---- the whole ----

local top_tables = { "listen", "admin", "auth", "tls", "log", "policy_path", "pools" }
local pool_tables = { "target", "dbname", "user", "password", "mode", "tenant", "session_state",
  "policies", "partitions" }

local function extended(list, more)
  local all = { unpack(list) }
  for _, item in ipairs(more) do
    all[#all + 1] = item
  end
  return all
end

--- Names of both levels, and a hint for each that stands on the wrong one.
local function learn_names(cx)
  local pool_rows, pool_keys = rows_of(cx, "pool")
  local top_rows, top_keys = rows_of(cx, "top")
  cx.pool_rows, cx.top_rows = pool_rows, top_rows
  cx.pool_names = settings.spellings(extended(pool_tables, pool_keys), settings.aliases.pool)
  cx.top_names = settings.spellings(extended(top_tables, top_keys), settings.aliases.top)
  cx.pool_hints = { targets = "several targets are not there yet; give one as target" }
  cx.top_hints = {}
  for key in pairs(cx.pool_names) do
    cx.top_hints[key] = "it belongs into a pool: pools.NAME." .. key
  end
  for key in pairs(cx.top_names) do
    cx.pool_hints[key] = cx.pool_hints[key] or "it belongs to the top of the configuration"
  end
  cx.top_hints.login_timeout = "it belongs into auth"
  cx.pool_hints.login_timeout = cx.top_hints.login_timeout
end

local function normalise(cx, t)
  learn_names(cx)
  local got, where = take(t, {}, cx.top_names, cx.top_hints)
  local out = { settings = apply(cx.top_rows, got, where) }
  out.listen = listen(cx, got.listen)
  out.admin = admin(cx, got.admin, out.listen)
  out.auth = auth(cx, got.auth)
  out.tls = tls(cx, got.tls)
  out.log = log(cx, got.log)
  out.policy_path = policy_path(cx, got.policy_path)
  out.pools = pools(cx, got.pools)
  out.embedded = cx.embedded
  check_pass_through(out)
  return out
end

-- ---- the functions of config.lua ----

local function env_function(...)
  local key, default = ...
  if type(key) ~= "string" then
    error('env() needs a name: env("PORT", 6432)', 2)
  end
  local value = os.getenv(key)
  if value ~= nil then
    return value
  elseif select("#", ...) < 2 then
    error(("environment variable %s is not set; set it, or give a default: "):format(key)
      .. ('env("%s", ...)'):format(key), 2)
  end
  return default
end

local function functions(cx)
  return {
    env = env_function,
    file = function(path)
      if type(path) ~= "string" or path == "" then
        error('file() needs the name of a file: file "secrets/app"', 2)
      end
      local full = resolve(cx, path)
      local content, why = chunk.read(cx.host.kind, full)
      if not content then
        error(("%s %s"):format(full, why), 2)
      end
      return (content:gsub("\r?\n$", ""))
    end,
    postgres = {
      embedded = function(spec)
        if type(spec) ~= "table" then
          error('postgres.embedded needs a table: postgres.embedded{ dir = "data/pg" }', 2)
        end
        cx.handles[spec] = true
        return spec
      end,
    },
  }
end

local function sentence(cx, problem)
  local line = locate.line(cx.keys, problem.place)
  local place = place_text(problem.place)
  return ("%s%s: %s %s"):format(cx.file, line and ":" .. line or "", place, problem.text)
end

--- Load the configuration `file`. host: { dir = its directory, absolute; rows = of settings.def;
--- enums = names in C's order; name_max; bundled = policy directories; kind = function(path) }.
--- Returns the data that core/luahost/config.c copies, or nil and a sentence.
function M.load(host, file)
  local source, why = chunk.read(host.kind, file)
  if not source then
    return nil, file .. " " .. why
  end
  local cx = { host = host, file = file, handles = {},
    keys = locate.index(source) }
  local ok, result = chunk.run(source, file, chunk.env(functions(cx)))
  if not ok then
    return nil, result
  elseif type(result) ~= "table" then
    return nil, ("%s: must end with return { ... }, but returned %s"):format(file,
      result == nil and "nothing" or settings.show(result))
  end
  local good, out = pcall(normalise, cx, result)
  if good then
    return out
  elseif type(out) == "table" and out.place then
    return nil, sentence(cx, out)
  end
  error(out, 0) -- a fault of this file, or no memory: C says so
end

return M
