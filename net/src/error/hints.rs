//! Hints on what a user can do when the kernel refuses a step. Each errno that can still occur has one, which names the
//! module, the setting or the limit.
//!
//! The plan refuses what it can see beforehand. Only an attempt shows the rest: modules that the kernel does not load,
//! privileges, limits of the process, and hosts that change meanwhile.

use std::io;

use super::Error;
use crate::kernel::nft::NftError;
use crate::spec::IfName;

/// nftables expressions that are modules of their own: how a rule with one reads, and the module. The first match is
/// named.
const NFT_EXPRESSIONS: [(&str, &str); 13] = [
    ("fib ", "nft_fib_inet (CONFIG_NFT_FIB_INET)"),
    ("masquerade", "nft_masq (CONFIG_NFT_MASQ)"),
    ("redirect", "nft_redir (CONFIG_NFT_REDIR)"),
    ("dnat ", "nft_nat (CONFIG_NFT_NAT)"),
    ("snat ", "nft_nat (CONFIG_NFT_NAT)"),
    ("reject", "nft_reject_inet or nft_reject_netdev (CONFIG_NFT_REJECT)"),
    ("ct count", "nft_connlimit (CONFIG_NFT_CONNLIMIT)"),
    ("limit rate", "nft_limit (CONFIG_NFT_LIMIT)"),
    ("dup to", "nft_dup_netdev (CONFIG_NFT_DUP_NETDEV)"),
    ("fwd to", "nft_fwd_netdev (CONFIG_NFT_FWD_NETDEV)"),
    ("ct ", "nft_ct (CONFIG_NFT_CT)"),
    ("log", "nft_log (CONFIG_NFT_LOG)"),
    ("update @", "nf_tables with sets that time out (CONFIG_NF_TABLES)"),
];

/// nftables chains and tables that are modules of their own, by how they read.
const NFT_PLACES: [(&str, &str); 6] = [
    ("chain prerouting of table inet", "nft_chain_nat (CONFIG_NFT_NAT)"),
    ("chain output of table inet", "nft_chain_nat (CONFIG_NFT_NAT)"),
    ("chain postrouting of table inet", "nft_chain_nat (CONFIG_NFT_NAT)"),
    ("table bridge", "nft_meta_bridge (CONFIG_NF_TABLES_BRIDGE)"),
    (
        "table netdev",
        "nf_tables with CONFIG_NF_TABLES_NETDEV and CONFIG_NETFILTER_INGRESS, unless the tap has gone meanwhile",
    ),
    ("table inet", "nf_tables with CONFIG_NF_TABLES_INET"),
];

/// The hint for an error of a step: the errno's meaning for the step, or else its general one.
pub(super) fn of(error: &Error) -> Option<String> {
    of_step(error).or_else(|| of_errno(error.source_errno()?))
}

fn of_step(error: &Error) -> Option<String> {
    match error {
        Error::OpenTun(source) => open_tun(source),
        Error::OpenVhost(source) => open_vhost(source),
        Error::OpenTap { tap, source } => open_tap(tap, source),
        Error::TakeUplink { source, .. } => source.errno().and_then(uplink),
        Error::GiveBack { .. } => {
            Some("no address is lost: once the cause is gone, minivmm net gc gives them back".to_owned())
        }
        Error::CreateMacvtap { lower, source } => create_macvtap(lower, source),
        Error::OpenMacvtap { source, .. } => open_macvtap(source),
        Error::Policy(source) => policy(source),
        Error::Silent { .. } => {
            Some("see `dmesg`: most likely the kernel hangs while it changes an interface".to_owned())
        }
        Error::Gone => Some("see `dmesg`: most likely it was killed, as by the kernel for want of memory".to_owned()),
        Error::Protocol => Some("this is a bug in minivmm".to_owned()),
        Error::Nftables(source) if source.has_no_owners() => Some(
            "it takes Linux 5.12, whose nftables go with their owner: use --net bridge=NAME without antispoof= and \
             isolate=, \
             or boot a later kernel"
                .to_owned(),
        ),
        Error::Nftables(source) | Error::ReadNftables(source) | Error::Docker(source) | Error::Mirror(source) => {
            nftables(source)
        }
        Error::AddOvsPort { source, .. } | Error::RemoveOvsPort { source, .. } => source.hint(),
        _ => of_pair(error, error.source_errno()?),
    }
}

