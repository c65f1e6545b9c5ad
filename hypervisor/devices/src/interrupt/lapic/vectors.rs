//! A set of the 256 vectors: IRR, ISR, TMR. SDM vol. 3A 11.8.4 "Interrupt Acceptance for Fixed Interrupts".

/// A set of vectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct VectorSet([u64; 4]);

impl VectorSet {
    pub(super) const EMPTY: Self = Self([0; 4]);

    /// Bit `n` is vector `n`.
    pub(super) const fn bits(self) -> [u64; 4] {
        self.0
    }

    pub(super) fn insert(&mut self, vector: u8) {
        if let Some(word) = self.0.get_mut(usize::from(vector >> 6)) {
            *word |= 1 << (vector & 63);
        }
    }

    pub(super) fn remove(&mut self, vector: u8) {
        if let Some(word) = self.0.get_mut(usize::from(vector >> 6)) {
            *word &= !(1 << (vector & 63));
        }
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        self.0.get(usize::from(vector >> 6)).is_some_and(|word| word & 1 << (vector & 63) != 0)
    }

    /// The highest vector: the one of highest priority.
    pub(super) const fn highest(&self) -> Option<u8> {
        let [w0, w1, w2, w3] = self.0;
        let (base, word) = if w3 != 0 {
            (192, w3)
        } else if w2 != 0 {
            (128, w2)
        } else if w1 != 0 {
            (64, w1)
        } else {
            (0, w0)
        };
        if word == 0 {
            return None;
        }
        let [bit, ..] = (63 ^ word.leading_zeros()).to_le_bytes();
        Some(base | bit)
    }

    /// The 32-bit register with the low three bits of `index` as its number.
    pub(super) fn register(&self, index: u8) -> u32 {
        let word = self.0.get(usize::from(index >> 1 & 3)).copied().unwrap_or(0);
        let [b0, b1, b2, b3, ..] = (word >> (32 * (index & 1))).to_le_bytes();
        u32::from_le_bytes([b0, b1, b2, b3])
    }
}

#[cfg(test)]
mod tests {
    use super::VectorSet;

    #[test]
    fn every_vector_has_its_bit() {
        for vector in 0..=255_u8 {
            let mut set = VectorSet::EMPTY;
            set.insert(vector);
            assert!(set.contains(vector));
            assert_eq!(set.highest(), Some(vector));
            for index in 0..8 {
                let expected = if index == vector / 32 { 1 << (vector % 32) } else { 0 };
                assert_eq!(set.register(index), expected);
            }
            set.insert(vector / 2);
            assert_eq!(set.highest(), Some(vector));
            set.remove(vector);
            set.remove(vector / 2);
            assert_eq!(set, VectorSet::EMPTY);
            assert_eq!(set.highest(), None);
        }
    }
}
