// One vCPU: its descriptor, its kvm_run page, its thread and its exit slot.
//
// Hand-over. `state` is the only word both sides write:
//   kRunning -> kPosted (vCPU: the slot is filled)  [-> kPostedAsleep (vCPU: stopped spinning)]
//   kPosted* -> kDone (JavaScript thread: the answer is in the slot) -> kRunning (vCPU)
//   kRunning -> kParked (vCPU: a pause is wanted and no operation is pending) -> kRunning (JavaScript)
// The slot belongs to the vCPU thread in kRunning and kDone, to the JavaScript thread otherwise. KVM
// ioctls on the vCPU from the JavaScript thread are safe exactly when it is not in KVM_RUN: kIdle,
// kPosted*, kParked, kExited.
#pragma once

#include "kvm-api.h"
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>

#include "unique-fd.h"

namespace tsvmm {

class Vm;

enum VcpuState : uint32_t { kIdle, kRunning, kPosted, kPostedAsleep, kDone, kParked, kExited };

// Kinds of exit, as in src/kvm/api.ts.
enum ExitKind : uint32_t {
  kExitPioIn = 1,
  kExitPioOut = 2,
  kExitMmioRead = 3,
  kExitMmioWrite = 4,
  kExitShutdown = 5,
  kExitSystemEvent = 6,
  kExitInternalError = 7,
  kExitFailEntry = 8,
  kExitDebug = 9,
  kExitHypercall = 10,
  kExitHalt = 11,
  kExitRunError = 12,
  kExitUnknown = 13,
};

constexpr bool IsTerminal(uint32_t kind) {
  return kind == kExitShutdown || kind == kExitSystemEvent || kind == kExitInternalError ||
         kind == kExitFailEntry || kind == kExitRunError || kind == kExitUnknown;
}

constexpr size_t kSlotDataOffset = 64;
constexpr size_t kSlotDataBytes = 4096;
constexpr size_t kSlotStride = kSlotDataOffset + kSlotDataBytes + 32;

// The mailbox, shared with JavaScript. Layout: SLOT_WORD of src/kvm/api.ts.
struct ExitSlot {
  uint32_t kind;
  uint32_t size;
  uint32_t count;
  uint32_t addressLo;
  uint32_t addressHi;
  uint32_t vcpu;
  uint32_t detail;
  uint32_t dataLength;
  uint32_t ripLo;
  uint32_t ripHi;
  uint32_t detail64Lo;
  uint32_t detail64Hi;
  uint32_t reserved[4];
  uint8_t data[kSlotDataBytes];
  uint8_t pad[32];
};
static_assert(sizeof(ExitSlot) == kSlotStride && offsetof(ExitSlot, data) == kSlotDataOffset);

class Vcpu {
 public:
  // Throws IoctlError.
  Vcpu(Vm& vm, uint32_t index, ExitSlot* slot);
  ~Vcpu();
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;

  // Everything below is for the JavaScript thread.
  void Start();
  // Makes KVM_RUN return soon, whatever the thread is doing. Needs a started thread.
  void Kick();
  // The answer is in the slot: the vCPU goes on.
  void Complete();
  void Unpark();
  // After Vm::stop is set: wakes and joins. Idempotent.
  void Join();
  bool Stopped() const {
    const uint32_t s = state.load(std::memory_order_acquire);
    return s == kIdle || s == kPosted || s == kPostedAsleep || s == kParked || s == kExited;
  }
  bool Posted() const {
    const uint32_t s = state.load(std::memory_order_acquire);
    return s == kPosted || s == kPostedAsleep;
  }

  // Where the thread may run. Cheap while it sleeps.
  bool Place(const cpu_set_t& cpus);
  // Usual time in the guest between two exits. Any thread.
  uint64_t GuestNs() const { return guestNs_.load(std::memory_order_relaxed); }

  int fd() const { return fd_.get(); }
  kvm_run* run() const { return run_; }
  ExitSlot* slot() const { return slot_; }
  uint32_t index() const { return index_; }

  // vCPU threads of this process.
  static inline std::atomic<uint32_t> threads{0};

  std::atomic<uint32_t> state{kIdle};
  // JavaScript thread only: the posted exit was delivered and is not complete.
  bool open = false;
  // JavaScript thread only: a terminal exit to be completed by the next resume.
  bool completeOnResume = false;
  // It shares the CPU of the JavaScript thread: spinning would keep that from answering.
  std::atomic<bool> near{false};
  std::atomic<uint64_t> spinHits{0};
  std::atomic<uint64_t> sleeps{0};
  std::atomic<uint64_t> exits{0};

 private:
  void ThreadMain();
  void FillSlot();
  void FillRunError(int error);
  void TakeAnswer();
  // Posts the slot and waits; false when the VM stops.
  bool PostAndWait();
  void Park();

  // One long run in the guest counts as this.
  static constexpr uint64_t kGuestMaxNs = 200000;

  Vm& vm_;
  uint32_t index_;
  ExitSlot* slot_;
  UniqueFd fd_;
  kvm_run* run_ = nullptr;
  size_t runBytes_ = 0;
  std::thread thread_;
  uint64_t averageWaitNs_ = 20000;
  uint64_t resumedNs_ = 0;
  std::atomic<uint64_t> guestNs_{kGuestMaxNs};
  std::atomic<int> tid_{0};
};

// Installs the kick signal's handler (once per process) and blocks the signal on the calling thread.
void PrepareKickSignal();

}  // namespace tsvmm
