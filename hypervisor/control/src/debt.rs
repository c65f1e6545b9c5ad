//! What listening to a line costs, and who pays for it.
//!
//! Time that a frame took which proves the key is its client's. All other time is a stranger's, and strangers get one part
//! in [`PART`] of all time. Whose a frame is shows at its end: until then what it takes is kept apart, so that one that
//! proves the key pays for itself and for nothing that came before it. Whoever slows the bytes of another's frame
//! pays for what they could not take by themselves. A hello proves nothing, and is its client's once the next frame does.

/// Of all time, the part that strangers get.
pub const PART: u64 = 10;

/// What strangers owe, in ticks.
#[derive(Debug, Default)]
pub struct Debt {
    /// Ticks that have to pass until what they took is one part in [`PART`].
    owed: u64,
    /// The same for the frame that is coming.
    coming: u64,
    /// Its bytes; zeros stand around frames.
    bytes: u64,
    /// What the last frame took that was answered and proved nothing, as far as it may be a client's.
    pledged: u64,
    /// All time before is accounted for.
    at: u64,
}

impl Debt {
    /// Nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { owed: 0, coming: 0, bytes: 0, pledged: 0, at: 0 }
    }

    /// The line was not listened to until `now`: what is owed still.
    pub fn pay(&mut self, now: u64) -> u64 {
        let passed = self.pass(now);
        let rest = passed.saturating_sub(self.owed);
        self.owed = self.owed.saturating_sub(passed);
        self.coming = self.coming.saturating_sub(rest);
        self.owed.saturating_add(self.coming)
    }

    /// The line was listened to until `now`.
    pub fn listen(&mut self, now: u64) {
        let took = self.pass(now);
        self.coming = self.coming.saturating_add(took.saturating_mul(PART));
    }

    /// The line was listened to until this byte came.
    pub fn byte(&mut self, byte: u8, now: u64) {
        self.listen(now);
        self.bytes += u64::from(byte != 0);
    }

    /// A frame has ended, if one was coming, and proves nothing.
    pub fn ended(&mut self) {
        if self.bytes != 0 {
            self.settle(0);
        }
    }

    /// A frame has ended that is answered, until `now`, and proves nothing: a hello. If what comes next proves the key it was
    /// its client's, and `each` of its bytes and the answer's `pause` may have taken so long.
    pub fn answered(&mut self, now: u64, each: u64, pause: u64) {
        self.listen(now);
        self.pledged = self.coming.min(self.bytes.saturating_mul(each).saturating_add(pause).saturating_mul(PART));
        self.settle(0);
    }

    /// A frame has ended that proves the key: `each` of its bytes may have taken so long, and its client has all time until
    /// `now`, and `pause` more to be heard again.
    pub fn proved(&mut self, now: u64, each: u64, pause: u64) {
        self.owed = self.owed.saturating_sub(core::mem::take(&mut self.pledged));
        self.settle(self.bytes.saturating_mul(each).saturating_add(pause));
        self.at = now.saturating_add(pause);
    }

    /// Of what the frame took, so many ticks are nobody's debt.
    fn settle(&mut self, free: u64) {
        let coming = core::mem::take(&mut self.coming);
        self.owed = self.owed.saturating_add(coming.saturating_sub(free.saturating_mul(PART)));
        self.bytes = 0;
    }

    fn pass(&mut self, now: u64) -> u64 {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::{Debt, PART};
    use proptest::prelude::{Strategy, any, prop_assert, proptest};

    extern crate std;

    /// What a byte's time and a client's pause are here.
    const EACH: u64 = 10;
    const PAUSE: u64 = 50;

    #[test]
    fn a_frame_that_proves_the_key_pays_for_itself_only() {
        let mut debt = Debt::new();
        let frame = |debt: &mut Debt, from: u64, bytes: &[u8], each: u64| {
            let mut now = from;
            for byte in bytes {
                now += each;
                debt.byte(*byte, now);
            }
            now
        };
        let now = frame(&mut debt, 0, &[0, 1, 2, 3, 0], 8);
        debt.proved(now, EACH, PAUSE);
        assert_eq!(debt.pay(now), 0);
        // Its client's pause is no debt, but what is heard behind it.
        debt.listen(now + PAUSE);
        assert_eq!(debt.pay(now + PAUSE), 0);
        let now = frame(&mut debt, now + PAUSE, &[9, 9, 9, 0], 8);
        debt.ended();
        assert_eq!(debt.pay(now), 32 * PART);
        let now = frame(&mut debt, now, &[1, 2, 3, 0], 8);
        assert_eq!(debt.pay(now), 64 * PART, "nobody knows whose it is");
        debt.proved(now, EACH, 0);
        assert_eq!(debt.pay(now), 34 * PART, "three bytes may take 30");
        // A frame does not end before it has begun.
        let now = frame(&mut debt, now, &[0, 0], 8);
        debt.ended();
        let now = frame(&mut debt, now, &[1, 2, 0], 1);
        debt.proved(now, EACH, 0);
        assert_eq!(debt.pay(now), 34 * PART);
        assert_eq!(debt.pay(now + 34 * PART), 0);
        // A hello is its client's once it is known whose it is; one before it stays a stranger's.
        let mut debt = Debt::new();
        let now = frame(&mut debt, 0, &[1, 2, 3, 0], 8);
        debt.answered(now, EACH, PAUSE);
        let now = frame(&mut debt, now, &[1, 2, 3, 0], 8);
        debt.answered(now + 8, EACH, PAUSE);
        assert_eq!(debt.pay(now + 8), 72 * PART);
        let now = frame(&mut debt, now + 8, &[4, 5, 6, 0], 8);
        debt.proved(now, EACH, PAUSE);
        assert_eq!(debt.pay(now), 32 * PART);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Rest(u64),
        Byte(u8, u64),
        Ended,
        Answered,
        Proved,
    }

    fn step() -> impl Strategy<Value = Step> {
        (0..5_u8, any::<u8>(), 1..200_u64).prop_map(|(which, byte, ticks)| match which {
            0 => Step::Rest(ticks),
            1 => Step::Byte(byte, ticks),
            2 => Step::Ended,
            3 => Step::Answered,
            _ => Step::Proved,
        })
    }

    proptest! {
        /// Whatever comes, who listens only while little is owed gives strangers one part of the time and what is tolerated.
        #[test]
        fn strangers_get_their_part(steps in proptest::collection::vec(step(), 1..300)) {
            const TOLERATED: u64 = 1000;
            let (mut debt, mut now, mut heard, mut free, mut pledged) = (Debt::new(), 0, 0, 0, 0);
            for step in steps {
                match step {
                    Step::Rest(ticks) => now += ticks,
                    Step::Byte(byte, ticks) => {
                        while debt.pay(now) > TOLERATED {
                            now += 1;
                        }
                        now += ticks;
                        heard += ticks;
                        debt.byte(byte, now);
                    }
                    Step::Ended => debt.ended(),
                    Step::Answered => {
                        pledged = debt.bytes * EACH + PAUSE;
                        debt.answered(now, EACH, PAUSE);
                    }
                    Step::Proved => {
                        free += debt.bytes * EACH + 2 * PAUSE + core::mem::take(&mut pledged);
                        debt.proved(now, EACH, PAUSE);
                    }
                }
                prop_assert!(heard <= now / PART + TOLERATED / PART + 200 + free, "{heard} of {now}, {free} free");
            }
        }
    }
}
