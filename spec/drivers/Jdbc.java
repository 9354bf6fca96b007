// Jdbc.java - what applications do with pgjdbc, over a dozen connections at once.
//
// Prints one line for each result that an application sees, without what differs between two runs;
// the spec compares a run past poolrt with one through it. First all clients take turns step by
// step, then each does its own work in a thread.
//
// usage: java -cp DIR:postgresql.jar Jdbc HOST PORT USER PASSWORD DATABASE CERTIFICATE
//        PREPARE_THRESHOLD REWRITE (true: batches of inserts become one)

import java.io.StringReader;
import java.io.StringWriter;
import java.sql.BatchUpdateException;
import java.sql.CallableStatement;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.sql.Types;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicReference;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

public class Jdbc {
    static final int CLIENTS = 12;
    static String[] args;

    static Connection connect(String name) throws SQLException {
        Properties p = new Properties();
        p.put("user", args[2]);
        p.put("password", args[3]);
        p.put("sslmode", "verify-ca");
        p.put("sslrootcert", args[5]);
        p.put("gssEncMode", "disable");
        p.put("autosave", "always");
        p.put("prepareThreshold", args[6]);
        p.put("reWriteBatchedInserts", args[7]);
        p.put("ApplicationName", name);
        p.put("loginTimeout", "20");
        return DriverManager.getConnection(
            "jdbc:postgresql://" + args[0] + ":" + args[1] + "/" + args[4], p);
    }

    /** One connection, its statements, and the lines that it has to tell. */
    static class Client {
        final int number;
        final Connection db;
        final List<String> lines = new ArrayList<>();
        final PreparedStatement add, divide, shared;
        PreparedStatement own;
        long seed;

        Client(int number) throws SQLException {
            this.number = number;
            seed = number * 32452843L + 7;
            db = connect("client" + number);
            // kept for the whole run, as a connection pool's statement cache does
            add = db.prepareStatement("select ?::int + ?::int");
            divide = db.prepareStatement("select 1 / ?::int");
            shared = db.prepareStatement("select * from shared where id = ?");
        }

        void tell(String what, Object result) {
            lines.add(number + " " + what + ": " + result);
        }

        int random(int below) {
            seed = (seed * 1103515245 + 12345) & 0x7fffffff;
            return (int) (seed >> 8) % below;
        }

        /** Rows or counts of a prepared statement, or its SQLSTATE. */
        void run(String what, PreparedStatement s, Object... values) {
            attempt(what, () -> {
                for (int i = 0; i < values.length; i++) {
                    s.setObject(i + 1, values[i]);
                }
                return results(s, s.execute());
            });
        }

        /** Prepares, runs and closes; the driver keeps statements by their text. */
        void once(String what, String sql, Object... values) {
            attempt(what, () -> {
                try (PreparedStatement s = db.prepareStatement(sql)) {
                    for (int i = 0; i < values.length; i++) {
                        s.setObject(i + 1, values[i]);
                    }
                    return results(s, s.execute());
                }
            });
        }

        void simple(String what, String sql) {
            attempt(what, () -> {
                try (Statement s = db.createStatement()) {
                    return results(s, s.execute(sql));
                }
            });
        }

        void attempt(String what, Action action) {
            try {
                tell(what, action.run());
            } catch (SQLException e) {
                tell(what, failure(e));
            } catch (Exception e) {
                tell(what, e);
            }
        }
    }

    interface Action {
        Object run() throws Exception;
    }

    interface Step {
        void run(Client c) throws Exception;
    }

    static String failure(SQLException e) {
        String counts = e instanceof BatchUpdateException
            ? " " + Arrays.toString(((BatchUpdateException) e).getUpdateCounts()) : "";
        return "error " + e.getSQLState() + counts;
    }

