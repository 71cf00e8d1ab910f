import { describe, expect, it } from 'vitest';
import { FAULT } from '../wire/fault.ts';
import type { Hello, Manifest, Message } from '../wire/message.ts';
import { ARBITER, ON_PEER_LOSS, ROLE } from '../wire/spec.ts';
import { POLICY_DEFAULTS } from './epoch-policy.ts';
import { EventTap, HELD_BLOCK } from './event-tap.ts';
import { Primary } from './primary.ts';
import type { PrimaryConfig } from './primary-types.ts';
import { TapReplay } from './tap-replay.ts';

const MANIFEST: Manifest = { frames: 0, sections: 0, bytes: 0, pages: 0, crc: 0 };

function hello(change: Partial<Hello>): Hello {
  return {
    protocolMin: 1,
    protocolMax: 1,
    role: ROLE.primary,
    onPeerLoss: ON_PEER_LOSS.wait,
    arbiter: ARBITER.lock,
    vm: '00'.repeat(16),
    instance: 'a',
    generation: 3,
    committedId: 0,
    complete: false,
    ended: false,
    machineDigest: '',
    cpuDigest: '',
    pageBytes: 4096,
    tscKhz: 1,
    compression: 0,
    limits: {
      frameBytesMax: 4096,
      transactionBytesMax: 4096,
      epochsInFlightMax: 2,
      tapBytesMax: 512,
    },
    host: '',
    ...change,
  };
}

/** A primary with a shell that captures at once; the test plays standby and arbiter. */
class Rig {
  now = 0;
  readonly outside: string[] = [];
  readonly tap: EventTap;
  readonly primary: Primary;
  readonly log: string[] = [];
  readonly sent: Message[] = [];
  readonly tickets: number[] = [];
  /** Epochs that the shell has captured and not been given back. */
  readonly staged = new Set<number>();

  constructor(change: Partial<PrimaryConfig> = {}) {
    const config: PrimaryConfig = {
      hello: hello({}),
      authority: { arbiter: true, onPeerLoss: 'go-on', retryNs: 100 },
      policy: { ...POLICY_DEFAULTS, policy: 'kemari', gapMinNs: 0, idleMaxNs: 1e12 },
      liveness: { intervalNs: 1e6, deadlineNs: 1e7 },
      protect: true,
      reconnectNs: 1000,
      graceNs: 500,
      ackDeadlineNs: 1e6,
      ...change,
    };
    this.tap = new EventTap(
      { bytesMax: 256, entriesMax: 8, blockMax: 4, triggersMax: 1 },
      {
        frame: (_d, b, s) => this.outside.push(`frame ${b[s]}`),
        console: () => {},
        block: (_d, tag) => this.outside.push(`block ${tag}`),
        released: () => {},
      },
      () => this.primary.held(this.now),
    );
    this.primary = new Primary(config, this.tap);
  }

  /** The guest sends; true when it went past the tap or into it. */
  frame(n: number): void {
    if (!this.tap.holding) this.outside.push(`passed ${n}`);
    else if (!this.tap.holdFrame(0, Uint8Array.of(n), 0, 1)) this.primary.tapFull(this.now);
    this.tick(0);
  }

  tick(ns: number): void {
    this.now += ns;
    this.primary.tick(this.now);
    this.run();
  }

  run(): void {
    const { primary, now } = this;
    for (let e = primary.out.shift(); e !== undefined; e = primary.out.shift()) {
      if (e.type === 'send') this.sent.push(e.message);
      else if (e.type === 'arbiter') {
        this.tickets.push(e.ticket);
        this.log.push(`arbiter ${e.request.kind}`);
      } else if (e.type === 'capture') {
        this.log.push(`capture ${e.epoch}${e.atomic ? '!' : ''}`);
        if (!primary.paused(now)) continue;
        this.staged.add(e.epoch);
        primary.captured(10, 1, 0, now);
      } else if (e.type === 'encode') {
        expect(this.staged.has(e.epoch), `epoch ${e.epoch} is in staging`).toBe(true);
        primary.sealed(e.epoch, MANIFEST, now);
      } else if (e.type === 'phase') this.log.push(e.phase);
      else if (e.type === 'pre-copy') this.log.push(`ahead ${e.epoch}`);
      else if (e.type === 'returned') {
        for (const epoch of this.staged) if (epoch >= e.fromEpoch) this.staged.delete(epoch);
        this.log.push(`returned ${e.fromEpoch}`);
      } else if (e.type === 'run' || e.type === 'fence' || e.type === 'over') this.log.push(e.type);
    }
  }

