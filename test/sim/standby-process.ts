/**
 * A simulated standby process: the real standby machine, with a shell around it that stages, validates, applies
 * and takes over. It also compares, at every step where it counts, what it holds with the truth.
 */
import type { ArbiterAnswer } from '../../src/ft/core/failover.ts';
import type { Standby, StandbyEffect } from '../../src/ft/core/standby.ts';
import type { DiskOps, ReplicaDisks } from '../../src/ft/disk/replica-disks.ts';
import type { HeldCopy, ReturnedCopy } from '../../src/ft/disk/storage.ts';
import { Decoder } from '../../src/ft/wire/decoder.ts';
import { FAULT, type Fault, fault } from '../../src/ft/wire/fault.ts';
import { describeMessage, type Manifest, type Message } from '../../src/ft/wire/message.ts';
import { SectionReader } from '../../src/ft/wire/sections.ts';
import { SECTION } from '../../src/ft/wire/spec.ts';
import { Violation } from './checkers.ts';
import { guestHasDisks } from './config.ts';
import { SimGuest } from './guest.ts';
import { LeaseClient, type LeaseUser } from './lease-store.ts';
import { standbyConfig } from './machine-config.ts';
import type { Connection } from './network.ts';
import type { ArbiterUser } from './outside.ts';
import { makeStandby } from './planted.ts';
import { reversed } from './planted-disks.ts';
import { blocksOf } from './primary-disks.ts';
import { PrimaryProcess } from './primary-process.ts';
import { frameBytes, SimProcess } from './process.ts';
import { ProtocolMonitor } from './protocol-monitor.ts';
import { imagesOf, openReplicas } from './standby-disks.ts';
import { StandbyState } from './standby-state.ts';
import type { World } from './world.ts';

export class StandbyProcess extends SimProcess implements ArbiterUser, LeaseUser {
  readonly client: LeaseClient | undefined;
  readonly machine: Standby;
  readonly #state: StandbyState;
  readonly #sections = new SectionReader();
  #decoder: Decoder | undefined;
  readonly #monitor = new ProtocolMonitor();
  #unread: Uint8Array[] = [];
  #paused = false;
  /** Copies of the guest's disks, where those are replicated and have been opened. */
  #disks: ReplicaDisks | undefined;
  /** Whether the primary of this connection was told that the copies are whole. */
  #told = false;
  #toldReturned = false;
  /** Epochs that a disk refused since the last first copy. */
  #refused = 0;
  #resets = 0;
  #connections = 0;

  constructor(world: World, host: number, instance: string) {
    super(world, host, instance);
    this.#state = new StandbyState(world.config.tapBytes, (text) => world.log(text));
    if (world.config.leases) this.client = new LeaseClient(this, world.bug);
    this.machine = makeStandby(world.bug, standbyConfig(world.config, instance));
    this.post(0, () => this.#tick());
    if (world.config.replicated) this.post(0, () => this.#open());
  }

  /** Opens the copies of the disks; no primary is heard before. */
  #open(): void {
    this.world.schedule.unsettled = true;
    void openReplicas(this).then(
      (disks) => {
        this.post(0, () => {
          this.#disks = disks;
          disks.setEvents({
            flow: () => {},
            failed: (sentence) => this.post(0, () => this.#refuse(sentence)),
          });
        });
      },
      (error) => {
        this.world.failed(this.host, error);
        this.post(0, () => this.die(false));
      },
    );
  }

  override get listens(): boolean {
    return !this.world.config.replicated || this.#disks !== undefined;
  }

  /** What the copies here hold of the guest already. */
  override get held(): HeldCopy | undefined {
    return this.#disks?.held;
  }

  override get returned(): ReturnedCopy | undefined {
    return this.#disks?.returned;
  }

  /** A disk here is of no use now: the primary is told, and turned away. */
  #refuse(sentence: string): void {
    if (this.world.sound(this.host)) throw new Violation('P', `a sound disk refuses: ${sentence}`);
    this.world.log(`${this.name} refuses: ${sentence}`);
    const { generation } = this.machine.receiver;
    const code = FAULT.RESOURCE_MISSING;
    this.#send({ cmd: 'NACK', generation, id: 0, seq: 0, code, sentence });
    this.#monitor.refused();
    this.#drop();
  }

  get name(): string {
    return `host-${'ab'[this.host]}/standby`;
  }

  leaseChanged(): void {}
  superseded(): void {}

  #tick(): void {
    this.client?.tick();
    this.machine.tick(this.now);
    this.post(this.world.config.tick, () => this.#tick());
  }

  accepted(connection: Connection, toldReturned: boolean): void {
    this.handle(() => {
      this.#drop();
      this.connection = connection;
      this.#connections++;
      this.#told = this.held !== undefined;
      this.#toldReturned = toldReturned;
      this.#unread = [];
      this.#paused = false;
      const decoder = new Decoder({
        admit: (h) => this.machine.admit(h),
        message: (m) => this.#message(m),
        fault: (f) => {
          this.machine.decodeFault(f, this.now);
          this.carryOut();
        },
      });
      this.#decoder = decoder;
      this.machine.connected(this.now);
      this.carryOut();
      this.#monitor.connected(this.machine.receiver.committedId);
    });
  }

  #message(message: Message): void {
    if (!this.alive || this.connection === undefined) return;
    const listening = this.machine.receiver.state !== 'closed';
    const bad = listening ? this.#monitor.before(message) : undefined;
    this.machine.message(message, this.now);
    // The payload is borrowed until here, so effects are carried out inside the call.
    this.carryOut();
    if (this.alive) this.#monitor.after(bad);
  }

