// A Linux TAP interface with virtio-net headers (IFF_VNET_HDR, 12 bytes), read and written in batches: one call
// from JavaScript moves many frames. Readiness comes from an FdPoller on `fd`.
#include "tap.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <sys/uio.h>

#include <algorithm>
#include <memory>

#include "../kvm/memory-map.h"
#include "args.h"

namespace tsvmm::io {
namespace {

constexpr int kVnetHeaderBytes = 12;
// Most pieces of one frame.
constexpr int kPieces = 128;

class TapDevice : public Napi::ObjectWrap<TapDevice> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(
        env, "TapDevice",
        {InstanceAccessor<&TapDevice::Fd>("fd"), InstanceAccessor<&TapDevice::Name>("name"),
         InstanceMethod<&TapDevice::ReadBatch>("readBatch"), InstanceMethod<&TapDevice::WriteBatch>("writeBatch"),
         InstanceMethod<&TapDevice::SetMemory>("setMemory"),
         InstanceMethod<&TapDevice::WriteScattered>("writeScattered"),
         InstanceMethod<&TapDevice::SetOffload>("setOffload"), InstanceMethod<&TapDevice::GetMac>("getMac"),
         InstanceMethod<&TapDevice::SetMac>("setMac"), InstanceMethod<&TapDevice::GetMtu>("getMtu"),
         InstanceMethod<&TapDevice::SetMtu>("setMtu"), InstanceMethod<&TapDevice::GetFlags>("getFlags"),
         InstanceMethod<&TapDevice::SetUp>("setUp"), InstanceMethod<&TapDevice::SetCarrier>("setCarrier"),
         InstanceMethod<&TapDevice::SetPersist>("setPersist"), InstanceMethod<&TapDevice::Close>("close")});
  }

