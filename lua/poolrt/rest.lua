-- rest.lua - the REST routes: one row each, over the snapshots of core/admin/bind.c.
-- handle(request) -> status, content type, body, headers. What is wrong with a request is raised as
-- a table {status, code, message, details} and answered here; any other error is a bug, which
-- bind.c logs and answers with 500. Field names, formulas and why a value is null ("not known"):
-- core/admin/README.md.
local health = require "poolrt.health"
local json = require "poolrt.json"
local live = require "poolrt.live"
local metrics = require "poolrt.metrics"
local rates = require "poolrt.rates"

local M = {}

local null = json.null
local PREFIX = "/api/v1"
local PAGE_SIZE, PAGE_MAX = 100, 1000
local PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

-- ---- small words ----

local fail, iso = live.fail, live.iso

-- a / b, or null where nothing was counted
local function ratio(a, b)
  return b > 0 and a / b or null
end

local function words(text, separator)
  local list = json.array()
  for word in (text or ""):gmatch("[^" .. separator .. "]+") do
    list[#list + 1] = word
  end
  return list
end

-- ---- path and query ----

-- %XX; head.c let no other form through
local function decoded(s)
  return (s:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

local function segments(path)
  local list = {}
  for s in (path .. "/"):gmatch "([^/]*)/" do
    list[#list + 1] = s
  end
  return list
end

-- Parameters by name. Unknown ones are refused, so that a misspelt filter cannot pass for "all".
local function parse_query(text, known)
  local query = {}
  for pair in (text or ""):gmatch "[^&]+" do
    local name, value = pair:match "^([^=]*)=?(.*)$"
    name, value = decoded(name), decoded((value:gsub("+", " ")))
    if not (known and known[name]) then
      fail(400, "bad_request", "unknown query parameter", { parameter = json.utf8(name) })
    end
    if query[name] then
      fail(400, "bad_request", "a query parameter comes twice", { parameter = name })
    end
    query[name] = value
  end
  return query
end

local function whole(query, name, default, max)
  local text = query[name]
  if not text then
    return default
  end
  local n = #text <= 9 and text:find "^%d+$" and tonumber(text)
  if not n or n < 1 or n > max then
    fail(400, "bad_request", ("%s must be a whole number from 1 to %d"):format(name, max),
      { parameter = name })
  end
  return n
end

local PAGED = { page = true, page_size = true, limit = true }

local function page_of(query)
  if query.page_size and query.limit then
    fail(400, "bad_request", "page_size and limit are the same: give one", { parameter = "limit" })
  end
  local size = whole(query, query.limit and "limit" or "page_size", PAGE_SIZE, PAGE_MAX)
  return whole(query, "page", 1, 1e6), size
end

-- the part of `list` that the query asks for, and its `pagination`
local function paged(list, query)
  local page, size = page_of(query)
  local out = json.array()
  for i = (page - 1) * size + 1, math.min(page * size, #list) do
    out[#out + 1] = list[i]
  end
  return out, { page = page, page_size = size, total_count = #list }
end

-- ---- what a pool looks like ----

local function current(pool)
  return {
    active_connections = pool.active,
    idle_connections = pool.idle,
    connecting_connections = pool.connecting,
    closing_connections = pool.closing,
    total_connections = pool.open,
    wait_queue_size = pool.waiting,
    utilization_percent = pool.open / pool.config.max_size * 100,
  }
end

local function pool_row(pool)
  local row = current(pool)
  row.id, row.name, row.mode = pool.id, pool.id, pool.mode
  row.clients = pool.clients
  row.min_connections = pool.config.min_size
  row.max_connections = pool.config.max_size
  return row
end

local function config_of(c)
  return {
    min_connections = c.min_size,
    max_connections = c.max_size,
    initial_size = c.initial_size,
    class_size = c.class_size,
    connection_timeout_sec = c.acquire_timeout,
    connect_timeout_sec = c.connect_timeout,
    idle_timeout_sec = c.idle_timeout,
    max_lifetime_sec = c.max_lifetime,
    max_wait_queue_size = c.max_wait_queue_size,
    creation_throttle = c.creation_throttle > 0 and c.creation_throttle or null,
    maintenance_interval_sec = c.maintenance_interval,
    fair_queue = c.fair_queue,
    enable_partitioning = c.enable_partitioning,
    statement_cache_size = c.statement_cache_size,
    -- no such settings yet
    validate_on_acquire = null,
    validate_on_release = null,
    validation_timeout_sec = null,
    leak_detection_threshold_sec = null,
  }
end

local function attempts(pool)
  return pool.acquired + pool.timed_out + pool.cancelled + pool.failed + pool.drained +
    pool.refused + pool.rejected
end

-- Connections that were opened ahead of need may outnumber the leases: no reuse yet, never below 0.
local function reuse(pool)
  return pool.acquired > 0 and math.max(0, 1 - pool.opened / pool.acquired) or null
end

--- Prepared statements found on the server that was leased.
local function statement_rate(pool)
  return ratio(pool.statement_hits, pool.statement_hits + pool.statement_misses)
end

--- Kinds of session state that keep servers with their clients now.
local function pinned_of(pool)
  local pinned = {}
  for reason, n in pairs(pool.pinned) do
    pinned[reason] = n > 0 and n or nil
  end
  return pinned
end

local function mean_ms(h)
  return ratio(h.sum_us / 1000, h.count)
end

local function ms(h, name)
  return h.count > 0 and h[name] / 1000 or null
end

local function statistics(pool)
  local s = current(pool)
  s.utilization_percent = nil
  s.pinned_connections = pinned_of(pool)
  s.resets_total = pool.resets
  s.parses_saved_total = pool.parses_saved
  s.connections_created_total = pool.opened
  s.connections_closed_total = pool.closed
  s.acquisitions_total = pool.acquired
  s.releases_total = pool.released
  s.timeouts_total = pool.timed_out
  s.validation_failures_total = null
  s.leaks_detected_total = null
  s.acquire_attempts_total = attempts(pool)
  s.acquire_failures_total = attempts(pool) - pool.acquired
  s.rejections_total = pool.refused + pool.rejected
  s.connect_failures_total = pool.connect_failed
  s.evictions_total = pool.evicted
  s.transactions_total = pool.transactions
  s.queries_total = pool.queries
  s.listeners = pool.listeners
  s.listen_channels = pool.listen_channels
  s.notifications_total = pool.notifications
  s.listen_gaps_total = pool.listen_gaps
  s.average_acquire_time_ms = mean_ms(pool.acquire)
  s.p95_acquire_time_ms = ms(pool.acquire, "p95")
  s.p99_acquire_time_ms = ms(pool.acquire, "p99")
  s.pool_utilization = pool.open / pool.config.max_size
  s.pool_efficiency = pool.active / pool.config.max_size
  s.success_rate = ratio(pool.acquired, attempts(pool))
  s.cache_hit_rate = statement_rate(pool)
  s.connection_reuse_rate = reuse(pool)
  return s
end

local function partitions_of(pool)
  local list = json.array()
  for i, p in ipairs(pool.partitions) do
    list[i] = {
      id = pool.id .. "." .. p.name,
      name = p.name,
      type = p.type or null,
      pool_id = pool.id,
      limits = {
        max_connections = p.max_connections > 0 and p.max_connections or null,
        min_connections = p.min_connections,
        max_wait_queue = p.max_wait_queue > 0 and p.max_wait_queue or null,
      },
      statistics = {
        connections_acquired = p.acquired,
        connections_released = p.released,
        current_connections = p.active,
        wait_queue_size = p.waiting,
        limit_violations = p.limit_violations,
      },
    }
  end
  return list
end

-- ---- histograms and hours ----

local RANGES = {
  { "0-10ms", 10000 }, { "10-50ms", 50000 }, { "50-100ms", 100000 }, { "100-500ms", 500000 },
}

local function wait_histogram(pool, bound_at)
  local w, buckets, below = pool.wait, json.array(), 0
  for i, range in ipairs(RANGES) do
    local upto = w.upto[bound_at[range[2]]]
    buckets[i] = { range = range[1], count = upto - below }
    below = upto
  end
  buckets[#buckets + 1] = { range = "500ms+", count = w.count - below }
  local shares = {}
  for _, name in ipairs { "p50", "p75", "p90", "p95", "p99" } do
    shares[name] = ms(w, name)
  end
  return { buckets = buckets, percentiles = shares }
end

local function usage_patterns(pool)
  local acquired, open, peak, most = {}, {}, null, 0
  for hour = 0, 23 do
    local n = pool.acquisitions_by_hour[hour + 1]
    acquired[tostring(hour)] = n
    open[tostring(hour)] = pool.connections_by_hour[hour + 1] or null
    if n > most then
      peak, most = hour, n
    end
  end
  return { peak_hour = peak, acquisitions_by_hour = acquired, avg_connections_by_hour = open }
end

-- ---- handlers: function(api, request) -> data[, pagination] ----

local function one_pool(api, wanted)
  local pool = api.source.pools(wanted)[1]
  if not pool and wanted:sub(1, 5) == "pool_" then
    pool = api.source.pools(wanted:sub(6))[1]
  end
  if not pool then
    fail(api.source.errors.not_found.status, "not_found", "there is no such pool",
      { pool_id = json.utf8(wanted) })
  end
  return pool
end

local function health_of(api, pool)
  local status, issues = health.pool(pool, api.rates.of(pool, api.mono))
  return { status = status, issues = json.array(issues), last_checked = iso(api.now) }
end

local function get_pools(api, rq)
  local pools = api.source.pools()
  table.sort(pools, function(a, b) return a.id < b.id end)
  local page, pagination = paged(pools, rq.query)
  for i, pool in ipairs(page) do
    page[i] = pool_row(pool)
  end
  return page, pagination
end

local function get_pool(api, rq)
  local pool = one_pool(api, rq.id)
  return {
    id = pool.id,
    name = pool.id,
    mode = pool.mode,
    target = pool.target or null,
    created_at = iso(pool.created_at),
    config = config_of(pool.config),
    statistics = statistics(pool),
    health = health_of(api, pool),
    partitions = partitions_of(pool),
  }
end

local function get_stats(api, rq)
  local pool = one_pool(api, rq.id)
  local last = api.rates.of(pool, api.mono)
  local mean_age_us = ratio(pool.closed_age_us, pool.closed)
  return {
    current = current(pool),
    totals = {
      connections_created = pool.opened,
      connections_closed = pool.closed,
      acquisitions = pool.acquired,
      releases = pool.released,
      timeouts = pool.timed_out,
      validation_failures = null,
      leaks_detected = null,
    },
    performance = {
      average_acquire_time_ms = mean_ms(pool.acquire),
      p50_acquire_time_ms = ms(pool.acquire, "p50"),
      p95_acquire_time_ms = ms(pool.acquire, "p95"),
      p99_acquire_time_ms = ms(pool.acquire, "p99"),
      max_acquire_time_ms = ms(pool.acquire, "max_us"),
      connections_per_second = last and last.acquired / last.seconds or null,
      queries_per_connection = ratio(pool.queries, pool.opened),
    },
    efficiency = {
      pool_utilization = pool.open / pool.config.max_size,
      success_rate = ratio(pool.acquired, attempts(pool)),
      cache_hit_rate = statement_rate(pool),
      connection_reuse_rate = reuse(pool),
      avg_connection_lifetime_sec = mean_age_us ~= null and mean_age_us / 1e6 or null,
    },
    wait_time_histogram = wait_histogram(pool, api.bound_at),
    usage_patterns = usage_patterns(pool),
  }
end

local function get_policies(api, rq)
  local page, pagination = paged(api.source.policies(), rq.query)
  for i, p in ipairs(page) do
    page[i] = {
      name = p.name,
      version = p.version or null,
      policy = p.policy,
      file = p.file or null,
      sha256 = p.sha256 or null,
      state = p.state,
      hooks = words(p.hooks, " "),
      pools = words(p.pools, ","),
      loaded_at = iso(p.loaded_at),
      swaps = p.swaps,
      calls = p.calls,
      failures = p.failures,
      kills = p.kills,
      rejected_versions = p.rejected_versions,
      last_error = p.last_error or null,
      last_error_at = iso(p.last_error_at),
    }
  end
  return page, pagination
end

-- ---- clients and connections, one by one: live.lua ----

local function lists(kind)
  return function(api, rq)
    local page, size = page_of(rq.query)
    return live.list(api, kind, rq.query, page, size)
  end
end

local function shows(kind)
  return function(api, rq) return live.show(api, kind, rq.id) end
end

local function kills(kind)
  return function(api, rq) return live.kill(api, kind, rq.id, rq.query.force) end
end

local LISTED = { status = true, pool_id = true, user = true, page = true, page_size = true,
                 limit = true }
local FORCED = { force = true }

-- Public on loopback, so pools are named by their row of the configuration: one made from "*" has
-- a name that a client chose.
local function get_health(api)
  local status, issues, pools = "HEALTHY", json.array(), api.source.pools()
  local policies = health.policies(api.source.trouble())
  if policies then
    status = policies.status
    issues[1] = policies
  end
  for _, pool in ipairs(pools) do
    local worst, found = health.pool(pool, api.rates.of(pool, api.mono))
    status = health.worse(status, worst)
    for _, issue in ipairs(found) do
      issue.pool = pool.row
      issues[#issues + 1] = issue
    end
  end
  return {
    status = status,
    issues = issues,
    last_checked = iso(api.now),
    pools = #pools,
    uptime_sec = math.max(0, math.floor(api.now - api.source.started_at)),
  }, nil, status == "UNHEALTHY" and 503 or 200
end

local function get_metrics(api)
  return api.metrics.text()
end

-- ---- routes ----

-- role: "read" wants the token (if one is configured), "public" does not on loopback, "admin" wants
-- one to be configured, too: who changes something must have proved who he is.
-- text: the handler returns the body itself, of this content type.
M.routes = {
  { method = "GET", path = PREFIX .. "/pools", role = "read", handler = get_pools, query = PAGED,
    help = "all pools" },
  { method = "GET", path = PREFIX .. "/pools/{id}", role = "read", handler = get_pool,
    help = "one pool: configuration, statistics, health, partitions" },
  { method = "GET", path = PREFIX .. "/pools/{id}/stats", role = "read", handler = get_stats,
    help = "one pool: times, rates, histogram, hours" },
  { method = "GET", path = PREFIX .. "/connections", role = "read",
    handler = lists(live.connection), query = LISTED,
    help = "server connections, and requests that wait for one" },
  { method = "GET", path = PREFIX .. "/connections/{id}", role = "read",
    handler = shows(live.connection), help = "one of them" },
  { method = "DELETE", path = PREFIX .. "/connections/{id}", role = "admin",
    handler = kills(live.connection), query = FORCED,
    help = "end it, and the client that it serves" },
  { method = "GET", path = PREFIX .. "/sessions", role = "read", handler = lists(live.session),
    query = LISTED, help = "clients" },
  { method = "GET", path = PREFIX .. "/sessions/{id}", role = "read",
    handler = shows(live.session), help = "one client" },
  { method = "DELETE", path = PREFIX .. "/sessions/{id}", role = "admin",
    handler = kills(live.session), query = FORCED, help = "end it" },
  { method = "GET", path = PREFIX .. "/policies", role = "read", handler = get_policies,
    query = PAGED, help = "the policy files in use, their versions and counters" },
  { method = "GET", path = PREFIX .. "/health", role = "public", handler = get_health,
    help = "HEALTHY, DEGRADED or UNHEALTHY (503), and why" },
  { method = "GET", path = PREFIX .. "/metrics", role = "public", handler = get_metrics,
    text = PROMETHEUS, help = "Prometheus metrics" },
  { method = "GET", path = "/health", role = "public", handler = get_health,
    help = "the same as " .. PREFIX .. "/health" },
  { method = "GET", path = "/metrics", role = "public", handler = get_metrics,
    text = PROMETHEUS, help = "the same as " .. PREFIX .. "/metrics" },
}

-- the value of {id} ("" when the row has none), or nil
local function match(row, parts)
  if #row.parts ~= #parts then
    return nil
  end
  local id = ""
  for i, want in ipairs(row.parts) do
    if want == "{id}" then
      id = decoded(parts[i])
    elseif want ~= parts[i] then
      return nil
    end
  end
  return id
end

-- The rows of this path by method; nil when there is none.
local function find(path)
  local parts, found, id = segments(path), nil, nil
  for _, row in ipairs(M.routes) do
    local value = match(row, parts)
    if value then
      found = found or {}
      found[row.method] = row
      id = value
    end
  end
  return found, id
end

for _, row in ipairs(M.routes) do
  row.parts = segments(row.path)
end

local function may(rows, rq)
  if rq.is_admin then
    return true
  end
  local _, row = next(rows or {})
  return row and row.role == "public" and rq.is_loopback
end

local function allow(rows)
  local list = {}
  for method in pairs(rows) do
    list[#list + 1] = method
    list[#list + 1] = method == "GET" and "HEAD" or nil
  end
  table.sort(list)
  return table.concat(list, ", ")
end

-- ---- one request ----

-- What each status owes its client beside the body.
local function headers_for(e)
  if e.status == 401 then
    return { ["WWW-Authenticate"] = 'Bearer realm="poolrt"' }
  elseif e.status == 405 then
    return { Allow = e.allow }
  elseif e.status == 429 then
    return { ["Retry-After"] = "1" }
  end
end

-- the row and the request as handlers see it
local function route(rq)
  if rq.refused then
    fail(rq.refused, rq.code, rq.text)
  end
  local path, query = rq.target:match "^([^?]*)%??(.*)$"
  local rows, id = find(path)
  if not may(rows, rq) then
    fail(401, "unauthorized", "a valid bearer token is needed")
  end
  if not rows then
    fail(404, "not_found", "there is no such route")
  end
  local row = rows[rq.method == "HEAD" and "GET" or rq.method]
  if not row then
    error({ status = 405, code = "method_not_allowed", allow = allow(rows),
            message = "this route does not know the method" }, 0)
  end
  if row.role == "admin" and not rq.may_write then
    fail(403, "forbidden", "nothing can be changed without a token: set admin.token")
  end
  return row, { id = id, query = parse_query(query, row.query) }
end

--- handle(request), tick(): bind.c calls the one per request, the other every ten seconds.
function M.new(source)
  local api = { source = source, rates = rates.new(), metrics = metrics.new(source), bound_at = {} }
  local count = 0

  for i, us in ipairs(source.bounds_us) do
    api.bound_at[us] = i
  end
  for _, range in ipairs(RANGES) do
    assert(api.bound_at[range[2]], "metrics.def lacks a bound that REST shows")
  end

  local function meta()
    count = count + 1
    return { requestId = "req_" .. count, timestamp = iso(api.now), version = source.version }
  end

  local function serve(rq)
    local row, request = route(rq)
    local data, pagination, status = row.handler(api, request)
    if row.text then
      return status or 200, row.text, data
    end
    return status or 200, "application/json", json.encode {
      success = true, data = data, pagination = pagination, meta = meta() } .. "\n"
  end

  local function refuse(e)
    return e.status, "application/json", json.encode {
      success = false,
      error = { code = e.code, message = e.message, details = e.details or null },
      meta = meta(),
    } .. "\n", headers_for(e)
  end

  local function handle(rq)
    api.now, api.mono = source.now()
    local ok, status, kind, body = pcall(serve, rq)
    if ok then
      return status, kind, body
    end
    if type(status) ~= "table" then
      error(status, 0) -- a bug: bind.c logs it and asks again for a 500
    end
    return refuse(status)
  end

  local function tick()
    local pools = source.pools()
    local _, mono = source.now()
    api.rates.note(pools, mono)
    api.metrics.note(pools)
  end

  return handle, tick
end

return M
