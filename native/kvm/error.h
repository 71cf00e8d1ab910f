// Errors of the KVM core: thrown as C++ exceptions, turned into JavaScript errors at the N-API border.
// IoctlError becomes Error{code: 'KVM_IOCTL', call, errno}; KvmError becomes Error{code}.
#pragma once

#include <napi.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>

namespace tsvmm {

class IoctlError : public std::runtime_error {
 public:
  IoctlError(const char* call, int error)
      : std::runtime_error(std::string(call) + ": " + std::strerror(error)), call_(call), errno_(error) {}
  const char* call() const { return call_; }
  int error() const { return errno_; }

 private:
  const char* call_;  // a literal
  int errno_;
};

class KvmError : public std::runtime_error {
 public:
  KvmError(const char* code, const std::string& message) : std::runtime_error(message), code_(code) {}
  const char* code() const { return code_; }

 private:
  const char* code_;  // a literal
};

// The result of an ioctl, or IoctlError. EINTR is retried.
template <typename Arg>
int Ioctl(int fd, unsigned long request, Arg arg, const char* call) {
  for (;;) {
    const int result = ::ioctl(fd, request, arg);
    if (result >= 0) return result;
    if (errno != EINTR) throw IoctlError(call, errno);
  }
}

// Runs fn and turns the exceptions above (and std::bad_alloc) into JavaScript ones.
template <typename Fn>
auto Guard(Napi::Env env, Fn fn) -> decltype(fn()) {
  const char* code = nullptr;
  std::string message;
  const char* call = nullptr;
  int error = 0;
  try {
    return fn();
  } catch (const IoctlError& e) {
    code = "KVM_IOCTL";
    message = e.what();
    call = e.call();
    error = e.error();
  } catch (const KvmError& e) {
    code = e.code();
    message = e.what();
  } catch (const std::bad_alloc&) {
    code = "KVM_MEMORY";
    message = "out of memory";
  } catch (const std::system_error& e) {
    code = "KVM_IOCTL";
    message = e.what();
    call = "thread";
    error = e.code().value();
  }
  Napi::Error failure = Napi::Error::New(env, message);
  failure.Value().Set("code", code);
  if (call != nullptr) {
    failure.Value().Set("call", call);
    failure.Value().Set("errno", error);
  }
  throw failure;
}

}  // namespace tsvmm
