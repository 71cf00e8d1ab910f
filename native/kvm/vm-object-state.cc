// KvmVm's calls that read and write state: of vCPUs, interrupt controllers, timer and clock.
#include <cstring>

#include "args.h"
#include "error.h"
#include "state.h"
#include "vm-object.h"

namespace tsvmm {

Napi::Value VmObject::StateBytes(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const uint32_t kind = ArgU32(info, 0, "kind", kStateKinds - 1);
  return Napi::Number::New(info.Env(), static_cast<double>(VcpuStateBytes(vm, kind)));
}

// (vcpu, kind, Uint8Array of exactly the right size)
void VmObject::GetState(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  const uint32_t kind = ArgU32(info, 1, "kind", kStateKinds - 1);
  const Span data = ArgBytes(info, 2, "state");
  if (data.size != VcpuStateBytes(*vm_, kind)) ThrowRange(info.Env(), "the state has the wrong size");
  Guard(info.Env(), [&] { tsvmm::GetVcpuState(*vm_, vcpu, kind, data.data); });
}

void VmObject::SetState(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  const uint32_t kind = ArgU32(info, 1, "kind", kStateKinds - 1);
  const Span data = ArgBytes(info, 2, "state");
  if (data.size != VcpuStateBytes(*vm_, kind)) ThrowRange(info.Env(), "the state has the wrong size");
  Guard(info.Env(), [&] { tsvmm::SetVcpuState(*vm_, vcpu, kind, data.data); });
}

// (vcpu, indices, values) -> how many, from the first on
template <typename Transfer>
Napi::Value VmObject::Msrs(const Napi::CallbackInfo& info, Transfer transfer) {
  const uint32_t vcpu = VcpuArg(info, 0);
  const Span indices = ArgTyped(info, 1, "indices", napi_uint32_array);
  const Span values = ArgTyped(info, 2, "values", napi_biguint64_array);
  const size_t count = indices.size / 4;
  if (values.size / 8 != count || count > 4096) ThrowRange(info.Env(), "indices and values differ in length");
  return Guard(info.Env(), [&]() -> Napi::Value {
    return Napi::Number::New(info.Env(), transfer(*vm_, vcpu, reinterpret_cast<uint32_t*>(indices.data),
                                                  reinterpret_cast<uint64_t*>(values.data), static_cast<uint32_t>(count)));
  });
}

Napi::Value VmObject::GetMsrs(const Napi::CallbackInfo& info) { return Msrs(info, tsvmm::GetMsrs); }
Napi::Value VmObject::SetMsrs(const Napi::CallbackInfo& info) { return Msrs(info, tsvmm::SetMsrs); }

void VmObject::SetCpuid(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  const Span rows = ArgTyped(info, 1, "rows", napi_uint32_array);
  const size_t words = rows.size / 4;
  if (words % kCpuidRowWords != 0 || words / kCpuidRowWords > kCpuidRowsMax) {
    ThrowRange(info.Env(), "the CPUID table has the wrong size");
  }
  Guard(info.Env(), [&] {
    tsvmm::SetCpuid(*vm_, vcpu, reinterpret_cast<uint32_t*>(rows.data), static_cast<uint32_t>(words / kCpuidRowWords));
  });
}

Napi::Value VmObject::GetCpuid(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  return Guard(info.Env(), [&]() -> Napi::Value {
    std::vector<uint32_t> rows(kCpuidRowsMax * kCpuidRowWords);
    const uint32_t count = tsvmm::GetCpuid(*vm_, vcpu, rows.data());
    auto result = Napi::Uint32Array::New(info.Env(), count * kCpuidRowWords);
    if (count > 0) std::memcpy(result.Data(), rows.data(), count * kCpuidRowWords * sizeof(uint32_t));
    return result;
  });
}

Napi::Value VmObject::GetTscOffset(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  return Guard(info.Env(), [&]() -> Napi::Value {
    uint64_t offset = 0;
    if (!tsvmm::GetTscOffset(*vm_, vcpu, &offset)) return info.Env().Undefined();
    return Napi::BigInt::New(info.Env(), offset);
  });
}

Napi::Value VmObject::SetTscOffset(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  const uint64_t offset = ArgBigUint(info, 1, "offset");
  return Guard(info.Env(), [&]() -> Napi::Value {
    return Napi::Boolean::New(info.Env(), tsvmm::SetTscOffset(*vm_, vcpu, offset));
  });
}

Napi::Value VmObject::TscKhz(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  return Guard(info.Env(), [&]() -> Napi::Value {
    return Napi::Number::New(info.Env(), Ioctl(vm_->StoppedVcpu(vcpu).fd(), KVM_GET_TSC_KHZ, 0UL, "KVM_GET_TSC_KHZ"));
  });
}

Napi::Value VmObject::PauseTsc(const Napi::CallbackInfo& info) {
  return Napi::BigInt::New(info.Env(), Live(info.Env()).pauseTsc());
}

// (chip, Uint8Array(512))
void VmObject::GetIrqchip(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const uint32_t chip = ArgU32(info, 0, "chip", 2);
  const Span data = ArgBytes(info, 1, "state");
  if (data.size != kIrqchipBytes) ThrowRange(info.Env(), "the state has the wrong size");
  Guard(info.Env(), [&] { tsvmm::GetIrqchip(vm, chip, data.data); });
}

void VmObject::SetIrqchip(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const uint32_t chip = ArgU32(info, 0, "chip", 2);
  const Span data = ArgBytes(info, 1, "state");
  if (data.size != kIrqchipBytes) ThrowRange(info.Env(), "the state has the wrong size");
  Guard(info.Env(), [&] { tsvmm::SetIrqchip(vm, chip, data.data); });
}

// (Uint8Array(112))
void VmObject::GetPit(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const Span data = ArgBytes(info, 0, "state");
  if (data.size != sizeof(kvm_pit_state2) || !hasPit_) ThrowRange(info.Env(), "the state has the wrong size");
  Guard(info.Env(), [&] { Ioctl(vm.fd(), KVM_GET_PIT2, data.data, "KVM_GET_PIT2"); });
}

void VmObject::SetPit(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const Span data = ArgBytes(info, 0, "state");
  if (data.size != sizeof(kvm_pit_state2) || !hasPit_) ThrowRange(info.Env(), "the state has the wrong size");
  Guard(info.Env(), [&] { Ioctl(vm.fd(), KVM_SET_PIT2, data.data, "KVM_SET_PIT2"); });
}

// (BigUint64Array(4): clock, flags, realtime, hostTsc)
void VmObject::GetClock(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const Span data = ArgTyped(info, 0, "clock", napi_biguint64_array);
  if (data.size != 32) ThrowRange(info.Env(), "the state has the wrong size");
  Guard(info.Env(), [&] {
    kvm_clock_data clock{};
    Ioctl(vm.fd(), KVM_GET_CLOCK, &clock, "KVM_GET_CLOCK");
    const uint64_t fields[4] = {clock.clock, clock.flags, clock.realtime, clock.host_tsc};
    std::memcpy(data.data, fields, sizeof fields);
  });
}

void VmObject::SetClock(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const Span data = ArgTyped(info, 0, "clock", napi_biguint64_array);
  if (data.size != 32) ThrowRange(info.Env(), "the state has the wrong size");
  Guard(info.Env(), [&] {
    uint64_t fields[4];
    std::memcpy(fields, data.data, sizeof fields);
    kvm_clock_data clock{};
    clock.clock = fields[0];
    clock.flags = static_cast<uint32_t>(fields[1]);
    clock.realtime = fields[2];
    clock.host_tsc = fields[3];
    Ioctl(vm.fd(), KVM_SET_CLOCK, &clock, "KVM_SET_CLOCK");
  });
}

// (vcpu, linear: bigint) -> physical address or undefined
Napi::Value VmObject::Translate(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  kvm_translation translation{};
  translation.linear_address = ArgBigUint(info, 1, "linear");
  return Guard(info.Env(), [&]() -> Napi::Value {
    Ioctl(vm_->StoppedVcpu(vcpu).fd(), KVM_TRANSLATE, &translation, "KVM_TRANSLATE");
    if (!translation.valid || translation.physical_address > kGuestPhysMax) return info.Env().Undefined();
    return Napi::Number::New(info.Env(), static_cast<double>(translation.physical_address));
  });
}

}  // namespace tsvmm
