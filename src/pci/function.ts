/**
 * One PCI function with a type 0 header: its configuration registers with write masks per bit, base address
 * registers that map regions as the guest programs them, capabilities, MSI-X, INTx and an expansion ROM.
 *
 * A device makes one, gives it regions, and embeds {@link PciFunctionState} in its own saved state; `PciBus.add`
 * connects it to the board. Left out: MSI without X, power management states, PCI Express registers, bridges.
 */
import { assert } from '../base/assert.ts';
import type { IrqLine, MsiController } from '../bus/interrupts.ts';
import type { AccessSize, IoBus } from '../bus/io-bus.ts';
import { bool, bytes, type Codec, fixedBytes, struct } from '../snapshot/codec.ts';
import { requireState } from '../snapshot/schema.ts';
import { Bar, type BarOptions } from './bar.ts';
import { MSIX_BAR_BYTES, MSIX_MAX_VECTORS, MSIX_PBA_OFFSET, Msix } from './msix.ts';
import {
  CONFIG_BYTES,
  MSIX_ENTRY_BYTES,
  PCI_CAP,
  PCI_COMMAND,
  PCI_REG,
  PCI_STATUS,
} from './spec.ts';

/** One entry of the capability list (PCI 3.0, 6.7). */
export interface CapabilityOptions {
  readonly id: number;
  /** What follows the id and the link; offset 2 of the capability is `body[0]`. */
  readonly body: Uint8Array;
  /** Which bits of `body` the guest may write; none when absent. */
  readonly writeMask?: Uint8Array;
  /** A fixed offset (dword aligned, 0x40 or above); the next free one when absent. */
  readonly at?: number;
}

/** What a function is made of. */
export interface PciFunctionOptions {
  /** For messages: the device's id. */
  readonly name: string;
  readonly vendorId: number;
  readonly deviceId: number;
  readonly revision?: number;
  /** 24 bits: class, subclass, programming interface (0x020000 is an Ethernet controller). */
  readonly classCode: number;
  readonly subsystemVendorId?: number;
  readonly subsystemId?: number;
  readonly bars?: readonly BarOptions[];
  readonly capabilities?: readonly CapabilityOptions[];
  /** MSI-X with this many vectors, table and pending bits in BAR `bar` (4 KiB, added here). */
  readonly msix?: { readonly vectors: number; readonly bar: number };
  /** 1 = INTA#. Absent: the function has no INTx. */
  readonly interruptPin?: number;
  /** Content of the expansion ROM; padded to a power of two. */
  readonly rom?: Uint8Array;
  /** Further writable registers of the device: offset and mask of one byte each. */
  readonly writable?: readonly { readonly offset: number; readonly mask: number }[];
  /** Power-on values of device registers, one byte each. */
  readonly initial?: readonly { readonly offset: number; readonly value: number }[];
}

/** What a device may want to hear of its function. */
export interface PciFunctionHooks {
  /** The guest wrote configuration bytes [offset, offset + size); they hold the new values, mappings are done. */
  configWritten?(offset: number, size: AccessSize): void;
  /** The guest is about to read them: refresh what is volatile. */
  configRead?(offset: number, size: AccessSize): void;
}

/** The board's side of a function. */
export interface PciEnvironment {
  readonly mmio: IoBus;
  readonly ports: IoBus;
  readonly msi: MsiController;
  /** Of its BARs among those that overlap: this and the next six are the function's ({@link IoBus.map}). */
  readonly rank: number;
  /** The line of the function's pin; low at first. */
  readonly intx: IrqLine;
}

/** The saved state of a function. */
export interface PciFunctionState {
  config: Uint8Array;
  msixTable: Uint8Array;
  msixPending: Uint8Array;
  /** Whether the device asserts INTx. */
  intx: boolean;
}

/** Stores a {@link PciFunctionState}; a field of the owning device's schema. */
export const pciFunctionCodec: Codec<PciFunctionState> = struct<PciFunctionState>({
  config: fixedBytes(CONFIG_BYTES),
  msixTable: bytes(MSIX_MAX_VECTORS * MSIX_ENTRY_BYTES),
  msixPending: bytes(MSIX_MAX_VECTORS / 8),
  intx: bool,
});

