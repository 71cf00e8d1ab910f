// Start of a further CPU: real mode at AP_BASE (copied there), protected mode, long mode, then enter_ring3.
#include "layout.h"

    .section .rodata
    .globl ap_code, ap_code_end
    .code16
ap_code:
    cli
    mov %cs, %ax
    mov %ax, %ds
    lgdtl gdt_pointer32 - ap_code
    mov $0x11, %eax             // ET, PE
    mov %eax, %cr0
    ljmpl $SEL_CODE32, $(AP_BASE + ap32 - ap_code)
    .code32
ap32:
    mov $SEL_DATA0, %eax
    mov %eax, %ds
    mov $0x620, %eax            // PAE, OSFXSR, OSXMMEXCPT
    mov %eax, %cr4
    mov $boot_pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx       // EFER.LME
    rdmsr
    or $0x100, %eax
    wrmsr
    mov $0x80000033, %eax       // PG, NE, ET, MP, PE
    mov %eax, %cr0
    ljmp $SEL_CODE0, $ap64
gdt_pointer32:
    .word SEL_TSS0 + 16 * CPUS_MAX - 1
    .long gdt
ap_code_end:

    .text
    .code64
ap64:
    mov ap_cpu, %ebx
    jmp enter_ring3

    .section .note.GNU-stack, "", @progbits
