# Takes message signalled interrupts with vector 0x40 in protected mode. Says 1 on port 0xe0 when ready, 0x40 for
# each interrupt.
        .include "firmware/test-guests/protected.inc"
        mov     $handler, %eax
        movw    %ax, 0x7200
        movw    $8, 0x7202
        movw    $0x8e00, 0x7204
        shr     $16, %eax
        movw    %ax, 0x7206
        lidt    idt_pointer
        # The spurious interrupt register: local APIC on, spurious vector 0xff.
        movl    $0x1ff, 0xfee000f0
        mov     $0xe0, %dx
        mov     $1, %al
        out     %al, %dx
        sti
1:      hlt
        jmp     1b
handler:
        mov     $0x40, %al
        out     %al, %dx
        movl    $0, 0xfee000b0
        # iret by hand, to the same privilege level.
        pop     %ecx
        add     $4, %esp
        popf
        jmp     *%ecx
idt_pointer:
        .word   0x7ff
        .long   0x7000
