/**
 * Measures 11 and 12: what a guest receives over TAP, a round trip to it, and TCP both ways, against QEMU's userspace back end; and TCP
 * both ways by the policy that protects the guest. The peer is the host's kernel. In a network namespace of its own; needs root.
 */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import {
  type Command,
  commandText,
  finish,
  qemuCommand,
  ROOT,
  tsvmmCommand,
  undoAtEnd,
} from '../guest-run.ts';
import type { BenchContext, Experiment, Measure, Metric, Sample, Side } from '../measure.ts';
import { POLICIES, type Policy, policyText } from '../protected-pair.ts';
import { GUEST_IP, GUEST_MAC, HOST_IP, TAPS, type TapTask } from '../tap-process.ts';
import { tapMissing } from './net.ts';

const PROGRAM = join(ROOT, 'dist/test/bench/tap-process.js');
const MODELS = ['virtio', 'e1000'] as const;
const QEMU_DEVICES = { virtio: 'virtio-net-pci,disable-legacy=on', e1000: 'e1000' } as const;

const TCP: readonly Metric[] = [{ name: 'throughput', unit: 'Mbit/s' }];
const AIM = { side: 'qemu', atLeast: 1 };
const CASES: readonly {
  readonly name: string;
  readonly kind: TapTask['kind'];
  readonly append: string;
  readonly size?: number;
  readonly metrics: readonly Metric[];
}[] = [
  ...[60, 1514].map((size) => ({
    name: `receive UDP in frames of ${size} bytes`,
    kind: 'flood' as const,
    append: 'mode=rx idle=500',
    size: size - 42,
    metrics: [
      { name: 'frames', unit: '/s', aim: AIM },
      { name: 'received/sent', unit: '' },
      { name: 'interrupts/frame', unit: '' },
    ],
  })),
  {
    name: 'UDP round trip, one at a time',
    kind: 'trips',
    append: 'mode=echo',
    metrics: [
      { name: 'p50', unit: 'µs' },
      { name: 'p99', unit: 'µs' },
      { name: 'lost', unit: '' },
    ],
  },
  {
    name: 'TCP, host to guest',
    kind: 'tcp in',
    append: 'mode=echo',
    metrics: [{ ...TCP[0]!, aim: AIM }],
  },
  {
    name: 'TCP, guest to host',
    kind: 'tcp out',
    append: 'mode=echo',
    metrics: [{ ...TCP[0]!, aim: AIM }],
  },
];

let made = 0;

/** Does the task in a fresh namespace with both TAP interfaces. */
async function inNamespace(task: TapTask): Promise<Sample> {
  const name = `tsvmm-tap-${process.pid}-${made++}`;
  const ip = (...args: string[]): void => void execFileSync('ip', args, { stdio: 'pipe' });
  /** With whatever still runs there: a guest outlives the process that ran it when that is killed. */
  const remove = (): void => {
    const pids = execFileSync('ip', ['netns', 'pids', name], { encoding: 'utf8' });
    for (const pid of pids.split('\n').filter(Boolean)) {
      try {
        process.kill(Number(pid), 'SIGKILL');
      } catch {
        // It has ended meanwhile.
      }
    }
    ip('netns', 'del', name);
  };
  ip('netns', 'add', name);
  const forget = undoAtEnd(remove);
  try {
    ip('-n', name, 'link', 'set', 'lo', 'up');
    for (const tap of TAPS) {
      ip('-n', name, 'tuntap', 'add', tap, 'mode', 'tap', 'vnet_hdr');
      // IPv6 would talk to the guest on its own account.
      const setting = `net.ipv6.conf.${tap}.disable_ipv6=1`;
      execFileSync('ip', ['netns', 'exec', name, 'sysctl', '-qw', setting], { stdio: 'ignore' });
      ip('-n', name, 'link', 'set', tap, 'up');
    }
    ip('-n', name, 'addr', 'add', `${HOST_IP}/24`, 'dev', TAPS[0]);
    const neighbour = ['dev', TAPS[0], 'lladdr', GUEST_MAC, 'nud', 'permanent'];
    ip('-n', name, 'neigh', 'replace', GUEST_IP, ...neighbour);
    const command = [process.execPath, PROGRAM, JSON.stringify(task)];
    const output = await finish(['ip', 'netns', 'exec', name, ...command]);
    const found = /^result: (.*)$/m.exec(output);
    if (found === null) throw new Error(`no result: ${output.slice(-300)}`);
    return JSON.parse(found[1]!) as Sample;
  } finally {
    forget();
    remove();
  }
}

/** See the module's head. */
export const tap: Measure = {
  name: 'tap',
  title: '11. Network over TAP with the host as the peer: receive, round trip, TCP',
  missing: tapMissing,
  async experiments({ quick, qemu }: BenchContext): Promise<Experiment[]> {
    const ms = quick ? 500 : 1000;
    return MODELS.flatMap((model) =>
      CASES.map(({ name, kind, append, size, metrics }): Experiment => {
        const spec = { guest: 'net', append };
        const side = (who: string, command: Command): Side => ({
          name: who,
          command: `ip netns exec NS ${commandText(command)}`,
          run: () =>
            inNamespace({ kind, by: { command }, ms, ...(size !== undefined && { size }) }),
        });
        const ours = ['--net', `tap=${TAPS[0]},model=${model},mac=${GUEST_MAC}`];
        const sides = [side('tsvmm', tsvmmCommand(spec, ours))];
        if (qemu !== undefined) {
          const theirs = [
            ...['-netdev', `tap,id=n0,ifname=${TAPS[0]},script=no,downscript=no,vhost=off`],
            ...['-device', `${QEMU_DEVICES[model]},netdev=n0,mac=${GUEST_MAC}`],
          ];
          sides.push(side('qemu', qemuCommand(qemu, spec, theirs)));
        }
        return { name: `tap, ${model}, ${name}`, metrics, sides, seconds: 9 };
      }),
    );
  },
};

/** See the module's head. */
export const protectedTcp: Measure = {
  name: 'protected-tcp',
  title: '12. TCP of a protected guest over TAP',
  missing: tapMissing,
  async experiments({ quick }: BenchContext): Promise<Experiment[]> {
    const words = commandText(tsvmmCommand({ guest: 'net', append: 'mode=echo', memory: '64M' }));
    return (['tcp in', 'tcp out'] as const).map((kind) => ({
      name: `protected TCP, ${kind === 'tcp in' ? 'host to guest' : 'guest to host'} (ratio: off / protected)`,
      metrics: TCP,
      sides: (['off', ...POLICIES] as const).map((policy: Policy) => ({
        name: policy,
        command: `ip netns exec NS ${words} --net tap=${TAPS[0]}${policyText(policy)}`,
        run: () => inNamespace({ kind, by: { policy }, ms: quick ? 1000 : 2000 }),
      })),
      seconds: 40,
      warmUp: false,
    }));
  },
};
