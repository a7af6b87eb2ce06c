# Starts a second processor by INIT and SIPI. Both say who they are on port 0xe0: 1 for the first, 2 for the second.
        .include "firmware/test-guests/protected.inc"
        mov     $second, %esi
        mov     $0x2000, %edi
        mov     $second_end - second, %ecx
        cld
        rep movsb
        movl    $0x1ff, 0xfee000f0
        # The interrupt command register: destination in its high half; INIT, then start-up at page 2.
        movl    $0x01000000, 0xfee00310
        movl    $0x00004500, 0xfee00300
        movl    $0x01000000, 0xfee00310
        movl    $0x00004602, 0xfee00300
        mov     $0xe0, %dx
        mov     $1, %al
        out     %al, %dx
1:      hlt
        jmp     1b
        .code16
second: mov     $0xe0, %dx
        mov     $2, %al
        out     %al, %dx
1:      hlt
        jmp     1b
second_end:
