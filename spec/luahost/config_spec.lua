-- The Lua side of the configuration by itself; spec/core/luahost_config_test.c has the whole load.
local address = require "poolrt.address"
local locate = require "poolrt.locate"
local settings = require "poolrt.settings"

local function read(path)
  local f = assert(io.open(path))
  local text = f:read "*a"
  f:close()
  return text
end

--- The rows of settings.def as C pushes them.
local function rows()
  local list, units = {}, {}
  local text = read "core/base/settings.def"
  for name, value in text:gmatch "#define (PRT_%u+) ([^\n]+)" do
    units[name] = assert(load("return " .. value:gsub("LL", ""), name, "t", units))()
  end
  for scope, inside in text:gmatch "\n(%u+)(%b())" do
    local name, kind, default, min, max, reload, help =
      inside:match '^%((%w[%w_]*), (%w+), (.-), (.-), (.-), (%u+), "(.*)"%)$'
    if name then
      local row = { scope = scope == "POOL" and "pool" or "top", name = name, type = kind,
        reload = reload, help = help:gsub('\\"', '"') }
      row.default, row.min, row.max =
        assert(load(("return %s, %s, %s"):format(default, min, max), name, "t", units))()
      if kind == "BOOL" then
        row.default = row.default ~= 0
      end
      list[#list + 1] = row
    end
  end
  return list
end

describe("a time", function()
  local row = { name = "t", type = "TIME", min = 0, max = 100 * 86400e6 }
  local off = { name = "t", type = "TIME0", min = 0, max = 100 * 86400e6 }

  it("is a number of seconds or a number with a unit", function()
    for text, us in pairs { ["250ms"] = 250e3, ["30s"] = 30e6, ["5min"] = 300e6, ["1h"] = 3600e6,
      ["2d"] = 2 * 86400e6, ["1.5 h"] = 5400e6, ["10us"] = 10, ["7"] = 7e6 } do
      assert.equal(us, settings.parse(row, text))
    end
    assert.equal(250000, settings.parse(row, 0.25))
    assert.equal(0, settings.parse(row, 0))
  end)

  it("is refused when it is anything else", function()
    for _, bad in ipairs { "", "s", "5m", "5 weeks", "1e3s", "0x10", "-1s", "5min 3s", " 5s", true,
      {}, 0 / 0, 1 / 0, -1 / 0, "99999999999999999999d" } do
      assert.is_nil((settings.parse(row, bad)), tostring(bad))
    end
    assert.is_nil((settings.parse(row, false)))
    assert.is_nil((settings.parse(row, "off")))
  end)

  it("may be off where that means something", function()
    for _, value in ipairs { 0, "off", "0" } do
      assert.equal(0, settings.parse(off, value))
    end
    assert.equal(0, settings.parse(off, false))
    assert.is_nil((settings.parse(off, true)))
  end)

  it("is shown in its largest whole unit", function()
    assert.equal("90s", settings.time_text(90e6))
    assert.equal("1h", settings.time_text(3600e6))
    assert.equal("365d", settings.time_text(365 * 86400e6))
    assert.equal("2ms", settings.time_text(2000))
    assert.equal("0", settings.time_text(0))
  end)
end)

describe("a size", function()
  local row = { name = "s", type = "BYTES", min = 0, max = 2 ^ 40 }

  it("is a number of bytes or a number with a unit", function()
    for text, bytes in pairs { ["64kB"] = 65536, ["1MB"] = 1048576, ["2 gb"] = 2 ^ 31, ["7"] = 7,
      ["0.5kB"] = 512 } do
      assert.equal(bytes, settings.parse(row, text))
    end
    assert.is_nil((settings.parse(row, "1.0001kB")))
    assert.is_nil((settings.parse(row, "5 bananas")))
  end)
end)

describe("a number or a flag", function()
  it("may come as text, as env() gives it", function()
    assert.equal(50, settings.parse({ name = "n", type = "INT", min = 1, max = 60 }, "50"))
    assert.is_true(settings.parse({ type = "BOOL" }, "on"))
    assert.is_false(settings.parse({ type = "BOOL" }, "false"))
    assert.is_nil((settings.parse({ type = "BOOL" }, "yes")))
    assert.is_nil((settings.parse({ name = "n", type = "INT", min = 1, max = 60 }, "61")))
    assert.is_nil((settings.parse({ name = "n", type = "INT", min = 1, max = 2 ^ 60 }, 2 ^ 53)))
  end)
end)

describe("names", function()
  it("have one meaning each", function()
    local seen = {}
    for name, aliases in pairs(settings.aliases.pool) do
      for _, alias in ipairs(aliases) do
        assert.is_nil(seen[alias], alias)
        assert.is_nil(settings.aliases.pool[alias], alias)
        seen[alias] = name
      end
    end
    for _, row in ipairs(rows()) do
      assert.is_nil(seen[row.name], row.name)
    end
  end)

  it("have aliases of settings that exist", function()
    local known = { target = true }
    for _, row in ipairs(rows()) do
      known[row.name] = row.scope == "pool" or nil
    end
    for name in pairs(settings.aliases.pool) do
      assert.is_true(known[name], name)
    end
  end)

  it("are guessed from a near one only", function()
    local names = { max_size = 1, min_size = 1, class_size = 1, mode = 1 }
    assert.equal("max_size", settings.nearest("max_szie", names))
    assert.equal("max_size", settings.nearest("MAX_SIZE", names))
    assert.equal("mode", settings.nearest("mod", names))
    assert.is_nil(settings.nearest("completely_else", names))
    assert.is_nil(settings.nearest(3, names))
    assert.is_nil(settings.nearest(("x"):rep(1000), names))
  end)
end)

describe("the line of a key", function()
  local text = [=[
-- max_size = 1 in a comment is no key
local note = "max_size = 2 in a string is none" --[[ nor
max_size = 3 ]]
local big = { max_size = 9,
  tenant = { from = [[a
b]] } }
return {
  listen = { "a:1",
    "b:2" },
  pools = {
    ["*"] = { max_size = 5 },
    app = big, other = {
      max_size = 1 == 2 and 3 or 4,
      target = make { max_size = "x", (f("a", { b = 1 })) },
      min_size = 2,
    },
  },
}]=]
  local index = locate.index(text)

  it("is found through tables, comments and strings", function()
    assert.equal(11, locate.line(index, { "pools", "*", "max_size" }))
    assert.equal(13, locate.line(index, { "pools", "other", "max_size" }))
    assert.equal(15, locate.line(index, { "pools", "other", "min_size" }))
    assert.equal(9, locate.line(index, { "listen", 2 }))
    assert.equal(8, locate.line(index, { "listen" }))
  end)

  it("is found in a table that stands elsewhere when only one place fits", function()
    assert.equal(5, locate.line(index, { "pools", "app", "tenant" }))
    assert.is_nil(locate.line(index, { "pools", "app", "max_size" }))
  end)

  it("is that of the table around a key that is not written", function()
    assert.equal(12, locate.line(index, { "pools", "other", "initial_size" }))
    assert.is_nil(locate.line(index, { "auth" }))
  end)

  it("never fails on text that is no Lua", function()
    math.randomseed(7)
    local pieces = { "{", "}", "(", ")", "[", "]", "=", ",", "'", '"', "--[[", "]]", "[==[", "a",
      "1", "\n", "return ", "local ", "\\", ".", "\0" }
    for _ = 1, 2000 do
      local parts = {}
      for i = 1, 30 do
        parts[i] = pieces[math.random(#pieces)]
      end
      locate.line(locate.index(table.concat(parts)), { "a", 1, "a" })
    end
  end)
end)

describe("an address", function()
  it("is host and port, or a folder", function()
    assert.same({ is_unix = false, host = "::1", port = 6432, text = "[::1]:6432" },
      address.parse "[::1]:6432")
    assert.same({ is_unix = true, host = "/run/a:b", port = 7, text = "unix:/run/a:b:7" },
      address.parse "unix:/run/a:b:7")
    for _, bad in ipairs { "", "6432", ":6432", "a:", "a:0", "a:65536", "a:6432x", "unix:",
      "unix::7", "unix:/a:0", "unix:/a:99999", "[::1]", "[::1]6432", "::1:6432", "a b:6432",
      "a:-1", "a:1e3" } do
      assert.is_nil((address.parse(bad)), bad)
    end
  end)

  it("is loopback when nobody else can reach it", function()
    for text, want in pairs { ["127.0.0.1:1"] = true, ["127.9.9.9:1"] = true,
      ["localhost:1"] = true, ["[::1]:1"] = true, ["unix:/a"] = true, ["*:1"] = false,
      ["0.0.0.0:1"] = false,
      ["127.0.0.1.example.org:1"] = false, ["10.0.0.1:1"] = false, ["[::]:1"] = false } do
      assert.equal(want, address.is_loopback(address.parse(text)), text)
    end
  end)
end)

describe("lua/README.md", function()
  local readme = read "lua/README.md"

  it("lists every setting as settings.def has it", function()
    assert.is_true(#rows() > 30)
    for _, row in ipairs(rows()) do
      local line = ("| `%s` | %s | %s |"):format(row.name, settings.default_text(row), row.help)
      assert.is_truthy(readme:find(line, 1, true), line)
    end
  end)

  it("lists every other spelling", function()
    for _, scope in pairs(settings.aliases) do
      for _, aliases in pairs(scope) do
        for _, alias in ipairs(aliases) do
          assert.is_truthy(readme:find("`" .. alias .. "`", 1, true), alias)
        end
      end
    end
  end)
end)
