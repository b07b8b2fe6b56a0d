//! Devices: everything that the guest can see. The bus, PCI, virtio and a few legacy devices.
//!
//! The crate has no KVM and opens no path. It is handed descriptors (a tap, a disk, an event) and two small traits
//! which the VMM implements with irqfd and ioeventfd and which tests fake: [`irq`] and [`doorbell`].
//!
//! # Threats
//! | from | what it can do | what holds it |
//! |---|---|---|
//! | guest, any vCPU | read and write any register with any width at any time | registers are data with write masks; a miss reads all ones |
//! | guest driver | put anything in rings and buffers, change it while it is read | every address is looked up in the guest's memory regions, chains are bounded by the ring and in bytes, a value is read once |
//! | guest driver | reset a device in the middle of a burst | queues move into a worker at activation and come back when it is joined |
//! | guest driver | reset a single queue in the middle of a burst | its worker lets go of it between two events, before the write ends |
//! | guest driver | have the host take locks in a loop, by commands | what changes nothing makes no call, the rest is limited per second |
//! | guest driver | never read the ISR status | the pin stays asserted: the guest interrupts itself, not the host |
//! | guest driver | have interrupts held back for ever | a second at most, half a ring at most |
//! | guest driver | lie in the headers of datagrams that are joined | they are copied first, and only right ones are joined |
//! | guest driver of a card on vhost-net | all of that to the host's kernel, which serves its rings | the user has chosen it; what the kernel finds broken stops the card until its reset |
//! | guest driver | have a worker panic, which takes a bug of ours | the device waits for a reset, the VM lives on |
//! | the LAN | send any frame | only addresses, tags and ports are looked at, by parsers that are total and bounded, and only if the guest asks for filters or hashes |
//! | the host | full disk, a tap that goes down | counted and reported to the guest, the VM keeps running; the guest of a disk can wait instead |
//!
//! # Not supported
//! Legacy and transitional virtio, virtio-mmio, packed rings, other devices than those listed in [`virtio`] and
//! [`legacy`].

pub mod bus;
pub mod doorbell;
pub mod irq;
pub mod legacy;
pub mod pci;
mod sync;
pub mod virtio;
