/**
 * Reads and writes a disk for replication itself, beside the guest: a backend of its own on scratch memory, in pieces of at most
 * 256 KiB, several at a time. Operations that overlap one in flight wait for it, so that they take effect in the order
 * of the calls.
 */
import { assert } from '../../base/assert.ts';
import { VmmError } from '../../base/error.ts';
import { BLOCK_OP, type BlockBackend, type BlockOp, ERRNO } from '../../block/backend.ts';
import type { GuestMemory } from '../../memory/guest-memory.ts';

/** Largest read or write. */
export const PIECE_BYTES = 256 * 1024;
const LANES = 16;
/** Bytes of scratch memory that a {@link DiskAccess} needs, from address 0. */
export const SCRATCH_BYTES = LANES * PIECE_BYTES;

/** What the file system knows about holes; absent where nothing is known (network disks). */
export interface HoleMap {
  /** The first byte with data at or behind `offset`, or the disk's size. */
  nextData(offset: number): number;
  /** The first byte of a hole at or behind `offset`, or the disk's size. */
  nextHole(offset: number): number;
}

/** One operation in flight. */
interface Lane {
  readonly tag: number;
  busy: boolean;
  changes: boolean;
  from: number;
  to: number;
  finish: ((result: number) => void) | undefined;
}

const NO_SEGMENTS = { addresses: new Float64Array(1), lengths: new Uint32Array(1) };

/** The error of a disk operation. `code` of the VmmError: `DISK_FULL` or `DISK_IO`. */
export function diskError(what: string, name: string, result: number): VmmError {
  return result === ERRNO.ENOSPC
    ? new VmmError('DISK_FULL', `there is no room left for the disk ${name}`)
    : new VmmError('DISK_IO', `${what} ${name} failed (error ${result})`);
}

/** See the module's head. */
export class DiskAccess {
  readonly holes: HoleMap | undefined;
  readonly #backend: BlockBackend;
  readonly #scratch: GuestMemory;
  readonly #lanes: Lane[];
  readonly #addresses = new Float64Array(1);
  readonly #lengths = new Uint32Array(1);
  #waiters: (() => void)[] = [];
  #onClose: () => void = () => {};

  /**
   * @param backend a backend that is used by nobody else
   * @param scratch its memory: {@link SCRATCH_BYTES} from address 0
   */
  constructor(backend: BlockBackend, scratch: GuestMemory, holes?: HoleMap) {
    assert(scratch.totalBytes >= SCRATCH_BYTES, 'scratch memory is large enough');
    this.#backend = backend;
    this.#scratch = scratch;
    this.holes = holes;
    this.#lanes = Array.from({ length: LANES }, (_, tag) => ({
      tag,
      busy: false,
      changes: false,
      from: 0,
      to: 0,
      finish: undefined,
    }));
    backend.setHandler({
      complete: (tag, result) => {
        const lane = this.#lanes[tag]!;
        const { finish } = lane;
        lane.busy = false;
        lane.finish = undefined;
        finish?.(result);
      },
      batchEnd: () => {
        const waiters = this.#waiters;
        this.#waiters = [];
        for (const wake of waiters) wake();
      },
    });
  }

  get sizeBytes(): number {
    return this.#backend.info.sizeBytes;
  }

  get name(): string {
    return this.#backend.info.name;
  }

  /** Waits for a lane and for whatever overlaps. */
  async #lane(from: number, to: number, changes: boolean): Promise<Lane> {
    for (;;) {
      let free: Lane | undefined;
      let blocked = false;
      for (const lane of this.#lanes) {
        if (!lane.busy) free ??= lane;
        else if ((lane.changes || changes) && from < lane.to && lane.from < to) blocked = true;
      }
      if (free !== undefined && !blocked) {
        free.busy = true;
        free.changes = changes;
        free.from = from;
        free.to = to;
        return free;
      }
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
  }

  #start(lane: Lane, op: BlockOp, offset: number, length: number, data: boolean): Promise<number> {
    return new Promise((resolve) => {
      lane.finish = resolve;
      const { addresses, lengths } = data
        ? { addresses: this.#addresses, lengths: this.#lengths }
        : NO_SEGMENTS;
      this.#addresses[0] = lane.tag * PIECE_BYTES;
      this.#lengths[0] = length;
      this.#backend.queue(lane.tag, op, offset, length, addresses, lengths, 0, data ? 1 : 0);
      this.#backend.submit();
    });
  }

  /**
   * Reads `length` bytes (at most {@link PIECE_BYTES}) at `offset` and hands them to `use`, lent for the call.
   * @throws VmmError `DISK_IO`
   */
  async read(offset: number, length: number, use: (bytes: Uint8Array) => void): Promise<void> {
    const lane = await this.#lane(offset, offset + length, false);
    const result = await this.#start(lane, BLOCK_OP.read, offset, length, true);
    if (result !== ERRNO.OK) throw diskError('reading', this.name, result);
    const range = this.#scratch.rangeOf(lane.tag * PIECE_BYTES, length)!;
    const start = lane.tag * PIECE_BYTES - range.base;
    use(range.bytes.subarray(start, start + length));
  }

  /**
   * Begins a write of bytes[start, end), which are copied before this resolves; `done` says when and how it ended.
   * Resolves when the operation is on its way, so that the caller's pace is the disk's.
   */
  async write(
    offset: number,
    bytes: Uint8Array,
    start: number,
    end: number,
    done: (result: number) => void,
  ): Promise<void> {
    const lane = await this.#lane(offset, offset + end - start, true);
    this.#scratch.write(lane.tag * PIECE_BYTES, bytes, start, end - start);
    void this.#start(lane, BLOCK_OP.write, offset, end - start, true).then(done);
  }

  /** Begins a discard or write of zeroes; as {@link write}. */
  async zero(
    op: BlockOp,
    offset: number,
    length: number,
    done: (result: number) => void,
  ): Promise<void> {
    const lane = await this.#lane(offset, offset + length, true);
    void this.#start(lane, op, offset, length, false).then(done);
  }

  /** Waits for everything that was begun. */
  async idle(): Promise<void> {
    while (this.#lanes.some((lane) => lane.busy)) {
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
  }

  /** Makes everything that was begun durable. @throws VmmError `DISK_IO` */
  async flush(): Promise<void> {
    const lane = await this.#lane(0, this.sizeBytes, true);
    const result = await this.#start(lane, BLOCK_OP.flush, 0, 0, false);
    if (result !== ERRNO.OK) throw diskError('flushing', this.name, result);
  }

  /** Has `done` called behind {@link close}. */
  onClose(done: () => void): void {
    this.#onClose = done;
  }

  async close(): Promise<void> {
    await this.#backend.close();
    this.#onClose();
  }
}
