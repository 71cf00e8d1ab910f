/** Options of replication that `run` and `standby` share, and what both derive from them. */
import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import type { Logger } from '../base/log.ts';
import type { LivenessConfig } from '../ft/core/liveness.ts';
import type { Arbiter } from '../ft/shell/arbiter.ts';
import { EtcdArbiter } from '../ft/shell/etcd-arbiter.ts';
import { LockArbiter } from '../ft/shell/lock-arbiter.ts';
import { TAP_BYTES_MAX } from '../ft/shell/outputs.ts';
import { CHUNK_BYTES } from '../ft/shell/page-sender.ts';
import type { Hello } from '../ft/wire/message.ts';
import { PAGES_AHEAD_SHARE } from '../ft/wire/page-stream.ts';
import { ARBITER, COMPRESSION, ON_PEER_LOSS, PROTOCOL, ROLE } from '../ft/wire/spec.ts';
import type { NativeIo } from '../kvm/native-io.ts';
import type { Machine } from '../machine/machine.ts';
import { cpuDigest } from '../machine/replicated-guest.ts';
import { parseEtcd } from './etcd-options.ts';
import { badOption } from './options.ts';

/** Checkpoints on their way at the same time. */
const EPOCHS_IN_FLIGHT = 4;
/** Beyond guest memory, what a transaction may carry: page heads, states, log. */
const TRANSACTION_SLACK = 256 * 2 ** 20;
/** Said where a guest is protected without one. */
export const NO_ARBITER =
  'without an arbiter, a broken link between the hosts looks like a dead host: whoever then orders a takeover must make sure that the other process is gone, or both run the guest';
/** How long until an arbiter that refused or did not answer is asked again. */
export const ARBITER_RETRY_NS = 25e6;

/** Heartbeats for a deadline of silence. */
export function livenessFor(deadlineNs: number): LivenessConfig {
  return { intervalNs: deadlineNs / 10, deadlineNs };
}

/** Opens what `--ft-arbiter` names; undefined for none. @throws VmmError */
export function openArbiter(io: NativeIo, log: Logger, value: string): Arbiter | undefined {
  if (value === 'none') return undefined;
  if (value.startsWith('lock:') && value.length > 5) return new LockArbiter(io, value.slice(5));
  if (value.startsWith('etcd:')) {
    const nowNs = (): number => io.boottimeNs();
    return new EtcdArbiter(parseEtcd(value), { nowNs, log, token: randomName(16) });
  }
  throw badOption('--ft-arbiter', value, 'is neither none nor lock:PATH nor etcd:URL[,URL...]');
}

/** A random name of `bytes` bytes, in hexadecimal. */
export function randomName(bytes: number): string {
  return randomBytes(bytes).toString('hex');
}

/** What a HELLO says that depends on neither side's state. */
export interface HelloParts {
  readonly machine: Machine;
  readonly role: keyof typeof ROLE;
  readonly onPeerLoss: keyof typeof ON_PEER_LOSS;
  readonly arbiter: Arbiter | undefined;
  readonly vm: string;
  readonly generation: number;
  /** SHA-256 of the machine's description. */
  readonly machineDigest: string;
}

function arbiterKind(arbiter: Arbiter | undefined): (typeof ARBITER)[keyof typeof ARBITER] {
  if (arbiter === undefined) return ARBITER.none;
  return arbiter.lease === undefined ? ARBITER.lock : ARBITER.lease;
}

/** The opening message of one end. */
export function helloOf(parts: HelloParts): Hello {
  const { machine, role, onPeerLoss, arbiter, vm, generation, machineDigest } = parts;
  return {
    protocolMin: PROTOCOL.min,
    protocolMax: PROTOCOL.max,
    role: ROLE[role],
    onPeerLoss: ON_PEER_LOSS[onPeerLoss],
    arbiter: arbiterKind(arbiter),
    vm,
    instance: randomName(8),
    generation,
    committedId: 0,
    complete: false,
    ended: false,
    machineDigest,
    cpuDigest: cpuDigest(machine),
    pageBytes: 4096,
    tscKhz: machine.vm.getVcpuState(0).tscKhz,
    compression: COMPRESSION.zero | COMPRESSION.delta,
    limits: {
      frameBytesMax: CHUNK_BYTES,
      transactionBytesMax: machine.config.memoryBytes * (1 + PAGES_AHEAD_SHARE) + TRANSACTION_SLACK,
      epochsInFlightMax: EPOCHS_IN_FLIGHT,
      tapBytesMax: TAP_BYTES_MAX,
    },
    host: hostname().slice(0, 60),
  };
}
