/**
 * `npm run demo`: shows a guest surviving the loss of its host, and checks it from outside. Options: --json, --fault NAME,
 * --seed N, --disk replicate (each host has a disk of its own), --arbiter
 * lock|etcd, --keep.
 */
import { Prng } from '../../src/base/prng.ts';
import { FAULTS, type FaultName, runScenario } from './scenario.ts';

const args = process.argv.slice(2);
const value = (name: string): string | undefined => {
  const at = args.indexOf(name);
  return at < 0 ? undefined : args[at + 1];
};
const json = args.includes('--json');
const seed = Number(value('--seed') ?? Date.now() % 1e9);
const fault = FAULTS.find((name) => name === (value('--fault') ?? 'kill')) as FaultName | undefined;
const disks = value('--disk') === 'replicate' ? 'replicate' : 'shared';
if (fault === undefined || !Number.isSafeInteger(seed)) {
  process.stderr.write(`demo: --fault is one of ${FAULTS.join(', ')}, --seed a number\n`);
  process.exit(2);
}
const arbiter = value('--arbiter') ?? 'lock';
if (arbiter !== 'lock' && arbiter !== 'etcd') {
  process.stderr.write('demo: --arbiter is lock or etcd\n');
  process.exit(2);
}
const say = (line: string): void => {
  if (!json) process.stdout.write(`${line}\n`);
};
say(
  'A guest on host A, protected by a standby on host B (two processes on loopback); a client asks it all the time.',
);
try {
  const result = await runScenario({
    fault,
    arbiter,
    random: new Prng(seed),
    disks,
    say,
    keep: args.includes('--keep'),
  });
  const { outputs, lost, repeated, blackoutMs, verified, survivor, records, protectedMs } = result;
  say(
    `the guest now runs on host ${survivor === 'standby' ? 'B' : survivor === 'primary' ? 'A' : '-'}`,
  );
  say(
    `replies seen by the client: ${outputs}, lost: ${lost}, repeated: ${repeated}, longest gap ${blackoutMs} ms`,
  );
  say(
    `journal on the ${disks === 'shared' ? 'shared disk' : "survivor's own disk"}: ${records} records, every acknowledged request is in it: ${verified ? 'yes' : 'NO'}`,
  );
  for (const complaint of result.complaints.slice(0, 10))
    process.stderr.write(`demo: ${complaint}\n`);
  if (args.includes('--keep')) say(`logs and disk: ${result.folder}`);
  if (json) {
    const summary = {
      outputs,
      lost,
      repeated,
      blackoutMs,
      verified,
      survivor,
      records,
      protectedMs,
      fault,
      seed,
    };
    process.stdout.write(`${JSON.stringify(summary)}\n`);
  }
  process.exitCode = verified && lost === 0 ? 0 : 1;
} catch (error) {
  process.stderr.write(
    `demo: ${error instanceof Error ? error.message : String(error)} (seed ${seed})\n`,
  );
  process.exitCode = 1;
}
