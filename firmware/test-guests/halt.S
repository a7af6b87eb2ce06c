# Halts with interrupts off.
        .code16
        cli
        mov     $0xe0, %dx
        mov     $1, %al
        out     %al, %dx
1:      hlt
        jmp     1b
