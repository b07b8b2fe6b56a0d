//! The devices of the machine, and the two address spaces in which the guest finds them.

use super::ending::{End, Ending};
use super::resources::{Card, Disk, Resources};
use super::serial::Port;
use crate::cli::OnDiskError;
use crate::error::Error;
use crate::kvm::Vm;
use boot::layout::{self, Ports};
use devices::bus::{Bus, BusDevice};
use devices::legacy::debug_exit::DebugExit;
use devices::legacy::event::Events;
use devices::legacy::i8042::I8042;
use devices::legacy::pit::Pit;
use devices::legacy::power::{PowerButton, SleepRegisters};
use devices::legacy::pvpanic::Pvpanic;
use devices::legacy::reset::{self, ResetRegister};
use devices::legacy::reset_control::ResetControl;
use devices::legacy::rtc::Rtc;
use devices::legacy::serial::Serial;
use devices::pci::root::{PciRoot, Windows};
use devices::virtio::blk::{Blk, OnError, QueueCount, StopMachine, disk};
use devices::virtio::device::{Device, Memory};
use devices::virtio::net::{
    Budget, FramePort, Impairment, Instance, Net, NetConfig, ObservedPort, Offloads, Rate, Steering, Tap, Vhost,
};
use devices::virtio::pci::{VirtioPci, Wiring};
use devices::virtio::rng::Rng;
use devices::virtio::threads::Threads;
use net::spec::{Delay, ImpairSpec, Offload, OffloadList};
use serde_json::{Map, Value};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Where the guest's accesses go. Read by all vCPU threads, and never changed.
pub(super) struct Buses {
    /// I/O ports.
    pub(super) ports: Bus,
    /// Guest-physical addresses that are not RAM.
    pub(super) mmio: Bus,
}

/// All devices.
pub(super) struct Devices {
    buses: Arc<Buses>,
    /// By name, in the order of their slots.
    virtio: Vec<(String, Arc<VirtioPci>)>,
    serial: Arc<Port>,
    serial_drained: EventFd,
    power_button: PowerButton,
}

impl Devices {
    /// Builds every device of `host` for the VM.
    ///
    /// # Errors
    /// If the keeper has no network, the host no descriptors, or the machine no room.
    pub(super) fn build(
        vm: &Vm,
        mem: &Memory,
        mmio64: Option<layout::Window>,
        resources: &mut Resources,
        ending: Arc<Ending>,
    ) -> Result<Self, Error> {
        let mut buses = Buses { ports: Bus::new(), mmio: Bus::new() };
        let serial_drained = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::host("create an eventfd"))?;
        let serial = serial(vm, resources, &serial_drained)?;
        let events: Arc<dyn Events> = ending.clone();
        add_legacy(&mut buses.ports, serial.clone(), &events)?;
        let button_line = vm.irq_line(layout::POWER_BUTTON_GSI).map_err(Error::host("create an eventfd"))?;
        let root = PciRoot::new(windows(mmio64)).map_err(added("the PCI bus"))?;
        let mut slots = Slots { vm, mem, threads: resources.spawner.clone(), virtio: Vec::new(), root };
        slots.fill(resources, &ending)?;
        let Slots { virtio, root, .. } = slots;
        add_pci(&mut buses, Arc::new(root), mmio64, events)?;
        Ok(Self { buses: Arc::new(buses), virtio, serial, serial_drained, power_button: PowerButton::new(button_line) })
    }

    /// Where the guest's accesses go.
    pub(super) fn buses(&self) -> &Arc<Buses> {
        &self.buses
    }

    /// The console's way in.
    pub(super) fn serial(&self) -> &Port {
        &self.serial
    }

    /// Signalled when the guest has taken all input.
    pub(super) fn serial_drained(&self) -> &EventFd {
        &self.serial_drained
    }

    /// Asks the guest to power off.
    pub(super) fn power_button(&self) -> &PowerButton {
        &self.power_button
    }

    /// The counters of every device, by its name and that of the counter; none for a device that is busy, most likely
    /// because it waits for the host while the guest resets it.
    pub(super) fn counters(&self) -> Value {
        let counters = |device: &VirtioPci| {
            let counters = device.counters().into_iter().flatten();
            counters.map(|counter| (counter.name.into_owned(), counter.value.into())).collect::<Map<_, _>>()
        };
        self.virtio.iter().map(|(name, device)| (name.clone(), Value::from(counters(device)))).collect()
    }

    /// Stops the devices' workers and joins them. The vCPUs have been stopped.
    pub(super) fn shutdown(self) {
        for (name, device) in &self.virtio {
            device.shutdown();
            for counter in device.counters().unwrap_or_default() {
                log::debug!("{name} counted {}: {}", counter.name, counter.value);
            }
        }
    }
}

