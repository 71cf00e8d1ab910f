// Asynchronous disk requests on guest memory; see block-io.cc.
#pragma once
#include <napi.h>

namespace tsvmm::io {
void InitBlockIo(Napi::Env env, Napi::Object exports);
}
