//! The cards that a VM is to have, with its policy and steering program. Knows no host.

use std::os::fd::RawFd;

use crate::kernel::bpf::SteeringProgram;
use crate::policy::Policy;
use crate::spec::NetSpec;

/// The cards of a VM.
#[derive(Clone, Debug)]
pub struct Request {
    /// The VM's name. Addresses that are not given are derived from it.
    pub vm_name: String,
    /// The VM's vCPUs. Numbers of queue pairs that are not given are derived from it.
    pub vcpus: u32,
    /// One spec for each card.
    pub cards: Vec<NetSpec>,
    /// The policy on the guest's traffic; without one everything is allowed.
    pub policy: Option<Policy>,
    /// The steering program that chooses between the queues of a card that has several, if the kernel accepts it.
    pub steering: Option<SteeringProgram>,
}

impl Request {
    /// The descriptors that the cards name.
    pub(crate) fn inherited_fds(&self) -> Vec<RawFd> {
        let fds = self.cards.iter().filter_map(|card| match card {
            NetSpec::Fd(spec) => Some(spec.fd.as_slice()),
            _ => None,
        });
        fds.flatten().copied().collect()
    }
}
