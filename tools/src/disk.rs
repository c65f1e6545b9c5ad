//! The raw disk that `boot/direct/boot.s` boots a machine from.
//!
//! Sectors 0 and 1 are the loader, sectors 2 to 15 its table (at 0x8000) and the hand-over page (at 0x8C00), and from
//! sector 16 on come the segments, each at a sector boundary.

use crate::failure::{Failure, Outcome};

/// Bytes of a sector.
const SECTOR: usize = 512;
/// Sectors that the firmware loads: loader, table and hand-over page.
const HEAD_SECTORS: usize = 16;
/// Bytes of the loader.
const LOADER: usize = 1024;
/// Where the table is, in the disk's bytes.
const TABLE: usize = LOADER;
/// Where the table's list of segments begins.
const FIRST_SEGMENT: usize = TABLE + 36;
/// Where the hand-over page is, in the disk's bytes.
const HANDOVER: usize = 0x1000;
/// Bytes of the hand-over page.
pub const HANDOVER_BYTES: usize = 4096;
/// Where the hand-over page is in memory.
pub const HANDOVER_AT: u32 = 0x8C00;
/// Heads and sectors a track of the drive; the cylinders follow from its size.
pub const HEADS: usize = 16;
/// Sectors of a track.
pub const TRACK: usize = 63;

/// Bytes to be loaded at a physical address below 4 GiB.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Physical address.
    pub at: u32,
    /// Content.
    pub bytes: &'a [u8],
    /// Bytes in memory; what is beyond the content is zeroed.
    pub memory: u32,
}

/// Where the loader puts the firmware's memory map: entries of 20 bytes (address, length, type).
#[derive(Clone, Copy, Debug)]
pub struct MapPlace {
    /// Offset of the first in the hand-over page.
    pub at: u32,
    /// Bytes from one to the next.
    pub stride: u32,
    /// Offset of their number (16 bits).
    pub count_at: u32,
    /// Most that fit.
    pub most: u32,
}

/// What the loader is to do.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// 32-bit address to jump to.
    pub entry: u32,
    /// EBX there.
    pub ebx: u32,
    /// ESI there.
    pub esi: u32,
    /// Zero the time-stamp counter right before.
    pub zero_tsc: bool,
    /// The hand-over page.
    pub handover: Vec<u8>,
    /// Where in it the memory map goes.
    pub map: MapPlace,
    /// What to load; in ascending order, since what a segment's last sector has beyond its end is zero.
    pub loads: Vec<Load<'a>>,
}

/// A disk, whole cylinders of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Content.
    pub bytes: Vec<u8>,
    /// Cylinders of [`HEADS`] times [`TRACK`] sectors.
    pub cylinders: usize,
}

/// Writes the disk for `plan` with the assembled `loader`.
pub fn write(loader: &[u8], plan: &Plan<'_>) -> Outcome<Disk> {
    if loader.len() != LOADER || plan.handover.len() > HANDOVER_BYTES {
        return Err(Failure::failed(format!("the boot sector has {} bytes instead of {LOADER}", loader.len())));
    }
    let mut bytes = loader.to_vec();
    bytes.extend(table(plan)?);
    if bytes.len() > HANDOVER {
        return Err(Failure::failed(format!("{} segments are too many for the boot sector", plan.loads.len())));
    }
    bytes.resize(HANDOVER, 0);
    bytes.extend(&plan.handover);
    bytes.resize(HEAD_SECTORS * SECTOR, 0);
    for load in &plan.loads {
        bytes.extend(load.bytes);
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
    }
    let cylinder = HEADS * TRACK * SECTOR;
    let cylinders = bytes.len().div_ceil(cylinder).max(2);
    bytes.resize(cylinders * cylinder, 0);
    Ok(Disk { bytes, cylinders })
}

fn table(plan: &Plan<'_>) -> Outcome<Vec<u8>> {
    let in_page = |offset: u32| HANDOVER_AT + offset;
    let map = plan.map;
    let head = [
        plan.entry,
        plan.ebx,
        plan.esi,
        u32::from(plan.zero_tsc),
        in_page(map.at),
        map.stride,
        in_page(map.count_at),
        map.most,
        word(plan.loads.len())?,
    ];
    let mut out: Vec<u8> = head.into_iter().flat_map(u32::to_le_bytes).collect();
    debug_assert_eq!(TABLE + out.len(), FIRST_SEGMENT);
    let mut sector = HEAD_SECTORS;
    for load in &plan.loads {
        let sectors = load.bytes.len().div_ceil(SECTOR);
        let loaded = word(sectors * SECTOR)?;
        let zero = load.memory.saturating_sub(loaded).div_ceil(4);
        for field in [word(sector)?, word(sectors)?, load.at, zero] {
            out.extend(field.to_le_bytes());
        }
        sector += sectors;
    }
    Ok(out)
}

fn word(n: usize) -> Outcome<u32> {
    u32::try_from(n).map_err(|_| Failure::usage("this machine's images are too large for the direct boot disk"))
}

#[cfg(test)]
mod tests {
    use super::{Load, MapPlace, Plan, write};

    fn plan<'a>(loads: Vec<Load<'a>>) -> Plan<'a> {
        Plan {
            entry: 0x10_0000,
            ebx: 0x8C00,
            esi: 0,
            zero_tsc: true,
            handover: vec![7; 64],
            map: MapPlace { at: 0x100, stride: 24, count_at: 48, most: 32 },
            loads,
        }
    }

    fn words(bytes: &[u8]) -> Vec<u32> {
        bytes.chunks_exact(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect()
    }

    #[test]
    fn segments_follow_the_head_at_sector_boundaries() {
        let loads = vec![
            Load { at: 0x20_0000, bytes: &[1; 513], memory: 4096 },
            Load { at: 0x30_0000, bytes: &[], memory: 6 },
            Load { at: 0x40_0000, bytes: &[2; 512], memory: 512 },
        ];
        let disk = write(&[0x90; 1024], &plan(loads)).unwrap();
        assert_eq!(disk.bytes.len(), disk.cylinders * 16 * 63 * 512);
        let table = words(&disk.bytes[1024..1024 + 36 + 48]);
        assert_eq!(&table[..9], &[0x10_0000, 0x8C00, 0, 1, 0x8D00, 24, 0x8C30, 32, 3]);
        assert_eq!(&table[9..13], &[16, 2, 0x20_0000, (4096 - 1024) / 4]);
        assert_eq!(&table[13..17], &[18, 0, 0x30_0000, 2]);
        assert_eq!(&table[17..21], &[18, 1, 0x40_0000, 0]);
        assert_eq!(&disk.bytes[4096..4160], &[7; 64]);
        assert_eq!(disk.bytes[16 * 512 + 512], 1);
        assert_eq!(disk.bytes[16 * 512 + 513], 0);
        assert_eq!(disk.bytes[18 * 512..19 * 512], [2; 512]);
    }

    #[test]
    fn a_loader_of_the_wrong_size_is_refused() {
        assert!(write(&[0; 512], &plan(vec![])).is_err());
    }
}
