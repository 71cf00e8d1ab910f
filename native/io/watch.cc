#include "watch.h"

#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "../kvm/loop-poller.h"
#include "args.h"

namespace tsvmm::io {

std::shared_ptr<Watch> Watch::Create(Napi::Env env, int fd, Callback callback) {
  uv_loop_t* loop = nullptr;
  if (napi_get_uv_event_loop(env, &loop) != napi_ok) throw Napi::Error::New(env, "no event loop");
  std::shared_ptr<Watch> watch(new Watch(env, std::move(callback)));
  const int status = uv_poll_init(loop, &watch->poll_, fd);
  if (status != 0) throw ErrnoError(env, -status, "epoll_ctl");
  watch->poll_.data = watch.get();
  watch->self_ = watch;
  // A worker thread's loop must be empty when it ends: the environment waits until the handle is closed.
  napi_add_async_cleanup_hook(
      env,
      [](napi_async_cleanup_hook_handle, void* data) { static_cast<Watch*>(data)->Close(); },
      watch.get(), &watch->hook_);
  return watch;
}

int Watch::Start(int events) {
  if (closed_) return -EBADF;
  return uv_poll_start(&poll_, events, OnPoll);
}

void Watch::Stop() {
  if (!closed_) uv_poll_stop(&poll_);
}

void Watch::Close() {
  if (closed_) return;
  closed_ = true;
  callback_ = nullptr;
  uv_poll_stop(&poll_);
  uv_close(reinterpret_cast<uv_handle_t*>(&poll_), OnClosed);
}

void Watch::KeepAlive(bool on) {
  if (closed_) return;
  auto* handle = reinterpret_cast<uv_handle_t*>(&poll_);
  if (on) {
    uv_ref(handle);
  } else {
    uv_unref(handle);
  }
}

void Watch::OnPoll(uv_poll_t* handle, int status, int events) {
  auto* watch = static_cast<Watch*>(handle->data);
  if (watch->closed_) return;
  const std::shared_ptr<Watch> keep = watch->shared_from_this();
  // The callback may close the watch, which clears callback_.
  const Callback callback = watch->callback_;
  Napi::HandleScope scope(watch->env_);
  callback(watch->env_, status < 0 ? status : events);
}

void Watch::OnClosed(uv_handle_t* handle) {
  auto* watch = static_cast<Watch*>(handle->data);
  napi_remove_async_cleanup_hook(watch->hook_);
  const std::shared_ptr<Watch> last = std::move(watch->self_);
}

void CallFromLoop(Napi::Env env, const Napi::FunctionReference& callback, double argument) {
  if (callback.IsEmpty()) return;
  const napi_value value = Napi::Number::New(env, argument);
  napi_value result = nullptr;
  const napi_status status = napi_make_callback(env, nullptr, env.Global(), callback.Value(), 1, &value, &result);
  if (status == napi_pending_exception) {
    napi_value error = nullptr;
    napi_get_and_clear_last_exception(env, &error);
    napi_fatal_exception(env, error);
  }
}

namespace {

// new FdPoller(fd, callback(events), drainEventFd): the callback gets 1 readable | 2 writable or a negative errno; with
// drainEventFd the eventfd is read first and the callback gets its count.
class FdPoller : public Napi::ObjectWrap<FdPoller> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "FdPoller",
                       {InstanceMethod<&FdPoller::Start>("start"), InstanceMethod<&FdPoller::Stop>("stop"),
                        InstanceMethod<&FdPoller::Close>("close"), InstanceMethod<&FdPoller::KeepAlive>("keepAlive")});
  }

  explicit FdPoller(const Napi::CallbackInfo& info) : Napi::ObjectWrap<FdPoller>(info) {
    const int fd = FdArg(info, 0);
    const Napi::Function callback = FunctionArg(info, 1, "callback");
    const bool drain = info.Length() > 2 && info[2].ToBoolean().Value();
    watch_ = Watch::Create(info.Env(), fd, [this, fd, drain](Napi::Env env, int events) {
      double argument = events;
      if (drain && events > 0) {
        uint64_t count = 0;
        if (read(fd, &count, sizeof count) != sizeof count) return;
        argument = static_cast<double>(count);
      }
      CallFromLoop(env, callback_, argument);
      LoopPoller::WorkedHere();
    });
    callback_ = Napi::Persistent(callback);
    Ref();  // until closed: the loop points here
    held_ = true;
  }

  ~FdPoller() override {
    if (watch_) watch_->Close();
  }

 private:
  void Start(const Napi::CallbackInfo& info) {
    const int events = static_cast<int>(IntArg(info, 0, "events", 1, 3));
    const int status = watch_->Start(events);
    if (status != 0) throw ErrnoError(info.Env(), -status, "epoll_ctl");
  }
  void Stop(const Napi::CallbackInfo&) { watch_->Stop(); }
  void KeepAlive(const Napi::CallbackInfo& info) { watch_->KeepAlive(info[0].ToBoolean().Value()); }
  void Close(const Napi::CallbackInfo&) {
    watch_->Close();
    callback_.Reset();
    if (held_) Unref();
    held_ = false;
  }

  std::shared_ptr<Watch> watch_;
  Napi::FunctionReference callback_;
  bool held_ = false;
};

