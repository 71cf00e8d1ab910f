/**
 * What a simulated standby process holds of the guest: memory, registers, devices and the tap's log as of the last applied
 * transaction, and the transactions behind that, each as staged and as decoded. Does what ft/shell does with them, in small.
 */
import { crc32c } from '../../src/base/crc32c.ts';
import { TapReplay } from '../../src/ft/core/tap-replay.ts';
import type { DiskOps, ReplicaDisks } from '../../src/ft/disk/replica-disks.ts';
import { DISK_OPS_VERSION } from '../../src/ft/wire/disk-ops.ts';
import { FAULT, type FaultCode } from '../../src/ft/wire/fault.ts';
import type { Manifest } from '../../src/ft/wire/message.ts';
import { decodePages, PAGE_ERROR, PAGES_VERSION } from '../../src/ft/wire/page-stream.ts';
import { SectionReader } from '../../src/ft/wire/sections.ts';
import { SECTION } from '../../src/ft/wire/spec.ts';
import { type Ghost, memoryHash, PAGE_BYTES, PAGES, type SimGuest, unpackWords } from './guest.ts';

/** A transaction as staged, and what it decodes to. */
interface Transaction {
  readonly id: number;
  readonly parts: Uint8Array[];
  pages: Map<number, Uint8Array> | undefined;
  regs: number[];
  nic: number[];
  disk: number[];
  log: Uint8Array;
  ops: DiskOps[];
}

/** See the module's head. */
export class StandbyState {
  readonly #log: (text: string) => void;
  readonly #memory = new Uint8Array(PAGES * PAGE_BYTES);
  #regs: number[] = [0, 0];
  #nic: number[] = [0];
  #disk: number[] = [0];
  readonly replay: TapReplay;
  #staged: Transaction[] = [];
  readonly #sections = new SectionReader();
  readonly #numbers = new Uint32Array(2 * PAGES);
  readonly #contents = new Uint8Array(2 * PAGES * PAGE_BYTES);

  constructor(tapBytes: number, log: (text: string) => void) {
    this.replay = new TapReplay(tapBytes);
    this.#log = log;
  }

  /** A first copy begins: nothing is known. */
  reset(): void {
    this.#staged = [];
    this.replay.reset();
    this.#memory.fill(0);
  }

  /** Drops what is staged of `fromId` and all later transactions. */
  discard(fromId: number): void {
    this.#staged = this.#staged.filter((t) => t.id < fromId);
  }

  /** Keeps a part of transaction `id` apart. */
  stage(id: number, payload: Uint8Array): void {
    let transaction = this.#staged.find((t) => t.id === id);
    if (transaction === undefined) {
      const log = new Uint8Array(0);
      transaction = { id, parts: [], pages: undefined, regs: [], nic: [], disk: [], log, ops: [] };
      this.#staged.push(transaction);
    }
    transaction.parts.push(payload.slice());
  }

  /** Whole pages straight into memory: the first copy. */
  applyPages(payload: Uint8Array): void {
    const sections = this.#sections.reset(payload);
    while (sections.next()) {
      if (sections.type !== SECTION.pages) continue;
      const count = this.#decode(payload, (page) => this.#standingPage(page));
      for (let i = 0; i < count; i++) {
        this.#memory.set(this.#content(i), this.#numbers[i]! * PAGE_BYTES);
      }
    }
  }

  /** Decodes the current section's pages into #numbers and #contents. @returns how many, or a refusal */
  #decode(bytes: Uint8Array, base: (page: number) => Uint8Array): number {
    const { bodyStart, bodyEnd, version } = this.#sections;
    if (version !== PAGES_VERSION) return PAGE_ERROR.malformed;
    const committed = (page: number): Uint8Array | undefined =>
      page < PAGES ? base(page) : undefined;
    const [numbers, contents] = [this.#numbers, this.#contents];
    return decodePages(bytes, bodyStart, bodyEnd, committed, numbers, 0, contents, 0, PAGE_BYTES);
  }

