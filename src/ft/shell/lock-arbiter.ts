/**
 * An arbiter in a file that both hosts can open (shared storage). Whoever may run the guest holds the file's open-file-description
 * lock for as long as it runs, so a process that is stopped or cut off still holds it, and the kernel gives it up only when the
 * process is gone. The file's record says which generation runs and which standby is in sync.
 *
 * The record lies in two slots of 512 bytes that are written in turn, so that a torn write leaves the other:
 *   "TSVMMARB" | u32 version | u32 crc of the rest | u64 sequence | u64 generation | u32 handed | u32 length | in-sync instance
 *
 * Left out: fencing of the storage itself. A host whose lock the shared file system gives away while the process still runs
 * (an NFS server that loses its clients' state) is not covered; docs/operations.md says so.
 */
import { closeSync, constants, fdatasyncSync, openSync, readSync, writeSync } from 'node:fs';
import { crc32c } from '../../base/crc32c.ts';
import { messageOf, VmmError } from '../../base/error.ts';
import { Reader, text, u32, u53, Writer } from '../../snapshot/codec.ts';
import type { ArbiterRequest } from '../core/failover.ts';
import type { Arbiter, ArbiterVerdict } from './arbiter.ts';

/** The part of the native addon that is used. */
export interface LockNative {
  tryLock(fd: number, exclusive: boolean, start: number, length: number): boolean;
  unlock(fd: number, start: number, length: number): void;
}

interface Record {
  readonly sequence: number;
  readonly generation: number;
  /** The guest was given up in favour of the standby in sync. */
  readonly handed: boolean;
  readonly inSync: string;
}

const MAGIC = 'TSVMMARB';
const VERSION = 1;
const SLOT_BYTES = 512;
const SLOTS = 2;
const instanceCodec = text(64);
/** The lock covers this one byte behind the slots, so that reading the record never waits. */
const LOCK_AT = SLOTS * SLOT_BYTES;

/** See the module's head. */
export class LockArbiter implements Arbiter {
  readonly name: string;
  /** A lock does not lapse while its holder lives. */
  readonly lease = undefined;
  readonly #path: string;
  readonly #native: LockNative;
  #fd: number | undefined;
  #holds = false;
  /** The acquisition that this process last wrote, or tried to. */
  #attempt = '';

  /** Opens the file, or makes it. @throws VmmError `ARBITER_LOCK` */
  constructor(native: LockNative, path: string) {
    this.name = `lock ${path}`;
    this.#path = path;
    this.#native = native;
    try {
      this.#fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
    } catch (error) {
      throw this.#error(`cannot be opened: ${messageOf(error)}`, error);
    }
  }

