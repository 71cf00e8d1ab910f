#include "memory-map.h"

#include <algorithm>
#include <cstring>

#include "args.h"
#include "error.h"
#include "vm.h"

namespace tsvmm {

namespace {

const napi_type_tag kMemoryMapTag = {0x6d656d6f72796d61ULL, 0x7473766d6d6d6170ULL};

// From this many pages on, copies do not go through the caches: they displace more there than they leave for the encoder, and a
// line of the destination need not be fetched before it is overwritten.
constexpr uint64_t kStreamPages = 256;
constexpr uint64_t kAllocateMax = 1ULL << 30;

// Keeps a plain ArrayBuffer alive for as long as native code may touch it.
class BufferMapping : public Mapping {
 public:
  explicit BufferMapping(Napi::ArrayBuffer buffer)
      : Mapping(static_cast<uint8_t*>(buffer.Data()), buffer.ByteLength()),
        reference_(Napi::Reference<Napi::ArrayBuffer>::New(buffer, 1)) {}

 private:
  Napi::Reference<Napi::ArrayBuffer> reference_;
};

}  // namespace

bool MemoryMap::Add(MemoryRange range) {
  if (range.size == 0 || range.guestPhys > kGuestPhysMax || range.size > kGuestPhysMax - range.guestPhys) {
    return false;
  }
  const auto at = std::lower_bound(
      ranges_.begin(), ranges_.end(), range.guestPhys,
      [](const MemoryRange& r, uint64_t phys) { return r.guestPhys < phys; });
  if (at != ranges_.end() && range.guestPhys + range.size > at->guestPhys) return false;
  if (at != ranges_.begin()) {
    const auto before = at - 1;
    if (before->guestPhys + before->size > range.guestPhys) return false;
  }
  ranges_.insert(at, std::move(range));
  return true;
}

bool MemoryMap::Remove(uint64_t guestPhys) {
  for (auto it = ranges_.begin(); it != ranges_.end(); ++it) {
    if (it->guestPhys == guestPhys) {
      ranges_.erase(it);
      return true;
    }
  }
  return false;
}

const MemoryRange* MemoryMap::Find(uint64_t guestPhys) const {
  auto at = std::upper_bound(ranges_.begin(), ranges_.end(), guestPhys,
                             [](uint64_t phys, const MemoryRange& r) { return phys < r.guestPhys; });
  if (at == ranges_.begin()) return nullptr;
  --at;
  return guestPhys - at->guestPhys < at->size ? &*at : nullptr;
}

uint8_t* MemoryMap::Translate(uint64_t guestPhys, uint64_t length, bool write,
                              std::shared_ptr<Mapping>* owner) const {
  const MemoryRange* range = Find(guestPhys);
  if (range == nullptr || (write && range->readonly)) return nullptr;
  const uint64_t offset = guestPhys - range->guestPhys;
  if (length > range->size - offset) return nullptr;
  if (owner != nullptr) *owner = range->owner;
  return range->host + offset;
}

Napi::Function MemoryMapObject::Define(Napi::Env env) {
  return DefineClass(env, "MemoryMap",
                     {
                         InstanceMethod<&MemoryMapObject::AddRange>("addRange"),
                         InstanceMethod<&MemoryMapObject::RemoveRange>("removeRange"),
                         InstanceMethod<&MemoryMapObject::Gather>("gather"),
                         InstanceMethod<&MemoryMapObject::BeginGather>("beginGather"),
                         InstanceMethod<&MemoryMapObject::EndGather>("endGather"),
                         InstanceMethod<&MemoryMapObject::Scatter>("scatter"),
                         InstanceMethod<&MemoryMapObject::Allocate>("allocate"),
                         InstanceMethod<&MemoryMapObject::Read>("read"),
                         InstanceMethod<&MemoryMapObject::Write>("write"),
                     });
}

MemoryMapObject::MemoryMapObject(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<MemoryMapObject>(info), map_(std::make_shared<MemoryMap>()) {
  if (napi_type_tag_object(info.Env(), info.This(), &kMemoryMapTag) != napi_ok) {
    throw Napi::TypeError::New(info.Env(), "MemoryMap cannot be constructed twice on one object");
  }
}

std::shared_ptr<MemoryMap> UnwrapMemoryMap(Napi::Env env, Napi::Value value) {
  bool tagged = false;
  if (!value.IsObject() ||
      napi_check_object_type_tag(env, value, &kMemoryMapTag, &tagged) != napi_ok || !tagged) {
    throw Napi::TypeError::New(env, "expected a MemoryMap");
  }
  return MemoryMapObject::Unwrap(value.As<Napi::Object>())->map();
}

void MemoryMapObject::AddRange(const Napi::CallbackInfo& info) {
  const uint64_t guestPhys = ArgAddress(info, 0, "guestPhys");
  Napi::ArrayBuffer buffer = ArgBuffer(info, 1, "buffer");
  const uint64_t whole = buffer.ByteLength();
  const uint64_t offset = info[2].IsUndefined() ? 0 : ArgUint(info, 2, "offset", 0, whole);
  const uint64_t size = info[3].IsUndefined() ? whole - offset : ArgUint(info, 3, "sizeBytes", 0, whole - offset);
  const bool readonly = info[4].IsUndefined() ? false : ArgBool(info, 4, "readonly");
  if (size == 0) throw Napi::RangeError::New(info.Env(), "the range is empty");
  auto owner = std::make_shared<BufferMapping>(buffer);
  uint8_t* host = owner->data() + offset;
  if (!map_->Add({guestPhys, size, host, readonly, std::move(owner)})) {
    throw Napi::RangeError::New(info.Env(), "the range overlaps another one or ends too high");
  }
}

void MemoryMapObject::RemoveRange(const Napi::CallbackInfo& info) {
  copier_.Finish();
  if (!map_->Remove(ArgAddress(info, 0, "guestPhys"))) {
    throw Napi::RangeError::New(info.Env(), "no range starts there");
  }
}

void MemoryMapObject::CopyPages(const Napi::CallbackInfo& info, bool toGuest) {
  const Span list = ArgTyped(info, 0, "pages", napi_uint32_array);
  const uint64_t count = ArgUint(info, 1, "count", 0, list.size / sizeof(uint32_t));
  const Span host = ArgBytes(info, 2, toGuest ? "src" : "dst");
  if (count > host.size / kPageSize) {
    throw Napi::RangeError::New(info.Env(), "the buffer is shorter than the pages");
  }
  const auto* pages = reinterpret_cast<const uint32_t*>(list.data);
  // Two passes: nothing is copied when a page is not there.
  const MemoryRange* last = nullptr;
  auto find = [&](uint64_t page) -> uint8_t* {
    const uint64_t phys = page * kPageSize;
    if (last == nullptr || phys < last->guestPhys || phys - last->guestPhys >= last->size) last = map_->Find(phys);
    if (last == nullptr || last->size - (phys - last->guestPhys) < kPageSize) return nullptr;
    return last->host + (phys - last->guestPhys);
  };
  for (uint64_t i = 0; i < count; i++) {
    if (find(pages[i]) == nullptr) {
      throw Napi::RangeError::New(info.Env(), "page " + std::to_string(pages[i]) + " is not in the memory map");
    }
  }
  const bool aligned = (reinterpret_cast<uintptr_t>(host.data) & 15) == 0;
  if (!toGuest && count >= kStreamPages && aligned) {
    const uint8_t* page = find(pages[0]);
    for (uint64_t i = 0; i < count; i++) {
      const uint8_t* next = i + 1 < count ? find(pages[i + 1]) : page;
      StreamPage(host.data + i * kPageSize, page, next);
      page = next;
    }
    EndStream();
    return;
  }
  for (uint64_t i = 0; i < count; i++) {
    uint8_t* page = find(pages[i]);
    uint8_t* other = host.data + i * kPageSize;
    if (toGuest) {
      std::memmove(page, other, kPageSize);
    } else {
      std::memmove(other, page, kPageSize);
    }
  }
}

// beginGather(pages, count, dst, blocks, blockPages): as gather, on a thread of its own until endGather; page i goes to
// blocks[i / blockPages] (a byte offset in dst) + i % blockPages * 4096. Nothing begins when a page is not there.
void MemoryMapObject::BeginGather(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Span list = ArgTyped(info, 0, "pages", napi_uint32_array);
  const uint64_t count = ArgUint(info, 1, "count", 0, list.size / sizeof(uint32_t));
  const Span host = ArgBytes(info, 2, "dst");
  const Span blocks = ArgTyped(info, 3, "blocks", napi_uint32_array);
  const uint64_t blockPages = ArgUint(info, 4, "blockPages", 1, UINT32_MAX);
  const auto* pages = reinterpret_cast<const uint32_t*>(list.data);
  const auto* offsets = reinterpret_cast<const uint32_t*>(blocks.data);
  if ((count + blockPages - 1) / blockPages > blocks.size / sizeof(uint32_t)) {
    throw Napi::RangeError::New(env, "there are fewer blocks than the pages need");
  }
  copier_.Finish();
  copier_.from.clear();
  copier_.to.clear();
  const bool aligned = (reinterpret_cast<uintptr_t>(host.data) & 15) == 0;
  for (uint64_t i = 0; i < count; i++) {
    const uint8_t* page = map_->Translate(static_cast<uint64_t>(pages[i]) * kPageSize, kPageSize, false);
    const uint64_t at = offsets[i / blockPages] + i % blockPages * kPageSize;
    const char* wrong = page == nullptr                                                ? "a page is not in the memory map"
                        : at % kPageSize != 0 || !aligned                              ? "a block is not aligned"
                        : at > host.size || host.size - at < kPageSize                 ? "a block is not within the buffer"
                                                                                       : nullptr;
    if (wrong != nullptr) {
      copier_.from.clear();
      copier_.to.clear();
      throw Napi::RangeError::New(env, wrong);
    }
    copier_.from.push_back(page);
    copier_.to.push_back(host.data + at);
  }
  gathering_ = Napi::Persistent(info[2].As<Napi::Object>());
  copier_.Begin();
}

void MemoryMapObject::EndGather(const Napi::CallbackInfo&) {
  copier_.Finish();
  gathering_.Reset();
}

void MemoryMapObject::Gather(const Napi::CallbackInfo& info) { CopyPages(info, false); }
void MemoryMapObject::Scatter(const Napi::CallbackInfo& info) { CopyPages(info, true); }

// allocate(sizeBytes) -> ArrayBuffer of huge pages, where the kernel gives them; zeros that occupy nothing until written.
Napi::Value MemoryMapObject::Allocate(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const uint64_t size = ArgUint(info, 0, "sizeBytes", kPageSize, kAllocateMax);
  if (size % kPageSize != 0) throw Napi::RangeError::New(env, "sizeBytes must be a multiple of 4096");
  return Guard(env, [&]() -> Napi::Value {
    auto* keep = new std::shared_ptr<AnonymousMapping>(AnonymousMapping::Create(size));
    return Napi::ArrayBuffer::New(
        env, (*keep)->data(), size, [](Napi::Env, void*, std::shared_ptr<AnonymousMapping>* hint) { delete hint; }, keep);
  });
}

void MemoryMapObject::Copy(const Napi::CallbackInfo& info, bool toGuest) {
  const uint64_t guestPhys = ArgAddress(info, 0, "guestPhys");
  const Span host = ArgBytes(info, 1, toGuest ? "src" : "dst");
  if (!map_->Covers(guestPhys, host.size, false)) {
    Guard(info.Env(), [] { throw KvmError("KVM_MEMORY_RANGE", "guest memory range is not mapped"); });
  }
  uint8_t* at = host.data;
  map_->ForEachSegment(guestPhys, host.size, false,
                       [&](uint8_t* guest, uint64_t bytes, const std::shared_ptr<Mapping>&) {
                         if (toGuest) {
                           std::memmove(guest, at, bytes);
                         } else {
                           std::memmove(at, guest, bytes);
                         }
                         at += bytes;
                       });
}

void MemoryMapObject::Read(const Napi::CallbackInfo& info) { Copy(info, false); }
void MemoryMapObject::Write(const Napi::CallbackInfo& info) { Copy(info, true); }

}  // namespace tsvmm
