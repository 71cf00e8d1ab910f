// Blocks all signals of the calling thread while it lives. Threads inherit the mask, so that one made meanwhile gets no signal that
// is meant for the process. Used by whoever makes threads.
#pragma once

#include <pthread.h>
#include <signal.h>

namespace tsvmm {

class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &old_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t old_;
};

}  // namespace tsvmm
