import { describe, expect, it } from 'vitest';
import { MemoryLog } from '../base/log.ts';
import { MemoryConsole } from '../console/memory.ts';
import { EXIT, REG } from '../kvm/api.ts';
import { FakeKvmHost } from '../kvm/fake.ts';
import { Machine } from './machine.ts';

const RESET_CONTROL = 0xcf9;
const DEBUG_EXIT = 0xf4;

/** The smallest firmware machine: one page of image, on a VM that the test plays. */
function machineOf(onReset: 'restart' | 'exit' = 'restart') {
  const host = new FakeKvmHost();
  const image = { name: 'bios', bytes: new Uint8Array(0x2_0000).fill(0x90) };
  const boot = { kind: 'firmware', image, order: ['disk'] } as const;
  const config = { name: 'x', memoryBytes: 2 ** 22, cpus: 1, cpu: 'host', boot };
  const log = new MemoryLog();
  const machine = new Machine(config, { host, log, onReset });
  machine.assemble({
    serial: [new MemoryConsole()],
    disks: [],
    nets: [],
    doorbellsOfAnyWidth: true,
  });
  return { machine, vm: host.vms[0]!, log };
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

describe('a machine', () => {
  it('restarts from its power-on state, whatever the vCPU runs into behind the request', async () => {
    for (const kind of [EXIT.internalError, EXIT.shutdown]) {
      const { machine, vm, log } = machineOf();
      machine.boot();
      machine.start();
      const regs = new BigUint64Array(18);
      vm.out(RESET_CONTROL, 1, 2);
      vm.out(RESET_CONTROL, 1, 6);
      expect(machine.deaf).toBe(true);
      // Nothing of the guest reaches a device any more.
      vm.out(DEBUG_EXIT, 1, 5);
      vm.setRegs(0, regs.fill(7n));
      expect(vm.exit(0, { kind, detail: 1 })).toBe(false);
      await turn();
      await turn();
      expect(machine).toMatchObject({ deaf: false, phase: 'running' });
      expect(vm.getRegs(0)[REG.rax]).toBe(0n);
      expect(log.lines.filter((line) => /error|warn/.test(line))).toEqual([]);
      machine.dispose();
    }
  });

  it('ends at a reset where it was told to', async () => {
    const { machine, vm } = machineOf('exit');
    machine.boot();
    machine.start();
    vm.out(RESET_CONTROL, 1, 6);
    expect(await machine.finished).toEqual({ kind: 'reset' });
    machine.dispose();
    expect(vm.destroyed).toBe(true);
  });

  it.each([
    [{ kind: EXIT.internalError, detail: 1 }, /vcpu 0: KVM cannot emulate/],
    [{ kind: EXIT.runError, detail: 14 }, /errno 14/],
  ])('ends with an error at %j', async (exit, message) => {
    const { machine, vm } = machineOf();
    machine.boot();
    machine.start();
    vm.exit(0, exit);
    expect(await machine.finished).toMatchObject({
      kind: 'error',
      message: expect.stringMatching(message),
    });
    machine.dispose();
  });

  it('can be thrown away before it has devices', () => {
    const host = new FakeKvmHost();
    const image = { name: 'bios', bytes: new Uint8Array(4096) };
    const boot = { kind: 'firmware', image, order: [] } as const;
    const config = { name: 'x', memoryBytes: 2 ** 22, cpus: 1, cpu: 'host', boot };
    const machine = new Machine(config, { host, log: new MemoryLog() });
    machine.dispose();
    expect(host.vms[0]!.destroyed).toBe(true);
  });
});
