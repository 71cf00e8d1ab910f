import { getHeapStatistics, setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { describe, expect, it } from 'vitest';
import { ManualClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { type FrameBatch, type NetBackend, VNET_HEADER_BYTES } from '../../src/net/backend.ts';
import {
  driverMemory,
  E1000Driver,
  LAYOUT,
  E1000_REG as R,
} from '../../test/support/e1000-driver.ts';
import { E1000 } from './e1000.ts';

// A collection between two readings could hide what was allocated, but there is none: a round that allocates a
// little fills no semi-space, and one that allocates much is over the limit long before.
setFlagsFromString('--expose-gc');
const gc = runInNewContext('gc') as () => void;

/** Frames that fit the copy loop of guest memory: longer ones cost it a view per copy. */
const FRAME_BYTES = 60;
const TURNS = 50;
const FRAMES_PER_TURN = 32;

/** Less than a byte per frame: nothing per frame, and next to nothing per turn. */
const LIMIT = TURNS * FRAMES_PER_TURN;

/** The least growth of the heap by `work`, tried until it is under the limit, at first while code is still cold. */
function heapGrowth(work: () => void): number {
  let least = Number.POSITIVE_INFINITY;
  for (let round = 0; round < 200 && least >= LIMIT; round++) {
    gc();
    const before = getHeapStatistics().used_heap_size;
    work();
    least = Math.min(least, getHeapStatistics().used_heap_size - before);
  }
  return least;
}

function build() {
  let pending = 0;
  const backend: NetBackend = {
    info: { name: 'null', sendOffloads: 0, receiveOffloads: 0, mtu: undefined },
    linkUp: true,
    setHandler() {},
    send: (batch: FrameBatch, from: number) => batch.count - from,
    receive(batch: FrameBatch, most: number) {
      let added = 0;
      for (; added < most && pending > 0; added++, pending--) {
        const at = batch.add(VNET_HEADER_BYTES + FRAME_BYTES);
        batch.bytes.fill(0, at, at + VNET_HEADER_BYTES);
        batch.bytes.fill(2, at + VNET_HEADER_BYTES, at + VNET_HEADER_BYTES + FRAME_BYTES);
      }
      return added;
    },
    setReceiveEnabled() {},
    setReceiveOffloads() {},
    close: () => Promise.resolve(),
  };
  const memory = driverMemory();
  const mac = Uint8Array.of(2, 2, 2, 2, 2, 2);
  const clock = new ManualClock();
  const chip = new E1000({
    id: 'x',
    mac,
    memory,
    backend,
    clock,
    irq: { set() {} },
    log: silentLog,
  });
  const driver = new E1000Driver(memory, chip.mmio);
  chip.resume();
  driver.start(128, 128);
  driver.set(R.RXCSUM, 0x300);
  return { memory, chip, driver, offer: (frames: number) => (pending = frames) };
}

describe('e1000 hot paths', () => {
  it('transmit without allocating', () => {
    const { memory, driver } = build();
    for (let i = 0; i < 128; i++) {
      memory.writeU64(LAYOUT.txRing + 16 * i, LAYOUT.txBuffers + 64 * i);
      memory.writeU32(LAYOUT.txRing + 16 * i + 8, 0x0b000000 | FRAME_BYTES);
    }
    let tail = 0;
    const grown = heapGrowth(() => {
      for (let turn = 0; turn < TURNS; turn++) {
        tail = (tail + FRAMES_PER_TURN) % 128;
        driver.set(R.TDT, tail);
      }
    });
    expect(driver.get(R.TDH)).toBe(tail);
    expect(grown).toBeLessThan(LIMIT);
  });

  it('receive without allocating', () => {
    const { chip, driver, offer } = build();
    let head = 0;
    const grown = heapGrowth(() => {
      for (let turn = 0; turn < TURNS; turn++) {
        offer(FRAMES_PER_TURN);
        chip.receivable();
        head = (head + FRAMES_PER_TURN) % 128;
        driver.set(R.RDT, (head + 127) % 128);
      }
    });
    expect(driver.get(R.RDH)).toBe(head);
    expect(grown).toBeLessThan(LIMIT);
  });
});
