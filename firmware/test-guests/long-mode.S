# Real mode to long mode by identity-mapped 2 MiB pages; writes a 64-bit sum's two halves to port 0xe0.
        .include "firmware/test-guests/protected.inc"
        # Level 4 at 0x10000, level 3 at 0x11000, level 2 at 0x12000, whose first entry is a page of 2 MiB.
        movl    $0x11003, 0x10000
        movl    $0x12003, 0x11000
        movl    $0x83, 0x12000
        mov     %cr4, %eax
        or      $0x20, %eax
        mov     %eax, %cr4
        mov     $0x10000, %eax
        mov     %eax, %cr3
        mov     $0xc0000080, %ecx
        rdmsr
        or      $0x100, %eax
        wrmsr
        mov     %cr0, %eax
        or      $0x80000000, %eax
        mov     %eax, %cr0
        ljmp    $24, $long
        .code64
long:   movabs  $0x1122334455667788, %rax
        movabs  $0x1111111111111111, %rbx
        add     %rbx, %rax
        mov     $0xe0, %dx
        out     %eax, %dx
        shr     $32, %rax
        out     %eax, %dx
        hlt
