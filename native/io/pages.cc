// Bulk work on page contents for replication: checksums, comparison, and the encoder and decoder of the page stream
// (format: native/README.md). One call from JavaScript handles a list of pages.
#include "pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <vector>

#include "../kvm/memory-map.h"
#include "args.h"
#include "crc32c.h"
#include "page-codec.h"

namespace tsvmm::io {
namespace {

constexpr int64_t kSizeMax = (1LL << 53) - 1;
constexpr uint32_t kNoPage = UINT32_MAX;

struct RecordHeader {  // little-endian, as the machine
  uint32_t page;
  uint8_t kind;
  uint8_t zero;
  uint16_t length;
  uint32_t crc;
};
static_assert(sizeof(RecordHeader) == kRecordHeader);

uint32_t ZeroPageCrc() {
  static const uint32_t crc = [] {
    const uint8_t page[kPage] = {};
    return Crc32c(0, page, kPage);
  }();
  return crc;
}

// What was last sent of a page, direct-mapped by page number: neighbours do not evict each other.
class PageEncoder : public Napi::ObjectWrap<PageEncoder> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "PageEncoder",
                       {InstanceMethod<&PageEncoder::Encode>("encode"), InstanceMethod<&PageEncoder::Forget>("forget"),
                        InstanceMethod<&PageEncoder::Clear>("clear")});
  }

  // new PageEncoder(cachePages): pages of earlier content to keep (0: no deltas).
  explicit PageEncoder(const Napi::CallbackInfo& info) : Napi::ObjectWrap<PageEncoder>(info) {
    slots_ = static_cast<size_t>(IntArg(info, 0, "cachePages", 0, 1 << 20));
    if (slots_ == 0) return;
    void* p = mmap(nullptr, slots_ * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw ErrnoError(info.Env(), errno, "mmap");
    madvise(p, slots_ * kPage, MADV_HUGEPAGE);
    content_ = static_cast<uint8_t*>(p);
    pages_.assign(slots_, kNoPage);
  }

  ~PageEncoder() override {
    if (content_ != nullptr) munmap(content_, slots_ * kPage);
  }

 private:
  // encode(pages, first, count, staging, stagingOffset, out, outOffset, stats) -> pages encoded (fewer than `count` when
  // `out` has no room for another raw record). The content of pages[first + i] is at stagingOffset + i * 4096.
  // stats (Uint32Array of 5, added to): zero, same, delta, raw; [4] is set to the end offset in `out`.
  Napi::Value Encode(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    const auto pages = ArrayArg<uint32_t>(info, 0, "pages");
    const auto first = static_cast<uint64_t>(IntArg(info, 1, "first", 0, kSizeMax));
    const auto count = static_cast<uint64_t>(IntArg(info, 2, "count", 0, INT32_MAX));
    const auto staging = ArrayArg<uint8_t>(info, 3, "staging");
    const auto stagingOffset = static_cast<uint64_t>(IntArg(info, 4, "stagingOffset", 0, kSizeMax));
    const auto out = ArrayArg<uint8_t>(info, 5, "out");
    auto at = static_cast<uint64_t>(IntArg(info, 6, "outOffset", 0, UINT32_MAX));
    const auto stats = ArrayArg<uint32_t>(info, 7, "stats");
    CheckSlice(env, first, count, pages.length, "pages");
    CheckSlice(env, stagingOffset, count * kPage, staging.length, "staging");
    CheckSlice(env, at, 0, out.length, "out");
    CheckSlice(env, 0, 5, stats.length, "stats");

    uint64_t i = 0;
    for (; i < count && std::min<uint64_t>(out.length, UINT32_MAX) - at >= kRecordHeader + kPage; i++) {
      at += One(pages.data[first + i], staging.data + stagingOffset + i * kPage, out.data + at, stats.data);
    }
    stats.data[4] = static_cast<uint32_t>(at);
    return Napi::Number::New(env, static_cast<double>(i));
  }

  size_t One(uint32_t page, const uint8_t* content, uint8_t* out, uint32_t* stats) {
    uint8_t* base = slots_ == 0 ? nullptr : content_ + page % slots_ * kPage;
    const bool known = base != nullptr && pages_[page % slots_] == page;
    const bool zero = IsZero(content, kPage);
    RecordHeader header{page, kPageRaw, 0, kPage, zero ? ZeroPageCrc() : Crc32c(0, content, kPage)};
    uint8_t* payload = out + kRecordHeader;
    if (zero) {
      header.kind = kPageZero;
      header.length = 0;
    } else if (known) {
      const size_t bytes = EncodeDelta(base, content, payload);
      if (bytes <= kDeltaMax) {
        header.kind = bytes == 0 ? kPageSame : kPageDelta;
        header.length = static_cast<uint16_t>(bytes);
      }
    }
    if (header.kind == kPageRaw) memcpy(payload, content, kPage);
    if (base != nullptr && header.kind != kPageSame) {
      // A cache that was never written reads as zeros and occupies nothing; zeros need not change that.
      if (!zero || !IsZero(base, kPage)) memcpy(base, content, kPage);
      pages_[page % slots_] = page;
    }
    memcpy(out, &header, sizeof header);
    stats[header.kind]++;
    return kRecordHeader + header.length;
  }

  // forget(pages, first, count): these were encoded and never committed; their next record is no delta.
  void Forget(const Napi::CallbackInfo& info) {
    const auto pages = ArrayArg<uint32_t>(info, 0, "pages");
    const auto first = static_cast<uint64_t>(IntArg(info, 1, "first", 0, kSizeMax));
    const auto count = static_cast<uint64_t>(IntArg(info, 2, "count", 0, INT32_MAX));
    CheckSlice(info.Env(), first, count, pages.length, "pages");
    if (slots_ == 0) return;
    for (uint64_t i = first; i < first + count; i++) {
      uint32_t& owner = pages_[pages.data[i] % slots_];
      if (owner == pages.data[i]) owner = kNoPage;
    }
  }

  void Clear(const Napi::CallbackInfo&) { std::fill(pages_.begin(), pages_.end(), kNoPage); }

  size_t slots_ = 0;
  uint8_t* content_ = nullptr;
  std::vector<uint32_t> pages_;
};

