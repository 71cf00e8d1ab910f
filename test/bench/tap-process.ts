/**
 * A process in a network namespace with TAP interfaces (measures/tap.ts makes both): it runs a guest that answers (`net mode=echo`)
 * or counts (`net mode=rx`) behind one of them, and is its peer through the kernel's own sockets. Its argument is a {@link TapTask}
 * in JSON, its output one line `result: JSON`.
 */
import { createSocket, type Socket as Datagrams } from 'node:dgram';
import { connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { benchLines, type Command, field, launch } from './guest-run.ts';
import type { Sample } from './measure.ts';
import { type Policy, WAIT_MS, withPair } from './protected-pair.ts';
import { quantile } from './stats.ts';

/** The guest's side of the link, and this side's. */
export const TAPS = ['bench0', 'bench1'] as const;
export const GUEST_IP = '10.0.2.15';
export const GUEST_MAC = '52:54:00:12:34:56';
export const HOST_IP = '10.0.2.2';

/** What is to be done. */
export interface TapTask {
  /** TCP to the guest's port 9 or from its port 19, UDP there and back one at a time, or as many datagrams as go. */
  readonly kind: 'tcp in' | 'tcp out' | 'trips' | 'flood';
  /** The program, or how a pair of tsvmm hosts runs the guest. */
  readonly by: { readonly command: Command } | { readonly policy: Policy };
  readonly ms: number;
  /** Bytes of a datagram. */
  readonly size?: number;
}

const SINK_PORT = 9;
const SOURCE_PORT = 19;
const ECHO_PORT = 7;
/** The stream's bytes repeat after this many. */
const PATTERN_BYTES = 1 << 24;
const CHUNK = 1 << 16;
/** Datagrams given to the kernel at a time. */
const FLOOD_BATCH = 64;
/** A datagram that is not answered by then is lost. */
const LOST_MS = 2000;

function pattern(): Buffer {
  const bytes = Buffer.allocUnsafe(PATTERN_BYTES);
  for (let p = 0; p < PATTERN_BYTES; p++) bytes[p] = p ^ (p >> 8) ^ (p >> 16);
  return bytes;
}

/** Sends for `ms`, and takes the time until the guest says that it has all of it. */
function tcpIn(ms: number): Promise<Sample> {
  const bytes = pattern();
  return new Promise((resolve, reject) => {
    const socket = connect(SINK_PORT, GUEST_IP);
    let begin = 0;
    let sent = 0;
    const answer: Buffer[] = [];
    const fill = (): void => {
      while (performance.now() - begin < ms) {
        const at = sent % PATTERN_BYTES;
        sent += CHUNK;
        if (!socket.write(bytes.subarray(at, at + CHUNK))) return;
      }
      socket.end();
    };
    socket.on('error', reject);
    socket.on('connect', () => {
      begin = performance.now();
      fill();
    });
    socket.on('drain', fill);
    socket.on('data', (part) => answer.push(part));
    socket.on('end', () => {
      const seconds = (performance.now() - begin) / 1000;
      const all = Buffer.concat(answer);
      if (all.length !== 16 || Number(all.readBigUInt64LE(0)) !== sent || all.readUInt32LE(8) !== 0)
        reject(new Error(`the guest got something else than the ${sent} bytes that were sent`));
      else resolve({ throughput: (sent * 8) / 1e6 / seconds });
    });
  });
}

/** Takes what the guest sends for `ms`. */
function tcpOut(ms: number): Promise<Sample> {
  const bytes = pattern();
  return new Promise((resolve, reject) => {
    const socket = connect(SOURCE_PORT, GUEST_IP);
    let begin = 0;
    let got = 0;
    socket.on('error', reject);
    socket.on('close', () => reject(new Error('the guest closed the connection')));
    socket.on('data', (part: Buffer) => {
      const now = performance.now();
      if (begin === 0) begin = now;
      // The first and the last byte of each part: a whole comparison would be the bottleneck.
      for (const at of [0, part.length - 1]) {
        if (part[at] === bytes[(got + at) % PATTERN_BYTES]) continue;
        reject(new Error(`byte ${got + at} of the guest is wrong`));
        socket.destroy();
        return;
      }
      got += part.length;
      if (now - begin < ms) return;
      resolve({ throughput: (got * 8) / 1e3 / (now - begin) });
      socket.destroy();
    });
  });
}

function bound(): Promise<Datagrams> {
  return new Promise((resolve, reject) => {
    const socket = createSocket('udp4');
    socket.on('error', reject);
    socket.bind(0, HOST_IP, () => resolve(socket));
  });
}

/** One datagram at a time, there and back. */
async function trips(ms: number): Promise<Sample> {
  const socket = await bound();
  const times: number[] = [];
  let lost = 0;
  const end = performance.now() + ms;
  const message = Buffer.alloc(18);
  for (let n = 1; performance.now() < end || times.length < 5; n++) {
    if (lost > 5) throw new Error('the guest does not answer');
    message.writeUInt32LE(n, 0);
    const answered = new Promise<boolean>((resolve) => {
      const timer = setTimeout(() => resolve(false), LOST_MS);
      const take = (answer: Buffer): void => {
        if (answer.length < 4 || answer.readUInt32LE(0) !== n) return;
        clearTimeout(timer);
        socket.off('message', take);
        resolve(true);
      };
      socket.on('message', take);
    });
    const begin = performance.now();
    socket.send(message, ECHO_PORT, GUEST_IP);
    if (await answered) times.push((performance.now() - begin) * 1000);
    else lost++;
  }
  socket.close();
  times.sort((a, b) => a - b);
  return { p50: quantile(times, 0.5), p99: quantile(times, 0.99), lost };
}

/** As many datagrams as one process sends in `ms`. @returns how many */
async function flood(ms: number, size: number): Promise<number> {
  const socket = await bound();
  const message = Buffer.alloc(size);
  const end = performance.now() + ms;
  let sent = 0;
  while (performance.now() < end) {
    await new Promise<void>((resolve) => {
      let left = FLOOD_BATCH;
      for (let i = 0; i < FLOOD_BATCH; i++) {
        socket.send(message, ECHO_PORT, GUEST_IP, (error) => {
          if (error === null) sent++;
          if (--left === 0) resolve();
        });
      }
    });
  }
  socket.close();
  return sent;
}

function measure({ kind, ms }: TapTask): Promise<Sample> {
  if (kind === 'tcp in') return tcpIn(ms);
  return kind === 'tcp out' ? tcpOut(ms) : trips(ms);
}

async function alone(task: TapTask, command: Command): Promise<Sample> {
  const child = launch(command);
  let said = '';
  const ended = new Promise<void>((done) => child.once('close', () => done()));
  try {
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error('the guest is not ready')), WAIT_MS);
      const take = (text: unknown): void => {
        said += text;
        if (!/net: ready/.test(said)) return;
        clearTimeout(timer);
        resolve();
      };
      child.stdout!.on('data', take);
      child.stderr!.on('data', take);
      child.on('close', () => reject(new Error(`the guest ended: ${said.slice(-300)}`)));
    });
    if (task.kind !== 'flood') return await measure(task);
    const sent = await flood(task.ms, task.size ?? 18);
    // It ends when nothing has come for a while.
    await Promise.race([ended, sleep(WAIT_MS)]);
    const line = benchLines(said, 'net')[0];
    return {
      // By the sender's clock: what a device drops for most of the time is no speed.
      frames: (field(line, 'frames') * 1000) / task.ms,
      'received/sent': field(line, 'frames') / sent,
      'interrupts/frame': field(line, 'interrupts') / field(line, 'frames'),
    };
  } finally {
    child.kill('SIGKILL');
    await ended;
  }
}

async function main(): Promise<void> {
  const task = JSON.parse(process.argv[2] ?? '') as TapTask;
  const sample = await ('command' in task.by
    ? alone(task, task.by.command)
    : withPair(
        task.by.policy,
        {
          guest: 'net',
          append: 'mode=echo',
          bare: true,
          primaryArgs: ['--net', `tap=${TAPS[0]},mac=${GUEST_MAC}`],
          standbyArgs: ['--net', `net0=tap=${TAPS[1]}`],
        },
        async () => {
          await sleep(300);
          return measure(task);
        },
      ));
  process.stdout.write(`result: ${JSON.stringify(sample)}\n`);
}

// measures/tap.ts has the names from here.
if (import.meta.filename === process.argv[1]) {
  try {
    await main();
    process.exit(0);
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
    process.exit(1);
  }
}
