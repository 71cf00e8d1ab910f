/**
 * One failover from start to verdict, without root: a primary and a standby as two processes on loopback, a switch, a client that
 * talks to the demo guest all the time, one fault, and a look from outside at what survived. Used by the demo, the tests on
 * /dev/kvm and the soak.
 */
import type { Prng } from '../../src/base/prng.ts';
import { askControl } from '../../src/monitor/control-server.ts';
import { DemoClient } from './client.ts';
import { Pair, PROTECT_TIMEOUT_MS, SETTLE_TIMEOUT_MS, sleep, until } from './pair.ts';
import { type Verdict, verify } from './verify.ts';

/** What goes wrong. */
export const FAULTS = [
  /** The primary's process is killed while the guest is protected. */
  'kill',
  /** The primary is killed during the first copy: the standby must not take over. */
  'kill-early',
  /** The primary is killed while a transaction is on its way: the link ends at a random byte. */
  'kill-commit',
  /** The primary is killed while the guest waits for a flush of its disk, before or just after it is let go. */
  'kill-flush',
  /**
   * The primary is stopped (SIGSTOP) and later goes on. It holds its lock: nobody else may run the guest meanwhile. With a lease
   * the standby takes over, and the primary ends without another word.
   */
  'stop-primary',
  /** The standby is stopped: the guest goes on without it. */
  'stop-standby',
  /** The standby is killed. */
  'kill-standby',
  /** The link is cut at a random byte and comes back. */
  'cut',
  /** A planned switch-over. */
  'switchover',
] as const;
/** One of {@link FAULTS}. */
export type FaultName = (typeof FAULTS)[number];

/** How a scenario is run. */
export interface ScenarioOptions {
  readonly fault: FaultName;
  readonly random: Prng;
  readonly policy?: 'adaptive' | 'kemari' | 'periodic';
  readonly model?: 'virtio' | 'e1000';
  readonly cpus?: number;
  readonly disks?: 'shared' | 'replicate';
  readonly arbiter?: 'lock' | 'etcd';
  /** Told what is going on, one line each. */
  readonly say?: (line: string) => void;
  /** Leave the files where they are, for a look. */
  readonly keep?: boolean;
}

/** What came out. */
export interface ScenarioResult extends Verdict {
  readonly fault: FaultName;
  /** Whether the fault had the effect that it should have, and nothing was lost. */
  readonly verified: boolean;
  /** Where the guest ran at the end. */
  readonly survivor: 'primary' | 'standby' | 'none';
  /** From start of the primary until the guest was protected. */
  readonly protectedMs: number;
  readonly folder: string;
}

