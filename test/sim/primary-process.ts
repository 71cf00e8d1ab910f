/**
 * A simulated process that runs the guest: the real primary machine, with a shell around it that does what
 * ft/shell does, in small: dirty pages, staging, encoding against what was last sent, the tap in front of
 * card and disk.
 */
import { crc32c } from '../../src/base/crc32c.ts';
import { EventTap, HELD_BLOCK, type TapSink } from '../../src/ft/core/event-tap.ts';
import type { ArbiterAnswer } from '../../src/ft/core/failover.ts';
import type { Primary } from '../../src/ft/core/primary.ts';
import type { PrimaryEffect } from '../../src/ft/core/primary-types.ts';
import type { HeldCopy, Origin, ReturnedCopy } from '../../src/ft/disk/storage.ts';
import { Decoder } from '../../src/ft/wire/decoder.ts';
import { describeMessage, type Message } from '../../src/ft/wire/message.ts';
import { PAGE_RECORD_BYTES, PAGES_VERSION, PageEncoder } from '../../src/ft/wire/page-stream.ts';
import { writeSectionHeader } from '../../src/ft/wire/sections.ts';
import { SECTION, SECTION_HEADER_BYTES } from '../../src/ft/wire/spec.ts';
import { Violation } from './checkers.ts';
import {
  FRAME_BYTES,
  type Ghost,
  type GuestDevices,
  PAGE_BYTES,
  PAGES,
  packWords,
  type SimGuest,
  SLOT_OP,
} from './guest.ts';
import type { LeaseClient, LeaseUser } from './lease-store.ts';
import { primaryConfig } from './machine-config.ts';
import type { Connection } from './network.ts';
import type { ArbiterUser, DiskUser } from './outside.ts';
import { makePrimary } from './planted.ts';
import { blocksOf, type DiskOwner, PrimaryDisks } from './primary-disks.ts';
import { frameBytes, SimProcess } from './process.ts';
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

interface Request {
  readonly op: number;
  readonly sector: number;
  readonly value: number;
  readonly step: number;
}

/** Builds one section. */
function section(type: number, instance: number, body: Uint8Array, version = 1): Uint8Array {
  const out = new Uint8Array(SECTION_HEADER_BYTES + body.length);
  out.set(body, writeSectionHeader(out, 0, type, version, instance, body.length));
  return out;
}

