/** Reading from one safekeeper the WAL that another lacks. */
import type {Lsn} from '#postgres/lsn.ts';
import type {WalStreamClient} from '#wire/wal-stream.ts';

export interface RecoveryOptions {
  readonly open: (callbacks: {
    onWal: (lsn: Lsn, bytes: Buffer) => void;
    onClose: (reason?: Error) => void;
  }) => Promise<WalStreamClient>;
  readonly onWal: (lsn: Lsn, bytes: Buffer) => void;
  readonly onEnd: (error: Error) => void;
}

/** One read from a donor; after close() nothing is called any more. */
export class Recovery {
  #client: WalStreamClient | undefined;
  #closed = false;
  #paused = false;

  constructor(options: RecoveryOptions) {
    const end = (error: Error): void => {
      if (this.#closed) return;
      this.#closed = true;
      options.onEnd(error);
    };
    options
      .open({
        onWal: (lsn, bytes) => {
          if (!this.#closed) options.onWal(lsn, bytes);
        },
        onClose: (reason) => end(reason ?? new Error('closed')),
      })
      .then((client) => {
        this.#client = client;
        if (this.#closed) client.close();
        else if (this.#paused) client.pause();
      })
      .catch(end);
  }

  pause(): void {
    this.#paused = true;
    this.#client?.pause();
  }

  resume(): void {
    this.#paused = false;
    this.#client?.resume();
  }

  close(): void {
    this.#closed = true;
    this.#client?.close();
  }
}
