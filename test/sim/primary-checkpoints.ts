/**
 * The checkpoints of a simulated process that runs the guest: the first copy, captures into staging, what is sent ahead of them,
 * encoding against what was last sent, and what becomes of epochs that come back. Does what ft/shell does with them, in small.
 */
import { crc32c } from '../../src/base/crc32c.ts';
import type { EventTap } from '../../src/ft/core/event-tap.ts';
import type { Primary } from '../../src/ft/core/primary.ts';
import { PAGE_RECORD_BYTES, PAGES_VERSION, PageEncoder } from '../../src/ft/wire/page-stream.ts';
import { writeSectionHeader } from '../../src/ft/wire/sections.ts';
import { SECTION, SECTION_HEADER_BYTES } from '../../src/ft/wire/spec.ts';
import { Violation } from './checkers.ts';
import { type Ghost, PAGE_BYTES, PAGES, packWords, type SimGuest } from './guest.ts';
import { blocksOf, type PrimaryDisks } from './primary-disks.ts';
import type { SimProcess } from './process.ts';
import type { World } from './world.ts';

const EMPTY = new Uint8Array(0);

interface StagedPage {
  readonly page: number;
  readonly content: Uint8Array;
}

/** What is sent ahead of a capture. */
interface Ahead {
  readonly epoch: number;
  /** Taken off the dirty set and not sent yet. */
  readonly todo: number[];
  readonly sent: StagedPage[];
  frames: number;
  bytes: number;
  crc: number;
}

interface Staging {
  readonly epoch: number;
  readonly id: number;
  readonly pages: StagedPage[];
  readonly ahead: Ahead | undefined;
  readonly sections: Uint8Array[];
  readonly ghost: Ghost;
}

/** Builds one section. */
function section(type: number, instance: number, body: Uint8Array, version = 1): Uint8Array {
  const out = new Uint8Array(SECTION_HEADER_BYTES + body.length);
  out.set(body, writeSectionHeader(out, 0, type, version, instance, body.length));
  return out;
}

/** Whose checkpoints they are. */
interface CheckpointOwner extends SimProcess {
  readonly guest: SimGuest;
  readonly tap: EventTap;
  readonly machine: Primary;
  readonly generation: number;
}

/** See the module's head. */
export class PrimaryCheckpoints {
  readonly #process: CheckpointOwner;
  readonly #disks: PrimaryDisks | undefined;
  readonly #staging = new Map<number, Staging>();
  readonly #encoder = new PageEncoder(PAGES, PAGE_BYTES);
  readonly #chunks = new Map<number, Uint8Array>();
  #nextChunk = 1;
  #encoding = 0;
  #ahead: Ahead | undefined;
  #sync = 0;

  /** @param disks the guest's disks, where they are replicated */
  constructor(process: CheckpointOwner, disks: PrimaryDisks | undefined) {
    this.#process = process;
    this.#disks = disks;
  }

