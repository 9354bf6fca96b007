-- The tools that measure must themselves be right: pgnull's answers, pgload's checks, the report.
local folder = "spec/bench/"
local report, rows = dofile(folder .. "report.lua"), dofile(folder .. "rows.lua")

local function run(command)
  local f = io.popen("{ " .. command .. "; } 2>&1; echo \"status=$?\"", "r")
  local text = f:read("*a")
  f:close()
  local out, status = text:match("^(.*)status=(%d+)\n$")
  return out, tonumber(status)
end

describe("bench tools", function()
  local dir, pid, port

  local function pgload(options, unix)
    return run(("timeout 20 build/bench/pgload -h %s -p %s -w 0 -t 0.1 %s"):format(
      unix and dir or "127.0.0.1", port, options))
  end

  -- what comes back for raw bytes until pgnull closes: the messages' types, and all bytes
  local function exchange_raw(bytes)
    local f = assert(io.open(dir .. "/in", "wb"))
    f:write(bytes)
    f:close()
    local text, status = run(("timeout 10 bash -c 'exec 3<>/dev/tcp/127.0.0.1/%s; cat %s/in >&3; "
      .. "cat <&3'"):format(port, dir))
    assert.are_not.equal(124, status, "the connection stayed open")
    local types, at = "", 1
    while at + 4 <= #text do
      local a, b, c, d = text:byte(at + 1, at + 4)
      types = types .. text:sub(at, at)
      at = at + 1 + ((a * 256 + b) * 256 + c) * 256 + d
    end
    return types, text
  end

  -- the same after a login, and without its answer
  local function exchange(bytes)
    local types, text = exchange_raw("\0\0\0\26\0\3\0\0user\0bench\0app\0x\0\0" .. bytes)
    return types:match("^RS+KZ(.*)$"), text
  end

  setup(function()
    assert.are.equal(0, select(2, run "make -s -C spec/bench tools"))
    dir = run("mktemp -d"):gsub("%s+$", "")
    pid = run(("build/bench/pgnull -u %s -b 11100 >%s/out 2>&1 & echo $!"):format(dir, dir))
      :match("%d+")
    port = run(("for i in $(seq 100); do grep -o '[0-9]*' %s/out && break; sleep 0.05; done")
      :format(dir)):match("%d+")
    assert.is_truthy(port)
  end)

  teardown(function()
    run("kill " .. pid .. "; rm -rf " .. dir)
  end)

  for _, unix in ipairs { false, true } do
    for _, mode in ipairs { "simple", "extended", "prepared", "connect", "big -q 'SELECT big'" } do
      it(("exchanges right answers, mode %s over %s"):format(mode, unix and "unix" or "TCP"),
        function()
          local out, status = pgload("-c 4 -P " .. pid .. " -m " .. mode, unix)
          assert.are.equal(0, status, out)
          assert.are.equal("0", out:match(" errors=(%d+)"))
          assert.is_true(tonumber(out:match(" txns=(%d+)")) > 0, out)
          assert.is_true(tonumber(out:match(" cpu_ns=(%d+)")) > 0, out)
        end)
    end
  end

  it("holds idle clients until its input ends", function()
    local out, status = pgload("-c 300 -m idle </dev/null")
    assert.are.equal(0, status)
    assert.are.equal("ready clients=300\n", out)
  end)

  it("gives psql rows, statuses and the large result", function()
    local out, status = run(("psql -X -At -h %s -p %s -U bench -c \"BEGIN; SELECT ';'; COMMIT\" "
      .. "-c 'SELECT big' bench"):format(dir, port))
    assert.are.equal(0, status, out)
    assert.are.equal(100, select(2, out:gsub("x+\n", "")))
    assert.is_truthy(out:match("^BEGIN\n1\nCOMMIT\n"))
  end)

  local function query(sql)
    return "Q\0\0\0" .. string.char(#sql + 5) .. sql .. "\0"
  end
  local BYE = "X\0\0\0\4"

  it("reports a parameter when it changes, and only then", function()
    assert.are.equal("SCZ", exchange(query "SET TimeZone TO 'Asia/Tokyo'" .. BYE))
    assert.are.equal("CZ", exchange(query "SET TimeZone = 'Etc/UTC'" .. BYE))
    assert.are.equal("TSDCZSCZ", exchange(
      query "SELECT pg_catalog.set_config('DateStyle', 'German', false)"
      .. query "DISCARD ALL" .. BYE))
  end)

  it("ignores what follows a failed extended message up to Sync", function()
    local types, text = exchange("B\0\0\0\13\0no\0\0\0\0\0\0E\0\0\0\9\0\0\0\0\0S\0\0\0\4" .. BYE)
    assert.are.equal("EZ", types)
    assert.is_truthy(text:find("C26000", 1, true))
  end)

  it("keeps the transaction status", function()
    local _, text = exchange(query "BEGIN" .. BYE)
    assert.are.equal("T", text:sub(-1))
    _, text = exchange(query "BEGIN" .. query "END" .. BYE)
    assert.are.equal("I", text:sub(-1))
  end)

  it("closes on messages that are not whole or too long, and lives on", function()
    for _, bytes in ipairs { "Q\0\0\0\3", "Q\255\255\255\255", "Q\0\0\0\5a", "?\0\0\0\4",
      "P\0\0\0\6ab", "B\0\0\0\5x", "D\0\0\0\4", "Q\0\0\0\4" } do
      assert.are.equal("", (exchange(bytes)))
    end
    for _, bytes in ipairs { "\0\0\0\7", "\0\0\0\7\0\3\0\0", "\255\255\255\255\0\3\0\0",
      "\0\0\0\8\0\2\0\0", "\0\0\0\12\0\3\0\0user" } do
      assert.are.equal("", (exchange_raw(bytes)))
    end
    assert.are.equal(0, select(2, pgload "-c 1"))
  end)

  it("says why it cannot run", function()
    local out, status = run("build/bench/pgload -p 1 -c 1")
    assert.are.equal(1, status)
    assert.is_truthy(out:find("Connection refused", 1, true))
    assert.are.equal(2, select(2, pgload "-m nonsense"))
    assert.are.equal(2, select(2, pgload "-c 0"))
  end)

  it("takes an error or an answer without a row for wrong", function()
    local out = pgload "-c 1 -q 'ROLLBACK'"
    assert.is_true(tonumber(out:match(" errors=(%d+)")) > 0, out)
  end)
end)

describe("bench rows", function()
  it("have names of their own, and the goals where they are set", function()
    local seen = {}
    for _, row in ipairs(rows.all()) do
      assert.is_nil(seen[row.name])
      seen[row.name] = row
    end
    assert.are.equal(0.85, seen["pg-tcp-extended-64"].goals.cpu_ratio)
    assert.are.equal(0.72, seen["pgnull-unix-simple-256"].goals.cpu_ratio)
    assert.are.equal(0.80, seen["pg-tcp-prepared-64"].goals.cpu_ratio)
    assert.is_nil(seen["pgnull-unix-simple-8"].goals.cpu_ratio)
  end)

  it("are chosen by name with * for anything", function()
    local function count(only) return #rows.select(rows.all(), only) end
    assert.are.equal(1, count "pgnull-tcp-simple-64")
    assert.are.equal(4, count "*-big")
    assert.are.equal(5, count "*-big, pg-unix-simple-8")
    assert.are.equal(#rows.all(), count "")
    assert.are.same({ nil, "pgnull" }, { rows.select(rows.all(), "*-big,pgnull") })
  end)
end)

describe("bench report", function()
  it("takes medians, and ratios within a round", function()
    assert.are.same({ median = 2.5, min = 1, max = 4 }, report.summary { 4, 1, 3, 2 })
    local c = report.compare { { poolrt = 1, pgbouncer = 2 }, { poolrt = 9, pgbouncer = 3 },
      { poolrt = 4, pgbouncer = 4 } }
    assert.are.same({ median = 1, min = 0.5, max = 3 }, c.ratio)
    assert.are.equal(4, c.poolrt.median)
  end)

  it("holds values against goals", function()
    assert.are.equal("met", report.verdict(0.85, 0.85))
    assert.are.equal("missed", report.verdict(0.851, 0.85))
    assert.is_nil(report.verdict(0.5, nil))
  end)

  it("shows failed rows as failed", function()
    local text = report.markdown { machine = { "m" }, rows = {
      { name = "a-row", kind = "big", failure = "it\nbroke" } } }
    assert.is_truthy(text:find("- FAILED a-row: it broke\n", 1, true))
    assert.is_nil(text:find("|", 1, true))
  end)

  it("writes JSON that names and numbers survive", function()
    assert.are.equal('{\n "a\\"\\n": [\n  1,\n  0.5,\n  null\n ],\n "b": true\n}',
      report.json { ['a"\n'] = { 1, 0.5, 0 / 0 }, b = true })
  end)
end)
