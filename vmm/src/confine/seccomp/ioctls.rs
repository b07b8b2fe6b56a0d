//! The numbers of ioctls, as the kernel compares them: 32 bits. From linux/kvm.h, linux/vhost.h and linux/if_tun.h, and
//! asm-generic/ioctls.h.

use kvm_bindings::{
    kvm_cpuid2, kvm_enable_cap, kvm_ioeventfd, kvm_irq_level, kvm_irq_routing, kvm_irqchip, kvm_irqfd, kvm_lapic_state,
    kvm_mp_state, kvm_msrs, kvm_regs, kvm_sregs, kvm_userspace_memory_region,
};
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr};

const KVMIO: u32 = 0xae;
const VHOST_VIRTIO: u32 = 0xaf;

/// The lower half of a number, which is all of it.
#[expect(clippy::cast_possible_truncation, reason = "the kernel takes the lower 32 bits")]
const fn lower(number: u64) -> u32 {
    number as u32
}

const fn io(group: u32, number: u32) -> u32 {
    lower(ioctl_expr(_IOC_NONE, group, number, 0))
}

/// `size` is that of a structure, and below 2^14.
#[expect(clippy::cast_possible_truncation, reason = "no such structure is larger than 16 KiB")]
const fn sized(direction: u32, group: u32, number: u32, size: usize) -> u32 {
    lower(ioctl_expr(direction, group, number, size as u32))
}

const fn iow<T>(group: u32, number: u32) -> u32 {
    sized(_IOC_WRITE, group, number, size_of::<T>())
}

const fn ior<T>(group: u32, number: u32) -> u32 {
    sized(_IOC_READ, group, number, size_of::<T>())
}

pub(super) const KVM_CREATE_VM: u32 = io(KVMIO, 0x01);
pub(super) const KVM_CHECK_EXTENSION: u32 = io(KVMIO, 0x03);
pub(super) const KVM_GET_VCPU_MMAP_SIZE: u32 = io(KVMIO, 0x04);
pub(super) const KVM_CREATE_VCPU: u32 = io(KVMIO, 0x41);
pub(super) const KVM_SET_USER_MEMORY_REGION: u32 = iow::<kvm_userspace_memory_region>(KVMIO, 0x46);
pub(super) const KVM_SET_TSS_ADDR: u32 = io(KVMIO, 0x47);
pub(super) const KVM_SET_IDENTITY_MAP_ADDR: u32 = iow::<u64>(KVMIO, 0x48);
pub(super) const KVM_CREATE_IRQCHIP: u32 = io(KVMIO, 0x60);
pub(super) const KVM_IRQ_LINE: u32 = iow::<kvm_irq_level>(KVMIO, 0x61);
pub(super) const KVM_GET_IRQCHIP: u32 = sized(_IOC_READ | _IOC_WRITE, KVMIO, 0x62, size_of::<kvm_irqchip>());
pub(super) const KVM_SET_IRQCHIP: u32 = ior::<kvm_irqchip>(KVMIO, 0x63);
pub(super) const KVM_SET_GSI_ROUTING: u32 = iow::<kvm_irq_routing>(KVMIO, 0x6a);
pub(super) const KVM_IRQFD: u32 = iow::<kvm_irqfd>(KVMIO, 0x76);
pub(super) const KVM_IOEVENTFD: u32 = iow::<kvm_ioeventfd>(KVMIO, 0x79);
pub(super) const KVM_RUN: u32 = io(KVMIO, 0x80);
pub(super) const KVM_GET_REGS: u32 = ior::<kvm_regs>(KVMIO, 0x81);
pub(super) const KVM_SET_REGS: u32 = iow::<kvm_regs>(KVMIO, 0x82);
pub(super) const KVM_GET_SREGS: u32 = ior::<kvm_sregs>(KVMIO, 0x83);
pub(super) const KVM_SET_SREGS: u32 = iow::<kvm_sregs>(KVMIO, 0x84);
pub(super) const KVM_SET_MSRS: u32 = iow::<kvm_msrs>(KVMIO, 0x89);
pub(super) const KVM_GET_LAPIC: u32 = ior::<kvm_lapic_state>(KVMIO, 0x8e);
pub(super) const KVM_SET_LAPIC: u32 = iow::<kvm_lapic_state>(KVMIO, 0x8f);
pub(super) const KVM_SET_CPUID2: u32 = iow::<kvm_cpuid2>(KVMIO, 0x90);
pub(super) const KVM_GET_MP_STATE: u32 = ior::<kvm_mp_state>(KVMIO, 0x98);
pub(super) const KVM_ENABLE_CAP: u32 = iow::<kvm_enable_cap>(KVMIO, 0xa3);