export class PciFunction {
  readonly name: string;
  readonly msix: Msix | undefined;
  /** INTA# to INTD# as 1 to 4; 0 without INTx. */
  readonly interruptPin: number;
  /** BARs in order of their index, the expansion ROM last. */
  readonly bars: readonly Bar[];
  hooks: PciFunctionHooks = {};
  readonly #config = new Uint8Array(CONFIG_BYTES);
  readonly #initial: Uint8Array;
  readonly #writable = new Uint8Array(CONFIG_BYTES);
  readonly #clearable = new Uint8Array(CONFIG_BYTES);
  readonly #used = new Uint8Array(CONFIG_BYTES).fill(1, 0, 0x40);
  readonly #msixControl: number;
  #environment: PciEnvironment | undefined;
  #intx = false;
  /** Where the link to the next capability goes. */
  #link: number = PCI_REG.capabilities;

  constructor(options: PciFunctionOptions) {
    this.name = options.name;
    this.interruptPin = options.interruptPin ?? 0;
    this.#header(options);
    const bars = [...(options.bars ?? [])];
    if (options.msix !== undefined) {
      this.msix = new Msix(options.name, options.msix.vectors);
      const { bar: index } = options.msix;
      bars.push({ index, kind: 'mem32', sizeBytes: MSIX_BAR_BYTES, region: this.msix.region });
    }
    this.bars = this.#makeBars(bars, options.rom);
    for (const capability of options.capabilities ?? []) this.#addCapability(capability);
    this.#msixControl = options.msix === undefined ? 0 : this.#addMsix(options.msix.bar);
    for (const { offset, mask } of options.writable ?? []) this.#writable[offset]! |= mask;
    for (const { offset, value } of options.initial ?? []) this.#config[offset] = value;
    this.#initial = this.#config.slice();
  }

