#include "vcpu.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <mutex>

#include "error.h"
#include "futex.h"
#include "signals-blocked.h"
#include "vm.h"

namespace tsvmm {

namespace {

// The first real-time signals belong to the C library; the rest are free in Node.
int KickSignal() { return SIGRTMIN + 6; }

// The kvm_run of the vCPU that this thread runs. Set before the kick signal is unblocked, so that the
// handler never allocates thread-local storage.
thread_local kvm_run* currentRun = nullptr;

// Closes the gap between the last look at the flags and KVM_RUN: an early signal makes it return at once.
void OnKick(int) {
  if (currentRun != nullptr) {
    __atomic_store_n(&currentRun->immediate_exit, 1, __ATOMIC_RELAXED);
  }
}

}  // namespace

void PrepareKickSignal() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_handler = OnKick;
    sigemptyset(&action.sa_mask);
    action.sa_flags = 0;  // no SA_RESTART: KVM_RUN must return
    sigaction(KickSignal(), &action, nullptr);
  });
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, KickSignal());
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

Vcpu::Vcpu(Vm& vm, uint32_t index, ExitSlot* slot) : vm_(vm), index_(index), slot_(slot) {
  fd_ = UniqueFd(Ioctl(vm.fd(), KVM_CREATE_VCPU, static_cast<unsigned long>(index), "KVM_CREATE_VCPU"));
  runBytes_ = static_cast<size_t>(Ioctl(vm.kvmFd(), KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE"));
  void* page = mmap(nullptr, runBytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
  if (page == MAP_FAILED) throw IoctlError("mmap(vcpu)", errno);
  run_ = static_cast<kvm_run*>(page);
  slot_->vcpu = index;
}

Vcpu::~Vcpu() {
  Join();
  if (run_ != nullptr) munmap(run_, runBytes_);
}

void Vcpu::Start() {
  state.store(kRunning);
  const SignalsBlocked blocked;
  try {
    thread_ = std::thread([this] { ThreadMain(); });
  } catch (...) {
    state.store(kIdle);
    throw;
  }
}

void Vcpu::Kick() {
  if (thread_.joinable()) pthread_kill(thread_.native_handle(), KickSignal());
}

void Vcpu::Complete() {
  open = false;
  completeOnResume = false;
  if (state.exchange(kDone) == kPostedAsleep) FutexWake(state);
}

void Vcpu::Unpark() {
  uint32_t expected = kParked;
  if (state.compare_exchange_strong(expected, kRunning)) FutexWake(state);
}

void Vcpu::Join() {
  if (!thread_.joinable()) return;
  // A thread in KVM_RUN needs the signal, a sleeping one the futex; either may be about to change.
  for (;;) {
    const uint32_t s = state.load();
    if (s == kExited) break;
    FutexWake(state);
    Kick();
    FutexWait(state, s, 1000000);
  }
  thread_.join();
}

bool Vcpu::Place(const cpu_set_t& cpus) {
  const int tid = tid_.load();
  return tid != 0 && sched_setaffinity(tid, sizeof cpus, &cpus) == 0;
}

void Vcpu::ThreadMain() {
  tid_.store(static_cast<int>(gettid()));
  currentRun = run_;
  char name[16];
  std::snprintf(name, sizeof name, "vcpu-%u", index_);
  prctl(PR_SET_NAME, name, 0, 0, 0);
  sigset_t mask;
  sigfillset(&mask);
  for (int signal : {KickSignal(), SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) sigdelset(&mask, signal);
  pthread_sigmask(SIG_SETMASK, &mask, nullptr);

  threads.fetch_add(1);
  uint32_t retries = 0;
  // True while KVM holds an operation whose second half runs at the next KVM_RUN.
  bool pending = false;
  for (;;) {
    __atomic_store_n(&run_->immediate_exit, 0, __ATOMIC_RELAXED);
    std::atomic_signal_fence(std::memory_order_seq_cst);
    if (vm_.stop.load()) break;
    if (vm_.pauseWanted.load()) {
      if (!pending) {
        Park();
        continue;
      }
      // Finish the operation without running guest code. It may take further exits: the loop goes round
      // until KVM_RUN says EINTR, which it does only with nothing left pending.
      __atomic_store_n(&run_->immediate_exit, 1, __ATOMIC_RELAXED);
    }
    const int result = ::ioctl(fd_.get(), KVM_RUN, 0);
    if (result < 0) {
      const int error = errno;
      pending = false;
      if (error == EINTR) continue;
      // An application processor that was waiting for its start-up has been woken. Once is normal.
      if (error == EAGAIN) {
        if (++retries > 100) usleep(1000);
        continue;
      }
      FillRunError(error);
    } else {
      if (run_->exit_reason == KVM_EXIT_INTR || run_->exit_reason == KVM_EXIT_IRQ_WINDOW_OPEN) continue;
      FillSlot();
      pending = true;
      retries = 0;
    }
    if (!PostAndWait()) break;
    TakeAnswer();
  }
  threads.fetch_sub(1);
  tid_.store(0);
  state.store(kExited);
  FutexWake(state);
  vm_.NotifyFromVcpu();
}

void Vcpu::FillRunError(int error) {
  ExitSlot& s = *slot_;
  s.kind = kExitRunError;
  s.size = s.count = s.addressLo = s.addressHi = s.dataLength = 0;
  s.detail = static_cast<uint32_t>(error);
  s.ripLo = s.ripHi = s.detail64Lo = s.detail64Hi = 0;
}

void Vcpu::FillSlot() {
  ExitSlot& s = *slot_;
  const kvm_run& run = *run_;
  s.size = s.count = s.addressLo = s.addressHi = s.detail = s.dataLength = 0;
  s.ripLo = s.ripHi = s.detail64Lo = s.detail64Hi = 0;
  auto setRip = [&s](uint64_t rip) {
    s.ripLo = static_cast<uint32_t>(rip);
    s.ripHi = static_cast<uint32_t>(rip >> 32);
  };
  auto setDetail64 = [&s](uint64_t value) {
    s.detail64Lo = static_cast<uint32_t>(value);
    s.detail64Hi = static_cast<uint32_t>(value >> 32);
  };
  switch (run.exit_reason) {
    case KVM_EXIT_IO: {
      s.kind = run.io.direction == KVM_EXIT_IO_OUT ? kExitPioOut : kExitPioIn;
      s.size = run.io.size;
      s.count = run.io.count;
      s.addressLo = run.io.port;
      const uint64_t bytes = static_cast<uint64_t>(run.io.size) * run.io.count;
      if (bytes > kSlotDataBytes || run.io.data_offset > runBytes_ || bytes > runBytes_ - run.io.data_offset) {
        s.kind = kExitUnknown;
        s.detail = run.exit_reason;
        break;
      }
      s.dataLength = static_cast<uint32_t>(bytes);
      if (s.kind == kExitPioOut) {
        std::memcpy(s.data, reinterpret_cast<const uint8_t*>(run_) + run.io.data_offset, bytes);
      } else {
        std::memset(s.data, 0xff, bytes);
      }
      break;
    }
    case KVM_EXIT_MMIO: {
      s.kind = run.mmio.is_write ? kExitMmioWrite : kExitMmioRead;
      const uint32_t bytes = std::min<uint32_t>(run.mmio.len, 8);
      s.size = bytes;
      s.count = 1;
      s.addressLo = static_cast<uint32_t>(run.mmio.phys_addr);
      s.addressHi = static_cast<uint32_t>(run.mmio.phys_addr >> 32);
      s.dataLength = bytes;
      if (run.mmio.is_write) {
        std::memcpy(s.data, run.mmio.data, bytes);
      } else {
        std::memset(s.data, 0xff, bytes);
      }
      break;
    }
    case KVM_EXIT_SHUTDOWN:
      s.kind = kExitShutdown;
      break;
    case KVM_EXIT_SYSTEM_EVENT:
      s.kind = kExitSystemEvent;
      s.detail = run.system_event.type;
      break;
    case KVM_EXIT_INTERNAL_ERROR: {
      s.kind = kExitInternalError;
      s.detail = run.internal.suberror;
      if (run.internal.suberror == KVM_INTERNAL_ERROR_EMULATION && run.internal.ndata >= 3 &&
          (run.emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0) {
        const uint32_t bytes = std::min<uint32_t>(run.emulation_failure.insn_size, 15);
        std::memcpy(s.data, run.emulation_failure.insn_bytes, bytes);
        s.dataLength = bytes;
      }
      break;
    }
    case KVM_EXIT_FAIL_ENTRY:
      s.kind = kExitFailEntry;
      setDetail64(run.fail_entry.hardware_entry_failure_reason);
      break;
    case KVM_EXIT_DEBUG:
      s.kind = kExitDebug;
      s.detail = run.debug.arch.exception;
      setDetail64(run.debug.arch.dr6);
      setRip(run.debug.arch.pc);
      break;
    case KVM_EXIT_HYPERCALL:
      s.kind = kExitHypercall;
      s.detail = static_cast<uint32_t>(run.hypercall.nr);
      static_assert(sizeof run.hypercall.args == 48);
      std::memcpy(s.data, run.hypercall.args, 48);
      s.dataLength = 48;
      break;
    case KVM_EXIT_HLT:
      s.kind = kExitHalt;
      break;
    default:
      s.kind = kExitUnknown;
      s.detail = run.exit_reason;
      break;
  }
  if (s.kind == kExitInternalError || s.kind == kExitFailEntry || s.kind == kExitShutdown) {
    kvm_regs regs{};
    if (::ioctl(fd_.get(), KVM_GET_REGS, &regs) == 0) setRip(regs.rip);
  }
}

void Vcpu::TakeAnswer() {
  const ExitSlot& s = *slot_;
  switch (s.kind) {
    case kExitPioIn:
      std::memcpy(reinterpret_cast<uint8_t*>(run_) + run_->io.data_offset, s.data,
                  static_cast<size_t>(run_->io.size) * run_->io.count);
      break;
    case kExitMmioRead:
      std::memcpy(run_->mmio.data, s.data, std::min<uint32_t>(run_->mmio.len, 8));
      break;
    case kExitHypercall:
      std::memcpy(&run_->hypercall.ret, s.data, 8);
      break;
    default:
      break;
  }
}

bool Vcpu::PostAndWait() {
  exits.fetch_add(1, std::memory_order_relaxed);
  const uint64_t start = NowNs();
  const uint64_t guest = guestNs_.load(std::memory_order_relaxed);
  guestNs_.store(guest - guest / 8 + std::min(start - resumedNs_, kGuestMaxNs) / 8, std::memory_order_relaxed);
  uint64_t maxNs = vm_.spins() ? vm_.vcpuSpinNs.load(std::memory_order_relaxed) : 0;
  if (near.load(std::memory_order_relaxed) || vm_.contention.Recent(start)) maxNs = 0;
  // What will sleep says so before the loop looks.
  state.store(maxNs > 0 ? kPosted : kPostedAsleep);
  vm_.NotifyFromVcpu();
  uint64_t answered = 0;
  if (maxNs > 0) {
    // Twice the usual wait, within bounds; a short look even when waits have been long, to notice change.
    const uint64_t usual = averageWaitNs_ * 2;
    const uint64_t budget = usual <= maxNs ? std::max<uint64_t>(usual, 5000) : std::min<uint64_t>(maxNs, 5000);
    uint64_t now = start;
    bool hit = false;
    do {
      for (int i = 0; i < 32 && !hit; i++) {
        hit = state.load(std::memory_order_acquire) == kDone;
        if (!hit) CpuRelax();
      }
      if (hit) break;
      const uint64_t before = now;
      now = NowNs();
      if (vm_.contention.Looked(before, now)) break;
    } while (now - start < budget && !vm_.stop.load(std::memory_order_relaxed));
    if (!hit) {
      uint32_t expected = kPosted;
      if (state.compare_exchange_strong(expected, kPostedAsleep)) {
        sleeps.fetch_add(1, std::memory_order_relaxed);
        while (state.load() == kPostedAsleep && !vm_.stop.load()) FutexWait(state, kPostedAsleep, -1);
      }
      now = NowNs();
    } else {
      now = NowNs();
      spinHits.fetch_add(1, std::memory_order_relaxed);
    }
    // A wait of more than a few milliseconds is an exit left open on purpose: no lesson in it.
    const uint64_t waited = std::min<uint64_t>(now - start, maxNs * 4);
    averageWaitNs_ += waited / 8;
    averageWaitNs_ -= averageWaitNs_ / 8;
    answered = now;
  } else {
    sleeps.fetch_add(1, std::memory_order_relaxed);
    while (state.load() == kPostedAsleep && !vm_.stop.load()) FutexWait(state, kPostedAsleep, -1);
    answered = NowNs();
  }
  resumedNs_ = answered;
  if (vm_.stop.load()) return false;
  state.store(kRunning);
  return true;
}

void Vcpu::Park() {
  state.store(kParked);
  vm_.NotifyFromVcpu();
  while (state.load() == kParked && !vm_.stop.load()) FutexWait(state, kParked, -1);
  // Parked and told to stop: leave the state word to the loop's end.
}

}  // namespace tsvmm
