// Reading arguments from JavaScript with every range checked, and turning errno into Error objects.
// Everything here throws (Napi::Error) on a wrong argument, so that garbage never reaches a system call.
#pragma once

#include <napi.h>

#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

namespace tsvmm::io {

// Memory lent by a typed array or DataView for the duration of a call.
template <typename T>
struct Lent {
  T* data;
  size_t length;  // elements
};

inline double NumberArg(const Napi::CallbackInfo& info, size_t index, const char* name) {
  if (index >= info.Length() || !info[index].IsNumber()) {
    throw Napi::TypeError::New(info.Env(), std::string(name) + " must be a number");
  }
  return info[index].As<Napi::Number>().DoubleValue();
}

// An integer in [lo, hi].
inline int64_t IntArg(const Napi::CallbackInfo& info, size_t index, const char* name, int64_t lo, int64_t hi) {
  const double value = NumberArg(info, index, name);
  if (!(value >= static_cast<double>(lo) && value <= static_cast<double>(hi)) || value != std::floor(value)) {
    throw Napi::RangeError::New(info.Env(), std::string(name) + " is out of range");
  }
  return static_cast<int64_t>(value);
}

inline int FdArg(const Napi::CallbackInfo& info, size_t index) {
  return static_cast<int>(IntArg(info, index, "fd", 0, INT32_MAX));
}

inline std::string StringArg(const Napi::CallbackInfo& info, size_t index, const char* name, size_t maxBytes) {
  if (index >= info.Length() || !info[index].IsString()) {
    throw Napi::TypeError::New(info.Env(), std::string(name) + " must be a string");
  }
  std::string value = info[index].As<Napi::String>().Utf8Value();
  if (value.size() > maxBytes || value.find('\0') != std::string::npos) {
    throw Napi::RangeError::New(info.Env(), std::string(name) + " is too long or holds a NUL");
  }
  return value;
}

inline Napi::Function FunctionArg(const Napi::CallbackInfo& info, size_t index, const char* name) {
  if (index >= info.Length() || !info[index].IsFunction()) {
    throw Napi::TypeError::New(info.Env(), std::string(name) + " must be a function");
  }
  return info[index].As<Napi::Function>();
}

template <typename T>
constexpr bool ElementTypeMatches(napi_typedarray_type type) {
  if constexpr (std::is_same_v<T, uint8_t>) return type == napi_uint8_array || type == napi_uint8_clamped_array;
  if constexpr (std::is_same_v<T, uint32_t>) return type == napi_uint32_array;
  if constexpr (std::is_same_v<T, int32_t>) return type == napi_int32_array;
  if constexpr (std::is_same_v<T, double>) return type == napi_float64_array;
  return false;
}

// A typed array with elements of type T (Uint8Array or Buffer, Uint32Array, Int32Array, Float64Array).
template <typename T>
Lent<T> ArrayArg(const Napi::CallbackInfo& info, size_t index, const char* name) {
  napi_typedarray_type type{};
  size_t length = 0;
  void* data = nullptr;
  if (index >= info.Length() || !info[index].IsTypedArray() ||
      napi_get_typedarray_info(info.Env(), info[index], &type, &length, &data, nullptr, nullptr) != napi_ok ||
      !ElementTypeMatches<T>(type)) {
    throw Napi::TypeError::New(info.Env(), std::string(name) + " must be a typed array of the right kind");
  }
  if (data == nullptr) length = 0;  // detached
  return {static_cast<T*>(data), length};
}

inline void CheckSlice(Napi::Env env, uint64_t offset, uint64_t count, uint64_t length, const char* name) {
  if (offset > length || count > length - offset) {
    throw Napi::RangeError::New(env, std::string(name) + " is too small");
  }
}

inline const char* ErrnoName(int error) {
  const char* name = strerrorname_np(error);
  return name == nullptr ? "EUNKNOWN" : name;
}

// An Error with `code` ("ENOENT"), `errno` and `syscall`, as Node's own have.
inline Napi::Error ErrnoError(Napi::Env env, int error, const char* what) {
  char text[128];
  const char* reason = strerror_r(error, text, sizeof text);
  Napi::Error result =
      Napi::Error::New(env, std::string(ErrnoName(error)) + ": " + reason + ", " + what);
  result.Set("code", Napi::String::New(env, ErrnoName(error)));
  result.Set("errno", Napi::Number::New(env, error));
  result.Set("syscall", Napi::String::New(env, what));
  return result;
}

}  // namespace tsvmm::io
