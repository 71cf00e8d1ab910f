import { afterEach, describe, expect, it } from 'vitest';
import { EXIT, type KvmVm, REG } from '../../src/kvm/api.ts';
import {
  CODE,
  copyExit,
  DATA,
  DONE,
  hex,
  MMIO,
  makeGuest,
  PORT,
  type SeenExit,
  type TestGuest,
} from './kvm-guest.ts';

const vms: KvmVm[] = [];

function guest(...args: Parameters<typeof makeGuest>): TestGuest {
  const made = makeGuest(...args);
  vms.push(made.vm);
  return made;
}

afterEach(() => {
  for (const vm of vms.splice(0)) vm.destroy();
});

const nextTurn = () => new Promise<void>((resolve) => setImmediate(resolve));
/** inc dword [DATA]; jmp back (long mode) */
const COUNT = [0xff, 0x04, 0x25, 0x00, 0x00, 0x01, 0x00, 0xeb, 0xf7];

async function until(condition: () => boolean): Promise<void> {
  const end = performance.now() + 10_000;
  while (!condition()) {
    if (performance.now() > end) throw new Error('condition not reached');
    await nextTurn();
  }
}

describe('pauseAll', () => {
  it('stops a running vCPU quickly, again and again', async () => {
    const { vm, memory } = guest('long', COUNT);
    const counter = new Uint32Array(memory.buffer, DATA, 1);
    vm.start({ onExit: () => true });
    const times: number[] = [];
    for (let i = 0; i < 50; i++) {
      const before = counter[0]!;
      await until(() => counter[0]! > before);
      const start = performance.now();
      vm.pauseAll();
      times.push(performance.now() - start);
      expect(vm.paused).toBe(true);
      const stopped = counter[0]!;
      await nextTurn();
      expect(counter[0]).toBe(stopped);
      vm.pauseAll();
      vm.resumeAll();
      expect(vm.paused).toBe(false);
    }
    times.sort((a, b) => a - b);
    // Sanity only: a kick is a signal and a wake-up, not a time-out.
    expect(times[25]).toBeLessThan(20);
  });

  it('stops and starts vCPUs that halt or wait for their start-up', async () => {
    const { vm } = guest('long', [0xf4, 0xeb, 0xfd], { vcpus: 3 });
    vm.start({ onExit: () => true });
    for (let i = 0; i < 20; i++) {
      vm.pauseAll();
      expect(vm.captureState().vcpus.map((v) => v.mpState)).toHaveLength(3);
      vm.resumeAll();
      await nextTurn();
    }
  });

  it('can pause before the start', () => {
    const { vm, memory } = guest('long', COUNT);
    vm.pauseAll();
    vm.start({ onExit: () => true });
    vm.pauseAll();
    expect(memory[DATA]).toBe(0);
    expect(vm.getRegs(0)[REG.rip]).toBe(BigInt(CODE));
    vm.resumeAll();
  });

  it('finishes an operation of several exits before it returns', async () => {
    // A 16-byte store to MMIO is two exits, and a read-modify-write is a read and a write.
    const { vm } = guest('long', [
      ...hex('bb 00 00 10 00'), // mov ebx, MMIO
      ...hex('66 0f 7f 03'), // movdqa [rbx], xmm0
      ...hex('48 ff 43 20'), // inc qword [rbx+32]
      ...hex('eb f6'), // jmp back to movdqa
    ]);
    const exits: SeenExit[] = [];
    let first: () => void = () => {};
    const started = new Promise<void>((resolve) => {
      first = resolve;
    });
    let handled = 0;
    vm.start({
      onExit(vcpu) {
        const exit = copyExit(vm.slots[vcpu]!);
        exits.push(exit);
        if (exit.kind === EXIT.mmioRead) vm.slots[vcpu]!.view.setBigUint64(0, 41n, true);
        if (++handled === 20) first();
        return true;
      },
    });
    await started;
    for (let i = 0; i < 40; i++) {
      vm.pauseAll();
      // Everything that one instruction does is done: RIP is at an instruction's start, and the exits
      // since the last boundary form whole instructions.
      const offset = Number(vm.getRegs(0)[REG.rip]!) - CODE;
      expect([5, 9, 13]).toContain(offset);
      const last = exits.at(-1)!;
      if (last.kind === EXIT.mmioWrite && last.address === MMIO) {
        throw new Error('stopped in the middle of a 16-byte store');
      }
      if (last.kind === EXIT.mmioRead)
        throw new Error('stopped in the middle of a read-modify-write');
      vm.resumeAll();
      for (let turn = 0; turn <= i % 5; turn++) await nextTurn();
    }
    const stores = exits.filter((e) => e.kind === EXIT.mmioWrite && e.address < MMIO + 16);
    expect(stores.length).toBeGreaterThan(0);
    expect(exits.every((e) => e.size === 8)).toBe(true);
  });

  it('delivers exits on the calling stack while it waits', async () => {
    const { vm } = guest('long', [0xe6, PORT, 0xeb, 0xfc]);
    let inPause = false;
    let during = 0;
    vm.start({
      onExit() {
        if (inPause) during++;
        return true;
      },
    });
    for (let i = 0; i < 50; i++) {
      await nextTurn();
      // Meanwhile the vCPU posts an exit that nobody takes.
      for (const end = performance.now() + 0.3; performance.now() < end; );
      inPause = true;
      vm.pauseAll();
      inPause = false;
      vm.resumeAll();
    }
    expect(during).toBeGreaterThan(0);
  });

  it('refuses while an exit is open, and goes on', async () => {
    const { vm } = guest('long', [...DONE]);
    await new Promise<void>((resolve) => {
      vm.start({
        onExit() {
          resolve();
          return false;
        },
      });
    });
    expect(() => vm.pauseAll()).toThrow(expect.objectContaining({ code: 'KVM_EXIT_OPEN' }));
    expect(vm.paused).toBe(false);
    expect(vm.openExit(0)).toBe(EXIT.pioOut);
    vm.completeExit(0);
    expect(() => vm.completeExit(0)).toThrow(expect.objectContaining({ code: 'KVM_NO_EXIT' }));
    vm.pauseAll();
    // Past the OUT; the HLT behind it may have run.
    expect([CODE + 2, CODE + 3]).toContain(Number(vm.getRegs(0)[REG.rip]));
  });

  it('from inside a handler: refuses, or stops around an open OUT', async () => {
    const { vm } = guest('long', [0xb0, 0x41, ...DONE]);
    const result = await new Promise<{ code: string; rip: bigint }>((resolve) => {
      vm.start({
        onExit() {
          let code = '';
          try {
            vm.pauseAll();
          } catch (error) {
            ({ code } = error as { code: string });
          }
          vm.pauseAllOpen();
          const rip = vm.getVcpuState(0).regs[REG.rip]!;
          expect(() => vm.destroy()).toThrow(expect.objectContaining({ code: 'KVM_BUSY' }));
          vm.resumeAll();
          resolve({ code, rip });
          return true;
        },
      });
    });
    expect(result).toEqual({ code: 'KVM_EXIT_OPEN', rip: BigInt(CODE + 2) });
  });

  it('state calls need a stopped VM', () => {
    const { vm } = guest('long', COUNT);
    vm.start({ onExit: () => true });
    const refused = expect.objectContaining({ code: 'KVM_NOT_PAUSED' });
    expect(() => vm.captureState()).toThrow(refused);
    expect(() => vm.getRegs(0)).toThrow(refused);
    expect(() => vm.setRegs(0, new BigUint64Array(18))).toThrow(refused);
    expect(() => vm.getVmState()).toThrow(refused);
    expect(() => vm.start({ onExit: () => true })).toThrow(
      expect.objectContaining({ code: 'KVM_STARTED' }),
    );
  });

  it('an exception in the handler reaches the caller of pauseAll', async () => {
    const { vm } = guest('long', [0xe6, PORT, 0xeb, 0xfc]);
    let fail = false;
    vm.start({
      onExit() {
        if (fail) throw new Error('handler failed');
        return true;
      },
    });
    let caught: unknown;
    const uncaught: unknown[] = [];
    const listeners = process.listeners('uncaughtException');
    process.removeAllListeners('uncaughtException');
    process.on('uncaughtException', (error) => uncaught.push(error));
    try {
      await nextTurn();
      fail = true;
      const end = performance.now() + 5000;
      while (caught === undefined && uncaught.length === 0 && performance.now() < end) {
        try {
          vm.pauseAll();
          vm.resumeAll();
        } catch (error) {
          caught = error;
        }
      }
    } finally {
      process.removeAllListeners('uncaughtException');
      for (const listener of listeners) process.on('uncaughtException', listener);
    }
    expect(((caught ?? uncaught[0]) as Error).message).toBe('handler failed');
  });

  it('single steps', async () => {
    const { vm } = guest('real', [0x90, 0x90, 0x90, ...DONE]);
    vm.setGuestDebug(0, { singleStep: true });
    const rips: number[] = [];
    await new Promise<void>((resolve) => {
      vm.start({
        onExit(vcpu) {
          const { words } = vm.slots[vcpu]!;
          if (words[0] !== EXIT.debug) {
            resolve();
            return false;
          }
          rips.push(words[8]! - CODE);
          return true;
        },
      });
    });
    expect(rips.slice(0, 3)).toEqual([1, 2, 3]);
  });

  it('application processors start by INIT and SIPI', async () => {
    // BSP: send INIT and SIPI (vector 9, 0x9000) to all others through the LAPIC, wait for their mark.
    const { vm, memory } = guest(
      'long',
      [
        ...hex('bb 00 00 e0 fe'), // mov ebx, 0xfee00000
        ...hex('c7 83 f0 00 00 00 ff 01 00 00'), // mov dword [rbx+0xf0], 0x1ff
        ...hex('c7 83 00 03 00 00 00 45 0c 00'), // mov dword [rbx+0x300], 0xc4500 (INIT, all but self)
        ...hex('c7 83 00 03 00 00 09 46 0c 00'), // mov dword [rbx+0x300], 0xc4609 (SIPI)
        ...hex('83 3c 25 00 00 01 00 03'), // cmp dword [DATA], 3
        ...hex('75 f6'), // jne back
        ...DONE,
      ],
      { vcpus: 4 },
    );
    // 1 GiB of page tables do not reach the LAPIC: a second directory for 3-4 GiB.
    const tables = new DataView(memory.buffer);
    tables.setBigUint64(0x2000 + 3 * 8, 0x4000n + 3n, true);
    for (let i = 0; i < 512; i++) {
      tables.setBigUint64(0x4000 + i * 8, 0xc000_0000n + BigInt(i) * 0x20_0000n + 0x83n, true);
    }
    // AP, 16-bit at 0900:0000: mov ax, 0x1000; mov ds, ax; lock inc dword [0]; cli; hlt
    memory.set(
      [0xb8, 0x00, 0x10, 0x8e, 0xd8, 0xf0, 0x66, 0xff, 0x06, 0x00, 0x00, 0xfa, 0xf4],
      0x9000,
    );
    await new Promise<void>((resolve) => {
      vm.start({
        onExit() {
          resolve();
          return false;
        },
      });
    });
    expect(memory[DATA]).toBe(3);
  });
});
