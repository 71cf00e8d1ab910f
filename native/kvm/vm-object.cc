#include "vm-object.h"

#include <sys/eventfd.h>

#include <cstring>

#include "args.h"
#include "error.h"
#include "state.h"

namespace tsvmm {

namespace {

constexpr uint64_t kBufferMax = 2ULL << 30;
constexpr uint32_t kVcpusMax = 255;
constexpr uint64_t kSpinMaxNs = 10000000;

[[noreturn]] void ThrowRange(Napi::Env env, const char* message) {
  throw Napi::RangeError::New(env, message);
}

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

// State.

Napi::Value VmObject::StateBytes(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const uint32_t kind = ArgU32(info, 0, "kind", kStateKinds - 1);
  return Napi::Number::New(info.Env(), static_cast<double>(VcpuStateBytes(vm, kind)));
}

// (vcpu, kind, Uint8Array of exactly the right size)
void VmObject::GetState(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  const uint32_t kind = ArgU32(info, 1, "kind", kStateKinds - 1);
  const Span data = ArgBytes(info, 2, "state");
  if (data.size != VcpuStateBytes(*vm_, kind)) ThrowRange(info.Env(), "the state has the wrong size");
  Guard(info.Env(), [&] { tsvmm::GetVcpuState(*vm_, vcpu, kind, data.data); });
}

void VmObject::SetState(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  const uint32_t kind = ArgU32(info, 1, "kind", kStateKinds - 1);
  const Span data = ArgBytes(info, 2, "state");
  if (data.size != VcpuStateBytes(*vm_, kind)) ThrowRange(info.Env(), "the state has the wrong size");
  Guard(info.Env(), [&] { tsvmm::SetVcpuState(*vm_, vcpu, kind, data.data); });
}

// (vcpu, indices, values) -> how many, from the first on
Napi::Value VmObject::GetMsrs(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  const Span indices = ArgTyped(info, 1, "indices", napi_uint32_array);
  const Span values = ArgTyped(info, 2, "values", napi_biguint64_array);
  const size_t count = indices.size / 4;
  if (values.size / 8 != count || count > 4096) ThrowRange(info.Env(), "indices and values differ in length");
  return Guard(info.Env(), [&]() -> Napi::Value {
    return Napi::Number::New(info.Env(),
                             tsvmm::GetMsrs(*vm_, vcpu, reinterpret_cast<uint32_t*>(indices.data),
                                            reinterpret_cast<uint64_t*>(values.data), static_cast<uint32_t>(count)));
  });
}

Napi::Value VmObject::SetMsrs(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  const Span indices = ArgTyped(info, 1, "indices", napi_uint32_array);
  const Span values = ArgTyped(info, 2, "values", napi_biguint64_array);
  const size_t count = indices.size / 4;
  if (values.size / 8 != count || count > 4096) ThrowRange(info.Env(), "indices and values differ in length");
  return Guard(info.Env(), [&]() -> Napi::Value {
    return Napi::Number::New(info.Env(),
                             tsvmm::SetMsrs(*vm_, vcpu, reinterpret_cast<uint32_t*>(indices.data),
                                            reinterpret_cast<uint64_t*>(values.data), static_cast<uint32_t>(count)));
  });
}

void VmObject::SetCpuid(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  const Span rows = ArgTyped(info, 1, "rows", napi_uint32_array);
  const size_t words = rows.size / 4;
  if (words % kCpuidRowWords != 0 || words / kCpuidRowWords > kCpuidRowsMax) {
    ThrowRange(info.Env(), "the CPUID table has the wrong size");
  }
  Guard(info.Env(), [&] {
    tsvmm::SetCpuid(*vm_, vcpu, reinterpret_cast<uint32_t*>(rows.data), static_cast<uint32_t>(words / kCpuidRowWords));
  });
}

Napi::Value VmObject::GetCpuid(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  return Guard(info.Env(), [&]() -> Napi::Value {
    std::vector<uint32_t> rows(kCpuidRowsMax * kCpuidRowWords);
    const uint32_t count = tsvmm::GetCpuid(*vm_, vcpu, rows.data());
    auto result = Napi::Uint32Array::New(info.Env(), count * kCpuidRowWords);
    if (count > 0) std::memcpy(result.Data(), rows.data(), count * kCpuidRowWords * sizeof(uint32_t));
    return result;
  });
}

Napi::Value VmObject::GetTscOffset(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  return Guard(info.Env(), [&]() -> Napi::Value {
    uint64_t offset = 0;
    if (!tsvmm::GetTscOffset(*vm_, vcpu, &offset)) return info.Env().Undefined();
    return Napi::BigInt::New(info.Env(), offset);
  });
}

Napi::Value VmObject::SetTscOffset(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  const uint64_t offset = ArgBigUint(info, 1, "offset");
  return Guard(info.Env(), [&]() -> Napi::Value {
    return Napi::Boolean::New(info.Env(), tsvmm::SetTscOffset(*vm_, vcpu, offset));
  });
}

Napi::Value VmObject::TscKhz(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  return Guard(info.Env(), [&]() -> Napi::Value {
    return Napi::Number::New(info.Env(), Ioctl(vm_->StoppedVcpu(vcpu).fd(), KVM_GET_TSC_KHZ, 0UL, "KVM_GET_TSC_KHZ"));
  });
}

Napi::Value VmObject::PauseTsc(const Napi::CallbackInfo& info) {
  return Napi::BigInt::New(info.Env(), Live(info.Env()).pauseTsc());
}

// (chip, Uint8Array(512))
void VmObject::GetIrqchip(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const uint32_t chip = ArgU32(info, 0, "chip", 2);
  const Span data = ArgBytes(info, 1, "state");
  if (data.size != kIrqchipBytes) ThrowRange(info.Env(), "the state has the wrong size");
  Guard(info.Env(), [&] { tsvmm::GetIrqchip(vm, chip, data.data); });
}

void VmObject::SetIrqchip(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const uint32_t chip = ArgU32(info, 0, "chip", 2);
  const Span data = ArgBytes(info, 1, "state");
  if (data.size != kIrqchipBytes) ThrowRange(info.Env(), "the state has the wrong size");
  Guard(info.Env(), [&] { tsvmm::SetIrqchip(vm, chip, data.data); });
}

// (Uint8Array(112))
void VmObject::GetPit(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const Span data = ArgBytes(info, 0, "state");
  if (data.size != sizeof(kvm_pit_state2) || !hasPit_) ThrowRange(info.Env(), "the state has the wrong size");
  Guard(info.Env(), [&] { Ioctl(vm.fd(), KVM_GET_PIT2, data.data, "KVM_GET_PIT2"); });
}

void VmObject::SetPit(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const Span data = ArgBytes(info, 0, "state");
  if (data.size != sizeof(kvm_pit_state2) || !hasPit_) ThrowRange(info.Env(), "the state has the wrong size");
  Guard(info.Env(), [&] { Ioctl(vm.fd(), KVM_SET_PIT2, data.data, "KVM_SET_PIT2"); });
}

// (BigUint64Array(4): clock, flags, realtime, hostTsc)
void VmObject::GetClock(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const Span data = ArgTyped(info, 0, "clock", napi_biguint64_array);
  if (data.size != 32) ThrowRange(info.Env(), "the state has the wrong size");
  Guard(info.Env(), [&] {
    kvm_clock_data clock{};
    Ioctl(vm.fd(), KVM_GET_CLOCK, &clock, "KVM_GET_CLOCK");
    const uint64_t fields[4] = {clock.clock, clock.flags, clock.realtime, clock.host_tsc};
    std::memcpy(data.data, fields, sizeof fields);
  });
}

void VmObject::SetClock(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const Span data = ArgTyped(info, 0, "clock", napi_biguint64_array);
  if (data.size != 32) ThrowRange(info.Env(), "the state has the wrong size");
  Guard(info.Env(), [&] {
    uint64_t fields[4];
    std::memcpy(fields, data.data, sizeof fields);
    kvm_clock_data clock{};
    clock.clock = fields[0];
    clock.flags = static_cast<uint32_t>(fields[1]);
    clock.realtime = fields[2];
    clock.host_tsc = fields[3];
    Ioctl(vm.fd(), KVM_SET_CLOCK, &clock, "KVM_SET_CLOCK");
  });
}

// (vcpu, linear: bigint) -> physical address or undefined
Napi::Value VmObject::Translate(const Napi::CallbackInfo& info) {
  const uint32_t vcpu = VcpuArg(info, 0);
  kvm_translation translation{};
  translation.linear_address = ArgBigUint(info, 1, "linear");
  return Guard(info.Env(), [&]() -> Napi::Value {
    Ioctl(vm_->StoppedVcpu(vcpu).fd(), KVM_TRANSLATE, &translation, "KVM_TRANSLATE");
    if (!translation.valid || translation.physical_address > kGuestPhysMax) return info.Env().Undefined();
    return Napi::Number::New(info.Env(), static_cast<double>(translation.physical_address));
  });
}

// Interrupts.

void VmObject::SetIrqLine(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const uint32_t gsi = ArgU32(info, 0, "gsi", 4095);
  const bool level = ArgBool(info, 1, "level");
  Guard(info.Env(), [&] { vm.IrqLine(gsi, level); });
}

// Rows of five u32: gsi, type (0 irqchip, 1 MSI), chip or address low, pin or address high, data.
void VmObject::SetGsiRouting(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const Span rows = ArgTyped(info, 0, "rows", napi_uint32_array);
  const size_t count = rows.size / 20;
  if (rows.size % 20 != 0 || count > 4096) ThrowRange(info.Env(), "the routing table has the wrong size");
  std::vector<kvm_irq_routing_entry> entries(count);
  const auto* words = reinterpret_cast<const uint32_t*>(rows.data);
  for (size_t i = 0; i < count; i++) {
    const uint32_t* row = words + i * 5;
    kvm_irq_routing_entry& entry = entries[i];
    entry.gsi = row[0];
    if (row[1] == 0) {
      entry.type = KVM_IRQ_ROUTING_IRQCHIP;
      entry.u.irqchip.irqchip = row[2];
      entry.u.irqchip.pin = row[3];
    } else {
      entry.type = KVM_IRQ_ROUTING_MSI;
      entry.u.msi.address_lo = row[2];
      entry.u.msi.address_hi = row[3];
      entry.u.msi.data = row[4];
    }
  }
  Guard(info.Env(), [&] { vm.SetGsiRouting(entries); });
}

Napi::Value VmObject::SignalMsi(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const uint64_t address = ArgAddress(info, 0, "address");
  const uint32_t data = ArgU32(info, 1, "data");
  return Guard(info.Env(), [&]() -> Napi::Value { return Napi::Boolean::New(info.Env(), vm.SignalMsi(address, data)); });
}

// (gsi) -> id
Napi::Value VmObject::AddIrqfd(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const uint32_t gsi = ArgU32(info, 0, "gsi", 4095);
  return Guard(info.Env(), [&]() -> Napi::Value {
    auto event = std::make_unique<EventFd>();
    event->fd = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!event->fd.valid()) throw IoctlError("eventfd", errno);
    event->irq = true;
    event->gsi = gsi;
    event->id = nextEvent_++;
    vm.AssignIrqfd(event->fd.get(), gsi, true);
    const uint32_t id = event->id;
    events_.emplace(id, event.release());
    return Napi::Number::New(info.Env(), id);
  });
}

// (pio, address, size, datamatch: bigint | undefined) -> id
Napi::Value VmObject::AddIoEvent(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  auto event = std::make_unique<EventFd>();
  event->pio = ArgBool(info, 0, "pio");
  event->address = ArgAddress(info, 1, "address");
  event->size = ArgU32(info, 2, "size", 8);
  if ((event->size & (event->size - 1)) != 0) ThrowRange(info.Env(), "size must be 0, 1, 2, 4 or 8");
  event->match = !info[3].IsUndefined();
  if (event->match) event->datamatch = ArgBigUint(info, 3, "datamatch");
  uv_loop_t* loop = nullptr;
  napi_get_uv_event_loop(env_, &loop);
  return Guard(info.Env(), [&]() -> Napi::Value {
    event->fd = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!event->fd.valid()) throw IoctlError("eventfd", errno);
    event->owner = this;
    event->id = nextEvent_++;
    vm.AssignIoEvent(event->fd.get(), event->pio, event->address, event->size, event->match ? &event->datamatch : nullptr, true);
    const int status = uv_poll_init(loop, &event->poll, event->fd.get());
    if (status != 0) throw IoctlError("uv_poll_init", -status);
    EventFd* raw = event.release();
    raw->poll.data = raw;
    uv_unref(reinterpret_cast<uv_handle_t*>(&raw->poll));
    events_.emplace(raw->id, raw);
    uv_poll_start(&raw->poll, UV_READABLE, [](uv_poll_t* handle, int, int) {
      auto* rung = static_cast<EventFd*>(handle->data);
      VmObject* self = rung->owner;
      if (self == nullptr || !self->TakeSignal(rung)) return;
      Napi::HandleScope scope(self->env_);
      [[maybe_unused]] const Napi::Object keep = self->Value();
      try {
        self->Call(self->onIoEvent_, rung->id);
      } catch (const Napi::Error& error) {
        napi_fatal_exception(self->env_, error.Value());
      }
      self->RunQueued();
    });
    return Napi::Number::New(info.Env(), raw->id);
  });
}

