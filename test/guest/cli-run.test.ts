/**
 * `tsvmm run` from outside: how each end of a guest, each signal and each way to quit ends the process, and that the
 * terminal is as it was afterwards. Needs a build (`npm run build:ts`).
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, it } from 'vitest';
import { Prng } from '../../src/base/prng.ts';
import { loadNativeIo } from '../../src/kvm/native-io.ts';
import { type Cli, cleanUp, cliPath, scratchFolder, start, tsvmm } from './cli.ts';
import { guestPath, sleep, until } from './machine-guest.ts';

if (!existsSync(cliPath)) throw new Error(`${cliPath} is missing: run npm run build:ts first`);

const scratch = scratchFolder('cli-run');
afterEach(cleanUp);
afterAll(() => scratch.remove());

function runArgs(guest: string, append: string, ...more: string[]): string[] {
  return ['run', '--kernel', guestPath(guest), '--append', append, '--memory', '32M', ...more];
}

describe('the end of a guest is the end of the process', () => {
  const line = 'hello from a tsvmm guest: x\n';

  it.each([
    ['power-off', 'say=x', [], 0],
    ['debug exit', 'say=x exit=5', [], 11],
    ['the largest debug exit', 'say=x exit=127', [], 255],
    ['reset with --no-reboot', 'say=x off=reset', ['--no-reboot'], 0],
    ['triple fault with --no-reboot', 'say=x off=triple', ['--no-reboot'], 0],
  ] as const)('%s', async (_name, append, more, status) => {
    const { ending, stdout } = await tsvmm(runArgs('hello', append, ...more));
    expect({ ending, stdout }).toEqual({ ending: status, stdout: line });
  });

  it('a failing guest gives its own status', async () => {
    const { ending, stdout } = await tsvmm(runArgs('smp', 'cpus=2 incs=1 rounds=1 ticks=1'));
    expect(stdout).toContain('FAIL: 1 CPUs started, 2 expected');
    expect(ending).toBe(3);
  });

  it('each reset and each triple fault starts it anew', async () => {
    for (const off of ['reset', 'triple']) {
      const cli = start(runArgs('hello', `say=x off=${off}`));
      await cli.says(/(.*: x\n){4}/);
      cli.kill('SIGTERM');
      cli.kill('SIGTERM');
      await sleep(50);
      cli.kill('SIGTERM');
      expect(await cli.ended, off).toBe(143);
      // Complete lines, but for the one that the end cut short.
      expect(cli.stdout.replace(/[^\n]*$/, '')).toMatch(/^(hello from a tsvmm guest: x\n)+$/);
    }
  });
});

describe('a reader that goes away', () => {
  /** Runs a command whose output nobody reads any more when it comes. */
  async function unread(args: readonly string[], deaf: 'stdout' | 'stderr'): Promise<Cli> {
    const cli = start(args);
    cli.child[deaf]!.destroy();
    await cli.ended;
    return cli;
  }

  it('ends no command with an error', async () => {
    const socket = join(scratch.path, 'unread.sock');
    const guest = start(runArgs('demo', 'period=20', '--control', socket, '--name', 'unread'));
    await guest.says(/tick 1\n/);
    for (const args of [['status'], ['status', '--json']]) {
      const { ending, stderr } = await unread([...args, '--control', socket], 'stdout');
      expect({ ending, stderr }, args.join(' ')).toEqual({ ending: 0, stderr: '' });
    }
    guest.kill('SIGHUP');
    await guest.ended;
    for (const args of [['check'], ['--help']]) {
      const { ending, stderr } = await unread(args, 'stdout');
      expect({ ending, stderr }, args.join(' ')).toEqual({ ending: 0, stderr: '' });
    }
    expect((await unread(['status', '--control', socket], 'stderr')).ending).toBe(1);
  });

  it('ends no guest, whether it prints or logs', async () => {
    const quiet = await unread(runArgs('hello', 'say=x exit=5'), 'stdout');
    expect({ ending: quiet.ending, stderr: quiet.stderr }).toEqual({ ending: 11, stderr: '' });
    const cli = start(runArgs('demo', 'period=20', '--log-level', 'info'));
    await cli.says(/tick 1\n/);
    cli.child.stderr!.destroy();
    // The power button is logged.
    cli.kill('SIGTERM');
    const { length } = cli.stdout;
    await until(() => cli.stdout.length > length + 100, 'the guest goes on');
    cli.kill('SIGHUP');
    expect(await cli.ended).toBe(129);
  });

  it('is told from a disk that is full', () => {
    const command = `"${process.execPath}" "${cliPath}" --version >/dev/full`;
    const { status, stderr } = spawnSync('sh', ['-c', command], { encoding: 'utf8' });
    expect(stderr).toMatch(/^tsvmm: standard output cannot be written: ENOSPC[^\n]*\n$/);
    expect(status).toBe(1);
  });
});

