import { describe, expect, it } from 'vitest';
import { ManualClock } from '../../src/base/clock.ts';
import { MemoryLog } from '../../src/base/log.ts';
import {
  driverMemory,
  E1000Driver,
  E1000_REG as R,
  ScriptedNet,
  TX,
} from '../../test/support/e1000-driver.ts';
import { RecordingIrq } from '../../test/support/recording-irq.ts';
import { E1000 } from './e1000.ts';

const MAC = Uint8Array.of(0x52, 0x54, 0x00, 0x12, 0x34, 0x56);

function build(sendOffloads = 0) {
  const memory = driverMemory();
  const net = new ScriptedNet(sendOffloads);
  const clock = new ManualClock();
  const irq = new RecordingIrq();
  const log = new MemoryLog();
  const chip = new E1000({ id: 'e1000:test', mac: MAC, memory, backend: net, clock, irq, log });
  const driver = new E1000Driver(memory, chip.mmio);
  chip.resume();
  return { memory, net, clock, irq, log, chip, driver };
}

function frame(length: number, to: Uint8Array = MAC, seed = 0): Uint8Array {
  const bytes = Uint8Array.from({ length }, (_, i) => (i * 7 + seed) & 0xff);
  bytes.set(to);
  bytes.set([2, 0, 0, 0, 0, 1, 0x88, 0xb5], 6);
  return bytes;
}

describe('e1000 transmit', () => {
  it('sends legacy descriptors, writes back and interrupts', () => {
    const { net, driver, irq } = build();
    driver.start();
    driver.get(R.ICR);
    driver.set(R.IMS, 1);
    const a = driver.putLegacy(frame(100));
    const b = driver.putLegacy(frame(1514, MAC, 9));
    expect(net.sends).toBe(0);
    driver.kick();
    expect(net.sends).toBe(1);
    expect(net.takeFrames()).toEqual([frame(100), frame(1514, MAC, 9)]);
    expect([driver.done(a), driver.done(b), driver.get(R.TDH)]).toEqual([true, true, 2]);
    expect(irq.level).toBe(true);
    expect(driver.get(R.ICR) & 3).toBe(3);
    expect(irq.level).toBe(false);
  });

  it('joins buffers, also when the end of the packet comes later', () => {
    const { net, driver } = build();
    driver.start();
    const whole = frame(300);
    const at = driver.buffer(whole);
    driver.put(at, 100, 0);
    driver.put(at + 100, 0, 0);
    driver.put(0, 50, 0);
    driver.kick();
    expect(driver.get(R.TDH)).toBe(3);
    expect(net.sent).toEqual([]);
    driver.put(at + 100, 150, 0);
    driver.kick();
    driver.put(at + 250, 50 | TX.EOP, 0);
    driver.kick();
    expect(net.takeFrames()).toEqual([whole]);
  });

  it('leaves descriptors to the ring while the network is full', () => {
    const { net, driver } = build();
    driver.start();
    net.credit = 2;
    const ids = [0, 1, 2, 3, 4].map((seed) => driver.putLegacy(frame(64, MAC, seed)));
    driver.kick();
    expect(driver.get(R.TDH)).toBe(2);
    expect(ids.map((id) => driver.done(id))).toEqual([true, true, false, false, false]);
    driver.kick();
    expect(net.sends).toBe(1);
    net.grant(1);
    expect(driver.get(R.TDH)).toBe(3);
    net.grant(10);
    expect(driver.get(R.TDH)).toBe(5);
    expect(net.takeFrames()).toEqual([0, 1, 2, 3, 4].map((seed) => frame(64, MAC, seed)));
  });
});

describe('e1000 receive', () => {
  it('delivers a frame, pads it, counts it and interrupts', () => {
    const { net, driver, irq } = build();
    driver.start();
    driver.get(R.ICR);
    driver.set(R.IMS, 0x80);
    net.inject(frame(42));
    net.inject(frame(1514));
    net.pump();
    expect(irq.rises).toBe(1);
    expect(driver.get(R.ICR)).toBe(0x80);
    const [first, second] = driver.pollAll();
    expect(first?.bytes).toEqual(Uint8Array.from([...frame(42), ...new Array(18).fill(0)]));
    expect(first?.status).toBe(0x07);
    expect(second?.bytes).toEqual(frame(1514));
    expect(driver.get(0x4074)).toBe(2);
    expect(driver.get(0x4074)).toBe(0);
  });

  it('stops pulling without descriptors and goes on when there are some', () => {
    const { net, driver } = build();
    driver.start(8, 8);
    for (let i = 0; i < 10; i++) net.inject(frame(60, MAC, i));
    net.pump();
    expect(net.enabled).toBe(false);
    expect(net.queue.length).toBe(3);
    expect(driver.pollAll().length).toBe(7);
    expect(net.enabled).toBe(true);
    net.pump();
    expect(driver.pollAll().map((p) => p.bytes)).toEqual([7, 8, 9].map((i) => frame(60, MAC, i)));
  });

  it('spreads a frame over buffers and holds it until there are enough', () => {
    const { net, driver } = build();
    driver.start(8, 8);
    driver.setupRx(8, 0x04038022, 256);
    net.inject(frame(9000));
    net.pump();
    expect(net.enabled).toBe(false);
    driver.setupRx(64, 0x04038022, 256);
    const packet = driver.poll();
    expect(packet?.descriptors).toBe(36);
    expect(packet?.bytes).toEqual(frame(9000));
    expect(net.enabled).toBe(true);
  });
});
