//! `rate=` with `vhost=on`: the kernel limits the tap. These cases have no vhost-net, of which the keeper knows only
//! the device: they move the frames themselves.

use std::fs::File;
use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use net::gc::Removed;
use net::{Keeper, Request};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvmsg,
    setsockopt, socket, sockopt,
};

use crate::Case;
use crate::guest::link_address;
use crate::lan::{bridge_with_uplink, exists, link, names, sh, snapshot, until};
use crate::mirror::{HEADER, frame, large};
use crate::nft::tap::Sniffer;
use crate::vmm::Vmm;

pub(crate) const CASES: &[Case] = &[
    ("rate_with_vhost_is_held_both_ways", held),
    ("rate_with_vhost_leaves_rules_and_large_frames_alone", rules_hold),
    ("rate_with_vhost_leaves_nothing", leaves_nothing),
    ("rate_with_vhost_after_sigkill_of_both_is_swept", swept),
];

const GUEST: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const OUTSIDE: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];

const BITS_PER_S: f64 = 4e6;
const FLAG: &str = "bridge=br0,mac=52:54:00:00:00:01,vhost=on,rate=4M/4M";

/// Gives this case its own `/dev`, in which vhost-net can be opened.
pub(crate) fn device() {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    sh("mount --make-rprivate /");
    sh("mount -t tmpfs none /mnt");
    std::fs::create_dir("/mnt/net").unwrap();
    for (from, to) in [("net/tun", "net/tun"), ("null", "null"), ("urandom", "urandom"), ("null", "vhost-net")] {
        std::fs::write(format!("/mnt/{to}"), "").unwrap();
        sh(&format!("mount --bind /dev/{from} /mnt/{to}"));
    }
    sh("mount --move /mnt /dev");
}

struct Card {
    _keeper: Keeper,
    queue: File,
}

impl Card {
    fn start(flag: &str) -> Self {
        let cards = vec![flag.parse().unwrap()];
        let request = Request { vm_name: "web".to_owned(), vcpus: 1, cards, policy: None, steering: None };
        let mut keeper = Keeper::start(&request).unwrap();
        let port = keeper.ports().unwrap().remove(0);
        assert_eq!((port.tap_name.as_str(), port.vhost.len()), ("vmtap0", 1));
        until(|| link("vmtap0")["linkinfo"]["info_slave_data"]["state"] == "forwarding");
        Self { _keeper: keeper, queue: File::from(port.fds[0].try_clone().unwrap()) }
    }
}

/// A capture of an interface's frames, with the kernel's timestamps.
fn clock(interface: &str) -> OwnedFd {
    let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll).unwrap();
    setsockopt(&fd, sockopt::ReceiveTimestampns, &true).unwrap();
    setsockopt(&fd, sockopt::RcvBufForce, &(32 << 20)).unwrap();
    bind(fd.as_raw_fd(), &link_address(interface, [0; 6])).unwrap();
    fd
}

/// The rate in bits per second of the frames to an address that `clock` has seen, after the first burst.
fn rate(clock: &OwnedFd, to: [u8; 6]) -> f64 {
    let mut buffer = vec![0; 70_000];
    let (mut seen, mut first, mut last) = (0, None, None);
    loop {
        let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let received = recvmsg::<LinkAddr>(clock.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty());
        let Ok(message) = received else { break };
        let time = message.cmsgs().unwrap().find_map(|control| match control {
            ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
            _ => None,
        });
        let (len, time) = (message.bytes, time.expect("a time"));
        if buffer[..6] != to {
            continue;
        }
        seen += len;
        if seen > 150_000 && first.is_none() {
            first = Some((seen, time));
        }
        last = Some((seen, time));
    }
    let ((first, start), (last, end)) = (first.unwrap(), last.unwrap());
    f64::from(u32::try_from(last - first).unwrap()) * 8.0 / (end - start).as_secs_f64()
}

fn held() {
    bridge_with_uplink("br0");
    device();
    let card = Card::start(FLAG);
    let within = |rate: f64| (rate / BITS_PER_S - 1.0).abs() < 0.02;
    let mut attempts = Vec::new();
    // A machine that stalls the senders for half a second makes them fall behind.
    while attempts.len() < 5 && !attempts.last().is_some_and(|(to, from)| within(*to) && within(*from)) {
        attempts.push(measure(&card));
    }
    let (to_guest, from_guest) = *attempts.last().unwrap();
    assert!(within(to_guest) && within(from_guest), "{attempts:?}");
}

