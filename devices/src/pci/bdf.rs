//! Where a function sits: bus, device, function.

use std::fmt;

/// A PCI address: bus 0 to 255, device 0 to 31, function 0 to 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf(u16);

impl Bdf {
    /// Devices that a bus has room for.
    pub const DEVICES: u8 = 32;

    /// Function 0 of `device` on the root bus; `None` past the 32nd device.
    pub fn on_root_bus(device: u8) -> Option<Self> {
        (device < Self::DEVICES).then(|| Self(u16::from(device) << 3))
    }

    /// From the bits that ECAM and CF8 carry: 8 of bus, 5 of device, 3 of function.
    pub fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The bus number.
    pub fn bus(self) -> u8 {
        (self.0 >> 8).to_le_bytes()[0]
    }

    /// The device number on its bus.
    pub fn device(self) -> u8 {
        (self.0 >> 3).to_le_bytes()[0] & 0x1f
    }

    /// The function number in its device.
    pub fn function(self) -> u8 {
        self.0.to_le_bytes()[0] & 7
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_split_into_bus_device_function() {
        let bdf = Bdf::from_bits(0x12fb);
        assert_eq!((bdf.bus(), bdf.device(), bdf.function()), (0x12, 0x1f, 3));
        assert_eq!(bdf.to_string(), "12:1f.3");
    }

    #[test]
    fn root_bus_has_32_devices() {
        assert_eq!(Bdf::on_root_bus(31).map(Bdf::device), Some(31));
        assert_eq!(Bdf::on_root_bus(32), None);
    }
}
