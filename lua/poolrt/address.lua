-- address.lua - where to listen: "host:port", "[::1]:6432", "*:6432", "unix:/dir" or
-- "unix:/dir:6433".
local M = {}

M.default_port = 6432
-- a socket's name, ".s.PGSQL.65535" included, has to fit the kernel's 108 bytes
M.max_socket_dir = 107 - #"/.s.PGSQL.65535"

local forms = '"host:port", "[::1]:6432", "*:6432", "unix:/dir" or "unix:/dir:6433"'

local function port_of(text)
  local port = text:find("^%d+$") and #text <= 5 and tonumber(text) or nil
  return port and port >= 1 and port <= 65535 and port or nil
end

local function unix(text)
  local dir, port = text:match("^unix:(.*):(%d+)$")
  dir = dir or text:sub(#"unix:" + 1)
  if dir == "" then
    return nil, "names no directory"
  end
  if port and not port_of(port) then
    return nil, "has a port outside 1 to 65535"
  end
  return { is_unix = true, host = dir, port = port and port_of(port), text = text }
end

local function tcp(text)
  local host, port = text:match("^%[([%x:.]+)%]:(%w+)$")
  if not host then
    host, port = text:match("^([^%[%]%s]+):(%w+)$")
    if not host then
      return nil, "must look like " .. forms
    end
    if host:find(":", 1, true) then
      return nil, "has an IPv6 address without brackets; write [" .. host .. "]:" .. port
    end
  end
  if not port_of(port) then
    return nil, "has a port outside 1 to 65535"
  end
  return { is_unix = false, host = host, port = port_of(port), text = text }
end

--- { is_unix, host, port, text }, port nil where "unix:/dir" leaves it open; or nil and what is
--- wrong.
function M.parse(text)
  if text:sub(1, 5) == "unix:" then
    return unix(text)
  end
  return tcp(text)
end

--- Reached only from this machine?
function M.is_loopback(address)
  local host = address.host
  return address.is_unix or host == "localhost" or host == "::1" or
    host:find("^127%.%d+%.%d+%.%d+$") ~= nil
end

--- Unix sockets without a port take that of the first TCP address, as their clients expect.
function M.fill_ports(list)
  local port = M.default_port
  for _, address in ipairs(list) do
    if not address.is_unix then
      port = address.port
      break
    end
  end
  for _, address in ipairs(list) do
    address.port = address.port or port
  end
end

return M
