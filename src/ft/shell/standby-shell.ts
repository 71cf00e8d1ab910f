/**
 * Carries out what the standby's state machine (ft/core/standby.ts) decides: listens, learns from the introduction which machine
 * to build, stages and applies transactions, asks the arbiter, and takes over. Holds everything a takeover needs open and
 * loaded, so that nothing has to be found then.
 */
import { assert } from '../../base/assert.ts';
import { messageOf } from '../../base/error.ts';
import type { Logger } from '../../base/log.ts';
import type { NativeIo } from '../../kvm/native-io.ts';
import { Standby, type StandbyConfig, type StandbyEffect } from '../core/standby.ts';
import type { ReplicaDisks } from '../disk/replica-disks.ts';
import type { HeldCopy, Origin, ReturnedCopy, Storage } from '../disk/storage.ts';
import { encodedBytesMax, encodeMessage } from '../wire/codec.ts';
import { Decoder } from '../wire/decoder.ts';
import { FAULT, type FaultCode } from '../wire/fault.ts';
import type { Manifest, Message } from '../wire/message.ts';
import { type Arbiter, ArbiterTrouble } from './arbiter.ts';
import type { ReplicatedGuest } from './guest.ts';
import { answer, GREETING, type ImageTicket, IntroductionReader } from './introduction.ts';
import { type LinkOptions, type ListeningLink, listen } from './link.ts';
import { TAP_BYTES_MAX } from './outputs.ts';
import { StandbyStore } from './standby-store.ts';

const TICK_MS = 20;

/** The machine that a standby built from an introduction. */
export interface StandbyMachine {
  readonly guest: ReplicatedGuest;
  /** Configuration of the state machine: HELLO of this machine, policies, deadlines. */
  readonly config: StandbyConfig;
  /** The disks of which this host has a copy of its own, if there are any. */
  readonly replicas: ReplicaDisks | undefined;
  /** Everything is given back. */
  dispose(): Promise<void>;
}

/** What the standby's owner provides. */
export interface StandbyShellOptions {
  readonly io: NativeIo;
  readonly log: Logger;
  readonly listen: LinkOptions;
  readonly arbiter: Arbiter | undefined;
  /**
   * Which guest a description is of, and which generation of it, the boot images that it names, by number, and how each of its disks is kept here.
   * @throws VmmError when the description makes no sense, or a disk cannot be what it says
   */
  inspect(description: unknown): {
    readonly vm: string;
    readonly generation: number;
    readonly tickets: readonly ImageTicket[];
    readonly storage: readonly Storage[];
    /** What its copies hold of this guest already. */
    readonly held: HeldCopy | undefined;
    /** What this host's images are, where it was the primary that this one has taken the guest over from. */
    readonly returned?: ReturnedCopy | undefined;
  };
  /** Builds the machine and opens every disk, network and KVM. @throws VmmError when something is missing */
  build(description: unknown, images: readonly Uint8Array[]): Promise<StandbyMachine>;
  readonly events: StandbyShellEvents;
}

/** What the owner hears. */
export interface StandbyShellEvents {
  /** State for the status line. */
  state(state: string): void;
  /**
   * Authority is here. Load the state, replay, announce, run.
   * @param container the committed state of the guest
   */
  takeOver(takeover: Takeover): void;
  /** The guest ended over there; this standby is of no more use. */
  ended(reason: number): void;
}

/** What a takeover starts from. */
export interface Takeover {
  readonly machine: StandbyMachine;
  readonly store: StandbyStore;
  readonly container: Uint8Array;
  readonly generation: number;
  /** The run that it comes from, and the last transaction of it. */
  readonly origin: Origin;
  /** Since the state was applied. */
  readonly elapsedNs: number;
  /** Since the connection was lost, if it was. */
  readonly lostNs: number | undefined;
}

/** Figures for the status line. */
export interface StandbyFigures {
  readonly state: string;
  readonly generation: number;
  readonly committedId: number;
  readonly complete: boolean;
  readonly receivedBytes: number;
}

