/**
 * The transmit unit of the 82540EM (8254x SDM, 3.3-3.6): walks the descriptor ring from TDH to TDT, gathers packets
 * into a batch, does the offloads that the network does not take, sends the batch, and writes back descriptors of
 * what was taken. Descriptors of what was not taken stay with TDH in front of them and are walked again when the
 * network is writable; so the only thing kept between turns is a packet whose end is not in the ring yet, and how many
 * segments of the packet at TDH are out already. Nothing is allocated per packet.
 *
 * Work per turn is bounded by {@link FRAMES_PER_TURN} and {@link DESCRIPTORS_PER_TURN}; the rest is done in a later
 * turn.
 */
import { assert } from '../../src/base/assert.ts';
import { u64 } from '../../src/base/bits.ts';
import type { GuestComplaints } from '../../src/base/log.ts';
import type { GuestMemory } from '../../src/memory/guest-memory.ts';
import {
  FrameBatch,
  MAX_ENTRY_BYTES,
  MAX_FRAME_BYTES,
  NET_OFFLOAD,
  VNET_HEADER_BYTES,
} from '../../src/net/backend.ts';
import { insertChecksum } from './checksum.ts';
import type { InterruptUnit } from './interrupts.ts';
import {
  canSegment,
  finishLargeFrame,
  finishSegment,
  gsoType,
  NORMAL,
  OffloadContexts,
  SEGMENTATION,
  VNET,
} from './offload.ts';
import { CTRL, DESCRIPTOR_BYTES, ETH, ICR, POPTS, REG, STAT, TCTL, TXD, TXDCTL } from './spec.ts';
import type { Statistics } from './statistics.ts';

/** Frames (or segments) of one turn, after which other work of the machine gets its turn; 4 KiB count as one more. */
export const FRAMES_PER_TURN = 256;
/** Descriptors that are looked at in one turn. */
const DESCRIPTORS_PER_TURN = 4096;
const BATCH_FRAMES = 64;
const BATCH_BYTES = 256 * 1024;
/** Behind what the batch uses: the packet that is incomplete or being segmented. */
const SCRATCH = BATCH_BYTES;

/** Longest packet to segment, so that a tag still fits. */
const MAX_SEGMENTED = MAX_FRAME_BYTES - ETH.vlanTag;

/** Indexes of the record of a packet that is being gathered. */
const LENGTH = 0;
const FLAGS = 1;
const OPTIONS = 2;
const CSS = 3;
const TAG = 4;
/** Words of that record. */
export const PACKET_WORDS = 5;

/** Bits of the record's FLAGS. */
const OPEN = 1;
const EXTENDED = 2;
const SEGMENT = 4;
const DISCARD = 8;
const TAGGED = 16;

/** Where frames go: the backend, or the receive unit in loopback. */
export interface FrameSink {
  /** NET_OFFLOAD bits that headers of sent frames may ask for. */
  readonly offloads: number;
  /** As NetBackend.send. */
  send(batch: FrameBatch, from: number): number;
}

/** What saved state holds of the unit. */
export interface TransmitState {
  /** Both contexts, {@link OffloadContexts.words}. */
  readonly contexts: Uint32Array;
  /** The record of the packet whose end is not in the ring yet. */
  readonly packet: Uint32Array;
  /** The bytes of that packet. */
  readonly bytes: Uint8Array;
  /** Segments of the packet at TDH that are out. */
  readonly segmentsSent: number;
}

export class TransmitUnit {
  readonly #words: Uint32Array;
  readonly #memory: GuestMemory;
  readonly #interrupts: InterruptUnit;
  readonly #statistics: Statistics;
  readonly #complaints: GuestComplaints;
  readonly #sink: FrameSink;
  readonly #later: () => void;