export class PrimaryProcess
  extends SimProcess
  implements ArbiterUser, DiskUser, LeaseUser, TapSink, GuestDevices, DiskOwner
{
  readonly guest: SimGuest;
  readonly tap: EventTap;
  readonly machine: Primary;
  readonly generation: number;
  /** Where the guest's disks are replicated. */
  readonly #disks: PrimaryDisks | undefined;
  /** Where the arbiter gives leases. */
  readonly client: LeaseClient | undefined;
  /** Outputs that were released after the lease's end. */
  readonly #parked: (() => void)[] = [];
  readonly #staging = new Map<number, Staging>();
  readonly #encoder = new PageEncoder(PAGES, PAGE_BYTES);
  readonly #chunks = new Map<number, Uint8Array>();
  readonly #requests: (Request | undefined)[] = [undefined, undefined, undefined, undefined];
  readonly #doneWhileStopped: [slot: number, ok: boolean][] = [];
  readonly #strangers = new Map<Connection, Decoder>();
  #nextChunk = 1;
  #decoder: Decoder | undefined;
  #stopped = false;
  #encoding = 0;
  #ahead: Ahead | undefined;
  #sync = 0;
  #batch: Uint32Array[] = [];
  over = false;
  /** Where the guest was taken over: from what. */
  origin: Origin | undefined;

  /** @param firstSeq number of the tap's first output; a takeover goes on behind its log */
  constructor(
    world: World,
    host: number,
    instance: string,
    generation: number,
    guest: SimGuest,
    firstSeq: number,
    client?: LeaseClient,
  ) {
    super(world, host, instance);
    this.client = client;
    if (client !== undefined) this.keepClock(client.user);
    this.generation = generation;
    this.guest = guest;
    guest.attach(this);
    if (world.config.replicated) this.#disks = new PrimaryDisks(this, guest, this);
    const { tapBytes, tapEntries } = world.config;
    const factor = world.bug === 'unbounded-log' ? 50 : 1;
    const tapConfig = {
      bytesMax: tapBytes * factor,
      entriesMax: tapEntries * factor,
      blockMax: 4,
      triggersMax: 1,
    };
    this.tap = new EventTap(tapConfig, this, () => this.machine.held(this.now), firstSeq);
    const config = primaryConfig(world.config, instance, generation);
    this.machine = makePrimary(world.bug, config, this.tap);
    if (client !== undefined) {
      client.user = this;
      this.machine.leaseExtended(client.untilNs, this.now);
    }
    this.post(0, () => this.#tick());
    this.post(world.prng.below(50), () => this.#guestStep());
  }

  get name(): string {
    return `host-${'ab'[this.host]}/primary`;
  }

  get passing(): boolean {
    return this.machine.passing;
  }

  /** Whether the guest runs here, now or as soon as a capture is acknowledged. */
  get active(): boolean {
    return this.alive && !this.over;
  }

  /** Whether outputs may leave now: asked in front of each. */
  get #leased(): boolean {
    if (this.client === undefined || this.world.bug === 'lease-checked-too-early') return true;
    return this.now < this.client.untilNs;
  }

  leaseChanged(untilNs: number): void {
    // As in the shell: what was released earlier leaves earlier.
    if (this.#leased) for (const output of this.#parked.splice(0)) output();
    this.machine.leaseExtended(untilNs, this.now);
  }

  superseded(generation: number): void {
    this.machine.superseded(generation, this.now);
  }

  #tick(): void {
    this.client?.tick();
    this.machine.tick(this.now);
    if (!this.over) this.post(this.world.config.tick, () => this.#tick());
  }

  #guestStep(): void {
    if (this.over) return;
    if (!this.#stopped) {
      this.guest.step(this.world.prng.u32());
      this.machine.tick(this.now);
    }
    this.post(this.world.config.guestStep + this.world.prng.below(20), () => this.#guestStep());
  }

  /** A request of the client reaches the card. */
  request(n: number): void {
    this.handle(() => {
      if (!this.#stopped && !this.over) this.guest.receive(n);
    });
  }

  // --- the guest's devices

  send(frame: Uint32Array, step: number): boolean {
    if (!this.tap.holding) {
      if (!this.#leased) return false;
      this.#showFrame(frame, step);
      return true;
    }
    const bytes = new Uint8Array(frame.buffer, frame.byteOffset, FRAME_BYTES);
    const held = this.tap.holdFrame(0, bytes, 0, FRAME_BYTES);
    if (!held) this.machine.tapFull(this.now);
    this.#checkTap();
    return held;
  }

  disk(slot: number, op: number, sector: number, value: number, step: number): boolean {
    if (this.#disks !== undefined) {
      this.#disks.submit(slot, op, value);
      return true;
    }
    this.#requests[slot] = { op, sector, value, step };
    if (!this.tap.holding) {
      this.#submit(slot);
      return true;
    }
    const kind = op === SLOT_OP.flush ? HELD_BLOCK.flush : HELD_BLOCK.write;
    const held = this.tap.holdBlock(0, slot, kind, sector, kind === HELD_BLOCK.flush ? 0 : 1);
    if (!held) this.machine.tapFull(this.now);
    this.#checkTap();
    return held;
  }

  #checkTap(): void {
    const { checker, config } = this.world;
    checker.bound('tap entries', this.tap.heldCount, config.tapEntries);
    checker.bound('tap bytes', this.tap.heldBytes, config.tapBytes);
  }

  // --- the tap's sink

  frame(_device: number, bytes: Uint8Array, start: number, end: number): void {
    this.#batch.push(new Uint32Array(bytes.slice(start, end).buffer));
  }

  console(): void {}

  block(_device: number, tag: number): void {
    this.#submit(tag);
  }

  released(): void {
    const batch = this.#batch;
    this.#batch = [];
    if (this.world.bug === 'release-order') batch.reverse();
    for (const frame of batch) this.#showFrame(frame, frame[4]!);
  }

  #showFrame(frame: Uint32Array, step: number): void {
    if (!this.alive) return;
    if (!this.#leased) {
      this.#parked.push(() => this.#showFrame(frame, step));
      return;
    }
    this.world.checker.output(this, 'frame', step);
    this.world.toClient(frame.slice());
  }

  /** @param early given to the disk while outputs passed, but the lease was over then */
  #submit(slot: number, early = false): void {
    if (!this.alive) return;
    if (!this.#leased) {
      const passed = early || !this.tap.holding;
      this.#parked.push(() => this.#submit(slot, passed));
      return;
    }
    const request = this.#requests[slot]!;
    this.world.checker.output(this, 'disk request', request.step, early);
    this.world.disk.submit(this, slot, request.op, request.sector, request.value);
  }

  diskDone(slot: number, ok: boolean): void {
    this.handle(() => {
      if (this.tap.blockCount > 0 && this.#released(slot)) {
        this.machine.blockDone(0, slot, this.now);
      }
      if (this.#stopped) this.#doneWhileStopped.push([slot, ok]);
      else this.#complete(slot, ok);
    });
  }

  // --- replicated disks

  done(slot: number, ok: boolean): void {
    if (this.#stopped) this.#doneWhileStopped.push([slot, ok]);
    else this.#complete(slot, ok);
  }

  waits(): void {
    this.machine.tapFull(this.now);
  }

  wanted(sync: number): boolean {
    return this.alive && this.#sync === sync && this.machine.sender.state === 'sync';
  }

  copied(sync: number, payload: Uint8Array): void {
    this.post(0, () => {
      if (this.wanted(sync)) this.#syncFrame(payload);
    });
  }

  unreadable(sync: number): void {
    this.post(0, () => {
      if (!this.wanted(sync)) return;
      this.hangUp();
      this.machine.disconnected(this.now);
    });
  }

  /** The guest goes on without the standby. */
  #alone(): void {
    if (this.#disks === undefined) return;
    this.#disks.disks.forget();
    // What is written from here on is only marked, so no standby can go on from what it holds.
    if (this.machine.sender.state !== 'sync') this.machine.sender.forceFull();
  }

  #syncFrame(payload: Uint8Array): void {
    const chunk = this.#nextChunk++;
    this.#chunks.set(chunk, payload);
    this.machine.syncChunk(chunk, this.now);
  }

  /** The guest was taken over here from `origin`, and has not written since. */
  tookOver(origin: Origin): void {
    this.origin = origin;
    this.#disks?.disks.tookOver(origin, [0, 1]);
  }

  /** Whether the slot went through the tap (and not past it while nothing was held). */
  #released(slot: number): boolean {
    return this.tap.isReleased(0, slot);
  }

  #complete(slot: number, ok: boolean): void {
    const before =
      this.world.bug === 'device-writes-not-dirty' ? this.guest.dirty.slice() : undefined;
    this.guest.complete(slot, ok);
    if (before !== undefined) this.guest.dirty.set(before);
  }

  // --- the connection

  /** The connection that this end asked for is up. */
  established(
    connection: Connection,
    held: HeldCopy | undefined,
    returned: ReturnedCopy | undefined,
  ): void {
    this.handle(() => {
      if (this.over || this.connection !== undefined) {
        connection.close(this);
        return;
      }
      this.connection = connection;
      this.#disks?.introduced(held, returned);
      this.#decoder = new Decoder({
        admit: () => 0,
        message: (m) => {
          if (m.cmd === 'HEARTBEAT' && m.generation === this.machine.sender.generation) {
            this.#disks?.disks.confirmed(m.appliedId);
          }
          // What a disk has asked for meanwhile comes before this message, as in the shell.
          if (this.#disks !== undefined) this.carryOut();
          if (this.alive) this.machine.message(m, this.now);
        },
        fault: (f) => this.machine.decodeFault(f, this.now),
      });
      this.machine.connected(this.now);
    });
  }

  /** A former primary, or a mistaken one, connects to this one. */
  accepted(connection: Connection): void {
    const decoder = new Decoder({
      admit: () => 0,
      message: (m) => {
        if (m.cmd === 'HELLO') this.#put(connection, this.machine.stranger(m.hello, this.now));
        decoder.stop();
        connection.close(this);
      },
      fault: () => connection.close(this),
    });
    this.#strangers.set(connection, decoder);
  }

  override bytes(connection: Connection, bytes: Uint8Array): void {
    const stranger = this.#strangers.get(connection);
    if (stranger === undefined) super.bytes(connection, bytes);
    else this.handle(() => stranger.push(bytes));
  }

  override gone(connection: Connection): void {
    if (!this.#strangers.delete(connection)) super.gone(connection);
  }

  protected received(bytes: Uint8Array): void {
    this.#decoder!.push(bytes);
    this.world.checker.bound('bytes in a decoder', this.#decoder!.bufferedBytes, 2048);
  }

  protected lost(): void {
    this.machine.disconnected(this.now);
  }

  arbiterAnswer(answer: ArbiterAnswer): void {
    this.handle(() => this.machine.arbiterAnswer(answer, this.now));
  }

  #put(connection: Connection, message: Message): void {
    if (this.world.trace !== undefined) this.world.log(`  > ${describeMessage(message)}`);
    connection.send(this, frameBytes(message));
  }

  // --- effects

  protected carryOut(): void {
    const { out } = this.machine;
    for (let e = out.shift(); e !== undefined && this.alive; e = out.shift()) {
      if (this.world.mayDieHere(this)) return;
      this.#effect(e);
    }
  }

  #effect(e: PrimaryEffect): void {
    switch (e.type) {
      case 'send': {
        let { message } = e;
        if (message.cmd === 'CONTINUE' || message.cmd === 'SYNC') {
          const payload = this.#chunks.get(e.chunk) ?? EMPTY;
          this.#chunks.delete(e.chunk);
          message = { ...message, payload };
        }
        if (this.connection !== undefined) this.#put(this.connection, message);
        break;
      }
      case 'close':
        this.world.log(`${this.name} closes: ${e.sentence}`);
        this.hangUp();
        break;
      case 'connect':
        this.world.connect(this);
        break;
      case 'opened':
        if (e.mode === 'full') this.#startSync();
        break;
      case 'pre-copy':
        this.#sendAhead(e.epoch);
        break;
      case 'capture':
        this.#capture(e.epoch, e.atomic);
        break;
      case 'encode':
        this.#encode(e.epoch);
        break;
      case 'acked':
        this.#disks?.disks.acked(e.epoch, e.id);
        for (const epoch of this.#staging.keys()) if (epoch <= e.epoch) this.#staging.delete(epoch);
        break;
      case 'returned':
        this.#returned(e.fromEpoch);
        break;
      case 'run':
        this.#run();
        break;
      case 'refused':
        // It may have been mended meanwhile.
        if (this.#disks !== undefined) this.post(1500, () => this.machine.protect(this.now));
        break;
      case 'fence':
        this.#stopped = true;
        this.over = true;
        this.post(0, () => this.die(false));
        break;
      case 'over':
        this.#stopped = true;
        this.over = true;
        if (e.why === 'ended') this.world.ended(this);
        this.post(this.world.prng.below(300), () => this.die(false));
        break;
      case 'arbiter':
        if (this.client === undefined) this.world.arbiter.request(this, e.ticket, e.request);
        else this.client.request(e.ticket, e.request);
        break;
      case 'phase':
        if (e.phase === 'alone') this.#alone();
        this.world.note(this, e.phase);
        break;
      default:
        break;
    }
  }

  #run(): void {
    this.#stopped = false;
    for (const [slot, ok] of this.#doneWhileStopped.splice(0)) this.#complete(slot, ok);
  }

  /** The guest switches itself off. */
  powerOff(): void {
    this.handle(() => {
      if (this.over) return;
      // A guest that stands still does nothing, and does not switch itself off.
      if (this.#stopped) return;
      this.#stopped = true;
      this.machine.end(1, this.now);
    });
  }

  #startSync(): void {
    this.#encoder.clear();
    const sync = ++this.#sync;
    if (this.#disks === undefined) {
      this.#copyMemory(sync, () => this.machine.synchronised(this.now));
      return;
    }
    const memory = (): Promise<void> =>
      new Promise((resolve) => {
        this.post(0, () =>
          this.#copyMemory(sync, () => {
            this.world.schedule.unsettled = true;
            resolve();
          }),
        );
      });
    void this.#disks.copy(sync, this.generation, memory, () => {
      this.post(0, () => {
        if (this.wanted(sync)) this.machine.synchronised(this.now);
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
          if (rounds > 0 && this.guest.dirty[page] === 0) continue;
          this.guest.dirty[page] = 0;
          pages.push({ page, content: this.#page(page) });
        }
        this.#syncFrame(this.#pagesSection(pages));
      } else if (rounds++ < 1) page = 0;
      else {
        copied();
        return;
      }
      this.post(5 + this.world.prng.below(40), next);
    };
    next();
  }

  #page(page: number): Uint8Array {
    return this.guest.memory.slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
  }

  #capture(epoch: number, atomic: boolean): void {
    const still = this.#stopped;
    this.#stopped = true;
    // Stopping the vCPUs takes a while now and then; completions wait for the guest to run on.
    const { prng } = this.world;
    if (prng.chance(0.3)) this.post(prng.below(30), () => this.#pausedNow(epoch, atomic, still));
    else this.#pausedNow(epoch, atomic, still);
  }

  /** @param still whether the guest stood still before */
  #pausedNow(epoch: number, atomic: boolean, still: boolean): void {
    if (this.over) return;
    // Drain the completions first: they are part of this checkpoint.
    if (!atomic) for (const [s, ok] of this.#doneWhileStopped.splice(0)) this.#complete(s, ok);
    if (!this.machine.paused(this.now)) {
      if (!still) this.#run();
      return;
    }
    const { guest, world } = this;
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
    const log = new Uint8Array(this.tap.logBytes);
    this.tap.writeLog(log, 0);
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
    const id = this.machine.sender.nextId;
    // The truth is what the guest was; a capture that drops part of it is judged by what it claims to hold.
    const truth: Ghost =
      this.#disks === undefined
        ? guest.ghost()
        : { ...guest.ghost(), blocks: blocksOf(this, guest) };
    if (truth.blocks !== undefined) world.checker.guestKnows(guest, truth.blocks);
    const ghost = world.bug === 'drop-in-flight' ? { ...truth, disk: disk.slice(0, 1) } : truth;
    this.#staging.set(epoch, { epoch, id, pages, ahead, sections, ghost });
    const bytes = pages.length * PAGE_BYTES;
    const sentAhead = { pages: sent.size, again: again.length };
    this.machine.captured(bytes, pages.length, 10 + pages.length, this.now, atomic, sentAhead);
    if (!atomic) this.#run();
  }

  #pagesSection(pages: readonly StagedPage[]): Uint8Array {
    const out = new Uint8Array(pages.length * (PAGE_RECORD_BYTES + PAGE_BYTES));
    const stats = new Uint32Array(5);
    const list = numbersOf(pages);
    const contents = concat(pages.map((p) => p.content));
    this.#encoder.encode(list, 0, list.length, contents, 0, out, 0, stats);
    return section(SECTION.pages, 0, out.subarray(0, stats[4]), PAGES_VERSION);
  }

  #encode(epoch: number): void {
    const staging = this.#staging.get(epoch);
    if (staging === undefined) throw new Violation('P', `epoch ${epoch} is not in staging`);
    this.world.checker.capture(this.generation, staging.id, staging.ghost);
    const half = this.world.prng.below(staging.pages.length + 1);
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
    const { prng } = this.world;
    this.#goesBad(chunks);
    const turn = ++this.#encoding;
    let i = 0;
    const next = (): void => {
      if (turn !== this.#encoding || !this.#staging.has(epoch)) return;
      if (i === chunks.length) {
        this.machine.sealed(epoch, manifest, this.now);
        return;
      }
      const chunk = this.#nextChunk++;
      this.#chunks.set(chunk, chunks[i++]!);
      if (!this.machine.chunk(epoch, chunk, this.now)) this.#chunks.delete(chunk);
      else if (prng.chance(0.5)) this.post(prng.below(20), next);
      else next();
    };
    next();
  }

  /** Memory that goes bad between the checksum and the wire. */
  #goesBad(chunks: readonly Uint8Array[]): void {
    const { prng, faults } = this.world;
    if (!prng.chance(faults.stagingFlip)) return;
    const chunk = prng.pick(chunks);
    chunk[prng.below(chunk.length)]! ^= 1 << prng.below(8);
  }

  /** Sends what is dirty now, a few pages at a time, while the guest runs and writes some of it again. */
  #sendAhead(epoch: number): void {
    const { world, guest } = this;
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
        const cancel = (): void => this.machine.cancelAhead(epoch, this.now);
        // Not inside an effect, behind which a capture of the same epoch may wait.
        if (this.#disks === undefined) cancel();
        else this.post(0, cancel);
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
      if (this.machine.chunk(epoch, chunk, this.now)) this.post(prng.below(60), next);
      else this.#chunks.delete(chunk);
    };
    next();
  }

  #returned(fromEpoch: number): void {
    if (this.world.bug !== 'disk-returned-writes-lost') {
      this.#disks?.disks.log.returnFrom(fromEpoch);
    }
    if (this.#ahead !== undefined && this.#ahead.epoch >= fromEpoch) {
      this.#giveBack(this.#ahead.sent);
      for (const page of this.#ahead.todo) this.guest.dirty[page] = 1;
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
    const { bug } = this.world;
    if (bug !== 'returned-pages-lost') for (const { page } of pages) this.guest.dirty[page] = 1;
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
