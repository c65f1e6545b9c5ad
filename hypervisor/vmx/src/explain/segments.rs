//! SDM vol. 3C 27.3.1.2 "Checks on Guest Segment Registers".

use super::{Checks, controls, guest, is_canonical};
use crate::controls::Secondary;
use crate::fields::{self as field, SegmentFields};
use crate::state;
use bulkhead_arch::{Cr0, Rflags, Segment, SegmentName};

/// What the rules of all segments depend on.
struct Context {
    virtual_8086: bool,
    unrestricted: bool,
    long: bool,
    protected: bool,
    cs: Segment,
    ss: Segment,
}

/// The type, bits 3:0.
const fn kind(segment: &Segment) -> u32 {
    segment.attributes & 0xF
}

/// Requested privilege level.
const fn rpl(segment: &Segment) -> u16 {
    segment.selector & 3
}

pub(super) fn check(checks: &mut Checks<'_>) {
    let read = |name| state::segment(checks.vmcs, name);
    let context = Context {
        virtual_8086: checks.value(field::GUEST_RFLAGS) & Rflags::VM.bits() != 0,
        unrestricted: controls::secondary(checks).contains(Secondary::UNRESTRICTED_GUEST),
        long: guest::long_mode(checks),
        protected: checks.value(field::GUEST_CR0) & Cr0::PE.bits() != 0,
        cs: read(SegmentName::Cs),
        ss: read(SegmentName::Ss),
    };
    let ldtr = read(SegmentName::Ldtr);
    let tr = read(SegmentName::Tr);
    for name in [SegmentName::Cs, SegmentName::Ss, SegmentName::Ds, SegmentName::Es, SegmentName::Fs, SegmentName::Gs] {
        let segment = state::segment(checks.vmcs, name);
        let fields = field::segment(name);
        base(checks, &context, name, &segment);
        if context.virtual_8086 {
            virtual_8086(checks, &fields, &segment);
        } else if name == SegmentName::Cs {
            code(checks, &context, &fields);
        } else {
            if name == SegmentName::Ss {
                stack(checks, &context, &fields);
            }
            if !segment.is_unusable() {
                data(checks, &context, name, &segment);
            }
        }
    }
    system(checks, &context, SegmentName::Tr, &tr);
    if !ldtr.is_unusable() {
        system(checks, &context, SegmentName::Ldtr, &ldtr);
    }
}

fn base(checks: &mut Checks<'_>, context: &Context, name: SegmentName, segment: &Segment) {
    let fields = field::segment(name);
    match name {
        SegmentName::Fs | SegmentName::Gs => {
            checks.rule(fields.base, is_canonical(segment.base), "must be canonical");
        }
        SegmentName::Cs => checks.rule(fields.base, segment.base >> 32 == 0, "bits 63:32 must be 0"),
        _ => {
            let holds = segment.is_unusable() && !context.virtual_8086 || segment.base >> 32 == 0;
            checks.rule(fields.base, holds, "bits 63:32 must be 0");
        }
    }
}

fn virtual_8086(checks: &mut Checks<'_>, fields: &SegmentFields, segment: &Segment) {
    let base = u64::from(segment.selector) << 4;
    checks.rule(fields.base, segment.base == base, "must be the selector times 16 in virtual-8086 mode");
    checks.rule(fields.limit, segment.limit == 0xFFFF, "must be FFFFH in virtual-8086 mode");
    checks.rule(fields.attributes, segment.attributes == 0xF3, "must be F3H in virtual-8086 mode");
}

