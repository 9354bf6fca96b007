-- drivers_spec.lua - real drivers live in transaction mode without knowing: what an application
-- sees through three servers that a dozen connections share is what it sees past poolrt, line by
-- line. Logins by SCRAM and TLS on either side. What the programs do stands in spec/drivers.
local rig = require "proxy.rig"
local sys = require "support.os"

local BUILT = "build/drivers/" -- by make drivers
local JDBC = ("java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC "
  .. "-cp %s:/usr/share/java/postgresql.jar Jdbc"):format(BUILT)
-- psycopg and pgjdbc: after how many uses they prepare; then whether batches are rewritten
local DRIVERS = {
  { "psycopg, prepared at once", "/usr/bin/python3 spec/drivers/psycopg3.py", "0" },
  { "psycopg, prepared at the sixth use", "/usr/bin/python3 spec/drivers/psycopg3.py", "5" },
  { "node-postgres", "node " .. BUILT .. "node_pg.mjs", "" },
  { "postgres.js", "node " .. BUILT .. "postgres_js.mjs", "" },
  { "pgjdbc, prepared at once", JDBC, "1 true" },
  { "pgjdbc, prepared at the fifth use", JDBC, "5 false" },
}
local PASSWORD = "pässword 'of' it"
-- in session mode each client has a server of its own
local POOLS = { transaction = "max_size = 3", session = "max_size = 24" }
local DIRECT, POOLED = "drivers", "app" -- databases, so that both runs go on at the same time

--- Nothing of the run before is left; DROP OWNED takes the rights on all databases as well.
local function clear()
  for _, db in ipairs { DIRECT, POOLED } do
    rig.sql("drop owned by driver cascade", db)
  end
  for _, db in ipairs { DIRECT, POOLED } do
    rig.sql(("grant create on database %s to driver"):format(db))
    rig.sql("grant all on schema public to driver", db)
  end
end

local function start(driver, port, database, cert)
  local words = { driver[2] }
  for _, word in ipairs { "127.0.0.1", port, "driver", PASSWORD, database, cert } do
    words[#words + 1] = sys.quote(word)
  end
  return rig.job(table.concat(words, " ") .. " " .. driver[3])
end

local function lines_of(job)
  local out, status = job:wait(240)
  assert(status == 0, ("status %s: %s"):format(tostring(status), out:sub(-3000)))
  local lines = {}
  for line in out:gmatch "[^\n]+" do
    lines[#lines + 1] = line
  end
  return lines
end

--- What each client was told, in order: lines begin with the client's number.
local function by_client(lines)
  local clients = {}
  for _, line in ipairs(lines) do
    local n = tonumber(line:match "^%d+") or -1
    clients[n] = clients[n] or {}
    table.insert(clients[n], line)
  end
  return clients
end

--- The first line of each client that differs, with the one before.
local function differences(wanted, got)
  local report = {}
  local clients = by_client(got)
  for n, lines in pairs(by_client(wanted)) do
    local seen = clients[n] or {}
    for i = 1, math.max(#lines, #seen) do
      if lines[i] ~= seen[i] then
        report[#report + 1] = ("after %s\n  direct: %s\n  poolrt: %s"):format(lines[i - 1] or "-",
          lines[i] or "-", seen[i] or "-")
        break
      end
    end
  end
  return table.concat(report, "\n")
end

describe("drivers", function()
  local px, cert

  setup(function()
    local key
    cert, key = sys.certificate()
    rig.server()
    rig.server_tls(cert, key)
    rig.strict_role("driver", PASSWORD)
    rig.sql("create database " .. DIRECT)
    local pools = {}
    for mode, settings in pairs(POOLS) do
      pools[mode] = ("mode = '%s', %s"):format(mode, settings)
    end
    px = rig.start { pools = pools, sslmode = "require",
      auth = ("{ type = 'scram-sha-256', users = { driver = %q } }"):format(PASSWORD),
      top = ("tls = { client = { mode = 'require', cert = %q, key = %q } },"):format(cert,
        key) }
  end)

  teardown(function()
    px:stop()
  end)

  local function sees_no_difference(driver, mode)
    clear()
    local direct = start(driver, rig.server().port, DIRECT, cert)
    local pooled = start(driver, px.port, mode, cert)
    local got, wanted = lines_of(pooled), lines_of(direct)
    assert(#wanted > 2000, "it has little to tell: " .. #wanted)
    assert.equal("", differences(wanted, got))
    assert.equal(#wanted, #got)
    px:assert_settled(mode)
  end

  for _, driver in ipairs(DRIVERS) do
    it(driver[1] .. " sees no difference over three servers", function()
      sees_no_difference(driver, "transaction")
      local of = ("usename = 'driver' and datname = '%s'"):format(POOLED)
      assert(rig.is_long or rig.backends(of) <= 3)
    end)
    if rig.is_long then
      it(driver[1] .. " sees no difference in session mode", function()
        sees_no_difference(driver, "session")
      end)
    end
  end
end)
