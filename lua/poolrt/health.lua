-- health.lua - how a pool and the whole runtime are: HEALTHY, DEGRADED or UNHEALTHY, and why.
-- Judged by now and by the last minute, so that a bad hour of yesterday is not held against today.
local M = {}

local SEVERITY = { HEALTHY = 0, DEGRADED = 1, UNHEALTHY = 2 }

-- Thresholds of the alerts; core/admin/README.md says which numbers do not exist yet.
M.limits = { utilization = 0.9, waiting = 10, acquire_ms = 100 }

local function issue(status, code, message, value, threshold)
  return { status = status, code = code, message = message, value = value, threshold = threshold }
end

-- Each row: a function of (pool, the last minute or nil) that returns an issue or nil.
local checks = {
  -- Leased over max, not open over max: a pool that keeps its connections open is not in trouble.
  function(pool)
    local used = pool.active / pool.config.max_size
    if used > M.limits.utilization then
      return issue("DEGRADED", "utilization",
        ("%.0f %% of max_size is in use"):format(used * 100), used, M.limits.utilization)
    end
  end,
  function(pool)
    if pool.waiting > M.limits.waiting then
      return issue("DEGRADED", "wait_queue",
        ("%d requests wait for a server connection"):format(pool.waiting), pool.waiting,
        M.limits.waiting)
    end
  end,
  function(_, last)
    if not last or last.acquire_count == 0 then
      return
    end
    local ms = last.acquire_sum_us / last.acquire_count / 1000
    if ms > M.limits.acquire_ms then
      return issue("DEGRADED", "acquire_time",
        ("a request waited %.0f ms on average in the last minute"):format(ms), ms,
        M.limits.acquire_ms)
    end
  end,
  -- Nothing is open and nothing could be opened: clients get errors.
  function(pool, last)
    if not last or last.connect_failed == 0 or last.opened > 0 then
      return
    end
    local status = pool.active + pool.idle == 0 and "UNHEALTHY" or "DEGRADED"
    return issue(status, "connect_failed",
      ("%d server connections could not be opened in the last minute, and none could"):format(
        last.connect_failed), last.connect_failed, 0)
  end,
}

--- The worse of two words.
function M.worse(a, b)
  return SEVERITY[b] > SEVERITY[a] and b or a
end

--- status and list of issues of one pool.
function M.pool(pool, last)
  local status, issues = "HEALTHY", {}
  for _, check in ipairs(checks) do
    local found = check(pool, last)
    if found then
      issues[#issues + 1] = found
      status = M.worse(status, found.status)
    end
  end
  return status, issues
end

--- An issue for policies that refuse clients because they fail ("" when there are none).
function M.policies(names)
  if names == "" then
    return nil
  end
  return issue("UNHEALTHY", "policy", "these policies fail and refuse clients: " .. names, names)
end

return M
