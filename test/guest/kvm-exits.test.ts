import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { afterEach, describe, expect, it } from 'vitest';
import { EXIT, type KvmVm } from '../../src/kvm/api.ts';
import {
  CODE,
  DATA,
  DONE,
  hex,
  MMIO,
  type Mode,
  makeGuest,
  PORT,
  runToDone,
  type TestGuest,
} from './kvm-guest.ts';

/** Of the thread that reads it. */
const OWN_STATUS = '/proc/thread-self/status';
const vms: KvmVm[] = [];

function guest(...args: Parameters<typeof makeGuest>): TestGuest {
  const made = makeGuest(...args);
  vms.push(made.vm);
  return made;
}

afterEach(() => {
  for (const vm of vms.splice(0)) vm.destroy();
});

const brief = (exits: Awaited<ReturnType<typeof runToDone>>) =>
  exits.map(({ kind, address, size, count, data }) => [kind, address, size, count, data]);

describe('exits', () => {
  it.each<Mode>(['real', 'protected32', 'long'])('port output in %s mode', async (mode) => {
    const text = 'Hello from KVM\n';
    const code = [...text].flatMap((c) => [0xb0, c.charCodeAt(0), 0xe6, PORT]); // mov al, c; out PORT, al
    const { vm } = guest(mode, [...code, ...DONE]);
    const exits = await runToDone(vm);
    expect(String.fromCharCode(...exits.map((e) => e.data[0]!))).toBe(text);
    expect(exits.every((e) => e.kind === EXIT.pioOut && e.address === PORT && e.size === 1)).toBe(
      true,
    );
  });

  it.skipIf(availableParallelism() < 2)(
    'a vCPU that sleeps in each of many exits shares the CPU of the loop, and gives it back',
    async () => {
      const cpus = () => /Cpus_allowed:\s*(\S+)/.exec(readFileSync(OWN_STATUS, 'utf8'))![1]!;
      const before = cpus();
      const { vm } = guest('long', [
        ...hex('b9 d0 07 00 00'), // mov ecx, 2000
        ...[0xe6, PORT], // again: out PORT, al
        ...hex('ff c9 75 fa'), // dec ecx; jnz again
        ...DONE,
      ]);
      vm.setSpin({ vcpuMaxUs: 0, loopMaxUs: 0 });
      const seen = new Set<string>();
      const exits = await runToDone(vm, () => void seen.add(cpus()));
      expect(exits).toHaveLength(2000);
      expect(seen.size).toBeGreaterThan(1);
      await new Promise((resolve) => setTimeout(resolve, 100));
      expect(cpus()).toBe(before);
      vm.destroy();
      expect(cpus()).toBe(before);
    },
  );

  it('port reads and writes of all sizes', async () => {
    const { vm, memory } = guest('long', [
      ...hex('66 ba 10 05'), // mov dx, 0x510
      ...hex('ec a2 00 00 01 00 00 00 00 00'), // in al, dx; mov [DATA], al
      ...hex('66 ed 66 ef'), // in ax, dx; out dx, ax
      ...hex('ed ef'), // in eax, dx; out dx, eax
      ...hex('a3 08 00 01 00 00 00 00 00'), // mov [DATA+8], eax
      ...DONE,
    ]);
    const exits = await runToDone(vm, (exit, slot) => {
      if (exit.kind !== EXIT.pioIn) return;
      for (let i = 0; i < exit.size; i++) slot.data[i] = 0x11 * exit.size + i;
    });
    expect(brief(exits)).toEqual([
      [EXIT.pioIn, 0x510, 1, 1, [0xff]],
      [EXIT.pioIn, 0x510, 2, 1, [0xff, 0xff]],
      [EXIT.pioOut, 0x510, 2, 1, [0x22, 0x23]],
      [EXIT.pioIn, 0x510, 4, 1, [0xff, 0xff, 0xff, 0xff]],
      [EXIT.pioOut, 0x510, 4, 1, [0x44, 0x45, 0x46, 0x47]],
    ]);
    expect(memory[DATA]).toBe(0x11);
    expect([...memory.subarray(DATA + 8, DATA + 12)]).toEqual([0x44, 0x45, 0x46, 0x47]);
  });

  it('string port output and input', async () => {
    const { vm, memory } = guest('long', [
      ...hex('be 00 00 01 00'), // mov esi, DATA
      ...hex('b9 05 00 00 00'), // mov ecx, 5
      ...hex('ba 10 05 00 00'), // mov edx, 0x510
      ...hex('fc f3 6e'), // cld; rep outsb
      ...hex('bf 00 01 01 00'), // mov edi, DATA+0x100
      ...hex('b9 03 00 00 00'), // mov ecx, 3
      ...hex('f3 66 6d'), // rep insw
      ...DONE,
    ]);
    memory.set([1, 2, 3, 4, 5], DATA);
    let next = 0x10;
    const exits = await runToDone(vm, (exit, slot) => {
      if (exit.kind === EXIT.pioIn) {
        for (let i = 0; i < exit.size * exit.count; i++) slot.data[i] = next++;
      }
    });
    const out = exits.filter((e) => e.kind === EXIT.pioOut);
    expect(out.flatMap((e) => e.data)).toEqual([1, 2, 3, 4, 5]);
    expect(out.every((e) => e.size === 1 && e.data.length === e.count)).toBe(true);
    expect([...memory.subarray(DATA + 0x100, DATA + 0x106)]).toEqual([
      0x10, 0x11, 0x12, 0x13, 0x14, 0x15,
    ]);
  });

  it('memory-mapped reads and writes of 1 to 8 bytes', async () => {
    const { vm, memory } = guest('long', [
      ...hex('bb 00 00 10 00'), // mov ebx, MMIO
      ...hex('48 8b 03'), // mov rax, [rbx]
      ...hex('48 89 43 10'), // mov [rbx+16], rax
      ...hex('89 43 20'), // mov [rbx+32], eax
      ...hex('66 89 43 30'), // mov [rbx+48], ax
      ...hex('88 43 40'), // mov [rbx+64], al
      ...hex('0f b6 4b 01'), // movzx ecx, byte [rbx+1]
      ...hex('88 0c 25 00 00 01 00'), // mov [DATA], cl
      ...DONE,
    ]);
    const exits = await runToDone(vm, (exit, slot) => {
      if (exit.kind === EXIT.mmioRead) for (let i = 0; i < exit.size; i++) slot.data[i] = 0xa0 + i;
    });
    const eight = [0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7];
    expect(brief(exits)).toEqual([
      [EXIT.mmioRead, MMIO, 8, 1, Array(8).fill(0xff)],
      [EXIT.mmioWrite, MMIO + 16, 8, 1, eight],
      [EXIT.mmioWrite, MMIO + 32, 4, 1, eight.slice(0, 4)],
      [EXIT.mmioWrite, MMIO + 48, 2, 1, eight.slice(0, 2)],
      [EXIT.mmioWrite, MMIO + 64, 1, 1, eight.slice(0, 1)],
      [EXIT.mmioRead, MMIO + 1, 1, 1, [0xff]],
    ]);
    expect(memory[DATA]).toBe(0xa0);
  });

  it('a triple fault ends in a shutdown exit that counts as stopped', async () => {
    const { vm, memory } = guest('long', [0x0f, 0x0b]); // ud2 without an IDT
    const first = vm.captureState();
    const kinds: number[] = [];
    let seen: () => void = () => {};
    const next = () =>
      new Promise<void>((resolve) => {
        seen = resolve;
      });
    const fault = next();
    vm.start({
      onExit(vcpu) {
        kinds.push(vm.slots[vcpu]!.words[0]!);
        seen();
        return false;
      },
    });
    await fault;
    expect(kinds).toEqual([EXIT.shutdown]);
    vm.pauseAll();
    expect(vm.paused).toBe(true);
    // A new state ends it: the vCPU goes on from there.
    memory.set(DONE, CODE);
    vm.restoreState(first);
    const done = next();
    vm.resumeAll();
    await done;
    expect(kinds).toEqual([EXIT.shutdown, EXIT.pioOut]);
  });
});
