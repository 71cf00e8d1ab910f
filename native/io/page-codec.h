// The records in which changed guest pages travel: see native/README.md, "Page stream". Plain memory in and out.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tsvmm::io {

constexpr size_t kPage = 4096;
constexpr size_t kRecordHeader = 12;
// A delta longer than this is not worth its decoding: the page goes raw.
constexpr size_t kDeltaMax = 3072;

enum PageKind : uint8_t { kPageZero = 0, kPageSame = 1, kPageDelta = 2, kPageRaw = 3 };

bool IsZero(const uint8_t* data, size_t length);

// Word delta of `page` against `base` into `out` (room for kDeltaMax bytes). Bytes written; 0 when they are equal, and
// kDeltaMax + 1 when the delta would be longer than kDeltaMax.
size_t EncodeDelta(const uint8_t* base, const uint8_t* page, uint8_t* out);

// Applies a delta in place. False (and `page` may be half changed) when it is malformed.
bool ApplyDelta(uint8_t* page, const uint8_t* delta, size_t length);

}  // namespace tsvmm::io