// Results of decodePages below zero.
enum : int { kMalformed = -1, kChecksum = -2, kNoRoom = -3, kNotMemory = -4 };

// decodePages(stream, start, end, base, pages, first, staging, stagingOffset, maxPages) -> pages decoded, or a negative
// code (the staging area is then rubbish). Page i of the stream goes to staging at stagingOffset + i * 4096 and its
// number to pages[first + i]. `base` is the MemoryMap that holds the committed content which deltas refer to; a page
// outside it is refused whatever its kind.
Napi::Value DecodePages(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto stream = ArrayArg<uint8_t>(info, 0, "stream");
  const auto start = static_cast<uint64_t>(IntArg(info, 1, "start", 0, kSizeMax));
  const auto end = static_cast<uint64_t>(IntArg(info, 2, "end", 0, kSizeMax));
  const std::shared_ptr<MemoryMap> base = UnwrapMemoryMap(env, info[3]);
  const auto pages = ArrayArg<uint32_t>(info, 4, "pages");
  const auto first = static_cast<uint64_t>(IntArg(info, 5, "first", 0, kSizeMax));
  const auto staging = ArrayArg<uint8_t>(info, 6, "staging");
  const auto stagingOffset = static_cast<uint64_t>(IntArg(info, 7, "stagingOffset", 0, kSizeMax));
  if (start > end) throw Napi::RangeError::New(env, "start is beyond end");
  CheckSlice(env, start, end - start, stream.length, "stream");
  CheckSlice(env, first, 0, pages.length, "pages");
  CheckSlice(env, stagingOffset, 0, staging.length, "staging");
  const uint64_t room = std::min<uint64_t>(pages.length - first, (staging.length - stagingOffset) / kPage);

  uint64_t at = start;
  uint64_t count = 0;
  while (at < end) {
    RecordHeader header;
    if (end - at < kRecordHeader) return Napi::Number::New(env, kMalformed);
    memcpy(&header, stream.data + at, sizeof header);
    at += kRecordHeader;
    const uint8_t* payload = stream.data + at;
    if (header.zero != 0 || header.length > end - at) return Napi::Number::New(env, kMalformed);
    at += header.length;
    if (count == room) return Napi::Number::New(env, kNoRoom);
    const uint8_t* committed = base->Translate(static_cast<uint64_t>(header.page) * kPage, kPage, false);
    if (committed == nullptr) return Napi::Number::New(env, kNotMemory);
    uint8_t* out = staging.data + stagingOffset + count * kPage;
    bool good = true;
    switch (header.kind) {
      case kPageZero:
        good = header.length == 0;
        memset(out, 0, kPage);
        break;
      case kPageSame:
        good = header.length == 0;
        memcpy(out, committed, kPage);
        break;
      case kPageDelta:
        memcpy(out, committed, kPage);
        good = header.length > 0 && ApplyDelta(out, payload, header.length);
        break;
      case kPageRaw:
        good = header.length == kPage;
        if (good) memcpy(out, payload, kPage);
        break;
      default:
        good = false;
    }
    if (!good) return Napi::Number::New(env, kMalformed);
    if (Crc32c(0, out, kPage) != header.crc) return Napi::Number::New(env, kChecksum);
    pages.data[first + count] = header.page;
    count++;
  }
  return Napi::Number::New(env, static_cast<double>(count));
}

