//! Time of a card's own work, by criterion.
//!
//! - `burst`: a burst of frames: walking the queue, headers, used entries, notifications. The port costs nothing, so
//!   this is what is added to the kernel's work.
//! - `toeplitz`: a key made ready, as when the driver sets one, and the hash of a flow, once for each frame where
//!   queues steer or hashes are reported.

#![allow(missing_docs, reason = "criterion's macro makes a public function without")]

#[path = "card/rig.rs"]
mod rig;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use devices::virtio::net::Toeplitz;
use rig::{BURST, CASES, Rig};
use std::hint::black_box;

fn bursts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("burst");
    group.throughput(Throughput::Elements(BURST.into()));
    for case in CASES {
        let mut rig = Rig::new(case);
        group.bench_function(case.name, |bencher| bencher.iter(|| rig.burst()));
    }
    group.finish();
}

/// Inputs by the flows that have them: two addresses, and two ports where there are some.
const INPUTS: [(&str, usize); 4] = [("ipv4", 8), ("ipv4-ports", 12), ("ipv6", 32), ("ipv6-ports", 36)];

fn toeplitz(criterion: &mut Criterion) {
    let key: [u8; 40] = std::array::from_fn(|at| u8::try_from(at * 37 % 251).unwrap_or_default());
    let input: [u8; 36] = std::array::from_fn(|at| u8::try_from(at * 101 % 241).unwrap_or_default());
    let hash = Toeplitz::new(&key);
    let mut group = criterion.benchmark_group("toeplitz");
    group.bench_function("key", |bencher| bencher.iter(|| Toeplitz::new(black_box(&key))));
    for (name, len) in INPUTS {
        let input = input.get(..len).unwrap_or_default();
        group.bench_function(name, |bencher| bencher.iter(|| hash.hash(black_box(input))));
    }
    group.finish();
}

criterion_group!(benches, bursts, toeplitz);
criterion_main!(benches);
