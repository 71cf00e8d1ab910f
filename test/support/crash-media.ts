/**
 * A medium that dies: files and disks whose writes since the last sync may be lost, kept or torn, sector by sector, when the
 * power goes at a chosen step. Every write, sync and operation counts as a step; behind the fatal one nothing happens any more.
 */
import type { Prng } from '../../src/base/prng.ts';
import { BLOCK_OP, ERRNO } from '../../src/block/backend.ts';
import { MemoryDisk } from '../../src/block/memory.ts';
import { DiskAccess, SCRATCH_BYTES } from '../../src/ft/disk/disk-access.ts';
import type { LogFile } from '../../src/ft/disk/log-file.ts';
import { GuestMemory } from '../../src/memory/guest-memory.ts';

const SECTOR = 512;

/** The power supply of several media. */
export class Power {
  steps = 0;
  /** The step at which it goes. */
  readonly fatal: number;

  constructor(fatal = Number.POSITIVE_INFINITY) {
    this.fatal = fatal;
  }

  get gone(): boolean {
    return this.steps >= this.fatal;
  }

  /** Takes a step; never resolves once the power is gone. */
  async step(): Promise<void> {
    this.steps++;
    if (this.gone) await new Promise(() => {});
  }
}

/** What a loss of power leaves of `now` where only `durable` is sure: for each sector that differs, one or the other. */
export function afterPowerLoss(now: Uint8Array, durable: Uint8Array, random: Prng): Uint8Array {
  const left = new Uint8Array(now.length);
  left.set(durable);
  const keeps = random.below(3);
  for (let at = 0; at < now.length; at += SECTOR) {
    if (keeps === 0 || (keeps === 1 && random.chance(0.5))) {
      left.set(now.subarray(at, at + SECTOR), at);
    }
  }
  return left;
}

/** A file. */
export class CrashFile implements LogFile {
  readonly name = 'crash-file';
  now: Uint8Array;
  durable: Uint8Array;
  readonly #power: Power;

  constructor(power: Power, content: Uint8Array = new Uint8Array(0)) {
    this.#power = power;
    this.now = content.slice();
    this.durable = content.slice();
  }

  get sizeBytes(): number {
    return this.now.length;
  }

  async read(at: number, length: number): Promise<Uint8Array> {
    return this.now.slice(at, at + length);
  }

  async write(at: number, bytes: Uint8Array): Promise<void> {
    if (at + bytes.length > this.now.length) {
      const grown = new Uint8Array(at + bytes.length);
      grown.set(this.now);
      this.now = grown;
    }
    const torn = this.#power.steps + 1 >= this.#power.fatal;
    if (!this.#power.gone) this.now.set(torn ? bytes.subarray(0, bytes.length >> 1) : bytes, at);
    await this.#power.step();
  }

  async sync(): Promise<void> {
    await this.#power.step();
    this.durable = this.now.slice();
  }

  async close(): Promise<void> {}

  /** What is there after the power came back. */
  after(random: Prng): Uint8Array {
    const durable = new Uint8Array(this.now.length);
    durable.set(this.durable);
    return afterPowerLoss(this.now, durable, random);
  }
}

/** A disk with its memory. */
export class CrashDisk {
  readonly disk: MemoryDisk;
  readonly access: DiskAccess;

  constructor(power: Power, content: Uint8Array) {
    const memory = new GuestMemory([{ base: 0, buffer: new ArrayBuffer(SCRATCH_BYTES) }]);
    this.disk = new MemoryDisk(memory, { sizeBytes: content.length });
    this.disk.content.set(content);
    this.disk.durable.set(content);
    this.disk.fault = (op) => {
      if (op !== BLOCK_OP.read) power.steps++;
      // Nothing is heard of it any more.
      if (power.gone) this.disk.held = true;
      return power.gone ? ERRNO.EIO : undefined;
    };
    this.access = new DiskAccess(this.disk, memory);
  }

  after(random: Prng): Uint8Array {
    return afterPowerLoss(this.disk.content, this.disk.durable, random);
  }
}
