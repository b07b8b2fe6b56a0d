//! virtio-blk (virtio 1.3 5.2): requests and their refusals. Writes keep to the last sector and put its contents back.

use super::{DeviceCheck, Subject};
use crate::report::Check;
use crate::virtio::Device;
use crate::virtio::ring::{Ring, flag};
use crate::{arena, cpu, fail, line, require, skip};

const SECTOR: u32 = 512;
const F_RO: u64 = 1 << 5;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_CONFIG_WCE: u64 = 1 << 11;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Fields of the configuration space (5.2.4).
const BLK_SIZE: u64 = 20;
const PHYSICAL_BLOCK_EXP: u64 = 24;
const MIN_IO_SIZE: u64 = 26;
const WRITEBACK: u64 = 32;
const NUM_QUEUES: u64 = 34;
/// Queues of a disk that are tried, at most.
const QUEUES_MAX: usize = 8;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// The status byte before the device writes it.
const UNTOUCHED: u8 = 0xee;

/// The checks of this file.
pub(super) const CHECKS: &[(&str, DeviceCheck)] = &[
    ("capacity is not zero and is read-only", capacity_stays),
    ("a sector reads", sector_reads),
    ("a sector written reads back", sector_writes),
    ("one request spans several buffers", several_buffers),
    ("flush succeeds", flush),
    ("get id returns the serial", get_id),
    ("sectors past the end fail", past_the_end),
    ("unknown request types are unsupported", unknown_type),
    ("a read-only disk refuses writes", read_only_refuses),
    ("write zeroes clears a sector", write_zeroes),
    ("discard succeeds", discard),
    ("a physical block is whole logical ones", topology),
    ("the cache mode switches and writes reach the disk in both", cache_mode),
    ("without flush the cache begins as write-through", cache_without_flush),
    ("every queue serves requests", every_queue),
];

/// A started disk.
struct Disk {
    ring: Ring,
    features: u64,
    header: u64,
    status: u64,
}

impl Disk {
    fn start(device: &Device) -> Check<Self> {
        Self::start_with(device, F_RO | F_FLUSH | F_DISCARD | F_WRITE_ZEROES)
    }

    fn start_with(device: &Device, wanted: u64) -> Check<Self> {
        let features = device.negotiate(wanted)?;
        let disk = Self::enable(device, 0, features)?;
        device.go_live()?;
        Ok(disk)
    }

    /// Requests in queue `queue` of a disk that is not live yet.
    fn enable(device: &Device, queue: u16, features: u64) -> Check<Self> {
        let ring = device.enable_queue(queue, 64)?;
        Ok(Self { ring, features, header: arena::take(16, 16), status: arena::take(1, 1) })
    }

    /// Sends one request; returns its status byte and the used length.
    fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> Check<(u8, u32)> {
        cpu::write32(self.header, kind);
        cpu::write64(self.header + 8, sector);
        cpu::write8(self.status, UNTOUCHED);
        let mut buffers = [(0, 0, 0); 10];
        let Some(chain) = buffers.get_mut(..data.len() + 2) else { fail!("{} data buffers", data.len()) };
        chain[0] = (self.header, 16, 0);
        chain[1..=data.len()].copy_from_slice(data);
        chain[data.len() + 1] = (self.status, 1, flag::WRITE);
        self.ring.chain(chain);
        self.ring.publish(0);
        self.ring.kick();
        let Some(used) = self.ring.wait_used(cpu::PATIENCE_TICKS) else { fail!("type {kind} is not returned") };
        let status = cpu::read8(self.status);
        require!(status != UNTOUCHED, "type {kind}: status byte was not written");
        Ok((status, used.len))
    }

