# Port I/O of every size, both ways: writes 0x11, 0x2233, 0x44556677 to port 0xe0, then reads port 0xe4 in every
# size and echoes what it got.
        .code16
        mov     $0xe0, %dx
        mov     $0x11, %al
        out     %al, %dx
        mov     $0x2233, %ax
        out     %ax, %dx
        mov     $0x44556677, %eax
        out     %eax, %dx
        xor     %eax, %eax
        in      $0xe4, %al
        out     %eax, %dx
        xor     %eax, %eax
        in      $0xe4, %ax
        out     %eax, %dx
        in      $0xe4, %eax
        out     %eax, %dx
        hlt
