"""psycopg3.py - what applications do with psycopg 3, over a dozen connections at once.

Prints one line for each result that an application sees: rows, tags, SQLSTATEs, nothing that
differs between two runs. The spec compares the lines of a run past poolrt with those of one through
it. First all connections take turns step by step, so that any two consecutive uses of a server are
of different clients; then each runs its own work in a thread.

usage: psycopg3.py HOST PORT USER PASSWORD DATABASE CERTIFICATE PREPARE_THRESHOLD
"""
import logging
import sys
import threading
import time

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

HOST, PORT, USER, PASSWORD, DATABASE, CERTIFICATE, THRESHOLD = sys.argv[1:]
CLIENTS = 12
CONNINFO = psycopg.conninfo.make_conninfo(
    host=HOST, port=PORT, user=USER, password=PASSWORD, dbname=DATABASE,
    sslmode="verify-ca", sslrootcert=CERTIFICATE, gssencmode="disable", connect_timeout=20)


def connect(**more):
    return psycopg.connect(CONNINFO, autocommit=True, prepare_threshold=int(THRESHOLD),
                           row_factory=tuple_row, **more)


class Client:
    """One connection and the lines that it has to tell."""

    def __init__(self, number):
        self.number = number
        self.lines = []
        self.conn = connect(application_name="client%d" % number)
        self.seed = number * 7919 + 17

    def tell(self, what, result):
        self.lines.append("%d %s: %s" % (self.number, what, result))

    def random(self, below):
        self.seed = (self.seed * 1103515245 + 12345) % 2147483648
        return (self.seed >> 8) % below

    def run(self, what, text, params=None, **how):
        """Tells rows and tag, or the SQLSTATE."""
        self.attempt(what, lambda: show(self.conn.execute(text, params, **how)))

    def attempt(self, what, action):
        try:
            self.tell(what, action())
        except psycopg.Error as e:
            self.tell(what, failure(e))


def failure(e):
    return "%s %s" % (type(e).__name__, e.sqlstate)


def show(cur):
    return "%s %r" % (cur.statusmessage, cur.fetchall() if cur.description else None)


def forget(c):
    """A rollback makes the driver deallocate all that it has prepared."""
    with c.conn.transaction(force_rollback=True):
        pass


# ---- steps: in turns ----

def tables(c):
    c.run("table", "create table t%d (id int primary key, v text)" % c.number)
    c.run("rows", "insert into t%d select g, 'v' || g from generate_series(1, 50) g" % c.number)


def same_text(c):
    for i in range(8):
        c.run("same", "select %s::int + 1, %s::text", (i, "x%d" % c.number))


def forced(c):
    for i in range(2):
        c.run("forced", "select v from t%d where id = %%s" % c.number, (i + 1,), prepare=True)
    c.run("common", "select count(*) from pg_class where relname = %s", ("t3",), prepare=True)


def distinct(c):
    # more than prepared_max: the driver deallocates the eldest by SQL
    for i in range(230 if c.number < 2 else 25):
        c.run("distinct", "select %%s::int * %d" % (i if i % 2 else i * 100 + c.number), (3,),
              prepare=True)
    c.run("again", "select %s::int * 1", (3,), prepare=True)


def failing(c):
    c.run("syntax", "selec 1")
    c.run("zero", "select 1 / %s::int", (0,), prepare=True)
    c.run("zero again", "select 1 / %s::int", (0,), prepare=True)
    c.run("not zero", "select 1 / %s::int", (1,), prepare=True)
    c.run("no table", "select * from nowhere where id = %s", (1,), prepare=True)
    c.run("cast", "select %s::int", ("abc",), prepare=True)
    c.run("double key", "insert into t%d values (%%s, 'x')" % c.number, (1,), prepare=True)


