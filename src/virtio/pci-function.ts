/**
 * The modern virtio-pci transport (VIRTIO 1.2, 4.1): configuration structures in BAR 0, MSI-X in BAR 1, a
 * doorbell per queue. It negotiates features, drives the device's life, raises interrupts, and is the `Device`
 * that the board knows, with the state of function, transport, queues and device in one. What a driver reads and writes in
 * the common configuration is in common-config.ts.
 *
 * Left out: the legacy interface (SeaBIOS, iPXE and Linux use the modern one), queue reset, notification data.
 */
import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { GuestComplaints, type Logger } from '../base/log.ts';
import type { Device } from '../bus/device.ts';
import type { DoorbellRegistrar } from '../bus/doorbell.ts';
import type { AccessSize, IoRegion } from '../bus/io-bus.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import { PciFunction, pciFunctionCodec } from '../pci/function.ts';
import { PCI_COMMAND, PCI_REG } from '../pci/spec.ts';
import { array } from '../snapshot/codec.ts';
import { requireState, type Schema, schema } from '../snapshot/schema.ts';
import { CommonConfig } from './common-config.ts';
import type { VirtioDevice, VirtioTransport } from './device.ts';
import { MAX_QUEUES, transportCodec, type VirtioPciState } from './pci-state.ts';
import { AccessWindow, NOTIFY_MULTIPLIER, PLACE, virtioCapabilities } from './pci-window.ts';
import { VirtQueue, virtQueueCodec } from './queue.ts';
import { QueueDoorbells } from './queue-doorbells.ts';
import {
  COMMON,
  FEATURE,
  type FeatureSet,
  featureSet,
  hasFeature,
  ISR,
  NO_VECTOR,
  STATUS,
  VIRTIO_PCI_DEVICE_BASE,
  VIRTIO_PCI_VENDOR,
} from './spec.ts';

/** What a {@link VirtioPciFunction} is made of. */
export interface VirtioPciOptions<S> {
  readonly device: VirtioDevice<S>;
  readonly memory: GuestMemory;
  readonly clock: Clock;
  readonly log: Logger;
  /** Without one, doorbells are ordinary MMIO writes. */
  readonly doorbells?: DoorbellRegistrar;
  /** Option ROM for network boot. */
  readonly rom?: Uint8Array;
}

export class VirtioPciFunction<S> implements Device<VirtioPciState<S>>, VirtioTransport {
  readonly id: string;
  readonly schema: Schema<VirtioPciState<S>>;
  /** To be added to the bus. */
  readonly pci: PciFunction;
  readonly queues: readonly VirtQueue[];
  readonly #device: VirtioDevice<S>;
  readonly #complaints: GuestComplaints;
  readonly #offered: FeatureSet;
  readonly #bar: IoRegion;
  readonly #window: AccessWindow;
  readonly #rings: QueueDoorbells;
  readonly #common: CommonConfig;
  #barBase: number | undefined;
  #features: FeatureSet = featureSet();
  #status = 0;
  #resetting = false;
  #isr = 0;
  #paused = true;
  #busMaster = false;

