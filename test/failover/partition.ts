/**
 * The link between two hosts that both live is cut at a random instant, by closing it or by silence. Exactly one side goes on: with a
 * lock arbiter the primary, which holds the lock; where a standby takes over by policy, the standby, and then nothing of the old
 * primary is seen any more once the new one has shown something. When the link is back, the loser fences itself or is a standby
 * again, and the guest is protected anew. Used by the tests on /dev/kvm and the soak.
 */
import type { Prng } from '../../src/base/prng.ts';
import { DemoClient } from './client.ts';
import { Pair, SETTLE_TIMEOUT_MS, sleep, until } from './pair.ts';
import { type Verdict, verify } from './verify.ts';

/** Who goes on. */
export const WINNERS = ['primary', 'standby'] as const;

/** How it is run. */
export interface PartitionOptions {
  readonly winner: (typeof WINNERS)[number];
  readonly random: Prng;
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

/** Runs it. Throws when something does not happen at all. */
export async function runPartition(options: PartitionOptions): Promise<PartitionResult> {
  const { winner, random, say = () => {} } = options;
  const silent = random.below(2) === 1;
  const standbyWins = winner === 'standby';
  const pair = new Pair({
    ...options,
    roundTrip: true,
    arbiter: standbyWins ? 'none' : 'lock',
    // A shared disk is locked by whoever runs the guest, and so by itself keeps a policy from making two of it.
    disks: standbyWins ? 'replicate' : 'shared',
    timeoutMs: 500,
    ...(standbyWins && { standbyArgs: ['--on-peer-loss', 'takeover'] }),
  });
  let client: DemoClient | undefined;
  try {
    await pair.startStandby();
    pair.startPrimary();
    client = new DemoClient(pair.net.plug('client', (frame) => client?.receive(frame)));
    client.start();
    const { replies } = client;
    const answers = async (count = 10): Promise<void> => {
      const wanted = replies.length + count;
      await until('the guest answers', SETTLE_TIMEOUT_MS, () => replies.length > wanted);
    };
    await pair.protected();
    await answers();
    await sleep(random.below(1000));

    let lastOfA = performance.now();
    let firstOfB = 0;
    let afterB = 0;
    pair.net.onFrame = (from) => {
      const now = performance.now();
      if (from === pair.path('net-b') && firstOfB === 0) firstOfB = now;
      if (from !== pair.path('net-a')) return;
      lastOfA = now;
      if (firstOfB !== 0) afterB++;
    };
    say(`the link ${silent ? 'goes silent' : 'is cut'} after ${replies.length} replies`);
    if (silent) pair.proxy.setSilent(true);
    else pair.proxy.setDown(true);
    const complaints: string[] = [];
    if (standbyWins) {
      await until('the standby has taken over', SETTLE_TIMEOUT_MS, () => pair.tookOver());
    }
    await answers(20);
    await sleep(500);
    if (standbyWins) {
      if (afterB > 0)
        complaints.push(`${afterB} frames of the old primary after the new one's first`);
      if (pair.primary.ended) complaints.push('the old primary ended before it could know');
    } else {
      if (pair.tookOver() || firstOfB !== 0) complaints.push('both sides went on');
      await until('the primary goes on alone', SETTLE_TIMEOUT_MS, async () =>
        ['alone', 'joining'].includes((await pair.phase()) ?? ''),
      );
    }
    const gapMs = standbyWins ? Math.round(firstOfB - lastOfA) : undefined;

    say('the link is back');
    if (silent) pair.proxy.setSilent(false);
    else pair.proxy.setDown(false);
    if (standbyWins) {
      const status = await pair.primary.exit();
      if (status !== 1) complaints.push(`the old primary ended with ${status}`);
      if (!/generation 2 of this guest runs on another host/.test(pair.primary.log)) {
        complaints.push('the old primary does not say why it ended');
      }
      if (afterB > 0) complaints.push('the old primary showed something before it ended');
      await pair.startStandby('a');
      await pair.protected('b');
      await answers();
      pair.host('b').signal('SIGKILL');
      await until('the first host has it back', SETTLE_TIMEOUT_MS, () => pair.tookOver('a'));
    } else {
      await pair.protected();
      if (pair.tookOver()) complaints.push('the standby took over from a primary that lives');
    }
    await answers();
    client.finish();
    await until('every request is answered', SETTLE_TIMEOUT_MS, () => client!.unanswered === 0);
    client.stop();
    await pair.end();
    const verdict = verify(replies, pair.disk);
    complaints.push(...verdict.complaints, ...client.oddities);
    const verified = verdict.lost === 0 && complaints.length === 0 && verdict.outputs > 0;
    return { ...verdict, complaints, verified, gapMs };
  } finally {
    client?.stop();
    pair.close(process.env.TSVMM_KEEP !== undefined);
  }
}
