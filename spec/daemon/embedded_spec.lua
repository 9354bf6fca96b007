-- embedded_spec.lua - postgres.embedded{}: a PostgreSQL that lives and dies with the runtime.
local P = require "support.poolrt"
local sys = require "support.os"

local CONFIG = [[
local users = { acme = "demo", globex = "demo" }
local pg = postgres.embedded { dir = env("PGDIR", "pg"), database = "app", users = users }
return {
  listen = { "127.0.0.1:" .. env "PORT" },
  auth = { type = "scram-sha-256", users = users },
  pools = { app = { target = pg, max_size = 5, mode = "transaction" } },
}
]]

local function ask(rt, sql, user)
  return rt.psql(sql, { user = user or "acme", password = "demo" })
end

-- the postmaster that the log named last
local function postmaster(rt)
  local last
  for pid in rt.log():gmatch "event=postgres_started pid=(%d+)" do
    last = tonumber(pid)
  end
  return last
end

describe("the embedded PostgreSQL #pg #slow", function()
  local rt

  setup(function()
    rt = P.start { config = CONFIG }
  end)

  teardown(function()
    rt.stop()
  end)

  local function again(o)
    o = o or {}
    o.config, o.dir = o.config or CONFIG, rt.dir
    rt = P.start(o)
  end

  it("has the database and the users, each with a schema of its own", function()
    assert.equal("acme", ask(rt, "select current_user"))
    assert.equal("globex", ask(rt, "select current_user", "globex"))
    local out, status = ask(rt, "create table notes as select 'kept' as what")
    assert.equal(0, status, out)
    assert.equal("acme", ask(rt, "select schemaname from pg_tables where tablename = 'notes'"))
    assert.is_true(select(2, ask(rt, "select * from acme.notes", "globex")) ~= 0)
  end)

  it("tells a person what to type", function()
    local out = rt.output()
    assert.truthy(out:find(("psql \"host=127.0.0.1 port=%d dbname=app user=acme password=demo\"")
      :format(rt.port), 1, true), out)
    assert.truthy(out:find("user=globex", 1, true))
    assert.truthy(out:find(rt.config_path, 1, true))
  end)

  it("listens on its socket only, in a directory closed to others, and is not root", function()
    local pid = postmaster(rt)
    local status = sys.read(("/proc/%d/status"):format(pid))
    assert.is_true(tonumber(status:match "Uid:%s+(%d+)") ~= 0)
    local sockets = sys.sh(("ls -l /proc/%d/fd"):format(pid))
    local tcp = sys.read "/proc/net/tcp"
    for inode in sockets:gmatch "socket:%[(%d+)%]" do
      assert.falsy(tcp:find(" " .. inode .. " ", 1, true), "it listens on TCP")
    end
    assert.equal("700", sys.must(("stat -c %%a %s/pg.run"):format(rt.dir)))
    assert.equal("700", sys.must(("stat -c %%a %s/pg"):format(rt.dir)))
  end)

  it("is not stopped by the Ctrl-C that is meant for the runtime", function()
    local group = tonumber(sys.read(("/proc/%d/stat"):format(postmaster(rt)))
      :match "%) %a %d+ (%d+)")
    assert.equal(postmaster(rt), group)
  end)

  it("refuses a second runtime on the same directory", function()
    local path = rt.config_path
    local out, status = P.run({ path }, { PORT = sys.free_port() })
    assert.equal(1, status, out)
    assert.truthy(out:find(("pg is in use by another poolrt, process %d"):format(rt.pid), 1, true),
      out)
    assert.equal("1", ask(rt, "select 1"))
  end)

  it("runs beside another one on other ports", function()
    local other = P.launch { config = rt.config_path, dir = sys.temp_dir(),
      env = { PGDIR = rt.dir .. "/second" } }
    other.wait_log("event=started ", 60)
    assert.equal("1", ask(other, "select 1"))
    assert.equal("1", ask(rt, "select 1"))
    assert.is_true(postmaster(other) ~= postmaster(rt))
    local pid = postmaster(other)
    assert.equal(0, other.stop())
    assert.is_false(sys.exists(pid))
  end)

  it("is started again when it dies", function()
    local pid = postmaster(rt)
    assert.equal("1", ask(rt, "select 1"))
    sys.kill(pid, "KILL")
    rt.wait_log "event=postgres_died [^\n]*was killed by signal 9"
    assert(sys.wait_for(function()
      return ask(rt, "select what from notes") == "kept"
    end, 15), rt.log())
    assert.is_true(postmaster(rt) ~= pid)
  end)

  it("stops with the runtime, and its data is there at the next start", function()
    local pid = postmaster(rt)
    local begin = sys.now()
    assert.equal(0, rt.stop())
    assert.is_true(sys.now() - begin < 5)
    assert.is_false(sys.exists(pid))
    local log = sys.read(rt.dir .. "/pg/server.log")
    assert.truthy(log:find("database system is shut down", 1, true))
    again()
    assert.equal("kept", ask(rt, "select what from notes"))
  end)

  it("dies with a runtime that was killed, and the next start is not in its way", function()
    assert.equal("1", ask(rt, "select 1"))
    local pid = postmaster(rt)
    rt.stop "KILL"
    again()
    assert.equal("kept", ask(rt, "select what from notes"))
    assert.is_false(sys.exists(pid))
  end)

  it("starts where a process number of a dead server belongs to somebody else now", function()
    assert.equal(0, rt.stop())
    -- as after a reboot: a mark that names a living process, of the same user
    local id = sys.is_root() and "setpriv --reuid=" .. sys.must("stat -c %u " .. rt.dir .. "/pg")
      or ""
    local stranger = sys.spawn(("exec %s setpriv --pdeathsig KILL sleep 60"):format(id))
    local mark = ("%d\n%s/pg\n1\n5432\n%s/pg.run\n\n  1 1\nready\n"):format(stranger, rt.dir,
      rt.dir)
    sys.write(rt.dir .. "/pg/postmaster.pid", mark)
    sys.write(rt.dir .. "/pg.run/.s.PGSQL.5432.lock", mark)
    again()
    sys.kill(stranger, "KILL")
    assert.equal("kept", ask(rt, "select what from notes"))
  end)

  it("adds the users that are new in the configuration at the next start", function()
    assert.equal(0, rt.stop())
    again { config = (CONFIG:gsub('globex = "demo"', 'globex = "demo", initech = "demo"')) }
    assert.equal("initech", ask(rt, "select current_schema()", "initech"))
    assert.equal("kept", ask(rt, "select what from notes"))
  end)

  it("says what PostgreSQL said when it does not start", function()
    assert.equal(0, rt.stop())
    local file = rt.dir .. "/pg/postgresql.auto.conf"
    local kept = sys.read(file)
    sys.write(file, "shared_buffers = 'much'\n")
    local out, status = P.run({ rt.config_path }, { PORT = rt.port })
    sys.write(file, kept)
    assert.equal(1, status, out)
    assert.truthy(out:find("the embedded PostgreSQL exited with status 1", 1, true), out)
    assert.truthy(out:find("shared_buffers", 1, true), out)
    again()
  end)

  it("is finished by a next start when the first one was interrupted", function()
    local dir = sys.temp_dir()
    sys.must(("mkdir -p %s/pg.new/base && touch %s/pg.new/base/1"):format(dir, dir))
    local other = P.start { config = CONFIG, dir = dir }
    assert.equal("1", ask(other, "select 1"))
    assert.equal(0, other.stop())
    assert.is_nil(sys.read(dir .. "/pg.new/base/1"))
  end)

  it("never touches a directory that is not PostgreSQL's", function()
    local dir = sys.temp_dir()
    sys.must(("cd %s && mkdir pg && echo dear >pg/diary"):format(dir))
    if sys.is_root() then
      sys.must(("chown -R nobody %s/pg"):format(dir))
    end
    local path = P.config_file(CONFIG, { DIR = dir })
    local out, status = P.run({ path }, { PORT = sys.free_port() })
    assert.equal(1, status, out)
    assert.truthy(out:find("holds no PostgreSQL data", 1, true), out)
    assert.equal("dear\n", sys.read(dir .. "/pg/diary"))
  end)

  it("names the package when PostgreSQL is not installed", function()
    local path = P.config_file(CONFIG)
    local out, status = P.run({ path }, { PORT = sys.free_port(), POOLRT_FAULT = "no_postgres" })
    assert.equal(1, status, out)
    assert.truthy(out:find("apt-get install postgresql", 1, true), out)
  end)

  it("works where its user may not pass a directory above", function()
    local dir = sys.temp_dir()
    sys.must("chmod 700 " .. dir)
    local other = P.start { config = CONFIG, dir = dir }
    assert.equal("1", ask(other, "select 1"))
    local pid = postmaster(other)
    sys.kill(pid, "KILL")
    assert(sys.wait_for(function()
      return ask(other, "select 1") == "1" and postmaster(other) ~= pid
    end, 15), other.log())
    assert.equal(0, other.stop())
  end)
end)
