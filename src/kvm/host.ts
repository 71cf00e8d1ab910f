/** KvmHost over the native addon: probing, and VMs with CPUID and interrupt routes in place. */
import { assert } from '../base/assert.ts';
import { VmmError } from '../base/error.ts';
import type {
  KvmCapabilities,
  KvmHost,
  KvmMemoryMap,
  KvmVm,
  LazySkip,
  SkipPoint,
  VmOptions,
} from './api.ts';
import { buildCpuid, parseCpuModel } from './cpuid.ts';
import { guarded } from './errors.ts';
import { MemoryMapHandle } from './memory-map.ts';
import { loadNativeKvm, type NativeKvm } from './native.ts';
import { readableMsrs } from './vcpu-state.ts';
import { KvmVmHandle } from './vm.ts';

const QUIRK_OUT_7E_INC_RIP = 8;
const TSS_ADDRESS = 0xfffb_d000;
const DEFAULT_SPIN_US = 200;

/** The host's KVM. Nothing is opened before the first call of a method. */
export function openKvmHost(): KvmHost {
  return new NativeKvmHost();
}

class NativeKvmHost implements KvmHost {
  #native: NativeKvm | undefined;
  #capabilities: KvmCapabilities | undefined;
  #msrs: Uint32Array | undefined;

  get #kvm(): NativeKvm {
    this.#native ??= loadNativeKvm();
    return this.#native;
  }

  probe(): KvmCapabilities {
    this.#capabilities ??= guarded(() => probe(this.#kvm));
    return this.#capabilities;
  }

  createMemoryMap(): KvmMemoryMap {
    return new MemoryMapHandle(new this.#kvm.MemoryMap());
  }

  createVm(options: VmOptions): KvmVm {
    const capabilities = this.probe();
    const { vcpus } = options;
    assert(Number.isInteger(vcpus) && vcpus >= 1, 'a VM has at least one vCPU');
    if (vcpus > capabilities.vcpusMax) {
      throw new VmmError('KVM_VCPUS', `${vcpus} vCPUs are more than this host allows`, {
        hint: `Use at most ${capabilities.vcpusMax}.`,
      });
    }
    for (const [ok, what] of [
      [capabilities.hasIrqchip, 'in-kernel interrupt controllers'],
      [capabilities.hasImmediateExit, 'immediate exit'],
      [capabilities.hasXsave, 'XSAVE state'],
    ] as const) {
      if (!ok) throw new VmmError('KVM_TOO_OLD', `this kernel's KVM has no ${what}`);
    }
    const model = parseCpuModel(options.cpu ?? 'host');
    const kvm = this.#kvm;
    const pit = options.pit ?? true;
    const handlers = new Map<number, () => void>();
    return guarded(() => {
      const memory = new MemoryMapHandle(new kvm.MemoryMap());
      const vm = new kvm.KvmVm(
        memory.native,
        vcpus,
        pit,
        options.tssAddress ?? TSS_ADDRESS,
        (id) => {
          handlers.get(id)?.();
        },
      );
      try {
        const tables = buildCpuid({
          supported: kvm.kvmSupportedCpuid(),
          model,
          vcpus,
          tscKhz: vm.tscKhz(0),
          hasTscDeadline: capabilities.hasTscDeadline,
        });
        for (const [i, table] of tables.entries()) vm.setCpuid(i, table);
        this.#msrs ??= kvm.kvmMsrIndexList();
        const handle = new KvmVmHandle({
          native: vm,
          memory,
          vcpus,
          pit,
          msrs: readableMsrs(vm, 0, this.#msrs),
          lazySkip: () => capabilities.lazySkip,
          doorbells: handlers,
          hostTsc: () => kvm.kvmHostTsc(),
        });
        handle.setGsiRoutes(undefined);
        handle.setSpin({
          vcpuMaxUs: options.spin?.vcpuMaxUs ?? DEFAULT_SPIN_US,
          loopMaxUs: options.spin?.loopMaxUs ?? DEFAULT_SPIN_US,
        });
        return handle;
      } catch (error) {
        vm.destroy();
        throw error;
      }
    });
  }
}

function probe(kvm: NativeKvm): KvmCapabilities {
  const found = kvm.kvmProbeCapabilities();
  if (found.apiVersion !== 12) {
    throw new VmmError('KVM_TOO_OLD', `KVM speaks API version ${found.apiVersion}, not 12`);
  }
  let lazySkip: LazySkip | undefined;
  return {
    apiVersion: found.apiVersion,
    // Ids are 8 bits wide in the tables that guests read.
    vcpusMax: Math.min(found.vcpusMax, 255),
    memorySlotsMax: found.memorySlotsMax,
    hasReadonlyMemory: found.readonlyMemory > 0,
    hasImmediateExit: found.immediateExit > 0,
    hasIrqchip: found.irqchip > 0,
    hasPit2: found.pit2 > 0,
    hasIoeventfd: found.ioeventfd > 0,
    hasIoeventfdAnyLength: found.ioeventfdAnyLength > 0,
    hasIrqfd: found.irqfd > 0,
    hasSignalMsi: found.signalMsi > 0,
    hasCoalescedMmio: found.coalescedMmio > 0,
    hasCoalescedPio: found.coalescedPio > 0,
    hasTscControl: found.tscControl > 0,
    hasTscDeadline: found.tscDeadline > 0,
    hasVcpuTscOffset: found.vcpuAttributes > 0,
    hasAdjustClock: found.adjustClock > 0,
    hasXsave: found.xsave > 0,
    xsaveBytes: Math.max(found.xsave2Bytes, 4096),
    hasQuirkOut7eDisable: (found.disableQuirks2 & QUIRK_OUT_7E_INC_RIP) !== 0,
    get lazySkip(): LazySkip {
      lazySkip ??= guarded(() => probeLazySkip(kvm));
      return lazySkip;
    },
  };
}

function probeLazySkip(kvm: NativeKvm): LazySkip {
  const { long, protected32, real } = kvm.kvmProbeLazySkip();
  return {
    long: long as SkipPoint,
    protected32: protected32 as SkipPoint,
    real: real as SkipPoint,
  };
}
