#include "init.h"

#include "memory-map.h"
#include "state.h"
#include "vcpu.h"
#include "vm-object.h"

void InitKvm(Napi::Env env, Napi::Object exports) {
  tsvmm::PrepareKickSignal();
  exports.Set("MemoryMap", tsvmm::MemoryMapObject::Define(env));
  exports.Set("KvmVm", tsvmm::VmObject::Define(env));
  tsvmm::DefineHostFunctions(env, exports);
}
