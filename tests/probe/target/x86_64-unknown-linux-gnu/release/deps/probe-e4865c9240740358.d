/work/main/tests/probe/target/x86_64-unknown-linux-gnu/release/deps/probe-e4865c9240740358.d: src/main.rs src/entry.rs

/work/main/tests/probe/target/x86_64-unknown-linux-gnu/release/deps/probe-e4865c9240740358: src/main.rs src/entry.rs

src/main.rs:
src/entry.rs:
