//! The settings of a tap in a plan, compared with those that the kernel reports; and the addresses of a link.

use std::io;
use std::net::IpAddr;

use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoBridgePort, InfoPortData, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::{LinkBridgePort, LinkUnspec};

use super::{Attachment, Rtnl, collect, io_error};
use crate::spec::Switch;

impl Attachment {
    /// A setting of a tap on its bridge that has changed since it was attached. A larger MTU does no harm.
    pub(crate) fn changed_on(&self, tap: &LinkMessage) -> Option<&'static str> {
        tap.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(bytes) => (*bytes < u32::from(self.mtu)).then_some("MTU"),
            LinkAttribute::Address(octets) => (*octets != self.mac.octets()).then_some("MAC address"),
            LinkAttribute::IfAlias(text) => (*text != self.alias.to_string()).then_some("alias"),
            LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
                LinkInfo::PortData(InfoPortData::BridgePort(settings)) => self.changed_in(settings),
                _ => None,
            }),
            _ => None,
        })
    }

    fn changed_in(&self, settings: &[InfoBridgePort]) -> Option<&'static str> {
        let pinned = self.pinned.is_some();
        settings.iter().find_map(|setting| match setting {
            InfoBridgePort::Isolated(on) => (*on != is_on(self.isolated)).then_some("isolation"),
            InfoBridgePort::HairpinMode(on) => (*on != is_on(self.hairpin)).then_some("hairpin mode"),
            InfoBridgePort::Learning(on) => (pinned && *on).then_some("learning"),
            InfoBridgePort::UnicastFlood(on) => (pinned && *on).then_some("flooding"),
            _ => None,
        })
    }
}

impl Rtnl {
    /// Sets again the settings of [`attach`](Self::attach) on a tap that is on its bridge, except VLANs.
    pub(crate) async fn restore_port(&self, index: u32, attachment: &Attachment) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index)
            .address(attachment.mac.octets().to_vec())
            .mtu(u32::from(attachment.mtu))
            .alias(attachment.alias.to_string());
        self.handle.link().change(message.build()).execute().await.map_err(io_error)?;
        let port = LinkBridgePort::new(index).isolated(is_on(attachment.isolated)).hairpin(is_on(attachment.hairpin));
        self.handle.link().set_port(port.build()).execute().await.map_err(io_error)?;
        match attachment.pinned {
            Some(mac) => self.pin(index, mac).await,
            None => Ok(()),
        }
    }

    /// The addresses of a link with their prefix lengths.
    pub(crate) async fn addresses_of(&self, link: u32) -> io::Result<Vec<(IpAddr, u8)>> {
        let addresses = collect(self.handle.address().get().set_link_index_filter(link).execute()).await?;
        Ok(addresses.iter().filter_map(|message| Some((own_address(message)?, message.header.prefix_len))).collect())
    }
}

/// On a point-to-point link `Address` is the other end's; IPv6 has only that attribute.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })
}

fn is_on(switch: Switch) -> bool {
    switch == Switch::On
}
