// Two hosts and a client, all of them network namespaces of the lab: `host-a` and `host-b` with a bridge, a TAP and an uplink each,
// `client` behind the same switch, and a link of their own between the hosts. Called by the tests of replication in the lab.
import { execFileSync, spawn } from 'node:child_process';
import { rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { GuestConsole } from './guest-console.ts';
import { type ImageName, image } from './images.ts';
import { repositoryRoot } from './tools.ts';

const cli = join(repositoryRoot(), 'dist/src/cli/main.js');
const lock = '/scratch/ft-lock';
const key = '/tmp/ft-key';
const hosts = ['a', 'b'] as const;

/** Which host. */
export type Host = (typeof hosts)[number];

/** The guest's address; the client has {@link CLIENT_ADDRESS}. */
export const GUEST_ADDRESS = '10.9.0.2';
export const CLIENT_ADDRESS = '10.9.0.1';

/** Where host B waits for guests. */
const STANDBY_ADDRESS = '10.8.0.2:4444';

/** A shell script in the lab; throws when a command of it fails. @returns what it wrote */
export function sh(script: string): string {
  return execFileSync('sh', ['-ec', script], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  });
}

/** The control socket of the process on a host. */
export function controlOf(host: Host): string {
  return `/tmp/ft-${host}.sock`;
}

/** What is booted on host A. */
export interface GuestOptions {
  readonly image: ImageName;
  readonly cpus: number;
  readonly model: 'virtio' | 'e1000';
  /** As `--memory` takes it. */
  readonly memory: string;
  /** As `--disk` takes them. */
  readonly disks: readonly string[];
}

/** A guest on host A, and the standby on host B. */
export interface ProtectedGuest {
  readonly primary: GuestConsole;
  readonly standby: GuestConsole;
}

/** See the head of the file. */
export class TwoHosts {
  readonly #guests: GuestConsole[] = [];

  /** Makes the namespaces; what an earlier test left is removed. */
  constructor() {
    demolish();
    sh(`ip link add ftswitch type bridge
      ip link set ftswitch up
      ip netns add client
      ip link add upc type veth peer name eth0 netns client
      ip link set upc master ftswitch up
      ip -n client addr add ${CLIENT_ADDRESS}/24 dev eth0
      ip -n client link set eth0 up`);
    for (const host of hosts) {
      sh(`ip netns add host-${host}
        ip -n host-${host} link set lo up
        ip link add up${host} type veth peer name uplink netns host-${host}
        ip link set up${host} master ftswitch up
        ip -n host-${host} link add br0 type bridge
        ip -n host-${host} link set br0 up
        ip -n host-${host} link set uplink master br0 up
        ip -n host-${host} tuntap add dev tap0 mode tap
        ip -n host-${host} link set tap0 master br0 up`);
    }
    sh(`ip -n host-a link add ft0 type veth peer name ft0 netns host-b
      ip -n host-a addr add 10.8.0.1/24 dev ft0
      ip -n host-b addr add 10.8.0.2/24 dev ft0
      ip -n host-a link set ft0 up
      ip -n host-b link set ft0 up`);
    writeFileSync(key, 'c0ffee00'.repeat(8), { mode: 0o600 });
  }

  /** Ends everything, without ceremony. */
  async close(): Promise<void> {
    for (const guest of this.#guests.splice(0)) await guest.kill();
    demolish();
  }

  /** Boots a guest on host A and gives it its address. */
  async boot(options: GuestOptions): Promise<GuestConsole> {
    const { kernel, initrd } = image(options.image);
    const primary = this.#start('a', [
      ...['run', '--kernel', kernel, '--initrd', initrd],
      ...['--memory', options.memory, '--cpus', String(options.cpus)],
      ...['--append', 'console=ttyS0 panic=-1 quiet', '--serial', 'stdio'],
      ...options.disks.flatMap((disk) => ['--disk', disk]),
      ...['--net', `tap=tap0,model=${options.model}`],
      ...['--ft-peer', STANDBY_ADDRESS, '--ft-interval', '200ms'],
    ]);
    await primary.expect(/guest# /, 150_000);
    await primary.command(`ip addr add ${GUEST_ADDRESS}/24 dev eth0; ip link set eth0 up`);
    return primary;
  }

  /**
   * Starts host B and waits until it protects the guest.
   * @param disks as `--disk` of a standby takes them
   * @param capture where the frames of its card go
   */
  async protect(
    primary: GuestConsole,
    disks: readonly string[],
    capture: string,
  ): Promise<ProtectedGuest> {
    const standby = this.#start('b', [
      ...['standby', '--listen', STANDBY_ADDRESS],
      ...disks.flatMap((disk) => ['--disk', disk]),
      ...['--net', `net0=tap=tap0,pcap=${capture}`, '--serial', 'stdio'],
    ]);
    const begin = performance.now();
    await this.until('the guest is protected', 150_000, () =>
      primary.stderr.includes('replication: protected'),
    );
    process.stdout.write(`lab: protected after ${Math.round(performance.now() - begin)} ms\n`);
    return { primary, standby };
  }

  /** Kills host A's process with -9 and waits for host B. */
  async killPrimary({ primary, standby }: ProtectedGuest): Promise<void> {
    primary.signal('SIGKILL');
    await this.until('host B runs the guest', 60_000, () =>
      standby.stderr.includes('runs here now'),
    );
  }

  /** Delays what goes between the hosts. @param ms in each direction */
  delayLink(ms: number): void {
    for (const host of hosts) {
      sh(`tc -n host-${host} qdisc add dev ft0 root netem delay ${ms}ms`);
    }
  }

  /** Starts a command in the client's namespace with its output in a file. */
  inClient(command: string, output: string): { readonly size: () => number } {
    rmSync(output, { force: true });
    writeFileSync(output, '');
    spawn('ip', ['netns', 'exec', 'client', 'sh', '-c', `${command} >${output} 2>${output}.err`], {
      stdio: 'ignore',
    });
    return { size: () => statSync(output).size };
  }

  /** Waits; throws with what the hosts said when `ms` have passed in vain. */
  async until(what: string, ms: number, test: () => boolean | Promise<boolean>): Promise<void> {
    const end = performance.now() + ms;
    while (!(await test())) {
      if (performance.now() > end) {
        const said = this.#guests.map((guest) => guest.stderr.slice(-3000)).join('\n---\n');
        throw new Error(`waited ${ms} ms in vain until ${what}\n${said}`);
      }
      await new Promise((done) => setTimeout(done, 50));
    }
  }

  #start(host: Host, args: readonly string[]): GuestConsole {
    const common = ['--ft-key', key, '--ft-arbiter', `lock:${lock}`, '--ft-timeout', '30s'];
    const log = ['--log-level', 'info', '--control', controlOf(host)];
    const command = [process.execPath, cli, ...args, ...common, ...log];
    const guest = new GuestConsole('ip', ['netns', 'exec', `host-${host}`, ...command]);
    this.#guests.push(guest);
    return guest;
  }
}

function demolish(): void {
  sh(`for ns in host-a host-b client; do ip netns del $ns 2>/dev/null || true; done
    ip link del ftswitch 2>/dev/null || true`);
  for (const path of [lock, key]) rmSync(path, { force: true });
}
