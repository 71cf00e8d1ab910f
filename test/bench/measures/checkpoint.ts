/**
 * Measure 5: how long a guest stands still for a checkpoint, and what is sent, against the pages that it dirties. A primary with a
 * standby on loopback; the figures are the primary's own, asked through its control socket. QEMU's COLO beside it (../colo.ts).
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { askControl } from '../../../src/monitor/control-server.ts';
import { coloText, runColo } from '../colo.ts';
import {
  CLI,
  type Command,
  commandText,
  type GuestSpec,
  launch,
  qemuCommand,
  track,
  tsvmmCommand,
} from '../guest-run.ts';
import { kvmMissing } from '../machine-facts.ts';
import type { BenchContext, Experiment, Measure, Sample, Side } from '../measure.ts';
import { summarize } from '../stats.ts';

const PROTECT_TIMEOUT_MS = 40_000;
/** Between two looks at the primary's figures. */
const LOOK_MS = 25;
/** Long enough for the guest to write its pages once between two checkpoints. */
const intervalFor = (pages: number): number => (pages > 4096 ? 1000 : pages > 1024 ? 400 : 100);
/** How long a run is measured. */
const lengthMs = (pages: number, quick: boolean): number =>
  intervalFor(pages) * (quick ? 8 : pages > 4096 ? 8 : 15);

interface Figures {
  readonly phase: string;
  readonly epochs: number;
  readonly ackedEpochs: number;
  readonly lastPauseNs: number;
  readonly lastPages: number;
  readonly lastAhead: number;
  readonly lastAgain: number;
  readonly outputDelayNs: number;
  readonly sentBytes: number;
}

/** Starts a standby and waits for its port. */
function startStandby(
  folder: string,
  name: string,
): Promise<{ child: ChildProcess; port: number }> {
  return new Promise((resolved, rejected) => {
    const child = spawn(
      process.execPath,
      [
        ...[CLI, 'standby', '--listen', '127.0.0.1:0', '--serial', 'null'],
        ...['--control', join(folder, `${name}-b.sock`), '--log-level', 'info'],
      ],
      { stdio: ['ignore', 'pipe', 'pipe'] },
    );
    track(child);
    let text = '';
    const onText = (part: string): void => {
      text += part;
      const port = /standing by on 127\.0\.0\.1:(\d+)/.exec(text)?.[1];
      if (port !== undefined) resolved({ child, port: Number(port) });
    };
    child.stdout.setEncoding('utf8').on('data', onText);
    child.stderr.setEncoding('utf8').on('data', onText);
    child.on('error', rejected);
    child.on('exit', () => rejected(new Error(`the standby ended: ${text.slice(-300)}`)));
  });
}

/** User and system time of a process so far, ms. */
function cpuMs(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) * 10;
}

function end(child: ChildProcess): Promise<void> {
  return new Promise((done) => {
    if (child.exitCode !== null || child.signalCode !== null) return done();
    child.on('exit', () => done());
    child.kill('SIGKILL');
  });
}

let count = 0;

/** A pair of hosts on loopback, measured for a while. Epochs with fewer than nine tenths of `dirtyPages` are left out. */
export async function runPair(
  folder: string,
  primary: Command,
  measureMs: number,
  dirtyPages: number,
): Promise<Sample> {
  const name = `ft${count++}`;
  const standby = await startStandby(folder, name);
  const socket = join(folder, `${name}-a.sock`);
  const child = launch([
    ...primary,
    ...['--ft-peer', `127.0.0.1:${standby.port}`, '--control', socket],
  ]);
  let said = '';
  child.stdout!.on('data', (part) => {
    said += part;
  });
  child.stderr!.on('data', (part) => {
    said += part;
  });
  try {
    const ask = async (): Promise<Figures | undefined> => {
      if (child.exitCode !== null) throw new Error(`the primary ended: ${said.slice(-300)}`);
      try {
        return (await askControl(socket, { command: 'status' })).replication as Figures;
      } catch {
        return undefined;
      }
    };
    const until = performance.now() + PROTECT_TIMEOUT_MS;
    let before: Figures | undefined;
    while (before?.phase !== 'protected') {
      if (performance.now() > until) throw new Error(`not protected in time: ${said.slice(-300)}`);
      await sleep(50);
      before = await ask();
    }
    await sleep(500);
    before = await ask();
    const cpuBefore = cpuMs(child.pid!);
    const begin = performance.now();
    const pauses: number[] = [];
    const delays: number[] = [];
    let pages = 0;
    let ahead = 0;
    let again = 0;
    let allPages = 0;
    let seen = 0;
    let last = before!;
    while (performance.now() - begin < measureMs) {
      await sleep(LOOK_MS);
      const now = await ask();
      if (now === undefined || now.epochs === last.epochs) continue;
      const different = now.lastPages + now.lastAhead - now.lastAgain;
      allPages += different;
      seen++;
      // Epochs of a round that has just begun, or of one that was cut in two, say nothing about this many pages.
      if (different >= dirtyPages * 0.9) {
        pauses.push(now.lastPauseNs / 1e6);
        delays.push(now.outputDelayNs / 1e6);
        pages += different;
        ahead += now.lastAhead;
        again += now.lastAgain;
      }
      last = now;
    }
    if (pauses.length === 0) throw new Error('no epoch had as many dirty pages as were asked for');
    const seconds = (performance.now() - begin) / 1000;
    const epochs = last.epochs - before!.epochs;
    const usual = pages / pauses.length;
    return {
      pause: summarize(pauses).median,
      'capture to ACK': summarize(delays).median,
      'pages an epoch': usual,
      'pages sent ahead': ahead / pauses.length,
      'pages sent twice': again / pauses.length,
      'bytes sent per dirty byte':
        (last.sentBytes - before!.sentBytes) / (epochs * (allPages / seen) * 4096),
      epochs: epochs / seconds,
      'CPU of the primary per epoch': (cpuMs(child.pid!) - cpuBefore) / Math.max(1, epochs),
    };
  } finally {
    await end(child);
    await end(standby.child);
  }
}

