//! The counters of a card's services.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counted events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    Frames,
    Ignored,
    FramesLost,
    DhcpOffers,
    DhcpAcks,
    DhcpNaks,
    DhcpReleases,
    DhcpDeclines,
    DnsLocal,
    DnsForwarded,
    DnsAnswers,
    DnsTcpQuestions,
    Advertisements,
    Dhcpv6Replies,
}

/// Their names, in the order of [`Count`].
const NAMES: [&str; 14] = [
    "frames",
    "ignored",
    "frames_lost",
    "dhcp_offers",
    "dhcp_acks",
    "dhcp_naks",
    "dhcp_releases",
    "dhcp_declines",
    "dns_local",
    "dns_forwarded",
    "dns_answers",
    "dns_tcp_questions",
    "advertisements",
    "dhcpv6_replies",
];

/// Monotonic counts, written by the services' thread and read by any other; Relaxed, since each stands for itself.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Counters([AtomicU64; NAMES.len()]);

impl Counters {
    /// Names and counts.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.into_iter().zip(&self.0).map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }

    pub(super) fn add(&self, count: Count) {
        // The discriminants are the places in the list.
        self.0[count as usize].fetch_add(1, Ordering::Relaxed);
    }
}

const _: () = assert!(NAMES.len() == Count::Dhcpv6Replies as usize + 1);
