// postgres_js.mjs - what applications do with postgres.js, over a dozen connections at once.
//
// Prints one line for each result that an application sees, without what differs between two runs;
// the spec compares a run past poolrt with one through it. First all clients take turns step by
// step, then each does its own work at the same time as the others.
//
// usage: node postgres_js.mjs HOST PORT USER PASSWORD DATABASE CERTIFICATE
import postgres from 'postgres';
import { Teller, ca, failure, login, play, sleep } from './program.mjs';

function connect(more) {
  return postgres({
    ...login, max: 1, connect_timeout: 20, onnotice() {}, ssl: { ca, servername: 'localhost' },
    ...more,
  });
}

class Client extends Teller {
  constructor(number) {
    super(number, number * 15485863 + 11);
    this.sql = connect({ connection: { application_name: 'client' + number } });
    this.table = this.sql('p' + number);
  }

  end() {
    return this.sql.end();
  }

  // tag, count and rows of a query, or its SQLSTATE
  async run(what, query) {
    this.tell(what, await query.then(show, failure));
  }

  // a text of its own, prepared
  text(what, text, values = []) {
    return this.run(what, this.sql.unsafe(text, values, { prepare: true }));
  }
}

const show = (r) => (Array.isArray(r[0]) ? r.map(show).join(' | ')
  : `${r.command} ${r.count} ${JSON.stringify(r)}`);
const ended = (stream, last) => new Promise((done, failed) => {
  stream.on('error', failed);
  stream.on('finish', done);
  stream.end(last);
});

// ---- steps: in turns ----

