//! Ends a run when a line has been printed that has a given text in it.

use crate::frames::Lines;
use crate::session::{View, Wire};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// A view that has enough once the text was seen, on any guest's console or in the hypervisor's log.
pub struct Until<V> {
    inner: V,
    text: Option<String>,
    lines: BTreeMap<u8, Lines>,
    seen: bool,
}

impl<V> Until<V> {
    /// `inner`, until a line has `text` in it; without one as it is.
    pub fn new(inner: V, text: Option<&str>) -> Self {
        Self { inner, text: text.map(str::to_owned), lines: BTreeMap::new(), seen: false }
    }
}

impl<V: View> View for Until<V> {
    fn console(&mut self, guest: u8, bytes: &[u8], wire: &mut Wire) {
        if let Some(text) = &self.text {
            let seen = &mut self.seen;
            self.lines.entry(guest).or_default().push(bytes, |line| *seen |= line.contains(text));
        }
        self.inner.console(guest, bytes, wire);
    }

    fn monitor(&mut self, bytes: &[u8]) {
        self.inner.monitor(bytes);
    }

    fn log(&mut self, line: &str) {
        self.seen |= self.text.as_ref().is_some_and(|text| line.contains(text));
        self.inner.log(line);
    }

    fn keys(&mut self, bytes: &[u8], wire: &mut Wire) -> ControlFlow<()> {
        self.inner.keys(bytes, wire)
    }

    fn has_enough(&self) -> bool {
        self.seen || self.inner.has_enough()
    }
}
