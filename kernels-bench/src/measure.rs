//! What a record has beside kernels: numbers of whole runs and of the repository, each with what
//! repeats it.

/// Which way a number ought to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Times, bytes, losses.
    Lower,
    /// Rates.
    Higher,
    /// Facts that are neither: a change is shown and never counted against anyone.
    Neither,
}

impl Better {
    /// As it is written in a record.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lower => "lower",
            Self::Higher => "higher",
            Self::Neither => "",
        }
    }

    /// Reads [`Better::name`].
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Lower, Self::Higher, Self::Neither].into_iter().find(|one| one.name() == text)
    }
}

/// One number.
#[derive(Clone, Debug, PartialEq)]
pub struct Measure {
    /// `tuning`, `quality`, `size`, `roof` or `peer`.
    pub kind: String,
    /// What was run: `compare`, `build`, the op of a peer.
    pub op: String,
    /// The method, the weight format; may be empty.
    pub format: String,
    /// Of what: the case, the file.
    pub shape: String,
    /// Its name, unit last: `tokens_per_second`.
    pub metric: String,
    /// The number.
    pub value: f64,
    /// Its unit; empty for ratios and counts.
    pub unit: String,
    /// Which way it ought to go.
    pub better: Better,
    /// The command that repeats it.
    pub repeat: String,
    /// The seed that the command was given, where it takes one.
    pub seed: Option<u64>,
}

impl Measure {
    /// The key of its history, in the form of a kernel's: the metric is in a variant's place.
    pub fn key(&self) -> String {
        format!("{}/{}/{}/{}", self.op, self.format, self.shape, self.metric)
    }
}
