//! Leaves the unwind tables out of a release, a tenth of its size. A panic ends a release without unwinding, and the
//! backtrace of a program without symbols says nothing. `CARGO_PROFILE_RELEASE_DEBUG=true` keeps them, for a debugger.

fn main() {
    println!("cargo:rerun-if-changed=no-unwind-tables.ld");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    if is("PROFILE", "release") && is("DEBUG", "false") {
        let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bins=-Wl,-T,{dir}/no-unwind-tables.ld");
    }
}
