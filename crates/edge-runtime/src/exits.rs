//! Early exits: `exits.safetensors` holds each exit's norm and low-rank term, `exits.json` where
//! they are and how their distributions are combined.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::merge::add_product;
use crate::run_dir::write_atomically;
use crate::vote::Learned;
use crate::whole_file::{self, SETTINGS};

/// File name of the description.
pub const CONFIG_FILE: &str = "exits.json";
/// File name of the norms and low-rank terms.
pub const TENSORS_FILE: &str = "exits.safetensors";

/// How the exits' distributions become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vote {
    /// The last exit's.
    Last,
    /// Element-wise maximum, renormalised: the rule of the Edge-LLM paper.
    Max,
    /// Arithmetic mean.
    Mean,
    /// With a temperature and a weight for each exit, fitted on validation data; the last exit's
    /// until there are such.
    #[default]
    Learned,
}

impl Vote {
    /// All rules, the learned one last.
    pub const ALL: [Self; 4] = [Self::Last, Self::Max, Self::Mean, Self::Learned];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::Max => "max",
            Self::Mean => "mean",
            Self::Learned => "learned",
        }
    }
}

/// Exits `1..=T` of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Exits {
    /// Exit `t` (element `t - 1`) reads the residual stream after this many blocks; rising.
    pub after_block: Vec<usize>,
    /// How the exits are combined.
    pub vote: Vote,
    /// Weight of each exit's RMSNorm `[hidden_size]`.
    pub gammas: Vec<Vec<f32>>,
    /// Each exit's low-rank term beside the head, where they have one.
    pub terms: Option<ExitTerms>,
    /// What [`Vote::Learned`] needs, once it is fitted.
    pub learned: Option<Learned>,
    /// Whether each window stands on the base without the adapters below it.
    pub isolated: bool,
}

/// Low-rank terms beside the head: `z = W·n + scale · B·(A·n)` (LoRA, Hu et al. 2021, eq. 3, of the
/// head, an exit's own).
#[derive(Clone, Debug, PartialEq)]
pub struct ExitTerms {
    /// Rank `r`.
    pub rank: usize,
    /// Factor of the product.
    pub scale: f32,
    /// `A [r, hidden_size]` and `B [vocab_size, r]` of each exit.
    pub matrices: Vec<(Vec<f32>, Vec<f32>)>,
}

/// What the last exit adds to the head.
#[derive(Clone, Copy, Debug)]
pub struct HeadTerm<'a> {
    rank: usize,
    scale: f32,
    a: &'a [f32],
    b: &'a [f32],
}

impl HeadTerm<'_> {
    /// `W[rows] += scale · B[rows]·A`.
    ///
    /// # Panics
    /// When `w` has another size than these rows of the head.
    pub fn add(&self, rows: Range<usize>, w: &mut [f32]) {
        let b = &self.b[rows.start * self.rank..rows.end * self.rank];
        add_product(w, (self.a, b), self.rank, self.scale);
    }
}

/// Layout of `exits.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format_version: u32,
    after_block: Vec<usize>,
    vote: Vote,
    /// First and last block (from 1) that each exit trains.
    windows: Vec<[usize; 2]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    learned: Option<Learned>,
    #[serde(default)]
    isolated: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    term: Option<Term>,
}

/// What the low-rank terms have in common.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Term {
    rank: usize,
    scale: f32,
}

/// The layout that is written; 1 had neither `learned` nor `isolated`, 2 no `term`.
const FORMAT_VERSION: u32 = 3;

/// Names of the low-rank term of exit `exit`, counted from 1: `A`, `B`.
fn term_names(exit: usize) -> [String; 2] {
    ["A", "B"].map(|matrix| format!("exit.{exit}.lora_{matrix}.weight"))
}

/// Name of the norm of exit `exit`, counted from 1.
pub fn tensor_name(exit: usize) -> String {
    format!("exit.{exit}.norm.weight")
}

/// Window `t` holds the blocks after exit `t - 1` up to exit `t`; blocks count from 1.
fn windows(after_block: &[usize]) -> Vec<[usize; 2]> {
    let starts = std::iter::once(&0).chain(after_block);
    starts.zip(after_block).map(|(start, end)| [start + 1, *end]).collect()
}

impl Term {
    fn check(self) -> Result<()> {
        ensure!(
            self.rank > 0 && self.scale.is_finite(),
            "the exits' low-rank term has rank {} and scale {}: run tune again",
            self.rank,
            self.scale
        );
        Ok(())
    }
}

impl Exits {
    /// The lowest layer (from 0) whose adapters the last exit has in its stream.
    pub fn first_adapted(&self) -> usize {
        match self.after_block[..] {
            [.., below, _] if self.isolated => below,
            _ => 0,
        }
    }

