-- fake.lua - what core/admin/bind.c gives to Lua, with numbers of the spec's choice.
local M = {}

local BOUNDS = { 10000, 50000, 100000, 500000 }

-- The rows of metrics.def as bind.c gives them.
function M.rows()
  local list = {}
  for line in io.lines "core/base/metrics.def" do
    local name, kind, labels, help = line:match '^METRIC%((%S+), (%a+), "([^"]*)", "(.*)"%)$'
    if name then
      list[#list + 1] = { name = name, type = kind, labels = labels, help = help }
    end
  end
  return list
end

-- n times 20 ms
function M.histogram(n)
  return { count = n, sum_us = n * 20000, max_us = 20000, upto = { 0, n, n, n }, p50 = 20000,
           p75 = 20000, p90 = 20000, p95 = 20000, p99 = 20000 }
end

local function hours()
  local n, seen = {}, {}
  for i = 1, 24 do
    n[i], seen[i] = 0, false
  end
  n[15], seen[15] = 100, 8.5
  return n, seen
end

function M.pool(over)
  local by_hour, open_by_hour = hours()
  local p = {
    id = "app", row = "app", created_at = 1, open = 10, idle = 6,
    active = 4, waiting = 0, connecting = 0, closing = 0, clients = 3, oldest_wait_us = 0,
    acquired = 100, released = 96, opened = 12, closed = 2, connect_failed = 0, evicted = 0,
    queued = 0, timed_out = 1, cancelled = 0, failed = 0, drained = 0, refused = 0, rejected = 0,
    transactions = 90, queries = 95, errors_timeout = 1, errors_closed = 0, errors_other = 0,
    exhausted = 1, statement_hits = 60, statement_misses = 20, statement_evictions = 3,
    listeners = 1, listen_channels = 3, notifications = 7, listen_gaps = 2,
    parses_saved = 5, resets = 2, pins = { temp = 4, role = 0 }, pinned = { temp = 1, role = 0 },
    acquire = M.histogram(100), wait = M.histogram(100), closed_age_us = 6e6,
    acquisitions_by_hour = by_hour, connections_by_hour = open_by_hour, mode = "transaction",
    config = { max_size = 20, min_size = 2, initial_size = 2, acquire_timeout = 30,
               idle_timeout = 600, max_lifetime = 3600, creation_throttle = 0 },
    partitions = { { name = "default", active = 4, waiting = 0, acquired = 100, released = 96,
                     limit_violations = 2, max_connections = 0, min_connections = 0,
                     max_wait_queue = 0 } },
  }
  for k, v in pairs(over or {}) do
    p[k] = v
  end
  return p
end

function M.source(pools, policies)
  local s = { metrics = M.rows(), bounds_us = BOUNDS, started_at = 1700000000, version = "1.2.3" }
  s.list, s.clock, s.trouble_names = pools, 1000, ""
  s.errors = { not_found = { status = 404, text = "there is no such object" } }
  function s.now() return 1700000000 + s.clock, s.clock end
  function s.trouble() return s.trouble_names end
  function s.pools(id)
    local list = {}
    for _, p in ipairs(s.list) do
      list[#list + 1] = (not id or p.id == id) and p or nil
    end
    return list
  end
  function s.policies() return policies or {} end
  --- What the workers answer; nil: nothing in time.
  function s.visit(query)
    s.visited = query
    return s.answer
  end
  function s.process()
    return { clients = 3, clients_waiting = 1, clients_active = 2, accepted = 9, logins = 8,
             login_failures = 1, transactions = 90, queries = 95, bytes_from_clients = 2 ^ 40,
             bytes_to_clients = 5, cancels_received = 0, cancels_forwarded = 0,
             protocol_violations = 0, workers = 2, admin_requests = 4, admin_auth_failures = 0,
             disconnects = { client_quit = 5, shutdown = 0 } }
  end
  return s
end

return M
