//! The interrupt pin of a function whose driver leaves MSI-X off (virtio 1.3 4.1.4.5.1, PCI 3.0 2.2.6 and 6.2.4).
//!
//! A line that stays asserted interrupts again and again, so the checks let interrupts wait and look at those that do.

use super::live::Live;
use super::{DeviceCheck, Subject, messages_for};
use crate::pci::{command, reg};
use crate::report::Check;
use crate::{cpu, interrupts, require, skip};

/// How long an interrupt that must not come is waited for.
const SILENCE_TICKS: u64 = cpu::SECOND_TICKS / 400;
/// The counter of the pins, which no message uses.
const COUNTER: u16 = 60;
/// Interrupt Pin: INTA#.
const INTA: u8 = 1;
/// Interrupt Status, in the status register.
const STATUS_INTERRUPT: u16 = 1 << 3;

/// The checks of this file.
pub(super) const CHECKS: &[(&str, DeviceCheck)] = &[
    ("without MSI-X a used buffer asserts the pin until isr is read", asserted_until_read),
    ("interrupt disable silences the pin and not the status bit", disabled),
    ("the pin is idle after a reset", idle_after_reset),
];

/// Where the function's pin leads, with interrupts from there on.
fn with_pin(s: &Subject, check: impl FnOnce(u8) -> Check) -> Check {
    if !s.terms.strict {
        skip!("the Interrupt Line register is firmware's");
    }
    let (pin, line) = (s.device.function.read8(reg::INTERRUPT_PIN), s.device.function.read8(reg::INTERRUPT_LINE));
    require!(pin == INTA && (16..24).contains(&line), "pin {pin} leads to {line}");
    interrupts::route_pin(line, COUNTER.into());
    let outcome = check(line);
    interrupts::mask_pin(line);
    outcome
}

fn waits() -> bool {
    interrupts::waits(COUNTER.into())
}

fn interrupt_status(s: &Subject) -> bool {
    s.device.function.read16(reg::STATUS) & STATUS_INTERRUPT != 0
}

fn read_isr(s: &Subject) -> u8 {
    cpu::read8(s.device.isr.address)
}

fn asserted_until_read(s: &Subject) -> Check {
    with_pin(s, |_| {
        let mut live = Live::start(&s.device)?;
        for _ in 0..3 {
            let before = messages_for(COUNTER);
            interrupts::held(|| {
                live.round_trip()?;
                require!(cpu::wait(cpu::PATIENCE_TICKS, waits), "no interrupt by the pin");
                require!(interrupt_status(s), "the Interrupt Status bit is clear");
                let isr = read_isr(s);
                require!(isr == 1, "isr is {isr:#x} after a used buffer");
                require!(!interrupt_status(s), "the Interrupt Status bit is set after isr was read");
                Ok(())
            })?;
            let arrived = || messages_for(COUNTER).wrapping_sub(before);
            cpu::wait(cpu::PATIENCE_TICKS, || arrived() > 0);
            cpu::wait(SILENCE_TICKS, || false);
            require!(arrived() == 1, "{} interrupts for one reason", arrived());
        }
        Ok(())
    })
}

fn disabled(s: &Subject) -> Check {
    let f = s.device.function;
    let command = f.read16(reg::COMMAND);
    let outcome = with_pin(s, |_| {
        let mut live = Live::start(&s.device)?;
        interrupts::held(|| {
            f.write16(reg::COMMAND, command | command::INTX_OFF);
            live.round_trip()?;
            require!(cpu::wait(cpu::PATIENCE_TICKS, || interrupt_status(s)), "the Interrupt Status bit is clear");
            require!(!cpu::wait(SILENCE_TICKS, waits), "an interrupt although the pin is disabled");
            f.write16(reg::COMMAND, command & !command::INTX_OFF);
            require!(cpu::wait(cpu::PATIENCE_TICKS, waits), "no interrupt once the pin is enabled");
            read_isr(s);
            Ok(())
        })
    });
    f.write16(reg::COMMAND, command);
    outcome
}

fn idle_after_reset(s: &Subject) -> Check {
    with_pin(s, |_| {
        let before = messages_for(COUNTER);
        interrupts::held(|| {
            Live::start(&s.device)?.round_trip()?;
            require!(cpu::wait(cpu::PATIENCE_TICKS, waits), "no interrupt by the pin");
            s.device.reset()
        })?;
        cpu::wait(SILENCE_TICKS, || false);
        let arrived = messages_for(COUNTER).wrapping_sub(before);
        require!(arrived == 1, "{arrived} interrupts: the line stayed asserted after the reset");
        require!(!interrupt_status(s), "the Interrupt Status bit is set after a reset");
        Ok(())
    })
}
