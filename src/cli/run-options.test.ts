import { chmodSync, mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { VmmError } from '../base/error.ts';
import { parseRunOptions } from './run-options.ts';

let folder = '';
let kernel = '';
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'tsvmm-options-'));
  kernel = path('kernel', 'some bytes');
  path('empty', '');
  mkdirSync(join(folder, 'folder'));
  truncateSync(path('huge', 'x'), 3 * 2 ** 30);
  chmodSync(path('secret', 'x'), 0);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function path(name: string, content: string): string {
  const file = join(folder, name);
  writeFileSync(file, content);
  return file;
}

/** What parsing says; `$` in values stands for the folder of test files. */
async function complaint(options: Record<string, unknown>): Promise<VmmError> {
  const given = Object.fromEntries(
    Object.entries(options).map(([key, value]) => [
      key,
      typeof value === 'string' ? value.replace('$', `${folder}/`) : value,
    ]),
  );
  try {
    await parseRunOptions({ kernel, ...given });
  } catch (error) {
    if (error instanceof VmmError) return error;
    throw error;
  }
  throw new Error(`${JSON.stringify(options)} was accepted`);
}

const noKernel = { kernel: undefined };
const wrong: [Record<string, unknown>, RegExp][] = [
  // Files.
  [{ kernel: '$none' }, /--kernel .*none: there is no such file/],
  [{ kernel: '$kernel/below' }, /there is no such file/],
  [{ kernel: '$folder' }, /is not a file/],
  [{ kernel: '$empty' }, /the file is empty/],
  [{ kernel: '$huge' }, /is larger than 2 GiB/],
  [{ kernel: '/dev/null' }, /is not a file/],
  [{ kernel: '' }, /--kernel/],
  [{ initrd: '$none' }, /--initrd .*there is no such file/],
  [{ initrd: '$empty' }, /the file is empty/],
  [{ ...noKernel, firmware: '$folder' }, /--firmware .*is not a file/],
  [{ ...noKernel, firmware: '$none' }, /there is no such file/],
  // Replication.
  [
    { ftPeer: '127.0.0.1', disk: ['$x,cache=writeback'] },
    /cannot have cache=writeback together with/,
  ],
  [{ ftPeer: '-d blk inc tcp:127.0.0.1:4444', disk: ['$x'] }, /needs base=IMAGE for disk 'disk0'/],
  [{ ftPeer: '127.0.0.1', net: ['user'] }, /cannot be replicated.*ft=unsafe/],
  [{ net: ['user,ft=maybe'] }, /ft is one of unsafe/],
  // Combinations.
  [{ firmware: '$kernel' }, /--firmware .*does not go together with --kernel/],
  [{ boot: 'disk' }, /--boot disk: does not go together/],
  [{ demo: true }, /--demo.*leave out --kernel/],
  [{ ...noKernel, firmware: '$kernel', initrd: '$kernel' }, /--initrd .*needs a --kernel/],
  [{ ...noKernel, firmware: '$kernel', append: 'x' }, /--append x: needs a --kernel/],
  [{ ...noKernel, firmware: '$kernel', boot: 'floppy' }, /'floppy' is neither disk nor net/],
  [{ ...noKernel, firmware: '$kernel', boot: 'disk,' }, /'' is neither/],
  // Numbers and words.
  [{ memory: 'much' }, /--memory much: is no size/],
  [{ memory: '' }, /is no size/],
  [{ memory: '-1M' }, /is no size/],
  [{ memory: '1M' }, /from 2M to 384G/],
  [{ memory: '385G' }, /from 2M to 384G/],
  [{ memory: '2097153' }, /whole number of MiB/],
  [{ memory: '99999999999999999999G' }, /--memory/],
  [{ cpus: '0' }, /--cpus 0: is no whole number from 1 to 64/],
  [{ cpus: '65' }, /1 to 64/],
  [{ cpus: '99999999999999999999' }, /1 to 64/],
  [{ cpus: '1e1' }, /1 to 64/],
  [{ name: '' }, /--name/],
  [{ name: '../x' }, /--name \.\.\/x: must be/],
  [{ name: 'x'.repeat(64) }, /up to 63/],
  [{ logLevel: 'loud' }, /--log-level loud: is none of/],
  // Disks and cards.
  [{ disk: [''] }, /names no file/],
  [{ disk: [',readonly'] }, /names no file/],
  [{ disk: ['a,colour=red'] }, /does not know 'colour'/],
  [{ disk: ['a,cache=big'] }, /cache is one of none, writeback/],
  [{ disk: ['a,on-enospc=cry'] }, /on-enospc is one of/],
  [{ disk: ['a,readonly=maybe'] }, /readonly takes on or off/],
  [{ disk: ['a,serial=123456789012345678901'] }, /1 to 20 ASCII/],
  [{ disk: ['a,serial='] }, /1 to 20 ASCII/],
  [{ disk: ['a,id=x', 'b,id=x'] }, /id 'x' is used twice/],
  [{ disk: ['a,id=disk1', 'b'] }, /id 'disk1' is used twice/],
  [{ disk: ['a,id='] }, /id ''/],
  [{ disk: ['a,id=../b'] }, /id '\.\.\/b'/],
  [{ net: [''] }, /--net .*starts with tap=/],
  [{ net: ['tap'] }, /starts with tap=/],
  [{ net: ['tap='] }, /starts with tap=/],
  [{ net: ['user=x'] }, /starts with tap=/],
  [{ net: ['bridge=br0'] }, /starts with tap=/],
  [{ net: ['none,model=ne2000'] }, /model is one of virtio, e1000/],
  [{ net: ['none,mac=12:34'] }, /no MAC address/],
  [{ net: ['none,mac=01:00:00:00:00:01'] }, /group address/],
  [{ net: ['none,mac=00:00:00:00:00:00'] }, /no station/],
  [{ net: ['none,id=a', 'none,id=a'] }, /used twice/],
];