  // new TapDevice(name, create): attaches to an existing interface, or (with create) makes one that goes away with
  // the last descriptor; `name` may then hold "%d".
  explicit TapDevice(const Napi::CallbackInfo& info) : Napi::ObjectWrap<TapDevice>(info) {
    const Napi::Env env = info.Env();
    const std::string name = StringArg(info, 0, "name", IFNAMSIZ - 1);
    const bool create = info.Length() > 1 && info[1].ToBoolean().Value();
    if (name.empty()) throw Napi::RangeError::New(env, "name is empty");
    if (!create && if_nametoindex(name.c_str()) == 0) throw ErrnoError(env, ENODEV, "TUNSETIFF");

    fd_ = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd_ < 0) throw ErrnoError(env, errno, "open(/dev/net/tun)");
    try {
      ifreq request{};
      memcpy(request.ifr_name, name.data(), name.size());
      request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
      Check(env, ioctl(fd_, TUNSETIFF, &request), "TUNSETIFF");
      name_.assign(request.ifr_name, strnlen(request.ifr_name, IFNAMSIZ));
      int bytes = kVnetHeaderBytes;
      Check(env, ioctl(fd_, TUNSETVNETHDRSZ, &bytes), "TUNSETVNETHDRSZ");
      Check(env, ioctl(fd_, TUNSETOFFLOAD, 0), "TUNSETOFFLOAD");
      socket_ = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
      Check(env, socket_, "socket");
    } catch (...) {
      Release();
      throw;
    }
  }

  ~TapDevice() override { Release(); }

 private:
  static void Check(Napi::Env env, int result, const char* what) {
    if (result < 0) throw ErrnoError(env, errno, what);
  }

  void Release() {
    if (fd_ >= 0) close(fd_);
    if (socket_ >= 0) close(socket_);
    fd_ = socket_ = -1;
  }

  Napi::Value Fd(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), fd_); }
  Napi::Value Name(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), name_); }

  // readBatch(bytes, start, offsets, lengths, from, max, reserve) -> entries read, or a negative errno if the first
  // read failed (-EAGAIN: none there). Entries are packed from byte `start`, listed in offsets/lengths[from...];
  // a read happens only while `reserve` bytes (the largest frame) are free.
  Napi::Value ReadBatch(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    const auto bytes = ArrayArg<uint8_t>(info, 0, "bytes");
    auto at = static_cast<uint64_t>(IntArg(info, 1, "start", 0, INT32_MAX));
    const auto offsets = ArrayArg<uint32_t>(info, 2, "offsets");
    const auto lengths = ArrayArg<uint32_t>(info, 3, "lengths");
    const auto from = static_cast<size_t>(IntArg(info, 4, "from", 0, INT32_MAX));
    const auto max = static_cast<size_t>(IntArg(info, 5, "max", 0, INT32_MAX));
    const auto reserve = static_cast<uint64_t>(IntArg(info, 6, "reserve", kVnetHeaderBytes + 1, INT32_MAX));
    CheckSlice(env, from, max, std::min(offsets.length, lengths.length), "offsets");
    CheckSlice(env, at, 0, bytes.length, "bytes");

    size_t count = 0;
    int error = 0;
    while (count < max && bytes.length - at >= reserve) {
      const ssize_t n = read(fd_, bytes.data + at, reserve);
      if (n < 0) {
        error = errno;
        if (error == EINTR) continue;
        break;
      }
      if (n <= kVnetHeaderBytes) continue;
      offsets.data[from + count] = static_cast<uint32_t>(at);
      lengths.data[from + count] = static_cast<uint32_t>(n);
      at += static_cast<uint64_t>(n);
      count++;
    }
    if (count == 0 && error != 0) return Napi::Number::New(env, -error);
    return Napi::Number::New(env, static_cast<double>(count));
  }

  // writeBatch(bytes, offsets, lengths, from, count) -> entries that the interface took or refused for good; fewer than
  // `count` when its queue is full (poll for writable), or a negative errno when the interface is gone.
  Napi::Value WriteBatch(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    const auto bytes = ArrayArg<uint8_t>(info, 0, "bytes");
    const auto offsets = ArrayArg<uint32_t>(info, 1, "offsets");
    const auto lengths = ArrayArg<uint32_t>(info, 2, "lengths");
    const auto from = static_cast<size_t>(IntArg(info, 3, "from", 0, INT32_MAX));
    const auto count = static_cast<size_t>(IntArg(info, 4, "count", 0, INT32_MAX));
    CheckSlice(env, from, count, std::min(offsets.length, lengths.length), "offsets");
    for (size_t i = from; i < from + count; i++) {
      CheckSlice(env, offsets.data[i], lengths.data[i], bytes.length, "bytes");
    }
    const int64_t done = WriteAll(count, [&](size_t i) {
      return write(fd_, bytes.data + offsets.data[from + i], lengths.data[from + i]);
    });
    return Napi::Number::New(env, static_cast<double>(done));
  }

  // Calls `one(i)` for each entry until the queue is full.
  template <typename Fn>
  static int64_t WriteAll(size_t count, Fn one) {
    size_t done = 0;
    while (done < count) {
      if (one(done) < 0) {
        const int error = errno;
        if (error == EINTR) continue;
        if (error == EAGAIN || error == ENOBUFS) break;
        // EINVAL, ENOMEM, EIO (interface down): this frame is lost, as on a wire. EBADFD: the interface is gone.
        if (error == EBADFD || error == EBADF) return done > 0 ? static_cast<int64_t>(done) : -error;
      }
      done++;
    }
    return static_cast<int64_t>(done);
  }

  // setMemory(memoryMap): the guest memory that writeScattered reads.
  void SetMemory(const Napi::CallbackInfo& info) { memory_ = UnwrapMemoryMap(info.Env(), info[0]); }

  // writeScattered(bytes, offsets, lengths, from, count, tailAddresses, tailLengths, tailEnds): as writeBatch; entry i goes on
  // with segments [tailEnds[i - 1], tailEnds[i]) of guest memory. One that is not memory, or has too many pieces, is lost.
  Napi::Value WriteScattered(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    const auto bytes = ArrayArg<uint8_t>(info, 0, "bytes");
    const auto offsets = ArrayArg<uint32_t>(info, 1, "offsets");
    const auto lengths = ArrayArg<uint32_t>(info, 2, "lengths");
    const auto from = static_cast<size_t>(IntArg(info, 3, "from", 0, INT32_MAX));
    const auto count = static_cast<size_t>(IntArg(info, 4, "count", 0, INT32_MAX));
    const auto addresses = ArrayArg<double>(info, 5, "tailAddresses");
    const auto sizes = ArrayArg<uint32_t>(info, 6, "tailLengths");
    const auto ends = ArrayArg<uint32_t>(info, 7, "tailEnds");
    if (memory_ == nullptr) throw Napi::Error::New(env, "setMemory comes first");
    CheckSlice(env, from, count, std::min({offsets.length, lengths.length, ends.length}), "offsets");
    for (size_t i = from; i < from + count; i++) {
      CheckSlice(env, offsets.data[i], lengths.data[i], bytes.length, "bytes");
      const uint32_t first = i == 0 ? 0 : ends.data[i - 1];
      if (first > ends.data[i]) throw Napi::RangeError::New(env, "tailEnds must not descend");
      CheckSlice(env, first, ends.data[i] - first, std::min(addresses.length, sizes.length), "tailAddresses");
      for (uint32_t k = first; k < ends.data[i]; k++) {
        if (!(addresses.data[k] >= 0 && addresses.data[k] < static_cast<double>(kGuestPhysMax))) {
          throw Napi::RangeError::New(env, "tailAddresses is out of range");
        }
      }
    }
    const int64_t done = WriteAll(count, [&](size_t i) -> ssize_t {
      iovec iov[kPieces];
      int pieces = 0;
      bool fits = true;
      iov[pieces++] = {bytes.data + offsets.data[from + i], lengths.data[from + i]};
      const uint32_t first = from + i == 0 ? 0 : ends.data[from + i - 1];
      for (uint32_t k = first; k < ends.data[from + i] && fits; k++) {
        fits = memory_->ForEachSegment(static_cast<uint64_t>(addresses.data[k]), sizes.data[k], false,
                                       [&](uint8_t* host, uint64_t length, const std::shared_ptr<Mapping>&) {
                                         if (pieces < kPieces) iov[pieces] = {host, length};
                                         pieces++;
                                       }) &&
               pieces <= kPieces;
      }
      if (fits) return writev(fd_, iov, pieces);
      errno = EINVAL;
      return -1;
    });
    return Napi::Number::New(env, static_cast<double>(done));
  }

  // setOffload(TUN_F_* bits): what frames that are read may leave to the guest.
  void SetOffload(const Napi::CallbackInfo& info) {
    Check(info.Env(), ioctl(fd_, TUNSETOFFLOAD, static_cast<unsigned long>(IntArg(info, 0, "bits", 0, 0xff))),
          "TUNSETOFFLOAD");
  }

  ifreq Request() const {
    ifreq request{};
    memcpy(request.ifr_name, name_.data(), name_.size());
    return request;
  }

  Napi::Value GetMac(const Napi::CallbackInfo& info) {
    ifreq request = Request();
    Check(info.Env(), ioctl(socket_, SIOCGIFHWADDR, &request), "SIOCGIFHWADDR");
    return Napi::Buffer<uint8_t>::Copy(info.Env(), reinterpret_cast<uint8_t*>(request.ifr_hwaddr.sa_data), 6);
  }
  void SetMac(const Napi::CallbackInfo& info) {
    const auto mac = ArrayArg<uint8_t>(info, 0, "mac");
    CheckSlice(info.Env(), 0, 6, mac.length, "mac");
    ifreq request = Request();
    request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    memcpy(request.ifr_hwaddr.sa_data, mac.data, 6);
    Check(info.Env(), ioctl(socket_, SIOCSIFHWADDR, &request), "SIOCSIFHWADDR");
  }
  Napi::Value GetMtu(const Napi::CallbackInfo& info) {
    ifreq request = Request();
    Check(info.Env(), ioctl(socket_, SIOCGIFMTU, &request), "SIOCGIFMTU");
    return Napi::Number::New(info.Env(), request.ifr_mtu);
  }
  void SetMtu(const Napi::CallbackInfo& info) {
    ifreq request = Request();
    request.ifr_mtu = static_cast<int>(IntArg(info, 0, "mtu", 68, 65535));
    Check(info.Env(), ioctl(socket_, SIOCSIFMTU, &request), "SIOCSIFMTU");
  }
  // IFF_* bits (IFF_UP 1, IFF_RUNNING 0x40), or a negative errno when the interface is gone.
  Napi::Value GetFlags(const Napi::CallbackInfo& info) {
    ifreq request = Request();
    const int result = ioctl(socket_, SIOCGIFFLAGS, &request);
    return Napi::Number::New(info.Env(), result < 0 ? -errno : static_cast<uint16_t>(request.ifr_flags));
  }
  void SetUp(const Napi::CallbackInfo& info) {
    ifreq request = Request();
    Check(info.Env(), ioctl(socket_, SIOCGIFFLAGS, &request), "SIOCGIFFLAGS");
    const int flags = request.ifr_flags;
    const bool up = info[0].ToBoolean().Value();
    request.ifr_flags = static_cast<short>(up ? flags | IFF_UP : flags & ~IFF_UP);
    Check(info.Env(), ioctl(socket_, SIOCSIFFLAGS, &request), "SIOCSIFFLAGS");
  }
  // What the host sees on its side: the guest's link state.
  void SetCarrier(const Napi::CallbackInfo& info) {
    int on = info[0].ToBoolean().Value() ? 1 : 0;
    Check(info.Env(), ioctl(fd_, TUNSETCARRIER, &on), "TUNSETCARRIER");
  }
  void SetPersist(const Napi::CallbackInfo& info) {
    Check(info.Env(), ioctl(fd_, TUNSETPERSIST, info[0].ToBoolean().Value() ? 1UL : 0UL), "TUNSETPERSIST");
  }
  void Close(const Napi::CallbackInfo&) { Release(); }

  int fd_ = -1;
  int socket_ = -1;
  std::string name_;
  std::shared_ptr<MemoryMap> memory_;
};

}  // namespace

void InitTap(Napi::Env env, Napi::Object exports) { exports.Set("TapDevice", TapDevice::Define(env)); }

}  // namespace tsvmm::io
