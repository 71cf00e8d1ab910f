// One function per form of IN and OUT, for pio.c.
// 64-bit forms take (port, value or buffer, count) in rdi, rsi, rdx and return IN's value, or a string form's final RSI
// or RDI, in rax and a string form's final RCX in rdx. The other modes run one sequence of all forms, which is copied
// below 64 KiB, where 16-bit code reaches it; its data is the page PIO_DATA.
#include "layout.h"

#define PIO_DATA 0xa000
#define DATA_PORT (PIO_DATA + 0)
#define DATA_DONE (PIO_DATA + 0x10)
#define DATA_OUT (PIO_DATA + 0x100)
#define DATA_IN (PIO_DATA + 0x200)

    .text
    .code64
// A form with the port in an immediate: pio.c patches it at NAME_port.
    .macro immediate name, bytes:vararg
    .globl \name, \name\()_port
\name:
    mov %rsi, %rax
    .byte \bytes
\name\()_port:
    .byte 0
    ret
    .endm
    .macro by_dx name, bytes:vararg
    .globl \name
\name:
    mov %edi, %edx
    mov %rsi, %rax
    .byte \bytes
    ret
    .endm
    .macro string name, direction, pointer, bytes:vararg
    .globl \name
\name:
    mov %rdx, %rcx
    mov %edi, %edx
    mov %rsi, %rdi
    \direction
    .byte \bytes
    cld
    mov %\pointer, %rax
    mov %rcx, %rdx
    ret
    .endm
    .macro string_both name, pointer, bytes:vararg
    string \name\()_up, cld, \pointer, \bytes
    string \name\()_down, std, \pointer, \bytes
    .endm

    immediate out_imm_8, 0xe6
    immediate out_imm_16, 0x66, 0xe7
    immediate out_imm_32, 0xe7
    immediate out_imm_32_rex, 0x40, 0xe7
    immediate in_imm_8, 0xe4
    immediate in_imm_16, 0x66, 0xe5
    immediate in_imm_32, 0xe5

    by_dx out_dx_8, 0xee
    by_dx out_dx_16, 0x66, 0xef
    by_dx out_dx_32, 0xef
    by_dx out_dx_8_rexw, 0x48, 0xee
    by_dx out_dx_8_66, 0x66, 0xee
    by_dx out_dx_16_rex, 0x66, 0x40, 0xef
    by_dx out_dx_32_rexw, 0x48, 0xef
    by_dx in_dx_8, 0xec
    by_dx in_dx_16, 0x66, 0xed
    by_dx in_dx_32, 0xed
    by_dx in_dx_32_rex, 0x40, 0xed

    string_both outs_8, rsi, 0x6e
    string_both outs_16, rsi, 0x66, 0x6f
    string_both outs_32, rsi, 0x6f
    string_both rep_outs_8, rsi, 0xf3, 0x6e
    string_both rep_outs_16, rsi, 0xf3, 0x66, 0x6f
    string_both rep_outs_16_swapped, rsi, 0x66, 0xf3, 0x6f
    string_both rep_outs_32, rsi, 0xf3, 0x6f
    string_both rep_outs_32_addr32, rsi, 0x67, 0xf3, 0x6f
    string_both rep_outs_32_rexw, rsi, 0xf3, 0x48, 0x6f
    string_both ins_8, rdi, 0x6c
    string_both ins_16, rdi, 0x66, 0x6d
    string_both ins_32, rdi, 0x6d
    string_both rep_ins_8, rdi, 0xf3, 0x6c
    string_both rep_ins_16, rdi, 0xf3, 0x66, 0x6d
    string_both rep_ins_32, rdi, 0xf3, 0x6d
    string_both rep_ins_32_rexw, rdi, 0xf3, 0x48, 0x6d

// ---- the sequence for 16- and 32-bit code; pio.c's `sequence` table says the same in words ----
    .macro patch blob
    .pushsection .rodata.pio
    .word 99f - 1 - \blob
    .popsection
99:
    .endm
    .macro sequence blob, done
    mov DATA_PORT, %dx
    mov $0xd1, %al
    out %al, %dx
    mov $0xd2d3, %ax
    out %ax, %dx
    mov $0xd4d5d6d7, %eax
    out %eax, %dx
    mov $0xc1, %al
    out %al, $0
    patch \blob
    mov $0xc2c3, %ax
    out %ax, $0
    patch \blob
    mov $0xc4c5c6c7, %eax
    out %eax, $0
    patch \blob
    cld
    mov $DATA_OUT, %esi
    outsb
    outsw
    outsl
    mov $DATA_OUT, %esi
    mov $4, %ecx
    rep outsb
    mov $3, %ecx
    rep outsw
    mov $2, %ecx
    rep outsl
    std
    mov $DATA_OUT + 3, %esi
    mov $4, %ecx
    rep outsb
    cld
    mov $DATA_IN, %edi
    in %dx, %al
    stosb
    in %dx, %ax
    stosw
    in %dx, %eax
    stosl
    mov $3, %ecx
    rep insb
    mov $2, %ecx
    rep insw
    insl
    mov $\done, %eax
    mov %eax, DATA_DONE
    .endm

    .macro blob name
    .section .rodata.pio, "a"
    .globl \name\()_patches
\name\()_patches:
    .section .rodata
    .globl \name, \name\()_end
\name:
    .endm
    .macro blob_end name
\name\()_end:
    .section .rodata.pio, "a"
    .word 0xffff
    .endm

    blob pio_code16
    .code16
    sequence pio_code16, 1
    ljmpl $SEL_CODE0, $pio_return
    blob_end pio_code16

    blob pio_code32
    .code32
    sequence pio_code32, 1
    ljmp $SEL_CODE0, $pio_return
    blob_end pio_code32

// For a further CPU, by SIPI: real mode, then 32-bit protected mode without paging.
    blob pio_ap
    .code16
    cli
    xor %eax, %eax
    mov %ax, %ds
    mov %ax, %es
    sequence pio_ap, 1
1:  mov DATA_DONE, %eax         // until pio.c has taken the results
    cmp $2, %eax
    jne 1b
    lgdtl AP_BASE + ap_gdt_pointer - pio_ap
    mov $0x11, %eax
    mov %eax, %cr0
    ljmpl $SEL_CODE32, $(AP_BASE + 2f - pio_ap)
    .code32
2:  mov $SEL_DATA0, %eax
    mov %eax, %ds
    mov %eax, %es
    sequence pio_ap, 3
3:  hlt
    jmp 3b
ap_gdt_pointer:
    .word 0x2f
    .long gdt
    blob_end pio_ap

// pio_far(pointer to offset 32, selector 16), called in ring 0 with interrupts off: runs code of another size there.
    .text
    .code64
    .globl pio_far
pio_far:
    push %rbx
    mov %rsp, %rbx
    ljmp *(%rdi)
pio_return:
    mov %rbx, %rsp
    pop %rbx
    ret

    .section .note.GNU-stack, "", @progbits
