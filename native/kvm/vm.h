// A virtual machine without JavaScript: descriptors, memory slots, vCPUs, pausing, interrupts, dirty log.
// All methods belong to the JavaScript thread except where said. Owned by VmObject (vm-object.cc), which
// is the ExitSink.
#pragma once

#include "kvm-api.h"

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "futex.h"
#include "memory-map.h"
#include "unique-fd.h"
#include "vcpu.h"

namespace tsvmm {

// Receives what the guest does, on the JavaScript thread.
class ExitSink {
 public:
  virtual ~ExitSink() = default;
  // True when the exit is complete. May throw.
  virtual bool OnExit(uint32_t vcpu) = 0;
  // `count` entries are in Vm::coalescedEntries().
  virtual void OnCoalesced(uint32_t count) = 0;
  // From any vCPU thread: something is posted; wake the loop if it sleeps.
  virtual void WakeFromVcpu() = 0;
};

// Anonymous guest memory: huge pages advised, kept out of core dumps.
class AnonymousMapping : public Mapping {
 public:
  // Throws IoctlError.
  static std::shared_ptr<AnonymousMapping> Create(uint64_t size);
  ~AnonymousMapping() override;

 private:
  AnonymousMapping(uint8_t* data, uint64_t size) : Mapping(data, size) {}
};

struct VmConfig {
  uint32_t vcpus;
  bool pit;
  uint64_t tssAddress;
};

struct SlotConfig {
  uint32_t slot;
  uint64_t guestPhys;
  uint64_t size;
  bool readonly;
  bool log;
  uint64_t firstPage;
};

// Layout: COALESCED_WORD of src/kvm/api.ts.
struct CoalescedEntry {
  uint32_t kind;
  uint32_t size;
  uint32_t addressLo;
  uint32_t addressHi;
  uint8_t data[8];
  uint32_t reserved[2];
};
static_assert(sizeof(CoalescedEntry) == 32);

class Vm {
 public:
  // Throws IoctlError; a VM half made is taken down by its members.
  Vm(const VmConfig& config, std::shared_ptr<MemoryMap> memory, ExitSink* sink);
  ~Vm();
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;

  int fd() const { return fd_.get(); }
  int kvmFd() const { return kvmFd_.get(); }
  int CheckExtension(int capability) const;

  // Memory.
  std::shared_ptr<AnonymousMapping> CreateBuffer(uint64_t size);
  // The buffer that starts at `data`, or nullptr.
  std::shared_ptr<AnonymousMapping> FindBuffer(const uint8_t* data) const;
  void MapSlot(const SlotConfig& config, std::shared_ptr<AnonymousMapping> buffer, uint64_t offset);
  void UnmapSlot(uint32_t slot);
  void SetDirtyLog(uint32_t slot, bool on);
  // Returns how many page numbers were written; when it is `capacity` there may be more.
  size_t HarvestList(uint32_t* list, size_t capacity);
  // ORs into a bitmap of wordCount 32-bit words; returns pages newly set. Throws before anything is lost
  // when a slot's pages do not fit.
  uint64_t HarvestBits(uint32_t* words, size_t wordCount);

  // Running.
  void Start();
  bool started() const { return started_; }
  // Delivers all exits that wait; returns how many.
  uint32_t DeliverPosted();
  // True if DeliverPosted would deliver something.
  bool HasPosted() const;
  // Lets the vCPU that shares the loop's CPU go when it has not exited for a while; false when none does.
  bool ReviewPlaces();
  bool HasNear() const { return near_ != nullptr; }
  void Pause(bool leaveOutOpen, uint64_t timeoutMs);
  void Resume();
  bool paused() const { return paused_; }
  void CompleteExit(uint32_t vcpu);
  void DrainCoalesced();
  void SetSpin(uint64_t vcpuNs, uint64_t loopNs);
  // From a vCPU thread, after it changed its state word.
  void NotifyFromVcpu();
  // Stops and joins the threads, closes the descriptors, forgets the memory. Idempotent.
  void Destroy();
  bool destroyed() const { return destroyed_; }
  bool delivering() const { return delivering_ > 0; }

  // Interrupts.
  void IrqLine(uint32_t gsi, bool level);
  void SetGsiRouting(const std::vector<kvm_irq_routing_entry>& entries);
  bool SignalMsi(uint64_t address, uint32_t data);
  void AssignIrqfd(int eventFd, uint32_t gsi, bool assign);
  void AssignIoEvent(int eventFd, bool pio, uint64_t address, uint32_t size, const uint64_t* datamatch,
                     bool assign);
  void CoalescedZone(bool pio, uint64_t address, uint32_t size, bool add);

