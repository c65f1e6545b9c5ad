//! Cost.

use crate::{END, HOG, Machine, params};

#[test]
fn a_thousand_on_sixty_four() {
    let loads: Vec<_> = (0..1000).map(|g| (params(g, 1 + u32::from(g) % 2), HOG)).collect();
    let mut m = Machine::<1000, 64>::new(1, &loads, 1);
    let began = std::time::Instant::now();
    m.run(100_000);
    let (steps, ns) = (m.sched.steps() / m.decisions, began.elapsed().as_nanos() / u128::from(m.decisions));
    println!("1000 vCPUs on 64 CPUs: {} decisions, {steps} steps and {ns} ns each (with the simulation)", m.decisions);
    assert!(steps <= 1000);
    assert_eq!(m.idle(), 0);
}

#[test]
fn alone_is_tickless() {
    let mut m = Machine::<4, 2>::new(1, &[(params(0, 1), HOG)], 1);
    m.run(END);
    assert!(m.decisions < 8, "{}", m.decisions);
}