bool VmObject::TakeSignal(EventFd* event) {
  uint64_t count = 0;
  return ::read(event->fd.get(), &count, sizeof count) == static_cast<ssize_t>(sizeof count);
}

void VmObject::DrainIoEvents(const Napi::CallbackInfo& info) {
  Live(info.Env());
  // The handlers may add and remove doorbells: walk by id.
  uint32_t id = 0;
  for (;;) {
    const auto next = events_.upper_bound(id);
    if (next == events_.end()) break;
    id = next->first;
    if (!next->second->irq && TakeSignal(next->second)) Call(onIoEvent_, id);
  }
}

Napi::Value VmObject::EventFdOf(const Napi::CallbackInfo& info) {
  Live(info.Env());
  const auto found = events_.find(ArgU32(info, 0, "id"));
  if (found == events_.end()) ThrowRange(info.Env(), "no such event");
  return Napi::Number::New(info.Env(), found->second->fd.get());
}

void VmObject::SignalEvent(const Napi::CallbackInfo& info) {
  const auto found = events_.find(ArgU32(info, 0, "id"));
  if (found == events_.end()) return;
  const uint64_t one = 1;
  // Full (2^64 - 1 signals nobody took) is as good as signalled.
  if (::write(found->second->fd.get(), &one, sizeof one) < 0) return;
}

