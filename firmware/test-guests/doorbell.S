# Writes to doorbells: port 0xd0 twice, port 0xd4 with the values 1 and 2; then says so on port 0xe0.
        .code16
        mov     $0xd0, %dx
        out     %al, %dx
        out     %al, %dx
        mov     $0xd4, %dx
        mov     $1, %ax
        out     %ax, %dx
        mov     $2, %ax
        out     %ax, %dx
        mov     $0xe0, %dx
        out     %al, %dx
        hlt
