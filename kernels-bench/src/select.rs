//! Which of the subjects run: words that must match, the quick set, and the dense formats that
//! the others are compared with.

use crate::Subject;

/// Most operations of a subject of the quick set: less than a second of a software driver.
const QUICK_FLOPS: u64 = (1 << 31) - 1;

/// Most bytes of a subject of the quick set.
const QUICK_BYTES: u64 = 128 << 20;

/// The dense formats whose times the ratio columns divide.
pub const BASELINES: [&str; 2] = ["f32", "f16"];

/// A subject, and whether it runs only for the ratios of others.
#[derive(Clone)]
pub struct Selected {
    /// The subject.
    pub subject: Subject,
    /// No word asked for it: production's variant is enough.
    pub baseline: bool,
}

/// Whether all `words` match: `op=NAME`, `format=NAME` and `shape=NAME` are exact, any other word
/// is a part of `op/format/shape`.
pub fn matches(subject: &Subject, words: &[String]) -> bool {
    let name = subject.name();
    words.iter().all(|word| match word.split_once('=') {
        Some(("op", op)) => subject.op.name() == op,
        Some(("format", format)) => subject.format() == format,
        Some(("shape", shape)) => subject.shape == shape,
        _ => name.contains(word.as_str()),
    })
}

/// Whether a word is the name of the subject's format, exactly.
fn names_format(subject: &Subject, words: &[String]) -> bool {
    words.iter().any(|word| word.strip_prefix("format=").unwrap_or(word) == subject.format())
}

/// How much runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What a software driver takes minutes for.
    Quick,
    /// All but the layers' further formats, which run where a word names them.
    Usual,
    /// Everything.
    Full,
}

/// Whether the subject is in the set that a software driver takes minutes for: the ops' own cases
/// but the largest, and of the models' layers two of SmolLM2-135M, generating and training.
pub fn quick(subject: &Subject, own: bool) -> bool {
    let work = subject.op.work(&subject.call);
    let small = work.flops <= QUICK_FLOPS && work.bytes <= QUICK_BYTES;
    let layers = ["smollm2_q_proj_1x", "smollm2_q_proj_64x", "smollm2_up_proj_64x"];
    small && (own || layers.iter().any(|layer| subject.shape.starts_with(layer)))
}

/// The subjects that match, in groups of one op and shape, with the dense formats of a group added
/// where the words left them out.
pub fn groups(words: &[String], extent: Extent) -> Vec<Vec<Selected>> {
    let own: Vec<String> = Subject::own().iter().map(Subject::name).collect();
    let all = Subject::all();
    let mut groups = Vec::new();
    for members in all.chunk_by(|a, b| a.group() == b.group()) {
        let wanted = |subject: &Subject| {
            let own = own.contains(&subject.name());
            matches(subject, words)
                && (extent != Extent::Quick || quick(subject, own))
                && (extent == Extent::Full || !subject.further || names_format(subject, words))
        };
        if !members.iter().any(wanted) {
            continue;
        }
        let selected = members.iter().filter_map(|subject| {
            let wanted = wanted(subject);
            let kept = wanted || BASELINES.contains(&subject.format());
            kept.then(|| Selected { subject: subject.clone(), baseline: !wanted })
        });
        groups.push(selected.collect());
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(String::from).collect()
    }

    #[test]
    fn all_words_must_match() {
        let found = groups(&words("matmul_nt q4 tinyllama 256"), Extent::Usual);
        assert!(!found.is_empty());
        for selected in found.iter().flatten().filter(|one| !one.baseline) {
            let name = selected.subject.name();
            let parts = ["matmul_nt", "q4", "tinyllama", "256"];
            assert!(parts.iter().all(|part| name.contains(part)), "{name}");
        }
        assert!(groups(&words("matmul_nt no_such_word"), Extent::Usual).is_empty());
    }

    #[test]
    fn exact_words_leave_longer_names_out() {
        let exact = groups(&words("op=matmul_nt format=q4"), Extent::Usual);
        let formats = exact.iter().flatten().filter(|one| !one.baseline);
        assert!(formats.clone().count() > 0);
        assert!(formats.clone().all(|one| one.subject.format() == "q4"));
        // A word is a part: it also finds the wider groups of q4.
        let loose = groups(&words("matmul_nt q4"), Extent::Usual);
        assert!(loose.iter().flatten().any(|one| one.subject.format() == "q4g64"));
        let shape =
            groups(&words("shape=tinyllama_up_proj_8x5632x2048 op=matmul_nn"), Extent::Usual);
        assert_eq!(shape.len(), 1);
    }

    #[test]
    fn the_dense_formats_come_along() {
        let found = groups(&words("format=q4 shape=smollm2_q_proj_64x576x576"), Extent::Usual);
        for group in &found {
            let formats: Vec<(&str, bool)> =
                group.iter().map(|one| (one.subject.format(), one.baseline)).collect();
            assert_eq!(formats, [("f32", true), ("f16", true), ("q4", false)]);
        }
        assert_eq!(found.len(), 2, "forward and backward");
    }

    #[test]
    fn further_formats_of_layers_run_where_they_are_named() {
        let count = |text: &str, extent| {
            let found = groups(&words(text), extent);
            found.iter().flatten().filter(|one| !one.baseline && one.subject.further).count()
        };
        assert_eq!(count("matmul_nt smollm2", Extent::Usual), 0);
        let all = count("matmul_nt smollm2", Extent::Full);
        assert!(count("matmul_nt smollm2 format=q4r", Extent::Usual) > 0);
        assert!(count("matmul_nt smollm2 q4z", Extent::Usual) > 0);
        assert!(count("matmul_nt smollm2 q4r", Extent::Full) < all);
        // A part of a name is no name.
        assert_eq!(count("matmul_nt smollm2 q4", Extent::Usual), 0);
    }

    #[test]
    fn the_quick_set_is_small_and_has_every_op() {
        let count = |extent| groups(&[], extent).iter().map(Vec::len).sum::<usize>();
        let [quick, usual, full] = [Extent::Quick, Extent::Usual, Extent::Full].map(count);
        assert!(quick * 5 < usual && usual * 3 < full * 2, "{quick} of {usual} of {full}");
        for op in edge_kernels::OPS {
            let found = groups(&[format!("op={}", op.name())], Extent::Quick);
            assert!(!found.is_empty(), "{} is not in the quick set", op.name());
        }
    }
}
