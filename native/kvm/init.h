// Registration of the KVM core's classes and functions.
#pragma once

#include <napi.h>

void InitKvm(Napi::Env env, Napi::Object exports);
