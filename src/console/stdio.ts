/**
 * The process's own terminal as a console. On a terminal: raw mode, so that every key reaches the guest, with an escape
 * as screens have it: Ctrl-A x quits, Ctrl-A Ctrl-A sends Ctrl-A, Ctrl-A h lists these. The terminal is restored by
 * `close`, when the process exits, and when it dies of an exception. On a pipe: bytes as they are, no escape.
 */
import { isatty } from 'node:tty';
import type { ConsoleBackend, ConsoleHandler } from './backend.ts';
import { ConsoleInput } from './input.ts';
import { ConsoleOutput } from './output.ts';

const CTRL_A = 0x01;
const HELP = '\r\nCtrl-A x: quit   Ctrl-A Ctrl-A: send Ctrl-A   Ctrl-A h: this help\r\n';

/** What `process.stdin` and `process.stdout` have, as far as it is needed; tests pass their own. */
export interface StdioStreams {
  readonly input: NodeJS.ReadableStream & {
    readonly isTTY?: boolean;
    setRawMode?(on: boolean): unknown;
    unref?(): unknown;
  };
  readonly output: NodeJS.WritableStream & { readonly writableNeedDrain?: boolean };
}

export interface StdioOptions {
  /** Ctrl-A x was typed. */
  readonly onQuit: () => void;
  readonly streams?: StdioStreams;
}

function isTerminal({ isTTY, setRawMode }: StdioStreams['input']): boolean {
  return isTTY === true && setRawMode !== undefined;
}

export class StdioConsole implements ConsoleBackend {
  readonly name = 'stdio';
  readonly #streams: StdioStreams;
  readonly #onQuit: () => void;
  readonly #terminal: boolean;
  readonly #input = new ConsoleInput((on) => {
    if (on) this.#streams.input.resume();
    else this.#streams.input.pause();
  });
  readonly #output = new ConsoleOutput((bytes, start, end) => this.#send(bytes, start, end));
  readonly #onData = (chunk: Buffer | string) => this.#typed(Buffer.from(chunk));
  readonly #onDrain = () => this.#output.ready();
  readonly #onGone = () => {
    this.#gone = true;
    this.#output.ready();
  };
  readonly #restore = () => {
    if (this.#raw) this.#streams.input.setRawMode?.(false);
    this.#raw = false;
  };
  #raw = false;
  #gone = false;
  #full = false;
  #escape = false;
  #closed = false;
  /** Set as long as input is not listened to yet. */
  #later: NodeJS.Immediate | undefined;

  constructor(options: StdioOptions) {
    this.#onQuit = options.onQuit;
    const given = options.streams;
    // Making a stream of the process's input takes a while: what is no terminal can wait until the guest runs.
    const mayBeTerminal = given !== undefined || isatty(0);
    this.#streams = given ?? {
      get input() {
        return process.stdin;
      },
      output: process.stdout,
    };
    const { output } = this.#streams;
    this.#terminal = mayBeTerminal && isTerminal(this.#streams.input);
    if (this.#terminal) {
      this.#streams.input.setRawMode!(true);
      this.#raw = true;
      process.on('exit', this.#restore);
    }
    output.on('drain', this.#onDrain);
    // A reader that went away (`tsvmm run | head`): output is dropped from then on, the guest runs on.
    output.on('error', this.#onGone);
    if (mayBeTerminal) this.#streams.input.on('data', this.#onData);
    else {
      this.#later = setImmediate(() => {
        this.#later = undefined;
        this.#streams.input.on('data', this.#onData);
      });
    }
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
    this.#closed = true;
    const { output } = this.#streams;
    if (this.#later === undefined) {
      const { input } = this.#streams;
      input.off('data', this.#onData);
      input.pause();
      input.unref?.();
    } else {
      clearImmediate(this.#later);
    }
    this.#full = false;
    this.#output.flush();
    await new Promise<void>((resolve) => {
      const late = setTimeout(resolve, 1000);
      const done = () => {
        clearTimeout(late);
        resolve();
      };
      if (this.#gone) done();
      else output.write('', done);
    });
    output.off('drain', this.#onDrain);
    output.off('error', this.#onGone);
    this.#restore();
    process.off('exit', this.#restore);
  }

  #send(bytes: Uint8Array, start: number, end: number): number {
    if (this.#gone) return end - start;
    if (this.#full) {
      this.#full = this.#streams.output.writableNeedDrain === true;
      if (this.#full) return 0;
    }
    // A copy: the buffer is filled again while the stream still has it.
    this.#full = !this.#streams.output.write(Buffer.from(bytes.subarray(start, end)));
    return end - start;
  }

  #typed(bytes: Buffer): void {
    if (!this.#terminal) {
      this.#input.push(bytes);
      return;
    }
    const kept: number[] = [];
    for (const byte of bytes) {
      if (this.#escape) {
        this.#escape = false;
        if (byte === CTRL_A) kept.push(CTRL_A);
        else if (byte === 0x78 || byte === 0x58) this.#onQuit();
        else if (byte === 0x68 || byte === 0x48 || byte === 0x3f)
          for (const char of Buffer.from(HELP)) this.#output.write(char);
      } else if (byte === CTRL_A) {
        this.#escape = true;
      } else {
        kept.push(byte);
      }
    }
    if (kept.length > 0) this.#input.push(Uint8Array.from(kept));
  }
}
