/**
 * A machine's saved state as a container: a head that tells which machine it belongs to, KVM's state of VM and vCPUs, and
 * one section per device. Guest memory is not in it: files and peers carry memory their own way.
 */
import { VmmError } from '../base/error.ts';
import type { KvmState } from '../kvm/api.ts';
import { vcpuStateSchema, vmStateSchema } from '../kvm/state-schema.ts';
import { text, u8, u16, u53 } from '../snapshot/codec.ts';
import {
  decodeContainer,
  encodeContainer,
  type Section,
  SectionSet,
  sectionOf,
} from '../snapshot/container.ts';
import { schema } from '../snapshot/schema.ts';
import type { MachineConfig } from './config.ts';

interface Head {
  memoryBytes: number;
  cpus: number;
  cpu: string;
  /** Machine time at the capture. */
  nowNs: number;
  /** {@link PENDING}: what the guest had asked for and had not got yet. */
  pending: number;
  /** Exit status, where that is a debug exit. */
  pendingStatus: number;
}

/** A reset or an end that the guest has asked for: it travels with the state, because the asking is in it too. */
export type Pending =
  | { readonly kind: 'reset' | 'power-off' }
  | { readonly kind: 'debug-exit'; readonly status: number };

const PENDING = ['none', 'reset', 'power-off', 'debug-exit'] as const;

const headSchema = schema<Head>('machine', 2, {
  memoryBytes: u53,
  cpus: u16,
  cpu: text(1024),
  nowNs: u53,
  pending: u8,
  pendingStatus: u16,
});

/** Encodes the state of a paused machine. */
export function encodeMachineState(
  config: MachineConfig,
  nowNs: number,
  kvm: KvmState,
  devices: readonly Section[],
  pending?: Pending,
): Uint8Array {
  const { memoryBytes, cpus, cpu } = config;
  const head: Head = {
    memoryBytes,
    cpus,
    cpu,
    nowNs: Math.floor(nowNs),
    pending: PENDING.indexOf(pending?.kind ?? 'none'),
    pendingStatus: pending?.kind === 'debug-exit' ? pending.status & 0xffff : 0,
  };
  return encodeContainer([
    sectionOf(headSchema, '', head),
    sectionOf(vmStateSchema, '', kvm.vm),
    ...kvm.vcpus.map((state, i) => sectionOf(vcpuStateSchema, `vcpu${i}`, state)),
    ...devices,
  ]);
}

/** A decoded state whose device sections are still to be taken. */
export interface MachineState {
  readonly nowNs: number;
  readonly kvm: KvmState;
  readonly devices: SectionSet;
  readonly pending: Pending | undefined;
}

/**
 * Decodes a state and checks that it belongs to a machine like `config`.
 * @throws VmmError `STATE_CORRUPT`, `STATE_OTHER_MACHINE`
 */
export function decodeMachineState(config: MachineConfig, container: Uint8Array): MachineState {
  const sections = new SectionSet(decodeContainer(container));
  const head = sections.take(headSchema, '');
  for (const [key, option] of [
    ['memoryBytes', '--memory'],
    ['cpus', '--cpus'],
    ['cpu', '--cpu'],
  ] as const) {
    if (head[key] !== config[key]) {
      throw new VmmError(
        'STATE_OTHER_MACHINE',
        `the saved state is of a machine with ${option} ${head[key]}, this one has ${config[key]}`,
        { hint: 'Give the options that the guest was started with.' },
      );
    }
  }
  const vm = sections.take(vmStateSchema, '');
  const vcpus = Array.from({ length: config.cpus }, (_, i) =>
    sections.take(vcpuStateSchema, `vcpu${i}`),
  );
  const kind = PENDING[head.pending];
  if (kind === undefined) {
    throw new VmmError('STATE_CORRUPT', `the saved state has pending action ${head.pending}`);
  }
  const pending: Pending | undefined =
    kind === 'none'
      ? undefined
      : kind === 'debug-exit'
        ? { kind, status: head.pendingStatus }
        : { kind };
  return { nowNs: head.nowNs, kvm: { vm, vcpus }, devices: sections, pending };
}
