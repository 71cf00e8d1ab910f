import { expect, it } from 'vitest';
import { TestNet } from '../../test/support/test-net.ts';
import { MemoryLog } from '../base/log.ts';
import { MemoryConsole } from '../console/memory.ts';
import { FakeKvmHost } from '../kvm/fake.ts';
import { Machine } from './machine.ts';
import { replicatedGuest } from './replicated-guest.ts';

function machineWith(mtu: number): Machine {
  const image = { name: 'bios', bytes: new Uint8Array(0x2_0000).fill(0x90) };
  const boot = { kind: 'firmware', image, order: [] } as const;
  const config = { name: 'x', memoryBytes: 2 ** 22, cpus: 1, cpu: 'host', boot };
  const machine = new Machine(config, { host: new FakeKvmHost(), log: new MemoryLog() });
  const mac = Uint8Array.of(0x52, 0x54, 0, 0, 0, 1);
  const card = { id: 'net0', mac, model: 'virtio', rom: undefined } as const;
  machine.assemble({
    serial: [new MemoryConsole()],
    disks: [],
    nets: [{ ...card, backend: new TestNet({ mtu }) }],
    doorbellsOfAnyWidth: true,
  });
  return machine;
}

it('knows before a takeover which states this machine could not go on from', () => {
  const machine = machineWith(9000);
  machine.boot();
  const container = replicatedGuest(machine).saveContainer();
  const same = machineWith(9000);
  expect(() => replicatedGuest(same).checkContainer(container)).not.toThrow();
  const poor = machineWith(1500);
  expect(() => replicatedGuest(poor).checkContainer(container)).toThrow(/MTU of 9000/);
  // Whatever was asked, nothing has changed: it still takes a state of its own.
  expect(() => replicatedGuest(poor).checkContainer(poor.saveContainer())).not.toThrow();
  for (const each of [machine, same, poor]) each.dispose();
});