const steps = {
  async tables(c) {
    const { sql, table } = c;
    await c.run('table', sql`create table ${table} (id int primary key, v text)`);
    const rows = Array.from({ length: 30 }, (_, i) => ({ id: i + 1, v: 'v' + (i + 1) }));
    await c.run('rows', sql`insert into ${table} ${sql(rows)}`);
  },

  async prepared(c) {
    const { sql, table } = c;
    for (let i = 0; i < 5; i++) {
      await c.run('same', sql`select ${i}::int + 1 as n, ${'x' + i} as s`);
      await c.run('own', sql`select v from ${table} where id = ${i}`);
      await c.run('array', sql`select * from ${table} where id = any(${[i, i + 1]}) order by id`);
    }
    await c.run('in', sql`select count(*) from ${table} where id in ${sql([1, 2, 99])}`);
    await c.run('types', sql`select ${new Date(0)}::timestamptz as t, ${sql.json({ a: 1 })}::jsonb as j,
      ${true}::bool as b, ${Buffer.from([1, 255])}::bytea as x, ${null}::int as n`);
    await c.run('values', sql`select 1 as a, 2 as b`.values());
    await c.run('simple', sql`select 1 as a; select 2 as b`.simple());
    const told = await sql`select id, v from ${table} where id = ${1}`.describe();
    c.tell('described', JSON.stringify([told.types, told.columns.map((x) => [x.name, x.type])]));
    await c.run('empty', sql``);
  },

  async distinct(c) {
    const n = c.number < 2 ? 240 : 20;
    for (let i = 0; i < n; i++) {
      await c.text('distinct', `select $1::int * ${i % 2 ? i : i * 100 + c.number} as n`, [2]);
    }
    for (let i = 0; i < n; i += 7) {
      await c.text('again', `select $1::int * ${i % 2 ? i : i * 100 + c.number} as n`, [3]);
    }
  },

  async failing(c) {
    const { sql, table } = c;
    await c.run('syntax', sql`selec 1`);
    await c.run('no table', sql`select * from nowhere where id = ${1}`);
    await c.run('no table', sql`select * from nowhere where id = ${1}`);
    for (const by of [0, 1, 0]) {
      await c.run('divide', sql`select 1 / ${by}::int as n`);
    }
    await c.run('double key', sql`insert into ${table} values (${1}, 'x')`);
    await c.run('cast', sql`select ${'abc'}::text::int`);
  },

  async implicitPipeline(c) {
    const { sql, table } = c;
    const asked = [1, 2, 3, 4, 5].map((i) => sql`select ${i}::int as n`);
    asked.push(sql`select v from ${table} where id = ${3}`, sql`select nope`,
      sql`select 1 / ${0}::int as n`, sql`select ${7}::int as n`,
      sql`select * from nowhere where id = ${1}`, sql`select 1 / ${1}::int as n`);
    for (let i = 0; i < 20; i++) {
      asked.push(sql.unsafe(`select $1::int + ${i} as n`, [c.number], { prepare: true }));
    }
    const answers = await Promise.all(asked.map((q) => q.then(show, failure)));
    c.tell('pipelined', answers.join(' ; '));
  },

  async transactions(c) {
    const { sql, table } = c;
    const outcome = await sql.begin(async (t) => {
      await c.run('in', t`update ${table} set v = ${'new'} where id = ${2} returning *`);
      await t.savepoint(async (s) => {
        await s`delete from ${table} where id < ${9}`;
        await s`select 1 / ${0}::int as n`;
      }).catch((e) => c.tell('savepoint', failure(e)));
      await c.run('left', t`select count(*) from ${table}`);
      await t.savepoint('named', (s) => s`insert into ${table} values (${100}, 'kept')`);
      return Promise.all([1, 2, 3].map((i) => t`select ${i}::int as n`));
    }).then(show, failure);
    c.tell('committed', outcome);
    await sql.begin('isolation level serializable read only', async (t) => {
      await t`delete from ${table} where id < ${9}`;
    }).catch((e) => c.tell('read only', failure(e)));
    await sql.begin(async (t) => {
      await t`delete from ${table}`;
      throw new Error('undone');
    }).catch((e) => c.tell('thrown', failure(e)));
    await sql.begin((t) => [t`select 1 as n`, t`select 1 / ${0}::int as n`, t`select 3 as n`])
      .then((r) => c.tell('array', JSON.stringify(r)), (e) => c.tell('array', failure(e)));
    await c.run('after', sql`select count(*), max(v) from ${table}`);
  },

  async ownSchemaChange(c) {
    const { sql } = c;
    const table = sql('q' + c.number);
    const use = (what) => c.run(what, sql`select * from ${table} where id = ${'1'}`);
    await c.run('create', sql`create table ${table} (id int)`);
    await c.run('insert', sql`insert into ${table} values (${1})`);
    await use('before');
    await use('before');
    await c.run('column', sql`alter table ${table} add column v text default 'new'`);
    await use('after'); // the driver prepares again by itself
    await use('after');
    await c.run('type', sql`alter table ${table} alter column v type varchar(9)`);
    await use('type');
    await c.run('drop', sql`drop table ${table}`);
    await use('gone');
    await c.run('create', sql`create table ${table} (w text, id int)`);
    await use('anew');
  },

  async staleInBlock(c) {
    const { sql } = c;
    const table = sql('q' + c.number);
    await sql.begin(async (t) => {
      await t`alter table ${table} add column x int`;
      await t`select * from ${table} where id = ${'1'}`;
      c.tell('block', 'no error');
    }).catch((e) => c.tell('block', failure(e)));
    await c.run('outside', sql`select * from ${table} where id = ${'1'}`);
  },

  async deallocated(c) {
    const { sql } = c;
    await c.run('all', sql`deallocate all`);
    await c.run('again', sql`select ${1}::int + 1 as n, ${'x'} as s`); // retried after 26000
    await c.run('again', sql`select ${2}::int + 1 as n, ${'y'} as s`);
    await c.run('discard', sql`discard plans`);
    await c.run('again', sql`select ${3}::int + 1 as n, ${'z'} as s`);
  },

  async cursors(c) {
    const { sql, table } = c;
    const seen = [];
    await sql`select id from ${table} where id > ${3} order by id`.cursor(7, (rows) => {
      seen.push(rows.map((r) => r.id).join(','));
    });
    c.tell('cursor', seen.join(' / '));
    seen.length = 0;
    await sql`select id from ${table} order by id`.cursor(5, (rows) => {
      seen.push(rows.length);
      return seen.length === 2 ? sql.CLOSE : undefined;
    });
    c.tell('closed', seen.join());
    await sql.begin(async (t) => {
      for await (const rows of t`select g from generate_series(1, ${9}::int) g`.cursor(4)) {
        c.tell('iterated', JSON.stringify(rows));
      }
    });
    await sql`select 1 / (4 - g) as n from generate_series(1, 9) g`.cursor(2, () => undefined)
      .then(() => c.tell('bad', 'no error'), (e) => c.tell('bad', failure(e)));
    let n = 0;
    await sql`select g from generate_series(1, ${50}::int) g`.forEach(() => { n++; });
    c.tell('each', n);
  },

  async copies(c) {
    const { sql, table } = c;
    const into = async (what, data) => {
      const stream = await sql`copy ${table} from stdin`.writable();
      await ended(stream, data).then(() => c.tell(what, 'done'), (e) => c.tell(what, failure(e)));
    };
    await into('in', '201\ta\n202\tb\n203\t\\N\n');
    // The error of a COPY that fails is told to the stream or, too late, to nobody: not asked for.
    const out = await sql`copy (select id, v from ${table} where id > 200 order by id) to stdout`
      .readable();
    const chunks = [];
    for await (const chunk of out) {
      chunks.push(chunk.toString());
    }
    c.tell('out', JSON.stringify(chunks.join('')));
    await c.run('after', sql`select count(*) from ${table} where id > ${200}`);
  },

  async settings(c) {
    const { sql, number } = c;
    await c.run('set', sql.unsafe(`set timezone to 'Etc/GMT+${number}'`));
    await c.run('set', sql.unsafe(`set search_path to z${number % 2}, public;
      set statement_timeout to ${80000 + number}`));
    await c.run('set', sql.unsafe(`select set_config('app.tenant', 'tenant${number}', false)`));
    await c.run('set', sql`set work_mem to '5MB'`);
  },

  settingsSeen: (c) => seen(c, c.sql),

  async settingsChanged(c) {
    const { sql } = c;
    await sql.begin(async (t) => {
      await t`set search_path to z0`;
      await t`set local work_mem to '6MB'`;
      await seen(c, t);
      await t`select 1 / 0`;
    }).catch((e) => c.tell('rolled back', failure(e)));
    await seen(c, sql);
    await c.run('reset', c.number % 2 ? sql`reset search_path` : sql`reset work_mem`);
    if (c.number % 3 === 0) {
      await c.run('discard', sql`discard all`);
    }
  },

  settingsSeenAgain: (c) => seen(c, c.sql),

  async reserved(c) {
    const one = await c.sql.reserve();
    c.tell('reserved', show(await one`select ${c.number}::int as n`));
    one.release();
    await c.run('fragment', c.sql`select * from ${c.table} where ${c.sql`id = ${4}`} and true`);
  },
};