def transactions(c):
    table = "t%d" % c.number
    try:
        with c.conn.transaction():
            c.run("in", "update %s set v = %%s where id = 2" % table, ("changed",), prepare=True)
            try:
                with c.conn.transaction():
                    c.run("inner", "delete from %s where id < %%s" % table, (10,), prepare=True)
                    c.conn.execute("select 1 / 0")
            except psycopg.Error as e:
                c.tell("inner", failure(e))
            c.run("left", "select count(*) from %s" % table, prepare=True)
            with c.conn.transaction():
                c.run("kept", "insert into %s values (100, 'kept')" % table)
            raise ValueError
    except ValueError:
        c.tell("undone", c.conn.info.transaction_status.name)
    c.run("as before", "select count(*), min(v) from %s where id = 2" % table, prepare=True)
    # ROLLBACK made the driver forget: DEALLOCATE ALL, and everything again
    c.run("after", "select v from %s where id = %%s" % table, (3,), prepare=True)


def failed_transaction(c):
    c.conn.autocommit = False
    c.run("fails", "select 1 / 0")
    c.run("ignored", "select 2")
    c.run("ignored", "select %s::int", (2,), prepare=True)
    c.conn.rollback()
    c.run("goes on", "select %s::int", (2,), prepare=True)
    c.conn.commit()
    c.conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    c.conn.read_only = True
    c.run("level", "select current_setting('transaction_isolation'), "
          "current_setting('transaction_read_only')")
    c.run("read only", "delete from t%d" % c.number)
    c.conn.rollback()
    c.conn.isolation_level = c.conn.read_only = None
    c.conn.autocommit = True


def own_schema_change(c):
    table = "d%d" % c.number
    text = "select * from %s where id = %%s" % table
    c.run("create", "create table %s (id int)" % table)
    c.run("insert", "insert into %s values (1)" % table)
    for i in range(2):
        c.run("before", text, (1,), prepare=True)
    c.run("column", "alter table %s add column v text default 'new'" % table)
    c.run("stale", text, (1,), prepare=True)
    forget(c)
    c.run("fresh", text, (1,), prepare=True)
    c.run("type", "alter table %s alter column id type bigint" % table)
    forget(c)
    c.run("fresh type", text, (1,), prepare=True)
    c.run("drop", "drop table %s" % table)
    c.run("gone", text, (1,), prepare=True)


def pipeline(c):
    with c.conn.pipeline():
        cursors = [c.conn.execute("select %s::int, 'p'", (i,), prepare=i % 2 == 0)
                   for i in range(12)]
        c.tell("pipeline", [cur.fetchone() for cur in cursors])
    with c.conn.pipeline() as p:
        first = c.conn.execute("insert into t%d values (200, 'p')" % c.number, prepare=True)
        p.sync()
        second = c.conn.execute("select v from t%d where id = 200" % c.number, prepare=True)
        c.tell("synced", [first.statusmessage, second.fetchall()])


def failing_pipeline(c):
    def run():
        with c.conn.pipeline():
            for i in (300, 1, 301):
                c.conn.execute("insert into t%d values (%%s, 'f')" % c.number, (i,), prepare=True)
    c.attempt("fails", run)
    c.run("none", "select count(*) from t%d where id >= 300" % c.number)

    def aborted():
        states = []
        with c.conn.pipeline() as p:
            c.conn.execute("select %s::int", (1,), prepare=True)
            try:
                c.conn.execute("select 1 / %s::int", (0,), prepare=True).fetchone()
            except psycopg.Error as e:
                states.append(failure(e))
            try:
                c.conn.execute("select 3").fetchone()
            except psycopg.Error as e:
                states.append(failure(e))
            p.sync()
            states.append(c.conn.execute("select %s::int", (4,), prepare=True).fetchone())
        return states
    c.attempt("aborted", aborted)


