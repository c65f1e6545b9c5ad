//! Multiboot 1 header, the way to long mode, and what the boot loader told.
//!
//! Multiboot Specification 0.6.96, 3.1 "OS image format" and 3.3 "Boot information format". The address fields of the
//! header (bit 16) are used, so that loaders which refuse 64-bit ELF files take this one.

use crate::{exit, pic, report, segments, serial, trap};
use core::arch::global_asm;
use core::ffi::CStr;
use core::sync::atomic::{AtomicU32, Ordering};

global_asm!(
    ".section .boot, \"awx\", @progbits",
    ".balign 8",
    "multiboot_header:",
    ".long 0x1BADB002, 0x00010003, -(0x1BADB002 + 0x00010003)",
    ".long multiboot_header, multiboot_header, __load_end, __bss_end, _start",
    ".code32",
    ".global _start",
    "_start:",
    "cli",
    "cld",
    "mov esp, offset boot_stack_top",
    "mov edi, eax", // both reach start() as its arguments
    "mov esi, ebx",
    // Page tables: 4 GiB, present and writable, user too; the scenarios narrow it where they need to.
    "mov dword ptr [boot_pml4], offset boot_pdpt + 7",
    "mov eax, offset boot_pd + 7",
    "mov ecx, 0",
    "2: mov [boot_pdpt + ecx * 8], eax",
    "add eax, 4096",
    "inc ecx",
    "cmp ecx, 4",
    "jb 2b",
    "mov eax, 0x87",
    "mov ecx, 0",
    "3: mov [boot_pd + ecx * 8], eax",
    "add eax, 0x200000",
    "inc ecx",
    "cmp ecx, 2048",
    "jb 3b",
    "mov eax, offset boot_pml4",
    "mov cr3, eax",
    "mov eax, 0x620", // CR4: PAE, OSFXSR, OSXMMEXCPT
    "mov cr4, eax",
    "mov ecx, 0xC0000080",
    "rdmsr",
    "or eax, 0x100", // EFER.LME
    "wrmsr",
    "mov eax, 0x80010033", // CR0: PG, WP, NE, ET, MP, PE
    "mov cr0, eax",
    "lgdt [boot_gdt_pointer]",
    "push 8",
    "mov eax, offset boot_long",
    "push eax",
    "retf",
    ".code64",
    "boot_long:",
    "mov eax, 0x10",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov rsp, offset boot_stack_top",
    "fninit",
    "xor ebp, ebp",
    "call {start}",
    "ud2",
    ".balign 8",
    "boot_gdt: .quad 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF",
    "boot_gdt_pointer: .word 23",
    ".long boot_gdt",
    ".section .bss.boot, \"aw\", @nobits",
    ".balign 4096",
    ".global boot_pml4",
    "boot_pml4: .skip 4096",
    ".global boot_pdpt",
    "boot_pdpt: .skip 4096",
    ".global boot_pd",
    "boot_pd: .skip 16384",
    "boot_stack: .skip 65536",
    "boot_stack_top:",
    ".text",
    start = sym start,
);

unsafe extern "Rust" {
    fn guest_main();
}

static MAGIC: AtomicU32 = AtomicU32::new(0);
static INFO: AtomicU32 = AtomicU32::new(0);

/// First Rust code: `magic` and `info` are what the boot loader left in EAX and EBX.
extern "sysv64" fn start(magic: u32, info: u32) -> ! {
    MAGIC.store(magic, Ordering::Relaxed);
    INFO.store(info, Ordering::Relaxed);
    // Firmware leaves the timer's interrupt unmasked, at a vector of the exceptions.
    pic::set_mask(0xFFFF);
    serial::init();
    segments::load();
    trap::load();
    // SAFETY: the scenario! macro defines this symbol with this signature; the linker would miss it otherwise.
    unsafe { guest_main() };
    exit(report::finish())
}

/// What the boot loader left in EAX: 0x2BADB002 for multiboot 1.
#[must_use]
pub fn boot_magic() -> u32 {
    MAGIC.load(Ordering::Relaxed)
}

