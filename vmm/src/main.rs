//! minivmm.
fn main() {}
