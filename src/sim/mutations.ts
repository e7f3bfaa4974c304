/** Seeded bugs that a world can be built with, one set per place where they sit. */
import type {ProposerMutation} from '#proposer/proposer-io.ts';
import type {AcceptorMutation} from '#safekeeper/acceptor.ts';
import type {ArchiverMutation} from '#safekeeper/archiver.ts';

/** Bugs of the shell around the acceptor: of the order in which its outputs are carried out, and of files. */
export type StorageMutation =
  /** A flush is called finished without fsync. */
  | 'flush-without-fsync'
  /** A flush is called finished before the fsync is. */
  | 'flushed-too-early'
  /** fsync of WAL covers the newest file only. */
  | 'fsync-last-file-only'
  /** A failed fsync is tried again, and its success believed. */
  | 'fsync-retried'
  /** A new segment's directory entry is not made durable. */
  | 'no-directory-fsync'
  /** The control file is written in place. */
  | 'control-file-in-place'
  /** The control file is renamed without having been synced. */
  | 'control-file-unsynced'
  /** The rename of the control file is not made durable. */
  | 'control-rename-unsynced'
  /** Answers leave before the state they promise is saved. */
  | 'send-before-save'
  /** A truncation is not carried out. */
  | 'truncate-forgotten'
  /** A truncation is not durable when the next output is carried out. */
  | 'truncate-unsynced'
  /** What follows the end of WAL is left on the disk at a restart. */
  | 'tail-not-cut'
  /** Where WAL should end is not looked up at a restart. */
  | 'flush-mark-ignored'
  /** A truncation leaves the mark where it was. */
  | 'flush-mark-not-lowered'
  /** Records are believed without their checksum at a restart. */
  | 'torn-tail-accepted'
  /** What a killed process left in the page cache is believed durable. */
  | 'page-cache-believed'
  /** A full disk is overlooked: the write counts as done. */
  | 'disk-full-ignored'
  /** A copy of a timeline is used without a second look at its donor. */
  | 'copy-not-rechecked'
  /** A copy is renamed into place before its WAL is synced. */
  | 'copy-unsynced'
  /** A member that lost its disk copies the timeline and goes on as if nothing had been. */
  | 'lost-disk-rejoins';

export type ControlMutation =
  /** The new configuration follows the old one without a joint one. */
  | 'no-joint'
  /** The joint configuration is told to one old member only. */
  | 'joint-not-majority'
  /** The new members need not catch up. */
  | 'no-catch-up'
  /** Catching up looks at flushLsn without the term of the last WAL. */
  | 'catch-up-by-lsn'
  /** The term of the old members does not matter to the new ones. */
  | 'no-sync-term'
  /** The plan's state is lost when the control plane dies: another change begins at the same generation. */
  | 'state-not-saved';

export type ArchiveShellMutation =
  /** An object that exists is written again. */
  | 'archive-overwrites'
  /** WAL goes to the archive as it lies on the disk, rot and all. */
  | 'archive-undecoded'
  /** A put without an answer counts as done. */
  | 'archive-unverified'
  /** Parts are deleted before the longer object is there. */
  | 'parts-forgotten-early';

export interface Mutations {
  readonly acceptor?: ReadonlySet<AcceptorMutation>;
  readonly proposer?: ReadonlySet<ProposerMutation>;
  readonly archiver?: ReadonlySet<ArchiverMutation>;
  readonly storage?: ReadonlySet<StorageMutation>;
  readonly control?: ReadonlySet<ControlMutation>;
  readonly archive?: ReadonlySet<ArchiveShellMutation>;
}
