//! The agent's words on the kernel command line. Total: a word that is not ours is passed over, one of ours that makes
//! no sense becomes a refusal to print, and the guest boots on without it. Of a word given twice the later one counts.

use crate::base64;
use std::net::IpAddr;
use std::time::Duration;

/// How long a lease may take before the guest is ready without it.
const DHCP_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest timeout that can be asked for.
const MAX_DHCP_TIMEOUT: Duration = Duration::from_secs(600);

/// All that the command line asks of the agent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// The file system to move to, for an agent on an initramfs.
    pub(crate) root: Option<RootMount>,
    /// The job to run.
    pub(crate) job: Job,
    /// How to report a script's end beside the line on the console.
    pub(crate) exit_report: ExitReport,
    /// The setup of the cards.
    pub(crate) network: Network,
    /// Sentences about words that were refused.
    pub(crate) refusals: Vec<String>,
}

/// A file system to move to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RootMount {
    /// A path below `/dev`, or `UUID=`, `LABEL=` and the like.
    pub(crate) device: String,
    /// Its type, if it should not be guessed.
    pub(crate) fstype: Option<String>,
    /// Mount options, "ro" or "rw" among them.
    pub(crate) options: String,
    /// The program to run there.
    pub(crate) init: String,
}

/// The job of a guest that is ready.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// A shell on the console.
    Shell,
    /// This shell script.
    Script(Vec<u8>),
}

/// Where a script's exit code goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitReport {
    /// Only a line on the console.
    Console,
    /// Also the debug-exit port.
    Port,
}

/// The setup of the cards.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// Nothing.
    Off,
    /// These addresses, and DHCP on the other cards.
    On {
        /// Fixed addresses.
        fixed: Vec<FixedAddress>,
        /// How long leases may take.
        dhcp_timeout: Duration,
    },
}

/// One fixed address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FixedAddress {
    /// The card's name.
    pub(crate) card: String,
    /// The address.
    pub(crate) address: IpAddr,
    /// The length of its prefix in bits.
    pub(crate) prefix_bits: u8,
    /// The default gateway behind this card.
    pub(crate) gateway: Option<IpAddr>,
}

impl Parameters {
    /// Reads a `/proc/cmdline`. What follows `--` is the kernel's gift to init and holds none of our parameters.
    pub(crate) fn parse(line: &str) -> Self {
        let mut refusals = Vec::new();
        let (mut device, mut fstype, mut flags, mut init) = (None, None, None, "/sbin/init");
        let (mut access, mut job, mut exit_report) = ("ro", Job::Shell, ExitReport::Console);
        let (mut fixed, mut dhcp_timeout, mut off) = (Vec::new(), DHCP_TIMEOUT, false);
        for word in line.split_ascii_whitespace().take_while(|word| *word != "--") {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let mut refuse = |reason: &str| refusals.push(format!("Ignored {key} on the command line: {reason}"));
            match key {
                "ro" | "rw" => access = key,
                "root" if !value.is_empty() => device = Some(value),
                "rootfstype" if !value.is_empty() => fstype = Some(value),
                "rootflags" if !value.is_empty() => flags = Some(value),
                "init" if value.starts_with('/') => init = value,
                "minivmm.run" => match base64::decode(value) {
                    Some(script) => job = Job::Script(script),
                    None => refuse("its value is not base64"),
                },
                "minivmm.exit" if value == "port" => exit_report = ExitReport::Port,
                "minivmm.ip" => match fixed_address(value) {
                    Some(address) => fixed.push(address),
                    None => refuse("it is not DEV:ADDR/LEN[,GATEWAY]"),
                },
                "minivmm.net" if value == "off" => off = true,
                "minivmm.dhcp" => match value.parse().map(Duration::from_secs) {
                    Ok(seconds) if seconds <= MAX_DHCP_TIMEOUT => dhcp_timeout = seconds,
                    _ => refuse("it is not a number of seconds up to 600"),
                },
                _ if key.starts_with("minivmm.") => refuse("no such word or value"),
                _ => {}
            }
        }
        let root = device.map(|device| RootMount {
            device: device.to_owned(),
            fstype: fstype.map(str::to_owned),
            options: flags.map_or_else(|| access.to_owned(), |flags| format!("{access},{flags}")),
            init: init.to_owned(),
        });
        let network = if off { Network::Off } else { Network::On { fixed, dhcp_timeout } };
        Self { root, job, exit_report, network, refusals }
    }
}

