/**
 * Joins the rewind decoder to a stopped vCPU: fetches the code around RIP and the data of string outputs through the
 * guest's page tables, and gives the registers with the open OUT not yet executed.
 */
import { VmmError } from '../base/error.ts';
import { type ExitSlot, type LazySkip, REG, type SkipPoint, SLOT_WORD } from './api.ts';
import { INSTRUCTION_BYTES_MAX } from './out-decoder.ts';
import { rewindOut } from './rewind.ts';
import { type SegmentName, Sregs } from './sregs.ts';

/** Access to the guest that the rewind needs. */
export interface GuestReader {
  /** Linear to guest physical; null where not mapped. */
  translate(linear: bigint): number | null;
  /** Throws where there is no memory. */
  read(guestPhys: number, dst: Uint8Array): void;
}

const SEGMENT_OF_PREFIX: Readonly<Record<number, SegmentName>> = {
  0: 'ds',
  38: 'es',
  46: 'cs',
  54: 'ss',
  62: 'ds',
  100: 'fs',
  101: 'gs',
};

/**
 * Registers of a vCPU with an open pioOut exit, as before the OUT.
 * @throws VmmError KVM_REWIND when no instruction at RIP explains the exit
 */
export function regsBeforeOpenOut(
  slot: ExitSlot,
  regs: BigUint64Array,
  sregsBytes: Uint8Array,
  lazySkip: LazySkip,
  guest: GuestReader,
): BigUint64Array {
  const sregs = new Sregs(sregsBytes);
  const { codeBits } = sregs;
  const linearMask = sregs.isLongMode ? 0xffff_ffff_ffff_ffffn : 0xffff_ffffn;
  const rip = codeBits === 16 ? regs[REG.rip]! & 0xffffn : regs[REG.rip]!;
  const at = ((codeBits === 64 ? 0n : sregs.segmentBase('cs')) + rip) & linearMask;
  const room = rip < BigInt(INSTRUCTION_BYTES_MAX) ? Number(rip) : INSTRUCTION_BYTES_MAX;
  const out = {
    port: slot.words[SLOT_WORD.addressLo]!,
    itemBytes: slot.words[SLOT_WORD.size]!,
    count: slot.words[SLOT_WORD.count]!,
    data: slot.data,
  };
  const rewound = rewindOut({
    out,
    regs,
    codeBits,
    before: readBackwards(guest, at, room, linearMask),
    after: readForwards(guest, at, INSTRUCTION_BYTES_MAX, linearMask),
    skip: skipPoint(sregs, lazySkip),
    readString(prefix, offset, bytes) {
      const segment = SEGMENT_OF_PREFIX[prefix]!;
      const flat = codeBits === 64 && segment !== 'fs' && segment !== 'gs';
      const linear = (flat ? 0n : sregs.segmentBase(segment)) + offset;
      const found = readForwards(guest, linear & linearMask, bytes, linearMask);
      return found.length === bytes ? found : undefined;
    },
  });
  if (rewound === undefined) {
    throw new VmmError(
      'KVM_REWIND',
      `no instruction at RIP 0x${regs[REG.rip]!.toString(16)} explains the open output to port 0x${out.port.toString(16)}`,
      { hint: 'Complete the exit before capturing (pauseAll instead of pauseAllOpen).' },
    );
  }
  return rewound.regs;
}

function skipPoint(sregs: Sregs, lazySkip: LazySkip): SkipPoint {
  if (sregs.isLongMode) return lazySkip.long;
  return sregs.isReal ? lazySkip.real : lazySkip.protected32;
}

/** Up to `most` bytes from `linear` on; fewer where memory ends. */
function readForwards(guest: GuestReader, linear: bigint, most: number, mask: bigint): Uint8Array {
  const bytes = new Uint8Array(most);
  for (let i = 0; i < most; i++) {
    if (!readByte(guest, (linear + BigInt(i)) & mask, bytes, i)) return bytes.subarray(0, i);
  }
  return bytes;
}

/** Up to `most` bytes that end right before `linear`. */
function readBackwards(guest: GuestReader, linear: bigint, most: number, mask: bigint): Uint8Array {
  const bytes = new Uint8Array(most);
  for (let i = 1; i <= most; i++) {
    if (!readByte(guest, (linear - BigInt(i)) & mask, bytes, most - i)) {
      return bytes.subarray(most - i + 1);
    }
  }
  return bytes;
}

/** A byte at a time: this runs once per capture, and any byte may be the first of another page. */
function readByte(guest: GuestReader, linear: bigint, out: Uint8Array, index: number): boolean {
  const phys = guest.translate(linear);
  if (phys === null) return false;
  try {
    guest.read(phys, out.subarray(index, index + 1));
  } catch {
    return false;
  }
  return true;
}
