/** A file that is written at places and made durable on demand: what journal and marks are kept in. Tests bring their own. */
import {
  close,
  closeSync,
  constants,
  fdatasync,
  fstatSync,
  fsyncSync,
  openSync,
  read,
  write,
} from 'node:fs';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import { messageOf, VmmError } from '../../base/error.ts';

const readAt = promisify(read);
const writeAt = promisify(write);
const sync = promisify(fdatasync);
const closeFd = promisify(close);

/** See the module's head. Errors are VmmError `DISK_LOG`. */
export interface LogFile {
  readonly name: string;
  readonly sizeBytes: number;
  /** Reads what is there of `length` bytes at `at`. */
  read(at: number, length: number): Promise<Uint8Array>;
  write(at: number, bytes: Uint8Array): Promise<void>;
  /** What was written before is durable when this resolves. */
  sync(): Promise<void>;
  close(): Promise<void>;
}

function failed(name: string, what: string, error: unknown): VmmError {
  return new VmmError('DISK_LOG', `${what} ${name} failed: ${messageOf(error)}`, { cause: error });
}

class NodeLogFile implements LogFile {
  readonly name: string;
  readonly #fd: number;
  sizeBytes: number;

  constructor(name: string, fd: number) {
    this.name = name;
    this.#fd = fd;
    this.sizeBytes = fstatSync(fd).size;
  }

  async read(at: number, length: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    let have = 0;
    try {
      while (have < length) {
        const { bytesRead } = await readAt(this.#fd, bytes, have, length - have, at + have);
        if (bytesRead === 0) break;
        have += bytesRead;
      }
    } catch (error) {
      throw failed(this.name, 'reading', error);
    }
    return bytes.subarray(0, have);
  }

  async write(at: number, bytes: Uint8Array): Promise<void> {
    try {
      for (let done = 0; done < bytes.length; ) {
        const { bytesWritten } = await writeAt(
          this.#fd,
          bytes,
          done,
          bytes.length - done,
          at + done,
        );
        done += bytesWritten;
      }
      this.sizeBytes = Math.max(this.sizeBytes, at + bytes.length);
    } catch (error) {
      throw failed(this.name, 'writing', error);
    }
  }

  async sync(): Promise<void> {
    try {
      await sync(this.#fd);
    } catch (error) {
      throw failed(this.name, 'flushing', error);
    }
  }

  async close(): Promise<void> {
    await closeFd(this.#fd);
  }
}

/**
 * Opens the file at `path`, and with `create` makes it when it is missing.
 * @returns undefined when it is missing and not to be made
 * @throws VmmError `DISK_LOG`
 */
export function openLogFile(path: string, create: boolean): LogFile | undefined {
  try {
    const flags = constants.O_RDWR | (create ? constants.O_CREAT : 0);
    const file = new NodeLogFile(path, openSync(path, flags, 0o600));
    if (create && file.sizeBytes === 0) {
      // The name itself must survive a loss of power.
      const folder = openSync(dirname(path), constants.O_RDONLY);
      fsyncSync(folder);
      closeSync(folder);
    }
    return file;
  } catch (error) {
    if (!create && (error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw failed(path, 'opening', error);
  }
}
