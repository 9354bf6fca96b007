-- state_spec.lua - what one client sets must not reach the next: session mode leaves nothing behind
-- however a client ends; in transaction mode what it asked for at login follows it from server to
-- server.
local rig = require "proxy.rig"
local wire = require "proxy.wire"

local PROBE = [[
select concat_ws(' ', current_user, session_user, current_setting('work_mem'),
  coalesce(nullif(current_setting('my.custom', true), ''), 'unset'),
  current_setting('search_path'), current_setting('default_transaction_isolation'),
  current_setting('default_transaction_read_only'),
  current_setting('transaction_isolation'), current_setting('transaction_read_only'),
  current_setting('application_name'), current_setting('TimeZone'), current_setting('DateStyle'),
  (select count(*) from pg_catalog.pg_class where relname = 'left_table'),
  (select count(*) from pg_catalog.pg_prepared_statements),
  (select count(*) from pg_catalog.pg_cursors where name <> ''),
  (select count(*) from pg_catalog.pg_listening_channels()),
  (select count(*) from pg_catalog.pg_locks where locktype = 'advisory'),
  (select count(*) from pg_catalog.pg_locks where pid = pg_backend_pid()
    and locktype = 'transactionid'))]]

local DIRT = {
  "create temp table left_table (x int)", "select pg_advisory_lock(4242)",
  "select pg_advisory_lock_shared(1, 2)", "listen left_channel",
  "prepare left_statement as select 1",
  "begin; declare left_cursor cursor with hold for select 1; commit", "set work_mem = '77MB'",
  "set my.custom = 'left'", "set search_path = pg_temp", "set application_name = 'left'",
  "set timezone = 'Asia/Tokyo'", "set datestyle = 'German'",
  "set session characteristics as transaction isolation level serializable, read only",
  "set session authorization globex", "set role acme",
}

local ENDS = {
  quit = function(c)
    c:send(wire.terminate)
    c:drop()
  end,
  FIN = function(c)
    c:drop()
  end,
  RST = function(c)
    c:reset()
  end,
}
local STATES = { "between transactions", "in a transaction", "in a failed transaction" }
local INTO = {
  ["in a transaction"] = "begin; select 1",
  ["in a failed transaction"] = "begin; select 1/0",
}

describe("session mode", function()
  local px = rig.shared { pools = { app = "mode = 'session', max_size = 1" } }
  local clean

  setup(function()
    local c = px:login "app"
    clean = c:one(PROBE)
    c:drop()
  end)

  for how, leave in pairs(ENDS) do
    for _, state in ipairs(STATES) do
      it(("leaves nothing behind after %s %s"):format(how, state), function()
        local c = px:login "app"
        local pid = c:one "select pg_backend_pid()"
        for _, sql in ipairs(DIRT) do
          local words = c:ask(sql)
          assert(not words:find "E:", sql .. ": " .. words)
        end
        assert.not_equal(clean, c:one(PROBE))
        if INTO[state] then
          c:ask(INTO[state])
        end
        leave(c)

        local after = px:login "app"
        assert.equal(clean, after:one(PROBE))
        rig.sql("notify left_channel, 'for the one before'", "app")
        assert.equal("T D C:SELECT 1 Z:I", (after:ask "select 1"))
        if how == "quit" then -- so that this has cleaned, not only replaced
          assert.equal(pid, after:one "select pg_backend_pid()")
        end
        after:drop()
        px:assert_settled("app", 1)
      end)
    end
  end

  it("leaves no transaction open that was sent in part", function()
    local c = px:login "app"
    c:ask "create table if not exists half (x int)"
    c:ask "truncate half"
    c:send(wire.batch "insert into half values (1)") -- and no Sync: nothing may be committed
    c:drop()
    local after = px:login "app"
    assert.equal("0", after:one "select count(*) from half")
    after:ask "drop table half"
    after:drop()
    px:assert_settled("app", 1)
  end)
end)

