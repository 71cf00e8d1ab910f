/**
 * The project's guests on QEMU's software CPU: a machine that nobody here wrote must satisfy the guests' own checks,
 * else a failure on tsvmm could be the guest's fault. Skipped, with the reason printed, without QEMU or gcc.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

const root = join(import.meta.dirname, '..', '..');
const qemu = 'qemu-system-x86_64';

function lacking(command: string): boolean {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).status !== 0;
}

const missing = [qemu, 'gcc'].filter(lacking);
if (missing.length > 0) {
  process.stdout.write(`skipped: the guests on QEMU need ${missing.join(' and ')}\n`);
}

interface Ending {
  /** Process status: (value written to the debug-exit port << 1) | 1. */
  readonly status: number | null;
  readonly console: string;
}

let scratch = '';

function boot(guest: string, append: string, ...more: string[]): Ending {
  const serial = join(scratch, 'console'); // a file, because QEMU may lose the end of what it writes to a pipe
  const elf = join(root, 'dist', 'firmware', `${guest}.elf`);
  const machine = '-M pc -cpu max -m 128 -smp 2 -nodefaults -display none -monitor none -no-reboot';
  const result = spawnSync(
    qemu,
    [
      ...machine.split(' '),
      ...[
        '-serial',
        `file:${serial}`,
        '-accel',
        'tcg',
        '-device',
        'isa-debug-exit,iobase=0xf4,iosize=0x04',
      ],
      ...['-kernel', elf, '-append', append, ...more],
    ],
    { timeout: 50_000, stdio: ['ignore', 'ignore', 'inherit'] },
  );
  return { status: result.status, console: readFileSync(serial, 'utf8').replaceAll('\r', '') };
}

/** Values of all `out 8` lines of the pio guest, in order: what a device of one byte sees. */
function bytesSaid(transcript: string): number[] {
  return [...transcript.matchAll(/ out 8: (.*)/g)].flatMap((line) =>
    (line[1] ?? '').split(' ').map((value) => Number.parseInt(value, 16)),
  );
}

describe.skipIf(missing.length > 0)('guests on QEMU', () => {
  beforeAll(() => {
    scratch = mkdtempSync(join(tmpdir(), 'tsvmm-firmware-'));
    const build = spawnSync(process.execPath, ['firmware/build.mjs', '--quiet'], {
      cwd: root,
      encoding: 'utf8',
    });
    expect(build.stderr).toBe('');
    expect(build.status).toBe(0);
  });
  afterAll(() => {
    rmSync(scratch, { recursive: true, force: true });
  });

  it('hello ends in each way that it is asked to', () => {
    const line = 'hello from a tsvmm guest: x\n';
    expect(boot('hello', 'say=x')).toEqual({ status: 0, console: line });
    expect(boot('hello', 'say=x exit=5')).toEqual({ status: 11, console: line });
    expect(boot('hello', 'say=x off=reset')).toEqual({ status: 0, console: line });
    expect(boot('hello', 'say=x off=triple')).toEqual({ status: 0, console: line });
  });

  it('demo counts', () => {
    const { status, console } = boot('demo', 'period=5 ticks=3');
    expect(console).toBe(
      `${[1, 2, 3].map((n) => `tsvmm demo: tick ${n}\n`).join('')}tsvmm demo: end, 0 requests\n`,
    );
    expect(status).toBe(0);
  });

  it('state prints the same whatever the time', () => {
    const slow = boot('state', 'iters=80 every=40 tick=1000');
    const fast = boot('state', 'iters=80 every=40 tick=5000 pit=off');
    expect(slow.console).toMatch(
      /^state: iters 80 avx [01] pages 1024\nstate: 40 .*\nstate: 80 .*\nstate: end .*\n$/,
    );
    expect(slow).toEqual({ status: 0, console: fast.console });
  });

  it('smp brings two CPUs up', () => {
    const { status, console } = boot('smp', 'cpus=2');
    expect(console).toContain('smp: 2 cpus OK\n');
    expect(status).toBe(0);
    expect(boot('smp', 'cpus=3').console).toContain('FAIL: 2 CPUs started, 3 expected\n');
  });

  it.each([
    ['uart', 'deltas=off'],
    ['acpi', 'cpus=2 mem=128M hz=off'],
  ])('%s finds nothing wrong', (guest, append) => {
    const { status, console } = boot(guest, append);
    expect(console).not.toMatch(/FAIL|EXCEPTION/);
    expect(console).toMatch(/OK: \d+ checks, 0 failed\n$/);
    expect(status).toBe(0);
  });

  it('pio says what the port sees, in every mode', () => {
    const seen = join(scratch, 'port');
    const { status, console } = boot(
      'pio',
      'port=0xe9 modes=64,32,16,ap',
      '-debugcon',
      `file:${seen}`,
    );
    expect(status).toBe(0);
    for (const mode of ['rep_outs_8', '16 outs', '32 outs', 'real outs', 'protected outs']) {
      expect(console).toContain(`pio: ${mode} out`);
    }
    expect([...readFileSync(seen)]).toEqual(bytesSaid(console));
  });

  it('blk reads back what it wrote', () => {
    const disk = join(scratch, 'disk');
    writeFileSync(disk, new Uint8Array(4 << 20));
    const drive = [
      '-drive',
      `file=${disk},if=none,format=raw,id=d`,
      '-device',
      'virtio-blk-pci,drive=d',
    ];
    const { status, console } = boot('blk', 'op=verify depth=32 count=1024', ...drive);
    expect(console).toContain('blk: 1024 requests of 4096 bytes verified\n');
    expect(status).toBe(0);
  });
});
