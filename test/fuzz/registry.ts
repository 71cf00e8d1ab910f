/**
 * Every fuzzer of the project by name. A new one is one entry here, and `npm run fuzz`, the fuzz part of `npm test` and
 * the unit tests run it.
 */
import { assert } from '../../src/base/assert.ts';
import { fuzzDecoder } from '../../src/ft/wire/fuzz.ts';
import { fuzzPageStream, VERDICTS } from '../../src/ft/wire/page-fuzz.ts';
import { nativeCodec, plainCodec } from '../support/page-codecs.ts';
import { type ControlPlant, fuzzControl } from './control.ts';
import type { Coverage } from './coverage.ts';
import { fuzzE1000 } from './e1000.ts';
import { fwCfg } from './fw-cfg.ts';
import { fuzzNbd, type NbdPlant } from './nbd.ts';
import { type CapturePlant, fuzzCapture, fuzzStream, type StreamPlant } from './net-peers.ts';
import { fuzzBootImages, fuzzOptions, fuzzSavedStates } from './operator-input.ts';
import { pci } from './pci.ts';
import * as platform from './platform.ts';
import { forgets, fuzzTwins, type Twin, type TwinSubject } from './twins.ts';
import { type FuzzedVirtio, fuzzVirtio } from './virtio.ts';
import { virtioPci } from './virtio-pci.ts';

/** One fuzzer. */
export interface Fuzzer {
  readonly name: string;
  /** Rounds of one run: well below a second. */
  readonly rounds: number;
  /** Places that a run of a few seconds gets to; one that does not has gone blind. */
  readonly deep: readonly string[];
  /** Mistakes that it finds when they are made on purpose. */
  readonly plants: readonly string[];
  /**
   * Runs `rounds` rounds from `seed`; throws when something does not hold. The same arguments give the same run.
   * @param plant one of {@link plants}
   */
  run(seed: number, rounds: number, seen: Coverage, plant?: string): void | Promise<void>;
}

/**
 * A fuzzer of a device by twins.ts.
 * @param fields of the saved state: forgetting one of them must be found
 * @param broken the same device with a mistake, by the mistake's name
 */
function twins<T extends Twin>(
  name: string,
  subject: TwinSubject<T>,
  deep: readonly string[],
  fields: readonly string[],
  broken: Readonly<Record<string, TwinSubject<T>>> = {},
  rounds = 2000,
): Fuzzer {
  return {
    name,
    rounds,
    deep: ['replaced', ...deep],
    plants: [...fields.map((field) => `forgets ${field}`), ...Object.keys(broken)],
    run(seed, rounds, seen, plant) {
      const field = plant?.startsWith('forgets ') ? plant.slice('forgets '.length) : undefined;
      const target = (plant !== undefined && broken[plant]) || subject;
      fuzzTwins(target, seed, rounds, seen, field === undefined ? undefined : forgets(field));
    },
  };
}

function virtio(kind: FuzzedVirtio): Fuzzer {
  return {
    name: `virtio-${kind}`,
    rounds: 1000,
    deep: ['used', 'interrupt', 'reset asked for', 'replaced'],
    plants: ['pci', 'transport', 'queues'].map((field) => `forgets ${field}`),
    run(seed, rounds, seen, plant) {
      const field = plant?.slice('forgets '.length);
      const { used, interrupts, resets, restores } = fuzzVirtio(kind, seed, rounds, field);
      seen.hit('used', used);
      seen.hit('interrupt', interrupts);
      seen.hit('reset asked for', resets);
      seen.hit('replaced', restores);
      seen.cases += rounds;
    },
  };
}

/** A fuzzer that only counts how many of its cases were good all the same. */
function counting(
  name: string,
  rounds: number,
  fuzz: (seed: number, rounds: number) => number | Promise<number>,
): Fuzzer {
  return {
    name,
    rounds,
    deep: ['accepted', 'refused'],
    plants: [],
    async run(seed, count, seen) {
      const accepted = await fuzz(seed, count);
      seen.hit('accepted', accepted);
      seen.hit('refused', Math.max(count - accepted, 0));
      seen.cases += count;
    },
  };
}

