/**
 * A simulated process that runs the guest: the real primary machine, with a shell around it that does what
 * ft/shell does, in small: the connection, the tap in front of card and disk, who may let outputs out. Its checkpoints are in
 * primary-checkpoints.ts, its replicated disks in primary-disks.ts.
 */
import { EventTap, HELD_BLOCK, type TapSink } from '../../src/ft/core/event-tap.ts';
import type { ArbiterAnswer } from '../../src/ft/core/failover.ts';
import type { Primary } from '../../src/ft/core/primary.ts';
import type { PrimaryEffect } from '../../src/ft/core/primary-types.ts';
import type { HeldCopy, Origin, ReturnedCopy } from '../../src/ft/disk/storage.ts';
import { Decoder } from '../../src/ft/wire/decoder.ts';
import { describeMessage, type Message } from '../../src/ft/wire/message.ts';
import { FRAME_BYTES, type GuestDevices, type SimGuest, SLOT_OP } from './guest.ts';
import type { LeaseClient, LeaseUser } from './lease-store.ts';
import { primaryConfig } from './machine-config.ts';
import type { Connection } from './network.ts';
import type { ArbiterUser, DiskUser } from './outside.ts';
import { makePrimary } from './planted.ts';
import { PrimaryCheckpoints } from './primary-checkpoints.ts';
import { type DiskOwner, PrimaryDisks } from './primary-disks.ts';
import { frameBytes, SimProcess } from './process.ts';
import type { World } from './world.ts';

interface Request {
  readonly op: number;
  readonly sector: number;
  readonly value: number;
  readonly step: number;
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
  readonly #checkpoints: PrimaryCheckpoints;
  /** Where the arbiter gives leases. */
  readonly client: LeaseClient | undefined;
  /** Outputs that were released after the lease's end. */
  readonly #parked: (() => void)[] = [];
  readonly #requests: (Request | undefined)[] = [undefined, undefined, undefined, undefined];
  readonly #doneWhileStopped: [slot: number, ok: boolean][] = [];
  readonly #strangers = new Map<Connection, Decoder>();
  #decoder: Decoder | undefined;
  #stopped = false;
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
    this.#checkpoints = new PrimaryCheckpoints(this, this.#disks);
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
    return this.#checkpoints.wanted(sync);
  }

  copied(sync: number, payload: Uint8Array): void {
    this.post(0, () => {
      if (this.wanted(sync)) this.#checkpoints.syncFrame(payload);
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
          message = { ...message, payload: this.#checkpoints.takeChunk(e.chunk) };
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
        if (e.mode === 'full') this.#checkpoints.startSync();
        break;
      case 'pre-copy':
        this.#checkpoints.sendAhead(e.epoch);
        break;
      case 'capture':
        this.#capture(e.epoch, e.atomic);
        break;
      case 'encode':
        this.#checkpoints.encode(e.epoch);
        break;
      case 'acked':
        this.#disks?.disks.acked(e.epoch, e.id);
        this.#checkpoints.acked(e.epoch);
        break;
      case 'returned':
        this.#checkpoints.returned(e.fromEpoch);
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
    this.#checkpoints.take(epoch, atomic);
    if (!atomic) this.#run();
  }
}
