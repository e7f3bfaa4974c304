/**
 * Ceph RGW, a real S3 server, for tests: one monitor, one object storage daemon in memory, one gateway, all on loopback and free
 * ports in a folder of their own. Installs Debian's packages when they are missing (root only). Ended by pid, also when the
 * test fails. `npm test` starts one for all its files, and names it in the environment; buckets are everybody's own.
 */
import {type ChildProcess, execFile, execFileSync, spawn} from 'node:child_process';
import {randomUUID} from 'node:crypto';
import {existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync} from 'node:fs';
import {createServer} from 'node:net';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {promisify} from 'node:util';
import {CreateBucketCommand, DeleteObjectsCommand, ListObjectsV2Command, S3Client} from '@aws-sdk/client-s3';
import type {S3StoreConfig} from '#objectstore/s3-object-store.ts';

const run = promisify(execFile);
const packages = ['ceph-base', 'ceph-common', 'ceph-mon', 'ceph-osd', 'radosgw'];
const programs = ['ceph', 'ceph-mon', 'ceph-osd', 'radosgw', 'radosgw-admin', 'monmaptool'];
const startMsMax = 400_000;
export const accessKey = 'pagoda-test';
const sharedVariable = 'PAGODA_TEST_RGW';
const secretKey = 'pagoda-test-secret';

/** Installs what is missing; throws with the command to run when it may not. */
export function installRgw(): void {
  if (programs.every((program) => existsSync(`/usr/bin/${program}`))) return;
  const command = `apt-get install -y --no-install-recommends ${packages.join(' ')}`;
  if (process.getuid?.() !== 0) throw new Error(`Ceph RGW is not installed. Run once: sudo ${command}`);
  execFileSync('/bin/sh', ['-c', `${command} || (apt-get update && ${command})`], {
    env: {...process.env, DEBIAN_FRONTEND: 'noninteractive'},
    stdio: ['ignore', 'ignore', 'inherit'],
  });
}

export class Rgw {
  readonly dir: string;
  readonly endpoint: string;
  /** Private file for S3StoreConfig.credentialsFile. */
  readonly credentialsFile: string;
  readonly client: S3Client;
  /** Another process's, which ends it. */
  readonly #isShared: boolean;
  readonly #children: ChildProcess[] = [];
  readonly #onExit = (): void => {
    for (const child of this.#children) child.kill('SIGKILL');
  };
  readonly #buckets: string[] = [];

