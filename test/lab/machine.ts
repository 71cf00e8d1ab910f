// The lab's machine: QEMU with a software CPU that has AMD SVM, Debian's ordinary kernel with kvm-amd
// in it, the host's file system under a writable layer in memory, and the command. It has no network
// to the outside. What happens inside is in lab-init.sh; this file starts and ends QEMU and carries
// the streams and the exit status over virtio-serial ports, apart from the kernel's console. Called by
// main.ts and by the tests' runner.
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { initramfs } from './initramfs.ts';
import { type Kernel, kernel } from './kernels.ts';
import { LabError, repositoryRoot, run, tool, whyNoLab } from './tools.ts';

/** What to run in the lab, and on what machine. */
export interface LabOptions {
  /** Program and arguments; looked up in the PATH inside. */
  readonly command: readonly string[];
  /** Working directory of the command: the same path inside and outside. */
  readonly cwd: string;
  /** Virtual CPUs of the lab. */
  readonly cpus: number;
  /** Memory of the lab in MiB. */
  readonly memoryMib: number;
  /** The lab is ended after this many seconds, its start included. */
  readonly timeoutSeconds: number;
  /** Adds `tsc=reliable` to the lab kernel's command line, so that its clock source is the TSC. */
  readonly tscReliable: boolean;
  /** Shows the lab kernel's console and QEMU's messages on `stderr`. */
  readonly verbose: boolean;
  /** A directory of the host that is writable from inside, at the same path. */
  readonly outDirectory?: string;
  /** Read by the command as its standard input; without it that is /dev/null. */
  readonly stdin?: Readable;
  readonly stdout: Writable;
  readonly stderr: Writable;
  /** Told what is known of the emulator's faults in this run. */
  readonly note?: (text: string) => void;
  /** Ends the lab early. */
  readonly signal?: AbortSignal;
}

/** Loaded by /init, before the host's file system is there. */
const startModules = ['virtio_pci', 'virtio_console', '9p', '9pnet_virtio', 'overlay'];

/** Loaded from the host's cache: what tests in the lab use. */
const labModules =
  'kvm-amd virtio_blk ext4 tun veth bridge virtio_net e1000 sch_netem sch_tbf loop vhost_net ' +
  'af_packet virtio_rng';

/** Variables of the host that the command sees as well, besides those that start with TSVMM_. */
const passedVariables =
  /^(PATH|HOME|USER|LOGNAME|LANG|LC_\w+|TERM|TZ|CI|NO_COLOR|FORCE_COLOR|NODE_OPTIONS|XDG_CACHE_HOME|TSVMM_\w+)$/;

const scratchBytes = 2 * 1024 ** 3;
/** A lab that has not reported itself in this time is broken (usually it takes 10 s). */
const startSeconds = 120;
const consoleTailBytes = 4096;
/** A lab whose CPUs have passed on nothing for so long stands still (lab-init.sh, the heart). */
const heartSeconds = 150;

/**
 * Runs a command in the lab and returns its exit status. Throws a LabError when the lab cannot start,
 * dies or runs out of time; whatever happens, QEMU is gone and the temporary files are removed when
 * the promise settles.
 */
