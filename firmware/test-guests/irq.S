# Takes interrupts in real mode through the PIC, whose lines 0-7 it puts at vectors 0x20-0x27, with line 5 alone
# open. Says 1 on port 0xe0 when ready, 5 for each interrupt.
        .code16
        cli
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $0x8000, %sp
        movw    $handler, 0x25 * 4
        movw    $0, 0x25 * 4 + 2
        mov     $0x11, %al
        out     %al, $0x20
        mov     $0x20, %al
        out     %al, $0x21
        mov     $0x04, %al
        out     %al, $0x21
        mov     $0x01, %al
        out     %al, $0x21
        mov     $0xdf, %al
        out     %al, $0x21
        mov     $0xe0, %dx
        mov     $1, %al
        out     %al, %dx
        sti
1:      hlt
        jmp     1b
handler:
        mov     $5, %al
        out     %al, %dx
        mov     $0x20, %al
        out     %al, $0x20
        iret
