import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ManualClock } from '../../src/base/clock.ts';
import { crc32c } from '../../src/base/crc32c.ts';
import { silentLog } from '../../src/base/log.ts';
import type { GuestMemory } from '../../src/memory/guest-memory.ts';
import { deviceConformance } from '../../test/support/device-conformance.ts';
import {
  driverMemory,
  E1000Driver,
  E1000_REG as R,
  ScriptedNet,
  TX,
} from '../../test/support/e1000-driver.ts';
import { packet, payload } from '../../test/support/e1000-packets.ts';
import { PciTestBoard } from '../../test/support/pci-board.ts';
import { E1000Device, type E1000DeviceState } from './pci.ts';

const MAC = Uint8Array.of(0x52, 0x54, 0x00, 0x12, 0x34, 0x56);
const BAR0 = 0xfebc0000;
const BAR1 = 0xc000;

interface World {
  board: PciTestBoard;
  readonly memory: GuestMemory;
  readonly net: ScriptedNet;
  readonly clock: ManualClock;
  readonly driver: E1000Driver;
  started: boolean;
}

function makeWorld(): World {
  const memory = driverMemory();
  const world: World = {
    board: new PciTestBoard(),
    memory,
    net: new ScriptedNet(),
    clock: new ManualClock(),
    driver: new E1000Driver(memory, {
      name: 'bus',
      read: (offset, size) => world.board.mmio.read(BAR0 + offset, size),
      write: (offset, size, value) => world.board.mmio.write(BAR0 + offset, size, value),
    }),
    started: false,
  };
  return world;
}

function attach(world: World, rom?: Uint8Array): E1000Device {
  world.board = new PciTestBoard(world.board.msi, world.board.irqs);
  const { memory, net: backend, clock } = world;
  const device = new E1000Device({
    id: 'e1000:net0',
    mac: MAC,
    memory,
    backend,
    clock,
    log: silentLog,
    ...(rom === undefined ? {} : { rom }),
  });
  world.board.bus.add(device.pci, { slot: 3 });
  return device;
}

/** What firmware and driver do first. */
function start(world: World): void {
  world.board.write(3, 0x10, BAR0);
  world.board.write(3, 0x14, BAR1);
  world.board.write(3, 4, 7, 2);
  world.driver.start(32, 32, 0x0400801a);
  world.driver.set(R.IMS, 0x95);
  world.started = true;
}

describe('e1000 on PCI', () => {
  it('shows the identity, BARs and pin that drivers look for', () => {
    const world = makeWorld();
    attach(world, new Uint8Array(1000).fill(0x55));
    const { board } = world;
    expect(board.read(3, 0)).toBe(0x100e8086);
    expect(board.read(3, 8) >>> 8).toBe(0x020000);
    expect(board.read(3, 0x3d, 1)).toBe(1);
    for (const [register, expected] of [
      [0x10, 0xfffe0000],
      [0x14, 0xffffffc1],
      [0x30, 0xfffff800],
    ] as const) {
      board.write(3, register, 0xfffffffe);
      expect(board.read(3, register)).toBe(expected);
    }
  });

  it('is reached through both windows and interrupts by INTA#', () => {
    const world = makeWorld();
    const device = attach(world);
    device.resume();
    start(world);
    world.board.ports.write(BAR1, 4, R.STATUS);
    expect(world.board.ports.read(BAR1 + 4, 4)).toBe(world.driver.get(R.STATUS));
    expect(world.board.irqs[2].level).toBe(true);
    world.driver.get(R.ICR);
    expect(world.board.irqs[2].level).toBe(false);
  });

  it('keeps off guest memory without bus mastering', () => {
    const world = makeWorld();
    const device = attach(world);
    device.resume();
    start(world);
    const { net, driver, board } = world;
    board.write(3, 4, 3, 2);
    expect(net.enabled).toBe(false);
    driver.putLegacy(Uint8Array.from(payload(100)));
    driver.kick();
    expect(net.sent).toEqual([]);
    board.write(3, 4, 7, 2);
    expect([net.enabled, net.sent.length]).toEqual([true, 1]);
  });

  it('sends what was put to the ring while it stood still', () => {
    const world = makeWorld();
    const device = attach(world);
    device.resume();
    start(world);
    device.pause();
    world.driver.putLegacy(Uint8Array.from(payload(100)));
    world.driver.kick();
    const fresh = attach(world);
    fresh.load(device.save());
    fresh.resume();
    world.clock.advance(0);
    expect(world.net.takeFrames().length).toBe(1);
  });
});

type Step =
  | { readonly do: 'legacy' | 'partial' | 'segment' | 'inject'; readonly n: number }
  | { readonly do: 'credit' | 'grant' | 'advance'; readonly n: number }
  | { readonly do: 'pump' | 'poll' | 'kick' | 'eeprom' | 'ack' }
  | { readonly do: 'link'; readonly up: boolean }
  | { readonly do: 'set' | 'phy'; readonly register: number; readonly value: number };

