/**
 * `npm run bench -- hostile`: what the front door holds and does while it is attacked.
 *
 * 1. Silent connections: so many at once, each with one byte sent. Meanwhile somebody connects and asks `select 1`.
 * 2. Cancel guesses from the victims' own address, while every victim runs a query. Each guess is a connection of its own.
 *
 * No reference; what must hold is checked: new clients get in within a second, 64 KiB a connection at most, everybody silent is gone
 * after 15 s, no guess hits, and the right key works afterwards.
 *
 *   --connections N   default 10000     --guesses N   default 1000000     --victims N   default 100
 */
import assert from 'node:assert/strict';
import {randomBytes} from 'node:crypto';
import {readFileSync} from 'node:fs';
import {type Socket, connect} from 'node:net';
import {setTimeout as sleep} from 'node:timers/promises';
import {parseArgs} from 'node:util';
import type pg from 'pg';
import {Pagoda} from '../test/pagoda.ts';
import {readCpu} from './process-cpu.ts';
import {printReport, say} from './report.ts';

const atOnce = 200;
/** Ports of one address do not suffice for ten thousand. */
const perAddress = 5000;
/** The proxy's limits: openings end after so long, wrong cancels are counted for so long (src/proxy/limits.ts). */
const silenceMsMax = 15_000;
const throttleMs = 60_000;
const newClientMsMax = 1000;
const bytesEachMax = 64 * 1024;

export async function hostile(args: string[]): Promise<void> {
  const {values: options} = parseArgs({
    args,
    options: {
      connections: {type: 'string', default: '10000'},
      guesses: {type: 'string', default: '1000000'},
      victims: {type: 'string', default: '100'},
    },
  });
  await using pagoda = await Pagoda.start();
  await pagoda.query('select 1');
  const pid = pagoda.pidOf('proxy');
  const silent = await beSilent(pagoda, pid, Number(options.connections));
  const guesses = await guess(pagoda, pid, Number(options.guesses), Number(options.victims));
  printReport({name: 'hostile', ...silent, ...guesses});
}

async function beSilent(pagoda: Pagoda, pid: number, count: number): Promise<Record<string, number>> {
  const before = residentBytes(pid);
  const {port} = new URL((await pagoda.mainBranch()).uri);
  const sockets: Socket[] = [];
  let open = 0;
  let most = before;
  let slowestMs = 0;
  const newClient = async (): Promise<void> => {
    const started = performance.now();
    await pagoda.query('select 1');
    slowestMs = Math.max(slowestMs, performance.now() - started);
    most = Math.max(most, residentBytes(pid));
  };
  for (let made = 0; made < count; made += atOnce) {
    await Promise.all(
      Array.from({length: Math.min(atOnce, count - made)}, async (_, i) => {
        const localAddress = `127.0.0.${2 + Math.floor((made + i) / perAddress)}`;
        const socket = connect({port: Number(port), host: '127.0.0.1', localAddress});
        sockets.push(socket);
        socket.on('error', () => {});
        socket.resume();
        await new Promise<void>((resolve) => {
          socket.once('connect', () => {
            open++;
            socket.write(Buffer.from([0]));
            resolve();
          });
          socket.once('close', () => resolve());
        });
        socket.once('close', () => open--);
      }),
    );
    if (made % (5 * atOnce) === 0) await newClient();
  }
  await newClient();
  const held = open;
  const deadline = performance.now() + 2 * silenceMsMax;
  while (open > 0 && performance.now() < deadline) await sleep(200);
  for (const socket of sockets) socket.destroy();
  const bytesEach = (most - before) / count;
  say(`${count} silent connections, ${held} held at the end: ${bytesEach.toFixed(0)} bytes each`);
  say(`slowest new client meanwhile: ${slowestMs.toFixed(0)} ms`);
  assert.equal(open, 0, 'silent connections end');
  assert.ok(bytesEach <= bytesEachMax, `${bytesEach} bytes each`);
  assert.ok(slowestMs <= newClientMsMax, `a new client waited ${slowestMs} ms`);
  return {connections: count, held, bytesEach, slowestNewClientMs: slowestMs};
}

async function guess(pagoda: Pagoda, pid: number, count: number, victimCount: number): Promise<Record<string, number>> {
  const {uri} = await pagoda.mainBranch();
  const port = Number(new URL(uri).port);
  const victims = await Promise.all(Array.from({length: victimCount}, () => pagoda.connect(uri)));
  let hits = 0;
  let over = false;
  // A query is always under way: a guess that hits ends one.
  const running = victims.map(async (victim) => {
    while (!over) await victim.query('select pg_sleep(2)').catch(() => hits++);
  });
  const before = residentBytes(pid);
  const cpu = (): number => readCpu([pid], () => 'proxy').get('proxy') ?? 0;
  const cpuBefore = cpu();
  const started = performance.now();
  let sent = 0;
  await Promise.all(
    Array.from({length: atOnce}, async () => {
      while (sent < count) {
        sent++;
        await cancel(port, randomBytes(8));
        if (sent % 100_000 === 0) say(`${sent} guesses`);
      }
    }),
  );
  const seconds = (performance.now() - started) / 1000;
  const cpuUs = (cpu() - cpuBefore) / 1000 / count;
  const grown = residentBytes(pid) - before;
  say(
    `${(count / seconds).toFixed(0)} guesses/s, ${cpuUs.toFixed(0)} µs of the proxy's CPU each, memory +${grown} bytes`,
  );
  // Wrong keys from this address are counted; when the count is over, the right one works.
  await sleep(throttleMs);
  const guessed = hits;
  await cancel(port, keyOf(victims[0]!));
  for (let waited = 0; hits === guessed && waited < 100; waited++) await sleep(100);
  const works = hits - guessed;
  over = true;
  await Promise.all(running);
  for (const victim of victims) await victim.end();
  assert.equal(guessed, 0, 'guesses that hit');
  assert.equal(works, 1, 'the right key cancels one query');
  return {guesses: count, hits: guessed, guessesPerSecond: count / seconds, cpuUsPerGuess: cpuUs, grownBytes: grown};
}

/** Ends when the proxy has closed the connection: it has looked at the key then. */
function cancel(port: number, key: Buffer): Promise<void> {
  const packet = Buffer.alloc(16);
  packet.writeUInt32BE(16, 0);
  packet.writeUInt32BE(80_877_102, 4);
  key.copy(packet, 8);
  return new Promise((resolve) => {
    const socket = connect({port, host: '127.0.0.1'});
    socket.on('error', () => {});
    socket.on('close', () => resolve());
    // Without a trace: a million ports would rest for a minute each.
    socket.on('end', () => socket.resetAndDestroy());
    socket.resume();
    socket.write(packet);
  });
}

function keyOf(client: pg.Client): Buffer {
  const {processID, secretKey} = client as unknown as {processID: number; secretKey: number};
  const key = Buffer.alloc(8);
  key.writeInt32BE(processID, 0);
  key.writeInt32BE(secretKey, 4);
  return key;
}

function residentBytes(pid: number): number {
  const [, kib] = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))!;
  return Number(kib) * 1024;
}
