//! The throughput table. `cargo xtask bench --help`
#![allow(clippy::print_stdout, reason = "a command line tool talks on stdout")]

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser as _;
use edge_gpu::{Device, Options};
use kernels_bench::args::Args;
use kernels_bench::calibration::Calibration;
use kernels_bench::check::{AGAIN, Checked, Outcome};
use kernels_bench::history::History;
use kernels_bench::machine::{Machine, slug};
use kernels_bench::measure::Measure;
use kernels_bench::peers::{self, PeerTimed, Peers, can_compare};
use kernels_bench::record::{self, Origin};
use kernels_bench::roof::Roof;
use kernels_bench::row::Row;
use kernels_bench::runner::Which;
use kernels_bench::select::{self, Extent, Selected};
use kernels_bench::session::{Bounds, EachRound, Progress, Setup, Timed, time_group};
use kernels_bench::targets::{self, Verdict};
use kernels_bench::{Subject, compare, gpu_targets, size, tuning};

/// What a run has measured.
#[derive(Default)]
struct Measured {
    timed: Vec<Timed>,
    peers: Vec<PeerTimed>,
    roof: Option<Roof>,
    errors: usize,
}

/// Opens the device, and says which and how it is timed.
fn open(args: &Args) -> Result<Device> {
    let options = Options { profile: true, ..Options::default() };
    let device = Device::open(&args.device, &options)
        .with_context(|| format!("device `{}`", args.device))?;
    let info = device.info();
    let clock = if info.timestamps { "device timestamps" } else { "wall time" };
    say(args, &format!("{}, {clock}, at most {} samples a row", info.name, args.samples));
    Ok(device)
}

/// A line for people: on stdout with the table, on stderr beside JSON.
fn say(args: &Args, text: &str) {
    if args.json { eprintln!("{text}") } else { println!("{text}") }
}

/// Whether the quick set is meant: by default where shaders run on the CPU.
fn is_quick(args: &Args, device: &Device) -> bool {
    args.quick || !args.full && device.info().kind.is_cpu()
}

/// The groups that the arguments ask for on this device.
fn selected(args: &Args, device: &Device) -> Result<Vec<Vec<Selected>>> {
    if args.targets {
        let mut groups = targets::groups();
        if !device.info().kind.is_cpu() {
            groups.extend(gpu_targets::groups());
        }
        return Ok(groups);
    }
    let extent = match (args.full, is_quick(args, device) || args.check) {
        (true, _) => Extent::Full,
        (_, true) => Extent::Quick,
        (_, false) => Extent::Usual,
    };
    let mut groups = select::groups(&args.words, extent);
    let all = select::groups(&args.words, Extent::Full);
    let count = |groups: &[Vec<Selected>]| groups.iter().map(Vec::len).sum::<usize>();
    let (few, many) = (count(&groups), count(&all));
    if args.check {
        // Their ratios are not judged.
        groups.iter_mut().for_each(|group| group.retain(|one| !one.baseline));
    } else if few == 0 && !args.quick {
        groups = all;
    } else if few < many {
        eprintln!("{few} of {many} subjects; `--full` times all of them");
    }
    if groups.is_empty() {
        bail!("no op/format/shape matches all of: {}", args.words.join(" "));
    }
    Ok(groups)
}

/// The roof, said in a line; none on the `cpu` device.
fn roof(args: &Args, device: &Device) -> Result<Option<Roof>> {
    if device.info().backend == "host" {
        say(args, "no roof: on this device the probe of multiply-adds is a formula\n");
        return Ok(None);
    }
    let roof = Roof::measure(device)?;
    let Roof { copy_gb_s, fma_gflop_s } = roof;
    say(args, &format!("roof: copy {copy_gb_s:.2} GB/s, fma {fma_gflop_s:.1} GFLOP/s\n"));
    Ok(Some(roof))
}

/// Times one group, with the peers by turns where they can do the same.
fn measure(
    group: &[Selected],
    setup: &mut Setup<'_>,
    peers: Option<&mut Peers>,
) -> Result<(Vec<Timed>, Vec<PeerTimed>, usize)> {
    let compared = group.iter().find(|selected| can_compare(&selected.subject));
    let mut peers = peers.filter(|_| compared.is_some());
    if let (Some(peers), Some(compared)) = (&mut peers, compared) {
        for wrong in peers.load(&compared.subject)? {
            eprintln!("peer not timed: {wrong}");
        }
    }
    let outcome = match &mut peers {
        Some(peers) => {
            let mut round = || peers.round();
            let each: EachRound<'_> = &mut round;
            time_group(group, setup, Some(each))?
        }
        None => time_group(group, setup, None)?,
    };
    for error in &outcome.errors {
        eprintln!("error: {error:#}");
    }
    let theirs = peers.map(Peers::take).unwrap_or_default();
    Ok((outcome.timed, theirs, outcome.errors.len()))
}

