-- exposition.lua - a strict reader of the Prometheus text format 0.0.4, for specs.
-- parse(text) -> families by name: {type, help, samples = {{name, labels, value}}}; errors with the
-- line number on anything that the format does not allow, and on histograms that do not add up.
local M = {}

local function number(text)
  if text == "+Inf" then
    return math.huge
  elseif text == "NaN" then
    return 0 / 0
  end
  assert(text:find "^%-?%d+%.?%d*e?[%+%-]?%d*$", "not a number: " .. text)
  return assert(tonumber(text))
end

-- name="value",... ; only \\ \" and \n are escapes
local function labels_of(text)
  local labels, at = {}, 1
  while at <= #text do
    local name, start = text:match('^([%a_][%w_]*)="()', at)
    assert(name, "malformed label in {" .. text .. "}")
    assert(not labels[name], "label twice: " .. name)
    local value, i = {}, start
    while true do
      local c = text:sub(i, i)
      assert(c ~= "", "open label value")
      if c == '"' then
        break
      elseif c == "\\" then
        local plain = ({ ["\\"] = "\\", ['"'] = '"', n = "\n" })[text:sub(i + 1, i + 1)]
        value[#value + 1] = assert(plain, "unknown escape")
        i = i + 2
      else
        value[#value + 1] = c
        i = i + 1
      end
    end
    labels[name] = table.concat(value)
    at = i + 1
    if at <= #text then
      assert(text:sub(at, at) == "," and at < #text, "labels are not separated by one comma")
      at = at + 1
    end
  end
  return labels
end

local function series_key(labels, without)
  local parts = {}
  for name, value in pairs(labels) do
    if name ~= without then
      parts[#parts + 1] = name .. "=" .. value
    end
  end
  table.sort(parts)
  return table.concat(parts, "\0")
end

local function check_histogram(family)
  local series = {}
  for _, s in ipairs(family.samples) do
    local suffix = s.name:sub(#family.name + 1)
    local key = series_key(s.labels, "le")
    local h = series[key] or { last = -1, le = -math.huge }
    series[key] = h
    if suffix == "_bucket" then
      local le = number(assert(s.labels.le, "a bucket without le"))
      assert(le > h.le, family.name .. ": le does not rise")
      assert(s.value >= h.last, family.name .. ": buckets are not cumulative")
      h.le, h.last = le, s.value
    else
      h[suffix] = s.value
    end
  end
  for _, h in pairs(series) do
    assert(h.le == math.huge, family.name .. ": no +Inf bucket")
    assert(h._count == h.last, family.name .. ": count is not the +Inf bucket")
    assert(h._sum and h._sum >= 0, family.name .. ": no sum")
  end
end

local SUFFIXES = { histogram = { _bucket = true, _sum = true, _count = true } }

local function sample(family, line)
  local name, labels, value = line:match "^([%a_:][%w_:]*){(.*)} (%S+)$"
  if not name then
    name, value = line:match "^([%a_:][%w_:]*) (%S+)$"
    labels = ""
  end
  assert(name, "malformed sample: " .. line)
  assert(family and name:sub(1, #family.name) == family.name, "sample outside its family: " .. line)
  local suffix = name:sub(#family.name + 1)
  local allowed = SUFFIXES[family.type] or { [""] = true }
  assert(allowed[suffix], "wrong name for its type: " .. name)
  local s = { name = name, labels = labels_of(labels), value = number(value) }
  local key = name .. "\0" .. series_key(s.labels)
  assert(not family.seen[key], "series twice: " .. line)
  family.seen[key] = true
  assert(family.type == "gauge" or s.value >= 0, "negative counter: " .. line)
  table.insert(family.samples, s)
end

local function read_line(state, line)
  local name, rest = line:match "^# HELP ([%a_:][%w_:]*) (.+)$"
  if name then
    assert(not state.families[name], "family twice: " .. name)
    assert(not rest:gsub("\\[\\n]", ""):find "\\", "unknown escape in HELP")
    state.family = { name = name, help = rest, samples = {}, seen = {} }
    state.families[name] = state.family
    return
  end
  name, rest = line:match "^# TYPE ([%a_:][%w_:]*) (%a+)$"
  if name then
    local family = state.family
    assert(family and family.name == name and not family.type, "TYPE not right after its HELP")
    assert(rest == "gauge" or rest == "counter" or rest == "histogram", "unknown type " .. rest)
    family.type = rest
    return
  end
  assert(line:sub(1, 1) ~= "#", "unknown comment: " .. line)
  assert(state.family and state.family.type, "sample before TYPE: " .. line)
  sample(state.family, line)
end

function M.parse(text)
  assert(text:sub(-1) == "\n", "the last line does not end")
  local state, n = { families = {} }, 0
  for line in text:gmatch "([^\n]*)\n" do
    n = n + 1
    local ok, why = pcall(read_line, state, line)
    if not ok then
      error(("line %d: %s"):format(n, why), 2)
    end
  end
  for _, family in pairs(state.families) do
    if family.type == "histogram" then
      check_histogram(family)
    end
  end
  return state.families
end

--- Value of the sample of `name` whose labels are exactly `labels`; nil when there is none.
function M.value(families, name, labels)
  local key = series_key(labels or {})
  local family = families[name] or families[(name:gsub("_%a+$", ""))]
  for _, s in ipairs(family and family.samples or {}) do
    if s.name == name and series_key(s.labels) == key then
      return s.value
    end
  end
end

return M
