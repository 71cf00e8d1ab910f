import { execFileSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { VmmError } from '../base/error.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { openSavedFile, writeSavedFile } from './saved-file.ts';

const MIB = 2 ** 20;
let folder = '';
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'tsvmm-saved-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function memory(second = 2 * MIB): GuestMemory {
  return new GuestMemory([
    { base: 0, buffer: new ArrayBuffer(2 * MIB) },
    { base: 4 * 2 ** 30, buffer: new ArrayBuffer(second) },
  ]);
}

function filled(): GuestMemory {
  const from = memory();
  from.ranges[0]!.bytes.fill(7, 5000, 9000);
  from.ranges[1]!.bytes[2 * MIB - 1] = 9;
  return from;
}

const container = Uint8Array.from({ length: 5000 }, (_, i) => i & 0xff);

describe('the file of a saved guest', () => {
  it('gives back what was written, and holds no room for zeroes', () => {
    const path = join(folder, 'good');
    const from = filled();
    writeSavedFile(path, container, from);
    writeSavedFile(path, container, from); // Replaces the one before.
    expect(statSync(path)).toMatchObject({ size: 4096 + 8192 + 4 * MIB, mode: 0o100600 });
    expect(readdirSync(folder)).toEqual(['good']);
    const to = memory();
    to.ranges[0]!.bytes.fill(0xee);
    const saved = openSavedFile(path);
    expect(saved.container).toEqual(container);
    saved.readInto(to);
    saved.close();
    for (const i of [0, 1]) {
      expect(Buffer.compare(to.ranges[i]!.bytes, from.ranges[i]!.bytes)).toBe(0);
    }
  });

  it('is refused with memory of another size', () => {
    const saved = openSavedFile(join(folder, 'good'));
    expect(() => saved.readInto(memory(4 * MIB))).toThrow(/laid out differently/);
    saved.close();
  });

  it('shows damage at every place and every length that matters', () => {
    const good = readFileSync(join(folder, 'good'));
    const path = join(folder, 'bad');
    const attempt = (bytes: Uint8Array): void => {
      writeFileSync(path, bytes);
      const saved = openSavedFile(path);
      try {
        // The container's own checksum is its decoder's business.
        if (!Buffer.from(saved.container).equals(container))
          throw new VmmError('STATE_CORRUPT', 'x');
        saved.readInto(memory());
      } finally {
        saved.close();
      }
    };
    const corrupt = expect.objectContaining({ code: 'STATE_CORRUPT' });
    attempt(good);
    const headBytes = 16 + 2 * 28 + 4;
    const places = Array.from({ length: headBytes }, (_, at) => at);
    places.push(4096, 4096 + 4999, 12288, 12288 + 5000, 12288 + 8999, good.length - 1);
    for (const at of places) {
      const bad = Buffer.from(good);
      bad[at]! ^= 0x10;
      expect(() => attempt(bad), `byte ${at}`).toThrow(corrupt);
    }
    for (const length of [0, 1, 15, 100, 4095, 4096, 9000, 12288, good.length - 1]) {
      expect(() => attempt(good.subarray(0, length)), `${length} bytes`).toThrow(corrupt);
    }
    rmSync(path);
  });

  it('is refused where there is none', () => {
    for (const path of [folder, join(folder, 'none')]) {
      expect(() => openSavedFile(path)).toThrow(expect.objectContaining({ code: 'FILE' }));
    }
  });

  it('does not appear when it cannot be written, and an earlier one stays', () => {
    const path = join(folder, 'good');
    const before = readFileSync(path);
    mkdirSync(join(folder, 'folder'));
    for (const target of [join(folder, 'none', 'x'), join(folder, 'folder')]) {
      expect(() => writeSavedFile(target, container, filled())).toThrow(
        expect.objectContaining({ code: 'SAVE_FILE' }),
      );
    }
    expect(readdirSync(folder).sort()).toEqual(['folder', 'good']);
    expect(readFileSync(path).equals(before)).toBe(true);
  });

  it('leaves nothing on a full disk', (context) => {
    const mount = join(folder, 'full');
    mkdirSync(mount);
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', mount], { stdio: 'ignore' });
    } catch {
      process.stdout.write('skipped: a full disk needs the right to mount a tmpfs\n');
      context.skip();
    }
    try {
      const from = memory();
      from.ranges[0]!.bytes.fill(1);
      expect(() => writeSavedFile(join(mount, 'x'), container, from)).toThrow(/ENOSPC/);
      expect(readdirSync(mount)).toEqual([]);
      expect(existsSync(join(mount, 'x'))).toBe(false);
    } finally {
      execFileSync('umount', [mount]);
    }
  });
});
