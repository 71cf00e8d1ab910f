// Talks to a guest's serial console through the standard streams of the process that runs the guest
// (tsvmm, or QEMU for comparison), as a person at a terminal would. Called by tests.
import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';

/** A process whose standard streams are a guest's console. */
export class GuestConsole {
  readonly #child: ChildProcess;
  readonly #exit: Promise<number | string>;
  #text = '';
  #read = 0;
  #stderr = '';
  #ended: number | string | undefined;
  #wake: () => void = () => {};

  /** Starts the program; `env` is added to this process's own. */
  constructor(program: string, args: readonly string[], options: { env?: NodeJS.ProcessEnv } = {}) {
    this.#child = spawn(program, args, {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: { ...process.env, ...options.env },
    });
    this.#child.stdin?.on('error', () => {}); // The guest may end while a line is typed.
    this.#child.stdout?.setEncoding('latin1').on('data', (chunk: string) => {
      this.#text += chunk.replaceAll('\r', '');
      this.#wake();
    });
    this.#child.stderr?.setEncoding('utf8').on('data', (chunk: string) => {
      this.#stderr += chunk;
    });
    this.#exit = new Promise((resolve) => {
      this.#child.on('error', (error) => resolve(error.message));
      this.#child.on('close', (code, signal) => resolve(code ?? signal ?? 'no status'));
    });
    this.#exit.then((status) => {
      this.#ended = status;
      this.#wake();
    });
  }

  /** The process's id. */
  get pid(): number {
    return this.#child.pid ?? -1;
  }

  /** Everything the guest has written so far, without carriage returns. */
  get text(): string {
    return this.#text;
  }

  /** Everything the process has written to its standard error. */
  get stderr(): string {
    return this.#stderr;
  }

  /**
   * Waits until the guest has written something that matches, after what earlier calls matched, and
   * returns the match. Throws with the end of the console after `timeoutMs` or when the process ends.
   */
  async expect(pattern: RegExp, timeoutMs = 120_000): Promise<RegExpExecArray> {
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      const match = pattern.exec(this.#text.slice(this.#read));
      if (match !== null) {
        this.#read += match.index + match[0].length;
        return match;
      }
      const left = deadline - Date.now();
      if (this.#ended !== undefined || left <= 0) {
        const why = left <= 0 ? `within ${timeoutMs} ms` : `before the end (${this.#ended})`;
        throw new Error(
          `the guest did not write ${pattern} ${why}; its console ended with:\n` +
            `${this.#text.slice(-2000)}\nstandard error:\n${this.#stderr.slice(-2000)}\n` +
            `${this.#witness()}`,
        );
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  /**
   * What tells a guest that was lost to the lab's software CPU from one that was lost by us: how many interrupts were
   * delivered twice (lab-init.sh traces them), and what the process's threads do.
   */
  #witness(): string {
    try {
      const twice = readFileSync('/sys/kernel/tracing/trace', 'utf8').match(/kvm_exit:/g)?.length;
      const threads = readdirSync(`/proc/${this.pid}/task`).map((thread) => {
        const read = (file: string) =>
          readFileSync(`/proc/${this.pid}/task/${thread}/${file}`, 'utf8').trim();
        return `${read('comm')} ${read('wchan')}`;
      });
      return `interrupts delivered twice in this lab: ${twice ?? 0}; threads: ${threads.join(', ')}`;
    } catch (error) {
      return `no more is known (${(error as Error).message})`;
    }
  }

  /** Types text as it is. */
  type(text: string): void {
    this.#child.stdin?.write(text);
  }

  /**
   * Runs a command in the guest's shell and returns what it wrote. Throws when its exit status is not
   * 0. Only for a shell that is at its prompt.
   */
  async command(line: string, timeoutMs = 120_000): Promise<string> {
    // In the echo of the typed line both marks are in quotes, so only the commands' output matches.
    this.type(`echo 'be'gin; ${line}; echo 'mark'"-$?-end"\n`);
    await this.expect(/^begin\n/m, timeoutMs);
    const [text] = await this.expect(/^[\s\S]*?mark-(\d+)-end\n/, timeoutMs);
    const output = text.slice(0, text.lastIndexOf('mark-'));
    const code = /mark-(\d+)-end\n$/.exec(text)?.[1];
    if (code !== '0') throw new Error(`\`${line}\` ended with ${code} in the guest:\n${output}`);
    return output;
  }

  /** Waits for the end and returns the exit status, or the name of the signal that ended it. */
  async ended(timeoutMs = 120_000): Promise<number | string> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        reject(new Error(`no end within ${timeoutMs} ms; console:\n${this.#text.slice(-2000)}`));
      }, timeoutMs);
    });
    try {
      return await Promise.race([this.#exit, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Sends a signal to the process. */
  signal(name: NodeJS.Signals): void {
    this.#child.kill(name);
  }

  /** Ends the process without ceremony; for the clean-up of a test. */
  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#exit;
  }
}