fn code(checks: &mut Checks<'_>, context: &Context, fields: &SegmentFields) {
    let Context { cs, ss, .. } = context;
    let attributes = fields.attributes;
    let conforming = kind(cs) & 4 != 0;
    let flat_data = kind(cs) == 3;
    let known = matches!(kind(cs), 9 | 11 | 13 | 15) || flat_data && context.unrestricted;
    checks.rule(attributes, known, "CS must be accessed code (or type 3 in an unrestricted guest)");
    checks.rule(attributes, !flat_data || cs.dpl() == 0, "CS of type 3 must have DPL 0");
    let same = flat_data || conforming || cs.dpl() == ss.dpl();
    checks.rule(attributes, same, "non-conforming CS must have the DPL of SS");
    checks.rule(attributes, !conforming || cs.dpl() <= ss.dpl(), "conforming CS must not have a DPL above that of SS");
    let both = cs.attributes & Segment::LONG != 0 && cs.attributes & Segment::BIG != 0;
    checks.rule(attributes, !(context.long && both), "D must be 0 in 64-bit code");
    common(checks, fields, cs, true);
}

fn stack(checks: &mut Checks<'_>, context: &Context, fields: &SegmentFields) {
    let Context { cs, ss, .. } = context;
    let attributes = fields.attributes;
    if !context.unrestricted {
        checks.rule(fields.selector, rpl(ss) == rpl(cs), "RPL of SS must be that of CS");
        checks.rule(attributes, u16::from(ss.dpl()) == rpl(ss), "DPL of SS must be its RPL");
    }
    let outermost = kind(cs) != 3 && context.protected || ss.dpl() == 0;
    checks.rule(attributes, outermost, "DPL of SS must be 0 in real mode and when CS has type 3");
    let writable = ss.is_unusable() || matches!(kind(ss), 3 | 7);
    checks.rule(attributes, writable, "SS must be accessed writable data");
}

fn data(checks: &mut Checks<'_>, context: &Context, name: SegmentName, segment: &Segment) {
    let fields = field::segment(name);
    let attributes = fields.attributes;
    if name != SegmentName::Ss {
        checks.rule(attributes, kind(segment) & 1 != 0, "must be accessed");
        checks.rule(attributes, kind(segment) & 8 == 0 || kind(segment) & 2 != 0, "code must be readable");
        let holds = context.unrestricted || kind(segment) > 11 || u16::from(segment.dpl()) >= rpl(segment);
        checks.rule(attributes, holds, "DPL must not be below RPL");
    }
    common(checks, &fields, segment, true);
}

fn system(checks: &mut Checks<'_>, context: &Context, name: SegmentName, segment: &Segment) {
    let fields = field::segment(name);
    let is_tr = name == SegmentName::Tr;
    checks.rule(fields.selector, segment.selector & 4 == 0, "TI must be 0");
    checks.rule(fields.base, is_canonical(segment.base), "must be canonical");
    let known = match kind(segment) {
        2 => !is_tr,
        3 => is_tr && !context.long,
        11 => is_tr,
        _ => false,
    };
    let rule = if is_tr { "TR must be a busy TSS, of type 11 in IA-32e mode" } else { "LDTR must be of type 2" };
    checks.rule(fields.attributes, known, rule);
    checks.rule(fields.attributes, !segment.is_unusable(), "must be usable");
    common(checks, &fields, segment, false);
}

/// S, P, reserved bits and granularity.
fn common(checks: &mut Checks<'_>, fields: &SegmentFields, segment: &Segment, not_system: bool) {
    const S: u32 = 1 << 4;
    const P: u32 = 1 << 7;
    let Segment { attributes, limit, .. } = *segment;
    checks.rule(fields.attributes, (attributes & S != 0) == not_system, "S must be 1 but for LDTR and TR");
    checks.rule(fields.attributes, attributes & P != 0, "P must be 1");
    checks.rule(fields.attributes, attributes & !0x1_F0FF == 0, "bits 11:8 and 31:17 must be 0");
    let granular = attributes & Segment::GRANULAR != 0;
    let fits = (!granular || limit & 0xFFF == 0xFFF) && (granular || limit >> 20 == 0);
    checks.rule(fields.limit, fits, "must fit the granularity bit: 11:0 all 1 if set, 31:20 all 0 if not");
}
