// <linux/kvm.h> for C++. The kernel's flexible array macro puts an empty struct before the array, which
// has size 1 in C++ and moves everything behind it: replaced before the header sees it.
#pragma once

#include <linux/stddef.h>
#undef __DECLARE_FLEX_ARRAY
#define __DECLARE_FLEX_ARRAY(TYPE, NAME) TYPE NAME[]

#include <linux/kvm.h>

static_assert(sizeof(kvm_cpuid2) == 8 && sizeof(kvm_msr_list) == 4 && sizeof(kvm_msrs) == 8 &&
              sizeof(kvm_irq_routing) == 8 && sizeof(kvm_coalesced_mmio_ring) == 8);
