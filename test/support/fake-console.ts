/** A console backend in memory: what the device sent, what it will read, and back-pressure at will. */
import type { ConsoleBackend, ConsoleHandler } from '../../src/console/backend.ts';

export class FakeConsole implements ConsoleBackend {
  readonly name = 'fake';
  /** Every byte that was taken. */
  readonly sent: number[] = [];
  /** How many more bytes `write` takes. */
  room = Number.POSITIVE_INFINITY;
  readonly #input: number[] = [];
  #handler: ConsoleHandler | undefined;

  setHandler(handler: ConsoleHandler): void {
    this.#handler = handler;
    if (this.#input.length > 0) handler.readable();
  }

  write(byte: number): boolean {
    if (this.room <= 0) return false;
    this.room--;
    this.sent.push(byte);
    return true;
  }

  read(): number {
    return this.#input.shift() ?? -1;
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  /** Bytes that were typed and not read yet. */
  get unread(): number {
    return this.#input.length;
  }

  /** What was sent, as text. */
  get text(): string {
    return String.fromCharCode(...this.sent);
  }

  /** Bytes arrive from outside. */
  type(bytes: string | readonly number[]): void {
    if (typeof bytes === 'string') for (const char of bytes) this.#input.push(char.charCodeAt(0));
    else this.#input.push(...bytes);
    this.#handler?.readable();
  }

  /** Gives room for `bytes` more and says so. */
  open(bytes = Number.POSITIVE_INFINITY): void {
    this.room = bytes;
    if (bytes > 0) this.#handler?.writable();
  }
}
