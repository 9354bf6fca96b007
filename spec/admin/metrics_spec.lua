local exposition = require "admin.exposition"
local fake = require "admin.fake"
local health = require "poolrt.health"
local metrics = require "poolrt.metrics"
local rates = require "poolrt.rates"

local pool, rows, source = fake.pool, fake.rows, fake.source

local function read(x)
  return exposition.parse(x.text())
end

describe("metrics", function()
  it("has one function for each row of metrics.def, and none more", function()
    assert.is_true(#rows() > 40)
    metrics.new(source {})
    local s = source {}
    local last = table.remove(s.metrics)
    assert.has_error(function() metrics.new(s) end)
    s.metrics[#s.metrics + 1] = last
    s.metrics[#s.metrics + 1] = { name = "nobody_total", type = "counter", labels = "", help = "x" }
    assert.has_error(function() metrics.new(s) end)
  end)

  it("writes the numbers that the pools have", function()
    local f = read(metrics.new(source { pool() }))
    local function is(want, name, labels)
      assert.equal(want, exposition.value(f, name, labels))
    end
    is(4, "db_pool_connections", { service = "app", state = "active" })
    is(6, "db_pool_connections", { service = "app", state = "idle" })
    is(20, "db_pool_connections", { service = "app", state = "max" })
    is(0.2, "db_pool_utilization_ratio", { service = "app" })
    is(20, "db_pool_utilization_percent", { service = "app" })
    is(1, "db_pool_connection_errors_total", { service = "app", error_type = "timeout" })
    is(0, "db_pool_connection_errors_total", { service = "app", error_type = "closed" })
    is(1, "db_pool_exhausted_total", { service = "app" })
    is(1, "poolrt_pool_listeners", { pool = "app" })
    is(3, "poolrt_pool_listen_channels", { pool = "app" })
    is(7, "poolrt_pool_notifications_total", { pool = "app" })
    is(2, "poolrt_pool_listen_gaps_total", { pool = "app" })
    is(100, "poolrt_pool_acquisitions_total", { pool = "app" })
    is(0, "db_pool_acquire_duration_seconds_bucket", { service = "app", le = "0.01" })
    is(100, "db_pool_acquire_duration_seconds_bucket", { service = "app", le = "0.05" })
    is(100, "db_pool_acquire_duration_seconds_bucket", { service = "app", le = "+Inf" })
    is(2, "db_pool_acquire_duration_seconds_sum", { service = "app" })
    is(5, "poolrt_disconnects_total", { reason = "client_quit" })
    is(2 ^ 40, "poolrt_client_received_bytes_total")
    is(2, "poolrt_partition_limit_violations_total", { pool = "app", partition = "default" })
    is(60, "poolrt_pool_statement_hits_total", { pool = "app" })
    is(4, "poolrt_pool_pins_total", { pool = "app", reason = "temp" })
    is(1, "poolrt_pool_pinned", { pool = "app", reason = "temp" })
    is(1, "poolrt_build_info", { version = "1.2.3" })
  end)

  it("adds up pools whose names clients chose, under their row", function()
    local text = metrics.new(source {
      pool { id = "secret_a", row = "*" }, pool { id = "secret_b", row = "*", active = 1 }, pool(),
    }).text()
    assert.is_nil(text:find("secret", 1, true))
    local f = exposition.parse(text)
    assert.equal(5, exposition.value(f, "db_pool_connections", { service = "*", state = "active" }))
    assert.equal(40, exposition.value(f, "db_pool_connections", { service = "*", state = "max" }))
    assert.equal(200, exposition.value(f, "poolrt_pool_acquisitions_total", { pool = "*" }))
    assert.equal(2, exposition.value(f, "poolrt_pool_pools", { pool = "*" }))
    assert.equal(200,
      exposition.value(f, "db_pool_acquire_duration_seconds_count", { service = "*" }))
  end)

  it("keeps what a pool had counted when the pool is gone", function()
    local s = source { pool { id = "a", row = "*" }, pool { id = "b", row = "*" } }
    local x = metrics.new(s)
    local function total()
      return exposition.value(read(x), "poolrt_pool_acquisitions_total", { pool = "*" })
    end
    assert.equal(200, total())
    s.list = { pool { id = "b", row = "*" } }
    assert.equal(200, total())
    assert.equal(200, total())
    s.list = { pool { id = "a", row = "*", created_at = 2, acquired = 7 } } -- made again
    assert.equal(207, total())
    s.list = {}
    local f = read(x)
    assert.equal(207, exposition.value(f, "poolrt_pool_acquisitions_total", { pool = "*" }))
    assert.equal(0, exposition.value(f, "db_pool_connections", { service = "*", state = "max" }))
    assert.equal(0, exposition.value(f, "db_pool_utilization_ratio", { service = "*" }))
  end)

  it("escapes labels and keeps them UTF-8", function()
    local text = metrics.new(source { pool { row = 'a"b\\c\n\255\195\188' } }).text()
    local f = exposition.parse(text)
    local want = 'a"b\\c\n\239\191\189\195\188'
    assert.equal(100, exposition.value(f, "poolrt_pool_acquisitions_total", { pool = want }))
    assert.is_nil(text:find "\255")
  end)

  it("counts a policy once, whatever its settings", function()
    local function row(state, calls)
      return { policy = "route/tenant", state = state, calls = calls, failures = 0, kills = 0,
               swaps = 1, rejected_versions = 0 }
    end
    local f = read(metrics.new(source({}, { row("active", 3), row("quarantined", 4) })))
    local labels = { policy = "route/tenant" }
    assert.equal(7, exposition.value(f, "poolrt_policy_calls_total", labels))
    assert.equal(0, exposition.value(f, "poolrt_policy_active", labels))
  end)

  it("has a reader that refuses what Prometheus would", function()
    local head = "# HELP a b\n# TYPE a gauge\n"
    local hist = "# HELP a b\n# TYPE a histogram\n"
    exposition.parse(head .. 'a{x="1"} 1\n')
    for _, text in ipairs {
      head .. "a 1", "a 1\n", head .. "b 1\n", head .. "a 1\na 1\n", head .. "a{x=1} 1\n",
      head .. 'a{x="1} 1\n', head .. 'a{x="\\q"} 1\n', head .. 'a{x="1",} 1\n', head .. "a x\n",
      head .. head, "# TYPE a gauge\na 1\n", "# HELP a b\n# TYPE a counter\na -1\n",
      hist .. 'a_bucket{le="1"} 2\na_bucket{le="+Inf"} 1\na_sum 1\na_count 1\n',
      hist .. 'a_bucket{le="+Inf"} 1\na_sum 1\na_count 2\n',
      hist .. 'a_bucket{le="1"} 1\na_sum 1\na_count 1\n',
    } do
      assert.is_false((pcall(exposition.parse, text)), text)
    end
  end)
end)

describe("rates", function()
  it("takes the difference over the last minute", function()
    local r = rates.new()
    assert.is_nil(r.of(pool(), 100))
    r.note({ pool() }, 100)
    assert.is_nil(r.of(pool(), 100.5))
    local last = r.of(pool { acquired = 150 }, 110)
    assert.equal(50, last.acquired)
    assert.equal(10, last.seconds)
    r.note({ pool { acquired = 150 } }, 110)
    assert.equal(20, r.of(pool { acquired = 170 }, 165).acquired)
    assert.is_nil(r.of(pool(), 300))
  end)

  it("starts anew with a pool that was made again", function()
    local r = rates.new()
    r.note({ pool() }, 100)
    assert.is_nil(r.of(pool { created_at = 2, acquired = 1 }, 110))
    r.note({}, 110)
    assert.is_nil(r.of(pool(), 120))
  end)
end)

describe("health", function()
  local function status(over, last)
    local word, issues = health.pool(pool(over), last)
    return word, issues[1] and issues[1].code
  end

  it("finds nothing wrong with a pool at rest", function()
    assert.same({ "HEALTHY" }, { status() })
    assert.same({ "HEALTHY" }, { status { open = 20, idle = 20, active = 0 } })
    assert.same({ "HEALTHY" }, { status { active = 18, waiting = 10 } })
  end)

  it("calls a pool degraded that is nearly full, queued or slow", function()
    assert.same({ "DEGRADED", "utilization" }, { status { active = 19 } })
    assert.same({ "DEGRADED", "wait_queue" }, { status { waiting = 11 } })
    local last = { acquire_count = 10, acquire_sum_us = 1010000, connect_failed = 0, opened = 0 }
    assert.same({ "DEGRADED", "acquire_time" }, { status({}, last) })
    last.acquire_sum_us = 1000000
    assert.same({ "HEALTHY" }, { status({}, last) })
  end)

  it("calls a pool unhealthy that has no server and gets none", function()
    local last = { acquire_count = 0, acquire_sum_us = 0, connect_failed = 3, opened = 0 }
    assert.same({ "UNHEALTHY", "connect_failed" }, { status({ active = 0, idle = 0 }, last) })
    assert.same({ "DEGRADED", "connect_failed" }, { status({}, last) })
    last.opened = 1
    assert.same({ "HEALTHY" }, { status({ active = 0, idle = 0 }, last) })
  end)

  it("names policies that refuse clients", function()
    assert.is_nil(health.policies "")
    assert.equal("UNHEALTHY", health.policies("route/tenant").status)
    assert.truthy(health.policies("route/tenant").message:find("route/tenant", 1, true))
  end)
end)
