-- handlers_spec.lua - rest.lua over a fake source: formulas, nulls, and who may see what.
local fake = require "admin.fake"
local json = require "poolrt.json"
local rest = require "poolrt.rest"

local null = json.null
local pool = fake.pool

local function request(over)
  local rq = { method = "GET", target = "/api/v1/pools", is_admin = true, is_loopback = true }
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

  it("leave bugs to the caller", function()
    local a = api { { id = "app" } } -- a pool without numbers
    local ok, why = pcall(a.handle, request { target = "/api/v1/pools/app" })
    assert.is_false(ok)
    assert.is_string(why)
  end)
end)
