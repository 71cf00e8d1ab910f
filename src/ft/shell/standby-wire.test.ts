// What a standby does with a stream that breaks the rules, on real sockets: it refuses, says why, and the last committed state stands.
import { afterEach, describe, expect, it } from 'vitest';
import { hello } from '../../../test/support/protocol-ends.ts';
import { manifestOf, memoryGuest, parts, RawPrimary } from '../../../test/support/raw-primary.ts';
import { MemoryLog } from '../../base/log.ts';
import { loadNativeIo } from '../../kvm/native-io.ts';
import type { ReplicaDisks, ReplicaEvents } from '../disk/replica-disks.ts';
import { FAULT, type FaultCode } from '../wire/fault.ts';
import type { Hello, Message } from '../wire/message.ts';
import { ARBITER, HEADER, ON_PEER_LOSS, ROLE } from '../wire/spec.ts';
import { StandbyShell, type Takeover } from './standby-shell.ts';

const PAGES = 64;
const FRAME_MAX = 64 * 1024;
const limits = {
  frameBytesMax: FRAME_MAX,
  transactionBytesMax: 4 * FRAME_MAX,
  epochsInFlightMax: 3,
  tapBytesMax: 4096,
};
const identity: Partial<Hello> = { arbiter: ARBITER.none, onPeerLoss: ON_PEER_LOSS.wait, limits };

class Ground {
  readonly log = new MemoryLog();
  readonly memory = memoryGuest(PAGES);
  readonly taken: Takeover[] = [];
  readonly primary: RawPrimary;
  readonly shell: StandbyShell;
  /** Gives a machine back. */
  dispose: () => Promise<void> = async () => {};

  constructor(change: Partial<Hello> = {}, deadlineNs = 60e9, replicas?: ReplicaDisks) {
    const { log, memory } = this;
    this.primary = new RawPrimary(hello({ ...identity, ...change }));
    this.shell = new StandbyShell({
      io: loadNativeIo(),
      log,
      listen: { host: '127.0.0.1', port: 0, key: undefined, log },
      arbiter: undefined,
      inspect: (description) => ({
        vm: (description as { vm: string }).vm,
        generation: 5,
        tickets: [],
        storage: [],
        held: undefined,
      }),
      build: async () => ({
        guest: memory.guest,
        config: {
          hello: hello({
            ...identity,
            role: ROLE.standby,
            generation: 0,
            instance: '77'.repeat(8),
          }),
          authority: { arbiter: false, onPeerLoss: 'wait', retryNs: 1e9 },
          liveness: { intervalNs: 20e6, deadlineNs },
          suspectNs: 1e9,
        },
        replicas,
        dispose: () => this.dispose(),
      }),
      events: {
        state: () => {},
        takeOver: (takeover) => this.taken.push(takeover),
        ended: () => {},
      },
    });
  }

  /** A stream with two transactions committed: memory holds 2. */
  async open(): Promise<void> {
    await this.shell.start();
    await this.primary.connect(this.shell.port);
    await this.primary.init('full', 0);
    expect(await this.primary.whole(1, 1)).toMatchObject({ cmd: 'ACK', id: 1 });
    expect(await this.primary.whole(2, 2)).toMatchObject({ cmd: 'ACK', id: 2 });
    this.stands(2);
  }

  /** Memory and figures are those of transaction `id`, whose pages hold its number. */
  stands(id: number): void {
    expect([this.memory.bytes[0], this.memory.bytes[4096]]).toEqual([id, id]);
    expect(this.shell.figures()).toMatchObject({ committedId: id, complete: true });
  }

  /** The stream goes on after CANCEL, or on a new connection. */
  async goesOn(): Promise<void> {
    expect(await this.primary.whole(3, 3)).toMatchObject({ cmd: 'ACK', id: 3 });
    this.stands(3);
  }
}

const grounds: Ground[] = [];
afterEach(async () => {
  for (const ground of grounds.splice(0)) {
    ground.primary.close();
    await ground.shell.close();
  }
});

