-- rates.lua - what happened in each pool during the last minute.
-- Samples of the counters are noted every ten seconds; a rate is the difference between now and the
-- oldest sample that is not older than a minute. A pool is the same as long as it was created at
-- the same moment: one that was freed and made again starts anew.
local M = {}

M.window = 60
local SHORTEST = 1 -- seconds; a rate over less says nothing

local function sample(pool, at)
  return {
    at = at,
    acquired = pool.acquired,
    opened = pool.opened,
    connect_failed = pool.connect_failed,
    acquire_count = pool.acquire.count,
    acquire_sum_us = pool.acquire.sum_us,
  }
end

local function key_of(pool)
  return pool.id .. "\0" .. pool.created_at
end

function M.new()
  local samples = {} -- key -> list, oldest first

  local R = {}

  --- Note the counters of all pools; those that are gone are forgotten. `at`: monotonic seconds.
  function R.note(pools, at)
    local kept = {}
    for _, pool in ipairs(pools) do
      local key = key_of(pool)
      local list = samples[key] or {}
      while list[1] and at - list[1].at > M.window do
        table.remove(list, 1)
      end
      list[#list + 1] = sample(pool, at)
      kept[key] = list
    end
    samples = kept
  end

  --- Differences since the oldest sample in the window and `seconds`, or nil when there is none.
  function R.of(pool, at)
    for _, old in ipairs(samples[key_of(pool)] or {}) do
      local seconds = at - old.at
      if seconds >= SHORTEST and seconds <= M.window then
        local now = sample(pool, at)
        local diff = { seconds = seconds }
        for name, value in pairs(old) do
          diff[name] = name ~= "at" and now[name] - value or nil
        end
        return diff
      end
    end
  end

  return R
end

return M
