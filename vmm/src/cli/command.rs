//! Commands: requests to minivmm other than to run a VM.

use super::file::{self, BadConfig};
use super::settings::{Settings, vcpus};
use crate::name::VmName;
use crate::policy::PolicyFile;
use crate::request::{CardName, WantedLink};
use clap::{ArgGroup, Args, Subcommand};
use std::path::PathBuf;

/// The words. A VM that runs listens to the user who started it and to root.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
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
        state: WantedLink,
    },
    /// Say what on this host keeps a VM or its cards from working, and the command that changes it. The exit code is 0
    /// if a start with these cards would work; without cards, it looks at what a bridge and NAT need
    Doctor(InspectArgs),
    /// Inspection at the networks of VMs on this host
    #[command(subcommand, disable_help_subcommand = true, arg_required_else_help = false)]
    Net(NetCommand),
}

/// A question about this host.
#[derive(Debug)]
pub(crate) enum Question {
    /// The changes that a start would make to its networks.
    Plan(Inspection),
    /// Which cards VMs have.
    List {
        /// The form of the answer: JSON, or text.
        json: bool,
    },
    /// Leftovers of VMs, which are removed.
    Gc,
    /// Which policy a VM has, after it has been given this one.
    Policy(VmName, Option<PolicyFile>),
    /// The obstacles to a start.
    Doctor(Inspection),
}

/// Cards to look at, and how to answer.
#[derive(Debug)]
pub(crate) struct Inspection {
    /// The network that a start would ask for.
    pub(crate) request: net::Request,
    /// The form of the answer: JSON, or text.
    pub(crate) json: bool,
}

/// Commands about networks.
#[derive(Debug, Subcommand)]
pub(crate) enum NetCommand {
    /// Print every step that a start with these cards would take, and what would undo it; nothing is changed
    Plan(PlanArgs),
    /// Print the cards of every VM in this network namespace
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put another policy in the place of that of a running VM, at once and as a whole; or print the one in force, as
    /// JSON
    Policy {
        /// The VM's name
        #[arg(value_name = "VM")]
        name: VmName,
        /// The policy, as with --policy. Connections that it forbids are cut
        #[arg(value_name = "FILE")]
        file: Option<PolicyFile>,
    },
    /// Remove what is left of VMs that were killed together with their keeper: bridges and macvtaps that no VM uses,
    /// ports of Open vSwitch, ifbs of rate= with vhost=on, rules for Docker, locks and sockets of names; and give
    /// uplinks and the host's forwarding back what they had
    Gc,
}

/// The cards that are planned for.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("cards").args(["net", "config"]).multiple(true).required(true)))]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    inspect: InspectArgs,
}

/// The cards that are looked at, in the flags of a start.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Network card, as at a start; can be repeated
    #[arg(long, value_name = "SPEC")]
    net: Vec<net::NetSpec>,

    /// Settings that are not given here: the file of a start
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Policy, as at a start
    #[arg(long, value_name = "FILE")]
    policy: Option<PolicyFile>,

    /// Name of the VM, from which the cards' addresses are derived [default: minivmm-PID, which differs at the start]
    #[arg(long, value_name = "NAME")]
    name: Option<VmName>,

    /// Number of vCPUs, from which the number of queue pairs follows [default: 1]
    #[arg(long, value_name = "N", value_parser = vcpus)]
    cpus: Option<u32>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl PlanArgs {
    /// The cards, with what their file says of them.
    ///
    /// # Errors
    /// The file gives no settings.
    pub(super) fn inspection(self) -> Result<Inspection, BadConfig> {
        self.inspect.inspection()
    }
}

impl InspectArgs {
    /// The cards, with what their file says of them.
    ///
    /// # Errors
    /// The file gives no settings.
    pub(super) fn inspection(self) -> Result<Inspection, BadConfig> {
        let file = self.config.as_deref().map_or_else(|| Ok(Settings::default()), file::read)?;
        let name = self.name.or(file.name).unwrap_or_else(|| VmName::of_process(std::process::id()));
        let request = net::Request {
            vm_name: name.as_str().to_owned(),
            vcpus: self.cpus.unwrap_or(file.cpus),
            cards: if self.net.is_empty() { file.net } else { self.net },
            policy: self.policy.or(file.policy).map(|file| file.0),
            steering: None,
        };
        Ok(Inspection { request, json: self.json })
    }
}
