-- live.lua - sessions (clients) and connections (servers, and requests that wait for one), one by
-- one: what REST shows of them, and how they are ended.
-- source.visit(query) asks the workers; it yields until they have answered. Why a field is null:
-- core/admin/README.md.
local json = require "poolrt.json"

local M = {}

local null = json.null

function M.fail(status, code, message, details)
  error({ status = status, code = code, message = message, details = details }, 0)
end

function M.iso(seconds)
  return seconds and os.date("!%Y-%m-%dT%H:%M:%SZ", math.floor(seconds)) or null
end

local fail, iso = M.fail, M.iso

-- ---- rows ----

local function seconds(us)
  return us and math.floor(us / 1e6) or null
end

local function ago(api, us)
  return us and iso(api.now - us / 1e6) or null
end

local function text(s)
  return s and json.utf8(s) or null
end

-- "192.168.1.100:54321" and "[::1]:54321" without their ports
local function ip_of(address)
  return address and (address:match "^%[(.*)%]:%d+$" or address:gsub(":%d+$", "")) or null
end

local function id_of(prefix, number)
  return number and prefix .. ("%.0f"):format(number) or null
end

local function variables(row)
  return { timezone = text(row.timezone), date_format = text(row.datestyle),
           statement_timeout = null }
end

local function request_age(row)
  return row.state ~= "idle" and seconds(row.request_us) or null
end

local function connection_row(api, row)
  return {
    id = id_of("conn_", row.number),
    pool_id = text(row.pool),
    session_id = id_of("session_", row.other),
    user = text(row.user),
    database = text(row.database),
    client_addr = text(row.client),
    state = row.state,
    in_transaction = row.in_transaction,
    queue_position = row.position or null,
    request_age_sec = request_age(row),
    current_query = null,
    query_start_time = null,
    queries_executed = null,
    transactions = null,
    connected_at = ago(api, row.age_us),
    last_activity = ago(api, row.quiet_us),
    connection_age_sec = seconds(row.age_us),
    idle_time_sec = seconds(row.quiet_us),
    bytes_sent = row.sent or null,
    bytes_received = row.received or null,
  }
end

local function connection_details(api, row)
  local is_open = not row.is_request and row.state ~= "closing"
  return {
    id = id_of("conn_", row.number),
    pool_id = text(row.pool),
    session_id = id_of("session_", row.other),
    user = text(row.user),
    database = text(row.database),
    client_addr = text(row.client),
    server_addr = text(row.server),
    server_process_id = row.pid or null,
    protocol_version = row.is_request and null or "3.0",
    state = row.state,
    in_transaction = row.in_transaction,
    pinned_by = json.array(row.pinned),
    queue_position = row.position or null,
    current_query = null,
    query_start_time = null,
    transaction_id = null,
    isolation_level = null,
    variables = variables(row),
    statistics = {
      queries_executed = null,
      transactions_committed = null,
      transactions_rolled_back = null,
      rows_fetched = null,
      rows_affected = null,
      bytes_sent = row.sent or null,
      bytes_received = row.received or null,
      cache_hits = null,
      cache_misses = null,
    },
    timings = {
      connected_at = ago(api, row.age_us),
      last_activity = ago(api, row.quiet_us),
      connection_age_sec = seconds(row.age_us),
      idle_time_sec = seconds(row.quiet_us),
      request_age_sec = request_age(row),
      total_query_time_ms = null,
    },
    -- one that breaks while it is idle is closed at once
    health = { is_valid = is_open, last_validated = null, validation_failures = null },
  }
end

local function session_row(api, row)
  return {
    id = id_of("session_", row.number),
    pool_id = text(row.pool),
    connection_id = id_of("conn_", row.state == "waiting" and row.number or row.other),
    user = text(row.user),
    database = text(row.database),
    application_name = text(row.application),
    client_addr = text(ip_of(row.client)),
    state = row.state,
    in_transaction = row.in_transaction,
    queue_position = row.position or null,
    request_age_sec = request_age(row),
    current_query = null,
    started_at = ago(api, row.age_us),
    last_activity = ago(api, row.quiet_us),
    idle_time_sec = seconds(row.quiet_us),
    queries_count = null,
    transaction_id = null,
    isolation_level = null,
  }
end