/** How a guest writes, for the copies ahead: `pages` of an area of `mem` bytes every `period` µs. */
const HABITS = [
  {
    name: 'writes new pages all the time',
    append: 'pages=400 mem=192M period=10000 content=delta',
  },
  {
    name: 'writes random pages of 128 MiB',
    append: 'pages=400 mem=128M order=random period=10000 content=delta',
  },
  {
    name: 'writes the same pages again and again',
    append: 'pages=4000 period=10000 content=delta',
  },
] as const;

/** The pause with and without pages that are sent ahead of it; nothing else differs between the two policies here. */
function aheadExperiment(
  { folder, quick }: BenchContext,
  habit: (typeof HABITS)[number],
): Experiment {
  const side = (name: string, policy: string): Experiment['sides'][number] => {
    const command = [
      ...tsvmmCommand({ guest: 'dirty', append: habit.append, memory: '768M' }),
      ...['--ft-policy', policy, '--ft-interval', '100ms'],
    ];
    return {
      name,
      command: `node dist/src/cli/main.js standby --listen 127.0.0.1:PORT & ${commandText(command)} --ft-peer 127.0.0.1:PORT`,
      run: () => runPair(folder, command, quick ? 2000 : 3000, 1000),
    };
  };
  const unit: Record<string, string> = { pause: 'ms', 'capture to ACK': 'ms' };
  return {
    name: `copies ahead: a guest that ${habit.name}, every 100 ms`,
    metrics: [
      ...['pause', 'capture to ACK', 'pages an epoch', 'pages sent ahead', 'pages sent twice'],
      ...['epochs', 'CPU of the primary per epoch', 'bytes sent per dirty byte'],
    ].map((name) => ({ name, unit: unit[name] ?? '' })),
    sides: [side('adaptive (ahead)', 'adaptive'), side('periodic', 'periodic')],
    seconds: 18,
    warmUp: false,
  };
}

/** QEMU's COLO with the same guest and as many checkpoints a second. */
function coloSides({ qemu, folder, quick }: BenchContext, spec: GuestSpec, pages: number): Side[] {
  if (qemu === undefined) return [];
  const intervalMs = intervalFor(pages);
  const words = commandText(qemuCommand(qemu, spec));
  return (['unix', 'tcp'] as const).map((transport) => ({
    name: `COLO ${transport}`,
    command: coloText(words, transport, intervalMs),
    run: () =>
      runColo(qemu, spec, join(folder, 'colo'), transport, intervalMs, lengthMs(pages, quick)),
  }));
}

function experiment(
  context: BenchContext,
  pages: number,
  content: string,
  metrics: readonly string[],
  memory = '768M',
  withColo = false,
): Experiment {
  const { folder, quick } = context;
  const intervalMs = intervalFor(pages);
  const append = `pages=${pages} content=${content} period=${(intervalMs / 2) * 1000}`;
  const spec = { guest: 'dirty', append, memory };
  const command = [
    ...tsvmmCommand(spec),
    ...['--ft-policy', 'periodic', '--ft-interval', `${intervalMs}ms`],
  ];
  const units: Record<string, string> = { pause: 'ms', 'capture to ACK': 'ms', epochs: '/s' };
  return {
    name: `checkpoint, ${pages} dirty pages (${content}), ${memory} guest, every ${intervalMs} ms`,
    metrics: metrics.map((name) => ({
      name,
      unit: units[name] ?? (name.startsWith('CPU') ? 'ms' : ''),
      ...(name === 'pause' && withColo && { aim: { side: 'COLO unix', atMost: 0.1 } }),
    })),
    sides: [
      {
        name: 'tsvmm',
        command: `node dist/cli/main.cjs standby --listen 127.0.0.1:PORT & ${commandText(command)} --ft-peer 127.0.0.1:PORT`,
        run: () => runPair(folder, command, lengthMs(pages, quick), pages),
      },
      ...(withColo ? coloSides(context, spec, pages) : []),
    ],
    seconds: withColo ? (pages > 4096 ? 70 : pages > 1024 ? 60 : 24) : 8,
    warmUp: false,
    ...(withColo && { plot: { name: 'pause-by-pages', x: pages } }),
    ...(withColo &&
      context.qemu === undefined && {
        skipped: ['no COLO beside it: qemu-system-x86_64 is not installed'],
      }),
  };
}

export const checkpoint: Measure = {
  name: 'checkpoint',
  title: '5. Checkpoints: pause and bytes against dirty pages',
  missing: kvmMissing,
  async experiments(context: BenchContext): Promise<Experiment[]> {
    const times = [
      'pause',
      'capture to ACK',
      'pages an epoch',
      'epochs',
      'CPU of the primary per epoch',
    ];
    const bytes = ['bytes sent per dirty byte', 'pause', 'pages an epoch'];
    return [
      ...[1, 256, 4096, 16384].map((pages) =>
        experiment(context, pages, 'random', times, '768M', true),
      ),
      ...['zero', 'text', 'code', 'random', 'delta'].map((content) =>
        experiment(context, 1024, content, bytes),
      ),
      ...['256M', '1G', '2G'].map((memory) =>
        experiment(context, 256, 'delta', ['pause', 'capture to ACK'], memory),
      ),
      ...HABITS.map((habit) => aheadExperiment(context, habit)),
    ];
  },
};
