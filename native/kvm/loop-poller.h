// The JavaScript loop's side of the hand-over: delivers exits from a uv_idle callback while the guest is
// busy, and sleeps in epoll with a flag up when it is quiet; the vCPU that sees the flag writes the
// loop's eventfd (uv_async). Descriptors that the guest's work comes and goes through (doorbells, disk completions,
// frames) count as its being busy as well: while it polls, the loop looks at them without sleeping in between. Its own
// owner after Close: freed when libuv has let go of its handles.
#pragma once

#include <node_api.h>
#include <uv.h>

#include <atomic>
#include <cstdint>

#include "futex.h"

namespace tsvmm {

class LoopClient {
 public:
  virtual ~LoopClient() = default;
  // Delivers what is posted; returns how many.
  virtual uint32_t Deliver() = 0;
  virtual bool HasPosted() = 0;
  // Upper bound of polling after the last exit; 0: none.
  virtual uint64_t LoopSpinNs() = 0;
  virtual Contention& SpinContention() = 0;
  // A vCPU shares this thread's CPU, and Review wants to be called now and then until it says false.
  virtual bool HasNear() = 0;
  virtual bool Review() = 0;
  // The environment ends: stop everything now. Must lead to Close.
  virtual void EnvironmentEnds() = 0;
};

class LoopPoller {
 public:
  static LoopPoller* Create(napi_env env, LoopClient* client);
  // From any thread, while not closed.
  void WakeFromThread() {
    if (sleeping_.load() && sleeping_.exchange(false)) uv_async_send(&async_);
  }
  // Look again soon (after a resume).
  void Poke() {
    sleeping_.store(false);
    uv_async_send(&async_);
  }
  // Keeps the process alive (a started VM does).
  void SetRef(bool on);
  void Close();
  uint64_t wakes() const { return wakes_; }
  // A descriptor of the loop brought work: more of it is likely soon.
  void Worked();
  // The same for the pollers of this thread, from code that knows none.
  static void WorkedHere();

 private:
  LoopPoller() = default;
  void OnWake();
  void OnIdle();
  void Learn(uint64_t now, uint64_t maxNs);
  void Busy();
  void Sleep();
  void HandleClosed();

  napi_env env_ = nullptr;
  LoopClient* client_ = nullptr;
  uv_async_t async_{};
  uv_idle_t idle_{};
  uv_timer_t review_{};
  napi_async_cleanup_hook_handle hook_ = nullptr;
  std::atomic<bool> sleeping_{true};
  int openHandles_ = 0;
  bool closing_ = false;
  bool idleOn_ = false;
  // Whether the session's last work came through a descriptor, so that the loop has to look at those often.
  bool descriptors_ = false;
  LoopPoller* nextHere_ = nullptr;
  uint64_t lastLookNs_ = 0;
  uint64_t lastExitNs_ = 0;
  uint64_t sessionNs_ = 50000;
  uint64_t wakes_ = 0;
};

}  // namespace tsvmm