async function opened(): Promise<Ground> {
  const ground = new Ground();
  grounds.push(ground);
  await ground.open();
  return ground;
}

const part = (id: number, seq: number): Partial<Message> & { cmd: Message['cmd'] } => ({
  cmd: 'CONTINUE',
  id,
  seq,
  payload: parts([0], 9)[0]!,
});

describe('a standby on a real socket refuses', () => {
  const broken: [string, FaultCode, (p: RawPrimary) => void][] = [
    ['a stale id', FAULT.ID_STALE, (p) => p.begin(2)],
    ['a gap in the ids', FAULT.ID_GAP, (p) => p.begin(4)],
    ['another base', FAULT.BASE_UNKNOWN, (p) => p.begin(3, 1)],
    [
      'a gap in the parts',
      FAULT.SEQ_WRONG,
      (p) => {
        p.begin(3);
        p.say(part(3, 1));
      },
    ],
    [
      'a repeated part',
      FAULT.SEQ_WRONG,
      (p) => {
        p.begin(3);
        p.say(part(3, 0));
        p.say(part(3, 0));
      },
    ],
    [
      'a part of another transaction',
      FAULT.ID_STALE,
      (p) => {
        p.begin(3);
        p.say(part(2, 0));
      },
    ],
    [
      'a payload with a wrong checksum',
      FAULT.PAYLOAD_CHECKSUM,
      (p) => {
        p.begin(3);
        const frame = p.frame(part(3, 0));
        frame[frame.length - 1]! ^= 1;
        p.write(frame);
      },
    ],
    [
      'a transaction larger than agreed, before it is buffered',
      FAULT.TRANSACTION_TOO_LARGE,
      (p) => {
        p.begin(3);
        const payload = new Uint8Array(FRAME_MAX);
        for (let seq = 0; seq < 5; seq++) p.say({ cmd: 'CONTINUE', id: 3, seq, payload });
      },
    ],
    [
      'totals that differ',
      FAULT.MANIFEST_MISMATCH,
      (p) => {
        p.begin(3);
        p.say(part(3, 0));
        p.say({ cmd: 'COMMIT', id: 3, seq: 1, manifest: manifestOf([], 0) });
      },
    ],
    [
      'a page that does not come out as announced',
      FAULT.PAGE_CHECKSUM,
      (p) => {
        const all = parts([0], 9);
        all[0]![30]! ^= 1;
        p.begin(3);
        for (const [seq, payload] of all.entries()) p.say({ cmd: 'CONTINUE', id: 3, seq, payload });
        p.say({ cmd: 'COMMIT', id: 3, seq: 3, manifest: manifestOf(all, 1) });
      },
    ],
  ];
  for (const [what, code, act] of broken) {
    it(`${what}, and goes on after CANCEL`, async () => {
      const ground = await opened();
      act(ground.primary);
      expect(await ground.primary.next('NACK')).toMatchObject({ code, id: 3 });
      ground.stands(2);
      // Ignored until the sender has confirmed.
      ground.primary.begin(3);
      ground.primary.say({ cmd: 'CANCEL', id: 3, code: FAULT.CANCELLED });
      await ground.goesOn();
    });
  }

  const fatal: [string, FaultCode, (p: RawPrimary) => void][] = [
    [
      'a header with a wrong checksum',
      FAULT.HEADER_CHECKSUM,
      (p) => {
        const frame = p.frame({ cmd: 'BEGIN', id: 3, baseId: 2, syncFrames: 0 });
        frame[HEADER.headerCrc]! ^= 1;
        p.write(frame);
      },
    ],
    [
      'a frame longer than agreed, on its header alone',
      FAULT.PAYLOAD_TOO_LARGE,
      (p) => {
        p.begin(3);
        const frame = p.frame({ cmd: 'CONTINUE', id: 3, payload: new Uint8Array(FRAME_MAX + 1) });
        p.write(frame.subarray(0, 40));
      },
    ],
    [
      'frames of another generation',
      FAULT.GENERATION_WRONG,
      (p) => p.say({ cmd: 'BEGIN', generation: 6, id: 3, baseId: 2, syncFrames: 0 }),
    ],
    [
      'CANCEL of what it has acknowledged',
      FAULT.STATE_INVALID,
      (p) => p.say({ cmd: 'CANCEL', id: 2, code: 1 }),
    ],
    [
      'END inside a transaction',
      FAULT.STATE_INVALID,
      (p) => {
        p.begin(3);
        p.say({ cmd: 'END', id: 2, reason: 1 });
      },
    ],
  ];
  for (const [what, code, act] of fatal) {
    it(`${what}: the connection ends, and a new one resumes`, async () => {
      const ground = await opened();
      act(ground.primary);
      expect(await ground.primary.next('NACK')).toMatchObject({ code, id: 0 });
      await ground.primary.closed();
      ground.stands(2);
      const theirs = await ground.primary.connect(ground.shell.port);
      expect(theirs).toMatchObject({ committedId: 2, complete: true, generation: 5, ended: false });
      await ground.primary.init('resume', 2);
      await ground.goesOn();
    });
  }

  const misfits: [string, Partial<Hello>, FaultCode, RegExp][] = [
    ['another CPU', { cpuDigest: '44'.repeat(32) }, FAULT.OTHER_CPU, /CPU/],
    ['a TSC of another frequency', { tscKhz: 1001 }, FAULT.OTHER_CPU, /TSC/],
    ['another machine', { machineDigest: '44'.repeat(32) }, FAULT.OTHER_MACHINE, /machine/],
    ['another page size', { pageBytes: 16384 }, FAULT.PAGE_SIZE, /page/],
    ['another arbiter', { arbiter: ARBITER.lock }, FAULT.POLICY_CONFLICT, /arbiter/],
    ['a second standby', { role: ROLE.standby }, FAULT.ROLE_CONFLICT, /standby/],
    ['another protocol', { protocolMin: 7, protocolMax: 9 }, FAULT.PROTOCOL_VERSION, /7-9/],
  ];
  for (const [what, change, code, sentence] of misfits) {
    it(`${what}, and says so`, async () => {
      const ground = new Ground(change);
      grounds.push(ground);
      await ground.shell.start();
      await ground.primary.connect(ground.shell.port);
      const nack = await ground.primary.next('NACK');
      expect(nack).toMatchObject({ code });
      expect(nack.cmd === 'NACK' && nack.sentence).toMatch(sentence);
      await ground.primary.closed();
      expect(ground.shell.orderTakeover()).toBeDefined();
      expect(ground.taken).toEqual([]);
    });
  }
});

