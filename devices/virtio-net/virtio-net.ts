/**
 * The virtio network device (VIRTIO 1.2, 5.1) in front of a {@link NetBackend}: one pair of queues, mergeable
 * receive buffers, checksum and segmentation offloads as far as the backend has them, and the control queue.
 *
 * Back-pressure. Transmit: a frame's chain goes back to the driver only when the backend took the frame, so what
 * the backend does not take stays outstanding in the ring (and in the saved state of the ring). Receive: the backend
 * is read only while the driver has buffers; the rest of a batch that did not fit is kept, and is part of the state.
 */
import { assert } from '../../src/base/assert.ts';
import type { Clock, Timer } from '../../src/base/clock.ts';
import type { GuestMemory } from '../../src/memory/guest-memory.ts';
import {
  FrameBatch,
  MAX_ENTRY_BYTES,
  NET_OFFLOAD,
  type NetBackend,
  type NetHandler,
  VNET_HEADER_BYTES,
} from '../../src/net/backend.ts';
import {
  array,
  bytes,
  type Codec,
  fixedBytes,
  struct,
  u8,
  u16,
  u32,
} from '../../src/snapshot/codec.ts';
import { requireState } from '../../src/snapshot/schema.ts';
import { Chain } from '../../src/virtio/chain.ts';
import type { VirtioDevice, VirtioTransport } from '../../src/virtio/device.ts';
import type { VirtQueue } from '../../src/virtio/queue.ts';
import { type FeatureSet, featureSet, hasFeature, VIRTIO_TYPE } from '../../src/virtio/spec.ts';
import { type ControlTarget, handleControl } from './control.ts';
import {
  MAC_BYTES,
  ReceiveFilter,
  type ReceiveFilterState,
  receiveFilterCodec,
} from './receive-filter.ts';
import {
  CONTROL_ERROR,
  CONTROL_OK,
  GSO,
  HEADER_FLAG,
  NET_CONFIG,
  NET_FEATURE,
  NET_FEATURE_NEEDS,
  NET_HEADER,
  NET_QUEUE,
  NET_STATUS,
} from './spec.ts';

/** What a {@link VirtioNet} is made of. */
export interface VirtioNetOptions {
  readonly id: string;
  readonly memory: GuestMemory;
  readonly backend: NetBackend;
  readonly clock: Clock;
  /** Six bytes. */
  readonly mac: Uint8Array;
  /** What the guest is told; the backend's when absent. */
  readonly mtu?: number;
  /** Entries of the receive and of the transmit queue. Default 256. */
  readonly queueSize?: number;
}

/** The device's own saved state. */
export interface VirtioNetState {
  mac: Uint8Array;
  /** {@link NET_STATUS} bits. */
  status: number;
  /** What the driver was told, 0 for nothing. */
  mtu: number;
  filter: ReceiveFilterState;
  /** {@link NET_OFFLOAD} bits that the driver takes with received frames. */
  receiveOffloads: number;
  /** Frames taken from the backend that found no buffer, headers included. */
  pending: Uint8Array[];
}

const BATCH_FRAMES = 64;
/** Frames sent per turn, before everybody else has theirs; 64 KiB count as one more. */
const TURN_FRAMES = 256;
/** Frames from this size on leave from guest memory, where the backend can do that and the chain is not cut too fine. */
const DIRECT_BYTES = 2048;
const DIRECT_SEGMENTS = 64;
/** What is copied of such a frame: its virtio header, which must not change once it has been checked. */
const DIRECT_COPIED = VNET_HEADER_BYTES;
const BATCH_TAILS = 512;
/** Control commands per turn. */
const TURN_COMMANDS = 64;
const CONTROL_QUEUE_SIZE = 64;
const MIN_FRAME_BYTES = 14;

const stateCodec: Codec<VirtioNetState> = struct<VirtioNetState>({
  mac: fixedBytes(MAC_BYTES),
  status: u8,
  mtu: u16,
  filter: receiveFilterCodec,
  receiveOffloads: u32,
  pending: array(bytes(MAX_ENTRY_BYTES), BATCH_FRAMES),
});

