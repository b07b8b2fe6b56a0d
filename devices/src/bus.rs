//! An address space: sorted, non-overlapping ranges, each answered by one device.
//!
//! Used for guest-physical MMIO and for I/O ports. A read that hits nothing returns all ones, a write that hits nothing
//! is dropped, as on a PC without a device at that address.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A device that answers reads and writes inside one range.
///
/// Called by any vCPU thread, also by several at once; offsets are relative to the range. `data` is 1 to 8 bytes,
/// little-endian. Every access is guest input: an odd width or offset must be harmless.
pub trait BusDevice: Send + Sync {
    /// Fills `data` from the register at `offset`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data` to the register at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A range that cannot be added to a bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The range is empty or passes the end of the address space.
    #[error("Bus range of {len:#x} bytes at {base:#x} is empty or wraps around")]
    BadRange {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The range overlaps one that is already there.
    #[error("Bus range of {len:#x} bytes at {base:#x} overlaps the one at {other:#x}")]
    Overlap {
        /// First address of the refused range.
        base: u64,
        /// Length in bytes of the refused range.
        len: u64,
        /// First address of the range that is in the way.
        other: u64,
    },
}

struct Range {
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// One address space. Filled while the machine is built, then shared read-only by the vCPU threads.
#[derive(Default)]
pub struct Bus {
    ranges: BTreeMap<u64, Range>,
}

impl Bus {
    /// An address space with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `device` answer `len` bytes from `base` on.
    ///
    /// # Errors
    /// If the range is empty, wraps around or overlaps another.
    pub fn insert(&mut self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), Error> {
        let last = len.checked_sub(1).and_then(|l| base.checked_add(l)).ok_or(Error::BadRange { base, len })?;
        if let Some((&other, range)) = self.ranges.range(..=last).next_back()
            && range.last >= base
        {
            return Err(Error::Overlap { base, len, other });
        }
        self.ranges.insert(base, Range { last, device });
        Ok(())
    }

    /// Reads `data.len()` bytes at `addr`; all ones where nothing answers.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        match self.find(addr, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes `data` at `addr`; dropped where nothing answers.
    pub fn write(&self, addr: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(addr, data.len()) {
            device.write(offset, data);
        }
    }

    /// The device that covers all of the access. One that straddles the end of a range hits nothing.
    fn find(&self, addr: u64, len: usize) -> Option<(&dyn BusDevice, u64)> {
        let (&base, range) = self.ranges.range(..=addr).next_back()?;
        let last = addr.checked_add(u64::try_from(len).ok()?.checked_sub(1)?)?;
        (last <= range.last).then(|| (range.device.as_ref(), addr - base))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn access_is_relative_to_the_range() {
        let device = Arc::new(Recorder::default());
        let mut bus = Bus::new();
        bus.insert(0x100, 0x10, device.clone()).unwrap();

        let mut data = [0; 2];
        bus.read(0x104, &mut data);
        bus.write(0x10f, &[7]);

        assert_eq!(data, [4, 4]);
        assert_eq!(*device.0.lock().unwrap(), [(0xf, vec![7])]);
    }

    #[test]
    fn miss_and_straddle_read_all_ones() {
        let mut bus = Bus::new();
        bus.insert(0x100, 0x10, Arc::new(Recorder::default())).unwrap();

        for addr in [0, 0xff, 0x10f, 0x110, u64::MAX] {
            let mut data = [0; 2];
            bus.read(addr, &mut data);
            assert_eq!(data, [0xff; 2], "{addr:#x}");
        }
    }

    #[test]
    fn overlap_is_refused() {
        let device = Arc::new(Recorder::default());
        let mut bus = Bus::new();
        bus.insert(0x100, 0x10, device.clone()).unwrap();

        for (base, len) in [(0x100, 1), (0x10f, 1), (0xf8, 9), (0, u64::MAX)] {
            let result = bus.insert(base, len, device.clone());
            assert_eq!(result, Err(Error::Overlap { base, len, other: 0x100 }));
        }
        assert!(bus.insert(0xf8, 8, device.clone()).is_ok());
        assert!(bus.insert(0x110, 8, device.clone()).is_ok());
        assert_eq!(bus.insert(0, 0, device), Err(Error::BadRange { base: 0, len: 0 }));
    }
}
