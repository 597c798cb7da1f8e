# What a 32-bit x86 program does for the tests of narrow.rs; what it asks of sockets, as older programs do.
# as --32 i386.s -o i386.o && ld -m elf_i386 -N -s i386.o -o i386.elf
    .globl _start
    .text
_start:
    mov $5, %eax                # open
    mov $shadow, %ebx
    xor %ecx, %ecx
    int $0x80

    mov $437, %eax              # openat2
    mov $-100, %ebx
    mov $gshadow, %ecx
    mov $how, %edx
    mov $24, %esi
    int $0x80

    mov $10, %eax               # unlink
    mov $log, %ebx
    int $0x80

    mov $102, %eax              # socketcall: socket
    mov $1, %ebx
    mov $socket, %ecx
    int $0x80
    mov %eax, connect
    mov %eax, send

    mov $102, %eax              # socketcall: connect
    mov $3, %ebx
    mov $connect, %ecx
    int $0x80

    mov $102, %eax              # socketcall: send
    mov $9, %ebx
    mov $send, %ecx
    int $0x80

    mov $102, %eax              # socketcall: socket
    mov $1, %ebx
    mov $socket, %ecx
    int $0x80
    mov %eax, sendmsg

    mov $102, %eax              # socketcall: sendmsg
    mov $16, %ebx
    mov $sendmsg, %ecx
    int $0x80

    mov $345, %eax              # sendmmsg
    mov sendmsg, %ebx
    mov $messages, %ecx
    mov $2, %edx
    xor %esi, %esi
    int $0x80

    mov $42, %eax               # pipe, a number that `connect` has among the 64-bit calls
    mov $ends, %ebx
    int $0x80

    mov $1, %eax                # exit
    xor %ebx, %ebx
    int $0x80

    .data
    .balign 8
how:      .quad 0, 0, 0
socket:   .long 2, 2, 0
connect:  .long 0, server, 16
send:     .long 0, first, first_end - first, 0
sendmsg:  .long 0, message, 0
ends:     .long 0, 0
    .include "data.s"