fn of_pair(error: &Error, errno: i32) -> Option<String> {
    let hint = match (error, errno) {
        (Error::CreateBridge { .. }, libc::EOPNOTSUPP) => "load the driver: modprobe bridge (CONFIG_BRIDGE)",
        (Error::CreateBridge { .. } | Error::AttachTap { .. }, libc::EEXIST | libc::EBUSY | libc::ELOOP) => {
            "something else changes the interfaces at the same moment: try again, and see `ip link`"
        }
        // EXFULL: the bridge has no free port number.
        (Error::AttachTap { .. }, libc::EXFULL) => "the bridge has as many ports as the kernel gives it: use another",
        (Error::AttachTap { .. } | Error::JoinVlans { .. } | Error::FilterVlans { .. }, libc::EOPNOTSUPP) => {
            "the kernel lacks a setting of bridge ports: VLANs take CONFIG_BRIDGE_VLAN_FILTERING, isolate= Linux 4.18"
        }
        (Error::AttachTap { .. } | Error::CreateBridge { .. }, libc::EINVAL) => {
            "the interface takes no such MTU or setting: see `dmesg` for the reason, and try without mtu= and isolate="
        }
        (Error::StartStp { .. }, libc::ERANGE | libc::EINVAL | libc::EOPNOTSUPP) => {
            "the kernel takes no such spanning tree here: leave stp= and forward-delay= out"
        }
        (Error::GiveGateway { .. }, libc::EEXIST) => "another interface or VM has the address: use another subnet=",
        (Error::GiveGateway { .. }, libc::ENOENT | libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT | libc::EINVAL) => {
            "the bridge has no IP: its MTU may be too small (68 for IPv4, 1280 for IPv6), or IPv6 be switched off"
        }
        (Error::GiveGateway { .. } | Error::Forwarding { .. }, libc::EROFS) => {
            "/proc/sys is read-only, as in most containers: run it privileged, or set it on the host (for NAT: \
             sysctl -w net.ipv4.ip_forward=1)"
        }
        (Error::ReservePort { .. }, libc::EACCES | libc::EPERM) => {
            "a port below net.ipv4.ip_unprivileged_port_start takes CAP_NET_BIND_SERVICE: forward a higher port, or \
             run as root"
        }
        (Error::ReservePort { .. }, libc::EAFNOSUPPORT) => "the host has no IPv6: leave ipv6=on out",
        (Error::OpenServices { .. }, libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => {
            "packet sockets take the module af_packet: modprobe af_packet (CONFIG_PACKET)"
        }
        (Error::OpenServices { .. }, libc::EPERM | libc::EACCES) => {
            "answering DHCP on a tap takes CAP_NET_RAW: run as root"
        }
        (Error::Connect(_), libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => {
            "the process may not open netlink sockets: a seccomp filter or RestrictAddressFamilies= must allow \
             AF_NETLINK"
        }
        (Error::Raise { .. }, libc::ERFKILL) => "the radio is switched off: rfkill unblock all",
        (Error::Raise { .. }, libc::ENODEV) => "the interface has gone meanwhile: see `ip link`",
        (Error::Fork(_) | Error::Runtime(_), libc::EAGAIN) => {
            "the user or control group has as many processes as it may: ulimit -u, pids.max, TasksMax= in a unit"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

/// The hint for an errno that means the same in every step.
fn of_errno(errno: i32) -> Option<String> {
    let hint = match errno {
        libc::EMFILE => {
            "this process has as many descriptors as it may: raise ulimit -Hn (LimitNOFILE= in a unit), or ask for \
             fewer queues"
        }
        libc::ENFILE => "the host has as many open files as it may: sysctl -w fs.file-max=N with a larger number",
        libc::ENOMEM | libc::ENOBUFS => {
            "the kernel is out of memory for this: free some, or raise the control group's limit"
        }
        libc::EPERM | libc::EACCES => return privilege(errno),
        _ => return None,
    };
    Some(hint.to_owned())
}

/// The missing part of the kernel if it refuses a part of a table.
fn nftables(source: &NftError) -> Option<String> {
    match source {
        NftError::Refused { object, source } => match source.raw_os_error()? {
            // An expression or chain type that the kernel does not know and has no module for.
            libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT => Some(format!(
                "the kernel of this host lacks {}: load it with modprobe, or boot a kernel that has it, as those of \
                     distributions do",
                module_of(object)
            )),
            libc::EBUSY | libc::EEXIST => {
                Some("another program changes nftables at the same moment: try again".to_owned())
            }
            libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS => memory(),
            errno => privilege(errno),
        },
        NftError::Open(source) => match source.raw_os_error()? {
            libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT => {
                Some("the kernel of this host has no nftables: modprobe nf_tables (CONFIG_NF_TABLES)".to_owned())
            }
            errno => privilege(errno),
        },
        NftError::Exchange(source) => match source.raw_os_error()? {
            libc::EINVAL | libc::EOPNOTSUPP => {
                Some("the kernel of this host has no nftables: modprobe nf_tables (CONFIG_NF_TABLES)".to_owned())
            }
            libc::ENOMEM | libc::ENOBUFS => memory(),
            errno => privilege(errno),
        },
        _ => None,
    }
}

/// The module that provides an nftables object.
fn module_of(object: &str) -> &'static str {
    let rule = object.strip_prefix("rule '").and_then(|rest| rest.rsplit_once("' of chain "));
    let expression = rule.and_then(|(rule, _)| NFT_EXPRESSIONS.iter().find(|(words, _)| rule.contains(words)));
    let module = expression.or_else(|| NFT_PLACES.iter().find(|(words, _)| object.contains(words)));
    module.map_or("a module of nf_tables", |(_, module)| module)
}

fn memory() -> Option<String> {
    Some("the kernel is out of memory for nftables: free some, or use fewer rules".to_owned())
}

fn open_tun(source: &io::Error) -> Option<String> {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            Some("load the driver: modprobe tun (in a container, pass the device /dev/net/tun in)".to_owned())
        }
        Some(libc::EACCES | libc::EPERM) => {
            Some("run as root, or let this user open it: setfacl -m u:$USER:rw /dev/net/tun".to_owned())
        }
        _ => None,
    }
}

fn open_vhost(source: &io::Error) -> Option<String> {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Some(
            "load the driver: modprobe vhost_net (in a container, pass the device /dev/vhost-net in); or leave \
             vhost=on out"
                .to_owned(),
        ),
        Some(libc::EACCES | libc::EPERM) => {
            Some("run as root, or let this user open it: setfacl -m u:$USER:rw /dev/vhost-net".to_owned())
        }
        _ => None,
    }
}

fn policy(source: &NftError) -> Option<String> {
    let no_egress = match source {
        NftError::Refused { object, source } => {
            let refused = matches!(source.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOENT | libc::EINVAL));
            refused && !object.starts_with("rule ")
        }
        _ => false,
    };
    if no_egress {
        let hint = "it takes Linux 5.16 with CONFIG_NETFILTER_EGRESS; a policy is enforced as a whole or not at all";
        return Some(hint.to_owned());
    }
    nftables(source)
}

