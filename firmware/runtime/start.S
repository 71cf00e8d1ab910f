// From the PVH entry to ring 3 in long mode, the tables that the CPU needs, and every entry into ring 0.
//
// Some KVMs emulate ring 0 one instruction at a time (about 0.6 us each), so this path is short: page tables, GDT and
// IDT are finished at link time, and everything else happens in ring 3, where code runs natively. Ring 3 may do port
// I/O for two reasons: the TSS bitmap is all zero, which is all that some KVMs' emulators look at, and IOPL is 3, because
// QEMU's software CPU does not look at a bitmap once a hypervisor on it has loaded the task register as busy. It can
// write every table here because all pages are user pages: isolation inside a test guest has no use.
#include "layout.h"

    // Xen ABI, XEN_ELFNOTE_PHYS32_ENTRY: where a PVH loader enters.
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_entry

// ---- interrupt stubs: 16 bytes each at a fixed address, so that the IDT is a link-time constant ----
    .section .isr, "ax"
    .code64
    .globl isr_stubs
isr_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if vector == 6
    jmp invalid_opcode
    .elseif vector < 32
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp exception
    .elseif (vector >= VECTOR_COUNTED) && (vector < VECTOR_COUNTED_END)
    lock incl irq_counts + 4 * vector
    jmp end_of_interrupt
    .elseif vector == VECTOR_SPURIOUS
    iretq
    .else
    pushq $vector
    jmp interrupt
    .endif
    .set vector, vector + 1
    .endr
    .balign 16

    .text
end_of_interrupt:
    push %rax
    mov $0xfee000b0, %eax
    movl $0, (%rax)
    pop %rax
    iretq

// Calls irq_handlers[vector](vector) in ring 0; the handler acknowledges the LAPIC itself.
interrupt:
    push %rax
    push %rcx
    push %rdx
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    mov 72(%rsp), %rdi
    cld
    call *irq_handlers(, %rdi, 8)
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rdx
    pop %rcx
    pop %rax
    add $8, %rsp
    iretq

// Hands exception_report() a frame of all registers; it does not return.
exception:
    push %rax
    push %rcx
    push %rdx
    push %rbx
    push %rbp
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, %rdi
    cld
    call exception_report
1:  cli
    hlt
    jmp 1b

// svc(what, a, b, c) from ring 3: the fault of its one UD2 is the system call, because neither INT n nor SYSCALL gets
// from ring 3 to ring 0 on every KVM.
    .globl svc
svc:
svc_call:
    ud2
    ret

invalid_opcode:
    cmpq $svc_call, (%rsp)
    jne 9f
    addq $2, (%rsp)
    cmp $SVC_COUNT, %rdi
    jae 3f
    jmp *service_table(, %rdi, 8)
3:  mov %rdi, %rax
    mov %rsi, %rdi
    mov %rdx, %rsi
    mov %rcx, %rdx
    call *%rax
    iretq
9:  pushq $0
    pushq $6
    jmp exception

service_cli:
    andl $~0x200, 16(%rsp)
    iretq
service_sti:
    orl $0x200, 16(%rsp)
    iretq
service_hlt: // returns with the caller's own interrupt flag
    sti
    hlt
    iretq

    .section .rodata
    .balign 8
service_table:
    .quad service_cli, service_sti, service_hlt

// ---- entry ----
    .section .text.entry, "ax"
    .code32
    .globl pvh_entry
pvh_entry:
    mov $boot_pml4, %eax
    mov %eax, %cr3
    mov $0x620, %eax            // PAE, OSFXSR, OSXMMEXCPT
    mov %eax, %cr4
    mov $0xc0000080, %ecx       // EFER.LME
    rdmsr
    or $0x100, %eax
    wrmsr
    mov $0x80000033, %eax       // PG, NE, ET, MP, PE
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $SEL_CODE0, $entry64
    .code64
entry64:
    mov %rbx, %rsi              // hvm_start_info
    mov $boot_cpu, %ebx
// Common to all CPUs. rbx: struct cpu; rsi: argument of ring3_start.
    .globl enter_ring3
enter_ring3:
    lidt idt_pointer
    mov CPU_TSS_SELECTOR(%rbx), %eax
    ltr %ax
    mov $SEL_DATA3, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov $0xc0000101, %ecx       // GS base: this CPU's struct cpu
    mov %ebx, %eax
    xor %edx, %edx
    wrmsr
    mov CPU_STACK0(%rbx), %rsp
    pushq $SEL_DATA3
    pushq CPU_STACK3(%rbx)
    pushq $0x3002               // interrupts off, IOPL 3
    pushq $SEL_CODE3
    pushq $ring3_start
    iretq
ring3_start:
    xor %ebp, %ebp
    mov %rbx, %rdi
    call cpu_start
    ud2

// ---- tables ----
    .data
    .balign 16
    .globl gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    // 0x08 code, ring 0, 64-bit
    .quad 0x00cf93000000ffff    // 0x10 data, ring 0
    .quad 0x00affb000000ffff    // 0x18 code, ring 3, 64-bit
    .quad 0x00cff3000000ffff    // 0x20 data, ring 3
    .quad 0x00cf9b000000ffff    // 0x28 code, ring 0, 32-bit
    .quad boot_tss_descriptor   // 0x30 TSS of CPU 0; further CPUs follow
    .quad 0
    .fill 2 * (CPUS_MAX - 1), 8, 0
gdt_end:
    .globl gdt_pointer
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
    .balign 8
idt_pointer:
    .word 256 * 16 - 1
    .quad idt

    .balign 8
    .globl boot_cpu
boot_cpu:
    .quad boot_cpu
    .quad boot_stack0
    .quad boot_stack3
    .long SEL_TSS0
    .long 0, 0, 0
    .quad boot_tss

// Only the head of the boot TSS is stored; guest.ld puts its zero I/O bitmap right behind it in .bss.
    .section .tss, "aw"
    .globl boot_tss_head
boot_tss_head:
    .long 0
    .quad boot_stack0, 0, 0
    .fill 8, 8, 0
    .quad 0
    .word 0, 104

    .section .rodata.idt, "a"
    .balign 16
idt:
    .set vector, 0
    .rept 256
    .quad (vector * 16) | (SEL_CODE0 << 16) | (0x8e00 << 32) | (0x0010 << 48)
    .quad 0
    .set vector, vector + 1
    .endr

// Identity map of 4 GiB in 2 MiB user pages; 3-4 GiB (devices) uncached. map_identity() adds what lies above.
    .section .pagetables, "aw"
    .balign 4096
    .globl boot_pml4
boot_pml4:
    .quad boot_pdpt + 7
    .fill 511, 8, 0
boot_pdpt:
    .quad boot_pd + 7, boot_pd + 0x1007, boot_pd + 0x2007, boot_pd + 0x3007
    .fill 508, 8, 0
boot_pd:
    .set page, 0
    .rept 2048
    .if page < 1536
    .quad (page << 21) | 0x87
    .else
    .quad (page << 21) | 0x9f
    .endif
    .set page, page + 1
    .endr

    .section .note.GNU-stack, "", @progbits
