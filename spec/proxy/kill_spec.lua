-- kill_spec.lua - sessions and connections one by one: what the admin API shows of them, and how
-- an administrator ends them.
local rig = require "proxy.rig"
local sys = require "support.os"
local wire = require "proxy.wire"

local function pid_of(c)
  return tonumber((select(2, c:ask "select pg_backend_pid()")[1]))
end

describe("an administrator", function()
  local px

  setup(function()
    rig.server()
    rig.sql("create table kept (x int)", "app")
    px = rig.start {
      token = "t0ken",
      pools = {
        one = "mode = 'transaction', max_size = 1",
        two = "mode = 'transaction', max_size = 2",
        own = "mode = 'session', max_size = 2",
        many = "mode = 'transaction', max_size = 2",
        busy = "mode = 'transaction', max_size = 8",
        alone = "mode = 'session', max_size = 8",
      },
    }
  end)

  before_each(wire.track)

  after_each(function()
    px:drop_clients()
    wire.drop_tracked()
    for _, pool in ipairs { "one", "two", "own" } do
      px:assert_settled(pool)
    end
  end)

  teardown(function()
    px:stop()
  end)

  local function get(path)
    local status, body = px:rest("GET", path)
    assert.equal(200, status, path)
    return body.data, body.pagination
  end

  local function session(pool, status)
    return rig.eventually(5, "a session in " .. pool, function()
      local list = get("/sessions?pool_id=" .. pool .. (status and "&status=" .. status or ""))
      return list[1], #list
    end)
  end

  local function kill(path)
    local status, body = px:rest("DELETE", path)
    return status, body.data or body.error, body
  end

  local function is_told(c)
    assert.equal("E:FATAL:57P01", wire.words(c:until_end(5)))
  end

  -- ---- looking ----

  it("sees each client as a session, and each server connection", function()
    local c = px:login("one", "acme", "application_name", "looker", "DateStyle", "German")
    c:ask "select 1"
    local s = session "one"
    assert.equal("idle", s.state)
    assert.equal("acme", s.user)
    assert.equal("one", s.database)
    assert.equal("one", s.pool_id)
    assert.equal("127.0.0.1", s.client_addr)
    assert.truthy(s.id:find "^session_%d+$")
    c:ask "begin"
    local pid = pid_of(c)
    s = session "one"
    assert.equal("idle_in_transaction", s.state)
    assert.is_true(s.in_transaction)
    local list = get "/connections?pool_id=one"
    assert.equal(1, #list)
    local conn = list[1]
    assert.equal(s.connection_id, conn.id)
    assert.equal(s.id, conn.session_id)
    assert.equal("active", conn.state)
    assert.equal("app", conn.database)
    assert.truthy(conn.client_addr:find "^127.0.0.1:%d+$")
    local details = get("/connections/" .. conn.id)
    assert.equal(pid, details.server_process_id)
    assert.equal("127.0.0.1:" .. rig.server().port, details.server_addr)
    assert.equal("3.0", details.protocol_version)
    details = get("/sessions/" .. s.id)
    assert.equal(pid, details.server_process_id)
    assert.truthy(details.variables.date_format:find "^German")
    assert.is_true(details.statistics.bytes_sent > 100)
    c:ask "commit"
    assert.equal("idle", get("/connections/" .. conn.id).state)
  end)

  it("sees who waits, and how many are before it", function()
    local holder, a, b = px:login "one", px:login "one", px:login "one"
    holder:ask "begin"
    a:send(wire.query "select 1")
    rig.eventually(5, "a waits", function()
      return #get "/sessions?pool_id=one&status=waiting" == 1
    end)
    b:send(wire.query "select 1")
    local waiting = rig.eventually(5, "both wait", function()
      local list = get "/connections?pool_id=one&status=waiting"
      return #list == 2 and list
    end)
    local seen = {}
    for _, row in ipairs(waiting) do
      seen[row.queue_position] = row
      assert.equal("acme", row.user)
    end
    assert.truthy(seen[0] and seen[1])
    local status, answer = kill("/connections/" .. seen[0].id)
    assert.equal(200, status)
    assert.same({ connection_id = seen[0].id, killed = true, was_in_transaction = false,
      transaction_rolled_back = false }, answer)
    is_told(a)
    rig.eventually(5, "b is next", function()
      return get "/connections?pool_id=one&status=waiting"[1].queue_position == 0
    end)
    assert.equal(404, (kill("/connections/" .. seen[0].id)))
    status, answer = kill("/sessions/" .. seen[1].session_id)
    assert.equal(200, status)
    assert.is_true(answer.terminated)
    is_told(b)
    assert.equal("C:COMMIT Z:I", (holder:ask "commit"))
  end)

  it("pages through many, and finds each of them", function()
    for i = 1, 700 do
      px:login("many", i % 7 == 0 and "globex" or "acme")
    end
    local ids, n = {}, 0
    for page = 1, 8 do
      local rows, of = get("/sessions?pool_id=pool_many&limit=100&page=" .. page)
      assert.equal(700, of.total_count)
      assert.equal(page, of.page)
      for _, row in ipairs(rows) do
        n = n + (ids[row.id] and 0 or 1)
        ids[row.id] = true
      end
    end
    assert.equal(700, n)
    local _, of = get "/sessions?pool_id=many&user=globex&status=idle"
    assert.equal(100, of.total_count)
    for id in pairs(ids) do
      if tonumber(id:match "%d+") % 97 == 0 then
        assert.equal(id, get("/sessions/" .. id).id)
      end
    end
    px:drop_clients()
    rig.eventually(10, "nobody", function()
      local _, left = get "/sessions?pool_id=many"
      return left.total_count == 0, left.total_count
    end)
  end)

  it("is told what is wrong with a request", function()
    for path, code in pairs {
      ["/sessions?status=closing"] = 400, ["/connections?status=idle_in_transaction"] = 400,
      ["/sessions?limit=0"] = 400, ["/sessions?limit=1001"] = 400, ["/sessions?user="] = 400,
      ["/connections?who=me"] = 400, ["/sessions/1"] = 404, ["/sessions/session_0"] = 404,
      ["/sessions/session_01"] = 404, ["/sessions/conn_1"] = 404, ["/sessions/session_-1"] = 404,
      ["/connections/conn_999999999999999"] = 404, ["/connections/conn_1e3"] = 404,
      ["/connections/conn_99999999999999999999"] = 404,
    } do
      local status, body = px:rest("GET", path)
      assert.equal(code, status, path)
      assert.equal(code == 400 and "bad_request" or "not_found", body.error.code)
    end
    local c = px:login "one"
    local id = session "one".id
    for _, force in ipairs { "yes", "1", "", "TRUE" } do
      assert.equal(400, (kill("/sessions/" .. id .. "?force=" .. force)))
    end
    assert.equal(405, (px:rest("POST", "/sessions/" .. id)))
    assert.equal("T D C:SELECT 1 Z:I", (c:ask "select 1"))
  end)

  it("must have a token", function()
    local c = px:login "one"
    local id, token = session "one".id, px.token
    for _, wrong in ipairs { "wrong", false } do
      px.token = wrong or nil
      assert.equal(401, (kill("/sessions/" .. id)))
    end
    px.token = token
    assert.equal("T D C:SELECT 1 Z:I", (c:ask "select 1"))
    local open = rig.start { pools = { one = "mode = 'transaction', max_size = 1" } }
    local other = open:login "one"
    local status, body = open:rest("DELETE", "/sessions/" .. open:session_of "one".id)
    assert.equal(403, status)
    assert.equal("forbidden", body.error.code)
    assert.equal("T D C:SELECT 1 Z:I", (other:ask "select 1"))
    other:drop()
    open:stop()
  end)

  -- ---- ending ----

  it("ends an idle client", function()
    local c = px:login "one"
    c:ask "select 1"
    local before = px:metrics()['poolrt_disconnects_total{reason="killed"}']
    local id = session "one".id
    local status, answer = kill("/sessions/" .. id)
    assert.equal(200, status)
    assert.same({ session_id = id, terminated = true, was_in_transaction = false,
      transaction_rolled_back = false }, answer)
    is_told(c)
    assert.equal(404, (kill("/sessions/" .. id)))
    assert.equal(before + 1, px:metrics()['poolrt_disconnects_total{reason="killed"}'])
    local number = id:match "%d+"
    local line = px.rt.log():match("event=admin_kill by=127.0.0.1 what=session number=" .. number
      .. "[^\n]*result=killed[^\n]*")
    assert.truthy(line and line:find "user=acme")
  end)

  it("ends no one by the id of another who had the place before", function()
    local c = px:login "one"
    local old, old_conn = session "one".id, get "/connections?pool_id=one"[1].id
    c:drop()
    assert.equal(200, (kill("/connections/" .. old_conn)))
    rig.eventually(5, "it is gone", function() return #get "/connections?pool_id=one" == 0 end)
    local other = px:login "one"
    other:ask "begin"
    assert.equal(404, (kill("/sessions/" .. old)))
    assert.equal(404, (kill("/connections/" .. old_conn .. "?force=true")))
    assert.equal("C:COMMIT Z:I", (other:ask "commit"))
  end)

  it("ends a transaction only by force, and it is rolled back", function()
    for _, path in ipairs { "session", "connection" } do
      for _, failed in ipairs { false, true } do
        local c = px:login "one"
        c:ask "begin; insert into kept values (1)"
        if failed then
          c:ask "select 1/0"
        end
        local pid = not failed and pid_of(c)
        local row = session "one"
        local what = path == "session" and "/sessions/" .. row.id .. "?force="
          or "/connections/" .. row.connection_id .. "?force="
        local status, answer, body = kill(what .. "false")
        assert.equal(409, status)
        assert.is_false(body.success)
        assert.equal("in_transaction", answer.code)
        assert.is_true(answer.details.was_in_transaction)
        assert.is_false(answer.details[path == "session" and "terminated" or "killed"])
        assert.equal(failed and "E:ERROR:25P02 Z:E" or "T D C:SELECT 1 Z:T", (c:ask "select 1"))
        status, answer = kill(what .. "true")
        assert.equal(200, status)
        assert.is_true(answer.was_in_transaction)
        assert.is_true(answer.transaction_rolled_back)
        is_told(c)
        assert.equal("0", rig.sql("select count(*) from kept", "app"))
        local other = px:login "one"
        local next_pid = pid_of(other)
        other:drop()
        if pid then -- a killed session leaves its server, a killed connection does not
          assert.equal(path == "session", pid == next_pid)
        end
      end
    end
  end)

  it("undoes what an open pipeline has done", function()
    local c = px:login "one"
    c:send(wire.batch "insert into kept values (1)" .. wire.flush)
    for _ = 1, 3 do
      c:next()
    end
    rig.eventually(5, "it is known", function() return session "one".in_transaction end)
    assert.equal(409, (kill("/sessions/" .. session "one".id .. "?force=false")))
    local _, answer = kill("/sessions/" .. session "one".id)
    assert.is_true(answer.was_in_transaction)
    assert.is_true(answer.transaction_rolled_back)
    local words = wire.words(c:until_end(5))
    assert(words:find "E:FATAL:57P01$", words)
    assert.equal("0", rig.sql("select count(*) from kept", "app"))
  end)

  it("ends a query that runs, in the server too", function()
    for _, pool in ipairs { "one", "own" } do
      for _, of in ipairs { "session", "connection" } do
        local c = px:login(pool)
        c:send(wire.query "select pg_sleep(60)")
        local row = session(pool, "active")
        local from = wire.now()
        local status, answer = kill(of == "session" and "/sessions/" .. row.id .. "?force=false"
          or "/connections/" .. row.connection_id)
        assert.equal(200, status)
        assert.is_false(answer.was_in_transaction)
        is_told(c)
        rig.no_backends(5, "state <> 'idle' and query like '%pg_sleep%'")
        assert(wire.now() - from < 5, "it took too long")
        assert.equal("T D C:SELECT 1 Z:I", (px:login(pool):ask "select 1"))
        px:drop_clients()
      end
    end
  end)

  it("ends a query in a transaction", function()
    local c = px:login "one"
    c:ask "begin; insert into kept values (1)"
    c:send(wire.query "select pg_sleep(60)")
    local _, answer = kill("/sessions/" .. session("one", "active").id)
    assert.is_true(answer.transaction_rolled_back)
    is_told(c)
    assert.equal("0", rig.sql("select count(*) from kept", "app"))
  end)

  it("is told that a transaction was one when its BEGIN was not answered yet", function()
    local c = px:login "one"
    c:send(wire.query "begin; insert into kept values (1); select pg_sleep(60)")
    local _, answer = kill("/sessions/" .. session("one", "active").id)
    assert.is_true(answer.was_in_transaction)
    assert.is_true(answer.transaction_rolled_back)
    assert.equal("0", rig.sql("select count(*) from kept", "app"))
  end)

  -- A backend that stands still has the COMMIT and has not answered.
  local function kill_in_commit(of, after)
    local c = px:login "one"
    c:ask "begin; insert into kept values (1)"
    local pid = pid_of(c)
    local row = session "one"
    sys.kill(pid, "STOP")
    c:send(wire.query "commit")
    session("one", "active")
    local job = rig.job(("curl -sS -m 20 -X DELETE -H 'Authorization: Bearer %s' %s/api/v1/%s")
      :format(px.token, px.rt.admin_url, of == "session" and "sessions/" .. row.id
        or "connections/" .. row.connection_id .. "?force=true"))
    local told = wire.words(c:until_end(5))
    local ok, out = pcall(after, pid, job)
    sys.kill(pid, "CONT")
    assert(ok, out)
    assert.equal("E:FATAL:57P01", told)
    return out
  end

  it("is told that a COMMIT was under way and has happened", function()
    local out = kill_in_commit("session", function(pid, job)
      sys.kill(pid, "CONT")
      return (job:wait(10))
    end)
    assert(out:find('"transaction_rolled_back":false', 1, true), out)
    assert(out:find('"was_in_transaction":true', 1, true), out)
    assert.equal("1", rig.sql("select count(*) from kept", "app"))
    rig.sql("truncate kept", "app")
  end)

  it("is told that nobody knows when the server does not say", function()
    local out = kill_in_commit("connection", function(_, job)
      return (job:wait(10))
    end)
    assert(out:find('"transaction_rolled_back":null', 1, true), out)
    assert(out:find('"killed":true', 1, true), out)
    rig.eventually(10, "the connection is closed", function()
      return #get "/connections?pool_id=one" == 0
    end)
    rig.sql("truncate kept", "app")
  end)

  it("ends an idle server connection", function()
    local c = px:login "two"
    local pid = pid_of(c)
    local row = get "/connections?pool_id=two&status=idle"[1]
    local status, answer = kill("/connections/" .. row.id)
    assert.equal(200, status)
    assert.is_true(answer.killed)
    assert.is_false(answer.was_in_transaction)
    rig.no_backends(5, "pid = " .. pid)
    assert.not_equal(pid, pid_of(c)) -- its client does not notice
  end)

  it("takes nothing into the middle of a message", function()
    local c = px:login "one"
    c:send(wire.query "select repeat('x', 50000000)")
    local row = session("one", "active")
    rig.eventually(5, "the result is under way", function()
      return get("/sessions/" .. row.id).statistics.bytes_sent > 100000
    end)
    assert.equal(200, (kill("/sessions/" .. row.id)))
    local deadline = wire.now() + 10
    while c:more(deadline) do
    end
    assert.truthy(c.ended)
    assert.is_nil(c.buf:find("administrator", 1, true))
    rig.no_backends(5, "state <> 'idle'")
  end)

  it("ends one whose server is pinned, and the pin", function()
    local c = px:login "one"
    c:ask "create temp table left_table (x int)"
    local row = session "one"
    assert.same({ "temp" }, get("/sessions/" .. row.id).pinned_by)
    assert.equal(200, (kill("/sessions/" .. row.id .. "?force=false")))
    is_told(c)
    assert.equal(0, px:metrics()['poolrt_pool_pinned{pool="one",reason="temp"}'])
  end)

  it("ends clients at random while others come and go", function()
    local jobs, script = {}, sys.temp_dir() .. "/script"
    sys.write(script, "begin;\nselect pg_sleep(0.001);\nend;\nselect 1;\n")
    for i, pool in ipairs { "busy", "alone" } do
      -- a client that was ended does not come back, but the next round brings others
      jobs[i] = px:job(("sh -c 'for i in 1 2 3 4 5; do pgbench -n -c 12 -T 1 -f %s \"$0\"; done' @")
        :format(script), pool)
    end
    local killed, deadline = 0, wire.now() + 30
    while wire.now() < deadline and not (jobs[1]:ended() and jobs[2]:ended()) do
      for _, what in ipairs { "connections", "sessions" } do
        for _, pool in ipairs { "busy", "alone" } do
          local list = get("/" .. what .. "?pool_id=" .. pool)
          local row = list[math.random(math.max(1, #list))]
          if row then
            local status, answer = kill(("/%s/%s?force=%s"):format(what, row.id,
              tostring(math.random(2) == 1)))
            assert(status == 200 or status == 404 or status == 409, status)
            killed = killed + (status == 200 and 1 or 0)
            assert.not_nil(answer)
          end
        end
      end
    end
    assert(killed > 10, killed)
    px:assert_settled("busy", 8)
    px:assert_settled("alone", 8)
  end)
end)

describe("the end of poolrt", function()
  it("waits for no administrator", function()
    rig.server()
    local px = rig.start { token = "t0ken", pools = { one = "mode = 'transaction', max_size = 1" } }
    local c = px:login "one"
    c:ask "begin"
    local pid = pid_of(c)
    local id = px:session_of "one".id
    sys.kill(pid, "STOP")
    local job = rig.job(("curl -sS -m 20 -X DELETE -H 'Authorization: Bearer t0ken' "
      .. "%s/api/v1/sessions/%s"):format(px.rt.admin_url, id))
    c:until_end(5)
    local status = px.rt.stop("TERM", 20)
    sys.kill(pid, "CONT")
    -- the stopped backend never sees its end, which a sanitizer calls a leak
    assert(status == 0 or rig.is_sanitized, px.rt.log())
    assert.is_nil(px.rt.log():find "AddressSanitizer: heap")
    job:wait(10)
    c:drop()
  end)

  it("cancels what runs on for a client that has left", function()
    rig.server()
    local px = rig.start { pools = { one = "mode = 'transaction', max_size = 1, "
      .. "abandoned_grace = '60s', client_check_interval = 0" } }
    local c = px:login "one"
    c:send(wire.batch "select pg_sleep(60)" .. wire.flush)
    local busy = "state = 'active' and query like '%pg_sleep%'"
    rig.eventually(5, "it runs", function() return rig.backends(busy) == 1 end)
    c:drop()
    rig.eventually(5, "it has left", function()
      return px:metrics()['poolrt_clients{state="connected"}'] == 0
    end)
    assert.equal(0, px.rt.stop("TERM", 20), px.rt.log())
    rig.no_backends(2, busy)
  end)
end)
