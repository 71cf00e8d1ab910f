/**
 * The receive unit of the 82540EM (8254x SDM, 3.2): pulls frames from the network while the ring has descriptors,
 * filters them, strips the VLAN tag, verifies checksums, and writes frame and descriptors to guest memory. While there
 * are no descriptors nothing is pulled: the network keeps (or drops) its frames, and the only one that may wait here
 * is one that needs more descriptors than there were. Nothing is allocated per frame.
 *
 * Left out: the FCS (where RCTL.SECRC leaves it to the guest, four zero bytes stand for it), bad frames, flow control.
 */
import { u64 } from '../../src/base/bits.ts';
import type { GuestComplaints } from '../../src/base/log.ts';
import type { GuestMemory } from '../../src/memory/guest-memory.ts';
import {
  FrameBatch,
  MAX_ENTRY_BYTES,
  type NetBackend,
  VNET_HEADER_BYTES,
} from '../../src/net/backend.ts';
import { insertChecksum, sum16 } from './checksum.ts';
import { MATCH, matchAddress, passesVlan } from './filter.ts';
import type { InterruptUnit } from './interrupts.ts';
import { VNET } from './offload.ts';
import { verifyChecksums } from './receive-checksum.ts';
import { CTRL, DESCRIPTOR_BYTES, ETH, ICR, RCTL, REG, RXCSUM, RXD, STAT } from './spec.ts';
import type { Statistics } from './statistics.ts';

const BATCH_FRAMES = 64;

export class ReceiveUnit {
  readonly #words: Uint32Array;
  readonly #memory: GuestMemory;
  readonly #interrupts: InterruptUnit;
  readonly #statistics: Statistics;
  readonly #complaints: GuestComplaints;
  readonly #backend: NetBackend;

  readonly #batch = new FrameBatch(BATCH_FRAMES);
  /** Short frames are padded here, with room for the padding. */
  readonly #padded: Uint8Array<ArrayBuffer>;
  readonly #paddedView: DataView<ArrayBuffer>;
  readonly #zeros = new Uint8Array(ETH.fcs);
  /** A frame (with its header) that waits for descriptors; empty most of the time. */
  readonly #held: Uint8Array<ArrayBuffer>;
  readonly #heldView: DataView<ArrayBuffer>;
  #heldBytes = 0;
  #running = false;
  #enabled = false;
  #small = false;

  constructor(
    words: Uint32Array,
    memory: GuestMemory,
    interrupts: InterruptUnit,
    statistics: Statistics,
    complaints: GuestComplaints,
    backend: NetBackend,
  ) {
    this.#words = words;
    this.#memory = memory;
    this.#interrupts = interrupts;
    this.#statistics = statistics;
    this.#complaints = complaints;
    this.#backend = backend;
    this.#padded = new Uint8Array(ETH.min);
    this.#paddedView = new DataView(this.#padded.buffer);
    this.#held = new Uint8Array(MAX_ENTRY_BYTES);
    this.#heldView = new DataView(this.#held.buffer);
  }

  /** Drops a waiting frame and stops pulling until the guest gives descriptors again. */
  reset(): void {
    this.#heldBytes = 0;
    this.update();
  }

