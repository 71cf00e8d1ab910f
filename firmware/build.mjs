// Builds every guest of firmware/guests with the runtime into dist/firmware/NAME.elf, with the system's gcc.
// `node firmware/build.mjs [NAME...]`; what is newer than all it is made from is left alone. `--quiet` prints only
// what was built.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, renameSync, statSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const runtimeDir = join(here, 'runtime');
const guestDir = join(here, 'guests');
const outDir = join(here, '..', 'dist', 'firmware');
const objectDir = join(outDir, 'objects');
const script = join(runtimeDir, 'guest.ld');
const gcc = process.env.CC || 'gcc';

// General registers only: handlers and services run in ring 0, where SSE may not be emulated and is not saved.
const compileFlags = [
  ...'-std=gnu17 -O2 -m64 -ffreestanding -nostdlib -static -fno-pic -fno-pie -mcmodel=small'.split(
    ' ',
  ),
  ...'-mno-red-zone -mgeneral-regs-only -fno-stack-protector -fcf-protection=none'.split(' '),
  ...'-fno-asynchronous-unwind-tables -fno-strict-aliasing -ffunction-sections -fdata-sections'.split(
    ' ',
  ),
  ...['-Wall', '-Wextra', '-Werror', '-I', runtimeDir],
];
const linkFlags = [
  ...'-m64 -nostdlib -static -no-pie -s -Wl,--gc-sections -Wl,--build-id=none'.split(' '),
  ...['-Wl,-z,noexecstack', '-Wl,-z,max-page-size=4096', '-Wl,-T', script],
];

const mtime = (path) => (existsSync(path) ? statSync(path).mtimeMs : 0);
const sources = (dir) =>
  readdirSync(dir)
    .filter((f) => /\.(c|S)$/.test(f))
    .map((f) => join(dir, f));
const guestOf = (source) => basename(source).replace(/\..*/, '');

/** Makes `output` with gcc; renamed into place, so that nobody reads half a file. */
function make(args, output) {
  const partial = `${output}.${process.pid}`;
  return new Promise((resolve, reject) => {
    const child = spawn(gcc, [...args, '-o', partial], { stdio: ['ignore', 'inherit', 'inherit'] });
    child.on('error', reject);
    child.on('close', (code) => {
      if (code !== 0) reject(new Error(`${gcc} failed (status ${code})`));
      else resolve(renameSync(partial, output));
    });
  });
}

/** Runs the jobs, a few at a time; the first failure ends it. */
async function inParallel(jobs) {
  let next = 0;
  const worker = async () => {
    while (next < jobs.length) await jobs[next++]();
  };
  await Promise.all(Array.from({ length: Math.min(availableParallelism(), 4) }, worker));
}

async function main() {
  const names = process.argv.slice(2).filter((a) => !a.startsWith('--'));
  const quiet = process.argv.includes('--quiet');
  // A guest is NAME.c, with NAME.S beside it where C has no words for what it does.
  const parts = sources(guestDir).filter((f) => names.length === 0 || names.includes(guestOf(f)));
  const guests = parts.filter((f) => f.endsWith('.c'));
  if (guests.length === 0) throw new Error(`no such guest in firmware/guests: ${names.join(', ')}`);
  const probe = spawnSync(gcc, ['--version'], { stdio: 'ignore' });
  if (probe.error || probe.status !== 0) {
    throw new Error(
      `${gcc} was not found; the guests are compiled from source. Install it (Debian: apt-get install gcc) or set CC.`,
    );
  }
  mkdirSync(objectDir, { recursive: true });
  const headers = readdirSync(runtimeDir)
    .filter((f) => f.endsWith('.h'))
    .map((f) => join(runtimeDir, f));
  const common = Math.max(mtime(fileURLToPath(import.meta.url)), ...headers.map(mtime));
  const objectOf = (source) =>
    join(objectDir, `${basename(dirname(source))}-${basename(source)}.o`);
  const runtime = sources(runtimeDir);
  const compile = [...runtime, ...parts]
    .filter((source) => mtime(objectOf(source)) < Math.max(common, mtime(source)))
    .map((source) => () => make([...compileFlags, '-c', source], objectOf(source)));
  await inParallel(compile);
  const runtimeObjects = runtime.map(objectOf);
  const inputs = Math.max(mtime(script), common, ...runtimeObjects.map(mtime));
  await inParallel(
    guests.map((guest) => async () => {
      const name = guestOf(guest);
      const elf = join(outDir, `${name}.elf`);
      const own = parts.filter((f) => guestOf(f) === name).map(objectOf);
      const stale = mtime(elf) < Math.max(inputs, ...own.map(mtime));
      if (stale) await make([...linkFlags, ...own, ...runtimeObjects, '-lgcc'], elf);
      if (stale || !quiet)
        console.log(
          `${stale ? 'built' : 'ready'}  ${String(statSync(elf).size).padStart(7)} bytes  ${name}.elf`,
        );
    }),
  );
}

main().catch((error) => {
  console.error(`firmware: ${error.message}`);
  process.exitCode = 1;
});
