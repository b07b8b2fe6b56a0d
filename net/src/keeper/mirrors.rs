//! Restores the copies to an interface that has gone and come back: the kernel's rule names the old interface, not a
//! later one of that name.

use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;

use super::NotKept;
use crate::host::mirror::Mirror;
use crate::kernel::link::index_of;
use crate::kernel::rtnl;
use crate::plan::Plan;
use crate::step::{Applied, MirrorFrames, Step};

/// The mirrors of a VM.
pub(super) struct Mirrors<'a> {
    vm: &'a str,
    mirrors: Vec<Kept<'a>>,
    due: bool,
}

struct Kept<'a> {
    mirror: &'a Mirror,
    /// The number of the interface to which copies go; none while it is gone.
    index: Option<u32>,
}

impl<'a> Mirrors<'a> {
    /// The mirrors of a plan for `vm` that has been applied.
    pub(super) fn new(plan: &'a Plan, vm: &'a str) -> Self {
        let mirrors = plan.steps.iter().flat_map(|step| match step {
            Step::MirrorFrames(MirrorFrames { mirrors, .. }) => mirrors.as_slice(),
            _ => &[],
        });
        let kept = |mirror: &'a Mirror| Kept { mirror, index: index_of(mirror.to.as_str()).ok() };
        // The first notification also covers events from before the subscription.
        Self { vm, mirrors: mirrors.map(kept).collect(), due: true }
    }

    /// Takes note of a notification of the kernel.
    pub(super) fn note(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) {
        self.due |= match &message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)) => {
                self.mirrors.iter().any(|kept| rtnl::name(link) == Some(kept.mirror.to.as_str()))
            }
            // The socket's buffer overflowed.
            NetlinkPayload::Overrun(_) => true,
            _ => false,
        };
    }

    /// Looks, if something has happened, and has the copies go to the interfaces that are there.
    pub(super) fn look(&mut self, made: &mut Applied) {
        if !std::mem::take(&mut self.due) {
            return;
        }
        let mut changed = false;
        for kept in &mut self.mirrors {
            let index = index_of(kept.mirror.to.as_str()).ok();
            changed |= index.is_some() && index != kept.index;
            if index.is_none() && kept.index.is_some() {
                log::warn!("{}", gone(kept.mirror));
            }
            kept.index = index;
        }
        if !changed {
            return;
        }
        let present = self.mirrors.iter().filter(|kept| kept.index.is_some()).map(|kept| kept.mirror.clone());
        let present: Vec<Mirror> = present.collect();
        // The table has the same name, and goes with its owner.
        made.mirrors = None;
        match made.mirror(self.vm, &present) {
            Ok(()) => log::info!("An interface of mirror= is back, and mirroring goes on"),
            Err(error) => log::error!("Mirroring has stopped: {}", error.report().message),
        }
    }

    /// The cards whose frames are not copied.
    pub(super) fn not_kept(&self) -> impl Iterator<Item = NotKept> {
        let gone = |kept: &Kept<'_>| NotKept { card: kept.mirror.card, text: gone(kept.mirror) };
        self.mirrors.iter().filter(|kept| kept.index.is_none()).map(gone)
    }
}

fn gone(mirror: &Mirror) -> String {
    format!("Interface {} of mirror= is gone", mirror.to)
}
