/**
 * Tells the network where a guest's cards are now: after a takeover the same MAC address answers behind another port. A RARP
 * request from that address makes every switch on the way learn it; no host's ARP table has to change, because the
 * address is the same. Sent several times, since such a frame may be lost.
 */
import { FrameBatch, MAX_ENTRY_BYTES, type NetBackend } from '../../net/backend.ts';

const ETHERTYPE_RARP = 0x8035;
const FRAME_BYTES = 60;
/** Milliseconds after the takeover. */
const TIMES_MS = [0, 50, 200, 1000];

/** A RARP request ("who am I") from and for `mac` (RFC 903). */
export function rarpFrame(mac: Uint8Array): Uint8Array {
  const frame = new Uint8Array(FRAME_BYTES);
  const view = new DataView(frame.buffer);
  frame.fill(0xff, 0, 6);
  frame.set(mac, 6);
  view.setUint16(12, ETHERTYPE_RARP);
  view.setUint16(14, 1); // Ethernet
  view.setUint16(16, 0x0800); // IPv4
  frame[18] = 6;
  frame[19] = 4;
  view.setUint16(20, 3); // request reverse
  frame.set(mac, 22);
  frame.set(mac, 32);
  return frame;
}

/** Announces `mac` on `net`, now and a few times soon after. */
export function announce(net: NetBackend, mac: Uint8Array): void {
  const frame = rarpFrame(mac);
  const batch = new FrameBatch(1, MAX_ENTRY_BYTES);
  for (const ms of TIMES_MS) {
    const send = (): void => {
      batch.clear();
      batch.addFrame(frame);
      net.send(batch, 0);
    };
    if (ms === 0) send();
    else setTimeout(send, ms).unref();
  }
}
