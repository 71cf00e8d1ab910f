/**
 * Which IP addresses a guest's network cards answer for, learnt from what the guest sends: ARP (RFC 826), neighbour and router
 * advertisements (RFC 4861), and the source of IPv4 packets that it made itself. After a takeover they are announced (announce.ts).
 *
 * Learnt at the standby, from the frames in the logs of the tap, and not in the device: the primary's data path and the devices' state
 * know nothing of it. The price: of a card that has been silent since it was protected nothing is known, and a RARP is all
 * that announces it.
 *
 * The source of a packet may be somebody for whom the guest only forwards, whom nobody must look for here. Forwarding counts the time to
 * live down, so only packets with one that systems begin with are the guest's own. For IPv6 the guest's word is needed in any
 * case: an advertisement that does not say "router" as the guest's own do would take a router away from its neighbours.
 */
import { VNET_HEADER_BYTES } from '../../net/backend.ts';
import { LOGGED, TapLogReader } from '../wire/tap-log.ts';

/** Addresses kept for a card; the one not heard of for longest makes room. */
export const ADDRESSES_MAX = 16;

const ETHERNET_BYTES = 14;
const VLAN_BYTES = 4;
const ARP_BYTES = 28;
const IP4_BYTES = 20;
const IP6_BYTES = 40;
const ETHERTYPE = { ip4: 0x0800, arp: 0x0806, vlan: 0x8100, ip6: 0x86dd } as const;
const ICMP6 = 58;
/** What systems send packets with (RFC 1700 and common practice). */
const FIRST_TTL = [64, 128, 255];
const ROUTER_ADVERTISEMENT = 134;
const NEIGHBOUR_ADVERTISEMENT = 136;

/** One address of a guest. */
export interface GuestAddress {
  /** Six bytes: a card's own address, or of somebody behind it. */
  readonly mac: Uint8Array;
  /** Priority and VLAN as in the frame's tag, or undefined. */
  readonly vlan: number | undefined;
  /** Four or sixteen bytes. */
  readonly ip: Uint8Array;
  /** For IPv6: whether it is a router's. An advertisement that says otherwise would take a router away from its neighbours. */
  readonly router: boolean;
}

/** See the module's head. */
export class GuestAddresses {
  readonly #reader = new TapLogReader();
  /** By device number of the tap; the latest heard last. */
  readonly #cards = new Map<number, Map<string, GuestAddress>>();
  /** The last packet's card, sender and source: most packets are like the one before. */
  readonly #last = new Uint8Array(10);
  #lastDevice = -1;

  /** Takes in a log that has been checked. */
  learnLog(log: Uint8Array): void {
    const reader = this.#reader.reset(log, 0, log.length);
    while (reader.nextOutput()) {
      if (reader.kind !== LOGGED.frame) continue;
      const { device, dataStart, dataEnd } = reader;
      this.learn(device, log, dataStart + VNET_HEADER_BYTES, dataEnd);
    }
  }

  /** Looks at one frame that the card with number `device` has sent. */
  learn(device: number, bytes: Uint8Array, start: number, end: number): void {
    if (end - start < ETHERNET_BYTES + IP4_BYTES) return;
    let at = start + ETHERNET_BYTES;
    let type = word(bytes, at - 2);
    let vlan: number | undefined;
    if (type === ETHERTYPE.vlan && end - at > VLAN_BYTES) {
      vlan = word(bytes, at);
      type = word(bytes, at + 2);
      at += VLAN_BYTES;
    }
    if (type === ETHERTYPE.ip4) this.#ip4(device, bytes, start, at, end, vlan);
    else if (type === ETHERTYPE.arp) this.#arp(device, bytes, start, at, end, vlan);
    else if (type === ETHERTYPE.ip6) this.#ip6(device, bytes, start, at, end, vlan);
  }

