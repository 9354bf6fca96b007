-- bench.lua - the A/B harness behind `make bench`: poolrt against PgBouncer in alternating rounds.
-- Environment: ROUNDS, SECS, ONLY, PGBOUNCER, POOLRT, PGBIN; see README.md.
-- Ends with 0 when every row ran (met or missed), 1 when one did not, 2 on wrong use, 130 on ^C.
local here = arg[0]:match("^(.*)/[^/]*$") or "."
package.path = here .. "/?.lua;" .. package.path
local sys = require "sys"
local rows = require "rows"
local targets = require "targets"
local report = require "report"

local NAMES = { "poolrt", "pgbouncer" }
local WARM_UP_S = 0.3
local BIG_SQL = "SELECT t FROM big"

local function say(...)
  io.stderr:write(...)
  io.stderr:flush()
end

local function wrong_use(text)
  say("bench: ", text, "\n")
  os.exit(2)
end

local function setting(name, default, min, max)
  local text = os.getenv(name)
  if not text or text == "" then return default end
  local v = tonumber(text)
  if not v or v < min or v > max then
    wrong_use(("%s wants a number from %g to %g, not %q"):format(name, min, max, text))
  end
  return v
end

-- ---- one measurement ----
local function parse_result(line)
  local r = {}
  for k, v in line:gmatch("([%w_]+)=(%S+)") do r[k] = tonumber(v) or v end
  return r
end

