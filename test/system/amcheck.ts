import {execFile} from 'node:child_process';
import {join} from 'node:path';
import {promisify} from 'node:util';
import type {Pagoda} from '../pagoda.ts';
import {postgresBinDir} from '../postgres-cluster.ts';

/** What pg_amcheck finds in all databases of a running compute, indexes against their tables: nothing. */
export async function amcheck(pagoda: Pagoda, endpointId: string): Promise<string> {
  const {host, port} = pagoda.computeSocket(endpointId);
  const checks = ['--all', '--heapallindexed', '--parent-check', '--install-missing'];
  try {
    const {stdout, stderr} = await promisify(execFile)(
      join(postgresBinDir, 'pg_amcheck'),
      ['-h', host, '-p', String(port), '-U', 'pagoda_admin', ...checks],
      {maxBuffer: 1 << 26},
    );
    return complaints(stdout + stderr);
  } catch (error) {
    const {stdout, stderr} = error as {stdout: string; stderr: string};
    return complaints(stdout + stderr) || (error as Error).message;
  }
}

/** Without what it says about the extension it installs. */
function complaints(output: string): string {
  return output
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('NOTICE:'))
    .join('\n');
}