/// `struct vhost_vring_state`, `vhost_vring_file` and the head of `vhost_memory`.
type TwoWords = [u32; 2];
/// `struct vhost_vring_addr`.
type VringAddr = [u64; 5];

pub(super) const VHOST_GET_FEATURES: u32 = ior::<u64>(VHOST_VIRTIO, 0x00);
pub(super) const VHOST_SET_FEATURES: u32 = iow::<u64>(VHOST_VIRTIO, 0x00);
pub(super) const VHOST_SET_OWNER: u32 = io(VHOST_VIRTIO, 0x01);
pub(super) const VHOST_RESET_OWNER: u32 = io(VHOST_VIRTIO, 0x02);
pub(super) const VHOST_SET_MEM_TABLE: u32 = iow::<TwoWords>(VHOST_VIRTIO, 0x03);
pub(super) const VHOST_SET_VRING_NUM: u32 = iow::<TwoWords>(VHOST_VIRTIO, 0x10);
pub(super) const VHOST_SET_VRING_ADDR: u32 = iow::<VringAddr>(VHOST_VIRTIO, 0x11);
pub(super) const VHOST_SET_VRING_BASE: u32 = iow::<TwoWords>(VHOST_VIRTIO, 0x12);
pub(super) const VHOST_SET_VRING_KICK: u32 = iow::<TwoWords>(VHOST_VIRTIO, 0x20);
pub(super) const VHOST_SET_VRING_CALL: u32 = iow::<TwoWords>(VHOST_VIRTIO, 0x21);
pub(super) const VHOST_SET_VRING_ERR: u32 = iow::<TwoWords>(VHOST_VIRTIO, 0x22);
pub(super) const VHOST_NET_SET_BACKEND: u32 = iow::<TwoWords>(VHOST_VIRTIO, 0x30);

pub(super) const TUNGETIFF: u32 = lower(libc::TUNGETIFF);
pub(super) const TUNSETOFFLOAD: u32 = lower(libc::TUNSETOFFLOAD);
pub(super) const TUNSETQUEUE: u32 = lower(libc::TUNSETQUEUE);
pub(super) const TUNSETVNETHDRSZ: u32 = lower(libc::TUNSETVNETHDRSZ);
pub(super) const TUNSETSTEERINGEBPF: u32 = lower(libc::TUNSETSTEERINGEBPF);

pub(super) const BLKSSZGET: u32 = io(0x12, 104);
pub(super) const BLKIOMIN: u32 = io(0x12, 120);
pub(super) const BLKIOOPT: u32 = io(0x12, 121);
pub(super) const BLKALIGNOFF: u32 = io(0x12, 122);
pub(super) const BLKPBSZGET: u32 = io(0x12, 123);

pub(super) const TCGETS: u32 = lower(libc::TCGETS);
pub(super) const TCSETS: u32 = lower(libc::TCSETS);
pub(super) const TIOCGPGRP: u32 = lower(libc::TIOCGPGRP);
pub(super) const FIONBIO: u32 = lower(libc::FIONBIO);
pub(super) const SIOCGIFINDEX: u32 = lower(libc::SIOCGIFINDEX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel() {
        assert_eq!(
            [KVM_CREATE_VM, KVM_RUN, KVM_SET_USER_MEMORY_REGION, KVM_GET_SREGS, KVM_SET_CPUID2, KVM_GET_IRQCHIP],
            [0xae01, 0xae80, 0x4020_ae46, 0x8138_ae83, 0x4008_ae90, 0xc208_ae62]
        );
        assert_eq!(
            [TUNSETOFFLOAD, TUNSETQUEUE, TUNSETVNETHDRSZ, TUNSETSTEERINGEBPF, TUNGETIFF],
            [0x4004_54d0, 0x4004_54d9, 0x4004_54d8, 0x8004_54e0, 0x8004_54d2]
        );
        assert_eq!([VHOST_SET_VRING_ADDR, VHOST_NET_SET_BACKEND], [0x4028_af11, 0x4008_af30]);
        assert_eq!([BLKSSZGET, BLKPBSZGET, TCSETS], [0x1268, 0x127b, 0x5402]);
    }
}
