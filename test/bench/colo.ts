/**
 * QEMU's COLO as the peer of a checkpoint: a primary and a secondary QEMU on this machine with the same guest, a checkpoint every
 * period, no network comparison and no disk, so that nothing but the checkpoint is measured. The pause is the time from STOP to RESUME
 * of the primary, by the stamps that QEMU puts on these events (QEMU, docs/COLO-FT.txt and docs/interop/qmp-spec.txt).
 */
import { connect, createServer, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { type GuestSpec, launch, qemuCommand } from './guest-run.ts';
import type { Qemu, Sample } from './measure.ts';
import { summarize } from './stats.ts';

const START_TIMEOUT_MS = 10_000;
const PROTECT_TIMEOUT_MS = 30_000;
/** Checkpoints that only run in. */
const RUN_IN = 3;
/** A longer line of the monitor is an error. */
const LINE_MAX = 1 << 20;

interface QmpEvent {
  readonly event: string;
  readonly ms: number;
}

/** What has to be shared with the other QEMU for COLO, as text for people. */
export function coloText(qemuWords: string, transport: ColoTransport, delayMs: number): string {
  const uri = transport === 'unix' ? 'unix:SOCKET' : 'tcp:127.0.0.1:PORT';
  return `B: ${qemuWords} -qmp unix:B,server=on,wait=off -incoming defer; A: the same with -qmp unix:A and no -incoming; QMP: B and A x-colo=on, B migrate-incoming ${uri}, A x-checkpoint-delay=${delayMs}, A migrate ${uri}`;
}

/** How the two QEMUs are linked. */
export type ColoTransport = 'unix' | 'tcp';

/** A monitor of one QEMU: commands one at a time, and the events with their time. */
class Qmp {
  readonly events: QmpEvent[] = [];
  readonly #socket: Socket;
  readonly #answers: ((answer: Record<string, unknown>) => void)[] = [];
  #text = '';

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding('utf8');
    socket.on('data', (text) => this.#take(String(text)));
    socket.on('error', () => socket.destroy());
    socket.on('close', () => {
      for (const answer of this.#answers.splice(0))
        answer({ error: { desc: 'the monitor closed' } });
    });
  }

  /** Connects as soon as the socket is there. @throws Error when it is not in time */
  static async open(path: string): Promise<Qmp> {
    const until = performance.now() + START_TIMEOUT_MS;
    for (;;) {
      const socket = await new Promise<Socket | undefined>((done) => {
        const each = connect(path);
        each.once('connect', () => done(each));
        each.once('error', () => done(undefined));
      });
      if (socket !== undefined) {
        const qmp = new Qmp(socket);
        await qmp.do('qmp_capabilities');
        return qmp;
      }
      if (performance.now() > until) throw new Error("QEMU's monitor does not answer");
      await sleep(50);
    }
  }

  #take(text: string): void {
    this.#text += text;
    if (this.#text.length > LINE_MAX) this.#socket.destroy();
    for (let end = this.#text.indexOf('\n'); end >= 0; end = this.#text.indexOf('\n')) {
      const message = JSON.parse(this.#text.slice(0, end)) as Record<string, unknown>;
      this.#text = this.#text.slice(end + 1);
      if (typeof message.event === 'string') {
        const { seconds, microseconds } = message.timestamp as Record<string, number>;
        this.events.push({ event: message.event, ms: seconds! * 1000 + microseconds! / 1000 });
      } else if ('return' in message || 'error' in message) {
        this.#answers.shift()?.(message);
      }
    }
  }

  /** @throws Error with what QEMU says against it */
  async do(execute: string, args?: Readonly<Record<string, unknown>>): Promise<unknown> {
    const answer = await new Promise<Record<string, unknown>>((done) => {
      this.#answers.push(done);
      this.#socket.write(`${JSON.stringify({ execute, ...(args && { arguments: args }) })}\n`);
    });
    const error = answer.error as { desc: string } | undefined;
    if (error !== undefined) throw new Error(`QEMU, ${execute}: ${error.desc}`);
    return answer.return;
  }

  close(): void {
    this.#socket.destroy();
  }
}

/** Times from each STOP to the RESUME after it. */
export function pausesOf(events: readonly QmpEvent[]): number[] {
  const pauses: number[] = [];
  let stopped: number | undefined;
  for (const { event, ms } of events) {
    if (event === 'STOP') stopped = ms;
    if (event !== 'RESUME' || stopped === undefined) continue;
    pauses.push(ms - stopped);
    stopped = undefined;
  }
  return pauses;
}

function freePort(): Promise<number> {
  return new Promise((done) => {
    const server = createServer();
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number };
      server.close(() => done(port));
    });
  });
}

