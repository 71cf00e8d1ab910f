// Futex wait and wake on a 32-bit atomic, and the clock and pause that spinning needs.
#pragma once

#include <immintrin.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>

namespace tsvmm {

// Waits while word == expected, at most timeoutNs (negative: for ever). Spurious returns are normal.
inline void FutexWait(std::atomic<uint32_t>& word, uint32_t expected, int64_t timeoutNs) {
  timespec time{};
  timespec* limit = nullptr;
  if (timeoutNs >= 0) {
    time.tv_sec = timeoutNs / 1000000000;
    time.tv_nsec = timeoutNs % 1000000000;
    limit = &time;
  }
  ::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, expected, limit, nullptr, 0);
}

inline void FutexWake(std::atomic<uint32_t>& word) {
  ::syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

inline uint64_t NowNs() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<uint64_t>(time.tv_sec) * 1000000000ULL + static_cast<uint64_t>(time.tv_nsec);
}

inline void CpuRelax() { _mm_pause(); }

// Notices that spinning threads are taken off their CPUs: somebody else wants to run there, and spinning
// only makes the partner wait. Shared by both sides of a hand-over; any thread may call. Spinning is tried
// again after a pause, which is the longer the sooner the last trial failed.
class Contention {
 public:
  bool Recent(uint64_t now) const { return now < until_.load(std::memory_order_relaxed); }
  // Two looks at the clock in one spin loop. True if the thread was away in between.
  bool Looked(uint64_t before, uint64_t now) {
    if (now - before < kAwayNs) return false;
    const uint64_t until = until_.load(std::memory_order_relaxed);
    const uint64_t pause = pause_.load(std::memory_order_relaxed);
    if (now >= until) {
      // A trial that held for less than its pause was none.
      const uint64_t next = now - until < pause ? pause * 2 : kPauseMinNs;
      pause_.store(next < kPauseMaxNs ? next : kPauseMaxNs, std::memory_order_relaxed);
      until_.store(now + pause_.load(std::memory_order_relaxed), std::memory_order_relaxed);
    }
    return true;
  }

 private:
  static constexpr uint64_t kAwayNs = 100000;
  static constexpr uint64_t kPauseMinNs = 20000000;
  static constexpr uint64_t kPauseMaxNs = 640000000;
  std::atomic<uint64_t> until_{0};
  std::atomic<uint64_t> pause_{kPauseMinNs};
};

}  // namespace tsvmm