    static String rows(ResultSet r) throws SQLException {
        ResultSetMetaData m = r.getMetaData();
        StringBuilder out = new StringBuilder();
        while (r.next()) {
            out.append("(");
            for (int i = 1; i <= m.getColumnCount(); i++) {
                out.append(i > 1 ? "," : "").append(m.getColumnTypeName(i)).append(" ")
                    .append(r.getString(i));
            }
            out.append(")");
        }
        return out.toString();
    }

    static String results(Statement s, boolean hasRows) throws SQLException {
        StringBuilder out = new StringBuilder();
        for (;;) {
            int n = hasRows ? 0 : s.getUpdateCount();
            if (!hasRows && n == -1) {
                return out.toString();
            }
            out.append(hasRows ? rows(s.getResultSet()) : n).append(";");
            hasRows = s.getMoreResults();
        }
    }

    // ---- steps: in turns ----

    static void tables(Client c) {
        c.simple("table", "create table j" + c.number + " (id int primary key, v text)");
        c.simple("rows", "insert into j" + c.number + " select g, 'v' || g from generate_series(1, 40) g");
    }

    static void prepared(Client c) throws SQLException {
        c.own = c.db.prepareStatement("select v from j" + c.number + " where id = ?");
        for (int i = 0; i < 8; i++) {
            c.run("add", c.add, i, c.number);
            c.run("own", c.own, i);
            c.once("once", "select ?::text || 'x', ?::bigint", "a" + i, (long) i);
        }
        c.once("types", "select ?::timestamptz, ?::numeric, ?::bool, ?::uuid, ?::float8, ?::bytea",
            "2020-01-02 03:04:05+00", new java.math.BigDecimal("1.50"), true,
            new java.util.UUID(1, 2), 0.1, new byte[] {1, -1});
        c.attempt("array", () -> {
            try (PreparedStatement s = c.db.prepareStatement("select id from j" + c.number
                + " where id = any(?) order by 1")) {
                s.setArray(1, c.db.createArrayOf("int4", new Object[] {1, 2, 99}));
                return rows(s.executeQuery());
            }
        });
        c.attempt("described", () -> {
            try (PreparedStatement s = c.db.prepareStatement("select id, v from j" + c.number
                + " where v = ?")) {
                return s.getMetaData().getColumnName(2) + " "
                    + s.getParameterMetaData().getParameterTypeName(1);
            }
        });
    }

    static void distinct(Client c) {
        // more than preparedStatementCacheQueries for the first: the driver closes the eldest
        int n = c.number < 1 ? 300 : 25;
        for (int i = 0; i < n; i++) {
            c.once("distinct", "select ?::int * " + (i % 2 == 0 ? i : i * 100 + c.number), 2);
        }
        for (int i = 0; i < n; i += 5) {
            c.once("again", "select ?::int * " + (i % 2 == 0 ? i : i * 100 + c.number), 3);
        }
    }

    static void simpleQueries(Client c) {
        c.simple("several", "select 1; update j" + c.number + " set v = v where id < 3; select 'x'");
        c.simple("failing", "select 1; select 1 / 0; select 2");
        c.simple("empty", "");
        c.attempt("keys", () -> {
            try (PreparedStatement s = c.db.prepareStatement("insert into j" + c.number
                + " values (?, 'k')", Statement.RETURN_GENERATED_KEYS)) {
                s.setInt(1, 100);
                s.executeUpdate();
                return rows(s.getGeneratedKeys());
            }
        });
        c.attempt("call", () -> {
            try (CallableStatement s = c.db.prepareCall("{? = call upper(?)}")) {
                s.registerOutParameter(1, Types.VARCHAR);
                s.setString(2, "abc");
                s.execute();
                return s.getString(1);
            }
        });
    }

    static void failing(Client c) {
        c.simple("syntax", "selec 1");
        for (int by : new int[] {0, 1, 0, 1, 0}) {
            c.run("divide", c.divide, by);
        }
        c.once("no table", "select * from nowhere where id = ?", 1);
        c.once("no table", "select * from nowhere where id = ?", 1);
        c.once("double key", "insert into j" + c.number + " values (?, 'x')", 1);
    }

