// program.mjs - what the programs for node have in common: how they are called, what a client tells
// of its results, and the order in which everything happens.
//
// usage: node PROGRAM HOST PORT USER PASSWORD DATABASE CERTIFICATE
import fs from 'node:fs';

const CLIENTS = 12;
const [host, port, user, password, database, certificate] = process.argv.slice(2);
export const login = { host, port: +port, user, password, database };
export const ca = fs.readFileSync(certificate);

export const failure = (e) => `error ${e.code ?? e.message}`;
export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

export class Teller {
  constructor(number, seed) {
    this.number = number;
    this.lines = [];
    this.seed = seed;
  }

  tell(what, result) {
    this.lines.push(`${this.number} ${what}: ${result}`);
  }

  random(below) {
    this.seed = (Math.imul(this.seed, 1103515245) + 12345) & 0x7fffffff;
    return (this.seed >> 8) % below;
  }
}

// A dozen of Client: begin(clients), then the steps with all clients in turns, then each of `all`
// with them all, then work(client) of each at the same time, and pooled(lines).
export async function play(Client, { begin, steps, all, work, pooled }) {
  const clients = Array.from({ length: CLIENTS }, (_, i) => new Client(i));
  await begin(clients);
  for (const [name, step] of Object.entries(steps)) {
    for (const c of clients) {
      await step(c).catch((e) => c.tell(name, `${failure(e)} ${e.stack}`));
    }
  }
  for (const together of all) {
    await together(clients);
  }
  const lines = [];
  await Promise.all([...clients.map(work), pooled(lines)]);
  for (const c of clients) {
    await c.end();
    lines.push(...c.lines);
  }
  console.log(lines.join('\n'));
}
