/**
 * Measure 3: frames out of a guest through virtio-net and e1000 over TAP, against QEMU's userspace back end with the same TAP.
 * In a network namespace of its own, which is gone afterwards; needs root and iproute2.
 */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import {
  benchLines,
  type Command,
  commandText,
  field,
  finish,
  qemuCommand,
  tsvmmCommand,
  undoAtEnd,
} from '../guest-run.ts';
import { kvmMissing } from '../machine-facts.ts';
import type { BenchContext, Experiment, Measure, Side } from '../measure.ts';

const TAP = 'bench0';
/** Enough that most of them leave after the JavaScript engine has compiled the way: half a second and more. */
const CASES = [
  { size: 64, count: 200_000 },
  { size: 1514, count: 200_000 },
  { size: 65_000, count: 50_000 },
] as const;
const MODELS = ['virtio', 'e1000'] as const;
const QEMU_DEVICES = { virtio: 'virtio-net-pci,disable-legacy=on', e1000: 'e1000' } as const;

let made = 0;

/** Runs `command` in a fresh namespace with a TAP interface that is up. */
async function inNamespace(command: Command): Promise<{ output: string; arrived: number }> {
  const name = `tsvmm-bench-${process.pid}-${made++}`;
  const ip = (...args: string[]): void => void execFileSync('ip', args, { stdio: 'pipe' });
  const within: Command = ['ip', 'netns', 'exec', name];
  ip('netns', 'add', name);
  const remove = (): void => ip('netns', 'del', name);
  const forget = undoAtEnd(remove);
  try {
    ip('-n', name, 'tuntap', 'add', TAP, 'mode', 'tap', 'vnet_hdr');
    // IPv6 would talk to the guest on its own account.
    execFileSync(
      'ip',
      [...within.slice(1), 'sysctl', '-qw', `net.ipv6.conf.${TAP}.disable_ipv6=1`],
      {
        stdio: 'ignore',
      },
    );
    ip('-n', name, 'link', 'set', TAP, 'up');
    const output = await finish([...within, ...command]);
    const shown = execFileSync('ip', ['-n', name, '-s', '-j', 'link', 'show', TAP], {
      encoding: 'utf8',
    });
    const [link] = JSON.parse(shown) as { stats64: { rx: { packets: number; dropped: number } } }[];
    return { output, arrived: link!.stats64.rx.packets };
  } finally {
    forget();
    remove();
  }
}

function side(name: string, command: Command): Side {
  return {
    name,
    command: `ip netns exec NS ${commandText(command)}`,
    run: async () => {
      const { output, arrived } = await inNamespace(command);
      const line = benchLines(output, 'net')[0];
      return {
        frames: field(line, 'pps'),
        throughput: field(line, 'mbit_s'),
        'arrived/frame': arrived / field(line, 'frames'),
        'doorbells/frame': field(line, 'doorbells') / field(line, 'frames'),
      };
    },
  };
}

/** Why there can be no TAP interface here, or undefined. */
export function tapMissing(): string | undefined {
  if (process.getuid?.() !== 0) return 'needs root, for a network namespace and a TAP interface';
  if (!existsSync('/dev/net/tun')) return 'needs /dev/net/tun';
  try {
    execFileSync('ip', ['-V'], { stdio: 'ignore' });
  } catch {
    return 'needs the program ip (iproute2)';
  }
  return kvmMissing();
}

export const net: Measure = {
  name: 'net',
  title: '3. Network, guest to host over TAP',
  missing: tapMissing,
  async experiments({ quick, qemu }: BenchContext): Promise<Experiment[]> {
    return MODELS.flatMap((model) =>
      CASES.map(({ size, count }): Experiment => {
        const frames = quick ? count / 10 : count;
        const spec = { guest: 'net', append: `mode=tx size=${size} count=${frames}` };
        const aim = { side: 'qemu', atLeast: 1 };
        return {
          name: `net, ${model}, transmit ${size} bytes${size > 1514 ? ' (segmentation offload)' : ''}`,
          metrics: [
            { name: 'frames', unit: '/s', aim },
            { name: 'throughput', unit: 'Mbit/s' },
            { name: 'arrived/frame', unit: '' },
            { name: 'doorbells/frame', unit: '' },
          ],
          sides: [
            side('tsvmm', tsvmmCommand(spec, ['--net', `tap=${TAP},model=${model}`])),
            ...(qemu
              ? [
                  side(
                    'qemu',
                    qemuCommand(qemu, spec, [
                      ...['-netdev', `tap,id=n0,ifname=${TAP},script=no,downscript=no,vhost=off`],
                      ...['-device', `${QEMU_DEVICES[model]},netdev=n0`],
                    ]),
                  ),
                ]
              : []),
          ],
        };
      }),
    );
  },
};
