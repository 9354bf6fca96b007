-- listen_spec.lua - LISTEN and NOTIFY through poolrt: in transaction mode one connection listens
-- for all clients, and each hears what it would hear on a connection of its own. What does not need
-- poolrt's own numbers runs in session mode as well, where PostgreSQL itself delivers.
local rig = require "proxy.rig"
local sys = require "support.os"
local wire = require "proxy.wire"

local LISTENERS = "application_name = 'poolrt listener'"

--- Of a NotificationResponse: channel, payload, pid.
local function read_note(body)
  local channel, payload = body:match("^....([^%z]*)%z([^%z]*)%z$")
  return channel, payload, wire.get32(body, 1)
end

--- The next n notifications as "channel:payload"; anything else that comes is an error.
local function hear(c, n)
  local out = {}
  for i = 1, n do
    local kind, body = c:next()
    assert(kind == "A", ("%s instead of notification %d of %d"):format(kind or body, i, n))
    out[i] = table.concat({ read_note(body) }, ":", 1, 2)
  end
  return out
end

local function ok(c, sql, want)
  local words, values = c:ask(sql)
  assert.equal(want, words, sql)
  return values
end

--- Nothing more comes for a client than the answer to a query that is sent after all that.
local function assert_quiet(c)
  assert.equal("T D C:SELECT 1 Z:I", (c:ask "select 1"))
end

