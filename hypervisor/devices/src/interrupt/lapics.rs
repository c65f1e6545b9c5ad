//! The local APICs of a machine, and who among them receives a message.
//!
//! A message is offered to each. Of those that it names and that would accept it, all receive it, or in lowest-priority
//! mode the one whose processor has the least to do; of several, the one after the one that was chosen last.
//! SDM vol. 3A 11.6.2 "Determining IPI Destination", 11.6.2.4 "Lowest Priority Delivery Mode".

use super::lapic::LocalApic;
use super::message::{DeliveryMode, Destination, Message};
use bulkhead_types::{Frequency, MAX_VCPUS, VcpuId};

/// The local APICs.
#[derive(Clone, Debug)]
pub(super) struct LocalApics {
    each: [LocalApic; MAX_VCPUS],
    count: u8,
    /// Who received the last message in lowest-priority mode.
    last: u8,
    /// Who has received something since it was last asked.
    attention: u32,
}

impl LocalApics {
    /// Those of `count` processors (1 to [`MAX_VCPUS`]; what is beyond is as if it were not asked for).
    pub(super) fn new(count: u8, tsc: Frequency) -> Self {
        let mut ids = (0..).map_while(VcpuId::new);
        let each = core::array::from_fn(|_| match ids.next().unwrap_or_default() {
            VcpuId::BOOT => LocalApic::firmware_state(tsc),
            id => LocalApic::new(tsc, id),
        });
        Self { each, count: count.clamp(1, VcpuId::MOST), last: 0, attention: 0 }
    }

    pub(super) const fn of(&self, id: VcpuId) -> &LocalApic {
        let [boot, ..] = &self.each;
        match self.each.as_slice().split_at_checked(id.index()) {
            Some((_, [own, ..])) => own,
            _ => boot,
        }
    }

    pub(super) fn of_mut(&mut self, id: VcpuId) -> &mut LocalApic {
        let [boot, rest @ ..] = &mut self.each;
        match id.index().checked_sub(1).and_then(|index| rest.get_mut(index)) {
            Some(own) => own,
            None => boot,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (VcpuId, &LocalApic)> {
        VcpuId::all(self.count).zip(&self.each)
    }

    /// A processor has something to see to.
    pub(super) const fn call(&mut self, id: VcpuId) {
        self.attention |= id.bit();
    }

    /// Who has received something since this was last asked: a set of [`VcpuId::bit`].
    pub(super) const fn take_attention(&mut self) -> u32 {
        core::mem::replace(&mut self.attention, 0)
    }

    /// Sets LINT0 of all, where the PICs' INTR output is.
    pub(super) fn set_lint0(&mut self, high: bool) {
        for (id, lapic) in VcpuId::all(self.count).zip(&mut self.each) {
            if lapic.set_lint0(high) {
                self.attention |= id.bit();
            }
        }
    }

    /// Sends a message, from `sender` or the I/O APIC. Returns whether one accepted it.
    pub(super) fn send(&mut self, sender: Option<VcpuId>, message: Message) -> bool {
        let Message { destination, mode, vector, level } = message;
        let mut receivers = self.receivers(sender, mode, destination);
        if mode == DeliveryMode::LowestPriority && receivers & receivers.wrapping_sub(1) != 0 {
            receivers = self.least_busy(receivers);
        }
        for id in VcpuId::in_set(receivers) {
            self.of_mut(id).deliver(mode, vector, level);
        }
        self.attention |= receivers;
        receivers != 0
    }

    /// The set of those that accept a message.
    pub(super) fn receivers(&self, sender: Option<VcpuId>, mode: DeliveryMode, destination: Destination) -> u32 {
        self.iter()
            .filter(|(_, lapic)| lapic.accepts(mode) && lapic.is_addressed(destination, sender))
            .fold(0, |set, (id, _)| set | id.bit())
    }

    /// The one of `set` with the lowest priority class.
    fn least_busy(&mut self, set: u32) -> u32 {
        let turn = |id: VcpuId| id.number().wrapping_sub(self.last).wrapping_sub(1) % VcpuId::MOST;
        let busy = |id: &VcpuId| (self.of(*id).processor_priority() >> 4, turn(*id));
        let Some(chosen) = VcpuId::in_set(set).min_by_key(busy) else { return 0 };
        self.last = chosen.number();
        chosen.bit()
    }
}
