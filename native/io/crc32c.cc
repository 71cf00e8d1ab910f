#include "crc32c.h"

#include <nmmintrin.h>

#include <array>
#include <cstring>

namespace tsvmm::io {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;

using Table = std::array<uint32_t, 256>;

Table MakeTable() {
  Table table{};
  for (uint32_t n = 0; n < 256; n++) {
    uint32_t crc = n;
    for (int bit = 0; bit < 8; bit++) crc = (crc & 1) != 0 ? (crc >> 1) ^ kPolynomial : crc >> 1;
    table[n] = crc;
  }
  return table;
}

uint32_t UpdateTable(uint32_t crc, const uint8_t* data, size_t length) {
  static const Table table = MakeTable();
  for (size_t i = 0; i < length; i++) crc = (crc >> 8) ^ table[(crc ^ data[i]) & 0xff];
  return crc;
}

inline uint64_t Load(const uint8_t* p) {
  uint64_t value;
  memcpy(&value, p, sizeof value);
  return value;
}

// The instruction has a latency of three cycles and a throughput of one: a page is summed as three lanes at once, whose
// sums are joined by moving a sum past the bytes of a lane (linear, hence four table look-ups).
constexpr size_t kLane = 1360;  // three of them and 16 bytes are a page

__attribute__((target("sse4.2"))) uint32_t UpdateHardware(uint32_t crc, const uint8_t* data, size_t length) {
  uint64_t sum = crc;
  for (; length >= 8; data += 8, length -= 8) sum = _mm_crc32_u64(sum, Load(data));
  auto small = static_cast<uint32_t>(sum);
  for (; length > 0; data++, length--) small = _mm_crc32_u8(small, *data);
  return small;
}

struct LaneShift {
  std::array<Table, 4> byte;
  LaneShift() {
    static const uint8_t zeroes[kLane] = {};
    for (uint32_t k = 0; k < 4; k++) {
      for (uint32_t n = 0; n < 256; n++) byte[k][n] = UpdateHardware(n << (8 * k), zeroes, kLane);
    }
  }
  uint32_t operator()(uint32_t crc) const {
    return byte[0][crc & 0xff] ^ byte[1][(crc >> 8) & 0xff] ^ byte[2][(crc >> 16) & 0xff] ^ byte[3][crc >> 24];
  }
};

__attribute__((target("sse4.2"))) uint32_t UpdateLanes(uint32_t crc, const uint8_t* data, size_t length) {
  static const LaneShift shift;
  while (length >= 3 * kLane) {
    uint64_t a = crc;
    uint64_t b = 0;
    uint64_t c = 0;
    for (size_t i = 0; i < kLane; i += 8) {
      a = _mm_crc32_u64(a, Load(data + i));
      b = _mm_crc32_u64(b, Load(data + kLane + i));
      c = _mm_crc32_u64(c, Load(data + 2 * kLane + i));
    }
    crc = shift(shift(static_cast<uint32_t>(a)) ^ static_cast<uint32_t>(b)) ^ static_cast<uint32_t>(c);
    data += 3 * kLane;
    length -= 3 * kLane;
  }
  return UpdateHardware(crc, data, length);
}

}  // namespace

uint32_t Crc32cTable(uint32_t previous, const uint8_t* data, size_t length) {
  return ~UpdateTable(~previous, data, length);
}

uint32_t Crc32c(uint32_t previous, const uint8_t* data, size_t length) {
  static const bool hardware = __builtin_cpu_supports("sse4.2") != 0;
  if (!hardware) return Crc32cTable(previous, data, length);
  return ~UpdateLanes(~previous, data, length);
}

}  // namespace tsvmm::io
