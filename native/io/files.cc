// Small calls on descriptors that Node has no name for: non-blocking read and write, OFD locks, disk geometry,
// fallocate, pseudo-terminals, clocks, the CPU count of the affinity mask.
#include "files.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pty.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

#include "args.h"

namespace tsvmm::io {
namespace {

constexpr int64_t kOffsetMax = (1LL << 53) - 1;

double ClockNs(clockid_t clock) {
  timespec ts{};
  clock_gettime(clock, &ts);
  return static_cast<double>(ts.tv_sec) * 1e9 + static_cast<double>(ts.tv_nsec);
}

Napi::Value MonotonicNs(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), ClockNs(CLOCK_MONOTONIC));
}

Napi::Value BoottimeNs(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), ClockNs(CLOCK_BOOTTIME));
}

Napi::Value CpuCount(const Napi::CallbackInfo& info) {
  cpu_set_t set;
  CPU_ZERO(&set);
  const int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
  return Napi::Number::New(info.Env(), count > 0 ? count : sysconf(_SC_NPROCESSORS_ONLN));
}

void CloseFd(const Napi::CallbackInfo& info) {
  if (close(FdArg(info, 0)) != 0 && errno != EINTR) throw ErrnoError(info.Env(), errno, "close");
}

void SetNonBlocking(const Napi::CallbackInfo& info) {
  const int fd = FdArg(info, 0);
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) throw ErrnoError(info.Env(), errno, "fcntl");
}

// readFd(fd, bytes, offset, length) -> bytes read (0 at the end), or a negative errno (-EAGAIN: nothing there).
Napi::Value ReadFd(const Napi::CallbackInfo& info) {
  const int fd = FdArg(info, 0);
  const auto bytes = ArrayArg<uint8_t>(info, 1, "bytes");
  const auto offset = static_cast<uint64_t>(IntArg(info, 2, "offset", 0, kOffsetMax));
  const auto length = static_cast<uint64_t>(IntArg(info, 3, "length", 0, kOffsetMax));
  CheckSlice(info.Env(), offset, length, bytes.length, "bytes");
  const ssize_t n = read(fd, bytes.data + offset, length);
  return Napi::Number::New(info.Env(), n >= 0 ? static_cast<double>(n) : -errno);
}

// writeFd(fd, bytes, offset, length) -> bytes written, or a negative errno.
Napi::Value WriteFd(const Napi::CallbackInfo& info) {
  const int fd = FdArg(info, 0);
  const auto bytes = ArrayArg<uint8_t>(info, 1, "bytes");
  const auto offset = static_cast<uint64_t>(IntArg(info, 2, "offset", 0, kOffsetMax));
  const auto length = static_cast<uint64_t>(IntArg(info, 3, "length", 0, kOffsetMax));
  CheckSlice(info.Env(), offset, length, bytes.length, "bytes");
  const ssize_t n = write(fd, bytes.data + offset, length);
  return Napi::Number::New(info.Env(), n >= 0 ? static_cast<double>(n) : -errno);
}

// tryLock(fd, exclusive, start, length) -> false when somebody else holds a conflicting lock. An open-file-description
// lock: it belongs to the descriptor, goes with its last copy, and works across processes and hosts (NFS).
Napi::Value TryLock(const Napi::CallbackInfo& info) {
  struct flock lock {};
  const int fd = FdArg(info, 0);
  lock.l_type = info[1].ToBoolean().Value() ? F_WRLCK : F_RDLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = IntArg(info, 2, "start", 0, kOffsetMax);
  lock.l_len = IntArg(info, 3, "length", 0, kOffsetMax);
  if (fcntl(fd, F_OFD_SETLK, &lock) == 0) return Napi::Boolean::New(info.Env(), true);
  if (errno == EAGAIN || errno == EACCES) return Napi::Boolean::New(info.Env(), false);
  throw ErrnoError(info.Env(), errno, "fcntl(F_OFD_SETLK)");
}

void Unlock(const Napi::CallbackInfo& info) {
  struct flock lock {};
  const int fd = FdArg(info, 0);
  lock.l_type = F_UNLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = IntArg(info, 1, "start", 0, kOffsetMax);
  lock.l_len = IntArg(info, 2, "length", 0, kOffsetMax);
  if (fcntl(fd, F_OFD_SETLK, &lock) != 0) throw ErrnoError(info.Env(), errno, "fcntl(F_OFD_SETLK)");
}

// Direct I/O alignment where the kernel does not tell: the smallest that a read at `step` accepts.
uint32_t ProbeAlignment(int fd, bool memory) {
  constexpr uint32_t kMax = 4096;
  void* raw = nullptr;
  if (posix_memalign(&raw, kMax, 3 * kMax) != 0) return kMax;
  auto* buffer = static_cast<uint8_t*>(raw);
  uint32_t found = kMax;
  for (uint32_t step = 512; step <= kMax; step *= 2) {
    const ssize_t n = memory ? pread(fd, buffer + step, kMax, 0) : pread(fd, buffer, step, step);
    if (n >= 0) {
      found = step;
      break;
    }
  }
  free(raw);
  return found;
}

