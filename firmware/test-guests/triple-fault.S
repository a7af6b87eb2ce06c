# Raises #UD with an interrupt table that holds nothing: the fault, the double fault and the third one.
        .include "firmware/test-guests/protected.inc"
        lidt    empty
        ud2
empty:  .word   0
        .long   0
