import { describe, expect, it } from 'vitest';
import { FAULT, type FaultCode, fault } from '../wire/fault.ts';
import type { Hello, Manifest, Message } from '../wire/message.ts';
import { ARBITER, ON_PEER_LOSS, ROLE } from '../wire/spec.ts';
import { EffectQueue } from './effects.ts';
import { Receiver, type ReceiverEffect } from './receiver.ts';
import { Sender, type SenderEffect } from './sender.ts';

function hello(change: Partial<Hello>): Hello {
  return {
    protocolMin: 1,
    protocolMax: 1,
    role: ROLE.primary,
    onPeerLoss: ON_PEER_LOSS.wait,
    arbiter: ARBITER.lock,
    vm: '00'.repeat(16),
    instance: '11'.repeat(8),
    generation: 5,
    committedId: 0,
    complete: false,
    ended: false,
    machineDigest: '22'.repeat(32),
    cpuDigest: '33'.repeat(32),
    pageBytes: 4096,
    tscKhz: 1000,
    compression: 0,
    limits: {
      frameBytesMax: 1024,
      transactionBytesMax: 4096,
      epochsInFlightMax: 3,
      tapBytesMax: 1024,
    },
    host: '',
    ...change,
  };
}

const MANIFEST: Manifest = { frames: 1, sections: 1, bytes: 3, pages: 0, crc: 0 };
const PAYLOAD = new Uint8Array([1, 2, 3]);

/** A receiver under test, spoken to directly. */
class Standby {
  readonly queue = new EffectQueue<ReceiverEffect>();
  readonly receiver: Receiver;
  readonly did: string[] = [];
  readonly said: Message[] = [];

  constructor(change: Partial<Hello> = {}) {
    this.receiver = new Receiver(
      hello({ role: ROLE.standby, generation: 0, ...change }),
      this.queue,
    );
    this.open('full', 0);
    this.drain();
    this.did.length = 0;
    this.said.length = 0;
  }

  open(mode: 'full' | 'resume', id: number, primary: Partial<Hello> = {}): void {
    this.receiver.connected();
    this.say({ cmd: 'HELLO', hello: hello(primary) });
    this.say({ cmd: 'INIT', mode, id });
  }

  say(message: Partial<Message> & { cmd: Message['cmd'] }): void {
    this.receiver.receive({ generation: 5, id: 0, seq: 0, ...message } as Message);
    this.drain();
  }

  begin(id: number, baseId = id - 1): void {
    this.say({ cmd: 'BEGIN', id, baseId, syncFrames: 0 });
  }

  part(id: number, seq: number): void {
    this.say({ cmd: 'CONTINUE', id, seq, payload: PAYLOAD });
  }

  commit(id: number, seq = 1, cmd: 'COMMIT' | 'ATOMIC' = 'COMMIT'): void {
    this.say({ cmd, id, seq, manifest: MANIFEST });
  }

  validated(id: number, code?: FaultCode): void {
    this.receiver.validated(id, code === undefined ? undefined : fault(code));
    this.drain();
  }

  whole(id: number): void {
    this.begin(id);
    this.part(id, 0);
    this.commit(id);
    this.validated(id);
    this.receiver.applied(id, false);
    this.drain();
  }

  drain(): void {
    for (let e = this.queue.shift(); e !== undefined; e = this.queue.shift()) {
      if (e.type === 'send') this.said.push(e.message);
      else if (e.type === 'stage') this.did.push(`stage ${e.id}`);
      else if ('id' in e) this.did.push(`${e.type} ${e.id}`);
      else if (e.type === 'discard') this.did.push(`discard ${e.fromId}`);
      else this.did.push(e.type);
    }
  }

  get nack(): FaultCode | undefined {
    const last = this.said.at(-1);
    return last?.cmd === 'NACK' ? (last.code as FaultCode) : undefined;
  }

  get state(): [string, number, boolean] {
    return [this.receiver.state, this.receiver.committedId, this.receiver.complete];
  }
}