let count = 0;

/**
 * Runs the guest under COLO for `measureMs` after the first checkpoints.
 * @param base path that the names of sockets begin with
 * @returns the median pause in ms and checkpoints a second
 * @throws Error with QEMU's words when one of the two does not start or COLO ends
 */
export async function runColo(
  qemu: Qemu,
  spec: GuestSpec,
  base: string,
  transport: ColoTransport,
  delayMs: number,
  measureMs: number,
): Promise<Sample> {
  const name = `${base}${count++}`;
  const start = (monitor: string, more: readonly string[] = []) => {
    const child = launch(
      qemuCommand(qemu, spec, ['-qmp', `unix:${monitor},server=on,wait=off`, ...more]),
    );
    const host = { child, said: '' };
    child.stdout!.resume();
    child.stderr!.on('data', (text) => {
      host.said = `${host.said}${text}`.slice(-300);
    });
    return host;
  };
  const secondary = start(`${name}b`, ['-incoming', 'defer']);
  const primary = start(`${name}a`);
  const monitors: Qmp[] = [];
  try {
    const uri = transport === 'unix' ? `unix:${name}m` : `tcp:127.0.0.1:${await freePort()}`;
    const b = await Qmp.open(`${name}b`);
    monitors.push(b);
    const a = await Qmp.open(`${name}a`);
    monitors.push(a);
    const capabilities = [{ capability: 'x-colo', state: true }];
    for (const each of [b, a]) await each.do('migrate-set-capabilities', { capabilities });
    await b.do('migrate-incoming', { uri });
    await a.do('migrate-set-parameters', {
      'x-checkpoint-delay': delayMs,
      'max-bandwidth': 2 ** 40,
    });
    await a.do('migrate', { uri });
    const ended = (): void => {
      for (const [who, { child, said }] of [
        ['primary', primary],
        ['secondary', secondary],
      ] as const) {
        if (child.exitCode === null && child.signalCode === null) continue;
        throw new Error(`QEMU's ${who} ended: ${said}`);
      }
      if (a.events.some(({ event }) => event === 'COLO_EXIT')) {
        throw new Error(`COLO ended by itself: ${primary.said} ${secondary.said}`);
      }
    };
    const until = performance.now() + PROTECT_TIMEOUT_MS;
    while (pausesOf(a.events).length < RUN_IN) {
      ended();
      if (performance.now() > until) {
        const { status } = (await a.do('query-migrate')) as { status?: string };
        throw new Error(`no checkpoints in time, migration ${status}: ${primary.said}`);
      }
      await sleep(50);
    }
    const known = pausesOf(a.events).length;
    const begin = performance.now();
    let pauses: number[] = [];
    while (performance.now() - begin < measureMs || pauses.length === 0) {
      if (performance.now() - begin > measureMs + PROTECT_TIMEOUT_MS) throw new Error('no pause');
      await sleep(50);
      ended();
      pauses = pausesOf(a.events).slice(known);
    }
    return {
      pause: summarize(pauses).median,
      epochs: (pauses.length * 1000) / (performance.now() - begin),
    };
  } finally {
    for (const monitor of monitors) monitor.close();
    for (const { child } of [primary, secondary]) {
      if (child.exitCode !== null || child.signalCode !== null) continue;
      const gone = new Promise((done) => child.once('exit', done));
      child.kill('SIGKILL');
      await gone;
    }
  }
}
