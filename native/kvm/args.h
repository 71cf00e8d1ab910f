// Checked reading of JavaScript arguments. Every function throws TypeError or RangeError, so that no
// native entry can be crashed by what it is given.
#pragma once

#include <napi.h>

#include <cmath>
#include <cstdint>
#include <string>

namespace tsvmm {

[[noreturn]] inline void ThrowRange(Napi::Env env, const char* message) { throw Napi::RangeError::New(env, message); }

// An integer Number in [min, max].
inline uint64_t ArgUint(const Napi::CallbackInfo& info, size_t index, const char* name, uint64_t min,
                        uint64_t max) {
  Napi::Value value = info[index];
  if (!value.IsNumber()) throw Napi::TypeError::New(info.Env(), std::string(name) + " must be a number");
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(number >= static_cast<double>(min) && number <= static_cast<double>(max)) ||
      number != std::floor(number)) {
    throw Napi::RangeError::New(info.Env(), std::string(name) + " is out of range");
  }
  return static_cast<uint64_t>(number);
}

inline uint32_t ArgU32(const Napi::CallbackInfo& info, size_t index, const char* name,
                       uint32_t max = UINT32_MAX) {
  return static_cast<uint32_t>(ArgUint(info, index, name, 0, max));
}

// A guest physical address or a size: an integer below 2^52.
inline uint64_t ArgAddress(const Napi::CallbackInfo& info, size_t index, const char* name) {
  return ArgUint(info, index, name, 0, (1ULL << 52) - 1);
}

inline bool ArgBool(const Napi::CallbackInfo& info, size_t index, const char* name) {
  Napi::Value value = info[index];
  if (!value.IsBoolean()) throw Napi::TypeError::New(info.Env(), std::string(name) + " must be a boolean");
  return value.As<Napi::Boolean>().Value();
}

inline uint64_t ArgBigUint(const Napi::CallbackInfo& info, size_t index, const char* name) {
  Napi::Value value = info[index];
  if (!value.IsBigInt()) throw Napi::TypeError::New(info.Env(), std::string(name) + " must be a bigint");
  bool lossless = false;
  const uint64_t number = value.As<Napi::BigInt>().Uint64Value(&lossless);
  if (!lossless) throw Napi::RangeError::New(info.Env(), std::string(name) + " is not an unsigned 64-bit value");
  return number;
}

inline Napi::Function ArgFunction(const Napi::CallbackInfo& info, size_t index, const char* name) {
  Napi::Value value = info[index];
  if (!value.IsFunction()) throw Napi::TypeError::New(info.Env(), std::string(name) + " must be a function");
  return value.As<Napi::Function>();
}

struct Span {
  uint8_t* data;
  size_t size;
};

// The bytes of a typed array of exactly this type.
inline Span ArgTyped(const Napi::CallbackInfo& info, size_t index, const char* name,
                     napi_typedarray_type type) {
  Napi::Value value = info[index];
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != type) {
    throw Napi::TypeError::New(info.Env(), std::string(name) + " must be a typed array of the right kind");
  }
  void* data = nullptr;
  size_t length = 0;
  napi_typedarray_type actual{};
  napi_value buffer = nullptr;
  size_t offset = 0;
  if (napi_get_typedarray_info(info.Env(), value, &actual, &length, &data, &buffer, &offset) != napi_ok) {
    throw Napi::TypeError::New(info.Env(), std::string(name) + " cannot be read");
  }
  const size_t bytes = value.As<Napi::TypedArray>().ByteLength();
  return {static_cast<uint8_t*>(data), data == nullptr ? 0 : bytes};
}

inline Span ArgBytes(const Napi::CallbackInfo& info, size_t index, const char* name) {
  return ArgTyped(info, index, name, napi_uint8_array);
}

inline Napi::ArrayBuffer ArgBuffer(const Napi::CallbackInfo& info, size_t index, const char* name) {
  Napi::Value value = info[index];
  if (!value.IsArrayBuffer()) throw Napi::TypeError::New(info.Env(), std::string(name) + " must be an ArrayBuffer");
  return value.As<Napi::ArrayBuffer>();
}

}  // namespace tsvmm