for _, mode in ipairs { "transaction", "session" } do
  describe("LISTEN in " .. mode .. " mode", function()
    local px = rig.shared { pools = {
      app = ("mode = '%s', max_size = %d, server_login_retry = '100ms'"):format(mode,
        mode == "session" and 40 or 3) } }
    local teller

    before_each(function()
      teller = px:login "app"
    end)

    local function tell(channel, payload)
      ok(teller, ("select pg_notify('%s', '%s')"):format(channel, payload), "T D C:SELECT 1 Z:I")
    end

    it("is heard by all who listen, once each", function()
      local all = {}
      for i = 1, 8 do
        all[i] = px:login("app", i % 2 == 0 and "acme" or "globex")
        ok(all[i], "listen news", "C:LISTEN Z:I")
        ok(all[i], "listen news", "C:LISTEN Z:I")
      end
      tell("news", "one")
      tell("nobody", "hears this")
      tell("news", "two")
      for i = 1, 8 do
        assert.same({ "news:one", "news:two" }, hear(all[i], 2))
        assert_quiet(all[i])
      end
    end)

    it("names who notified, and the channel as it is spelled", function()
      local c = px:login "app"
      ok(c, 'listen Mixed; listen "Mixed"; listen "we""ird, \'quoted\'"',
        "C:LISTEN C:LISTEN C:LISTEN Z:I")
      ok(teller, "begin", "C:BEGIN Z:T")
      local pid = ok(teller, "select pg_backend_pid()", "T D C:SELECT 1 Z:T")[1]
      ok(teller, "notify mixed, 'a'", "C:NOTIFY Z:T")
      ok(teller, [[notify "we""ird, 'quoted'", 'b']], "C:NOTIFY Z:T")
      ok(teller, "commit", "C:COMMIT Z:I")
      local kind, body = c:next()
      assert.equal("A", kind)
      local channel, payload, from = read_note(body)
      assert.same({ "mixed", "a", tonumber(pid) }, { channel, payload, from })
      assert.same({ [[we"ird, 'quoted':b]] }, hear(c, 1))
      tell("Mixed", "c")
      assert.same({ "Mixed:c" }, hear(c, 1))
    end)

    it("begins with the commit, and not at all with a rollback", function()
      local c = px:login "app"
      ok(c, "begin", "C:BEGIN Z:T")
      ok(c, "listen kept", "C:LISTEN Z:T")
      ok(c, "commit", "C:COMMIT Z:I")
      ok(c, "begin", "C:BEGIN Z:T")
      ok(c, "listen undone", "C:LISTEN Z:T")
      ok(c, "rollback", "C:ROLLBACK Z:I")
      ok(c, "begin", "C:BEGIN Z:T")
      ok(c, "unlisten kept", "C:UNLISTEN Z:T")
      ok(c, "rollback", "C:ROLLBACK Z:I")
      tell("undone", "x")
      tell("kept", "y")
      assert.same({ "kept:y" }, hear(c, 1))
      assert_quiet(c)
    end)

    it("takes several in one text, with what else is in it", function()
      local c = px:login "app"
      ok(c, "begin; listen one; commit; listen two; select 1; LISTEN \"Three\"",
        "C:BEGIN C:LISTEN C:COMMIT C:LISTEN T D C:SELECT 1 C:LISTEN Z:I")
      ok(c, "listen four; select 1/0; listen five", "C:LISTEN E:ERROR:22012 Z:I")
      ok(c, "begin; listen six; rollback; listen seven",
        "C:BEGIN C:LISTEN C:ROLLBACK C:LISTEN Z:I")
      ok(c, "begin; savepoint a; listen eight; rollback to a; unlisten two; listen nine; commit",
        "C:BEGIN C:SAVEPOINT C:LISTEN C:ROLLBACK C:UNLISTEN C:LISTEN C:COMMIT Z:I")
      for _, name in ipairs { "two", "four", "five", "six", "eight", "one", "Three", "seven" } do
        tell(name, "x")
      end
      tell("nine", "y")
      assert.same({ "one:x", "Three:x", "seven:x", "nine:y" }, hear(c, 4))
      assert_quiet(c)
      ok(c, "unlisten one; unlisten *; listen ten", "C:UNLISTEN C:UNLISTEN C:LISTEN Z:I")
      tell("seven", "z")
      tell("ten", "z")
      assert.same({ "ten:z" }, hear(c, 1))
      assert_quiet(c)
      if mode == "transaction" then
        assert.equal(0, px:metrics()['poolrt_pool_pins_total{pool="app",reason="listen"}'] or 0)
      end
    end)

    it("ends with unlisten * where its own server listens", function()
      local c = px:login "app" -- a text with a backslash is not taken apart
      ok(c, [[listen pinned; select '\']], "C:LISTEN T D C:SELECT 1 Z:I")
      tell("pinned", "1")
      assert.same({ "pinned:1" }, hear(c, 1))
      ok(c, "unlisten *", "C:UNLISTEN Z:I")
      assert.equal("0", ok(c, "select count(*) from pg_listening_channels()",
        "T D C:SELECT 1 Z:I")[1])
      tell("pinned", "2")
      assert_quiet(c)
    end)

    it("fails where it would, in the same words", function()
      local twins = require "proxy.twin"
      local t = twins.login(px, "app")
      for _, sql in ipairs { "listen a b", "listen 'a'", "listen *", "listen select", "listen a.b",
        "select no_column; listen a", "listen a; select no_column", "listen a; listen",
        "listen a; listen bb; select 1, no_column, no_other; listen c", "listen a; selec",
        "listen " .. ("n"):rep(64), "begin; select 1/0; listen a", "listen a", "rollback; listen a",
        "listen a; begin; listen b; listen c d; commit", "unlisten a b", "deallocate a b" } do
        t:send(wire.query(sql))
      end
      t:send(wire.query "rollback")
      assert.is_true(t:is_quiet())
    end)

    it("comes through the extended protocol as well", function()
      local c = px:login "app"
      c:send(wire.batch "listen parsed" .. wire.sync)
      assert.equal("1 2 n C:LISTEN Z:I", wire.words(c:until_ready()))
      tell("parsed", "x")
      assert.same({ "parsed:x" }, hear(c, 1))
    end)

    for _, sql in ipairs { "unlisten gone", "unlisten *", "discard all" } do
      it("ends with " .. sql, function()
        local c, other = px:login "app", px:login "app"
        ok(c, "listen gone", "C:LISTEN Z:I")
        ok(other, "listen gone", "C:LISTEN Z:I")
        tell("gone", "1")
        assert.same({ "gone:1" }, hear(c, 1))
        assert.is_truthy((c:ask(sql)):find "^C:%S+ ?A?L?L? Z:I$")
        tell("gone", "2")
        assert.same({ "gone:1", "gone:2" }, hear(other, 2))
        assert_quiet(c)
      end)
    end

    it("keeps what comes in a transaction until it is over", function()
      local c, other = px:login "app", px:login "app"
      ok(c, "listen later", "C:LISTEN Z:I")
      ok(other, "listen later", "C:LISTEN Z:I")
      ok(c, "begin", "C:BEGIN Z:T")
      tell("later", "1")
      tell("later", "2")
      hear(other, 2)
      ok(c, "select 1", "T D C:SELECT 1 Z:T")
      c:send(wire.query "commit")
      local got, seen = {}, {}
      while #got < 2 or not seen.Z do -- PostgreSQL sends them in front of ReadyForQuery
        local kind, body = c:next()
        assert(kind, body)
        seen[kind] = true
        if kind == "A" then
          got[#got + 1] = select(2, read_note(body))
        end
      end
      assert.same({ "1", "2" }, got)
      assert.same({ C = true, A = true, Z = true }, seen)
    end)

    it("goes on whatever else the client does meanwhile", function()
      local c = px:login "app"
      ok(c, "listen busy", "C:LISTEN Z:I")
      local got, n = {}, 200
      for i = 1, n do
        tell("busy", i)
        for _, m in ipairs(select(3, c:ask "select 1")) do
          got[#got + 1] = m[1] == "A" and select(2, read_note(m[2])) or nil
        end
      end
      for _, note in ipairs(hear(c, n - #got)) do
        got[#got + 1] = note:match ":(.*)"
      end
      for i = 1, n do
        assert.equal(tostring(i), got[i])
      end
    end)

    it("loses nothing and keeps the order while 20 clients notify", function()
      local ears, tellers, per = {}, {}, rig.is_long and 1000 or 100
      local direct = wire.login(rig.server().port, "postgres", "app")
      ok(direct, "listen flood", "C:LISTEN Z:I")
      for i = 1, 4 do
        ears[i] = px:login "app"
        ok(ears[i], "listen flood", "C:LISTEN Z:I")
      end
      for i = 1, 20 do
        tellers[i] = px:login "app"
        local bytes = {}
        for k = 1, per do
          bytes[k] = wire.query(("notify flood, '%d.%d'"):format(i, k))
        end
        tellers[i]:send(table.concat(bytes))
      end
      for i = 1, 20 do
        assert.equal(("C:NOTIFY Z:I "):rep(per), wire.words(tellers[i]:until_ready(per, 60)) .. " ")
      end
      local want = hear(direct, 20 * per)
      direct:drop()
      for i = 1, 4 do
        assert.same(want, hear(ears[i], 20 * per))
        assert_quiet(ears[i])
      end
    end)

    it("leaves nothing behind", function()
      local c = px:login "app"
      ok(c, "listen ended", "C:LISTEN Z:I")
      c:reset()
      local after = px:login "app"
      tell("ended", "x")
      assert_quiet(after)
      assert.equal("0", ok(after, "select count(*) from pg_listening_channels()",
        "T D C:SELECT 1 Z:I")[1])
      px:drop_clients()
      px:assert_settled("app", mode == "transaction" and 3 or nil)
    end)
  end)
end

describe("the listener connection", function()
  local px

  local function start(o)
    o = o or {}
    px = rig.start { sslmode = o.sslmode, pools = {
      app = "mode = 'transaction', max_size = 2, server_login_retry = '100ms', "
        .. "acquire_timeout = '5s'" } }
  end

  after_each(function()
    px:drop_clients()
    px:stop()
    rig.no_backends(10, LISTENERS)
  end)

  it("is one for all clients, and none of the pool's", function()
    start()
    local all = {}
    for i = 1, 10 do
      all[i] = px:login "app"
      ok(all[i], "listen a", "C:LISTEN Z:I")
      ok(all[i], "listen b" .. i % 2, "C:LISTEN Z:I")
    end
    assert.equal(1, rig.backends(LISTENERS))
    assert.equal(1, px:pool_metric("listeners", "app"))
    assert.equal(3, px:pool_metric("listen_channels", "app"))
    px:assert_slots("app", 2) -- ten listen, and both slots serve
    rig.sql("notify a, 'x'", "app")
    for i = 1, 10 do
      assert.same({ "a:x" }, hear(all[i], 1))
    end
    assert.equal(1, px:pool_metric("notifications_total", "app"))
    for i = 2, 10 do
      all[i]:drop()
    end
    rig.eventually(5, "UNLISTEN", function()
      local n = px:pool_metric("listen_channels", "app")
      return n == 2, n
    end)
    assert.equal(0, px:pool_metric("listen_gaps_total", "app"))
  end)

  it("is opened anew when it is lost, and the gap is announced", function()
    start()
    local a, b = px:login "app", px:login "app"
    ok(a, "listen a", "C:LISTEN Z:I")
    ok(b, "listen b", "C:LISTEN Z:I")
    rig.sql("select pg_terminate_backend(pid) from pg_stat_activity where " .. LISTENERS)
    px.rt.wait_log "event=listen_gap pool=app database=app channels=2 [^\n]*terminating"
    px.rt.wait_log "event=listen_gap_over pool=app database=app channels=2 gap_ms=%d+"
    assert.equal(1, px:pool_metric("listen_gaps_total", "app"))
    rig.sql("notify a, 'x'; notify b, 'y'", "app")
    assert.same({ "a:x" }, hear(a, 1))
    assert.same({ "b:y" }, hear(b, 1))
    assert.equal(1, rig.backends(LISTENERS))
  end)

  it("outlives a restart of the server", function()
    start()
    local a = px:login "app"
    ok(a, "listen a", "C:LISTEN Z:I")
    rig.stop_server "INT"
    px.rt.wait_log "event=listen_gap "
    px.rt.wait_log "event=connect_failed [^\n]*for=listen"
    rig.start_server()
    px.rt.wait_log "event=listen_gap_over"
    rig.sql("notify a, 'x'", "app")
    assert.same({ "a:x" }, hear(a, 1))
  end)

  it("speaks TLS where the servers do", function()
    rig.server_tls(sys.certificate())
    start { sslmode = "require" }
    local a = px:login "app"
    ok(a, "listen a", "C:LISTEN Z:I")
    assert.equal("1", rig.sql("select count(*) from pg_stat_activity join pg_stat_ssl using (pid) "
      .. "where ssl and " .. LISTENERS))
    local payload = ("x"):rep(7000)
    for i = 1, 50 do
      rig.sql(("select pg_notify('a', '%s%d')"):format(payload, i), "app")
    end
    local got = hear(a, 50)
    for i = 1, 50 do
      assert.equal("a:" .. payload .. i, got[i])
    end
  end)
end)