/// Prints a group's rows as soon as they are there.
fn show(args: &Args, group: &[Selected], timed: &[Timed], theirs: &[PeerTimed]) {
    for Timed { row, .. } in timed {
        println!("{}", if args.json { row.json() } else { row.line() });
    }
    let Some(first) = group.first().filter(|_| !theirs.is_empty()) else { return };
    let flops = first.subject.op.work(&first.subject.call).flops;
    if args.json {
        for one in theirs {
            println!("{}", peers::json(one, timed, flops));
        }
    } else {
        println!("\n{}", peers::table(timed, theirs, flops));
    }
}

/// How much a row is sampled.
fn bounds(args: &Args, device: &Device) -> Bounds {
    // Between these, a quick record is as quick as it claims.
    let short = args.check || args.record && is_quick(args, device);
    let row_ms = args.row_ms.unwrap_or(if short { 150.0 } else { 500.0 });
    let least_ms = if args.targets { targets::ROW_MS } else { 0.0 };
    Bounds { samples: args.samples, row_ms: row_ms.max(least_ms) }
}

fn all_groups(args: &Args, groups: &[Vec<Selected>], device: &Device) -> Result<Measured> {
    let bounds = bounds(args, device);
    let program = args.peers.as_ref().map(|path| peers_program(path.as_deref())).transpose()?;
    let mut peers = program.map(|path| Peers::new(path, device.info()));
    let roof = if args.check { None } else { roof(args, device)? };
    let calibrated = args.check || args.record;
    let calibration = if calibrated { Calibration::new(device)? } else { None };
    let which = if args.check { Which::Production } else { Which::All };
    let mut setup = Setup { device, roof, bounds, which, calibration };
    if !args.json && !args.check {
        println!("{}", Row::title());
    }
    let mut measured = Measured { roof, ..Measured::default() };
    let mut progress = Progress::new(groups, bounds);
    for group in groups {
        progress.begin(group);
        let (timed, theirs, errors) = measure(group, &mut setup, peers.as_mut())?;
        progress.end(group, bounds);
        if !args.check {
            show(args, group, &timed, &theirs);
        }
        measured.timed.extend(timed);
        measured.peers.extend(theirs);
        measured.errors += errors;
    }
    Ok(measured)
}

/// `cargo xtask bench` builds the program and fills its path in.
fn peers_program(path: Option<&Path>) -> Result<&Path> {
    path.context("`--peers` needs its program: `cargo xtask bench --peers` builds and names it")
}

/// Compares with a record, else with the newest, and says where the machines differ.
fn against(
    path: Option<&Path>,
    device: &Device,
    args: &Args,
    groups: &[Vec<Selected>],
    now: &[Row],
) -> Result<()> {
    let folder = Path::new(record::FOLDER).join(slug(device.info()));
    let path = match path {
        Some(path) => path.into(),
        None => record::newest(&folder).with_context(|| {
            format!("{} has no record yet: make one with --record", folder.display())
        })?,
    };
    let before = record::read(&path)?;
    say(args, &format!("\nagainst {}", path.display()));
    match &before.machine {
        None => eprintln!("warning: the machine.txt beside it is not the record's own"),
        Some(there) => {
            for line in Machine::this(device.info()).differences(there) {
                eprintln!("warning: another machine: {line}");
            }
        }
    }
    let everything = args.words.is_empty() && !is_quick(args, device);
    let comparison = compare::compare(&before.rows, now, |row| {
        let same = |one: &Selected| {
            let Subject { op, shape, .. } = &one.subject;
            op.name() == row.op && *shape == row.shape && one.subject.format() == row.format
        };
        // Of a format that came along for the ratios, only one variant was timed.
        everything || groups.iter().flatten().any(|one| !one.baseline && same(one))
    });
    say(args, &comparison.text());
    Ok(())
}

/// The table of targets; an error when one is missed.
fn judge(args: &Args, device: &Device, measured: &Measured) -> Result<()> {
    let asked = args.peers.is_some().then_some(measured.peers.as_slice());
    let mut counts = [0; 3];
    let mut tell = |text: &str, verdict: &Verdict| {
        counts[match verdict {
            Verdict::Met(..) => 0,
            Verdict::Missed(..) => 1,
            Verdict::NotThere(_) => 2,
        }] += 1;
        say(args, &verdict.line(text));
    };
    say(args, "");
    for target in targets::all() {
        tell(&target.text(), &target.judge(&measured.timed, asked));
    }
    if let Some(roof) = measured.roof.filter(|_| !device.info().kind.is_cpu()) {
        for target in gpu_targets::ALL {
            tell(&target.text(), &target.judge(&measured.timed, roof));
        }
    }
    let [met, missed, absent] = counts;
    say(args, &format!("\n{met} met, {missed} missed, {absent} not there"));
    if missed > 0 {
        bail!("{missed} targets are missed");
    }
    Ok(())
}

/// Writes rows and what goes with them to a record.
fn write_record(args: &Args, device: &Device, rows: &[Row], measures: &[Measure]) -> Result<()> {
    let machine = Machine::this(device.info());
    let folder = Path::new(record::FOLDER).join(slug(device.info()));
    let (commit, date) = (record::commit(), record::now());
    let origin = Origin { commit, date, selector: args.device.clone(), machine };
    let path = record::write(&folder, &origin, rows, measures)?;
    let numbers = measures.len();
    eprintln!("recorded {} rows and {numbers} numbers in {}", rows.len(), path.display());
    Ok(())
}

