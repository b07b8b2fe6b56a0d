//! `burst CASE ROUNDS`: that many bursts of frames through a card, for a profiler or a counter of instructions to
//! watch.

#[path = "../benches/card/rig.rs"]
mod rig;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [case, rounds] = words.as_slice() else { return usage() };
    let case = rig::CASES.into_iter().find(|known| known.name == case);
    let (Some(case), Ok(rounds)) = (case, rounds.parse::<u32>()) else { return usage() };
    let mut rig = rig::Rig::new(case);
    for _ in 0..rounds {
        rig.burst();
    }
    println!("{}", rounds * u32::from(rig::BURST));
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("burst CASE ROUNDS, with CASE one of {:?}", rig::CASES.map(|case| case.name));
    ExitCode::from(2)
}