  /** Connects the function to the board; once, by `PciBus.add`. */
  attach(environment: PciEnvironment): void {
    assert(this.#environment === undefined, `${this.name} is on one bus only`);
    this.#environment = environment;
    this.msix?.attach(environment.msi);
  }

  /** Says that other functions share the slot; before the guest runs. */
  setMultiFunction(): void {
    this.#config[PCI_REG.headerType]! |= 0x80;
    this.#initial[PCI_REG.headerType]! |= 0x80;
  }

  /** COMMAND as the guest set it. */
  get command(): number {
    return this.read16(PCI_REG.command);
  }

  /** Whether the guest lets the function read and write memory and send messages. */
  get busMaster(): boolean {
    return (this.command & PCI_COMMAND.busMaster) !== 0;
  }

  /** A configuration read by the guest: `size` bytes at `offset`, inside one dword. */
  configRead(offset: number, size: AccessSize): number {
    this.hooks.configRead?.(offset, size);
    let value = 0;
    for (let i = 0; i < size; i++) value |= this.#config[offset + i]! << (8 * i);
    return value >>> 0;
  }

  /** A configuration write by the guest. */
  configWrite(offset: number, size: AccessSize, value: number): void {
    for (let i = 0; i < size; i++) {
      const at = offset + i;
      const byte = (value >>> (8 * i)) & 0xff;
      const mask = this.#writable[at]!;
      this.#config[at] =
        ((this.#config[at]! & ~mask) | (byte & mask)) & ~(byte & this.#clearable[at]!);
    }
    const end = offset + size;
    if (offset < PCI_REG.status && end > PCI_REG.command) this.#driveIntx();
    if (offset < PCI_REG.status || (offset < 0x34 && end > PCI_REG.bar0)) this.#remap();
    const control = this.#msixControl;
    if (control !== 0 && offset < control + 2 && end > control) {
      this.msix?.setControl(this.read16(control));
      this.#driveIntx();
    }
    this.hooks.configWritten?.(offset, size);
  }

  /** The device's own look at a register. */
  read16(offset: number): number {
    return this.#config[offset]! | (this.#config[offset + 1]! << 8);
  }

  read32(offset: number): number {
    return (this.read16(offset) | (this.read16(offset + 2) << 16)) >>> 0;
  }

  /** The device's own write, to bytes behind the header that it declared writable. */
  poke(offset: number, size: AccessSize, value: number): void {
    for (let i = 0; i < size; i++) {
      const at = offset + i;
      assert(at >= 0x40 && this.#writable[at] !== 0, `${this.name}: byte ${at} is the device's`);
      this.#config[at] = value >>> (8 * i);
    }
  }

  /** Asserts or releases INTx. It reaches the line unless the guest disabled INTx or uses MSI-X. */
  setIntx(level: boolean): void {
    this.#intx = level;
    if (level) this.#config[PCI_REG.status]! |= PCI_STATUS.interrupt;
    else this.#config[PCI_REG.status]! &= ~PCI_STATUS.interrupt;
    this.#driveIntx();
  }

  /** Power-on state: nothing mapped, nothing enabled, line low. */
  reset(): void {
    this.#config.set(this.#initial);
    this.msix?.reset();
    this.#intx = false;
    this.#driveIntx();
    if (this.#environment !== undefined) this.#remap();
  }

  /** A deep copy of the state. */
  save(): PciFunctionState {
    return {
      config: this.#config.slice(),
      msixTable: this.msix?.saveTable() ?? new Uint8Array(),
      msixPending: this.msix?.savePending() ?? new Uint8Array(),
      intx: this.#intx,
    };
  }

  /**
   * Takes over a state and makes mappings, vectors and the interrupt line agree with it. The function must be on
   * its bus.
   * @throws VmmError `STATE_INVALID` when it is another function's
   */
  load(state: PciFunctionState): void {
    this.check(state);
    this.msix?.load(state.msixTable, state.msixPending);
    this.#config.set(state.config);
    this.#remap();
    if (this.#msixControl !== 0) this.msix?.setControl(this.read16(this.#msixControl));
    this.setIntx(state.intx);
  }

  /**
   * Throws unless `state` could be this function's; changes nothing. A device calls it before it takes over its
   * own part.
   * @throws VmmError `STATE_INVALID`
   */
  check(state: PciFunctionState): void {
    requireState(state.config.length === CONFIG_BYTES, 'configuration space has 256 bytes');
    for (let at = 0; at < CONFIG_BYTES; at++) {
      let fixed = ~(this.#writable[at]! | this.#clearable[at]!) & 0xff;
      if (at === PCI_REG.status) fixed &= ~PCI_STATUS.interrupt;
      requireState(
        ((state.config[at]! ^ this.#initial[at]!) & fixed) === 0,
        `${this.name}: read-only configuration byte ${at} differs`,
      );
    }
    const interrupt = (state.config[PCI_REG.status]! & PCI_STATUS.interrupt) !== 0;
    requireState(interrupt === state.intx, `${this.name}: STATUS disagrees with INTx`);
    const tableBytes = this.msix?.tableBytes ?? 0;
    const pendingBytes = this.msix?.pendingBytes ?? 0;
    requireState(state.msixTable.length === tableBytes, `${this.name}: MSI-X table size`);
    requireState(state.msixPending.length === pendingBytes, `${this.name}: MSI-X pending size`);
  }

  #driveIntx(): void {
    if (this.interruptPin === 0) return;
    const gated = (this.command & PCI_COMMAND.intxDisable) !== 0 || (this.msix?.enabled ?? false);
    this.#environment?.intx.set(this.#intx && !gated);
  }

  #remap(): void {
    const environment = this.#environment;
    assert(environment !== undefined, `${this.name} is on a bus`);
    const command = this.command;
    for (const bar of this.bars) bar.update(this.#config, command, environment);
  }

  #header(options: PciFunctionOptions): void {
    this.#set(PCI_REG.vendorId, 2, options.vendorId);
    this.#set(PCI_REG.deviceId, 2, options.deviceId);
    this.#set(PCI_REG.revision, 1, options.revision ?? 0);
    this.#set(PCI_REG.classCode, 2, options.classCode & 0xffff);
    this.#set(PCI_REG.classCode + 2, 1, options.classCode >>> 16);
    this.#set(PCI_REG.subsystemVendorId, 2, options.subsystemVendorId ?? 0);
    this.#set(PCI_REG.subsystemId, 2, options.subsystemId ?? 0);
    this.#set(PCI_REG.interruptPin, 1, this.interruptPin);
    const { busMaster, parity, serr, intxDisable } = PCI_COMMAND;
    this.#allow(PCI_REG.command, 2, busMaster | parity | serr | intxDisable);
    this.#clearable[PCI_REG.status + 1] = PCI_STATUS.writeOneToClear >> 8;
    this.#allow(PCI_REG.cacheLine, 2, 0xffff);
    this.#allow(PCI_REG.interruptLine, 1, 0xff);
  }

  #makeBars(options: readonly BarOptions[], rom: Uint8Array | undefined): readonly Bar[] {
    const bars = options.map((bar) => new Bar(this.name, bar)).sort((a, b) => a.index - b.index);
    if (rom !== undefined && rom.length > 0) bars.push(Bar.rom(this.name, rom));
    let nextFree = 0;
    for (const bar of bars) {
      assert(bar.index >= nextFree && bar.index <= 6, `${this.name}: BARs do not overlap`);
      nextFree = bar.index + bar.registers;
      assert(bar.isRom || nextFree <= 6, `${this.name}: BARs fit the header`);
      this.#set(bar.register, 4, bar.typeBits);
      this.#allow(bar.register, 4, bar.writableLow);
      if (bar.registers === 2) this.#allow(bar.register + 4, 4, bar.writableHigh);
      this.#allow(PCI_REG.command, 2, bar.kind === 'io' ? PCI_COMMAND.io : PCI_COMMAND.memory);
    }
    return bars;
  }

  /** @returns the capability's offset */
  #addCapability({ id, body, writeMask, at }: CapabilityOptions): number {
    const length = body.length + 2;
    let offset = at ?? 0x40;
    if (at === undefined) while (!this.#free(offset, length)) offset += 4;
    assert(this.#free(offset, length), `${this.name}: capability ${id} fits`);
    this.#used.fill(1, offset, offset + length);
    this.#config[this.#link] = offset;
    this.#link = offset + 1;
    this.#config[offset] = id;
    this.#config.set(body, offset + 2);
    if (writeMask !== undefined) this.#writable.set(writeMask, offset + 2);
    this.#config[PCI_REG.status]! |= PCI_STATUS.capabilities;
    return offset;
  }

  #free(offset: number, length: number): boolean {
    assert(offset + length <= CONFIG_BYTES, `${this.name}: capabilities fit configuration space`);
    for (let i = 0; i < length; i++) if (this.#used[offset + i] !== 0) return false;
    return true;
  }

  /** The MSI-X capability (PCI 3.0, 6.8.2); returns the offset of message control. */
  #addMsix(bar: number): number {
    const body = new Uint8Array(10);
    const view = new DataView(body.buffer);
    view.setUint16(0, (this.msix?.vectors ?? 1) - 1, true);
    view.setUint32(2, bar, true);
    view.setUint32(6, MSIX_PBA_OFFSET | bar, true);
    const writeMask = new Uint8Array(10);
    writeMask[1] = 0xc0;
    return this.#addCapability({ id: PCI_CAP.msix, body, writeMask }) + 2;
  }

  #set(offset: number, size: number, value: number): void {
    for (let i = 0; i < size; i++) this.#config[offset + i] = value >>> (8 * i);
  }

  #allow(offset: number, size: number, mask: number): void {
    for (let i = 0; i < size; i++) this.#writable[offset + i]! |= mask >>> (8 * i);
  }
}
