// node_pg.mjs - what applications do with node-postgres, over a dozen connections at once.
//
// Prints one line for each result that an application sees, without what differs between two runs;
// the spec compares a run past poolrt with one through it. First all clients take turns step by
// step, then each does its own work at the same time as the others.
//
// usage: node node_pg.mjs HOST PORT USER PASSWORD DATABASE CERTIFICATE
import net from 'node:net';
import pg from 'pg';
import Cursor from 'pg-cursor';
import { Teller, ca, failure, login, play, sleep } from './program.mjs';

const options = {
  ...login, connectionTimeoutMillis: 20000, ssl: { ca, servername: 'localhost' },
};

class Client extends Teller {
  constructor(number) {
    super(number, number * 104729 + 3);
    this.pg = new pg.Client({ ...options, application_name: 'client' + number });
    this.pg.on('error', (e) => this.tell('connection', e.message));
  }

  end() {
    return this.pg.end();
  }

  // tag and rows, or SQLSTATE
  async run(what, query, values) {
    try {
      this.tell(what, show(await this.pg.query(query, values)));
    } catch (e) {
      this.tell(what, failure(e));
    }
  }

  named(what, name, text, values) {
    return this.run(what, { name, text, values, rowMode: 'array' });
  }
}

const show = (r) => (Array.isArray(r) ? r.map(show).join(' | ')
  : `${r.command} ${r.rowCount} ${JSON.stringify(r.rows)}`);

// ---- steps: in turns ----

