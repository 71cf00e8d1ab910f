// CRC-32C (Castagnoli), with SSE4.2 where the processor has it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tsvmm::io {

// Continues `previous` (0 to start) over `length` bytes; same values as crc32c() in src/base/crc32c.ts.
uint32_t Crc32c(uint32_t previous, const uint8_t* data, size_t length);
// The portable version, for tests on processors that have the instruction.
uint32_t Crc32cTable(uint32_t previous, const uint8_t* data, size_t length);

}  // namespace tsvmm::io
