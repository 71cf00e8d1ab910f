/**
 * The common configuration structure of a virtio-pci function (VIRTIO 1.2, 4.1.4.3), as its driver sees it: features, vectors and
 * queues, of which one at a time is selected. The device's status and what follows from it are the function's (pci-function.ts).
 */
import { sizeMask } from '../base/bits.ts';
import type { AccessSize } from '../bus/io-bus.ts';
import type { VirtioTransportState } from './pci-state.ts';
import type { VirtQueue } from './queue.ts';
import { COMMON, type FeatureSet, featureSet, NO_VECTOR, STATUS } from './spec.ts';

const ADDRESS_HIGH_MASK = 0xf_ffff;

/** What writes lead to. */
export interface CommonOwner {
  /** The device status, as a driver reads it. */
  status(): number;
  writeStatus(value: number): void;
  /** The driver enables a queue that exists and is not enabled yet. */
  enableQueue(index: number): void;
  complain(why: string): void;
}

/** The part of the saved state that is here. */
export type CommonState = Omit<VirtioTransportState, 'status' | 'resetting' | 'isr'>;

/** See the module's head. */
export class CommonConfig {
  driverFeatures: FeatureSet = featureSet();
  configVector: number = NO_VECTOR;
  readonly queueVectors: Uint16Array;
  /** Counts changes of the device's own configuration; eight bits. */
  generation = 0;
  deviceFeatureSelect = 0;
  driverFeatureSelect = 0;
  queueSelect = 0;
  readonly #queues: readonly VirtQueue[];
  readonly #offered: FeatureSet;
  readonly #owner: CommonOwner;

  constructor(queues: readonly VirtQueue[], offered: FeatureSet, owner: CommonOwner) {
    this.#queues = queues;
    this.#offered = offered;
    this.#owner = owner;
    this.queueVectors = new Uint16Array(queues.length).fill(NO_VECTOR);
  }

  /** As at power-on, together with {@link clear}. */
  reset(): void {
    this.deviceFeatureSelect = 0;
    this.driverFeatureSelect = 0;
    this.queueSelect = 0;
    this.generation = 0;
  }

  /** What a driver's reset clears. */
  clear(): void {
    this.driverFeatures = featureSet();
    this.configVector = NO_VECTOR;
    this.queueVectors.fill(NO_VECTOR);
  }

  save(): CommonState {
    return {
      deviceFeatureSelect: this.deviceFeatureSelect,
      driverFeatureSelect: this.driverFeatureSelect,
      driverFeaturesLow: this.driverFeatures.low,
      driverFeaturesHigh: this.driverFeatures.high,
      configVector: this.configVector,
      configGeneration: this.generation,
      queueSelect: this.queueSelect,
      queueVectors: [...this.queueVectors],
    };
  }

  load(state: CommonState): void {
    this.deviceFeatureSelect = state.deviceFeatureSelect;
    this.driverFeatureSelect = state.driverFeatureSelect;
    this.driverFeatures = { low: state.driverFeaturesLow, high: state.driverFeaturesHigh };
    this.configVector = state.configVector;
    this.generation = state.configGeneration;
    this.queueSelect = state.queueSelect;
    this.queueVectors.set(state.queueVectors);
  }

  /** `vector` where the function has it, else none. */
  validVector(vector: number): number {
    return vector <= this.#queues.length ? vector : NO_VECTOR;
  }

  /** Reads inside the structure. */
  read(at: number, size: AccessSize): number {
    const aligned = at & ~3;
    const shifted = this.#word(aligned) >>> (8 * (at - aligned));
    return (shifted & sizeMask(size)) >>> 0;
  }

