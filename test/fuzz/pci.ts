/**
 * The fuzzer of configuration space: the host bridge with its attribute map, the reset control inside mechanism #1,
 * functions with BARs of every kind, a ROM, INTx and MSI-X. A guest moves BARs about and over each other, turns decoding
 * on and off, writes capabilities and vector tables in odd sizes, by mechanism #1 and through the enhanced region. See
 * twins.ts for what must hold; besides, mappings and lines are compared with what the registers say.
 */
import { type PamSegment, PciHost } from '../../devices/pci-host/pci-host.ts';
import { ResetControl } from '../../devices/reset-control/reset-control.ts';
import { assert } from '../../src/base/assert.ts';
import type { Prng } from '../../src/base/prng.ts';
import type { Device } from '../../src/bus/device.ts';
import { type AccessSize, IoBus, type IoRegion } from '../../src/bus/io-bus.ts';
import type { Bar } from '../../src/pci/bar.ts';
import { intxLineOf, PciBus } from '../../src/pci/bus.ts';
import {
  PciFunction,
  type PciFunctionOptions,
  type PciFunctionState,
  pciFunctionCodec,
} from '../../src/pci/function.ts';
import { PCI_COMMAND, PCI_REG } from '../../src/pci/spec.ts';
import { schema } from '../../src/snapshot/schema.ts';
import { RecordingMsi } from '../support/pci-board.ts';
import { RecordingIrq } from '../support/recording-irq.ts';
import type { Coverage } from './coverage.ts';
import { type Act, anyAccess, anyValue, readOf, type Twin, type TwinSubject } from './twins.ts';

const ECAM = 0xb000_0000;
const HOST = 0;
const SLOT = 3;
/** Offset of the MSI-X capability of function 0: the first behind the header. */
const MSIX_CAP = 0x40;
const VECTORS = 5;
const LINES = [0, 1, 2, 3] as const;

/** What sits in {@link SLOT}: BARs of every kind, and a neighbour without anything but one. */
const FUNCTIONS: readonly Omit<PciFunctionOptions, 'name' | 'bars'>[] = [
  {
    vendorId: 0x1234,
    deviceId: 1,
    classCode: 0xff0000,
    interruptPin: 1,
    msix: { vectors: VECTORS, bar: 4 },
    rom: new Uint8Array(3000).fill(0x55),
  },
  { vendorId: 0x1234, deviceId: 2, classCode: 0x020000, interruptPin: 3 },
];
const BARS = [
  [
    { index: 0, kind: 'mem64', sizeBytes: 0x1_0000 },
    { index: 2, kind: 'io', sizeBytes: 64 },
    { index: 3, kind: 'mem32', sizeBytes: 16 },
  ],
  [{ index: 5, kind: 'mem32', sizeBytes: 0x1000 }],
] as const;

interface FunctionState {
  pci: PciFunctionState;
}
const functionSchema = schema<FunctionState>('fuzzed-function', 1, { pci: pciFunctionCodec });

/** A device that is nothing but a function; its BARs tell who answered. */
class FunctionDevice implements Device<FunctionState> {
  readonly id: string;
  readonly schema = functionSchema;
  readonly pci: PciFunction;

  constructor(index: number, written: (what: string) => void) {
    this.id = `function ${index}`;
    const region = (bar: number): IoRegion => ({
      name: `${index}.${bar}`,
      read: (offset, size) =>
        ((index + 1) * 0x1000_0000 + bar * 0x100_0000 + offset * 4 + size) >>> 0,
      write: (offset, size, value) => written(`${index}.${bar}+${offset}/${size}=${value}`),
    });
    this.pci = new PciFunction({
      ...FUNCTIONS[index]!,
      name: this.id,
      bars: BARS[index]!.map((bar) => ({
        ...bar,
        region: region(bar.index),
      })),
    });
  }

  reset(): void {
    this.pci.reset();
  }
  pause(): void {}
  resume(): void {}
  save(): FunctionState {
    return { pci: this.pci.save() };
  }
  load(state: FunctionState): void {
    this.pci.load(state.pci);
  }
}

class PciTwin implements Twin {
  readonly msi = new RecordingMsi();
  readonly irqs = LINES.map(() => new RecordingIrq()) as [
    RecordingIrq,
    RecordingIrq,
    RecordingIrq,
    RecordingIrq,
  ];
  readonly left: string[] = [];
  /** As the board has it after power-on. */
  pam = '0'.repeat(13);
  mmio = new IoBus('mmio');
  ports = new IoBus('pio');
  bus!: PciBus;
  functions!: readonly FunctionDevice[];
  devices!: readonly Device[];
  readonly #identity: readonly number[];

  constructor() {
    this.rebuild();
    this.#identity = this.functions.map(({ pci }) => pci.configRead(0, 4));
  }

