-- rest_spec.lua - the admin API of a running poolrt, from outside: curl, and raw sockets for what
-- no client would send. The runtime is started by spec/support/poolrt.lua, which gives it PORT and
-- ADMIN_PORT in its environment; no PostgreSQL is needed.
local P = require "support.poolrt"
local exposition = require "admin.exposition"
local json = require "poolrt.json"
local socket = require "admin.socket"

local TOKEN, PASSWORD = "f7Qx9admintoken", "hunter2password"

local CONFIG = ([[
return {
  workers = 1,
  listen = { "127.0.0.1:" .. env("PORT") },
  admin = { listen = "127.0.0.1:" .. env("ADMIN_PORT"), %s },
  auth = { type = "trust", users = { acme = "PASSWORD" } },
  pools = {
    app = {
      target = "host=127.0.0.1 port=1 dbname=app password=PASSWORD",
      mode = "transaction", min_size = 0, initial_size = 0, max_size = 100,
      policies = { "route/tenant" },
      partitions = { acme = { type = "tenant", match = "acme", max_connections = 5 } },
    },
  },
}
]]):gsub("PASSWORD", PASSWORD)

local rt

-- curl: status, body, headers (names in lower case). `options` are curl's own.
local function curl(path, options)
  local command = ("curl -s -S -i --max-time 10 %s '%s%s' 2>&1"):format(options or "", rt.admin_url,
    path)
  local p = assert(io.popen(command))
  local text = p:read "*a"
  p:close()
  text = text:gsub("^HTTP/1.1 100 Continue\r\n\r\n", "")
  local head, body = text:match "^(.-\r\n)\r\n(.*)$"
  assert(head, "no answer: " .. text)
  local headers = {}
  for name, value in head:gmatch "\n([^:\r\n]+): ([^\r\n]*)" do
    headers[name:lower()] = value
  end
  return tonumber(head:match "^HTTP/1.1 (%d+)"), body, headers
end

local AUTH = "-H 'Authorization: Bearer " .. TOKEN .. "'"

local function get(path, options)
  local status, body, headers = curl(path, AUTH .. " " .. (options or ""))
  return status, json.decode(body), headers
end

local function data(path)
  local status, body = get(path)
  assert.equal(200, status, path)
  assert.is_true(body.success)
  return body.data, body
end

local function is_error(status, code, got_status, body)
  assert.equal(status, got_status)
  assert.is_false(body.success)
  assert.equal(code, body.error.code)
  assert.is_string(body.error.message)
  assert.truthy(body.meta.requestId:find "^req_%d+$")
end

-- Each name of `fields` is in t with that type; "?" allows null (not known yet).
local function has(t, fields)
  for name, kind in pairs(fields) do
    local value = t[name]
    local optional = kind:sub(-1) == "?"
    kind = optional and kind:sub(1, -2) or kind
    assert(value ~= nil, name .. " is missing")
    assert(optional and value == json.null or type(value) == kind,
      name .. " is " .. tostring(value) .. ", not a " .. kind)
  end
end

local function words(text, kind)
  local fields = {}
  for name in text:gmatch "%S+" do
    fields[name] = kind
  end
  return fields
end

local function raw(bytes, seconds)
  return socket.exchange(rt.admin_port, bytes, seconds)
end

local function raw_status(bytes, seconds)
  local text = raw(bytes, seconds)
  return tonumber(text:match "^HTTP/1.1 (%d+) ") or text
end