    /// The last exit's low-rank term.
    pub fn head_term(&self) -> Option<HeadTerm<'_>> {
        let terms = self.terms.as_ref()?;
        let (a, b) = terms.matrices.last()?;
        Some(HeadTerm { rank: terms.rank, scale: terms.scale, a, b })
    }

    /// Writes both files into `dir`, each atomically.
    ///
    /// # Errors
    /// The exits do not fit the model, or a file cannot be written.
    pub fn save(&self, dir: &Path, model: &ModelConfig) -> Result<()> {
        check(&self.after_block, model).context("the exits cannot be saved")?;
        ensure!(
            self.gammas.len() == self.after_block.len()
                && self.gammas.iter().all(|gamma| gamma.len() == model.hidden_size),
            "the exits' norms do not fit the model's hidden_size {}: use its own run",
            model.hidden_size
        );
        let (d, vocab) = (model.hidden_size, model.vocab_size);
        let mut tensors: Vec<(String, Vec<usize>, &[f32])> = Vec::new();
        for (index, gamma) in self.gammas.iter().enumerate() {
            tensors.push((tensor_name(index + 1), vec![gamma.len()], gamma));
        }
        if let Some(terms) = &self.terms {
            ensure!(
                terms.matrices.len() == self.gammas.len(),
                "there are {} low-rank terms and {} exits: use the run's own",
                terms.matrices.len(),
                self.gammas.len()
            );
            for (index, (a, b)) in terms.matrices.iter().enumerate() {
                let [a_name, b_name] = term_names(index + 1);
                tensors.push((a_name, vec![terms.rank, d], a));
                tensors.push((b_name, vec![vocab, terms.rank], b));
            }
        }
        let mut views = Vec::with_capacity(tensors.len());
        for (name, shape, values) in tensors {
            let view = TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(values));
            views.push((name, view.context("the exits do not fit the model: use its own run")?));
        }
        let bytes = safetensors::serialize(views, None).context("cannot lay out the exits")?;
        write_atomically(&dir.join(TENSORS_FILE), &bytes)?;
        let file = File {
            format_version: FORMAT_VERSION,
            after_block: self.after_block.clone(),
            vote: self.vote,
            windows: windows(&self.after_block),
            learned: self.learned.clone(),
            isolated: self.isolated,
            term: self.terms.as_ref().map(|terms| Term { rank: terms.rank, scale: terms.scale }),
        };
        let text = serde_json::to_string_pretty(&file)?;
        write_atomically(&dir.join(CONFIG_FILE), text.as_bytes())
    }

    /// Reads the exits in `dir`; `None` where there is no `exits.json`.
    ///
    /// # Errors
    /// A file is damaged or does not fit the model.
    pub fn load(dir: &Path, model: &ModelConfig) -> Result<Option<Self>> {
        let path = dir.join(CONFIG_FILE);
        if !path.exists() {
            return Ok(None);
        }
        let shown = path.display();
        let text = whole_file::text(&path, SETTINGS)
            .with_context(|| format!("cannot read {shown}: check its permissions"))?;
        let file: File = serde_json::from_str(&text)
            .with_context(|| format!("{shown} does not describe exits: run tune again"))?;
        if !(1..=FORMAT_VERSION).contains(&file.format_version) {
            bail!(
                "{shown} has format_version {}, and this program knows up to {FORMAT_VERSION}: \
                 update it",
                file.format_version
            );
        }
        check(&file.after_block, model).with_context(|| format!("{shown} is not usable"))?;
        ensure!(
            file.windows == windows(&file.after_block),
            "the windows in {shown} contradict its after_block: run tune again"
        );
        if let Some(learned) = &file.learned {
            let exits = file.after_block.len();
            learned.check(exits).with_context(|| format!("{shown} is not usable"))?;
        }
        let tensors = Checkpoint::open_file(&dir.join(TENSORS_FILE))?;
        let norm = |exit| tensors.expect(&tensor_name(exit), &[model.hidden_size])?.to_f32();
        let gammas = (1..=file.after_block.len()).map(norm).collect::<Result<Vec<_>>>()?;
        let terms = file.term.map(|term| {
            term.check().with_context(|| format!("{shown} is not usable"))?;
            let read = |exit| {
                let [a, b] = term_names(exit);
                let a = tensors.expect(&a, &[term.rank, model.hidden_size])?.to_f32()?;
                Ok((a, tensors.expect(&b, &[model.vocab_size, term.rank])?.to_f32()?))
            };
            let matrices = (1..=file.after_block.len()).map(read).collect::<Result<_>>()?;
            Ok::<_, anyhow::Error>(ExitTerms { rank: term.rank, scale: term.scale, matrices })
        });
        let terms = terms.transpose()?;
        let File { after_block, vote, learned, isolated, .. } = file;
        Ok(Some(Self { after_block, vote, gammas, terms, learned, isolated }))
    }
}

