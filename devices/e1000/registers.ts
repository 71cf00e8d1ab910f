/**
 * The register file of the 82540EM: one word per register, which bits software can write, values after reset, and
 * the old 82542 addresses that alias newer ones. Behaviour on access belongs to e1000.ts; the units read and write
 * `words` directly.
 */
import { RAH, RECEIVE_ADDRESSES, REG, REGISTER_SPACE, STAT } from './spec.ts';

const WORDS = REGISTER_SPACE / 4;

interface Range {
  readonly first: number;
  readonly words: number;
  /** Bits that software can set by a plain write. */
  readonly mask: number;
  /** Bits that only the chip sets (they are valid in a saved state). */
  readonly chip?: number;
  readonly reset?: number;
}

/** Every register that keeps a value, in the order in which saved state lists them. */
const LAYOUT: readonly Range[] = [
  // After reset: full duplex, 1000 Mb/s; SLU is the driver's to set (13.4.1).
  { first: REG.ctrl, words: 1, mask: 0xfbfffbff, reset: 0x201 },
  { first: REG.status, words: 1, mask: 0, chip: 0x3c3 },
  { first: REG.ctrlExt, words: 1, mask: 0xffffdfff },
  { first: REG.fla, words: 1, mask: 0xffffffff },
  { first: REG.mdic, words: 1, mask: 0xffffffff, reset: 0x10000000 },
  { first: REG.fcal, words: 1, mask: 0xffffffff },
  { first: REG.fcah, words: 1, mask: 0xffff },
  { first: REG.fct, words: 1, mask: 0xffff },
  { first: REG.vet, words: 1, mask: 0xffff, reset: 0x8100 },
  { first: REG.icr, words: 1, mask: 0, chip: 0x1ffff },
  { first: REG.itr, words: 1, mask: 0xffff },
  { first: REG.ims, words: 1, mask: 0, chip: 0x1ffff },
  { first: REG.rctl, words: 1, mask: 0x07ffffff },
  { first: REG.fcttv, words: 1, mask: 0xffff },
  { first: REG.txcw, words: 1, mask: 0xffffffff },
  { first: REG.tctl, words: 1, mask: 0x0fffffff },
  { first: REG.tipg, words: 1, mask: 0x3fffffff },
  { first: REG.aifs, words: 1, mask: 0xffff },
  { first: REG.ledctl, words: 1, mask: 0xffffffff, reset: 0x07068302 },
  // 48 KiB of the 64 KiB packet buffer for receive, the rest for transmit (13.4.12).
  { first: REG.pba, words: 1, mask: 0xffff, chip: 0xffffffff, reset: 0x00100030 },
  { first: REG.fcrtl, words: 1, mask: 0x8000fff8 },
  { first: REG.fcrth, words: 1, mask: 0xfff8 },
  { first: REG.rdfh, words: 9, mask: 0x1fff },
  { first: REG.rdbal, words: 1, mask: 0xfffffff0 },
  { first: REG.rdbah, words: 1, mask: 0xffffffff },
  { first: REG.rdlen, words: 1, mask: 0xfff80 },
  { first: REG.rdh, words: 1, mask: 0xffff },
  { first: REG.rdt, words: 1, mask: 0xffff },
  { first: REG.rdtr, words: 1, mask: 0xffff },
  { first: REG.rxdctl, words: 1, mask: 0x013f3f3f, reset: 0x00010000 },
  { first: REG.radv, words: 1, mask: 0xffff },
  { first: REG.rsrpd, words: 1, mask: 0xfff },
  { first: REG.txdmac, words: 1, mask: 1 },
  { first: REG.tdfh, words: 9, mask: 0x1fff },
  { first: REG.tdbal, words: 1, mask: 0xfffffff0 },
  { first: REG.tdbah, words: 1, mask: 0xffffffff },
  { first: REG.tdlen, words: 1, mask: 0xfff80 },
  { first: REG.tdh, words: 1, mask: 0xffff },
  { first: REG.tdt, words: 1, mask: 0xffff },
  { first: REG.tidv, words: 1, mask: 0xffff },
  { first: REG.txdctl, words: 1, mask: 0xff3f3f3f },
  { first: REG.tadv, words: 1, mask: 0xffff },
  { first: REG.tspmt, words: 1, mask: 0xffffffff, reset: 0x01000400 },
  { first: STAT.first, words: 64, mask: 0, chip: 0xffffffff },
  { first: REG.rxcsum, words: 1, mask: 0x7ff },
  { first: REG.mta, words: 128, mask: 0xffffffff },
  { first: REG.ral, words: 2 * RECEIVE_ADDRESSES, mask: 0xffffffff },
  { first: REG.vfta, words: 128, mask: 0xffffffff },
  { first: REG.wuc, words: 1, mask: 0xffffffff },
  { first: REG.wufc, words: 1, mask: 0xffffffff },
  { first: REG.wus, words: 1, mask: 0xffffffff },
  { first: REG.manc, words: 1, mask: 0xffffffff },
  { first: REG.ipav, words: 1, mask: 0x1000f },
];

