-- The bundled policies as what they are: Lua files that return a table, tried on plain tables.
local policy = require "poolrt.policy"

local function load_policy(name, config, partitions)
  local file = assert(io.open("policies/" .. name .. ".lua"))
  local source = file:read("*a")
  file:close()
  local module = assert(loadstring(source, "@" .. name .. ".lua"))()
  policy.check({ chunk = name .. ".lua", source = source }, module)
  module.init {
    config = policy.settings(module.config, config or {}),
    worker = 0,
    pool = "app",
    partitions = partitions,
  }
  return module
end

for _, kind in ipairs { "tenant", "user" } do
  describe("route/" .. kind, function()
    local other = kind == "tenant" and "user" or "tenant"
    local partitions = {
      { name = "gold", type = kind, match = "acme" },
      { name = "globex", type = kind },
      { name = "else", type = other, match = "initech" },
    }
    local function route(module, name)
      return module.route(policy.fake.req { [kind] = name, [other] = "initech" })
    end

    it("takes the partition that matches", function()
      local module = load_policy("route/" .. kind, nil, partitions)
      assert.equal("gold", route(module, "acme"))
    end)

    it("takes the partition of that name when it has no match", function()
      local module = load_policy("route/" .. kind, nil, partitions)
      assert.equal("globex", route(module, "globex"))
      assert.equal("default", route(module, "gold"))
    end)

    it("does not take partitions of another type", function()
      local module = load_policy("route/" .. kind, nil, partitions)
      assert.equal("default", route(module, "initech"))
      assert.equal("default", route(module, "else"))
    end)

    it("sends the rest to the fallback, or on to the next policy", function()
      assert.equal("globex", route(load_policy("route/" .. kind, { fallback = "globex" },
        partitions), "nobody"))
      assert.is_nil(route(load_policy("route/" .. kind, { fallback = "" }, partitions), "nobody"))
    end)

    it("lets the map add and replace", function()
      local module = load_policy("route/" .. kind, { map = { acme = "globex", new = "gold" } },
        partitions)
      assert.equal("globex", route(module, "acme"))
      assert.equal("gold", route(module, "new"))
    end)

    it("refuses when it fails: nobody ends up in another's partition", function()
      assert.equal("reject", load_policy("route/" .. kind, nil, partitions).on_fail.route)
    end)

    it("starts over at each init", function()
      local module = load_policy("route/" .. kind, { map = { new = "gold" } }, partitions)
      module.init { config = { map = {}, fallback = "default" }, partitions = {} }
      assert.equal("default", route(module, "new"))
      assert.equal("default", route(module, "acme"))
    end)
  end)
end
