import { describe, expect, it } from 'vitest';
import { ManualClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import {
  driverMemory,
  E1000Driver,
  E1000_REG as R,
  ScriptedNet,
} from '../../test/support/e1000-driver.ts';
import { RecordingIrq } from '../../test/support/recording-irq.ts';
import { E1000 } from './e1000.ts';

const MAC = Uint8Array.of(0x52, 0x54, 0x00, 0x12, 0x34, 0x56);

function build(linkUp = true) {
  const memory = driverMemory();
  const net = new ScriptedNet();
  net.linkUp = linkUp;
  const clock = new ManualClock();
  const irq = new RecordingIrq();
  const chip = new E1000({ id: 'x', mac: MAC, memory, backend: net, clock, irq, log: silentLog });
  const driver = new E1000Driver(memory, chip.mmio);
  chip.resume();
  return { memory, net, clock, irq, chip, driver };
}

describe('EEPROM', () => {
  it('holds the address and adds up to 0xBABA, by EERD and bit by bit', () => {
    const { driver } = build();
    const words = Array.from({ length: 64 }, (_, i) => driver.eepromRead(i));
    expect(words.slice(0, 3)).toEqual([0x5452, 0x1200, 0x5634]);
    expect(words.reduce((sum, word) => (sum + word) & 0xffff, 0)).toBe(0xbaba);
    expect(driver.microwire(6, 0, undefined, 64)).toEqual(words);
    expect(driver.microwire(6, 63, undefined, 2)).toEqual([words[63], words[0]]);
    expect([driver.get(R.RAL0), driver.get(R.RAH0)]).toEqual([0x12005452, 0x80005634]);
  });

  it('writes and erases only while enabled', () => {
    const { driver } = build();
    const before = driver.eepromRead(20);
    driver.microwire(5, 20, 0x1234);
    expect(driver.eepromRead(20)).toBe(before);
    driver.microwire(4, 0x30);
    driver.microwire(5, 20, 0x1234);
    expect(driver.eepromRead(20)).toBe(0x1234);
    driver.microwire(7, 20);
    expect(driver.eepromRead(20)).toBe(0xffff);
    driver.microwire(4, 0x10, 0xa55a);
    expect([driver.eepromRead(0), driver.eepromRead(63)]).toEqual([0xa55a, 0xa55a]);
    driver.microwire(4, 0);
    driver.microwire(4, 0x20);
    expect(driver.eepromRead(0)).toBe(0xa55a);
  });

  it('gives its address to the receive filter again on reset, changed or not', () => {
    const { driver } = build();
    driver.microwire(4, 0x30);
    driver.microwire(5, 2, 0x9999);
    driver.set(R.CTRL_EXT, 0x2000);
    expect(driver.get(R.RAH0)).toBe(0x80009999);
    driver.set(R.RAH0, 0);
    driver.set(R.CTRL, 0x04000000);
    expect(driver.get(R.RAH0)).toBe(0x80009999);
  });
});

describe('PHY and link', () => {
  it('identifies itself, and answers on its own address only', () => {
    const { driver } = build();
    expect([driver.phyRead(2), driver.phyRead(3)]).toEqual([0x0141, 0x0c20]);
    driver.set(R.MDIC, 0x08000000 | (2 << 21));
    expect(driver.get(R.MDIC) & 0x50000000).toBe(0x50000000);
    driver.phyWrite(16, 0x1234);
    expect(driver.phyRead(16)).toBe(0x1234);
    driver.set(R.IMS, 0x200);
    driver.set(R.MDIC, 0x28000000 | (1 << 21));
    expect(driver.get(R.ICR) & 0x200).toBe(0x200);
  });

  it('negotiates anew on reset, with link changes at both ends', () => {
    const { driver, clock, irq } = build();
    driver.set(R.CTRL, driver.get(R.CTRL) | 0x40);
    expect(driver.get(R.STATUS) & 2).toBe(2);
    driver.get(R.ICR);
    driver.set(R.IMS, 4);
    driver.phyWrite(0, 0x9140);
    expect(irq.level).toBe(true);
    expect(driver.get(R.ICR)).toBe(4);
    expect(driver.get(R.STATUS) & 2).toBe(0);
    expect(driver.phyRead(1) & 0x24).toBe(0);
    clock.advance(10e6);
    expect(driver.get(R.ICR)).toBe(4);
    expect(driver.get(R.STATUS) & 0xc3).toBe(0x83);
    expect(driver.phyRead(1) & 0x24).toBe(0x24);
    expect(driver.phyRead(17) & 0xec00).toBe(0xac00);
    expect(driver.phyRead(10) & 0x3800).toBe(0x3800);
  });

  it('follows the cable', () => {
    const { driver, net, clock, irq } = build(false);
    driver.set(R.CTRL, driver.get(R.CTRL) | 0x40);
    driver.set(R.IMS, 4);
    expect(driver.get(R.STATUS) & 2).toBe(0);
    net.setLink(true);
    clock.advance(10e6);
    expect(irq.level).toBe(true);
    expect([driver.get(R.ICR), driver.get(R.STATUS) & 2]).toEqual([4, 2]);
    net.setLink(false);
    expect([driver.get(R.ICR), driver.get(R.STATUS) & 2]).toEqual([4, 0]);
  });

  it('looks at the cable again after a pause', () => {
    const { driver, net, chip } = build();
    driver.set(R.CTRL, driver.get(R.CTRL) | 0x40);
    chip.pause();
    net.setLink(false);
    expect(driver.get(R.STATUS) & 2).toBe(2);
    chip.resume();
    expect(driver.get(R.STATUS) & 2).toBe(0);
  });

  it('shows a lost link in register 1 once, also when it is back', () => {
    const { driver, clock } = build();
    expect(driver.phyRead(1) & 4).toBe(4);
    driver.phyWrite(0, 0x1340);
    clock.advance(10e6);
    expect([driver.phyRead(1) & 4, driver.phyRead(1) & 4]).toEqual([0, 4]);
    driver.phyWrite(0, 0x1340);
    expect(driver.phyRead(1) & 4).toBe(0);
    clock.advance(10e6);
    expect(driver.phyRead(1) & 4).toBe(4);
  });

  it('takes the best advertised mode, and a forced one', () => {
    const { driver, clock } = build();
    driver.set(R.CTRL, driver.get(R.CTRL) | 0x40);
    driver.phyWrite(9, 0);
    driver.phyWrite(4, 0x0081);
    driver.phyWrite(0, 0x1340);
    clock.advance(10e6);
    expect(driver.get(R.STATUS) & 0xc3).toBe(0x42);
    driver.phyWrite(0, 0x0100);
    expect(driver.get(R.STATUS) & 0xc3).toBe(0x03);
    driver.set(R.CTRL, 0x40 | 0x1800 | 0x200 | 1);
    expect(driver.get(R.STATUS) & 0xc3).toBe(0x83);
    driver.phyWrite(4, 0x0001);
    driver.phyWrite(0, 0x1340);
    clock.advance(10e6);
    expect(driver.get(R.STATUS) & 2).toBe(0);
  });
});

describe('interrupts', () => {
  it('drives the line by cause and mask; reading and writing ICR acknowledge', () => {
    const { driver, irq } = build();
    driver.set(R.ICS, 0x10);
    expect(irq.level).toBe(false);
    driver.set(R.IMS, 0x14);
    expect(irq.level).toBe(true);
    driver.set(R.IMC, 0x10);
    expect([irq.level, driver.get(R.IMS)]).toEqual([false, 4]);
    driver.set(R.IMS, 0x10);
    driver.set(R.ICR, 0x10);
    expect([irq.level, driver.get(R.ICR)]).toEqual([false, 0]);
    driver.set(R.ICS, 0xffffffff);
    expect(driver.get(R.ICR)).toBe(0x1ffff);
    expect(irq.rises).toBe(3);
  });

  it('rises at most once per ITR interval', () => {
    const { driver, irq, clock } = build();
    driver.set(R.ITR, 1000);
    driver.set(R.IMS, 0x80);
    for (let i = 0; i < 10; i++) {
      driver.set(R.ICS, 0x80);
      driver.get(R.ICR);
      clock.advance(25_600);
    }
    expect(irq.rises).toBe(1);
    driver.set(R.ICS, 0x80);
    clock.advance(100_000);
    expect([irq.rises, irq.level]).toEqual([2, true]);
    driver.get(R.ICR);
    driver.set(R.ICS, 0x80);
    expect(irq.level).toBe(false);
    driver.set(R.ITR, 0);
    expect(irq.level).toBe(true);
  });

  it('delays receive interrupts by RDTR, but no longer than RADV', () => {
    const { driver, irq, clock, net } = build();
    driver.start();
    driver.get(R.ICR);
    driver.set(R.IMS, 0x80);
    driver.set(R.RDTR, 100);
    driver.set(R.RADV, 250);
    const frame = new Uint8Array(60).fill(0xff, 0, 6);
    driver.set(R.RCTL, driver.get(R.RCTL) | 0x8000);
    net.inject(frame);
    net.pump();
    clock.advance(102_399);
    expect(irq.level).toBe(false);
    clock.advance(1);
    expect(driver.get(R.ICR)).toBe(0x80);
    for (let i = 0; i < 3; i++) {
      net.inject(frame);
      net.pump();
      clock.advance(80_000);
    }
    expect(irq.level).toBe(false);
    net.inject(frame);
    net.pump();
    clock.advance(16_000);
    expect([irq.level, irq.rises]).toEqual([true, 2]);
    driver.get(R.ICR);
    clock.advance(1e6);
    expect(irq.rises).toBe(2);
    net.inject(frame);
    net.pump();
    driver.set(R.RDTR, 0x80000064);
    expect(irq.rises).toBe(3);
  });

  it('reports small packets at once when asked to', () => {
    const { driver, clock, net } = build();
    driver.start(64, 64, 0x0400800a);
    driver.get(R.ICR);
    driver.set(R.RDTR, 100);
    driver.set(R.RSRPD, 100);
    net.inject(new Uint8Array(500));
    net.pump();
    expect(driver.get(R.ICR)).toBe(0);
    net.inject(new Uint8Array(60));
    net.pump();
    expect(driver.get(R.ICR)).toBe(0x10000);
    clock.advance(1e6);
    expect(driver.get(R.ICR)).toBe(0);
  });

  it('delays transmit interrupts by TIDV and TADV where the descriptor says so', () => {
    const { driver, clock } = build();
    driver.start();
    driver.get(R.ICR);
    driver.set(R.TIDV, 50);
    driver.set(R.TADV, 80);
    const delayed = 0x89000000;
    driver.putLegacy(new Uint8Array(60), delayed);
    driver.kick();
    expect(driver.get(R.ICR) & 1).toBe(0);
    clock.advance(51_199);
    expect(driver.get(R.ICR)).toBe(0);
    clock.advance(1);
    expect(driver.get(R.ICR)).toBe(1);
    for (let i = 0; i < 3; i++) {
      driver.putLegacy(new Uint8Array(60), delayed);
      driver.kick();
      clock.advance(40_000);
    }
    expect(driver.get(R.ICR) & 1).toBe(1);
    driver.putLegacy(new Uint8Array(60), 0x09000000);
    driver.kick();
    expect(driver.get(R.ICR) & 1).toBe(1);
    clock.advance(1e6);
    expect(driver.get(R.ICR)).toBe(0);
  });

  it('tells when the transmit ring runs low and empty', () => {
    const { driver, net } = build();
    driver.start();
    driver.get(R.ICR);
    driver.set(R.TXDCTL, 1 << 25);
    net.credit = 3;
    for (let i = 0; i < 12; i++) driver.putLegacy(new Uint8Array(60), 0x01000000);
    driver.kick();
    expect(driver.get(R.ICR)).toBe(0);
    net.grant(1);
    expect(driver.get(R.ICR)).toBe(0x8000);
    net.grant(100);
    expect(driver.get(R.ICR)).toBe(2);
  });

  it('tells once when the free receive descriptors fall to the threshold', () => {
    const { driver, net } = build();
    driver.start(64, 16, 0x0400810a);
    driver.get(R.ICR);
    const causes: number[] = [];
    for (let i = 0; i < 15; i++) {
      net.inject(new Uint8Array(60));
      net.pump();
      causes.push(driver.get(R.ICR) & 0x10);
    }
    expect(causes.indexOf(0x10)).toBe(10);
    expect(causes.filter((cause) => cause !== 0).length).toBe(1);
  });
});

describe('registers', () => {
  it('keeps what may be written and nothing else', () => {
    const { driver } = build();
    const masks: [number, number][] = [
      [0x28, 0xffffffff],
      [0x2c, 0xffff],
      [R.VET, 0xffff],
      [R.RDTR, 0xffff],
      [R.RDBAH, 0xffffffff],
      [R.RDBAL, 0xfffffff0],
      [R.RDLEN, 0xfff80],
      [0x410, 0x3fffffff],
      [R.TDBAL, 0xfffffff0],
      [R.RAH0 + 8, 0x8003ffff],
      [R.MTA + 508, 0xffffffff],
      [R.VFTA + 508, 0xffffffff],
      [R.STATUS, 0],
      [0x3c, 0],
    ];
    for (const [register, mask] of masks) {
      const status = register === R.STATUS ? driver.get(register) : 0;
      for (const pattern of [0x5a5a5a5a, 0xa5a5a5a5, 0, 0xffffffff]) {
        driver.set(register, pattern);
        expect(driver.get(register)).toBe(((pattern & mask) | status) >>> 0);
      }
    }
  });

  it('answers at the addresses of the 82542 too', () => {
    const { driver } = build();
    driver.set(0x118, 0x100);
    driver.set(0x210, 0x1234);
    expect([driver.get(R.RDLEN), driver.get(R.MTA + 16)]).toEqual([0x100, 0x1234]);
    driver.set(R.VFTA + 8, 5);
    expect(driver.get(0x608)).toBe(5);
    expect(driver.get(0x40)).toBe(driver.get(R.RAL0));
  });

  it('resets by CTRL.RST through the I/O window, as drivers of this chip do', () => {
    const { driver, chip } = build();
    driver.set(R.ITR, 99);
    chip.io.write(0, 4, 0);
    chip.io.write(4, 2, 0x0400);
    expect(driver.get(R.ITR)).toBe(99);
    chip.io.write(4, 4, 0x04000000);
    expect(driver.get(R.ITR)).toBe(0);
    chip.io.write(0, 4, R.VET);
    expect([chip.io.read(0, 4), chip.io.read(4, 4), chip.io.read(8, 4)]).toEqual([0x38, 0x8100, 0]);
    chip.io.write(0, 4, 0xffffffff);
    expect([chip.io.read(0, 4), chip.io.read(4, 4)]).toEqual([0xfffff, 0]);
  });

  it('drops writes that are not whole words, and reads parts', () => {
    const { driver, chip } = build();
    chip.mmio.write(R.ITR, 1, 5);
    chip.mmio.write(R.ITR + 2, 2, 5);
    expect(driver.get(R.ITR)).toBe(0);
    expect(chip.mmio.read(R.VET + 1, 1) & 0xff).toBe(0x81);
    expect(driver.get(0x1fffc)).toBe(0);
  });

  it('splits the packet buffer', () => {
    const { driver } = build();
    driver.set(0x1000, 40);
    expect(driver.get(0x1000)).toBe((24 << 16) | 40);
    driver.set(0x1000, 0xffff);
    expect(driver.get(0x1000)).toBe(64);
  });
});
