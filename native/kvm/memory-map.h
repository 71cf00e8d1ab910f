// Guest-physical memory as the native side sees it: which host memory stands behind a guest physical
// address. Mutated only on the JavaScript thread. I/O that outlives a call keeps the Mapping of each
// segment alive by its shared_ptr; the last reference must be dropped on the JavaScript thread when
// the mapping came from a plain ArrayBuffer (it holds a napi reference).
// Used by the KVM core (slots, gather, scatter) and by native I/O (scatter/gather on guest memory).
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "page-copier.h"

namespace tsvmm {

constexpr uint64_t kPageSize = 4096;
// Guest physical addresses are JavaScript Numbers.
constexpr uint64_t kGuestPhysMax = 1ULL << 52;

// Host memory with an owner; unmapped or released with the last shared_ptr.
class Mapping {
 public:
  Mapping(uint8_t* data, uint64_t size) : data_(data), size_(size) {}
  virtual ~Mapping() = default;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }

 private:
  uint8_t* data_;
  uint64_t size_;
};

struct MemoryRange {
  uint64_t guestPhys;
  uint64_t size;
  uint8_t* host;
  bool readonly;  // for the guest; host code that acts for a device must not write here either
  std::shared_ptr<Mapping> owner;
};

class MemoryMap {
 public:
  // False if it overlaps an existing range, is empty or runs past kGuestPhysMax.
  bool Add(MemoryRange range);
  // False if no range starts there.
  bool Remove(uint64_t guestPhys);

  // The range that holds guestPhys, or nullptr.
  const MemoryRange* Find(uint64_t guestPhys) const;

  // Host pointer for [guestPhys, guestPhys+length) if it lies in one range, else nullptr. A length of
  // 0 is allowed at any mapped address. `write` refuses read-only ranges. `owner`, if given, receives
  // the mapping to keep alive.
  uint8_t* Translate(uint64_t guestPhys, uint64_t length, bool write,
                     std::shared_ptr<Mapping>* owner = nullptr) const;

  // Calls fn(uint8_t* host, uint64_t bytes, const std::shared_ptr<Mapping>&) for each contiguous piece,
  // in order; false (some pieces may have been visited) if a byte is not mapped.
  template <typename Fn>
  bool ForEachSegment(uint64_t guestPhys, uint64_t length, bool write, Fn fn) const {
    while (length > 0) {
      const MemoryRange* range = Find(guestPhys);
      if (range == nullptr || (write && range->readonly)) return false;
      const uint64_t offset = guestPhys - range->guestPhys;
      const uint64_t left = range->size - offset;
      const uint64_t bytes = left < length ? left : length;
      fn(range->host + offset, bytes, range->owner);
      guestPhys += bytes;
      length -= bytes;
    }
    return true;
  }

  // True if all of [guestPhys, guestPhys+length) is mapped (and writable if `write`).
  bool Covers(uint64_t guestPhys, uint64_t length, bool write) const {
    return ForEachSegment(guestPhys, length, write,
                          [](uint8_t*, uint64_t, const std::shared_ptr<Mapping>&) {});
  }

  const std::vector<MemoryRange>& ranges() const { return ranges_; }

 private:
  std::vector<MemoryRange> ranges_;  // sorted by guestPhys
};

// JavaScript class `MemoryMap`: addRange(guestPhys, ArrayBuffer, offset, size, readonly), removeRange,
// gather, scatter, allocate, read, write. A VM's own map is an instance of it too.
class MemoryMapObject : public Napi::ObjectWrap<MemoryMapObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit MemoryMapObject(const Napi::CallbackInfo& info);

  const std::shared_ptr<MemoryMap>& map() const { return map_; }

 private:
  void AddRange(const Napi::CallbackInfo& info);
  void RemoveRange(const Napi::CallbackInfo& info);
  void Gather(const Napi::CallbackInfo& info);
  void BeginGather(const Napi::CallbackInfo& info);
  void EndGather(const Napi::CallbackInfo& info);
  void Scatter(const Napi::CallbackInfo& info);
  Napi::Value Allocate(const Napi::CallbackInfo& info);
  void Read(const Napi::CallbackInfo& info);
  void Write(const Napi::CallbackInfo& info);
  void Copy(const Napi::CallbackInfo& info, bool toGuest);
  void CopyPages(const Napi::CallbackInfo& info, bool toGuest);

  std::shared_ptr<MemoryMap> map_;
  Napi::ObjectReference gathering_;  // what copier_ writes to
  PageCopier copier_;
};

// The MemoryMap behind a JavaScript value that is a `MemoryMap` object; throws TypeError (nullptr
// with a pending exception) for anything else, including forged objects.
std::shared_ptr<MemoryMap> UnwrapMemoryMap(Napi::Env env, Napi::Value value);

}  // namespace tsvmm
