/** Fuzzes the wire decoder: `--seed N` (else a fresh one, printed), `--rounds M`. Exit status 1 on a finding. */
import { parseArgs } from 'node:util';
import { fuzzDecoder } from '../../src/ft/wire/fuzz.ts';

const { values } = parseArgs({
  options: { seed: { type: 'string' }, rounds: { type: 'string', default: '200000' } },
});
const seed = values.seed === undefined ? Math.floor(Math.random() * 2 ** 31) : Number(values.seed);
const report = fuzzDecoder(seed, Number(values.rounds));
console.log(
  `seed ${seed}: ${report.rounds} rounds, ${report.messages} messages, ${report.faults} faults found.`,
);
if (report.failure !== undefined) {
  console.error(`${report.failure}\nAgain: npm run fuzz:wire -- --seed ${seed}`);
  process.exitCode = 1;
}
