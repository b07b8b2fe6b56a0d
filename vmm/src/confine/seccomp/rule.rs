//! One line of a list: a system call, which arguments it may have, and why it is there if no test sees it.

use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

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

    /// The condition on the arguments, if there is one.
    pub(super) fn condition(&self) -> Result<Option<SeccompRule>, BackendError> {
        let compare =
            |index, op, value: u32| SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, u64::from(value));
        let conditions = match self.args {
            Args::Any => return Ok(None),
            Args::Is { index, value } => vec![compare(index, SeccompCmpOp::Eq, value)?],
            Args::Bits { index, mask, value } => vec![compare(index, SeccompCmpOp::MaskedEq(mask.into()), value)?],
            Args::Null { index } => {
                vec![SeccompCondition::new(index, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?]
            }
            Args::OwnThread { signal } => {
                vec![
                    compare(0, SeccompCmpOp::Eq, std::process::id())?,
                    compare(2, SeccompCmpOp::Eq, signal.unsigned_abs())?,
                ]
            }
        };
        SeccompRule::new(conditions).map(Some)
    }
}
