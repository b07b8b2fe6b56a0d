//! The programs that a fuzzer starts from.

use super::action::{Action, Kind};
use crate::driver::NEXT;

/// Programs that get everywhere a fuzzer would take long to find.
pub fn seeds() -> Vec<Vec<u8>> {
    const ALL: u64 = u64::MAX;
    let act = |kind, a, b, c, d| Action { kind, a, b, c, d, bytes: &[] };
    let command = |bytes: &'static [u8]| {
        let b = u16::try_from(bytes.len()).expect("short");
        Action { kind: Kind::Command, a: 2, b, c: 0, d: 0, bytes }
    };
    let arrive = |a, b| Action { kind: Kind::Arrive, a, b, c: 0, d: 0, bytes: &[0; 32] };
    let start = act(Kind::Start, 0, 6, 0, ALL);
    let plain = act(Kind::Start, 0b1_1100, 4, 0, 0);
    let desc =
        |address: u32, flags: u16, next: u16| u64::from(address) | u64::from(flags) << 32 | u64::from(next) << 48;
    let programs: Vec<Vec<Action<'_>>> = vec![
        vec![start, act(Kind::Send, 1, 100, 12, 0), act(Kind::Kick, 1, 0, 0, 0), act(Kind::Take, 0, 0, 0, 0)],
        vec![
            start,
            act(Kind::Post, 0, 4, 2000, 0),
            act(Kind::Kick, 0, 0, 0, 0),
            arrive(0, 72),
            arrive(0, 5000),
            act(Kind::Work, 0, 0, 0, 0),
        ],
        vec![
            start,
            command(&[4, 0, 2, 0]),
            act(Kind::Post, 2, 3, 70000, 0),
            arrive(1, 65000),
            act(Kind::Kick, 2, 0, 0, 0),
        ],
        vec![start, command(&[0, 0, 1]), command(&[1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 9, 0, 0, 0, 0]), arrive(0, 90)],
        vec![start, command(&[1, 1, 2, 0, 0, 0, 0, 9]), command(&[2, 0, 5, 0]), command(&[2, 1, 5, 0])],
        vec![start, command(&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]), command(&[4, 0, 0, 0]), command(&[4, 0, 3, 0])],
        vec![plain, act(Kind::Send, 1, 100, 12, 0x0102_0304_0506_0101), act(Kind::Kick, 1, 0, 0, 0)],
        vec![
            start,
            act(Kind::Describe, 1, 0, 64, desc(0, NEXT, 0)),
            act(Kind::Offer, 1, 0, 0, 0),
            act(Kind::Kick, 1, 0, 0, 0),
        ],
        vec![
            start,
            act(Kind::Describe, 1, 0, 64, desc(0x2_7ff0, 0, 0)),
            act(Kind::Offer, 1, 0, 0, 0),
            act(Kind::Kick, 1, 0, 0, 0),
        ],
        vec![start, act(Kind::Jump, 1, 500, 0, 0), act(Kind::Kick, 1, 0, 0, 0), act(Kind::Recover, 0, 0, 0, 0)],
        vec![start, act(Kind::Fail, 0, 1, 3, 0), act(Kind::Send, 1, 100, 12, 0), act(Kind::Kick, 1, 0, 0, 0)],
        vec![
            start,
            act(Kind::Fail, 0, 1, 2, 7),
            act(Kind::Send, 1, 100, 12, 0),
            act(Kind::Kick, 1, 0, 0, 0),
            act(Kind::Reset, 0, 0, 0, 0),
        ],
        vec![
            act(Kind::Register, 0x16, 1, 0, 3),
            act(Kind::Register, 0x20, 7, 0, 0x3_fff0),
            act(Kind::Register, 0x1c, 1, 0, 1),
        ],
        vec![
            start,
            Action {
                kind: Kind::Poke,
                a: 0,
                b: 16,
                c: 0,
                d: 0x2000,
                bytes: &[0, 0x90, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 4, 0, 0, 0],
            },
            act(Kind::Offer, 1, 0, 0, 0),
            act(Kind::Kick, 1, 0, 0, 0),
        ],
        vec![
            start,
            act(Kind::Config, 1, 4, 0, 2),
            act(Kind::Ring, 1, 1, 0, 1),
            act(Kind::Bar, 7, 0, 0x3000, 1),
            act(Kind::Read, 3, 0, 0x14, 0),
        ],
        vec![
            start,
            act(Kind::ResetQueue, 1, 0, 0, 0),
            act(Kind::EnableQueue, 1, 3, 0, 0),
            act(Kind::Send, 1, 100, 12, 0),
            act(Kind::Kick, 1, 0, 0, 0),
        ],
        vec![
            start,
            act(Kind::Post, 0, 4, 20, 0),
            act(Kind::Kick, 0, 0, 0, 0),
            arrive(0, 500),
            act(Kind::Work, 0, 0, 0, 0),
            act(Kind::ResetQueue, 0, 0, 0, 0),
            act(Kind::EnableQueue, 0, 4, 0, 0),
            act(Kind::Post, 0, 4, 2000, 0),
            act(Kind::Kick, 0, 0, 0, 0),
        ],
        vec![start, act(Kind::ResetQueue, 4, 0, 0, 0), act(Kind::EnableQueue, 4, 3, 0, 0), command(&[0, 0, 1])],
        vec![
            start,
            act(Kind::Cable, 3, 0, 10_000, 0),
            act(Kind::Send, 1, 100, 12, 0),
            act(Kind::Kick, 1, 0, 0, 0),
            act(Kind::Cable, 2, 0, 10_000, 0),
            command(&[3, 0]),
        ],
        vec![
            start,
            command(&[6, 0, 64, 0, 0, 0, 0xf4, 1, 0, 0]),
            act(Kind::Send, 1, 100, 12, 0),
            act(Kind::Kick, 1, 0, 0, 0),
        ],
        vec![start, act(Kind::Datagrams, 1, 18, 0x7_0035, 0x0400), act(Kind::Kick, 1, 0, 0, 0)],
        vec![start, act(Kind::Datagrams, 1, 1200, 0x7_0035, 0x0007_0036_0000_0702), act(Kind::Kick, 1, 0, 0, 0)],
        vec![
            start,
            act(Kind::Fail, 0, 1, 1, 7),
            act(Kind::Datagrams, 1, 100, 0x35, 0x0501),
            act(Kind::Kick, 1, 0, 0, 0),
            act(Kind::Work, 0, 0, 0, 0),
        ],
    ];
    let encode = |program: &Vec<Action<'_>>| {
        let mut bytes = Vec::new();
        program.iter().for_each(|action| action.encode(&mut bytes));
        bytes
    };
    programs.iter().map(encode).collect()
}
