use super::Guest;

fn guest() -> Guest {
    let mut guest = Guest::new();
    guest.init_pics(0x01);
    guest
}

#[test]
fn the_mask_register_reads_back_as_a_probe_for_the_chip_expects() {
    let mut guest = Guest::new();
    guest.irq.pic_write(0xA1, 0xFF);
    guest.irq.pic_write(0x21, 0xFB);
    assert_eq!(guest.irq.pic_read(0x21), 0xFB);
    assert_eq!(guest.irq.pic_read(0xA1), 0xFF);
}

#[test]
fn nothing_interrupts_before_a_system_unmasks_it() {
    let mut guest = Guest::new();
    for line in 0..24 {
        guest.edge(line);
    }
    assert_eq!(guest.take(), None);
}

#[test]
fn initialization_takes_as_many_words_as_icw1_says() {
    let mut guest = Guest::new();
    // Without ICW4, without ICW3.
    guest.irq.pic_write(0x20, 0x12);
    guest.edge(1);
    assert_eq!(guest.take(), None, "not yet initialized");
    guest.irq.pic_write(0x21, 0x47);
    assert_eq!(guest.take(), Some(0x41), "the low three bits of ICW2 do not count");
    guest.irq.pic_write(0x21, 0x55);
    assert_eq!(guest.irq.pic_read(0x21), 0x55);
    // ICW1 clears mask and in-service register, selects IRR.
    guest.irq.pic_write(0x20, 0x0B);
    guest.init_pics(0x01);
    assert_eq!(guest.irq.pic_read(0x21), 0);
    assert_eq!(guest.irq.pic_read(0x20), 0);
    guest.edge(5);
    assert_eq!(guest.irq.pic_read(0x20), 1 << 5);
    assert_eq!(guest.take(), Some(0x25));
}

#[test]
fn fully_nested_mode() {
    let mut guest = guest();
    guest.edge(4);
    assert_eq!(guest.take(), Some(0x24));
    guest.edge(4);
    guest.edge(5);
    assert_eq!(guest.take(), None, "not above the one in service");
    guest.edge(3);
    assert_eq!(guest.take(), Some(0x23));
    guest.irq.pic_write(0x20, 0x0B);
    assert_eq!(guest.irq.pic_read(0x20), 0b1_1000);
    guest.irq.pic_write(0x20, 0x20);
    assert_eq!(guest.irq.pic_read(0x20), 0b1_0000, "the highest ends first");
    guest.irq.pic_write(0x20, 0x20);
    assert_eq!(guest.take(), Some(0x24));
    guest.irq.pic_write(0x20, 0x64);
    assert_eq!(guest.take(), Some(0x25));
}

#[test]
fn edges_latch_and_levels_do_not() {
    let mut guest = guest();
    guest.irq.set_line(5, true);
    assert_eq!(guest.take(), Some(0x25));
    guest.irq.pic_write(0x20, 0x20);
    assert_eq!(guest.take(), None, "still high is no new edge");
    guest.irq.set_line(5, false);
    guest.irq.pic_write(0x4D0, 0xFF);
    assert_eq!(guest.irq.pic_read(0x4D0), 0xF8, "0 to 2 are edge-triggered");
    guest.irq.pic_write(0x4D1, 0xFF);
    assert_eq!(guest.irq.pic_read(0x4D1), 0xDE, "8 and 13 are edge-triggered");
    guest.irq.set_line(5, true);
    assert_eq!(guest.take(), Some(0x25));
    guest.irq.pic_write(0x20, 0x20);
    assert_eq!(guest.take(), Some(0x25), "still high is still a request");
    guest.irq.set_line(5, false);
    guest.irq.pic_write(0x20, 0x20);
    assert_eq!(guest.take(), None);
}

#[test]
fn an_input_must_stay_high_until_it_is_acknowledged() {
    let mut guest = guest();
    guest.edge(5);
    guest.edge(10);
    guest.irq.set_line(5, false);
    guest.irq.set_line(10, false);
    assert_eq!(guest.irq.pic_read(0x20), 0);
    assert_eq!(guest.take(), None);
    guest.edge(5);
    assert_eq!(guest.take(), Some(0x25));
    guest.irq.set_line(5, false);
    guest.irq.pic_write(0x20, 0x0B);
    assert_eq!(guest.irq.pic_read(0x20), 1 << 5, "in service it stays");
}

#[test]
fn initialization_resets_the_edge_sense() {
    let mut guest = guest();
    guest.irq.set_line(5, true);
    guest.init_pics(0x01);
    assert_eq!(guest.take(), None);
    guest.irq.set_line(5, false);
    guest.irq.set_line(5, true);
    assert_eq!(guest.take(), Some(0x25));
}

