/** What a safekeeper has of a timeline, asked and answered over the frame listener (service `state` of wire/safekeeper.ts). */
import {type Lsn, formatLsn, parseLsn} from '#postgres/lsn.ts';
import type {Clock} from '#runtime/clock.ts';
import {connectFrames, parseJsonFrame, sendJson} from '#runtime/net.ts';
import type {Acceptor, AcceptorState} from '#safekeeper/acceptor.ts';
import {decodeControlFile, encodeControlFile} from '#safekeeper/control-file.ts';
import {
  type PeerStateWelcome,
  type SafekeeperHello,
  frameHello,
  frameRefused,
  frameWelcome,
  parseRefusal,
} from '#wire/safekeeper.ts';
import {WalStreamRefused} from '#wire/wal-stream.ts';

const answerMs = 3000;

export interface PeerState {
  readonly nodeId: number;
  readonly address: {readonly host: string; readonly port: number};
  /** With the commitLsn that the peer knows now, which its control file may not have yet. */
  readonly state: AcceptorState;
  readonly flushLsn: Lsn;
}

export function peerStateWelcome(acceptor: Acceptor): PeerStateWelcome {
  const state = {...acceptor.state, commitLsn: acceptor.commitLsn};
  return {
    nodeId: acceptor.nodeId,
    controlFile: encodeControlFile(state).toString('base64'),
    flushLsn: formatLsn(acceptor.flushLsn),
  };
}

/** Throws WalStreamRefused ('no-timeline' when the peer does not have it), or the connection's error. */
export async function askPeerState(options: {
  readonly address: {readonly host: string; readonly port: number};
  readonly token: string;
  readonly tenantId: string;
  readonly timelineId: string;
  readonly clock: Clock;
}): Promise<PeerState> {
  const {address, token, tenantId, timelineId, clock} = options;
  const connection = await connectFrames(address, answerMs);
  return await new Promise<PeerState>((resolve, reject) => {
    const deadline = clock.setTimer(answerMs, () => connection.destroy());
    connection.onClose = (error) => {
      deadline.cancel();
      reject(
        error ?? new Error(`safekeeper ${connection.peer} closed the connection, or was silent, before it answered`),
      );
    };
    connection.onFrame = (type, payload) => {
      try {
        if (type === frameRefused) throw new WalStreamRefused(parseRefusal(payload), connection.peer);
        if (type !== frameWelcome)
          throw new Error(`safekeeper ${connection.peer} answered with a frame of type ${type}`);
        const welcome = parseJsonFrame(payload) as PeerStateWelcome;
        resolve({
          nodeId: welcome.nodeId,
          address,
          state: decodeControlFile(Buffer.from(welcome.controlFile, 'base64'), `of safekeeper ${connection.peer}`, {
            tenantId,
            timelineId,
          }),
          flushLsn: parseLsn(welcome.flushLsn),
        });
      } catch (error) {
        reject(error as Error);
      }
      connection.destroy();
    };
    sendJson(connection, frameHello, {token, service: 'state', tenantId, timelineId} satisfies SafekeeperHello);
  });
}
