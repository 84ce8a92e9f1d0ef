//! Drafts of an early exit: the tokens of plain greedy decoding, on every device and by every
//! vote, from a trained run of the demo model.

use std::path::Path;

use edge_runtime::cli::args::Bits;
use edge_runtime::draft::{DraftCounts, Drafting, MARGIN};
use edge_runtime::exits::Vote;
use edge_runtime::generate::Sampling;
use edge_runtime::model::Model;
use edge_runtime::session::{Source, Tuned};
use edge_tests::{cpu, gpu};
use tempfile::TempDir;

use crate::commands::{demo, refused, run};

const POSITIONS: u32 = 64;

/// A run of the demo model with three exits.
fn tuned(out: &Path, flags: &[&str]) {
    let (model, data) = (demo("model"), demo("valid.txt"));
    let out = out.display().to_string();
    let base = ["tune", "--model", &model, "--data", &data, "--out", &out, "--device", "cpu"];
    let sizes = ["--batch-size", "2", "--seq-len", "64", "--lr", "1e-2", "--windows", "3"];
    let output = run(&[&base[..], &sizes, &["--quiet"], flags].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Prompts from the demo's text.
fn prompts(source: &Source, count: usize) -> Vec<Vec<u32>> {
    let text = std::fs::read_to_string(demo("valid.txt")).expect("a text");
    let ids = source.tokenizer.encode(&text, false).expect("tokens");
    let lengths = [1, 2, 7, 16, 17, 30];
    (0..count).map(|i| ids[i * 61..][..lengths[i % lengths.len()]].to_vec()).collect()
}

/// Continues with drafts and without; both must agree.
fn counts(
    model: &Model,
    prompt: &[u32],
    vote: Vote,
    drafting: Drafting,
    new: usize,
) -> DraftCounts {
    let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0, vote };
    let plain = model.generate(prompt, new, &sampling, |_| false, |_| Ok(())).expect("tokens");
    let drafted = model.generate_drafted(prompt, new, vote, drafting, |_| false, |_| Ok(()));
    let (drafted, counts) = drafted.expect("tokens");
    assert_eq!(drafted, plain, "{vote:?} {drafting:?} behind {prompt:?}");
    // A token of the prompt's last row, then one to `tokens` a round.
    let most = 1 + counts.rounds * u64::from(drafting.tokens);
    assert!((1 + counts.rounds..=most).contains(&(plain.len() as u64)), "{counts:?}");
    // A stop token ends both at the same place.
    let stop = plain[plain.len() / 2];
    let plain = model.generate(prompt, new, &sampling, |t| t == stop, |_| Ok(())).expect("tokens");
    let ended = model.generate_drafted(prompt, new, vote, drafting, |t| t == stop, |_| Ok(()));
    assert_eq!(ended.expect("tokens").0, plain, "{vote:?} {drafting:?} until {stop}");
    counts
}

#[test]
fn drafts_change_no_token() {
    let dir = TempDir::new().expect("a folder");
    tuned(dir.path(), &["--steps", "60", "--bits", "8"]);
    let source = Source::open(demo("model").as_ref()).expect("a model");
    let tuned = Tuned::run(dir.path(), &source.config).expect("a run");
    for device in [Some(cpu()), gpu()].into_iter().flatten() {
        let formats = source.formats(Bits::try_from(8).ok(), None).expect("formats");
        let mut job = source.job(formats, 1, 16);
        tuned.apply(&mut job);
        (job.cache, job.positions, job.vote) = (Some(POSITIONS), POSITIONS, true);
        let model = tuned.load(&device, &source, &job, &mut |_| ()).expect("a model");
        let mut sum = DraftCounts::default();
        for (index, prompt) in prompts(&source, 24).iter().enumerate() {
            let vote = Vote::ALL[index % 4];
            let tokens = [2, 4, 7, 16][index / 4 % 4];
            let drafting = Drafting { exit: 1 + index % 2, tokens, margin: MARGIN };
            // Some beyond what the cache holds.
            let new = [20, 100, 1][index % 3];
            let counts = counts(&model, prompt, vote, drafting, new);
            sum.drafted += counts.drafted;
            sum.accepted += counts.accepted;
        }
        // Both happened: guesses that were right, and caches that went back.
        assert!(sum.accepted > 0 && sum.accepted < sum.drafted, "{sum:?}");
        // With every row in doubt each position is run again, once; what that changes is far
        // below the margin.
        for (index, prompt) in prompts(&source, 4).iter().enumerate() {
            let vote = Vote::ALL[index % 4];
            let doubting = Drafting { exit: 1, tokens: 4, margin: f64::MAX };
            let counts = counts(&model, prompt, vote, doubting, 20);
            assert_eq!(counts.replayed, 19, "{counts:?}");
            assert!(counts.largest_change < MARGIN / 10.0, "{counts:?}");
        }
    }
}

#[test]
fn generate_prints_the_same_text_with_drafts() {
    let dir = TempDir::new().expect("a folder");
    tuned(dir.path(), &["--steps", "8"]);
    let run_dir = dir.path().display().to_string();
    let base = ["generate", "--run", &run_dir, "--prompt", "The ", "--device", "cpu"];
    let base = [&base[..], &["--max-new-tokens", "30"]].concat();
    let plain = run(&[&base[..], &["--temperature", "0"]].concat());
    let flags = ["--temperature", "0", "--draft-exit", "2", "--compare-plain"];
    let drafted = run(&[&base[..], &flags].concat());
    let text = String::from_utf8_lossy(&drafted.stderr).into_owned();
    assert!(drafted.status.success(), "{text}");
    assert_eq!(plain.stdout, drafted.stdout);
    for part in ["drafted tokens accepted", "with drafts", "plain"] {
        assert!(text.contains(part), "{text}");
    }
    for (flags, code, part) in [
        (&["--draft-exit", "1"][..], 1, "--temperature 0"),
        (&["--draft-exit", "3", "--temperature", "0"], 1, "from 1 to 2"),
        (&["--draft-exit", "1", "--draft-tokens", "1", "--temperature", "0"], 1, "2 to 16"),
        (&["--draft-tokens", "3", "--temperature", "0"], 2, "--draft-exit"),
    ] {
        let text = refused(&[&base[..], flags].concat(), code);
        assert!(text.contains(part), "{flags:?}: {text}");
    }
    let isolated = TempDir::new().expect("a folder");
    tuned(isolated.path(), &["--steps", "3", "--semantics", "isolated"]);
    let isolated = isolated.path().display().to_string();
    let flags = ["--temperature", "0", "--draft-exit", "1", "--device", "cpu"];
    let text = refused(&[&["generate", "--run", &isolated][..], &flags].concat(), 1);
    assert!(text.contains("--semantics isolated"), "{text}");
}
