/**
 * The virtio block device (VIRTIO 1.2, 5.2) in front of a {@link BlockBackend}: one queue, reads, writes, flush,
 * discard, write zeroes, identification, a write cache that the driver may turn off.
 *
 * Every request that reaches the backend holds a tag until its completion. Requests popped and not completed are
 * part of no saved list here: the queue saves their heads, and a restored device pops and submits them again, in their
 * order. Completions that arrive while paused are kept and told to the guest on resume; a state captured in
 * between has them as outstanding, which is true, as repeating them is harmless.
 */
import { assert } from '../../src/base/assert.ts';
import type { Clock, Timer } from '../../src/base/clock.ts';
import {
  BLOCK_OP,
  type BlockBackend,
  type BlockHandler,
  type BlockOp,
  ERRNO,
} from '../../src/block/backend.ts';
import type { AccessSize } from '../../src/bus/io-bus.ts';
import type { GuestMemory } from '../../src/memory/guest-memory.ts';
import { bool, type Codec, struct, u32, u53 } from '../../src/snapshot/codec.ts';
import { requireState } from '../../src/snapshot/schema.ts';
import { Chain } from '../../src/virtio/chain.ts';
import type { VirtioDevice, VirtioTransport } from '../../src/virtio/device.ts';
import { type FeatureSet, featureSet, hasFeature, VIRTIO_TYPE } from '../../src/virtio/spec.ts';
import {
  BLK_CONFIG,
  BLK_FEATURE,
  BLK_REQUEST,
  BLK_STATUS,
  HEADER_BYTES,
  ID_BYTES,
  RANGE_BYTES,
  RANGE_UNMAP,
  SECTOR_BYTES,
} from './spec.ts';
import { TagTable } from './tag-table.ts';

/** What a {@link VirtioBlk} is made of. */
export interface VirtioBlkOptions {
  readonly id: string;
  readonly memory: GuestMemory;
  readonly backend: BlockBackend;
  readonly clock: Clock;
  /** What the guest reads as the disk's serial number; up to 20 bytes of ASCII. */
  readonly serial?: string;
  /** Entries of the queue. Default 256. */
  readonly queueSize?: number;
}

/** The device's own saved state. */
export interface VirtioBlkState {
  capacitySectors: number;
  blockSizeBytes: number;
  /** The write cache mode that the driver chose. */
  writeback: boolean;
}

const stateCodec: Codec<VirtioBlkState> = struct<VirtioBlkState>({
  capacitySectors: u53,
  blockSizeBytes: u32,
  writeback: bool,
});

/** Most sectors of one discard or write zeroes: 2 GiB, so that one request keeps a disk busy for a bounded time. */
const MAX_RANGE_SECTORS = 2 ** 22;
/** How long a driver's reset waits for requests under way before the backend is told to give up. */
const RESET_PATIENCE_NS = 5e9;

export class VirtioBlk implements VirtioDevice<VirtioBlkState>, BlockHandler {
  readonly id: string;
  readonly kind = 'virtio-blk';
  readonly version = 1;
  readonly codec: Codec<VirtioBlkState> = stateCodec;
  readonly type = VIRTIO_TYPE.block;
  /** Mass storage, SCSI: what firmware looks for. */
  readonly classCode = 0x010000;
  readonly queueSizes: readonly number[];
  readonly features: FeatureSet;
  readonly config: Uint8Array = new Uint8Array(BLK_CONFIG.bytes);
  readonly #memory: GuestMemory;
  readonly #backend: BlockBackend;
  readonly #serial: Uint8Array;
  readonly #capacitySectors: number;
  readonly #tags: TagTable;
  readonly #chain = new Chain();
  readonly #header = new Uint8Array(HEADER_BYTES);
  readonly #headerView = new DataView(this.#header.buffer);
  /** Runs the queue again when one turn's share of work is used up. */
  readonly #again: Timer;
  /** While the driver waits for its reset: when the backend is to give up. */
  readonly #giveUp: Timer;
  readonly #clock: Clock;
  #transport: VirtioTransport | undefined;
  #paused = true;
  #unsubmitted = false;
  #stopping = false;
  #writeThrough = true;

