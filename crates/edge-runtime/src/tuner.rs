//! Tuning for applications: options, a run, and a callback for what happens in it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use edge_gpu::{Device, Options};

use crate::cli::args::{Bits, ByteSize, Method, TuneFlags};
use crate::cli::options::TuneOptions;
use crate::cli::report::TuneReport;
use crate::data::{Dataset, refuse_val_items};
use crate::run_dir::RunDir;
use crate::session::{Source, open_device, run_options};
use crate::tune::event::{Control, TuneEvent};
use crate::tune::header::Header;
use crate::tune::resume::Resume;
use crate::tune::run;

type Callback<'a> = Box<dyn FnMut(&TuneEvent) -> Control + Send + 'a>;

type Change<'a> = Box<dyn FnOnce(&mut TuneOptions) + Send + 'a>;

/// A model, data and a device that are ready for a run. The command `tune` is one of these with a
/// progress bar as its callback.
///
/// Nothing is printed, no signal is handled, and nothing but the run directory (and, with a memory
/// budget, the user's cache folder, which keeps how fast the device is) is written. Tuners do not
/// share anything: several can run one after the other, or in threads of one process.
///
/// ```no_run
/// use edge_runtime::{Control, Method, TuneEvent, Tuner};
///
/// # fn main() -> anyhow::Result<()> {
/// let report = Tuner::builder()
///     .model("models/SmolLM2-135M")
///     .data("notes.txt")
///     .method(Method::Edge)
///     .steps(200)
///     .out("runs/notes")
///     .on_event(|event| {
///         if let TuneEvent::Step(row) = event {
///             println!("step {}: loss {:.3}", row.step, row.loss);
///         }
///         Control::Continue
///     })
///     .build()?
///     .run()?;
/// println!("loss {:?} -> {:?}", report.val_loss_before, report.val_loss);
/// # Ok(())
/// # }
/// ```
pub struct Tuner<'a> {
    options: TuneOptions,
    source: Source,
    device: Device,
    /// Why kernels that were chosen for the device are not used.
    notice: Option<String>,
    shows_reading: bool,
    callback: Callback<'a>,
    /// The run that goes on.
    resume: Option<Resume>,
}

impl<'a> Tuner<'a> {
    /// Begins to say what a run is to be.
    pub fn builder() -> TunerBuilder<'a> {
        TunerBuilder::default()
    }

    /// Opens model and device of whole options, as those of an earlier run
    /// ([`crate::session::run_options`]).
    ///
    /// # Errors
    /// An option makes no sense, model or device cannot be used, or the directory for results has
    /// files already: one sentence, which calls options by their flags.
    pub fn open(options: TuneOptions) -> Result<Self> {
        RunDir::check(options.out.as_deref())?;
        refuse_val_items(&options.data, options.val_items)?;
        Self::of(options, None)
    }

    /// A run that was interrupted, failed or was killed, and goes on from its newest checkpoint
    /// that is whole, or from the one whose folder `path` is, to where it would have ended.
    ///
    /// ```no_run
    /// # fn main() -> anyhow::Result<()> {
    /// let report = edge_runtime::Tuner::resume("runs/notes")?.run()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// There is no such run, it is finished, another process has it, or its options, model or
    /// device cannot be used.
    pub fn resume(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let resume = Resume::find(path)?.with_context(|| {
            format!("{} is finished: start a new run to go further", path.display())
        })?;
        Self::go_on(run_options(resume.run())?, resume)
    }

    /// A run that goes on with these options.
    pub(crate) fn go_on(options: TuneOptions, resume: Resume) -> Result<Self> {
        // The directory may have been moved.
        let out = Some(resume.run().to_owned());
        Self::of(TuneOptions { out, ..options }, Some(resume))
    }

    fn of(options: TuneOptions, resume: Option<Resume>) -> Result<Self> {
        options.check()?;
        let model = options.model.as_deref().context(
            "there is no model to tune: give --model a Hugging Face model folder or a .gguf file",
        )?;
        ensure!(
            !options.data.is_empty(),
            "there is nothing to learn from: give --data a text, a .jsonl file or a folder"
        );
        let source = Source::open(model)?;
        let profile = Options { profile: options.profile, ..Options::default() };
        let (device, notice) = open_device(&options.device, &profile)?;
        let callback = Box::new(|_: &TuneEvent| Control::Continue);
        Ok(Self { options, source, device, notice, callback, shows_reading: false, resume })
    }

    /// Calls this with each event of a run, on the thread that runs it, which waits meanwhile.
    #[must_use]
    pub fn on_event(mut self, callback: impl FnMut(&TuneEvent) -> Control + Send + 'a) -> Self {
        self.callback = Box::new(callback);
        self
    }

    /// All options, with defaults filled in.
    pub fn options(&self) -> &TuneOptions {
        &self.options
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What the run would be: its memory, and its time where the device was measured. Nothing is
    /// run and no directory made.
    ///
    /// # Errors
    /// As [`Tuner::run`].
    pub fn plan(&mut self) -> Result<Header> {
        self.say_notice();
        let data = self.load_data()?;
        run::dry_run(&data, &self.options, &self.source, &self.device, &mut self.callback)
    }

    /// Tunes, and writes the run directory.
    ///
    /// # Errors
    /// One sentence that names the file, tensor or option; [`crate::interrupt::Interrupted`] where
    /// the callback answers [`Control::Stop`] before the run has a directory.
    pub fn run(&mut self) -> Result<TuneReport> {
        self.say_notice();
        let data = self.load_data()?;
        let Self { options, source, device, callback, resume, .. } = self;
        Ok(run::run_on(&data, options, source, device, callback, resume.as_ref())?.report)
    }

    /// Says on stderr how far long files are read; else nothing is written there.
    pub(crate) fn show_reading(mut self, shown: bool) -> Self {
        self.shows_reading = shown;
        self
    }

    fn load_data(&self) -> Result<Dataset> {
        run::load_data(&self.options, &self.source, !self.shows_reading)
    }

    fn say_notice(&mut self) {
        if let Some(notice) = self.notice.take() {
            // Nothing has begun that could be stopped; the next event asks again.
            let _: Control = (self.callback)(&TuneEvent::Notice(notice));
        }
    }
}

