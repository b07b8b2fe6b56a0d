//! The status machine (virtio 1.3 2.1, 3.1.1) and reset from every state (2.4, 4.1.4.3.1).

use super::live::Live;
use super::{DeviceCheck, Subject};
use crate::report::Check;
use crate::virtio::{Device, FEATURES_SET, LIVE, NO_VECTOR, common, feature, status};
use crate::{cpu, require, skip};

/// Resets in one burst. Enough to meet a worker at every point of its start and stop.
const BURST: usize = 100;

/// The checks of this file.
pub(super) const CHECKS: &[(&str, DeviceCheck)] = &[
    ("negotiation in order works", in_order),
    ("features that were not offered are refused", unoffered_features),
    ("features without VERSION_1 are refused", without_version_1),
    ("DRIVER_OK without FEATURES_OK does not go live", driver_ok_too_early),
    ("status bits cannot be taken back without reset", bits_stay),
    ("features are frozen after FEATURES_OK", features_frozen),
    ("FAILED sticks until reset", failed_sticks),
    ("reset works in every state", reset_in_every_state),
    ("reset restores every register", reset_restores),
    ("reset with a live queue and requests in flight", reset_in_flight),
    ("100 resets in a burst, live each time", reset_burst),
    ("isr is 0 after reset and reading clears it", isr),
];

fn in_order(s: &Subject) -> Check {
    Live::start(&s.device)?.round_trip()
}

fn unoffered_features(s: &Subject) -> Check {
    if !s.terms.strict {
        skip!("devices may ignore the extra bits");
    }
    let d = &s.device;
    let extra = !d.offered() & 0x003f_ffff_ffff_ffff;
    require!(extra != 0, "every feature is offered");
    let one = extra & extra.wrapping_neg();
    for features in [feature::VERSION_1 | one, feature::VERSION_1 | extra, u64::MAX] {
        d.reset()?;
        d.set_status(status::ACKNOWLEDGE);
        d.set_status(status::ACKNOWLEDGE | status::DRIVER);
        d.accept(features);
        d.set_status(FEATURES_SET);
        require!(d.status() & status::FEATURES_OK == 0, "{features:#x} accepted, status {:#x}", d.status());
        d.accept(feature::VERSION_1);
        d.set_status(FEATURES_SET);
        require!(d.status() == FEATURES_SET, "no second try, status {:#x}", d.status());
    }
    Ok(())
}

fn without_version_1(s: &Subject) -> Check {
    if !s.terms.strict {
        skip!("devices may have a legacy mode");
    }
    let d = &s.device;
    d.set_status(status::ACKNOWLEDGE);
    d.set_status(status::ACKNOWLEDGE | status::DRIVER);
    d.accept(0);
    d.set_status(FEATURES_SET);
    require!(d.status() & status::FEATURES_OK == 0, "accepted, status {:#x}", d.status());
    Ok(())
}

fn driver_ok_too_early(s: &Subject) -> Check {
    if !s.terms.strict {
        skip!("the specification binds only the driver");
    }
    let d = &s.device;
    for steps in [
        &[status::DRIVER_OK][..],
        &[status::ACKNOWLEDGE, status::ACKNOWLEDGE | status::DRIVER_OK],
        &[status::ACKNOWLEDGE, 3, 3 | status::DRIVER_OK],
    ] {
        d.reset()?;
        for &step in steps {
            d.set_status(step);
        }
        require!(d.status() & status::DRIVER_OK == 0, "after {steps:x?}: status {:#x}", d.status());
    }
    Ok(())
}

fn bits_stay(s: &Subject) -> Check {
    if !s.terms.strict {
        skip!("the specification binds only the driver");
    }
    let d = &s.device;
    Live::start(d)?;
    for lower in [status::ACKNOWLEDGE, 3, FEATURES_SET, status::DRIVER_OK] {
        d.set_status(lower);
        require!(d.status() & LIVE == LIVE, "{lower:#x} took bits back: {:#x}", d.status());
    }
    Ok(())
}

fn features_frozen(s: &Subject) -> Check {
    if !s.terms.strict {
        skip!("the specification binds only the driver");
    }
    let d = &s.device;
    let accepted = d.negotiate(0)?;
    d.accept(0);
    d.set32(common::DRIVER_FEATURE_SELECT, 1);
    let word = u64::from(d.get32(common::DRIVER_FEATURE)) << 32;
    require!(word == accepted, "word 1 became {:#x}", word >> 32);
    Ok(())
}

fn failed_sticks(s: &Subject) -> Check {
    let d = &s.device;
    Live::start(d)?;
    d.set_status(LIVE | status::FAILED);
    require!(d.status() & status::FAILED != 0, "status {:#x}", d.status());
    d.reset()?;
    Live::start(d)?.round_trip()
}