describe('Receiver', () => {
  it('stages, validates, acknowledges, then applies', () => {
    const s = new Standby();
    s.begin(1);
    s.part(1, 0);
    s.commit(1);
    expect(s.did).toEqual(['stage 1', 'validate 1']);
    expect(s.said).toEqual([]);
    s.validated(1);
    expect(s.did.slice(2)).toEqual(['committed 1', 'apply 1']);
    expect(s.said).toMatchObject([{ cmd: 'ACK', id: 1, of: 'commit' }]);
    expect(s.receiver.appliedId).toBe(0);
    s.receiver.applied(1, true);
    expect([s.receiver.appliedId, s.receiver.degraded]).toEqual([1, true]);
  });

  it('validates one transaction after the other while more arrive', () => {
    const s = new Standby();
    for (const id of [1, 2, 3]) {
      s.begin(id);
      s.part(id, 0);
      s.commit(id);
    }
    expect(s.did.filter((d) => d.startsWith('validate'))).toEqual(['validate 1']);
    s.validated(1);
    s.validated(2);
    expect(s.did.filter((d) => d.startsWith('validate'))).toEqual([
      'validate 1',
      'validate 2',
      'validate 3',
    ]);
    expect(s.did.filter((d) => d.startsWith('apply'))).toEqual(['apply 1']);
    s.begin(4);
    expect(s.state).toEqual(['open', 2, true]);
    s.begin(5);
    expect(s.nack).toBe(FAULT.STATE_INVALID);
  });

  it('refuses a fourth transaction in flight when three were agreed', () => {
    const s = new Standby();
    for (const id of [1, 2, 3]) {
      s.begin(id);
      s.part(id, 0);
      s.commit(id);
    }
    s.begin(4);
    expect(s.nack).toBe(FAULT.LIMITS);
  });

  it('refuses what is stale, missing, repeated or builds on another state, and stands', () => {
    const cases: [(s: Standby) => void, FaultCode][] = [
      [(s) => s.begin(2), FAULT.ID_STALE],
      [(s) => s.begin(4), FAULT.ID_GAP],
      [(s) => s.begin(3, 1), FAULT.BASE_UNKNOWN],
      [(s) => s.part(3, 0), FAULT.STATE_INVALID],
      [(s) => s.commit(3), FAULT.STATE_INVALID],
      [
        (s) => {
          s.begin(3);
          s.part(3, 1);
        },
        FAULT.SEQ_WRONG,
      ],
      [
        (s) => {
          s.begin(3);
          s.part(3, 0);
          s.part(3, 0);
        },
        FAULT.SEQ_WRONG,
      ],
      [
        (s) => {
          s.begin(3);
          s.part(2, 0);
        },
        FAULT.ID_STALE,
      ],
      [
        (s) => {
          s.begin(3);
          s.part(4, 0);
        },
        FAULT.ID_GAP,
      ],
      [
        (s) => {
          s.begin(3);
          s.part(3, 0);
          s.commit(3, 2);
        },
        FAULT.SEQ_WRONG,
      ],
      [
        (s) => {
          s.begin(3);
          s.part(3, 0);
          s.part(3, 1);
          s.commit(3, 2);
        },
        FAULT.MANIFEST_MISMATCH,
      ],
      [
        (s) => {
          s.begin(3);
          s.begin(3);
        },
        FAULT.STATE_INVALID,
      ],
    ];
    for (const [act, code] of cases) {
      const s = new Standby();
      s.whole(1);
      s.whole(2);
      act(s);
      expect(s.nack).toBe(code);
      expect(s.state).toEqual(['reject', 2, true]);
      s.begin(3); // ignored until the sender has confirmed
      expect(s.state[0]).toBe('reject');
      s.say({ cmd: 'CANCEL', id: 3, code: FAULT.CANCELLED });
      s.whole(3);
      expect(s.state).toEqual(['idle', 3, true]);
    }
  });

  it('drops a transaction that does not validate, and all behind it', () => {
    const s = new Standby();
    s.whole(1);
    for (const id of [2, 3]) {
      s.begin(id);
      s.part(id, 0);
      s.commit(id);
    }
    s.validated(2, FAULT.PAGE_CHECKSUM);
    expect(s.nack).toBe(FAULT.PAGE_CHECKSUM);
    expect(s.did.at(-1)).toBe('discard 2');
    s.validated(3);
    expect(s.state).toEqual(['reject', 1, true]);
    expect(s.receiver.stagedBytes).toBe(0);
  });

  it('refuses an oversized transaction before its bytes are buffered', () => {
    const s = new Standby();
    s.begin(1);
    const header = { cmd: 'CONTINUE' as const, generation: 5, id: 1, seq: 0, payloadCrc: 0 };
    expect(s.receiver.admit({ ...header, payloadBytes: 4096 })).toBe(0);
    expect(s.receiver.admit({ ...header, payloadBytes: 4097 })).toBe(FAULT.TRANSACTION_TOO_LARGE);
  });

  it('answers a damaged payload with NACK, lost framing by closing', () => {
    const s = new Standby();
    s.whole(1);
    s.begin(2);
    s.receiver.fault({ ...fault(FAULT.PAYLOAD_CHECKSUM), fatal: false, generation: 5, id: 2 });
    s.drain();
    expect([s.nack, s.said.at(-1)?.id, s.state[0]]).toEqual([FAULT.PAYLOAD_CHECKSUM, 2, 'reject']);
    s.receiver.fault({ ...fault(FAULT.BAD_MAGIC), fatal: true, generation: 0, id: 0 });
    s.drain();
    expect([s.nack, s.did.at(-1), s.state]).toEqual([FAULT.BAD_MAGIC, 'close', ['down', 1, true]]);
  });

  it('takes CANCEL in every state, and never for what is acknowledged', () => {
    const cancel = (s: Standby, id: number): void =>
      s.say({ cmd: 'CANCEL', id, code: FAULT.CANCELLED });
    const idle = new Standby();
    idle.whole(1);
    cancel(idle, 2);
    expect(idle.state).toEqual(['idle', 1, true]);
    const open = new Standby();
    open.begin(1);
    open.part(1, 0);
    cancel(open, 1);
    expect([open.state[0], open.did.at(-1)]).toEqual(['idle', 'discard 1']);
    open.whole(1);
    expect(open.state).toEqual(['idle', 1, true]);
    cancel(open, 1);
    expect([open.nack, open.state]).toEqual([FAULT.STATE_INVALID, ['down', 1, true]]);
    const validating = new Standby();
    validating.begin(1);
    validating.part(1, 0);
    validating.commit(1);
    cancel(validating, 1);
    expect(validating.nack).toBe(FAULT.STATE_INVALID);
    expect(validating.state[0]).toBe('down');
  });

  it('keeps the committed state when cut anywhere, and resumes from it', () => {
    for (let cut = 0; cut < 4; cut++) {
      const s = new Standby();
      s.whole(1);
      if (cut > 0) s.begin(2);
      if (cut > 1) s.part(2, 0);
      if (cut > 2) s.commit(2);
      s.receiver.disconnected();
      s.drain();
      s.validated(2);
      expect(s.state).toEqual(['down', 1, true]);
      s.open('resume', 1);
      expect(s.said.at(-1)).toMatchObject({ cmd: 'ACK', of: 'init', id: 1 });
      s.whole(2);
      expect(s.state).toEqual(['idle', 2, true]);
    }
  });

  it('refuses to resume from what it does not hold', () => {
    const s = new Standby();
    s.whole(1);
    s.open('resume', 7);
    expect([s.nack, s.state]).toEqual([FAULT.BASE_UNKNOWN, ['down', 1, true]]);
  });

  it('forgets its state at a full start and is complete only after the first COMMIT', () => {
    const s = new Standby();
    s.whole(1);
    s.open('full', 1);
    expect(s.state).toEqual(['sync', 1, false]);
    s.say({ cmd: 'SYNC', seq: 0, payload: PAYLOAD });
    s.say({ cmd: 'BEGIN', id: 2, baseId: 1, syncFrames: 2 });
    expect([s.nack, s.state[0]]).toEqual([FAULT.SEQ_WRONG, 'down']);
    s.open('full', 1);
    s.say({ cmd: 'SYNC', seq: 1, payload: PAYLOAD });
    expect(s.nack).toBe(FAULT.SEQ_WRONG);
  });

  it('turns away another guest, machine, CPU, generation, and frames before HELLO', () => {
    const cases: [Partial<Hello>, FaultCode][] = [
      [{ vm: '99'.repeat(16) }, FAULT.OTHER_VM],
      [{ machineDigest: '99'.repeat(32) }, FAULT.OTHER_MACHINE],
      [{ cpuDigest: '99'.repeat(32) }, FAULT.OTHER_CPU],
      [{ generation: 4 }, FAULT.GENERATION_WRONG],
      [{ role: ROLE.standby }, FAULT.ROLE_CONFLICT],
    ];
    for (const [primary, code] of cases) {
      const s = new Standby();
      s.receiver.connected();
      s.say({ cmd: 'HELLO', hello: hello(primary) });
      expect([s.nack, s.state[0]]).toEqual([code, 'down']);
    }
    const s = new Standby();
    s.receiver.connected();
    s.begin(1);
    expect([s.nack, s.state[0]]).toEqual([FAULT.STATE_INVALID, 'down']);
  });

  it('refuses frames of another generation in the middle of a stream', () => {
    const s = new Standby();
    s.say({ cmd: 'BEGIN', generation: 6, id: 1, baseId: 0, syncFrames: 0 });
    expect([s.nack, s.state[0]]).toEqual([FAULT.GENERATION_WRONG, 'down']);
  });

  it('ends only when nothing is open, and remembers it', () => {
    const s = new Standby();
    s.whole(1);
    s.say({ cmd: 'END', id: 1, reason: 1 });
    expect([s.receiver.ended, s.said.at(-1)]).toMatchObject([true, { cmd: 'ACK', of: 'end' }]);
    const t = new Standby();
    t.begin(1);
    t.say({ cmd: 'END', id: 0, reason: 1 });
    expect([t.receiver.ended, t.nack]).toEqual([false, FAULT.STATE_INVALID]);
  });

  it('stops reading while what waits to be applied fills the room, and goes on after', () => {
    const s = new Standby();
    for (let id = 1; id <= 5; id++) {
      s.begin(id);
      s.part(id, 0);
      s.commit(id);
      s.validated(id);
    }
    s.begin(6);
    s.part(6, 0);
    expect(s.did).toContain('read-pause');
    for (let id = 1; id <= 5; id++) {
      s.receiver.applied(id, false);
      s.drain();
    }
    expect(s.did.filter((d) => d.startsWith('read'))).toEqual(['read-pause', 'read-on']);
  });
});