fn serial(vm: &Vm, resources: &Resources, drained: &EventFd) -> Result<Arc<Port>, Error> {
    let line = vm.irq_line(layout::SERIAL_GSI).map_err(Error::host("create an eventfd"))?;
    let drained = drained.try_clone().map_err(Error::host("duplicate an eventfd"))?;
    Ok(Arc::new(Port::new(Serial::new(line, resources.console.output.writer(), drained))))
}

fn add_legacy(ports: &mut Bus, serial: Arc<Port>, events: &Arc<dyn Events>) -> Result<(), Error> {
    let mut add = |name, at: Ports, device: Arc<dyn BusDevice>| {
        ports.insert(at.base.into(), at.count.into(), device).map_err(added(name))
    };
    add("the serial port", layout::SERIAL, serial)?;
    add("the clock", layout::RTC, Arc::new(Rtc::new()))?;
    let pit = Arc::new(Pit::new());
    add("the timer", layout::PIT, pit.clone())?;
    add("the reset line", layout::I8042, Pit::port_b(pit, Arc::new(I8042::new(events.clone()))))?;
    add("the reset register", layout::RESET, Arc::new(ResetRegister::new(events.clone())))?;
    add("the sleep registers", layout::SLEEP, Arc::new(SleepRegisters::new(events.clone())))?;
    add("pvpanic", layout::PVPANIC, Arc::new(Pvpanic::new(events.clone())))?;
    add("the exit port", layout::DEBUG_EXIT, Arc::new(DebugExit::new(events.clone())))
}

// What the guest's tables and code write is what the register knows.
const _: () = assert!(layout::RESET_BY_ACPI == reset::BY_ACPI && layout::RESET_BY_VECTOR == reset::BY_VECTOR);

fn windows(mmio64: Option<layout::Window>) -> Windows {
    let inclusive = |window: layout::Window| window.base..=window.end() - 1;
    Windows {
        mem32: inclusive(layout::PCI_MMIO32),
        // Without room for a window no address is in it.
        mem64: mmio64.map_or(std::ops::RangeInclusive::new(u64::MAX, 0), inclusive),
    }
}

fn add_pci(
    buses: &mut Buses,
    root: Arc<PciRoot>,
    mmio64: Option<layout::Window>,
    events: Arc<dyn Events>,
) -> Result<(), Error> {
    let config = layout::PCI_CONFIG;
    buses
        .ports
        .insert(
            config.base.into(),
            config.count.into(),
            Arc::new(ResetControl::new(PciRoot::config_ports(&root), events)),
        )
        .map_err(added("the PCI configuration ports"))?;
    buses
        .mmio
        .insert(layout::ECAM.base, layout::ECAM.size, PciRoot::ecam(&root))
        .map_err(added("the PCI configuration space"))?;
    for window in [Some(layout::PCI_MMIO32), mmio64].into_iter().flatten() {
        buses
            .mmio
            .insert(window.base, window.size, PciRoot::window(&root, window.base))
            .map_err(added("a PCI window"))?;
    }
    Ok(())
}

/// The PCI bus while it is filled. Cards come first, so that a guest's names for them do not depend on its disks.
struct Slots<'a> {
    vm: &'a Vm,
    mem: &'a Memory,
    threads: Arc<dyn Threads>,
    virtio: Vec<(String, Arc<VirtioPci>)>,
    root: PciRoot,
}

impl Slots<'_> {
    fn fill(&mut self, resources: &mut Resources, ending: &Arc<Ending>) -> Result<(), Error> {
        let budget = resources.budget.clone();
        for (index, (wanted, port)) in resources.cards()?.into_iter().enumerate() {
            let name = format!("net{index}");
            let card = card(&name, wanted, port, self.mem, &budget).map_err(added(&name))?;
            self.add(&name, card)?;
        }
        for (index, disk) in resources.disks.iter().enumerate() {
            let name = format!("blk{index}");
            let file = disk.file.try_clone().map_err(Error::host("duplicate a descriptor"))?;
            let backend = disk::Disk::new(file, disk.spec.access());
            let backend = match disk.spec.block_size {
                Some(size) => backend.and_then(|backend| backend.with_block_size(size)),
                None => backend,
            };
            let backend = backend.map_err(added(&name))?;
            let queues = disk.spec.queues.unwrap_or(QueueCount::for_cpus(resources.cpus));
            let blk = Blk::new(&name, backend, disk.spec.serial).with_queues(queues);
            self.add(&name, Box::new(blk.with_on_error(on_error(resources.on_disk_error, disk, ending))))?;
        }
        let entropy = resources.entropy.try_clone().map_err(Error::host("duplicate a descriptor"))?;
        self.add("rng0", Box::new(Rng::new("rng0", entropy)))
    }

    fn add(&mut self, name: &str, device: Box<dyn Device>) -> Result<(), Error> {
        let vectors = device.queue_max_sizes().len() + 1;
        let slot = self.root.next_slot().map_err(added(name))?;
        let wiring = Wiring {
            vectors: self.vm.msi_vectors(vectors).map_err(added(name))?,
            pin: self.vm.intx_pin(slot.device()),
            doorbells: self.vm.doorbells(),
            threads: self.threads.clone(),
        };
        let device = VirtioPci::new(device, self.mem.clone(), wiring).map_err(added(name))?;
        let bdf = self.root.add(device.clone()).map_err(added(name))?;
        log::debug!("{name} is at {bdf:?}");
        self.virtio.push((name.to_owned(), device));
        Ok(())
    }
}

