/**
 * A cluster of real etcd members on loopback, for tests of the etcd arbiter: they can be killed, stopped and started again, and
 * asked for TLS with certificates of a CA made here. Debian: etcd-server, openssl.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { request as httpRequest } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** How a cluster is made. */
export interface EtcdClusterOptions {
  readonly members?: number;
  /** Members speak TLS to clients and want a certificate from them. */
  readonly tls?: boolean;
}

/** Why there can be no cluster here; undefined when there can. Throws where continuous integration demands one. */
export function etcdMissing(): string | undefined {
  try {
    execFileSync('etcd', ['--version'], { stdio: 'ignore' });
    return undefined;
  } catch (error) {
    const reason = `etcd cannot be started (Debian: etcd-server): ${String(error)}`;
    if (process.env.TSVMM_REQUIRE_LAB === '1') throw new Error(reason);
    process.stdout.write(`skipped: ${reason}\n`);
    return reason;
  }
}

async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer();
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      return server;
    }),
  );
  const ports = servers.map((server) => (server.address() as AddressInfo).port);
  await Promise.all(servers.map((s) => new Promise<unknown>((resolve) => s.close(resolve))));
  return ports;
}

const sleep = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));

/** See the module's head. */
export class EtcdCluster {
  readonly folder = mkdtempSync(join(tmpdir(), 'tsvmm-etcd-'));
  readonly #tls: boolean;
  readonly #clientPorts: readonly number[];
  readonly #peerPorts: readonly number[];
  readonly #members: (ChildProcess | undefined)[] = [];
  readonly #onExit = (): void => this.close();

