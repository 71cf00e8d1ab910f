/** The version of the package this file is part of. */
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { assert } from '../base/assert.ts';

/** The folder that holds package.json: of the checkout or of the installed package. */
export function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json'))) {
    const up = dirname(folder);
    assert(up !== folder, 'package.json lies above this file');
    folder = up;
  }
  return folder;
}

/** `version` of package.json. */
export function packageVersion(): string {
  const text = readFileSync(join(packageRoot(), 'package.json'), 'utf8');
  const { version } = JSON.parse(text) as { version: string };
  return version;
}

/** Path of the demo guest that comes with the package. */
export function demoGuestPath(): string {
  return join(packageRoot(), 'dist/firmware/demo.elf');
}
