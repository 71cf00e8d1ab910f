// Bundles the command into a few files in dist/cli, by what is loaded together: finding, reading and compiling the 200 modules
// of a guest's run one by one took most of the time from the start of the process to the guest's first instruction. As CommonJS:
// Node loads it faster than ES modules, and keeps or takes compiled code for it (src/cli/launch.ts).
// The small packages that every command loads are in it; others stay packages of their own. dist/src holds the same code module
// by module, for tests and tools.
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { rolldown } from 'rolldown';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const folder = join(root, 'dist', 'cli');
const PACKAGES = ['bitset', 'commander', 'picocolors'];

// Commander starts programs for sub-commands that are files of their own. There are none, and loading what starts programs
// takes 8 ms.
const withoutPrograms = {
  name: 'without-programs',
  takes: (id, importer) => id === 'node:child_process' && importer?.includes('/commander/'),
  resolveId(id, importer) {
    return withoutPrograms.takes(id, importer) ? '\0none' : undefined;
  },
  load: (id) => (id === '\0none' ? 'export {};' : undefined),
};

async function bundle(input, more, define) {
  const made = await rolldown({
    cwd: root,
    input,
    platform: 'node',
    external: (id, importer) =>
      !/^[./\0]/.test(id) && !PACKAGES.includes(id) && !withoutPrograms.takes(id, importer),
    plugins: [withoutPrograms],
    transform: { define },
    logLevel: 'warn',
  });
  const { output } = await made.generate({
    dir: folder,
    format: 'cjs',
    sourcemap: true,
    comments: { jsdoc: false },
    ...more,
  });
  await made.close();
  return output;
}

const names = { entryFileNames: '[name].cjs', chunkFileNames: '[name].cjs' };
const chunks = await bundle({ commands: join('src', 'cli', 'main.ts') }, names, {});
const digest = createHash('sha256');
for (const { fileName, type, code } of chunks) {
  if (type !== 'chunk') continue;
  // Compiled code that is taken from a cache cannot import.
  if (/^[^/*]*\bimport\(/m.test(code)) throw new Error(`${fileName} imports a package: require it`);
  digest.update(`${fileName} ${code.length}\n${code}`);
}
const launcher = await bundle({ main: join('src', 'cli', 'launch.ts') }, names, {
  BUILD_DIGEST: JSON.stringify(digest.digest('hex')),
});

rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });
for (const file of [...chunks, ...launcher]) {
  writeFileSync(join(folder, file.fileName), file.code ?? file.source);
}
const licences = PACKAGES.map((name) => {
  const path = join(root, 'node_modules', name, 'LICENSE');
  return `${name}\n\n${readFileSync(path, 'utf8')}`;
});
writeFileSync(join(folder, 'LICENSES.txt'), licences.join('\n----\n\n'));
