-- holders.lua - two clients that keep both servers of a pool busy between them, so that a spec says
-- which of the two is free for the client that it looks at.
local M = {}
local Holders = {}
Holders.__index = Holders

local function hold(c)
  local words = c:ask "begin"
  assert(words == "C:BEGIN Z:T", words)
end

--- For a pool of two servers that nobody uses now; both are held then.
function M.new(px, pool)
  local self = setmetatable({ px:login(pool), px:login(pool) }, Holders)
  hold(self[1])
  hold(self[2])
  self.pids = {}
  for i = 1, 2 do
    self.pids[i] = select(2, self[i]:ask "select pg_backend_pid()")[1]
  end
  assert(self.pids[1] ~= self.pids[2])
  return self
end

--- From now on server i (1, 2) is the free one. Whoever used the other must be through with it.
function Holders:free(i)
  if self.now == i then
    return
  elseif self.now then
    hold(self[self.now])
  end
  local words = self[i]:ask "commit"
  assert(words == "C:COMMIT Z:I", words)
  self.now = i
end

--- The other one than now.
function Holders:swap()
  self:free(self.now == 1 and 2 or 1)
end

function Holders:drop()
  self[1]:drop()
  self[2]:drop()
end

return M