/// Options of a run, as the command `tune` has them; what is not given has the same default. Those
/// without a method here are set by [`TunerBuilder::options`].
#[derive(Default)]
pub struct TunerBuilder<'a> {
    flags: TuneFlags,
    changes: Vec<Change<'a>>,
    callback: Option<Callback<'a>>,
}

impl<'a> TunerBuilder<'a> {
    /// Hugging Face model folder or GGUF file.
    #[must_use]
    pub fn model(mut self, path: impl Into<PathBuf>) -> Self {
        self.flags.model = Some(path.into());
        self
    }

    /// One more text, JSONL or JSON file, or folder with `train.*`, to learn from.
    #[must_use]
    pub fn data(mut self, path: impl Into<PathBuf>) -> Self {
        self.flags.data.get_or_insert_default().push(path.into());
        self
    }

    /// Data to validate on, instead of a share of the others.
    #[must_use]
    pub fn valid(mut self, path: impl Into<PathBuf>) -> Self {
        self.flags.valid = Some(path.into());
        self
    }

    /// Share of the data to validate on, below 1; 0: there are no validations.
    #[must_use]
    pub fn val_fraction(mut self, share: f64) -> Self {
        self.flags.val_fraction = Some(share);
        self
    }

    /// What is trained.
    #[must_use]
    pub fn method(mut self, method: Method) -> Self {
        self.flags.method = Some(method);
        self
    }

    /// Ends the run after so many optimiser steps. Only one of `steps`, `epochs`, `max_seconds` and
    /// `max_tokens` is to be given.
    #[must_use]
    pub fn steps(mut self, steps: u64) -> Self {
        self.flags.steps = Some(steps);
        self
    }

    /// Ends the run after so many passes over the data.
    #[must_use]
    pub fn epochs(mut self, epochs: f64) -> Self {
        self.flags.epochs = Some(epochs);
        self
    }

    /// Ends the run after so many seconds of training.
    #[must_use]
    pub fn max_seconds(mut self, seconds: f64) -> Self {
        self.flags.max_seconds = Some(seconds);
        self
    }

    /// Ends the run after so many tokens.
    #[must_use]
    pub fn max_tokens(mut self, tokens: u64) -> Self {
        self.flags.max_tokens = Some(tokens);
        self
    }

    /// Sequences a step.
    #[must_use]
    pub fn batch_size(mut self, sequences: usize) -> Self {
        self.flags.batch_size = Some(sequences);
        self
    }

    /// Tokens of a sequence.
    #[must_use]
    pub fn seq_len(mut self, tokens: usize) -> Self {
        self.flags.seq_len = Some(tokens);
        self
    }

    /// PEFT adapter folder to start from; its rank, alpha and layers are taken over.
    #[must_use]
    pub fn adapter(mut self, dir: impl Into<PathBuf>) -> Self {
        self.flags.adapter = Some(dir.into());
        self
    }

