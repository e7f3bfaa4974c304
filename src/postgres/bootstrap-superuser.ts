/**
 * The name of role 10, which initdb made and which every cluster has, read from the file of pg_authid: before a server runs on the
 * directory, and because no session can be opened without a name.
 */
import type {Disk} from '#runtime/disk.ts';
import {blockSize} from '#postgres/relation.ts';
import {parseRelationMap} from '#postgres/relmap.ts';

const pgAuthid = 1260;
const bootstrapOid = 10;
const nameBytes = 64;
/** t_infomask (access/htup_details.h). */
const mask = {xminCommitted: 0x100, xminInvalid: 0x200, xmaxLockOnly: 0x80, xmaxInvalid: 0x800};

/** Of a stopped cluster's directory. Throws an Error when the name cannot be told, or the file is no pg_authid. */
export function readBootstrapSuperuser(disk: Disk, directory: string): string {
  const map = parseRelationMap(disk.readFile(`${directory}/global/pg_filenode.map`));
  const file = `global/${map.get(pgAuthid) ?? pgAuthid}`;
  const names = new Set(liveNames(disk.readFile(`${directory}/${file}`)));
  const [name] = names;
  if (names.size === 1 && name !== undefined) return name;
  throw new Error(
    `${file} (pg_authid) does not say clearly who the first superuser is (${[...names].join(', ') || 'nobody'}): start the cluster, run \`vacuum pg_authid\`, stop it`,
  );
}

/** Names in versions of the row that nobody has replaced. */
function* liveNames(bytes: Buffer): Generator<string> {
  for (let page = 0; page + blockSize <= bytes.length; page += blockSize) {
    const lower = Math.min(bytes.readUInt16LE(page + 12), blockSize);
    for (let pointer = 24; pointer + 4 <= lower; pointer += 4) {
      const item = bytes.readUInt32LE(page + pointer);
      const isNormal = ((item >>> 15) & 3) === 1;
      const at = page + (item & 0x7fff);
      if (!isNormal || at + 24 > page + blockSize) continue;
      const infomask = bytes.readUInt16LE(at + 20);
      const data = at + bytes[at + 22]!;
      if (data + 4 + nameBytes > page + blockSize || bytes.readUInt32LE(data) !== bootstrapOid) continue;
      const isAborted = (infomask & (mask.xminCommitted | mask.xminInvalid)) === mask.xminInvalid;
      const isReplaced = bytes.readUInt32LE(at + 4) !== 0 && (infomask & (mask.xmaxInvalid | mask.xmaxLockOnly)) === 0;
      if (isAborted || isReplaced) continue;
      const name = bytes.subarray(data + 4, data + 4 + nameBytes);
      const end = name.indexOf(0);
      yield name.toString('utf8', 0, end < 0 ? nameBytes : end);
    }
  }
}