fn open_tap(tap: &str, source: &io::Error) -> Option<String> {
    (source.raw_os_error() == Some(libc::EPERM))
        .then(|| format!("run as the tap's owner, or make it anew: ip tuntap add {tap} mode tap user $USER"))
}

fn uplink(errno: i32) -> Option<String> {
    match errno {
        libc::EBUSY | libc::EOPNOTSUPP => {
            Some("this card cannot be a port of a bridge, or something else takes its frames; use --net nat".to_owned())
        }
        errno => privilege(errno),
    }
}

fn create_macvtap(lower: &IfName, source: &io::Error) -> Option<String> {
    match source.raw_os_error()? {
        libc::EOPNOTSUPP => Some("load the driver: modprobe macvtap".to_owned()),
        libc::EBUSY => Some(format!(
            "{lower} already hands its frames to something else, such as an ipvlan or Open vSwitch: use another \
             interface"
        )),
        libc::EINVAL => Some(format!(
            "a macvlan or macvtap of another network namespace may be on {lower}, in mode passthru or beside one: use \
             another \
             interface or mode"
        )),
        libc::EADDRINUSE => Some(format!(
            "a macvlan or macvtap of another network namespace has this address on {lower}: give the card another \
             with mac="
        )),
        errno => privilege(errno),
    }
}

fn open_macvtap(source: &io::Error) -> Option<String> {
    matches!(source.raw_os_error(), Some(libc::EPERM | libc::EACCES)).then(|| {
        "run as root; a container has to be allowed to make and use devices of this kind (--device-cgroup-rule 'c *:* \
         rmw')"
            .to_owned()
    })
}

