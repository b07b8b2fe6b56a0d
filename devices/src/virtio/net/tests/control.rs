//! The control queue: pairs, offloads, the address, parameters of queues, and commands that have to wait.

use super::*;

#[test]
fn control_queue_asks_for_the_doorbell_after_a_ring_full_of_commands() {
    let (driver, (port, _wire)) = (Driver::new(), port());
    let mock = MockSplitQueue::new(&driver.mem, 4);
    mock.build_multiple_desc_chains(&chains(4, 1, VRING_DESC_F_WRITE)).unwrap();
    let pairs = vec![PairSwitch { port, changed: EventFd::new(EFD_NONBLOCK).unwrap(), drain: None, attached: true }];
    let mut queue = CtrlQueue::new(driver.ring(&mock), control(pairs, 0), driver.counters.clone());

    assert_eq!(queue.serve().unwrap(), Turn::More);
    assert_eq!(queue.serve().unwrap(), Turn::Done);

    assert_eq!(used(&mock), [1; 4]);
    assert_eq!(driver.count("ctrl.refused"), 4);
}

#[test]
fn only_the_first_pair_is_attached_after_reset() {
    let ((first, _a), (second, _b)) = (port(), port());
    let net = Net::new(config(), vec![first.clone(), second.clone()]).unwrap();
    assert!(first.attached.load(Ordering::Relaxed));
    assert!(!second.attached.load(Ordering::Relaxed));
    assert_ne!(net.features() & bit(VIRTIO_NET_F_MQ), 0);
}

#[test]
fn set_pairs_attaches_and_detaches_and_refuses_what_it_has_not() {
    let ((first, _a), (second, _b)) = (port(), port());
    let switch = |port: &Arc<SocketPort>| PairSwitch {
        attached: port.attached.load(Ordering::Relaxed),
        port: port.clone() as Arc<dyn FramePort>,
        changed: EventFd::new(EFD_NONBLOCK).unwrap(),
        drain: None,
    };
    second.set_attached(false).unwrap();
    let pairs = vec![switch(&first), switch(&second)];
    let mut control = control(pairs, bit(VIRTIO_NET_F_MQ));

    assert!(control.execute(ctrl::Command::Pairs(2)));
    assert!(second.attached.load(Ordering::Relaxed));
    assert!(!control.execute(ctrl::Command::Pairs(0)));
    assert!(!control.execute(ctrl::Command::Pairs(3)));
    assert!(control.execute(ctrl::Command::Pairs(1)));
    assert!(!second.attached.load(Ordering::Relaxed));
    assert!(first.attached.load(Ordering::Relaxed));
}

#[test]
fn set_pairs_that_the_host_refuses_half_way_changes_nothing() {
    let ((first, _a), (second, _b), (third, _c)) = (port(), port(), port());
    second.set_attached(false).unwrap();
    let third = Arc::try_unwrap(third).unwrap_or_else(|_| unreachable!());
    let ports: [(Arc<dyn FramePort>, bool); 3] =
        [(first, true), (second.clone(), false), (Arc::new(DetachedPort(third)), false)];
    let switch =
        |(port, attached)| PairSwitch { port, attached, drain: None, changed: EventFd::new(EFD_NONBLOCK).unwrap() };
    let mut control = control(ports.map(switch).into(), bit(VIRTIO_NET_F_MQ));

    assert!(!control.execute(ctrl::Command::Pairs(3)));
    assert!(!second.attached.load(Ordering::Relaxed));
    assert!(control.execute(ctrl::Command::Pairs(2)));
    assert!(second.attached.load(Ordering::Relaxed));
}

#[test]
fn guest_offloads_that_were_not_negotiated_are_refused() {
    use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4};
    let (port, _wire) = port();
    let pairs = vec![PairSwitch { port, changed: EventFd::new(EFD_NONBLOCK).unwrap(), drain: None, attached: true }];
    let features = bit(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) | bit(VIRTIO_NET_F_GUEST_CSUM);
    let mut control = control(pairs, features);

    assert!(control.execute(ctrl::Command::GuestOffloads(bit(VIRTIO_NET_F_GUEST_CSUM))));
    assert!(control.execute(ctrl::Command::GuestOffloads(0)));
    assert!(!control.execute(ctrl::Command::GuestOffloads(bit(VIRTIO_NET_F_GUEST_TSO4))));
    assert!(!control.execute(ctrl::Command::GuestOffloads(bit(VIRTIO_NET_F_MQ))));
}

#[test]
fn new_address_is_seen_in_the_configuration_and_gone_after_reset() {
    let (port, _wire) = port();
    let mut net = Net::new(config(), vec![port]).unwrap();
    let read = |net: &Net| {
        let mut mac = [0; 6];
        net.read_config(0, &mut mac);
        mac
    };
    let mut control = control(Vec::new(), bit(VIRTIO_NET_F_CTRL_MAC_ADDR));
    control.mac = net.mac.clone();

    assert!(control.execute(ctrl::Command::Mac([2, 0, 0, 0, 0, 9])));
    assert_eq!(read(&net), [2, 0, 0, 0, 0, 9]);
    assert!(!control.execute(ctrl::Command::Mac([3, 0, 0, 0, 0, 9])));
    net.stop();
    assert_eq!(read(&net), [2, 0, 0, 0, 0, 1]);
}

