// BlockIo: numbered disk requests whose data lies in guest memory. Translates guest-physical segments through a
// MemoryMap, submits a batch by one system call, carries short transfers on, copies through a bounce buffer where
// direct I/O cannot take a segment as it is, and refuses writes after the end of a lease. What the numbers mean and
// what happens on an error is the caller's business. JavaScript thread only.
#include "block-io.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <deque>
#include <vector>

#include "../kvm/loop-poller.h"
#include "../kvm/memory-map.h"
#include "args.h"
#include "disk-engine.h"
#include "watch.h"

namespace tsvmm::io {
namespace {

// Numbers of BLOCK_OP in src/block/backend.ts.
enum : uint8_t { kOpRead, kOpWrite, kOpFlush, kOpDiscard, kOpWriteZeroes, kOpWriteZeroesUnmap, kOpCount };

constexpr size_t kMaxRequests = 1024;
constexpr uint64_t kMaxTransfer = 64ULL << 20;
// Memory of all bounce buffers together; requests beyond it wait for their turn.
constexpr uint64_t kBounceMax = 64ULL << 20;
constexpr size_t kBounceAlign = 4096;
constexpr uint64_t kZeroBytes = 1ULL << 20;
constexpr uint32_t kZeroIovs = 16;

// One mebibyte of zeroes, mapped once per process.
uint8_t* Zeroes() {
  static uint8_t* zeroes = [] {
    void* p = mmap(nullptr, kZeroBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? nullptr : static_cast<uint8_t*>(p);
  }();
  return zeroes;
}

struct Request {
  enum class State : uint8_t { kFree, kQueued, kWaiting, kStarted, kReady };
  State state = State::kFree;
  uint8_t op = 0;
  bool zeroing = false;  // a writeZeroes that the file system could not do: writes zeroes in steps
  int32_t result = 0;
  uint64_t offset = 0;
  uint64_t length = 0;
  uint64_t done = 0;
  std::vector<iovec> segments;  // as the guest gave them
  std::vector<iovec> iov;       // what is handed to the kernel now
  std::vector<std::shared_ptr<Mapping>> owners;
  uint8_t* bounce = nullptr;
};

class BlockIo : public Napi::ObjectWrap<BlockIo> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(
        env, "BlockIo",
        {InstanceMethod<&BlockIo::Queue>("queue"), InstanceMethod<&BlockIo::Submit>("submit"),
         InstanceMethod<&BlockIo::Reap>("reap"), InstanceMethod<&BlockIo::SetLeaseDeadline>("setLeaseDeadlineNs"),
         InstanceMethod<&BlockIo::Close>("close"), InstanceAccessor<&BlockIo::InFlight>("inFlight"),
         InstanceAccessor<&BlockIo::Engine>("engine")});
  }

