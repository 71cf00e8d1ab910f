// JavaScript class `KvmVm` of the addon: Vm with its arguments checked and its callbacks attached to the
// loop. Wrapped by src/kvm/vm.ts, which adds defaults, error texts and everything that is policy. Memory and running are in
// vm-object.cc; state, and interrupts and doorbells, in files of their own.
#pragma once

#include <napi.h>
#include <uv.h>

#include <map>
#include <memory>
#include <vector>

#include "loop-poller.h"
#include "vm.h"

namespace tsvmm {

class VmObject : public Napi::ObjectWrap<VmObject>, private ExitSink, private LoopClient {
 public:
  static Napi::Function Define(Napi::Env env);
  // (memoryMap, vcpus, pit, tssAddress, onIoEvent)
  explicit VmObject(const Napi::CallbackInfo& info);
  ~VmObject() override;

 private:
  // A doorbell or an interrupt eventfd.
  struct EventFd {
    UniqueFd fd;
    uint32_t id = 0;
    bool irq = false;
    bool pio = false;
    bool match = false;
    uint32_t gsi = 0;
    uint32_t size = 0;
    uint64_t address = 0;
    uint64_t datamatch = 0;
    VmObject* owner = nullptr;
    uv_poll_t poll{};
  };

  // ExitSink and LoopClient.
  bool OnExit(uint32_t vcpu) override;
  void OnCoalesced(uint32_t count) override;
  void WakeFromVcpu() override;
  uint32_t Deliver() override;
  bool HasPosted() override;
  uint64_t LoopSpinNs() override;
  Contention& SpinContention() override;
  bool HasNear() override;
  bool Review() override;
  void EnvironmentEnds() override;

  Napi::Value Call(const Napi::FunctionReference& function, uint32_t argument);
  void RunQueued();
  void TakeDown(bool detach);
  void CloseEvent(EventFd* event);
  bool TakeSignal(EventFd* event);
  Vm& Live(Napi::Env env);
  uint32_t VcpuArg(const Napi::CallbackInfo& info, size_t index);
  Napi::ArrayBuffer Wrap(Napi::Env env, const std::shared_ptr<AnonymousMapping>& mapping);
  Napi::ArrayBuffer WrapTracked(Napi::Env env, const std::shared_ptr<AnonymousMapping>& mapping);

  Napi::Value SlotBuffer(const Napi::CallbackInfo& info);
  Napi::Value CoalescedBuffer(const Napi::CallbackInfo& info);
  Napi::Value CreateBuffer(const Napi::CallbackInfo& info);
  void MapSlot(const Napi::CallbackInfo& info);
  void UnmapSlot(const Napi::CallbackInfo& info);
  void SetDirtyLog(const Napi::CallbackInfo& info);
  Napi::Value HarvestList(const Napi::CallbackInfo& info);
  Napi::Value HarvestBits(const Napi::CallbackInfo& info);
  void Start(const Napi::CallbackInfo& info);
  void Pause(const Napi::CallbackInfo& info);
  void Resume(const Napi::CallbackInfo& info);
  Napi::Value Paused(const Napi::CallbackInfo& info);
  void CompleteExit(const Napi::CallbackInfo& info);
  Napi::Value OpenExit(const Napi::CallbackInfo& info);
  void DrainCoalesced(const Napi::CallbackInfo& info);
  void DrainIoEvents(const Napi::CallbackInfo& info);
  void SetSpin(const Napi::CallbackInfo& info);
  Napi::Value Stats(const Napi::CallbackInfo& info);
  void SetGuestDebug(const Napi::CallbackInfo& info);
  void GetState(const Napi::CallbackInfo& info);
  void SetState(const Napi::CallbackInfo& info);
  Napi::Value StateBytes(const Napi::CallbackInfo& info);
  template <typename Transfer>
  Napi::Value Msrs(const Napi::CallbackInfo& info, Transfer transfer);
  Napi::Value GetMsrs(const Napi::CallbackInfo& info);
  Napi::Value SetMsrs(const Napi::CallbackInfo& info);
  void SetCpuid(const Napi::CallbackInfo& info);
  Napi::Value GetCpuid(const Napi::CallbackInfo& info);
  Napi::Value GetTscOffset(const Napi::CallbackInfo& info);
  Napi::Value SetTscOffset(const Napi::CallbackInfo& info);
  Napi::Value TscKhz(const Napi::CallbackInfo& info);
  Napi::Value PauseTsc(const Napi::CallbackInfo& info);
  void GetIrqchip(const Napi::CallbackInfo& info);
  void SetIrqchip(const Napi::CallbackInfo& info);
  void GetPit(const Napi::CallbackInfo& info);
  void SetPit(const Napi::CallbackInfo& info);
  void GetClock(const Napi::CallbackInfo& info);
  void SetClock(const Napi::CallbackInfo& info);
  Napi::Value Translate(const Napi::CallbackInfo& info);
  void SetIrqLine(const Napi::CallbackInfo& info);
  void SetGsiRouting(const Napi::CallbackInfo& info);
  Napi::Value SignalMsi(const Napi::CallbackInfo& info);
  Napi::Value AddIrqfd(const Napi::CallbackInfo& info);
  Napi::Value AddIoEvent(const Napi::CallbackInfo& info);
  Napi::Value EventFdOf(const Napi::CallbackInfo& info);
  void SignalEvent(const Napi::CallbackInfo& info);
  void RemoveEvent(const Napi::CallbackInfo& info);
  void CoalescedZone(const Napi::CallbackInfo& info);
  void Destroy(const Napi::CallbackInfo& info);

  napi_env env_;
  napi_async_context context_ = nullptr;
  LoopPoller* poller_ = nullptr;
  std::unique_ptr<Vm> vm_;
  Napi::FunctionReference onExit_;
  Napi::FunctionReference onCoalesced_;
  Napi::FunctionReference onIoEvent_;
  Napi::FunctionReference nothing_;
  std::map<uint32_t, EventFd*> events_;
  std::vector<Napi::Reference<Napi::ArrayBuffer>> buffers_;  // weak
  uint32_t nextEvent_ = 1;
  bool selfRef_ = false;
  bool hasPit_ = false;
};

}  // namespace tsvmm
