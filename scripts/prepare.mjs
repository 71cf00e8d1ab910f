// npm's "prepare": builds everything a clone needs (addon, JavaScript, guests). It runs after `npm ci` in
// a clone and before packing; the published packages never run it.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

function step(...args) {
  const result = spawnSync(process.execPath, args, { cwd: root, stdio: 'inherit' });
  if (result.status !== 0) process.exit(result.status ?? 1);
}

step(join('native', 'build.mjs'));
step(join('node_modules', 'typescript', 'bin', 'tsc'), '-p', 'tsconfig.build.json');
step(join('scripts', 'bundle.mjs'));
if (existsSync(join(root, 'firmware', 'build.mjs'))) step(join('firmware', 'build.mjs'));
