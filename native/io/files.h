// Functions on descriptors and clocks; see files.cc.
#pragma once
#include <napi.h>

namespace tsvmm::io {
void InitFiles(Napi::Env env, Napi::Object exports);
}