describe('a standby on a real socket', () => {
  it('takes CANCEL in every state of a transaction', async () => {
    const ground = await opened();
    const { primary } = ground;
    const cancel = (): void => primary.say({ cmd: 'CANCEL', id: 3, code: FAULT.CANCELLED });
    cancel(); // idle: the BEGIN it cancels may have been damaged on the way
    primary.begin(3);
    cancel();
    primary.begin(3);
    for (let seq = 0; seq < 3; seq++) primary.say(part(3, seq));
    // As when pages are sent ahead: the transaction stays open while time passes.
    await new Promise((done) => setTimeout(done, 60));
    primary.say({ cmd: 'HEARTBEAT', appliedId: 2, degraded: false });
    cancel();
    primary.begin(9);
    expect(await primary.next('NACK')).toMatchObject({ code: FAULT.ID_GAP });
    cancel();
    ground.stands(2);
    await ground.goesOn();
  });

  it('keeps the committed state when the connection ends anywhere inside a transaction', async () => {
    const ground = await opened();
    const all = parts([0, 1], 9);
    const bytes = [
      ground.primary.frame({ cmd: 'BEGIN', id: 3, baseId: 2, syncFrames: 0 }),
      ...all.map((payload, seq) => ground.primary.frame({ cmd: 'CONTINUE', id: 3, seq, payload })),
      ground.primary.frame({ cmd: 'COMMIT', id: 3, seq: 3, manifest: manifestOf(all, 2) }),
    ];
    const stream = Buffer.concat(bytes);
    for (const cut of [20, 60, 5000, stream.length - 20, stream.length - 1]) {
      ground.primary.write(stream.subarray(0, cut));
      await new Promise((done) => setTimeout(done, 20));
      const theirs = await ground.primary.connect(ground.shell.port);
      expect([theirs.committedId, theirs.complete]).toEqual([2, true]);
      await ground.primary.init('resume', 2);
      ground.stands(2);
    }
    await ground.goesOn();
  });

  it('takes over what it holds, never what was sent ahead of a COMMIT, and turns the old primary away', async () => {
    const ground = await opened();
    ground.primary.begin(3);
    ground.primary.say(part(3, 0));
    await new Promise((done) => setTimeout(done, 30));
    expect(ground.shell.orderTakeover()).toBeUndefined();
    expect(ground.taken).toHaveLength(1);
    expect(ground.taken[0]).toMatchObject({ generation: 6 });
    expect([ground.memory.bytes[0], ground.memory.bytes[4096]]).toEqual([2, 2]);
    await ground.primary.closed();
    await expect(ground.primary.connect(ground.shell.port)).rejects.toThrow(
      `"generation":6,"id":0,"seq":0,"code":${FAULT.TAKEN_OVER}`,
    );
  });

  it('never takes over after END', async () => {
    const ground = await opened();
    ground.primary.say({ cmd: 'END', id: 2, reason: 1 });
    expect(await ground.primary.next('ACK')).toMatchObject({ of: 'end' });
    expect(ground.shell.orderTakeover()).toBeDefined();
    expect(ground.taken).toEqual([]);
  });
});

