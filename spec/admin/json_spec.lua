local ffi = require "ffi"
local json = require "poolrt.json"

describe("json", function()
  it("writes whole numbers exactly", function()
    assert.equal("0", json.encode(0))
    assert.equal("0", json.encode(-0.0))
    assert.equal("-7", json.encode(-7))
    assert.equal("9007199254740991", json.encode(2 ^ 53 - 1))
    assert.equal("123456789012345678", json.encode(123456789012345678LL))
    assert.equal("-9223372036854775808", json.encode(ffi.new("int64_t", -2 ^ 63)))
    assert.equal("18446744073709551615", json.encode(18446744073709551615ULL))
  end)

  it("writes fractions with the fewest digits that read back", function()
    assert.equal("0.1", json.encode(0.1))
    assert.equal("0.95", json.encode(0.95))
    assert.equal("1e+300", json.encode(1e300))
    for _, v in ipairs { 1 / 3, 2 ^ 0.5, 5e-324, 1.7976931348623157e308, -1e-7 } do
      assert.equal(v, tonumber(json.encode(v)))
    end
  end)

  it("writes null for what is not a number", function()
    assert.equal('[null,null,null]', json.encode { 0 / 0, math.huge, -math.huge })
    assert.equal('{"a":null}', json.encode { a = json.null })
  end)

  it("tells empty lists from empty objects", function()
    assert.equal("[]", json.encode(json.array()))
    assert.equal("{}", json.encode {})
    assert.equal('{"a":[[]],"b":{}}', json.encode { a = { json.array {} }, b = {} })
  end)

  it("sorts keys and accepts numbers as keys", function()
    assert.equal('{"a":1,"b":2,"c":3}', json.encode { c = 3, a = 1, b = 2 })
    assert.equal('{"0":"x","14":"y"}', json.encode { [0] = "x", [14] = "y" })
  end)

  it("escapes what JSON does not allow in a string", function()
    assert.equal([["a\"b\\c\n\r\t\b\f\u0000\u001f\u007f/"]],
      json.encode "a\"b\\c\n\r\t\b\f\0\31\127/")
  end)

  it("keeps UTF-8 and replaces what is none", function()
    local good = "gr\195\188n \226\130\172 \240\159\144\152"
    assert.equal('"' .. good .. '"', json.encode(good))
    local bad = "\239\191\189"
    for text, n in pairs {
      ["\255"] = 1, ["\195"] = 1, ["\192\175"] = 2, ["\224\128\128"] = 3, ["\237\160\128"] = 3,
      ["\244\144\128\128"] = 4, ["\226\130"] = 2, ["\128"] = 1, ["\245\128\128\128"] = 4,
    } do
      assert.equal('"<' .. bad:rep(n) .. '>"', json.encode("<" .. text .. ">"))
    end
    assert.equal('{"' .. bad .. '":1}', json.encode { ["\254"] = 1 })
  end)

  it("refuses what JSON has no word for", function()
    local cycle = {}
    cycle.self = cycle
    for _, v in ipairs {
      cycle, { f = print }, { [true] = 1 }, { 1, 2, x = 3 }, { [1] = 1, [3] = 3 },
      { ["1"] = 1, [1.5] = 1, [2] = 1, ["2"] = 1 }, { ffi.new "char[3]" }, json.array { x = 1 },
    } do
      assert.is_false((pcall(json.encode, v)))
    end
  end)

  it("nests to 64 and not further", function()
    local function nested(n)
      local t = {}
      for _ = 2, n do
        t = { t }
      end
      return t
    end
    assert.equal(("["):rep(63) .. "{}" .. ("]"):rep(63), json.encode(nested(64)))
    assert.is_false((pcall(json.encode, nested(65))))
  end)

  it("decodes what it wrote", function()
    local value = { a = { 1, 2.5, "x\ny" }, b = true, c = json.null, d = { e = "\195\188" } }
    assert.same(value, json.decode(json.encode(value)))
  end)

  it("says what it cannot decode", function()
    for _, text in ipairs {
      "", "{", "[1,]", "{a:1}", "nan", "[Infinity]", "1 2", ("["):rep(65) .. ("]"):rep(65),
    } do
      local v, code, message = json.decode(text)
      assert.is_nil(v)
      assert.equal("bad_json", code)
      assert.is_string(message)
    end
  end)
end)
