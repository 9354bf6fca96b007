-- The protocol through poolrt, against real PostgreSQL: recorded client streams answered as
-- recorded, large messages, cancel, the login's rules, and what must not pass from one client to
-- another.
local wire = require "proxy.wire"
local setup = require "proxy.setup"
local cjson = require "cjson"

-- ---- spec/vectors/captured.jsonl ----

local TABLES = [[
  drop table if exists child, parent, trg, t;
  create table t (id int primary key, v text);
  insert into t select g, 'v' || g from generate_series(1, 100) g;
  create table parent (id int primary key);
  create table child (id int, p int references parent deferrable initially deferred);
  create table trg (a int);
  create or replace function no() returns trigger language plpgsql as
    $$begin raise exception 'no'; end$$;
  create trigger no before insert on trg for each statement execute function no();
  alter table t owner to app; alter table parent owner to app; alter table child owner to app;
  alter table trg owner to app]]

local WAITS = [[ from pg_stat_activity
  where usename = 'app' and wait_event = 'PgSleep']]

local function end_backend(how, where)
  assert(wire.eventually(function()
    return tonumber(setup.sql("select count(pg_" .. how .. "_backend(pid))" .. where)) > 0
  end), "no backend to " .. how)
end

-- what happened beside the client, when it had read its login; fatal-idle: and one answer
local BESIDE = {
  ["fatal-query"] = function() end_backend("terminate", WAITS) end,
  ["fatal-batch"] = function() end_backend("terminate", WAITS) end,
  ["cancel-batch"] = function() end_backend("cancel", WAITS) end,
  ["fatal-idle"] = function()
    end_backend("terminate", " from pg_stat_activity where usename = 'app' and query = 'select 1'")
  end,
}

local SKIPPED = {
  ["copy-both"] = "replication is refused",
  ["start-3.2"] = "its own test: the version is named in v",
  ["copy-in-vanish"] = "what a server says of a client that is gone is said to nobody",
  ["pgjdbc-fastpath"] = "it names a large object by the number that it had",
  ["async-notify"] = "its own test: when a notification comes is not the client's doing",
}
-- A server that ends while nobody holds it is no client's business; a DO is dirt, and the server is
-- cleaned of it; what a listener connection hears comes when it comes.
local SESSION_ONLY = { ["fatal-idle"] = true, ["ext-hidden-deallocate"] = true,
  ["psycopg-notify"] = true }

local function is_comparable(kind)
  return kind ~= "S" and kind ~= "N" and kind ~= "K"
end