    static void transactions(Client c) throws SQLException {
        String table = "j" + c.number;
        c.db.setAutoCommit(false);
        c.once("in", "update " + table + " set v = ? where id = 2", "new");
        // autosave: each statement has a savepoint of the driver's, so the block goes on
        c.run("divide", c.divide, 0);
        c.run("goes on", c.add, 1, 1);
        Savepoint point = c.db.setSavepoint("mine");
        c.once("in", "delete from " + table + " where id < ?", 9);
        c.simple("fails", "select * from nowhere");
        c.once("left", "select count(*) from " + table);
        c.db.rollback(point);
        c.once("back", "select count(*) from " + table);
        c.db.releaseSavepoint(c.db.setSavepoint());
        c.db.commit();
        c.run("committed", c.own, 2);
        c.once("in", "delete from " + table);
        c.db.rollback();
        c.run("rolled back", c.own, 2);
        c.db.commit();
        c.db.setAutoCommit(true);
        c.db.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
        c.db.setReadOnly(true);
        c.db.setAutoCommit(false);
        c.once("level", "select current_setting('transaction_isolation'), "
            + "current_setting('transaction_read_only')");
        c.once("read only", "delete from " + table);
        c.db.commit();
        c.db.setReadOnly(false);
        c.db.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
        c.db.setAutoCommit(true);
        c.attempt("level", () -> c.db.getTransactionIsolation());
    }

    static void ownSchemaChange(Client c) throws SQLException {
        String table = "k" + c.number;
        c.simple("create", "create table " + table + " (id int); insert into " + table + " values (1)");
        try (PreparedStatement s = c.db.prepareStatement("select * from " + table + " where id = ?")) {
            for (int i = 0; i < 7; i++) {
                c.run("before", s, 1);
            }
            c.simple("column", "alter table " + table + " add column v text default 'new'");
            c.run("after", s, 1);
            c.run("after", s, 1);
            c.db.setAutoCommit(false);
            c.run("in block", s, 1);
            c.simple("type", "alter table " + table + " alter column id type bigint");
            c.run("after", s, 1); // back to the savepoint, prepared again: the driver does it
            c.run("after", s, 1L);
            c.db.commit();
            c.db.setAutoCommit(true);
            c.simple("drop", "drop table " + table);
            c.run("gone", s, 1);
            c.simple("create", "create table " + table + " (w text, id int)");
            c.run("anew", s, 1);
        }
    }

    static void batches(Client c) throws SQLException {
        String insert = "insert into j" + c.number + " (id, v) values (?, ?)";
        for (int[] ids : new int[][] {{200, 201, 202, 203, 204, 205, 206}, {210, 1, 211}, {}}) {
            c.attempt("batch", () -> batch(c, insert, ids));
        }
        c.db.setAutoCommit(false);
        c.attempt("in block", () -> batch(c, insert, new int[] {220, 221, 2, 222}));
        c.db.commit();
        c.attempt("in block", () -> batch(c, insert, new int[] {230, 231, 232}));
        c.db.commit();
        c.db.setAutoCommit(true);
        c.once("there", "select count(*), min(id), max(id) from j" + c.number + " where id >= 200");
        c.attempt("mixed", () -> {
            try (Statement s = c.db.createStatement()) {
                s.addBatch("update j" + c.number + " set v = 'b' where id < 4");
                s.addBatch("delete from j" + c.number + " where id > 1000");
                s.addBatch("insert into j" + c.number + " values (300, 'b')");
                return Arrays.toString(s.executeBatch());
            }
        });
        c.attempt("mixed", () -> {
            try (Statement s = c.db.createStatement()) {
                s.addBatch("update j" + c.number + " set v = 'b' where id < 4");
                s.addBatch("select 1 / 0");
                s.addBatch("insert into j" + c.number + " values (301, 'b')");
                return Arrays.toString(s.executeBatch());
            }
        });
        c.attempt("big", () -> {
            int[] ids = new int[400];
            for (int i = 0; i < ids.length; i++) {
                ids[i] = 10000 + i;
            }
            return batch(c, insert, ids).length();
        });
        c.once("there", "select count(*) from j" + c.number);
    }

