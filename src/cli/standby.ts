/**
 * `tsvmm standby`: waits for a primary, builds the machine that it describes, keeps it up to date, and runs the guest when
 * authority comes. Every disk, network and KVM is opened when the primary connects; what is missing is said then.
 */
import { codeOf, VmmError } from '../base/error.ts';
import type { Logger } from '../base/log.ts';
import type { ConsoleBackend } from '../console/backend.ts';
import { openConsole } from '../console/open.ts';
import type { ReplicaDisks } from '../ft/disk/replica-disks.ts';
import type { ReplicatedDisks } from '../ft/disk/replicated-disks.ts';
import {
  type HeldCopy,
  isReplicated,
  type ReturnedCopy,
  type Storage,
} from '../ft/disk/storage.ts';
import { announce } from '../ft/shell/announce.ts';
import type { Arbiter } from '../ft/shell/arbiter.ts';
import type { Outputs } from '../ft/shell/outputs.ts';
import { type StandbyMachine, StandbyShell, type Takeover } from '../ft/shell/standby-shell.ts';
import { openKvmHost } from '../kvm/host.ts';
import { loadNativeIo, type NativeIo } from '../kvm/native-io.ts';
import { Machine } from '../machine/machine.ts';
import { preciseTime } from '../machine/precise-time.ts';
import { replicatedGuest } from '../machine/replicated-guest.ts';
import { type ControlHandler, ControlServer, controlPath } from '../monitor/control-server.ts';
import {
  checkForReplication,
  type DiskOption,
  type NetOption,
  type OpenDevices,
  openDevices,
  parseDisks,
  parseNets,
} from './device-options.ts';
import {
  configOf,
  type DescribedStorage,
  type Description,
  descriptionDigest,
  type MachineDescription,
  parseDescription,
} from './ft-description.ts';
import { ARBITER_RETRY_NS, helloOf, livenessFor, NO_ARBITER, openArbiter } from './ft-options.ts';
import { controlHandler, handleSignals } from './guest-commands.ts';
import { lockDisks } from './lock-disks.ts';
import { closeAll, tapOutputs } from './open-parts.ts';
import { Protection } from './protect.ts';
import {
  type Bases,
  describeStorage,
  forgetActivity,
  heldAtStart,
  type Kept,
  makeImages,
  NOTHING_KEPT,
  openReplicas,
  readBases,
  readKept,
  recordDisks,
  returnedAtStart,
  storageHere,
} from './replicated-disks.ts';
import { openLog } from './report.ts';
import { statusOf } from './run.ts';
import { parseStandbyOptions, type StandbyOptions } from './standby-options.ts';

/** A lost connection is looked into at once: the arbiter knows more than a delay would tell. */
const SUSPECT_NS = 20e6;

/** Made while the guest runs elsewhere, so that no takeover fails for it. @throws VmmError `FT_DESCRIPTION` */
function describedHere(
  description: Description,
  storages: readonly DescribedStorage[],
): MachineDescription {
  // Where it came from to the host that ran it before is no part of it.
  const { origin: _origin, ...machine } = description;
  const disks = machine.disks.map(({ base: _, ...disk }, i) => {
    const { ft, ...here } = storages[i]!;
    return { ...disk, ...here, ft: ft === 'auto' ? disk.ft : ft };
  });
  return parseDescription({ ...machine, disks });
}

/** The machine of one introduction with all that belongs to it. */
interface Built extends StandbyMachine {
  readonly machine: Machine;
  readonly outputs: Outputs;
  readonly disks: ReplicatedDisks;
  readonly devices: OpenDevices;
  /** The guest as this host will describe it to its next standby: the same machine, on the disks of this host. */
  readonly described: MachineDescription;
  /** What the disks are on this host, and the numbers of those that are its own copies. */
  readonly options: readonly DiskOption[];
  readonly copies: readonly number[];
  readonly images: readonly Uint8Array[];
}

/** Finds what a disk or card of the guest is on this host. */
function localSpec(kind: 'disk' | 'net', id: string, given: ReadonlyMap<string, string>): string {
  const spec = given.get(id);
  if (spec !== undefined) return spec;
  const what = kind === 'disk' ? 'PATH' : 'BACKEND';
  throw new VmmError(
    'FT_RESOURCE',
    `the guest's ${kind} '${id}' has no counterpart on the standby`,
    {
      hint: `Start the standby with --${kind} ${id}=${what}.`,
    },
  );
}

