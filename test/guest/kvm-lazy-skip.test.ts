/**
 * Lazy skip: while an OUT is open, captured state has RIP on it, whatever this kernel does. Each instruction runs; at
 * its exit the VM is captured and the state restored into a second VM, which must make exactly the same output again
 * (and, for string output, all that follows), while the first VM goes on as if nothing had happened.
 */
import { afterEach, describe, expect, it } from 'vitest';
import { EXIT, type KvmVm, REG } from '../../src/kvm/api.ts';
import {
  CODE,
  copyExit,
  DATA,
  DONE,
  DONE_PORT,
  hex,
  host,
  type Mode,
  makeGuest,
  type SeenExit,
} from './kvm-guest.ts';

const vms: KvmVm[] = [];
afterEach(() => {
  for (const vm of vms.splice(0)) vm.destroy();
});

interface Variant {
  readonly name: string;
  readonly mode: Mode;
  readonly code: readonly number[];
  /** Distance of the OUT from CODE, and a shorter form of it that is allowed (leading prefixes without effect). */
  readonly at: number;
  readonly end: number;
}

/** mov eax, 0x44434241 and mov edx, port (32-bit immediates, or 66 in 16-bit code) */
function set(mode: Mode, port: number): number[] {
  const p = mode === 'real' ? [0x66] : [];
  return [...p, 0xb8, 0x41, 0x42, 0x43, 0x44, ...p, 0xba, port & 0xff, port >> 8, 0, 0];
}

function plain(name: string, mode: Mode, instruction: number[], port = 0x510): Variant {
  const before = set(mode, port);
  return {
    name: `${name} (${mode})`,
    mode,
    code: [...before, ...instruction, ...DONE],
    at: before.length,
    end: before.length + instruction.length,
  };
}

const MODES: readonly Mode[] = ['real', 'protected32', 'long'];
const PLAIN: Variant[] = MODES.flatMap((mode) => [
  plain('out imm8, al', mode, [0xe6, 0x90]),
  plain('out imm8, natural', mode, [0xe7, 0x90]),
  plain('out imm8, other size', mode, [0x66, 0xe7, 0x90]),
  plain('out dx, al', mode, [0xee]),
  plain('out dx, natural', mode, [0xef]),
  plain('out dx, other size', mode, [0x66, 0xef]),
  plain('out dx, al with rep', mode, [0xf3, 0xee]),
  plain('out dx with address size', mode, [0x67, 0xef]),
  plain('out dx with segments', mode, [0x2e, 0x65, 0x66, 0xef]),
  plain('two equal ones', mode, [0xee, 0xee]),
  plain('port 0x7e', mode, [0xe6, 0x7e]),
  plain('an immediate that is an opcode', mode, [0xe6, 0xee]),
]);
PLAIN.push(
  plain('out dx, eax with rex', 'long', [0x48, 0xef]),
  plain('out dx, al with rex', 'long', [0x41, 0xee]),
  plain('out dx, ax with rex', 'long', [0x66, 0x40, 0xef]),
);

interface StringVariant {
  readonly name: string;
  readonly mode: Mode;
  readonly code: readonly number[];
  readonly sent: readonly number[];
}

const BYTES = Array.from({ length: 64 }, (_, i) => (i * 37 + 11) & 0xff);

/** Sends from DATA (in real mode DS = DATA / 16) with ECX items. */
function string(
  name: string,
  mode: Mode,
  instruction: number[],
  itemBytes: number,
  items: number,
  down = false,
): StringVariant {
  const w = mode === 'real' ? [0x66] : [];
  const first = down ? (items - 1) * itemBytes : 0;
  const esi = (mode === 'real' ? 0 : DATA) + first;
  const code = [
    ...(mode === 'real' ? [0xb8, (DATA >> 4) & 0xff, DATA >> 12, 0x8e, 0xd8] : []), // mov ax, DATA/16; mov ds, ax
    ...w,
    0xbe,
    esi & 0xff,
    (esi >> 8) & 0xff,
    esi >> 16,
    0, // mov esi
    ...w,
    0xb9,
    items,
    0,
    0,
    0, // mov ecx, items
    ...w,
    ...hex('ba 10 05'),
    0,
    0, // mov edx, 0x510
    down ? 0xfd : 0xfc, // std, cld
    ...instruction,
    ...DONE,
  ];
  const order = Array.from({ length: items }, (_, i) => (down ? items - 1 - i : i));
  const sent = order.flatMap((i) => BYTES.slice(i * itemBytes, (i + 1) * itemBytes));
  return { name: `${name} (${mode})`, mode, code, sent };
}

const STRINGS: StringVariant[] = MODES.flatMap((mode) => [
  string('rep outsb', mode, [0xf3, 0x6e], 1, 7),
  string('repne outsb', mode, [0xf2, 0x6e], 1, 3),
  string('rep outs, natural size', mode, [0xf3, 0x6f], mode === 'real' ? 2 : 4, 4),
  string('rep outs, other size', mode, [0xf3, 0x66, 0x6f], mode === 'real' ? 4 : 2, 4),
  string('rep outsb backwards', mode, [0xf3, 0x6e], 1, 5, true),
  string(
    'rep outsb, other address size',
    mode,
    [0xf3, 0x67, 0x6e],
    1,
    mode === 'protected32' ? 0 : 4,
  ),
  string('rep outsb of one', mode, [0xf3, 0x6e], 1, 1),
  string('outsb', mode, [0x6e], 1, 1),
  string('outs, natural size', mode, [0x6f], mode === 'real' ? 2 : 4, 1),
  string('outsb backwards', mode, [0x6e], 1, 1, true),
]).filter((variant) => variant.sent.length > 0);

