/**
 * The loops of measure 8, in a process of their own, because one kernel's types must not spoil the code of another's:
 * `node --expose-gc --max-semi-space-size=64 kernel-process.js NAME BATCHES`. Prints one JSON object: ns and bytes allocated for each item.
 */

import { E1000 } from '../../devices/e1000/e1000.ts';
import { ManualClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { Prng } from '../../src/base/prng.ts';
import { MemoryMapHandle } from '../../src/kvm/memory-map.ts';
import { loadNativeKvm } from '../../src/kvm/native.ts';
import { loadNativeIo } from '../../src/kvm/native-io.ts';
import { GuestMemory } from '../../src/memory/guest-memory.ts';
import type { FrameBatch, NetBackend } from '../../src/net/backend.ts';
import { Chain } from '../../src/virtio/chain.ts';
import { VirtQueue } from '../../src/virtio/queue.ts';
import { driverMemory, E1000_REG, E1000Driver, LAYOUT } from '../support/e1000-driver.ts';
import { summarize } from './stats.ts';

/** A kernel: one call does `items` items. */
interface Kernel {
  readonly items: number;
  readonly batch: () => void;
  /** Before each batch, not timed. */
  readonly prepare?: () => void;
}

const PAGE = 4096;

/** Pop, push and publish chains of three descriptors: what a disk request costs the ring. */
function virtqueue(): Kernel {
  const size = 256;
  const memory = new GuestMemory([{ base: 0, buffer: new ArrayBuffer(2 ** 20) }]);
  const queue = new VirtQueue(memory, size, (why) => {
    throw new Error(why);
  });
  const [desc, avail, used] = [0x1000, 0x4000, 0x6000];
  Object.assign(queue, { descAddress: desc, availAddress: avail, usedAddress: used });
  const chains = Math.floor(size / 3);
  for (let i = 0; i < chains * 3; i++) {
    const last = i % 3 === 2;
    memory.writeU64(desc + 16 * i, 0x1_0000 + 512 * i);
    memory.writeU32(desc + 16 * i + 8, 512);
    memory.writeU16(desc + 16 * i + 12, last ? 2 : 1);
    memory.writeU16(desc + 16 * i + 14, i + 1);
  }
  queue.enable();
  const chain = new Chain();
  let index = 0;
  return {
    items: chains,
    batch() {
      for (let i = 0; i < chains; i++) {
        memory.writeU16(avail + 4 + 2 * (index & (size - 1)), 3 * i);
        index = (index + 1) & 0xffff;
      }
      memory.writeU16(avail + 2, index);
      while (queue.pop(chain)) queue.push(chain.head, 512);
      queue.publish();
    },
  };
}

/** Frames of 60 bytes from doorbell to the back end. */
function e1000Transmit(): Kernel {
  const backend: NetBackend = {
    info: { name: 'null', sendOffloads: 0, receiveOffloads: 0, mtu: undefined },
    linkUp: true,
    setHandler() {},
    send: (batch: FrameBatch, from: number) => batch.count - from,
    receive: () => 0,
    setReceiveEnabled() {},
    setReceiveOffloads() {},
    close: () => Promise.resolve(),
  };
  const memory = driverMemory();
  const mac = Uint8Array.of(2, 2, 2, 2, 2, 2);
  const irq = { set() {} };
  const clock = new ManualClock();
  const chip = new E1000({ id: 'x', mac, memory, backend, clock, irq, log: silentLog });
  const driver = new E1000Driver(memory, chip.mmio);
  chip.resume();
  driver.start(128, 128);
  for (let i = 0; i < 128; i++) {
    memory.writeU64(LAYOUT.txRing + 16 * i, LAYOUT.txBuffers + 64 * i);
    memory.writeU32(LAYOUT.txRing + 16 * i + 8, 0x0b00_003c);
  }
  let tail = 0;
  return {
    items: 64,
    batch() {
      tail = (tail + 64) % 128;
      driver.set(E1000_REG.TDT, tail);
    },
  };
}

const GATHERED = 1024;

/** Copies scattered pages into staging: the part of a checkpoint for which the guest stands still. */
function gather(): Kernel {
  const map = new MemoryMapHandle(new (loadNativeKvm().MemoryMap)());
  const guest = new ArrayBuffer(64 * 2 ** 20);
  map.addRange(0, guest);
  const pages = Uint32Array.from({ length: GATHERED }, (_, i) => i * 16 + (i % 7));
  const out = new Uint8Array(GATHERED * PAGE);
  return { items: GATHERED, batch: () => map.gather(pages, GATHERED, out) };
}

/** Encodes pages in which `percent` of the words changed since the last commit. */
function delta(percent: number): Kernel {
  const encoder = new (loadNativeIo().PageEncoder)(GATHERED);
  const pages = Uint32Array.from({ length: GATHERED }, (_, i) => i);
  const staging = new Uint8Array(GATHERED * PAGE);
  const words = new Uint32Array(staging.buffer);
  const random = new Prng(1);
  for (let i = 0; i < words.length; i++) words[i] = random.below(2 ** 32);
  const out = new Uint8Array(GATHERED * (PAGE + 64));
  const stats = new Uint32Array(5);
  const changed = Math.floor((words.length * percent) / 100);
  let at = 0;
  return {
    items: GATHERED,
    prepare() {
      for (let i = 0; i < changed; i++) {
        at = (at + 40_503) % words.length;
        words[at] = words[at]! + 1;
      }
    },
    batch() {
      encoder.encode(pages, 0, GATHERED, staging, 0, out, 0, stats);
    },
  };
}

/** Encodes pages of nothing but zeros, as most are in the first copy of a guest that has just started. */
function zeroPages(): Kernel {
  const encoder = new (loadNativeIo().PageEncoder)(GATHERED);
  const pages = Uint32Array.from({ length: GATHERED }, (_, i) => i);
  const staging = new Uint8Array(GATHERED * PAGE);
  const out = new Uint8Array(GATHERED * (PAGE + 64));
  const stats = new Uint32Array(5);
  return {
    items: GATHERED,
    batch: () => void encoder.encode(pages, 0, GATHERED, staging, 0, out, 0, stats),
  };
}

const KERNELS: Readonly<Record<string, () => Kernel>> = {
  virtqueue,
  'e1000-transmit': e1000Transmit,
  gather,
  zero: zeroPages,
  'delta-5': () => delta(5),
  'delta-60': () => delta(60),
};

/** Least growth of the heap over a few stretches: one garbage collection in a stretch would hide what was allocated. */
function bytesPerItem(kernel: Kernel): number {
  const gc = globalThis.gc;
  if (gc === undefined) throw new Error('run with --expose-gc');
  const batches = Math.max(1, Math.floor(4096 / kernel.items));
  let least = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 10; i++) {
    gc();
    const before = process.memoryUsage().heapUsed;
    for (let b = 0; b < batches; b++) {
      kernel.prepare?.();
      kernel.batch();
    }
    least = Math.min(least, process.memoryUsage().heapUsed - before);
  }
  // Reading the heap's size allocates some hundred bytes itself.
  return Math.max(0, least - readingCost(gc)) / (batches * kernel.items);
}

function readingCost(gc: () => void): number {
  let most = 0;
  for (let i = 0; i < 5; i++) {
    gc();
    const before = process.memoryUsage().heapUsed;
    most = Math.max(most, process.memoryUsage().heapUsed - before);
  }
  return most;
}

function main(name: string, rounds: number): void {
  const kernel = KERNELS[name]!();
  const until = performance.now() + 300;
  while (performance.now() < until) {
    kernel.prepare?.();
    kernel.batch();
  }
  const times: number[] = [];
  for (let i = 0; i < rounds; i++) {
    kernel.prepare?.();
    const begin = process.hrtime.bigint();
    kernel.batch();
    times.push(Number(process.hrtime.bigint() - begin) / kernel.items);
  }
  const { median } = summarize(times);
  process.stdout.write(`${JSON.stringify({ ns: median, bytes: bytesPerItem(kernel) })}\n`);
}

main(process.argv[2]!, Number(process.argv[3]));
