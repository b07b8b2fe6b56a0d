//! A function's configuration space as data: 256 bytes and a mask of the bits that a guest can write.
//!
//! BAR sizing needs no code of its own: the address bits below the BAR's size are not writable, so writing all ones and
//! reading back gives the size (PCI 3.0 6.2.5.1).

const SIZE: usize = 256;
const HEADER_SIZE: u8 = 0x40;

/// Offset of the command register, PCI 3.0 6.2.2.
pub const COMMAND: u16 = 0x04;
/// Command register: the function answers memory accesses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command register: the function may be a bus master.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Command register: the function leaves its interrupt pin alone.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Offset of the status register, PCI 3.0 6.2.3.
pub const STATUS: u16 = 0x06;
/// Status register, lower byte: the function wants to interrupt by its pin, whether or not it may.
pub const STATUS_INTERRUPT: u8 = 1 << 3;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const CAPABILITIES_POINTER: usize = 0x34;
const BAR0: u16 = 0x10;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
/// Interrupt Pin: INTA#, the one that a device with a single function uses (PCI 3.0 6.2.4).
const PIN_INTA: u8 = 1;
/// BAR bits 2:1 = 10: anywhere in the 64-bit address space.
const BAR_64BIT: u8 = 0b100;

/// The identity of a function, PCI 3.0 6.2.1.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, sub-class, programming interface.
    pub class: [u8; 3],
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// 256 bytes of configuration space. The extended space above reads as zero: there are no extended capabilities.
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    next_capability: u8,
    last_pointer: usize,
}

impl ConfigSpace {
    /// A type 0 header without BARs and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            next_capability: HEADER_SIZE,
            last_pointer: CAPABILITIES_POINTER,
        };
        let [base, sub, interface] = identity.class;
        space.set(0x00, &identity.vendor.to_le_bytes());
        space.set(0x02, &identity.device.to_le_bytes());
        space.set(0x08, &[identity.revision, interface, sub, base]);
        space.set(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.set(0x2e, &identity.subsystem.to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE;
        space.allow(COMMAND.into(), &command.to_le_bytes());
        // Cache line size and interrupt line are scratch registers for software, PCI 3.0 6.2.4.
        space.allow(0x0c, &[0xff]);
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Gives the function a 64-bit memory BAR 0 of `size` bytes, a power of two of at least 16.
    pub fn add_bar(&mut self, size: u64) {
        self.set(BAR0.into(), &[BAR_64BIT]);
        self.allow(BAR0.into(), &(!(size - 1)).to_le_bytes());
    }

    /// Gives the function the interrupt pin INTA#, which firmware has found to lead to `line`.
    pub fn add_pin(&mut self, line: u8) {
        self.set(INTERRUPT_LINE, &[line]);
        self.set(INTERRUPT_PIN, &[PIN_INTA]);
    }

    /// Adds a capability: its ID, what follows the two bytes of header, and the mask of what a guest may write in that.
    /// Returns the offset of the capability.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u16 {
        let offset = self.next_capability;
        let at = usize::from(offset);
        self.bytes[self.last_pointer] = offset;
        self.bytes[usize::from(STATUS)] |= STATUS_CAPABILITIES;
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        self.last_pointer = at + 1;
        let end = (at + 2 + body.len()).next_multiple_of(4);
        assert!(end < SIZE, "the capabilities of a function are fixed in its code and fit");
        self.next_capability = end.to_le_bytes()[0];
        offset.into()
    }

    /// Reads at any offset with any width; zero past the end.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes the writable bits at any offset with any width.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (at, new) in (usize::from(offset)..SIZE).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | new & mask;
        }
    }

    /// The 16-bit register at `offset`.
    pub fn u16_at(&self, offset: u16) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// The 32-bit register at `offset`.
    pub fn u32_at(&self, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// The address in BAR 0, whether or not it is being decoded.
    pub fn bar_address(&self) -> u64 {
        let high = u64::from(self.u32_at(BAR0 + 4)) << 32;
        high | u64::from(self.u32_at(BAR0) & !0xf)
    }

    /// Sets the address in BAR 0, as firmware would.
    pub fn place_bar(&mut self, address: u64) {
        self.write(BAR0, &address.to_le_bytes());
    }

    /// Returns whether the guest lets the function answer memory accesses.
    pub fn memory_enabled(&self) -> bool {
        self.u16_at(COMMAND) & COMMAND_MEMORY != 0
    }

    /// Returns whether the guest lets the function access memory and send messages.
    pub fn bus_master(&self) -> bool {
        self.u16_at(COMMAND) & COMMAND_MASTER != 0
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1041,
            revision: 1,
            class: [2, 0, 0],
            subsystem_vendor: 0x1af4,
            subsystem: 0x1041,
        })
    }

    #[test]
    fn identity_is_read_only() {
        let mut space = space();
        space.write(0, &[0; 4]);
        assert_eq!(space.u32_at(0), 0x1041_1af4);
        assert_eq!(space.u32_at(8), 0x0200_0001);
    }

    #[test]
    fn bar_answers_its_size_to_all_ones() {
        let mut space = space();
        space.add_bar(0x1_0000);
        space.write(0x10, &[0xff; 8]);
        assert_eq!((space.u32_at(0x10), space.u32_at(0x14)), (0xffff_0004, 0xffff_ffff));
        space.place_bar(0xc001_0000);
        assert_eq!(space.bar_address(), 0xc001_0000);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = space();
        let first = space.add_capability(9, &[1; 14], &[]);
        let second = space.add_capability(0x11, &[2; 10], &[0xff]);
        let mut list = [0; 1];
        space.read(0x34, &mut list);
        assert_eq!(u16::from(list[0]), first);
        space.read(first, &mut list);
        assert_eq!(list[0], 9);
        space.read(first + 1, &mut list);
        assert_eq!(u16::from(list[0]), second);
        space.read(second + 1, &mut list);
        assert_eq!(list[0], 0);
        space.write(second + 2, &[7, 7]);
        assert_eq!(space.u16_at(second + 2), 0x0207);
    }

    #[test]
    fn extended_space_reads_zero() {
        let mut data = [0xaa; 4];
        space().read(0xffe, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