    /// Peak learning rate.
    #[must_use]
    pub fn lr(mut self, lr: f64) -> Self {
        self.flags.lr = Some(lr);
        self
    }

    /// LoRA rank.
    #[must_use]
    pub fn rank(mut self, rank: usize) -> Self {
        self.flags.rank = Some(rank);
        self
    }

    /// LoRA alpha; by default twice the rank.
    #[must_use]
    pub fn alpha(mut self, alpha: f64) -> Self {
        self.flags.alpha = Some(alpha);
        self
    }

    /// Windows of blocks, each with an exit.
    #[must_use]
    pub fn windows(mut self, windows: usize) -> Self {
        self.flags.windows = Some(windows);
        self
    }

    /// Bits of frozen weights; by default what is usual for the method.
    #[must_use]
    pub fn bits(mut self, bits: Bits) -> Self {
        self.flags.bits = Some(bits);
        self
    }

    /// `auto`, `cpu`, an index or a part of a device's name.
    #[must_use]
    pub fn device(mut self, selector: impl Into<String>) -> Self {
        self.flags.device = Some(selector.into());
        self
    }

    /// Most device memory, bytes.
    #[must_use]
    pub fn memory_budget(mut self, bytes: u64) -> Self {
        self.flags.memory_budget = Some(ByteSize(bytes));
        self
    }

    /// Run directory, new or empty; by default a new one below `runs/`.
    #[must_use]
    pub fn out(mut self, dir: impl Into<PathBuf>) -> Self {
        self.flags.out = Some(dir.into());
        self
    }

    /// Seed of initial values and data order.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.flags.seed = Some(seed);
        self
    }

    /// Steps between validations; 0: only before and after the run.
    #[must_use]
    pub fn eval_every(mut self, steps: u64) -> Self {
        self.flags.eval_every = Some(steps);
        self
    }

    /// Ends the run behind so many validations without a better loss.
    #[must_use]
    pub fn early_stopping(mut self, validations: u64) -> Self {
        self.flags.early_stopping = Some(validations);
        self
    }

    /// Steps between checkpoints; 0: only where the run is interrupted.
    #[must_use]
    pub fn checkpoint_every(mut self, steps: u64) -> Self {
        self.flags.checkpoint_every = Some(steps);
        self
    }

    /// Changes any option once defaults are filled in; defaults that depend on others (alpha on
    /// the rank, bits and learning rate on the method) do not follow.
    #[must_use]
    pub fn options(mut self, change: impl FnOnce(&mut TuneOptions) + Send + 'a) -> Self {
        self.changes.push(Box::new(change));
        self
    }

    /// As [`Tuner::on_event`].
    #[must_use]
    pub fn on_event(mut self, callback: impl FnMut(&TuneEvent) -> Control + Send + 'a) -> Self {
        self.callback = Some(Box::new(callback));
        self
    }

    /// Fills in the defaults, checks the options, and opens model and device.
    ///
    /// # Errors
    /// As [`Tuner::open`].
    pub fn build(self) -> Result<Tuner<'a>> {
        let Self { mut flags, changes, callback } = self;
        flags.choose_by_files()?;
        let mut options = flags.resolve()?;
        for change in changes {
            change(&mut options);
        }
        let mut tuner = Tuner::open(options)?;
        if let Some(callback) = callback {
            tuner.callback = callback;
        }
        Ok(tuner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::demo_dir;

    fn demo<'a>() -> TunerBuilder<'a> {
        let demo = demo_dir().expect("the demo");
        Tuner::builder().model(demo.join("model")).data(demo.join("valid.txt")).device("cpu")
    }

    #[test]
    fn a_tuner_can_go_to_a_thread() {
        fn sent<T: Send>(value: T) -> T {
            value
        }
        let tuner = sent(demo().method(Method::Qlora).rank(4).build().expect("a tuner"));
        let options = tuner.options();
        let found = (options.bits, options.alpha, options.steps, options.seed);
        assert_eq!(found, (Some(Bits::Four), 8.0, Some(200), 0));
    }

    #[test]
    fn options_without_a_setter_are_changed_and_checked() {
        let tuner = demo().options(|options| options.clip = 0.5).build().expect("a tuner");
        assert_eq!(tuner.options().clip, 0.5);
        let wrong = demo().options(|options| options.group_size = Some(3)).build();
        assert!(wrong.is_err_and(|error| error.to_string().contains("--group-size is 3")));
    }
}
