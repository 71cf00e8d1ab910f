/**
 * The CPUID table of a guest's vCPU: what KVM supports, cut down to a model, with topology and hypervisor leaves of
 * its own. Rows of CPUID_ROW_WORDS u32 as KVM takes them. Two models: `host` (all that KVM supports and that can be
 * saved and restored) and `baseline` (about x86-64-v2; the same on most hosts, so that a guest can move between them).
 * Leaves out nested virtualisation, performance counters and SGX: their state is not part of a checkpoint.
 */
import { assert } from '../base/assert.ts';
import { VmmError } from '../base/error.ts';
import { CPUID_ROW_WORDS } from './api.ts';
import {
  CPU_FLAG_ALIASES,
  CPU_FLAG_DEPENDENTS,
  CPU_FLAGS,
  type CpuidRegister,
  closeFlags,
  type FlagPlace,
} from './cpuid-flags.ts';

/** One row. */
export interface CpuidRow {
  leaf: number;
  index: number;
  /** KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1. */
  flags: number;
  eax: number;
  ebx: number;
  ecx: number;
  edx: number;
}

/** `--cpu` taken apart. */
export interface CpuModel {
  readonly base: 'host' | 'baseline';
  readonly add: readonly string[];
  readonly remove: readonly string[];
}

/** Flags of the baseline: x86-64-v2 and what operating systems expect of any such machine. */
const BASELINE =
  'fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 ht syscall nx lm rdtscp pni ssse3 cx16 sse4_1 sse4_2 x2apic popcnt tsc_deadline_timer hypervisor lahf_lm'.split(
    ' ',
  );
/** Of a KVM guest whatever the model says: state of these is not captured. */
const NEVER = 'vmx svm monitor smx sgx sgx_lc intel_pt pdcm dtes64 ds_cpl dts arch_lbr'.split(' ');
/** Off unless asked for: a guest that sees it trusts the TSC across a move to another host. */
const OPT_IN = ['nonstop_tsc'];
/**
 * KVM_CPUID_FEATURES bits that are withheld: asynchronous page faults (4, 10, 14: a "page ready" in flight would be
 * lost with the host) and migration control (17).
 */
const KVM_FEATURES_WITHHELD = (1 << 4) | (1 << 10) | (1 << 14) | (1 << 17);
const KVM_LEAF = 0x4000_0000;
const TIMING_LEAF = 0x4000_0010;
/** KVM's LAPIC timer counts at 1 GHz. */
const LAPIC_KHZ = 1_000_000;
const BASELINE_LEAF_MAX = 0xd;

/** @throws VmmError CPU_MODEL with the flags that come near a misspelt one */
export function parseCpuModel(text: string): CpuModel {
  const [base, ...rest] = text.split(',');
  const add: string[] = [];
  const remove: string[] = [];
  let model: CpuModel['base'] = 'host';
  const changes = [...rest];
  if (base === 'host' || base === 'baseline') model = base;
  else if (base !== undefined && /^[+-]/.test(base)) changes.unshift(base);
  else {
    throw new VmmError('CPU_MODEL', `unknown CPU model "${base}"`, {
      hint: 'Use host or baseline, then +flag or -flag.',
    });
  }
  for (const change of changes) {
    const list = change.startsWith('+') ? add : change.startsWith('-') ? remove : undefined;
    if (list === undefined || change.length < 2) {
      throw new VmmError('CPU_MODEL', `"${change}" is neither +flag nor -flag`);
    }
    list.push(flagName(change.slice(1)));
  }
  return { base: model, add, remove };
}

function flagName(given: string): string {
  const name = CPU_FLAG_ALIASES.get(given) ?? given;
  if (CPU_FLAGS.has(name)) return name;
  const close = closeFlags(given);
  throw new VmmError('CPU_MODEL', `unknown CPU flag "${given}"`, {
    hint:
      close.length > 0
        ? `Did you mean ${close.join(', ')}?`
        : 'The names are those of the flags line of /proc/cpuinfo.',
  });
}

/** Rows of a table as KVM gives it. */
export function cpuidRows(table: Uint32Array): CpuidRow[] {
  assert(table.length % CPUID_ROW_WORDS === 0, 'a CPUID table has whole rows');
  const rows: CpuidRow[] = [];
  for (let at = 0; at < table.length; at += CPUID_ROW_WORDS) {
    const [leaf, index, flags, eax, ebx, ecx, edx] = table.subarray(at, at + CPUID_ROW_WORDS);
    rows.push({
      leaf: leaf!,
      index: index!,
      flags: flags!,
      eax: eax!,
      ebx: ebx!,
      ecx: ecx!,
      edx: edx!,
    });
  }
  return rows;
}

export function cpuidTable(rows: readonly CpuidRow[]): Uint32Array {
  const table = new Uint32Array(rows.length * CPUID_ROW_WORDS);
  for (const [i, row] of rows.entries()) {
    table.set(
      [row.leaf, row.index, row.flags, row.eax, row.ebx, row.ecx, row.edx],
      i * CPUID_ROW_WORDS,
    );
  }
  return table;
}

