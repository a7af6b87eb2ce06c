# Carries out a table of accesses, whatever they are: for tests that play a hostile driver. Begins in long mode, at any
# address, with all it touches identity-mapped; the table follows the code. An entry has 24 bytes:
#
#     kind u32 | count u32: how often | address u64 | value u64
#
# kind 0 is the end: value, as a byte, to port address, and a halt. 1-4 write 1, 2, 4, 8 bytes to memory, 5-8 read
# them; 9-11 write 1, 2, 4 bytes to a port, 12-14 read them. 15: the value's low byte in a string instruction to the
# port. 16: a string instruction from memory at address to the memory at value. 17: an exchange of 4 bytes. 18: waits
# while the 2 bytes at address are not the value, count looks at most. 19: sends the 4 bytes at address to port 0x3f8.
        .code64
        lea     table(%rip), %rbx
        lea     stack(%rip), %rsp
next:   mov     (%rbx), %eax
        mov     4(%rbx), %r8d
        mov     8(%rbx), %rdi
        mov     16(%rbx), %rsi
        add     $24, %rbx
        lea     jumps(%rip), %rbp
        movslq  (%rbp,%rax,4), %rax
        add     %rax, %rbp
again:  mov     %edi, %edx
        mov     %rsi, %rax
        jmp     *%rbp
done:   dec     %r8d
        jnz     again
        jmp     next
        .balign 4
jumps:  .long   end - jumps
        .long   w1 - jumps, w2 - jumps, w4 - jumps, w8 - jumps, r1 - jumps, r2 - jumps, r4 - jumps, r8 - jumps
        .long   o1 - jumps, o2 - jumps, o4 - jumps, i1 - jumps, i2 - jumps, i4 - jumps
        .long   outs - jumps, movs - jumps, swap - jumps, wait - jumps, say - jumps
end:    out     %al, %dx
        hlt
w1:     mov     %al, (%rdi)
        jmp     done
w2:     mov     %ax, (%rdi)
        jmp     done
w4:     mov     %eax, (%rdi)
        jmp     done
w8:     mov     %rax, (%rdi)
        jmp     done
r1:     mov     (%rdi), %al
        jmp     done
r2:     mov     (%rdi), %ax
        jmp     done
r4:     mov     (%rdi), %eax
        jmp     done
r8:     mov     (%rdi), %rax
        jmp     done
o1:     out     %al, %dx
        jmp     done
o2:     out     %ax, %dx
        jmp     done
o4:     out     %eax, %dx
        jmp     done
i1:     in      %dx, %al
        jmp     done
i2:     in      %dx, %ax
        jmp     done
i4:     in      %dx, %eax
        jmp     done
outs:   push    %rsi
        mov     %rsp, %rsi
        mov     %r8d, %ecx
        cld
        rep outsb
        pop     %rsi
        jmp     next
movs:   push    %rsi
        push    %rdi
        xchg    %rsi, %rdi
        mov     %r8d, %ecx
        cld
        rep movsb
        pop     %rdi
        pop     %rsi
        jmp     next
swap:   xchg    %eax, (%rdi)
        jmp     done
wait:   cmp     %ax, (%rdi)
        jne     done
        jmp     next
say:    mov     (%rdi), %eax
        mov     $0x3f8, %dx
        out     %al, %dx
        shr     $8, %eax
        out     %al, %dx
        shr     $8, %eax
        out     %al, %dx
        shr     $8, %eax
        out     %al, %dx
        jmp     next
        .fill   1024, 1, 0
stack:
        .balign 8
table:
