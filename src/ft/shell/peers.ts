/**
 * The standbys that a primary may have, as its shell sees them: whose turn it is, the one connection there is, and what becomes of
 * the turn when a peer cannot be reached, refuses, or is lost. While outputs wait for the peer that was lost, nobody else is asked.
 */
import type { Logger } from '../../base/log.ts';
import { type LinkOptions, requireKey } from './link.ts';
import type { PeerConnection } from './peer-connection.ts';
import { PeerRing, peerName } from './peer-ring.ts';

/** From the last standby's refusal to the next try. */
const REFUSED_RETRY_NS = 5e9;
/** From one standby's refusal to the next one's turn. */
const NEXT_NS = 200e6;

/** Who has the peers. */
export interface PeersOwner {
  nowNs(): number;
  /** Whether nothing waits for the peer of the last stream. */
  free(): boolean;
  /** Peers may be asked again after a refusal. */
  askAgain(): void;
  /** A peer came to nothing. */
  failed(name: string, why: string, roundOver: boolean): void;
}

/** See the module's head. */
export class Peers {
  readonly #owner: PeersOwner;
  readonly #log: Logger;
  readonly #ring: PeerRing;
  #refusal = '';
  #retry: NodeJS.Timeout | undefined;
  /** After a fault of this host, no standby is asked for a while. */
  #notBeforeNs = 0;

  constructor(owner: PeersOwner, log: Logger) {
    this.#owner = owner;
    this.#log = log;
    this.#ring = new PeerRing(log);
  }

  /** Replaces the list. @throws VmmError `FT_KEY_NEEDED` */
  set(peers: readonly LinkOptions[]): void {
    for (const peer of peers) requireKey(peer, 'the peer');
    clearTimeout(this.#retry);
    this.#ring.set(peers);
  }

  /** Whose turn it is, `host:port`; '' where nobody was named. */
  get name(): string {
    const peer = this.#ring.current;
    return peer === undefined ? '' : peerName(peer);
  }

  /** Tries to connect, unless it is too early. */
  connect(link: PeerConnection): void {
    const now = this.#owner.nowNs();
    if (now < this.#notBeforeNs) return;
    const peer = this.#ring.take(now, !this.#owner.free());
    if (peer !== undefined) link.connect(peer);
  }

  /** The peer is of no use now; where nothing waits for it, the next one's turn comes. */
  failed(why: string, pauseNs = 0): void {
    const { name } = this;
    if (name === '' || !this.#owner.free()) return;
    if (!this.#ring.failed(why, this.#owner.nowNs(), pauseNs)) return;
    this.#owner.failed(name, why, this.#ring.roundOver);
  }

  /** This host cannot synchronise anybody now. */
  rest(why: string): void {
    this.#notBeforeNs = this.#owner.nowNs() + REFUSED_RETRY_NS;
    this.failed(why);
  }

  /** The peer cannot protect this guest as it is. It may be started anew with what it lacks, so it is asked again. */
  refused(sentence: string): void {
    if (sentence !== this.#refusal) {
      this.#log.error(`the standby ${this.name} refuses this guest: ${sentence}`);
    }
    this.#refusal = sentence;
    this.failed(sentence, REFUSED_RETRY_NS);
    clearTimeout(this.#retry);
    const others = this.#owner.free() && !this.#ring.roundOver;
    this.#retry = setTimeout(
      () => this.#owner.askAgain(),
      (others ? NEXT_NS : REFUSED_RETRY_NS) / 1e6,
    );
    this.#retry.unref();
  }

  /** The peer protects the guest. */
  succeeded(): void {
    this.#refusal = '';
    this.#ring.succeeded();
  }

  close(): void {
    clearTimeout(this.#retry);
  }
}
