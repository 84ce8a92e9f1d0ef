//! Disks that are full, before a run and in the middle of it.

use std::fs;
use std::path::Path;
use std::process::Command;

use edge_runtime::run_dir::RunState;
use edge_runtime::{Control, Method, TuneEvent, Tuner, TunerBuilder};
use tempfile::TempDir;

use crate::commands::demo;
use crate::resume::results;

/// A small disk in a folder, for as long as it lives.
struct Disk(TempDir);

impl Disk {
    /// `None`, which is said, where the system lets nobody mount one.
    fn of(size: &str) -> Option<Self> {
        let dir = TempDir::new().expect("a folder");
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        let mount = mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).output();
        if mount.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        edge_tests::skipped("a small disk cannot be mounted here, which takes Linux and root");
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{}", self.path().display());
    }
}

fn run<'a>(out: &Path) -> TunerBuilder<'a> {
    let demo = Tuner::builder().model(demo("model")).data(demo("valid.txt")).val_fraction(0.02);
    demo.method(Method::Lora).device("cpu").out(out).steps(6).batch_size(2).seq_len(16).lr(1e-2)
}

#[test]
fn a_disk_that_is_too_small_is_noticed_before_the_run() {
    let Some(disk) = Disk::of("4m") else { return };
    let out = disk.path().join("run");
    let error = run(&out).build().expect("a tuner").run().map(|_| ()).expect_err("no room");
    let text = format!("{error:#}");
    assert!(text.contains("the run will write up to") && text.contains("are free there"), "{text}");
    assert!(!out.exists());
}

#[test]
fn a_disk_that_fills_up_ends_the_run_with_all_that_was_written_before() {
    let Some(disk) = Disk::of("64m") else { return };
    let whole = TempDir::new().expect("a folder");
    let whole = whole.path().join("whole");
    run(&whole).checkpoint_every(1).build().expect("a tuner").run().expect("a run");
    let (out, filler) = (disk.path().join("run"), disk.path().join("filler"));
    let fill = |event: &TuneEvent| {
        if let TuneEvent::Checkpointed { step: 3, .. } = event {
            // What is left is not enough for another one.
            fs::write(&filler, vec![0; 64 << 20]).expect_err("the disk is smaller");
        }
        Control::Continue
    };
    let builder = run(&out).checkpoint_every(1).on_event(fill);
    let error = builder.build().expect("a tuner").run().map(|_| ()).expect_err("no room");
    let text = format!("{error:#}");
    assert!(text.contains("check free space"), "{text}");
    // Not even the end can be noted.
    let state = RunState::of(&out).expect("a state");
    assert!(matches!(state, RunState::Failed(_) | RunState::Died), "{state:?}");
    fs::remove_file(&filler).expect("removed");
    Tuner::resume(&out).expect("a tuner").run().expect("a run");
    assert!(results(&out) == results(&whole));
}
