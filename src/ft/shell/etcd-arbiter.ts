/**
 * An arbiter in an etcd cluster. What is decided is decided in ft/core/lease-arbiter.ts; here its calls go to the cluster, and its
 * lease to whoever lets outputs out. Two keys belong to a guest: NAME/record and NAME/owner, JSON that a person can read with
 * `etcdctl get --prefix NAME/`.
 */
import { messageOf, VmmError } from '../../base/error.ts';
import type { Logger } from '../../base/log.ts';
import type { ArbiterRequest } from '../core/failover.ts';
import {
  type GuestRecord,
  LeaseArbiter,
  type LeaseEffect,
  type OwnerRecord,
  type StoreState,
  type StoreWrite,
} from '../core/lease-arbiter.ts';
import { type Arbiter, ArbiterTrouble, type ArbiterVerdict } from './arbiter.ts';
import { type EtcdAccess, EtcdClient, type EtcdValue } from './etcd-client.ts';
import { Lease } from './lease.ts';

/** Where the guest's keys are. */
export interface EtcdArbiterOptions extends Omit<EtcdAccess, 'attemptMs'> {
  /** The guest's name in the cluster; its keys lie below. */
  readonly name: string;
  readonly leaseMs: number;
}

/** What it is made with. */
export interface EtcdArbiterParts {
  /** CLOCK_BOOTTIME. */
  readonly nowNs: () => number;
  /** Names this process. */
  readonly token: string;
  readonly log: Logger;
}

/** Share of the lease by which outputs stop early, and from one beat to the next. */
const MARGIN = 1 / 5;
const BEAT = 1 / 6;
/** After a failure the next try comes soon: the lease runs. */
const RETRY = 1 / 20;
/** How long one member may take, at most. */
const ATTEMPT_MS_MAX = 1000;
/** How long giving the guest back may take at the end. */
const RELEASE_MS = 500;
/** How long a start waits beyond the lease of a run that may be dead. */
const BEGIN_EXTRA_MS = 3000;
const VERSION = 1;
const LEASE_MS_MAX = 600_000;

/** See the module's head. */
export class EtcdArbiter implements Arbiter {
  readonly name: string;
  readonly lease: Lease;
  readonly #o: EtcdArbiterOptions;
  readonly #parts: EtcdArbiterParts;
  readonly #client: EtcdClient;
  readonly #machine: LeaseArbiter;
  readonly #keys: readonly [record: string, owner: string];
  #timer: NodeJS.Timeout | undefined;
  #ticket = 0;
  #answered: ((verdict: ArbiterVerdict) => void) | undefined;
  #began: ((generation: number) => void) | undefined;
  #released: (() => void) | undefined;
  readonly #told: ArbiterTrouble;
  #trouble = '';
  #closed = false;

