// Bulk work on page contents, one call per batch; see pages.cc.
#pragma once
#include <napi.h>

namespace tsvmm::io {
void InitPages(Napi::Env env, Napi::Object exports);
}
