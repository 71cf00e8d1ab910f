// Copies of pages, past the caches: on the calling thread, and for long lists on a thread of its own beside it, while the caller does
// something else. Knows neither guests nor lists; MemoryMapObject is its only user.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace tsvmm {

// One page. `to` is aligned to 16 bytes, `from` to a page; the head of `next` is fetched ahead, which no hardware does across the
// end of a page.
void StreamPage(uint8_t* to, const uint8_t* from, const uint8_t* next);
// After the last StreamPage of a thread: makes them visible to others.
void EndStream();

class PageCopier {
 public:
  ~PageCopier();

  // The next job, filled by the owner between Finish and Begin.
  std::vector<const uint8_t*> from;
  std::vector<uint8_t*> to;

  // Lets the thread begin with from[i] -> to[i]; where there can be no thread, Finish does it all.
  void Begin();
  bool begun() const { return begun_; }
  // Takes part until everything is copied, by both.
  void Finish();

 private:
  void Work();
  void ThreadMain();

  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable change_;
  std::atomic<size_t> next_{0};
  bool begun_ = false;    // owner's thread only
  bool pending_ = false;  // under mutex_: the thread has not seen the job
  bool busy_ = false;     // under mutex_: the thread is at it
  bool stop_ = false;     // under mutex_
};

}  // namespace tsvmm
