//! Records: the rows of a run as a file in `kernels-bench/record/DEVICE/`, with what it takes to
//! repeat them in every row, and a `machine.txt` beside it.
//!
//! A row is a kernel's time or, where its `kind` says so, a [`Measure`]: then `variant` has the
//! metric, `value` the number, and the columns of times are empty.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use crate::csv;
use crate::machine::{Machine, output};
use crate::measure::{Better, Measure};
use crate::row::Row;
use crate::runner::SEED;

/// Where records are, from the root of the workspace.
pub const FOLDER: &str = "kernels-bench/record";

/// Columns that every record has, in their order.
const COLUMNS: [&str; 18] = [
    "op",
    "format",
    "shape",
    "variant",
    "production",
    "median_ms",
    "spread_ms",
    "samples",
    "gb_s",
    "gflop_s",
    "roof_share",
    "ratio_to_dense_f32",
    "ratio_to_dense_f16",
    "device",
    "machine",
    "commit",
    "date",
    "repeat",
];

/// Columns that the first records did not have.
const LATER: [&str; 8] =
    ["kind", "value", "unit", "better", "calibrated", "calibrated_spread", "seed", "pass"];

/// The kind of the rows that are no measures.
const KERNEL: &str = "kernel";

/// What all rows of a record share.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Commit that was measured, with `-dirty` where files differed from it.
    pub commit: String,
    /// When, as `timestamp` writes it.
    pub date: String,
    /// Argument of `--device`.
    pub selector: String,
    /// The machine.
    pub machine: Machine,
}

/// Short name of the commit in the current folder; records that were added to it are no change.
pub fn commit() -> String {
    let short = output("git", &["rev-parse", "--short=9", "HEAD"]);
    if short.is_empty() {
        return "unknown".into();
    }
    let others = format!(":!{FOLDER}");
    let changed = !output("git", &["status", "--porcelain", "--", ".", &others]).is_empty();
    format!("{short}{}", if changed { "-dirty" } else { "" })
}

/// Now, in UTC: sorts as time does, and is part of a file's name.
pub fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    timestamp(since.as_secs())
}

/// `2026-01-31T2359` from seconds since 1970.
fn timestamp(seconds: u64) -> String {
    let (mut year, mut day) = (1970, seconds / 86400);
    let by = |year: u64, years| year.is_multiple_of(years);
    let leap = |year| by(year, 4) && (!by(year, 100) || by(year, 400));
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut lengths = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    lengths[1] += u64::from(leap(year));
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let (hour, minute) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{year:04}-{:02}-{:02}T{hour:02}{minute:02}", month + 1, day + 1)
}

/// Writes rows and measures to `folder/DATE_COMMIT.csv`, and `machine.txt`; the record appears
/// whole or not at all.
///
/// # Errors
/// The file system refuses.
pub fn write(
    folder: &Path,
    origin: &Origin,
    rows: &[Row],
    measures: &[Measure],
) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    // Dates go to the minute: a second record of that minute has a name of its own, behind the
    // first one's in their order.
    let named = |end: &str| folder.join(format!("{}_{}{end}.csv", origin.date, origin.commit));
    let ends = std::iter::once(String::new()).chain((2..100).map(|count| format!("_{count}")));
    let path = ends.map(|end| named(&end)).find(|path| !path.exists());
    let path = path.with_context(|| format!("{} has 99 records of a minute", folder.display()))?;
    let columns: Vec<String> = COLUMNS.iter().chain(&LATER).map(ToString::to_string).collect();
    let mut text = csv::join(&columns);
    for row in rows {
        text.push('\n');
        text.push_str(&csv::join(&fields(row, origin)));
    }
    for measure in measures {
        text.push('\n');
        text.push_str(&csv::join(&measure_fields(measure, origin)));
    }
    text.push('\n');
    replace(&folder.join("machine.txt"), &origin.machine.text())?;
    replace(&path, &text)?;
    Ok(path)
}