  constructor(options: VirtioBlkOptions) {
    const { id, memory, backend, clock, serial = '', queueSize = 256 } = options;
    this.id = id;
    this.#memory = memory;
    this.#backend = backend;
    this.#capacitySectors = Math.floor(backend.info.sizeBytes / SECTOR_BYTES);
    this.queueSizes = [queueSize];
    const changing = [BLK_FEATURE.discard, BLK_FEATURE.writeZeroes];
    this.features = featureSet(
      BLK_FEATURE.segMax,
      BLK_FEATURE.blockSize,
      BLK_FEATURE.topology,
      BLK_FEATURE.flush,
      BLK_FEATURE.configWce,
      ...(backend.info.readonly ? [BLK_FEATURE.readonly] : changing),
    );
    this.#serial = new Uint8Array(ID_BYTES);
    for (let i = 0; i < Math.min(serial.length, ID_BYTES); i++) {
      this.#serial[i] = serial.charCodeAt(i) & 0x7f;
    }
    this.#tags = new TagTable(Math.min(backend.info.maxRequests, queueSize));
    this.#again = clock.timer(() => this.#process());
    this.#giveUp = clock.timer(() => this.#abandon());
    this.#clock = clock;
    this.#fillConfig();
    backend.setHandler(this);
  }

  attach(transport: VirtioTransport): void {
    this.#transport = transport;
  }

  configWrite(offset: number, _size: AccessSize, value: number): void {
    // Only the cache mode is writable, and only with the feature (5.2.5.1).
    const { features } = this.#live;
    if (offset !== BLK_CONFIG.writeback || !hasFeature(features, BLK_FEATURE.configWce)) return;
    this.config[BLK_CONFIG.writeback] = value & 1;
    this.#chooseCache();
  }

  start(): void {
    this.#chooseCache();
  }

  notify(): void {
    this.#process();
  }

