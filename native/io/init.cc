#include "init.h"

#include "block-io.h"
#include "files.h"
#include "pages.h"
#include "tap.h"
#include "watch.h"

void InitIo(Napi::Env env, Napi::Object exports) {
  tsvmm::io::InitWatch(env, exports);
  tsvmm::io::InitFiles(env, exports);
  tsvmm::io::InitTap(env, exports);
  tsvmm::io::InitPages(env, exports);
  tsvmm::io::InitBlockIo(env, exports);
}