/// Writes a file under another name and renames it.
fn replace(path: &Path, text: &str) -> Result<()> {
    let draft = path.with_extension(format!("draft{}", std::process::id()));
    let written = fs::write(&draft, text).and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        // What is left of the draft would be in the way of nobody but its reader.
        let _ = fs::remove_file(&draft);
    }
    written.with_context(|| format!("{} cannot be written", path.display()))
}

/// A number that is known, in few digits: records are kept for ever.
fn known(number: Option<f64>) -> String {
    number.map_or(String::new(), |number| format!("{number:.4}"))
}

fn fields(row: &Row, origin: &Origin) -> [String; 26] {
    let repeat = format!(
        "cargo xtask bench --device '{}' op={} format={} shape={}",
        origin.selector, row.op, row.format, row.shape
    );
    [
        row.op.clone(),
        row.format.clone(),
        row.shape.clone(),
        row.variant.clone(),
        row.production.to_string(),
        format!("{:.6}", row.median_ms),
        format!("{:.6}", row.spread_ms),
        row.samples.to_string(),
        format!("{:.4}", row.gb_s),
        format!("{:.4}", row.gflop_s),
        known(row.roof_share),
        known(row.ratio_to_dense_f32),
        known(row.ratio_to_dense_f16),
        row.device.clone(),
        origin.machine.fingerprint(),
        origin.commit.clone(),
        origin.date.clone(),
        repeat,
        KERNEL.into(),
        String::new(),
        String::new(),
        String::new(),
        row.calibrated.map_or(String::new(), |number| format!("{number:.6}")),
        row.calibrated_spread.map_or(String::new(), |number| format!("{number:.6}")),
        SEED.to_string(),
        row.pass.to_string(),
    ]
}

fn measure_fields(measure: &Measure, origin: &Origin) -> [String; 26] {
    let mut fields: [String; 26] = std::array::from_fn(|_| String::new());
    let mut set = |name: &str, text: String| {
        let at = COLUMNS.iter().chain(&LATER).position(|column| *column == name);
        fields[at.expect("a column")] = text;
    };
    set("op", measure.op.clone());
    set("format", measure.format.clone());
    set("shape", measure.shape.clone());
    set("variant", measure.metric.clone());
    set("machine", origin.machine.fingerprint());
    set("commit", origin.commit.clone());
    set("date", origin.date.clone());
    set("repeat", measure.repeat.clone());
    set("kind", measure.kind.clone());
    set("value", measure.value.to_string());
    set("unit", measure.unit.clone());
    set("better", measure.better.name().into());
    set("seed", measure.seed.map_or(String::new(), |seed| seed.to_string()));
    fields
}

/// A record as it is read back.
#[derive(Clone, Debug)]
pub struct Record {
    /// The kernels' rows.
    pub rows: Vec<Row>,
    /// The other numbers.
    pub measures: Vec<Measure>,
    /// Commit that was measured; empty in a record without rows.
    pub commit: String,
    /// When.
    pub date: String,
    /// The fingerprint of the machine.
    pub fingerprint: String,
    /// The machine, where `machine.txt` is still the one that the rows name.
    pub machine: Option<Machine>,
}

/// A line of a record by the names of its columns.
struct Line<'a> {
    columns: &'a [String],
    fields: &'a [String],
}

