/** For tests: a safekeeper that has nothing but the WAL files of a stock server, and serves all of it as committed. */
import {type Lsn, parseLsn} from '#postgres/lsn.ts';
import {segmentFileName, segmentNumber, walSegmentSizeDefault} from '#postgres/wal/segment.ts';
import {systemClock} from '#runtime/clock.ts';
import {joinPath, systemDisk} from '#runtime/disk.ts';
import {type FrameConnection, listenFrames, parseJsonFrame, sendJson} from '#runtime/net.ts';
import {
  type WalFeedback,
  decodeFeedback,
  encodeReaderMessage,
  frameHello,
  frameRefused,
  frameWelcome,
} from '#wire/safekeeper.ts';

export class WalFilesSafekeeper {
  readonly port: number;
  readonly #close: () => Promise<void>;
  feedback: WalFeedback | undefined;
  connections = 0;

  private constructor(port: number, close: () => Promise<void>) {
    this.port = port;
    this.#close = close;
  }

  /**
   * `refusal`: why no WAL is given, while it says so. `damage`: this byte of the stream is sent flipped. `cutAfterBytes`: each
   * connection is broken after so many bytes.
   */
  static async start(options: {
    walDir: string;
    commitLsn: () => Lsn;
    chunkBytes?: number;
    cutAfterBytes?: number;
    damage?: Lsn;
    refusal?: () => string | undefined;
  }): Promise<WalFilesSafekeeper> {
    let self: WalFilesSafekeeper | undefined;
    const listener = await listenFrames({host: '127.0.0.1', port: 0}, (connection) => {
      connection.onFrame = (type, payload) => {
        if (type !== frameHello) return;
        const hello = parseJsonFrame(payload) as {service: string; startLsn: string};
        if (hello.service !== 'wal') {
          sendJson(connection, frameRefused, {code: 'busy', message: 'only WAL here'});
          return;
        }
        self!.connections++;
        sendJson(connection, frameWelcome, {});
        connection.onFrame = (t, p) => (self!.feedback = decodeFeedback(t, p));
        const message = options.refusal?.();
        if (message !== undefined) {
          sendJson(connection, frameRefused, {code: 'wal-trimmed', message});
          connection.close();
          return;
        }
        stream(connection, parseLsn(hello.startLsn), options);
      };
    });
    self = new WalFilesSafekeeper(listener.port, () => listener.close());
    return self;
  }

  stop(): Promise<void> {
    return this.#close();
  }
}

function stream(
  connection: FrameConnection,
  startLsn: Lsn,
  options: {walDir: string; commitLsn: () => Lsn; chunkBytes?: number; cutAfterBytes?: number; damage?: Lsn},
): void {
  let at = startLsn as number;
  let sent = 0;
  let blocked = false;
  let closed = false;
  const step = (): void => {
    if (closed) return;
    const commitLsn = options.commitLsn();
    for (let n = 0; n < 20 && at < commitLsn && !blocked; n++) {
      const inSegment = walSegmentSizeDefault - (at % walSegmentSizeDefault);
      const bytes = readWal(
        options.walDir,
        at as Lsn,
        Math.min(options.chunkBytes ?? 60_000, inSegment, commitLsn - at),
      );
      if (options.damage !== undefined && options.damage >= at && options.damage < at + bytes.length)
        bytes[options.damage - at]! ^= 0x10;
      const frame = encodeReaderMessage({kind: 'wal', startLsn: at as Lsn, commitLsn, bytes});
      blocked = !connection.send(frame.type, ...frame.parts);
      at += bytes.length;
      sent += bytes.length;
      if (options.cutAfterBytes !== undefined && sent >= options.cutAfterBytes) return connection.close();
    }
    if (at >= commitLsn) {
      const frame = encodeReaderMessage({kind: 'keepalive', commitLsn});
      connection.send(frame.type, ...frame.parts);
    }
    systemClock.setTimer(at >= commitLsn ? 50 : 0, step);
  };
  connection.onDrain = () => (blocked = false);
  connection.onClose = () => (closed = true);
  step();
}

export function readWal(walDir: string, start: Lsn, length: number): Buffer {
  const file = systemDisk.open(joinPath(walDir, segmentFileName(1, segmentNumber(start))), 'read');
  const bytes = Buffer.alloc(length);
  file.read(bytes, start % walSegmentSizeDefault);
  file.close();
  return bytes;
}
