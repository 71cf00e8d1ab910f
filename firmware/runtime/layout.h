// Constants shared by the assembler sources, the C sources and nothing else.
#ifndef LAYOUT_H
#define LAYOUT_H

// Segment selectors (start.S holds the table).
#define SEL_CODE0 0x08
#define SEL_DATA0 0x10
#define SEL_CODE3 0x1b
#define SEL_DATA3 0x23
#define SEL_CODE32 0x28
#define SEL_TSS0 0x30

#define CPUS_MAX 16

// Physical page of the real-mode start code of further CPUs (its SIPI vector is AP_BASE >> 12).
#define AP_BASE 0x8000

// Vectors: exceptions, then C handlers, then vectors that only count.
#define VECTOR_IRQ 0x20
#define VECTOR_COUNTED 0x40
#define VECTOR_COUNTED_END 0x60
#define VECTOR_SPURIOUS 0xff

// Ring-0 services taken by number; any larger value is the address of a function to call.
#define SVC_CLI 0
#define SVC_STI 1
#define SVC_HLT 2
#define SVC_COUNT 3

// Offsets in struct cpu (cpu.h asserts them).
#define CPU_SELF 0
#define CPU_STACK0 8
#define CPU_STACK3 16
#define CPU_TSS_SELECTOR 24

#define TSS_SIZE (104 + 8192 + 1)

#endif
