std = "luajit"
max_line_length = 100
files["spec"] = { std = "+busted" }
files["examples"] = { read_globals = { "env", "file", "postgres" } }
