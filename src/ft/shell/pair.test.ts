// A real primary and a real standby in one process, on real sockets with a proxy between them; their guests are memory only. For
// what is about the order of outputs, acknowledgements and losses, and needs to be looked at from inside.
import { afterEach, describe, expect, it } from 'vitest';
import { CuttingProxy } from '../../../test/failover/proxy.ts';
import { hello } from '../../../test/support/protocol-ends.ts';
import { memoryGuest } from '../../../test/support/raw-primary.ts';
import { TestNet } from '../../../test/support/test-net.ts';
import { MemoryLog } from '../../base/log.ts';
import { loadNativeIo } from '../../kvm/native-io.ts';
import { FrameBatch, VNET_HEADER_BYTES } from '../../net/backend.ts';
import { POLICY_DEFAULTS, type PolicyConfig } from '../core/epoch-policy.ts';
import type { Hello } from '../wire/message.ts';
import { ARBITER, END_REASON, ON_PEER_LOSS, ROLE } from '../wire/spec.ts';
import type { Arbiter, ArbiterVerdict } from './arbiter.ts';
import { introduce } from './introduction.ts';
import { Outputs } from './outputs.ts';
import { PrimaryShell } from './primary-shell.ts';
import { StandbyShell, type Takeover } from './standby-shell.ts';

const PAGES = 4096;
const identity: Partial<Hello> = {
  arbiter: ARBITER.none,
  onPeerLoss: ON_PEER_LOSS.wait,
  limits: {
    frameBytesMax: 8 * 2 ** 20,
    transactionBytesMax: 64 * 2 ** 20,
    epochsInFlightMax: 4,
    tapBytesMax: 4 * 2 ** 20,
  },
};
const liveness = { intervalNs: 20e6, deadlineNs: 30e9 };

async function until(what: string, test: () => boolean): Promise<void> {
  const end = performance.now() + 10_000;
  while (!test()) {
    if (performance.now() > end) throw new Error(`waited in vain until ${what}`);
    await new Promise((done) => setTimeout(done, 2));
  }
}

class PairOfShells {
  readonly io = loadNativeIo();
  readonly log = new MemoryLog();
  readonly net = new TestNet();
  readonly here = memoryGuest(PAGES);
  readonly there = memoryGuest(PAGES);
  readonly outputs = new Outputs({ consoles: [], nets: [this.net], disks: [] }, 1);
  readonly taken: Takeover[] = [];
  readonly over: string[] = [];
  /** With one, authority is what it records. */
  arbiter: Arbiter | undefined;
  standby: StandbyShell | undefined;
  #primary: PrimaryShell | undefined;
  #proxy: CuttingProxy | undefined;
  #frame = 0;

  get primary(): PrimaryShell {
    return this.#primary!;
  }

  get proxy(): CuttingProxy {
    return this.#proxy!;
  }

