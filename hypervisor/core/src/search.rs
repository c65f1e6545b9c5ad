//! Breadth-first search through all states of a small model, for tests.
//!
//! A model says where it begins, what may happen in a state, and what comes of it: the next state, or which property fails.
//! The search ends when there is no new state; the first failure comes with a shortest way to it.

extern crate std;

use std::collections::HashSet;
use std::fmt::{self, Debug};
use std::hash::Hash;
use std::string::String;
use std::vec::Vec;

/// A system small enough to look at all of it.
pub(crate) trait Model {
    /// A state; equal ones behave alike.
    type State: Clone + Eq + Hash;
    /// Something that can happen.
    type Action: Copy + Debug;

    /// Where it begins.
    fn first(&self) -> Self::State;

    /// What can happen in this state.
    fn actions(&self, state: &Self::State) -> Vec<Self::Action>;

    /// What comes of it, or the property that fails then.
    fn step(&self, state: &Self::State, action: Self::Action) -> Result<Self::State, String>;
}

/// How a property comes to fail.
pub(crate) struct Counterexample<A> {
    /// The property.
    pub property: String,
    /// What has happened, from the beginning.
    pub way: Vec<A>,
}

impl<A: Debug> Debug for Counterexample<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, after", self.property)?;
        self.way.iter().try_for_each(|action| writeln!(f, "  {action:?}"))
    }
}

/// Looks at every state; how many there are.
pub(crate) fn explore<M: Model>(model: &M) -> Result<usize, Counterexample<M::Action>> {
    let first = model.first();
    let mut known = HashSet::from([first.clone()]);
    // Each with where it came from.
    let mut states = std::vec![(first, None)];
    let mut next = 0;
    while let Some((state, _)) = states.get(next) {
        let state = state.clone();
        for action in model.actions(&state) {
            let after = model.step(&state, action).map_err(|property| {
                let mut way = std::vec![action];
                let mut at = next;
                while let Some((_, Some((before, action)))) = states.get(at) {
                    way.push(*action);
                    at = *before;
                }
                way.reverse();
                Counterexample { property, way }
            })?;
            if known.insert(after.clone()) {
                states.push((after, Some((next, action))));
            }
        }
        next += 1;
    }
    Ok(states.len())
}
