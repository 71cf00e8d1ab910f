// Queries of the host's KVM that need no VM of the user's: capabilities, MSR list, supported CPUID, and
// the throw-away VM that finds out where RIP is at an OUT exit.
#include <fcntl.h>
#include "kvm-api.h"
#include <sys/mman.h>
#include <x86intrin.h>

#include <cstring>
#include <vector>

#include "error.h"
#include "state.h"
#include "unique-fd.h"
#include "vcpu.h"

namespace tsvmm {

namespace {

UniqueFd OpenKvm() {
  const int fd = ::open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (fd < 0) throw IoctlError("open(/dev/kvm)", errno);
  return UniqueFd(fd);
}

struct NamedCapability {
  const char* name;
  int number;
};

constexpr NamedCapability kCapabilities[] = {
    {"vcpusMax", KVM_CAP_MAX_VCPUS},
    {"memorySlotsMax", KVM_CAP_NR_MEMSLOTS},
    {"readonlyMemory", KVM_CAP_READONLY_MEM},
    {"immediateExit", KVM_CAP_IMMEDIATE_EXIT},
    {"irqchip", KVM_CAP_IRQCHIP},
    {"pit2", KVM_CAP_PIT2},
    {"ioeventfd", KVM_CAP_IOEVENTFD},
    {"ioeventfdAnyLength", KVM_CAP_IOEVENTFD_ANY_LENGTH},
    {"irqfd", KVM_CAP_IRQFD},
    {"signalMsi", KVM_CAP_SIGNAL_MSI},
    {"coalescedMmio", KVM_CAP_COALESCED_MMIO},
    {"coalescedPio", KVM_CAP_COALESCED_PIO},
    {"tscControl", KVM_CAP_TSC_CONTROL},
    {"tscDeadline", KVM_CAP_TSC_DEADLINE_TIMER},
    {"vcpuAttributes", KVM_CAP_VCPU_ATTRIBUTES},
    {"adjustClock", KVM_CAP_ADJUST_CLOCK},
    {"xsave", KVM_CAP_XSAVE},
    {"xsave2Bytes", KVM_CAP_XSAVE2},
    {"disableQuirks2", KVM_CAP_DISABLE_QUIRKS2},
};

Napi::Value ProbeCapabilities(const Napi::CallbackInfo& info) {
  return Guard(info.Env(), [&]() -> Napi::Value {
    const UniqueFd kvm = OpenKvm();
    // A VM answers for what it can do; some capabilities are only true there.
    const UniqueFd vm(Ioctl(kvm.get(), KVM_CREATE_VM, 0UL, "KVM_CREATE_VM"));
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("apiVersion", Ioctl(kvm.get(), KVM_GET_API_VERSION, 0UL, "KVM_GET_API_VERSION"));
    for (const auto& capability : kCapabilities) {
      const int value = ::ioctl(vm.get(), KVM_CHECK_EXTENSION, static_cast<unsigned long>(capability.number));
      result.Set(capability.name, value < 0 ? 0 : value);
    }
    return result;
  });
}

Napi::Value MsrIndexList(const Napi::CallbackInfo& info) {
  return Guard(info.Env(), [&]() -> Napi::Value {
    const UniqueFd kvm = OpenKvm();
    std::vector<uint32_t> storage(1 + 4096);
    auto* list = reinterpret_cast<kvm_msr_list*>(storage.data());
    list->nmsrs = 4096;
    Ioctl(kvm.get(), KVM_GET_MSR_INDEX_LIST, list, "KVM_GET_MSR_INDEX_LIST");
    auto result = Napi::Uint32Array::New(info.Env(), list->nmsrs);
    std::memcpy(result.Data(), list->indices, list->nmsrs * sizeof(uint32_t));
    return result;
  });
}

Napi::Value SupportedCpuid(const Napi::CallbackInfo& info) {
  return Guard(info.Env(), [&]() -> Napi::Value {
    const UniqueFd kvm = OpenKvm();
    std::vector<uint64_t> storage((sizeof(kvm_cpuid2) + kCpuidRowsMax * sizeof(kvm_cpuid_entry2)) / 8 + 1);
    auto* table = reinterpret_cast<kvm_cpuid2*>(storage.data());
    table->nent = kCpuidRowsMax;
    Ioctl(kvm.get(), KVM_GET_SUPPORTED_CPUID, table, "KVM_GET_SUPPORTED_CPUID");
    auto result = Napi::Uint32Array::New(info.Env(), table->nent * kCpuidRowWords);
    for (uint32_t i = 0; i < table->nent; i++) {
      const kvm_cpuid_entry2& e = table->entries[i];
      const uint32_t row[kCpuidRowWords] = {e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx};
      std::memcpy(result.Data() + i * kCpuidRowWords, row, sizeof row);
    }
    return result;
  });
}

enum class Mode { kLong, kProtected32, kReal };

struct MmapRegion {
  void* data = MAP_FAILED;
  size_t size = 0;
  MmapRegion(size_t bytes, int flags, int fd) : size(bytes) {
    data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (data == MAP_FAILED) throw IoctlError("mmap", errno);
  }
  ~MmapRegion() { munmap(data, size); }
  MmapRegion(const MmapRegion&) = delete;
  MmapRegion& operator=(const MmapRegion&) = delete;
  uint8_t* bytes() { return static_cast<uint8_t*>(data); }
};

kvm_segment Segment(uint8_t type, bool code, Mode mode) {
  kvm_segment s{};
  s.limit = mode == Mode::kReal ? 0xffff : 0xffffffff;
  s.selector = code ? 0x08 : 0x10;
  if (mode == Mode::kReal) s.selector = 0;
  s.type = type;
  s.present = 1;
  s.s = 1;
  s.g = mode == Mode::kReal ? 0 : 1;
  s.db = mode == Mode::kProtected32 || (mode == Mode::kLong && !code) ? 1 : 0;
  s.l = mode == Mode::kLong && code ? 1 : 0;
  return s;
}

// One OUT in a VM of its own: "late" (RIP on it), "early" (RIP past it) or "unknown".
const char* ProbeSkip(Mode mode) {
  constexpr uint64_t kCode = 0x4000;
  constexpr uint8_t kPort = 0x42;
  const UniqueFd kvm = OpenKvm();
  const UniqueFd vm(Ioctl(kvm.get(), KVM_CREATE_VM, 0UL, "KVM_CREATE_VM"));
  Ioctl(vm.get(), KVM_SET_TSS_ADDR, 0xfffbd000UL, "KVM_SET_TSS_ADDR");
  MmapRegion memory(0x8000, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  kvm_userspace_memory_region region{};
  region.memory_size = memory.size;
  region.userspace_addr = reinterpret_cast<uint64_t>(memory.data);
  Ioctl(vm.get(), KVM_SET_USER_MEMORY_REGION, &region, "KVM_SET_USER_MEMORY_REGION");
  const uint8_t code[] = {0xe6, kPort, 0xf4};  // out 0x42, al; hlt
  std::memcpy(memory.bytes() + kCode, code, sizeof code);
  // Identity map of the first 2 MiB: tables at 0x1000, 0x2000, 0x3000.
  const uint64_t pml4 = 0x2000 | 3;
  const uint64_t pdpt = 0x3000 | 3;
  const uint64_t pd = 0x83;
  std::memcpy(memory.bytes() + 0x1000, &pml4, 8);
  std::memcpy(memory.bytes() + 0x2000, &pdpt, 8);
  std::memcpy(memory.bytes() + 0x3000, &pd, 8);

  const UniqueFd vcpu(Ioctl(vm.get(), KVM_CREATE_VCPU, 0UL, "KVM_CREATE_VCPU"));
  const int runBytes = Ioctl(kvm.get(), KVM_GET_VCPU_MMAP_SIZE, 0UL, "KVM_GET_VCPU_MMAP_SIZE");
  MmapRegion runPage(static_cast<size_t>(runBytes), MAP_SHARED, vcpu.get());
  auto* run = static_cast<kvm_run*>(runPage.data);
  // Long mode needs LM in CPUID.
  std::vector<uint64_t> storage((sizeof(kvm_cpuid2) + kCpuidRowsMax * sizeof(kvm_cpuid_entry2)) / 8 + 1);
  auto* cpuid = reinterpret_cast<kvm_cpuid2*>(storage.data());
  cpuid->nent = kCpuidRowsMax;
  Ioctl(kvm.get(), KVM_GET_SUPPORTED_CPUID, cpuid, "KVM_GET_SUPPORTED_CPUID");
  Ioctl(vcpu.get(), KVM_SET_CPUID2, cpuid, "KVM_SET_CPUID2");

  kvm_sregs sregs{};
  Ioctl(vcpu.get(), KVM_GET_SREGS, &sregs, "KVM_GET_SREGS");
  sregs.cs = Segment(11, true, mode);
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = Segment(3, false, mode);
  if (mode != Mode::kReal) sregs.cr0 |= 1;
  if (mode == Mode::kLong) {
    sregs.cr3 = 0x1000;
    sregs.cr4 |= 0x20;
    sregs.cr0 |= 0x80000000;
    sregs.efer |= 0x500;
  }
  Ioctl(vcpu.get(), KVM_SET_SREGS, &sregs, "KVM_SET_SREGS");
  kvm_regs regs{};
  regs.rip = kCode;
  regs.rflags = 2;
  regs.rsp = 0x7000;
  Ioctl(vcpu.get(), KVM_SET_REGS, &regs, "KVM_SET_REGS");
  for (int tries = 0; tries < 4; tries++) {
    if (::ioctl(vcpu.get(), KVM_RUN, 0) == 0) break;
    if (errno != EINTR && errno != EAGAIN) return "unknown";
  }
  if (run->exit_reason != KVM_EXIT_IO || run->io.direction != KVM_EXIT_IO_OUT || run->io.port != kPort) return "unknown";
  Ioctl(vcpu.get(), KVM_GET_REGS, &regs, "KVM_GET_REGS");
  if (regs.rip == kCode) return "late";
  if (regs.rip == kCode + 2) return "early";
  return "unknown";
}

Napi::Value ProbeLazySkip(const Napi::CallbackInfo& info) {
  return Guard(info.Env(), [&]() -> Napi::Value {
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("long", ProbeSkip(Mode::kLong));
    result.Set("protected32", ProbeSkip(Mode::kProtected32));
    result.Set("real", ProbeSkip(Mode::kReal));
    return result;
  });
}

Napi::Value HostTsc(const Napi::CallbackInfo& info) { return Napi::BigInt::New(info.Env(), static_cast<uint64_t>(__rdtsc())); }

}  // namespace

void DefineHostFunctions(Napi::Env env, Napi::Object exports) {
  exports.Set("kvmProbeCapabilities", Napi::Function::New<ProbeCapabilities>(env, "kvmProbeCapabilities"));
  exports.Set("kvmMsrIndexList", Napi::Function::New<MsrIndexList>(env, "kvmMsrIndexList"));
  exports.Set("kvmSupportedCpuid", Napi::Function::New<SupportedCpuid>(env, "kvmSupportedCpuid"));
  exports.Set("kvmProbeLazySkip", Napi::Function::New<ProbeLazySkip>(env, "kvmProbeLazySkip"));
  exports.Set("kvmHostTsc", Napi::Function::New<HostTsc>(env, "kvmHostTsc"));
}

}  // namespace tsvmm
