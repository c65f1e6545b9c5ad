//! Bytes between guests' consoles and the control line.
//!
//! A guest's console lies in its own compartment, the line's key in the idle one. What goes from one to the other lies in the
//! shared part on its way. Meanwhile all other processors rest in the idle compartment, so that no guest is served; and it
//! is wiped before they go on. The guest's own execution is entered for it, as for an audit: a guest that is paused or has
//! ended has a console, too.
//!
//! | a hostile guest may | and then |
//! |---|---|
//! | write without end | a reader gets what is kept and how much is gone; a look at it copies no more than fits into a frame |
//! | never read | its queue is full, no more is taken, and the sender is told; what is typed is dropped after a second |

use crate::dispatch::leave_zone;
use crate::machine::{Facts, Slot};
use crate::processors::quiet;
use crate::task::Command;
use bulkhead_control::line::CHUNK;
use bulkhead_control::output::Output;
use bulkhead_types::VcpuId;
use core::sync::atomic::Ordering;
use heapless::{Deque, Vec};
use spin::Mutex;

/// Some bytes.
pub type Piece = Vec<u8, CHUNK>;
/// Bytes from the lines that wait until the guest has room for them.
pub type Input = Deque<u8, 1024>;

static PARCEL: Mutex<Parcel> = Mutex::new(Parcel::new(Wants::Nothing));

struct Parcel {
    wants: Wants,
    /// Offset of what was read.
    at: u64,
    bytes: [u8; CHUNK],
    count: usize,
}

/// What the guest's execution is to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wants {
    /// It has done it.
    Nothing,
    /// Give what was written from this offset on.
    Output(u64),
    /// Take `bytes`.
    Input,
    /// Take what was typed from the machine's console, as at each of its turns.
    Typed,
}

impl Parcel {
    const fn new(wants: Wants) -> Self {
        Self { wants, at: 0, bytes: [0; CHUNK], count: 0 }
    }
}

/// What a guest has written from offset `from` on, counted over its lives, and the offset of what is left of that.
/// Nothing, at the end, of a guest that has no console.
pub fn read(facts: &Facts, slot: &Slot, from: u64, into: &mut Piece) -> u64 {
    into.clear();
    let span = || {
        let begun = slot.before.load(Ordering::Relaxed);
        (begun, begun.saturating_add(slot.written.load(Ordering::Relaxed)))
    };
    let (_, end) = span();
    if from == end {
        return end;
    }
    quiet(facts, || {
        let (begun, end) = span();
        // A reader that is ahead has read another guest.
        let from = if from > end { 0 } else { from.saturating_sub(begun) };
        let read = carry(slot, Parcel::new(Wants::Output(from)), |parcel| {
            // Both have room for as much.
            let _ = into.extend_from_slice(parcel.bytes.get(..parcel.count).unwrap_or_default());
            begun.saturating_add(parcel.at)
        });
        read.unwrap_or(end)
    })
}

/// Gives a guest input; how many bytes it took, if it has a console.
pub fn write(facts: &Facts, slot: &Slot, bytes: &[u8]) -> Option<u16> {
    let mut parcel = Parcel { count: bytes.len().min(CHUNK), ..Parcel::new(Wants::Input) };
    parcel.bytes.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    quiet(facts, || carry(slot, parcel, |parcel| u16::try_from(parcel.count).unwrap_or(u16::MAX)))
}

/// Has a guest that gets no turn take what was typed. Whether it could: it has a console.
pub fn take_typed(facts: &Facts, slot: &Slot) -> bool {
    quiet(facts, || carry(slot, Parcel::new(Wants::Typed), |_| ())).is_some()
}

/// Has the guest's own execution do it, while all other processors rest.
fn carry<R>(slot: &Slot, parcel: Parcel, done: impl FnOnce(&Parcel) -> R) -> Option<R> {
    let task = slot.task(VcpuId::BOOT).filter(|task| task.context.is_set())?;
    *PARCEL.lock() = parcel;
    task.enter(Command::Console);
    // What was read is another zone's.
    leave_zone();
    let mut parcel = PARCEL.lock();
    let result = (parcel.wants == Wants::Nothing).then(|| done(&parcel));
    *parcel = Parcel::new(Wants::Nothing);
    result
}

/// Does what is wanted, in the guest's compartment.
pub fn obey(output: &Output, input: &mut Input) {
    let Parcel { wants, at, bytes, count } = &mut *PARCEL.lock();
    match core::mem::replace(wants, Wants::Nothing) {
        Wants::Nothing | Wants::Typed => {}
        Wants::Output(from) => {
            *at = from.max(output.start());
            let read = (*at..output.end()).map_while(|offset| output.get(offset));
            *count = bytes.iter_mut().zip(read).map(|(to, byte)| *to = byte).count();
        }
        Wants::Input => *count = bytes.iter().take(*count).take_while(|byte| input.push_back(**byte).is_ok()).count(),
    }
}