def many_rows(c):
    table = "t%d" % c.number
    with c.conn.cursor() as cur:
        cur.executemany("insert into %s values (%%s, %%s)" % table,
                        [(400 + i, "m%d" % i) for i in range(20)])
        c.tell("many", cur.rowcount)
        cur.executemany("select v from %s where id = %%s" % table, [(401,), (402,)],
                        returning=True)
        rows = [cur.fetchall()]
        while cur.nextset():
            rows.append(cur.fetchall())
        c.tell("returning", rows)
    c.attempt("double", lambda: c.conn.cursor().executemany(
        "insert into %s values (%%s, 'y')" % table, [(500,), (400,), (501,)]))
    c.run("count", "select count(*) from %s" % table, prepare=True)
    c.tell("stream", list(c.conn.cursor().stream(
        "select v from %s where id < %%s order by id" % table, (5,))))


def cursors(c):
    with c.conn.transaction():
        with c.conn.cursor("named", scrollable=True) as cur:
            cur.execute("select g, repeat('x', 3) from generate_series(1, %s) g", (20,))
            c.tell("fetch", cur.fetchmany(3))
            cur.scroll(-2)
            c.tell("scroll", cur.fetchone())
            c.run("between", "select %s::int", (7,), prepare=True)
            c.tell("rest", len(cur.fetchall()))
    c.attempt("outside", lambda: c.conn.cursor("n2").execute("select 1"))
    cur = c.conn.cursor(binary=True)
    c.tell("binary", cur.execute("select %s::int, now() > '2000-01-01'", (5,), prepare=True)
           .fetchall())


def copies(c):
    table = "t%d" % c.number
    with c.conn.cursor() as cur:
        with cur.copy("copy %s from stdin" % table) as copy:
            for i in range(600, 650):
                copy.write_row((i, "c%d" % i))
        c.tell("in", cur.statusmessage)

        def bad(text, fault=None):
            with cur.copy("copy %s from stdin" % table) as copy:
                copy.write(text)
                if fault:
                    raise fault
        c.attempt("bad", lambda: bad("x\ty\n"))
        c.attempt("double", lambda: bad("1\ty\n"))
        try:
            bad("700\ty\n", ValueError("no more"))
        except ValueError as e:
            c.tell("gave up", e)
        except psycopg.Error as e:
            c.tell("gave up", failure(e))
        with cur.copy("copy (select * from %s where id >= 645 order by id) to stdout"
                      % table) as copy:
            c.tell("out", list(copy.rows()))
        with c.conn.transaction():
            with cur.copy("copy %s (id) from stdin" % table) as copy:
                copy.write("701\n702\n")
            c.run("in block", "select count(*) from %s where id > %%s" % table, (700,),
                  prepare=True)


def raw_copies(c):
    # libpq does a prepared COPY with a Sync in front of its data
    pg = c.conn.pgconn
    table = ("t%d" % c.number).encode()
    for data in (b"800\tr\n", b"bad\n"):
        pg.exec_params(b"copy " + table + b" from stdin", [])
        pg.put_copy_data(data)
        pg.put_copy_end()
        result = pg.get_result()
        while pg.get_result():
            pass
        state = result.error_field(psycopg.pq.DiagnosticField.SQLSTATE)
        c.tell("extended", (psycopg.pq.ExecStatus(result.status).name, state))
    c.run("after", "select %s::int", (1,), prepare=True)


def settings(c):
    n = c.number
    # one to each statement: what a connection pool in a framework sends at checkout
    c.run("set", "set timezone to 'Etc/GMT%+d'" % (n - 6))
    c.run("set", "set statement_timeout to '%ds'" % (100 + n))
    c.run("set", "set search_path to s%d, public" % (n % 2))
    c.run("set", "select set_config('DateStyle', 'German', false)")
    c.run("set", "select set_config('app.tenant', 'tenant%d', false)" % n)
    with c.conn.transaction():
        c.run("set", "select set_config('app.local', %s, true)", ("local%d" % n,), prepare=True)
        c.run("local", "select current_setting('app.local')", prepare=True)


SHOW = ("select current_setting('TimeZone'), current_setting('statement_timeout'), "
        "current_setting('search_path'), current_setting('DateStyle'), "
        "current_setting('app.tenant', true), current_setting('application_name')")


