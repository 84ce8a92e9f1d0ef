//! What can go wrong on a device, one sentence each.

use std::fmt;

/// A failure of a device, a buffer or a dispatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// No device matches a selector.
    NoSuchDevice {
        /// What was asked for.
        selector: String,
        /// What there is, one line a device.
        choices: Vec<String>,
    },
    /// Several devices match a selector.
    AmbiguousDevice {
        /// What was asked for.
        selector: String,
        /// The devices that match.
        choices: Vec<String>,
    },
    /// The driver refused to open an adapter.
    Open {
        /// Name of the adapter.
        name: String,
        /// What the driver said.
        message: String,
    },
    /// A buffer of no words.
    EmptyBuffer {
        /// Label of the buffer.
        label: String,
    },
    /// A buffer above the device's limit.
    BufferTooLarge {
        /// Label of the buffer.
        label: String,
        /// Its size.
        bytes: u64,
        /// Largest buffer of the device.
        limit: u64,
    },
    /// The device has no memory left.
    OutOfMemory {
        /// Label of the buffer.
        label: String,
        /// Its size.
        bytes: u64,
        /// Bytes in use by the other buffers.
        in_use: u64,
    },
    /// An allocation after [`crate::Device::seal`].
    Sealed {
        /// Label of the buffer.
        label: String,
        /// Its size.
        bytes: u64,
    },
    /// Data of another length than the slice it goes to.
    Length {
        /// Label of the buffer.
        label: String,
        /// Words of the slice.
        expected: u64,
        /// Words of the data.
        found: u64,
    },
    /// A slice of a buffer of another device.
    ForeignBuffer {
        /// What it was used for: an op's name, `read` or `write`.
        user: String,
        /// Label of the buffer.
        label: String,
    },
    /// A dispatch with the wrong number of bindings.
    BindingCount {
        /// Name of the op.
        op: &'static str,
        /// Bindings that the op declares.
        expected: usize,
        /// Bindings of the dispatch.
        found: usize,
    },
    /// More storage bindings than the device has.
    TooManyBindings {
        /// Name of the op.
        op: &'static str,
        /// Bindings of the op.
        count: usize,
        /// Most bindings of the device.
        limit: u32,
    },
    /// A binding above the device's limit.
    BindingTooLarge {
        /// Name of the op.
        op: &'static str,
        /// Name of the binding.
        binding: &'static str,
        /// Its size.
        bytes: u64,
        /// Largest binding of the device.
        limit: u64,
    },
    /// A buffer that is bound `read_write` and bound again in the same dispatch.
    BindingOverlap {
        /// Name of the op.
        op: &'static str,
        /// The binding that is written.
        written: &'static str,
        /// The other binding of that buffer.
        other: &'static str,
        /// Label of the buffer.
        label: String,
    },
    /// A variant whose answer is not the reference's.
    WrongAnswer {
        /// Name of the op.
        op: &'static str,
        /// Name of the variant.
        variant: &'static str,
        /// What differs.
        message: String,
    },
    /// More workgroups in a dimension than the device runs.
    GridTooLarge {
        /// Name of the op.
        op: &'static str,
        /// Workgroups in each dimension.
        grid: [u32; 3],
        /// Most workgroups in a dimension.
        limit: u32,
    },
    /// No variant of the op runs on the device.
    NoVariant {
        /// Name of the op.
        op: &'static str,
    },
    /// A self-test found that the driver makes every variant of the op wrong.
    AllWrong {
        /// Name of the op.
        op: &'static str,
    },
    /// A shader that does not assemble, or that the driver refuses.
    Shader {
        /// Name of the op.
        op: &'static str,
        /// Name of the variant.
        variant: &'static str,
        /// What is wrong, with file and line where known.
        message: String,
    },
    /// A dispatch that failed in checked mode.
    Dispatch {
        /// Name of the op.
        op: &'static str,
        /// Name of the variant.
        variant: &'static str,
        /// What is wrong.
        message: String,
    },
    /// The device was lost; everything on it is gone.
    Lost {
        /// What the driver said.
        message: String,
    },
    /// What was submitted did not end, and the device is given up.
    Hang {
        /// How long it was waited for.
        seconds: u64,
    },
    /// Weights that a dispatch needs did not come.
    Weights {
        /// Which, why and what helps: a sentence.
        message: String,
    },
    /// Any other error that the driver reported.
    Driver {
        /// What it said.
        message: String,
    },
}

/// An error of the driver that is none of the others.
pub(crate) fn driver(error: &impl ToString) -> Error {
    Error::Driver { message: one_line(&error.to_string()) }
}

