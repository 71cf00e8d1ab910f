/** Consoles without an outside: one that keeps everything in memory (tests), one that drops everything. */
import { ByteRing } from '../base/ring.ts';
import type { ConsoleBackend, ConsoleHandler } from './backend.ts';

/** Keeps what the guest wrote; input is typed by the test. */
export class MemoryConsole implements ConsoleBackend {
  readonly name = 'memory';
  /** Everything the guest wrote so far, oldest first. */
  readonly output: number[] = [];
  #handler: ConsoleHandler | undefined;
  readonly #input: ByteRing;
  #refused = false;
  #limit: number;

  /** @param limitBytes `write` refuses while `output` holds this many (see {@link drain}) */
  constructor(limitBytes: number = Number.POSITIVE_INFINITY, inputBytes = 64 * 1024) {
    this.#limit = limitBytes;
    this.#input = new ByteRing(inputBytes);
  }

  /** The output as text (UTF-8). */
  get text(): string {
    return Buffer.from(this.output).toString('utf8');
  }

  setHandler(handler: ConsoleHandler): void {
    this.#handler = handler;
    if (this.#input.length > 0) handler.readable();
  }

  write(byte: number): boolean {
    if (this.output.length >= this.#limit) {
      this.#refused = true;
      return false;
    }
    this.output.push(byte);
    return true;
  }

  read(): number {
    return this.#input.shift();
  }

  /** Types text, or bytes; how many bytes fitted. */
  type(text: string | Uint8Array): number {
    const bytes = typeof text === 'string' ? Buffer.from(text) : text;
    const wasEmpty = this.#input.length === 0;
    let count = 0;
    while (count < bytes.length && this.#input.push(bytes[count]!)) count++;
    if (wasEmpty && count > 0) this.#handler?.readable();
    return count;
  }

  /** Takes the output away, and lets a refused writer go on. */
  drain(): string {
    const { text } = this;
    this.output.length = 0;
    if (this.#refused) {
      this.#refused = false;
      this.#handler?.writable();
    }
    return text;
  }

  async close(): Promise<void> {}
}

/** Drops what is written; never has input. */
export class NullConsole implements ConsoleBackend {
  readonly name = 'null';
  setHandler(): void {}
  write(): boolean {
    return true;
  }
  read(): number {
    return -1;
  }
  async close(): Promise<void> {}
}
