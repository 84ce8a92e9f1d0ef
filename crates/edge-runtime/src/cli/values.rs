//! Values of flags that the commands share, as a person writes them.

use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;
use edge_scheduler::Optimizer;
use serde::{Deserialize, Serialize};

use crate::checkpoint::Dtype;

/// What is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// LoRA adapters in all layers, gradients through the full depth
    Lora,
    /// All weights
    Full,
    /// The same over a base of 4 bits everywhere
    Qlora,
    /// LoRA adapters in the top window of layers alone, gradients through it alone
    Partial,
    /// LoRA adapters in one window of layers a step, an exit per window, voting
    #[default]
    Edge,
}

impl Method {
    /// The name on the command line, in reports and in directory names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Full => "full",
            Self::Qlora => "qlora",
            Self::Partial => "partial",
            Self::Edge => "edge",
        }
    }
}

/// How the optimizer stores its moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum OptimizerName {
    /// AdamW with moments in 32 bits
    #[default]
    #[value(name = "adamw")]
    #[serde(rename = "adamw")]
    AdamW,
    /// AdamW with moments in 8 bits: a quarter of the memory for nearly the same loss
    #[value(name = "adamw-8bit")]
    #[serde(rename = "adamw-8bit")]
    AdamW8bit,
}

impl From<OptimizerName> for Optimizer {
    fn from(name: OptimizerName) -> Self {
        match name {
            OptimizerName::AdamW => Self::AdamW,
            OptimizerName::AdamW8bit => Self::AdamW8bit,
        }
    }
}

/// Which window a step trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WindowOrder {
    /// One after the other, a step each
    #[default]
    RoundRobin,
    /// A random one each step
    Random,
    /// From the bottom up, each for its share of the steps
    Sequential,
}

/// What lies below a window while it is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Semantics {
    /// The other windows' adapters, which go on moving
    Stacked,
    /// Finished adapters: windows are trained one after the other, from the bottom up
    Progressive,
    /// No adapters: each window stands on the base, and each exit reads a stream of its own
    Isolated,
}

impl Semantics {
    /// Whether windows have a part of the run each, one after the other.
    pub fn has_phases(self) -> bool {
        matches!(self, Self::Progressive | Self::Isolated)
    }
}

/// Shares of a run, written `1,1,2`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Shares(pub Vec<f64>);

impl FromStr for Shares {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let share = |part: &str| {
            let share = part.trim().parse::<f64>().ok();
            share.filter(|share| *share > 0.0 && share.is_finite())
        };
        let shares: Option<Vec<f64>> = text.split(',').map(share).collect();
        let wrong = || format!("{text:?} is no list of shares: write it as 1,1,2");
        shares.map(Self).ok_or_else(wrong)
    }
}

impl TryFrom<String> for Shares {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Shares> for String {
    fn from(shares: Shares) -> Self {
        shares.0.iter().map(f64::to_string).collect::<Vec<_>>().join(",")
    }
}

/// Where hidden states below a window that is trained alone are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum TrunkCache {
    /// In the run directory, until the run ends
    #[default]
    Auto,
    /// Nowhere: the trunk is run each time
    Off,
    /// In this folder, for later runs
    Folder(PathBuf),
}

impl From<String> for TrunkCache {
    fn from(text: String) -> Self {
        match text.as_str() {
            "auto" => Self::Auto,
            "off" => Self::Off,
            _ => Self::Folder(text.into()),
        }
    }
}

impl FromStr for TrunkCache {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.to_owned().into())
    }
}

impl From<TrunkCache> for String {
    fn from(cache: TrunkCache) -> Self {
        match cache {
            TrunkCache::Auto => "auto".into(),
            TrunkCache::Off => "off".into(),
            TrunkCache::Folder(dir) => dir.display().to_string(),
        }
    }
}