async function seen(c, sql) {
  await c.run('seen', sql`select current_setting('TimeZone') as tz, current_setting('work_mem') as m,
    current_setting('search_path') as path, current_setting('statement_timeout') as t,
    current_setting('app.tenant', true) as tenant, current_setting('application_name') as name`);
  await c.run('by path', sql.unsafe('select w from place where id = $1', [1], { prepare: true }));
}

// ---- steps of all together ----

// Another client changes a table under the prepared statements of all: each driver prepares again.
async function sharedSchemaChange(clients) {
  const use = (c, what) => c.run(what, c.sql`select * from shared where id = ${1}`);
  for (const change of ['add column late int default 5', 'alter column late type text',
    'drop column late']) {
    for (const c of [...clients, ...clients]) {
      await use(c, 'shared');
    }
    await clients[3].run('alter', clients[3].sql.unsafe('alter table shared ' + change));
    for (const c of clients) {
      await use(c, 'changed');
    }
  }
}

async function cancels(clients) {
  const watcher = clients.at(-1).sql;
  for (const c of clients.slice(0, 4)) {
    const text = `select pg_sleep(60) /* sleeper ${c.number} */`;
    const query = c.sql.unsafe(text, [], { prepare: c.number % 2 === 0 });
    const sleeping = c.run('cancelled', query);
    for (let i = 0; i < 1000; i++) {
      const found = await watcher`select 1 from pg_stat_activity
        where query = ${text} and wait_event = 'PgSleep'
          and datname = current_database()`;
      if (found.length) {
        break;
      }
      await sleep(10);
    }
    await query.cancel();
    await sleeping;
    await c.run('goes on', c.sql`select ${c.number}::int as n`);
  }
}

// ---- work: each for itself ----

async function work(c) {
  const { sql } = c;
  const table = sql('public.y' + c.number);
  await c.run('create', sql`create table ${table} (id int primary key, n int)`);
  const add = (q, key, i) => q`insert into ${table} as w values (${key}, ${i})
    on conflict (id) do update set n = w.n + 1`;
  const sum = (q) => q`select sum(n), count(*) from ${table}`;
  for (let i = 0; i < 120; i++) {
    const key = c.random(20);
    switch (c.random(7)) {
    case 0: await c.run('w', add(sql, key, i)); break;
    case 1: await c.run('w', sum(sql)); break;
    case 2: await c.run('w', sql`insert into ${table} values (${key}, 0)`); break;
    case 3: await c.text('w', `select $1::int + ${key * 3} as n`, [i]); break;
    case 4: {
      const asked = [add(sql, key, i), sum(sql), sql`select 1 / ${key % 2}::int as n`, sum(sql)];
      c.tell('w', (await Promise.all(asked.map((q) => q.then(show, failure)))).join(' ; '));
      break;
    }
    case 5:
      await sql.begin(async (t) => {
        await t`insert into ${table} values (${key}, 0)`;
        await c.run('w', sum(t));
        if (key % 2) {
          throw new Error('undone');
        }
      }).catch((e) => c.tell('w', failure(e)));
      break;
    default:
      await c.run('w', sql.unsafe(`set search_path to z${key % 2}, public`));
      await c.text('w', 'select w from place where id = $1', [1]);
    }
  }
}

// Eight connections that share what they are asked for.
async function pooled(lines) {
  const sql = connect({ max: 8 });
  const answers = await Promise.all(Array.from({ length: 300 }, (_, i) =>
    sql.unsafe(`select ${i % 40} / $1::int as n`, [i % 9], { prepare: true })
      .then((r) => r[0].n, failure)));
  lines.push(`99 pooled: ${answers.join(' ')}`);
  await sql.end();
}

async function begin(clients) {
  const { sql } = clients[0];
  for (const i of [0, 1]) {
    await sql.unsafe(`create schema z${i}; create table z${i}.place (id int, w text);
      insert into z${i}.place values (1, 'in z${i}')`);
  }
  await sql.unsafe('create table shared (id int); insert into shared values (1)');
}

await play(Client, { begin, steps, all: [sharedSchemaChange, cancels], work, pooled });
