# Says that it runs, on port 0xe0, then spins for ever.
        .code16
        mov     $0xe0, %dx
        mov     $1, %al
        out     %al, %dx
1:      incl    0x8000
        jmp     1b
