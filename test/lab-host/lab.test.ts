// The lab as seen from outside: streams, exit status, time limit, isolation from the host's files. Each
// start of the lab takes some ten seconds, so one start is asked many questions.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { MarkedStream, quote } from '../lab/machine.ts';
import { repositoryRoot, whyNoLab } from '../lab/tools.ts';

const lab = join(repositoryRoot(), 'dist/test/lab/main.js');
const work = mkdtempSync(join(tmpdir(), 'lab-host-test-'));
afterAll(() => rmSync(work, { recursive: true, force: true }));

function start(args: readonly string[]): ChildProcess {
  return spawn(process.execPath, [lab, ...args], { stdio: ['pipe', 'pipe', 'pipe'], cwd: work });
}

async function finish(child: ChildProcess, input = '') {
  let stdout = '';
  let stderr = '';
  child.stdout?.on('data', (chunk) => {
    stdout += chunk;
  });
  child.stderr?.on('data', (chunk) => {
    stderr += chunk;
  });
  child.stdin?.end(input);
  const status = await new Promise<number | null>((done) => child.on('close', done));
  return { status, stdout, stderr };
}

/** Directories and QEMU processes that belong to a launcher. */
function remains(pid: number): string[] {
  const left = readdirSync(tmpdir()).filter((name) => name.startsWith(`tsvmm-lab-${pid}-`));
  for (const id of readdirSync('/proc')) {
    try {
      const command = readFileSync(`/proc/${id}/cmdline`, 'utf8');
      if (command.includes(`tsvmm-lab-${pid}-`)) left.push(command.slice(0, 80));
    } catch {
      // It has ended meanwhile, or is no process.
    }
  }
  return left;
}

describe('the end of a stream', () => {
  it('is found wherever the chunks are cut, and nothing is lost or held back', () => {
    const text = Buffer.from('some %lab text %lab-en %lab-end');
    const all = Buffer.concat([text, Buffer.from('%lab-end-1%')]);
    for (let size = 1; size <= all.length; size++) {
      const stream = new MarkedStream('%lab-end-1%');
      const got: Buffer[] = [];
      for (let at = 0; at < all.length; at += size) {
        expect(stream.ended).toBe(false);
        got.push(stream.push(all.subarray(at, at + size)));
      }
      expect(stream.ended).toBe(true);
      expect(Buffer.concat(got).toString()).toBe(text.toString());
    }
  });

  it('holds back only what may be the beginning of the mark', () => {
    const stream = new MarkedStream('%lab-end-1%');
    expect(stream.push(Buffer.from('prompt% ')).toString()).toBe('prompt% ');
    expect(stream.push(Buffer.from('x%la')).toString()).toBe('x');
    expect(stream.push(Buffer.from('zy')).toString()).toBe('%lazy');
  });
});

describe('quoting', () => {
  it('brings any text through the shell', () => {
    const text = 'a \'b\' "c" $d `e` \\ \n*';
    const out = execFileSync('sh', ['-c', `printf %s ${quote(text)}`], { encoding: 'utf8' });
    expect(out).toBe(text);
  });
});

const reason = whyNoLab();
if (reason !== undefined) process.stderr.write(`tests of the lab are skipped: ${reason}\n`);

describe.skipIf(reason !== undefined)('npm run lab', { timeout: 240_000 }, () => {
  it('runs a command, apart from the host', async () => {
    const out = join(work, 'out');
    writeFileSync(join(work, 'seen'), 'outside');
    const script = [
      'cat seen',
      'echo inside >seen && cat seen',
      'echo complaint >&2',
      'echo result >out/result',
      'cat >&2',
      'seq 100000',
      'sleep 1000 &',
      'test -c /dev/kvm || exit 1',
      'exit 37',
    ];
    const child = start([
      '--out',
      out,
      '--stdin',
      '--timeout',
      '200',
      'sh',
      '-c',
      script.join('\n'),
    ]);
    const { status, stdout, stderr } = await finish(child, 'typed');
    expect(stderr).toBe('complaint\ntyped');
    const numbers = Array.from({ length: 100000 }, (_, index) => index + 1).join('\n');
    expect(stdout).toBe(`outsideinside\n${numbers}\n`);
    expect(status).toBe(37);
    expect(readFileSync(join(work, 'seen'), 'utf8')).toBe('outside');
    expect(readFileSync(join(out, 'result'), 'utf8')).toBe('result\n');
    expect(remains(child.pid!)).toEqual([]);
  });

  it('ends with 124 and a sentence when time is over', async () => {
    const child = start(['--timeout', '3', 'sleep', '1000']);
    const { status, stderr } = await finish(child);
    expect(status).toBe(124);
    expect(stderr).toContain('`sleep 1000` did not finish within 3 s');
    expect(remains(child.pid!)).toEqual([]);
  });

  it('leaves nothing behind when it is interrupted', async () => {
    const child = start(['sleep', '1000']);
    const end = finish(child);
    while (remains(child.pid!).length < 2) await new Promise((done) => setTimeout(done, 50));
    child.kill('SIGINT');
    const { status, stderr } = await end;
    expect(status).toBe(130);
    expect(stderr).toContain('interrupted');
    expect(remains(child.pid!)).toEqual([]);
  });

  it('takes its machine along when it is killed', async () => {
    const child = start(['sleep', '1000']);
    const end = finish(child);
    while (remains(child.pid!).length < 2) await new Promise((done) => setTimeout(done, 50));
    child.kill('SIGKILL');
    await end;
    // Only the directory is left, until the next start sweeps it up.
    while (remains(child.pid!).length > 1) await new Promise((done) => setTimeout(done, 50));
    await finish(start(['--timeout', '1', 'true']));
    expect(remains(child.pid!)).toEqual([]);
  });

  it('says what is wrong with its options', async () => {
    const { status, stderr } = await finish(start(['--memory', 'much', 'true']));
    expect(status).not.toBe(0);
    expect(stderr).toContain('at least 512M');
  });
});

describe('a host without the packages', () => {
  it('is told what is missing and how to install it', () => {
    expect(whyNoLab((program) => program !== 'qemu-system-x86_64' && program !== 'cpio')).toBe(
      'the lab needs Debian packages that are not installed: cpio qemu-system-x86. Install them ' +
        'with: apt-get update && apt-get install -y --no-install-recommends cpio qemu-system-x86',
    );
  });
});
