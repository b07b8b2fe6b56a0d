//! The root bus: configuration space through ECAM and CF8/CFC, and the MMIO windows in which BARs answer.
//!
//! A BAR answers only inside a window and only if no other BAR is there already: a guest that puts one over RAM, over
//! the interrupt controllers or over another BAR gets all ones, and no doorbell.

use crate::bus::BusDevice;
use crate::pci::bdf::Bdf;
use crate::pci::function::PciFunction;
use crate::pci::host_bridge::HostBridge;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vm_allocator::{AddressAllocator, AllocPolicy};

/// The guest-physical addresses that BARs can use.
#[derive(Debug, Clone)]
pub struct Windows {
    /// Below 4 GiB.
    pub mem32: RangeInclusive<u64>,
    /// Above all RAM.
    pub mem64: RangeInclusive<u64>,
}

/// Why a function cannot be added.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// All 32 device numbers are taken.
    #[error("The PCI bus is full: it has room for {} devices", Bdf::DEVICES - 1)]
    BusFull,
    /// The 32-bit window has no room left for the BAR.
    #[error("The PCI window has no room for a BAR of {size:#x} bytes")]
    WindowFull {
        /// Size of the BAR in bytes.
        size: u64,
    },
    /// The window itself is not a usable range.
    #[error("The PCI window {0:?} is empty")]
    BadWindow(RangeInclusive<u64>),
}

struct Mapping {
    size: u64,
    device: usize,
}

/// The root bus. Filled while the machine is built, then shared by the vCPU threads.
pub struct PciRoot {
    windows: Windows,
    allocator: AddressAllocator,
    /// Indexed by device number; each has only function 0.
    functions: Vec<Arc<dyn PciFunction>>,
    /// The BARs that answer now, by address. Held while a function is told that it moved.
    mappings: Mutex<BTreeMap<u64, Mapping>>,
    /// The CONFIG_ADDRESS register, PCI 3.0 3.2.2.3.2.
    config_address: AtomicU32,
}

impl PciRoot {
    /// A bus with only its host bridge.
    ///
    /// # Errors
    /// If the 32-bit window is empty.
    pub fn new(windows: Windows) -> Result<Self, Error> {
        let (start, end) = (*windows.mem32.start(), *windows.mem32.end());
        let size = end.checked_sub(start).map_or(0, |s| s + 1);
        let allocator = AddressAllocator::new(start, size).map_err(|_| Error::BadWindow(windows.mem32.clone()))?;
        Ok(Self {
            windows,
            allocator,
            functions: vec![Arc::new(HostBridge::new())],
            mappings: Mutex::default(),
            config_address: AtomicU32::new(0),
        })
    }

    /// Where [`add`](Self::add) will plug the next function.
    ///
    /// # Errors
    /// If the bus is full.
    pub fn next_slot(&self) -> Result<Bdf, Error> {
        let device = u8::try_from(self.functions.len()).map_err(|_| Error::BusFull)?;
        Bdf::on_root_bus(device).ok_or(Error::BusFull)
    }

    /// Plugs `function` into the next free device number and gives its BAR an address.
    ///
    /// # Errors
    /// If the bus or the window is full.
    pub fn add(&mut self, function: Arc<dyn PciFunction>) -> Result<Bdf, Error> {
        let bdf = self.next_slot()?;
        let size = function.bar_size();
        if size > 0 {
            let range =
                self.allocator.allocate(size, size, AllocPolicy::FirstMatch).map_err(|_| Error::WindowFull { size })?;
            function.place_bar(range.start());
        }
        self.functions.push(function);
        Ok(bdf)
    }

    /// The device of the ECAM range (PCI Express 7.2.2).
    pub fn ecam(root: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(Ecam(root.clone()))
    }

    /// The device of ports CF8 to CFF.
    pub fn config_ports(root: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(ConfigPorts(root.clone()))
    }

    /// The device of the window that starts at `base`.
    pub fn window(root: &Arc<Self>, base: u64) -> Arc<dyn BusDevice> {
        Arc::new(Window { root: root.clone(), base })
    }