-- One run of pgload; its numbers, or an error.
local function load(x, row, target, o)
  local argv = targets.pgload(x, target, row.transport, { "-m",
    targets.mode_of(x, target, row.mode), "-c", row.clients, "-t",
    o.secs, "-w", o.warm or WARM_UP_S, "-P", target.proc.pid })
  if o.count_calls then argv[#argv + 1] = "-s" end
  if row.mode == "big" then
    argv[#argv + 1] = "-q"
    argv[#argv + 1] = BIG_SQL
  end
  local log = x.dir .. "/pgload.log"
  local p = sys.spawn(argv, { pipe = true, log = log })
  local line = sys.read_line(p, o.secs + 60)
  if not sys.join(p, 5) then sys.stop(p) end
  if not line or not p.ok then
    local told = not sys.join(target.proc, 0.3) and "" or
      (" (%s ended: %s: %s)"):format(target.name, target.proc.status,
        sys.tail(target.proc.log, 500))
    error(("%s: pgload: %s %s%s"):format(target.name, p.status, sys.tail(log, 300), told), 0)
  end
  local r = parse_result(line)
  if r.errors > 0 then
    error(("%s: %d wrong answers: %s"):format(target.name, r.errors, sys.tail(log, 300)), 0)
  end
  return r
end

-- `measure(name)` for both poolers in turn, the one that begins changing with each round.
local function alternate(rounds, measure)
  local list = {}
  for i = 1, rounds do
    local r = {}
    for j = 1, 2 do
      local name = NAMES[(i + j) % 2 + 1]
      r[name] = measure(name)
    end
    list[i] = r
    say(".")
  end
  return list
end

-- the summaries of f(numbers of a run)
local function compare(rounds, f)
  local values = {}
  for i, r in ipairs(rounds) do
    values[i] = { poolrt = f(r.poolrt), pgbouncer = f(r.pgbouncer) }
  end
  return report.compare(values)
end

-- ---- system calls ----
-- strace slows its target, and sees the logins: two runs of different length, whose difference is
-- transactions only.
local function strace_run(x, row, target, secs)
  local file = x.dir .. "/strace.out"
  local p = sys.spawn({ "strace", "-c", "-f", "-o", file, "-p", tostring(target.proc.pid) },
    { log = x.dir .. "/strace.log", stop = sys.SIGINT })
  local is_attached = sys.until_true(5, function()
    local status = sys.read_file(("/proc/%d/status"):format(target.proc.pid)) or ""
    return not sys.is_alive(p) or status:match("TracerPid:%s*[1-9]")
  end)
  local r
  if is_attached and sys.is_alive(p) then
    r = load(x, row, target, { secs = secs, warm = 0 })
  end
  sys.stop(p)
  local calls = (sys.read_file(file) or ""):match("([^\n]*)%f[%w]total%s*$")
  calls = calls and tonumber(calls:match("^%s*%S+%s+%S+%s+%S+%s+(%d+)"))
  return r and calls and { calls = calls, txns = r.txns }
end

local function count_by_strace(x, row, target, secs)
  local short = strace_run(x, row, target, secs)
  local long = short and strace_run(x, row, target, 3 * secs)
  if not long or long.txns <= short.txns then return nil end
  return (long.calls - short.calls) / (long.txns - short.txns)
end

-- System calls per transaction, in runs of their own since counting costs time. x.counting is the
-- method that works here: "perf" (the kernel's tracepoint, read by pgload), "strace" or nil.
local function count_calls(x, row, target, secs)
  if x.counting == "perf" then
    local r = load(x, row, target, { secs = secs, count_calls = true })
    if r.syscalls then return r.syscalls / math.max(r.txns, 1) end
    x.counting = "strace"
  end
  if x.counting == "strace" then
    local n = count_by_strace(x, row, target, secs)
    if n then return n end
    x.counting = nil
  end
end

-- ---- kinds of rows ----
local measure = {}

function measure.txn(x, row, pair)
  local rounds = alternate(x.rounds, function(name)
    local r = load(x, row, pair[name], { secs = x.secs })
    if r.txns == 0 then error(name .. ": no transaction was finished", 0) end
    return r
  end)
  local calls = {}
  for _, name in ipairs(NAMES) do
    local n = count_calls(x, row, pair[name], math.min(x.secs, 1))
    if n then calls[name] = report.summary { n } end
  end
  row.rounds, row.syscalls = rounds, calls
  row.cpu_us = compare(rounds, function(r) return r.cpu_ns / r.txns / 1e3 end)
  row.tps = compare(rounds, function(r) return r.tps end)
  row.p50_us = compare(rounds, function(r) return r.p50_us end)
  row.p99_us = compare(rounds, function(r) return r.p99_us end)
end

function measure.big(x, row, pair)
  local rounds = alternate(x.rounds, function(name)
    local r = load(x, row, pair[name], { secs = x.secs })
    if r.bytes == 0 then error(name .. ": no byte of the large result came", 0) end
    return r
  end)
  row.rounds = rounds
  row.cpu_ns_per_kb = compare(rounds, function(r) return r.cpu_ns / (r.bytes / 1024) end)
  row.mb_s = compare(rounds, function(r) return r.bytes / r.secs / 1e6 end)
end

-- resident bytes once they no longer change
local function settled_resident(pid)
  local last
  return sys.until_true(5, function()
    local now = sys.resident(pid)
    local is_settled = now == last
    last = now
    if is_settled then return now end
    sys.sleep(0.2)
  end) or last
end

local function idle_bytes(x, row, target)
  local log = x.dir .. "/pgload.log"
  local base = settled_resident(target.proc.pid)
  local p = sys.spawn(targets.pgload(x, target, row.transport, { "-m", "idle", "-c", row.clients,
    "-t", 60 }), { pipe = true, stdin = true, log = log })
  local line = sys.read_line(p, 40)
  if not (line or ""):match("^ready") then
    sys.join(p, 5)
    error(("%s: pgload: %s"):format(target.name, sys.tail(log, 300)), 0)
  end
  local held = settled_resident(target.proc.pid)
  sys.close_stdin(p)
  if not sys.join(p, 10) or not p.ok then
    error(("%s: idle clients were dropped: %s"):format(target.name, sys.tail(log, 300)), 0)
  end
  return { base_bytes = base, held_bytes = held, bytes_per_client = (held - base) / row.clients }
end

-- A process keeps what its clients once took, so each round has fresh ones.
function measure.idle(x, row, _, backend)
  local need = row.clients + 200
  if sys.nofile < need then
    error(("needs %d open files, the hard limit is %d"):format(need, sys.nofile), 0)
  end
  row.rounds = {}
  for i = 1, math.min(x.rounds, 3) do
    local pair = targets.start_pair(x, backend, row.transport)
    row.rounds[i] = alternate(1, function(name) return idle_bytes(x, row, pair[name]) end)[1]
    targets.stop_pair(pair)
  end
  row.bytes_per_client = compare(row.rounds, function(r) return r.bytes_per_client end)
end

-- ---- the run ----
local function headline(row)
  local s = row.cpu_us or row.cpu_ns_per_kb or row.bytes_per_client
  return (" ratio %.2f"):format(s.ratio.median)
end

local start_backend = { pgnull = targets.start_pgnull, pg = targets.start_postgres }

-- Runs the rows; a failed one is noted in it and gets fresh poolers for the next.
local function run_rows(x, list, done)
  local backends, pair, pair_key = {}, nil, nil
  local function need_pair(row)
    local key = row.kind ~= "idle" and row.backend .. "-" .. row.transport or nil
    if pair and key ~= pair_key then
      targets.stop_pair(pair)
      pair = nil
    end
    pair_key = key
    if key and not pair then
      pair = targets.start_pair(x, backends[row.backend], row.transport)
    end
  end
  for i, row in ipairs(list) do
    say(("[%d/%d] %-24s "):format(i, #list, row.name))
    local ok, problem = pcall(function()
      local b = backends[row.backend]
      if not b or not sys.is_alive(b.proc) then
        backends[row.backend] = start_backend[row.backend](x)
      end
      need_pair(row)
      measure[row.kind](x, row, pair, backends[row.backend])
    end)
    if not ok and problem == "interrupted" then error(problem, 0) end
    done[#done + 1] = row
    if ok then
      say(headline(row), "\n")
    else
      row.failure = tostring(problem)
      say(" FAILED: ", row.failure, "\n")
      sys.stop_all()
      backends, pair, pair_key = {}, nil, nil
    end
  end
end

local function machine_lines(x)
  local model = (sys.read_file("/proc/cpuinfo") or ""):match("model name%s*: ([^\n]*)") or "?"
  local v = targets.versions(x)
  local counting = { perf = "kernel tracepoint raw_syscalls:sys_enter", strace = "strace -c -f" }
  return {
    ("%s, %s × %s"):format(sys.output("uname -srm"), sys.output("nproc"), model),
    ("%s; %s; %s"):format(v.poolrt, v.pgbouncer, v.postgres),
    ("pool of %d, transaction mode, trust, no connection log, no TLS; poolrt with 1 worker and"
      .. " route/tenant"):format(targets.POOL_SIZE),
    ("%d rounds of %g s in alternating order; CPU: the kernel's run time of all threads;"
      .. " system calls: %s"):format(x.rounds, x.secs, counting[x.counting] or "n/a"),
    ("load average at start %s; %s"):format(x.load_average, os.date("!%Y-%m-%d %H:%M UTC")),
  }
end

local function write_report(x, done)
  local result = { machine = machine_lines(x), rows = done, rounds = x.rounds, secs = x.secs }
  local text = report.markdown(result)
  sys.write_file(x.build .. "/results.md", text)
  sys.write_file(x.build .. "/results.json", report.json(result) .. "\n")
  io.write(text)
  say("written: ", x.build, "/results.md and results.json\n")
end

local function main()
  local list, unknown = rows.select(rows.all(), os.getenv "ONLY")
  if not list then
    local names = {}
    for i, row in ipairs(rows.all()) do names[i] = row.name end
    wrong_use(("ONLY: no row is called %q; there are:\n  %s"):format(unknown,
      table.concat(names, "\n  ")))
  end
  local build, root = sys.real_path(here .. "/../../build/bench"), sys.real_path(here .. "/../..")
  if not build then wrong_use("build/bench is not there: start me with `make bench`") end
  local rounds, secs = setting("ROUNDS", 5, 1, 100), setting("SECS", 2, 0.1, 60)
  sys.setup()
  local x, done, failed = nil, {}, false
  local ok, problem = pcall(function()
    x = targets.setup(build, root)
    x.rounds, x.secs, x.counting = math.floor(rounds), secs, "perf"
    x.load_average = (sys.read_file("/proc/loadavg") or "?"):match("^%S+ %S+ %S+")
    say(("bench: %d rows, about %d minutes\n"):format(#list,
      math.ceil(#list * (x.rounds * 2 * (secs + 0.5) + 3) / 60)))
    run_rows(x, list, done)
  end)
  sys.stop_all("deaf")
  if #done > 0 then write_report(x, done) end
  if x and x.dir then targets.cleanup(x) end
  for _, row in ipairs(done) do failed = failed or row.failure ~= nil end
  if not ok then say("bench: ", tostring(problem), "\n") end
  os.exit(problem == "interrupted" and 130 or (not ok or failed) and 1 or 0)
end

main()
