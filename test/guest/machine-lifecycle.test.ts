/**
 * Machines made, run, reset and thrown away: what each end is, that nothing stays behind, and that firmware comes up,
 * resets and is saved like any other guest.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { MemoryLog, silentLog } from '../../src/base/log.ts';
import { MemoryConsole } from '../../src/console/memory.ts';
import { openKvmHost } from '../../src/kvm/host.ts';
import { findSeaBios } from '../../src/machine/firmware-file.ts';
import { checkHost } from '../../src/machine/host-check.ts';
import { Machine } from '../../src/machine/machine.ts';
import { makeMachine, runGuest, saveOf, sleep, until } from './machine-guest.ts';

const host = openKvmHost();

describe('the end of a run', () => {
  it.each([
    ['', { kind: 'power-off' }],
    ['exit=5', { kind: 'debug-exit', status: 11 }],
    ['off=reset', { kind: 'reset' }],
    ['off=triple', { kind: 'reset' }],
  ])('hello %s', async (append, outcome) => {
    const run = await runGuest('hello', { append, onReset: 'exit' });
    expect(run.outcome).toEqual(outcome);
    expect(run.text).toMatch(/^hello .*\n$/);
  });

  it('stop() ends a running guest, and a paused one', async () => {
    for (const paused of [false, true]) {
      const { machine } = makeMachine('demo', { append: 'period=5' });
      machine.boot();
      machine.start();
      await sleep(30);
      if (paused) machine.pause();
      machine.stop();
      expect(await machine.finished).toEqual({ kind: 'stopped' });
      machine.dispose();
    }
  });
});

describe('reset', () => {
  it('from outside starts the guest anew, however often and whenever', async () => {
    const { machine, console } = makeMachine('demo', { append: 'period=5', cpus: 2 });
    machine.boot();
    machine.start();
    for (let i = 0; i < 15; i++) {
      await sleep(i * 4);
      machine.reset();
    }
    await sleep(100);
    console.drain();
    machine.reset();
    await until(() => console.text.includes('tick 3'), 'ticks after the reset');
    expect(console.text.replaceAll('\r', '')).toMatch(/tick 1\n.*tick 2\n.*tick 3\n/s);
    machine.dispose();
  });

  it('of a paused guest leaves it paused', async () => {
    const { machine, console } = makeMachine('demo', { append: 'period=5' });
    machine.boot();
    machine.start();
    await until(() => console.text.includes('tick 2'), 'ticks');
    machine.pause();
    machine.reset();
    await sleep(20);
    expect(machine.phase).toBe('paused');
    console.drain();
    machine.resume();
    await until(() => console.text.includes('tick 1'), 'ticks from the start');
    machine.dispose();
  });
});

describe('what machines leave behind', () => {
  const descriptors = (): number => readdirSync('/proc/self/fd').length;
  const threads = (): number => readdirSync('/proc/self/task').length;
  const residentMib = (): number => process.memoryUsage.rss() / 2 ** 20;

  it('is nothing after a hundred of them', async () => {
    const gc = (globalThis as { gc?: () => void }).gc;
    const round = async (): Promise<void> => {
      const { machine } = makeMachine('hello', { cpus: 2, memoryMib: 8 });
      machine.boot();
      machine.start();
      await machine.finished;
      machine.dispose();
      machine.dispose();
    };
    for (let i = 0; i < 20; i++) await round();
    gc?.();
    const before = { descriptors: descriptors(), threads: threads(), residentMib: residentMib() };
    for (let i = 0; i < 80; i++) await round();
    await sleep(50);
    gc?.();
    expect(descriptors()).toBe(before.descriptors);
    expect(threads()).toBe(before.threads);
    // 80 leaked guests would be 640 MiB.
    expect(residentMib()).toBeLessThan(before.residentMib + 60);
  });

  it('is nothing after one that failed in the making', () => {
    const before = descriptors();
    const config = { name: 'x', memoryBytes: 2 ** 25, cpus: 1, cpu: 'host,+nonsense' };
    const boot = {
      kind: 'firmware',
      image: { name: 'x', bytes: new Uint8Array(2 ** 21) },
      order: [],
    } as const;
    for (let i = 0; i < 20; i++) {
      expect(() => new Machine({ ...config, boot }, { host, log: silentLog })).toThrow(/CPU flag/);
      expect(() => new Machine({ ...config, cpu: 'host', boot }, { host, log: silentLog })).toThrow(
        /the firmware image has 2097152 bytes/,
      );
    }
    expect(descriptors()).toBe(before);
  });
});

describe('the check of this host', () => {
  it('says of the time-stamp counter what a restore then reports', async () => {
    const finding = checkHost(host, { blockEngine: () => 'io_uring', cpuCount: () => 2 }).find(
      ({ id }) => id === 'tsc',
    );
    const vm = host.createVm({ vcpus: 1 });
    const { tscTaken } = vm.restoreState(vm.captureState(), { elapsedNs: 10n ** 12n });
    vm.destroy();
    if (host.probe().hasVcpuTscOffset) {
      expect(finding?.verdict).toBe(tscTaken ? 'ok' : 'limited');
    } else {
      expect(finding?.verdict).toBe('limited');
    }
  });
});

/** Types a key again and again, since keys that come before firmware listens are lost, until `text` appears. */
async function typeUntil(console: MemoryConsole, key: string, text: string): Promise<void> {
  const timer = setInterval(() => console.type(key), 500);
  await until(() => console.text.includes(text), text, 40_000).finally(() => clearInterval(timer));
}

