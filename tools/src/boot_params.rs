//! Linux booted without us, for the benchmark: its boot parameters and where its parts go.
//!
//! The Linux/x86 boot protocol (Documentation/arch/x86/boot.rst), 32-bit entry: the set-up header is copied from the
//! bzImage into the "zero page", whose memory map the boot sector fills from the firmware's.

use crate::disk::{HANDOVER_AT, HANDOVER_BYTES, Load, MapPlace, Plan};
use crate::failure::{Failure, Outcome};

const SETUP_SECTS: usize = 0x1F1;
const HEADER: usize = 0x1F1;
const JUMP: usize = 0x200;
const MAGIC: usize = 0x202;
const TYPE_OF_LOADER: usize = 0x210;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21C;
const CMD_LINE_PTR: usize = 0x228;
const E820_ENTRIES: u32 = 0x1E8;
const E820_TABLE: u32 = 0x2D0;
const KERNEL_AT: u32 = 0x10_0000;
const CMDLINE_AT: u32 = 0x2_0000;

/// The plan that boots `kernel` (a bzImage) natively, with `initrd` at physical address `initrd_at`.
pub fn plan<'a>(kernel: &'a [u8], initrd: &'a [u8], initrd_at: u32, cmdline: &'a [u8]) -> Outcome<Plan<'a>> {
    let bad = || Failure::usage("the native kernel is not a bzImage");
    if kernel.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
        return Err(bad());
    }
    let setup = match kernel.get(SETUP_SECTS) {
        None | Some(0) => 4,
        Some(&n) => usize::from(n),
    };
    let protected = kernel.get((setup + 1) * 512..).ok_or_else(bad)?;
    // The header ends where the short jump at its start leads.
    let jump = kernel.get(JUMP + 1).copied().ok_or_else(bad)?;
    let end = JUMP + 2 + usize::from(jump);
    let mut page = vec![0; HANDOVER_BYTES];
    put(&mut page, HEADER, kernel.get(HEADER..end).ok_or_else(bad)?)?;
    put(&mut page, TYPE_OF_LOADER, &[0xFF])?;
    put(&mut page, RAMDISK_IMAGE, &initrd_at.to_le_bytes())?;
    put(&mut page, RAMDISK_SIZE, &size(initrd)?.to_le_bytes())?;
    put(&mut page, CMD_LINE_PTR, &CMDLINE_AT.to_le_bytes())?;
    Ok(Plan {
        entry: KERNEL_AT,
        ebx: 0,
        esi: HANDOVER_AT,
        zero_tsc: true,
        handover: page,
        map: MapPlace { at: E820_TABLE, stride: 20, count_at: E820_ENTRIES, most: 128 },
        loads: vec![
            Load { at: CMDLINE_AT, bytes: cmdline, memory: size(cmdline)? + 4 },
            Load { at: KERNEL_AT, bytes: protected, memory: size(protected)? },
            Load { at: initrd_at, bytes: initrd, memory: size(initrd)? },
        ],
    })
}

fn put(page: &mut [u8], at: usize, bytes: &[u8]) -> Outcome<()> {
    let end = at + bytes.len();
    let to = page.get_mut(at..end).ok_or_else(|| Failure::usage("the native kernel's header is too long"))?;
    to.copy_from_slice(bytes);
    Ok(())
}

fn size(bytes: &[u8]) -> Outcome<u32> {
    u32::try_from(bytes.len()).map_err(|_| Failure::usage("a boot file is larger than 4 GiB"))
}
