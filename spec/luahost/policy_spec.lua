local policy = require "poolrt.policy"

local function settings_error(schema, given)
  local ok, message = pcall(policy.settings, schema, given)
  assert.is_false(ok)
  return message
end

describe("settings of a policy", function()
  it("take defaults, units, lists and maps", function()
    local config = policy.settings({
      ttl = { type = "duration", default = "5min" },
      names = { type = "list", of = "string" },
      weights = { type = "map", of = "number" },
      size = { type = "integer", min = 1, max = 10 },
      mode = { type = "string", values = { "a", "b" } },
      on = { type = "boolean", default = true },
      absent = { type = "string" },
    }, { names = { "x" }, weights = { a = 1 }, size = 3, mode = "b" })
    assert.same({
      ttl = 300, names = { "x" }, weights = { a = 1 }, size = 3, mode = "b", on = true,
    }, config)
  end)

  it("give each policy a table of its own", function()
    local schema = { map = { type = "map", default = {} } }
    local one = policy.settings(schema, {})
    one.map.x = 1
    assert.same({}, policy.settings(schema, {}).map)
  end)

  for says, case in pairs {
    ["unknown setting 'tll'; did you mean 'ttl'?"] = { { ttl = { type = "number" } }, { tll = 1 } },
    ["'ttl' is \"x\"; it must be a number"] = { { ttl = { type = "number" } }, { ttl = "x" } },
    ["'n' is 1.5; it must be a whole number"] = { { n = { type = "integer" } }, { n = 1.5 } },
    ["'n' is 0; it must lie between 1 and infinity"] = { { n = { type = "integer", min = 1 } },
      { n = 0 } },
    ["'n' is not a number"] = { { n = { type = "number" } }, { n = 0 / 0 } },
    ["'t' is \"5 parsecs\"; it must be a time"] = { { t = { type = "duration" } },
      { t = "5 parsecs" } },
    ["'mode' is \"c\"; it must be one of a, b"] = { { mode = { type = "string",
      values = { "a", "b" } } }, { mode = "c" } },
    ["'key' is missing"] = { { key = { type = "string", required = true } }, {} },
    ["'l' must be a list, and has the key \"a\""] = { { l = { type = "list" } },
      { l = { a = 1 } } },
  } do
    it("say: " .. says, function()
      local message = settings_error(case[1], case[2])
      assert.equal(policy.SETTINGS, message:sub(1, #policy.SETTINGS))
      assert.matches(says, message, 1, true)
    end)
  end
end)

describe("fake views", function()
  it("have every field and refuse others", function()
    local req = policy.fake.req { tenant = "acme", rank = 2 }
    assert.equal("high", req.priority)
    assert.equal("", req.user)
    assert.has_error(function() policy.fake.req { tennant = "x" } end)
    assert.equal(0, policy.fake.part().pool_idle)
  end)
end)