  async startStandby(): Promise<void> {
    const { io, log, there } = this;
    const shell = new StandbyShell({
      io,
      log,
      listen: { host: '127.0.0.1', port: 0, key: undefined, log },
      arbiter: this.arbiter,
      inspect: () => ({
        vm: '00'.repeat(16),
        generation: 5,
        tickets: [],
        storage: [],
        held: undefined,
      }),
      build: async () => ({
        guest: there.guest,
        config: {
          hello: hello({
            ...identity,
            arbiter: this.arbiter === undefined ? ARBITER.none : ARBITER.lock,
            role: ROLE.standby,
            generation: 0,
            instance: '77'.repeat(8),
          }),
          authority: { arbiter: this.arbiter !== undefined, onPeerLoss: 'wait', retryNs: 20e6 },
          liveness,
          suspectNs: 1e9,
        },
        replicas: undefined,
        dispose: async () => {},
      }),
      events: {
        state: () => {},
        takeOver: (takeover) => this.taken.push(takeover),
        ended: () => {},
      },
    });
    await shell.start();
    this.standby = shell;
    if (this.#proxy === undefined) this.#proxy = await CuttingProxy.start(shell.port);
    else this.#proxy.port = shell.port;
  }

  async start(policy: Partial<PolicyConfig> = {}): Promise<void> {
    await this.startStandby();
    const { io, log, here, outputs } = this;
    const shell = new PrimaryShell({
      guest: here.guest,
      outputs,
      io,
      log,
      config: {
        hello: hello({
          ...identity,
          arbiter: this.arbiter === undefined ? ARBITER.none : ARBITER.lock,
          generation: 5,
        }),
        authority: { arbiter: this.arbiter !== undefined, onPeerLoss: 'wait', retryNs: 20e6 },
        policy: { ...POLICY_DEFAULTS, policy: 'kemari', gapMinNs: 0, idleMaxNs: 60e9, ...policy },
        liveness,
        protect: true,
        reconnectNs: 20e6,
        graceNs: 1e9,
        ackDeadlineNs: 60e9,
      },
      arbiter: this.arbiter,
      peers: [{ host: '127.0.0.1', port: this.proxy.port, key: undefined, log }],
      maxDowntimeNs: 30e6,
      introduction: introduce({}),
      images: [],
      events: {
        phase: () => {},
        fenced: () => this.over.push('fenced'),
        over: (why) => this.over.push(why),
        syncProgress: () => {},
        diskProgress: () => {},
        peerFailed: () => {},
      },
    });
    this.#primary = shell;
    here.guest.resume();
    shell.start();
    await this.protected();
  }

  protected(): Promise<void> {
    return until('the guest is protected', () => this.primary.figures().phase === 'protected');
  }

  /** The guest writes a page. */
  write(page: number, byte: number): void {
    this.here.bytes.fill(byte, page * 4096, (page + 1) * 4096);
    this.here.guest.memory.dirty.mark(page * 4096, 4096);
  }

  /** The guest sends a frame that follows from what it has just written. */
  send(): number {
    const number = ++this.#frame;
    this.write(1, number);
    const batch = new FrameBatch(1);
    const at = batch.add(VNET_HEADER_BYTES + 60);
    batch.bytes.fill(0, at, at + VNET_HEADER_BYTES + 60);
    batch.bytes[at + VNET_HEADER_BYTES] = number;
    expect(this.outputs.nets[0]!.send(batch, 0)).toBe(1);
    return number;
  }

  /** Numbers of the frames that have left. */
  get shown(): number[] {
    return this.net.sent.map((entry) => entry[VNET_HEADER_BYTES]!);
  }

  close(): void {
    this.#primary?.close();
    void this.standby?.close();
    this.#proxy?.close();
  }
}

const pairs: PairOfShells[] = [];
afterEach(() => {
  for (const pair of pairs.splice(0)) pair.close();
});

async function pair(policy: Partial<PolicyConfig> = {}): Promise<PairOfShells> {
  const made = new PairOfShells();
  pairs.push(made);
  await made.start(policy);
  return made;
}

const soon = (ms = 60): Promise<void> => new Promise((done) => setTimeout(done, ms));

describe('a primary and a standby', () => {
  it('let no output out while the ACK is under way, and each once when it comes', async () => {
    const p = await pair();
    p.proxy.holdAnswers(true);
    const frames = [p.send(), p.send(), p.send()];
    await soon();
    expect(p.shown).toEqual([]);
    await until('the standby holds it', () => p.there.bytes[4096] === 3);
    p.proxy.holdAnswers(false);
    await until('they are shown', () => p.shown.length === 3);
    await soon();
    expect(p.shown).toEqual(frames);
  });

  it('count what the next HELLO says for an ACK that was lost, and resume', async () => {
    const p = await pair();
    const copied = p.primary.figures().sentBytes;
    p.proxy.holdAnswers(true);
    const frames = [p.send(), p.send()];
    await until('the standby holds it', () => p.there.bytes[4096] === 2);
    // The ACK waits in the proxy, and goes down with the connection.
    p.proxy.setDown(true);
    p.proxy.holdAnswers(false);
    await soon();
    expect([p.shown, p.primary.figures().phase]).toEqual([[], 'lost']);
    p.proxy.setDown(false);
    await until('they are shown', () => p.shown.length === 2);
    await p.protected();
    await soon();
    expect(p.shown).toEqual(frames);
    // No second first copy.
    expect(p.primary.figures().sentBytes - copied).toBeLessThan(200_000);
  });

  it('lose nothing when the standby dies in the middle of a commit, and begin anew with another', async () => {
    const p = await pair();
    for (let page = 100; page < 1100; page++) p.write(page, page & 0xff);
    p.here.bytes.subarray(100 * 4096, 1100 * 4096).forEach((_, i, all) => {
      all[i] = (i * 2654435761) >>> 13;
    });
    p.proxy.cutAfter(1_000_000);
    p.proxy.onCut = () => {
      p.proxy.setDown(true);
      void p.standby!.close();
    };
    const frames = [p.send()];
    await until('the standby is dead', () => p.proxy.cuts === 1);
    frames.push(p.send());
    await soon();
    expect([p.shown, p.primary.figures().phase]).toEqual([[], 'lost']);
    p.there.bytes.fill(0);
    await p.startStandby();
    p.proxy.setDown(false);
    await p.protected();
    await until('they are shown', () => p.shown.length === 2);
    expect(p.shown).toEqual(frames);
    expect(Buffer.compare(p.here.bytes, p.there.bytes)).toBe(0);
  });

  it('hand over with one ATOMIC commit that covers three outputs, shown once, in order, before the other side runs', async () => {
    const p = await pair({ gapMinNs: 30e9 });
    const frames = [p.send(), p.send(), p.send()];
    await soon();
    expect(p.shown).toEqual([]); // the policy's gap is long: nothing commits by itself
    p.proxy.holdAnswers(true);
    expect(p.primary.switchover()).toBe(true);
    await until('the standby holds it', () => p.there.bytes[4096] === 3);
    await soon();
    expect([p.shown, p.here.guest.running, p.taken]).toEqual([[], false, []]);
    p.proxy.holdAnswers(false);
    await until('the guest is handed over', () => p.taken.length === 1 && p.over.length === 1);
    expect([p.shown, p.over, p.here.guest.running]).toEqual([frames, ['handed-over'], false]);
    expect(p.taken[0]).toMatchObject({ generation: 6 });
    expect(Buffer.compare(p.here.bytes, p.there.bytes)).toBe(0);
  });

  it('end the guest that was to end during its hand-over, and was given back', async () => {
    const p = new PairOfShells();
    pairs.push(p);
    const asked: string[] = [];
    const ok: ArbiterVerdict = { result: 'ok', generation: 5, sentence: '' };
    p.arbiter = {
      name: 'test',
      lease: undefined,
      begin: async () => 5,
      request: async (request) => {
        asked.push(request.kind);
        return request.kind === 'hand' ? { ...ok, result: 'unreachable' } : ok;
      },
      close: () => {},
    };
    await p.start();
    expect(p.primary.switchover()).toBe(true);
    await until('the guest is being handed over', () => asked.includes('hand'));
    p.here.guest.pause();
    p.primary.end(END_REASON.operator);
    await soon();
    expect([p.over, p.primary.figures().phase]).toEqual([[], 'handing']);
    p.proxy.setDown(true);
    void p.standby!.close();
    await until('the guest has ended', () => p.over.length === 1);
    expect([p.over, p.here.guest.running]).toEqual([['ended'], false]);
  });

  it('fence the old primary that was taken over, whatever it holds', async () => {
    const p = await pair();
    p.proxy.holdAnswers(true);
    p.send();
    await until('the standby holds it', () => p.there.bytes[4096] === 1);
    expect(p.standby!.orderTakeover()).toBeUndefined();
    p.proxy.setDown(true);
    p.proxy.holdAnswers(false);
    p.proxy.setDown(false);
    await until('it is fenced', () => p.over.length === 1);
    expect([p.over, p.shown, p.here.guest.running]).toEqual([['fenced'], [], false]);
    expect(p.log.lines.join('\n')).toMatch(/generation 6 of this guest runs elsewhere/);
  });

  it('send pages ahead of a checkpoint, and what is written again goes again', async () => {
    const p = await pair({ policy: 'adaptive', intervalNs: 100e6, preCopyPagesMin: 10 });
    let round = 0;
    const seen = { ahead: 0, again: 0 };
    const end = performance.now() + 1500;
    while (performance.now() < end) {
      round++;
      // New pages all the time, and some that are written in every round.
      for (let i = 0; i < 20; i++) p.write(8 + ((round * 20 + i) % 2000), round & 0xff);
      for (let page = 3000; page < 3005; page++) {
        p.here.bytes[page * 4096 + 8 * (round % 500)] = round;
        p.here.guest.memory.dirty.mark(page * 4096, 4096);
      }
      await soon(4);
      const { lastAhead, lastAgain } = p.primary.figures();
      seen.ahead = Math.max(seen.ahead, lastAhead);
      seen.again = Math.max(seen.again, lastAgain);
    }
    expect(seen.ahead).toBeGreaterThan(20);
    expect(seen.again).toBeGreaterThan(0);
    // None was refused: what was sent a second time is no difference to what has not committed.
    const { epochs, ackedEpochs, inFlight } = p.primary.figures();
    expect(epochs - ackedEpochs - inFlight).toBe(0);
    expect(p.primary.switchover()).toBe(true);
    await until('the guest is handed over', () => p.taken.length === 1);
    expect(Buffer.compare(p.here.bytes, p.there.bytes)).toBe(0);
  });
});
