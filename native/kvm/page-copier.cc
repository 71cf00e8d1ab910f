#include "page-copier.h"

#include <emmintrin.h>
#include <sys/prctl.h>

#include <algorithm>
#include <system_error>

#include "signals-blocked.h"

namespace tsvmm {

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kAheadBytes = 512;
// Pages that a thread takes at a time: some ten microseconds.
constexpr size_t kShare = 32;

}  // namespace

void StreamPage(uint8_t* to, const uint8_t* from, const uint8_t* next) {
  for (size_t at = 0; at < kAheadBytes; at += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(next + at), _MM_HINT_T0);
  }
  for (size_t at = 0; at < kPage; at += 64) {
    const auto* source = reinterpret_cast<const __m128i*>(from + at);
    auto* target = reinterpret_cast<__m128i*>(to + at);
    const __m128i a = _mm_load_si128(source);
    const __m128i b = _mm_load_si128(source + 1);
    const __m128i c = _mm_load_si128(source + 2);
    const __m128i d = _mm_load_si128(source + 3);
    _mm_stream_si128(target, a);
    _mm_stream_si128(target + 1, b);
    _mm_stream_si128(target + 2, c);
    _mm_stream_si128(target + 3, d);
  }
}

void EndStream() { _mm_sfence(); }

PageCopier::~PageCopier() {
  Finish();
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  change_.notify_all();
  thread_.join();
}

void PageCopier::Begin() {
  next_.store(0, std::memory_order_relaxed);
  begun_ = true;
  if (!thread_.joinable()) {
    const SignalsBlocked blocked;
    try {
      thread_ = std::thread([this] { ThreadMain(); });
    } catch (const std::system_error&) {
      // Finish does it alone.
    }
  }
  {
    const std::lock_guard lock(mutex_);
    pending_ = true;
  }
  change_.notify_all();
}

void PageCopier::Finish() {
  if (!begun_) return;
  begun_ = false;
  Work();
  std::unique_lock lock(mutex_);
  // A thread that was late has nothing to do any more, and must not look at the lists of the next job.
  pending_ = false;
  change_.wait(lock, [this] { return !busy_; });
}

void PageCopier::Work() {
  const size_t count = from.size();
  for (;;) {
    const size_t first = next_.fetch_add(kShare, std::memory_order_relaxed);
    if (first >= count) break;
    const size_t end = std::min(count, first + kShare);
    for (size_t i = first; i < end; i++) StreamPage(to[i], from[i], from[i + 1 < end ? i + 1 : i]);
  }
  EndStream();
}

void PageCopier::ThreadMain() {
  prctl(PR_SET_NAME, "page-copier", 0, 0, 0);
  std::unique_lock lock(mutex_);
  for (;;) {
    change_.wait(lock, [this] { return pending_ || stop_; });
    if (stop_) return;
    pending_ = false;
    busy_ = true;
    lock.unlock();
    Work();
    lock.lock();
    busy_ = false;
    change_.notify_all();
  }
}

}  // namespace tsvmm
