// Entry of the native addon: mechanism only, no policy and no device knowledge.
// native/kvm: virtual machines, vCPUs and guest memory. native/io: file descriptors, disks, TAP, pages.
#include <napi.h>

#include "io/init.h"
#if __has_include("kvm/init.h")
#include "kvm/init.h"
#define TSVMM_HAS_KVM 1
#endif

static Napi::Object Init(Napi::Env env, Napi::Object exports) {
#ifdef TSVMM_HAS_KVM
  InitKvm(env, exports);
#endif
  InitIo(env, exports);
  return exports;
}

NODE_API_MODULE(tsvmm, Init)
