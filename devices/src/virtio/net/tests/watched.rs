//! Ports whose frames are looked at.

use super::*;
use crate::virtio::net::tee::{Watched, Watcher, Way};

#[derive(Default)]
struct Notes(Mutex<Vec<(Way, Vec<u8>, usize)>>);

impl Watcher for Notes {
    fn saw(&self, way: Way, start: Vec<u8>, len: usize) {
        self.0.lock().unwrap().push((way, start, len));
    }
}

#[test]
fn first_bytes_of_each_frame_are_shown_wherever_they_are() {
    let frame: Vec<u8> = (0..112).collect();
    for (snap, room) in [(20, 0), (20, 5), (20, 12), (20, 18), (20, 200), (200, 40)] {
        let (driver, (port, wire), notes) = (Driver::new(), port(), Arc::new(Notes::default()));
        let watched = Watched::new(port, notes.clone(), snap);
        let mut into = IoVecs::new(driver.mem.clone());
        if room > 0 {
            into.push(crate::virtio::chain::Buffer { addr: GuestAddress(BUFFERS), len: room }).unwrap();
        }
        wire.send(&frame).unwrap();
        assert_eq!(watched.receive(&mut into, &mut [0; 200]).unwrap(), 112);
        into.clear();
        into.put_in_front(&frame);
        watched.transmit(&into).unwrap();

        let start = frame[HEADER_LEN..].iter().copied().take(snap).collect::<Vec<_>>();
        let seen = [Way::ToGuest, Way::FromGuest].map(|way| (way, start.clone(), 100));
        assert_eq!(*notes.0.lock().unwrap(), seen, "{snap} bytes, room for {room}");
    }
}

#[test]
fn what_is_not_moved_is_not_shown() {
    let ((port, _wire), notes) = (port(), Arc::new(Notes::default()));
    let watched = Watched::new(port, notes.clone(), 64);
    assert!(watched.receive(&mut IoVecs::new(Driver::new().mem), &mut [0; 10]).is_err());
    assert!(notes.0.lock().unwrap().is_empty());
}
