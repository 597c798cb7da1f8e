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
    .include "data.s"
