// Linux TAP interfaces; see tap.cc.
#pragma once
#include <napi.h>

namespace tsvmm::io {
void InitTap(Napi::Env env, Napi::Object exports);
}