local function session_details(api, row)
  local s = session_row(api, row)
  return {
    id = s.id,
    pool_id = s.pool_id,
    connection_id = s.connection_id,
    user = s.user,
    database = s.database,
    application_name = s.application_name,
    client_addr = s.client_addr,
    server_process_id = row.pid or null,
    state = s.state,
    in_transaction = s.in_transaction,
    pinned_by = json.array(row.pinned),
    queue_position = s.queue_position,
    current_query = null,
    transaction_id = null,
    isolation_level = null,
    variables = variables(row),
    statistics = {
      queries_executed = null,
      transactions_committed = null,
      transactions_rolled_back = null,
      bytes_sent = row.sent or null,
      bytes_received = row.received or null,
    },
    timings = {
      started_at = s.started_at,
      last_query_start = null,
      last_activity = s.last_activity,
      idle_time_sec = s.idle_time_sec,
      request_age_sec = s.request_age_sec,
      session_duration_sec = seconds(row.age_us),
    },
  }
end

M.connection = {
  is_session = false, prefix = "conn_", key = "connection_id", done = "killed", forces = false,
  row = connection_row, details = connection_details,
  states = { active = true, idle = true, waiting = true, closing = true },
}
M.session = {
  is_session = true, prefix = "session_", key = "session_id", done = "terminated", forces = true,
  row = session_row, details = session_details,
  states = { active = true, idle = true, idle_in_transaction = true, waiting = true },
}

-- ---- asking ----

local function visit(api, query)
  local answer = api.source.visit(query)
  if not answer then
    fail(504, "timeout", "the workers have not answered in time")
  end
  api.now, api.mono = api.source.now()
  return answer
end

local function not_found(kind, id)
  fail(404, "not_found", "there is no such " .. (kind.is_session and "session" or "connection"),
    { [kind.key] = json.utf8(id) })
end

-- conn_17 -> 17; only as it is written in answers
local function number_of(kind, id)
  local digits = id:sub(1, #kind.prefix) == kind.prefix and id:sub(#kind.prefix + 1)
  if not digits or #digits > 15 or not digits:find "^[1-9]%d*$" then
    not_found(kind, id)
  end
  return tonumber(digits)
end

local function status_of(kind, status)
  if status and not kind.states[status] then
    local known = {}
    for name in pairs(kind.states) do
      known[#known + 1] = name
    end
    table.sort(known)
    fail(400, "bad_request", "status must be one of " .. table.concat(known, ", "),
      { parameter = "status" })
  end
  return status
end

local function name_of(query, parameter, max)
  local name = query[parameter]
  if name and (#name == 0 or #name > max) then
    fail(400, "bad_request", ("%s must have 1 to %d characters"):format(parameter, max),
      { parameter = parameter })
  end
  return name
end

--- The rows of a page, and its pagination.
function M.list(api, kind, query, page, size)
  local answer = visit(api, {
    sessions = kind.is_session,
    state = status_of(kind, query.status),
    pool = name_of(query, "pool_id", 68),
    user = name_of(query, "user", 255),
    skip = (page - 1) * size,
    want = size,
  })
  local out = json.array()
  for i, row in ipairs(answer.rows) do
    out[i] = kind.row(api, row)
  end
  return out, { page = page, page_size = size, total_count = answer.matches }
end

function M.show(api, kind, id)
  local answer = visit(api, { sessions = kind.is_session, number = number_of(kind, id), want = 1 })
  return answer.rows[1] and kind.details(api, answer.rows[1]) or not_found(kind, id)
end

local FORCE = { ["true"] = true, ["false"] = false }

local function force_of(kind, text_of_it)
  if text_of_it == nil then
    return kind.forces
  end
  local force = FORCE[text_of_it]
  if force == nil then
    fail(400, "bad_request", "force must be true or false", { parameter = "force" })
  end
  return force
end

local ROLLED_BACK = { yes = true, no = false, unknown = null }

--- End it. Without `force` not in a transaction: what that has done would be lost.
function M.kill(api, kind, id, force)
  local answer = visit(api, {
    sessions = kind.is_session,
    number = number_of(kind, id),
    want = 1,
    kills = true,
    force = force_of(kind, force),
  })
  local result = { [kind.key] = id, [kind.done] = answer.verdict == "killed",
                   was_in_transaction = answer.was_in_transaction }
  if answer.verdict == "not_found" then
    not_found(kind, id)
  elseif answer.verdict == "in_transaction" then
    fail(409, "in_transaction", "it is in a transaction: force=true ends that, too", result)
  elseif answer.verdict == "busy" then
    fail(409, "busy", "it is being closed already", result)
  end
  result.transaction_rolled_back = ROLLED_BACK[answer.rolled_back]
  return result
end

return M
