@ What a 32-bit ARM program does for the tests of narrow.rs.
@ arm-linux-gnueabihf-as -march=armv7-a arm.s -o arm.o && arm-linux-gnueabihf-ld -N -s arm.o -o arm.elf
    .syntax unified
    .arm
    .globl _start
    .text
_start:
    movw r7, #5                 @ open
    ldr r0, =shadow
    mov r1, #0
    svc #0

    movw r7, #437               @ openat2
    mvn r0, #99
    ldr r1, =gshadow
    ldr r2, =how
    mov r3, #24
    svc #0

    movw r7, #10                @ unlink
    ldr r0, =log
    svc #0

    movw r7, #281               @ socket
    mov r0, #2
    mov r1, #2
    mov r2, #0
    svc #0
    mov r8, r0

    movw r7, #283               @ connect
    ldr r1, =server
    mov r2, #16
    svc #0

    movw r7, #289               @ send
    mov r0, r8
    ldr r1, =first
    mov r2, #first_end - first
    mov r3, #0
    ldr r4, =other              @ no argument of this call
    svc #0

    movw r7, #281               @ socket
    mov r0, #2
    mov r1, #2
    mov r2, #0
    svc #0
    mov r8, r0

    movw r7, #296               @ sendmsg
    ldr r1, =message
    mov r2, #0
    svc #0

    movw r7, #374               @ sendmmsg
    mov r0, r8
    ldr r1, =messages
    mov r2, #2
    mov r3, #0
    svc #0

    movw r7, #203               @ setreuid32, a number that `connect` has among the 64-bit calls
    mvn r0, #0
    mvn r1, #0
    svc #0

    movw r7, #1                 @ exit
    mov r0, #0
    svc #0
    .ltorg

    .data
    .balign 8
how:      .quad 0, 0, 0
@ `struct msghdr` and `struct mmsghdr` of 32 bits.
message:  .long other, 16, other_piece, 1, 0, 0, 0
messages: .long other, 16, other_piece, 1, 0, 0, 0, 0
          .long server, 16, second_piece, 2, 0, 0, 0, 0
other_piece:  .long second, 1
second_piece: .long length, 2, second, second_end - second
@ 127.0.0.1, ports 53 and 5353.
server:   .byte 2, 0, 0, 53, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0
other:    .byte 2, 0, 0x14, 0xe9, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0
@ DNS queries for first.example and second.example; the length that TCP needs before the latter.
length:   .byte 0, second_end - second
first:    .byte 0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 5
          .ascii "first"
          .byte 7
          .ascii "example"
          .byte 0, 0, 1, 0, 1
first_end:
second:   .byte 0, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 6
          .ascii "second"
          .byte 7
          .ascii "example"
          .byte 0, 0, 1, 0, 1
second_end:
shadow:   .asciz "/etc/shadow"
gshadow:  .asciz "/etc/gshadow"
log:      .asciz "/var/log/behaveguard-narrow"
