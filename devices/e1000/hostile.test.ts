import { describe, expect, it } from 'vitest';
import { ManualClock } from '../../src/base/clock.ts';
import { MemoryLog } from '../../src/base/log.ts';
import {
  driverMemory,
  E1000Driver,
  LAYOUT,
  E1000_REG as R,
  ScriptedNet,
  TX,
} from '../../test/support/e1000-driver.ts';
import { E1000 } from './e1000.ts';

const MAC = Uint8Array.of(0x52, 0x54, 0x00, 0x12, 0x34, 0x56);

function build() {
  const memory = driverMemory();
  const net = new ScriptedNet();
  const clock = new ManualClock();
  const log = new MemoryLog();
  const options = {
    id: 'e1000:bad',
    mac: MAC,
    memory,
    backend: net,
    clock,
    irq: { set() {} },
    log,
  };
  const chip = new E1000(options);
  const driver = new E1000Driver(memory, chip.mmio);
  chip.resume();
  driver.start(64, 64, 0x0400800a);
  return { memory, net, clock, log, driver };
}

const frame = new Uint8Array(100).fill(2);

/** The device still works: one frame each way. */
function expectAlive({ net, driver, memory }: ReturnType<typeof build>): void {
  memory.fill(LAYOUT.txRing, 0x1000, 0);
  driver.setupTx(64);
  driver.setupRx(64, 0x0400800a);
  net.takeFrames();
  driver.putLegacy(frame);
  driver.kick();
  expect(net.takeFrames()).toEqual([frame]);
  net.inject(frame);
  net.pump();
  expect(driver.poll()?.bytes).toEqual(frame);
}

describe('a hostile transmit ring', () => {
  it.each<[string, (driver: E1000Driver) => void]>([
    ['of length 0', (d) => d.set(R.TDLEN, 0)],
    ['with its head out of range', (d) => d.set(R.TDH, 64)],
    ['with its tail out of range', (d) => d.set(R.TDT, 0xffff)],
    ['outside of memory', (d) => d.set(R.TDBAH, 0xffffffff)],
    ['at the end of memory', (d) => d.set(R.TDBAL, LAYOUT.bytes - 128)],
    ['longer than memory', (d) => d.set(R.TDLEN, 0xfffff)],
  ])('%s sends nothing that is not there', (_name, spoil) => {
    const world = build();
    spoil(world.driver);
    world.driver.set(R.TDT, 63);
    world.driver.set(R.TDT, 62);
    expect(world.net.sent).toEqual([]);
    expectAlive(world);
  });

  it('complains at a bounded rate', () => {
    const { driver, log } = build();
    driver.set(R.TDH, 64);
    for (let i = 0; i < 1000; i++) driver.set(R.TDT, 5);
    expect(log.lines.length).toBe(5);
    expect(log.lines[0]).toContain('e1000:bad: guest: transmit ring index out of range');
  });

  it('drops a packet with a buffer outside of memory and sends the next', () => {
    const world = build();
    const { driver, net } = world;
    for (const address of [LAYOUT.bytes - 10, 2 ** 40, 2 ** 52, 2 ** 64 - 4096]) {
      const at = LAYOUT.txRing + 16 * driver.put(0, 100 | TX.EOP | TX.RS, 0);
      world.memory.writeU32(at, address % 2 ** 32);
      world.memory.writeU32(at + 4, Math.min(Math.floor(address / 2 ** 32), 0xffffffff));
    }
    driver.putLegacy(frame);
    driver.kick();
    expect(net.takeFrames()).toEqual([frame]);
    expect(driver.get(R.TDH)).toBe(5);
    expectAlive(world);
  });

  it('drops packets that never end, and those too short for an Ethernet header', () => {
    const world = build();
    const { driver, net } = world;
    for (let round = 0; round < 3; round++) {
      for (let i = 0; i < 60; i++) driver.put(LAYOUT.txBuffers, 0xffff, 0);
      driver.kick();
      expect(driver.get(R.TDH)).toBe(driver.get(R.TDT));
    }
    driver.put(LAYOUT.txBuffers, 10 | TX.EOP, 0);
    driver.putLegacy(frame.subarray(0, 13));
    driver.putLegacy(new Uint8Array(0));
    driver.putLegacy(frame);
    driver.kick();
    expect(net.takeFrames()).toEqual([frame]);
    expectAlive(world);
  });

  it('bounds the work of a turn however much the ring offers', () => {
    const world = build();
    const { driver, net, clock, memory } = world;
    const count = 4096;
    memory.fill(LAYOUT.txRing, 16 * count, 0);
    driver.setupTx(count);
    for (let i = 0; i < count - 1; i++) driver.put(LAYOUT.txBuffers, 60 | TX.EOP, 0);
    driver.kick();
    expect(net.sent.length).toBe(256);
    clock.advance(0);
    expect(net.sent.length).toBe(count - 1);
    expectAlive(world);
  });

  it('bounds the descriptors of a turn, whatever they hold', () => {
    const world = build();
    const { driver, clock, memory } = world;
    memory.fill(0, 0x100000, 0);
    driver.setupTx(64);
    driver.set(R.TDBAL, 0);
    driver.set(R.TDLEN, 0xfff80);
    driver.set(R.TDT, 60000);
    expect(driver.get(R.TDH)).toBe(4096);
    clock.advance(0);
    expect(driver.get(R.TDH)).toBe(60000);
    expectAlive(world);
  });

  it('skips descriptors of reserved types', () => {
    const world = build();
    const { driver, net } = world;
    for (let type = 2; type < 16; type++)
      driver.put(LAYOUT.txBuffers, TX.DEXT | (type << 20) | 100, 0);
    driver.putLegacy(frame);
    driver.kick();
    expect(net.takeFrames()).toEqual([frame]);
  });
});