  /**
   * Reads under way may still write to the driver's buffers, and its writes may still reach the disk, in whatever order with
   * later ones: the reset is done when they are (2.4.1). What does not end by itself is given up after a while.
   */
  stop(): boolean {
    this.#again.cancel();
    this.#tags.forgetAll(this.#memory.dirty);
    this.#resetCache();
    this.#stopping = this.#tags.busy > 0;
    if (this.#stopping) this.#giveUp.arm(this.#clock.nowNs() + RESET_PATIENCE_NS);
    else this.#giveUp.cancel();
    return !this.#stopping;
  }

  /** Whoever resets a machine whose guest goes on waits for its disks first. */
  reset(): void {
    this.stop();
    this.#stopping = false;
    this.#giveUp.cancel();
  }

  pause(): void {
    this.#paused = true;
    this.#again.cancel();
    this.#giveUp.cancel();
  }

  resume(): void {
    this.#paused = false;
    if (this.#stopping) this.#giveUp.arm(this.#clock.nowNs() + RESET_PATIENCE_NS);
    this.#tags.takeHeld((tag, result) => this.#finish(tag, result));
    this.batchEnd();
  }

  save(): VirtioBlkState {
    assert(this.#paused, 'state is taken while paused');
    return {
      capacitySectors: this.#capacitySectors,
      blockSizeBytes: this.#backend.info.blockSizeBytes,
      writeback: this.config[BLK_CONFIG.writeback] === 1,
    };
  }

  check(state: VirtioBlkState): void {
    requireState(state.capacitySectors === this.#capacitySectors, `${this.id}: disk size`);
    requireState(
      state.blockSizeBytes === this.#backend.info.blockSizeBytes,
      `${this.id}: block size`,
    );
  }

  load(state: VirtioBlkState): void {
    this.#tags.forgetAll(this.#memory.dirty);
    this.#stopping = false;
    this.#giveUp.cancel();
    this.config[BLK_CONFIG.writeback] = state.writeback ? 1 : 0;
    this.#chooseCache();
  }

  // What the backend tells.

  complete(tag: number, result: number): void {
    if (this.#tags.isForgotten(tag)) {
      // Nobody waits, but memory was written all the same.
      this.#tags.markSegments(tag, this.#memory.dirty);
      this.#tags.free(tag);
    } else if (this.#paused) this.#tags.hold(tag, result);
    else this.#finish(tag, result);
  }

  batchEnd(): void {
    if (this.#paused) return;
    if (this.#stopping && this.#tags.busy === 0) {
      this.#stopping = false;
      this.#giveUp.cancel();
      this.#live.stopped();
    }
    this.#live.publish(0);
    if (this.#live.running) this.#process();
    this.#submit();
  }

  /** The driver has waited long enough; asked again, as a decorator may hold more back for the backend. */
  #abandon(): void {
    if (!this.#stopping) return;
    this.#giveUp.arm(this.#clock.nowNs() + RESET_PATIENCE_NS);
    this.#backend.abandon?.();
  }

  // Requests.

  get #live(): VirtioTransport {
    assert(this.#transport !== undefined, 'the device has a transport');
    return this.#transport;
  }

  /** Takes requests while there are tags for them, then submits what reached the backend as one batch. */
  #process(): void {
    const transport = this.#live;
    if (!transport.running) return;
    const queue = transport.queues[0]!;
    // Requests that need no tag (faulty ones) must not keep the thread for ever.
    let share = 2 * queue.size;
    do {
      queue.disableNotify();
      while (this.#tags.available && share > 0 && queue.pop(this.#chain)) {
        share--;
        // Behind a request that breaks the rules nothing is looked at before a reset.
        if (!this.#begin(this.#chain)) share = 0;
      }
    } while (this.#tags.available && share > 0 && queue.enableNotify());
    this.#submit();
    transport.publish(0);
    if (share === 0 && transport.running) this.#again.arm(0);
  }

  #submit(): void {
    if (!this.#unsubmitted) return;
    this.#unsubmitted = false;
    this.#backend.submit();
  }

  /** @returns false when the request broke the rules */
  #begin(chain: Chain): boolean {
    if (chain.readableBytes < HEADER_BYTES || chain.writableBytes < 1) {
      this.#live.fail('request without header or status');
      return false;
    }
    chain.read(this.#memory, 0, this.#header, 0, HEADER_BYTES);
    const type = this.#headerView.getUint32(0, true);
    const sector =
      this.#headerView.getUint32(12, true) * 0x1_0000_0000 + this.#headerView.getUint32(8, true);
    switch (type) {
      case BLK_REQUEST.in:
        this.#transfer(chain, BLOCK_OP.read, sector, chain.writableBytes - 1);
        break;
      case BLK_REQUEST.out:
        this.#transfer(chain, BLOCK_OP.write, sector, chain.readableBytes - HEADER_BYTES);
        break;
      case BLK_REQUEST.flush:
        this.#queue(chain, BLOCK_OP.flush, 0, 0, 0, 0);
        break;
      case BLK_REQUEST.getId:
        this.#identify(chain);
        break;
      case BLK_REQUEST.discard:
      case BLK_REQUEST.writeZeroes:
        this.#range(chain, type);
        break;
      default:
        this.#answer(chain, BLK_STATUS.unsupported, 0);
    }
    return true;
  }

  #transfer(chain: Chain, op: BlockOp, sector: number, bytes: number): void {
    const { info } = this.#backend;
    const end = sector + bytes / SECTOR_BYTES;
    const inside = end <= this.#capacitySectors && bytes % SECTOR_BYTES === 0;
    if (!inside || bytes > info.maxTransferBytes || (op === BLOCK_OP.write && info.readonly)) {
      this.#answer(chain, BLK_STATUS.ioError, 0);
      return;
    }
    if (bytes === 0) {
      this.#answer(chain, BLK_STATUS.ok, 0);
      return;
    }
    // The data is what follows the header, or what precedes the status; segments are cut in place.
    let first = op === BLOCK_OP.read ? chain.readable : 0;
    let end1 = op === BLOCK_OP.read ? chain.count : chain.readable;
    const status = this.#statusAddress(chain);
    if (op === BLOCK_OP.write) {
      let skip = HEADER_BYTES;
      while (skip >= chain.lengths[first]!) skip -= chain.lengths[first++]!;
      chain.addresses[first]! += skip;
      chain.lengths[first]! -= skip;
    } else if (--chain.lengths[end1 - 1]! === 0) {
      end1--;
    }
    if (end1 - first > info.maxSegments) {
      this.#answerAt(chain.head, status, BLK_STATUS.ioError, 0);
      return;
    }
    this.#queueAt(chain, status, op, sector * SECTOR_BYTES, bytes, first, end1 - first);
  }

  /** Discard and write zeroes: one range each, as announced (5.2.6.1). */
  #range(chain: Chain, type: number): void {
    const discard = type === BLK_REQUEST.discard;
    const feature = discard ? BLK_FEATURE.discard : BLK_FEATURE.writeZeroes;
    if (!hasFeature(this.features, feature)) {
      this.#answer(chain, BLK_STATUS.unsupported, 0);
      return;
    }
    if (chain.readableBytes !== HEADER_BYTES + RANGE_BYTES) {
      this.#answer(chain, BLK_STATUS.ioError, 0);
      return;
    }
    chain.read(this.#memory, HEADER_BYTES, this.#header, 0, RANGE_BYTES);
    const view = this.#headerView;
    const sector = view.getUint32(4, true) * 0x1_0000_0000 + view.getUint32(0, true);
    const count = view.getUint32(8, true);
    const flags = view.getUint32(12, true);
    if ((flags & ~(discard ? 0 : RANGE_UNMAP)) !== 0) {
      this.#answer(chain, BLK_STATUS.unsupported, 0);
    } else if (count > MAX_RANGE_SECTORS || sector + count > this.#capacitySectors) {
      this.#answer(chain, BLK_STATUS.ioError, 0);
    } else if (count === 0) {
      this.#answer(chain, BLK_STATUS.ok, 0);
    } else {
      const zeroes = (flags & RANGE_UNMAP) === 0 ? BLOCK_OP.writeZeroes : BLOCK_OP.writeZeroesUnmap;
      const op = discard ? BLOCK_OP.discard : zeroes;
      this.#queue(chain, op, sector * SECTOR_BYTES, count * SECTOR_BYTES, 0, 0);
    }
  }

  #identify(chain: Chain): void {
    const room = Math.min(ID_BYTES, chain.writableBytes - 1);
    chain.write(this.#memory, 0, this.#serial, 0, room);
    this.#answer(chain, BLK_STATUS.ok, room);
  }

  #queue(chain: Chain, op: BlockOp, at: number, bytes: number, first: number, n: number): void {
    this.#queueAt(chain, this.#statusAddress(chain), op, at, bytes, first, n);
  }

  #queueAt(
    chain: Chain,
    status: number,
    op: BlockOp,
    offsetBytes: number,
    bytes: number,
    first: number,
    count: number,
  ): void {
    const tag = this.#tags.take(chain.head, status, op);
    if (op === BLOCK_OP.read) {
      this.#tags.keepSegments(tag, chain.addresses, chain.lengths, first, count);
    }
    this.#unsubmitted = true;
    const { addresses, lengths } = chain;
    this.#backend.queue(tag, op, offsetBytes, bytes, addresses, lengths, first, count);
  }

  /** A request is done at the backend. */
  #finish(tag: number, result: number): void {
    const tags = this.#tags;
    const op = tags.opOf(tag);
    if (result === ERRNO.OK && this.#writeThrough && changesDisk(op)) {
      // The tag is free at the backend: it goes on as the flush that makes the write durable.
      tags.becomeFlush(tag);
      this.#unsubmitted = true;
      this.#backend.queue(
        tag,
        BLOCK_OP.flush,
        0,
        0,
        this.#chain.addresses,
        this.#chain.lengths,
        0,
        0,
      );
      return;
    }
    const read = op === BLOCK_OP.read;
    const written = read ? tags.markSegments(tag, this.#memory.dirty) : 0;
    const status = statusOf(result);
    const head = tags.headOf(tag);
    const address = tags.statusOf(tag);
    tags.free(tag);
    this.#answerAt(head, address, status, status === BLK_STATUS.ok ? written : 0);
  }

  /** The last byte of the writable part. */
  #statusAddress(chain: Chain): number {
    const last = chain.count - 1;
    return chain.addresses[last]! + chain.lengths[last]! - 1;
  }

  #answer(chain: Chain, status: number, written: number): void {
    this.#answerAt(chain.head, this.#statusAddress(chain), status, written);
  }

  #answerAt(head: number, statusAddress: number, status: number, written: number): void {
    this.#memory.writeU8(statusAddress, status);
    this.#live.queues[0]!.push(head, written + 1);
  }

  // Configuration.

  #fillConfig(): void {
    const { info } = this.#backend;
    const view = new DataView(this.config.buffer);
    view.setUint32(BLK_CONFIG.capacity, this.#capacitySectors % 0x1_0000_0000, true);
    view.setUint32(
      BLK_CONFIG.capacity + 4,
      Math.floor(this.#capacitySectors / 0x1_0000_0000),
      true,
    );
    // Two descriptors of a chain are header and status.
    const segments = Math.min(this.queueSizes[0]! - 2, info.maxSegments);
    view.setUint32(BLK_CONFIG.segMax, segments, true);
    view.setUint32(BLK_CONFIG.blockSize, info.blockSizeBytes, true);
    const perPhysical = info.physicalBlockSizeBytes / info.blockSizeBytes;
    view.setUint8(BLK_CONFIG.physicalBlockExp, Math.round(Math.log2(perPhysical)));
    view.setUint16(BLK_CONFIG.minIoSize, perPhysical, true);
    view.setUint16(BLK_CONFIG.numQueues, 1, true);
    if (!info.readonly) {
      const sectorsPerBlock = info.blockSizeBytes / SECTOR_BYTES;
      view.setUint32(BLK_CONFIG.maxDiscardSectors, MAX_RANGE_SECTORS, true);
      view.setUint32(BLK_CONFIG.maxDiscardSeg, 1, true);
      view.setUint32(BLK_CONFIG.discardAlignment, sectorsPerBlock, true);
      view.setUint32(BLK_CONFIG.maxWriteZeroesSectors, MAX_RANGE_SECTORS, true);
      view.setUint32(BLK_CONFIG.maxWriteZeroesSeg, 1, true);
      view.setUint8(BLK_CONFIG.writeZeroesMayUnmap, 1);
    }
    this.#resetCache();
  }

  #resetCache(): void {
    this.config[BLK_CONFIG.writeback] = this.#backend.info.volatileCache ? 1 : 0;
    this.#chooseCache();
  }

  /** Without a flush command the driver relies on every write being durable (5.2.6.2). */
  #chooseCache(): void {
    const features = this.#transport?.features ?? NO_FEATURES;
    const writeback = hasFeature(features, BLK_FEATURE.configWce)
      ? this.config[BLK_CONFIG.writeback] === 1
      : hasFeature(features, BLK_FEATURE.flush);
    this.#writeThrough = this.#backend.info.volatileCache && !writeback;
  }
}

const NO_FEATURES = featureSet();

function changesDisk(op: BlockOp): boolean {
  return op === BLOCK_OP.write || op === BLOCK_OP.writeZeroes || op === BLOCK_OP.writeZeroesUnmap;
}

function statusOf(result: number): number {
  if (result === ERRNO.OK) return BLK_STATUS.ok;
  return result === ERRNO.EOPNOTSUPP ? BLK_STATUS.unsupported : BLK_STATUS.ioError;
}