  // new BlockIo(memoryMap, {fd, sizeBytes, blockBytes, memoryAlign, readonly, maxRequests, engine}, onReady). `engine`:
  // 'auto', 'io_uring' (throws ENOSYS where it is off) or 'threads'. onReady() is called from the loop when `reap` has
  // something. The descriptor stays the caller's and must outlive this object's close().
  explicit BlockIo(const Napi::CallbackInfo& info) : Napi::ObjectWrap<BlockIo>(info) {
    const Napi::Env env = info.Env();
    map_ = UnwrapMemoryMap(env, info[0]);
    if (!info[1].IsObject()) throw Napi::TypeError::New(env, "options must be an object");
    const Napi::Object options = info[1].As<Napi::Object>();
    const auto number = [&](const char* name, double lo, double hi) {
      const Napi::Value value = options.Get(name);
      const double n = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1;
      if (!(n >= lo && n <= hi) || n != std::floor(n)) {
        throw Napi::RangeError::New(env, std::string(name) + " is missing or out of range");
      }
      return static_cast<uint64_t>(n);
    };
    const int fd = static_cast<int>(number("fd", 0, INT_MAX));
    size_ = number("sizeBytes", 0, 9007199254740991.0);
    block_ = number("blockBytes", 1, 1 << 20);
    align_ = number("memoryAlign", 1, kBounceAlign);
    readonly_ = options.Get("readonly").ToBoolean().Value();
    requests_.resize(number("maxRequests", 1, kMaxRequests));
    const Napi::Value engine = options.Get("engine");
    const std::string wanted = engine.IsString() ? engine.As<Napi::String>().Utf8Value() : "auto";
    const Napi::Function onReady = FunctionArg(info, 2, "onReady");

    event_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (event_ < 0) throw ErrnoError(env, errno, "eventfd");
    try {
      const auto capacity = static_cast<uint32_t>(requests_.size());
      if (wanted == "auto" || wanted == "io_uring") engine_ = DiskEngine::Uring(fd, event_, capacity);
      if (!engine_ && wanted == "io_uring") throw ErrnoError(env, ENOSYS, "io_uring_setup");
      if (!engine_ && wanted != "auto" && wanted != "threads") throw Napi::RangeError::New(env, "engine is unknown");
      if (!engine_) engine_ = DiskEngine::Threads(fd, event_, capacity, &leaseDeadline_);
      watch_ = Watch::Create(env, event_, [this](Napi::Env e, int) {
        uint64_t count = 0;
        if (read(event_, &count, sizeof count) != sizeof count) return;
        CallFromLoop(e, callback_, 0);
        LoopPoller::WorkedHere();
      });
      const int status = watch_->Start(UV_READABLE);
      if (status != 0) throw ErrnoError(env, -status, "epoll_ctl");
    } catch (...) {
      Release();
      throw;
    }
    callback_ = Napi::Persistent(onReady);
    for (Request& request : requests_) {
      request.segments.reserve(32);
      request.iov.reserve(32);
      request.owners.reserve(2);
    }
    queued_.reserve(requests_.size());
    ready_.reserve(requests_.size());
    Ref();
    held_ = true;
  }

  ~BlockIo() override { Release(); }

 private:
  using State = Request::State;

  void Release() {
    engine_.reset();  // waits for the kernel
    if (watch_) watch_->Close();
    if (event_ >= 0) close(event_);
    event_ = -1;
    for (Request& request : requests_) {
      free(request.bounce);
      request.bounce = nullptr;
      request.owners.clear();
    }
  }

  void MustBeOpen(Napi::Env env) const {
    if (!engine_) throw Napi::Error::New(env, "the disk is closed");
  }

  // queue(tag, op, offset, length, addresses, lengths, first, count)
  void Queue(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    MustBeOpen(env);
    const auto tag = static_cast<uint32_t>(IntArg(info, 0, "tag", 0, static_cast<int64_t>(requests_.size()) - 1));
    const auto op = static_cast<uint8_t>(IntArg(info, 1, "op", 0, kOpCount - 1));
    const double offset = NumberArg(info, 2, "offset");
    const double length = NumberArg(info, 3, "length");
    const auto addresses = ArrayArg<double>(info, 4, "addresses");
    const auto lengths = ArrayArg<uint32_t>(info, 5, "lengths");
    const auto first = static_cast<size_t>(IntArg(info, 6, "first", 0, INT32_MAX));
    const auto count = static_cast<size_t>(IntArg(info, 7, "count", 0, INT32_MAX));
    CheckSlice(env, first, count, std::min(addresses.length, lengths.length), "segments");
    Request& request = requests_[tag];
    if (request.state != State::kFree) throw Napi::Error::New(env, "the tag is in flight");

    request.op = op;
    request.zeroing = false;
    request.done = 0;
    request.segments.clear();
    request.owners.clear();
    request.state = State::kQueued;
    inFlight_++;
    queued_.push_back(tag);
    request.result = Prepare(request, offset, length, addresses.data + first, lengths.data + first, count);
  }

