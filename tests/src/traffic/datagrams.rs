//! Numbered UDP datagrams whose sizes and bytes the receiver knows beforehand. They are sent in bursts: after each, the
//! sender waits for the receiver's word, so no queue between them has to hold more than one.

use super::{PATIENCE, Pattern};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, UdpSocket};

/// Datagrams of a burst at most: the kernel's UDP_MAX_SEGMENTS.
const BURST_MAX: usize = 64;
/// The largest UDP payload over IPv4.
const MAX_BYTES: usize = 65507;
/// Room for a burst with all that the kernel and drivers put around it.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// Bytes of a datagram's number.
const NUMBER_BYTES: usize = 4;

/// The plan that both ends know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// How many datagrams.
    pub count: usize,
    /// Payloads in bytes, of the first datagram, the second, ..; then again from the first.
    pub sizes: Vec<u16>,
}

/// Who cuts what is sent into datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The sender: a system call for each.
    Sender,
    /// The kernel, or the card (UDP_SEGMENT): a system call for as many of one size as fit. The sizes have to be all
    /// the same.
    Kernel,
}

/// Sends every datagram that arrives at `address` back to its sender.
///
/// # Errors
/// If a socket cannot be had, or one receives or sends no more.
pub fn echo(address: SocketAddr) -> io::Result<Infallible> {
    let socket = UdpSocket::bind(address)?;
    let mut bytes = vec![0; MAX_BYTES];
    loop {
        let (len, sender) = socket.recv_from(&mut bytes)?;
        socket.send_to(&bytes[..len], sender)?;
    }
}

/// The datagrams that arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How many datagrams.
    pub received: usize,
    /// Those that came before or after their turn.
    pub disordered: usize,
    /// Those of another size or with other bytes than were sent.
    pub wrong: usize,
    /// Payload bytes.
    pub bytes: usize,
}

impl Plan {
    /// How many datagrams are sent before the receiver answers: no more than a socket has room for.
    fn burst(&self) -> usize {
        let largest = self.sizes.iter().copied().max().map_or(1, usize::from);
        (MAX_BYTES / largest.max(1)).clamp(1, BURST_MAX)
    }

    fn fill(&self, number: usize, pattern: &Pattern, datagram: &mut Vec<u8>) {
        let size = self.sizes.get(number % self.sizes.len().max(1)).copied().map_or(0, usize::from);
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let rest = size.saturating_sub(NUMBER_BYTES);
        datagram.extend(number.to_be_bytes().into_iter().take(size));
        datagram.extend(pattern.at(u64::from(number) * 31, rest));
    }
}

/// Sends a plan's datagrams. Returns how many.
///
/// # Errors
/// If they cannot be sent, or the receiver does not say that it has them.
pub fn send(address: SocketAddr, plan: &Plan, cut: Cut) -> io::Result<usize> {
    let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let pattern = Pattern::new(MAX_BYTES);
    let size = plan.sizes.first().copied().unwrap_or_default();
    let together = match cut {
        Cut::Sender => 1,
        Cut::Kernel => {
            setsockopt(&socket, sockopt::UdpGsoSegment, &size.into())?;
            plan.burst()
        }
    };
    let numbers: Vec<_> = (0..plan.count).collect();
    let mut payload = Vec::new();
    for burst in numbers.chunks(plan.burst()) {
        for numbers in burst.chunks(together) {
            payload.clear();
            numbers.iter().for_each(|number| plan.fill(*number, &pattern, &mut payload));
            socket.send(&payload)?;
        }
        socket.recv(&mut [0; NUMBER_BYTES])?;
    }
    Ok(plan.count)
}

/// Receives a plan's datagrams, each as it comes.
///
/// # Errors
/// If they stay away.
pub fn receive(socket: &UdpSocket, plan: &Plan) -> io::Result<Report> {
    // Received frames lie in larger buffers than they need. Without the privilege, small datagrams still fit.
    let _refused = setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES);
    // The first may wait for a guest to boot.
    socket.set_read_timeout(Some(PATIENCE * 6))?;
    let pattern = Pattern::new(MAX_BYTES);
    let (mut buffer, mut expected) = (vec![0; MAX_BYTES], Vec::new());
    let mut report = Report::default();
    while report.received < plan.count {
        let (len, sender) = socket.recv_from(&mut buffer)?;
        let datagram = buffer.get(..len).unwrap_or_default();
        let number = datagram.first_chunk().map_or(u32::MAX, |number| u32::from_be_bytes(*number));
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        report.disordered += usize::from(number != report.received);
        expected.clear();
        plan.fill(number, &pattern, &mut expected);
        report.wrong += usize::from(datagram != expected);
        report.received += 1;
        report.bytes += len;
        if report.received % plan.burst() == 0 || report.received == plan.count {
            socket.send_to(&[0; NUMBER_BYTES], sender)?;
        }
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn datagrams_arrive_as_they_were_sent_whoever_cuts_them() {
        for (cut, sizes) in [(Cut::Sender, vec![4, 1000, 1000, 9]), (Cut::Kernel, vec![700])] {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let address = socket.local_addr().unwrap();
            let plan = Plan { count: 100, sizes };
            let bytes = (0..100).map(|number| usize::from(plan.sizes[number % plan.sizes.len()])).sum();
            let receiver = thread::spawn({
                let plan = plan.clone();
                move || receive(&socket, &plan).unwrap()
            });
            assert_eq!(send(address, &plan, cut).unwrap(), 100);
            assert_eq!(receiver.join().unwrap(), Report { received: 100, disordered: 0, wrong: 0, bytes });
        }
    }

    #[test]
    fn what_was_not_sent_is_counted() {
        let (socket, sender) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let address = socket.local_addr().unwrap();
        for datagram in [&[0, 0, 0, 1][..], &[0, 0, 0, 1, 5], &[]] {
            sender.send_to(datagram, address).unwrap();
        }
        let report = receive(&socket, &Plan { count: 3, sizes: vec![4] }).unwrap();
        assert_eq!(report, Report { received: 3, disordered: 2, wrong: 2, bytes: 9 });
    }
}