fn fixed_address(value: &str) -> Option<FixedAddress> {
    let (card, rest) = value.split_once(':')?;
    let (network, gateway) = match rest.split_once(',') {
        Some((network, gateway)) => (network, Some(gateway.parse::<IpAddr>().ok()?)),
        None => (rest, None),
    };
    let (address, prefix) = network.split_once('/')?;
    let (address, prefix_bits) = (address.parse::<IpAddr>().ok()?, prefix.parse().ok()?);
    let most = if address.is_ipv4() { 32 } else { 128 };
    let one_family = gateway.is_none_or(|gateway| gateway.is_ipv4() == address.is_ipv4());
    (!card.is_empty() && prefix_bits <= most && one_family).then(|| FixedAddress {
        card: card.to_owned(),
        address,
        prefix_bits,
        gateway,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_line_is_a_shell_with_dhcp() {
        let parameters = Parameters::parse("console=ttyS0 quiet\n");
        assert_eq!(parameters.job, Job::Shell);
        assert_eq!(parameters.root, None);
        assert_eq!(parameters.network, Network::On { fixed: vec![], dhcp_timeout: DHCP_TIMEOUT });
        assert!(parameters.refusals.is_empty());
    }

    #[test]
    fn root_words_are_gathered() {
        let parameters = Parameters::parse("root=/dev/vda ro rw rootfstype=ext4 rootflags=noatime init=/bin/x");
        let expected = RootMount {
            device: "/dev/vda".into(),
            fstype: Some("ext4".into()),
            options: "rw,noatime".into(),
            init: "/bin/x".into(),
        };
        assert_eq!(parameters.root, Some(expected));
    }

    #[test]
    fn root_is_read_only_unless_asked() {
        assert_eq!(Parameters::parse("root=/dev/vda").root.unwrap().options, "ro");
    }

    #[test]
    fn script_and_exit_port_are_read() {
        let parameters = Parameters::parse("minivmm.run=ZWNobwo= minivmm.exit=port");
        assert_eq!(parameters.job, Job::Script(b"echo\n".to_vec()));
        assert_eq!(parameters.exit_report, ExitReport::Port);
    }

    #[test]
    fn fixed_addresses_of_both_families_are_read() {
        let parameters =
            Parameters::parse("minivmm.ip=eth0:192.0.2.2/24,192.0.2.1 minivmm.ip=eth1:2001:db8::2/64 minivmm.dhcp=3");
        let four = FixedAddress {
            card: "eth0".into(),
            address: "192.0.2.2".parse().unwrap(),
            prefix_bits: 24,
            gateway: "192.0.2.1".parse().ok(),
        };
        let six = FixedAddress {
            card: "eth1".into(),
            address: "2001:db8::2".parse().unwrap(),
            prefix_bits: 64,
            gateway: None,
        };
        let expected = Network::On { fixed: vec![four, six], dhcp_timeout: Duration::from_secs(3) };
        assert_eq!(parameters.network, expected);
    }

    #[test]
    fn senseless_words_are_refused_by_name_and_ignored() {
        let line = "minivmm.run=! minivmm.ip=eth0:1.2.3.4/33 minivmm.ip=eth0:1.2.3.4/8,::1 minivmm.dhcp=x minivmm.x=1";
        let parameters = Parameters::parse(line);
        assert_eq!(parameters.refusals.len(), 5);
        assert!(parameters.refusals[0].contains("minivmm.run"), "{:?}", parameters.refusals);
        assert_eq!(parameters.job, Job::Shell);
    }

    #[test]
    fn network_can_be_off() {
        assert_eq!(Parameters::parse("minivmm.net=off minivmm.ip=e:1.1.1.1/8").network, Network::Off);
    }

    #[test]
    fn words_after_the_dashes_are_not_ours() {
        assert_eq!(Parameters::parse("quiet -- root=/dev/vda").root, None);
    }

    proptest::proptest! {
        #[test]
        fn any_line_is_read(line in "((root|ro|init|minivmm\\.(run|ip|net|dhcp|exit)|x)[=:/,.a-z0-9]* )*") {
            Parameters::parse(&line);
        }
    }
}
