//! The threads that answer DHCP and DNS for cards on networks of ours, one for each card.
//!
//! They run from the moment the process has given up its privileges until it closes its network, also while the guest
//! reboots. One that fails is logged and counted; the VM runs on, and its guest keeps the address that it has.

use super::leases::Leases;
use crate::event;
use net::Port;
use net::services::{Counters, Event, MtuSender, Setup, mtu_channel, run};
use serde_json::{Map, Value};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

/// Who answers for names of the outside.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Stack of a thread in bytes: it holds a few frames, and asks the kernel for links.
const STACK_BYTES: usize = 256 << 10;

/// The services of a VM.
#[derive(Default)]
pub(super) struct ServiceThreads(Vec<Service>);

/// Those of a card.
struct Service {
    card: String,
    stop: EventFd,
    thread: JoinHandle<()>,
    counters: Arc<Counters>,
    mtu: MtuSender,
    /// How often they have failed: once, for ever. Relaxed, since nothing else depends on it.
    failures: Arc<AtomicU64>,
}

impl ServiceThreads {
    /// Starts the services of every port that has some, which tell `leases` what they give.
    ///
    /// # Errors
    /// If the host has no thread or descriptor left; those that have started run on until they are stopped.
    pub(super) fn start(&mut self, ports: &mut [Port], leases: &Arc<Leases>) -> io::Result<()> {
        for (index, port) in ports.iter_mut().enumerate() {
            let Some(services) = port.services.take() else { continue };
            let card = format!("net{index}");
            let (sender, mtu) = mtu_channel()?;
            let (counters, failures) = (Arc::new(Counters::default()), Arc::new(AtomicU64::new(0)));
            let setup = Setup {
                names: Box::new(net::Siblings::of(&services.tap)),
                spec: services.spec,
                socket: services.socket,
                resolv_conf: RESOLV_CONF.into(),
                counters: counters.clone(),
                mtu,
            };
            let stop = EventFd::new(EFD_CLOEXEC)?;
            let (own_stop, own_failures, own_card) = (stop.try_clone()?, failures.clone(), card.clone());
            let leases = leases.clone();
            let thread = thread::Builder::new().name(format!("{card}-services")).stack_size(STACK_BYTES);
            let thread = thread.spawn(move || {
                let mut on_event = |event| {
                    note(&own_card, event);
                    if let Event::LeaseAcked { ip } = event {
                        leases.report(index, ip);
                    }
                };
                if let Err(err) = run(setup, event::fd(&own_stop), &mut on_event) {
                    own_failures.fetch_add(1, Ordering::Relaxed);
                    log::error!("The guest gets no more answers from DHCP and DNS of {own_card}: {err}");
                }
            })?;
            self.0.push(Service { card, stop, thread, counters, mtu: sender, failures });
        }
        Ok(())
    }

    /// Has those of a card, by its place on the command line, tell its guest another MTU.
    pub(super) fn tell_mtu(&self, index: usize, mtu: u16) {
        let card = format!("net{index}");
        if let Some(service) = self.0.iter().find(|service| service.card == card)
            && let Err(err) = service.mtu.send(mtu)
        {
            log::warn!("The guest behind {card} is not told of the MTU {mtu}: {err}");
        }
    }

    /// Adds what they have counted to the counters of their cards.
    pub(super) fn add_counters(&self, devices: &mut Value) {
        for service in &self.0 {
            let Some(card) = devices.get_mut(&service.card).and_then(Value::as_object_mut) else { continue };
            let counters = service.counters.iter().map(|(name, value)| (format!("services.{name}"), value.into()));
            card.extend(counters.collect::<Map<_, _>>());
            card.insert("services.failures".to_owned(), service.failures.load(Ordering::Relaxed).into());
        }
    }

    /// Stops them and waits for their end.
    pub(super) fn stop(self) {
        for service in &self.0 {
            if let Err(err) = service.stop.write(1) {
                log::error!("Cannot stop the services of {}: {err}", service.card);
            }
        }
        for service in self.0 {
            // A thread that panicked has ended the process already.
            let _ = service.thread.join();
        }
    }
}

fn note(card: &str, event: Event) {
    match event {
        Event::LeaseDeclined { ip } => {
            log::warn!("The guest says that another host has the address {ip} of {card}");
        }
        event => log::debug!("{card}: {event:?}"),
    }
}