impl Line<'_> {
    /// A field; empty where the record has no such column.
    fn get(&self, name: &str) -> &str {
        let at = self.columns.iter().position(|column| column == name);
        at.map_or("", |at| self.fields[at].as_str())
    }

    fn number(&self, name: &str) -> Result<f64> {
        let text = self.get(name);
        let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
        number.with_context(|| format!("`{name}` is `{text}`, not a number"))
    }

    fn known(&self, name: &str) -> Result<Option<f64>> {
        if self.get(name).is_empty() { Ok(None) } else { self.number(name).map(Some) }
    }

    fn row(&self) -> Result<Row> {
        Ok(Row {
            op: self.get("op").into(),
            format: self.get("format").into(),
            shape: self.get("shape").into(),
            variant: self.get("variant").into(),
            production: self.get("production") == "true",
            device: self.get("device").into(),
            median_ms: self.number("median_ms")?,
            spread_ms: self.number("spread_ms")?,
            samples: self.number("samples")? as usize,
            gb_s: self.number("gb_s")?,
            gflop_s: self.number("gflop_s")?,
            roof_share: self.known("roof_share")?,
            ratio_to_dense_f32: self.known("ratio_to_dense_f32")?,
            ratio_to_dense_f16: self.known("ratio_to_dense_f16")?,
            calibrated: self.known("calibrated")?,
            calibrated_spread: self.known("calibrated_spread")?,
            pass: self.known("pass")?.unwrap_or(0.0) as u32,
        })
    }

    fn measure(&self) -> Result<Measure> {
        let better = self.get("better");
        let seed = self.get("seed");
        Ok(Measure {
            kind: self.get("kind").into(),
            op: self.get("op").into(),
            format: self.get("format").into(),
            shape: self.get("shape").into(),
            metric: self.get("variant").into(),
            value: self.number("value")?,
            unit: self.get("unit").into(),
            better: Better::parse(better)
                .with_context(|| format!("`better` is `{better}`: lower, higher or nothing"))?,
            repeat: self.get("repeat").into(),
            seed: match seed {
                "" => None,
                text => Some(text.parse().with_context(|| format!("`seed` is `{text}`"))?),
            },
        })
    }
}

/// Reads a record and the `machine.txt` beside it.
///
/// # Errors
/// There is no such file, or it is not a record: the line is named.
pub fn read(path: &Path) -> Result<Record> {
    let text =
        fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut lines = text.lines().enumerate();
    let header = lines.next().map(|(_, line)| line).unwrap_or_default();
    let columns: Vec<String> = csv::split(header).unwrap_or_default();
    if !COLUMNS.iter().all(|column| columns.iter().any(|found| found == column)) {
        bail!("{}: not a record of `cargo xtask bench --record`", path.display());
    }
    let mut record = Record {
        rows: Vec::new(),
        measures: Vec::new(),
        commit: String::new(),
        date: String::new(),
        fingerprint: String::new(),
        machine: None,
    };
    let mut machines: Vec<String> = Vec::new();
    for (index, line) in lines {
        let place = || format!("{}:{}", path.display(), index + 1);
        let fields = csv::split(line).with_context(place)?;
        ensure!(fields.len() == columns.len(), "{}: not as many fields as columns", place());
        let line = Line { columns: &columns, fields: &fields };
        match line.get("kind") {
            "" | KERNEL => record.rows.push(line.row().with_context(place)?),
            _ => record.measures.push(line.measure().with_context(place)?),
        }
        record.commit = line.get("commit").into();
        record.date = line.get("date").into();
        record.fingerprint = line.get("machine").into();
        machines.push(record.fingerprint.clone());
    }
    machines.dedup();
    let beside = fs::read_to_string(path.with_file_name("machine.txt")).ok();
    let machine = beside.map(|text| Machine::parse(&text));
    record.machine = machine.filter(|machine| machines == [machine.fingerprint()]);
    Ok(record)
}

