//! One line of a list: a system call, which arguments it may have, and why it is there if no test sees it.

/// A system call that a thread may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Its number.
    pub(crate) number: libc::c_long,
    /// The name of its constant, or of an ioctl's.
    pub(crate) name: &'static str,
    /// Its arguments.
    pub(crate) args: Args,
    /// Why it is allowed though the runs of the tests do without: a path that is rarely taken.
    pub(crate) rare: Option<&'static str>,
}

/// The arguments of a call. The kernel looks at 32 bits of those that are meant here, pointers apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Args {
    /// Any: the call is in the kernel's bitmap.
    Any,
    /// Argument `index` is `value`.
    Is {
        /// Its place, from 0.
        index: u8,
        /// The value.
        value: u32,
    },
    /// The bits of `mask` in argument `index` are those of `value`.
    Bits {
        /// Its place, from 0.
        index: u8,
        /// The bits that count.
        mask: u32,
        /// Their values.
        value: u32,
    },
    /// Argument `index` is a null pointer.
    Null {
        /// Its place, from 0.
        index: u8,
    },
    /// The first argument is this process, the third `signal`.
    OwnThread {
        /// The signal.
        signal: i32,
    },
}

impl Rule {
    /// A call with any arguments.
    pub(super) const fn new(number: libc::c_long, name: &'static str) -> Self {
        Self { number, name, args: Args::Any, rare: None }
    }

    /// An ioctl by its number, on any descriptor.
    pub(super) const fn ioctl(request: u32, name: &'static str) -> Self {
        Self { number: libc::SYS_ioctl, name, args: Args::Is { index: 1, value: request }, rare: None }
    }

    /// The same only if argument `index` is `value`.
    pub(super) const fn is(self, index: u8, value: u32) -> Self {
        Self { args: Args::Is { index, value }, ..self }
    }

    /// The same only if argument `index` is a null pointer.
    pub(super) const fn null(self, index: u8) -> Self {
        Self { args: Args::Null { index }, ..self }
    }

    /// The same only if `bits` are not set in argument `index`.
    pub(super) const fn without(self, index: u8, bits: u32) -> Self {
        Self { args: Args::Bits { index, mask: bits, value: 0 }, ..self }
    }

    /// The same only if of the bits of `mask` in argument `index` those of `value` are set.
    pub(super) const fn bits(self, index: u8, mask: u32, value: u32) -> Self {
        Self { args: Args::Bits { index, mask, value }, ..self }
    }

    /// The same only for `signal` to a thread of this process.
    pub(super) const fn to_own_thread(self, signal: i32) -> Self {
        Self { args: Args::OwnThread { signal }, ..self }
    }

    /// The same, needed though the tests do not see it because of `reason`.
    pub(super) const fn rare(self, reason: &'static str) -> Self {
        Self { rare: Some(reason), ..self }
    }

    /// The number as the kernel compares it.
    pub(super) fn number(&self) -> u32 {
        // The largest is below 1000.
        u32::try_from(self.number).unwrap_or(u32::MAX)
    }

    /// The conditions on the arguments, all of which must hold.
    pub(super) fn conditions(&self) -> Vec<Condition> {
        let lower = |index, mask, value| Condition { index, upper: false, mask, value };
        match self.args {
            Args::Any => Vec::new(),
            Args::Is { index, value } => vec![lower(index, u32::MAX, value)],
            Args::Bits { index, mask, value } => vec![lower(index, mask, value)],
            Args::Null { index } => {
                vec![lower(index, u32::MAX, 0), Condition { index, upper: true, mask: u32::MAX, value: 0 }]
            }
            Args::OwnThread { signal } => {
                vec![lower(0, u32::MAX, std::process::id()), lower(2, u32::MAX, signal.unsigned_abs())]
            }
        }
    }
}

/// That a half of an argument has a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// The argument's place, from 0.
    pub(super) index: u8,
    /// It is the upper half.
    pub(super) upper: bool,
    /// The bits that count.
    pub(super) mask: u32,
    /// Their values.
    pub(super) value: u32,
}
