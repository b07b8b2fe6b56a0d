//! The host's network as a reversible plan: from a `--net` flag to open taps, and back.
//!
//! ```text
//! NetSpec --\
//!            plan -> [Step] -> apply -> Port { fds }      (in the keeper, a process of its own)
//! Facts  ---/           '----> undo  <- the VMM ends, in whatever way
//! ```
//!
//! # Where things are
//!
//! A file is in a room, and a room knows only those after it; `tests/order.rs` holds that:
//!
//! ```text
//! lib -> doctor, inventory, preview, rehearsal, keeper -> address_listener -> prepare -> plan -> gc -> step -> error -> host
//!     -> survey, request -> policy -> rules -> services -> refusal -> facts -> kernel -> spec -> identity
//! ```
//!
//! | Room | What lives there |
//! |---|---|
//! | `identity` | the names of VMs, taps, networks and addresses |
//! | `spec` | the grammar of `--net` |
//! | `kernel` | system calls and netlink; knows no VM, no facts and no plan |
//! | `facts`, `refusal` | the host as plain data, and why a plan cannot be made on it |
//! | `services` | DHCP, DNS and router advertisements, which the VMM runs |
//! | `rules`, `policy` | the nftables of a VM, and security groups |
//! | `survey`, `request` | reads facts; the cards that a VM is to have |
//! | `host` | objects on the host: made, looked at, unmade; knows no step |
//! | `error` | everything that can go wrong once a plan meets the host |
//! | `step`, `step/KIND.rs` | one change of the host, what takes it back, and the words for both |
//! | `gc` | removes what is left when keeper and VMM were both killed |
//! | `plan`, `prepare` | pure: a request and facts give steps; survey, then plan |
//! | `address_listener` | hears the address of a guest |
//! | `keeper` | the process that makes a VM's network, looks after it and takes it away |
//! | `rehearsal` | a start that is cut short and taken back, for tests |
//! | `doctor`, `inventory`, `preview` | a look at a host, at its VMs and at a plan |
//!
//! # Threats
//!
//! | From | What | Answer |
//! |---|---|---|
//! | guest | frames | never read here: descriptors are handed over before the guest exists |
//! | guest | an address of another machine on a bridge | the card's address is checked before the start; frames are not filtered |
//! | outside, other VMs | a guest's address | told and counted, not prevented: the MAC by what the bridge learns, known IPv4 addresses by ARP; of a frame the keeper reads the sender alone, and it listens ten times a second at most |
//! | guest | an address of another machine on a network of ours, a gateway's or DHCP server's words, the host's loopback | rules on its tap, and a bridge that learns nothing there |
//! | guest | the host's own services at the gateway's address | as for any machine: they are there, unless the host's firewall says no |
//! | outside | guests behind NAT, packets for the host's loopback address that is forwarded | only what is forwarded or an answer gets in; nothing from a wire is translated for 127.0.0.0/8 |
//! | outside | the host as a router between its uplinks, while a network of ours has them forward | what comes in by one leaves by a network of ours only; unless keeper and VMM are both killed, until the next start or `net gc` |
//! | VMM taken over by its guest | the keeper's privileges | the keeper reads nothing from the VMM's socket but its end |
//! | local users | the policy of a VM | callers are root or the VM's user, with CAP_NET_ADMIN; types are checked |
//! | VMM taken over by its guest | its policy and guards | not held yet: docs/threat-model.md |
//! | guest, outside | what a policy forbids | judged on the tap itself, at which everything passes; before the first frame can; a new policy takes effect as a whole; without room for a connection its answers are judged by themselves |
//! | guest | what the kernel's steering program reads | the program is made and loaded before the guest exists and is checked by the kernel; the guest's numbers are data in its map |
//! | command line | names, numbers, descriptors | parsed once into types that cannot hold a wrong one; a descriptor is asked what it is |
//! | other processes | links that come, go and change during a plan | a lock between keepers, a new plan when a step meets a changed host |
//! | local users | the lock of the namespace held for ever | a deadline, then on without it |
//! | local users | a VM's name taken, or an answer in its place | locks and sockets are in a folder that only the VM's user writes to, and a caller asks who listens |
//! | VMM taken over by its guest | the packet socket that hears the guest's address | its filter is locked, and it is closed as soon as the address is known; until then it could be bound to another interface |
//! | Docker's containers | guests let through in its chain for others | the rules are for the guest's address, do not lead to containers, and come after the user's own |
//! | other processes | rules of ours that somebody else changes, or takes away with `flush ruleset` | our tables belong to our socket: the kernel refuses |
//! | death of the keeper alone | taps and rules without a keeper | last as long as the VMM: docs/design.md |
//! | death at any moment | leftovers | taps and tables belong to the kernel and die with their descriptors; what other interfaces had before is written on our bridge; at most a bridge of ours without VMs, which has what was its uplink's, an unused macvtap or Open vSwitch port of ours, an interface where frames waited and rules in Docker's chain stay, and the next VM there takes them away |
//! | guest | another address on a macvtap | it cannot have frames for it, and its card refuses to change; what it sends is not filtered |
//!
//! # Not supported
//!
//! Forwarded ports of single IPv6 addresses and of `::1`. Interfaces of other network namespaces, except
//! through `fd=`; what becomes of their links is not known, nor of any `fd=` without CAP_NET_ADMIN. A card's settings do
//! not change while the VM runs.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that cannot go on panics"))]

pub mod doctor;
pub mod facts;
pub mod gc;
pub mod inventory;
pub mod keeper;
pub mod plan;
pub mod policy;
pub mod preview;
pub mod refusal;
pub mod rehearsal;
pub mod request;
pub mod services;
pub mod spec;
pub mod step;

mod address_listener;
mod error;
mod host;
mod identity;
mod kernel;
mod prepare;
mod rules;
mod survey;

pub use address_listener::AddressListener;
pub use error::{Error, Report, error_chain};
pub use facts::ovs::{Datapath, OvsError, OvsFact};
pub use host::macvtap::Macvtap;
pub use host::ovs::OvsPort;
pub use identity::mac::MacAddr;
pub use identity::{alias, mac, runtime_dir};
pub use keeper::{Keeper, News, NotKept, Port, Services, Timing};
pub use kernel::bpf::{Steering, SteeringProgram};
pub use kernel::link::LinkState;
pub use kernel::vlan::PortVlans;
pub use kernel::{link, nft, own_code};
pub use plan::{Plan, plan};
pub use policy::Policy;
pub use request::Request;
pub use rules::Member;
pub use rules::guard::Guard;
pub use spec::{NetSpec, SpecError};
pub use survey::siblings::Siblings;
