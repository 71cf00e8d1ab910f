import { describe, expect, it } from 'vitest';
import {
  buildCpuid,
  type CpuidRow,
  cpuidRows,
  cpuidTable,
  hasFlag,
  parseCpuModel,
} from './cpuid.ts';
import { CPU_FLAGS } from './cpuid-flags.ts';

const row = (leaf: number, eax = 0, ebx = 0, ecx = 0, edx = 0, index = 0): CpuidRow => ({
  leaf,
  index,
  flags: index > 0 || [4, 7, 0xb, 0xd].includes(leaf) ? 1 : 0,
  eax,
  ebx,
  ecx,
  edx,
});
const ALL = 0xffff_ffff;

/** An Intel host that supports everything there is a name for. */
const INTEL = cpuidTable([
  row(0, 0x20, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
  row(1, 0xa0671, 0x0002_0800, ALL, ALL),
  row(4, 0x0400_0121, 0x2c0_003f, 0x3f, 0, 0),
  row(4, 0x0400_4163, 0x3c0_003f, 0x7_ffff, 4, 3),
  row(6, 0x77, 2, 9, 0),
  row(7, 2, ALL, ALL, ALL),
  row(7, ALL, 0, 0, 0, 1),
  row(0xa, 0x0730_0404),
  row(0xb),
  row(0xd, 7, 0x340, 0x340),
  row(0xd, 0xf, 0, 0, 0, 1),
  row(0x14, 1, 0xf),
  row(0x1f),
  row(0x8000_0000, 0x8000_0008),
  row(0x8000_0001, 0, 0, ALL, ALL),
  row(0x8000_0007, 0, 0, 0, 0x100),
  row(0x8000_0008, 0x3934, ALL, 0x3007),
  row(0x4000_0000, 0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d),
  row(0x4000_0001, 0x0100_7efb),
]);

function build(model: string, vcpus = 1): CpuidRow[][] {
  return buildCpuid({
    supported: INTEL,
    model: parseCpuModel(model),
    vcpus,
    tscKhz: 2_500_000,
    hasTscDeadline: true,
  }).map(cpuidRows);
}
const find = (rows: CpuidRow[], leaf: number, index = 0) =>
  rows.find((r) => r.leaf === leaf && r.index === index);

describe('CPU models', () => {
  it('parses models and flags', () => {
    expect(parseCpuModel('host')).toEqual({ base: 'host', add: [], remove: [] });
    expect(parseCpuModel('baseline,+aes,-sse4.2')).toEqual({
      base: 'baseline',
      add: ['aes'],
      remove: ['sse4_2'],
    });
    expect(parseCpuModel('-avx,+invtsc')).toEqual({
      base: 'host',
      add: ['nonstop_tsc'],
      remove: ['avx'],
    });
  });

  it.each([
    ['qemu64', /unknown CPU model "qemu64"/, /host or baseline/],
    ['host,avx', /"avx" is neither/, undefined],
    ['host,+', /"\+" is neither/, undefined],
    ['host,+avx3', /unknown CPU flag "avx3"/, /avx2?\b/],
    ['host,-popcount', /unknown CPU flag "popcount"/, /popcnt/],
    ['host,-qqqqqqqqqq', /unknown CPU flag/, /proc\/cpuinfo/],
    ['', /unknown CPU model ""/, undefined],
  ])('refuses %s', (text, message, hint) => {
    expect(() => parseCpuModel(text)).toThrow(message);
    if (hint !== undefined) {
      try {
        parseCpuModel(text);
      } catch (error) {
        expect((error as { hint: string }).hint).toMatch(hint);
      }
    }
  });

  it('knows each flag once', () => {
    const places = new Set(
      [...CPU_FLAGS.values()].map((p) => `${p.leaf}.${p.index}.${p.register}.${p.bit}`),
    );
    expect(places.size).toBe(CPU_FLAGS.size);
    expect(CPU_FLAGS.get('avx512vl')).toEqual({ leaf: 7, index: 0, register: 'ebx', bit: 31 });
    expect(CPU_FLAGS.get('rdpid')).toEqual({ leaf: 7, index: 0, register: 'ecx', bit: 22 });
    expect(CPU_FLAGS.get('arch_capabilities')).toEqual({
      leaf: 7,
      index: 0,
      register: 'edx',
      bit: 29,
    });
    expect(CPU_FLAGS.get('hypervisor')).toEqual({ leaf: 1, index: 0, register: 'ecx', bit: 31 });
    expect(CPU_FLAGS.get('rdtscp')).toEqual({
      leaf: 0x8000_0001,
      index: 0,
      register: 'edx',
      bit: 27,
    });
    expect(CPU_FLAGS.get('mwaitx')).toEqual({
      leaf: 0x8000_0001,
      index: 0,
      register: 'ecx',
      bit: 29,
    });
    expect(CPU_FLAGS.get('wbnoinvd')).toEqual({
      leaf: 0x8000_0008,
      index: 0,
      register: 'ebx',
      bit: 9,
    });
    expect(CPU_FLAGS.get('amd_ssbd')).toEqual({
      leaf: 0x8000_0008,
      index: 0,
      register: 'ebx',
      bit: 24,
    });
  });
});

describe('buildCpuid', () => {
  it('host: everything but what a checkpoint cannot carry', () => {
    const [rows] = build('host') as [CpuidRow[]];
    expect(hasFlag(rows, 'avx512f')).toBe(true);
    expect(hasFlag(rows, 'hypervisor')).toBe(true);
    for (const flag of ['vmx', 'monitor', 'sgx', 'intel_pt', 'svm', 'pdcm', 'nonstop_tsc']) {
      expect(hasFlag(rows, flag), flag).toBe(false);
    }
    expect(find(rows, 0xa)).toBeUndefined();
    expect(find(rows, 0x14)).toBeUndefined();
    expect(find(rows, 6)).toMatchObject({ eax: 4, ecx: 0 });
    // OSXSAVE mirrors CR4.
    expect(find(rows, 1)!.ecx & (1 << 27)).toBe(0);
    // Paravirtual clock yes, asynchronous page faults no.
    expect(find(rows, 0x4000_0001)!.eax & 0x0100_0009).toBe(0x0100_0009);
    expect(find(rows, 0x4000_0001)!.eax & 0x0002_4410).toBe(0);
    expect(find(rows, 0x4000_0000)!.eax).toBe(0x4000_0010);
    expect(find(rows, 0x4000_0010)).toMatchObject({ eax: 2_500_000, ebx: 1_000_000 });
  });

  it('baseline: x86-64-v2 whatever the host has', () => {
    const [rows] = build('baseline') as [CpuidRow[]];
    for (const flag of ['sse4_2', 'popcnt', 'cx16', 'ssse3', 'lahf_lm', 'nx', 'lm', 'hypervisor']) {
      expect(hasFlag(rows, flag), flag).toBe(true);
    }
    for (const flag of ['avx', 'xsave', 'aes', 'bmi1', 'smep', 'pku', 'rdrand', 'spec_ctrl']) {
      expect(hasFlag(rows, flag), flag).toBe(false);
    }
    expect(find(rows, 0)!.eax).toBe(0xd);
    expect(find(rows, 0xd)).toBeUndefined();
    expect(find(rows, 1)!.eax).toBe(0x6fb);
    expect(find(rows, 7)).toMatchObject({ ebx: 0, ecx: 0, edx: 0 });
    expect(rows.some((r) => r.leaf > 0xd && r.leaf < 0x4000_0000)).toBe(false);
  });

  it('adds and removes flags, with what depends on them', () => {
    expect(hasFlag(build('baseline,+aes')[0]!, 'aes')).toBe(true);
    expect(hasFlag(build('host,+nonstop_tsc')[0]!, 'nonstop_tsc')).toBe(true);
    const [noAvx] = build('host,-avx') as [CpuidRow[]];
    for (const flag of ['avx', 'avx2', 'fma', 'avx512f', 'avx512vl', 'vaes']) {
      expect(hasFlag(noAvx, flag), flag).toBe(false);
    }
    expect(hasFlag(noAvx, 'xsave')).toBe(true);
    const [noXsave] = build('host,-xsave') as [CpuidRow[]];
    expect(hasFlag(noXsave, 'avx2')).toBe(false);
    expect(find(noXsave, 0xd)).toBeUndefined();
    // AVX without XSAVE cannot be.
    expect(hasFlag(build('baseline,+avx')[0]!, 'avx')).toBe(false);
    expect(() => build('host,+vmx')).toThrow(/cannot give a guest "vmx"/);
    expect(() => build('host,+nodeid_msr')).not.toThrow();
  });

  it('topology: one core per vCPU', () => {
    const tables = build('host', 3);
    expect(tables).toHaveLength(3);
    for (const [i, rows] of tables.entries()) {
      const one = find(rows, 1)!;
      expect(one.ebx >>> 24).toBe(i);
      expect((one.ebx >>> 16) & 0xff).toBe(4);
      expect(one.ebx & 0xff00).toBe(0x800);
      expect(hasFlag(rows, 'ht')).toBe(true);
      expect(find(rows, 0xb, 0)).toMatchObject({ eax: 0, ebx: 1, ecx: 0x100, edx: i, flags: 1 });
      expect(find(rows, 0xb, 1)).toMatchObject({ eax: 2, ebx: 3, ecx: 0x201, edx: i });
      expect(find(rows, 0xb, 2)).toMatchObject({ eax: 0, ebx: 0, ecx: 2, edx: i });
      expect(find(rows, 0x1f)).toBeUndefined();
      // First-level cache per core, last level shared by all.
      expect((find(rows, 4, 0)!.eax >>> 14) & 0xfff).toBe(0);
      expect((find(rows, 4, 3)!.eax >>> 14) & 0xfff).toBe(3);
      expect(find(rows, 4, 0)!.eax >>> 26).toBe(3);
      expect(find(rows, 0x8000_0008)!.ecx).toBe(0);
    }
    const [single] = build('host', 1) as [CpuidRow[]];
    expect(hasFlag(single, 'ht')).toBe(false);
    expect((find(single, 1)!.ebx >>> 16) & 0xff).toBe(1);
  });

  it('AMD topology', () => {
    const amd = cpuidTable([
      row(0, 0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
      row(1, 0x800f12, 0, ALL, ALL),
      row(0x8000_0000, 0x8000_001e),
      row(0x8000_0001, 0, 0, 0, ALL),
      row(0x8000_0008, 0x3030, 0, 0x7007),
      row(0x8000_001d, 0x4163, 0, 0, 0, 3),
    ]);
    const tables = buildCpuid({
      supported: amd,
      model: parseCpuModel('host'),
      vcpus: 4,
      tscKhz: 0,
      hasTscDeadline: false,
    }).map(cpuidRows);
    expect(find(tables[3]!, 0x8000_0008)!.ecx).toBe(0x2003);
    expect(find(tables[3]!, 0x8000_001e)).toMatchObject({ eax: 3, ebx: 3 });
    expect(hasFlag(tables[3]!, 'cmp_legacy')).toBe(true);
    expect((find(tables[3]!, 0x8000_001d, 3)!.eax >>> 14) & 0xfff).toBe(3);
  });
});