  private constructor(options: EtcdClusterOptions, ports: readonly number[]) {
    this.#tls = options.tls === true;
    const count = ports.length / 2;
    this.#clientPorts = ports.slice(0, count);
    this.#peerPorts = ports.slice(count);
    process.on('exit', this.#onExit);
  }

  /** Starts the members and waits until they have a leader. */
  static async start(options: EtcdClusterOptions = {}): Promise<EtcdCluster> {
    const ports = await freePorts(2 * (options.members ?? 3));
    const cluster = new EtcdCluster(options, ports);
    try {
      if (cluster.#tls) cluster.#makeCertificates();
      for (let i = 0; i < cluster.#clientPorts.length; i++) cluster.startMember(i);
      await cluster.ready();
      return cluster;
    } catch (error) {
      cluster.close();
      throw error;
    }
  }

  get members(): number {
    return this.#clientPorts.length;
  }

  get endpoints(): string[] {
    return this.#clientPorts.map((port) => `http${this.#tls ? 's' : ''}://127.0.0.1:${port}`);
  }

  /** Value of `--ft-arbiter` for the guest `name`. */
  arbiter(name: string, parameters = ''): string {
    const files = ['ca', 'cert', 'key'].map((file) => `${file}=${this.path(`${file}.pem`)}`);
    const query = [...(this.#tls ? files : []), ...(parameters === '' ? [] : [parameters])].join(
      '&',
    );
    return `etcd:${this.endpoints.join(',')}/${name}${query === '' ? '' : `?${query}`}`;
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  /** Starts member `i`, for the first time or again. */
  startMember(i: number): void {
    const peers = this.#peerPorts.map((port, n) => `m${n}=http://127.0.0.1:${port}`).join(',');
    const peer = `http://127.0.0.1:${this.#peerPorts[i]}`;
    const client = this.endpoints[i]!;
    const tls = ['--cert-file', this.path('server.pem'), '--key-file', this.path('server-key.pem')];
    const log = openSync(this.path(`m${i}.log`), 'a');
    this.#members[i] = spawn(
      'etcd',
      [
        ...['--name', `m${i}`, '--data-dir', this.path(`m${i}`), '--logger', 'zap'],
        ...['--listen-client-urls', client, '--advertise-client-urls', client],
        ...['--listen-peer-urls', peer, '--initial-advertise-peer-urls', peer],
        ...['--initial-cluster', peers, '--unsafe-no-fsync'],
        ...(this.#tls
          ? [...tls, '--client-cert-auth', '--trusted-ca-file', this.path('ca.pem')]
          : []),
      ],
      { stdio: ['ignore', log, log] },
    );
    closeSync(log);
  }

  signal(i: number, name: NodeJS.Signals): void {
    this.#members[i]?.kill(name);
  }

  /** Kills member `i`; its data stays. */
  kill(i: number): void {
    this.signal(i, 'SIGCONT');
    this.signal(i, 'SIGKILL');
    this.#members[i] = undefined;
  }

  /** Waits until the members that run have a leader. */
  async ready(timeoutMs = 60_000): Promise<void> {
    const end = performance.now() + timeoutMs;
    for (const [i, member] of this.#members.entries()) {
      if (member === undefined) continue;
      while (!(await this.#healthy(i))) {
        if (performance.now() > end) {
          throw new Error(
            `etcd has no leader: ${readFileSync(this.path(`m${i}.log`), 'utf8').slice(-2000)}`,
          );
        }
        await sleep(50);
      }
    }
  }

  /** Which member leads; -1 for none. */
  async leader(): Promise<number> {
    for (const [i, member] of this.#members.entries()) {
      if (member === undefined) continue;
      const status = (await this.#post(i, '/v3/maintenance/status')) as
        | { leader?: string; header?: { member_id?: string } }
        | undefined;
      if (status?.leader !== undefined && status.leader === status.header?.member_id) return i;
    }
    return -1;
  }

  async #healthy(i: number): Promise<boolean> {
    const body = { compare: [], success: [{ request_range: { key: 'eA==' } }], failure: [] };
    const answer = (await this.#post(i, '/v3/kv/txn', body)) as { succeeded?: boolean } | undefined;
    return answer?.succeeded === true;
  }

  #post(i: number, path: string, body: unknown = {}): Promise<unknown> {
    const files = this.#tls
      ? {
          ca: readFileSync(this.path('ca.pem')),
          cert: readFileSync(this.path('cert.pem')),
          key: readFileSync(this.path('key.pem')),
        }
      : {};
    return new Promise((resolve) => {
      const ask = this.#tls ? httpsRequest : httpRequest;
      const request = ask(
        this.endpoints[i]! + path,
        { method: 'POST', timeout: 2000, ...files },
        (answer) => {
          let text = '';
          answer.on('data', (part) => {
            text += part;
          });
          answer.on('end', () => {
            try {
              resolve(JSON.parse(text));
            } catch {
              resolve(undefined);
            }
          });
        },
      );
      request.on('timeout', () => request.destroy());
      request.on('error', () => resolve(undefined));
      request.on('close', () => resolve(undefined));
      request.end(JSON.stringify(body));
    });
  }

  #makeCertificates(): void {
    const run = (...args: string[]): void => {
      execFileSync('openssl', args, { cwd: this.folder, stdio: 'ignore' });
    };
    const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
    const ca = ['-keyout', 'ca-key.pem', '-out', 'ca.pem', '-days', '2', '-subj', '/CN=test CA'];
    run('req', '-x509', ...newKey, ...ca);
    writeFileSync(
      this.path('names'),
      'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n',
    );
    for (const [cert, key] of [
      ['server.pem', 'server-key.pem'],
      ['cert.pem', 'key.pem'],
    ] as const) {
      run('req', ...newKey, '-keyout', key, '-out', `${cert}.csr`, '-subj', `/CN=${cert}`);
      const issuer = ['-CA', 'ca.pem', '-CAkey', 'ca-key.pem', '-CAcreateserial', '-days', '2'];
      run('x509', '-req', '-in', `${cert}.csr`, ...issuer, '-extfile', 'names', '-out', cert);
      chmodSync(this.path(key), 0o600);
    }
  }

  /** Kills what runs and removes its data. */
  close(): void {
    process.off('exit', this.#onExit);
    for (let i = 0; i < this.#members.length; i++) this.kill(i);
    rmSync(this.folder, { recursive: true, force: true, maxRetries: 5, retryDelay: 50 });
  }
}