  readonly #batch = new FrameBatch(BATCH_FRAMES, BATCH_BYTES + MAX_ENTRY_BYTES);
  /** Ring index behind each entry of the batch. */
  readonly #ends = new Uint32Array(BATCH_FRAMES);
  /** Contexts as of TDH, and as of the descriptor being looked at. */
  readonly #contexts = new OffloadContexts();
  readonly #ahead = new OffloadContexts();
  /** The packet that is open at TDH (its bytes are at SCRATCH), and the one being looked at. */
  readonly #held = new Uint32Array(PACKET_WORDS);
  readonly #packet = new Uint32Array(PACKET_WORDS);
  #segmentsSent = 0;
  #blocked = false;

  // Of the current turn.
  #base = 0;
  #count = 0;
  #left = 0;
  #immediate = false;
  #delayed = false;

  /** @param later asks for another {@link run} in a later turn of the loop */
  constructor(
    words: Uint32Array,
    memory: GuestMemory,
    interrupts: InterruptUnit,
    statistics: Statistics,
    complaints: GuestComplaints,
    sink: FrameSink,
    later: () => void,
  ) {
    this.#words = words;
    this.#memory = memory;
    this.#interrupts = interrupts;
    this.#statistics = statistics;
    this.#complaints = complaints;
    this.#sink = sink;
    this.#later = later;
  }

  /** Forgets everything that is kept between turns. */
  reset(): void {
    this.#contexts.words.fill(0);
    this.abandon();
  }

  /** Forgets an incomplete packet, and that the network was full: after a write of TDH or of the ring's place. */
  abandon(): void {
    this.#held.fill(0);
    this.#segmentsSent = 0;
    this.#blocked = false;
  }

  /** Whether packets wait for {@link writable}. */
  get blocked(): boolean {
    return this.#blocked;
  }

  /** The network takes frames again. */
  writable(): void {
    this.#blocked = false;
  }

