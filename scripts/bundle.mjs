// Bundles the command into a few files in dist/cli, by what is loaded together: reading, linking and compiling the 200 modules
// of a guest's run one by one took most of the time from the start of the process to the guest's first instruction.
// Dependencies stay packages of their own. dist/src holds the same code module by module, for tests and tools.
import { rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { rolldown } from 'rolldown';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const folder = join(root, 'dist', 'cli');

const bundle = await rolldown({
  cwd: root,
  input: { main: join('src', 'cli', 'main.ts') },
  platform: 'node',
  // Everything that is no file of ours.
  external: /^(?![./])/,
  logLevel: 'warn',
});
rmSync(folder, { recursive: true, force: true });
await bundle.write({ dir: folder, format: 'esm', sourcemap: true, chunkFileNames: '[name].js' });
await bundle.close();
