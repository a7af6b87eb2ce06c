# In 64-bit mode from the start, as a kernel is, loaded at 2 MiB. Sends bytes to the serial port, each one more than
# that before, for each interrupt of a periodic local APIC timer; the number lives in a register, and memory
# has a copy.
        .code64
        lea     stack(%rip), %rsp
        lea     handler(%rip), %rax
        lea     idt + 0x400(%rip), %rdi
        mov     %ax, (%rdi)
        movw    $0x10, 2(%rdi)
        movw    $0x8e00, 4(%rdi)
        shr     $16, %rax
        mov     %ax, 6(%rdi)
        movl    $0, 8(%rdi)
        lea     idt(%rip), %rax
        mov     %rax, idt_pointer + 2(%rip)
        lidt    idt_pointer(%rip)
        mov     $0xfee00000, %ebx
        movl    $0x1ff, 0xf0(%rbx)
        # Divide by 1, periodic with vector 0x40, every 2 ms of KVM's 1 GHz.
        movl    $0xb, 0x3e0(%rbx)
        movl    $0x20040, 0x320(%rbx)
        movl    $2000000, 0x380(%rbx)
        xor     %r12d, %r12d
        sti
1:      hlt
        jmp     1b
handler:
        mov     %r12b, %al
        inc     %r12d
        mov     %r12d, count(%rip)
        mov     $0x3f8, %dx
        out     %al, %dx
        movl    $0, 0xb0(%rbx)
        iretq
        .balign 8
idt_pointer:
        .word   0x4ff
        .quad   0
        .balign 16
idt:    .fill   0x500, 1, 0
        .fill   512, 1, 0
stack:  .fill   4096, 1, 0
count:  .long   0