/** Whether a table shows a flag. */
export function hasFlag(rows: readonly CpuidRow[], name: string): boolean {
  const place = CPU_FLAGS.get(name);
  assert(place !== undefined, `CPU flag ${name} is known`);
  const row = rows.find((r) => r.leaf === place.leaf && r.index === place.index);
  return row !== undefined && ((row[place.register] >>> place.bit) & 1) === 1;
}

/** What a guest's CPUID is made of. */
export interface CpuidInput {
  /** KVM_GET_SUPPORTED_CPUID. */
  readonly supported: Uint32Array;
  readonly model: CpuModel;
  readonly vcpus: number;
  /** 0 where unknown. */
  readonly tscKhz: number;
  /** KVM_CAP_TSC_DEADLINE_TIMER: an emulation that the supported table may not show. */
  readonly hasTscDeadline: boolean;
}

/** The tables of all vCPUs, APIC id = index. @throws VmmError CPU_FLAG_MISSING for a +flag that this host lacks */
export function buildCpuid(input: CpuidInput): Uint32Array[] {
  const supported = cpuidRows(input.supported);
  const common = supported.map((row) => ({ ...row }));
  setFlag(common, 'hypervisor', true);
  if (input.hasTscDeadline) setFlag(common, 'tsc_deadline_timer', true);
  const offered = common.map((row) => ({ ...row }));
  for (const name of [...NEVER, ...OPT_IN]) setFlag(common, name, false);
  if (input.model.base === 'baseline') keepOnly(common, BASELINE);
  for (const name of input.model.add) {
    if (!hasFlag(offered, name) || NEVER.includes(name)) {
      throw new VmmError('CPU_FLAG_MISSING', `KVM on this host cannot give a guest "${name}"`, {
        hint: `Leave +${name} out of --cpu.`,
      });
    }
    setFlag(common, name, true);
  }
  for (const name of input.model.remove) removeFlag(common, name);
  for (const name of Object.keys(CPU_FLAG_DEPENDENTS)) {
    if (!hasFlag(common, name)) removeFlag(common, name);
  }
  const rows = withFixedLeaves(common, input);
  return Array.from({ length: input.vcpus }, (_, apicId) =>
    cpuidTable(withTopology(rows, apicId, input.vcpus)),
  );
}

function rowAt(rows: CpuidRow[], place: FlagPlace): CpuidRow | undefined {
  return rows.find((row) => row.leaf === place.leaf && row.index === place.index);
}

function setFlag(rows: CpuidRow[], name: string, on: boolean): void {
  const place = CPU_FLAGS.get(name);
  assert(place !== undefined, `CPU flag ${name} is known`);
  const row = rowAt(rows, place);
  if (row === undefined) return;
  const bit = 2 ** place.bit;
  const is = ((row[place.register] >>> place.bit) & 1) === 1;
  if (is !== on) row[place.register] = (row[place.register] + (on ? bit : -bit)) >>> 0;
}

function removeFlag(rows: CpuidRow[], name: string): void {
  setFlag(rows, name, false);
  for (const dependent of CPU_FLAG_DEPENDENTS[name] ?? []) removeFlag(rows, dependent);
}

/** Clears every named or unnamed feature bit outside `names` in the registers that hold flags. */
function keepOnly(rows: CpuidRow[], names: readonly string[]): void {
  const masks = new Map<string, number>();
  const key = (leaf: number, index: number, register: CpuidRegister) =>
    `${leaf}.${index}.${register}`;
  for (const { leaf, index, register } of CPU_FLAGS.values())
    masks.set(key(leaf, index, register), 0);
  for (const name of names) {
    const place = CPU_FLAGS.get(name)!;
    const at = key(place.leaf, place.index, place.register);
    masks.set(at, (masks.get(at)! | (1 << place.bit)) >>> 0);
  }
  for (const row of rows) {
    for (const register of ['eax', 'ebx', 'ecx', 'edx'] as const) {
      const mask = masks.get(key(row.leaf, row.index, register));
      if (mask !== undefined) row[register] = (row[register] & mask) >>> 0;
    }
  }
}

