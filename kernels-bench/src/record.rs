//! Records: the rows of a run as a file in `kernels-bench/record/DEVICE/`, with what it takes to
//! repeat them in every row, and a `machine.txt` beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use crate::csv;
use crate::machine::{Machine, output};
use crate::row::Row;

/// Where records are, from the root of the workspace.
pub const FOLDER: &str = "kernels-bench/record";

/// Columns of a record, in their order.
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

/// Short name of the commit in the current folder.
pub fn commit() -> String {
    let short = output("git", &["rev-parse", "--short=9", "HEAD"]);
    if short.is_empty() {
        return "unknown".into();
    }
    let changed = !output("git", &["status", "--porcelain"]).is_empty();
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

/// Writes rows to `folder/DATE_COMMIT.csv`, and `machine.txt`; the record appears whole or not at
/// all.
///
/// # Errors
/// The file system refuses.
pub fn write(folder: &Path, origin: &Origin, rows: &[Row]) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let path = folder.join(format!("{}_{}.csv", origin.date, origin.commit));
    let mut text = csv::join(&COLUMNS.map(String::from));
    for row in rows {
        text.push('\n');
        text.push_str(&csv::join(&fields(row, origin)));
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

fn fields(row: &Row, origin: &Origin) -> [String; 18] {
    let known = |number: Option<f64>| number.map_or(String::new(), |number| format!("{number:.4}"));
    let repeat = format!(
        "cargo xtask bench --full --device '{}' op={} format={} shape={}",
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
    ]
}

/// A record as it is read back.
#[derive(Debug)]
pub struct Record {
    /// Its rows.
    pub rows: Vec<Row>,
    /// The machine, where `machine.txt` is still the one that the rows name.
    pub machine: Option<Machine>,
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
    let mut rows = Vec::new();
    let mut machines: Vec<String> = Vec::new();
    for (index, line) in lines {
        let place = || format!("{}:{}", path.display(), index + 1);
        let fields = csv::split(line).with_context(place)?;
        ensure!(fields.len() == columns.len(), "{}: not as many fields as columns", place());
        let get = |name: &str| {
            let at = columns.iter().position(|column| column == name);
            fields[at.expect("all columns are there")].as_str()
        };
        rows.push(row(&get).with_context(place)?);
        machines.push(get("machine").to_string());
    }
    machines.dedup();
    let beside = fs::read_to_string(path.with_file_name("machine.txt")).ok();
    let machine = beside.map(|text| Machine::parse(&text));
    let machine = machine.filter(|machine| machines == [machine.fingerprint()]);
    Ok(Record { rows, machine })
}

fn row<'a>(get: &impl Fn(&str) -> &'a str) -> Result<Row> {
    let number = |name: &str| {
        let text = get(name);
        text.parse::<f64>().with_context(|| format!("`{name}` is `{text}`, not a number"))
    };
    let known = |name: &str| {
        if get(name).is_empty() { Ok(None) } else { number(name).map(Some) }
    };
    Ok(Row {
        op: get("op").into(),
        format: get("format").into(),
        shape: get("shape").into(),
        variant: get("variant").into(),
        production: get("production") == "true",
        device: get("device").into(),
        median_ms: number("median_ms")?,
        spread_ms: number("spread_ms")?,
        samples: number("samples")? as usize,
        gb_s: number("gb_s")?,
        gflop_s: number("gflop_s")?,
        roof_share: known("roof_share")?,
        ratio_to_dense_f32: known("ratio_to_dense_f32")?,
        ratio_to_dense_f16: known("ratio_to_dense_f16")?,
    })
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
        let path = write(folder.path(), &origin(), &rows).expect("writable");
        assert_eq!(path.file_name().expect("a name"), "2026-01-02T0304_abc.csv");
        let record = read(&path).expect("a record");
        assert_eq!(record.rows, rows);
        assert_eq!(record.machine, Some(origin().machine));
        let text = fs::read_to_string(&path).expect("there");
        let repeat = "--full --device 'llvmpipe' op=matmul_nt format=q4 shape=a_1x2x3";
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
        let path = write(folder.path(), &origin(), &[sample(1.5)]).expect("writable");
        let text = fs::read_to_string(&path).expect("there").replace("1.500000", "fast");
        fs::write(&path, text).expect("writable");
        let error = format!("{:#}", read(&path).expect_err("a word for a number"));
        assert!(error.contains(".csv:2: `median_ms` is `fast`, not a number"), "{error}");
        fs::write(&path, "a,b\n1,2\n").expect("writable");
        let error = format!("{:#}", read(&path).expect_err("other columns"));
        assert!(error.contains("not a record"), "{error}");
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