const steps = {
  async tables(c) {
    await c.run('table', `create table n${c.number} (id int primary key, v text)`);
    await c.run('rows', `insert into n${c.number} select g, 'v' || g from generate_series(1, 40) g`);
  },

  async named(c) {
    // one name and text for all, one name with another text in each client, one text of many names
    for (let i = 0; i < 4; i++) {
      await c.named('add', 'add', 'select $1::int + $2::int', [i, c.number]);
      await c.named('mine', 'mine', `select v, ${c.number} from n${c.number} where id = $1`, [i + 1]);
      await c.named('text', `text${c.number}_${i}`, 'select $1::text || $2', ['a', i]);
    }
    await c.run('other text', { name: 'add', text: 'select $1::int', values: [1] });
  },

  async distinct(c) {
    const n = c.number < 2 ? 240 : 20;
    for (let i = 0; i < n; i++) {
      await c.named('distinct', `d${i}`, `select $1::int * ${i % 2 ? i : i * 100 + c.number}`, [2]);
    }
    for (let i = 0; i < n; i += 9) {
      await c.named('again', `d${i}`, `select $1::int * ${i % 2 ? i : i * 100 + c.number}`, [3]);
    }
  },

  async unnamed(c) {
    await c.run('unnamed', 'select $1::int as a, $2::text as b', [c.number, null]);
    await c.run('simple', 'select 1 as a; select 2 as b');
    await c.run('typed', 'select $1::timestamptz::text, $2::jsonb, $3::int[], $4::bytea',
      ['2020-01-02 03:04:05Z', { a: [1] }, [1, 2], Buffer.from([0, 255])]);
    await c.run('binary', { text: 'select $1::int4', values: [7], binary: true });
    await c.run('empty', '');
    await c.named('empty', 'empty', '', []);
  },

  async failing(c) {
    await c.run('syntax', 'selec 1');
    await c.named('no table', 'bad', 'select * from nowhere where id = $1', [1]);
    await c.named('same name', 'bad', 'select $1::int', [1]);
    for (const by of [0, 1, 0]) {
      await c.named('divide', 'divide', 'select 1 / $1::int', [by]);
    }
    await c.named('too many', 'few', 'select $1::int', [1, 2]);
    await c.named('too many', 'few', 'select $1::int', [1]);
    await c.named('double key', 'double', `insert into n${c.number} values ($1, 'x')`, [1]);
  },

  async transactions(c) {
    const table = `n${c.number}`;
    await c.run('begin', 'begin');
    await c.named('in', 'update', `update ${table} set v = $1 where id = 2 returning *`, ['new']);
    await c.run('savepoint', 'savepoint a');
    await c.named('in', 'delete', `delete from ${table} where id < $1`, [9]);
    await c.named('fails', 'divide', 'select 1 / $1::int', [0]);
    await c.named('ignored', 'add', 'select $1::int + $2::int', [1, 1]);
    await c.named('ignored new', 'never' + c.number, 'select $1::int', [1]);
    await c.run('back', 'rollback to a');
    await c.named('works', 'add', 'select $1::int + $2::int', [1, 1]);
    await c.named('new again', 'never' + c.number, 'select $1::int', [1]);
    await c.named('left', 'left', `select count(*) from ${table}`);
    await c.run('undone', 'rollback');
    await c.named('as before', 'mine', `select v, ${c.number} from n${c.number} where id = $1`, [2]);
    await c.run('begin', 'begin isolation level serializable read only');
    await c.named('read only', 'delete', `delete from ${table} where id < $1`, [9]);
    await c.run('commit', 'commit');
    await c.run('chain', 'begin; select 1 as a; commit and chain; select 2 as b');
    await c.named('in', 'left', `select count(*) from ${table}`);
    await c.run('commit', 'commit');
  },

  async ownSchemaChange(c) {
    const table = `e${c.number}`;
    const use = (what, name) => c.named(what, name, `select * from ${table} where id = $1`, [1]);
    await c.run('create', `create table ${table} (id int); insert into ${table} values (1)`);
    await use('before', 'star1');
    await use('before', 'star1');
    await c.run('column', `alter table ${table} add column v text default 'new'`);
    await use('stale', 'star1');
    await use('fresh', 'star2');
    await c.run('type', `alter table ${table} alter column id type text`);
    await use('stale type', 'star2');
    await c.run('drop', `drop table ${table}; create table ${table} (id int, a int)`);
    await use('other table', 'star3');
  },

  async deallocated(c) {
    await c.run('deallocate', 'deallocate add');
    await c.run('gone', { name: 'add', text: 'select $1::int + $2::int', values: [1, 1] });
    await c.run('unknown', 'deallocate nothing');
    await c.run('all', 'deallocate all');
    await c.named('gone', 'mine', `select v, ${c.number} from n${c.number} where id = $1`, [1]);
    await c.run('unnamed', 'select $1::int', [5]);
    await reconnect(c); // the driver believes in its statements as long as it is connected
    await c.named('anew', 'mine', `select v, ${c.number} from n${c.number} where id = $1`, [1]);
  },

  async cursors(c) {
    await c.run('begin', 'begin');
    const cursor = c.pg.query(new Cursor('select g from generate_series(1, $1::int) g', [30]));
    c.tell('read', JSON.stringify(await cursor.read(3)));
    c.tell('read', JSON.stringify(await cursor.read(2)));
    await cursor.close();
    await c.run('commit', 'commit');
    // without a block the portal lives until the Sync that closes it
    const open = c.pg.query(new Cursor(`select v from n${c.number} order by id`, []));
    c.tell('open', JSON.stringify(await open.read(2)));
    c.tell('rest', (await open.read(100)).length);
    await open.close();
    const bad = c.pg.query(new Cursor('select 1 / (3 - g) from generate_series(1, 9) g', []));
    try {
      await bad.read(2);
      await bad.read(2);
      c.tell('bad', 'no error');
    } catch (e) {
      c.tell('bad', failure(e));
    }
    await bad.close().catch(() => undefined);
    await c.named('after', 'after', 'select $1::int', [1]);
  },

  async settings(c) {
    const n = c.number;
    await c.run('set', `set timezone to 'Etc/GMT+${n}'`);
    await c.run('set', `set search_path to p${n % 2}, public; set statement_timeout to ${90000 + n}`);
    await c.run('set', `select set_config('app.tenant', 'tenant${n}', false)`);
    await c.run('set', 'set work_mem to 4096; set enable_mergejoin to off');
  },

  settingsSeen: seen,

  async settingsChanged(c) {
    await c.run('begin', 'begin');
    await c.run('set', "set search_path to p0; set local app.tenant to 'local'");
    await seen(c);
    await c.run('rollback', 'rollback');
    await seen(c);
    await c.run('failing', 'set work_mem to 8192; select 1 / 0');
    await seen(c);
    await c.run('reset', c.number % 2 ? 'reset search_path' : 'set search_path to default');
    if (c.number % 3 === 0) {
      await c.run('reset all', 'reset all');
    }
  },

  settingsSeenAgain: seen,

  async pipelined(c) {
    // queries that are sent without waiting for one another's answers
    const p = new pg.Client({ ...options, pipeline: true });
    await p.connect();
    const asked = [1, 2, 0, 4].map((by, i) => p.query({ name: 'pipe', values: [by],
      text: 'select 8 / $1::int as n' }).then(show, failure).then((r) => `${i}: ${r}`));
    asked.push(p.query('select $1::int as last', [9]).then(show, failure));
    asked.push(p.query({ name: 'none', text: 'select * from nowhere' }).then(show, failure));
    asked.push(p.query({ name: 'pipe2', text: 'select $1::text', values: ['x'] }).then(show, failure));
    c.tell('pipelined', (await Promise.all(asked)).join(' ; '));
    await p.end();
  },
};

