# A boot sector that loads a whole machine from the raw disk, for emulators.
#
# GRUB reads a disk at 14 to 21 instructions a byte when an emulator runs it; `rep insd` costs one per four bytes. So the
# host tool writes a disk of its own: this loader (sectors 0 and 1, at 0x7C00), a table and a hand-over page (sectors 2
# to 15, at 0x8000 and 0x8C00), and then the segments that the table lists. The loader asks the firmware for the memory
# map, goes to flat 32-bit protected mode, reads the segments by ATA PIO (ATA/ATAPI-6, READ SECTORS), zeroes what the
# table says, and jumps with paging and interrupts off: what both the PVH and the 32-bit Linux boot protocol expect.
#
# tools/src/disk.rs writes the table and has the same numbers.
        .intel_syntax noprefix

        .set TABLE,       0x8000
        .set ENTRY,       TABLE         # 32-bit address to jump to
        .set ENTRY_EBX,   TABLE + 4     # registers at the jump
        .set ENTRY_ESI,   TABLE + 8
        .set FLAGS,       TABLE + 12    # bit 0: zero the TSC right before the jump
        .set MAP_AT,      TABLE + 16    # where memory map entries go,
        .set MAP_STRIDE,  TABLE + 20    # how far apart,
        .set MAP_COUNT,   TABLE + 24    # where their number goes (16 bits),
        .set MAP_MOST,    TABLE + 28    # and how many fit
        .set SEGMENTS,    TABLE + 32    # number of segments
        .set FIRST,       TABLE + 36    # LBA, sectors, destination, dwords to zero behind it

        .set SMAP,        0x534d4150
        .set ATA_COUNT,   0x1f2
        .set ATA_CONTROL, 0x3f6
        .set COM1,        0x3f8
        .set IA32_TSC,    0x10

        .code16
        .globl start
start:  cli
        cld
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, offset start
        ljmp    0, offset real

real:   mov     si, offset packet       # INT 13h extensions: the rest of the loader, the table, the hand-over page
        mov     ah, 0x42
        int     0x13
        jc      unreadable16

        mov     edi, [MAP_AT]           # INT 15h, EAX=E820h: the memory map
        xor     ebx, ebx
        xor     bp, bp
entry:  mov     eax, 0xe820
        mov     edx, SMAP
        mov     ecx, 20
        int     0x15
        jc      mapped
        cmp     eax, SMAP
        jne     mapped
        add     di, [MAP_STRIDE]
        inc     bp
        cmp     bp, [MAP_MOST]
        jae     mapped
        test    ebx, ebx
        jnz     entry
mapped: mov     di, [MAP_COUNT]
        mov     [di], bp

        in      al, 0x92                # fast A20
        or      al, 2
        and     al, 0xfe
        out     0x92, al
        call    protect
        .code32
        jmp     load
        .code16

unreadable16:
        call    protect
        .code32
        jmp     unreadable
        .code16

protect:                                # to protected mode; returns to a 16-bit near address
        lgdt    [gdt_pointer]
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        ljmp    0x10, offset flat32
        .code32
flat32: mov     ax, 0x18
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        xor     eax, eax
        mov     ax, [esp]
        mov     esp, offset start
        jmp     eax

        .balign 8
gdt:    .quad   0, 0                    # selectors 0x10 and 0x18, as Linux wants them
        .quad   0x00cf9b000000ffff      # code
        .quad   0x00cf93000000ffff      # data
gdt_pointer:
        .word   gdt_pointer - gdt - 1
        .long   gdt
        .balign 4
packet: .byte   16, 0
        .word   15                      # sectors
        .word   0x7e00, 0               # offset, segment
        .quad   1                       # first sector

        .org    510
        .word   0xaa55

load:   mov     edx, ATA_CONTROL        # no interrupts
        mov     al, 2
        out     dx, al
        mov     ebp, FIRST
segment:
        sub     dword ptr [SEGMENTS], 1
        jc      enter
        mov     ebx, [ebp]
        mov     esi, [ebp + 4]
        mov     edi, [ebp + 8]
command:
        test    esi, esi
        jz      zero
        mov     ecx, 128                # sectors of this command
        cmp     esi, ecx
        cmovb   ecx, esi
        sub     esi, ecx
        mov     edx, ATA_COUNT
        mov     al, cl
        out     dx, al
        mov     eax, ebx                # LBA 0-7, 8-15, 16-23
        inc     edx
        out     dx, al
        shr     eax, 8
        inc     edx
        out     dx, al
        shr     eax, 8
        inc     edx
        out     dx, al
        shr     eax, 8                  # LBA 24-27, first drive, LBA mode
        and     al, 0x0f
        or      al, 0xe0
        inc     edx
        out     dx, al
        mov     al, 0x20                # READ SECTORS
        inc     edx
        out     dx, al
        add     ebx, ecx
sector: in      al, dx
        test    al, 0x80                # busy
        jnz     sector
        test    al, 0x21                # error, fault
        jnz     unreadable
        test    al, 0x08                # data request
        jz      sector
        mov     eax, ecx
        mov     ecx, 128
        mov     dl, 0xf0
        rep insd
        mov     dl, 0xf7
        mov     ecx, eax
        loop    sector
        jmp     command
zero:   mov     ecx, [ebp + 12]
        xor     eax, eax
        rep stosd
        add     ebp, 16
        jmp     segment

enter:  mov     ebx, [ENTRY_EBX]
        mov     esi, [ENTRY_ESI]
        xor     ebp, ebp
        xor     edi, edi
        test    byte ptr [FLAGS], 1
        jz      1f
        xor     eax, eax
        xor     edx, edx
        mov     ecx, IA32_TSC
        wrmsr
1:      jmp     dword ptr [ENTRY]

unreadable:
        mov     edx, COM1 + 3           # line control: 8 bits, no parity
        mov     al, 3
        out     dx, al
        mov     esi, offset message
1:      mov     edx, COM1 + 5           # line status: transmitter ready
        in      al, dx
        test    al, 0x20
        jz      1b
        lodsb
        test    al, al
        jz      2f
        mov     edx, COM1
        out     dx, al
        jmp     1b
2:      hlt
        jmp     2b
message:
        .asciz  "event preflight the boot disk can not be read: make it anew\n"

        .org    0x400