/// Sends at full speed both ways for a second and a half, and returns the rates to and from the guest.
fn measure(card: &Card) -> (f64, f64) {
    let (mut sender, mut receiver) = (card.queue.try_clone().unwrap(), card.queue.try_clone().unwrap());
    let [tap, peer] = ["vmtap0", "peer0"].map(clock);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let frame = [vec![0; HEADER], frame(OUTSIDE, GUEST, 1), vec![0; 1300]].concat();
            while !stop.load(Ordering::Relaxed) {
                match sender.write(&frame) {
                    Ok(len) => assert_eq!(len, frame.len()),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::WouldBlock);
                        let mut fds = [PollFd::new(sender.as_fd(), PollFlags::POLLOUT)];
                        poll(&mut fds, PollTimeout::from(100u16)).unwrap();
                    }
                }
            }
        });
        scope.spawn(|| {
            let mut buffer = vec![0; 70_000];
            while !stop.load(Ordering::Relaxed) {
                while receiver.read(&mut buffer).is_ok() {}
                let mut fds = [PollFd::new(receiver.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::from(100u16)).unwrap();
            }
        });
        scope.spawn(|| {
            let frame = [frame(GUEST, OUTSIDE, 1), vec![0; 1300]].concat();
            let outside = clock("peer0");
            while !stop.load(Ordering::Relaxed) {
                // Frames beyond the bridge's queue are lost, as on a wire.
                let _ = nix::unistd::write(&outside, &frame);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        std::thread::sleep(Duration::from_millis(1500));
        stop.store(true, Ordering::Relaxed);
    });
    (rate(&tap, GUEST), rate(&peer, OUTSIDE))
}

fn rules_hold() {
    bridge_with_uplink("br0");
    device();
    let mut card = Card::start(&format!("{FLAG},antispoof=on"));
    let outside = Sniffer::new();
    let (forged, (header, segment)) = (frame(OUTSIDE, [0x52, 0x54, 0, 0, 0, 9], 1), large());
    card.queue.write_all(&[vec![0; HEADER], forged].concat()).unwrap();
    card.queue.write_all(&[header.as_slice(), &segment].concat()).unwrap();
    let seen = outside.until_that("peer0", |frame| frame[6..12] == GUEST && frame.len() == segment.len());
    assert!(seen.iter().all(|frame| frame[6..12] != [0x52, 0x54, 0, 0, 0, 9]));
    let detour = link(names().iter().find(|name| name.starts_with("mvifb")).unwrap());
    assert_eq!((&detour["qdisc"], &detour["group"]), (&"tbf".into(), &"28022".into()));
    assert_eq!(link("vmtap0")["qdisc"], "tbf");
}

fn leaves_nothing() {
    bridge_with_uplink("br0");
    device();
    let before = snapshot();
    let flags = [FLAG, "bridge=br0,vhost=on,rate=1G/100k,burst=1K,queues=2"];
    Vmm::start("web", &flags).stop();
    assert_eq!(snapshot(), before);
    let mut vmm = Vmm::start("web", &flags);
    vmm.kill();
    assert_eq!(vmm.end(), "");
    assert_eq!(snapshot(), before);
    assert_eq!(sh("nft list tables"), "");
}

fn swept() {
    bridge_with_uplink("br0");
    device();
    let before = snapshot();
    let kill_both = || {
        let mut vmm = Vmm::start("web", &[FLAG]);
        vmm.kill_keeper();
        assert_eq!(vmm.line(), "keeper gone");
        vmm.kill();
        assert_eq!(vmm.end(), "");
        until(|| !exists("vmtap0"));
        names().into_iter().find(|name| name.starts_with("mvifb")).expect("an ifb")
    };
    let left = kill_both();
    let collected = net::gc::collect().unwrap();
    assert_eq!((collected.removed, collected.failed), (vec![Removed::Ifb(left)], vec![]));
    assert_eq!(snapshot(), before);
    kill_both();
    Vmm::start("web", &[FLAG]).stop();
    assert_eq!(snapshot(), before);
}
