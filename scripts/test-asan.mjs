// Runs the tests that use the addon against its AddressSanitizer/UBSan build (npm run build:asan).
// Arguments are passed to vitest. Tests find the other build through TSVMM_NATIVE.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

function library(name) {
  const found = spawnSync(process.env.CXX ?? 'g++', [`-print-file-name=${name}`], {
    encoding: 'utf8',
  });
  const path = found.stdout?.trim() ?? '';
  if (!path.startsWith('/')) {
    process.stderr.write(
      `${name} was not found: install the sanitizer runtime of the C++ compiler\n`,
    );
    process.exit(1);
  }
  return path;
}

const native = join(root, 'native', 'build-asan', 'build', 'Release', 'tsvmm.node');
if (!existsSync(native)) {
  process.stderr.write('the sanitizer build is missing: npm run build:asan\n');
  process.exit(1);
}
const env = {
  ...process.env,
  TSVMM_NATIVE: native,
  LD_PRELOAD: `${library('libasan.so')} ${library('libubsan.so')} ${library('libstdc++.so')}`,
  // Node itself never frees everything; the addon's own life cycle is checked by tests that count.
  // The quarantine is kept small for the tests that watch memory.
  ASAN_OPTIONS: 'detect_leaks=0:abort_on_error=1:halt_on_error=1:quarantine_size_mb=4',
  UBSAN_OPTIONS: 'print_stacktrace=1:halt_on_error=1',
};
const vitest = join(root, 'node_modules', 'vitest', 'vitest.mjs');

function suite(...args) {
  const result = spawnSync(process.execPath, [vitest, 'run', '--pool', 'forks', ...args], {
    cwd: root,
    env,
    stdio: 'inherit',
  });
  if (result.status !== 0) process.exit(result.status ?? 1);
}

const extra = process.argv.slice(2);
if (extra.length > 0) {
  suite(...extra);
} else {
  suite('src/block', 'src/net', 'src/console', 'test/unit/native');
  if (!existsSync('/dev/kvm'))
    process.stdout.write('skipped: the tests with guests need /dev/kvm\n');
  else if (existsSync(join(root, 'vitest.guest.config.ts')))
    suite('--config', 'vitest.guest.config.ts');
}
