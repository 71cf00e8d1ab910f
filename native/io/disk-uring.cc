// DiskEngine on io_uring by its system calls (io_uring_setup(2), io_uring_enter(2), io_uring_register(2)).
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <vector>

#include "disk-engine.h"

namespace tsvmm::io {
namespace {

class Uring final : public DiskEngine {
 public:
  explicit Uring(int fd) : fd_(fd) {}

  bool Open(int eventFd, uint32_t capacity) {
    io_uring_params params{};
    params.flags = IORING_SETUP_CLAMP;
    const uint32_t entries = std::bit_ceil(std::max(capacity, 8U));
    ring_ = static_cast<int>(syscall(__NR_io_uring_setup, entries, &params));
    if (ring_ < 0) return false;
    if (params.sq_entries < capacity || (params.features & IORING_FEAT_SINGLE_MMAP) == 0) return false;

    ringBytes_ = std::max<size_t>(params.sq_off.array + params.sq_entries * sizeof(uint32_t),
                                  params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe));
    ringMap_ = Map(ringBytes_, IORING_OFF_SQ_RING);
    sqeBytes_ = params.sq_entries * sizeof(io_uring_sqe);
    void* sqes = Map(sqeBytes_, IORING_OFF_SQES);
    if (ringMap_ == nullptr || sqes == nullptr) {
      if (sqes != nullptr) munmap(sqes, sqeBytes_);
      return false;
    }
    auto* base = static_cast<uint8_t*>(ringMap_);
    sqes_ = static_cast<io_uring_sqe*>(sqes);
    sqTail_ = reinterpret_cast<uint32_t*>(base + params.sq_off.tail);
    sqMask_ = *reinterpret_cast<uint32_t*>(base + params.sq_off.ring_mask);
    cqHead_ = reinterpret_cast<uint32_t*>(base + params.cq_off.head);
    cqTail_ = reinterpret_cast<uint32_t*>(base + params.cq_off.tail);
    cqMask_ = *reinterpret_cast<uint32_t*>(base + params.cq_off.ring_mask);
    cqes_ = reinterpret_cast<io_uring_cqe*>(base + params.cq_off.cqes);
    auto* array = reinterpret_cast<uint32_t*>(base + params.sq_off.array);
    for (uint32_t i = 0; i < params.sq_entries; i++) array[i] = i;

    return HasOperations() && syscall(__NR_io_uring_register, ring_, IORING_REGISTER_EVENTFD, &eventFd, 1) == 0;
  }

  ~Uring() override {
    // Not returned to the owner any more, but the kernel must have let go of the memory.
    DiskResult ignored[16];
    while (sqes_ != nullptr && inFlight_ > unstarted_) {
      if (Reap(ignored, 16) == 0 &&
          syscall(__NR_io_uring_enter, ring_, 0, 1, IORING_ENTER_GETEVENTS, nullptr, 0) < 0 && errno != EINTR &&
          errno != EAGAIN && errno != EBUSY) {
        break;
      }
    }
    if (sqes_ != nullptr) munmap(sqes_, sqeBytes_);
    if (ringMap_ != nullptr) munmap(ringMap_, ringBytes_);
    if (ring_ >= 0) close(ring_);
  }

  const char* name() const override { return "io_uring"; }

  void Push(const DiskIo& io) override {
    const uint32_t tail = *sqTail_;
    io_uring_sqe& sqe = sqes_[tail & sqMask_];
    memset(&sqe, 0, sizeof sqe);
    sqe.fd = fd_;
    sqe.user_data = io.tag;
    switch (io.op) {
      case DiskOp::kRead:
      case DiskOp::kWrite:
        sqe.opcode = io.op == DiskOp::kRead ? IORING_OP_READV : IORING_OP_WRITEV;
        sqe.off = io.offset;
        sqe.addr = reinterpret_cast<uint64_t>(io.iov);
        sqe.len = io.iovCount;
        break;
      case DiskOp::kSync:
        sqe.opcode = IORING_OP_FSYNC;
        sqe.fsync_flags = IORING_FSYNC_DATASYNC;
        break;
      case DiskOp::kAllocate:
        sqe.opcode = IORING_OP_FALLOCATE;
        sqe.off = io.offset;
        sqe.addr = io.length;
        sqe.len = static_cast<uint32_t>(io.fallocMode);
        break;
    }
    __atomic_store_n(sqTail_, tail + 1, __ATOMIC_RELEASE);
    unstarted_++;
    inFlight_++;
  }

  int Flush() override {
    while (unstarted_ > 0) {
      const long n = syscall(__NR_io_uring_enter, ring_, unstarted_, 0, 0, nullptr, 0);
      if (n < 0) {
        if (errno == EINTR) continue;
        return -errno;
      }
      if (n == 0) return -EAGAIN;
      unstarted_ -= static_cast<uint32_t>(n);
    }
    return 0;
  }

  size_t Reap(DiskResult* out, size_t max) override {
    uint32_t head = *cqHead_;
    const uint32_t tail = __atomic_load_n(cqTail_, __ATOMIC_ACQUIRE);
    size_t count = 0;
    for (; head != tail && count < max; head++) {
      const io_uring_cqe& cqe = cqes_[head & cqMask_];
      out[count++] = {static_cast<uint32_t>(cqe.user_data), cqe.res};
    }
    __atomic_store_n(cqHead_, head, __ATOMIC_RELEASE);
    inFlight_ -= static_cast<uint32_t>(count);
    return count;
  }

 private:
  void* Map(size_t bytes, off_t offset) const {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring_, offset);
    return p == MAP_FAILED ? nullptr : p;
  }

  // IORING_OP_FALLOCATE and the probe itself came with Linux 5.6.
  bool HasOperations() const {
    constexpr uint32_t kOps = 64;
    std::vector<uint64_t> storage((sizeof(io_uring_probe) + kOps * sizeof(io_uring_probe_op)) / 8 + 1);
    auto* probe = reinterpret_cast<io_uring_probe*>(storage.data());
    if (syscall(__NR_io_uring_register, ring_, IORING_REGISTER_PROBE, probe, kOps) < 0) return false;
    for (const uint32_t op : {IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC, IORING_OP_FALLOCATE}) {
      if (op > probe->last_op || (probe->ops[op].flags & IO_URING_OP_SUPPORTED) == 0) return false;
    }
    return true;
  }

  int fd_;
  int ring_ = -1;
  void* ringMap_ = nullptr;
  size_t ringBytes_ = 0;
  io_uring_sqe* sqes_ = nullptr;
  size_t sqeBytes_ = 0;
  uint32_t* sqTail_ = nullptr;
  uint32_t sqMask_ = 0;
  uint32_t* cqHead_ = nullptr;
  uint32_t* cqTail_ = nullptr;
  uint32_t cqMask_ = 0;
  io_uring_cqe* cqes_ = nullptr;
  uint32_t unstarted_ = 0;
  uint32_t inFlight_ = 0;
};

}  // namespace

std::unique_ptr<DiskEngine> DiskEngine::Uring(int fd, int eventFd, uint32_t capacity) {
  auto ring = std::make_unique<io::Uring>(fd);
  if (!ring->Open(eventFd, capacity)) return nullptr;
  return ring;
}

}  // namespace tsvmm::io
