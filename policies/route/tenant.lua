-- route/tenant: each tenant to the partition that is made for it.
--
-- partitions = { gold = { type = "tenant", match = "acme" } } takes the tenant acme; without
-- `match` the partition's own name is compared. A tenant without a partition goes to `fallback`;
-- fallback = "" has no opinion, so that the next policy decides.
---@type poolrt.RoutePolicy
local M = {
  name = "tenant",
  version = "1.0.0",
  api = 1,
  description = "each tenant to its own partition",
  config = {
    fallback = { type = "string", default = "default", help = "where tenants without one go" },
    map = { type = "map", of = "string", default = {}, help = "more tenants: tenant = partition" },
  },
  cache = { route = "session" },
  -- when this policy cannot answer, nobody may end up in another tenant's partition
  on_fail = { route = "reject" },
}

local partition_of, fallback

---@param ctx poolrt.Context
function M.init(ctx)
  partition_of = {}
  for _, partition in ipairs(ctx.partitions) do
    if partition.type == "tenant" then
      partition_of[partition.match or partition.name] = partition.name
    end
  end
  for tenant, partition in pairs(ctx.config.map) do
    partition_of[tenant] = partition
  end
  fallback = ctx.config.fallback ~= "" and ctx.config.fallback or nil
end

---@param req poolrt.Request
---@return string? partition
function M.route(req)
  return partition_of[req.tenant] or fallback
end

return M