function diskOptions(description: Description, given: ReadonlyMap<string, string>): DiskOption[] {
  return description.disks.map((disk) => {
    const [option] = parseDisks([`${localSpec('disk', disk.id, given)},id=${disk.id}`]);
    if (!disk.readonly) {
      const ft = option!.ft === 'auto' ? disk.ft : option!.ft;
      checkForReplication([{ ...option!, ft }], []);
    }
    return {
      ...option!,
      readonly: disk.readonly,
      serial: disk.serial,
    };
  });
}

/** How the guest's backends are opened: a copy is this host's own; of what is shared, the primary has the lock. */
function openAs(options: readonly DiskOption[], storage: readonly Storage[]): DiskOption[] {
  return options.map((option, i) =>
    isReplicated(storage[i])
      ? { ...option, lock: 'locked' }
      : // What is on the medium counts, not what lies in a dead host's page cache.
        { ...option, lock: 'unlocked', cache: 'none' },
  );
}

function netOptions(description: Description, given: ReadonlyMap<string, string>): NetOption[] {
  return description.nets.map((net) => {
    const [option] = parseNets(
      [`${localSpec('net', net.id, given)},id=${net.id}`],
      description.name,
    );
    checkForReplication([], [option!]);
    return { ...option!, model: net.model, mac: Uint8Array.from(Buffer.from(net.mac, 'hex')) };
  });
}

/** Builds machines for introductions. */
class Builder {
  readonly #options: StandbyOptions;
  readonly #io: NativeIo;
  readonly #log: Logger;
  readonly #console: ConsoleBackend;
  readonly #arbiter: Arbiter | undefined;
  readonly #bases: Bases;
  /** Copies that this process has open, and locked. */
  readonly #own = new Set<string>();
  /** The copies that are open, and of which guest; before the first, what was found at the start. */
  #replicas: ReplicaDisks | undefined;
  #replicasOf = '';
  #kept: Kept;
  /** Looks at the images once more. */
  readonly #read: () => Promise<Kept>;

  constructor(
    options: StandbyOptions,
    io: NativeIo,
    log: Logger,
    console: ConsoleBackend,
    arbiter: Arbiter | undefined,
    bases: Bases,
    kept: Kept,
    read: () => Promise<Kept>,
  ) {
    this.#kept = kept;
    this.#read = read;
    this.#bases = bases;
    this.#options = options;
    this.#io = io;
    this.#log = log;
    this.#console = console;
    this.#arbiter = arbiter;
  }