  /** Descriptors that the chip owns: from RDH up to RDT (3.2.6). None where the ring makes no sense. */
  #free(): number {
    const words = this.#words;
    const count = words[REG.rdlen >>> 2]! / DESCRIPTOR_BYTES;
    const head = words[REG.rdh >>> 2]!;
    const tail = words[REG.rdt >>> 2]!;
    if (head === tail || head >= count || tail >= count) return 0;
    return tail > head ? tail - head : tail - head + count;
  }

  /** Bytes that one descriptor's buffer takes (13.4.22, BSIZE and BSEX). */
  #bufferBytes(): number {
    const rctl = this.#words[REG.rctl >>> 2]!;
    const size = 2048 >>> ((rctl >>> RCTL.bsizeShift) & 3);
    return (rctl & RCTL.bsex) !== 0 && size !== 2048 ? size * 16 : size;
  }

  #maxWire(): number {
    return (this.#words[REG.rctl >>> 2]! & RCTL.lpe) !== 0 ? ETH.maxReceiveLong : ETH.maxReceive;
  }

  /** Pulling is on exactly while frames could be delivered. Called after RDT, RCTL or the ring's place changed. */
  update(): void {
    const on = (this.#words[REG.rctl >>> 2]! & RCTL.en) !== 0;
    if (!on) this.#heldBytes = 0;
    const listening = this.#running && on;
    if (listening && this.#heldBytes !== 0 && this.#free() > 0) this.#deliverHeld();
    const enabled = listening && this.#heldBytes === 0 && this.#free() > 0;
    if (enabled === this.#enabled) return;
    this.#enabled = enabled;
    this.#backend.setReceiveEnabled(enabled);
  }

  /** The network has frames: delivers at most one batch. */
  receivable(): void {
    if (!this.#enabled) return;
    const free = this.#free();
    const each = Math.ceil(this.#maxWire() / this.#bufferBytes());
    const most = Math.min(BATCH_FRAMES, Math.max(1, Math.floor(free / each)));
    const batch = this.#batch;
    batch.clear();
    const count = this.#backend.receive(batch, most);
    this.#small = false;
    let delivered = 0;
    for (let i = 0; i < count; i++) {
      const at = batch.offsets[i]!;
      const length = batch.lengths[i]!;
      const result = this.#accept(batch.bytes, batch.view, at, length);
      if (result > 0) delivered++;
      else if (result < 0) {
        this.#statistics.add(STAT.rnbc, 1);
        if (i === count - 1) this.#hold(at, length);
        else this.#statistics.add(STAT.mpc, 1);
      }
    }
    if (delivered > 0) this.#report(free);
    this.update();
  }

  /** Delivers one frame that the guest sent to itself; lost when there is no room (as on a wire). */
  loopback(batch: FrameBatch, index: number): void {
    if (!this.#running || (this.#words[REG.rctl >>> 2]! & RCTL.en) === 0) return;
    const free = this.#free();
    this.#small = false;
    const at = batch.offsets[index]!;
    const result = this.#accept(batch.bytes, batch.view, at, batch.lengths[index]!);
    if (result < 0) this.#statistics.add(STAT.mpc, 1);
    if (result > 0) this.#report(free);
    this.update();
  }

  #hold(at: number, length: number): void {
    const from = this.#batch.bytes;
    for (let i = 0; i < length; i++) this.#held[i] = from[at + i]!;
    this.#heldBytes = length;
  }

  #deliverHeld(): void {
    const free = this.#free();
    this.#small = false;
    const result = this.#accept(this.#held, this.#heldView, 0, this.#heldBytes);
    if (result >= 0) this.#heldBytes = 0;
    if (result > 0) this.#report(free);
  }

  /** Interrupts after a delivery (3.2.7); RXDMT0 when the free descriptors fell to the threshold (3.2.7.3). */
  #report(freeBefore: number): void {
    const words = this.#words;
    const count = words[REG.rdlen >>> 2]! / DESCRIPTOR_BYTES;
    const threshold = count >>> (1 + ((words[REG.rctl >>> 2]! >>> RCTL.rdmtsShift) & 3));
    const causes = freeBefore > threshold && this.#free() <= threshold ? ICR.rxdmt0 : 0;
    this.#interrupts.received(causes, this.#small);
  }

  /**
   * Filters the entry at `at` and delivers it.
   * @returns 1 delivered, 0 not for this station, -1 no descriptors for it
   */
  #accept(bytes: Uint8Array, view: DataView, entry: number, entryBytes: number): number {
    const words = this.#words;
    const statistics = this.#statistics;
    const flags = view.getUint8(entry);
    let at = entry + VNET_HEADER_BYTES;
    let length = entryBytes - VNET_HEADER_BYTES;
    if (length < ETH.header) return 0;
    const match = matchAddress(words, view, at);
    if (match === MATCH.none) return 0;
    const tci = view.getUint16(at + 12) === words[REG.vet >>> 2]! ? view.getUint16(at + 14) : -1;
    if (tci >= 0 && (length < ETH.header + ETH.vlanTag || !passesVlan(words, tci))) return 0;
    if (view.getUint8(entry + 1) !== VNET.gsoNone) {
      // Was turned off at the network; a frame that comes all the same fits no buffer of this chip.
      this.#complaints.warn('network delivered an unsegmented frame', { length });
      return 0;
    }
    if (length + ETH.fcs > this.#maxWire()) {
      statistics.add(STAT.roc, 1);
      statistics.add(STAT.rlec, 1);
      return 0;
    }
    if (!this.#fits(Math.max(length, ETH.min), tci)) return -1;
    if ((flags & VNET.needsCsum) !== 0) {
      const start = view.getUint16(entry + 6, true);
      const offset = start + view.getUint16(entry + 8, true);
      insertChecksum(view, at, length, start, offset, 0, false);
    }
    let data = bytes;
    let dataView = view;
    if (length < ETH.min) {
      data = this.#padded;
      dataView = this.#paddedView;
      for (let i = 0; i < ETH.min; i++) data[i] = i < length ? bytes[at + i]! : 0;
      at = 0;
      length = ETH.min;
    }
    statistics.received(dataView, at, length);
    statistics.add(STAT.tpr, 1);
    statistics.addOctets(STAT.torl, length + ETH.fcs);
    const trusted = (flags & (VNET.needsCsum | VNET.dataValid)) !== 0;
    this.#deliver(data, dataView, at, length, tci, match === MATCH.inexact, trusted);
    return 1;
  }

  /** Whether a frame of `length` bytes with tag `tci` (-1: none) fits the free descriptors. */
  #fits(length: number, tci: number): boolean {
    const rctl = this.#words[REG.rctl >>> 2]!;
    const strip = tci >= 0 && (this.#words[REG.ctrl >>> 2]! & CTRL.vme) !== 0;
    const total = length - (strip ? ETH.vlanTag : 0) + ((rctl & RCTL.secrc) !== 0 ? 0 : ETH.fcs);
    return total <= this.#free() * this.#bufferBytes();
  }

  /** Writes an accepted frame to the ring; descriptors become visible with their last word. */
  #deliver(
    data: Uint8Array,
    view: DataView,
    frameAt: number,
    frameLength: number,
    tci: number,
    inexact: boolean,
    trusted: boolean,
  ): void {
    const words = this.#words;
    let at = frameAt;
    let length = frameLength;
    let status = inexact ? RXD.pif : 0;
    let special = 0;
    const strip = tci >= 0 && (words[REG.ctrl >>> 2]! & CTRL.vme) !== 0;
    if (strip) {
      // The addresses move over the tag, from the back.
      for (let i = 11; i >= 0; i--) data[at + i + ETH.vlanTag] = data[at + i]!;
      at += ETH.vlanTag;
      length -= ETH.vlanTag;
      status |= RXD.vp;
      special = tci;
    }
    const rxcsum = words[REG.rxcsum >>> 2]!;
    const tagged = tci >= 0 && !strip;
    status |= verifyChecksums(view, at, length, rxcsum, tagged, trusted);
    const start = rxcsum & RXCSUM.pcssMask;
    const checksum = start < length ? ~sum16(view, at + start, length - start) & 0xffff : 0xffff;
    const fcs = (words[REG.rctl >>> 2]! & RCTL.secrc) !== 0 ? 0 : ETH.fcs;
    const total = length + fcs;
    if (frameLength + ETH.fcs <= words[REG.rsrpd >>> 2]!) this.#small = true;
    this.#write(data, at, length, total, checksum, status, special);
  }

  #write(
    data: Uint8Array,
    at: number,
    length: number,
    total: number,
    checksum: number,
    status: number,
    special: number,
  ): void {
    const words = this.#words;
    const memory = this.#memory;
    const base = u64(words[REG.rdbal >>> 2]!, words[REG.rdbah >>> 2]!);
    const count = words[REG.rdlen >>> 2]! / DESCRIPTOR_BYTES;
    const size = this.#bufferBytes();
    let free = this.#free();
    let done = 0;
    while (done < total && free > 0) {
      const head = words[REG.rdh >>> 2]!;
      const address = base + head * DESCRIPTOR_BYTES;
      words[REG.rdh >>> 2] = head + 1 === count ? 0 : head + 1;
      free--;
      const range = memory.rangeOf(address, DESCRIPTOR_BYTES);
      if (range === undefined) {
        this.#complaints.warn('receive descriptor outside of memory', { index: head });
        done += size;
        continue;
      }
      const d = address - range.base;
      const buffer = u64(range.view.getUint32(d, true), range.view.getUint32(d + 4, true));
      let chunk = 0;
      // A null address is a descriptor without a buffer: it is used up and takes nothing (3.2.3).
      if (buffer !== 0) {
        chunk = Math.min(size, total - done);
        this.#copy(buffer, data, at, length, done, chunk);
        done += chunk;
      }
      const last = done >= total;
      const flags = last ? status | RXD.dd | RXD.eop : RXD.dd;
      range.view.setUint32(d + 8, (chunk | (checksum << 16)) >>> 0, true);
      range.view.setUint32(d + 12, (flags | (last ? special << 16 : 0)) >>> 0, true);
      memory.dirty.mark(address + 8, 8);
    }
  }

  /** Copies bytes [from, from + chunk) of the frame, FCS zeros behind its `length` bytes included. */
  #copy(
    buffer: number,
    data: Uint8Array,
    at: number,
    length: number,
    from: number,
    chunk: number,
  ): void {
    const memory = this.#memory;
    const bytes = Math.max(0, Math.min(chunk, length - from));
    let good = bytes === 0 || memory.write(buffer, data, at + from, bytes);
    if (good && bytes < chunk) good = memory.write(buffer + bytes, this.#zeros, 0, chunk - bytes);
    if (!good) this.#complaints.warn('receive buffer outside of memory', { buffer, chunk });
  }

  pause(): void {
    this.#running = false;
    this.update();
  }

  resume(): void {
    this.#running = true;
    this.update();
  }

  /** A copy of the frame that waits (with its header), empty when there is none. For saved state. */
  saveHeld(): Uint8Array {
    return this.#held.slice(0, this.#heldBytes);
  }

  /** Takes over a saved frame of at most MAX_ENTRY_BYTES. */
  loadHeld(frame: Uint8Array): void {
    this.#held.set(frame);
    this.#heldBytes = frame.length;
  }
}
