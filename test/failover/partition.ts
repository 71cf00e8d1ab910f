/**
 * The link between two hosts that both live is cut at a random instant, by closing it or by silence. Exactly one side goes on: whoever
 * has the arbiter's word, or the one that the policy of both names; of the other nothing is seen any more once the winner has shown
 * something. When the link is back the loser fences itself, or is a standby still; it is taken back with what its disk lacks, and
 * then the host that has won is lost as well. Used by the tests on /dev/kvm and the soak.
 */
import { Prng } from '../../src/base/prng.ts';
import { DemoClient } from './client.ts';
import { otherSide, Pair, SETTLE_TIMEOUT_MS, type Side, SLOW, sleep, until } from './pair.ts';
import { type Verdict, verify } from './verify.ts';

/** What is cut, and who decides then. */
export const PARTITIONS = [
  /** The primary holds the lock, and goes on. */
  'lock',
  /** No arbiter: the primary goes on, the standby waits for an operator. */
  'policy-primary',
  /** No arbiter: the standby takes over, the primary waits. With disks of their own: the lock of a shared one would decide. */
  'policy-standby',
  /** Both reach etcd. The primary keeps its lease and goes on, unless it does not get to run for that long. */
  'etcd',
  /** The primary is cut off from etcd as well: the standby has the guest when the lease is over. */
  'etcd-lost',
] as const;
/** One of {@link PARTITIONS}. */
export type PartitionName = (typeof PARTITIONS)[number];

/** Which disks a partition can be tried with. */
export const DISKS_OF = (kind: PartitionName): readonly ('shared' | 'replicate')[] =>
  kind === 'policy-standby' ? ['replicate'] : ['shared', 'replicate'];

/** How it is run. */
export interface PartitionOptions {
  readonly kind: PartitionName;
  readonly random: Prng;
  readonly disks: 'shared' | 'replicate';
  readonly policy?: 'adaptive' | 'kemari' | 'periodic';
  readonly model?: 'virtio' | 'e1000';
  readonly say?: (line: string) => void;
}

/** What came out. */
export interface PartitionResult extends Verdict {
  readonly verified: boolean;
  /** From the last frame of the old primary to the first one of the new; undefined where the primary went on. */
  readonly gapMs: number | undefined;
}

const MIB = 2 ** 20;
/** The disk of each host, half full: a copy of all of it is told from one of what differs. */
const DISK_BYTES = 16 * MIB;
const DELTA_BYTES_MAX = 4 * MIB;
/** Short, so that many partitions can be tried; long against what a process has to wait for a processor. */
const LEASE_MS = 2000 * SLOW;

/** A partition, step by step. */
class Partition {
  readonly #o: PartitionOptions;
  readonly pair: Pair;
  readonly client: DemoClient;
  readonly complaints: string[] = [];
  gapMs: number | undefined;
  #lastOfA = 0;
  #firstOfB = 0;
  /** Frames of the old primary behind the first of the new. */
  #late = 0;

  constructor(options: PartitionOptions) {
    this.#o = options;
    const { kind, policy, model, disks } = options;
    this.pair = new Pair({
      ...(policy && { policy }),
      ...(model && { model }),
      disks,
      diskBytes: DISK_BYTES,
      roundTrip: true,
      arbiter: kind === 'lock' ? 'lock' : kind.startsWith('etcd') ? 'etcd' : 'none',
      leaseMs: LEASE_MS,
      timeoutMs: 1000,
      ...(kind === 'policy-standby' && { standbyArgs: ['--on-peer-loss', 'takeover'] }),
      ...(kind === 'policy-primary' && { primaryArgs: ['--ft-on-peer-loss', 'continue'] }),
    });
    const data = new Uint8Array(DISK_BYTES / 2);
    new Prng(1).fill(data);
    this.pair.fillDisk(data, DISK_BYTES / 2);
    const client = new DemoClient(this.pair.net.plug('client', (frame) => client.receive(frame)));
    this.client = client;
  }

