/**
 * A guest that goes back and forth: the host that runs it is lost, the other takes over, the lost host comes back as a standby and
 * is taken back without anybody's doing, then the survivor is lost, and so on. A client asks all the time; what it saw over all rounds
 * must stand in the journal on the disk. Used by the tests on /dev/kvm and the soak.
 */
import type { Prng } from '../../src/base/prng.ts';
import { askControl } from '../../src/monitor/control-server.ts';
import { DemoClient } from './client.ts';
import { otherSide, Pair, SETTLE_TIMEOUT_MS, type Side, sleep, until } from './pair.ts';
import { type Verdict, verify } from './verify.ts';

/** How it is run. */
export interface RoundTripOptions {
  /** How often the guest changes its host. */
  readonly rounds: number;
  readonly random: Prng;
  readonly policy?: 'adaptive' | 'kemari' | 'periodic';
  readonly model?: 'virtio' | 'e1000';
  readonly disks?: 'shared' | 'replicate' | undefined;
  readonly arbiter?: 'lock' | 'etcd';
  /** Start without a peer, and ask for protection while the guest runs. */
  readonly late?: boolean;
  readonly say?: (line: string) => void;
}

/** What came out. */
export interface RoundTripResult extends Verdict {
  readonly verified: boolean;
  /** From the return of a host as a standby until the guest was protected again, milliseconds, by round. */
  readonly backMs: readonly number[];
}

/** Runs it. Throws when something does not happen at all. */
export async function runRoundTrip(options: RoundTripOptions): Promise<RoundTripResult> {
  const { rounds, random, say = () => {} } = options;
  const pair = new Pair({ ...options, roundTrip: true, unprotected: options.late === true });
  let client: DemoClient | undefined;
  let failed = true;
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
    if (options.late === true) {
      await answers();
      await askControl(pair.path('a.sock'), {
        command: 'protect',
        'ft-peer': `127.0.0.1:${pair.proxy.port}`,
        'ft-arbiter': pair.arbiterOf('a'),
      });
    }
    const complaints: string[] = [];
    const backMs: number[] = [];
    let here: Side = 'a';
    for (let round = 1; round <= rounds; round++) {
      await pair.protected(here);
      await answers();
      await sleep(random.below(500));
      const there = otherSide(here);
      const lost = pair.host(here);
      const planned = random.below(4) === 0;
      say(`round ${round}: ${planned ? 'switch-over from' : 'kill of'} host ${here}`);
      if (planned) {
        await askControl(pair.path(`${here}.sock`), { command: 'switchover' });
        const status = await lost.exit();
        if (status !== 0) complaints.push(`the ${lost.name} ended with ${status}`);
      } else {
        lost.signal('SIGKILL');
      }
      await until('the standby has taken over', SETTLE_TIMEOUT_MS, () => pair.tookOver(there));
      await answers();
      await lost.exit();
      if (round < rounds) {
        await sleep(random.below(300));
        const begin = performance.now();
        await pair.startStandby(here);
        await pair.protected(there);
        backMs.push(Math.round(performance.now() - begin));
      }
      here = there;
    }
    client.finish();
    await until('every request is answered', SETTLE_TIMEOUT_MS, () => client!.unanswered === 0);
    client.stop();
    await pair.end();
    const verdict = verify(replies, pair.diskOf(here));
    complaints.push(...verdict.complaints, ...client.oddities);
    const verified = verdict.lost === 0 && complaints.length === 0 && verdict.outputs > 0;
    failed = !verified;
    return { ...verdict, complaints, verified, backMs };
  } finally {
    client?.stop();
    pair.close(failed && process.env.TSVMM_KEEP !== undefined);
  }
}
