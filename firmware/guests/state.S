// state_hold(): fills every register with a pattern, holds it while time passes, and stores what is found then.
// Offsets are those of struct registers in state.c (state_in, state_out).
#define FLAGS 120
#define CONTROL 128
#define MXCSR 132
#define X87 144
#define VECTOR 288

    .macro each_gpr_load
    .set at, 0
    .irp r, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
    mov state_in + at, %\r
    .set at, at + 8
    .endr
    .endm
    .macro each_gpr_store
    .set at, 0
    .irp r, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
    mov %\r, state_out + at
    .set at, at + 8
    .endr
    .endm

    .text
    .globl state_hold
state_hold:
    .irp r, rbx, rbp, r12, r13, r14, r15
    push %\r
    .endr
    // With IOPL 3, POPF in ring 3 changes IF: it stays as it is.
    pushfq
    mov (%rsp), %rax
    and $0x3200, %eax
    or %rax, state_in + FLAGS
    fninit
    fldcw state_in + CONTROL
    ldmxcsr state_in + MXCSR
    .irp n, 7, 6, 5, 4, 3, 2, 1, 0
    fldt state_in + X87 + 16 * \n
    .endr
    cmpl $0, state_avx
    jne 1f
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movups state_in + VECTOR + 32 * \n, %xmm\n
    .endr
    jmp 2f
1:
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovups state_in + VECTOR + 32 * \n, %ymm\n
    .endr
2:
    pushq state_in + FLAGS
    popfq
    each_gpr_load

    // First half: the flags hold too (LEA and JRCXZ leave them alone), and XMM15 counts.
    mov state_spins, %rcx
3:  paddq %xmm14, %xmm15
    lea -1(%rcx), %rcx
    jrcxz 4f
    jmp 3b
4:  mov state_in + 16, %rcx
    pushfq
    popq state_out + FLAGS

    // Second half: all general registers hold; the counter is in memory.
    mov %rcx, state_out
    mov state_spins, %rcx
    mov %rcx, state_left
    mov state_out, %rcx
5:  decq state_left
    jnz 5b
    each_gpr_store

    fnstcw state_out + CONTROL
    stmxcsr state_out + MXCSR
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    fstpt state_out + X87 + 16 * \n
    .endr
    cmpl $0, state_avx
    jne 6f
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movups %xmm\n, state_out + VECTOR + 32 * \n
    .endr
    jmp 7f
6:
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovups %ymm\n, state_out + VECTOR + 32 * \n
    .endr
    vzeroupper
7:
    popfq                       // as on entry
    .irp r, r15, r14, r13, r12, rbp, rbx
    pop %\r
    .endr
    ret

    .section .note.GNU-stack, "", @progbits
