/**
 * Where each CPU flag stands in CPUID, under the names of /proc/cpuinfo (Linux, arch/x86/include/asm/cpufeatures.h;
 * Intel SDM 2, CPUID; AMD APM 3, appendix E). One line per register: names of bits 0-31, `-` where nobody asks.
 */

export type CpuidRegister = 'eax' | 'ebx' | 'ecx' | 'edx';

export interface FlagPlace {
  readonly leaf: number;
  readonly index: number;
  readonly register: CpuidRegister;
  readonly bit: number;
}

interface FlagWord {
  readonly leaf: number;
  readonly index: number;
  readonly register: CpuidRegister;
  readonly names: string;
}

const WORDS: readonly FlagWord[] = [
  {
    leaf: 1,
    index: 0,
    register: 'ecx',
    names:
      'pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave - avx f16c rdrand hypervisor',
  },
  {
    leaf: 1,
    index: 0,
    register: 'edx',
    names:
      'fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe',
  },
  {
    leaf: 7,
    index: 0,
    register: 'ebx',
    names:
      'fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl',
  },
  {
    leaf: 7,
    index: 0,
    register: 'ecx',
    names:
      '- avx512vbmi umip pku - waitpkg avx512_vbmi2 - gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc -',
  },
  {
    leaf: 7,
    index: 0,
    register: 'edx',
    names:
      '- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect - md_clear - - - serialize - tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities - spec_ctrl_ssbd',
  },
  {
    leaf: 7,
    index: 1,
    register: 'eax',
    names:
      '- - - - avx_vnni avx512_bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - - - - - amx_fp16 - avx_ifma - - lam - - - - -',
  },
  {
    leaf: 0xd,
    index: 1,
    register: 'eax',
    names: 'xsaveopt xsavec xgetbv1 xsaves',
  },
  {
    leaf: 0x8000_0001,
    index: 0,
    register: 'ecx',
    names:
      'lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx - -',
  },
  {
    leaf: 0x8000_0001,
    index: 0,
    register: 'edx',
    names:
      '- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow',
  },
  {
    leaf: 0x8000_0007,
    index: 0,
    register: 'edx',
    names: '- - - - - - - - nonstop_tsc',
  },
  {
    leaf: 0x8000_0008,
    index: 0,
    register: 'ebx',
    names:
      'clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp - - - - - - - - amd_ssbd virt_ssbd amd_ssb_no - - - - -',
  },
];

function build(): ReadonlyMap<string, FlagPlace> {
  const places = new Map<string, FlagPlace>();
  for (const { leaf, index, register, names } of WORDS) {
    for (const [bit, name] of names.split(' ').entries()) {
      if (name !== '-') places.set(name, { leaf, index, register, bit });
    }
  }
  return places;
}

/** Every flag that can be named, with its place. */
export const CPU_FLAGS: ReadonlyMap<string, FlagPlace> = build();

/** Names that people use for the same thing. */
export const CPU_FLAG_ALIASES: ReadonlyMap<string, string> = new Map([
  ['sse3', 'pni'],
  ['sse4.1', 'sse4_1'],
  ['sse4.2', 'sse4_2'],
  ['tsc-deadline', 'tsc_deadline_timer'],
  ['invtsc', 'nonstop_tsc'],
  ['lzcnt', 'abm'],
  ['cmpxchg16b', 'cx16'],
]);

/** What stops working without a flag and has to go with it. */
export const CPU_FLAG_DEPENDENTS: Readonly<Record<string, readonly string[]>> = {
  xsave: ['avx', 'xsaveopt', 'xsavec', 'xgetbv1', 'xsaves', 'pku', 'amx_tile'],
  avx: [
    'avx2',
    'fma',
    'f16c',
    'avx512f',
    'avx_vnni',
    'vaes',
    'vpclmulqdq',
    'avx_ifma',
    'fma4',
    'xop',
  ],
  avx2: ['avx512f'],
  avx512f: [
    'avx512dq',
    'avx512ifma',
    'avx512pf',
    'avx512er',
    'avx512cd',
    'avx512bw',
    'avx512vl',
    'avx512vbmi',
    'avx512_vbmi2',
    'avx512_vnni',
    'avx512_bitalg',
    'avx512_vpopcntdq',
    'avx512_4vnniw',
    'avx512_4fmaps',
    'avx512_vp2intersect',
    'avx512_fp16',
    'avx512_bf16',
  ],
  amx_tile: ['amx_bf16', 'amx_int8', 'amx_fp16'],
};

/** Up to three known names near `name`, best first. */
export function closeFlags(name: string): string[] {
  const scored: [number, string][] = [];
  for (const known of [...CPU_FLAGS.keys(), ...CPU_FLAG_ALIASES.keys()]) {
    const distance = editDistance(name, known);
    if (distance <= Math.max(1, Math.floor(name.length / 2))) scored.push([distance, known]);
  }
  scored.sort((a, b) => a[0] - b[0] || (a[1] < b[1] ? -1 : 1));
  return scored.slice(0, 3).map(([, known]) => known);
}

/** Levenshtein distance. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitution = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(substitution, row[j]! + 1, next[j - 1]! + 1));
    }
    row = next;
  }
  return row[b.length]!;
}