const seabios = ((): string | undefined => {
  try {
    return findSeaBios();
  } catch {
    process.stdout.write('skipped: no SeaBIOS is installed (Debian: apt install seabios)\n');
    return undefined;
  }
})();

describe.skipIf(seabios === undefined)('firmware', () => {
  function firmware(log: MemoryLog) {
    const image = { name: seabios!, bytes: readFileSync(seabios!) };
    const boot = { kind: 'firmware', image, order: ['disk'] } as const;
    const config = { name: 'bios', memoryBytes: 2 ** 26, cpus: 2, cpu: 'host', boot };
    const machine = new Machine(config, { host, log });
    const console = new MemoryConsole();
    machine.assemble({
      serial: [console],
      disks: [],
      nets: [],
      doorbellsOfAnyWidth: host.probe().hasIoeventfdAnyLength,
    });
    return { machine, console };
  }

  it('comes up, is saved in the middle, goes on elsewhere, opens its menu, and is reset', async () => {
    const log = new MemoryLog();
    const first = firmware(log);
    first.machine.boot();
    first.machine.start();
    await until(() => first.console.text.includes('SeaBIOS (version'), 'the banner', 40_000);
    first.machine.pause();
    const saved = saveOf(first.machine);
    first.machine.dispose();
    const { machine, console } = firmware(log);
    machine.loadContainer(saved.container);
    for (const [i, bytes] of saved.ranges.entries()) machine.memory.ranges[i]!.bytes.set(bytes);
    machine.start();
    await until(() => console.text.includes('ESC for boot menu'), 'the prompt', 40_000);
    console.type('\x1b');
    await until(() => console.text.includes('Select boot device'), 'the menu', 40_000);
    await typeUntil(console, '\x1b', 'No bootable device');
    expect(console.text).not.toContain('Floppy');
    console.drain();
    machine.reset();
    await until(() => console.text.includes('SeaBIOS (version'), 'the second start', 40_000);
    expect(machine.phase).toBe('running');
    machine.dispose();
    const firmwareLog = log.lines.filter((line) => line.startsWith('debug firmware: '));
    expect(firmwareLog.join('\n')).toMatch(/fffbc000 - 0000000100000000 = 2 RESERVED/);
    expect(firmwareLog.join('\n')).toContain('1: HALT');
  }, 150_000);
});
