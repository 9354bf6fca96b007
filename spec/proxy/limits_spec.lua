-- limits_spec.lua - clients that announce much, read slowly, leave, wait too long, or are too many:
-- poolrt keeps to its memory, its time limits and its descriptors, and serves the others.
local rig = require "proxy.rig"
local sys = require "support.os"
local wire = require "proxy.wire"
local lanes = require "proxy.lanes"

local MB = 1e6

local function wait_running(n, query)
  rig.eventually(15, n .. " run " .. query, function()
    local seen = rig.backends(("state = 'active' and query = '%s'"):format(query))
    return seen == n, seen
  end)
end

-- Up to its end: how many rows there were, and all other messages.
local function rows_and_rest(c)
  local rows, list = 0, {}
  for kind, body in function() return c:next(10) end do
    if kind == "D" then
      rows = rows + 1
    else
      list[#list + 1] = { kind, body }
    end
  end
  return rows, list
end

describe("limits", function()
  local px = rig.shared {
    pools = {
      app = "mode = 'transaction', max_size = 4",
      wide = "mode = 'transaction', max_size = 40",
      one = "mode = 'transaction', max_size = 1, acquire_timeout = '1s'",
      line = "mode = 'transaction', max_size = 1",
      session = "mode = 'session', max_size = 1, acquire_timeout = '1s'",
      ended = "mode = 'transaction', max_size = 100, client_idle_timeout = '200ms'",
    },
  }

  before_each(function()
    px:reset_peak()
  end)

  it("memory follows what came, not what is announced", function()
    local base, head = px.rt.rss(), "Q" .. wire.u32(900 * MB) .. ("x"):rep(5000)
    for _ = 1, 30 do
      px:login("wide"):send(head)
    end
    -- a message that is announced takes its server at once
    rig.eventually(10, "all have a server", function()
      local n = px:metrics()["poolrt_pool_connections_total{pool=\"wide\",state=\"active\"}"]
      return n == 30, n
    end)
    px:assert_peak(base + 64 * MB)
    px:drop_clients()
    px:assert_settled("wide", 40)
  end)

  it("memory does not follow what is announced before the login either", function()
    local base = px.rt.rss()
    for _ = 1, 30 do
      local c = wire.connect(px.port)
      c:send(wire.u32(900 * MB) .. ("x"):rep(5000))
      local _, why = c:until_end(10)
      assert(why ~= "timeout", why)
      c:drop()
    end
    px:assert_peak(base + 16 * MB)
    px:assert_settled("app", 4)
  end)

  it("slow readers hold up their own server, not memory", function()
    local base = px.rt.rss()
    local sql = "select repeat(md5(g::text), 32) from generate_series(1, 100000) g"
    for _ = 1, 3 do
      px:login("app"):send(wire.query(sql))
    end
    rig.eventually(20, "three backends blocked", function()
      local n = rig.backends "wait_event = 'ClientWrite'"
      return n == 3, n
    end)
    assert.equal("T D C:SELECT 1 Z:I", (px:login("app"):ask "select 1"))
    px:assert_peak(base + 48 * MB)
    -- and one that reads on gets all of it
    local rows, size, c = 0, 0, px.clients[1]
    repeat
      local kind, body = c:next()
      rows = rows + (kind == "D" and 1 or 0)
      size = size + #(body or "")
    until kind == "Z" or not kind
    assert.equal(100000, rows)
    assert(size > 100 * MB, size)
    px:drop_clients()
    px:assert_settled("app", 4)
  end)

  it("gives one who leaves against his will the rest of his result and the reason", function()
    -- results around what the kernel's buffers hold: some clients are through and idle while their
    -- last bytes still wait in poolrt, and that is when the idle limit ends them
    local clients = {}
    for kb = 256, 8192, 112 do
      local c = px:login "ended"
      c:send(wire.query(("select repeat('x', 1000) from generate_series(1, %d)"):format(kb)))
      clients[#clients + 1] = { c = c, rows = kb }
    end
    local ended, since = 0, sys.now()
    rig.eventually(20, "the idle limit, for all that it meets", function()
      local n = px:metrics()['poolrt_disconnects_total{reason="idle_timeout"}'] or 0
      if n ~= ended then
        ended, since = n, sys.now()
      end
      return n > 0 and sys.now() - since > 0.6, n
    end)
    -- all at the same time: poolrt does not keep last bytes for longer than 5 s
    local readers = {}
    for i, one in ipairs(clients) do
      readers[i] = function()
        local rows, list = rows_and_rest(one.c)
        assert.equal(one.rows, rows)
        assert.equal(("T C:SELECT %d Z:I E:FATAL:57P05"):format(rows), wire.words(list))
      end
    end
    lanes.run(readers)
    px:drop_clients()
    px:assert_settled("ended", 100)
  end)

  it("messages of 20 MB pass with little memory", function()
    local base, big = px.rt.rss(), ("x"):rep(20 * MB)
    for _ = 1, 3 do
      px:login "app"
    end
    for _, c in ipairs(px.clients) do
      c:send(wire.query("select length('" .. big .. "')"))
    end
    for _, c in ipairs(px.clients) do
      assert.equal(tostring(20 * MB), wire.values(c:until_ready(1, 30))[1])
    end
    px:assert_peak(base + 100 * MB)
    px:drop_clients()
    px:assert_settled("app", 4)
  end)

  for how, leave in pairs { FIN = "drop", RST = "reset" } do
    it("queries of clients that left by " .. how .. " give their slots back within 5 s", function()
      for _ = 1, 4 do
        px:login("app"):send(wire.query "select pg_sleep(20)")
      end
      wait_running(4, "select pg_sleep(20)")
      local left = sys.now()
      for _, c in ipairs(px.clients) do
        c[leave](c)
      end
      for _ = 1, 4 do
        assert.equal("T D C:SELECT 1 Z:I", (px:login("app"):ask "select 1"))
      end
      assert(sys.now() - left < 5, sys.now() - left)
      wait_running(0, "select pg_sleep(20)")
      px:drop_clients()
      px:assert_settled("app", 4)
    end)
  end

  for _, pool in ipairs { "one", "session" } do
    it("a wait ends at acquire_timeout by an error, and the client stays: " .. pool, function()
      local holder, waiter = px:login(pool), px:login(pool)
      holder:ask "begin"
      local began = sys.now()
      local list = select(3, waiter:ask "select 1")
      local took = sys.now() - began
      assert.equal("E:ERROR:53300 Z:I", wire.words(list))
      assert.is_truthy(wire.fields(list[1][2]).M:find("acquire_timeout", 1, true))
      assert(took >= 1 and took < 4, took)
      holder:send(wire.terminate)
      holder:drop()
      assert.equal("T D C:SELECT 1 Z:I", (waiter:ask "select 1"))
      waiter:drop()
      px:assert_settled(pool, 1)
    end)
  end

  it("clients that leave the queue are taken out of it and get no slot", function()
    local holder = px:login "line"
    holder:ask "begin"
    local before = px:pool_metric("acquisitions_total", "line")
    for i = 1, 8 do
      local c = px:login "line"
      c:send(wire.query(("insert into no_such_table values (%d)"):format(i)))
    end
    local stays = px:login "line"
    stays:send(wire.query "select 'stayed'")
    rig.eventually(5, "all wait", function()
      local n = px:pool_metric("waiting", "line")
      return n == 9, n
    end)
    for i = 2, 9 do
      px.clients[i][i % 2 == 0 and "drop" or "reset"](px.clients[i])
    end
    rig.eventually(5, "one waits", function()
      local n = px:pool_metric("waiting", "line")
      return n == 1, n
    end)
    holder:ask "commit"
    assert.equal("stayed", wire.values(stays:until_ready())[1])
    assert.equal(before + 1, px:pool_metric("acquisitions_total", "line"))
    px:drop_clients()
    px:assert_settled("line", 1)
  end)

  it("a hundred idle clients cost no processor time", function()
    local job = px:job(rig.client "many" .. " idle 100 0 @", "app")
    job:says("answered=0", 20)
    local seconds = rig.is_long and 4 or 2
    local before = px.rt.cpu()
    rig.let_pass(seconds)
    local used = px.rt.cpu() - before
    job:kill()
    assert(rig.is_sanitized or used < 0.05 * seconds, used)
    px:assert_settled "app"
  end)

  it("without descriptors it stays alive and calm, and serves again when there are some", function()
    assert.equal("T D C:SELECT 1 Z:I", (px:login("app"):ask "select 1"))
    local old = sys.must(("prlimit --pid %d --nofile --noheadings --output SOFT,HARD")
      :format(px.pid))
    sys.must(("prlimit --pid %d --nofile=%d:"):format(px.pid, px.rt.fds() + 20))
    local crowd = {}
    for i = 1, 100 do
      crowd[i] = wire.connect(px.port)
    end
    local before = px.rt.cpu()
    rig.let_pass(1)
    local used = px.rt.cpu() - before
    assert(px.rt.alive())
    assert(used < 0.5, used)
    assert.equal("T D C:SELECT 1 Z:I", (px.clients[1]:ask "select 1"))
    for _, c in ipairs(crowd) do
      c:drop()
    end
    local relief = sys.now()
    rig.eventually(8, "a new client is served", function()
      local ok, c = pcall(wire.login, px.port, "acme", "app")
      local answer = ok and c and c:ask "select 1"
      if ok and c then
        c:drop()
      end
      return answer == "T D C:SELECT 1 Z:I", answer
    end)
    assert(sys.now() - relief < 8)
    local soft, hard = old:match "(%d+)%s+(%d+)"
    sys.must(("prlimit --pid %d --nofile=%s:%s"):format(px.pid, soft, hard))
    px:drop_clients()
    px:assert_settled("app", 4)
  end)
end)

describe("no memory for a client's buffer", function()
  it("ends that client with a reason, and no other", function()
    local px = rig.start {
      pools = { one = "mode = 'transaction', max_size = 1" },
      env = { POOLRT_FAULT = "client_buffer:1" },
    }
    local unlucky, holder, lucky = px:login "one", px:login "one", px:login "one"
    unlucky:send(wire.query "select 1") -- its settings are restored first: its bytes must be kept
    assert.equal("E:FATAL:53200", wire.words((unlucky:until_end(10))))
    assert.equal("C:BEGIN Z:T", (holder:ask "begin"))
    lucky:send(wire.query "select 2") -- must wait
    assert.equal("C:COMMIT Z:I", (holder:ask "commit"))
    assert.equal("T D C:SELECT 1 Z:I", wire.words((lucky:until_ready())))
    assert.truthy(px.rt.log():find("level=error event=out_of_memory", 1, true))
    px:drop_clients()
    px:stop()
  end)
end)
