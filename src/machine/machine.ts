/**
 * A guest's life: created with its devices and memory, started, paused and resumed, reset, saved and restored,
 * ended. The board composes the devices; this class owns the VM, time and the order of things:
 *
 *   pause:  vCPUs stop at a completed boundary -> doorbells already rung are served -> devices pause -> time stops
 *   resume: time goes on -> devices resume (queues kicked, interrupt lines re-evaluated) -> vCPUs run
 *   reset:  pause -> the disks are waited for -> devices, memory and vCPUs as at power-on -> resume
 *
 * A reset has to wait because a read that was under way would write into the memory of the guest that boots next, and a write
 * could overtake that guest's own. Meanwhile the machine is like a running one that stands still: it can be paused,
 * saved and replicated, with the reset still to come.
 *
 * Everything runs on the one JavaScript thread. Leaves out: where options come from (cli), what travels to a peer
 * (ft/shell).
 */
import { assert } from '../base/assert.ts';
import { messageOf, VmmError } from '../base/error.ts';
import type { Logger } from '../base/log.ts';
import {
  EXIT,
  type ExitSlot,
  type KvmHost,
  type KvmState,
  type KvmVm,
  type RestoreOptions,
  SLOT_WORD,
  SYSTEM_EVENT,
} from '../kvm/api.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import { Board, type BoardParts } from './board.ts';
import type { BoardHost } from './board-host.ts';
import { enterBoot } from './boot/cpu-entry.ts';
import type { MachineConfig } from './config.ts';
import { DiskDrain } from './disk-drain.ts';
import { describeTerminalExit, ExitDispatcher, type ExitOwner } from './exit-dispatch.ts';
import { GuestRam } from './guest-ram.ts';
import { HostClock, nodeTime, type TimeSource } from './host-clock.ts';
import { ramPieces } from './layout.ts';
import { decodeMachineState, encodeMachineState, type Pending } from './machine-state.ts';
import type { Outcome } from './outcome.ts';

/** What a machine needs of its surroundings. */
export interface MachineParts {
  readonly host: KvmHost;
  readonly log: Logger;
  /** Default: Node's clocks. */
  readonly time?: TimeSource;
  /** Whether a guest's reset restarts it (default) or ends the run. */
  readonly onReset?: 'restart' | 'exit';
}

/** `resetting`: goes on as soon as its disks are quiet and everything is as at power-on. */
type Phase = 'created' | 'running' | 'resetting' | 'paused' | 'ended';

/** One guest. */
export class Machine implements ExitOwner, BoardHost {
  readonly config: MachineConfig;
  readonly vm: KvmVm;
  readonly ram: GuestRam;
  readonly clock: HostClock;
  readonly log: Logger;
  /** Resolves when the run has ended; the machine still has to be disposed of. */
  readonly finished: Promise<Outcome>;
  /** While true, accesses of the guest reach no device: a reset or the end is under way. */
  deaf = false;

  #board: Board | undefined;
  #dispatcher: ExitDispatcher | undefined;
  #drain: DiskDrain | undefined;
  readonly #onReset: 'restart' | 'exit';
  #powerOnState: KvmState | undefined;
  #phase: Phase = 'created';
  #finish: (outcome: Outcome) => void = () => {};
  #disposed = false;
  #ending = false;
  /** A reset or end that the guest has asked for and that is still to be carried out. */
  #pending: Pending | undefined;
  #endGate: ((outcome: Outcome, finish: () => void) => void) | undefined;
  readonly #resumeHooks: (() => void)[] = [];

  /**
   * Makes the VM and its memory. Backends may need these, so the devices come later, by {@link assemble}.
   * @throws VmmError
   */
  constructor(config: MachineConfig, parts: MachineParts) {
    this.config = config;
    this.log = parts.log;
    this.#onReset = parts.onReset ?? 'restart';
    this.finished = new Promise((resolve) => {
      this.#finish = resolve;
    });
    this.vm = parts.host.createVm({ vcpus: config.cpus, cpu: config.cpu });
    try {
      const { boot } = config;
      this.ram = new GuestRam(
        parts.host,
        this.vm,
        ramPieces(config.memoryBytes),
        boot.kind === 'firmware' ? boot.image.bytes : undefined,
      );
      this.clock = new HostClock(parts.time ?? nodeTime, parts.log);
    } catch (error) {
      this.vm.destroy();
      throw error;
    }
  }

