# Writes a word and a long to 0xd0000000, then says so on port 0xe0.
        .include "firmware/test-guests/protected.inc"
        mov     $0xd0000000, %ebx
        movw    $7, (%ebx)
        movl    $8, (%ebx)
        mov     $0xe0, %dx
        out     %al, %dx
        hlt