  /** Transmits what lies between TDH and TDT; called after TDT or TCTL changed, and when the network is writable. */
  run(): void {
    const words = this.#words;
    if (this.#blocked || (words[REG.tctl >>> 2]! & TCTL.en) === 0) return;
    const head = words[REG.tdh >>> 2]!;
    const tail = words[REG.tdt >>> 2]!;
    if (head === tail) return;
    const count = words[REG.tdlen >>> 2]! / DESCRIPTOR_BYTES;
    if (head >= count || tail >= count) {
      this.#complaints.warn('transmit ring index out of range', { head, tail, count });
      return;
    }
    this.#base = u64(words[REG.tdbal >>> 2]!, words[REG.tdbah >>> 2]!);
    this.#count = count;
    this.#left = FRAMES_PER_TURN;
    this.#immediate = false;
    this.#delayed = false;
    this.#walk(head, tail);
    this.#report(head, tail);
  }

  #walk(head: number, tail: number): void {
    const packet = this.#packet;
    const batch = this.#batch;
    for (let i = 0; i < PACKET_WORDS; i++) packet[i] = this.#held[i]!;
    this.#ahead.copy(this.#contexts);
    batch.clear();
    if (packet[LENGTH] !== 0) {
      batch.bytes.copyWithin(VNET_HEADER_BYTES, SCRATCH, SCRATCH + packet[LENGTH]!);
    }
    let index = head;
    let descriptors = 0;
    while (index !== tail && descriptors < DESCRIPTORS_PER_TURN) {
      descriptors++;
      if ((packet[FLAGS]! & OPEN) === 0 && (this.#left <= 0 || !this.#room())) {
        if (!this.#flush()) return;
        if (this.#left <= 0) {
          this.#later();
          return;
        }
      }
      const address = this.#base + index * DESCRIPTOR_BYTES;
      const range = this.#memory.rangeOf(address, DESCRIPTOR_BYTES);
      if (range === undefined) {
        this.#complaints.warn('transmit descriptor outside of memory', { index });
        break;
      }
      const at = address - range.base;
      const d2 = range.view.getUint32(at + 8, true);
      const d3 = range.view.getUint32(at + 12, true);
      index = index + 1 === this.#count ? 0 : index + 1;
      const extended = (d2 & TXD.dext) !== 0;
      if (extended && (d2 & TXD.dtypMask) !== TXD.dtypData) {
        if ((d2 & TXD.dtypMask) === 0) {
          const d0 = range.view.getUint32(at, true);
          this.#ahead.load(d0, range.view.getUint32(at + 4, true), d2, d3);
        }
        if ((packet[FLAGS]! & OPEN) === 0) this.#done(index);
        continue;
      }
      if ((packet[FLAGS]! & OPEN) === 0) this.#open(extended, d2, d3);
      const low = range.view.getUint32(at, true);
      const high = range.view.getUint32(at + 4, true);
      this.#gather(u64(low, high), extended ? d2 & TXD.lengthMask : d2 & 0xffff);
      if ((d2 & TXD.eop) !== 0 && !this.#close(d2, d3, index)) return;
    }
    const openAt = batch.used + VNET_HEADER_BYTES;
    if (!this.#flush()) return;
    if (descriptors === DESCRIPTORS_PER_TURN) this.#later();
    if ((packet[FLAGS]! & OPEN) === 0) return;
    batch.bytes.copyWithin(SCRATCH, openAt, openAt + packet[LENGTH]!);
    this.#commit(index);
    for (let i = 0; i < PACKET_WORDS; i++) this.#held[i] = packet[i]!;
  }

  #room(): boolean {
    const batch = this.#batch;
    return batch.count < BATCH_FRAMES && batch.used + MAX_ENTRY_BYTES <= BATCH_BYTES;
  }

  /** Starts a packet at its first data descriptor, which alone carries some of its options (3.3.7.1, 3.3.7.3). */
  #open(extended: boolean, d2: number, d3: number): void {
    const packet = this.#packet;
    packet[LENGTH] = 0;
    packet[FLAGS] = OPEN;
    packet[CSS] = (d3 >>> 8) & 0xff;
    if (!extended) return;
    packet[FLAGS] = OPEN | EXTENDED;
    packet[OPTIONS] = (d3 >>> 8) & 0xff;
    if ((d2 & TXD.tse) === 0) return;
    packet[FLAGS] = OPEN | EXTENDED | SEGMENT | ((d2 & TXD.vle) !== 0 ? TAGGED : 0);
    packet[TAG] = d3 >>> 16;
  }

  /** Appends one buffer; a null address transfers nothing (3.3.3). */
  #gather(address: number, length: number): void {
    const packet = this.#packet;
    if (length === 0 || address === 0 || (packet[FLAGS]! & DISCARD) !== 0) return;
    const have = packet[LENGTH]!;
    const most = (packet[FLAGS]! & SEGMENT) !== 0 ? MAX_SEGMENTED : ETH.maxTransmit;
    const batch = this.#batch;
    const to = batch.used + VNET_HEADER_BYTES + have;
    if (have + length > most) {
      this.#complaints.warn('transmit packet too long', { length: have + length, most });
    } else if (this.#memory.read(address, batch.bytes, to, length)) {
      packet[LENGTH] = have + length;
      return;
    } else {
      this.#complaints.warn('transmit buffer outside of memory', { address, length });
    }
    packet[FLAGS]! |= DISCARD;
    packet[LENGTH] = 0;
  }

  /** Ends the packet at its last descriptor, `next` being the ring index behind it; false when the turn is over. */
  #close(d2: number, d3: number, next: number): boolean {
    const packet = this.#packet;
    const flags = packet[FLAGS]!;
    packet[FLAGS] = 0;
    const length = packet[LENGTH]!;
    this.#left -= 1 + (length >>> 12);
    if ((flags & DISCARD) !== 0 || length === 0) {
      this.#done(next);
      return true;
    }
    if ((flags & SEGMENT) !== 0) {
      return this.#segmented(length, (flags & TAGGED) !== 0 ? packet[TAG]! : -1, next);
    }
    const batch = this.#batch;
    const at = batch.used + VNET_HEADER_BYTES;
    this.#clearHeader(batch.used);
    if ((flags & EXTENDED) !== 0) this.#checksums(at, length, packet[OPTIONS]!);
    else if ((d2 & TXD.ic) !== 0) {
      insertChecksum(batch.view, at, length, packet[CSS]!, (d2 >>> 16) & 0xff, 0, false);
    }
    this.#emit(length, (d2 & TXD.vle) !== 0 ? d3 >>> 16 : -1, next);
    return true;
  }

