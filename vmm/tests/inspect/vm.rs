//! A VM whose guest does nothing, on a tap through which the case speaks in its place.
#![expect(unsafe_code, reason = "ioctl(2) takes untyped pointers")]

use crate::guest::{self, Guest};
use crate::host::{MINIVMM, sh};
use nix::poll::{PollFd, PollFlags, poll};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, ChildStderr, Command, Stdio};

/// Longer than anything takes on a loaded machine.
const DEADLINE_MS: u16 = 30_000;

/// A running VM, killed if its case fails.
pub(crate) struct Vm {
    child: Child,
    stderr: BufReader<ChildStderr>,
    _guest: Guest,
    _directory: tempfile::TempDir,
    /// A FIFO, whose other end is the VM's descriptor 7.
    ready: BufReader<File>,
}

impl Vm {
    /// Starts minivmm with these arguments.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_through(&[], args)
    }

    /// The same through another program, which changes something for it.
    pub(crate) fn start_through(program: &[&str], args: &[&str]) -> Self {
        let guest = Guest::new(guest::IDLE);
        // Whichever user starts it.
        sh(&format!("chmod 644 {}", guest.path().display()));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ready");
        sh(&format!("mkfifo {}", path.display()));
        let ready = BufReader::new(File::options().read(true).write(true).open(&path).unwrap());
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$@\" 7>\"$READY\"", "sh"]).env("READY", &path).args(program);
        command.arg(MINIVMM).arg("--kernel").arg(guest.path()).args(["--console", "none"]).args(args);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr, _guest: guest, _directory: directory, ready }
    }

    /// The process that was started.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process of its VMM.
    pub(crate) fn vmm(&self) -> u32 {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let is_vmm = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "vmm\n");
        children.split_whitespace().map(|child| child.parse().unwrap()).find(is_vmm).unwrap()
    }

    /// Reads the FIFO up to the end of the line.
    pub(crate) fn ready_line(&mut self) -> String {
        line(&mut self.ready)
    }

    /// The next line on stderr.
    pub(crate) fn error_line(&mut self) -> String {
        line(&mut self.stderr)
    }

    /// Waits for its end. Returns its exit code and what is left on stderr.
    pub(crate) fn end(&mut self) -> (i32, String) {
        let mut errors = String::new();
        self.stderr.read_to_string(&mut errors).unwrap();
        (self.child.wait().unwrap().code().unwrap_or(-1), errors)
    }

    /// Kills it and its keeper before either can clean up.
    pub(crate) fn kill_with_keeper(&mut self) {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        sh(&format!("kill -KILL {} {pid}", children.trim()));
        self.end();
    }

    /// Kills it alone, and leaves its keeper to clean up.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Has it stopped at once.
    pub(crate) fn quit(&mut self) -> (i32, String) {
        sh(&format!("kill -QUIT {}", self.child.id()));
        self.end()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Nothing to do for one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The next line, which has to come in time.
fn line(from: &mut BufReader<impl Read + AsFd>) -> String {
    let mut line = String::new();
    while !line.ends_with('\n') {
        if from.buffer().is_empty() {
            let mut fds = [PollFd::new(from.get_ref().as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, DEADLINE_MS).unwrap(), 1, "nothing more is said: {line:?}");
        }
        let text = String::from_utf8(from.fill_buf().unwrap().to_vec()).unwrap();
        assert!(!text.is_empty(), "nothing more will be said: {line:?}");
        let piece = text.split_inclusive('\n').next().unwrap();
        from.consume(piece.len());
        line += piece;
    }
    line
}

/// A tap of two queues: one for the VM, one through which its guest seems to speak.
pub(crate) fn tap(name: &str) {
    sh(&format!("ip tuntap add {name} mode tap multi_queue vnet_hdr"));
    sh(&format!("ip link set {name} up"));
}

/// Sends an ARP request with this sender out of the guest behind the tap called `name`, which a VM has open.
pub(crate) fn guest_says_arp(name: &str, sender: [u8; 4]) {
    // A header of virtio-net in the size that the VM has set, Ethernet's, and the request.
    let mut frame = vec![0; 12];
    frame.extend([0xff; 6]);
    frame.extend([0x52, 0x54, 0, 0, 0, 1, 8, 6]);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0, 0, 1]);
    frame.extend(sender);
    frame.extend([0; 10]);
    queue(name).write_all(&frame).unwrap();
}

/// Asks by DHCP for `ip`, which the guest with the address `mac` has had before (RFC 2131 4.3.2, INIT-REBOOT).
pub(crate) fn guest_asks_dhcp(name: &str, mac: [u8; 6], ip: [u8; 4]) {
    let mut dhcp = vec![1, 1, 6, 0, 1, 2, 3, 4];
    dhcp.resize(28, 0);
    dhcp.extend(mac);
    dhcp.resize(236, 0);
    dhcp.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 3, 50, 4]);
    dhcp.extend(ip);
    dhcp.push(255);
    let bytes = u16::try_from(dhcp.len()).unwrap();
    let mut header = vec![0x45, 0];
    header.extend((bytes + 28).to_be_bytes());
    header.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    let words = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum = words.sum::<u32>();
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    header[10..12].copy_from_slice(&(!sum).to_be_bytes());
    let mut frame = vec![0; 12];
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend([8, 0]);
    frame.extend(header);
    frame.extend([0, 68, 0, 67]);
    frame.extend((bytes + 8).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(dhcp);
    queue(name).write_all(&frame).unwrap();
}

/// A queue of a tap.
fn queue(name: &str) -> File {
    let queue = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_flags: flags.try_into().unwrap() };
    let mut request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: TUNSETIFF reads and writes one struct ifreq; `queue` is open.
    let result = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    queue
}
