# What both programs give: addresses, messages, names. A line that begins with # is a comment for both assemblers.
# `struct msghdr` and `struct mmsghdr` of 32 bits.
message:  .long other, 16, other_piece, 1, 0, 0, 0
messages: .long other, 16, other_piece, 1, 0, 0, 0, 0
          .long server, 16, second_piece, 2, 0, 0, 0, 0
other_piece:  .long second, 1
second_piece: .long length, 2, second, second_end - second
# 127.0.0.1, ports 53 and 5353.
server:   .byte 2, 0, 0, 53, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0
other:    .byte 2, 0, 0x14, 0xe9, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0
# DNS queries for first.example and second.example; the length that TCP needs before the latter.
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