export async function runInLab(options: LabOptions): Promise<number> {
  const reason = whyNoLab();
  if (reason !== undefined) throw new LabError(reason);
  const labKernel = kernel('generic');
  const initrd = initramfs({
    kernel: labKernel,
    modules: startModules,
    files: [],
    texts: {
      '/init': readFileSync(join(repositoryRoot(), 'test/lab/lab-init.sh'), 'utf8'),
      // What the kernel calls to load a module by itself: the host's modprobe on the lab's modules.
      '/bin/modprobe': '#!/bin/sh\nexec chroot /new modprobe "$@"\n',
    },
  });
  sweep();
  const directory = mkdtempSync(join(realpathSync(tmpdir()), `tsvmm-lab-${process.pid}-`));
  try {
    return await new Machine(options, labKernel, initrd, directory).run();
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** Removes what a launcher that was killed left behind. */
function sweep(): void {
  for (const name of readdirSync(tmpdir())) {
    const pid = /^tsvmm-lab-(\d+)-/.exec(name)?.[1];
    if (pid === undefined) continue;
    try {
      process.kill(Number(pid), 0);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') continue;
      rmSync(join(tmpdir(), name), { recursive: true, force: true });
    }
  }
}

/** One run: made, run once, thrown away. */
class Machine {
  readonly #options: LabOptions;
  readonly #kernel: Kernel;
  readonly #initrd: string;
  readonly #directory: string;
  readonly #tag = `%lab-end-${randomBytes(12).toString('hex')}%`;
  readonly #servers: Server[] = [];
  readonly #sockets: Socket[] = [];
  #startTimer: NodeJS.Timeout | undefined;
  #endTimer: NodeJS.Timeout | undefined;
  #heartTimer: NodeJS.Timeout | undefined;
  #qemu: ChildProcess | undefined;
  #consoleTail = '';

  constructor(options: LabOptions, labKernel: Kernel, initrd: string, directory: string) {
    this.#options = options;
    this.#kernel = labKernel;
    this.#initrd = initrd;
    this.#directory = directory;
  }

  async run(): Promise<number> {
    let resolve: (status: number) => void = () => {};
    let reject: (error: Error) => void = () => {};
    const promise = new Promise<number>((onStatus, onError) => {
      resolve = onStatus;
      reject = onError;
    });
    promise.catch(() => {}); // A failure before the await below is still thrown by it.
    try {
      this.#writeFiles();
      await this.#openChannels(resolve, reject);
      this.#start(reject);
      this.#watchTime(reject);
      const abort = () => reject(new LabError('interrupted', 130));
      this.#options.signal?.addEventListener('abort', abort);
      if (this.#options.signal?.aborted) abort();
      return await promise;
    } finally {
      await this.#end();
    }
  }

  #writeFiles(): void {
    const { command, cwd, outDirectory, stdin } = this.#options;
    const settings = {
      LAB_DIRECTORY: this.#directory,
      LAB_TAG: this.#tag,
      LAB_RELEASE: this.#kernel.release,
      LAB_MODULE_TREE: realpathSync(this.#kernel.modules),
      LAB_MODULES: labModules,
      LAB_OUT: outDirectory ?? '',
      LAB_STDIN: stdin === undefined ? '' : '1',
    };
    const lines = Object.entries(settings).map(([name, value]) => `${name}=${quote(value)}\n`);
    writeFileSync(join(this.#directory, 'lab.conf'), lines.join(''));
    copyFileSync(
      join(repositoryRoot(), 'test/lab/lab-keeper.pl'),
      join(this.#directory, 'keeper.pl'),
    );
    let script = '';
    for (const [name, value] of Object.entries(process.env)) {
      if (passedVariables.test(name)) script += `export ${name}=${quote(value ?? '')}\n`;
    }
    script += `export TSVMM_LAB=1\ncd ${quote(cwd)} || exit 126\nexec ${command.map(quote).join(' ')}\n`;
    writeFileSync(join(this.#directory, 'run.sh'), script, { mode: 0o600 });
    const disk = join(this.#directory, 'scratch.img');
    writeFileSync(disk, '');
    truncateSync(disk, scratchBytes);
    run(tool('mkfs.ext4'), ['-q', '-F', '-L', 'scratch', disk]);
    if (outDirectory !== undefined) mkdirSync(outDirectory, { recursive: true });
  }

  /** One listening socket per stream; QEMU connects to each as it starts. */
  async #openChannels(
    resolve: (status: number) => void,
    reject: (error: Error) => void,
  ): Promise<void> {
    const open = { control: true, stdout: true, stderr: true };
    let status: number | undefined;
    const finish = (name: keyof typeof open) => {
      open[name] = false;
      if (!open.control && !open.stdout && !open.stderr && status !== undefined) resolve(status);
    };
    let lines = '';
    let lastBeat: number | undefined;
    await this.#listen('control', (socket) => {
      socket.on('data', (chunk) => {
        lines += chunk.toString('utf8');
        for (let end = lines.indexOf('\n'); end >= 0; end = lines.indexOf('\n')) {
          const line = lines.slice(0, end);
          lines = lines.slice(end + 1);
          if (line === 'ready') {
            clearTimeout(this.#startTimer);
            lastBeat = performance.now();
          } else if (line.startsWith('exit ')) {
            status = Number(line.slice(5));
            finish('control');
          } else if (line.startsWith('note ')) {
            this.#options.note?.(line.slice(5));
          } else {
            reject(this.#failure(`the lab did not start: ${line}`));
          }
        }
      });
    });
    for (const name of ['stdout', 'stderr'] as const) {
      const sink = this.#options[name];
      await this.#listen(name, (socket) => {
        const marked = new MarkedStream(this.#tag);
        socket.on('data', (chunk) => {
          const data = marked.push(chunk);
          if (data.length > 0) sink.write(data);
          if (marked.ended) finish(name);
        });
      });
    }
    await this.#listen('stdin', (socket) => {
      socket.resume();
      this.#options.stdin?.pipe(socket);
    });
    await this.#listen('heart', (socket) => {
      socket.on('data', () => {
        lastBeat = performance.now();
      });
      this.#heartTimer = setInterval(() => {
        if (socket.writableLength === 0) socket.write('.');
        if (lastBeat !== undefined && performance.now() - lastBeat > heartSeconds * 1000) {
          reject(this.#failure(`the lab's CPUs have stood still for ${heartSeconds} s`));
        }
      }, 1000);
    });
    await this.#listen('console', (socket) => {
      socket.on('data', (chunk) => this.#note(chunk));
    });
  }

  async #listen(name: string, connected: (socket: Socket) => void): Promise<void> {
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      this.#sockets.push(socket);
      socket.on('error', () => {}); // QEMU is ended without ceremony.
      connected(socket);
    });
    this.#servers.push(server);
    await new Promise<void>((done, fail) => {
      server.once('error', fail);
      server.listen(join(this.#directory, name), done);
    });
  }

  #start(reject: (error: Error) => void): void {
    const { cpus, memoryMib, tscReliable, verbose, outDirectory } = this.#options;
    const share = (path: string, tag: string, flags: string) =>
      `local,path=${path.replaceAll(',', ',,')},mount_tag=${tag},security_model=none,${flags}`;
    const channel = (name: string) =>
      `socket,id=${name},path=${join(this.#directory, name).replaceAll(',', ',,')},server=off`;
    const port = (name: string, number: number) =>
      `virtserialport,chardev=${name},name=${name},nr=${number}`;
    const append = [
      'console=ttyS0 panic=-1 reboot=triple nokaslr mitigations=off maxcpus=1',
      verbose ? 'loglevel=6' : 'loglevel=4',
      tscReliable ? 'tsc=reliable' : '',
    ];
    // biome-ignore format: one option per line reads better
    const args = [
      '-accel', 'tcg,thread=multi', '-cpu', 'EPYC,+svm,+npt',
      '-smp', String(cpus), '-m', String(memoryMib),
      '-nodefaults', '-nographic', '-no-reboot',
      '-kernel', this.#kernel.vmlinuz, '-initrd', this.#initrd, '-append', append.join(' '),
      '-chardev', channel('console'), '-serial', 'chardev:console',
      '-device', 'virtio-serial-pci',
      '-chardev', channel('control'), '-device', port('control', 1),
      '-chardev', channel('stdout'), '-device', port('stdout', 2),
      '-chardev', channel('stderr'), '-device', port('stderr', 3),
      '-chardev', channel('stdin'), '-device', port('stdin', 4),
      '-chardev', channel('heart'), '-device', port('heart', 5),
      '-device', 'virtio-rng-pci',
      '-virtfs', share('/', 'host', 'readonly=on,multidevs=remap'),
      '-virtfs', share(this.#directory, 'lab', 'readonly=on'),
      ...(outDirectory === undefined ? [] : ['-virtfs', share(outDirectory, 'out', 'multidevs=remap')]),
      '-drive', `file=${join(this.#directory, 'scratch.img').replaceAll(',', ',,')},format=raw,if=virtio,cache=unsafe`,
    ];
    // setpriv: when this process is killed, the machine goes with it.
    const qemu = spawn(
      tool('setpriv'),
      ['--pdeathsig', 'KILL', tool('qemu-system-x86_64'), ...args],
      { stdio: ['ignore', 'pipe', 'pipe'] },
    );
    this.#qemu = qemu;
    qemu.stdout.on('data', (chunk) => this.#note(chunk));
    qemu.stderr.on('data', (chunk) => this.#note(chunk));
    qemu.on('error', (error) => reject(new LabError(`cannot start QEMU: ${error.message}`)));
    qemu.on('exit', (code, signal) => {
      // The last words of the streams may still be on their way through the sockets.
      setTimeout(() => {
        reject(this.#failure(`the lab ended by itself (QEMU: ${signal ?? `status ${code}`})`));
      }, 500);
    });
  }

  #watchTime(reject: (error: Error) => void): void {
    const { command, timeoutSeconds } = this.#options;
    this.#startTimer = setTimeout(() => {
      reject(this.#failure(`the lab did not start within ${startSeconds} s`));
    }, startSeconds * 1000);
    this.#endTimer = setTimeout(() => {
      const what = `\`${command.join(' ')}\` did not finish within ${timeoutSeconds} s`;
      reject(new LabError(`${what}; the lab was ended (--timeout sets the limit)`, 124));
    }, timeoutSeconds * 1000);
  }

  /** Keeps the end of what the lab's kernel and QEMU say, and shows all of it if asked. */
  #note(chunk: Buffer): void {
    const text = chunk.toString('utf8');
    this.#consoleTail = (this.#consoleTail + text).slice(-consoleTailBytes);
    if (this.#options.verbose) this.#options.stderr.write(text.replaceAll('\r', ''));
  }

  #failure(what: string): LabError {
    if (this.#options.verbose) return new LabError(what);
    const tail = this.#consoleTail.replaceAll('\r', '').trim();
    return new LabError(tail === '' ? what : `${what}; its console ended with:\n${tail}`);
  }

  async #end(): Promise<void> {
    clearTimeout(this.#startTimer);
    clearTimeout(this.#endTimer);
    clearInterval(this.#heartTimer);
    this.#options.stdin?.unpipe();
    const qemu = this.#qemu;
    if (qemu?.pid !== undefined && qemu.exitCode === null && qemu.signalCode === null) {
      const gone = new Promise((done) => qemu.once('exit', done));
      qemu.kill('SIGKILL');
      await gone;
    }
    for (const socket of this.#sockets) socket.destroy();
    for (const server of this.#servers) server.close();
  }
}

/** A stream whose end is marked by a text that occurs nowhere else in it. */
export class MarkedStream {
  readonly #mark: Buffer;
  #held: Buffer = Buffer.alloc(0);
  /** Whether the mark has been seen; nothing comes after it. */
  ended = false;

  constructor(mark: string) {
    this.#mark = Buffer.from(mark);
  }

  /** Takes the next bytes and returns those that are certainly not part of the mark. */
  push(chunk: Buffer): Buffer {
    if (this.ended) return Buffer.alloc(0);
    const data = this.#held.length === 0 ? chunk : Buffer.concat([this.#held, chunk]);
    const at = data.indexOf(this.#mark);
    if (at >= 0) {
      this.ended = true;
      return data.subarray(0, at);
    }
    let keep = Math.min(this.#mark.length - 1, data.length);
    while (keep > 0 && !data.subarray(data.length - keep).equals(this.#mark.subarray(0, keep))) {
      keep--;
    }
    this.#held = data.subarray(data.length - keep);
    return data.subarray(0, data.length - keep);
  }
}

/** A word of a shell script that stands for exactly this text. */
export function quote(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
