//! Ports in front of which frames are late, lost or too many.

use super::*;
use crate::virtio::net::impair::{Impairment, Rate};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// The port of a card with one queue that `impairment` was done to, and its wire.
fn impaired(impairment: Impairment) -> (Arc<dyn FramePort>, UnixDatagram) {
    let (port, wire) = port();
    (impairment.ports(vec![port], &Driver::new().mem, &Budget::default()).unwrap().remove(0), wire)
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
    let ports = Impairment::default().ports(vec![port.clone()], &Driver::new().mem, &Budget::default()).unwrap();
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

/// A TCP frame of 1054 bytes to be cut into segments of `size`; its virtio header says that the headers have `hdr_len`
/// bytes.
fn large(hdr_len: u8, size: u8) -> Vec<u8> {
    let mut large = vec![0; HEADER_LEN + 1054];
    (large[1], large[2], large[4]) = (1, hdr_len, size);
    large[HEADER_LEN + 12..HEADER_LEN + 15].copy_from_slice(&[8, 0, 0x45]);
    large[HEADER_LEN + 14 + 20 + 12] = 5 << 4;
    large
}

/// How long the next frame has to wait after this one, at a byte each microsecond.
fn wait_after(large: &[u8]) -> Duration {
    let rate = Some(Rate { bytes_per_second: 1_000_000, burst_bytes: 1 });
    let (port, wire) = impaired(Impairment { rate_out: rate, ..Impairment::default() });
    let begin = Instant::now();
    transmit(&*port, large).unwrap();
    while would_block(transmit(&*port, &frame(1))) {
        std::thread::yield_now();
    }
    let took = begin.elapsed();
    let mut sent = [0; 2000];
    let len = wire.recv(&mut sent).unwrap();
    assert_eq!(&sent[..len], large);
    took
}

#[test]
fn large_frame_counts_with_the_headers_of_its_segments_whatever_its_header_says() {
    // 1000 bytes are 125 segments of 8 bytes, 124 of them with headers that are not in the frame.
    for hdr_len in [54, 1, 0, 255] {
        let took = wait_after(&large(hdr_len, 8));
        assert!(took >= Duration::from_micros(1054 + 124 * 54 - 1), "hdr_len {hdr_len}: {took:?}");
    }
}

#[test]
fn frame_whose_segments_cannot_be_counted_is_not_sent() {
    let rate = Some(Rate { bytes_per_second: 1_000_000, burst_bytes: 1 });
    let (port, _wire) = impaired(Impairment { rate_out: rate, ..Impairment::default() });
    let mut odd = large(54, 8);
    odd[HEADER_LEN + 12] = 0x99;
    assert_eq!(transmit(&*port, &odd).unwrap_err().raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn rate_counts_what_has_come_and_the_guest_gets_it_whole() {
    let rate = Some(Rate { bytes_per_second: 1_000_000, burst_bytes: 1 });
    let (port, wire) = impaired(Impairment { rate_in: rate, ..Impairment::default() });
    let (mem, large) = (Driver::new().mem, large(1, 8));
    for room in [0, 5, 60, 400, 2000] {
        let mut into = IoVecs::new(mem.clone());
        if room > 0 {
            into.push(crate::virtio::chain::Buffer { addr: GuestAddress(BUFFERS), len: room }).unwrap();
        }
        wire.send(&large).unwrap();
        wire.send(&frame(1)).unwrap();
        let (mut spill, begin) = (vec![0; 2000], Instant::now());
        let len = loop {
            match port.receive(&mut into, &mut spill) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                len => break len.unwrap(),
            }
        };
        let direct = len.min(usize::try_from(room).unwrap());
        let mut got = vec![0; direct];
        mem.read_slice(&mut got, GuestAddress(BUFFERS)).unwrap();
        assert_eq!([&got, &spill[..len - direct]].concat(), large, "room for {room}");
        while would_block(receive(&*port)) {
            std::thread::yield_now();
        }
        assert!(begin.elapsed() >= Duration::from_micros(1054 + 124 * 54 - 1), "room for {room}");
    }
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

#[test]
fn queues_of_a_vm_hold_no_more_than_its_budget() {
    let (mem, budget) = (Driver::new().mem, Budget::new(100 * 200));
    let impairment = Impairment { delay: Duration::from_secs(3600), ..Impairment::default() };
    let (ends, wires): (Vec<_>, Vec<_>) = (0..8).map(|_| port()).unzip();
    let ends = ends.into_iter().map(|port| port as Arc<dyn FramePort>).collect();
    let ports = impairment.ports(ends, &mem, &budget).unwrap();
    let sent = |port: &Arc<dyn FramePort>| (0..100).filter(|number| transmit(&**port, &frame(*number)).is_ok()).count();
    // A frame takes 72 bytes with its header, and 64 beside them.
    assert_eq!(ports.iter().map(sent).sum::<usize>(), 100 * 200 / (72 + 64));
    drop((ports, wires));
    assert!(budget.take(100 * 200 - 64).is_some());
}