def settings_seen(c):
    c.run("seen", SHOW, prepare=True)
    c.run("by path", "select w from place where id = %s", (1,), prepare=True)
    c.run("day", "select '2020-02-03 10:00+00'::timestamptz::text", prepare=True)


def settings_changed(c):
    try:
        with c.conn.transaction():
            c.conn.execute("set search_path to s%d" % ((c.number + 1) % 2))
            c.conn.execute("set local statement_timeout to '7s'")
            c.run("other path", "select w from place where id = %s", (1,), prepare=True)
            c.run("inside", SHOW, prepare=True)
            raise ValueError
    except ValueError:
        pass
    c.run("rolled back", SHOW, prepare=True)
    c.run("bad", "set statement_timeout to 'soon'")
    c.run("reset", "reset statement_timeout")
    if c.number % 3 == 0:
        c.run("reset all", "reset all")
    if c.number % 3 == 1:
        c.run("discard all", "discard all")
        forget(c)


def encodings(c):
    c.run("encoding", "set client_encoding to '%s'" % ("LATIN1" if c.number % 2 else "UTF8"))
    c.run("umlaut", "select %s::text, octet_length(%s::text), 'ä'", ("ö", "ö"), prepare=True)
    c.tell("encoding", c.conn.info.encoding)
    c.run("encoding", "reset client_encoding")


def timeouts(c):
    if c.number % 4:
        return
    c.run("set", "set statement_timeout to '50ms'")
    c.run("too long", "select pg_sleep(30)")
    c.run("too long", "select pg_sleep(%s)", (30,), prepare=True)
    c.run("reset", "set statement_timeout to default")
    c.run("in time", "select pg_sleep(%s)::text", (0.06,), prepare=True)


def composed(c):
    c.run("identifier", sql.SQL("select {} from {} where id = %s").format(
        sql.Identifier("v"), sql.Identifier("t%d" % c.number)), (4,), prepare=True)
    c.run("array", "select %s::int[], %s::text[]", ([1, 2], ["a", None]), prepare=True)
    c.run("several", "select 1; select 2")


def owned(c):
    """State that only one server has, which stays with these clients meanwhile."""
    if c.number in (4, 7):
        c.run("temp", "create temp table mine (n int)")
        c.run("lock", "select pg_advisory_lock(%s)::text", (c.number,), prepare=True)
        c.run("set", "select set_config('app.by', %s, false)", ("me%d" % c.number,), prepare=True)


def owned_use(c):
    if c.number in (4, 7):
        for i in range(3):
            c.run("temp", "insert into mine values (%s) returning n", (i,), prepare=True)
        c.run("set", "select current_setting('app.by')", prepare=True)
        c.run("unlock", "select pg_advisory_unlock(%s)", (c.number,), prepare=True)
    else:
        c.run("none", "select to_regclass('pg_temp.mine'), "
                  "nullif(current_setting('app.by', true), '')",
              prepare=True)


def owned_end(c):
    if c.number in (4, 7):
        c.run("sum", "select sum(n) from mine", prepare=True)
        c.run("discard", "discard all")
        forget(c)


def hold(c):
    # its server stays with the client meanwhile: one at a time
    if c.number == 0:
        cur = c.conn.cursor("held", withhold=True)
        cur.execute("select g from generate_series(1, 9) g")
        c.tell("held", cur.fetchmany(2))
        c.run("between", "select %s::int", (1,), prepare=True)
        c.tell("held", cur.fetchall())
        cur.close()


STEPS = (tables, same_text, forced, distinct, failing, transactions, failed_transaction,
         own_schema_change, pipeline, failing_pipeline, many_rows, cursors, copies, raw_copies,
         settings, settings_seen, settings_changed, settings_seen, encodings, timeouts, composed,
         owned, same_text, owned_use, forced, owned_end, same_text, hold)


# ---- steps of all together ----

