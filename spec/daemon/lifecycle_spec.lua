-- lifecycle_spec.lua - start, signals and end of the runtime, with real clients. #pg
local P = require "support.poolrt"
local PG = require "support.pg"
local sys = require "support.os"

local CONFIG = [[
return {
  workers = 2,
  shutdown_timeout = "3s",
  listen = { "127.0.0.1:@PORT@", "unix:@DIR@" },
  auth = { type = "scram-sha-256", users = { app = "secret" } },
  pools = {
    app = {
      target = "host=@PGHOST@ port=@PGPORT@ dbname=app",
      mode = "transaction", max_size = 5,
    },
  },
}
]]

-- the superuser's own sessions do not count
local OURS = "usename = 'app'"

-- psql beside us, with one or two commands
local function background(rt, sql, second)
  local conninfo = ("host=127.0.0.1 port=%d dbname=app user=app password=secret"):format(rt.port)
  local out = rt.dir .. "/background"
  local pid = sys.spawn(("exec psql -XqAt %s -c %s %s >%s 2>&1 </dev/null"):format(
    sys.quote(conninfo), sys.quote(sql), second and "-c " .. sys.quote(second) or "", out))
  return {
    kill = function()
      sys.kill(pid, "KILL")
    end,
    wait = function(seconds)
      return sys.wait_for(function()
        return sys.reap(pid)
      end, seconds), sys.read(out)
    end,
  }
end

local function wait_running(sql)
  assert(sys.wait_for(function()
    return PG.backends(("state = 'active' AND query = '%s'"):format(sql:gsub("'", "''"))) == 1
  end, 10), "the query never began: " .. sql)
end

describe("the runtime #pg", function()
  local rt

  before_each(function()
    rt = P.start { config = CONFIG }
  end)

  after_each(function()
    rt.stop "KILL"
  end)

  it("serves, says where it listens, and ends with status 0", function()
    assert.truthy(rt.log():find(("listen=127.0.0.1:%d,unix:"):format(rt.port), 1, true))
    assert.equal("3", rt.psql "select 1 + 2")
    assert.equal("", rt.output())
    local begin = sys.now()
    assert.equal(0, rt.stop "TERM")
    assert.is_true(sys.now() - begin < 2)
    assert.truthy(rt.log():find("event=stopped", 1, true))
    assert.equal(0, PG.backends(OURS))
    assert.falsy(sys.read(("%s/.s.PGSQL.%d"):format(rt.dir, rt.port)), "the socket file is left")
  end)

  it("lets a transaction end after TERM, and takes nobody new", function()
    local sql = "select pg_sleep(1.5), 'finished'"
    local client = background(rt, sql)
    wait_running(sql)
    rt.kill "TERM"
    rt.wait_log "event=stopping"
    local text, status = rt.psql "select 1"
    assert.is_true(status ~= 0, text)
    status, text = client.wait(5)
    assert.equal(0, status, text)
    assert.truthy(text:find("|finished\n", 1, true), text) -- a farewell may stand beside it
    assert.equal(0, rt.wait_exit(5))
  end)

  it("ends after shutdown_timeout, whatever runs", function()
    local sql = "select pg_sleep(61)"
    local client = background(rt, sql)
    wait_running(sql)
    local begin = sys.now()
    rt.kill "INT"
    assert.equal(0, rt.wait_exit(10))
    local took = sys.now() - begin
    assert.is_true(took >= 2.9 and took < 5, "took " .. took)
    assert.is_true(client.wait(5) ~= 0)
    assert.truthy(sys.wait_for(function()
      return PG.backends "query = 'select pg_sleep(61)'" == 0
    end, 5), "the query runs on")
  end)

  it("ends at once at the second signal", function()
    local sql = "select pg_sleep(62)"
    local client = background(rt, sql)
    wait_running(sql)
    rt.kill "TERM"
    rt.wait_log "event=stopping"
    local begin = sys.now()
    rt.kill "INT"
    assert.truthy(rt.wait_exit(10))
    assert.is_true(sys.now() - begin < 2)
    assert.is_true(client.wait(5) ~= 0)
  end)

  it("killed outright, leaves no server connection after 5 s", function()
    local client = background(rt, "begin", [[\! sleep 30]])
    assert(sys.wait_for(function()
      return PG.backends(OURS .. " AND state = 'idle in transaction'") == 1
    end, 10))
    assert.equal("1", rt.psql "select 1")
    assert.equal(2, PG.backends(OURS))
    rt.stop "KILL"
    assert.truthy(sys.wait_for(function()
      return PG.backends(OURS) == 0
    end, 5))
    client.kill()
  end)

  it("survives what is not meant for it", function()
    for _, signal in ipairs { "HUP", "CONT" } do
      rt.kill(signal)
    end
    sys.sh("head -c 300 /dev/urandom | timeout 2 bash -c 'cat >/dev/tcp/127.0.0.1/" .. rt.port
      .. "'")
    assert.equal("1", rt.psql "select 1")
  end)

  it("costs next to nothing while nobody asks for anything", function()
    assert.equal("1", rt.psql "select 1")
    local begin, cpu = sys.now(), rt.cpu()
    sys.wait_for(function()
      return sys.now() - begin > 3
    end, 4)
    assert.is_true(rt.cpu() - cpu <= 0.1, "used " .. rt.cpu() - cpu)
  end)
end)

describe("readiness", function()
  local socket = require "support.datagram"

  for _, kind in ipairs { "file", "abstract" } do
    it("is told to the service manager over a socket of kind " .. kind, function()
      local name = kind == "file" and sys.temp_dir() .. "/notify"
        or "@poolrt-spec-" .. sys.own_pid() .. "-" .. sys.free_port()
      local manager = socket.bind(name)
      local rt = P.start {
        config = [[
          return { listen = { "127.0.0.1:@PORT@" },
            auth = { type = "trust", users = { app = "s" } },
            pools = { app = { target = "host=127.0.0.1 port=1 dbname=app" } } }
        ]],
        env = { NOTIFY_SOCKET = name },
      }
      assert.equal("READY=1", manager.receive(5))
      rt.kill "HUP"
      assert.truthy((manager.receive(5) or ""):match "^RELOADING=1\nMONOTONIC_USEC=%d+$")
      assert.equal("READY=1", manager.receive(5))
      rt.kill "TERM"
      assert.equal("STOPPING=1", manager.receive(5))
      assert.equal(0, rt.wait_exit(5))
      manager.close()
    end)
  end
end)

describe("the limit of open files", function()
  it("is raised, and named when it is too low for the configuration", function()
    local config = [[
      return { max_clients = 5000, listen = { "127.0.0.1:@PORT@" },
        auth = { type = "trust", users = { app = "s" } },
        pools = { app = { target = "host=127.0.0.1 port=1 dbname=app", max_size = 50 } } }
    ]]
    local path, values = P.config_file(config)
    local log = values.DIR .. "/log"
    local pid = sys.spawn(("ulimit -Sn 300; ulimit -Hn 1000; exec setpriv --pdeathsig KILL "
      .. "%s %s 2>%s"):format(P.bin, path, log))
    assert(sys.wait_for(function()
      return (sys.read(log) or ""):find "event=started"
    end, 10))
    local limits = sys.read(("/proc/%d/limits"):format(pid))
    sys.kill(pid, "TERM")
    assert.equal(0, sys.wait_for(function()
      return sys.reap(pid)
    end, 10))
    assert.truthy(limits:find "Max open files%s+1000%s+1000")
    assert.truthy(sys.read(log):find("event=few_descriptors limit=1000 wanted=5150 "
      .. "max_clients=5000", 1, true))
  end)
end)
