/**
 * The event-tap in front of a console: while it holds, output bytes wait in the tap. Released bytes that the console does not
 * take at once wait in a bounded ring. Input passes.
 */
import { ByteRing } from '../../base/ring.ts';
import type { ConsoleBackend, ConsoleHandler } from '../../console/backend.ts';
import type { EventTap } from '../core/event-tap.ts';
import type { Lease } from './lease.ts';
import type { TapEvents } from './tapped-net.ts';

/** See the module's head. */
export class TappedConsole implements ConsoleBackend {
  readonly #inner: ConsoleBackend;
  readonly #tap: EventTap;
  readonly #events: TapEvents;
  readonly #device: number;
  readonly #queue: ByteRing;
  #handler: ConsoleHandler | undefined;
  #refused = false;
  #lease: Lease | undefined;

  /** @param queueBytes at least what the tap holds */
  constructor(
    inner: ConsoleBackend,
    tap: EventTap,
    device: number,
    events: TapEvents,
    queueBytes: number,
  ) {
    this.#inner = inner;
    this.#tap = tap;
    this.#device = device;
    this.#events = events;
    this.#queue = new ByteRing(queueBytes);
  }

  /** Bytes leave only while this runs. */
  setLease(lease: Lease): void {
    this.#lease = lease;
  }

  get name(): string {
    return this.#inner.name;
  }

  setHandler(handler: ConsoleHandler): void {
    this.#handler = handler;
    this.#inner.setHandler({
      readable: () => handler.readable(),
      writable: () => {
        this.flush();
      },
    });
  }

  write(byte: number): boolean {
    const held = this.#tap.holding;
    // While released bytes wait for a console that takes none, the guest waits too: what is held must find room later.
    const stuck = this.#queue.length > 0 || (!held && this.#lease?.valid === false);
    const taken =
      !stuck && (held ? this.#tap.holdConsole(this.#device, byte) : this.#inner.write(byte));
    if (!taken) {
      this.#refused = true;
      if (held && !stuck) this.#events.tapFull();
    }
    return taken;
  }

  read(): number {
    return this.#inner.read();
  }

  async close(): Promise<void> {
    this.#flush();
    await this.#inner.close();
  }

  /** Released bytes. */
  released(bytes: Uint8Array, start: number, end: number): void {
    for (let i = start; i < end; i++) this.#queue.push(bytes[i]!);
    this.#flush();
  }

  /** Gives released bytes to the console as far as it takes them, and wakes whoever waits. */
  flush(): void {
    this.#flush();
    this.#wake();
  }

  #flush(): void {
    if (this.#lease?.valid === false) return;
    while (this.#queue.length > 0) {
      if (!this.#inner.write(this.#queue.peek())) return;
      this.#queue.shift();
    }
  }

  #wake(): void {
    if (!this.#refused || this.#queue.length > 0 || this.#lease?.valid === false) return;
    this.#refused = false;
    this.#handler?.writable();
  }
}
