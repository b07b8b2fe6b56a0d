//! Hints of errors.

use super::*;

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
        for error in [Error::Nftables(refused(object, libc::ENOENT)), Error::Mirror(refused(object, libc::EOPNOTSUPP))]
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
        |source, _| KeeperError::Socket(source).into(),
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
        (Error::ReservePort { protocol: Protocol::Tcp, port: 80, source: errno(libc::EACCES) }, "CAP_NET_BIND_SERVICE"),
        (Error::OpenServices { tap: "vmtap0".to_owned(), source: errno(libc::EAFNOSUPPORT) }, "modprobe af_packet"),
        (Error::Connect(errno(libc::EAFNOSUPPORT)), "AF_NETLINK"),
        (KeeperError::Fork(errno(libc::EAGAIN)).into(), "pids.max"),
        (attach(libc::EXFULL), "as many ports"),
        (attach(libc::EOPNOTSUPP), "CONFIG_BRIDGE_VLAN_FILTERING"),
    ] {
        let hint = error.hint().unwrap_or_default();
        assert!(hint.contains(words), "{error}: {hint}");
    }
}