    static String batch(Client c, String insert, int[] ids) throws SQLException {
        try (PreparedStatement s = c.db.prepareStatement(insert)) {
            for (int id : ids) {
                s.setInt(1, id);
                s.setString(2, "b" + id);
                s.addBatch();
            }
            return Arrays.toString(s.executeBatch());
        }
    }

    static void cursors(Client c) throws SQLException {
        c.db.setAutoCommit(false);
        for (int round = 0; round < 2; round++) {
            try (PreparedStatement s = c.db.prepareStatement("select g, 'x' from generate_series(1, ?) g")) {
                s.setFetchSize(4);
                s.setInt(1, 10);
                ResultSet r = s.executeQuery();
                for (int i = 0; i < 5; i++) {
                    r.next();
                }
                c.run("between", c.add, 1, 2); // with the portal open
                c.tell("fifth", r.getInt(1));
                c.tell("rest", rows(r));
            }
        }
        c.attempt("fails late", () -> {
            try (PreparedStatement s = c.db.prepareStatement("select 1 / (6 - g) from generate_series(1, ?) g")) {
                s.setFetchSize(4);
                s.setInt(1, 10);
                return rows(s.executeQuery());
            }
        });
        c.run("goes on", c.add, 3, 4);
        c.simple("declare", "declare cur cursor for select v from j" + c.number + " order by id");
        c.simple("fetch", "fetch 2 from cur");
        c.simple("move", "move 3 in cur");
        c.simple("fetch", "fetch 1 from cur");
        c.db.commit();
        c.db.setAutoCommit(true);
        c.attempt("outside", () -> {
            try (Statement s = c.db.createStatement()) {
                s.setFetchSize(4);
                return rows(s.executeQuery("select g from generate_series(1, 6) g"));
            }
        });
        c.attempt("updatable", () -> {
            try (Statement s = c.db.createStatement(ResultSet.TYPE_SCROLL_INSENSITIVE,
                ResultSet.CONCUR_UPDATABLE)) {
                ResultSet r = s.executeQuery("select id, v from j" + c.number + " where id = 3");
                r.next();
                r.updateString(2, "updated");
                r.updateRow();
                return r.getString(2);
            }
        });
        c.run("updated", c.own, 3);
    }

    static void copies(Client c) throws SQLException {
        CopyManager copy = c.db.unwrap(PGConnection.class).getCopyAPI();
        String table = "j" + c.number;
        c.attempt("in", () -> copy.copyIn("copy " + table + " from stdin",
            new StringReader("501\ta\n502\tb\n")));
        c.attempt("bad", () -> copy.copyIn("copy " + table + " from stdin",
            new StringReader("bad\n")));
        c.attempt("double", () -> copy.copyIn("copy " + table + " from stdin",
            new StringReader("1\tx\n")));
        c.attempt("out", () -> {
            StringWriter text = new StringWriter();
            copy.copyOut("copy (select id, v from " + table + " where id > 500 and id < 600 order by 1) "
                + "to stdout", text);
            return text.toString().replace("\n", "|");
        });
        c.attempt("not a copy", () -> copy.copyIn("select 1"));
        c.attempt("given up", () -> {
            var in = copy.copyIn("copy " + table + " from stdin");
            byte[] row = "503\tc\n".getBytes();
            in.writeToCopy(row, 0, row.length);
            in.cancelCopy();
            return in.isActive();
        });
        c.db.setAutoCommit(false);
        c.attempt("in block", () -> copy.copyIn("copy " + table + " (id) from stdin",
            new StringReader("504\n")));
        c.run("then", c.own, 504);
        c.db.rollback();
        c.db.setAutoCommit(true);
        c.run("gone", c.own, 504);
    }

