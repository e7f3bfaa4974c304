/**
 * Space that is kept for control files. When WAL has filled the disk, WAL can be trimmed only after a control file was
 * replaced; without a reserve there would be no room for that, and the disk would stay full for ever.
 *
 *   held ──control file has no room──→ lent ──replaced──→ held
 *                                        └──others have taken the space: WAL is refused ──there is room again──→ held
 */
import {type Disk, joinPath} from '#runtime/disk.ts';

const reserveBytes = 4 * 1024 * 1024;
const fileName = 'reserve';

export class DiskReserve {
  readonly #disk: Disk;
  readonly #path: string;
  #held = false;

  constructor(disk: Disk, dataDir: string) {
    this.#disk = disk;
    this.#path = joinPath(dataDir, fileName);
    this.#hold();
  }

  /** Before WAL is written. Throws ENOSPC while the reserve is gone and there is no room to have it again. */
  check(): void {
    if (this.#held || this.#hold()) return;
    throw Object.assign(new Error('the space that is left is for control files'), {code: 'ENOSPC'});
  }

  /** Does `replace`, which found no room, again with the reserve's; the reserve is taken back at once, if others leave it. */
  lend(replace: () => void): void {
    this.#held = false;
    this.#disk.remove(this.#path);
    try {
      replace();
    } finally {
      this.#hold();
    }
  }

  #hold(): boolean {
    try {
      const file = this.#disk.open(this.#path, 'create');
      try {
        const missing = reserveBytes - file.size();
        if (missing > 0) file.write(Buffer.alloc(missing), file.size());
        file.syncNow();
      } finally {
        file.close();
      }
      this.#held = true;
    } catch {
      // A part of it would be in the way of what it is for.
      this.#disk.remove(this.#path);
      this.#held = false;
    }
    return this.#held;
  }
}
