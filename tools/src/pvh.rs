//! The hypervisor booted from the direct disk: its segments, the pack, and PVH's start info.
//!
//! `hvm_start_info` version 1 (Xen public/arch-x86/hvm/start_info.h), which EBX points to at the entry: 56 bytes, then
//! here the list of one module (the pack), then the memory map that the boot sector fills from the firmware's.

use crate::disk::{HANDOVER_AT, HANDOVER_BYTES, Load, MapPlace, Plan};
use crate::elf::Executable;
use crate::failure::{Failure, Outcome};

const MAGIC: u32 = 0x336E_C578;
const VERSION: u32 = 1;
const MODULES: u32 = 0x40;
const MAP: u32 = 0x100;
const MAP_COUNT: u32 = 48;
const MAP_STRIDE: u32 = 24;
/// Modules are put at a multiple of this.
const ALIGN: u64 = 2 << 20;
/// Everything that is loaded ends below this: the hole for devices may begin there.
const END: u64 = 3 << 30;

/// Physical address that the pack is loaded at: behind the image.
pub fn pack_at(image: &Executable) -> u64 {
    image.end().next_multiple_of(ALIGN)
}

/// The plan that boots `image` with `pack` as its module.
pub fn plan<'a>(image: &'a Executable, pack: &'a [u8]) -> Outcome<Plan<'a>> {
    let too_large = || Failure::usage("the guests' images are too large: all of them must fit below 3 GiB");
    let at = pack_at(image);
    let size = u64::try_from(pack.len()).map_err(|_| too_large())?;
    if at.saturating_add(size) > END {
        return Err(too_large());
    }
    let word = |n: u64| u32::try_from(n).map_err(|_| too_large());
    let mut loads = Vec::new();
    for segment in &image.segments {
        loads.push(Load { at: word(segment.at)?, bytes: &segment.bytes, memory: word(segment.memory)? });
    }
    loads.push(Load { at: word(at)?, bytes: pack, memory: word(size)? });
    Ok(Plan {
        entry: word(image.entry)?,
        ebx: HANDOVER_AT,
        esi: 0,
        zero_tsc: false,
        handover: start_info(at, size),
        map: MapPlace {
            at: MAP,
            stride: MAP_STRIDE,
            count_at: MAP_COUNT,
            most: u32::try_from(HANDOVER_BYTES).map_err(|_| too_large())?.saturating_sub(MAP) / MAP_STRIDE,
        },
        loads,
    })
}

fn start_info(pack_at: u64, pack_bytes: u64) -> Vec<u8> {
    let address = |offset: u32| u64::from(HANDOVER_AT + offset);
    let mut out = Vec::new();
    for field in [MAGIC, VERSION, 0, 1] {
        out.extend(field.to_le_bytes());
    }
    // Modules, command line, RSDP (none: it is to be searched for), memory map, and its count and a reserved word.
    for field in [address(MODULES), 0, 0, address(MAP), 0] {
        out.extend(field.to_le_bytes());
    }
    out.resize(MODULES as usize, 0);
    // Address, size, command line, reserved.
    for field in [pack_at, pack_bytes, 0, 0] {
        out.extend(field.to_le_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{pack_at, plan};
    use crate::elf::{Executable, Segment};

    #[test]
    fn the_pack_lies_behind_the_image_and_start_info_names_it() {
        let segment = |at, memory| Segment { at, bytes: vec![1; 100], memory };
        let image =
            Executable { segments: vec![segment(0x20_0000, 0x1000), segment(0x3F_F000, 0x2000)], entry: 0x20_0010 };
        assert_eq!(pack_at(&image), 0x60_0000);
        let pack = vec![5; 8192];
        let plan = plan(&image, &pack).unwrap();
        assert_eq!(plan.loads.iter().map(|l| l.at).collect::<Vec<_>>(), [0x20_0000, 0x3F_F000, 0x60_0000]);
        assert_eq!(plan.handover[..4], 0x336E_C578u32.to_le_bytes());
        assert_eq!(plan.handover[16..24], 0x8C40u64.to_le_bytes());
        assert_eq!(plan.handover[40..48], 0x8D00u64.to_le_bytes());
        assert_eq!(plan.handover[64..72], 0x60_0000u64.to_le_bytes());
        assert_eq!(plan.handover[72..80], 8192u64.to_le_bytes());
    }
}