  /** What is known of a card. */
  of(device: number): GuestAddress[] {
    return [...(this.#cards.get(device)?.values() ?? [])];
  }

  #ip4(
    device: number,
    b: Uint8Array,
    start: number,
    at: number,
    end: number,
    vlan: number | undefined,
  ): void {
    const source = at + 12;
    if (end - at < IP4_BYTES || b[at]! >>> 4 !== 4 || !FIRST_TTL.includes(b[at + 8]!)) return;
    if (vlan === undefined && device === this.#lastDevice && this.#isLast(b, start, source)) return;
    if (b[source] === 0 || b[source] === 127 || b[source]! >= 224) return;
    this.#add(device, b, start, vlan, source, 4, false);
    if (vlan !== undefined) return;
    this.#lastDevice = device;
    this.#last.set(b.subarray(start + 6, start + 12), 0);
    this.#last.set(b.subarray(source, source + 4), 6);
  }

  #isLast(b: Uint8Array, start: number, source: number): boolean {
    const last = this.#last;
    for (let i = 0; i < 6; i++) if (b[start + 6 + i] !== last[i]) return false;
    for (let i = 0; i < 4; i++) if (b[source + i] !== last[6 + i]) return false;
    return true;
  }

  #arp(
    device: number,
    b: Uint8Array,
    start: number,
    at: number,
    end: number,
    vlan: number | undefined,
  ): void {
    if (end - at < ARP_BYTES) return;
    const ethernet = word(b, at) === 1 && word(b, at + 2) === ETHERTYPE.ip4;
    if (!ethernet || word(b, at + 4) !== 0x0604) return;
    // A probe (RFC 5227) has no sender yet; who answers for somebody else does not use its own address.
    const nobody = b[at + 14] === 0 || b[at + 14]! >= 224;
    if (nobody || !same(b, start + 6, at + 8, 6)) return;
    this.#add(device, b, start, vlan, at + 14, 4, false);
  }

  #ip6(
    device: number,
    b: Uint8Array,
    start: number,
    at: number,
    end: number,
    vlan: number | undefined,
  ): void {
    const icmp = at + IP6_BYTES;
    // Only what has not been forwarded: a hop limit of 255 (RFC 4861, 7.1.2).
    if (end - icmp < 16 || b[at + 6] !== ICMP6 || b[at + 7] !== 255) return;
    if (b[icmp] === ROUTER_ADVERTISEMENT) {
      if (b[at + 8] === 0xfe) this.#add(device, b, start, vlan, at + 8, 16, true);
    } else if (b[icmp] === NEIGHBOUR_ADVERTISEMENT && end - icmp >= 24) {
      // The source is the target where a node speaks for itself, or another address of the same node.
      const target = icmp + 8;
      if (b[target] === 0xff) return;
      const option = icmp + 24;
      const named = end - option >= 8 && b[option] === 2 && b[option + 1] === 1;
      if (named && !same(b, start + 6, option + 2, 6)) return;
      this.#add(device, b, start, vlan, target, 16, (b[icmp + 4]! & 0x80) !== 0);
    }
  }

  #add(
    device: number,
    b: Uint8Array,
    start: number,
    vlan: number | undefined,
    at: number,
    length: number,
    router: boolean,
  ): void {
    if ((b[start + 6]! & 1) !== 0) return;
    this.#lastDevice = -1;
    let card = this.#cards.get(device);
    if (card === undefined) {
      card = new Map();
      this.#cards.set(device, card);
    }
    const mac = b.slice(start + 6, start + 12);
    const ip = b.slice(at, at + length);
    const key = `${vlan === undefined ? '' : vlan & 0xfff} ${ip.join('.')}`;
    // To the end: an address belongs to who spoke of it last.
    card.delete(key);
    card.set(key, { mac, vlan, ip, router });
    if (card.size > ADDRESSES_MAX) card.delete(card.keys().next().value!);
  }
}

function word(b: Uint8Array, at: number): number {
  return (b[at]! << 8) | b[at + 1]!;
}

function same(b: Uint8Array, one: number, other: number, length: number): boolean {
  for (let i = 0; i < length; i++) if (b[one + i] !== b[other + i]) return false;
  return true;
}
