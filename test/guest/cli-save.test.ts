/**
 * `tsvmm save` and `tsvmm run --restore`: a guest that checks itself goes from process to process through the control
 * socket and a file, at random moments, and prints what an uninterrupted one prints.
 */
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, it } from 'vitest';
import { Prng } from '../../src/base/prng.ts';
import { cleanUp, scratchFolder, start, tsvmm } from './cli.ts';
import { guestPath, sleep } from './machine-guest.ts';

const seed = Number(process.env.TSVMM_SEED ?? 20261121);
const random = new Prng(seed);
const scratch = scratchFolder('cli-save');
const socket = join(scratch.path, 'control.sock');
const file = join(scratch.path, 'state');
afterEach(cleanUp);
afterAll(() => {
  scratch.remove();
  process.stdout.write(`cli-save: TSVMM_SEED=${seed}\n`);
});

function args(guest: string, append: string, cpus: number): string[] {
  const machine = ['--kernel', guestPath(guest), '--append', append, '--memory', '32M'];
  return ['run', ...machine, '--cpus', String(cpus), '--control', socket];
}

/** Runs a guest through `saves` processes, each saved a random while after it could be. */
async function relay(base: string[], saves: number, uptoMs: number) {
  let stdout = '';
  for (let hop = 0; ; hop++) {
    const cli = start(hop === 0 ? base : [...base, '--restore', file]);
    if (hop < saves) {
      while (!existsSync(socket) && cli.ending === undefined) await sleep(5);
      await sleep(random.below(uptoMs));
      const saved = await tsvmm(['save', file, '--control', socket]);
      if (saved.ending === 0) {
        expect(await cli.ended).toBe(0);
        stdout += cli.stdout;
        continue;
      }
      // It had come to its end before.
      expect(saved.stderr).toMatch(/no guest answers/);
    }
    const ending = await cli.ended;
    return { ending, stdout: stdout + cli.stdout, hops: hop, stderr: cli.stderr };
  }
}

describe('a guest saved and restored into new processes', () => {
  it.each([
    ['state', 'iters=600 every=50 spins=20000 mem=2M avx=force', 1, 6],
    ['smp', 'cpus=2 incs=3000000 rounds=5000 ticks=300', 2, 3],
  ] as const)(
    '%s goes on as if nothing had happened',
    async (guest, append, cpus, saves) => {
      const base = args(guest, append, cpus);
      const whole = await tsvmm(base);
      expect(whole.ending).toBe(0);
      const moved = await relay(base, saves, 1200);
      expect(moved.stderr.replace(/^.*time-stamp counter.*$/m, '').trim()).toBe('');
      expect(moved).toMatchObject({ ending: 0, stdout: whole.stdout });
      expect(moved.hops).toBeGreaterThan(0);
    },
    120_000,
  );

  it('leaves zero memory out of the file', () => {
    expect(statSync(file).size).toBeGreaterThan(32 * 2 ** 20);
    expect(statSync(file).blocks * 512).toBeLessThan(16 * 2 ** 20);
  });

  it('refuses a state of another machine, a damaged one and none', async () => {
    const base = args('state', '', 1);
    const good = readFileSync(file); // Of the smp guest: two CPUs.
    const other = await tsvmm([...base, '--restore', file]);
    expect(other.ending).toBe(1);
    expect(other.stderr).toMatch(/saved state is of a machine with --cpus 2, this one has 1/);
    const broken = join(scratch.path, 'broken');
    const damaged = Buffer.from(good);
    damaged[5000]! ^= 1;
    writeFileSync(broken, damaged);
    const two = args('smp', '', 2);
    expect(await tsvmm([...two, '--restore', broken])).toMatchObject({
      ending: 1,
      stderr: expect.stringMatching(/^tsvmm: [^\n]*checksum/),
    });
    writeFileSync(broken, good.subarray(0, good.length - 4096));
    expect(await tsvmm([...two, '--restore', broken])).toMatchObject({
      ending: 1,
      stderr: expect.stringMatching(/^tsvmm: [^\n]*cut off/m),
    });
    writeFileSync(broken, '');
    for (const path of [broken, join(scratch.path, 'none'), scratch.path, '/dev/null']) {
      const { ending, stderr } = await tsvmm([...two, '--restore', path]);
      expect({ ending, stderr }, path).toMatchObject({
        ending: 1,
        stderr: expect.stringMatching(/^tsvmm: [^\n]+\n/),
      });
      expect(stderr).not.toMatch(/internal error|\bat .*:\d+/);
    }
  }, 120_000);

  it('runs on when the file cannot be written', async () => {
    const cli = start(args('demo', 'period=20', 1));
    await cli.says(/tick 3\n/);
    for (const path of ['/nowhere/state', scratch.path, '/proc/state']) {
      const { ending, stderr } = await tsvmm(['save', path, '--control', socket]);
      expect(ending).toBe(1);
      expect(stderr).toMatch(/^tsvmm: the state cannot be written to/);
    }
    const seen = cli.stdout.length;
    await cli.says(new RegExp(`^[\\s\\S]{${seen + 100}}`));
    expect(await tsvmm(['quit', '--control', socket])).toMatchObject({ ending: 0 });
    expect(await cli.ended).toBe(0);
  });
});
