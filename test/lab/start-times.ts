// Inside the lab: how long a stock Debian kernel takes from the start of the process to the first line of its shell, under
// tsvmm and under QEMU, in turn. Prints `start-lab: {"round":N,"side":"...","ms":N}` for each run, round 0 being the warm-up. Called by
// the benchmark (test/bench/measures/linux.ts): node dist/test/lab/start-times.js ROUNDS.
import { join } from 'node:path';
import { GuestConsole } from './guest-console.ts';
import { image } from './images.ts';
import { repositoryRoot } from './tools.ts';

const append = 'console=ttyS0 panic=-1 quiet';
const bootMs = 60_000;

const { kernel, initrd } = image('shell');
const boot = ['-kernel', kernel, '-initrd', initrd, '-append', append];
const board = ['-accel', 'kvm', '-cpu', 'host', '-m', '256', '-nodefaults', '-display', 'none'];
const cli = join(repositoryRoot(), 'dist/cli/main.cjs');
const run = ['run', '--kernel', kernel, '--initrd', initrd, '--append', append];

const sides: readonly (readonly [name: string, program: string, args: readonly string[]])[] = [
  ['tsvmm', process.execPath, [cli, ...run, '--memory', '256M', '--serial', 'stdio']],
  [
    'qemu pc',
    'qemu-system-x86_64',
    ['-M', 'pc', ...board, '-no-reboot', '-serial', 'stdio', ...boot],
  ],
  [
    'qemu microvm',
    'qemu-system-x86_64',
    ['-M', 'microvm', ...board, '-no-reboot', '-serial', 'stdio', ...boot],
  ],
];

const rounds = Number(process.argv[2] ?? 3);
for (let round = 0; round <= rounds; round++) {
  for (const [side, program, args] of sides) {
    const begin = performance.now();
    const guest = new GuestConsole(program, [...args]);
    try {
      await guest.expect(/guest# /, bootMs);
      const ms = Math.round(performance.now() - begin);
      process.stdout.write(`start-lab: ${JSON.stringify({ round, side, ms })}\n`);
    } catch (error) {
      const why = (error instanceof Error ? error.message : String(error)).split('\n')[0];
      process.stdout.write(`start-lab: ${JSON.stringify({ round, side, why })}\n`);
    } finally {
      await guest.kill();
    }
  }
}
