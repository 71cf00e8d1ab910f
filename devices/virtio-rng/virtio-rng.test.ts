import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ManualClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { Prng } from '../../src/base/prng.ts';
import { VirtioPciFunction } from '../../src/virtio/pci-function.ts';
import type { VirtioPciState } from '../../src/virtio/pci-state.ts';
import { deviceConformance } from '../../test/support/device-conformance.ts';
import { PciTestBoard } from '../../test/support/pci-board.ts';
import { testMemory, VirtioDriver } from '../../test/support/virtio-driver.ts';
import { VirtioRng, type VirtioRngState } from './virtio-rng.ts';

const SLOT = 4;

function world() {
  const board = new PciTestBoard();
  const memory = testMemory(0x8_0000);
  const source = new Prng(1);
  const boards = new Map<unknown, PciTestBoard>();
  return {
    board,
    memory,
    clock: new ManualClock(),
    source,
    boards,
    driver: new VirtioDriver(board, memory, SLOT),
  };
}
type World = ReturnType<typeof world>;

function attach(w: World) {
  w.board = new PciTestBoard(w.board.msi, w.board.irqs);
  w.driver.board = w.board;
  const { memory, clock, source, board } = w;
  const device = new VirtioRng({
    id: 'rng0',
    memory,
    clock,
    entropy: (bytes, start, end) => source.fill(bytes.subarray(start, end)),
  });
  const fn = new VirtioPciFunction({
    device,
    memory,
    clock,
    log: silentLog,
    doorbells: board.doorbells,
  });
  board.bus.add(fn.pci, { slot: SLOT });
  w.boards.set(fn, board);
  return fn;
}

function begin(w: World): void {
  w.driver.probe();
  w.driver.enableMsix(2);
  w.driver.negotiate({ low: 0, high: 1 });
  w.driver.setupQueue(0);
  w.driver.start();
}

describe('VirtioRng', () => {
  it('fills what the driver offers', () => {
    const w = world();
    attach(w).resume();
    begin(w);
    const at = w.driver.allocate(300);
    w.driver.queues[0]!.add([
      { address: at, length: 100, write: true },
      { address: at + 100, length: 200, write: true },
    ]);
    w.driver.queues[0]!.notify();
    expect(w.driver.queues[0]!.take()?.written).toBe(300);
    const bytes = new Uint8Array(300);
    w.memory.read(at, bytes);
    expect(new Set(bytes).size).toBeGreaterThan(100);
  });

  it('gives no more than its rate, and goes on by itself', () => {
    const w = world();
    attach(w).resume();
    begin(w);
    const at = w.driver.allocate(0x4000);
    const queue = w.driver.queues[0]!;
    const ask = () => {
      while (queue.free > 0) queue.add([{ address: at, length: 0x4000, write: true }]);
      queue.notify();
      return queue.takeAll().reduce((sum, { written }) => sum + written, 0);
    };
    expect(ask()).toBe(64 * 1024);
    expect(ask()).toBe(0);
    expect(ask()).toBe(0);
    w.clock.advance(100e6);
    const later = queue.takeAll().reduce((sum, { written }) => sum + written, 0);
    expect(later).toBeGreaterThan(90_000);
    expect(later).toBeLessThan(110_000);
  });

  it('rests when its allowance and its buffers end together', () => {
    const w = world();
    attach(w).resume();
    begin(w);
    const at = w.driver.allocate(0x1000);
    const queue = w.driver.queues[0]!;
    const add = () => queue.add([{ address: at, length: 0x1000, write: true }]);
    for (let i = 0; i < 16; i++) add();
    queue.notify();
    expect(queue.takeAll()).toHaveLength(16);
    // A timer that armed itself for the past would never let time go on.
    w.clock.advance(1e9);
    add();
    queue.notify();
    expect(queue.take()?.written).toBe(0x1000);
  });
});

type Step = { length: number } | { ns: number } | 'begin';

deviceConformance<World, VirtioPciFunction<VirtioRngState>, Step>('virtio-rng', {
  world,
  attach,
  steps: fc.oneof(
    { weight: 6, arbitrary: fc.record({ length: fc.nat(30_000) }) },
    { weight: 3, arbitrary: fc.record({ ns: fc.nat(50e6) }) },
    { weight: 1, arbitrary: fc.constant<'begin'>('begin') },
  ),
  perform(w, device, step) {
    w.driver.board = w.boards.get(device)!;
    if (step === 'begin' || w.driver.queues[0] === undefined) begin(w);
    const queue = w.driver.queues[0]!;
    if (step === 'begin') return undefined;
    if ('ns' in step) w.clock.advance(step.ns);
    else {
      queue.add([{ address: 0x6_0000, length: step.length, write: true }]);
      queue.notify();
    }
    return queue.takeAll();
  },
  observe: (w) => w.board.msi.messages,
  impossible: (good: VirtioPciState<VirtioRngState>) => [
    { ...good, device: { ...good.device, allowanceBytes: 1e6 } },
    { ...good, queues: [] },
    { ...good, transport: { ...good.transport, queueVectors: [7] } },
    { ...good, transport: { ...good.transport, isr: 1 } },
    { ...good, transport: { ...good.transport, status: 4 } },
  ],
});
