-- half_close_spec.lua - a client that sends its last byte (FIN, or Terminate before it) and reads
-- on gets what a direct connection gives it: while its query runs, and while it waits for a server.
-- One that has closed its socket, or is silent behind it, keeps nothing.
local ffi = require "ffi"
local rig = require "proxy.rig"
local runtime = require "proxy.setup"
local sys = require "support.os"
local wire = require "proxy.wire"

ffi.cdef [[
  struct half_op { uint16_t code; uint8_t yes, no; uint32_t k; };
  struct half_program { unsigned short n; struct half_op *op; };
  int half_setsockopt(int, int, int, const void *, unsigned) __asm__("setsockopt");
]]

local BIG = ("x"):rep(300000)
local insert = "insert into half values (1)"

--- What is sent behind the login; `first`: is sent and answered before.
local CASES = {
  { "a query", wire.query "select 1" },
  { "a query and Terminate", wire.query "select 1" .. wire.terminate },
  { "what follows Terminate", wire.query "select 1" .. wire.terminate .. wire.query(insert) },
  { "two queries", wire.query "select 1" .. wire.query "select 2" },
  { "a write", wire.query(insert) },
  { "a query that fails", wire.query "select 1/0" },
  { "a query and half a message", wire.query "select 1" .. wire.query(insert):sub(1, -5) },
  { "half a message", wire.query(insert):sub(1, -5) },
  { "two batches", (wire.batch(insert) .. wire.sync):rep(2) },
  { "a batch without Sync", wire.batch(insert) .. wire.flush },
  { "a long pipeline", (wire.batch "select 1" .. wire.sync):rep(300) },
  { "a query behind half a batch", wire.batch(insert) .. wire.query "select 2" },
  { "a long query text", wire.query("select length('" .. BIG .. "')") },
  { "a large result", wire.query "select repeat('x', 1000) from generate_series(1, 3000)" },
  { "an open transaction", wire.query("begin;" .. insert) },
  { "the rest of a transaction", wire.query(insert) .. wire.query "commit", first = "begin" },
  { "a query in a transaction", wire.query(insert), first = "begin" },
  { "a COPY to its end", wire.query "copy half from stdin" .. wire.message("d", "7\n")
    .. wire.message "c" },
  { "a COPY cut off", wire.query "copy half from stdin" .. wire.message("d", "7\n"),
    -- PostgreSQL says two things, ERROR 08006 and FATAL 08P01 (synchronization lost)
    pooled = "G E:FATAL:08006 closed, 0 rows, 0 in the table" },
  { "a COPY out", wire.query "copy (select generate_series(1, 1000)) to stdout" },
  { "a query longer than abandoned_grace", wire.query "select pg_sleep(1)" },
}

--- Sends a case and ends that side; waits() is called then. The answers in words, how many rows
--- there are, and how many the table has afterwards.
local function run(c, case, waits)
  rig.sql("truncate half", "app")
  if case.first then
    c:ask(case.first)
  end
  c:send(case[2])
  c:half_close()
  if waits then
    waits()
  end
  local list, why = c:until_end(20)
  c:drop()
  local rows = 0
  for _, m in ipairs(list) do
    rows = rows + ((m[1] == "D" or m[1] == "d") and 1 or 0)
  end
  rig.no_backends(10, "state <> 'idle'")
  return ("%s %s, %d rows, %s in the table"):format(wire.words(list), why, rows,
    rig.sql("select count(*) from half", "app"))
end

