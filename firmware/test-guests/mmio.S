# MMIO in protected mode without paging: writes and reads at 0xd0000000, echoes reads on port 0xe0.
        .include "firmware/test-guests/protected.inc"
        mov     $0xd0000000, %ebx
        movb    $0x12, (%ebx)
        movw    $0x3456, 2(%ebx)
        movl    $0x789abcde, 4(%ebx)
        mov     $0xe0, %dx
        movl    8(%ebx), %eax
        out     %eax, %dx
        movzbl  16(%ebx), %eax
        out     %eax, %dx
        # An access across a page's end comes as two exits.
        movl    $0x11223344, 0xffe(%ebx)
        movl    0xffe(%ebx), %eax
        out     %eax, %dx
        hlt