  /** Puts the devices in; nothing is loaded until {@link boot} or {@link loadContainer}. @throws VmmError */
  assemble(parts: BoardParts): void {
    assert(this.#board === undefined, 'a machine is assembled once');
    const board = new Board(this, parts);
    this.#board = board;
    this.#drain = new DiskDrain(parts.disks, this.log);
    this.#dispatcher = new ExitDispatcher(this.vm, board.ports, board.mmio, this);
    this.#powerOnState = this.vm.captureState();
  }

  /** The devices; there from {@link assemble} on. */
  get board(): Board {
    assert(this.#board !== undefined, 'the machine has been assembled');
    return this.#board;
  }

  get memory(): GuestMemory {
    return this.ram.memory;
  }

  get phase(): Phase {
    return this.#phase;
  }

  /** Whether the guest goes on without being told to. */
  get running(): boolean {
    return this.#phase === 'running' || this.#phase === 'resetting';
  }

  /** Loads what boots into memory and points the first vCPU at it. Before {@link start}, or paused. */
  boot(): void {
    assert(
      this.#phase === 'created' || this.#phase === 'paused',
      'booting needs a stopped machine',
    );
    enterBoot(this.vm, 0, this.board.loadBoot());
  }

  /** Lets a created machine run. */
  start(): void {
    assert(this.#phase === 'created', 'a machine starts once');
    this.#phase = 'running';
    this.clock.resume();
    this.board.resume();
    this.vm.start({
      onExit: (vcpu) => this.#onExit(vcpu),
      onCoalesced: (count) => this.#dispatcher!.coalesced(count),
    });
    const pending = this.#pending;
    if (pending?.kind === 'reset') this.#resetSoon('asked for before the state was saved');
    else if (pending !== undefined) this.#end(pending as Outcome);
  }

  /** Stops the guest so that its whole state can be read; see the module's head. No-op when it does not run. */
  pause(): void {
    if (this.#phase === 'resetting') this.#phase = 'paused';
    if (this.#phase !== 'running') return;
    this.vm.pauseAll();
    this.vm.drainCoalesced();
    this.vm.drainIoEvents();
    this.board.pause();
    this.clock.pause();
    if (this.#phase === 'running') this.#phase = 'paused';
  }

  /** Goes on after {@link pause}; with the reset that was asked for, if one was. */
  resume(): void {
    if (this.#phase !== 'paused') return;
    if (this.#pending?.kind === 'reset') {
      this.#phase = 'resetting';
      for (const hook of this.#resumeHooks) hook();
      this.#resetWhenQuiet();
      return;
    }
    this.#phase = 'running';
    this.clock.resume();
    this.board.resume();
    for (const hook of this.#resumeHooks) hook();
    this.vm.resumeAll();
  }

  /** What the machine is doing, for people and for `tsvmm status`. */
  status(): Readonly<Record<string, string | number>> {
    const { name, cpus, memoryBytes } = this.config;
    const { exits } = this.vm.stats();
    return {
      name,
      state: this.#phase,
      cpus,
      memoryMiB: memoryBytes / 2 ** 20,
      runSeconds: Math.round(this.clock.nowNs() / 1e6) / 1e3,
      exits,
    };
  }

  /** Everything but memory, as a container; the machine is paused. */
  saveContainer(): Uint8Array {
    this.#requireStopped('saving the state');
    return encodeMachineState(
      this.config,
      this.clock.nowNs(),
      this.vm.captureState(),
      this.board.save(),
      this.#pending,
    );
  }

  /**
   * Takes over a state that {@link saveContainer} made on a machine of the same description; instead of {@link boot}.
   * Memory is the caller's business.
   * @throws VmmError `STATE_*`; the machine can only be disposed of then
   */
  loadContainer(container: Uint8Array, options: RestoreOptions = {}): void {
    this.#requireStopped('loading a state');
    const { nowNs, kvm, devices, pending } = decodeMachineState(this.config, container);
    this.#pending = pending;
    this.clock.setNow(nowNs);
    this.board.load(devices);
    devices.end();
    const report = this.vm.restoreState(kvm, options);
    if (!report.tscTaken) {
      this.log.warn("this host cannot set the time-stamp counter: the guest sees the host's");
    }
  }

  #requireStopped(what: string): void {
    if (this.#phase !== 'created' && this.#phase !== 'paused') {
      throw new VmmError(
        'MACHINE_PHASE',
        `${what} is not possible while the machine is ${this.#phase}`,
      );
    }
  }

  /**
   * Has `gate` called when the guest ends itself, with the guest stopped: the run is over when it calls `finish`. A
   * protected guest's last outputs leave in between.
   */
  setEndGate(gate: (outcome: Outcome, finish: () => void) => void): void {
    this.#endGate = gate;
  }

  /** Has `hook` called whenever the machine goes on after a pause: what a full disk held back goes again then. */
  onResume(hook: () => void): void {
    this.#resumeHooks.push(hook);
  }

  /** Presses the power button: an operating system that listens shuts down. */
  powerButton(): void {
    this.board.powerButton();
  }

  /** Restarts the guest, as its reset line would. */
  reset(): void {
    this.requestReset('from outside');
  }

  /** Ends the run from outside. */
  stop(): void {
    this.#endNow({ kind: 'stopped' });
  }

  /** Called by devices: the guest wants a reset. Takes effect before the guest's next access to a device. */
  requestReset(why: string): void {
    if (this.deaf || this.#phase === 'ended') return;
    this.#pending = { kind: 'reset' };
    this.#resetSoon(why);
  }

  #resetSoon(why: string): void {
    this.deaf = true;
    this.log.debug(`guest reset: ${why}`);
    // Not from inside the vCPU's own exit: the vCPUs have to stop at a completed boundary first.
    setImmediate(() => this.#reset());
  }

  /** Called by devices: the guest ended itself. */
  requestEnd(outcome: Outcome): void {
    this.#end(outcome);
  }

  terminalExit(vcpu: number, slot: ExitSlot): void {
    // Behind the write that asked for the reset or the end, some guests run into an instruction that must not return.
    if (this.deaf) return;
    const kind = slot.words[SLOT_WORD.kind]!;
    const detail = slot.words[SLOT_WORD.detail]!;
    if (kind === EXIT.shutdown) {
      this.log.warn(`vcpu ${vcpu}: ${describeTerminalExit(slot)}; the guest is reset`);
      this.requestReset('triple fault');
    } else if (kind === EXIT.systemEvent && detail === SYSTEM_EVENT.reset) {
      this.requestReset('system event');
    } else if (kind === EXIT.systemEvent && detail === SYSTEM_EVENT.shutdown) {
      this.#end({ kind: 'power-off' });
    } else {
      this.#end({ kind: 'error', message: `vcpu ${vcpu}: ${describeTerminalExit(slot)}` });
    }
  }

  /** Gives everything back: threads, memory, descriptors. Backends stay their owner's. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#endNow({ kind: 'stopped' });
    this.clock.dispose();
    this.#drain?.cancel();
    this.#board?.pause();
    this.vm.destroy();
  }

  #onExit(vcpu: number): boolean {
    try {
      return this.#dispatcher!.dispatch(vcpu);
    } catch (error) {
      // A device must never throw for what a guest does: this is our own mistake, and it ends the run.
      const text = error instanceof Error ? (error.stack ?? error.message) : messageOf(error);
      this.#end({ kind: 'error', message: `a device failed: ${text}` });
      return true;
    }
  }

  #end(outcome: Outcome): void {
    if (this.#phase === 'ended' || this.#ending) return;
    if (outcome.kind === 'power-off' || outcome.kind === 'debug-exit') this.#pending = outcome;
    const gate = this.#endGate;
    if (gate !== undefined && outcome.kind !== 'error') {
      this.#ending = true;
      this.deaf = true;
      setImmediate(() => {
        if (this.#phase === 'ended') return;
        this.pause();
        gate(outcome, () => this.#endNow(outcome));
      });
      return;
    }
    this.#endNow(outcome);
  }

  #endNow(outcome: Outcome): void {
    if (this.#phase === 'ended') return;
    this.#phase = 'ended';
    this.deaf = true;
    // Not from inside a vCPU's exit: who waits for the end goes on to destroy the VM.
    setImmediate(() => this.#finish(outcome));
  }

  #reset(): void {
    if (this.#phase === 'ended') return;
    if (this.#onReset === 'exit') {
      this.#end({ kind: 'reset' });
      return;
    }
    // A machine that stands still is reset when it goes on; until then its state can be read, with the reset in it.
    if (this.#phase !== 'running') return;
    this.pause();
    this.resume();
  }

  /** Carries the reset out once the disks have nothing of the guest's under way, unless the machine is paused by then. */
  #resetWhenQuiet(): void {
    if (this.#phase !== 'resetting') return;
    const drain = this.#drain!;
    if (!drain.quiet) {
      drain.wait(() => this.#resetWhenQuiet());
      return;
    }
    try {
      this.#phase = 'paused';
      this.board.reset();
      const { vcpus, vm } = this.#powerOnState!;
      const clock = this.vm.getVmState();
      for (const [i, state] of vcpus.entries()) this.vm.setVcpuState(i, state);
      this.vm.setVmState({
        ...vm,
        clockNs: clock.clockNs,
        clockFlags: clock.clockFlags,
        clockRealtimeNs: clock.clockRealtimeNs,
        clockHostTsc: clock.clockHostTsc,
      });
      this.boot();
      this.deaf = false;
      this.#pending = undefined;
      this.resume();
    } catch (error) {
      this.#end({ kind: 'error', message: `the reset failed: ${messageOf(error)}` });
    }
  }
}
