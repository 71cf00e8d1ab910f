import { describe, expect, it } from 'vitest';
import { ManualClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { NET_OFFLOAD } from '../../src/net/backend.ts';
import {
  driverMemory,
  E1000Driver,
  E1000_REG as R,
  ScriptedNet,
  TX,
} from '../../test/support/e1000-driver.ts';
import { type PacketOptions, packet, payload } from '../../test/support/e1000-packets.ts';
import { E1000 } from './e1000.ts';

const MAC = Uint8Array.of(0x52, 0x54, 0x00, 0x12, 0x34, 0x56);
const BOTH = 3;

function build(sendOffloads = 0) {
  const memory = driverMemory();
  const net = new ScriptedNet(sendOffloads);
  const clock = new ManualClock();
  const irq = { set() {} };
  const chip = new E1000({ id: 'x', mac: MAC, memory, backend: net, clock, irq, log: silentLog });
  const driver = new E1000Driver(memory, chip.mmio);
  chip.resume();
  driver.start();
  return { net, driver, clock };
}

/** Puts the context and data of one TCP segmentation as Linux does. */
function putSegmentation(
  driver: E1000Driver,
  options: PacketOptions,
  mss: number,
  more: { tag?: number; piece?: number; popts?: number } = {},
): void {
  const frame = packet({ ...options, prepare: 'tso' });
  const ip = options.vlan === undefined ? 14 : 18;
  const v4 = options.version === 4;
  const tcp = options.protocol === 'tcp';
  const l4 = ip + (v4 ? 20 : 40);
  driver.putContext({
    ip: v4 ? [ip, ip + 10, l4 - 1] : [ip, ip, 0],
    l4: [l4, l4 + (tcp ? 16 : 6), 0],
    header: frame.length - options.payload.length,
    payload: options.payload.length,
    mss,
    tcp,
    ipv4: v4,
    tse: true,
  });
  const command = TX.TSE | (more.tag === undefined ? 0 : TX.VLE);
  const popts = more.popts ?? (v4 ? BOTH : 2);
  driver.putData(frame, popts, command, more.tag ?? 0, more.piece ?? 5000);
  driver.kick();
}

/** What the segments must be, each built on its own. */
function segments(options: PacketOptions, mss: number): Uint8Array[] {
  const { payload: all, seq = 1000, id = 0, flags = 0x10 } = options;
  const count = Math.ceil(all.length / mss);
  return Array.from({ length: count }, (_, i) =>
    packet({
      ...options,
      payload: all.slice(i * mss, (i + 1) * mss),
      seq: (seq + i * mss) >>> 0,
      id: (id + i) & 0xffff,
      flags: i === count - 1 ? flags : flags & ~0x09,
    }),
  );
}

describe('TCP segmentation in the device', () => {
  it.each<[string, PacketOptions, number]>([
    ['IPv4', { version: 4, protocol: 'tcp', payload: payload(4000), id: 7, flags: 0x19 }, 1448],
    ['IPv6', { version: 6, protocol: 'tcp', payload: payload(4001), flags: 0x18 }, 1428],
    [
      'IPv4 with wrapping sequence and identification',
      { version: 4, protocol: 'tcp', payload: payload(900), id: 0xfffe, seq: 0xffffff00 },
      100,
    ],
    ['UDP over IPv4', { version: 4, protocol: 'udp', payload: payload(3000), id: 1 }, 1400],
    [
      'a VLAN tag in the packet',
      { version: 4, protocol: 'tcp', payload: payload(3000), vlan: 5 },
      1448,
    ],
    ['64 KiB', { version: 4, protocol: 'tcp', payload: payload(65000), id: 9 }, 1448],
    ['a payload of one segment', { version: 6, protocol: 'tcp', payload: payload(80) }, 1428],
  ])('cuts %s into complete packets', (_name, options, mss) => {
    const { net, driver } = build();
    putSegmentation(driver, options, mss);
    expect(net.takeFrames()).toEqual(segments(options, mss));
    expect(driver.get(R.TDH)).toBe(driver.get(R.TDT));
    expect(driver.get(0x40f8)).toBe(1);
    expect(driver.get(0x40fc)).toBe(0);
    expect(driver.get(0x40d4)).toBe(segments(options, mss).length);
  });

  it('inserts the VLAN tag of the first descriptor into every segment', () => {
    const { net, driver } = build();
    driver.set(R.CTRL, driver.get(R.CTRL) | 0x40000000);
    const options: PacketOptions = { version: 4, protocol: 'tcp', payload: payload(3000) };
    putSegmentation(driver, options, 1448, { tag: 0x2064 });
    expect(net.takeFrames()).toEqual(segments({ ...options, vlan: 0x2064 }, 1448));
  });

  it('goes on where the network stopped it, in the middle of a packet', () => {
    const { net, driver } = build();
    net.credit = 2;
    const options: PacketOptions = { version: 4, protocol: 'tcp', payload: payload(9000), id: 3 };
    putSegmentation(driver, options, 1000);
    expect(net.sent.length).toBe(2);
    expect(driver.get(R.TDH)).toBe(1);
    net.grant(3);
    expect(net.sent.length).toBe(5);
    net.grant(100);
    expect(net.takeFrames()).toEqual(segments(options, 1000));
  });

  it('spreads a packet of very many segments over turns', () => {
    const { net, driver, clock } = build();
    const options: PacketOptions = { version: 4, protocol: 'tcp', payload: payload(3000) };
    putSegmentation(driver, options, 4);
    expect(net.sent.length).toBe(256);
    clock.advance(0);
    expect(net.takeFrames()).toEqual(segments(options, 4));
  });

  it.each([
    ['MSS 0', { mss: 0 }],
    ['a header longer than the packet', { header: 250 }],
    ['a header that does not hold the TCP header', { header: 40 }],
    ['segments larger than the chip can hold', { mss: 0xffff }],
  ])('drops %s and goes on', (_name, wrong) => {
    const { net, driver } = build();
    const frame = packet({ version: 4, protocol: 'tcp', payload: payload(100), prepare: 'tso' });
    driver.putContext({
      ip: [14, 24, 33],
      l4: [34, 50, 0],
      header: 66,
      payload: 100,
      mss: 50,
      tcp: true,
      ipv4: true,
      tse: true,
      ...wrong,
    });
    driver.putData(frame, BOTH, TX.TSE);
    driver.putLegacy(packet({ version: 4, protocol: 'udp', payload: payload(40) }));
    driver.kick();
    expect(net.takeFrames().length).toBe(1);
    expect(driver.get(R.TDH)).toBe(3);
    expect(driver.get(0x40fc)).toBe(1);
  });
});

describe('offload to the network', () => {
  const ALL = NET_OFFLOAD.csum | NET_OFFLOAD.tso4 | NET_OFFLOAD.tso6;

  it.each([4, 6] as const)('passes a large IPv%i packet on with its segment size', (version) => {
    const { net, driver } = build(ALL);
    const options: PacketOptions = { version, protocol: 'tcp', payload: payload(30000), id: 5 };
    putSegmentation(driver, options, 1400);
    const header = 14 + (version === 4 ? 20 : 40) + 32;
    const entry = net.sent[0]!;
    const view = new DataView(entry.buffer);
    expect(net.sent.length).toBe(1);
    expect([entry[0], entry[1]]).toEqual([1, version === 4 ? 1 : 4]);
    expect(view.getUint16(2, true)).toBe(header);
    expect(view.getUint16(4, true)).toBe(1400);
    expect(view.getUint16(6, true)).toBe(header - 32);
    expect(view.getUint16(8, true)).toBe(16);
    // Everything but the TCP checksum is final; that is the pseudo-header's sum.
    const whole = packet(options);
    const partial = packet({ ...options, prepare: 'csum' }).subarray(header - 16, header - 14);
    whole.set(partial, header - 16);
    expect(entry.subarray(12)).toEqual(whole);
    expect(driver.get(0x40d4)).toBe(Math.ceil(30000 / 1400));
    expect(driver.get(0x40c8)).toBe(30000 + Math.ceil(30000 / 1400) * (header + 4));
  });

  it('moves the checksum start behind an inserted tag', () => {
    const { net, driver } = build(ALL);
    driver.set(R.CTRL, driver.get(R.CTRL) | 0x40000000);
    const options: PacketOptions = { version: 4, protocol: 'tcp', payload: payload(3000) };
    putSegmentation(driver, options, 1400, { tag: 7 });
    const view = new DataView(net.sent[0]!.buffer);
    expect([view.getUint16(2, true), view.getUint16(6, true)]).toEqual([70, 38]);
    expect(net.takeFrames()[0]!.subarray(12, 16)).toEqual(Uint8Array.of(0x81, 0, 0, 7));
  });

  it('segments here what the headers contradict, and what the network cannot', () => {
    const options: PacketOptions = { version: 4, protocol: 'tcp', payload: payload(3000) };
    const cases: [number, PacketOptions, number][] = [
      [NET_OFFLOAD.csum | NET_OFFLOAD.tso6, options, BOTH],
      [ALL, { ...options, flags: 0x90 }, BOTH],
      [ALL, options, 2],
      [ALL, { ...options, protocol: 'udp' }, BOTH],
    ];
    for (const [offloads, each, popts] of cases) {
      const { net, driver } = build(offloads);
      putSegmentation(driver, each, 1400, { popts });
      expect(net.sent.length).toBe(3);
      expect(net.sent.every((entry) => entry[1] === 0)).toBe(true);
    }
  });

  it('leaves a plain TCP checksum to a network that takes it, and makes it otherwise', () => {
    const options: PacketOptions = { version: 4, protocol: 'tcp', payload: payload(101) };
    for (const offloads of [0, NET_OFFLOAD.csum]) {
      const { net, driver } = build(offloads);
      driver.putContext({ ip: [14, 24, 33], l4: [34, 50, 0], tcp: true });
      driver.putData(packet({ ...options, prepare: 'csum' }), 2, 0, 0, 60);
      driver.kick();
      const entry = net.sent[0]!;
      if (offloads === 0) expect(entry.subarray(12)).toEqual(packet(options));
      else {
        expect(entry.subarray(12)).toEqual(packet({ ...options, prepare: 'csum' }));
        const view = new DataView(entry.buffer);
        expect([entry[0], entry[1]]).toEqual([1, 0]);
        expect([view.getUint16(6, true), view.getUint16(8, true)]).toEqual([34, 16]);
      }
    }
  });
});

describe('checksum insertion', () => {
  it('makes IP and UDP checksums by the context, again for each packet under it', () => {
    const { net, driver } = build();
    driver.putContext({ ip: [14, 24, 33], l4: [34, 40, 0], ipv4: true });
    const packets = [1, 2, 300].map((n) =>
      packet({ version: 4, protocol: 'udp', payload: payload(n + 20, n), id: n }),
    );
    for (const whole of packets) {
      const bare = whole.slice();
      bare.set([0, 0], 24);
      const seed = packet({
        version: 4,
        protocol: 'udp',
        payload: [...whole.subarray(42)],
        prepare: 'csum',
      });
      bare.set(seed.subarray(40, 42), 40);
      driver.putData(bare, BOTH);
    }
    driver.kick();
    const padded = packets.map((p) =>
      p.length < 60 ? Uint8Array.from([...p, ...new Array(60 - p.length).fill(0)]) : p,
    );
    expect(net.takeFrames()).toEqual(padded);
  });

  it('sends a zero UDP sum as all ones, and a zero TCP sum as zero', () => {
    for (const tcp of [false, true]) {
      const { net, driver } = build();
      const bytes = new Uint8Array(64);
      bytes.set([0xff, 0xff], 34);
      driver.putContext({ ip: [14, 24, 33], l4: [34, 40, 0], tcp });
      driver.putData(bytes, 2);
      driver.kick();
      const sent = net.takeFrames()[0]!;
      expect([sent[40], sent[41]]).toEqual(tcp ? [0, 0] : [0xff, 0xff]);
    }
  });

  it('inserts the legacy checksum from CSS at CSO', () => {
    const { net, driver } = build();
    const whole = packet({ version: 4, protocol: 'tcp', payload: payload(33) });
    const seed = packet({ version: 4, protocol: 'tcp', payload: payload(33), prepare: 'csum' });
    driver.putLegacy(seed, TX.EOP | TX.IC | TX.RS, 34, 50);
    driver.putLegacy(seed, TX.EOP | TX.IC | TX.RS, 34, 255);
    driver.putLegacy(seed, TX.EOP | TX.IC | TX.RS, 200, 50);
    driver.kick();
    expect(net.takeFrames()).toEqual([whole, seed, seed]);
  });

  it('keeps the contexts of packets that the network has not taken yet', () => {
    const { net, driver } = build();
    net.credit = 1;
    const tcp: PacketOptions = { version: 4, protocol: 'tcp', payload: payload(70) };
    const udp: PacketOptions = { version: 4, protocol: 'udp', payload: payload(70) };
    driver.putContext({ ip: [14, 24, 33], l4: [34, 50, 0], tcp: true });
    driver.putData(packet({ ...tcp, prepare: 'csum' }), 2);
    driver.putData(packet({ ...tcp, seq: 5, prepare: 'csum' }), 2);
    driver.putContext({ ip: [14, 24, 33], l4: [34, 40, 0] });
    driver.putData(packet({ ...udp, prepare: 'csum' }), 2);
    driver.kick();
    expect(driver.get(R.TDH)).toBe(2);
    net.grant(9);
    expect(net.takeFrames()).toEqual([packet(tcp), packet({ ...tcp, seq: 5 }), packet(udp)]);
  });
});