  hear(message: Partial<Message> & { cmd: Message['cmd'] }): void {
    this.primary.message({ generation: 3, id: 0, seq: 0, ...message } as Message, this.now);
    this.run();
  }

  join(standby: Partial<Hello> = {}): void {
    this.primary.connected(this.now);
    this.hear({
      cmd: 'HELLO',
      hello: hello({ role: ROLE.standby, instance: 'b', generation: 0, ...standby }),
    });
    this.hear({ cmd: 'ACK', of: 'init', degraded: false });
  }

  ack(id: number): void {
    this.hear({ cmd: 'ACK', of: 'commit', id, degraded: false });
  }

  arbiter(result: 'ok' | 'refused' | 'unreachable' = 'ok', generation = 3): void {
    const ticket = this.tickets.at(-1)!;
    this.primary.arbiterAnswer({ ticket, result, generation, sentence: '' }, this.now);
    this.run();
  }

  protected(): void {
    this.tick(0);
    this.join();
    this.primary.synchronised(this.now);
    this.run();
    this.ack(1);
    this.arbiter();
    this.log.length = 0;
    this.outside.length = 0;
  }
}

describe('Primary', () => {
  it('passes outputs until the first capture, holds them from its pause on', () => {
    const r = new Rig();
    r.frame(1);
    r.join();
    r.frame(2);
    expect([r.outside, r.primary.phase]).toEqual([['passed 1', 'passed 2'], 'joining']);
    r.primary.synchronised(r.now);
    r.run();
    r.frame(3);
    expect(r.outside).toHaveLength(2);
    r.ack(1);
    expect(r.primary.phase).toBe('joining');
    r.arbiter();
    expect(r.primary.phase).toBe('protected');
    r.ack(2);
    expect(r.outside.at(-1)).toBe('frame 3');
  });

  it('releases everything an epoch covers on its ACK, in order, and nothing else', () => {
    const r = new Rig({ policy: { ...POLICY_DEFAULTS, policy: 'periodic', intervalNs: 100 } });
    r.protected();
    r.tap.holdBlock(0, 7, HELD_BLOCK.write, 0, 1);
    for (const n of [1, 2]) r.frame(n);
    r.tick(100);
    expect(r.log).toEqual(['capture 2']);
    r.frame(3);
    expect(r.outside).toEqual([]);
    r.ack(2);
    expect(r.outside).toEqual(['frame 1', 'frame 2', 'block 7']);
    r.tick(100);
    r.ack(3);
    expect(r.outside.at(-1)).toBe('frame 3');
  });

  it('commits three outputs with one ATOMIC and runs on after its ACK', () => {
    const r = new Rig({ policy: { ...POLICY_DEFAULTS, policy: 'periodic', intervalNs: 100 } });
    r.protected();
    for (const n of [1, 2, 3]) r.frame(n);
    expect(r.primary.switchover(r.now)).toBe(true);
    r.run();
    expect(r.log).toEqual(['capture 2!', 'handing']);
    expect(r.sent.at(-1)).toMatchObject({ cmd: 'ATOMIC', id: 2 });
    r.ack(2);
    expect(r.outside).toEqual(['frame 1', 'frame 2', 'frame 3']);
    r.arbiter();
    expect(r.sent.at(-1)).toMatchObject({ cmd: 'HANDOVER', newGeneration: 4 });
    r.hear({ cmd: 'ACK', of: 'handover', id: 2, degraded: false });
    expect([r.log.at(-1), r.primary.phase]).toEqual(['over', 'over']);
  });

  it('lets nothing out after the loss of the peer before the arbiter has recorded it', () => {
    const r = new Rig();
    r.protected();
    r.frame(1);
    r.primary.disconnected(r.now);
    r.tick(499);
    expect(r.tickets).toHaveLength(1);
    r.tick(1);
    expect([r.outside, r.log.at(-1)]).toEqual([[], 'arbiter record']);
    r.arbiter('unreachable', 0);
    r.tick(100);
    expect([r.outside, r.primary.phase]).toEqual([[], 'lost']);
    r.arbiter();
    expect([r.outside, r.primary.phase]).toEqual([['frame 1'], 'alone']);
    r.frame(2);
    expect(r.outside.at(-1)).toBe('passed 2');
  });

  it('goes on where it was when the peer is back in time', () => {
    const r = new Rig();
    r.protected();
    r.frame(1);
    r.primary.disconnected(r.now);
    r.tick(100);
    r.join({ generation: 3, complete: true, committedId: 2 });
    expect([r.outside, r.tickets.length]).toEqual([['frame 1'], 1]);
    expect(r.sent.find((m) => m.cmd === 'INIT' && m.mode === 'resume')).toMatchObject({ id: 2 });
  });

  it('drops what it holds when another generation runs the guest', () => {
    const r = new Rig();
    r.protected();
    r.frame(1);
    r.primary.disconnected(r.now);
    r.tick(500);
    r.arbiter('refused', 4);
    expect([r.outside, r.primary.phase, r.tap.heldCount]).toEqual([[], 'fenced', 0]);
    const s = new Rig();
    s.protected();
    expect(s.primary.stranger(hello({ generation: 9 }), 0)).toMatchObject({ cmd: 'NACK' });
    expect(s.primary.phase).toBe('fenced');
  });

  it('believes no ACK that it hears after it was stopped for long, and asks anew', () => {
    for (const [stoppedNs, released] of [
      [1e7 - 1, ['frame 1']],
      [1e7, []],
    ] as const) {
      const rig = new Rig({ ackDeadlineNs: 1e12 });
      rig.protected();
      rig.frame(1);
      rig.now += stoppedNs;
      rig.ack(2);
      expect(rig.outside).toEqual(released);
    }
    const rig = new Rig({ ackDeadlineNs: 1e12 });
    rig.protected();
    rig.frame(1);
    rig.now += 1e7;
    rig.ack(2);
    expect(rig.primary.phase).toBe('lost');
    // The peer is still a standby and holds the epoch: that counts as the ACK.
    rig.join({ generation: 3, complete: true, committedId: 2 });
    expect(rig.outside).toEqual(['frame 1']);
    rig.primary.disconnected(rig.now);
    rig.frame(2);
    rig.primary.connected(rig.now);
    rig.hear({ cmd: 'NACK', generation: 4, code: FAULT.TAKEN_OVER, sentence: '' });
    expect([rig.primary.phase, rig.outside]).toEqual(['fenced', ['frame 1']]);
  });

  it('dials an open stream that breaks at once, one that never opened after a while', () => {
    const rig = new Rig({ reconnectNs: 1000 });
    const dialled: number[] = [];
    const look = (): void => {
      for (let e = rig.primary.out.shift(); e !== undefined; e = rig.primary.out.shift()) {
        if (e.type === 'connect') dialled.push(rig.now);
      }
    };
    rig.protected();
    rig.now += 5000;
    rig.primary.disconnected(rig.now);
    look();
    expect(dialled).toEqual([5000]);
    rig.primary.connected(rig.now);
    rig.primary.disconnected(rig.now);
    look();
    for (let i = 0; i < 20; i++) {
      rig.now += 100;
      rig.primary.tick(rig.now);
      look();
    }
    expect(dialled).toEqual([5000, 6000, 7000]);
  });

  it('sends ahead halfway to a capture, takes no ACK for overdue because of it, and can give it up', () => {
    const rig = new Rig({
      policy: { ...POLICY_DEFAULTS, intervalNs: 1e7, preCopyPagesMin: 1 },
      liveness: { intervalNs: 1e9, deadlineNs: 1e12 },
    });
    rig.protected();
    const sent = (): string[] =>
      rig.sent.filter((m) => m.cmd !== 'HEARTBEAT').map((m) => `${m.cmd} ${m.id}/${m.seq}`);
    rig.sent.length = 0;
    rig.tick(4.9e6);
    expect(sent()).toEqual([]);
    rig.tick(0.1e6);
    expect(sent()).toEqual(['BEGIN 2/0']);
    expect(rig.log).toEqual(['ahead 2']);
    rig.primary.cancelAhead(1, rig.now);
    expect(rig.primary.chunk(2, 0, rig.now)).toBe(true);
    rig.tick(4e6);
    expect(rig.primary.phase).toBe('protected');
    rig.tick(1e6);
    expect(rig.log).toEqual(['ahead 2', 'capture 2']);
    expect(sent()).toEqual(['BEGIN 2/0', 'CONTINUE 2/0', 'COMMIT 2/1']);
    rig.ack(2);
    rig.tick(5e6);
    rig.primary.cancelAhead(3, rig.now);
    rig.run();
    expect(rig.log.slice(2)).toEqual(['ahead 3', 'returned 3']);
    expect(sent().slice(3)).toEqual(['BEGIN 3/0', 'CANCEL 3/0']);
    rig.tick(5e6);
    expect(rig.log.at(-1)).toBe('capture 3');
    expect(sent().slice(5)).toEqual(['BEGIN 3/1', 'COMMIT 3/0']);
  });

  it('does not go on alone without an arbiter while the peer may be about to say that it has taken over', () => {
    const lose = (): Rig => {
      const rig = new Rig({ authority: { arbiter: false, onPeerLoss: 'go-on', retryNs: 100 } });
      rig.tick(0);
      rig.join({ arbiter: ARBITER.lock });
      rig.primary.synchronised(rig.now);
      rig.run();
      rig.ack(1);
      rig.frame(1);
      rig.outside.length = 0;
      rig.primary.disconnected(rig.now);
      rig.tick(2000);
      expect([rig.primary.phase, rig.outside]).toEqual(['lost', []]);
      return rig;
    };
    const nobody = lose();
    nobody.primary.dialFailed(nobody.now);
    nobody.run();
    expect([nobody.primary.phase, nobody.outside]).toEqual(['alone', ['frame 1']]);
    const hung = lose();
    hung.tick(1e7);
    expect(hung.primary.phase).toBe('alone');
    const taken = lose();
    taken.primary.connected(taken.now);
    taken.tick(1e5);
    taken.hear({ cmd: 'NACK', generation: 4, code: FAULT.TAKEN_OVER, sentence: '' });
    expect([taken.primary.phase, taken.outside]).toEqual(['fenced', []]);
  });

  it('takes an overdue ACK for the loss of the peer, although it still speaks', () => {
    const r = new Rig();
    r.protected();
    r.frame(1);
    for (let i = 0; i < 11; i++) {
      r.hear({ cmd: 'HEARTBEAT', appliedId: 1, degraded: false });
      r.tick(1e5);
    }
    expect(r.log).toContain('lost');
  });

  it('ends the guest at the peer, or at the arbiter when there is no peer', () => {
    const r = new Rig();
    r.protected();
    r.primary.end(1, r.now);
    r.run();
    r.ack(2);
    expect(r.sent.at(-1)).toMatchObject({ cmd: 'END', reason: 1 });
    r.hear({ cmd: 'ACK', of: 'end', id: 2, degraded: false });
    expect(r.primary.phase).toBe('over');
    const s = new Rig();
    s.protected();
    s.primary.disconnected(s.now);
    s.primary.end(1, s.now);
    s.tick(500);
    expect(s.primary.phase).toBe('ending');
    s.arbiter();
    expect(s.primary.phase).toBe('over');
  });

  it('takes the guest back when the standby is lost in the middle of a hand-over', () => {
    const r = new Rig();
    r.protected();
    r.primary.switchover(r.now);
    r.run();
    r.ack(2);
    r.primary.disconnected(r.now);
    r.arbiter(); // the lock is given up
    r.tick(500);
    expect(r.log.slice(-2)).toEqual(['arbiter hand', 'arbiter record']);
    r.arbiter();
    expect(r.log).toContain('run');
    expect(r.primary.phase).not.toBe('handing');
  });

  it('stops passing outputs when a lease runs out and goes on when it is extended', () => {
    const r = new Rig();
    r.tick(0);
    r.primary.leaseExtended(1000, 0);
    r.frame(1);
    r.tick(1000);
    r.frame(2);
    expect(r.outside).toEqual(['passed 1']);
    r.primary.leaseExtended(5000, r.now);
    expect(r.outside).toEqual(['passed 1', 'frame 2']);
  });

  it('copies anew to a standby that may hold what still waits here for a lease', () => {
    for (const lease of [true, false]) {
      const r = new Rig();
      r.primary.leaseExtended(1e9, 0);
      r.tick(0);
      r.join();
      r.primary.synchronised(r.now);
      r.run();
      r.frame(1);
      // Transaction 2 has it in its log. Its ACK, the first one's too, is lost; so nobody is on record as in sync.
      expect(r.sent.filter((m) => m.cmd === 'COMMIT').map(({ id }) => id)).toEqual([1, 2]);
      if (!lease) r.primary.leaseExtended(Number.NEGATIVE_INFINITY, r.now);
      r.primary.disconnected(r.now);
      r.tick(500);
      expect([r.primary.phase, r.outside]).toEqual(['alone', lease ? ['frame 1'] : []]);
      r.join({ generation: 3, complete: true, committedId: 2 });
      const mode = r.sent.findLast((m) => m.cmd === 'INIT')!;
      expect(mode).toMatchObject({ mode: lease ? 'resume' : 'full' });
      r.primary.leaseExtended(1e9, r.now);
      expect(r.outside).toEqual(['frame 1']);
    }
  });

  it('tells a standby that begins anew also of outputs that only wait for a lease', () => {
    const r = new Rig();
    r.primary.leaseExtended(1e9, 0);
    r.protected();
    r.frame(1);
    r.primary.leaseExtended(Number.NEGATIVE_INFINITY, r.now);
    r.ack(2);
    r.primary.disconnected(r.now);
    r.tick(0);
    expect([r.outside, r.tap.heldCount]).toEqual([[], 1]);
    r.join({ instance: 'c' });
    r.primary.synchronised(r.now);
    r.run();
    const log = new Uint8Array(r.tap.logBytes);
    r.tap.writeLog(log, 0);
    const replay = new TapReplay(512);
    expect(replay.check(log, 0, log.length)).toBeUndefined();
    replay.apply(log, 0, log.length);
    expect(replay.count).toBe(1);
    // And it leaves with the ACK of that one.
    r.primary.leaseExtended(1e9, r.now);
    expect(r.outside).toEqual([]);
    r.ack(r.sent.findLast((m) => m.cmd === 'COMMIT')!.id);
    expect(r.outside).toEqual(['frame 1']);
  });

  it('asks anew for a capture that would have been given back with earlier ones', () => {
    const r = new Rig();
    r.protected();
    r.frame(1);
    // Asked for, and before it is carried out the one before comes back.
    r.primary.tapFull(r.now);
    const refused = { id: 2, code: FAULT.PAGE_CHECKSUM, sentence: '' };
    r.hear({ cmd: 'NACK', ...refused });
    expect(r.log).toEqual(['capture 2', 'capture 3', 'returned 2']);
    r.tick(1000);
    expect(r.log.at(-1)).toBe('capture 3');
    expect(r.sent.at(-1)).toMatchObject({ cmd: 'COMMIT', id: 2 });
    r.ack(2);
    expect(r.outside).toEqual(['frame 1']);
  });
});
