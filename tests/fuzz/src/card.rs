//! A driver's program against the whole network device: descriptors, rings, indexes, features, commands, doorbells,
//! resets and status writes, with frames arriving from the port, the host failing and the cable coming out meanwhile.
//!
//! ```text
//!   action = kind u8, a u8, b u16, c u32, d u64   and for some kinds bytes that follow
//! ```
//! A program is *tame* as long as queues lie where [`driver::Driver::enable_queue`] puts them, in memory that nothing
//! else is told to write. Then what the device may do is known and held: every used entry answers a chain that was made
//! available, a broken chain ends in NEEDS_RESET, and nothing but used rings changes below the buffers. A wild program
//! is held to the rest.

mod action;
mod flow;
mod seeds;
mod session;

pub use seeds::seeds;

use crate::driver;
use crate::input::Input;
use crate::machine::Machine;
use action::Action;
use session::Session;

/// Actions of one program, at most.
const ACTIONS: usize = 200;

/// Runs the program in `bytes`.
pub fn run(bytes: &[u8]) {
    let machine = Machine::new();
    let mut session = Session::new(&machine);
    let mut input = Input(bytes);
    for _ in 0..ACTIONS {
        if input.is_empty() {
            break;
        }
        session.act(Action::decode(&mut input));
    }
    session.work();
    // A wild card may have been told to write over the other driver's rings.
    if session.tame {
        driver::entropy_still_works(&machine);
    }
    driver::card_still_works(&machine);
    if !session.tame {
        driver::entropy_still_works(&machine);
    }
    let _ = machine.net.counters();
}
