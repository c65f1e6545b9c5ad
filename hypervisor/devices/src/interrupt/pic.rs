//! The pair of 8259A interrupt controllers of a PC.
//!
//! Intel 8259A data sheet (231468-003); ports and edge/level control as in the 82371AB (PIIX4) data sheet (290562-001),
//! "Interrupt Controller Registers". The second controller hangs on input 2 of the first.
//!
//! Emulated: ICW1 to ICW4, OCW1 to OCW3, all end-of-interrupt and rotation commands, automatic EOI, special mask mode,
//! special fully nested mode, poll mode, spurious interrupts, ELCR.
//! Not emulated: MCS-80/85 mode (always 8086 mode), buffered mode, single mode (the cascade is wired), ICW1's LTIM bit (a
//! PC has the ELCR instead). A line that falls before its interrupt is acknowledged takes the request back, and INTR with
//! it: no spurious interrupt comes of that, as the acknowledge cycle takes no time here.
//!
//! | A guest tries | What happens |
//! |---|---|
//! | to break off an initialization | the controller requests nothing until it is completed |
//! | to acknowledge what is not there (poll mode) | it reads that there is nothing; no state changes |
//! | to end interrupts that are not in service | nothing |
//! | any value in any register | every state has a meaning; work per access is constant |

/// Registers of one controller.
#[derive(Clone, Debug)]
struct Chip {
    /// Inputs that are high.
    lines: u8,
    /// Edges that wait for their acknowledgement.
    latched: u8,
    in_service: u8,
    mask: u8,
    /// ELCR: inputs that are level-triggered.
    level: u8,
    /// Inputs that the ELCR can make level-triggered.
    level_allowed: u8,
    /// The input where the other controller hangs. It follows the other's output, hence is level-triggered.
    cascade: u8,
    /// The vector of input 0.
    base: u8,
    /// The input of lowest priority; the one above it has the highest.
    lowest: u8,
    expects: Expects,
    with_icw4: bool,
    without_icw3: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    poll: bool,
    read_in_service: bool,
}

/// Which word the next write to the odd port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expects {
    Icw2,
    Icw3,
    Icw4,
    /// Initialized.
    Ocw1,
}

impl Chip {
    /// As firmware leaves it: initialized, everything masked.
    const fn new(base: u8, level: u8, level_allowed: u8, cascade: u8) -> Self {
        Self {
            lines: 0,
            latched: 0,
            in_service: 0,
            mask: 0xFF,
            level,
            level_allowed,
            cascade,
            base,
            lowest: 7,
            expects: Expects::Ocw1,
            with_icw4: false,
            without_icw3: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            special_fully_nested: false,
            poll: false,
            read_in_service: false,
        }
    }

    fn set_input(&mut self, bit: u8, high: bool) {
        if !high {
            // "Edge and Level Triggered Modes": inputs must stay high until they are acknowledged.
            self.lines &= !bit;
            self.latched &= !bit;
        } else if self.lines & bit == 0 {
            self.lines |= bit;
            self.latched |= bit & !self.level_triggered();
        }
    }

    const fn level_triggered(&self) -> u8 {
        self.level | self.cascade
    }

    /// The interrupt request register.
    const fn requests(&self) -> u8 {
        self.latched | self.lines & self.level_triggered()
    }

    /// How far the highest-priority bit of `set` is from the highest priority; 8 if there is none.
    const fn rank(&self, set: u8) -> u32 {
        set.rotate_right(self.lowest as u32 + 1).trailing_zeros()
    }

    /// The bit of the input with this rank (0 to 7).
    const fn at_rank(&self, rank: u32) -> u8 {
        1_u8.rotate_left(self.lowest as u32 + 1 + rank)
    }

    /// The input (as its bit) for which the INT output is high.
    fn request(&self) -> Option<u8> {
        let requests = self.requests() & !self.mask;
        if requests == 0 || self.expects != Expects::Ocw1 {
            return None;
        }
        let blocking = if self.special_mask { self.in_service & !self.mask } else { self.in_service };
        let (rank, blocked_from) = (self.rank(requests), self.rank(blocking));
        let bit = self.at_rank(rank);
        let nested = self.special_fully_nested && bit == self.cascade && rank == blocked_from;
        (rank < blocked_from || nested).then_some(bit)
    }

    /// The acknowledge cycle for `bit`, which requests.
    fn acknowledge(&mut self, bit: u8) {
        self.latched &= !bit;
        if !self.auto_eoi {
            self.in_service |= bit;
        } else if self.rotate_on_auto_eoi {
            self.make_lowest(bit);
        }
    }

    /// The vector of the input `bit`; that of input 7, the spurious one, for none.
    fn vector(&self, bit: Option<u8>) -> u8 {
        self.base | bit.map_or(7, number)
    }

    const fn make_lowest(&mut self, bit: u8) {
        self.lowest = number(bit);
    }

    fn read_even(&mut self) -> u8 {
        if self.poll {
            return self.read_poll();
        }
        if self.read_in_service { self.in_service } else { self.requests() }
    }

    fn read_odd(&mut self) -> u8 {
        if self.poll { self.read_poll() } else { self.mask }
    }

    fn read_poll(&mut self) -> u8 {
        self.poll = false;
        match self.request() {
            Some(bit) => {
                self.acknowledge(bit);
                0x80 | number(bit)
            }
            None => 0,
        }
    }

