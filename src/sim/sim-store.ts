/**
 * The object store and the archive of the simulated timeline's WAL, as safekeepers see it: a call takes a while, may fail
 * before it has an effect or after, and calls may overtake one another. Objects are raw WAL named by their piece.
 */
import type {Lsn} from '#postgres/lsn.ts';
import type {ArchivePiece} from '#safekeeper/archiver.ts';
import {Violation} from '#sim/checker.ts';
import {type Stage, marks} from '#sim/stage.ts';

export type PutResult = 'ok' | 'exists' | 'error';

interface StoredObject {
  readonly piece: ArchivePiece;
  readonly bytes: Buffer;
}

export class SimStore {
  readonly #stage: Stage;
  readonly #objects = new Map<string, StoredObject>();

  constructor(stage: Stage) {
    this.#stage = stage;
  }

  /** If-None-Match: an object that exists stays as it is. */
  put(node: number, piece: ArchivePiece, bytes: Buffer, done: (result: PutResult) => void): void {
    const stage = this.#stage;
    const overwrites = stage.mutations.archive?.has('archive-overwrites') === true;
    this.#later(() => {
      if (stage.happens(stage.faults.storeErrorBefore)) {
        done('error');
        return;
      }
      const existing = this.#objects.get(name(piece));
      const exists = existing !== undefined && !overwrites;
      if (!exists) {
        stage.checker.archived(node, piece.startLsn, piece.endLsn, bytes);
        if (existing !== undefined)
          throw new Violation(`safekeeper ${node} writes the archived object ${name(piece)} again (18)`);
        this.#objects.set(name(piece), {piece, bytes});
        stage.objects++;
        stage.mark(marks.object, node, piece.endLsn);
        stage.note(() => `n${node} archives ${name(piece)}`);
      }
      const lost = stage.happens(stage.faults.storeErrorAfter);
      this.#later(() => done(lost ? 'error' : exists ? 'exists' : 'ok'));
    });
  }

  /** undefined: not there; 'error': no answer. */
  get(piece: ArchivePiece, done: (bytes: Buffer | undefined | 'error') => void): void {
    const stage = this.#stage;
    this.#later(() => {
      const lost = stage.happens(stage.faults.storeErrorBefore);
      done(lost ? 'error' : this.#objects.get(name(piece))?.bytes);
    });
  }

  /** Removes parts that a longer object of the same segment replaces. */
  forgetParts(): void {
    const early = this.#stage.mutations.archive?.has('parts-forgotten-early') === true;
    this.#later(() => {
      for (const [key, {piece}] of this.#objects) {
        if (piece.partialTerm === undefined) continue;
        for (const {piece: other} of this.#objects.values())
          if (
            early ||
            (other.segment === piece.segment && other.endLsn > piece.endLsn && other.startLsn <= piece.startLsn)
          ) {
            this.#objects.delete(key);
            break;
          }
      }
    });
  }

  /** At once and without faults: WAL from `lsn` on, up to the end of an object; none when there is none. */
  read(lsn: Lsn, lengthMax: number): Buffer {
    let best: StoredObject | undefined;
    for (const object of this.#objects.values())
      if (object.piece.startLsn <= lsn && object.piece.endLsn > lsn)
        if (best === undefined || object.piece.endLsn > best.piece.endLsn) best = object;
    if (best === undefined) return Buffer.alloc(0);
    const from = lsn - best.piece.startLsn;
    return best.bytes.subarray(from, from + lengthMax);
  }

  /** All WAL between two positions, as far as there is any without a gap. */
  readAll(startLsn: Lsn, endLsn: Lsn): Buffer {
    const parts: Buffer[] = [];
    for (let at: number = startLsn; at < endLsn;) {
      const bytes = this.read(at as Lsn, endLsn - at);
      if (bytes.length === 0) break;
      parts.push(bytes);
      at += bytes.length;
    }
    return Buffer.concat(parts);
  }

  #later(run: () => void): void {
    const {random} = this.#stage;
    this.#stage.after(random.float() * (random.float() < 0.1 ? 400 : 15), run);
  }
}

function name({segment, endLsn, partialTerm}: ArchivePiece): string {
  return partialTerm === undefined ? String(segment) : `${segment}.${endLsn.toString(16)}.${partialTerm}`;
}
