import assert from 'node:assert/strict';
import {test} from 'node:test';
import type {Lsn} from '#postgres/lsn.ts';
import {SeededRandom} from '#runtime/random.ts';
import {WireError} from '#wire/safekeeper-bytes.ts';
import {
  type AcceptorMessage,
  type Frame,
  type Membership,
  type ProposerMessage,
  decodeAcceptorMessage,
  decodeFeedback,
  decodeProposerMessage,
  decodeReaderMessage,
  encodeAcceptorMessage,
  encodeFeedback,
  encodeProposerMessage,
  encodeReaderMessage,
} from '#wire/safekeeper.ts';

const at = (value: number): Lsn => value as Lsn;
const history = Array.from({length: 50}, (_, i) => ({term: i * 2, lsn: at(0x1_2345_6000 + i * 8)}));
const membership: Membership = {
  generation: 3,
  members: [
    {nodeId: 1, host: 'sk1.example', port: 7001},
    {nodeId: 2, host: '127.0.0.1', port: 7002},
  ],
  newMembers: [{nodeId: 4, host: 'x', port: 1}],
};
const feedback = {lastReceivedLsn: at(5), diskConsistentLsn: at(4), remoteConsistentLsn: at(3)};

const fromProposer: ProposerMessage[] = [
  {
    kind: 'greeting',
    tenantId: 'a'.repeat(32),
    timelineId: 'b'.repeat(32),
    pgVersion: 150018,
    systemId: '7345678901234567890',
    generation: 1,
  },
  {kind: 'vote-request', generation: 1, term: 2 ** 40},
  {kind: 'elected', generation: 1, term: 99, history},
  {
    kind: 'append',
    generation: 1,
    term: 7,
    beginLsn: at(2 ** 45),
    commitLsn: at(1),
    wantsReply: true,
    bytes: Buffer.from('wal'),
  },
  {
    kind: 'append',
    generation: 1,
    term: 7,
    beginLsn: at(8),
    commitLsn: at(8),
    wantsReply: false,
    bytes: Buffer.alloc(0),
  },
];
const fromAcceptor: AcceptorMessage[] = [
  {kind: 'greeting-response', nodeId: 3, term: 4, membership},
  {kind: 'vote-response', generation: 1, term: 5, granted: true, flushLsn: at(100), commitLsn: at(90), history},
  {kind: 'elected-response', generation: 1, term: 5, startLsn: at(100), commitLsn: at(90)},
  {kind: 'append-response', generation: 1, term: 5, flushLsn: at(100), syncedLsn: at(104), commitLsn: at(90), feedback},
  {
    kind: 'append-response',
    generation: 1,
    term: 5,
    flushLsn: at(100),
    syncedLsn: at(104),
    commitLsn: at(90),
    feedback: {...feedback, shards: [feedback, {...feedback, lastReceivedLsn: at(95)}]},
  },
];
const whole = (frame: Frame): Buffer => Buffer.concat(frame.parts);

test('every message comes back as it was', () => {
  for (const message of fromProposer) {
    const frame = encodeProposerMessage(message);
    assert.deepEqual(decodeProposerMessage(frame.type, whole(frame)), message);
  }
  for (const message of fromAcceptor) {
    const frame = encodeAcceptorMessage(message);
    assert.deepEqual(decodeAcceptorMessage(frame.type, whole(frame)), message);
  }
  const wal = encodeReaderMessage({kind: 'wal', startLsn: at(16), commitLsn: at(32), bytes: Buffer.from('abc')});
  assert.deepEqual(decodeReaderMessage(wal.type, whole(wal)), {
    kind: 'wal',
    startLsn: 16,
    commitLsn: 32,
    bytes: Buffer.from('abc'),
  });
  const keepalive = encodeReaderMessage({kind: 'keepalive', commitLsn: at(32)});
  assert.deepEqual(decodeReaderMessage(keepalive.type, whole(keepalive)), {kind: 'keepalive', commitLsn: 32});
  const back = encodeFeedback(feedback);
  assert.deepEqual(decodeFeedback(back.type, whole(back)), feedback);
});

test('a frame cut short, too long, or of random bytes is a WireError, never anything else', () => {
  const random = new SeededRandom(5);
  const decoders: [readonly Frame[], (type: number, payload: Buffer) => unknown][] = [
    [fromProposer.map(encodeProposerMessage), decodeProposerMessage],
    [fromAcceptor.map(encodeAcceptorMessage), decodeAcceptorMessage],
  ];
  for (const [frames, decode] of decoders) {
    for (const frame of frames) {
      const payload = whole(frame);
      for (let length = 0; length < payload.length; length++)
        tolerate(() => decode(frame.type, payload.subarray(0, length)));
      tolerate(() => decode(frame.type, Buffer.concat([payload, Buffer.from([0])])));
      for (let i = 0; i < 500; i++) {
        const damaged = Buffer.from(payload);
        for (let n = 0; n < 3; n++) damaged[random.uint32() % damaged.length] = random.uint32() & 0xff;
        tolerate(() => decode(frame.type, damaged));
      }
    }
    for (let type = 0; type < 256; type++) tolerate(() => decode(type, random.bytes(40)));
  }
});

function tolerate(run: () => unknown): void {
  try {
    run();
  } catch (error) {
    assert.ok(error instanceof WireError, String((error as Error).stack));
  }
}
