//! Which values control registers can take, and what else changes with them.
//!
//! SDM vol. 3A 2.5 "Control Registers", 4.1.1 "Three Paging Modes", 4.4.1 "PDPTE Registers"; vol. 2B "XSETBV".

use bulkhead_arch::{Cr0, Cr4, Efer, Xcr0};

/// The guest's value is not allowed: #GP(0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Illegal;

/// The registers that decide the processor's mode, and whether CS is 64-bit code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mode {
    /// CR0 as the guest sees it.
    pub cr0: Cr0,
    /// CR3.
    pub cr3: u64,
    /// CR4 as the guest sees it.
    pub cr4: Cr4,
    /// EFER.
    pub efer: Efer,
    /// CS.L.
    pub long_code: bool,
}

impl Mode {
    /// Whether PAE paging is in use, so that the processor holds four page-directory-pointer entries.
    #[must_use]
    pub const fn is_pae(&self) -> bool {
        self.cr0.contains(Cr0::PG) && self.cr4.contains(Cr4::PAE) && !self.efer.contains(Efer::LMA)
    }

    /// Whether the processor loads those four, coming here from `before` by a write of CR0 or CR4.
    #[must_use]
    pub fn loads_pdptes(&self, before: &Self) -> bool {
        let in_cr0 = (self.cr0 ^ before.cr0).intersects(Cr0::CD | Cr0::NW | Cr0::PG);
        let in_cr4 = (self.cr4 ^ before.cr4).intersects(Cr4::PAE | Cr4::PGE | Cr4::PSE | Cr4::SMEP);
        self.is_pae() && (in_cr0 || in_cr4)
    }

    /// The mode after CR0 was written with `value`.
    ///
    /// # Errors
    /// [`Illegal`] if the processor refuses the value.
    pub fn with_cr0(self, value: u64) -> Result<Self, Illegal> {
        if value >> 32 != 0 {
            return Err(Illegal);
        }
        let cr0 = Cr0::from_bits_truncate(value) | Cr0::ET;
        let paging = cr0.contains(Cr0::PG);
        let was_paging = self.cr0.contains(Cr0::PG);
        let illegal = paging && !cr0.contains(Cr0::PE)
            || cr0.contains(Cr0::NW) && !cr0.contains(Cr0::CD)
            || !paging && self.cr4.contains(Cr4::PCIDE)
            || !paging && was_paging && self.efer.contains(Efer::LMA) && self.long_code
            || paging
                && !was_paging
                && self.efer.contains(Efer::LME)
                && (!self.cr4.contains(Cr4::PAE) || self.long_code);
        if illegal {
            return Err(Illegal);
        }
        let mut efer = self.efer;
        efer.set(Efer::LMA, paging && efer.contains(Efer::LME));
        Ok(Self { cr0, efer, ..self })
    }

    /// The mode after CR4 was written with `value`, of which `allowed` bits can be set.
    ///
    /// # Errors
    /// [`Illegal`] if the processor refuses the value.
    pub fn with_cr4(self, value: u64, allowed: Cr4) -> Result<Self, Illegal> {
        let cr4 = Cr4::from_bits(value).filter(|cr4| allowed.contains(*cr4)).ok_or(Illegal)?;
        let long = self.efer.contains(Efer::LMA);
        let enables_pcid = cr4.contains(Cr4::PCIDE) && !self.cr4.contains(Cr4::PCIDE);
        if long && !cr4.contains(Cr4::PAE) || enables_pcid && (!long || self.cr3 & 0xFFF != 0) {
            return Err(Illegal);
        }
        Ok(Self { cr4, ..self })
    }

    /// The mode after EFER was written with `value`.
    ///
    /// # Errors
    /// [`Illegal`] if the processor refuses the value.
    pub fn with_efer(self, value: u64) -> Result<Self, Illegal> {
        let changeable = Efer::SCE | Efer::LME | Efer::NXE;
        let efer = Efer::from_bits(value).filter(|efer| (changeable | Efer::LMA).contains(*efer)).ok_or(Illegal)?;
        let toggles_long = (efer ^ self.efer).contains(Efer::LME);
        if toggles_long && self.cr0.contains(Cr0::PG) {
            return Err(Illegal);
        }
        // LMA follows from LME and paging; what a guest writes there is ignored.
        Ok(Self { efer: (efer & changeable) | (self.efer & Efer::LMA), ..self })
    }
}

/// Checks a value for XCR0 of which `allowed` can be set.
///
/// # Errors
/// [`Illegal`] if the processor refuses the value.
pub fn check_xcr0(value: u64, allowed: Xcr0) -> Result<Xcr0, Illegal> {
    let xcr0 = Xcr0::from_bits(value).filter(|xcr0| allowed.contains(*xcr0)).ok_or(Illegal)?;
    let avx512 = Xcr0::OPMASK | Xcr0::ZMM_HI256 | Xcr0::HI16_ZMM;
    let wide = xcr0.intersects(avx512);
    let illegal = !xcr0.contains(Xcr0::X87)
        || xcr0.contains(Xcr0::AVX) && !xcr0.contains(Xcr0::SSE)
        || wide && !xcr0.contains(avx512 | Xcr0::AVX);
    if illegal { Err(Illegal) } else { Ok(xcr0) }
}