/// Ends the machine when its disk fails.
struct DiskStop {
    path: PathBuf,
    ending: Arc<Ending>,
}

impl StopMachine for DiskStop {
    fn stop(&self, failure: io::Error) {
        self.ending.report(End::DiskFailed { path: self.path.clone(), source: failure });
    }
}

/// Converts the user's wish into the disk's terms.
fn on_error(wish: OnDiskError, disk: &Disk, ending: &Arc<Ending>) -> OnError {
    match wish {
        OnDiskError::Report => OnError::Report,
        OnDiskError::Pause => OnError::Pause,
        OnDiskError::Stop => OnError::Stop(Arc::new(DiskStop { path: disk.spec.path.clone(), ending: ending.clone() })),
    }
}

/// A card on the queues of `port`, which stay open for the next card after a reboot; on vhost-net if the port has that.
fn card(name: &str, wanted: &Card, port: &net::Port, mem: &Memory, budget: &Budget) -> io::Result<Box<dyn Device>> {
    let tap = |fd: &OwnedFd| Ok(Arc::new(Tap::new(fd.try_clone()?)?) as Arc<dyn FramePort>);
    let taps = port.fds.iter().map(tap).collect::<io::Result<_>>()?;
    let fixed = wanted.spec.address_is_fixed();
    let config = NetConfig {
        name: name.to_owned(),
        mac: port.mac.octets(),
        mtu: port.mtu,
        ring: wanted.spec.card().ring.get(),
        offloads: offloads(port.offload),
        link: wanted.link.clone(),
    };
    if !port.vhost.is_empty() {
        let instances = port.vhost.iter().map(|fd| Instance::new(fd.try_clone()?)).collect::<io::Result<_>>()?;
        let card = Vhost::new(config, taps, instances)?;
        return Ok(Box::new(if fixed { card.with_fixed_address() } else { card }));
    }
    let ports = impairment(&wanted.spec.card().impair).ports(taps, mem, budget)?;
    let watch = |port| match &wanted.capture {
        Some(capture) => Arc::new(ObservedPort::new(port, capture.observer(), capture.snap(), mem.clone())),
        None => port,
    };
    let card = Net::new(config, ports.into_iter().map(watch).collect())?.with_budget(budget.clone());
    let card = if fixed { card.with_fixed_address() } else { card };
    Ok(Box::new(match &port.steering {
        Some(net::Steering { program, map }) => card.with_steering(Steering::new(program.try_clone()?, map)?),
        None => card,
    }))
}

/// Converts the user's impairment of frames into the card's terms.
fn impairment(spec: &ImpairSpec) -> Impairment {
    let rate = |bits| Rate { bytes_per_second: bits / 8, burst_bytes: spec.burst_of(bits) };
    Impairment {
        rate_in: spec.rate.map(|pair| rate(pair.to_guest)),
        rate_out: spec.rate.map(|pair| rate(pair.from_guest)),
        delay: spec.delay.map_or(Duration::ZERO, Delay::get),
        jitter: spec.jitter.map_or(Duration::ZERO, Delay::get),
        loss_ppm: spec.loss.map_or(0, |loss| loss.ppm()),
        seed: spec.seed.map_or(0, |seed| seed.get()),
    }
}

/// Converts the user's offloads into the card's terms.
fn offloads(list: OffloadList) -> Offloads {
    list.iter().fold(Offloads::NONE, |set, offload| {
        set | match offload {
            Offload::Csum => Offloads::CSUM,
            Offload::Tso => Offloads::TSO4 | Offloads::TSO6,
            Offload::Ecn => Offloads::ECN,
            Offload::Ufo => Offloads::UFO,
            Offload::Uso => Offloads::USO4 | Offloads::USO6,
        }
    })
}

/// For `map_err`: `device` cannot be part of the machine.
fn added<E>(device: &str) -> impl FnOnce(E) -> Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    let device = device.to_owned();
    move |source| Error::AddDevice { device, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_offloads_become_what_the_card_calls_them() {
        for (text, set) in [
            ("on", Offloads::ALL),
            ("off", Offloads::NONE),
            ("csum:tso", Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6),
            ("csum:uso", Offloads::CSUM | Offloads::USO4 | Offloads::USO6),
        ] {
            assert_eq!(offloads(text.parse().unwrap()), set, "{text}");
        }
    }
}
