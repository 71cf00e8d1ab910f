/**
 * Whole machines on /dev/kvm for the tests of src/machine: one of the project's guests with its serial line kept in
 * memory, and the way from one machine to the next through a saved state.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type MemoryLog, silentLog } from '../../src/base/log.ts';
import { MemoryConsole } from '../../src/console/memory.ts';
import { openKvmHost } from '../../src/kvm/host.ts';
import { loadNativeIo } from '../../src/kvm/native-io.ts';
import type { Image, MachineConfig } from '../../src/machine/config.ts';
import { Machine } from '../../src/machine/machine.ts';
import type { Outcome } from '../../src/machine/outcome.ts';
import type { DiskPart } from '../../src/machine/pci-devices.ts';
import { preciseTime } from '../../src/machine/precise-time.ts';

export const root = join(import.meta.dirname, '..', '..');
const io = loadNativeIo();
const host = openKvmHost();
const images = new Map<string, Image>();

/** Path of a guest, which is built if it is not there. */
export function guestPath(name: string): string {
  const path = join(root, 'dist', 'firmware', `${name}.elf`);
  if (!existsSync(path)) {
    const built = spawnSync(process.execPath, ['firmware/build.mjs', '--quiet', name], {
      cwd: root,
      encoding: 'utf8',
    });
    if (built.status !== 0) throw new Error(`building the guest ${name} failed: ${built.stderr}`);
  }
  return path;
}

function guestImage(name: string): Image {
  let image = images.get(name);
  if (image === undefined) {
    image = { name, bytes: readFileSync(guestPath(name)) };
    images.set(name, image);
  }
  return image;
}

export interface GuestOptions {
  readonly append?: string;
  readonly cpus?: number;
  readonly memoryMib?: number;
  readonly onReset?: 'restart' | 'exit';
  readonly log?: MemoryLog;
}

/** A machine with its console. */
export interface TestMachine {
  readonly machine: Machine;
  readonly console: MemoryConsole;
}

/** A machine with a guest that is not loaded yet. */
export function makeMachine(guest: string, options: GuestOptions = {}): TestMachine {
  return assembled(newMachine(guest, options), []);
}

/** The same with disks, which `open` opens on its memory; who closes them is the caller. */
export async function makeMachineWithDisks(
  guest: string,
  options: GuestOptions,
  open: (machine: Machine) => Promise<DiskPart[]>,
): Promise<TestMachine & { readonly disks: readonly DiskPart[] }> {
  const machine = newMachine(guest, options);
  const disks = await open(machine);
  return { ...assembled(machine, disks), disks };
}

function newMachine(guest: string, options: GuestOptions): Machine {
  const { append = '', cpus = 1, memoryMib = 32, onReset = 'restart', log = silentLog } = options;
  const config: MachineConfig = {
    name: guest,
    memoryBytes: memoryMib * 2 ** 20,
    cpus,
    cpu: 'host',
    boot: { kind: 'kernel', kernel: guestImage(guest), initrd: undefined, commandLine: append },
  };
  return new Machine(config, { host, log, time: preciseTime(io), onReset });
}

function assembled(machine: Machine, disks: readonly DiskPart[]): TestMachine {
  const console = new MemoryConsole();
  try {
    const { hasIoeventfdAnyLength } = host.probe();
    machine.assemble({
      serial: [console],
      disks,
      nets: [],
      doorbellsOfAnyWidth: hasIoeventfdAnyLength,
    });
  } catch (error) {
    machine.dispose();
    throw error;
  }
  return { machine, console };
}

/** How a whole run ended. */
export interface Run {
  readonly outcome: Outcome;
  /** The console without carriage returns. */
  readonly text: string;
  readonly ms: number;
}

/** Boots a guest and runs it to its end. */
export async function runGuest(guest: string, options: GuestOptions = {}): Promise<Run> {
  const { machine, console } = makeMachine(guest, options);
  try {
    const from = performance.now();
    machine.boot();
    machine.start();
    const outcome = await machine.finished;
    return { outcome, text: plain(console.text), ms: performance.now() - from };
  } finally {
    machine.dispose();
  }
}

/** Console text as people see it. */
export function plain(text: string): string {
  return text.replaceAll('\r', '');
}

/** A machine's state and memory, apart from the machine. */
export interface Saved {
  readonly container: Uint8Array;
  readonly ranges: readonly Uint8Array[];
}

/** Takes the state of a stopped machine. */
export function saveOf(machine: Machine): Saved {
  return {
    container: machine.saveContainer(),
    ranges: machine.memory.ranges.map(({ bytes }) => bytes.slice()),
  };
}

/** Puts a state into a machine that was made with the same options and not started. */
export function loadInto(machine: Machine, saved: Saved): void {
  machine.loadContainer(saved.container);
  for (const [i, bytes] of saved.ranges.entries()) machine.memory.ranges[i]!.bytes.set(bytes);
}

export const sleep = (ms: number): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until `holds`. */
export async function until(holds: () => boolean, what: string, timeoutMs = 20_000): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!holds()) {
    if (performance.now() > deadline) throw new Error(`not within ${timeoutMs} ms: ${what}`);
    await sleep(2);
  }
}
