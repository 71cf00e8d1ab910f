/**
 * Which received frames a virtio-net driver wants: its address, the tables it set, and the modes beside them
 * (VIRTIO 1.2, 5.1.6.5.1 to 5.1.6.5.3). Looks at bytes in place and allocates nothing per frame.
 */
import { bool, bytes, type Codec, fixedBytes, struct, u8 } from '../../src/snapshot/codec.ts';
import { requireState } from '../../src/snapshot/schema.ts';
import { CONTROL_RX } from './spec.ts';

/** Bytes of an Ethernet address. */
export const MAC_BYTES = 6;
/** Entries of each table; a driver that sets more gets all frames of that kind. */
export const MAC_TABLE_ENTRIES = 64;
const VLAN_BYTES = 4096 / 8;

/** The saved state of a filter. */
export interface ReceiveFilterState {
  /** Bit n is mode n of {@link CONTROL_RX}. */
  modes: number;
  unicast: Uint8Array;
  multicast: Uint8Array;
  unicastOverflow: boolean;
  multicastOverflow: boolean;
  /** Bit per VLAN. */
  vlans: Uint8Array;
}

/** Stores a {@link ReceiveFilterState}. */
export const receiveFilterCodec: Codec<ReceiveFilterState> = struct<ReceiveFilterState>({
  modes: u8,
  unicast: bytes(MAC_TABLE_ENTRIES * MAC_BYTES),
  multicast: bytes(MAC_TABLE_ENTRIES * MAC_BYTES),
  unicastOverflow: bool,
  multicastOverflow: bool,
  vlans: fixedBytes(VLAN_BYTES),
});

export class ReceiveFilter {
  /** Whether the driver filters by VLAN at all. */
  byVlan = false;
  readonly #mac: Uint8Array;
  #modes = 1 << CONTROL_RX.promisc;
  #unicast = new Uint8Array(0);
  #multicast = new Uint8Array(0);
  #unicastOverflow = false;
  #multicastOverflow = false;
  readonly #vlans = new Uint8Array(VLAN_BYTES);

  /** @param mac the device's address; looked at for every frame, so it may change */
  constructor(mac: Uint8Array) {
    this.#mac = mac;
  }

  /** Everything is wanted until the driver says otherwise: those that cannot say rely on it. */
  reset(): void {
    this.byVlan = false;
    this.#modes = 1 << CONTROL_RX.promisc;
    this.#unicast = new Uint8Array(0);
    this.#multicast = new Uint8Array(0);
    this.#unicastOverflow = false;
    this.#multicastOverflow = false;
    this.#vlans.fill(0);
  }

  /** Turns mode `mode` (one of {@link CONTROL_RX}) on or off. */
  setMode(mode: number, on: boolean): void {
    if (on) this.#modes |= 1 << mode;
    else this.#modes &= ~(1 << mode);
  }

  /** Replaces both tables; lists longer than a table mean "all". */
  setTables(unicast: Uint8Array, multicast: Uint8Array): void {
    const most = MAC_TABLE_ENTRIES * MAC_BYTES;
    this.#unicastOverflow = unicast.length > most;
    this.#multicastOverflow = multicast.length > most;
    this.#unicast = this.#unicastOverflow ? new Uint8Array(0) : unicast.slice();
    this.#multicast = this.#multicastOverflow ? new Uint8Array(0) : multicast.slice();
  }

  setVlan(id: number, on: boolean): void {
    if (on) this.#vlans[id >> 3]! |= 1 << (id & 7);
    else this.#vlans[id >> 3]! &= ~(1 << (id & 7));
  }

  /** Whether the frame of `length` bytes at `frames[at]` is wanted. */
  wants(frames: Uint8Array, at: number, length: number): boolean {
    if (length < 14) return false;
    if (this.byVlan && frames[at + 12] === 0x81 && frames[at + 13] === 0 && length >= 18) {
      const id = ((frames[at + 14]! & 0x0f) << 8) | frames[at + 15]!;
      // Id 0 is a priority tag, not a VLAN.
      if (id !== 0 && (this.#vlans[id >> 3]! & (1 << (id & 7))) === 0) return false;
    }
    if (this.#on(CONTROL_RX.promisc)) return true;
    if ((frames[at]! & 1) === 0) {
      if (this.#on(CONTROL_RX.noUni)) return false;
      if (this.#on(CONTROL_RX.allUni) || this.#unicastOverflow) return true;
      return matches(this.#mac, 0, frames, at) || contains(this.#unicast, frames, at);
    }
    if (isBroadcast(frames, at)) return !this.#on(CONTROL_RX.noBroadcast);
    if (this.#on(CONTROL_RX.noMulti)) return false;
    if (this.#on(CONTROL_RX.allMulti) || this.#multicastOverflow) return true;
    return contains(this.#multicast, frames, at);
  }

  save(): ReceiveFilterState {
    return {
      modes: this.#modes,
      unicast: this.#unicast.slice(),
      multicast: this.#multicast.slice(),
      unicastOverflow: this.#unicastOverflow,
      multicastOverflow: this.#multicastOverflow,
      vlans: this.#vlans.slice(),
    };
  }

  /** Throws unless `state` is possible. @throws VmmError `STATE_INVALID` */
  check(state: ReceiveFilterState): void {
    requireState(state.modes < 1 << 6, 'receive modes');
    const whole = (table: Uint8Array) => table.length % MAC_BYTES === 0;
    requireState(whole(state.unicast) && whole(state.multicast), 'address tables');
  }

  load(state: ReceiveFilterState): void {
    this.#modes = state.modes;
    this.#unicast = state.unicast.slice();
    this.#multicast = state.multicast.slice();
    this.#unicastOverflow = state.unicastOverflow;
    this.#multicastOverflow = state.multicastOverflow;
    this.#vlans.set(state.vlans);
  }

  #on(mode: number): boolean {
    return (this.#modes & (1 << mode)) !== 0;
  }
}

function isBroadcast(frames: Uint8Array, at: number): boolean {
  for (let i = 0; i < MAC_BYTES; i++) if (frames[at + i] !== 0xff) return false;
  return true;
}

function matches(table: Uint8Array, entry: number, frames: Uint8Array, at: number): boolean {
  for (let i = 0; i < MAC_BYTES; i++) if (table[entry + i] !== frames[at + i]) return false;
  return true;
}

function contains(table: Uint8Array, frames: Uint8Array, at: number): boolean {
  for (let entry = 0; entry < table.length; entry += MAC_BYTES) {
    if (matches(table, entry, frames, at)) return true;
  }
  return false;
}
