// A guest is taken over in the middle of an OUT. The `state` guest writes to its serial port almost all the time and what it writes
// depends on its options only, so the two hosts' consoles must be a beginning and an end of one known text: a byte that
// was skipped, done twice or invented would show. Its own checks of registers, memory and timers go on across the takeover.
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import { Prng } from '../../src/base/prng.ts';
import { CLI, guestPath, Pair, SETTLE_TIMEOUT_MS, sleep, until } from '../failover/pair.ts';

const pairs: Pair[] = [];
afterEach(async () => {
  for (const pair of pairs.splice(0)) {
    await pair.end();
    pair.close();
  }
});

/** What the guest writes when nothing happens to it. */
function reference(pair: Pair, append: string): string {
  const path = pair.path('reference');
  const guest = ['--kernel', guestPath('state'), '--append', append, '--memory', '64M'];
  execFileSync(process.execPath, [CLI, 'run', ...guest, '--serial', `file:${path}`]);
  return readFileSync(path, 'latin1');
}

/**
 * The kernel of the lab moves RIP past an OUT only when it is entered again, the software KVM at once: both come here.
 * The lab's CPU is slow.
 */
const inLab = process.env.TSVMM_LAB === '1';
const seeds = inLab ? [1] : [1, 2, Date.now() % 1e9];

describe('a takeover in the middle of an OUT', { timeout: 300_000 }, () => {
  for (const seed of seeds) {
    it(`does it exactly once (seed ${seed})`, async () => {
      const random = new Prng(seed);
      const append = `iters=${inLab ? 100 : 400} every=1 spins=2000`;
      const policy = random.pick(['adaptive', 'kemari', 'periodic'] as const);
      const pair = new Pair({ bare: true, guest: 'state', append, policy });
      pairs.push(pair);
      const text = reference(pair, append);
      await pair.startStandby();
      pair.startPrimary();
      const released = (): string => readFileSync(pair.path('console-a'), 'latin1');
      await pair.protected();
      const before = released().length;
      await until('it writes on', SETTLE_TIMEOUT_MS, () => released().length > before + 100);
      await sleep(random.below(300));
      pair.primary.signal('SIGKILL');
      expect(await pair.standby.exit(240_000)).toBe(0);
      const a = released();
      const b = readFileSync(pair.path('console-b'), 'latin1');
      expect(a.length).toBeLessThan(text.length);
      expect(text.startsWith(a)).toBe(true);
      expect(b).toBe(text.slice(text.length - b.length));
      expect(a.length + b.length).toBeGreaterThanOrEqual(text.length);
    });
  }
});
