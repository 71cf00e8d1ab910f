/**
 * A guest's driver for the 82540EM, for tests: it lays out rings and buffers in guest memory, builds legacy, context
 * and data descriptors, and talks to PHY and EEPROM as drivers do. Beside it a network whose every move the test
 * makes. Fields are written from the manual's tables, not from the device's constants.
 */
import type { IoRegion } from '../../src/bus/io-bus.ts';
import { GuestMemory } from '../../src/memory/guest-memory.ts';
import {
  type FrameBatch,
  type NetBackend,
  type NetHandler,
  type NetInfo,
  VNET_HEADER_BYTES,
} from '../../src/net/backend.ts';

/** A network that takes `credit` frames and delivers what is queued when pumped. */
export class ScriptedNet implements NetBackend {
  info: NetInfo;
  linkUp = true;
  /** Frames that {@link send} still takes. */
  credit = Number.POSITIVE_INFINITY;
  /** Entries sent, header included. */
  readonly sent: Uint8Array[] = [];
  sends = 0;
  enabled = false;
  receiveOffloads = -1;
  /** Entries to be received, header included. */
  readonly queue: Uint8Array[] = [];
  /** Whether sent entries are kept. */
  keep = true;
  #handler: NetHandler | undefined;
  #refused = false;

  constructor(sendOffloads = 0) {
    this.info = { name: 'scripted', sendOffloads, receiveOffloads: 1, mtu: undefined };
  }

  setHandler(handler: NetHandler): void {
    this.#handler = handler;
  }

  send(batch: FrameBatch, from: number): number {
    this.sends++;
    const taken = Math.min(this.credit, batch.count - from);
    this.credit -= taken;
    this.#refused = taken < batch.count - from;
    if (this.keep) {
      for (let i = from; i < from + taken; i++) {
        const at = batch.offsets[i]!;
        this.sent.push(batch.bytes.slice(at, at + batch.lengths[i]!));
      }
    }
    return taken;
  }