/// Bits of a frozen weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub enum Bits {
    /// Groups of 2-bit values with a scale
    #[value(name = "2")]
    Two,
    /// Groups of 3-bit values with a scale
    #[value(name = "3")]
    Three,
    /// Groups of 4-bit values with a scale
    #[value(name = "4")]
    Four,
    /// Groups of 8-bit values with a scale
    #[value(name = "8")]
    Eight,
    /// 16-bit floats
    #[default]
    #[value(name = "16")]
    Sixteen,
}

impl From<Bits> for u32 {
    fn from(bits: Bits) -> Self {
        match bits {
            Bits::Two => 2,
            Bits::Three => 3,
            Bits::Four => 4,
            Bits::Eight => 8,
            Bits::Sixteen => 16,
        }
    }
}

impl TryFrom<u32> for Bits {
    type Error = String;

    fn try_from(bits: u32) -> Result<Self, String> {
        match bits {
            2 => Ok(Self::Two),
            3 => Ok(Self::Three),
            4 => Ok(Self::Four),
            8 => Ok(Self::Eight),
            16 => Ok(Self::Sixteen),
            _ => Err(format!("bits {bits} are not supported: use 2, 3, 4, 8 or 16")),
        }
    }
}

/// A number format of unpacked weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NumberFormat {
    /// IEEE single
    F32,
    /// IEEE half
    F16,
    /// Upper half of a single
    Bf16,
}

impl From<NumberFormat> for Dtype {
    fn from(format: NumberFormat) -> Self {
        match format {
            NumberFormat::F32 => Self::F32,
            NumberFormat::F16 => Self::F16,
            NumberFormat::Bf16 => Self::BF16,
        }
    }
}

/// A number of bytes, written `2GiB`, `512MiB`, `1.5GB` or `1000000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "ByteText", into = "u64")]
pub struct ByteSize(pub u64);

impl From<ByteSize> for u64 {
    fn from(size: ByteSize) -> Self {
        size.0
    }
}

/// How a file may write a [`ByteSize`].
#[derive(Deserialize)]
#[serde(untagged)]
enum ByteText {
    Bytes(u64),
    Text(String),
}

impl TryFrom<ByteText> for ByteSize {
    type Error = String;

    fn try_from(text: ByteText) -> Result<Self, String> {
        match text {
            ByteText::Bytes(0) => "0".parse(),
            ByteText::Bytes(bytes) => Ok(Self(bytes)),
            ByteText::Text(text) => text.parse(),
        }
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no size: write it as 2GiB, 512MiB or bytes");
        let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let unit: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            _ => return Err(wrong()),
        };
        let number: f64 = number.trim().parse().map_err(|_| wrong())?;
        let bytes = number * unit as f64;
        // 2^53: whole numbers are exact up to there, and no device has as much.
        if (1.0..9_007_199_254_740_992.0).contains(&bytes) {
            Ok(Self(bytes as u64))
        } else {
            Err(wrong())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed() {
        for (text, bytes) in [
            ("2GiB", 2 << 30),
            ("512MiB", 512 << 20),
            ("1.5 GB", 1_500_000_000),
            ("4k", 4096),
            ("1000000", 1_000_000),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "0", "-1", "GiB", "2TiBs", "nan", "inf", "1e300", "2 Gi B"] {
            assert!(text.parse::<ByteSize>().unwrap_err().contains("512MiB"), "{text}");
        }
    }

    #[test]
    fn shares_and_places_are_read_and_written() {
        let shares: Shares = "1, 2.5".parse().unwrap();
        assert_eq!(shares, Shares(vec![1.0, 2.5]));
        assert_eq!(String::from(shares), "1,2.5");
        for wrong in ["", "1,", "1,0", "1,-2", "1,inf", "a"] {
            assert!(wrong.parse::<Shares>().is_err(), "{wrong}");
        }
        for text in ["auto", "off", "some/folder"] {
            assert_eq!(String::from(TrunkCache::from(text.to_owned())), text);
        }
    }
}