def shared_schema_change(clients):
    """Another client changes a table under the prepared statements of all."""
    text = "select * from shared where id = %s"
    for c in clients * 2:
        c.run("shared", text, (1,), prepare=True)
    clients[0].run("alter", "alter table shared add column late int default 5")
    for c in clients:
        stale_once(c, text)
    clients[-1].run("alter", "alter table shared alter column late type text")
    for c in clients:
        stale_once(c, text)


def stale_once(c, text):
    """An application that prepares again when it is told that a plan is stale."""
    try:
        c.tell("changed", show(c.conn.execute(text, (1,), prepare=True)))
    except psycopg.errors.FeatureNotSupported:
        forget(c)
        c.run("changed", text, (1,), prepare=True)


def cancels(clients):
    """Cancel requests: the query that is meant, and no other."""
    watcher = clients[-1].conn
    for c in clients[:4]:
        mark = "select pg_sleep(60) /* sleeper %d */" % c.number
        sleeper = threading.Thread(target=c.run, args=("cancelled", mark))
        sleeper.start()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not watcher.execute(
                "select 1 from pg_stat_activity where query = %s and wait_event = 'PgSleep' "
                "and datname = current_database()",
                (mark,)).fetchone():
            time.sleep(0.01)
        c.conn.cancel()
        sleeper.join()
        c.run("goes on", "select %s::int", (c.number,), prepare=True)
    clients[5].conn.cancel()
    clients[5].run("idle", "select %s::int", (5,), prepare=True)


# ---- work: each for itself ----

def work(c):
    """Statements, transactions, errors and settings in an order of the client's own."""
    table = "public.w%d" % c.number
    c.run("create", "create table %s (id int primary key, n int)" % table)
    for i in range(80):
        action = c.random(9)
        if action < 3:
            c.run("w", "insert into %s as w values (%%s, %%s) on conflict (id) do update "
                  "set n = w.n + 1" % table, (c.random(20), i))
        elif action == 3:
            c.run("w", "select sum(n), count(*) from %s where id > %%s" % table, (c.random(20),))
        elif action == 4:
            c.run("w", "insert into %s values (%%s, %%s)" % table, (c.random(20), i))
        elif action == 5:
            # rolled back now and then: the driver deallocates everything
            try:
                with c.conn.transaction(force_rollback=c.random(3) == 0):
                    c.run("w", "delete from %s where id = %%s" % table, (c.random(20),))
                    c.run("w", "select count(*) from %s" % table)
            except psycopg.Error as e:
                c.tell("w", failure(e))
        elif action == 6:
            c.run("w", "select %%s::int + %d" % c.random(40), (c.number,))
        elif action == 7:
            c.run("w", "set search_path to s%d, public" % c.random(2))
            c.run("w", "select w from place where id = %s", (1,))
        else:
            c.attempt("w", lambda: ask_in_pipeline(c, "select n from %s where id = %%s" % table))


def ask_in_pipeline(c, text):
    with c.conn.pipeline():
        return [cur.fetchall() for cur in [c.conn.execute(text, (k,)) for k in range(4)]]


def main():
    logging.disable()  # it tells of errors at the end of a pipeline, which are seen anyway
    clients = [Client(i) for i in range(CLIENTS)]
    with connect() as owner:
        for i in range(2):
            owner.execute("create schema s%d" % i)
            owner.execute("create table s%d.place (id int, w text)" % i)
            owner.execute("insert into s%d.place values (1, 'in s%d')" % (i, i))
        owner.execute("create table shared (id int)")
        owner.execute("insert into shared values (1)")
    for step in STEPS:
        for c in clients:
            try:
                step(c)
            except psycopg.Error as e:
                c.tell(step.__name__, "%s: %s" % (failure(e), e))
    shared_schema_change(clients)
    cancels(clients)
    threads = [threading.Thread(target=work, args=(c,)) for c in clients]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for c in clients:
        c.conn.close()
        print("\n".join(c.lines))


main()