describe("admin API", function()
  setup(function()
    rt = P.start { config = CONFIG:format(('token = "%s"'):format(TOKEN)) }
  end)

  teardown(function()
    rt.stop()
  end)

  describe("GET /pools", function()
    it("lists pools with the fields of S0-26", function()
      local list, body = data "/api/v1/pools"
      assert.is_true(#list >= 1)
      for _, pool in ipairs(list) do
        has(pool, { id = "string", name = "string" })
        has(pool, words("min_connections max_connections active_connections idle_connections "
          .. "wait_queue_size total_connections utilization_percent", "number"))
      end
      assert.equal("app", list[1].id)
      assert.equal(100, list[1].max_connections)
      assert.equal(#list, body.pagination.total_count)
    end)

    it("carries meta and pagination", function()
      local _, body = data "/api/v1/pools?page=2&page_size=1000"
      assert.same({}, body.data)
      assert.same({ page = 2, page_size = 1000 }, {
        page = body.pagination.page, page_size = body.pagination.page_size })
      assert.truthy(body.meta.requestId:find "^req_%d+$")
      assert.truthy(body.meta.timestamp:find "^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%dZ$")
      assert.truthy(body.meta.version:find "^%d+%.%d+%.%d+")
      assert.equal(1, #data "/api/v1/pools?limit=1")
    end)

    it("writes an empty page as a list", function()
      local _, body = curl("/api/v1/pools?page=999999", AUTH)
      assert.truthy(body:find('"data":[]', 1, true))
    end)
  end)

  describe("GET /pools/{id}", function()
    it("has the configuration under the names of S0-30 to 42", function()
      local pool = data "/api/v1/pools/app"
      has(pool, { id = "string", name = "string", config = "table", statistics = "table",
                  health = "table" })
      has(pool.config, words("min_connections max_connections initial_size connection_timeout_sec "
        .. "idle_timeout_sec max_lifetime_sec max_wait_queue_size maintenance_interval_sec",
        "number"))
      has(pool.config, { fair_queue = "boolean", enable_partitioning = "boolean",
                         creation_throttle = "number?" })
      has(pool.config, { validate_on_acquire = "boolean?", validate_on_release = "boolean?",
                         validation_timeout_sec = "number?", statement_cache_size = "number?",
                         leak_detection_threshold_sec = "number?" })
      assert.equal(100, pool.config.max_connections)
      assert.equal(30, pool.config.connection_timeout_sec)
      assert.is_true(pool.config.enable_partitioning)
    end)

    it("has the statistics of S0-43 to 50", function()
      local s = data("/api/v1/pools/app").statistics
      has(s, words("total_connections active_connections idle_connections wait_queue_size "
        .. "connections_created_total connections_closed_total acquisitions_total releases_total "
        .. "timeouts_total pool_utilization", "number"))
      has(s, words("validation_failures_total leaks_detected_total average_acquire_time_ms "
        .. "p95_acquire_time_ms p99_acquire_time_ms success_rate cache_hit_rate "
        .. "connection_reuse_rate", "number?"))
      has(s, words("resets_total parses_saved_total listeners listen_channels "
        .. "notifications_total listen_gaps_total", "number"))
      has(s, { pinned_connections = "table" })
      assert.equal(s.active_connections, s.acquisitions_total - s.releases_total)
      assert.is_true(s.pool_utilization >= 0 and s.pool_utilization <= 1)
    end)

    it("has health as in S0-51", function()
      local h = data("/api/v1/pools/app").health
      has(h, { status = "string", issues = "table", last_checked = "string" })
      assert.equal("HEALTHY", h.status)
    end)

    it("shows partitions", function()
      local found = {}
      for _, p in ipairs(data("/api/v1/pools/app").partitions) do
        found[p.name] = p
        has(p, { id = "string", limits = "table", statistics = "table" })
      end
      assert.equal("app.acme", found.acme.id)
      assert.equal("TENANT", found.acme.type)
      assert.equal(5, found.acme.limits.max_connections)
      assert.equal(json.null, found.default.limits.max_connections)
    end)

    it("takes the id with and without pool_", function()
      assert.equal("app", data("/api/v1/pools/pool_app").id)
      assert.equal("app", data("/api/v1/pools/%61pp").id)
    end)

    it("answers 404 to an unknown id, harmlessly", function()
      for _, id in ipairs {
        "nope", "pool_", "App", "app%2f", "%22%3Cscript%3E", "%ff", "..", "app.acme",
      } do
        is_error(404, "not_found", get("/api/v1/pools/" .. id, "--path-as-is"))
        is_error(404, "not_found", get("/api/v1/pools/" .. id .. "/stats", "--path-as-is"))
      end
    end)
  end)

  describe("GET /pools/{id}/stats", function()
    it("has the fields of S0-102 to 106", function()
      local s = data "/api/v1/pools/app/stats"
      has(s, { current = "table", totals = "table", performance = "table", efficiency = "table",
               wait_time_histogram = "table", usage_patterns = "table" })
      has(s.current, words("active_connections idle_connections total_connections "
        .. "wait_queue_size utilization_percent", "number"))
      has(s.totals, words("connections_created connections_closed acquisitions releases timeouts",
        "number"))
      has(s.totals, words("validation_failures leaks_detected", "number?"))
      has(s.performance, words("average_acquire_time_ms p50_acquire_time_ms p95_acquire_time_ms "
        .. "p99_acquire_time_ms max_acquire_time_ms connections_per_second "
        .. "queries_per_connection", "number?"))
      has(s.efficiency, { pool_utilization = "number" })
      has(s.efficiency, words("success_rate cache_hit_rate connection_reuse_rate "
        .. "avg_connection_lifetime_sec", "number?"))
    end)

    it("has a histogram whose counts add up (S0-107, 108)", function()
      local s = data "/api/v1/pools/app/stats"
      local ranges, sum = {}, 0
      for i, b in ipairs(s.wait_time_histogram.buckets) do
        ranges[i] = b.range
        sum = sum + b.count
        assert.is_true(b.count >= 0)
      end
      assert.same({ "0-10ms", "10-50ms", "50-100ms", "100-500ms", "500ms+" }, ranges)
      assert.is_true(sum >= s.totals.acquisitions)
      has(s.wait_time_histogram.percentiles, words("p50 p75 p90 p95 p99", "number?"))
    end)

    it("has 24 hours (S0-109 to 111)", function()
      local u = data("/api/v1/pools/app/stats").usage_patterns
      has(u, { peak_hour = "number?" })
      for hour = 0, 23 do
        has(u.acquisitions_by_hour, { [tostring(hour)] = "number" })
        has(u.avg_connections_by_hour, { [tostring(hour)] = "number?" })
      end
    end)
  end)

  it("GET /policies names file, version and counters", function()
    local list, body = data "/api/v1/policies"
    local p = assert(list[1])
    has(p, words("name version policy file sha256 state loaded_at", "string"))
    has(p, words("swaps calls failures kills rejected_versions", "number"))
    has(p, { hooks = "table", pools = "table", last_error = "string?", last_error_at = "string?" })
    assert.equal("route/tenant", p.policy)
    assert.equal("active", p.state)
    assert.equal("route", p.hooks[1])
    assert.equal("app", p.pools[1])
    assert.equal(#list, body.pagination.total_count)
  end)

  it("GET /health says how it is, without a token on loopback", function()
    for _, path in ipairs { "/health", "/api/v1/health" } do
      local status, body, headers = curl(path)
      assert.equal(200, status)
      assert.equal("application/json", headers["content-type"])
      local d = json.decode(body).data
      has(d, { status = "string", issues = "table", last_checked = "string", pools = "number",
               uptime_sec = "number" })
    end
  end)

  it("GET /metrics is valid Prometheus text, without a token on loopback", function()
    for _, path in ipairs { "/metrics", "/api/v1/metrics" } do
      local status, body, headers = curl(path)
      assert.equal(200, status)
      assert.equal("text/plain; version=0.0.4; charset=utf-8", headers["content-type"])
      local f = exposition.parse(body)
      local service = { service = "app" }
      assert.equal(100,
        exposition.value(f, "db_pool_connections", { service = "app", state = "max" }))
      assert.is_number(exposition.value(f, "db_pool_utilization_ratio", service))
      assert.is_number(exposition.value(f, "db_pool_exhausted_total", service))
      assert.is_number(exposition.value(f, "db_pool_acquire_duration_seconds_count", service))
      assert.is_number(exposition.value(f, "db_pool_connection_errors_total",
        { service = "app", error_type = "timeout" }))
      assert.is_number(exposition.value(f, "poolrt_pool_acquisitions_total", { pool = "app" }))
      assert.is_number(exposition.value(f, "poolrt_disconnects_total", { reason = "client_quit" }))
      assert.is_number(exposition.value(f, "poolrt_policy_calls_total",
        { policy = "route/tenant" }))
    end
  end)

  it("sends the headers that keep answers out of caches and guesses", function()
    for _, path in ipairs { "/health", "/metrics", "/api/v1/pools", "/nope" } do
      local _, _, headers = curl(path)
      assert.equal("no-store", headers["cache-control"])
      assert.equal("nosniff", headers["x-content-type-options"])
      assert.is_nil(headers["access-control-allow-origin"])
    end
  end)

  describe("tokens", function()
    local function refused(path, options)
      local status, body, headers = curl(path, options)
      is_error(401, "unauthorized", status, json.decode(body))
      assert.truthy(headers["www-authenticate"]:find "^Bearer")
      assert.equal(json.null, json.decode(body).error.details)
    end

    it("are needed for everything but health and metrics", function()
      for _, path in ipairs {
        "/api/v1/pools", "/api/v1/pools/app", "/api/v1/pools/app/stats", "/api/v1/policies", "/",
        "/api/v1/nope", "/api/v1/pools?token=" .. TOKEN, "/api/v1/pools?access_token=" .. TOKEN,
      } do
        refused(path)
      end
      refused("/api/v1/pools", "-X POST")
    end)

    it("count only whole and as a bearer", function()
      local from = "--interface 127.0.0.2 -H 'Authorization: "
      refused("/api/v1/pools", from .. "Bearer " .. TOKEN:sub(1, -2) .. "'")
      refused("/api/v1/pools", from .. "Bearer " .. TOKEN .. "x'")
      refused("/api/v1/pools", from .. "Basic " .. TOKEN .. "'")
      refused("/api/v1/pools", from .. TOKEN .. "'")
      refused("/health", from .. "Bearer wrong'")
    end)

    it("cost time when they are wrong, and are counted", function()
      local function wrong(address)
        return (curl("/api/v1/pools",
          ("--interface %s -H 'Authorization: Bearer wrong'"):format(address)))
      end
      local seen
      for _ = 1, 30 do
        seen = wrong "127.0.0.3"
        if seen == 429 then
          break
        end
        assert.equal(401, seen)
      end
      assert.equal(429, seen)
      assert.equal(401, wrong "127.0.0.4")
      assert.equal(200, (curl("/api/v1/pools", AUTH)))
      local _, text = curl "/metrics"
      local n = exposition.value(exposition.parse(text), "poolrt_admin_auth_failures_total")
      assert.is_true(n >= 11)
      assert.truthy(rt.log():find("event=admin_auth_failed", 1, true))
    end)

    it("stay out of answers and log, like every password", function()
      local texts = { rt.log() }
      for _, path in ipairs {
        "/api/v1/pools", "/api/v1/pools/app", "/api/v1/pools/app/stats", "/api/v1/policies",
        "/health", "/metrics", "/api/v1/nope",
      } do
        texts[#texts + 1] = select(2, curl(path, AUTH))
      end
      for _, text in ipairs(texts) do
        assert.is_nil(text:find(TOKEN, 1, true))
        assert.is_nil(text:find(PASSWORD, 1, true))
      end
    end)
  end)

  it("serves only its own names as Host", function()
    local port = rt.admin_port
    for _, host in ipairs {
      "localhost", "LOCALHOST:" .. port, "127.0.0.1:" .. port, "[::1]:" .. port,
    } do
      assert.equal(200, (curl("/health", ("-H 'Host: %s'"):format(host))), host)
    end
    for _, host in ipairs {
      "evil.example", "evil.example:" .. port, "localhost.evil.example", "127.0.0.1.evil.example",
      "user@localhost", "localhost:x", "10.1.2.3",
    } do
      local status, body = curl("/health", ("-H 'Host: %s'"):format(host))
      is_error(421, "misdirected", status, json.decode(body))
      assert.equal(421, (curl("/api/v1/pools", AUTH .. (" -H 'Host: %s'"):format(host))))
    end
  end)

  it("knows no method but GET and HEAD", function()
    for _, method in ipairs { "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "FOO" } do
      local status, body, headers = get("/api/v1/pools/app", "-X " .. method)
      is_error(405, "method_not_allowed", status, body)
      assert.equal("GET, HEAD", headers.allow)
    end
    local status = curl("/api/v1/pools", AUTH .. " -X GET -H 'X-HTTP-Method-Override: DELETE'")
    assert.equal(200, status)
    local text = raw "HEAD /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert.truthy(text:find "^HTTP/1.1 200 .*\r\n\r\n$")
  end)

  it("refuses query values that make no sense", function()
    for _, query in ipairs {
      "page=0", "page=-1", "page=1.5", "page=nan", "page=1e3", "page=", "page", "page=99999999999",
      "page=0x1", "page=%201", "page_size=0", "page_size=1001", "limit=1e308", "limit=inf",
      "page=1&page=1", "page_size=1&limit=1", "pages=1", "%00=1", "offset=1", "page[]=1",
    } do
      if not query:find "%%00" then
        is_error(400, "bad_request", get("/api/v1/pools?" .. query, "-g"))
      else
        assert.equal(400, (curl("/api/v1/pools?" .. query, AUTH)))
      end
    end
    is_error(400, "bad_request", get "/api/v1/pools/app?x=1")
    is_error(400, "bad_request", get "/health?verbose=1")
  end)

  it("answers 404 to paths that it does not have", function()
    for _, path in ipairs {
      "/", "/api", "/api/v1", "/api/v1/", "/api/v1/pools/", "//api/v1/pools", "/api/v2/pools",
      "/api/v1/pools/app/", "/api/v1/pools/app/stats/x", "/api/v1/pools/app/nope", "/metrics/",
      "/../etc/passwd", "/api/v1/../v1/pools", "/HEALTH",
    } do
      is_error(404, "not_found", get(path, "--path-as-is"))
    end
  end)

  describe("hostile bytes", function()
    local GET = "GET /health HTTP/1.1\r\nHost: localhost\r\n"

    it("are refused with a reason, and the connection closes", function()
      local POST = "POST /health HTTP/1.1\r\nHost: localhost\r\n"
      for bytes, status in pairs {
        [GET .. "Host: localhost\r\n\r\n"] = 400,
        ["GET /health HTTP/1.1\r\n\r\n"] = 400,
        ["GET /health HTTP/1.1\nHost: localhost\n\n"] = 400,
        [GET .. "X: 1\r\n folded\r\n\r\n"] = 400,
        [GET .. "X: a\0b\r\n\r\n"] = 400,
        [GET .. "Host : localhost\r\n\r\n"] = 400,
        ["GET http://localhost/health HTTP/1.1\r\nHost: localhost\r\n\r\n"] = 400,
        ["GET /health%00x HTTP/1.1\r\nHost: localhost\r\n\r\n"] = 400,
        ["GET  /health HTTP/1.1\r\nHost: localhost\r\n\r\n"] = 400,
        ["GET /health HTTP/3.0\r\nHost: localhost\r\n\r\n"] = 505,
        [POST .. "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"] = 400,
        [POST .. "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"] = 400,
        [POST .. "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"] = 400,
        [POST .. "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"] = 400,
        [POST .. "Content-Length: -1\r\n\r\n"] = 400,
        [POST .. "Content-Length: +1\r\n\r\nx"] = 400,
        [POST .. "Content-Length: 1, 1\r\n\r\nx"] = 400,
        [POST .. "Content-Length: 99999999999999999999\r\n\r\nx"] = 400,
        [POST .. "Content-Length: 1048577\r\n\r\n" .. ("x"):rep(100000)] = 413,
        [POST .. "Transfer-Encoding: chunked\r\n\r\n" .. "5\r\nabcde\r\n0\r\n\r\n"] = 411,
        ["GET /" .. ("a"):rep(8192) .. " HTTP/1.1\r\nHost: localhost\r\n\r\n"] = 414,
        [GET .. "X: " .. ("a"):rep(32768) .. "\r\n\r\n"] = 431,
        [GET .. ("X: 1\r\n"):rep(100) .. "\r\n"] = 431,
        ["\22\3\1\2\0\1\0\1\252\3\3"] = 400,
        ["\0\0\0\8\4\210\22\47"] = 400,
      } do
        local text, why = raw(bytes)
        assert.is_nil(why, "reset instead of an answer to " .. bytes:sub(1, 60))
        assert.equal(status, tonumber(text:match "^HTTP/1.1 (%d+) "), bytes:sub(1, 60) .. text)
        assert.truthy(text:find '"success":false')
      end
    end)

    it("pass when they are just below the limits", function()
      assert.equal(200, raw_status(GET .. ("X: 1\r\n"):rep(99) .. "\r\n"))
      assert.equal(200, raw_status(GET .. "X: " .. ("a"):rep(32000) .. "\r\n\r\n"))
      assert.equal(401, raw_status("GET /" .. ("a"):rep(8000)
        .. " HTTP/1.1\r\nHost: localhost\r\n\r\n"))
      assert.equal(200, raw_status(GET .. "Content-Length: 1048576\r\n\r\n" .. ("x"):rep(1048576)))
    end)

    it("may come one by one", function()
      local s = socket.connect(rt.admin_port)
      for c in (GET .. "\r\n"):gmatch "." do
        s:send(c)
      end
      assert.truthy(s:read_all():find "^HTTP/1.1 200 ")
      s:close()
    end)

    it("behind the first request are not read as another one", function()
      local text = raw((GET .. "\r\n"):rep(3))
      assert.equal(1, select(2, text:gsub("HTTP/1.1 ", "")))
      text = raw(GET .. "Content-Length: 4\r\n\r\nabcd" .. GET .. "\r\n")
      assert.equal(1, select(2, text:gsub("HTTP/1.1 ", "")))
    end)

    it("that never become a request do not keep others out", function()
      local slow = {}
      local begun = { "", "GET /hea", GET .. "Content-Length: 9\r\n\r\nabc" }
      for i = 1, 200 do
        slow[i] = socket.connect(rt.admin_port)
        slow[i]:send(begun[i % 3 + 1])
        if i % 20 == 0 then
          local before = socket.now()
          assert.equal(200, (curl "/health"))
          assert.is_true(socket.now() - before < 1)
        end
      end
      for _, s in ipairs(slow) do
        s:close()
      end
      assert.equal(200, (curl "/health"))
    end)

    describe("that stop", function()
      local begun, head, body

      setup(function()
        begun = socket.now()
        head = socket.connect(rt.admin_port):send(GET)
        body = socket.connect(rt.admin_port):send(GET .. "Content-Length: 9\r\n\r\nabc")
      end)

      it("in the head are answered after 10 s #slow", function()
        assert.truthy(head:read_all(15):find "^HTTP/1.1 408 ")
        head:close()
        local took = socket.now() - begun
        assert.is_true(took > 9 and took < 12, took)
      end)

      it("in the body are given up after 30 s #slow", function()
        body:read_all(40)
        body:close()
        local took = socket.now() - begun
        assert.is_true(took > 25 and took < 33, took)
      end)
    end)
  end)
end)

describe("admin API without a token", function()
  setup(function()
    rt = P.start { config = CONFIG:format "" }
  end)

  teardown(function()
    rt.stop()
  end)

  it("may be read on loopback, and not written", function()
    assert.equal(200, (curl "/api/v1/pools"))
    assert.equal(200, (curl("/api/v1/pools", "-H 'Authorization: Bearer whatever'")))
    local status, _, headers = curl("/api/v1/pools/app", "-X DELETE")
    assert.equal(405, status)
    assert.equal("GET, HEAD", headers.allow)
  end)

  it("is closed to pages that rebind a name", function()
    assert.equal(421, (curl("/api/v1/pools", "-H 'Host: evil.example'")))
  end)
end)