    fn write_even(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.write_icw1(value);
        } else if value & 0x08 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    fn write_odd(&mut self, value: u8) {
        match self.expects {
            Expects::Icw2 => {
                self.base = value & 0xF8;
                self.expects = if self.without_icw3 { self.after_icw3() } else { Expects::Icw3 };
            }
            Expects::Icw3 => self.expects = self.after_icw3(),
            Expects::Icw4 => {
                self.auto_eoi = value & 0x02 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                self.expects = Expects::Ocw1;
            }
            Expects::Ocw1 => self.mask = value,
        }
    }

    const fn after_icw3(&self) -> Expects {
        if self.with_icw4 { Expects::Icw4 } else { Expects::Ocw1 }
    }

    fn write_icw1(&mut self, value: u8) {
        *self = Self {
            lines: self.lines,
            mask: 0,
            expects: Expects::Icw2,
            with_icw4: value & 0x01 != 0,
            without_icw3: value & 0x02 != 0,
            ..Self::new(self.base, self.level, self.level_allowed, self.cascade)
        };
    }

    fn write_ocw2(&mut self, value: u8) {
        let named = 1 << (value & 7);
        let rotate = value & 0x80 != 0;
        match (value >> 5) & 3 {
            // EOI of the highest in service. In special mask mode a masked one does not count.
            1 => {
                let candidates = if self.special_mask { self.in_service & !self.mask } else { self.in_service };
                if candidates != 0 {
                    let bit = self.at_rank(self.rank(candidates));
                    self.in_service &= !bit;
                    if rotate {
                        self.make_lowest(bit);
                    }
                }
            }
            // EOI of the named one.
            3 => {
                self.in_service &= !named;
                if rotate {
                    self.make_lowest(named);
                }
            }
            2 if rotate => self.make_lowest(named),
            0 => self.rotate_on_auto_eoi = rotate,
            _ => {}
        }
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        self.poll = value & 0x04 != 0;
        if value & 0x02 != 0 {
            self.read_in_service = value & 0x01 != 0;
        }
    }

    fn write_elcr(&mut self, value: u8) {
        self.level = value & self.level_allowed;
        self.latched &= !self.level;
    }
}

/// Number of the only bit that is set in `bit`.
const fn number(bit: u8) -> u8 {
    let [number, ..] = bit.trailing_zeros().to_le_bytes();
    number & 7
}

/// Both controllers and the edge/level control registers.
#[derive(Clone, Debug)]
pub struct PicPair {
    first: Chip,
    second: Chip,
    /// The INT output of the first, kept at hand.
    intr: bool,
}

impl PicPair {
    /// Ports of the first and the second controller, and of the edge/level control registers.
    pub const PORTS: [u16; 6] = [0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1];

    const CASCADE: u8 = 1 << 2;

    /// As firmware leaves them: vectors from 0x08 and 0x70 on, everything masked, the ACPI interrupt level-triggered.
    #[must_use]
    pub const fn new() -> Self {
        let sci = 1 << (crate::layout::SCI_LINE - 8);
        Self { first: Chip::new(0x08, 0, 0xF8, Self::CASCADE), second: Chip::new(0x70, sci, 0xDE, 0), intr: false }
    }

    /// Sets ISA line `line` (0 to 15; 2 is the cascade and has no pin) high or low.
    pub(super) fn set_line(&mut self, line: u8, high: bool) {
        match line {
            2 => return,
            0..8 => self.first.set_input(1 << line, high),
            8..16 => self.second.set_input(1 << (line - 8), high),
            _ => return,
        }
        self.update();
    }

    /// The INTR output.
    #[must_use]
    pub const fn intr(&self) -> bool {
        self.intr
    }

    /// The acknowledge cycle: the vector of the interrupt, which is now in service, or of a spurious one.
    pub(super) fn acknowledge(&mut self) -> u8 {
        let bit = self.first.request();
        if let Some(bit) = bit {
            self.first.acknowledge(bit);
        }
        let vector = if bit == Some(Self::CASCADE) {
            let bit = self.second.request();
            if let Some(bit) = bit {
                self.second.acknowledge(bit);
            }
            self.second.vector(bit)
        } else {
            self.first.vector(bit)
        };
        self.update();
        vector
    }

    /// Reads a byte from one of [`Self::PORTS`]; others read as ones.
    pub(super) fn read(&mut self, port: u16) -> u8 {
        let value = match port {
            0x20 => self.first.read_even(),
            0x21 => self.first.read_odd(),
            0xA0 => self.second.read_even(),
            0xA1 => self.second.read_odd(),
            0x4D0 => self.first.level,
            0x4D1 => self.second.level,
            _ => 0xFF,
        };
        self.update();
        value
    }

    /// Writes a byte to one of [`Self::PORTS`]; to others nothing happens.
    pub(super) fn write(&mut self, port: u16, value: u8) {
        match port {
            0x20 => self.first.write_even(value),
            0x21 => self.first.write_odd(value),
            0xA0 => self.second.write_even(value),
            0xA1 => self.second.write_odd(value),
            0x4D0 => self.first.write_elcr(value),
            0x4D1 => self.second.write_elcr(value),
            _ => {}
        }
        self.update();
    }

    fn update(&mut self) {
        self.first.set_input(Self::CASCADE, self.second.request().is_some());
        self.intr = self.first.request().is_some();
    }
}

impl Default for PicPair {
    fn default() -> Self {
        Self::new()
    }
}
