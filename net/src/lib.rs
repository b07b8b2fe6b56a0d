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
//! Each file is in a room, and a room knows only those after it; `tests/order.rs` checks that:
//!
//! ```text
//! lib -> doctor, inventory, preview, rehearsal, keeper -> address_listener -> prepare -> plan -> gc -> step -> error
//!     -> host -> survey, request -> policy -> rules -> services -> refusal -> facts -> kernel -> spec -> identity
//! ```
//!
//! | Room | What lives there |
//! |---|---|
//! | `identity` | the names of VMs, taps, networks and addresses |
//! | `spec` | the grammar of `--net` |
//! | `kernel` | system calls and netlink; knows no VM, no facts and no plan |
//! | `facts`, `refusal` | the host as plain data, and the reasons for refusing a plan |
//! | `services` | DHCP, DNS and router advertisements, which the VMM runs |
//! | `rules`, `policy` | the nftables of a VM, and security groups |
//! | `survey`, `request` | reads the facts; the cards that a VM is to have |
//! | `host` | objects on the host: makes, inspects and removes them; knows no step |
//! | `error` | the failures of a plan on the host |
//! | `step`, `step/KIND.rs` | one change of the host, its undo, and the words for both |
//! | `gc` | removes the leftovers of a keeper and VMM that were both killed |
//! | `plan`, `prepare` | pure: a request and facts give steps; survey, then plan |
//! | `address_listener` | learns the address of a guest |
//! | `keeper` | the process that makes a VM's network, looks after it and takes it away |
//! | `rehearsal` | a start that is cut short and undone, for tests |
//! | `doctor`, `inventory`, `preview` | a look at a host, at its VMs and at a plan |
//!
//! # Threats
//!
//! | From | What | Answer |
//! |---|---|---|
//! | guest | frames | the keeper holds no descriptor of a tap once the guest exists; it reads only targets of IPv6 solicitations that a filter has passed |
//! | guest | an address of another machine on a bridge | the card's address is checked before the start; frames are not filtered |
//! | outside, other VMs | a guest's address | reported and counted, not prevented: the MAC by what the bridge learns, known IP addresses by ARP and neighbour discovery; the keeper reads only addresses of a frame, ten times a second at most |
//! | guest | an address of another machine on a network of ours, messages of a gateway or DHCP server, the host's loopback | rules on its tap, and a bridge that learns nothing there |
//! | guest | the host's own services at the gateway's address | reachable, as for any machine, unless the host's firewall forbids it |
//! | outside | guests behind NAT, packets for the host's loopback address that is forwarded | only forwarded ports and answers get in; nothing from a physical link is translated for 127.0.0.0/8 |
//! | outside | the host as a router between its uplinks, while a network of ours has them forward | packets that come in by one leave by a network of ours only; unless keeper and VMM are both killed, until the next start or `net gc` |
//! | VMM taken over by its guest | the keeper's privileges | the keeper reads only that its socket is closed; whoever sends something is ended |
//! | local users | the policy of a VM | callers are root or the VM's user, with CAP_NET_ADMIN, and still the process that called; types are checked |
//! | VMM taken over by its guest | its policy and guards | their owner is held by three processes; taps go down before rules go; docs/threat-model.md |
//! | guest, outside | traffic that a policy forbids | rules on the tap itself, which every frame passes, before the first can; a new policy takes effect as a whole; without room to track a connection its answers are checked on their own |
//! | guest | the input of the kernel's steering program | the program is made and loaded before the guest exists, and the kernel verifies it; the guest's numbers are data in its map |
//! | command line | names, numbers, descriptors | parsed once into types that cannot hold an invalid one; the type of a descriptor is checked |
//! | other processes | links that come, go and change during a plan | a lock between keepers, a new plan when a step meets a changed host |
//! | local users | the lock of the namespace held for ever | a deadline, after which the start goes on without it |
//! | local users | a VM's name taken, or its socket impersonated | locks and sockets are in a folder that only the VM's user writes to, and a caller checks who listens |
//! | VMM taken over by its guest | the packet socket that learns the guest's address | another process has it, whose filter for system calls keeps it from binding it anew |
//! | Docker's containers | guests let through in its chain for others | the rules are for the guest's address, do not lead to containers, and come after the user's own |
//! | other processes | rules of ours that another program changes, or removes with `flush ruleset` | our tables belong to our socket: the kernel refuses |
//! | death of the keeper alone | taps and rules without a keeper | last as long as the VMM: docs/design.md |
//! | death at any moment | leftovers | taps and tables die with their descriptors; the earlier state of other interfaces is written on our bridge; at most a bridge of ours without VMs, which has its uplink's addresses and routes, an unused macvtap or Open vSwitch port of ours, an ifb of rate limits and rules in Docker's chain stay, and the next VM there removes them |
//! | guest | another address on a macvtap | it receives no frames for it, and its card refuses to change; frames that it sends are not filtered |
//!
//! # Not supported
//!
//! Forwarded ports of single IPv6 addresses and of `::1`. Interfaces of other network namespaces, except through `fd=`;
//! the state of their links is not known, nor that of any `fd=` without CAP_NET_ADMIN. A card's settings do not change
//! while the VM runs.
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
pub use error::{Error, KeeperError, Report, error_chain};
pub use facts::ovs::{Datapath, OvsError, OvsFact};
pub use host::macvtap::Macvtap;
pub use host::ovs::OvsPort;
pub use identity::mac::MacAddr;
pub use identity::{alias, mac, runtime_dir};
pub use keeper::{Keeper, News, NotKept, Port, Services, Timing};
pub use kernel::bpf::{Steering, SteeringProgram};
pub use kernel::link::LinkState;
pub use kernel::tun::QueueMode;
pub use kernel::vlan::PortVlans;
pub use kernel::{link, nft};
pub use plan::{Plan, plan};
pub use policy::Policy;
pub use request::Request;
pub use rules::Member;
pub use rules::guard::Guard;
pub use spec::{NetSpec, SpecError};
pub use survey::siblings::Siblings;
