-- route/user: each database user to the partition that is made for it.
--
-- partitions = { reports = { type = "user", match = "bi" } } takes the user bi; without `match` the
-- partition's own name is compared. A user without a partition goes to `fallback`;
-- fallback = "" has no opinion, so that the next policy decides.
---@type poolrt.RoutePolicy
local M = {
  name = "user",
  version = "1.0.0",
  api = 1,
  description = "each user to its own partition",
  config = {
    fallback = { type = "string", default = "default", help = "where users without one go" },
    map = { type = "map", of = "string", default = {}, help = "more users: user = partition" },
  },
  cache = { route = "session" },
  -- when this policy cannot answer, nobody may end up in another user's partition
  on_fail = { route = "reject" },
}

local partition_of, fallback

---@param ctx poolrt.Context
function M.init(ctx)
  partition_of = {}
  for _, partition in ipairs(ctx.partitions) do
    if partition.type == "user" then
      partition_of[partition.match or partition.name] = partition.name
    end
  end
  for user, partition in pairs(ctx.config.map) do
    partition_of[user] = partition
  end
  fallback = ctx.config.fallback ~= "" and ctx.config.fallback or nil
end

---@param req poolrt.Request
---@return string? partition
function M.route(req)
  return partition_of[req.user] or fallback
end

return M
