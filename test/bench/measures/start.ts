/** Measure 4: from the start of the process to the first byte of the guest, and memory beyond the guest's. */
import { readFileSync } from 'node:fs';
import { type Command, commandText, launch, qemuCommand, tsvmmCommand } from '../guest-run.ts';
import { kvmMissing } from '../machine-facts.ts';
import type { BenchContext, Experiment, Measure, Side } from '../measure.ts';

const TIMEOUT_MS = 20_000;
/** An odd size, to find the guest's memory among the mappings. */
const MEMORY_MIB = 211;

/** Milliseconds from spawn to the first byte on standard output, or to the end when it prints nothing. */
function firstByte(command: Command): Promise<number> {
  return new Promise((resolved, rejected) => {
    const begin = performance.now();
    const child = launch(command);
    let at: number | undefined;
    const timer = setTimeout(() => child.kill('SIGKILL'), TIMEOUT_MS);
    child.stdout!.on('data', () => {
      at ??= performance.now() - begin;
    });
    child.stderr!.resume();
    child.on('exit', () => {
      at ??= performance.now() - begin;
    });
    child.on('error', rejected);
    child.on('close', (code) => {
      clearTimeout(timer);
      if (code === 0) resolved(at!);
      else rejected(new Error(`ended with ${code}`));
    });
  });
}

/** Resident kilobytes outside the guest's memory, from the mappings of a process. */
export function residentBeyond(smaps: string, memoryMib: number): number {
  let total = 0;
  let guest = 0;
  let sizeKb = 0;
  for (const [, key, value] of smaps.matchAll(/^(Size|Rss):\s+(\d+) kB$/gm)) {
    if (key === 'Size') {
      sizeKb = Number(value);
      continue;
    }
    total += Number(value);
    const mib = sizeKb / 1024;
    if (mib >= memoryMib && mib < memoryMib + 4) guest += Number(value);
  }
  return total - guest;
}

/** Runs until the guest has ticked a few times, then reads the process's mappings. */
function residentMib(command: Command): Promise<number> {
  return new Promise((resolved, rejected) => {
    const child = launch(command);
    let text = '';
    let result: number | undefined;
    const timer = setTimeout(() => child.kill('SIGKILL'), TIMEOUT_MS);
    child.stdout!.setEncoding('utf8').on('data', (part: string) => {
      text += part;
      if (result !== undefined || !/tick 5\b/.test(text)) return;
      result = residentBeyond(readFileSync(`/proc/${child.pid}/smaps`, 'utf8'), MEMORY_MIB) / 1024;
      child.kill('SIGKILL');
    });
    child.stderr!.resume();
    child.on('error', rejected);
    child.on('close', () => {
      clearTimeout(timer);
      if (result === undefined) rejected(new Error('the guest did not tick'));
      else resolved(result);
    });
  });
}

export const start: Measure = {
  name: 'start',
  title: '4. Start and footprint',
  missing: kvmMissing,
  async experiments({ qemu }: BenchContext): Promise<Experiment[]> {
    const first = (name: string, command: Command): Side => ({
      name,
      command: commandText(command),
      run: async () => ({ 'first byte': await firstByte(command) }),
    });
    const resident = (name: string, command: Command): Side => ({
      name,
      command: commandText(command),
      run: async () => ({ 'resident beyond the guest': await residentMib(command) }),
    });
    const hello = { guest: 'hello' };
    const demo = { guest: 'demo', append: 'period=20', memory: `${MEMORY_MIB}M` };
    const off = qemu ? [] : ['no QEMU beside it: qemu-system-x86_64 is not installed'];
    return [
      {
        name: 'start, process start to first serial byte',
        metrics: [{ name: 'first byte', unit: 'ms' }],
        sides: [
          first('tsvmm', tsvmmCommand(hello)),
          first('node', [process.execPath, '-e', '']),
          ...(qemu
            ? [
                first(
                  'qemu microvm',
                  qemuCommand(qemu, { ...hello, append: 'off=reset' }, [], 'microvm'),
                ),
                first(`qemu pc${qemu.qboot ? ', qboot' : ''}`, qemuCommand(qemu, hello)),
              ]
            : []),
        ],
        seconds: 20,
        skipped: off,
      },
      ...(qemu?.qboot
        ? [
            {
              name: 'start, the same beside a pc with its usual firmware',
              metrics: [{ name: 'first byte', unit: 'ms' }],
              sides: [
                first('tsvmm', tsvmmCommand(hello)),
                first('qemu pc, SeaBIOS', qemuCommand({ ...qemu, qboot: false }, hello)),
              ],
              seconds: 8,
              warmUp: false as const,
            },
          ]
        : []),
      {
        name: `footprint, idle guest of ${MEMORY_MIB} MiB without devices`,
        metrics: [
          { name: 'resident beyond the guest', unit: 'MiB', aim: { side: 'qemu', atMost: 1.5 } },
        ],
        sides: [
          resident('tsvmm', tsvmmCommand(demo)),
          ...(qemu ? [resident('qemu', qemuCommand(qemu, demo))] : []),
        ],
        skipped: off,
      },
    ];
  },
};
