/** A safekeeper beside those of `pagoda up`, and the end of one of those. */
import {type ChildProcess, spawn} from 'node:child_process';
import {mkdirSync, readFileSync, writeFileSync} from 'node:fs';
import {createServer} from 'node:net';
import {join} from 'node:path';
import type {Pagoda} from '../pagoda.ts';

/** Runs, and the control plane knows it. Whoever calls ends it. */
export async function addSafekeeper(pagoda: Pagoda, nodeId: number): Promise<ChildProcess> {
  const like = JSON.parse(readFileSync(join(pagoda.dir, 'config', 'safekeeper-1.json'), 'utf8')) as Record<
    string,
    unknown
  >;
  const config = {
    ...like,
    nodeId,
    port: await freePort(),
    httpPort: await freePort(),
    dataDir: join(pagoda.dir, `safekeeper-${nodeId}`),
  };
  mkdirSync(config.dataDir, {recursive: true});
  const path = join(pagoda.dir, 'config', `safekeeper-${nodeId}.json`);
  writeFileSync(path, JSON.stringify(config), {mode: 0o600});
  const main = join(import.meta.dirname, '../../src/cli/main.ts');
  const child = spawn(
    process.execPath,
    ['--disable-warning=ExperimentalWarning', main, 'safekeeper', '--config', path],
    {stdio: ['ignore', 'pipe', 'ignore']},
  );
  try {
    await new Promise<void>((resolve, reject) => {
      child.stdout!.once('data', () => resolve());
      child.once('exit', () => reject(new Error(`safekeeper ${nodeId} ended before it was ready`)));
    });
    const {port, httpPort} = config;
    const ports = ['--port', String(port), '--http-port', String(httpPort)];
    await pagoda.cli('safekeepers', 'add', String(nodeId), ...ports, '--zone', 'z');
  } catch (error) {
    child.kill('SIGKILL');
    throw error;
  }
  return child;
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const {port} = server.address() as {port: number};
  await new Promise<void>((resolve) => void server.close(() => resolve()));
  return port;
}
