/**
 * Which object store an installation uses. PAGODA_OBJECT_STORE says it at the first start; then it is written down in the data
 * directory, for everything would seem to be lost if a later start looked elsewhere.
 *
 *   folder:/absolute/path
 *   s3://bucket[/prefix][?endpoint=https://host:port][&region=…][&credentials=/absolute/private/file]
 */
import type {Disk} from '#runtime/disk.ts';
import {joinPath} from '#runtime/disk.ts';
import {type Random, newId} from '#runtime/random.ts';
import type {ObjectStoreConfig} from '#objectstore/open.ts';
import {UsageError} from '#cli/arguments.ts';
import type {Layout} from '#cli/layout.ts';

const variable = 'PAGODA_OBJECT_STORE';

/** The choice of this installation; made, with a new installation id, when there is none yet. */
export function chooseObjectStore(
  layout: Layout,
  wanted: string | undefined,
  disk: Disk,
  random: Random,
): ObjectStoreConfig {
  const file = joinPath(layout.data, 'object-store.json');
  const asked = wanted === undefined || wanted === '' ? undefined : parseObjectStore(wanted);
  if (!disk.exists(file)) {
    // Data of before this file was written lies in the default folder.
    const used = disk.exists(layout.database);
    if (used && asked !== undefined)
      throw new UsageError(
        `${layout.data} keeps its objects in ${layout.objects}; ${variable} cannot change that. Unset it, or begin with another --data DIR`,
      );
    const chosen = {...(asked ?? {kind: 'folder', root: layout.objects}), installationId: newId(random)};
    disk.writeFileAtomic(file, Buffer.from(`${JSON.stringify(chosen, undefined, 2)}\n`), 0o600);
    return chosen;
  }
  const chosen = JSON.parse(disk.readFile(file).toString('utf8')) as ObjectStoreConfig;
  if (asked !== undefined && place(asked) !== place(chosen))
    throw new UsageError(
      `${layout.data} keeps its objects in ${place(chosen)} (${file}), but ${variable} says ${place(asked)}. ` +
        'Unset it, or begin with another --data DIR',
    );
  // Endpoint, region and credentials may change; where the data is may not.
  if (asked === undefined || asked.kind === 'folder') return chosen;
  const changed = {...asked, ...(chosen.installationId === undefined ? {} : {installationId: chosen.installationId})};
  if (JSON.stringify(changed) !== JSON.stringify(chosen))
    disk.writeFileAtomic(file, Buffer.from(`${JSON.stringify(changed, undefined, 2)}\n`), 0o600);
  return changed;
}

function place(config: ObjectStoreConfig): string {
  return config.kind === 'folder' ? `folder:${config.root}` : `s3://${config.bucket}/${config.prefix ?? ''}`;
}

/** Throws UsageError. */
export function parseObjectStore(text: string): ObjectStoreConfig {
  const bad = (reason: string): never => {
    throw new UsageError(
      `${variable}=${text}: ${reason}. Forms: folder:/path, s3://bucket/prefix?endpoint=…&region=…&credentials=/file`,
    );
  };
  if (text.startsWith('folder:')) {
    const root = text.slice('folder:'.length);
    return root.startsWith('/')
      ? {kind: 'folder', root: root.replace(/(?<=.)\/+$/, '')}
      : bad('the path must be absolute');
  }
  const match = /^s3:\/\/([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:\/([^?]*))?(?:\?(.*))?$/.exec(text);
  if (match === null) return bad('not understood');
  const options = new URLSearchParams(match[3] ?? '');
  for (const name of options.keys())
    if (!['endpoint', 'region', 'credentials'].includes(name)) bad(`unknown option ${name}`);
  const prefix = (match[2] ?? '').replace(/\/+$/, '');
  if (prefix !== '' && !/^[A-Za-z0-9_-][A-Za-z0-9._-]*(\/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$/.test(prefix))
    bad('the prefix may have letters, digits and . _ - between its slashes');
  const endpoint = options.get('endpoint');
  if (endpoint !== null && !/^https?:\/\/[^/]+\/?$/.test(endpoint)) bad('the endpoint is https://host:port');
  const credentialsFile = options.get('credentials');
  if (credentialsFile !== null && !credentialsFile.startsWith('/')) bad('the path of the credentials must be absolute');
  const region = options.get('region');
  return {
    kind: 's3',
    bucket: match[1]!,
    ...(prefix === '' ? {} : {prefix: `${prefix}/`}),
    ...(endpoint === null ? {} : {endpoint: endpoint.replace(/\/$/, '')}),
    ...(region === null ? {} : {region}),
    ...(credentialsFile === null ? {} : {credentialsFile}),
  };
}
