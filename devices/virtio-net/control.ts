/**
 * Commands of the virtio-net control queue (VIRTIO 1.2, 5.1.6.5): class, command, data; the answer is one byte, which
 * the caller writes.
 */
import type { GuestMemory } from '../../src/memory/guest-memory.ts';
import type { Chain } from '../../src/virtio/chain.ts';
import { type FeatureSet, hasFeature } from '../../src/virtio/spec.ts';
import { MAC_BYTES, MAC_TABLE_ENTRIES, type ReceiveFilter } from './receive-filter.ts';
import { CONTROL, CONTROL_MAC, CONTROL_RX, CONTROL_VLAN, NET_FEATURE } from './spec.ts';

/** What commands act on. */
export interface ControlTarget {
  readonly filter: ReceiveFilter;
  setMac(address: Uint8Array): void;
  announced(): void;
  /** @returns false when they were not agreed on */
  setReceiveOffloads(features: FeatureSet): boolean;
}

/** Performs the command in `chain`. @returns whether it was one, and could be done */
export function handleControl(
  memory: GuestMemory,
  chain: Chain,
  features: FeatureSet,
  target: ControlTarget,
): boolean {
  const head = take(memory, chain, 0, 2);
  const group = head[0]!;
  const command = head[1]!;
  switch (group) {
    case CONTROL.rx:
      return receiveMode(memory, chain, features, target, command);
    case CONTROL.mac:
      return command === CONTROL_MAC.addrSet
        ? setMac(memory, chain, features, target)
        : command === CONTROL_MAC.tableSet && setTables(memory, chain, features, target);
    case CONTROL.vlan: {
      const data = take(memory, chain, 2, 2);
      if (!hasFeature(features, NET_FEATURE.ctrlVlan) || data.length < 2) return false;
      const id = data[0]! | (data[1]! << 8);
      if (id > 0xfff || (command !== CONTROL_VLAN.add && command !== CONTROL_VLAN.remove)) {
        return false;
      }
      target.filter.setVlan(id, command === CONTROL_VLAN.add);
      return true;
    }
    case CONTROL.announce:
      if (!hasFeature(features, NET_FEATURE.guestAnnounce) || command !== 0) return false;
      target.announced();
      return true;
    case CONTROL.guestOffloads: {
      const data = take(memory, chain, 2, 8);
      const agreed = hasFeature(features, NET_FEATURE.ctrlGuestOffloads);
      if (!agreed || command !== 0 || data.length < 8) return false;
      return target.setReceiveOffloads({ low: u32(data, 0), high: u32(data, 4) });
    }
    default:
      return false;
  }
}

function receiveMode(
  memory: GuestMemory,
  chain: Chain,
  features: FeatureSet,
  target: ControlTarget,
  command: number,
): boolean {
  const extra = command > CONTROL_RX.allMulti;
  const need = extra ? NET_FEATURE.ctrlRxExtra : NET_FEATURE.ctrlRx;
  const data = take(memory, chain, 2, 1);
  if (!hasFeature(features, need) || command > CONTROL_RX.noBroadcast || data.length < 1) {
    return false;
  }
  target.filter.setMode(command, data[0] !== 0);
  return true;
}

function setMac(
  memory: GuestMemory,
  chain: Chain,
  features: FeatureSet,
  target: ControlTarget,
): boolean {
  const data = take(memory, chain, 2, MAC_BYTES);
  if (!hasFeature(features, NET_FEATURE.ctrlMacAddr) || data.length < MAC_BYTES) return false;
  target.setMac(data);
  return true;
}

/** Two lists, each a 32-bit count and the addresses. Of an overlong one only the fact is kept. */
function setTables(
  memory: GuestMemory,
  chain: Chain,
  features: FeatureSet,
  target: ControlTarget,
): boolean {
  if (!hasFeature(features, NET_FEATURE.ctrlRx)) return false;
  const most = (MAC_TABLE_ENTRIES + 1) * MAC_BYTES;
  let at = 2;
  const lists: Uint8Array[] = [];
  for (let i = 0; i < 2; i++) {
    const head = take(memory, chain, at, 4);
    if (head.length < 4) return false;
    const bytes = u32(head, 0) * MAC_BYTES;
    at += 4 + bytes;
    if (at > chain.readableBytes) return false;
    lists.push(take(memory, chain, at - bytes, Math.min(bytes, most)));
  }
  target.filter.setTables(lists[0]!, lists[1]!);
  return true;
}

/** Up to `length` bytes of the command from `skip` on. */
function take(memory: GuestMemory, chain: Chain, skip: number, length: number): Uint8Array {
  const out = new Uint8Array(length);
  return out.subarray(0, chain.read(memory, skip, out, 0, length));
}

function u32(data: Uint8Array, at: number): number {
  return (data[at]! | (data[at + 1]! << 8) | (data[at + 2]! << 16) | (data[at + 3]! << 24)) >>> 0;
}
