// A guest survives the loss of its host: every fault once at an instant that a fixed seed chooses, and the kill once more at a
// fresh one. Two processes on loopback, a client outside; what the client saw must stand in the journal on the disk.
import { describe, expect, it } from 'vitest';
import { Prng } from '../../src/base/prng.ts';
import { etcdMissing } from '../failover/etcd-cluster.ts';
import { runScenario, type ScenarioOptions } from '../failover/scenario.ts';

async function survives(options: Omit<ScenarioOptions, 'random'>, seed: number): Promise<void> {
  const said: string[] = [`seed ${seed}`];
  const result = await runScenario({
    ...options,
    random: new Prng(seed),
    say: (line) => said.push(line),
  }).catch((error: unknown) => {
    throw new Error(`${said.join('\n')}\n${String(error)}`);
  });
  const { lost, complaints, survivor } = result;
  expect({ lost, complaints }, said.join('\n')).toEqual({ lost: 0, complaints: [] });
  expect(result.verified, said.join('\n')).toBe(true);
  const moves = options.fault === 'stop-primary' && options.arbiter === 'etcd';
  if (moves) expect(survivor).toBe('standby');
  else if (options.fault.startsWith('kill-s') || options.fault.startsWith('stop')) {
    expect(survivor).toBe('primary');
  }
}

describe('failover', { timeout: 120_000 }, () => {
  const cases: [string, Omit<ScenarioOptions, 'random'>][] = [
    ['kill, adaptive', { fault: 'kill', policy: 'adaptive', model: 'virtio' }],
    ['kill, kemari, e1000', { fault: 'kill', policy: 'kemari', model: 'e1000' }],
    ['kill, periodic, 2 vCPUs', { fault: 'kill', policy: 'periodic', model: 'virtio', cpus: 2 }],
    ['kill during the first copy', { fault: 'kill-early', model: 'e1000' }],
    ['kill within a transaction', { fault: 'kill-commit', policy: 'kemari', cpus: 4 }],
    ['kill around a flush of the guest', { fault: 'kill-flush', policy: 'periodic' }],
    ['a stopped primary', { fault: 'stop-primary', policy: 'adaptive', model: 'e1000' }],
    ['a stopped standby', { fault: 'stop-standby', policy: 'kemari' }],
    ['a killed standby, and a new one', { fault: 'kill-standby', policy: 'adaptive' }],
    ['a link cut at a byte', { fault: 'cut', policy: 'periodic', model: 'e1000' }],
    ['a planned switch-over', { fault: 'switchover', policy: 'adaptive' }],
  ];
  for (const [i, [name, options]] of cases.entries()) {
    it(`loses nothing: ${name}`, () => survives(options, 1000 + i));
  }

  describe.skipIf(etcdMissing() !== undefined)('with an etcd arbiter', () => {
    it.each([
      ['kill', { fault: 'kill', arbiter: 'etcd' }],
      ['a primary stopped for longer than its lease', { fault: 'stop-primary', arbiter: 'etcd' }],
      ['a link cut at a byte', { fault: 'cut', arbiter: 'etcd' }],
      ['a planned switch-over', { fault: 'switchover', arbiter: 'etcd' }],
    ] as const)('loses nothing: %s', (_name, options) => survives(options, 1100));
  });

  it('loses nothing when killed at a fresh instant', async () => {
    await survives({ fault: 'kill' }, Date.now() % 1e9);
  });
});