fn reset_in_every_state(s: &Subject) -> Check {
    let d = &s.device;
    let states: [fn(&Device) -> Check; 6] = [
        |_| Ok(()),
        |d| {
            d.set_status(status::ACKNOWLEDGE);
            Ok(())
        },
        |d| {
            d.set_status(status::ACKNOWLEDGE);
            d.set_status(status::ACKNOWLEDGE | status::DRIVER);
            Ok(())
        },
        |d| d.negotiate(0).map(|_| ()),
        |d| {
            d.negotiate(0)?;
            d.enable_queue(0, 8).map(|_| ())
        },
        |d| Live::start(d).map(|_| ()),
    ];
    for enter in states {
        enter(d)?;
        d.reset()?;
        d.reset()?;
        Live::start(d)?.round_trip()?;
        d.reset()?;
    }
    Ok(())
}

/// Everything a reset has to bring back, as read.
fn registers(d: &Device) -> [u64; 11] {
    d.set16(common::QUEUE_SELECT, 0);
    d.set32(common::DRIVER_FEATURE_SELECT, 1);
    [
        d.offered(),
        d.get32(common::DRIVER_FEATURE).into(),
        d.get16(common::CONFIG_MSIX_VECTOR).into(),
        d.get16(common::NUM_QUEUES).into(),
        d.status().into(),
        d.get16(common::QUEUE_SIZE).into(),
        d.get16(common::QUEUE_MSIX_VECTOR).into(),
        d.get16(common::QUEUE_ENABLE).into(),
        d.get64(common::QUEUE_DESC),
        d.get64(common::QUEUE_DRIVER),
        d.get64(common::QUEUE_DEVICE),
    ]
}

fn reset_restores(s: &Subject) -> Check {
    let d = &s.device;
    let fresh = registers(d);
    require!(fresh[2] == u64::from(NO_VECTOR), "config vector {:#x} after reset", fresh[2]);
    Live::start_with(d, 0, |d| {
        d.set16(common::CONFIG_MSIX_VECTOR, 0);
        d.set_queue_vector(0, 0);
        Ok(())
    })?
    .round_trip()?;
    d.reset()?;
    for select in [common::QUEUE_SELECT, common::DEVICE_FEATURE_SELECT] {
        let value = d.get16(select);
        require!(!s.terms.strict || value == 0, "select at {select:#x} is {value:#x}");
    }
    let after = registers(d);
    require!(after == fresh, "{fresh:x?} became {after:x?}");
    Ok(())
}

fn reset_in_flight(s: &Subject) -> Check {
    for delay in (0..20u64).step_by(2) {
        let mut live = Live::start(&s.device)?;
        for _ in 0..8 {
            live.request();
        }
        cpu::wait(delay * delay * 1000, || false);
        s.device.reset()?;
        let used = cpu::read16(live.ring.used + 2);
        cpu::wait(cpu::SECOND_TICKS / 4000, || false);
        let later = cpu::read16(live.ring.used + 2);
        require!(used == later, "the device wrote after its reset: used index {used} became {later}");
    }
    Live::start(&s.device)?.round_trip()
}

fn reset_burst(s: &Subject) -> Check {
    let d = &s.device;
    let Live { ring, receive } = Live::start(d)?;
    for round in 0..BURST {
        // Nothing but the writes it takes, so that the worker is met while it starts.
        d.set_status(0);
        d.set_status(3);
        d.set32(common::DRIVER_FEATURE_SELECT, 1);
        d.set32(common::DRIVER_FEATURE, 1);
        d.set_status(FEATURES_SET);
        receive.iter().chain([&ring]).for_each(|ring| d.enable_ring(ring));
        d.set_status(LIVE);
        require!(d.status() == LIVE, "round {round}: status {:#x}", d.status());
    }
    d.reset()?;
    for _ in 0..BURST {
        s.device.set_status(0);
    }
    s.device.reset()?;
    crate::arena::reset();
    Live::start(&s.device)?.round_trip()
}

fn isr(s: &Subject) -> Check {
    let d = &s.device;
    // Without MSI-X the bits are set with every notification, whether or not a pin is wired (4.1.4.5).
    if let Some(msix) = d.msix {
        msix.control(crate::virtio::msix::Control::Off);
    }
    cpu::read8(d.isr.address);
    require!(cpu::read8(d.isr.address) == 0, "isr is {:#x} after reset", cpu::read8(d.isr.address));
    let mut live = Live::start(d)?;
    live.round_trip()?;
    let mut seen = 0;
    cpu::wait(cpu::PATIENCE_TICKS, || {
        seen = cpu::read8(d.isr.address);
        seen != 0
    });
    require!(seen & 1 == 1, "isr is {seen:#x} after a used buffer");
    let again = cpu::read8(d.isr.address);
    require!(again == 0, "isr is {again:#x} after reading it");
    live.round_trip()?;
    d.reset()?;
    require!(cpu::read8(d.isr.address) == 0, "isr survives reset");
    Ok(())
}
