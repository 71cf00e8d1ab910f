import { describe, expect, it } from 'vitest';
import { ManualClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import {
  driverMemory,
  E1000Driver,
  E1000_REG as R,
  type ReceivedPacket,
  ScriptedNet,
  TX,
} from '../../test/support/e1000-driver.ts';
import { internetChecksum, packet, payload } from '../../test/support/e1000-packets.ts';
import { E1000 } from './e1000.ts';
import { Statistics } from './statistics.ts';

const MAC = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
const EN = 0x2;
const SECRC = 0x04000000;

function build(rctl = EN | SECRC) {
  const memory = driverMemory();
  const net = new ScriptedNet();
  const clock = new ManualClock();
  const options = { id: 'x', mac: Uint8Array.from(MAC), memory, backend: net, clock };
  const chip = new E1000({ ...options, irq: { set() {} }, log: silentLog });
  const driver = new E1000Driver(memory, chip.mmio);
  chip.resume();
  driver.start(64, 64, rctl);
  /** What arrives of `frame`. */
  const through = (frame: Uint8Array, header?: Uint8Array): ReceivedPacket | undefined => {
    net.inject(frame, header);
    net.pump();
    return driver.poll();
  };
  return { memory, net, driver, chip, through };
}

function to(address: readonly number[], length = 100): Uint8Array {
  const frame = Uint8Array.from(payload(length));
  frame.set(address);
  frame.set([0x88, 0xb5], 12);
  return frame;
}

function tagged(tci: number): Uint8Array {
  return packet({ version: 4, protocol: 'udp', payload: payload(100), vlan: tci });
}

const BROADCAST = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
const MULTICAST = [0x01, 0x00, 0x5e, 0x11, 0x22, 0x33];
const OTHER = [0x52, 0x54, 0x00, 0xaa, 0xbb, 0xcc];

describe('address filter', () => {
  it('takes its own address, and others only when told to', () => {
    const { driver, through } = build();
    const taken = () =>
      [MAC, BROADCAST, MULTICAST, OTHER].map((address) => through(to(address)) !== undefined);
    expect(taken()).toEqual([true, false, false, false]);
    driver.set(R.RCTL, EN | SECRC | 0x8000);
    expect(taken()).toEqual([true, true, false, false]);
    driver.set(R.RCTL, EN | SECRC | 0x10);
    expect(taken()).toEqual([true, true, true, false]);
    driver.set(R.RCTL, EN | SECRC | 0x08);
    expect(taken()).toEqual([true, false, false, true]);
    driver.set(R.RCTL, EN | SECRC);
    driver.set(R.RAL0 + 8 * 15, 0xaa005452);
    driver.set(R.RAH0 + 8 * 15, 0x8000ccbb);
    expect(taken()).toEqual([true, false, false, true]);
    driver.set(R.RAH0 + 8 * 15, 0x8001ccbb);
    driver.set(R.RAH0, 0x5634);
    expect(taken()).toEqual([false, false, false, false]);
    expect(driver.get(0x4078)).toBe(2);
    expect(driver.get(0x407c)).toBe(1);
  });

  it.each([
    [0, 4],
    [1, 3],
    [2, 2],
    [3, 0],
  ])('hashes multicast addresses by offset %i', (mo, shift) => {
    const { driver, through } = build(EN | SECRC | (mo << 12));
    // Bits 47:36, 46:35, 45:34 or 43:32 of the address, the last byte being bits 47:40 (8254x SDM, 13.5.1).
    const hash = ((0x3322 >>> shift) & 0xfff) >>> 0;
    expect(through(to(MULTICAST))).toBeUndefined();
    driver.set(R.MTA + 4 * (hash >>> 5), 1 << (hash & 31));
    expect(through(to(MULTICAST))!.status & 0x83).toBe(0x83);
    driver.set(R.MTA + 4 * (hash >>> 5), ~(1 << (hash & 31)));
    expect(through(to(MULTICAST))).toBeUndefined();
  });
});

describe('VLAN', () => {
  it('leaves the tag in the frame unless CTRL.VME is set', () => {
    const { driver, through } = build();
    expect(through(tagged(0x2064))!.bytes).toEqual(tagged(0x2064));
    driver.set(R.CTRL, driver.get(R.CTRL) | 0x40000000);
    const stripped = through(tagged(0x2064))!;
    const bare = packet({ version: 4, protocol: 'udp', payload: payload(100) });
    expect(stripped.bytes).toEqual(bare);
    expect([stripped.status & 0x0b, stripped.special]).toEqual([0x0b, 0x2064]);
    const untagged = through(bare)!;
    expect([untagged.status & 0x08, untagged.special]).toEqual([0, 0]);
  });

  it('filters by identifier and by CFI', () => {
    const { driver, through } = build(EN | SECRC | 0x40000);
    expect(through(tagged(100))).toBeUndefined();
    driver.set(R.VFTA + 4 * 3, 1 << 4);
    expect(through(tagged(100))).toBeDefined();
    expect(through(tagged(101))).toBeUndefined();
    expect(through(to(MAC))).toBeDefined();
    driver.set(R.RCTL, EN | SECRC | 0x40000 | 0x80000);
    expect(through(tagged(100))).toBeDefined();
    expect(through(tagged(100 | 0x1000))).toBeUndefined();
    driver.set(R.RCTL, EN | SECRC | 0x40000 | 0x180000);
    expect(through(tagged(100 | 0x1000))).toBeDefined();
  });

  it('knows tags by VET', () => {
    const { driver, through } = build();
    driver.set(R.CTRL, driver.get(R.CTRL) | 0x40000000);
    driver.set(R.VET, 0x88a8);
    expect(through(tagged(5))!.bytes).toEqual(tagged(5));
  });
});

describe('receive checksums', () => {
  const ON = 0x700;
  const cases = [4, 6].flatMap((version) =>
    ['tcp', 'udp'].map((protocol) => [version, protocol] as const),
  ) as [4 | 6, 'tcp' | 'udp'][];

  it.each(cases)('reports good and bad IPv%i %s', (version, protocol) => {
    for (const vlan of [undefined, 7]) {
      const { driver, through } = build();
      const tag = vlan === undefined ? {} : { vlan };
      const good = packet({ version, protocol, payload: payload(333), ...tag });
      expect(through(good)!.status & 0x64).toBe(0x04);
      driver.set(R.RXCSUM, ON);
      const first = through(good)!;
      expect([first.status & 0x64, first.errors]).toEqual([version === 4 ? 0x60 : 0x20, 0]);
      const bad = good.slice();
      bad[200]! ^= 1;
      const second = through(bad)!;
      expect([second.status & 0x64, second.errors]).toEqual([version === 4 ? 0x60 : 0x20, 0x20]);
      // The network vouches for it.
      expect(through(bad, Uint8Array.of(2, ...new Array(11).fill(0)))!.errors).toBe(0);
    }
  });

  it('reports a bad IPv4 header, and leaves fragments and foreign protocols alone', () => {
    const { driver, through } = build();
    driver.set(R.RXCSUM, ON);
    const bad = packet({ version: 4, protocol: 'tcp', payload: payload(100) });
    bad[22]! ^= 0xff;
    expect([through(bad)!.status & 0x64, through(bad)!.errors & 0x40]).toEqual([0x60, 0x40]);
    const fragment = packet({ version: 4, protocol: 'tcp', payload: payload(100) });
    fragment[20] = 0x20;
    expect(through(fragment)!.status & 0x64).toBe(0x40);
    expect(through(to(MAC))!.status & 0x64).toBe(0x04);
    const noSum = packet({ version: 4, protocol: 'udp', payload: payload(100) });
    noSum.set([0, 0], 40);
    expect(through(noSum)!.status & 0x64).toBe(0x40);
    const cut = packet({ version: 4, protocol: 'tcp', payload: payload(100) }).subarray(0, 100);
    expect(through(cut)!.status & 0x64).toBe(0x04);
  });

  it('completes a checksum that the network left open', () => {
    const { through } = build();
    const open = packet({ version: 4, protocol: 'tcp', payload: payload(77), prepare: 'csum' });
    const header = Uint8Array.of(1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0);
    expect(through(open, header)!.bytes).toEqual(
      packet({ version: 4, protocol: 'tcp', payload: payload(77) }),
    );
  });

  it('sums the packet from PCSS on', () => {
    const { driver, through } = build();
    driver.set(R.RXCSUM, 14);
    const frame = to(MAC, 101);
    expect(through(frame)!.checksum).toBe(internetChecksum([...frame.subarray(14)]));
  });
});

describe('sizes', () => {
  it.each([
    [256, 0x30000],
    [512, 0x20000],
    [1024, 0x10000],
    [2048, 0],
    [4096, 0x2030000],
    [8192, 0x2020000],
    [16384, 0x2010000],
  ])('fills buffers of %i bytes', (size, bits) => {
    const { driver, through } = build();
    driver.setupRx(64, EN | SECRC | 0x20 | bits, size);
    for (const length of [60, 255, 256, 257, 1500, 5000]) {
      const received = through(to(MAC, length))!;
      expect(received.bytes).toEqual(to(MAC, length));
      expect(received.descriptors).toBe(Math.ceil(length / size));
    }
  });

  it('takes long frames only with LPE, and counts what is too long', () => {
    const { driver, through } = build();
    expect(through(to(MAC, 1518))!.bytes.length).toBe(1518);
    expect(through(to(MAC, 1519))).toBeUndefined();
    expect([driver.get(0x40ac), driver.get(0x4040)]).toEqual([1, 1]);
    driver.set(R.RCTL, EN | SECRC | 0x20);
    expect(through(to(MAC, 16380))!.descriptors).toBe(8);
    expect(through(to(MAC, 16381))).toBeUndefined();
  });

  it('leaves room for the FCS without SECRC', () => {
    const { through } = build(EN);
    const received = through(to(MAC, 2048 - 1000))!;
    expect(received.bytes.length).toBe(1052);
    const { through: split, driver } = build(EN);
    driver.setupRx(64, EN | 0x30000, 256);
    expect([split(to(MAC, 254))!.descriptors, split(to(MAC, 252))!.descriptors]).toEqual([2, 1]);
  });

  it('skips descriptors without a buffer', () => {
    const { memory, driver, net } = build();
    memory.writeU64(0x20000, 0);
    net.inject(to(MAC));
    net.pump();
    expect(memory.readU32(0x2000c) & 3).toBe(1);
    expect(driver.get(R.RDH)).toBe(2);
    expect(driver.poll()!.bytes).toEqual(to(MAC));
  });

  it('drops unsegmented frames', () => {
    const { through } = build();
    expect(through(to(MAC), Uint8Array.of(1, 1, ...new Array(10).fill(0)))).toBeUndefined();
  });
});

describe('loopback', () => {
  it.each(['RCTL.LBM', 'the PHY'])('by %s brings frames back and sends none', (how) => {
    const { driver, net } = build();
    if (how === 'the PHY') driver.phyWrite(0, 0x4140);
    else driver.set(R.RCTL, EN | SECRC | 0xc0);
    driver.putLegacy(to(MAC), TX.EOP | TX.RS);
    driver.putLegacy(to(OTHER), TX.EOP | TX.RS);
    driver.kick();
    expect(net.sent).toEqual([]);
    expect(driver.pollAll().map(({ bytes }) => bytes)).toEqual([to(MAC)]);
  });
});

describe('statistics', () => {
  it('counts frames, octets and sizes both ways', () => {
    const { driver, net, through } = build(EN | SECRC | 0x8000);
    for (const length of [60, 61, 300, 1514]) through(to(BROADCAST, length));
    for (const length of [60, 200]) driver.putLegacy(to(MULTICAST, length));
    driver.kick();
    expect(net.takeFrames().length).toBe(2);
    const at = (offset: number) => driver.get(offset);
    expect([0x405c, 0x4060, 0x4064, 0x4068, 0x406c, 0x4070].map(at)).toEqual([1, 1, 0, 1, 0, 1]);
    expect([0x40d8, 0x40dc, 0x40e0].map(at)).toEqual([1, 0, 1]);
    expect([0x4078, 0x40f0, 0x40d0, 0x40d4].map(at)).toEqual([4, 2, 4, 2]);
    expect(at(0x4088)).toBe(60 + 61 + 300 + 1514 + 16);
    expect(at(0x4088)).toBe(60 + 61 + 300 + 1514 + 16);
    expect([at(0x408c), at(0x4088)]).toEqual([0, 0]);
  });

  it('carries octets into the upper half and sticks at the end', () => {
    const words = new Uint32Array(0x6000 / 4);
    const statistics = new Statistics(words);
    statistics.addOctets(0x4088, 0xffffffff);
    statistics.addOctets(0x4088, 2);
    expect([words[0x4088 / 4], words[0x408c / 4]]).toEqual([1, 1]);
    words[0x408c / 4] = 0xffffffff;
    statistics.addOctets(0x4088, 0xffffffff);
    expect([words[0x4088 / 4], words[0x408c / 4]]).toEqual([0xffffffff, 0xffffffff]);
    statistics.add(0x4074, 0xffffffff);
    statistics.add(0x4074, 5);
    expect([statistics.read(0x4074), statistics.read(0x4074)]).toEqual([0xffffffff, 0]);
  });
});
