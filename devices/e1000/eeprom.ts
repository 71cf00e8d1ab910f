/**
 * The serial EEPROM of the 82540EM: 64 words, read by EERD or by bit-banging the Microwire bus through EECD
 * (8254x SDM, 5.3-5.6, 13.4.3, 13.4.4). Writing, erasing and the write enable of the 93C46 part work; what is written
 * lasts as long as the saved state, not beyond. Left out: busy time (the part is ready at once) and parts of 256 words.
 */
import { EECD, EERD, PCI_ID } from './spec.ts';

/** Words of the part. */
export const EEPROM_WORDS = 64;
/** What all words add up to (5.6.35). */
const CHECKSUM = 0xbaba;
const CHECKSUM_WORD = 0x3f;
/** Start bit, two bits of opcode, six of address. */
const COMMAND_BITS = 9;
const OP = { special: 0, write: 1, read: 2, erase: 3 } as const;

/** Where the Microwire interface stands between two clock edges; plain data, part of the saved state. */
export interface MicrowireState {
  /** The bits of EECD that software drives. */
  pins: number;
  writeEnabled: boolean;
  /** Level of the part's data output. */
  output: boolean;
  /** Bits shifted in since the start bit, 0 while waiting for it. */
  bits: number;
  /** What they were. */
  command: number;
  /** The bits of `data` still to be shifted (out when reading, in when writing). */
  dataBits: number;
  data: number;
  address: number;
}

function idle(): MicrowireState {
  return {
    pins: 0,
    writeEnabled: false,
    output: true,
    bits: 0,
    command: 0,
    dataBits: 0,
    data: 0,
    address: 0,
  };
}

/** The words of a fresh part for `mac` (6 bytes), checksum included (5.6). */
export function eepromImage(mac: Uint8Array): Uint16Array<ArrayBuffer> {
  const words = new Uint16Array(EEPROM_WORDS).fill(0xffff);
  for (let i = 0; i < 3; i++) words[i] = mac[2 * i]! | (mac[2 * i + 1]! << 8);
  words.fill(0, 0x03, 0x10);
  // Initialization control 1: valid signature, load vendor, device and subsystem ids (5.6.8).
  words[0x0a] = 0x4003;
  words[0x0b] = PCI_ID.device;
  words[0x0c] = PCI_ID.vendor;
  words[0x0d] = PCI_ID.device;
  words[0x0e] = PCI_ID.vendor;
  // Initialization control 2: advertise symmetric and asymmetric pause (5.6.12).
  words[0x0f] = 0x3000;
  // Initialization control 3: no wake-up on power-on (5.6.18).
  words[0x24] = 0;
  sealEeprom(words);
  return words;
}

/** Sets the checksum word so that all words add up to 0xBABA. */
export function sealEeprom(words: Uint16Array): void {
  let sum = 0;
  for (let i = 0; i < CHECKSUM_WORD; i++) sum += words[i]!;
  words[CHECKSUM_WORD] = CHECKSUM - sum;
}

export class Eeprom {
  readonly words: Uint16Array<ArrayBuffer>;
  #wire: MicrowireState = idle();
  #eerd = 0;

  /** @param words the content; taken over */
  constructor(words: Uint16Array<ArrayBuffer>) {
    this.words = words;
  }

  /** The chip's side of the interface after a reset; the part keeps its words. */
  reset(): void {
    this.#wire = idle();
    this.#eerd = 0;
  }

  /** A read of EECD: the pins, the grant that follows the request at once, and "present". */
  readEecd(): number {
    const wire = this.#wire;
    let value = wire.pins | EECD.present;
    if ((wire.pins & EECD.req) !== 0) value |= EECD.gnt;
    if (wire.output) value |= EECD.dout;
    return value;
  }

  /** A write of EECD: a change of chip select starts or ends a command, a rising clock shifts one bit. */
  writeEecd(value: number): void {
    const wire = this.#wire;
    const before = wire.pins;
    wire.pins = value & (EECD.sk | EECD.cs | EECD.di | EECD.fweMask | EECD.req);
    if ((wire.pins & EECD.cs) === 0) {
      wire.bits = 0;
      wire.command = 0;
      wire.dataBits = 0;
      wire.output = true;
      return;
    }
    const rising = (before & EECD.sk) === 0 && (wire.pins & EECD.sk) !== 0;
    if (rising) this.#clock((wire.pins & EECD.di) !== 0 ? 1 : 0);
  }

  #clock(input: number): void {
    const wire = this.#wire;
    if (wire.bits < COMMAND_BITS) {
      if (wire.bits === 0 && input === 0) return;
      wire.command = (wire.command << 1) | input;
      wire.bits++;
      if (wire.bits === COMMAND_BITS) this.#decode();
      return;
    }
    const op = (wire.command >>> 6) & 3;
    if (op === OP.read) {
      if (wire.dataBits === 0) {
        wire.address = (wire.address + 1) % EEPROM_WORDS;
        wire.data = this.words[wire.address]!;
        wire.dataBits = 16;
      }
      wire.dataBits--;
      wire.output = ((wire.data >>> wire.dataBits) & 1) !== 0;
    } else if (wire.dataBits > 0) {
      wire.data = ((wire.data << 1) | input) & 0xffff;
      wire.dataBits--;
      if (wire.dataBits === 0 && wire.writeEnabled) {
        if (op === OP.write) this.words[wire.address] = wire.data;
        else this.words.fill(wire.data);
      }
    }
  }

  #decode(): void {
    const wire = this.#wire;
    const address = wire.command & 0x3f;
    wire.address = address;
    wire.data = 0;
    wire.dataBits = 0;
    switch ((wire.command >>> 6) & 3) {
      case OP.read:
        // A zero comes out first, the word from the next edge on.
        wire.output = false;
        wire.data = this.words[address]!;
        wire.dataBits = 16;
        break;
      case OP.write:
        wire.dataBits = 16;
        break;
      case OP.erase:
        if (wire.writeEnabled) this.words[address] = 0xffff;
        break;
      default:
        // The upper two address bits choose: 11 write enable, 00 disable, 01 write all, 10 erase all.
        switch (address >>> 4) {
          case 3:
            wire.writeEnabled = true;
            break;
          case 0:
            wire.writeEnabled = false;
            break;
          case 1:
            wire.dataBits = 16;
            break;
          default:
            if (wire.writeEnabled) this.words.fill(0xffff);
        }
    }
  }

  /** A read of EERD: the last result. */
  readEerd(): number {
    return this.#eerd;
  }

  /** A write of EERD: with START, the word is there at once; beyond the part it reads all ones. */
  writeEerd(value: number): void {
    const address = (value >>> EERD.addressShift) & 0xff;
    this.#eerd = address << EERD.addressShift;
    if ((value & EERD.start) === 0) return;
    const word = address < EEPROM_WORDS ? this.words[address]! : 0xffff;
    this.#eerd = ((word << EERD.dataShift) | (address << EERD.addressShift) | EERD.done) >>> 0;
  }

  /** For saved state. */
  get eerd(): number {
    return this.#eerd;
  }

  /** A copy of the interface's state. */
  saveWire(): MicrowireState {
    return { ...this.#wire };
  }

  /** Takes over a saved state. */
  load(words: Uint16Array, wire: MicrowireState, eerd: number): void {
    this.words.set(words);
    this.#wire = { ...wire };
    this.#eerd = eerd;
  }
}