async function seen(c) {
  await c.named('seen', 'seen', `select current_setting('TimeZone'), current_setting('search_path'),
    current_setting('statement_timeout'), current_setting('app.tenant', true),
    current_setting('work_mem'), current_setting('enable_mergejoin'),
    current_setting('application_name')`);
  await c.named('by path', 'path', 'select w from place where id = $1', [1]);
}

async function reconnect(c) {
  await c.pg.end();
  c.pg = new pg.Client({ ...options, application_name: 'client' + c.number });
  await c.pg.connect();
}

// ---- steps of all together ----

async function sharedSchemaChange(clients) {
  const use = (c, what, name) => c.named(what, name, 'select * from shared where id = $1', [1]);
  for (const c of [...clients, ...clients]) {
    await use(c, 'shared', 'shared');
  }
  await clients[0].run('alter', 'alter table shared add column late int default 5');
  for (const c of clients) {
    await use(c, 'stale', 'shared');
    await use(c, 'fresh', 'shared2');
  }
}

// The protocol's own cancel request, in clear as libpq before 17 sends it.
function cancel(c) {
  return new Promise((done, failed) => {
    const request = Buffer.alloc(16);
    [16, 80877102, c.pg.processID, c.pg.secretKey].forEach((n, i) => request.writeInt32BE(n, i * 4));
    const socket = net.connect(login.port, login.host, () => socket.write(request));
    socket.on('close', done);
    socket.on('error', failed);
    socket.resume();
  });
}

async function cancels(clients) {
  const watcher = clients.at(-1).pg;
  for (const c of clients.slice(0, 4)) {
    const text = `select pg_sleep(60) /* sleeper ${c.number} */`;
    const sleeping = c.run('cancelled', c.number % 2 ? text : { name: 'sleep', text });
    for (let i = 0; i < 1000; i++) {
      const { rowCount } = await watcher.query({ name: 'watch', values: [text],
        text: "select 1 from pg_stat_activity where query = $1 and wait_event = 'PgSleep' "
          + 'and datname = current_database()' });
      if (rowCount) {
        break;
      }
      await sleep(10);
    }
    await cancel(c);
    await sleeping;
    await c.named('goes on', 'after', 'select $1::int', [c.number]);
  }
  await cancel(clients[5]);
  await clients[5].named('idle', 'after', 'select $1::int', [5]);
}

// ---- work: each for itself ----

async function work(c) {
  const table = `public.x${c.number}`;
  await c.run('create', `create table ${table} (id int primary key, n int)`);
  const add = `insert into ${table} as w values ($1, $2) on conflict (id) do update set n = w.n + 1`;
  for (let i = 0; i < 150; i++) {
    const key = c.random(20);
    switch (c.random(8)) {
    case 0: case 1: await c.named('w', 'w_add', add, [key, i]); break;
    case 2: await c.named('w', 'w_sum', `select sum(n), count(*) from ${table}`); break;
    case 3: await c.named('w', 'w_insert', `insert into ${table} values ($1, 0)`, [key]); break;
    case 4: await c.named('w', 'w_many' + key, `select $1::int + ${key * 3}`, [i]); break;
    case 5: await c.run('w', `select $1::int + ${key}`, [c.number]); break;
    case 6:
      await c.run('w', 'begin');
      await c.named('w', 'w_insert', `insert into ${table} values ($1, 0)`, [key]);
      await c.named('w', 'w_sum', `select sum(n), count(*) from ${table}`);
      await c.run('w', key % 2 ? 'commit' : 'rollback');
      break;
    default:
      await c.run('w', `set search_path to p${key % 2}, public`);
      await c.named('w', 'path', 'select w from place where id = $1', [1]);
    }
  }
}

// Clients that a pool of the driver's own hands from one request to the next.
async function pooled(lines) {
  const pool = new pg.Pool({ ...options, max: 8 });
  const answers = await Promise.all(Array.from({ length: 200 }, (_, i) => pool.query({
    name: 'pooled' + (i % 30), text: `select ${i % 30} + $1::int as n`, values: [i],
  }).then((r) => r.rows[0].n, failure)));
  lines.push(`99 pooled: ${answers.join(' ')}`);
  await pool.end();
}

async function begin(clients) {
  for (const c of clients) {
    await c.pg.connect();
  }
  for (const i of [0, 1]) {
    await clients[0].pg.query(`create schema p${i}; create table p${i}.place (id int, w text);
      insert into p${i}.place values (1, 'in p${i}')`);
  }
  await clients[0].pg.query('create table shared (id int); insert into shared values (1)');
}

await play(Client, { begin, steps, all: [sharedSchemaChange, cancels], work, pooled });