/// Checks a page attribute table: eight types, each UC, WC, WT, WP, WB or UC-. SDM vol. 3A 12.12.2 "IA32_PAT MSR".
///
/// # Errors
/// [`Illegal`] if one is none of these.
pub fn check_pat(value: u64) -> Result<(), Illegal> {
    let legal = value.to_le_bytes().into_iter().all(|entry| matches!(entry, 0 | 1 | 4..=7));
    if legal { Ok(()) } else { Err(Illegal) }
}

#[cfg(test)]
mod tests {
    use super::{Illegal, Mode, check_pat, check_xcr0};
    use bulkhead_arch::{Cr0, Cr4, Efer, Xcr0};

    const RESET: Mode = Mode { cr0: Cr0::ET, cr3: 0, cr4: Cr4::empty(), efer: Efer::empty(), long_code: false };

    #[test]
    fn the_way_into_long_mode_and_out() {
        let mode = RESET.with_cr4(Cr4::PAE.bits(), Cr4::all()).unwrap().with_efer(0x100).unwrap();
        let long = mode.with_cr0(0x8000_0001).unwrap();
        assert!(long.efer.contains(Efer::LMA));
        assert_eq!(long.with_cr4(0, Cr4::all()), Err(Illegal), "PAE stays in long mode");
        assert_eq!(long.with_efer(0), Err(Illegal), "LME stays under paging");
        assert_eq!(Mode { long_code: true, ..long }.with_cr0(1), Err(Illegal), "not out of 64-bit code");
        assert!(!long.with_cr0(1).unwrap().efer.contains(Efer::LMA));
        assert_eq!(RESET.with_efer(0x100).unwrap().with_cr0(0x8000_0001), Err(Illegal), "PAE is needed");
    }

    #[test]
    fn what_concerns_paging_loads_the_pointers_anew() {
        let flat = RESET.with_cr0(1).unwrap().with_cr4(Cr4::PAE.bits(), Cr4::all()).unwrap();
        let pae = flat.with_cr0(0x8000_0001).unwrap();
        assert!(pae.loads_pdptes(&flat) && !flat.loads_pdptes(&pae));
        for (bit, loads) in [(Cr0::TS, false), (Cr0::WP, false), (Cr0::CD, true)] {
            let next = pae.with_cr0(pae.cr0.bits() | bit.bits()).unwrap();
            assert_eq!(next.loads_pdptes(&pae), loads, "{bit:?}");
        }
        for (bit, loads) in [(Cr4::OSFXSR, false), (Cr4::TSD, false), (Cr4::PGE, true), (Cr4::SMEP, true)] {
            let next = pae.with_cr4(pae.cr4.bits() | bit.bits(), Cr4::all()).unwrap();
            assert_eq!(next.loads_pdptes(&pae), loads, "{bit:?}");
        }
        let long = flat.with_efer(0x100).unwrap().with_cr0(0x8000_0001).unwrap();
        assert!(!long.loads_pdptes(&flat), "long mode has no such registers");
    }

    #[test]
    fn illegal_combinations() {
        assert_eq!(RESET.with_cr0(0x8000_0000), Err(Illegal), "paging without protection");
        assert_eq!(RESET.with_cr0(0x2000_0000), Err(Illegal), "NW without CD");
        assert_eq!(RESET.with_cr0(1 << 32), Err(Illegal));
        assert_eq!(RESET.with_cr4(Cr4::VMXE.bits(), Cr4::PAE), Err(Illegal));
        assert_eq!(RESET.with_cr4(1 << 15, Cr4::all()), Err(Illegal));
        assert_eq!(RESET.with_cr4(Cr4::PCIDE.bits(), Cr4::all()), Err(Illegal), "PCID outside long mode");
        assert_eq!(RESET.with_efer(1 << 12), Err(Illegal), "SVM");
    }

    #[test]
    fn extended_control_register() {
        let all = Xcr0::all();
        for (value, legal) in [
            (1, true),
            (0, false),
            (2, false),
            (3, true),
            (5, false),
            (7, true),
            (0xE7, true),
            (0xE3, false),
            (0x27, false),
        ] {
            assert_eq!(check_xcr0(value, all).is_ok(), legal, "{value:#x}");
        }
        assert!(check_xcr0(7, Xcr0::X87 | Xcr0::SSE).is_err());
        assert!(check_pat(0x0007_0406_0007_0406).is_ok() && check_pat(2).is_err());
    }
}
