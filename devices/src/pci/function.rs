//! The root bus's view of a PCI function.

/// A function with configuration space and at most one memory BAR.
///
/// Called by vCPU threads, also by several at once. [`remapped`](Self::remapped) is called by the root bus after every
/// configuration write that changed where the BAR answers.
pub trait PciFunction: Send + Sync {
    /// Reads configuration space at `offset` (0 to 4095) with any width.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration space at `offset` with any width.
    fn write_config(&self, offset: u16, data: &[u8]);

    /// Size of the memory BAR in bytes, a power of two; 0 if there is none.
    fn bar_size(&self) -> u64;

    /// Sets the BAR's address before the guest starts, as firmware would.
    fn place_bar(&self, address: u64);

    /// The address that the BAR asks for now; `None` while memory decoding is off.
    fn bar_address(&self) -> Option<u64>;

    /// Where the BAR answers from now on; `None` if nowhere.
    fn remapped(&self, address: Option<u64>);

    /// Reads the BAR at `offset` with any width.
    fn read_bar(&self, offset: u64, data: &mut [u8]);

    /// Writes the BAR at `offset` with any width.
    fn write_bar(&self, offset: u64, data: &[u8]);
}
