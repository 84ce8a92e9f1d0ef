//! Which variant of an op a device runs, by buckets of shapes: what measuring on it has found, and
//! which variants answer wrongly there. A value; who measures and where it is kept is not decided
//! here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use crate::format::Format;
use crate::op::{Call, Op};
use crate::ops;

/// Sizes up to this one have a bucket each: a kernel that is best for one token is not for eight.
const EXACT_SIZES: u32 = 8;

/// Calls that share a choice: an op, a weight format and rounded sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket {
    op: &'static str,
    format: &'static str,
    sizes: [u32; 3],
}

impl Bucket {
    /// The bucket of a call; `None` for ops whose variants are not measured.
    pub fn of(op: &dyn Op, call: &Call) -> Option<Self> {
        let round = |size: u32| if size <= EXACT_SIZES { size } else { size.next_power_of_two() };
        let sizes = op.sizes(call)?.map(round);
        Some(Self { op: op.tuned_as(), format: call.format.name(), sizes })
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [m, n, k] = self.sizes;
        write!(f, "{} {} {m}x{n}x{k}", self.op, self.format)
    }
}

impl FromStr for Bucket {
    type Err = String;

    /// Reads what [`fmt::Display`] writes.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not an op, a format and three sizes");
        let words: Vec<&str> = text.split(' ').collect();
        let [op, format, sizes] = words[..] else { return Err(wrong()) };
        let op = ops::find(op).ok_or_else(|| format!("`{text}`: there is no op `{op}`"))?.name();
        let format = Format::from_name(format)
            .ok_or_else(|| format!("`{text}`: there is no format `{format}`"))?;
        let sizes: Result<Vec<u32>, _> = sizes.split('x').map(str::parse).collect();
        let sizes = sizes.ok().and_then(|sizes| sizes.try_into().ok()).ok_or_else(wrong)?;
        Ok(Self { op, format: format.name(), sizes })
    }
}

/// A variant of an op that a driver makes wrong for a weight format.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wrong {
    op: &'static str,
    format: &'static str,
    variant: String,
}

impl Wrong {
    /// This variant for calls of an op in the format of `call`.
    pub fn new(op: &dyn Op, call: &Call, variant: impl Into<String>) -> Self {
        Self { op: op.name(), format: call.format.name(), variant: variant.into() }
    }

    /// Whether both are about the same op and format.
    pub fn same_kernel(&self, other: &Self) -> bool {
        (self.op, self.format) == (other.op, other.format)
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.op, self.format, self.variant)
    }
}

impl FromStr for Wrong {
    type Err = String;

    /// Reads what [`fmt::Display`] writes.
    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split(' ').collect();
        let [op, format, variant] = words[..] else {
            return Err(format!("`{text}` is not an op, a format and a variant"));
        };
        let op = ops::find(op).ok_or_else(|| format!("`{text}`: there is no op `{op}`"))?.name();
        let format = Format::from_name(format)
            .ok_or_else(|| format!("`{text}`: there is no format `{format}`"))?;
        Ok(Self { op, format: format.name(), variant: variant.to_owned() })
    }
}

/// The choices of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    choices: BTreeMap<Bucket, String>,
    wrong: BTreeSet<Wrong>,
}

impl Tuning {
    /// Lets calls of `bucket` run the variant of this name, wherever the op has it for them.
    pub fn set(&mut self, bucket: Bucket, variant: impl Into<String>) {
        self.choices.insert(bucket, variant.into());
    }

    /// The name of the variant for a call, if one was chosen.
    pub fn get(&self, op: &dyn Op, call: &Call) -> Option<&str> {
        if self.choices.is_empty() {
            return None;
        }
        self.choices.get(&Bucket::of(op, call)?).map(String::as_str)
    }

