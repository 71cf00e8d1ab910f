// Makes the two packages that are published: `tsvmm` (JavaScript, guests, loader) and
// `tsvmm-linux-x64-gnu` (the compiled addon). Works on a staged copy, so the checkout is not changed.
// Neither package has an install script; no compiler is needed where they are installed.
//
//   node scripts/pack-all.mjs [OUTPUT-DIR]     default: artifacts/
//
// Prints one line per tarball.
import { spawnSync } from 'node:child_process';
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const output = resolve(process.argv[2] ?? join(root, 'artifacts'));
const napi = join(root, 'node_modules', '@napi-rs', 'cli', 'dist', 'cli.js');
const addon = 'tsvmm.linux-x64-gnu.node';

function run(command, args, cwd) {
  const result = spawnSync(command, args, {
    cwd,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  if (result.status !== 0) {
    process.stderr.write(result.stdout ?? '');
    throw new Error(
      `${command} ${args.join(' ')} ended with ${result.status ?? result.error?.message}`,
    );
  }
  return result.stdout;
}

run(process.execPath, [join(root, 'scripts', 'prepare.mjs')], root);

const stage = mkdtempSync(join(tmpdir(), 'tsvmm-pack-'));
try {
  const pkg = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const { scripts: _scripts, devDependencies: _dev, overrides: _overrides, ...published } = pkg;
  writeFileSync(join(stage, 'package.json'), `${JSON.stringify(published, null, 2)}\n`);
  for (const path of pkg.files) {
    if (existsSync(join(root, path)))
      cpSync(join(root, path), join(stage, path), { recursive: true });
  }
  mkdirSync(join(stage, 'artifacts'));
  copyFileSync(join(root, 'native', addon), join(stage, 'artifacts', addon));

  run(process.execPath, [napi, 'create-npm-dirs'], stage);
  run(process.execPath, [napi, 'artifacts', '--output-dir', 'artifacts'], stage);
  // Adds the platform package to optionalDependencies of the staged copy; publishes nothing.
  run(
    process.execPath,
    [napi, 'pre-publish', '-t', 'npm', '--no-gh-release', '--skip-optional-publish'],
    stage,
  );

  mkdirSync(output, { recursive: true });
  for (const dir of [stage, join(stage, 'npm', 'linux-x64-gnu')]) {
    const made = JSON.parse(
      run('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', output], dir),
    );
    process.stdout.write(`${join(output, made[0].filename)}\n`);
  }
} finally {
  rmSync(stage, { recursive: true, force: true });
}