// new PreciseTimer(callback): a timerfd on CLOCK_MONOTONIC.
class PreciseTimer : public Napi::ObjectWrap<PreciseTimer> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(
        env, "PreciseTimer",
        {InstanceMethod<&PreciseTimer::Arm>("arm"), InstanceMethod<&PreciseTimer::Cancel>("cancel"),
         InstanceMethod<&PreciseTimer::Close>("close"), InstanceMethod<&PreciseTimer::KeepAlive>("keepAlive")});
  }

  explicit PreciseTimer(const Napi::CallbackInfo& info) : Napi::ObjectWrap<PreciseTimer>(info) {
    const Napi::Function callback = FunctionArg(info, 0, "callback");
    fd_ = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (fd_ < 0) throw ErrnoError(info.Env(), errno, "timerfd_create");
    try {
      watch_ = Watch::Create(info.Env(), fd_, [this](Napi::Env env, int) {
        uint64_t expirations = 0;
        // Nothing to read: cancelled or moved after the loop had seen it expire.
        if (read(fd_, &expirations, sizeof expirations) != sizeof expirations) return;
        CallFromLoop(env, callback_, static_cast<double>(expirations));
      });
      const int status = watch_->Start(UV_READABLE);
      if (status != 0) throw ErrnoError(info.Env(), -status, "epoll_ctl");
    } catch (...) {
      if (watch_) watch_->Close();
      close(fd_);
      throw;
    }
    callback_ = Napi::Persistent(callback);
    Ref();
    held_ = true;
  }

  ~PreciseTimer() override { Release(); }

 private:
  // arm(deadlineNs): absolute CLOCK_MONOTONIC; a past deadline fires at once.
  void Arm(const Napi::CallbackInfo& info) {
    const double ns = NumberArg(info, 0, "deadlineNs");
    if (!(ns >= 0 && ns < 9e18)) throw Napi::RangeError::New(info.Env(), "deadlineNs is out of range");
    const auto whole = static_cast<uint64_t>(ns < 1 ? 1 : ns);  // 0 would disarm
    Set(info.Env(), whole);
  }
  void Cancel(const Napi::CallbackInfo& info) { Set(info.Env(), 0); }
  void Set(Napi::Env env, uint64_t ns) {
    if (fd_ < 0) throw Napi::Error::New(env, "the timer is closed");
    itimerspec spec{};
    spec.it_value.tv_sec = static_cast<time_t>(ns / 1000000000);
    spec.it_value.tv_nsec = static_cast<long>(ns % 1000000000);
    if (timerfd_settime(fd_, TFD_TIMER_ABSTIME, &spec, nullptr) != 0) throw ErrnoError(env, errno, "timerfd_settime");
  }
  void KeepAlive(const Napi::CallbackInfo& info) { watch_->KeepAlive(info[0].ToBoolean().Value()); }
  void Close(const Napi::CallbackInfo&) {
    Release();
    callback_.Reset();
    if (held_) Unref();
    held_ = false;
  }
  void Release() {
    if (watch_) watch_->Close();
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }

  int fd_ = -1;
  std::shared_ptr<Watch> watch_;
  Napi::FunctionReference callback_;
  bool held_ = false;
};

Napi::Value CreateEventFd(const Napi::CallbackInfo& info) {
  const int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (fd < 0) throw ErrnoError(info.Env(), errno, "eventfd");
  return Napi::Number::New(info.Env(), fd);
}

void SignalEventFd(const Napi::CallbackInfo& info) {
  const uint64_t one = 1;
  // EAGAIN: the counter is full, so it is signalled in any case.
  if (write(FdArg(info, 0), &one, sizeof one) < 0 && errno != EAGAIN) throw ErrnoError(info.Env(), errno, "write");
}

}  // namespace

void InitWatch(Napi::Env env, Napi::Object exports) {
  exports.Set("FdPoller", FdPoller::Define(env));
  exports.Set("PreciseTimer", PreciseTimer::Define(env));
  exports.Set("createEventFd", Napi::Function::New<CreateEventFd>(env, "createEventFd"));
  exports.Set("signalEventFd", Napi::Function::New<SignalEventFd>(env, "signalEventFd"));
}

}  // namespace tsvmm::io
