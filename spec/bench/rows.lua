-- rows.lua - what is measured: one row per backend, transport, protocol and number of clients, and
-- the goals that are set for it.
local M = {}

local CLIENTS = { 8, 64, 256 }
local CPU_GOAL = { tcp = 0.85, unix = 0.72 } -- of PgBouncer, at 64 and 256 clients
local PREPARED_CPU_GOAL = 0.80
local SYSCALL_GOAL = 4.3
local IDLE_BYTES_GOAL = 820
local IDLE_CLIENTS = 5000

local function txn_row(backend, transport, mode, clients)
  local has_goal = mode ~= "connect" and clients >= 64
  return {
    name = ("%s-%s-%s-%d"):format(backend, transport, mode, clients),
    kind = "txn", backend = backend, transport = transport, mode = mode, clients = clients,
    goals = has_goal and { cpu_ratio = CPU_GOAL[transport], syscalls = SYSCALL_GOAL } or {},
  }
end

local function prepared_row(backend, transport)
  local row = txn_row(backend, transport, "prepared", 64)
  row.goals.cpu_ratio = PREPARED_CPU_GOAL
  return row
end

--- All rows, in the order in which they run: those that share backend and transport in a row.
function M.all()
  local rows = {}
  local function add(row) rows[#rows + 1] = row end
  for _, backend in ipairs { "pgnull", "pg" } do
    for _, transport in ipairs { "tcp", "unix" } do
      for _, mode in ipairs { "simple", "extended" } do
        for _, clients in ipairs(CLIENTS) do add(txn_row(backend, transport, mode, clients)) end
      end
      add(prepared_row(backend, transport))
      if backend == "pgnull" then add(txn_row(backend, transport, "connect", 8)) end
      add { name = ("%s-%s-big"):format(backend, transport), kind = "big", backend = backend,
        transport = transport, mode = "big", clients = 1, goals = {} }
    end
  end
  add { name = ("pgnull-tcp-idle-%d"):format(IDLE_CLIENTS), kind = "idle", backend = "pgnull",
    transport = "tcp", mode = "idle", clients = IDLE_CLIENTS, goals = { bytes = IDLE_BYTES_GOAL } }
  return rows
end

local function to_pattern(glob)
  return "^" .. glob:gsub("[%^%$%(%)%%%.%[%]%+%-%?]", "%%%0"):gsub("%*", ".*") .. "$"
end

--- The rows whose name is in `only`: names with * for anything, separated by commas or spaces.
--- Without it all; nil and the name when one matches nothing.
function M.select(rows, only)
  if not only or only == "" then return rows end
  local wanted = {}
  for glob in only:gmatch("[^%s,]+") do
    local pattern, found = to_pattern(glob), false
    for _, row in ipairs(rows) do
      if row.name:match(pattern) then
        wanted[row] = true
        found = true
      end
    end
    if not found then return nil, glob end
  end
  local chosen = {}
  for _, row in ipairs(rows) do
    if wanted[row] then chosen[#chosen + 1] = row end
  end
  return chosen
end

return M
