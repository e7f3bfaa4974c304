/** What runs on the oracle's cluster (wal-redo.md 9.4). */
import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import type {PostgresCluster} from '../postgres-cluster.ts';

export interface Load {
  readonly name: string;
  run(cluster: PostgresCluster): Promise<void>;
}

/** One SQL file, statement by statement (each its own transaction), by psql. */
export function sqlLoad(path: string): Load {
  return {
    name: path,
    async run(cluster) {
      await cluster.psql('-o', '/dev/null', '-f', path);
    },
  };
}

function own(name: string): Load {
  return {...sqlLoad(join(import.meta.dirname, name)), name};
}

function pgbench(name: string, scale: number, ...args: string[]): Load {
  return {
    name,
    async run(cluster) {
      await cluster.pgbench(['-i', '-q', '-s', String(scale)]);
      await cluster.pgbench(args);
    },
  };
}

export const quickLoads: readonly Load[] = [own('quick.sql'), pgbench('pgbench', 1, '-c', '4', '-j', '2', '-t', '500')];

export const fullLoads: readonly Load[] = [...quickLoads];

void readFileSync;
