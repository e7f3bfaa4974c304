/** For tests: the proxy before a stock Postgres, with a control plane that answers from a table. */
import {mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import pg from 'pg';
import {systemClock} from '#runtime/clock.ts';
import {startHttpServer} from '#runtime/http.ts';
import {silentLog} from '#runtime/log.ts';
import {TokenVerifier, generateKeys} from '#wire/auth.ts';
import {runProxy} from '#proxy/server.ts';
import {PostgresCluster} from './postgres-cluster.ts';

/** Of the role `owner`. */
export const password = 'pa;ss$word "\u00e9';

export interface FrontDoor {
  readonly cluster: PostgresCluster;
  /** Of the proxy. It has one endpoint, `ep-one` in the domain `db.test`, with the database `app`. */
  readonly port: number;
  /** How often the control plane was asked for the compute. */
  readonly wakes: () => number;
  readonly close: () => Promise<void>;
}

export async function openFrontDoor(): Promise<FrontDoor> {
  const closing: (() => Promise<void>)[] = [];
  const close = async (): Promise<void> => {
    for (const end of closing.toReversed()) await end();
  };
  try {
    const dir = mkdtempSync(join(tmpdir(), 'pagoda-proxy-'));
    closing.push(async () => rmSync(dir, {recursive: true, force: true}));
    const cluster = await PostgresCluster.create({
      settings: {password_encryption: 'scram-sha-256'},
      initdbArgs: ['--auth-host=scram-sha-256'],
    });
    closing.push(() => cluster[Symbol.asyncDispose]());
    await cluster.query(`create role owner login password ${pg.escapeLiteral(password)}`);
    await cluster.query('create database app owner owner');
    const verifier = async (): Promise<string> => {
      const [row] = await cluster.query("select rolpassword from pg_authid where rolname = 'owner'");
      return String((row as {rolpassword: string}).rolpassword);
    };
    const keysDir = join(dir, 'keys');
    await generateKeys(keysDir);
    const tokens = await TokenVerifier.load(keysDir, 'control', systemClock);
    let wakes = 0;
    const control = await startHttpServer({
      host: '127.0.0.1',
      port: 0,
      log: silentLog,
      authenticate: (token) => tokens.verify(token),
      routes: [
        {
          method: 'GET',
          path: '/internal/v1/endpoint_access',
          handler: async ({query}) =>
            query.get('endpoint') === 'ep-one'
              ? {
                  status: 200,
                  json: {
                    endpointId: 'ep-one',
                    ...(query.get('role') === 'owner' && {scramVerifier: await verifier()}),
                    allowedIps: [],
                  },
                }
              : {status: 404, json: {code: 'not_found', message: 'no such endpoint'}},
        },
        {
          method: 'POST',
          path: '/internal/v1/endpoints/:id/wake',
          handler: async () => {
            wakes++;
            return {status: 200, json: {host: '127.0.0.1', port: cluster.port}};
          },
        },
      ],
    });
    closing.push(() => control.close());
    const proxy = await runProxy({
      host: '127.0.0.1',
      port: 0,
      keysDir,
      dataDir: join(dir, 'proxy'),
      domain: 'db.test',
      controlUrl: `http://127.0.0.1:${control.port}`,
    });
    closing.push(() => proxy.stop());
    return {cluster, port: proxy.port, wakes: () => wakes, close};
  } catch (error) {
    await close();
    throw error;
  }
}
