-- welcome_spec.lua - the first clients of a user and database: one connection is opened to learn
-- what its servers report, however many of them come at once, and each of them gets an answer.
local json = require "poolrt.json"
local runtime = require "proxy.setup"
local sys = require "support.os"
local wire = require "proxy.wire"

local FATAL_57P03 = wire.message("E",
  "SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0")

describe("the first clients of a user and database", function()
  local fake, rt, held

  before_each(function()
    wire.track()
    fake, held = wire.listen(), {}
  end)

  after_each(function()
    wire.drop_tracked()
    for _, s in ipairs(held) do
      s:drop()
    end
    fake:drop()
    rt:stop()
  end)

  local function start(o)
    o.port, o.only, o.size, o.admin = fake.port, "app", 20, "token = 't'"
    rt = runtime.start(o)
  end

  --- One more that is let in and waits for what a server reports.
  local function come()
    local c = wire.connect(rt.port)
    c:send(wire.startup("user", "acme", "database", "app"))
    assert.equal("R", (c:next()))
    return c
  end

  local function crowd(n)
    local list = {}
    for i = 1, n do
      list[i] = come()
    end
    return list
  end

  --- The connections that are opened, kept without an answer, until no more come.
  local function attempts(seconds)
    local s = fake:accept(seconds)
    while s do
      assert.truthy(s:read_startup())
      held[#held + 1] = s
      s = fake:accept(0.3)
    end
    return #held
  end

  local function answer(bytes)
    for _, s in ipairs(held) do
      s:send(bytes)
    end
  end

  local function is_in(c)
    local list, why = c:until_ready()
    assert.equal("Z:I", why or wire.words(list))
  end

  local function rest(method, path)
    local body = json.decode(sys.must(("curl -sS -m 10 -X %s -H 'Authorization: Bearer t' %s")
      :format(method, sys.quote(rt.admin_url .. "/api/v1" .. path))))
    return body.data or error(json.encode(body.error))
  end

  it("open one connection per worker, and all are told what it reports", function()
    start { workers = 2 }
    local clients = crowd(50)
    local opened = attempts(5)
    assert(opened >= 1 and opened <= 2, opened .. " connections")
    assert.equal(50, #rest("GET", "/sessions?limit=100&status=waiting"))
    answer(wire.WELCOME)
    for _, c in ipairs(clients) do
      is_in(c)
    end
    assert.equal(opened, attempts(0.3))
  end)

  it("may send their first query meanwhile", function()
    start { workers = 1 }
    local clients = crowd(20)
    for _, c in ipairs(clients) do
      c:send(wire.terminate)
    end
    assert.equal(1, attempts(5))
    answer(wire.WELCOME)
    for _, c in ipairs(clients) do
      local list, why = c:until_end()
      assert.equal("Z:I closed", wire.words(list) .. " " .. why)
    end
  end)

  --- What `answer` does to the connections under way is the end of all of them, in one sentence.
  local function assert_all_refused(sqlstate, sentence, fail)
    start { workers = 1, pool = "server_login_retry = '10s'," }
    local clients = crowd(50)
    assert.equal(1, attempts(5))
    local told = wire.now()
    fail()
    local texts = {}
    for _, c in ipairs(clients) do
      local list, why = c:until_end(5)
      assert.equal("E:FATAL:" .. sqlstate .. " closed", wire.words(list) .. " " .. why)
      texts[list[1][2]] = true
    end
    assert(wire.now() - told < 3, "late")
    local text = next(texts)
    assert.truthy(text:find(sentence, 1, true), text)
    assert.is_nil(next(texts, text))
    assert.equal(1, attempts(0.3))
  end

  it("all get the error of a server that lets nobody in, which is tried once", function()
    assert_all_refused("57P03", "the database system is starting up", function()
      answer(FATAL_57P03)
    end)
  end)

  it("all get the error of a target that is away, which is tried once", function()
    assert_all_refused("08001", "closed the connection", function()
      held[1]:drop()
    end)
  end)

  it("do not depend on the one that asks: it is killed", function()
    start { workers = 1 }
    local asker, others = come(), crowd(10)
    assert.equal(1, attempts(5))
    local first
    for _, s in ipairs(rest("GET", "/sessions?limit=100")) do
      local number = tonumber(s.id:match "%d+")
      first = first and number > first.number and first or { number = number, id = s.id }
    end
    rest("DELETE", "/sessions/" .. first.id)
    assert.equal("E:FATAL:57P01", wire.words(asker:until_end()))
    answer(wire.WELCOME)
    for _, c in ipairs(others) do
      is_in(c)
    end
  end)

  it("do not depend on the ones that ask: they leave, one after the other", function()
    start { workers = 1 }
    local clients = crowd(10)
    assert.equal(1, attempts(5))
    for i = 1, 9 do
      clients[i]:reset()
      wire.eventually(function()
        return #rest("GET", "/sessions?limit=100") == 10 - i
      end, 5)
    end
    answer(wire.WELCOME)
    is_in(clients[10])
    assert.equal(1, attempts(0.3))
  end)

  it("each have their own time, also when the one that asks has none left", function()
    start { workers = 1, login_timeout = "2s" }
    local early = come()
    assert.falsy(early:take(1, 1)) -- a second of its time goes by
    local late = crowd(5)
    assert.equal(1, attempts(5))
    local list, why = early:until_end()
    assert.equal("E:FATAL:53300 closed", wire.words(list) .. " " .. why)
    assert.truthy(list[1][2]:find("auth.login_timeout", 1, true))
    answer(wire.WELCOME)
    for _, c in ipairs(late) do
      is_in(c)
    end
  end)

  it("wait no longer than a login may take, when nothing answers", function()
    start { workers = 1, login_timeout = "1s" }
    local clients = crowd(10)
    for _, c in ipairs(clients) do
      local list, why = c:until_end(3)
      assert.equal("E:FATAL:53300 closed", wire.words(list) .. " " .. why)
    end
    assert.equal(1, attempts(0.3))
    assert.is_true(rt.alive())
  end)

  it("leave nothing behind when poolrt ends meanwhile", function()
    start { workers = 2 }
    local clients = crowd(20)
    sys.kill(rt.pid, "TERM")
    for _, c in ipairs(clients) do
      assert.equal("E:FATAL:57P01", wire.words(c:until_end()))
    end
  end)
end)
