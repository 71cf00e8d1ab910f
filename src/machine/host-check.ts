/**
 * What this host can do for guests and for fault tolerance, as findings in words: used by `tsvmm check`. Probes only,
 * at most with a VM that never runs; changes nothing.
 */
import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { codeOf, messageOf, VmmError } from '../base/error.ts';
import type { KvmCapabilities, KvmHost } from '../kvm/api.ts';

/** `ok`: works; `limited`: works with a stated restriction; `missing`: an optional thing is absent; `fatal`: no guest runs. */
export type Verdict = 'ok' | 'limited' | 'missing' | 'fatal';

/** One thing that was looked at. */
export interface Finding {
  /** Stable key for machines: `kvm`, `lazy-skip`. */
  readonly id: string;
  readonly verdict: Verdict;
  /** What was found, one sentence without a full stop. */
  readonly text: string;
  /** What to do about it, where there is something to do. */
  readonly remedy?: string;
}

/** What the check asks of the native I/O layer. */
export interface IoProbe {
  /** Which engine asynchronous disk I/O gets: `io_uring` or `threads`. */
  blockEngine(): string;
  /** CPUs of the affinity mask. */
  cpuCount(): number;
}

function processorFlags(): ReadonlySet<string> {
  try {
    const line = /^flags\s*:(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'));
    return new Set(line?.[1]?.trim().split(/\s+/) ?? []);
  } catch {
    return new Set();
  }
}

/** Why /dev/kvm cannot be used, and what to do. */
function kvmMissing(error: unknown): Finding {
  const flags = processorFlags();
  const hasVirtualisation = flags.has('vmx') || flags.has('svm');
  const module = flags.has('svm') ? 'kvm-amd' : 'kvm-intel';
  if (!existsSync('/dev/kvm')) {
    const remedy = hasVirtualisation
      ? `Load the module (modprobe ${module}); if that fails, switch virtualisation on in the firmware set-up.`
      : 'The processor shows no vmx or svm flag: switch virtualisation on in the firmware set-up, or, in a virtual machine, nested virtualisation at its host.';
    return { id: 'kvm', verdict: 'fatal', text: '/dev/kvm does not exist', remedy };
  }
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch {
    return {
      id: 'kvm',
      verdict: 'fatal',
      text: '/dev/kvm may not be opened by this user',
      remedy: 'Join the group that owns it (usermod -aG kvm $USER), then log in again.',
    };
  }
  const hint = error instanceof VmmError ? error.hint : undefined;
  return {
    id: 'kvm',
    verdict: 'fatal',
    text: `/dev/kvm does not work: ${messageOf(error)}`,
    ...(hint && { remedy: hint }),
  };
}

/** Long against everything that a probe takes. */
const PROBE_STEP_NS = 3_600_000_000_000n;

/** Whether a guest's time-stamp counter goes where it is set: some KVMs accept it and change nothing. */
function tscFinding(host: KvmHost, kvm: KvmCapabilities): Finding {
  const jump =
    'After a restore or a takeover a guest that reads the counter itself sees it jump; guests that use kvm-clock do not.';
  if (!kvm.hasVcpuTscOffset) {
    return {
      id: 'tsc',
      verdict: 'limited',
      text: "KVM cannot set a guest's time-stamp counter exactly",
      remedy: `${jump} Use Linux 5.16 or later on both hosts.`,
    };
  }
  const vm = host.createVm({ vcpus: 1 });
  try {
    const { tscTaken } = vm.setVcpuState(0, vm.getVcpuState(0), { elapsedNs: PROBE_STEP_NS });
    return tscTaken
      ? { id: 'tsc', verdict: 'ok', text: "the guest's time-stamp counter can be set" }
      : {
          id: 'tsc',
          verdict: 'limited',
          text: "KVM lets a guest's time-stamp counter be set but ignores it: guests see the host's",
          remedy: `${jump} A KVM that uses hardware virtualisation has no such limit.`,
        };
  } finally {
    vm.destroy();
  }
}

function kvmFindings(host: KvmHost, kvm: KvmCapabilities): Finding[] {
  const findings: Finding[] = [
    {
      id: 'kvm',
      verdict: 'ok',
      text: `KVM works (API version ${kvm.apiVersion}, up to ${kvm.vcpusMax} vCPUs, Linux ${release()})`,
    },
  ];
  const needs: [keyof KvmCapabilities, string][] = [
    ['hasIrqchip', 'in-kernel interrupt controllers'],
    ['hasPit2', 'in-kernel timer'],
    ['hasImmediateExit', 'immediate exit'],
    ['hasReadonlyMemory', 'read-only memory'],
    ['hasIoeventfd', 'ioeventfd'],
    ['hasIrqfd', 'irqfd'],
    ['hasSignalMsi', 'message-signalled interrupts'],
  ];
  const lacking = needs.filter(([key]) => kvm[key] !== true).map(([, name]) => name);
  findings.push(
    lacking.length === 0
      ? { id: 'kvm-features', verdict: 'ok', text: 'KVM has every feature that guests need' }
      : {
          id: 'kvm-features',
          verdict: 'fatal',
          text: `KVM lacks ${lacking.join(', ')}`,
          remedy: 'Use a kernel of 4.12 or later with its own KVM modules.',
        },
  );
  const { long, real, protected32 } = kvm.lazySkip;
  const words = { late: 'still on the instruction', early: 'already past it', unknown: 'unknown' };
  findings.push({
    id: 'lazy-skip',
    verdict: 'ok',
    text: `at a port write, the instruction pointer is ${words[long]} in 64-bit code, ${words[protected32]} in 32-bit code, ${words[real]} in real mode; checkpoints show it on the instruction in every case`,
  });
  if (lacking.length === 0) findings.push(tscFinding(host, kvm));
  return findings;
}

function tapFinding(): Finding {
  if (!existsSync('/dev/net/tun')) {
    return {
      id: 'tap',
      verdict: 'missing',
      text: '/dev/net/tun does not exist, so --net tap=… cannot work',
      remedy: 'Load the module (modprobe tun), or use --net user or --net stream=….',
    };
  }
  try {
    accessSync('/dev/net/tun', constants.R_OK | constants.W_OK);
  } catch {
    return {
      id: 'tap',
      verdict: 'missing',
      text: '/dev/net/tun may not be opened by this user',
      remedy: 'Its mode is usually 0666; ask the administrator.',
    };
  }
  if (process.getuid?.() === 0)
    return { id: 'tap', verdict: 'ok', text: 'TAP interfaces can be created and used' };
  return {
    id: 'tap',
    verdict: 'limited',
    text: 'TAP interfaces that were made for this user can be used; creating one needs root',
    remedy: 'As root: ip tuntap add dev tap0 mode tap user $USER vnet_hdr',
  };
}

/** Looks at everything. `host` is only asked when its addon could be loaded. */
export function checkHost(host: KvmHost, io: IoProbe): Finding[] {
  const findings: Finding[] = [];
  try {
    findings.push(...kvmFindings(host, host.probe()));
  } catch (error) {
    findings.push(kvmMissing(error));
  }
  try {
    const engine = io.blockEngine();
    findings.push(
      engine === 'io_uring'
        ? { id: 'io-uring', verdict: 'ok', text: 'disks use io_uring' }
        : {
            id: 'io-uring',
            verdict: 'limited',
            text: 'io_uring is not available; disks use a thread pool and are slower',
            remedy:
              'sysctl kernel.io_uring_disabled=0 (Linux 6.6 and later), or allow it in the container.',
          },
    );
  } catch (error) {
    findings.push({
      id: 'io-uring',
      verdict: 'missing',
      text: `disks do not work: ${codeOf(error) ?? messageOf(error)}`,
      remedy:
        'Look at the limits of this process (ulimit -a), and whether its container forbids system calls.',
    });
  }
  findings.push(tapFinding());
  const usable = io.cpuCount();
  findings.push(
    usable >= 2
      ? { id: 'cpus', verdict: 'ok', text: `${usable} of ${cpus().length} CPUs may be used` }
      : {
          id: 'cpus',
          verdict: 'limited',
          text: 'only one CPU may be used: guest and devices take turns',
          remedy: 'Give the process two CPUs or more.',
        },
  );
  return findings;
}