  get #world(): World {
    return this.#process.world;
  }

  get #guest(): SimGuest {
    return this.#process.guest;
  }

  get #tap(): EventTap {
    return this.#process.tap;
  }

  get #machine(): Primary {
    return this.#process.machine;
  }

  /** The bytes of a chunk that is sent now. */
  takeChunk(chunk: number): Uint8Array {
    const payload = this.#chunks.get(chunk) ?? EMPTY;
    this.#chunks.delete(chunk);
    return payload;
  }

  /** Everything up to `epoch` is acknowledged. */
  acked(epoch: number): void {
    for (const staged of this.#staging.keys()) if (staged <= epoch) this.#staging.delete(staged);
  }

  /** Whether the first copy begun as number `sync` is still wanted. */
  wanted(sync: number): boolean {
    return this.#process.alive && this.#sync === sync && this.#machine.sender.state === 'sync';
  }

  /** A frame of the first copy. */
  syncFrame(payload: Uint8Array): void {
    const chunk = this.#nextChunk++;
    this.#chunks.set(chunk, payload);
    this.#machine.syncChunk(chunk, this.#process.now);
  }

  /** Begins a first copy. */
  startSync(): void {
    this.#encoder.clear();
    const sync = ++this.#sync;
    if (this.#disks === undefined) {
      this.#copyMemory(sync, () => this.#machine.synchronised(this.#process.now));
      return;
    }
    const memory = (): Promise<void> =>
      new Promise((resolve) => {
        this.#process.post(0, () =>
          this.#copyMemory(sync, () => {
            this.#world.schedule.unsettled = true;
            resolve();
          }),
        );
      });
    void this.#disks.copy(sync, this.#process.generation, memory, () => {
      this.#process.post(0, () => {
        if (this.wanted(sync)) this.#machine.synchronised(this.#process.now);
      });
    });
  }

  /** All pages while the guest runs, and once more what it wrote meanwhile. */
  #copyMemory(sync: number, copied: () => void): void {
    let page = 0;
    let rounds = 0;
    const next = (): void => {
      if (!this.wanted(sync)) return;
      if (page < PAGES) {
        const pages: StagedPage[] = [];
        for (const end = Math.min(PAGES, page + 6); page < end; page++) {
          if (rounds > 0 && this.#guest.dirty[page] === 0) continue;
          this.#guest.dirty[page] = 0;
          pages.push({ page, content: this.#page(page) });
        }
        this.syncFrame(this.#pagesSection(pages));
      } else if (rounds++ < 1) page = 0;
      else {
        copied();
        return;
      }
      this.#process.post(5 + this.#world.prng.below(40), next);
    };
    next();
  }

  #page(page: number): Uint8Array {
    return this.#guest.memory.slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
  }

  /** The guest stands still, and the machine wants the checkpoint. */
  take(epoch: number, atomic: boolean): void {
    const [guest, world] = [this.#guest, this.#world];
    this.#disks?.disks.log.seal(epoch);
    const ahead = this.#ahead;
    this.#ahead = undefined;
    for (const page of ahead?.todo ?? []) guest.dirty[page] = 1;
    const sent = new Set(ahead?.sent.map((p) => p.page));
    const pages: StagedPage[] = [];
    for (let page = 0; page < PAGES; page++) {
      if (guest.dirty[page] === 0) continue;
      guest.dirty[page] = 0;
      if (world.bug === 'ahead-not-resent' && sent.has(page)) continue;
      pages.push({ page, content: this.#page(page) });
    }
    const again = pages.filter((p) => sent.has(p.page));
    if (world.bug !== 'ahead-base-kept') {
      this.#encoder.forget(numbersOf(again), 0, again.length);
    }
    const log = new Uint8Array(this.#tap.logBytes);
    this.#tap.writeLog(log, 0);
    const disk = guest.saveDisk();
    const sections = [
      section(SECTION.vcpu, 0, packWords([...guest.regs])),
      section(SECTION.device, 0, packWords(guest.saveNic())),
      section(
        SECTION.device,
        1,
        packWords(world.bug === 'drop-in-flight' ? disk.slice(0, 1) : disk),
      ),
      section(SECTION.tapLog, 0, log),
    ];
    const id = this.#machine.sender.nextId;
    // The truth is what the guest was; a capture that drops part of it is judged by what it claims to hold.
    const truth: Ghost =
      this.#disks === undefined
        ? guest.ghost()
        : { ...guest.ghost(), blocks: blocksOf(this.#process, guest) };
    if (truth.blocks !== undefined) world.checker.guestKnows(guest, truth.blocks);
    const ghost = world.bug === 'drop-in-flight' ? { ...truth, disk: disk.slice(0, 1) } : truth;
    this.#staging.set(epoch, { epoch, id, pages, ahead, sections, ghost });
    const bytes = pages.length * PAGE_BYTES;
    const sentAhead = { pages: sent.size, again: again.length };
    this.#machine.captured(
      bytes,
      pages.length,
      10 + pages.length,
      this.#process.now,
      atomic,
      sentAhead,
    );
  }

  #pagesSection(pages: readonly StagedPage[]): Uint8Array {
    const out = new Uint8Array(pages.length * (PAGE_RECORD_BYTES + PAGE_BYTES));
    const stats = new Uint32Array(5);
    const list = numbersOf(pages);
    const contents = concat(pages.map((p) => p.content));
    this.#encoder.encode(list, 0, list.length, contents, 0, out, 0, stats);
    return section(SECTION.pages, 0, out.subarray(0, stats[4]), PAGES_VERSION);
  }

  encode(epoch: number): void {
    const staging = this.#staging.get(epoch);
    if (staging === undefined) throw new Violation('P', `epoch ${epoch} is not in staging`);
    this.#world.checker.capture(this.#process.generation, staging.id, staging.ghost);
    const half = this.#world.prng.below(staging.pages.length + 1);
    const parts = [staging.pages.slice(0, half), staging.pages.slice(half)];
    const chunks = [
      ...parts.filter((p) => p.length > 0).map((p) => this.#pagesSection(p)),
      concat(staging.sections),
      ...(this.#disks?.sections(epoch) ?? []),
    ];
    const { frames = 0, sent = [] } = staging.ahead ?? {};
    let { crc = 0, bytes = 0 } = staging.ahead ?? {};
    for (const chunk of chunks) {
      crc = crc32c(chunk, 0, chunk.length, crc);
      bytes += chunk.length;
    }
    const manifest = {
      frames: frames + chunks.length,
      // Each chunk is one section, but for the one with all states.
      sections: frames + chunks.length - 1 + staging.sections.length,
      bytes,
      pages: sent.length + staging.pages.length,
      crc,
    };
    const { prng } = this.#world;
    this.#goesBad(chunks);
    const turn = ++this.#encoding;
    let i = 0;
    const next = (): void => {
      if (turn !== this.#encoding || !this.#staging.has(epoch)) return;
      if (i === chunks.length) {
        this.#machine.sealed(epoch, manifest, this.#process.now);
        return;
      }
      const chunk = this.#nextChunk++;
      this.#chunks.set(chunk, chunks[i++]!);
      if (!this.#machine.chunk(epoch, chunk, this.#process.now)) this.#chunks.delete(chunk);
      else if (prng.chance(0.5)) this.#process.post(prng.below(20), next);
      else next();
    };
    next();
  }

  /** Memory that goes bad between the checksum and the wire. */
  #goesBad(chunks: readonly Uint8Array[]): void {
    const { prng, faults } = this.#world;
    if (!prng.chance(faults.stagingFlip)) return;
    const chunk = prng.pick(chunks);
    chunk[prng.below(chunk.length)]! ^= 1 << prng.below(8);
  }

  /** Sends what is dirty now, a few pages at a time, while the guest runs and writes some of it again. */
  sendAhead(epoch: number): void {
    const [world, guest] = [this.#world, this.#guest];
    const { prng } = world;
    const todo: number[] = [];
    for (let page = 0; page < PAGES; page++) {
      if (guest.dirty[page] === 0 || prng.chance(0.2)) continue;
      guest.dirty[page] = 0;
      todo.push(page);
    }
    const ahead: Ahead = { epoch, todo, sent: [], frames: 0, bytes: 0, crc: 0 };
    this.#ahead = ahead;
    const next = (): void => {
      if (this.#ahead !== ahead || todo.length === 0) return;
      if (prng.chance(0.05)) {
        const cancel = (): void => this.#machine.cancelAhead(epoch, this.#process.now);
        // Not inside an effect, behind which a capture of the same epoch may wait.
        if (this.#disks === undefined) cancel();
        else this.#process.post(0, cancel);
        return;
      }
      const pages = todo
        .splice(0, 1 + prng.below(4))
        .map((page) => ({ page, content: this.#page(page) }));
      ahead.sent.push(...pages);
      const bytes = this.#pagesSection(pages);
      ahead.frames++;
      ahead.bytes += bytes.length;
      ahead.crc = crc32c(bytes, 0, bytes.length, ahead.crc);
      this.#goesBad([bytes]);
      const chunk = this.#nextChunk++;
      this.#chunks.set(chunk, bytes);
      if (this.#machine.chunk(epoch, chunk, this.#process.now))
        this.#process.post(prng.below(60), next);
      else this.#chunks.delete(chunk);
    };
    next();
  }

  returned(fromEpoch: number): void {
    if (this.#world.bug !== 'disk-returned-writes-lost') {
      this.#disks?.disks.log.returnFrom(fromEpoch);
    }
    if (this.#ahead !== undefined && this.#ahead.epoch >= fromEpoch) {
      this.#giveBack(this.#ahead.sent);
      for (const page of this.#ahead.todo) this.#guest.dirty[page] = 1;
      this.#ahead = undefined;
    }
    for (const [epoch, staging] of this.#staging) {
      if (epoch < fromEpoch) continue;
      this.#staging.delete(epoch);
      this.#giveBack([...staging.pages, ...(staging.ahead?.sent ?? [])]);
    }
  }

  /** These pages were sent, and did not commit. */
  #giveBack(pages: readonly StagedPage[]): void {
    const { bug } = this.#world;
    if (bug !== 'returned-pages-lost') for (const { page } of pages) this.#guest.dirty[page] = 1;
    if (bug !== 'delta-base-kept') this.#encoder.forget(numbersOf(pages), 0, pages.length);
  }
}

function numbersOf(pages: readonly StagedPage[]): Uint32Array {
  return Uint32Array.from(pages, (p) => p.page);
}

function concat(parts: readonly Uint8Array[]): Uint8Array {
  let length = 0;
  for (const part of parts) length += part.length;
  const out = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}