  protected received(bytes: Uint8Array): void {
    if (this.#paused) {
      this.#unread.push(bytes.slice());
      return;
    }
    this.#decoder!.push(bytes);
    const { checker, config } = this.world;
    checker.bound('bytes in a decoder', this.#decoder!.bufferedBytes, config.frameBytes + 40);
    checker.bound(
      'bytes staged',
      this.machine.receiver.stagedBytes,
      2 * config.transactionBytes + 2 * config.frameBytes,
    );
    checker.bound('bytes in the log', this.#state.replay.bytes, config.tapBytes);
  }

  /** Closes the connection. As in the shell, nothing that was under way for it goes on. */
  #drop(): void {
    if (this.connection === undefined) return;
    this.hangUp();
    this.lost();
  }

  protected lost(): void {
    this.#connections++;
    this.#disks?.cutOff();
    this.machine.disconnected(this.now);
  }

  arbiterAnswer(answer: ArbiterAnswer): void {
    this.handle(() => this.machine.arbiterAnswer(answer, this.now));
  }

  /** An operator orders the takeover; a process that is stopped does not hear it. */
  order(): void {
    if (this.frozen) return;
    this.handle(() => {
      this.machine.orderTakeover(this.now);
    });
  }

  protected carryOut(): void {
    const { out } = this.machine;
    for (let e = out.shift(); e !== undefined && this.alive; e = out.shift()) {
      if (this.world.mayDieHere(this)) return;
      this.#effect(e);
    }
  }

  #effect(e: StandbyEffect): void {
    switch (e.type) {
      case 'send':
        this.#send(e.message);
        break;
      case 'close':
        this.#monitor.refused();
        this.world.log(`${this.name} closes: ${e.sentence}`);
        this.#drop();
        break;
      case 'agreed':
        this.#decoder!.setBulkBytesMax(e.agreement.limits.frameBytesMax);
        break;
      case 'reset':
        this.#resets++;
        this.world.schedule.unsettled = true;
        this.#disks?.reset(e.generation, this.#told, this.#toldReturned);
        this.#refused = 0;
        this.#state.reset();
        break;
      case 'sync':
        this.#state.applyPages(e.payload);
        this.#copyDisks(e.payload);
        break;
      case 'stage':
        this.#stage(e.id, e.payload);
        break;
      case 'validate':
        this.#validate(e.id, e.manifest);
        break;
      case 'discard':
        if (this.world.bug === 'cancelled-parts-kept') break;
        this.#state.discard(e.fromId);
        break;
      case 'committed':
        this.#committed(e.id, e.generation);
        break;
      case 'apply':
        this.post(this.world.prng.below(60), () => this.#apply(e.id));
        break;
      case 'read-pause':
        this.#paused = true;
        break;
      case 'read-on':
        this.#readOn();
        break;
      case 'arbiter':
        if (this.client === undefined) this.world.arbiter.request(this, e.ticket, e.request);
        else this.client.request(e.ticket, e.request);
        break;
      case 'take-over':
        this.#takeOver(e.generation);
        break;
      default:
        break;
    }
  }

  #readOn(): void {
    this.#paused = false;
    const connection = this.connection;
    if (connection === undefined || this.#unread.length === 0) return;
    const unread = this.#unread.splice(0);
    this.post(0, () => {
      for (const bytes of unread) if (this.connection === connection) this.received(bytes);
    });
  }

  #send(message: Message): void {
    if (message.cmd === 'NACK') this.#monitor.nacked(message.id);
    if (this.connection === undefined) return;
    if (this.world.trace !== undefined) this.world.log(`  < ${describeMessage(message)}`);
    this.connection.send(this, frameBytes(message));
  }

  // --- transactions