  // Checks a request and translates its segments; 0 or a positive errno.
  int Prepare(Request& request, double offset, double length, const double* addresses, const uint32_t* lengths,
              size_t count) {
    const bool transfer = request.op == kOpRead || request.op == kOpWrite;
    if (request.op != kOpRead && request.op != kOpFlush && readonly_) return EROFS;
    if (request.op == kOpFlush) {
      request.offset = request.length = 0;
      return count == 0 ? 0 : EINVAL;
    }
    // Written so that NaN fails.
    if (!(offset >= 0 && length >= 0 && offset + length <= static_cast<double>(size_))) return EINVAL;
    request.offset = static_cast<uint64_t>(offset);
    request.length = static_cast<uint64_t>(length);
    if (request.offset % block_ != 0 || request.length % block_ != 0) return EINVAL;
    if (static_cast<double>(request.offset) != offset || static_cast<double>(request.length) != length) return EINVAL;
    if (!transfer) return count == 0 ? 0 : EINVAL;
    if (request.length > kMaxTransfer) return EINVAL;

    uint64_t total = 0;
    for (size_t i = 0; i < count; i++) {
      const double address = addresses[i];
      if (!(address >= 0 && address < 9007199254740992.0) || address != std::floor(address)) return EFAULT;
      total += lengths[i];
      if (total > request.length) return EINVAL;
      const bool mapped = map_->ForEachSegment(
          static_cast<uint64_t>(address), lengths[i], request.op == kOpRead,
          [&](uint8_t* host, uint64_t bytes, const std::shared_ptr<Mapping>& owner) {
            if (!request.segments.empty()) {
              iovec& last = request.segments.back();
              if (static_cast<uint8_t*>(last.iov_base) + last.iov_len == host) {
                last.iov_len += bytes;
                return;
              }
            }
            request.segments.push_back({host, bytes});
            if (std::find(request.owners.begin(), request.owners.end(), owner) == request.owners.end()) {
              request.owners.push_back(owner);
            }
          });
      if (!mapped) return EFAULT;
    }
    return total == request.length ? 0 : EINVAL;
  }

  // Direct I/O takes aligned segments only; the kernel takes at most IOV_MAX of them.
  bool NeedsBounce(const Request& request) const {
    if (request.segments.size() > IOV_MAX) return true;
    if (align_ <= 1) return false;
    for (const iovec& segment : request.segments) {
      if ((reinterpret_cast<uintptr_t>(segment.iov_base) | segment.iov_len) % align_ != 0) return true;
    }
    return false;
  }

  void Submit(const Napi::CallbackInfo& info) {
    MustBeOpen(info.Env());
    const uint64_t deadline = leaseDeadline_.load(std::memory_order_relaxed);
    const bool over = !queued_.empty() && LeaseIsOver(deadline);
    for (const uint32_t tag : queued_) {
      Request& request = requests_[tag];
      if (request.result == 0 && over && request.op != kOpRead) request.result = EKEYEXPIRED;
      if (request.result != 0) {
        Finish(tag, request.result);
      } else if (request.length == 0 && request.op != kOpFlush) {
        Finish(tag, 0);
      } else {
        Begin(tag);
      }
    }
    queued_.clear();
    Flush();
    if (!ready_.empty()) Signal();
  }

  void Signal() const {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(event_, &one, sizeof one);
  }

  void Flush() {
    // EAGAIN, EBUSY: the kernel is short of something for now. Come back from the loop.
    retry_ = engine_->Flush() != 0;
    if (retry_) Signal();
  }

  void Begin(uint32_t tag) {
    Request& request = requests_[tag];
    if ((request.op == kOpRead || request.op == kOpWrite) && NeedsBounce(request)) {
      if (bounceBytes_ > 0 && bounceBytes_ + request.length > kBounceMax) {
        request.state = State::kWaiting;
        waiting_.push_back(tag);
        return;
      }
      void* memory = nullptr;
      if (posix_memalign(&memory, kBounceAlign, request.length) != 0) {
        Finish(tag, ENOMEM);
        return;
      }
      request.bounce = static_cast<uint8_t*>(memory);
      bounceBytes_ += request.length;
      if (request.op == kOpWrite) {
        uint8_t* to = request.bounce;
        for (const iovec& segment : request.segments) {
          memcpy(to, segment.iov_base, segment.iov_len);
          to += segment.iov_len;
        }
      }
    }
    Start(tag);
  }

