// Runs positioned reads, writes, syncs and fallocate calls of one file asynchronously: by io_uring, or by a few
// threads where io_uring is off. Knows descriptors and iovecs, not guests. JavaScript thread only.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace tsvmm::io {

enum class DiskOp : uint8_t { kRead, kWrite, kSync, kAllocate };

struct DiskIo {
  DiskOp op;
  uint32_t tag;
  int fallocMode;
  uint64_t offset;
  uint64_t length;     // kAllocate
  const iovec* iov;    // kRead, kWrite; stays valid until the result is reaped
  uint32_t iovCount;
};

struct DiskResult {
  uint32_t tag;
  int32_t result;  // bytes, or a negative errno
};

class DiskEngine {
 public:
  virtual ~DiskEngine() = default;  // waits for what is in flight: the kernel writes into guest memory
  virtual const char* name() const = 0;
  // At most `capacity` operations are pushed and not reaped at any time; the owner sees to that.
  virtual void Push(const DiskIo& io) = 0;
  // Starts what was pushed: one system call. 0, or a negative errno with some or all not started; Flush again later.
  virtual int Flush() = 0;
  virtual size_t Reap(DiskResult* out, size_t max) = 0;

  // nullptr where the kernel lacks or refuses io_uring. `eventFd` is written when results arrive.
  static std::unique_ptr<DiskEngine> Uring(int fd, int eventFd, uint32_t capacity);
  // Workers refuse writes (-EKEYEXPIRED) once CLOCK_BOOTTIME has passed `leaseDeadlineNs`.
  static std::unique_ptr<DiskEngine> Threads(int fd, int eventFd, uint32_t capacity,
                                             const std::atomic<uint64_t>* leaseDeadlineNs);
};

// Whether CLOCK_BOOTTIME has reached `deadlineNs`; UINT64_MAX means never, and costs no system call.
bool LeaseIsOver(uint64_t deadlineNs);

}  // namespace tsvmm::io
