local sandbox = require "poolrt.sandbox"

local function run(body, options)
  local env = sandbox.env(options or { os = { time = os.time } })
  local chunk, message = sandbox.compile(body, "t.lua", env)
  if not chunk then
    return false, message
  end
  return pcall(chunk)
end

describe("sandbox", function()
  local rep, dump = string.rep, string.dump

  setup(function() sandbox.lock_strings() end)
  teardown(function()
    rawset(string, "rep", rep)
    rawset(string, "dump", dump)
    require("debug").setmetatable("", { __index = string })
  end)

  for _, name in ipairs {
    "ffi", "io", "debug", "jit", "package", "load", "loadstring", "loadfile", "dofile", "setfenv",
    "getfenv", "newproxy", "collectgarbage", "module", "coroutine", "rawset", "rawget", "xpcall",
    "print", "arg",
  } do
    it("has no " .. name, function()
      local ok, message = run("return " .. name)
      assert.is_false(ok)
      assert.matches("t.lua:1: undefined variable '" .. name .. "'", message, 1, true)
    end)
  end

  for what, body in pairs {
    ["writes a global"] = "x = 1",
    ["changes a library"] = "string.format = 1",
    ["changes the math library"] = "math.random = function() return 4 end",
    ["changes a host table"] = "require('host').version = 'y'",
    ["requires ffi"] = "return require 'ffi'",
    ["requires os"] = "return require 'os'",
    ["requires what is no name"] = "return require {}",
    ["runs a program"] = "return os.execute('true')",
    ["leaves the process"] = "return os.exit()",
    ["reaches the string metatable"] = "return getmetatable('').__index.format",
    ["replaces the environment's metatable"] = "setmetatable(_G, {})",
    ["replaces a library's metatable"] = "setmetatable(math, {})",
    ["dumps bytecode"] = "return ('').dump(function() end)",
    ["makes a huge string"] = "return ('x'):rep(1e9)",
    ["makes a huge string by a separator"] = "return (''):rep(1e6, 'xx')",
    ["makes a huge string of a number"] = "return string.rep(1, 1e6)",
    ["makes a huge string with a number in a string"] = "return ('x'):rep('1000000')",
    ["sets __gc"] = "return setmetatable({}, { __gc = function() end })",
    ["rebinds pcall through _G"] = "_G.pcall = 1",
  } do
    it("stops code that " .. what, function()
      assert.is_false((run(body, { modules = { host = sandbox.readonly({ version = "x" }, "host") },
        os = {} })))
    end)
  end

  it("refuses bytecode", function()
    local chunk, message = sandbox.compile(dump(function() end), "b.lua", {})
    assert.is_nil(chunk)
    assert.matches("wrong mode", message, 1, true)
  end)

  it("keeps environments apart", function()
    local one, two = sandbox.env {}, sandbox.env {}
    assert(sandbox.compile("local t = math table.insert(t, 1)", "a", one))()
    assert.is_nil(rawget(two.math, 1))
    assert.is_nil(rawget(math, 1))
  end)

  it("offers what a policy needs", function()
    local ok, result = run [[
      local t = { 3, 1, 2 }
      table.sort(t)
      local words = {}
      for word in ("a,b"):gmatch("%a") do words[#words + 1] = word:upper() end
      return table.concat(t) .. table.concat(words) .. math.floor(1.5) .. bit.band(6, 3)
        .. ("ab"):rep(2) .. tostring(getmetatable("")) .. type(os.time()) .. select("#", 1, 2)
    ]]
    assert.is_true(ok, result)
    assert.equal("123AB12ababnilnumber2", result)
  end)

  it("gives a metatable back for tables that are the policy's own", function()
    local ok, result = run [[
      local mt = {}
      return getmetatable(setmetatable({}, mt)) == mt
    ]]
    assert.is_true(ok and result)
  end)
end)