const CONFIGURATION = [
  R.CTRL,
  R.ICS,
  R.IMS,
  R.IMC,
  R.ITR,
  R.RDTR,
  R.RADV,
  R.TIDV,
  R.TADV,
  R.RSRPD,
  R.RXCSUM,
  R.RCTL,
  R.TCTL,
  R.TXDCTL,
  R.EECD,
  R.MTA,
  R.CTRL_EXT,
];

const steps: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ do: fc.constantFrom('legacy', 'partial', 'segment', 'inject'), n: fc.nat(3000) }),
  fc.record({ do: fc.constantFrom('legacy', 'inject'), n: fc.nat(1514) }),
  fc.record({ do: fc.constantFrom('credit', 'grant'), n: fc.nat(5) }),
  fc.record({ do: fc.constant('advance' as const), n: fc.nat(400_000) }),
  fc.record({ do: fc.constantFrom('pump', 'poll', 'kick', 'eeprom', 'ack') }),
  fc.record({ do: fc.constantFrom('pump', 'poll', 'kick') }),
  fc.record({ do: fc.constant('link' as const), up: fc.boolean() }),
  fc.record({
    do: fc.constant('set' as const),
    register: fc.constantFrom(...CONFIGURATION),
    value: fc.oneof(fc.nat(0xffff), fc.nat(0xffffffff)),
  }),
  fc.record({
    do: fc.constant('phy' as const),
    register: fc.nat(31),
    value: fc.oneof(fc.constantFrom(0x9140, 0x1340, 0x4140, 0x1140), fc.nat(0xffff)),
  }),
);

function put(driver: E1000Driver, kind: 'legacy' | 'partial' | 'segment', n: number): void {
  const bytes = packet({ version: 4, protocol: 'tcp', payload: payload(n, n), prepare: 'tso' });
  if (kind === 'legacy') driver.putLegacy(bytes.subarray(0, Math.max(n, 1)));
  else if (kind === 'partial') driver.put(driver.buffer(bytes), bytes.length, 0);
  else {
    const context = {
      ip: [14, 24, 33],
      l4: [34, 50, 0],
      header: 66,
      mss: 100 + (n % 700),
    } as const;
    driver.putContext({ ...context, payload: n, tcp: true, ipv4: true, tse: true });
    driver.putData(bytes, 3, TX.TSE | TX.IDE, 0, 1000);
  }
}

function perform(world: World, _device: E1000Device, step: Step): unknown {
  if (!world.started) start(world);
  const { driver, net, clock } = world;
  switch (step.do) {
    case 'legacy':
    case 'partial':
    case 'segment':
      put(driver, step.do, step.n);
      break;
    case 'inject':
      net.inject(packet({ version: 6, protocol: 'udp', payload: payload(step.n) }));
      break;
    case 'credit':
      net.credit = Math.min(net.credit, step.n);
      break;
    case 'grant':
      net.grant(step.n);
      break;
    case 'advance':
      clock.advance(step.n);
      break;
    case 'pump':
      net.pump();
      break;
    case 'poll':
      return driver.pollAll();
    case 'kick':
      driver.kick();
      break;
    case 'eeprom':
      return driver.microwire(6, 1, undefined, 1);
    case 'ack':
      return driver.get(R.ICR);
    case 'link':
      net.setLink(step.up);
      break;
    case 'set':
      driver.set(step.register, step.value);
      return driver.get(step.register);
    case 'phy':
      driver.phyWrite(step.register, step.value);
      return driver.phyRead(step.register);
  }
  return [driver.get(R.TDH), driver.get(R.RDH), driver.get(R.STATUS), net.enabled];
}

deviceConformance('e1000', {
  world: makeWorld,
  attach: (world: World) => attach(world),
  steps,
  perform,
  observe: ({ net, memory, board }: World) => ({
    sent: net.sent.map((entry) => crc32c(entry)),
    memory: memory.ranges.map(({ bytes }) => crc32c(bytes.subarray(0, 0x30000))),
    edges: board.irqs.map(({ edges }) => [...edges]),
  }),
  impossible(good: E1000DeviceState) {
    const packetWords = good.packet.slice();
    packetWords[4] = 2;
    const registers = good.registers.slice();
    registers[7] = 0xff;
    return [
      { ...good, packet: packetWords },
      { ...good, packetBytes: new Uint8Array(5) },
      { ...good, registers },
      { ...good, delays: [-1] },
      { ...good, delays: [-1, -1, Number.NaN, -1, -1] },
      { ...good, negotiationLeftNs: Number.POSITIVE_INFINITY },
      { ...good, asserted: !good.asserted },
      { ...good, ioAddress: 0x100000 },
      { ...good, heldFrame: new Uint8Array(5) },
      { ...good, segmentsSent: 0xffffffff },
      { ...good, microwire: { ...good.microwire, address: 64 } },
      { ...good, pci: { ...good.pci, msixTable: new Uint8Array(16) } },
    ];
  },
});
