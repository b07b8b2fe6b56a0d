//! The host's network as a reversible plan: from a `--net` flag to open taps, and back.
//!
//! ```text
//! NetSpec --\
//!            plan -> [Step] -> apply -> Port { fds }      (in the keeper, a process of its own)
//! Facts  ---/           '----> undo  <- the VMM ends, in whatever way
//! ```
//!
//! # Threats
//!
//! | From | What | Answer |
//! |---|---|---|
//! | guest | frames | never read here: descriptors are handed over before the guest exists |
//! | guest | an address of another machine on the bridge | the card's address is checked before the start; frames are not filtered |
//! | VMM taken over by its guest | the keeper's privileges | the keeper reads nothing from the socket but its end |
//! | guest | what the kernel's steering program reads | the program is made and loaded before the guest exists and is checked by the kernel; the guest's numbers are data in its map |
//! | command line | names, numbers, descriptors | parsed once into types that cannot hold a wrong one; a descriptor is asked what it is |
//! | other processes | links that come, go and change during a plan | a lock between keepers, a new plan when a step meets a changed host |
//! | local users | the lock of the namespace held for ever | a deadline, then on without it |
//! | VMM taken over by its guest | the packet socket that hears the guest's address | its filter is locked, and it is closed as soon as the address is known; until then it could be bound to another interface |
//! | death at any moment | leftovers | taps belong to the kernel and die with their descriptors; at most an empty bridge of ours stays, and the next VM on it takes it away |
//!
//! # Not supported
//!
//! NAT, host-only networks, VLANs, filters, macvtap and Open vSwitch. Interfaces of other network namespaces, except
//! through `fd=`; what becomes of their links is not known, nor of any `fd=` without CAP_NET_ADMIN. A card's settings do
//! not change while the VM runs.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that cannot go on panics"))]

pub mod alias;
pub mod facts;
pub mod keeper;
pub mod link;
pub mod lookout;
pub mod mac;
pub mod nft;
pub mod own_code;
pub mod plan;
pub mod preview;
pub mod refusal;
pub mod request;
pub mod services;
pub mod spec;
pub mod steer;
pub mod step;

mod error;
mod ethtool;
mod inherited;
mod lock;
mod rtnl;
mod survey;
mod tun;

pub use error::{Error, Report};
pub use keeper::{Keeper, News, Port, Timing};
pub use link::LinkState;
pub use lookout::Lookout;
pub use mac::MacAddr;
pub use plan::{Plan, plan};
pub use request::Request;
pub use spec::{NetSpec, SpecError};
pub use steer::{Steering, SteeringProgram};