void VmObject::CloseEvent(EventFd* event) {
  if (event->irq) {
    delete event;
    return;
  }
  event->owner = nullptr;
  uv_poll_stop(&event->poll);
  uv_close(reinterpret_cast<uv_handle_t*>(&event->poll),
           [](uv_handle_t* handle) { delete static_cast<EventFd*>(handle->data); });
}

void VmObject::RemoveEvent(const Napi::CallbackInfo& info) {
  const auto found = events_.find(ArgU32(info, 0, "id"));
  if (found == events_.end()) return;
  EventFd* event = found->second;
  Guard(info.Env(), [&] {
    if (event->irq) {
      vm_->AssignIrqfd(event->fd.get(), event->gsi, false);
    } else {
      vm_->AssignIoEvent(event->fd.get(), event->pio, event->address, event->size,
                         event->match ? &event->datamatch : nullptr, false);
    }
  });
  events_.erase(found);
  CloseEvent(event);
}

// (pio, address, sizeBytes, add)
void VmObject::CoalescedZone(const Napi::CallbackInfo& info) {
  Vm& vm = Live(info.Env());
  const bool pio = ArgBool(info, 0, "pio");
  const uint64_t address = ArgAddress(info, 1, "address");
  const uint32_t size = static_cast<uint32_t>(ArgUint(info, 2, "sizeBytes", 1, 1U << 30));
  const bool add = ArgBool(info, 3, "add");
  Guard(info.Env(), [&] { vm.CoalescedZone(pio, address, size, add); });
}

}  // namespace tsvmm