  private constructor(dir: string, port: number, isShared = false) {
    this.dir = dir;
    this.#isShared = isShared;
    this.endpoint = `http://127.0.0.1:${port}`;
    this.credentialsFile = join(dir, 'credentials');
    if (!isShared)
      writeFileSync(this.credentialsFile, `AWS_ACCESS_KEY_ID=${accessKey}\nAWS_SECRET_ACCESS_KEY=${secretKey}\n`, {
        mode: 0o600,
      });
    this.client = new S3Client({
      endpoint: this.endpoint,
      region: 'us-east-1',
      forcePathStyle: true,
      credentials: {accessKeyId: accessKey, secretAccessKey: secretKey},
    });
    process.once('exit', this.#onExit);
  }

  /** The one that the environment names, or one of its own. */
  static async start(): Promise<Rgw> {
    const shared = process.env[sharedVariable];
    if (shared !== undefined) {
      const {dir, port} = JSON.parse(shared) as {dir: string; port: number};
      return new Rgw(dir, port, true);
    }
    installRgw();
    const [mon, gateway, ...osd] = await freePorts(8);
    const dir = mkdtempSync(join(tmpdir(), 'pagoda-rgw-'));
    const rgw = new Rgw(dir, gateway!);
    try {
      await rgw.#start(mon!, gateway!, osd);
      return rgw;
    } catch (error) {
      const logs = logTails(dir);
      await rgw.stop();
      throw new Error(`Ceph RGW does not start: ${(error as Error).message}\n${logs}`, {cause: error});
    }
  }

  /** The environment in which others share this one. */
  get environment(): Record<string, string> {
    return {[sharedVariable]: JSON.stringify({dir: this.dir, port: Number(new URL(this.endpoint).port)})};
  }

  /** An empty bucket of its own, and the configuration that reaches it (through `endpoint` when given). */
  async bucket(endpoint = this.endpoint): Promise<S3StoreConfig> {
    const bucket = `bucket-${randomUUID().slice(0, 12)}`;
    this.#buckets.push(bucket);
    await this.client.send(new CreateBucketCommand({Bucket: bucket}));
    return {kind: 's3', bucket, endpoint, credentialsFile: this.credentialsFile};
  }

  async stop(): Promise<void> {
    process.off('exit', this.#onExit);
    if (this.#isShared) {
      // It keeps everything in memory, and others need room too.
      for (const bucket of this.#buckets) await this.#empty(bucket).catch(() => {});
      this.client.destroy();
      return;
    }
    this.client.destroy();
    // Gateway, storage daemon, monitor: the last started first. Nothing of theirs is kept.
    for (const child of this.#children.reverse()) {
      if (child.exitCode !== null || child.signalCode !== null) continue;
      const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
      child.kill('SIGKILL');
      await exited;
    }
    rmSync(this.dir, {recursive: true, force: true, maxRetries: 10, retryDelay: 100});
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  async #empty(bucket: string): Promise<void> {
    for (;;) {
      const {Contents = []} = await this.client.send(new ListObjectsV2Command({Bucket: bucket}));
      if (Contents.length === 0) return;
      const Objects = Contents.map(({Key}) => ({Key: Key!}));
      await this.client.send(new DeleteObjectsCommand({Bucket: bucket, Delete: {Objects, Quiet: true}}));
    }
  }

  async #start(mon: number, gateway: number, osdPorts: readonly number[]): Promise<void> {
    const {dir} = this;
    const conf = join(dir, 'ceph.conf');
    const fsid = randomUUID();
    for (const name of ['mon', 'osd0', 'log', 'run']) mkdirSync(join(dir, name));
    writeFileSync(conf, configuration(dir, fsid, mon, gateway, osdPorts));
    await run('monmaptool', ['--create', '--fsid', fsid, '--addv', 'a', `[v2:127.0.0.1:${mon}]`, join(dir, 'monmap')]);
    await run('ceph-mon', ['-c', conf, '--mkfs', '-i', 'a', '--monmap', join(dir, 'monmap')]);
    this.#spawn('ceph-mon', ['-c', conf, '-i', 'a', '-f']);
    const osdId = randomUUID();
    const {stdout} = await run('ceph', ['-c', conf, 'osd', 'new', osdId], {timeout: startMsMax});
    const id = stdout.trim();
    await run('ceph-osd', ['-c', conf, '-i', id, '--mkfs', '--osd-uuid', osdId], {timeout: startMsMax});
    this.#spawn('ceph-osd', ['-c', conf, '-i', id, '-f']);
    this.#spawn('radosgw', ['-c', conf, '-n', 'client.rgw', '-f']);
    const deadline = performance.now() + startMsMax;
    for (;;) {
      const status = await fetch(this.endpoint).then(
        (response) => response.status,
        () => 0,
      );
      if (status === 200) break;
      const dead = this.#children.find((child) => child.exitCode !== null || child.signalCode !== null);
      if (dead !== undefined) throw new Error(`${dead.spawnfile} ended (${dead.signalCode ?? dead.exitCode})`);
      if (performance.now() > deadline) throw new Error(`no answer of the gateway within ${startMsMax / 1000} s`);
      await sleep(50);
    }
    const keys = [`--access-key=${accessKey}`, `--secret=${secretKey}`];
    await run('radosgw-admin', ['-c', conf, 'user', 'create', '--uid=test', '--display-name=test', ...keys], {
      timeout: startMsMax,
    });
  }

  #spawn(command: string, args: readonly string[]): void {
    this.#children.push(spawn(command, args, {stdio: 'ignore'}));
  }
}

function configuration(dir: string, fsid: string, mon: number, gateway: number, osdPorts: readonly number[]): string {
  const lowest = Math.min(...osdPorts);
  return `[global]
fsid = ${fsid}
mon host = [v2:127.0.0.1:${mon}]
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = true
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
mon warn on pool no redundancy = false
osd crush chooseleaf type = 0
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
mon max pg per osd = 1000
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = ${dir}/run
log file = ${dir}/log/$name.log
admin socket = ${dir}/run/$name.asok
pid file = ${dir}/run/$name.pid
debug ms = 0/0
debug osd = 0/0
debug rgw = 0/0
debug mon = 0/0
debug paxos = 0/0
paxos propose interval = 0.01
paxos min wait = 0.01
mon tick interval = 1
ms bind port min = ${lowest}
ms bind port max = ${lowest + 200}
[mon]
mon data = ${dir}/mon
mon initial members = a
mon data avail crit = 1
[osd]
osd data = ${dir}/osd0
osd objectstore = memstore
memstore device bytes = 8589934592
osd max object name len = 256
osd max object namespace len = 64
osd class load list = *
osd class default list = *
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:${gateway} tcp_nodelay=1
rgw enable usage log = false
rgw run sync thread = false
ms mon client mode = crc
rgw dns name = localhost
rgw rados pool pg num min = 8
rgw max chunk size = 4194304
rgw gc obj min wait = 5
rgw gc processor period = 10
`;
}

function logTails(dir: string): string {
  const logs = join(dir, 'log');
  if (!existsSync(logs)) return '';
  return readdirSync(logs)
    .map((name) => `==> ${name}\n${readFileSync(join(logs, name), 'utf8').split('\n').slice(-12).join('\n')}`)
    .join('\n');
}

/** Ports that are free now, ascending. */
async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({length: count}, () => createServer());
  const ports = await Promise.all(
    servers.map(
      (server) =>
        new Promise<number>((resolve, reject) => {
          server.once('error', reject);
          server.listen(0, '127.0.0.1', () => resolve((server.address() as {port: number}).port));
        }),
    ),
  );
  await Promise.all(servers.map((server) => new Promise<void>((resolve) => server.close(() => resolve()))));
  return ports.sort((x, y) => x - y);
}
