-- metrics.lua - /metrics: the Prometheus text format 0.0.4, from rows of metrics.def.
-- Series are per row of the configuration, never per pool: the pools made from "*" carry names that
-- clients chose, so they are added up under "*". Such a pool is freed when it is unused; what it
-- had counted is kept here, because a counter that falls looks like a restart to whoever reads it.
local json = require "poolrt.json"

local M = {}

-- ---- adding up ----

local function add(into, from)
  for k, v in pairs(from) do
    if type(v) == "table" then
      into[k] = into[k] or {}
      add(into[k], v)
    else
      into[k] = (into[k] or 0) + v
    end
  end
end

local COUNTERS = {
  "acquired", "released", "opened", "closed", "connect_failed", "evicted", "queued", "timed_out",
  "cancelled", "refused", "rejected", "transactions", "queries", "errors_timeout", "errors_closed",
  "errors_other", "exhausted", "statement_hits", "statement_misses", "statement_evictions",
  "parses_saved", "resets", "notifications", "listen_gaps",
}
local GAUGES = {
  "active", "idle", "waiting", "connecting", "closing", "clients", "listeners", "listen_channels",
}

local function pick(from, names)
  local t = {}
  for _, name in ipairs(names) do
    t[name] = from[name]
  end
  return t
end

local function totals(pool)
  local t = pick(pool, COUNTERS)
  for _, name in ipairs { "acquire", "wait" } do
    t[name] = pick(pool[name], { "count", "sum_us", "upto" })
  end
  t.pins = pool.pins
  t.partitions = {}
  for _, p in ipairs(pool.partitions) do
    t.partitions[p.name] = pick(p, { "acquired", "limit_violations" })
  end
  return t
end

local function gauges(pool)
  local g = pick(pool, GAUGES)
  g.pools = 1
  g.max = pool.config.max_size
  g.pinned = pool.pinned
  g.partitions = {}
  for _, p in ipairs(pool.partitions) do
    g.partitions[p.name] = pick(p, { "active", "waiting" })
  end
  return g
end

local NOTHING = { pools = 0, max = 0, partitions = {} }
for _, name in ipairs(GAUGES) do
  NOTHING[name] = 0
end