describe('signals', () => {
  it('the first SIGTERM presses the power button', async () => {
    const cli = start(runArgs('acpi', 'button=wait hz=off rtc=off'));
    await cli.says(/waiting for the power button/);
    cli.kill('SIGTERM');
    expect(await cli.ended).toBe(0);
    expect(cli.stdout).toMatch(/acpi: power button\nOK: \d+ checks, 0 failed\n$/);
  });

  it.each([
    ['SIGTERM', 143],
    ['SIGINT', 130],
  ] as const)('a second %s ends a guest that does not listen', async (signal, status) => {
    const cli = start(runArgs('demo', 'period=20'));
    await cli.says(/tick 3\n/);
    cli.kill(signal);
    const ticks = cli.stdout.length;
    await until(() => cli.stdout.length > ticks + 100, 'the guest goes on after the first');
    cli.kill(signal);
    expect(await cli.ended).toBe(status);
  });

  it('SIGHUP ends at once', async () => {
    const cli = start(runArgs('demo', 'period=20'));
    await cli.says(/tick 3\n/);
    cli.kill('SIGHUP');
    expect(await cli.ended).toBe(129);
  });

  it('SIGTERM at any moment of the start ends it, and nothing stays behind', async () => {
    const seed = Number(process.env.TSVMM_SEED ?? 1);
    const random = new Prng(seed);
    const socket = join(scratch.path, 'start.sock');
    for (let i = 0; i < 10; i++) {
      const cli = start(runArgs('demo', 'period=20', '--control', socket));
      await sleep(random.below(600));
      cli.kill('SIGTERM');
      await sleep(30);
      cli.kill('SIGTERM');
      const status = await cli.ended;
      expect([143, 'SIGTERM'], `try ${i} of seed ${seed}: ${cli.stderr}`).toContain(status);
      expect(cli.stderr).not.toMatch(/internal error|invariant|at /);
    }
    expect(readdirSync(scratch.path)).toEqual([]);
  });
});

describe('a terminal', () => {
  const io = loadNativeIo();

  interface Terminal {
    readonly cli: Cli;
    /** Settings of the line, as `stty -g` tells them. */
    settings(): string;
    type(text: string): void;
    /** What the process wrote to the terminal so far. */
    text(): string;
    close(): void;
  }

  function onTerminal(args: readonly string[], env: NodeJS.ProcessEnv = {}): Terminal {
    const pty = io.openPty();
    io.setNonBlocking(pty.master);
    const settings = (): string => {
      const stty = spawnSync('stty', ['-g'], { stdio: [pty.slave, 'pipe', 'inherit'] });
      return stty.stdout.toString().trim();
    };
    let text = '';
    const buffer = new Uint8Array(4096);
    return {
      cli: start(args, { stdio: [pty.slave, pty.slave, 'pipe'], env }),
      settings,
      type: (keys) => {
        const bytes = Buffer.from(keys);
        expect(io.writeFd(pty.master, bytes, 0, bytes.length)).toBe(bytes.length);
      },
      text: () => {
        for (let n = 1; n > 0; ) {
          n = io.readFd(pty.master, buffer, 0, buffer.length);
          if (n > 0) text += Buffer.from(buffer.subarray(0, n)).toString('latin1');
        }
        return text;
      },
      close: () => {
        io.closeFd(pty.master);
        io.closeFd(pty.slave);
      },
    };
  }

  const args = runArgs('demo', 'period=20');
  /** Settings of a fresh terminal. */
  const fresh = (() => {
    const pty = io.openPty();
    const stty = spawnSync('stty', ['-g'], { stdio: [pty.slave, 'pipe', 'inherit'] });
    io.closeFd(pty.master);
    io.closeFd(pty.slave);
    return stty.stdout.toString().trim();
  })();

  it.each([
    ['Ctrl-A x', 0, (t: Terminal) => t.type('\x01x')],
    [
      'SIGTERM twice',
      143,
      async ({ cli }: Terminal) => {
        cli.kill('SIGTERM');
        await sleep(50);
        cli.kill('SIGTERM');
      },
    ],
    ['SIGHUP', 129, ({ cli }: Terminal) => cli.kill('SIGHUP')],
  ] as const)('is raw while the guest runs and restored after %s', async (_name, status, end) => {
    const terminal = onTerminal(args);
    try {
      await until(() => terminal.text().includes('tick 3'), 'ticks');
      expect(terminal.settings()).not.toBe(fresh);
      // Ctrl-C is a key for the guest, not a signal.
      terminal.type('\x03');
      const seen = terminal.text().length;
      await until(() => terminal.text().length > seen + 60, 'more ticks');
      await end(terminal);
      expect(await terminal.cli.ended).toBe(status);
      expect(terminal.settings()).toBe(fresh);
    } finally {
      await cleanUp();
      terminal.close();
    }
  });

  it('is restored when the process crashes', async () => {
    const crash = 'setTimeout(() => { throw new Error("planted") }, 2500)';
    const terminal = onTerminal(args, {
      NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(crash)}`,
    });
    try {
      await until(() => terminal.text().includes('tick 1'), 'ticks');
      expect(terminal.settings()).not.toBe(fresh);
      expect(await terminal.cli.ended).toBe(1);
      expect(terminal.cli.stderr).toContain('planted');
      expect(terminal.settings()).toBe(fresh);
    } finally {
      await cleanUp();
      terminal.close();
    }
  });

  it('is restored whenever the signal comes during the start', async () => {
    const random = new Prng(Number(process.env.TSVMM_SEED ?? 2));
    for (let i = 0; i < 6; i++) {
      const terminal = onTerminal(args);
      try {
        // From raw mode on, until shortly after.
        await until(() => terminal.settings() !== fresh, 'raw mode');
        await sleep(random.below(20));
        terminal.cli.kill('SIGTERM');
        await sleep(20);
        terminal.cli.kill('SIGTERM');
        expect([143, 'SIGTERM']).toContain(await terminal.cli.ended);
        expect(terminal.settings()).toBe(fresh);
      } finally {
        await cleanUp();
        terminal.close();
      }
    }
  });
});