/// The numbers of a record that are no kernel's.
fn measures(args: &Args, device: &Device, measured: &Measured) -> Result<Vec<Measure>> {
    let mut found: Vec<Measure> =
        measured.roof.iter().flat_map(|roof| roof.measures(&args.device)).collect();
    found.extend(peers::measures(&measured.peers, &measured.timed, &args.device));
    // Who asks for some kernels by name wants no more than these.
    if let Some(program) = args.program.as_ref().filter(|_| args.words.is_empty()) {
        say(args, "\ntuning by each method");
        found.extend(tuning::measures(program, &device.info().name)?);
        found.extend(size::measures(Path::new("."), program, args.cold_build_s)?);
        if !args.json {
            for one in &found {
                println!("{:<48} {:>14.3} {}", one.key(), one.value, one.unit);
            }
        }
    }
    Ok(found)
}

/// Times everything as often as asked, and judges it or writes it down.
fn check(args: &Args, device: Device, groups: &[Vec<Selected>]) -> Result<()> {
    if Calibration::new(&device)?.is_none() {
        bail!("`--check` needs shaders: name another device than `{}`", device.info().name);
    }
    let mut device = device;
    let mut rows: Vec<Row> = Vec::new();
    for pass in 0..args.passes {
        if pass > 0 {
            device = Device::open(&args.device, &Options { profile: true, ..Options::default() })?;
        }
        let measured = all_groups(args, groups, &device)?;
        if measured.errors > 0 {
            bail!("{} subjects or variants failed", measured.errors);
        }
        let timed = measured.timed.into_iter();
        rows.extend(timed.map(|one| Row { pass: pass as u32, ..one.row }));
    }
    if args.record {
        return write_record(args, &device, &rows, &[]);
    }
    let history = History::read(Path::new(record::FOLDER))?;
    let (folder, print) = (slug(device.info()), Machine::this(device.info()).fingerprint());
    let mut outcome = Outcome::default();
    for row in rows.iter().filter(|row| row.pass == 0) {
        let values = history.calibrated(&folder, &print, &row.key());
        let mut checked = Checked::new(row, &values);
        let later = rows.iter().filter(|other| other.pass > 0 && other.key() == row.key());
        checked.values.extend(later.filter_map(|other| other.calibrated));
        outcome.rows.push(checked);
    }
    for _ in 0..AGAIN {
        time_again(args, groups, &mut outcome)?;
    }
    say(args, &format!("\n{}", outcome.text()));
    match outcome.slower().len() {
        0 => Ok(()),
        count => bail!("{count} kernels have become slower"),
    }
}

/// Times the groups of rows outside their fences once more.
fn time_again(args: &Args, groups: &[Vec<Selected>], outcome: &mut Outcome) -> Result<()> {
    let outside = outcome.rows.iter().filter(|row| row.outside().is_some());
    let suspects: Vec<String> = outside.map(|row| row.key.clone()).collect();
    let suspect = |one: &&Selected| {
        suspects.iter().any(|key| key.starts_with(&format!("{}/", one.subject.name())))
    };
    let groups: Vec<Vec<Selected>> = groups
        .iter()
        .map(|group| group.iter().filter(suspect).cloned().collect())
        .filter(|group: &Vec<Selected>| !group.is_empty())
        .collect();
    if groups.is_empty() {
        return Ok(());
    }
    say(args, &format!("{} rows are outside their fences: timed again", suspects.len()));
    let device = Device::open(&args.device, &Options { profile: true, ..Options::default() })?;
    for one in all_groups(args, &groups, &device)?.timed {
        let key = one.row.key();
        let row = outcome.rows.iter_mut().find(|row| row.key == key && row.outside().is_some());
        if let (Some(row), Some(value)) = (row, one.row.calibrated) {
            row.values.push(value);
        }
    }
    Ok(())
}

fn run(args: &Args) -> Result<()> {
    let device = open(args)?;
    let groups = selected(args, &device)?;
    if args.list {
        for Selected { subject, .. } in groups.iter().flatten().filter(|one| !one.baseline) {
            println!("{}", subject.name());
        }
        return Ok(());
    }
    if args.check {
        return check(args, device, &groups);
    }
    let measured = all_groups(args, &groups, &device)?;
    let rows: Vec<Row> = measured.timed.iter().map(|one| one.row.clone()).collect();
    if let Some(path) = &args.against {
        against(path.as_deref(), &device, args, &groups, &rows)?;
    }
    if args.record {
        let measures = measures(args, &device, &measured)?;
        write_record(args, &device, &rows, &measures)?;
    }
    if measured.errors > 0 {
        bail!("{} subjects or variants failed", measured.errors);
    }
    if args.targets { judge(args, &device, &measured) } else { Ok(()) }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
