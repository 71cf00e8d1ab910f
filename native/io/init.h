// Registers the classes and functions of native/io on the addon's exports.
#pragma once
#include <napi.h>

void InitIo(Napi::Env env, Napi::Object exports);