  constructor(options: EtcdArbiterOptions, parts: EtcdArbiterParts) {
    this.#o = options;
    this.#parts = parts;
    this.name = `etcd ${options.endpoints.join(',')} ${options.name}`;
    this.#keys = [`${options.name}/record`, `${options.name}/owner`];
    const { leaseMs } = options;
    this.#client = new EtcdClient({
      ...options,
      attemptMs: Math.min(ATTEMPT_MS_MAX, Math.ceil(leaseMs / 5)),
    });
    const leaseNs = leaseMs * 1e6;
    this.#machine = new LeaseArbiter({
      token: parts.token,
      leaseNs,
      marginNs: leaseNs * MARGIN,
      beatNs: leaseNs * BEAT,
      retryNs: leaseNs * RETRY,
    });
    this.lease = new Lease(parts.nowNs);
    this.#told = new ArbiterTrouble(parts.log);
  }

  async begin(): Promise<number> {
    const { name, leaseMs } = this.#o;
    const began = new Promise<number>((resolve) => {
      this.#began = resolve;
    });
    const limitMs = leaseMs * 1.25 + BEGIN_EXTRA_MS;
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<undefined>((resolve) => {
      timer = setTimeout(() => resolve(undefined), limitMs);
    });
    this.#machine.begin(this.#parts.nowNs());
    this.#run();
    const generation = await Promise.race([began, late]);
    clearTimeout(timer);
    this.#began = undefined;
    if (generation !== undefined) return generation;
    if (/runs this guest/.test(this.#trouble)) {
      throw new VmmError('ARBITER_TAKEN', `the guest '${name}' is running already`, {
        hint: 'Another process holds its key in etcd. End that one, or give this guest a name of its own: etcd:URL/NAME.',
      });
    }
    throw new VmmError('ARBITER_ETCD', `the etcd cluster cannot be asked: ${this.#trouble}`, {
      hint: 'Check the addresses, certificates and user of --ft-arbiter, and that most members run.',
    });
  }

  request(request: ArbiterRequest): Promise<ArbiterVerdict> {
    return new Promise<ArbiterVerdict>((resolve) => {
      this.#answered = resolve;
      this.#machine.request(++this.#ticket, request, this.#parts.nowNs());
      this.#run();
    });
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    const released = new Promise<void>((resolve) => {
      this.#released = resolve;
      setTimeout(resolve, RELEASE_MS).unref();
    });
    this.#machine.release(this.#parts.nowNs());
    this.#run();
    await released;
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#client.close();
  }

  #run(): void {
    const { out } = this.#machine;
    for (let e = out.shift(); e !== undefined; e = out.shift()) this.#perform(e);
    clearTimeout(this.#timer);
    const { nextNs } = this.#machine;
    if (this.#closed || nextNs === Number.POSITIVE_INFINITY) return;
    const waitMs = Math.max(0, (nextNs - this.#parts.nowNs()) / 1e6);
    this.#timer = setTimeout(() => {
      this.#machine.tick(this.#parts.nowNs());
      this.#run();
    }, waitMs);
  }

  #perform(e: LeaseEffect): void {
    switch (e.type) {
      case 'read':
        this.#carryOut(e.call, async () => {
          const state = stateOf(await this.#client.read(this.#keys));
          this.#machine.state(e.call, state, this.#parts.nowNs());
        });
        break;
      case 'write':
        this.#carryOut(e.call, () => this.#write(e.call, e.write));
        break;
      case 'answer': {
        // The ticket of this side is nobody else's.
        const { result, generation, sentence } = e.answer;
        this.#answered?.({ result, generation, sentence });
        this.#answered = undefined;
        break;
      }
      case 'began':
        this.#began?.(e.generation);
        break;
      case 'lease':
        this.lease.set(e.untilNs);
        break;
      case 'superseded':
        this.lease.superseded(e.generation);
        break;
      case 'released':
        this.#released?.();
        break;
      case 'trouble':
        this.#say(e.sentence);
        break;
    }
  }

  #carryOut(call: number, run: () => Promise<void>): void {
    run()
      .catch((error: unknown) => {
        this.#machine.failed(call, messageOf(error), this.#parts.nowNs());
      })
      .finally(() => {
        if (!this.#closed) this.#run();
      });
  }

  async #write(call: number, write: StoreWrite): Promise<void> {
    const [record, owner] = this.#keys;
    const outcome = await this.#client.swap([
      {
        key: record,
        revision: write.recordRevision,
        value: write.record && JSON.stringify({ version: VERSION, ...write.record }),
      },
      {
        key: owner,
        revision: write.ownerRevision,
        value: write.owner === undefined ? null : ownerText(write.owner),
      },
    ]);
    const now = this.#parts.nowNs();
    if (outcome.done) this.#machine.written(call, outcome.revision, now);
    else this.#machine.state(call, stateOf(outcome.found), now);
  }

  #say(sentence: string): void {
    if (sentence === '' && this.#told.told) this.#parts.log.info('arbiter: etcd answers again');
    this.#told.tell(sentence);
    this.#trouble = sentence;
  }
}

function ownerText({ token, beat, leaseNs }: OwnerRecord): string {
  return JSON.stringify({ version: VERSION, token, beat, leaseMs: leaseNs / 1e6 });
}

/** Both keys, checked. @throws Error where they hold something else */
function stateOf(found: readonly (EtcdValue | undefined)[]): StoreState {
  const [record, owner] = found;
  return {
    recordRevision: record?.revision ?? 0,
    record: record && recordOf(record.value),
    ownerRevision: owner?.revision ?? 0,
    owner: owner && ownerOf(owner.value),
  };
}

function fieldsOf(text: string): Readonly<Record<string, unknown>> {
  let fields: unknown;
  try {
    fields = JSON.parse(text);
  } catch {
    fields = undefined;
  }
  if (typeof fields !== 'object' || fields === null || !('version' in fields)) {
    throw new Error('the key of the guest in etcd holds something else');
  }
  if (fields.version !== VERSION) {
    throw new Error('the key of the guest in etcd was written by another version of tsvmm');
  }
  return fields as Readonly<Record<string, unknown>>;
}

function recordOf(text: string): GuestRecord {
  const { generation, inSync, handed, by } = fieldsOf(text);
  const sound =
    Number.isSafeInteger(generation) &&
    (generation as number) > 0 &&
    typeof inSync === 'string' &&
    typeof handed === 'boolean' &&
    typeof by === 'string';
  if (!sound) throw new Error('the record of the guest in etcd is damaged');
  return { generation: generation as number, inSync, handed, by };
}

function ownerOf(text: string): OwnerRecord {
  const { token, beat, leaseMs } = fieldsOf(text);
  const sound =
    typeof token === 'string' &&
    token !== '' &&
    Number.isSafeInteger(beat) &&
    typeof leaseMs === 'number' &&
    leaseMs > 0 &&
    leaseMs <= LEASE_MS_MAX;
  if (!sound) throw new Error('the owner key of the guest in etcd is damaged');
  return { token, beat: beat as number, leaseNs: leaseMs * 1e6 };
}
