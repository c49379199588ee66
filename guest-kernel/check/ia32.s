# A 32-bit program: exit(0) by the i386 system call gate.
    .code32
    .globl _start
_start:
    movl $1, %eax
    xorl %ebx, %ebx
    int $0x80
