-- minimal.lua - `make run`: one database, two tenants, a router in Lua, a PostgreSQL of its own.
--
-- A configuration is a Lua file that returns one table. It runs in a sandbox: besides Lua's own
-- functions on strings, tables and numbers there are env(), file() and postgres.embedded{}.
-- lua/README.md lists every setting; `poolrt check FILE` tests a file without starting anything.

-- env(NAME, default): `make run PORT=7000 ADMIN_PORT=7001` moves both ports.
local port = env("PORT", "6432")
local admin_port = env("ADMIN_PORT", "8080")

-- The users of this demonstration. A real configuration reads secrets from files with
-- file "secrets/acme", or holds verifiers ("SCRAM-SHA-256$...") where the pool logs in to the
-- server as a user of its own.
local users = { acme = "demo", globex = "demo" }

-- A PostgreSQL that poolrt starts, stops and restarts itself, reachable only over a Unix socket.
-- Its data directory is made once and kept; one for each port, so that two copies run side by side.
-- With a server of your own, write instead:  target = "host=db1 port=5432 dbname=app"
local pg = postgres.embedded {
  dir = "../build/data/pg-" .. port, -- relative names start from the folder of this file
  database = "app",
  users = users,
}

return {
  -- Only this machine can connect. "*:6432" listens everywhere, "unix:/run/poolrt" on a socket.
  listen = { "127.0.0.1:" .. port },

  -- REST and metrics. The token is a demonstration: anybody who reads this file knows it, and
  -- poolrt refuses to listen outside loopback without one.
  admin = { listen = "127.0.0.1:" .. admin_port, token = "demo" },

  -- Who may log in, and how they prove who they are.
  auth = { type = "scram-sha-256", users = users },

  pools = {
    -- The key is the database name that clients ask for: psql "host=127.0.0.1 dbname=app ..."
    app = {
      target = pg,

      -- A client keeps its server connection for one transaction, then others may have it.
      mode = "transaction",
      max_size = 20, -- server connections, all users together

      -- The tenant of a client is its user name. Another way: { from = "user", pattern = "*_app" }
      -- makes the tenant acme of the user acme_app.
      tenant = { from = "user" },

      -- policies/route/tenant.lua decides to which partition a client belongs. Edit it while poolrt
      -- runs: the next transaction already follows the new text.
      policies = { "route/tenant" },

      -- A partition is a share of the pool: acme can never starve globex.
      partitions = {
        acme = { type = "tenant", max_connections = 12, min_connections = 2 },
        globex = { type = "tenant", max_connections = 8, min_connections = 2 },
      },
    },
  },
}
