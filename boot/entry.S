# From the boot loader to Rust: 32-bit protected mode without paging, by multiboot2 or PVH, to 64-bit mode.
#
# In:  EAX = 0x36d76289 and EBX = multiboot2 information, or EBX = PVH start information (first word 0x336ec578).
# Out: boot_main(EDI = magic, RSI = information) in the image's high half, on the start-up stack; physical memory up to
#      4 GiB mapped at its own address until the start-up code leaves these tables behind.
# A second processor comes by another way, from its start-up interrupt in real mode, and goes to where the words at
# `secondary` say; `startup.rs` copies its first instructions below 1 MiB.
# Multiboot2 specification 2.0, 3.1 "OS image format"; Xen "x86/HVM direct boot ABI" (PVH).

.set IMAGE_OFFSET, 0xffffffff80000000
.set MULTIBOOT2, 0xe85250d6

.section .boot.header, "a"
.balign 8
header:
    .long MULTIBOOT2, 0, header_end - header, -(MULTIBOOT2 + (header_end - header))
    # Entry address (3.1.7); information request (3.1.4): memory map, modules, ACPI roots.
    .balign 8
    .short 3, 0
    .long 12, boot_entry
    .balign 8
    .short 1, 0
    .long 16, 6, 3
    .balign 8
    .short 0, 0
    .long 8
header_end:

.section .note.pvh, "a", @note
.balign 4
    .long 4, 4, 18
    .asciz "Xen"
    .long boot_entry

.section .boot.text, "ax"
.code32
.global boot_entry
boot_entry:
    cli
    cld
    movl %eax, %edi
    movl %ebx, %esi
    movl $boot_stack_top, %esp
    # A processor without 64-bit mode could not even say so in words: stop.
    movl $0x80000000, %eax
    cpuid
    cmpl $0x80000001, %eax
    jb stop
    movl $0x80000001, %eax
    cpuid
    btl $29, %edx
    jnc stop
    xorl %ebp, %ebp
    # Four page directories of 2-MiB pages: the first 4 GiB.
    movl $directories, %eax
    movl $0x83, %edx
    movl $2048, %ecx
1:  movl %edx, (%eax)
    movl $0, 4(%eax)
    addl $0x200000, %edx
    addl $8, %eax
    loop 1b
    movl $directories + 3, %eax
    movl $pointers_low, %edx
    movl $4, %ecx
2:  movl %eax, (%edx)
    addl $0x1000, %eax
    addl $8, %edx
    loop 2b
    movl $directories + 3, pointers_high + 510 * 8
    movl $pointers_low + 3, root
    movl $pointers_high + 3, root + 511 * 8
to_long_mode:
    movl $root, %eax
    movl %eax, %cr3
    movl $0x20, %eax
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x900, %eax
    wrmsr
    movl %cr0, %eax
    andl $0x9fffffff, %eax
    orl $0x80010023, %eax
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $long_mode
stop:
    hlt
    jmp stop

# Real mode, CS:IP = page:0. SDM vol. 3A 9.4 "Multiple-Processor (MP) Initialization".
.code16
secondary_start:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl secondary_gdt - secondary_start
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $16, $secondary_protected
.balign 4
secondary_gdt:
    .short 31
    .long gdt
secondary_end:

.code32
secondary_protected:
    movl $24, %eax
    movl %eax, %ds
    movl $1, %ebp
    jmp to_long_mode

.code64
long_mode:
    xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl %eax, %ss
    testl %ebp, %ebp
    jnz secondary_long
    movl %edi, %edi
    movl %esi, %esi
    movabsq $startup_stack_top, %rsp
    movabsq $boot_main, %rax
    callq *%rax
    ud2
secondary_long:
    movabsq $secondary, %rax
    movq (%rax), %rdi
    movq 8(%rax), %rsi
    movq 16(%rax), %rdx
    movabsq $enter_context, %rax
    jmp *%rax

.section .boot.data, "aw"
.balign 8
gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
    .short 31
    .long gdt
.balign 16
    .skip 64
boot_stack_top:

.section .boot.tables, "aw"
.balign 4096
root: .skip 4096
pointers_low: .skip 4096
pointers_high: .skip 4096
directories: .skip 4 * 4096

.section .bss.startup, "aw", @nobits
.balign 4096
.global startup_stack, startup_stack_top
startup_stack:
    .skip 65536
startup_stack_top:

# What a second processor is to do: stack, root of the page tables, entry. And where its first instructions are.
.section .bss.secondary, "aw", @nobits
.balign 8
.global secondary
secondary: .skip 24

.section .rodata.secondary, "a"
.balign 8
.global secondary_code
secondary_code: .quad secondary_start, secondary_end