/// 32-bit field of the multiboot information at byte `offset`, if flag bit `flag` says that it is there.
fn info_field(flag: u32, offset: usize) -> Option<u32> {
    let info = INFO.load(Ordering::Relaxed) as usize;
    // SAFETY: the multiboot loader left this structure (at least 52 bytes, 4-byte aligned) at the address in EBX, which
    // lies in the identity-mapped RAM below 4 GiB; nobody writes to it.
    let read = |at: usize| unsafe { core::ptr::read_unaligned((info + at) as *const u32) };
    (boot_magic() == 0x2BAD_B002 && read(0) & (1 << flag) != 0).then(|| read(offset))
}

/// The command line, empty if there is none or it is not UTF-8.
#[must_use]
pub fn cmdline() -> &'static str {
    let Some(at) = info_field(2, 16) else { return "" };
    // SAFETY: multiboot promises a zero-terminated string at this address, which stays in place and is not written.
    let text = unsafe { CStr::from_ptr(at as usize as *const _) };
    text.to_str().unwrap_or_default()
}

/// Whether `word` stands in the command line, between blanks.
#[must_use]
pub fn has_word(word: &str) -> bool {
    cmdline().split_ascii_whitespace().any(|w| w == word)
}

/// The decimal number of `key=NUMBER` in the command line.
#[must_use]
pub fn word_value(key: &str) -> Option<u64> {
    let mut words = cmdline().split_ascii_whitespace();
    words.find_map(|w| w.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
}

/// The boot loader's memory map: (address, bytes, type), type 1 being RAM.
pub fn memory_map() -> impl Iterator<Item = (u64, u64, u32)> {
    let bytes = info_field(6, 44).unwrap_or_default() as usize;
    let start = info_field(6, 48).unwrap_or_default() as usize;
    let mut at = start;
    core::iter::from_fn(move || {
        if at >= start + bytes {
            return None;
        }
        // SAFETY: multiboot promises `bytes` bytes of entries here: a size, then address, length (8 bytes each) and
        // type (4); `at` is the start of one of them.
        let entry = unsafe {
            let read64 = |offset: usize| core::ptr::read_unaligned((at + offset) as *const u64);
            let read32 = |offset: usize| core::ptr::read_unaligned((at + offset) as *const u32);
            let entry = (read64(4), read64(12), read32(20));
            at += read32(0) as usize + 4;
            entry
        };
        Some(entry)
    })
}

/// Local APIC ids of the processors that can be used, as ACPI's MADT lists them; none where there is no ACPI.
///
/// ACPI 6.5, 5.2.5.1 "Finding the RSDP on IA-PC Systems", 5.2.12.2 "Processor Local APIC Structure".
pub fn local_apics() -> impl Iterator<Item = u32> {
    let word = |at: usize| {
        // SAFETY: reads of the firmware's tables, which lie in RAM below 4 GiB, all of which is mapped.
        unsafe { core::ptr::read_unaligned(at as *const u32) }
    };
    let byte = move |at: usize| word(at) & 0xFF;
    let root = (0xE_0000..0x10_0000).step_by(16).find(|at| word(*at) == tag(*b"RSD ") && word(at + 4) == tag(*b"PTR "));
    let table = root.and_then(|root| {
        let rsdt = word(root + 16) as usize;
        let entries = (rsdt + 36..rsdt + word(rsdt + 4) as usize).step_by(4);
        entries.map(|entry| word(entry) as usize).find(|table| word(*table) == tag(*b"APIC"))
    });
    let mut at = table.map_or(0, |table| table + 44);
    let end = table.map_or(0, |table| table + word(table + 4) as usize);
    core::iter::from_fn(move || {
        while at < end {
            let entry = at;
            at += byte(entry + 1).max(2) as usize;
            if byte(entry) == 0 && word(entry + 4) & 1 != 0 {
                return Some(byte(entry + 3));
            }
        }
        None
    })
}

/// The signature of a table as a number.
fn tag(name: [u8; 4]) -> u32 {
    u32::from_le_bytes(name)
}
