/**
 * A console on a pseudo-terminal that the person opens with a terminal program (`screen /dev/pts/7`). Output that nobody
 * reads fills the terminal's own buffer; then the oldest waits here and the guest is held back, so after a short
 * while without a reader output is dropped instead.
 */
import { messageOf, VmmError } from '../base/error.ts';
import type { ConsoleBackend, ConsoleHandler } from './backend.ts';
import { ConsoleInput } from './input.ts';
import type { ConsoleNative } from './native.ts';
import { ConsoleOutput } from './output.ts';

const READABLE = 1;
const WRITABLE = 2;
/** How long the guest waits for a reader that does not come. */
const PATIENCE_MS = 100;

/** VmmError CONSOLE_PTY when the host has no pseudo-terminal left. */
export function openPtyConsole(native: ConsoleNative): PtyConsole {
  try {
    return new PtyConsole(native);
  } catch (error) {
    throw new VmmError('CONSOLE_PTY', `cannot make a pseudo-terminal: ${messageOf(error)}`, {
      hint: 'Is /dev/pts mounted? Use serial=unix:PATH instead.',
      cause: error,
    });
  }
}

export class PtyConsole implements ConsoleBackend {
  readonly name: string;
  /** The device to open, `/dev/pts/N`. */
  readonly path: string;
  readonly #native: ConsoleNative;
  readonly #master: number;
  readonly #slave: number;
  readonly #poller: InstanceType<ConsoleNative['FdPoller']>;
  readonly #chunk = new Uint8Array(4096);
  readonly #input = new ConsoleInput((on) => {
    this.#reading = on;
    this.#arm();
  });
  readonly #output = new ConsoleOutput((bytes, start, end) => this.#send(bytes, start, end));
  #reading = true;
  #waiting = false;
  #patience: NodeJS.Timeout | undefined;
  #dropping = false;
  #closed = false;

  constructor(native: ConsoleNative) {
    this.#native = native;
    const { master, slave, path } = native.openPty();
    this.#master = master;
    this.#slave = slave;
    this.path = path;
    this.name = `pty ${path}`;
    this.#poller = new native.FdPoller(master, (events) => this.#event(events));
    this.#arm();
  }

  setHandler(handler: ConsoleHandler): void {
    this.#output.handler = handler;
    this.#input.setHandler(handler);
  }

  write(byte: number): boolean {
    return this.#output.write(byte);
  }

  read(): number {
    return this.#input.read();
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#output.flush();
    this.#closed = true;
    clearTimeout(this.#patience);
    this.#poller.close();
    this.#native.closeFd(this.#master);
    this.#native.closeFd(this.#slave);
  }

  #arm(): void {
    if (this.#closed) return;
    const events = (this.#reading ? READABLE : 0) | (this.#waiting ? WRITABLE : 0);
    if (events === 0) this.#poller.stop();
    else this.#poller.start(events);
  }

  #event(events: number): void {
    if (events < 0) return;
    if ((events & READABLE) !== 0) {
      const count = this.#native.readFd(this.#master, this.#chunk, 0, this.#chunk.length);
      if (count > 0) this.#input.push(this.#chunk.subarray(0, count));
    }
    if ((events & WRITABLE) !== 0 && this.#waiting) {
      this.#waiting = false;
      this.#dropping = false;
      clearTimeout(this.#patience);
      this.#patience = undefined;
      this.#arm();
      this.#output.ready();
    }
  }

  #send(bytes: Uint8Array, start: number, end: number): number {
    const count = this.#native.writeFd(this.#master, bytes, start, end - start);
    if (count > 0) return count;
    this.#waiting = true;
    this.#arm();
    if (this.#dropping) return end - start;
    this.#patience ??= setTimeout(() => {
      this.#patience = undefined;
      this.#dropping = true;
      this.#output.ready();
    }, PATIENCE_MS);
    return 0;
  }
}