local function keys(t)
  local list = {}
  for k in pairs(t) do
    list[#list + 1] = k
  end
  table.sort(list)
  return list
end

-- ---- text ----

local function label(value)
  return (json.utf8(tostring(value)):gsub('[\\"\n]', { ["\\"] = "\\\\", ['"'] = '\\"',
                                                       ["\n"] = "\\n" }))
end

local function number(v)
  return json.number(v) or (v ~= v and "NaN") or (v > 0 and "+Inf" or "-Inf")
end

-- put(suffix, values, v): one line of the metric; `values` in the order of the row's labels
local function writer(out, row, names)
  return function(suffix, values, v, le)
    local parts = {}
    for i, name in ipairs(names) do
      parts[i] = name .. '="' .. label(values[i]) .. '"'
    end
    parts[#parts + 1] = le and 'le="' .. le .. '"' or nil
    local labels = parts[1] and "{" .. table.concat(parts, ",") .. "}" or ""
    out[#out + 1] = row.name .. suffix .. labels .. " " .. number(v) .. "\n"
  end
end

local function histogram(field)
  return function(data, put)
    for _, row in ipairs(data.rows) do
      local h = row.totals[field]
      for i, us in ipairs(data.bounds_us) do
        put("_bucket", { row.name }, h.upto[i], number(us / 1e6))
      end
      put("_bucket", { row.name }, h.count, "+Inf")
      put("_sum", { row.name }, h.sum_us / 1e6)
      put("_count", { row.name }, h.count)
    end
  end
end

-- ---- one function per row of metrics.def ----

local function per_row(f)
  return function(data, put)
    for _, row in ipairs(data.rows) do
      put("", { row.name }, f(row))
    end
  end
end

local function counter(field)
  return per_row(function(row) return row.totals[field] end)
end

local function gauge(field)
  return per_row(function(row) return row.gauges[field] end)
end

-- one line per row and word of the closed list `states`: {label value, function}
local function per_state(states)
  return function(data, put)
    for _, row in ipairs(data.rows) do
      for _, state in ipairs(states) do
        put("", { row.name, state[1] }, state[2](row))
      end
    end
  end
end

local function of_gauges(field)
  return function(row) return row.gauges[field] end
end

local function of_totals(field)
  return function(row) return row.totals[field] end
end

local function utilization(row)
  return row.gauges.max > 0 and row.gauges.active / row.gauges.max or 0
end

local function per_partition(group, field)
  return function(data, put)
    for _, row in ipairs(data.rows) do
      for _, name in ipairs(keys(row[group].partitions)) do
        put("", { row.name, name }, row[group].partitions[name][field])
      end
    end
  end
end

local function per_reason(group, field)
  return function(data, put)
    for _, row in ipairs(data.rows) do
      for _, reason in ipairs(keys(row[group][field] or {})) do
        put("", { row.name, reason }, row[group][field][reason])
      end
    end
  end
end

local function process(field)
  return function(data, put) put("", {}, data.process[field]) end
end

local function policy(field)
  return function(data, put)
    for _, name in ipairs(keys(data.policies)) do
      put("", { name }, data.policies[name][field])
    end
  end
end

local ACTIVE, IDLE = { "active", of_gauges "active" }, { "idle", of_gauges "idle" }

M.families = {
  db_pool_connections = per_state { ACTIVE, IDLE, { "max", of_gauges "max" } },
  db_pool_acquire_duration_seconds = histogram "acquire",
  db_pool_connection_errors_total = per_state {
    { "timeout", of_totals "errors_timeout" },
    { "closed", of_totals "errors_closed" },
    { "other", of_totals "errors_other" },
  },
  db_pool_exhausted_total = counter "exhausted",
  db_pool_utilization_ratio = per_row(utilization),
  db_pool_utilization_percent = per_row(function(row) return utilization(row) * 100 end),

  poolrt_pool_connections_total = per_state { ACTIVE, IDLE },
  poolrt_pool_acquisitions_total = counter "acquired",
  poolrt_pool_acquire_duration_seconds = histogram "acquire",
  poolrt_pool_wait_duration_seconds = histogram "wait",
  poolrt_pool_releases_total = counter "released",
  poolrt_pool_pools = gauge "pools",
  poolrt_pool_clients = gauge "clients",
  poolrt_pool_waiting = gauge "waiting",
  poolrt_pool_oldest_wait_seconds = per_row(function(row) return row.oldest_us / 1e6 end),
  poolrt_pool_pending_connections = per_state {
    { "connecting", of_gauges "connecting" },
    { "closing", of_gauges "closing" },
  },
  poolrt_pool_connections_opened_total = counter "opened",
  poolrt_pool_connections_closed_total = counter "closed",
  poolrt_pool_connect_failures_total = counter "connect_failed",
  poolrt_pool_evictions_total = counter "evicted",
  poolrt_pool_queued_total = counter "queued",
  poolrt_pool_timeouts_total = counter "timed_out",
  poolrt_pool_cancelled_total = counter "cancelled",
  poolrt_pool_refused_total = counter "refused",
  poolrt_pool_rejected_total = counter "rejected",
  poolrt_pool_transactions_total = counter "transactions",
  poolrt_pool_queries_total = counter "queries",
  poolrt_pool_listeners = gauge "listeners",
  poolrt_pool_listen_channels = gauge "listen_channels",
  poolrt_pool_notifications_total = counter "notifications",
  poolrt_pool_listen_gaps_total = counter "listen_gaps",

  poolrt_pool_statement_hits_total = counter "statement_hits",
  poolrt_pool_statement_misses_total = counter "statement_misses",
  poolrt_pool_statement_evictions_total = counter "statement_evictions",
  poolrt_pool_parses_saved_total = counter "parses_saved",
  poolrt_pool_pinned = per_reason("gauges", "pinned"),
  poolrt_pool_pins_total = per_reason("totals", "pins"),
  poolrt_pool_resets_total = counter "resets",

  poolrt_partition_connections = per_partition("gauges", "active"),
  poolrt_partition_waiting = per_partition("gauges", "waiting"),
  poolrt_partition_acquisitions_total = per_partition("totals", "acquired"),
  poolrt_partition_limit_violations_total = per_partition("totals", "limit_violations"),

  poolrt_clients = function(data, put)
    put("", { "connected" }, data.process.clients)
    put("", { "waiting" }, data.process.clients_waiting)
    put("", { "active" }, data.process.clients_active)
  end,
  poolrt_accepted_total = process "accepted",
  poolrt_logins_total = process "logins",
  poolrt_login_failures_total = process "login_failures",
  poolrt_disconnects_total = function(data, put)
    for _, reason in ipairs(keys(data.process.disconnects)) do
      put("", { reason }, data.process.disconnects[reason])
    end
  end,
  poolrt_transactions_total = process "transactions",
  poolrt_queries_total = process "queries",
  poolrt_client_received_bytes_total = process "bytes_from_clients",
  poolrt_client_sent_bytes_total = process "bytes_to_clients",
  poolrt_cancels_received_total = process "cancels_received",
  poolrt_cancels_forwarded_total = process "cancels_forwarded",
  poolrt_server_protocol_violations_total = process "protocol_violations",
  poolrt_workers = process "workers",

  poolrt_policy_calls_total = policy "calls",
  poolrt_policy_failures_total = policy "failures",
  poolrt_policy_kills_total = policy "kills",
  poolrt_policy_swaps_total = policy "swaps",
  poolrt_policy_rejected_versions_total = policy "rejected_versions",
  poolrt_policy_active = policy "active",

  poolrt_admin_requests_total = process "admin_requests",
  poolrt_admin_auth_failures_total = process "admin_auth_failures",
  poolrt_start_time_seconds = function(data, put) put("", {}, data.started_at) end,
  poolrt_build_info = function(data, put) put("", { data.version }, 1) end,
}

-- ---- the whole ----

-- One file may be in use with several settings: one series for all of them.
local function by_policy(list)
  local sums = {}
  for _, p in ipairs(list) do
    local s = sums[p.policy] or { active = 1 }
    sums[p.policy] = s
    add(s, pick(p, { "calls", "failures", "kills", "swaps", "rejected_versions" }))
    s.active = p.state == "active" and s.active or 0
  end
  return sums
end

local function split(labels)
  local names = {}
  for name in labels:gmatch "[^,]+" do
    names[#names + 1] = name
  end
  return names
end

--- `source`: what bind.c gives. Errors when a row of metrics.def has no function, or the reverse.
function M.new(source)
  local seen = {}    -- pool -> {row, totals}, as of the last note
  local retired = {} -- row -> totals of the pools that are gone
  local known = {}

  for _, row in ipairs(source.metrics) do
    known[row.name] = true
    if not M.families[row.name] then
      error("metrics.def has " .. row.name .. ", metrics.lua has not")
    end
  end
  for name in pairs(M.families) do
    if not known[name] then
      error("metrics.lua has " .. name .. ", metrics.def has not")
    end
  end

  local X = {}

  --- Remember what the pools have counted, for the time when one of them is gone.
  function X.note(pools)
    local now = {}
    for _, pool in ipairs(pools) do
      local key = pool.row .. "\0" .. pool.id .. "\0" .. pool.created_at
      now[key] = { row = pool.row, totals = totals(pool) }
    end
    for key, old in pairs(seen) do
      if not now[key] then
        retired[old.row] = retired[old.row] or {}
        add(retired[old.row], old.totals)
      end
    end
    seen = now
  end

  local function rows_of(pools)
    local rows = {}
    local function row_of(name)
      rows[name] = rows[name] or { name = name, totals = {}, gauges = {}, oldest_us = 0 }
      return rows[name]
    end
    for name, sums in pairs(retired) do
      add(row_of(name).totals, sums)
      add(row_of(name).gauges, NOTHING)
    end
    for _, pool in ipairs(pools) do
      local row = row_of(pool.row)
      add(row.totals, totals(pool))
      add(row.gauges, gauges(pool))
      row.oldest_us = math.max(row.oldest_us, pool.oldest_wait_us)
    end
    local list = {}
    for _, name in ipairs(keys(rows)) do
      list[#list + 1] = rows[name]
    end
    return list
  end

  --- The text of all metrics.
  function X.text()
    local pools = source.pools()
    X.note(pools)
    local data = {
      rows = rows_of(pools),
      bounds_us = source.bounds_us,
      process = source.process(),
      policies = by_policy(source.policies()),
      started_at = source.started_at,
      version = source.version,
    }
    local out = {}
    for _, row in ipairs(source.metrics) do
      out[#out + 1] = ("# HELP %s %s\n"):format(row.name,
        (row.help:gsub("[\\\n]", { ["\\"] = "\\\\", ["\n"] = "\\n" })))
      out[#out + 1] = ("# TYPE %s %s\n"):format(row.name, row.type)
      M.families[row.name](data, writer(out, row, split(row.labels)))
    end
    return table.concat(out)
  end

  return X
end

return M