  #stage(id: number, payload: Uint8Array): void {
    this.#state.stage(id, payload);
    if (this.world.bug === 'apply-before-commit') this.#state.applyPages(payload);
    if (this.world.bug === 'disk-apply-before-commit') {
      this.#copyDisks(payload, SECTION.diskWrites);
    }
  }

  /** Pieces of the disks' first copy. */
  #copyDisks(payload: Uint8Array, kind: number = SECTION.diskCopy): void {
    if (this.#disks === undefined) return;
    const sections = this.#sections.reset(payload);
    while (sections.next()) {
      const { type, instance: disk, bodyStart: start, bodyEnd: end } = sections;
      if (type !== kind) continue;
      this.world.schedule.unsettled = true;
      const wrong = this.#disks.copy({ disk, bytes: payload, start, end });
      if (wrong === undefined) continue;
      this.world.invalid(wrong.code);
      this.machine.decodeFault({ ...wrong, fatal: true, generation: 0, id: 0 }, this.now);
    }
  }

  #validate(id: number, manifest: Manifest): void {
    const code = this.#state.resolve(id, manifest, this.#disks);
    if (code === FAULT.RESOURCE_MISSING) {
      this.#refuse('no room for the writes');
      return;
    }
    if (code !== 0) this.world.invalid(code);
    const complete = code === 0 ? this.#disks?.complete(id) : undefined;
    if (complete !== undefined) {
      const [connections, resets] = [this.#connections, this.#resets];
      this.world.schedule.unsettled = true;
      void complete.then((failed) => {
        this.post(0, () => {
          if (failed !== undefined || connections !== this.#connections) return;
          if (resets === this.#resets) this.machine.validated(id, undefined, this.now);
        });
      });
      return;
    }
    const wrong: Fault | undefined = code === 0 ? undefined : fault(code);
    const { prng } = this.world;
    if (prng.chance(0.4)) {
      this.post(prng.below(40), () => this.machine.validated(id, wrong, this.now));
    } else {
      this.machine.validated(id, wrong, this.now);
    }
  }

  #committed(id: number, generation: number): void {
    this.world.checker.acked(generation, id, this.#state.ghostOf(id));
    this.#state.accept(id);
  }

  #apply(id: number): void {
    const ops = this.#state.apply(id);
    if (ops === undefined) return; // the state was reset meanwhile
    this.world.checker.standing(this.machine.receiver.generation, id, this.#state.standing());
    if (this.#disks === undefined) this.machine.applied(id, false, this.now);
    else this.#applyDisks(this.#disks, id, ops);
  }

  #applyDisks(disks: ReplicaDisks, id: number, ops: readonly DiskOps[]): void {
    const resets = this.#resets;
    const { generation } = this.machine.receiver;
    this.world.schedule.unsettled = true;
    const order = this.world.bug === 'disk-writes-reordered' ? reversed(ops) : ops;
    void disks.apply(id, order).then(() => {
      this.post(0, () => {
        if (resets !== this.#resets) return;
        const failed = disks.failure !== '';
        if (!failed) this.world.checker.disks(generation, id, imagesOf(this), 'applied');
        // What waits for a disk that refuses is kept in memory: what was under way, and no more.
        if (failed) this.#refused++;
        const { checker, config } = this.world;
        checker.bound('epochs that wait for a disk', this.#refused, 2 * config.epochsInFlight + 4);
        if (failed) this.world.log(`${this.name} did not apply ${id}: ${disks.failure}`);
        this.machine.applied(id, failed, this.now);
      });
    });
  }

  #takeOver(generation: number): void {
    this.hangUp();
    if (this.#disks === undefined) {
      this.#run(generation);
      return;
    }
    this.world.schedule.unsettled = true;
    void this.#disks.goLive(generation).then(
      () => this.post(0, () => this.#run(generation)),
      (error) => {
        this.world.failed(this.host, error);
        this.world.log(`${this.name} cannot take over: ${String(error)}`);
        this.post(0, () => this.die(false));
      },
    );
  }

  #run(generation: number): void {
    const { receiver } = this.machine;
    const { world } = this;
    world.checker.running(this.name, generation, receiver.complete);
    world.checker.standing(receiver.generation, receiver.appliedId, this.#state.standing());
    const { replicated } = world.config;
    const guest = new SimGuest(guestHasDisks(world.config), replicated);
    this.#state.load(guest);
    if (replicated) {
      const { checker } = world;
      checker.disks(receiver.generation, receiver.appliedId, imagesOf(this), 'taken over');
      checker.guestKnows(guest, blocksOf(this, guest));
      world.answersAreThere(this.host, guest);
    }
    const { host, instance } = this;
    const { replay } = this.#state;
    const { nextSeq } = replay;
    const next = new PrimaryProcess(
      ...([world, host, instance, generation, guest, nextSeq, this.client] as const),
    );
    if (replicated) {
      for (const disk of [0, 1]) world.storage[host]!.voidActivity(disk);
      next.tookOver({ generation: receiver.generation, id: receiver.appliedId });
    }
    world.replaced(this, next);
    if (world.bug !== 'no-replay') {
      replay.replay({
        frame: (device, bytes, start, end) => next.frame(device, bytes, start, end),
        console: () => {},
        trigger: () => {},
      });
      next.released();
    }
    guest.repop();
  }
}
