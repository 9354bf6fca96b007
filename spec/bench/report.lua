-- report.lua - from raw numbers to medians, ratios and verdicts, as markdown and as JSON.
-- A ratio is taken within a round, where both poolers met the same machine, and the median of the
-- rounds' ratios is what a goal is held against.
local M = {}

-- ---- statistics ----
--- {median, min, max} of a list of numbers; nil of an empty one.
function M.summary(list)
  local n = #list
  if n == 0 then return nil end
  local sorted = {}
  for i, v in ipairs(list) do sorted[i] = v end
  table.sort(sorted)
  local middle = math.floor((n + 1) / 2)
  local median = n % 2 == 1 and sorted[middle] or (sorted[middle] + sorted[middle + 1]) / 2
  return { median = median, min = sorted[1], max = sorted[n] }
end

--- rounds: list of {poolrt = v, pgbouncer = v}. The summaries of both and of poolrt / PgBouncer.
function M.compare(rounds)
  local a, b, ratio = {}, {}, {}
  for i, r in ipairs(rounds) do
    a[i], b[i], ratio[i] = r.poolrt, r.pgbouncer, r.poolrt / r.pgbouncer
  end
  return { poolrt = M.summary(a), pgbouncer = M.summary(b), ratio = M.summary(ratio) }
end

--- "met" or "missed" for a value that is to stay at or below its goal; nil without a goal.
function M.verdict(value, goal)
  if not goal or not value then return nil end
  return value <= goal and "met" or "missed"
end

-- ---- markdown ----
local function number(v, digits)
  return ("%." .. digits .. "f"):format(v)
end

local function grouped(v)
  local s = number(v, 0)
  return (s:reverse():gsub("(%d%d%d)", "%1 "):reverse():gsub("^ ", ""))
end

-- "10.42 (10.10-11.00)"
local function spread(s, digits)
  return ("%s (%s–%s)"):format(number(s.median, digits), number(s.min, digits),
    number(s.max, digits))
end

local function goal_cell(value, goal, digits)
  if not goal then return "" end
  return ("≤ %s %s"):format(number(goal, digits), M.verdict(value, goal) or "n/a")
end

local function table_of(out, head, rows)
  out[#out + 1] = "| " .. table.concat(head, " | ") .. " |"
  out[#out + 1] = "|---" .. ("|---:"):rep(#head - 1) .. "|"
  for _, r in ipairs(rows) do out[#out + 1] = "| " .. table.concat(r, " | ") .. " |" end
  out[#out + 1] = ""
end

local function median_calls(row, name)
  local s = row.syscalls and row.syscalls[name]
  return s and s.median
end

local function txn_cells(row)
  local cpu, goals = row.cpu_us, row.goals
  local ours, theirs = median_calls(row, "poolrt"), median_calls(row, "pgbouncer")
  local p99 = row.p99_us
  return { row.name, spread(cpu.poolrt, 2), spread(cpu.pgbouncer, 2), spread(cpu.ratio, 2),
    goal_cell(cpu.ratio.median, goals.cpu_ratio, 2), ours and number(ours, 2) or "n/a",
    theirs and number(theirs, 2) or "n/a", goal_cell(ours, goals.syscalls, 1),
    grouped(row.tps.poolrt.median), grouped(row.tps.pgbouncer.median),
    ("%s / %s"):format(grouped(p99.poolrt.median), grouped(p99.pgbouncer.median)) }
end

local function big_cells(row)
  local cpu, speed = row.cpu_ns_per_kb, row.mb_s
  return { row.name, spread(cpu.poolrt, 0), spread(cpu.pgbouncer, 0), spread(cpu.ratio, 2),
    grouped(speed.poolrt.median), grouped(speed.pgbouncer.median), spread(speed.ratio, 2) }
end

local function idle_cells(row)
  local bytes = row.bytes_per_client
  return { row.name, spread(bytes.poolrt, 0), spread(bytes.pgbouncer, 0), spread(bytes.ratio, 2),
    goal_cell(bytes.poolrt.median, row.goals.bytes, 0) }
end

local SECTIONS = {
  { "txn", "Transactions", { "row", "poolrt µs CPU/txn", "PgBouncer", "ratio", "goal",
    "poolrt syscalls/txn", "PgBouncer", "goal", "poolrt tps", "PgBouncer", "p99 µs" }, txn_cells },
  { "big", "A 50 MB result, one client", { "row", "poolrt ns CPU/KB", "PgBouncer", "ratio",
    "poolrt MB/s", "PgBouncer", "ratio" }, big_cells },
  { "idle", "Resident bytes per idle client", { "row", "poolrt", "PgBouncer", "ratio", "goal" },
    idle_cells },
}

--- result: {machine = lines, rows = {...}}, as bench.lua makes it.
function M.markdown(result)
  local out = { "# poolrt against PgBouncer", "" }
  for _, line in ipairs(result.machine) do out[#out + 1] = "- " .. line end
  out[#out + 1] = "- Medians (least–most) of the rounds, ratio = poolrt / PgBouncer within a round."
  out[#out + 1] = "- CPU and system calls are the pooler's; tps and p99 share this machine's cores"
    .. " with load and backend and compare only within a row."
  out[#out + 1] = ""
  for _, section in ipairs(SECTIONS) do
    local kind, title, head, cells = unpack(section)
    local rows = {}
    for _, row in ipairs(result.rows) do
      if row.kind == kind and not row.failure then rows[#rows + 1] = cells(row) end
    end
    if #rows > 0 then
      out[#out + 1] = "## " .. title
      out[#out + 1] = ""
      table_of(out, head, rows)
    end
  end
  for _, row in ipairs(result.rows) do
    if row.failure then
      out[#out + 1] = ("- FAILED %s: %s"):format(row.name, row.failure:gsub("%s+", " "))
    end
  end
  return (table.concat(out, "\n"):gsub("\n*$", "\n"))
end

-- ---- JSON ----
local ESCAPES = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\t"] = "\\t", ["\r"] = "\\r" }

local function quoted(s)
  return '"' .. s:gsub('[%c"\\]', function(c)
    return ESCAPES[c] or ("\\u%04x"):format(c:byte())
  end) .. '"'
end

--- Lists and tables with string keys (sorted), strings, booleans and finite numbers.
function M.json(v, indent)
  indent = indent or ""
  if type(v) == "string" then return quoted(v) end
  if type(v) == "number" then
    if v ~= v or v == math.huge or v == -math.huge then return "null" end
    return ("%.14g"):format(v)
  end
  if type(v) ~= "table" then return tostring(v) end
  local inner, items, is_list = indent .. " ", {}, #v > 0
  if is_list then
    for i, item in ipairs(v) do items[i] = M.json(item, inner) end
  else
    local keys = {}
    for k in pairs(v) do keys[#keys + 1] = k end
    table.sort(keys)
    for i, k in ipairs(keys) do items[i] = quoted(k) .. ": " .. M.json(v[k], inner) end
  end
  local open, close = is_list and "[" or "{", is_list and "]" or "}"
  if #items == 0 then return open .. close end
  return open .. "\n" .. inner .. table.concat(items, ",\n" .. inner) .. "\n" .. indent .. close
end

return M
