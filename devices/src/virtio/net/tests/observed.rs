//! Ports whose frames are looked at.

use super::*;
use crate::virtio::net::observer::{Direction, FrameObserver, ObservedPort};

#[derive(Default)]
struct Notes(Mutex<Vec<(Direction, Vec<u8>, usize)>>);

impl FrameObserver for Notes {
    fn observe(&self, direction: Direction, start: Vec<u8>, len: usize) {
        self.0.lock().unwrap().push((direction, start, len));
    }
}

#[test]
fn first_bytes_of_each_frame_are_shown_wherever_they_are() {
    let frame: Vec<u8> = (0..112).collect();
    for (snap, room) in [(20, 0), (20, 5), (20, 12), (20, 18), (20, 200), (200, 40)] {
        let (driver, (port, wire), notes) = (Driver::new(), port(), Arc::new(Notes::default()));
        let observed = ObservedPort::new(port, notes.clone(), snap, driver.mem.clone());
        let mut into = IoVecs::new(driver.mem.clone());
        if room > 0 {
            into.push(crate::virtio::chain::Buffer { addr: GuestAddress(BUFFERS), len: room }).unwrap();
        }
        wire.send(&frame).unwrap();
        assert_eq!(observed.receive(&mut into, &mut [0; 200]).unwrap(), 112);
        into.clear();
        into.put_in_front(&frame);
        observed.transmit(&into).unwrap();

        let start = frame[HEADER_LEN..].iter().copied().take(snap).collect::<Vec<_>>();
        let seen = [Direction::ToGuest, Direction::FromGuest].map(|direction| (direction, start.clone(), 100));
        assert_eq!(*notes.0.lock().unwrap(), seen, "{snap} bytes, room for {room}");
    }
}

#[test]
fn what_is_not_moved_is_not_shown() {
    let ((port, _wire), notes) = (port(), Arc::new(Notes::default()));
    let observed = ObservedPort::new(port, notes.clone(), 64, Driver::new().mem);
    assert!(observed.receive(&mut IoVecs::new(Driver::new().mem), &mut [0; 10]).is_err());
    assert!(notes.0.lock().unwrap().is_empty());
}

/// A port whose guest writes to its buffers at the worst moments: before a frame leaves them, and after one has come.
struct Racing {
    inner: Arc<SocketPort>,
    mem: Memory,
}

impl Racing {
    fn write(&self) {
        self.mem.write_slice(&[0xee; 112], GuestAddress(BUFFERS)).unwrap();
    }
}

impl FramePort for Racing {
    fn fd(&self) -> RawFd {
        self.inner.fd()
    }
    fn receive(&self, into: &mut IoVecs, spill: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.receive(into, spill)?;
        self.write();
        Ok(len)
    }
    fn transmit(&self, frame: &IoVecs) -> io::Result<usize> {
        self.write();
        self.inner.transmit(frame)
    }
    fn probe_offloads(&self) -> Offloads {
        self.inner.probe_offloads()
    }
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.inner.set_offloads(offloads)
    }
    fn set_attached(&self, attached: bool) -> io::Result<()> {
        self.inner.set_attached(attached)
    }
    fn set_header_len(&self, bytes: usize) -> io::Result<()> {
        self.inner.set_header_len(bytes)
    }
    fn set_steering(&self, program: Option<BorrowedFd>) -> io::Result<()> {
        self.inner.set_steering(program)
    }
}

#[test]
fn what_is_seen_is_what_is_moved_whatever_the_guest_writes_meanwhile() {
    let frame: Vec<u8> = (0..112).collect();
    let (driver, (port, wire), notes) = (Driver::new(), port(), Arc::new(Notes::default()));
    let racing = Arc::new(Racing { inner: port, mem: driver.mem.clone() });
    let observed = ObservedPort::new(racing, notes.clone(), 200, driver.mem.clone());
    let mut list = IoVecs::new(driver.mem.clone());
    list.push(crate::virtio::chain::Buffer { addr: GuestAddress(BUFFERS), len: 112 }).unwrap();

    driver.mem.write_slice(&frame, GuestAddress(BUFFERS)).unwrap();
    observed.transmit(&list).unwrap();
    let mut sent = [0; 112];
    wire.recv(&mut sent).unwrap();
    wire.send(&frame).unwrap();
    observed.receive(&mut list, &mut [0; 112]).unwrap();

    assert_eq!((&sent[..], driver.bytes(BUFFERS, 112)), (&frame[..], frame.clone()));
    let seen =
        [Direction::FromGuest, Direction::ToGuest].map(|direction| (direction, frame[HEADER_LEN..].to_vec(), 100));
    assert_eq!(*notes.0.lock().unwrap(), seen);
}
