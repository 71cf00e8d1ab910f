/** A console that is written to a file; no input. The file is made anew; a full disk is said once, then bytes are dropped. */
import { closeSync, openSync, writeSync } from 'node:fs';
import { messageOf, VmmError } from '../base/error.ts';
import type { Logger } from '../base/log.ts';
import type { ConsoleBackend, ConsoleHandler } from './backend.ts';
import { ConsoleOutput } from './output.ts';

/** VmmError CONSOLE_FILE when it cannot be made. */
export function openFileConsole(log: Logger, path: string): FileConsole {
  try {
    return new FileConsole(log, path);
  } catch (error) {
    throw new VmmError('CONSOLE_FILE', `cannot write console file ${path}: ${messageOf(error)}`, {
      hint: 'Check that the folder exists and can be written.',
      cause: error,
    });
  }
}

export class FileConsole implements ConsoleBackend {
  readonly name: string;
  readonly #fd: number;
  readonly #log: Logger;
  readonly #output: ConsoleOutput;
  #failed = false;
  #closed = false;

  constructor(log: Logger, path: string) {
    this.name = `file ${path}`;
    this.#log = log;
    this.#fd = openSync(path, 'w', 0o600);
    this.#output = new ConsoleOutput((bytes, start, end) => this.#write(bytes, start, end));
  }

  setHandler(handler: ConsoleHandler): void {
    this.#output.handler = handler;
  }

  write(byte: number): boolean {
    return this.#output.write(byte);
  }

  read(): number {
    return -1;
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#output.flush();
    this.#closed = true;
    closeSync(this.#fd);
  }

  #write(bytes: Uint8Array, start: number, end: number): number {
    if (this.#failed || this.#closed) return end - start;
    try {
      return writeSync(this.#fd, bytes, start, end - start);
    } catch (error) {
      this.#failed = true;
      this.#log.error(`${this.name}: ${messageOf(error)}; further output is lost`);
      return end - start;
    }
  }
}
