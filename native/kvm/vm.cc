#include "vm.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <x86intrin.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "error.h"
#include "futex.h"

namespace tsvmm {

namespace {

constexpr uint64_t kHugePage = 2 * 1024 * 1024;
constexpr uint64_t kLongPauseNs = 1000000000;

// A vCPU exits often when it runs for less than this in between.
constexpr uint64_t kOftenNs = 60000;
// So many such exits in turn whose vCPU fell asleep, before it shares the loop's CPU.
constexpr uint32_t kSlowExits = 16;
// How long it does, before spinning is tried again: longer each time the trial fails.
constexpr uint64_t kNearMinNs = 100000000;
constexpr uint64_t kNearMaxNs = 3200000000;
// A trial has not failed after so many exits without sleep.
constexpr uint32_t kQuickExits = 5000;
// Without an exit for so long, it may run elsewhere.
constexpr uint64_t kNearQuietNs = 5000000;

uint32_t AllowedCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return static_cast<uint32_t>(CPU_COUNT(&set));
}

}  // namespace

std::shared_ptr<AnonymousMapping> AnonymousMapping::Create(uint64_t size) {
  // Aligned to a huge page where that makes sense: reserve more, give the edges back.
  const uint64_t slack = size >= kHugePage ? kHugePage : 0;
  void* got = mmap(nullptr, size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (got == MAP_FAILED) throw IoctlError("mmap(guest memory)", errno);
  auto* base = static_cast<uint8_t*>(got);
  if (slack > 0) {
    const uint64_t misfit = reinterpret_cast<uintptr_t>(base) % kHugePage;
    const uint64_t head = misfit == 0 ? 0 : kHugePage - misfit;
    if (head > 0) munmap(base, head);
    if (slack > head) munmap(base + head + size, slack - head);
    base += head;
    madvise(base, size, MADV_HUGEPAGE);  // advice: a kernel without huge pages may refuse
  }
  madvise(base, size, MADV_DONTDUMP);
  // A child between fork and exec must not make the guest's pages copy-on-write.
  madvise(base, size, MADV_DONTFORK);
  return std::shared_ptr<AnonymousMapping>(new AnonymousMapping(base, size));
}

AnonymousMapping::~AnonymousMapping() { munmap(data(), size()); }

Vm::Vm(const VmConfig& config, std::shared_ptr<MemoryMap> memory, ExitSink* sink)
    : memory_(std::move(memory)), sink_(sink) {
  const int kvm = ::open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (kvm < 0) throw IoctlError("open(/dev/kvm)", errno);
  kvmFd_ = UniqueFd(kvm);
  fd_ = UniqueFd(Ioctl(kvm, KVM_CREATE_VM, 0UL, "KVM_CREATE_VM"));

  // Intel needs pages of its own for real mode; harmless elsewhere.
  uint64_t identity = config.tssAddress - kPageSize;
  if (CheckExtension(KVM_CAP_SET_IDENTITY_MAP_ADDR) > 0) {
    Ioctl(fd(), KVM_SET_IDENTITY_MAP_ADDR, &identity, "KVM_SET_IDENTITY_MAP_ADDR");
  }
  Ioctl(fd(), KVM_SET_TSS_ADDR, static_cast<unsigned long>(config.tssAddress), "KVM_SET_TSS_ADDR");

  // Without this quirk gone, OUT to port 0x7e alone moves RIP before the exit on hardware.
  const int quirks = CheckExtension(KVM_CAP_DISABLE_QUIRKS2);
  if (quirks > 0 && (quirks & KVM_X86_QUIRK_OUT_7E_INC_RIP) != 0) {
    kvm_enable_cap cap{};
    cap.cap = KVM_CAP_DISABLE_QUIRKS2;
    cap.args[0] = KVM_X86_QUIRK_OUT_7E_INC_RIP;
    Ioctl(fd(), KVM_ENABLE_CAP, &cap, "KVM_ENABLE_CAP(DISABLE_QUIRKS2)");
  } else if (CheckExtension(KVM_CAP_DISABLE_QUIRKS) > 0) {
    kvm_enable_cap cap{};
    cap.cap = KVM_CAP_DISABLE_QUIRKS;
    cap.args[0] = KVM_X86_QUIRK_OUT_7E_INC_RIP;
    Ioctl(fd(), KVM_ENABLE_CAP, &cap, "KVM_ENABLE_CAP(DISABLE_QUIRKS)");
  }

  Ioctl(fd(), KVM_CREATE_IRQCHIP, 0UL, "KVM_CREATE_IRQCHIP");
  if (config.pit) {
    kvm_pit_config pit{};
    pit.flags = KVM_PIT_SPEAKER_DUMMY;
    Ioctl(fd(), KVM_CREATE_PIT2, &pit, "KVM_CREATE_PIT2");
  }
  const int xsave = CheckExtension(KVM_CAP_XSAVE2);
  if (xsave > 4096) xsaveBytes_ = static_cast<uint64_t>(xsave);

  const uint64_t slotBytes = (config.vcpus * kSlotStride + kPageSize - 1) / kPageSize * kPageSize;
  slotMemory_ = AnonymousMapping::Create(slotBytes);
  coalescedMemory_ = AnonymousMapping::Create(2 * kPageSize);
  vcpus_.reserve(config.vcpus);
  for (uint32_t i = 0; i < config.vcpus; i++) {
    auto* slot = reinterpret_cast<ExitSlot*>(slotMemory_->data() + i * kSlotStride);
    vcpus_.push_back(std::make_unique<Vcpu>(*this, i, slot));
  }
  const int ringPage = CheckExtension(KVM_CAP_COALESCED_MMIO);
  if (ringPage > 0) {
    ring_ = reinterpret_cast<kvm_coalesced_mmio_ring*>(reinterpret_cast<uint8_t*>(vcpus_[0]->run()) +
                                                       static_cast<uint64_t>(ringPage) * kPageSize);
    ringEntries_ = (kPageSize - sizeof(kvm_coalesced_mmio_ring)) / sizeof(kvm_coalesced_mmio);
  }
}

Vm::~Vm() { Destroy(); }

void Vm::Destroy() {
  if (destroyed_) return;
  destroyed_ = true;
  stop.store(true);
  for (auto& vcpu : vcpus_) vcpu->Join();
  EndNear();
  ring_ = nullptr;
  vcpus_.clear();
  for (auto& [id, slot] : slots_) memory_->Remove(slot.config.guestPhys);
  fd_.Reset();
  kvmFd_.Reset();
  slots_.clear();
  buffers_.clear();
  slotMemory_.reset();
  coalescedMemory_.reset();
}

int Vm::CheckExtension(int capability) const {
  const int result = ::ioctl(fd(), KVM_CHECK_EXTENSION, static_cast<unsigned long>(capability));
  return result < 0 ? 0 : result;
}

// Memory.

std::shared_ptr<AnonymousMapping> Vm::CreateBuffer(uint64_t size) {
  auto buffer = AnonymousMapping::Create(size);
  buffers_.push_back(buffer);
  return buffer;
}

std::shared_ptr<AnonymousMapping> Vm::FindBuffer(const uint8_t* data) const {
  for (const auto& buffer : buffers_) {
    if (buffer->data() == data) return buffer;
  }
  return nullptr;
}

void Vm::SetRegion(const Slot& slot, bool remove) {
  kvm_userspace_memory_region region{};
  region.slot = slot.config.slot;
  region.flags = (slot.config.readonly ? KVM_MEM_READONLY : 0) | (slot.config.log ? KVM_MEM_LOG_DIRTY_PAGES : 0);
  region.guest_phys_addr = slot.config.guestPhys;
  region.memory_size = remove ? 0 : slot.config.size;
  region.userspace_addr = reinterpret_cast<uint64_t>(slot.host);
  Ioctl(fd(), KVM_SET_USER_MEMORY_REGION, &region, "KVM_SET_USER_MEMORY_REGION");
}

void Vm::MapSlot(const SlotConfig& config, std::shared_ptr<AnonymousMapping> buffer, uint64_t offset) {
  if (slots_.contains(config.slot)) throw KvmError("KVM_SLOT_BUSY", "memory slot " + std::to_string(config.slot) + " is in use");
  Slot slot;
  slot.config = config;
  slot.buffer = buffer;
  slot.host = buffer->data() + offset;
  const size_t words = static_cast<size_t>((config.size / kPageSize + 63) / 64);
  if (config.log) {
    slot.log.resize(words);
    slot.pending.resize(words);
  }
  if (!memory_->Add({config.guestPhys, config.size, slot.host, config.readonly, buffer})) {
    throw KvmError("KVM_MEMORY_OVERLAP", "the guest physical range overlaps memory that is already mapped");
  }
  try {
    SetRegion(slot, false);
  } catch (...) {
    memory_->Remove(config.guestPhys);
    throw;
  }
  slots_.emplace(config.slot, std::move(slot));
}

void Vm::UnmapSlot(uint32_t id) {
  const auto found = slots_.find(id);
  if (found == slots_.end()) throw KvmError("KVM_SLOT_FREE", "memory slot " + std::to_string(id) + " is not in use");
  Slot& slot = found->second;
  if (slot.config.log) {
    FetchLog(slot);
    for (size_t w = 0; w < slot.pending.size(); w++) {
      for (uint64_t bits = slot.pending[w]; bits != 0; bits &= bits - 1) {
        orphanPages_.push_back(static_cast<uint32_t>(slot.config.firstPage + w * 64 + std::countr_zero(bits)));
      }
      slot.pending[w] = 0;
    }
    std::sort(orphanPages_.begin(), orphanPages_.end());
    orphanPages_.erase(std::unique(orphanPages_.begin(), orphanPages_.end()), orphanPages_.end());
  }
  SetRegion(slot, true);
  memory_->Remove(slot.config.guestPhys);
  slots_.erase(found);
}

void Vm::SetDirtyLog(uint32_t id, bool on) {
  const auto found = slots_.find(id);
  if (found == slots_.end()) throw KvmError("KVM_SLOT_FREE", "memory slot " + std::to_string(id) + " is not in use");
  Slot& slot = found->second;
  if (slot.config.log == on) return;
  const size_t words = static_cast<size_t>((slot.config.size / kPageSize + 63) / 64);
  if (on) {
    slot.log.assign(words, 0);
    slot.pending.assign(words, 0);
  }
  slot.config.log = on;
  try {
    SetRegion(slot, false);
  } catch (...) {
    slot.config.log = !on;
    throw;
  }
  if (!on) {
    slot.log = {};
    slot.pending = {};
  }
}

void Vm::FetchLog(Slot& slot) {
  kvm_dirty_log log{};
  log.slot = slot.config.slot;
  log.dirty_bitmap = slot.log.data();
  Ioctl(fd(), KVM_GET_DIRTY_LOG, &log, "KVM_GET_DIRTY_LOG");
  for (size_t i = 0; i < slot.log.size(); i++) slot.pending[i] |= slot.log[i];
}

size_t Vm::HarvestList(uint32_t* list, size_t capacity) {
  size_t count = 0;
  while (count < capacity && !orphanPages_.empty()) {
    list[count++] = orphanPages_.back();
    orphanPages_.pop_back();
  }
  for (auto& [id, slot] : slots_) {
    if (!slot.config.log) continue;
    FetchLog(slot);
    if (count == capacity) continue;
    const uint32_t first = static_cast<uint32_t>(slot.config.firstPage);
    for (size_t w = 0; w < slot.pending.size() && count < capacity; w++) {
      uint64_t bits = slot.pending[w];
      while (bits != 0 && count < capacity) {
        list[count++] = first + static_cast<uint32_t>(w * 64) + static_cast<uint32_t>(std::countr_zero(bits));
        bits &= bits - 1;
      }
      slot.pending[w] = bits;
    }
  }
  return count;
}

uint64_t Vm::HarvestBits(uint32_t* words, size_t wordCount) {
  const uint64_t pagesMax = static_cast<uint64_t>(wordCount) * 32;
  for (const auto& [id, slot] : slots_) {
    if (slot.config.log && slot.config.firstPage + slot.config.size / kPageSize > pagesMax) {
      throw KvmError("KVM_BITMAP_SHORT", "the bitmap is too short for the pages of slot " + std::to_string(id));
    }
  }
  for (const uint32_t page : orphanPages_) {
    if (page >= pagesMax) throw KvmError("KVM_BITMAP_SHORT", "the bitmap is too short for a page of a former slot");
  }
  uint64_t fresh = 0;
  auto set = [&](uint64_t page) {
    const uint32_t bit = 1U << (page % 32);
    fresh += (words[page / 32] & bit) == 0;
    words[page / 32] |= bit;
  };
  for (const uint32_t page : orphanPages_) set(page);
  orphanPages_.clear();
  for (auto& [id, slot] : slots_) {
    if (!slot.config.log) continue;
    FetchLog(slot);
    for (size_t w = 0; w < slot.pending.size(); w++) {
      for (uint64_t bits = slot.pending[w]; bits != 0; bits &= bits - 1) {
        set(slot.config.firstPage + w * 64 + static_cast<uint64_t>(std::countr_zero(bits)));
      }
      slot.pending[w] = 0;
    }
  }
  return fresh;
}

// Running.

void Vm::SetSpin(uint64_t vcpuNs, uint64_t loopNs) {
  allowedCpus_ = AllowedCpus();
  vcpuSpinWantedNs_ = vcpuNs;
  loopSpinNs_ = loopNs;
  vcpuSpinNs.store(vcpuNs);
}

void Vm::Start() {
  SetSpin(vcpuSpinWantedNs_, loopSpinNs_);
  if (stateReplaced_) TellGuestsClock();
  started_ = true;
  // A VM paused before its start begins parked.
  try {
    for (auto& vcpu : vcpus_) vcpu->Start();
  } catch (...) {
    stop.store(true);
    for (auto& vcpu : vcpus_) vcpu->Join();
    throw;
  }
}

void Vm::NotifyFromVcpu() {
  events_.fetch_add(1);
  if (eventWaiter_.load()) FutexWake(events_);
  sink_->WakeFromVcpu();
}

bool Vm::HasPosted() const {
  if (paused_) return false;
  for (const auto& vcpu : vcpus_) {
    if (vcpu->Posted() && !vcpu->open) return true;
  }
  return false;
}

bool PlaceThisThread(const cpu_set_t& set) { return sched_setaffinity(0, sizeof set, &set) == 0; }

void Vm::ConsiderPlaces(Vcpu& vcpu) {
  if (allowedCpus_ < 2) return;
  const bool often = vcpu.GuestNs() < kOftenNs;
  if (near_ == nullptr) {
    const bool asleep = vcpu.state.load(std::memory_order_relaxed) == kPostedAsleep;
    slowExits_ = asleep && often ? slowExits_ + 1 : slowExits_ / 2;
    if (slowExits_ < kSlowExits) {
      if (!asleep && ++quickExits_ > kQuickExits) nearForNs_ = kNearMinNs;
      return;
    }
    slowExits_ = 0;
    for (const auto& other : vcpus_) {
      if (other.get() != &vcpu && other->GuestNs() < kOftenNs) return;
    }
    StartNear(vcpu);
    return;
  }
  const uint64_t now = NowNs();
  if (&vcpu == near_) {
    nearExitNs_ = now;
    if (often && now < nearUntilNs_) return;
  } else if (!often) {
    return;
  }
  EndNear();
}

// Threads and processes that this thread makes meanwhile inherit the one CPU: helpers are made before a guest runs.
void Vm::StartNear(Vcpu& vcpu) {
  const int cpu = sched_getcpu();
  if (cpu < 0 || cpu >= CPU_SETSIZE || sched_getaffinity(0, sizeof loopHome_, &loopHome_) != 0) return;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  if (!vcpu.Place(one)) return;
  if (!PlaceThisThread(one)) {
    vcpu.Place(loopHome_);
    return;
  }
  near_ = &vcpu;
  nearExitNs_ = NowNs();
  nearUntilNs_ = nearExitNs_ + nearForNs_;
  nearForNs_ = std::min(nearForNs_ * 2, kNearMaxNs);
  quickExits_ = 0;
  vcpu.near.store(true, std::memory_order_relaxed);
}

void Vm::EndNear() {
  if (near_ == nullptr) return;
  near_->near.store(false, std::memory_order_relaxed);
  near_->Place(loopHome_);
  near_ = nullptr;
  PlaceThisThread(loopHome_);
}

bool Vm::ReviewPlaces() {
  if (near_ != nullptr && NowNs() - nearExitNs_ > kNearQuietNs) EndNear();
  return near_ != nullptr;
}

bool Vm::Deliver(Vcpu& vcpu) {
  ConsiderPlaces(vcpu);
  if (ring_ != nullptr && __atomic_load_n(&ring_->first, __ATOMIC_RELAXED) != __atomic_load_n(&ring_->last, __ATOMIC_ACQUIRE)) {
    DrainCoalesced();
  }
  vcpu.open = true;
  struct Depth {
    int& depth;
    explicit Depth(int& d) : depth(d) { depth++; }
    ~Depth() { depth--; }
  } depth(delivering_);
  const bool done = sink_->OnExit(vcpu.index());
  // The handler may have completed it itself.
  if (done && vcpu.open) vcpu.Complete();
  return done;
}

uint32_t Vm::DeliverPosted() {
  uint32_t delivered = 0;
  for (auto& vcpu : vcpus_) {
    if (paused_ || destroyed_) break;
    if (vcpu->Posted() && !vcpu->open) {
      Deliver(*vcpu);
      delivered++;
    }
  }
  return delivered;
}

void Vm::CancelPause() {
  pauseWanted.store(false);
  paused_ = false;
  for (auto& vcpu : vcpus_) vcpu->Unpark();
}

void Vm::Pause(bool leaveOutOpen, uint64_t timeoutMs) {
  pauseWanted.store(true);
  if (!started_) {
    paused_ = true;
    pauseTsc_ = __rdtsc();
    return;
  }
  const uint64_t deadline = NowNs() + timeoutMs * 1000000;
  bool kick = true;
  for (;;) {
    const uint32_t seen = events_.load();
    bool stopped = true;
    bool delivered = false;
    for (auto& vcpu : vcpus_) {
      const uint32_t state = vcpu->state.load();
      if (state == kParked || state == kExited || state == kIdle) continue;
      if (state == kPosted || state == kPostedAsleep) {
        const uint32_t kind = vcpu->slot()->kind;
        if (leaveOutOpen && kind == kExitPioOut) continue;
        if (vcpu->open) {
          if (IsTerminal(kind)) continue;
          CancelPause();
          throw KvmError("KVM_EXIT_OPEN", "vCPU " + std::to_string(vcpu->index()) + " has an exit that is not complete");
        }
        try {
          Deliver(*vcpu);
        } catch (...) {
          CancelPause();
          throw;
        }
        delivered = true;
        stopped = false;
        continue;
      }
      stopped = false;
      if (state == kRunning && kick) {
        vcpu->Kick();
        kicks++;
      }
    }
    if (stopped) break;
    kick = false;
    if (delivered) continue;
    if (NowNs() > deadline) {
      CancelPause();
      throw KvmError("KVM_PAUSE_TIMEOUT", "a vCPU did not stop within " + std::to_string(timeoutMs) + " ms");
    }
    // Spin shortly, then sleep until something happens; kick again every millisecond in case.
    bool changed = false;
    for (int i = 0; i < 200 && spins() && !changed; i++) {
      changed = events_.load(std::memory_order_acquire) != seen;
      if (!changed) CpuRelax();
    }
    if (changed) continue;
    eventWaiter_.store(true);
    const uint64_t before = NowNs();
    if (events_.load() == seen) FutexWait(events_, seen, 1000000);
    eventWaiter_.store(false);
    kick = NowNs() - before >= 1000000;
  }
  if (!paused_) pausedAtNs_ = NowNs();
  pauseTsc_ = __rdtsc();
  paused_ = true;
  DrainCoalesced();
}

void Vm::Resume() {
  if (!paused_ && !pauseWanted.load()) return;
  if (stateReplaced_ || (started_ && NowNs() - pausedAtNs_ > kLongPauseNs)) TellGuestsClock();
  paused_ = false;
  pauseWanted.store(false);
  for (auto& vcpu : vcpus_) {
    if (vcpu->completeOnResume && vcpu->open) vcpu->Complete();
    vcpu->Unpark();
  }
}

void Vm::CompleteExit(uint32_t index) {
  Vcpu& vcpu = *vcpus_[index];
  if (!vcpu.open || !vcpu.Posted()) throw KvmError("KVM_NO_EXIT", "vCPU " + std::to_string(index) + " has no open exit");
  if (paused_) {
    if (!IsTerminal(vcpu.slot()->kind)) {
      throw KvmError("KVM_PAUSED", "an exit cannot be completed while the VM is paused; resume first");
    }
    vcpu.completeOnResume = true;
    return;
  }
  vcpu.Complete();
}

Vcpu& Vm::StoppedVcpu(uint32_t index) {
  Vcpu& vcpu = *vcpus_[index];
  if (!vcpu.Stopped()) {
    throw KvmError("KVM_NOT_PAUSED", "vCPU " + std::to_string(index) + " is running: pause the VM first");
  }
  return vcpu;
}

void Vm::DrainCoalesced() {
  if (ring_ == nullptr || drainingCoalesced_) return;
  drainingCoalesced_ = true;
  struct Reset {
    bool& flag;
    ~Reset() { flag = false; }
  } reset{drainingCoalesced_};
  auto* out = reinterpret_cast<CoalescedEntry*>(coalescedMemory_->data());
  uint32_t count = 0;
  uint32_t first = __atomic_load_n(&ring_->first, __ATOMIC_RELAXED) % ringEntries_;
  while (first != __atomic_load_n(&ring_->last, __ATOMIC_ACQUIRE) && count < ringEntries_) {
    const kvm_coalesced_mmio& in = ring_->coalesced_mmio[first];
    CoalescedEntry& entry = out[count++];
    entry.kind = in.pio == 1 ? kExitPioOut : kExitMmioWrite;
    entry.size = std::min<uint32_t>(in.len, 8);
    entry.addressLo = static_cast<uint32_t>(in.phys_addr);
    entry.addressHi = static_cast<uint32_t>(in.phys_addr >> 32);
    std::memcpy(entry.data, in.data, sizeof entry.data);
    first = (first + 1) % ringEntries_;
    __atomic_store_n(&ring_->first, first, __ATOMIC_RELEASE);
  }
  if (count > 0) sink_->OnCoalesced(count);
}

void Vm::TellGuestsClock() {
  stateReplaced_ = false;
  // Refused (EINVAL) where the guest has no kvmclock.
  for (auto& vcpu : vcpus_) {
    if (vcpu->Stopped()) ::ioctl(vcpu->fd(), KVM_KVMCLOCK_CTRL, 0);
  }
}

// Interrupts.

void Vm::IrqLine(uint32_t gsi, bool level) {
  kvm_irq_level line{};
  line.irq = gsi;
  line.level = level ? 1 : 0;
  Ioctl(fd(), KVM_IRQ_LINE, &line, "KVM_IRQ_LINE");
}

void Vm::SetGsiRouting(const std::vector<kvm_irq_routing_entry>& entries) {
  std::vector<uint64_t> storage((sizeof(kvm_irq_routing) + entries.size() * sizeof(kvm_irq_routing_entry) + 7) / 8);
  auto* table = reinterpret_cast<kvm_irq_routing*>(storage.data());
  table->nr = static_cast<uint32_t>(entries.size());
  if (!entries.empty()) std::memcpy(table->entries, entries.data(), entries.size() * sizeof(kvm_irq_routing_entry));
  Ioctl(fd(), KVM_SET_GSI_ROUTING, table, "KVM_SET_GSI_ROUTING");
}

bool Vm::SignalMsi(uint64_t address, uint32_t data) {
  kvm_msi msi{};
  msi.address_lo = static_cast<uint32_t>(address);
  msi.address_hi = static_cast<uint32_t>(address >> 32);
  msi.data = data;
  return Ioctl(fd(), KVM_SIGNAL_MSI, &msi, "KVM_SIGNAL_MSI") > 0;
}

void Vm::AssignIrqfd(int eventFd, uint32_t gsi, bool assign) {
  kvm_irqfd request{};
  request.fd = static_cast<uint32_t>(eventFd);
  request.gsi = gsi;
  request.flags = assign ? 0 : KVM_IRQFD_FLAG_DEASSIGN;
  Ioctl(fd(), KVM_IRQFD, &request, "KVM_IRQFD");
}

void Vm::AssignIoEvent(int eventFd, bool pio, uint64_t address, uint32_t size, const uint64_t* datamatch,
                       bool assign) {
  kvm_ioeventfd request{};
  request.fd = eventFd;
  request.addr = address;
  request.len = size;
  request.flags = (pio ? KVM_IOEVENTFD_FLAG_PIO : 0U) | (datamatch != nullptr ? KVM_IOEVENTFD_FLAG_DATAMATCH : 0U) |
                  (assign ? 0U : KVM_IOEVENTFD_FLAG_DEASSIGN);
  request.datamatch = datamatch != nullptr ? *datamatch : 0;
  Ioctl(fd(), KVM_IOEVENTFD, &request, "KVM_IOEVENTFD");
}

void Vm::CoalescedZone(bool pio, uint64_t address, uint32_t size, bool add) {
  if (ring_ == nullptr || (pio && CheckExtension(KVM_CAP_COALESCED_PIO) <= 0)) {
    throw KvmError("KVM_UNSUPPORTED", "this kernel has no coalesced writes of that kind");
  }
  kvm_coalesced_mmio_zone zone{};
  zone.addr = address;
  zone.size = size;
  zone.pio = pio ? 1 : 0;
  Ioctl(fd(), add ? KVM_REGISTER_COALESCED_MMIO : KVM_UNREGISTER_COALESCED_MMIO, &zone,
        add ? "KVM_REGISTER_COALESCED_MMIO" : "KVM_UNREGISTER_COALESCED_MMIO");
}

}  // namespace tsvmm