/** Which feature each offload of the backend is. */
const SEND_FEATURES = [
  [NET_OFFLOAD.csum, NET_FEATURE.csum],
  [NET_OFFLOAD.tso4, NET_FEATURE.hostTso4],
  [NET_OFFLOAD.tso6, NET_FEATURE.hostTso6],
  [NET_OFFLOAD.tsoEcn, NET_FEATURE.hostEcn],
] as const;
const RECEIVE_FEATURES = [
  [NET_OFFLOAD.csum, NET_FEATURE.guestCsum],
  [NET_OFFLOAD.tso4, NET_FEATURE.guestTso4],
  [NET_OFFLOAD.tso6, NET_FEATURE.guestTso6],
  [NET_OFFLOAD.tsoEcn, NET_FEATURE.guestEcn],
] as const;

export class VirtioNet implements VirtioDevice<VirtioNetState>, NetHandler, ControlTarget {
  readonly id: string;
  readonly kind = 'virtio-net';
  readonly version = 2;
  readonly codec: Codec<VirtioNetState> = stateCodec;
  readonly type = VIRTIO_TYPE.net;
  readonly classCode = 0x020000;
  readonly queueSizes: readonly number[];
  readonly features: FeatureSet;
  readonly config: Uint8Array = new Uint8Array(NET_CONFIG.bytes);
  readonly filter: ReceiveFilter;
  readonly #memory: GuestMemory;
  readonly #backend: NetBackend;
  readonly #permanentMac: Uint8Array;
  readonly #configView = new DataView(this.config.buffer);
  /** The network's own, 0 where it is not known. */
  readonly #mtu: number;
  readonly #chain = new Chain();
  readonly #sending = new FrameBatch(BATCH_FRAMES, undefined, BATCH_TAILS);
  /** For frames in guest memory that the backend no longer takes from there. */
  readonly #copy = new FrameBatch(1, MAX_ENTRY_BYTES);
  /** The chain of each entry of `#sending`, and the first entry that the backend has not taken. */
  readonly #sendHeads = new Uint16Array(BATCH_FRAMES);
  #sendNext = 0;
  readonly #received = new FrameBatch(BATCH_FRAMES);
  #receiveNext = 0;
  /** Chains and lengths of the frame being delivered. */
  readonly #fillHeads: Uint16Array;
  readonly #fillLengths: Uint32Array;
  /** How many chains were there when a frame found too few. */
  #looked = 0;
  readonly #again: Timer;
  #transport: VirtioTransport | undefined;
  #paused = true;
  #sendBlocked = false;
  #mergeable = false;
  #sendOffloads = 0;
  #receiveOffloads = 0;
  /** Bytes of the turn that left from guest memory or were copied. */
  #turnBytes = 0;

