import { readdirSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import { Prng } from '../../../src/base/prng.ts';
import { loadAddon } from '../../../src/kvm/addon.ts';
import { loadNativeIo } from '../../../src/kvm/native-io.ts';

const native = loadNativeIo();

const soon = (ms = 20) => new Promise((resolve) => setTimeout(resolve, ms));
const openFds = () => readdirSync('/proc/self/fd').length;

describe('FdPoller', () => {
  it('reads an eventfd before the callback, and is silent after stop and close', async () => {
    const fd = native.createEventFd();
    const seen: number[] = [];
    const poller = new native.FdPoller(fd, (count) => seen.push(count), true);
    native.signalEventFd(fd);
    native.signalEventFd(fd);
    await soon();
    expect(seen).toEqual([]);
    poller.start(1);
    await soon();
    expect(seen).toEqual([2]);
    native.signalEventFd(fd);
    await soon();
    expect(seen).toEqual([2, 1]);
    poller.stop();
    native.signalEventFd(fd);
    await soon();
    expect(seen.length).toBe(2);
    poller.start(1);
    poller.close();
    poller.close();
    await soon();
    expect(seen.length).toBe(2);
    native.closeFd(fd);
    expect(() => poller.start(1)).toThrow(/EBADF/);
  });

  it('can be closed from its own callback', async () => {
    const fd = native.createEventFd();
    let calls = 0;
    const poller = new native.FdPoller(fd, () => {
      calls++;
      poller.close();
    });
    poller.start(1);
    native.signalEventFd(fd);
    await soon();
    expect(calls).toBe(1);
    native.closeFd(fd);
  });

  it('leaves no descriptor and no handle behind', async () => {
    const before = openFds();
    for (let i = 0; i < 300; i++) {
      const fd = native.createEventFd();
      const poller = new native.FdPoller(fd, () => {}, true);
      poller.start(1);
      poller.close();
      native.closeFd(fd);
      const timer = new native.PreciseTimer(() => {});
      timer.arm(native.monotonicNs() + 1e12);
      timer.close();
    }
    await soon();
    expect(openFds()).toBeLessThanOrEqual(before + 2);
  });

  it('lets a worker thread end with everything open', async () => {
    const source = `
      const a = require(process.env.TSVMM_NATIVE ?? ${JSON.stringify(`${process.cwd()}/native/binding.cjs`)});
      const fd = a.createEventFd();
      new a.FdPoller(fd, () => {}, true).start(1);
      new a.PreciseTimer(() => {}).arm(a.monotonicNs() + 1e12);
      new a.BlockIo(new a.MemoryMap(), { fd: 0, sizeBytes: 512, blockBytes: 512, memoryAlign: 1, readonly: true, maxRequests: 4, engine: 'auto' }, () => {});
      require('node:worker_threads').parentPort.postMessage('open');
      setTimeout(() => process.exit(0), 10);
    `;
    for (let i = 0; i < 3; i++) {
      const worker = new Worker(source, { eval: true });
      const code = await new Promise((resolve, reject) => {
        worker.on('exit', resolve);
        worker.on('error', reject);
      });
      expect(code).toBe(0);
    }
  });
});

describe('PreciseTimer', () => {
  it('fires once, near its instant; can be moved and cancelled', { retry: 2 }, async () => {
    const fired: number[] = [];
    const timer = new native.PreciseTimer(() => fired.push(native.monotonicNs()));
    const start = native.monotonicNs();
    timer.arm(start + 60e6);
    timer.arm(start + 5e6);
    await soon(40);
    expect(fired.length).toBe(1);
    expect(fired[0]! - start).toBeGreaterThanOrEqual(5e6);
    // Far from precise, so that a busy machine passes; the lower bound is the promise.
    expect(fired[0]! - start).toBeLessThan(1e9);
    timer.arm(native.monotonicNs() + 5e6);
    timer.cancel();
    await soon();
    expect(fired.length).toBe(1);
    timer.arm(0);
    await soon();
    expect(fired.length).toBe(2);
    timer.close();
    expect(() => timer.arm(0)).toThrow(/closed/);
    expect(() => timer.arm(Number.NaN)).toThrow();
  });
});

describe('clocks', () => {
  it('advance', () => {
    const a = native.monotonicNs();
    const b = native.boottimeNs();
    expect(native.monotonicNs()).toBeGreaterThanOrEqual(a);
    expect(native.boottimeNs()).toBeGreaterThanOrEqual(b);
    expect(native.cpuCount()).toBeGreaterThan(0);
  });
});

describe('arguments', () => {
  it('that are garbage throw and do not crash', () => {
    const random = new Prng(1);
    const garbage = [
      undefined,
      null,
      -1,
      1.5,
      2 ** 40,
      Number.NaN,
      'x',
      'y'.repeat(300),
      {},
      [],
      () => 0,
      new Uint8Array(8),
      Symbol('s'),
      10n,
    ];
    const functions = loadAddon() as Record<string, unknown>;
    // Not with numbers that are real descriptors of this process: nothing here may close or write to them.
    const names = [
      'signalEventFd',
      'readFd',
      'writeFd',
      'tryLock',
      'unlock',
      'fileGeometry',
      'allocateFile',
      'setNonBlocking',
      'closeFd',
    ];
    const classes = ['FdPoller', 'PreciseTimer', 'TapDevice', 'PageEncoder', 'BlockIo'];
    for (let round = 0; round < 4000; round++) {
      const args = Array.from({ length: random.below(6) }, () => random.pick(garbage));
      try {
        if (random.chance(0.5))
          (functions[random.pick(names)] as (...a: unknown[]) => unknown)(...args);
        else {
          const made = new (
            functions[random.pick(classes)] as new (
              ...a: unknown[]
            ) => { close?(): void }
          )(...args);
          made.close?.();
        }
      } catch (error) {
        expect(error).toBeInstanceOf(Error);
      }
    }
  });

  it('of another class are refused', () => {
    const timer = new native.PreciseTimer(() => {});
    const start = native.FdPoller.prototype.start as (events: number) => void;
    expect(() => start.call(timer, 1)).toThrow(TypeError);
    timer.close();
  });
});
