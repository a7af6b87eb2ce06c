# String I/O: `rep outsb` of eight bytes to port 0xe0, `rep insw` of four words from port 0xe4 to memory, then
# `rep outsw` of those back to port 0xe0.
        .code16
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        cld
        mov     $0xe0, %dx
        mov     $text, %si
        mov     $8, %cx
        rep outsb
        mov     $0xe4, %dx
        mov     $buffer, %di
        mov     $4, %cx
        rep insw
        mov     $0xe0, %dx
        mov     $buffer, %si
        mov     $4, %cx
        rep outsw
        hlt
text:   .ascii  "coracle!"
buffer: .skip   8
