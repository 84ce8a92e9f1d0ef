//! Tests of [`super`]: flags, files and defaults put together.

use clap::Parser;

use super::*;
use crate::cli::args::{Cli, Command};
use crate::testing::message;

fn flags(line: &str) -> TuneFlags {
    let line = format!("edge-runtime tune {line}");
    match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
        Command::Tune(args) => args.flags,
        _ => unreachable!(),
    }
}

fn file(text: &str) -> Result<TuneFlags> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tune.yaml");
    std::fs::write(&path, text).unwrap();
    TuneFlags::load(&path)
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let text = "# a comment\nrank: 4\nlr: 1e-3\nsteps: 7\nbits: 4\nmemory-budget: 1GiB\n\
                data: [a.txt]\noptimizer: adamw-8bit\nvalid: v.txt\n\
                targets: q_proj,v_proj\nwindow-order: random\n";
    let from_file = file(text).unwrap();
    let options = flags("--lr 0.5 --epochs 2 --val-fraction 0.2").or(from_file).resolve();
    let options = options.unwrap();
    assert_eq!((options.lr, options.rank, options.alpha), (0.5, 4, 8.0));
    assert_eq!((options.steps, options.epochs), (None, Some(2.0)));
    assert_eq!((options.valid, options.val_fraction), (None, 0.2));
    assert_eq!((options.bits, options.memory_budget), (Some(Bits::Four), Some(ByteSize(1 << 30))));
    assert_eq!(options.targets.to_string(), "q_proj,v_proj");
    assert_eq!(options.optimizer, OptimizerName::AdamW8bit);
    assert_eq!((options.batch_size, options.micro_batch), (4, 4));
    assert_eq!(file("\n# nothing\n").unwrap(), TuneFlags::default());
}

#[test]
fn resolved_options_can_be_read_as_a_file() {
    let eight = "--optimizer adamw-8bit";
    let full = "--columns prompt=q,completion=a --method full --epochs 1.5 \
                --bits 8 --memory-budget 3MiB --valid v";
    for line in ["", eight, full] {
        let options = flags(line).resolve().unwrap();
        let text = serde_norway::to_string(&options).unwrap();
        let again: TuneOptions = serde_norway::from_str(&text).unwrap();
        // A file names the micro-batch, so that nothing chooses another one.
        let options = TuneOptions { auto_micro_batch: false, ..options };
        assert_eq!(again, options);
        assert_eq!(file(&text).unwrap().resolve().unwrap(), options);
    }
    assert_eq!(flags("--method full").resolve().unwrap().lr, 2e-5);
}

#[test]
fn defaults_are_those_of_the_method() {
    let of = |line| {
        let options = flags(line).resolve().unwrap();
        (options.semantics, options.window_order, options.rank, options.alpha)
    };
    let (progressive, stacked) = (Semantics::Progressive, Semantics::Stacked);
    assert_eq!(of("--method edge"), (progressive, WindowOrder::Sequential, 64, 128.0));
    assert_eq!(of("--window-order random"), (stacked, WindowOrder::Random, 64, 128.0));
    let stacked = (stacked, WindowOrder::RoundRobin, 4, 8.0);
    assert_eq!(of("--semantics stacked --rank 4"), stacked);
    assert_eq!(flags("--method lora").resolve().unwrap().rank, 8);
}

#[test]
fn a_wrong_file_is_refused_with_key_and_line() {
    let error = message(file("rank: 4\nrnak: 5\n"));
    assert!(error.contains("rnak") && error.contains("line 2"), "{error}");
    assert!(error.contains("did you mean `rank`"), "{error}");
    let error = message(file("rank: 4\nlr: fast\n"));
    assert!(error.contains("lr") && error.contains("line 2"), "{error}");
    assert!(message(file("bits: 5\n")).contains("use 2, 3, 4, 8 or 16"));
    let error = message(file("rank: 4\ncolumns: promt=q\n"));
    assert!(error.contains("columns: there is no \"promt\" to fill, did you"), "{error}");
    assert!(message(file("targets: lm_head\n")).contains("all-linear"));
    assert!(message(file("method: [\n")).contains("line"));
    assert!(message(TuneFlags::load("absent.yaml".as_ref())).contains("--config"));
}

#[test]
fn values_without_sense_are_refused_by_flag() {
    for (line, flag) in [
        ("--steps 0", "--steps"),
        ("--epochs 0", "--epochs"),
        ("--epochs nan", "--epochs"),
        ("--batch-size 0", "--batch-size"),
        ("--batch-size 4 --micro-batch 3", "--micro-batch"),
        ("--rank 0", "--rank"),
        ("--windows 0", "--windows"),
        ("--group-size 48", "--group-size"),
        ("--seq-len 1", "--seq-len"),
        ("--lr=-1", "--lr"),
        ("--lr inf", "--lr"),
        ("--clip=-1", "--clip"),
        ("--val-fraction 1", "--val-fraction"),
    ] {
        assert!(message(flags(line).resolve()).contains(flag), "{line}");
    }
    let both = file("steps: 1\nepochs: 1\n").unwrap();
    assert!(message(both.resolve()).contains("keep one"));
    for (line, flag) in [
        ("--max-seconds 0", "--max-seconds"),
        ("--max-tokens 0", "--max-tokens"),
        ("--max-seconds 5 --warmup-steps 3", "--warmup-steps"),
        ("--semantics progressive --window-order random", "--window-order"),
        ("--semantics stacked --window-shares 1,2,3", "--semantics progressive"),
        ("--semantics progressive --window-shares 1,2", "give one for each"),
    ] {
        assert!(message(flags(line).resolve()).contains(flag), "{line}");
    }
}

#[test]
fn steps_and_lengths_follow_from_the_data() {
    let options = flags("--epochs 1.5 --batch-size 4").resolve().unwrap();
    let budgets = (options.budget(10), options.budget(1));
    assert_eq!(budgets, (Budget::Steps(4), Budget::Steps(1)));
    assert_eq!((options.seq_len_for(64), options.seq_len_for(4096)), (64, 256));
    let options = flags("--steps 9 --warmup-steps 3 --seq-len 32").resolve().unwrap();
    assert_eq!(options.budget(1), Budget::Steps(9));
    let seconds = flags("--max-seconds 1.5").resolve().unwrap();
    assert_eq!(seconds.budget(1), Budget::Seconds(1.5));
    assert_eq!(flags("--max-tokens 7").resolve().unwrap().budget(1), Budget::Tokens(7));
    assert_eq!(options.seq_len_for(4096), 32);
}
