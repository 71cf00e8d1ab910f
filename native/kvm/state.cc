#include "state.h"

#include "kvm-api.h"

#include <cstring>
#include <vector>

#include "error.h"
#include "vm.h"

namespace tsvmm {

namespace {

struct Entry {
  unsigned long get;
  unsigned long set;
  size_t bytes;
  const char* getName;
  const char* setName;
};

constexpr Entry kTable[kStateKinds] = {
    {KVM_GET_REGS, KVM_SET_REGS, sizeof(kvm_regs), "KVM_GET_REGS", "KVM_SET_REGS"},
    {KVM_GET_SREGS, KVM_SET_SREGS, sizeof(kvm_sregs), "KVM_GET_SREGS", "KVM_SET_SREGS"},
    {KVM_GET_XSAVE, KVM_SET_XSAVE, 4096, "KVM_GET_XSAVE", "KVM_SET_XSAVE"},
    {KVM_GET_XCRS, KVM_SET_XCRS, sizeof(kvm_xcrs), "KVM_GET_XCRS", "KVM_SET_XCRS"},
    {KVM_GET_LAPIC, KVM_SET_LAPIC, sizeof(kvm_lapic_state), "KVM_GET_LAPIC", "KVM_SET_LAPIC"},
    {KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, sizeof(kvm_vcpu_events), "KVM_GET_VCPU_EVENTS", "KVM_SET_VCPU_EVENTS"},
    {KVM_GET_MP_STATE, KVM_SET_MP_STATE, sizeof(kvm_mp_state), "KVM_GET_MP_STATE", "KVM_SET_MP_STATE"},
    {KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, sizeof(kvm_debugregs), "KVM_GET_DEBUGREGS", "KVM_SET_DEBUGREGS"},
};

// A structure with a variable tail, zeroed and aligned.
template <typename Header, typename Item>
class WithTail {
 public:
  explicit WithTail(size_t items) : storage_((sizeof(Header) + items * sizeof(Item) + 7) / 8) {}
  Header* get() { return reinterpret_cast<Header*>(storage_.data()); }

 private:
  std::vector<uint64_t> storage_;
};

}  // namespace

size_t VcpuStateBytes(const Vm& vm, uint32_t kind) {
  return kind == kStateXsave ? static_cast<size_t>(vm.xsaveBytes()) : kTable[kind].bytes;
}

void GetVcpuState(Vm& vm, uint32_t vcpu, uint32_t kind, uint8_t* data) {
  const int fd = vm.StoppedVcpu(vcpu).fd();
  if (kind == kStateXsave && vm.xsaveBytes() > 4096) {
    Ioctl(fd, KVM_GET_XSAVE2, data, "KVM_GET_XSAVE2");
    return;
  }
  Ioctl(fd, kTable[kind].get, data, kTable[kind].getName);
}

void SetVcpuState(Vm& vm, uint32_t vcpu, uint32_t kind, const uint8_t* data) {
  Vcpu& target = vm.StoppedVcpu(vcpu);
  if (target.Posted() && !IsTerminal(target.slot()->kind)) {
    throw KvmError("KVM_EXIT_OPEN", "the state of a vCPU with an open exit cannot be replaced");
  }
  Ioctl(target.fd(), kTable[kind].set, data, kTable[kind].setName);
}

void GetIrqchip(Vm& vm, uint32_t chip, uint8_t* data) {
  kvm_irqchip state{};
  static_assert(sizeof state.chip == kIrqchipBytes);
  state.chip_id = chip;
  Ioctl(vm.fd(), KVM_GET_IRQCHIP, &state, "KVM_GET_IRQCHIP");
  std::memcpy(data, &state.chip, kIrqchipBytes);
}

void SetIrqchip(Vm& vm, uint32_t chip, const uint8_t* data) {
  kvm_irqchip state{};
  state.chip_id = chip;
  std::memcpy(&state.chip, data, kIrqchipBytes);
  Ioctl(vm.fd(), KVM_SET_IRQCHIP, &state, "KVM_SET_IRQCHIP");
}

uint32_t GetMsrs(Vm& vm, uint32_t vcpu, const uint32_t* indices, uint64_t* values, uint32_t count) {
  WithTail<kvm_msrs, kvm_msr_entry> msrs(count);
  msrs.get()->nmsrs = count;
  for (uint32_t i = 0; i < count; i++) msrs.get()->entries[i].index = indices[i];
  const int done = Ioctl(vm.StoppedVcpu(vcpu).fd(), KVM_GET_MSRS, msrs.get(), "KVM_GET_MSRS");
  for (int i = 0; i < done; i++) values[i] = msrs.get()->entries[i].data;
  return static_cast<uint32_t>(done);
}

uint32_t SetMsrs(Vm& vm, uint32_t vcpu, const uint32_t* indices, const uint64_t* values, uint32_t count) {
  WithTail<kvm_msrs, kvm_msr_entry> msrs(count);
  msrs.get()->nmsrs = count;
  for (uint32_t i = 0; i < count; i++) {
    msrs.get()->entries[i].index = indices[i];
    msrs.get()->entries[i].data = values[i];
  }
  const int done = Ioctl(vm.StoppedVcpu(vcpu).fd(), KVM_SET_MSRS, msrs.get(), "KVM_SET_MSRS");
  vm.NoteStateReplaced();
  return static_cast<uint32_t>(done);
}

void SetCpuid(Vm& vm, uint32_t vcpu, const uint32_t* rows, uint32_t count) {
  WithTail<kvm_cpuid2, kvm_cpuid_entry2> cpuid(count);
  cpuid.get()->nent = count;
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t* row = rows + i * kCpuidRowWords;
    kvm_cpuid_entry2& e = cpuid.get()->entries[i];
    e.function = row[0];
    e.index = row[1];
    e.flags = row[2];
    e.eax = row[3];
    e.ebx = row[4];
    e.ecx = row[5];
    e.edx = row[6];
  }
  Ioctl(vm.StoppedVcpu(vcpu).fd(), KVM_SET_CPUID2, cpuid.get(), "KVM_SET_CPUID2");
}

