# Writes port 0xe0 and reads port 0xe4, for ever: the guest of the exit bench.
        .code16
        mov     $0xe0, %dx
1:      out     %al, %dx
        in      $0xe4, %al
        jmp     1b