const wrongToml: [string, RegExp][] = [
  ['memory = ', /invalid|expected/i],
  ['memory = "much"', /--memory much/],
  ['colour = "red"', /there is no option 'colour'/],
  ['constructor = "x"', /there is no option 'constructor'/],
  ['toString = "x"', /there is no option 'toString'/],
  ['__proto__ = "x"', /there is no option '__proto__'/],
  ['"" = "x"', /there is no option ''/],
  ['config = "x"', /there is no option 'config'/],
  ['demo = "yes"', /'demo' must be true or false/],
  ['disk = [1]', /'disk' must be a list of strings/],
  ['memory = true', /'memory' must be a string/],
  ['memory = 2020-01-01', /'memory' must be a string/],
  ['[memory]\nsize = 1', /'memory' must be a string/],
  ['cpus = 1.5', /--cpus 1.5/],
  ['cpus = nan', /--cpus/],
  ['memory = 99999999999999999999999', /--config/],
  ['cpus = 1\ncpus = 2', /--config/],
];

describe('the options of tsvmm run', () => {
  it.each(wrong)('%j is refused in one sentence', async (options, text) => {
    const error = await complaint(options);
    expect(error.message).toMatch(text);
    expect(error.message).not.toMatch(/\n|undefined|\[object/);
  });

  it.each(wrongToml)('a configuration file with %j is refused', async (toml, text) => {
    const error = await complaint({ config: path('config.toml', toml) });
    expect(error.message).toMatch(text);
    expect(error.message).not.toMatch(/\n|undefined|\[object/);
  });

  it.each(['$none', '$folder', '$huge'])('a configuration file %s is refused', async (config) => {
    const error = await complaint({ config });
    expect(error.code).toBe('CONFIG_FILE');
    expect(error.message).toMatch(/^--config /);
  });

  const root = process.getuid?.() === 0;
  if (root) process.stdout.write('skipped: root may read every file, so none can be unreadable\n');
  it.skipIf(root)('a file that may not be read is refused', async () => {
    expect((await complaint({ kernel: '$secret' })).message).toMatch(/may not be read/);
  });

  it('takes what is right, and the command line before the file', async () => {
    const config = path('good.toml', 'memory = "64M"\ncpus = 2\ndisk = "a"\nreboot = false\n');
    const options = await parseRunOptions({ kernel, config, cpus: '4', reboot: true, disk: [] });
    expect(options).toMatchObject({
      machine: { name: 'kernel', memoryBytes: 64 * 2 ** 20, cpus: 4, cpu: 'host' },
      named: false,
      reboot: false,
      disks: [{ id: 'disk0', source: 'a', readonly: false, cache: 'none' }],
    });
    const line = await parseRunOptions({ kernel, config, disk: ['b,readonly', 'c'] });
    expect(line.disks.map(({ source }) => source)).toEqual(['b', 'c']);
  });
});
