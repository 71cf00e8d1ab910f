import { describe, expect, it } from 'vitest';
import { VmmError } from '../base/error.ts';
import type { KvmCapabilities, KvmHost } from '../kvm/api.ts';
import { FakeKvmHost } from '../kvm/fake.ts';
import { checkHost, type Finding, type IoProbe } from './host-check.ts';

const io: IoProbe = { blockEngine: () => 'io_uring', cpuCount: () => 2 };

function withCapabilities(change: Partial<KvmCapabilities>): FakeKvmHost {
  const host = new FakeKvmHost();
  Object.assign(host.capabilities, change);
  return host;
}

function find(id: string, host: KvmHost, probe: IoProbe = io): Finding {
  const found = checkHost(host, probe).find((finding) => finding.id === id);
  if (found === undefined) throw new Error(`nothing was said about ${id}`);
  return found;
}

describe('the check of the host', () => {
  it('finds nothing wrong where nothing is, and leaves no VM behind', () => {
    const host = new FakeKvmHost();
    const findings = checkHost(host, io).filter(({ id }) => id !== 'tap');
    expect(findings.map(({ id, verdict }) => `${id} ${verdict}`)).toEqual([
      'kvm ok',
      'kvm-features ok',
      'lazy-skip ok',
      'tsc ok',
      'io-uring ok',
      'cpus ok',
    ]);
    expect(host.vms.every(({ destroyed }) => destroyed)).toBe(true);
  });

  it('says every sentence without a full stop, and a remedy for each lack', () => {
    const bare = withCapabilities({ hasIrqfd: false, hasVcpuTscOffset: false });
    const poor: IoProbe = { blockEngine: () => 'threads', cpuCount: () => 1 };
    for (const finding of checkHost(bare, poor)) {
      expect(finding.text).not.toMatch(/\.$|undefined/);
      if (finding.verdict !== 'ok') expect(finding.remedy, finding.id).toMatch(/\w/);
    }
  });

  it('is fatal without KVM, with the cause and the remedy that the error carries', () => {
    const host = new FakeKvmHost();
    host.probe = () => {
      throw new VmmError('KVM_TOO_OLD', 'KVM speaks API version 11, not 12', { hint: 'Upgrade.' });
    };
    // Which sentence it is depends on whether this machine has a /dev/kvm that may be opened.
    expect(find('kvm', host)).toMatchObject({
      verdict: 'fatal',
      text: expect.stringMatching(
        /^\/dev\/kvm (does not work: .*version 11|does not exist|may not)/,
      ),
      remedy: expect.stringMatching(/\w/),
    });
    expect(checkHost(host, io).some(({ id }) => id === 'tsc')).toBe(false);
  });

  it('is fatal where KVM lacks something that guests need', () => {
    const host = withCapabilities({ hasIrqfd: false, hasPit2: false });
    expect(find('kvm-features', host)).toMatchObject({
      verdict: 'fatal',
      text: 'KVM lacks in-kernel timer, irqfd',
    });
    expect(host.vms).toEqual([]);
  });

  it('tells where the instruction pointer stands', () => {
    const host = withCapabilities({
      lazySkip: { long: 'early', protected32: 'late', real: 'unknown' },
    });
    expect(find('lazy-skip', host).text).toMatch(
      /already past it in 64-bit code, still on the instruction in 32-bit code, unknown in real/,
    );
  });

  it('tries whether the time-stamp counter is really set', () => {
    expect(find('tsc', withCapabilities({ hasVcpuTscOffset: false }))).toMatchObject({
      verdict: 'limited',
      text: expect.stringMatching(/cannot set/),
    });
    const host = new FakeKvmHost();
    const createVm = host.createVm.bind(host);
    const steps: unknown[] = [];
    host.createVm = (options) => {
      const vm = createVm(options);
      const setVcpuState = vm.setVcpuState.bind(vm) as typeof vm.setVcpuState;
      vm.setVcpuState = (...args: unknown[]) => {
        steps.push(args[2]);
        setVcpuState(args[0] as number, args[1] as Parameters<typeof setVcpuState>[1]);
        return { tscTaken: false, msrsSkipped: [] };
      };
      return vm;
    };
    expect(find('tsc', host)).toMatchObject({
      verdict: 'limited',
      text: expect.stringMatching(/ignores it/),
    });
    expect(steps).toEqual([{ elapsedNs: 3_600_000_000_000n }]);
    expect(host.vms.every(({ destroyed }) => destroyed)).toBe(true);
  });

  it('tells what disks and CPUs are', () => {
    const host = new FakeKvmHost();
    const threads = { ...io, blockEngine: () => 'threads' };
    expect(find('io-uring', host, threads)).toMatchObject({ verdict: 'limited' });
    const broken = {
      ...io,
      blockEngine: () => {
        throw Object.assign(new Error('no'), { code: 'ENOSYS' });
      },
    };
    expect(find('io-uring', host, broken)).toMatchObject({
      verdict: 'missing',
      text: 'disks do not work: ENOSYS',
    });
    expect(find('cpus', host, { ...io, cpuCount: () => 1 })).toMatchObject({ verdict: 'limited' });
  });
});
