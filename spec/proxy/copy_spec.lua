-- copy_spec.lua - what is big arrives whole: COPY both ways, a result of 96 MB in rows, and one of
-- 96 MB in a single message; in clear and with TLS on either side.
local rig = require "proxy.rig"
local sys = require "support.os"

local ROWS = 200000
local OUT = "copy (select * from big order by id) to stdout"
local RESULTS = {
  ["many rows"] = "select g, repeat(md5(g::text), 32) from generate_series(1, 96000) g",
  ["one row"] = "select string_agg(repeat(md5(g::text), 1024), '') from generate_series(1, 3072) g",
}

--- The sum of what psql prints for a query on that connection.
local function sum(conninfo, sql)
  local line = ("psql -X -v ON_ERROR_STOP=1 -qAt %s -c %s | md5sum"):format(sys.quote(conninfo),
    sys.quote(sql))
  return sys.must("timeout 120 sh -c " .. sys.quote(line))
end

local wanted = {}
local function direct(sql)
  wanted[sql] = wanted[sql] or sum(rig.direct(), sql)
  return wanted[sql]
end

local function copies_out(conninfo)
  local got = sum(conninfo, OUT)
  assert.equal(direct(OUT), got)
end

local function copies_in(conninfo)
  rig.sql("truncate copied", "app")
  sys.must(("timeout 120 psql -X -v ON_ERROR_STOP=1 -qAt %s -c %s | timeout 120 psql -X -q "
    .. "-v ON_ERROR_STOP=1 %s -c 'copy copied from stdin'"):format(sys.quote(rig.direct()),
    sys.quote(OUT), sys.quote(conninfo)))
  assert.equal(tostring(ROWS), rig.sql("select count(*) from copied", "app"))
  assert.equal(direct(OUT), sum(rig.direct(), OUT:gsub("big", "copied")))
end

local function has_tls(conninfo)
  return sys.must("psql -XqAt " .. sys.quote(conninfo)
    .. " -c 'select ssl from pg_stat_ssl where pid = pg_backend_pid()'")
end

--- Everything that is big, through `px`.
local function all_of_it(px, options)
  local to = px:conninfo "app" .. " " .. options
  copies_out(to)
  copies_in(to)
  for _, sql in pairs(RESULTS) do
    assert.equal(direct(sql), sum(to, sql))
  end
  px:assert_settled("app", 4)
end

local function tls_to_clients(cert, key)
  return ("tls = { client = { mode = 'allow', cert = '%s', key = '%s' } },"):format(cert, key)
end

describe("large transfers", function()
  local px

  setup(function()
    rig.server()
    rig.sql(("create table big as select g as id, md5(g::text) as sum, "
      .. "repeat(E'\\\\t\\\\\\\\ \\n', g %% 7) as text, null::int as nothing "
      .. "from generate_series(1, %d) g"):format(ROWS), "app")
    rig.sql("create table copied (like big)", "app")
  end)

  teardown(function()
    rig.sql("drop table big, copied", "app")
  end)

  after_each(function()
    px:stop()
  end)

  for _, mode in ipairs { "session", "statement" } do
    it("by COPY are whole in " .. mode .. " mode", function()
      px = rig.start { pools = { app = ("mode = %q, max_size = 4"):format(mode) } }
      copies_out(px:conninfo "app")
      copies_in(px:conninfo "app")
      px:assert_settled "app"
    end)
  end

  it("are whole in transaction mode", function()
    px = rig.start { pools = { app = "mode = 'transaction', max_size = 4" } }
    all_of_it(px, "sslmode=disable")
  end)

  it("are whole over TLS to the client", function()
    px = rig.start { pools = { app = "mode = 'transaction', max_size = 4" },
      top = tls_to_clients(sys.certificate()) }
    assert.equal("f", has_tls(px:conninfo "app" .. " sslmode=require"))
    all_of_it(px, "sslmode=require")
  end)

  it("are whole over TLS to the client and to the server", function()
    local cert, key = sys.certificate()
    rig.server_tls(cert, key)
    px = rig.start { pools = { app = "mode = 'transaction', max_size = 4" }, sslmode = "require",
      top = tls_to_clients(cert, key) }
    assert.equal("t", has_tls(px:conninfo "app" .. " sslmode=require"))
    all_of_it(px, "sslmode=require")
  end)
end)