  // Pushes the next (usually the only) operation of a request.
  void Start(uint32_t tag) {
    Request& request = requests_[tag];
    request.state = State::kStarted;
    DiskIo io{DiskOp::kSync, tag, 0, request.offset + request.done, request.length - request.done, nullptr, 0};
    switch (request.op) {
      case kOpRead:
      case kOpWrite:
        io.op = request.op == kOpRead ? DiskOp::kRead : DiskOp::kWrite;
        FillIov(request);
        break;
      case kOpFlush:
        break;
      default:
        if (request.zeroing) {
          io.op = DiskOp::kWrite;
          request.iov.clear();
          for (uint64_t left = io.length; left > 0 && request.iov.size() < kZeroIovs;) {
            const uint64_t bytes = std::min(left, kZeroBytes);
            request.iov.push_back({Zeroes(), bytes});
            left -= bytes;
          }
        } else {
          io.op = DiskOp::kAllocate;
          io.fallocMode =
              FALLOC_FL_KEEP_SIZE | (request.op == kOpWriteZeroes ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_PUNCH_HOLE);
        }
    }
    io.iov = request.iov.data();
    io.iovCount = static_cast<uint32_t>(request.iov.size());
    engine_->Push(io);
  }

  // What is left of a transfer, `done` bytes into it.
  static void FillIov(Request& request) {
    request.iov.clear();
    if (request.bounce != nullptr) {
      request.iov.push_back({request.bounce + request.done, request.length - request.done});
      return;
    }
    uint64_t skip = request.done;
    for (const iovec& segment : request.segments) {
      if (skip >= segment.iov_len) {
        skip -= segment.iov_len;
        continue;
      }
      request.iov.push_back({static_cast<uint8_t*>(segment.iov_base) + skip, segment.iov_len - skip});
      skip = 0;
    }
  }

  void OnResult(const DiskResult& done) {
    Request& request = requests_[done.tag];
    const int32_t n = done.result;
    if (n == -EINTR || n == -EAGAIN) {
      Restart(done.tag);
      return;
    }
    const bool space = request.op == kOpDiscard || request.op == kOpWriteZeroes || request.op == kOpWriteZeroesUnmap;
    if (n < 0) {
      const bool unsupported = n == -EOPNOTSUPP || n == -ENOSYS || n == -ENODEV || (n == -EINVAL && space);
      if (unsupported && request.op == kOpDiscard) {
        Finish(done.tag, 0);  // a hint
      } else if (unsupported && space && !request.zeroing && Zeroes() != nullptr) {
        request.zeroing = true;
        Restart(done.tag);
      } else {
        Finish(done.tag, -n);
      }
      return;
    }
    if (request.op == kOpFlush || (space && !request.zeroing)) {
      Finish(done.tag, 0);
      return;
    }
    if (n == 0) {
      Finish(done.tag, request.op == kOpRead ? EIO : ENOSPC);  // the file is shorter than it was, or is full
      return;
    }
    request.done += static_cast<uint64_t>(n);
    if (request.done < request.length) {
      Restart(done.tag);
      return;
    }
    if (request.op == kOpRead && request.bounce != nullptr) {
      const uint8_t* from = request.bounce;
      for (const iovec& segment : request.segments) {
        memcpy(segment.iov_base, from, segment.iov_len);
        from += segment.iov_len;
      }
    }
    Finish(done.tag, 0);
  }

  void Restart(uint32_t tag) {
    if (requests_[tag].op != kOpRead && LeaseIsOver(leaseDeadline_.load(std::memory_order_relaxed))) {
      Finish(tag, EKEYEXPIRED);
    } else {
      Start(tag);
    }
  }

  void Finish(uint32_t tag, int result) {
    Request& request = requests_[tag];
    request.state = State::kReady;
    request.result = result;
    if (request.bounce != nullptr) {
      free(request.bounce);
      request.bounce = nullptr;
      bounceBytes_ -= request.length;
    }
    request.owners.clear();
    ready_.push_back(tag);
  }

