//! Doorbells with ioeventfd: a guest write that ends in an eventfd without leaving the kernel.

use devices::doorbell::Doorbells;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use std::io;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// `KVM_IOEVENTFD` with length 0, so that a write of any width and value rings (and KVM takes its fast path).
pub(super) struct KvmDoorbells {
    vm: Arc<VmFd>,
}

impl KvmDoorbells {
    pub(super) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm }
    }
}

impl Doorbells for KvmDoorbells {
    fn assign(&self, addr: u64, event: &EventFd) -> io::Result<()> {
        self.vm.register_ioevent(event, &IoEventAddress::Mmio(addr), NoDatamatch).map_err(io::Error::from)
    }

    fn deassign(&self, addr: u64, event: &EventFd) -> io::Result<()> {
        self.vm.unregister_ioevent(event, &IoEventAddress::Mmio(addr), NoDatamatch).map_err(io::Error::from)
    }
}