  #content(index: number): Uint8Array {
    return this.#contents.subarray(index * PAGE_BYTES, (index + 1) * PAGE_BYTES);
  }

  #standingPage(page: number): Uint8Array {
    return this.#memory.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
  }

  /**
   * Decodes transaction `id` completely, on top of those before it.
   * @param disks the copies of the guest's disks, where those are replicated
   * @returns 0 when it can be loaded
   */
  resolve(id: number, manifest: Manifest, disks: ReplicaDisks | undefined): FaultCode | 0 {
    const t = this.#staged.find((staged) => staged.id === id);
    if (t === undefined) return FAULT.SECTION_MISSING;
    t.ops = [];
    const pages = new Map<number, Uint8Array>();
    let count = 0;
    let sectionCount = 0;
    let crc = 0;
    for (const part of t.parts) {
      crc = crc32c(part, 0, part.length, crc);
      const sections = this.#sections.reset(part);
      while (sections.next()) {
        sectionCount++;
        const { bodyStart, bodyEnd } = sections;
        if (sections.type === SECTION.pages) {
          const found = this.#decode(part, (page) => this.#pageBefore(t.id, page));
          if (found < 0) {
            return found === PAGE_ERROR.checksum ? FAULT.PAGE_CHECKSUM : FAULT.SECTION_MALFORMED;
          }
          count += found;
          // In the order in which they were sent: the last one counts.
          for (let i = 0; i < found; i++) pages.set(this.#numbers[i]!, this.#content(i).slice());
        } else if (sections.type === SECTION.diskWrites) {
          if (disks === undefined || sections.version !== DISK_OPS_VERSION) {
            return FAULT.SECTION_UNKNOWN;
          }
          const ops = { disk: sections.instance, bytes: part, start: bodyStart, end: bodyEnd };
          const wrong = disks.check(ops, true);
          if (wrong !== undefined) return wrong.code as FaultCode;
          t.ops.push(ops);
        } else {
          if ((bodyEnd - bodyStart) % 4 !== 0 && sections.type !== SECTION.tapLog) {
            return FAULT.SECTION_MALFORMED;
          }
          if (sections.type === SECTION.vcpu) t.regs = unpackWords(part, bodyStart, bodyEnd);
          else if (sections.type === SECTION.tapLog) t.log = part.slice(bodyStart, bodyEnd);
          else if (sections.instance === 0) t.nic = unpackWords(part, bodyStart, bodyEnd);
          else t.disk = unpackWords(part, bodyStart, bodyEnd);
        }
      }
      if (sections.error !== undefined) return FAULT.SECTION_MALFORMED;
    }
    if (manifest.crc !== crc || manifest.sections !== sectionCount || manifest.pages !== count) {
      return FAULT.MANIFEST_MISMATCH;
    }
    if (t.regs.length !== 2 || t.nic.length === 0 || t.disk.length === 0) {
      return FAULT.SECTION_MISSING;
    }
    const verdict = this.replay.check(t.log, 0, t.log.length);
    if (verdict !== undefined) {
      this.#log(`log of ${t.id}: ${verdict}`);
      return FAULT.SECTION_MALFORMED;
    }
    t.pages = pages;
    return 0;
  }

  /** A page as the transactions before `id` leave it. */
  #pageBefore(id: number, page: number): Uint8Array {
    for (let i = this.#staged.length - 1; i >= 0; i--) {
      const t = this.#staged[i]!;
      if (t.id >= id) continue;
      const found = t.pages?.get(page);
      if (found !== undefined) return found;
    }
    return this.#standingPage(page);
  }

  /** What loading transaction `id` on top of everything before it gives; undefined where it was never decoded. */
  ghostOf(id: number): Ghost | undefined {
    const t = this.#staged.find((staged) => staged.id === id);
    if (t?.pages === undefined) return undefined;
    const memory = this.#memory.slice();
    for (const s of this.#staged) {
      if (s.id > t.id) break;
      for (const [page, content] of s.pages ?? []) memory.set(content, page * PAGE_BYTES);
    }
    const { regs, nic, disk } = t;
    return { steps: regs[0]!, memoryHash: memoryHash(memory), regs, nic, disk };
  }

  /** What is applied. */
  standing(): Ghost {
    const regs = this.#regs;
    const hash = memoryHash(this.#memory);
    return { steps: regs[0]!, memoryHash: hash, regs, nic: this.#nic, disk: this.#disk };
  }

  /** Transaction `id` is acknowledged. */
  accept(id: number): void {
    const { log } = this.#staged.find((t) => t.id === id)!;
    this.replay.accept(log, 0, log.length);
  }

  /** Brings what is held to transaction `id`. @returns what that does to the disks; undefined where it is not there any more */
  apply(id: number): readonly DiskOps[] | undefined {
    const t = this.#staged[0];
    if (t === undefined || t.id !== id || t.pages === undefined) return undefined;
    for (const [page, content] of t.pages) this.#memory.set(content, page * PAGE_BYTES);
    this.#regs = t.regs;
    this.#nic = t.nic;
    this.#disk = t.disk;
    this.replay.apply(t.log, 0, t.log.length);
    this.#staged.shift();
    return t.ops;
  }

  /** Makes `guest` what is held. */
  load(guest: SimGuest): void {
    guest.memory.set(this.#memory);
    guest.dirty.fill(1);
    guest.regs.set(this.#regs);
    guest.loadNic(this.#nic);
    guest.loadDisk(this.#disk);
  }
}
