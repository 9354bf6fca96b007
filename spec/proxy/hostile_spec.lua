-- What strangers and broken drivers send, and what broken servers answer:
-- spec/vectors/hostile.jsonl end to end. Each line must have its reaction, and nobody else may
-- notice.
local wire = require "proxy.wire"
local setup = require "proxy.setup"

local message = wire.message

local function bytes_of(v)
  if v.bytes then
    return wire.unhex(v.bytes)
  end
  local out = {}
  for i, run in ipairs(v.runs) do
    out[i] = string.char(run[1]):rep(run[2])
  end
  return table.concat(out)
end

local function lines(side)
  local out = {}
  for _, v in ipairs(setup.vectors "hostile") do
    if v.side == side then
      v.data = bytes_of(v)
      out[#out + 1] = v
    end
  end
  return out
end

-- ---- what a client sees ----

local function last_error(list)
  for i = #list, 1, -1 do
    if list[i][1] == "E" then
      return wire.fields(list[i][2])
    end
  end
  return {}
end

-- FATAL with one of the codes in `text` ("fatal 28P01 or 3D000"; none: any), then the end
local function is_fatal(c, text)
  local list, why = c:until_end()
  local e = last_error(list)
  assert.is_true(why == "closed" or why == "reset", wire.words(list) .. " " .. why)
  assert.equal("FATAL", e.V, wire.words(list))
  if text:find "%d%d%u?" then
    assert.is_truthy(text:find(e.C, 1, true), text .. " but got " .. e.C .. ": " .. e.M)
  end
end

local function lives(c)
  local words, values = c:ask "select 42"
  assert.equal("T D C:SELECT 1 Z:I", words)
  assert.same({ "42" }, values)
end

local function is_silent(c)
  local ok, why = c:is_closed_silently()
  assert.is_true(ok, why)
end

local function is_session(c)
  local list, why = c:until_ready()
  assert.equal("Z", list[#list] and list[#list][1], wire.words(list) .. " " .. tostring(why))
  lives(c)
end

-- ---- before and during the login ----

local START = {
  ["close"] = is_silent,
  ["tls or close"] = is_silent,
  ["accept"] = is_session,
  ["accept or fatal"] = function(c)
    local list = c:until_ready()
    local last = list[#list]
    assert.is_true(last[1] == "Z" or last_error(list).V == "FATAL", wire.words(list))
  end,
  ["negotiate"] = function(c)
    local kind = c:next()
    assert.equal("v", kind)
    is_session(c)
  end,
  ["last wins"] = function(c)
    c:until_ready()
    local _, values = c:ask "select current_user"
    assert.same({ "postgres" }, values)
  end,
  ["setting"] = function(c)
    is_fatal(c, "fatal 42704")
  end,
}

local function react_at_start(c, v)
  local f = START[v.react]
  if f then
    return f(c)
  end
  assert.is_truthy(v.react:find "^fatal", "unknown reaction " .. v.react)
  is_fatal(c, v.react)
end

local BEFORE = {
  start = function(rt, v, step)
    local c = wire.connect(rt.port):send(v.data, step)
    react_at_start(c, v)
    return c
  end,
  ["start-wait"] = function(rt, v)
    local c = wire.connect(rt.port)
    assert.equal("N", (c:send(v.data:sub(1, 8)):take(1)))
    assert.equal("N", (c:send(v.data:sub(9)):take(1)))
    c:send(wire.startup("user", "app", "database", "app"))
    is_session(c)
    return c
  end,
  password = function(rt, v, step)
    local c = wire.connect(rt.port):send(wire.startup("user", "app", "database", "app"))
    assert.equal("R", (c:next()))
    c:send(v.data, step)
    if v.react == "close" and v.id ~= "X-before-login" then
      local list, why = c:until_end() -- a word before it is closed is fine
      assert.is_true(why ~= "timeout", wire.words(list))
    else
      react_at_start(c, v)
    end
    return c
  end,
}
BEFORE["sasl-first"] = BEFORE.password

-- ---- in the session ----

local function error_then_ready(c, codes)
  local list, why = c:until_ready()
  local e = last_error(list)
  assert.is_nil(why, wire.words(list))
  assert.equal("ERROR", e.V, wire.words(list))
  if codes:find "%d" then
    assert.is_truthy(codes:find(e.C, 1, true), codes .. " but got " .. e.C .. ": " .. e.M)
  end
  lives(c)
end

local function accepts(c, v)
  local n = v.id == "sync-flood" and 2000 or 1
  local list, why = c:until_ready(n)
  assert.is_nil(why)
  assert.is_nil(last_error(list).C, wire.words(list):sub(-300))
  if v.id == "deep-pipeline" then
    local _, executed = wire.words(list):gsub("1 2 D C:SELECT 1", "")
    assert.equal(300, executed)
  end
  lives(c)
end

local function react_in_session(c, v)
  if v.react == "close" then
    c:half_close()
    is_silent(c)
  elseif v.react == "ignore" then
    lives(c)
  elseif v.react == "accept" then
    accepts(c, v)
  elseif v.react:find "^error then fatal" then
    is_fatal(c, "fatal 08P01")
  elseif v.react:find "^error" then
    -- the server's own word counts: it looks up the function before it looks at its arguments
    error_then_ready(c, v.react .. " " .. (v.postgres or ""))
  else
    is_fatal(c, v.react)
  end
end

local function in_session(rt, v, step, database)
  local c = assert(wire.login(rt.port, "app", database))
  if v.when == "copy-in" then
    c:send(wire.query "copy hostile from stdin")
    local kind = c:next()
    assert.equal("G", kind)
  end
  c:send(v.data, step)
  react_in_session(c, v)
  return c
end

describe("hostile client", function()
  local daemon, ping = {}, nil

  local AUTH = { password = "md5", ["sasl-first"] = "scram-sha-256" }

  local function of(v)
    return daemon[AUTH[v.when] or "trust"]
  end

  lazy_setup(function()
    setup.sql [[drop table if exists hostile; create table hostile (id int, v text);
      grant all on hostile to app]]
    for _, auth in ipairs { "trust", "md5", "scram-sha-256" } do
      daemon[auth] = setup.start { auth = auth, size = 4 }
    end
    ping = setup.pinger(daemon.trust)
  end)

  lazy_teardown(function()
    ping.drop()
    for _, rt in pairs(daemon) do
      rt.stop()
    end
  end)

  local function check(v, step, database)
    local rt = of(v)
    wire.track()
    local ok, why = pcall(BEFORE[v.when] or in_session, rt, v, step, database)
    wire.drop_tracked()
    assert(ok, why)
    ping.ping()
    assert.is_true(rt.alive())
  end

  for _, v in ipairs(lines "client") do
    local is_login = BEFORE[v.when] ~= nil
    local both = is_login and { "app" } or { "app", "session" }
    for _, database in ipairs(both) do
      local where = is_login and "" or " in pool " .. database
      it(("%s: %s%s"):format(v.id, v.why, where), function()
        check(v, nil, database)
      end)
      -- with pauses between the bytes, those behind an SSLRequest may be an honest next packet
      if #v.data < 400 and not v.id:find "^ssl" and not v.id:find "^gss" then
        it(("%s byte by byte%s"):format(v.id, where), function()
          check(v, 1, database)
        end)
      end
    end
  end

  it("keeps what a client calls itself as PostgreSQL does", function()
    local name = "a';drop table t;--\n\27[31m"
    local c = assert(wire.login(daemon.trust.port, "app", "app", "application_name", name))
    local direct = assert(wire.login(require("support.pg").start().port, "postgres", "app",
      "application_name", name))
    local _, got = c:ask "show application_name"
    local _, expected = direct:ask "show application_name"
    assert.same(expected, got)
    c:drop()
    direct:drop()
    assert.is_nil(daemon.trust.log():find("\27", 1, true))
  end)

  it("leaves nothing behind", function()
    setup.assert_settled(daemon.trust, "app")
    setup.assert_settled(daemon.trust, "session")
    assert(wire.eventually(function()
      return daemon.md5.fds() <= 40 and daemon["scram-sha-256"].fds() <= 40
    end), "descriptors are left")
  end)
end)

-- ---- servers ----

describe("hostile server", function()
  local fake, rt

  before_each(function()
    fake = wire.listen()
    rt = setup.start { port = fake.port, size = 1, workers = 1,
      pool = 'connect_timeout = "2s", abandoned_grace = "100ms", cancel_wait_timeout = "500ms",' }
  end)

  after_each(function()
    assert.is_true(rt.alive())
    rt.stop "KILL"
    fake:drop()
  end)

  -- A session whose server is the one returned.
  local function begin()
    local c = wire.connect(rt.port):send(wire.startup("user", "app", "database", "app"))
    local s = assert(fake:accept_login(), "poolrt opens no connection")
    local list = c:until_ready()
    assert.equal("Z", list[#list][1])
    return c, s
  end

  local function read_until(s, kind)
    for _ = 1, 100 do
      local k, body = s:next()
      assert(k, body)
      if k == kind then
        return body
      end
    end
    error("no " .. kind)
  end

  -- false: it is closed or told to end instead
  local function reads_query(s)
    local kind = s:next()
    return kind == "Q"
  end

  local function is_dropped(s)
    local list, why = s:until_end()
    assert.is_true(why == "closed" or why == "reset", why .. " after " .. wire.words(list))
  end

  local OUTSTANDING = {
    answering = function(c, s)
      c:send(wire.query "select 1")
      read_until(s, "Q")
    end,
    batch = function(c, s)
      c:send(wire.batch "select 1" .. wire.sync)
      read_until(s, "S")
    end,
  }

  -- the server's text once, or one of ours: never an answer that looks complete
  local function is_told(c, v)
    local list, why = c:until_end()
    assert.is_true(why == "closed" or why == "reset", why)
    local words = wire.words(list)
    -- the first of two is a legal answer; what follows it is not
    assert.is_true(v.id == "order-extra-z" or not words:find "Z:", words)
    local _, errors = words:gsub("E:", "")
    assert.is_true(errors <= 1 or v.id == "e-end-only", words)
    if errors == 1 and not v.react:find "forward" then
      local e = last_error(list)
      assert.is_truthy(e.C == "08P01" or e.C == "08006", words)
    end
  end

  for _, v in ipairs(lines "server") do
    if OUTSTANDING[v.when] then
      it(("%s: %s"):format(v.id, v.why), function()
        local c, s = begin()
        OUTSTANDING[v.when](c, s)
        s:send(v.data)
        if v.id:find "^eof" then
          s:drop()
        end
        if v.react == "forward" then
          local list = { { c:next() } }
          assert.equal("E", list[1][1])
          s:send(wire.ready())
          list = c:until_ready()
          assert.equal("Z:I", wire.words(list))
        else
          if s.fd then
            is_dropped(s)
          end
          is_told(c, v)
        end
      end)
    elseif v.when == "idle" then
      it(("%s: %s"):format(v.id, v.why), function()
        local c, s = begin()
        OUTSTANDING.answering(c, s)
        s:send(wire.row "1" .. wire.complete "SELECT 1" .. wire.ready())
        c:until_ready()
        s:send(v.data)
        if v.react == "drop" then
          is_dropped(s)
        end
        c:send(wire.query "select 2")
        if v.react == "drop" or not reads_query(s) then -- "accept" may drop it as well
          s:drop()
          s = assert(fake:accept_login())
          read_until(s, "Q")
        end
        s:send(wire.row "2" .. wire.complete "SELECT 1" .. wire.ready())
        local list, why = c:until_ready()
        assert.is_nil(why)
        assert.is_nil(last_error(list).C)
        assert.same({ "2" }, wire.values(list))
      end)
    elseif v.when == "login" or v.when == "login-sasl" or v.when == "ssl-answer" then
      it(("%s: %s"):format(v.id, v.why), function()
        local c = wire.connect(rt.port):send(wire.startup("user", "app", "database", "app"))
        local deadline, told = wire.now() + 25, nil
        while not told and wire.now() < deadline do
          local s = fake:accept(0.05)
          if s then
            if v.when == "ssl-answer" then
              assert(s:take(8), "no SSLRequest")
              s:send(v.data)
            else
              s:read_startup()
              local data = v.data
              if v.when == "login-sasl" then
                s:send(message("R", wire.u32(10) .. "SCRAM-SHA-256\0\0"))
                local nonce = read_until(s, "p"):match "r=([^,]*)"
                local body = data:sub(6):gsub("%%NONCE%%", function() return nonce end)
                data = message("R", body)
              end
              s:send(data)
            end
            if v.id ~= "login-iterations" then -- libpq sits over these; nobody waits for it
              is_dropped(s)
            end
          end
          told = not c:is_quiet()
        end
        -- login-v too: libpq asks for 3.0 without options, and older ones do not know the answer
        local list = c:until_ready()
        assert.equal("FATAL", last_error(list).V, wire.words(list))
      end)
    end
  end
end)
