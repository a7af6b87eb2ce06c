# An instruction from MMIO space: KVM cannot fetch it.
        .include "firmware/test-guests/protected.inc"
        mov     $0xd0000000, %eax
        jmp     *%eax