function withFixedLeaves(rows: readonly CpuidRow[], input: CpuidInput): CpuidRow[] {
  const baseline = input.model.base === 'baseline';
  const xsave = hasFlag(rows, 'xsave');
  // Sub-leaves that only describe what is not there (performance counters, PT, SGX, cache allocation, AMX).
  const dropped = new Set([0xa, 0xf, 0x10, 0x12, 0x14, 0x1c, 0x1d, 0x1e, 0x23, 0x24, 0x8000_000a]);
  const kept = rows.filter(
    (row) =>
      !dropped.has(row.leaf) &&
      !(row.leaf === 0xd && !xsave) &&
      row.leaf !== TIMING_LEAF &&
      !(baseline && row.leaf > BASELINE_LEAF_MAX && row.leaf < KVM_LEAF),
  );
  for (const row of kept) {
    if (row.leaf === 0 && baseline) row.eax = Math.min(row.eax, BASELINE_LEAF_MAX);
    // Turbo and thermal facts of the host are not the guest's; ARAT (bit 2) is: the LAPIC timer never stops.
    if (row.leaf === 6) Object.assign(row, { eax: 4, ebx: 0, ecx: 0, edx: 0 });
    if (row.leaf === KVM_LEAF) row.eax = TIMING_LEAF;
    if (row.leaf === KVM_LEAF + 1) row.eax = (row.eax & ~KVM_FEATURES_WITHHELD) >>> 0;
    if (row.leaf === 0x8000_0007) Object.assign(row, { eax: 0, ebx: 0, ecx: 0 });
    if (row.leaf === 1 && baseline) row.eax = baselineSignature(rows, row.eax);
  }
  kept.push({
    leaf: TIMING_LEAF,
    index: 0,
    flags: 0,
    eax: input.tscKhz,
    ebx: LAPIC_KHZ,
    ecx: 0,
    edx: 0,
  });
  return kept;
}

/** Family, model and stepping that do not betray the host: 6/15/11 for Intel, 15/6/1 for AMD and others. */
function baselineSignature(rows: readonly CpuidRow[], hostSignature: number): number {
  const vendor = rows.find((row) => row.leaf === 0)?.ebx;
  if (vendor === 0x756e_6547) return 0x0006fb;
  if (vendor === 0x6874_7541) return 0x000f61;
  return hostSignature;
}

/** Bits needed for ids 0..count-1. */
function idBits(count: number): number {
  return count <= 1 ? 0 : 32 - Math.clz32(count - 1);
}

/** One thread per core, all cores in one package. */
function withTopology(rows: readonly CpuidRow[], apicId: number, vcpus: number): CpuidRow[] {
  const result: CpuidRow[] = [];
  const bits = idBits(vcpus);
  const amd = rows.find((row) => row.leaf === 0)?.ebx === 0x6874_7541;
  for (const given of rows) {
    if (given.leaf === 0xb || given.leaf === 0x1f || given.leaf === 0x8000_001e) continue;
    const row = { ...given };
    if (row.leaf === 1) {
      const logical = vcpus > 1 ? Math.min(2 ** bits, 255) : 1;
      row.ebx = ((row.ebx & 0xff00) | (logical << 16) | ((apicId & 0xff) << 24)) >>> 0;
      row.edx = vcpus > 1 ? (row.edx | (1 << 28)) >>> 0 : (row.edx & ~(1 << 28)) >>> 0;
      // OSXSAVE follows CR4: KVM's business.
      row.ecx = (row.ecx & ~(1 << 27)) >>> 0;
    }
    if (row.leaf === 4 && (row.eax & 0x1f) !== 0) {
      const level = (row.eax >>> 5) & 7;
      const sharing = level >= 3 ? 2 ** bits - 1 : 0;
      const cores = Math.min(2 ** bits - 1, 63);
      row.eax = ((row.eax & 0x3fff) | (Math.min(sharing, 4095) << 14) | (cores << 26)) >>> 0;
    }
    if (row.leaf === 0x8000_0008) {
      row.ecx = amd && vcpus > 1 ? ((bits << 12) | (vcpus - 1)) >>> 0 : 0;
    }
    if (row.leaf === 0x8000_001d && (row.eax & 0x1f) !== 0) {
      const level = (row.eax >>> 5) & 7;
      row.eax = ((row.eax & 0x3fff) | ((level >= 3 ? vcpus - 1 : 0) << 14)) >>> 0;
    }
    if (row.leaf === 0x8000_0001 && amd) {
      row.ecx = vcpus > 1 ? (row.ecx | 2) >>> 0 : (row.ecx & ~2) >>> 0;
    }
    result.push(row);
  }
  const leafMax = rows.find((row) => row.leaf === 0)?.eax ?? 0;
  if (leafMax >= 0xb) {
    // Levels: threads of a core (type 1), cores of the package (type 2), end.
    const level = (index: number, eax: number, ebx: number, type: number): CpuidRow => ({
      leaf: 0xb,
      index,
      flags: 1,
      eax,
      ebx,
      ecx: (type << 8) | index,
      edx: apicId,
    });
    result.push(level(0, 0, 1, 1), level(1, bits, vcpus, 2), level(2, 0, 0, 0));
  }
  const extendedMax = rows.find((row) => row.leaf === 0x8000_0000)?.eax ?? 0;
  if (amd && extendedMax >= 0x8000_001e) {
    result.push({
      leaf: 0x8000_001e,
      index: 0,
      flags: 0,
      eax: apicId,
      ebx: apicId,
      ecx: 0,
      edx: 0,
    });
  }
  return result;
}