/** A sender under test. */
class PrimaryEnd {
  readonly queue = new EffectQueue<SenderEffect>();
  readonly sender = new Sender(hello({}), this.queue);
  readonly did: string[] = [];
  readonly said: Message[] = [];

  hear(message: Partial<Message> & { cmd: Message['cmd'] }): void {
    this.sender.receive({ generation: 5, id: 0, seq: 0, ...message } as Message);
    this.drain();
  }

  open(standby: Partial<Hello> = {}): void {
    this.sender.connected();
    this.hear({ cmd: 'HELLO', hello: hello({ role: ROLE.standby, generation: 0, ...standby }) });
    this.hear({ cmd: 'ACK', of: 'init', degraded: false });
  }

  epoch(atomic = false): number {
    const epoch = this.sender.open(3, atomic);
    this.sender.chunk(epoch, 1);
    this.sender.sealed(epoch, MANIFEST);
    this.drain();
    return epoch;
  }

  ack(id: number): void {
    this.hear({ cmd: 'ACK', of: 'commit', id, degraded: false });
  }

  drain(): void {
    for (let e = this.queue.shift(); e !== undefined; e = this.queue.shift()) {
      if (e.type === 'send') this.said.push(e.message);
      else if (e.type === 'acked') this.did.push(`acked ${e.epoch}=${e.id}${e.atomic ? '!' : ''}`);
      else if (e.type === 'returned') this.did.push(`returned ${e.fromEpoch}`);
      else if (e.type === 'encode') this.did.push(`encode ${e.epoch}`);
      else this.did.push(e.type);
    }
  }