  #error(what: string, cause?: unknown): VmmError {
    return new VmmError('ARBITER_LOCK', `the arbiter's lock file '${this.#path}' ${what}`, {
      hint: 'Both hosts must name the same file on storage that they share (--ft-arbiter lock:PATH).',
      ...(cause !== undefined && { cause }),
    });
  }

  /** Whether this process has the lock. */
  get holds(): boolean {
    return this.#holds;
  }

  #open(): number {
    if (this.#fd === undefined) throw this.#error('is closed');
    return this.#fd;
  }

  #lock(): boolean {
    if (!this.#holds) this.#holds = this.#native.tryLock(this.#open(), true, LOCK_AT, 1);
    return this.#holds;
  }

  #read(): Record | undefined {
    let newest: Record | undefined;
    for (let slot = 0; slot < SLOTS; slot++) {
      const bytes = new Uint8Array(SLOT_BYTES);
      const length = readSync(this.#open(), bytes, 0, SLOT_BYTES, slot * SLOT_BYTES);
      const record = length === SLOT_BYTES ? parse(bytes) : undefined;
      if (record !== undefined && (newest === undefined || record.sequence > newest.sequence)) {
        newest = record;
      }
    }
    return newest;
  }

  #write(record: Record): void {
    const bytes = format(record);
    const slot = record.sequence % SLOTS;
    const written = writeSync(this.#open(), bytes, 0, SLOT_BYTES, slot * SLOT_BYTES);
    if (written !== SLOT_BYTES) throw this.#error('took only a part of the record');
    fdatasyncSync(this.#open());
  }

  async begin(): Promise<number> {
    if (!this.#lock()) {
      throw new VmmError('ARBITER_TAKEN', `the guest of '${this.#path}' is running already`, {
        hint: 'Another process holds its lock. End that one, or give this guest a lock file of its own.',
      });
    }
    try {
      const before = this.#read();
      const generation = (before?.generation ?? 0) + 1;
      this.#write({ sequence: (before?.sequence ?? 0) + 1, generation, handed: false, inSync: '' });
      return generation;
    } catch (error) {
      throw error instanceof VmmError
        ? error
        : this.#error(`cannot be written: ${messageOf(error)}`, error);
    }
  }

  async request(request: ArbiterRequest): Promise<ArbiterVerdict> {
    try {
      return this.#carryOut(request);
    } catch (error) {
      return { result: 'unreachable', generation: 0, sentence: messageOf(error) };
    }
  }

  #carryOut(request: ArbiterRequest): ArbiterVerdict {
    if (request.kind !== 'acquire') {
      // Only the holder of the lock writes, so what it reads cannot change under it. A primary that gave the guest up
      // and lost the standby takes it back with `record`, where nobody has the lock.
      const holds = request.kind === 'record' ? this.#lock() : this.#holds;
      const record = holds ? this.#read() : undefined;
      if (record === undefined || record.generation !== request.generation) {
        if (record !== undefined) this.#release();
        return refuse(record ?? this.#read(), 'Another generation of this guest is on record.');
      }
      const next: Record =
        request.kind === 'record'
          ? { ...record, sequence: record.sequence + 1, inSync: request.inSync }
          : { ...record, sequence: record.sequence + 1, handed: true };
      this.#write(next);
      if (request.kind === 'hand') this.#release();
      return { result: 'ok', generation: next.generation, sentence: '' };
    }
    if (!this.#lock()) {
      return refuse(
        this.#read(),
        'The process that runs the guest still exists: it holds the lock.',
      );
    }
    const record = this.#read();
    const attempt = `${request.generation}/${request.instance}`;
    if (this.#attempt === attempt && record?.generation === request.generation + 1) {
      // The record was written before, and the answer said that it was not sure.
      return { result: 'ok', generation: record.generation, sentence: '' };
    }
    if (record === undefined || record.generation !== request.generation) {
      this.#release();
      return refuse(record, 'Another generation of this guest is on record.');
    }
    if (record.inSync !== request.instance) {
      this.#release();
      return refuse(record, 'This standby is not on record as in sync.');
    }
    const generation = record.generation + 1;
    this.#attempt = attempt;
    this.#write({ sequence: record.sequence + 1, generation, handed: false, inSync: '' });
    return { result: 'ok', generation, sentence: '' };
  }

  #release(): void {
    if (!this.#holds) return;
    this.#native.unlock(this.#open(), LOCK_AT, 1);
    this.#holds = false;
  }

  close(): void {
    if (this.#fd === undefined) return;
    closeSync(this.#fd);
    this.#fd = undefined;
    this.#holds = false;
  }
}

function refuse(record: Record | undefined, sentence: string): ArbiterVerdict {
  return { result: 'refused', generation: record?.generation ?? 0, sentence };
}

function format(record: Record): Uint8Array {
  const body = new Writer(SLOT_BYTES);
  u53.write(body, record.sequence);
  u53.write(body, record.generation);
  u32.write(body, record.handed ? 1 : 0);
  instanceCodec.write(body, record.inSync);
  const out = new Writer(SLOT_BYTES);
  for (const char of MAGIC) out.u8(char.charCodeAt(0));
  out.u32(VERSION);
  out.u32(crc32c(body.bytes()));
  out.raw(body.bytes());
  const slot = new Uint8Array(SLOT_BYTES);
  slot.set(out.bytes());
  return slot;
}

function parse(bytes: Uint8Array): Record | undefined {
  try {
    const input = new Reader(bytes);
    for (const char of MAGIC) if (input.u8() !== char.charCodeAt(0)) return undefined;
    if (input.u32() !== VERSION) return undefined;
    const sum = input.u32();
    const start = bytes.length - input.remaining;
    const sequence = u53.read(input);
    const generation = u53.read(input);
    const handed = u32.read(input) === 1;
    const inSync = instanceCodec.read(input);
    if (crc32c(bytes, start, bytes.length - input.remaining) !== sum) return undefined;
    return { sequence, generation, handed, inSync };
  } catch {
    return undefined;
  }
}
