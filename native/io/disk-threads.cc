// DiskEngine on a few threads with blocking calls, for hosts where io_uring is off (kernel.io_uring_disabled, seccomp,
// kernels before 5.6).
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "../kvm/signals-blocked.h"
#include "disk-engine.h"

namespace tsvmm::io {

bool LeaseIsOver(uint64_t deadlineNs) {
  if (deadlineNs == UINT64_MAX) return false;
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec) >= deadlineNs;
}

namespace {

constexpr size_t kThreads = 4;

class Threads final : public DiskEngine {
 public:
  Threads(int fd, int eventFd, uint32_t capacity, const std::atomic<uint64_t>* lease)
      : fd_(fd), eventFd_(eventFd), lease_(lease) {
    pushed_.reserve(capacity);
    work_.reserve(capacity);
    done_.reserve(capacity);
    const SignalsBlocked blocked;  // Signals are for the main thread and the vCPUs.
    const size_t count = std::min<size_t>(kThreads, capacity);
    for (size_t i = 0; i < count; i++) workers_.emplace_back([this] { Work(); });
  }

  ~Threads() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  const char* name() const override { return "threads"; }

  void Push(const DiskIo& io) override { pushed_.push_back(io); }

  int Flush() override {
    if (pushed_.empty()) return 0;
    const size_t count = pushed_.size();
    {
      const std::lock_guard lock(mutex_);
      work_.insert(work_.end(), pushed_.begin(), pushed_.end());
    }
    pushed_.clear();
    if (count == 1) {
      wake_.notify_one();
    } else {
      wake_.notify_all();
    }
    return 0;
  }

  size_t Reap(DiskResult* out, size_t max) override {
    const std::lock_guard lock(mutex_);
    const size_t count = std::min(max, done_.size());
    std::copy_n(done_.begin(), count, out);
    done_.erase(done_.begin(), done_.begin() + static_cast<ptrdiff_t>(count));
    return count;
  }

 private:
  int32_t Run(const DiskIo& io) const {
    if (io.op != DiskOp::kRead && LeaseIsOver(lease_->load(std::memory_order_acquire))) return -EKEYEXPIRED;
    for (;;) {
      ssize_t n = 0;
      switch (io.op) {
        case DiskOp::kRead:
          n = preadv(fd_, io.iov, static_cast<int>(io.iovCount), static_cast<off_t>(io.offset));
          break;
        case DiskOp::kWrite:
          n = pwritev(fd_, io.iov, static_cast<int>(io.iovCount), static_cast<off_t>(io.offset));
          break;
        case DiskOp::kSync:
          n = fdatasync(fd_);
          break;
        case DiskOp::kAllocate:
          n = fallocate(fd_, io.fallocMode, static_cast<off_t>(io.offset), static_cast<off_t>(io.length));
          break;
      }
      if (n >= 0) return static_cast<int32_t>(n);
      if (errno != EINTR) return -errno;
    }
  }

  void Work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return stop_ || !work_.empty(); });
      if (work_.empty()) return;  // stopping: the queue is finished first
      const DiskIo io = work_.front();
      work_.erase(work_.begin());
      lock.unlock();
      const int32_t result = Run(io);
      lock.lock();
      const bool first = done_.empty();
      done_.push_back({io.tag, result});
      if (first) {
        const uint64_t one = 1;
        [[maybe_unused]] const ssize_t n = write(eventFd_, &one, sizeof one);
      }
    }
  }

  int fd_;
  int eventFd_;
  const std::atomic<uint64_t>* lease_;
  std::vector<DiskIo> pushed_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<DiskIo> work_;
  std::vector<DiskResult> done_;
  bool stop_ = false;
  std::vector<std::thread> workers_;
};

}  // namespace

std::unique_ptr<DiskEngine> DiskEngine::Threads(int fd, int eventFd, uint32_t capacity,
                                                const std::atomic<uint64_t>* leaseDeadlineNs) {
  return std::make_unique<io::Threads>(fd, eventFd, capacity, leaseDeadlineNs);
}

}  // namespace tsvmm::io