    fn expect(&mut self, wanted: u8, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> Check {
        let (status, _) = self.request(kind, sector, data)?;
        require!(status == wanted, "type {kind} at sector {sector:#x}: status {status}, expected {wanted}");
        Ok(())
    }

    fn need(&self, feature: u64, name: &str) -> Check {
        if self.features & feature == 0 {
            skip!("{name} is not offered");
        }
        Ok(())
    }

    fn need_writable(&self) -> Check {
        if self.features & F_RO != 0 {
            skip!("the disk is read-only");
        }
        Ok(())
    }
}

fn capacity(device: &Device) -> u64 {
    u64::from(cpu::read32(device.config.address)) | u64::from(cpu::read32(device.config.address + 4)) << 32
}

fn capacity_stays(s: &Subject) -> Check {
    let sectors = capacity(&s.device);
    require!(sectors > 0, "capacity is 0");
    cpu::write32(s.device.config.address, 0x1234);
    require!(capacity(&s.device) == sectors, "capacity became {:#x}", capacity(&s.device));
    Ok(())
}

fn sector_reads(s: &Subject) -> Check {
    let mut disk = Disk::start(&s.device)?;
    let buffer = arena::take(SECTOR.into(), 512);
    let (status, len) = disk.request(IN, 0, &[(buffer, SECTOR, flag::WRITE)])?;
    require!(status == OK, "status {status}");
    require!(len == SECTOR + 1, "used length {len}");
    disk.expect(OK, IN, capacity(&s.device) - 1, &[(buffer, SECTOR, flag::WRITE)])
}

/// Runs `f` between saving and restoring the last sector.
fn with_last_sector(s: &Subject, f: impl FnOnce(&mut Disk, u64) -> Check) -> Check {
    let mut disk = Disk::start(&s.device)?;
    disk.need_writable()?;
    let last = capacity(&s.device) - 1;
    let saved = arena::take(SECTOR.into(), 512);
    disk.expect(OK, IN, last, &[(saved, SECTOR, flag::WRITE)])?;
    let outcome = f(&mut disk, last);
    disk.expect(OK, OUT, last, &[(saved, SECTOR, 0)])?;
    outcome
}

fn pattern(at: u64, seed: u8) {
    for i in 0..u64::from(SECTOR) {
        cpu::write8(at + i, seed.wrapping_add(i.to_le_bytes()[0]).rotate_left(3));
    }
}

fn same(left: u64, right: u64) -> bool {
    (0..u64::from(SECTOR)).all(|i| cpu::read8(left + i) == cpu::read8(right + i))
}

fn sector_writes(s: &Subject) -> Check {
    with_last_sector(s, |disk, last| {
        let (out, back) = (arena::take(SECTOR.into(), 512), arena::take(SECTOR.into(), 512));
        for seed in [1, 77] {
            pattern(out, seed);
            disk.expect(OK, OUT, last, &[(out, SECTOR, 0)])?;
            disk.expect(OK, IN, last, &[(back, SECTOR, flag::WRITE)])?;
            require!(same(out, back), "contents differ");
        }
        Ok(())
    })
}

fn several_buffers(s: &Subject) -> Check {
    with_last_sector(s, |disk, last| {
        let (out, back) = (arena::take(SECTOR.into(), 512), arena::take(SECTOR.into(), 512));
        pattern(out, 9);
        disk.expect(OK, OUT, last, &[(out, 1, 0), (out + 1, 255, 0), (out + 256, 256, 0)])?;
        disk.expect(
            OK,
            IN,
            last,
            &[(back, 256, flag::WRITE), (back + 256, 3, flag::WRITE), (back + 259, 253, flag::WRITE)],
        )?;
        require!(same(out, back), "contents differ");
        Ok(())
    })
}

fn flush(s: &Subject) -> Check {
    let mut disk = Disk::start(&s.device)?;
    disk.need(F_FLUSH, "flush")?;
    disk.expect(OK, FLUSH, 0, &[])
}

fn get_id(s: &Subject) -> Check {
    let mut disk = Disk::start(&s.device)?;
    let buffer = arena::take(20, 16);
    disk.expect(OK, GET_ID, 0, &[(buffer, 20, flag::WRITE)])?;
    let mut bytes = [0; 20];
    for (at, byte) in (buffer..).zip(bytes.iter_mut()) {
        *byte = cpu::read8(at);
    }
    let len = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    require!(bytes[..len].iter().all(u8::is_ascii_graphic), "serial is not text: {bytes:x?}");
    line!("# {s} has serial '{}'", core::str::from_utf8(&bytes[..len]).unwrap_or_default());
    Ok(())
}

fn past_the_end(s: &Subject) -> Check {
    let mut disk = Disk::start(&s.device)?;
    let sectors = capacity(&s.device);
    let buffer = arena::take(2 * u64::from(SECTOR), 512);
    for sector in [sectors, sectors + 1, 1 << 40, u64::MAX / 512, u64::MAX] {
        disk.expect(IO_ERROR, IN, sector, &[(buffer, SECTOR, flag::WRITE)])?;
        disk.expect(IO_ERROR, OUT, sector, &[(buffer, SECTOR, 0)])?;
    }
    disk.expect(IO_ERROR, IN, sectors - 1, &[(buffer, 2 * SECTOR, flag::WRITE)])?;
    disk.expect(OK, IN, sectors - 1, &[(buffer, SECTOR, flag::WRITE)])
}

fn unknown_type(s: &Subject) -> Check {
    let mut disk = Disk::start(&s.device)?;
    let buffer = arena::take(SECTOR.into(), 512);
    for kind in [0x55, 0x7fff_ffff] {
        disk.expect(UNSUPPORTED, kind, 0, &[(buffer, SECTOR, flag::WRITE)])?;
    }
    disk.expect(OK, IN, 0, &[(buffer, SECTOR, flag::WRITE)])
}

fn read_only_refuses(s: &Subject) -> Check {
    let mut disk = Disk::start(&s.device)?;
    if disk.features & F_RO == 0 {
        skip!("the disk is writable");
    }
    let (out, back) = (arena::take(SECTOR.into(), 512), arena::take(SECTOR.into(), 512));
    disk.expect(OK, IN, 0, &[(out, SECTOR, flag::WRITE)])?;
    cpu::write8(out, !cpu::read8(out));
    disk.expect(IO_ERROR, OUT, 0, &[(out, SECTOR, 0)])?;
    disk.expect(OK, IN, 0, &[(back, SECTOR, flag::WRITE)])?;
    require!(cpu::read8(back) != cpu::read8(out), "the write went through");
    Ok(())
}

/// One segment of a discard or write-zeroes request (5.2.6).
fn segment(sector: u64, sectors: u32) -> (u64, u32, u16) {
    let at = arena::take(16, 16);
    cpu::write64(at, sector);
    cpu::write32(at + 8, sectors);
    (at, 16, 0)
}

fn write_zeroes(s: &Subject) -> Check {
    with_last_sector(s, |disk, last| {
        disk.need(F_WRITE_ZEROES, "write zeroes")?;
        let (out, back) = (arena::take(SECTOR.into(), 512), arena::take(SECTOR.into(), 512));
        pattern(out, 5);
        disk.expect(OK, OUT, last, &[(out, SECTOR, 0)])?;
        disk.expect(OK, WRITE_ZEROES, 0, &[segment(last, 1)])?;
        disk.expect(OK, IN, last, &[(back, SECTOR, flag::WRITE)])?;
        require!((0..u64::from(SECTOR)).all(|i| cpu::read8(back + i) == 0), "the sector is not zero");
        disk.expect(IO_ERROR, WRITE_ZEROES, 0, &[segment(last + 1, 1)])
    })
}

fn discard(s: &Subject) -> Check {
    with_last_sector(s, |disk, last| {
        disk.need(F_DISCARD, "discard")?;
        disk.expect(OK, DISCARD, 0, &[segment(last, 1)])?;
        disk.expect(IO_ERROR, DISCARD, 0, &[segment(last, 2)])
    })
}

fn topology(s: &Subject) -> Check {
    let config = s.device.config.address;
    Disk::start_with(&s.device, F_TOPOLOGY)?.need(F_TOPOLOGY, "topology")?;
    let (block, exp) = (cpu::read32(config + BLK_SIZE), cpu::read8(config + PHYSICAL_BLOCK_EXP));
    let min_io = cpu::read16(config + MIN_IO_SIZE);
    line!("# {s} has blocks of {block} bytes, physical ones of {}", u64::from(block) << exp.min(32));
    require!(exp <= 11, "a physical block is 2^{exp} logical ones");
    require!(!s.terms.strict || u32::from(min_io) >= 1 << exp, "{min_io} blocks are enough, of 2^{exp} at once");
    Ok(())
}

fn cache_mode(s: &Subject) -> Check {
    let writeback = s.device.config.address + WRITEBACK;
    let mut disk = Disk::start_with(&s.device, F_RO | F_FLUSH | F_CONFIG_WCE)?;
    disk.need(F_CONFIG_WCE, "switching the cache mode")?;
    disk.need_writable()?;
    let last = capacity(&s.device) - 1;
    let (saved, back) = (arena::take(SECTOR.into(), 512), arena::take(SECTOR.into(), 512));
    disk.expect(OK, IN, last, &[(saved, SECTOR, flag::WRITE)])?;
    for (value, mode) in [(0, 0), (1, 1), (0, 0)] {
        cpu::write8(writeback, value);
        let read = cpu::read8(writeback);
        require!(read == mode, "wrote {value}, read {read}");
        disk.expect(OK, OUT, last, &[(saved, SECTOR, 0)])?;
        disk.expect(OK, FLUSH, 0, &[])?;
        disk.expect(OK, IN, last, &[(back, SECTOR, flag::WRITE)])?;
        require!(same(saved, back), "contents differ in mode {mode}");
    }
    if s.terms.strict {
        cpu::write8(writeback, 2);
        cpu::write16(writeback, 1);
        require!(cpu::read8(writeback) == 0, "2 and 16 bits made it {}", cpu::read8(writeback));
        s.device.negotiate(F_FLUSH)?;
        cpu::write8(writeback, 0);
        require!(cpu::read8(writeback) == 1, "it switches without the feature");
    }
    Ok(())
}

fn cache_without_flush(s: &Subject) -> Check {
    let features = s.device.negotiate(F_CONFIG_WCE)?;
    if features & F_CONFIG_WCE == 0 {
        skip!("switching the cache mode is not offered");
    }
    let mode = cpu::read8(s.device.config.address + WRITEBACK);
    // QEMU 7.2 leaves it at 1, against virtio 1.3 5.2.5.2.
    require!(mode == 0 || !s.terms.strict, "writeback is {mode}");
    Ok(())
}

fn every_queue(s: &Subject) -> Check {
    let features = s.device.negotiate(F_FLUSH | F_MQ)?;
    if features & F_MQ == 0 {
        skip!("the disk has one queue");
    }
    let count = cpu::read16(s.device.config.address + NUM_QUEUES);
    require!((2..=s.device.get16(crate::virtio::common::NUM_QUEUES)).contains(&count), "{count} queues");
    let mut disks = [const { None }; QUEUES_MAX];
    for (queue, slot) in (0..count).zip(&mut disks) {
        *slot = Some(Disk::enable(&s.device, queue, features)?);
    }
    s.device.go_live()?;
    let buffer = arena::take(SECTOR.into(), 512);
    for disk in disks.iter_mut().flatten() {
        disk.expect(OK, IN, 0, &[(buffer, SECTOR, flag::WRITE)])?;
        disk.expect(OK, FLUSH, 0, &[])?;
    }
    line!("# {s} serves {count} queues");
    Ok(())
}
