// `npm run fuzz -- [--seconds N] [--seed N] [NAME...]`: the fuzzers of registry.ts in turns, from one seed on, which is
// printed. A failure prints the command that repeats it and ends with 1.
import { Command } from 'commander';
import { fuzzers } from './registry.ts';

const program = new Command('npm run fuzz --')
  .description('Fuzz what guests, peers and operators can hand to tsvmm.')
  .argument('[name...]', `which: ${fuzzers.map(({ name }) => name).join(', ')} (default all)`)
  .option('--seconds <n>', 'how long', '60')
  .option('--seed <n>', 'first seed (default: from the clock)')
  .showHelpAfterError()
  .parse();

const { seconds, seed } = program.opts<{ seconds: string; seed?: string }>();
const first = seed === undefined ? Date.now() % 1_000_000_000 : Number(seed);
const unknown = program.args.filter((name) => !fuzzers.some((fuzzer) => fuzzer.name === name));
if (unknown.length > 0) program.error(`there is no fuzzer ${unknown.join(', ')}`);
if (!(Number(seconds) > 0)) program.error(`--seconds ${seconds}: must be a number above 0`);
if (!Number.isSafeInteger(first)) program.error(`--seed ${seed}: must be a whole number`);
const chosen = fuzzers.filter(
  ({ name }) => program.args.length === 0 || program.args.includes(name),
);

process.stdout.write(`fuzz: seed ${first}, ${seconds} s\n`);
const end = performance.now() + Number(seconds) * 1000;
let turns = 0;
do {
  for (const { name, rounds, run } of chosen) {
    try {
      await run(first + turns, rounds);
    } catch (error) {
      const stack = error instanceof Error ? error.stack : String(error);
      process.stdout.write(
        `fuzz: ${name} failed: ${stack}\nfuzz: again by: npm run fuzz -- --seconds 0.001 --seed ${first + turns} ${name}\n`,
      );
      process.exit(1);
    }
  }
  turns++;
} while (performance.now() < end);
process.stdout.write(
  `fuzz: ${turns} turns of ${chosen.map(({ name }) => name).join(', ')}: all held\n`,
);