  constructor(options: VirtioNetOptions) {
    const { id, memory, backend, clock, mac, queueSize = 256 } = options;
    assert(mac.length === MAC_BYTES, 'an Ethernet address has six bytes');
    this.id = id;
    this.#memory = memory;
    this.#backend = backend;
    this.#permanentMac = mac.slice();
    this.queueSizes = [queueSize, queueSize, CONTROL_QUEUE_SIZE];
    this.#fillHeads = new Uint16Array(queueSize);
    this.#fillLengths = new Uint32Array(queueSize);
    const mtu = options.mtu ?? backend.info.mtu;
    this.features = featureSet(
      NET_FEATURE.mac,
      NET_FEATURE.mergeable,
      NET_FEATURE.status,
      NET_FEATURE.ctrlVq,
      NET_FEATURE.ctrlRx,
      NET_FEATURE.ctrlRxExtra,
      NET_FEATURE.ctrlVlan,
      NET_FEATURE.ctrlMacAddr,
      NET_FEATURE.guestAnnounce,
      ...(mtu === undefined ? [] : [NET_FEATURE.mtu]),
      ...(backend.info.receiveOffloads === 0 ? [] : [NET_FEATURE.ctrlGuestOffloads]),
      ...SEND_FEATURES.filter(([bit]) => backend.info.sendOffloads & bit).map(([, f]) => f),
      ...RECEIVE_FEATURES.filter(([bit]) => backend.info.receiveOffloads & bit).map(([, f]) => f),
    );
    this.#mtu = mtu ?? 0;
    this.#configView.setUint16(NET_CONFIG.maxQueuePairs, 1, true);
    this.filter = new ReceiveFilter(this.config);
    this.#again = clock.timer(() => {
      this.#transmit();
      this.#control();
    });
    this.#powerOn();
    backend.setHandler(this);
  }

  /**
   * Asks the guest to tell its network where it is now (5.1.6.5.4): after a takeover or migration.
   * Does nothing for a driver that cannot, and while the machine stands still.
   * @returns whether the driver has agreed to do it
   */
  announce(): boolean {
    const { features } = this.#live;
    if (!hasFeature(features, NET_FEATURE.guestAnnounce)) return false;
    if (this.#paused) return true;
    this.config[NET_CONFIG.status]! |= NET_STATUS.announce;
    this.#live.configChanged();
    return true;
  }

  // What the transport asks.

  attach(transport: VirtioTransport): void {
    this.#transport = transport;
  }

  accepts(features: FeatureSet): boolean {
    return NET_FEATURE_NEEDS.every(
      ([feature, needs]) =>
        !hasFeature(features, feature) || needs.some((need) => hasFeature(features, need)),
    );
  }

  start(): void {
    const { features } = this.#live;
    this.#useFeatures();
    this.#receiveOffloads = offloadsOf(features, RECEIVE_FEATURES);
    this.#backend.setReceiveOffloads(this.#receiveOffloads);
  }

  notify(index: number): void {
    if (index === NET_QUEUE.receive) this.#deliver();
    else if (index === NET_QUEUE.transmit) this.#transmit();
    else this.#control();
  }

  stop(): boolean {
    this.#again.cancel();
    this.#backend.setReceiveEnabled(false);
    this.#backend.setReceiveOffloads(0);
    this.#powerOn();
    return true;
  }

  reset(): void {
    this.stop();
  }

  pause(): void {
    this.#paused = true;
    this.#again.cancel();
    this.#backend.setReceiveEnabled(false);
  }

  resume(): void {
    this.#paused = false;
    // The backend may have become writable, or its link changed, while nobody listened.
    this.#sendBlocked = false;
    this.#setLink(this.#backend.linkUp);
  }

  save(): VirtioNetState {
    assert(this.#paused, 'state is taken while paused');
    const pending: Uint8Array[] = [];
    const { bytes: all, offsets, lengths, count } = this.#received;
    for (let i = this.#receiveNext; i < count; i++) {
      pending.push(all.slice(offsets[i]!, offsets[i]! + lengths[i]!));
    }
    return {
      mac: this.config.slice(0, MAC_BYTES),
      status: this.config[NET_CONFIG.status]!,
      mtu: this.#configView.getUint16(NET_CONFIG.mtu, true),
      filter: this.filter.save(),
      receiveOffloads: this.#receiveOffloads,
      pending,
    };
  }

  check(state: VirtioNetState): void {
    requireState(state.status <= (NET_STATUS.linkUp | NET_STATUS.announce), 'status bits');
    requireState(
      (state.receiveOffloads & ~this.#backend.info.receiveOffloads) === 0,
      `${this.id}: the backend cannot receive with the offloads in use`,
    );
    requireState(
      this.#mtu === 0 || state.mtu <= this.#mtu,
      `${this.id}: the guest was told an MTU of ${state.mtu}, and the network here takes ${this.#mtu}`,
    );
    const total = state.pending.reduce((sum, { length }) => sum + length, 0);
    requireState(total <= this.#received.bytes.length, 'pending frames fit');
    const whole = state.pending.every(({ length }) => length >= VNET_HEADER_BYTES);
    requireState(whole, 'pending frames have headers');
    this.filter.check(state.filter);
  }

  load(state: VirtioNetState): void {
    this.#forgetFrames();
    this.config.set(state.mac, NET_CONFIG.mac);
    this.config[NET_CONFIG.status] = state.status;
    this.#configView.setUint16(NET_CONFIG.mtu, state.mtu, true);
    this.filter.load(state.filter);
    for (const entry of state.pending) {
      this.#received.bytes.set(entry, this.#received.add(entry.length));
    }
    this.#useFeatures();
    this.#receiveOffloads = state.receiveOffloads;
    this.#backend.setReceiveOffloads(state.receiveOffloads);
  }

  // What the backend tells.

  receivable(): void {
    if (!this.#live.running || this.#receiveNext < this.#received.count) {
      this.#backend.setReceiveEnabled(false);
      return;
    }
    this.#received.clear();
    this.#receiveNext = 0;
    this.#backend.receive(this.#received, BATCH_FRAMES);
    this.#deliver();
  }

  writable(): void {
    this.#sendBlocked = false;
    if (!this.#paused) this.#transmit();
  }

  linkChanged(up: boolean): void {
    if (!this.#paused) this.#setLink(up);
  }

  // Transmit.

  #transmit(): void {
    const transport = this.#live;
    if (!transport.running || this.#sendBlocked) return;
    const queue = transport.queues[NET_QUEUE.transmit]!;
    let share = TURN_FRAMES;
    queue.disableNotify();
    while (this.#flush(queue)) {
      // The driver fills what has left the ring while the next batch leaves.
      transport.publish(NET_QUEUE.transmit);
      if (share <= 0) {
        this.#again.arm(0);
        break;
      }
      this.#turnBytes = 0;
      const gathered = this.#gather(queue);
      share -= gathered + (this.#turnBytes >>> 16);
      if (gathered > 0) continue;
      if (!queue.enableNotify()) break;
      queue.disableNotify();
    }
    transport.publish(NET_QUEUE.transmit);
  }

  /** Copies chains into the batch until it or the ring has no more. @returns how many chains were looked at */
  #gather(queue: VirtQueue): number {
    const batch = this.#sending;
    const chain = this.#chain;
    let seen = 0;
    // After a restore, what was outstanding goes out before anything new is taken from the ring.
    const replaying = queue.toReplay > 0;
    while (seen < BATCH_FRAMES && (!replaying || queue.toReplay > 0) && queue.pop(chain)) {
      seen++;
      const length = chain.readableBytes;
      if (length < VNET_HEADER_BYTES + MIN_FRAME_BYTES || length > MAX_ENTRY_BYTES) {
        this.#live.complain(`frame of ${length} bytes with its header dropped`);
        queue.push(chain.head, 0);
        continue;
      }
      const direct =
        length >= DIRECT_BYTES &&
        chain.readable <= DIRECT_SEGMENTS &&
        this.#backend.sendsGuestMemory === true;
      const copied = direct ? DIRECT_COPIED : length;
      const tails = batch.tailCount;
      const at = direct && tails + chain.readable > BATCH_TAILS ? -1 : batch.add(copied);
      if (at < 0) {
        queue.unpop(chain.head);
        break;
      }
      this.#turnBytes += length;
      chain.read(this.#memory, 0, batch.bytes, at, copied);
      if (direct) chain.tailInto(batch, copied);
      if (this.#sendable(batch, at, length)) {
        this.#sendHeads[batch.count - 1] = chain.head;
        continue;
      }
      this.#live.complain('frame with an offload that was not agreed on dropped');
      batch.count--;
      batch.used = at;
      batch.tailCount = tails;
      queue.push(chain.head, 0);
    }
    return seen;
  }

  /** Hands the batch to the backend. @returns whether it took all of it */
  #flush(queue: VirtQueue): boolean {
    const batch = this.#sending;
    if (this.#sendNext < batch.count) {
      const passes = batch.tailCount === 0 || this.#backend.sendsGuestMemory === true;
      const taken = passes ? this.#backend.send(batch, this.#sendNext) : this.#sendCopies(batch);
      for (let i = 0; i < taken; i++) queue.push(this.#sendHeads[this.#sendNext++]!, 0);
      if (this.#sendNext < batch.count) {
        this.#sendBlocked = true;
        return false;
      }
    }
    batch.clear();
    this.#sendNext = 0;
    return true;
  }

  /** As the backend's send from `#sendNext` on, one copy after the other. */
  #sendCopies(batch: FrameBatch): number {
    const copy = this.#copy;
    let index = this.#sendNext;
    for (; index < batch.count; index++) {
      const first = index === 0 ? 0 : batch.tailEnds[index - 1]!;
      const end = batch.tailEnds[index]!;
      const offset = batch.offsets[index]!;
      let length = batch.lengths[index]!;
      copy.clear();
      for (let i = 0; i < length; i++) copy.bytes[i] = batch.bytes[offset + i]!;
      for (let k = first; k < end; k++) {
        const segment = batch.tailLengths[k]!;
        this.#memory.read(batch.tailAddresses[k]!, copy.bytes, length, segment);
        length += segment;
      }
      copy.add(length);
      if (this.#backend.send(copy, 0) === 0) break;
    }
    return index - this.#sendNext;
  }

  /** Checks and cleans the header of a frame to send (5.1.6.2.2): it goes to the host's kernel. */
  #sendable(batch: FrameBatch, at: number, length: number): boolean {
    const { bytes: all, view } = batch;
    const flags = all[at + NET_HEADER.flags]! & HEADER_FLAG.needsCsum;
    all[at + NET_HEADER.flags] = flags;
    view.setUint16(at + NET_HEADER.numBuffers, 0, true);
    const gso = all[at + NET_HEADER.gsoType]!;
    if (flags !== 0) {
      const sum =
        view.getUint16(at + NET_HEADER.csumStart, true) +
        view.getUint16(at + NET_HEADER.csumOffset, true);
      if (sum + 2 > length - VNET_HEADER_BYTES) return false;
      if ((this.#sendOffloads & NET_OFFLOAD.csum) === 0) return false;
    }
    if (gso === GSO.none) return true;
    if (view.getUint16(at + NET_HEADER.gsoSize, true) === 0) return false;
    const kind = gso & ~GSO.ecn;
    const need = kind === GSO.tcp4 ? NET_OFFLOAD.tso4 : kind === GSO.tcp6 ? NET_OFFLOAD.tso6 : 0;
    const ecnOk = (gso & GSO.ecn) === 0 || (this.#sendOffloads & NET_OFFLOAD.tsoEcn) !== 0;
    return flags !== 0 && ecnOk && (this.#sendOffloads & need) !== 0;
  }

  // Receive.

  /** Puts frames into the driver's buffers, and reads on at the backend while there are some. */
  #deliver(): void {
    const transport = this.#live;
    if (!transport.running) return;
    const queue = transport.queues[NET_QUEUE.receive]!;
    const batch = this.#received;
    queue.disableNotify();
    while (this.#receiveNext < batch.count) {
      if (this.#deliverOne(queue, batch, this.#receiveNext)) {
        this.#receiveNext++;
        continue;
      }
      // What is there is not enough: the frame waits for more.
      if (!transport.running || !queue.enableNotify(this.#looked)) break;
      queue.disableNotify();
    }
    transport.publish(NET_QUEUE.receive);
    const more =
      transport.running &&
      this.#receiveNext === batch.count &&
      (queue.hasAvailable() || queue.enableNotify());
    this.#backend.setReceiveEnabled(more);
  }

  /** @returns false when there are too few buffers; nothing has been used then */
  #deliverOne(queue: VirtQueue, batch: FrameBatch, index: number): boolean {
    const at = batch.offsets[index]!;
    const length = batch.lengths[index]!;
    const { bytes: all } = batch;
    const frame = at + VNET_HEADER_BYTES;
    if (!this.filter.wants(all, frame, length - VNET_HEADER_BYTES)) return true;
    if (!this.#receivableHeader(all, at)) return true;
    const chain = this.#chain;
    let chains = 0;
    let done = 0;
    let countLow = 0;
    let countHigh = 0;
    while (done < length) {
      if (chains === this.#fillHeads.length || !queue.pop(chain)) {
        this.#putBack(queue, chains);
        return false;
      }
      if (chains === 0) {
        const room = chain.writableBytes;
        if (room < VNET_HEADER_BYTES) {
          this.#live.fail(`receive buffer of ${room} bytes`);
          return false;
        }
        if (room < length && !this.#mergeable) {
          queue.unpop(chain.head);
          this.#live.complain(`frame of ${length} bytes dropped, the buffer has ${room}`);
          return true;
        }
        countLow = chain.writableAt(NET_HEADER.numBuffers);
        countHigh = chain.writableAt(NET_HEADER.numBuffers + 1);
      }
      const written = chain.write(this.#memory, 0, all, at + done, length - done);
      this.#fillHeads[chains] = chain.head;
      this.#fillLengths[chains] = written;
      chains++;
      done += written;
    }
    this.#memory.writeU8(countLow, chains & 0xff);
    this.#memory.writeU8(countHigh, chains >> 8);
    for (let i = 0; i < chains; i++) queue.push(this.#fillHeads[i]!, this.#fillLengths[i]!);
    return true;
  }

  #putBack(queue: VirtQueue, chains: number): void {
    for (let i = chains - 1; i >= 0; i--) queue.unpop(this.#fillHeads[i]!);
    this.#looked = chains;
  }

  /** A frame may still have an offload that was just turned off; then it is lost, as on a wire. */
  #receivableHeader(all: Uint8Array, at: number): boolean {
    if ((this.#receiveOffloads & NET_OFFLOAD.csum) !== 0) return true;
    if ((all[at + NET_HEADER.flags]! & HEADER_FLAG.needsCsum) !== 0) return false;
    all[at + NET_HEADER.flags] = 0;
    return all[at + NET_HEADER.gsoType] === GSO.none;
  }

  // Control queue and configuration.

  /** For the control queue: the driver chooses among the offloads agreed on (5.1.6.5.6.1). */
  setReceiveOffloads(features: FeatureSet): boolean {
    const agreed = offloadsOf(this.#live.features, RECEIVE_FEATURES);
    const wanted = offloadsOf(features, RECEIVE_FEATURES);
    const known = featureSet(...RECEIVE_FEATURES.map(([, feature]) => feature));
    const foreign = (features.low & ~known.low) !== 0 || features.high !== 0;
    if (foreign || (wanted & ~agreed) !== 0) return false;
    this.#receiveOffloads = wanted;
    this.#backend.setReceiveOffloads(wanted);
    return true;
  }

  /** For the control queue: a new address. */
  setMac(address: Uint8Array): void {
    this.config.set(address, NET_CONFIG.mac);
  }

  /** For the control queue: the announcement has been made. */
  announced(): void {
    this.config[NET_CONFIG.status]! &= ~NET_STATUS.announce;
  }

  #control(): void {
    const transport = this.#live;
    if (!transport.running) return;
    const queue = transport.queues[NET_QUEUE.control]!;
    let share = TURN_COMMANDS;
    do {
      while (share > 0 && queue.pop(this.#chain)) {
        share--;
        if (!this.#command(this.#chain)) share = 0;
      }
    } while (share > 0 && queue.enableNotify());
    transport.publish(NET_QUEUE.control);
    if (share === 0 && transport.running) this.#again.arm(0);
  }

  /** Performs one command. @returns false when it broke the rules */
  #command(chain: Chain): boolean {
    const transport = this.#live;
    if (chain.readableBytes < 2 || chain.writableBytes < 1) {
      transport.fail('control command without header or answer');
      return false;
    }
    const done = handleControl(this.#memory, chain, transport.features, this);
    const last = chain.count - 1;
    const answer = chain.addresses[last]! + chain.lengths[last]! - 1;
    this.#memory.writeU8(answer, done ? CONTROL_OK : CONTROL_ERROR);
    transport.queues[NET_QUEUE.control]!.push(chain.head, 1);
    return true;
  }

  get #live(): VirtioTransport {
    assert(this.#transport !== undefined, 'the device has a transport');
    return this.#transport;
  }

  #useFeatures(): void {
    const { features } = this.#live;
    this.#mergeable = hasFeature(features, NET_FEATURE.mergeable);
    this.#sendOffloads = offloadsOf(features, SEND_FEATURES);
    this.filter.byVlan = hasFeature(features, NET_FEATURE.ctrlVlan);
  }

  #setLink(up: boolean): void {
    const status = this.config[NET_CONFIG.status]!;
    if (((status & NET_STATUS.linkUp) !== 0) === up) return;
    this.config[NET_CONFIG.status] = status ^ NET_STATUS.linkUp;
    this.#live.configChanged();
  }

  #forgetFrames(): void {
    this.#sending.clear();
    this.#sendNext = 0;
    this.#sendBlocked = false;
    this.#received.clear();
    this.#receiveNext = 0;
  }

  #powerOn(): void {
    this.#forgetFrames();
    this.config.set(this.#permanentMac, NET_CONFIG.mac);
    this.#configView.setUint16(NET_CONFIG.mtu, this.#mtu, true);
    this.config[NET_CONFIG.status] = this.#backend.linkUp ? NET_STATUS.linkUp : 0;
    this.filter.reset();
    this.#mergeable = false;
    this.#sendOffloads = 0;
    this.#receiveOffloads = 0;
  }
}

function offloadsOf(features: FeatureSet, pairs: readonly (readonly [number, number])[]): number {
  return pairs.reduce(
    (bits, [bit, feature]) => bits | (hasFeature(features, feature) ? bit : 0),
    0,
  );
}
