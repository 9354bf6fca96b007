-- tally.lua - busted's output: one line per failure, each file's name as it starts, and a last line
-- "busted: N passed, N failed" that spec/suite.sh reads.
return function(options)
  local busted = require "busted"
  local handler = require "busted.outputHandlers.base"()
  io.stdout:setvbuf "line"

  handler.fileStart = function(file)
    io.write("-- ", file.name, "\n")
    return nil, true
  end

  handler.testEnd = function(element, _, status)
    if status ~= "success" and status ~= "pending" then
      io.write("not ok - ", handler.getFullName(element), "\n")
    elseif options.verbose then
      io.write("ok - ", handler.getFullName(element), "\n")
    end
    return nil, true
  end

  local function show(problem)
    local trace = type(problem.trace) == "table" and problem.trace or {}
    io.write("\n", problem.name or "?", "\n  ", tostring(trace.short_src), ":",
      tostring(trace.currentline), "\n  ", tostring(problem.message), "\n")
    if trace.traceback then
      io.write(trace.traceback, "\n")
    end
  end

  handler.suiteEnd = function()
    for _, list in ipairs { handler.failures, handler.errors } do
      for _, problem in ipairs(list) do
        show(problem)
      end
    end
    io.write(("busted: %d passed, %d failed\n"):format(handler.successesCount,
      handler.failuresCount + handler.errorsCount))
    return nil, true
  end

  busted.subscribe({ "file", "start" }, handler.fileStart)
  busted.subscribe({ "test", "end" }, handler.testEnd)
  busted.subscribe({ "suite", "end" }, handler.suiteEnd)
  return handler
end