#[test]
fn cascade() {
    let mut guest = guest();
    guest.edge(12);
    guest.edge(3);
    assert_eq!(guest.take(), Some(0x2C), "the second's inputs are above 3 of the first");
    assert_eq!(guest.take(), None);
    guest.edge(8);
    assert_eq!(guest.take(), None, "the first has the cascade in service");
    guest.irq.pic_write(0x20, 0x20);
    assert_eq!(guest.take(), Some(0x28), "8 is above 12");
    guest.irq.pic_write(0xA0, 0x20);
    guest.irq.pic_write(0xA0, 0x20);
    guest.irq.pic_write(0x20, 0x20);
    assert_eq!(guest.take(), Some(0x23));
    // There is no line 2.
    guest.irq.pic_write(0x20, 0x20);
    guest.irq.set_line(2, true);
    assert_eq!(guest.take(), None);
}

#[test]
fn special_fully_nested_mode_lets_the_second_interrupt_itself() {
    let mut guest = Guest::new();
    guest.init_pics(0x11);
    guest.edge(12);
    assert_eq!(guest.take(), Some(0x2C));
    guest.edge(3);
    guest.edge(13);
    assert_eq!(guest.take(), None);
    guest.edge(8);
    assert_eq!(guest.take(), Some(0x28));
}

#[test]
fn automatic_end_of_interrupt_with_rotation() {
    let mut guest = Guest::new();
    guest.init_pics(0x03);
    guest.irq.pic_write(0x20, 0x80);
    guest.edge(0);
    guest.edge(4);
    assert_eq!(guest.take(), Some(0x20));
    guest.edge(0);
    guest.irq.pic_write(0x20, 0x0B);
    assert_eq!(guest.irq.pic_read(0x20), 0, "nothing stays in service");
    assert_eq!(guest.take(), Some(0x24), "0 is the lowest now");
    guest.edge(4);
    assert_eq!(guest.take(), Some(0x20));
    guest.irq.pic_write(0x20, 0x00);
    assert_eq!(guest.take(), Some(0x24));
}

#[test]
fn rotation_by_command() {
    let mut guest = guest();
    // Set priority: 4 is the lowest, hence 5 the highest.
    guest.irq.pic_write(0x20, 0xC4);
    guest.edge(0);
    guest.edge(5);
    assert_eq!(guest.take(), Some(0x25));
    assert_eq!(guest.take(), None);
    // Rotate on non-specific EOI: 5 becomes the lowest.
    guest.irq.pic_write(0x20, 0xA0);
    guest.edge(5);
    assert_eq!(guest.take(), Some(0x20));
    // Rotate on specific EOI.
    guest.irq.pic_write(0x20, 0xE0);
    guest.edge(0);
    assert_eq!(guest.take(), Some(0x25));
    guest.irq.pic_write(0x20, 0x65);
    assert_eq!(guest.take(), Some(0x20));
}

#[test]
fn special_mask_mode_lets_lower_levels_through() {
    let mut guest = guest();
    guest.edge(3);
    assert_eq!(guest.take(), Some(0x23));
    guest.edge(3);
    guest.edge(6);
    assert_eq!(guest.take(), None);
    guest.irq.pic_write(0x21, 1 << 3);
    assert_eq!(guest.take(), None);
    guest.irq.pic_write(0x20, 0x68);
    assert_eq!(guest.take(), Some(0x26));
    guest.irq.pic_write(0x20, 0x20);
    guest.irq.pic_write(0x20, 0x20);
    guest.irq.pic_write(0x20, 0x0B);
    assert_eq!(guest.irq.pic_read(0x20), 1 << 3, "a masked one does not end by a non-specific EOI");
    guest.irq.pic_write(0x20, 0x48);
    guest.irq.pic_write(0x20, 0x20);
    assert_eq!(guest.irq.pic_read(0x20), 0);
}

#[test]
fn poll_mode() {
    let mut guest = guest();
    guest.irq.pic_write(0x21, 0xFF);
    guest.irq.pic_write(0x20, 0x0C);
    assert_eq!(guest.irq.pic_read(0x20), 0, "nothing requests");
    guest.irq.pic_write(0x21, 0xDF);
    guest.edge(5);
    guest.irq.pic_write(0x20, 0x0C);
    assert_eq!(guest.irq.pic_read(0x20), 0x85);
    assert_eq!(guest.take(), None, "the poll was the acknowledgement");
    guest.irq.pic_write(0x20, 0x0B);
    assert_eq!(guest.irq.pic_read(0x20), 1 << 5);
}

#[test]
fn a_request_that_vanished_is_answered_by_the_spurious_vector() {
    let mut guest = guest();
    assert_eq!(guest.irq.pics.acknowledge(), 0x27);
    guest.irq.pic_write(0x20, 0x0B);
    assert_eq!(guest.irq.pic_read(0x20), 0, "it is not in service");
}

#[test]
fn a_mask_holds_back_but_does_not_forget() {
    let mut guest = guest();
    guest.irq.pic_write(0x21, 0x20);
    guest.edge(5);
    assert_eq!(guest.take(), None);
    guest.irq.pic_write(0x21, 0x00);
    assert_eq!(guest.take(), Some(0x25));
}
