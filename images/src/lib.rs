//! Guest images: a stock distribution kernel from its own package, an initramfs made for it, root disks.
//!
//! # Where guests are kept
//! `images guest` writes, and `minivmm` without `--kernel` looks for, a directory with these files:
//!
//! ```text
//! DIR/guest/vmlinuz     the bzImage
//! DIR/guest/initramfs   a cpio archive, made for this kernel
//! DIR/guest/about       text: `kernel RELEASE`, `package NAME VERSION`, `modules ...`, one per line
//! ```
//!
//! DIR is `$XDG_DATA_HOME/minivmm` (`~/.local/share/minivmm` if unset), then, for a whole machine,
//! `/usr/share/minivmm`. Another kernel's guest lies beside it (`DIR/guest-6.1`) and is used by naming its files.
//! Downloaded kernels are in `$XDG_CACHE_HOME/minivmm` (`~/.cache/minivmm`).
//!
//! # What a guest understands
//! The guest's init is the program `minivmm-agent` of this package. Its words on the kernel command line:
//!
//! | word | meaning |
//! |---|---|
//! | `root=DEVICE` | mount it and run its `/sbin/init` (`init=` names another); `ro` (default), `rw`, `rootfstype=`, `rootflags=` as the kernel has them |
//! | `minivmm.run=BASE64` | a shell script to run instead of a shell on the console; meanwhile the kernel prints emergencies only |
//! | `minivmm.exit=port` | after the script, write its exit code to the debug-exit port 0xf4 |
//! | `minivmm.ip=DEV:ADDR/LEN[,GATEWAY]` | this card has a fixed address; may be repeated |
//! | `minivmm.net=off` | leave all cards alone |
//! | `minivmm.dhcp=SECONDS` | how long to wait for leases before being ready anyway (10); the clients go on asking |
//!
//! The kernel takes 2047 characters of command line, so a script has room for about 1300.
//! A stock kernel of today needs 16 MiB below it and about 56 MiB for itself (`pref_address`, `init_size`): guests
//! start at 80 MiB.
//!
//! It says on the console, each at the start of a line (a blank one may precede it):
//!
//! ```text
//! minivmm-ready {"kernel":"6.12.1","cpus":2,"mem_kib":500000,"uptime_ms":900,"cards":[{"name":"eth0","mac":"..","addresses":["192.0.2.5/24"]}]}
//! minivmm-exit 0                the script ended with this code; the guest powers off
//! minivmm-agent: Something      a failure, or why the guest stops
//! ```
//!
//! # Threats
//! | from | what | answer |
//! |---|---|---|
//! | network | a forged kernel package | apt's signature chain; nothing is downloaded any other way |
//! | a bzImage given to [`vmlinux`] | offsets outside the file, lying sizes | total parser, sizes compared after unpacking |
//! | two runs at once | half-written files | every file and every cached kernel appears by one rename |
//! | the guest's user | none: the agent gives a root shell to whoever has the console | |
//!
//! # Not supported
//! Other architectures and distributions than Debian's amd64, building kernels, compressed initramfs images (in a guest
//! emulated by TCG the kernel took 91 ms for the default one as it is, 166 ms with lz4, 211 ms with gzip, 217 ms with
//! zstd, best of 6, and 4 MB are nothing to load), disks with partitions, 32-bit programs.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bzimage;
pub mod cpio;
pub mod disk;
mod elf;
mod error;
pub mod guest;
pub mod kernel;
pub mod modules;
pub mod place;
pub mod programs;
mod publish;
pub mod root;
pub mod tools;
pub mod tree;
pub mod vmlinux;

pub use bzimage::Refusal;
pub use error::{Error, error_chain};
