---@meta poolrt
-- meta.lua - the types of policies, for editors (LuaCATS). Nothing runs this file.

---The client's request, valid during the call only. Strings are exactly as the client sent them.
---@class poolrt.Request
---@field tenant string        "" when the pool has no rule for tenants
---@field user string          the name it logged in with
---@field database string
---@field application string   application_name; the client may say anything here
---@field client_addr string
---@field priority "low"|"normal"|"high"|"critical"
---@field rank number          the same as 0..3, to compare
---@field session number       unique among the clients of this process
---@field now number           seconds, monotonic
---@field waited number        seconds in the queue so far

---The partition that the request goes to, and its pool, valid during the call only.
---@class poolrt.Partition
---@field name string
---@field active number        connections in use
---@field waiting number       requests in its queue
---@field max number           limit of active, 0: none
---@field min number           reserved for it
---@field pool_active number
---@field pool_idle number
---@field pool_total number
---@field pool_max number
---@field pool_waiting number

---@class poolrt.PartitionConfig
---@field name string
---@field type "tenant"|"user"|"application"|"service"|"resource_group"
---@field match string         what routes here; the name when the configuration does not say
---@field max_connections number 0: only the pool's limit
---@field min_connections number
---@field priority? "low"|"normal"|"high"|"critical"

---@class poolrt.Context
---@field config table         the settings, checked against the policy's `config`
---@field worker number        0..workers-1
---@field pool string          name of the pool in the configuration
---@field partitions poolrt.PartitionConfig[]

---@class poolrt.Setting
---@field type "string"|"number"|"integer"|"boolean"|"duration"|"list"|"map"
---@field default? any
---@field required? boolean
---@field min? number|string
---@field max? number|string
---@field values? any[]        the values that are allowed
---@field of? string           type of the members of a list or map
---@field help? string

---@alias poolrt.Scope "session"|"transaction"|"statement"
---@alias poolrt.OnFail "default"|"reject"|"last"

---@class poolrt.Policy
---@field name string
---@field version string
---@field api 1
---@field description? string
---@field config? table<string, poolrt.Setting>
---@field cache? { route: poolrt.Scope }
---@field on_fail? { route?: poolrt.OnFail, admit?: poolrt.OnFail }
---@field init? fun(ctx: poolrt.Context)
---@field selftest? fun(fake: poolrt.Fake)
---@field export_state? fun(): table?
---@field import_state? fun(state: table, from_version: string)

---nil: the next policy decides. A name [, scope]. false [, reason [, sqlstate]]: refused.
---@class poolrt.RoutePolicy: poolrt.Policy
---@field route string | fun(req: poolrt.Request): (string|false|nil), string?, string?

---nil, true: admitted. false [, reason [, retry_after [, sqlstate]]]: refused.
---@class poolrt.AdmitPolicy: poolrt.Policy
---@field admit boolean | poolrt.Admit
---@alias poolrt.Admit fun(req: poolrt.Request, part: poolrt.Partition): boolean?, string?, number?

---@class poolrt.Fake
---@field req fun(fields?: table): poolrt.Request
---@field part fun(fields?: table): poolrt.Partition

---@class poolrt.Host
local poolrt = {}
-- luacheck: no unused args

---One line in poolrt's log; at most one per ten seconds and policy.
---@param text string
function poolrt.log(text) end

---@param text string
function poolrt.warn(text) end

---@return number seconds monotonic, as req.now
function poolrt.now() end

---The same number on every worker and after every restart, 0 .. 2^53-1.
---@param text string
---@return number
function poolrt.hash(text) end

---math.random, seeded differently in each state.
function poolrt.random(...) end

return poolrt