describe('a hostile receive ring', () => {
  it.each<[string, (driver: E1000Driver) => void]>([
    ['of length 0', (d) => d.set(R.RDLEN, 0)],
    ['with its head out of range', (d) => d.set(R.RDH, 64)],
    ['with its tail out of range', (d) => d.set(R.RDT, 0xffff)],
  ])('%s takes nothing', (_name, spoil) => {
    const world = build();
    spoil(world.driver);
    expect(world.net.enabled).toBe(false);
    world.net.inject(frame);
    world.net.pump();
    expect(world.net.queue.length).toBe(1);
    world.net.queue.length = 0;
    expectAlive(world);
  });

  it.each<[string, (world: ReturnType<typeof build>) => void]>([
    ['outside of memory', ({ driver }) => driver.set(R.RDBAH, 1)],
    ['with buffers outside of memory', ({ memory }) => memory.fill(LAYOUT.rxRing, 1024, 0xff)],
    ['of null buffers', ({ memory }) => memory.fill(LAYOUT.rxRing, 1024, 0)],
    [
      'whose buffers are the ring',
      ({ memory }) => {
        for (let i = 0; i < 64; i++) memory.writeU64(LAYOUT.rxRing + 16 * i, LAYOUT.rxRing);
      },
    ],
  ])('%s loses frames and no more', (_name, spoil) => {
    const world = build();
    spoil(world);
    for (let i = 0; i < 200; i++) world.net.inject(frame);
    world.net.pump();
    expect(world.driver.get(R.RDH)).toBe(63);
    expect(world.net.enabled).toBe(false);
    world.net.queue.length = 0;
    expectAlive(world);
  });

  it('survives loopback into its own transmit ring', () => {
    const world = build();
    const { driver, memory, clock } = world;
    driver.set(R.RCTL, 0x040080ca);
    for (let i = 0; i < 64; i++) memory.writeU64(LAYOUT.rxRing + 16 * i, LAYOUT.txRing + 16 * i);
    for (let i = 0; i < 60; i++) driver.put(LAYOUT.txRing, 1024 | TX.EOP | TX.RS, 0);
    driver.kick();
    clock.advance(1e6);
    driver.set(R.RCTL, 0x0400800a);
    expectAlive(world);
  });
});