  #clearHeader(at: number): void {
    const view = this.#batch.view;
    view.setUint32(at, 0);
    view.setUint32(at + 4, 0);
    view.setUint32(at + 8, 0);
  }

  /** Inserts what POPTS asks for, or leaves the TCP/UDP checksum to the network (3.6). */
  #checksums(at: number, length: number, options: number): void {
    const c = this.#ahead;
    const view = this.#batch.view;
    if ((options & POPTS.ixsm) !== 0) {
      const ip = c.ipStart(NORMAL);
      insertChecksum(view, at, length, ip, c.ipOffset(NORMAL), c.ipLast(NORMAL), false);
    }
    if ((options & POPTS.txsm) === 0) return;
    const start = c.l4Start(NORMAL);
    const offset = c.l4Offset(NORMAL);
    const last = c.l4Last(NORMAL);
    const offloaded = (this.#sink.offloads & NET_OFFLOAD.csum) !== 0 && last === 0;
    if (offloaded && start < offset && offset + 2 <= length) {
      this.#askChecksum(at - VNET_HEADER_BYTES, start, offset);
    } else {
      insertChecksum(view, at, length, start, offset, last, !c.isTcp(NORMAL));
    }
  }

  #askChecksum(header: number, start: number, offset: number): void {
    const view = this.#batch.view;
    view.setUint8(header, VNET.needsCsum);
    view.setUint16(header + 6, start, true);
    view.setUint16(header + 8, offset - start, true);
  }

  /**
   * Adds the frame that stands behind the batch as its next entry: VLAN tag (9.2), padding (13.4.33 PSP).
   * @param tag the tag to insert if CTRL.VME is set, or -1
   */
  #emit(frameLength: number, tag: number, next: number): void {
    const batch = this.#batch;
    const view = batch.view;
    const header = batch.used;
    const at = header + VNET_HEADER_BYTES;
    let length = frameLength;
    if (length < ETH.header) {
      this.#complaints.warn('transmit packet shorter than an Ethernet header', { length });
      this.#done(next);
      return;
    }
    if (tag >= 0 && (this.#words[REG.ctrl >>> 2]! & CTRL.vme) !== 0) {
      batch.bytes.copyWithin(at + 16, at + 12, at + length);
      view.setUint16(at + 12, this.#words[REG.vet >>> 2]!);
      view.setUint16(at + 14, tag);
      length += ETH.vlanTag;
      if (view.getUint8(header) !== 0) {
        view.setUint16(header + 6, view.getUint16(header + 6, true) + ETH.vlanTag, true);
        if (view.getUint8(header + 1) !== 0) {
          view.setUint16(header + 2, view.getUint16(header + 2, true) + ETH.vlanTag, true);
        }
      }
    }
    if (length < ETH.min && (this.#words[REG.tctl >>> 2]! & TCTL.psp) !== 0) {
      batch.bytes.fill(0, at + length, at + ETH.min);
      length = ETH.min;
    }
    const added = batch.add(VNET_HEADER_BYTES + length);
    assert(added === header, 'a transmit batch has room for the frame that was gathered in it');
    this.#ends[batch.count - 1] = next;
  }

  /** Marks descriptors in front of `next` as done once everything before them is. */
  #done(next: number): void {
    if (this.#batch.count === 0) this.#commit(next);
    else this.#ends[this.#batch.count - 1] = next;
  }

  /** A packet of the segmentation context: sent whole where the network segments, else cut here (3.5). */
  #segmented(length: number, tag: number, next: number): boolean {
    const c = this.#ahead;
    const batch = this.#batch;
    const payload = length - c.headerLength;
    if (!canSegment(c) || payload <= 0) {
      if (!this.#flush()) return false;
      this.#complaints.warn('impossible TCP segmentation', { mss: c.mss, payload });
      this.#statistics.add(STAT.tsctfc, 1);
      this.#commit(next);
      return true;
    }
    const options = this.#packet[OPTIONS]!;
    const at = batch.used + VNET_HEADER_BYTES;
    const resumed = this.#segmentsSent !== 0 && batch.count === 0;
    const type =
      resumed || payload !== c.payloadLength
        ? VNET.gsoNone
        : gsoType(batch.view, at, c, payload, options, this.#sink.offloads);
    if (type === VNET.gsoNone) return this.#segment(at, length, payload, options, tag, next);
    finishLargeFrame(batch.view, at, c, payload);
    this.#clearHeader(batch.used);
    this.#askChecksum(batch.used, c.l4Start(SEGMENTATION), c.l4Offset(SEGMENTATION));
    batch.view.setUint8(batch.used + 1, type);
    batch.view.setUint16(batch.used + 2, c.headerLength, true);
    batch.view.setUint16(batch.used + 4, c.mss, true);
    this.#emit(length, tag, next);
    return true;
  }

  #segment(
    at: number,
    length: number,
    payload: number,
    options: number,
    tag: number,
    next: number,
  ): boolean {
    const c = this.#ahead;
    const batch = this.#batch;
    const { mss, headerLength: header } = c;
    if (!this.#flush()) return false;
    batch.bytes.copyWithin(SCRATCH, at, at + length);
    const total = Math.ceil(payload / mss);
    while (this.#segmentsSent < total) {
      if (this.#left <= 0) {
        this.#later();
        return false;
      }
      let index = this.#segmentsSent;
      while (index < total && this.#room()) {
        const to = batch.used + VNET_HEADER_BYTES;
        const from = index * mss;
        const bytes = Math.min(mss, payload - from);
        batch.bytes.copyWithin(to, SCRATCH, SCRATCH + header);
        const source = SCRATCH + header + from;
        batch.bytes.copyWithin(to + header, source, source + bytes);
        finishSegment(batch.view, to, c, index, bytes, index === total - 1, options);
        this.#clearHeader(batch.used);
        this.#emit(header + bytes, tag, next);
        index++;
      }
      const offered = batch.count;
      const taken = this.#sendBatch();
      this.#segmentsSent += taken;
      this.#left -= taken;
      batch.clear();
      if (taken < offered) {
        this.#blocked = true;
        return false;
      }
    }
    this.#statistics.add(payload === c.payloadLength ? STAT.tsctc : STAT.tsctfc, 1);
    this.#commit(next);
    return true;
  }

  /** Sends the batch. @returns how many entries were taken; they are counted */
  #sendBatch(): number {
    const batch = this.#batch;
    const taken = this.#sink.send(batch, 0);
    for (let i = 0; i < taken; i++) {
      const header = batch.offsets[i]!;
      const length = batch.lengths[i]! - VNET_HEADER_BYTES;
      let frames = 1;
      let octets = length;
      if (batch.view.getUint8(header + 1) !== VNET.gsoNone) {
        const headers = batch.view.getUint16(header + 2, true);
        frames = Math.ceil((length - headers) / batch.view.getUint16(header + 4, true));
        octets += (frames - 1) * headers;
        this.#statistics.add(STAT.tsctc, 1);
      }
      this.#statistics.transmitted(batch.view, header + VNET_HEADER_BYTES, octets, frames);
    }
    return taken;
  }

  /** Sends what was gathered and writes back what was taken. @returns false when that was not all */
  #flush(): boolean {
    const batch = this.#batch;
    const offered = batch.count;
    if (offered === 0) return true;
    const taken = this.#sendBatch();
    batch.clear();
    if (taken > 0) this.#commit(this.#ends[taken - 1]!);
    if (taken < offered) this.#blocked = true;
    return taken === offered;
  }

  /** Writes back descriptors from TDH up to `end`, loads their contexts, and moves TDH (3.4.2). */
  #commit(end: number): void {
    let index = this.#words[REG.tdh >>> 2]!;
    while (index !== end) {
      const address = this.#base + index * DESCRIPTOR_BYTES;
      const range = this.#memory.rangeOf(address, DESCRIPTOR_BYTES);
      index = index + 1 === this.#count ? 0 : index + 1;
      if (range === undefined) continue;
      const at = address - range.base;
      const d2 = range.view.getUint32(at + 8, true);
      if ((d2 & TXD.dext) !== 0 && (d2 & TXD.dtypMask) === 0) {
        const d0 = range.view.getUint32(at, true);
        const d1 = range.view.getUint32(at + 4, true);
        this.#contexts.load(d0, d1, d2, range.view.getUint32(at + 12, true));
      }
      if ((d2 & TXD.rs) === 0) continue;
      range.view.setUint8(at + 12, (range.view.getUint8(at + 12) & 0xf0) | TXD.dd);
      this.#memory.dirty.mark(address + 12, 1);
      if ((d2 & TXD.ide) !== 0) this.#delayed = true;
      else this.#immediate = true;
    }
    this.#words[REG.tdh >>> 2] = end;
    for (let i = 0; i < PACKET_WORDS; i++) this.#held[i] = 0;
    this.#segmentsSent = 0;
  }

  /** Interrupt causes of the turn (3.4.3, 13.4.43). */
  #report(head: number, tail: number): void {
    const now = this.#words[REG.tdh >>> 2]!;
    if (now === head) return;
    const before = (tail - head + this.#count) % this.#count;
    const after = (tail - now + this.#count) % this.#count;
    const low = 8 * (this.#words[REG.txdctl >>> 2]! >>> TXDCTL.lwthreshShift);
    let causes = after === 0 ? ICR.txqe : 0;
    if (before > low && after <= low) causes |= ICR.txdLow;
    this.#interrupts.transmitted(causes, this.#immediate, this.#delayed);
  }

  /** A copy of what is kept between turns. */
  save(): TransmitState {
    return {
      contexts: this.#contexts.words.slice(),
      packet: this.#held.slice(),
      bytes: this.#batch.bytes.slice(SCRATCH, SCRATCH + this.#held[LENGTH]!),
      segmentsSent: this.#segmentsSent,
    };
  }

  /** Takes over a saved state, once {@link isTransmitState} said that it can be. */
  load(state: TransmitState): void {
    this.#contexts.words.set(state.contexts);
    this.#held.set(state.packet);
    this.#batch.bytes.set(state.bytes, SCRATCH);
    this.#segmentsSent = state.segmentsSent;
    this.#blocked = false;
  }
}

/** Whether `state` is one that {@link TransmitUnit.save} can give. */
export function isTransmitState({ packet, bytes, segmentsSent }: TransmitState): boolean {
  const length = packet[LENGTH]!;
  const flags = packet[FLAGS]!;
  const open = (flags & OPEN) !== 0;
  return (
    length === bytes.length &&
    length <= ((flags & SEGMENT) !== 0 ? MAX_SEGMENTED : ETH.maxTransmit) &&
    flags < 2 * TAGGED &&
    (open || (flags === 0 && length === 0)) &&
    packet[OPTIONS]! <= 0xff &&
    packet[CSS]! <= 0xff &&
    packet[TAG]! <= 0xffff &&
    segmentsSent <= MAX_FRAME_BYTES
  );
}
