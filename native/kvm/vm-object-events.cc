// KvmVm's calls about interrupts into the guest and doorbells out of it.
#include <sys/eventfd.h>

#include "args.h"
#include "error.h"
#include "vm-object.h"

namespace tsvmm {

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
      if (self->poller_ != nullptr) self->poller_->Worked();
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
