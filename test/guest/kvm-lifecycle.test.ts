import { readdirSync, readFileSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { afterEach, describe, expect, it } from 'vitest';
import { EXIT, type KvmVm } from '../../src/kvm/api.ts';
import { loadNativeKvm, type NativeVm } from '../../src/kvm/native.ts';
import { DONE, host, makeGuest, PORT, runToDone } from './kvm-guest.ts';

const vms: KvmVm[] = [];
afterEach(() => {
  for (const vm of vms.splice(0)) vm.destroy();
});

const turn = () => new Promise<void>((resolve) => setImmediate(resolve));
const gc = (globalThis as { gc?: () => void }).gc;

async function settle(): Promise<void> {
  for (let i = 0; i < 4; i++) {
    gc?.();
    await turn();
  }
}

const descriptors = () => readdirSync('/proc/self/fd').length;
const threads = () => readdirSync('/proc/self/task').length;
/** Bytes; VmRSS of the process. */
function rss(): number {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))![1]) * 1024;
}

describe('life and death of a VM', () => {
  const rounds = Number(process.env.TSVMM_LIFECYCLE_ROUNDS ?? 300);

  it(`${rounds} times: descriptors, threads and memory stay flat`, {
    timeout: 600_000,
  }, async () => {
    const once = async (round: number) => {
      const { vm, memory } = makeGuest('real', [0xb0, 0x41, 0xe6, PORT, ...DONE], {
        vcpus: 1 + (round % 2),
        log: true,
      });
      memory.fill(1, 0x10000, 0x20000);
      vm.addIrqfd(5);
      vm.addIoEvent({ space: 'pio', address: 0x700, size: 1 }, () => {});
      // A third runs to its end, a third is destroyed while it runs, a third never starts.
      if (round % 3 === 0) await runToDone(vm);
      if (round % 3 === 1) vm.start({ onExit: () => true });
      vm.destroy();
      expect(memory.length).toBe(0);
    };
    for (let i = 0; i < 30; i++) await once(i);
    await settle();
    const before = { fds: descriptors(), threads: threads(), rss: rss() };
    for (let i = 0; i < rounds; i++) {
      await once(i);
      if (i % 50 === 0) await settle();
    }
    await settle();
    expect(descriptors()).toBe(before.fds);
    expect(threads()).toBeLessThanOrEqual(before.threads);
    // A leak of a single page of each VM's memory would show as more than a MiB.
    expect(rss() - before.rss).toBeLessThan(24 * 2 ** 20);
  });

  it('destroy is idempotent and final', () => {
    const { vm, buffer } = makeGuest('real', [0xf4]);
    const irq = vm.addIrqfd(3);
    const bell = vm.addIoEvent({ space: 'pio', address: 0x700, size: 1 }, () => {});
    vm.destroy();
    vm.destroy();
    expect(buffer.byteLength).toBe(0);
    irq.signal();
    irq.close();
    bell.close();
    const gone = expect.objectContaining({ code: 'KVM_DESTROYED' });
    expect(() => vm.start({ onExit: () => true })).toThrow(gone);
    expect(() => vm.pauseAll()).toThrow(gone);
    expect(() => vm.captureState()).toThrow(gone);
    expect(() => vm.setIrqLine(1, true)).toThrow(gone);
    expect(() => vm.createBuffer(4096)).toThrow(gone);
    expect(() => vm.stats()).toThrow(gone);
    expect(vm.paused).toBe(false);
  });

  it('destroys a VM in every state: running, halted, paused, with an open exit', async () => {
    for (const code of [[0xeb, 0xfe], [0xf4], [0xe6, PORT, 0xeb, 0xfc]]) {
      const { vm } = makeGuest('long', code, { vcpus: 2 });
      vm.start({ onExit: () => true });
      await turn();
      vm.destroy();
      const paused = makeGuest('long', code).vm;
      paused.start({ onExit: () => true });
      await turn();
      paused.pauseAll();
      paused.destroy();
    }
    const { vm } = makeGuest('long', [...DONE]);
    await runToDone(vm);
    expect(vm.openExit(0)).toBe(EXIT.pioOut);
    vm.destroy();
  });

  it('a VM that nobody holds is collected', async () => {
    if (gc === undefined) throw new Error('the tests run with --expose-gc');
    await settle();
    const before = descriptors();
    (() => {
      for (let i = 0; i < 20; i++) makeGuest('real', [0xf4]);
    })();
    expect(descriptors()).toBeGreaterThan(before + 20);
    const end = performance.now() + 10_000;
    while (descriptors() > before && performance.now() < end) await settle();
    expect(descriptors()).toBe(before);
  });

  it('a failed creation leaves nothing behind', async () => {
    await settle();
    const before = descriptors();
    expect(() => host.createVm({ vcpus: 1, cpu: 'host,+vmx' })).toThrow(
      expect.objectContaining({ code: 'CPU_FLAG_MISSING' }),
    );
    expect(() => host.createVm({ vcpus: 300 })).toThrow(
      expect.objectContaining({ code: 'KVM_VCPUS' }),
    );
    const { KvmVm: Native, MemoryMap } = loadNativeKvm();
    // Intel's pages must lie below 4 GiB and be aligned.
    expect(() => new Native(new MemoryMap(), 1, true, 5, () => {})).toThrow(RangeError);
    await settle();
    expect(descriptors()).toBe(before);
  });

  it('a worker that ends takes its running VM down', async () => {
    await settle();
    const before = descriptors();
    const source = `
      const { parentPort, workerData } = require('node:worker_threads');
      const { createRequire } = require('node:module');
      const addon = createRequire(workerData.root)(process.env.TSVMM_NATIVE ?? './native/binding.cjs');
      const vm = new addon.KvmVm(new addon.MemoryMap(), 2, true, 0xfffbd000, () => {});
      const buffer = vm.createBuffer(0x10000);
      vm.mapSlot(0, 0, 0x10000, false, false, 0, buffer, 0);
      new Uint8Array(buffer).set([0xeb, 0xfe], 0xfff0);
      vm.addIoEvent(true, 0x700, 1, undefined);
      vm.start(() => false);
      parentPort.postMessage('running');
    `;
    const worker = new Worker(source, {
      eval: true,
      workerData: { root: new URL('../../package.json', import.meta.url).href },
    });
    await new Promise((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
    expect(await worker.terminate()).toBe(1);
    await settle();
    expect(descriptors()).toBeLessThanOrEqual(before);
    expect(
      readdirSync('/proc/self/task').some((task) =>
        readFileSync(`/proc/self/task/${task}/comm`, 'utf8').startsWith('vcpu-'),
      ),
    ).toBe(false);
  });
});

describe('garbage arguments', () => {
  const GARBAGE: readonly unknown[] = [
    undefined,
    null,
    true,
    -1,
    0.5,
    Number.NaN,
    Number.POSITIVE_INFINITY,
    2 ** 53,
    4_294_967_295,
    255,
    10n,
    -1n,
    2n ** 64n,
    '',
    'x',
    {},
    [],
    () => 1,
    Symbol('s'),
    new Uint8Array(3),
    new Uint8Array(144),
    new Uint8Array(312),
    new Uint8Array(512),
    new Uint32Array(5),
    new BigUint64Array(4),
    new DataView(new ArrayBuffer(8)),
    new ArrayBuffer(8),
    new ArrayBuffer(0),
  ];

  it('every native entry throws or does nothing; nothing crashes', { timeout: 120_000 }, () => {
    const native = loadNativeKvm();
    let seed = 12345;
    const pick = () => {
      seed = (seed * 1103515245 + 12345) % 2 ** 31;
      return GARBAGE[Math.floor((seed / 2 ** 31) * GARBAGE.length)];
    };
    let calls = 0;
    let thrown = 0;
    const poke = (target: object, name: string) => {
      const args = Array.from({ length: Math.floor(calls % 9) }, pick);
      calls++;
      try {
        (target as Record<string, (...a: unknown[]) => unknown>)[name]!(...args);
      } catch (error) {
        expect(error).toBeInstanceOf(Error);
        thrown++;
      }
    };
    const methods = Object.getOwnPropertyNames(native.KvmVm.prototype).filter(
      (name) => name !== 'constructor',
    );
    expect(methods.length).toBeGreaterThan(40);
    for (let round = 0; round < 6; round++) {
      const vm: NativeVm = new native.KvmVm(new native.MemoryMap(), 1, true, 0xfffb_d000, () => {});
      for (const name of methods) {
        // With whatever arguments, start would run the guest and destroy end the round.
        if (name === 'start' || name === 'destroy' || name === 'pause') continue;
        for (let i = 0; i < 40; i++) poke(vm, name);
      }
      for (let i = 0; i < 40; i++) poke(vm, 'pause');
      for (let i = 0; i < 10; i++) poke(vm, 'start');
      vm.destroy();
      for (const name of methods) poke(vm, name);
    }
    const map = new native.MemoryMap();
    map.addRange(0, new ArrayBuffer(0x4000), 0, 0x4000);
    for (const name of [
      'addRange',
      'removeRange',
      'gather',
      'scatter',
      'allocate',
      'beginGather',
      'endGather',
      'read',
      'write',
    ]) {
      for (let i = 0; i < 300; i++) poke(map, name);
    }
    expect(thrown).toBeGreaterThan(calls / 2);
  });

  it('methods on foreign objects and forged maps are refused', () => {
    const native = loadNativeKvm();
    const vm = new native.KvmVm(new native.MemoryMap(), 1, true, 0xfffb_d000, () => {});
    const map = new native.MemoryMap();
    const { stats } = vm;
    for (const target of [{}, map, null, undefined, 1]) {
      expect(() => Reflect.apply(stats, target, [])).toThrow();
    }
    expect(() => Reflect.apply(map.read, vm, [0, new Uint8Array(1)])).toThrow();
    for (const forged of [
      {},
      vm,
      null,
      Object.create(native.MemoryMap.prototype),
      new Proxy(map, {}),
    ]) {
      expect(() => new native.KvmVm(forged as never, 1, true, 0xfffb_d000, () => {})).toThrow(
        TypeError,
      );
    }
    vm.destroy();
  });

  it('handlers that are none, or answer nonsense', async () => {
    const { vm } = makeGuest('long', [...DONE]);
    vms.push(vm);
    const errors: unknown[] = [];
    const listeners = process.listeners('uncaughtException');
    process.removeAllListeners('uncaughtException');
    const caught = new Promise<void>((resolve) => {
      process.on('uncaughtException', (error) => {
        errors.push(error);
        resolve();
      });
    });
    vm.start({ onExit: () => 'yes' as unknown as boolean });
    await caught;
    process.removeAllListeners('uncaughtException');
    for (const listener of listeners) process.on('uncaughtException', listener);
    expect(String(errors[0])).toMatch(/onExit must return a boolean/);
    expect(vm.openExit(0)).toBe(EXIT.pioOut);
  });
});
