-- layers_spec.lua - who may include whom. The table is the one of core/README.md.
local ROOMS = {
  base = { rooms = {}, libs = {} },
  pg = { rooms = { "base" }, libs = { "openssl/" } },
  pool = { rooms = { "base" }, libs = {} },
  luahost = { rooms = { "base", "pool" }, libs = { "lua.h", "lauxlib.h", "lualib.h", "luajit.h" } },
  link = { rooms = { "base", "pg" }, libs = { "uv.h", "libpq-fe.h", "openssl/" } },
  proxy = { rooms = { "base", "pg", "pool", "link" }, libs = { "openssl/", "sys/epoll.h" } },
  admin = {
    rooms = { "base", "pg", "pool", "luahost", "proxy" },
    libs = { "uv.h", "microhttpd.h", "lua.h", "lauxlib.h", "lualib.h", "openssl/" },
  },
}
-- what another room may include of a room
local DOORS = {
  pg = { ["pg/pg.h"] = true },
  pool = { ["pool/pool.h"] = true, ["pool/ops.h"] = true },
  luahost = { ["luahost/luahost.h"] = true },
  link = { ["link/link.h"] = true },
  proxy = { ["proxy/proxy.h"] = true },
  admin = { ["admin/admin.h"] = true },
}
local GUARDED = { "uv.h", "libpq-fe.h", "openssl/", "lua.h", "lauxlib.h", "lualib.h", "luajit.h",
  "microhttpd.h", "sys/epoll.h" }

local function lines_of(command)
  local list = {}
  for line in assert(io.popen(command)):lines() do
    list[#list + 1] = line
  end
  return list
end

local function contains(list, value)
  for _, v in ipairs(list) do
    if v == value then return true end
  end
  return false
end

local function guarded_library(header)
  for _, lib in ipairs(GUARDED) do
    if header == lib or (lib:sub(-1) == "/" and header:sub(1, #lib) == lib) then return lib end
  end
end

local function check_own(room, file, header, bad)
  local to = header:match "^([%w_]+)/"
  if not to or to == room then return end
  if not contains(ROOMS[room].rooms, to) then
    bad[#bad + 1] = file .. " includes " .. header .. ": " .. room .. " may not use " .. to
  elseif DOORS[to] and not DOORS[to][header] then
    bad[#bad + 1] = file .. " includes " .. header .. ": not the door of " .. to
  end
end

describe("layers", function()
  it("has every room of core in the table", function()
    for _, dir in ipairs(lines_of "ls -d core/*/") do
      local room = dir:match "core/([%w_]+)/"
      assert(ROOMS[room], room .. " is in no layer")
    end
  end)

  for room in pairs(ROOMS) do
    it("keeps " .. room .. " to its own includes", function()
      local bad = {}
      local files = "ls core/" .. room .. "/*.c core/" .. room .. "/*.h 2>/dev/null"
      for _, file in ipairs(lines_of(files)) do
        for line in io.lines(file) do
          local own = line:match '^%s*#%s*include%s+"([^"]+)"'
          local lib = line:match "^%s*#%s*include%s+<([^>]+)>"
          if own then check_own(room, file, own, bad) end
          local guarded = lib and guarded_library(lib)
          if guarded and not contains(ROOMS[room].libs, guarded) then
            bad[#bad + 1] = file .. " includes <" .. lib .. ">"
          end
        end
      end
      assert(#bad == 0, table.concat(bad, "\n"))
    end)
  end
end)
