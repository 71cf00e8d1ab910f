/**
 * What a disk looks like to a device: numbered requests on guest memory, submitted in batches, completed in
 * batches. A device (virtio-blk) talks only to {@link BlockBackend}; decorators (the event-tap, a policy for
 * full disks) implement it over another one. Pure interface: no I/O here.
 *
 * Rules
 * - **Tags.** The caller numbers requests itself, with integers in [0, info.maxRequests); a tag is free again when its
 *   completion is delivered (inside {@link BlockHandler.complete}, so the handler may reuse it at once). Queueing
 *   a tag that is in flight is a programmer error (assert).
 * - **Segments** are guest-physical ranges, in struct-of-arrays form. `queue` copies addresses and lengths; the
 *   arrays are the caller's again when it returns. The *memory* they name belongs to the request until its
 *   completion: the device must not complete the descriptor before.
 * - **Order.** Requests in flight together may be done in any order. A flush covers the writes whose
 *   completion was delivered before the flush was queued (as a disk's write cache; VIRTIO 1.2, 5.2.6.2).
 *   Callers that need order between overlapping writes wait for the completion.
 * - **Nothing happens before `submit`**; one `submit` per batch of `queue` calls is one system call.
 * - **Errors** of the disk or the guest (out of range, memory that is not RAM) arrive as a completion with a positive
 *   {@link ERRNO} code, never as a throw. Completions never arrive inside `queue` or `submit`; they do inside
 *   {@link BlockBackend.poll} and from the event loop.
 * - **Dirty memory.** Whoever owns the device marks the pages of a read as written when its completion is
 *   delivered (not earlier: an uncompleted read is issued again after a takeover).
 */

/** What a request does. `discard` and both `writeZeroes` have no segments. */
export const BLOCK_OP = {
  read: 0,
  write: 1,
  /** Makes everything completed so far durable. Offset and length are 0. */
  flush: 2,
  /** The content becomes undefined (in practice zero); a hint, may do nothing. */
  discard: 3,
  /** The content becomes zero, the space stays reserved. */
  writeZeroes: 4,
  /** The content becomes zero, the space may be given back. */
  writeZeroesUnmap: 5,
} as const;

/** One of {@link BLOCK_OP}. */
export type BlockOp = (typeof BLOCK_OP)[keyof typeof BLOCK_OP];

/** The codes of a completion: 0, or Linux's errno values. Others can occur; treat them as `EIO`. */
export const ERRNO = {
  OK: 0,
  EIO: 5,
  /** The backend is gone (file vanished, server away for good). */
  ENXIO: 6,
  /** A segment is not guest RAM. */
  EFAULT: 14,
  /** Outside the disk, or not a multiple of what the disk can address. */
  EINVAL: 22,
  ENOSPC: 28,
  /** A write to a read-only disk. */
  EROFS: 30,
  EOPNOTSUPP: 95,
  ETIMEDOUT: 110,
  ECANCELED: 125,
  /** The lease was over when the batch was submitted; nothing was written. */
  EKEYEXPIRED: 127,
} as const;

/** What does not change while a backend is open. */
export interface BlockInfo {
  /** For messages: the path or URL. */
  readonly name: string;
  /** Capacity in bytes, a multiple of `blockSizeBytes`. */
  readonly sizeBytes: number;
  /** Smallest addressable unit (512 or 4096); offsets and lengths are multiples of it. */
  readonly blockSizeBytes: number;
  /** The unit that is written without read-modify-write; a multiple of `blockSizeBytes`. */
  readonly physicalBlockSizeBytes: number;
  readonly readonly: boolean;
  /** Whether completed writes may sit in a volatile cache, so that flush matters. */
  readonly volatileCache: boolean;
  /** Whether `discard` does anything. */
  readonly discard: boolean;
  /** Whether `writeZeroes` is done without sending the zeroes. It is accepted in any case. */
  readonly writeZeroes: boolean;
  /** Tags are in [0, maxRequests). */
  readonly maxRequests: number;
  /** Most segments of one request. */
  readonly maxSegments: number;
  /** Most bytes of one read or write. */
  readonly maxTransferBytes: number;
}

/** Receives completions. Called on the thread that owns the devices. */
export interface BlockHandler {
  /** One request is done. `result` is 0 or a positive {@link ERRNO}. May call `queue`. */
  complete(tag: number, result: number): void;
  /** After the last `complete` of a batch: the moment to notify the guest, and to `submit` what was queued. */
  batchEnd(): void;
}

/** A disk. */
export interface BlockBackend {
  readonly info: BlockInfo;
  /** Requests queued or submitted whose completion has not been delivered. */
  readonly inFlight: number;
  /** Sets who receives completions; must be set before the first `queue`. */
  setHandler(handler: BlockHandler): void;
  /**
   * Adds one request to the batch.
   * @param tag see the rules above
   * @param offsetBytes where on the disk
   * @param lengthBytes how much; for read and write the sum of the segments
   * @param addresses guest-physical start of each segment (integers below 2^53)
   * @param lengths bytes of each segment
   * @param first index of the request's first segment in both arrays
   * @param count how many segments it has (0 for flush, discard, writeZeroes)
   */
  queue(
    tag: number,
    op: BlockOp,
    offsetBytes: number,
    lengthBytes: number,
    addresses: Float64Array,
    lengths: Uint32Array,
    first: number,
    count: number,
  ): void;
  /** Hands everything queued to the disk. */
  submit(): void;
  /** Delivers the completions that are there now, without waiting; how many were delivered. */
  poll(): number;
  /** Calls `done` once, when nothing is in flight: at once if that is so now. The caller stops queueing first. */
  drain(done: () => void): void;
  /**
   * Gives up what may never end by itself: requests in flight that wait for a server that is away or silent, or for room on a
   * full disk, complete soon with ECANCELED. None of them touches guest memory after its completion; a write among them
   * may have been done or not. What the host's kernel is doing stays in flight. Absent where nothing can be given up.
   */
  abandon?(): void;
  /**
   * From now on writes, flushes and discards submitted after this instant of CLOCK_BOOTTIME complete with
   * EKEYEXPIRED. Infinity: no lease. Present where the check is made in the same native call as the submission.
   */
  setLeaseDeadlineNs?(deadlineNs: number): void;
  /** Waits for what is in flight, then gives back file, lock and memory. No completion is delivered afterwards. */
  close(): Promise<void>;
}