static uint32_t CopyCpuid(const kvm_cpuid2* table, uint32_t* rows) {
  for (uint32_t i = 0; i < table->nent; i++) {
    uint32_t* row = rows + i * kCpuidRowWords;
    const kvm_cpuid_entry2& e = table->entries[i];
    row[0] = e.function;
    row[1] = e.index;
    row[2] = e.flags;
    row[3] = e.eax;
    row[4] = e.ebx;
    row[5] = e.ecx;
    row[6] = e.edx;
  }
  return table->nent;
}

uint32_t GetCpuid(Vm& vm, uint32_t vcpu, uint32_t* rows) {
  WithTail<kvm_cpuid2, kvm_cpuid_entry2> cpuid(kCpuidRowsMax);
  cpuid.get()->nent = kCpuidRowsMax;
  Ioctl(vm.StoppedVcpu(vcpu).fd(), KVM_GET_CPUID2, cpuid.get(), "KVM_GET_CPUID2");
  return CopyCpuid(cpuid.get(), rows);
}

static bool TscAttribute(Vm& vm, uint32_t vcpu, unsigned long request, uint64_t* value, const char* call) {
  kvm_device_attr attribute{};
  attribute.group = KVM_VCPU_TSC_CTRL;
  attribute.attr = KVM_VCPU_TSC_OFFSET;
  attribute.addr = reinterpret_cast<uint64_t>(value);
  const int fd = vm.StoppedVcpu(vcpu).fd();
  if (::ioctl(fd, KVM_HAS_DEVICE_ATTR, &attribute) != 0) return false;
  Ioctl(fd, request, &attribute, call);
  return true;
}

bool GetTscOffset(Vm& vm, uint32_t vcpu, uint64_t* offset) {
  return TscAttribute(vm, vcpu, KVM_GET_DEVICE_ATTR, offset, "KVM_GET_DEVICE_ATTR(TSC_OFFSET)");
}

bool SetTscOffset(Vm& vm, uint32_t vcpu, uint64_t offset) {
  return TscAttribute(vm, vcpu, KVM_SET_DEVICE_ATTR, &offset, "KVM_SET_DEVICE_ATTR(TSC_OFFSET)");
}

}  // namespace tsvmm