/** Runs one scenario. Throws when something does not happen at all; what was lost stands in the result. */
export async function runScenario(options: ScenarioOptions): Promise<ScenarioResult> {
  const { fault, random, say = () => {} } = options;
  const pair = new Pair(options);
  let client: DemoClient | undefined;
  let failed = true;
  try {
    await pair.startStandby();
    const begin = performance.now();
    pair.startPrimary();
    const { primary, standby, proxy } = pair;
    const send = pair.net.plug('client', (frame) => client?.receive(frame));
    client = new DemoClient(send);
    client.start();
    const { replies } = client;
    let survivor: ScenarioResult['survivor'] = 'primary';
    const checks: string[] = [];

    if (fault === 'kill-early') {
      await primary.said(/replication: joining/, PROTECT_TIMEOUT_MS);
      await sleep(random.below(150));
      const early = (await pair.phase()) !== 'protected';
      primary.signal('SIGKILL');
      await sleep(1500);
      const took = pair.tookOver();
      say(
        `primary killed ${early ? 'during the first copy' : 'just after it'}; the standby ${took ? 'took over' : 'stays a standby'}`,
      );
      // Between the question and the kill the first copy may have been completed.
      survivor = took ? 'standby' : 'none';
      if (took && !/standby: protecting/.test(standby.log)) {
        checks.push('the standby took over without a complete state');
      }
      if (took) {
        const before = replies.length;
        await until('the guest answers', SETTLE_TIMEOUT_MS, () => replies.length > before + 5);
      }
    }
    let protectedMs = 0;
    if (fault !== 'kill-early') {
      await pair.protected();
      protectedMs = Math.round(performance.now() - begin);
      say(`protected after ${protectedMs} ms`);
      await until('the guest answers', SETTLE_TIMEOUT_MS, () => replies.length > 5);
      await sleep(200 + random.below(1500));
    }
    const answersAgain = async (): Promise<void> => {
      const before = replies.length;
      await until('the guest answers again', SETTLE_TIMEOUT_MS, () => replies.length > before + 20);
    };
    const taken = async (): Promise<void> => {
      await until('the standby has taken over', SETTLE_TIMEOUT_MS, () => pair.tookOver());
      await answersAgain();
      survivor = 'standby';
    };
    const protectedAgain = async (): Promise<void> => {
      await pair.protected();
      await answersAgain();
    };
    switch (fault) {
      case 'kill':
        primary.signal('SIGKILL');
        say(`primary killed after ${replies.length} replies`);
        await taken();
        break;
      case 'kill-early':
        break;
      case 'kill-commit':
        proxy.onCut = () => primary.signal('SIGKILL');
        proxy.cutAfter(random.below(200_000) + 1);
        await until('the link is cut', SETTLE_TIMEOUT_MS, () => proxy.cuts > 0);
        say(`primary killed within a transaction after ${replies.length} replies`);
        await taken();
        break;
      case 'kill-flush': {
        // Without answers no epoch commits, so the guest's next write or flush waits in the tap.
        proxy.holdAnswers(true);
        await until(
          'an output of the guest is held',
          SETTLE_TIMEOUT_MS,
          async () => Number((await pair.figures())?.heldOutputs ?? 0) > 0,
        );
        const letGo = random.below(2) === 1;
        if (letGo) {
          proxy.holdAnswers(false);
          await sleep(random.below(4));
        } else {
          await sleep(random.below(200));
        }
        primary.signal('SIGKILL');
        proxy.holdAnswers(false);
        say(
          `primary killed ${letGo ? 'just after' : 'before'} held outputs were let go, after ${replies.length} replies`,
        );
        await taken();
        break;
      }
      case 'switchover':
        await askControl(pair.path('a.sock'), { command: 'switchover' });
        say(`switch-over after ${replies.length} replies`);
        if ((await primary.exit()) !== 0) checks.push(`the primary ended with ${primary.outcome}`);
        await taken();
        break;
      case 'stop-primary': {
        primary.signal('SIGSTOP');
        say(`primary stopped after ${replies.length} replies`);
        if (options.arbiter === 'etcd') {
          await taken();
          const before = pair.net.framesFrom(pair.path('net-a'));
          primary.signal('SIGCONT');
          if ((await primary.exit()) !== 1)
            checks.push(`the primary ended with ${primary.outcome}`);
          if (!/generation 2 of this guest runs on another host/.test(primary.log)) {
            checks.push('the primary does not say why it has ended');
          }
          const late = pair.net.framesFrom(pair.path('net-a')) - before;
          say(`the old primary went on and ended itself; frames it sent: ${late}`);
          if (late !== 0) checks.push(`the old primary sent ${late} frames after its lease`);
          // The guest did not wait for the lock; it has it now.
          if (options.disks !== 'replicate') await standby.said(/disk 'disk0' is locked now/);
          await answersAgain();
          break;
        }
        await sleep(4000);
        if (pair.tookOver())
          checks.push('the standby took over from a primary that was only stopped');
        primary.signal('SIGCONT');
        await answersAgain();
        break;
      }
      case 'stop-standby':
      case 'kill-standby':
        standby.signal(fault === 'kill-standby' ? 'SIGKILL' : 'SIGSTOP');
        say(
          `standby ${fault === 'kill-standby' ? 'killed' : 'stopped'} after ${replies.length} replies`,
        );
        await answersAgain();
        await until('the primary goes on alone', SETTLE_TIMEOUT_MS, async () =>
          ['alone', 'joining'].includes((await pair.phase()) ?? ''),
        );
        await answersAgain();
        if (pair.tookOver()) checks.push('the standby took over from a primary that lives');
        if (fault === 'stop-standby') standby.signal('SIGCONT');
        else await pair.startStandby();
        await protectedAgain();
        if (pair.tookOver()) checks.push('the standby took over from a primary that lives');
        break;
      case 'cut':
        proxy.cutAfter(random.below(200_000) + 1);
        await until('the link is cut', SETTLE_TIMEOUT_MS, () => proxy.cuts > 0);
        say(`link cut after ${replies.length} replies`);
        await answersAgain();
        await protectedAgain();
        if (pair.tookOver()) checks.push('the standby took over from a primary that lives');
        break;
    }
    if (survivor !== 'none') {
      client.finish();
      await until('every request is answered', SETTLE_TIMEOUT_MS, () => client!.unanswered === 0);
    }
    client.stop();
    await pair.end();
    const image = survivor === 'standby' ? pair.standbyDisk : pair.disk;
    const verdict = verify(replies, image);
    const complaints = [...verdict.complaints, ...client.oddities, ...checks];
    const verified =
      verdict.lost === 0 && complaints.length === 0 && (survivor === 'none' || verdict.outputs > 0);
    failed = !verified;
    return {
      ...verdict,
      complaints,
      fault,
      survivor,
      verified,
      protectedMs,
      folder: pair.folder,
    };
  } finally {
    client?.stop();
    // What failed can be looked at when the caller asks for it.
    pair.close(options.keep === true || (failed && process.env.TSVMM_KEEP !== undefined));
  }
}