// fileGeometry(fd) -> {kind, sizeBytes, logicalBlockBytes, physicalBlockBytes, memoryAlign, offsetAlign, direct, dev, ino}
Napi::Value FileGeometry(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const int fd = FdArg(info, 0);
  struct stat st {};
  if (fstat(fd, &st) != 0) throw ErrnoError(env, errno, "fstat");
  const int flags = fcntl(fd, F_GETFL);
  const bool direct = flags >= 0 && (flags & O_DIRECT) != 0;

  const char* kind = S_ISBLK(st.st_mode) ? "block" : S_ISREG(st.st_mode) ? "file" : "other";
  double size = static_cast<double>(st.st_size);
  uint32_t logical = 512;
  uint32_t physical = 512;
  if (S_ISBLK(st.st_mode)) {
    uint64_t bytes = 0;
    if (ioctl(fd, BLKGETSIZE64, &bytes) != 0) throw ErrnoError(env, errno, "ioctl(BLKGETSIZE64)");
    size = static_cast<double>(bytes);
    int value = 0;
    if (ioctl(fd, BLKSSZGET, &value) == 0 && value >= 512) logical = static_cast<uint32_t>(value);
    unsigned int wide = 0;
    physical = ioctl(fd, BLKPBSZGET, &wide) == 0 && wide >= logical ? wide : logical;
  } else if (S_ISREG(st.st_mode)) {
    physical = st.st_blksize >= 512 && st.st_blksize <= 65536 ? static_cast<uint32_t>(st.st_blksize) : 512;
  }

  uint32_t memoryAlign = 1;
  uint32_t offsetAlign = 1;
  if (direct) {
    memoryAlign = 0;
#ifdef STATX_DIOALIGN
    struct statx sx {};
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0 && (sx.stx_mask & STATX_DIOALIGN) != 0 &&
        sx.stx_dio_offset_align != 0) {
      memoryAlign = sx.stx_dio_mem_align;
      offsetAlign = sx.stx_dio_offset_align;
    }
#endif
    if (memoryAlign == 0) {
      offsetAlign = ProbeAlignment(fd, false);
      memoryAlign = ProbeAlignment(fd, true);
    }
  }

  Napi::Object result = Napi::Object::New(env);
  result.Set("kind", kind);
  result.Set("sizeBytes", size);
  result.Set("logicalBlockBytes", logical);
  result.Set("physicalBlockBytes", physical);
  result.Set("memoryAlign", memoryAlign);
  result.Set("offsetAlign", offsetAlign);
  result.Set("direct", direct);
  return result;
}

// allocateFile(fd, mode, offset, length): fallocate; mode 0 grows and reserves.
void AllocateFile(const Napi::CallbackInfo& info) {
  const int fd = FdArg(info, 0);
  const int mode = static_cast<int>(IntArg(info, 1, "mode", 0, 0xff));
  const int64_t offset = IntArg(info, 2, "offset", 0, kOffsetMax);
  const int64_t length = IntArg(info, 3, "length", 1, kOffsetMax);
  if (fallocate(fd, mode, offset, length) != 0) throw ErrnoError(info.Env(), errno, "fallocate");
}

// seekFile(fd, offset, holes) -> the first byte of data (or of a hole) at or behind `offset`; -ENXIO when there is none, or
// another negative errno. Moves the descriptor's position, which positional reads and writes do not use.
Napi::Value SeekFile(const Napi::CallbackInfo& info) {
  const int fd = FdArg(info, 0);
  const int64_t offset = IntArg(info, 1, "offset", 0, kOffsetMax);
  const off_t found = lseek(fd, offset, info[2].ToBoolean().Value() ? SEEK_HOLE : SEEK_DATA);
  return Napi::Number::New(info.Env(), found >= 0 ? static_cast<double>(found) : -errno);
}

// openPty() -> {master, slave, path}. The slave stays open here, so that the master does not report a hang-up
// while nobody is connected. Raw mode.
Napi::Value OpenPty(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  int master = -1;
  int slave = -1;
  char path[128] = "";
  struct termios raw {};
  cfmakeraw(&raw);
  if (openpty(&master, &slave, path, &raw, nullptr) != 0) throw ErrnoError(env, errno, "openpty");
  for (const int fd : {master, slave}) fcntl(fd, F_SETFD, FD_CLOEXEC);
  fcntl(master, F_SETFL, fcntl(master, F_GETFL) | O_NONBLOCK);
  Napi::Object result = Napi::Object::New(env);
  result.Set("master", master);
  result.Set("slave", slave);
  result.Set("path", path);
  return result;
}

}  // namespace

void InitFiles(Napi::Env env, Napi::Object exports) {
  exports.Set("monotonicNs", Napi::Function::New<MonotonicNs>(env, "monotonicNs"));
  exports.Set("boottimeNs", Napi::Function::New<BoottimeNs>(env, "boottimeNs"));
  exports.Set("cpuCount", Napi::Function::New<CpuCount>(env, "cpuCount"));
  exports.Set("closeFd", Napi::Function::New<CloseFd>(env, "closeFd"));
  exports.Set("setNonBlocking", Napi::Function::New<SetNonBlocking>(env, "setNonBlocking"));
  exports.Set("readFd", Napi::Function::New<ReadFd>(env, "readFd"));
  exports.Set("writeFd", Napi::Function::New<WriteFd>(env, "writeFd"));
  exports.Set("tryLock", Napi::Function::New<TryLock>(env, "tryLock"));
  exports.Set("unlock", Napi::Function::New<Unlock>(env, "unlock"));
  exports.Set("fileGeometry", Napi::Function::New<FileGeometry>(env, "fileGeometry"));
  exports.Set("allocateFile", Napi::Function::New<AllocateFile>(env, "allocateFile"));
  exports.Set("seekFile", Napi::Function::New<SeekFile>(env, "seekFile"));
  exports.Set("openPty", Napi::Function::New<OpenPty>(env, "openPty"));
}

}  // namespace tsvmm::io
