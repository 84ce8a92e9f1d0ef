//! `export`: a tuned model as files for other programs.

use std::cell::RefCell;

use anyhow::{Result, ensure};

use super::args::ExportArgs;
use super::eval::open;
use super::report::{Progress, print_json};
use crate::merge::merge;
use crate::run_dir::RunDir;

pub(super) fn run(args: &ExportArgs) -> Result<()> {
    let (source, tuned) =
        open(args.model.as_deref(), args.adapter.as_deref(), args.run.as_deref())?;
    ensure!(
        tuned.adapter.is_some(),
        "there is no adapter to merge: give --run a directory of tune with --method edge, lora, \
         qlora or partial, or --adapter a PEFT folder"
    );
    RunDir::check(Some(&args.out))?;
    let tensors = source.checkpoint.names().count() as u64;
    let progress = RefCell::new(Progress::new("merge", tensors, args.quiet));
    let dtype = args.dtype.map(Into::into);
    merge(&source, &tuned, &args.out, dtype, &|| {
        progress.borrow_mut().step(String::new);
    })?;
    progress.into_inner().finish();
    let packed = tuned.options.as_ref().and_then(|options| options.bits).map(u32::from);
    let packed = packed.filter(|bits| *bits < 16);
    if !args.quiet {
        if let Some(bits) = packed {
            eprintln!(
                "the adapter was trained over weights of {bits} bits and is merged into the \
                 original ones of {}",
                source.dir.display()
            );
        }
        if tuned.exits.as_ref().is_some_and(|exits| exits.first_adapted() > 0) {
            eprintln!(
                "the run's windows are isolated: merged is the last exit, with the top window's \
                 adapters alone"
            );
        }
        eprintln!("written to {}", args.out.display());
    }
    if args.json {
        print_json(&serde_json::json!({"out": args.out, "tensors": tensors, "base_bits": packed}))?;
    }
    Ok(())
}