/** [old address, register, words]: addresses of the 82542 (8254x SDM, 13.4, "alternate addresses"). */
const ALIASES: readonly (readonly [number, number, number])[] = [
  [0x0004, REG.ctrl, 1],
  [0x0040, REG.ral, 2 * RECEIVE_ADDRESSES],
  [0x0108, REG.rdtr, 1],
  [0x0110, REG.rdbal, 3],
  [0x0120, REG.rdh, 1],
  [0x0128, REG.rdt, 1],
  [0x0160, REG.fcrtl, 1],
  [0x0168, REG.fcrth, 1],
  [0x0200, REG.mta, 128],
  [0x0420, REG.tdbal, 3],
  [0x0430, REG.tdh, 1],
  [0x0438, REG.tdt, 1],
  [0x0440, REG.tidv, 1],
  [0x0600, REG.vfta, 128],
];

interface Tables {
  readonly mask: Uint32Array;
  readonly valid: Uint32Array;
  readonly reset: Uint32Array;
  readonly canonical: Uint16Array;
  /** Word index of every stored register, in layout order. */
  readonly stored: Uint16Array;
}

function buildTables(): Tables {
  const mask = new Uint32Array(WORDS);
  const valid = new Uint32Array(WORDS);
  const reset = new Uint32Array(WORDS);
  const canonical = new Uint16Array(WORDS);
  const stored: number[] = [];
  for (let word = 0; word < WORDS; word++) canonical[word] = word * 4;
  for (const range of LAYOUT) {
    for (let i = 0; i < range.words; i++) {
      const word = range.first / 4 + i;
      stored.push(word);
      mask[word] = range.mask;
      valid[word] = (range.mask | (range.chip ?? 0)) >>> 0;
      reset[word] = range.reset ?? 0;
    }
  }
  for (let i = 0; i < RECEIVE_ADDRESSES; i++) {
    const word = REG.rah / 4 + 2 * i;
    mask[word] = (RAH.av | RAH.asMask | 0xffff) >>> 0;
    valid[word] = mask[word];
  }
  for (const [from, to, words] of ALIASES) {
    for (let i = 0; i < words; i++) canonical[from / 4 + i] = to + 4 * i;
  }
  return { mask, valid, reset, canonical, stored: Uint16Array.from(stored) };
}

const TABLES = buildTables();

/** Bytes of {@link RegisterFile.save}. */
export const SAVED_REGISTER_BYTES = 4 * TABLES.stored.length;

/** The words of all registers. */
export class RegisterFile {
  /** Indexed by offset / 4; registers that do not exist stay 0. */
  readonly words: Uint32Array<ArrayBuffer> = new Uint32Array(WORDS);

  constructor() {
    this.reset();
  }

  /** Values after power-on and CTRL.RST (receive address 0 is the EEPROM's business). */
  reset(): void {
    this.words.set(TABLES.reset);
  }

  /** The register that answers at `offset` (a multiple of 4 below REGISTER_SPACE): itself, or what it aliases. */
  canonical(offset: number): number {
    return TABLES.canonical[offset >>> 2]!;
  }

  /** A write without side effect: only the bits that software can write change. */
  writePlain(register: number, value: number): void {
    const word = register >>> 2;
    const mask = TABLES.mask[word]!;
    this.words[word] = (this.words[word]! & ~mask) | (value & mask);
  }

  /** The stored registers, little-endian, in layout order. */
  save(): Uint8Array {
    const out = new Uint8Array(SAVED_REGISTER_BYTES);
    const view = new DataView(out.buffer);
    TABLES.stored.forEach((word, i) => {
      view.setUint32(4 * i, this.words[word]!, true);
    });
    return out;
  }

  /** Takes over what {@link save} gave, once {@link areRegisters} said that it can be. */
  load(saved: Uint8Array): void {
    const view = new DataView(saved.buffer, saved.byteOffset, saved.byteLength);
    TABLES.stored.forEach((word, i) => {
      this.words[word] = view.getUint32(4 * i, true);
    });
  }
}

/** Whether no register in `saved` holds a bit that it cannot. */
export function areRegisters(saved: Uint8Array): boolean {
  const view = new DataView(saved.buffer, saved.byteOffset, saved.byteLength);
  return TABLES.stored.every(
    (word, i) => (view.getUint32(4 * i, true) & ~TABLES.valid[word]!) === 0,
  );
}
