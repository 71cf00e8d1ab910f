// The state ioctls behind one table: which structure, which size, which vCPU or VM.
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>

namespace tsvmm {

class Vm;

// Numbers shared with src/kvm/native.ts (STATE).
enum StateKind : uint32_t {
  kStateRegs = 0,
  kStateSregs = 1,
  kStateXsave = 2,
  kStateXcrs = 3,
  kStateLapic = 4,
  kStateEvents = 5,
  kStateMp = 6,
  kStateDebugregs = 7,
  kStateKinds = 8,
};

// Bytes of a vCPU state structure in this VM.
size_t VcpuStateBytes(const Vm& vm, uint32_t kind);
void GetVcpuState(Vm& vm, uint32_t vcpu, uint32_t kind, uint8_t* data);
void SetVcpuState(Vm& vm, uint32_t vcpu, uint32_t kind, const uint8_t* data);

// Chip 0 and 1: PIC master and slave; 2: IOAPIC. 512 bytes.
constexpr size_t kIrqchipBytes = 512;
void GetIrqchip(Vm& vm, uint32_t chip, uint8_t* data);
void SetIrqchip(Vm& vm, uint32_t chip, const uint8_t* data);

// Returns how many of the MSRs, from the first on, were read or written.
uint32_t GetMsrs(Vm& vm, uint32_t vcpu, const uint32_t* indices, uint64_t* values, uint32_t count);
uint32_t SetMsrs(Vm& vm, uint32_t vcpu, const uint32_t* indices, const uint64_t* values, uint32_t count);

constexpr uint32_t kCpuidRowWords = 7;
constexpr uint32_t kCpuidRowsMax = 256;
void SetCpuid(Vm& vm, uint32_t vcpu, const uint32_t* rows, uint32_t count);
// Returns the number of rows; `rows` has space for kCpuidRowsMax.
uint32_t GetCpuid(Vm& vm, uint32_t vcpu, uint32_t* rows);

// False where the kernel has no such attribute.
bool GetTscOffset(Vm& vm, uint32_t vcpu, uint64_t* offset);
bool SetTscOffset(Vm& vm, uint32_t vcpu, uint64_t offset);

// Host-wide queries, without a VM: probeCapabilities(), msrIndexList(), supportedCpuid(),
// probeLazySkip(), hostTsc().
void DefineHostFunctions(Napi::Env env, Napi::Object exports);

}  // namespace tsvmm
