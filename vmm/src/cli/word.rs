//! What minivmm can be told instead of running a VM.

use super::settings::vcpus;
use crate::name::VmName;
use crate::request::{CardName, LinkWish};
use clap::{Args, Subcommand};

/// The words. A VM that runs listens to the user who started it and to root.
#[derive(Debug, Subcommand)]
pub(crate) enum Word {
    /// Print what the devices of a running VM have counted, as JSON
    Counters {
        /// The VM's name
        #[arg(value_name = "VM")]
        name: VmName,
    },
    /// Take the cable of a card of a running VM out, or put it back
    Link {
        /// The VM's name
        #[arg(value_name = "VM")]
        name: VmName,
        /// The card: net0 is that of the first --net
        #[arg(value_name = "CARD")]
        card: CardName,
        /// `down`: no frames pass; `up`: as the host's interface has it
        state: LinkWish,
    },
    /// Say what on this host keeps a VM or its cards from working, and the command that changes it. The exit code is 0 if a start
    /// with these cards would work
    Doctor(DoctorArgs),
    /// Look at the networks of VMs on this host
    #[command(subcommand, disable_help_subcommand = true, arg_required_else_help = false)]
    Net(NetWord),
}

/// A question about this host.
#[derive(Debug)]
pub(crate) enum Question {
    /// About networks.
    Net(NetWord),
    /// What is wrong with it.
    Doctor(DoctorArgs),
}

/// What can be asked about networks.
#[derive(Debug, Subcommand)]
pub(crate) enum NetWord {
    /// Print every step that a start with these cards would take, and what would undo it; nothing is changed
    Plan(PlanArgs),
    /// Print the cards of every VM in this network namespace
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove what is left of VMs that were killed together with their keeper: bridges of minivmm without ports
    Gc,
}

/// The cards that are planned for.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// Network card, as at a start; can be repeated
    #[arg(long, value_name = "SPEC", required = true)]
    net: Vec<net::NetSpec>,

    /// Name of the VM, from which the cards' addresses are derived [default: minivmm-PID, which differs at the start]
    #[arg(long, value_name = "NAME")]
    name: Option<VmName>,

    /// Number of vCPUs, from which the number of queue pairs follows
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = vcpus)]
    cpus: u32,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The cards that are looked at.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Network card, as at a start; can be repeated [default: what a bridge and NAT need]
    #[arg(long, value_name = "SPEC")]
    net: Vec<net::NetSpec>,

    /// Name of the VM, as at a start
    #[arg(long, value_name = "NAME")]
    name: Option<VmName>,

    /// Number of vCPUs, as at a start
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = vcpus)]
    cpus: u32,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl PlanArgs {
    /// What a start would ask of the network.
    pub(crate) fn request(&self) -> net::Request {
        request(self.name.as_ref(), self.cpus, &self.net)
    }
}

impl DoctorArgs {
    /// What a start would ask of the network.
    pub(crate) fn request(&self) -> net::Request {
        request(self.name.as_ref(), self.cpus, &self.net)
    }
}

fn request(name: Option<&VmName>, vcpus: u32, cards: &[net::NetSpec]) -> net::Request {
    let name = name.map_or_else(|| VmName::of_process(std::process::id()), VmName::clone);
    net::Request { vm_name: name.as_str().to_owned(), vcpus, cards: cards.to_vec(), steering: None }
}
