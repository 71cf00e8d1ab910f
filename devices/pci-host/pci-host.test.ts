import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { deviceConformance } from '../../test/support/device-conformance.ts';
import { PciTestBoard } from '../../test/support/pci-board.ts';
import { type PamSegment, PciHost } from './pci-host.ts';

function build() {
  const seen: string[] = [];
  const board = new PciTestBoard();
  const host = new PciHost({ onPam: (segments) => seen.push(segments.map(letter).join('')) });
  board.bus.add(host.pci, { slot: 0 });
  return { board, host, seen };
}

function letter({ readRam, writeRam }: PamSegment): string {
  return readRam ? (writeRam ? 'X' : 'R') : writeRam ? 'W' : '.';
}

describe('PciHost', () => {
  it('is what SeaBIOS and Linux look for at 0:0.0', () => {
    const { board } = build();
    expect(board.read(0, 0)).toBe(0x12378086);
    expect(board.read(0, 0x0a, 2)).toBe(0x0600);
  });

  it('announces the attribute map as firmware unlocks and locks the shadow', () => {
    const { board, host, seen } = build();
    board.write(0, 0x59, 0x30, 1);
    board.write(0, 0x5a, 0x33, 1);
    board.write(0, 0x5f, 0x21, 1);
    board.write(0, 0x5f, 0x21, 1);
    board.write(0, 0x59, 0x10, 1);
    expect(seen).toEqual(['............X', 'XX..........X', 'XX........RWX', 'XX........RWR']);
    host.reset();
    expect(seen.at(-1)).toBe('.............');
    const bios = host.segments().at(-1)!;
    expect([bios.base, bios.sizeBytes]).toEqual([0xf0000, 0x10000]);
  });

  it('announces the map of a restored state', () => {
    const first = build();
    first.board.write(0, 0x5b, 0x3333, 2);
    const second = build();
    second.host.load(first.host.save());
    expect(second.seen).toEqual(first.seen);
  });
});

interface Step {
  readonly offset: number;
  readonly value: number;
}
interface World {
  boards: Map<unknown, PciTestBoard>;
  map: string;
}

deviceConformance<World, PciHost, Step>('pci-host', {
  world: () => ({ boards: new Map(), map: '.'.repeat(13) }),
  attach(world) {
    const board = new PciTestBoard();
    const host = new PciHost({
      onPam: (segments) => {
        world.map = segments.map(letter).join('');
      },
    });
    board.bus.add(host.pci, { slot: 0 });
    world.boards.set(host, board);
    return host;
  },
  steps: fc.record({
    offset: fc.oneof(fc.nat(0xff), fc.integer({ min: 0x59, max: 0x5f })),
    value: fc.nat(0xff),
  }),
  perform(world, device, { offset, value }) {
    const board = world.boards.get(device)!;
    board.write(0, offset, value, 1);
    return [board.read(0, offset, 1), world.map];
  },
  observe: (world) => world.map,
  impossible: (good) => {
    const config = good.pci.config.slice();
    config[0] = 0x87;
    return [
      { pci: { ...good.pci, config } },
      { pci: { ...good.pci, intx: true } },
      { pci: { ...good.pci, msixTable: new Uint8Array(16) } },
    ];
  },
});
