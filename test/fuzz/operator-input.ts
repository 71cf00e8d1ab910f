/**
 * Seeded fuzzers of what an operator hands to a machine: kernels and initial RAM disks, saved states, and configuration
 * files. What must hold: the answer is a result or a VmmError of one line, whatever the bytes; memory outside the boot
 * entry's own rules is never needed; nothing else is thrown. `npm run fuzz` runs them as long as asked for.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { assert } from '../../src/base/assert.ts';
import { VmmError } from '../../src/base/error.ts';
import { Prng } from '../../src/base/prng.ts';
import { parseRunOptions } from '../../src/cli/run-options.ts';
import { loadKernel } from '../../src/machine/boot/direct.ts';
import { e820Map, ramPieces } from '../../src/machine/layout.ts';
import { openSavedFile, writeSavedFile } from '../../src/machine/saved-file.ts';
import { GuestMemory } from '../../src/memory/guest-memory.ts';
import { decodeContainer, encodeContainer } from '../../src/snapshot/container.ts';

const MIB = 2 ** 20;

/** Throws unless `error` is one that a person can act on. */
function expectSentence(error: unknown): void {
  if (!(error instanceof VmmError)) throw error;
  assert(/^[^\n]+$/.test(error.message), `one line: ${JSON.stringify(error.message)}`);
  assert(!/undefined|\[object|NaN/.test(error.message), `a sentence: ${error.message}`);
}

/** Changes some bytes, mostly near the front, or cuts the end off. */
function damage(random: Prng, bytes: Uint8Array): Uint8Array {
  const copy = bytes.slice(0, random.chance(0.1) ? random.below(bytes.length) : bytes.length);
  for (let i = random.between(1, 12); i > 0 && copy.length > 0; i--) {
    const at = random.below(Math.min(copy.length, random.pick([64, 0x300, copy.length])));
    copy[at] = random.pick([0, 0xff, 0x80, 0x7f, 1, random.below(256)]);
  }
  return copy;
}

function elf(): Uint8Array {
  const image = new Uint8Array(0x300);
  const view = new DataView(image.buffer);
  image.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  for (const [at, value] of [
    [16, 2],
    [18, 62],
    [54, 56],
    [56, 2],
  ] as const)
    view.setUint16(at, value, true);
  view.setUint32(32, 64, true);
  const header = (at: number, ...words: number[]): void => {
    const [type, offset, address, file, memory] = words as [number, number, number, number, number];
    view.setUint32(at, type, true);
    view.setUint32(at + 8, offset, true);
    view.setUint32(at + 24, address, true);
    view.setUint32(at + 32, file, true);
    view.setUint32(at + 40, memory, true);
  };
  header(64, 1, 0x200, MIB, 0x100, 0x1000);
  header(120, 4, 0x180, 0, 20, 20);
  for (const [at, value] of [
    [0x180, 4],
    [0x184, 4],
    [0x188, 18],
    [0x190, MIB + 0x10],
  ] as const)
    view.setUint32(at, value, true);
  image.set([0x58, 0x65, 0x6e, 0], 0x18c);
  return image;
}

function bzImage(): Uint8Array {
  const image = new Uint8Array(3 * 512 + 4096);
  const view = new DataView(image.buffer);
  image[0x1f1] = 2;
  view.setUint16(0x1fe, 0xaa55, true);
  image.set([0xeb, 0x6a], 0x200);
  view.setUint32(0x202, 0x53726448, true);
  view.setUint16(0x206, 0x20f, true);
  image[0x211] = 1;
  view.setUint32(0x22c, 0x7fffffff, true);
  view.setUint32(0x230, 0x200000, true);
  image[0x234] = 1;
  view.setUint16(0x236, 1, true);
  view.setUint32(0x238, 2047, true);
  view.setUint32(0x258, 16 * MIB, true);
  view.setUint32(0x260, 8 * MIB, true);
  return image;
}

/** Damaged kernels and sizes through the loader. Returns how many were booted all the same. */
export function fuzzBootImages(seed: number, rounds: number): number {
  const random = new Prng(seed);
  const memory = new GuestMemory([{ base: 0, buffer: new ArrayBuffer(32 * MIB) }]);
  let booted = 0;
  for (let i = 0; i < rounds; i++) {
    const sound = random.chance(0.5) ? elf() : bzImage();
    const kernel = random.chance(0.05) ? new Uint8Array(random.below(2000)) : damage(random, sound);
    if (random.chance(0.02)) random.fill(kernel);
    const initrd = random.chance(0.5)
      ? new Uint8Array(random.below(random.pick([1, 5000, 33 * MIB])))
      : undefined;
    try {
      const entry = loadKernel({
        memory,
        kernel,
        kernelName: 'k',
        initrd,
        commandLine: random.chance(0.1) ? 'x'.repeat(random.below(70_000)) : 'console=ttyS0',
        e820: e820Map(ramPieces(32 * MIB), []),
        rsdp: 0xe0000,
      });
      assert(entry.mode === 'protected32' || entry.mode === 'long64', 'an entry to begin at');
      booted++;
    } catch (error) {
      expectSentence(error);
    }
  }
  return booted;
}

/** Damaged containers and saved-state files. Returns how many were read all the same. */
export function fuzzSavedStates(seed: number, rounds: number): number {
  const random = new Prng(seed);
  const folder = mkdtempSync(join(tmpdir(), 'tsvmm-fuzz-'));
  try {
    const memory = new GuestMemory([{ base: 0, buffer: new ArrayBuffer(2 * MIB) }]);
    const payload = new Uint8Array(300);
    random.fill(payload);
    const container = encodeContainer([
      { kind: 'a', instance: '', version: 1, payload },
      { kind: 'b', instance: 'x', version: 2, payload: new Uint8Array(0) },
    ]);
    let read = 0;
    for (let i = 0; i < rounds; i++) {
      const damaged = damage(random, container);
      try {
        const sections = decodeContainer(damaged);
        assert(sections.length === 2, 'what passes its checksums is whole');
        read++;
      } catch (error) {
        expectSentence(error);
      }
      if (i % 50 !== 0) continue;
      random.fill(memory.ranges[0]!.bytes.subarray(0, 5000));
      const path = join(folder, 'state');
      writeSavedFile(path, container, memory);
      const file = Buffer.alloc(8192 + 2 * MIB);
      container.forEach((byte, at) => {
        file[4096 + at] = byte;
      });
      writeFileSync(path, damage(random, file));
      try {
        const saved = openSavedFile(path);
        saved.readInto(memory);
        saved.close();
        read++;
      } catch (error) {
        expectSentence(error);
      }
    }
    return read;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const KEYS = [
  ...'kernel initrd append memory cpus cpu name serial disk net boot reboot demo log-level'.split(
    ' ',
  ),
  ...'log-file restore control firmware ft-peer ft-policy ft-interval ft-max-downtime'.split(' '),
  ...'ft-timeout ft-key ft-arbiter ft-on-peer-loss ft-status ftPeer --memory'.split(' '),
  ...['__proto__', 'constructor', '"a\\nb"', '"\\u001b[2J"', 'disk.a', 'kernel.kernel', '[disk]'],
  '[[net]]',
];
const VALUES = [
  '"64M"',
  '1',
  '-1',
  '1.5',
  'true',
  'false',
  '[]',
  '["a"]',
  '[1, "x"]',
  '"\\u0000"',
  'inf',
  '{}',
  '{ a = 1 }',
  '1979-05-27',
  '"',
  "'''",
  '"/dev/null"',
  '0x7fffffffffffffff',
  '"a\\nb\\u001b[2J\\u2028c"',
  '"20ms"',
  '"1e400s"',
  '"999999999999999999999s"',
  '"127.0.0.1:70000"',
  '"[::1]:9000"',
  '"none"',
  '["/dev/null,readonly,readonly", "nbd://[::1/x", "a,,b,serial=123456789012345678901"]',
  '["stream=/x,mac=01:00:00:00:00:00", "user,model=", "tap=,pcap="]',
  '["\\n"]',
  `"${'y'.repeat(5000)}"`,
  '["""\na""", \'b\']',
];

/** Random configuration files. Returns how many were accepted. */
export async function fuzzOptions(seed: number, rounds: number): Promise<number> {
  const random = new Prng(seed);
  const folder = mkdtempSync(join(tmpdir(), 'tsvmm-fuzz-'));
  const config = join(folder, 'c.toml');
  const kernel = join(folder, 'kernel');
  writeFileSync(kernel, 'x');
  let accepted = 0;
  try {
    for (let i = 0; i < rounds; i++) {
      let text = '';
      for (let line = random.below(4); line >= 0; line--) {
        text += `${random.pick(KEYS)} ${random.chance(0.95) ? '=' : ''} ${random.pick(VALUES)}\n`;
      }
      const bytes = Buffer.from(text);
      writeFileSync(config, random.chance(0.3) ? damage(random, bytes) : bytes);
      try {
        await parseRunOptions({ config, ...(random.chance(0.7) && { kernel }) });
        accepted++;
      } catch (error) {
        expectSentence(error);
      }
    }
    return accepted;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