#[test]
fn fixed_address_is_the_only_one_that_is_accepted() {
    let (port, _wire) = port();
    let net = Net::new(config(), vec![port]).unwrap().with_fixed_address();
    let mut control = control(Vec::new(), bit(VIRTIO_NET_F_CTRL_MAC_ADDR));
    control.mac = net.mac.clone();

    assert!(!control.execute(ctrl::Command::Mac([2, 0, 0, 0, 0, 9])));
    assert!(control.execute(ctrl::Command::Mac([2, 0, 0, 0, 0, 1])));
}

#[test]
fn commands_whose_feature_was_not_negotiated_are_refused() {
    use filter::{Mode, Switch};
    let mut control = control(Vec::new(), 0);
    for command in [
        ctrl::Command::Mode(Mode::Promiscuous, Switch::Off),
        ctrl::Command::Mode(Mode::NoBroadcast, Switch::On),
        ctrl::Command::Tables(Vec::new(), Vec::new()),
        ctrl::Command::Mac([2, 0, 0, 0, 0, 9]),
        ctrl::Command::Vlan(1, Switch::On),
    ] {
        assert!(!control.execute(command.clone()), "{command:?}");
    }
}

fn ctrl_queue(driver: &Driver, queue: Queue, control: Control) -> CtrlQueue {
    let active = ActiveQueue { idx: 2, queue, doorbell: EventFd::new(0).unwrap() };
    let ring = Ring::new(active, driver.mem.clone(), driver.interrupts.clone()).unwrap().0;
    CtrlQueue::new(ring, control, driver.counters.clone())
}

#[test]
fn parameters_of_a_queue_are_read_back_before_the_acknowledgement() {
    let driver = Driver::new();
    let set: &[u8] = &[6, 2, 0, 0, 0, 0, 64, 0, 0, 0, 0xf4, 1, 0, 0];
    let (get, get_disabled) = ([6_u8, 3, 0, 0, 0xff, 0xff], [6_u8, 3, 1, 0, 0, 0]);
    let queue = commands(&driver.mem, &[set, &get, &get_disabled], 9);
    let mut control = control(Vec::new(), bit(VIRTIO_NET_F_VQ_NOTF_COAL));
    control.coalescing = Arc::new(Settings::new(2));
    let _rx = Coalescer::new(control.coalescing.clone(), 0);
    let mut ctrl = ctrl_queue(&driver, queue, control);

    assert_eq!(ctrl.serve().unwrap(), Turn::Done);

    assert_eq!(driver.bytes(ANSWERS, 1), [0]);
    assert_eq!(driver.bytes(ANSWERS + 0x100, 9), [64, 0, 0, 0, 0xf4, 1, 0, 0, 0]);
    assert_eq!(driver.bytes(ANSWERS + 0x200 + 8, 1), [1]);
    assert_eq!((driver.count("ctrl.ok"), driver.count("ctrl.refused")), (2, 1));
}

#[test]
fn command_without_room_for_its_result_is_refused() {
    let driver = Driver::new();
    let queue = commands(&driver.mem, &[&[6, 3, 0, 0, 0, 0]], 8);
    let mut ctrl = ctrl_queue(&driver, queue, control(Vec::new(), bit(VIRTIO_NET_F_VQ_NOTF_COAL)));
    ctrl.serve().unwrap();
    assert_eq!(driver.bytes(ANSWERS + 7, 1), [1]);
}

#[test]
fn changes_that_take_locks_of_the_host_wait_and_are_then_made() {
    let (driver, (port, _wire)) = (Driver::new(), port());
    let pairs = vec![PairSwitch { port, changed: EventFd::new(EFD_NONBLOCK).unwrap(), drain: None, attached: true }];
    let features = bit(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) | bit(1);
    let control = control(pairs, features);
    let limiter = control.limiter.clone();
    let (none, same) = ([5_u8, 0, 0, 0, 0, 0, 0, 0, 0, 0], [5_u8, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let queue = commands(&driver.mem, &[&same, &none, &none], 2);
    let mut ctrl = ctrl_queue(&driver, queue, control);
    // Nothing is left; the next call may be made in 10 ms.
    limiter.lock().unwrap().take(128, Instant::now()).unwrap();

    assert_eq!(ctrl.serve().unwrap(), Turn::Done);
    assert_eq!(driver.count("ctrl.ok"), 1, "the one that changes nothing");
    let due = ctrl.deadline().unwrap();
    while Instant::now() < due {
        std::thread::yield_now();
    }
    ctrl.serve().unwrap();
    assert_eq!((driver.count("ctrl.ok"), ctrl.deadline()), (3, None));
}