describe("transaction mode", function()
  local px = rig.shared { pools = { app = "mode = 'transaction', max_size = 2",
    one = "mode = 'transaction', max_size = 1" } }

  local SHOW = [[select concat_ws('|', current_setting('TimeZone'), current_setting('DateStyle'),
    current_setting('application_name'), current_setting('client_encoding'),
    current_setting('search_path'), current_setting('IntervalStyle'))]]

  it("gives each client the parameters of its startup, whatever server it gets", function()
    local wanted = {
      "Asia/Tokyo|SQL, DMY|first|LATIN1|pg_catalog, public|iso_8601",
      "America/Lima|German, DMY|it's \"2nd\" \\ one|UTF8|\"$user\", public|postgres",
      "Asia/Tokyo|ISO, YMD||WIN1252|pg_temp|sql_standard",
    }
    local clients = {
      px:login("app", "acme", "TimeZone", "Asia/Tokyo", "datestyle", "SQL, DMY", "application_name",
        "first", "client_encoding", "LATIN1", "IntervalStyle", "iso_8601", "options",
        "-c search_path=pg_catalog,\\ public"),
      px:login("app", "acme", "timezone", "America/Lima", "DateStyle", "German, DMY",
        "application_name", "it's \"2nd\" \\ one", "client_encoding", "UTF8"),
      px:login("app", "acme", "TimeZone", "Asia/Tokyo", "DateStyle", "ISO, YMD", "client_encoding",
        "WIN1252", "options", "-c search_path=pg_temp -c intervalstyle=sql_standard"),
    }
    for _ = 1, 5 do
      for i, c in ipairs(clients) do
        assert.equal(wanted[i], c:one(SHOW))
      end
    end
    assert.equal("LATIN1", clients[1].params.client_encoding)
    for _, c in ipairs(clients) do
      c:drop()
    end
    px:assert_settled("app", 2)
  end)

  it("lets a parameter that a client has changed follow it", function()
    local first, second = px:login "app", px:login "app"
    local before = second:one(SHOW)
    first:ask "set timezone = 'Asia/Kolkata'; set application_name = 'changed'"
    local hers = first:one(SHOW)
    assert.is_truthy(hers:find "^Asia/Kolkata|[^|]+|changed|")
    for _ = 1, 5 do
      assert.equal(before, second:one(SHOW))
      assert.equal(hers, first:one(SHOW))
    end
    first:drop()
    second:drop()
    px:assert_settled("app", 2)
  end)

  it("makes settings again in the encoding in which they were made", function()
    local function login(pool, encoding)
      return px:login(pool, "acme", "client_encoding", encoding)
    end
    local size = "select octet_length(current_setting('my.own'))"
    local a, b = login("one", "LATIN1"), login("one", "UTF8")
    b:ask "set my.own = 'h\195\169'; set statement_timeout = '77s'"
    for _ = 1, 3 do
      assert.equal("3", b:one(size))
      assert.equal("77s", b:one("select current_setting('statement_timeout')"))
      a:ask "set my.own = 'h\233'"
      assert.equal("3", a:one(size))
    end
    a:ask "set client_encoding = 'WIN1252'" -- now no other server could be given it
    assert.equal("h\233", a:one("select current_setting('my.own')"))
    b:send(wire.query(size))
    assert.equal("3", a:one(size))
    assert.is_true(b:is_quiet())
    a:ask "discard all"
    assert.same({ "3" }, wire.values(b:until_ready()))
  end)

  it("rolls back what a client leaves open, and never commits half a batch", function()
    rig.sql("create table if not exists left_open (x int); truncate left_open", "app")
    for _, leave in pairs(ENDS) do
      for _, sql in ipairs { "begin; insert into left_open values (1)",
        "begin; insert into left_open values (1); select 1/0" } do
        local c = px:login "app"
        c:ask(sql)
        leave(c)
      end
      local c = px:login "app"
      c:send(wire.batch "insert into left_open values (2)")
      leave(c)
    end
    px:assert_settled("app", 2)
    assert.equal("0", rig.sql("select count(*) from left_open", "app"))
    rig.sql("drop table left_open", "app")
  end)

  it("keeps a server whose client is in the middle of a message when its COPY fails", function()
    local bad = wire.message("d", "bad\n")
    local late = wire.message("d", ("late"):rep(100))
    local c = px:login "app"
    c:ask "create table if not exists half (x int)"
    local clients = { c, px:login "app" } -- both servers of the pool
    for _, copier in ipairs(clients) do
      copier:send(wire.query "copy half from stdin")
      assert.equal("G", (copier:next()))
      copier:send(bad .. late:sub(1, 100))
      assert.equal("E:ERROR:22P02 Z:I", wire.words(copier:until_ready()))
    end
    local after = px:login("app", "acme")
    after:send(wire.query "select 42")
    for _, copier in ipairs(clients) do
      copier:send(late:sub(101))
    end
    assert.equal("T D C:SELECT 1 Z:I", wire.words(after:until_ready()))
    for _, copier in ipairs(clients) do
      assert.equal("T D C:SELECT 1 Z:I", (copier:ask "select 42"))
    end
    c:ask "drop table half"
    px:drop_clients()
    px:assert_settled("app", 2)
  end)
end)