/** Disks that only stop and let go the connection. */
function slowDisks(): { replicas: ReplicaDisks; flow: (pause: boolean) => void } {
  let events: ReplicaEvents | undefined;
  const replicas = {
    setEvents: (given: ReplicaEvents) => {
      events = given;
    },
    reset: () => {},
    cutOff: () => {},
    complete: () => undefined,
  } as unknown as ReplicaDisks;
  return { replicas, flow: (pause) => events!.flow(pause) };
}

describe('a standby whose disks are behind', () => {
  it('reads neither from this connection nor from the next, and calls nobody silent meanwhile', async () => {
    const { replicas, flow } = slowDisks();
    const ground = new Ground({}, 300e6, replicas);
    grounds.push(ground);
    const { primary, shell } = ground;
    await shell.start();
    await primary.connect(shell.port);
    await primary.init('full', 0);
    flow(true);
    const beats = setInterval(() => primary.say({ cmd: 'HEARTBEAT', appliedId: 0 }), 20);
    try {
      await new Promise((done) => setTimeout(done, 600));
      expect(ground.log.lines.join('\n')).not.toMatch(/silent/);
    } finally {
      clearInterval(beats);
    }
    await primary.connect(shell.port);
    primary.say({ cmd: 'INIT', mode: 'full', id: 0 });
    await new Promise((done) => setTimeout(done, 100));
    expect(primary.heard.filter((m) => m.cmd === 'ACK')).toEqual([]);
    flow(false);
    await primary.next('ACK');
    expect(await primary.whole(1, 1)).toMatchObject({ cmd: 'ACK', id: 1 });
  });

  it('reads nothing while it builds another machine, whatever the disks of the last one say', async () => {
    const { replicas, flow } = slowDisks();
    const ground = new Ground({}, 60e9, replicas);
    grounds.push(ground);
    const { primary, shell } = ground;
    await shell.start();
    await primary.connect(shell.port);
    await primary.init('full', 0);
    flow(true);
    ground.dispose = async () => {
      ground.dispose = async () => {};
      flow(false);
      await new Promise((done) => setTimeout(done, 200));
    };
    await primary.connect(shell.port, { changed: true }, 100);
    await new Promise((done) => setTimeout(done, 50));
    await primary.init('full', 0);
    expect(await primary.whole(1, 1)).toMatchObject({ cmd: 'ACK', id: 1 });
  });
});
