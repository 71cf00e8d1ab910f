/**
 * Which standby a primary tries next: the operator's list, in order, round and round. A peer that cannot be reached, refuses or is
 * lost gives the turn to the next one; after a round in vain the tries become rarer, down to one round in two seconds. Each
 * reason is said once, not at every try. Knows no connection: the primary's shell asks it and tells it.
 */
import type { Logger } from '../../base/log.ts';
import type { LinkOptions } from './link.ts';

/** The pause behind the first round in vain, doubled from round to round. */
const PAUSE_MIN_NS = 200e6;
const PAUSE_MAX_NS = 2e9;

/** `host:port` of a peer, for people. */
export function peerName(peer: LinkOptions): string {
  const host = peer.host.includes(':') ? `[${peer.host}]` : peer.host;
  return `${host}:${peer.port}`;
}

/** See the module's head. */
export class PeerRing {
  readonly #log: Logger;
  #peers: readonly LinkOptions[] = [];
  #at = 0;
  /** Peers that failed one after the other since the last success. */
  #failures = 0;
  #notBeforeNs = Number.NEGATIVE_INFINITY;
  /** Whether the current peer is being tried, or was reached. */
  #trying = false;
  readonly #said = new Map<string, string>();

  constructor(log: Logger) {
    this.#log = log;
  }

  /** How many peers there are. */
  get size(): number {
    return this.#peers.length;
  }

  /** Whose turn it is. */
  get current(): LinkOptions | undefined {
    return this.#peers[this.#at];
  }

  /** Replaces the list; the first is tried at once. A peer that is connected stays in its place when it is in the new list. */
  set(peers: readonly LinkOptions[]): void {
    const before = this.current;
    const same = peers.findIndex((peer) => before && peerName(peer) === peerName(before));
    this.#at = this.#trying && same >= 0 ? same : 0;
    this.#peers = peers;
    this.#said.clear();
    this.#startAfresh();
  }

  #startAfresh(): void {
    this.#failures = 0;
    this.#notBeforeNs = Number.NEGATIVE_INFINITY;
  }

  /**
   * Begins a try.
   * @param urgent outputs wait for this very peer: no pause
   * @returns whom to dial; undefined when it is too early, or nobody is there
   */
  take(nowNs: number, urgent: boolean): LinkOptions | undefined {
    if (!urgent && nowNs < this.#notBeforeNs) return undefined;
    const peer = this.current;
    this.#trying = peer !== undefined;
    return peer;
  }

  /**
   * The peer that was tried, or had been reached, is of no use now: the next one's turn. Said again before the next
   * {@link take} it changes nothing.
   * @param pauseNs least pause behind a whole round, where trying again soon is known to be pointless
   * @returns whether it changed anything
   */
  failed(why: string, nowNs: number, pauseNs = 0): boolean {
    const peer = this.current;
    if (!this.#trying || peer === undefined) return false;
    this.#trying = false;
    this.#failures++;
    this.#at = (this.#at + 1) % this.#peers.length;
    const name = peerName(peer);
    const next = this.#peers.length > 1 ? `next is ${peerName(this.current!)}` : 'trying on';
    if (this.#said.get(name) !== why) this.#log.info(`standby ${name}: ${why}; ${next}`);
    this.#said.set(name, why);
    if (!this.roundOver) return true;
    const rounds = this.#failures / this.#peers.length;
    const pause = PAUSE_MIN_NS * 2 ** Math.min(rounds - 1, 10);
    this.#notBeforeNs = nowNs + Math.max(Math.min(pause, PAUSE_MAX_NS), pauseNs);
    return true;
  }

  /** Whether every peer has failed since the last success or pause. */
  get roundOver(): boolean {
    return this.#failures > 0 && this.#failures % this.#peers.length === 0;
  }

  /** The current peer protects the guest: what went wrong before is forgotten. */
  succeeded(): void {
    this.#said.clear();
    this.#startAfresh();
  }
}