struct Slice {
  uint8_t* data;
  uint64_t length;
};

Slice SliceArg(const Napi::CallbackInfo& info, size_t index, uint64_t length) {
  const auto bytes = ArrayArg<uint8_t>(info, index, "bytes");
  const auto offset = static_cast<uint64_t>(IntArg(info, index + 1, "offset", 0, kSizeMax));
  CheckSlice(info.Env(), offset, length, bytes.length, "bytes");
  return {bytes.data + offset, length};
}

// crc32cNative(bytes, offset, length, previous)
Napi::Value Crc(const Napi::CallbackInfo& info) {
  const auto length = static_cast<uint64_t>(IntArg(info, 2, "length", 0, kSizeMax));
  const auto previous = static_cast<uint32_t>(IntArg(info, 3, "previous", 0, UINT32_MAX));
  const Slice slice = SliceArg(info, 0, length);
  const bool table = info.Length() > 4 && info[4].ToBoolean().Value();
  return Napi::Number::New(info.Env(), table ? Crc32cTable(previous, slice.data, length)
                                             : Crc32c(previous, slice.data, length));
}

// crcPages(staging, offset, count, sums): CRC-32C of each page.
void CrcPages(const Napi::CallbackInfo& info) {
  const auto count = static_cast<uint64_t>(IntArg(info, 2, "count", 0, INT32_MAX));
  const auto sums = ArrayArg<uint32_t>(info, 3, "sums");
  const Slice slice = SliceArg(info, 0, count * kPage);
  CheckSlice(info.Env(), 0, count, sums.length, "sums");
  for (uint64_t i = 0; i < count; i++) sums.data[i] = Crc32c(0, slice.data + i * kPage, kPage);
}

// isZero(bytes, offset, length)
Napi::Value IsZeroBytes(const Napi::CallbackInfo& info) {
  const auto length = static_cast<uint64_t>(IntArg(info, 2, "length", 0, kSizeMax));
  return Napi::Boolean::New(info.Env(), IsZero(SliceArg(info, 0, length).data, length));
}

// bytesEqual(a, aOffset, b, bOffset, length)
Napi::Value BytesEqual(const Napi::CallbackInfo& info) {
  const auto length = static_cast<uint64_t>(IntArg(info, 4, "length", 0, kSizeMax));
  const Slice a = SliceArg(info, 0, length);
  const Slice b = SliceArg(info, 2, length);
  return Napi::Boolean::New(info.Env(), length == 0 || memcmp(a.data, b.data, length) == 0);
}

}  // namespace

void InitPages(Napi::Env env, Napi::Object exports) {
  exports.Set("PageEncoder", PageEncoder::Define(env));
  exports.Set("decodePages", Napi::Function::New<DecodePages>(env, "decodePages"));
  exports.Set("crc32c", Napi::Function::New<Crc>(env, "crc32c"));
  exports.Set("crcPages", Napi::Function::New<CrcPages>(env, "crcPages"));
  exports.Set("isZero", Napi::Function::New<IsZeroBytes>(env, "isZero"));
  exports.Set("bytesEqual", Napi::Function::New<BytesEqual>(env, "bytesEqual"));
}

}  // namespace tsvmm::io
