// Builds the native addon: node-gyp compiles native/binding.gyp, the result is put beside the sources as
// tsvmm.linux-x64-gnu.node, and @napi-rs/cli writes the loader (native/binding.cjs) that finds the local
// file first and the platform package second. Nothing is compiled when nothing changed.
//
//   node native/build.mjs            release build
//   node native/build.mjs --asan     AddressSanitizer and UBSan, into native/build-asan (no loader)
//   node native/build.mjs --print    print the path of the file that the build makes, and stop
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const require = createRequire(import.meta.url);
const nativeDir = dirname(fileURLToPath(import.meta.url));
const asan = process.argv.includes('--asan');
const gypDir = asan ? join(nativeDir, 'build-asan') : nativeDir;
const buildDir = join(gypDir, 'build');
const built = join(buildDir, 'Release', 'tsvmm.node');
const output = asan ? built : join(nativeDir, 'tsvmm.linux-x64-gnu.node');
const loader = join(nativeDir, 'binding.cjs');

function fail(message) {
  process.stderr.write(`native build: ${message}\n`);
  process.exit(1);
}

/** Every file the build depends on, as paths relative to native/. */
function inputs() {
  const list = ['binding.gyp', 'build.mjs'];
  for (const dir of ['.', 'kvm', 'io']) {
    const path = join(nativeDir, dir);
    if (!existsSync(path)) continue;
    for (const name of readdirSync(path).sort()) {
      if (name.endsWith('.cc') || name.endsWith('.h')) list.push(join(dir, name));
    }
  }
  return list;
}

function run(command, args, options) {
  const result = spawnSync(command, args, { stdio: 'inherit', ...options });
  if (result.error) fail(`cannot run ${command}: ${result.error.message}`);
  return result.status ?? 1;
}

/** Prefix of the running Node when its headers are there, so that nothing is downloaded. */
function nodeDir() {
  const prefix = dirname(dirname(realpathSync(process.execPath)));
  return existsSync(join(prefix, 'include', 'node', 'node_api.h')) ? prefix : undefined;
}

/** A static libstdc++ lets the published file run on distributions older than the one that built it. */
function hasStaticStdcxx() {
  const found = spawnSync(process.env.CXX ?? 'g++', ['-print-file-name=libstdc++.a'], {
    encoding: 'utf8',
  });
  return found.status === 0 && found.stdout.trim().startsWith('/');
}

async function writeLoader() {
  const { writeJsBinding } = await import('@napi-rs/cli');
  const pkg = JSON.parse(readFileSync(join(nativeDir, '..', 'package.json'), 'utf8'));
  const idents = Object.keys(require(output)).sort();
  await writeJsBinding({
    platform: true,
    idents,
    jsBinding: 'binding.cjs',
    format: 'commonjs',
    binaryName: 'tsvmm',
    packageName: pkg.name,
    version: pkg.version,
    outputDir: nativeDir,
  });
}

async function main() {
  if (process.argv.includes('--print')) {
    process.stdout.write(`${output}\n`);
    return;
  }
  if (process.platform !== 'linux' || process.arch !== 'x64')
    fail('the addon is for Linux on x86-64 only');
  mkdirSync(buildDir, { recursive: true });

  // One build at a time: several commands of one checkout may start it together.
  if (process.env.TSVMM_BUILD_LOCKED !== buildDir && existsSync('/usr/bin/flock')) {
    const env = { ...process.env, TSVMM_BUILD_LOCKED: buildDir };
    const lock = join(gypDir, 'build', '.lock');
    process.exit(
      run(
        '/usr/bin/flock',
        [lock, process.execPath, fileURLToPath(import.meta.url), ...process.argv.slice(2)],
        { env },
      ),
    );
  }

  if (asan) {
    // gyp builds beside its file: a folder of links gives the sanitizer build a place of its own.
    for (const name of ['binding.gyp', 'addon.cc', 'kvm', 'io']) {
      const link = join(gypDir, name);
      if (existsSync(join(nativeDir, name)) && !existsSync(link))
        symlinkSync(join('..', name), link);
    }
  }

  const headers = nodeDir();
  const list = inputs();
  const configuration = createHash('sha256')
    .update(JSON.stringify([process.version, headers, list.filter((name) => !name.endsWith('.h'))]))
    .update(readFileSync(join(nativeDir, 'binding.gyp')))
    .update(readFileSync(fileURLToPath(import.meta.url)))
    .digest('hex');
  const stamp = join(buildDir, '.configuration');
  const configured = existsSync(stamp) && readFileSync(stamp, 'utf8') === configuration;

  // A change of this file is seen by the configuration's hash.
  const sources = list.filter((name) => name !== 'build.mjs');
  const newest = Math.max(...sources.map((name) => statSync(join(nativeDir, name)).mtimeMs));
  const fresh = configured && existsSync(built) && statSync(built).mtimeMs >= newest;
  if (!fresh) {
    const gyp = require.resolve('node-gyp/bin/node-gyp.js');
    const common = ['--directory', gypDir, '--loglevel', 'error'];
    if (headers) common.push('--nodedir', headers);
    if (!configured) {
      const variables = asan ? ['-Dsanitize=1'] : hasStaticStdcxx() ? ['-Dstatic_stdcxx=1'] : [];
      if (run(process.execPath, [gyp, 'configure', ...common, '--', ...variables]) !== 0) {
        fail('configuration failed: a C++ compiler (g++ 11 or newer), make and python3 are needed');
      }
      writeFileSync(stamp, configuration);
    }
    const started = Date.now();
    if (run(process.execPath, [gyp, 'build', '--jobs', 'max', ...common]) !== 0)
      fail('the compiler reported errors');
    const edited = list.filter((name) => statSync(join(nativeDir, name)).mtimeMs > started);
    if (edited.length > 0) {
      // Objects made before and after the edit may disagree on a class, and to make they all look new.
      rmSync(join(buildDir, 'Release', 'obj.target'), { recursive: true, force: true });
      rmSync(built, { force: true });
      fail(`${edited.join(', ')} changed while it was being compiled; run the build again`);
    }
  }
  if (asan) return;
  if (!existsSync(output) || statSync(output).mtimeMs < statSync(built).mtimeMs) {
    // By rename: a process that has the old file mapped keeps it.
    copyFileSync(built, `${output}.tmp`);
    renameSync(`${output}.tmp`, output);
  }
  if (!existsSync(loader) || statSync(loader).mtimeMs < statSync(output).mtimeMs)
    await writeLoader();
}

await main();
