/**
 * Tells the network where a guest's cards are now: after a takeover the same Ethernet address answers behind another port.
 *
 * - A RARP request from a card's address makes every switch on the way learn it. Always sent: it needs to know nothing.
 * - A driver that has agreed to VIRTIO_NET_F_GUEST_ANNOUNCE is asked to announce itself (VIRTIO 1.2, 5.1.6.5.4): it knows all its addresses.
 * - For all others the host announces the addresses that it has learnt (guest-addresses.ts): an ARP announcement (RFC 5227, 3) or an
 *   unsolicited neighbour advertisement (RFC 4861, 7.2.6) from each, which teaches switches the path of every station behind the card,
 *   and neighbours the address if they had forgotten it.
 *
 * Repeated with growing gaps, as such frames may be lost and a switch may not forward yet.
 */
import { FrameBatch, MAX_ENTRY_BYTES, type NetBackend } from '../../net/backend.ts';
import type { GuestAddress } from './guest-addresses.ts';

const ETHERTYPE = { arp: 0x0806, vlan: 0x8100, rarp: 0x8035, ip6: 0x86dd } as const;
/** The smallest frame on Ethernet, without its checksum. */
const FRAME_BYTES = 60;
const VLAN_BYTES = 4;
/** Milliseconds after the takeover. */
const TIMES_MS = [0, 50, 200, 500, 1000, 2000];
const ICMP6 = 58;
const ALL_NODES = Uint8Array.of(0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC = Uint8Array.of(0x33, 0x33, 0, 0, 0, 1);
const BROADCAST = new Uint8Array(6).fill(0xff);
/** IPv6 header, neighbour advertisement, option with the link-layer address. */
const ADVERTISEMENT_BYTES = 24 + 8;

/** A card to announce. */
export interface AnnouncedCard {
  readonly backend: NetBackend;
  readonly mac: Uint8Array;
  readonly addresses: readonly GuestAddress[];
  /** Asks the guest to announce itself. @returns whether its driver has agreed to */
  askGuest(): boolean;
}

/** A RARP request ("who am I") from and for `mac` (RFC 903). */
export function rarpFrame(mac: Uint8Array): Uint8Array {
  const frame = ethernet(BROADCAST, mac, undefined, ETHERTYPE.rarp, 28);
  arpBody(frame, frame.length - padded(28), 3, mac, new Uint8Array(4), mac);
  return frame;
}

/** What announces `address`. */
export function announcementOf(address: GuestAddress): Uint8Array {
  return address.ip.length === 4 ? arpAnnouncement(address) : neighbourAdvertisement(address);
}

/** A request for the sender's own address, to everybody. */
function arpAnnouncement({ mac, vlan, ip }: GuestAddress): Uint8Array {
  const frame = ethernet(BROADCAST, mac, vlan, ETHERTYPE.arp, 28);
  arpBody(frame, frame.length - padded(28), 1, mac, ip, new Uint8Array(6));
  return frame;
}

function neighbourAdvertisement({ mac, vlan, ip, router }: GuestAddress): Uint8Array {
  const frame = ethernet(ALL_NODES_MAC, mac, vlan, ETHERTYPE.ip6, 40 + ADVERTISEMENT_BYTES);
  const view = new DataView(frame.buffer);
  const header = frame.length - 40 - ADVERTISEMENT_BYTES;
  const icmp = header + 40;
  view.setUint32(header, 0x6000_0000);
  view.setUint16(header + 4, ADVERTISEMENT_BYTES);
  frame[header + 6] = ICMP6;
  frame[header + 7] = 255;
  frame.set(ip, header + 8);
  frame.set(ALL_NODES, header + 24);
  frame[icmp] = 136;
  // Override, not solicited.
  frame[icmp + 4] = (router ? 0x80 : 0) | 0x20;
  frame.set(ip, icmp + 8);
  frame[icmp + 24] = 2;
  frame[icmp + 25] = 1;
  frame.set(mac, icmp + 26);
  // Over the pseudo header: both addresses, length, next header (RFC 8200, 8.1).
  let sum = ADVERTISEMENT_BYTES + ICMP6;
  for (let at = header + 8; at < frame.length; at += 2) sum += view.getUint16(at);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  view.setUint16(icmp + 2, ~sum & 0xffff);
  return frame;
}

/** Bytes that a payload takes up in a frame. */
function padded(bytes: number): number {
  return Math.max(bytes, FRAME_BYTES - 14);
}

function ethernet(
  to: Uint8Array,
  from: Uint8Array,
  vlan: number | undefined,
  type: number,
  payloadBytes: number,
): Uint8Array<ArrayBuffer> {
  const tag = vlan === undefined ? 0 : VLAN_BYTES;
  const frame = new Uint8Array(14 + tag + padded(payloadBytes));
  const view = new DataView(frame.buffer);
  frame.set(to, 0);
  frame.set(from, 6);
  if (vlan !== undefined) {
    view.setUint16(12, ETHERTYPE.vlan);
    view.setUint16(14, vlan);
  }
  view.setUint16(12 + tag, type);
  return frame;
}

/** The body that ARP and RARP share (RFC 826). */
function arpBody(
  frame: Uint8Array<ArrayBuffer>,
  at: number,
  operation: number,
  mac: Uint8Array,
  ip: Uint8Array,
  target: Uint8Array,
): void {
  const view = new DataView(frame.buffer);
  view.setUint16(at, 1); // Ethernet
  view.setUint16(at + 2, 0x0800); // IPv4
  frame[at + 4] = 6;
  frame[at + 5] = 4;
  view.setUint16(at + 6, operation);
  frame.set(mac, at + 8);
  frame.set(ip, at + 14);
  frame.set(target, at + 18);
  frame.set(ip, at + 24);
}

/** Announces `card`, now and a few times soon after. @returns what ends it before */
export function announce(card: AnnouncedCard): () => void {
  const { backend, mac, addresses } = card;
  const batch = new FrameBatch(1, MAX_ENTRY_BYTES);
  const send = (frame: Uint8Array): void => {
    batch.clear();
    batch.addFrame(frame);
    backend.send(batch, 0);
  };
  const rarp = rarpFrame(mac);
  const frames = addresses.map(announcementOf);
  const once = (): void => {
    send(rarp);
    if (!card.askGuest()) for (const frame of frames) send(frame);
  };
  once();
  const timers = TIMES_MS.slice(1).map((ms) => setTimeout(once, ms).unref());
  return () => {
    for (const timer of timers) clearTimeout(timer);
  };
}