    static void largeObjects(Client c) throws SQLException {
        c.db.setAutoCommit(false);
        c.attempt("large object", () -> {
            var api = c.db.unwrap(PGConnection.class).getLargeObjectAPI(); // fastpath calls
            long id = api.createLO();
            try (var object = api.open(id)) {
                object.write("hello".getBytes());
                object.seek(1);
                return new String(object.read(3));
            } finally {
                api.delete(id);
            }
        });
        c.db.commit();
        c.db.setAutoCommit(true);
    }

    static void settings(Client c) throws SQLException {
        c.db.setSchema("h" + c.number % 2);
        c.attempt("schema", () -> c.db.getSchema());
        c.db.setClientInfo("ApplicationName", "renamed" + c.number);
        c.simple("set", "set timezone to 'Etc/GMT+" + c.number + "'; set statement_timeout to " + (70000 + c.number));
        c.once("set", "select set_config('app.tenant', 'tenant" + c.number + "', false)");
        c.simple("set", "set session characteristics as transaction isolation level repeatable read");
    }

    static void settingsSeen(Client c) {
        for (int i = 0; i < 3; i++) {
            c.once("seen", "select current_setting('TimeZone'), current_setting('search_path'), "
                + "current_setting('statement_timeout'), current_setting('app.tenant', true), "
                + "current_setting('application_name'), current_setting('transaction_isolation')");
            c.once("by path", "select w from place where id = ?", 1);
        }
    }

    static void settingsChanged(Client c) throws SQLException {
        c.db.setAutoCommit(false);
        c.simple("set", "set search_path to h1; set local statement_timeout to 60000");
        settingsSeen(c);
        c.db.rollback();
        c.db.setAutoCommit(true);
        settingsSeen(c);
        c.simple("set", "set session characteristics as transaction isolation level read committed");
        c.simple("reset", c.number % 2 == 0 ? "reset search_path" : "reset timezone");
        if (c.number % 3 == 0) {
            c.simple("reset all", "reset all");
        }
        if (c.number % 3 == 1) {
            c.simple("discard", "discard all");
            c.run("after", c.add, 1, 2); // 26000 at first: the driver prepares again by itself
            c.run("after", c.add, 1, 3);
        }
    }

    static void timeouts(Client c) {
        if (c.number % 6 == 0) {
            c.attempt("too long", () -> {
                try (PreparedStatement s = c.db.prepareStatement("select pg_sleep(?)")) {
                    s.setQueryTimeout(1); // a cancel request by the driver's own timer
                    s.setDouble(1, 60);
                    return rows(s.executeQuery());
                }
            });
            c.run("after", c.add, 5, 5);
        }
    }

    // ---- steps of all together ----

    /** Another client changes a table under the prepared statements of all. */
    static void sharedSchemaChange(List<Client> clients) throws SQLException {
        for (String change : new String[] {"add column late int default 5",
            "alter column late type text", "drop column late"}) {
            for (int i = 0; i < 6; i++) {
                for (Client c : clients) {
                    c.run("shared", c.shared, 1);
                }
            }
            clients.get(2).simple("alter", "alter table shared " + change);
            for (Client c : clients) {
                c.run("changed", c.shared, 1);
                c.run("changed", c.shared, 1);
            }
        }
    }

    static void cancels(List<Client> clients) throws Exception {
        Client last = clients.get(clients.size() - 1);
        PreparedStatement watch = last.db.prepareStatement("select 1 from pg_stat_activity "
            + "where query = ? and wait_event = 'PgSleep' and datname = current_database()");
        for (Client c : clients.subList(0, 4)) {
            String text = "select pg_sleep(60) /* sleeper " + c.number + " */";
            try (PreparedStatement s = c.db.prepareStatement(text)) {
                AtomicReference<Object> told = new AtomicReference<>("no error");
                Thread sleeper = new Thread(() -> {
                    try {
                        s.executeQuery();
                    } catch (SQLException e) {
                        told.set(failure(e));
                    }
                });
                sleeper.start();
                watch.setString(1, text);
                for (int i = 0; i < 1000 && !watch.executeQuery().next(); i++) {
                    Thread.sleep(10);
                }
                s.cancel();
                sleeper.join();
                c.tell("cancelled", told.get());
            }
            c.run("goes on", c.add, c.number, 0);
        }
    }