/** In the order in which they take turns. */
export const fuzzers: readonly Fuzzer[] = [
  counting('boot-images', 150, fuzzBootImages),
  counting('saved-states', 200, fuzzSavedStates),
  counting('options', 150, fuzzOptions),
  twins(
    'uart16550',
    platform.uart16550,
    ['iir c6', 'iir cc', 'iir c4', 'iir c2', 'iir c0', 'lsr 0', 'lsr 93', 'lsr 12', 'irq true'],
    ['received', 'transmitting', 'timeoutInNs', 'timedOut', 'msr', 'transmitEmptyPending'],
  ),
  twins(
    'rtc-cmos',
    platform.rtcCmos,
    ['update in progress', 'held', '12 hours', 'binary', 'flags f0', 'flags b0', 'irq true'],
    ['cmos', 'offsetSeconds', 'offsetUs', 'doneSecond', 'periodicAgeNs'],
  ),
  twins(
    'i8042',
    platform.i8042,
    ['A20 closed', 'reset line', 'self-test', 'status 55', 'status 51'],
    ['ram', 'outputPort', 'output', 'pending'],
  ),
  twins(
    'acpi-pm',
    platform.acpiPm32,
    ['off', 'status 101 sci true', 'status 1 sci true', 'timer high'],
    ['status', 'enable', 'timerNs'],
  ),
  twins(
    'acpi-pm-24',
    platform.acpiPm24,
    ['off', 'status 101 sci true', 'status 1 sci true', 'timer high'],
    ['control', 'timerNs'],
  ),
  twins(
    'reset-control',
    platform.resetControl,
    ['hard reset', 'soft reset', 'value 10'],
    ['value'],
  ),
  twins('debug-exit', platform.debugExit, ['exit 1', 'exit 255'], [], {
    'even status': platform.debugExitWithEvenStatus,
  }),
  twins('debug-console', platform.debugConsole, ['byte 0', 'byte 255'], [], {
    'throws at a full line': platform.debugConsoleThatThrows,
  }),
  twins(
    'fw-cfg',
    fwCfg,
    [
      'descriptor outside RAM',
      'descriptor overwritten',
      'read across ranges',
      'read refused',
      'long read',
      'write refused',
      'skip',
    ],
    ['key', 'offset', 'dmaHigh'],
    {},
    600,
  ),
  twins(
    'pci',
    pci,
    [
      ...['0.0', '0.2', '0.3', '0.4', '0.6', '1.5'].map((bar) => `${bar} mapped`),
      ...['above 4 GiB', 'two at one address', 'INTx', 'message', 'pending', 'attribute 2'],
      'vector table',
    ],
    ['configAddress', 'value', 'pci'],
    {},
    600,
  ),
  twins(
    'virtio-pci',
    virtioPci,
    [
      ...['running', 'doorbells', 'INTx', 'message', 'chains held', 'status f', 'status 4f'],
      ...['read through the window', 'written through the window', 'common 20/4'],
    ],
    ['pci', 'transport', 'queues', 'device'],
    {},
    600,
  ),
  {
    name: 'e1000',
    rounds: 1000,
    deep: ['sent', 'received', 'interrupt'],
    plants: ['forgets registers', 'forgets phy', 'forgets contexts', 'forgets packet'],
    run(seed, rounds, seen, plant) {
      const field = plant?.slice('forgets '.length);
      const { sent, received, interrupts } = fuzzE1000(seed, rounds, field);
      seen.hit('sent', sent);
      seen.hit('received', received);
      seen.hit('interrupt', interrupts);
      seen.cases += rounds;
    },
  },
  virtio('blk'),
  virtio('net'),
  virtio('rng'),
  {
    name: 'nbd',
    rounds: 20,
    deep: [
      ...['opened', 'refused NBD_CONNECT', 'refused NBD_REFUSED', 'another size', 'done', 'failed'],
      ...['damaged answer', 'hung up', 'error answer', 'another cookie', 'answered twice'],
      ...['not answered', 'connected again'],
    ],
    plants: ['wrong data'],
    run: (seed, rounds, seen, plant) => fuzzNbd(seed, rounds, seen, plant as NbdPlant),
  },
  {
    name: 'stream',
    rounds: 10,
    deep: [
      ...['frame', 'largest frame', 'short frame', 'absurd length', 'hung up', 'link down'],
      ...['takes no more', 'writable again'],
    ],
    plants: ['loses a frame', 'changes a byte'],
    run: (seed, rounds, seen, plant) => fuzzStream(seed, rounds, seen, plant as StreamPlant),
  },
  {
    name: 'pcap',
    rounds: 20,
    deep: ['some are sent', 'all are sent', 'some are received', 'all are received', 'full disk'],
    plants: ['misses an end'],
    run: (seed, rounds, seen, plant) => fuzzCapture(seed, rounds, seen, plant as CapturePlant),
  },
  {
    name: 'control',
    rounds: 20,
    deep: [
      ...['ok', 'NO', 'INTERNAL', 'CONTROL_REQUEST', 'CONTROL_COMMAND', 'line too long', 'hung up'],
      ...['stranger recognised', 'stranger refuses', 'stranger believed'],
    ],
    plants: ['forgets an answer'],
    run: (seed, rounds, seen, plant) => fuzzControl(seed, rounds, seen, plant as ControlPlant),
  },
  {
    name: 'wire',
    rounds: 500,
    deep: ['message', 'fault'],
    plants: [],
    run(seed, rounds, seen) {
      const { failure, messages, faults } = fuzzDecoder(seed, rounds);
      assert(failure === undefined, failure ?? '');
      seen.hit('message', messages);
      seen.hit('fault', faults);
      seen.cases += rounds;
    },
  },
  {
    name: 'page-stream',
    rounds: 200,
    deep: [
      ...['zero', 'same', 'delta', 'raw'].map((kind) => `record ${kind}`),
      ...VERDICTS.map((verdict) => `verdict ${verdict}`),
    ],
    plants: [],
    run(seed, rounds, seen) {
      // It takes several seeds from this one on.
      const report = fuzzPageStream(seed * 16, rounds, [plainCodec, nativeCodec()]);
      assert(report.failure === undefined, report.failure ?? '');
      for (const [kind, name] of ['zero', 'same', 'delta', 'raw'].entries()) {
        seen.hit(`record ${name}`, report.kinds[kind]);
      }
      for (const [verdict, name] of VERDICTS.entries()) {
        seen.hit(`verdict ${name}`, report.verdicts[verdict]);
      }
      seen.cases += rounds;
    },
  },
];
