//! Time of a card's own work for a burst of frames, by criterion: walking the queue, headers, used entries, notifications. The port costs nothing, so this is
//! what is added to the kernel's work.

#![allow(missing_docs, reason = "criterion's macro makes a public function without")]

#[path = "card/rig.rs"]
mod rig;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rig::{BURST, CASES, Rig};

fn bursts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("burst");
    group.throughput(Throughput::Elements(BURST.into()));
    for case in CASES {
        let mut rig = Rig::new(case);
        group.bench_function(case.name, |bencher| bencher.iter(|| rig.burst()));
    }
    group.finish();
}

criterion_group!(benches, bursts);
criterion_main!(benches);
