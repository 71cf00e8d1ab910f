#include "loop-poller.h"

#include <algorithm>

#include "futex.h"

namespace tsvmm {

namespace {

// Longest stay in one idle callback: sockets and timers wait that long at most.
constexpr uint64_t kSliceNs = 10000;
// Shortest polling session, so that a guest that becomes busy again is noticed.
constexpr uint64_t kSessionMinNs = 5000;
// The same when work comes through descriptors, which only the loop itself sees.
constexpr uint64_t kDescriptorSliceNs = 500;
// Longest wait for such work that is polled through: a disk's answer on a quiet machine. On a busy one it takes longer, and the
// CPU is wanted elsewhere.
constexpr uint64_t kDescriptorMaxNs = 120000;
constexpr uint64_t kReviewMs = 10;

// The pollers of this thread's loop: one for each virtual machine.
thread_local LoopPoller* here = nullptr;

}  // namespace

LoopPoller* LoopPoller::Create(napi_env env, LoopClient* client) {
  uv_loop_t* loop = nullptr;
  if (napi_get_uv_event_loop(env, &loop) != napi_ok) return nullptr;
  auto* poller = new LoopPoller();
  poller->env_ = env;
  poller->client_ = client;
  if (uv_async_init(loop, &poller->async_, [](uv_async_t* handle) {
        static_cast<LoopPoller*>(handle->data)->OnWake();
      }) != 0) {
    delete poller;
    return nullptr;
  }
  uv_idle_init(loop, &poller->idle_);
  uv_timer_init(loop, &poller->review_);
  poller->async_.data = poller;
  poller->idle_.data = poller;
  poller->review_.data = poller;
  poller->openHandles_ = 3;
  poller->nextHere_ = here;
  here = poller;
  uv_unref(reinterpret_cast<uv_handle_t*>(&poller->async_));
  uv_unref(reinterpret_cast<uv_handle_t*>(&poller->idle_));
  uv_unref(reinterpret_cast<uv_handle_t*>(&poller->review_));
  napi_add_async_cleanup_hook(
      env,
      [](napi_async_cleanup_hook_handle, void* data) {
        auto* self = static_cast<LoopPoller*>(data);
        if (self->client_ != nullptr) self->client_->EnvironmentEnds();
        self->Close();
      },
      poller, &poller->hook_);
  return poller;
}

void LoopPoller::SetRef(bool on) {
  auto* handle = reinterpret_cast<uv_handle_t*>(&async_);
  if (on) {
    uv_ref(handle);
  } else {
    uv_unref(handle);
  }
}

void LoopPoller::Close() {
  if (closing_) return;
  closing_ = true;
  client_ = nullptr;
  for (LoopPoller** at = &here; *at != nullptr; at = &(*at)->nextHere_) {
    if (*at != this) continue;
    *at = nextHere_;
    break;
  }
  uv_idle_stop(&idle_);
  auto closed = [](uv_handle_t* handle) { static_cast<LoopPoller*>(handle->data)->HandleClosed(); };
  uv_close(reinterpret_cast<uv_handle_t*>(&async_), closed);
  uv_close(reinterpret_cast<uv_handle_t*>(&idle_), closed);
  uv_close(reinterpret_cast<uv_handle_t*>(&review_), closed);
}

void LoopPoller::HandleClosed() {
  if (--openHandles_ > 0) return;
  if (hook_ != nullptr) napi_remove_async_cleanup_hook(hook_);
  delete this;
}

void LoopPoller::OnWake() {
  if (closing_) return;
  sleeping_.store(false);
  wakes_++;
  // Woken so soon after the last exit that polling would have been the shorter wait: poll longer.
  Learn(NowNs(), client_->LoopSpinNs());
  descriptors_ = false;
  client_->Deliver();
  if (!closing_) Busy();
}

// Called when the loop had to be woken.
void LoopPoller::Learn(uint64_t now, uint64_t maxNs) {
  const uint64_t gap = now - lastExitNs_;
  if (lastExitNs_ != 0 && gap <= maxNs) sessionNs_ = std::max(sessionNs_, std::min(maxNs, gap * 2));
}

void LoopPoller::Worked() {
  if (closing_) return;
  const uint64_t maxNs = std::min(client_->LoopSpinNs(), kDescriptorMaxNs);
  if (maxNs == 0) return;
  const uint64_t now = NowNs();
  if (idleOn_) {
    sessionNs_ = std::min(sessionNs_ * 2, maxNs);
    lastExitNs_ = now;
    descriptors_ = true;
    return;
  }
  Learn(now, maxNs);
  descriptors_ = true;
  sleeping_.store(false);
  Busy();
}

void LoopPoller::WorkedHere() {
  for (LoopPoller* poller = here; poller != nullptr; poller = poller->nextHere_) poller->Worked();
}

void LoopPoller::Busy() {
  lastExitNs_ = NowNs();
  if (client_->HasNear() && uv_is_active(reinterpret_cast<uv_handle_t*>(&review_)) == 0) {
    uv_timer_start(
        &review_,
        [](uv_timer_t* handle) {
          auto* self = static_cast<LoopPoller*>(handle->data);
          if (self->closing_ || !self->client_->Review()) uv_timer_stop(handle);
        },
        kReviewMs, kReviewMs);
  }
  if (client_->LoopSpinNs() == 0 || client_->SpinContention().Recent(lastExitNs_)) {
    Sleep();
    return;
  }
  if (!idleOn_) {
    idleOn_ = true;
    uv_idle_start(&idle_, [](uv_idle_t* handle) { static_cast<LoopPoller*>(handle->data)->OnIdle(); });
  }
}

void LoopPoller::Sleep() {
  if (idleOn_) {
    idleOn_ = false;
    uv_idle_stop(&idle_);
  }
  // Flag first, then a last look: a vCPU that posts in between sees the flag.
  sleeping_.store(true);
  if (client_->HasPosted() && sleeping_.exchange(false)) uv_async_send(&async_);
}

void LoopPoller::OnIdle() {
  if (closing_) return;
  const uint64_t maxNs = client_->LoopSpinNs();
  sessionNs_ = std::clamp(sessionNs_, kSessionMinNs, std::max(maxNs, kSessionMinNs));
  const uint64_t start = NowNs();
  // Nothing came since the last look, and yet this thread was away.
  if (descriptors_ && lastExitNs_ < lastLookNs_ && client_->SpinContention().Looked(lastLookNs_, start)) {
    Sleep();
    return;
  }
  uint64_t now = start;
  do {
    if (client_->HasPosted()) {
      client_->Deliver();
      if (closing_) return;
      now = lastExitNs_ = NowNs();
      descriptors_ = false;
      sessionNs_ = std::min(sessionNs_ * 2, maxNs);
    } else {
      for (int i = 0; i < 16; i++) CpuRelax();
      const uint64_t before = now;
      now = NowNs();
      if (client_->SpinContention().Looked(before, now)) {
        Sleep();
        return;
      }
    }
  } while (now - start < (descriptors_ ? kDescriptorSliceNs : kSliceNs));
  lastLookNs_ = now;
  if (now - lastExitNs_ > sessionNs_) {
    sessionNs_ /= 2;
    Sleep();
  }
}

}  // namespace tsvmm
