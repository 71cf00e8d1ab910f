#include "page-codec.h"

#include <cstring>

namespace tsvmm::io {
namespace {

constexpr size_t kWord = 8;
constexpr size_t kWords = kPage / kWord;
constexpr size_t kRunMax = 255;

inline uint64_t Word(const uint8_t* p, size_t index) {
  uint64_t value;
  memcpy(&value, p + index * kWord, kWord);
  return value;
}

}  // namespace

bool IsZero(const uint8_t* data, size_t length) {
  if (length == 0) return true;
  // Most pages that are not zero say so in their first bytes; otherwise the buffer equals itself moved by one.
  return data[0] == 0 && memcmp(data, data + 1, length - 1) == 0;
}

size_t EncodeDelta(const uint8_t* base, const uint8_t* page, uint8_t* out) {
  size_t at = 0;
  size_t word = 0;
  size_t covered = 0;  // words the delta accounts for
  while (word < kWords) {
    // Four words at a time over what did not change.
    while (word + 4 <= kWords && memcmp(base + word * kWord, page + word * kWord, 4 * kWord) == 0) word += 4;
    while (word < kWords && Word(base, word) == Word(page, word)) word++;
    if (word == kWords) break;
    size_t skip = word - covered;
    for (; skip > kRunMax; skip -= kRunMax) {
      if (at + 2 > kDeltaMax) return kDeltaMax + 1;
      out[at++] = kRunMax;
      out[at++] = 0;
    }
    size_t end = word + 1;
    while (end < kWords && end - word < kRunMax && Word(base, end) != Word(page, end)) end++;
    const size_t bytes = (end - word) * kWord;
    if (at + 2 + bytes > kDeltaMax) return kDeltaMax + 1;
    out[at++] = static_cast<uint8_t>(skip);
    out[at++] = static_cast<uint8_t>(end - word);
    memcpy(out + at, page + word * kWord, bytes);
    at += bytes;
    word = covered = end;
  }
  return at;
}

bool ApplyDelta(uint8_t* page, const uint8_t* delta, size_t length) {
  size_t at = 0;
  size_t word = 0;
  while (at < length) {
    if (length - at < 2) return false;
    word += delta[at];
    const size_t count = delta[at + 1];
    at += 2;
    if (word + count > kWords || count * kWord > length - at) return false;
    memcpy(page + word * kWord, delta + at, count * kWord);
    word += count;
    at += count * kWord;
  }
  return true;
}

}  // namespace tsvmm::io