fn privilege(errno: i32) -> Option<String> {
    matches!(errno, libc::EPERM | libc::EACCES).then(|| {
        "this needs CAP_NET_ADMIN: run as root, or use --net tap=NAME with a tap that root made for this user"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Protocol;

    fn errno(errno: i32) -> io::Error {
        io::Error::from_raw_os_error(errno)
    }

    fn refused(object: &str, code: i32) -> NftError {
        NftError::Refused { object: object.to_owned(), source: errno(code) }
    }

    #[test]
    fn missing_expression_is_named_with_its_module() {
        for (object, module) in [
            (
                "rule 'fib daddr type local tcp dport 8080 dnat to 10.0.0.2:80' of chain output of table inet x",
                "nft_fib_inet",
            ),
            ("rule 'oifname != \"mvn-default\" masquerade' of chain postrouting of table inet x", "nft_masq"),
            ("rule 'ct count over 10 drop' of chain limit of table inet x", "nft_connlimit"),
            ("rule 'ct state new limit rate over 5/second drop' of chain limit of table inet x", "nft_limit"),
            ("rule 'ct state new accept' of chain forward of table inet minivmm-log", "nft_ct"),
            ("rule 'accept' of chain forward of table bridge x", "nft_meta_bridge"),
            ("chain prerouting of table inet x", "nft_chain_nat"),
            ("chain guard0 of table netdev x", "CONFIG_NETFILTER_INGRESS"),
        ] {
            for error in
                [Error::Nftables(refused(object, libc::ENOENT)), Error::Mirror(refused(object, libc::EOPNOTSUPP))]
            {
                let hint = error.hint().unwrap_or_default();
                assert!(hint.contains(module) && hint.contains("modprobe"), "{object}: {hint}");
            }
        }
    }

    #[test]
    fn policy_names_the_egress_hook_or_the_module() {
        let chain = Error::Policy(refused("chain out0 of table netdev x", libc::EOPNOTSUPP)).hint().unwrap();
        assert!(chain.contains("CONFIG_NETFILTER_EGRESS"), "{chain}");
        let rule = Error::Policy(refused("rule 'ct state new' of chain in0 of table netdev x", libc::ENOENT));
        assert!(rule.hint().unwrap().contains("nft_ct"));
    }

    #[test]
    fn kernel_without_nftables_is_named() {
        for source in [NftError::Open(errno(libc::EPROTONOSUPPORT)), NftError::Exchange(errno(libc::EINVAL))] {
            assert!(Error::Nftables(source).hint().unwrap().contains("modprobe nf_tables"));
        }
    }

    #[test]
    fn every_limit_of_a_process_or_host_has_a_hint_whatever_the_step() {
        let bridge = || "br0".parse().unwrap();
        let errors: [fn(io::Error, IfName) -> Error; 6] = [
            |source, _| Error::Socket(source),
            |source, bridge| Error::GiveGateway { bridge, source },
            |source, _| Error::ReservePort { protocol: Protocol::Tcp, port: 80, source },
            |source, bridge| Error::AttachTap { tap: "vmtap0".to_owned(), bridge, source },
            |source, _| Error::OpenTun(source),
            |source, _| Error::OpenServices { tap: "vmtap0".to_owned(), source },
        ];
        for (code, words) in [
            (libc::EMFILE, "ulimit -Hn"),
            (libc::ENFILE, "fs.file-max"),
            (libc::ENOMEM, "out of memory"),
            (libc::EPERM, "run as root"),
        ] {
            for error in errors {
                let hint = error(errno(code), bridge()).hint().unwrap_or_default();
                assert!(hint.contains(words), "{}: {hint}", error(errno(code), bridge()));
            }
        }
    }

    #[test]
    fn errnos_of_single_steps_name_what_they_lack() {
        let bridge = || "br0".parse().unwrap();
        let attach = |code| Error::AttachTap { tap: "vmtap0".to_owned(), bridge: bridge(), source: errno(code) };
        for (error, words) in [
            (Error::CreateBridge { bridge: bridge(), source: errno(libc::EOPNOTSUPP) }, "modprobe bridge"),
            (Error::GiveGateway { bridge: bridge(), source: errno(libc::EROFS) }, "/proc/sys is read-only"),
            (Error::Forwarding { bridge: bridge(), source: errno(libc::EROFS) }, "/proc/sys is read-only"),
            (Error::GiveGateway { bridge: bridge(), source: errno(libc::ENOENT) }, "1280 for IPv6"),
            (
                Error::ReservePort { protocol: Protocol::Tcp, port: 80, source: errno(libc::EACCES) },
                "CAP_NET_BIND_SERVICE",
            ),
            (Error::OpenServices { tap: "vmtap0".to_owned(), source: errno(libc::EAFNOSUPPORT) }, "modprobe af_packet"),
            (Error::Connect(errno(libc::EAFNOSUPPORT)), "AF_NETLINK"),
            (Error::Fork(errno(libc::EAGAIN)), "pids.max"),
            (attach(libc::EXFULL), "as many ports"),
            (attach(libc::EOPNOTSUPP), "CONFIG_BRIDGE_VLAN_FILTERING"),
        ] {
            let hint = error.hint().unwrap_or_default();
            assert!(hint.contains(words), "{error}: {hint}");
        }
    }
}
