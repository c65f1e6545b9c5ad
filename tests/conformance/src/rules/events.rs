//! Events that are injected, and those whose delivery was interrupted.

use super::{Kept, Subject, holds, nested, same};
use crate::bench::{Bench, Happens, Seen};
use crate::broken::Way;
use crate::guest;
use alloc::format;
use bulkhead_arch::{Rflags, Vector};
use bulkhead_core::{Event, Exit, Interruptibility, Register, Vcpu, Windows};

/// Events as policy injects them, and what the processor must see: type, vector, error code.
const EVENTS: [(Event, Seen); 6] = [
    (Event::Interrupt(0x31), (0, 0x31, None)),
    (Event::Nmi, NMI),
    (Event::GP, (3, 13, Some(0))),
    (Event::fault(Vector::PF, 6), (3, 14, Some(6))),
    (Event::UD, (3, 6, None)),
    // An error code that the vector does not have is left out.
    (Event::fault(Vector::DB, 5), (3, 1, None)),
];
const NMI: Seen = (2, 2, None);

pub(super) fn events_are_delivered_once<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    for (event, seen) in EVENTS {
        let mut subject = Subject::flat(bench, way)?;
        subject.delivers(None, &format!("before {event:?}"))?;
        subject.vcpu.inject(event)?;
        subject.delivers(Some(seen), &format!("{event:?}"))?;
        subject.delivers(None, &format!("after {event:?}"))?;
    }
    Ok(())
}

pub(super) fn the_last_injection_wins<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    subject.vcpu.inject(Event::fault(Vector::PF, 6))?;
    subject.vcpu.inject(Event::Interrupt(0x20))?;
    subject.delivers(Some((0, 0x20, None)), "the second")
}

pub(super) fn real_mode_pushes_no_error_code<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::real(bench, way)?;
    subject.vcpu.inject(Event::GP)?;
    subject.delivers(Some((3, 13, None)), "#GP")
}

pub(super) fn an_interrupted_delivery_is_told_once<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    for (event, seen) in EVENTS.into_iter().filter(|(event, _)| *event != Event::Nmi) {
        let mut subject = Subject::flat(bench, way)?;
        let exit = subject.stop(nested(Some(event)))?;
        holds(matches!(exit, Exit::Nested(_)), "the fault is told too")?;
        let (_, vector, error) = seen;
        let told = if seen.0 == 0 { event } else { Event::Exception { vector: Vector(vector), error } };
        same!(subject.vcpu.take_interrupted(), Some(told), "{event:?}");
        same!(subject.vcpu.take_interrupted(), None, "{event:?} a second time");
        subject.vcpu.inject(event)?;
        subject.delivers(Some(seen), &format!("{event:?} again"))?;
        same!(subject.vcpu.take_interrupted(), None, "after it was delivered");
    }
    Ok(())
}

pub(super) fn an_interrupted_nmi_can_be_injected_again<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    subject.stop(nested(Some(Event::Nmi)))?;
    same!(subject.vcpu.take_interrupted(), Some(Event::Nmi), "the NMI");
    holds(!subject.vcpu.interruptibility()?.nmi, "it is not in service")?;
    subject.vcpu.inject(Event::Nmi)?;
    subject.delivers(Some(NMI), "again")
}

pub(super) fn an_nmi_blocks_further_ones<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    subject.vcpu.inject(Event::Nmi)?;
    subject.delivers(Some(NMI), "the NMI")?;
    holds(subject.vcpu.interruptibility()?.nmi, "in service")?;
    subject.vcpu.set_interruptibility(Interruptibility::default())?;
    same!(subject.vcpu.interruptibility(), Ok(Interruptibility::default()), "it can be ended");
    Ok(())
}

pub(super) fn the_return_from_an_nmi_opens_its_window<B: Bench>(bench: &mut B, way: Option<Way>) -> Kept {
    let mut subject = Subject::flat(bench, way)?;
    subject.vcpu.inject(Event::Nmi)?;
    subject.delivers(Some(NMI), "the NMI")?;
    subject.vcpu.request_windows(Windows { interrupt: false, nmi: true })?;
    same!(subject.stop(Happens::Return)?, Exit::NmiWindow, "behind IRET");
    same!(subject.vcpu.interruptibility(), Ok(Interruptibility::default()), "it is not in service any more");
    same!(subject.get(Register::Rip)?, guest::CODE, "RIP where the NMI came");
    same!(subject.get(Register::Rflags)? & Rflags::TF.bits(), 0, "no single step is left behind");
    Ok(())
}