  /** The aligned dword of the common structure at `at`. */
  #word(at: number): number {
    const queue = this.#queues[this.queueSelect];
    switch (at) {
      case COMMON.deviceFeatureSelect:
        return this.deviceFeatureSelect;
      case COMMON.deviceFeature:
        return word(this.#offered, this.deviceFeatureSelect);
      case COMMON.driverFeatureSelect:
        return this.driverFeatureSelect;
      case COMMON.driverFeature:
        return word(this.driverFeatures, this.driverFeatureSelect);
      case COMMON.configVector:
        return this.configVector | (this.#queues.length << 16);
      case COMMON.status:
        return this.#owner.status() | (this.generation << 8) | (this.queueSelect << 16);
      case COMMON.queueSize: {
        // A queue that does not exist has size 0 (4.1.4.3).
        const vector = this.queueVectors[this.queueSelect] ?? NO_VECTOR;
        return (queue?.size ?? 0) | (vector << 16);
      }
      case COMMON.queueEnable:
        return (queue?.enabled ? 1 : 0) | (queue === undefined ? 0 : this.queueSelect << 16);
      case COMMON.queueDesc:
        return low(queue?.descAddress);
      case COMMON.queueDesc + 4:
        return high(queue?.descAddress);
      case COMMON.queueDriver:
        return low(queue?.availAddress);
      case COMMON.queueDriver + 4:
        return high(queue?.availAddress);
      case COMMON.queueDevice:
        return low(queue?.usedAddress);
      case COMMON.queueDevice + 4:
        return high(queue?.usedAddress);
      default:
        return 0;
    }
  }

  /** Writes inside the structure. */
  write(at: number, size: AccessSize, value: number): void {
    const width =
      at === COMMON.status ? 1 : at >= COMMON.configVector && at < COMMON.queueDesc ? 2 : 4;
    if (size !== width || at % width !== 0) {
      this.#owner.complain(`write of ${size} bytes to common configuration offset ${at}`);
      return;
    }
    switch (at) {
      case COMMON.deviceFeatureSelect:
        this.deviceFeatureSelect = value;
        break;
      case COMMON.driverFeatureSelect:
        this.driverFeatureSelect = value;
        break;
      case COMMON.driverFeature:
        this.#chooseFeatures(value);
        break;
      case COMMON.configVector:
        this.configVector = this.validVector(value);
        break;
      case COMMON.status:
        this.#owner.writeStatus(value);
        break;
      case COMMON.queueSelect:
        this.queueSelect = value;
        break;
      default:
        this.#queueWrite(at, value);
    }
  }

  #chooseFeatures(value: number): void {
    if ((this.#owner.status() & STATUS.featuresOk) !== 0) {
      this.#owner.complain('features after FEATURES_OK');
      return;
    }
    const { low: lower, high: upper } = this.driverFeatures;
    if (this.driverFeatureSelect === 0) this.driverFeatures = { low: value, high: upper };
    else if (this.driverFeatureSelect === 1) this.driverFeatures = { low: lower, high: value };
  }

  #queueWrite(at: number, value: number): void {
    const queue = this.#queues[this.queueSelect];
    if (queue === undefined) return;
    if (at === COMMON.queueVector) {
      this.queueVectors[this.queueSelect] = this.validVector(value);
      return;
    }
    if (queue.enabled) {
      this.#owner.complain(`queue ${this.queueSelect} changed while enabled`);
      return;
    }
    switch (at) {
      case COMMON.queueSize:
        if (value > 0 && value <= queue.maxSize && (value & (value - 1)) === 0) queue.size = value;
        else this.#owner.complain(`queue size ${value}`);
        break;
      case COMMON.queueEnable:
        if (value === 1) this.#owner.enableQueue(this.queueSelect);
        break;
      case COMMON.queueDesc:
      case COMMON.queueDesc + 4:
        queue.descAddress = half(queue.descAddress, at & 4, value);
        break;
      case COMMON.queueDriver:
      case COMMON.queueDriver + 4:
        queue.availAddress = half(queue.availAddress, at & 4, value);
        break;
      case COMMON.queueDevice:
      case COMMON.queueDevice + 4:
        queue.usedAddress = half(queue.usedAddress, at & 4, value);
        break;
      default:
    }
  }
}

function word(set: FeatureSet, select: number): number {
  return select === 0 ? set.low : select === 1 ? set.high : 0;
}

function low(address = 0): number {
  return address % 0x1_0000_0000;
}

function high(address = 0): number {
  return Math.floor(address / 0x1_0000_0000);
}

/** Replaces one half of an address; bits from 52 on are dropped, nothing lives there. */
function half(address: number, upper: number, value: number): number {
  return upper === 0
    ? high(address) * 0x1_0000_0000 + value
    : (value & ADDRESS_HIGH_MASK) * 0x1_0000_0000 + low(address);
}