describe("a client that has sent its last byte", function()
  local px, direct = nil, {}

  setup(function()
    px = rig.start {
      pools = {
        app = "mode = 'transaction', max_size = 2, abandoned_grace = '100ms'",
        session = "mode = 'session', max_size = 2, abandoned_grace = '100ms'",
        one = "mode = 'transaction', max_size = 1, abandoned_grace = '100ms'",
        one_session = "mode = 'session', max_size = 1, abandoned_grace = '100ms'",
        fresh = "mode = 'transaction', max_size = 2, min_size = 0",
      },
    }
    rig.sql("create table half (v int); grant all on half to public", "app")
    for _, case in ipairs(CASES) do
      direct[case[1]] = run(assert(wire.login(rig.server().port, "acme", "app")), case)
    end
    -- a cut connection shows in words; these are what PostgreSQL does, and what is compared with
    assert.equal("T D C:SELECT 1 Z:I closed, 1 rows, 0 in the table", direct["a query"])
    assert.equal("C:INSERT 0 1 Z:I closed, 0 rows, 1 in the table", direct["a write"])
  end)

  teardown(function()
    rig.sql("drop table half", "app")
    px:stop()
  end)

  for _, pool in ipairs { "app", "session" } do
    for _, case in ipairs(CASES) do
      it(("gets what a direct connection gives: %s, %s"):format(pool, case[1]), function()
        assert.equal(case.pooled or direct[case[1]], run(px:login(pool), case))
      end)
    end

    it("leaves every server usable: " .. pool, function()
      px:drop_clients()
      px:assert_settled(pool, 2)
    end)
  end

  for _, pool in ipairs { "one", "one_session" } do
    for _, case in ipairs(CASES) do
      if not case.first then
        it(("waits for a server and gets the same: %s, %s"):format(pool, case[1]), function()
          local holder, c = px:login(pool), px:login(pool)
          holder:ask "begin"
          local is_request = case[1] ~= "half a message"
          assert.equal(case.pooled or direct[case[1]], run(c, case, function()
            rig.eventually(5, "it waits", function()
              local n = px:pool_metric("waiting", pool)
              return n == (is_request and 1 or 0), n
            end)
            holder:ask "commit"
            holder:send(wire.terminate)
            holder:drop()
          end))
        end)
      end
    end

    it("leaves the one server usable: " .. pool, function()
      px:drop_clients()
      px:assert_settled(pool, 1)
    end)
  end

  it("may say all of it in one go, as nc does, and be the first of its pool", function()
    for _, pool in ipairs { "fresh", "fresh", "app" } do
      local c = wire.connect(px.port)
      c:send(wire.startup("user", "acme", "database", pool) .. wire.query "select 1"
        .. wire.query "select 2" .. wire.terminate)
      c:half_close()
      local list, why = c:until_end()
      c:drop()
      assert.equal("R Z:I T D C:SELECT 1 Z:I T D C:SELECT 1 Z:I closed",
        wire.words(list) .. " " .. why)
    end
  end)

  it("may ask while the first server of its pool is still awaited", function()
    local fake = wire.listen()
    local rt = runtime.start { port = fake.port, only = "app", login_timeout = "2s" }
    local c = wire.connect(rt.port)
    c:send(wire.startup("user", "acme", "database", "app"))
    assert.equal("R", (c:next()))
    local server = fake:accept() -- and says nothing
    c:send(wire.query "select 1")
    assert.falsy(c:take(1, 0.5))
    assert.is_true(rt.alive())
    assert.is_nil(c.ended)
    -- no longer than a login may take, although acquire_timeout is 20 s
    local list, why = c:until_end(6)
    assert.equal("E:FATAL:53300 closed", wire.words(list) .. " " .. why)
    c:drop()
    server:drop()
    rt:stop()
  end)

  it("is dropped from the queue when it is closed: what it asked for does not run", function()
    rig.sql("truncate half", "app")
    local holder = px:login "one"
    holder:ask "begin"
    local waiting = {}
    for i = 1, 6 do
      waiting[i] = px:login "one"
      waiting[i]:send(wire.query(insert) .. (i > 3 and wire.terminate or ""))
    end
    rig.eventually(5, "they wait", function()
      local n = px:pool_metric("waiting", "one")
      return n == 6, n
    end)
    for i, c in ipairs(waiting) do
      c[i % 2 == 0 and "drop" or "reset"](c)
    end
    rig.eventually(5, "nobody waits", function()
      local n = px:pool_metric("waiting", "one")
      return n == 0, n
    end)
    holder:ask "commit"
    assert.equal("0", rig.sql("select count(*) from half", "app"))
    px:drop_clients()
    px:assert_settled("one", 1)
  end)

  --- Its query runs and it has sent FIN; `go` is what becomes of it. The server must be free soon.
  local function gives_back(go)
    local c, sleep = px:login "one", "select pg_sleep(60)"
    c:send(wire.query(sleep))
    c:half_close()
    rig.eventually(5, "it runs", function()
      return rig.backends("state = 'active' and query = '" .. sleep .. "'") == 1
    end)
    local began = sys.now()
    go(c)
    assert.equal("T D C:SELECT 1 Z:I", (px:login("one"):ask "select 1"))
    assert(sys.now() - began < 8, sys.now() - began)
    rig.no_backends(5, "state = 'active'")
    px:drop_clients()
    px:assert_settled("one", 1)
  end

  it("keeps no server when it closes its socket later", function()
    gives_back(function(c) c:drop() end)
  end)

  it("keeps no server when nothing is heard of it any more", function()
    gives_back(function(c)
      -- a filter that takes nothing: its side of the connection is as if the machine were gone
      local op = ffi.new("struct half_op[1]", { { 6, 0, 0, 0 } })
      local program = ffi.new("struct half_program", { 1, op })
      assert(ffi.C.half_setsockopt(c.fd, 1, 26, program, ffi.sizeof(program)) == 0)
    end)
  end)
end)