    fn read_config(&self, bdf: Bdf, offset: u16, data: &mut [u8]) {
        match self.function_at(bdf) {
            Some(device) => self.functions[device].read_config(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write_config(&self, bdf: Bdf, offset: u16, data: &[u8]) {
        if let Some(device) = self.function_at(bdf) {
            self.functions[device].write_config(offset, data);
            self.remap(device);
        }
    }

    fn function_at(&self, bdf: Bdf) -> Option<usize> {
        let device = usize::from(bdf.device());
        (bdf.bus() == 0 && bdf.function() == 0 && device < self.functions.len()).then_some(device)
    }

    /// Makes the mapping of `device` what its registers say now.
    fn remap(&self, device: usize) {
        let function = &self.functions[device];
        let size = function.bar_size();
        let mut mappings = self.mappings.lock().unwrap_or_else(PoisonError::into_inner);
        let old = mappings.iter().find(|(_, m)| m.device == device).map(|(&address, _)| address);
        let wanted = function.bar_address();
        if old == wanted {
            return;
        }
        if let Some(address) = old {
            mappings.remove(&address);
        }
        let new = wanted.filter(|&address| self.is_free(&mappings, address, size));
        if let Some(address) = new {
            mappings.insert(address, Mapping { size, device });
        }
        if new != old {
            function.remapped(new);
        }
    }

    fn is_free(&self, mappings: &BTreeMap<u64, Mapping>, address: u64, size: u64) -> bool {
        let Some(last) = size.checked_sub(1).and_then(|s| address.checked_add(s)) else {
            return false;
        };
        let in_window =
            [&self.windows.mem32, &self.windows.mem64].iter().any(|w| w.contains(&address) && w.contains(&last));
        let overlaps =
            mappings.range(..=last).next_back().is_some_and(|(&other, mapping)| other + (mapping.size - 1) >= address);
        in_window && !overlaps
    }

    /// The function whose BAR covers all of an access, and the offset in the BAR.
    fn find(&self, address: u64, len: usize) -> Option<(&dyn PciFunction, u64)> {
        let mappings = self.mappings.lock().unwrap_or_else(PoisonError::into_inner);
        let (&base, mapping) = mappings.range(..=address).next_back()?;
        let offset = address - base;
        let end = offset.checked_add(u64::try_from(len).ok()?)?;
        (end <= mapping.size).then(|| (self.functions[mapping.device].as_ref(), offset))
    }
}

struct Ecam(Arc<PciRoot>);

impl Ecam {
    /// Bits 27:12 name the function, bits 11:0 the register.
    fn split(offset: u64) -> Option<(Bdf, u16)> {
        let function = u16::try_from(offset >> 12).ok()?;
        let register = u16::try_from(offset & 0xfff).ok()?;
        Some((Bdf::from_bits(function), register))
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match Self::split(offset) {
            Some((bdf, register)) => self.0.read_config(bdf, register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((bdf, register)) = Self::split(offset) {
            self.0.write_config(bdf, register, data);
        }
    }
}

struct ConfigPorts(Arc<PciRoot>);

impl ConfigPorts {
    const ENABLE: u32 = 1 << 31;

    /// The register that an access to CONFIG_DATA at `port` (4 to 7, relative to CF8) reaches.
    fn target(&self, port: u64) -> Option<(Bdf, u16)> {
        let address = self.0.config_address.load(Ordering::Relaxed);
        let [register, low, high, _] = address.to_le_bytes();
        let byte = u16::try_from(port.checked_sub(4)?).ok()?;
        let enabled = address & Self::ENABLE != 0;
        let register = u16::from(register & 0xfc) + byte;
        enabled.then(|| (Bdf::from_bits(u16::from_le_bytes([low, high])), register))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, port: u64, data: &mut [u8]) {
        if port == 0 && data.len() == 4 {
            data.copy_from_slice(&self.0.config_address.load(Ordering::Relaxed).to_le_bytes());
        } else if let Some((bdf, register)) = self.target(port) {
            self.0.read_config(bdf, register, data);
        } else {
            data.fill(0xff);
        }
    }

    fn write(&self, port: u64, data: &[u8]) {
        if port == 0
            && let Ok(address) = data.try_into().map(u32::from_le_bytes)
        {
            // Bits 30:24 and 1:0 are reserved and read as zero.
            self.0.config_address.store(address & 0x80ff_fffc, Ordering::Relaxed);
        } else if let Some((bdf, register)) = self.target(port) {
            self.0.write_config(bdf, register, data);
        }
    }
}

struct Window {
    root: Arc<PciRoot>,
    base: u64,
}

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.root.find(self.base + offset, data.len()) {
            Some((function, offset)) => function.read_bar(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, offset)) = self.root.find(self.base + offset, data.len()) {
            function.write_bar(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::config::{ConfigSpace, Identity};

    const SIZE: u64 = 0x1000;
    const WINDOW: u64 = 0xc000_0000;

    struct FakeFunction {
        config: Mutex<ConfigSpace>,
        moves: Mutex<Vec<Option<u64>>>,
    }

    impl PciFunction for FakeFunction {
        fn read_config(&self, offset: u16, data: &mut [u8]) {
            self.config.lock().unwrap().read(offset, data);
        }
        fn write_config(&self, offset: u16, data: &[u8]) {
            self.config.lock().unwrap().write(offset, data);
        }
        fn bar_size(&self) -> u64 {
            SIZE
        }
        fn place_bar(&self, address: u64) {
            self.config.lock().unwrap().place_bar(address);
        }
        fn bar_address(&self) -> Option<u64> {
            let config = self.config.lock().unwrap();
            config.memory_enabled().then(|| config.bar_address())
        }
        fn remapped(&self, address: Option<u64>) {
            self.moves.lock().unwrap().push(address);
        }
        fn read_bar(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset & 0xff).unwrap());
        }
        fn write_bar(&self, _offset: u64, _data: &[u8]) {}
    }

    fn root() -> (Arc<PciRoot>, Arc<FakeFunction>, Arc<FakeFunction>) {
        let function = || {
            let mut config = ConfigSpace::new(Identity {
                vendor: 0x1af4,
                device: 0x1041,
                revision: 1,
                class: [2, 0, 0],
                subsystem_vendor: 0,
                subsystem: 0,
            });
            config.add_bar(SIZE);
            Arc::new(FakeFunction { config: Mutex::new(config), moves: Mutex::default() })
        };
        let windows = Windows { mem32: WINDOW..=0xcfff_ffff, mem64: 1 << 32..=(1 << 40) - 1 };
        let (one, two) = (function(), function());
        let mut root = PciRoot::new(windows).unwrap();
        assert_eq!(root.add(one.clone()).unwrap().to_string(), "00:01.0");
        assert_eq!(root.add(two.clone()).unwrap().to_string(), "00:02.0");
        (Arc::new(root), one, two)
    }

    fn ecam_write(root: &Arc<PciRoot>, device: u64, register: u64, data: &[u8]) {
        PciRoot::ecam(root).write(device << 15 | register, data);
    }

    fn window_read(root: &Arc<PciRoot>, address: u64) -> u8 {
        let mut data = [0];
        PciRoot::window(root, WINDOW).read(address - WINDOW, &mut data);
        data[0]
    }

    #[test]
    fn ecam_and_cf8_agree() {
        let (root, ..) = root();
        let mut ecam = [0; 4];
        PciRoot::ecam(&root).read(1 << 15, &mut ecam);
        let ports = PciRoot::config_ports(&root);
        ports.write(0, &0x8000_0800_u32.to_le_bytes());
        let mut cf8 = [0; 4];
        ports.read(4, &mut cf8);
        assert_eq!((u32::from_le_bytes(ecam), cf8), (0x1041_1af4, ecam));
        let mut upper = [0; 2];
        ports.read(6, &mut upper);
        assert_eq!(u16::from_le_bytes(upper), 0x1041);
    }

    #[test]
    fn absent_functions_read_all_ones() {
        let (root, ..) = root();
        for offset in [3 << 15, 1 << 15 | 1 << 12, 1 << 20 | 1 << 15] {
            let mut data = [0; 4];
            PciRoot::ecam(&root).read(offset, &mut data);
            assert_eq!(data, [0xff; 4], "{offset:#x}");
        }
    }

    #[test]
    fn bar_answers_only_while_memory_is_enabled() {
        let (root, one, _) = root();
        assert_eq!(window_read(&root, WINDOW + 8), 0xff);
        ecam_write(&root, 1, 4, &[2]);
        assert_eq!(window_read(&root, WINDOW + 8), 8);
        ecam_write(&root, 1, 4, &[0]);
        assert_eq!(window_read(&root, WINDOW + 8), 0xff);
        assert_eq!(*one.moves.lock().unwrap(), [Some(WINDOW), None]);
    }

    #[test]
    fn moved_bar_answers_at_the_new_address_only() {
        let (root, ..) = root();
        ecam_write(&root, 1, 4, &[2]);
        ecam_write(&root, 1, 0x10, &0xc800_0000_u32.to_le_bytes());
        assert_eq!(window_read(&root, WINDOW + 8), 0xff);
        assert_eq!(window_read(&root, 0xc800_0008), 8);
    }

    #[test]
    fn bar_over_another_or_outside_the_windows_answers_nowhere() {
        let (root, _, two) = root();
        ecam_write(&root, 1, 4, &[2]);
        ecam_write(&root, 2, 0x10, &u32::try_from(WINDOW).unwrap().to_le_bytes());
        ecam_write(&root, 2, 4, &[2]);
        assert!(two.moves.lock().unwrap().is_empty());
        ecam_write(&root, 2, 0x10, &0xfee0_0000_u32.to_le_bytes());
        assert!(two.moves.lock().unwrap().is_empty());
        ecam_write(&root, 2, 0x10, &0xc800_0000_u32.to_le_bytes());
        assert_eq!(*two.moves.lock().unwrap(), [Some(0xc800_0000)]);
    }

    #[test]
    fn full_bus_is_refused() {
        let (_, one, _) = root();
        let windows = Windows { mem32: WINDOW..=0xcfff_ffff, mem64: 1 << 32..=(1 << 40) - 1 };
        let mut root = PciRoot::new(windows).unwrap();
        for _ in 1..Bdf::DEVICES {
            root.add(one.clone()).unwrap();
        }
        assert!(matches!(root.add(one), Err(Error::BusFull)));
    }
}
