-- handlers_spec.lua - rest.lua over a fake source: formulas, nulls, and who may see what.
local fake = require "admin.fake"
local json = require "poolrt.json"
local rest = require "poolrt.rest"

local null = json.null
local pool = fake.pool

local function request(over)
  local rq = { method = "GET", target = "/api/v1/pools", is_admin = true, is_loopback = true,
               may_write = true }
  for k, v in pairs(over) do
    rq[k] = v
  end
  return rq
end

local function api(pools, policies)
  local source = fake.source(pools, policies)
  local handle, tick = rest.new(source)
  local function get(target, over)
    local rq = request(over or {})
    rq.target = target
    local status, _, body, headers = handle(rq)
    return status, json.decode(body), headers
  end
  local function data(target)
    local status, body = get(target)
    assert.equal(200, status)
    return body.data
  end
  return { get = get, data = data, tick = tick, source = source, handle = handle }
end

describe("handlers", function()
  it("compute the ratios as documented", function()
    local a = api { pool { timed_out = 2, cancelled = 3, failed = 4, drained = 5, refused = 6,
                           rejected = 5 } }
    local s = a.data "/api/v1/pools/app/stats"
    assert.equal(100 / 125, s.efficiency.success_rate)
    assert.equal(0.88, s.efficiency.connection_reuse_rate)
    assert.equal(0.5, s.efficiency.pool_utilization)
    assert.equal(3, s.efficiency.avg_connection_lifetime_sec)
    assert.equal(50, s.current.utilization_percent)
    assert.equal(20, s.performance.average_acquire_time_ms)
    assert.equal(20, s.performance.max_acquire_time_ms)
    assert.equal(95 / 12, s.performance.queries_per_connection)
    assert.equal(14, s.usage_patterns.peak_hour)
    assert.equal(8.5, s.usage_patterns.avg_connections_by_hour["14"])
    assert.equal(null, s.usage_patterns.avg_connections_by_hour["13"])
    local st = a.data("/api/v1/pools/app").statistics
    assert.equal(125, st.acquire_attempts_total)
    assert.equal(25, st.acquire_failures_total)
    assert.equal(11, st.rejections_total)
    assert.equal(0.2, st.pool_efficiency)
  end)

  it("say null where nothing was counted", function()
    local zero = { count = 0, sum_us = 0, max_us = 0, p50 = 0, p75 = 0, p90 = 0, p95 = 0, p99 = 0,
                   upto = { 0, 0, 0, 0 } }
    local a = api { pool { acquired = 0, released = 0, active = 0, opened = 0, closed = 0,
                           timed_out = 0, queries = 0, statement_hits = 0, statement_misses = 0,
                           acquire = zero, wait = zero } }
    local s = a.data "/api/v1/pools/app/stats"
    for _, name in ipairs { "average_acquire_time_ms", "p99_acquire_time_ms",
      "max_acquire_time_ms", "connections_per_second", "queries_per_connection" } do
      assert.equal(null, s.performance[name], name)
    end
    for _, name in ipairs { "success_rate", "cache_hit_rate", "connection_reuse_rate",
      "avg_connection_lifetime_sec" } do
      assert.equal(null, s.efficiency[name], name)
    end
    assert.equal(null, s.wait_time_histogram.percentiles.p50)
  end)

  it("show the hit rate of statements and what is pinned", function()
    local a = api { pool() }
    assert.equal(0.75, a.data("/api/v1/pools/app/stats").efficiency.cache_hit_rate)
    local s = a.data("/api/v1/pools/app").statistics
    assert.equal(0.75, s.cache_hit_rate)
    assert.same({ temp = 1 }, s.pinned_connections)
    assert.equal(2, s.resets_total)
  end)

  it("never show a negative reuse", function()
    local s = api({ pool { opened = 200 } }).data "/api/v1/pools/app/stats"
    assert.equal(0, s.efficiency.connection_reuse_rate)
  end)

  it("take the rate from the last minute", function()
    local a = api { pool() }
    a.tick()
    a.source.clock = 1010
    a.source.list = { pool { acquired = 150 } }
    local s = a.data "/api/v1/pools/app/stats"
    assert.equal(5, s.performance.connections_per_second)
  end)

  it("show off settings as null or 0", function()
    local c = api({ pool() }).data("/api/v1/pools/app").config
    assert.equal(null, c.creation_throttle)
    c = api({ pool { config = { max_size = 1, creation_throttle = 7, idle_timeout = 0 } } })
      .data("/api/v1/pools/app").config
    assert.equal(7, c.creation_throttle)
    assert.equal(0, c.idle_timeout_sec)
  end)

  it("prefer the pool whose name is the whole id", function()
    local a = api { pool { id = "pool_app", clients = 1 }, pool { id = "app", clients = 2 } }
    assert.equal("pool_app", a.data("/api/v1/pools/pool_app").id)
    assert.equal("app", a.data("/api/v1/pools/app").id)
  end)

  it("page through many pools in order", function()
    local list = {}
    for i = 1, 250 do
      list[i] = pool { id = ("p%03d"):format((i * 7) % 250) }
    end
    local a, seen = api(list), 0
    for page, n in ipairs { 100, 100, 50, 0 } do
      local _, body = a.get("/api/v1/pools?page=" .. page)
      assert.equal(n, #body.data)
      assert.equal(250, body.pagination.total_count)
      for _, p in ipairs(body.data) do
        assert.equal(("p%03d"):format(seen), p.id)
        seen = seen + 1
      end
    end
  end)

  it("count a request's number up", function()
    local a = api { pool() }
    local _, one = a.get "/health"
    local _, two = a.get "/nope"
    assert.equal("req_1", one.meta.requestId)
    assert.equal("req_2", two.meta.requestId)
  end)

  it("call the runtime unhealthy, with 503, when a policy refuses clients", function()
    local a = api { pool() }
    a.source.trouble_names = "route/tenant"
    local status, body = a.get "/health"
    assert.equal(503, status)
    assert.equal("UNHEALTHY", body.data.status)
    assert.truthy(body.data.issues[1].message:find("route/tenant", 1, true))
  end)

  it("name no pool in /health that a client has named", function()
    local a = api { pool { id = "clients_own", row = "*", waiting = 99 } }
    local status, body = a.get("/health", { is_admin = false })
    assert.equal(200, status)
    assert.equal("DEGRADED", body.data.status)
    assert.equal("*", body.data.issues[1].pool)
    assert.is_nil(json.encode(body):find "clients_own")
  end)

  it("let nobody see anything from elsewhere", function()
    local a = api { pool() }
    local stranger = { is_admin = false, is_loopback = false }
    for _, path in ipairs { "/health", "/metrics", "/api/v1/pools", "/nope" } do
      local status, body, headers = a.get(path, stranger)
      assert.equal(401, status)
      assert.equal("unauthorized", body.error.code)
      assert.truthy(headers["WWW-Authenticate"])
    end
    stranger.is_admin = true
    assert.equal(200, (a.get("/health", stranger)))
  end)

  it("answer what the gate refused", function()
    local a = api {}
    local status, body, headers = a.get("/x", { refused = 429, code = "too_many_requests",
                                                text = "slow down" })
    assert.equal(429, status)
    assert.equal("slow down", body.error.message)
    assert.equal("1", headers["Retry-After"])
  end)

  -- ---- sessions and connections ----

  local function row(over)
    local r = { number = 7, other = 9, state = "active", pool = "app", user = "acme",
                database = "db", client = "[::1]:4000", server = "10.0.0.1:5432", pid = 123,
                age_us = 61e6, request_us = 5e6, sent = 10, received = 20, quiet_us = 2e6,
                is_request = false, in_transaction = false, pinned = {} }
    for k, v in pairs(over or {}) do
      r[k] = v
    end
    return r
  end

  it("have every field of a session and of a connection (S0-64 to 81, 144 to 149)", function()
    local a = api {}
    a.source.answer = { rows = { row() }, matches = 1 }
    local function has(data, names)
      for name in names:gmatch "%S+" do
        local value = data
        for part in name:gmatch "[^.]+" do
          value = value[part]
        end
        assert(value ~= nil, name .. " is missing")
      end
    end
    has(a.data "/api/v1/connections"[1], [[id pool_id user database client_addr state current_query
      query_start_time queries_executed transactions connected_at last_activity connection_age_sec
      idle_time_sec bytes_sent bytes_received]])
    has(a.data "/api/v1/connections/conn_7", [[id pool_id user database client_addr server_addr
      protocol_version state current_query query_start_time transaction_id isolation_level
      variables.timezone variables.date_format variables.statement_timeout
      statistics.queries_executed statistics.transactions_committed
      statistics.transactions_rolled_back statistics.rows_fetched statistics.rows_affected
      statistics.bytes_sent statistics.bytes_received statistics.cache_hits statistics.cache_misses
      timings.connected_at timings.last_activity timings.connection_age_sec timings.idle_time_sec
      timings.total_query_time_ms health.is_valid health.last_validated
      health.validation_failures]])
    has(a.data "/api/v1/sessions"[1], [[id user database client_addr state current_query started_at
      queries_count transaction_id isolation_level]])
    has(a.data "/api/v1/sessions/session_7", [[id user database client_addr server_process_id state
      transaction_id isolation_level variables.timezone variables.date_format
      variables.statement_timeout statistics.queries_executed statistics.transactions_committed
      statistics.transactions_rolled_back statistics.bytes_sent statistics.bytes_received
      timings.started_at timings.last_query_start timings.session_duration_sec]])
  end)

  it("show a session's address without its port, a connection's with it", function()
    local a = api {}
    for from, ip in pairs { ["[::1]:4000"] = "::1", ["10.0.0.7:1"] = "10.0.0.7", unix = "unix" } do
      a.source.answer = { rows = { row { client = from } }, matches = 1 }
      assert.equal(ip, a.data "/api/v1/sessions"[1].client_addr)
      assert.equal(from, a.data "/api/v1/connections"[1].client_addr)
    end
  end)

  it("say null of a connection what it does not have", function()
    local a = api {}
    a.source.answer = { rows = { { number = 7, state = "idle", age_us = 1, is_request = false,
                                   in_transaction = false, pinned = {} } }, matches = 1 }
    local c = a.data "/api/v1/connections/conn_7"
    for _, name in ipairs { "session_id", "client_addr", "queue_position", "current_query" } do
      assert.equal(null, c[name], name)
    end
    assert.equal(null, c.timings.request_age_sec)
    assert.equal(null, c.timings.last_activity)
    assert.equal(null, c.statistics.bytes_sent)
  end)

  it("ask the workers for the page and the filters of the request, and no more", function()
    local a = api {}
    a.source.answer = { rows = {}, matches = 77 }
    local _, body = a.get "/api/v1/sessions?status=idle&pool_id=pool_app&user=a%20b&page=3&limit=25"
    assert.same({ sessions = true, state = "idle", pool = "pool_app", user = "a b", skip = 50,
                  want = 25 }, a.source.visited)
    assert.same({ page = 3, page_size = 25, total_count = 77 }, body.pagination)
  end)

  it("force the end of a session unless told not to, and of a connection only if told", function()
    local a = api {}
    a.source.answer = { rows = {}, matches = 1, verdict = "killed", was_in_transaction = true,
                        rolled_back = "unknown" }
    for target, force in pairs {
      ["/api/v1/sessions/session_7"] = true, ["/api/v1/sessions/session_7?force=false"] = false,
      ["/api/v1/connections/conn_7"] = false, ["/api/v1/connections/conn_7?force=true"] = true,
    } do
      local status, body = a.get(target, { method = "DELETE" })
      assert.equal(200, status)
      assert.equal(force, a.source.visited.force)
      assert.equal(7, a.source.visited.number)
      assert.equal(null, body.data.transaction_rolled_back)
    end
  end)

  it("say why something was not ended", function()
    local a = api {}
    for verdict, code in pairs { not_found = 404, in_transaction = 409, busy = 409 } do
      a.source.answer = { rows = {}, matches = 0, verdict = verdict, rolled_back = "no",
                          was_in_transaction = verdict == "in_transaction" }
      local status, body = a.get("/api/v1/connections/conn_7", { method = "DELETE" })
      assert.equal(code, status)
      assert.equal(verdict, body.error.code)
      assert.equal("conn_7", body.error.details.connection_id)
    end
    a.source.answer = nil
    local status, body = a.get("/api/v1/connections/conn_7", { method = "DELETE" })
    assert.equal(504, status)
    assert.equal("timeout", body.error.code)
  end)

  it("let nobody end anything where no token is configured", function()
    local a = api {}
    local status, body = a.get("/api/v1/sessions/session_7",
      { method = "DELETE", may_write = false })
    assert.equal(403, status)
    assert.equal("forbidden", body.error.code)
    assert.is_nil(a.source.visited)
  end)

  it("leave bugs to the caller", function()
    local a = api { { id = "app" } } -- a pool without numbers
    local ok, why = pcall(a.handle, request { target = "/api/v1/pools/app" })
    assert.is_false(ok)
    assert.is_string(why)
  end)
end)