/** A description that arrived. */
interface Introduced {
  readonly description: unknown;
  /** As text, to compare. */
  readonly text: string;
  readonly vm: string;
  /** Whether the machine that exists is the one described. */
  readonly known: boolean;
}

/** See the module's head. */
export class StandbyShell {
  readonly #o: StandbyShellOptions;
  #link: ListeningLink | undefined;
  #introduction: IntroductionReader | undefined;
  /** The description of the machine that exists, as text. */
  #described = '';
  /** The guest that the machine is of. */
  #vm = '';
  /** The last attempt to build a machine: one at a time. */
  #building: Promise<void> = Promise.resolve();
  /** The latest generation of the guest whose primary has begun a copy here. */
  #latest = 0;
  /** The generation that this side runs the guest as, once taken over. */
  #ranAs = 0;
  /** The highest generation that the arbiter has told of. */
  #onRecord = 0;
  readonly #trouble: ArbiterTrouble;
  #machine: StandbyMachine | undefined;
  #store: StandbyStore | undefined;
  #standby: Standby | undefined;
  #decoder: Decoder | undefined;
  #timer: NodeJS.Timeout | undefined;
  #running = false;
  #closed = false;
  /** Counts connections, so that what a slow build produces for an old one is dropped. */
  #connection = 0;
  #lostAtNs: number | undefined;

  constructor(options: StandbyShellOptions) {
    this.#trouble = new ArbiterTrouble(options.log);
    this.#o = options;
  }