  rebuild(): void {
    const { msi, irqs } = this;
    // What the old devices held of the host goes with them.
    for (const fn of this.functions ?? []) fn.pci.msix?.reset();
    this.mmio = new IoBus('mmio');
    this.ports = new IoBus('pio');
    const resetControl = new ResetControl({
      id: 'reset-control',
      onReset: (kind) => this.left.push(kind),
    });
    const control = {
      read: () => resetControl.read(),
      write: (value: number) => resetControl.write(0, 1, value),
    };
    const { mmio, ports } = this;
    this.bus = new PciBus({ mmio, ports, msi, intx: irqs, resetControl: control });
    this.bus.mapEcam(ECAM);
    const host = new PciHost({ onPam: (segments) => this.#announced(segments) });
    this.bus.add(host.pci, { slot: HOST });
    this.functions = FUNCTIONS.map((_, i) => new FunctionDevice(i, (what) => this.left.push(what)));
    for (const [i, { pci }] of this.functions.entries()) {
      this.bus.add(pci, { slot: SLOT, function: i });
    }
    this.devices = [this.bus, host, resetControl, ...this.functions];
  }

  #announced(segments: readonly PamSegment[]): void {
    this.pam = segments.map(({ readRam, writeRam }) => +readRam + 2 * +writeRam).join('');
  }

  observe(): unknown {
    return {
      left: this.left.splice(0),
      messages: this.msi.take(),
      lines: this.irqs.map(({ level }) => level),
      edges: this.irqs.map(({ edges }) => edges.splice(0)),
      pam: this.pam,
    };
  }

  check(): void {
    const driven = [false, false, false, false];
    for (const [i, { pci }] of this.functions.entries()) {
      assert(pci.configRead(0, 4) === this.#identity[i], 'a function stays what it is');
      for (const bar of pci.bars) {
        const base = expectedBase(pci, bar);
        assert(bar.base === base, `BAR ${i}.${bar.index} at ${bar.base}, not ${base}`);
      }
      const { intx, msixPending, msixTable } = pci.save();
      const gated = (pci.command & PCI_COMMAND.intxDisable) !== 0 || (pci.msix?.enabled ?? false);
      if (intx && !gated) driven[intxLineOf(SLOT, pci.interruptPin)] = true;
      const open = pci.msix?.enabled && (pci.read16(MSIX_CAP + 2) & 0x4000) === 0;
      for (let v = 0; open && v < VECTORS; v++) {
        const pending = (msixPending[v >> 3]! & (1 << (v & 7))) !== 0;
        assert(!pending || (msixTable[16 * v + 12]! & 1) !== 0, `vector ${v} waits for nothing`);
      }
    }
    for (const line of LINES) assert(this.irqs[line].level === driven[line], `line ${line}`);
    const mappings = this.mmio.mappings.length + this.ports.mappings.length;
    assert(mappings <= 2 + 5 + 1 + 1, `${mappings} mappings`);
    assert(this.msi.live <= VECTORS, `${this.msi.live} vectors are held`);
  }
}

/** Where the registers say that `bar` is (PCI 3.0, 6.2.5), worked out apart from the code under test. */
function expectedBase(pci: PciFunction, bar: Bar): number | undefined {
  const io = bar.kind === 'io';
  if ((pci.command & (io ? 1 : 2)) === 0) return undefined;
  const low = pci.read32(bar.register);
  if (bar.isRom && low % 2 === 0) return undefined;
  const places = 2 ** 32 / bar.sizeBytes;
  const part = Math.floor(low / bar.sizeBytes);
  const upper = bar.kind === 'mem64' ? pci.read32(bar.register + 4) : 0;
  const base = upper * 2 ** 32 + part * bar.sizeBytes;
  if (base === 0 || base + bar.sizeBytes > (io ? 2 ** 16 : 2 ** 52)) return undefined;
  return part === places - 1 && upper === 0 && !io ? undefined : base;
}

/** Few places, so that BARs meet, also on what is fixed. */
const MEMORY_PLACES = [0xe000_0000, 0xe000_1000, 0xe000_8000, 0xe001_0000, ECAM, 0xffff_0000, 0];
const PORT_PLACES = [0xc000, 0xc040, 0x0cc0, 0xffc0, 0];
const BAR_REGISTERS = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30];

/** A configuration access of `size` bytes by either way. */
function config(
  random: Prng,
  fn: number,
  offset: number,
  size: AccessSize,
  value?: number,
): Act<PciTwin> {
  const slot = fn < 0 ? HOST : SLOT;
  const index = Math.max(fn, 0);
  if (random.chance(0.3)) {
    const at = ECAM + slot * 0x8000 + index * 0x1000 + offset;
    if (value === undefined) return ({ mmio }) => readOf(mmio, at, size);
    return ({ mmio }) => mmio.write(at, size, value);
  }
  const address = (0x8000_0000 | (slot << 11) | (index << 8) | (offset & 0xfc)) >>> 0;
  return ({ ports }) => {
    ports.write(0xcf8, 4, address);
    const at = 0xcfc + (offset & 3);
    if (value === undefined) return readOf(ports, at, size);
    ports.write(at, size, value);
    return undefined;
  };
}

function anySize(random: Prng): AccessSize {
  return random.pick<AccessSize>([1, 2, 4, 4]);
}

function move(random: Prng): Act<PciTwin> {
  const fn = random.below(2);
  const register = random.pick(BAR_REGISTERS);
  const place =
    register === 0x18 ? random.pick(PORT_PLACES) : random.pick([...MEMORY_PLACES, random.u32()]);
  const value = random.chance(0.1) ? 0xffff_ffff : register === 0x30 ? place | 1 : place;
  if (register === 0x14) return config(random, fn, register, 4, random.pick([0, 0, 1, 0xf_ffff]));
  return config(random, fn, register, random.chance(0.9) ? 4 : anySize(random), value >>> 0);
}

function vectorTable(random: Prng, seen: Coverage): Act<PciTwin> {
  const offset = random.chance(0.8) ? random.below(16 * (VECTORS + 1)) : 2044 + random.below(20);
  const size = anySize(random);
  const masks = offset % 16 >= 12;
  const value = masks ? random.below(4) : anyValue(random);
  const write = random.chance(0.7);
  return ({ mmio, functions }) => {
    const base = functions[0]!.pci.bars.find(({ index }) => index === 4)!.base;
    if (base === undefined) return undefined;
    seen.hit('vector table');
    if (write) return mmio.write(base + offset, size, value);
    return readOf(mmio, base + offset, size);
  };
}

export const pci: TwinSubject<PciTwin> = {
  build: () => new PciTwin(),
  draw(random, _twin, seen) {
    switch (random.below(14)) {
      case 0:
        return move(random);
      case 1: {
        const command = random.pick([0, 1, 2, 3, 7, 0x403, 7, random.below(0x1_0000)]);
        return config(random, random.below(2), PCI_REG.command, 2, command);
      }
      case 2: {
        const control = random.pick([0x8000, 0x8000, 0xc000, 0, random.below(0x1_0000)]);
        return config(random, 0, MSIX_CAP + 2, 2, control);
      }
      case 3:
      case 4:
        return vectorTable(random, seen);
      case 5: {
        const vector = random.below(VECTORS);
        return ({ functions, msi }) => {
          const { msix } = functions[0]!.pci;
          msix!.trigger(vector);
          seen.hit(msi.messages.length > 0 ? 'message' : msix!.enabled ? 'pending' : 'no MSI-X');
        };
      }
      case 6: {
        const fn = random.below(2);
        const level = random.chance(0.5);
        return ({ functions, irqs }) => {
          functions[fn]!.pci.setIntx(level);
          if (irqs.some((irq) => irq.level)) seen.hit('INTx');
        };
      }
      case 7: {
        const pam = 0x59 + random.below(7);
        const value = random.pick([0, 0x11, 0x33, 0x30, 0xff, random.below(256)]);
        const write = config(random, -1, pam, random.pick<AccessSize>([1, 2, 4]), value);
        return (twin) => {
          const saw = write(twin);
          for (const bits of new Set(twin.pam)) seen.hit(`attribute ${bits}`);
          return saw;
        };
      }
      case 8:
        return anyAccess<PciTwin>(random, ({ ports }) => ports, 0xcf6 + random.below(11));
      case 9: {
        const place =
          random.pick(MEMORY_PLACES) + random.pick([0, 0, 0xffe, random.below(0x1_0000)]);
        return anyAccess<PciTwin>(random, ({ mmio }) => mmio, place);
      }
      case 10:
        return anyAccess<PciTwin>(
          random,
          ({ ports }) => ports,
          random.pick(PORT_PLACES) + random.below(70),
        );
      default: {
        const fn = random.between(-1, 2);
        const offset = random.chance(0.7) ? random.below(256) : random.pick(BAR_REGISTERS);
        const value = random.chance(0.5) ? undefined : anyValue(random);
        return config(random, fn, offset, anySize(random), value);
      }
    }
  },
  cover({ functions }, seen) {
    const bases: number[] = [];
    for (const [i, { pci: fn }] of functions.entries()) {
      for (const bar of fn.bars) {
        if (bar.base === undefined) continue;
        seen.hit(`${i}.${bar.index} mapped`);
        if (bar.base >= 2 ** 32) seen.hit('above 4 GiB');
        if (bases.includes(bar.base)) seen.hit('two at one address');
        bases.push(bar.base);
      }
    }
  },
};
