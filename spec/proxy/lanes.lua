-- lanes.lua - several conversations of wire.lua at once, each written as if it were alone: when one
-- would wait for its socket, the others go on.
local ffi = require "ffi"
local wire = require "proxy.wire"

local M = {}

local function waiter(fd, events, seconds)
  return coroutine.yield(fd, events, wire.now() + seconds)
end

-- Gives it its turn until it waits again; an error in it is kept with its traceback.
local function resume(lane, ready)
  wire.waiter = waiter
  local ok, fd, events, deadline = coroutine.resume(lane.co, ready)
  wire.waiter = nil
  lane.is_over = coroutine.status(lane.co) == "dead"
  lane.fd, lane.events, lane.deadline = fd, events, deadline
  if not ok then
    lane.why = debug.traceback(lane.co, tostring(fd))
  end
end

local function fill(polled, lanes)
  local first = math.huge
  for i, lane in ipairs(lanes) do
    polled[i - 1].fd, polled[i - 1].events = lane.fd, lane.events
    first = math.min(first, lane.deadline)
  end
  return math.max(0, math.ceil((first - wire.now()) * 1000))
end

local function still_going(lanes)
  local left = {}
  for _, lane in ipairs(lanes) do
    if lane.why then
      error(lane.why, 0)
    elseif not lane.is_over then
      left[#left + 1] = lane
    end
  end
  return left
end

--- Runs the functions side by side to their ends. The first that fails ends it all with its error.
function M.run(functions)
  local lanes, polled = {}, ffi.new("struct wire_pollfd[?]", #functions)
  for i, f in ipairs(functions) do
    lanes[i] = { co = coroutine.create(f) }
    resume(lanes[i])
  end
  lanes = still_going(lanes)
  while #lanes > 0 do
    ffi.C.wire_poll(polled, #lanes, fill(polled, lanes))
    local now = wire.now()
    for i, lane in ipairs(lanes) do
      if polled[i - 1].revents ~= 0 then
        resume(lane, true)
      elseif now >= lane.deadline then
        resume(lane, false)
      end
    end
    lanes = still_going(lanes)
  end
end

return M
