//! Ports in front of which frames are late, lost or too many.

use super::*;
use crate::virtio::net::impair::{Impairment, Rate};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// The port of a card with one queue that `impairment` was done to, and its wire.
fn impaired(impairment: Impairment) -> (Arc<dyn FramePort>, UnixDatagram) {
    let (port, wire) = port();
    (impairment.ports(vec![port], &Driver::new().mem).unwrap().remove(0), wire)
}

fn frame(number: u8) -> Vec<u8> {
    [&[0; HEADER_LEN][..], &[number; 60]].concat()
}

/// Sends a frame as the guest would.
fn transmit(port: &dyn FramePort, frame: &[u8]) -> io::Result<usize> {
    let mut list = IoVecs::new(Driver::new().mem);
    list.put_in_front(frame);
    port.transmit(&list)
}

/// Receives a frame into no buffers.
fn receive(port: &dyn FramePort) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 2000];
    let len = port.receive(&mut IoVecs::new(Driver::new().mem), &mut bytes)?;
    bytes.truncate(len);
    Ok(bytes)
}

fn would_block<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|err| err.kind() == io::ErrorKind::WouldBlock)
}

/// Waits until the port asks to be looked at, as a worker does: for an edge.
fn wait(epoll: &Epoll) {
    assert_eq!(epoll.wait(5000, &mut [EpollEvent::default()]).unwrap(), 1, "the port stays silent");
}

fn watch(port: &dyn FramePort) -> Epoll {
    let epoll = Epoll::new().unwrap();
    let events = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
    epoll.ctl(ControlOperation::Add, port.fd(), EpollEvent::new(events, 0)).unwrap();
    epoll
}

#[test]
fn card_without_impairment_has_its_own_ports() {
    let (port, _wire) = port();
    let ports = Impairment::default().ports(vec![port.clone()], &Driver::new().mem).unwrap();
    assert_eq!(ports[0].fd(), port.fd());
}

#[test]
fn same_seed_loses_the_same_frames_each_way() {
    let arrived = |seed| {
        let (port, wire) = impaired(Impairment { loss_ppm: 300_000, seed, ..Impairment::default() });
        wire.set_nonblocking(true).unwrap();
        let (mut there, mut here) = (Vec::new(), Vec::new());
        for number in 0..100 {
            transmit(&*port, &frame(number)).unwrap();
            there.extend(wire.recv(&mut [0; 100]).ok().map(|_| number));
            wire.send(&frame(number)).unwrap();
            here.extend(receive(&*port).ok().map(|frame| frame[20]));
        }
        (there, here)
    };
    let (there, here) = arrived(5);
    assert!((50..90).contains(&there.len()) && (50..90).contains(&here.len()), "{} {}", there.len(), here.len());
    assert_ne!(there, here);
    assert_eq!(arrived(5), (there, here));
    assert_ne!(arrived(5), arrived(6));
}

#[test]
fn late_frames_come_in_order_and_wake_who_waits_for_them() {
    let ms = Duration::from_millis;
    let (port, wire) = impaired(Impairment { delay: ms(20), jitter: ms(10), ..Impairment::default() });
    let epoll = watch(&*port);
    let begin = Instant::now();
    for number in 0..5 {
        wire.send(&frame(number)).unwrap();
        transmit(&*port, &frame(100 + number)).unwrap();
    }
    let mut numbers = Vec::new();
    while numbers.len() < 5 {
        match receive(&*port) {
            Ok(frame) => numbers.push(frame[20]),
            Err(_) => wait(&epoll),
        }
    }
    assert!(begin.elapsed() >= ms(10));
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
    wire.set_nonblocking(true).unwrap();
    for number in 100..105 {
        let mut bytes = [0; 100];
        while wire.recv(&mut bytes).is_err() {
            wait(&epoll);
            assert!(would_block(receive(&*port)));
        }
        assert_eq!(bytes[20], number);
    }
}

#[test]
fn what_is_too_fast_waits_outside_and_is_not_lost() {
    let rate = Some(Rate { bytes_per_second: 6000, burst_bytes: 60 });
    let (port, wire) = impaired(Impairment { rate_in: rate, rate_out: rate, ..Impairment::default() });
    let epoll = watch(&*port);
    let begin = Instant::now();
    for number in 0..4 {
        wire.send(&frame(number)).unwrap();
        while would_block(transmit(&*port, &frame(number))) {
            wait(&epoll);
            // Whoever is woken looks at both sides.
            let _ = port.receive(&mut IoVecs::new(Driver::new().mem), &mut []);
        }
        assert_eq!(wire.recv(&mut [0; 100]).unwrap(), HEADER_LEN + 60);
    }
    // The first leaves the bucket empty, the second in debt; 60 bytes take 10 ms.
    assert!(begin.elapsed() >= Duration::from_millis(20), "{:?}", begin.elapsed());
}

#[test]
fn large_frame_counts_with_the_headers_of_its_segments() {
    let rate = Some(Rate { bytes_per_second: 1_000_000, burst_bytes: 1 });
    let (port, wire) = impaired(Impairment { rate_out: rate, ..Impairment::default() });
    // hdr_len 54, gso_size 46: 1000 bytes are 21 segments, 20 of them with headers that are not in the frame.
    let mut large = vec![0; HEADER_LEN + 1000];
    (large[2], large[4]) = (54, 46);
    let begin = Instant::now();
    transmit(&*port, &large).unwrap();
    while would_block(transmit(&*port, &frame(1))) {
        std::thread::sleep(Duration::from_micros(50));
    }
    assert!(begin.elapsed() >= Duration::from_micros(2079), "{:?}", begin.elapsed());
    assert_eq!(wire.recv(&mut [0; 2000]).unwrap(), HEADER_LEN + 1000);
}

#[test]
fn card_that_loses_frames_offers_no_segmentation() {
    let slow =
        impaired(Impairment { rate_in: Some(Rate { bytes_per_second: 1, burst_bytes: 1 }), ..Impairment::default() });
    let lossy = impaired(Impairment { loss_ppm: 1, ..Impairment::default() });
    assert_eq!(slow.0.probe_offloads(), Offloads::CANDIDATES[0]);
    assert_eq!(lossy.0.probe_offloads(), Offloads::CSUM);
}

#[test]
fn full_line_refuses_what_the_guest_sends_and_leaves_the_rest_in_the_port() {
    let (port, _wire) = impaired(Impairment { delay: Duration::from_secs(3600), ..Impairment::default() });
    for number in 0..1000_u32 {
        transmit(&*port, &frame(number.to_le_bytes()[0])).unwrap();
    }
    let refused = transmit(&*port, &frame(0)).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENOBUFS));
}