-- the recorded answers: after each step how many messages are whole
local function recorded(v)
  local buf, list, whole, ssl = "", {}, {}, v.id == "start-ssl-refused"
  for i, step in ipairs(v.steps) do
    if step[1] == "B" and step[2] ~= cjson.null then
      buf = buf .. wire.unhex(step[2])
      if ssl then
        buf, ssl = buf:sub(2), false
      end
      while #buf >= 5 and #buf > wire.get32(buf, 2) do
        local size = wire.get32(buf, 2) + 1
        if is_comparable(buf:sub(1, 1)) then
          list[#list + 1] = { buf:sub(1, 1), buf:sub(6, size) }
        end
        buf = buf:sub(size + 1)
      end
    end
    whole[i] = #list
  end
  return list, whole
end

-- the messages up to number n; returns why there are fewer
local function hear(c, got, n, beside)
  while #got < n do
    if beside and beside.at == #got + 1 then
      beside.act()
      beside = nil
    end
    local kind, body = c:next()
    if not kind then
      return body
    end
    if is_comparable(kind) then
      got[#got + 1] = { kind, body }
    end
  end
end

-- how many rows others left is not the protocol's
local function words_of(list)
  return (wire.words(list):gsub("C:DELETE %d+", "C:DELETE"))
end

local function replay(rt, v, step_size)
  local c, got = wire.connect(rt.port), {}
  local expected, whole = recorded(v)
  local beside = BESIDE[v.id] and { at = v.id == "fatal-idle" and 7 or 3, act = BESIDE[v.id] }
  local ended
  setup.sql "delete from t where id > 100"
  assert(not beside or wire.eventually(function() -- what an earlier one left asleep would be hit
    return setup.sql("select count(*)" .. WAITS) == "0"
  end))
  for i, step in ipairs(v.steps) do
    local bytes = step[2] ~= cjson.null and wire.unhex(step[2])
    if step[1] == "F" and bytes then
      c:send(bytes, step_size)
    elseif step[1] == "F" then
      if not beside then -- a client that ends may be taken at its word before its query runs
        c:half_close()
      end
    elseif bytes then
      if i == 2 and v.id == "start-ssl-refused" then
        assert.equal("N", (c:take(1)))
      end
      ended = ended or hear(c, got, whole[i], beside)
    else
      local more, why = c:until_end()
      for _, m in ipairs(more) do
        if is_comparable(m[1]) then
          got[#got + 1] = m
        end
      end
      ended = ended or why
    end
  end
  assert.equal(words_of(expected), words_of(got), "ended: " .. tostring(ended))
end

for _, mode in ipairs { "session", "transaction" } do
  describe("recorded clients in " .. mode .. " mode", function()
    local rt

    lazy_setup(function()
      setup.sql(TABLES)
      rt = setup.start { app = mode, size = 3 }
    end)
    before_each(wire.track)
    after_each(wire.drop_tracked)

    for _, v in ipairs(setup.vectors "captured") do
      local is_for = mode == "session" or not SESSION_ONLY[v.id]
      if is_for and not SKIPPED[v.id] then
        it(v.id .. ": " .. v.what, function()
          replay(rt, v)
        end)
        it(v.id .. " byte by byte", function()
          replay(rt, v, 1)
        end)
      end
    end

    it("leave nothing behind", function()
      setup.assert_settled(rt)
      rt.stop()
    end)
  end)
end

-- ---- one daemon for the rest ----

describe("protocol", function()
  local rt, one

  lazy_setup(function()
    rt = setup.start { size = 4, pool = 'abandoned_grace = "200ms",' }
    one = setup.start { size = 1, workers = 1, pool = 'abandoned_grace = "200ms",' }
  end)
  before_each(wire.track)
  after_each(wire.drop_tracked)

  local function login(database, user, where)
    return assert(wire.login((where or rt).port, user or "app", database or "app"))
  end

  local function fields_of(list)
    for _, m in ipairs(list) do
      if m[1] == "E" then
        return wire.fields(m[2])
      end
    end
    return {}
  end

  it("names its newest version to a client of 3.2", function()
    local body = wire.u32(196610) .. "user\0app\0database\0app\0_pq_.x\0" .. "1\0\0"
    local c = wire.connect(rt.port):send(wire.u32(#body + 4) .. body)
    local kind, text = c:next()
    assert.equal("v", kind)
    local newest = wire.get32(text, 1)
    assert.is_true(newest == 196608 or newest == 196610)
    assert.equal(1, wire.get32(text, 5))
    assert.equal("_pq_.x\0", text:sub(9))
    local list = c:until_ready()
    assert.equal("R Z:I", wire.words(list))
  end)

  it("delivers notifications to a client that idles in session mode", function()
    local c = login "session"
    assert.equal("C:LISTEN Z:I", (c:ask "listen ch"))
    setup.sql "notify ch, 'hello'"
    local kind, body = c:next()
    assert.equal("A", kind)
    assert.is_truthy(body:find("ch\0hello\0", 1, true))
  end)

  -- ---- large messages ----

  for _, database in ipairs { "app", "session" } do
    it("passes a query of 20 MB and a row of 30 MB in pool " .. database, function()
      local c = login(database)
      local words, values = c:ask("select length('" .. ("x"):rep(20e6) .. "')", 60)
      assert.equal("T D C:SELECT 1 Z:I", words)
      assert.same({ "20000000" }, values)
      words, values = c:ask("select repeat('y', 30000000)", 60)
      assert.equal("T D C:SELECT 1 Z:I", words)
      assert.equal(30e6, #values[1])
      assert.is_nil(values[1]:find "[^y]")
    end)

    it("passes a parameter of 10 MB in pool " .. database, function()
      local c, big = login(database), ("z"):rep(10e6)
      c:send(wire.parse("", "select length($1::text)")
        .. wire.message("B", "\0\0\0\0" .. wire.u16(1) .. wire.u32(#big) .. big .. "\0\0")
        .. wire.execute "" .. wire.sync)
      local list = c:until_ready(1, 60)
      assert.equal("1 2 D C:SELECT 1 Z:I", wire.words(list))
      assert.same({ "10000000" }, wire.values(list))
    end)
  end

  -- ---- the end of a server ----

  it("passes the server's last words on once when it is terminated in a query", function()
    local c = login()
    c:send(wire.query "select pg_sleep(60)")
    end_backend("terminate", WAITS)
    local list, why = c:until_end()
    assert.equal("E:FATAL:57P01", (wire.words(list):gsub("^T ", "")))
    assert.equal("closed", why)
  end)

  it("passes them on to an idle client of session mode", function()
    local c = login "session"
    local _, pid = c:ask "select pg_backend_pid()"
    setup.sql(("select pg_terminate_backend(%s)"):format(pid[1]))
    assert.equal("E:FATAL:57P01", wire.words((c:until_end())))
  end)

  it("hides the end of an idle server from clients that do not hold it", function()
    local c = login(nil, nil, one)
    local _, pid = c:ask "select pg_backend_pid()"
    local before = one.fds()
    setup.sql(("select pg_terminate_backend(%s)"):format(pid[1]))
    assert(wire.eventually(function()
      return one.fds() < before
    end), "the server is not closed")
    assert.equal("T D C:SELECT 1 Z:I", (c:ask "select 1"))
  end)

  -- ---- cancel (P6, P7) ----

  it("cancels by the right key and by no other", function()
    local c = login()
    local wrong = c.key:sub(1, 7) .. string.char((c.key:byte(8) + 1) % 256)
    c:send(wire.query "select pg_sleep(60)")
    assert(wire.eventually(function()
      return setup.sql("select count(*)" .. WAITS) == "1"
    end))
    for i = 1, 50 do
      local key = i % 2 == 0 and wrong or wire.u32(i * 7919) .. c.key:sub(5)
      assert.is_true(wire.cancel(rt.port, key))
    end
    assert.is_true(c:is_quiet())
    assert.equal("1", setup.sql("select count(*)" .. WAITS))
    assert.is_true(wire.cancel(rt.port, c.key))
    assert.equal("E:ERROR:57014 Z:I", (wire.words((c:until_ready())):gsub("^T ", "")))
    assert.equal("T D C:SELECT 1 Z:I", (c:ask "select 1"))
  end)

  it("never cancels the next client's query on the same server", function()
    local a, b = login(nil, nil, one), login(nil, nil, one)
    for i = 1, 150 do
      a:send(wire.query "select 'a'")
      local k = wire.connect(one.port)
      k:send(wire.u32(16) .. wire.u32(80877102) .. a.key)
      b:send(wire.query("select 'b' from pg_sleep(0.005)"))
      local list = b:until_ready()
      assert.equal("T D C:SELECT 1 Z:I", wire.words(list), "in round " .. i)
      a:until_ready()
      k:drop()
    end
  end)

  -- ---- what a client leaves behind (P3, P5) ----

  it("undoes half a batch whose client is gone, and serves the next one", function()
    setup.sql "drop table if exists half; create table half (v int); grant all on half to app"
    for _, ending in ipairs { "drop", "reset" } do
      for _, tail in ipairs { "", wire.flush, wire.sync:sub(1, 3), wire.parse("", "selec") } do
        local c = login(nil, nil, one)
        c:send(wire.batch "insert into half values (1)" .. wire.flush)
        repeat
          local kind = c:next()
        until kind == "C" or kind == nil
        c:send(tail)
        c[ending](c)
        local next_one = login(nil, nil, one)
        assert.equal("T D C:SELECT 1 Z:I", (next_one:ask "select 1"))
        next_one:drop()
      end
    end
    assert.equal("0", setup.sql "select count(*) from half")
  end)

  it("gives a session that ended in a failed transaction to the next client clean", function()
    local c = login("session", nil, one)
    c:ask "create temp table leftover (a int)"
    c:ask "set search_path = nowhere"
    c:ask "select pg_advisory_lock(4711)"
    c:ask "prepare leftover as select 1"
    assert.equal("C:BEGIN Z:T", (c:ask "begin"))
    assert.equal("E:ERROR:22012 Z:E", (c:ask "select 1/0"))
    c:reset()
    local n = login("session", nil, one)
    local words = n:ask "begin; commit"
    assert.equal("C:BEGIN C:COMMIT Z:I", words)
    local _, v = n:ask [[select (select count(*) from pg_prepared_statements)
      + (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())
      + (select count(*) from pg_class where relname = 'leftover')]]
    assert.same({ "0" }, v)
    local _, path = n:ask "show search_path"
    assert.is_nil(path[1]:find "nowhere")
  end)

  -- ---- statement mode ----

  it("ends the session that opens a transaction in statement mode", function()
    local c = login "statement"
    c:send(wire.query "begin")
    local list, why = c:until_end()
    assert.equal("FATAL", fields_of(list).V)
    assert.equal("25001", fields_of(list).C)
    assert.equal("closed", why)
    local n = login "statement"
    assert.equal("T D C:SELECT 1 Z:I", (n:ask "select 1"))
  end)

  -- ---- the unnamed statement ----

  -- Each is refused by the server before it touches the unnamed statement, or replaces it.
  local BEFORE_BIND = {
    ["nothing"] = "",
    ["a Parse without text"] = wire.message("P", "\0") .. wire.sync,
    ["a Parse that announces types"] = wire.message("P", "\0select 1\0\255\255") .. wire.sync,
    ["a Parse with bytes behind it"] = wire.message("P", "\0select 1\0\0\0xx") .. wire.sync,
    ["a Parse in a wrong encoding"] = wire.parse("", "select '\255'") .. wire.sync,
    ["a Parse that fails"] = wire.parse("", "selec") .. wire.sync,
    ["a named Parse"] = wire.parse("a", "select 1") .. wire.sync,
    ["a Query without end"] = wire.message("Q", "select 1"),
    ["a Query with a NUL"] = wire.message("Q", "select 1\0 2\0"),
    ["an empty Query"] = wire.message("Q", ""),
    ["a Query in a wrong encoding"] = wire.query "select '\255'",
    ["a Query that fails"] = wire.query "selec",
    ["a long Query in a wrong encoding"] = wire.query("select '" .. ("x"):rep(50000) .. "\255'"),
    ["a Describe of nothing"] = wire.describe("P", "no") .. wire.sync,
    ["a Flush"] = wire.flush,
    ["a Sync"] = wire.sync,
    ["an unknown function"] = wire.message("F", wire.u32(999999) .. "\0\0\0\0\0\0") ,
  }

  for what, bytes in pairs(BEFORE_BIND) do
    for _, is_pipelined in ipairs { false, true } do
      local how = is_pipelined and ", pipelined" or ""
      it("is never another client's: " .. what .. how, function()
        local a, b = login(nil, nil, one), login(nil, nil, one)
        a:send(wire.parse("", "select 'secret of a'") .. wire.sync)
        assert.equal("1 Z:I", wire.words((a:until_ready())))
        local answers = (bytes == "" or bytes == wire.flush) and 0 or 1
        local use = wire.bind("", "") .. wire.execute "" .. wire.sync
        if is_pipelined then
          b:send(bytes .. use)
        else
          b:send(bytes)
          b:until_ready(answers)
          answers = 0
          b:send(use)
        end
        local list, why = b:until_ready(answers + 1)
        assert.is_nil(why)
        assert.same({}, wire.values(list))
        assert.is_truthy(wire.words(list):find "E:ERROR:26000 Z:I$", wire.words(list))
      end)
    end
  end

  it("is still one's own when a batch of its own made it", function()
    local c = login(nil, nil, one)
    c:send(wire.parse("", "select 'mine'") .. wire.sync .. wire.bind("", "") .. wire.execute ""
      .. wire.sync)
    local list = c:until_ready(2)
    assert.equal("1 Z:I 2 D C:SELECT 1 Z:I", wire.words(list))
    assert.same({ "mine" }, wire.values(list))
  end)

  it("leaves nothing behind", function()
    for _, database in ipairs { "app", "session", "statement" } do
      setup.assert_settled(rt, database ~= "statement" and database or "app")
    end
    setup.assert_settled(one)
    rt.stop()
    one.stop()
  end)
end)

-- ---- logins (L11, L13) ----

describe("login", function()
  before_each(wire.track)
  after_each(wire.drop_tracked)

  local function words_without_name(list, user)
    local out = {}
    for _, m in ipairs(list) do
      local f = m[1] == "E" and wire.fields(m[2])
      out[#out + 1] = f and ("%s %s %s"):format(f.V, f.C, f.M:gsub(user, "USER"))
        or ("%s %d"):format(m[1], #m[2])
    end
    return table.concat(out, "; ")
  end

  -- everything that comes, and how many times we had to send
  local function fail_scram(rt, user)
    local c, list, round_trips = wire.connect(rt.port), {}, 1
    c:send(wire.startup("user", user, "database", "app"))
    while true do
      local kind, body = c:next()
      if not kind then
        break
      end
      list[#list + 1] = { kind, body }
      local code = kind == "R" and wire.get32(body, 1)
      if code == 10 then
        local first = "n,,n=,r=abcdefghijklmnopqrstuvwx"
        c:send(wire.message("p", "SCRAM-SHA-256\0" .. wire.u32(#first) .. first))
      elseif code == 11 then
        local nonce = body:match "r=([^,]*)"
        c:send(wire.message("p", "c=biws,r=" .. nonce .. ",p=" .. ("A"):rep(43) .. "="))
      elseif code == 5 then
        c:send(wire.message("p", "md5" .. ("0"):rep(32) .. "\0"))
      end
      round_trips = round_trips + (code and 1 or 0)
    end
    return words_without_name(list, user), round_trips, list
  end

  for _, auth in ipairs { "scram-sha-256", "md5" } do
    it("does not tell an unknown user from a wrong password: " .. auth, function()
      local rt = setup.start { auth = auth }
      local known, n = fail_scram(rt, "acme")
      local unknown, m = fail_scram(rt, "acmf")
      assert.equal(known, unknown)
      assert.equal(n, m)
      assert.is_truthy(known:find "FATAL 28P01 password authentication failed for user \"USER\"")
      rt.stop()
    end)
  end

  it("shows the same salt for an unknown user each time", function()
    local rt = setup.start { auth = "scram-sha-256" }
    local function salt()
      local _, _, list = fail_scram(rt, "nobody")
      return list[2][2]:match "s=([^,]*),(i=%d+)"
    end
    local first, iterations = salt()
    local second = salt()
    assert.equal(first, second)
    assert.equal("i=4096", iterations)
    rt.stop()
  end)

  it("is ended by login_timeout, and slow ones do not delay others", function()
    local rt = setup.start { login_timeout = "2s" }
    local packet, slow = wire.startup("user", "app", "database", "app"), {}
    for i = 1, 200 do
      slow[i] = wire.connect(rt.port)
    end
    local began = wire.now()
    for byte = 1, 4 do
      for i = 1, 200 do
        slow[i]:send(packet:sub(byte, byte))
      end
      local c = assert(wire.login(rt.port, "acme", "app"))
      assert.equal("T D C:SELECT 1 Z:I", (c:ask "select 1"))
      c:drop()
    end
    assert.is_true(wire.now() - began < 15, "others were delayed")
    for i = 1, 200 do
      local list, why = slow[i]:until_end()
      assert.is_true(why == "closed" or why == "reset", why)
      assert.is_true(#list <= 1)
    end
    rt.stop()
  end)
end)