/** A second VM that continues from the first one's captured state and memory. Returns its exits until DONE. */
function continueElsewhere(
  state: ReturnType<KvmVm['captureState']>,
  memory: Uint8Array,
): Promise<SeenExit[]> {
  const vm = host.createVm({ vcpus: 1 });
  vms.push(vm);
  new Uint8Array(vm.addMemory({ slot: 0, guestPhys: 0, sizeBytes: memory.length })).set(memory);
  vm.restoreState(state);
  return new Promise((resolve) => {
    const seen: SeenExit[] = [];
    vm.start({
      onExit() {
        const exit = copyExit(vm.slots[0]!);
        if (exit.kind !== EXIT.pioOut || exit.address === DONE_PORT) {
          resolve(seen);
          return false;
        }
        seen.push(exit);
        return true;
      },
    });
  });
}

describe('lazy skip', () => {
  it('was probed', () => {
    const { long, protected32, real } = host.probe().lazySkip;
    for (const point of [long, protected32, real]) expect(['late', 'early']).toContain(point);
  });

  it.each(PLAIN)('$name', async ({ mode, code, at, end }) => {
    const { vm, memory } = makeGuest(mode, code);
    vms.push(vm);
    const sent: SeenExit[] = [];
    let again: Promise<SeenExit[]> | undefined;
    await new Promise<void>((resolve) => {
      vm.start({
        onExit() {
          const exit = copyExit(vm.slots[0]!);
          if (exit.address === DONE_PORT) {
            resolve();
            return false;
          }
          if (again === undefined) {
            vm.pauseAllOpen();
            const state = vm.captureState();
            const rip = Number(state.vcpus[0]!.regs[REG.rip]) - CODE;
            expect(rip).toBeGreaterThanOrEqual(at);
            expect(rip).toBeLessThan(end);
            again = continueElsewhere(state, memory.slice());
            vm.resumeAll();
          }
          sent.push(exit);
          return true;
        },
      });
    });
    expect(sent.length).toBeGreaterThan(0);
    expect(await again).toEqual(sent);
  });

  it.each(STRINGS)('$name', async ({ mode, code, sent }) => {
    const { vm, memory } = makeGuest(mode, code);
    vms.push(vm);
    memory.set(BYTES, DATA);
    const seen: SeenExit[] = [];
    const continued: { from: number; exits: Promise<SeenExit[]> }[] = [];
    await new Promise<void>((resolve) => {
      vm.start({
        onExit() {
          const exit = copyExit(vm.slots[0]!);
          if (exit.address === DONE_PORT) {
            resolve();
            return false;
          }
          vm.pauseAllOpen();
          continued.push({
            from: seen.length,
            exits: continueElsewhere(vm.captureState(), memory.slice()),
          });
          vm.resumeAll();
          seen.push(exit);
          return true;
        },
      });
    });
    const bytes = (exits: SeenExit[]) => exits.flatMap((exit) => exit.data);
    expect(bytes(seen)).toEqual(sent);
    for (const { from, exits } of continued) {
      expect(bytes(await exits), `continued at exit ${from}`).toEqual(bytes(seen.slice(from)));
    }
  });

  it('a completed OUT is not made again', async () => {
    const { vm, memory } = makeGuest('long', [...set('long', 0x510), 0xee, ...DONE]);
    vms.push(vm);
    await new Promise<void>((resolve) => {
      vm.start({
        onExit() {
          if (copyExit(vm.slots[0]!).address === DONE_PORT) {
            resolve();
            return false;
          }
          return true;
        },
      });
    });
    vm.pauseAllOpen();
    const again = await continueElsewhere(vm.captureState(), memory.slice());
    expect(again).toEqual([]);
    vm.resumeAll();
  });

  it('an OUT that was posted but not delivered stays open, and is delivered after the resume', async () => {
    const { vm, memory } = makeGuest('long', [...set('long', 0x510), 0xee, ...DONE]);
    vms.push(vm);
    const delivered: number[] = [];
    let done: () => void = () => {};
    const finished = new Promise<void>((resolve) => {
      done = resolve;
    });
    vm.start({
      onExit() {
        const { address } = copyExit(vm.slots[0]!);
        delivered.push(address);
        if (address === DONE_PORT) done();
        return address !== DONE_PORT;
      },
    });
    // The event loop does not run meanwhile: the exit waits.
    while (vm.openExit(0) === 0);
    vm.pauseAllOpen();
    expect(delivered).toEqual([]);
    const state = vm.captureState();
    expect(Number(state.vcpus[0]!.regs[REG.rip]) - CODE).toBe(10);
    const again = await continueElsewhere(state, memory.slice());
    expect(delivered).toEqual([]);
    vm.resumeAll();
    await finished;
    expect(delivered).toEqual([0x510, DONE_PORT]);
    expect(again.map((exit) => exit.address)).toEqual([0x510]);
  });
});