  #say(line: string): void {
    this.#o.say?.(line);
  }

  async #answers(count = 10): Promise<void> {
    const { replies } = this.client;
    const wanted = replies.length + count;
    await until('the guest answers', SETTLE_TIMEOUT_MS, () => replies.length > wanted);
  }

  async run(): Promise<PartitionResult> {
    const { pair, client } = this;
    await pair.startStandby();
    pair.startPrimary();
    client.start();
    await pair.protected();
    await this.#answers();
    if (this.#o.disks === 'replicate') await pair.activityLogged('a');
    await sleep(this.#o.random.below(1000));
    this.#watch();
    const heal = await this.#cut();
    const winner = await this.#winner();
    if (winner === 'a') await this.#primaryWon(heal);
    else await this.#standbyWon(heal);
    await this.#winnerIsLost(winner);
    client.finish();
    await until('every request is answered', SETTLE_TIMEOUT_MS, () => client.unanswered === 0);
    client.stop();
    await pair.end();
    const verdict = verify(client.replies, pair.diskOf(otherSide(winner)));
    const complaints = [...this.complaints, ...verdict.complaints, ...client.oddities];
    const verified = verdict.lost === 0 && complaints.length === 0 && verdict.outputs > 0;
    return { ...verdict, complaints, verified, gapMs: this.gapMs };
  }

  #watch(): void {
    this.#lastOfA = performance.now();
    const { net } = this.pair;
    const [a, b] = [this.pair.path('net-a'), this.pair.path('net-b')];
    net.onFrame = (from) => {
      const now = performance.now();
      if (from === b && this.#firstOfB === 0) this.#firstOfB = now;
      if (from !== a) return;
      this.#lastOfA = now;
      if (this.#firstOfB !== 0) this.#late++;
    };
  }

  /** Cuts the link, and where it is to be the primary's way to etcd before. @returns how to heal it */
  async #cut(): Promise<() => Promise<void>> {
    const { pair, client } = this;
    const { kind, random } = this.#o;
    const ways = [pair.proxy];
    if (kind === 'etcd-lost') ways.unshift(pair.proxyToEtcd('a'));
    const silent = ways.map(() => random.below(2) === 1);
    // Both at once, or outputs have to stop while the standby is there and acknowledges all of them.
    const apartMs = random.below(2) === 1 ? random.below(3 * LEASE_MS) : 0;
    const set = (i: number, down: boolean): void => {
      if (silent[i]) ways[i]!.setSilent(down);
      else ways[i]!.setDown(down);
    };
    if (kind === 'etcd-lost') {
      this.#say(`etcd ${silent[0] ? 'is silent to' : 'is cut off from'} the primary`);
      set(0, true);
      if (apartMs > 0) await this.#outputsStop(apartMs);
    }
    this.#say(
      `the link ${silent.at(-1) ? 'goes silent' : 'is cut'} after ${client.replies.length} replies`,
    );
    set(ways.length - 1, true);
    return async () => {
      const order = ways.map((_, i) => i);
      if (random.below(2) === 1) order.reverse();
      for (const [i, way] of order.entries()) {
        if (i > 0) await sleep(random.below(500));
        this.#say(`${ways.length === 1 || way === 1 ? 'the link' : 'etcd'} is back`);
        set(way, false);
      }
    };
  }

  /** The primary has no lease any more, and its standby is there: its outputs must end by themselves. */
  async #outputsStop(waitMs: number): Promise<void> {
    const cutMs = performance.now();
    await sleep(waitMs);
    if (waitMs < LEASE_MS * 1.5) return;
    const afterMs = Math.round(this.#lastOfA - cutMs);
    this.#say(`the last frame of the primary came ${afterMs} ms after the loss of etcd`);
    if (afterMs > LEASE_MS) {
      this.complaints.push(`outputs ${afterMs} ms after the loss of etcd, lease ${LEASE_MS} ms`);
    }
  }

  /** Waits until one side goes on. */
  async #winner(): Promise<Side> {
    const { pair } = this;
    const { kind } = this.#o;
    let winner: Side | undefined;
    await until('one side goes on', SETTLE_TIMEOUT_MS, async () => {
      if (pair.tookOver()) winner = 'b';
      else if (['alone', 'joining'].includes((await pair.phase()) ?? '')) winner = 'a';
      return winner !== undefined;
    });
    this.#say(`the ${winner === 'a' ? 'primary' : 'standby'} goes on`);
    const expected = kind === 'policy-standby' || kind === 'etcd-lost' ? 'b' : 'a';
    if (winner !== expected && kind !== 'etcd') this.complaints.push('the wrong side goes on');
    await this.#answers(20);
    await sleep(500);
    return winner!;
  }

  async #primaryWon(heal: () => Promise<void>): Promise<void> {
    const { pair } = this;
    if (pair.tookOver() || this.#firstOfB !== 0) this.complaints.push('both sides went on');
    if (this.#o.kind === 'etcd' && this.#o.random.below(2) === 1) await this.#aloneWithoutEtcd();
    await heal();
    await pair.protected();
    if (pair.tookOver() || this.#firstOfB !== 0) {
      this.complaints.push('the standby took over from a primary that lives');
    }
    this.#onlyWhatDiffers('a', /the standby has copies of the disks/);
    await this.#answers();
  }

  /** A primary that has gone on alone loses etcd for longer than its lease: it stops, and nobody takes over what is out of date. */
  async #aloneWithoutEtcd(): Promise<void> {
    const etcd = this.pair.proxyToEtcd('a');
    const silent = this.#o.random.below(2) === 1;
    this.#say(`etcd ${silent ? 'is silent to' : 'is cut off from'} the primary, which runs alone`);
    if (silent) etcd.setSilent(true);
    else etcd.setDown(true);
    await this.#outputsStop(2 * LEASE_MS);
    if (silent) etcd.setSilent(false);
    else etcd.setDown(false);
    await this.#answers();
  }

  async #standbyWon(heal: () => Promise<void>): Promise<void> {
    const { pair, complaints } = this;
    const { primary } = pair;
    if (primary.ended) complaints.push('the old primary ended before it could know');
    this.gapMs = Math.round(this.#firstOfB - this.#lastOfA);
    await heal();
    const status = await primary.exit();
    if (status !== 1) complaints.push(`the old primary ended with ${status}`);
    if (!/generation 2 of this guest runs on another host/.test(primary.log)) {
      complaints.push('the old primary does not say why it ended');
    }
    if (this.#late > 0) {
      complaints.push(`${this.#late} frames of the old primary after the new one's first`);
    }
    await pair.startStandby('a');
    await pair.protected('b');
    this.#onlyWhatDiffers('b', /the standby has the disks of the host that was lost/);
    await this.#answers();
  }

  /** The loser's disk was brought up to date, not copied anew. */
  #onlyWhatDiffers(winner: Side, basis: RegExp): void {
    if (this.#o.disks !== 'replicate') return;
    const { pair, complaints } = this;
    const bytes = pair.sentForDisks(winner);
    this.#say(`${bytes} bytes sent for the disk of the loser`);
    if (!basis.test(pair.host(winner).log)) complaints.push("the loser's disk was copied whole");
    if (bytes > DELTA_BYTES_MAX) complaints.push(`${bytes} bytes sent for the loser's disk`);
  }

  async #winnerIsLost(winner: Side): Promise<void> {
    const { pair } = this;
    const loser = otherSide(winner);
    pair.host(winner).signal('SIGKILL');
    await pair.host(winner).exit();
    await until('the loser has the guest', SETTLE_TIMEOUT_MS, async () => {
      // Nobody else decides there.
      if (this.#o.kind === 'policy-primary') await pair.ask(loser, 'takeover');
      return pair.tookOver(loser);
    });
    await this.#answers();
  }
}

/** Runs it. Throws when something does not happen at all. */
export async function runPartition(options: PartitionOptions): Promise<PartitionResult> {
  const partition = new Partition(options);
  let failed = true;
  try {
    const result = await partition.run();
    failed = !result.verified;
    return result;
  } finally {
    partition.client.stop();
    partition.pair.close(failed && process.env.TSVMM_KEEP !== undefined);
  }
}
