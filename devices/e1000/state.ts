/**
 * Saved state of the 82540EM chip: registers, EEPROM, PHY, pending interrupt delays, and what the rings keep between
 * turns. Arrays of words are stored as their little-endian bytes.
 */
import { MAX_ENTRY_BYTES, MAX_FRAME_BYTES } from '../../src/net/backend.ts';
import {
  array,
  bool,
  bytes,
  type Fields,
  f64,
  fixedBytes,
  struct,
  u8,
  u16,
  u32,
} from '../../src/snapshot/codec.ts';
import { EEPROM_WORDS, type MicrowireState } from './eeprom.ts';
import { DEADLINES } from './interrupts.ts';
import { PHY_REGISTERS } from './phy.ts';
import { SAVED_REGISTER_BYTES } from './registers.ts';
import { PACKET_WORDS } from './transmit.ts';

/** The state of one chip. */
export interface E1000State {
  /** RegisterFile.save. */
  registers: Uint8Array;
  /** Level of the interrupt line. */
  asserted: boolean;
  /** Nanoseconds left of RDTR, RADV, TIDV, TADV and the ITR interval, -1 where none runs. */
  delays: number[];
  /** 16-bit words. */
  eeprom: Uint8Array;
  eerd: number;
  microwire: MicrowireState;
  /** 16-bit words. */
  phy: Uint8Array;
  /** Nanoseconds until auto-negotiation completes, -1 when it does not run. */
  negotiationLeftNs: number;
  cable: boolean;
  /** Whether the link was lost since the driver last looked. */
  linkLost: boolean;
  /** IOADDR. */
  ioAddress: number;
  /** 32-bit words: both offload contexts. */
  contexts: Uint8Array;
  /** 32-bit words: record of the transmit packet whose end is not in the ring yet. */
  packet: Uint8Array;
  packetBytes: Uint8Array;
  segmentsSent: number;
  /** Whether packets between TDH and TDT wait for another turn, or for the network. */
  sendWanted: boolean;
  /** A received frame (with its virtio header) that waits for descriptors. */
  heldFrame: Uint8Array;
}

/** How each field of {@link E1000State} is stored. */
export const e1000Fields: Fields<E1000State> = {
  registers: fixedBytes(SAVED_REGISTER_BYTES),
  asserted: bool,
  delays: array(f64, DEADLINES),
  eeprom: fixedBytes(2 * EEPROM_WORDS),
  eerd: u32,
  microwire: struct<MicrowireState>({
    pins: u8,
    writeEnabled: bool,
    output: bool,
    bits: u8,
    command: u16,
    dataBits: u8,
    data: u16,
    address: u8,
  }),
  phy: fixedBytes(2 * PHY_REGISTERS),
  negotiationLeftNs: f64,
  cable: bool,
  linkLost: bool,
  ioAddress: u32,
  contexts: fixedBytes(32),
  packet: fixedBytes(4 * PACKET_WORDS),
  packetBytes: bytes(MAX_FRAME_BYTES),
  segmentsSent: u32,
  sendWanted: bool,
  heldFrame: bytes(MAX_ENTRY_BYTES),
};

/** The bytes of an array of words, copied. */
export function bytesOf(words: Uint16Array | Uint32Array): Uint8Array {
  const size = words.BYTES_PER_ELEMENT;
  const out = new Uint8Array(words.byteLength);
  const view = new DataView(out.buffer);
  for (let i = 0; i < words.length; i++) {
    if (size === 2) view.setUint16(2 * i, words[i]!, true);
    else view.setUint32(4 * i, words[i]!, true);
  }
  return out;
}

/** The inverse of {@link bytesOf} for 16-bit words. */
export function words16(from: Uint8Array): Uint16Array {
  const view = new DataView(from.buffer, from.byteOffset, from.byteLength);
  return Uint16Array.from({ length: from.length / 2 }, (_, i) => view.getUint16(2 * i, true));
}

/** The inverse of {@link bytesOf} for 32-bit words. */
export function words32(from: Uint8Array): Uint32Array {
  const view = new DataView(from.buffer, from.byteOffset, from.byteLength);
  return Uint32Array.from({ length: from.length / 4 }, (_, i) => view.getUint32(4 * i, true));
}

/** Whether `value` can be what is left of a delay: -1 or a time of at most a minute. */
export function isDelay(value: number): boolean {
  return value === -1 || (value >= 0 && value <= 60e9);
}