  Vcpu& vcpu(uint32_t index) { return *vcpus_[index]; }
  uint32_t vcpuCount() const { return static_cast<uint32_t>(vcpus_.size()); }
  const std::shared_ptr<MemoryMap>& memory() const { return memory_; }
  const std::shared_ptr<AnonymousMapping>& slots() const { return slotMemory_; }
  const std::shared_ptr<AnonymousMapping>& coalescedEntries() const { return coalescedMemory_; }
  uint64_t xsaveBytes() const { return xsaveBytes_; }
  // A spinning thread that keeps its partner from running costs milliseconds: only with a CPU for each of
  // this process's vCPUs and for the loop. Any thread may ask.
  bool spins() const { return Vcpu::threads.load(std::memory_order_relaxed) + 1 <= allowedCpus_; }
  uint64_t loopSpinNs() const { return spins() && near_ == nullptr ? loopSpinNs_ : 0; }
  uint64_t pauseTsc() const { return pauseTsc_; }
  // The clock MSRs were written: the guest continues from another time.
  void NoteStateReplaced() { stateReplaced_ = true; }
  // Throws KvmError KVM_NOT_PAUSED when ioctls on this vCPU would have to wait for the guest.
  Vcpu& StoppedVcpu(uint32_t index);

  std::atomic<bool> stop{false};
  std::atomic<bool> pauseWanted{false};
  std::atomic<uint64_t> vcpuSpinNs{0};
  Contention contention;
  uint64_t kicks = 0;

 private:
  struct Slot {
    SlotConfig config;
    std::shared_ptr<AnonymousMapping> buffer;
    uint8_t* host = nullptr;
    std::vector<uint64_t> log;      // what the kernel just gave
    std::vector<uint64_t> pending;  // harvested from the kernel, not yet handed out
  };
  void SetRegion(const Slot& slot, bool remove);
  void FetchLog(Slot& slot);
  // Delivers one posted exit; false if the sink left it open.
  bool Deliver(Vcpu& vcpu);
  // Where the hand-over sleeps (no CPU is free to spin on, or waking takes longer than any spin), each exit costs
  // two wake-ups of another CPU. A vCPU that hardly runs between its exits then shares the CPU of this thread:
  // handing over is a switch of threads there, several times cheaper in a virtual machine. Spinning is tried again
  // after a while. Only ever one vCPU: two on one CPU would wait for each other.
  void ConsiderPlaces(Vcpu& vcpu);
  void StartNear(Vcpu& vcpu);
  void EndNear();
  void CancelPause();
  // The guest's watchdogs must not take a stop for a hang (KVM_KVMCLOCK_CTRL).
  void TellGuestsClock();

  UniqueFd kvmFd_;
  UniqueFd fd_;
  std::shared_ptr<MemoryMap> memory_;
  ExitSink* sink_;
  std::shared_ptr<AnonymousMapping> slotMemory_;
  std::shared_ptr<AnonymousMapping> coalescedMemory_;
  std::vector<std::unique_ptr<Vcpu>> vcpus_;
  std::map<uint32_t, Slot> slots_;
  std::vector<uint32_t> orphanPages_;  // dirty pages of slots that were unmapped before a harvest
  std::vector<std::shared_ptr<AnonymousMapping>> buffers_;
  kvm_coalesced_mmio_ring* ring_ = nullptr;
  uint32_t ringEntries_ = 0;
  uint64_t xsaveBytes_ = 4096;
  uint64_t loopSpinNs_ = 0;
  uint64_t vcpuSpinWantedNs_ = 0;
  uint32_t allowedCpus_ = 1;
  bool started_ = false;
  Vcpu* near_ = nullptr;  // shares the CPU of the JavaScript thread
  cpu_set_t loopHome_{};
  uint64_t nearExitNs_ = 0;
  uint64_t nearUntilNs_ = 0;
  uint64_t nearForNs_ = 100000000;
  uint32_t slowExits_ = 0;
  uint32_t quickExits_ = 0;
  bool paused_ = false;
  bool destroyed_ = false;
  bool drainingCoalesced_ = false;
  int delivering_ = 0;
  uint64_t pauseTsc_ = 0;
  uint64_t pausedAtNs_ = 0;
  bool stateReplaced_ = false;
  // Counts posts and parks, so that Pause can sleep until one happens.
  std::atomic<uint32_t> events_{0};
  std::atomic<bool> eventWaiter_{false};
};

}  // namespace tsvmm
