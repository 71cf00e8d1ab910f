#include "vm-object.h"

#include "args.h"
#include "error.h"

namespace tsvmm {

namespace {

constexpr uint64_t kBufferMax = 2ULL << 30;
constexpr uint32_t kVcpusMax = 255;
constexpr uint64_t kSpinMaxNs = 10000000;

}  // namespace

Napi::Function VmObject::Define(Napi::Env env) {
  return DefineClass(env, "KvmVm",
                     {
                         InstanceMethod<&VmObject::SlotBuffer>("slotBuffer"),
                         InstanceMethod<&VmObject::CoalescedBuffer>("coalescedBuffer"),
                         InstanceMethod<&VmObject::CreateBuffer>("createBuffer"),
                         InstanceMethod<&VmObject::MapSlot>("mapSlot"),
                         InstanceMethod<&VmObject::UnmapSlot>("unmapSlot"),
                         InstanceMethod<&VmObject::SetDirtyLog>("setDirtyLog"),
                         InstanceMethod<&VmObject::HarvestList>("harvestList"),
                         InstanceMethod<&VmObject::HarvestBits>("harvestBits"),
                         InstanceMethod<&VmObject::Start>("start"),
                         InstanceMethod<&VmObject::Pause>("pause"),
                         InstanceMethod<&VmObject::Resume>("resume"),
                         InstanceMethod<&VmObject::Paused>("paused"),
                         InstanceMethod<&VmObject::CompleteExit>("completeExit"),
                         InstanceMethod<&VmObject::OpenExit>("openExit"),
                         InstanceMethod<&VmObject::DrainCoalesced>("drainCoalesced"),
                         InstanceMethod<&VmObject::DrainIoEvents>("drainIoEvents"),
                         InstanceMethod<&VmObject::SetSpin>("setSpin"),
                         InstanceMethod<&VmObject::Stats>("stats"),
                         InstanceMethod<&VmObject::SetGuestDebug>("setGuestDebug"),
                         InstanceMethod<&VmObject::GetState>("getState"),
                         InstanceMethod<&VmObject::SetState>("setState"),
                         InstanceMethod<&VmObject::StateBytes>("stateBytes"),
                         InstanceMethod<&VmObject::GetMsrs>("getMsrs"),
                         InstanceMethod<&VmObject::SetMsrs>("setMsrs"),
                         InstanceMethod<&VmObject::SetCpuid>("setCpuid"),
                         InstanceMethod<&VmObject::GetCpuid>("getCpuid"),
                         InstanceMethod<&VmObject::GetTscOffset>("getTscOffset"),
                         InstanceMethod<&VmObject::SetTscOffset>("setTscOffset"),
                         InstanceMethod<&VmObject::TscKhz>("tscKhz"),
                         InstanceMethod<&VmObject::PauseTsc>("pauseTsc"),
                         InstanceMethod<&VmObject::GetIrqchip>("getIrqchip"),
                         InstanceMethod<&VmObject::SetIrqchip>("setIrqchip"),
                         InstanceMethod<&VmObject::GetPit>("getPit"),
                         InstanceMethod<&VmObject::SetPit>("setPit"),
                         InstanceMethod<&VmObject::GetClock>("getClock"),
                         InstanceMethod<&VmObject::SetClock>("setClock"),
                         InstanceMethod<&VmObject::Translate>("translate"),
                         InstanceMethod<&VmObject::SetIrqLine>("setIrqLine"),
                         InstanceMethod<&VmObject::SetGsiRouting>("setGsiRouting"),
                         InstanceMethod<&VmObject::SignalMsi>("signalMsi"),
                         InstanceMethod<&VmObject::AddIrqfd>("addIrqfd"),
                         InstanceMethod<&VmObject::AddIoEvent>("addIoEvent"),
                         InstanceMethod<&VmObject::EventFdOf>("eventFd"),
                         InstanceMethod<&VmObject::SignalEvent>("signalEvent"),
                         InstanceMethod<&VmObject::RemoveEvent>("removeEvent"),
                         InstanceMethod<&VmObject::CoalescedZone>("coalescedZone"),
                         InstanceMethod<&VmObject::Destroy>("destroy"),
                     });
}

VmObject::VmObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<VmObject>(info), env_(info.Env()) {
  auto memory = UnwrapMemoryMap(info.Env(), info[0]);
  VmConfig config{};
  config.vcpus = static_cast<uint32_t>(ArgUint(info, 1, "vcpus", 1, kVcpusMax));
  config.pit = ArgBool(info, 2, "pit");
  config.tssAddress = ArgUint(info, 3, "tssAddress", kPageSize, (1ULL << 32) - 3 * kPageSize);
  if (config.tssAddress % kPageSize != 0) ThrowRange(info.Env(), "tssAddress must be page aligned");
  onIoEvent_ = Napi::Persistent(ArgFunction(info, 4, "onIoEvent"));
  nothing_ = Napi::Persistent(Napi::Function::New(info.Env(), [](const Napi::CallbackInfo&) {}));
  hasPit_ = config.pit;
  Guard(info.Env(), [&] { vm_ = std::make_unique<Vm>(config, std::move(memory), static_cast<ExitSink*>(this)); });
  napi_value name = nullptr;
  if (napi_create_string_utf8(env_, "tsvmm-kvm", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_async_init(env_, nullptr, name, &context_) != napi_ok) {
    throw Napi::Error::New(info.Env(), "cannot make an async context");
  }
  poller_ = LoopPoller::Create(env_, this);
  if (poller_ == nullptr) {
    napi_async_destroy(env_, context_);
    throw Napi::Error::New(info.Env(), "cannot attach to the event loop");
  }
}

VmObject::~VmObject() { TakeDown(false); }

void VmObject::TakeDown(bool detach) {
  if (vm_ != nullptr) vm_->Destroy();
  for (auto& [id, event] : events_) CloseEvent(event);
  events_.clear();
  if (poller_ != nullptr) {
    poller_->Close();
    poller_ = nullptr;
    napi_async_destroy(env_, context_);
    context_ = nullptr;
  }
  if (detach) {
    for (auto& weak : buffers_) {
      Napi::ArrayBuffer buffer = weak.Value();
      if (!buffer.IsEmpty() && !buffer.IsDetached()) napi_detach_arraybuffer(env_, buffer);
    }
  }
  buffers_.clear();
  onExit_.Reset();
  onCoalesced_.Reset();
  onIoEvent_.Reset();
  nothing_.Reset();
}

void VmObject::EnvironmentEnds() { TakeDown(false); }

void VmObject::Destroy(const Napi::CallbackInfo& info) {
  if (vm_->delivering()) {
    Guard(info.Env(), [] { throw KvmError("KVM_BUSY", "the VM cannot be destroyed from inside an exit handler"); });
  }
  TakeDown(true);
  if (selfRef_) {
    selfRef_ = false;
    Unref();
  }
}

Vm& VmObject::Live(Napi::Env env) {
  if (vm_ == nullptr || vm_->destroyed()) {
    Guard(env, [] { throw KvmError("KVM_DESTROYED", "the VM has been destroyed"); });
  }
  return *vm_;
}

uint32_t VmObject::VcpuArg(const Napi::CallbackInfo& info, size_t index) {
  return ArgU32(info, index, "vcpu", Live(info.Env()).vcpuCount() - 1);
}

// Hand-over.

Napi::Value VmObject::Call(const Napi::FunctionReference& function, uint32_t argument) {
  napi_value receiver = nullptr;
  napi_value callee = nullptr;
  napi_value number = nullptr;
  napi_value result = nullptr;
  napi_get_global(env_, &receiver);
  napi_create_uint32(env_, argument, &number);
  callee = function.Value();
  if (napi_call_function(env_, receiver, callee, 1, &number, &result) != napi_ok) throw Napi::Error::New(env_);
  return Napi::Value(env_, result);
}

bool VmObject::OnExit(uint32_t vcpu) {
  if (onExit_.IsEmpty()) return false;
  Napi::HandleScope scope(env_);
  const Napi::Value result = Call(onExit_, vcpu);
  if (!result.IsBoolean()) throw Napi::TypeError::New(env_, "onExit must return a boolean");
  return result.As<Napi::Boolean>().Value();
}

void VmObject::OnCoalesced(uint32_t count) {
  if (onCoalesced_.IsEmpty()) return;
  Napi::HandleScope scope(env_);
  Call(onCoalesced_, count);
}

void VmObject::WakeFromVcpu() { poller_->WakeFromThread(); }

uint32_t VmObject::Deliver() {
  Napi::HandleScope scope(env_);
  [[maybe_unused]] const Napi::Object self = Value();  // what runs below may drop the last reference
  uint32_t delivered = 0;
  try {
    delivered = vm_->DeliverPosted();
  } catch (const Napi::Error& error) {
    napi_fatal_exception(env_, error.Value());
  }
  RunQueued();
  return delivered;
}

// Runs what the handlers queued (promises, nextTick), after the handlers have returned: a continuation may
// pause or destroy the VM, which a handler may not. An empty callback does it without allocating.
void VmObject::RunQueued() {
  if (context_ == nullptr) return;
  napi_value receiver = nullptr;
  napi_value result = nullptr;
  napi_get_global(env_, &receiver);
  if (napi_make_callback(env_, context_, receiver, nothing_.Value(), 0, nullptr, &result) == napi_pending_exception) {
    napi_value error = nullptr;
    napi_get_and_clear_last_exception(env_, &error);
    napi_fatal_exception(env_, error);
  }
}

bool VmObject::HasPosted() { return vm_->HasPosted(); }
uint64_t VmObject::LoopSpinNs() { return vm_->loopSpinNs(); }
Contention& VmObject::SpinContention() { return vm_->contention; }
bool VmObject::HasNear() { return vm_->HasNear(); }
bool VmObject::Review() { return vm_->ReviewPlaces(); }

// Memory.

Napi::ArrayBuffer VmObject::Wrap(Napi::Env env, const std::shared_ptr<AnonymousMapping>& mapping) {
  auto* keep = new std::shared_ptr<AnonymousMapping>(mapping);
  return Napi::ArrayBuffer::New(
      env, mapping->data(), mapping->size(),
      [](Napi::Env, void*, std::shared_ptr<AnonymousMapping>* hint) { delete hint; }, keep);
}

Napi::ArrayBuffer VmObject::WrapTracked(Napi::Env env, const std::shared_ptr<AnonymousMapping>& mapping) {
  Napi::ArrayBuffer buffer = Wrap(env, mapping);
  buffers_.push_back(Napi::Reference<Napi::ArrayBuffer>::New(buffer, 0));
  return buffer;
}

Napi::Value VmObject::SlotBuffer(const Napi::CallbackInfo& info) { return Wrap(info.Env(), Live(info.Env()).slots()); }

Napi::Value VmObject::CoalescedBuffer(const Napi::CallbackInfo& info) {
  return Wrap(info.Env(), Live(info.Env()).coalescedEntries());
}

// (sizeBytes)
Napi::Value VmObject::CreateBuffer(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const uint64_t size = ArgUint(info, 0, "sizeBytes", kPageSize, kBufferMax);
  if (size % kPageSize != 0) ThrowRange(info.Env(), "sizeBytes must be a multiple of 4096");
  return Guard(info.Env(), [&]() -> Napi::Value { return WrapTracked(info.Env(), vm.CreateBuffer(size)); });
}

// (slot, guestPhys, sizeBytes, readonly, log, firstPage, buffer, offset)
void VmObject::MapSlot(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  SlotConfig config{};
  config.slot = ArgU32(info, 0, "slot", 32767);
  config.guestPhys = ArgAddress(info, 1, "guestPhys");
  config.size = ArgUint(info, 2, "sizeBytes", kPageSize, kBufferMax);
  config.readonly = ArgBool(info, 3, "readonly");
  config.log = ArgBool(info, 4, "log");
  config.firstPage = ArgUint(info, 5, "firstPage", 0, UINT32_MAX - kBufferMax / kPageSize);
  Napi::ArrayBuffer buffer = ArgBuffer(info, 6, "buffer");
  const uint64_t offset = ArgUint(info, 7, "offset", 0, kBufferMax);
  if (config.guestPhys % kPageSize != 0 || config.size % kPageSize != 0 || offset % kPageSize != 0) {
    ThrowRange(info.Env(), "guestPhys, sizeBytes and offset must be multiples of 4096");
  }
  auto mapping = vm.FindBuffer(static_cast<uint8_t*>(buffer.Data()));
  if (buffer.Data() == nullptr || mapping == nullptr) {
    throw Napi::TypeError::New(info.Env(), "buffer is not memory of this VM");
  }
  if (offset > mapping->size() || config.size > mapping->size() - offset) {
    ThrowRange(info.Env(), "the slot runs past the end of the buffer");
  }
  Guard(info.Env(), [&] { vm.MapSlot(config, std::move(mapping), offset); });
}

void VmObject::UnmapSlot(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const uint32_t slot = ArgU32(info, 0, "slot");
  Guard(info.Env(), [&] { vm.UnmapSlot(slot); });
}

void VmObject::SetDirtyLog(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const uint32_t slot = ArgU32(info, 0, "slot");
  const bool on = ArgBool(info, 1, "on");
  Guard(info.Env(), [&] { vm.SetDirtyLog(slot, on); });
}

Napi::Value VmObject::HarvestList(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const Span list = ArgTyped(info, 0, "list", napi_uint32_array);
  return Guard(info.Env(), [&]() -> Napi::Value {
    const size_t count = vm.HarvestList(reinterpret_cast<uint32_t*>(list.data), list.size / 4);
    return Napi::Number::New(info.Env(), static_cast<double>(count));
  });
}

Napi::Value VmObject::HarvestBits(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const Span words = ArgTyped(info, 0, "words", napi_uint32_array);
  return Guard(info.Env(), [&]() -> Napi::Value {
    const uint64_t count = vm.HarvestBits(reinterpret_cast<uint32_t*>(words.data), words.size / 4);
    return Napi::Number::New(info.Env(), static_cast<double>(count));
  });
}

// Running.

// (onExit, onCoalesced | undefined)
void VmObject::Start(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  if (vm.started()) Guard(info.Env(), [] { throw KvmError("KVM_STARTED", "the VM has been started already"); });
  Napi::Function onExit = ArgFunction(info, 0, "onExit");
  onExit_ = Napi::Persistent(onExit);
  if (!info[1].IsUndefined()) onCoalesced_ = Napi::Persistent(ArgFunction(info, 1, "onCoalesced"));
  Guard(info.Env(), [&] { vm.Start(); });
  poller_->SetRef(true);
  // A running guest is work in progress, like a listening socket: it lives until destroy().
  selfRef_ = true;
  Ref();
}

// (leaveOutOpen, timeoutMs)
void VmObject::Pause(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const bool leaveOutOpen = ArgBool(info, 0, "leaveOutOpen");
  const uint64_t timeoutMs = ArgUint(info, 1, "timeoutMs", 1, 3600000);
  // A pause that fails lets the vCPUs run on: what they have posted meanwhile wants a look.
  struct Look {
    LoopPoller* poller;
    Vm& vm;
    ~Look() {
      if (!vm.paused() && vm.started()) poller->Poke();
    }
  } look{poller_, vm};
  Guard(info.Env(), [&] { vm.Pause(leaveOutOpen, timeoutMs); });
}

void VmObject::Resume(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  vm.Resume();
  if (vm.started()) poller_->Poke();
}

Napi::Value VmObject::Paused(const Napi::CallbackInfo& info) { return Napi::Boolean::New(info.Env(), Live(info.Env()).paused()); }

void VmObject::CompleteExit(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  Guard(info.Env(), [&] { vm_->CompleteExit(vcpu); });
}

Napi::Value VmObject::OpenExit(const Napi::CallbackInfo& info) {
  Vcpu& vcpu = Live(info.Env()).vcpu(VcpuArg(info, 0));
  return Napi::Number::New(info.Env(), vcpu.Posted() ? vcpu.slot()->kind : 0);
}

void VmObject::DrainCoalesced(const Napi::CallbackInfo& info) { Live(info.Env()).DrainCoalesced(); }

// (vcpuMaxUs, loopMaxUs)
void VmObject::SetSpin(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const uint64_t vcpu = ArgUint(info, 0, "vcpuMaxUs", 0, kSpinMaxNs / 1000);
  const uint64_t loop = ArgUint(info, 1, "loopMaxUs", 0, kSpinMaxNs / 1000);
  vm.SetSpin(vcpu * 1000, loop * 1000);
}

Napi::Value VmObject::Stats(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  uint64_t exits = 0;
  uint64_t hits = 0;
  uint64_t sleeps = 0;
  for (uint32_t i = 0; i < vm.vcpuCount(); i++) {
    exits += vm.vcpu(i).exits.load();
    hits += vm.vcpu(i).spinHits.load();
    sleeps += vm.vcpu(i).sleeps.load();
  }
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("exits", static_cast<double>(exits));
  result.Set("vcpuSpinHits", static_cast<double>(hits));
  result.Set("vcpuSleeps", static_cast<double>(sleeps));
  result.Set("loopWakes", static_cast<double>(poller_->wakes()));
  result.Set("kicks", static_cast<double>(vm.kicks));
  result.Set("spins", vm.spins());
  return result;
}

// (vcpu, enable, singleStep)
void VmObject::SetGuestDebug(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  kvm_guest_debug debug{};
  if (ArgBool(info, 1, "enable")) debug.control |= KVM_GUESTDBG_ENABLE;
  if (ArgBool(info, 2, "singleStep")) debug.control |= KVM_GUESTDBG_SINGLESTEP;
  Guard(info.Env(), [&] { Ioctl(vm_->StoppedVcpu(vcpu).fd(), KVM_SET_GUEST_DEBUG, &debug, "KVM_SET_GUEST_DEBUG"); });
}

}  // namespace tsvmm