  take(): string[] {
    return this.did.splice(0);
  }
}

describe('Sender', () => {
  it('opens a full stream, then has several epochs in flight, acknowledged in order', () => {
    const p = new PrimaryEnd();
    p.open();
    expect(p.take()).toEqual(['agreed', 'opened']);
    expect(p.sender.state).toBe('sync');
    p.epoch();
    p.epoch();
    p.epoch(true);
    expect(p.sender.canOpen).toBe(false);
    expect(p.said.map((m) => `${m.cmd} ${m.id}`).slice(2)).toEqual([
      'BEGIN 1',
      'CONTINUE 1',
      'COMMIT 1',
      'BEGIN 2',
      'CONTINUE 2',
      'COMMIT 2',
      'BEGIN 3',
      'CONTINUE 3',
      'ATOMIC 3',
    ]);
    p.take();
    p.ack(1);
    p.ack(2);
    p.ack(3);
    expect(p.take()).toEqual(['acked 1=1', 'acked 2=2', 'acked 3=3!']);
  });

  it('believes no ACK that is stale, early, or of another generation', () => {
    for (const [id, generation] of [
      [1, 5],
      [3, 5],
      [2, 4],
    ] as const) {
      const p = new PrimaryEnd();
      p.open();
      p.epoch();
      p.ack(1);
      p.epoch();
      p.take();
      p.hear({ cmd: 'ACK', of: 'commit', id, generation, degraded: false });
      expect(p.take()).toEqual(['close']);
      expect(p.sender.state).toBe('down');
    }
  });

  it('counts the committed id of a HELLO as the lost ACK, and returns the rest', () => {
    const p = new PrimaryEnd();
    p.open();
    for (let i = 0; i < 3; i++) p.epoch();
    p.sender.disconnected();
    p.take();
    p.open({ generation: 5, complete: true, committedId: 2 });
    expect(p.take()).toEqual(['agreed', 'acked 1=1', 'acked 2=2', 'returned 3', 'opened']);
    const q = new PrimaryEnd();
    q.open();
    q.epoch();
    q.ack(1);
    for (let i = 0; i < 3; i++) q.epoch();
    q.sender.disconnected();
    q.take();
    q.open({ generation: 5, complete: true, committedId: 3 });
    expect(q.take()).toEqual(['agreed', 'acked 2=2', 'acked 3=3', 'returned 4', 'opened']);
    expect(q.said.find((m) => m.cmd === 'INIT' && m.mode === 'resume')).toMatchObject({ id: 3 });
    q.epoch();
    expect(q.said.at(-1)).toMatchObject({ cmd: 'COMMIT', id: 4 });
  });

  it('does not take the state of another generation, or one it never sent, for its own', () => {
    for (const theirs of [
      { generation: 4, complete: true, committedId: 2 },
      { generation: 5, complete: true, committedId: 9 },
      { generation: 5, complete: false, committedId: 2 },
      { generation: 5, complete: true, committedId: 0 },
    ]) {
      const p = new PrimaryEnd();
      p.open();
      p.epoch();
      p.ack(1);
      p.epoch();
      p.sender.disconnected();
      p.take();
      p.open(theirs);
      expect(p.take()).toEqual(['agreed', 'returned 2', 'opened']);
      expect(p.sender.state).toBe('sync');
    }
  });

  it('rolls back on NACK: confirms with CANCEL and uses the id again', () => {
    const p = new PrimaryEnd();
    p.open();
    p.epoch();
    p.epoch();
    p.take();
    p.hear({ cmd: 'NACK', id: 1, seq: 0, code: FAULT.PAGE_CHECKSUM, sentence: '' });
    expect(p.take()).toEqual(['returned 1']);
    expect(p.said.at(-1)).toMatchObject({ cmd: 'CANCEL', id: 1 });
    p.hear({ cmd: 'NACK', id: 1, seq: 0, code: FAULT.PAGE_CHECKSUM, sentence: '' });
    expect(p.take()).toEqual([]);
    expect(p.epoch()).toBe(3);
    expect(p.said.at(-1)).toMatchObject({ cmd: 'COMMIT', id: 1 });
  });

  it('rolls nothing back when the connection is refused as a whole', () => {
    const p = new PrimaryEnd();
    p.open();
    p.epoch();
    p.take();
    // The transaction may be committed and its ACK lost, so its id is not free.
    p.hear({ cmd: 'NACK', id: 0, seq: 0, code: FAULT.HEADER_CHECKSUM, sentence: '' });
    expect(p.take()).toEqual(['close']);
    p.open({ generation: 5, complete: true, committedId: 1 });
    expect(p.take()).toEqual(['agreed', 'acked 1=1', 'opened']);
    const s = new Standby();
    s.whole(1);
    s.receiver.fault({ ...fault(FAULT.BAD_MAGIC), fatal: true, generation: 0, id: 0 });
    s.drain();
    expect(s.said.at(-1)).toMatchObject({ cmd: 'NACK', id: 0 });
  });

  it('cancels what is open, not what is on its way', () => {
    const p = new PrimaryEnd();
    p.open();
    p.epoch();
    const open = p.sender.open(3, false);
    p.drain();
    p.take();
    p.sender.cancel(1, FAULT.CANCELLED);
    p.drain();
    expect(p.take()).toEqual([`returned ${open}`]);
    expect(p.said.at(-1)).toMatchObject({ cmd: 'CANCEL', id: 2 });
    expect(p.sender.chunk(open, 1)).toBe(false);
    p.ack(1);
    expect(p.take()).toEqual(['acked 1=1']);
  });

  it('does not resume on a state from before the last first copy', () => {
    const p = new PrimaryEnd();
    p.open();
    p.epoch();
    p.ack(1);
    p.sender.disconnected();
    p.open({ instance: '44'.repeat(8) });
    p.sender.disconnected();
    p.take();
    // The dirty set was started anew for the other standby.
    p.open({ generation: 5, complete: true, committedId: 1 });
    expect(p.sender.state).toBe('sync');
  });

  it('starts over when a transaction is too large for the peer', () => {
    const p = new PrimaryEnd();
    p.open();
    p.epoch();
    p.ack(1);
    p.epoch();
    p.hear({ cmd: 'NACK', id: 2, seq: 0, code: FAULT.TRANSACTION_TOO_LARGE, sentence: '' });
    p.take();
    p.open({ generation: 5, complete: true, committedId: 1 });
    expect(p.sender.state).toBe('sync');
  });

  it('fences itself before a higher generation', () => {
    const p = new PrimaryEnd();
    p.open({ generation: 6, complete: true });
    expect(p.take()[0]).toBe('superseded');
    const q = new PrimaryEnd();
    q.sender.connected();
    q.hear({ cmd: 'NACK', generation: 6, code: FAULT.TAKEN_OVER, sentence: '' });
    expect(q.take()).toEqual(['superseded', 'close']);
  });

  it('hands over, ends, and recognises an END whose ACK was lost', () => {
    const p = new PrimaryEnd();
    p.open();
    p.epoch(true);
    p.ack(1);
    p.sender.handOver(6);
    p.drain();
    expect(p.said.at(-1)).toMatchObject({ cmd: 'HANDOVER', id: 1, newGeneration: 6 });
    p.take();
    p.hear({ cmd: 'ACK', of: 'handover', id: 1, degraded: false });
    expect(p.take()).toEqual(['handed-over']);
    const q = new PrimaryEnd();
    q.open();
    q.epoch(true);
    q.ack(1);
    q.sender.end(1);
    q.sender.disconnected();
    q.drain();
    q.take();
    q.open({ generation: 5, complete: true, committedId: 1, ended: true });
    expect(q.take()).toEqual(['agreed', 'ended', 'close']);
  });
});
