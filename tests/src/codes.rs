//! minivmm's exit codes, as its `--help` has them.

/// The guest powered off, or reset itself where that is as good.
pub const POWERED_OFF: i32 = 0;
/// Usage error.
pub const USAGE: i32 = 64;
/// The host cannot do what was asked.
pub const HOST: i32 = 71;
/// The guest reset itself.
pub const RESET: i32 = 96;
/// A card had no address in time.
pub const NO_ADDRESS: i32 = 97;
/// The guest's kernel panicked.
pub const PANICKED: i32 = 99;
/// The guest did not power off in time.
pub const STOP_TIMEOUT: i32 = 124;
/// Stopped at once by a second SIGTERM.
pub const KILLED_BY_SIGTERM: i32 = 128 + 15;
