/**
 * The durable state of a timeline on a safekeeper, replaced as a whole. Little-endian:
 * magic "PGDSKCTL" | version u32 | body | crc32c u32 of all before.
 * Body of version 2: tenantId text, timelineId text, systemId text, pgVersion u32, startLsn u64, membership, term u64,
 * history, commitLsn u64, remoteConsistentLsn u64, archivedLsn u64, localStartLsn u64 (wire/safekeeper.ts has the forms).
 */
import {crc32c} from '#runtime/crc.ts';
import type {AcceptorState} from '#safekeeper/acceptor.ts';
import {ByteReader, ByteWriter, WireError} from '#wire/safekeeper-bytes.ts';
import {readHistory, readMembership, writeHistory, writeMembership} from '#wire/safekeeper.ts';

export const controlFileName = 'safekeeper.control';
const magic = Buffer.from('PGDSKCTL', 'latin1');
const version = 2;

export class ControlFileError extends Error {}

export function encodeControlFile(state: AcceptorState): Buffer {
  const w = new ByteWriter();
  w.text(state.tenantId).text(state.timelineId).text(state.systemId).u32(state.pgVersion).u64(state.startLsn);
  writeMembership(w, state.membership);
  w.u64(state.term);
  writeHistory(w, state.history);
  w.u64(state.commitLsn).u64(state.remoteConsistentLsn).u64(state.archivedLsn).u64(state.localStartLsn);
  const head = Buffer.alloc(magic.length + 4);
  magic.copy(head);
  head.writeUInt32LE(version, magic.length);
  const content = Buffer.concat([head, w.finish()]);
  const sum = Buffer.alloc(4);
  sum.writeUInt32LE(crc32c(content), 0);
  return Buffer.concat([content, sum]);
}

/** Throws ControlFileError, also when it is that of another timeline than `of`. `path` is only for the message. */
export function decodeControlFile(
  bytes: Buffer,
  path: string,
  of?: {readonly tenantId: string; readonly timelineId: string},
): AcceptorState {
  const fail = (reason: string): never => {
    throw new ControlFileError(
      `safekeeper control file ${path} ${reason}. Its promises are lost: replace this safekeeper, do not recreate the file`,
    );
  };
  if (bytes.length < magic.length + 8 || !bytes.subarray(0, magic.length).equals(magic)) fail('is none');
  if (crc32c(bytes.subarray(0, bytes.length - 4)) !== bytes.readUInt32LE(bytes.length - 4)) fail('fails its checksum');
  const found = bytes.readUInt32LE(magic.length);
  if (found !== version) fail(`has version ${found}, this program reads version ${version}`);
  try {
    const r = new ByteReader(bytes.subarray(magic.length + 4, bytes.length - 4), 'control file');
    const state: AcceptorState = {
      tenantId: r.text(64),
      timelineId: r.text(64),
      systemId: r.text(32),
      pgVersion: r.u32(),
      startLsn: r.lsn(),
      membership: readMembership(r),
      term: r.u64(),
      history: readHistory(r),
      commitLsn: r.lsn(),
      remoteConsistentLsn: r.lsn(),
      archivedLsn: r.lsn(),
      localStartLsn: r.lsn(),
    };
    r.end();
    if (of !== undefined && (state.tenantId !== of.tenantId || state.timelineId !== of.timelineId))
      fail(`is that of tenant ${state.tenantId} timeline ${state.timelineId}`);
    return state;
  } catch (error) {
    if (error instanceof WireError) fail(error.message);
    throw error;
  }
}
