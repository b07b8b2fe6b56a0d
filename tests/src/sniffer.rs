//! The frames of an interface, as its driver sees them: with their virtio-net headers, before anybody cuts them and
//! after everybody has put them together (packet(7), PACKET_VNET_HDR).
//!
//! Unsafe, because a packet socket is bound by an address structure, and told of headers by an option, that no safe
//! crate here has.
#![expect(unsafe_code, reason = "a packet socket is bound by an address structure")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Bytes of the header before a frame: `struct virtio_net_hdr`.
const HEADER_BYTES: usize = 10;
/// The largest frame with its header and some more.
const FRAME_MAX: usize = HEADER_BYTES + (1 << 16) + 64;
/// The size of the socket's buffer, for the time while its thread does something else.
const BUFFER_BYTES: libc::c_int = 16 << 20;

/// Beside another type: TCP segments of which only the first has CWR (VIRTIO_NET_HDR_GSO_ECN).
pub const GSO_ECN: u8 = 0x80;

/// Large frames of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// How many.
    pub frames: u32,
    /// The longest one, Ethernet header included.
    pub longest: usize,
}

/// Looks at an interface as long as it is there.
pub struct Sniffer {
    seen: Arc<Mutex<Vec<(Frame, Seen)>>>,
}

/// A kind of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    gso_type: u8,
    source: [u8; 6],
}

impl Sniffer {
    /// Starts to look at `interface`.
    ///
    /// # Errors
    /// If there is no such interface, or no socket for it.
    pub fn new(interface: &str) -> io::Result<Self> {
        let mut socket = packet_socket(interface)?;
        let seen = Arc::new(Mutex::default());
        let sniffer = Self { seen: Arc::clone(&seen) };
        thread::Builder::new().name("sniffer".to_owned()).spawn(move || {
            let mut bytes = vec![0; FRAME_MAX];
            // The interface goes with its VM.
            while let Ok(len) = socket.read(&mut bytes) {
                note(&mut lock(&seen), bytes.get(..len).unwrap_or_default());
            }
        })?;
        Ok(sniffer)
    }

    /// The frames seen so far that come from the address `source`, as `ip link` writes it, and whose type of segments
    /// is one that `wanted` takes.
    pub fn sent_by(&self, source: &str, wanted: impl Fn(u8) -> bool) -> Seen {
        self.sum(|frame| mac(frame.source) == source && wanted(frame.gso_type))
    }

    /// The same of those that come from anybody else.
    pub fn sent_by_others(&self, source: &str, wanted: impl Fn(u8) -> bool) -> Seen {
        self.sum(|frame| mac(frame.source) != source && wanted(frame.gso_type))
    }

    fn sum(&self, wanted: impl Fn(&Frame) -> bool) -> Seen {
        lock(&self.seen).iter().filter(|(frame, _)| wanted(frame)).fold(Seen::default(), |sum, (_, seen)| Seen {
            frames: sum.frames + seen.frames,
            longest: sum.longest.max(seen.longest),
        })
    }
}

fn note(seen: &mut Vec<(Frame, Seen)>, bytes: &[u8]) {
    let Some((header, packet)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return };
    let Some(source) = packet.get(6..12).and_then(|source| source.try_into().ok()) else { return };
    let [_flags, gso_type, ..] = *header;
    let frame = Frame { gso_type, source };
    let idx = seen.iter().position(|(known, _)| *known == frame).unwrap_or_else(|| {
        seen.push((frame, Seen::default()));
        seen.len() - 1
    });
    if let Some((_, seen)) = seen.get_mut(idx) {
        seen.frames += 1;
        seen.longest = seen.longest.max(packet.len());
    }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A socket for all frames of one interface, both ways, with their headers.
fn packet_socket(interface: &str) -> io::Result<File> {
    let index: i32 = std::fs::read_to_string(format!("/sys/class/net/{interface}/ifindex"))?
        .trim()
        .parse()
        .map_err(io::Error::other)?;
    // Nothing is received before it is bound.
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER_BYTES)?;
    // SAFETY: all-zero bytes are a valid value of this plain structure.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let all = u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?;
    address.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    address.sll_protocol = all.to_be();
    address.sll_ifindex = index;
    let len = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    // SAFETY: `address` is alive and `len` bytes long; the kernel only reads it.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if bound == 0 { Ok(File::from(socket)) } else { Err(io::Error::last_os_error()) }
}

fn set_option(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: `value` is alive and `len` bytes long; the kernel only reads it.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