  // reap(tags, results) -> completions written to the front of both arrays. Call until it gives less than fits.
  Napi::Value Reap(const Napi::CallbackInfo& info) {
    MustBeOpen(info.Env());
    const auto tags = ArrayArg<uint32_t>(info, 0, "tags");
    const auto results = ArrayArg<int32_t>(info, 1, "results");
    const size_t room = std::min(tags.length, results.length);
    DiskResult batch[64];
    for (;;) {
      const size_t count = engine_->Reap(batch, std::size(batch));
      for (size_t i = 0; i < count; i++) OnResult(batch[i]);
      if (count < std::size(batch)) break;
    }
    while (!waiting_.empty() &&
           (bounceBytes_ == 0 || bounceBytes_ + requests_[waiting_.front()].length <= kBounceMax)) {
      const uint32_t tag = waiting_.front();
      waiting_.pop_front();
      const Request& request = requests_[tag];
      if (request.op != kOpRead && LeaseIsOver(leaseDeadline_.load(std::memory_order_relaxed))) {
        Finish(tag, EKEYEXPIRED);
      } else {
        Begin(tag);
      }
    }
    Flush();  // parts of requests carried on above, and what the kernel did not take before

    const size_t count = std::min(room, ready_.size());
    for (size_t i = 0; i < count; i++) {
      Request& request = requests_[ready_[i]];
      tags.data[i] = ready_[i];
      results.data[i] = request.result;
      request.state = State::kFree;
    }
    ready_.erase(ready_.begin(), ready_.begin() + static_cast<ptrdiff_t>(count));
    inFlight_ -= static_cast<uint32_t>(count);
    if (!ready_.empty()) Signal();
    return Napi::Number::New(info.Env(), static_cast<double>(count));
  }

  // setLeaseDeadlineNs(deadline): instant of CLOCK_BOOTTIME; Infinity for none.
  void SetLeaseDeadline(const Napi::CallbackInfo& info) {
    const double ns = NumberArg(info, 0, "deadlineNs");
    if (!(ns >= 0)) throw Napi::RangeError::New(info.Env(), "deadlineNs is out of range");
    leaseDeadline_.store(ns >= 1.8e19 ? UINT64_MAX : static_cast<uint64_t>(ns), std::memory_order_release);
  }

  Napi::Value InFlight(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), inFlight_); }

  Napi::Value Engine(const Napi::CallbackInfo& info) {
    return Napi::String::New(info.Env(), engine_ ? engine_->name() : "closed");
  }

  // Idempotent. Throws EBUSY while requests are in flight.
  void Close(const Napi::CallbackInfo& info) {
    if (inFlight_ > 0) throw ErrnoError(info.Env(), EBUSY, "close");
    Release();
    callback_.Reset();
    if (held_) Unref();
    held_ = false;
  }

  std::shared_ptr<MemoryMap> map_;
  std::atomic<uint64_t> leaseDeadline_{UINT64_MAX};
  std::unique_ptr<DiskEngine> engine_;
  std::shared_ptr<Watch> watch_;
  Napi::FunctionReference callback_;
  int event_ = -1;
  uint64_t size_ = 0;
  uint64_t block_ = 512;
  uint64_t align_ = 1;
  bool readonly_ = false;
  bool held_ = false;
  bool retry_ = false;
  uint32_t inFlight_ = 0;
  uint64_t bounceBytes_ = 0;
  std::vector<Request> requests_;
  std::vector<uint32_t> queued_;
  std::vector<uint32_t> ready_;
  std::deque<uint32_t> waiting_;
};

// probeDiskEngine() -> 'io_uring' or 'threads': what `auto` would take now.
Napi::Value ProbeDiskEngine(const Napi::CallbackInfo& info) {
  const int event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (event < 0) throw ErrnoError(info.Env(), errno, "eventfd");
  const bool ring = DiskEngine::Uring(event, event, 8) != nullptr;
  close(event);
  return Napi::String::New(info.Env(), ring ? "io_uring" : "threads");
}

}  // namespace

void InitBlockIo(Napi::Env env, Napi::Object exports) {
  exports.Set("BlockIo", BlockIo::Define(env));
  exports.Set("probeDiskEngine", Napi::Function::New<ProbeDiskEngine>(env, "probeDiskEngine"));
}

}  // namespace tsvmm::io