  /** Lets the device send `frames` more. */
  grant(frames: number): void {
    this.credit += frames;
    if (!this.#refused || this.credit === 0) return;
    this.#refused = false;
    this.#handler?.writable();
  }

  receive(batch: FrameBatch, maxFrames: number): number {
    let added = 0;
    while (added < maxFrames && this.queue.length > 0) {
      const entry = this.queue[0]!;
      const at = batch.add(entry.length);
      if (at < 0) break;
      batch.bytes.set(entry, at);
      this.queue.shift();
      added++;
    }
    return added;
  }

  setReceiveEnabled(enabled: boolean): void {
    this.enabled = enabled;
  }

  setReceiveOffloads(bits: number): void {
    this.receiveOffloads = bits;
  }

  /** Queues a frame behind a virtio header. */
  inject(frame: Uint8Array, header: Uint8Array = new Uint8Array(VNET_HEADER_BYTES)): void {
    const entry = new Uint8Array(VNET_HEADER_BYTES + frame.length);
    entry.set(header);
    entry.set(frame, VNET_HEADER_BYTES);
    this.queue.push(entry);
  }

  /** Delivers while the device wants frames. */
  pump(): void {
    for (let turns = 0; turns < 1000 && this.enabled && this.queue.length > 0; turns++) {
      this.#handler?.receivable();
    }
  }

  setLink(up: boolean): void {
    this.linkUp = up;
    this.#handler?.linkChanged(up);
  }

  /** Sent frames without their headers, and forgets them. */
  takeFrames(): Uint8Array[] {
    return this.sent.splice(0).map((entry) => entry.subarray(VNET_HEADER_BYTES));
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

/** Register offsets that the driver uses (8254x SDM, table 13-2). */
export const E1000_REG = {
  CTRL: 0x0,
  STATUS: 0x8,
  EECD: 0x10,
  EERD: 0x14,
  CTRL_EXT: 0x18,
  MDIC: 0x20,
  VET: 0x38,
  ICR: 0xc0,
  ITR: 0xc4,
  ICS: 0xc8,
  IMS: 0xd0,
  IMC: 0xd8,
  RCTL: 0x100,
  TCTL: 0x400,
  RDBAL: 0x2800,
  RDBAH: 0x2804,
  RDLEN: 0x2808,
  RDH: 0x2810,
  RDT: 0x2818,
  RDTR: 0x2820,
  RADV: 0x282c,
  RSRPD: 0x2c00,
  TDBAL: 0x3800,
  TDBAH: 0x3804,
  TDLEN: 0x3808,
  TDH: 0x3810,
  TDT: 0x3818,
  TIDV: 0x3820,
  TXDCTL: 0x3828,
  TADV: 0x382c,
  RXCSUM: 0x5000,
  MTA: 0x5200,
  RAL0: 0x5400,
  RAH0: 0x5404,
  VFTA: 0x5600,
} as const;

/** Commands of a transmit descriptor, as bits of its third dword (8254x SDM, 3.3.3.1, 3.3.7.1). */
export const TX = {
  EOP: 0x01000000,
  IFCS: 0x02000000,
  IC: 0x04000000,
  TSE: 0x04000000,
  RS: 0x08000000,
  DEXT: 0x20000000,
  VLE: 0x40000000,
  IDE: 0x80000000,
  DATA: 0x20100000,
} as const;

/** A received packet as the driver finds it. */
export interface ReceivedPacket {
  readonly bytes: Uint8Array;
  readonly status: number;
  readonly errors: number;
  readonly checksum: number;
  readonly special: number;
  /** Descriptors it took. */
  readonly descriptors: number;
}

/** Where the driver puts things. */
export const LAYOUT = {
  txRing: 0x10000,
  rxRing: 0x20000,
  txBuffers: 0x100000,
  rxBuffers: 0x200000,
  bytes: 0x400000,
} as const;

const TX_BUFFER_BYTES = 0x10000;

/** Guest memory of 4 MiB that {@link LAYOUT} fits. */
export function driverMemory(): GuestMemory {
  return new GuestMemory([{ base: 0, buffer: new ArrayBuffer(LAYOUT.bytes) }]);
}

export class E1000Driver {
  readonly memory: GuestMemory;
  readonly #mmio: IoRegion;
  txCount = 0;
  rxCount = 0;
  #rxBufferBytes = 2048;
  #txTail = 0;
  #txBuffer = 0;
  #rxNext = 0;

  constructor(memory: GuestMemory, mmio: IoRegion) {
    this.memory = memory;
    this.#mmio = mmio;
  }

  get(register: number): number {
    return this.#mmio.read(register, 4) >>> 0;
  }

  set(register: number, value: number): void {
    this.#mmio.write(register, 4, value >>> 0);
  }

  /** Sets link up, full receive filters off, transmit with padding; rings as asked for. */
  start(txCount = 64, rxCount = 64, rctl = 0x04008002): void {
    this.set(E1000_REG.CTRL, this.get(E1000_REG.CTRL) | 0x40);
    this.setupTx(txCount);
    this.setupRx(rxCount, rctl);
  }

  setupTx(count: number, tctl = 0xa): void {
    this.txCount = count;
    this.#txTail = 0;
    this.set(E1000_REG.TDBAL, LAYOUT.txRing);
    this.set(E1000_REG.TDBAH, 0);
    this.set(E1000_REG.TDLEN, 16 * count);
    this.set(E1000_REG.TDT, 0);
    this.set(E1000_REG.TDH, 0);
    this.set(E1000_REG.TCTL, tctl);
  }

  /** @param rctl RCTL; its BSIZE and BSEX must agree with `bufferBytes` */
  setupRx(count: number, rctl: number, bufferBytes = 2048): void {
    this.rxCount = count;
    this.#rxNext = 0;
    this.#rxBufferBytes = bufferBytes;
    for (let i = 0; i < count; i++) this.#emptyRx(i);
    this.set(E1000_REG.RDBAL, LAYOUT.rxRing);
    this.set(E1000_REG.RDBAH, 0);
    this.set(E1000_REG.RDLEN, 16 * count);
    this.set(E1000_REG.RDH, 0);
    this.set(E1000_REG.RDT, count - 1);
    this.set(E1000_REG.RCTL, rctl);
  }

  #emptyRx(index: number): void {
    const at = LAYOUT.rxRing + 16 * index;
    this.memory.writeU64(at, LAYOUT.rxBuffers + index * this.#rxBufferBytes);
    this.memory.writeU64(at + 8, 0);
  }

  /** Writes a raw descriptor at the tail, which is not published yet. */
  put(address: number, d2: number, d3: number): number {
    const index = this.#txTail;
    const at = LAYOUT.txRing + 16 * index;
    this.memory.writeU64(at, address);
    this.memory.writeU32(at + 8, d2 >>> 0);
    this.memory.writeU32(at + 12, d3 >>> 0);
    this.#txTail = (index + 1) % this.txCount;
    return index;
  }

  /** A context descriptor (8254x SDM, 3.3.6). */
  putContext(c: {
    ip: readonly [start: number, offset: number, end: number];
    l4: readonly [start: number, offset: number, end: number];
    payload?: number;
    header?: number;
    mss?: number;
    tcp?: boolean;
    ipv4?: boolean;
    tse?: boolean;
    rs?: boolean;
  }): number {
    const at = LAYOUT.txRing + 16 * this.#txTail;
    const command =
      (c.tcp ? 0x01000000 : 0) |
      (c.ipv4 ? 0x02000000 : 0) |
      (c.tse ? TX.TSE : 0) |
      (c.rs ? TX.RS : 0) |
      TX.DEXT;
    const index = this.put(
      0,
      (c.payload ?? 0) | command,
      ((c.header ?? 0) << 8) | ((c.mss ?? 0) << 16),
    );
    this.memory.writeU32(at, (c.ip[0] | (c.ip[1] << 8) | (c.ip[2] << 16)) >>> 0);
    this.memory.writeU32(at + 4, (c.l4[0] | (c.l4[1] << 8) | (c.l4[2] << 16)) >>> 0);
    return index;
  }

  /** Copies `bytes` to a transmit buffer and returns its address. */
  buffer(bytes: Uint8Array): number {
    const address = LAYOUT.txBuffers + this.#txBuffer * TX_BUFFER_BYTES;
    this.#txBuffer = (this.#txBuffer + 1) % 16;
    this.memory.write(address, bytes);
    return address;
  }

  /**
   * A packet of data descriptors (8254x SDM, 3.3.7), cut into buffers of at most `piece` bytes.
   * @param options POPTS
   */
  putData(bytes: Uint8Array, options: number, command = 0, tag = 0, piece = bytes.length): number {
    const address = this.buffer(bytes);
    let index = 0;
    for (let at = 0; at < bytes.length; at += piece) {
      const n = Math.min(piece, bytes.length - at);
      const last = at + n === bytes.length ? TX.EOP | TX.RS : 0;
      const d2 = n | TX.DATA | last | command;
      index = this.put(address + at, d2, (options << 8) | (tag << 16));
    }
    return index;
  }

  /** A legacy descriptor (8254x SDM, 3.3.3) for a whole frame. */
  putLegacy(
    bytes: Uint8Array,
    command = TX.EOP | TX.RS | TX.IFCS,
    css = 0,
    cso = 0,
    tag = 0,
  ): number {
    return this.put(
      this.buffer(bytes),
      bytes.length | (cso << 16) | command,
      (css << 8) | (tag << 16),
    );
  }

  /** Publishes everything that was put. */
  kick(): void {
    this.set(E1000_REG.TDT, this.#txTail);
  }

  /** Whether the device has written back a transmit descriptor. */
  done(index: number): boolean {
    return (this.memory.readU8(LAYOUT.txRing + 16 * index + 12) & 1) !== 0;
  }

  /** Takes one received packet, gives its descriptors back, or returns undefined. */
  poll(): ReceivedPacket | undefined {
    const parts: Uint8Array[] = [];
    let next = this.#rxNext;
    for (let descriptors = 1; descriptors <= this.rxCount; descriptors++) {
      const at = LAYOUT.rxRing + 16 * next;
      const d3 = this.memory.readU32(at + 12);
      if ((d3 & 1) === 0) return undefined;
      const d2 = this.memory.readU32(at + 8);
      const part = new Uint8Array(d2 & 0xffff);
      this.memory.read(this.memory.readU64(at), part);
      parts.push(part);
      const index = next;
      next = (next + 1) % this.rxCount;
      if ((d3 & 2) === 0) continue;
      for (let i = this.#rxNext; i !== next; i = (i + 1) % this.rxCount) this.#emptyRx(i);
      this.#rxNext = next;
      this.set(E1000_REG.RDT, index);
      return {
        bytes: Uint8Array.from(parts.flatMap((bytes) => [...bytes])),
        status: d3 & 0xff,
        errors: (d3 >>> 8) & 0xff,
        checksum: d2 >>> 16,
        special: d3 >>> 16,
        descriptors,
      };
    }
    return undefined;
  }

  /** Every received packet. */
  pollAll(): ReceivedPacket[] {
    const packets: ReceivedPacket[] = [];
    for (let packet = this.poll(); packet !== undefined; packet = this.poll()) packets.push(packet);
    return packets;
  }

  /** Reads a PHY register (8254x SDM, 13.4.7). */
  phyRead(register: number, phy = 1): number {
    this.set(E1000_REG.MDIC, 0x08000000 | (phy << 21) | (register << 16));
    return this.get(E1000_REG.MDIC) & 0xffff;
  }

  phyWrite(register: number, value: number): void {
    this.set(E1000_REG.MDIC, 0x04200000 | (register << 16) | value);
  }

  /** Reads an EEPROM word through EERD. */
  eepromRead(word: number): number {
    this.set(E1000_REG.EERD, (word << 8) | 1);
    const value = this.get(E1000_REG.EERD);
    return (value & 0x10) === 0 ? -1 : value >>> 16;
  }

  /** Shifts `count` bits of `value` into the EEPROM, data valid before each rising clock. */
  #shiftOut(value: number, count: number): void {
    const base = this.get(E1000_REG.EECD) & ~0x5;
    for (let i = count - 1; i >= 0; i--) {
      const data = ((value >>> i) & 1) << 2;
      this.set(E1000_REG.EECD, base | data);
      this.set(E1000_REG.EECD, base | data | 1);
      this.set(E1000_REG.EECD, base | data);
    }
  }

  #shiftIn(count: number): number {
    const base = this.get(E1000_REG.EECD) & ~0x5;
    let value = 0;
    for (let i = 0; i < count; i++) {
      this.set(E1000_REG.EECD, base | 1);
      value = (value << 1) | ((this.get(E1000_REG.EECD) >>> 3) & 1);
      this.set(E1000_REG.EECD, base);
    }
    return value;
  }

  /** One Microwire command: start bit and opcode (3 bits), 6 address bits, then `write` or a read of `read` words. */
  microwire(opcode: number, address: number, write?: number, read = 0): number[] {
    this.set(E1000_REG.EECD, 0x40);
    if ((this.get(E1000_REG.EECD) & 0x80) === 0) throw new Error('EEPROM access is not granted');
    this.set(E1000_REG.EECD, 0x42);
    this.#shiftOut(opcode, 3);
    this.#shiftOut(address, 6);
    if (write !== undefined) this.#shiftOut(write, 16);
    const words = Array.from({ length: read }, () => this.#shiftIn(16));
    this.set(E1000_REG.EECD, 0x40);
    this.set(E1000_REG.EECD, 0);
    return words;
  }
}