/// The newest record of a folder, by the date in its name.
pub fn newest(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?;
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "csv")).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(median_ms: f64) -> Row {
        Row {
            op: "matmul_nt".into(),
            format: "q4".into(),
            shape: "a_1x2x3".into(),
            variant: "tile".into(),
            production: true,
            device: "llvmpipe (LLVM 15, 256 bits)".into(),
            median_ms,
            spread_ms: 0.25,
            samples: 11,
            gb_s: 1.5,
            gflop_s: 2.5,
            roof_share: Some(0.5),
            ratio_to_dense_f32: Some(3.25),
            ratio_to_dense_f16: None,
            calibrated: Some(1.25),
            calibrated_spread: None,
            pass: 3,
        }
    }

    fn losses() -> Measure {
        Measure {
            kind: "quality".into(),
            op: "compare".into(),
            format: "edge".into(),
            shape: "demo, short".into(),
            metric: "val_loss".into(),
            value: 2.125,
            unit: "nats".into(),
            better: Better::Lower,
            repeat: "edge-runtime compare".into(),
            seed: Some(7),
        }
    }

    fn origin() -> Origin {
        Origin {
            commit: "abc".into(),
            date: "2026-01-02T0304".into(),
            selector: "llvmpipe".into(),
            machine: Machine::parse("adapter: a\n"),
        }
    }

    #[test]
    fn a_record_is_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let rows = [sample(1.5), sample(2.5)];
        let path = write(folder.path(), &origin(), &rows, &[losses()]).expect("writable");
        assert_eq!(path.file_name().expect("a name"), "2026-01-02T0304_abc.csv");
        let record = read(&path).expect("a record");
        assert_eq!(record.rows, rows);
        assert_eq!(record.measures, [losses()]);
        assert_eq!((record.commit.as_str(), record.date.as_str()), ("abc", "2026-01-02T0304"));
        assert_eq!(record.machine, Some(origin().machine));
        let text = fs::read_to_string(&path).expect("there");
        let repeat = "bench --device 'llvmpipe' op=matmul_nt format=q4 shape=a_1x2x3";
        assert_eq!(text.matches(repeat).count(), 2, "each row says how to repeat it");
        let names = fs::read_dir(folder.path()).expect("there").count();
        assert_eq!(names, 2, "no draft is left");
        // A machine.txt of another machine says nothing about these rows.
        fs::write(folder.path().join("machine.txt"), "adapter: b\n").expect("writable");
        assert_eq!(read(&path).expect("a record").machine, None);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = write(folder.path(), &origin(), &[sample(1.5)], &[]).expect("writable");
        let text = fs::read_to_string(&path).expect("there").replace("1.500000", "fast");
        fs::write(&path, text).expect("writable");
        let error = format!("{:#}", read(&path).expect_err("a word for a number"));
        assert!(error.contains(".csv:2: `median_ms` is `fast`, not a number"), "{error}");
        fs::write(&path, "a,b\n1,2\n").expect("writable");
        let error = format!("{:#}", read(&path).expect_err("other columns"));
        assert!(error.contains("not a record"), "{error}");
    }

    #[test]
    fn the_first_records_are_still_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("old.csv");
        let row = "copy,f32,a_1,plain,true,1.5,0.25,3,1,2,,,,a device,0123,abc,2026-01-02T0304,x";
        fs::write(&path, format!("{}\n{row}\n", COLUMNS.join(","))).expect("writable");
        let record = read(&path).expect("a record");
        assert_eq!((record.rows[0].median_ms, record.rows[0].calibrated), (1.5, None));
        assert!(record.measures.is_empty());
    }

    #[test]
    fn the_newest_is_the_last_by_date() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(newest(folder.path()), None);
        for name in ["2026-01-02T0304_zzz.csv", "2026-11-02T0304_aaa.csv", "machine.txt"] {
            fs::write(folder.path().join(name), "").expect("writable");
        }
        let found = newest(folder.path()).expect("two of them");
        assert_eq!(found.file_name().expect("a name"), "2026-11-02T0304_aaa.csv");
        assert_eq!(newest(&folder.path().join("missing")), None);
    }

    #[test]
    fn dates_are_of_the_calendar() {
        assert_eq!(timestamp(0), "1970-01-01T0000");
        assert_eq!(timestamp(951_827_696), "2000-02-29T1234");
        assert_eq!(timestamp(4_107_542_399), "2100-02-28T2359");
        assert_eq!(timestamp(4_107_542_400), "2100-03-01T0000");
    }
}
