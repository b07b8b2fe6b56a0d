//! A process in the VMM's place: what it says to its keeper, and who asks for its policy.

use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use nix::unistd::Pid;

use crate::Case;
use crate::lan::{sh, snapshot, until};
use crate::policy::{web, world};

pub(crate) const CASES: &[Case] = &[
    ("policy_is_not_changed_in_the_name_of_a_process_that_has_ended", stale),
    ("policy_outlives_a_vmm_that_speaks_to_its_keeper", spoken),
];

/// The keeper looks at its caller when another process, which may ask, has that one's number.
fn stale() {
    let _world = world();
    let (vmm, _guest, _) = web("nat", "{}");
    let keeper = Pid::from_raw(vmm.keeper());
    kill(keeper, Signal::SIGSTOP).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut caller = command.args(["lend-policy", "web"]).stdin(OwnedFd::from(theirs)).spawn().unwrap();
    let number = caller.id();
    assert!(caller.wait().unwrap().success());
    drop(command);
    let mut lent = borrow(&ours);
    let mut other = process_with_number(number);

    kill(keeper, Signal::SIGCONT).unwrap();
    // It may have been refused already.
    let _ = lent.write_all(b"\"show\"\n");
    let mut answer = String::new();
    BufReader::new(lent).read_line(&mut answer).unwrap();

    other.kill().unwrap();
    other.wait().unwrap();
    assert!(answer.contains("with CAP_NET_ADMIN"), "{answer}");
    vmm.stop();
}

/// A process with this number, which no process has.
fn process_with_number(number: u32) -> Child {
    loop {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (number - 1).to_string()).unwrap();
        let mut process = Command::new("sleep").arg("60").spawn().unwrap();
        if process.id() == number {
            return process;
        }
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

/// The role of a client that connects, hands its connection to whoever is at the other end of stdin, and ends.
pub(crate) fn lend(vm: &str) {
    let connection = UnixStream::connect(format!("/run/minivmm/{vm}.keeper")).unwrap();
    let rights = [connection.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&rights)];
    let stdin = std::io::stdin().as_raw_fd();
    sendmsg::<UnixAddr>(stdin, &[IoSlice::new(b"x")], &message, MsgFlags::empty(), None).unwrap();
}

/// The connection that is handed over.
fn borrow(from: &UnixStream) -> UnixStream {
    let mut control = nix::cmsg_space!([i32; 1]);
    let mut byte = [0];
    let mut slices = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::empty();
    let message = recvmsg::<UnixAddr>(from.as_raw_fd(), &mut slices, Some(&mut control), flags).unwrap();
    let Some(ControlMessageOwned::ScmRights(numbers)) = message.cmsgs().unwrap().next() else {
        panic!("no descriptor")
    };
    #[expect(unsafe_code, reason = "received descriptors come as numbers")]
    // SAFETY: the kernel has just put this descriptor into our table and no other code knows its number.
    unsafe {
        UnixStream::from_raw_fd(numbers[0])
    }
}

/// A guest that has taken the VMM over has no way to end its rules and live.
fn spoken() {
    let before = snapshot();
    let (mut vmm, _guest, _) = web("nat", "{}");
    vmm.tell("speak to the keeper");
    assert!(vmm.end().contains("The VMM has sent something to its keeper, which it never does: it is ended"));
    vmm.wait();
    until(|| snapshot() == before);
    assert!(!sh("nft list tables").contains("minivmm-web"));
}