  /** Begins to listen. @throws VmmError `FT_LISTEN`, `FT_KEY_NEEDED` */
  async start(): Promise<void> {
    this.#link = await listen(
      this.#o.listen,
      {
        connected: (who) => this.#connected(who),
        received: (bytes) => this.#received(bytes),
        drained: () => {},
        disconnected: (why) => this.#disconnected(why),
      },
      GREETING,
    );
    this.#timer = setInterval(() => this.#tick(), TICK_MS);
    this.#state('waiting');
  }

  /** The port that is listened on. */
  get port(): number {
    return this.#link?.port ?? 0;
  }

  figures(): StandbyFigures {
    const receiver = this.#standby?.receiver;
    return {
      state: receiver?.state ?? 'waiting',
      generation: receiver?.generation ?? 0,
      committedId: receiver?.committedId ?? 0,
      complete: receiver?.complete ?? false,
      receivedBytes: this.#store?.receivedBytes ?? 0,
    };
  }

  /** An operator orders the takeover. @returns why not, or undefined when it is under way */
  orderTakeover(): string | undefined {
    if (this.#standby === undefined) return 'No primary has ever connected to this standby.';
    const refused = this.#standby.orderTakeover(this.#now());
    this.#run();
    return refused;
  }

  /** Ends listening and, unless it was taken over, gives the machine back. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#timer);
    this.#link?.close();
    if (this.#standby?.takenOver !== true) await this.#machine?.dispose();
  }

  #now(): number {
    return this.#o.io.monotonicNs();
  }

  #tick(): void {
    this.#standby?.tick(this.#now(), this.#pausedBy.size === 0);
    this.#run();
  }

  // --- the connection

  #connected(who: string): void {
    this.#o.log.info(`a primary connected from ${who}`);
    this.#connection++;
    this.#pausedBy.delete('build');
    this.#introduction = new IntroductionReader((b) => this.#o.io.crc32c(b, 0, b.length, 0));
    this.#decoder = undefined;
  }

  #received(bytes: Uint8Array): void {
    try {
      if (this.#introduction !== undefined) this.#introduced(bytes);
      else this.#decoder?.push(bytes);
    } catch (error) {
      this.#refuse(messageOf(error));
      return;
    }
    this.#run();
  }

  /** Tells the primary why it cannot be served, and closes. */
  #refuse(sentence: string, code: FaultCode = FAULT.RESOURCE_MISSING, generation = 0): void {
    if (sentence !== this.#refused) this.#o.log.error(sentence);
    this.#refused = sentence;
    // A primary that still waits for the answer to its introduction needs that first.
    if (this.#introduction !== undefined) this.#link!.send([answer([])]);
    this.#introduction = undefined;
    this.#decoder = undefined;
    this.#sendMessage({
      cmd: 'NACK',
      generation,
      id: 0,
      seq: 0,
      code,
      sentence: sentence.slice(0, 250),
    });
    this.#dropSoon();
  }

  #refused = '';

  /** Closes this connection, and no later one, when what was just sent is on its way. */
  #dropSoon(): void {
    const connection = this.#connection;
    setImmediate(() => {
      if (connection === this.#connection) this.#link?.drop();
    });
  }

  #introduced(bytes: Uint8Array): void {
    const event = this.#introduction!.push(bytes);
    if (event === undefined) return;
    if (event.kind === 'description') {
      const text = JSON.stringify(event.description);
      const { vm, generation, tickets, storage, held, returned } = this.#o.inspect(
        event.description,
      );
      if (this.#busy(vm, generation)) return;
      const known = text === this.#described;
      const wanted = known ? [] : tickets.map((ticket, number) => ({ number, ticket }));
      this.#told = held !== undefined;
      this.#toldReturned = returned !== undefined;
      this.#introduction!.want(wanted);
      this.#link!.send([
        answer(
          wanted.map(({ number }) => number),
          storage,
          held,
          returned,
        ),
      ]);
      this.#pending = { description: event.description, text, vm, known };
      this.#introduced(new Uint8Array(0));
      return;
    }
    const pending = this.#pending!;
    this.#introduction = undefined;
    if (pending.known) {
      this.#stream(event.rest);
      return;
    }
    const images = [...event.images.entries()].sort(([a], [b]) => a - b).map(([, image]) => image);
    const connection = this.#connection;
    this.#setFlow('build', true);
    const build = (): Promise<void> => this.#rebuild(pending, images);
    this.#building = this.#building.then(build, build);
    void this.#building.then(
      () => {
        if (this.#closed || connection !== this.#connection) return;
        this.#setFlow('build', false);
        this.#stream(event.rest);
        this.#run();
      },
      (error: unknown) => {
        if (this.#closed || connection !== this.#connection) return;
        this.#setFlow('build', false);
        this.#stream(event.rest, error);
      },
    );
  }

  #pending: Introduced | undefined;
  /** Whether the primary of this connection was told that copies of its disks are whole here. */
  #told = false;
  /** Whether it was told what the images of a lost primary are. */
  #toldReturned = false;

  /** Turns a primary away whose guest cannot be served now. @returns whether it was */
  #busy(vm: string, generation: number): boolean {
    const standby = this.#standby;
    if (standby === undefined) return false;
    if (!standby.takenOver && vm === this.#vm && generation < this.#latest) {
      // It was taken over elsewhere, and its survivor has been here since.
      this.#refuse('A later generation of the guest runs.', FAULT.TAKEN_OVER, this.#latest);
      return true;
    }
    if (standby.takenOver) {
      if (vm === this.#vm) {
        // The old primary is back and learns that it is over.
        this.#refuse('The guest was taken over here.', FAULT.TAKEN_OVER, this.#ranAs);
      } else {
        this.#refuse('This host runs a guest that it has taken over.', FAULT.STATE_INVALID);
      }
      return true;
    }
    // What is held may be all that is left of its guest, unless the arbiter has seen a later generation.
    if (vm === this.#vm || !standby.eligible) return false;
    if (this.#onRecord > standby.receiver.generation) return false;
    this.#refuse(
      'This standby holds the complete state of another guest. Take that over, or restart this standby.',
      FAULT.STATE_INVALID,
    );
    return true;
  }

  /** Builds the machine that was described, in place of an earlier one. */
  async #rebuild(introduced: Introduced, images: readonly Uint8Array[]): Promise<void> {
    if (this.#closed) return;
    const before = this.#machine;
    this.#machine = undefined;
    this.#standby = undefined;
    this.#store = undefined;
    this.#described = '';
    await before?.dispose();
    // Of the machine that is gone; this one is still being built.
    this.#pausedBy.delete('disks');
    this.#pausedBy.delete('staging');
    const machine = await this.#o.build(introduced.description, images);
    if (this.#closed) {
      await machine.dispose();
      return;
    }
    this.#machine = machine;
    this.#described = introduced.text;
    if (introduced.vm !== this.#vm) this.#latest = 0;
    this.#vm = introduced.vm;
    this.#refused = '';
    const { replicas } = machine;
    this.#store = new StandbyStore(machine.guest, this.#o.io, TAP_BYTES_MAX, replicas);
    const standby = new Standby(machine.config);
    this.#standby = standby;
    replicas?.setEvents({
      flow: (pause) => this.#setFlow('disks', pause),
      failed: (sentence) => {
        // Without its disk this standby protects nothing; what it has acknowledged it still holds, in the journal.
        if (this.#standby === standby) this.#refuse(sentence);
      },
    });
  }

  /** The replication stream begins on this connection; with an error, only its refusal is sent. */
  #stream(rest: Uint8Array, error?: unknown): void {
    if (error !== undefined) {
      this.#refuse(messageOf(error));
      return;
    }
    const standby = this.#standby;
    assert(standby !== undefined, 'the machine has been built');
    this.#decoder = new Decoder(
      {
        admit: (header) => standby.admit(header),
        message: (message) => {
          standby.message(message, this.#now());
          // A borrowed payload has to be taken before the decoder goes on.
          this.#run();
        },
        fault: (fault) => {
          standby.decodeFault(fault, this.#now());
          this.#run();
        },
      },
      (b, start, end) => this.#o.io.crc32c(b, start, end - start, 0),
    );
    // What paused an earlier connection pauses this one.
    this.#link!.setReading(this.#pausedBy.size === 0);
    standby.connected(this.#now());
    this.#run();
    if (rest.length > 0) this.#decoder.push(rest);
  }

  #disconnected(why: string): void {
    this.#o.log.info(`the connection to the primary is gone: ${why}`);
    this.#introduction = undefined;
    this.#decoder = undefined;
    this.#connection++;
    this.#lostAtNs = this.#now();
    this.#store?.disks?.cutOff();
    this.#standby?.disconnected(this.#now());
    this.#run();
  }

  // --- effects

  #run(): void {
    const standby = this.#standby;
    if (standby === undefined || this.#running || this.#closed) return;
    this.#running = true;
    try {
      for (let e = standby.out.shift(); e !== undefined; e = standby.out.shift())
        this.#perform(standby, e);
    } finally {
      this.#running = false;
    }
  }

  #perform(standby: Standby, e: StandbyEffect): void {
    const store = this.#store!;
    switch (e.type) {
      case 'send':
        this.#sendMessage(e.message);
        break;
      case 'close':
        this.#o.log.info(`the connection to the primary is closed: ${e.sentence}`);
        // After what was just sent.
        this.#decoder?.stop();
        this.#dropSoon();
        break;
      case 'agreed':
        this.#decoder?.setBulkBytesMax(e.agreement.limits.frameBytesMax);
        break;
      case 'reset':
        this.#resets++;
        this.#latest = e.generation;
        store.reset();
        store.disks?.reset(e.generation, this.#told, this.#toldReturned);
        this.#state('synchronising');
        break;
      case 'sync': {
        const wrong = store.sync(e.payload);
        if (wrong !== undefined) {
          standby.decodeFault({ ...wrong, fatal: true, generation: 0, id: 0 }, this.#now());
        }
        break;
      }
      case 'stage':
        store.stage(e.id, e.payload);
        break;
      case 'validate':
        this.#validate(standby, store, e.id, e.manifest);
        break;
      case 'discard':
        store.discard(e.fromId);
        break;
      case 'committed':
        store.committed(e.id, this.#now());
        this.#state('protecting');
        break;
      case 'apply':
        this.#apply(standby, store, e.id);
        break;
      case 'read-pause':
        this.#setFlow('staging', true);
        break;
      case 'read-on':
        this.#setFlow('staging', false);
        break;
      case 'ended':
        this.#o.events.ended(e.reason);
        break;
      case 'handover':
        this.#o.log.info('the primary hands the guest over');
        break;
      case 'arbiter':
        void this.#ask(e.ticket, e.request);
        break;
      case 'take-over-refused':
        if (e.sentence !== this.#notTaken) this.#o.log.warn(`no takeover: ${e.sentence}`);
        this.#notTaken = e.sentence;
        break;
      case 'take-over':
        this.#takeOver(e.generation);
        break;
    }
  }

  /** Looks at a transaction; the first one also waits until the copies of the disks are complete. */
  #validate(standby: Standby, store: StandbyStore, id: number, manifest: Manifest): void {
    const wrong = store.validate(id, manifest);
    if (wrong?.code === FAULT.RESOURCE_MISSING) {
      // No room for a disk's writes: trying the same again would not help.
      this.#refuse(wrong.sentence);
      return;
    }
    const complete = wrong === undefined ? store.disks?.complete(id) : undefined;
    if (complete === undefined) {
      standby.validated(id, wrong, this.#now());
      return;
    }
    const { connection, resets } = { connection: this.#connection, resets: this.#resets };
    void complete.then((failed) => {
      // A failure has been reported by the disks themselves.
      if (failed !== undefined || this.#closed || this.#standby !== standby) return;
      if (connection !== this.#connection || resets !== this.#resets) return;
      standby.validated(id, undefined, this.#now());
      this.#run();
    });
  }

  /** Applies what takes time of a transaction, its disk writes; memory and state were applied when it was committed. */
  #apply(standby: Standby, store: StandbyStore, id: number): void {
    const disks = store.apply(id);
    if (disks === undefined) {
      standby.applied(id, false, this.#now());
      return;
    }
    const resets = this.#resets;
    void disks.then(() => {
      if (this.#closed || this.#standby !== standby || resets !== this.#resets) return;
      standby.applied(id, store.disks!.failure !== '', this.#now());
      this.#run();
    });
  }

  /** Stops or goes on reading from the connection; it goes on when nobody wants it stopped. */
  #setFlow(who: 'build' | 'disks' | 'staging', pause: boolean): void {
    if (pause) this.#pausedBy.add(who);
    else this.#pausedBy.delete(who);
    this.#link?.setReading(this.#pausedBy.size === 0);
  }

  readonly #pausedBy = new Set<string>();
  #resets = 0;

  async #ask(ticket: number, request: Parameters<Arbiter['request']>[0]): Promise<void> {
    const { arbiter } = this.#o;
    assert(arbiter !== undefined, 'only a standby with an arbiter asks one');
    const verdict = await arbiter.request(request);
    if (this.#closed) return;
    this.#trouble.answered(arbiter, verdict, false);
    this.#onRecord = Math.max(this.#onRecord, verdict.generation);
    this.#standby?.arbiterAnswer({ ticket, ...verdict }, this.#now());
    this.#run();
  }

  /** Tells the owner when the state for people changes. */
  #state(state: string): void {
    if (state === this.#lastState) return;
    this.#lastState = state;
    this.#o.events.state(state);
  }

  #lastState = '';
  #notTaken = '';

  #takeOver(generation: number): void {
    const store = this.#store!;
    const { container } = store;
    const { receiver } = this.#standby!;
    assert(container !== undefined, 'a takeover follows a complete state');
    clearInterval(this.#timer);
    this.#ranAs = generation;
    this.#o.events.takeOver({
      machine: this.#machine!,
      store,
      container,
      generation,
      origin: { generation: receiver.generation, id: receiver.committedId },
      elapsedNs: this.#now() - store.appliedAtNs,
      lostNs: this.#lostAtNs === undefined ? undefined : this.#now() - this.#lostAtNs,
    });
  }

  #sendMessage(message: Message): void {
    const bytes = new Uint8Array(encodedBytesMax(message));
    const end = encodeMessage(bytes, 0, message);
    this.#link?.send([bytes.subarray(0, end)]);
  }
}