/// A driver's message on one line: errors are one sentence.
pub(crate) fn one_line(message: &str) -> String {
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.take(6).collect::<Vec<_>>().join(": ")
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchDevice { selector, choices } => write!(
                f,
                "no device matches '{selector}': choose auto or one of {}",
                choices.join("; ")
            ),
            Self::AmbiguousDevice { selector, choices } => write!(
                f,
                "'{selector}' matches several devices: choose by index one of {}",
                choices.join("; ")
            ),
            Self::Open { name, message } => {
                write!(f, "opening '{name}' failed ({message}): update its driver or use cpu")
            }
            Self::EmptyBuffer { label } => write!(f, "buffer '{label}' would hold no words"),
            Self::BufferTooLarge { label, bytes, limit } => write!(
                f,
                "buffer '{label}' needs {bytes} bytes but the device's largest buffer is {limit}: \
                 use smaller batches or shorter sequences"
            ),
            Self::OutOfMemory { label, bytes, in_use } => write!(
                f,
                "no device memory for buffer '{label}' of {bytes} bytes with {in_use} in use: \
                 lower the memory budget or the batch"
            ),
            Self::Sealed { label, bytes } => write!(
                f,
                "buffer '{label}' of {bytes} bytes is not in the plan: allocation ended when the \
                 run started"
            ),
            Self::Length { label, expected, found } => {
                write!(f, "buffer '{label}' takes {expected} words here but was given {found}")
            }
            Self::ForeignBuffer { user, label } => {
                write!(f, "{user}: buffer '{label}' belongs to another device")
            }
            Self::BindingCount { op, expected, found } => {
                write!(f, "{op} has {expected} bindings but was given {found} buffers")
            }
            Self::TooManyBindings { op, count, limit } => {
                write!(f, "{op} binds {count} buffers but the device allows {limit}")
            }
            Self::BindingTooLarge { op, binding, bytes, limit } => write!(
                f,
                "{op}: binding '{binding}' of {bytes} bytes exceeds the device's {limit}: \
                 use smaller batches or shorter sequences"
            ),
            Self::BindingOverlap { op, written, other, label } => write!(
                f,
                "{op}: buffer '{label}' is written as '{written}' and bound again as '{other}': \
                 use separate buffers"
            ),
            Self::NoVariant { .. }
            | Self::AllWrong { .. }
            | Self::Shader { .. }
            | Self::Dispatch { .. }
            | Self::GridTooLarge { .. }
            | Self::Lost { .. }
            | Self::Hang { .. }
            | Self::Weights { .. }
            | Self::WrongAnswer { .. }
            | Self::Driver { .. } => self.fmt_kernel(f),
        }
    }
}

impl Error {
    /// Whether a device that is opened anew may do what failed: it is gone, it hung, or its driver
    /// reported something that is not of the program's making.
    pub fn is_of_device(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Hang { .. } | Self::Driver { .. })
    }

    /// The sentences about a kernel that does not run, or not rightly, and a device that fails.
    fn fmt_kernel(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVariant { op } => write!(f, "no variant of {op} runs on this device"),
            Self::AllWrong { op } => write!(
                f,
                "every variant of {op} answered wrongly when this driver was tested: use another \
                 device (`--device cpu` always works), or update the driver and run \
                 `edge-runtime devices --selftest` again"
            ),
            Self::Shader { op, variant, message } => {
                write!(f, "shader of {op}, variant '{variant}': {message}")
            }
            Self::Dispatch { op, variant, message } => {
                write!(f, "running {op}, variant '{variant}', failed: {message}")
            }
            Self::WrongAnswer { op, variant, message } => {
                write!(f, "{op}, variant '{variant}', answers wrongly: {message}")
            }
            Self::Weights { message } => f.write_str(message),
            Self::Lost { message } => write!(
                f,
                "the device was lost ({message}): resume from the last checkpoint, with a smaller \
                 micro-batch if it happens again"
            ),
            Self::Hang { seconds } => write!(
                f,
                "the device did not finish its work within {seconds} s: update its driver, or \
                 lower --micro-batch or --seq-len"
            ),
            Self::GridTooLarge { op, grid, limit } => write!(
                f,
                "{op}: {grid:?} workgroups, of which the device runs {limit} in a dimension: \
                 fold the grid"
            ),
            Self::Driver { message } => write!(f, "the device reported: {message}"),
            // All others have their sentences in `fmt`, which a match without `_` sees to.
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