  constructor(options: VirtioPciOptions<S>) {
    const { device, memory, clock, log, doorbells, rom } = options;
    this.id = device.id;
    this.#device = device;
    this.#complaints = new GuestComplaints(log, clock, device.id);
    const ring = featureSet(FEATURE.indirect, FEATURE.eventIdx, FEATURE.version1);
    this.#offered = {
      low: (device.features.low | ring.low) >>> 0,
      high: (device.features.high | ring.high) >>> 0,
    };
    assert(device.queueSizes.length <= MAX_QUEUES, 'a device has at most 64 queues');
    this.queues = device.queueSizes.map(
      (size, index) => new VirtQueue(memory, size, (why) => this.fail(`queue ${index}: ${why}`)),
    );
    this.#rings = new QueueDoorbells(this.queues, doorbells, {
      ring: (index) => this.#notify(index),
      refused: (why) => this.complain(why),
    });
    this.#common = new CommonConfig(this.queues, this.#offered, {
      status: () => this.#status,
      writeStatus: (value) => this.#writeStatus(value),
      enableQueue: (index) => this.#enableQueue(index),
      complain: (why) => this.complain(why),
    });
    this.#bar = {
      name: device.id,
      read: (offset, size) => this.#read(offset, size),
      write: (offset, size, value) => this.#write(offset, size, value),
    };
    this.pci = new PciFunction({
      name: device.id,
      vendorId: VIRTIO_PCI_VENDOR,
      deviceId: VIRTIO_PCI_DEVICE_BASE + device.type,
      revision: 1,
      classCode: device.classCode,
      subsystemVendorId: VIRTIO_PCI_VENDOR,
      subsystemId: 0x1100,
      interruptPin: 1,
      bars: [
        {
          index: 0,
          kind: 'mem32',
          sizeBytes: PLACE.bytes,
          region: this.#bar,
          moved: (base) => this.#moved(base),
        },
      ],
      msix: { vectors: this.queues.length + 1, bar: 1 },
      capabilities: virtioCapabilities(this.queues.length, device.config.length),
      ...(rom === undefined ? {} : { rom }),
    });
    this.#window = new AccessWindow(this.pci, this.#bar);
    this.pci.hooks = {
      configRead: (offset, size) => this.#window.read(offset, size),
      configWritten: (offset, size) => this.#configWritten(offset, size),
    };
    this.schema = schema<VirtioPciState<S>>(device.kind, device.version, {
      pci: pciFunctionCodec,
      transport: transportCodec,
      queues: array(virtQueueCodec, MAX_QUEUES),
      device: device.codec,
    });
    device.attach(this);
  }

  // What the device asks of its transport.

  get features(): FeatureSet {
    return this.#features;
  }

  get running(): boolean {
    const live = (this.#status & (STATUS.driverOk | STATUS.needsReset)) === STATUS.driverOk;
    return live && !this.#resetting && !this.#paused && this.pci.busMaster;
  }

  publish(index: number): void {
    if (this.queues[index]!.publish())
      this.#interrupt(this.#common.queueVectors[index]!, ISR.queue);
  }

  configChanged(): void {
    this.#common.generation = (this.#common.generation + 1) & 0xff;
    if ((this.#status & STATUS.driverOk) !== 0)
      this.#interrupt(this.#common.configVector, ISR.config);
  }

  fail(why: string): void {
    this.#complaints.warn(`${why}; the device needs a reset`);
    if ((this.#status & STATUS.needsReset) !== 0 || this.#status === 0) return;
    this.#status |= STATUS.needsReset;
    if ((this.#status & STATUS.driverOk) !== 0)
      this.#interrupt(this.#common.configVector, ISR.config);
  }

  complain(why: string): void {
    this.#complaints.warn(why);
  }

  stopped(): void {
    if (!this.#resetting) return;
    this.#resetting = false;
    this.#status = 0;
  }

  // What the board asks of the device.

  /** Looks at every queue as if all doorbells had rung: after a restore, or when in doubt. */
  kick(): void {
    for (let i = 0; i < this.queues.length; i++) this.#notify(i);
  }

  reset(): void {
    this.#rings.drop();
    this.#clear();
    this.#status = 0;
    this.#resetting = false;
    this.#common.reset();
    this.pci.reset();
    this.#busMaster = false;
    this.#device.reset();
  }

  pause(): void {
    if (this.#paused) return;
    this.#paused = true;
    this.#device.pause();
  }

  resume(): void {
    if (!this.#paused) return;
    this.#paused = false;
    if (this.#resetting && this.#device.stop()) this.stopped();
    this.#device.resume();
    this.pci.setIntx(this.#isr !== 0);
    this.kick();
  }

  save(): VirtioPciState<S> {
    assert(this.#paused, 'state is taken while paused');
    return {
      pci: this.pci.save(),
      transport: {
        status: this.#status,
        resetting: this.#resetting,
        ...this.#common.save(),
        isr: this.#isr,
      },
      queues: this.queues.map((queue) => queue.save()),
      device: this.#device.save(),
    };
  }

  load(state: VirtioPciState<S>): void {
    assert(this.#paused, 'state is loaded while paused');
    this.check(state);
    const { transport } = state;
    this.#rings.drop();
    this.#status = transport.status;
    this.#resetting = transport.resetting;
    this.#common.load(transport);
    this.#features = featureSet();
    if ((transport.status & STATUS.featuresOk) !== 0 && !transport.resetting) {
      this.#adoptFeatures();
    }
    this.#isr = transport.isr;
    for (let i = 0; i < this.queues.length; i++) this.queues[i]!.load(state.queues[i]!);
    this.#device.load(state.device);
    this.pci.load(state.pci);
    this.#busMaster = this.pci.busMaster;
    this.#placeDoorbells();
  }

  check({ pci, transport, queues, device }: VirtioPciState<S>): void {
    this.pci.check(pci);
    requireState(queues.length === this.queues.length, 'number of queues');
    for (let i = 0; i < queues.length; i++) this.queues[i]!.check(queues[i]!);
    const { status, isr, queueVectors, configVector } = transport;
    requireState(queueVectors.length === queues.length, 'a vector per queue');
    for (const vector of [...queueVectors, configVector]) {
      requireState(this.#common.validVector(vector) === vector, `vector ${vector}`);
    }
    requireState(isr <= (ISR.queue | ISR.config) && pci.intx === (isr !== 0), 'ISR and INTx agree');
    requireState(!transport.resetting || status !== 0, 'a device at rest is not being reset');
    const chosen = { low: transport.driverFeaturesLow, high: transport.driverFeaturesHigh };
    const agreed = (status & STATUS.featuresOk) !== 0;
    requireState(!agreed || transport.resetting || this.#acceptable(chosen), 'agreed features');
    requireState(agreed || (status & STATUS.driverOk) === 0, 'DRIVER_OK follows FEATURES_OK');
    const busy = queues.some((queue) => queue.outstanding.length > 0);
    requireState(!busy || (status & STATUS.driverOk) !== 0, 'only a started device has requests');
    this.#device.check(device);
  }

  // Interrupts.

  #interrupt(vector: number, cause: number): void {
    const { msix } = this.pci;
    if (msix?.enabled === true) {
      if (vector !== NO_VECTOR && this.pci.busMaster) msix.trigger(vector);
      return;
    }
    this.#isr |= cause;
    this.pci.setIntx(true);
  }

  // Doorbells.

  #notify(index: number): void {
    const queue = this.queues[index];
    if (queue === undefined) return;
    if (this.running && queue.enabled) this.#device.notify(index);
  }

  #moved(base: number | undefined): void {
    this.#barBase = base;
    this.#rings.drop();
    this.#placeDoorbells();
  }

  #placeDoorbells(): void {
    if (this.#barBase === undefined || (this.#status & STATUS.driverOk) === 0) return;
    if (this.#resetting) return;
    this.#rings.place(this.#barBase + PLACE.notify);
  }

  // Device status and features.

  #writeStatus(value: number): void {
    if (this.#resetting) return;
    if (value === 0) {
      this.#driverReset();
      return;
    }
    const set = value & ~this.#status;
    this.#status |= value & ~(STATUS.featuresOk | STATUS.driverOk | STATUS.needsReset);
    if ((set & STATUS.featuresOk) !== 0) {
      if (this.#acceptable(this.#common.driverFeatures)) {
        this.#status |= STATUS.featuresOk;
        this.#adoptFeatures();
      } else {
        this.complain('driver chose features that do not go together; FEATURES_OK stays off');
      }
    }
    if ((set & STATUS.driverOk) !== 0) {
      if ((this.#status & STATUS.featuresOk) === 0) {
        this.complain('DRIVER_OK without FEATURES_OK');
        return;
      }
      this.#status |= STATUS.driverOk;
      this.#device.start();
      this.#placeDoorbells();
      this.kick();
    }
  }

  #driverReset(): void {
    if (this.#status === 0) return;
    this.#rings.drop();
    this.#clear();
    // The driver waits until it reads 0 (4.1.4.3.2): that is when no buffer of its can be touched any more.
    if (this.#device.stop()) this.#status = 0;
    else this.#resetting = true;
  }

  /** What both kinds of reset do. */
  #clear(): void {
    for (const queue of this.queues) queue.reset();
    this.#features = featureSet();
    this.#common.clear();
    this.#isr = 0;
    this.pci.setIntx(false);
  }

  #acceptable(chosen: FeatureSet): boolean {
    const known =
      (chosen.low & ~this.#offered.low) === 0 && (chosen.high & ~this.#offered.high) === 0;
    if (!known || !hasFeature(chosen, FEATURE.version1)) return false;
    return this.#device.accepts?.(chosen) ?? true;
  }

  #adoptFeatures(): void {
    this.#features = this.#common.driverFeatures;
    const eventIdx = hasFeature(this.#features, FEATURE.eventIdx);
    const indirect = hasFeature(this.#features, FEATURE.indirect);
    for (const queue of this.queues) queue.setFeatures(eventIdx, indirect);
  }

  // BAR 0.

  #read(offset: number, size: AccessSize): number {
    const at = offset & 0xfff;
    switch (offset - at) {
      case PLACE.common:
        return at + size <= COMMON.bytes ? this.#common.read(at, size) : 0;
      case PLACE.isr:
        return at === 0 ? this.#readIsr() : 0;
      case PLACE.device: {
        const { config } = this.#device;
        let value = 0;
        for (let i = 0; i < size; i++) value |= (config[at + i] ?? 0) << (8 * i);
        return value >>> 0;
      }
      default:
        return 0;
    }
  }

  #write(offset: number, size: AccessSize, value: number): void {
    const at = offset & 0xfff;
    switch (offset - at) {
      case PLACE.common:
        if (at + size <= COMMON.bytes && !this.#resetting) this.#common.write(at, size, value);
        break;
      case PLACE.device:
        if (at + size <= this.#device.config.length) this.#device.configWrite?.(at, size, value);
        break;
      case PLACE.notify:
        this.#notify(Math.floor(at / NOTIFY_MULTIPLIER));
        break;
      default:
    }
  }

  /** Reading acknowledges (VIRTIO 1.2, 4.1.4.5). */
  #readIsr(): number {
    const isr = this.#isr;
    this.#isr = 0;
    this.pci.setIntx(false);
    return isr;
  }

  #enableQueue(index: number): void {
    if ((this.#status & STATUS.featuresOk) === 0) {
      this.complain(`queue ${index} enabled before FEATURES_OK`);
      return;
    }
    const wrong = this.queues[index]!.enable();
    if (wrong !== undefined) {
      this.fail(`queue ${index}: ${wrong}`);
      return;
    }
    this.#placeDoorbells();
    // A driver may have filled the ring before it enabled it.
    this.#notify(index);
  }

  // Configuration space.

  #configWritten(offset: number, size: AccessSize): void {
    if (offset < PCI_REG.status) {
      const now = (this.pci.command & PCI_COMMAND.busMaster) !== 0;
      const risen = now && !this.#busMaster;
      this.#busMaster = now;
      if (risen) this.kick();
    }
    this.#window.written(offset, size);
  }
}