    // ---- work: each for itself ----

    static void work(Client c) throws SQLException {
        String table = "public.l" + c.number;
        c.simple("create", "create table " + table + " (id int primary key, n int)");
        String add = "insert into " + table + " as w values (?, ?) on conflict (id) do update set n = w.n + 1";
        String sum = "select sum(n), count(*) from " + table;
        String insert = "insert into " + table + " (id, n) values (?, ?)";
        for (int i = 0; i < 120; i++) {
            int key = c.random(20);
            switch (c.random(8)) {
            case 0:
            case 1:
                c.once("w", add, key, i);
                break;
            case 2:
                c.once("w", sum);
                break;
            case 3:
                c.once("w", "insert into " + table + " values (?, 0)", key);
                break;
            case 4:
                c.once("w", "select ?::int + " + key * 3, i);
                break;
            case 5:
                c.attempt("w", () -> {
                    try (PreparedStatement s = c.db.prepareStatement(insert)) {
                        for (int k = 0; k < 3; k++) {
                            s.setInt(1, 20 + key + k);
                            s.setInt(2, k);
                            s.addBatch();
                        }
                        return Arrays.toString(s.executeBatch());
                    }
                });
                break;
            case 6:
                c.db.setAutoCommit(false);
                c.once("w", "insert into " + table + " values (?, 0)", key);
                c.once("w", sum);
                if (key % 2 == 0) {
                    c.db.commit();
                } else {
                    c.db.rollback();
                }
                c.db.setAutoCommit(true);
                break;
            default:
                c.simple("w", "set search_path to h" + key % 2 + ", public");
                c.once("w", "select w from place where id = ?", 1);
            }
        }
    }

    public static void main(String[] given) throws Exception {
        args = given;
        List<Client> clients = new ArrayList<>();
        try (Connection owner = connect("owner"); Statement s = owner.createStatement()) {
            for (int i = 0; i < 2; i++) {
                s.execute("create schema h" + i + "; create table h" + i + ".place (id int, w text); "
                    + "insert into h" + i + ".place values (1, 'in h" + i + "')");
            }
            s.execute("create table shared (id int); insert into shared values (1)");
        }
        for (int i = 0; i < CLIENTS; i++) {
            clients.add(new Client(i));
        }
        Step[] steps = {Jdbc::tables, Jdbc::prepared, Jdbc::distinct, Jdbc::simpleQueries,
            Jdbc::failing, Jdbc::transactions, Jdbc::ownSchemaChange, Jdbc::batches, Jdbc::cursors,
            Jdbc::copies, Jdbc::largeObjects, Jdbc::settings, Jdbc::settingsSeen,
            Jdbc::settingsChanged, Jdbc::settingsSeen, Jdbc::timeouts};
        for (Step step : steps) {
            for (Client c : clients) {
                try {
                    step.run(c);
                } catch (SQLException e) {
                    c.tell("step", failure(e) + " " + e);
                }
            }
        }
        sharedSchemaChange(clients);
        cancels(clients);
        List<Thread> threads = new ArrayList<>();
        for (Client c : clients) {
            threads.add(new Thread(() -> c.attempt("work", () -> {
                work(c);
                return "done";
            })));
        }
        threads.forEach(Thread::start);
        for (Thread t : threads) {
            t.join();
        }
        for (Client c : clients) {
            c.db.close();
            c.lines.forEach(System.out::println);
        }
    }
}