  /** How each disk of a guest is kept here. @throws VmmError `FT_RESOURCE`, `FT_STORAGE` */
  storage(description: Description): Storage[] {
    const local = diskOptions(description, this.#options.disks);
    const held = this.held(description) ?? this.returned(description);
    return this.#storageOf(description, local, held);
  }

  /** What the copies here hold of a guest already. */
  held(description: Description): HeldCopy | undefined {
    if (this.#replicas !== undefined) {
      return this.#replicasOf === description.vm ? this.#replicas.held : undefined;
    }
    return heldAtStart(description, diskOptions(description, this.#options.disks), this.#kept);
  }

  /** What the disks here are for a guest that was lost on this host; undefined where they hold anything of a standby. */
  returned(description: Description): ReturnedCopy | undefined {
    if (this.held(description) !== undefined) return undefined;
    if (this.#replicas !== undefined) {
      return this.#replicasOf === description.vm ? this.#replicas.returned : undefined;
    }
    return returnedAtStart(description, diskOptions(description, this.#options.disks), this.#kept);
  }

  #storageOf(
    description: Description,
    local: readonly DiskOption[],
    held: HeldCopy | ReturnedCopy | undefined,
  ): Storage[] {
    const parts = { io: this.#io, log: this.#log };
    return storageHere(parts, description, local, this.#bases, this.#own, held);
  }

  async build(received: unknown, images: readonly Uint8Array[]): Promise<Built> {
    const description = parseDescription(received);
    const { disks, nets, settings, onPeerLoss } = this.#options;
    const closers: (() => unknown)[] = [];
    const host = openKvmHost();
    const log = this.#log;
    const machine = new Machine(configOf(description, images), {
      host,
      log,
      time: preciseTime(this.#io),
    });
    const dispose = async (): Promise<void> => {
      machine.dispose();
      await closeAll(closers, log);
    };
    try {
      const local = diskOptions(description, disks);
      // With the bases open also where they are not needed yet: a later copy may begin with them.
      const storage = this.#storageOf(description, local, undefined);
      makeImages(description, local, storage);
      const options = openAs(local, storage);
      const devices = await openDevices(
        machine,
        this.#io,
        options,
        netOptions(description, nets),
        closers,
      );
      for (const [i, { backend }] of devices.disks.entries()) {
        const want = description.disks[i]!;
        if (backend.info.sizeBytes !== want.sizeBytes) {
          throw new VmmError(
            'FT_RESOURCE',
            `disk '${want.id}' has ${backend.info.sizeBytes} bytes here and ${want.sizeBytes} at the primary`,
            {
              hint: 'Both hosts must name the same shared disk, or the copy must be as large as the original.',
            },
          );
        }
      }
      const diskHost = { host, io: this.#io, log };
      const replicas = await openReplicas(diskHost, description, options, storage, this.#kept);
      closers.push(() => replicas?.close());
      this.#kept = NOTHING_KEPT;
      this.#replicas = replicas;
      this.#replicasOf = description.vm;
      closers.push(() => {
        this.#replicas = undefined;
      });
      for (const [i, { source }] of options.entries()) {
        if (!isReplicated(storage[i])) continue;
        this.#own.add(source);
        closers.push(() => this.#own.delete(source));
      }
      const recorded = recordDisks(diskHost, machine, options, devices, closers);
      const { outputs, parts } = tapOutputs([this.#console], recorded.devices, description.cpus);
      const capabilities = host.probe();
      // Measured once, by a throw-away VM: not inside a pause.
      void capabilities.lazySkip;
      const { hasIoeventfdAnyLength } = capabilities;
      machine.assemble({ ...parts, doorbellsOfAnyWidth: hasIoeventfdAnyLength });
      return {
        machine,
        outputs,
        disks: recorded.disks,
        replicas,
        devices,
        described: describedHere(description, describeStorage(options, this.#bases)),
        options,
        copies: [...storage.keys()].filter((i) => isReplicated(storage[i])),
        images,
        guest: replicatedGuest(machine),
        config: {
          hello: helloOf({
            machine,
            role: 'standby',
            onPeerLoss,
            arbiter: this.#arbiter,
            vm: description.vm,
            generation: 0,
            machineDigest: descriptionDigest(description),
          }),
          authority: {
            arbiter: this.#arbiter !== undefined,
            onPeerLoss,
            retryNs: ARBITER_RETRY_NS,
          },
          liveness: livenessFor(settings.timeoutNs),
          suspectNs: SUSPECT_NS,
        },
        dispose,
      };
    } catch (error) {
      await dispose();
      if (codeOf(error) === 'DISK_LOG') this.#kept = await this.#read();
      throw error;
    }
  }
}

/** Runs the guest from the committed state; returns the exit status. */
async function takeOver(
  takeover: Takeover,
  options: StandbyOptions,
  io: NativeIo,
  log: Logger,
  arbiter: Arbiter | undefined,
  setHandler: (handler: ControlHandler, end: () => void) => void,
): Promise<number> {
  const built = takeover.machine as Built;
  const { machine, outputs, disks, devices, described, images, guest } = built;
  const beganNs = io.monotonicNs();
  const stopLocking = await lockDisks(devices, arbiter?.lease !== undefined, log);
  await built.replicas?.goLive(takeover.generation);
  forgetActivity(built.options);
  disks.tookOver(takeover.origin, built.copies);
  guest.loadContainer(takeover.container, takeover.elapsedNs);
  if (arbiter?.lease !== undefined) outputs.setLease(arbiter.lease);
  const { replay } = takeover.store;
  const repeated = replay.count;
  replay.replay(outputs.replaySink(guest.replayWrite));
  outputs.released();
  const closers: (() => unknown)[] = [() => built.dispose(), stopLocking];
  const protection = new Protection(
    {
      machine,
      outputs,
      disks,
      io,
      describe: () => ({ description: described, images }),
      atEnd: (close) => closers.push(close),
    },
    options.settings,
  );
  const { generation, origin } = takeover;
  const { peers, key } = options;
  protection.start({ arbiter, generation, origin }, options.arbiter, { addresses: peers, key });
  const signals = handleSignals(machine, protection);
  setHandler(controlHandler(machine, protection), () => protection.endGuest());
  machine.start();
  protection.run();
  const announcements = devices.nets.map(({ backend, mac }, i) =>
    announce({
      backend,
      mac,
      addresses: takeover.store.addresses.of(outputs.netDevice(i)),
      askGuest: () => machine.board.nets[i]!.announce(),
    }),
  );
  const ms = (ns: number): string => `${(ns / 1e6).toFixed(0)} ms`;
  const toAuthority =
    takeover.lostNs === undefined ? '' : `${ms(takeover.lostNs)} from the loss to authority, `;
  const since = `${toAuthority}${ms(io.monotonicNs() - beganNs)} from authority`;
  log.warn(
    `the guest runs here now, as generation ${takeover.generation} (${since}); ${repeated} outputs of the lost host were sent again`,
  );
  if (peers.length === 0) {
    log.warn(
      'the guest runs without protection: no --ft-peer was named; tsvmm protect brings it back',
    );
  }
  const outcome = await machine.finished;
  signals.release();
  for (const end of announcements) end();
  await closeAll(closers, log);
  return signals.status ?? statusOf(outcome);
}

/** Waits, protects, takes over; returns the exit status. */
export async function standby(line: Readonly<Record<string, unknown>>): Promise<number> {
  const options = parseStandbyOptions(line);
  const log = await openLog(options);
  const io = loadNativeIo();
  const closers: (() => unknown)[] = [];
  try {
    openKvmHost().probe();
    const arbiter = openArbiter(io, log, options.arbiter);
    if (arbiter !== undefined) closers.push(() => arbiter.close());
    else log.warn(NO_ARBITER);
    let finish: (status: number) => void = () => {};
    const finished = new Promise<number>((resolve) => {
      finish = resolve;
    });
    let running = false;
    let quit: () => void = () => finish(0);
    const console = await openConsole(options.serial, { io, log, onQuit: () => quit() });
    closers.push(() => console.close());
    const bases = await readBases(io, parseDisks([...options.disks.values()]));
    const sources = parseDisks([...options.disks.values()]).map(({ source }) => source);
    const read = (): Promise<Kept> => readKept({ host: openKvmHost(), io, log }, sources);
    const builder = new Builder(options, io, log, console, arbiter, bases, await read(), read);
    const shell = new StandbyShell({
      io,
      log,
      listen: { ...options.listen, key: options.key, log },
      arbiter,
      inspect(received) {
        const description = parseDescription(received);
        const { vm, generation, images } = description;
        const storage = builder.storage(description);
        const held = builder.held(description);
        const returned = builder.returned(description);
        return { vm, generation, tickets: images, storage, held, returned };
      },
      build: (received, images) => builder.build(received, images),
      events: {
        state: (state) => log.info(`standby: ${state}`),
        ended(reason) {
          log.info(`the guest has ended (${reason}); there is nothing left to stand by for`);
          finish(0);
        },
        takeOver(takeover) {
          const setHandler = (handler: ControlHandler, end: () => void): void => {
            running = true;
            handle = handler;
            quit = end;
          };
          takeOver(takeover, options, io, log, arbiter, setHandler).then(
            finish,
            (error: unknown) => {
              log.error(`the takeover failed: ${String(error)}`);
              finish(1);
            },
          );
        },
      },
    });
    let handle: ControlHandler = (request) =>
      standbyCommand(shell, request.command, () => finish(0));
    closers.push(() => shell.close());
    await shell.start();
    const socket =
      options.control ?? (options.name === undefined ? undefined : controlPath(options.name));
    if (socket !== undefined) {
      const server = await ControlServer.listen(socket, (request) => handle(request));
      closers.push(() => server.close());
    }
    // Once the guest runs here, signals mean what they mean to any guest.
    const onSignal = (): void => {
      if (!running) finish(0);
    };
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP']) process.on(signal, onSignal);
    log.info(`standing by on ${options.listen.host}:${shell.port}`);
    return await finished;
  } finally {
    await closeAll(closers, log);
  }
}

function standbyCommand(
  shell: StandbyShell,
  command: unknown,
  quit: () => void,
): Record<string, unknown> {
  switch (command) {
    case 'status':
      return { ...shell.figures() };
    case 'takeover': {
      const refused = shell.orderTakeover();
      if (refused !== undefined) throw new VmmError('FT_TAKEOVER', refused);
      return {};
    }
    case 'quit':
      quit();
      return {};
    default:
      throw new VmmError(
        'CONTROL_REQUEST',
        `a standby does not know the command '${String(command)}'`,
        {
          hint: 'It takes status, takeover and quit.',
        },
      );
  }
}
