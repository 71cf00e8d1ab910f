// A file descriptor watched by the event loop (uv_poll), closed by itself when the environment ends. The
// building block of FdPoller, PreciseTimer and the completion event of BlockIo. JavaScript thread only.
#pragma once

#include <napi.h>
#include <uv.h>

#include <functional>
#include <memory>

namespace tsvmm::io {

class Watch : public std::enable_shared_from_this<Watch> {
 public:
  // `events` is UV_READABLE|UV_WRITABLE bits, or a negative errno when the descriptor itself failed (watching
  // has stopped then). A handle scope is open around the call; an exception goes to `uncaughtException`.
  using Callback = std::function<void(Napi::Env env, int events)>;

  // Throws an errno Error when the descriptor cannot be polled.
  static std::shared_ptr<Watch> Create(Napi::Env env, int fd, Callback callback);

  // Starts, or changes what is watched for. 0 or a negative errno.
  int Start(int events);
  void Stop();
  // Idempotent; no callback afterwards. The descriptor may be closed at once.
  void Close();
  bool closed() const { return closed_; }
  // Whether the watch keeps the process alive.
  void KeepAlive(bool on);

 private:
  Watch(Napi::Env env, Callback callback) : env_(env), callback_(std::move(callback)) {}
  static void OnPoll(uv_poll_t* handle, int status, int events);
  static void OnClosed(uv_handle_t* handle);

  Napi::Env env_;
  Callback callback_;
  uv_poll_t poll_{};
  bool closed_ = false;
  napi_async_cleanup_hook_handle hook_ = nullptr;
  std::shared_ptr<Watch> self_;  // held from creation until libuv has let go of poll_
};

// Calls a function as the event loop does: with microtasks afterwards, exceptions to `uncaughtException`.
void CallFromLoop(Napi::Env env, const Napi::FunctionReference& callback, double argument);

void InitWatch(Napi::Env env, Napi::Object exports);

}  // namespace tsvmm::io
