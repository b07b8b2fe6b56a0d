//! The fuzz targets. Everything runs on one thread and depends on nothing but the bytes.
//!
//! - [`card`]: a driver's program against the whole network device, with frames arriving and the host failing;
//! - [`control`]: control commands;
//! - [`registers`]: accesses of any width and order to configuration space, BARs and their windows;
//! - [`services`]: frames and resolvers' answers to the network services of a card.
//!
//! Failures: a panic, a loop without end, memory that grows, a touch outside of guest memory (unmapped pages lie around
//! every region), a used entry that was not made available, a broken ring that is served on, a device that does not
//! work after its reset, and another device of the same machine that stops to answer.

pub mod card;
pub mod control;
pub mod driver;
pub mod input;
pub mod machine;
pub mod memory;
pub mod port;
pub mod registers;
pub mod seeds;
pub mod services;
