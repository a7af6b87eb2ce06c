# Reads and writes a page at 0xd0000000 that a read-only slot backs, echoing what it reads on port 0xe0.
        .include "firmware/test-guests/protected.inc"
        mov     $0xd0000000, %ebx
        mov     $0xe0, %dx
        mov     (%ebx), %eax
        out     %eax, %dx
        movl    $0x55, (%ebx)
        mov     (%ebx), %eax
        out     %eax, %dx
        hlt