    /// Buckets and variants, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Bucket, &str)> {
        self.choices.iter().map(|(bucket, variant)| (*bucket, variant.as_str()))
    }

    /// How many buckets have a choice.
    pub fn len(&self) -> usize {
        self.choices.len()
    }

    /// Whether nothing was chosen.
    pub fn is_empty(&self) -> bool {
        self.choices.is_empty()
    }

    /// Lets no call run this variant any more.
    pub fn distrust(&mut self, wrong: Wrong) {
        self.wrong.insert(wrong);
    }

    /// Whether a call may run this variant.
    pub fn trusts(&self, op: &dyn Op, call: &Call, variant: &str) -> bool {
        self.wrong.is_empty() || !self.wrong.contains(&Wrong::new(op, call, variant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::matmul::matmul_nt::{MatmulNt, Params};
    use crate::ops::matmul::{matmul_nt_lora, matmul_nt_swiglu};

    fn call(m: u32, n: u32, k: u32) -> Call {
        Call::new(&Params::dense(m, n, k))
    }

    #[test]
    fn shapes_share_a_bucket_up_to_the_next_power_of_two() {
        let bucket = |m, n, k| Bucket::of(&MatmulNt, &call(m, n, k)).expect("products have sizes");
        assert_eq!(bucket(200, 2000, 1025), bucket(256, 2048, 2048));
        assert_ne!(bucket(1, 64, 64), bucket(2, 64, 64));
        assert_ne!(bucket(7, 64, 64), bucket(8, 64, 64));
        let text = bucket(200, 2048, 2048).to_string();
        assert_eq!(text, "matmul_nt f32 256x2048x2048");
        assert_eq!(text.parse(), Ok(bucket(256, 2048, 2048)));
    }

    #[test]
    fn products_that_do_more_with_a_sum_take_what_the_plain_one_takes() {
        let plain = Bucket::of(&MatmulNt, &call(1, 64, 64)).expect("products have sizes");
        let lora = matmul_nt_lora::Params::dense(1, 64, 64, 8, 1.0);
        assert_eq!(Bucket::of(&matmul_nt_lora::MatmulNtLora, &Call::new(&lora)), Some(plain));
        let gated = matmul_nt_swiglu::Params::dense(1, 64, 64);
        assert_eq!(Bucket::of(&matmul_nt_swiglu::MatmulNtSwiglu, &Call::new(&gated)), Some(plain));
    }

    #[test]
    fn what_is_no_bucket_is_refused() {
        for text in ["", "matmul_nt f32", "matmul_nt f32 1x2", "matmul_nt f32 1x2xa", "a f32 1x2x3"]
        {
            assert!(text.parse::<Bucket>().is_err(), "{text}");
        }
        assert!("matmul_nt q5 1x2x3".parse::<Bucket>().is_err());
    }

    #[test]
    fn a_choice_holds_for_its_bucket_alone() {
        let mut tuning = Tuning::default();
        assert_eq!(tuning.get(&MatmulNt, &call(1, 64, 64)), None);
        tuning.set(Bucket::of(&MatmulNt, &call(1, 64, 64)).expect("a product"), "wide");
        assert_eq!(tuning.get(&MatmulNt, &call(1, 64, 60)), Some("wide"));
        assert_eq!(tuning.get(&MatmulNt, &call(2, 64, 64)), None);
    }

    #[test]
    fn what_answers_wrongly_is_distrusted_for_its_op_and_format_alone() {
        let mut tuning = Tuning::default();
        assert!(tuning.trusts(&MatmulNt, &call(1, 64, 64), "wide"));
        let wrong = Wrong::new(&MatmulNt, &call(1, 64, 64), "wide");
        assert_eq!(wrong.to_string(), "matmul_nt f32 wide");
        assert_eq!(wrong.to_string().parse(), Ok(wrong.clone()));
        tuning.distrust(wrong);
        assert!(!tuning.trusts(&MatmulNt, &call(9, 7, 5), "wide"), "any shape");
        assert!(tuning.trusts(&MatmulNt, &call(1, 64, 64), "tile"));
        let q4 = Call::with_format(&Params::dense(1, 64, 64), Format::Q4);
        assert!(tuning.trusts(&MatmulNt, &q4, "wide"));
        for text in ["", "matmul_nt f32", "a f32 wide", "matmul_nt q5 wide", "matmul_nt f32 a b"] {
            assert!(text.parse::<Wrong>().is_err(), "{text}");
        }
    }
}
