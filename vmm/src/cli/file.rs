//! A configuration file: the flags of a VM as TOML.

use super::Settings;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A file that gives no settings.
#[derive(Debug, thiserror::Error)]
#[error("--config {}: {why}", path.display())]
pub(crate) struct BadConfig {
    /// Which.
    path: PathBuf,
    /// Why.
    why: BadFile,
}

/// Why a file gives no settings. The message says what to do where the reason alone does not.
#[derive(Debug, thiserror::Error)]
enum BadFile {
    /// It cannot be read.
    #[error("{0}")]
    Read(io::Error),
    /// It is not TOML, or has a value that its key does not take.
    #[error("line {line}: {message}")]
    Value {
        /// Where, from 1.
        line: usize,
        /// Why.
        message: String,
    },
    /// A key that is no flag of a VM.
    #[error("there is no key {key:?}: {}", net::spec::advice(key, known))]
    UnknownKey {
        /// The given key.
        key: String,
        /// The keys that exist.
        known: Vec<String>,
    },
}

/// Reads the settings of a file; those that it does not name are the defaults.
///
/// # Errors
/// It cannot be read, or has a key or a value that no flag has.
pub(super) fn read(path: &Path) -> Result<Settings, BadConfig> {
    let text = fs::read_to_string(path).map_err(BadFile::Read);
    text.and_then(|text| settings(&text)).map_err(|why| BadConfig { path: path.to_owned(), why })
}

fn settings(text: &str) -> Result<Settings, BadFile> {
    let bad = |err: toml::de::Error| BadFile::Value {
        line: err.span().map_or(1, |span| text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1),
        message: err.message().to_owned(),
    };
    let table: toml::Table = toml::from_str(text).map_err(bad)?;
    let known = Settings::keys();
    match table.keys().find(|key| !known.contains(key)) {
        Some(key) => Err(BadFile::UnknownKey { key: key.clone(), known }),
        None => toml::from_str(text).map_err(bad),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{ConsoleSpec, LogLevel, MIB, OnReboot};
    use net::NetSpec;

    #[test]
    fn empty_file_is_an_empty_command_line() {
        assert_eq!(format!("{:?}", settings("").unwrap()), format!("{:?}", Settings::default()));
    }

    #[test]
    fn every_flag_is_a_key() {
        let text = r#"
            kernel = "vmlinuz"
            initrd = "initrd.img"
            cmdline = ["root=/dev/vda", "quiet"]
            cmdline-replace = "none"
            cpus = 4
            mem = "1G"
            name = "web"
            smbios = ["serial=ds=nocloud;s=http://10.0.0.1/", "oem=a,b"]
            policy = "/dev/null"
            console = "file=web.log"
            on-reboot = "restart"
            on-disk-error = "pause"
            stop-timeout = 3
            ready-fd = 7
            wait-net = 30
            seccomp = "log"
            user = "1900000001"
            no-confine = false
            log = "debug"

            [[disk]]
            path = "a,b.img"
            readonly = true

            [[net]]
            bridge = "br0"
            create = true
            mtu = 9000

            [[net]]
            tap = "tap0"
        "#;

        let read = settings(text).unwrap();

        assert!(
            Settings::keys()
                .iter()
                .all(|key| text.contains(&format!("{key} = ")) || text.contains(&format!("[[{key}]]")))
        );
        assert_eq!((read.cpus, read.mem.bytes(), read.stop_timeout), (4, 1024 * MIB, 3));
        assert_eq!((read.ready_fd, read.wait_net), (Some(7), Some(30)));
        assert_eq!(read.smbios[1], crate::cli::SmbiosSpec::Oem("a,b".into()));
        assert_eq!(read.cmdline, ["root=/dev/vda", "quiet"]);
        assert_eq!((read.on_reboot, read.log), (OnReboot::Restart, LogLevel::Debug));
        assert_eq!(read.console, ConsoleSpec::File("web.log".into()));
        assert_eq!(read.disk[0].path, Path::new("a,b.img"));
        let cards: Vec<NetSpec> =
            ["bridge=br0,create=on,mtu=9000", "tap=tap0"].iter().map(|card| card.parse().unwrap()).collect();
        assert_eq!(read.net, cards);
    }

    #[test]
    fn mistakes_are_named_with_what_to_do() {
        for (text, message) in [
            ("cpu = 2", "there is no key \"cpu\": did you mean cpus=?"),
            ("word = 2", "there is no key \"word\": it takes kernel, "),
            ("config = \"x\"", "there is no key \"config\": it takes kernel, "),
            ("\n\ncpus = 0", "line 3: A guest has at least 1 vCPU"),
            ("mem = \"1M\"", "line 1: A guest needs at least 64 MiB of memory"),
            ("log = \"loud\"", "line 1: unknown variant `loud`, expected one of `error`, "),
            ("name = \"A B\"", "line 1: A name has 1 to 63 characters"),
            ("\n[[net]]\nbridge = \"br0\"\nquues = 2", "line 2: bridge= takes no key \"quues\": did you mean queues=?"),
            ("[[net]]\nbridge = \"br0\"\nmtu = 1", "line 1: mtu=1 is not possible"),
            ("[[disk]]\nro = true", "line 2: unknown field `ro`, expected one of `path`, "),
            ("cpus", "line 1: "),
            ("\npolicy = \"/none\"", "line 2: /none: No such file"),
        ] {
            let error = settings(text).unwrap_err().to_string();
            assert!(error.starts_with(message), "{text}: {error}");
        }
    }
}