fn check(after_block: &[usize], model: &ModelConfig) -> Result<()> {
    let rising = after_block.windows(2).all(|pair| pair[0] < pair[1]);
    ensure!(
        rising
            && after_block.first().is_some_and(|first| *first > 0)
            && after_block.last() == Some(&model.num_hidden_layers),
        "after_block is {after_block:?} instead of rising numbers that end at the model's {} \
         layers: use the model that the run was made with",
        model.num_hidden_layers
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use tempfile::tempdir;

    use super::*;
    use crate::testing::{message, tiny_config};

    fn sample() -> Exits {
        Exits {
            after_block: vec![1, 2],
            vote: Vote::Max,
            gammas: vec![vec![1.0; 8], (0..8).map(|i| i as f32).collect()],
            terms: None,
            learned: Some(Learned { temperatures: vec![0.9, 1.1], weights: vec![0.25, 0.75] }),
            isolated: true,
        }
    }

    /// The same with low-rank terms.
    fn with_terms(model: &ModelConfig) -> Exits {
        let count = |at: usize, n: usize| (0..n).map(|i| (at + i) as f32).collect();
        let (d, vocab) = (model.hidden_size, model.vocab_size);
        let matrices = (0..2).map(|at| (count(at, 2 * d), count(at + 5, vocab * 2))).collect();
        Exits { terms: Some(ExitTerms { rank: 2, scale: 0.5, matrices }), ..sample() }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempdir().unwrap();
        let model = tiny_config();
        assert_eq!(Exits::load(dir.path(), &model).unwrap(), None);
        sample().save(dir.path(), &model).unwrap();
        assert_eq!(Exits::load(dir.path(), &model).unwrap(), Some(sample()));
        let exits = with_terms(&model);
        exits.save(dir.path(), &model).unwrap();
        assert_eq!(Exits::load(dir.path(), &model).unwrap(), Some(exits.clone()));
        // W[1, 2] += scale · B[1]·A[:, 2], of the last exit: B[1] = (8, 9), A[:, 2] = (3, 3 + d).
        let mut w = vec![1.0; 2 * model.hidden_size];
        exits.head_term().unwrap().add(1..3, &mut w);
        assert_eq!(w[2], 1.0 + 0.5 * (8.0 * 3.0 + 9.0 * (3.0 + model.hidden_size as f32)));
        assert_eq!(windows(&[2, 5, 6]), [[1, 2], [3, 5], [6, 6]]);
        for vote in Vote::value_variants() {
            assert_eq!(vote.to_possible_value().unwrap().get_name(), vote.name());
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let dir = tempdir().unwrap();
        let model = tiny_config();
        for after_block in [vec![], vec![0, 2], vec![1], vec![2, 1], vec![2, 2], vec![1, 3]] {
            let exits = Exits { after_block, ..sample() };
            assert!(message(exits.save(dir.path(), &model)).contains("after_block"));
        }
        let exits = Exits { gammas: vec![vec![1.0; 8], vec![1.0; 7]], ..sample() };
        assert!(message(exits.save(dir.path(), &model)).contains("hidden_size 8"));
        sample().save(dir.path(), &model).unwrap();
        let mut other = model.clone();
        other.hidden_size = 9;
        let error = message(Exits::load(dir.path(), &other));
        assert!(error.contains("exit.1.norm.weight") && error.contains("hidden_size"), "{error}");

        let path = dir.path().join(CONFIG_FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("\"max\"", "\"min\""),
            ("\"format_version\": 3", "\"format_version\": 4"),
            ("0.75", "0.85"),
            ("after_block", "blocks"),
        ] {
            std::fs::write(&path, text.replace(from, to)).unwrap();
            assert!(message(Exits::load(dir.path(), &model)).contains(CONFIG_FILE), "{to}");
        }
        with_terms(&model).save(dir.path(), &model).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to, says) in [
            ("\"rank\": 2", "\"rank\": 0", "rank 0"),
            ("\"rank\": 2", "\"rank\": 3", "lora_A"),
            ("\"scale\": 0.5", "\"scale\": null", CONFIG_FILE),
        ] {
            std::fs::write(&path, text.replace(from, to)).unwrap();
            let error = message(Exits::load(dir.path(), &model));
            assert!(error.contains(says), "{to}: {error}");
        }
        let mut exits = with_terms(&model);
        exits.terms.as_mut().unwrap().matrices[1].1.pop();
        assert!(message(exits.save(dir.path(), &model)).contains("do not fit the model"));
        std::fs::write(&path, &text).unwrap();
        std::fs::remove_file(dir.path().join(TENSORS_FILE)).unwrap();
        assert!(message(Exits::load(dir.path(), &model)).contains(TENSORS_FILE));
    }
}
