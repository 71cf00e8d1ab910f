// What the lab promises to every test in it: a /dev/kvm of the hardware kind, network namespaces with
// delay, a disk for direct I/O, the kernel's own tools.
import { execFileSync } from 'node:child_process';
import { readFileSync, rmSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';

const sh = (script: string) =>
  execFileSync('sh', ['-ec', script], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  }).trim();

describe('the ground of the lab', () => {
  const cleanups: (() => void)[] = [];
  afterEach(() => {
    for (const cleanup of cleanups.splice(0)) cleanup();
  });

  it('has a /dev/kvm that speaks version 12 of the API', () => {
    // Perl is on every Debian system and can make an ioctl; 0xae00 is KVM_GET_API_VERSION.
    const script = 'open(F, "+<", "/dev/kvm") or die $!; print ioctl(F, 0xae00, 0) or die $!';
    expect(execFileSync('perl', ['-e', script], { encoding: 'utf8' })).toBe('12');
  });

  it('virtualises with AMD SVM and nested paging', () => {
    expect(readFileSync('/proc/cpuinfo', 'utf8')).toMatch(/^flags.*\bsvm\b/m);
    expect(readFileSync('/sys/module/kvm_amd/parameters/npt', 'utf8').trim()).toBe('Y');
  });

  it('delays packets between namespaces', () => {
    cleanups.push(() => sh('ip netns del labfar 2>/dev/null || true; ip link del labnear || true'));
    sh(`ip netns add labfar
      ip link add labnear type veth peer name labpeer netns labfar
      ip addr add 10.9.8.1/24 dev labnear
      ip link set labnear up
      ip -n labfar addr add 10.9.8.2/24 dev labpeer
      ip -n labfar link set labpeer up
      tc qdisc add dev labnear root netem delay 150ms
      busybox ping -c 1 -W 5 10.9.8.2`);
    const times = /= ([\d.]+)\//.exec(sh('busybox ping -c 1 -W 5 10.9.8.2'));
    expect(Number(times?.[1])).toBeGreaterThanOrEqual(150);
  });

  it('writes and reads the scratch disk past the page cache', () => {
    const path = '/scratch/direct';
    cleanups.push(() => rmSync(path, { force: true }));
    sh(`dd if=/dev/urandom of=/tmp/ground bs=64k count=4 2>/dev/null
      dd if=/tmp/ground of=${path} bs=64k oflag=direct
      dd if=${path} of=/tmp/ground.back bs=64k iflag=direct
      cmp /tmp/ground /tmp/ground.back`);
    expect(readFileSync(path).length).toBe(4 * 65536);
  });

  it('can make TAP devices and bridges', () => {
    cleanups.push(() => sh('ip link del labtap || true; ip link del labbr || true'));
    sh(`ip tuntap add dev labtap mode tap
      ip link add labbr type bridge
      ip link set labtap master labbr`);
    expect(sh('ip -o link show master labbr')).toContain('labtap');
  });
});
